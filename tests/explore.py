"""`make explore`: every property test of the suite, the stateful machine among them, with examples that chance draws.

    python tests/explore.py [MINUTES [SEED]]

Rounds follow one another until the time is over. Each prints its seed; `make explore SEED=N` begins with that one. What fails
first of a test is written to explored/, ready to be kept: a story of the machine for tests/data/machine, else an @example
for the test. In the suite itself the same examples are drawn every time.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Generator
from itertools import count
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
EXPLORED: Final = ROOT / "explored"
STORY: Final = "the story: "
"""What the note begins with that a failure of the machine bears."""
_EXAMPLE: Final = re.compile(r"(?:Failing test case|Falsifying example): \w+")
_WORKERS: Final = 4


class Recorder:
    """A plugin of pytest: property tests alone are run, and the first failure of each is written to a directory."""

    def __init__(self, place: Path, seed: str) -> None:
        self._place, self._seed = place, seed

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what draws nothing."""
        items[:] = [item for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write down what failed."""
        report = yield
        if report.failed and call.excinfo is not None:
            self._write(item, call.excinfo.value)
        return report

    def _write(self, item: pytest.Item, error: BaseException) -> None:
        notes = getattr(error, "__notes__", [])
        why = f"{item.nodeid} failed with seed {self._seed}: {type(error).__name__}: {error}"
        stories = [json.loads(note.removeprefix(STORY)) for note in notes if note.startswith(STORY)]
        name = item.nodeid.rpartition("/")[2].replace("::", "-")
        self._place.mkdir(parents=True, exist_ok=True)
        if stories:
            path, text = self._place / f"{name}.json", json.dumps({"why": why, "story": stories[-1]}, indent=2) + "\n"
        else:
            path, text = self._place / f"{name}.txt", "\n\n".join([why, *map(_as_example, notes)]) + "\n"
        if not path.exists():
            path.write_text(text, encoding="utf-8")


def _as_example(note: str) -> str:
    """A failing call as hypothesis prints it, "Failing test case: test_x(…)", as the decorator that repeats it."""
    return _EXAMPLE.sub("To keep it, above the test:\n\n@example", note, count=1)


def main(minutes: float, first: int) -> int:
    """Run rounds for so many minutes; 1 where anything failed."""
    until = time.monotonic() + 60 * minutes
    failed = False
    for seed in count(first):
        options = ["-q", "-n", str(_WORKERS), "--dist", "worksteal", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
        command = [sys.executable, "-I", "-X", "utf8", "-m", "pytest", *options]
        told = {**os.environ, "LIMITERD_EXPLORE": str(EXPLORED)}
        done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, check=False)
        failed |= done.returncode != 0
        sys.stdout.write(done.stdout + done.stderr if done.returncode else "")
        sys.stdout.write(f"seed {seed}: {(done.stdout.splitlines() or ['no output'])[-1]}\n")
        sys.stdout.flush()
        if time.monotonic() > until:
            break
    if failed:
        sys.stdout.write(f"what failed: {', '.join(sorted(path.name for path in EXPLORED.glob('*')))} in {EXPLORED.name}/\n")
    return failed


if __name__ == "__main__":
    minutes_, seed_, *_ = [*sys.argv[1:], "", ""]
    sys.exit(main(float(minutes_ or 10), int(seed_ or random.SystemRandom().randrange(10**6))))
