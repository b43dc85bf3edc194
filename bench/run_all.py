"""Runs the benches and puts the sections that they print into bench/RESULTS.md.

    python bench/run_all.py [NAME ...]      (default: all, which takes about half an hour; use a machine that does nothing else)

What people wrote at the head of the file stays, and so do the sections of benches that were not asked for. A bench that
fails (a peer is not installed) leaves its section as it was; the exit status is then 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "RESULTS.md"
PLOT: Final = HERE / "growth.png"
BENCHES: Final = {
    "daemon": "daemon.py",
    "latency": "latency.py",
    "peers": "peers.py",
    "growth": "growth.py",
    "sampling": "sampling.py",
    "detector": "detector.py",
    "replay": "replay.py",
    "shaper": "shaper.py",
    "metrics": "metrics.py",
    "cli": "bench_cli.py",
    "longrun": "longrun.py",
}
"""Name → program; the order is that of the results."""
TITLES: Final = {
    "sampling": "## Sampling against a C program that only dumps",
    "detector": "## The detector",
    "replay": "## Replay",
    "metrics": "## Scrapes, and ticks beside them",
    "cli": "## limiterctl",
}
"""Headings of those that print none."""
FENCED: Final = frozenset({"metrics", "cli"})
"""Those that print plain text."""
_SECTION: Final = re.compile(r"<!-- (\w+): begin -->\n(.*?)<!-- \1: end -->\n?", re.DOTALL)


def parts(text: str) -> tuple[str, dict[str, str]]:
    """(the head, the sections by name) of the results file."""
    return text.partition("<!-- ")[0].rstrip("\n"), dict(_SECTION.findall(text))


def put(name: str, section: str) -> None:
    """Write the file anew with this section in it."""
    head, sections = parts(RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n")
    sections[name] = section
    ordered = sorted(sections, key=lambda each: [*BENCHES, each].index(each))
    blocks = [f"<!-- {each}: begin -->\n{sections[each]}<!-- {each}: end -->" for each in ordered]
    RESULTS.write_text("\n\n".join([head, *blocks]) + "\n", encoding="utf-8")


def section(name: str) -> str | None:
    """Run one bench; its section, with when and where it ran. None where it failed."""
    command = [sys.executable, str(HERE / BENCHES[name])]
    if name == "growth" and find_spec("matplotlib"):
        command += ["--plot", str(PLOT)]
    about, began = world.machine(), time.monotonic()
    print(f"== {name}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=world.ROOT)
    print(done.stdout, flush=True)
    if done.returncode:
        return None
    body = done.stdout.strip("\n")
    body = f"```\n{body}\n```" if name in FENCED else body
    title = f"{TITLES[name]}\n\n" if name in TITLES else ""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {time.monotonic() - began:.0f} s"
    return f"{title}{body}\n\n*{when}, on {about}; again: `make bench BENCH={name}`.*\n"


def main() -> int:
    """Run what was asked for."""
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.exit(f"bench/run_all.py: there is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    failed = []
    for name in names:
        made = section(name)
        if made is None:
            failed.append(name)
        else:
            put(name, made)
    if failed:
        print(f"bench/run_all.py: failed, their sections are as they were: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
