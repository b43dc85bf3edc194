"""What the engine knows between two steps, and the turn that one step takes.

State is changed in place: a copy of 4 096 links at 10 Hz would cost more than everything else together. It is still
pure: nothing but the arguments of a step decides what becomes of it, so the same inputs give the same state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from limiterd.core.detector import Detector
from limiterd.core.limit_state import LEAVING, LIFTABLE, LimitState
from limiterd.core.model import (
    Action,
    ActionResult,
    Decision,
    Event,
    EventKind,
    Fault,
    FaultReason,
    Firing,
    Journal,
    KernelAbilities,
    Link,
    Now,
    PendingRelease,
    Reason,
    ReleaseReason,
    RootQdisc,
    Rules,
    SavedQdisc,
    Snapshot,
    StrikeRecord,
    TcActual,
)
from limiterd.core.policy import Effective

LinkKey = tuple[str, str]
"""(name, MAC): what a decision is remembered under while its link is away."""


def key_of(link: Link) -> LinkKey:
    """The link's identity over absences and restarts."""
    return (link.name, link.mac)


@dataclass(slots=True)
class RunningCounters:
    """The engine's cumulative counts; keys are the label values of the metric of the same name."""

    detections: Counter[tuple[str, str]] = field(default_factory=Counter)
    limits_applied: Counter[str] = field(default_factory=Counter)
    limits_released: Counter[tuple[str, str]] = field(default_factory=Counter)
    drift_repairs: Counter[str] = field(default_factory=Counter)
    kernel_errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    epochs: Counter[str] = field(default_factory=Counter)
    dropped_samples: int = 0

    def forget(self, name: str) -> None:
        """Drop the counts of a link that is long gone: names made up day after day must not add up."""
        self.limits_applied.pop(name, None)
        self.drift_repairs.pop(name, None)
        for reason in Reason:
            self.detections.pop((name, reason), None)
        for cause in ReleaseReason:
            self.limits_released.pop((name, cause), None)


@dataclass(slots=True)
class State:
    """Everything that outlives a step.

    canonical gives the name of the link that an altname is one of.

    tc holds what was read of links that have a case or a root that is not default. journalled names the decisions that come
    from the journal and wait for the first look at their link, stood those of them whose limits stood in this boot;
    releases are those that wait for their link, at the start or after a rename. recorded: the samples are a recording,
    whose counters know nothing of the limits that stand now.
    """

    detector: Detector
    rules: Rules
    abilities: KernelAbilities
    recorded: bool = False
    links: tuple[Link, ...] = ()
    by_name: dict[str, Link] = field(default_factory=dict)
    by_index: dict[int, Link] = field(default_factory=dict)
    canonical: dict[str, str] = field(default_factory=dict)
    effective: dict[str, Effective] = field(default_factory=dict)
    limit_states: dict[str, LimitState] = field(default_factory=dict)
    absent_limits: dict[LinkKey, Decision] = field(default_factory=dict)
    strike_records: dict[LinkKey, StrikeRecord] = field(default_factory=dict)
    replaced: dict[LinkKey, RootQdisc] = field(default_factory=dict)
    releases: dict[LinkKey, PendingRelease] = field(default_factory=dict)
    journalled: set[LinkKey] = field(default_factory=set)
    stood: set[LinkKey] = field(default_factory=set)
    tc: dict[int, TcActual] = field(default_factory=dict)
    firings: dict[str, Firing] = field(default_factory=dict)
    warnings: dict[tuple[str, str], Fault] = field(default_factory=dict)
    gone_since_ns: dict[str, int] = field(default_factory=dict)
    expiry_told: set[tuple[str, int]] = field(default_factory=set)
    counters: RunningCounters = field(default_factory=RunningCounters)
    paused: bool = False
    wall_seen_ns: int = 0
    calendar_due_wall_ns: int | None = None
    journal_dirty: bool = False

    def journal(self) -> Journal:
        """What has to survive a restart."""
        standing = tuple(c.decision for c in self.limit_states.values() if c.decision is not None and c.stage in LIFTABLE)
        releasing = tuple(pending_release(c) for c in self.limit_states.values() if c.stage in LEAVING)
        return Journal(
            decisions=standing + tuple(self.absent_limits.values()),
            releases=releasing + tuple(self.releases.values()),
            strike_records=tuple(self.strike_records.values()),
            replaced=tuple(SavedQdisc(name, mac, root) for (name, mac), root in self.replaced.items()),
            paused=self.paused,
        )


def pending_release(limit_state: LimitState) -> PendingRelease:
    """What has to be known of a limit that is being removed, to go on with it."""
    reason = limit_state.release_reason or ReleaseReason.POLICY
    return PendingRelease(*key_of(limit_state.link), reason, limit_state.decision, limit_state.release_announced)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is new at a step. Without a snapshot it only settles: plans again from results and from what was read.

    roots, where given, is every visible root qdisc (at start and after a resync); tc are full reads of single links.
    links, where given, are all that are there, of which the snapshot has samples of some only; looked are single links that
    were read anew. tick: a tick whose sample
    failed or was dropped; standing limits are looked after all the same.
    """

    now: Now
    snapshot: Snapshot | None = None
    links: tuple[Link, ...] | None = None
    roots: Mapping[int, RootQdisc] | None = None
    looked: Mapping[int, Link] = field(default_factory=dict)
    tc: Mapping[int, TcActual] = field(default_factory=dict)
    unanswered: frozenset[int] = frozenset()
    results: tuple[ActionResult, ...] = ()
    tick: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """What a step decided: actions for the kernel in order, links to read afterwards, events to tell."""

    actions: tuple[Action, ...] = ()
    reads: frozenset[int] = frozenset()
    events: tuple[Event, ...] = ()
    journal_dirty: bool = False


NOTHING: Final = Output()
"""What nearly every step decides."""


@dataclass(slots=True)
class StepContext:
    """One step in the making. ticking: a tick, with a snapshot or without; rooted: every root qdisc was dumped for it."""

    state: State
    now: Now
    ticking: bool = False
    rooted: bool = False
    actions: list[Action] = field(default_factory=list)
    reads: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)

    def tell(self, kind: EventKind, interface: str, reason: str = "", **detail: object) -> None:
        """Add an event; the policy is the one that applies to the link now."""
        effective = self.state.effective.get(interface)
        policy = effective.policy.name if effective is not None else ""
        self.events.append(Event(kind, self.now.boot_ns, interface, reason, policy, detail))

    def warn(self, interface: str, topic: str, reason: FaultReason, message: str | None) -> None:
        """Raise, change or end (None) one warning about a link; told once."""
        warnings, key = self.state.warnings, (interface, topic)
        before = warnings.get(key)
        if message is None:
            if warnings.pop(key, None) is not None:
                self.tell(EventKind.FAULT_CLEARED, interface, reason, warning=True)
        elif before is None or before.message != message:
            warnings[key] = Fault(interface, reason, message, self.now.wall_ns, warning=True)
            self.tell(EventKind.FOREIGN, interface, reason, message=message)

    def output(self) -> Output:
        """Close the turn."""
        dirty, self.state.journal_dirty = self.state.journal_dirty, False
        if not (dirty or self.actions or self.reads or self.events):
            return NOTHING
        return Output(tuple(self.actions), frozenset(self.reads), tuple(self.events), dirty)
