"""Properties of the detector against the definition, on any stream."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from limiterd.core.detector import Detector
from limiterd.core.model import Detect, EpochReason, Guard, GuardMode, Link, Reason, Sampling, Snapshot
from tests.core.reference import Sample, judge
from tests.core.streams import (
    NAME,
    UNGUARDED,
    Case,
    detects,
    first_firing_ns,
    grid,
    limit_states,
    outcomes,
    patient,
    run,
    samplings,
    streams,
)

OFF = (GuardMode.OFF,)


@given(limit_states())
@settings(patient, max_examples=500)
def test_streaming_is_the_definition(case: Case) -> None:
    """Epochs, drops, firings, notes and pending times equal the brute force's at every sample of any stream."""
    expected = judge(case.samples, case.detect, case.sampling)
    for step in expected:
        for what in (step.epoch, step.fired):
            if what is not None:
                event(str(what))
    assert run(case.samples, case.detect, case.sampling) == expected


def test_the_drawn_streams_are_interesting() -> None:
    """The streams that the properties draw fire often, by both rules, and show every epoch and every drop."""
    seen: Counter[str] = Counter()

    @given(limit_states())
    @settings(patient, max_examples=400, derandomize=True, database=None)
    def count(case: Case) -> None:
        steps = run(case.samples, case.detect, case.sampling)
        seen["streams"] += 1
        seen.update({str(step.fired) for step in steps if step.fired})
        seen.update({f"epoch {step.epoch}" for step in steps if step.epoch})
        seen["noted"] += any(step.noted for step in steps)
        seen["dropped"] += any(step.dropped for step in steps)

    count()
    assert seen[Reason.SUSTAINED] >= seen["streams"] / 10, seen
    assert seen[Reason.GUARD] >= seen["streams"] / 20, seen
    assert seen["noted"] >= seen["streams"] / 20, seen
    assert seen["dropped"] >= seen["streams"] / 20, seen
    for reason in set(EpochReason) - {EpochReason.RELEASED, EpochReason.RELOAD}:
        assert seen[f"epoch {reason}"] >= 5, (reason, seen)


@patient
@given(limit_states(), st.integers(0, 2**62), st.integers(0, 2**62))
def test_shifted_clocks_and_counters_change_nothing(case: Case, shift_ns: int, offset: int) -> None:
    """Adding a constant to all stamps, or to all counters, leaves every verdict as it was."""
    moved = [replace(s, t_ns=s.t_ns + shift_ns, tx_bytes=s.tx_bytes + offset) for s in case.samples]
    assert run(moved, case.detect, case.sampling) == run(case.samples, case.detect, case.sampling)


@patient
@given(limit_states(), st.integers(1, 1000))
def test_scaled_rates_change_nothing(case: Case, factor: int) -> None:
    """Counters, threshold, burst and the plausible rate times k: the same verdicts."""
    detect, sampling = case.detect, case.sampling
    guard = replace(detect.guard, burst_bits=detect.guard.burst_bits * factor)
    scaled = replace(detect, threshold_bps=detect.threshold_bps * factor, guard=guard)
    faster = replace(sampling, max_plausible_bps=sampling.max_plausible_bps * factor)
    samples = [replace(s, tx_bytes=s.tx_bytes * factor) for s in case.samples]
    assert run(samples, scaled, faster) == run(case.samples, detect, sampling)


@patient
@given(limit_states(), st.integers(1, 1000))
def test_scaled_times_change_nothing(case: Case, factor: int) -> None:
    """All times, counters and the burst times k: the same verdicts, at k times the stamps."""
    detect, sampling = case.detect, case.sampling
    slower = replace(
        detect,
        window_ns=detect.window_ns * factor,
        slice_ns=detect.slice_ns * factor,
        guard=replace(detect.guard, burst_bits=detect.guard.burst_bits * factor),
    )
    rarer = replace(sampling, max_gap_ns=sampling.max_gap_ns * factor, counter_refresh_ns=sampling.counter_refresh_ns * factor)
    samples = [replace(s, t_ns=s.t_ns * factor, tx_bytes=s.tx_bytes * factor) for s in case.samples]
    steps = run(case.samples, detect, sampling)
    expected = [replace(s, pending_ns=None if s.pending_ns is None else s.pending_ns * factor) for s in steps]
    assert run(samples, slower, rarer) == expected


