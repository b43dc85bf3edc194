"""Links and their transmit counters: who is there, and how many octets each has sent.

Rule: one tick is one dump, decoded without an object a record; a link's names and properties are read only when
something about them changed; the same tuple of links is handed out as long as nothing did.

Theory of operation. RTM_GETSTATS with the filter IFLA_STATS_LINK_64 yields one record of equal length for every link:
header, ifindex, one attribute with rtnl_link_stats64. The records of all datagrams are received end to end into one
buffer, so that the whole dump is an array. Its columns are taken with strides: the three constant words of each
header and the column of ifindexes are compared as bytes, the column of tx_bytes becomes the sample. Where the records
are not all alike (another kernel, an interrupted dump), a general decoder walks the messages. Where the ifindexes are
not what they were, they are reconciled with the link table. The stamp is the clock before the dump; the clock after it
only tells whether the sample is worth keeping.

Layouts: include/uapi/linux/if_link.h (if_stats_msg, rtnl_link_stats64), man 7 rtnetlink (ifinfomsg).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, Protocol

import psutil

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link, Snapshot, Source
from limiterd.core.ports import SamplerPort
from limiterd.kernel.netlink import (
    HEADER_BYTES,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_HEADER,
    MalformedMessage,
    Message,
    NetlinkSocket,
    attr,
    attrs,
    decode_ack,
    encode,
    fault,
    frames,
    text_of,
)

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWSTATS: Final = 92
RTM_GETSTATS: Final = 94

_IFINFO: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, device type, ifindex, flags, change mask."""
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_EXT_MASK: Final = 29
_IFLA_NUM_TX_QUEUES: Final = 31
_IFLA_GSO_MAX_SIZE: Final = 41
_IFLA_GSO_IPV4_MAX_SIZE: Final = 63
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
_IFF_UP: Final = 0x1
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_NLA: Final = struct.Struct("=HH")

_STATS_REQUEST: Final = struct.Struct("=B3xII")
"""if_stats_msg: family, ifindex, filter mask."""
_IFLA_STATS_LINK_64: Final = 1
_STATS_OF_ALL: Final = Message(RTM_GETSTATS, 0, _STATS_REQUEST.pack(0, 0, 1 << (_IFLA_STATS_LINK_64 - 1)))
_SEQUENCE: Final = struct.Struct("=I")
_SEQUENCE_AT: Final = 8
_NUMBER: Final = struct.Struct("=II")
"""The part of a header that changes with every dump, and who it is for: sequence and port id."""
_IFINDEX_AT: Final = HEADER_BYTES + 4
_ATTR_AT: Final = HEADER_BYTES + _STATS_REQUEST.size
_TX_BYTES_IN_STATS: Final = 3 * 8
"""rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes, …"""
_TX_BYTES_AT: Final = _ATTR_AT + 4 + _TX_BYTES_IN_STATS
_WORD: Final = 8
_DONE_BYTES: Final = HEADER_BYTES + 4
_DATAGRAM_BYTES: Final = 1 << 16
_LARGEST_DUMP_BYTES: Final = 1 << 28
_SAMPLE_TRIES: Final = 3
_REMEMBERED_DEAD: Final = 4096


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: never steps, counts suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


# ---- the link table ------------------------------------------------------------------------------


