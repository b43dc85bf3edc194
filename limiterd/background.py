"""One job in one thread: done again whenever there is something new, and with back-off while it fails.

For work that may block on a disk and must never hold up who asks for it. Who needs to know that it is done waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

RETRY_S: Final = (1.0, 30.0)
"""The first and the longest pause between attempts."""


class Background:
    """A daemon thread that runs `job` after each poke; the job tells whether it succeeded and handles its own errors.

    Pokes are numbered. A run that begins after a poke covers it: everything that was handed over before the poke is done
    when that run has succeeded.
    """

    def __init__(self, name: str, job: Callable[[], bool], retry_s: tuple[float, float] = RETRY_S) -> None:
        self._name = name
        self._job = job
        self._first_pause_s, self._max_pause_s = retry_s
        self._changed = threading.Condition()
        self._poked = 0
        self._done = 0
        self._failed = 0
        """The highest poke that a failed run covered."""
        self._failures = 0
        self._due = False
        self._urgent = False
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def done(self) -> int:
        """The highest poke that a successful run covered."""
        return self._done

    @property
    def idle(self) -> bool:
        """Whether every poke was covered by a successful run."""
        return self._done == self._poked

    def poke(self, *, urgent: bool = False) -> int:
        """There is something to do; returns the poke's number at once. urgent cuts a pause short.

        After `close` it stays undone.
        """
        with self._changed:
            self._poked += 1
            self._due = True
            self._urgent = self._urgent or urgent
            if not self._closing:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread.start()
                self._changed.notify_all()
            return self._poked

    def wait(self, poke: int, timeout_s: float) -> bool | None:
        """Wait until that poke is done. False where an attempt for it fails meanwhile, None where the time is over first.

        It tries at once, however long the pause after an earlier failure is.
        """
        with self._changed:
            if self._done >= poke:
                return True
            failures = self._failures
        self.poke(urgent=True)
        with self._changed:
            self._changed.wait_for(lambda: self._done >= poke or self._has_failed(poke, failures), timeout_s)
            return True if self._done >= poke else False if self._has_failed(poke, failures) else None

    def _has_failed(self, poke: int, before: int) -> bool:
        return self._failures > before and self._failed >= poke

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closing)
                if not self._due:
                    return
                self._due = self._urgent = False
                covered, last = self._poked, self._closing
            if self._job():
                pause_s = self._first_pause_s
                with self._changed:
                    self._done = covered
                    self._changed.notify_all()
                continue
            with self._changed:
                self._failed = covered
                self._failures += 1
                self._due = not last
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing or self._urgent, pause_s)
            pause_s = min(2 * pause_s, self._max_pause_s)

    def close(self, timeout_s: float) -> None:
        """Let the job try once more if it is due, then end the thread; waits at most that long."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
