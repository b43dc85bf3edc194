"""One contract, two kernels: the in-memory one answers and ends up as the real one does, step for step.

The real side is TcKernel on a veth in a namespace of its own; what it did is read a second time by the system's `tc`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute

from limiterd.core.htb_tree import unlimited
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    LEAF_DEFAULT,
    MS,
    Action,
    ActionKind,
    Filter,
    HtbClass,
    Leaf,
    Limit,
    Link,
    Match,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.plan import Plan, differences, plan
from limiterd.core.ports import TcPort
from limiterd.kernel.netlink import Ack, attr, attrs
from limiterd.kernel.tc import TcKernel
from limiterd.kernel.tcwire import RTM_GETQDISC, RTM_GETTCLASS, RTM_GETTFILTER, add_leaf, decode, restore_root
from limiterd.kernel.tcwire import leaf as wire_leaf
from limiterd.sim.fake_kernel import FakeKernel
from limiterd.sim.netns import Namespace, Pair, inside, run
from tests import needs
from tests.core.states import (
    BFIFO,
    CLASS_FOREIGN,
    LEAF_FOREIGN,
    PFIFO,
    Wish,
    carry_out,
    converge,
    foreign_hands,
    picture,
    planned,
    seen,
    some_limit,
    wishes,
)

USUAL = Wish(Limit(), 200_000_000)
SLOW = Wish(Limit(), 1_000_000)
EXEMPTING = Wish(Limit(exempt=(Match(to="10.0.0.0/8"), Match(protocol="tcp", port=22))), 200_000_000)
FEWER = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
"""Examples share one link: each begins by clearing it."""


@dataclass
class World:
    """A kernel with one link to work on."""

    kernel: TcPort
    link: Link
    namespace: Namespace | None = None
    far: str = ""

    def burst(self) -> None:
        """Half a megabyte is offered, far beyond what a slow limit and its queue hold."""
        if isinstance(self.kernel, FakeKernel):
            self.kernel.offer(self.link.ifindex, 40_000_000)
            for _ in range(100):
                self.kernel.advance(MS)
            return
        assert self.namespace is not None
        for _ in range(9):  # one socket's buffer would be full, and it would wait, before anything is dropped
            with inside(self.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(40):
                    sender.sendto(bytes(1400), (self.far, 9))

    def another(self, name: str) -> Link:
        """A further link, which was never up."""
        if isinstance(self.kernel, FakeKernel):
            self.kernel.add_link(77, visible=False)
            return Link(77, name)
        assert self.namespace is not None
        run(self.namespace, ["ip", "link", "add", name, "index", "77", "type", "veth", "peer", "name", f"{name}-far"])
        return Link(77, name)

    def clear(self) -> None:
        """Back to a link without explicit root."""
        root = seen(self.kernel, self.link).root
        if root is not None and root.handle:
            carry_out(self.kernel, [self.deed(ActionKind.DELETE_ROOT, root.handle)])

    def deed(self, kind: ActionKind, item: HtbClass | Leaf | Filter | RootQdisc | int) -> Action:
        """A step of whoever on the link."""
        return Action(kind, self.link.ifindex, self.link.name, item)


def tree_of(world: World, wish: Wish) -> TcTree:
    """The tree of a wish for a limit."""
    tree = wish.tree(world.link)
    assert tree is not None
    return tree


def fake_world(ifindex: int = 2) -> World:
    """An in-memory kernel whose link looks like the real one's."""
    kernel = FakeKernel()
    kernel.add_link(ifindex, "noqueue")
    return World(kernel, Link(ifindex, "eth0"))


def tc_kernel(namespace: Namespace, **options: Any) -> TcKernel:
    """The real one, in a namespace."""
    with inside(namespace):
        return TcKernel(**options)


@pytest.fixture
def real(pair: Pair) -> Iterator[World]:
    """The real kernel, on a veth."""
    with tc_kernel(pair.near.namespace) as kernel:
        yield World(kernel, Link(pair.near.ifindex, "eth0"), pair.near.namespace, pair.far.v4)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
def world(request: pytest.FixtureRequest) -> World:
    """Each kernel in turn."""
    if request.param == "fake":
        return fake_world()
    found: World = request.getfixturevalue("real")
    return found


def tc(world: World, *arguments: str) -> str:
    """What the system's tc says, in the link's namespace."""
    assert world.namespace is not None
    return run(world.namespace, ["tc", *arguments]).stdout


# ---- the same suite on both ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wish",
    [
        USUAL,
        EXEMPTING,
        Wish(Limit(), 10**6),
        Wish(Limit(), 123_456_789),
        Wish(Limit(), 34_359_738_352),
        Wish(Limit(), 34_359_738_360),
        Wish(Limit(), 34_359_738_368),
        Wish(Limit(), 10**11, mtu=9_000),
        Wish(Limit(exempt=(Match(from_net="2001:db8::/48", to="2001:db8:1::/128", port=443),)), 10**9),
    ],
)
def test_a_limit_reads_back_exactly(world: World, wish: Wish) -> None:
    """What was wanted is what is read, from 1 Mbit/s over the 32-bit edge of HTB's rates to 100 Gbit/s."""
    carry_out(world.kernel, planned(world.kernel, world.link, wish.tree(world.link)).actions)
    assert differences(tree_of(world, wish), seen(world.kernel, world.link)) == ()
    assert planned(world.kernel, world.link, wish.tree(world.link)) == Plan()


