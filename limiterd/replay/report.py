"""What a replay tells: an event as JSON, and for people one table, then the events; two policies side by side in both.

Memory stays bounded whatever the recording: figures are summed as the events come, and only so many events are kept for
people; --json prints every one as it happens. Instants and durations are those of a clock that never runs back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from limiterd.core.model import Event, EventKind
from limiterd.core.units import NS_PER_SECOND
from limiterd.ctl import format as fmt
from limiterd.ctl.format import Cell, Column, Palette, clean
from limiterd.replay.runner import Told

EVENTS_KEPT: Final = 2_000
FIRINGS: Final = (EventKind.LIMIT, EventKind.WOULD_LIMIT, EventKind.NOTED, EventKind.POSSIBLE)
"""What is counted, in the order of the table's columns."""

_STYLES: Final = {
    EventKind.LIMIT: "red",
    EventKind.WOULD_LIMIT: "yellow",
    EventKind.LIMITED: "red",
    EventKind.RATE_CHANGED: "yellow",
    EventKind.RELEASED: "green",
    EventKind.NOTED: "yellow",
    EventKind.POSSIBLE: "yellow",
}


def as_json(event: Event) -> dict[str, object] | None:
    """One event as replay --json prints it; None for what its vocabulary lacks."""
    if event.kind is EventKind.RATE_CHANGED:
        return None
    return {
        "t": event.t_ns,
        "interface": event.interface,
        "event": event.kind.value,
        "reason": str(event.reason),
        "policy": event.policy,
    }


@dataclass(slots=True)
class Line:
    """The figures of one link under one policy. limited_ns is up to the last release; limited_since_ns the open limit's start."""

    counts: Counter[EventKind] = field(default_factory=Counter)
    first_ns: int | None = None
    last_ns: int | None = None
    limited_ns: int = 0
    limited_since_ns: int | None = None
    excess_bits: int = 0

    def add(self, at_ns: int, event: Event) -> None:
        """Count an event. Only a firing that no limit answers has an excess of its own to show."""
        self.counts[event.kind] += 1
        if event.kind in FIRINGS:
            self.first_ns = at_ns if self.first_ns is None else self.first_ns
            self.last_ns = at_ns
            excess = event.detail.get("excess_bits")
            if event.kind is EventKind.WOULD_LIMIT and isinstance(excess, int):
                self.excess_bits += excess
        elif event.kind is EventKind.LIMITED:
            self.limited_since_ns = at_ns
        elif event.kind is EventKind.RELEASED and self.limited_since_ns is not None:
            self.limited_ns += at_ns - self.limited_since_ns
            self.limited_since_ns = None

    def limited_until_ns(self, end_ns: int) -> int:
        """The total time limited, an open limit up to the recording's end."""
        return self.limited_ns + (end_ns - self.limited_since_ns if self.limited_since_ns is not None else 0)

    @property
    def firings(self) -> int:
        """How much happened."""
        return sum(self.counts[kind] for kind in FIRINGS)


@dataclass(slots=True)
class Report:
    """Sums up one policy's events for people."""

    title: str
    lines: dict[str, Line] = field(default_factory=dict)
    kept: list[Told] = field(default_factory=list)
    epochs: Counter[str] = field(default_factory=Counter)
    left_out: int = 0

    def add(self, told: Told) -> None:
        """Take in an event; that a recording begins is counted but not worth a line."""
        event = told.event
        self.lines.setdefault(event.interface, Line()).add(told.at_ns, event)
        if event.kind is EventKind.EPOCH:
            self.epochs[str(event.reason)] += 1
            if event.reason == "new":
                return
        if len(self.kept) < EVENTS_KEPT:
            self.kept.append(told)
        else:
            self.left_out += 1

    def fresh_epochs(self) -> str:
        """The epochs in a sentence; "" where every link had only its first."""
        others = sorted((reason, count) for reason, count in self.epochs.items() if reason != "new")
        return ", ".join(f"{count} by {reason}" for reason, count in others)


COLUMNS: Final = (
    Column("link", least=8),
    Column("policy", least=6),
    Column("limits", right=True),
    Column("would limit", right=True, short="would"),
    Column("noted", right=True),
    Column("possible", right=True, short="poss."),
    Column("first"),
    Column("last"),
    Column("limited", right=True),
    Column("over", right=True),
)
ALWAYS: Final = ("link", "", "policy", "limits")
"""The titles of the columns that are shown also where they say nothing."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How instants are shown: in UTC where the recording says when it was made, else in seconds since its first tick."""

    started_wall_ns: int | None
    end_ns: int = 0

    @property
    def since(self) -> str:
        """When the recording begins, for the heading."""
        return "" if self.started_wall_ns is None else f", from {_utc(self.started_wall_ns):%Y-%m-%d %H:%M:%S}Z"

    def brief(self, at_ns: int | None) -> str:
        """An instant for a narrow column: no more of the date than tells the recording's days apart."""
        if at_ns is None or self.started_wall_ns is None:
            return self.shown(at_ns)
        begin, end = _utc(self.started_wall_ns), _utc(self.started_wall_ns + self.end_ns)
        date = "" if begin.date() == end.date() else "%m-%d " if begin.year == end.year else "%Y-%m-%d "
        return f"{_utc(self.started_wall_ns + at_ns):{date}%H:%M:%S}"

    def shown(self, at_ns: int | None) -> str:
        """An instant for people."""
        if at_ns is None:
            return "-"
        if self.started_wall_ns is None:
            return f"{at_ns / NS_PER_SECOND:+.3f}s"
        wall_ns = self.started_wall_ns + at_ns
        return f"{_utc(wall_ns):%Y-%m-%d %H:%M:%S}.{wall_ns % NS_PER_SECOND // 10**6:03d}Z"


