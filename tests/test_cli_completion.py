"""Shell completions: made from the parser, committed, and in bash really completing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from limiterd import cli
from limiterd.ctl.completion import WRITERS, describe, paths, script
from tests import needs

DIRECTORY = Path(__file__).resolve().parent.parent / "completion"
FILES = {"bash": "limiterctl.bash", "zsh": "_limiterctl", "fish": "limiterctl.fish"}


@pytest.mark.parametrize("shell", WRITERS)
def test_the_committed_script_is_current(shell: str) -> None:
    """What is committed is what the parser gives now; `make docs` renews it."""
    assert (DIRECTORY / FILES[shell]).read_text(encoding="utf-8") == script(shell)


@pytest.mark.parametrize("shell", WRITERS)
def test_every_verb_and_option_is_completed(shell: str) -> None:
    """No word and no long option of the command line is missing from a script."""
    text = script(shell)
    for _, word in paths(describe("limiterctl", "", cli.build_parser())):
        assert word.name in text
        for option in word.options:
            assert all(name.lstrip("-") in text for name in option.names)


@pytest.mark.parametrize("shell", WRITERS)
def test_the_shell_accepts_the_script(shell: str) -> None:
    """The shell reads it without a complaint (where that shell is installed)."""
    needs.program(shell, shell)
    flag = "--no-execute" if shell == "fish" else "-n"
    done = subprocess.run([shell, flag, "/dev/stdin"], input=script(shell), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def completed(*words: str) -> set[str]:
    """What bash offers for the last of these words."""
    ask = [
        "compopt() { :; }",  # what bash offers only while it completes
        script("bash"),
        f"COMP_WORDS=({' '.join(map(repr, words))})",
        f"COMP_CWORD={len(words) - 1}",
        "_limiterctl",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(ask)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], {"reload", "release", "resume", "request", "requests", "replay", "record"}),
        (["override", ""], {"add", "list", "revoke", "--help", "--config", "--socket"}),
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
