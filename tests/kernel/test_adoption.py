"""What a restarted daemon makes of a limit that stands in the kernel: in every mix of changes and with or without its journal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from limiterd.core.model import (
    Detect,
    Journal,
    Lifeline,
    Limit,
    Link,
    Match,
    Override,
    OverrideAction,
    Phase,
    Policy,
    PolicyMode,
)
from limiterd.core.ports import TcPort
from limiterd.core.status import DaemonInfo, build, frame
from limiterd.kernel.tc import TcKernel
from limiterd.sim.fake_kernel import FakeKernel
from limiterd.sim.netns import Pair, inside
from tests.driver import Driver, clocks

MBIT = 10**6
POLICY = Policy("fair-use", ("eth*",), detect=Detect(threshold_bps=1_000 * MBIT), limit=Limit(200 * MBIT))
RAISED = Override("REQ-1", ("eth0",), OverrideAction.LIMIT, None, "ops", "why", limit_bps=400 * MBIT)
EXEMPT = Override("REQ-1", ("eth0",), OverrideAction.EXEMPT, None, "ops", "why")

STAYS: dict[str, tuple[dict[str, Any], tuple[Override, ...], int]] = {
    "nothing": ({}, (), 200 * MBIT),
    "rate": ({"limit": Limit(300 * MBIT)}, (), 300 * MBIT),
    "lifeline": ({"limit": Limit(200 * MBIT, Lifeline(500_000, (Match(protocol="tcp", port=22),)))}, (), 200 * MBIT),
    "exempt": ({"limit": Limit(200 * MBIT, exempt=(Match(to="10.0.0.0/8"),))}, (), 200 * MBIT),
    "policy renamed": ({"name": "other"}, (), 200 * MBIT),
    "threshold": ({"detect": Detect(threshold_bps=5_000 * MBIT)}, (), 200 * MBIT),
    "override of the rate": ({}, (RAISED,), 400 * MBIT),
}
"""What was changed while no daemon ran: fields of the policy, overrides; and the rate that is due."""

GOES: dict[str, tuple[dict[str, Any], tuple[Override, ...]]] = {
    "unmatched": ({"interfaces": ("wlan*",)}, ()),
    "exempt override": ({}, (EXEMPT,)),
    "threshold override": ({}, (replace(RAISED, limit_bps=None, threshold_bps=2_000 * MBIT),)),
}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[TcPort, Link]]:
    """A kernel, in memory or real, and a link on it."""
    if request.param == "fake":
        kernel = FakeKernel()
        kernel.add_link(2)
        yield kernel, Link(2, "eth0", "02:00:00:00:00:02")
        return
    pair: Pair = request.getfixturevalue("pair")
    with inside(pair.near.namespace):
        real = TcKernel()
    with real:
        yield real, Link(pair.near.ifindex, "eth0", "02:00:00:00:00:02")


def held(place: tuple[TcPort, Link], *, journal: bool) -> Journal:
    """Let a first daemon put the limit on and end; what it leaves on disk."""
    first = Driver(*place, policy=POLICY)
    first.hold("eth0", 200 * MBIT)
    left = replace(first.state.journal(), same_boot=True)
    (decision,) = left.decisions
    return replace(left, decisions=(replace(decision, manual=False, rate_bps=None),)) if journal else Journal()


def phase(driver: Driver) -> tuple[Phase, int | None]:
    """What status says of the link."""
    shown = build(frame(driver.state, clocks(), driver.look(), None, DaemonInfo("0", 0)))
    return shown.links[0].phase, shown.links[0].limit_bps


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("change", STAYS)
@pytest.mark.parametrize("mtu", [1_500, 9_000])
def test_a_limit_stays_and_becomes_as_wanted(place: tuple[TcPort, Link], change: str, mtu: int, *, journal: bool) -> None:
    """The limit is adopted without a gap, whatever was changed meanwhile, and changed in place: the root is never deleted."""
    kernel, link = place
    left = held(place, journal=journal)
    fields, overrides, rate_bps = STAYS[change]
    (before,) = kernel.read([link.ifindex]).values()
    second = Driver(kernel, replace(link, mtu=mtu), policy=replace(POLICY, **fields), overrides=overrides, journal=left)
    assert phase(second) == (Phase.LIMITED, rate_bps)
    (after,) = kernel.read([link.ifindex]).values()
    assert after.stats.sent_packets >= before.stats.sent_packets
    assert second.state.counters.limits_released == {}
    assert second.state.counters.drift_repairs == {}


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("change", GOES)
def test_a_limit_goes_where_none_is_due_any_more(place: tuple[TcPort, Link], change: str, *, journal: bool) -> None:
    """Unmatched or lifted by an override meanwhile: released at the start, and the link's own root is back."""
    kernel, link = place
    (before,) = kernel.read([link.ifindex]).values()
    left = held(place, journal=journal)
    fields, overrides = GOES[change]
    second = Driver(kernel, link, policy=replace(POLICY, **fields), overrides=overrides, journal=left)
    second.until_free()
    (after,) = kernel.read([link.ifindex]).values()
    assert after.root == before.root
    assert second.state.journal().decisions == ()


@pytest.mark.parametrize("journal", [True, False])
def test_observe_leaves_it_until_an_operator_releases_it(place: tuple[TcPort, Link], *, journal: bool) -> None:
    """Observed meanwhile: the limit stays as it is, in fault; a release takes it, and the link's own root is back."""
    kernel, link = place
    (before,) = kernel.read([link.ifindex]).values()
    left = held(place, journal=journal)
    (limited,) = kernel.read([link.ifindex]).values()
    second = Driver(kernel, link, policy=replace(POLICY, mode=PolicyMode.OBSERVE), journal=left)
    assert phase(second) == (Phase.FAULT, None)
    (after,) = kernel.read([link.ifindex]).values()
    assert (after.root, after.tree) == (limited.root, limited.tree)
    second.release()
    second.until_free()
    (after,) = kernel.read([link.ifindex]).values()
    assert after.root == before.root
    assert second.state.journal().decisions == ()
