"""Counters that are refreshed seldom: told from traffic that pauses, said, and judged rightly with the value that is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.detector import Detector
from limiterd.core.lazy_counter import suggested_ns
from limiterd.core.model import MS, SECOND, Detect, Link, Sampling, Snapshot
from limiterd.core.status import build
from tests.world import MBIT, POLICY, World, rules_of

GBIT = 10**9
LINK = Link(2, "eth0")
TENTH = SECOND // 10
START_NS = 1000 * SECOND
Sample = tuple[int, int]


def exact(rates_bps: Iterable[tuple[float, int]], step_ns: int = TENTH) -> Iterator[Sample]:
    """(t_ns, bytes) of traffic: (rate, duration in ns) one after the other, sampled at every step."""
    t_ns, sent, left = START_NS, 0.0, 0
    for rate_bps, duration_ns in rates_bps:
        left += duration_ns
        while left >= step_ns:
            yield t_ns, int(sent)
            t_ns, sent, left = t_ns + step_ns, sent + rate_bps * step_ns / 8 / SECOND, left - step_ns


def lazily(samples: Iterable[Sample], refresh_ns: int, phase_ns: int = 0) -> Iterator[Sample]:
    """What a counter shows that takes over the truth every refresh_ns."""
    shown, due_ns = 0, START_NS + phase_ns
    for t_ns, sent in samples:
        if t_ns >= due_ns:
            shown = sent
            due_ns += (1 + (t_ns - due_ns) // refresh_ns) * refresh_ns
        yield t_ns, shown


def judged(samples: Iterable[Sample], refresh_ns: int | None = None, max_gap_ns: int = 3 * SECOND) -> tuple[Detector, list[int]]:
    """A detector that has seen all of them, and when it fired, in ns after the start."""
    detector = Detector(Sampling(max_gap_ns=max_gap_ns))
    detector.watch(LINK.name, Detect(), refresh_ns)
    links, fired = (LINK,), []
    for t_ns, shown in samples:
        outcome = detector.update(Snapshot(t_ns, links, [shown]))
        fired += [firing.t_ns - START_NS for _, firing in outcome.firings]
    return detector, fired


@given(st.integers(200, 3000), st.floats(1.05, 20), st.integers(0, 900))
def test_a_lazy_counter_is_known_within_thirty_seconds(refresh_ms: int, load: float, phase_ms: int) -> None:
    """Whatever its refresh, from 200 ms to 3 s, at 1.05 to 20 times the threshold: found, and right to a step of sampling."""
    samples = lazily(exact([(load * GBIT, 30 * SECOND)]), refresh_ms * MS, phase_ms * MS)
    found = judged(samples)[0].refreshes()
    assert abs(found["eth0"] - refresh_ms * MS) <= TENTH // 2


PAUSES = st.lists(st.tuples(st.floats(0.2, 20), st.integers(2, 50), st.integers(1, 50)), min_size=1, max_size=40)


@given(PAUSES)
def test_traffic_that_pauses_is_not_taken_for_one(bursts: list[tuple[float, int, int]]) -> None:
    """Bursts of two intervals and more, of any rate, with pauses of any length in between."""
    phases = [phase for load, on, off in bursts for phase in ((load * GBIT, on * TENTH), (0.0, off * TENTH))]
    assert judged(exact(phases))[0].refreshes() == {}


@pytest.mark.parametrize(("on", "off"), [(5, 5), (20, 20), (50, 50), (2, 8), (3, 17)])
def test_not_even_a_regular_one(on: int, off: int) -> None:
    """The same burst again and again for a minute."""
    assert judged(exact([(10 * GBIT, on * TENTH), (0.0, off * TENTH)] * 60))[0].refreshes() == {}


@given(st.lists(st.integers(1, 30), min_size=9, max_size=40))
def test_nor_single_bursts_at_odd_distances(gaps: list[int]) -> None:
    """One interval each: only an even beat is a refresh."""
    if max(gaps) - min(gaps) <= 4:
        return
    phases = [phase for gap in gaps for phase in ((30 * GBIT, TENTH), (0.0, gap * TENTH))] * 2
    found = judged(exact(phases))[0].refreshes()
    assert found == {} or max(gaps[-8:]) - min(gaps[-8:]) <= 4 or max(gaps[:8]) - min(gaps[:8]) <= 4


def test_a_counter_that_is_exact_again_ends_it() -> None:
    """Another driver: a second of moves in every interval, and nothing is said any more."""
    samples = list(lazily(exact([(2 * GBIT, 20 * SECOND)]), 2 * SECOND))
    after = [(t_ns + 20 * SECOND, samples[-1][1] + sent) for t_ns, sent in exact([(2 * GBIT, 2 * SECOND)])]
    detector, _ = judged(samples)
    assert "eth0" in detector.refreshes()
    for t_ns, shown in after:
        detector.update(Snapshot(t_ns, (LINK,), [shown]))
    assert detector.refreshes() == {}


@given(st.integers(3, 20), st.floats(1.05, 20), st.integers(0, 900), st.integers(1, 4))
def test_with_the_value_that_is_said_the_verdict_is_the_exact_one(refresh: int, load: float, phase_ms: int, rounds: int) -> None:
    """Steady rates, pauses of more than two refreshes: as many firings, each before window + 4·refresh."""
    refresh_ns = refresh * TENTH
    phases = [(load * GBIT, 11 * SECOND + 4 * refresh_ns), (0.0, 3 * refresh_ns + 2 * SECOND)] * rounds
    suggested = suggested_ns(refresh_ns)
    gap_ns = max(3 * SECOND, 2 * suggested)
    samples = list(exact(phases))
    due = judged(samples, max_gap_ns=gap_ns)[1]
    seen = judged(lazily(samples, refresh_ns, phase_ms * MS), suggested, gap_ns)[1]
    assert len(seen) == len(due)
    assert all(min(abs(one - other) for other in seen) <= 4 * refresh_ns for one in due)


# ---- in the daemon -----------------------------------------------------------------------------------


def lazy(world: World, seconds: int, refresh_ns: int = 2 * SECOND) -> None:
    """Traffic of one and a half times the threshold, on a counter that is refreshed seldom."""
    world.kernel.offer(2, 0)
    for _ in range(seconds * SECOND // TENTH):
        if (world.now.boot_ns + TENTH) // refresh_ns != world.now.boot_ns // refresh_ns:
            world.kernel.links[2].tx_bytes += 150 * MBIT // 8 * refresh_ns // SECOND
        world.tick()


def test_it_is_a_warning_with_the_setting_that_helps_until_that_is_made() -> None:
    """Status, the faults and the link's row say it; with the key in its policy the warning ends, and the limit comes."""
    detect = replace(POLICY.detect, window_ns=4 * SECOND)
    world = World(rules_of(replace(POLICY, detect=detect)))
    lazy(world, 30)
    assert world.view().phase != "limited"
    (fault,) = build(world.frame()).faults
    assert (fault.interface, fault.reason, fault.warning) == ("eth0", "lazy_counter", True)
    assert "every 2s" in fault.message
    assert "counter_refresh: 2500ms" in fault.message
    assert world.view().counter_refresh_ns == 2 * SECOND
    world.reload(rules_of(replace(POLICY, detect=detect, counter_refresh_ns=2500 * MS)))
    assert build(world.frame()).faults == ()
    lazy(world, 12)
    assert world.view().phase == "limited"


