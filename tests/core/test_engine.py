"""The engine through the executor on the in-memory kernel: phases, firings, releases, overrides, reloads, adoption."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from limiterd.core.commands import pause, release_all, resume
from limiterd.core.enforcement import MEMORIES_MAX
from limiterd.core.engine import release_for_exit, step, thinned
from limiterd.core.errors import PeerError
from limiterd.core.faults import OPERATION_OF
from limiterd.core.model import (
    DAY,
    HANDLE_ROOT,
    HOUR,
    SECOND,
    Action,
    ActionKind,
    Detect,
    Enforcement,
    EventKind,
    FaultReason,
    ForeignQdisc,
    Guard,
    GuardMode,
    Journal,
    Lifeline,
    Match,
    Override,
    OverrideAction,
    Phase,
    PolicyMode,
    ReleaseReason,
    RootQdisc,
    Sampling,
    SavedQdisc,
    StrikeRecord,
)
from limiterd.core.state import NOTHING, Inputs
from limiterd.core.status import build
from tests.core.states import converge
from tests.world import AUTO, DETECT, LIMIT, MBIT, POLICY, START, World, observing, rules_of

PFIFO = RootQdisc("pfifo", 0x50000, b"\x00\x00\x00\x07")


def override(action: OverrideAction = OverrideAction.EXEMPT, **fields: object) -> Override:
    """An active record for eth0 that expires in an hour."""
    record = Override("REQ-1", ("eth0",), action, START.wall_ns + HOUR, "ops", "why")
    return replace(record, **fields)  # type: ignore[arg-type]  # fields by name


def act(world: World, kind: ActionKind, item: object = None, name: str = "eth0") -> None:
    """A foreign hand's step, seen by the daemon at once."""
    link = world.link(name)
    done = world.kernel.apply([Action(kind, link.ifindex, name, item)])  # type: ignore[arg-type]  # a foreign hand's
    assert done[0].errno == 0
    world.touch(name)


# ---- the main path -------------------------------------------------------------------------------


def test_a_firing_limits_and_is_read_back() -> None:
    """Sustained excess: one limit event, one limited event, the kernel shows the rate, the phase says limited."""
    world = World()
    world.run(2.0, {"eth0": 150 * MBIT})
    assert world.view().phase is Phase.PENDING
    assert world.view().pending_ns > SECOND
    world.run(0.4)
    assert world.told(EventKind.LIMIT, EventKind.LIMITED) == [(EventKind.LIMIT, "sustained"), (EventKind.LIMITED, "sustained")]
    assert world.rate() == 20 * MBIT
    view = world.view()
    assert (view.phase, view.limit_bps, view.strikes, view.reason) == (Phase.LIMITED, 20 * MBIT, 1, "sustained")
    assert world.state.counters.limits_applied == {"eth0": 1}
    assert world.disk.decisions[0].interface == "eth0"


def test_an_observing_policy_only_reports() -> None:
    """In observe a firing is would_limit, again and again, and tc is never touched."""
    world = World(rules_of(observing()))
    world.run(8, {"eth0": 150 * MBIT})
    assert len(world.told(EventKind.WOULD_LIMIT)) == 3
    assert world.kernel.sent == []


def test_a_paused_daemon_limits_nothing_new_and_lifts_nothing() -> None:
    """Paused: firings are would_limit, standing limits stay; resume ends it; both refuse to repeat themselves."""
    world = World()
    world.add(3, "eth1")
    world.fire()
    world.command(lambda state, now: pause(state, now, reason="x", by="root"))
    world.run(3, {"eth1": 150 * MBIT})
    assert world.rate() == 20 * MBIT
    assert world.rate("eth1") is None
    assert world.told(EventKind.WOULD_LIMIT)
    assert world.disk.paused
    with pytest.raises(PeerError, match="paused already"):
        pause(world.state, world.now, reason="x", by="root")
    with pytest.raises(PeerError, match="paused"):
        world.limit("eth1")
    world.command(lambda state, now: resume(state, now, reason="x", by="root"))
    with pytest.raises(PeerError, match="not paused"):
        resume(world.state, world.now, reason="x", by="root")
    world.run(3)
    assert world.rate("eth1") == 20 * MBIT


def test_guard_modes() -> None:
    """A guard in observe is noted; in enforce it limits with its own reason."""
    burst = replace(DETECT, guard=Guard(GuardMode.OBSERVE, 50 * MBIT))
    world = World(rules_of(replace(POLICY, detect=burst)))
    world.run(1.5, {"eth0": 150 * MBIT})
    assert world.told(EventKind.NOTED) == [(EventKind.NOTED, "guard")]
    enforcing = replace(DETECT, guard=Guard(GuardMode.ENFORCE, 50 * MBIT))
    other = World(rules_of(replace(POLICY, detect=enforcing)))
    other.run(1.5, {"eth0": 150 * MBIT})
    assert other.told(EventKind.LIMIT, EventKind.LIMITED) == [(EventKind.LIMIT, "guard"), (EventKind.LIMITED, "guard")]


# ---- release -------------------------------------------------------------------------------------


def test_manual_release_drains_and_restores() -> None:
    """A release raises the rate, lets the queue drain, removes the root; strikes are remembered; a fresh epoch begins."""
    world = World()
    world.fire()
    world.run(1)
    before = world.state.counters.epochs["released"]
    world.release()
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "operator")]
    world.run(0.3)
    assert world.root() == "noqueue 0:"
    assert world.view().strikes == 1
    assert world.state.counters.epochs["released"] == before + 1
    assert world.state.counters.limits_released == {("eth0", "operator"): 1}
    world.run(3)
    assert world.view().strikes == 2


