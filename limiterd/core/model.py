"""The words of limiterd as types: immutable values that every part shares.

Units are in the names: _ns nanoseconds (CLOCK_BOOTTIME unless `wall` is in the name), _bps bits per second, _bytes, _ppm.
Three truths are told apart by suffix: _wanted (what policy asks), _actual (what the kernel shows), _saved (what was
there before us). Nothing here computes; the rules live in the modules that use these types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from limiterd.core.units import NS_PER_SECOND

MS: Final = 1_000_000
SECOND: Final = NS_PER_SECOND
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


# ---- links and samples -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """One instance of a network interface.

    incarnation counts the births seen under one ifindex: an interface made anew is a new link even when the kernel
    hands out the same ifindex again. mac is "" where the device has none.
    """

    ifindex: int
    name: str
    mac: str = ""
    mtu: int = 1500
    gso_max_bytes: int = 65_536
    tx_queues: int = 1
    incarnation: int = 0
    up: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All transmit counters at one instant; tx_bytes[i] belongs to links[i].

    A sampler hands out the *same* links tuple as long as no link changed: consumers compare it by identity.
    """

    t_ns: int
    links: tuple[Link, ...]
    tx_bytes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Now:
    """The two clocks of one moment: boot_ns never steps and counts suspend, wall_ns is the calendar (Unix epoch)."""

    boot_ns: int
    wall_ns: int


# ---- policy ------------------------------------------------------------------------------------


class GuardMode(StrEnum):
    """What the token-bucket guard does: nothing, report, or fire like the sustained rule."""

    OFF = "off"
    OBSERVE = "observe"
    ENFORCE = "enforce"


class PolicyMode(StrEnum):
    """enforce shapes; observe detects and reports and never touches tc."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class ReleaseMode(StrEnum):
    """approval: only an override or an operator lifts a limit; auto: also the end of demand after a hold."""

    APPROVAL = "approval"
    AUTO = "auto"


class ForeignQdisc(StrEnum):
    """What becomes of an explicit root qdisc that is not ours when a limit is due."""

    REFUSE = "refuse"
    TAKEOVER = "takeover"


class OnExit(StrEnum):
    """What becomes of standing limits when the daemon stops."""

    KEEP = "keep"
    REMOVE = "remove"


class Source(StrEnum):
    """Where samples come from."""

    AUTO = "auto"
    NETLINK = "netlink"
    PSUTIL = "psutil"


@dataclass(frozen=True, slots=True)
class Guard:
    """The token-bucket meter against on-off evasion; burst_bits is its depth."""

    mode: GuardMode = GuardMode.OBSERVE
    burst_bits: int = 90 * 10**9


@dataclass(frozen=True, slots=True)
class Detect:
    """The detector's parameters (docs/semantics.md)."""

    threshold_bps: int = 10**9
    window_ns: int = 10 * SECOND
    slice_ns: int = 1 * SECOND
    floor_ppm: int = 800_000
    guard: Guard = Guard()


@dataclass(frozen=True, slots=True)
class Match:
    """A traffic selector of the lifeline or the exempt class. Every given field must hold; port means either side.

    protocol is tcp, udp, icmp, icmpv6, sctp, arp or an IP protocol number as text; to and from_net are networks in
    canonical CIDR form ("203.0.113.0/24", "2001:db8::/32").
    """

    protocol: str | None = None
    port: int | None = None
    source_port: int | None = None
    destination_port: int | None = None
    to: str | None = None
    from_net: str | None = None


