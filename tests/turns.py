"""Who of several workers may run a test now: many at once, or one that has the machine for itself."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """Two locks in a directory that all workers share: `door` is passed one at a time, `room` is shared or had alone.

    Whoever wants the room alone waits for it in the door, so that nobody else gets in meanwhile.
    """

    def __init__(self, place: Path) -> None:
        self._door = (place / "door").open("w")
        self._room = (place / "room").open("w")

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Be in the room during the block."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
