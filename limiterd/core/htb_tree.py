"""What a limit looks like in the kernel: the HTB tree, its leaves and its filters, computed and nothing more.

Rule: every number that the kernel would otherwise guess (burst, quantum, queue length, direct queue) is given, and
rounded as the kernel stores it, so that a tree read back equals the tree wanted or something really changed.

    1d1d: htb, default 20
    ├── 1d1d:1   the limit: rate = ceil = limit
    │   ├── 1d1d:10  lifeline: first priority, the share guaranteed, the whole limit where free   leaf 1d10:
    │   └── 1d1d:20  all else: what the share leaves guaranteed, the whole limit where free       leaf 1d20:
    └── 1d1d:30  exempt traffic, outside the limit; only where configured                         leaf 1d30:

HTB keeps rates in bytes per second and bursts as *time* at the class's rate, in ticks of 64 ns (net/sched/sch_htb.c,
PSCHED_SHIFT in include/net/pkt_sched.h). Bursts hold the largest GSO packet and 1 ms of traffic: less, and HTB falls
short of its rate. Queues are sized in time (10 ms at the limit), but hold two GSO packets: less collapses TCP.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    LEAF_DEFAULT,
    LEAF_EXEMPT,
    LEAF_LIFELINE,
    HtbClass,
    KernelAbilities,
    Leaf,
    Limit,
    Link,
    TcTree,
)
from limiterd.core.u32_filters import filters_for
from limiterd.core.units import PPM

UNLIMITED_BPS: Final = 10**12
"""1 Tbit/s: the rate of exempt traffic, and of a limit that is being lifted; beyond any link this daemon meets."""
LOWEST_BPS: Final = 16_000
"""No class gets less: HTB refuses a rate of 0, and its 32-bit clock must hold the largest GSO packet (512 KiB)."""
TICK_NS: Final = 64
_MOST_TICKS: Final = 0xFFFFFFFF
_BYTE_NS: Final = 10**9

_LEAST_BURST_BYTES: Final = 65_536
_BURST_PER_SECOND: Final = 1_000
"""1 ms: the timer's resolution with room to spare."""
_QUEUE_PER_SECOND: Final = 100
"""10 ms."""
_QUEUE_GSO_PACKETS: Final = 2
_QUEUE_FRAMES: Final = 10
_ETHERNET_HEADER_BYTES: Final = 14
_EXEMPT_QUEUE_BPS: Final = 10**10
"""Exempt traffic queues only where the device itself is full: 10 ms at 10 Gbit/s, like an ordinary device queue."""

_FQ_CODEL_PACKETS: Final = 10_240
_FQ_CODEL_TARGET_US: Final = 5_000
_FQ_CODEL_INTERVAL_US: Final = 100_000
_FQ_CODEL_FLOWS: Final = 1_024
_FQ_CODEL_LEAST_QUANTUM_BYTES: Final = 256
_FQ_CODEL_MEMORY_BYTES: Final = 32 << 20
_CODEL_TIME_NS: Final = 1_024
"""CoDel counts time in units of 2^10 ns."""

LEAF_OF: Final = {CLASS_LIFELINE: LEAF_LIFELINE, CLASS_DEFAULT: LEAF_DEFAULT, CLASS_EXEMPT: LEAF_EXEMPT}
"""Our leaf classes and the handle of the queue under each."""


def tree_for(limit: Limit, rate_bps: int, link: Link, abilities: KernelAbilities) -> TcTree:
    """The tree that holds `link` to `rate_bps` (rounded down to whole bytes per second, at least 32 kbit/s).

    Where the kernel has no u32 classifier the limit goes without its lifeline; with exempt matches such a limit is
    refused (TcTree.refused), since it would also hold what it must not.
    """
    return _tree(limit, rate_bps, link.mtu, link.gso_max_bytes, abilities)


@lru_cache(maxsize=256)
def _tree(limit: Limit, rate_bps: int, mtu: int, gso_max_bytes: int, abilities: KernelAbilities) -> TcTree:
    """A thousand links are mostly held alike: one tree for all of them."""
    rate_bps = _whole_bytes(max(rate_bps, 2 * LOWEST_BPS))
    lifeline_bps = _lifeline_bps(limit.lifeline.share_ppm, rate_bps) if abilities.u32 else 0
    classes = [_class(CLASS_LIMIT, HANDLE_ROOT, rate_bps, rate_bps, gso_max_bytes)]
    if lifeline_bps:
        classes.append(_class(CLASS_LIFELINE, CLASS_LIMIT, lifeline_bps, rate_bps, gso_max_bytes))
    classes.append(_class(CLASS_DEFAULT, CLASS_LIMIT, rate_bps - lifeline_bps, rate_bps, gso_max_bytes, prio=1))
    if limit.exempt and abilities.u32:
        classes.append(_class(CLASS_EXEMPT, HANDLE_ROOT, UNLIMITED_BPS, UNLIMITED_BPS, gso_max_bytes))
    return TcTree(
        default_classid=CLASS_DEFAULT,
        classes=tuple(classes),
        leaves=tuple(_leaf(c, mtu, gso_max_bytes, abilities) for c in classes if c.classid in LEAF_OF),
        filters=filters_for(limit.exempt, limit.lifeline.match) if abilities.u32 else (),
        refused=_refusal(limit, abilities),
    )


