"""Time that stops, jumps or is scarce: unobserved time is never evidence, and nothing is made up for."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from limiterd.core.model import DAY, HOUR, SECOND, EpochReason, EventKind, Now, Override, OverrideAction, Phase
from limiterd.daemon.clock_steps import ClockSteps
from limiterd.sim.netns import Pair, PrivateNet, join
from tests.faults.harness import EXCESS_BPS, QUICK, burst, some, starved, stopped
from tests.netns import wait_for
from tests.rig import FAST, rig
from tests.world import AUTO, MBIT, POLICY, START, World, rules_of

YEAR: Final = 365 * DAY
PAUSES_S: Final = (3.0, 5.0, 12.0, 30.0)
TICKS: Final = "limiterd_tick_duration_seconds_count"
MISSED: Final = "limiterd_missed_ticks_total"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("pause_s", some(1, PAUSES_S))
def test_sigstop(lab: PrivateNet, pair: Pair, tmp_path: Path, pause_s: float) -> None:
    """SIGSTOP, with and without traffic: no limit on unproven time, no burst of late ticks, standing limits untouched."""
    other = join(pair.near.namespace, lab.namespace(), "eth1", "eth0", number=2)
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth1", reason="test")
        before = daemon.metrics()
        began = time.monotonic()
        with stopped(daemon):
            flow = lab.udp(pair.near, pair.far, rate_bps=200_000_000)
            time.sleep(pause_s)  # the pause itself
            flow.stop()
        wait_for(lambda: daemon.metrics()[MISSED] >= before[MISSED] + 9 * pause_s, "the missed ticks are counted")
        awake_s = time.monotonic() - began - pause_s
        assert daemon.metrics()[TICKS] - before[TICKS] <= 10 * (awake_s + 0.5) + 3
        wait_for(lambda: daemon.metrics()['limiterd_epochs_total{reason="gap"}'] >= 1, "the gap is counted")
        assert daemon.phase() == "conforming"
        assert daemon.metrics()['limiterd_detections_total{interface="eth0",reason="sustained"}'] == 0
        assert (daemon.phase(other.near.ifname), daemon.root("eth1")) == ("limited", "htb 1d1d:")
        lab.udp(pair.near, pair.far, rate_bps=200_000_000)
        daemon.wait_phase("limited", longest_s=6)


@pytest.mark.root
@pytest.mark.serial
def test_a_starved_processor(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """CPU starvation for real (nice 19 beside busy loops): excess is limited, a burst is not, each missed tick is counted."""
    other = join(pair.near.namespace, lab.namespace(), "eth1", "eth0", number=2)
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        at_most = time.monotonic()
        before = daemon.metrics()
        at_least = time.monotonic()
        with starved(daemon):
            burst(other, 10_000_000)  # four times what a window at the threshold carries, in no time
            lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
            wait_for(lambda: daemon.root() == "htb 1d1d:", "the excess is limited", longest_s=60, pause_s=0.1)
        daemon.wait_phase("limited")
        least = before[TICKS] + before[MISSED] + 10 * (time.monotonic() - at_least) - 3
        wait_for(lambda: (seen := daemon.metrics())[TICKS] + seen[MISSED] >= least, "every tick is counted, made or missed")
        after = daemon.metrics()
        most_s = time.monotonic() - at_most
        ticks, missed = (after[name] - before[name] for name in (TICKS, MISSED))
        assert missed > 0
        assert ticks + missed <= 10 * most_s + 3
        assert daemon.phase("eth1") == "conforming"
        assert after['limiterd_detections_total{interface="eth1",reason="sustained"}'] == 0


@pytest.mark.root
def test_another_boot_clock(pair: Pair, tmp_path: Path) -> None:
    """A time namespace whose boot clock is days ahead, then behind again: limits are adopted with their times each way."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        since = daemon.link()["since"]
        for prefix in (("unshare", "-T", "--boottime", "900000", "--monotonic", "900000"), ()):
            daemon.stop()
            daemon.prefix = prefix
            daemon.start()
            assert daemon.wait_phase("limited")["since"] == since


