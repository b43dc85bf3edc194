"""Writes the shell completions that `limiterctl completion` prints, from the command line's own parser, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import shtab

from limiterd.cli import build_parser
from limiterd.ctl.completion import SHELLS

FOLDER: Final = Path(__file__).resolve().parent.parent / "limiterd" / "ctl" / "completions"
FILE_METAVARS: Final = frozenset({"FILE", "PATH", "RECORDING"})
FOLDER_METAVARS: Final = frozenset({"DIR", "DIRECTORY"})
LINK_METAVARS: Final = frozenset({"IFACE", "GLOB"})
LINKS: Final = shtab.cmd("command ls /sys/class/net")


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every action of a parser and of the parsers below it (argparse has no public way to them)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)
        yield action


def script(shell: str) -> str:
    """The completion script of one shell; ids and rates are not completed."""
    parser = build_parser()
    for action in actions(parser):
        for metavars, values in ((FILE_METAVARS, shtab.FILE), (FOLDER_METAVARS, shtab.DIRECTORY), (LINK_METAVARS, LINKS)):
            if action.metavar in metavars:
                action.complete = values  # type: ignore[attr-defined] # where shtab looks for it
    return shtab.complete(parser, shell=shell)


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for shell, name in SHELLS.items():
        (FOLDER / name).write_text(script(shell), encoding="utf-8")


if __name__ == "__main__":
    main()
