"""From the engine's state to what people see.

frame() is cheap and runs in the loop: it takes references and copies what is small. build() runs in the thread of whoever
asked (metrics, control, landing page) and makes one immutable Status of a frame; document() turns that into the JSON of
`limiterctl status --json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from limiterd.core.enforcement import rate_wanted_bps
from limiterd.core.keys import document as keys_document
from limiterd.core.limit_state import HOLDING, LimitState, Stage, calm_phase
from limiterd.core.model import (
    SECOND,
    ClassStats,
    Counters,
    Decision,
    Fault,
    FaultReason,
    Histogram,
    Link,
    LinkView,
    Now,
    Override,
    OverrideView,
    Phase,
    Rules,
    Snapshot,
    Status,
    StrikeRecord,
)
from limiterd.core.policy import Effective, effective, literal_names, matches, override_state
from limiterd.core.stacking import lower_of, upper_of
from limiterd.core.state import LinkKey, State, key_of
from limiterd.core.units import NS_PER_SECOND, format_wall

RATE_SPAN_NS = 1 * SECOND
"""Shown rates are means over about this time: a tenth of a second jumps too much to read."""


@dataclass(frozen=True, slots=True)
class LimitStateView:
    """What a frame keeps of a case."""

    phase: Phase
    holding: bool
    since_wall_ns: int | None
    reason: str
    limit_bps: int | None
    limit_wanted_bps: int | None
    strikes: int
    manual: bool
    note: str
    by: str
    stats: ClassStats | None
    release: str
    fault: Fault | None
    exempt_bps: int | None = None
    bypass_bps: int | None = None


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon knows and the engine does not."""

    version: str
    started_wall_ns: int
    config_error: str | None = None
    config_loaded_wall_ns: int = 0
    requests_pending: int = 0
    source: str = ""
    last_tick_age_ns: int = 0
    missed_ticks: int = 0
    netlink_resyncs: int = 0
    audit_errors: int = 0
    dropped_snapshots: int = 0
    kernel_errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    control_requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """One moment of the engine, safe to read from any thread."""

    now: Now
    rules: Rules
    newest: Snapshot | None
    oldest: Snapshot | None
    effective: Mapping[str, Effective]
    limit_states: Mapping[str, LimitStateView]
    pending: Mapping[str, int]
    strike_records: Mapping[LinkKey, StrikeRecord]
    warnings: tuple[Fault, ...]
    paused: bool
    counters: Counters
    around: DaemonInfo
    absent_limits: tuple[Decision, ...] = ()
    altnames: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refreshes: Mapping[str, int] = field(default_factory=dict)


def _view(state: State, limit_state: LimitState, pending: Mapping[str, int]) -> LimitStateView:
    name = limit_state.link.name
    applies = state.effective.get(name)
    exempt = applies is not None and applies.exempt
    decision = limit_state.decision if limit_state.stage in HOLDING else None
    phase = limit_state.phase(pending=name in pending, exempt=exempt)
    actual = state.tc.get(limit_state.link.ifindex)
    limited = phase is Phase.LIMITED and actual is not None
    blocker = limit_state.blocker
    standing, exempts = limit_state.stage is Stage.STANDING, applies is not None and bool(applies.limit.exempt)
    return LimitStateView(
        phase=phase,
        holding=decision is not None,
        since_wall_ns=decision.since_wall_ns if decision is not None else None,
        reason=decision.reason if decision is not None else "",
        limit_bps=actual.tree.rate_bps if limited and actual is not None and actual.tree is not None else None,
        limit_wanted_bps=limit_state.tree_wanted.rate_bps
        if decision is not None and limit_state.tree_wanted is not None
        else None,
        strikes=decision.strikes if decision is not None else 0,
        manual=decision is not None and decision.manual,
        note=decision.note if decision is not None else "",
        by=decision.by if decision is not None else "",
        stats=actual.stats if limited and actual is not None else None,
        release=applies.policy.release.mode if applies is not None and decision is not None and not decision.manual else "",
        fault=Fault(name, blocker.reason, blocker.message, limit_state.obstacle_since_wall_ns) if blocker is not None else None,
        exempt_bps=limit_state.bypass.exempt_bps if standing and exempts else None,
        bypass_bps=limit_state.bypass.beside_bps if standing else None,
    )


