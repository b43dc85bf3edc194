"""From series to machines and ticks: which series are one machine, what its links are called, how far apart its samples are.

- A machine is an `instance`; where several series of one instance name the same device, the labels that tell them apart
  belong to the machine's name: `10.0.0.1:9100{cluster=a}/eth0`. As few labels as tell them apart are taken.
- Copies (Prometheus servers in a pair scrape the same machine) are recognised by their counters, not by their labels: at
  each instant one's counter lies between those that the other had shortly before and shortly after. One of them is judged.
- The true spacing of a machine's samples is where its bytes are: the distance between changes of any of its counters, of
  which nine tenths of the bytes came with less. A link at rest shows no scrapes, so it is not asked.

No step depends on the order of the series, and all that is left out is told in a note.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Final

from limiterd.core.model import Link, Snapshot
from limiterd.core.units import NS_PER_SECOND
from limiterd.recording.prometheus import DEVICE_LABELS, Answers, Series
from limiterd.recording.source import Header, RecordingError, Source, Tick

MISSED_SCRAPES: Final = 3
"""A series with this many spacings without a point was not observed, rather than idle."""
LOOKBACK_NS: Final = 300 * NS_PER_SECOND
"""Prometheus gives no point where the last scrape is older: changes further apart say that a link was at rest."""
AGREE: Final = 0.95
"""The share of instants at which copies must agree: a reset lies between two scrapes of theirs."""
TELLING_BYTES: Final = 1_000_000
"""Counters that stay below are alike on many machines: the packets of a start."""
COVERS: Final = 0.95
"""A copy with so many of the most complete one's points is as good."""

_PLAIN: Final = re.compile(r"[\w.:@+\[\]-]+")


@dataclass(slots=True)
class Machine:
    """The devices of one scraped machine, by name."""

    instance: str
    told_apart_by: tuple[tuple[str, str], ...]
    devices: dict[str, Series]

    @property
    def labels(self) -> str:
        """The labels that tell it apart: `cluster=a`."""
        shown = ((name, value if _PLAIN.fullmatch(value) else json.dumps(value)) for name, value in self.told_apart_by if value)
        return ",".join(f"{name}={value}" for name, value in shown)

    @property
    def name(self) -> str:
        """What its links' names begin with."""
        return f"{self.instance}{{{self.labels}}}" if self.labels else self.instance

    @property
    def points(self) -> int:
        """How much was observed."""
        return sum(len(one.times) for one in self.devices.values())


def read(answers: Answers, label: str | None = None) -> tuple[Header, Iterator[Tick]]:
    """The header and the ticks of what was read; the error that ended the reading is raised after the last tick."""
    machines = _machines(answers, (label,) if label else DEVICE_LABELS)
    names = [_link_name(one, device) for one in machines for device in one.devices]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordingError(f"two series are both called {twice}; query them one by one")
    started_ns = min((series.times[0] for one in machines for series in one.devices.values()), default=None)
    return Header(started_ns, qualified=True, notes=tuple(answers.notes)), _ticks(machines, answers.failure)


def _link_name(machine: Machine, device: str) -> str:
    return f"{machine.name}/{device}" if machine.name else device


# ---- machines ------------------------------------------------------------------------------------


def _machines(answers: Answers, labels: Sequence[str]) -> list[Machine]:
    """The machines of all series, by name, without copies."""
    of_instance: defaultdict[str, list[tuple[str, Series]]] = defaultdict(list)
    for series in answers.series:
        device = next(series.labels[name] for name in labels if series.labels.get(name))
        of_instance[series.labels.get("instance", "")].append((device, series))
    machines: list[Machine] = []
    for instance, series_of in sorted(of_instance.items(), key=itemgetter(0)):
        split = _split(instance, series_of)
        kept = _without_copies(split, answers.notes) if len(split) > 1 else split
        if len(kept) < len(split):
            kept = _split(instance, [pair for one in kept for pair in one.devices.items()])
        if len(kept) > 1:
            apart = ", ".join(name for name, _ in kept[0].told_apart_by)
            answers.notes.append(f"{instance or 'the answer'} is {len(kept)} machines, told apart by the label {apart}")
        machines += kept
    return machines


def _split(instance: str, series_of: Sequence[tuple[str, Series]]) -> list[Machine]:
    """The machines of one instance: series of the same device are of different ones."""
    apart = _telling_labels(series_of)
    found: dict[tuple[tuple[str, str], ...], Machine] = {}
    for device, series in series_of:
        values = tuple((name, series.labels.get(name, "")) for name in apart)
        found.setdefault(values, Machine(instance, values, {})).devices[device] = series
    for machine in found.values():
        machine.devices = dict(sorted(machine.devices.items()))
    return sorted(found.values(), key=lambda one: one.told_apart_by)


def _telling_labels(series_of: Sequence[tuple[str, Series]]) -> tuple[str, ...]:
    """The fewest labels that tell the series of each device apart; the ones with long values are given up first."""
    groups: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for device, series in series_of:
        groups[device].append(series.labels)
    crowded = [group for group in groups.values() if len(group) > 1]
    candidates = {name for group in crowded for labels in group for name in labels if len({one.get(name) for one in group}) > 1}

    def tell(names: Sequence[str]) -> bool:
        return all(len({tuple(one.get(name, "") for name in names) for one in group}) == len(group) for group in crowded)

    longest = {name: max(len(one.get(name, "")) for group in crowded for one in group) for name in candidates}
    kept = sorted(candidates)
    for name in sorted(candidates, key=lambda name: (-longest[name], name)):
        fewer = [one for one in kept if one != name]
        if tell(fewer):
            kept = fewer
    return tuple(kept)


# ---- copies --------------------------------------------------------------------------------------


