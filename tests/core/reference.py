"""Sustained excess by its definition: a brute force over whole lists, written from the rule's text and from nothing else.

One link's samples go in, one Step per sample comes out. Nothing is incremental: at every sample the epoch's whole list
is searched for a witness, with exact fractions. O(n³), for tests only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from limiterd.core.model import Detect, EpochReason, GuardMode, Reason, Sampling


@dataclass(frozen=True)
class Sample:
    """One reading of one link."""

    t_ns: int
    tx_bytes: int
    ifindex: int = 2
    incarnation: int = 0


@dataclass(frozen=True)
class Step:
    """What the definition says of one sample; pending_ns is None where no candidate is alive after it."""

    epoch: EpochReason | None = None
    dropped: bool = False
    fired: Reason | None = None
    noted: bool = False
    pending_ns: int | None = None


def rate(p: Sample, q: Sample) -> Fraction:
    """Bits per second from p to q."""
    return Fraction(8 * (q.tx_bytes - p.tx_bytes) * 10**9, q.t_ns - p.t_ns)


def opens(last: Sample | None, new: Sample, sampling: Sampling) -> EpochReason | None:
    """The first condition, in the rule's order, by which a sample is a baseline; None where none holds."""
    if last is None:
        return EpochReason.NEW
    elapsed_ns = new.t_ns - last.t_ns
    limit_bps = sampling.max_plausible_bps
    conditions = (
        (new.ifindex != last.ifindex, EpochReason.IFINDEX),
        (new.incarnation != last.incarnation, EpochReason.NEW),
        (new.tx_bytes < last.tx_bytes, EpochReason.COUNTER),
        (elapsed_ns < 0, EpochReason.CLOCK),
        (elapsed_ns > sampling.max_gap_ns, EpochReason.GAP),
        (limit_bps > 0 and elapsed_ns > 0 and rate(last, new) > limit_bps, EpochReason.IMPLAUSIBLE),
    )
    return next((reason for holds, reason in conditions if holds), None)


def is_dropped(last: Sample, new: Sample, sampling: Sampling) -> bool:
    """Whether a sample that opens no epoch says nothing."""
    if new.t_ns == last.t_ns:
        return True
    refresh = sampling.counter_refresh_ns
    return refresh > 0 and new.tx_bytes == last.tx_bytes and new.t_ns - last.t_ns < refresh


def slice_start(epoch: list[Sample], j: int, slice_ns: int) -> int | None:
    """The latest sample of the epoch at least a slice before sample j."""
    return next((s for s in reversed(range(j)) if epoch[j].t_ns - epoch[s].t_ns >= slice_ns), None)


def floor_holds(epoch: list[Sample], a: int, last: int, detect: Detect) -> bool:
    """Condition 4: no slice that starts at a or later and ends at `last` or earlier runs below the floor."""
    lowest = Fraction(detect.floor_ppm, 10**6) * detect.threshold_bps
    for j in range(last + 1):
        s = slice_start(epoch, j, detect.slice_ns)
        if s is not None and s >= a and rate(epoch[s], epoch[j]) < lowest:
            return False
    return True


def hot(epoch: list[Sample], n: int, detect: Detect) -> bool:
    """Whether the interval that ends at sample n (not the baseline) runs at the threshold or above."""
    return rate(epoch[n - 1], epoch[n]) >= detect.threshold_bps


def sustained(epoch: list[Sample], detect: Detect) -> bool:
    """Whether some a witnesses sustained excess at the epoch's last sample."""
    n = len(epoch) - 1
    b = n - 1
    return hot(epoch, n, detect) and any(
        epoch[b].t_ns - epoch[a].t_ns >= detect.window_ns
        and hot(epoch, a, detect)
        and rate(epoch[a], epoch[b]) >= detect.threshold_bps
        and floor_holds(epoch, a, b, detect)
        for a in range(1, b)
    )


def over_the_line_bits(samples: list[Sample], threshold_bps: int) -> Fraction:
    """The guard's level at the last sample: the most that any stretch up to it carried over threshold·τ."""
    last = samples[-1]
    return max(8 * (last.tx_bytes - p.tx_bytes) - Fraction(threshold_bps * (last.t_ns - p.t_ns), 10**9) for p in samples)


def earliest_live(epoch: list[Sample], detect: Detect) -> int | None:
    """The earliest candidate that no slice up to the epoch's last sample rules out."""
    last = len(epoch) - 1
    live = (a for a in range(1, last + 1) if hot(epoch, a, detect) and floor_holds(epoch, a, last, detect))
    return next(live, None)


def judge(samples: Iterable[Sample], detect: Detect, sampling: Sampling) -> list[Step]:
    """Run the definition over one link's samples, one Step each."""
    steps: list[Step] = []
    epoch: list[Sample] = []
    bucket: list[Sample] = []
    pending: int | None = None
    for new in samples:
        last = epoch[-1] if epoch else None
        reason = opens(last, new, sampling)
        if reason is not None:
            epoch, bucket, pending = [new], [new], None
            steps.append(Step(epoch=reason))
            continue
        assert last is not None
        if is_dropped(last, new, sampling):
            steps.append(Step(dropped=True, pending_ns=pending))
            continue
        epoch.append(new)
        bucket.append(new)
        guard = (
            detect.guard.mode is not GuardMode.OFF and over_the_line_bits(bucket, detect.threshold_bps) > detect.guard.burst_bits
        )
        fired: Reason | None = None
        noted = False
        if sustained(epoch, detect):
            fired = Reason.SUSTAINED
        elif guard and detect.guard.mode is GuardMode.ENFORCE:
            fired = Reason.GUARD
        elif guard:
            noted = True
            bucket = [new]
        if fired is not None:
            epoch, bucket = [new], [new]
        a = earliest_live(epoch, detect)
        pending = None if a is None else new.t_ns - epoch[a].t_ns
        steps.append(Step(fired=fired, noted=noted, pending_ns=pending))
    return steps
