"""The terminal that limiterctl writes to: how wide, whether it takes colour and which characters it can show."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from limiterd.core.errors import EXIT_DONE, EXIT_FAILED
from limiterd.ctl.format import Palette, clean
from limiterd.streams import discard

PREFIX: Final = "limiterctl: "
PIPE_WIDTH: Final = 80
CLEAR_SCREEN: Final = "\x1b[H\x1b[2J\x1b[3J"


@dataclass(frozen=True, slots=True)
class Terminal:
    """What standard output is. Colour only on a terminal, and not where NO_COLOR is set (no-color.org) or TERM=dumb."""

    is_terminal: bool
    width: int
    palette: Palette
    unicode: bool
    height: int = 24


def terminal() -> Terminal:
    """Look at standard output as it is now."""
    is_terminal = sys.stdout.isatty()
    dumb = os.environ.get("TERM") == "dumb"
    size = shutil.get_terminal_size((PIPE_WIDTH, 24))
    return Terminal(
        is_terminal=is_terminal,
        width=size.columns if is_terminal else PIPE_WIDTH,
        height=size.lines,
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
    _write("".join(line + "\n" for line in lines), flush=flush)


def output_is_extra() -> None:
    """What was asked for is done: from now on, output that cannot be written changes neither what follows nor the exit code."""
    _Output.extra = True


class _Output:
    """What became of standard output. extra: the exit code does not depend on it; lost: why it could not be written."""

    extra = False
    lost: OSError | None = None


def _write(text: str, *, flush: bool = False) -> None:
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        if not _Output.extra:
            raise
        _Output.lost = error
        discard_output()


def begin_output() -> None:
    """Forget what became of an earlier command's output."""
    _Output.extra, _Output.lost = False, None


def deliver(code: int) -> int:
    """Write out what is buffered. The exit code: this one, or 1 where output that matters could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _Output.lost = error
        discard_output()
    lost = _Output.lost
    if lost is None or isinstance(lost, BrokenPipeError):
        return code
    complain(
        f"{'done, but ' if _Output.extra and code == EXIT_DONE else ''}the output cannot be written: {lost.strerror or lost}"
    )
    return EXIT_FAILED if code == EXIT_DONE and not _Output.extra else code


def discard_output() -> None:
    """Let standard output lead nowhere: its reader has gone (head, less), and it must not fail again at exit."""
    with suppress(OSError, ValueError):  # it is no file in a test
        discard(sys.stdout.fileno())


def say_json(data: object, *, one_line: bool = False) -> None:
    """Print data as JSON, ASCII only: it can hold any name and harm no terminal."""
    _write(json.dumps(data, indent=None if one_line else 2) + "\n")


def complain(message: str, *, prefix: str = PREFIX) -> None:
    """Print an error or a note on standard error, cleaned, each of its lines after the prefix.

    Problems of files have none: FILE:LINE:COLUMN at the beginning of a line is what editors look for.
    """
    with suppress(OSError):  # told by `deliver`
        sys.stdout.flush()
    for line in message.splitlines() or [""]:
        sys.stderr.write(f"{prefix}{clean(line)}\n")
