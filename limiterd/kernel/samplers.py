"""Transmit counters: how many octets each link has sent, by one dump a tick.

Rule: one tick is one dump, decoded without an object a record; the stamp is the clock before the dump, and the clock after
it only tells whether the sample is worth keeping. Where the ifindexes are not what they were, they are reconciled with the
link table. Where netlink is refused, psutil reads /proc.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import psutil

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link, Snapshot, Source
from limiterd.core.ports import SamplerPort
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    MalformedMessage,
    NetlinkSocket,
    boottime_ns,
    encode,
    fault,
)
from limiterd.kernel.statsdump import (
    DONE_BYTES,
    STATS_OF_ALL,
    WORD,
    Columns,
    decode_stats,
    ends_plainly,
    has_ended,
    is_records,
)

_SEQUENCE: Final = struct.Struct("=I")
_SEQUENCE_AT: Final = 8
_DATAGRAM_BYTES: Final = 1 << 16
_LARGEST_DUMP_BYTES: Final = 1 << 28
_SAMPLE_TRIES: Final = 3


class _Stamps:
    """What both samplers do with their clock: a sample is stamped before it is read, and dropped where reading took too long.

    dropped counts the samples not handed out because the two clock readings were more than half an interval apart.
    """

    def __init__(self, interval_ns: int, clock: Callable[[], int], why: str) -> None:
        self._limit_ns = interval_ns // 2
        self._clock = clock
        self.dropped = 0
        self.why = why

    def set_interval(self, interval_ns: int) -> None:
        """Follow a reload of sampling.interval."""
        self._limit_ns = interval_ns // 2

    def _too_late(self, before_ns: int) -> bool:
        late = self._clock() - before_ns > self._limit_ns
        self.dropped += late
        return late


# ---- by netlink -----------------------------------------------------------------------------------


class NetlinkSampler(_Stamps):
    """Transmit counters by RTM_GETSTATS, from the network namespace that this is made in. See SamplerPort."""

    def __init__(self, table: LinkTable, interval_ns: int, clock: Callable[[], int] = boottime_ns) -> None:
        super().__init__(interval_ns, clock, "")
        self._table = table
        self._socket = NetlinkSocket()
        self._request = bytearray(encode(STATS_OF_ALL, 0, NLM_F_REQUEST | NLM_F_DUMP))
        self._view = memoryview(bytearray(2 * _DATAGRAM_BYTES))
        self._columns = Columns(self._view[:0])
        self._ids = b""
        self._links: tuple[Link, ...] = ()
        self._kept: list[int] | None = None
        self._of_table: tuple[Link, ...] | None = None

    @property
    def name(self) -> str:
        """The source as shown in status."""
        return Source.NETLINK.value

    def close(self) -> None:
        """Release the descriptor; the table is its owner's."""
        self._socket.close()

    def sample(self) -> Snapshot | None:
        """All counters, stamped before the dump; None where the dump took more than half an interval.

        Raises EnvironmentFault(operation="sample"), from a refresh of the link table operation="dump".
        """
        before = self._clock()
        ids, tx_bytes = self._dump()
        if self._too_late(before):
            return None
        if ids != self._ids or self._table.links is not self._of_table:
            self._reconcile(ids)
        if self._kept is not None:
            tx_bytes = [tx_bytes[i] for i in self._kept]
        return Snapshot(before, self._links, tx_bytes)

    def _dump(self) -> tuple[bytes, Sequence[int]]:
        """(ifindexes as packed words, tx_bytes) of one dump; an interrupted one is repeated twice, then taken as it is."""
        for _ in range(_SAMPLE_TRIES - 1):
            ids, tx_bytes, interrupted = self._dump_once()
            if not interrupted:
                return ids, tx_bytes
        return self._dump_once()[:2]

    def _dump_once(self) -> tuple[bytes, Sequence[int], bool]:
        sequence = self._socket.next_sequence()
        _SEQUENCE.pack_into(self._request, _SEQUENCE_AT, sequence)
        try:
            # ip stats show group link
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
            if ends_plainly(self._view, at, sequence):
                return -at if odd else at - DONE_BYTES
            if not is_records(free[:got]):
                odd = True
                if has_ended(free[:got], sequence):
                    return -at

    def _grow(self, size_bytes: int) -> None:
        """Make the buffer that large, keeping what is in it."""
        if size_bytes > _LARGEST_DUMP_BYTES:
            raise MalformedMessage(f"netlink: a statistics dump beyond {_LARGEST_DUMP_BYTES} bytes")
        grown = bytearray(size_bytes + (-size_bytes % WORD))
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


# ---- by psutil ------------------------------------------------------------------------------------


class PsutilSampler(_Stamps):
    """Transmit counters from /proc/net/dev by psutil: slower, and possible where AF_NETLINK is refused. See SamplerPort.

    nowrap=False: psutil's default repairs counters that went back, which would hide a recreated link. Without a table (None)
    links are known by ifindex and name only.
    """

    def __init__(self, table: LinkTable | None, interval_ns: int, clock: Callable[[], int] = boottime_ns, why: str = "") -> None:
        super().__init__(interval_ns, clock, why)
        self._table = table
        self._links: tuple[Link, ...] = ()

    @property
    def name(self) -> str:
        """The source as shown in status."""
        return Source.PSUTIL.value

    def close(self) -> None:
        """Nothing is held between samples."""

    def sample(self) -> Snapshot | None:
        """All counters; None where reading took more than half an interval. Raises EnvironmentFault(operation="sample")."""
        before = self._clock()
        try:
            counters = psutil.net_io_counters(pernic=True, nowrap=False)
        except OSError as error:
            raise fault("psutil: reading transmit counters", error.errno or 0, operation="sample") from error
        if self._too_late(before):
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
