"""The catalogue of faults holds what there is, and the page is made from it."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.faults import catalogue

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes the page."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import build_reliability  # type: ignore[import-not-found]  # noqa: PLC0415 - a script beside the page

    monkeypatch.delitem(sys.modules, "build_reliability")
    module: ModuleType = build_reliability
    return module


def test_every_test_of_the_catalogue_exists(build: ModuleType) -> None:
    """Each has a docstring that says what is required."""
    for test in catalogue.tests():
        assert build.behaviour(test), test


def test_every_fault_test_is_in_the_catalogue() -> None:
    """What stands beside it is a row of it (fuzz tests also have one for their corpus)."""
    known = set(catalogue.tests())
    others = {"test_catalogue.py", "test_fuzz.py"}
    for path in Path(__file__).parent.glob("test_*.py"):
        names = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name.startswith("test")]
        assert path.name in others or {f"tests/faults/{path.name}::{name}" for name in names} <= known, path


def test_every_row_has_held(build: ModuleType) -> None:
    """No test of the page is without a result, and none has failed."""
    last = [line.rsplit(" | ", 1)[1] for line in build.table().splitlines() if "](../" in line]
    assert last
    assert not [result for result in last if "failed" in result or "not run yet" in result], "run `make faults`"


def test_cases_of_a_test_are_summed_up(build: ModuleType) -> None:
    """What was skipped or failed is counted; one word says that all cases agree."""
    summary = build._summary
    assert summary(Counter(passed=3)) == "passed"
    assert summary(Counter(passed=8, skipped=1)) == "passed, 1 of 9 skipped"
    assert summary(Counter(passed=7, skipped=1, failed=1)) == "1 of 9 failed, 1 of 9 skipped"


def test_the_page_is_current(build: ModuleType) -> None:
    """docs/reliability.md is what the catalogue, the docstrings and the kept results make."""
    text = build.PAGE.read_text(encoding="utf-8")
    assert build.page(text) == text, "run `make docs`"
