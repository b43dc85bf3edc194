"""What changes outside: links that come, go or change, and other hands in our queueing disciplines.

Rule: an event only says where to look; what is true is read from the kernel afterwards. So nothing is lost by merging
events, and lost events (the kernel's ENOBUFS) cost one reading of everything.

Theory of operation. One socket listens to RTNLGRP_LINK and RTNLGRP_TC. Link messages are applied to the link table as
they come, in order: that is how the same ifindex made anew is told from the old one. Of tc messages only the ifindex
is kept. A message that one of our own sockets caused carries that socket's port id and is left out, else every repair
would look like an intrusion. After an overrun the socket is a fresh one, the table is read anew, and `resync` tells
the caller to read the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from limiterd.core.model import Link
from limiterd.kernel.links import RTM_DELLINK, RTM_NEWLINK, LinkTable
from limiterd.kernel.netlink import Frame, MalformedMessage, NetlinkSocket, Overrun

_RTNLGRP_LINK: Final = 1
_RTNLGRP_TC: Final = 4
_TC_TYPES: Final = frozenset({36, 37, 40, 41, 44, 45, 100, 101})
"""RTM_NEWQDISC, DELQDISC, NEWTCLASS, DELTCLASS, NEWTFILTER, DELTFILTER, NEWCHAIN, DELCHAIN."""
_TCM_IFINDEX: Final = struct.Struct("=4xi")
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
        self._socket = NetlinkSocket(groups=(_RTNLGRP_LINK, _RTNLGRP_TC), rcvbuf_bytes=_RECEIVE_BUFFER_BYTES)
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
