"""Whose account a user id belongs to: /etc/subuid gives one account 65 536 further ids, so bounds of each id alone bound nothing.

An id in a range of /etc/subuid counts as the range's owner. Ranges of root, and of owners that the user database does not
know, are accounts of their own, each named by its first id: nothing that runs under a subordinate id of root is root.
"""

from __future__ import annotations

import bisect
import pwd
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from limiterd.core.errors import EnvironmentFault
from limiterd.files import read_bounded

SUBUID: Final = Path("/etc/subuid")
_MAX_BYTES: Final = 1 << 20
_MAX_ID: Final = 1 << 32
_LOOK_AGAIN_S: Final = 2.0

Range = tuple[int, int, int]
"""The first id, the one after the last, the account."""


def _uid_of(owner: str) -> int | None:
    try:
        return pwd.getpwuid(int(owner)).pw_uid if owner.isascii() and owner.isdecimal() else pwd.getpwnam(owner).pw_uid
    except (KeyError, OverflowError):
        return None


def ranges_of(text: str, uid_of: Callable[[str], int | None] = _uid_of) -> list[Range]:
    """The ranges of a file as subuid(5) describes it, ascending and apart; lines that are none are left out.

    Where two ranges share ids, those are the one's that begins first.
    """
    found: list[Range] = []
    known: dict[str, int | None] = {}
    for line in text.splitlines():
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if not (first.isascii() and count.isascii() and first.isdecimal() and count.isdecimal()):
            continue
        begin, end = int(first), int(first) + int(count)
        if 0 < begin < end <= _MAX_ID:
            uid = known[owner] if owner in known else known.setdefault(owner, uid_of(owner))
            found.append((begin, end, uid or begin))
    apart: list[Range] = []
    for begin, end, account in sorted(found):
        least = max(begin, apart[-1][1] if apart else 0)
        if least < end:
            apart.append((least, end, account))
    return apart


class Accounts:
    """The ranges in force. `refresh` may wait for files and the user database; `of` never does. Any thread may."""

    def __init__(self, path: Path = SUBUID, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock_s = clock_s
        self._looked_s = -_LOOK_AGAIN_S
        self._stamp: tuple[int, int, int] | None = None
        self._ranges: list[Range] = []

    def refresh(self) -> None:
        """Read the file again if it has changed; at most every few seconds. What cannot be read changes nothing."""
        now_s = self._clock_s()
        if now_s - self._looked_s < _LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        try:
            found = self._path.stat()
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp != self._stamp:
                data, _ = read_bounded(self._path, _MAX_BYTES) or (b"", True)
                self._ranges, self._stamp = ranges_of(data.decode("utf-8", "replace")), stamp
        except FileNotFoundError:
            self._ranges, self._stamp = [], None
        except (OSError, EnvironmentFault):
            return

    def of(self, uid: int) -> int:
        """The account of a user id."""
        at = bisect.bisect_right(self._ranges, (uid, _MAX_ID + 1, 0)) - 1
        return self._ranges[at][2] if at >= 0 and uid < self._ranges[at][1] else uid