def test_a_release_deletes_a_root_with_nothing_under_it() -> None:
    """Raised, then filters, then classes, then the bare root: while it goes the link is without a queue, so it goes fast."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 0})
    del world.kernel.sent[:]
    world.release()
    assert list(dict.fromkeys(action.kind for action in world.kernel.sent)) == [
        ActionKind.CHANGE_CLASS,
        ActionKind.DELETE_FILTER,
        ActionKind.DELETE_FILTERS,
        ActionKind.DELETE_CLASS,
        ActionKind.DELETE_ROOT,
    ]
    assert world.root() == "noqueue 0:"


def test_what_does_not_drain_is_told() -> None:
    """A queue that never empties is cut off after `drain`, and the bytes are told."""
    world = World(rules_of(enforcement=Enforcement(drain_ns=SECOND // 2)))
    world.fire()
    world.run(1, {"eth0": 10**15})
    world.release()
    world.run(1)
    assert world.told(EventKind.UNDRAINED)
    assert world.root() == "noqueue 0:"


def test_exempt_traffic_is_waited_for_as_well() -> None:
    """What waits outside the limit, for a device that does not take it, is drained, or counted after `drain`, like the rest."""
    for empties in (True, False):
        world = World()
        world.fire()
        world.run(1, {"eth0": 0})
        world.kernel.links[2].stalled_bytes = 4_500
        world.release()
        world.run(0.2)
        assert world.root() == "htb 1d1d:"
        if empties:
            world.kernel.links[2].stalled_bytes = 0
        world.run(0.5)
        assert world.root() == "noqueue 0:"
        told = [event.detail["backlog_bytes"] for event in world.events if event.kind is EventKind.UNDRAINED]
        assert told == ([] if empties else [4_500])


def test_releasing_what_is_not_limited_is_refused() -> None:
    """Nothing to release: an error that says so; --all with nothing is fine."""
    world = World()
    with pytest.raises(PeerError, match="not limited"):
        world.release()
    world.command(lambda state, now: release_all(state, now, reason="x", by="root"))


def test_auto_release_waits_for_hold_and_quiet() -> None:
    """In auto a limit stands through its hold and through demand, and goes after unbroken quiet."""
    world = World(rules_of(replace(POLICY, release=AUTO)))
    world.fire()
    world.run(30)
    assert world.rate() == 20 * MBIT, "constant demand never flaps"
    world.run(2.5, {"eth0": 1 * MBIT})
    assert world.rate() == 20 * MBIT
    world.run(3)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "demand_ended")]
    world.run(3, {"eth0": 150 * MBIT})
    assert world.view().strikes == 2


def test_auto_release_ignores_manual_limits() -> None:
    """A limit set by hand stands until a hand lifts it, whatever the release mode."""
    world = World(rules_of(replace(POLICY, release=AUTO)))
    world.limit()
    world.run(30)
    assert world.view().manual
    assert world.rate() == 20 * MBIT


def test_the_hold_runs_on_through_a_reboot() -> None:
    """After a reboot the limit is put back, and the hold counts from the decision's wall time."""
    world = World(rules_of(replace(POLICY, release=replace(AUTO, min_hold_ns=60 * SECOND))))
    world.fire()
    world.kernel.delete_link(2)
    world.kernel.add_link(2)
    world.pass_time(100 * SECOND)
    world.boot()
    assert world.told(EventKind.RESTORED) == [(EventKind.RESTORED, "sustained")]
    world.run(5, {"eth0": 0})
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "demand_ended")]


# ---- overrides -----------------------------------------------------------------------------------


def test_an_exemption_lifts_and_forgets_strikes() -> None:
    """An exempt record lifts the limit; firings are noted; at its end a fresh epoch and no strikes."""
    world = World()
    world.fire()
    world.reload(rules_of(overrides=[override(expires_wall_ns=world.now.wall_ns + 10 * SECOND)]))
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "override")]
    world.run(5, {"eth0": 150 * MBIT})
    assert world.told(EventKind.NOTED)
    assert world.view().phase is Phase.EXEMPT
    assert world.view().override == "REQ-1"
    with pytest.raises(PeerError, match="exempt by override REQ-1"):
        world.limit()
    world.run(5.2)
    assert world.told(EventKind.OVERRIDE_ENDED)
    assert world.view().phase is not Phase.EXEMPT
    world.run(3)
    assert world.view().strikes == 1


def test_a_limit_only_override_changes_the_rate_in_place_and_back() -> None:
    """A limit-only record changes a standing limit's rate; at its end the policy's rate is back."""
    world = World()
    world.fire()
    record = override(OverrideAction.LIMIT, limit_bps=50 * MBIT, expires_wall_ns=world.now.wall_ns + 5 * SECOND)
    sent = len(world.kernel.sent)
    world.reload(rules_of(overrides=[record]))
    assert world.rate() == 50 * MBIT
    assert {action.kind for action in world.kernel.sent[sent:]} <= {
        ActionKind.CHANGE_CLASS,
        ActionKind.CHANGE_LEAF,
        ActionKind.ADD_LEAF,
    }
    world.run(6)
    assert world.rate() == 20 * MBIT
    assert len(world.told(EventKind.RATE_CHANGED)) == 2
    assert world.told(EventKind.RELEASED) == []


def test_a_threshold_override_lifts_and_detects_afresh_under_it() -> None:
    """A threshold record lifts a limit made without it; one made under it stands, over a restart too."""
    world = World()
    world.fire()
    world.reload(rules_of(overrides=[override(OverrideAction.LIMIT, threshold_bps=200 * MBIT)]))
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "override")]
    world.run(4, {"eth0": 150 * MBIT})
    assert world.rate() is None
    world.run(3, {"eth0": 300 * MBIT})
    assert world.rate() == 20 * MBIT
    world.boot()
    world.run(1)
    assert world.rate() == 20 * MBIT


