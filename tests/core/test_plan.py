"""The planner: every plan ends where it should, from everywhere, and may be broken off after every step."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiterd.core.htb_tree import tree_for, unlimited
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    LEAF_DEFAULT,
    Action,
    ActionKind,
    FaultReason,
    Filter,
    HtbClass,
    KernelAbilities,
    Leaf,
    Limit,
    Link,
    Match,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.plan import Plan, datagrams, differences, name_of, plan, teardown
from limiterd.core.u32_filters import is_link
from limiterd.sim.fake_kernel import FakeKernel
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

ETH0 = Link(2, "eth0")
USUAL = Wish(Limit(), 200_000_000)
EXEMPTING = Wish(Limit(exempt=(Match(to="10.0.0.0/8"), Match(protocol="tcp", port=22))), 200_000_000)


def fresh() -> FakeKernel:
    """A kernel with one idle link."""
    kernel = FakeKernel()
    kernel.add_link(ETH0.ifindex, "mq")
    return kernel


def kinds(todo: Plan) -> list[ActionKind]:
    """The kinds of a plan's steps."""
    return [action.kind for action in todo.actions]


def deed(kind: ActionKind, item: HtbClass | Leaf | Filter | RootQdisc | int) -> Action:
    """A step of somebody else."""
    return Action(kind, ETH0.ifindex, ETH0.name, item)


def standing(wish: Wish = USUAL) -> tuple[FakeKernel, TcTree]:
    """A kernel on which the limit stands."""
    kernel = fresh()
    tree = wish.tree(ETH0)
    assert tree is not None
    converge(kernel, ETH0, tree)
    return kernel, tree


def carries_traffic(kernel: FakeKernel) -> bool:
    """Whether a second of modest traffic leaves the link."""
    link = kernel.links[ETH0.ifindex]
    before = link.tx_bytes
    kernel.offer(ETH0.ifindex, 8_000)
    kernel.advance(1_000_000_000)
    return link.tx_bytes - before == 1_000


# ---- properties ----------------------------------------------------------------------------------


@given(wishes)
def test_planning_on_its_own_result_is_empty(wish: Wish) -> None:
    """One plan is enough from a clean link, and the next has nothing to do and nothing to tell."""
    kernel = fresh()
    carry_out(kernel, planned(kernel, ETH0, wish.tree(ETH0)).actions)
    assert planned(kernel, ETH0, wish.tree(ETH0)) == Plan()


@given(wishes, wishes, st.data())
def test_every_prefix_is_safe_and_leads_on(before: Wish, after: Wish, data: st.DataObject) -> None:
    """Broken off after any step, the link carries traffic, and the next plans lead to the same end."""
    kernel = fresh()
    converge(kernel, ETH0, before.tree(ETH0))
    steps = planned(kernel, ETH0, after.tree(ETH0)).actions
    cut = data.draw(st.integers(0, len(steps)))
    for step in steps[:cut]:
        carry_out(kernel, [step])
        assert carries_traffic(kernel)
    converge(kernel, ETH0, after.tree(ETH0))
    direct = fresh()
    converge(direct, ETH0, after.tree(ETH0))
    assert picture(seen(kernel, ETH0)) == picture(seen(direct, ETH0))


@given(wishes, wishes, st.data())
def test_a_step_that_fails_harms_nothing(before: Wish, after: Wish, data: st.DataObject) -> None:
    """Whichever step is refused, though the rest of its datagram is carried out: traffic flows, the next plans repair it."""
    kernel = fresh()
    converge(kernel, ETH0, before.tree(ETH0))
    steps = planned(kernel, ETH0, after.tree(ETH0)).actions
    if steps:
        kernel.refuse(data.draw(st.integers(0, len(steps) - 1)))
    kernel.apply(steps)
    assert carries_traffic(kernel)
    converge(kernel, ETH0, after.tree(ETH0))
    assert differences_of(kernel, after) == ()


