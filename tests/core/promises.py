"""The promises of the design, by number, held against one machine: at each step of the daemon, each event and each turn.

Ten is about threads and not checked here. What is checked never asks the engine what it believes: the kernel's own state,
the samples that were handed out and the deeds of others are noted independently.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

from limiterd.core.htb_tree import LEAF_OF
from limiterd.core.limit_state import HOLDING
from limiterd.core.model import (
    HANDLE_ROOT,
    SECOND,
    Action,
    ActionKind,
    ActionResult,
    Detect,
    Event,
    EventKind,
    FaultReason,
    Filter,
    ForeignQdisc,
    HtbClass,
    Leaf,
    Link,
    LinkView,
    Now,
    Phase,
    Reason,
    RootQdisc,
    Snapshot,
)
from limiterd.core.plan import OUR_CLASSES
from limiterd.core.policy import OverrideState, effective, override_state
from limiterd.core.schedule import EXPIRY_NOTICES_NS
from limiterd.core.u32_filters import OUR_PRIOS
from limiterd.serve.metrics import render
from tests.core.reference import Sample, is_dropped, opens, over_the_line_bits, sustained
from tests.premises import Premises

SETTLED_TICKS: Final = 12
"""One read-back period and a tick: by then whatever nobody hinders is done."""
CALM_TICKS: Final = 130
_FIRINGS: Final = frozenset({EventKind.LIMIT, EventKind.WOULD_LIMIT, EventKind.NOTED})
_STRETCHES: Final = (30, 60, 120, 240, 480)
"""How many of the latest samples are searched for a witness: the definition's own search is cubic."""