def test_the_default_root_comes_back(world: World) -> None:
    """Lifting a limit leaves the root that the kernel had put there."""
    before = seen(world.kernel, world.link)
    converge(world.kernel, world.link, USUAL.tree(world.link))
    assert seen(world.kernel, world.link).ours
    converge(world.kernel, world.link, None)
    assert picture(seen(world.kernel, world.link)) == picture(before)


def test_a_takeover_restores_the_root_exactly(world: World) -> None:
    """Saved, replaced, lifted: the same kind, handle and options."""
    carry_out(world.kernel, [world.deed(ActionKind.RESTORE_ROOT, BFIFO)])
    before = seen(world.kernel, world.link)
    saved = before.root
    carry_out(world.kernel, planned(world.kernel, world.link, USUAL.tree(world.link), takeover=True).actions)
    assert seen(world.kernel, world.link).ours
    carry_out(world.kernel, planned(world.kernel, world.link, None, saved).actions)
    assert picture(seen(world.kernel, world.link)) == picture(before)
    assert (before.root, before.foreign_root) == (BFIFO, BFIFO)


def test_roots_shows_every_link(world: World) -> None:
    """One dump tells ours from the kernel's default and from foreign ones."""
    ifindex = world.link.ifindex
    default = world.kernel.roots()[ifindex]
    assert default.handle == 0
    carry_out(world.kernel, [world.deed(ActionKind.RESTORE_ROOT, PFIFO)])
    assert world.kernel.roots()[ifindex] == PFIFO
    world.clear()
    converge(world.kernel, world.link, USUAL.tree(world.link))
    assert world.kernel.roots()[ifindex] == RootQdisc("htb", HANDLE_ROOT)


def test_a_link_that_never_was_is_left_out(world: World) -> None:
    """Reading and changing a link that is gone: nothing, and ENODEV."""
    gone = replace(world.link, ifindex=4_242)
    assert world.kernel.read([gone.ifindex]) == {}
    (first, *rest) = world.kernel.apply(
        [replace(a, ifindex=gone.ifindex) for a in planned(world.kernel, world.link, USUAL.tree(world.link)).actions]
    )
    assert first.errno == errno.ENODEV
    assert {r.errno for r in rest} == {-1}


def test_a_link_that_was_never_up_shows_no_root(world: World) -> None:
    """No root to be seen, neither in the dump nor when read; a limit shows all the same, and goes without a trace."""
    link = world.another("eth7")
    assert link.ifindex not in world.kernel.roots()
    assert seen(world.kernel, link).root is None
    converge(world.kernel, link, USUAL.tree(link))
    assert world.kernel.roots()[link.ifindex] == seen(world.kernel, link).root == RootQdisc("htb", HANDLE_ROOT)
    converge(world.kernel, link, None)
    assert link.ifindex not in world.kernel.roots()


BESIDE_THE_LIMIT = HtbClass(CLASS_FOREIGN, CLASS_DEFAULT, 8_000_000, 8_000_000, 1_600, 1_600, 1_500)


@pytest.mark.parametrize(
    ("executor", "moved"),
    [
        ((), {"sent_bytes", "sent_packets", "drops", "overlimits", "backlog_bytes", "queued_bytes"}),
        (((ActionKind.ADD_CLASS, BESIDE_THE_LIMIT),), {"direct_packets"}),
        (((ActionKind.DELETE_ROOT, HANDLE_ROOT), (ActionKind.ADD_ROOT, CLASS_DEFAULT)), {"direct_packets"}),
    ],
    ids=["limited", "a class below the default", "no default"],
)
def test_traffic_moves_the_counters_that_tell_of_it(
    world: World, executor: Sequence[tuple[ActionKind, Any]], moved: set[str]
) -> None:
    """What is sent, waits, is dropped or passes the limit by shows in the same counters, and in no others."""
    converge(world.kernel, world.link, SLOW.tree(world.link))
    carry_out(world.kernel, [world.deed(kind, item) for kind, item in executor])
    before = figures(world)
    world.burst()
    after = figures(world)
    found = {name for name, value in after.items() if value > before[name]}
    assert found in (moved, moved | LIFELINE)


LIFELINE = {"sent_bytes", "sent_packets"}
"""What moves as well when the real machine happens to look for a neighbour."""


def figures(world: World) -> dict[str, int]:
    """Every counter that a reading has."""
    actual = seen(world.kernel, world.link)
    return {"direct_packets": actual.direct_packets, "queued_bytes": actual.queued_bytes, **asdict(actual.stats)}


