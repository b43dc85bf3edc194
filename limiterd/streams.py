"""Standard input, output and error, whatever the caller left of them: closed, full, or without a reader.

Rule: what a program did is told by its exit status, so a stream that takes no text never changes what is done. A closed one is
replaced before anything else is opened: else the next file or socket would get its number, and messages would go there.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Final

_REPLACEMENTS: Final = (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)
"""How /dev/null stands in for 0, 1 and 2: reading and writing fail as on the closed one, only standard error takes all."""


def settle() -> None:
    """Put something in the place of closed streams, and let writing to standard error never fail."""
    for number, flags in enumerate(_REPLACEMENTS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is sys.__stderr__ or sys.__stderr__ is None:
        sys.stderr = _Unfailing(io.FileIO(2, "w", closefd=False), encoding=sys.stderr.encoding, errors="backslashreplace")


def discard(number: int) -> None:
    """Let standard output (1) or error (2) lead nowhere: what is still buffered must not fail again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Unfailing(io.TextIOWrapper):
    """Standard error: text that it does not take is lost, and nothing else."""

    def __init__(self, raw: io.FileIO, *, encoding: str, errors: str) -> None:
        super().__init__(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)

    def write(self, text: str) -> int:
        """Write, or not."""
        try:
            return super().write(text)
        except OSError:
            discard(2)
            return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        try:
            super().flush()
        except OSError:
            discard(2)
            with suppress(OSError):
                super().flush()
