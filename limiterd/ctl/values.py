"""Argument types of limiterctl: rates and times as people type them. A wrong one is a usage error with what would be right."""

from __future__ import annotations

import argparse
import os
import socket
import time
from typing import Self

from limiterd.core.errors import UnitError
from limiterd.core.units import NS_PER_SECOND, exact_wall, format_wall, parse_duration, parse_rate, parse_wall


def rate_bps(text: str) -> int:
    """A rate above zero as bits per second."""
    try:
        value = parse_rate(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if value == 0:
        raise argparse.ArgumentTypeError("a limit of 0 would cut the link off; write a rate like 200mbit")
    return value


def rate_text(text: str) -> str:
    """A rate, checked and handed on as it was written (a record keeps the operator's own words)."""
    rate_bps(text)
    return text


class When(str):
    """A time as a record writes it. span_ns: it was given as a duration from (or back from) now."""

    __slots__ = ("span_ns",)

    def __new__(cls, text: str, span_ns: int | None = None) -> Self:
        """Make the text, which remembers the duration."""
        made = super().__new__(cls, text)
        made.span_ns = span_ns
        return made

    span_ns: int | None

    @property
    def wall_ns(self) -> int:
        """The moment itself."""
        return parse_wall(self)

    def after(self, begin: When | None) -> When:
        """The end of something that begins at another moment than now: a duration counts from there."""
        if begin is None or self.span_ns is None:
            return self
        return When(exact_wall(begin.wall_ns + self.span_ns))


def future(text: str) -> When:
    """A time to come as an override record writes it: a date, RFC 3339 with a zone, or a duration from now ("24h", "7d")."""
    return _when(text, 1)


def past(text: str) -> When:
    """A time gone by: a date, RFC 3339 with a zone, or a duration back from now ("2h", "7d")."""
    return _when(text, -1)


def _when(text: str, direction: int) -> When:
    try:
        span_ns = direction * parse_duration(text)
    except UnitError:
        pass  # not a duration: a date, then
    else:
        return When(format_wall(time.time_ns() // NS_PER_SECOND * NS_PER_SECOND + span_ns), span_ns)
    try:
        parse_wall(text)
    except UnitError as error:
        hint = " or a duration like 24h" if "write it like" in str(error) else ""
        raise argparse.ArgumentTypeError(f"{error}{hint}") from error
    return When(text)


def sudo_user() -> str | None:
    """Who runs this through sudo, "name@host"; else None, since the daemon sees for itself who asks."""
    name = os.environ.get("SUDO_USER")
    return f"{name}@{socket.gethostname()}" if name else None