def test_foreign_objects_inside_are_told(world: World) -> None:
    """A foreign class, queue and filter: named, no drift, and gone with the root."""
    converge(world.kernel, world.link, USUAL.tree(world.link))
    carry_out(
        world.kernel,
        [
            world.deed(ActionKind.ADD_CLASS, HtbClass(CLASS_FOREIGN, CLASS_LIMIT, 8_000, 8_000, 1_600, 1_600, 1_500)),
            world.deed(ActionKind.ADD_LEAF, Leaf(LEAF_FOREIGN, CLASS_FOREIGN, "pfifo", 42)),
            world.deed(ActionKind.ADD_FILTER, Filter(5, 0x0800, ((0, 0, 0, False),), CLASS_FOREIGN)),
        ],
    )
    actual = seen(world.kernel, world.link)
    assert actual.foreign == ("class 1d1d:99", "qdisc pfifo 9999: under 1d1d:99", "u32 filter at prio 5")
    assert planned(world.kernel, world.link, USUAL.tree(world.link)) == Plan()


def test_a_class_made_inner_shows(world: World) -> None:
    """A foreign class under the default class takes its traffic past the limit: read as inner, repaired by a rebuild."""
    converge(world.kernel, world.link, USUAL.tree(world.link))
    carry_out(
        world.kernel,
        [world.deed(ActionKind.ADD_CLASS, HtbClass(CLASS_FOREIGN, CLASS_DEFAULT, 8_000, 8_000, 1_600, 1_600, 1_500))],
    )
    assert seen(world.kernel, world.link).classes_with_children == (CLASS_DEFAULT,)
    assert converge(world.kernel, world.link, USUAL.tree(world.link)) == 1
    assert seen(world.kernel, world.link).classes_with_children == ()


def deeds(world: World) -> dict[str, tuple[Action, int]]:
    """On a standing exempting limit: a step, and how it must be answered."""
    tree = tree_of(world, EXEMPTING)
    deed = world.deed
    return {
        "root over ours": (deed(ActionKind.ADD_ROOT, CLASS_DEFAULT), errno.EEXIST),
        "restore over ours": (deed(ActionKind.RESTORE_ROOT, PFIFO), errno.EEXIST),
        "delete by another handle": (deed(ActionKind.DELETE_ROOT, 0x50000), errno.EINVAL),
        "class twice": (deed(ActionKind.ADD_CLASS, tree.classes[0]), errno.EEXIST),
        "change a missing class": (deed(ActionKind.CHANGE_CLASS, replace(tree.classes[0], classid=CLASS_FOREIGN)), errno.ENOENT),
        "delete a missing class": (deed(ActionKind.DELETE_CLASS, CLASS_FOREIGN), errno.ENOENT),
        "delete an inner class": (deed(ActionKind.DELETE_CLASS, CLASS_LIMIT), errno.EBUSY),
        "delete a class with filters": (deed(ActionKind.DELETE_CLASS, CLASS_LIFELINE), errno.EBUSY),
        "queue twice": (deed(ActionKind.ADD_LEAF, tree.leaves[0]), errno.EEXIST),
        "queue under no class": (deed(ActionKind.ADD_LEAF, Leaf(LEAF_FOREIGN, CLASS_FOREIGN, "bfifo", 9_999)), errno.ENOENT),
        "another queue over ours": (deed(ActionKind.ADD_LEAF, Leaf(LEAF_FOREIGN, CLASS_DEFAULT, "pfifo", 9)), errno.EEXIST),
        "change a queue by another handle": (
            deed(ActionKind.CHANGE_LEAF, Leaf(LEAF_FOREIGN, CLASS_DEFAULT, "bfifo", 9_999)),
            errno.EEXIST,
        ),
        "change a queue's kind": (deed(ActionKind.CHANGE_LEAF, Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "pfifo", 9)), errno.EINVAL),
        "delete a queue by another handle": (deed(ActionKind.DELETE_LEAF, Leaf(LEAF_FOREIGN, CLASS_DEFAULT, "")), errno.EINVAL),
        "prio of another ethertype": (
            deed(ActionKind.ADD_FILTER, Filter(0x1D11, 0x0800, ((0, 0, 0, False),), CLASS_LIFELINE)),
            errno.EINVAL,
        ),
        "filter in no table": (deed(ActionKind.ADD_FILTER, Filter(9, 0x0800, ((0, 0, 0, True),), CLASS_LIFELINE)), errno.EINVAL),
        "missing filter": (deed(ActionKind.DELETE_FILTER, Filter(0x1D11, 0x0806, (), 0, handle=0x80000999)), errno.ENOENT),
        "missing prio": (deed(ActionKind.DELETE_FILTERS, 77), 0),
        "save another root": (deed(ActionKind.SAVE_ROOT, PFIFO), errno.ESTALE),
    }


@pytest.mark.parametrize("name", deeds(fake_world()))
def test_every_refusal_has_its_errno(world: World, name: str) -> None:
    """What the kernel refuses it refuses with this errno, and changes nothing."""
    converge(world.kernel, world.link, EXEMPTING.tree(world.link))
    before = picture(seen(world.kernel, world.link))
    action, number = deeds(world)[name]
    (result,) = world.kernel.apply([action])
    assert result.errno == number, result.message
    assert picture(seen(world.kernel, world.link)) == before


