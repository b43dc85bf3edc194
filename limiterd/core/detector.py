"""When is a link in sustained excess? The rule and its guard, exact, O(1) amortised per sample.

Rule. At sample n, with b = n−1, some sample a < b of the epoch, not its baseline, satisfies all four:
  flanks: the intervals (a−1, a] and (b, n] run at ≥ threshold;   length: t_b − t_a ≥ window;
  mean: rate(a, b) ≥ threshold;                                   floor: no slice within [a, b] below floor · threshold.
Guard: a token bucket, S = max(0, S + 8·Δc − threshold·Δt) from 0 at a baseline, fires at S > burst.
docs/semantics.md has the whole of it.

Theory of operation. With X = 8·10⁹·c − threshold·t (bit·ns) an interval is hot iff ΔX ≥ 0, and the mean holds iff
X_a ≤ X_b. A *candidate* is the end of a hot interval; a bad slice (s, j) voids every candidate up to s. A candidate
*matures* once t_a ≤ t_b − window. Because slice ≤ window, a bad slice that ends now starts at or after every mature
candidate: it voids all of them together. So of the mature ones only the least X matters, one sample; the aging ones wait
in `trail`, which holds at most one window of samples and is the evidence too; `recent` holds one slice. Slices that start
before the earliest live candidate rule nothing out, so a history begins at a hot interval and ends when no candidate is
alive: a link that sends nothing has none. Each sample enters and leaves each deque once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Final

from limiterd.core.lazy_counter import LazyCounter
from limiterd.core.meter import BIT_NS_PER_BYTE, Meter, rate_bps
from limiterd.core.model import Detect, EpochReason, Firing, GuardMode, Link, Reason, Sampling, Snapshot
from limiterd.core.units import NS_PER_SECOND, PPM


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one snapshot led to. dropped counts samples of watched links that said nothing.

    firings discarded the link's history; noted ones (the guard, where it only observes) reset the guard alone. paces are the
    links of whose counters another refresh is known now.
    """

    firings: tuple[tuple[Link, Firing], ...] = ()
    noted: tuple[tuple[Link, Firing], ...] = ()
    epochs: tuple[tuple[Link, EpochReason], ...] = ()
    dropped: int = 0
    paces: tuple[Link, ...] = ()


_QUIET: Final = Outcome()


class Rule:
    """A Detect in the arithmetic's units, shared by all links of the same parameters.

    per_byte : per_ns are 8·10⁹ : threshold in lowest terms, so that X stays a small number; floor_per_byte : floor_per_ns
    the same for the floor. Raises ValueError where slice exceeds the window or something is negative: the config's checks
    forbid it.
    """

    __slots__ = (
        "burst", "detect", "fires", "floor_bps", "floor_per_byte", "floor_per_ns", "guarded",
        "per_byte", "per_ns", "slice_ns", "unit", "window_ns",
    )  # fmt: skip

    def __init__(self, detect: Detect) -> None:
        if not 0 < detect.slice_ns <= detect.window_ns or detect.threshold_bps < 0 or detect.floor_ppm < 0:
            raise ValueError(f"not a rule: {detect} (0 < slice ≤ window, threshold ≥ 0, floor ≥ 0)")
        self.detect = detect
        self.window_ns = detect.window_ns
        self.slice_ns = detect.slice_ns
        self.unit, self.per_byte, self.per_ns = _lowest_terms(BIT_NS_PER_BYTE, detect.threshold_bps)
        floor = detect.floor_ppm * detect.threshold_bps
        self.floor_bps = floor // PPM
        _, self.floor_per_byte, self.floor_per_ns = _lowest_terms(PPM * BIT_NS_PER_BYTE, floor)
        self.guarded = detect.guard.mode is not GuardMode.OFF
        self.fires = detect.guard.mode is GuardMode.ENFORCE
        self.burst = detect.guard.burst_bits * NS_PER_SECOND // self.unit

    def is_hot(self, delta_ns: int, delta_bytes: int) -> bool:
        """Whether an interval runs at the threshold or above."""
        return self.per_byte * delta_bytes >= self.per_ns * delta_ns

    def x(self, sample: Sample) -> int:
        """X of a sample, in `unit` bit·ns."""
        return self.per_byte * sample[1] - self.per_ns * sample[0]

    def ends(self, firing: Firing) -> bool:
        """Whether this firing discards all history: a guard's where it only observes does not."""
        return firing.reason is Reason.SUSTAINED or self.fires


