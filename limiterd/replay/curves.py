"""What a plot needs of a replay, in bounded memory: each link's rate over time, its phases, threshold and limit, its firings.

Points are merged in pairs when there are too many, and stretches too short to be seen are dropped: a curve keeps its mean
and its shape, whatever the recording's length. Time is the clock that never runs back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from limiterd.core.model import EventKind, Phase, Snapshot
from limiterd.replay.plot import Curve, Level, Mark, Shade
from limiterd.replay.runner import Look, Told

MAX_POINTS: Final = 4_000
_UNSHADED: Final = (Phase.CONFORMING, None)


@dataclass(slots=True)
class _Trace:
    """(t0, t1, bytes) stretches of one link, oldest first, by the clock of the run."""

    at_ns: int
    t_ns: int
    tx_bytes: int
    stretches: list[tuple[int, int, int]] = field(default_factory=list)
    at_least_ns: int = 0
    gone: bool = False

    def add(self, at_ns: int, t_ns: int, tx_bytes: int) -> None:
        """Add a sample; after an absence, and where a counter or clock steps back, a stretch begins."""
        if self.gone or t_ns <= self.t_ns or tx_bytes < self.tx_bytes:
            self.gone = False
            self.at_ns, self.t_ns, self.tx_bytes = at_ns, t_ns, tx_bytes
            return
        if at_ns - self.at_ns < max(1, self.at_least_ns):
            return
        self.stretches.append((self.at_ns, at_ns, tx_bytes - self.tx_bytes))
        self.at_ns, self.t_ns, self.tx_bytes = at_ns, t_ns, tx_bytes
        if len(self.stretches) > MAX_POINTS:
            self._thin()

    def _thin(self) -> None:
        pairs = zip(self.stretches[::2], self.stretches[1::2], strict=False)
        self.stretches = [(p[0], q[1], p[2] + q[2]) for p, q in pairs]
        self.at_least_ns = max(2 * self.at_least_ns, (self.stretches[-1][1] - self.stretches[0][0]) // MAX_POINTS)


@dataclass(slots=True)
class _Steps:
    """(since, until, value) of something that holds for a while, oldest first; None: it does not hold."""

    steps: list[tuple[int, int, object]] = field(default_factory=list)

    def add(self, at_ns: int, value: object) -> None:
        """It is so at this tick, and what was so before was so up to it."""
        if self.steps:
            since_ns, _, before = self.steps[-1]
            self.steps[-1] = (since_ns, at_ns, before)
            if before == value:
                return
        self.steps.append((at_ns, at_ns, value))
        if len(self.steps) > MAX_POINTS:
            seen_ns = 2 * (at_ns - self.steps[0][0]) // MAX_POINTS
            self.steps = [step for step in self.steps if step[1] - step[0] > seen_ns]


class Curves:
    """Collects while a replay runs; curves() at its end. Only links that fired are drawn, all of them where none did."""

    def __init__(self) -> None:
        self._traces: dict[str, _Trace] = {}
        self._marks: dict[str, list[Mark]] = {}
        self._phases: dict[str, _Steps] = {}
        self._thresholds: dict[str, _Steps] = {}
        self._limits: dict[str, _Steps] = {}

    def tick(self, at_ns: int, snapshot: Snapshot, looks: Mapping[str, Look | None]) -> None:
        """Take in a recorded tick of one source, and what is true of its watched links; None of one that has gone."""
        for link, tx_bytes in zip(snapshot.links, snapshot.tx_bytes, strict=True):
            if link.name not in looks:
                continue
            trace = self._traces.get(link.name)
            if trace is None:
                self._traces[link.name] = _Trace(at_ns, snapshot.t_ns, tx_bytes)
            else:
                trace.add(at_ns, snapshot.t_ns, tx_bytes)
        for name, look in looks.items():
            phase, threshold_bps, limit_bps = look or (None, None, None)
            self._phases.setdefault(name, _Steps()).add(at_ns, phase)
            self._thresholds.setdefault(name, _Steps()).add(at_ns, threshold_bps)
            self._limits.setdefault(name, _Steps()).add(at_ns, limit_bps)
            if look is None and name in self._traces:
                self._traces[name].gone = True

    def event(self, told: Told) -> None:
        """Take in what the policy did."""
        if told.event.kind is not EventKind.EPOCH:
            marks = self._marks.setdefault(told.event.interface, [])
            if len(marks) < MAX_POINTS:
                marks.append(Mark(told.at_ns, told.event.kind.value))

    def curves(self) -> list[Curve]:
        """The curves of the links that a policy watches."""
        chosen = [name for name in self._traces if self._marks.get(name)] or list(self._traces)
        return [
            Curve(
                name,
                tuple(self._traces[name].stretches),
                _levels(self._thresholds[name]),
                _levels(self._limits[name]),
                tuple(Shade(a, b, str(what)) for a, b, what in self._phases[name].steps if what not in _UNSHADED),
                tuple(self._marks.get(name, ())),
            )
            for name in chosen
        ]


def _levels(steps: _Steps) -> tuple[Level, ...]:
    return tuple(Level(since_ns, until_ns, rate) for since_ns, until_ns, rate in steps.steps if isinstance(rate, int))