def test_expiry_is_called_to_mind_once_a_notice() -> None:
    """24 h and 1 h before an override's end one event each, also when the clock steps back."""
    world = World(rules_of(overrides=[override(expires_wall_ns=START.wall_ns + 25 * HOUR)]))
    world.run(0.2)
    world.pass_time(0, wall_ns=HOUR)
    world.run(0.3)
    assert len(world.told(EventKind.OVERRIDE_EXPIRING)) == 1
    world.pass_time(0, wall_ns=-HOUR // 2)
    world.run(0.3)
    world.pass_time(0, wall_ns=23 * HOUR + HOUR // 2)
    world.run(0.3)
    assert len(world.told(EventKind.OVERRIDE_EXPIRING)) == 2


def test_an_override_that_never_expires_is_not_called_to_mind() -> None:
    """`never` has no expiry to remind of."""
    world = World(rules_of(overrides=[override(expires_wall_ns=None)]))
    world.pass_time(0, wall_ns=-DAY)
    world.run(0.2)
    assert world.told(EventKind.OVERRIDE_EXPIRING) == []


# ---- reload --------------------------------------------------------------------------------------


def test_a_reload_that_changes_nothing_touches_nothing() -> None:
    """Equal rules in a new object: no epoch, no tc message, no event."""
    world = World()
    world.run(1, {"eth0": 150 * MBIT})
    pending, sent, events = world.view().pending_ns, len(world.kernel.sent), len(world.events)
    world.reload(rules_of())
    assert (world.view().pending_ns, len(world.kernel.sent), len(world.events)) == (pending, sent, events)


def test_a_new_threshold_starts_a_fresh_epoch_for_its_links_only() -> None:
    """Another threshold: a fresh epoch on the links of that policy; the others go on."""
    two = replace(POLICY, name="other", interfaces=("lan*",))
    world = World(rules_of(POLICY, two))
    world.add(3, "lan0")
    world.run(1, {"eth0": 150 * MBIT, "lan0": 150 * MBIT})
    world.reload(rules_of(replace(POLICY, detect=replace(DETECT, threshold_bps=110 * MBIT)), two))
    world.run(0.3)
    assert world.view("eth0").pending_ns < SECOND
    assert world.view("lan0").pending_ns > SECOND


def test_a_new_max_gap_is_a_fresh_epoch_for_all() -> None:
    """Another max_gap is another rule for every link."""
    world = World()
    world.run(1, {"eth0": 150 * MBIT})
    world.reload(rules_of(sampling=Sampling(max_gap_ns=5 * SECOND)))
    world.run(0.2)
    assert world.state.counters.epochs["reload"] == 1


@pytest.mark.parametrize(
    "rules", [rules_of(observing()), rules_of(replace(POLICY, interfaces=("other*",)))], ids=["observe", "unmatched"]
)
def test_a_policy_that_asks_no_more_lifts(rules: object) -> None:
    """Switched to observe, or matching no more: the limit is lifted with reason policy."""
    world = World()
    world.fire()
    world.reload(rules)  # type: ignore[arg-type]  # parametrize loses the type
    world.run(0.3)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "policy")]
    assert world.root() == "noqueue 0:"


def test_a_decision_moves_along_to_another_policy() -> None:
    """The link matches another policy: the limit stays, at the other policy's rate."""
    world = World()
    world.fire()
    world.reload(rules_of(replace(POLICY, name="second", limit=replace(LIMIT, rate_bps=30 * MBIT))))
    assert world.rate() == 30 * MBIT
    assert world.view().policy == "second"
    assert world.disk.decisions[0].policy == "second"
    assert world.told(EventKind.RELEASED) == []


def test_a_forced_manual_limit_stands_in_an_observing_policy() -> None:
    """An observing policy refuses a manual limit unless forced; a forced one stays over reloads."""
    world = World(rules_of(observing()))
    with pytest.raises(PeerError, match="--force"):
        world.limit()
    world.limit(rate_bps=5 * MBIT, force=True)
    world.reload(rules_of(observing(replace(POLICY, detect=replace(DETECT, floor_ppm=0)))))
    assert world.rate() == 5 * MBIT


@pytest.mark.parametrize(
    ("name", "rate", "match"),
    [
        ("nope", None, "no such link"),
        ("lo", None, "no policy"),
        ("eth0", 1, "cut it off"),
        ("eth0", 100 * MBIT, "must be below the threshold"),
    ],
)
def test_manual_limits_that_make_no_sense_are_refused(name: str, rate: int | None, match: str) -> None:
    """Unknown or unwatched links and strangling rates are refused with the reason."""
    world = World()
    world.add(1, "lo")
    world.run(0.2)
    with pytest.raises(PeerError, match=match):
        world.limit(name, rate)


def test_a_manual_limit_takes_a_standing_one_over() -> None:
    """Limiting a limited link by hand makes the decision the operator's, at the operator's rate."""
    world = World()
    world.fire()
    world.limit(rate_bps=7 * MBIT)
    assert world.rate() == 7 * MBIT
    assert world.view().manual


# ---- foreign hands and faults --------------------------------------------------------------------


def test_drift_is_repaired_and_counted() -> None:
    """A limit that foreign hands change is repaired at once; a root that they delete is put back."""
    world = World()
    world.fire()
    act(world, ActionKind.DELETE_ROOT, 0x1D1D0000)
    assert world.rate() == 20 * MBIT
    assert world.state.counters.drift_repairs == {"eth0": 1}
    assert world.view().phase is Phase.LIMITED


def test_a_foreign_root_that_replaced_ours_is_no_prey_after_a_restart() -> None:
    """Under takeover too: where our limit stood in this boot, a foreign root is a fault; after a reboot it is taken over."""
    world = World(rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER)))
    world.fire()
    journal = world.disk
    world.kernel.apply([Action(ActionKind.DELETE_ROOT, 2, "eth0", 0x1D1D0000), Action(ActionKind.RESTORE_ROOT, 2, "eth0", PFIFO)])
    world.boot()
    world.run(0.3)
    assert world.root() == "pfifo 5:"
    assert world.view().phase is Phase.FAULT
    world.disk, world.store.boot = journal, "two"
    world.boot()
    world.run(0.3)
    assert world.rate() == 20 * MBIT


def test_a_rate_by_hand_does_not_quarrel_with_an_override() -> None:
    """While an override sets the limit, an operator's rate is refused by name; without a rate the override's applies."""
    world = World(rules_of(overrides=[override(OverrideAction.LIMIT, limit_bps=50 * MBIT)]))
    with pytest.raises(PeerError, match="override REQ-1 sets its limit to 50mbit"):
        world.limit(rate_bps=10 * MBIT)
    world.limit()
    assert world.rate() == 50 * MBIT


