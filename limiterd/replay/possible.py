"""Excess that coarse samples allow for: a mean at or above the threshold over consecutive samples spanning the window.

Samples further apart than the slice say nothing of what happened between them, so this is never a firing. A counter that
goes back, a clock that does not advance and a hole of several spacings break the chain. Scraped counters repeat until the
next scrape: repeats younger than the spacing are passed over.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from limiterd.core.meter import BIT_NS_PER_BYTE, rate_bps
from limiterd.core.model import Detect

HOLE: Final = 3
"""Spacings without a sample that break the chain."""


class Possible:
    """One link's chain of coarse samples, O(1) amortised: of those a window old only the least X matters."""

    def __init__(self, detect: Detect, spacing_ns: int, *, scraped: bool) -> None:
        self._detect = detect
        self._spacing_ns = spacing_ns
        self._scraped = scraped
        self._aging: deque[tuple[int, int]] = deque()
        self._best: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None

    def judge_by(self, detect: Detect) -> None:
        """Another threshold or window (an override's) begins another chain."""
        if detect != self._detect:
            self._detect = detect
            self._last = None

    def add(self, t_ns: int, tx_bytes: int) -> int | None:
        """Take in a sample; the mean in bit/s where an excess was possible up to it (the chain then starts anew)."""
        last, sample = self._last, (t_ns, tx_bytes)
        if last is None or tx_bytes < last[1] or t_ns < last[0] or t_ns - last[0] > HOLE * self._spacing_ns:
            self._restart(sample)
            return None
        if t_ns == last[0] or (self._scraped and tx_bytes == last[1] and t_ns - last[0] < self._spacing_ns):
            return None
        self._last = sample
        self._aging.append(sample)
        while self._aging[0][0] <= t_ns - self._detect.window_ns:
            aged = self._aging.popleft()
            if self._best is None or self._x(aged) < self._x(self._best):
                self._best = aged
        best = self._best
        if best is None or self._x(best) > self._x(sample):
            return None
        self._restart(sample)
        return rate_bps(tx_bytes - best[1], t_ns - best[0])

    def _restart(self, sample: tuple[int, int]) -> None:
        self._last = sample
        self._best = None
        self._aging = deque([sample])

    def _x(self, sample: tuple[int, int]) -> int:
        return BIT_NS_PER_BYTE * sample[1] - self._detect.threshold_bps * sample[0]
