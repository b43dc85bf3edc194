"""A limit that traffic passes by: what the meter says of two counters, and what becomes of the link's phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.bypass import BypassMeter
from limiterd.core.model import (
    HANDLE_ROOT,
    MS,
    SECOND,
    Action,
    ActionKind,
    ClassStats,
    Enforcement,
    EventKind,
    HtbClass,
    Limit,
    Match,
    Phase,
    Release,
    ReleaseMode,
    TcActual,
)
from limiterd.core.units import format_rate
from tests.world import AUTO, LIMIT, MBIT, POLICY, World, rules_of

LIMIT_BPS = 20 * MBIT
USUAL = Enforcement()


@dataclass
class Line:
    """Two counters that traffic moves, and a meter that reads them once a second."""

    limit_bps: int = LIMIT_BPS
    now_ns: int = 1000 * SECOND
    device_bytes: float = 10**9
    shown_bytes: int = 10**9
    passed_bytes: float = 0.0
    exempt_bytes: float = 0.0
    gso: float = 1.0
    refresh_ns: int = 0

    def __post_init__(self) -> None:
        self.meter = BypassMeter()
        self.refreshed_ns = self.now_ns
        self.read()

    def flow(self, duration_ns: int, *, shaped: float = 0.0, exempt: float = 0.0, beside: float = 0.0) -> None:
        """Traffic for a while; rates are shares of the limit."""
        seconds = duration_ns / SECOND
        per_share = self.limit_bps / 8 * seconds
        self.passed_bytes += shaped * per_share
        self.exempt_bytes += exempt * per_share
        self.device_bytes += ((shaped + exempt) * self.gso + beside) * per_share
        self.now_ns += duration_ns
        if self.now_ns - self.refreshed_ns >= self.refresh_ns:
            self.refreshed_ns, self.shown_bytes = self.now_ns, int(self.device_bytes)

    def read(self, skew_ns: int = 0) -> None:
        """The device's counter now, the classes' a little later (nothing flows in between)."""
        stats = ClassStats(sent_bytes=int(self.passed_bytes), exempt_bytes=int(self.exempt_bytes))
        actual = TcActual(2, None, stats=stats, read_t_ns=self.now_ns + skew_ns)
        self.meter.read((self.now_ns, self.shown_bytes), actual, self.limit_bps)


def seconds_to_fault(line: Line, share: float, most: int = 60, **more: float) -> float | None:
    """How long such a bypass lasts until the meter says so; it begins in the middle between two readings."""
    begun_ns = line.now_ns
    line.flow(SECOND // 2, beside=share, **more)
    for _ in range(most):
        line.read()
        if line.meter.active:
            return (line.now_ns - begun_ns) / SECOND
        line.flow(SECOND // 2, beside=share, **more)
        line.flow(SECOND // 2, beside=share, **more)
    return None


@given(st.floats(0.35, 20), st.floats(0, 1), st.floats(0, 0.3), st.sampled_from([1.0, 0.957]))
def test_a_third_of_the_limit_beside_it_is_found_within_five_seconds(
    share: float, shaped: float, exempt: float, gso: float
) -> None:
    """Whatever goes through the classes meanwhile, and as the device counts it."""
    found = seconds_to_fault(Line(gso=gso), share, shaped=shaped, exempt=exempt)
    assert found is not None
    assert found <= 4.5


@given(st.floats(0, 0.1), st.floats(0, 1), st.floats(0, 50), st.sampled_from([1.0, 0.957, 1.04]))
def test_a_tenth_never_is(share: float, shaped: float, exempt: float, gso: float) -> None:
    """Nor with exempt traffic of many times the limit, counted a little smaller or larger."""
    assert seconds_to_fault(Line(gso=gso), share, shaped=shaped, exempt=exempt) is None


STEPS = st.lists(
    st.tuples(st.integers(50, 3000), st.floats(0, 1), st.sampled_from([0.0, 0.0, 1.0, 50.0]), st.integers(0, 5)),
    min_size=1,
    max_size=60,
)


@given(STEPS, st.sampled_from([0, 250, 500, 1000, 1500, 2000, 2500]), st.sampled_from([1.0, 0.957, 0.943]))
def test_honest_traffic_never_is(steps: list[tuple[int, float, float, int]], refresh_ms: int, gso: float) -> None:
    """Traffic that comes and goes, read at odd moments and late, by a counter that is refreshed seldom."""
    line = Line(gso=gso, refresh_ns=refresh_ms * MS)
    for duration_ms, shaped, exempt, skew_ms in steps:
        for _ in range(-(-duration_ms // 50)):
            line.flow(50 * MS, shaped=shaped, exempt=exempt if refresh_ms == 0 else 0.0)
        line.read(skew_ms * MS // 5)
        assert not line.meter.active


@pytest.mark.parametrize("refresh_ms", [250, 500, 1000, 1500, 2000, 2500])
def test_a_counter_that_is_refreshed_seldom_hides_no_bypass(refresh_ms: int) -> None:
    """Where as much passes beside the limit as twice the limit."""
    line = Line(refresh_ns=refresh_ms * MS)
    for _ in range(40):
        for _ in range(10):
            line.flow(100 * MS, shaped=1.0, beside=2.0)
        line.read()
    assert line.meter.active


def test_a_queue_behind_the_classes_is_none() -> None:
    """A device that takes half of what the classes pass, and the rest when they rest."""
    line = Line()
    for share in (1.0, 0.0) * 20:
        line.flow(SECOND, shaped=share, beside=0.5 - share)
        line.read()
        assert not line.meter.active


def test_it_is_over_after_ten_seconds_of_calm() -> None:
    """Not after nine; an excess in between begins the count anew."""
    line = Line()
    assert seconds_to_fault(line, 1.0) is not None
    for share, seconds, active in ((0.0, 9, True), (1.0, 1, True), (0.0, 9, True), (0.0, 1, False)):
        for _ in range(seconds):
            line.flow(SECOND, beside=share)
            line.read()
        assert line.meter.active is active


# ---- on the engine -----------------------------------------------------------------------------------


def limited(enforcement: Enforcement = USUAL) -> World:
    """A world whose link is limited, with traffic at the limit."""
    world = World(rules_of(enforcement=enforcement))
    world.fire()
    assert world.view().phase is Phase.LIMITED
    return world


def until(world: World, phase: Phase, most_s: float) -> float:
    """Tick until the link has this phase; the seconds that took."""
    begun_ns = world.now.boot_ns
    while world.view().phase is not phase:
        assert world.now.boot_ns - begun_ns < most_s * SECOND, f"not {phase} within {most_s} s"
        world.tick()
    return (world.now.boot_ns - begun_ns) / SECOND


def told(world: World) -> list[tuple[EventKind, str]]:
    """What was said of faults."""
    return world.told(EventKind.FAULT, EventKind.FAULT_CLEARED)


@pytest.mark.parametrize("read_back_ns", [SECOND // 5, SECOND, 3600 * SECOND])
def test_a_bypass_is_a_fault_until_ten_seconds_of_calm(read_back_ns: int) -> None:
    """Told once at its begin and once at its end, the tree left as it is, whatever the period of the tree's check."""
    world = limited(enforcement=Enforcement(read_back_ns=read_back_ns))
    sent = len(world.kernel.sent)
    world.kernel.links[2].bypass_bps = 7 * MBIT
    until(world, Phase.FAULT, 5)
    world.run(20)
    fault = world.frame().limit_states["eth0"].fault
    assert fault is not None
    assert fault.message.startswith(f"eth0: {format_rate(7 * MBIT)} pass beside the limit of {format_rate(20 * MBIT)}")
    world.kernel.links[2].bypass_bps = 30 * MBIT
    world.run(3)
    fault = world.frame().limit_states["eth0"].fault
    assert fault is not None
    assert format_rate(30 * MBIT) in fault.message
    world.kernel.links[2].bypass_bps = 0
    assert until(world, Phase.LIMITED, 13) > 9
    assert told(world) == [(EventKind.FAULT, "bypass"), (EventKind.FAULT_CLEARED, "bypass")]
    assert len(world.kernel.sent) == sent


