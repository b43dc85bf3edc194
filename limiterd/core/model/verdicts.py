"""The words for what the detector and the engine say of a link: phases, reasons, events, firings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """What is true of a link now. limited is only ever said of what was read back from the kernel."""

    ABSENT = "absent"
    CONFORMING = "conforming"
    PENDING = "pending"
    LIMITED = "limited"
    EXEMPT = "exempt"
    FAULT = "fault"


class Reason(StrEnum):
    """Why a link was limited."""

    SUSTAINED = "sustained"
    GUARD = "guard"
    OPERATOR = "operator"
    ADOPTED = "adopted"
    """Found standing in the kernel, with nothing in the journal that says why."""


class EpochReason(StrEnum):
    """Why a sample only opened a new epoch."""

    NEW = "new"
    IFINDEX = "ifindex"
    COUNTER = "counter"
    CLOCK = "clock"
    GAP = "gap"
    IMPLAUSIBLE = "implausible"
    RELEASED = "released"
    RELOAD = "reload"


class ReleaseReason(StrEnum):
    """Why a limit was lifted."""

    OVERRIDE = "override"
    OPERATOR = "operator"
    DEMAND_ENDED = "demand_ended"
    MAX_HOLD = "max_hold"
    POLICY = "policy"
    EXIT = "exit"


class FaultReason(StrEnum):
    """Why the kernel cannot be made so now."""

    FOREIGN_QDISC = "foreign_qdisc"
    PERMISSION = "permission"
    MISSING_MODULE = "missing_module"
    FIGHT = "fight"
    NO_ANSWER = "no_answer"
    BYPASS = "bypass"
    LAZY_COUNTER = "lazy_counter"
    OTHER = "other"


class EventKind(StrEnum):
    """One word for each thing that happens; the audit trail, the log and replay use the same."""

    LIMIT = "limit"
    WOULD_LIMIT = "would_limit"
    NOTED = "noted"
    LIMITED = "limited"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"
    POSSIBLE = "possible"
    EPOCH = "epoch"
    RELEASING = "releasing"
    RATE_CHANGED = "rate_changed"
    FAULT = "fault"
    FAULT_CLEARED = "fault_cleared"
    REPAIR = "repair"
    ADOPTED = "adopted"
    RESTORED = "restored"
    OVERRIDE_ACTIVE = "override_active"
    OVERRIDE_ENDED = "override_ended"
    OVERRIDE_EXPIRING = "override_expiring"
    LINK_GONE = "link_gone"
    LINK_BACK = "link_back"
    PAUSED = "paused"
    RESUMED = "resumed"
    UNDRAINED = "undrained"
    FOREIGN = "foreign"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a link; detail holds further fields, JSON-able, for the log and the audit trail."""

    kind: EventKind
    t_ns: int
    interface: str
    reason: str = ""
    policy: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Firing:
    """A verdict of the detector with the figures that led to it.

    a_t_ns and b_t_ns bound the mean (sustained only; equal to t_ns for guard), lowest_slice_bps is the lowest checked
    slice's rate (None where none was checked), mean_bps and the flanks are floor-divided for people, the verdict itself is exact.
    samples are the (t_ns, tx_bytes) of the candidate window, oldest first, ending with the firing sample.
    """

    reason: Reason
    t_ns: int
    a_t_ns: int
    b_t_ns: int
    mean_bps: int
    peak_bps: int
    first_flank_bps: int
    last_flank_bps: int
    lowest_slice_bps: int | None
    excess_bits: int
    threshold_bps: int
    samples: tuple[tuple[int, int], ...] = ()
