"""Argument types of limiterctl: rates and times as people type them. A wrong one is a usage error with what would be right."""

from __future__ import annotations

import argparse
import os
import socket
import time
from datetime import UTC, datetime

from limiterd.core.errors import UnitError
from limiterd.core.units import NS_PER_SECOND, format_wall, parse_duration, parse_rate


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


def future(text: str) -> str:
    """A time to come as an override record writes it: a date, RFC 3339 with a zone, or a duration from now ("24h", "7d")."""
    return _when(text, 1)


def past(text: str) -> str:
    """A time gone by: a date, RFC 3339 with a zone, or a duration back from now ("2h", "7d")."""
    return _when(text, -1)


def _when(text: str, direction: int) -> str:
    try:
        return format_wall(time.time_ns() // NS_PER_SECOND * NS_PER_SECOND + direction * parse_duration(text))
    except UnitError:
        pass  # not a duration: a date, then
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None:
        example = f"{datetime.now(UTC):%Y-%m-%d}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write {example}, {example}T18:00:00Z or a duration like 24h")
    bare_date = len(text) <= len("YYYY-MM-DD")
    if parsed.tzinfo is None and not bare_date:
        raise argparse.ArgumentTypeError(f"{text!r} has no zone; add Z for UTC, or an offset like +01:00")
    return text


def sudo_user() -> str | None:
    """Who runs this through sudo, "name@host"; else None, since the daemon sees for itself who asks."""
    name = os.environ.get("SUDO_USER")
    return f"{name}@{socket.gethostname()}" if name else None
