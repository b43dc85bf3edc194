"""Who is there: the links of a network namespace, read once and kept up to date by events.

Rule: the same tuple of links is handed out as long as nothing about them changed; a link's names and properties are read
only when something did. Layouts: man 7 rtnetlink (ifinfomsg), include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link
from limiterd.kernel.netlink import RTM_GETLINK, MalformedMessage, Message, NetlinkSocket, attr, attr_list, attrs, text_of

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17

_IFINFO: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, device type, ifindex, flags, change mask."""
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_EXT_MASK: Final = 29
_IFLA_NUM_TX_QUEUES: Final = 31
_IFLA_LINK_NETNSID: Final = 37
_IFLA_GSO_MAX_SIZE: Final = 41
_IFLA_PROP_LIST: Final = 52
_IFLA_ALT_IFNAME: Final = 53
_IFLA_GSO_IPV4_MAX_SIZE: Final = 63
_IFLA_INFO_KIND: Final = 1
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
_IFF_UP: Final = 0x1
_U32: Final = struct.Struct("=I")
_NO_STATS: Final = attr(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
_REMEMBERED_DEAD: Final = 4096


class LinkTable:
    """The links of one network namespace, from an RTM_GETLINK dump and the events after it.

    `links` is sorted by ifindex and stays the same object while nothing changed. A link that goes and comes back under
    its ifindex gets the next incarnation; that is seen in events only (after lost events it shows as a fallen counter).
    Raises EnvironmentFault(operation="dump") where the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = NetlinkSocket()
        self._looks = NetlinkSocket()
        self._links: dict[int, Link] = {}
        self._dead: dict[int, int] = {}
        self._told: dict[int, bytes] = {}
        """What the last look at a link brought, for as long as nothing newer is known of it."""
        self.links: tuple[Link, ...] = ()
        try:
            self.refresh()
        except EnvironmentFault:
            self.close()
            raise

    def close(self) -> None:
        """Release the descriptors."""
        self._socket.close()
        self._looks.close()

    def get(self, ifindex: int) -> Link | None:
        """The link that has this ifindex now."""
        return self._links.get(ifindex)

    def refresh(self) -> bool:
        """Read all links anew; whether anything changed. Raises EnvironmentFault(operation="dump")."""
        # ip link show
        found = self._socket.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + _NO_STATS)
        seen: set[int] = set()
        changed: list[Link] = []
        for kind, payload in found:
            if kind == RTM_NEWLINK:
                seen.add(_ifinfo(payload)[1])
                changed += self._learn(payload)
        for ifindex in self._links.keys() - seen:
            changed += self._bury(ifindex)
        return self._publish(changed)

    def look(self, ifindexes: Iterable[int]) -> Callable[[], Mapping[int, Link]]:
        """Ask for these links, for what changes without an event: the largest sizes of GSO packets.

        It may wait for the kernel while another thread samples. What it returns takes the answers in, and gives those links
        that are there, as they are now. Raises EnvironmentFault(operation="dump").
        """
        # ip link show dev IF
        requests = [Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, ifindex, 0, 0) + _NO_STATS) for ifindex in ifindexes]
        acks = self._looks.request(requests, operation="dump")
        payloads = [payload for ack in acks for kind, payload in ack.replies if kind == RTM_NEWLINK]
        return lambda: self._take(payloads)

    def _take(self, payloads: Iterable[memoryview]) -> dict[int, Link]:
        changed: list[Link] = []
        found: dict[int, Link] = {}
        for payload in payloads:
            ifindex, told = _ifinfo(payload)[1], bytes(payload)
            if ifindex not in self._links:
                continue  # its events have more to say
            if self._told.get(ifindex) != told:
                changed += self._learn(payload)
                self._told[ifindex] = told
            found[ifindex] = self._links[ifindex]
        self._publish(changed)
        return found

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
        self._told.pop(ifindex, None)
        return [link]

    def _forget(self, payload: memoryview) -> list[Link]:
        """Take in one RTM_DELLINK. That of a bridge port means only that the link left its bridge."""
        family, ifindex, _ = _ifinfo(payload)
        return self._bury(ifindex) if family == socket.AF_UNSPEC else []

    def _bury(self, ifindex: int) -> list[Link]:
        link = self._links.pop(ifindex, None)
        if link is None:
            return []
        self._told.pop(ifindex, None)
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
    if _IFLA_MTU in found:  # a whole description: what it leaves out is not there
        base = replace(base, **_relations(found, base.ifindex))
    return replace(
        base,
        name=base.name if name is None else text_of(name),
        mac=base.mac if mac is None else _mac(bytes(mac)),
        mtu=_u32(found, _IFLA_MTU, base.mtu),
        gso_max_bytes=gso or base.gso_max_bytes,
        tx_queues=_u32(found, _IFLA_NUM_TX_QUEUES, base.tx_queues),
        up=up,
    )


def _relations(found: dict[int, memoryview], ifindex: int) -> dict[str, Any]:
    """What of a link may be absent altogether: further names, kind, what it is bound to, what it is a port of."""
    properties = attr_list(found.get(_IFLA_PROP_LIST, b""))
    info = attrs(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND)
    kind = "" if info is None else text_of(info)
    elsewhere = _IFLA_LINK_NETNSID in found or kind == "veth"  # a veth is bound to nothing: its other end is named there
    bound_to = 0 if elsewhere else _u32(found, _IFLA_LINK, 0)
    return {
        "altnames": tuple(text_of(payload) for number, payload in properties if number == _IFLA_ALT_IFNAME),
        "kind": kind,
        "link_ifindex": bound_to if bound_to != ifindex else 0,
        "master_ifindex": _u32(found, _IFLA_MASTER, 0),
    }


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