def _lowest_terms(per_byte: int, per_ns: int) -> tuple[int, int, int]:
    unit = gcd(per_byte, per_ns)
    return unit, per_byte // unit, per_ns // unit


Sample = tuple[int, int]
"""(t_ns, tx_bytes) of a kept sample. A plain tuple, for its speed."""
T: Final = 0
BYTES: Final = 1


class History:
    """One link's live candidates and its guard's level; kept only while there is one of them or the level is not 0.

    trail begins with an aging candidate, or, where a mature one lives, with the first sample after the horizon; edge is
    the sample before it, edge_x its X. best is the mature candidate with the least X, best_edge the sample before that,
    first_ns the stamp of the earliest mature one. level is the guard's S.
    """

    __slots__ = ("_best", "_best_edge", "_best_x", "_edge", "_edge_x", "_first_ns", "_recent", "level", "rule", "trail")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.level = 0
        self.trail: deque[Sample] = deque()
        self._best: Sample | None = None
        self._best_x = self._edge_x = self._first_ns = 0
        self._best_edge: Sample = (0, 0)
        self._edge: Sample = (0, 0)
        self._recent: deque[Sample] = deque()

    def add(self, sample: Sample, delta_ns: int, delta_bytes: int) -> Firing | None:
        """Take in a kept sample that continues the epoch; a Firing where the rule or the guard says so.

        A firing of the rule, or of a guard that enforces, ends the history: the caller discards it.
        """
        rule, trail = self.rule, self.trail
        per_byte, per_ns = rule.per_byte, rule.per_ns
        t_ns, tx_bytes = sample
        excess = per_byte * delta_bytes - per_ns * delta_ns
        if trail:
            b_t_ns, b_bytes = b = trail[-1]
            horizon_ns = b_t_ns - rule.window_ns
            if trail[0][T] <= horizon_ns:
                self._mature(horizon_ns)
            if excess >= 0 and self._best is not None and self._best_x <= per_byte * b_bytes - per_ns * b_t_ns:
                return self._sustained(self._best, b, sample)
        firing = None
        if rule.guarded and (self.level or excess > 0):
            level = self.level + excess
            if level > rule.burst:
                firing = self._overflow((t_ns - delta_ns, tx_bytes - delta_bytes), sample, level)
            self.level = level if 0 < level <= rule.burst else 0
        if trail:
            trail.append(sample)
            recent = self._recent
            recent.append(sample)
            start_ns = t_ns - rule.slice_ns
            while recent[1][T] <= start_ns:
                recent.popleft()
            s_t_ns, s_bytes = recent[0]
            if s_t_ns <= start_ns and rule.floor_per_byte * (tx_bytes - s_bytes) < rule.floor_per_ns * (t_ns - s_t_ns):
                self._void(s_t_ns)
        elif excess >= 0:
            self._edge = (t_ns - delta_ns, tx_bytes - delta_bytes)
            self._edge_x = rule.x(self._edge)
            trail.append(sample)
            self._recent.append(sample)
        return firing

    def _mature(self, horizon_ns: int) -> None:
        """Merge the candidates up to the horizon into the one that the mean is easiest for, the earliest of equals."""
        trail, edge, edge_x = self.trail, self._edge, self._edge_x
        per_byte, per_ns = self.rule.per_byte, self.rule.per_ns
        while trail[0][T] <= horizon_ns:
            point = trail.popleft()
            x = per_byte * point[BYTES] - per_ns * point[T]
            if x >= edge_x and (self._best is None or x < self._best_x):
                if self._best is None:
                    self._first_ns = point[T]
                self._best, self._best_x, self._best_edge = point, x, edge
            edge, edge_x = point, x
        self._edge, self._edge_x = edge, edge_x

    def _void(self, up_to_ns: int) -> None:
        """A slice below the floor starts here: no candidate up to it lives, thus no mature one."""
        rule, trail, edge, edge_x = self.rule, self.trail, self._edge, self._edge_x
        while trail and (trail[0][T] <= up_to_ns or rule.x(trail[0]) < edge_x):
            edge = trail.popleft()
            edge_x = rule.x(edge)
        self._edge, self._edge_x, self._best = edge, edge_x, None
        if not trail:
            self._recent.clear()

    def pending_ns(self) -> int | None:
        """The time from the earliest live candidate to the last kept sample; None without one."""
        if not self.trail:
            return None
        first_ns = self.trail[0][T] if self._best is None else self._first_ns
        return self.trail[-1][T] - first_ns

    def samples(self) -> tuple[Sample, ...]:
        """From the sample before the earliest live candidate on, at most about the last window of them."""
        return (self._edge, *self.trail) if self.trail else ()

    def _sustained(self, a: Sample, b: Sample, n: Sample) -> Firing:
        samples = self.samples()
        return Firing(
            reason=Reason.SUSTAINED,
            t_ns=n[T],
            a_t_ns=a[T],
            b_t_ns=b[T],
            mean_bps=_rate_bps(a, b),
            peak_bps=max(_rates((*samples, n))),
            first_flank_bps=_rate_bps(self._best_edge, a),
            last_flank_bps=_rate_bps(b, n),
            lowest_slice_bps=_lowest_slice_bps([s for s in samples if s[T] >= a[T]], self.rule.slice_ns),
            excess_bits=(self.rule.x(b) - self._best_x) * self.rule.unit // NS_PER_SECOND,
            threshold_bps=self.rule.detect.threshold_bps,
            samples=(*samples, n),
        )

    def _overflow(self, before: Sample, n: Sample, level: int) -> Firing:
        samples = (*(self.samples() or (before,)), n)
        rates = _rates(samples)
        return Firing(
            reason=Reason.GUARD,
            t_ns=n[T],
            a_t_ns=n[T],
            b_t_ns=n[T],
            mean_bps=_rate_bps(samples[0], n),
            peak_bps=max(rates),
            first_flank_bps=rates[0],
            last_flank_bps=rates[-1],
            lowest_slice_bps=None,
            excess_bits=level * self.rule.unit // NS_PER_SECOND,
            threshold_bps=self.rule.detect.threshold_bps,
            samples=samples,
        )


