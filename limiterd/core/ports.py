"""The shapes of the adapters that the daemon, replay and demo wire to the core.

The core itself calls none of them: it returns data. They stand here so that the real kernel and the in-memory one, and
every test, agree on one contract.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from limiterd.core.model import Action, ActionResult, KernelAbilities, RootQdisc, Snapshot, TcActual


class SamplerPort(Protocol):
    """Reads all transmit counters of this network namespace."""

    @property
    def name(self) -> str:
        """The source as shown in status: "netlink" or "psutil"."""

    def sample(self) -> Snapshot | None:
        """One snapshot; None where it was dropped because the two clock readings were too far apart.

        Raises EnvironmentFault(operation="sample"); the next call starts clean.
        """

    def close(self) -> None:
        """Release the descriptors."""


class TcPort(Protocol):
    """Reads and changes the queueing disciplines of links, by ifindex."""

    def roots(self) -> Mapping[int, RootQdisc]:
        """Every visible root qdisc of the namespace, in one dump. Raises EnvironmentFault(operation="dump")."""

    def read(self, ifindexes: Iterable[int]) -> Mapping[int, TcActual]:
        """The full tc state of these links; a link that vanished is left out. Raises EnvironmentFault(operation="dump")."""

    def apply(self, actions: Sequence[Action]) -> list[ActionResult]:
        """Carry out actions in order; per link it stops at the first error (the rest: NOT_SENT).

        Without an answer in time (ETIMEDOUT) it is not known what was done of that link's steps, and no other link is tried.
        Raises EnvironmentFault only where this kernel is never asked.
        """

    def abilities(self) -> KernelAbilities:
        """What this kernel can do, found without touching any existing link."""

    def close(self) -> None:
        """Release the descriptors."""


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One established TCP socket of this host: both ends as text and port, the socket's owner and its inode.

    cookie tells sockets apart for as long as the machine runs; bound_ifindex is 0 unless the socket is tied to a device.
    """

    cookie: int
    local: str
    local_port: int
    remote: str
    remote_port: int
    bound_ifindex: int
    uid: int
    inode: int


class SocketsPort(Protocol):
    """Reads the established TCP sockets of this network namespace. Every method raises EnvironmentFault(operation="sockets")."""

    def read(self) -> array[int]:
        """(cookie, payload bytes sent since the socket was made), one after the other, of every socket: 16 bytes each."""

    def describe(self, cookies: Collection[int]) -> Mapping[int, TcpSocket]:
        """Those of these sockets that were there at the last read."""

    def egress(self, sockets: Sequence[TcpSocket]) -> list[int]:
        """The ifindex by which the kernel would send now what each socket sends; 0 where it does not say."""

    def carried_by(self, ifindex: int) -> frozenset[int]:
        """The link itself, its masters (bond, bridge, team) and the VLANs and macvlans above them: what leaves by it."""

    def close(self) -> None:
        """Release the descriptors."""