@given(some_limit, st.lists(foreign_hands(ETH0), max_size=2), st.data())
def test_a_dismantled_root_is_bare_and_every_step_is_safe(wish: Wish, deeds: list[Action], data: st.DataObject) -> None:
    """Released, a raised tree goes filter by filter and class by class; broken off anywhere, or refused, the root still goes."""
    kernel, tree = standing(wish)
    kernel.apply(deeds)
    converge(kernel, ETH0, unlimited(seen(kernel, ETH0).tree or tree))
    steps = teardown(ETH0, seen(kernel, ETH0))
    cut = data.draw(st.integers(0, len(steps)))
    refused = data.draw(st.booleans())
    results = []
    for step in steps[:cut]:
        results += kernel.apply([step])
        assert carries_traffic(kernel)
    if refused and cut < len(steps):
        kernel.refuse(0)
    results += kernel.apply(steps[cut:])
    assert carries_traffic(kernel)
    left = seen(kernel, ETH0).tree
    if steps and not any(r.errno for r in results):
        assert left is not None
        assert (left.classes, left.leaves, left.filters) == ((), (), ())
    assert converge(kernel, ETH0, None) <= 1


def test_a_tree_that_others_use_is_not_dismantled() -> None:
    """Foreign objects under our classes would hold them: everything goes with the root."""
    kernel, tree = standing()
    assert teardown(ETH0, seen(kernel, ETH0))
    carry_out(kernel, [deed(ActionKind.ADD_FILTER, Filter(5, 0x0800, ((0, 0, 0, False),), CLASS_DEFAULT))])
    assert teardown(ETH0, seen(kernel, ETH0)) == ()
    assert teardown(ETH0, None) == ()
    assert tree.filters


def differences_of(kernel: FakeKernel, wish: Wish) -> tuple[str, ...]:
    """What is left to do for a wish."""
    tree = wish.tree(ETH0)
    return () if tree is None else differences(tree, seen(kernel, ETH0))


@settings(max_examples=200)
@given(st.lists(wishes, min_size=1, max_size=5))
def test_any_state_to_any_state_equals_the_direct_way(path: list[Wish]) -> None:
    """Whatever limits a link went through, the last leaves the same tc state as on a fresh link, in one plan each."""
    kernel = fresh()
    for wish in path:
        assert converge(kernel, ETH0, wish.tree(ETH0)) <= 1
    direct = fresh()
    converge(direct, ETH0, path[-1].tree(ETH0))
    assert picture(seen(kernel, ETH0)) == picture(seen(direct, ETH0))


@settings(max_examples=200)
@given(some_limit, st.lists(foreign_hands(ETH0), max_size=6), wishes)
def test_foreign_hands_are_undone(wish: Wish, deeds: list[Action], after: Wish) -> None:
    """After any outside interference the limit comes to stand as wanted; foreign objects beside it do no harm."""
    kernel = fresh()
    converge(kernel, ETH0, wish.tree(ETH0))
    for action in deeds:
        kernel.apply([action])
    converge(kernel, ETH0, after.tree(ETH0))
    assert differences_of(kernel, after) == ()
    assert carries_traffic(kernel)
    assert after.limit is None or not seen(kernel, ETH0).direct_packets


@given(some_limit, some_limit)
def test_exempt_traffic_is_safe_before_the_limit_begins(before: Wish, after: Wish) -> None:
    """In every plan that adds the default class, all filters of exempt traffic come earlier, in a datagram of their own."""
    for kernel in (fresh(), standing(before)[0]):
        kernel.apply([deed(ActionKind.DELETE_CLASS, CLASS_DEFAULT)])
        runs = list(datagrams(planned(kernel, ETH0, after.tree(ETH0)).actions))
        begins = [n for n, run in enumerate(runs) if any(begins_limit(action) for action in run)]
        exempting = [n for n, run in enumerate(runs) if any(exempts(action) for action in run)]
        assert all(n < begins[0] for n in exempting if begins)


