"""When is a link in sustained excess? The rule and its guard, exact, O(1) amortised per sample.

Rule. At sample n, with b = n−1, some sample a < b of the epoch, not its baseline, satisfies all four:
  flanks: the intervals (a−1, a] and (b, n] run at ≥ threshold;   length: t_b − t_a ≥ window;
  mean: rate(a, b) ≥ threshold;                                   floor: no slice within [a, b] below floor · threshold.
Guard: a token bucket, S = max(0, S + 8·Δc − threshold·Δt) from 0 at a baseline, fires at S > burst.
docs/semantics.md has the whole of it.

Theory of operation. With X = 8·10⁹·c − threshold·t (bit·ns) an interval is hot iff ΔX ≥ 0, the mean holds iff
X_a ≤ X_b, and with Y = 10⁶·8·10⁹·c − floor_ppm·threshold·t a slice (s, j) is bad iff Y_j < Y_s. A *candidate* is the
end of a hot interval; a bad slice (s, j) voids every candidate up to s. A candidate *matures* once t_a ≤ t_b − window.
Because slice ≤ window, a bad slice that ends now starts at or after every mature candidate: it voids all of them
together. So of the mature ones only the least X matters, one sample; the aging ones wait in `trail`, which holds at most
one window of samples and is the evidence too; `recent` holds one slice. Slices that start before the earliest live
candidate rule nothing out, so a history begins at a hot interval and ends when no candidate is alive: a link that sends
nothing has none. Each sample enters and leaves each deque once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from limiterd.core.meter import BIT_NS_PER_BYTE, Meter, rate_bps
from limiterd.core.model import Detect, EpochReason, Firing, GuardMode, Link, Reason, Sampling, Snapshot
from limiterd.core.units import NS_PER_SECOND, PPM


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one snapshot led to. dropped counts samples of watched links that said nothing.

    firings discarded the link's history; noted ones (the guard, where it only observes) reset the guard alone.
    """

    firings: tuple[tuple[Link, Firing], ...] = ()
    noted: tuple[tuple[Link, Firing], ...] = ()
    epochs: tuple[tuple[Link, EpochReason], ...] = ()
    dropped: int = 0


class Rule:
    """A Detect in the units of the arithmetic; shared by all links of the same parameters.

    Raises ValueError where slice exceeds the window or anything is negative: the config's checks forbid it.
    """

    __slots__ = ("burst_bit_ns", "detect", "fires", "floor", "guarded", "slice_ns", "threshold_bps", "window_ns")

    def __init__(self, detect: Detect) -> None:
        if not 0 < detect.slice_ns <= detect.window_ns or detect.threshold_bps < 0 or detect.floor_ppm < 0:
            raise ValueError(f"not a rule: {detect} (0 < slice ≤ window, threshold ≥ 0, floor ≥ 0)")
        self.detect = detect
        self.threshold_bps = detect.threshold_bps
        self.window_ns = detect.window_ns
        self.slice_ns = detect.slice_ns
        self.floor = detect.floor_ppm * detect.threshold_bps
        self.guarded = detect.guard.mode is not GuardMode.OFF
        self.fires = detect.guard.mode is GuardMode.ENFORCE
        self.burst_bit_ns = detect.guard.burst_bits * NS_PER_SECOND

    def is_hot(self, delta_ns: int, delta_bytes: int) -> bool:
        """Whether an interval runs at the threshold or above."""
        return BIT_NS_PER_BYTE * delta_bytes >= self.threshold_bps * delta_ns

    def ends(self, firing: Firing) -> bool:
        """Whether this firing discards all history: a guard's where it only observes does not."""
        return firing.reason is Reason.SUSTAINED or self.fires


Sample = tuple[int, int]
"""(t_ns, tx_bytes) of a kept sample."""

Point = tuple[int, int, int, int, int]
"""A kept sample of a history: T, BYTES, X and Y counted from the history's start, and FLANK.

FLANK is the rate in bit/s of the interval that ends here where that is hot (a candidate), else COLD. A plain tuple, for
its speed.
"""
T: Final = 0
BYTES: Final = 1
X: Final = 2
Y: Final = 3
FLANK: Final = 4
COLD: Final = -1


