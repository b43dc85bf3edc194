"""What a crash leaves behind, played to the whole daemon on the in-memory kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limiterd.core.model import Action, ActionKind, ForeignQdisc, Journal, RootQdisc, SavedQdisc
from tests.world import POLICY, World, rules_of

PFIFO = RootQdisc("pfifo", 0x50000, b"\x00\x00\x00\x4d")
OTHER = RootQdisc("pfifo", 0x60000, b"\x00\x00\x00\x07")


def crashed(standing: RootQdisc | None) -> World:
    """A link that was taken over and released; the daemon died before it noted that, with this root standing."""
    world = World(rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER)))
    if standing is not None:
        world.kernel.apply([Action(ActionKind.RESTORE_ROOT, world.link().ifindex, "eth0", standing)])
    world.disk = Journal(replaced=(SavedQdisc("eth0", world.link().mac, PFIFO),))
    world.boot()
    world.run(1)
    return world


def test_a_root_that_was_not_put_back_is_owed() -> None:
    """Crash between our root's end and the restore of a taken-over qdisc: the next start puts it back, as it was."""
    world = crashed(None)
    assert world.kernel.roots()[world.link().ifindex] == PFIFO
    assert world.disk == Journal()
    assert world.state.limit_states == {}


@pytest.mark.parametrize("standing", [PFIFO, OTHER])
def test_a_root_that_stands_is_left_alone(standing: RootQdisc) -> None:
    """Crash after the restore, or somebody's own root meanwhile: left alone, nothing is owed, the next takeover works."""
    world = crashed(standing)
    assert world.kernel.roots()[world.link().ifindex] == standing
    assert world.disk == Journal()
    world.limit()
    assert world.rate() is not None
    world.release()
    world.run(1)
    assert world.kernel.roots()[world.link().ifindex] == standing


@pytest.mark.parametrize("change", ["name", "MAC"])
def test_a_taken_over_root_follows_its_link(change: str) -> None:
    """Link with a taken-over root renamed, or given another MAC: at the release the root is put back as it was."""
    world = World(rules_of(replace(POLICY, foreign_qdisc=ForeignQdisc.TAKEOVER)))
    world.kernel.apply([Action(ActionKind.RESTORE_ROOT, world.link().ifindex, "eth0", PFIFO)])
    world.limit()
    name = "eth1" if change == "name" else "eth0"
    if change == "name":
        world.rename("eth0", "eth1")
    else:
        world.links = tuple(replace(link, mac="02:00:00:00:00:99") for link in world.links)
    world.run(1)
    assert world.rate(name) is not None
    world.boot()
    world.run(1)
    world.release(name)
    world.run(1)
    assert world.kernel.roots()[world.link(name).ifindex] == PFIFO
    assert world.disk.replaced == ()
