"""Every edge of the rule as a row: what is sent, when it must fire and why (the row's text).

Unless a row says otherwise: the published policy (1 Gbit/s for more than 10 s, slice 1 s, floor 80 %), samples at exactly
10 Hz from t = 0, guard off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import pytest

from limiterd.core.detector import Detector
from limiterd.core.model import Detect, EpochReason, Firing, Guard, GuardMode, Reason, Sampling
from tests.core.reference import Sample, judge
from tests.core.streams import NAME, UNGUARDED, grid, outcomes

MS: Final = 10**6
S: Final = 10**9
G: Final = 10**9
TENTH: Final = 100 * MS
GBIT_TENTH_BYTES: Final = 12_500_000
"""What 1 Gbit/s sends in 100 ms."""

POLICY: Final = Detect(guard=UNGUARDED)
TEN_HZ: Final = Sampling()

Fired = tuple[int, Reason]


@dataclass(frozen=True)
class Edge:
    """One row: why is the rule's reason, at_ms the expected firings in ms after the first sample."""

    why: str
    samples: Sequence[Sample]
    at_ms: Sequence[tuple[float, Reason]] = ()
    detect: Detect = POLICY
    sampling: Sampling = TEN_HZ
    noted_ms: Sequence[float] = ()
    epochs: Sequence[EpochReason] = (EpochReason.NEW,)


def steps_of(step_bytes: Sequence[int], interval_ns: int = TENTH) -> list[Sample]:
    """Samples on a grid from bytes per interval."""
    samples = [Sample(0, 0)]
    for size in step_bytes:
        samples.append(Sample(samples[-1].t_ns + interval_ns, samples[-1].tx_bytes + size))
    return samples


def repeat(pieces: Sequence[tuple[int, int]], times: int) -> list[tuple[int, int]]:
    """The pieces, over and over."""
    return [piece for _ in range(times) for piece in pieces]


def changed(samples: Sequence[Sample], start: int, *, t_ns: int = 0, tx_bytes: int = 0, ifindex: int = 0) -> list[Sample]:
    """The samples with these amounts added from index `start` on."""
    return [
        replace(s, t_ns=s.t_ns + t_ns, tx_bytes=s.tx_bytes + tx_bytes, ifindex=s.ifindex + ifindex) if i >= start else s
        for i, s in enumerate(samples)
    ]