@dataclass(frozen=True, slots=True)
class Lifeline:
    """Traffic that keeps a guaranteed share of the limit: ARP, IPv6 ND and DHCP always, and what the operator adds."""

    share_ppm: int = 50_000
    match: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """The shape that is put on a link."""

    rate_bps: int = 200 * 10**6
    lifeline: Lifeline = Lifeline()
    exempt: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """When a limit ends by itself (mode auto)."""

    mode: ReleaseMode = ReleaseMode.APPROVAL
    min_hold_ns: int = 5 * MINUTE
    max_hold_ns: int = 24 * HOUR
    quiet_for_ns: int = 60 * SECOND
    quiet_rate_ppm: int = 500_000
    multiplier_ppm: int = 2_000_000
    forget_after_ns: int = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy; the first whose interface globs match a link applies. "!glob" excludes."""

    name: str = "fair-use"
    interfaces: tuple[str, ...] = ("eth*", "en*", "!*.*")
    mode: PolicyMode = PolicyMode.ENFORCE
    detect: Detect = Detect()
    limit: Limit = Limit()
    release: Release = Release()
    foreign_qdisc: ForeignQdisc = ForeignQdisc.REFUSE


# ---- the rest of the configuration ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How counters are read. counter_refresh_ns > 0 for drivers that refresh them slowly; 0 = off for both last."""

    interval_ns: int = 100 * MS
    max_gap_ns: int = 3 * SECOND
    source: Source = Source.AUTO
    counter_refresh_ns: int = 0
    max_plausible_bps: int = 0


@dataclass(frozen=True, slots=True)
class Enforcement:
    """read_back_ns: period of the check of standing limits; drain_ns: longest wait for an empty queue at a release."""

    read_back_ns: int = 1 * SECOND
    drain_ns: int = 500 * MS


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of the metrics server."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """listen is "host:port" ("[::1]:9817" for IPv6); None switches the server off."""

    listen: str | None = "127.0.0.1:9817"
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """group may read status and file requests; admin_group (and root) may do everything."""

    socket: str = "/run/limiterd/control.sock"
    group: str | None = None
    admin_group: str | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """level: debug, info, warning or error; format: text or json."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole of limiterd.yaml, every key with its default."""

    sampling: Sampling = Sampling()
    policies: tuple[Policy, ...] = (Policy(),)
    enforcement: Enforcement = Enforcement()
    on_exit: OnExit = OnExit.KEEP
    overrides_directory: str = "/etc/limiterd/overrides.d"
    metrics: MetricsConfig = MetricsConfig()
    control: ControlConfig = ControlConfig()
    state_directory: str = "/var/lib/limiterd"
    log: LogConfig = LogConfig()


