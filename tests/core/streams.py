"""Streams of samples for the detector's tests: built by hand from pieces, or drawn by hypothesis around the edges.

A drawn stream is a run of pieces (so many samples at such a share of the threshold) with accidents between them: gaps,
repeated and backward stamps, counters that start over, links that are replaced. Rates cluster where verdicts turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from limiterd.core.detector import Detector, Outcome
from limiterd.core.model import Detect, Guard, GuardMode, Link, Sampling, Snapshot
from tests.core.reference import Sample, Step

NAME = "eth0"
UNGUARDED = Guard(GuardMode.OFF)

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For every property: a busy machine is no failure."""


@dataclass(frozen=True)
class Case:
    """One link's samples under one set of parameters."""

    detect: Detect
    sampling: Sampling
    samples: tuple[Sample, ...]


def run(samples: Iterable[Sample], detect: Detect, sampling: Sampling) -> list[Step]:
    """What the streaming detector says of each sample, in the reference's terms."""
    detector = Detector(sampling)
    detector.watch(NAME, detect)
    return [step_of(outcome, detector.pending().get(NAME)) for outcome in outcomes(detector, samples)]


def outcomes(detector: Detector, samples: Iterable[Sample]) -> Iterable[Outcome]:
    """Feed the samples of one link, as snapshots that keep their links tuple while the link stays the same."""
    links: tuple[Link, ...] = ()
    for sample in samples:
        if not links or (links[0].ifindex, links[0].incarnation) != (sample.ifindex, sample.incarnation):
            links = (Link(sample.ifindex, NAME, incarnation=sample.incarnation),)
        yield detector.update(Snapshot(sample.t_ns, links, (sample.tx_bytes,)))


def step_of(outcome: Outcome, pending_ns: int | None) -> Step:
    """An Outcome of at most one link as the reference's Step."""
    return Step(
        epoch=outcome.epochs[0][1] if outcome.epochs else None,
        dropped=bool(outcome.dropped),
        fired=outcome.firings[0][1].reason if outcome.firings else None,
        noted=bool(outcome.noted),
        pending_ns=pending_ns,
    )


def first_firing_ns(case: Case, detect: Detect | None = None) -> int | None:
    """The stamp of the first firing, under the case's parameters or others."""
    steps = run(case.samples, detect or case.detect, case.sampling)
    return next((s.t_ns for s, step in zip(case.samples, steps, strict=True) if step.fired), None)


# ---- by hand -----------------------------------------------------------------------------------


