"""The standby sampler: takes the samples while the loop's thread waits for the kernel.

Changing and reading tc takes the kernel's RTNL lock, which somebody else may hold for seconds; reading counters does not
(RTM_GETSTATS). Time that nobody sampled is no evidence, so a wait beyond max_gap would begin every link's window anew.

Theory of operation. The loop's thread enters the standby sampler around whatever may wait. Its own thread then sleeps until the
next tick is due and samples at the loop's pace until the loop is back, who takes what was sampled before it samples again. The
kernel's sampler belongs to one thread at a time: to this one between enter and exit, which hold the same lock, else to the loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from limiterd.daemon.controller import Attempt, KernelPort, attempt
from limiterd.daemon.loop import Pace


class StandbySampler:
    """A context manager, entered by the loop's thread alone; never within itself."""

    def __init__(self, kernel: KernelPort, pace: Pace, clock: Callable[[], int]) -> None:
        self._kernel = kernel
        self._pace = pace
        self._clock = clock
        self._cue = threading.Condition()
        self._on_stage = self._closing = False
        self._due_ns = 0
        self._taken: deque[Attempt] = deque()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        with self._cue:
            self._on_stage = True
            self._due_ns = self._pace.due_ns
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="standby_sampler", daemon=True)
                self._thread.start()
            self._cue.notify()
        return self

    def __exit__(self, *_: object) -> None:
        with self._cue:  # a sample that has begun ends first
            self._on_stage = False

    def taken(self) -> tuple[Attempt, ...]:
        """What the loop has not had yet, in its order."""
        return tuple(self._taken.popleft() for _ in range(len(self._taken))) if self._taken else ()

    def close(self) -> None:
        """End the thread."""
        with self._cue:
            self._closing = True
            self._cue.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._cue:
            while not self._closing:
                wait_ns = self._due_ns - self._clock()
                if not self._on_stage:
                    self._cue.wait()
                elif wait_ns > 0:
                    self._cue.wait(wait_ns / 1e9)
                else:
                    self._taken.append(attempt(self._kernel))
                    late_ns = self._clock() - self._due_ns
                    self._due_ns += (1 + late_ns // self._pace.interval_ns) * self._pace.interval_ns
