"""The detector's handling of many links: what is watched, rests, returns, changes; and what it costs to remember them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from dataclasses import replace

import pytest

from limiterd.core.detector import Detector, Outcome
from limiterd.core.meter import rate_bps
from limiterd.core.model import Detect, EpochReason, Guard, GuardMode, Link, Reason, Sampling, Snapshot
from tests.core.streams import UNGUARDED

TENTH = 10**8
FULL = 12_500_000
DETECT = Detect(window_ns=10 * TENTH, slice_ns=2 * TENTH, guard=UNGUARDED)


class Fleet:
    """Feeds a detector with links that all send the same per tick."""

    def __init__(self, *names: str, sampling: Sampling | None = None, detect: Detect = DETECT) -> None:
        self.detector = Detector(sampling or Sampling())
        self.links = tuple(Link(i, name) for i, name in enumerate(names, 2))
        self.counters = dict.fromkeys(names, 0)
        self.t_ns = 10**12
        for name in names:
            self.detector.watch(name, detect)

    def tick(self, sent: int | Mapping[str, int] = 0, *, step_ns: int = TENTH) -> Outcome:
        """One interval in which each link sends so many bytes."""
        self.t_ns += step_ns
        for link in self.links:
            more = sent if isinstance(sent, int) else sent.get(link.name, 0)
            self.counters[link.name] = self.counters.get(link.name, 0) + more
        counters = [self.counters[link.name] for link in self.links]
        return self.detector.update(Snapshot(self.t_ns, self.links, counters))

    def ticks(self, count: int, sent: int | Mapping[str, int] = 0) -> list[tuple[int, str, Reason]]:
        """That many ticks; (number, name, reason) of each firing."""
        outcomes = [self.tick(sent) for _ in range(count)]
        return [(n, link.name, f.reason) for n, outcome in enumerate(outcomes, 1) for link, f in outcome.firings]


def epochs(outcome: Outcome) -> dict[str, EpochReason]:
    """Epochs by name."""
    return {link.name: reason for link, reason in outcome.epochs}


def test_only_watched_links_are_judged() -> None:
    """Links that nobody watches stand in every snapshot and are passed over."""
    fleet = Fleet("eth0", "eth1")
    fleet.links = (Link(1, "lo"), *fleet.links, Link(9, "docker0"))
    assert epochs(fleet.tick(FULL)) == {"eth0": EpochReason.NEW, "eth1": EpochReason.NEW}
    assert {name for _, name, _ in fleet.ticks(12, FULL)} == {"eth0", "eth1"}
    assert fleet.detector.trail("lo") == ()


def test_nothing_watched_is_nothing_done() -> None:
    """A detector without links takes any snapshot, and one without any link too."""
    detector = Detector(Sampling())
    assert detector.update(Snapshot(5, (Link(1, "lo"),), [7])) == Outcome()
    assert detector.update(Snapshot(6, (), [])) == Outcome()
    assert detector.pending() == {}


def test_a_firing_carries_its_figures() -> None:
    """The mean's bounds, both flanks, the peak, the lowest slice, the excess and the samples are those of the window."""
    fleet = Fleet("eth0")
    fleet.tick()
    sizes = [FULL * 2] + [FULL, FULL * 3] * 5 + [FULL + 80]
    outcomes = [fleet.tick(size) for size in sizes]
    [(link, firing)] = outcomes[-1].firings
    assert link.name == "eth0"
    assert (firing.reason, firing.t_ns, firing.threshold_bps) == (Reason.SUSTAINED, fleet.t_ns, 10**9)
    assert (firing.a_t_ns, firing.b_t_ns) == (fleet.t_ns - 11 * TENTH, fleet.t_ns - TENTH)
    assert (firing.mean_bps, firing.peak_bps) == (2 * 10**9, 3 * 10**9)
    assert (firing.first_flank_bps, firing.last_flank_bps) == (2 * 10**9, 10**9 + 6400)
    assert firing.lowest_slice_bps == 2 * 10**9
    assert firing.excess_bits == 10**9
    assert len(firing.samples) == 12
    assert firing.samples[-1] == (fleet.t_ns, fleet.counters["eth0"])
    assert all(not outcome.firings for outcome in outcomes[:-1])


