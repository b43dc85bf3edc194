"""A Prometheus range query's answer: series of (time, counter), merged into the ticks of each instance.

The answer is read point by point into arrays, 16 bytes a point, however long its text is. Each instance is a lane. The true
spacing of its samples is inferred from the distinct values, for a query's step may be shorter than the scrapes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from heapq import merge
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Final

from limiterd.core.model import Link, Snapshot
from limiterd.core.units import NS_PER_SECOND
from limiterd.recording.jsonstream import JsonStream
from limiterd.recording.source import Header, RecordingError, Source, Tick, shown

METRIC: Final = "node_network_transmit_bytes_total"
MISSED_SCRAPES: Final = 3
"""A series with this many resolutions without a point was not observed, rather than idle."""

_NO_ANSWER: Final = "neither a recording nor the answer of a Prometheus query_range (a matrix)"


@dataclass(slots=True)
class Series:
    """One device of one instance: stamps in ns and counters."""

    instance: str = ""
    device: str = ""
    times: array[int] = field(default_factory=lambda: array("q"))
    counters: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def name(self) -> str:
        """What the link is called in the replay."""
        return f"{self.instance}/{self.device}" if self.instance else self.device

    def points(self, tag: int = 0) -> Iterator[tuple[int, int, int]]:
        """Each point as (time, tag, counter)."""
        return ((t_ns, tag, tx_bytes) for t_ns, tx_bytes in zip(self.times, self.counters, strict=True))

    def extend(self, other: Series) -> None:
        """Append another piece of the same series."""
        self.times.extend(other.times)
        self.counters.extend(other.counters)

    def put_in_order(self) -> None:
        """Sort what is not in the order of time; of two points of one instant (the ends of two queries) the later stays."""
        if any(q <= p for p, q in pairwise(self.times)):
            points = dict(zip(self.times, self.counters, strict=True))
            self.times = array("q", sorted(points))
            self.counters = array("Q", (points[t_ns] for t_ns in self.times))


def read(answers: Iterable[JsonStream]) -> tuple[Header, Iterator[Tick]]:
    """All series of all answers, joined by name. An error ends the reading; it is raised after the ticks of what came before."""
    series: dict[str, Series] = {}
    failure: RecordingError | None = None
    try:
        for answer in answers:
            _collect(answer, series)
    except RecordingError as error:
        failure = error
    found = [one for one in series.values() if one.times]
    if failure is not None and not found:
        raise failure
    for one in found:
        one.put_in_order()
    return Header(min((one.times[0] for one in found), default=None), qualified=True), _ticks(found, failure)


# ---- parsing -------------------------------------------------------------------------------------


def _collect(answer: JsonStream, series: dict[str, Series]) -> None:
    """Add an answer's points to the series. Raises RecordingError; what came before it has been added."""
    said: dict[str, object] = {}
    kind: object = None
    for key in answer.members():
        if key == "data" and answer.peek() == "{":
            kind = _data(answer, series)
        else:
            said[key] = answer.value()
    if said.get("status") == "error":
        raise answer.error(f"the server's answer is an error: {said.get('errorType')}: {said.get('error')}")
    if kind != "matrix":
        raise answer.error(_NO_ANSWER)
    if answer.peek():
        raise answer.error("not JSON (extra data)")


def _data(answer: JsonStream, series: dict[str, Series]) -> object:
    """The result's type, or None where there is no list of results."""
    kind: object = None
    listed = False
    for key in answer.members():
        if key == "result" and answer.peek() == "[":
            if kind not in {None, "matrix"}:
                raise answer.error(_NO_ANSWER)
            listed = True
            for _ in answer.items():
                _series(answer, series)
        elif key == "resultType":
            kind = answer.value()
        else:
            answer.value()
    return kind if listed else None


def _series(answer: JsonStream, series: dict[str, Series]) -> None:
    if answer.peek() != "{":
        raise answer.error(f"{shown(answer.value())} is a series without metric or values")
    early = Series()
    into: Series | None = None
    valued = False
    for key in answer.members():
        if key == "metric":
            made = _named(answer, answer.value())
            into = series.setdefault(made.name, made)
        elif key == "values" and answer.peek() == "[":
            valued = True
            _values(answer, early if into is None else into)
        else:
            answer.value()
    if into is None or not valued:
        raise answer.error("a series without metric or values")
    into.extend(early)


