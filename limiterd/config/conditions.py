"""Conditions across keys: what each section must be as a whole, beyond the bounds of its single keys.

A condition names the keys that it speaks of. One between keys of different sections takes the finished configuration and
notes its problems itself (ACROSS).
"""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from limiterd.config.context import Context
from limiterd.config.yaml_reader import Place
from limiterd.core.model import Config, Detect, Match, Override, OverrideAction, Policy, Release, Sampling
from limiterd.core.units import exact_duration, exact_rate, exact_wall


@dataclass(frozen=True, slots=True)
class Condition:
    """`holds` must be true of the finished object; else `message` stands at the first of the keys that is written."""

    keys: tuple[str, ...]
    holds: Callable[[Any], bool]
    message: Callable[[Any], str]
    of_interval: bool = False
    """Whether it speaks of the sampling interval, which recorded samples do not have."""


def _families(match: Match) -> set[int]:
    nets = [net for net in (match.to, match.from_net) if net is not None]
    of_protocol = {"icmp": {4}, "icmpv6": {6}}.get(match.protocol or "", set())
    return {ipaddress.ip_network(net).version for net in nets} | of_protocol


def _ports(match: Match) -> bool:
    return any(one is not None for one in (match.port, match.source_port, match.destination_port))


_PORTED: Final = frozenset({None, "tcp", "udp", "sctp", "136"})


CONDITIONS: Final[Mapping[type, tuple[Condition, ...]]] = {
    Sampling: (
        Condition(
            ("max_gap", "interval"),
            lambda s: s.max_gap_ns >= 2 * s.interval_ns,
            lambda s: (
                f"max_gap {exact_duration(s.max_gap_ns)} is shorter than two intervals of {exact_duration(s.interval_ns)}; "
                f"write at least {exact_duration(2 * s.interval_ns)}"
            ),
            of_interval=True,
        ),
        Condition(
            ("counter_refresh", "max_gap"),
            lambda s: s.counter_refresh_ns < s.max_gap_ns,
            lambda s: (
                f"counter_refresh {exact_duration(s.counter_refresh_ns)} must be shorter than max_gap "
                f"{exact_duration(s.max_gap_ns)}; shorten it, or lengthen max_gap"
            ),
        ),
    ),
    Detect: (
        Condition(
            ("slice", "window"),
            lambda d: d.slice_ns <= d.window_ns,
            lambda d: (
                f"slice {exact_duration(d.slice_ns)} is longer than window {exact_duration(d.window_ns)}; "
                f"write a slice of at most {exact_duration(d.window_ns)}, or a longer window"
            ),
        ),
    ),
    Match: (
        Condition(
            ("protocol", "port", "source_port", "destination_port", "to", "from"),
            lambda m: m != Match(),
            lambda _: "would match all traffic; name a protocol, a port or a network",
        ),
        Condition(
            ("port", "source_port", "destination_port", "protocol"),
            lambda m: not _ports(m) or m.protocol in _PORTED,
            lambda m: f"protocol {m.protocol} has no ports; write tcp, udp or sctp, or leave the port out",
        ),
        Condition(
            ("port", "source_port", "destination_port"),
            lambda m: m.port is None or (m.source_port is None and m.destination_port is None),
            lambda _: "port means either side; leave it out where source_port or destination_port is given",
        ),
        Condition(
            ("to", "from", "protocol"),
            lambda m: len(_families(m)) <= 1,
            lambda _: "IPv4 and IPv6 are mixed, which no packet does; write one entry for each",
        ),
        Condition(
            ("to", "from", "protocol"),
            lambda m: m.protocol != "arp" or (m.to is None and m.from_net is None),
            lambda _: "ARP is matched whole; leave the network out",
        ),
    ),
    Release: (
        Condition(
            ("min_hold", "max_hold"),
            lambda r: r.min_hold_ns <= r.max_hold_ns,
            lambda r: (
                f"min_hold {exact_duration(r.min_hold_ns)} is longer than max_hold {exact_duration(r.max_hold_ns)}; "
                "shorten the one or lengthen the other"
            ),
        ),
    ),
    Policy: (
        Condition(
            ("limit.rate", "detect.threshold"),
            lambda p: p.limit.rate_bps < p.detect.threshold_bps,
            lambda p: (
                f"the limit {exact_rate(p.limit.rate_bps)} must be below the threshold {exact_rate(p.detect.threshold_bps)}; "
                "lower the limit or raise the threshold"
            ),
        ),
    ),
    Override: (
        Condition(
            ("action", "threshold", "limit"),
            lambda o: o.action is OverrideAction.EXEMPT or o.threshold_bps is not None or o.limit_bps is not None,
            lambda _: "`action: limit` changes nothing by itself; add a threshold, a limit, or both",
        ),
        Condition(
            ("limit", "threshold"),
            lambda o: o.limit_bps is None or o.threshold_bps is None or o.limit_bps < o.threshold_bps,
            lambda o: (
                f"the limit {exact_rate(o.limit_bps)} must be below the threshold {exact_rate(o.threshold_bps)}; "
                "lower the limit or raise the threshold"
            ),
        ),
        Condition(
            ("expires", "not_before"),
            lambda o: o.expires_wall_ns is None or o.not_before_wall_ns is None or o.not_before_wall_ns < o.expires_wall_ns,
            lambda o: (
                f"expires {exact_wall(o.expires_wall_ns)} must come after not_before {exact_wall(o.not_before_wall_ns)}; "
                "correct one of the two"
            ),
        ),
    ),
}
"""The conditions of each section."""


# ---- between sections ------------------------------------------------------------------------------


def _policies(context: Context) -> Iterator[tuple[str, Policy]]:
    return ((path, entry) for path, entry in context.entries.items() if isinstance(entry, Policy))


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


def _refreshes_fit(config: Config, context: Context) -> None:
    for number, policy in enumerate(config.policies):
        path, refresh_ns, gap_ns = f"policies[{number}].counter_refresh", policy.counter_refresh_ns, config.sampling.max_gap_ns
        if refresh_ns is not None and refresh_ns >= gap_ns and context.is_valid(path) and context.is_valid("sampling.max_gap"):
            message = (
                f"counter_refresh {exact_duration(refresh_ns)} must be shorter than sampling.max_gap {exact_duration(gap_ns)}; "
                "shorten it, or lengthen max_gap"
            )
            context.problems.add(context.place_of(path), path, message)


def _directories_differ(config: Config, context: Context) -> None:
    path = "overrides.directory"
    if posixpath.normpath(config.overrides.directory) == posixpath.normpath(f"{config.state.directory}/overrides.d"):
        message = "is where the daemon keeps its own records; name another directory for the operator's"
        context.problems.add(context.place_of(path), path, message)


ACROSS: Final = (_each_slice_holds_an_interval, _names_are_unique, _refreshes_fit, _directories_differ)
"""Conditions between sections of a configuration."""