def test_a_bypassed_limit_is_still_repaired_at_once() -> None:
    """A limit that traffic passes by is deleted: it stands again in the next tick but one, and the fault goes on."""
    world = limited()
    world.kernel.links[2].bypass_bps = 30 * MBIT
    until(world, Phase.FAULT, 5)
    world.kernel.by_hand([Action(ActionKind.DELETE_ROOT, 2, "eth0", HANDLE_ROOT)])
    world.run(1)
    assert world.rate() == 20 * MBIT
    world.run(5)
    assert told(world) == [(EventKind.FAULT, "bypass")]


def test_a_tenth_beside_the_limit_is_no_fault() -> None:
    """2 Mbit/s beside 20."""
    world = limited()
    world.kernel.links[2].bypass_bps = 2 * MBIT
    world.run(60)
    assert told(world) == []


def test_exempt_traffic_is_no_bypass_and_its_rate_shows() -> None:
    """Twenty times the limit through the exempt class."""
    exempt = replace(POLICY, limit=replace(LIMIT, exempt=(Match(to="10.0.0.0/8"),)))
    world = World(rules_of(exempt))
    world.fire()
    world.kernel.links[2].exempt_bps = 400 * MBIT
    world.run(30)
    assert told(world) == []
    assert world.view().exempt_bps == 400 * MBIT


