"""What the operator writes, each key with its default: policies, the rest of the configuration, overrides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from limiterd.core.model.clock import HOUR, MINUTE, MS, SECOND


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