def _rate_bps(p: Sample, q: Sample) -> int:
    return rate_bps(q[BYTES] - p[BYTES], q[T] - p[T])


def _rates(samples: Sequence[Sample]) -> list[int]:
    return [_rate_bps(p, q) for p, q in pairwise(samples)]


def _lowest_slice_bps(samples: Sequence[Sample], slice_ns: int) -> int | None:
    """The rate of the slowest slice within these samples; None where they are shorter than a slice."""
    slices: list[int] = []
    start = 0
    for end, sample in enumerate(samples):
        while start < end and samples[start + 1][T] <= sample[T] - slice_ns:
            start += 1
        if samples[start][T] <= sample[T] - slice_ns:
            slices.append(_rate_bps(samples[start], sample))
    return min(slices, default=None)


class Detector:
    """Every watched link's detector. Links are told apart by name; one snapshot at a time goes in, verdicts come out."""

    def __init__(self, sampling: Sampling) -> None:
        self._meter = Meter(sampling)
        self._rules: dict[str, Rule] = {}
        self._shared: dict[Detect, Rule] = {}
        self._histories: dict[str, History] = {}
        self._counters: dict[str, LazyCounter] = {}
        self._floor_bps: int | None = None

    def set_sampling(self, sampling: Sampling) -> None:
        """Take over new sampling parameters; another max_gap or counter_refresh is another rule: a fresh epoch where it holds."""
        meter, all_ = self._meter, sampling.max_gap_ns != self._meter.sampling.max_gap_ns
        before = {name: meter.refresh_ns(name) for name in meter.awake()}
        meter.sample_by(sampling)
        for name, refresh_ns in before.items():
            if all_ or meter.refresh_ns(name) != refresh_ns:
                self._histories.pop(name, None)
                meter.open(name, EpochReason.RELOAD)

    def watch(self, name: str, detect: Detect, refresh_ns: int | None = None) -> None:
        """Start watching a link, or change its parameters (a fresh epoch); the same parameters again change nothing.

        refresh_ns is a counter_refresh of its own. Raises ValueError for parameters that are no rule.
        """
        self._refresh(name, refresh_ns)
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

    def _refresh(self, name: str, refresh_ns: int | None) -> None:
        before = self._meter.refresh_ns(name)
        self._meter.refresh_by(name, refresh_ns)
        if self._meter.refresh_ns(name) != before and name in self._rules:
            self._histories.pop(name, None)
            self._meter.open(name, EpochReason.RELOAD)

    def forget(self, name: str) -> None:
        """Stop watching the link and forget it; watch() takes it up again as a new one."""
        self._meter.forget(name)
        self._histories.pop(name, None)
        self._counters.pop(name, None)
        self._rules.pop(name, None)
        self._floor_bps = None

    def rest(self, name: str) -> None:
        """Leave the link's samples alone (it is limited, or its limit is due): no evidence, no epochs, until resume."""
        self._meter.rest(name)
        self._histories.pop(name, None)
        if name in self._counters:
            self._counters[name].rest()

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
        t_ns = snapshot.t_ns
        self._discard(reading.epochs)
        firings: list[tuple[Link, Firing]] = []
        noted: list[tuple[Link, Firing]] = []
        paces: list[Link] = []
        for link, tx_bytes, delta_ns, delta_bytes in reading.intervals:
            history = histories.get(link.name)
            if history is None:
                rule = self._rules[link.name]
                if not rule.is_hot(delta_ns, delta_bytes):
                    continue
                history = histories[link.name] = History(rule)
            if self._is_paced(link.name, history.rule, (t_ns, tx_bytes), delta_ns, delta_bytes):
                paces.append(link)
            firing = history.add((t_ns, tx_bytes), delta_ns, delta_bytes)
            if firing is None:
                if not (history.trail or history.level):
                    del histories[link.name]
            elif history.rule.ends(firing):
                firings.append((link, firing))
                del histories[link.name]
            else:
                noted.append((link, firing))
        if not (firings or noted or paces or reading.epochs or reading.dropped):
            return _QUIET
        return Outcome(tuple(firings), tuple(noted), tuple(reading.epochs), reading.dropped, tuple(paces))

    def _discard(self, epochs: Iterable[tuple[Link, EpochReason]]) -> None:
        for link, _ in epochs:
            self._histories.pop(link.name, None)

    def _is_paced(self, name: str, rule: Rule, sample: Sample, delta_ns: int, delta_bytes: int) -> bool:
        """Whether this interval says something new of how often the link's counter is refreshed."""
        if not rule.is_hot(delta_ns, delta_bytes):
            return False
        counter = self._counters.get(name) or self._counters.setdefault(name, LazyCounter())
        return counter.hot(*sample, delta_ns, delta_bytes, rule.floor_bps)

    def pending(self) -> Mapping[str, int]:
        """Per link with a live candidate: the ns from the earliest one to the last kept sample."""
        if not self._histories:
            return {}
        ages = ((name, history.pending_ns()) for name, history in self._histories.items())
        return {name: age_ns for name, age_ns in ages if age_ns is not None}

    def trail(self, name: str) -> tuple[tuple[int, int], ...]:
        """The samples (t_ns, tx_bytes) that speak for the link now: its live candidates' window, else its last kept one."""
        history = self._histories.get(name)
        samples = history.samples() if history is not None else ()
        last = self._meter.last(name)
        return samples or (() if last is None else (last,))

    def refreshes(self) -> Mapping[str, int]:
        """Per link how often its counter is refreshed, in ns, where that is known to be seldom."""
        return {name: counter.refresh_ns for name, counter in self._counters.items() if counter.refresh_ns is not None}

    def refresh_ns(self, name: str) -> tuple[int | None, int]:
        """How often the link's counter is refreshed (None: not known to be seldom), and what counter_refresh holds for it."""
        counter = self._counters.get(name)
        return (None if counter is None else counter.refresh_ns), self._meter.refresh_ns(name)

    def counter(self, name: str) -> tuple[int, int] | None:
        """The link's (t_ns, tx_bytes) in the last snapshot, also while it rests; None where it had no such link."""
        return self._meter.counter(name)

    def _settle(self) -> int:
        """Drop rules that no link has any more; the lowest threshold of the others."""
        self._shared = {rule.detect: rule for rule in set(self._rules.values())}
        return min((detect.threshold_bps for detect in self._shared), default=0)
