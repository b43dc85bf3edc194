"""A kernel in memory: links with root qdiscs, HTB trees, queues and filters, with the kernel's own answers to every step.

Rule: whatever the real kernel refuses, it refuses with the same errno, and what it silently does (a root's default comes
back, a class without its parent lands at the root, a bad default passes traffic by) it does too. One suite holds both to
that (tests/kernel/test_tc_contract.py). For tests and replay; no I/O, and time only passes in `advance`.

Theory of operation. Steps of foreign hands are steps like ours: `apply` takes any Action. `refuse` makes the n-th next
step fail, `silent` all of them go unanswered. `offer` and `advance` let traffic flow as a fluid, enough to move
counters: the device's, the limit's, the queue's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final

from limiterd.core.errors import EnvironmentFault
from limiterd.core.htb_tree import LEAF_OF
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIMIT,
    HANDLE_ROOT,
    Action,
    ActionKind,
    ActionResult,
    ClassStats,
    Filter,
    HtbClass,
    KernelAbilities,
    Leaf,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.plan import OUR_CLASSES, carried_out, name_of
from limiterd.core.u32_filters import OUR_PRIOS, is_link
from limiterd.core.units import NS_PER_SECOND

_LOST_ANSWERS: Final = frozenset({errno.ETIMEDOUT, errno.ENOBUFS})
"""Refusals by these stand for an answer that does not come: nobody knows what of the datagram was carried out."""
_PACKET_BYTES: Final = 1_514
_QDISCS: Final = frozenset({"pfifo", "bfifo", "pfifo_fast", "tbf", "noqueue", "fq", "prio", "mq"})
_FIRST_FREE_MAJOR: Final = 0x8001


class _RefusalError(Exception):
    """The kernel's no, inside this file only."""

    def __init__(self, number: int, text: str = "") -> None:
        self.number = number
        self.text = text
        super().__init__(text)


@dataclass(slots=True)
class _Htb:
    """Our root, or a foreign tree under the same handle."""

    default_classid: int
    classes: dict[int, HtbClass] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    filters: list[Filter] = field(default_factory=list)
    tables: set[int] = field(default_factory=set)
    orphans: list[Filter] = field(default_factory=list)
    """Filters in the table of a prio that was deleted whole: unseen, still bound, seen again with the prio."""
    direct_packets: int = 0
    stats: ClassStats = field(default_factory=ClassStats)

    def is_inner(self, classid: int) -> bool:
        """Whether other classes stand under this one."""
        return any(c.parent == classid for c in self.classes.values())

    def passes_by(self) -> bool:
        """Whether unclassified traffic goes past all classes: the default is missing or no leaf."""
        return self.default_classid not in self.classes or self.is_inner(self.default_classid)


@dataclass(slots=True)
class FakeLink:
    """One link; tx_bytes is its device counter, offered_bps what its users try to send.

    stalled_bytes is what waits in our tree outside the limit: the device does not take it. bypass_bps goes to the device
    without its qdisc, exempt_bps through the exempt class where there is one.
    """

    default_kind: str = "noqueue"
    visible: bool = True
    root: RootQdisc | None = None
    htb: _Htb | None = None
    tx_bytes: int = 0
    offered_bps: int = 0
    stalled_bytes: int = 0
    bypass_bps: int = 0
    exempt_bps: int = 0


@dataclass(slots=True)
class _Machine:
    """What the kernel is made of, and the names it gives."""

    able: KernelAbilities
    handles: Iterator[int] = field(default_factory=lambda: count(_FIRST_FREE_MAJOR))
    filter_handles: Iterator[int] = field(default_factory=lambda: count(0x8000_0800))

    def know(self, kind: str) -> None:
        """Refuse a qdisc that this kernel has not."""
        if kind not in _QDISCS and not (kind == "fq_codel" and self.able.fq_codel):
            raise _RefusalError(errno.ENOENT, "Specified qdisc kind is unknown")


