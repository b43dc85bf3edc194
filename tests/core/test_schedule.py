"""What is told of overrides as time goes by: why each ends, and when its end is near. And of the limits of absent links."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limiterd.core.commands import release_all
from limiterd.core.model import DAY, HOUR, SECOND, EventKind, Override, OverrideAction
from limiterd.daemon.event_log import sentence
from tests.world import START, World, rules_of

RECORD = Override("A", ("eth0",), OverrideAction.EXEMPT, START.wall_ns + 10 * SECOND, "ops", "why")
ENDLESS = replace(RECORD, expires_wall_ns=None)
OTHER = replace(ENDLESS, id="B")


def ends(world: World) -> list[tuple[str, object]]:
    """Each end that was told: of which record, and why."""
    return [(event.reason, event.detail["cause"]) for event in world.events if event.kind is EventKind.OVERRIDE_ENDED]


@pytest.mark.parametrize(
    ("record", "then", "cause", "said"),
    [
        (RECORD, (RECORD,), "expired", "override A has expired"),
        (ENDLESS, (), "withdrawn", "override A was withdrawn"),
        (ENDLESS, (ENDLESS, OTHER), "replaced", "override A gives way to override B"),
        (ENDLESS, (replace(ENDLESS, reason="better"),), "changed", "override A was changed"),
        (ENDLESS, (replace(ENDLESS, interfaces=("lan0",)),), "unmatched", "override A matches no more"),
        (ENDLESS, (replace(ENDLESS, interfaces=("lan0",)), OTHER), "replaced", "override A gives way to override B"),
    ],
)
def test_the_end_of_an_override_is_told_with_its_cause(
    record: Override, then: tuple[Override, ...], cause: str, said: str
) -> None:
    """An end says whether the record expired, was withdrawn, changed, replaced by another, or no longer matches."""
    world = World(rules_of(overrides=[record]))
    world.run(0.2)
    if cause == "expired":
        world.run(11)
    else:
        world.reload(rules_of(overrides=then))
    assert ends(world) == [("A", cause)]
    assert [sentence(event)[1] for event in world.events if event.kind is EventKind.OVERRIDE_ENDED] == [said]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"interfaces": ("lan0",)}, [("A", "expired")]), ({"interfaces": ("lan0",), "hosts": ("elsewhere",)}, [])],
)
def test_an_expiry_without_any_link_is_told_once(change: dict[str, object], told: list[tuple[str, str]]) -> None:
    """A record of this host that applied to no link: its expiry is told all the same, once; another host's is not."""
    world = World(rules_of(overrides=[replace(RECORD, **change), replace(ENDLESS, id="C")]))  # type: ignore[arg-type]  # fields by name
    world.run(11)
    assert ends(world) == told
    world.pass_time(0, wall_ns=-30 * SECOND)
    world.run(0.3)
    assert ends(world) == told


def test_what_had_expired_before_the_start_is_not_told() -> None:
    """Only what ends while the daemon watches is told."""
    world = World(rules_of(overrides=[replace(RECORD, expires_wall_ns=START.wall_ns - SECOND)]))
    world.run(1)
    assert ends(world) == []


def test_one_reminder_where_several_are_due() -> None:
    """Started half an hour before an end: one reminder, though both notices have passed; the next start reminds again."""
    world = World(rules_of(overrides=[replace(RECORD, expires_wall_ns=START.wall_ns + HOUR // 2)]))
    world.run(1)
    assert len(world.told(EventKind.OVERRIDE_EXPIRING)) == 1
    world.boot()
    world.run(1)
    assert len(world.told(EventKind.OVERRIDE_EXPIRING)) == 2


def test_a_new_record_is_not_called_to_mind_at_once() -> None:
    """Who approves half an hour knows its end; a record for two hours is called to mind after one, a renewed one again."""
    world = World(rules_of())
    world.run(0.2)
    short, longer = (
        replace(RECORD, id=name, expires_wall_ns=START.wall_ns + span) for name, span in (("S", HOUR // 2), ("L", 2 * HOUR))
    )
    world.reload(rules_of(overrides=[short, longer, replace(ENDLESS, id="E")]))
    world.run(1)
    assert world.told(EventKind.OVERRIDE_EXPIRING) == []
    world.pass_time(0, wall_ns=HOUR + SECOND)
    world.run(0.3)
    assert world.told(EventKind.OVERRIDE_EXPIRING) == [(EventKind.OVERRIDE_EXPIRING, "L")]
    (notice,) = (event for event in world.events if event.kind is EventKind.OVERRIDE_EXPIRING)
    assert sentence(notice) == ("warning", "override L expires in 1h; renew it or inform its owner")
    renewed = replace(longer, expires_wall_ns=START.wall_ns + 2 * DAY)
    world.reload(rules_of(overrides=[renewed]))
    world.pass_time(0, wall_ns=DAY)
    world.run(0.3)
    assert world.told(EventKind.OVERRIDE_EXPIRING)[1:] == [(EventKind.OVERRIDE_EXPIRING, "L")]


def test_release_all_is_told_even_of_links_that_are_away() -> None:
    """Everything is released: one event for the command, one for each link, a link that is away included; nothing comes back."""
    world = World()
    world.limit()
    mac = world.link().mac
    world.remove("eth0")
    world.run(0.3)
    world.command(lambda state, now: release_all(state, now, reason="done", by="root"))
    released = [event for event in world.events if event.kind in (EventKind.RELEASING, EventKind.RELEASED)]
    assert [(event.kind, event.interface) for event in released] == [(EventKind.RELEASING, ""), (EventKind.RELEASED, "eth0")]
    assert sentence(released[0])[1] == "release of everything asked for by root (done)"
    assert sentence(released[1])[1] == "not limited any more when it returns: released by root (done)"
    world.add(7, "eth0", mac=mac)
    world.run(0.3)
    assert world.rate() is None


def test_reminders_of_records_that_are_gone_do_not_add_up() -> None:
    """Records that come and go all day leave nothing behind."""
    world = World()
    for number in range(20):
        world.reload(
            rules_of(overrides=[Override(f"R-{number}", ("eth0",), OverrideAction.EXEMPT, world.now.wall_ns + HOUR, "o", "w")])
        )
    assert {identifier for identifier, _ in world.state.expiry_told} == {"R-19"}
