"""What is found on a link at a start, or after it: adopted, finished, cleared away, or left alone and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limiterd.core.model import (
    Action,
    ActionKind,
    EventKind,
    FaultReason,
    Journal,
    Phase,
    RootQdisc,
)
from limiterd.core.status import build
from limiterd.daemon.event_log import sentence
from tests.world import LIMIT, MBIT, POLICY, World, observing, rules_of

PFIFO = RootQdisc("pfifo", 0x50000)


def limited(*, journal: bool = True) -> World:
    """A world whose daemon has ended under a limit, with or without what it remembered."""
    world = World()
    world.fire()
    world.kernel.offer(2, 0)
    world.disk = world.disk if journal else Journal()
    world.events.clear()
    return world


def sentences(world: World) -> str:
    """All that was told, in words."""
    return " | ".join(sentence(event)[1] for event in world.events if event.kind is not EventKind.EPOCH)


# ---- a policy that only observes -----------------------------------------------------------------


@pytest.mark.parametrize("journal", [True, False])
def test_observe_leaves_what_it_finds(*, journal: bool) -> None:
    """A limit of an earlier run stands under `observe`: not one tc message, phase fault, named with a way to lift it."""
    world = limited(journal=journal)
    world.rules = rules_of(observing())
    sent = len(world.kernel.sent)
    world.boot()
    world.run(5, {"eth0": 150 * MBIT})
    assert len(world.kernel.sent) == sent
    assert world.rate() == 20 * MBIT
    assert world.view().phase is Phase.FAULT
    (fault,) = build(world.frame()).faults
    assert fault.reason is FaultReason.OTHER
    assert "a limit of an earlier run stands; limiterctl release eth0 lifts it" in fault.message
    assert world.told(EventKind.FAULT) == [(EventKind.FAULT, "other")]


def test_observe_leaves_half_a_limit_too() -> None:
    """A tree without its default class passes everything; under `observe` it is named all the same."""
    world = limited(journal=False)
    world.kernel.by_hand([Action(ActionKind.DELETE_CLASS, 2, "eth0", 0x1D1D0020)])
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    assert world.root() == "htb 1d1d:"
    assert "half-made" in build(world.frame()).faults[0].message


@pytest.mark.parametrize("everything", [True, False])
def test_an_operator_lifts_what_was_left(*, everything: bool) -> None:
    """The advice of the fault works: release lifts the limit, tells since when it stood, and counts it."""
    from limiterd.core.commands import release_all  # noqa: PLC0415 - one use

    world = limited()
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    if everything:
        world.command(lambda state, now: release_all(state, now, reason="test", by="root"))
    else:
        world.release()
    world.run(1)
    assert world.root() == "noqueue 0:"
    assert "limited since" in sentences(world)
    assert world.state.counters.limits_released == {("eth0", "operator"): 1}
    assert world.view().phase is Phase.CONFORMING
    assert not build(world.frame()).faults
    assert world.disk.decisions == ()


def test_force_takes_over_what_was_left() -> None:
    """limit --force makes it a limit of this daemon's, in place."""
    world = limited()
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.limit(rate_bps=30 * MBIT, force=True)
    world.run(0.3)
    assert (world.rate(), world.view().phase) == (30 * MBIT, Phase.LIMITED)
    assert not build(world.frame()).faults


def test_a_reload_to_enforce_adopts_what_was_left() -> None:
    """Back under an enforcing policy it is the limit that the journal knows, over a second start too."""
    world = limited()
    since = world.disk.decisions[0].since_wall_ns
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.boot()
    world.run(1)
    world.reload(rules_of())
    world.run(0.3)
    assert (world.view().phase, world.view().since_wall_ns, world.view().reason) == (Phase.LIMITED, since, "sustained")
    assert world.told(EventKind.ADOPTED) == [(EventKind.ADOPTED, "sustained")]


def test_what_was_left_goes_where_no_policy_matches_any_more() -> None:
    """A reload after which nothing watches the link removes the limit: nobody would see it."""
    world = limited()
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.reload(rules_of(replace(POLICY, interfaces=("none*",))))
    world.run(1)
    assert world.root() == "noqueue 0:"


