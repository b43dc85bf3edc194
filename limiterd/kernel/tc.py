"""The kernel's traffic control through rtnetlink: reads the whole tc state of links, carries out the steps of plans.

Rule: what the kernel answers to a step is data (ActionResult), its silence too. Per link the first error ends the plan:
what was behind it in the same datagram may still have been carried out (core/plan.py's `datagrams` sees to it that this
does no harm) and is reported as not sent, for the next reading shows it anyway.

Theory of operation. The steps of one link that may travel together leave in one sendmsg: the kernel works them off
before it returns, some microseconds apart, and no signal can come between them. Reading needs one dump of all qdiscs of
the namespace and, for each link with a root of ours (or with one to look into), dumps of its classes and filters.

Stands in for SAVE_ROOT: a reading that the root to be deleted still is the one that was saved, else ESTALE.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Self

from limiterd.core.errors import PermissionFault
from limiterd.core.matches import OUR_PRIOS
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    PARENT_ROOT,
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
from limiterd.core.shape import LEAF_OF
from limiterd.kernel import tcwire as wire
from limiterd.kernel.netlink import Ack, MalformedMessage, Message, NetlinkSocket
from limiterd.kernel.tcwire import TcMsg

_LOOPBACK_IFINDEX: Final = 1
_UNKNOWN_KIND: Final = frozenset({"Specified qdisc kind is unknown", "Specified qdisc not found", "Unknown qdisc"})
_CLASSFUL_IN_NAME: Final = frozenset({"tbf", "fq_codel"})
"""What these show as classes (the one inside, the flows with a backlog) is part of the qdisc."""
_CHILD_MAJOR: Final = 0xFFFF0000
_INGRESS_MAJOR: Final = 0xFFFF
_MOST_NAMED: Final = 8
"""Classes of a foreign root that a message lists."""

_ENCODERS: Final[Mapping[ActionKind, Callable[[int, Any], Message | tuple[Message, ...]]]] = {
    ActionKind.DELETE_ROOT: wire.delete_root,
    ActionKind.ADD_ROOT: wire.add_root,
    ActionKind.ADD_CLASS: wire.add_class,
    ActionKind.CHANGE_CLASS: wire.change_class,
    ActionKind.DELETE_CLASS: wire.delete_class,
    ActionKind.ADD_LEAF: wire.add_leaf,
    ActionKind.CHANGE_LEAF: wire.change_leaf,
    ActionKind.DELETE_LEAF: wire.delete_leaf,
    ActionKind.ADD_FILTER: wire.add_filter,
    ActionKind.DELETE_FILTER: wire.delete_filter,
    ActionKind.DELETE_FILTERS: wire.delete_filters,
    ActionKind.RESTORE_ROOT: wire.restore_root,
}

_AS_GOOD_AS_DONE: Final = {ActionKind.DELETE_FILTERS: errno.ENOENT}
"""A prio vanishes by itself with the last filter of its kind."""


class TcKernel:
    """TcPort on the network namespace of the thread that makes it. timeout_s bounds the wait for the kernel's answers."""

    def __init__(self, *, timeout_s: float = 2.0) -> None:
        self._socket = NetlinkSocket(timeout_s=timeout_s)
        self._abilities: KernelAbilities | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port_id(self) -> int:
        """The netlink address whose changes are our own: events that carry it tell nothing new."""
        return self._socket.port_id

    def close(self) -> None:
        """Release the descriptor; again is harmless."""
        self._socket.close()

    # ---- reading

    def roots(self) -> Mapping[int, RootQdisc]:
        """Every visible root qdisc of the namespace, in one dump.

        Filters and classes of a foreign root are not looked for: has_children knows of child qdiscs only. Raises
        EnvironmentFault(operation="dump").
        """
        with _understood():
            return {
                ifindex: root
                for ifindex, qdiscs in self._qdiscs(None).items()
                if (root := _root(qdiscs, found=(), raw=_raw_root(qdiscs))) is not None
            }

    def read(self, ifindexes: Iterable[int]) -> Mapping[int, TcActual]:
        """The full tc state of these links; a link that vanished, or never existed, is left out.

        Raises EnvironmentFault(operation="dump").
        """
        asked = frozenset(ifindexes)
        if not asked:
            return {}
        with _understood():
            qdiscs = self._qdiscs(asked)
            found = ((ifindex, self._actual(ifindex, qdiscs.get(ifindex, ()))) for ifindex in sorted(asked))
            return {ifindex: actual for ifindex, actual in found if actual is not None}

    def _qdiscs(self, asked: frozenset[int] | None) -> dict[int, list[TcMsg]]:
        # tc qdisc show
        found: dict[int, list[TcMsg]] = {}
        for _, payload in self._socket.dump(wire.RTM_GETQDISC, wire.dump_request()):
            ifindex = wire.ifindex_of(payload)
            if asked is None or ifindex in asked:
                found.setdefault(ifindex, []).append(wire.decode(payload))
        return found

    def _actual(self, ifindex: int, qdiscs: Sequence[TcMsg]) -> TcActual | None:
        raw = _raw_root(qdiscs)
        if raw is None and not self._exists(ifindex):
            return None
        classes: tuple[TcMsg, ...] = ()
        filters: tuple[wire.SeenFilter, ...] = ()
        if raw is not None and raw.handle:
            # tc class show dev IF; tc filter show dev IF parent H:
            classes = self._dump(wire.RTM_GETTCLASS, ifindex)
            filters = self._filters(ifindex, raw.handle)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if raw is None or (raw.kind, raw.handle) != ("htb", HANDLE_ROOT):
            return TcActual(ifindex, _root(qdiscs, found=_found(raw, classes, filters), raw=raw), read_t_ns=now_ns)
        return _ours(ifindex, raw, qdiscs, classes, filters, now_ns)

    def _dump(self, kind: int, ifindex: int, parent: int = 0) -> tuple[TcMsg, ...]:
        messages = (wire.decode(payload) for _, payload in self._socket.dump(kind, wire.dump_request(ifindex, parent)))
        return tuple(m for m in messages if m.ifindex == ifindex)

    def _filters(self, ifindex: int, parent: int) -> tuple[wire.SeenFilter, ...]:
        payloads = self._socket.dump(wire.RTM_GETTFILTER, wire.dump_request(ifindex, parent))
        return tuple(wire.seen_filter(wire.without_link(p)) for _, p in payloads if wire.ifindex_of(p) == ifindex)

    def _exists(self, ifindex: int) -> bool:
        """Tells a link without a visible root (never up) from one that is gone."""
        (ack,) = self._socket.request([wire.link_request(ifindex)], operation="dump")
        return ack.ok

    # ---- changing

    def apply(self, actions: Sequence[Action]) -> list[ActionResult]:
        """Carry out actions in order; see core/plan.py's carried_out for what an error or a silence ends."""
        return carried_out(actions, self._send)

    def _send(self, run: Sequence[Action]) -> list[ActionResult]:
        """One sendmsg for the run; the answer to each action."""
        if run[-1].kind is ActionKind.SAVE_ROOT:
            head = self._send(run[:-1]) if run[:-1] else []
            return [*head, self._still_saved(run[-1])]
        encoded = [_encode(action) for action in run]
        acks = iter(self._socket.request([m for messages in encoded for m in messages], operation="apply", terse=True))
        return [_judge(action, [next(acks) for _ in messages]) for action, messages in zip(run, encoded, strict=True)]

    def _still_saved(self, action: Action) -> ActionResult:
        actual = self.read((action.ifindex,)).get(action.ifindex)
        if actual is None:
            return ActionResult(action, errno.ENODEV, "the link is gone")
        saved = actual.root == action.item
        return (
            ActionResult(action) if saved else ActionResult(action, errno.ESTALE, "the root qdisc is not the one that was saved")
        )

    # ---- abilities

    def abilities(self) -> KernelAbilities:
        """What this kernel can do, found without touching any existing link.

        Qdiscs are asked for by an add to the loopback that cannot succeed (tcwire.probe). u32 can only be learned from
        the first filter: it is taken to be there. Without CAP_NET_ADMIN nothing can be asked: the answer is then the
        least, and is not remembered.
        """
        if self._abilities is None:
            try:
                self._abilities = KernelAbilities(fq_codel=self._knows("fq_codel"), htb=self._knows("htb"))
            except PermissionFault:
                return KernelAbilities()
        return self._abilities

    def _knows(self, kind: str) -> bool:
        (ack,) = self._socket.request([wire.probe(_LOOPBACK_IFINDEX, kind)], operation="probe")
        if ack.errno == errno.EPERM:
            raise PermissionFault("tc: probing needs CAP_NET_ADMIN", operation="probe", errno_name="EPERM")
        return ack.errno != errno.ENOENT and not any(text in ack.text for text in _UNKNOWN_KIND)


