"""A key is declared once: the shipped file and the documentation are made from it, and a new key needs no other place."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from limiterd.core.keys import Section, keys_of
from limiterd.core.kinds import ListOf
from limiterd.core.model import Config, Match, Override, Policy

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture
def build_config(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes both."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("build_config")


def test_the_shipped_file_is_current(build_config: ModuleType) -> None:
    """config/limiterd.yaml is what the declarations give now; `make docs` renews it."""
    assert (ROOT / "config" / "limiterd.yaml").read_text(encoding="utf-8") == build_config.shipped()


def test_the_tables_are_current(build_config: ModuleType) -> None:
    """The tables of docs/configuration.md are what the declarations give now; `make docs` renews them."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert build_config.page(text) == text
    assert len(re.findall(r"<!-- keys: \w+ -->", text)) == 5


@pytest.mark.parametrize("owner", [Config, Policy, Match, Override])
def test_every_field_is_a_key(owner: type) -> None:
    """No field of a class that is read from a file lacks its declaration, but for the place that a record was read from."""
    undeclared = set(owner.__dataclass_fields__) - {key.field for key in keys_of(owner).values()}  # type: ignore[attr-defined]
    assert undeclared == ({"origin"} if owner is Override else set())
    for key in keys_of(owner).values():
        if isinstance(key.kind, Section):
            test_every_field_is_a_key(key.kind.make)


def test_every_key_says_what_it_means() -> None:
    """A key's meaning stands in its declaration, unless its words say it all."""

    def silent(owner: type, path: str) -> set[str]:
        found = set()
        for key in keys_of(owner).values():
            inner = key.kind.kind if isinstance(key.kind, ListOf) else key.kind
            if isinstance(inner, Section) and inner.make is not Match:
                found |= silent(inner.make, f"{path}{key.name}.")
            elif not key.meaning:
                found.add(path + key.name)
        return found

    assert silent(Config, "") | silent(Override, "") == {"log.level", "log.format"}


# ---- the recipe --------------------------------------------------------------------------------------


def recipe() -> str:
    """The declaration in the recipe of docs/architecture.md."""
    found = re.search(r"\*\*A configuration key\.\*\*.*?```python\n(.*?)```", RECIPE, re.DOTALL)
    assert found is not None
    return re.sub(r"(?m)^   ", "    ", found[1].rstrip()) + "\n"


def test_a_key_is_added_in_one_place(tmp_path: Path) -> None:
    """Follow the recipe: its declaration, and nothing else, in a copy of the tree; then everything knows the key."""
    for name in ("limiterd", "docs", "config"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.png", "*.csv"))
    module = tmp_path / "limiterd/core/model/config.py"
    head, mark, tail = module.read_text(encoding="utf-8").partition("    drain_ns: int = field(")
    assert mark
    module.write_text(head + recipe() + mark + tail, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", FOLLOWED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "  settle: 2s                 # 10ms to 1m; how long a new limit is watched closely\n" in (
        tmp_path / "config/limiterd.yaml"
    ).read_text(encoding="utf-8")
    assert "| `enforcement.settle` | `2s` | 10ms to 1m | how long a new limit is watched closely |\n" in (
        tmp_path / "docs/configuration.md"
    ).read_text(encoding="utf-8")


FOLLOWED = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/docs"]
import limiterd
assert limiterd.__file__.startswith(sys.argv[1]), limiterd.__file__
from limiterd.config.load import parse
from limiterd.core.errors import ConfigError
from limiterd.core.model import Config, Rules
from limiterd.core.rule_changes import describe, needs_restart

new = parse(b"enforcement: {settle: 30s}\\n", "c.yaml")
assert new.enforcement.settle_ns == 30 * 10**9
assert Config().enforcement.settle_ns == 2 * 10**9
assert describe(Rules(), Rules(config=new), 0) == ("~ enforcement settle 2s → 30s",)
assert [key for key, _ in needs_restart(Rules(), Rules(config=new))] == ["enforcement.settle"]
try:
    parse(b"enforcement: {settle: 2h}\\n", "c.yaml")
    raise SystemExit("2h was taken")
except ConfigError as error:
    assert str(error) == "c.yaml:1:23: enforcement.settle: '2h' is out of range; write 10ms to 1m", error
import build_config
build_config.main()
assert parse(Path(sys.argv[1], "config/limiterd.yaml").read_bytes(), "c.yaml") == Config()
"""
