"""What waits for a worker: administrators' work first, then everybody else's in turn.

Rule: nobody's work, however much, stands before an administrator's, or before somebody else's next piece. Pages and questions
take turns; among questions the users do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

PAGES: Final = "pages"
"""Who asks where it is not a user: whoever reads the metrics."""


class _Turns(Generic[T]):
    """Queues by who asks, of which each in turn gives one."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, item: T, who: Hashable) -> None:
        self._queues.setdefault(who, deque()).append(item)

    def pop(self) -> T:
        who = next(iter(self._queues))
        theirs = self._queues.pop(who)
        item = theirs.popleft()
        if theirs:
            self._queues[who] = theirs  # at the end: the others come first
        return item


class JobQueue(Generic[T]):
    """The queue; one thread at a time."""

    def __init__(self) -> None:
        self._first: deque[T] = deque()
        self._pages: _Turns[T] = _Turns()
        self._questions: _Turns[T] = _Turns()
        self._pages_next = False

    def put(self, job: T, who: Hashable, *, first: bool) -> None:
        """Add a job of who asks, as an administrator's where it is to be done first."""
        if first:
            self._first.append(job)
        else:
            (self._pages if who == PAGES else self._questions).put(job, who)

    def pop(self, *, first_only: bool) -> T | None:
        """The next job, of the administrators alone if so wanted; None where there is none."""
        if self._first:
            return self._first.popleft()
        if first_only or not (self._pages or self._questions):
            return None
        self._pages_next = not self._pages_next
        side, other = (self._pages, self._questions) if self._pages_next else (self._questions, self._pages)
        return (side or other).pop()
