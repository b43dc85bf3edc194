"""What was answered is durable: before anybody hears "done", the change and its entry of the audit trail are on the disk.

Two orders. What people put on record (overrides, requests, decisions) is on the disk before it takes effect: where the disk
refuses nothing changes. An operator's commands take effect first, because a full disk must not keep a link limited;
their writes go side by side and are waited for a bounded time, then the answer says that the effect might not outlive a crash.

Everything here waits for the disk: in the control server's workers, never in the loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from limiterd.core.errors import EnvironmentFault, NotDurableError
from limiterd.daemon.event_log import EventLog, Log, log_act
from limiterd.store.audit import AuditTrail
from limiterd.store.journal import JournalStore

COMMAND_S: Final = 2.0
RECORD_S: Final = 8.0
"""How long the disk is waited for."""


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did: one entry of the audit trail and one line of the log."""

    kind: str
    interface: str
    text: str
    fields: Mapping[str, object]


class Durability:
    """Waits for the journal and the audit trail."""

    def __init__(self, log: Log, audit: AuditTrail, journal: JournalStore, event_log: EventLog) -> None:
        self._log = log
        self._audit = audit
        self._journal = journal
        self._event_log = event_log

    def record(self, *acts: Act) -> None:
        """Put acts into the trail, and into the log once they are on the disk.

        Raises EnvironmentFault where they are not: the caller changes nothing then. The entries may still reach the disk later.
        """
        lost = self._lost
        for act in acts:
            self._audit.append(act.kind, act.interface, {"text": act.text, **act.fields})
        self._wait_for_trail(RECORD_S, lost)
        for act in acts:
            log_act(self._log, act.kind, act.interface, act.text, act.fields)

    @contextmanager
    def command(self) -> Iterator[None]:
        """Around what takes effect first: waits until everything that it led to is on the disk.

        Raises NotDurableError where that is not so in time.
        """
        lost = self._lost
        yield
        until_s = time.monotonic() + COMMAND_S
        try:
            self._event_log.wait(COMMAND_S)
            self._wait_for_trail(until_s - time.monotonic(), lost)
            self._journal.wait(until_s - time.monotonic())
        except EnvironmentFault as fault:
            raise NotDurableError(
                f"this took effect, but it is not on the disk yet: {fault}; limiterd goes on trying, and until it succeeds "
                "a crash could undo it or leave it out of the audit trail"
            ) from fault

    def _wait_for_trail(self, timeout_s: float, lost: int) -> None:
        self._audit.wait(timeout_s)
        if self._lost != lost:
            raise EnvironmentFault("the audit trail's queue was full, so its entry is lost", operation="write")

    @property
    def _lost(self) -> int:
        return self._audit.lost + self._event_log.lost