def _named(answer: JsonStream, metric: object) -> Series:
    labels = metric if isinstance(metric, dict) else {}
    if not labels.get("device"):
        raise answer.error(f'a series without the label "device"; query {METRIC}')
    return Series(str(labels.get("instance", "")), str(labels["device"]))


def _values(answer: JsonStream, into: Series) -> None:
    for _ in answer.items():
        value = answer.value()
        point = _point(value)
        if point is None:
            raise answer.error_in_value(f"{into.name}: {shown(value)} is not [time, counter ≥ 0 in whole bytes]")
        into.times.append(point[0])
        into.counters.append(point[1])


def _point(value: object) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    at, counter = value
    if isinstance(at, bool) or not isinstance(at, int | Decimal) or not isinstance(counter, str):
        return None
    try:
        tx_bytes = int(counter) if counter.isdigit() else Decimal(counter)
        t_ns = int(at * NS_PER_SECOND)
        whole = 0 <= t_ns < 2**63 and 0 <= tx_bytes < 2**64 and tx_bytes == int(tx_bytes)
    except (ArithmeticError, ValueError):  # NaN compares with nothing
        return None
    return (t_ns, int(tx_bytes)) if whole else None


# ---- ticks ---------------------------------------------------------------------------------------


def resolution_ns(points: Iterable[tuple[int, int, int]]) -> int | None:
    """The true spacing of a series' samples: the median distance between distinct values; None without two of them."""
    gaps: Counter[int] = Counter()
    changed_ns: int | None = None
    for (_, _, before), (t_ns, _, tx_bytes) in pairwise(points):
        if tx_bytes != before:
            if changed_ns is not None:
                gaps[t_ns - changed_ns] += 1
            changed_ns = t_ns
    ordered = sorted(gaps.items())
    half = (gaps.total() + 1) // 2
    sums = accumulate(count for _, count in ordered)
    return next((gap for (gap, _), up_to in zip(ordered, sums, strict=True) if up_to >= half), None)


def _ticks(series: list[Series], failure: RecordingError | None) -> Iterator[Tick]:
    ordered = sorted(series, key=lambda one: (one.instance, one.device))
    instances = [_Instance(name, list(group)) for name, group in groupby(ordered, key=lambda one: one.instance)]
    for _, lane, snapshot in merge(*(one.ticks() for one in instances), key=itemgetter(0)):
        yield lane, snapshot
    if failure is not None:
        raise failure


class _Instance:
    """The devices of one scraped machine: one lane, whose links hold their last value between scrapes."""

    def __init__(self, instance: str, series: list[Series]) -> None:
        own = [resolution for one in series if (resolution := resolution_ns(one.points())) is not None]
        steps = (q - p for one in series for p, q in pairwise(one.times))
        common = min(own, default=0) or min(steps, default=NS_PER_SECOND)
        self._series = series
        host = instance.rpartition(":")[0] or instance
        self._lane = Source(instance, host, {one.name: common for one in series})
        self._held_ns = MISSED_SCRAPES * common

    def ticks(self) -> Iterator[tuple[int, Source, Snapshot]]:
        """A snapshot at every instant at which one of the devices has a point."""
        links = [Link(i, one.name) for i, one in enumerate(self._series, 1)]
        last: list[tuple[int, int] | None] = [None] * len(links)
        present: tuple[int, ...] = ()
        shown_links: tuple[Link, ...] = ()
        points = merge(*(one.points(i) for i, one in enumerate(self._series)))
        for t_ns, group in groupby(points, key=itemgetter(0)):
            for _, i, tx_bytes in group:
                last[i] = (t_ns, tx_bytes)
            there = tuple(i for i, kept in enumerate(last) if kept is not None and t_ns - kept[0] <= self._held_ns)
            if there != present:
                present, shown_links = there, tuple(links[i] for i in there)
            yield t_ns, self._lane, Snapshot(t_ns, shown_links, [kept[1] for i in there if (kept := last[i]) is not None])
