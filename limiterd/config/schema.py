"""What may stand in the files: one table a section, each key with its field and its parser, then the checks across keys.

Defaults stand in one place only, the types of core/model. The text of every file that limiterd reads as configuration
is described here; parsers.py knows how to read by such a table, config.py and overrides.py when.
"""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Callable, Iterator
from typing import Final

from limiterd.config.values import (
    MAX_NAME,
    Check,
    Context,
    Section,
    absolute_path,
    glob,
    listen,
    many,
    network,
    number,
    one_of,
    or_none,
    port,
    prose,
    protocol,
    unit,
    worded,
)
from limiterd.config.yaml_reader import Node, Place
from limiterd.core.model import (
    HOUR,
    MINUTE,
    MS,
    SECOND,
    Config,
    ControlConfig,
    Detect,
    Enforcement,
    ForeignQdisc,
    Guard,
    GuardMode,
    Lifeline,
    Limit,
    LogConfig,
    Match,
    MetricsConfig,
    OnExit,
    Override,
    OverrideAction,
    Policy,
    PolicyMode,
    Release,
    ReleaseMode,
    Sampling,
    Source,
    Tls,
)
from limiterd.core.units import exact_duration, exact_rate, parse_bits, parse_duration, parse_rate, parse_share, parse_wall

MAX_IFNAME: Final = 15
"""IFNAMSIZ − 1."""
MAX_SUN_PATH: Final = 107
"""sun_path of a Unix socket's address holds 108 bytes with the closing NUL."""
MAX_RECORDS: Final = 5000
"""Override records in one file, and in all files of a directory."""
LEAST_RATE: Final = 1000

# ---- words of the tables ---------------------------------------------------------------------------

