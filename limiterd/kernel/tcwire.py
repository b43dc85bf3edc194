"""Queueing disciplines, classes and filters as rtnetlink messages, and back. Bytes only: no socket.

Rule: what is encoded from a value decodes to the same value (core/shape.py has rounded it before). What is read and
cannot be one of ours decodes to something that equals none of ours, never to an error.

Above each encoder stands its `tc` equivalent. Layouts: include/uapi/linux/rtnetlink.h (tcmsg), pkt_sched.h (HTB, FIFO,
fq_codel), pkt_cls.h (u32), gen_stats.h. Times of HTB are in ticks of 64 ns.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from limiterd.core.htb_tree import burst_bytes, burst_ticks
from limiterd.core.model import HANDLE_ROOT, PARENT_ROOT, Filter, HtbClass, Leaf, RootQdisc
from limiterd.core.u32_filters import is_link
from limiterd.kernel.netlink import (
    HEADER_BYTES,
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    RTM_GETLINK,
    Batch,
    MalformedMessage,
    Message,
    attr,
    attr_list,
    attrs,
    nested,
    text_of,
)

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTCLASS: Final = 40
RTM_DELTCLASS: Final = 41
RTM_GETTCLASS: Final = 42
RTM_NEWTFILTER: Final = 44
RTM_DELTFILTER: Final = 45
RTM_GETTFILTER: Final = 46

_TCMSG: Final = struct.Struct("=BxHiIII")
"""Family, padding, ifindex, handle, parent, info."""
_IFINDEX: Final = struct.Struct("=i")
_IFINDEX_AT: Final = 4
_AFTER_IFINDEX: Final = 8
_AFTER_LINK: Final = struct.Struct("=III")
"""Handle, parent, info."""
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_ADD: Final = NLM_F_CREATE | NLM_F_EXCL

_NLA: Final = struct.Struct("=HH")
_NLA_TYPE_MASK: Final = 0x3FFF
_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_TCA_STATS2: Final = 7
_TCA_STAB: Final = 8

_STATS_BASIC: Final = 1
_STATS_RATE_EST: Final = 2
_STATS_QUEUE: Final = 3
_STATS_PKT64: Final = 8
_BASIC: Final = struct.Struct("=QI")
_QUEUE: Final = struct.Struct("=IIIII")
"""Packets queued, backlog in bytes, drops, requeues, overlimits."""

_HTB_PARMS: Final = 1
_HTB_INIT: Final = 2
_HTB_DIRECT_QLEN: Final = 5
_HTB_RATE64: Final = 6
_HTB_CEIL64: Final = 7
_HTB_GLOB: Final = struct.Struct("=IIIII")
"""Version, rate2quantum, default class (minor), debug, direct packets."""
_HTB_OPT: Final = struct.Struct("=BBHhHI BBHhHI IIIII")
"""Two tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), then buffer, cbuffer, quantum, level, prio."""
_HTB_VERSION: Final = 3
_HTB_R2Q: Final = 10
_LINKLAYER_ETHERNET: Final = 1
"""Spares the rate tables that older tools sent along."""
_LINKLAYER_MASK: Final = 0x0F
_PLAIN_SIZES: Final = frozenset({(0, 0, 0), (_LINKLAYER_ETHERNET, 0, 0)})
"""(link layer, overhead, mpu) of a class that counts packets as long as they are."""
_RATE32_FULL: Final = 0xFFFFFFFF
_FIRST_BURST_BYTES: Final = 1_600
_DIRECT_PACKETS: Final = 1_000
"""Room for what passes by while a tree is built; HTB would take txqueuelen, and at 0 drop all of it."""

_FQ_CODEL_TARGET: Final = 1
_FQ_CODEL_LIMIT: Final = 2
_FQ_CODEL_INTERVAL: Final = 3
_FQ_CODEL_ECN: Final = 4
_FQ_CODEL_FLOWS: Final = 5
_FQ_CODEL_QUANTUM: Final = 6
_FQ_CODEL_CE_THRESHOLD: Final = 7
_FQ_CODEL_MEMORY_LIMIT: Final = 9
_FQ_CODEL_TIMES: Final = frozenset({_FQ_CODEL_TARGET, _FQ_CODEL_INTERVAL, _FQ_CODEL_CE_THRESHOLD})

_U32_CLASSID: Final = 1
_U32_HASH: Final = 2
_U32_LINK: Final = 3
_U32_DIVISOR: Final = 4
_U32_SEL: Final = 5
_U32_PLAIN: Final = frozenset({_U32_CLASSID, _U32_HASH, _U32_LINK, _U32_SEL, 9, 11, 12})
"""With PCNT, FLAGS and PAD: what one of our filters shows. Actions, policers and marks make it someone else's."""
_SEL: Final = struct.Struct("=BBBx2sHhhI")
"""Flags, offset shift, keys, offset mask (network order), offset, offset of the offset, hash offset, hash mask."""
_SEL_FLAG_TERMINAL: Final = 1
_SEL_FLAG_VAROFFSET: Final = 4
_IHL_MASK: Final = b"\x0f\x00"
_IHL_SHIFT: Final = 6
_KEY: Final = struct.Struct("=4s4sii")
"""Mask and value (network order), offset, offset mask (-1: behind the transport offset)."""
_TABLE_OF_PRIO: Final = 0xFF