class OverrideAction(StrEnum):
    """exempt lifts the policy; limit sets another threshold and/or another limit."""

    EXEMPT = "exempt"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Override:
    """The record of an approved increase request. Wall-clock times in ns since the epoch.

    not_before_wall_ns None = always; expires_wall_ns None = never. origin says where the record lives
    ("/etc/limiterd/overrides.d/a.yaml:3" or "state").
    """

    id: str
    interfaces: tuple[str, ...]
    action: OverrideAction
    expires_wall_ns: int | None
    approved_by: str
    reason: str
    hosts: tuple[str, ...] = ()
    threshold_bps: int | None = None
    limit_bps: int | None = None
    not_before_wall_ns: int | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that a reload swaps in as one object: configuration, overrides and the host's name.

    sha256 is the hash over the configuration and override texts as loaded.
    """

    config: Config = Config()
    overrides: tuple[Override, ...] = ()
    host: str = ""
    sha256: str = ""


# ---- verdicts, phases, events --------------------------------------------------------------------


class Phase(StrEnum):
    """What is true of a link now. limited is only ever said of what was read back from the kernel."""

    ABSENT = "absent"
    CONFORMING = "conforming"
    PENDING = "pending"
    LIMITED = "limited"
    EXEMPT = "exempt"
    FAULT = "fault"


class Reason(StrEnum):
    """Why a link was limited."""

    SUSTAINED = "sustained"
    GUARD = "guard"
    OPERATOR = "operator"
    ADOPTED = "adopted"
    """Found standing in the kernel, with nothing in the journal that says why."""


class EpochReason(StrEnum):
    """Why a sample only opened a new epoch."""

    NEW = "new"
    IFINDEX = "ifindex"
    COUNTER = "counter"
    CLOCK = "clock"
    GAP = "gap"
    IMPLAUSIBLE = "implausible"
    RELEASED = "released"
    RELOAD = "reload"


class ReleaseReason(StrEnum):
    """Why a limit was lifted."""

    OVERRIDE = "override"
    OPERATOR = "operator"
    DEMAND_ENDED = "demand_ended"
    MAX_HOLD = "max_hold"
    POLICY = "policy"
    EXIT = "exit"


class FaultReason(StrEnum):
    """Why the kernel cannot be made so now."""

    FOREIGN_QDISC = "foreign_qdisc"
    PERMISSION = "permission"
    MISSING_MODULE = "missing_module"
    FIGHT = "fight"
    NO_ANSWER = "no_answer"
    OTHER = "other"


class EventKind(StrEnum):
    """One word for each thing that happens; the audit trail, the log and replay use the same."""

    LIMIT = "limit"
    WOULD_LIMIT = "would_limit"
    NOTED = "noted"
    LIMITED = "limited"
    RELEASED = "released"
    POSSIBLE = "possible"
    EPOCH = "epoch"
    RELEASING = "releasing"
    RATE_CHANGED = "rate_changed"
    FAULT = "fault"
    FAULT_CLEARED = "fault_cleared"
    REPAIR = "repair"
    ADOPTED = "adopted"
    RESTORED = "restored"
    OVERRIDE_ACTIVE = "override_active"
    OVERRIDE_ENDED = "override_ended"
    OVERRIDE_EXPIRING = "override_expiring"
    LINK_GONE = "link_gone"
    LINK_BACK = "link_back"
    PAUSED = "paused"
    RESUMED = "resumed"
    UNDRAINED = "undrained"
    FOREIGN = "foreign"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a link; detail holds further fields, JSON-able, for the log and the audit trail."""

    kind: EventKind
    t_ns: int
    interface: str
    reason: str = ""
    policy: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Firing:
    """A verdict of the detector with the figures that led to it.

    a_t_ns and b_t_ns bound the mean (sustained only; equal to t_ns for guard), lowest_slice_bps is the lowest checked
    slice's rate (None where none was checked), mean_bps and the flanks are floor-divided for people, the verdict itself is exact.
    samples are the (t_ns, tx_bytes) of the candidate window, oldest first, ending with the firing sample.
    """

    reason: Reason
    t_ns: int
    a_t_ns: int
    b_t_ns: int
    mean_bps: int
    peak_bps: int
    first_flank_bps: int
    last_flank_bps: int
    lowest_slice_bps: int | None
    excess_bits: int
    threshold_bps: int
    samples: tuple[tuple[int, int], ...] = ()


# ---- the kernel's tc objects ---------------------------------------------------------------------

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
    (whole bytes per second, bursts in ticks), so that what is read back compares equal.
    """

    classid: int
    parent: int
    rate_bps: int
    ceil_bps: int
    burst_bytes: int
    cburst_bytes: int
    quantum_bytes: int
    prio: int = 0


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf qdisc under one of our classes: limit_bytes for bfifo; limit_packets and target_us for fq_codel; else 0."""

    handle: int
    parent: int
    kind: str
    limit_bytes: int = 0
    limit_packets: int = 0
    target_us: int = 0


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

    @property
    def rate_bps(self) -> int:
        """The limit itself: the rate of the class 1d1d:1; 0 where it is missing."""
        return next((c.rate_bps for c in self.classes if c.classid == CLASS_LIMIT), 0)


@dataclass(frozen=True, slots=True)
class ClassStats:
    """Counters of the shaped classes, summed over what the limit covers (1d1d:1 for bytes; leaves for the rest)."""

    sent_bytes: int = 0
    sent_packets: int = 0
    drops: int = 0
    overlimits: int = 0
    backlog_bytes: int = 0


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
    root unshaped.
    """

    ifindex: int
    root: RootQdisc | None
    tree: TcTree | None = None
    stats: ClassStats = ClassStats()
    direct_packets: int = 0
    foreign: tuple[str, ...] = ()
    read_t_ns: int = 0
    inner: tuple[int, ...] = ()

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


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The kernel's answer to one action: errno 0 is success, faults.NOT_SENT not sent because an earlier one failed."""

    action: Action
    errno: int = 0
    message: str = ""