def test_a_guard_s_firing_carries_its_level() -> None:
    """The guard has no window: both bounds are its sample, no slice was checked, the excess is the bucket's level."""
    for mode in (GuardMode.OBSERVE, GuardMode.ENFORCE):
        fleet = Fleet("eth0", detect=replace(DETECT, guard=Guard(mode, 10**8)))
        fleet.tick()
        assert fleet.tick(2 * FULL).firings == ()
        outcome = fleet.tick(3 * FULL)
        [(_, firing)] = outcome.noted if mode is GuardMode.OBSERVE else outcome.firings
        assert (firing.reason, firing.a_t_ns, firing.b_t_ns) == (Reason.GUARD, fleet.t_ns, fleet.t_ns)
        assert (firing.lowest_slice_bps, firing.excess_bits) == (None, 3 * 10**8)
        assert (firing.first_flank_bps, firing.last_flank_bps, firing.mean_bps) == (2 * 10**9, 3 * 10**9, 25 * 10**8)
        assert fleet.detector.pending() == ({"eth0": TENTH} if mode is GuardMode.OBSERVE else {})


def test_a_guard_overflow_of_a_cold_link_shows_its_one_interval() -> None:
    """Where a single interval overflows the bucket the samples are its two ends."""
    fleet = Fleet("eth0", detect=replace(DETECT, guard=Guard(GuardMode.ENFORCE, 1)))
    fleet.tick()
    [(_, firing)] = fleet.tick(2 * FULL).firings
    assert firing.samples == ((fleet.t_ns - TENTH, 0), (fleet.t_ns, 2 * FULL))


def test_an_equal_detect_changes_nothing_and_another_starts_afresh() -> None:
    """watch() with equal parameters keeps the history; with others the next sample is a baseline by reload."""
    fleet = Fleet("eth0", "eth1")
    fleet.ticks(6, FULL)
    before = fleet.detector.pending()
    fleet.detector.watch("eth0", replace(DETECT))
    assert fleet.detector.pending() == before
    fleet.detector.watch("eth0", replace(DETECT, threshold_bps=9 * 10**8))
    assert set(fleet.detector.pending()) == {"eth1"}
    assert fleet.detector.trail("eth0") == ()
    assert epochs(fleet.tick(FULL)) == {"eth0": EpochReason.RELOAD}
    assert fleet.ticks(12, FULL) == [(6, "eth1", Reason.SUSTAINED), (12, "eth0", Reason.SUSTAINED)]


def test_a_link_changed_before_it_was_seen_is_new() -> None:
    """Parameters that change before the first sample leave it the first."""
    fleet = Fleet("eth0")
    fleet.detector.watch("eth0", replace(DETECT, threshold_bps=10**8))
    fleet.detector.resume("eth0", EpochReason.RELEASED)
    assert epochs(fleet.tick()) == {"eth0": EpochReason.NEW}


def test_parameters_that_are_no_rule_are_refused() -> None:
    """The config's checks forbid them; the detector's memory argument needs slice ≤ window."""
    for wrong in (
        replace(DETECT, slice_ns=11 * TENTH),
        replace(DETECT, slice_ns=0),
        replace(DETECT, threshold_bps=-1),
        replace(DETECT, floor_ppm=-1),
    ):
        with pytest.raises(ValueError, match="not a rule"):
            Detector(Sampling()).watch("eth0", wrong)