class LinkTable:
    """The links of one network namespace, from an RTM_GETLINK dump and the events after it.

    `links` is sorted by ifindex and stays the same object while nothing changed. A link that goes and comes back under
    its ifindex gets the next incarnation; that is seen in events only (after lost events it shows as a fallen counter).
    Raises EnvironmentFault(operation="dump") where the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = NetlinkSocket()
        self._links: dict[int, Link] = {}
        self._dead: dict[int, int] = {}
        self.links: tuple[Link, ...] = ()
        try:
            self.refresh()
        except EnvironmentFault:
            self._socket.close()
            raise

    def close(self) -> None:
        """Release the descriptor."""
        self._socket.close()

    def get(self, ifindex: int) -> Link | None:
        """The link that has this ifindex now."""
        return self._links.get(ifindex)

    def refresh(self) -> bool:
        """Read all links anew; whether anything changed. Raises EnvironmentFault(operation="dump")."""
        # tc equivalent: ip link show
        mask = attr(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
        found = self._socket.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + mask)
        seen: set[int] = set()
        changed: list[Link] = []
        for kind, payload in found:
            if kind == RTM_NEWLINK:
                seen.add(_ifinfo(payload)[1])
                changed += self._learn(payload)
        for ifindex in self._links.keys() - seen:
            changed += self._bury(ifindex)
        return self._publish(changed)

    def apply(self, messages: Iterable[tuple[int, memoryview]]) -> tuple[Link, ...]:
        """Apply (type, payload) of link events in their order; the links that are new, changed or gone, each as it was last.

        Raises MalformedMessage; what came before the bad message is applied.
        """
        changed: list[Link] = []
        try:
            for kind, payload in messages:
                changed += self._learn(payload) if kind == RTM_NEWLINK else self._forget(payload)
        finally:
            self._publish(changed)
        return tuple({link.ifindex: link for link in changed}.values())

    def _learn(self, payload: memoryview) -> list[Link]:
        """Take in one RTM_NEWLINK: [the link] where it is new or changed. Bridge ports speak here too, not about links."""
        family, ifindex, up = _ifinfo(payload)
        if family != socket.AF_UNSPEC:
            return []
        old = self._links.get(ifindex)
        base = old or Link(ifindex, "", incarnation=self._dead.get(ifindex, -1) + 1)
        link = _link_from(base, attrs(payload[_IFINFO.size :]), up=up)
        if link == old:
            return []
        self._links[ifindex] = link
        return [link]

    def _forget(self, payload: memoryview) -> list[Link]:
        """Take in one RTM_DELLINK. That of a bridge port means only that the link left its bridge."""
        family, ifindex, _ = _ifinfo(payload)
        return self._bury(ifindex) if family == socket.AF_UNSPEC else []

    def _bury(self, ifindex: int) -> list[Link]:
        link = self._links.pop(ifindex, None)
        if link is None:
            return []
        self._dead.pop(ifindex, None)
        self._dead[ifindex] = link.incarnation
        if len(self._dead) > _REMEMBERED_DEAD:
            del self._dead[next(iter(self._dead))]
        return [link]

    def _publish(self, changed: list[Link]) -> bool:
        """Hand out a new tuple where something changed."""
        if changed:
            self.links = tuple(self._links[ifindex] for ifindex in sorted(self._links))
        return bool(changed)


def _ifinfo(payload: memoryview) -> tuple[int, int, bool]:
    """(family, ifindex, up) of an ifinfomsg."""
    if len(payload) < _IFINFO.size:
        raise MalformedMessage(f"netlink: a link message of {len(payload)} bytes, at least {_IFINFO.size} are due")
    family, _, ifindex, flags, _ = _IFINFO.unpack_from(payload)
    return family, ifindex, bool(flags & _IFF_UP)


def _link_from(base: Link, found: dict[int, memoryview], *, up: bool) -> Link:
    """The link with what this message says; what it leaves out (some events are partial) stays as it was."""
    name = found.get(_IFLA_IFNAME)
    mac = found.get(_IFLA_ADDRESS)
    gso = max(_u32(found, _IFLA_GSO_MAX_SIZE, 0), _u32(found, _IFLA_GSO_IPV4_MAX_SIZE, 0))
    return replace(
        base,
        name=base.name if name is None else text_of(name),
        mac=base.mac if mac is None else _mac(bytes(mac)),
        mtu=_u32(found, _IFLA_MTU, base.mtu),
        gso_max_bytes=gso or base.gso_max_bytes,
        tx_queues=_u32(found, _IFLA_NUM_TX_QUEUES, base.tx_queues),
        up=up,
    )


def _mac(address: bytes) -> str:
    """The address as people write it; "" for none and for loopback's zeros."""
    return address.hex(":") if any(address) else ""


def _u32(found: dict[int, memoryview], kind: int, default: int) -> int:
    payload = found.get(kind)
    if payload is None:
        return default
    if len(payload) < _U32.size:
        raise MalformedMessage(f"netlink: attribute {kind} has {len(payload)} bytes, 4 are due")
    return int(_U32.unpack_from(payload)[0])


# ---- sampling by netlink -------------------------------------------------------------------------