def test_strikes_earned_under_a_threshold_override_end_with_it() -> None:
    """At the end of a threshold override the link's strikes are 0."""
    record = override(OverrideAction.LIMIT, threshold_bps=120 * MBIT, expires_wall_ns=START.wall_ns + 20 * SECOND)
    world = World(rules_of(overrides=[record]))
    world.fire()
    world.run(0.5, {"eth0": 0})
    world.release()
    world.run(0.3)
    assert world.view().strikes == 1
    world.run(20)
    assert world.view().strikes == 0


def test_a_fight_is_bounded_and_shown() -> None:
    """The sixth repair within a minute waits with back-off: phase fault, reason fight; calm clears it."""
    world = World()
    world.fire()
    for _ in range(6):
        act(world, ActionKind.DELETE_ROOT, 0x1D1D0000)
        world.run(0.1)
    assert world.view().phase is Phase.FAULT
    assert [view.fault.reason for view in world.frame().limit_states.values() if view.fault] == ["fight"]
    assert world.rate() is None
    world.run(2)
    assert world.rate() == 20 * MBIT
    assert world.view().phase is Phase.LIMITED
    assert [fault.reason for fault in world.frame().warnings] == ["fight"], "told until a minute passed in peace"
    world.run(130)
    assert world.frame().warnings == ()
    act(world, ActionKind.DELETE_ROOT, 0x1D1D0000)
    assert world.rate() == 20 * MBIT


def test_a_foreign_root_is_a_warning_then_a_fault() -> None:
    """A foreign root is a warning at the next tick; when a limit is due a fault; gone, the limit comes within a tick."""
    world = World()
    act(world, ActionKind.RESTORE_ROOT, PFIFO)
    world.tick()
    assert [fault.warning for fault in world.frame().warnings] == [True]
    world.fire()
    assert world.view().phase is Phase.FAULT
    assert world.root() == "pfifo 5:"
    act(world, ActionKind.DELETE_ROOT, PFIFO.handle)
    assert world.view().phase is Phase.LIMITED
    assert world.frame().warnings == ()
    assert world.told(EventKind.FAULT_CLEARED)


def test_releasing_from_a_fault_leaves_the_foreign_root() -> None:
    """Lifting a limit that never stood touches nothing of others."""
    world = World()
    act(world, ActionKind.RESTORE_ROOT, PFIFO)
    world.fire()
    world.release()
    world.run(0.3)
    assert world.root() == "pfifo 5:"
    assert world.state.limit_states == {}
    assert world.view().phase is not Phase.FAULT


def test_takeover_saves_before_it_replaces_and_restores() -> None:
    """Takeover: the saved root is on disk first; a full disk is a fault and nothing is touched; release restores."""
    world = World(rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER)))
    act(world, ActionKind.RESTORE_ROOT, PFIFO)
    world.disk_full = True
    world.fire()
    assert world.root() == "pfifo 5:"
    assert world.view().phase is Phase.FAULT
    world.disk_full = False
    world.run(2.5)
    assert world.rate() == 20 * MBIT
    assert world.disk.replaced[0].root.kind == "pfifo"
    world.release()
    world.run(1)
    assert world.root() == "pfifo 5:"
    assert world.disk.replaced == ()


def refusing(world: World, kind: ActionKind, number: int) -> list[Action]:
    """From now on the kernel refuses every step of that kind; what it was asked is in the list."""
    asked: list[Action] = []

    def refuse(action: Action) -> None:
        if action.kind is kind:
            asked.append(action)
            world.kernel.refuse(0, number)

    world.kernel.before_step = refuse
    return asked


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_takeover_that_fails_before_it_replaces_owes_nothing(number: int) -> None:
    """The foreign root could not be saved and stands: the disk forgets it, so that no later start puts it over another's."""
    world = World(rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER)))
    act(world, ActionKind.RESTORE_ROOT, PFIFO)
    asked = refusing(world, ActionKind.SAVE_ROOT, number)
    world.fire()
    assert asked
    assert world.view().phase is Phase.FAULT
    assert world.root() == "pfifo 5:"
    assert world.disk.replaced == ()


@pytest.mark.parametrize("step", range(12))
def test_each_failed_step_is_a_fault_that_heals(step: int) -> None:
    """Whatever step of an install fails, the link keeps working, the fault is told, and the next try ends in the limit."""
    world = World()
    world.kernel.refuse(step, errno.ENOMEM)
    world.fire()
    world.run(3)
    assert world.rate() == 20 * MBIT
    assert world.view().phase is Phase.LIMITED


def test_errnos_mean_what_they_say() -> None:
    """EPERM, a missing kind and a race are told apart; every kind of step has its operation in the metric."""
    assert set(OPERATION_OF) == set(ActionKind)
    world = World()
    for number, reason in ((errno.EPERM, "permission"), (errno.ENOENT, "missing_module"), (errno.EEXIST, "foreign_qdisc")):
        world = World()
        world.kernel.refuse(0, number)
        world.fire()
        assert world.told(EventKind.FAULT)[0] == (EventKind.FAULT, reason)
    assert world.state.counters.kernel_errors == {("install", "EEXIST"): 1}


def test_a_link_that_vanishes_in_the_middle_is_no_fault() -> None:
    """ENODEV drops the link's work without a word; its decision waits."""
    world = World()
    world.run(2.0, {"eth0": 150 * MBIT})
    world.kernel.refuse(0, errno.ENODEV)
    world.run(0.2)
    world.remove("eth0")
    world.run(0.3)
    assert world.told(EventKind.FAULT) == []
    assert world.told(EventKind.LINK_GONE)


@pytest.mark.parametrize("lacks", ["htb", "u32"])
def test_a_module_that_is_loaded_later_ends_the_fault(lacks: str) -> None:
    """A limit that the kernel cannot hold is a fault, asked for again with growing pauses, and set once the module is there."""
    world = World(rules_of(replace(POLICY, limit=replace(LIMIT, exempt=(Match(to="10.0.0.0/8"),)))))
    able = world.kernel._machine.able
    world.kernel._machine.able = replace(able, **{lacks: False})
    world.state.abilities = replace(world.state.abilities, htb=lacks != "htb")
    world.fire()
    assert world.view().phase is Phase.FAULT
    tried = len(world.kernel.sent)
    world.run(60)
    assert world.view().phase is Phase.FAULT
    assert [fault.reason for fault in build(world.frame()).faults] == [FaultReason.MISSING_MODULE]
    assert world.root() == "noqueue 0:"
    assert 0 < sum(action.kind is ActionKind.ADD_ROOT for action in world.kernel.sent[tried:]) < 7
    world.kernel._machine.able = able
    world.run(61)
    assert world.view().phase is Phase.LIMITED
    assert build(world.frame()).faults == ()