def test_what_was_left_and_is_deleted_by_hand_is_over() -> None:
    """tc qdisc del by the operator ends the fault and the decision; detection begins anew."""
    world = limited()
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.kernel.by_hand([Action(ActionKind.DELETE_ROOT, 2, "eth0", 0x1D1D0000)])
    world.touch()
    world.run(0.2)
    assert world.view().phase is Phase.CONFORMING
    assert world.disk.decisions == ()
    world.fire()
    assert world.told(EventKind.WOULD_LIMIT)


def test_half_a_limit_that_was_left_and_is_deleted_by_hand_is_over_too() -> None:
    """Without a decision nothing is told as released."""
    world = limited(journal=False)
    world.kernel.by_hand([Action(ActionKind.DELETE_CLASS, 2, "eth0", 0x1D1D0020)])
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.kernel.by_hand([Action(ActionKind.DELETE_ROOT, 2, "eth0", 0x1D1D0000)])
    world.touch()
    world.run(0.2)
    assert world.view().phase is Phase.CONFORMING
    assert not world.told(EventKind.RELEASED)


def test_another_reload_under_observe_leaves_it_still() -> None:
    """Only a policy that enforces, or none, takes up what was left."""
    world = limited()
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    sent = len(world.kernel.sent)
    world.reload(rules_of(replace(observing(), name="watched-only")))
    world.run(1)
    assert len(world.kernel.sent) == sent
    assert world.view().phase is Phase.FAULT


def test_half_a_limit_that_is_not_read_at_the_reload_is_taken_up_when_it_is() -> None:
    """What the kernel shows is never assumed: the tree is looked at again before anything is done."""
    world = limited(journal=False)
    world.kernel.by_hand([Action(ActionKind.DELETE_CLASS, 2, "eth0", 0x1D1D0020)])
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.state.tc.pop(2)
    world.reload(rules_of())
    world.touch()
    world.run(1)
    assert world.root() == "noqueue 0:"


def test_observe_after_a_reboot_forgets_the_decision() -> None:
    """Nothing stands after a reboot: the decision of the earlier policy is over, and told so."""
    world = limited()
    world.kernel.delete_link(2)
    world.kernel.add_link(2)
    world.store.boot = "two"
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "policy")]
    assert world.disk.decisions == ()
    assert world.view().phase is Phase.CONFORMING


def test_exit_leaves_what_was_left() -> None:
    """on_exit: remove lifts what this daemon holds, and not what it found and left alone."""
    world = limited()
    world.rules = rules_of(observing())
    world.boot()
    world.run(1)
    world.controller.lift_all()
    world.run(1)
    assert world.rate() == 20 * MBIT


# ---- only what stood whole is adopted ------------------------------------------------------------


def test_half_a_tree_is_put_back_not_adopted() -> None:
    """Killed between root and class, with the decision in the journal: completed, and told as put back."""
    world = limited()
    for classid in (0x1D1D0010, 0x1D1D0020, 0x1D1D0001):
        world.kernel.by_hand([Action(ActionKind.DELETE_CLASS, 2, "eth0", classid)])
    world.boot()
    world.run(0.3)
    assert world.rate() == 20 * MBIT
    assert world.told(EventKind.ADOPTED, EventKind.RESTORED) == [(EventKind.RESTORED, "sustained")]


# ---- a release that was decided ------------------------------------------------------------------


def test_a_release_while_tc_is_silent_outlives_a_restart() -> None:
    """Accepted while the kernel gave no answer: after a restart in silence, and the next answer, the limit goes, told once."""
    world = limited()
    world.boot()
    world.kernel.silent = True
    world.release()
    world.boot()
    world.run(1)
    world.kernel.silent = False
    world.run(3)
    assert world.root() == "noqueue 0:"
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "operator")]
    assert "limited since" in sentences(world)
    assert world.disk.releases == ()
    assert world.view().phase is not Phase.LIMITED


