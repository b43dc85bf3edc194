"""From what is wanted, what the kernel shows and what was there before: the steps that lead from one to the other.

Rule: after every step the link carries traffic, unshaped or shaped, and the plan made from there leads to the same end.
A plan made from its own result is empty. The root of somebody else is never touched, but for a takeover.

Theory of operation. An HTB root whose default class does not exist (or is no leaf) passes everything by: adding the
*default class* is the moment at which the limit begins, so it comes when all that must not be limited (exempt traffic)
is already in place, and what merely makes the limit kinder (the lifeline) comes right after it. Roots are added
exclusively and deleted by handle: both fail, and change nothing, where the link is not as it was read. What stands is
changed in place; only what cannot be (the default class, a class's parent) costs the whole tree.

Several steps may travel in one datagram, whose later messages the kernel carries out even when an earlier one failed;
`datagrams` cuts where that could do harm.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import groupby
from typing import Final

from limiterd.core.errors import EnvironmentFault
from limiterd.core.htb_tree import LEAF_OF
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    NOT_SENT,
    Action,
    ActionKind,
    ActionResult,
    FaultReason,
    Filter,
    HtbClass,
    Leaf,
    Link,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.u32_filters import PRIO_LIFELINE, is_link

RESTORABLE: Final = frozenset({"pfifo", "bfifo", "pfifo_fast", "tbf", "noqueue", "fq", "fq_codel"})
"""Single qdiscs that their dumped options bring back whole."""
OUR_CLASSES: Final = frozenset({CLASS_LIMIT, *LEAF_OF})
_INSTALL_ORDER: Final = (CLASS_EXEMPT, CLASS_LIMIT, CLASS_DEFAULT, CLASS_LIFELINE)
_DISMANTLING_ORDER: Final = (CLASS_LIFELINE, CLASS_DEFAULT, CLASS_EXEMPT, CLASS_LIMIT)


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered steps; or an obstacle (why nothing can be done now); drift says in words what differs from the wanted."""

    actions: tuple[Action, ...] = ()
    blocker: tuple[FaultReason, str] | None = None
    drift: tuple[str, ...] = ()


def plan(
    link: Link, wanted: TcTree | None, actual: TcActual | None, replaced: RootQdisc | None, *, takeover: bool, stood: bool = False
) -> Plan:
    """The steps from `actual` to `wanted` on one link; wanted None: our tree goes, and `saved` comes back.

    actual None means that the link is gone: nothing to do. A foreign root is an obstacle unless `takeover` allows to
    replace it and it can be restored exactly. Where a limit of ours `stood` before, or `replaced` is another root, the
    foreign one was put in its place and is not taken. No actions and no obstacle for wanted None
    means done: `saved` has served then, whatever root now stands.
    """
    if actual is None:
        return Plan()
    if wanted is None:
        return Plan(_actions(link, _removal(actual, replaced)))
    if wanted.refused:
        return _refused(link, wanted, actual, replaced)
    if actual.ours:
        drift = differences(wanted, actual)
        steps = _repairs(wanted, actual.tree, actual.classes_with_children, _handles(actual.tree)) if drift else ()
        return Plan(_actions(link, steps), drift=drift)
    blocker = root_blocker(link.name, actual.foreign_root, replaced, takeover=takeover, stood=stood)
    if blocker:
        return Plan(blocker=(FaultReason.FOREIGN_QDISC, f"{link.name}: {blocker}"), drift=differences(wanted, actual))
    steps = (*_taking(actual.foreign_root), *_install(wanted))
    return Plan(_actions(link, steps), drift=differences(wanted, actual))


def teardown(link: Link, actual: TcActual | None) -> tuple[Action, ...]:
    """What of our tree goes ahead of its root when a limit is released: filters, then classes; () where others hold some of it.

    While the kernel destroys a root with all that hangs on it, the link has no queue and drops what comes: the less there
    is to destroy, the less is lost. Every prefix carries traffic, unlimited where the tree has been raised before.
    """
    if actual is None or actual.tree is None or actual.foreign or actual.classes_with_children:
        return ()
    return _actions(link, _teardown(actual.tree, _handles(actual.tree)))


def differences(wanted: TcTree, actual: TcActual | None) -> tuple[str, ...]:
    """What of the wanted tree the kernel does not show, in words; () means that it stands exactly as wanted.

    Foreign objects inside our tree are no difference, unless they undo the limit.
    """
    tree = None if actual is None else actual.tree
    if actual is None or tree is None:
        return ("the limit's root qdisc is missing",)
    return _differences(wanted, tree, actual.classes_with_children)


