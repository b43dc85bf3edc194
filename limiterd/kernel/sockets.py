"""Who sends: the established TCP sockets, what each has sent, and by which link it leaves.

Rule: reading is cheap and keeps only (cookie, bytes sent); everything else about a socket is decoded for the few that
turn out to matter, from the same dump.

Theory of operation. sock_diag dumps every established socket with its tcp_info. Within a datagram the records are
nearly always alike, so that one struct walks them all: cookie and tcpi_bytes_sent at fixed offsets, after whole columns
have shown that the records really are alike; a datagram with odd records (kTLS and MPTCP sockets say more) is walked
message by message. By which link a socket leaves is asked of the kernel's routing, as `ip route get` does; the answer
knows neither packet marks nor which of several equal paths a connection took. A bond, a bridge, a VLAN or a macvlan is
what routing names; what carries it is found from the links' own relations.

Not seen: UDP and forwarded traffic, sockets of other network namespaces, sockets that were closed since.

Layouts: include/uapi/linux/inet_diag.h, tcp.h (tcp_info); man 7 sock_diag, man 7 rtnetlink.
"""

from __future__ import annotations

import itertools
import socket
import struct
from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from limiterd.core.ports import TcpSocket
from limiterd.kernel.netlink import (
    HEADER_BYTES,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_HEADER,
    RTM_GETLINK,
    MalformedMessage,
    Message,
    NetlinkSocket,
    attr,
    attrs,
    decode_ack,
    encode,
    fault,
    frames,
    same_words,
    text_of,
)

_OPERATION: Final = "sockets"
_SOCK_DIAG_BY_FAMILY: Final = 20
_INET_DIAG_INFO: Final = 2
_ESTABLISHED: Final = 1 << 1
_REQUEST: Final = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states; the socket id of all zeros means every socket."""
_SOCKET: Final = struct.Struct("=B3x4s16s16sIQ12xII")
"""inet_diag_msg: family, ports, source, destination, bound device, cookie, uid, inode."""
_PORTS: Final = struct.Struct("!HH")
_COOKIE_AT: Final = HEADER_BYTES + 44
_COOKIE: Final = struct.Struct("=Q")
_BYTES_ACKED_IN_INFO: Final = 120
_BYTES_SENT_IN_INFO: Final = 200
_DATAGRAM_BYTES: Final = 1 << 16
_MAPPED_V4: Final = bytes(10) + b"\xff\xff"

_RTM_GETROUTE: Final = 26
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, destination and source prefix lengths, tos, table, protocol, scope, type, flags."""
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_IFINFO: Final = struct.Struct("=BxHiII")
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_LINK_NETNSID: Final = 37
_IFLA_INFO_KIND: Final = 1
_STACKED_KINDS: Final = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"})
_U32: Final = struct.Struct("=I")


