"""The life of one limit: a literal table of stages, and what is known of the link that it is on.

    IDLE ──ORDER──► DUE ──SEEN──► STANDING ──LIFT──► DRAINING ──DRAINED──► REMOVING ──GONE──► IDLE
     │               ▲              │                    ▲
     │               ├────LOST──────┘                    │
     └──FOUND──► LEFT┴ORDER      LEFT ───────LIFT────────┘

DUE: a decision stands, the kernel does not show the limit yet (or no more). STANDING: read back, exact. DRAINING: the
rate is raised, the queue empties. REMOVING: our tree goes, filters and classes before the root. LEFT: what an earlier run
left stands under a policy that only observes; it is named and left alone. The stage says what is wanted of the kernel;
whether the kernel complies is always read, and what hinders it is the blocker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from limiterd.core.auto_release import IdleSlices
from limiterd.core.bypass import BypassMeter
from limiterd.core.faults import Backoff, Blocker, Fight
from limiterd.core.model import Decision, Link, Phase, ReleaseReason, TcTree


class Stage(StrEnum):
    """Where a limit is in its life."""

    IDLE = "idle"
    DUE = "due"
    STANDING = "standing"
    DRAINING = "draining"
    REMOVING = "removing"
    LEFT = "left"


class Signal(StrEnum):
    """What moves a limit from one stage to the next."""

    ORDER = "order"
    SEEN = "seen"
    LOST = "lost"
    LIFT = "lift"
    DRAINED = "drained"
    GONE = "gone"
    FOUND = "found"


TRANSITIONS: Final = {
    (Stage.IDLE, Signal.ORDER): Stage.DUE,
    (Stage.IDLE, Signal.LIFT): Stage.DRAINING,
    (Stage.DUE, Signal.SEEN): Stage.STANDING,
    (Stage.DUE, Signal.LIFT): Stage.DRAINING,
    (Stage.STANDING, Signal.LOST): Stage.DUE,
    (Stage.STANDING, Signal.LIFT): Stage.DRAINING,
    (Stage.DRAINING, Signal.ORDER): Stage.DUE,
    (Stage.DRAINING, Signal.DRAINED): Stage.REMOVING,
    (Stage.DRAINING, Signal.GONE): Stage.IDLE,
    (Stage.REMOVING, Signal.ORDER): Stage.DUE,
    (Stage.REMOVING, Signal.GONE): Stage.IDLE,
    (Stage.IDLE, Signal.FOUND): Stage.LEFT,
    (Stage.LEFT, Signal.ORDER): Stage.DUE,
    (Stage.LEFT, Signal.LIFT): Stage.DRAINING,
    (Stage.LEFT, Signal.GONE): Stage.IDLE,
}

HOLDING: Final = frozenset({Stage.DUE, Stage.STANDING})
LIFTABLE: Final = HOLDING | {Stage.LEFT}
"""What an operator can release."""
LEAVING: Final = frozenset({Stage.DRAINING, Stage.REMOVING})


@dataclass(slots=True)
class LimitState:
    """Everything known of a link that is, was just, or is about to be limited.

    tree_standing is the tree last read back as exact: a difference from it is drift, a difference only from the new
    wish is a change. fired_t_ns is the stamp of the firing sample until the limit was read back. put_back: the decision
    comes from the journal or from before an absence; found_whole says whether its limit still stood at the first look,
    stood whether it has since this boot: what has taken its place then is no prey of a takeover. found_bps is the rate of a
    whole limit that was found without a decision.
    awaiting: the kernel was changed, or did not answer, and was not read since; fresh: it was read in this turn.
    asked_again: the number of failed tries at which the kernel was last asked again for what it lacked.
    """

    link: Link
    stage: Stage = Stage.IDLE
    decision: Decision | None = None
    tree_wanted: TcTree | None = None
    tree_standing: TcTree | None = None
    since_boot_ns: int = 0
    fired_t_ns: int | None = None
    put_back: bool = False
    found_whole: bool | None = None
    found_bps: int | None = None
    stood: bool = False
    awaiting: bool = True
    fresh: bool = False
    read_t_ns: int = 0
    blocker: Blocker | None = None
    obstacle_since_wall_ns: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    asked_again: int = 0
    repair_loop: Fight = field(default_factory=Fight)
    quiet: IdleSlices = field(default_factory=IdleSlices)
    bypass: BypassMeter = field(default_factory=BypassMeter)
    release_reason: ReleaseReason | None = None
    release_announced: bool = False
    lifted_t_ns: int = 0
    drain_until_ns: int | None = None

    def signal(self, signal: Signal) -> None:
        """Move along the table. Raises KeyError for a signal that its stage does not know: a defect of the caller."""
        self.stage = TRANSITIONS[self.stage, signal]

    def impose(self) -> tuple[Decision, TcTree]:
        """What a held limit always has: its decision and the tree that it wants. Raises ValueError for any other case."""
        if self.decision is None or self.tree_wanted is None:
            raise ValueError(f"{self.link.name}: no limit is held in stage {self.stage}")
        return self.decision, self.tree_wanted

    def phase(self, *, pending: bool, exempt: bool) -> Phase:
        """The link's phase: the limit's own part first, then the detector's."""
        if self.blocker is not None:
            return Phase.FAULT
        if self.stage is Stage.STANDING:
            return Phase.LIMITED
        if self.stage is Stage.DUE:
            return Phase.PENDING
        return calm_phase(pending=pending, exempt=exempt)


def calm_phase(*, pending: bool, exempt: bool) -> Phase:
    """The phase of a link that no limit is on or due on."""
    if exempt:
        return Phase.EXEMPT
    return Phase.PENDING if pending else Phase.CONFORMING