class NetlinkSampler:
    """Transmit counters by RTM_GETSTATS, from the network namespace that this is made in. See SamplerPort.

    dropped counts the samples not handed out because the two clock readings were more than half an interval apart.
    """

    def __init__(self, table: LinkTable, interval_ns: int, clock: Callable[[], int] = boottime_ns) -> None:
        self._table = table
        self._limit_ns = interval_ns // 2
        self._clock = clock
        self._socket = NetlinkSocket()
        self._request = bytearray(encode(_STATS_OF_ALL, 0, NLM_F_REQUEST | NLM_F_DUMP))
        self._view = memoryview(bytearray(2 * _DATAGRAM_BYTES))
        self._columns = Columns(self._view[:0])
        self._ids = b""
        self._links: tuple[Link, ...] = ()
        self._kept: list[int] | None = None
        self._of_table: tuple[Link, ...] | None = None
        self.dropped = 0
        self.why = ""

    @property
    def name(self) -> str:
        """The source as shown in status."""
        return Source.NETLINK.value

    def set_interval(self, interval_ns: int) -> None:
        """Follow a reload of sampling.interval."""
        self._limit_ns = interval_ns // 2

    def close(self) -> None:
        """Release the descriptor; the table is its owner's."""
        self._socket.close()

    def sample(self) -> Snapshot | None:
        """All counters, stamped before the dump; None where the dump took more than half an interval.

        Raises EnvironmentFault(operation="sample"), from a refresh of the link table operation="dump".
        """
        before = self._clock()
        ids, tx_bytes = self._dump()
        if self._clock() - before > self._limit_ns:
            self.dropped += 1
            return None
        if ids != self._ids or self._table.links is not self._of_table:
            self._reconcile(ids)
        if self._kept is not None:
            tx_bytes = [tx_bytes[i] for i in self._kept]
        return Snapshot(before, self._links, tx_bytes)

    def _dump(self) -> tuple[bytes, list[int]]:
        """(ifindexes as packed words, tx_bytes) of one dump; an interrupted one is repeated twice, then taken as it is."""
        for _ in range(_SAMPLE_TRIES - 1):
            ids, tx_bytes, interrupted = self._dump_once()
            if not interrupted:
                return ids, tx_bytes
        return self._dump_once()[:2]

    def _dump_once(self) -> tuple[bytes, list[int], bool]:
        sequence = self._socket.next_sequence()
        _SEQUENCE.pack_into(self._request, _SEQUENCE_AT, sequence)
        try:
            # tc equivalent: ip stats show group link
            raw = self._socket.raw
            raw.send(self._request)
            end = self._collect(raw, sequence)
            if end > 0:
                if end != self._columns.end:
                    self._columns = Columns(self._view[:end])
                found = self._columns.read(sequence)
                if found is not None:
                    return (*found, False)
                self._columns = Columns(self._view[:0])
            return decode_stats(self._view[: abs(end)], sequence)
        except EnvironmentFault as error:
            self._socket.recovered(error, "sample")
            raise
        except OSError as error:
            raise self._socket.recovered(error, "sample") from error

    def _collect(self, raw: socket.socket, sequence: int) -> int:
        """Receive the whole dump end to end; where its records end, or negative: where a dump of odd messages ends."""
        at, odd = 0, False
        while True:
            if len(self._view) - at < _DATAGRAM_BYTES:
                self._grow(2 * len(self._view))
            free = self._view[at:]
            got = raw.recv_into(free, 0, socket.MSG_TRUNC)
            if got > len(free):
                self._grow(2 * (at + got))
                raise MalformedMessage(f"netlink: a datagram of {got} bytes did not fit; the next sample has room for it")
            at += got
            if _ends_plainly(self._view, at, sequence):
                return -at if odd else at - _DONE_BYTES
            if not _is_records(free[:got]):
                odd = True
                if _has_ended(free[:got], sequence):
                    return -at

    def _grow(self, size_bytes: int) -> None:
        """Make the buffer that large, keeping what is in it."""
        if size_bytes > _LARGEST_DUMP_BYTES:
            raise MalformedMessage(f"netlink: a statistics dump beyond {_LARGEST_DUMP_BYTES} bytes")
        grown = bytearray(size_bytes + (-size_bytes % _WORD))
        grown[: len(self._view)] = self._view
        self._view = memoryview(grown)
        self._columns = Columns(self._view[:0])

    def _reconcile(self, ids: bytes) -> None:
        """Line the dump's ifindexes up with the link table, which is read anew where the two differ."""
        dumped = memoryview(ids).cast("I").tolist()
        if {link.ifindex for link in self._table.links} != set(dumped):
            self._table.refresh()
        found = [self._table.get(ifindex) for ifindex in dumped]
        links = tuple(link for link in found if link is not None)
        self._links = self._table.links if links == self._table.links else links
        self._kept = None if len(links) == len(found) else [i for i, link in enumerate(found) if link is not None]
        self._ids = ids
        self._of_table = self._table.links


