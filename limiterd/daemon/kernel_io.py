"""Everything that talks to the kernel, opened together: real where netlink is allowed, standing in where it is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link, Source
from limiterd.core.ports import SocketsPort
from limiterd.kernel.events import EventSocket
from limiterd.kernel.links import LinkTable
from limiterd.kernel.no_netlink import Refused, RefusedSockets
from limiterd.kernel.samplers import Sampler, open_sampler
from limiterd.kernel.sockets import SocketDiag
from limiterd.kernel.tc import TcKernel


@dataclass(slots=True)
class KernelIO:
    """The sampler and its links, tc, the events, and the sockets for evidence. refusal says why netlink is not used at all."""

    table: LinkTable | None
    sampler: Sampler
    tc: TcKernel | Refused
    events: EventSocket | Refused
    sockets: SocketsPort
    refusal: str = ""

    def look(self, ifindexes: Collection[int]) -> Callable[[], Mapping[int, Link]]:
        """Ask for these links; see LinkTable.look. Raises EnvironmentFault."""
        return dict if self.table is None else self.table.look(ifindexes)

    def resample(self, source: Source, interval_ns: int) -> None:
        """Take another source of samples. Raises EnvironmentFault and keeps the old one where that is refused."""
        sampler = open_sampler(source, self.table, interval_ns)
        self.sampler.close()
        self.sampler = sampler

    def close(self) -> None:
        """Release every descriptor but the sockets', which the evidence sampler closes."""
        self.events.close()
        self.sampler.close()
        if self.table is not None:
            self.table.close()
        self.tc.close()


def open_kernel(source: Source, interval_ns: int) -> KernelIO:
    """Open what the configuration asks for. Raises EnvironmentFault where netlink is demanded and refused."""
    try:
        table = LinkTable()
    except EnvironmentFault as fault:
        refused = Refused(fault)
        return KernelIO(None, open_sampler(source, None, interval_ns), refused, refused, RefusedSockets(fault), str(fault))
    tc = TcKernel()
    events = EventSocket(table, lambda: (tc.port_id,))
    return KernelIO(table, open_sampler(source, table, interval_ns), tc, events, SocketDiag())