def test_a_release_goes_on_under_another_name() -> None:
    """The link is renamed before the limit went: it goes, and is not adopted under the new name."""
    world = limited()
    world.boot()
    world.kernel.silent = True
    world.release()
    world.rename("eth0", "eth9")
    world.kernel.silent = False
    world.run(3)
    assert world.root("eth9") == "noqueue 0:"
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "operator")]
    assert not world.told(EventKind.LEFTOVER)


def test_a_release_that_was_told_is_not_told_again() -> None:
    """Killed while the queue drains: the next start removes the root, bounded in time, and says nothing twice."""
    world = limited()
    world.boot()
    world.kernel.links[2].stalled_bytes = 1000
    world.release()
    world.run(0.2)
    assert world.told(EventKind.RELEASED)
    world.boot()
    world.run(2)
    assert world.root() == "noqueue 0:"
    assert len(world.told(EventKind.RELEASED)) == 1
    assert world.disk.releases == ()


def test_a_release_of_an_observing_daemon_goes_on() -> None:
    """The reload to observe lifts; killed before it is done, the next start finishes it: it was this daemon's."""
    world = limited()
    world.boot()
    world.kernel.silent = True
    world.reload(rules_of(observing()))
    world.boot()
    world.kernel.silent = False
    world.run(3)
    assert world.root() == "noqueue 0:"


# ---- what could not be read ----------------------------------------------------------------------


@pytest.mark.parametrize("journal", [True, False])
def test_silence_at_the_start_is_a_fault(*, journal: bool) -> None:
    """tc gives no answer at a start: a fault says so; with the answer the limit is adopted and the fault over."""
    world = limited(journal=journal)
    world.kernel.silent = True
    world.boot()
    world.run(1)
    assert any(f.reason is FaultReason.NO_ANSWER for f in build(world.frame()).faults)
    assert "cannot be read" in " ".join(f.message for f in world.problems.all())
    world.kernel.silent = False
    world.run(3)
    assert world.view().phase is Phase.LIMITED
    assert not build(world.frame()).faults


def test_a_tree_that_could_not_be_read_is_read_later() -> None:
    """The roots were told, the tree was not: a fault, and the limit is adopted when the kernel answers."""
    world = limited(journal=False)
    roots = world.kernel.roots
    found = roots()
    world.kernel.roots = lambda: found  # type: ignore[method-assign]
    world.kernel.silent = True
    world.boot()
    world.run(1)
    assert "what stands on eth0 cannot be read" in " ".join(f.message for f in world.problems.all())
    world.kernel.silent, world.kernel.roots = False, roots  # type: ignore[method-assign]
    world.run(5)
    assert world.view().phase is Phase.LIMITED
    assert world.problems.all() == ()


# ---- what never stood ----------------------------------------------------------------------------


def test_a_limit_that_never_stood_is_withdrawn_not_released() -> None:
    """In fault from the beginning, then released by hand: no "limited since", and no release is counted."""
    world = World()
    world.kernel.links[2].root = PFIFO
    world.fire()
    assert world.view().phase is Phase.FAULT
    world.release()
    world.run(1)
    assert not world.told(EventKind.RELEASED)
    assert world.told(EventKind.WITHDRAWN) == [(EventKind.WITHDRAWN, "operator")]
    assert "which never stood" in sentences(world)
    assert not world.state.counters.limits_released
    assert world.root() == "pfifo 5:"


def test_over_a_restart_it_still_never_stood() -> None:
    """The journal knows that a decision's limit never stood: a takeover that is allowed later may take the root."""
    world = World()
    world.kernel.links[2].root = PFIFO
    world.fire()
    world.rules = rules_of(replace(POLICY, foreign_qdisc=type(POLICY.foreign_qdisc)("takeover"), limit=LIMIT))
    world.boot()
    world.run(1)
    assert world.view().phase is Phase.LIMITED
    world.release()
    world.run(1)
    assert world.told(EventKind.RELEASED)
    assert world.root() == "pfifo 5:"


# ---- foreign roots -------------------------------------------------------------------------------