def test_a_kernel_without_fq_codel_or_u32_gets_a_limit_without_them() -> None:
    """What the kernel turns out to lack is left out at once; the missing lifeline is a warning while the limit stands."""
    world = World()
    world.state.abilities = replace(world.state.abilities, fq_codel=True)
    world.fire()
    assert world.rate() == 20 * MBIT
    assert not world.state.abilities.fq_codel
    other = World()
    other.kernel._machine.able = replace(other.kernel._machine.able, u32=False)
    other.fire()
    assert other.rate() == 20 * MBIT
    assert [fault.reason for fault in other.frame().warnings] == ["missing_module"]
    other.release()
    other.run(0.5)
    assert other.frame().warnings == ()


def test_silence_of_the_kernel_is_a_fault_and_sampling_goes_on() -> None:
    """No answer from tc: fault no_answer with back-off; answers again: the limit stands."""
    world = World()
    world.kernel.silent = True
    world.fire()
    assert world.view().phase is Phase.FAULT
    world.run(2)
    world.kernel.silent = False
    world.run(5)
    assert world.view().phase is Phase.LIMITED


def test_what_changes_without_an_event_is_found_at_the_read_back() -> None:
    """Larger packets are allowed, under a limit or before one is due: burst and queue hold them, nothing was repaired."""
    world = World()
    world.fire()
    world.gso_max_bytes = 196_608
    world.run(1.2)
    assert smallest_bytes(world) >= 196_608
    assert world.told(EventKind.REPAIR) == []
    world.release()
    world.run(1)
    world.gso_max_bytes = 400_000
    world.limit()
    assert smallest_bytes(world) >= 400_000


def smallest_bytes(world: World) -> int:
    """The smallest burst or queue of the limit that stands."""
    tree = world.kernel.shows(2).tree
    assert tree is not None
    return min(*(item.burst_bytes for item in tree.classes), *(leaf.limit_bytes for leaf in tree.leaves))


# ---- start, adoption, links ----------------------------------------------------------------------


def test_a_restart_adopts_without_a_message() -> None:
    """A standing limit is adopted: since and strikes from the journal, not one tc message."""
    world = World()
    world.fire()
    since = world.view().since_wall_ns
    sent = len(world.kernel.sent)
    world.boot()
    assert len(world.kernel.sent) == sent
    assert world.told(EventKind.ADOPTED) == [(EventKind.ADOPTED, "sustained")]
    assert (world.view().since_wall_ns, world.view().strikes) == (since, 1)


def test_a_restart_without_journal_adopts_by_shape() -> None:
    """The kernel is the truth: a whole limit without a journal is adopted; a half one is cleared away."""
    world = World()
    world.fire()
    world.disk = Journal()
    world.boot()
    assert world.view().reason == "adopted"
    assert world.rate() == 20 * MBIT
    world.disk = Journal()
    world.kernel.apply([Action(ActionKind.DELETE_CLASS, 2, "eth0", 0x1D1D0020)])
    world.boot()
    world.run(0.7)
    assert world.root() == "noqueue 0:"
    assert world.told(EventKind.LEFTOVER)


@pytest.mark.parametrize(
    "change",
    [
        {"limit": replace(LIMIT, exempt=(Match(to="10.0.0.0/8"),))},
        {"limit": replace(LIMIT, lifeline=Lifeline(500_000, (Match(protocol="tcp", port=22),)))},
        {"limit": replace(LIMIT, rate_bps=30 * MBIT)},
        {"detect": replace(DETECT, window_ns=3 * SECOND)},
        {"name": "another"},
    ],
)
@pytest.mark.parametrize("journal", [True, False])
def test_what_was_changed_while_it_was_down_is_changed_in_place(change: dict[str, Any], *, journal: bool) -> None:
    """Restarted under another configuration, with or without its journal: the limit is adopted and becomes as wanted."""
    world = World()
    world.fire()
    world.disk = world.disk if journal else Journal()
    world.rules = rules_of(replace(POLICY, **change))
    del world.kernel.sent[:]
    world.boot()
    assert world.view().phase is Phase.LIMITED
    assert ActionKind.DELETE_ROOT not in {action.kind for action in world.kernel.sent}
    assert world.told(EventKind.ADOPTED)
    assert world.view().limit_bps == world.rules.config.policies[0].limit.rate_bps


@pytest.mark.parametrize("mtu", [9000, 1400])
def test_another_leaf_or_mtu_is_no_reason_to_lift(mtu: int) -> None:
    """The link's MTU changed, and fq_codel was loaded, while no daemon ran and its journal was lost: adopted all the same."""
    world = World()
    world.fire()
    world.disk = Journal()
    world.links = (replace(world.link(), mtu=mtu),)
    world.kernel._machine.able = replace(world.kernel._machine.able, fq_codel=True)
    world.boot()
    assert world.view().phase is Phase.LIMITED


@pytest.mark.parametrize("mode", [PolicyMode.OBSERVE, PolicyMode.ENFORCE])
def test_a_stray_limit_goes_where_none_is_wanted(mode: PolicyMode) -> None:
    """Our root on a link that is exempt is lifted at the start, whatever its policy's mode: what was approved holds."""
    world = World()
    world.fire()
    world.disk = Journal()
    world.rules = rules_of(replace(POLICY, mode=mode), overrides=[override()])
    world.boot()
    world.run(0.3)
    assert world.root() == "noqueue 0:"


