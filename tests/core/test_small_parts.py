"""The small parts of the core: release rules, back-off, histograms, the response table, status documents, errors."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.auto_release import IdleSlices, hold
from limiterd.core.detector import Detector
from limiterd.core.errors import ConfigError, Problem, errno_name
from limiterd.core.faults import Backoff, Fight, obstacle_of
from limiterd.core.firing_policy import response
from limiterd.core.histogram import Buckets
from limiterd.core.limit_state import TRANSITIONS, LimitState, Signal, Stage
from limiterd.core.model import (
    HOUR,
    MINUTE,
    MS,
    SECOND,
    Action,
    ActionKind,
    ActionResult,
    ClassStats,
    Decision,
    Detect,
    EventKind,
    Fault,
    FaultReason,
    Link,
    Override,
    OverrideAction,
    Phase,
    PolicyMode,
    Reason,
    Release,
    ReleaseReason,
    Sampling,
    Snapshot,
)
from limiterd.core.status import DaemonInfo, aged, build, document, frame, stall
from tests.world import LIMIT, MBIT, POLICY, START, World, rules_of


@given(st.integers(1, 40))
def test_the_hold_grows_and_is_capped(strikes: int) -> None:
    """Hold = min_hold · multiplier^(strikes−1), at most max_hold; the reason tells whether the cap cut it."""
    rule = Release(min_hold_ns=5 * MINUTE, max_hold_ns=24 * HOUR, multiplier_ppm=2_000_000)
    exact = 5 * MINUTE * 2 ** (strikes - 1)
    reason = ReleaseReason.MAX_HOLD if exact > 24 * HOUR else ReleaseReason.DEMAND_ENDED
    assert hold(rule, strikes) == (min(exact, 24 * HOUR), reason)


def test_quiet_is_unbroken_slices_below_the_quiet_rate() -> None:
    """A second below the rate is quiet; a drop, a backlog, too much traffic or an unobserved gap breaks it."""
    quiet = IdleSlices()
    stats = ClassStats()

    def read(second: float, **more: int) -> int:
        nonlocal stats
        stats = replace(stats, **more)
        quiet.read(stats, int(second * SECOND), 8 * MBIT, 500_000)
        return quiet.lasted_ns()

    assert read(0) == 0
    assert read(0.5) == 0
    assert read(1, sent_bytes=499_000) == SECOND
    assert read(2) == 2 * SECOND
    assert read(3, drops=1) == 0
    assert read(4) == SECOND
    assert read(5, backlog_bytes=1) == 0
    assert read(6, backlog_bytes=0) == SECOND
    assert read(7, sent_bytes=5_000_000) == 0
    assert read(8) == SECOND
    assert read(9.6) == 0, "nobody looked for longer than 1.5 s"
    assert read(11) == 1400 * MS
    assert read(12, sent_bytes=0) == 0


def test_a_slice_ends_with_the_reading_nearest_to_its_second() -> None:
    """Readings 0.6 to 1.4 s apart, a little early or late: no slice is longer than 1.5 s, and no quiet one is lost."""
    for apart_ms in range(50, 1500, 10):
        quiet = IdleSlices()
        readings = range(0, 20_000, apart_ms)
        for t_ms in readings:
            quiet.read(ClassStats(), t_ms * MS, 8 * MBIT, 500_000)
        assert quiet.lasted_ns() >= (readings[-1] - 1500) * MS, apart_ms


def test_quiet_time_is_not_averaged_with_loud_time() -> None:
    """Alternating seconds at 55 % of the limit and silence are never two quiet ones, a little early or late."""
    quiet, sent_bytes = IdleSlices(), 0
    for second in range(40):
        sent_bytes += 550_000 if second % 2 else 0
        quiet.read(ClassStats(sent_bytes=sent_bytes), second * 990 * MS, 8 * MBIT, 500_000)
        assert quiet.lasted_ns() <= SECOND


def test_backoff_doubles_to_a_minute() -> None:
    """1, 2, 4 … 60 s; hurry tries at once and keeps the count, reset forgets it."""
    backoff = Backoff()
    pauses = []
    for _ in range(8):
        backoff.failed(0)
        pauses.append(backoff.retry_at_ns // SECOND)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.hurry()
    assert (backoff.attempts, backoff.retry_at_ns) == (8, 0)
    backoff.reset()
    assert backoff.attempts == 0


def test_a_fight_is_six_repairs_within_a_minute() -> None:
    """Five repairs a minute are chance, the sixth is a fight; slower ones never are."""
    fight = Fight()
    assert [fight.repaired(n * SECOND) for n in range(7)] == [False] * 5 + [True] * 2
    slow = Fight()
    assert not any(slow.repaired(n * 13 * SECOND) for n in range(50))


@pytest.mark.parametrize(
    ("kind", "number", "reason"),
    [
        (ActionKind.ADD_ROOT, errno.ENOENT, FaultReason.MISSING_MODULE),
        (ActionKind.CHANGE_CLASS, errno.ENOENT, FaultReason.OTHER),
        (ActionKind.ADD_CLASS, errno.EEXIST, FaultReason.OTHER),
        (ActionKind.ADD_ROOT, errno.EEXIST, FaultReason.FOREIGN_QDISC),
        (ActionKind.ADD_ROOT, 12345, FaultReason.OTHER),
        (ActionKind.ADD_ROOT, errno.EOPNOTSUPP, FaultReason.MISSING_MODULE),
    ],
)
def test_what_an_errno_means_depends_on_the_step(kind: ActionKind, number: int, reason: FaultReason) -> None:
    """ENOENT says "kind unknown" only of an add, EEXIST "somebody's root" only of the root."""
    found = obstacle_of(ActionResult(Action(kind, 2, "eth0"), number, "words"))
    assert found.reason is reason
    assert "eth0" in found.message
    assert errno_name(number) in found.message


def test_an_errno_has_one_name() -> None:
    """95 is EOPNOTSUPP to the kernel (Python lists ENOTSUP for it as well); what has no name is a number."""
    assert (errno_name(95), errno_name(1), errno_name(12345)) == ("EOPNOTSUPP", "EPERM", "12345")


def test_histogram_counts_cumulatively() -> None:
    """An observation counts in every bucket at or above it."""
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        buckets.observe(value)
    view = buckets.view()
    assert (view.counts, view.total, view.sum_s) == ((2, 3), 4, 12.0)


@pytest.mark.parametrize("mode", PolicyMode)
@pytest.mark.parametrize("exempt", [False, True])
@pytest.mark.parametrize("paused", [False, True])
def test_the_response_table(mode: PolicyMode, exempt: bool, paused: bool) -> None:  # noqa: FBT001 - parametrized
    """Exempt: noted. Observing or paused: would_limit. Else: limit."""
    wanted = EventKind.NOTED if exempt else EventKind.WOULD_LIMIT if paused or mode is PolicyMode.OBSERVE else EventKind.LIMIT
    assert response(mode, exempt=exempt, paused=paused) is wanted


def test_the_stage_table_is_closed() -> None:
    """Every stage is left by something, every target is a stage; an unknown signal is a defect that shows."""
    assert {stage for stage, _ in TRANSITIONS} == set(Stage)
    case = LimitState(Link(2, "eth0"))
    with pytest.raises(KeyError):
        case.signal(Signal.SEEN)


def test_a_case_without_a_decision_has_no_order() -> None:
    """Asking an idle case for its limit is a defect that shows; a limit that is due without an obstacle is pending."""
    case = LimitState(Link(2, "eth0"))
    with pytest.raises(ValueError, match="no limit is held"):
        case.impose()
    assert case.phase(pending=False, exempt=False) is Phase.CONFORMING
    case.signal(Signal.ORDER)
    assert case.phase(pending=False, exempt=False) is Phase.PENDING


def test_a_rule_that_is_none_is_refused() -> None:
    """A slice longer than the window is no rule."""
    with pytest.raises(ValueError, match="not a rule"):
        Detector(Sampling()).watch("eth0", Detect(window_ns=SECOND, slice_ns=2 * SECOND))


def test_errors_list_every_problem_in_order() -> None:
    """A ConfigError reads like a compiler: file:line:column: path: message, sorted."""
    error = ConfigError([Problem("f", 2, 1, "b", "wrong"), Problem("f", 1, 5, "a", "worse")])
    assert str(error) == "f:1:5: a: worse\nf:2:1: b: wrong"


# ---- status --------------------------------------------------------------------------------------


def test_status_shows_rates_over_a_span_and_absent_links() -> None:
    """A rate is the mean between two snapshots of the same link; a policy's literal name without a link is absent."""
    record = Override("R", ("eth0",), OverrideAction.EXEMPT, None, "ops", "why", not_before_wall_ns=START.wall_ns + HOUR)
    world = World(rules_of(replace(POLICY, interfaces=("eth0", "eth7")), overrides=[record]))
    first = world.snapshot()
    world.run(1, {"eth0": 80 * MBIT})
    around = DaemonInfo("1", 0, kernel_errors={("sample", "EPERM"): 2})
    shot = frame(world.state, world.now, world.snapshot(), first, around)
    status = build(shot)
    assert [(v.interface, v.phase, v.rate_bps) for v in status.links] == [
        ("eth0", Phase.CONFORMING, 80 * MBIT),
        ("eth7", Phase.ABSENT, 0),
    ]
    shown = document(status)
    assert isinstance(shown["overrides"], list)
    assert shown["overrides"][0]["expires"] == "never"
    assert status.counters.kernel_errors == {("sample", "EPERM"): 2}
    assert build(frame(world.state, world.now, None, None, around)).links[0].phase is Phase.ABSENT