@pytest.mark.parametrize("kind", [k for k in ActionKind if k not in {ActionKind.ADD_ROOT, ActionKind.RESTORE_ROOT}])
def test_nothing_of_a_tree_can_be_changed_where_there_is_none(world: World, kind: ActionKind) -> None:
    """Without our root every inner step fails, so that a datagram whose root failed does no harm."""
    tree = tree_of(world, USUAL)
    items: dict[ActionKind, HtbClass | Leaf | Filter | RootQdisc | int] = {
        ActionKind.SAVE_ROOT: PFIFO,
        ActionKind.DELETE_ROOT: HANDLE_ROOT,
        ActionKind.DELETE_CLASS: CLASS_DEFAULT,
        ActionKind.DELETE_FILTERS: 0x1D11,
        **dict.fromkeys((ActionKind.ADD_CLASS, ActionKind.CHANGE_CLASS), tree.classes[0]),
        **dict.fromkeys((ActionKind.ADD_LEAF, ActionKind.CHANGE_LEAF, ActionKind.DELETE_LEAF), tree.leaves[0]),
        **dict.fromkeys((ActionKind.ADD_FILTER, ActionKind.DELETE_FILTER), tree.filters[0]),
    }
    before = picture(seen(world.kernel, world.link))
    (result,) = world.kernel.apply([world.deed(kind, items[kind])])
    assert result.errno in {errno.ENOENT, errno.EINVAL, errno.ESTALE}
    assert picture(seen(world.kernel, world.link)) == before


def test_a_class_without_its_parent_lands_at_the_root(world: World) -> None:
    """HTB takes an unknown parent for none: read as it is, and rebuilt."""
    tree = tree_of(world, USUAL)
    carry_out(world.kernel, [world.deed(ActionKind.ADD_ROOT, CLASS_DEFAULT), world.deed(ActionKind.ADD_CLASS, tree.classes[2])])
    actual = seen(world.kernel, world.link)
    assert actual.tree is not None
    assert [c.parent for c in actual.tree.classes] == [HANDLE_ROOT]
    assert converge(world.kernel, world.link, tree) == 1


def test_after_an_error_nothing_counts_as_done(world: World) -> None:
    """Per link the first error ends the plan; another link's steps go on."""
    carry_out(world.kernel, [world.deed(ActionKind.RESTORE_ROOT, PFIFO)])
    steps = [
        world.deed(ActionKind.ADD_ROOT, CLASS_DEFAULT),
        *(world.deed(ActionKind.ADD_CLASS, c) for c in tree_of(world, USUAL).classes),
        Action(ActionKind.DELETE_ROOT, 4_242, "gone", HANDLE_ROOT),
    ]
    assert [r.errno for r in world.kernel.apply(steps)] == [errno.EEXIST, -1, -1, -1, errno.ENODEV]
    assert seen(world.kernel, world.link).root == PFIFO


def test_raised_loses_nothing_but_the_limit(world: World) -> None:
    """The raised tree reads back exactly, and so does the way back down."""
    tree = tree_of(world, EXEMPTING)
    converge(world.kernel, world.link, tree)
    assert converge(world.kernel, world.link, unlimited(tree)) == 1
    assert converge(world.kernel, world.link, tree) == 1


# ---- the two against each other ------------------------------------------------------------------


def step_by_step(fake: World, true: World, actions: Sequence[Action]) -> None:
    """Each action on both kernels: the same answer, the same state after it."""
    for action in actions:
        numbers = [w.kernel.apply([translated(w, action)])[0].errno for w in (fake, true)]
        assert numbers[0] == numbers[1], action
        assert picture(seen(fake.kernel, fake.link)) == picture(seen(true.kernel, true.link)), action


def translated(world: World, action: Action) -> Action:
    """The same step for this kernel's link, with this kernel's handle for a filter."""
    item = action.item
    if action.kind is ActionKind.DELETE_FILTER and isinstance(item, Filter):
        tree = seen(world.kernel, world.link).tree
        found = next((f for f in tree.filters if f == item), item) if tree is not None else item
        item = found
    return replace(action, ifindex=world.link.ifindex, item=item)


@pytest.mark.root
@FEWER
@given(st.lists(st.tuples(wishes, st.lists(foreign_hands(Link(2, "eth0")), max_size=3)), min_size=1, max_size=3))
def test_the_fake_answers_and_ends_up_as_the_kernel(real: World, story: list[tuple[Wish, list[Action]]]) -> None:
    """Any story of limits and foreign hands, one step at a time: equal errnos, equal states."""
    real.clear()
    fake = fake_world(real.link.ifindex)
    for wish, executor in story:
        for _ in range(3):
            step_by_step(fake, real, planned(fake.kernel, fake.link, wish.tree(fake.link)).actions)
        step_by_step(fake, real, executor)


@pytest.mark.root
@FEWER
@given(st.lists(wishes, min_size=1, max_size=4))
def test_any_state_to_any_state_on_the_real_kernel(real: World, path: list[Wish]) -> None:
    """Whatever limits a real link went through, in one plan each, the last leaves the state of the direct way."""
    real.clear()
    for wish in path:
        assert converge(real.kernel, real.link, wish.tree(real.link)) <= 1
    there = picture(seen(real.kernel, real.link))
    real.clear()
    converge(real.kernel, real.link, path[-1].tree(real.link))
    assert picture(seen(real.kernel, real.link)) == there


