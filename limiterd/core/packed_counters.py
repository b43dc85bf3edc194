"""Which of thousands of counters moved fast: a few operations on large integers instead of one on each counter.

Rule. Of two snapshots of the same links it finds every position whose counter rose by a floor or more; where one went
backwards, or does not fit, it says nothing of any of them.

Theory of operation. The counters of a snapshot, end to end as native 64-bit words, are one integer with a lane of 64 bits each
(SIMD within a register, the register being a Python integer). Subtracting the one before takes all differences
at once. They are exact if no lane borrows from the next, and the lowest lane to borrow shows it: while the counters before are
below 2⁶³, what remains in that lane is above 2⁶³, and the uppermost one makes the whole negative. Then 2⁶³ − floor is added
to every lane: the top bits tell which differences reach the floor. No operation is one per counter.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Final

_WORD: Final = 8
_TOP: Final = 1 << 63
_ORDER: Final = "little" if array("H", [1]).tobytes()[0] else "big"
"""This machine's."""
_TOP_BYTE: Final = _WORD - 1 if _ORDER == "little" else 0
"""Where a word's top bit is found in its bytes."""
_SIGNIFICANT_BITS: Final = 5
"""Of the floor; what runs up to a sixteenth slower is told too, and judged by whoever asked."""


class PackedCounters:
    """The counters of the last snapshot of so many links; only differences at the watched positions are told."""

    def __init__(self, count: int, watched: Iterable[int]) -> None:
        self._count = count
        self._tops = _joined([_TOP] * count)
        self._ones = self._tops >> 63
        marks = [0] * count
        for position in watched:
            marks[position] = _TOP
        self._watched = _joined(marks)
        self._positions = tuple(range(count))
        self._before: int | None = None
        self._floor = 0
        self._lift = self._tops

    def take(self, counters: Sequence[int], floor: int = 0) -> Sequence[int] | None:
        """Keep these counters; the watched positions that rose by at least floor since the last ones, maybe some slower ones too.

        None where nothing can be said: the first time, and where a counter went backwards or is 2⁶³ or more.
        """
        before, now = self._before, _packed(counters)
        self._before = now
        if before is None or now is None:
            return None
        rise = now - before
        if rise < 0 or (rise | before) & self._tops:
            return None
        fast = (rise + self._lifted(floor)) & self._watched
        if not fast:
            return ()
        return tuple(compress(self._positions, fast.to_bytes(_WORD * self._count, _ORDER)[_TOP_BYTE::_WORD]))

    def _lifted(self, floor: int) -> int:
        """2⁶³ − floor in every lane; rounded, so that it is nearly always the one before."""
        spare = max(0, floor.bit_length() - _SIGNIFICANT_BITS)
        rounded = min(floor >> spare << spare, _TOP)
        if rounded != self._floor:
            self._floor, self._lift = rounded, self._ones * (_TOP - rounded)
        return self._lift


def _packed(counters: Sequence[int]) -> int | None:
    """The counters as one integer; None where one takes more than 64 bits."""
    if isinstance(counters, memoryview):
        return int.from_bytes(counters, _ORDER)
    try:
        return _joined(counters)
    except OverflowError:
        return None


def _joined(words: Sequence[int]) -> int:
    return int.from_bytes(array("Q", words), _ORDER)
