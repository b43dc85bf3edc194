"""What a reload changes, in lines for people.

Rule: no line, no change. Two Rules that differ only in where their records stand, or in the texts' hash, describe as
nothing; everything else shows, key by key, values exact, in the order of the files.

    + policy lab eth9: enforce, limit 50mbit above 100mbit for 10s
    ~ policy fair-use limit 200mbit → 300mbit
    + override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from limiterd.core.keys import Section, keys_of
from limiterd.core.model import Config, Override, OverrideAction, Policy, Rules
from limiterd.core.policy import OverrideState, override_state
from limiterd.core.units import exact_duration, exact_rate, exact_wall


def _differences(old: Any, new: Any, labels: tuple[str, ...] = ()) -> Iterator[str]:  # noqa: ANN401 - any class with keys
    """Yield a line for each key in which two objects of one class differ: "detect threshold 1gbit → 2gbit"."""
    for key in keys_of(new.__class__).values():
        before, after = getattr(old, key.field), getattr(new, key.field)
        where = (*labels, key.label) if key.label else labels
        if before == after or key.field == "policies":  # those are compared by name
            continue
        if isinstance(key.kind, Section):
            yield from _differences(before, after, where)
        else:
            yield f"~ {' '.join(where)} {key.kind.show(before)} → {key.kind.show(after)}"


# ---- policies --------------------------------------------------------------------------------------


def _policy_line(policy: Policy) -> str:
    detect = policy.detect
    return (
        f"policy {policy.name} {' '.join(policy.interfaces)}: {policy.mode}, limit {exact_rate(policy.limit.rate_bps)} "
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
            yield from _differences(before[name], policy, (f"policy {name}",))
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
    end = " and never expires" if record.expires_wall_ns is None else f" until {exact_wall(record.expires_wall_ns)}"
    return f"{_amount(record)}{begin}{end}"


def override_line(record: Override, host: str, wall_ns: int) -> str:
    """Describe one record: "override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z"."""
    state = override_state(record, host, wall_ns)
    begin = f" from {exact_wall(record.not_before_wall_ns or 0)}" if state == OverrideState.PENDING else ""
    return f"override {record.id} {' '.join(record.interfaces)} {terms(record, begin)}{_REMARK.get(state, '')}"


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
            yield from _differences(before[record_id], record, (f"override {record_id}",))


# ---- the whole -------------------------------------------------------------------------------------


def describe(old: Rules | None, new: Rules, wall_ns: int) -> tuple[str, ...]:
    """Describe what differs between two rules, one line each; empty where nothing does.

    old None (the start) describes every policy and record as new. wall_ns is only for saying that a record has expired.
    """
    lines = [*_policies(None if old is None else old.config, new.config), *_overrides(old, new, wall_ns)]
    if old is not None:
        lines += _differences(old.config, new.config)
        lines += [f"~ host {old.host} → {new.host}"] if old.host != new.host else []
    return tuple(lines)


def needs_restart(old: Rules, new: Rules) -> tuple[tuple[str, str], ...]:
    """Name the changed keys that a running daemon cannot follow, each with what to do; a reload that changes one is refused."""
    return tuple(_fixed(old.config, new.config, ""))


def _fixed(old: Any, new: Any, path: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any class with keys
    for key in keys_of(new.__class__).values():
        before, after = getattr(old, key.field), getattr(new, key.field)
        if isinstance(key.kind, Section):
            yield from _fixed(before, after, f"{path}{key.name}.")
        elif key.restart and before != after:
            change = f"{key.kind.show(before)} → {key.kind.show(after)}"
            yield path + key.name, f"{change} needs a restart; put the old value back, or restart limiterd"
