"""The kernel's traffic control through rtnetlink: reads the whole tc state of links, carries out the steps of plans.

Rule: what the kernel answers to a step is data (ActionResult), its silence too. Per link the first error ends the plan:
what was behind it in the same datagram may still have been carried out (core/plan.py's `datagrams` sees to it that this
does no harm) and is reported as not sent, for the next reading shows it anyway.

Theory of operation. The steps of one link that may travel together leave in one sendmsg: the kernel works them off
before it returns, some microseconds apart, and no signal can come between them. Reading needs one dump of all qdiscs of
the namespace and, for each link with a root of ours, dumps of its classes and filters. Others may have tens of thousands of
them: of a foreign root no more is read than what decides whether it can be put back, and where a dump has shown a crowd of
qdiscs those of a few links are asked for one by one (not always: the kernel tells every listener of each that is asked for).

Stands in for SAVE_ROOT: a reading that the root to be deleted still is the one that was saved, else ESTALE.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

from limiterd.core.errors import PermissionFault
from limiterd.core.htb_tree import LEAF_OF
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    PARENT_ROOT,
    Action,
    ActionKind,
    ActionResult,
    ClassStats,
    KernelAbilities,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.plan import OUR_CLASSES, RESTORABLE, carried_out, name_of
from limiterd.core.u32_filters import OUR_PRIOS
from limiterd.kernel import tcwire as wire
from limiterd.kernel.netlink import Ack, Batch, MalformedMessage, Message, NetlinkSocket, batches, boottime_ns
from limiterd.kernel.tcwire import Nature, SeenFilter, TcMsg

_LOOPBACK_IFINDEX: Final = 1
_UNKNOWN_KIND: Final = frozenset({"Specified qdisc kind is unknown", "Specified qdisc not found", "Unknown qdisc"})
_CLASSFUL_IN_NAME: Final = frozenset({"tbf", "fq_codel"})
"""What these show as classes (the one inside, the flows with a backlog) is part of the qdisc."""
_CHILD_MAJOR: Final = 0xFFFF0000
_INGRESS_MAJOR: Final = 0xFFFF
_OUR_ROOT: Final = RootQdisc("htb", HANDLE_ROOT)
_COUNTED: Final = frozenset({CLASS_LIMIT, CLASS_LIFELINE, CLASS_DEFAULT, CLASS_EXEMPT})
_DATAGRAMS_A_LINK: Final = 4
"""A release takes four."""
_MOST_NAMED: Final = 8
"""Classes of a foreign root that a message lists."""
_CROWD: Final = 512
"""Qdiscs of the namespace; a dump of so many takes as long as asking for those of ten links."""
_FEW: Final = 8
_READINGS_WITHOUT_DUMP: Final = 3_600
"""After so many it is seen whether there still is a crowd."""

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
        self._recent: deque[_Encoded] = deque(maxlen=_DATAGRAMS_A_LINK)
        self._readings_until_dump = 0

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
            if self._readings_until_dump and len(asked) <= _FEW:
                self._readings_until_dump -= 1
                found = {ifindex: self._asked_for(ifindex) for ifindex in sorted(asked)}
            else:
                qdiscs = self._qdiscs(asked)
                found = {ifindex: self._dumped(ifindex, qdiscs.get(ifindex, ())) for ifindex in sorted(asked)}
            return {ifindex: actual for ifindex, actual in found.items() if actual is not None}

    def _qdiscs(self, asked: frozenset[int] | None) -> dict[int, list[TcMsg]]:
        # tc qdisc show
        found: dict[int, list[TcMsg]] = {}
        dumped = self._socket.dump(wire.RTM_GETQDISC, wire.dump_request())
        self._readings_until_dump = _READINGS_WITHOUT_DUMP if len(dumped) > _CROWD else 0
        for _, payload in dumped:
            ifindex = wire.ifindex_of(payload)
            if asked is None or ifindex in asked:
                found.setdefault(ifindex, []).append(wire.decode(payload))
        return found

    def _dumped(self, ifindex: int, qdiscs: Sequence[TcMsg]) -> TcActual | None:
        """A link whose qdiscs came with a dump of all."""
        raw = _raw_root(qdiscs)
        if raw is None and not self._exists(ifindex):
            return None
        return self._actual(ifindex, raw, *self._below(ifindex, raw), qdiscs)

    def _asked_for(self, ifindex: int) -> TcActual | None:
        """A link whose qdiscs are asked for one by one: the root, and below ours those that its classes name."""
        (ack,) = self._socket.request([wire.qdisc_request(ifindex)], operation="dump")
        if not ack.ok:
            return None
        raw = next((wire.decode(payload) for _, payload in ack.replies), None)
        classes, filters = self._below(ifindex, raw)
        requests = [wire.qdisc_request(ifindex, c.nature.handle) for c in classes if wire.has_leaf(c.rest)]
        acks = self._socket.request(requests, operation="dump") if requests else []
        below = [wire.decode(payload) for ack in acks for _, payload in ack.replies]
        return self._actual(ifindex, raw, classes, filters, below if raw is None else [raw, *below])

    def _below(self, ifindex: int, raw: TcMsg | None) -> tuple[tuple[TcMsg, ...], tuple[bytes, ...]]:
        """The classes and filters of a root of ours, or of one that could be put back."""
        root = None if raw is None else raw.nature
        if root is None or not root.handle or not (_is_ours(root) or root.kind in RESTORABLE):
            return (), ()
        # tc class show dev IF; tc filter show dev IF parent H:
        return self._classes(ifindex), self._filters(ifindex, root.handle)

    def _actual(
        self, ifindex: int, raw: TcMsg | None, classes: tuple[TcMsg, ...], filters: tuple[bytes, ...], qdiscs: Sequence[TcMsg]
    ) -> TcActual:
        now_ns = boottime_ns()
        if raw is None or not _is_ours(raw.nature):
            return TcActual(ifindex, _root(qdiscs, found=_found(raw, classes, filters), raw=raw), read_t_ns=now_ns)
        return _ours(ifindex, raw, qdiscs, classes, filters, now_ns)

    def _classes(self, ifindex: int) -> tuple[TcMsg, ...]:
        payloads = self._socket.dump(wire.RTM_GETTCLASS, wire.dump_request(ifindex))
        return tuple([m for m in (wire.decode(payload) for _, payload in payloads) if m.ifindex == ifindex])

    def _filters(self, ifindex: int, parent: int) -> tuple[bytes, ...]:
        payloads = self._socket.dump(wire.RTM_GETTFILTER, wire.dump_request(ifindex, parent))
        return tuple([wire.without_link(p) for _, p in payloads if wire.ifindex_of(p) == ifindex])

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
        encoded = next((known for known in self._recent if known.serves(run)), None)
        if encoded is None:
            encoded = _Encoded.of(run)
            self._recent.append(encoded)
        acks = [
            ack
            for batch in encoded.batches
            for ack in self._socket.exchange(wire.for_link(batch, run[0].ifindex), batch.offsets, operation="apply")
        ]
        if all(ack.ok for ack in acks):
            return [ActionResult(action) for action in run]
        answers = iter(acks)
        return [_judge(action, [next(answers) for _ in range(n)]) for action, n in zip(run, encoded.counts, strict=True)]

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


class _Encoded(NamedTuple):
    """The messages of a run of steps, for whichever link; counts says how many each step has."""

    steps: tuple[tuple[ActionKind, object], ...]
    counts: tuple[int, ...]
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, run: Sequence[Action]) -> _Encoded:
        """Encode."""
        messages = [_messages(_ENCODERS[action.kind](action.ifindex, action.item)) for action in run]
        together = tuple(batches([message for some in messages for message in some], terse=True))
        return cls(tuple((a.kind, a.item) for a in run), tuple(map(len, messages)), together)

    def serves(self, run: Sequence[Action]) -> bool:
        """Whether these are the very steps (equal is not enough: filters are, whatever their handles), as for link after link."""
        return len(run) == len(self.steps) and all(
            action.kind is kind and action.item is item for action, (kind, item) in zip(run, self.steps, strict=True)
        )


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
    return next((q for q in qdiscs if q.nature.parent == PARENT_ROOT), None)


def _is_ours(root: Nature) -> bool:
    return (root.kind, root.handle) == ("htb", HANDLE_ROOT)


def _root(qdiscs: Sequence[TcMsg], found: Sequence[str], raw: TcMsg | None) -> RootQdisc | None:
    """The root as the planner sees it; found: what was seen on it besides child qdiscs."""
    if raw is None:
        return None
    root = raw.nature
    if not root.handle or _is_ours(root):
        return RootQdisc(root.kind, root.handle)
    natures = (q.nature for q in qdiscs)
    children = [f"{q.kind} {name_of(q.handle)}" for q in natures if q.parent & _CHILD_MAJOR == root.handle]
    words = [*(f"child qdisc {c}" for c in children), *found, *wire.extras_of(raw)]
    return RootQdisc(root.kind, root.handle, root.options, bool(words), "with " + ", ".join(words) if words else "")


def _found(raw: TcMsg | None, classes: Sequence[TcMsg], filters: Sequence[bytes]) -> tuple[str, ...]:
    """Classes and filters on a foreign root, in words."""
    if raw is None:
        return ()
    kind, natures = raw.nature.kind, (c.nature for c in classes)
    named = [f"class {name_of(c.handle)}" for c in natures if kind not in _CLASSFUL_IN_NAME and c.kind == kind]
    return (*named[:_MOST_NAMED], *sorted({f"{wire.seen_filter(f).kind} filters" for f in filters}))


def _ours(
    ifindex: int, raw: TcMsg, qdiscs: Sequence[TcMsg], classes: Sequence[TcMsg], filters: tuple[bytes, ...], now_ns: int
) -> TcActual:
    default_classid, direct_packets = wire.htb_root(raw.nature.options)
    below = tuple([q.rest for q in qdiscs if q is not raw])
    built = _built(default_classid, below, tuple([c.rest for c in classes]), filters)
    return TcActual(
        ifindex=ifindex,
        root=_OUR_ROOT,
        tree=built.tree,
        stats=_stats(classes, qdiscs),
        direct_packets=direct_packets,
        foreign=built.foreign,
        read_t_ns=now_ns,
        classes_with_children=built.classes_with_children,
        queued_bytes=wire.stats_of(raw).backlog_bytes,
    )


class _Built(NamedTuple):
    """What stands below our root, its counters aside."""

    tree: TcTree
    foreign: tuple[str, ...]
    classes_with_children: tuple[int, ...]


@lru_cache(maxsize=1024)
def _built(default_classid: int, qdiscs: tuple[bytes, ...], classes: tuple[bytes, ...], filters: tuple[bytes, ...]) -> _Built:
    """Remembered by the bytes: a thousand links mostly show the same tree.

    (Kernels with CONFIG_CLS_U32_PERF count hits in filters: there a busy link is read anew.)
    """
    shown = sorted(map(wire.nature, classes))
    queues = list(map(wire.nature, qdiscs))
    seen = list(map(wire.seen_filter, filters))
    tree = TcTree(
        default_classid,
        tuple(wire.htb_class(c) for c in shown if c.handle in OUR_CLASSES),
        tuple(wire.leaf(q) for q in sorted(queues, key=lambda q: q.parent) if q.parent in LEAF_OF),
        tuple(f.filter for f in seen if f.filter is not None and f.prio in OUR_PRIOS),
    )
    return _Built(tree, _foreign(queues, shown, seen), tuple(sorted({c.parent for c in shown if c.parent in LEAF_OF})))


def _stats(classes: Sequence[TcMsg], qdiscs: Sequence[TcMsg]) -> ClassStats:
    """Bytes and packets of the limit itself; demand from what is below it (drops count where they happen: the queues)."""
    by_id = {c.nature.handle: wire.stats_of(c) for c in classes if c.nature.handle in _COUNTED}
    shaped = [by_id[i] for i in (CLASS_LIFELINE, CLASS_DEFAULT) if i in by_id]
    limit = by_id.get(CLASS_LIMIT, wire.Stats())
    return ClassStats(
        sent_bytes=limit.sent_bytes,
        sent_packets=limit.sent_packets,
        drops=sum(wire.stats_of(q).drops for q in qdiscs if q.nature.parent in (CLASS_LIFELINE, CLASS_DEFAULT)),
        overlimits=sum(s.overlimits for s in shaped),
        backlog_bytes=sum(s.backlog_bytes for s in shaped),
        exempt_bytes=by_id.get(CLASS_EXEMPT, wire.Stats()).sent_bytes,
    )


def _foreign(qdiscs: Sequence[Nature], classes: Sequence[Nature], filters: Sequence[SeenFilter]) -> tuple[str, ...]:
    """Objects inside our tree that are not ours, in words."""
    known = LEAF_OF.values()
    strange_classes = {c.handle for c in classes if c.kind == "htb"} - OUR_CLASSES
    below = [q for q in qdiscs if q.handle not in known and q.parent != PARENT_ROOT and q.parent >> 16 != _INGRESS_MAJOR]
    prios = sorted({(f.prio, f.kind) for f in filters if f.prio not in OUR_PRIOS})
    return (
        *(f"class {name_of(handle)}" for handle in sorted(strange_classes)),
        *(f"qdisc {q.kind} {name_of(q.handle)} under {name_of(q.parent)}" for q in below if q.handle),
        *(f"{kind} filter at prio {prio}" for prio, kind in prios),
    )
