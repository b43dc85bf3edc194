"""What status and events hold, to the letter: scripts and dashboards read these words."""

from __future__ import annotations

from typing import Any

import pytest

from limiterd.core.commands import pause, release_all, resume
from limiterd.core.model import EventKind
from limiterd.core.status import build, document
from tests.world import MBIT, World

LINK = [
    "interface",
    "ifindex",
    "policy",
    "mode",
    "phase",
    "rate_bps",
    "pending_seconds",
    "limit_bps",
    "since",
    "reason",
    "override",
    "strikes",
    "tx_bytes",
    "threshold_bps",
    "window_s",
    "policy_limit_bps",
    "limit_wanted_bps",
    "manual",
    "note",
    "by",
    "release",
    "exempt_bps",
    "altnames",
    "lower",
    "upper",
    "counter_refresh_s",
    "bypass_bps",
    "shaped",
]


def test_a_links_keys_and_what_they_hold() -> None:
    """Each key of a limited link's row, with the figures of that link and of no other."""
    world = World()
    world.fire()
    world.run(1, {"eth0": 50 * MBIT})
    rows: Any = document(build(world.frame()))["links"]
    (row,) = rows
    assert set(LINK) <= set(row)  # fields may be added, not renamed
    assert (row["interface"], row["ifindex"], row["policy"], row["mode"], row["phase"]) == (
        "eth0",
        2,
        "fair-use",
        "enforce",
        "limited",
    )
    assert (row["limit_bps"], row["policy_limit_bps"], row["threshold_bps"], row["window_s"]) == (
        20 * MBIT,
        20 * MBIT,
        100 * MBIT,
        2.0,
    )
    assert (row["reason"], row["override"], row["strikes"], row["manual"]) == ("sustained", None, 1, False)
    assert list(row["shaped"]) == ["sent_bytes", "drops", "overlimits", "backlog_bytes"]
    assert row["shaped"]["sent_bytes"] > 0


def test_releasing_all_tells_each_link_why_and_by_whom() -> None:
    """One event for the order, one for each link: all with the operator's reason and name."""
    world = World()
    world.fire()
    world.command(lambda state, now: release_all(state, now, reason="maintenance", by="alice"))
    told = [event for event in world.events if event.kind is EventKind.RELEASING]
    assert [(e.interface, str(e.reason), e.detail["note"], e.detail["by"]) for e in told] == [
        ("", "operator", "maintenance", "alice"),
        ("eth0", "operator", "maintenance", "alice"),
    ]


@pytest.mark.parametrize("kind", [EventKind.PAUSED, EventKind.RESUMED])
def test_a_pause_is_told_with_its_note_alone(kind: EventKind) -> None:
    """No link, no reason of the engine's own; the operator's words and name."""
    world = World()
    world.command(lambda state, now: pause(state, now, reason="night work", by="bob"))
    world.command(lambda state, now: resume(state, now, reason="night work", by="bob"))
    (event,) = [event for event in world.events if event.kind is kind]
    assert (event.interface, event.reason, event.policy) == ("", "", "")
    assert (event.detail["note"], event.detail["by"]) == ("night work", "bob")