@pytest.mark.parametrize("step_ns", [YEAR, -YEAR])
def test_a_wall_clock_that_steps_a_year(step_ns: int) -> None:
    """Wall clock ± 1 year: detection in progress goes on, standing limits stand, only overrides and dates follow it."""
    world = World()
    world.run(1.2, {"eth0": 150 * MBIT})
    world.pass_time(0, wall_ns=step_ns)
    world.run(1.2)
    assert world.view().phase is Phase.LIMITED
    world.pass_time(0, wall_ns=-2 * step_ns)
    world.run(5)
    assert world.view().phase is Phase.LIMITED
    assert world.told(EventKind.RELEASED, EventKind.FAULT, EventKind.REPAIR) == []
    assert world.told(EventKind.EPOCH) == [(EventKind.EPOCH, EpochReason.NEW)]


def test_an_override_follows_the_wall_clock_both_ways() -> None:
    """Wall clock past an override's end and back: the override ends and applies again; nothing is limited in retrospect."""
    record = Override("A", ("eth0",), OverrideAction.EXEMPT, START.wall_ns + HOUR, "ops", "why")
    world = World(rules_of(overrides=[record]))
    world.run(3, {"eth0": 150 * MBIT})
    assert world.view().phase is Phase.EXEMPT
    world.pass_time(0, wall_ns=YEAR)
    world.run(1)
    assert world.view().phase is Phase.PENDING
    world.pass_time(0, wall_ns=-YEAR)
    world.run(3)
    assert world.view().phase is Phase.EXEMPT
    assert world.told(EventKind.LIMIT) == []


@pytest.mark.parametrize("hours", [1, 1000])
def test_suspend_under_traffic(hours: int) -> None:
    """Suspend (the boot clock jumps, the counter with it): no limit on the time that nobody saw; afterwards as ever."""
    world = World()
    world.run(1.5, {"eth0": 150 * MBIT})
    world.pass_time(hours * HOUR)
    world.run(1.9)
    assert world.told(EventKind.LIMIT) == []
    assert world.told(EventKind.EPOCH)[-1] == (EventKind.EPOCH, EpochReason.GAP)
    world.run(1)
    assert world.view().phase is Phase.LIMITED


def test_suspend_is_no_proof_of_quiet() -> None:
    """Suspend under a limit in auto release: the hours asleep prove no quiet; the limit goes after quiet that was seen."""
    world = World(rules_of(replace(POLICY, release=AUTO)))
    world.fire()
    world.run(2)
    world.kernel.offer(world.link().ifindex, 0)
    world.pass_time(10 * HOUR)
    world.run(2.5)
    assert world.view().phase is Phase.LIMITED
    world.run(3)
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "demand_ended")]


@pytest.mark.parametrize("every_s", [0.4, 1.0, 2.9])
def test_starvation_costs_ticks_not_correctness(every_s: float) -> None:
    """CPU starvation (one tick in 0.4, 1 or 2.9 s): a link above the threshold is limited, one below is not."""
    world = World()
    world.add(3, "eth1")
    world.kernel.offer(2, 150 * MBIT)
    world.kernel.offer(3, 95 * MBIT)
    for _ in range(round(12 / every_s)):
        world.pass_time(round((every_s - 0.1) * SECOND))
        world.tick()
    assert world.view("eth0").phase is Phase.LIMITED
    assert world.view("eth1").phase in {Phase.CONFORMING, Phase.PENDING}


def test_a_step_of_the_wall_clock_is_told_once() -> None:
    """Forward and back, by how much and to when; drift and slewing are none, nor is time that a suspend took."""
    steps = ClockSteps(Now(boot_ns=0, wall_ns=YEAR))
    assert steps.look(Now(10 * SECOND, YEAR + 10 * SECOND + SECOND // 2)) is None
    assert steps.look(Now(3600 * SECOND, YEAR + 3600 * SECOND)) is None
    told = steps.look(Now(3601 * SECOND, YEAR + 7201 * SECOND))
    assert told is not None
    assert told.startswith("the wall clock was set forward by 1h, to 1971-01-01T02:00:01.000Z; overrides now begin and end by it")
    assert steps.look(Now(3602 * SECOND, YEAR + 7202 * SECOND)) is None
    assert (steps.look(Now(3603 * SECOND, YEAR + 3 * SECOND)) or "").startswith("the wall clock was set back by 2h")


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_for_log_rotation_is_ignored(pair: Pair, tmp_path: Path, number: signal.Signals) -> None:
    """SIGUSR1 and SIGUSR2, which logrotate sends out of habit, end nothing; one log line says why nothing happens."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        assert daemon.process is not None
        daemon.process.send_signal(number)
        wait_for(lambda: f"{number.name} is ignored" in daemon.log(), "the log line")
        assert daemon.phase() == "conforming"