@lru_cache(maxsize=256)
def unlimited(tree: TcTree) -> TcTree:
    """The same tree with its limit lifted: a class change that loses no packet and lets the queues run empty."""
    return replace(tree, classes=tuple(_raised_class(c) for c in tree.classes))


def is_whole(tree: TcTree | None) -> bool:
    """Whether a tree is a finished limit of some rate; what else of it is not as wanted can be put right in place.

    A half-made one lacks the default class, which commits it.
    """
    found = {} if tree is None else {c.classid: c for c in tree.classes}
    limit, default = found.get(CLASS_LIMIT), found.get(CLASS_DEFAULT)
    if tree is None or limit is None or default is None:
        return False
    one_rate = limit.rate_bps == limit.ceil_bps == default.ceil_bps
    return one_rate and (tree.default_classid, default.parent) == (CLASS_DEFAULT, CLASS_LIMIT)


def burst_ticks(burst_bytes: int, rate_bps: int) -> int:
    """A burst as HTB stores it: the time that these bytes take at the rate, in ticks, rounded up."""
    return min(_MOST_TICKS, -(-burst_bytes * _BYTE_NS // (rate_bps // 8 * TICK_NS)))


def burst_bytes(ticks: int, rate_bps: int) -> int:
    """The bytes that a stored burst is worth, rounded down; burst_ticks of that gives the same bytes again."""
    return ticks * TICK_NS * (rate_bps // 8) // _BYTE_NS


def codel_us(wanted_us: int) -> int:
    """A CoDel time as it reads back: the kernel keeps it in units of 1 024 ns."""
    return (wanted_us * 1_000 // _CODEL_TIME_NS) * _CODEL_TIME_NS // 1_000


def _whole_bytes(rate_bps: int) -> int:
    return rate_bps // 8 * 8


def _lifeline_bps(share_ppm: int, rate_bps: int) -> int:
    """The guaranteed share, but never nothing for either side."""
    return _whole_bytes(min(max(rate_bps * share_ppm // PPM, LOWEST_BPS), rate_bps - LOWEST_BPS))


def _refusal(limit: Limit, abilities: KernelAbilities) -> str:
    if not abilities.htb:
        return "this kernel has no HTB; load the module sch_htb"
    if limit.exempt and not abilities.u32:
        return "exempt traffic is configured, but this kernel cannot tell it apart; load the module cls_u32, or remove `exempt`"
    return ""


def _burst(rate_bps: int, gso_max_bytes: int) -> int:
    wanted_bytes = max(_LEAST_BURST_BYTES, gso_max_bytes, rate_bps // 8 // _BURST_PER_SECOND)
    return burst_bytes(burst_ticks(wanted_bytes, rate_bps), rate_bps)


def _class(classid: int, parent: int, rate_bps: int, ceil_bps: int, gso_max_bytes: int, *, prio: int = 0) -> HtbClass:
    return HtbClass(
        classid=classid,
        parent=parent,
        rate_bps=rate_bps,
        ceil_bps=ceil_bps,
        burst_bytes=_burst(rate_bps, gso_max_bytes),
        cburst_bytes=_burst(ceil_bps, gso_max_bytes),
        quantum_bytes=max(_LEAST_BURST_BYTES, gso_max_bytes),
        prio=prio,
    )


def _raised_class(item: HtbClass) -> HtbClass:
    burst = _burst(UNLIMITED_BPS, max(item.burst_bytes, item.cburst_bytes))
    return replace(item, rate_bps=UNLIMITED_BPS, ceil_bps=UNLIMITED_BPS, burst_bytes=burst, cburst_bytes=burst)


def _leaf(item: HtbClass, mtu: int, gso_max_bytes: int, abilities: KernelAbilities) -> Leaf:
    handle = LEAF_OF[item.classid]
    frame_bytes = mtu + _ETHERNET_HEADER_BYTES
    if abilities.fq_codel:
        # CoDel must let one and a half frames pass at the rate, or it drops for want of anything else to do
        target_us = max(_FQ_CODEL_TARGET_US, frame_bytes * 8 * 1_500_000 // item.ceil_bps)
        return Leaf(
            handle,
            item.classid,
            "fq_codel",
            limit_packets=_FQ_CODEL_PACKETS,
            target_us=codel_us(target_us),
            interval_us=codel_us(_FQ_CODEL_INTERVAL_US + target_us - _FQ_CODEL_TARGET_US),
            flows=_FQ_CODEL_FLOWS,
            quantum_bytes=max(_FQ_CODEL_LEAST_QUANTUM_BYTES, frame_bytes),
            memory_bytes=_FQ_CODEL_MEMORY_BYTES,
            ecn=1,
        )
    queue_bps = min(item.ceil_bps, _EXEMPT_QUEUE_BPS) if item.classid == CLASS_EXEMPT else item.ceil_bps
    limit_bytes = max(queue_bps // 8 // _QUEUE_PER_SECOND, _QUEUE_GSO_PACKETS * gso_max_bytes, _QUEUE_FRAMES * frame_bytes)
    return Leaf(handle, item.classid, "bfifo", limit_bytes=limit_bytes)
