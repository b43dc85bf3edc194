"""Rules that change, and overrides that begin and end by the wall clock: what applies to each link now.

Only what changed is touched: a link gets fresh evidence, a limit is reconsidered, an override's begin, end and approaching
expiry are told once. The calendar knows the next moment at which anything of that may happen, so a quiet tick asks for nothing.
"""

from __future__ import annotations

from typing import Final

from limiterd.core.adoption import reconsider_left
from limiterd.core.enforcement import lift_cause, mind_foreign, override_key, reconsider
from limiterd.core.lazy_counter import advice
from limiterd.core.limit_state import Stage
from limiterd.core.model import DAY, HOUR, EpochReason, EventKind, FaultReason, Link, Now, ReleaseReason, Rules
from limiterd.core.policy import (
    Effective,
    OverrideState,
    effective,
    end_cause,
    host_matches,
    next_boundary_wall_ns,
    override_state,
    sole_link,
)
from limiterd.core.state import State, StepContext, key_of

EXPIRY_NOTICES_NS: Final = (24 * HOUR, 1 * HOUR)
"""How long before its expiry an override is called to mind."""


def take_rules(context: StepContext, rules: Rules) -> None:
    """Other rules: hold every link against them."""
    state = context.state
    before, state.rules = state.rules, rules
    if rules.config.sampling != before.config.sampling:
        state.detector.set_sampling(rules.config.sampling)
    _reevaluate(context)
    for name in state.detector.refreshes():
        if name in state.by_name:
            mind_refresh(context, state.by_name[name])
    _skip_notices(context, before)
    set_schedule(state, context.now)


def mind_refresh(context: StepContext, link: Link) -> None:
    """A counter that is refreshed more seldom than the rules allow for is a warning."""
    state = context.state
    refresh_ns, allowed_ns = state.detector.refresh_ns(link.name)
    text = None
    if refresh_ns is not None and refresh_ns > allowed_ns:
        text = f"{link.name}: {advice(refresh_ns, state.rules.config.sampling.max_gap_ns)}"
    context.warn(link.name, "counter", FaultReason.LAZY_COUNTER, text)


def _skip_notices(context: StepContext, before: Rules) -> None:
    """Mark the notices as told that a new record would have had already: who has just approved an hour knows."""
    known = {(record.id, record.expires_wall_ns) for record in before.overrides}
    due_keys = {
        (record.id, record.expires_wall_ns - notice_ns)
        for record in context.state.rules.overrides
        if record.expires_wall_ns is not None
        for notice_ns in EXPIRY_NOTICES_NS
    }
    context.state.expiry_told &= due_keys  # records that are gone must not add up
    for record in context.state.rules.overrides:
        if record.expires_wall_ns is not None and (record.id, record.expires_wall_ns) not in known:
            due = (record.expires_wall_ns - notice_ns for notice_ns in EXPIRY_NOTICES_NS)
            context.state.expiry_told.update((record.id, d) for d in due if d <= context.now.wall_ns)


def take_schedule(context: StepContext) -> None:
    """Overrides begin and end by the wall clock, whatever way it steps."""
    state, wall_ns = context.state, context.now.wall_ns
    seen_ns, state.wall_seen_ns = state.wall_seen_ns, wall_ns
    stepped_back = wall_ns < seen_ns
    if not stepped_back and (state.calendar_due_wall_ns is None or wall_ns < state.calendar_due_wall_ns):
        return
    _reevaluate(context)
    _tell_unused(context, seen_ns)
    _remind(context)
    for key in [k for k, m in state.strike_records.items() if wall_ns >= m.forget_wall_ns]:
        del state.strike_records[key]
        state.journal_dirty = True
    set_schedule(state, context.now)


def set_schedule(state: State, now: Now) -> None:
    """Work out when the calendar has to be looked at next."""
    dates = [m.forget_wall_ns for m in state.strike_records.values()]
    boundary = next_boundary_wall_ns(state.rules, now.wall_ns)
    if boundary is not None:
        dates.append(boundary)
    for override in state.rules.overrides:
        if override.expires_wall_ns is not None:
            dates.extend(d for n in EXPIRY_NOTICES_NS if (d := override.expires_wall_ns - n) > now.wall_ns)
    state.calendar_due_wall_ns = min(dates, default=None)
    state.wall_seen_ns = now.wall_ns