class SocketDiag:
    """The sockets of the network namespace that this is made in. See SocketsPort; one thread at a time."""

    def __init__(self) -> None:
        self._diag = NetlinkSocket(NETLINK_SOCK_DIAG)
        self._rtnl = NetlinkSocket()
        self._buffer = memoryview(bytearray(_DATAGRAM_BYTES))
        self._last: list[bytes] = []

    def close(self) -> None:
        """Release the descriptors."""
        self._diag.close()
        self._rtnl.close()

    def read(self) -> array[int]:
        """(cookie, bytes sent) of every established TCP socket, IPv4 and IPv6. See SocketsPort."""
        # ss equivalent: ss -tie state established
        self._last = [*self._dump(socket.AF_INET), *self._dump(socket.AF_INET6)]
        found = array("Q")
        for datagram in self._last:
            found.extend(sent_bytes(datagram))
        return found

    def describe(self, cookies: Collection[int]) -> Mapping[int, TcpSocket]:
        """Those of these sockets that were there at the last read. See SocketsPort."""
        wanted = frozenset(cookies)
        records = (frame.payload for datagram in self._last for frame in frames(datagram) if frame.type == _SOCK_DIAG_BY_FAMILY)
        described = (tcp_socket(record) for record in records if _cookie_of(record) in wanted)
        return {found.cookie: found for found in described}

    def egress(self, sockets: Sequence[TcpSocket]) -> list[int]:
        """By which link each leaves: the device it is bound to, else what routing says; 0 unknown. See SocketsPort."""
        unbound = {(s.remote, s.local): 0 for s in sockets if not s.bound_ifindex}
        # ip route get REMOTE from LOCAL
        acks = self._rtnl.request([_route_request(*ends) for ends in unbound], operation=_OPERATION)
        for ends, ack in zip(unbound, acks, strict=True):
            for _, payload in ack.replies:
                unbound[ends] = _u32(attrs(payload[_ROUTE.size :]), _RTA_OIF)
        return [s.bound_ifindex or unbound[s.remote, s.local] for s in sockets]

    def carried_by(self, ifindex: int) -> frozenset[int]:
        """The link, its masters, and what is stacked on them. See SocketsPort."""
        # ip -d link show
        found = self._rtnl.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0), operation=_OPERATION)
        above = [step for _, payload in found for step in _steps_up(payload)]
        carried = {ifindex}
        while more := {upper for lower, upper in above if lower in carried} - carried:
            carried |= more
        return frozenset(carried)

    def _dump(self, family: int) -> list[bytes]:
        """The datagrams of one dump, headers and all."""
        with self._diag.cleaned(_OPERATION):
            sequence = self._diag.next_sequence()
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), _ESTABLISHED)
            request = Message(_SOCK_DIAG_BY_FAMILY, 0, body)
            self._diag.raw.send(encode(request, sequence, NLM_F_REQUEST | NLM_F_DUMP))
            datagrams: list[bytes] = []
            while not datagrams or not _has_ended(datagrams[-1], sequence):
                got = self._diag.raw.recv_into(self._buffer, 0, socket.MSG_TRUNC)
                if got > len(self._buffer):
                    self._buffer = memoryview(bytearray(1 << got.bit_length()))
                    raise MalformedMessage(f"sock_diag: a datagram of {got} bytes did not fit; the next read has room for it")
                datagrams.append(bytes(self._buffer[:got]))
            return datagrams


def _has_ended(datagram: bytes, sequence: int) -> bool:
    """Whether the dump ends in this datagram. Raises EnvironmentFault where it ends with an error."""
    if _alike(datagram):
        return False
    for frame in frames(datagram):
        if frame.type in (NLMSG_DONE, NLMSG_ERROR) and frame.sequence == sequence:
            code, text = decode_ack(frame)
            if code:
                raise fault("reading TCP sockets (kernel module tcp_diag)", code, text, operation=_OPERATION)
            return True
    return False


def _alike(datagram: bytes) -> bool:
    """Whether a datagram is nothing but socket records of one length whose tcp_info stands at one place."""
    length, kind, *_ = NLMSG_HEADER.unpack_from(datagram)
    if kind != _SOCK_DIAG_BY_FAMILY or length % 4 or length < HEADER_BYTES + _SOCKET.size or len(datagram) % length:
        return False
    info_at = _info_at(memoryview(datagram)[:length])
    return info_at is not None and same_words(memoryview(datagram), length, (0, 4, 8, info_at - 4))


def _info_at(record: memoryview) -> int | None:
    """Where in a whole record (header included) its tcp_info begins; None where it has none or one of another kernel age."""
    at = HEADER_BYTES + _SOCKET.size
    while at + 4 <= len(record):
        size, kind = struct.unpack_from("=HH", record, at)
        if kind == _INET_DIAG_INFO:
            return at + 4 if size - 4 >= _BYTES_SENT_IN_INFO + 8 and at + size <= len(record) else None
        at += max(4, size + (-size & 3))
    return None


