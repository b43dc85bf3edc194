"""The last firing of each link, found in the audit trail without reading it all for each question.

The first question reads the trail once, from its end; later ones read what has been added since. What is kept is a number
an interface: the entry itself, with its samples and evidence, is read from the one file that holds it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from limiterd.core.model import EventKind, Reason
from limiterd.store import hash_chain as chain
from limiterd.store.audit import AuditTrail

FIRINGS: Final = (EventKind.LIMIT, EventKind.WOULD_LIMIT, EventKind.NOTED)
MOST_LINKS: Final = 16_384
"""Of so many links the last firing is known; those that fired longest ago are forgotten first."""
_MARKS: Final = tuple(f'"kind":"{kind}"'.encode() for kind in FIRINGS)


class LastFirings:
    """Finds them; any thread may ask."""

    def __init__(self, directory: str | Path, trail: AuditTrail) -> None:
        """Nothing is read yet."""
        self._directory = Path(directory)
        self._trail = trail
        self._lock = threading.Lock()
        self._seqs: dict[str, int] = {}
        self._read_up_to = 0

    def of(self, interface: str) -> chain.Entry | None:
        """The entry of the link's last firing; what an operator limited is none. Raises EnvironmentFault(operation="read")."""
        waiting = self._trail.waiting()
        with self._lock:
            self._catch_up(waiting)
            seq = self._seqs.get(interface)
        if seq is None:
            return None
        return chain.parse_line(waiting[seq]) if seq in waiting else chain.entry(self._directory, seq)

    def _catch_up(self, waiting: dict[int, bytes]) -> None:
        found: dict[str, int] = {}
        newest = self._read_up_to
        with chain.opened(self._directory) as parts:
            for line in chain.newest_first(parts, waiting):
                seq = chain.seq_of(line)
                if seq is None:
                    continue
                if seq <= self._read_up_to or len(found) >= MOST_LINKS:
                    break
                newest = max(newest, seq)
                entry = chain.parse_line(line) if any(mark in line for mark in _MARKS) else None
                if entry is not None and entry.kind in FIRINGS and entry.fields.get("reason") != Reason.OPERATOR:
                    found.setdefault(entry.interface, entry.seq)
        kept = {name: seq for name, seq in self._seqs.items() if name not in found}
        ordered = sorted((kept | found).items(), key=lambda item: item[1])
        self._seqs = dict(ordered[-MOST_LINKS:])
        self._read_up_to = newest
