"""Rates, sizes, durations, shares and times: exact both ways, and refused where they could mean something else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import UnitError
from limiterd.core.units import (
    MAX_DURATION_NS,
    MAX_RATE_BPS,
    exact_duration,
    exact_rate,
    exact_wall,
    format_duration,
    format_rate,
    format_share,
    format_wall,
    parse_bits,
    parse_duration,
    parse_rate,
    parse_share,
    parse_wall,
)

LAST_NS = parse_wall("9999-12-31T23:59:59.999999999Z")


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("1bit", 1),
        ("1gbit", 10**9),
        ("1GBIT", 10**9),
        ("0.1gbit", 10**8),
        ("2.5 Gbit/s", 25 * 10**8),
        ("200Mbps", 200 * 10**6),
        ("100Kbps", 10**5),
        ("1Tbps", 10**12),
        ("8kbit/s", 8000),
        ("3bit/s", 3),
        (" 1tbit ", 10**12),
        ("0gbit", 0),
        ("0.000000001gbit", 1),
    ],
)
def test_rates_are_exact(text: str, rate_bps: int) -> None:
    """Every accepted form is read as whole bits per second."""
    assert parse_rate(text) == rate_bps


@pytest.mark.parametrize("text", ["1mbps", "1kbps", "1gbps", "1tbps", "1bps"])
def test_byte_units_are_explained(text: str) -> None:
    """Lower-case bps means bytes to tc: refused, saying so and what to write."""
    with pytest.raises(UnitError, match="bytes per second to tc; for bits per second write"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (parse_rate, "1e9", "is not a rate"),
        (parse_rate, "1000000000", "unit is missing"),
        (parse_rate, "-1gbit", "is not a rate"),
        (parse_rate, "", "is not a rate"),
        (parse_rate, "1_000mbit", "is not a rate"),
        (parse_rate, "\u0661gbit", "is not a rate"),
        (parse_rate, "0x10bit", "is not a rate|unknown unit"),
        (parse_rate, "1mib", "unknown unit 'mib'"),
        (parse_rate, "1MBps", "unknown unit"),
        (parse_rate, "1.5bit", "not a whole number of bit/s"),
        (parse_rate, "1001tbit", "beyond the largest"),
        (parse_rate, "1" * 5000 + "bit", "is not a rate"),
        (parse_bits, "90gbit/s", "is a rate; a size in bits"),
        (parse_bits, "90Gbps", "is a rate; a size in bits"),
        (parse_bits, "90", "unit is missing"),
        (parse_duration, "10", "unit is missing"),
        (parse_duration, "1:30", "is not a duration"),
        (parse_duration, "10S", "unknown unit 'S'"),
        (parse_duration, "0.5ns", "not a whole number of ns"),
        (parse_duration, "40000d", "beyond the largest"),
        (parse_duration, "30m1h", "'h' is not smaller than the unit before it"),
        (parse_duration, "1h1h", "write falling units, like 1h30m"),
        (parse_duration, "1h30", "a unit is missing"),
        (parse_duration, "1h 30m", "is not a duration"),
        (parse_wall, "2026-12-31T00:00:00+0100", r"the zone \+0100 lacks its colon; write \+01:00"),
        (parse_wall, "2026-12-31T00:00:00-05", "the zone -05 lacks its colon; write -05:00"),
        (parse_share, "0.8", "in percent"),
        (parse_share, "101%", "at most 100%"),
        (parse_share, "0.00001%", "not a whole number of ppm"),
        (parse_wall, "2026-12-31T00:00:00", "no time zone"),
        (parse_wall, "2026-02-30", "not a valid date"),
        (parse_wall, "2026-12-31T23:59:60Z", "not a valid date"),
        (parse_wall, "2026-12-31T00:00:00+25:00", "not a valid date"),
        (parse_wall, "1969-12-31T23:59:59Z", "outside the years 1970 to 9999"),
        (parse_wall, "9999-12-31T23:59:59-12:00", "outside the years 1970 to 9999"),
        (parse_wall, "20261231", "is not a time"),
        (parse_wall, "1767139200", "is not a time"),
        (parse_wall, "tomorrow", "is not a time"),
    ],
)
def test_what_could_mean_something_else_is_refused(read: Callable[[str], int], text: str, says: str) -> None:
    """Missing units, foreign notations and impossible values are refused with the reason."""
    with pytest.raises(UnitError, match=says):
        read(text)


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [
        ("100ms", 10**8),
        ("10s", 10**10),
        ("5m", 300 * 10**9),
        ("5min", 300 * 10**9),
        ("24h", 86_400 * 10**9),
        ("7d", 604_800 * 10**9),
        ("1.5h", 5400 * 10**9),
        ("3us", 3000),
        ("3µs", 3000),
        ("1ns", 1),
        ("1w", 604_800 * 10**9),
        ("1h30m", 5400 * 10**9),
        ("1w2d3h4m5s6ms7us8ns", 788_645 * 10**9 + 6_007_008),
    ],
)
def test_durations_are_exact(text: str, duration_ns: int) -> None:
    """Every accepted form is read as whole nanoseconds."""
    assert parse_duration(text) == duration_ns


@pytest.mark.parametrize(
    ("text", "wall_ns"),
    [
        ("1970-01-01", 0),
        ("2026-12-31T00:00:00Z", 1_798_675_200 * 10**9),
        ("2026-12-31t00:00:00z", 1_798_675_200 * 10**9),
        ("2026-12-31", 1_798_675_200 * 10**9),
        ("2026-12-31 01:00:00+01:00", 1_798_675_200 * 10**9),
        ("2026-12-30T18:30:00-05:30", 1_798_675_200 * 10**9),
        ("2026-12-31T00:00:00.000000001Z", 1_798_675_200 * 10**9 + 1),
        ("2026-12-31T00:00:00.5Z", 1_798_675_200 * 10**9 + 5 * 10**8),
        ("2024-02-29", 1_709_164_800 * 10**9),
    ],
)
def test_times_are_exact(text: str, wall_ns: int) -> None:
    """A time is read to the nanosecond, in its zone; a bare date is its first moment in UTC."""
    assert parse_wall(text) == wall_ns


@given(st.integers(0, MAX_RATE_BPS))
def test_exact_rates_read_back(rate_bps: int) -> None:
    """exact_rate loses nothing, for rates and sizes alike."""
    assert parse_rate(exact_rate(rate_bps)) == rate_bps
    assert parse_bits(exact_rate(rate_bps)) == rate_bps


@given(st.integers(0, MAX_DURATION_NS))
def test_exact_durations_read_back(duration_ns: int) -> None:
    """exact_duration loses nothing."""
    assert parse_duration(exact_duration(duration_ns)) == duration_ns


@given(st.integers(0, 1_000_000))
def test_shares_read_back(share_ppm: int) -> None:
    """format_share loses nothing."""
    assert parse_share(format_share(share_ppm)) == share_ppm


@given(st.integers(0, LAST_NS))
def test_exact_times_read_back(wall_ns: int) -> None:
    """exact_wall loses nothing."""
    assert parse_wall(exact_wall(wall_ns)) == wall_ns


@given(
    st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(9998, 1, 1)),  # noqa: DTZ001 - the zone comes from the next
    st.integers(-23 * 60, 23 * 60),
)
def test_times_agree_with_datetime(moment: datetime, offset_minutes: int) -> None:
    """Whatever datetime writes in ISO form with an offset is the same moment here."""
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    assert parse_wall(zoned.isoformat()) == (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


@given(st.text(max_size=60))
def test_parsers_refuse_with_unit_errors_alone(text: str) -> None:
    """No text makes a parser fail in another way."""
    for read in (parse_rate, parse_bits, parse_duration, parse_share, parse_wall):
        try:
            assert read(text) >= 0
        except UnitError as error:
            assert str(error).isprintable()  # noqa: PT017 - the message is what is tested


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (format_rate(200_000_000), "200mbit"),
        (format_rate(1_234_567_890), "1.235gbit"),
        (format_rate(0), "0bit"),
        (format_duration(10_300_000_000), "10.3s"),
        (format_duration(0), "0ns"),
        (format_share(25_000), "2.5%"),
        (format_wall(1_798_675_200_250_000_000), "2026-12-31T00:00:00.250Z"),
        (exact_rate(1_500_000_000), "1.5gbit"),
        (exact_rate(1_234_567_890), "1234567.89kbit"),
        (exact_duration(300 * 10**9), "5m"),
        (exact_duration(0), "0s"),
        (exact_wall(1_798_675_200_250_000_000), "2026-12-31T00:00:00.25Z"),
    ],
)
def test_what_people_see(shown: str, text: str) -> None:
    """Values show in their largest unit, with at most three decimals."""
    assert shown == text


@given(st.integers(-(10**22), 10**22))
def test_shown_times_sort_as_the_times(wall_ns: int) -> None:
    """A shown time has one width whatever the clock says, and its text compares like the time."""
    text = format_wall(wall_ns)
    assert len(text) == 24
    assert (text < format_wall(0)) == (wall_ns < 0)
