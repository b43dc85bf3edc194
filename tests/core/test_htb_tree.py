"""The shape of a limit: numbers the kernel keeps as they are, queues sized in time, and shares that add up."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.htb_tree import UNLIMITED_BPS, burst_bytes, burst_ticks, codel_us, tree_for, unlimited
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    LEAF_DEFAULT,
    LEAF_EXEMPT,
    LEAF_LIFELINE,
    HtbClass,
    KernelAbilities,
    Leaf,
    Lifeline,
    Limit,
    Link,
    Match,
    TcTree,
)

ETH0 = Link(2, "eth0")
EXEMPT = Limit(exempt=(Match(to="10.0.0.0/8"),))

rates_bps = st.integers(10**6, 4 * 10**11)
links = st.builds(
    Link,
    st.just(2),
    st.just("eth0"),
    mtu=st.integers(68, 65_535),
    gso_max_bytes=st.integers(0, 524_280),
)
limits = st.builds(Limit, lifeline=st.builds(Lifeline, st.integers(0, 10**6)), exempt=st.sampled_from([(), EXEMPT.exempt]))
abilities = st.builds(KernelAbilities, fq_codel=st.booleans(), u32=st.booleans())


def class_of(tree: TcTree, classid: int) -> HtbClass:
    """The class with this id."""
    return next(c for c in tree.classes if c.classid == classid)


def leaf_of(tree: TcTree, handle: int) -> Leaf:
    """The leaf with this handle."""
    return next(leaf for leaf in tree.leaves if leaf.handle == handle)


def test_the_usual_limit_reads_as_documented() -> None:
    """200 Mbit/s on an Ethernet link: 5 % for the lifeline first, the rest for all else, both free to borrow the whole."""
    tree = tree_for(Limit(), 200_000_000, ETH0, KernelAbilities())
    assert tree.default_classid == CLASS_DEFAULT
    assert tree.rate_bps == 200_000_000
    assert tree.classes == (
        HtbClass(CLASS_LIMIT, HANDLE_ROOT, 200_000_000, 200_000_000, 65_536, 65_536, 65_536, 0),
        HtbClass(CLASS_LIFELINE, CLASS_LIMIT, 10_000_000, 200_000_000, 65_536, 65_536, 65_536, 0),
        HtbClass(CLASS_DEFAULT, CLASS_LIMIT, 190_000_000, 200_000_000, 65_536, 65_536, 65_536, 1),
    )
    assert tree.leaves == (
        Leaf(LEAF_LIFELINE, CLASS_LIFELINE, "bfifo", limit_bytes=250_000),
        Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "bfifo", limit_bytes=250_000),
    )


@given(limits, rates_bps, links, abilities)
def test_children_share_exactly_the_limit(limit: Limit, rate_bps: int, link: Link, able: KernelAbilities) -> None:
    """The guaranteed rates below the limit add up to it, each is above nothing, and each may borrow up to it."""
    tree = tree_for(limit, rate_bps, link, able)
    children = [c for c in tree.classes if c.parent == CLASS_LIMIT]
    assert sum(c.rate_bps for c in children) == tree.rate_bps == rate_bps // 8 * 8
    assert all(16_000 <= c.rate_bps <= c.ceil_bps == tree.rate_bps for c in children)
    assert (class_of(tree, CLASS_LIMIT).rate_bps, class_of(tree, CLASS_LIMIT).ceil_bps) == (tree.rate_bps, tree.rate_bps)


@given(limits, rates_bps, links, abilities)
def test_every_burst_holds_the_largest_packet_and_a_millisecond(
    limit: Limit, rate_bps: int, link: Link, able: KernelAbilities
) -> None:
    """No burst is below the largest GSO packet, 64 KiB or 1 ms at its rate; quantum is given and holds that packet too."""
    for item in tree_for(limit, rate_bps, link, able).classes:
        assert item.burst_bytes >= max(65_536, link.gso_max_bytes, item.rate_bps // 8_000)
        assert item.cburst_bytes >= max(65_536, link.gso_max_bytes, item.ceil_bps // 8_000)
        assert item.quantum_bytes >= max(65_536, link.gso_max_bytes)


@given(limits, rates_bps, links, abilities)
def test_what_the_kernel_keeps_is_what_was_wanted(limit: Limit, rate_bps: int, link: Link, able: KernelAbilities) -> None:
    """Rates are whole bytes per second and bursts survive the kernel's ticks, so that read-back compares equal."""
    for tree in (tree_for(limit, rate_bps, link, able), unlimited(tree_for(limit, rate_bps, link, able))):
        for item in tree.classes:
            assert item.rate_bps % 8 == item.ceil_bps % 8 == 0
            assert burst_bytes(burst_ticks(item.burst_bytes, item.rate_bps), item.rate_bps) == item.burst_bytes
            assert burst_bytes(burst_ticks(item.cburst_bytes, item.ceil_bps), item.ceil_bps) == item.cburst_bytes


@given(st.integers(1, 10**9), st.integers(1_000, 10**11).map(lambda n: n * 8))
def test_ticks_are_the_least_that_hold_the_burst(wanted_bytes: int, rate_bps: int) -> None:
    """A tick is 64 ns of the rate; the fewest ticks worth the burst are stored, unless 32 bits end first."""
    ticks = burst_ticks(wanted_bytes, rate_bps)
    bytes_a_tick = Fraction(64 * rate_bps, 8 * 10**9)
    assert ticks == 0xFFFFFFFF or (ticks - 1) * bytes_a_tick < wanted_bytes <= ticks * bytes_a_tick


