"""Runs the benches and assembles bench/RESULTS.md from the sections that they print.

    python bench/run_all.py [NAME ...]      (default: all; named ones alone replace their sections)

Takes about half an hour, most of it long runs; use a machine with nothing else to do.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "RESULTS.md"
NOTES: Final = HERE / "NOTES.md"
PLOT: Final = HERE / "growth.png"
BENCHES: Final = {
    "daemon": ["daemon.py"],
    "sampling": ["sampling.py"],
    "latency": ["latency.py"],
    "peers": ["peers.py"],
    "growth": ["growth.py"],
    "longrun": ["longrun.py"],
    "metrics": ["metrics.py"],
    "cli": ["bench_cli.py"],
}
"""Name → command; the order is that of the results."""
FENCED: Final = frozenset({"metrics", "cli"})
"""Those that print plain text."""
TITLES: Final = {
    "sampling": "## Sampling against a C program that only dumps",
    "metrics": "## Scrapes, and ticks beside them",
    "cli": "## limiterctl",
}
"""Headings of those that print none."""


def mark(name: str) -> str:
    """What a section begins with in the file."""
    return f"<!-- bench: {name} -->"


def known() -> dict[str, str]:
    """The sections that the file holds now."""
    found: dict[str, str] = {}
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    for part in text.split("<!-- bench: ")[1:]:
        name, _, body = part.partition(" -->")
        found[name] = body.partition("<!-- end -->")[0].strip("\n")
    return found


def section(name: str) -> str:
    """Run one bench; its section, with when and where it ran. Ends the program where it fails."""
    command = [sys.executable, *(str(HERE / BENCHES[name][0]), *BENCHES[name][1:])]
    if name == "growth" and importlib.util.find_spec("matplotlib"):
        command += ["--plot", str(PLOT)]
    about, began = world.machine(), time.monotonic()
    print(f"== {name}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=world.ROOT)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"bench/run_all.py: {name} failed with exit status {done.returncode}")
    body = done.stdout.strip("\n")
    if name in FENCED:
        body = f"```\n{body}\n```"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"{TITLES[name]}\n\n" if name in TITLES else ""
    return f"{title}{body}\n\n*{when}, {time.monotonic() - began:.0f} s, on {about}; reproduce: `make bench BENCH={name}`.*"


def write(sections: dict[str, str]) -> None:
    """The whole file: the notes written by people, then what was measured."""
    parts = [NOTES.read_text(encoding="utf-8").strip("\n")]
    parts += [f"{mark(name)}\n\n{sections[name]}\n\n<!-- end -->" for name in BENCHES if name in sections]
    RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    """Run what was asked for."""
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.exit(f"bench/run_all.py: there is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    sections = known()
    for name in names:
        sections[name] = section(name)
        write(sections)


if __name__ == "__main__":
    main()