@dataclass
class Promises:
    """One machine under watch."""

    world: Premises
    reached: Counter[str]
    ticks: int = 0
    """Turns of the daemon since the beginning."""
    calm_since: int = 0
    patient: bool = False
    """Even the longest pause between two tries is over."""
    operator: bool = False
    """An operator's command is at work."""
    unheard: bool = False
    """Others did something of which the daemon was told nothing."""
    refusals: int = 0
    """Steps that the kernel is going to refuse."""
    looked: Now | None = None
    history: dict[tuple[int, int], list[Sample]] = field(default_factory=dict)
    detects: dict[str, Detect] = field(default_factory=dict)
    judged: set[tuple[str, int]] = field(default_factory=set)
    """(reason, since) of every decision that had its cause."""
    ours: set[int] = field(default_factory=set)
    """Links on which our root has ever stood, whoever put it there."""
    refused: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    executor: defaultdict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """When (tick, ns) others touched a link."""
    roots: dict[int, RootQdisc] = field(default_factory=dict)
    """The roots that links had before the daemon put its own there, unless others touched them since."""
    saved: defaultdict[int, list[RootQdisc]] = field(default_factory=lambda: defaultdict(list))
    owed: dict[int, RootQdisc] = field(default_factory=dict)
    """Roots that the daemon has saved and not put back."""
    last: dict[int, tuple[Action, int]] = field(default_factory=dict)
    silent_since: int | None = None
    _carried: bool = True

    def __post_init__(self) -> None:
        self.world.samplers.append(self.sampled)
        self.sampled(self.world.snapshot())
        self.world.listeners.append(self.told)
        self.world.kernel.before_step = self.before
        self.world.kernel.after_step = self.after

    # ---- what is noted ----

    def disturb(self) -> None:
        """Something happened that the daemon may need a moment for."""
        self.calm_since, self.patient = self.ticks, False

    def touched(self, ifindex: int) -> None:
        """Others changed something on the link."""
        self.executor[ifindex].append((self.ticks, self.world.now.boot_ns))
        self.roots.pop(ifindex, None)
        if self.world.kernel.shows(ifindex).ours:
            self.ours.add(ifindex)
        self.disturb()

    def restarted(self) -> None:
        """The daemon knows no sample any more."""
        self.history.clear()
        self.detects.clear()

    def sampled(self, snapshot: Snapshot) -> None:
        """A snapshot is handed out; where detection starts afresh by now, only the last sample before it still counts."""
        state = self.world.state
        for link, tx_bytes in zip(snapshot.links, snapshot.tx_bytes, strict=True):
            samples = self.history.setdefault((link.ifindex, link.incarnation), [])
            applies = state.effective.get(link.name)
            if applies is not None and self.detects.get(link.name) != applies.detect:
                self.detects[link.name] = applies.detect
                del samples[:-1]
            sample, last = Sample(snapshot.t_ns, tx_bytes, link.ifindex, link.incarnation), samples[-1] if samples else None
            sampling = self.world.controller.rules.config.sampling
            if last is None or opens(last, sample, sampling) or not is_dropped(last, sample, sampling):
                samples.append(sample)  # dropped is what a command samples at the instant of the last tick

    def before(self, action: Action) -> None:
        """The daemon is about to take a step."""
        ifindex = action.ifindex
        if ifindex not in self.world.kernel.links:
            return
        self._carried = self.world.kernel.carries(ifindex)
        self.promise_3_foreign_objects_are_left_alone(action)
        root = self.world.kernel.shows(ifindex).root
        if action.kind is ActionKind.ADD_ROOT and ifindex not in self.roots and root is not None:
            self.roots[ifindex] = self.owed.get(ifindex, root)

    def after(self, action: Action, result: ActionResult) -> None:
        """The daemon has taken a step."""
        ifindex = action.ifindex
        if result.errno:
            self.refused[ifindex].add(result.errno)
            self.disturb()
            self.refusals -= result.message == "refused on request"
        if ifindex not in self.world.kernel.links:
            return
        if self.world.kernel.shows(ifindex).ours:
            self.ours.add(ifindex)
        if action.kind is ActionKind.SAVE_ROOT and not result.errno and isinstance(action.item, RootQdisc):
            self.saved[ifindex].append(action.item)
            self.owed[ifindex] = action.item
            self.reached["a root taken over"] += 1
        elif action.kind is ActionKind.RESTORE_ROOT and not result.errno:
            self.owed.pop(ifindex, None)
            self.reached["a root put back"] += 1
        elif action.kind is ActionKind.DELETE_ROOT and result.errno and action.item != HANDLE_ROOT:
            self.owed.pop(ifindex, None)
        self.last[ifindex] = (action, result.errno)
        self.promise_1_no_black_hole(ifindex)

    def told(self, event: Event) -> None:
        """The daemon tells something."""
        if event.kind in _FIRINGS:
            self.promise_2_observed_excess_alone(event)
        if event.kind is EventKind.FAULT:
            self.a_fault_has_a_cause(event)
        if event.kind is EventKind.RELEASED:
            self._released(event.interface)

    def _released(self, name: str) -> None:
        """Where others have put a root in the place of ours, it stays, and nothing is owed any more."""
        for link in self.world.links:
            if link.name == name and self.world.kernel.shows(link.ifindex).foreign_root is not None:
                self.owed.pop(link.ifindex, None)

    # ---- by number ----

    def promise_1_no_black_hole(self, ifindex: int) -> None:
        """After every single step of the daemon's, a link that carried traffic carries it."""
        assert self.world.kernel.carries(ifindex) or not self._carried, ifindex

    def promise_2_observed_excess_alone(self, event: Event) -> None:
        """Every firing is one by the definition too, on the samples of this link since the daemon's start."""
        if event.kind is EventKind.LIMIT:
            self.judged.add((event.reason, self.world.now.wall_ns))
        if event.reason == Reason.OPERATOR:
            assert self.operator, event
            return
        link = self.world.state.by_name[event.interface]
        applies = self.world.state.effective[event.interface]
        samples = self.history[link.ifindex, link.incarnation]
        assert samples[-1].t_ns == event.t_ns, event
        epoch = self._epoch(samples)
        if event.reason == Reason.GUARD:
            assert over_the_line_bits(epoch, applies.detect.threshold_bps) > applies.detect.guard.burst_bits, event
        else:
            assert any(sustained(epoch[-count:], applies.detect) for count in _STRETCHES), event
        if not (event.reason == Reason.GUARD and event.kind is EventKind.NOTED):
            del samples[:-1]

    def _epoch(self, samples: list[Sample]) -> list[Sample]:
        sampling = self.world.controller.rules.config.sampling
        start = len(samples) - 1
        while start > 0 and opens(samples[start - 1], samples[start], sampling) is None:
            start -= 1
        return samples[start:]

    def promise_2_every_decision_had_its_cause(self) -> None:
        """Whoever is limited fired, was limited by an operator, or had our root when the daemon came."""
        for case in self.world.state.limit_states.values():
            decision = case.decision
            if decision is None or case.stage not in HOLDING or case.link not in self.world.links:
                continue
            if decision.reason is Reason.ADOPTED:
                assert case.link.ifindex in self.ours, decision
            else:
                assert (decision.reason, decision.since_wall_ns) in self.judged, decision

    def promise_3_foreign_objects_are_left_alone(self, action: Action) -> None:
        """No step of the daemon's touches what is not its own, but for a takeover, after saving that very root."""
        item, (before, failed) = action.item, self.last.get(action.ifindex, (action, 0))
        if action.kind is ActionKind.DELETE_ROOT and item != HANDLE_ROOT:
            applies = self.world.state.effective[action.interface]
            assert applies.policy.foreign_qdisc is ForeignQdisc.TAKEOVER, action
            assert before.kind is ActionKind.SAVE_ROOT, before
            assert not failed, before
            assert isinstance(before.item, RootQdisc), before
            assert before.item.handle == item, (before, action)
        elif action.kind is ActionKind.RESTORE_ROOT:
            assert item in self.saved[action.ifindex] or not self.known(action.ifindex), action
        elif isinstance(item, HtbClass):
            assert item.classid in OUR_CLASSES, action
        elif isinstance(item, Leaf):
            assert item.parent in LEAF_OF, action
        elif isinstance(item, Filter):
            assert item.prio in OUR_PRIOS, action
        elif action.kind is ActionKind.DELETE_CLASS:
            assert item in OUR_CLASSES, action
        elif action.kind is ActionKind.DELETE_FILTERS:
            assert item in OUR_PRIOS, action

    def promise_7_limited_means_read_back(self) -> None:
        """Whom status calls limited, the kernel limits to just that rate, up to what nobody could have read yet."""
        if self.silent_since is not None and self.ticks - self.silent_since > SETTLED_TICKS:
            assert all(view.phase is not Phase.LIMITED for view in self.views())
            return
        for view in self.views():
            if view.phase is Phase.LIMITED and self.quiet(view.ifindex):
                tree = self.world.kernel.shows(view.ifindex).tree
                assert tree is not None, view
                assert tree.rate_bps == view.limit_bps, view

    def promise_8_the_root_of_before_comes_back(self) -> None:
        """A link that is not limited any more has the very root that it had, unless others have touched it meanwhile."""
        for link in self.world.links:
            if link.ifindex not in self.roots or link.name in self.world.state.limit_states or not self.seen(link):
                continue
            found = self.world.kernel.shows(link.ifindex)
            if not found.ours:
                assert found.root == self.roots.pop(link.ifindex), link

    def promise_9_what_has_expired_never_applies(self) -> None:
        """At the last look at the clock just those overrides applied that were to, and every one of them was active."""
        if self.looked != self.world.now:
            return
        for name, applies in self.world.state.effective.items():
            assert applies == effective(self.world.controller.rules, name, self.looked.wall_ns)
            if applies.override is not None:
                state = override_state(applies.override, self.world.controller.rules.host, self.looked.wall_ns)
                assert state is OverrideState.ACTIVE, (name, applies.override)

    def promise_11_memory_is_bounded(self) -> None:
        """What is known is about links that are there, or were lately."""
        state, world = self.world.state, self.world
        count = len(state.links)
        for known in (state.limit_states, state.effective, state.by_name):
            assert len(known) <= count
        assert len(state.tc) <= count
        names = set(state.by_name) | set(state.gone_since_ns)
        assert {interface for interface, _ in state.warnings} <= set(state.by_name)
        assert set(state.firings) <= names
        assert {name for name, _ in state.counters.detections} <= names
        assert set(state.counters.limits_applied) <= names
        assert set(state.counters.drift_repairs) <= names
        assert len(state.expiry_told) <= len(EXPIRY_NOTICES_NS) * len(world.controller.rules.overrides)
        assert len(state.absent_limits) + len(state.strike_records) + len(state.replaced) <= 3 * len(world.kernel.sent) + 3

    def promise_12_a_fault_shows_everywhere(self) -> None:
        """Phase fault is in status, in a metric and in the log; so is a problem of the daemon's own."""
        status = self.world.status()
        faulty = [view.interface for view in status.links if view.phase is Phase.FAULT]
        if not faulty and not status.faults:
            return
        page = render(status)[0].decode()
        shown = {(fault.interface, fault.reason) for fault in status.faults if not fault.warning}
        assert {interface for interface, _ in shown if interface} >= set(faulty)
        for interface, reason in shown:
            if interface:
                assert f'limiterd_faults{{interface="{interface}",reason="{reason}"}} 1' in page
        logged = {fields.get("interface") for _, event, fields in self.world.records.lines if event == "fault"}
        assert logged >= set(faulty)

    # ---- faults, and their end ----

    def a_fault_has_a_cause(self, event: Event) -> None:
        """What is told as a fault was done to the daemon."""
        link = self.world.state.by_name[event.interface]
        refused, executor = self.refused[link.ifindex], self.executor[link.ifindex]
        root = self.world.kernel.shows(link.ifindex).foreign_root if link.ifindex in self.world.kernel.links else None
        lately = [t_ns for _, t_ns in executor if self.world.now.boot_ns - t_ns <= 61 * SECOND]
        assert {
            FaultReason.FOREIGN_QDISC: root is not None or bool(lately) or errno.EEXIST in refused,
            FaultReason.PERMISSION: errno.EPERM in refused,
            FaultReason.MISSING_MODULE: errno.ENOENT in refused,
            FaultReason.NO_ANSWER: self.world.kernel.silent,
            FaultReason.FIGHT: len(lately) >= 5,
            FaultReason.OTHER: bool(refused or lately or self.world.store.full or self.world.kernel.silent),
        }[FaultReason(event.reason)], event

    def calm_converges(self) -> None:
        """After thirteen calm seconds every decision stands in the kernel or shows as a fault, and nothing else of ours is there.

        When the longest pause between two tries is over too, only what goes on can still be a fault.
        """
        world = self.world
        if self.ticks - self.calm_since < CALM_TICKS or world.kernel.silent or world.blind or self.refusals or self.unheard:
            return
        for view in self.views():
            case = world.state.limit_states.get(view.interface)
            wanted = case is not None and case.stage in HOLDING
            actual = world.kernel.shows(view.ifindex)
            if view.phase is Phase.FAULT:
                assert not self.patient or actual.foreign_root is not None or world.store.full, view
                continue
            assert wanted == actual.ours, view
            if wanted:
                assert view.phase is Phase.LIMITED

    def the_journal_is_the_decisions(self) -> None:
        """With room on the disk it holds exactly what stands or waits."""
        if not self.world.store.full and self.world.store.waiting is None:
            kept, known = self.world.disk, self.world.state.journal()
            assert (kept.decisions, kept.replaced, kept.paused) == (known.decisions, known.replaced, known.paused)
            assert set(known.strike_records) <= set(kept.strike_records)  # what a start found expired goes with the next change

    # ---- all of it ----

    def check(self) -> None:
        """Everything that has to hold between two turns."""
        self.promise_2_every_decision_had_its_cause()
        self.promise_7_limited_means_read_back()
        self.promise_8_the_root_of_before_comes_back()
        self.promise_9_what_has_expired_never_applies()
        self.promise_11_memory_is_bounded()
        self.promise_12_a_fault_shows_everywhere()
        self.calm_converges()
        self.the_journal_is_the_decisions()

    def tick(self, count: int = 1) -> None:
        """Let the daemon take so many turns."""
        for _ in range(count):
            self.ticks += 1
            self.world.tick()
            self.looked = self.world.now

    def quiet(self, ifindex: int) -> bool:
        """Whether the daemon has had the time to see what others did last on the link."""
        return not self.executor[ifindex] or self.ticks - self.executor[ifindex][-1][0] > SETTLED_TICKS

    def seen(self, link: Link) -> bool:
        """Whether the daemon knows the link as it is."""
        return self.world.state.by_name.get(link.name) is link

    def known(self, ifindex: int) -> bool:
        """Whether the link with this ifindex is the one that the daemon knows by it."""
        return self.world.state.by_index.get(ifindex) in self.world.links

    def views(self) -> tuple[LinkView, ...]:
        """What status shows of links that are there and that the daemon knows as they are."""
        status = self.world.status()
        return tuple(v for v in status.links if v.ifindex and self.world.state.by_name.get(v.interface) in self.world.links)