@pytest.mark.root
@FEWER
@given(some_limit, st.lists(foreign_hands(Link(2, "eth0")), max_size=5))
def test_foreign_hands_are_undone_on_the_real_kernel(real: World, wish: Wish, executor: list[Action]) -> None:
    """After any interference the wanted limit stands again."""
    real.clear()
    converge(real.kernel, real.link, wish.tree(real.link))
    for action in executor:
        real.kernel.apply([replace(action, ifindex=real.link.ifindex)])
    converge(real.kernel, real.link, wish.tree(real.link))
    assert differences(tree_of(real, wish), seen(real.kernel, real.link)) == ()


class Saboteur:
    """Stands in for the netlink socket and spoils the n-th message, so that the kernel itself refuses it."""

    def __init__(self, inner: Any, spoilt: int) -> None:
        self.inner = inner
        self.left = spoilt

    def exchange(self, data: bytearray, offsets: Sequence[int], **options: Any) -> list[Ack]:
        """Pass on, one of all messages with an unknown type."""
        for at in offsets:
            if self.left == 0:
                data[at + 4 : at + 6] = (99).to_bytes(2, "little")
            self.left -= 1
        answers: list[Ack] = self.inner.exchange(data, offsets, **options)
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.root
@pytest.mark.parametrize(
    ("before", "after"), [(Wish(None), EXEMPTING), (EXEMPTING, USUAL), (USUAL, EXEMPTING), (EXEMPTING, Wish(None))]
)
def test_every_step_may_fail_on_the_real_kernel(real: World, before: Wish, after: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every k the k-th message fails while the kernel carries on behind it: the far end answers, then all comes right."""
    inner = real.kernel._socket  # type: ignore[attr-defined]
    spoilt = 0
    while True:
        real.clear()
        converge(real.kernel, real.link, before.tree(real.link))
        shim = Saboteur(inner, spoilt)
        monkeypatch.setattr(real.kernel, "_socket", shim)
        results = real.kernel.apply(planned(real.kernel, real.link, after.tree(real.link)).actions)
        monkeypatch.setattr(real.kernel, "_socket", inner)
        assert ping(real)
        converge(real.kernel, real.link, after.tree(real.link))
        if shim.left >= 0:
            assert {r.errno for r in results} == {0}
            break
        assert any(r.errno > 0 for r in results)
        spoilt += 1
    assert spoilt >= 2 if after.limit is not None else spoilt == 1


def ping(world: World) -> bool:
    """One echo across the veth."""
    assert world.namespace is not None
    return run(world.namespace, ["ping", "-c", "1", "-W", "2", "10.77.1.2"], check=False).returncode == 0


# ---- the real kernel's own ways ------------------------------------------------------------------


@pytest.mark.root
def test_tc_sees_what_was_wanted(real: World) -> None:
    """The system's tc, an independent reader, shows the tree as the design draws it, with the lifeline's filters."""
    converge(real.kernel, real.link, EXEMPTING.tree(real.link))
    text = tc(real, "class", "show", "dev", "eth0")
    assert "class htb 1d1d:1 root rate 200Mbit ceil 200Mbit burst 64Kb cburst 64Kb" in text
    assert "class htb 1d1d:10 parent 1d1d:1 leaf 1d10: prio 0 rate 10Mbit ceil 200Mbit burst 64Kb cburst 64Kb" in text
    assert "class htb 1d1d:20 parent 1d1d:1 leaf 1d20: prio 1 rate 190Mbit ceil 200Mbit burst 64Kb cburst 64Kb" in text
    assert "class htb 1d1d:30 root leaf 1d30: prio 0 rate 1Tbit ceil 1Tbit" in text
    qdiscs = tc(real, "qdisc", "show", "dev", "eth0")
    assert "qdisc htb 1d1d: root refcnt" in qdiscs
    assert re.search(r"default 0x20 direct_packets_stat \d+ direct_qlen 1000", qdiscs)
    assert "qdisc bfifo 1d20: parent 1d1d:20 limit 250000b" in qdiscs
    filters = tc(real, "filter", "show", "dev", "eth0", "parent", "1d1d:")
    assert "match 0a000000/ff000000 at 16" in filters
    assert "match 00000016/0000ffff at nexthdr+0" in filters
    assert "offset 0f00>>6 at 0" in filters


@pytest.mark.root
def test_probing_changes_nothing(real: World) -> None:
    """Abilities are found without a trace, and agree with what tc can add."""
    before = tc(real, "qdisc", "show", "invisible")
    found = real.kernel.abilities()
    assert tc(real, "qdisc", "show", "invisible") == before
    assert found.htb
    assert real.namespace is not None
    added = run(real.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "fq_codel"], check=False)
    assert found.fq_codel == (added.returncode == 0)


@pytest.mark.root
@pytest.mark.parametrize(
    "command",
    [
        "handle 5: pfifo limit 77",
        "handle 5: bfifo limit 77777",
        "handle 5: pfifo_fast",
        "handle 5: tbf rate 50mbit burst 64k latency 20ms",
        "handle 5: tbf rate 50mbit burst 64k limit 100000 peakrate 60mbit mtu 1600",
        "pfifo limit 5",
        "noqueue",
        "handle 5: fq_codel limit 500 target 7ms",
        "handle 5: fq flow_limit 50",
    ],
)
def test_single_qdiscs_come_back_exactly(real: World, command: str) -> None:
    """Under takeover an explicit single root is saved, replaced and restored so that tc tells no difference."""
    assert real.namespace is not None
    if run(real.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", *command.split()], check=False).returncode:
        pytest.skip(f"this kernel has no {command.removeprefix('handle 5: ').split()[0]}")
    before = tc(real, "-d", "qdisc", "show", "dev", "eth0"), tc(real, "-d", "class", "show", "dev", "eth0")
    saved = seen(real.kernel, real.link).root
    carry_out(real.kernel, planned(real.kernel, real.link, USUAL.tree(real.link), takeover=True).actions)
    assert seen(real.kernel, real.link).ours
    carry_out(real.kernel, planned(real.kernel, real.link, None, saved).actions)
    assert (tc(real, "-d", "qdisc", "show", "dev", "eth0"), tc(real, "-d", "class", "show", "dev", "eth0")) == before
    again = seen(real.kernel, real.link).root
    assert saved is not None
    assert again == (saved if "handle" in command else replace(saved, handle=again.handle if again else 0))


@given(st.integers(0, 2**31), st.integers(0, 2**22), st.integers(0, 2**22), st.one_of(st.none(), st.integers(0, 2**22)))
def test_restored_codel_times_read_back_as_they_were(limit: int, target: int, interval: int, threshold: int | None) -> None:
    """CoDel keeps times in units of 1 024 ns: whatever it keeps, its dump brings the very same back, takeover after takeover."""

    def dumped(units: dict[int, int]) -> bytes:
        shown = {n: value * 1_024 // 1_000 if n in {1, 3, 7} else value for n, value in units.items()}
        return b"".join(attr(n, value.to_bytes(4, "little")) for n, value in shown.items())

    units = {1: target, 2: limit, 3: interval} | ({} if threshold is None else {7: threshold})
    message = restore_root(2, RootQdisc("fq_codel", 0x50000, dumped(units)))
    options = attrs(attrs(message.body[20:])[2])
    kept = {n: int.from_bytes(value, "little") for n, value in options.items()}
    assert {n: value * 1_000 // 1_024 if n in {1, 3, 7} else value for n, value in kept.items()} == units


@pytest.mark.root
@pytest.mark.parametrize(
    ("commands", "words"),
    [
        (
            ["qdisc add dev eth0 root handle 5: htb", "class add dev eth0 parent 5: classid 5:1 htb rate 1mbit"],
            "htb 5: is not limiterd's and could not be restored exactly",
        ),
        (
            [
                "qdisc add dev eth0 root handle 5: tbf rate 5mbit burst 9k limit 9k",
                "qdisc add dev eth0 parent 5:1 handle 6: pfifo",
            ],
            "tbf 5: (with child qdisc pfifo 6:)",
        ),
        (["qdisc add dev eth0 stab mtu 2047 overhead 20 linklayer ethernet root handle 5: pfifo"], "a size table"),
    ],
)
def test_roots_that_would_lose_something_are_refused(real: World, commands: list[str], words: str) -> None:
    """Classes, children and size tables are found, named and left alone under takeover too."""
    for command in commands:
        tc(real, *command.split())
    todo = planned(real.kernel, real.link, USUAL.tree(real.link), takeover=True)
    assert todo.actions == ()
    assert words in (todo.blocker or ("", ""))[1]


SHAPES = (
    (),
    ("qdisc add dev eth0 root handle 5: pfifo",),
    ("qdisc add dev eth0 root handle 5: tbf rate 5mbit burst 9k limit 9k", "qdisc add dev eth0 parent 5:1 handle 6: pfifo"),
    ("qdisc add dev eth0 root handle 5: htb", "class add dev eth0 parent 5: classid 5:1 htb rate 1mbit"),
    ("qdisc add dev eth0 root handle 1d1d: htb default 20",),
    (
        "qdisc add dev eth0 root handle 1d1d: htb default 20",
        "class add dev eth0 parent 1d1d: classid 1d1d:1 htb rate 8mbit",
        "class add dev eth0 parent 1d1d:1 classid 1d1d:20 htb rate 8mbit",
        "qdisc add dev eth0 parent 1d1d:20 handle 1d20: bfifo limit 50000",
        "class add dev eth0 parent 1d1d: classid 1d1d:99 htb rate 8mbit",
        "qdisc add dev eth0 parent 1d1d:99 handle 99: pfifo",
        "filter add dev eth0 parent 1d1d: protocol ip prio 1 u32 match u32 0 0 flowid 1d1d:99",
    ),
)


@pytest.mark.root
@pytest.mark.parametrize("commands", SHAPES, ids=len)
def test_beside_a_crowd_of_qdiscs_the_same_is_read(real: World, commands: Sequence[str]) -> None:
    """Where a dump has shown hundreds of qdiscs, those of a link are asked for one by one: what is read is the same."""
    assert isinstance(real.kernel, TcKernel)
    assert real.namespace is not None
    never_up = real.another("eth7")
    run(real.namespace, ["ip", "link", "add", "other", "type", "veth", "peer", "name", "otherpeer"])
    tree = ["qdisc add dev other root handle 1: htb"]
    for minor in range(1, 551):
        tree += [f"class add dev other parent 1: classid 1:{minor:x} htb rate 1mbit quantum 1514"]
        tree += [f"qdisc add dev other parent 1:{minor:x} handle {minor + 0x100:x}: pfifo"]
    with inside(real.namespace):
        subprocess.run(["tc", "-batch", "-"], input="\n".join(tree) + "\n", text=True, check=True)
    for command in commands:
        tc(real, *command.split())
    asked = (real.link.ifindex, never_up.ifindex, 4242)
    dumped = real.kernel.read(asked)
    with listening(real.kernel) as kinds:
        assert without_stamps(real.kernel.read(asked)) == without_stamps(dumped)
        assert RTM_GETQDISC not in kinds


@pytest.mark.root
def test_of_a_foreign_tree_only_the_root_is_read(real: World) -> None:
    """Neither its classes nor its filters, however many; a root that could be put back is looked into."""
    assert isinstance(real.kernel, TcKernel)
    for commands, dumps in ((SHAPES[3], {RTM_GETQDISC}), (SHAPES[1], {RTM_GETQDISC, RTM_GETTCLASS, RTM_GETTFILTER})):
        for command in commands:
            tc(real, *command.split())
        with listening(real.kernel) as kinds:
            assert seen(real.kernel, real.link).foreign_root is not None
        assert kinds == dumps
        tc(real, *["qdisc", "del", "dev", "eth0", "root"])


@contextlib.contextmanager
def listening(kernel: TcKernel) -> Iterator[set[int]]:
    """The kinds of objects that are dumped meanwhile."""
    kinds: set[int] = set()
    dump = kernel._socket.dump

    def heard(kind: int, body: bytes, *, operation: str = "dump") -> list[tuple[int, memoryview]]:
        kinds.add(kind)
        return dump(kind, body, operation=operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel._socket, "dump", heard)
        yield kinds


def without_stamps(found: Mapping[int, TcActual]) -> dict[int, TcActual]:
    """Readings that may be compared."""
    return {ifindex: replace(actual, read_t_ns=0) for ifindex, actual in found.items()}


@pytest.mark.root
def test_ingress_and_programs_are_untouched(real: World) -> None:
    """clsact with its filters and BPF programs on both sides is the same before, under and after a limit."""
    tc(real, "qdisc", "add", "dev", "eth0", "clsact")
    for side in ("ingress", "egress"):
        tc(real, *f"filter add dev eth0 {side} protocol ip prio 7 u32 match ip dport 9 0xffff flowid 1:1".split())
        tc(real, *f"filter add dev eth0 {side} prio 8 bpf flowid 1:1 bytecode".split(), "1,6 0 0 4294967295,")
    stages = []
    for wish in (Wish(None), USUAL, Wish(None)):
        converge(real.kernel, real.link, wish.tree(real.link))
        stages.append([tc(real, "filter", "show", "dev", "eth0", side) for side in ("ingress", "egress")])
        assert "clsact" in tc(real, "qdisc", "show", "dev", "eth0")
        assert not seen(real.kernel, real.link).foreign
    assert stages[0] == stages[1] == stages[2]


def in_place(namespace: Namespace, *commands: str) -> None:
    """Run ip commands in a namespace."""
    for command in commands:
        run(namespace, ["ip", *command.split()])


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("tap0", ["tuntap add dev tap0 mode tap multi_queue", "link set tap0 up"]),
        ("mac0", ["link add mac0 link eth0 type macvlan mode bridge", "link set mac0 up"]),
        ("br0", ["link add br0 type bridge", "link set br0 up"]),
        ("lo", []),
        ("never0", ["link add never0 type veth peer name never1"]),
        ("long0", ["link add long0 mtu 9000 type veth peer name long1", "link set long0 up"]),
        ("none0", ["link add none0 txqueuelen 0 type veth peer name none1", "link set none0 up"]),
    ],
)
def test_every_sort_of_link_can_be_limited(real: World, name: str, commands: list[str]) -> None:
    """A multi-queue tap, macvlan, bridge, loopback, a link that was never up: limited, and back as it was."""
    assert real.namespace is not None
    if name == "tap0" and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        needs.missing("needs /dev/net/tun")
    in_place(real.namespace, *commands)
    ifindex = int(json.loads(run(real.namespace, ["ip", "-j", "link", "show", name]).stdout)[0]["ifindex"])
    link = Link(ifindex, name)
    before = tc(real, "qdisc", "show", "dev", name)
    converge(real.kernel, link, USUAL.tree(link))
    assert seen(real.kernel, link).ours
    converge(real.kernel, link, None)
    assert tc(real, "qdisc", "show", "dev", name) == before


@pytest.mark.root
@pytest.mark.parametrize(
    "change",
    ["set eth0 down", "set eth0 mtu 1400", "set eth0 txqueuelen 0", "set eth0 txqueuelen 2", "set eth0 name wan0"],
)
def test_a_limit_outlives_changes_of_its_link(real: World, change: str) -> None:
    """Down, MTU, queue length, another name: the limit still reads back exactly."""
    assert real.namespace is not None
    converge(real.kernel, real.link, USUAL.tree(real.link))
    in_place(
        real.namespace,
        f"link {change}" if "name" not in change else "link set eth0 down",
        *([f"link {change}"] if "name" in change else []),
    )
    assert differences(tree_of(real, USUAL), seen(real.kernel, real.link)) == ()


@pytest.mark.root
def test_orphaned_table_entries_come_right(real: World) -> None:
    """Deleting one of our prios by hand leaves its table's filters in the kernel unseen: two plans later all is as wanted."""
    converge(real.kernel, real.link, USUAL.tree(real.link))
    tc(real, "filter", "del", "dev", "eth0", "parent", "1d1d:", "prio", "7442")
    assert converge(real.kernel, real.link, USUAL.tree(real.link)) == 2


@pytest.mark.root
def test_a_class_held_by_orphans_goes_with_the_root(real: World) -> None:
    """When others deleted the exempt prios whole, the class may be held by filters that nobody sees: the tree is rebuilt."""
    converge(real.kernel, real.link, EXEMPTING.tree(real.link))
    for prio in ("7426", "7427"):
        tc(real, "filter", "del", "dev", "eth0", "parent", "1d1d:", "prio", prio)
    assert converge(real.kernel, real.link, USUAL.tree(real.link)) == 1
    assert "1d1d:30" not in tc(real, "class", "show", "dev", "eth0")


@pytest.mark.root
def test_what_only_looks_like_a_filter_of_ours_is_replaced(real: World) -> None:
    """A u32 filter at our prio that asks for more than ours do is none of ours: it goes."""
    converge(real.kernel, real.link, USUAL.tree(real.link))
    odd = "filter add dev eth0 parent 1d1d: protocol arp prio 7441 u32 match u32 0 0 indev eth0 flowid 1d1d:10"
    tc(real, *odd.split())
    assert len(differences(tree_of(real, USUAL), seen(real.kernel, real.link))) == 1
    assert converge(real.kernel, real.link, USUAL.tree(real.link)) == 1
    assert "indev" not in tc(real, "filter", "show", "dev", "eth0", "parent", "1d1d:")


@pytest.mark.root
@pytest.mark.parametrize("odd", ["mpu 20000 overhead 500", "overhead 100", "linklayer atm", "mpu 3000"])
def test_packet_sizes_that_others_made_up_are_seen(real: World, odd: str) -> None:
    """The burst and the rates are ours to the byte, but packets are counted longer than they are: drift, repaired in place."""
    tree = tree_of(real, USUAL)
    converge(real.kernel, real.link, tree)
    command = f"class change dev eth0 parent 1d1d: classid 1d1d:1 htb rate 200mbit ceil 200mbit burst 64k cburst 64k {odd}"
    tc(real, *command.split())
    assert "resized True" in "; ".join(differences(tree, seen(real.kernel, real.link)))
    assert converge(real.kernel, real.link, tree) == 1
    assert "overhead" not in tc(real, "-d", "class", "show", "dev", "eth0")


@given(st.integers(1, 2**31), st.integers(1, 2**24), st.integers(0, 1), st.binary(min_size=1, max_size=3))
def test_the_figures_of_a_queue_survive_the_wire(packets: int, others: int, ecn: int, odd: bytes) -> None:
    """fq_codel's figures read back as they were sent, the times a microsecond up; what has no four bytes is passed over."""
    sent = Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "fq_codel", 0, packets, others, others, others, others, others, ecn)
    body = add_leaf(2, sent).body
    found = wire_leaf(decode(memoryview(body + attr(10, odd))).nature)
    assert found == replace(sent, target_us=others + 1, interval_us=others + 1)
    assert wire_leaf(decode(memoryview(body + attr(8, b""))).nature).altered  # a size table, which older kernels let a queue have


@pytest.mark.root
def test_many_links_are_limited_and_read_in_one_go(real: World) -> None:
    """Fifty links: one apply, one read, every one as wanted; the class and filter dumps keep them apart."""
    assert real.namespace is not None
    with inside(real.namespace), IPRoute() as route:
        for n in range(50):
            route.link("add", ifname=f"v{n}", kind="veth", peer=f"w{n}")
        links = [Link(route.link_lookup(ifname=f"v{n}")[0], f"v{n}") for n in range(50)]
    wanted = {link.ifindex: tree_of(World(real.kernel, link), Wish(Limit(), 10**7 + 8 * link.ifindex)) for link in links}
    before = real.kernel.read(wanted)
    plans = [plan(link, wanted[link.ifindex], before[link.ifindex], None, takeover=False) for link in links]
    carry_out(real.kernel, [action for todo in plans for action in todo.actions])
    after = real.kernel.read(wanted)
    assert [differences(tree, after[ifindex]) for ifindex, tree in wanted.items()] == [()] * 50
