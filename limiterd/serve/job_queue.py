"""What waits for a worker: administrators' work first, then everybody else's in turn.

Rule: nobody's questions, however many, stand before an administrator's, or before another user's next one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class JobQueue(Generic[T]):
    """Filled by one thread, emptied by others; any may close it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._first: deque[T] = deque()
        self._others: dict[Hashable, deque[T]] = {}
        """By who asks; in the order in which it is their turn."""
        self._closed = False

    def put(self, job: T, who: Hashable, *, first: bool = False) -> None:
        """Add a job, as an administrator's where it is to be done first."""
        with self._changed:
            (self._first if first else self._others.setdefault(who, deque())).append(job)
            self._changed.notify_all()

    def get(self, *, first_only: bool = False) -> T | None:
        """The next job, waited for; of the administrators alone, if so wanted. None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._first or (self._others and not first_only))
            if self._closed:
                return None
            return self._first.popleft() if self._first else self._next()

    def _next(self) -> T:
        who = next(iter(self._others))
        theirs = self._others.pop(who)
        job = theirs.popleft()
        if theirs:
            self._others[who] = theirs  # at the end: the others come first
        return job

    def close(self) -> None:
        """Let every `get` end; what waits stays undone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
