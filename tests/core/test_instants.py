"""What happens at one exact instant, or within a jitter of it: overrides that begin and end, and readings that are due."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from limiterd.core.auto_release import IdleSlices
from limiterd.core.commands import pause
from limiterd.core.model import (
    HOUR,
    MS,
    SECOND,
    ClassStats,
    EventKind,
    Override,
    OverrideAction,
    Sampling,
    Snapshot,
)
from limiterd.core.state import Inputs
from tests.world import AUTO, MBIT, POLICY, START, TICK_NS, World, observing, rules_of


def override(action: OverrideAction = OverrideAction.EXEMPT, **fields: object) -> Override:
    """An active record for eth0 that expires in an hour."""
    record = Override("REQ-1", ("eth0",), action, START.wall_ns + HOUR, "ops", "why")
    return replace(record, **fields)  # type: ignore[arg-type]  # fields by name


# ---- overrides -----------------------------------------------------------------------------------


def firing_tick() -> int:
    """The wall time at which an excess from the start on fires."""
    world = World()
    world.fire()
    return START.wall_ns + next(e.t_ns for e in world.events if e.kind is EventKind.LIMIT) - START.boot_ns


@pytest.mark.parametrize("threshold_bps", [None, 500 * MBIT])
def test_the_begin_of_an_exemption_opens_no_epoch(threshold_bps: int | None) -> None:
    """On an unlimited link the window that had begun goes on and is noted in its time; the end opens an epoch, once."""
    begin, end = START.wall_ns + 1500 * MS, START.wall_ns + 5 * SECOND
    record = override(not_before_wall_ns=begin, expires_wall_ns=end, threshold_bps=threshold_bps)
    world = World(rules_of(overrides=[record]))
    world.fire()
    assert world.told(EventKind.NOTED) == [(EventKind.NOTED, "sustained")]
    assert [reason for _, reason in world.told(EventKind.EPOCH)] == ["new"]
    world.run(3)
    assert [reason for _, reason in world.told(EventKind.EPOCH)] == ["new", "reload"]


def test_an_exemption_after_the_other_opens_no_epoch() -> None:
    """One exemption gives way to another one: the link was exempt all the time."""
    first = override(expires_wall_ns=START.wall_ns + SECOND)
    world = World(rules_of(overrides=[first, replace(first, id="REQ-0", expires_wall_ns=START.wall_ns + HOUR)]))
    world.run(3)
    assert world.view().override == "REQ-0"
    assert [reason for _, reason in world.told(EventKind.EPOCH)] == ["new"]


def test_an_override_that_begins_at_the_firing_holds_for_it() -> None:
    """not_before = the firing sample's instant: the link is exempt at that sample, no limit comes and goes."""
    world = World(rules_of(overrides=[override(not_before_wall_ns=firing_tick())]))
    world.run(3, {"eth0": 150 * MBIT})
    assert not world.told(EventKind.LIMIT, EventKind.RELEASED)
    assert not world.state.counters.limits_released


def test_an_override_that_ends_at_the_firing_does_not() -> None:
    """expires = the firing sample's instant: the fresh epoch begins with that very sample, nothing is noted."""
    end_ns = firing_tick()
    world = World(rules_of(overrides=[override(expires_wall_ns=end_ns)]))
    world.run(3, {"eth0": 150 * MBIT})
    fresh = [e.t_ns for e in world.events if e.kind is EventKind.EPOCH and e.reason == "reload"]
    assert fresh == [end_ns - START.wall_ns + START.boot_ns]
    assert not world.told(EventKind.NOTED, EventKind.LIMIT)


def test_an_override_that_ends_before_its_link_is_back_does_not_lift() -> None:
    """A decision waits for its link when the override is over at the tick of the return."""
    world = World()
    world.fire()
    gone = world.remove("eth0")
    world.run(1)
    end_ns = world.now.wall_ns + 5 * TICK_NS
    world.rules = rules_of(overrides=[override(not_before_wall_ns=end_ns - 1, expires_wall_ns=end_ns)])
    world.run(0.4)
    world.kernel.add_link(gone.ifindex)
    world.links = (gone,)
    world.tick()
    assert world.rate() == 20 * MBIT


def test_every_end_of_an_override_is_a_fresh_epoch() -> None:
    """A limit-only override judges by the policy's threshold all along, yet its end too limits nothing retroactively."""
    start_ns, end_ns = START.wall_ns + SECOND // 2, START.wall_ns + SECOND
    record = override(OverrideAction.LIMIT, limit_bps=50 * MBIT, not_before_wall_ns=start_ns, expires_wall_ns=end_ns)
    world = World(rules_of(overrides=[record]))
    world.run(2.4, {"eth0": 150 * MBIT})
    fresh = [e.t_ns - START.boot_ns for e in world.events if e.kind is EventKind.EPOCH and e.reason == "reload"]
    assert fresh == [SECOND], "its beginning changes no evidence"
    assert not world.told(EventKind.LIMIT)
    world.run(1)
    assert world.told(EventKind.LIMIT) == [(EventKind.LIMIT, "sustained")]