def test_changed_while_down() -> None:
    """A rate changed while the daemon was down is changed in place at the adoption."""
    world = World()
    world.fire()
    world.rules = rules_of(replace(POLICY, limit=replace(LIMIT, rate_bps=40 * MBIT)))
    world.boot()
    assert world.rate() == 40 * MBIT
    assert world.told(EventKind.ADOPTED)


def test_put_back_only_under_the_same_policy() -> None:
    """A limit that is gone from the kernel is put back only under the policy that it was made by."""
    world = World()
    world.fire()
    world.kernel.delete_link(2)
    world.kernel.add_link(2)
    world.rules = rules_of(replace(POLICY, name="another"))
    world.boot()
    world.run(0.3)
    assert world.rate() is None
    assert world.disk.decisions == ()


def test_a_link_comes_back() -> None:
    """Same name and MAC: limited again in the first tick; another MAC is another link; a rename takes the limit along."""
    world = World()
    world.fire()
    world.remove("eth0")
    world.run(1)
    assert world.told(EventKind.LINK_GONE)
    assert world.disk.decisions
    world.add(7, "eth0", mac="02:00:00:00:00:02")
    world.run(0.1)
    assert world.view().phase is Phase.LIMITED
    world.rename("eth0", "eth9")
    world.run(0.2)
    assert world.view("eth9").phase is Phase.LIMITED
    world.remove("eth9")
    world.add(8, "eth9", mac="02:00:00:00:00:99")
    world.run(0.2)
    assert world.view("eth9").phase is Phase.CONFORMING


def test_the_same_ifindex_made_anew_is_a_new_link() -> None:
    """A new incarnation under the same ifindex: an epoch of reason new, and the limit put back on it."""
    world = World()
    world.fire()
    world.remove("eth0")
    world.add(2, "eth0", incarnation=1)
    world.run(0.2)
    assert world.view().phase is Phase.LIMITED
    assert world.told(EventKind.RESTORED)


def test_a_limited_link_that_is_gone_can_be_released() -> None:
    """The operator can lift the decision of an absent link, by name or with all."""
    world = World()
    world.fire()
    world.remove("eth0")
    world.run(0.2)
    world.release("eth0")
    assert world.disk.decisions == ()
    world.add(2, "eth0")
    world.run(0.5)
    assert world.rate() is None


def test_a_link_that_vanishes_during_its_release() -> None:
    """The release is over with the link, and told."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 10**15})
    world.release()
    world.remove("eth0")
    world.run(0.3)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "operator")]
    assert world.state.limit_states == {}


def test_a_changed_mtu_reshapes_in_place() -> None:
    """A link that changes its MTU keeps its limit, sized for the new one."""
    world = World()
    world.fire()
    world.links = tuple(replace(link, mtu=9000, gso_max_bytes=262_144) for link in world.links)
    world.run(1.2)
    assert world.view().phase is Phase.LIMITED
    assert world.state.counters.drift_repairs == {}


def test_exit_lifts_everything() -> None:
    """on_exit: remove lifts every limit with reason exit, and drops the decisions of absent links."""
    world = World()
    world.add(3, "eth1")
    world.fire("eth1")
    world.fire()
    world.remove("eth1")
    world.tick()
    world.command(release_for_exit)
    world.run(0.3)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, ReleaseReason.EXIT)]
    assert world.disk.decisions == ()
    assert world.root() == "noqueue 0:"


def test_a_resync_reads_everything_anew() -> None:
    """After lost events the roots are dumped: drift is found, and what is default again is forgotten."""
    world = World()
    world.add(3, "eth1")
    world.run(0.1)
    act(world, ActionKind.RESTORE_ROOT, PFIFO, "eth1")
    world.fire()
    world.kernel.apply(
        [Action(ActionKind.DELETE_ROOT, 2, "eth0", 0x1D1D0000), Action(ActionKind.DELETE_ROOT, 3, "eth1", PFIFO.handle)]
    )
    world.executor.reconcile(world.state, world.rules, world.executor.with_roots(Inputs(world.now)))
    assert world.rate() == 20 * MBIT
    assert world.frame().warnings == ()
    world.kernel.silent = True
    assert world.executor.with_roots(Inputs(world.now)).roots is None


def test_a_command_is_about_the_links_that_there_are_now() -> None:
    """A link made since the last tick can be limited, one that has gone since cannot."""
    world = World()
    world.tick()
    world.add(3, "eth3")
    world.limit("eth3")
    assert world.view("eth3").phase is Phase.LIMITED
    world.remove("eth0")
    with pytest.raises(PeerError, match="eth0"):
        world.limit("eth0")


def test_memory_is_bounded_under_churn() -> None:
    """Links that come and go leave nothing behind but the newest few thousand names."""
    world = World()
    for number in range(300):
        world.add(100 + number, f"eth{100 + number}")
        world.tick()
        world.remove(f"eth{100 + number}")
    world.tick()
    world.now = replace(world.now, boot_ns=world.now.boot_ns + 2 * HOUR)
    world.add(99, "eth99")
    world.tick()
    assert len(world.state.gone_since_ns) <= 1
    assert len(world.state.effective) == 2


def test_counts_of_links_that_are_long_gone_are_dropped() -> None:
    """Links that fire, are limited, repaired and released, and never come back, leave no counts behind after an hour."""
    world = World()
    world.fire()
    act(world, ActionKind.DELETE_ROOT, HANDLE_ROOT)
    world.release()
    world.run(1, {"eth0": 0})
    tally = world.state.counters
    counts = (tally.detections, tally.limits_applied, tally.limits_released, tally.drift_repairs)
    assert all(counts)
    world.remove("eth0")
    world.run(0.2)
    assert all(counts)
    world.pass_time(2 * HOUR)
    world.add(9, "eth9")
    world.tick()
    assert not any(counts)


def test_remembered_strikes_are_bounded() -> None:
    """Of thousands of released links the oldest strikes are forgotten: the journal that holds them stays small enough."""
    world = World()
    world.fire()
    other = StrikeRecord("x", "", 1, START.wall_ns + DAY)
    world.state.strike_records = {(f"x{n}", ""): other for n in range(MEMORIES_MAX)}
    world.release()
    assert len(world.state.strike_records) == MEMORIES_MAX
    assert ("x0", "") not in world.state.strike_records
    assert world.view().strikes == 1


def test_strikes_are_forgotten() -> None:
    """After forget_after a released link is as good as new, on disk too."""
    world = World()
    world.fire()
    world.run(0.5, {"eth0": 0})
    world.release()
    world.run(0.3)
    assert world.disk.strike_records
    world.pass_time(SECOND, wall_ns=25 * HOUR)
    world.run(0.3)
    assert world.disk.strike_records == ()
    assert world.view().strikes == 0


def test_thinned_keeps_the_ends() -> None:
    """However many samples a firing has, at most about 128 are shown, the first and the last among them."""
    samples = [(t, t) for t in range(1000)]
    kept = thinned(samples)
    assert len(kept) <= 130
    assert (kept[0], kept[-1]) == (samples[0], samples[-1])
    assert thinned(samples[:1]) == (samples[0],)
    assert thinned([]) == ()


def test_detect_defaults_are_the_published_policy() -> None:
    """1 Gbit/s for more than 10 s."""
    assert (Detect().threshold_bps, Detect().window_ns) == (10**9, 10 * SECOND)


def test_quiet_before_the_hold_is_over_waits() -> None:
    """Demand that ended early does not shorten the hold."""
    world = World(rules_of(replace(POLICY, release=replace(AUTO, min_hold_ns=20 * SECOND))))
    world.fire()
    world.run(10, {"eth0": 0})
    assert world.rate() == 20 * MBIT
    world.run(12)
    assert world.rate() is None


@pytest.mark.parametrize("step", [0, 3, 4, 5])
def test_a_release_that_the_kernel_refuses_is_a_fault_that_heals(step: int) -> None:
    """A refused step of a release: phase fault, back-off, and in the end the root that was there before."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 50 * MBIT})
    world.kernel.refuse(step, errno.EPERM)
    world.release()
    world.run(4)
    assert world.root() == "noqueue 0:"
    assert world.state.limit_states == {}


