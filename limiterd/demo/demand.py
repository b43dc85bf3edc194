"""Whether the demo's own traffic was there: what the promises presuppose, judged from the kernel's counters alone. Pure.

A promise speaks of traffic that holds. Where the sender (or this program) did not get the processor, a missed figure says
nothing of the daemon; such times are noted as pauses, with who paused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from limiterd.core.units import NS_PER_SECOND, format_rate
from limiterd.demo.scale import LATE_S, RATE_TOLERANCE, STEP_S, Act, Scale

STEP_NS: Final = int(STEP_S * NS_PER_SECOND)
GAP_NS: Final = 5 * STEP_NS
"""Readings further apart are a pause of this program: what happened between them nobody saw."""
SILENT: Final = 0.1
"""The part of what was expected below which a slow sender is said to pause."""


class Reading(NamedTuple):
    """What the kernel shows at one instant: the link's transmit counter, the limit's class (None: no limit), the root."""

    t_ns: int
    tx_bytes: int
    class_bytes: int | None
    queued_bytes: int
    root: str


class Who(StrEnum):
    """Whose pause it was."""

    SENDER = "the sender"
    DEMO = "this program"


@dataclass(slots=True)
class Pause:
    """Time without the traffic, or without a look at it. begin_s: seconds since the first picture."""

    who: Who
    act: Act
    begin_s: float
    seconds: float
    bits: int
    expected_bps: int

    def __str__(self) -> str:
        stayed = (
            "paused" if self.bits < SILENT * self.expected_bps * self.seconds else f"was under {format_rate(self.expected_bps)}"
        )
        stayed = "paused" if self.who is Who.DEMO else stayed
        return f"{self.who} {stayed} {self.seconds:.1f} s at second {self.begin_s:.0f}"


@dataclass(slots=True)
class Onset:
    """Since when the traffic of act 2 holds: the clock that a firing is judged by.

    since_ns is the beginning of the earliest traffic that the rule can still count (a firing within the window of it is too
    early); steady_ns the end of the last interval in which the traffic did not hold for certain (a firing must come within
    the window and LATE_S of it). Without any pause they are the same.
    """

    scale: Scale
    steady_ns: int
    since_ns: int | None = None
    cold_ns: int | None = None

    @property
    def due_ns(self) -> int:
        """When the firing must have come, if the traffic goes on."""
        return self.steady_ns + self.scale.window_ns + int(LATE_S * NS_PER_SECOND)

    @property
    def held_up_s(self) -> float:
        """For how long of the time since the onset a firing could not be demanded."""
        return 0.0 if self.since_ns is None else max(0.0, (self.steady_ns - self.since_ns) / NS_PER_SECOND)

    def note(self, begin_ns: int, end_ns: int, bits: int) -> bool:
        """One interval between two readings, in order of time; True where the clock starts again behind it."""
        elapsed_ns = end_ns - begin_ns
        if bits * NS_PER_SECOND >= self.scale.threshold_bps * STEP_NS:  # a sampling interval at the threshold fits in
            self.since_ns = begin_ns if self.since_ns is None else self.since_ns
            self.cold_ns = None
        elif bits * NS_PER_SECOND < self.scale.floor_bps * elapsed_ns:
            self.cold_ns = begin_ns if self.cold_ns is None else self.cold_ns
        if bits * NS_PER_SECOND < self.scale.threshold_bps * elapsed_ns or elapsed_ns > GAP_NS:
            self.steady_ns = end_ns
        broken = self.cold_ns is not None and end_ns - self.cold_ns >= self.scale.slice_ns + 2 * STEP_NS
        again = broken and self.since_ns is not None
        if broken:  # a whole slice under the floor: nothing before it counts any more
            self.since_ns = None
        return again


@dataclass(slots=True)
class Demand:
    """Notes the pauses of one story."""

    scale: Scale
    begin_ns: int
    pauses: list[Pause] = field(default_factory=list)

    def note(self, act: Act, earlier: Reading, later: Reading, *, limited: bool) -> bool:
        """Whether the sender asked for all that it could get between two readings.

        It did where the rate is what is expected, or where packets wait in the limit's class.
        """
        elapsed_ns, bits = later.t_ns - earlier.t_ns, 8 * (later.tx_bytes - earlier.tx_bytes)
        expected_bps = int(self.scale.limit_bps * (1 - RATE_TOLERANCE)) if limited else self.scale.threshold_bps
        if elapsed_ns > GAP_NS:
            self._add(Who.DEMO, act, earlier, later, expected_bps)
        short = bits * NS_PER_SECOND < expected_bps * elapsed_ns and not later.queued_bytes
        if short:
            self._add(Who.SENDER, act, earlier, later, expected_bps)
        return not short

    def _add(self, who: Who, act: Act, earlier: Reading, later: Reading, expected_bps: int) -> None:
        begin_s, seconds = (earlier.t_ns - self.begin_ns) / NS_PER_SECOND, (later.t_ns - earlier.t_ns) / NS_PER_SECOND
        bits = 8 * (later.tx_bytes - earlier.tx_bytes)
        for pause in self.pauses:
            if (pause.who, pause.act) == (who, act) and abs(pause.begin_s + pause.seconds - begin_s) < STEP_S / 2:
                pause.seconds, pause.bits = pause.seconds + seconds, pause.bits + bits
                return
        self.pauses.append(Pause(who, act, begin_s, seconds, bits, expected_bps))
