"""The suite draws the same examples everywhere; `make explore` draws others and writes down what fails, ready to be kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from tests.core.test_machine import replay

ROOT: Final = Path(__file__).resolve().parent.parent

_CONFTEST: Final = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests import examples
from tests.explore import Recorder
examples.settle()
def pytest_configure(config):
    config.pluginmanager.register(Recorder(Path(examples.exploring()), config.getoption("--hypothesis-seed")))
"""
_TESTS: Final = """
from hypothesis import given, settings, strategies as st
from tests.core.test_machine import Machine, deed

@given(st.integers(), st.binary())
def test_small(number, data):
    assert number < 1000

def test_plain():
    raise AssertionError("is not run")

class Broken(Machine):
    @deed()
    def pause_for_ever(self):
        assert False, "broken"

Broken.TestCase.settings = settings(Machine.TestCase.settings, max_examples=5, stateful_step_count=60)
TestBroken = Broken.TestCase
"""


def run(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest on what stands in a directory."""
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed=7", f"--rootdir={place}", "-c", "/dev/null"]
    command = [sys.executable, "-m", "pytest", *options, str(place)]
    return subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_fails_is_written_down(tmp_path: Path) -> None:
    """The example as a decorator for its test, the story as the machine replays it; tests that draw nothing are left out."""
    explored = tmp_path / "explored"
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "test_new.py").write_text(_TESTS)
    done = run(tmp_path, LIMITERD_EXPLORE=str(explored))
    assert "2 failed" in done.stdout, done.stdout
    files = {path.name: path.read_text() for path in explored.iterdir()}
    assert set(files) == {"test_new.py-test_small.txt", "test_new.py-TestBroken-runTest.json"}
    assert "with seed 7" in files["test_new.py-test_small.txt"]
    assert "@example(\n    number=1000,\n" in files["test_new.py-test_small.txt"]
    story = json.loads(files["test_new.py-TestBroken-runTest.json"])["story"]
    assert story[-1] == ["pause_for_ever", {}]
    replay(story[:-1])


_ASK: Final = """
from hypothesis import settings
from tests import examples
examples.settle()
print(settings().derandomize, settings().database)
"""


@pytest.mark.parametrize("ci", ["", "true"])
@pytest.mark.parametrize(("explored", "drawn"), [("", "True None"), ("/somewhere", "False None")])
def test_only_exploring_draws_by_chance(explored: str, drawn: str, ci: str) -> None:
    """Whether the run is in CI decides nothing, though hypothesis itself would look at it."""
    environment = {**os.environ, "LIMITERD_EXPLORE": explored, "CI": ci}
    command = [sys.executable, "-c", _ASK]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == drawn


_DRAWING: Final = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from importlib import import_module
from hypothesis import given, strategies as st
from tests import examples
examples.settle()
for module in sys.argv[1:]:
    import_module(module)
@given(st.integers(), st.text(), st.binary())
def drawn(number, text, data):
    print(ascii((number, text, data)))
drawn()
"""


def test_what_else_is_imported_changes_no_example(tmp_path: Path) -> None:
    """A worker has imported what its other tests needed, and hypothesis would draw constants that it finds there."""
    script = tmp_path / "drawing.py"
    script.write_text(_DRAWING)
    drawn = [
        subprocess.run([sys.executable, script, ROOT, *modules], env=environment, capture_output=True, check=True).stdout
        for modules in ([], ["limiterd.daemon", "limiterd.cli"])
        for environment in ({**os.environ, "PYTHONHASHSEED": "1"}, {**os.environ, "PYTHONHASHSEED": "2"})
    ]
    assert len(drawn[0].splitlines()) >= 100
    assert len(set(drawn)) == 1


def test_every_test_follows_the_profile() -> None:
    """The profile is in force when the tests are made."""
    assert settings().derandomize
    assert settings().database is None
