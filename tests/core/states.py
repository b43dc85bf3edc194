"""Random limits, foreign hands and the walk from one state to the next: shared by the planner's tests on both kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from limiterd.core.htb_tree import tree_for
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    LEAF_DEFAULT,
    Action,
    ActionKind,
    ActionResult,
    Filter,
    HtbClass,
    KernelAbilities,
    Leaf,
    Lifeline,
    Limit,
    Link,
    Match,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.plan import Plan, plan
from limiterd.core.ports import TcPort

CLASS_FOREIGN = HANDLE_ROOT | 0x99
LEAF_FOREIGN = 0x99990000
PFIFO = RootQdisc("pfifo", 0x50000, (77).to_bytes(4, "little"))
BFIFO = RootQdisc("bfifo", 0x60000, (77_777).to_bytes(4, "little"))

ABLE = KernelAbilities()

matches = st.sampled_from(
    [
        Match(protocol="tcp", port=22),
        Match(protocol="tcp", destination_port=443, to="10.0.0.0/8"),
        Match(to="2001:db8::/32"),
        Match(from_net="192.0.2.0/24"),
        Match(protocol="icmp"),
        Match(port=53),
    ]
)
lists = st.lists(matches, max_size=2, unique=True).map(tuple)
limits = st.builds(Limit, lifeline=st.builds(Lifeline, st.sampled_from([0, 50_000, 500_000, 10**6]), lists), exempt=lists)
rates_bps = st.sampled_from([10**6, 123_456_789, 2 * 10**8, 4 * 10**10, 10**11])
mtus = st.sampled_from([1_500, 9_000])


@dataclass(frozen=True)
class Wish:
    """What is wanted of a link; limit None: no limit."""

    limit: Limit | None
    rate_bps: int = 0
    mtu: int = 1_500

    def tree(self, link: Link, abilities: KernelAbilities = ABLE) -> TcTree | None:
        """The wanted tree."""
        if self.limit is None:
            return None
        return tree_for(self.limit, self.rate_bps, replace(link, mtu=self.mtu), abilities)


wishes = st.one_of(st.just(Wish(None)), st.builds(Wish, limits, rates_bps, mtus))
some_limit = st.builds(Wish, limits, rates_bps, mtus)


def foreign_hands(link: Link) -> st.SearchStrategy[Action]:
    """One deed of somebody else on the link, as an action (it may well be refused)."""
    return st.sampled_from(foreign_deeds(link))


def foreign_deeds(link: Link) -> list[Action]:
    """What somebody else may do on the link, one action each."""

    def made(kind: ActionKind, item: HtbClass | Leaf | Filter | RootQdisc | int) -> Action:
        return Action(kind, link.ifindex, link.name, item)

    odd = HtbClass(CLASS_DEFAULT, CLASS_LIMIT, 8_000_000, 16_000_000, 2_000, 4_000, 1_500, 3)
    ours = (CLASS_LIMIT, CLASS_LIFELINE, CLASS_DEFAULT, CLASS_EXEMPT)
    return [
        made(ActionKind.DELETE_ROOT, HANDLE_ROOT),
        *(made(ActionKind.DELETE_CLASS, classid) for classid in ours),
        *(made(ActionKind.CHANGE_CLASS, replace(odd, classid=classid)) for classid in ours),
        made(ActionKind.ADD_CLASS, replace(odd, classid=CLASS_FOREIGN)),
        made(ActionKind.ADD_CLASS, replace(odd, classid=CLASS_FOREIGN, parent=CLASS_DEFAULT)),
        made(ActionKind.ADD_CLASS, replace(odd, parent=HANDLE_ROOT)),
        made(ActionKind.DELETE_LEAF, Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "bfifo")),
        made(ActionKind.CHANGE_LEAF, Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "bfifo", 4_242)),
        made(ActionKind.ADD_LEAF, Leaf(LEAF_FOREIGN, CLASS_DEFAULT, "pfifo", 42)),
        made(ActionKind.ADD_FILTER, Filter(5, 0x0800, ((0, 0, 0, False),), CLASS_DEFAULT)),
        made(ActionKind.ADD_FILTER, Filter(0x1D12, 0x0800, ((1, 1, 0, False),), CLASS_LIFELINE)),
        made(ActionKind.ADD_FILTER, Filter(0x1D13, 0x0800, ((1, 1, 0, False),), CLASS_LIFELINE)),
        *(made(ActionKind.DELETE_FILTERS, prio) for prio in (0x1D11, 0x1D12, 0x1D13, 0x1D02)),
        made(ActionKind.ADD_ROOT, CLASS_LIMIT),
        made(ActionKind.ADD_ROOT, CLASS_DEFAULT),
    ]


def seen(kernel: TcPort, link: Link) -> TcActual:
    """The link as read."""
    return kernel.read([link.ifindex])[link.ifindex]


def planned(kernel: TcPort, link: Link, wanted: TcTree | None, saved: RootQdisc | None = None, *, takeover: bool = False) -> Plan:
    """The plan from what the kernel shows now."""
    return plan(link, wanted, seen(kernel, link), saved, takeover=takeover)


def carry_out(kernel: TcPort, steps: Sequence[Action]) -> list[ActionResult]:
    """All steps, every one of them accepted."""
    results = kernel.apply(steps)
    assert [r for r in results if r.errno] == []
    return results


def converge(kernel: TcPort, link: Link, wanted: TcTree | None, *, rounds: int = 3) -> int:
    """Plan and act until nothing is left to do; how many rounds it took."""
    for done in range(rounds + 1):
        todo = planned(kernel, link, wanted)
        assert todo.blocker is None
        if not todo.actions:
            return done
        kernel.apply(todo.actions)
    raise AssertionError(f"not settled after {rounds} rounds; left: {planned(kernel, link, wanted)}")


def picture(actual: TcActual) -> tuple[object, ...]:
    """The whole of a link's tc state, as far as it can be compared between two histories."""
    tree = actual.tree
    if tree is None:
        return (actual.root, None)
    classes = sorted((replace(c, quantum_bytes=0, prio=0) if c.classid == CLASS_LIMIT else c for c in tree.classes), key=str)
    return (
        actual.root,
        tree.default_classid,
        tuple(classes),
        tuple(sorted(tree.leaves, key=str)),
        tuple(sorted(tree.filters, key=str)),
        actual.foreign,
        actual.classes_with_children,
    )