class Columns:
    """The columns of a buffer that holds nothing but equal, complete records; made once, read at every dump into it.

    Column by column, without an object a record. What the records must have in common (length, type, flags, receiver, attribute
    header) is taken from the first record, checked, and then expected of each record of each dump; so is the sequence
    number. A buffer whose first record is not plain has no columns: read then always gives None.
    """

    def __init__(self, view: memoryview) -> None:
        self.end = len(view)
        self._count = 0
        if self.end < _TX_BYTES_AT:
            return
        length, kind, flags, _, self._receiver = NLMSG_HEADER.unpack_from(view)
        size, attribute = _NLA.unpack_from(view, _ATTR_AT)
        if length % _WORD or length < _TX_BYTES_AT + _WORD or self.end % length or size != length - _ATTR_AT:
            return
        if kind != RTM_NEWSTATS or attribute != _IFLA_STATS_LINK_64 or flags & NLM_F_DUMP_INTR:
            return
        longs, words, step = view.cast("Q"), view.cast("I"), length // _WORD
        self._count = self.end // length
        self._heads, self._heads_due = longs[0::step], bytes(view[:_WORD]) * self._count
        self._numbers = longs[1::step]
        self._attributes = words[_ATTR_AT // 4 :: 2 * step]
        self._attributes_due = bytes(view[_ATTR_AT : _ATTR_AT + _NLA.size]) * self._count
        self._ids = words[_IFINDEX_AT // 4 :: 2 * step]
        self._tx_bytes = longs[_TX_BYTES_AT // _WORD :: step]

    def read(self, sequence: int) -> tuple[bytes, list[int]] | None:
        """(ifindexes as packed native u32, tx_bytes) of the dump that is in the buffer now; None where it is not plain."""
        if (
            not self._count
            or self._heads.tobytes() != self._heads_due
            or self._attributes.tobytes() != self._attributes_due
            or self._numbers.tobytes() != _NUMBER.pack(sequence, self._receiver) * self._count
        ):
            return None
        return self._ids.tobytes(), self._tx_bytes.tolist()


def decode_stats(view: memoryview, sequence: int) -> tuple[bytes, list[int], bool]:
    """(ifindexes as packed native u32, tx_bytes, interrupted) of a dump of any shape; of a link named twice the last.

    Raises MalformedMessage, and EnvironmentFault where the kernel ended the dump with an error.
    """
    found: dict[int, int] = {}
    interrupted = False
    for frame in frames(view):
        if frame.sequence != sequence:
            continue
        interrupted |= bool(frame.flags & NLM_F_DUMP_INTR)
        if frame.type in (NLMSG_ERROR, NLMSG_DONE):
            code, text = decode_ack(frame)
            if code:
                raise fault("reading transmit counters", code, text, operation="sample")
        elif frame.type == RTM_NEWSTATS:
            found.update(_one_record(frame.payload))
    return struct.pack(f"={len(found)}I", *found), list(found.values()), interrupted


def _one_record(payload: memoryview) -> dict[int, int]:
    """{ifindex: tx_bytes} of one record, empty where it has no such counter."""
    if len(payload) < _STATS_REQUEST.size:
        raise MalformedMessage(f"netlink: a statistics record of {len(payload)} bytes, at least {_STATS_REQUEST.size} are due")
    ifindex = _STATS_REQUEST.unpack_from(payload)[1]
    stats = attrs(payload[_STATS_REQUEST.size :]).get(_IFLA_STATS_LINK_64)
    if stats is None:
        return {}
    if len(stats) < _TX_BYTES_IN_STATS + _WORD:
        raise MalformedMessage(f"netlink: link statistics of {len(stats)} bytes hold no tx_bytes")
    return {ifindex: _U64.unpack_from(stats, _TX_BYTES_IN_STATS)[0]}


def _ends_plainly(view: memoryview, at: int, sequence: int) -> bool:
    """Whether a plain, successful NLMSG_DONE of this dump ends at `at`.

    Records are multiples of 8 bytes and a plain DONE has 20: a counter cannot pass for one.
    """
    if at % _WORD != _DONE_BYTES % _WORD or at < _DONE_BYTES:
        return False
    length, kind, flags, number, _ = NLMSG_HEADER.unpack_from(view, at - _DONE_BYTES)
    (code,) = _U32.unpack_from(view, at - _U32.size)
    return (length, kind, number, code) == (_DONE_BYTES, NLMSG_DONE, sequence, 0) and not flags & NLM_F_DUMP_INTR


def _is_records(datagram: memoryview) -> bool:
    """Whether a datagram begins and ends with statistics records of one length that fill it: the dump's end comes last of all.

    What stands between them is looked at once, when the dump is complete (Columns).
    """
    if len(datagram) < HEADER_BYTES:
        return False
    length, kind, *_ = NLMSG_HEADER.unpack_from(datagram)
    if kind != RTM_NEWSTATS or length < HEADER_BYTES or length % _WORD or len(datagram) % length:
        return False
    return datagram[-length : _WORD - length] == datagram[:_WORD]


def _has_ended(datagram: memoryview, sequence: int) -> bool:
    """Whether a datagram of any shape holds the end of this dump."""
    return any(frame.sequence == sequence and frame.type in (NLMSG_DONE, NLMSG_ERROR) for frame in frames(datagram))


# ---- sampling by psutil --------------------------------------------------------------------------


class PsutilSampler:
    """Transmit counters from /proc/net/dev by psutil: slower, and possible where AF_NETLINK is refused. See SamplerPort.

    nowrap=False: psutil's default repairs counters that went back, which would hide a recreated link. Without a table (None)
    links are known by ifindex and name only. dropped as in NetlinkSampler.
    """

    def __init__(self, table: LinkTable | None, interval_ns: int, clock: Callable[[], int] = boottime_ns, why: str = "") -> None:
        self._table = table
        self._limit_ns = interval_ns // 2
        self._clock = clock
        self._links: tuple[Link, ...] = ()
        self.dropped = 0
        self.why = why

    @property
    def name(self) -> str:
        """The source as shown in status."""
        return Source.PSUTIL.value

    def set_interval(self, interval_ns: int) -> None:
        """Follow a reload of sampling.interval."""
        self._limit_ns = interval_ns // 2

    def close(self) -> None:
        """Nothing is held between samples."""

    def sample(self) -> Snapshot | None:
        """All counters; None where reading took more than half an interval. Raises EnvironmentFault(operation="sample")."""
        before = self._clock()
        try:
            counters = psutil.net_io_counters(pernic=True, nowrap=False)
        except OSError as error:
            raise fault("psutil: reading transmit counters", error.errno or 0, operation="sample") from error
        if self._clock() - before > self._limit_ns:
            self.dropped += 1
            return None
        found = [(ifindex, name, io.bytes_sent) for name, io in counters.items() if (ifindex := _ifindex_of(name))]
        self._reconcile([(ifindex, name) for ifindex, name, _ in found])
        return Snapshot(before, self._links, [tx_bytes for _, _, tx_bytes in found])

    def _reconcile(self, named: list[tuple[int, str]]) -> None:
        table = self._table
        if table is not None and any((link := table.get(i)) is None or link.name != name for i, name in named):
            table.refresh()
        links = tuple(self._known(ifindex, name) for ifindex, name in named)
        if links != self._links:
            self._links = links

    def _known(self, ifindex: int, name: str) -> Link:
        """The table's link of that ifindex; where the table lacks it (or is none), one by name alone."""
        link = None if self._table is None else self._table.get(ifindex)
        return link or Link(ifindex, name)


def _ifindex_of(name: str) -> int:
    """The ifindex of an interface, 0 where it has just vanished."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


# ---- choosing ------------------------------------------------------------------------------------


class Sampler(SamplerPort, Protocol):
    """What the daemon uses of either sampler: why says what a fallback replaced ("" where none did)."""

    dropped: int
    why: str

    def set_interval(self, interval_ns: int) -> None:
        """Follow a reload of sampling.interval."""


def open_sampler(source: Source, table: LinkTable | None, interval_ns: int) -> Sampler:
    """The sampler that the configuration asks for; auto tries netlink and falls back to psutil where it is refused.

    table None says that even the link table was refused. Raises EnvironmentFault where netlink is demanded and refused.
    """
    if source is Source.PSUTIL:
        return PsutilSampler(table, interval_ns)
    refused = EnvironmentFault("netlink: the links themselves cannot be read", operation="sample")
    try:
        if table is not None:
            return _tried(NetlinkSampler(table, interval_ns))
    except EnvironmentFault as error:
        refused = error
    if source is Source.NETLINK:
        raise refused
    return PsutilSampler(table, interval_ns, why=str(refused))


def _tried(sampler: NetlinkSampler) -> NetlinkSampler:
    """The sampler, after one sample; closed where even that failed."""
    try:
        sampler.sample()
    except EnvironmentFault:
        sampler.close()
        raise
    return sampler