def _without_copies(machines: Sequence[Machine], notes: list[str]) -> list[Machine]:
    """One machine of each set whose counters are the same: the first of those that miss next to nothing."""
    sets: list[list[Machine]] = []
    for machine in machines:
        home = next((one for one in sets if _copies(one[0], machine)), None)
        if home is None:
            sets.append([machine])
        else:
            home.append(machine)
    kept: list[Machine] = []
    for copies in sets:
        enough = COVERS * max(one.points for one in copies)
        best = next(one for one in copies if one.points >= enough)
        kept.append(best)
        if len(copies) > 1:
            others = ", ".join(one.labels or "no such label" for one in copies if one is not best)
            notes.append(
                f"{best.instance or 'the answer'} holds {len(copies)} copies of the same counters, as of servers that scrape one "
                f"machine; judged is {best.labels or 'the one without the label'}, left out {others}"
            )
    return kept


def _copies(one: Machine, other: Machine) -> bool:
    """Whether two machines are the same one: every device that both have says so, or nothing, and one at least does."""
    said = {_agree(one.devices[device], other.devices[device]) for device in one.devices.keys() & other.devices.keys()}
    return True in said and False not in said


def _agree(one: Series, other: Series) -> bool | None:
    """Whether two series show one counter; None where they do not meet, or are so low that they may be alike by chance."""
    near_ns = 2 * max(spacing_ns([one]), spacing_ns([other]))
    low, high = max(one.times[0], other.times[0]), min(one.times[-1], other.times[-1])
    seen, highest, wrong = 0, 0, 0
    for t_ns, counter in zip(other.times, other.counters, strict=True):
        if not low <= t_ns <= high:
            continue
        since, until = bisect_left(one.times, t_ns - near_ns), bisect_right(one.times, t_ns + near_ns)
        around = one.counters[since:until]
        if not around or not one.times[since] <= t_ns <= one.times[until - 1]:  # it was not scraped then
            continue
        seen += 1
        highest = max(highest, counter)
        wrong += not min(around) <= counter <= max(around)
    if wrong > (1 - AGREE) * seen:
        return False
    return True if highest >= TELLING_BYTES else None


# ---- spacing -------------------------------------------------------------------------------------


def spacing_ns(series: Sequence[Series]) -> int:
    """How far apart the samples of a machine are where its bytes are; the points' own distance where too little moves.

    Points repeat until the next scrape where a query's step is shorter than that. A change next to another one shows the
    spacing; the first after a rest does not.
    """
    step_ns = min((q - p for one in series for p, q in pairwise(one.times)), default=NS_PER_SECOND)
    moved: dict[int, int] = {}
    for one in series:
        for (_, before), (t_ns, counter) in pairwise(zip(one.times, one.counters, strict=True)):
            if counter != before:
                moved[t_ns] = moved.get(t_ns, 0) + (counter - before if counter > before else 0)
    changes = sorted(moved)
    weights: defaultdict[int, int] = defaultdict(int)
    for k, t_ns in enumerate(changes):
        before_ns = t_ns - changes[k - 1] if k else LOOKBACK_NS + 1
        after_ns = changes[k + 1] - t_ns if k + 1 < len(changes) else LOOKBACK_NS + 1
        nearest_ns = min(before_ns, after_ns)
        if nearest_ns <= LOOKBACK_NS:
            slack_ns = step_ns if step_ns < nearest_ns else 0  # a scrape falls on either of two steps
            weights[before_ns if before_ns <= nearest_ns + slack_ns else nearest_ns] += moved[t_ns]
    total = sum(weights.values())
    up_to = 0
    for spacing, weight in sorted(weights.items()):
        up_to += weight
        if 10 * up_to >= 9 * total:
            return spacing
    return step_ns


# ---- ticks ---------------------------------------------------------------------------------------


def _ticks(machines: Iterable[Machine], failure: RecordingError | None) -> Iterator[Tick]:
    for _, source, snapshot in merge(*map(_machine_ticks, machines), key=itemgetter(0)):
        yield source, snapshot
    if failure is not None:
        raise failure


def _machine_ticks(machine: Machine) -> Iterator[tuple[int, Source, Snapshot]]:
    """A snapshot of what has a point at each instant; a device without one for a while is no link of the source then."""
    spacing = spacing_ns(list(machine.devices.values()))
    links = [Link(i, _link_name(machine, device)) for i, device in enumerate(machine.devices, 1)]
    host = machine.instance.rpartition(":")[0] or machine.instance
    source = Source(machine.name, host, {link.name: spacing for link in links}, links=())
    last_ns: list[int | None] = [None] * len(links)
    present: tuple[int, ...] = ()
    groups: dict[tuple[int, ...], tuple[Link, ...]] = {}
    points = merge(*(_points(i, one) for i, one in enumerate(machine.devices.values())))
    for t_ns, group in groupby(points, key=itemgetter(0)):
        sampled = [(i, counter) for _, i, counter in group]
        for i, _ in sampled:
            last_ns[i] = t_ns
        there = tuple(i for i, at_ns in enumerate(last_ns) if at_ns is not None and t_ns - at_ns <= MISSED_SCRAPES * spacing)
        key = tuple(i for i, _ in sampled)
        if there != present:
            present, source.links, groups = there, tuple(links[i] for i in there), {}
            groups[there] = source.links
        if key not in groups:
            groups[key] = tuple(links[i] for i in key)
        yield t_ns, source, Snapshot(t_ns, groups[key], [counter for _, counter in sampled])


def _points(tag: int, series: Series) -> Iterator[tuple[int, int, int]]:
    return ((t_ns, tag, counter) for t_ns, counter in zip(series.times, series.counters, strict=True))
