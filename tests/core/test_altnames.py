"""Altnames are names of a link wherever one is written: policies, exclusions, overrides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limiterd.core.commands import where_to_look
from limiterd.core.model import EventKind, Override, OverrideAction, Phase
from limiterd.core.policy import matches, override_for
from limiterd.core.status import build
from tests.world import POLICY, World, rules_of

OTHER = "enp3s0"


def named(world: World, *altnames: str, link: str = "eth0") -> None:
    """A link has these altnames from now on."""
    world.links = tuple(replace(one, altnames=altnames) if one.name == link else one for one in world.links)
    world.tick()


def override(identifier: str, *interfaces: str) -> Override:
    """A record that exempts."""
    return Override(identifier, interfaces, OverrideAction.EXEMPT, None, "ops", "why")


@pytest.mark.parametrize(
    ("entries", "matched"),
    [((OTHER,), True), (("enp*",), True), (("eth*", f"!{OTHER}"), False), (("eth*", "!enp*"), False), (("lan*",), False)],
)
def test_any_name_matches_and_any_excludes(entries: tuple[str, ...], *, matched: bool) -> None:
    """Globs and names, wanted and excluded."""
    assert matches(entries, "eth0", (OTHER,)) is matched


def test_a_policy_by_altname_watches_and_limits() -> None:
    """The link is watched under its own name, and is not called absent under the other."""
    world = World(rules_of(replace(POLICY, interfaces=(OTHER,))))
    assert world.view(OTHER).phase is Phase.ABSENT
    named(world, OTHER)
    assert [(view.interface, view.altnames) for view in build(world.frame()).links] == [("eth0", (OTHER,))]
    world.fire()
    assert world.view().phase is Phase.LIMITED


def test_an_exclusion_by_altname_lifts() -> None:
    """A limited link gets a name that the policy excludes: the limit goes; it loses the name: watched again."""
    world = World(rules_of(replace(POLICY, interfaces=("eth*", f"!{OTHER}"))))
    world.fire()
    named(world, OTHER)
    world.run(1, {"eth0": 0})
    assert world.told(EventKind.RELEASED) == [(EventKind.RELEASED, "policy")]
    assert build(world.frame()).links == ()
    named(world)
    assert world.view().phase is Phase.CONFORMING


def test_an_override_by_altname_applies_and_is_exact() -> None:
    """It wins over a glob as the link's own name would, and status shows on which link it is in force."""
    records = (override("by-glob", "eth*"), override("by-altname", OTHER))
    winner = override_for(rules_of(overrides=records), "eth0", 0, (OTHER,))
    assert winner is not None
    assert winner.id == "by-altname"
    world = World(rules_of(overrides=records[1:]))
    assert world.view().phase is Phase.CONFORMING
    named(world, OTHER)
    assert world.view().phase is Phase.EXEMPT
    assert [view.effective for view in build(world.frame()).overrides] == [("eth0",)]


def test_a_name_with_its_peer_gets_a_hint() -> None:
    """What `ip link` prints is no name."""
    assert "say eth7" in where_to_look("eth7@if2")
    assert "status" in where_to_look("eth7")
