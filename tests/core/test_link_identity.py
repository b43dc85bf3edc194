"""What belongs to a link goes with it, and what does not is forgotten: names, MACs, decisions, strikes, saved roots."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from limiterd.core.errors import EXIT_USAGE, PeerError
from limiterd.core.model import (
    SECOND,
    Action,
    ActionKind,
    EventKind,
    ForeignQdisc,
    Override,
    OverrideAction,
    Phase,
    RootQdisc,
)
from limiterd.core.units import MAX_RATE_BPS
from tests.world import AUTO, MBIT, POLICY, World, rules_of

PFIFO = RootQdisc("pfifo", 0x50000, b"\x00\x00\x00\x07")
OTHER_MAC = "02:00:00:00:aa:01"


def with_mac(world: World, mac: str, name: str = "eth0") -> None:
    """Give a present link another hardware address."""
    world.links = tuple(replace(link, mac=mac) if link.name == name else link for link in world.links)


def foreign(world: World, *steps: tuple[ActionKind, RootQdisc | int]) -> None:
    """A foreign hand's steps on eth0, seen by the daemon afterwards."""
    actions = [Action(kind, world.link().ifindex, "eth0", item) for kind, item in steps]
    assert [result.errno for result in world.kernel.apply(actions)] == [0] * len(steps)
    world.touch()


def test_a_name_that_no_policy_watches_any_more_is_not_judged_when_it_returns() -> None:
    """A link went, a reload took its policy away, a link of that name comes: it is left alone, whatever it sends."""
    world = World()
    world.run(0.5)
    world.remove("eth0")
    world.run(0.3)
    world.reload(rules_of(replace(POLICY, interfaces=("wlan*",))))
    world.add(5, "eth0")
    world.run(0.3)
    world.run(3, {"eth0": 150 * MBIT})
    assert world.told(EventKind.LIMIT) == []
    assert "eth0" not in world.state.effective


@pytest.mark.parametrize("away_s", [0.0, 1.0])
def test_another_link_under_the_name_of_a_limited_one_is_judged(away_s: float) -> None:
    """A limited link goes, another of its name but another MAC comes: no heir of the limit, limited for its own excess."""
    world = World()
    world.fire()
    world.remove("eth0")
    world.run(away_s)
    world.add(5, "eth0", mac=OTHER_MAC)
    world.run(0.5)
    assert world.view().phase is Phase.CONFORMING
    world.fire()
    assert world.view().phase is Phase.LIMITED
    assert len(world.told(EventKind.LIMIT)) == 2


def test_a_link_that_gets_its_mac_after_its_name_is_known_again() -> None:
    """A bond, or a link that a script makes anew, has another MAC for a moment: with its own its limit is put back."""
    world = World()
    world.fire()
    mac = world.link().mac
    world.remove("eth0")
    world.run(0.2)
    world.add(7, "eth0", mac=OTHER_MAC)
    world.run(0.2)
    assert world.rate() is None
    with_mac(world, mac)
    world.run(0.2)
    assert world.view().phase is Phase.LIMITED
    assert world.state.absent_limits == {}


def test_a_limit_keeps_its_story_when_the_mac_changes() -> None:
    """A limited link gets another MAC and the daemon restarts: rate, reason and the operator's hand are not forgotten."""
    world = World()
    world.limit("eth0", 30 * MBIT)
    world.run(0.2)
    with_mac(world, OTHER_MAC)
    world.run(0.2)
    world.boot()
    world.run(0.2)
    view = world.view()
    assert (view.phase, view.reason, view.manual, world.rate()) == (Phase.LIMITED, "operator", True, 30 * MBIT)
    assert [decision.mac for decision in world.disk.decisions] == [OTHER_MAC]


def test_an_override_lifts_the_limit_of_an_absent_link() -> None:
    """A link comes back when the exemption that was granted meanwhile is over: it is not limited retroactively."""
    world = World()
    world.fire()
    mac = world.link().mac
    world.remove("eth0")
    world.run(0.2)
    ends = world.now.wall_ns + 5 * SECOND
    world.reload(rules_of(overrides=[Override("REQ-1", ("eth0",), OverrideAction.EXEMPT, ends, "ops", "why")]))
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "override")]
    assert world.disk.decisions == ()
    world.run(6)
    world.add(7, "eth0", mac=mac)
    world.run(0.2)
    assert (world.view().phase, world.view().strikes) == (Phase.CONFORMING, 0)


@pytest.mark.parametrize("change", ["mac", "name"])
def test_strikes_go_with_the_link(change: str) -> None:
    """Remembered strikes follow a link to its new MAC or name."""
    world = World(rules_of(replace(POLICY, release=AUTO)))
    world.fire()
    world.release()
    world.run(1, {"eth0": 0})
    name = "eth0" if change == "mac" else "eth9"
    if change == "mac":
        with_mac(world, OTHER_MAC)
    else:
        world.rename("eth0", name)
    world.run(0.2)
    assert world.view(name).strikes == 1
    assert [(m.interface, m.mac) for m in world.disk.strike_records] == [(name, world.link(name).mac)]


