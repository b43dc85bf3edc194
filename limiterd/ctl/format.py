"""Figures and tables for people: pure functions, data in, text out.

Rule: nothing that came from outside (interface names, reasons, process names) reaches a terminal with a control
character in it; `clean` is the only door. Rates are bits per second in the units that the policy is written in, so
that what is read here can be typed there. Times are shown both ways, absolute and relative.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from limiterd.core.text import shown

STYLES: Final[Mapping[str, str]] = {
    "": "",
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "alarm": "1;31",
}
PHASE_STYLES: Final[Mapping[str, str]] = {
    "absent": "dim",
    "conforming": "green",
    "pending": "yellow",
    "limited": "red",
    "exempt": "cyan",
    "fault": "alarm",
}
BARS: Final = "▁▂▃▄▅▆▇█"
BARS_ASCII: Final = "_.:-=+*#"
NOTHING: Final = "-"

_RATE_STEPS: Final = ((10**12, "tbit"), (10**9, "gbit"), (10**6, "mbit"), (10**3, "kbit"))
_BYTE_STEPS: Final = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_COUNT_STEPS: Final = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_AGE_STEPS: Final = ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_EXACT_COUNTS: Final = 10_000


# ---- text ----------------------------------------------------------------------------------------


def clean(value: object) -> str:
    """Text that is safe on a terminal; see core/text."""
    return shown(str(value))


def display_width(text: str) -> int:
    """Columns that text takes: combining marks none, wide East Asian characters two."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """Text shortened to width columns; a tilde at its end says that something is missing."""
    if display_width(text) <= width:
        return text
    kept = ""
    for char in text:
        if display_width(kept + char) > width - 1:
            break
        kept += char
    return kept + "~"


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Text filled with spaces to width columns; right puts them before it."""
    space = " " * max(0, width - display_width(text))
    return space + text if right else text + space


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """Lines of at most width columns, broken at words (a longer word anywhere); first is the first line's indent."""
    lines, line, empty = [], indent if first is None else first, True
    for word in text.split():
        for piece in _pieces(word, max(8, width - len(indent))):
            if not empty and display_width(line) + 1 + display_width(piece) > width:
                lines.append(line)
                line, empty = indent, True
            line += piece if empty else f" {piece}"
            empty = False
    return [*lines, line]


def _pieces(word: str, width: int) -> list[str]:
    """The word in parts of at most width columns each."""
    pieces, piece = [], ""
    for char in word:
        if display_width(piece + char) > width:
            pieces.append(piece)
            piece = ""
        piece += char
    return [*pieces, piece]


def plural(count: int, noun: str, many: str = "") -> str:
    """ "1 link", "2 links", "3 entries"."""
    return f"{count} {noun}" if count == 1 else f"{count} {many or noun + 's'}"


class Palette:
    """Paints text with ANSI styles, or leaves it as it is."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled

    def paint(self, text: str, style: str) -> str:
        """Text in one of STYLES."""
        code = STYLES[style]
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled and code and text else text


PLAIN: Final = Palette(enabled=False)


# ---- figures -------------------------------------------------------------------------------------


def _scaled(value: float, steps: Sequence[tuple[int, str]], unit: str) -> str:
    for factor, name in steps:
        # A value that would round up to 1000 of the smaller unit is shown in the larger one.
        if value >= factor * 0.9995:
            scaled = value / factor
            decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            text = f"{scaled:.{decimals}f}"
            return (text.rstrip("0").rstrip(".") if decimals else text) + name
    return f"{value:.0f}{unit}"


def rate(rate_bps: float | None) -> str:
    """A rate to three digits in tc's units: 1234567890 → "1.23gbit"; None → "-"."""
    return NOTHING if rate_bps is None else _scaled(rate_bps, _RATE_STEPS, "bit")


def size(size_bytes: float) -> str:
    """A size in decimal bytes to three digits: 1234567 → "1.23MB"."""
    return _scaled(size_bytes, _BYTE_STEPS, "B")


def count(number: float) -> str:
    """A count: exact up to 9999, then to three digits: 34567 → "34.6k"."""
    return f"{number:.0f}" if number < _EXACT_COUNTS else _scaled(number, _COUNT_STEPS, "")


def span(seconds: float) -> str:
    """A length of time in its two largest units: 252 → "4m12s"; under a minute with one decimal below ten: "6.2s"."""
    whole = round(seconds)
    for factor, unit, minor_factor, minor in _AGE_STEPS:
        if whole >= factor:
            rest = whole % factor // minor_factor
            return f"{whole // factor}{unit}{rest}{minor}" if rest else f"{whole // factor}{unit}"
    return f"{seconds:.1f}s" if seconds < 9.95 and seconds != int(seconds) else f"{whole}s"


def short_span(seconds: float) -> str:
    """A length of time in its largest unit: 252 → "4m"."""
    for factor, unit, _, _ in _AGE_STEPS:
        if seconds >= factor:
            return f"{int(seconds // factor)}{unit}"
    return f"{int(seconds)}s"


def share(part: float, whole: float) -> str:
    """A part as percent of a whole; "-" of nothing."""
    return f"{100 * part / whole:.0f}%" if whole else NOTHING


# ---- times ---------------------------------------------------------------------------------------


def moment(value: object) -> float | None:
    """The Unix seconds of a JSON time (RFC 3339 text or a number of seconds); None where there is none."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    if isinstance(value, int | float):
        return float(value)
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def local(at: float) -> datetime:
    """The wall-clock time of Unix seconds in this machine's zone."""
    return datetime.fromtimestamp(at, UTC).astimezone()


