"""How long `limiterctl status` takes, from exec to exit, beside an empty Python: wall and CPU time, medians of many runs.

The answer comes from a stand-in for the daemon, so what is measured is the command alone. Bound: 150 ms.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.ctl_server import ControlStub  # noqa: E402 - found by the line above
from tests.test_cli import document, link  # noqa: E402 - likewise

RUNS = 25


def child_cpu_s() -> float:
    """CPU time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(*words: str) -> tuple[float, float]:
    """Median wall and CPU milliseconds of one command."""
    wall, cpu = [], []
    for _ in range(RUNS):
        wall_s, cpu_s = time.monotonic(), child_cpu_s()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        wall.append(time.monotonic() - wall_s)
        cpu.append(child_cpu_s() - cpu_s)
    return statistics.median(wall) * 1e3, statistics.median(cpu) * 1e3


def main() -> None:
    """Print one line a command."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "control.sock"
        config = Path(directory) / "limiterd.yaml"
        config.write_text(f"control: {{socket: {path}}}\n", encoding="utf-8")
        config.chmod(0o600)
        status = ("-m", "limiterd.cli", "status")
        with ControlStub(path, {"status": document(*(link(f"eth{i}") for i in range(8)))}):
            for name, words in (
                ("python -c pass", ("-c", "pass")),
                ("status --socket PATH", (*status, "--socket", str(path))),
                ("status --config FILE", (*status, "--config", str(config))),
                ("--help", ("-m", "limiterd.cli", "--help")),
            ):
                wall_ms, cpu_ms = measure(*words)
                print(f"{name:<22} {wall_ms:6.0f} ms wall {cpu_ms:6.0f} ms CPU")


if __name__ == "__main__":
    main()