def test_a_changed_override_has_not_ended() -> None:
    """Another limit in the same limit-only record is no end: the evidence is kept."""
    record = override(OverrideAction.LIMIT, limit_bps=50 * MBIT)
    world = World(rules_of(overrides=[record]))
    world.run(1, {"eth0": 150 * MBIT})
    world.reload(rules_of(overrides=[replace(record, limit_bps=60 * MBIT)]))
    world.run(1.4)
    assert world.told(EventKind.LIMIT) == [(EventKind.LIMIT, "sustained")]
    assert world.rate() == 60 * MBIT


def test_force_against_a_pause_is_none_against_observe() -> None:
    """`limit --force` under a pause overrules the pause alone: enforce to observe lifts it like any other limit."""
    world = World()
    world.command(lambda state, now: pause(state, now, reason="x", by="root"))
    world.limit(force=True)
    assert world.rate() == 20 * MBIT
    world.reload(rules_of(observing()))
    world.run(1)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "policy")]
    assert world.rate() is None


# ---- readings ------------------------------------------------------------------------------------


def jittered(period_ns: int, jitter_ns: int, count: int) -> Iterator[int]:
    """Steps of ticks that come early and late in turns."""
    early = False
    for _ in range(count):
        yield period_ns + (-2 * jitter_ns if early else 2 * jitter_ns)
        early = not early


@pytest.mark.parametrize("interval_ms", [20, 100, 300, 500, 1000])
@pytest.mark.parametrize("slow_read_us", [0, 500])
def test_an_auto_limit_ends_at_every_interval(interval_ms: int, slow_read_us: int) -> None:
    """Demand that has ended releases, however slowly the daemon samples and however its ticks jitter."""
    sampling = Sampling(interval_ns=interval_ms * MS)
    policy = replace(POLICY, release=AUTO)
    world = World(rules_of(policy, sampling=sampling))
    world.limit()
    decided = next(iter(world.state.limit_states.values()))
    assert decided.decision is not None
    decided.decision = replace(decided.decision, manual=False)
    read = world.kernel.read

    def slowly(ifindexes: object) -> object:
        world.pass_time(slow_read_us * 1000)
        return read(ifindexes)  # type: ignore[arg-type]  # handed through

    world.executor.tc = type("Slow", (), {"read": staticmethod(slowly), "apply": staticmethod(world.kernel.apply)})()
    for step_ns in jittered(interval_ms * MS, 50_000, 30_000 // interval_ms):
        world.pass_time(step_ns)
        world.executor.reconcile(world.state, world.rules, Inputs(world.now, snapshot=world.snapshot()))
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "demand_ended")]


def test_a_limit_is_read_once_a_period_whatever_the_jitter() -> None:
    """With ticks as far apart as the read-back, each tick reads: interference is seen within one period."""
    world = World(rules_of(sampling=Sampling(interval_ns=SECOND)))
    world.limit()
    case = next(iter(world.state.limit_states.values()))
    for step_ns in jittered(SECOND, 50_000, 20):
        world.pass_time(step_ns)
        world.executor.reconcile(world.state, world.rules, Inputs(world.now, snapshot=world.snapshot()))
        assert case.read_t_ns == world.now.boot_ns


def test_a_reading_in_the_midst_of_a_slice_does_not_break_the_quiet() -> None:
    """A tc event reads just before the slice's second is over; the next reading ends the slice, and it is quiet."""
    quiet = IdleSlices()
    for t_ns in (0, 460 * MS, SECOND, 1950 * MS, 1960 * MS, 3 * SECOND):
        quiet.read(ClassStats(), t_ns, 20 * MBIT, 500_000)
    assert quiet.lasted_ns() == 3 * SECOND
    quiet.read(ClassStats(), 4501 * MS, 20 * MBIT, 500_000)
    assert quiet.lasted_ns() == 0, "nobody looked for longer than 1.5 s"


def test_a_tc_event_does_not_delay_the_end_of_a_slice() -> None:
    """Foreign tc changes read the limit at any moment: the slices still end after their second, and the release is on time."""
    world = World(rules_of(replace(POLICY, release=AUTO)))
    world.fire()
    world.run(3)
    world.kernel.offer(world.link().ifindex, 0)
    begun_ns = world.now.boot_ns
    for step in range(100):
        world.tick()
        if step % 9 == 4:
            world.touch()
        if world.told(EventKind.RELEASED):
            break
    assert world.now.boot_ns - begun_ns <= AUTO.quiet_for_ns + 2 * SECOND


# ---- samples -------------------------------------------------------------------------------------


def test_a_link_without_a_sample_is_not_gone() -> None:
    """Where a snapshot has samples of some links only, the others are there all the same: limits and evidence stay."""
    world = World()
    world.add(3, "eth1")
    world.fire()
    world.kernel.offer(3, 150 * MBIT)
    for _ in range(24):
        for name in ("eth0", "eth1"):
            world.pass_time(TICK_NS // 2)
            some = Snapshot(world.now.boot_ns, (world.link(name),), [world.kernel.links[world.link(name).ifindex].tx_bytes])
            world.executor.reconcile(world.state, world.rules, Inputs(world.now, some, world.links))
    assert not world.told(EventKind.LINK_GONE, EventKind.LINK_BACK)
    assert (world.rate(), world.rate("eth1")) == (20 * MBIT, 20 * MBIT)
