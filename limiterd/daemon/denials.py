"""Refused questions in the log and in a trail of their own: every one that people send, no flood that a program sends.

Of each account the first few of a minute are told one by one, the rest of them as one line when the minute is over. Whoever
may read the socket is refused as often as they like: their entries have files of their own (BOUNDS), so that no number of them
moves a decision out of the audit trail.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from limiterd.daemon.actor import by
from limiterd.serve.protocol import Call
from limiterd.store.audit import Bounds

SPAN_S: Final = 60.0
AT_ONCE: Final = 16
MOST_ACCOUNTS: Final = 256
_OTHERS: Final = -1
"""Stands for all accounts beyond MOST_ACCOUNTS, together."""

DIRECTORY: Final = "refused"
"""Where the trail of refusals stands, under the state directory."""
BOUNDS: Final = Bounds(file_bytes=1 << 20, kept_files=3, queued_lines=512, queued_bytes=1 << 20)

Tell = Callable[[str, str, str, Mapping[str, object], str], None]


@dataclass(slots=True)
class _Tally:
    """One account's refusals since the first of this span."""

    actor: str
    since_s: float
    told: int = 0
    more: Counter[str] = field(default_factory=Counter)


class Denials:
    """Counts and tells; any thread may."""

    def __init__(self, tell: Tell, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._tallies: dict[int, _Tally] = {}

    def note(self, call: Call) -> None:
        """Somebody was refused."""
        if self._is_told(call):
            actor, concerns = by(call.peer), _concerned(call)
            text = f"{actor} was refused {call.verb}" + (f" of {concerns}" if concerns else "")
            self._tell("refused", _link(call), text, {"by": actor, "verb": call.verb, "id": concerns}, "warning")

    def _is_told(self, call: Call) -> bool:
        with self._lock:
            account = call.peer.account
            if account not in self._tallies and len(self._tallies) >= MOST_ACCOUNTS:
                account = _OTHERS
            actor = "further users" if account == _OTHERS else by(call.peer)
            counters = self._tallies.setdefault(account, _Tally(actor, self._clock_s()))
            if counters.told < AT_ONCE:
                counters.told += 1
                return True
            counters.more[call.verb] += 1
            return False

    def reconcile(self, *, everything: bool = False) -> None:
        """Tell of the spans that are over, or of all; once a second, and at the end."""
        now_s = self._clock_s()
        with self._lock:
            over = [account for account, counters in self._tallies.items() if everything or now_s - counters.since_s >= SPAN_S]
            ended = [self._tallies.pop(account) for account in over]
        for counters in ended:
            if counters.more:
                verbs = ", ".join(f"{verb} {count}" for verb, count in counters.more.most_common())
                count = counters.more.total()
                text = f"{counters.actor}: refused {count} more times within {now_s - counters.since_s:.0f} s: {verbs}"
                self._tell("refused", "", text, {"by": counters.actor, "count": count, "verbs": dict(counters.more)}, "warning")


def _printable(value: object, longest: int) -> str:
    return value[:longest] if isinstance(value, str) and value.isprintable() else ""


def _link(call: Call) -> str:
    """The link that was named, whatever that is; theirs to choose, and cut where it is none."""
    return _printable(call.args.get("interface"), 15)


def _concerned(call: Call) -> str:
    """The request or the override that was named."""
    record = call.args.get("record")
    return _printable(record.get("id") if isinstance(record, Mapping) else call.args.get("id"), 64)