def test_status_shows_the_decisions_that_wait_for_their_link() -> None:
    """A decision on an absent link shows as absent with all that was decided, as long as a policy is for that name."""
    waiting = Decision("eth7", "m7", "p", Reason.SUSTAINED, 5, 2)
    by_hand = Decision("eth8", "m8", "p", Reason.OPERATOR, 6, 1, rate_bps=MBIT, manual=True, note="why", by="root")
    unwatched = Decision("ppp0", "m9", "p", Reason.SUSTAINED, 7, 1)
    world = World(rules_of(replace(POLICY, interfaces=("eth*",))))
    world.state.absent_limits = {(d.interface, d.mac): d for d in (waiting, by_hand, unwatched)}
    away = {view.interface: view for view in build(world.frame()).links if view.phase is Phase.ABSENT}
    assert set(away) == {"eth7", "eth8"}
    assert (away["eth7"].since_wall_ns, away["eth7"].strikes, away["eth7"].limit_wanted_bps) == (5, 2, LIMIT.rate_bps)
    assert away["eth7"].release == POLICY.release.mode
    assert (away["eth8"].limit_wanted_bps, away["eth8"].manual, away["eth8"].note, away["eth8"].by) == (MBIT, True, "why", "root")


def test_a_frame_that_is_old_says_so() -> None:
    """While the loop is stalled the last frame is shown with its age, and with a fault before the others."""
    world = World()
    world.run(1)
    age_ns = 24_300_000_000
    shot = aged(world.frame(), world.now, age_ns, (stall(world.now, age_ns), Fault("", FaultReason.OTHER, "metrics", 1)))
    shown = document(build(shot))
    assert shown["last_tick_age_s"] == 24.3
    faults = shown["faults"]
    assert isinstance(faults, list)
    assert [fault["reason"] for fault in faults] == ["no_answer", "other"]
    assert "has not turned for 24.3 s" in faults[0]["message"]