class History:
    """One link's live candidates and its guard's level; kept only while there is one of them or the level is not 0."""

    __slots__ = ("_best", "_edge", "_first_ns", "_level", "_recent", "_trail", "_x", "_y", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._x = self._y = self._level = 0
        self._best: Point | None = None
        self._edge: Point | None = None
        self._first_ns = 0
        self._trail: deque[Point] = deque()
        self._recent: deque[Point] = deque()

    def add(self, t_ns: int, tx_bytes: int, delta_ns: int, delta_bytes: int) -> Firing | None:
        """Take in a kept sample that continues the epoch; a Firing where the rule or the guard says so.

        A firing of the rule, or of a guard that enforces, ends the history: the caller discards it.
        """
        rule = self.rule
        bit_ns = BIT_NS_PER_BYTE * delta_bytes
        excess = bit_ns - rule.threshold_bps * delta_ns
        self._mature(t_ns - delta_ns - rule.window_ns)
        best = self._best
        if best is not None and excess >= 0 and best[X] <= self._x:
            return self._sustained(best, (t_ns, tx_bytes), bit_ns // delta_ns)
        noted = None
        if rule.guarded:
            self._level = level = max(0, self._level + excess)
            if level > rule.burst_bit_ns:
                noted = self._overflow((t_ns - delta_ns, tx_bytes - delta_bytes), (t_ns, tx_bytes), bit_ns // delta_ns)
                self._level = 0
        if self._trail or excess >= 0:
            self._x += excess
            self._y += PPM * bit_ns - rule.floor * delta_ns
            self._append((t_ns, tx_bytes, self._x, self._y, bit_ns // delta_ns if excess >= 0 else COLD))
        return noted

    def _mature(self, horizon_ns: int) -> None:
        """Merge the candidates up to the horizon into the one that the mean is easiest for, the earliest of equals."""
        trail = self._trail
        while trail and trail[0][T] <= horizon_ns:
            self._edge = point = trail.popleft()
            if point[FLANK] != COLD:
                if self._best is None:
                    self._best, self._first_ns = point, point[T]
                elif point[X] < self._best[X]:
                    self._best = point

    def _append(self, point: Point) -> None:
        """Evaluate the slice that ends here, then add the point."""
        recent, trail = self._recent, self._trail
        recent.append(point)
        trail.append(point)
        start_ns = point[T] - self.rule.slice_ns
        while len(recent) > 1 and recent[1][T] <= start_ns:
            recent.popleft()
        start = recent[0]
        if start[T] <= start_ns and point[Y] < start[Y]:
            self._void(start[T])

    def _void(self, up_to_ns: int) -> None:
        """A slice below the floor starts here: no candidate up to it lives, thus no mature one."""
        self._best = self._edge = None
        trail = self._trail
        while trail and (trail[0][T] <= up_to_ns or trail[0][FLANK] == COLD):
            trail.popleft()
        if not trail:
            self._recent.clear()
            self._x = self._y = 0

    @property
    def idle(self) -> bool:
        """Whether nothing here can ever matter again."""
        return not self._trail and not self._level

    def pending_ns(self) -> int | None:
        """The time from the earliest live candidate to the last kept sample; None without one."""
        if not self._trail:
            return None
        first_ns = self._trail[0][T] if self._best is None else self._first_ns
        return self._trail[-1][T] - first_ns

    def samples(self) -> tuple[tuple[int, int], ...]:
        """The (t_ns, tx_bytes) from the earliest live candidate on, at most about the last window of them."""
        points = self._trail if self._edge is None else (self._edge, *self._trail)
        return tuple((point[T], point[BYTES]) for point in points)

    def _sustained(self, a: Point, sample: Sample, flank_bps: int) -> Firing:
        b = self._trail[-1]
        samples = self.samples()
        return Firing(
            reason=Reason.SUSTAINED,
            t_ns=sample[0],
            a_t_ns=a[T],
            b_t_ns=b[T],
            mean_bps=rate_bps(b[BYTES] - a[BYTES], b[T] - a[T]),
            peak_bps=max(_rates((*samples, sample))),
            first_flank_bps=a[FLANK],
            last_flank_bps=flank_bps,
            lowest_slice_bps=_lowest_slice_bps(samples, self.rule.slice_ns),
            excess_bits=(b[X] - a[X]) // NS_PER_SECOND,
            threshold_bps=self.rule.threshold_bps,
            samples=(*samples, sample),
        )

    def _overflow(self, before: Sample, sample: Sample, flank_bps: int) -> Firing:
        samples = (*(self.samples() or (before,)), sample)
        return Firing(
            reason=Reason.GUARD,
            t_ns=sample[0],
            a_t_ns=sample[0],
            b_t_ns=sample[0],
            mean_bps=rate_bps(sample[1] - samples[0][1], sample[0] - samples[0][0]),
            peak_bps=max(_rates(samples)),
            first_flank_bps=self._trail[0][FLANK] if self._trail else flank_bps,
            last_flank_bps=flank_bps,
            lowest_slice_bps=None,
            excess_bits=self._level // NS_PER_SECOND,
            threshold_bps=self.rule.threshold_bps,
            samples=samples,
        )


def _rates(samples: Sequence[Sample]) -> list[int]:
    return [rate_bps(q[1] - p[1], q[0] - p[0]) for p, q in pairwise(samples)]


def _lowest_slice_bps(samples: Sequence[Sample], slice_ns: int) -> int | None:
    """The rate of the slowest slice within these samples; None where they are shorter than a slice."""
    slices: list[int] = []
    start = 0
    for end, (t_ns, tx_bytes) in enumerate(samples):
        while start < end and samples[start + 1][0] <= t_ns - slice_ns:
            start += 1
        start_ns, start_bytes = samples[start]
        if start_ns <= t_ns - slice_ns:
            slices.append(rate_bps(tx_bytes - start_bytes, t_ns - start_ns))
    return min(slices, default=None)


class Detector:
    """Every watched link's detector. Links are told apart by name; one snapshot at a time goes in, verdicts come out."""

    def __init__(self, sampling: Sampling) -> None:
        self._meter = Meter(sampling)
        self._rules: dict[str, Rule] = {}
        self._shared: dict[Detect, Rule] = {}
        self._histories: dict[str, History] = {}
        self._floor_bps: int | None = None

    def set_sampling(self, sampling: Sampling) -> None:
        """Take over new sampling parameters; another max_gap is another rule: every link starts a fresh epoch."""
        if sampling.max_gap_ns != self._meter.sampling.max_gap_ns:
            self._histories.clear()
            for name in self._meter.awake():
                self._meter.open(name, EpochReason.RELOAD)
        self._meter.sampling = sampling

    def watch(self, name: str, detect: Detect) -> None:
        """Start watching a link, or change its parameters (a fresh epoch); the same parameters again change nothing.

        Raises ValueError for parameters that are no rule.
        """
        known = self._rules.get(name)
        if known is not None and (known.detect is detect or known.detect == detect):
            return
        rule = self._shared.get(detect) or self._shared.setdefault(detect, Rule(detect))
        self._rules[name] = rule
        self._floor_bps = None
        self._histories.pop(name, None)
        if known is None:
            self._meter.watch(name)
        else:
            self._meter.open(name, EpochReason.RELOAD)

    def forget(self, name: str) -> None:
        """Stop watching the link and forget it; watch() takes it up again as a new one."""
        self._meter.forget(name)
        self._histories.pop(name, None)
        self._rules.pop(name, None)
        self._floor_bps = None

    def rest(self, name: str) -> None:
        """Leave the link's samples alone (it is limited, or its limit is due): no evidence, no epochs, until resume."""
        self._meter.rest(name)
        self._histories.pop(name, None)

    def resume(self, name: str, reason: EpochReason) -> None:
        """Judge the link again: its next kept sample is a fresh baseline, counted under this reason."""
        self._meter.wake(name)
        self._meter.open(name, reason)
        self._histories.pop(name, None)

    def update(self, snapshot: Snapshot) -> Outcome:
        """Take in one snapshot. Links that are not watched are passed over; any integers ≥ 0 in any order are data."""
        if self._floor_bps is None:
            self._floor_bps = self._settle()
        meter, histories = self._meter, self._histories
        reading = meter.read(snapshot, self._floor_bps, histories)
        for link, _ in reading.epochs:
            histories.pop(link.name, None)
        firings: list[tuple[Link, Firing]] = []
        noted: list[tuple[Link, Firing]] = []
        for position, delta_ns, delta_bytes in reading.intervals:
            link = meter.links[position]
            history = histories.get(link.name)
            if history is None:
                rule = self._rules[link.name]
                if not rule.is_hot(delta_ns, delta_bytes):
                    continue
                history = histories[link.name] = History(rule)
            firing = history.add(snapshot.t_ns, meter.counters[position], delta_ns, delta_bytes)
            if firing is None:
                if history.idle:
                    del histories[link.name]
            elif history.rule.ends(firing):
                firings.append((link, firing))
                del histories[link.name]
            else:
                noted.append((link, firing))
        return Outcome(tuple(firings), tuple(noted), tuple(reading.epochs), reading.dropped)

    def pending(self) -> Mapping[str, int]:
        """Per link with a live candidate: the ns from the earliest one to the last kept sample."""
        ages = ((name, history.pending_ns()) for name, history in self._histories.items())
        return {name: age_ns for name, age_ns in ages if age_ns is not None}

    def trail(self, name: str) -> tuple[tuple[int, int], ...]:
        """The samples (t_ns, tx_bytes) that speak for the link now: its live candidates' window, else its last kept one."""
        history = self._histories.get(name)
        samples = history.samples() if history is not None else ()
        last = self._meter.last(name)
        return samples or (() if last is None else (last,))

    def _settle(self) -> int:
        """Drop rules that no link has any more; the lowest threshold of the others."""
        self._shared = {rule.detect: rule for rule in set(self._rules.values())}
        return min((rule.threshold_bps for rule in self._shared.values()), default=0)