def test_a_resting_link_gives_no_evidence_and_counts_no_epoch() -> None:
    """While a link rests nothing of it is judged, counted or remembered; a resume begins afresh under its reason."""
    fleet = Fleet("eth0", "eth1")
    fleet.ticks(6, FULL)
    fleet.detector.rest("eth0")
    assert set(fleet.detector.pending()) == {"eth1"}
    assert fleet.detector.trail("eth0") == ()
    fleet.counters["eth0"] = 5
    fleet.links = (replace(fleet.links[0], ifindex=77), fleet.links[1])
    assert fleet.tick(FULL) == Outcome()
    fleet.detector.watch("eth0", replace(DETECT, threshold_bps=9 * 10**8))
    assert fleet.tick(FULL).epochs == ()
    assert {name for _, name, _ in fleet.ticks(30, FULL)} == {"eth1"}
    fleet.detector.resume("eth0", EpochReason.RELEASED)
    outcome = fleet.tick(FULL)
    assert epochs(outcome) == {"eth0": EpochReason.RELEASED}
    assert (12, "eth0", Reason.SUSTAINED) in fleet.ticks(12, FULL)


def test_a_link_that_rests_from_the_start_resumes_under_the_given_reason() -> None:
    """A limit adopted at start: the link's samples before the release are nobody's."""
    fleet = Fleet("eth0")
    fleet.detector.rest("eth0")
    assert fleet.tick(FULL) == Outcome()
    assert fleet.tick(FULL) == Outcome()
    fleet.detector.resume("eth0", EpochReason.RELEASED)
    assert epochs(fleet.tick(FULL)) == {"eth0": EpochReason.RELEASED}


def test_a_link_that_was_absent_goes_on_where_the_gap_allows() -> None:
    """A name missing from some snapshots keeps its last kept sample: gap, ifindex and counter decide on its return."""
    fleet = Fleet("eth0", "eth1")
    fleet.ticks(6, FULL)
    both, only = fleet.links, fleet.links[1:]
    fleet.links = only
    fleet.tick(FULL)
    fleet.tick(FULL)
    assert "eth0" in fleet.detector.pending()
    assert fleet.detector.trail("eth0")[-1][0] == fleet.t_ns - 2 * TENTH
    fleet.links = both
    fleet.counters["eth0"] += 2 * FULL
    assert fleet.tick(FULL).epochs == ()
    assert fleet.ticks(4, FULL) == [(4, "eth0", Reason.SUSTAINED), (4, "eth1", Reason.SUSTAINED)]
    fleet.links = only
    fleet.ticks(31)
    fleet.links = both
    assert epochs(fleet.tick()) == {"eth0": EpochReason.GAP}


def test_a_link_made_anew_is_new_and_a_renamed_one_too() -> None:
    """The same ifindex born again is new; the same name with another ifindex is that; a name is its own stream."""
    fleet = Fleet("eth0", "eth1")
    fleet.tick()
    eth0, eth1 = fleet.links
    fleet.links = (replace(eth0, incarnation=1), replace(eth1, ifindex=9))
    assert epochs(fleet.tick()) == {"eth0": EpochReason.NEW, "eth1": EpochReason.IFINDEX}
    fleet.detector.watch("lan0", DETECT)
    fleet.links = (replace(eth0, incarnation=1, name="lan0"), replace(eth1, ifindex=9, mtu=9000))
    assert epochs(fleet.tick()) == {"lan0": EpochReason.NEW}


def test_a_forgotten_link_starts_over() -> None:
    """forget() leaves nothing: watched again, its next sample is new, whether it was there all the time or not."""
    fleet = Fleet("eth0", "eth1")
    fleet.ticks(6, FULL)
    fleet.detector.forget("eth0")
    assert fleet.detector.trail("eth0") == ()
    assert fleet.tick(FULL).epochs == ()
    fleet.detector.watch("eth0", DETECT)
    assert epochs(fleet.tick(FULL)) == {"eth0": EpochReason.NEW}
    fleet.links = fleet.links[1:]
    fleet.tick()
    fleet.detector.forget("eth0")
    fleet.detector.forget("never-seen")
    fleet.detector.watch("eth0", DETECT)
    fleet.links = (Link(2, "eth0"), *fleet.links)
    assert epochs(fleet.tick()) == {"eth0": EpochReason.NEW}


def test_forgetting_and_watching_between_two_snapshots_starts_over() -> None:
    """A policy that lets go of a link and takes it back before the next tick continues nothing."""
    fleet = Fleet("eth0")
    fleet.ticks(6, FULL)
    fleet.detector.forget("eth0")
    fleet.detector.watch("eth0", DETECT)
    assert epochs(fleet.tick(FULL)) == {"eth0": EpochReason.NEW}


