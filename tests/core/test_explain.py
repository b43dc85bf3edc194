"""Explanations: the four conditions in words, from a trail or from a firing's figures, and what would lift a limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limiterd.core.explain import caused, of_firing, of_trail, what_lifts, what_to_do
from limiterd.core.model import SECOND, Detect, Fault, FaultReason, LinkView, Phase, Release, ReleaseMode
from limiterd.core.units import parse_wall

GBIT_BYTES = 125_000_000
TRAIL = tuple((t * SECOND // 10, t * GBIT_BYTES // 8) for t in range(110))
VIEW = LinkView("eth0", 2, "fair-use", "enforce", Phase.LIMITED, 0, 0, since_wall_ns=0, strikes=1, release="auto")


def test_a_trail_that_meets_the_rule() -> None:
    """10.9 s at 1.25 Gbit/s holds all four conditions, in the figures' own units."""
    conditions = {c.name: c for c in of_trail(Detect(), TRAIL)}
    assert all(c.holds for c in conditions.values())
    assert conditions["length"].now == "10.9s"
    assert conditions["mean"].document() == {"name": "mean", "holds": True, "is": "1.25gbit", "needs": "at least 1gbit"}


def test_a_short_trail_lacks_length_and_slices() -> None:
    """Half a second is too short, and no slice can be judged yet; a single sample says nothing."""
    conditions = {c.name: c for c in of_trail(Detect(), TRAIL[:6])}
    assert not conditions["length"].holds
    assert conditions["floor"].now == "no full slice yet"
    assert of_trail(Detect(), TRAIL[:1]) == ()


def test_a_dip_breaks_the_floor() -> None:
    """A second below 80 % shows as the lowest slice."""
    dipped = (*TRAIL[:20], *((t + 2 * SECOND, c) for t, c in TRAIL[20:40]))
    conditions = {c.name: c for c in of_trail(Detect(), dipped)}
    assert not conditions["floor"].holds


def test_equal_stamps_are_no_rate() -> None:
    """Two samples of one instant make no rate, and no error."""
    assert of_trail(Detect(), ((5, 0), (5, 9)))[2].now == "0bit"


def test_a_firing_tells_from_its_figures() -> None:
    """The figures of an event are enough; anything else gives no conditions."""
    figures = {
        "first_flank_bps": 10**9,
        "last_flank_bps": 10**9,
        "span_ns": 10 * SECOND,
        "mean_bps": 10**9,
        "lowest_slice_bps": 9 * 10**8,
    }
    assert [c.holds for c in of_firing(Detect(), figures)] == [True] * 4
    assert of_firing(Detect(), {"mean_bps": 1}) == ()
    assert of_firing(Detect(), {**figures, "lowest_slice_bps": "?"}) == ()


def test_what_lifts() -> None:
    """Approval: a request or a hand. Auto: by itself too. By hand: only a hand or an override. Not limited: nothing."""
    assert len(what_lifts(VIEW, Release())) == 2
    assert "by itself" in what_lifts(VIEW, Release(mode=ReleaseMode.AUTO))[0]
    assert "set by hand" in what_lifts(replace(VIEW, manual=True), Release())[0]
    assert what_lifts(replace(VIEW, phase=Phase.PENDING), Release()) == ()


def test_a_trail_does_not_invent_its_first_flank() -> None:
    """The interval before the candidate is not in the trail: it is known to have held, and no figure is shown for it."""
    slow = ((0, 0), (10**8, 1_000), (2 * 10**8, 2_000))
    flanks = of_trail(Detect(), slow)[0]
    assert not flanks.holds
    assert flanks.now == "the first interval held, last 80kbit"


def test_a_firing_is_judged_by_its_own_threshold() -> None:
    """A reload that moved the threshold since does not turn what held into what does not."""
    figures = {
        "first_flank_bps": 10**9,
        "last_flank_bps": 10**9,
        "span_ns": 10 * SECOND,
        "mean_bps": 10**9,
        "lowest_slice_bps": 9 * 10**8,
        "threshold_bps": 10**9,
        "window_ns": 10 * SECOND,
    }
    changed = Detect(threshold_bps=5 * 10**9, window_ns=60 * SECOND)
    conditions = of_firing(changed, figures)
    assert conditions[1].needs == "at least 10s"
    assert conditions[2].holds


def test_a_firing_explains_the_limit_that_it_caused() -> None:
    """The cause of a limit by policy is the firing told since; not an earlier one, not of a hand's limit, not a noted one."""
    view = replace(VIEW, since_wall_ns=parse_wall("2026-11-23T12:00:00.250900Z"), reason="sustained")
    told = {"kind": "limit", "at": "2026-11-23T12:00:00.250Z", "reason": "sustained"}
    assert caused(view, told)
    assert caused(replace(view, phase=Phase.FAULT, reason="guard"), told)
    assert not caused(view, {**told, "at": "2026-11-23T11:59:59.000Z"})
    assert not caused(view, {**told, "kind": "noted"})
    assert not caused(replace(view, manual=True, reason="operator"), told)
    assert not caused(replace(view, reason="adopted"), told)
    assert not caused(replace(view, phase=Phase.PENDING), told)
    assert not caused(replace(view, since_wall_ns=None), told)


@pytest.mark.parametrize("reason", FaultReason)
def test_each_fault_of_a_link_comes_with_what_to_do(reason: FaultReason) -> None:
    """Every reason has its steps, in the link's name, and says that limiterd goes on trying; a warning has the steps alone."""
    ways = what_to_do(Fault("eth7", reason, "…", 0), Phase.FAULT)
    assert ("10 s after the last excess" if reason is FaultReason.BYPASS else "tries again") in ways[-1]
    assert what_to_do(Fault("eth7", reason, "…", 0, warning=True), Phase.CONFORMING) == ways[:-1]
    assert "{link}" not in "".join(ways)
    assert what_to_do(Fault("", reason, "…", 0), Phase.FAULT) == ()


def test_nobody_is_told_to_delete_a_limit() -> None:
    """A foreign root is to be deleted where nobody needs it; what is foreign inside a standing limit is to be looked at."""
    foreign = Fault("eth7", FaultReason.FOREIGN_QDISC, "…", 0)
    assert "tc qdisc del dev eth7 root" in "".join(what_to_do(foreign, Phase.FAULT))
    assert "tc qdisc del" not in "".join(what_to_do(foreign, Phase.LIMITED))