_threshold = unit(parse_rate, low=LEAST_RATE, bounds="write at least 1kbit")
_rate = unit(parse_rate, low=LEAST_RATE, bounds="write at least 1kbit (a limit slows a link, a firewall closes it)")
_rate_or_off = unit(parse_rate, zero=True)
_share = unit(parse_share, zero=True)
_span = unit(parse_duration, zero=True)
_some_time = unit(parse_duration, low=1, bounds="it must be longer than 0")
_name = worded(
    most=MAX_NAME, pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*", form="a name; use letters, digits and . _ -, a letter or digit first"
)
_group = worded(most=32, pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?", form="a group's name; write it as in /etc/group")
_interfaces = many(glob(MAX_IFNAME, "interface"), least=1, what="interface pattern")
_hosts = many(glob(253, "host name"), what="host pattern")
_path = absolute_path(4000)
_time = unit(parse_wall)


# ---- limiterd.yaml ---------------------------------------------------------------------------------

_paced_interval = unit(parse_duration, low=20 * MS, high=SECOND, bounds="write 20ms to 1s")


def _interval(node: Node, path: str, context: Context) -> object:
    """Read the interval: bounded where this daemon keeps it, any time where samples are recorded ones."""
    return (_paced_interval if context.paced else _some_time)(node, path, context)


SAMPLING: Final = Section(
    Sampling,
    {
        "interval": ("interval_ns", _interval),
        "max_gap": ("max_gap_ns", _some_time),
        "source": ("source", one_of(Source)),
        "counter_refresh": ("counter_refresh_ns", _span),
        "max_plausible_rate": ("max_plausible_bps", _rate_or_off),
    },
    checks=(
        Check(
            ("max_gap", "interval"),
            lambda s: s.max_gap_ns >= 2 * s.interval_ns,
            lambda s: (
                f"max_gap {exact_duration(s.max_gap_ns)} is shorter than two intervals of {exact_duration(s.interval_ns)}; "
                f"write at least {exact_duration(2 * s.interval_ns)}"
            ),
            of_interval=True,
        ),
        Check(
            ("counter_refresh", "max_gap"),
            lambda s: s.counter_refresh_ns < s.max_gap_ns,
            lambda s: (
                f"counter_refresh {exact_duration(s.counter_refresh_ns)} must be shorter than max_gap "
                f"{exact_duration(s.max_gap_ns)}; shorten it, or lengthen max_gap"
            ),
        ),
    ),
)

GUARD: Final = Section(
    Guard,
    {
        "mode": ("mode", one_of(GuardMode)),
        "burst": ("burst_bits", unit(parse_bits, low=1, bounds="it must be more than 0; `mode: off` switches the guard off")),
    },
)

DETECT: Final = Section(
    Detect,
    {
        "threshold": ("threshold_bps", _threshold),
        "window": ("window_ns", unit(parse_duration, low=1, high=HOUR, bounds="write at most 1h")),
        "slice": ("slice_ns", _some_time),
        "floor": ("floor_ppm", _share),
        "guard": ("guard", GUARD),
    },
    checks=(
        Check(
            ("slice", "window"),
            lambda d: d.slice_ns <= d.window_ns,
            lambda d: (
                f"slice {exact_duration(d.slice_ns)} is longer than window {exact_duration(d.window_ns)}; "
                f"write a slice of at most {exact_duration(d.window_ns)}, or a longer window"
            ),
        ),
    ),
)


def _families(match: Match) -> set[int]:
    nets = [net for net in (match.to, match.from_net) if net is not None]
    of_protocol = {"icmp": {4}, "icmpv6": {6}}.get(match.protocol or "", set())
    return {ipaddress.ip_network(net).version for net in nets} | of_protocol


def _ports(match: Match) -> bool:
    return any(one is not None for one in (match.port, match.source_port, match.destination_port))


_PORTED: Final = frozenset({None, "tcp", "udp", "sctp", "136"})

MATCH: Final = Section(
    Match,
    {
        "protocol": ("protocol", protocol),
        "port": ("port", port),
        "source_port": ("source_port", port),
        "destination_port": ("destination_port", port),
        "to": ("to", network),
        "from": ("from_net", network),
    },
    checks=(
        Check(
            ("protocol", "port", "source_port", "destination_port", "to", "from"),
            lambda m: m != Match(),
            lambda _: "would match all traffic; name a protocol, a port or a network",
        ),
        Check(
            ("port", "source_port", "destination_port", "protocol"),
            lambda m: not _ports(m) or m.protocol in _PORTED,
            lambda m: f"protocol {m.protocol} has no ports; write tcp, udp or sctp, or leave the port out",
        ),
        Check(
            ("port", "source_port", "destination_port"),
            lambda m: m.port is None or (m.source_port is None and m.destination_port is None),
            lambda _: "port means either side; leave it out where source_port or destination_port is given",
        ),
        Check(
            ("to", "from", "protocol"),
            lambda m: len(_families(m)) <= 1,
            lambda _: "IPv4 and IPv6 are mixed, which no packet does; write one entry for each",
        ),
        Check(
            ("to", "from", "protocol"),
            lambda m: m.protocol != "arp" or (m.to is None and m.from_net is None),
            lambda _: "ARP is matched whole; leave the network out",
        ),
    ),
)

_matches = many(MATCH, what="match")

LIMIT: Final = Section(
    Limit,
    {
        "rate": ("rate_bps", _rate),
        "lifeline": (
            "lifeline",
            Section(
                Lifeline,
                {
                    "share": ("share_ppm", unit(parse_share, zero=True, high=999_999, bounds="write less than 100%")),
                    "match": ("match", _matches),
                },
            ),
        ),
        "exempt": ("exempt", _matches),
    },
)

RELEASE: Final = Section(
    Release,
    {
        "mode": ("mode", one_of(ReleaseMode)),
        "min_hold": ("min_hold_ns", _span),
        "max_hold": ("max_hold_ns", _some_time),
        "quiet_for": ("quiet_for_ns", unit(parse_duration, low=SECOND, bounds="write at least 1s, the length of one slice")),
        "quiet_rate": ("quiet_rate_ppm", unit(parse_share, low=1, bounds="it must be more than 0%, or no link is ever quiet")),
        "multiplier": ("multiplier_ppm", number(low=1, high=1000)),
        "forget_after": ("forget_after_ns", _span),
    },
    checks=(
        Check(
            ("min_hold", "max_hold"),
            lambda r: r.min_hold_ns <= r.max_hold_ns,
            lambda r: (
                f"min_hold {exact_duration(r.min_hold_ns)} is longer than max_hold {exact_duration(r.max_hold_ns)}; "
                "shorten the one or lengthen the other"
            ),
        ),
    ),
)

POLICY: Final = Section(
    Policy,
    {
        "name": ("name", _name),
        "interfaces": ("interfaces", _interfaces),
        "mode": ("mode", one_of(PolicyMode)),
        "detect": ("detect", DETECT),
        "limit": ("limit", LIMIT),
        "release": ("release", RELEASE),
        "foreign_qdisc": ("foreign_qdisc", one_of(ForeignQdisc)),
    },
    checks=(
        Check(
            ("limit.rate", "detect.threshold"),
            lambda p: p.limit.rate_bps < p.detect.threshold_bps,
            lambda p: (
                f"the limit {exact_rate(p.limit.rate_bps)} must be below the threshold {exact_rate(p.detect.threshold_bps)}; "
                "lower the limit or raise the threshold"
            ),
        ),
    ),
)

METRICS: Final = Section(
    MetricsConfig,
    {
        "listen": ("listen", or_none(or_none(listen, "off"))),
        "tls": (
            "tls",
            or_none(
                Section(Tls, {"certificate": ("certificate", _path), "key": ("key", _path)}, frozenset({"certificate", "key"}))
            ),
        ),
    },
)

CONTROL: Final = Section(
    ControlConfig,
    {
        "socket": ("socket", absolute_path(MAX_SUN_PATH)),
        "group": ("group", or_none(_group)),
        "admin_group": ("admin_group", or_none(_group)),
    },
)


def _only(default: str) -> Callable[..., str]:
    """Make a section of one key that stands for its value."""

    def make(value: str = default) -> str:
        return value

    return make


def _policies(context: Context) -> Iterator[tuple[str, Policy]]:
    return ((path, part) for path, part in context.parts.items() if isinstance(part, Policy))


def _each_slice_holds_an_interval(config: Config, context: Context) -> None:
    """Check interval ≤ slice, policy by policy: the two keys stand in different sections."""
    if not context.paced:
        return
    interval_ns = config.sampling.interval_ns
    for policy_path, policy in _policies(context):
        slice_ns, path, other = policy.detect.slice_ns, f"{policy_path}.detect.slice", "sampling.interval"
        if slice_ns < interval_ns and context.is_valid(path) and context.is_valid(other):
            where = path if path in context.places else other
            message = (
                f"slice {exact_duration(slice_ns)} is shorter than the sampling interval {exact_duration(interval_ns)}; "
                "lengthen the slice or shorten the interval"
            )
            context.problems.add(context.place_of(where), where, message)


def _names_are_unique(_: Config, context: Context) -> None:
    first: dict[str, Place] = {}
    for policy_path, policy in _policies(context):
        path = f"{policy_path}.name"
        if not context.is_valid(path):
            continue
        place = context.place_of(path)
        if policy.name in first:
            before = first[policy.name]
            message = f"{policy.name!r} is the name of two policies, in line {before.line} and in line {place.line}; rename one"
            context.problems.add(place, path, message)
        first.setdefault(policy.name, place)


def _directories_differ(config: Config, context: Context) -> None:
    path = "overrides.directory"
    if posixpath.normpath(config.overrides_directory) == posixpath.normpath(f"{config.state_directory}/overrides.d"):
        message = "is where the daemon keeps its own records; name another directory for the operator's"
        context.problems.add(context.place_of(path), path, message)


CONFIG_CHECKS: Final = (_each_slice_holds_an_interval, _names_are_unique, _directories_differ)
"""Conditions across sections, for config.py to run on what was read."""

CONFIG: Final = Section(
    Config,
    {
        "sampling": ("sampling", SAMPLING),
        "policies": ("policies", many(POLICY, what="policy", most=256)),
        "enforcement": (
            "enforcement",
            Section(
                Enforcement,
                {
                    "read_back": ("read_back_ns", unit(parse_duration, low=10 * MS, high=HOUR, bounds="write 10ms to 1h")),
                    "drain": ("drain_ns", unit(parse_duration, zero=True, high=MINUTE, bounds="write at most 1m")),
                },
            ),
        ),
        "on_exit": ("on_exit", one_of(OnExit)),
        "overrides": ("overrides_directory", Section(_only(Config().overrides_directory), {"directory": ("value", _path)})),
        "metrics": ("metrics", METRICS),
        "control": ("control", CONTROL),
        "state": ("state_directory", Section(_only(Config().state_directory), {"directory": ("value", _path)})),
        "log": (
            "log",
            Section(
                LogConfig,
                {
                    "level": ("level", one_of(("debug", "info", "warning", "error"))),
                    "format": ("format", one_of(("text", "json"))),
                },
            ),
        ),
    },
)


# ---- overrides.d/*.yaml ----------------------------------------------------------------------------


OVERRIDE: Final = Section(
    Override,
    {
        "id": (
            "id",
            worded(most=64, pattern=r"[!-~]+", form="an id; use no spaces, like REQ-1234"),
        ),
        "interfaces": ("interfaces", _interfaces),
        "hosts": ("hosts", _hosts),
        "action": ("action", one_of(OverrideAction)),
        "threshold": ("threshold_bps", _threshold),
        "limit": ("limit_bps", _rate),
        "not_before": ("not_before_wall_ns", _time),
        "expires": ("expires_wall_ns", or_none(_time, "never")),
        "approved_by": ("approved_by", prose(200)),
        "reason": ("reason", prose(500)),
    },
    required=frozenset({"id", "interfaces", "action", "expires", "approved_by", "reason"}),
    checks=(
        Check(
            ("action", "threshold", "limit"),
            lambda o: o.action is OverrideAction.EXEMPT or o.threshold_bps is not None or o.limit_bps is not None,
            lambda _: "`action: limit` changes nothing by itself; add a threshold, a limit, or both",
        ),
        Check(
            ("limit", "threshold"),
            lambda o: o.limit_bps is None or o.threshold_bps is None or o.limit_bps < o.threshold_bps,
            lambda o: (
                f"the limit {exact_rate(o.limit_bps)} must be below the threshold {exact_rate(o.threshold_bps)}; "
                "lower the limit or raise the threshold"
            ),
        ),
        Check(
            ("expires", "not_before"),
            lambda o: o.expires_wall_ns is None or o.not_before_wall_ns is None or o.not_before_wall_ns < o.expires_wall_ns,
            lambda _: "expires must come after not_before; correct one of the two",
        ),
    ),
)


def _records(records: tuple[Override, ...]) -> tuple[Override, ...]:
    return records


OVERRIDES: Final = Section(
    _records, {"overrides": ("records", many(OVERRIDE, most=MAX_RECORDS, what="record"))}, required=frozenset({"overrides"})
)
"""The whole of an override file."""