# ---- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decision:
    """That a link is limited: journalled, and put back after a restart, a reboot or a short absence of the link.

    rate_bps is the rate decided (None: the policy's own, which a reload may change). A manual decision stands until a
    manual release or an override. override names the threshold override under which it was made ("" for none): another
    one lifts it, the same one does not.
    """

    interface: str
    mac: str
    policy: str
    reason: Reason
    since_wall_ns: int
    strikes: int
    rate_bps: int | None = None
    manual: bool = False
    forced: bool = False
    note: str = ""
    by: str = ""
    override: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Strikes that outlive a release, until forget_wall_ns."""

    interface: str
    mac: str
    strikes: int
    forget_wall_ns: int


@dataclass(frozen=True, slots=True)
class SavedQdisc:
    """A foreign root that a takeover replaced, to be restored exactly."""

    interface: str
    mac: str
    root: RootQdisc


@dataclass(frozen=True, slots=True)
class Journal:
    """What the daemon remembers over a restart. The kernel's state is not in it: that is read.

    same_boot: it was written since the machine last booted, so that its limits may still stand.
    """

    decisions: tuple[Decision, ...] = ()
    memories: tuple[Memory, ...] = ()
    saved: tuple[SavedQdisc, ...] = ()
    paused: bool = False
    same_boot: bool = field(default=False, compare=False)


# ---- what is shown -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """One degraded mode, shown in a metric, a log line and status until it ends. interface "" = the daemon itself."""

    interface: str
    reason: FaultReason
    message: str
    since_wall_ns: int
    warning: bool = False


@dataclass(frozen=True, slots=True)
class LinkView:
    """One watched link as status and metrics show it (an absent one has ifindex 0). Rates in bit/s.

    policy_limit_bps is what a firing would limit it to now, overrides considered; limit_wanted_bps what is decided.
    """

    interface: str
    ifindex: int
    policy: str
    mode: str
    phase: Phase
    rate_bps: int
    tx_bytes: int
    pending_ns: int = 0
    limit_bps: int | None = None
    since_wall_ns: int | None = None
    reason: str = ""
    override: str = ""
    strikes: int = 0
    manual: bool = False
    stats: ClassStats | None = None
    release: str = ""
    limit_wanted_bps: int | None = None
    threshold_bps: int = 0
    window_ns: int = 0
    note: str = ""
    policy_limit_bps: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Counters:
    """Cumulative counts of the engine, by the metric that shows them. Keys: label values in the metric's order."""

    detections: Mapping[tuple[str, str], int] = field(default_factory=dict)
    limits_applied: Mapping[str, int] = field(default_factory=dict)
    limits_released: Mapping[tuple[str, str], int] = field(default_factory=dict)
    drift_repairs: Mapping[str, int] = field(default_factory=dict)
    kernel_errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    control_requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    missed_ticks: int = 0
    dropped_samples: int = 0
    netlink_resyncs: int = 0
    audit_errors: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative histogram as Prometheus shows it: counts[i] observations ≤ bounds[i], then the total and the sum."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    total: int
    sum_s: float


@dataclass(frozen=True, slots=True)
class OverrideView:
    """One override record with its state now: active, pending, expired or other-host; interfaces are those of matching links."""

    record: Override
    state: str
    links: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that status, metrics and the landing page show: built on demand from one published frame, immutable."""

    version: str
    wall_ns: int
    boot_ns: int
    started_wall_ns: int
    host: str
    links: tuple[LinkView, ...]
    faults: tuple[Fault, ...]
    overrides: tuple[OverrideView, ...]
    paused: bool
    config_sha256: str
    config_error: str | None
    config_loaded_wall_ns: int
    requests_pending: int
    counters: Counters
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    source: str = ""
    last_tick_age_ns: int = 0