def faults(world: World) -> str:
    """All fault and warning texts."""
    return " | ".join(fault.message for fault in build(world.frame()).faults)


def test_advice_on_a_root_in_the_place_of_ours_works_and_names_no_setting() -> None:
    """The limit's root was replaced: takeover would not help and is not advised; the command that is advised does."""
    world = limited()
    world.boot()
    for takeover in ("refuse", "takeover"):
        world.reload(rules_of(replace(POLICY, foreign_qdisc=type(POLICY.foreign_qdisc)(takeover))))
        world.kernel.links[2].htb = None
        world.kernel.links[2].root = PFIFO
        world.touch()
        world.run(2)
        assert "was put in the place of limiterd's; remove it: tc qdisc del dev eth0 root" in faults(world)
        assert "takeover" not in faults(world)
        world.kernel.links[2].root = None
        world.touch()
        world.run(0.2)
        assert world.view().phase is Phase.LIMITED
        assert not faults(world)


def test_takeover_that_will_work_is_no_warning() -> None:
    """A root that can be taken over and restored is nothing to warn of; one that cannot, is."""
    takeover = replace(POLICY, foreign_qdisc=type(POLICY.foreign_qdisc)("takeover"))
    world = World(rules_of(takeover))
    world.kernel.links[2].root = PFIFO
    world.touch()
    world.run(0.2)
    assert not faults(world)
    world.kernel.links[2].root = RootQdisc("prio", 0x50000, has_children=True)
    world.touch()
    world.run(0.2)
    assert "could not be restored exactly; remove it: tc qdisc del dev eth0 root" in faults(world)


def test_the_warning_follows_the_policy_and_back() -> None:
    """In fault for a foreign root, observed for a while, enforced again: the warning is there at once."""
    world = World()
    world.kernel.links[2].root = PFIFO
    world.fire()
    world.kernel.offer(2, 0)
    world.reload(rules_of(observing()))
    world.run(1)
    assert not faults(world)
    world.reload(rules_of())
    assert "is not limiterd's; remove it: tc qdisc del dev eth0 root, or set foreign_qdisc: takeover and reload" in faults(world)


def test_a_fight_with_another_limiterd_is_one_sentence() -> None:
    """Somebody sets our classes to another rate again and again: both rates, and a guess who it is."""
    world = limited()
    world.boot()
    for _ in range(8):
        htb = world.kernel.links[2].htb
        assert htb is not None
        for classid, item in htb.classes.items():
            htb.classes[classid] = replace(item, rate_bps=10**12 if classid == 0x1D1D0001 else item.rate_bps, ceil_bps=10**12)
        world.touch()
        world.run(0.2)
    text = faults(world)
    assert "(set to 1 Tbit/s instead of 20 Mbit/s); another limiterd?" in text or "(set to 1tbit instead of 20mbit)" in text
    assert "wanted" not in text


def test_a_fight_over_the_lifeline_tells_what_was_changed() -> None:
    """Where the limit's own rate is untouched nobody is suspected by name."""
    world = limited()
    world.boot()
    for _ in range(8):
        htb = world.kernel.links[2].htb
        assert htb is not None
        htb.classes[0x1D1D0010] = replace(htb.classes[0x1D1D0010], rate_bps=8 * MBIT)
        world.touch()
        world.run(0.2)
    assert "was undone" in faults(world)
    assert "another limiterd" not in faults(world)


def test_a_tree_that_is_wanted_anew_and_stands_already_waits_for_a_reading() -> None:
    """A wanted tree that equals the standing one is nothing to do, and old counters tell nothing of traffic that passes by."""
    world = World()
    world.fire()
    world.run(0.1)
    limit_state = world.state.limit_states["eth0"]
    assert limit_state.tree_wanted is not None
    limit_state.fresh = False
    limit_state.tree_wanted = replace(limit_state.tree_wanted)
    sent = len(world.kernel.sent)
    world.tick()
    assert len(world.kernel.sent) == sent
    assert world.view().phase is Phase.LIMITED