def absolute(at: float) -> str:
    """ "2026-11-23 14:03:22 CET"."""
    return f"{local(at):%Y-%m-%d %H:%M:%S %Z}"


def relative(at: float, now: float) -> str:
    """ "4m12s ago", "in 3h", "now"."""
    if abs(now - at) < 1:
        return "now"
    return f"{span(now - at)} ago" if at < now else f"in {span(at - now)}"


def both(at: float | None, now: float) -> str:
    """ "2026-11-23 14:03:22 CET (4m12s ago)"; "-" where there is no time."""
    return NOTHING if at is None else f"{absolute(at)} ({relative(at, now)})"


def brief(at: float | None, now: float) -> str:
    """A time for a narrow column: "14:03 (4m)" within a day, "11-21 (2d)" in this half-year, "2025-11-21" before."""
    if at is None:
        return NOTHING
    then, age = local(at), max(0.0, now - at)
    if age < 86_400:
        return f"{then:%H:%M} ({short_span(age)})"
    if age < 180 * 86_400:
        return f"{then:%m-%d} ({short_span(age)})"
    return f"{then:%Y-%m-%d}"


# ---- charts --------------------------------------------------------------------------------------


def sparkline(values: Sequence[float | None], *, top: float | None = None, unicode: bool = True) -> str:
    """One character a value, scaled from 0 to top (default: the largest value); None (no sample) is a blank."""
    bars = BARS if unicode else BARS_ASCII
    known = [v for v in values if v is not None]
    ceiling = max(top or 0, max(known, default=0))
    return "".join(" " if v is None else bars[_level(v, ceiling, len(bars))] for v in values)


def _level(value: float, ceiling: float, levels: int) -> int:
    return 0 if ceiling <= 0 else min(levels - 1, max(0, int(value / ceiling * levels)))


def bar(part: float, whole: float, width: int, *, unicode: bool = True) -> str:
    """A progress bar of width columns."""
    filled = min(width, max(0, int(part / whole * width))) if whole > 0 else 0
    full, empty = ("█", "░") if unicode else ("#", ".")
    return full * filled + empty * (width - filled)


def rates_over(samples: Sequence[tuple[int, int]], columns: int) -> list[float | None]:
    """Mean rates in bit/s of (t_ns, tx_bytes) samples, one for each of at most `columns` runs of intervals."""
    intervals = len(samples) - 1
    if intervals < 1:
        return []
    columns = min(columns, intervals)
    edges = [round(i * intervals / columns) for i in range(columns + 1)]
    return [_mean(samples[low], samples[high]) for low, high in itertools.pairwise(edges)]


def _mean(first: tuple[int, int], last: tuple[int, int]) -> float | None:
    elapsed_ns = last[0] - first[0]
    return 8e9 * (last[1] - first[1]) / elapsed_ns if elapsed_ns > 0 and last[1] >= first[1] else None


# ---- tables --------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A table cell: cleaned text and a style."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A table column; least is the width down to which it may be cut (None: never), short its title where room is scarce."""

    title: str
    right: bool = False
    least: int | None = None
    short: str = ""


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int | None, palette: Palette = PLAIN) -> list[str]:
    """Aligned lines, header first, that fit width columns by cutting the columns that allow it (None: never cut)."""
    body = [list(row) for row in rows]
    titles, gap = [c.title for c in columns], "  "
    widths = _widths(titles, body)
    if width is not None and _total(widths, gap) > width:
        titles = [c.short or c.title for c in columns]
        widths = _widths(titles, body)
        gap = gap if _total(widths, gap) <= width else " "
        _shrink(widths, columns, _total(widths, gap) - width)
    head = [Cell(title, "bold") for title in titles]
    return [_line(row, columns, widths, gap, palette) for row in [head, *body]]


def _widths(titles: Sequence[str], body: Sequence[Sequence[Cell]]) -> list[int]:
    return [max([display_width(title), *(display_width(row[i].text) for row in body)]) for i, title in enumerate(titles)]


def _total(widths: Sequence[int], gap: str) -> int:
    return sum(widths) + len(gap) * (len(widths) - 1)


def _shrink(widths: list[int], columns: Sequence[Column], excess: int) -> None:
    """Take excess columns away, one at a time, from whichever column that may be cut is the widest."""
    for _ in range(excess):
        able = [i for i, c in enumerate(columns) if c.least is not None and widths[i] > c.least]
        if not able:
            return
        widths[max(able, key=lambda i: widths[i])] -= 1


def _line(row: Sequence[Cell], columns: Sequence[Column], widths: Sequence[int], gap: str, palette: Palette) -> str:
    parts = []
    for cell, column, width in zip(row, columns, widths, strict=True):
        text = cut(cell.text, width)
        filler, painted = " " * (width - display_width(text)), palette.paint(text, cell.style)
        parts.append(filler + painted if column.right else painted + filler)
    return gap.join(parts).rstrip()


def fields(pairs: Iterable[tuple[str, str]], width: int, palette: Palette = PLAIN, *, label_width: int = 10) -> list[str]:
    """ "  label     text" lines, the text wrapped under itself; a pair with an empty text is left out."""
    lines: list[str] = []
    for label, text in pairs:
        if not text:
            continue
        indent = " " * (label_width + 3)
        first, *rest = wrap(text, width, indent)
        lines.append("  " + palette.paint(pad(label, label_width), "dim") + " " + first[len(indent) :])
        lines.extend(rest)
    return lines
