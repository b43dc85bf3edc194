"""The transmit counters of one RTM_GETSTATS dump, decoded without an object a record.

Theory of operation. The filter IFLA_STATS_LINK_64 yields one record of equal length for every link: header, ifindex, one
attribute with rtnl_link_stats64. The records of all datagrams are received end to end into one buffer, so that the whole
dump is an array. Its columns are taken with strides: the three constant words of each header and the column of ifindexes
are compared as bytes, the column of tx_bytes becomes the sample. Where the records are not all alike (another kernel, an
interrupted dump), a general decoder walks the messages.

Layouts: include/uapi/linux/if_link.h (if_stats_msg, rtnl_link_stats64).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from limiterd.kernel.netlink import (
    HEADER_BYTES,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_HEADER,
    MalformedMessage,
    Message,
    attrs,
    decode_ack,
    fault,
    frames,
)

RTM_NEWSTATS: Final = 92
RTM_GETSTATS: Final = 94

_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_NLA: Final = struct.Struct("=HH")
_STATS_REQUEST: Final = struct.Struct("=B3xII")
"""if_stats_msg: family, ifindex, filter mask."""
_IFLA_STATS_LINK_64: Final = 1
STATS_OF_ALL: Final = Message(RTM_GETSTATS, 0, _STATS_REQUEST.pack(0, 0, 1 << (_IFLA_STATS_LINK_64 - 1)))
_NUMBER: Final = struct.Struct("=II")
"""The part of a header that changes with every dump, and who it is for: sequence and port id."""
_IFINDEX_AT: Final = HEADER_BYTES + 4
_ATTR_AT: Final = HEADER_BYTES + _STATS_REQUEST.size
_TX_BYTES_IN_STATS: Final = 3 * 8
"""rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes, …"""
_TX_BYTES_AT: Final = _ATTR_AT + 4 + _TX_BYTES_IN_STATS
WORD: Final = 8
DONE_BYTES: Final = HEADER_BYTES + 4


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
        if length % WORD or length < _TX_BYTES_AT + WORD or self.end % length or size != length - _ATTR_AT:
            return
        if kind != RTM_NEWSTATS or attribute != _IFLA_STATS_LINK_64 or flags & NLM_F_DUMP_INTR:
            return
        longs, words, step = view.cast("Q"), view.cast("I"), length // WORD
        self._count = self.end // length
        self._heads, self._heads_due = longs[0::step], bytes(view[:WORD]) * self._count
        self._numbers = longs[1::step]
        self._attributes = words[_ATTR_AT // 4 :: 2 * step]
        self._attributes_due = bytes(view[_ATTR_AT : _ATTR_AT + _NLA.size]) * self._count
        self._ids = words[_IFINDEX_AT // 4 :: 2 * step]
        self._tx_bytes = longs[_TX_BYTES_AT // WORD :: step]

    def read(self, sequence: int) -> tuple[bytes, Sequence[int]] | None:
        """(ifindexes as packed native u32, tx_bytes) of the dump in the buffer, copied out of it; None where it is not plain."""
        if (
            not self._count
            or self._heads.tobytes() != self._heads_due
            or self._attributes.tobytes() != self._attributes_due
            or self._numbers.tobytes() != _NUMBER.pack(sequence, self._receiver) * self._count
        ):
            return None
        return self._ids.tobytes(), memoryview(self._tx_bytes.tobytes()).cast("Q")


def decode_stats(view: memoryview, sequence: int) -> tuple[bytes, Sequence[int], bool]:
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
    if len(stats) < _TX_BYTES_IN_STATS + WORD:
        raise MalformedMessage(f"netlink: link statistics of {len(stats)} bytes hold no tx_bytes")
    return {ifindex: _U64.unpack_from(stats, _TX_BYTES_IN_STATS)[0]}


def ends_plainly(view: memoryview, at: int, sequence: int) -> bool:
    """Whether a plain, successful NLMSG_DONE of this dump ends at `at`.

    Records are multiples of 8 bytes and a plain DONE has 20: a counter cannot pass for one.
    """
    if at % WORD != DONE_BYTES % WORD or at < DONE_BYTES:
        return False
    length, kind, flags, number, _ = NLMSG_HEADER.unpack_from(view, at - DONE_BYTES)
    (code,) = _U32.unpack_from(view, at - _U32.size)
    return (length, kind, number, code) == (DONE_BYTES, NLMSG_DONE, sequence, 0) and not flags & NLM_F_DUMP_INTR


def is_records(datagram: memoryview) -> bool:
    """Whether a datagram begins and ends with statistics records of one length that fill it: the dump's end comes last of all.

    What stands between them is looked at once, when the dump is complete (Columns).
    """
    if len(datagram) < HEADER_BYTES:
        return False
    length, kind, *_ = NLMSG_HEADER.unpack_from(datagram)
    if kind != RTM_NEWSTATS or length < HEADER_BYTES or length % WORD or len(datagram) % length:
        return False
    return datagram[-length : WORD - length] == datagram[:WORD]


def has_ended(datagram: memoryview, sequence: int) -> bool:
    """Whether a datagram of any shape holds the end of this dump."""
    return any(frame.sequence == sequence and frame.type in (NLMSG_DONE, NLMSG_ERROR) for frame in frames(datagram))