Cause = Callable[[World], None]


def foreign_class(world: World) -> None:
    """A class of others, and a filter that sends all to it."""
    item = HtbClass(0x1D1D0099, 0x1D1D0000, 10**9, 10**9, 65_536, 65_536, 1_514)
    world.kernel.by_hand([Action(ActionKind.ADD_CLASS, 2, "eth0", item)])


def direct_queue(world: World) -> None:
    """Packets that name HTB's root as their class."""
    htb = world.kernel.links[2].htb
    assert htb is not None
    htb.direct_packets += 1000


@pytest.mark.parametrize(
    ("cause", "named"), [(foreign_class, "class 1d1d:99"), (direct_queue, "SO_PRIORITY"), (lambda _: None, "XDP")]
)
def test_the_cause_is_named_where_it_can_be_seen(cause: Cause, named: str) -> None:
    """A foreign class, the direct queue, else what it may be."""
    world = limited()
    world.kernel.links[2].bypass_bps = 100 * MBIT
    for _ in range(50):
        if world.view().phase is Phase.FAULT:
            break
        cause(world)
        world.tick()
    fault = world.frame().limit_states["eth0"].fault
    assert fault is not None
    assert named in fault.message


def test_a_bypass_is_not_the_end_of_demand() -> None:
    """In `auto`, with nothing in the classes and all beside them, the limit stays; it goes when that has ended too."""
    world = limited_auto()
    world.kernel.links[2].bypass_bps = 100 * MBIT
    world.run(30, {"eth0": 0})
    assert world.view().phase is Phase.FAULT
    world.kernel.links[2].bypass_bps = 0
    world.run(10 + 3 + 4)
    assert world.view().phase is Phase.CONFORMING


def limited_auto() -> World:
    """A limit that ends by itself."""
    release = Release(
        mode=ReleaseMode.AUTO, min_hold_ns=AUTO.min_hold_ns, max_hold_ns=AUTO.max_hold_ns, quiet_for_ns=AUTO.quiet_for_ns
    )
    world = World(rules_of(replace(POLICY, release=release)))
    world.fire()
    return world


def changes(world: World) -> Iterator[str]:
    """What happens to a limit in its life, one after the other; each name is for the failure's message."""
    yield "nothing"
    world.reload(rules_of(replace(POLICY, limit=Limit(rate_bps=50 * MBIT))))
    yield "raised"
    world.reload(rules_of(replace(POLICY, limit=Limit(rate_bps=10 * MBIT))))
    yield "lowered"
    world.links = tuple(replace(link, mtu=9000, gso_max_bytes=196_608) for link in world.links)
    yield "another MTU"
    world.boot()
    yield "adopted"
    world.kernel.by_hand([Action(ActionKind.DELETE_ROOT, 2, "eth0", HANDLE_ROOT)])
    world.touch()
    yield "repaired"
    world.release()
    world.run(1)
    world.limit()
    yield "released and limited"


def test_an_hour_of_honest_traffic_is_no_bypass() -> None:
    """Through every change of a limit, beside short bursts of nothing and of all that is offered."""
    world = limited()
    for change in changes(world):
        for offered in (500 * MBIT, 0, 5 * MBIT):
            world.run(170, {"eth0": offered})
            assert [reason for _, reason in told(world)].count("bypass") == 0, change