def test_a_refused_removal_shows_as_a_fault_meanwhile() -> None:
    """While the removal of a released limit is refused the phase is fault, and the journal holds no decision."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 10 * MBIT})
    world.kernel.silent = True
    world.release()
    world.run(0.3)
    assert world.view().phase is Phase.FAULT
    assert world.disk.decisions == ()
    world.kernel.silent = False
    for number in range(6):
        world.kernel.refuse(number, errno.EPERM)
    world.run(0.5)
    assert world.view().phase is Phase.FAULT
    world.run(80)
    assert world.root() == "noqueue 0:"


def test_a_refused_removal_is_tried_as_the_back_off_says() -> None:
    """A root that the kernel does not let go is asked for at 0, 1, 3 and 7 s, not in every tick."""
    world = World()
    world.fire()
    asked = refusing(world, ActionKind.DELETE_ROOT, errno.EPERM)
    world.release()
    world.run(7.5)
    assert world.view().phase is Phase.FAULT
    assert 3 <= len(asked) <= 5
    world.kernel.before_step = lambda _: None
    world.run(9)
    assert world.root() == "noqueue 0:"


def test_a_crash_during_a_release_does_not_bring_the_limit_back() -> None:
    """A raised limit without a decision is on its way out: the next start removes it."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 10**15})
    world.release()
    assert world.root() == "htb 1d1d:"
    world.boot()
    world.run(1, {"eth0": 0})
    assert world.root() == "noqueue 0:"
    assert world.told(EventKind.ADOPTED) == []


def test_a_link_that_returns_to_no_policy_is_not_limited() -> None:
    """While the link was away its policy went: the decision goes too."""
    world = World()
    world.fire()
    world.remove("eth0")
    world.run(0.2)
    world.reload(rules_of(replace(POLICY, interfaces=("other*",))))
    world.add(2, "eth0")
    world.run(0.3)
    assert world.rate() is None
    assert world.disk.decisions == ()


def test_foreign_objects_inside_the_limit_are_told_and_left() -> None:
    """A foreign class below our root is a warning; it stays, and the limit does too."""
    world = World()
    world.fire()
    ours = world.state.tc[2].tree
    assert ours is not None
    act(world, ActionKind.ADD_CLASS, replace(ours.classes[0], classid=0x1D1D0099))
    assert "1d1d:99" in world.frame().warnings[0].message
    world.run(2)
    assert world.view().phase is Phase.LIMITED
    assert world.state.counters.drift_repairs == {}


def test_decisions_of_absent_links_are_bounded() -> None:
    """Thousands of absent limited links: the oldest are forgotten."""
    world = World()
    world.fire()
    held = world.state.limit_states["eth0"].decision
    assert held is not None
    world.state.absent_limits = {(f"x{n}", ""): held for n in range(4096)}
    world.remove("eth0")
    world.run(0.1)
    assert len(world.state.absent_limits) == 4096
    assert ("x0", "") not in world.state.absent_limits


def test_exit_during_a_release_lets_it_finish() -> None:
    """A release under way is not lifted twice."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 10**15})
    world.release()
    world.command(release_for_exit)
    world.run(1)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "operator")]


def test_new_sampling_without_a_new_gap_is_no_epoch() -> None:
    """Another interval is no other rule."""
    world = World()
    world.run(1, {"eth0": 150 * MBIT})
    world.reload(rules_of(sampling=Sampling(interval_ns=50 * 10**6)))
    world.run(0.2)
    assert world.state.counters.epochs["reload"] == 0


def test_a_limited_link_has_no_trail() -> None:
    """While the detector rests it speaks for nothing."""
    world = World()
    world.fire()
    assert world.state.detector.trail("eth0") == ()


def test_news_of_unknown_links_and_gone_warnings() -> None:
    """A tc event of a link that no sample has shown yet is passed over; a warning goes with its link."""
    world = World()
    world.add(5, "eth5")
    world.touch("eth5")
    world.executor.reconcile(world.state, world.rules, world.executor.read_now(frozenset({5})))
    assert 5 not in world.state.tc
    world.run(0.1)
    act(world, ActionKind.RESTORE_ROOT, PFIFO, "eth5")
    world.tick()
    assert world.frame().warnings
    world.remove("eth5")
    world.run(0.1)
    assert world.frame().warnings == ()


def test_a_reload_during_a_release_changes_nothing_about_it() -> None:
    """Other rules do not stop or restart a release under way."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 10**15})
    world.release()
    world.reload(rules_of(replace(POLICY, limit=replace(LIMIT, rate_bps=30 * MBIT))))
    world.run(1, {"eth0": 0})
    assert world.root() == "noqueue 0:"