def test_status_of_a_limited_link_is_read_from_the_kernel() -> None:
    """limit_bps and the shaped counters come from what was read back, as JSON too."""
    world = World()
    world.fire()
    world.run(1)
    shown = document(build(world.frame()))
    links = shown["links"]
    assert isinstance(links, list)
    link = links[0]
    assert (link["limit_bps"], link["limit_wanted_bps"], link["phase"]) == (LIMIT.rate_bps, LIMIT.rate_bps, "limited")
    assert link["shaped"]["sent_bytes"] > 0


def test_status_shows_faults_with_their_beginning() -> None:
    """A fault has its reason, its sentence and since when."""
    world = World()
    world.kernel.silent = True
    world.fire()
    faults = document(build(world.frame()))["faults"]
    assert isinstance(faults, list)
    assert faults[0]["reason"] == "no_answer"
    assert not faults[0]["warning"]


def test_a_forgotten_strike_is_not_shown() -> None:
    """Strikes beyond their time are not shown even before they are cleared away."""
    world = World()
    world.fire()
    world.release()
    world.run(1)
    world.now = replace(world.now, wall_ns=world.now.wall_ns + 48 * HOUR)
    assert world.view().strikes == 0


def test_snapshots_of_other_links_make_no_rate() -> None:
    """A link that is not in the older snapshot has no rate yet."""
    world = World()
    old = Snapshot(world.now.boot_ns - SECOND, (), ())
    shot = frame(world.state, world.now, world.snapshot(), old, DaemonInfo("1", 0))
    assert build(shot).links[0].rate_bps == 0


def test_the_limit_that_applies_is_the_one_in_force_or_the_next() -> None:
    """A link without a limit has the one that a firing would bring, a limited link its own."""
    world = World(rules_of())
    world.run(0.2)
    assert world.view().applying_limit_bps == LIMIT.rate_bps
    world.limit("eth0", 5 * MBIT)
    world.run(0.2)
    assert world.view().applying_limit_bps == world.view().limit_bps == 5 * MBIT
