"""Histograms that cost one bisection an observation."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final

from limiterd.core.model import Histogram

SHORT_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Bounds in seconds that suit ticks and netlink round trips."""


class Buckets:
    """Counts observations by upper bound, in seconds."""

    def __init__(self, bounds_s: tuple[float, ...] = SHORT_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, value_s: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds_s, value_s)] += 1
        self._sum_s += value_s

    def view(self) -> Histogram:
        """The histogram now, cumulative."""
        counts = [*accumulate(self._counts)]  # a tuple from an iterator is one more in CPython's stock of tuples, each time
        return Histogram(self._bounds_s, tuple(counts[:-1]), counts[-1], self._sum_s)