def sent_bytes(datagram: bytes) -> array[int]:
    """(cookie, bytes sent) of each record, one after the other. Raises MalformedMessage."""
    if len(datagram) >= HEADER_BYTES and _alike(datagram):
        (length,) = _U32.unpack_from(datagram)
        info_at = _info_at(memoryview(datagram)[:length])
        if info_at is not None:
            between = info_at + _BYTES_SENT_IN_INFO - _COOKIE_AT - 8
            behind = length - info_at - _BYTES_SENT_IN_INFO - 8
            walk = struct.iter_unpack(f"={_COOKIE_AT}xQ{between}xQ{behind}x", datagram)
            return array("Q", itertools.chain.from_iterable(walk))
    odd = [_sent_by(f.payload) for f in frames(datagram) if f.type == _SOCK_DIAG_BY_FAMILY]
    return array("Q", itertools.chain.from_iterable(odd))


def _sent_by(record: memoryview) -> tuple[int, int]:
    """(cookie, bytes sent) of one record; kernels before 4.19 tell bytes acknowledged, before 4.1 nothing: then 0."""
    cookie = _cookie_of(record)
    info = attrs(record[_SOCKET.size :]).get(_INET_DIAG_INFO, memoryview(b""))
    for offset in (_BYTES_SENT_IN_INFO, _BYTES_ACKED_IN_INFO):
        if len(info) >= offset + 8:
            return cookie, struct.unpack_from("=Q", info, offset)[0]
    return cookie, 0


def _cookie_of(record: memoryview) -> int:
    if len(record) < _SOCKET.size:
        raise MalformedMessage(f"sock_diag: a record of {len(record)} bytes, at least {_SOCKET.size} are due")
    return int(_COOKIE.unpack_from(record, _COOKIE_AT - HEADER_BYTES)[0])


def tcp_socket(record: memoryview) -> TcpSocket:
    """A record without its header, decoded. Raises MalformedMessage."""
    _cookie_of(record)
    family, ports, source, destination, bound, cookie, uid, inode = _SOCKET.unpack_from(record)
    local_port, remote_port = _PORTS.unpack(ports)
    return TcpSocket(cookie, _address(family, source), local_port, _address(family, destination), remote_port, bound, uid, inode)


def _address(family: int, raw: bytes) -> str:
    """An address as text; an IPv4 one that an IPv6 socket speaks to, as IPv4."""
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if raw.startswith(_MAPPED_V4):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


# ---- routes and relations ------------------------------------------------------------------------


def _route_request(remote: str, local: str) -> Message:
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    destination, source = socket.inet_pton(family, remote), socket.inet_pton(family, local)
    head = _ROUTE.pack(family, 8 * len(destination), 8 * len(source), 0, 0, 0, 0, 0, 0)
    return Message(_RTM_GETROUTE, 0, head + attr(_RTA_DST, destination) + attr(_RTA_SRC, source))


def _steps_up(payload: memoryview) -> list[tuple[int, int]]:
    """(lower, upper) for each link that carries this one or that this one carries."""
    if len(payload) < _IFINFO.size:
        raise MalformedMessage(f"netlink: a link message of {len(payload)} bytes, at least {_IFINFO.size} are due")
    ifindex = _IFINFO.unpack_from(payload)[2]
    found = attrs(payload[_IFINFO.size :])
    steps = [(ifindex, _u32(found, _IFLA_MASTER))] if _IFLA_MASTER in found else []
    kind = text_of(attrs(found.get(_IFLA_LINKINFO, memoryview(b""))).get(_IFLA_INFO_KIND, memoryview(b"")))
    if kind in _STACKED_KINDS and _IFLA_LINK in found and _IFLA_LINK_NETNSID not in found:
        steps.append((_u32(found, _IFLA_LINK), ifindex))
    return steps


def _u32(found: Mapping[int, memoryview], kind: int) -> int:
    payload = found.get(kind, memoryview(b""))
    return int(_U32.unpack_from(payload)[0]) if len(payload) >= _U32.size else 0
