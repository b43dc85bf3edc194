"""The kernel's tc objects, as wanted and as read, and the steps from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

OUR_MAJOR: Final = 0x1D1D
HANDLE_ROOT: Final = OUR_MAJOR << 16
CLASS_LIMIT: Final = HANDLE_ROOT | 0x1
CLASS_LIFELINE: Final = HANDLE_ROOT | 0x10
CLASS_DEFAULT: Final = HANDLE_ROOT | 0x20
CLASS_EXEMPT: Final = HANDLE_ROOT | 0x30
LEAF_LIFELINE: Final = 0x1D10 << 16
LEAF_DEFAULT: Final = 0x1D20 << 16
LEAF_EXEMPT: Final = 0x1D30 << 16
PARENT_ROOT: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class HtbClass:
    """An HTB class as wanted or as read: rates in bit/s, burst and cburst in bytes, quantum in bytes.

    The parent of a class right below the root is HANDLE_ROOT. Wanted values are rounded as the kernel stores them
    (whole bytes per second, bursts in ticks), so that what is read back compares equal. resized: it counts other sizes than
    the packets' own (overhead, mpu, a link layer), which no class of ours does.
    """

    classid: int
    parent: int
    rate_bps: int
    ceil_bps: int
    burst_bytes: int
    cburst_bytes: int
    quantum_bytes: int
    prio: int = 0
    resized: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf qdisc under one of our classes: limit_bytes for bfifo, the other figures for fq_codel; 0 where they mean nothing.

    altered: it has a size table or marks by a threshold, as no queue of ours does, and nothing takes that off in place.
    """

    handle: int
    parent: int
    kind: str
    limit_bytes: int = 0
    limit_packets: int = 0
    target_us: int = 0
    interval_us: int = 0
    flows: int = 0
    quantum_bytes: int = 0
    memory_bytes: int = 0
    ecn: int = 0
    altered: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """One u32 filter of ours: keys are (value, mask, byte offset) words in network order, all must match.

    offset is relative to the network header; next_header keys (relative to the transport header behind IPv4 options)
    carry relative=True. flowid 0: no verdict of its own, but the step that finds the transport header for the relative
    filters of this prio (a u32 link). handle is the kernel's name for it as read, 0 in a wanted one; kind is u32 for ours.
    """

    prio: int
    ethertype: int
    keys: tuple[tuple[int, int, int, bool], ...]
    flowid: int
    kind: str = "u32"
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TcTree:
    """A whole limit as wanted: the root's default class, its classes (parents first), leaves and filters.

    refused says why this kernel must not be given the limit at all ("" = it may): what is wanted cannot be had whole.
    """

    default_classid: int
    classes: tuple[HtbClass, ...]
    leaves: tuple[Leaf, ...]
    filters: tuple[Filter, ...] = ()
    refused: str = field(default="", compare=False)

    def __hash__(self) -> int:
        """Of the classes alone: trees are looked up a thousand times in a row, and seldom differ in the rest only."""
        return hash((self.default_classid, self.classes))

    @property
    def rate_bps(self) -> int:
        """The limit itself: the rate of the class 1d1d:1; 0 where it is missing."""
        return next((c.rate_bps for c in self.classes if c.classid == CLASS_LIMIT), 0)


@dataclass(frozen=True, slots=True)
class ClassStats:
    """Counters of the shaped classes, summed over what the limit covers (1d1d:1 for bytes; leaves for the rest).

    exempt_bytes are those of the class beside it, 1d1d:30.
    """

    sent_bytes: int = 0
    sent_packets: int = 0
    drops: int = 0
    overlimits: int = 0
    backlog_bytes: int = 0
    exempt_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RootQdisc:
    """A link's root qdisc as read. handle 0 is the kernel's default, whatever its kind.

    options is the raw TCA_OPTIONS payload, what an exact restore needs (b"" for a default root and for ours);
    has_children: something hangs on it that a restore from options would lose; detail names that, for people.
    """

    kind: str
    handle: int
    options: bytes = b""
    has_children: bool = False
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TcActual:
    """What the kernel shows on one link. root None: no visible qdisc (link down or never up).

    tree is what was found below our root (None where the root is not ours); foreign describes the objects inside our tree
    that are not ours, for people; inner names those of our leaf classes that foreign classes were put under: HTB sends
    the traffic of such a class past the limit. stats are of the shaped classes; direct_packets counts what passed our
    root unshaped; queued_bytes is what waits in the whole tree, exempt and unshaped traffic included.
    """

    ifindex: int
    root: RootQdisc | None
    tree: TcTree | None = None
    stats: ClassStats = ClassStats()
    direct_packets: int = 0
    foreign: tuple[str, ...] = ()
    read_t_ns: int = 0
    classes_with_children: tuple[int, ...] = ()
    queued_bytes: int = 0

    @property
    def ours(self) -> bool:
        """Whether the root is ours: htb with our handle."""
        return self.root is not None and self.root.handle == HANDLE_ROOT and self.root.kind == "htb"

    @property
    def foreign_root(self) -> RootQdisc | None:
        """The explicit root that someone else put there, or None."""
        root = self.root
        return root if root is not None and root.handle != 0 and not self.ours else None


@dataclass(frozen=True, slots=True)
class KernelAbilities:
    """What this kernel can do, found out at start and when an operation says otherwise."""

    fq_codel: bool = False
    u32: bool = True
    htb: bool = True


class ActionKind(StrEnum):
    """The steps of a plan, one netlink message each but for a few (docs of kernel/tc.py).

    SAVE_ROOT changes nothing in the kernel: whoever carries out a plan has made its item durable before, and the kernel
    side checks that the root still is that one.
    """

    SAVE_ROOT = "save_root"
    DELETE_ROOT = "delete_root"
    ADD_ROOT = "add_root"
    ADD_CLASS = "add_class"
    CHANGE_CLASS = "change_class"
    DELETE_CLASS = "delete_class"
    ADD_LEAF = "add_leaf"
    CHANGE_LEAF = "change_leaf"
    DELETE_LEAF = "delete_leaf"
    ADD_FILTER = "add_filter"
    DELETE_FILTER = "delete_filter"
    DELETE_FILTERS = "delete_filters"
    RESTORE_ROOT = "restore_root"


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a plan on one link. item is what it adds or changes (None where the kind says it all)."""

    kind: ActionKind
    ifindex: int
    interface: str
    item: HtbClass | Leaf | Filter | RootQdisc | int | None = None


NOT_SENT: Final = -1
"""The errno of a step that was not sent, because an earlier one failed or the kernel has fallen silent."""


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The kernel's answer to one action: errno 0 is success, or NOT_SENT."""

    action: Action
    errno: int = 0
    message: str = ""