class FakeKernel:
    """TcPort in memory. now_ns stamps readings."""

    def __init__(
        self, *, abilities: KernelAbilities | None = None, fq_codel: bool = False, now_ns: Callable[[], int] = lambda: 0
    ) -> None:
        self.links: dict[int, FakeLink] = {}
        self._machine = _Machine(abilities or KernelAbilities(fq_codel=fq_codel))
        self.silent = False
        self.waits = 0
        """How often somebody waited for an answer in vain."""
        self.sent: list[Action] = []
        """Every step that reached this kernel, refused or not."""
        self._refusals: dict[int, int] = {}
        self._now_ns = now_ns

    # ---- the world around

    def add_link(self, ifindex: int, default_kind: str = "noqueue", *, visible: bool = True) -> FakeLink:
        """A new link; visible False: never up, its root qdisc does not show."""
        self.links[ifindex] = FakeLink(default_kind, visible)
        return self.links[ifindex]

    def delete_link(self, ifindex: int) -> None:
        """The link is gone, with everything on it."""
        del self.links[ifindex]

    def refuse(self, step: int, number: int = errno.ENOMEM) -> None:
        """The step-th step from now (0: the next) fails with this errno, once."""
        self._refusals[len(self.sent) + step] = number

    def offer(self, ifindex: int, rate_bps: int) -> None:
        """From now on the link's users try to send at this rate."""
        self.links[ifindex].offered_bps = rate_bps

    def advance(self, duration_ns: int) -> None:
        """Let the offered traffic flow for a while."""
        for link in self.links.values():
            _flow(link, duration_ns)

    # ---- TcPort

    def roots(self) -> Mapping[int, RootQdisc]:
        """Every visible root qdisc. Raises EnvironmentFault when silent."""
        self._speak("dump")
        return {ifindex: root for ifindex, link in self.links.items() if (root := _root(link)) is not None}

    def read(self, ifindexes: Iterable[int]) -> Mapping[int, TcActual]:
        """The full tc state of these links; unknown ones are left out. Raises EnvironmentFault when silent."""
        self._speak("dump")
        return {i: _actual(i, self.links[i], self._now_ns()) for i in sorted(set(ifindexes)) if i in self.links}

    def apply(self, actions: Sequence[Action]) -> list[ActionResult]:
        """As the real one: per link the first error ends it, but what shares the datagram is still carried out."""
        return carried_out(actions, self._send)

    def abilities(self) -> KernelAbilities:
        """What this kernel says of itself: u32 is assumed, as on the real one, until a filter fails."""
        return replace(self._machine.able, u32=True)

    def close(self) -> None:
        """Nothing to release."""

    def _speak(self, operation: str) -> None:
        if self.silent:
            self.waits += 1
            raise EnvironmentFault("netlink: no answer from the kernel", operation=operation, errno_name="ETIMEDOUT")

    def _send(self, run: Sequence[Action]) -> list[ActionResult]:
        self._speak("apply")
        results = [self._step(action) for action in run]
        lost = next((r.errno for r in results if r.errno in _LOST_ANSWERS), 0)
        if lost:
            raise EnvironmentFault("netlink: the answer was lost", operation="apply", errno_name=errno.errorcode[lost])
        return results

    def _step(self, action: Action) -> ActionResult:
        place = len(self.sent)
        self.sent.append(action)
        if place in self._refusals:
            return ActionResult(action, self._refusals.pop(place), "refused on request")
        if action.ifindex not in self.links:
            return ActionResult(action, errno.ENODEV)
        try:
            _STEPS[action.kind](self._machine, self.links[action.ifindex], action.item)
        except _RefusalError as no:
            return ActionResult(action, no.number, no.text)
        return ActionResult(action)


# ---- the steps -----------------------------------------------------------------------------------


def _save_root(_: _Machine, link: FakeLink, item: RootQdisc) -> None:
    if _root(link) != item:
        raise _RefusalError(errno.ESTALE, "the root qdisc is not the one that was saved")


def _delete_root(_: _Machine, link: FakeLink, handle: int) -> None:
    root = _root(link)
    if root is None or root.handle != handle:
        raise _RefusalError(errno.EINVAL, "Invalid handle")
    link.root = link.htb = None


def _add_root(machine: _Machine, link: FakeLink, default_classid: int) -> None:
    _vacant(link)
    if not machine.able.htb:
        raise _RefusalError(errno.ENOENT, "Specified qdisc kind is unknown")
    link.htb = _Htb(default_classid)


def _restore_root(machine: _Machine, link: FakeLink, item: RootQdisc) -> None:
    _vacant(link)
    machine.know(item.kind)
    handle = item.handle or next(machine.handles) << 16
    link.root = replace(item, handle=handle)


def _add_class(machine: _Machine, link: FakeLink, item: HtbClass) -> None:
    """Two messages, the add and a change of the burst: the second is carried out though the first was refused."""
    htb = _tree(link)
    if item.classid in htb.classes:
        _change_class(machine, link, item)
        raise _RefusalError(errno.EEXIST, "")
    parent = item.parent if item.parent in htb.classes else HANDLE_ROOT
    htb.leaves.pop(parent, None)
    htb.classes[item.classid] = replace(item, parent=parent)


def _change_class(_: _Machine, link: FakeLink, item: HtbClass) -> None:
    htb = _tree(link)
    standing = htb.classes.get(item.classid)
    if standing is None:
        raise _RefusalError(errno.ENOENT, "")
    if htb.is_inner(item.classid):
        item = replace(item, quantum_bytes=standing.quantum_bytes, prio=standing.prio)
    htb.classes[item.classid] = replace(item, parent=standing.parent)


