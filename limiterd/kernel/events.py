"""What changes outside: links that come, go or change, and other hands in our queueing disciplines.

Rule: an event only says where to look; what is true is read from the kernel afterwards. So nothing is lost by merging
events, and lost events (the kernel's ENOBUFS) cost one reading of everything.

Theory of operation. One socket listens to RTNLGRP_LINK and RTNLGRP_TC. Link messages are applied to the link table as
they come, in order: that is how the same ifindex made anew is told from the old one. Of tc messages only the ifindex
is kept. A message that one of our own sockets caused carries that socket's port id and is left out, else every repair
would look like an intrusion. After an overrun the socket is a fresh one, the table is read anew, and `resync` tells
the caller to read the rest.

Another shaper's tree may have ten thousand classes and be loaded anew every minute. What stands there concerns nobody here,
so the kernel drops what speaks of it ahead of the socket: of tc only roots, ingress and what stands in a tree of ours gets in.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from limiterd.core.model import OUR_MAJOR, Link
from limiterd.kernel.links import RTM_DELLINK, RTM_NEWLINK, LinkTable
from limiterd.kernel.netlink import Frame, Instruction, MalformedMessage, NetlinkSocket, Overrun

_RTNLGRP_LINK: Final = 1
_RTNLGRP_TC: Final = 4
_TC_TYPES: Final = frozenset({36, 37, 40, 41, 44, 45, 100, 101})
"""RTM_NEWQDISC, DELQDISC, NEWTCLASS, DELTCLASS, NEWTFILTER, DELTFILTER, NEWCHAIN, DELCHAIN."""
_TCM_IFINDEX: Final = struct.Struct("=4xi")
_CLASS_TYPES: Final = (40, 41)
"""RTM_NEWTCLASS, DELTCLASS: the parent of a class that stands right below a root is the root of all, whoever's it is."""
_TYPE_AT: Final = 4
_HANDLE_AT: Final = 24
_PARENT_AT: Final = 28
_MAJOR: Final = 2 if sys.byteorder == "little" else 0
"""Where the upper half of a handle is found in its bytes."""
_TOP_MAJOR: Final = 0xFFFF
"""Of the parent of a root, and of ingress and clsact and what hangs on them."""

_LOAD_HALF: Final = 0x28
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_WHOLE_DATAGRAM: Final = 0xFFFFFFFF


def _jump_if(value: int, true: int, false: int = 0) -> Instruction:
    """Jump over so many instructions; BPF loads a half-word in network order, netlink writes it in the host's."""
    return (_JUMP_IF_EQUAL, true, false, socket.htons(value))


_CONCERNS_US: Final[tuple[Instruction, ...]] = (
    (_LOAD_HALF, 0, 0, _TYPE_AT),
    _jump_if(RTM_NEWLINK, 9),
    _jump_if(RTM_DELLINK, 8),
    _jump_if(_CLASS_TYPES[0], 4),
    _jump_if(_CLASS_TYPES[1], 3),
    (_LOAD_HALF, 0, 0, _PARENT_AT + _MAJOR),
    _jump_if(_TOP_MAJOR, 4),
    _jump_if(OUR_MAJOR, 3, 2),
    (_LOAD_HALF, 0, 0, _HANDLE_AT + _MAJOR),
    _jump_if(OUR_MAJOR, 1),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, _WHOLE_DATAGRAM),
)

_RECEIVE_BUFFER_BYTES: Final = 4 << 20
_DATAGRAMS_A_DRAIN: Final = 2048
"""Bounds one drain, and with it a tick; the rest waits for the next."""


@dataclass(frozen=True, slots=True)
class Events:
    """What one drain found: links new, changed or gone, links whose tc state others touched, whether all must be read."""

    links: tuple[Link, ...] = ()
    tc_ifindexes: frozenset[int] = frozenset()
    resync: bool = False


class EventSocket:
    """Listens in the network namespace that it is made in; link events go to the table.

    own_port_ids is asked at each drain for the port ids of our own sockets. resyncs counts the overruns. Raises
    EnvironmentFault(operation="events") where the kernel refuses the groups.
    """

    def __init__(self, table: LinkTable, own_port_ids: Callable[[], Collection[int]]) -> None:
        self._table = table
        self._own = own_port_ids
        self._socket = NetlinkSocket(
            groups=(_RTNLGRP_LINK, _RTNLGRP_TC), rcvbuf_bytes=_RECEIVE_BUFFER_BYTES, program=_CONCERNS_US
        )
        self._behind = False
        self.resyncs = 0

    def fileno(self) -> int:
        """The descriptor of this moment (an overrun replaces it)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Release the descriptor; the table is its owner's."""
        self._socket.close()

    def drain(self) -> Events:
        """Everything that waits (at most 2048 datagrams), without blocking.

        Raises EnvironmentFault when the table cannot be read anew after an overrun; the next drain tries again.
        """
        frames = self._waiting()
        try:
            links = self._table.apply((f.type, f.payload) for f in frames if f.type in (RTM_NEWLINK, RTM_DELLINK))
        except MalformedMessage:
            links, self._behind = (), True
        return self._resynced() if self._behind else Events(links, self._touched(frames))

    def _waiting(self) -> list[Frame]:
        frames: list[Frame] = []
        try:
            for _ in range(_DATAGRAMS_A_DRAIN):
                waiting = self._socket.receive()
                if not waiting:
                    break
                frames += waiting
        except (Overrun, MalformedMessage):
            self._behind = True
        return frames

    def _resynced(self) -> Events:
        """Read all links anew; until that succeeds every drain tries again."""
        before = set(self._table.links)
        self._table.refresh()
        self._behind = False
        self.resyncs += 1
        return Events(links=tuple(before.symmetric_difference(self._table.links)), resync=True)

    def _touched(self, frames: list[Frame]) -> frozenset[int]:
        """The ifindexes that other hands' tc messages name (shared blocks, which have none, are left out)."""
        own = frozenset(self._own())
        named = (_TCM_IFINDEX.unpack_from(f.payload)[0] for f in frames if _is_foreign(f, own))
        return frozenset(ifindex for ifindex in named if ifindex > 0)


def _is_foreign(frame: Frame, own: frozenset[int]) -> bool:
    return frame.type in _TC_TYPES and frame.port_id not in own and len(frame.payload) >= _TCM_IFINDEX.size