@lru_cache(maxsize=256)
def _differences(wanted: TcTree, tree: TcTree, classes_with_children: tuple[int, ...]) -> tuple[str, ...]:
    classes = {c.classid: c for c in tree.classes}
    leaves = {leaf.parent: leaf for leaf in tree.leaves}
    words = _rebuild_reasons(wanted, tree, classes_with_children)
    words += [w for c in wanted.classes if (w := _class_difference(c, classes.get(c.classid)))]
    words += [w for leaf in wanted.leaves if (w := _leaf_difference(leaf, leaves.get(leaf.parent)))]
    missing, surplus = _filter_balance(wanted, tree)
    words += [f"{len(missing)} filters missing"] * bool(missing) + [f"{len(surplus)} filters too many"] * bool(surplus)
    wanted_ids = {c.classid for c in wanted.classes}
    words += [f"class {name_of(c)} is not wanted any more" for c in classes if c in OUR_CLASSES - wanted_ids]
    return tuple(words)


def datagrams(actions: Sequence[Action]) -> Iterator[tuple[Action, ...]]:
    """Cut the steps of one link into runs that may each be sent at once.

    Where an earlier step of a run fails, the later ones must do no harm: exclusive adds under a missing root or class
    fail too. But the limit must not begin when the exempt traffic's filters failed; a prio must not go while one of its
    filters stayed; and SAVE_ROOT is a reading that decides about all that follows.
    """
    run: list[Action] = []
    done: set[ActionKind] = set()
    for action in actions:
        if run and _needs_certainty(action, done):
            yield tuple(run)
            run, done = [], set()
        done.add(action.kind)
        run.append(action)
    if run:
        yield tuple(run)


def carried_out(actions: Sequence[Action], send: Callable[[Sequence[Action]], Sequence[ActionResult]]) -> list[ActionResult]:
    """The answers to all steps, sent run by run; behind the first error of a link its steps count as not sent.

    Where send gets no answer (EnvironmentFault) that is the first step's error, and nothing is sent any more: whatever
    keeps the kernel from answering would hold up every other link as long.
    """
    results: list[ActionResult] = []
    silent = False
    for _, group in groupby(actions, key=lambda action: action.ifindex):
        failed = silent
        for run in datagrams(tuple(group)):
            try:
                answers = [] if failed else send(run)
            except EnvironmentFault as fault:
                silent = True
                answers = [ActionResult(run[0], getattr(errno, fault.errno_name, errno.ETIMEDOUT), str(fault))]
            for answer in answers:
                results.append(ActionResult(answer.action, NOT_SENT) if failed else answer)
                failed = failed or answer.errno != 0
            results += (ActionResult(action, NOT_SENT) for action in run[len(answers) :])
    return results


def _needs_certainty(action: Action, done: set[ActionKind]) -> bool:
    """Whether a step may only be sent when the answers to these others are known."""
    if isinstance(action.item, HtbClass) and action.item.classid == CLASS_DEFAULT:
        return ActionKind.ADD_FILTER in done
    return ActionKind.SAVE_ROOT in done or (action.kind is ActionKind.DELETE_FILTERS and ActionKind.DELETE_FILTER in done)


def name_of(handle: int) -> str:
    """A handle or classid as tc writes it: "1d1d:20"."""
    minor = handle & 0xFFFF
    return f"{handle >> 16:x}:{minor:x}" if minor else f"{handle >> 16:x}:"


# ---- the steps -----------------------------------------------------------------------------------
#
# Steps know no link, and are remembered: a thousand links are mostly given, shown and relieved of the same tree.

Step = tuple[ActionKind, HtbClass | Leaf | Filter | RootQdisc | int]


def _actions(link: Link, steps: Iterable[Step]) -> tuple[Action, ...]:
    return tuple([Action(kind, link.ifindex, link.name, item) for kind, item in steps])


def _handles(tree: TcTree | None) -> tuple[int, ...]:
    """What tells apart trees that are equal: the kernel's names for their filters."""
    return () if tree is None else tuple([f.handle for f in tree.filters])


def _removal(actual: TcActual, replaced: RootQdisc | None) -> Iterator[Step]:
    if actual.ours:
        yield ActionKind.DELETE_ROOT, HANDLE_ROOT
    if replaced is not None and actual.foreign_root is None:
        yield ActionKind.RESTORE_ROOT, replaced