def _encode(action: Action) -> Sequence[Message]:
    if action.kind is ActionKind.DELETE_FILTER:  # two filters are equal though their handles differ: not to be remembered
        return _messages(_ENCODERS[action.kind](action.ifindex, action.item))
    return [wire.for_link(message, action.ifindex) for message in _template(action.kind, action.item)]


@lru_cache(maxsize=1024)
def _template(kind: ActionKind, item: HtbClass | Leaf | Filter | RootQdisc | int | None) -> Sequence[Message]:
    """The messages of a step for whichever link: a thousand links are given the same limit."""
    return _messages(_ENCODERS[kind](0, item))


def _messages(encoded: Message | tuple[Message, ...]) -> Sequence[Message]:
    return (encoded,) if isinstance(encoded, Message) else encoded


def _judge(action: Action, acks: Sequence[Ack]) -> ActionResult:
    """The answer to an action: the first that matters, where it is several messages."""
    table, *rest = acks
    if rest and action.kind is ActionKind.ADD_FILTER and table.errno == errno.EEXIST:
        return _judge(action, rest)  # the table of a link that stands already is as good as a new one
    bad = next((ack for ack in acks if not ack.ok and ack.errno != _AS_GOOD_AS_DONE.get(action.kind)), None)
    if bad is None:
        return ActionResult(action)
    unknown = any(text in bad.text for text in _UNKNOWN_KIND)
    return ActionResult(action, errno.ENOENT if unknown else bad.errno, bad.text)


