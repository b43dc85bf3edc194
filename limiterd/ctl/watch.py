"""Showing what the daemon answered: once or, with --watch, again every few seconds; as JSON or as lines."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from limiterd.core.errors import EXIT_UNREACHABLE, PeerError
from limiterd.ctl.connect import Data
from limiterd.ctl.terminal import CLEAR_SCREEN, Terminal, complain, say, say_json, terminal

PERIOD_S: Final = 2.0


def watch_argument(parser: argparse.ArgumentParser) -> None:
    """--watch, for verbs that show how things are now."""
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_period,
        const=PERIOD_S,
        metavar="SECONDS",
        help=f"refresh every SECONDS (default: {PERIOD_S:g}) until Ctrl-C",
    )


def _period(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return value


def repeated(ns: argparse.Namespace, once: Callable[[], int]) -> int:
    """Do it once; with --watch until Ctrl-C, through restarts of the daemon."""
    if ns.watch is None:
        return once()
    while True:
        try:
            once()
        except PeerError as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            complain(str(error))
        sys.stdout.flush()  # a pipe or file gets each round at once, not when 8 KiB have gathered
        time.sleep(ns.watch)


def show(ns: argparse.Namespace, data: Data, render: Callable[[Terminal], Sequence[str]]) -> None:
    """Print data, under --watch one line of JSON a round or, on a terminal, in the place of the round before."""
    again = ns.watch is not None
    if ns.json:
        say_json(data, one_line=again)
        return
    screen = terminal()
    lines = render(screen)
    if again:
        lines = _on_one_screen(lines, screen.height) if screen.is_terminal else [*lines, ""]
    say(lines)


def _on_one_screen(lines: Sequence[str], height: int) -> list[str]:
    """The beginning of what is shown stays in sight; what does not fit is counted in the last line."""
    if len(lines) >= height:
        shown = max(1, height - 2)
        lines = [*lines[:shown], f"… {len(lines) - shown} more lines: make the window taller, or ask for less (--phase, IFACE)"]
    return [CLEAR_SCREEN + lines[0], *lines[1:]]
