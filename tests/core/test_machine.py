"""Anything that can happen to the whole daemon, in any order, on the in-memory kernel: after every step the promises hold.

LIMITERD_MACHINE_EXAMPLES and LIMITERD_MACHINE_STEPS lengthen the run by hand.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limiterd.core.case import HOLDING
from limiterd.core.commands import pause, resume
from limiterd.core.errors import PeerError
from limiterd.core.model import (
    HANDLE_ROOT,
    HOUR,
    SECOND,
    Action,
    ActionKind,
    EventKind,
    ForeignQdisc,
    Guard,
    GuardMode,
    LinkView,
    Override,
    OverrideAction,
    Phase,
    RootQdisc,
)
from limiterd.core.status import build
from tests.world import AUTO, DETECT, LIMIT, MBIT, POLICY, START, World, observing, rules_of

NAMES = ("eth0", "eth1", "lan0")
SECOND_POLICY = replace(POLICY, name="lan", interfaces=("lan*",), release=AUTO)
RECORD = Override("A", ("eth0",), OverrideAction.EXEMPT, START.wall_ns + HOUR, "ops", "why")
RULES = (
    rules_of(POLICY, SECOND_POLICY),
    rules_of(replace(POLICY, limit=replace(LIMIT, rate_bps=30 * MBIT)), SECOND_POLICY),
    rules_of(replace(POLICY, detect=replace(DETECT, guard=Guard(GuardMode.ENFORCE, 100 * MBIT))), SECOND_POLICY),
    rules_of(observing(), SECOND_POLICY),
    rules_of(SECOND_POLICY),
    rules_of(replace(POLICY, name="renamed"), SECOND_POLICY),
    rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER), SECOND_POLICY),
    rules_of(POLICY, SECOND_POLICY, overrides=[RECORD]),
    rules_of(POLICY, SECOND_POLICY, overrides=[replace(RECORD, action=OverrideAction.LIMIT, limit_bps=40 * MBIT)]),
    rules_of(POLICY, SECOND_POLICY, overrides=[replace(RECORD, action=OverrideAction.LIMIT, threshold_bps=200 * MBIT)]),
    rules_of(POLICY, SECOND_POLICY, overrides=[replace(RECORD, interfaces=("*",), expires_wall_ns=None)]),
)
PFIFO = RootQdisc("pfifo", 0x50000, b"\x00\x00\x00\x07")
HANDS = (
    (ActionKind.DELETE_ROOT, HANDLE_ROOT),
    (ActionKind.DELETE_ROOT, PFIFO.handle),
    (ActionKind.DELETE_CLASS, 0x1D1D0020),
    (ActionKind.RESTORE_ROOT, PFIFO),
)
present = st.sampled_from(("eth0", "eth0", "eth0", "eth1", "lan0"))
seldom = st.sampled_from((False, False, False, True))


class Machine(RuleBasedStateMachine):
    """One machine with up to three links, its daemon, its operators and its enemies."""

    @initialize()
    def begin(self) -> None:
        """A machine with one link."""
        self.world = World(RULES[0])
        self.taken = 10
        self.calm_ticks = 0
        self.foreign: dict[int, Action] = {}
        self.was_full = False
        self.judged = 0

    def names(self) -> list[str]:
        """The links that are there."""
        return [link.name for link in self.world.links]

    # ---- the world ----

    @rule(name=present, mbit=st.sampled_from([0, 1, 15, 90, 150, 300]))
    def offer(self, name: str, mbit: int) -> None:
        """Traffic changes."""
        if name in self.names():
            self.world.kernel.offer(self.world.link(name).ifindex, mbit * MBIT)

    @rule(ticks=st.sampled_from([1, 3, 10, 25, 40]))
    def tick(self, ticks: int) -> None:
        """Time passes, sampled."""
        for _ in range(ticks):
            self.world.tick()
        self.calm_ticks += ticks

    @rule(name=present)
    def fire(self, name: str) -> None:
        """A link sends too much for long enough."""
        if name in self.names():
            self.world.fire(name)
            self.calm_ticks += 24

    @rule()
    def calm(self) -> None:
        """Nobody sends for a while."""
        self.world.run(14, dict.fromkeys(self.names(), 0))
        self.calm_ticks += 140

    @rule(seconds=st.sampled_from([1, 4, 30, 3600]), wall=st.sampled_from([1, 1, 1, -2, 24]))
    def gap(self, seconds: int, wall: int) -> None:
        """Time passes unobserved; the wall clock may step another way."""
        self.world.pass_time(seconds * SECOND, wall_ns=seconds * wall * SECOND)

    @rule(name=present, same_mac=st.booleans())
    def appear(self, name: str, same_mac: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """A link appears, with its usual MAC or another."""
        if name not in self.names():
            self.taken += 1
            mac = f"02:00:00:00:01:{NAMES.index(name):02x}" if same_mac else f"02:00:00:00:02:{self.taken % 256:02x}"
            self.world.add(self.taken, name, mac=mac)
            self.disturb()

    @rule(name=present)
    def vanish(self, name: str) -> None:
        """A link goes."""
        if name in self.names():
            self.world.remove(name)
            self.disturb()

    @rule(name=present, new=present)
    def rename(self, name: str, new: str) -> None:
        """A link gets another name."""
        if name in self.names() and new not in self.names():
            self.world.rename(name, new)
            self.disturb()

    @rule(name=present, hand=st.sampled_from(HANDS), seen=st.booleans())
    def meddle(self, name: str, hand: tuple[ActionKind, object], seen: bool) -> None:  # noqa: FBT001 - likewise
        """A foreign hand in tc; the event may get lost."""
        if name not in self.names():
            return
        action = Action(hand[0], self.world.link(name).ifindex, name, hand[1])  # type: ignore[arg-type]  # a foreign hand's
        self.foreign[id(action)] = action
        silent, self.world.kernel.silent = self.world.kernel.silent, False
        self.world.kernel.apply([action])
        self.world.kernel.silent = silent
        self.disturb()
        if seen:
            self.world.touch(name)

    @rule(step=st.integers(0, 10), number=st.sampled_from([errno.ENOMEM, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENODEV]))
    def refuse(self, step: int, number: int) -> None:
        """The kernel will refuse one of the next steps."""
        self.world.kernel.refuse(step, number)
        self.disturb()

    @rule(silent=seldom)
    def fall_silent(self, silent: bool) -> None:  # noqa: FBT001 - likewise
        """The kernel stops answering, or answers again."""
        self.world.kernel.silent = silent
        self.disturb()

    @rule(full=seldom)
    def fill_disk(self, full: bool) -> None:  # noqa: FBT001 - likewise
        """The disk fills up, or has room again."""
        self.world.disk_full = full
        self.was_full |= full
        self.disturb()

    # ---- the daemon ----

    @rule(rules=st.sampled_from(RULES))
    def reload(self, rules: object) -> None:
        """Other rules."""
        self.world.reload(rules)  # type: ignore[arg-type]  # drawn from RULES
        self.disturb()

    @precondition(lambda self: not self.world.kernel.silent)
    @rule()
    def crash(self) -> None:
        """The daemon dies and starts again on what the disk holds."""
        standing = {link.name: self.world.rate(link.name) for link in self.world.links}
        told, unseen = len(self.world.events), self.world.state.links != self.world.links
        self.world.boot()
        kinds = {event.kind for event in self.world.events[told:]}
        if (
            not self.was_full
            and not unseen
            and kinds <= {EventKind.ADOPTED, EventKind.EPOCH, EventKind.OVERRIDE_ACTIVE, EventKind.LINK_BACK}
        ):
            assert all((self.world.rate(name) is None) == (rate is None) for name, rate in standing.items())
        self.disturb()

    # ---- operators ----

    @rule(name=present, rate=st.sampled_from([None, 5 * MBIT]), force=st.booleans())
    def limit(self, name: str, rate: int | None, force: bool) -> None:  # noqa: FBT001 - likewise
        """Limit by hand, or be refused."""
        with contextlib.suppress(PeerError):
            self.world.limit(name, rate, force=force)
        self.disturb()

    @rule(name=present)
    def release(self, name: str) -> None:
        """Release by hand, or be refused."""
        with contextlib.suppress(PeerError):
            self.world.release(name)
        self.disturb()

    @rule(on=seldom)
    def pause(self, on: bool) -> None:  # noqa: FBT001 - likewise
        """Pause or resume, or be refused."""
        with contextlib.suppress(PeerError):
            self.world.command((pause if on else resume)(self.world.state, self.world.now, reason="", by="root"))

    def disturb(self) -> None:
        """Something happened that the daemon may need a moment for."""
        self.calm_ticks = 0

    # ---- promises ----

    @invariant()
    def promises(self) -> None:
        """Everything below, after every step."""
        self.limited_means_read_back()
        self.foreign_roots_are_left_alone()
        self.whoever_is_limited_was_judged()
        self.calm_converges()
        self.the_journal_is_the_decisions()
        self.memory_is_bounded()

    def limited_means_read_back(self) -> None:
        """A link that status calls limited was last read with exactly the limit that is shown."""
        for view in self.views():
            if view.phase is Phase.LIMITED:
                actual = self.world.state.tc[view.ifindex]
                assert actual.ours
                assert actual.tree is not None
                assert actual.tree.rate_bps == view.limit_bps

    def foreign_roots_are_left_alone(self) -> None:
        """The daemon never deletes a foreign root but by a takeover, right after saving that very root."""
        ours = [action for action in self.world.kernel.sent[self.judged :] if id(action) not in self.foreign]
        self.judged = len(self.world.kernel.sent)
        takeover = any(policy.foreign_qdisc is ForeignQdisc.TAKEOVER for policy in self.world.rules.config.policies)
        for before, action in zip([None, *ours], ours, strict=False):
            if action.kind is ActionKind.DELETE_ROOT and action.item != HANDLE_ROOT:
                assert takeover
                assert before is not None
                assert before.kind is ActionKind.SAVE_ROOT
                assert before.ifindex == action.ifindex

    def whoever_is_limited_was_judged(self) -> None:
        """No limit without a firing, an operator, or a limit that stood already."""
        causes = {EventKind.LIMIT, EventKind.ADOPTED, EventKind.RESTORED}
        if any(case.stage in HOLDING for case in self.world.state.cases.values()):
            assert any(event.kind in causes or event.kind is EventKind.LINK_BACK for event in self.world.events) or any(
                case.put_back for case in self.world.state.cases.values()
            )

    def calm_converges(self) -> None:
        """After ten calm seconds every decision stands in the kernel or shows as a fault, and nothing else of ours is there."""
        if self.calm_ticks < 130 or self.world.kernel.silent:
            return
        for view in self.views():
            case = self.world.state.cases.get(view.interface)
            wanted = case is not None and case.stage in HOLDING
            if view.phase is Phase.FAULT:
                continue
            assert wanted == (self.world.rate(view.interface) is not None), view
            if wanted:
                assert view.phase is Phase.LIMITED

    def the_journal_is_the_decisions(self) -> None:
        """With room on the disk it holds exactly what stands or waits."""
        if not self.world.disk_full and self.calm_ticks and not self.was_full:
            assert self.world.disk == self.world.state.journal()

    def memory_is_bounded(self) -> None:
        """What is known is about the links that are there."""
        state = self.world.state
        count = len(state.links)
        assert len(state.cases) <= count
        assert len(state.tc) <= count
        assert len(state.effective) <= count

    def views(self) -> tuple[LinkView, ...]:
        """What status shows of present links that the engine has seen."""
        seen = self.world.state.links == self.world.links
        views = build(self.world.frame()).links if seen else ()
        return tuple(view for view in views if view.ifindex)


Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("LIMITERD_MACHINE_EXAMPLES", "150")),
    stateful_step_count=int(os.environ.get("LIMITERD_MACHINE_STEPS", "50")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
class TestMachine(Machine.TestCase):  # type: ignore[misc,valid-type]  # hypothesis makes the class at run time
    """At least 2 000 steps in every run."""