def _refused(link: Link, wanted: TcTree, actual: TcActual, replaced: RootQdisc | None) -> Plan:
    """A limit that must not be: what stands of it goes first, then the obstacle is told."""
    actions = _actions(link, _removal(actual, replaced)) if actual.ours else ()
    blocker = None if actions else (FaultReason.MISSING_MODULE, f"{link.name}: {wanted.refused}")
    return Plan(actions, blocker, differences(wanted, actual))


def _taking(foreign: RootQdisc | None) -> Iterator[Step]:
    if foreign is not None:
        yield ActionKind.SAVE_ROOT, foreign
        yield ActionKind.DELETE_ROOT, foreign.handle


def root_blocker(name: str, foreign: RootQdisc | None, replaced: RootQdisc | None, *, takeover: bool, stood: bool) -> str:
    """Why a foreign root is left alone, and what to do; "" where there is none, or it may be taken over."""
    if foreign is None:
        return ""
    found = f"root qdisc {foreign.kind} {name_of(foreign.handle)}" + (f" ({foreign.detail})" if foreign.detail else "")
    remove = f"remove it: tc qdisc del dev {name} root"
    if stood or (takeover and replaced is not None and replaced != foreign):
        return f"{found} was put in the place of limiterd's; {remove}"
    if foreign.has_children or foreign.kind not in RESTORABLE:
        return f"{found} is not limiterd's and could not be restored exactly; {remove}"
    return "" if takeover else f"{found} is not limiterd's; {remove}, or set foreign_qdisc: takeover and reload"


@lru_cache(maxsize=256)
def _install(wanted: TcTree) -> tuple[Step, ...]:
    """A whole tree on a link without an explicit root."""
    return ((ActionKind.ADD_ROOT, wanted.default_classid), *_converge(wanted, TcTree(wanted.default_classid, (), ())))


@lru_cache(maxsize=256)
def _repairs(
    wanted: TcTree, tree: TcTree | None, classes_with_children: tuple[int, ...], _handles: tuple[int, ...]
) -> tuple[Step, ...]:
    if tree is None or _rebuild_reasons(wanted, tree, classes_with_children):
        return ((ActionKind.DELETE_ROOT, HANDLE_ROOT), *_install(wanted))
    return tuple(_converge(wanted, tree))


@lru_cache(maxsize=256)
def _teardown(tree: TcTree, _handles: tuple[int, ...]) -> tuple[Step, ...]:
    found = _by_classid(tree)
    classes = ((ActionKind.DELETE_CLASS, classid) for classid in _DISMANTLING_ORDER if classid in found)
    return (*_clearing(tree.filters, {f.prio for f in tree.filters}), *classes)


def _converge(wanted: TcTree, tree: TcTree) -> Iterator[Step]:
    """Steps inside our standing root: exempt traffic first, then the limit, then its lifeline, then what must go."""
    blocked = _blocked_prios(wanted, tree)
    kept = replace(tree, filters=tuple(f for f in tree.filters if f.prio not in blocked))
    missing, surplus = _filter_balance(wanted, kept)
    yield from _clearing((f for f in tree.filters if f.prio in blocked), blocked)
    for classid in _INSTALL_ORDER:
        yield from _class_steps(classid, wanted, tree)
        yield from ((ActionKind.ADD_FILTER, f) for f in missing if _class_of(f) == classid)
    yield from _clearing(surplus, {f.prio for f in surplus} - {f.prio for f in wanted.filters})
    for classid in (CLASS_LIFELINE, CLASS_EXEMPT):
        if classid in _by_classid(tree) and classid not in _by_classid(wanted):
            yield ActionKind.DELETE_CLASS, classid


def _clearing(filters: Iterable[Filter], prios: Iterable[int]) -> Iterator[Step]:
    """Filters go one by one, links last (what hangs in a link's table would outlive its prio, unseen); then whole prios."""
    for item in sorted(filters, key=is_link):
        yield ActionKind.DELETE_FILTER, item
    for prio in sorted(prios):
        yield ActionKind.DELETE_FILTERS, prio


def _class_steps(classid: int, wanted: TcTree, tree: TcTree) -> Iterator[Step]:
    """One class and the queue under it, made or changed."""
    item = _by_classid(wanted).get(classid)
    if item is None:
        return
    found = _by_classid(tree).get(classid)
    if found is None:
        yield ActionKind.ADD_CLASS, item
    elif _class_difference(item, found):
        yield ActionKind.CHANGE_CLASS, item
    leaf = _by_parent(wanted).get(classid)
    if leaf is not None:
        yield from _leaf_steps(leaf, None if found is None else _by_parent(tree).get(classid))


