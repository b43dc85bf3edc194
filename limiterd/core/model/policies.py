"""What the operator writes of a policy: every key once, with its type, default, bounds and meaning (core/keys.py).

The order of the fields is the order in the shipped file and in the documentation. Conditions across keys are in
config/conditions.py. docs/architecture.md, "add a configuration key", shows the way of a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from limiterd.core.keys import Section, key
from limiterd.core.kinds import (
    NULL,
    Choice,
    Factor,
    Glob,
    ListOf,
    Maybe,
    Network,
    Port,
    Protocol,
    Text,
    bits,
    duration,
    rate,
    share,
)
from limiterd.core.model.clock import HOUR, MINUTE, SECOND


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


MAX_IFNAME: Final = 15
"""IFNAMSIZ − 1."""
LEAST_RATE: Final = 1000
INTERFACES: Final = ListOf(Glob("interface", MAX_IFNAME, of_instances=True), what="interface pattern", least=1)
THRESHOLD: Final = rate(LEAST_RATE)
LIMIT_RATE: Final = rate(LEAST_RATE, advice="a limit slows a link, a firewall closes it")
_NAME: Final = Text(64, "a name; use letters, digits and . _ -, a letter or digit first", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Guard:
    """The token-bucket meter against on-off evasion; burst_bits is its depth."""

    mode: GuardMode = field(
        default=GuardMode.OBSERVE,
        metadata=key("mode", Choice(GuardMode), "`observe` reports what it would have limited", label=""),
    )
    burst_bits: int = field(
        default=90 * 10**9,
        metadata=key(
            "burst",
            bits(1, advice="`mode: off` switches the guard off"),
            "bits above the threshold rate that are tolerated",
        ),
    )


@dataclass(frozen=True, slots=True)
class Detect:
    """The detector's parameters (docs/semantics.md)."""

    threshold_bps: int = field(
        default=10**9,
        metadata=key(
            "threshold",
            THRESHOLD,
            "the excess averages at least this, and its first and last interval run at it",
            allowed="above `limit.rate`",
        ),
    )
    window_ns: int = field(
        default=10 * SECOND, metadata=key("window", duration(1, HOUR), "the excess must last longer than this …")
    )
    slice_ns: int = field(
        default=1 * SECOND,
        metadata=key("slice", duration(1), "… and no slice of this length …", allowed="from `sampling.interval` to `window`"),
    )
    floor_ppm: int = field(
        default=800_000,
        metadata=key("floor", share(zero=True), "… falls below this share of the threshold", allowed="0% to 100%"),
    )
    guard: Guard = field(
        default=Guard(), metadata=key("guard", Section(Guard), "a token bucket against traffic that pauses on purpose")
    )


@dataclass(frozen=True, slots=True)
class Match:
    """A traffic selector of the lifeline or the exempt class. Every given field must hold; port means either side.

    protocol is tcp, udp, icmp, icmpv6, sctp, arp or an IP protocol number as text; to and from_net are networks in
    canonical CIDR form ("203.0.113.0/24", "2001:db8::/32").
    """

    protocol: str | None = field(default=None, metadata=key("protocol", Maybe(Protocol())))
    port: int | None = field(
        default=None,
        metadata=key("port", Maybe(Port()), "on either side; without `protocol`: of any protocol that has ports"),
    )
    source_port: int | None = field(default=None, metadata=key("source_port", Maybe(Port()), "instead of `port`"))
    destination_port: int | None = field(default=None, metadata=key("destination_port", Maybe(Port()), "instead of `port`"))
    to: str | None = field(default=None, metadata=key("to", Maybe(Network()), "where the packet goes"))
    from_net: str | None = field(
        default=None, metadata=key("from", Maybe(Network()), "where it comes from; of one family with `to`")
    )


_MATCHES: Final = ListOf(Section(Match), what="match", between="; ")


