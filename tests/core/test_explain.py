"""Explanations: the four conditions in words, from a trail or from a firing's figures, and what would lift a limit."""

from __future__ import annotations

from dataclasses import replace

from limiterd.core.explain import of_firing, of_trail, what_lifts
from limiterd.core.model import SECOND, Detect, LinkView, Phase, Release, ReleaseMode

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