def test_a_key_for_one_policy_leaves_the_others_alone() -> None:
    """A fresh epoch on its links alone; their unchanged samples are dropped, those of others are silence."""
    world = World(rules_of(replace(POLICY, interfaces=("eth0",)), replace(POLICY, name="other", interfaces=("eth1",))))
    world.add(3, "eth1")
    world.run(1)
    before = dict(world.state.counters.epochs)
    world.reload(
        rules_of(
            replace(POLICY, interfaces=("eth0",), counter_refresh_ns=SECOND),
            replace(POLICY, name="other", interfaces=("eth1",)),
        )
    )
    world.run(1)
    assert world.state.counters.epochs["reload"] - before.get("reload", 0) == 1
    assert world.state.detector.refresh_ns("eth0")[1] == SECOND
    assert world.state.detector.refresh_ns("eth1")[1] == 0
    world.reload(
        rules_of(replace(POLICY, interfaces=("eth0",)), replace(POLICY, name="other", interfaces=("eth1",))),
    )
    world.run(1)
    assert world.state.detector.refresh_ns("eth0")[1] == 0


def test_a_reload_while_the_link_is_away_says_nothing_of_it() -> None:
    """What is known of its counter is kept for its return."""
    world = World()
    lazy(world, 30)
    world.remove("eth0")
    world.run(1)
    world.reload(rules_of(replace(POLICY, interfaces=("*",))))
    assert build(world.frame()).faults == ()
