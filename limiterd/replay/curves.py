"""What a plot needs of a replay, in bounded memory: each link's rate over time, its firings and the spans of its limits.

Points are merged in pairs when there are too many: a curve keeps its mean and its shape, whatever the recording's length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from limiterd.core.model import Event, EventKind, Snapshot
from limiterd.plot import Curve, Mark, Span

MAX_POINTS: Final = 4_000


@dataclass(slots=True)
class _Trace:
    """(t0, t1, bytes) stretches of one link, oldest first."""

    t_ns: int
    tx_bytes: int
    stretches: list[tuple[int, int, int]] = field(default_factory=list)
    at_least_ns: int = 0

    def add(self, t_ns: int, tx_bytes: int) -> None:
        """Add a sample; a counter or clock that steps back begins anew."""
        if t_ns <= self.t_ns or tx_bytes < self.tx_bytes:
            self.t_ns, self.tx_bytes = t_ns, tx_bytes
            return
        if t_ns - self.t_ns < self.at_least_ns:
            return
        self.stretches.append((self.t_ns, t_ns, tx_bytes - self.tx_bytes))
        self.t_ns, self.tx_bytes = t_ns, tx_bytes
        if len(self.stretches) > MAX_POINTS:
            self._thin()

    def _thin(self) -> None:
        pairs = zip(self.stretches[::2], self.stretches[1::2], strict=False)
        self.stretches = [(p[0], q[1], p[2] + q[2]) for p, q in pairs]
        self.at_least_ns = max(2 * self.at_least_ns, (self.stretches[-1][1] - self.stretches[0][0]) // MAX_POINTS)


class Curves:
    """Collects while a replay runs; curves() at its end. Only links that fired are drawn, all of them where none did."""

    def __init__(self) -> None:
        self._traces: dict[str, _Trace] = {}
        self._marks: dict[str, list[Mark]] = {}
        self._spans: dict[str, list[Span]] = {}
        self._open: dict[str, tuple[int, int]] = {}
        self._last_ns = 0

    def sample(self, snapshot: Snapshot) -> None:
        """Take in a recorded tick."""
        self._last_ns = snapshot.t_ns
        for link, tx_bytes in zip(snapshot.links, snapshot.tx_bytes, strict=True):
            trace = self._traces.get(link.name)
            if trace is None:
                self._traces[link.name] = _Trace(snapshot.t_ns, tx_bytes)
            else:
                trace.add(snapshot.t_ns, tx_bytes)

    def event(self, event: Event) -> None:
        """Take in what the policy did."""
        name, limit_bps = event.interface, event.detail.get("limit_bps")
        if event.kind is EventKind.EPOCH:
            return
        marks = self._marks.setdefault(name, [])
        if len(marks) < MAX_POINTS:
            marks.append(Mark(event.t_ns, event.kind.value))
        if event.kind is EventKind.LIMITED and isinstance(limit_bps, int):
            self._open[name] = (event.t_ns, limit_bps)
        elif event.kind is EventKind.RELEASED and name in self._open:
            since_ns, rate_bps = self._open.pop(name)
            self._spans.setdefault(name, []).append(Span(since_ns, event.t_ns, rate_bps))

    def curves(self, threshold_bps: dict[str, int]) -> list[Curve]:
        """The curves of the links that a policy watches."""
        for name, (since_ns, rate_bps) in self._open.items():
            self._spans.setdefault(name, []).append(Span(since_ns, self._last_ns, rate_bps))
        names = [name for name in self._traces if name in threshold_bps]
        chosen = [name for name in names if self._marks.get(name)] or names
        return [
            Curve(
                name,
                tuple(self._traces[name].stretches),
                threshold_bps[name],
                tuple(self._spans.get(name, ())),
                tuple(self._marks.get(name, ())),
            )
            for name in chosen
        ]