def _delete_class(_: _Machine, link: FakeLink, classid: int) -> None:
    htb = _tree(link)
    if classid not in htb.classes:
        raise _RefusalError(errno.ENOENT, "")
    if htb.is_inner(classid) or any(f.flowid == classid for f in (*htb.filters, *htb.orphans)):
        raise _RefusalError(errno.EBUSY, "HTB class in use")
    del htb.classes[classid]
    htb.leaves.pop(classid, None)


def _add_leaf(machine: _Machine, link: FakeLink, item: Leaf) -> None:
    htb = _tree(link)
    if item.parent not in htb.classes:
        raise _RefusalError(errno.ENOENT, "")
    if item.parent in htb.leaves or item.handle in {leaf.handle for leaf in htb.leaves.values()}:
        raise _RefusalError(errno.EEXIST, "Exclusivity flag on, cannot modify")
    machine.know(item.kind)
    if htb.is_inner(item.parent):
        raise _RefusalError(errno.EINVAL, "Failed to graft")
    htb.leaves[item.parent] = item if item.kind in {"bfifo", "fq_codel"} else Leaf(item.handle, item.parent, item.kind)


def _change_leaf(_: _Machine, link: FakeLink, item: Leaf) -> None:
    htb = _tree(link)
    standing = htb.leaves.get(item.parent)
    if standing is None:
        raise _RefusalError(errno.ENOENT, "Qdisc not found. To create specify NLM_F_CREATE flag")
    if standing.handle != item.handle:
        raise _RefusalError(errno.EEXIST, "NLM_F_REPLACE needed to override")
    if standing.kind != item.kind:
        raise _RefusalError(errno.EINVAL, "Invalid qdisc name: must match existing qdisc")
    htb.leaves[item.parent] = replace(item, flows=standing.flows, altered=standing.altered)


def _delete_leaf(_: _Machine, link: FakeLink, item: Leaf) -> None:
    htb = _tree(link)
    standing = htb.leaves.get(item.parent)
    if item.parent not in htb.classes or htb.is_inner(item.parent):
        raise _RefusalError(errno.ENOENT, "Cannot find specified qdisc on specified device")
    if standing is None or standing.handle != item.handle:
        raise _RefusalError(errno.EINVAL, "Invalid handle")
    del htb.leaves[item.parent]


def _add_filter(machine: _Machine, link: FakeLink, item: Filter) -> None:
    htb = _tree(link, missing=errno.EINVAL)
    if not machine.able.u32:
        raise _RefusalError(errno.ENOENT, "TC classifier not found")
    if any(f.prio == item.prio and f.ethertype != item.ethertype for f in htb.filters):
        raise _RefusalError(errno.EINVAL, "Specified filter protocol does not match existing one")
    if is_link(item):
        htb.tables.add(item.prio)
    elif any(relative for *_, relative in item.keys) and item.prio not in htb.tables:
        raise _RefusalError(errno.EINVAL, "Specified hash table not found")
    htb.filters += [f for f in htb.orphans if f.prio == item.prio]
    htb.orphans = [f for f in htb.orphans if f.prio != item.prio]
    htb.filters.append(replace(item, handle=next(machine.filter_handles)))


def _delete_filter(_: _Machine, link: FakeLink, item: Filter) -> None:
    htb = _tree(link, missing=errno.EINVAL)
    found = next((f for f in htb.filters if (f.prio, f.handle) == (item.prio, item.handle)), None)
    if found is None:
        raise _RefusalError(errno.ENOENT, "Specified filter handle not found")
    htb.filters.remove(found)


def _delete_filters(_: _Machine, link: FakeLink, prio: int) -> None:
    htb = _tree(link, missing=errno.EINVAL)
    left = [f for f in htb.filters if f.prio == prio and any(relative for *_, relative in f.keys)]
    htb.filters = [f for f in htb.filters if f.prio != prio]
    htb.orphans = htb.orphans + left if htb.filters else []  # u32's tables go with the last prio of the root


def _vacant(link: FakeLink) -> None:
    if link.root is not None or link.htb is not None:
        raise _RefusalError(errno.EEXIST, "Exclusivity flag on, cannot modify")


def _tree(link: FakeLink, missing: int = errno.ENOENT) -> _Htb:
    if link.htb is None:
        raise _RefusalError(missing, "Parent Qdisc doesn't exists" if missing == errno.EINVAL else "")
    return link.htb


_STEPS: Final[Mapping[ActionKind, Callable[[_Machine, FakeLink, Any], None]]] = {
    ActionKind.SAVE_ROOT: _save_root,
    ActionKind.DELETE_ROOT: _delete_root,
    ActionKind.ADD_ROOT: _add_root,
    ActionKind.ADD_CLASS: _add_class,
    ActionKind.CHANGE_CLASS: _change_class,
    ActionKind.DELETE_CLASS: _delete_class,
    ActionKind.ADD_LEAF: _add_leaf,
    ActionKind.CHANGE_LEAF: _change_leaf,
    ActionKind.DELETE_LEAF: _delete_leaf,
    ActionKind.ADD_FILTER: _add_filter,
    ActionKind.DELETE_FILTER: _delete_filter,
    ActionKind.DELETE_FILTERS: _delete_filters,
    ActionKind.RESTORE_ROOT: _restore_root,
}