class Nature(NamedTuple):
    """What of a tc object does not count: the same on every link that was given the same.

    kind names the qdisc, class or classifier, options is the raw TCA_OPTIONS payload, sized tells of a size table.
    """

    handle: int
    parent: int
    kind: str
    options: bytes
    sized: bool


class TcMsg(NamedTuple):
    """A tc object as dumped: rest are its bytes between the ifindex and the counters, stats the attributes behind them."""

    ifindex: int
    rest: bytes
    stats: memoryview

    @property
    def nature(self) -> Nature:
        """What it is."""
        return nature(self.rest)


class Stats(NamedTuple):
    """The counters of one qdisc or class."""

    sent_bytes: int = 0
    sent_packets: int = 0
    drops: int = 0
    overlimits: int = 0
    backlog_bytes: int = 0


# ---- messages: roots and queues ------------------------------------------------------------------


def _message(kind: int, flags: int, ifindex: int, handle: int, parent: int, info: int, *payload: bytes) -> Message:
    return Message(kind, flags, _TCMSG.pack(0, 0, ifindex, handle, parent, info) + b"".join(payload))


def _kind(name: str) -> bytes:
    return attr(_TCA_KIND, name.encode() + b"\0")


def for_link(batch: Batch, ifindex: int) -> bytearray:
    """The same messages for a certain link."""
    data = bytearray(batch.data)
    for at in batch.offsets:
        _IFINDEX.pack_into(data, at + HEADER_BYTES + _IFINDEX_AT, ifindex)
    return data


def link_request(ifindex: int) -> Message:
    """Asks for one link: ENODEV where it is gone."""
    # ip link show dev IF
    return Message(RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, ifindex, 0, 0))


def qdisc_request(ifindex: int, parent: int = PARENT_ROOT) -> Message:
    """Asks for one qdisc of a link: its root, or the one below a class. ENODEV where the link is gone."""
    # tc qdisc show dev IF root; tc qdisc show dev IF parent H:C
    return _message(RTM_GETQDISC, NLM_F_ECHO, ifindex, 0, parent, 0)


def has_leaf(rest: bytes) -> bool:
    """Whether a qdisc that is not the kernel's own stands below a class."""
    return bool(_AFTER_LINK.unpack_from(rest)[2])


def dump_request(ifindex: int = 0, parent: int = 0) -> bytes:
    """The body of a dump request."""
    return _TCMSG.pack(0, 0, ifindex, 0, parent, 0)