@patient
@given(
    detects(10**9, OFF),
    st.lists(st.tuples(st.integers(0, 9 * 10**9), st.integers(0, 2**50)), min_size=1, max_size=8),
    st.lists(st.integers(0, 40 * 10**9), min_size=2, max_size=60, unique=True),
)
def test_traffic_no_longer_than_the_window_never_fires(detect: Detect, bursts: list[tuple[int, int]], stamps: list[int]) -> None:
    """Any traffic inside one window's length, sampled at any instants, with silence around it, never fires."""
    start_ns = 10 * 10**9
    sent = [(start_ns + min(at_ns, detect.window_ns), size) for at_ns, size in bursts]
    samples = [Sample(t_ns, sum(size for at_ns, size in sent if at_ns <= t_ns)) for t_ns in sorted(stamps)]
    steps = run(samples, detect, Sampling(max_gap_ns=60 * 10**9))
    assert not any(step.fired for step in steps)


@patient
@given(limit_states(guards=(GuardMode.ENFORCE,)), st.integers(1, 999))
def test_below_the_threshold_never_fires(case: Case, permille: int) -> None:
    """Where every interval runs below the threshold neither the rule nor the guard ever fires."""
    samples = [case.samples[0]]
    for p, q in pairwise(case.samples):
        room = case.detect.threshold_bps * max(0, q.t_ns - p.t_ns) * permille // (8 * 10**12)
        samples.append(replace(q, tx_bytes=samples[-1].tx_bytes + max(0, room)))
    steps = run(samples, case.detect, case.sampling)
    assert not any(step.fired or step.noted for step in steps)


@patient
@given(
    st.integers(1, 10**9),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(8, 10**10),
    st.integers(0, 10**9),
    st.sampled_from((0, 800_000, 1_000_000)),
)
def test_a_regular_grid_fires_exactly_two_intervals_after_the_window(
    interval_ns: int, intervals: int, slices: int, step_bytes: int, start_ns: int, floor_ppm: int
) -> None:
    """A steady rate at the threshold or above, intervals dividing the window: window + 2 intervals after the first sample."""
    detect = Detect(
        threshold_bps=8 * 10**9 * step_bytes // interval_ns,
        window_ns=intervals * interval_ns,
        slice_ns=min(slices, intervals) * interval_ns,
        floor_ppm=floor_ppm,
        guard=UNGUARDED,
    )
    samples = [Sample(start_ns + k * interval_ns, k * step_bytes) for k in range(intervals + 4)]
    case = Case(detect, Sampling(max_gap_ns=10 * interval_ns), tuple(samples))
    assert first_firing_ns(case) == start_ns + detect.window_ns + 2 * interval_ns


@patient
@given(limit_states(guards=OFF), st.integers(0, 10**9), st.integers(0, 3 * 10**9), st.integers(0, 200_000))
def test_the_first_firing_is_monotone(case: Case, more_bps: int, more_ns: int, more_ppm: int) -> None:
    """A higher threshold, a longer window or a higher floor never brings the first firing forward."""
    detect = case.detect
    first = first_firing_index(case, detect)
    stricter = (
        replace(detect, threshold_bps=detect.threshold_bps + more_bps),
        replace(detect, window_ns=detect.window_ns + more_ns),
        replace(detect, floor_ppm=detect.floor_ppm + more_ppm),
    )
    for other in stricter:
        assert first_firing_index(case, other) >= first


def first_firing_index(case: Case, detect: Detect) -> int:
    """The index of the first firing; beyond the end where there is none."""
    steps = run(case.samples, detect, case.sampling)
    return next((i for i, step in enumerate(steps) if step.fired), len(steps))


@patient
@given(limit_states(accidents=False, guards=OFF))
def test_sustained_firings_are_more_than_a_window_apart(case: Case) -> None:
    """Two firings of the rule, on a clock that runs forwards, lie more than a window apart."""
    steps = run(case.samples, case.detect, case.sampling)
    fired = [s.t_ns for s, step in zip(case.samples, steps, strict=True) if step.fired]
    event(f"firings: {min(len(fired), 3)}")
    assert all(later - earlier > case.detect.window_ns for earlier, later in pairwise(fired))


