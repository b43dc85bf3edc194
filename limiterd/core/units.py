"""Rates, sizes, durations and shares: text in, exact integers out.

Rates are bits per second with tc's decimal units (1 gbit = 10^9 bit/s), durations are nanoseconds, shares are parts
per million. Nothing passes through a float, so "0.1gbit" is exactly 100 000 000 bit/s.

tc reads lower-case "mbps" as *bytes* per second while networks write "Mbps" for bits: the lower-case forms are refused
rather than guessed (man tc, PARAMETERS, "RATES").
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

from limiterd.core.errors import UnitError

NS_PER_SECOND: Final = 1_000_000_000
PPM: Final = 1_000_000
MAX_RATE_BPS: Final = 10**15
"""No link is faster than 1 Pbit/s; beyond it a rate is a typing error."""
MAX_DURATION_NS: Final = 100 * 365 * 86_400 * NS_PER_SECOND

_NUMBER = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[A-Za-z%µ/]*)", re.ASCII)
_BIT_UNITS: Final = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
_NETWORK_UNITS: Final = {"Kbps": 10**3, "Mbps": 10**6, "Gbps": 10**9, "Tbps": 10**12}
_BYTE_UNITS: Final = frozenset({"bps", "kbps", "mbps", "gbps", "tbps"})
_DURATION_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": NS_PER_SECOND,
    "m": 60 * NS_PER_SECOND,
    "min": 60 * NS_PER_SECOND,
    "h": 3600 * NS_PER_SECOND,
    "d": 86_400 * NS_PER_SECOND,
    "w": 7 * 86_400 * NS_PER_SECOND,
}
_DURATION_PARTS: Final = re.compile(r"[0-9.]+ ?[A-Za-zµ]*")
_MAX_DIGITS: Final = 30


def _split(text: str, what: str, example: str) -> tuple[Fraction, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(match["number"]) > _MAX_DIGITS:
        raise UnitError(f"{_quote(text)} is not a {what}; write it like {example}")
    return Fraction(Decimal(match["number"])), match["unit"]


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _whole(value: Fraction, text: str, unit: str, limit: int) -> int:
    if value.denominator != 1:
        raise UnitError(f"{_quote(text)} is not a whole number of {unit}; use a smaller unit")
    if value > limit:
        raise UnitError(f"{_quote(text)} is beyond the largest value that makes sense here ({limit} {unit})")
    return int(value)


def _bit_factor(unit: str, text: str, example: str) -> int:
    if unit in _NETWORK_UNITS:
        return _NETWORK_UNITS[unit]
    if unit in _BYTE_UNITS:
        prefix = unit[:-3]
        bits = f"{prefix}bit"
        raise UnitError(
            f"{_quote(text)}: lower-case {unit!r} means bytes per second to tc; "
            f"for bits per second write {bits!r}" + (f" or {prefix.upper()}bps" if prefix else "")
        )
    factor = _BIT_UNITS.get(unit.lower().removesuffix("/s"))
    if factor is None:
        shown = f"unknown unit {unit!r}" if unit else "a unit is missing"
        raise UnitError(f"{_quote(text)}: {shown}; write it like {example} (units: bit kbit mbit gbit tbit, Mbps, Gbit/s)")
    return factor


def parse_rate(text: str) -> int:
    """Read a rate such as "1gbit", "2.5Gbit/s" or "200Mbps" as bits per second.

    Raises UnitError for a missing or unknown unit, for tc's byte units, for fractions of a bit and for rates over 1 Pbit/s.
    """
    number, unit = _split(text, "rate", "200mbit")
    return _whole(number * _bit_factor(unit, text, "200mbit"), text, "bit/s", MAX_RATE_BPS)


def parse_bits(text: str) -> int:
    """Read a size in bits such as "90gbit". Raises UnitError as parse_rate does; "/s" is refused, a size has none."""
    number, unit = _split(text, "size in bits", "90gbit")
    if unit.lower().endswith("/s") or unit in _NETWORK_UNITS:
        raise UnitError(f"{_quote(text)} is a rate; a size in bits is wanted, like 90gbit")
    return _whole(number * _bit_factor(unit, text, "90gbit"), text, "bit", MAX_RATE_BPS * 3600)


def parse_duration(text: str) -> int:
    """Read a duration such as "100ms", "10s", "7d", or a sum in falling units, "1h30m", as nanoseconds. Raises UnitError."""
    parts = _DURATION_PARTS.findall(text)
    if not parts or "".join(parts) != text.strip() or not all(map(_NUMBER.fullmatch, parts)):
        parts = [text]
    total, smaller_than = Fraction(0), 0
    for part in parts:
        number, unit = _split(part, "duration", "10s")
        factor = _DURATION_UNITS.get(unit)
        if factor is None:
            shown = f"unknown unit {unit!r}" if unit else "a unit is missing"
            raise UnitError(f"{_quote(text)}: {shown}; write it like 100ms, 10s, 5m, 24h, 7d, 1w or 1h30m")
        if smaller_than and factor >= smaller_than:
            raise UnitError(f"{_quote(text)}: {unit!r} is not smaller than the unit before it; write falling units, like 1h30m")
        total, smaller_than = total + number * factor, factor
    return _whole(total, text, "ns", MAX_DURATION_NS)


def parse_share(text: str) -> int:
    """Read a share such as "80%" or "2.5%" as parts per million, 0 to 1 000 000. Raises UnitError."""
    number, unit = _split(text, "share", "80%")
    if unit != "%":
        raise UnitError(f"{_quote(text)}: a share is written in percent, like 80%")
    if number > 100:
        raise UnitError(f"{_quote(text)}: a share is at most 100%")
    return _whole(number * 10_000, text, "ppm", PPM)


def _scaled(value: int, units: tuple[tuple[int, str], ...]) -> str:
    for factor, name in units:
        if value >= factor:
            text = f"{value / factor:.3f}".rstrip("0").rstrip(".")
            return f"{text}{name}"
    return f"{value}{units[-1][1]}"


_RATE_STEPS: Final = ((10**12, "tbit"), (10**9, "gbit"), (10**6, "mbit"), (10**3, "kbit"), (1, "bit"))
_DURATION_STEPS: Final = (
    (86_400 * NS_PER_SECOND, "d"),
    (3600 * NS_PER_SECOND, "h"),
    (60 * NS_PER_SECOND, "m"),
    (NS_PER_SECOND, "s"),
    (10**6, "ms"),
    (10**3, "us"),
    (1, "ns"),
)


def format_rate(rate_bps: int) -> str:
    """Show a rate for people, at most three decimals: 200000000 → "200mbit"."""
    return _scaled(rate_bps, _RATE_STEPS)


def format_duration(duration_ns: int) -> str:
    """Show a duration for people, at most three decimals of its largest whole unit: 10300000000 → "10.3s"."""
    return _scaled(duration_ns, _DURATION_STEPS)


def format_share(share_ppm: int) -> str:
    """Show parts per million as percent: 800000 → "80%"."""
    return f"{share_ppm / 10_000:.4f}".rstrip("0").rstrip(".") + "%"


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WALL_RANGE_NS: Final = (-62_135_596_800 * NS_PER_SECOND, 253_402_300_800 * NS_PER_SECOND - 1)
"""The years 1 to 9999."""


def format_wall(wall_ns: int) -> str:
    """Show a wall-clock time as RFC 3339 in UTC with milliseconds: "2026-11-23T12:00:00.250Z".

    Always 24 characters, so that texts compare like the times. A time outside the years 1 to 9999 shows as the nearest
    one inside.
    """
    low, high = _WALL_RANGE_NS
    moment = _EPOCH + timedelta(microseconds=max(low, min(wall_ns, high)) // 1000)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


_RFC3339 = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ](?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.(?P<fraction>[0-9]{1,9}))?"
    r"(?:(?P<zone>[Zz]|[+-][0-9]{2}:[0-9]{2})|(?P<bare_zone>[+-][0-9]{2}(?:[0-9]{2})?))?)?",
    re.ASCII,
)


def parse_wall(text: str) -> int:
    """Read a wall-clock time as nanoseconds since the Unix epoch: RFC 3339 with a zone, or a bare date (00:00 UTC).

    Raises UnitError for anything else: a date-time without a zone would mean another moment on another machine.
    """
    match = _RFC3339.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"{_quote(text)} is not a time; write it like 2026-12-31T00:00:00Z, or as a date: 2026-12-31")
    if match["bare_zone"]:
        zone = match["bare_zone"]
        right = f"{zone[:3]}:{zone[3:] or '00'}"
        raise UnitError(f"{_quote(text)}: the zone {zone} lacks its colon; write {right}")
    if match["time"] and not match["zone"]:
        raise UnitError(f"{_quote(text)} has no time zone; end it with Z for UTC, or with an offset like +01:00")
    zone = (match["zone"] or "Z").upper().replace("Z", "+00:00")
    try:
        moment = datetime.fromisoformat(f"{match['date']}T{match['time'] or '00:00:00'}{zone}")
        whole = (moment - _EPOCH) // timedelta(seconds=1)
    except (ValueError, OverflowError) as error:
        raise UnitError(f"{_quote(text)} is not a valid date: {error}") from error
    wall_ns = whole * NS_PER_SECOND + int((match["fraction"] or "").ljust(9, "0"))
    if not 0 <= wall_ns <= _WALL_RANGE_NS[1]:
        raise UnitError(f"{_quote(text)} lies outside the years 1970 to 9999")
    return wall_ns


def exact_wall(wall_ns: int) -> str:
    """Write a wall-clock time of the years 1 to 9999 so that parse_wall reads the same: "2026-12-31T00:00:00Z"."""
    whole, fraction = divmod(wall_ns, NS_PER_SECOND)
    text = (_EPOCH + timedelta(seconds=whole)).replace(tzinfo=None).isoformat()
    return text + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z"


def _exact(value: int, units: tuple[tuple[int, str], ...]) -> str:
    """Write a value in the largest unit that needs at most three decimals, exactly."""
    for factor, name in units:
        if value >= factor and value * 1000 % factor == 0:
            whole, thousandths = divmod(value * 1000 // factor, 1000)
            return f"{whole}" + (f".{thousandths:03d}".rstrip("0") if thousandths else "") + name
    return f"{value}{units[-1][1]}"


def exact_rate(rate_bps: int) -> str:
    """Write a rate (or a size in bits) so that parse_rate (parse_bits) reads the same: 1500000000 → "1.5gbit"."""
    return _exact(rate_bps, _RATE_STEPS)


def exact_duration(duration_ns: int) -> str:
    """Write a duration so that parse_duration reads the same: 300000000000 → "5m"."""
    return "0s" if duration_ns == 0 else _exact(duration_ns, _DURATION_STEPS)
