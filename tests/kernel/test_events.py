"""Events of the real kernel: what changed, by whose hand, and what happens when some are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link
from limiterd.kernel.events import Events, EventSocket
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import Frame, Message, NetlinkSocket, Overrun, attr
from limiterd.sim.netns import Pair, PrivateNet, inside, route_in, run
from tests.kernel.test_netlink import RTM_NEWQDISC, TCMSG

pytestmark = pytest.mark.root


@pytest.fixture
def own() -> set[int]:
    """The port ids that count as ours."""
    return set()


@pytest.fixture
def events(pair: Pair, table: LinkTable, own: set[int]) -> Iterator[EventSocket]:
    """Listening in the near namespace, nothing pending."""
    with inside(pair.near.namespace):
        made = EventSocket(table, lambda: own)
    with contextlib.closing(made):
        yield made


def ip(pair: Pair, command: str) -> None:
    """Run ip in the near namespace."""
    run(pair.near.namespace, ["ip", *command.split()])


def tc(pair: Pair, command: str) -> None:
    """Run tc in the near namespace."""
    run(pair.near.namespace, ["tc", *command.split()])


def named(links: tuple[Link, ...], name: str) -> Link:
    """The link of that name."""
    return next(link for link in links if link.name == name)


def test_silence_is_empty(events: EventSocket) -> None:
    """Nothing happened: an empty drain, at once."""
    assert events.drain() == Events()


def test_births_changes_and_deaths_reach_the_table(pair: Pair, table: LinkTable, events: EventSocket) -> None:
    """After each drain the table is what a refresh would make it, and the events name the link."""
    for command in (
        "link add v1 type veth peer name v2",
        "link set v1 up",
        "link set v1 mtu 1300",
        "link set v1 address 02:00:00:00:00:09",
        "link set v1 down",
        "link set v1 name v9",
        "link del v9",
    ):
        ip(pair, command)
        drained = events.drain()
        assert {link.name for link in drained.links} & {"v1", "v9"}, command
        assert not drained.resync
        followed = table.links
        assert not table.refresh(), command
        assert table.links is followed


def test_a_link_made_anew_is_another_link(pair: Pair, table: LinkTable, events: EventSocket) -> None:
    """Deleted and recreated under the same ifindex and name between two drains: the incarnation tells."""
    ip(pair, "link add name v1 index 77 type veth peer name v2")
    events.drain()
    first = named(table.links, "v1")
    for births in (1, 2):
        ip(pair, "link del v1")
        ip(pair, "link add name v1 index 77 type veth peer name v2")
        events.drain()
        again = named(table.links, "v1")
        assert (again.ifindex, again.name, again.incarnation) == (first.ifindex, first.name, births)


def test_leaving_a_bridge_is_no_death(pair: Pair, table: LinkTable, events: EventSocket) -> None:
    """A bridge announces its ports with link messages of its own: the links stay, the same incarnation."""
    ip(pair, "link add br0 type bridge")
    ip(pair, "link add v1 type veth peer name v2")
    events.drain()
    before = named(table.links, "v1")
    ip(pair, "link set v1 master br0")
    ip(pair, "link set v1 nomaster")
    events.drain()
    assert named(table.links, "v1").incarnation == before.incarnation == 0
    assert not table.refresh()


def test_a_move_to_another_namespace_is_a_death_here(lab: PrivateNet, pair: Pair, table: LinkTable, events: EventSocket) -> None:
    """The link leaves the table with the event."""
    with route_in(pair.near.namespace) as route:
        route.link("set", index=pair.near.ifindex, net_ns_fd=lab.namespace().fd)
    drained = events.drain()
    assert pair.near.ifindex in {link.ifindex for link in drained.links}
    assert table.get(pair.near.ifindex) is None


IN_A_TREE = (
    "class add dev eth0 parent {root} classid {root}1 htb rate 1mbit",
    "class change dev eth0 parent {root} classid {root}1 htb rate 2mbit",
    "qdisc add dev eth0 parent {root}1 handle 5: pfifo",
    "filter add dev eth0 parent {root} protocol ip prio 1 u32 match u32 0 0 flowid {root}1",
    "filter add dev eth0 parent {root}1 protocol ip prio 1 u32 match u32 0 0 flowid {root}1",
    "filter del dev eth0 parent {root} protocol ip prio 1",
    "filter del dev eth0 parent {root}1 protocol ip prio 1",
    "qdisc del dev eth0 parent {root}1",
    "class del dev eth0 classid {root}1",
)


@pytest.mark.parametrize(("root", "concerns"), [("1d1d:", True), ("1:", False)])
def test_foreign_hands_in_tc_are_seen(pair: Pair, events: EventSocket, root: str, concerns: bool) -> None:  # noqa: FBT001
    """What tc adds, changes and deletes names its link: roots and ingress always, what is below a root in our tree alone."""
    seen = frozenset({pair.near.ifindex})
    for command in (f"qdisc add dev eth0 root handle {root} htb", "qdisc add dev eth0 clsact"):
        tc(pair, command)
        assert events.drain().tc_ifindexes == seen, command
    for command in IN_A_TREE:
        tc(pair, command.format(root=root))
        assert events.drain().tc_ifindexes == (seen if concerns else frozenset()), command
    for command in (
        "filter add dev eth0 ingress protocol ip prio 1 u32 match u32 0 0 flowid 1:1",
        "filter del dev eth0 ingress protocol ip prio 1",
        "qdisc del dev eth0 clsact",
        "qdisc replace dev eth0 root handle 7: pfifo",
        "qdisc del dev eth0 root",
    ):
        tc(pair, command)
        assert events.drain().tc_ifindexes == seen, command


def test_our_own_hands_are_not(pair: Pair, events: EventSocket, own: set[int]) -> None:
    """A message that a socket of ours caused is left out; the same by another socket is not."""
    with inside(pair.near.namespace), NetlinkSocket() as ours, NetlinkSocket() as theirs:
        own.add(ours.port_id)
        # tc equivalent: tc qdisc replace dev eth0 root pfifo
        replace = Message(RTM_NEWQDISC, 0x400 | 0x100, TCMSG.pack(0, pair.near.ifindex, 0, 0xFFFFFFFF, 0) + attr(1, b"pfifo\0"))
        assert ours.request([replace])[0].ok
        assert events.drain().tc_ifindexes == frozenset()
        assert theirs.request([replace])[0].ok
        assert events.drain().tc_ifindexes == {pair.near.ifindex}


def test_lost_events_lead_to_a_resync(pair: Pair, table: LinkTable, own: set[int]) -> None:
    """When the buffer overruns, the drain says resync and the table is true; then events flow again."""
    with inside(pair.near.namespace):
        narrow = EventSocket(table, lambda: own)
        narrow._socket._rcvbuf_bytes = 32_768
        narrow._socket.reopen()
        with contextlib.closing(narrow), route_in(pair.near.namespace) as route:
            for number in range(60):
                route.link("add", ifname=f"v{number}", kind="veth", peer={"ifname": f"w{number}"})
            drained = narrow.drain()
            assert drained.resync
            assert narrow.resyncs == 1
            assert {f"v{n}" for n in range(60)} <= {link.name for link in table.links}
            assert not table.refresh()
            route.link("del", ifname="v0")
            after = narrow.drain()
            assert not after.resync
            assert "v0" in {link.name for link in after.links}


def test_a_resync_that_fails_is_tried_again(table: LinkTable, events: EventSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the links cannot be read the drain raises; once they can, it says resync."""

    def overrun() -> list[Frame]:
        raise Overrun("lost", operation="events", errno_name="ENOBUFS")

    def refused() -> bool:
        raise EnvironmentFault("no links now", operation="dump")

    with monkeypatch.context() as once:
        once.setattr(events._socket, "receive", overrun)
        once.setattr(table, "refresh", refused)
        with pytest.raises(EnvironmentFault, match="no links now"):
            events.drain()
    assert events.drain().resync
    assert not events.drain().resync
