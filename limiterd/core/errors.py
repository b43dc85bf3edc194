"""Errors, named by whose fault they are.

A caller decides by type alone what to do: a ConfigError keeps the old configuration, an EnvironmentFault is
retried with back-off and shown as a fault, a PeerError is answered to the peer and forgotten.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INCONCLUSIVE = 75
EXIT_NOPERM = 77
EXIT_CONFIG = 78


def errno_name(code: int) -> str:
    """The symbol of an errno, "EPERM" for 1; of two symbols the kernel's own, and the number as text where there is none."""
    return "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, str(code))


class LimiterdError(Exception):
    """Base of every error that limiterd raises on purpose."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong in a file: where, which key, what, and what would be right."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.path}: {self.message}"


class ConfigError(LimiterdError):
    """The operator's input is wrong. Carries every problem found in one pass; nothing was changed."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(p) for p in self.problems))


class UnitError(ValueError):
    """A rate, size, duration or share that cannot be read; the text says what would be right."""


class EnvironmentFault(LimiterdError):
    """The machine refuses: a missing permission or module, a full disk, a port in use. Retried, never silent.

    operation is one of the metric's operations (sample, dump, install, change, remove, restore, events) or the
    adapter's own word; errno_name is the symbolic errno ("EPERM") or "".
    """

    def __init__(self, message: str, *, operation: str = "", errno_name: str = "") -> None:
        super().__init__(message)
        self.operation = operation
        self.errno_name = errno_name


class NotDurableError(LimiterdError):
    """A command took effect, and the disk has not confirmed it: a crash could undo it."""


class PermissionFault(EnvironmentFault):
    """The environment refuses for want of a capability."""

    exit_code = EXIT_NOPERM


class PeerError(LimiterdError):
    """A peer (control client, scraper, remote server) sent or asked something wrong; exit_code is the answer's code."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