def add_root(ifindex: int, default_classid: int) -> Message:
    """Our root, where the link has none or the kernel's own."""
    glob = _HTB_GLOB.pack(_HTB_VERSION, _HTB_R2Q, default_classid & 0xFFFF, 0, 0)
    options = nested(_TCA_OPTIONS, attr(_HTB_INIT, glob), attr(_HTB_DIRECT_QLEN, _U32.pack(_DIRECT_PACKETS)))
    # tc qdisc add dev IF root handle 1d1d: htb default 20 direct_qlen 1000
    return _message(RTM_NEWQDISC, _ADD, ifindex, HANDLE_ROOT, PARENT_ROOT, 0, _kind("htb"), options)


def delete_root(ifindex: int, handle: int) -> Message:
    """The root of that handle, and no other."""
    # tc qdisc del dev IF root handle H:
    return _message(RTM_DELQDISC, 0, ifindex, handle, PARENT_ROOT, 0)


def restore_root(ifindex: int, saved: RootQdisc) -> Message:
    """A saved root as it was, options and handle, where the link has none or the kernel's own."""
    raw = _codel_times_up(saved.options) if saved.kind == "fq_codel" else saved.options
    options = attr(_TCA_OPTIONS, raw) if raw else b""
    # tc qdisc add dev IF root handle H: KIND OPTIONS…
    return _message(RTM_NEWQDISC, _ADD, ifindex, saved.handle, PARENT_ROOT, 0, _kind(saved.kind), options)


def _codel_times_up(options: bytes) -> bytes:
    """The dumped options of an fq_codel so that they are dumped alike again."""
    return b"".join(
        attr(kind, _U32.pack(_codel_up(_U32.unpack(value)[0])) if kind in _FQ_CODEL_TIMES else bytes(value))
        for kind, value in attr_list(options)
    )


def _leaf_options(leaf: Leaf, *, made: bool) -> bytes:
    """The number of flows is settled when the queue is made: a change that names it is refused."""
    if leaf.kind != "fq_codel":
        return attr(_TCA_OPTIONS, _U32.pack(leaf.limit_bytes))
    figures = {
        _FQ_CODEL_TARGET: _codel_up(leaf.target_us),
        _FQ_CODEL_LIMIT: leaf.limit_packets,
        _FQ_CODEL_INTERVAL: _codel_up(leaf.interval_us),
        _FQ_CODEL_ECN: leaf.ecn,
        **({_FQ_CODEL_FLOWS: leaf.flows} if made else {}),
        _FQ_CODEL_QUANTUM: leaf.quantum_bytes,
        _FQ_CODEL_MEMORY_LIMIT: leaf.memory_bytes,
    }
    return nested(_TCA_OPTIONS, *(attr(kind, _U32.pack(value)) for kind, value in figures.items()))


def _codel_up(read_us: int) -> int:
    """One more microsecond: the kernel rounds down twice, so that the rounded value would come back smaller still."""
    return read_us + 1


def add_leaf(ifindex: int, leaf: Leaf) -> Message:
    """A queue under one of our classes."""
    # tc qdisc add dev IF parent 1d1d:20 handle 1d20: bfifo limit N
    return _message(RTM_NEWQDISC, _ADD, ifindex, leaf.handle, leaf.parent, 0, _kind(leaf.kind), _leaf_options(leaf, made=True))


def change_leaf(ifindex: int, leaf: Leaf) -> Message:
    """Other options for a standing queue; nothing queued is lost."""
    # tc qdisc change dev IF parent 1d1d:20 handle 1d20: bfifo limit N
    return _message(RTM_NEWQDISC, 0, ifindex, leaf.handle, leaf.parent, 0, _kind(leaf.kind), _leaf_options(leaf, made=False))


def delete_leaf(ifindex: int, leaf: Leaf) -> Message:
    """The queue of that handle under its class; the class gets the kernel's own."""
    # tc qdisc del dev IF parent 1d1d:20 handle H:
    return _message(RTM_DELQDISC, 0, ifindex, leaf.handle, leaf.parent, 0)