def test_a_burst_beyond_the_kernels_clock_is_cut() -> None:
    """1 MiB at 16 kbit/s would take 524 s; HTB's 32-bit ticks end at 274 s, and the class is wanted with that."""
    tree = tree_for(Limit(), 32_000, Link(2, "eth0", gso_max_bytes=1 << 20), KernelAbilities())
    assert class_of(tree, CLASS_LIFELINE).burst_bytes == burst_bytes(0xFFFFFFFF, 16_000) == 549_755


@given(limits, rates_bps, links)
def test_bfifo_is_sized_in_time(limit: Limit, rate_bps: int, link: Link) -> None:
    """A byte queue holds 10 ms of the limit, but never less than two GSO packets or ten frames."""
    tree = tree_for(limit, rate_bps, link, KernelAbilities())
    expected = max(tree.rate_bps // 800, 2 * link.gso_max_bytes, 10 * (link.mtu + 14))
    assert leaf_of(tree, LEAF_DEFAULT) == Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "bfifo", limit_bytes=expected)
    assert leaf_of(tree, LEAF_LIFELINE).limit_bytes == expected


def test_fq_codel_is_used_where_the_kernel_has_it() -> None:
    """The leaf is fq_codel with CoDel's usual 5 and 100 ms, as the kernel rounds them, and every other figure given."""
    leaf = leaf_of(tree_for(Limit(), 200_000_000, ETH0, KernelAbilities(fq_codel=True)), LEAF_DEFAULT)
    assert leaf == Leaf(
        LEAF_DEFAULT,
        CLASS_DEFAULT,
        "fq_codel",
        limit_packets=10_240,
        target_us=4_999,
        interval_us=99_999,
        flows=1_024,
        quantum_bytes=1_514,
        memory_bytes=1 << 25,
        ecn=1,
    )


def test_fq_codel_lets_a_frame_and_a_half_pass_at_a_low_rate() -> None:
    """At 1 Mbit/s a frame alone takes 12 ms: a target of 5 ms would drop whatever comes."""
    leaf = leaf_of(tree_for(Limit(), 1_000_000, ETH0, KernelAbilities(fq_codel=True)), LEAF_DEFAULT)
    assert leaf.target_us == pytest.approx(1.5 * 1_514 * 8, rel=0.001)


@given(st.integers(1_000, 10**7))
def test_codel_times_come_back_as_wanted(wanted_us: int) -> None:
    """The kernel turns one more than the rounded microseconds into units of 1 024 ns and back into the rounded ones."""
    rounded_us = codel_us(wanted_us)
    kept_units = (rounded_us + 1) * 1_000 >> 10
    assert (kept_units << 10) // 1_000 == rounded_us


def test_exempt_traffic_stands_beside_the_limit() -> None:
    """With exempt matches a class directly below the root, without a limit, takes them."""
    tree = tree_for(EXEMPT, 200_000_000, ETH0, KernelAbilities())
    exempt = class_of(tree, CLASS_EXEMPT)
    assert (exempt.parent, exempt.rate_bps, exempt.ceil_bps) == (HANDLE_ROOT, UNLIMITED_BPS, UNLIMITED_BPS)
    assert leaf_of(tree, LEAF_EXEMPT).limit_bytes == 12_500_000
    assert any(f.flowid == CLASS_EXEMPT for f in tree.filters)


def test_without_u32_the_limit_stands_without_lifeline() -> None:
    """A kernel that cannot classify gets the whole limit in the default class, and no filters."""
    tree = tree_for(Limit(), 200_000_000, ETH0, KernelAbilities(u32=False))
    assert [c.classid for c in tree.classes] == [CLASS_LIMIT, CLASS_DEFAULT]
    assert class_of(tree, CLASS_DEFAULT).rate_bps == 200_000_000
    assert (tree.filters, tree.refused) == ((), "")


def test_without_u32_exempt_traffic_forbids_the_limit() -> None:
    """What must not be limited cannot be told apart: the limit is refused, with the module's name."""
    assert "cls_u32" in tree_for(EXEMPT, 200_000_000, ETH0, KernelAbilities(u32=False)).refused


def test_without_htb_there_is_no_limit() -> None:
    """A kernel without HTB is told by name."""
    assert "sch_htb" in tree_for(Limit(), 200_000_000, ETH0, KernelAbilities(htb=False)).refused


@given(limits, rates_bps, links, abilities)
def test_raised_changes_classes_alone_and_only_once(limit: Limit, rate_bps: int, link: Link, able: KernelAbilities) -> None:
    """A raised tree limits nothing, differs in nothing but rates and bursts, and raising it again changes nothing."""
    tree = tree_for(limit, rate_bps, link, able)
    up = unlimited(tree)
    assert all(c.rate_bps == c.ceil_bps == UNLIMITED_BPS for c in up.classes)
    assert [(c.classid, c.parent, c.quantum_bytes, c.prio) for c in up.classes] == [
        (c.classid, c.parent, c.quantum_bytes, c.prio) for c in tree.classes
    ]
    assert (up.leaves, up.filters, up.default_classid) == (tree.leaves, tree.filters, tree.default_classid)
    assert unlimited(up) == up


def test_a_tree_without_its_limit_has_rate_zero() -> None:
    """Where the limit's class is missing there is no rate to tell."""
    assert TcTree(CLASS_DEFAULT, (), ()).rate_bps == 0
