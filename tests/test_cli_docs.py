"""The manual pages say what the programs do."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from limiterd import cli
from limiterd.core.explain import what_lifts
from limiterd.core.model import LinkView, Phase, PolicyMode, Release
from limiterd.daemon.entry import parser as daemon_parser
from tests import needs

ROOT = Path(__file__).resolve().parent.parent
MAN = ROOT / "docs" / "man"


def plain(page: str) -> str:
    """A page's text without roff's escapes."""
    text = (MAN / page).read_text(encoding="utf-8").replace("\\-", "-")
    return re.sub(r"\\f[BIPR]", "", text)


def test_the_commands_page_is_current() -> None:
    """limiterctl.1 is what the parser gives now; `make docs` renews it."""
    done = subprocess.run([sys.executable, "docs/man.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_configurations_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """limiterd.yaml.5 is docs/configuration.md as roff; `make docs` renews it."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    build_man = importlib.import_module("build_man")
    assert (MAN / "limiterd.yaml.5").read_text(encoding="utf-8") == build_man.page()


def test_the_daemons_page_has_every_option() -> None:
    """limiterd(8) explains every long option of the daemon."""
    text = plain("limiterd.8")
    options = {name for action in daemon_parser()._actions for name in action.option_strings if name.startswith("--")}
    assert not {name for name in options if name not in text}


def test_the_configurations_page_has_every_key() -> None:
    """limiterd.yaml(5) explains every key of the shipped configuration, which has all of them."""
    shipped = (ROOT / "config" / "limiterd.yaml").read_text(encoding="utf-8")
    keys = set(re.findall(r"(?:^|[\s{,-])([a-z_]+):(?=[\s{])", re.sub(r"#.*", "", shipped)))
    assert {"threshold", "read_back", "on_exit", "lifeline"} <= keys
    text = plain("limiterd.yaml.5")
    assert not {key for key in keys if key not in text}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_documentation_names_every_verb(verb: str) -> None:
    """docs/cli.md leaves no verb out."""
    assert re.search(
        rf"`[^`]*\b{verb}\b[^`]*`|^limiterctl {verb}\b", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize("page", ["limiterd.8", "limiterctl.1", "limiterd.yaml.5"])
def test_the_pages_are_clean_roff(page: str) -> None:
    """groff formats each page without a warning (where it is installed)."""
    needs.program("groff", "groff-base")
    done = subprocess.run(
        ["groff", "-t", "-k", "-man", "-Tutf8", "-ww", "-z", str(MAN / page)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_in_the_runbook_can_be_typed() -> None:
    """The transcripts' commands are command lines that limiterctl takes; docs/build_transcripts.py renews them."""
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^\$ limiterctl (.*)$", text)
    assert len(lines) > 10
    for line in lines:
        cli.build_parser().parse_args(shlex.split(line, comments=True))
    assert text.count("\n### ") > text.split("<!-- end of transcripts -->")[0].count("\n### ") == 5


PLACEHOLDERS = {"IFACE": "eth0", "R": "1gbit", "RATE": "1gbit", "DATE": "2026-12-31", "TIME": "7d", "ID": "REQ-1", "TEXT": "x"}


def told() -> set[str]:
    """Every `limiterctl …` that the documents, the alerts and explain's sentences tell people to type."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "config" / "prometheus" / "limiterd.rules.yml"]
    inline = {line for file in files for line in re.findall(r"`limiterctl ([^`\n]+)`", file.read_text(encoding="utf-8"))}
    view = LinkView("IFACE", 2, "p", PolicyMode.ENFORCE, Phase.LIMITED, 0, 0, since_wall_ns=1)
    return inline | set(
        re.findall(r"limiterctl (request .*?'…'|release .*?'…'|approve ID)", " ".join(what_lifts(view, Release())))
    )


def lenient(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with no option required: a text may leave some out with "…"."""
    for action in parser._actions:
        if action.option_strings:
            action.required = False
        for below in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            lenient(below)
    for group in parser._mutually_exclusive_groups:
        group.required = False
    return parser


@pytest.mark.parametrize("line", sorted(told()))
def test_every_command_that_is_told_can_be_typed(line: str) -> None:
    """A command line in a text is one that limiterctl takes, once its placeholders are filled in."""
    plain_line = (
        re.sub(r"\{\{.*?\}\}", "eth0", line)
        .replace("'…'", "TEXT")
        .replace("--until …", "--until TIME")
        .replace("--reason …", "--reason TEXT")
    )
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(plain_line) if word != "…"]
    verb = words[0]
    assert verb in {*cli.VERBS, "VERB", "--help", "--version"}
    names_or_synopsis = len(words) == 1 or verb in ("VERB", "override") or set("[]|") & set(line)
    if not names_or_synopsis:
        lenient(cli.build_parser([verb])).parse_args(words)  # a wrong line ends with SystemExit