def probe(ifindex: int, kind: str) -> Message:
    """An add that no kernel can carry out, but whose refusal tells whether it knows the qdisc: its size table is empty.

    The kernel looks the kind up (and loads its module) first and fails on the table before it touches the link.
    """
    # tc qdisc add dev IF root KIND, with a TCA_STAB that lacks its TCA_STAB_BASE and options that the kind refuses
    options = nested(_TCA_OPTIONS, *(attr(n, b"") for n in range(1, 6)))
    return _message(RTM_NEWQDISC, _ADD, ifindex, 0, PARENT_ROOT, 0, _kind(kind), options, nested(_TCA_STAB))


# ---- messages: classes ---------------------------------------------------------------------------


def _class_options(item: HtbClass, first_burst_bytes: int | None = None) -> bytes:
    rate, ceil = item.rate_bps // 8, item.ceil_bps // 8
    burst, cburst = (first_burst_bytes,) * 2 if first_burst_bytes is not None else (item.burst_bytes, item.cburst_bytes)
    half = (0, _LINKLAYER_ETHERNET, 0, 0, 0)
    opt = _HTB_OPT.pack(
        *half,
        min(rate, _RATE32_FULL),
        *half,
        min(ceil, _RATE32_FULL),
        burst_ticks(burst, item.rate_bps),
        burst_ticks(cburst, item.ceil_bps),
        item.quantum_bytes,
        0,
        item.prio,
    )
    wide = [attr(_HTB_RATE64, _U64.pack(rate))] if rate >= _RATE32_FULL else []
    wide += [attr(_HTB_CEIL64, _U64.pack(ceil))] if ceil >= _RATE32_FULL else []
    return nested(_TCA_OPTIONS, attr(_HTB_PARMS, opt), *wide)


def add_class(ifindex: int, item: HtbClass) -> tuple[Message, ...]:
    """A class under our root or one of our classes, made with the burst of one frame and then given its own.

    HTB fills the bucket of a class when it makes it, and leaves its tokens alone when the burst is changed: made with the
    whole burst (64 KiB and more), a slow class would send up to 5 % too much in its first second.
    """
    first = _class_options(item, _FIRST_BURST_BYTES)
    return (
        # tc class add dev IF parent 1d1d:1 classid 1d1d:20 htb rate R ceil C burst 1600 cburst 1600 quantum Q prio P
        _message(RTM_NEWTCLASS, _ADD, ifindex, item.classid, item.parent, 0, _kind("htb"), first),
        # tc class change dev IF parent 1d1d:1 classid 1d1d:20 htb rate R ceil C burst B cburst D quantum Q prio P
        change_class(ifindex, item),
    )


def change_class(ifindex: int, item: HtbClass) -> Message:
    """Other rates for a standing class; no packet is lost."""
    # tc class change dev IF parent 1d1d:1 classid 1d1d:20 htb rate R ceil C …
    return _message(RTM_NEWTCLASS, 0, ifindex, item.classid, item.parent, 0, _kind("htb"), _class_options(item))


def delete_class(ifindex: int, classid: int) -> Message:
    """A class, with the queue under it."""
    # tc class del dev IF classid 1d1d:10
    return _message(RTM_DELTCLASS, 0, ifindex, classid, HANDLE_ROOT, 0)


# ---- messages: filters ---------------------------------------------------------------------------


def _info(prio: int, ethertype: int) -> int:
    return prio << 16 | socket.htons(ethertype)


def _table(prio: int) -> int:
    """The handle of the table of a prio's relative filters: tables are numbered for the whole root."""
    return (0x100 | prio & _TABLE_OF_PRIO) << 20


def _selector(flags: int, keys: tuple[tuple[int, int, int, bool], ...]) -> bytes:
    varies = bool(flags & _SEL_FLAG_VAROFFSET)
    head = _SEL.pack(flags, _IHL_SHIFT if varies else 0, len(keys), _IHL_MASK if varies else b"\0\0", 0, 0, 0, 0)
    return head + b"".join(
        _KEY.pack(mask.to_bytes(4, "big"), value.to_bytes(4, "big"), offset, -1 if relative else 0)
        for value, mask, offset, relative in keys
    )


