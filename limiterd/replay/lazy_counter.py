"""Counters that a driver refreshes seldom: under load they stand still from one refresh to the next, sample after sample.

The rule then sees seconds of silence in steady traffic, and fires late or never. What counts is the distance between moves
that carry load, nine tenths of their bytes: traffic that comes and goes by itself is no load in between.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from limiterd.core.units import NS_PER_SECOND

LONGEST_NS: Final = 10 * NS_PER_SECOND
"""No driver refreshes its counters less often: what stands still for longer is a link at rest."""
STEP_NS: Final = NS_PER_SECOND // 20
MOVES_MIN: Final = 5
MOVES_ENOUGH: Final = 200
"""A driver does not change its habits: after so many moves nothing more is to be learnt."""
LOOK_EVERY: Final = 16
LOOK_FOR: Final = 8
"""A link is followed sample by sample from a look at which it carried load, for so many looks at least."""


class LazyCounter:
    """One link's counter, O(1) a sample and in memory. load_bps is the rate from which a move carries load."""

    __slots__ = ("_bytes", "_counter", "_gap_ns", "_load_bps", "_looked", "_looks_left", "_moved_ns", "_moves", "_weights")

    def __init__(self, t_ns: int, counter: int, load_bps: int) -> None:
        self._load_bps = load_bps
        self._looked = (t_ns, counter)
        self._moved_ns = self._counter = self._gap_ns = self._bytes = self._moves = self._looks_left = 0
        self._weights: Counter[int] = Counter()

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be learnt."""
        return self._moves >= MOVES_ENOUGH

    def look(self, t_ns: int, counter: int) -> bool:
        """From time to time: whether to follow it until the next look, since it carries load or did lately."""
        (since_ns, before), self._looked = self._looked, (t_ns, counter)
        if 8 * NS_PER_SECOND * (counter - before) >= self._load_bps * (t_ns - since_ns) > 0:
            if not self._looks_left:  # when it moved last was not seen
                self._moved_ns, self._counter, self._gap_ns = t_ns - 2 * LONGEST_NS, counter, 0
            self._looks_left = LOOK_FOR
        else:
            self._looks_left = max(0, self._looks_left - 1)
        return self._looks_left > 0

    def add(self, t_ns: int, counter: int) -> None:
        """Take in a sample."""
        if counter == self._counter:
            return
        gap_ns, size = t_ns - self._moved_ns, counter - self._counter
        self._moved_ns, self._counter = t_ns, counter
        if size < 0 or not 0 < gap_ns <= LONGEST_NS:
            self._gap_ns = 0
            return
        if self._gap_ns:  # the move before has a neighbour on both sides
            nearest_ns = min(self._gap_ns, gap_ns)
            if 8 * NS_PER_SECOND * self._bytes >= self._load_bps * nearest_ns:
                self._weights[(nearest_ns + STEP_NS // 2) // STEP_NS * STEP_NS] += self._bytes
                self._moves += 1
        self._gap_ns, self._bytes = gap_ns, size

    def moves_every_ns(self) -> int | None:
        """The distance between its moves under load; None where there were too few."""
        total, up_to = self._weights.total(), 0
        for spacing_ns, size in sorted(self._weights.items()):
            up_to += size
            if 10 * up_to >= 9 * total:
                return spacing_ns if self._moves >= MOVES_MIN else None
        return None


def advice(moves_every_ns: int, max_gap_ns: int) -> str:
    """What to say of it, and the setting that helps."""
    refresh_ns = -(-moves_every_ns * 5 // 4 // STEP_NS) * STEP_NS
    gap = f" and max_gap: {2 * refresh_ns // 10**6}ms" if refresh_ns >= max_gap_ns else ""
    return (
        f"its counter moves only every {moves_every_ns / NS_PER_SECOND:g} s, so steady traffic looks interrupted and fires late "
        f"or never; set counter_refresh: {refresh_ns // 10**6}ms{gap}"
    )
