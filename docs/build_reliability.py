"""Writes the fault table of docs/reliability.md from the catalogue, the tests' docstrings and their last results.

    docs/build_reliability.py [--results JUNIT.xml]

The results of a run (`make faults`) are kept in docs/reliability.json, a test's outcome over all its cases with
its day. Only the part of reliability.md between the two marks is written.
"""

from __future__ import annotations

import argparse
import ast
import datetime as dt
import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.catalogue import CATALOGUE  # noqa: E402 - found by the line above

PAGE: Final = ROOT / "docs/reliability.md"
RESULTS: Final = ROOT / "docs/reliability.json"
BEGIN: Final = "<!-- faults: written by `make docs` -->"
END: Final = "<!-- end of faults -->"


@lru_cache
def first_lines(path: str) -> dict[str, str]:
    """The first docstring line of every top-level test of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    named = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test")
    ]
    return {node.name: (ast.get_docstring(node) or "").splitlines()[0] for node in named}


def behaviour(test: str) -> str:
    """What a test requires, without the fault that it may begin with. Raises KeyError where there is no such test."""
    path, name = test.split("::")
    line = first_lines(path)[name]
    _, colon, rest = line.partition(": ")
    return rest[:1].upper() + rest[1:] if colon and path.startswith("tests/faults/") else line


def take(junit: str) -> None:
    """Keep the outcomes of a run."""
    kept: dict[str, list[str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    outcomes: dict[str, Counter[str]] = {}
    for case in ET.parse(junit).getroot().iter("testcase"):  # noqa: S314 - pytest's own output
        marks = {child.tag for child in case}
        outcome = "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"
        test = _test_of(case.get("classname", ""), case.get("name", ""))
        outcomes.setdefault(test, Counter())[outcome] += 1
    kept |= {test: [_summary(counted), today] for test, counted in outcomes.items()}
    RESULTS.write_text(json.dumps({t: kept[t] for t in sorted(kept) if t in _known()}, indent=0) + "\n")


def _summary(counted: Counter[str]) -> str:
    """One word where all cases of a test agree; the failed and the skipped ones are counted."""
    if len(counted) == 1:
        return next(iter(counted))
    limit_states = counted.total()
    parts = [f"{counted[outcome]} of {limit_states} {outcome}" for outcome in ("failed", "skipped") if counted[outcome]]
    return ", ".join(parts if counted["failed"] else ["passed", *parts])


def _known() -> set[str]:
    return {test for rows in CATALOGUE.values() for tests in rows.values() for test in tests}


def _test_of(classname: str, name: str) -> str:
    *parts, last = classname.split(".")
    if last.startswith("Test"):
        return "/".join(parts) + f".py::{last}"
    return "/".join((*parts, last)) + f".py::{name.partition('[')[0]}"


def table() -> str:
    """The generated part."""
    results: dict[str, list[str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    lines = [BEGIN]
    for section, rows in CATALOGUE.items():
        lines += ["", f"### {section}", "", "| fault | required | test | last result |", "|---|---|---|---|"]
        for fault, tests in rows.items():
            for number, test in enumerate(tests):
                path, name = test.split("::")
                outcome, day = results.get(test, ("not run yet", ""))
                cells = ("" if number else fault, behaviour(test), f"[{name}](../{path})", f"{outcome} {day}".strip())
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", END])


def page(text: str) -> str:
    """The page with its generated part renewed."""
    before, rest = text.split(BEGIN, 1)
    return before + table() + rest.split(END, 1)[1]


def main(arguments: list[str]) -> None:
    """Take results, if any, and write."""
    parser = argparse.ArgumentParser(description="Writes the fault table of docs/reliability.md.")
    parser.add_argument("--results", metavar="JUNIT.xml", help="outcomes of a run to keep")
    given = parser.parse_args(arguments)
    if given.results:
        take(given.results)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
