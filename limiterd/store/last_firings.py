"""The last firing of each link, found in the audit trail without reading it all for each question.

The first question reads the trail once, from its end; later ones read what has been added since. What is kept is a number
an interface: the entry itself, with its samples and evidence, is read from the one file that holds it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.model import EventKind, Reason
from limiterd.store import hash_chain as chain
from limiterd.store.audit import AuditTrail

FIRINGS: Final = (EventKind.LIMIT, EventKind.WOULD_LIMIT, EventKind.NOTED)
MOST_LINKS: Final = 16_384
"""Of so many links the last firing is known; those that fired longest ago are forgotten first."""
_MARKS: Final = tuple(f'"kind":"{kind}"'.encode() for kind in FIRINGS)

_BY_HAND: Final = f'"reason":"{Reason.OPERATOR}"'.encode()


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
                interface = _fired(line)
                if interface is not None:
                    found.setdefault(interface, seq)
        kept = {name: seq for name, seq in self._seqs.items() if name not in found}
        ordered = sorted((kept | found).items(), key=lambda item: item[1])
        self._seqs = dict(ordered[-MOST_LINKS:])
        self._read_up_to = newest


def _fired(line: bytes) -> str | None:
    """The link whose firing this line tells of. Only the line's head is parsed: what follows may be a thousand times as long."""
    if not any(mark in line for mark in _MARKS):
        return None
    head, _, rest = line.partition(b',"fields":')
    try:
        value = jsonsafe.parse(head + b"}")
    except ValueError:
        return None
    if not isinstance(value, dict) or value.get("kind") not in FIRINGS:
        return None
    by_hand = _BY_HAND in rest and (entry := chain.parse_line(line)) is not None and entry.fields.get("reason") == Reason.OPERATOR
    interface = value.get("interface")
    return interface if isinstance(interface, str) and not by_hand else None