@patient
@given(limit_states(), st.data())
def test_an_epoch_break_makes_runs_independent(case: Case, data: st.DataObject) -> None:
    """Two streams of different links joined under one name give the verdicts of each alone."""
    other = data.draw(streams(case.sampling.interval_ns, case.detect.threshold_bps))
    other = tuple(replace(s, ifindex=s.ifindex + 1000) for s in other)
    alone = run(other, case.detect, case.sampling)
    alone[0] = replace(alone[0], epoch=EpochReason.IFINDEX)
    expected = run(case.samples, case.detect, case.sampling) + alone
    assert run((*case.samples, *other), case.detect, case.sampling) == expected


@patient
@given(limit_states())
def test_memory_is_bounded_by_a_window_of_samples(case: Case) -> None:
    """What is kept of a link spans less than one window, plus a sample at either end; without a candidate it is one sample."""
    detector = Detector(case.sampling)
    detector.watch(NAME, case.detect)
    for outcome in outcomes(detector, case.samples):
        trail = detector.trail(NAME)
        assert len(trail) <= 2 or trail[-2][0] - trail[1][0] < case.detect.window_ns
        if NAME not in detector.pending():
            assert len(trail) == 1
        for _, firing in outcome.firings + outcome.noted:
            assert len(firing.samples) <= len(case.samples)
            assert firing.samples == tuple(sorted(firing.samples))


@patient
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**70) | st.integers(0, 50),
            st.integers(0, 2**70) | st.integers(0, 50),
            st.integers(0, 2),
            st.integers(0, 1),
        ),
        max_size=30,
    ),
    detects(10),
    samplings(10, 7),
)
def test_any_integers_are_data(rows: list[tuple[int, int, int, int]], detect: Detect, sampling: Sampling) -> None:
    """No list of non-negative integers, however large or unordered, raises anything; the definition agrees on all."""
    samples = [Sample(*row) for row in rows]
    assert run(samples, detect, sampling) == judge(samples, detect, sampling)


@patient
@given(limit_states(guards=(GuardMode.ENFORCE, GuardMode.OBSERVE)))
def test_the_guard_bounds_what_is_sent_without_a_firing(case: Case) -> None:
    """Between two samples of an epoch no more than threshold·τ + burst is sent unless something fired or was noted."""
    steps = run(case.samples, case.detect, case.sampling)
    stretches: list[list[Sample]] = [[]]
    for sample, step in zip(case.samples, steps, strict=True):
        if step.epoch or step.fired or step.noted:
            stretches.append([sample])
        elif not step.dropped:
            stretches[-1].append(sample)
    for stretch in stretches:
        for p, q in combinations(stretch, 2):
            bits = 8 * (q.tx_bytes - p.tx_bytes)
            allowed = case.detect.threshold_bps * (q.t_ns - p.t_ns) + case.detect.guard.burst_bits * 10**9
            assert bits * 10**9 <= allowed