def grid(pieces: Sequence[tuple[int, int]], interval_ns: int, *, start_ns: int = 0, start_bytes: int = 0) -> list[Sample]:
    """Samples on a regular grid: (bits per second, ns) pieces one after the other, from the first sample on.

    Counters are exact at their stamps (floor of the byte).
    """
    samples = [Sample(start_ns, start_bytes)]
    bit_ns, into_ns, piece = 8 * 10**9 * start_bytes, 0, 0
    while piece < len(pieces):
        left_ns = interval_ns
        while left_ns and piece < len(pieces):
            bps, length_ns = pieces[piece]
            take_ns = min(left_ns, length_ns - into_ns)
            bit_ns += bps * take_ns
            left_ns -= take_ns
            into_ns += take_ns
            if into_ns == length_ns:
                piece, into_ns = piece + 1, 0
        samples.append(Sample(samples[-1].t_ns + interval_ns, bit_ns // (8 * 10**9)))
    return samples


# ---- drawn -------------------------------------------------------------------------------------

SHARES = (0, 1, 500, 790, 799, 800, 801, 900, 990, 999, 1000, 1000, 1001, 1010, 1100, 1500, 3000, 20_000)
"""Rates in permille of the threshold; most near the floor and the threshold."""


def accident(last: Sample, unit_ns: int) -> st.SearchStrategy[Sample]:
    """The sample after something happened; the last one itself where nothing did."""
    return st.one_of(
        st.just(last),
        st.just(last),
        st.just(replace(last, t_ns=last.t_ns + 3 * unit_ns)),
        st.just(replace(last, t_ns=last.t_ns + 8 * unit_ns, tx_bytes=last.tx_bytes + 1)),
        st.integers(1, 2).map(lambda more: replace(last, tx_bytes=last.tx_bytes + more)),
        st.integers(1, 3).map(lambda units: replace(last, t_ns=max(0, last.t_ns - units * unit_ns))),
        st.sampled_from((0, max(0, last.tx_bytes - 1))).map(lambda less: replace(last, t_ns=last.t_ns + unit_ns, tx_bytes=less)),
        st.just(replace(last, t_ns=last.t_ns + unit_ns, ifindex=last.ifindex + 1)),
        st.just(replace(last, t_ns=last.t_ns + unit_ns, incarnation=last.incarnation + 1)),
        st.integers(0, 2**40).map(lambda jump: replace(last, t_ns=last.t_ns + unit_ns, tx_bytes=last.tx_bytes + jump)),
    )


@st.composite
def detects(draw: st.DrawFn, unit_ns: int, guards: Sequence[GuardMode] = tuple(GuardMode)) -> Detect:
    """Small windows on a grid of unit_ns, so that short streams fire."""
    window = draw(st.integers(1, 9))
    threshold_bps = draw(st.sampled_from((8 * 10**9, 10**9, 10**6, 7)))
    unit_bits = max(1, threshold_bps * unit_ns // 10**9)
    return Detect(
        threshold_bps=threshold_bps,
        window_ns=window * unit_ns + draw(st.sampled_from((0, 0, 1))),
        slice_ns=draw(st.integers(1, window)) * unit_ns,
        floor_ppm=draw(st.sampled_from((800_000, 800_000, 0, 500_000, 1_000_000, 333_333))),
        guard=Guard(draw(st.sampled_from(guards)), draw(st.sampled_from((30, 5, 1, 0))) * unit_bits),
    )


@st.composite
def samplings(draw: st.DrawFn, unit_ns: int, threshold_bps: int) -> Sampling:
    """Sampling parameters around the same unit; mostly without the two extra rules."""
    return Sampling(
        interval_ns=unit_ns,
        max_gap_ns=draw(st.sampled_from((4, 3, 6))) * unit_ns,
        counter_refresh_ns=draw(st.sampled_from((0, 0, 0, 1, 2))) * unit_ns,
        max_plausible_bps=draw(st.sampled_from((0, 0, 0, 6 * threshold_bps, max(1, threshold_bps // 2)))),
    )


@st.composite
def streams(draw: st.DrawFn, unit_ns: int, threshold_bps: int, *, accidents: bool = True) -> tuple[Sample, ...]:
    """One link's samples: pieces of traffic on a jittered grid, with accidents between the pieces."""
    t_ns = draw(st.sampled_from((0, 10**15 + 7)))
    counter = draw(st.sampled_from((0, 2**64 - 10**6)))
    ifindex, incarnation = 2, 0
    samples = [Sample(t_ns, counter, ifindex, incarnation)]
    for _ in range(draw(st.integers(1, 6))):
        share = draw(st.sampled_from(SHARES))
        jitters = draw(st.lists(st.sampled_from((0, 0, 0, 0, -1, 1, unit_ns // 3)), min_size=1, max_size=14))
        for jitter in jitters:
            step_ns = max(1, unit_ns + jitter)
            t_ns += step_ns
            counter += -(-share * threshold_bps * step_ns // (8 * 10**12))
            samples.append(Sample(t_ns, counter, ifindex, incarnation))
        if accidents:
            last = Sample(t_ns, counter, ifindex, incarnation)
            after = draw(accident(last, unit_ns))
            t_ns, counter, ifindex, incarnation = after.t_ns, after.tx_bytes, after.ifindex, after.incarnation
            samples += [after] * (after != last)
    return tuple(samples)


@st.composite
def limit_states(draw: st.DrawFn, *, accidents: bool = True, guards: Sequence[GuardMode] = tuple(GuardMode)) -> Case:
    """A stream with parameters that make it interesting."""
    unit_ns = draw(st.sampled_from((10**8, 10**9, 1000)))
    detect = draw(detects(unit_ns, guards))
    sampling = draw(samplings(unit_ns, detect.threshold_bps)) if accidents else Sampling(unit_ns, 10 * unit_ns)
    return Case(detect, sampling, draw(streams(unit_ns, detect.threshold_bps, accidents=accidents)))
