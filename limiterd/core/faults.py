"""Faults: what the kernel's refusals mean, how long to wait before the next try, and when a repair has become a fight.

Every number here bounds something: a refused link is retried at 1, 2, 4 … 60 s, and a limit that foreign hands undo again
and again is repaired at once FIGHT_REPAIRS times a minute, then with the same growing pauses.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from limiterd.core.errors import errno_name
from limiterd.core.model import MINUTE, SECOND, ActionKind, ActionResult, FaultReason

FIRST_RETRY_NS: Final = 1 * SECOND
LONGEST_RETRY_NS: Final = 60 * SECOND
FIGHT_REPAIRS: Final = 5
FIGHT_SPAN_NS: Final = 1 * MINUTE

_BY_ERRNO: Final = {
    errno.EPERM: FaultReason.PERMISSION,
    errno.EACCES: FaultReason.PERMISSION,
    errno.ENOENT: FaultReason.MISSING_MODULE,
    errno.EOPNOTSUPP: FaultReason.MISSING_MODULE,
    errno.EEXIST: FaultReason.FOREIGN_QDISC,
    errno.ETIMEDOUT: FaultReason.NO_ANSWER,
}

_ADDS: Final = frozenset({ActionKind.ADD_ROOT, ActionKind.ADD_LEAF, ActionKind.ADD_FILTER})

REMEDY: Final = {
    FaultReason.PERMISSION: "grant the daemon CAP_NET_ADMIN",
    FaultReason.MISSING_MODULE: "load the kernel's sch_htb and cls_u32 modules",
    FaultReason.FOREIGN_QDISC: "somebody else has just set a root qdisc: tc -s qdisc show",
    FaultReason.NO_ANSWER: "look for a process that holds the kernel's RTNL lock",
    FaultReason.LAZY_COUNTER: "set counter_refresh",
    FaultReason.BYPASS: "find out what sends around the limit",
    FaultReason.FIGHT: "find out who else changes tc on this link",
    FaultReason.OTHER: "see the daemon's log",
}

OPERATION_OF: Final = {
    ActionKind.SAVE_ROOT: "restore",
    ActionKind.DELETE_ROOT: "remove",
    ActionKind.ADD_ROOT: "install",
    ActionKind.ADD_CLASS: "install",
    ActionKind.CHANGE_CLASS: "change",
    ActionKind.DELETE_CLASS: "remove",
    ActionKind.ADD_LEAF: "install",
    ActionKind.CHANGE_LEAF: "change",
    ActionKind.DELETE_LEAF: "remove",
    ActionKind.ADD_FILTER: "install",
    ActionKind.DELETE_FILTER: "remove",
    ActionKind.DELETE_FILTERS: "remove",
    ActionKind.RESTORE_ROOT: "restore",
}


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why a link's wanted state cannot be reached now."""

    reason: FaultReason
    message: str


def obstacle_of(result: ActionResult) -> Blocker:
    """What a failed step means. ENOENT says "kind unknown" only of an add; elsewhere it is a race, told as other."""
    reason = _BY_ERRNO.get(result.errno, FaultReason.OTHER)
    if reason is FaultReason.MISSING_MODULE and result.action.kind not in _ADDS:
        reason = FaultReason.OTHER
    if reason is FaultReason.FOREIGN_QDISC and result.action.kind is not ActionKind.ADD_ROOT:
        reason = FaultReason.OTHER
    action = result.action
    words = f" ({result.message})" if result.message else ""
    return Blocker(
        reason,
        f"{action.interface}: {action.kind.replace('_', ' ')} failed with {errno_name(result.errno)}{words}; {REMEDY[reason]}",
    )


@dataclass(slots=True)
class Backoff:
    """Growing pauses between tries. attempts 0 = nothing failed lately."""

    attempts: int = 0
    retry_at_ns: int = 0

    def failed(self, now_ns: int) -> None:
        """Count a failure and set the time of the next try."""
        pause_ns = min(FIRST_RETRY_NS << min(self.attempts, 16), LONGEST_RETRY_NS)
        self.attempts += 1
        self.retry_at_ns = now_ns + pause_ns

    def hurry(self) -> None:
        """Something changed: try at once, but keep the count (a fight must not reset itself)."""
        self.retry_at_ns = 0

    def reset(self) -> None:
        """It worked."""
        self.attempts = 0
        self.retry_at_ns = 0


@dataclass(slots=True)
class Fight:
    """Counts the repairs of one limit within the last minute."""

    repairs_ns: deque[int] = field(default_factory=deque)

    def repaired(self, now_ns: int) -> bool:
        """Note a repair; True when there were more of them within the span than can be chance."""
        self.repairs_ns.append(now_ns)
        while self.repairs_ns[0] < now_ns - FIGHT_SPAN_NS or len(self.repairs_ns) > FIGHT_REPAIRS + 1:
            self.repairs_ns.popleft()
        return len(self.repairs_ns) > FIGHT_REPAIRS

    def over(self, now_ns: int) -> bool:
        """Whether nothing had to be repaired for the whole span."""
        return not self.repairs_ns or self.repairs_ns[-1] < now_ns - FIGHT_SPAN_NS