def exempts(action: Action) -> bool:
    """Whether a step lets exempt traffic out of the limit."""
    return action.kind is ActionKind.ADD_FILTER and isinstance(action.item, Filter) and action.item.flowid == CLASS_EXEMPT


def begins_limit(action: Action) -> bool:
    """Whether traffic is limited from this step on."""
    return action.kind is ActionKind.ADD_CLASS and isinstance(action.item, HtbClass) and action.item.classid == CLASS_DEFAULT


# ---- the order -----------------------------------------------------------------------------------


def test_the_usual_install_is_one_datagram_that_commits_early() -> None:
    """Root, the limit, the default class, its queue: then the lifeline."""
    todo = planned(fresh(), ETH0, USUAL.tree(ETH0))
    assert kinds(todo)[:6] == [
        ActionKind.ADD_ROOT,
        ActionKind.ADD_CLASS,
        ActionKind.ADD_CLASS,
        ActionKind.ADD_LEAF,
        ActionKind.ADD_CLASS,
        ActionKind.ADD_LEAF,
    ]
    assert [a.item.classid for a in todo.actions if isinstance(a.item, HtbClass)] == [CLASS_LIMIT, CLASS_DEFAULT, CLASS_LIFELINE]
    assert len(list(datagrams(todo.actions))) == 1
    assert todo.drift == ("the limit's root qdisc is missing",)


def test_a_failed_exempt_filter_keeps_the_limit_from_beginning() -> None:
    """A kernel that turns out to have no u32 never limits what is exempt."""
    kernel = FakeKernel(abilities=KernelAbilities(u32=False))
    kernel.add_link(2)
    results = kernel.apply(planned(kernel, ETH0, EXEMPTING.tree(ETH0)).actions)
    assert next(r.errno for r in results if r.errno) == errno.ENOENT
    kernel.offer(2, 10**9)
    kernel.advance(10**9)
    assert kernel.links[2].tx_bytes == 125_000_000


def test_a_failed_lifeline_filter_leaves_the_limit() -> None:
    """The limit stands all the same, and the plan for a kernel without u32 finishes it."""
    kernel = FakeKernel(abilities=KernelAbilities(u32=False))
    kernel.add_link(2)
    kernel.apply(planned(kernel, ETH0, USUAL.tree(ETH0)).actions)
    kernel.offer(2, 10**9)
    kernel.advance(10**9)
    assert kernel.links[2].tx_bytes == 25_000_000
    converge(kernel, ETH0, USUAL.tree(ETH0, KernelAbilities(u32=False)), rounds=1)


def test_a_rate_change_only_changes() -> None:
    """Another rate in place: classes and queue lengths, no add, no delete."""
    kernel, _ = standing()
    todo = planned(kernel, ETH0, replace(USUAL, rate_bps=400_000_000).tree(ETH0))
    assert set(kinds(todo)) == {ActionKind.CHANGE_CLASS, ActionKind.CHANGE_LEAF}


def test_raising_only_changes_classes() -> None:
    """The first half of a release touches rates alone, also on a tree that foreign hands have been at."""
    kernel, tree = standing(EXEMPTING)
    kernel.apply([deed(ActionKind.DELETE_LEAF, tree.leaves[0])])
    kernel.apply([deed(ActionKind.ADD_CLASS, HtbClass(CLASS_FOREIGN, CLASS_LIMIT, 8_000, 8_000, 1_600, 1_600, 1_500))])
    up = unlimited(seen(kernel, ETH0).tree or tree)
    assert set(kinds(planned(kernel, ETH0, up))) == {ActionKind.CHANGE_CLASS}
    converge(kernel, ETH0, up, rounds=1)
    assert unlimited(seen(kernel, ETH0).tree or tree) == seen(kernel, ETH0).tree


