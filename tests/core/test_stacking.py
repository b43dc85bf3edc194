"""Who sends through whom, from what the kernel says of links."""

from __future__ import annotations

from dataclasses import replace

from limiterd.core.model import Link, Phase
from limiterd.core.stacking import lower_of, still_limited, upper_of
from tests import statuses
from tests.world import World

LINKS = (
    Link(2, "eth0", master_ifindex=4),
    Link(3, "eth1", master_ifindex=4),
    Link(4, "bond0", kind="bond"),
    Link(5, "bond0.7", kind="vlan", link_ifindex=4),
    Link(6, "veth1", kind="veth", link_ifindex=2),
    Link(7, "mac0", kind="macvlan", link_ifindex=99),
    Link(8, "blue", kind="vrf"),
    Link(9, "eth2", master_ifindex=8),
)


def test_bound_links_and_masters_send_through_others() -> None:
    """A VLAN through its bond, the bond through its ports; a veth, a lower link elsewhere and a VRF through none."""
    lower = lower_of(LINKS)
    assert lower == {"bond0": ("eth0", "eth1"), "bond0.7": ("bond0",)}
    assert upper_of(lower) == {"eth0": ("bond0",), "eth1": ("bond0",), "bond0": ("bond0.7",)}


def test_status_says_it() -> None:
    """A watched link names both sides."""
    world = World()
    world.links = (world.link(), replace(world.add(3, "eth0.5"), kind="vlan", link_ifindex=2))
    world.tick()
    assert world.view("eth0").upper == ("eth0.5",)
    assert world.view("eth0.5").lower == ("eth0",)


def test_what_still_limits_the_bytes_of_a_released_link_is_named() -> None:
    """The link below, with the command that releases it, and the link above; a conforming neighbour is no news."""
    status = replace(
        statuses.quiet(),
        links=(
            statuses.link("eth0", Phase.LIMITED, upper=("mac0",)),
            statuses.link("mac0", lower=("eth0",), upper=("mac1", "mac2", "gone")),
            statuses.link("mac1", Phase.LIMITED),
            statuses.link("mac2"),
        ),
    )
    assert still_limited(status, "mac0") == [
        "eth0, which mac0 sends through, still limits it: limiterctl release eth0 --reason …",
        "mac1, which sends through mac0, is still limited itself",
    ]
    assert still_limited(status, "eth9") == []