def test_a_saved_root_that_was_not_put_back_is_owed() -> None:
    """A crash between the removal of a limit and the restore: the next start restores; a root that stands is left alone."""
    world = World()
    world.disk = Journal(replaced=(SavedQdisc("eth0", world.link().mac, PFIFO),))
    world.boot()
    world.run(0.3)
    assert world.root() == "pfifo 5:"
    assert world.disk.replaced == ()
    world.disk = Journal(replaced=(SavedQdisc("eth0", world.link().mac, replace(PFIFO, options=b"\x00\x00\x00\x09")),))
    world.boot()
    world.run(0.3)
    assert world.disk.replaced == ()
    assert world.kernel.roots()[2].options == PFIFO.options


def three_links() -> World:
    """Three links about to fire at once."""
    world = World()
    for ifindex in (3, 4):
        world.add(ifindex, f"eth{ifindex - 2}")
    for ifindex in (2, 3, 4):
        world.kernel.offer(ifindex, 150 * MBIT)
    return world


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ENOBUFS, errno.EIO])
@pytest.mark.parametrize("step", [0, 5, 13, 14, 20, 41])
def test_a_lost_answer_faults_its_own_link_alone(step: int, number: int) -> None:
    """Of three links that are limited at once one gets no answer, whichever step that is: the others have no fault, all stand."""
    world = three_links()
    while not world.told(EventKind.LIMIT):
        world.kernel._refusals = {len(world.kernel.sent) + step: number}
        world.tick()
    world.run(3)
    faulty = {event.interface for event in world.events if event.kind is EventKind.FAULT}
    assert len(faulty) <= 1
    assert [world.view(f"eth{n}").phase for n in range(3)] == [Phase.LIMITED] * 3
    assert world.state.counters.limits_applied == {"eth0": 1, "eth1": 1, "eth2": 1}


def test_a_silent_kernel_is_asked_as_the_back_off_says() -> None:
    """Each question to a kernel that does not answer costs its whole time-out: asked at 0, 1, 3, 7 s, not in every tick."""
    world = World()
    world.fire()
    world.kernel.silent = True
    world.run(7.5)
    assert world.view().phase is Phase.FAULT
    assert 3 <= world.kernel.waits <= 5
    world.kernel.silent = False
    world.run(9)
    assert world.view().phase is Phase.LIMITED


def test_a_blocked_limit_that_comes_to_stand_is_no_fault_any_more() -> None:
    """A step that failed for want of an answer was carried out: the next reading shows it, whatever the back-off."""
    world = World()
    world.run(2)
    world.kernel.offer(2, 150 * MBIT)
    while not world.told(EventKind.LIMIT):
        world.kernel._refusals = {len(world.kernel.sent) + 30: 0, len(world.kernel.sent): errno.EIO}
        world.tick()
    assert world.view().phase is Phase.FAULT
    tree = world.state.limit_states["eth0"].tree_wanted
    converge(world.kernel, world.link(), tree)
    world.touch()
    assert world.view().phase is Phase.LIMITED


def test_a_foreign_root_in_our_place_is_no_repair() -> None:
    """Five repairs within a minute, then a root that is not ours: that fault, and no fight, for nothing more was undone."""
    world = World()
    world.fire()
    for _ in range(5):
        act(world, ActionKind.DELETE_ROOT, HANDLE_ROOT)
    world.kernel.apply([Action(ActionKind.DELETE_ROOT, 2, "eth0", HANDLE_ROOT)])
    act(world, ActionKind.RESTORE_ROOT, PFIFO)
    blocker = world.state.limit_states["eth0"].blocker
    assert blocker is not None
    assert blocker.reason is FaultReason.FOREIGN_QDISC
    assert ("eth0", "fight") not in world.state.warnings


def test_a_lost_lifeline_is_warned_of_once() -> None:
    """Without u32 each further limit leaves the warnings of those that stand alone, and is not tried with filters first."""
    world = three_links()
    world.kernel._machine.able = replace(world.kernel._machine.able, u32=False)
    world.kernel.offer(3, 0)
    world.kernel.offer(4, 0)
    world.run(2.4)
    assert world.view("eth0").phase is Phase.LIMITED
    del world.events[:], world.kernel.sent[:]
    world.run(2.4, {"eth1": 150 * MBIT})
    assert world.view("eth1").phase is Phase.LIMITED
    assert {event.interface for event in world.events if event.kind is EventKind.FOREIGN} == {"eth1"}
    assert not world.told(EventKind.FAULT_CLEARED)
    assert ActionKind.ADD_FILTER not in {action.kind for action in world.kernel.sent}


@pytest.mark.parametrize("said", [{"roots": {99: PFIFO}}, {"unanswered": frozenset({1, 99})}], ids=["read", "no answer"])
def test_what_is_said_of_a_link_without_a_limit_or_unknown_changes_nothing(said: dict[str, Any]) -> None:
    """A link may come and go between two samples, and be read, or asked for in vain, in between: nothing is made of it."""
    world = World(rules_of())
    world.add(1, "lo")
    world.run(0.2)
    output = step(world.state, world.state.rules, Inputs(world.now, **said))
    assert output is NOTHING
    assert 99 not in world.state.tc


def test_a_silence_within_the_back_off_is_one_fault() -> None:
    """The kernel does not answer twice in a row: one fault, and the back-off of the first runs on."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 50 * MBIT})
    silence = Inputs(world.now, unanswered=frozenset({world.link("eth0").ifindex}))
    told = [step(world.state, world.state.rules, silence).events for _ in range(2)]
    assert [[event.kind for event in events] for events in told] == [[EventKind.FAULT], []]
