"""What a replay tells: an event as JSON, and for people a table per link and policy, then the events.

Memory stays bounded whatever the recording: figures are summed as the events come, and only so many events are kept for
people; --json prints every one as it happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from limiterd.core.model import Event, EventKind
from limiterd.core.units import NS_PER_SECOND
from limiterd.ctl import format as fmt
from limiterd.ctl.format import Cell, Column, Palette, clean

EVENTS_KEPT: Final = 2_000
FIRINGS: Final = (EventKind.LIMIT, EventKind.WOULD_LIMIT, EventKind.NOTED, EventKind.POSSIBLE)
"""What is counted, in the order of the table's columns."""

_STYLES: Final = {
    EventKind.LIMIT: "red",
    EventKind.WOULD_LIMIT: "yellow",
    EventKind.LIMITED: "red",
    EventKind.RELEASED: "green",
    EventKind.NOTED: "yellow",
    EventKind.POSSIBLE: "yellow",
}


def as_json(event: Event) -> dict[str, object]:
    """One event as replay --json prints it."""
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

    def add(self, event: Event) -> None:
        """Count an event."""
        self.counts[event.kind] += 1
        if event.kind in FIRINGS:
            self.first_ns = event.t_ns if self.first_ns is None else self.first_ns
            self.last_ns = event.t_ns
            excess = event.detail.get("excess_bits")
            self.excess_bits += excess if isinstance(excess, int) else 0
        elif event.kind is EventKind.LIMITED:
            self.limited_since_ns = event.t_ns
        elif event.kind is EventKind.RELEASED and self.limited_since_ns is not None:
            self.limited_ns += max(0, event.t_ns - self.limited_since_ns)
            self.limited_since_ns = None

    def limited_until_ns(self, end_ns: int) -> int:
        """The total time limited, an open limit up to the recording's end."""
        return self.limited_ns + (max(0, end_ns - self.limited_since_ns) if self.limited_since_ns is not None else 0)


@dataclass(slots=True)
class Report:
    """Sums up one policy's events for people."""

    title: str
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)
    kept: list[Event] = field(default_factory=list)
    epochs: Counter[str] = field(default_factory=Counter)
    left_out: int = 0

    def add(self, event: Event) -> None:
        """Take in an event; that a recording begins is counted but not worth a line."""
        self.lines.setdefault((event.interface, event.policy), Line()).add(event)
        if event.kind is EventKind.EPOCH:
            self.epochs[str(event.reason)] += 1
            if event.reason == "new":
                return
        if len(self.kept) < EVENTS_KEPT:
            self.kept.append(event)
        else:
            self.left_out += 1

    def rows(self, end_ns: int, over_bytes: dict[str, int], clock: Clock) -> Iterator[list[Cell]]:
        """The table's rows, the links with firings first."""
        order = sorted(self.lines.items(), key=lambda item: (-sum(item[1].counts[kind] for kind in FIRINGS), item[0]))
        for (interface, policy), line in order:
            limited_ns = line.limited_until_ns(end_ns)
            over = over_bytes.get(interface, 0) or line.excess_bits // 8
            yield [
                Cell(clean(interface)),
                Cell(clean(policy)),
                *(Cell(str(line.counts[kind] or "-"), _STYLES[kind] if line.counts[kind] else "") for kind in FIRINGS),
                Cell(clock.shown(line.first_ns)),
                Cell(clock.shown(line.last_ns)),
                Cell(fmt.span(limited_ns / NS_PER_SECOND) if limited_ns else "-"),
                Cell(fmt.size(over) if over else "-"),
            ]


COLUMNS: Final = (
    Column("link", least=8),
    Column("policy", least=6),
    Column("limits", right=True),
    Column("would limit", right=True, short="would"),
    Column("noted", right=True),
    Column("possible", right=True, short="poss."),
    Column("first", least=8),
    Column("last", least=8),
    Column("limited", right=True),
    Column("over", right=True),
)


@dataclass(frozen=True, slots=True)
class Clock:
    """How instants are shown: in UTC where the recording says when it was made, else in seconds since its first tick."""

    first_ns: int
    started_wall_ns: int | None

    def shown(self, t_ns: int | None) -> str:
        """An instant for people."""
        if t_ns is None:
            return "-"
        since_ns = t_ns - self.first_ns
        if self.started_wall_ns is None:
            return f"+{since_ns / NS_PER_SECOND:.3f}s" if since_ns >= 0 else f"{since_ns / NS_PER_SECOND:.3f}s"
        wall_ns = self.started_wall_ns + since_ns
        at = datetime.fromtimestamp(wall_ns // NS_PER_SECOND, UTC)
        return f"{at:%Y-%m-%d %H:%M:%S}.{wall_ns % NS_PER_SECOND // 10**6:03d}Z"


def table(
    report: Report, end_ns: int, over_bytes: dict[str, int], clock: Clock, width: int | None, palette: Palette
) -> list[str]:
    """The summary of one policy."""
    rows = list(report.rows(end_ns, over_bytes, clock))
    if not rows:
        return ["no link of the recording is watched by a policy"]
    return fmt.table(COLUMNS, rows, width, palette)


def event_lines(events: Iterable[Event], clock: Clock, palette: Palette) -> Iterator[str]:
    """One line an event."""
    for event in events:
        kind = palette.paint(f"{event.kind.value:<11}", _STYLES.get(event.kind, ""))
        what = " ".join((clean(event.interface), kind, clean(str(event.reason)), *_figures(event)))
        yield f"{clock.shown(event.t_ns)}  {what}".rstrip()


def _figures(event: Event) -> Iterator[str]:
    mean_bps, limit_bps = event.detail.get("mean_bps"), event.detail.get("limit_bps")
    if isinstance(mean_bps, int):
        yield f"mean {fmt.rate(mean_bps)}"
    if event.kind is EventKind.LIMITED and isinstance(limit_bps, int):
        yield f"at {fmt.rate(limit_bps)}"


def epochs(report: Report) -> str:
    """The epochs in a sentence; "" where every link had only its first."""
    others = {reason: count for reason, count in report.epochs.items() if reason != "new"}
    return ", ".join(f"{count} by {reason}" for reason, count in sorted(others.items()))