def _leaf_steps(leaf: Leaf, found: Leaf | None) -> Iterator[Step]:
    if found == leaf:
        return
    if found is not None and _same_queue(leaf, found):
        yield ActionKind.CHANGE_LEAF, leaf
        return
    if found is not None:
        yield ActionKind.DELETE_LEAF, found
    yield ActionKind.ADD_LEAF, leaf


def _same_queue(leaf: Leaf, found: Leaf) -> bool:
    """Whether only what can be changed in place differs: fq_codel's flows cannot."""
    return (found.handle, found.kind, found.flows, found.altered) == (leaf.handle, leaf.kind, leaf.flows, leaf.altered)


# ---- comparing -----------------------------------------------------------------------------------


def _by_classid(tree: TcTree) -> dict[int, HtbClass]:
    return {c.classid: c for c in tree.classes if c.classid in OUR_CLASSES}


def _by_parent(tree: TcTree) -> dict[int, Leaf]:
    return {leaf.parent: leaf for leaf in tree.leaves if leaf.parent in LEAF_OF}


def _class_of(item: Filter) -> int:
    """The class that a filter of ours, link or not, works for."""
    return CLASS_EXEMPT if item.prio < PRIO_LIFELINE else CLASS_LIFELINE


def _rebuild_reasons(wanted: TcTree, tree: TcTree, classes_with_children: tuple[int, ...]) -> list[str]:
    """What cannot be put right inside a standing root."""
    found = _by_classid(tree)
    words = [f"class {name_of(i)} has foreign classes under it and passes its traffic by" for i in classes_with_children]
    if CLASS_EXEMPT in found.keys() - _by_classid(wanted).keys() and not any(_class_of(f) == CLASS_EXEMPT for f in tree.filters):
        words.append("the filters of exempt traffic were deleted by others, who may have left unseen ones that hold its class")
    if tree.default_classid != wanted.default_classid:
        words.append(f"default class is {name_of(tree.default_classid)}, wanted {name_of(wanted.default_classid)}")
    for item in wanted.classes:
        there = found.get(item.classid)
        if there is not None and there.parent != item.parent:
            words.append(f"class {name_of(item.classid)} is under {name_of(there.parent)}, wanted {name_of(item.parent)}")
    return words


def _class_difference(item: HtbClass, found: HtbClass | None) -> str:
    if found is None:
        return f"class {name_of(item.classid)} is missing"
    if item == found:
        return ""
    return _fields_that_differ(f"class {name_of(item.classid)}", _comparable(item), _comparable(found))


def _comparable(item: HtbClass) -> HtbClass:
    """HTB keeps quantum and prio for leaf classes alone: in the limit's own class they mean nothing and stay as made."""
    return replace(item, quantum_bytes=0, prio=0, parent=0) if item.classid == CLASS_LIMIT else replace(item, parent=0)


def _leaf_difference(leaf: Leaf, found: Leaf | None) -> str:
    if found is None:
        return f"queue {name_of(leaf.handle)} is missing"
    return _fields_that_differ(f"queue {name_of(leaf.handle)}", leaf, found)


def _fields_that_differ(what: str, wanted: HtbClass | Leaf, found: HtbClass | Leaf) -> str:
    if wanted == found:
        return ""
    pairs = ((f.name, getattr(found, f.name), getattr(wanted, f.name)) for f in fields(wanted))
    return f"{what}: " + ", ".join(f"{name} {is_}, wanted {due}" for name, is_, due in pairs if is_ != due)


def _blocked_prios(wanted: TcTree, tree: TcTree) -> set[int]:
    """Prios that hold what no filter of ours can stand beside: another classifier, another ethertype."""
    kinds = {f.prio: (f.kind, f.ethertype) for f in wanted.filters}
    return {f.prio for f in tree.filters if f.prio in kinds and (f.kind, f.ethertype) != kinds[f.prio]}


def _filter_balance(wanted: TcTree, tree: TcTree) -> tuple[list[Filter], list[Filter]]:
    """(missing, surplus): our prios hold each wanted filter once; of equal ones the first found is kept."""
    if not tree.filters:
        return list(wanted.filters), []
    open_ = Counter(wanted.filters)
    surplus: list[Filter] = []
    for item in tree.filters:
        if open_[item] > 0:
            open_[item] -= 1
        else:
            surplus.append(item)
    return [f for f in wanted.filters if open_[f] > 0], surplus