def test_new_exempt_filters_stand_before_old_ones_go() -> None:
    """Exempt traffic never blinks: what is added comes before what is deleted."""
    kernel, _ = standing(EXEMPTING)
    after = Wish(Limit(exempt=(Match(to="10.0.0.0/8"), Match(protocol="tcp", port=23))), 200_000_000)
    order = kinds(planned(kernel, ETH0, after.tree(ETH0)))
    assert order == [ActionKind.ADD_FILTER] * 4 + [ActionKind.DELETE_FILTER] * 4


def test_filters_behind_a_link_go_before_it() -> None:
    """The filters in a link's table are deleted one by one, then the link, then its prio, then the class."""
    kernel, _ = standing(EXEMPTING)
    todo = planned(kernel, ETH0, USUAL.tree(ETH0))
    assert kinds(todo)[-3:] == [ActionKind.DELETE_FILTERS, ActionKind.DELETE_FILTERS, ActionKind.DELETE_CLASS]
    singles = [a.item for a in todo.actions if a.kind is ActionKind.DELETE_FILTER and isinstance(a.item, Filter)]
    assert [is_link(f) for f in singles] == [False] * 5 + [True]


# ---- drift ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "words", "steps"),
    [
        (deed(ActionKind.DELETE_ROOT, HANDLE_ROOT), "root qdisc is missing", None),
        (deed(ActionKind.DELETE_CLASS, CLASS_DEFAULT), "class 1d1d:20 is missing", [ActionKind.ADD_CLASS, ActionKind.ADD_LEAF]),
        (
            deed(ActionKind.CHANGE_CLASS, HtbClass(CLASS_LIMIT, HANDLE_ROOT, 8 * 10**8, 8 * 10**8, 65_536, 65_536, 9, 3)),
            "class 1d1d:1: rate_bps 800000000, wanted 200000000, ceil_bps 800000000, wanted 200000000",
            [ActionKind.CHANGE_CLASS],
        ),
        (
            deed(ActionKind.DELETE_LEAF, Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "bfifo")),
            "queue 1d20: is missing",
            [ActionKind.ADD_LEAF],
        ),
        (
            deed(ActionKind.CHANGE_LEAF, Leaf(LEAF_DEFAULT, CLASS_DEFAULT, "bfifo", 1)),
            "queue 1d20:: limit_bytes 1, wanted 250000",
            [ActionKind.CHANGE_LEAF],
        ),
        (
            deed(ActionKind.ADD_FILTER, Filter(0x1D12, 0x0800, ((1, 1, 0, False),), CLASS_LIFELINE)),
            "1 filters too many",
            [ActionKind.DELETE_FILTER],
        ),
        (deed(ActionKind.DELETE_FILTERS, 0x1D11), "1 filters missing", [ActionKind.ADD_FILTER]),
    ],
)
def test_each_drift_is_named_and_repaired_in_place(action: Action, words: str, steps: list[ActionKind] | None) -> None:
    """One deed of foreign hands: the difference in words, and no more steps than it takes."""
    kernel, tree = standing()
    carry_out(kernel, [action])
    assert words in "; ".join(differences(tree, seen(kernel, ETH0)))
    todo = planned(kernel, ETH0, tree)
    assert steps is None or kinds(todo) == steps
    assert todo.drift == differences(tree, seen(kernel, ETH0))
    assert converge(kernel, ETH0, tree) == 1


