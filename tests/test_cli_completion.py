"""Shell completions: made from the parser by shtab, committed, and in bash really completing."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from limiterd import cli
from limiterd.ctl.completion import SHELLS
from tests import needs

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / "limiterd" / "ctl" / "completions"


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes the completions."""
    pytest.importorskip("shtab", reason="shtab is not installed here (the extra `build`)")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return import_module("build_completion")


def committed(shell: str) -> str:
    """The completion script that is installed for a shell."""
    return (DIRECTORY / SHELLS[shell]).read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_committed_script_is_current(shell: str, builder: ModuleType) -> None:
    """What is committed is what the parser gives now; `make docs` renews it."""
    assert committed(shell) == builder.script(shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_limiterctl_prints_the_committed_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`limiterctl completion SHELL` prints what is installed, to the letter."""
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == committed(shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_option_is_completed(shell: str, builder: ModuleType) -> None:
    """No word and no long option of the command line is missing from a script."""
    text = committed(shell)
    for action in builder.actions(cli.build_parser()):
        for name in (*action.option_strings, *(action.choices or () if not action.option_strings else ())):
            assert str(name).lstrip("-") in text


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_accepts_the_script(shell: str) -> None:
    """The shell reads it without a complaint (where that shell is installed)."""
    needs.program(shell, shell)
    flag = "--no-execute" if shell == "fish" else "-n"
    done = subprocess.run([shell, flag, "/dev/stdin"], input=committed(shell), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def completed(*words: str) -> set[str]:
    """What bash offers for the last of these words."""
    ask = [
        "compopt() { :; }",  # what bash offers only while it completes
        committed("bash"),
        f"COMP_WORDS=({' '.join(map(repr, words))})",
        f"COMP_CWORD={len(words) - 1}",
        "_shtab_limiterctl",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(ask)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], {"reload", "release", "resume", "request", "requests", "replay", "record"}),
        (["override", ""], {"add", "extend", "list", "revoke"}),
        (["override", "--"], {"--help", "--config", "--socket"}),
        (["override", "add", "--th"], {"--threshold"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["top", "--sort", ""], {"r", "n", "p"}),
        (["limit", "eth0", "--rate", ""], set()),
        (["status", "l"], {"lo"}),
        (["status", "--wa"], {"--watch"}),
        (["release", "--interface-that-is-not", "--al"], {"--all"}),
    ],
)
def test_bash_completes(words: list[str], offered: set[str]) -> None:
    """Verbs, actions, options, choices and links of this machine are offered where they belong."""
    assert completed("limiterctl", *words) == offered
