"""The terminal that limiterctl writes to: how wide, whether it takes colour and which characters it can show."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from limiterd.ctl.format import Palette, clean

PIPE_WIDTH: Final = 80
CLEAR_SCREEN: Final = "\x1b[H\x1b[2J\x1b[3J"


@dataclass(frozen=True, slots=True)
class Terminal:
    """What standard output is. Colour only on a terminal, and not where NO_COLOR is set (no-color.org) or TERM=dumb."""

    is_terminal: bool
    width: int
    palette: Palette
    unicode: bool


def terminal() -> Terminal:
    """Look at standard output as it is now."""
    is_terminal = sys.stdout.isatty()
    dumb = os.environ.get("TERM") == "dumb"
    return Terminal(
        is_terminal=is_terminal,
        width=shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if is_terminal else PIPE_WIDTH,
        palette=Palette(enabled=is_terminal and not dumb and not os.environ.get("NO_COLOR")),
        unicode=(sys.stdout.encoding or "").lower().replace("-", "") == "utf8",
    )


def tolerant_streams() -> None:
    """Never fail for a character that the locale cannot show: escape it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def say(lines: Iterable[str], *, flush: bool = False) -> None:
    """Print lines; flush: at once, also into a pipe."""
    sys.stdout.write("".join(line + "\n" for line in lines))
    if flush:
        sys.stdout.flush()


def discard_output() -> None:
    """Let standard output lead nowhere: its reader has gone (head, less), and it must not fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def say_json(data: object, *, one_line: bool = False) -> None:
    """Print data as JSON, ASCII only: it can hold any name and harm no terminal."""
    sys.stdout.write(json.dumps(data, indent=None if one_line else 2) + "\n")


def complain(message: str, *, prefix: str = "limiterctl: ") -> None:
    """Print an error or a note on standard error, cleaned, each of its lines after the prefix.

    Problems of files have none: FILE:LINE:COLUMN at the beginning of a line is what editors look for.
    """
    sys.stdout.flush()
    for line in message.splitlines() or [""]:
        sys.stderr.write(f"{prefix}{clean(line)}\n")