def frame(state: State, now: Now, newest: Snapshot | None, oldest: Snapshot | None, around: DaemonInfo) -> StatusSnapshot:
    """Take one moment of the engine. newest and oldest bound the span that shown rates are means over."""
    pending = dict(state.detector.pending())
    counters = state.counters
    errors = dict(counters.kernel_errors)
    for key, count in around.kernel_errors.items():
        errors[key] = errors.get(key, 0) + count
    totals = Counters(
        detections=dict(counters.detections),
        limits_applied=dict(counters.limits_applied),
        limits_released=dict(counters.limits_released),
        drift_repairs=dict(counters.drift_repairs),
        kernel_errors=errors,
        epochs=dict(counters.epochs),
        control_requests=around.control_requests,
        missed_ticks=around.missed_ticks,
        dropped_samples=counters.dropped_samples + around.dropped_snapshots,
        netlink_resyncs=around.netlink_resyncs,
        audit_errors=around.audit_errors,
    )
    return StatusSnapshot(
        now=now,
        rules=state.rules,
        newest=newest,
        oldest=oldest,
        effective=dict(state.effective),
        limit_states={name: _view(state, limit_state, pending) for name, limit_state in state.limit_states.items()},
        pending=pending,
        strike_records=dict(state.strike_records),
        warnings=tuple(state.warnings.values()),
        paused=state.paused,
        counters=totals,
        around=around,
        absent_limits=tuple(state.absent_limits.values()),
        refreshes=state.detector.refreshes(),
        altnames={name: state.by_name[name].altnames for name in set(state.canonical.values())},
    )


def aged(shot: StatusSnapshot, now: Now, age_ns: int, faults: tuple[Fault, ...]) -> StatusSnapshot:
    """A frame that is shown because there is no newer one: with its age, and with the faults of now."""
    return replace(shot, now=now, around=replace(shot.around, last_tick_age_ns=age_ns, faults=faults))


def stall(now: Now, age_ns: int) -> Fault:
    """The fault that nothing has been done for so long."""
    message = (
        f"the sampling loop has not turned for {age_ns / NS_PER_SECOND:.1f} s: the figures are of then, and nothing is "
        "detected, limited, repaired or lifted; see: journalctl -u limiterd -e"
    )
    return Fault("", FaultReason.NO_ANSWER, message, now.wall_ns - age_ns)