def add_filter(ifindex: int, item: Filter) -> tuple[Message, ...]:
    """A filter of ours; a link comes as two messages, first its table (which may stand already)."""
    info = _info(item.prio, item.ethertype)
    if is_link(item):
        table = nested(_TCA_OPTIONS, attr(_U32_DIVISOR, _U32.pack(1)))
        link = nested(
            _TCA_OPTIONS,
            attr(_U32_SEL, _selector(_SEL_FLAG_VAROFFSET, item.keys)),
            attr(_U32_LINK, _U32.pack(_table(item.prio))),
        )
        return (
            # tc filter add dev IF parent 1d1d: protocol ip prio P handle T: u32 divisor 1
            _message(RTM_NEWTFILTER, _ADD, ifindex, _table(item.prio), HANDLE_ROOT, info, _kind("u32"), table),
            # tc filter add dev IF parent 1d1d: protocol ip prio P u32 match u32 0 0 link T: offset at 0 mask 0f00 shift 6
            _message(RTM_NEWTFILTER, _ADD, ifindex, 0, HANDLE_ROOT, info, _kind("u32"), link),
        )
    parts = [attr(_U32_CLASSID, _U32.pack(item.flowid)), attr(_U32_SEL, _selector(_SEL_FLAG_TERMINAL, item.keys))]
    if any(relative for *_, relative in item.keys):
        parts.append(attr(_U32_HASH, _U32.pack(_table(item.prio))))
    # tc filter add dev IF parent 1d1d: protocol ip prio P u32 [ht T:] match … [at nexthdr+0] flowid 1d1d:10
    return (_message(RTM_NEWTFILTER, _ADD, ifindex, 0, HANDLE_ROOT, info, _kind("u32"), nested(_TCA_OPTIONS, *parts)),)


def delete_filter(ifindex: int, item: Filter) -> Message:
    """One filter by the kernel's handle for it. The table of a link stays, empty: it does nothing and serves again."""
    # tc filter del dev IF parent 1d1d: protocol ip prio P handle H u32
    return _message(RTM_DELTFILTER, 0, ifindex, item.handle, HANDLE_ROOT, _info(item.prio, item.ethertype))


def delete_filters(ifindex: int, prio: int) -> Message:
    """A prio with what is left at it; the filters in its tables would outlive it, unseen: they go one by one before."""
    # tc filter del dev IF parent 1d1d: prio P
    return _message(RTM_DELTFILTER, 0, ifindex, 0, HANDLE_ROOT, prio << 16)


# ---- decoding ------------------------------------------------------------------------------------


def ifindex_of(payload: memoryview) -> int:
    """The link of a dumped object, without decoding the rest."""
    return int(_IFINDEX.unpack_from(payload, _IFINDEX_AT)[0])


def decode(payload: memoryview) -> TcMsg:
    """A dumped qdisc or class. Raises MalformedMessage.

    The kernel puts what an object is ahead of its counters (tc_fill_qdisc, tc_fill_tclass); older forms of these follow.
    """
    at, end = _TCMSG.size, len(payload)
    while end - at >= _NLA.size:
        length, kind = _NLA.unpack_from(payload, at)
        if kind & _NLA_TYPE_MASK == _TCA_STATS2:
            break
        if not _NLA.size <= length <= end - at:
            raise MalformedMessage(f"netlink: attribute {kind} of a tc object claims {length} bytes, {end - at} are there")
        at += length + (-length & 3)
    return TcMsg(ifindex_of(payload), bytes(payload[_AFTER_IFINDEX:at]), payload[at:])