def dated(*points: tuple[float, float]) -> list[Sample]:
    """Samples from (seconds, gigabits sent so far)."""
    return [Sample(round(t_s * S), round(gbit * G) // 8) for t_s, gbit in points]


SUSTAINED, GUARD = Reason.SUSTAINED, Reason.GUARD
FULL: Final = GBIT_TENTH_BYTES
STEADY: Final = grid([(G, 12 * S)], TENTH)
GUARDED: Final = replace(POLICY, guard=Guard(GuardMode.ENFORCE, 90 * G))
NOTING: Final = replace(POLICY, guard=Guard(GuardMode.OBSERVE, 90 * G))
NEW, GAP, CLOCK, COUNTER, IFINDEX = (
    EpochReason.NEW,
    EpochReason.GAP,
    EpochReason.CLOCK,
    EpochReason.COUNTER,
    EpochReason.IFINDEX,
)

EDGES: Final = [
    # ---- length and flanks -----------------------------------------------------------------------
    Edge("exactly the threshold: a ends the first interval, b = a + 10 s, n is one later: 10.2 s", STEADY, [(10_200, SUSTAINED)]),
    Edge(
        "n is the next baseline, so the second firing comes a window and two intervals after the first",
        grid([(2 * G, 21 * S)], TENTH),
        [(10_200, SUSTAINED), (20_400, SUSTAINED)],
    ),
    Edge("the window ends with the traffic: b needs a hot interval after it", steps_of([FULL] * 101 + [0] * 5)),
    Edge("one hot interval more is the last flank", steps_of([FULL] * 102), [(10_200, SUSTAINED)]),
    Edge(
        "the last flank is a byte short at 10.2 s, whole at 10.3 s; the mean has the byte of 1.1 Gbit/s to spare",
        steps_of([FULL + FULL // 10] * 101 + [FULL - 1, FULL]),
        [(10_300, SUSTAINED)],
    ),
    Edge(
        "the first interval is a byte short of the threshold: a is one sample later",
        steps_of([FULL - 1] + [FULL] * 102),
        [(10_300, SUSTAINED)],
    ),
    Edge(
        "t_b − t_a is 10 s less 1 ns at the usual sample: b is one later",
        changed(STEADY, 101, t_ns=-1),
        [(10_300 - 1e-6, SUSTAINED)],
    ),
    Edge(
        "the baseline is no candidate, however much came before it: 1 s intervals need b = 11 s, n = 12 s",
        grid([(G, 14 * S)], S),
        [(12_000, SUSTAINED)],
    ),
    Edge(
        "300 ms intervals do not divide the window: a = 0.3 s, b = 10.5 s (10.2 s of it), n = 10.8 s",
        grid([(G, 12 * S)], 300 * MS),
        [(10_800, SUSTAINED)],
    ),
    Edge(
        "onset at 0.05 s inside an interval that still reads 1.2 · 0.5 < 1 Gbit/s: a = 0.2 s, n = 10.3 s",
        grid([(0, 50 * MS), (12 * G // 10, 12 * S)], TENTH),
        [(10_300, SUSTAINED)],
    ),
    Edge(
        "onset at 0.05 s at 2 Gbit/s: that interval reads exactly the threshold, a = 0.1 s",
        grid([(0, 50 * MS), (2 * G, 11 * S)], TENTH),
        [(10_200, SUSTAINED)],
    ),
    Edge("0.999 Gbit/s for a minute: no interval is hot", grid([(999 * 10**6, 60 * S)], TENTH)),
    Edge("9.99 s at 10 Gbit/s, then silence", grid([(0, S), (10 * G, 9990 * MS), (0, 5 * S)], TENTH)),
    Edge(
        "9.99 s bursts at 10 Gbit/s, 1.2 s of silence (slice + 2·D) between them: each silence holds an empty slice",
        grid(repeat([(10 * G, 9990 * MS), (0, 1200 * MS)], 6), TENTH),
    ),
    Edge(
        "9.99 s bursts at 10 Gbit/s with pauses of 0.9 s: every slice has 0.1 s at 10 Gbit/s; 10.2 s lies in the pause, the "
        "next hot interval ends at 10.9 s (traffic from 10.89 s); then a = 11.0 s, the next after its pause ends at 21.8 s",
        grid(repeat([(10 * G, 9990 * MS), (0, 900 * MS)], 3), TENTH),
        [(10_900, SUSTAINED), (21_800, SUSTAINED)],
    ),
    # ---- mean ------------------------------------------------------------------------------------
    Edge(
        "mean exactly the threshold over [a, b]: two halves of 0.9 and 1.1 between the flanks fire",
        steps_of([FULL] + [FULL * 9 // 10, FULL * 11 // 10] * 50 + [FULL]),
        [(10_200, SUSTAINED)],
    ),
    Edge(
        "the same with one byte less in the middle: the mean fails at 10.2 s, and no later sample is hot",
        steps_of([FULL] + [FULL * 9 // 10, FULL * 11 // 10] * 49 + [FULL * 9 // 10, FULL * 11 // 10 - 1, FULL, 0]),
    ),
    Edge(
        "a mean that fails at a full window may hold over a longer one: 10 s at 0.95 after a hot start, then 1.2 Gbit/s; "
        "the deficit of 0.5 Gbit since a = 0.1 s is made up by b = 12.6 s",
        grid([(G, 100 * MS), (95 * G // 100, 10 * S), (12 * G // 10, 4 * S)], TENTH),
        [(12_700, SUSTAINED)],
    ),
    Edge(
        "the lowest candidate wins, not the earliest: after 4 Gbit of deficit a = 20.2 s, the first hot after it, fires first",
        grid([(G, 200 * MS), (80 * G // 100, 20 * S), (105 * G // 100, 12 * S)], TENTH),
        [(30_400, SUSTAINED)],
    ),
    # ---- floor -----------------------------------------------------------------------------------
    Edge("1.1 s at 10 Gbit/s on an idle link: bad slices follow", grid([(0, S), (10 * G, 1100 * MS), (0, 15 * S)], TENTH)),
    Edge("2 Gbit/s on and off at 5 s", grid(repeat([(2 * G, 5 * S), (0, 5 * S)], 5), TENTH)),
    Edge(
        "1.2 Gbit/s with a pause of 100 ms every second: slices read 1.08 Gbit/s; b = 10.1 s, n = 10.2 s",
        grid(repeat([(12 * G // 10, 900 * MS), (0, 100 * MS)], 12), TENTH),
        [(10_200, SUSTAINED)],
    ),
    Edge(
        "a slice at exactly the floor (0.2 s of silence in 1 s) is not below it; at 1.02 Gbit/s the mean is made up",
        grid([(G, 4 * S), (0, 200 * MS), (G, 800 * MS), (12 * G // 10, 6 * S)], TENTH),
        [(10_200, SUSTAINED)],
    ),
    Edge(
        "the same with the interval to 4.0 s a byte short: slices with it and the silence are bad, the last from 3.9 s; the next "
        "hot interval is a = 4.3 s; b = 14.3 s, n = 14.4 s",
        changed(grid([(G, 4 * S), (0, 200 * MS), (G, 800 * MS), (12 * G // 10, 10 * S)], TENTH), 40, tx_bytes=-1),
        [(14_400, SUSTAINED)],
    ),
    Edge(
        "slices that start before a do not count: idle until 2.0 s, then steady",
        grid([(0, 2 * S), (12 * G // 10, 11 * S)], TENTH),
        [(12_200, SUSTAINED)],
    ),
    Edge(
        "the slice that ends in b = 10.2 s counts: 9.2 to 10.2 s holds 0.7 Gbit and voids all up to 9.2 s",
        steps_of([2 * FULL] * 93 + [FULL] * 5 + [0] * 4 + [4 * FULL]),
    ),
    Edge(
        "the slice that ends in n = 10.2 s does not: 9.2 to 10.2 s holds 0.7 Gbit, 9.1 to b = 10.1 s exactly 0.8",
        steps_of([2 * FULL] * 93 + [FULL] * 4 + [0] * 4 + [FULL]),
        [(10_200, SUSTAINED)],
    ),
    Edge(
        "a slice is the latest start at least 1 s ago: with 600 ms between samples slices are 1.2 s long",
        grid([(12 * G // 10, 18 * S)], 600 * MS),
        [(11_400, SUSTAINED)],
    ),
    Edge(
        "floor 0 %: 4.9 s of silence between two bursts of 10 Gbit/s do not matter, only the mean does",
        grid([(10 * G, 5 * S), (0, 4900 * MS), (10 * G, 2 * S)], TENTH),
        [(10_200, SUSTAINED)],
        detect=replace(POLICY, floor_ppm=0),
        sampling=TEN_HZ,
    ),
    Edge(
        "floor 100 %: every slice with the interval at 0.999 (5.0 to 5.1 s) in it is below, the last starts at 5.0 s; the "
        "next hot interval is a = 5.2 s; b = 15.2 s, n = 15.3 s",
        grid([(G, 5 * S), (999 * 10**6, TENTH), (G, 950 * MS), (12 * G // 10, 12 * S)], TENTH),
        [(15_300, SUSTAINED)],
        detect=replace(POLICY, floor_ppm=10**6),
    ),
    # ---- epochs and drops ------------------------------------------------------------------------
    Edge(
        "a gap of exactly max_gap is evidence: the counter kept the bytes",
        [s for s in STEADY if not 4 * S < s.t_ns < 7 * S],
        [(10_200, SUSTAINED)],
    ),
    Edge(
        "a gap 1 ns longer is not: a fresh epoch from 7 s on",
        changed([s for s in grid([(G, 20 * S)], TENTH) if not 4 * S < s.t_ns < 7 * S], 41, t_ns=1),
        [(17_200 + 1e-6, SUSTAINED)],
        epochs=(NEW, GAP),
    ),
    Edge(
        "missed ticks are no error",
        [s for i, s in enumerate(STEADY) if i % 7 or i in (1, 101, 102)],
        [(10_300, SUSTAINED)],
    ),
    Edge(
        "a repeated stamp is dropped, whatever its counter says beyond the kept one",
        [*STEADY[:51], Sample(5 * S, STEADY[50].tx_bytes + 5), *STEADY[51:]],
        [(10_200, SUSTAINED)],
    ),
    Edge(
        "a repeated stamp with a counter that went backwards opens an epoch: this is tested first",
        [*STEADY[:51], Sample(5 * S, STEADY[50].tx_bytes - 1), *STEADY[51:]],
        epochs=(NEW, COUNTER),
    ),
    Edge(
        "a counter that starts over opens an epoch; 12 s in all have no window left",
        changed(STEADY, 60, tx_bytes=-STEADY[60].tx_bytes),
        epochs=(NEW, COUNTER),
    ),
    Edge("a clock that goes back opens an epoch", changed(STEADY, 60, t_ns=-S), epochs=(NEW, CLOCK)),
    Edge("another ifindex is another link", changed(STEADY, 60, ifindex=1), epochs=(NEW, IFINDEX)),
    Edge(
        "an implausible jump is no evidence; from its sample (1.1 s) on everything counts",
        changed(grid([(G, 14 * S)], TENTH), 11, tx_bytes=10**12),
        [(11_300, SUSTAINED)],
        sampling=replace(TEN_HZ, max_plausible_bps=100 * G),
        epochs=(NEW, EpochReason.IMPLAUSIBLE),
    ),
    Edge(
        "exactly the plausible rate is plausible",
        grid([(100 * G, 11 * S)], TENTH),
        [(10_200, SUSTAINED)],
        sampling=replace(TEN_HZ, max_plausible_bps=100 * G),
    ),
    Edge(
        "a driver that refreshes every 250 ms: without counter_refresh empty intervals are cold but slices hold; a = 0.3 s "
        "(the first refresh), b = 10.3 s, and the next interval with a refresh in it ends at 10.5 s",
        [replace(s, tx_bytes=(s.t_ns // (250 * MS)) * 250 * MS * 12 // 80) for s in STEADY],
        [(10_500, SUSTAINED)],
    ),
    Edge(
        "the same with counter_refresh 300 ms: unchanged counters are dropped; kept are 0, 0.3, 0.5, 0.8, 1.0 … s; the "
        "interval to 0.3 s reads 1 Gbit/s, those of 200 ms 1.5, those of 300 ms 1; a = 0.3, b = 10.3, n = 10.5 s",
        [replace(s, tx_bytes=(s.t_ns // (250 * MS)) * 250 * MS * 12 // 80) for s in STEADY],
        [(10_500, SUSTAINED)],
        sampling=replace(TEN_HZ, counter_refresh_ns=300 * MS),
    ),
    Edge(
        "counter_refresh drops no silence older than itself: 1.2 s of it are kept as intervals and a bad slice",
        grid([(2 * G, 5 * S), (0, 1200 * MS), (2 * G, 6 * S)], TENTH),
        sampling=replace(TEN_HZ, counter_refresh_ns=500 * MS),
    ),
    # ---- guard -----------------------------------------------------------------------------------
    Edge(
        "10 Gbit/s fill 90 Gbit in 10.0 s, which is not over; at 10.1 s it is, a sample before the rule could fire",
        grid([(10 * G, 11 * S)], TENTH),
        [(10_100, GUARD)],
        detect=GUARDED,
    ),
    Edge(
        "2 Gbit/s on and off at 5 s never overflow: what 5 s add 5 s of silence take",
        grid(repeat([(2 * G, 5 * S), (0, 5 * S)], 20), TENTH),
        detect=GUARDED,
    ),
    Edge(
        "3 Gbit/s on and off at 5 s: +10 −5 Gbit a cycle, so 85 at 170 s; 90 at 172.5 s is not over, 172.6 s is",
        grid(repeat([(3 * G, 5 * S), (0, 5 * S)], 18), TENTH),
        [(172_600, GUARD)],
        detect=GUARDED,
    ),
    Edge(
        "where the rule holds at the guard's sample only the rule is reported: 90 Gbit are over at 10.2 s",
        grid([(G * 98 // 10, 11 * S)], TENTH),
        [(10_200, SUSTAINED)],
        detect=replace(GUARDED, guard=Guard(GuardMode.ENFORCE, 89 * G)),
    ),
    Edge(
        "an observing guard is noted at 5.1 s, resets itself alone (again at 10.2 s, where the rule is reported instead)",
        grid([(10 * G, 11 * S)], TENTH),
        [(10_200, SUSTAINED)],
        detect=replace(NOTING, guard=Guard(GuardMode.OBSERVE, 45 * G)),
        noted_ms=[5_100],
    ),
    Edge(
        "an enforcing guard discards the history too: at 5.1 s, 10.2 s, …, and the rule never gets its window",
        grid([(10 * G, 16 * S)], TENTH),
        [(5_100, GUARD), (10_200, GUARD), (15_300, GUARD)],
        detect=replace(GUARDED, guard=Guard(GuardMode.ENFORCE, 45 * G)),
    ),
    Edge(
        "burst 0: the first interval over the threshold fires",
        grid([(G, S), (G + 80, S)], TENTH),
        [(k * 100, GUARD) for k in range(11, 21)],
        detect=replace(GUARDED, guard=Guard(GuardMode.ENFORCE, 0)),
    ),
]


def fired(detect: Detect, sampling: Sampling, samples: Sequence[Sample]) -> tuple[list[Firing], list[Firing], list[EpochReason]]:
    """Firings, notes and epochs over the samples."""
    detector = Detector(sampling)
    detector.watch(NAME, detect)
    firings: list[Firing] = []
    noted: list[Firing] = []
    epochs: list[EpochReason] = []
    for outcome in outcomes(detector, samples):
        firings += [firing for _, firing in outcome.firings]
        noted += [firing for _, firing in outcome.noted]
        epochs += [reason for _, reason in outcome.epochs]
    return firings, noted, epochs


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.why)
def test_edge(edge: Edge) -> None:
    """The row's traffic fires, is noted and opens epochs when the row says, for the reason in its text."""
    firings, noted, epochs = fired(edge.detect, edge.sampling, edge.samples)
    assert [(f.t_ns, f.reason) for f in firings] == [(round(at_ms * MS), why) for at_ms, why in edge.at_ms]
    assert [f.t_ns / MS for f in noted] == list(edge.noted_ms)
    assert epochs == list(edge.epochs)


@pytest.mark.parametrize("edge", [e for e in EDGES if len(e.samples) < 250], ids=lambda edge: edge.why)
def test_the_definition_agrees(edge: Edge) -> None:
    """The brute force says the same of the row's traffic (rows of a few hundred samples are beyond it)."""
    steps = judge(edge.samples, edge.detect, edge.sampling)
    fired_at = [(s.t_ns, step.fired) for s, step in zip(edge.samples, steps, strict=True) if step.fired]
    assert fired_at == [(round(at_ms * MS), why) for at_ms, why in edge.at_ms]
    assert [step.epoch for step in steps if step.epoch] == list(edge.epochs)