@pytest.mark.parametrize(
    ("figure", "steps"),
    [
        ({"memory_bytes": 1}, [ActionKind.CHANGE_LEAF]),
        ({"interval_us": 1}, [ActionKind.CHANGE_LEAF]),
        ({"ecn": 0}, [ActionKind.CHANGE_LEAF]),
        ({"flows": 1}, [ActionKind.DELETE_LEAF, ActionKind.ADD_LEAF]),
        ({"altered": True}, [ActionKind.DELETE_LEAF, ActionKind.ADD_LEAF]),
    ],
)
def test_every_figure_of_a_queue_is_minded(figure: dict[str, int], steps: list[ActionKind]) -> None:
    """fq_codel with a memory of one byte is a black hole: found and put right, in place where the kernel can."""
    kernel = FakeKernel(fq_codel=True)
    kernel.add_link(2)
    tree = tree_for(Limit(), 200_000_000, ETH0, KernelAbilities(fq_codel=True))
    converge(kernel, ETH0, tree)
    htb = kernel.links[2].htb
    assert htb is not None
    htb.leaves[CLASS_DEFAULT] = replace(htb.leaves[CLASS_DEFAULT], **figure)  # type: ignore[arg-type]  # figures by name
    assert next(iter(figure)) in "; ".join(differences(tree, seen(kernel, ETH0)))
    assert kinds(planned(kernel, ETH0, tree)) == steps
    assert converge(kernel, ETH0, tree) == 1


def test_a_class_that_counts_other_sizes_is_put_right() -> None:
    """An overhead of 500 bytes a packet would take a third of the limit: drift, changed back in place."""
    kernel, tree = standing()
    htb = kernel.links[2].htb
    assert htb is not None
    htb.classes[CLASS_LIMIT] = replace(htb.classes[CLASS_LIMIT], resized=True)
    assert differences(tree, seen(kernel, ETH0)) == ("class 1d1d:1: resized True, wanted False",)
    assert kinds(planned(kernel, ETH0, tree)) == [ActionKind.CHANGE_CLASS]
    assert converge(kernel, ETH0, tree) == 1


def test_a_replaced_queue_is_replaced_back() -> None:
    """Another qdisc in the place of our queue goes, and ours comes."""
    kernel, tree = standing()
    kernel.apply(
        [deed(ActionKind.DELETE_LEAF, tree.leaves[1]), deed(ActionKind.ADD_LEAF, Leaf(LEAF_FOREIGN, CLASS_DEFAULT, "pfifo"))]
    )
    assert kinds(planned(kernel, ETH0, tree)) == [ActionKind.DELETE_LEAF, ActionKind.ADD_LEAF]
    assert converge(kernel, ETH0, tree) == 1


@pytest.mark.parametrize(
    ("deeds", "words"),
    [
        (
            [deed(ActionKind.DELETE_ROOT, HANDLE_ROOT), deed(ActionKind.ADD_ROOT, CLASS_LIMIT)],
            "default class is 1d1d:1, wanted 1d1d:20",
        ),
        (
            [deed(ActionKind.ADD_CLASS, HtbClass(CLASS_FOREIGN, CLASS_DEFAULT, 8_000, 8_000, 1_600, 1_600, 1_500))],
            "class 1d1d:20 has foreign classes under it and passes its traffic by",
        ),
        (
            [
                deed(ActionKind.DELETE_CLASS, CLASS_DEFAULT),
                deed(ActionKind.ADD_CLASS, HtbClass(CLASS_DEFAULT, HANDLE_ROOT, 8_000, 8_000, 1_600, 1_600, 1_500)),
            ],
            "class 1d1d:20 is under 1d1d:, wanted 1d1d:1",
        ),
    ],
)
def test_what_cannot_be_changed_is_rebuilt(deeds: list[Action], words: str) -> None:
    """A wrong default, parent or inner class costs the tree: our own root goes and comes again, in one datagram."""
    kernel, tree = standing()
    carry_out(kernel, deeds)
    todo = planned(kernel, ETH0, tree)
    assert words in "; ".join(todo.drift)
    assert kinds(todo)[:2] == [ActionKind.DELETE_ROOT, ActionKind.ADD_ROOT]
    assert len(list(datagrams(todo.actions))) == 1
    assert converge(kernel, ETH0, tree) == 1


