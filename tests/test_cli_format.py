"""Figures, times, tables and charts of limiterctl."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.text import is_plain
from limiterd.ctl import format as fmt
from limiterd.ctl.format import Cell, Column, Palette

NOW = 1_795_442_400.0


@given(st.text())
def test_clean_text_never_holds_a_control_character(text: str) -> None:
    """Whatever comes in, what goes out is printable: no escape, newline or direction override reaches a terminal."""
    assert fmt.clean(text).isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_clean_leaves_printable_text_alone(text: str) -> None:
    """Letters, digits, signs and plain spaces pass unchanged."""
    printable = "".join(c for c in text if is_plain(f"a{c}") and c != "\\")
    assert fmt.clean(printable) == printable


@given(st.text(st.characters(exclude_categories=["C"])), st.integers(1, 40))
def test_cut_text_fits_and_says_so(text: str, width: int) -> None:
    """Cut text takes at most the width; where something is missing it ends with a tilde."""
    shown = fmt.cut(text, width)
    assert fmt.display_width(shown) <= width
    assert shown == text or shown.endswith("~")


@pytest.mark.parametrize(
    ("rate_bps", "shown"),
    [
        (0, "0bit"),
        (999, "999bit"),
        (1000, "1kbit"),
        (200_000_000, "200mbit"),
        (1_234_567_890, "1.23gbit"),
        (12_345_678, "12.3mbit"),
        (999_600_000, "1gbit"),
        (9_999_000, "10mbit"),
        (10**12, "1tbit"),
        (None, "-"),
    ],
)
def test_rates_read_as_the_policy_writes_them(rate_bps: int | None, shown: str) -> None:
    """A rate has three digits and the unit of a configuration; it never rounds to 1000 of a smaller unit."""
    assert fmt.rate(rate_bps) == shown


@given(st.integers(0, 10**15))
def test_a_rate_is_short_and_near(rate_bps: int) -> None:
    """Every rate fits eight columns and is right within half a percent."""
    shown = fmt.rate(rate_bps)
    factor = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}.get(shown[-4], 1)
    digits = shown.removesuffix("bit").rstrip("kmgt")
    assert len(shown) <= 8
    assert abs(float(digits) * factor - rate_bps) <= max(0.5, rate_bps * 0.005)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (6.21, "6.2s"), (10, "10s"), (59.7, "1m"), (252, "4m12s"), (3600, "1h"), (90_000, "1d1h"), (9.97, "10s")],
)
def test_spans_have_two_units_at_most(seconds: float, shown: str) -> None:
    """A length of time shows its two largest units."""
    assert fmt.span(seconds) == shown


@pytest.mark.parametrize(
    ("then", "shown"),
    [(NOW - 252, "4m12s ago"), (NOW + 3600, "in 1h"), (NOW - 0.4, "now")],
)
def test_relative_times(then: float, shown: str) -> None:
    """A time shows how far it is from now, in the past or to come."""
    assert fmt.relative(then, NOW) == shown


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2026-11-23T12:00:00Z", 1_795_435_200.0),
        ("2026-11-23T13:00:00.250+01:00", 1_795_435_200.25),
        ("2026-11-23", 1_795_392_000.0),
        (12, 12.0),
        (None, None),
        ("", None),
        (True, None),
        ("never", None),
    ],
)
def test_moments_are_read_from_json(value: object, seconds: float | None) -> None:
    """RFC 3339 text, a bare date in UTC and plain seconds are times; everything else is none."""
    assert fmt.moment(value) == seconds


@given(st.floats(0, 4e9))
def test_a_brief_time_fits_its_column(at: float) -> None:
    """A time in a table takes at most twelve columns, however old."""
    assert len(fmt.brief(at, 4e9)) <= 12


CELLS = st.text(st.characters(exclude_categories=["C"]), max_size=30).map(Cell)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5), st.integers(40, 120))
def test_a_table_fits_where_its_columns_may_be_cut(rows: list[tuple[Cell, Cell, Cell]], width: int) -> None:
    """When every column may be cut, no line is wider than asked for."""
    columns = [Column("ONE", least=3), Column("TWO", right=True, least=3), Column("THREE", least=3)]
    assert all(fmt.display_width(line) <= width for line in fmt.table(columns, rows, width))


def test_a_table_keeps_whole_what_must_not_be_cut() -> None:
    """A column without a least width is shown whole, at the cost of the others."""
    lines = fmt.table([Column("NAME"), Column("WHY", least=4)], [[Cell("enp0s31f6np1"), Cell("because of this and that")]], 20)
    assert lines[1] == "enp0s31f6np1 becaus~"


def test_colour_adds_no_width_and_can_be_off() -> None:
    """A painted table is the plain one with escape sequences in it."""
    rows = [[Cell("a", "red"), Cell("bb", "alarm")]]
    columns = [Column("X"), Column("YYY", right=True)]
    painted = fmt.table(columns, rows, 80, Palette(enabled=True))
    assert "\x1b[31ma\x1b[0m" in painted[1]
    assert fmt.table(columns, rows, 80) == ["X  YYY", "a   bb"]


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=50), st.sampled_from(["unicode", "ascii"]))
def test_a_sparkline_has_one_character_a_value(values: list[float | None], glyphs: str) -> None:
    """Every value is one character; a missing one is a blank."""
    line = fmt.sparkline(values, unicode=glyphs == "unicode")
    assert len(line) == len(values)
    assert all((char == " ") == (value is None) for char, value in zip(line, values, strict=True))


def test_a_sparkline_is_scaled_to_its_top() -> None:
    """The top is full height; where all is less, the line stays low."""
    assert fmt.sparkline([0, 50, 100], top=100) == "▁▅█"
    assert fmt.sparkline([10, 10], top=100) == "▁▁"


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=40), st.integers(1, 20))
def test_rates_over_samples_never_fail(samples: list[tuple[int, int]], columns: int) -> None:
    """Clocks and counters that run backwards give no rate, and there are never more rates than columns."""
    assert len(fmt.rates_over(samples, columns)) <= columns


def test_rates_over_samples_are_means() -> None:
    """125 MB in a second is 1 Gbit/s, whether it is cut into columns or not."""
    samples = [(i * 10**8, i * 12_500_000) for i in range(11)]
    assert fmt.rates_over(samples, 5) == [1e9] * 5