# ---- what was read, put together -----------------------------------------------------------------


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """An attribute that is shorter than its structure, wherever in the dump: a fault like other malformed messages."""
    try:
        yield
    except struct.error as error:
        raise MalformedMessage(f"netlink dump of tc: {error}", operation="dump") from error


def _raw_root(qdiscs: Sequence[TcMsg]) -> TcMsg | None:
    return next((q for q in qdiscs if q.parent == PARENT_ROOT), None)


def _root(qdiscs: Sequence[TcMsg], found: Sequence[str], raw: TcMsg | None) -> RootQdisc | None:
    """The root as the planner sees it; found: what was seen on it besides child qdiscs."""
    if raw is None:
        return None
    if not raw.handle or (raw.kind, raw.handle) == ("htb", HANDLE_ROOT):
        return RootQdisc(raw.kind, raw.handle)
    children = [f"{q.kind} {name_of(q.handle)}" for q in qdiscs if q.parent & _CHILD_MAJOR == raw.handle]
    words = [*(f"child qdisc {c}" for c in children), *found, *wire.extras_of(raw)]
    return RootQdisc(raw.kind, raw.handle, raw.options, bool(words), "with " + ", ".join(words) if words else "")


def _found(raw: TcMsg | None, classes: Sequence[TcMsg], filters: Sequence[wire.SeenFilter]) -> tuple[str, ...]:
    """Classes and filters on a foreign root, in words."""
    if raw is None:
        return ()
    named = [f"class {name_of(c.handle)}" for c in classes if raw.kind not in _CLASSFUL_IN_NAME and c.kind == raw.kind]
    return (*named[:_MOST_NAMED], *({f"{f.kind} filters" for f in filters}))


def _ours(
    ifindex: int, raw: TcMsg, qdiscs: Sequence[TcMsg], classes: Sequence[TcMsg], filters: Sequence[wire.SeenFilter], now_ns: int
) -> TcActual:
    default_classid, direct_packets = wire.htb_root(raw.options)
    ours = [c for c in classes if c.handle in OUR_CLASSES]
    queues = [q for q in qdiscs if q.parent in LEAF_OF]
    tree = TcTree(
        default_classid,
        tuple(wire.htb_class(c.handle, c.parent, c.options) for c in sorted(ours, key=lambda c: c.handle)),
        tuple(wire.leaf(q) for q in sorted(queues, key=lambda q: q.parent)),
        tuple(f.filter for f in filters if f.filter is not None and f.prio in OUR_PRIOS),
    )
    return TcActual(
        ifindex=ifindex,
        root=RootQdisc(raw.kind, raw.handle),
        tree=tree,
        stats=_stats(ours, queues),
        direct_packets=direct_packets,
        foreign=_foreign(qdiscs, classes, filters),
        read_t_ns=now_ns,
        inner=tuple(sorted({c.parent for c in classes if c.parent in LEAF_OF})),
        queued_bytes=wire.stats_of(raw).backlog_bytes,
    )


def _stats(classes: Sequence[TcMsg], queues: Sequence[TcMsg]) -> ClassStats:
    """Bytes and packets of the limit itself; demand from what is below it (drops count where they happen: the queues)."""
    by_id = {c.handle: wire.stats_of(c) for c in classes}
    shaped = [by_id[i] for i in (CLASS_LIFELINE, CLASS_DEFAULT) if i in by_id]
    limit = by_id.get(CLASS_LIMIT, wire.Stats())
    return ClassStats(
        sent_bytes=limit.sent_bytes,
        sent_packets=limit.sent_packets,
        drops=sum(wire.stats_of(q).drops for q in queues if q.parent in (CLASS_LIFELINE, CLASS_DEFAULT)),
        overlimits=sum(s.overlimits for s in shaped),
        backlog_bytes=sum(s.backlog_bytes for s in shaped),
    )


def _foreign(qdiscs: Sequence[TcMsg], classes: Sequence[TcMsg], filters: Sequence[wire.SeenFilter]) -> tuple[str, ...]:
    """Objects inside our tree that are not ours, in words."""
    known = {HANDLE_ROOT, *LEAF_OF.values()}
    strange_classes = {c.handle for c in classes if c.kind == "htb"} - OUR_CLASSES
    below = [q for q in qdiscs if q.handle not in known and q.parent != PARENT_ROOT and q.parent >> 16 != _INGRESS_MAJOR]
    prios = sorted({(f.prio, f.kind) for f in filters if f.prio not in OUR_PRIOS})
    return (
        *(f"class {name_of(handle)}" for handle in sorted(strange_classes)),
        *(f"qdisc {q.kind} {name_of(q.handle)} under {name_of(q.parent)}" for q in below if q.handle),
        *(f"{kind} filter at prio {prio}" for prio, kind in prios),
    )