def test_another_max_gap_starts_every_link_afresh() -> None:
    """A reload of max_gap is a fresh epoch for the links that do not rest; one of the interval is nothing to the rule."""
    fleet = Fleet("eth0", "eth1", "eth2")
    fleet.ticks(6, FULL)
    fleet.detector.rest("eth2")
    fleet.detector.set_sampling(Sampling(interval_ns=5 * TENTH))
    assert set(fleet.detector.pending()) == {"eth0", "eth1"}
    fleet.detector.set_sampling(Sampling(max_gap_ns=10**9))
    assert fleet.detector.pending() == {}
    assert epochs(fleet.tick(FULL)) == {"eth0": EpochReason.RELOAD, "eth1": EpochReason.RELOAD}
    assert epochs(fleet.tick(step_ns=10**9 + 1)) == {"eth0": EpochReason.GAP, "eth1": EpochReason.GAP}


def test_unrefreshed_counters_are_dropped_link_by_link() -> None:
    """With counter_refresh each link keeps its own last sample; drops of resting links are nobody's."""
    fleet = Fleet("eth0", "eth1", "eth2", sampling=Sampling(counter_refresh_ns=5 * TENTH))
    fleet.detector.rest("eth2")
    fleet.tick()
    outcome = fleet.tick({"eth0": FULL})
    assert (outcome.dropped, fleet.detector.trail("eth1")[0][0]) == (1, fleet.t_ns - TENTH)
    assert fleet.tick({"eth1": FULL}).dropped == 1
    assert [fleet.tick().dropped for _ in range(6)] == [2, 2, 2, 1, 1, 2]


def test_an_equal_stamp_drops_all_but_counters_that_went_back() -> None:
    """A snapshot that repeats the stamp says nothing, except that a counter started over."""
    fleet = Fleet("eth0", "eth1")
    fleet.ticks(3, FULL)
    fleet.counters["eth1"] = 0
    outcome = fleet.tick({"eth0": FULL}, step_ns=0)
    assert (outcome.dropped, epochs(outcome)) == (1, {"eth1": EpochReason.COUNTER})
    assert fleet.detector.trail("eth0")[-1] == (fleet.t_ns, 3 * FULL)


def test_the_link_seen_last_wins_a_doubled_name() -> None:
    """A table caught between two renames may show a name twice; one stream comes of it, and nothing breaks."""
    fleet = Fleet("eth0")
    fleet.links = (Link(2, "eth0"), Link(3, "eth0"))
    assert epochs(fleet.tick()) == {"eth0": EpochReason.NEW}
    assert fleet.tick().epochs == ()


def test_the_lowest_threshold_of_a_fleet_hides_nobody() -> None:
    """Links of very different thresholds fire each by its own."""
    fleet = Fleet("slow", "fast")
    fleet.detector.watch("slow", replace(DETECT, threshold_bps=10**6))
    fleet.detector.watch("fast", replace(DETECT, threshold_bps=10**10))
    fleet.tick()
    assert fleet.ticks(12, {"slow": FULL // 1000, "fast": 10 * FULL}) == [
        (12, "slow", Reason.SUSTAINED),
        (12, "fast", Reason.SUSTAINED),
    ]
    assert fleet.ticks(12, {"slow": FULL // 1000 - 1, "fast": 10 * FULL - 1}) == []


def test_cold_links_keep_no_objects() -> None:
    """Ten thousand links that send a little cost columns of integers, far less than an object each."""
    fleet = Fleet(*(f"tap{i}" for i in range(10_000)))
    fleet.ticks(2, 1000)
    tracemalloc.start()
    try:
        fleet.ticks(10, 1000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fleet.detector.pending() == {}
    assert grown / 10_000 < 150  # the tick's own counters (two lists of pointers, one new integer a link)


def test_a_rate_over_no_time_is_none() -> None:
    """Figures for people never divide by zero."""
    assert (rate_bps(5, 0), rate_bps(1, 8)) == (0, 10**9)