def _rates(newest: Snapshot | None, oldest: Snapshot | None) -> dict[str, tuple[int, int]]:
    """Per link name (rate in bit/s, tx_bytes); the rate is 0 where two samples of one link are not at hand."""
    if newest is None:
        return {}
    elapsed_ns = newest.t_ns - oldest.t_ns if oldest is not None else 0
    before = _counters_of(newest, oldest) if oldest is not None and elapsed_ns > 0 else newest.tx_bytes
    return {
        link.name: (8 * NS_PER_SECOND * max(0, now - then) // max(1, elapsed_ns), now)
        for link, now, then in zip(newest.links, newest.tx_bytes, before, strict=True)
    }


def _counters_of(newest: Snapshot, oldest: Snapshot) -> Sequence[int]:
    """The older counter of each of the newest links; the newest one's own where the older snapshot has no such link."""
    if newest.links is oldest.links:
        return oldest.tx_bytes
    known = {_instance(link): tx_bytes for link, tx_bytes in zip(oldest.links, oldest.tx_bytes, strict=True)}
    return [known.get(_instance(link), tx_bytes) for link, tx_bytes in zip(newest.links, newest.tx_bytes, strict=True)]


def _instance(link: Link) -> tuple[int, str, int]:
    """What a link is, whatever becomes of its properties."""
    return (link.ifindex, link.name, link.incarnation)


def _link_view(shot: StatusSnapshot, link: Link, rate: tuple[int, int]) -> LinkView:
    applies = shot.effective[link.name]
    limit_state = shot.limit_states.get(link.name)
    pending_ns = shot.pending.get(link.name, 0)
    strike_record = shot.strike_records.get(key_of(link))
    remembered = strike_record.strikes if strike_record is not None and shot.now.wall_ns < strike_record.forget_wall_ns else 0
    calm = calm_phase(pending=link.name in shot.pending, exempt=applies.exempt)
    override = applies.override
    held = limit_state if limit_state is not None and limit_state.holding else None
    return LinkView(
        interface=link.name,
        ifindex=link.ifindex,
        policy=applies.policy.name,
        mode=applies.policy.mode,
        phase=limit_state.phase if limit_state is not None else calm,
        rate_bps=rate[0],
        tx_bytes=rate[1],
        altnames=link.altnames,
        counter_refresh_ns=shot.refreshes.get(link.name),
        pending_ns=pending_ns,
        limit_bps=held.limit_bps if held is not None else None,
        limit_wanted_bps=held.limit_wanted_bps if held is not None else None,
        since_wall_ns=held.since_wall_ns if held is not None else None,
        reason=held.reason if held is not None else "",
        override=override.id if override is not None else "",
        strikes=held.strikes if held is not None else remembered,
        manual=held.manual if held is not None else False,
        note=held.note if held is not None else "",
        by=held.by if held is not None else "",
        exempt_bps=held.exempt_bps if held is not None else None,
        bypass_bps=held.bypass_bps if held is not None else None,
        stats=held.stats if held is not None else None,
        release=held.release if held is not None else "",
        threshold_bps=applies.detect.threshold_bps,
        window_ns=applies.detect.window_ns,
        policy_limit_bps=applies.limit.rate_bps,
    )


def _absent(shot: StatusSnapshot, present: Mapping[str, object]) -> list[LinkView]:
    """Links that are not there: those that a policy names, and those whose limit waits for their return."""
    waiting = {decision.interface: decision for decision in shot.absent_limits}
    aliases = {alias for names in shot.altnames.values() for alias in names}
    names = dict.fromkeys([*(name for name, _ in literal_names(shot.rules)), *waiting])
    return [
        _absent_view(name, applies, waiting.get(name))
        for name in names
        if name not in present and name not in aliases and (applies := effective(shot.rules, name, shot.now.wall_ns)) is not None
    ]


def _absent_view(name: str, applies: Effective, decision: Decision | None) -> LinkView:
    policy = applies.policy
    view = LinkView(
        interface=name,
        ifindex=0,
        policy=policy.name,
        mode=policy.mode,
        phase=Phase.ABSENT,
        rate_bps=0,
        tx_bytes=0,
        override=applies.override.id if applies.override is not None else "",
        threshold_bps=applies.detect.threshold_bps,
        window_ns=applies.detect.window_ns,
        policy_limit_bps=applies.limit.rate_bps,
    )
    if decision is None:
        return view
    return replace(
        view,
        since_wall_ns=decision.since_wall_ns,
        reason=decision.reason,
        strikes=decision.strikes,
        limit_wanted_bps=rate_wanted_bps(decision, applies),
        manual=decision.manual,
        note=decision.note,
        by=decision.by,
        release="" if decision.manual else policy.release.mode,
    )


def _override_view(shot: StatusSnapshot, record: Override) -> OverrideView:
    names = tuple(name for name in shot.effective if matches(record.interfaces, name, shot.altnames.get(name, ())))
    winning = tuple(name for name in names if shot.effective[name].override == record)
    return OverrideView(record, override_state(record, shot.rules.host, shot.now.wall_ns), names, winning)


def build(shot: StatusSnapshot) -> Status:
    """Make the whole status of one frame."""
    rates = _rates(shot.newest, shot.oldest)
    links = [] if shot.newest is None else [link for link in shot.newest.links if link.name in shot.effective]
    views = [_link_view(shot, link, rates[link.name]) for link in links]
    lower = lower_of(shot.newest.links if shot.newest is not None else ())
    if lower:
        upper = upper_of(lower)
        views = [replace(v, lower=lower.get(v.interface, ()), upper=upper.get(v.interface, ())) for v in views]
    views.extend(_absent(shot, rates))
    faults = [view.fault for view in shot.limit_states.values() if view.fault is not None]
    grave = {(fault.interface, fault.reason) for fault in faults}
    warnings = [warning for warning in shot.warnings if (warning.interface, warning.reason) not in grave]
    around = shot.around
    return Status(
        version=around.version,
        wall_ns=shot.now.wall_ns,
        boot_ns=shot.now.boot_ns,
        started_wall_ns=around.started_wall_ns,
        host=shot.rules.host,
        links=tuple(views),
        faults=(*faults, *warnings, *around.faults),
        overrides=tuple(_override_view(shot, record) for record in shot.rules.overrides),
        paused=shot.paused,
        config_sha256=shot.rules.sha256,
        config_error=around.config_error,
        config_loaded_wall_ns=around.config_loaded_wall_ns,
        requests_pending=around.requests_pending,
        counters=shot.counters,
        histograms=around.histograms,
        source=around.source,
        last_tick_age_ns=around.last_tick_age_ns,
    )


# ---- as JSON -------------------------------------------------------------------------------------


def link_document(view: LinkView) -> dict[str, object]:
    """One link as `status --json` shows it."""
    stats = view.stats
    return {
        "interface": view.interface,
        "ifindex": view.ifindex,
        "policy": view.policy,
        "mode": str(view.mode),
        "phase": str(view.phase),
        "rate_bps": view.rate_bps,
        "pending_seconds": view.pending_ns / NS_PER_SECOND,
        "limit_bps": view.limit_bps,
        "since": None if view.since_wall_ns is None else format_wall(view.since_wall_ns),
        "reason": str(view.reason) or None,
        "override": view.override or None,
        "strikes": view.strikes,
        "tx_bytes": view.tx_bytes,
        "threshold_bps": view.threshold_bps,
        "window_s": view.window_ns / NS_PER_SECOND,
        "policy_limit_bps": view.policy_limit_bps,
        "limit_wanted_bps": view.limit_wanted_bps,
        "manual": view.manual,
        "note": view.note or None,
        "by": view.by or None,
        "release": str(view.release) or None,
        "exempt_bps": view.exempt_bps,
        "altnames": list(view.altnames),
        "lower": list(view.lower),
        "upper": list(view.upper),
        "counter_refresh_s": None if view.counter_refresh_ns is None else view.counter_refresh_ns / NS_PER_SECOND,
        "bypass_bps": view.bypass_bps,
        "shaped": None
        if stats is None
        else {
            "sent_bytes": stats.sent_bytes,
            "drops": stats.drops,
            "overlimits": stats.overlimits,
            "backlog_bytes": stats.backlog_bytes,
        },
    }


def fault_document(fault: Fault) -> dict[str, object]:
    """One fault or warning as `status --json` shows it."""
    return {
        "interface": fault.interface or None,
        "reason": str(fault.reason),
        "message": fault.message,
        "since": format_wall(fault.since_wall_ns),
        "warning": fault.warning,
    }


def override_document(view: OverrideView) -> dict[str, object]:
    """One override record as `override list --json` shows it."""
    return {
        **keys_document(view.record),
        "state": view.state,
        "source": view.record.origin,
        "links": list(view.links),
        "effective_on": list(view.effective),
    }


def document(status: Status) -> dict[str, object]:
    """The whole of `limiterctl status --json`."""
    return {
        "version": status.version,
        "wall": format_wall(status.wall_ns),
        "started": format_wall(status.started_wall_ns),
        "host": status.host,
        "source": status.source,
        "last_tick_age_s": status.last_tick_age_ns / NS_PER_SECOND,
        "paused": status.paused,
        "requests_pending": status.requests_pending,
        "links": [link_document(view) for view in status.links],
        "faults": [fault_document(fault) for fault in status.faults],
        "overrides": [override_document(view) for view in status.overrides],
        "config": {
            "sha256": status.config_sha256,
            "error": status.config_error,
            "loaded": format_wall(status.config_loaded_wall_ns),
        },
    }