def test_foreign_objects_inside_are_told_but_left() -> None:
    """A foreign class and a foreign filter are no drift: they are named, and go only with the root."""
    kernel, tree = standing()
    carry_out(
        kernel,
        [
            deed(ActionKind.ADD_CLASS, HtbClass(CLASS_FOREIGN, CLASS_LIMIT, 8_000, 8_000, 1_600, 1_600, 1_500)),
            deed(ActionKind.ADD_FILTER, Filter(5, 0x0800, ((0, 0, 0, False),), CLASS_FOREIGN)),
        ],
    )
    assert planned(kernel, ETH0, tree) == Plan()
    assert seen(kernel, ETH0).foreign == ("class 1d1d:99", "u32 filter at prio 5")


def test_a_prio_of_another_ethertype_is_cleared_first() -> None:
    """One prio holds one ethertype: whatever else sits on ours goes before our filters come."""
    kernel, tree = standing()
    carry_out(
        kernel,
        [
            deed(ActionKind.DELETE_FILTERS, 0x1D13),
            deed(ActionKind.ADD_FILTER, Filter(0x1D13, 0x0800, ((1, 1, 0, False),), CLASS_LIFELINE)),
        ],
    )
    order = kinds(planned(kernel, ETH0, tree))
    assert order == [ActionKind.DELETE_FILTER, ActionKind.DELETE_FILTERS, *[ActionKind.ADD_FILTER] * 4]
    assert converge(kernel, ETH0, tree) == 1


# ---- roots of others -----------------------------------------------------------------------------


def taken_over(kernel: FakeKernel, saved: RootQdisc) -> None:
    """Put a foreign root on the link."""
    carry_out(kernel, [deed(ActionKind.RESTORE_ROOT, saved)])


def test_a_foreign_root_is_an_obstacle() -> None:
    """Without takeover nothing is planned, and what was found is named."""
    kernel = fresh()
    taken_over(kernel, PFIFO)
    todo = planned(kernel, ETH0, USUAL.tree(ETH0))
    assert todo.actions == ()
    assert todo.blocker is not None
    assert todo.blocker[0] is FaultReason.FOREIGN_QDISC
    assert "eth0: root qdisc pfifo 5: is not limiterd's" in todo.blocker[1]


def test_takeover_saves_first_and_restores_exactly() -> None:
    """The foreign root is saved, replaced, and comes back as it was."""
    kernel = fresh()
    taken_over(kernel, PFIFO)
    tree = USUAL.tree(ETH0)
    todo = planned(kernel, ETH0, tree, takeover=True)
    assert kinds(todo)[:3] == [ActionKind.SAVE_ROOT, ActionKind.DELETE_ROOT, ActionKind.ADD_ROOT]
    assert len(next(datagrams(todo.actions))) == 1
    carry_out(kernel, todo.actions)
    assert planned(kernel, ETH0, tree, PFIFO, takeover=True) == Plan()
    carry_out(kernel, planned(kernel, ETH0, None, PFIFO).actions)
    assert seen(kernel, ETH0).root == PFIFO
    assert planned(kernel, ETH0, None, PFIFO) == Plan()


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_takeover_broken_off_is_finished_or_undone(cut: int) -> None:
    """After any step the saved root still leads both on to the limit and back to what was."""
    for wanted in (USUAL.tree(ETH0), None):
        kernel = fresh()
        taken_over(kernel, PFIFO)
        for step in planned(kernel, ETH0, USUAL.tree(ETH0), takeover=True).actions[:cut]:
            carry_out(kernel, [step])
        carry_out(kernel, planned(kernel, ETH0, wanted, PFIFO, takeover=True).actions)
        root = seen(kernel, ETH0).root
        assert root is not None
        assert root == PFIFO if wanted is None else root.handle == HANDLE_ROOT