@patient
@given(
    st.integers(1, 10**9),
    st.integers(10**9, 40 * 10**9),
    st.integers(0, 10**8),
    st.lists(st.integers(-(10**7), 10**7), min_size=200, max_size=200),
)
def test_from_idle_a_constant_rate_fires_within_four_longest_intervals(
    over_bps: int, rate_bps: int, phase_ns: int, jitters: list[int]
) -> None:
    """From idle, with jitter, the firing comes later than window and before window + 4·D after the onset."""
    detect = Detect(window_ns=3 * 10**9, guard=UNGUARDED)
    onset_ns = 2 * 10**9 + phase_ns
    bps = rate_bps + over_bps
    stamps = [k * 10**8 + (jitter if k else 0) for k, jitter in enumerate(jitters)]
    stamps = [t_ns + 10**7 for t_ns in stamps]
    samples = [Sample(t_ns, max(0, t_ns - onset_ns) * bps // (8 * 10**9) + 1) for t_ns in stamps]
    longest_ns = max(q - p for p, q in pairwise(stamps))
    hot_from = next(i for i, s in enumerate(samples) if s.t_ns > onset_ns) + 1
    intervals = zip(samples[hot_from - 1 :], samples[hot_from:], strict=False)
    assume(all(8 * 10**9 * (q.tx_bytes - p.tx_bytes) >= detect.threshold_bps * (q.t_ns - p.t_ns) for p, q in intervals))
    fired_ns = first_firing_ns(Case(detect, Sampling(), tuple(samples)))
    assert fired_ns is not None
    assert detect.window_ns < fired_ns - onset_ns < detect.window_ns + 4 * longest_ns


@patient
@given(st.integers(0, 10**8 - 1))
def test_at_an_exact_ten_hertz_it_fires_within_300_ms_of_the_window(phase_ns: int) -> None:
    """The published policy, sampled exactly at 10 Hz: 10.0 to 10.3 s after the onset, wherever that falls."""
    samples = grid([(0, 10**9 + phase_ns), (12 * 10**8, 12 * 10**9)], 10**8)
    fired_ns = first_firing_ns(Case(Detect(guard=UNGUARDED), Sampling(), tuple(samples)))
    assert fired_ns is not None
    assert 10 * 10**9 < fired_ns - (10**9 + phase_ns) <= 10 * 10**9 + 3 * 10**8


@given(st.data(), st.integers(2, 5))
@settings(patient, max_examples=150)
def test_a_fleet_is_its_links(data: st.DataObject, count: int) -> None:
    """Many links in common snapshots, each with its own rule, coming and going, get each the verdicts of the definition."""
    unit_ns = 10**8
    sampling = data.draw(samplings(unit_ns, 10**9))
    rules = {f"tap{i}": data.draw(detects(unit_ns)) for i in range(count)}
    names = (*rules, "lo")
    detector = Detector(sampling)
    for name, detect in rules.items():
        detector.watch(name, detect)
    seen: dict[str, list[Sample]] = {name: [] for name in rules}
    got: dict[str, list[tuple[object, ...]]] = {name: [] for name in rules}
    counters = {name: data.draw(st.sampled_from((0, 0, 2**63 - 10**8, 2**64 - 10**8))) for name in names}
    ifindexes = {name: i + 1 for i, name in enumerate(names)}
    links: tuple[Link, ...] = ()
    t_ns = 10**12
    for _ in range(data.draw(st.integers(5, 40))):
        t_ns += data.draw(st.sampled_from((1, 1, 1, 1, 1, 1, 1, 0, 2, 5, -1))) * unit_ns
        if not links or data.draw(st.integers(0, 9)) == 0:
            present = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)) if links else names
            ifindexes |= {name: ifindexes[name] + 10 for name in present if data.draw(st.integers(0, 9)) == 0}
            links = tuple(Link(ifindexes[name], name) for name in present)
        for link in links:
            share = data.draw(st.sampled_from((0, 800, 1000, 1000, 1010, 1200, 5000, -1)))
            threshold_bps = rules[link.name].threshold_bps if link.name in rules else 10**9
            step = share if share < 0 else -(-share * threshold_bps * unit_ns // (8 * 10**12))
            counters[link.name] = max(0, counters[link.name] + step)
        outcome = detector.update(Snapshot(t_ns, links, [counters[link.name] for link in links]))
        pending = detector.pending()
        epochs = {link.name: reason for link, reason in outcome.epochs}
        fired = {link.name: firing.reason for link, firing in outcome.firings}
        noted = {link.name for link, _ in outcome.noted}
        for link in links:
            if (name := link.name) in rules:
                seen[name].append(Sample(t_ns, counters[name], link.ifindex))
                got[name].append((epochs.get(name), fired.get(name), name in noted, pending.get(name)))
    for name, detect in rules.items():
        steps = judge(seen[name], detect, sampling)
        assert got[name] == [(s.epoch, s.fired, s.noted, s.pending_ns) for s in steps]


@patient
@given(limit_states(guards=(GuardMode.OBSERVE,)))
def test_an_observing_guard_changes_no_verdict_of_the_rule(case: Case) -> None:
    """With the guard observing or off the rule fires at the same samples."""
    without = replace(case.detect, guard=Guard(GuardMode.OFF))
    fired = [step.fired for step in run(case.samples, case.detect, case.sampling)]
    assert fired == [step.fired for step in run(case.samples, without, case.sampling)]
