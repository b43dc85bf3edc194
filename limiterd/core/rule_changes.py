"""What a reload changes, in lines for people.

Rule: no line, no change. Two Rules that differ only in where their records stand, or in the texts' hash, describe as
nothing; everything else shows, key by key, values exact, in the order of the files.

    + policy lab eth9: enforce, limit 50mbit above 100mbit for 10s
    ~ policy fair-use limit 200mbit → 300mbit
    + override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Final

from limiterd.core.model import Config, Match, Override, OverrideAction, Policy, Rules, Tls
from limiterd.core.policy import OverrideState, override_state
from limiterd.core.units import exact_duration, exact_rate, exact_wall, format_share

Show = Callable[..., str]


# ---- how values show -------------------------------------------------------------------------------


def _text(value: str | StrEnum | None) -> str:
    return "none" if value is None else str(value)


def _names(values: Sequence[str]) -> str:
    return " ".join(values) or "any"


def _rate_or_off(rate_bps: int) -> str:
    return exact_rate(rate_bps) if rate_bps else "off"


def _factor(ppm: int) -> str:
    return f"{ppm // 1_000_000}.{ppm % 1_000_000:06d}".rstrip("0").rstrip(".")


def _tls(tls: Tls | None) -> str:
    return "off" if tls is None else f"{tls.certificate} with {tls.key}"


_MATCH_KEYS: Final = (
    ("protocol", "protocol"),
    ("port", "port"),
    ("source_port", "source_port"),
    ("destination_port", "destination_port"),
    ("to", "to"),
    ("from", "from_net"),
)


def _match(match: Match) -> str:
    return " ".join(f"{key} {value}" for key, name in _MATCH_KEYS if (value := getattr(match, name)) is not None)


def _matches(matches: Sequence[Match]) -> str:
    return "; ".join(_match(match) for match in matches) or "none"


def _until(wall_ns: int | None) -> str:
    return "never" if wall_ns is None else exact_wall(wall_ns)


def _from(wall_ns: int | None) -> str:
    return "always" if wall_ns is None else exact_wall(wall_ns)


# ---- the keys --------------------------------------------------------------------------------------

_POLICY_KEYS: Final[tuple[tuple[str, str, Show], ...]] = (
    ("interfaces", "interfaces", _names),
    ("mode", "mode", _text),
    ("threshold", "detect.threshold_bps", exact_rate),
    ("window", "detect.window_ns", exact_duration),
    ("slice", "detect.slice_ns", exact_duration),
    ("floor", "detect.floor_ppm", format_share),
    ("guard", "detect.guard.mode", _text),
    ("guard burst", "detect.guard.burst_bits", exact_rate),
    ("limit", "limit.rate_bps", exact_rate),
    ("lifeline share", "limit.lifeline.share_ppm", format_share),
    ("lifeline match", "limit.lifeline.match", _matches),
    ("exempt", "limit.exempt", _matches),
    ("release", "release.mode", _text),
    ("release min_hold", "release.min_hold_ns", exact_duration),
    ("release max_hold", "release.max_hold_ns", exact_duration),
    ("release quiet_for", "release.quiet_for_ns", exact_duration),
    ("release quiet_rate", "release.quiet_rate_ppm", format_share),
    ("release multiplier", "release.multiplier_ppm", _factor),
    ("release forget_after", "release.forget_after_ns", exact_duration),
    ("foreign_qdisc", "foreign_qdisc", _text),
)

_CONFIG_KEYS: Final[tuple[tuple[str, str, Show], ...]] = (
    ("sampling interval", "sampling.interval_ns", exact_duration),
    ("sampling max_gap", "sampling.max_gap_ns", exact_duration),
    ("sampling source", "sampling.source", _text),
    ("sampling counter_refresh", "sampling.counter_refresh_ns", exact_duration),
    ("sampling max_plausible_rate", "sampling.max_plausible_bps", _rate_or_off),
    ("enforcement read_back", "enforcement.read_back_ns", exact_duration),
    ("enforcement drain", "enforcement.drain_ns", exact_duration),
    ("on_exit", "on_exit", _text),
    ("overrides directory", "overrides_directory", _text),
    ("metrics listen", "metrics.listen", _text),
    ("metrics tls", "metrics.tls", _tls),
    ("control socket", "control.socket", _text),
    ("control group", "control.group", _text),
    ("control admin_group", "control.admin_group", _text),
    ("state directory", "state_directory", _text),
    ("log level", "log.level", _text),
    ("log format", "log.format", _text),
)

_OVERRIDE_KEYS: Final[tuple[tuple[str, str, Show], ...]] = (
    ("interfaces", "interfaces", _names),
    ("hosts", "hosts", _names),
    ("action", "action", _text),
    ("threshold", "threshold_bps", lambda bps: "the policy's" if bps is None else exact_rate(bps)),
    ("limit", "limit_bps", lambda bps: "the policy's" if bps is None else exact_rate(bps)),
    ("not_before", "not_before_wall_ns", _from),
    ("expires", "expires_wall_ns", _until),
    ("approved_by", "approved_by", _text),
    ("reason", "reason", _text),
)


def _changed(keys: tuple[tuple[str, str, Show], ...], old: object, new: object, what: str) -> Iterator[str]:
    """Yield a line for each key in which two values of one type differ."""
    for label, path, show in keys:
        before, after = attrgetter(path)(old), attrgetter(path)(new)
        if before != after:
            yield f"~ {what}{label} {show(before)} → {show(after)}"


# ---- policies --------------------------------------------------------------------------------------


def _policy_line(policy: Policy) -> str:
    detect = policy.detect
    return (
        f"policy {policy.name} {_names(policy.interfaces)}: {policy.mode}, limit {exact_rate(policy.limit.rate_bps)} "
        f"above {exact_rate(detect.threshold_bps)} for {exact_duration(detect.window_ns)}"
    )


def _policies(old: Config | None, new: Config) -> Iterator[str]:
    before = {policy.name: policy for policy in old.policies} if old is not None else {}
    after = {policy.name: policy for policy in new.policies}
    yield from (f"- {_policy_line(policy)}" for name, policy in before.items() if name not in after)
    for name, policy in after.items():
        if name not in before:
            yield f"+ {_policy_line(policy)}"
        else:
            yield from _changed(_POLICY_KEYS, before[name], policy, f"policy {name} ")
    kept_before = [name for name in before if name in after]
    kept_after = [name for name in after if name in before]
    if kept_before != kept_after:
        yield f"~ policies' order {', '.join(kept_before)} → {', '.join(kept_after)}"


# ---- overrides -------------------------------------------------------------------------------------


def _amount(record: Override) -> str:
    """What a record grants."""
    if record.action is OverrideAction.EXEMPT:
        return "exempt"
    given = (("threshold", record.threshold_bps), ("limit", record.limit_bps))
    return " ".join(f"{key} {exact_rate(bps)}" for key, bps in given if bps is not None)


_REMARK: Final = {
    OverrideState.EXPIRED: " (expired: no effect)",
    OverrideState.OTHER_HOST: " (for other hosts: no effect here)",
}


def terms(record: Override, begin: str = "") -> str:
    """What a record grants and until when: "limit 400mbit until 2026-12-31T00:00:00Z"."""
    end = " and never expires" if record.expires_wall_ns is None else f" until {_until(record.expires_wall_ns)}"
    return f"{_amount(record)}{begin}{end}"


def override_line(record: Override, host: str, wall_ns: int) -> str:
    """Describe one record: "override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z"."""
    state = override_state(record, host, wall_ns)
    begin = f" from {_from(record.not_before_wall_ns)}" if state == OverrideState.PENDING else ""
    return f"override {record.id} {_names(record.interfaces)} {terms(record, begin)}{_REMARK.get(state, '')}"


def _overrides(old: Rules | None, new: Rules, wall_ns: int) -> Iterator[str]:
    before = {record.id: record for record in old.overrides} if old is not None else {}
    after = {record.id: record for record in new.overrides}
    for record_id, record in before.items():
        if record_id not in after:
            yield f"- {override_line(record, new.host, wall_ns)}"
    for record_id, record in after.items():
        if record_id not in before:
            yield f"+ {override_line(record, new.host, wall_ns)}"
        else:
            yield from _changed(_OVERRIDE_KEYS, before[record_id], record, f"override {record_id} ")


# ---- the whole -------------------------------------------------------------------------------------


def describe(old: Rules | None, new: Rules, wall_ns: int) -> tuple[str, ...]:
    """Describe what differs between two rules, one line each; empty where nothing does.

    old None (the start) describes every policy and record as new. wall_ns is only for saying that a record has expired.
    """
    lines = [*_policies(None if old is None else old.config, new.config), *_overrides(old, new, wall_ns)]
    if old is not None:
        lines += _changed(_CONFIG_KEYS, old.config, new.config, "")
        lines += [f"~ host {old.host} → {new.host}"] if old.host != new.host else []
    return tuple(lines)


_FIXED_KEYS: Final = (("state.directory", "state_directory"), ("control.socket", "control.socket"))


def needs_restart(old: Rules, new: Rules) -> tuple[str, ...]:
    """Name the changed keys that a running daemon cannot follow; a reload that changes one is refused."""
    return tuple(
        f"{key}: {attrgetter(path)(old.config)} → {attrgetter(path)(new.config)} needs a restart; put the old value back, or "
        "restart limiterd"
        for key, path in _FIXED_KEYS
        if attrgetter(path)(old.config) != attrgetter(path)(new.config)
    )
