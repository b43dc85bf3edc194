"""What outlives a restart: decisions, strikes, roots to be restored."""

from __future__ import annotations

from dataclasses import dataclass, field

from limiterd.core.model.tcobjects import RootQdisc
from limiterd.core.model.verdicts import Reason, ReleaseReason


@dataclass(frozen=True, slots=True)
class Decision:
    """That a link is limited: journalled, and put back after a restart, a reboot or a short absence of the link.

    rate_bps is the rate decided (None: the policy's own, which a reload may change). A manual decision stands until a
    manual release or an override. override names the threshold override under which it was made ("" for none): another
    one lifts it, the same one does not. stood: its limit was once read back.
    """

    interface: str
    mac: str
    policy: str
    reason: Reason
    since_wall_ns: int
    strikes: int
    rate_bps: int | None = None
    manual: bool = False
    forced: bool = False
    note: str = ""
    by: str = ""
    override: str = ""
    stood: bool = False


@dataclass(frozen=True, slots=True)
class PendingRelease:
    """A release that was decided and is not finished: whatever stands goes, also after a restart.

    decision None: what goes was found without one. announced: that the link runs free was told.
    """

    interface: str
    mac: str
    reason: ReleaseReason
    decision: Decision | None = None
    announced: bool = False


@dataclass(frozen=True, slots=True)
class StrikeRecord:
    """Strikes that outlive a release, until forget_wall_ns."""

    interface: str
    mac: str
    strikes: int
    forget_wall_ns: int


@dataclass(frozen=True, slots=True)
class SavedQdisc:
    """A foreign root that a takeover replaced, to be restored exactly."""

    interface: str
    mac: str
    root: RootQdisc


@dataclass(frozen=True, slots=True)
class Journal:
    """What the daemon remembers over a restart. The kernel's state is not in it: that is read.

    same_boot: it was written since the machine last booted, so that its limits may still stand.
    """

    decisions: tuple[Decision, ...] = ()
    strike_records: tuple[StrikeRecord, ...] = ()
    replaced: tuple[SavedQdisc, ...] = ()
    paused: bool = False
    releases: tuple[PendingRelease, ...] = ()
    same_boot: bool = field(default=False, compare=False)
