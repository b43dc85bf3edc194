"""Which samples count: epochs, dropped samples, and the intervals worth looking at.

Rule. A sample is compared with the last *kept* sample of its link. It opens an epoch (kept, a baseline, no evidence)
when it is the first, the ifindex or incarnation differs, the counter or the clock went backwards, the gap exceeds
max_gap, or the implied rate exceeds max_plausible: tested in this order. Only a sample that opens none can be dropped:
its stamp equals the last kept one's, or its counter does and that sample is younger than counter_refresh.

Theory of operation. A fleet is mostly idle, so a link at rest must cost nearly nothing. The last kept samples stand in
columns (a position per link of the snapshot, rebuilt only when the links change). All counters of a snapshot, end to end,
are also one large integer with a lane of 64 bits a link: one subtraction takes all differences, and one addition carries
those that are fast enough to matter to anyone into the top bits of their lanes (see Lanes). The filter uses the time since the
last snapshot: a link whose last kept sample is older ran slower than that, so nothing that matters slips through. Positions
that are picked, or that a caller names, are judged one by one with their own times. Whatever is true of all links at once
(a gap, a clock that did not advance, the first snapshot) judges every position, and so does a counter that went backwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import Final, NamedTuple

from limiterd.core.model import EpochReason, Link, Sampling, Snapshot
from limiterd.core.packed_counters import PackedCounters

BIT_NS_PER_BYTE: Final = 8 * 10**9
"""bytes · this, against bits per second · nanoseconds: both sides in bit·ns, exact integers."""

_AWAY: Final = -1
"""The position of a link that has none."""

Interval = tuple[Link, int, int, int]
"""(link, its tx_bytes now, Δt in ns, Δ tx_bytes): from the last kept sample to this one. A plain tuple, for its speed."""


class Reading(NamedTuple):
    """What one snapshot says: the intervals asked for, the epochs opened, how many samples of watched links were dropped."""

    intervals: Sequence[Interval]
    epochs: Sequence[tuple[Link, EpochReason]]
    dropped: int


class Kept(NamedTuple):
    """The last kept sample of a link that is not in the columns."""

    link: Link
    t_ns: int
    tx_bytes: int


def rate_bps(delta_bytes: int, delta_ns: int) -> int:
    """Bits per second, floor-divided, for people; 0 where no time passed."""
    return BIT_NS_PER_BYTE * delta_bytes // delta_ns if delta_ns > 0 else 0


def identity_break(kept: Link, link: Link) -> EpochReason | None:
    """Why two samples of one name are not of one link; None where they are."""
    if link.ifindex != kept.ifindex:
        return EpochReason.IFINDEX
    if link.incarnation != kept.incarnation:
        return EpochReason.NEW
    return None


def sample_break(delta_ns: int, delta_bytes: int, sampling: Sampling) -> EpochReason | None:
    """Why a sample of the same link cannot continue its epoch; None where it can."""
    if delta_bytes < 0:
        return EpochReason.COUNTER
    if delta_ns < 0:
        return EpochReason.CLOCK
    if delta_ns > sampling.max_gap_ns:
        return EpochReason.GAP
    plausible = sampling.max_plausible_bps
    if plausible and delta_ns and BIT_NS_PER_BYTE * delta_bytes > plausible * delta_ns:
        return EpochReason.IMPLAUSIBLE
    return None


class Meter:
    """The last kept sample of every watched link, and the intervals that new snapshots form with them.

    Streams are keyed by interface name. links, times_ns and counters are the columns after the last reading, links that are
    not watched included, and positions says where a watched name stands in them.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._refresh_of: dict[str, int] = {}
        self._refreshes_ns: list[int] = []
        self._longest_refresh_ns = 0
        self.links: tuple[Link, ...] = ()
        self.times_ns: list[int] = []
        self.counters: Sequence[int] = ()
        self.positions: dict[str, int] = {}
        self._watched: set[str] = set()
        self._resting: set[str] = set()
        self._due: dict[str, EpochReason] = {}
        self._away: dict[str, Kept] = {}
        self._returned: tuple[int, ...] = ()
        self._source: tuple[Link, ...] | None = None
        self._all: tuple[int, ...] = ()
        self._packed_counters = PackedCounters(0, ())
        self._t_ns = 0

    def sample_by(self, sampling: Sampling) -> None:
        """Read by these parameters from the next snapshot on."""
        self.sampling = sampling
        self._source = None

    def watch(self, name: str) -> None:
        """Take the link into the columns; its first sample opens an epoch."""
        self._watched.add(name)
        self._source = None

    def refresh_ns(self, name: str) -> int:
        """How long a counter of this link that does not move is no sample."""
        return self._refresh_of.get(name, self.sampling.counter_refresh_ns)

    def refresh_by(self, name: str, refresh_ns: int | None) -> None:
        """Let the link have a counter_refresh of its own; None: that of all."""
        if refresh_ns == self._refresh_of.get(name):
            return
        if refresh_ns is None:
            self._refresh_of.pop(name, None)
        else:
            self._refresh_of[name] = refresh_ns
        self._source = None

    def forget(self, name: str) -> None:
        """Stop watching the link and remember nothing of it."""
        self._watched.discard(name)
        self._resting.discard(name)
        self._due.pop(name, None)
        self._away.pop(name, None)
        self._refresh_of.pop(name, None)
        if self.positions.pop(name, None) is not None:
            self._source = None

    def rest(self, name: str) -> None:
        """Neither judge nor count the link's samples until reopen."""
        self._resting.add(name)
        self._due.pop(name, None)

    def wake(self, name: str) -> None:
        """End the rest; the samples that follow continue nothing (the caller opens an epoch)."""
        self._resting.discard(name)

    def open(self, name: str, reason: EpochReason) -> None:
        """Let the link's next sample open an epoch for this reason; a link never seen opens its own, a resting one none."""
        if name not in self._resting and (name in self.positions or name in self._away):
            self._due.setdefault(name, reason)

    def last(self, name: str) -> tuple[int, int] | None:
        """The (t_ns, tx_bytes) of the last kept sample; None for a link that rests, is away or is due an epoch."""
        position = self.positions.get(name)
        if position is None or name in self._resting or name in self._due:
            return None
        return self.times_ns[position], self.counters[position]

    def counter(self, name: str) -> tuple[int, int] | None:
        """The (t_ns, tx_bytes) of the last snapshot, whether or not the link rests; None for a link that it had not."""
        position = self.positions.get(name)
        return None if position is None else (self._t_ns, self.counters[position])

    def awake(self) -> Iterable[str]:
        """The watched links that do not rest."""
        return self._watched - self._resting

    def read(self, snapshot: Snapshot, floor_bps: int, wanted: Collection[str]) -> Reading:
        """Take in a snapshot.

        Returns the intervals of the `wanted` links and, at least, those of every link that ran at floor_bps or above.
        """
        if snapshot.links is not self._source:
            self._arrange(snapshot.links)
        t_ns, times_before, before = snapshot.t_ns, self.times_ns, self.counters
        now = snapshot.tx_bytes
        picked = self._picked(now, t_ns - self._t_ns, floor_bps, wanted)
        times = self._times_kept(t_ns, now) if self._longest_refresh_ns else [t_ns] * len(now)
        intervals: list[Interval] = []
        epochs: list[tuple[Link, EpochReason]] = []
        repeated: list[int] = []
        sampling, due, resting, links = self.sampling, self._due, self._resting, self.links
        max_gap_ns, strict = sampling.max_gap_ns, sampling.max_plausible_bps > 0
        for i in picked:
            link = links[i]
            if resting and link.name in resting:
                continue
            tx_bytes = now[i]
            delta_ns, delta_bytes = t_ns - times_before[i], tx_bytes - before[i]
            reason = due.pop(link.name, None) if due else None
            if reason is None and (strict or delta_bytes < 0 or not 0 <= delta_ns <= max_gap_ns):
                reason = sample_break(delta_ns, delta_bytes, sampling)
            if reason is not None:
                epochs.append((link, reason))
                times[i] = t_ns
            elif delta_ns == 0:
                repeated.append(i)
            elif times[i] == t_ns:
                intervals.append((link, tx_bytes, delta_ns, delta_bytes))
        if repeated:
            now = _restored(now, before, repeated)
            self._packed_counters.take(now)
        self._t_ns, self.times_ns, self.counters, self._returned = t_ns, times, now, ()
        dropped = len(repeated)
        if self._longest_refresh_ns:
            dropped += self._unrefreshed()
        return Reading(intervals, epochs, dropped)

    def _picked(self, now: Sequence[int], elapsed_ns: int, floor_bps: int, wanted: Collection[str]) -> Iterable[int]:
        """The positions to judge one by one: all of them where the clock tells something about every link."""
        sampling = self.sampling
        if sampling.max_plausible_bps:
            floor_bps = min(floor_bps, sampling.max_plausible_bps)
        hits = self._packed_counters.take(now, floor_bps * max(0, elapsed_ns) // BIT_NS_PER_BYTE)
        if hits is None or not 0 < elapsed_ns <= sampling.max_gap_ns - self._longest_refresh_ns:
            return self._all
        if not (wanted or self._due or self._returned):
            return hits
        position = self.positions.get
        picked = {*hits, *self._returned, *map(position, wanted, repeat(_AWAY)), *map(position, self._due, repeat(_AWAY))}
        picked.discard(_AWAY)
        return picked

    def _times_kept(self, t_ns: int, now: Sequence[int]) -> list[int]:
        """The stamps of the last kept samples, as far as no epoch opens, where counters may be late."""
        return [
            t_ns if counter != kept or t_ns - kept_ns >= refresh_ns else kept_ns
            for counter, kept, kept_ns, refresh_ns in zip(now, self.counters, self.times_ns, self._refreshes_ns, strict=True)
        ]

    def _unrefreshed(self) -> int:
        """How many samples the last reading dropped because their counters had not been refreshed yet."""
        times, t_ns, resting = self.times_ns, self._t_ns, self._resting
        return sum(times[i] != t_ns and name not in resting for name, i in self.positions.items())

    def _arrange(self, links: tuple[Link, ...]) -> None:
        """Rebuild the columns for these links; what is known of a link goes with its name."""
        where = {link.name: i for i, link in enumerate(links) if link.name in self._watched}
        for name, i in self.positions.items():
            if name not in where:
                self._away[name] = Kept(self.links[i], self.times_ns[i], self.counters[i])
        times, counters = [self._t_ns] * len(links), [0] * len(links)
        returned: list[int] = []
        for name, i in where.items():
            kept = self._last_kept(name)
            reason = EpochReason.NEW if kept is None else identity_break(kept.link, links[i])
            if reason is not None and name not in self._resting:
                self._due.setdefault(name, reason)
            if self._away.pop(name, None) is not None:
                returned.append(i)
            if kept is not None:
                times[i], counters[i] = kept.t_ns, kept.tx_bytes
        self.links = self._source = links
        self.times_ns, self.counters, self._returned = times, counters, tuple(returned)
        self.positions, self._all = where, tuple(where.values())
        self._refreshes_ns = [self.refresh_ns(link.name) for link in links]
        self._longest_refresh_ns = max((self._refreshes_ns[i] for i in self._all), default=0)
        self._packed_counters = PackedCounters(len(links), self._all)
        self._packed_counters.take(counters)

    def _last_kept(self, name: str) -> Kept | None:
        position = self.positions.get(name)
        if position is None:
            return self._away.get(name)
        return Kept(self.links[position], self.times_ns[position], self.counters[position])


def _restored(now: Sequence[int], before: Sequence[int], positions: Iterable[int]) -> Sequence[int]:
    """The counters with those of dropped samples put back."""
    counters = list(now)
    for i in positions:
        counters[i] = before[i]
    return counters