def _utc(wall_ns: int) -> datetime:
    return datetime.fromtimestamp(wall_ns // NS_PER_SECOND, UTC)


@dataclass(frozen=True, slots=True)
class Side:
    """One policy's part of the table: its report, the links that it watches, and what its limits held back."""

    mark: str
    report: Report
    watched: Mapping[str, str]
    over_bytes: Mapping[str, int]
    end_ns: int

    def cells(self, name: str, clock: Clock) -> list[Cell]:
        """The row of a link, without the link; no figures where the policy does not watch it."""
        if name not in self.watched:
            return [Cell("not watched"), *[Cell("-")] * (len(COLUMNS) - 2)]
        line = self.report.lines.get(name, Line())
        limited_ns = line.limited_until_ns(self.end_ns)
        over = self.over_bytes.get(name, 0) if line.counts[EventKind.LIMIT] else line.excess_bits // 8
        return [
            Cell(clean(self.watched[name])),
            *(Cell(str(line.counts[kind] or "-"), _STYLES[kind] if line.counts[kind] else "") for kind in FIRINGS),
            Cell(clock.brief(line.first_ns)),
            Cell(clock.brief(line.last_ns)),
            Cell(fmt.span(limited_ns / NS_PER_SECOND) if limited_ns else "-"),
            Cell(fmt.size(over) if over else "-"),
        ]


def table(sides: Sequence[Side], clock: Clock, width: int | None, palette: Palette) -> Iterator[str]:
    """The summary, the links with firings first; of two policies a row each for every link, then where they differ."""
    links = dict.fromkeys(name for side in sides for name in side.watched)

    def firings(name: str) -> int:
        return max(side.report.lines[name].firings if name in side.report.lines else 0 for side in sides)

    rows: list[list[Cell]] = []
    differing: list[str] = []
    for name in sorted(links, key=lambda name: (-firings(name), name)):
        cells = [side.cells(name, clock) for side in sides]
        if any(one[1:] != cells[0][1:] for one in cells):
            differing.append(name)
        if len(sides) == 1:
            rows.append([Cell(clean(name)), *cells[0]])
        else:
            rows += [[Cell(clean(name)), Cell(side.mark), *one] for side, one in zip(sides, cells, strict=True)]
    columns = COLUMNS if len(sides) == 1 else (COLUMNS[0], Column("", least=1), *COLUMNS[1:])
    told = [i for i, column in enumerate(columns) if column.title in ALWAYS or any(row[i].text != "-" for row in rows)]
    yield from fmt.table([columns[i] for i in told], [[row[i] for i in told] for row in rows], width, palette)
    if len(sides) > 1:
        where = f"on {', '.join(map(clean, differing))}" if differing else "nowhere"
        yield f"the two differ {where}"


def event_lines(sides: Sequence[Side], clock: Clock, palette: Palette) -> Iterator[str]:
    """One line an event, in their order; of two policies each line says whose it is."""
    merged: dict[tuple[int, str, EventKind, str, int], tuple[Told, str]] = {}
    for side in sides:
        again: Counter[tuple[int, str, EventKind, str]] = Counter()
        for told in side.report.kept:
            what = (told.at_ns, told.event.interface, told.event.kind, str(told.event.reason))
            key = (*what, again[what])
            again[what] += 1
            merged[key] = (told, merged[key][1] + side.mark if key in merged else side.mark)
    marks = "".join(side.mark for side in sides)
    for told, whose in sorted(merged.values(), key=lambda one: one[0].at_ns):
        event = told.event
        column = "".join(mark if mark in whose else " " for mark in marks)
        kind = palette.paint(f"{event.kind.value:<12}", _STYLES.get(event.kind, ""))
        words = " ".join((clean(event.interface), kind, clean(str(event.reason)), *_figures(event)))
        yield f"{clock.shown(told.at_ns)}  {f'{column}  ' if len(sides) > 1 else ''}{words}".rstrip()


def _figures(event: Event) -> Iterator[str]:
    mean_bps, limit_bps = event.detail.get("mean_bps"), event.detail.get("limit_bps")
    if isinstance(mean_bps, int):
        yield f"mean {fmt.rate(mean_bps)}"
    if event.kind in {EventKind.LIMITED, EventKind.RATE_CHANGED} and isinstance(limit_bps, int):
        yield f"at {fmt.rate(limit_bps)}"