def _tell_unused(context: StepContext, seen_wall_ns: int) -> None:
    """Records that expired since, and that applied to no link at their end: their end is told as well."""
    state = context.state
    told = {event.reason for event in context.events if event.kind is EventKind.OVERRIDE_ENDED}
    for record in state.rules.overrides:
        end_ns = record.expires_wall_ns
        over = end_ns is not None and seen_wall_ns < end_ns <= context.now.wall_ns
        if over and record.id not in told and host_matches(record.hosts, state.rules.host):
            context.tell(EventKind.OVERRIDE_ENDED, sole_link(record), record.id, cause="expired")


def _remind(context: StepContext) -> None:
    state, wall_ns = context.state, context.now.wall_ns
    for override in state.rules.overrides:
        if override.expires_wall_ns is None or override_state(override, state.rules.host, wall_ns) != OverrideState.ACTIVE:
            continue
        left_ns = override.expires_wall_ns - wall_ns
        keys = {(override.id, override.expires_wall_ns - notice_ns) for notice_ns in EXPIRY_NOTICES_NS if left_ns <= notice_ns}
        if not keys <= state.expiry_told:
            state.expiry_told |= keys
            context.tell(
                EventKind.OVERRIDE_EXPIRING,
                sole_link(override),
                override.id,
                left_s=left_ns // 10**9,
                interfaces=list(override.interfaces),
            )
    state.expiry_told = {k for k in state.expiry_told if k[1] > wall_ns - DAY}


def _reevaluate(context: StepContext) -> None:
    """Which policy and override apply to every link now; only what changed is touched."""
    for link in context.state.links:
        reevaluate(context, link)
    _lift_absent(context)


def reevaluate(context: StepContext, link: Link) -> None:
    """Which policy and override apply to one link now."""
    state = context.state
    before = state.effective.get(link.name)
    now_applies = effective(state.rules, link.name, context.now.wall_ns, link.altnames)
    if now_applies == before:
        return
    put_under(context, link, before, now_applies)
    tell_override(context, link, before, now_applies)
    mind_foreign(context, link)
    limit_state = state.limit_states.get(link.name)
    if limit_state is not None and limit_state.stage is Stage.LEFT:
        reconsider_left(context, limit_state)
    elif limit_state is not None:
        reconsider(context, limit_state)


def _lift_absent(context: StepContext) -> None:
    """An override lifts the limit of a link that is away as well: it may have ended when the link returns."""
    state = context.state
    for key, decision in tuple(state.absent_limits.items()):
        applies = effective(state.rules, key[0], context.now.wall_ns)
        if lift_cause(decision, applies) is ReleaseReason.OVERRIDE:
            del state.absent_limits[key]
            state.strike_records.pop(key, None)
            state.journal_dirty = True
            context.tell(EventKind.RELEASED, key[0], ReleaseReason.OVERRIDE, absent=True)


def put_under(context: StepContext, link: Link, before: Effective | None, after: Effective | None) -> None:
    """Give a link its policy: the detector's parameters, and the end of remembered strikes under an override."""
    state, name = context.state, link.name
    if after is None:
        state.effective.pop(name, None)
        state.detector.forget(name)
        return
    state.effective[name] = after
    state.detector.watch(name, after.detect, after.policy.counter_refresh_ns)
    if any(one is not None and (one.exempt or override_key(one)) for one in (before, after)):
        state.journal_dirty |= state.strike_records.pop(key_of(link), None) is not None
    if before is not None and name not in state.limit_states and _starts_afresh(before, after):
        state.detector.resume(name, EpochReason.RELOAD)


def _starts_afresh(before: Effective, after: Effective) -> bool:
    """Whether detection starts afresh: another policy, or an override that begins or ends; nothing is limited retroactively.

    The begin of an exemption is no reason: nothing is limited while it applies, and its end is one.
    """
    if before.policy.name != after.policy.name:
        return True
    old, new = before.override, after.override
    ended = old is not None and (new is None or new.id != old.id)
    return not after.exempt and (ended or before.exempt or override_key(before) != override_key(after))


def tell_override(context: StepContext, link: Link, before: Effective | None, after: Effective | None) -> None:
    """Tell that another override applies to the link, or none any more."""
    old = before.override if before is not None else None
    new = after.override if after is not None else None
    if old == new:
        return
    if old is not None:
        cause = end_cause(context.state.rules, old, new, context.now.wall_ns)
        context.tell(EventKind.OVERRIDE_ENDED, link.name, old.id, cause=cause, by_override="" if new is None else new.id)
    if new is not None:
        context.tell(EventKind.OVERRIDE_ACTIVE, link.name, new.id, action=str(new.action), approved_by=new.approved_by)