@lru_cache(maxsize=4096)
def nature(rest: bytes) -> Nature:
    """What the bytes of a TcMsg say."""
    handle, parent, _ = _AFTER_LINK.unpack_from(rest)
    found = attrs(rest[_AFTER_LINK.size :])
    kind = text_of(found[_TCA_KIND]) if _TCA_KIND in found else ""
    return Nature(handle, parent, kind, bytes(found.get(_TCA_OPTIONS, b"")), _TCA_STAB in found)


def _counters(message: TcMsg) -> dict[int, memoryview]:
    """TCA_STATS2, with which the rest of a message begins."""
    if len(message.stats) < _NLA.size:
        return {}
    (length, _) = _NLA.unpack_from(message.stats)
    if not _NLA.size <= length <= len(message.stats):
        raise MalformedMessage(f"netlink: counters of {length} bytes, {len(message.stats)} are there")
    return attrs(message.stats[_NLA.size : length])


def stats_of(message: TcMsg) -> Stats:
    """The counters of a dumped object; zeros where it has none."""
    found = _counters(message)
    sent_bytes, sent_packets = _BASIC.unpack_from(found[_STATS_BASIC]) if _STATS_BASIC in found else (0, 0)
    if _STATS_PKT64 in found:
        (sent_packets,) = _U64.unpack_from(found[_STATS_PKT64])
    _, backlog, drops, _, overlimits = _QUEUE.unpack_from(found[_STATS_QUEUE]) if _STATS_QUEUE in found else (0,) * 5
    return Stats(sent_bytes, sent_packets, drops, overlimits, backlog)


def extras_of(message: TcMsg) -> tuple[str, ...]:
    """What a qdisc carries besides its options and would lose in a restore from them."""
    found = ["a size table (stab)"] if message.nature.sized else []
    if _STATS_RATE_EST in _counters(message):
        found.append("a rate estimator")
    return tuple(found)


@lru_cache(maxsize=4096)
def htb_root(options: bytes) -> tuple[int, int]:
    """(default classid, direct packets) of our root."""
    found = attrs(options)
    if _HTB_INIT not in found:
        return HANDLE_ROOT, 0
    _, _, default_minor, _, direct_packets = _HTB_GLOB.unpack_from(found[_HTB_INIT])
    return HANDLE_ROOT | default_minor & 0xFFFF, direct_packets


def htb_class(shown: Nature) -> HtbClass:
    """A class as read; one of another kind, or without its parameters, has a rate of 0."""
    found = attrs(shown.options)
    classid, parent = shown.handle, HANDLE_ROOT if shown.parent == PARENT_ROOT else shown.parent
    if _HTB_PARMS not in found or len(found[_HTB_PARMS]) < _HTB_OPT.size:
        return HtbClass(classid, parent, 0, 0, 0, 0, 0)
    opt = _HTB_OPT.unpack_from(found[_HTB_PARMS])
    rate, ceil, buffer, cbuffer, quantum, _, prio = opt[5], *opt[11:17]
    sizes = ((opt[1], opt[2], opt[4]), (opt[7], opt[8], opt[10]))
    rate = _U64.unpack_from(found[_HTB_RATE64])[0] if _HTB_RATE64 in found else rate
    ceil = _U64.unpack_from(found[_HTB_CEIL64])[0] if _HTB_CEIL64 in found else ceil
    rate_bps, ceil_bps = rate * 8, ceil * 8
    return HtbClass(
        classid,
        parent,
        rate_bps,
        ceil_bps,
        burst_bytes(buffer, rate_bps),
        burst_bytes(cbuffer, ceil_bps),
        quantum,
        prio,
        resized=any((linklayer & _LINKLAYER_MASK, overhead, mpu) not in _PLAIN_SIZES for linklayer, overhead, mpu in sizes),
    )