def test_a_hand_that_takes_a_limit_over_keeps_its_strikes() -> None:
    """`limiterctl limit` on a limited link changes whose limit it is, not how often the link has fired."""
    world = World(rules_of(replace(POLICY, release=AUTO)))
    world.fire()
    world.limit("eth0", 30 * MBIT)
    world.run(0.2)
    assert (world.view().strikes, world.view().manual, world.rate()) == (1, True, 30 * MBIT)


def test_a_rate_beyond_all_links_is_refused() -> None:
    """A rate that the kernel's messages cannot hold is the client's error, and changes nothing."""
    world = World()
    with pytest.raises(PeerError) as refused:
        world.limit("eth0", MAX_RATE_BPS + 1)
    assert refused.value.exit_code == EXIT_USAGE
    assert world.state.limit_states == {}


def takeover_world() -> World:
    """A takeover policy and a foreign pfifo at the root."""
    world = World(rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER)))
    foreign(world, (ActionKind.RESTORE_ROOT, PFIFO))
    return world


def test_a_root_that_was_never_taken_is_not_restored() -> None:
    """The takeover failed on a full disk, then the root's owner removed it: a release leaves the default root."""
    world = takeover_world()
    world.disk_full = True
    world.fire()
    assert world.view().phase is Phase.FAULT
    foreign(world, (ActionKind.DELETE_ROOT, PFIFO.handle))
    world.disk_full = False
    world.run(1)
    assert world.view().phase is Phase.LIMITED
    world.release()
    world.run(1, {"eth0": 0})
    assert world.root() == "noqueue 0:"
    assert world.disk.replaced == ()


def test_a_root_that_could_not_be_deleted_is_not_held_against_its_successor() -> None:
    """The kernel refused to delete the foreign root; its owner put another in its place: that one is taken over instead."""
    world = takeover_world()
    world.kernel.refuse(1, errno.EPERM)  # SAVE_ROOT is the first step
    world.fire()
    assert world.root() == "pfifo 5:"
    assert world.state.replaced == {}
    successor = RootQdisc("bfifo", 0x60000, b"\x00\x00\x00\x09")
    foreign(world, (ActionKind.DELETE_ROOT, PFIFO.handle), (ActionKind.RESTORE_ROOT, successor))
    world.run(3)
    assert world.rate() == 20 * MBIT
    world.release()
    world.run(1, {"eth0": 0})
    assert world.root() == "bfifo 6:"


@pytest.mark.parametrize("swapped", [True, False])
def test_saved_roots_of_links_with_one_mac_are_not_mixed_up(*, swapped: bool) -> None:
    """Two members of a bond swap their names, or one takes a gone one's name: each gets the root back that was its own."""
    world = takeover_world()
    other = world.add(3, "eth1", mac=world.link().mac)
    world.run(0.2)
    behind = Action(ActionKind.RESTORE_ROOT, other.ifindex, "eth1", RootQdisc("pfifo", 0x60000, b"\x00\x00\x00\x09"))
    assert world.kernel.apply([behind])[0].errno == 0
    world.touch("eth1")
    world.limit("eth0")
    world.limit("eth1")
    if swapped:
        names = {"eth0": "eth1", "eth1": "eth0"}
        world.links = tuple(replace(link, name=names[link.name]) for link in world.links)
    else:
        world.remove("eth0")
        world.rename("eth1", "eth0")
    world.run(0.3)
    world.release("eth0")
    world.run(1)
    assert world.root("eth0") == "pfifo 6:"
    if swapped:
        world.release("eth1")
        world.run(1)
        assert world.root("eth1") == "pfifo 5:"
    assert world.disk.replaced == ()


def test_a_limit_goes_along_when_name_and_mac_change_at_once() -> None:
    """Renamed and given another MAC between two ticks, it is the same link: since, strikes and a limit by hand stay."""
    world = World()
    world.limit(rate_bps=10 * MBIT)
    before = world.view()
    with_mac(world, OTHER_MAC)
    world.rename("eth0", "eth9")
    world.run(0.2)
    after = world.view("eth9")
    assert (after.phase, after.reason, after.manual) == (Phase.LIMITED, "operator", True)
    assert (after.limit_bps, after.since_wall_ns, after.strikes) == (10 * MBIT, before.since_wall_ns, before.strikes)
    assert world.disk.decisions[0].mac == OTHER_MAC


def test_a_mac_that_comes_back_brings_its_decision_back() -> None:
    """Restarted while the link has another MAC, its limit is adopted; with the old MAC again, the old decision holds, once."""
    world = World()
    world.fire()
    before, mac = world.view(), world.link().mac
    with_mac(world, OTHER_MAC)
    world.boot()
    assert world.view().reason == "adopted"
    with_mac(world, mac)
    world.run(0.2)
    assert (world.view().reason, world.view().since_wall_ns) == ("sustained", before.since_wall_ns)
    assert [decision.mac for decision in world.disk.decisions] == [mac]
    world.boot()
    assert (world.view().reason, world.view().since_wall_ns) == ("sustained", before.since_wall_ns)
