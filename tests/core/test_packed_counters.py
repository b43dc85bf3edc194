"""Lanes against their definition: which positions rose by the floor, taken one by one."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.packed_counters import PackedCounters

EDGES = (0, 1, 2**30, 2**31 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70)
COUNTERS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 5000), st.sampled_from(EDGES))
FLOORS = st.one_of(st.integers(0, 6000), st.sampled_from((*EDGES, 12_500_000)))
ROWS = st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(COUNTERS, min_size=n, max_size=n), min_size=2, max_size=4))


def view(counters: Sequence[int]) -> memoryview[int]:
    """The same counters as a sampler hands them out."""
    return memoryview(array("Q", counters))


@given(ROWS, FLOORS, st.data())
def test_what_rose_by_the_floor_is_found(rows: list[list[int]], floor: int, data: st.DataObject) -> None:
    """Every watched position that rose by the floor, none that rose by less than fifteen sixteenths of it or is not watched."""
    positions = range(len(rows[0]))
    watched = data.draw(st.sets(st.sampled_from(positions)))
    lanes, packed = PackedCounters(len(rows[0]), watched), PackedCounters(len(rows[0]), watched)
    assert lanes.take(rows[0]) is None
    packed.take(rows[0])
    for before, now in pairwise(rows):
        found = lanes.take(now, floor)
        assert packed.take(view(now) if max(now) < 2**64 else now, floor) == found
        rose = [b - a for a, b in zip(before, now, strict=True)]
        if min(rose) < 0 or max(*before, *now) >= 2**63:
            exact = max(before) < 2**63 and max(now) < 2**64 and min(rose) >= 0 and max(rose) < 2**63
            assert (found is not None) == exact
        else:
            assert found is not None
        if found is not None:
            assert {i for i in watched if rose[i] >= floor} <= set(found) <= {i for i in watched if 16 * rose[i] >= 15 * floor}


@pytest.mark.parametrize("back", [0, 1, 2])
def test_one_counter_that_went_back_silences_all(back: int) -> None:
    """Its borrow would have spoilt its neighbour's difference: nothing is said, and the next snapshot counts again."""
    lanes = PackedCounters(3, range(3))
    before = [2**40, 2**40, 2**40]
    lanes.take(before)
    now = [c + 1000 for c in before]
    now[back] = before[back] - 1
    assert lanes.take(now, 1000) is None
    assert lanes.take([c + 1000 for c in now], 1000) == (0, 1, 2)


def test_no_links_are_no_trouble() -> None:
    """An empty snapshot follows an empty one."""
    lanes = PackedCounters(0, ())
    assert lanes.take(()) is None
    assert lanes.take((), 5) == ()