def leaf(shown: Nature) -> Leaf:
    """A queue as read; of a kind that is not ours only handle, parent and kind."""
    if shown.kind == "bfifo":
        limit_bytes = _U32.unpack_from(shown.options)[0] if len(shown.options) >= _U32.size else 0
        return Leaf(shown.handle, shown.parent, "bfifo", limit_bytes=limit_bytes, altered=shown.sized)
    if shown.kind == "fq_codel":
        found = {kind: _U32.unpack(value)[0] for kind, value in attrs(shown.options).items() if len(value) == _U32.size}
        return Leaf(
            shown.handle,
            shown.parent,
            "fq_codel",
            limit_packets=found.get(_FQ_CODEL_LIMIT, 0),
            target_us=found.get(_FQ_CODEL_TARGET, 0),
            interval_us=found.get(_FQ_CODEL_INTERVAL, 0),
            flows=found.get(_FQ_CODEL_FLOWS, 0),
            quantum_bytes=found.get(_FQ_CODEL_QUANTUM, 0),
            memory_bytes=found.get(_FQ_CODEL_MEMORY_LIMIT, 0),
            ecn=found.get(_FQ_CODEL_ECN, 0),
            altered=shown.sized or _FQ_CODEL_CE_THRESHOLD in found,
        )
    return Leaf(shown.handle, shown.parent, shown.kind)


class SeenFilter(NamedTuple):
    """One object of a filter dump; filter is None for what carries no verdict: a prio's head, a table."""

    prio: int
    kind: str
    filter: Filter | None


def without_link(payload: memoryview) -> bytes:
    """A dumped filter but for its ifindex: the same on every link that was given the same."""
    return bytes(payload[_AFTER_IFINDEX:])


def seen_filter(rest: bytes) -> SeenFilter:
    """A dumped filter, its ifindex taken off. One at our prios that is not of our making has no keys."""
    handle, _, info = _AFTER_LINK.unpack_from(rest)
    attributes = attrs(rest[_AFTER_LINK.size :])
    kind = text_of(attributes[_TCA_KIND]) if _TCA_KIND in attributes else ""
    prio, ethertype = info >> 16, socket.ntohs(info & 0xFFFF)
    if kind != "u32":
        return SeenFilter(prio, kind, Filter(prio, ethertype, (), 0, kind, handle) if handle else None)
    if not handle & 0xFFFFF:
        return SeenFilter(prio, kind, None)
    return SeenFilter(prio, kind, _u32(prio, ethertype, handle, attrs(attributes.get(_TCA_OPTIONS, b""))))


def _u32(prio: int, ethertype: int, handle: int, options: Mapping[int, memoryview]) -> Filter:
    flags, keys = _keys(bytes(options.get(_U32_SEL, b"")))
    classid, linked = (_U32.unpack(options[n])[0] if n in options else 0 for n in (_U32_CLASSID, _U32_LINK))
    in_table = handle & 0xFFF00000 == _table(prio)
    is_ours = (
        _U32_PLAIN.issuperset(options)
        and any(relative for *_, relative in keys) <= in_table
        and (flags, linked) == ((_SEL_FLAG_VAROFFSET, _table(prio)) if not classid else (_SEL_FLAG_TERMINAL, 0))
    )
    return Filter(prio, ethertype, keys if is_ours else (), classid if is_ours else 0, "u32", handle)


def _keys(selector: bytes) -> tuple[int, tuple[tuple[int, int, int, bool], ...]]:
    """(flags, keys) of a selector; an offset of its own (a link) must be that of the IPv4 header, else the flags are 0."""
    if len(selector) < _SEL.size:
        return 0, ()
    flags, shift, count, offset_mask, offset, offset_at, _, hash_mask = _SEL.unpack_from(selector)
    keys = []
    for at in range(_SEL.size, min(len(selector), _SEL.size + count * _KEY.size), _KEY.size):
        mask, value, key_offset, offmask = _KEY.unpack_from(selector, at)
        keys.append((int.from_bytes(value, "big"), int.from_bytes(mask, "big"), key_offset, offmask != 0))
    plain = (shift, offset_mask) == ((_IHL_SHIFT, _IHL_MASK) if flags & _SEL_FLAG_VAROFFSET else (0, b"\0\0"))
    return (flags if plain and (offset, offset_at, hash_mask) == (0, 0, 0) else 0), tuple(keys)
