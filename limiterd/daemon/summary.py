"""What the daemon says of itself as a whole: one line for systemctl, the first line of the log, why netlink is not used."""

from __future__ import annotations

from typing import Final

from limiterd.core.model import Rules
from limiterd.core.policy import literal_names
from limiterd.core.state import State
from limiterd.core.units import format_duration, format_rate

_NAMED: Final = 5
_LISTED: Final = 20


def summary(state: State, source: str, *, reload_failed: bool) -> str:
    """One line for systemctl status; source is the name of the sampler."""
    limit_states = tuple(state.limit_states.values())
    limited = [limit_state.link.name for limit_state in limit_states if limit_state.stage == "standing"]
    faults = [limit_state.link.name for limit_state in limit_states if limit_state.blocker is not None]
    parts = [f"watching {len(state.effective)} links by {source}", f"{len(limited)} limited" + _some(limited)]
    if faults:
        parts.append(f"{len(faults)} in fault{_some(faults)}")
    if state.paused:
        parts.append("paused")
    if reload_failed:
        parts.append("the last reload failed")
    return ", ".join(parts)


def inventory(state: State, rules: Rules, source: str) -> str:
    """What is watched and how, for the first line of the log."""
    names = sorted(state.effective)
    watched = (
        f"watching {', '.join(names[:_LISTED])}{' …' if len(names) > _LISTED else ''}"
        if names
        else "no link matches a policy yet"
    )
    policies = "; ".join(
        f"policy {p.name} ({p.mode}): {format_rate(p.detect.threshold_bps)} for more than "
        f"{format_duration(p.detect.window_ns)} → {format_rate(p.limit.rate_bps)}"
        for p in rules.config.policies
    )
    absent = [name for name, _ in literal_names(rules) if name not in state.by_name and name not in state.canonical]
    missing = f"; absent: {', '.join(absent)}" if absent else ""
    return f"{watched} by {source} every {format_duration(rules.config.sampling.interval_ns)}{missing}; {policies}"


def refused(refusal: str) -> str | None:
    """Why tc cannot be reached at all."""
    return f"netlink is refused, so links are only observed, by psutil: {refusal}" if refusal else None


def fallback(refusal: str, why: str) -> str | None:
    """Why samples come from psutil although netlink was to be tried, where it is not refused altogether."""
    return f"samples come from psutil: {why}" if why and not refusal else None


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''})" if names else ""
