"""One job in one thread: done again whenever there is something new, and with back-off while it fails.

For work that may block on a disk and must never hold up who asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

RETRY_S: Final = (1.0, 30.0)
"""The first and the longest pause between attempts."""


class Background:
    """A daemon thread that runs `job` after each poke; the job tells whether it succeeded and handles its own errors."""

    def __init__(self, name: str, job: Callable[[], bool], retry_s: tuple[float, float] = RETRY_S) -> None:
        self._name = name
        self._job = job
        self._first_pause_s, self._max_pause_s = retry_s
        self._changed = threading.Condition()
        self._due = False
        self._urgent = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def poke(self, *, urgent: bool = False) -> None:
        """There is something to do; returns at once. urgent cuts a pause short. After `close` it stays undone."""
        with self._changed:
            self._due = True
            self._urgent = self._urgent or urgent
            if self._closing:
                return
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closing)
                if not self._due:
                    return
                self._due = self._urgent = False
                last = self._closing
            if self._job():
                pause_s = self._first_pause_s
                continue
            with self._changed:
                self._due = not last
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
