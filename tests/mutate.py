"""`make mutate`: a change of the core, or of the way a limit is put on and taken off, must be noticed by a test.

    python tests/mutate.py [COUNT]

mutmut changes one thing at a time (an operator, a number, a text, an argument) and runs the tests that come by the changed
function, quick ones first, until one fails. COUNT (500) mutants are tried, always the same ones of the same code, chosen by
the hash of their names; `all` is for the whole. A survivor is a gap in the tests, or equivalent: no test can tell it from the
original. Those are listed in tests/equivalent_mutants.txt with the reason. Exit code 1 where less than 90 % of the others are
killed.

In the runs of pytest inside mutmut this module is a plugin.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
MUTANTS: Final = ROOT / "mutants"
EQUIVALENT: Final = ROOT / "tests" / "equivalent_mutants.txt"
COUNT: Final = 500
GOAL: Final = 0.9
SMALLEST: Final = "limiterd.core.histogram*"
"""With it mutmut is made to generate all mutants, and to find out which test comes by which function."""
KILLED: Final = frozenset({1, 3, 24, 36, 152, 255, -9, -11, -24})
"""Exit codes of a test run that noticed: a failure, or the end of a run that would never have ended."""
NO_TESTS: Final = frozenset({5, 33})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first."""
    stats = Path("mutmut-stats.json")
    took: Mapping[str, float] = json.loads(stats.read_text())["duration_by_test"] if stats.exists() else {}
    items.sort(key=lambda item: took.get(item.nodeid, 0.0))


def mutmut(*names: str) -> None:
    """Try these mutants; what was done before is not done again."""
    command = [str(Path(sys.executable).parent / "mutmut"), "run", "--max-children", str(os.cpu_count()), *names]
    subprocess.run(
        command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL, env={**os.environ, "LIMITERD_MACHINE_EXAMPLES": "60"}
    )


def verdicts() -> dict[str, int | None]:
    """Each mutant with the exit code of its test run; None where there was none yet."""
    found: dict[str, int | None] = {}
    for path in MUTANTS.rglob("*.meta"):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def equivalent() -> dict[str, str]:
    """The change, as lines of a diff, and the reason why nobody can tell it."""
    blocks = EQUIVALENT.read_text(encoding="utf-8").split("\n\n")
    return {change: reason for reason, _, change in (block.partition("\n") for block in blocks) if change}


def change(mutant: str) -> str:
    """What a mutant changes: the module, then the lines that go and come."""
    shown = subprocess.run(
        [Path(sys.executable).parent / "mutmut", "show", mutant], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    lines = [line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}]
    return "\n".join([mutant.partition("__mutmut_")[0], *(line[0] + " " + line[1:].strip() for line in lines)])


def main(arguments: list[str]) -> int:
    """Try the sample and say what came of it."""
    wanted = arguments[0] if arguments else str(COUNT)
    mutmut(SMALLEST)
    names = sorted(verdicts(), key=lambda name: hashlib.sha256(name.encode()).digest())
    if not names:
        sys.exit("no mutants were made; see: mutmut run")
    sample = names if wanted == "all" else names[: int(wanted)]
    mutmut(*("*" + name for name in sample))  # a pattern: the clean run before is then the whole suite, not a list of tests
    codes = verdicts()
    known = equivalent()
    counts: Counter[str] = Counter()
    for name in sample:
        code = codes[name]
        if code in KILLED:
            counts["killed"] += 1
        elif code is None:
            counts["not tried"] += 1
        elif (changed := change(name)) in known:
            counts["equivalent"] += 1
        else:
            counts["no test comes by" if code in NO_TESTS else "survived"] += 1
            sys.stdout.write(f"{name} (exit code {code})\n{changed}\n\n")
    judged = len(sample) - counts["equivalent"] - counts["not tried"]
    score = counts["killed"] / max(1, judged)
    sys.stdout.write(f"{len(sample)} of {len(names)} mutants: {dict(counts)}; {score:.1%} of the non-equivalent killed\n")
    return int(score < GOAL or counts["not tried"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