def test_a_root_that_changed_since_it_was_saved_is_not_deleted() -> None:
    """SAVE_ROOT fails where the root is another by now, and the rest is not sent."""
    kernel = fresh()
    taken_over(kernel, PFIFO)
    todo = planned(kernel, ETH0, USUAL.tree(ETH0), takeover=True)
    carry_out(kernel, [deed(ActionKind.DELETE_ROOT, PFIFO.handle)])
    taken_over(kernel, replace(PFIFO, options=b"\1\0\0\0"))
    results = kernel.apply(todo.actions)
    assert [r.errno for r in results] == [errno.ESTALE] + [-1] * (len(results) - 1)
    assert seen(kernel, ETH0).root == replace(PFIFO, options=b"\1\0\0\0")


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (
            RootQdisc("prio", 0x10000, b"", has_children=True, detail="with class 1:1"),
            "prio 1: (with class 1:1) is not limiterd's and could not be restored",
        ),
        (RootQdisc("tbf", 0x10000, b"", has_children=True, detail="with child qdisc pfifo 2:"), "could not be restored"),
        (RootQdisc("cake", 0x10000), "could not be restored"),
    ],
)
def test_what_cannot_be_restored_is_not_taken(root: RootQdisc, words: str) -> None:
    """Trees, and kinds that a dump does not bring back whole, stay where they are under takeover too."""
    todo = plan(ETH0, USUAL.tree(ETH0), TcActual(2, root), None, takeover=True)
    assert todo.actions == ()
    assert words in (todo.blocker or ("", ""))[1]


def test_a_second_foreign_root_is_not_taken() -> None:
    """Where a takeover's root is saved and yet another foreign root stands, that is a fault, not a prey."""
    todo = plan(ETH0, USUAL.tree(ETH0), TcActual(2, BFIFO), PFIFO, takeover=True)
    assert todo.actions == ()
    assert "in the place of limiterd's" in (todo.blocker or ("", ""))[1]


def test_a_saved_root_is_not_put_over_a_foreign_one() -> None:
    """When foreign hands have put a root of their own meanwhile, lifting the limit leaves it."""
    assert plan(ETH0, None, TcActual(2, BFIFO), PFIFO, takeover=True) == Plan()


def test_a_saved_root_comes_back_where_ours_is_gone_already() -> None:
    """Deleted by foreign hands or between two steps: the saved root is still due."""
    todo = plan(ETH0, None, TcActual(2, RootQdisc("mq", 0)), PFIFO, takeover=False)
    assert kinds(todo) == [ActionKind.RESTORE_ROOT]


def test_a_link_that_is_gone_needs_nothing() -> None:
    """No state, no steps, no obstacle."""
    assert plan(ETH0, USUAL.tree(ETH0), None, PFIFO, takeover=True) == Plan()
    assert differences(tree_for(Limit(), 10**8, ETH0, KernelAbilities()), None) == ("the limit's root qdisc is missing",)


def test_a_refused_limit_is_an_obstacle_and_what_stands_of_it_goes() -> None:
    """Exempt traffic on a kernel without u32: the half-made root is removed, then the reason is told."""
    kernel, _ = standing(EXEMPTING)
    refused = EXEMPTING.tree(ETH0, KernelAbilities(u32=False))
    todo = planned(kernel, ETH0, refused)
    assert (kinds(todo), todo.blocker) == ([ActionKind.DELETE_ROOT], None)
    carry_out(kernel, todo.actions)
    after = planned(kernel, ETH0, refused)
    assert (after.actions, (after.blocker or ("", ""))[0]) == ((), FaultReason.MISSING_MODULE)


def test_datagrams_keep_every_step_in_order() -> None:
    """Cutting loses nothing and reorders nothing; no steps make no datagram."""
    todo = planned(fresh(), ETH0, EXEMPTING.tree(ETH0))
    runs = list(datagrams(todo.actions))
    assert tuple(action for run in runs for action in run) == todo.actions
    assert len(runs) == 2
    assert list(datagrams(())) == []


@pytest.mark.parametrize(("handle", "text"), [(HANDLE_ROOT, "1d1d:"), (CLASS_DEFAULT, "1d1d:20"), (0x80010000, "8001:")])
def test_handles_read_as_tc_writes_them(handle: int, text: str) -> None:
    """Hexadecimal, the minor only where there is one."""
    assert name_of(handle) == text