# ---- what shows ----------------------------------------------------------------------------------


def _root(link: FakeLink) -> RootQdisc | None:
    if link.htb is not None:
        return RootQdisc("htb", HANDLE_ROOT)
    if link.root is not None:
        return link.root
    return RootQdisc(link.default_kind, 0) if link.visible else None


def _actual(ifindex: int, link: FakeLink, now_ns: int) -> TcActual:
    htb = link.htb
    if htb is None:
        return TcActual(ifindex, _root(link), read_t_ns=now_ns)
    classes = sorted(htb.classes.values(), key=lambda c: c.classid)
    queues = sorted(htb.leaves.values(), key=lambda leaf: leaf.parent)
    return TcActual(
        ifindex=ifindex,
        root=_root(link),
        tree=TcTree(
            htb.default_classid,
            tuple(c for c in classes if c.classid in OUR_CLASSES),
            tuple(leaf for leaf in queues if leaf.parent in LEAF_OF),
            tuple(f for f in sorted(htb.filters, key=lambda f: f.prio) if f.prio in OUR_PRIOS),
        ),
        stats=htb.stats,
        direct_packets=htb.direct_packets,
        foreign=_foreign(htb, classes, queues),
        read_t_ns=now_ns,
        classes_with_children=tuple(sorted({c.parent for c in classes if c.parent in LEAF_OF})),
        queued_bytes=htb.stats.backlog_bytes + link.stalled_bytes,
    )


def _foreign(htb: _Htb, classes: Sequence[HtbClass], queues: Sequence[Leaf]) -> tuple[str, ...]:
    known = set(LEAF_OF.values())
    return (
        *(f"class {name_of(c.classid)}" for c in classes if c.classid not in OUR_CLASSES),
        *(f"qdisc {q.kind} {name_of(q.handle)} under {name_of(q.parent)}" for q in queues if q.handle not in known),
        *(
            f"{kind} filter at prio {prio}"
            for prio, kind in sorted({(f.prio, f.kind) for f in htb.filters})
            if prio not in OUR_PRIOS
        ),
    )


# ---- traffic -------------------------------------------------------------------------------------


def _flow(link: FakeLink, duration_ns: int) -> None:
    """What is offered goes out, but for what the limit holds back: that queues, and beyond the queue is dropped."""
    offered_bytes = link.offered_bps * duration_ns // (8 * NS_PER_SECOND)
    htb = link.htb
    exempt_bytes = link.exempt_bps * duration_ns // (8 * NS_PER_SECOND)
    link.tx_bytes += link.bypass_bps * duration_ns // (8 * NS_PER_SECOND) + exempt_bytes
    if htb is not None and CLASS_EXEMPT in htb.classes:
        htb.stats = replace(htb.stats, exempt_bytes=htb.stats.exempt_bytes + exempt_bytes)
    if htb is None:
        link.tx_bytes += offered_bytes
    elif htb.passes_by():
        link.tx_bytes += offered_bytes
        htb.direct_packets += -(-offered_bytes // _PACKET_BYTES)
    else:
        _shape(link, htb, offered_bytes, duration_ns)


def _shape(link: FakeLink, htb: _Htb, offered_bytes: int, duration_ns: int) -> None:
    limit = htb.classes.get(CLASS_LIMIT, htb.classes[htb.default_classid])
    leaf = htb.leaves.get(CLASS_DEFAULT)
    room_bytes = leaf.limit_bytes if leaf is not None and leaf.limit_bytes else 1_000 * _PACKET_BYTES
    demand_bytes = offered_bytes + htb.stats.backlog_bytes
    sent_bytes = min(demand_bytes, limit.ceil_bps * duration_ns // (8 * NS_PER_SECOND))
    backlog_bytes = min(demand_bytes - sent_bytes, room_bytes)
    lost_packets = -(-(demand_bytes - sent_bytes - backlog_bytes) // _PACKET_BYTES)
    link.tx_bytes += sent_bytes
    htb.stats = ClassStats(
        sent_bytes=htb.stats.sent_bytes + sent_bytes,
        sent_packets=(htb.stats.sent_bytes + sent_bytes) // _PACKET_BYTES,
        drops=htb.stats.drops + lost_packets,
        overlimits=htb.stats.overlimits + (demand_bytes > sent_bytes),
        backlog_bytes=backlog_bytes,
        exempt_bytes=htb.stats.exempt_bytes,
    )
