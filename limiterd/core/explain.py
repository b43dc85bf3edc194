"""Why a link is in its phase: the four conditions of the rule with their figures, and what would lift a limit.

Two sources tell the same story. Before a firing it is the detector's trail, the samples since the earliest live
candidate; after one, the figures that the firing left. The words are for a tenant and for an engineer at night: a
condition says what is and what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from limiterd.core.model import Detect, LinkView, Phase, Release, ReleaseMode
from limiterd.core.release import hold_ns
from limiterd.core.units import NS_PER_SECOND, PPM, format_duration, format_rate, format_share, format_wall

Sample = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the rule's four conditions: whether it holds, what is, and what it needs."""

    name: str
    holds: bool
    now: str
    needs: str

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {"name": self.name, "holds": self.holds, "is": self.now, "needs": self.needs}


def _rate_bps(p: Sample, q: Sample) -> int:
    return 8 * NS_PER_SECOND * (q[1] - p[1]) // (q[0] - p[0]) if q[0] > p[0] else 0


def _lowest_slice_bps(samples: Sequence[Sample], slice_ns: int) -> int | None:
    lowest: int | None = None
    start = 0
    for end, sample in enumerate(samples):
        while start + 1 < end and sample[0] - samples[start + 1][0] >= slice_ns:
            start += 1
        if sample[0] - samples[start][0] >= slice_ns:
            rate = _rate_bps(samples[start], sample)
            lowest = rate if lowest is None else min(lowest, rate)
    return lowest


def _conditions(
    detect: Detect, flanks_bps: tuple[int, int], span_ns: int, mean_bps: int, lowest_bps: int | None
) -> tuple[Condition, ...]:
    floor_bps = detect.threshold_bps * detect.floor_ppm // PPM
    at = format_rate(detect.threshold_bps)
    return (
        Condition(
            "flanks",
            min(flanks_bps) >= detect.threshold_bps,
            f"first interval {format_rate(flanks_bps[0])}, last {format_rate(flanks_bps[1])}",
            f"both at least {at}",
        ),
        Condition(
            "length",
            span_ns >= detect.window_ns,
            format_duration(_rounded(span_ns)),
            f"at least {format_duration(detect.window_ns)}",
        ),
        Condition("mean", mean_bps >= detect.threshold_bps, format_rate(mean_bps), f"at least {at}"),
        Condition(
            "floor",
            lowest_bps is None or lowest_bps >= floor_bps,
            "no full slice yet" if lowest_bps is None else f"lowest slice {format_rate(lowest_bps)}",
            f"every {format_duration(detect.slice_ns)} at least {format_rate(floor_bps)} ({format_share(detect.floor_ppm)})",
        ),
    )


def _rounded(duration_ns: int) -> int:
    return duration_ns // 10**6 * 10**6


def of_trail(detect: Detect, trail: Sequence[Sample]) -> tuple[Condition, ...]:
    """The conditions as they stand for the earliest candidate that is still alive; empty where there is none."""
    if len(trail) < 2:
        return ()
    a, b = trail[0], trail[-1]
    rates = [_rate_bps(p, q) for p, q in pairwise(trail)]
    return _conditions(
        detect,
        (max(rates[0], detect.threshold_bps), rates[-1]),
        b[0] - a[0],
        _rate_bps(a, b),
        _lowest_slice_bps(trail, detect.slice_ns),
    )


def of_firing(detect: Detect, figures: Mapping[str, object]) -> tuple[Condition, ...]:
    """The conditions as they held at a firing, from the figures that its event carries; empty where they are not those."""
    names = ("first_flank_bps", "last_flank_bps", "span_ns", "mean_bps")
    values = [figures.get(name) for name in names]
    numbers = [value for value in values if isinstance(value, int)]
    lowest = figures.get("lowest_slice_bps")
    if len(numbers) != len(names) or not isinstance(lowest, int | None):
        return ()
    first, last, span_ns, mean_bps = numbers
    return _conditions(detect, (first, last), span_ns, mean_bps, lowest)


def what_lifts(view: LinkView, release: Release) -> tuple[str, ...]:
    """What would end the limit, in order of likelihood; empty for a link that is not limited."""
    if view.phase not in (Phase.LIMITED, Phase.FAULT) or view.since_wall_ns is None:
        return ()
    name = view.interface
    ways = [
        (
            f"an approved increase request: limiterctl request --interface {name} --rate RATE --until DATE --reason '…', "
            "which an administrator approves with limiterctl approve ID"
        ),
        f"an operator's command: limiterctl release {name} --reason '…'",
    ]
    if view.manual:
        return ("it was set by hand and stands until a manual release or an override", *ways)
    if release.mode is ReleaseMode.AUTO:
        until = view.since_wall_ns + hold_ns(release, view.strikes)
        quiet = (
            f"{format_duration(release.quiet_for_ns)} without demand "
            f"(below {format_share(release.quiet_rate_ppm)} of the limit, no drops, empty queue)"
        )
        ways.insert(0, f"by itself, not before {format_wall(until)} and after {quiet}")
    return tuple(ways)
