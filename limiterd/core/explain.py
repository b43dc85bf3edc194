"""Why a link is in its phase: the four conditions of the rule with their figures, and what would lift a limit.

Two sources tell the same story. Before a firing it is the detector's trail, the samples since the earliest live
candidate; after one, the figures that the firing left. A firing explains a limit only where it is the limit's cause. The
words are for a tenant and for an engineer at night: a condition says what is and what it needs, a fault what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from limiterd.core.auto_release import hold
from limiterd.core.model import Detect, Fault, FaultReason, LinkView, Phase, Reason, Release, ReleaseMode
from limiterd.core.units import NS_PER_SECOND, PPM, format_duration, format_rate, format_share, format_wall, parse_wall

Sample = tuple[int, int]

_MILLISECOND_NS: Final = 10**6
"""Times in the audit trail are rounded to this."""


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
    detect: Detect, flanks_bps: tuple[int | None, int], span_ns: int, mean_bps: int, lowest_bps: int | None
) -> tuple[Condition, ...]:
    """flanks_bps: the first one None where only that it held is known, and no figure."""
    first_bps, last_bps = flanks_bps
    first = "the first interval held" if first_bps is None else f"first interval {format_rate(first_bps)}"
    floor_bps = detect.threshold_bps * detect.floor_ppm // PPM
    at = format_rate(detect.threshold_bps)
    return (
        Condition(
            "flanks",
            (first_bps is None or first_bps >= detect.threshold_bps) and last_bps >= detect.threshold_bps,
            f"{first}, last {format_rate(last_bps)}",
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
    """The conditions as they stand for the earliest candidate that is still alive; empty where there is none.

    The trail begins with the candidate: the interval before it, the first flank, was at the threshold or it were none.
    """
    if len(trail) < 2:
        return ()
    a, b = trail[0], trail[-1]
    return _conditions(
        detect,
        (None, _rate_bps(trail[-2], b)),
        b[0] - a[0],
        _rate_bps(a, b),
        _lowest_slice_bps(trail, detect.slice_ns),
    )


def of_firing(detect: Detect, figures: Mapping[str, object]) -> tuple[Condition, ...]:
    """The conditions as they held at a firing, from the figures that its event carries; empty where they are not those.

    Threshold and window are those of the firing; detect, which may have changed since, gives the rest.
    """
    names = ("first_flank_bps", "last_flank_bps", "span_ns", "mean_bps")
    values = [figures.get(name) for name in names]
    numbers = [value for value in values if isinstance(value, int)]
    lowest = figures.get("lowest_slice_bps")
    if len(numbers) != len(names) or not isinstance(lowest, int | None):
        return ()
    first, last, span_ns, mean_bps = numbers
    threshold_bps, window_ns = figures.get("threshold_bps"), figures.get("window_ns")
    if isinstance(threshold_bps, int) and isinstance(window_ns, int):
        detect = replace(detect, threshold_bps=threshold_bps, window_ns=window_ns)
    return _conditions(detect, (first, last), span_ns, mean_bps, lowest)


def caused(view: LinkView, firing: Mapping[str, object]) -> bool:
    """Whether a firing, as the audit trail has it ("kind" and "at" beside its figures), is why the link is limited now.

    It is told after its decision was made, so one that was told before belongs to an earlier limit.
    """
    due = view.phase in (Phase.LIMITED, Phase.FAULT) and not view.manual and view.reason in (Reason.SUSTAINED, Reason.GUARD)
    if not due or view.since_wall_ns is None or firing.get("kind") != "limit":
        return False
    return parse_wall(str(firing.get("at"))) >= view.since_wall_ns // _MILLISECOND_NS * _MILLISECOND_NS


def what_lifts(view: LinkView, release: Release) -> tuple[str, ...]:
    """What would end the limit, in order of likelihood; empty for a link that is not limited, nor will be when it returns."""
    if view.phase not in (Phase.LIMITED, Phase.FAULT, Phase.ABSENT) or view.since_wall_ns is None:
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
        return ("it was set by hand and stays until a manual release or an override", *ways)
    if release.mode is ReleaseMode.AUTO:
        until = view.since_wall_ns + hold(release, view.strikes)[0]
        quiet = (
            f"{format_duration(release.quiet_for_ns)} without demand "
            f"(below {format_share(release.quiet_rate_ppm)} of the limit, no drops, empty queue)"
        )
        ways.insert(0, f"by itself, not before {format_wall(until)} and after {quiet}")
    return tuple(ways)


# ---- what to do about a fault --------------------------------------------------------------------

_AGAIN: Final = "limiterd tries again by itself, at once when the link's qdiscs change and else after a minute at most"
_STANDS: Final = "the limit stands for all that goes through it; the fault ends 10 s after the last excess"
_INSIDE: Final = ("see what it is: tc -s qdisc show dev {link}; tc -s class show dev {link}; tc filter show dev {link}",)
_REMEDIES: Final[Mapping[FaultReason, tuple[str, ...]]] = {
    FaultReason.FOREIGN_QDISC: (
        "see what it is: tc -s qdisc show dev {link}",
        "if nobody needs it: tc qdisc del dev {link} root",
        'if it is needed: take the link out of the policy (interfaces: [..., "!{link}"]); then: limiterctl reload',
    ),
    FaultReason.PERMISSION: (
        "give the daemon CAP_NET_ADMIN: AmbientCapabilities and CapabilityBoundingSet in its unit",
        "or the link belongs to another user namespace, whose root alone may shape it: take it out of the policy",
    ),
    FaultReason.MISSING_MODULE: ("load what the kernel lacks: modprobe sch_htb; modprobe cls_u32; see also: dmesg",),
    FaultReason.FIGHT: (
        "see what was changed and when: limiterctl history {link}; catch who does it: tc monitor",
        'stop the other hand, or take the link out of the policy (interfaces: [..., "!{link}"]); then: limiterctl reload',
    ),
    FaultReason.NO_ANSWER: ("look for a process that holds the kernel's network configuration lock for seconds: dmesg",),
    FaultReason.LAZY_COUNTER: (
        "set counter_refresh in the policy of {link} (or sampling.counter_refresh for all links) to the value above",
        "see that the driver is what refreshes it: ethtool -i {link}; then: limiterctl reload",
    ),
    FaultReason.BYPASS: (
        "see what stands in the tree: tc -s class show dev {link}; tc -s filter show dev {link} parent 1d1d:",
        "remove what others put there: tc filter del dev {link} parent 1d1d: prio PRIO; tc class del dev {link} classid ID",
        (
            "where nothing foreign stands there, find who sends without a qdisc: packet sockets are in /proc/net/packet, XDP "
            "programs in ip link show dev {link}, offloaded flows in tc -s filter show and ethtool -k {link} (hw-tc-offload)"
        ),
    ),
    FaultReason.OTHER: ("see the daemon's log: journalctl -u limiterd -e",),
}


def what_to_do(fault: Fault, phase: Phase) -> tuple[str, ...]:
    """What ends a fault or warning of a link in this phase; empty for the daemon's own, whose text says it.

    What is foreign on a limited link is inside the limit: to delete the root would end the limit, and is not advised.
    """
    if not fault.interface:
        return ()
    inside = fault.reason is FaultReason.FOREIGN_QDISC and phase is Phase.LIMITED
    ways = tuple(way.replace("{link}", fault.interface) for way in (_INSIDE if inside else _REMEDIES[fault.reason]))
    return ways if fault.warning else (*ways, _STANDS if fault.reason is FaultReason.BYPASS else _AGAIN)