@dataclass(frozen=True, slots=True)
class Lifeline:
    """Traffic that keeps a guaranteed share of the limit: ARP, IPv6 ND and DHCP always, and what the operator adds."""

    share_ppm: int = field(
        default=50_000,
        metadata=key(
            "share",
            share(high=999_999, zero=True),
            "what ARP, IPv6 neighbour discovery, DHCP and the matches below keep of the rate",
        ),
    )
    match: tuple[Match, ...] = field(
        default=(),
        metadata=key("match", _MATCHES, "matches of more such traffic, e.g. `[{protocol: tcp, port: 22, to: 203.0.113.0/24}]`"),
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """The shape that is put on a link."""

    rate_bps: int = field(
        default=200 * 10**6,
        metadata=key(
            "rate", LIMIT_RATE, "what a limited link may still send", allowed="1kbit to below `detect.threshold`", label="limit"
        ),
    )
    lifeline: Lifeline = field(
        default=Lifeline(),
        metadata=key("lifeline", Section(Lifeline), "traffic that keeps a share of the rate whatever else is queued"),
    )
    exempt: tuple[Match, ...] = field(
        default=(),
        metadata=key(
            "exempt",
            _MATCHES,
            "matches of traffic that the limit does not slow, e.g. `[{to: 10.0.0.0/8}]`; detection still counts it, and inside "
            "VLANs it is not seen",
        ),
    )


@dataclass(frozen=True, slots=True)
class Release:
    """When a limit ends by itself (mode auto)."""

    mode: ReleaseMode = field(
        default=ReleaseMode.APPROVAL,
        metadata=key(
            "mode",
            Choice(ReleaseMode),
            "`approval`: only an override or an operator lifts a limit; `auto`: the end of demand does, too",
            label="",
        ),
    )
    min_hold_ns: int = field(
        default=5 * MINUTE,
        metadata=key(
            "min_hold",
            duration(zero=True),
            "`auto`: a limit stays at least this long, times `multiplier` for each strike before it …",
            allowed="up to `max_hold`",
        ),
    )
    max_hold_ns: int = field(default=24 * HOUR, metadata=key("max_hold", duration(1), "… at most this long"))
    quiet_for_ns: int = field(
        default=60 * SECOND,
        metadata=key(
            "quiet_for", duration(SECOND, advice="the length of one slice"), "`auto`: demand has ended after this long …"
        ),
    )
    quiet_rate_ppm: int = field(
        default=500_000,
        metadata=key(
            "quiet_rate",
            share(1, advice="or no link is ever quiet"),
            "… below this share of the limit, without a drop and with an empty queue",
        ),
    )
    multiplier_ppm: int = field(
        default=2_000_000,
        metadata=key("multiplier", Factor(1, 1000), "each further strike makes the hold so many times longer"),
    )
    forget_after_ns: int = field(
        default=24 * HOUR, metadata=key("forget_after", duration(zero=True), "strikes are forgotten this long after a release")
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy; the first whose interface globs match a link applies. "!glob" excludes."""

    name: str = field(
        default="fair-use",
        metadata=key("name", _NAME, "how status, log and audit trail call it", allowed="unique; letters, digits, `. _ -`"),
    )
    interfaces: tuple[str, ...] = field(
        default=("eth*", "en*", "!*.*"),
        metadata=key(
            "interfaces",
            INTERFACES,
            'globs; `"!glob"` excludes (here VLANs, whose bytes their parent counts already)',
        ),
    )
    mode: PolicyMode = field(
        default=PolicyMode.ENFORCE,
        metadata=key("mode", Choice(PolicyMode), "`observe` detects and reports, and never touches tc"),
    )
    detect: Detect = field(
        default=Detect(),
        metadata=key("detect", Section(Detect), "a link is limited when all of this holds", label=""),
    )
    limit: Limit = field(default=Limit(), metadata=key("limit", Section(Limit), label=""))
    release: Release = field(default=Release(), metadata=key("release", Section(Release)))
    counter_refresh_ns: int | None = field(
        default=None,
        metadata=key(
            "counter_refresh",
            Maybe(duration(zero=True), absent="that of sampling", words=(NULL,)),
            "for the links of this policy alone; null: `sampling.counter_refresh`",
            allowed="less than `sampling.max_gap`",
        ),
    )
    foreign_qdisc: ForeignQdisc = field(
        default=ForeignQdisc.REFUSE,
        metadata=key(
            "foreign_qdisc",
            Choice(ForeignQdisc),
            "what becomes of somebody else's root qdisc when a limit is due: `takeover` replaces one that can be restored "
            "exactly, and restores it at the release",
        ),
    )
