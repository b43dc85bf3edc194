"""A column chart of a rate over time in plain characters: pure, for any width and height.

A column is one span of time and shows the mean of what fell into it, in eighths of a character's height. Marks (threshold,
limit) are dashed lines behind the columns with their value at the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from limiterd.ctl import format as fmt
from limiterd.ctl.format import Palette

AXIS_WIDTH: Final = 8
EIGHTHS: Final = " ▁▂▃▄▅▆▇█"


class Point(NamedTuple):
    """One reading: seconds since the beginning, bits per second, and the style of the phase that it was made in."""

    at_s: float
    rate_bps: float
    style: str


class Glyphs(NamedTuple):
    """What a chart is drawn with."""

    fill: str
    dash: str
    axis: str
    tick: str
    corner: str
    floor: str


UNICODE: Final = Glyphs(EIGHTHS, "╌", "│", "┤", "└", "─")
ASCII: Final = Glyphs("    .####", "-", "|", "+", "+", "-")


def columns(points: Sequence[Point], count: int, column_s: float) -> list[Point | None]:
    """The mean of each of count columns of column_s seconds; the latest ones where the points span more."""
    sums: dict[int, tuple[float, int, str]] = {}
    for point in points:
        index = int(point.at_s / column_s)
        total, seen, style = sums.get(index, (0.0, 0, point.style))
        sums[index] = (total + point.rate_bps, seen + 1, style)
    first = max(0, max(sums, default=0) - count + 1)
    return [_column(index, column_s, sums) for index in range(first, first + count)]


def _column(index: int, column_s: float, sums: Mapping[int, tuple[float, int, str]]) -> Point | None:
    if index not in sums:
        return None
    total, seen, style = sums[index]
    return Point(index * column_s, total / seen, style)


def chart(
    points: Sequence[Point],
    marks_bps: Sequence[float],
    *,
    width: int,
    height: int,
    top_bps: float,
    column_s: float,
    palette: Palette,
    unicode: bool,
) -> list[str]:
    """The chart as height lines: height − 2 of columns, the floor, and the seconds below it. Rates over the top are cut there."""
    glyphs = UNICODE if unicode else ASCII
    rows, plot = height - 2, width - AXIS_WIDTH - 1
    cells = columns(points, plot, column_s)
    marked = {min(rows - 1, int(bps / top_bps * rows)): fmt.rate(bps) for bps in marks_bps}
    lines = [_row(row, rows, cells, marked.get(row, ""), top_bps, glyphs, palette) for row in range(rows - 1, -1, -1)]
    first = next((c.at_s for c in cells if c is not None), 0.0)
    return [*lines, " " * AXIS_WIDTH + glyphs.corner + glyphs.floor * plot, _seconds(first, column_s, plot)]


def _row(row: int, rows: int, cells: Sequence[Point | None], label: str, top_bps: float, glyphs: Glyphs, palette: Palette) -> str:
    axis = glyphs.tick if label else glyphs.axis
    behind = glyphs.dash if label else " "
    drawn = [_cell(cell, row, rows, top_bps, glyphs) for cell in cells]
    return f"{label:>{AXIS_WIDTH}}{axis}" + _painted(
        [(char if char != " " else behind, style if char != " " else "dim") for char, style in drawn], palette.paint
    )


def _cell(cell: Point | None, row: int, rows: int, top_bps: float, glyphs: Glyphs) -> tuple[str, str]:
    if cell is None:
        return " ", ""
    eighths = round(cell.rate_bps / top_bps * rows * 8) - 8 * row
    return glyphs.fill[max(0, min(8, eighths))], cell.style


def _painted(drawn: Sequence[tuple[str, str]], paint: Callable[[str, str], str]) -> str:
    """Runs of one style painted together."""
    text, run, style = "", "", ""
    for char, its_style in drawn:
        if its_style != style:
            text, run, style = text + paint(run, style), "", its_style
        run += char
    return text + paint(run, style)


def _seconds(first_s: float, column_s: float, plot: int) -> str:
    """The labels below the floor, every five seconds."""
    line = [" "] * (plot + AXIS_WIDTH + 8)
    second = int(-(-first_s // 5) * 5)
    while (index := round((second - first_s) / column_s)) + len(f"{second}s") <= plot:
        for offset, char in enumerate(f"{second}s"):
            line[AXIS_WIDTH + 1 + index + offset] = char
        second += 5
    return "".join(line).rstrip()
