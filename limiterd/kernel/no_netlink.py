"""What stands in where netlink is refused altogether (a container without AF_NETLINK): observing goes on through psutil.

Every question about queueing disciplines or sockets is answered with the refusal, so that a limit that becomes due is a
fault with its reason, never a silence.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Action, ActionResult, KernelAbilities, RootQdisc, TcActual
from limiterd.core.ports import TcpSocket
from limiterd.kernel.events import Events


class Refused:
    """TcPort, SocketsPort and the event socket of a kernel that one may not talk to."""

    port_id = 0
    resyncs = 0

    def __init__(self, reason: EnvironmentFault) -> None:
        self._reason = reason
        self._never = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """A descriptor that is never readable."""
        return self._never

    def drain(self) -> Events:
        """No events."""
        return Events()

    def roots(self) -> Mapping[int, RootQdisc]:
        """No root is known."""
        return {}

    def read(self, ifindexes: Iterable[int] = ()) -> Mapping[int, TcActual]:
        """Refuse."""
        raise self._fault("dump")

    def apply(self, actions: Sequence[Action]) -> list[ActionResult]:
        """Refuse."""
        raise self._fault("install")

    def abilities(self) -> KernelAbilities:
        """Nothing is known of the kernel."""
        return KernelAbilities()

    def _fault(self, operation: str) -> EnvironmentFault:
        return EnvironmentFault(str(self._reason), operation=operation, errno_name=self._reason.errno_name)

    def close(self) -> None:
        """Release the descriptor; again is harmless."""
        if self._never >= 0:
            os.close(self._never)
            self._never = -1


class RefusedSockets:
    """SocketsPort of such a kernel."""

    def __init__(self, reason: EnvironmentFault) -> None:
        self._reason = reason

    def read(self) -> array[int]:
        """Refuse."""
        raise self._reason

    def describe(self, cookies: Collection[int]) -> Mapping[int, TcpSocket]:
        """Refuse."""
        raise self._reason

    def egress(self, sockets: Sequence[TcpSocket]) -> list[int]:
        """Refuse."""
        raise self._reason

    def carried_by(self, ifindex: int) -> frozenset[int]:
        """Refuse."""
        raise self._reason

    def close(self) -> None:
        """Nothing to release."""
