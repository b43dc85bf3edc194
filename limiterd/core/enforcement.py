"""How one limit is carried: from the decision to the kernel and back, one case at a time.

drive() looks at what was last read of the link and at the case's stage, and says what to do next; after every change the
link is read again before anything else is concluded from it. Nothing is rolled back: a failed step leaves the case where
it is, with an obstacle and a time for the next try, and the next plan starts from what the kernel then shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from limiterd.core.auto_release import hold
from limiterd.core.bypass import likely_cause
from limiterd.core.faults import REMEDY, Blocker
from limiterd.core.htb_tree import is_whole, tree_for, unlimited
from limiterd.core.limit_state import HOLDING, LEAVING, LimitState, Signal, Stage
from limiterd.core.model import (
    SECOND,
    Action,
    ActionKind,
    Decision,
    EpochReason,
    EventKind,
    FaultReason,
    ForeignQdisc,
    Link,
    PolicyMode,
    ReleaseMode,
    ReleaseReason,
    RootQdisc,
    StrikeRecord,
    TcTree,
)
from limiterd.core.plan import Plan, plan, root_blocker, teardown
from limiterd.core.policy import Effective
from limiterd.core.state import StepContext, key_of
from limiterd.core.units import format_rate

LEFT_REMEDY: Final = "limiterctl release {0} lifts it (--reason '…')"
COUNTERS_NS: Final = 1 * SECOND
"""The classes of a standing limit are read as often, whatever the period of the tree's check."""
MEMORIES_MAX: Final = 8192
"""Links whose strikes are remembered; the journal that holds them has a size that it must not exceed."""

# ---- what is wanted ------------------------------------------------------------------------------


def override_key(effective: Effective) -> str:
    """Names the threshold override in force, "" where there is none."""
    override = effective.override
    if override is None or override.threshold_bps is None:
        return ""
    return f"{override.id}@{override.threshold_bps}"


def lift_cause(decision: Decision, effective: Effective | None) -> ReleaseReason | None:
    """Why a standing decision may not stand under these rules, or None."""
    if effective is None:
        return ReleaseReason.POLICY
    if effective.exempt or override_key(effective) not in {"", decision.override}:
        return ReleaseReason.OVERRIDE
    if effective.policy.mode is PolicyMode.OBSERVE and not decision.forced:
        return ReleaseReason.POLICY
    return None


def rate_wanted_bps(decision: Decision, effective: Effective) -> int:
    """The limit's rate: an override's, else the operator's, else the policy's."""
    override = effective.override
    if override is not None and override.limit_bps is not None:
        return override.limit_bps
    return decision.rate_bps if decision.rate_bps is not None else effective.limit.rate_bps


def refresh(context: StepContext, limit_state: LimitState) -> None:
    """Work out the wanted tree anew, after the rules, the link or the kernel's abilities changed."""
    effective = context.state.effective.get(limit_state.link.name)
    if limit_state.decision is None or effective is None or limit_state.stage in LEAVING:
        return
    rate_bps = rate_wanted_bps(limit_state.decision, effective)
    limit_state.tree_wanted = tree_for(effective.limit, rate_bps, limit_state.link, context.state.abilities)


# ---- decisions -----------------------------------------------------------------------------------


def impose(
    context: StepContext, link: Link, decision: Decision, *, fired_t_ns: int | None = None, put_back: bool = False
) -> LimitState:
    """Decide that the link is limited; the kernel follows in the same turn or later."""
    limit_state = context.state.limit_states.setdefault(link.name, LimitState(link))
    if limit_state.stage not in HOLDING:
        limit_state.signal(Signal.ORDER)
        limit_state.backoff.reset()
        limit_state.tree_standing = None
    now = context.now
    limit_state.decision = decision
    limit_state.put_back = put_back
    limit_state.found_whole = None
    limit_state.fired_t_ns = fired_t_ns
    limit_state.release_reason = None
    limit_state.awaiting = True
    state = context.state
    if (
        len(state.limit_states) == 1
    ):  # a module that was loaded meanwhile brings the lifeline back; other limits are left in peace
        state.abilities = replace(state.abilities, u32=True)
    limit_state.since_boot_ns = now.boot_ns - max(0, now.wall_ns - decision.since_wall_ns)
    context.state.detector.rest(link.name)
    context.state.journal_dirty = True
    refresh(context, limit_state)
    return limit_state


def begin_release(context: StepContext, limit_state: LimitState, reason: ReleaseReason) -> None:
    """Decide that the limit goes. Strikes are forgotten after an override, remembered otherwise."""
    state, decision = context.state, limit_state.decision
    key = key_of(limit_state.link)
    if reason is ReleaseReason.OVERRIDE:
        state.strike_records.pop(key, None)
    elif decision is not None and decision.strikes > 0 and limit_state.link.name in state.effective:
        forget_wall_ns = context.now.wall_ns + state.effective[limit_state.link.name].policy.release.forget_after_ns
        state.strike_records.pop(key, None)  # the newest stands last
        state.strike_records[key] = StrikeRecord(*key, decision.strikes, forget_wall_ns)
        if len(state.strike_records) > MEMORIES_MAX:
            del state.strike_records[next(iter(state.strike_records))]
        state.calendar_due_wall_ns = min(state.calendar_due_wall_ns or forget_wall_ns, forget_wall_ns)
    leave(context, limit_state, reason)


def leave(context: StepContext, limit_state: LimitState, reason: ReleaseReason) -> None:
    """Begin to remove whatever stands on the link."""
    limit_state.signal(Signal.LIFT)
    limit_state.release_reason = reason
    limit_state.release_announced = False
    limit_state.lifted_t_ns = context.now.boot_ns
    limit_state.drain_until_ns = None
    limit_state.awaiting = True
    limit_state.backoff.reset()
    context.state.journal_dirty = True


def strikes_of(context: StepContext, link: Link) -> int:
    """The strikes that are remembered of the link now."""
    strike_record = context.state.strike_records.get(key_of(link))
    return strike_record.strikes if strike_record is not None and context.now.wall_ns < strike_record.forget_wall_ns else 0


def reconsider(context: StepContext, limit_state: LimitState) -> None:
    """Hold a standing decision against the rules as they are now: it stands, moves along, or is lifted."""
    effective = context.state.effective.get(limit_state.link.name)
    if limit_state.decision is None or limit_state.stage not in HOLDING:
        return
    cause = lift_cause(limit_state.decision, effective)
    if cause is not None:
        begin_release(context, limit_state, cause)
        return
    if effective is not None and not limit_state.put_back:
        _move_along(context, limit_state, effective)
    refresh(context, limit_state)


def _move_along(context: StepContext, limit_state: LimitState, effective: Effective) -> None:
    decision, _ = limit_state.impose()
    if decision.policy != effective.policy.name:
        limit_state.decision = replace(decision, policy=effective.policy.name)
        context.state.journal_dirty = True


# ---- obstacles -----------------------------------------------------------------------------------


def fail(context: StepContext, limit_state: LimitState, blocker: Blocker) -> None:
    """Note what hinders the case, tell it once, and set the time of the next try."""
    _fault(context, limit_state, blocker)
    limit_state.backoff.failed(context.now.boot_ns)


def _fault(context: StepContext, limit_state: LimitState, blocker: Blocker) -> None:
    if limit_state.blocker is None:
        limit_state.obstacle_since_wall_ns = context.now.wall_ns
    if limit_state.blocker != blocker:
        context.tell(EventKind.FAULT, limit_state.link.name, blocker.reason, message=blocker.message)
    limit_state.blocker = blocker


def _clear(context: StepContext, limit_state: LimitState) -> None:
    if limit_state.blocker is not None:
        context.tell(EventKind.FAULT_CLEARED, limit_state.link.name, limit_state.blocker.reason)
        limit_state.blocker = None
    if limit_state.repair_loop.over(context.now.boot_ns):
        limit_state.backoff.reset()


def _blocked(context: StepContext, limit_state: LimitState) -> bool:
    return limit_state.blocker is not None and context.now.boot_ns < limit_state.backoff.retry_at_ns


# ---- the stages ----------------------------------------------------------------------------------


def advance(context: StepContext, limit_state: LimitState) -> None:
    """Do what the case's stage asks for, now that the link was read; ask for the next reading when it is due."""
    if limit_state.awaiting:
        if not _blocked(context, limit_state):
            context.reads.add(limit_state.link.ifindex)
        return
    _DRIVERS[limit_state.stage](context, limit_state)
    limit_state.fresh = False
    if limit_state.stage is not Stage.IDLE and _read_due(context, limit_state):
        context.reads.add(limit_state.link.ifindex)


def _read_due(context: StepContext, limit_state: LimitState) -> bool:
    """At the tick that is nearest to the due time: ticks jitter, and the next one may be a whole period later.

    A limit that has just come to stand is looked at in the next tick, whatever the period: does traffic go through it?
    """
    slack_ns = context.state.rules.config.sampling.interval_ns // 2
    return limit_state.awaiting or (context.ticking and context.now.boot_ns + slack_ns >= _read_due_ns(context, limit_state))


def _read_due_ns(context: StepContext, limit_state: LimitState) -> int:
    standing = limit_state.stage is Stage.STANDING
    if limit_state.stage in LEAVING or (standing and not limit_state.bypass.began):
        return limit_state.read_t_ns
    period_ns = min(context.state.rules.config.enforcement.read_back_ns, COUNTERS_NS)
    due_ns = limit_state.read_t_ns + period_ns
    return min(due_ns, limit_state.quiet.due_ns()) if standing else due_ns


def _plan(context: StepContext, limit_state: LimitState, wanted: TcTree | None) -> Plan:
    state, link = context.state, limit_state.link
    effective = state.effective.get(link.name)
    takeover = effective is not None and effective.policy.foreign_qdisc is ForeignQdisc.TAKEOVER
    replaced, stood = state.replaced.get(key_of(link)), has_stood(limit_state)
    return plan(link, wanted, state.tc.get(link.ifindex), replaced, takeover=takeover, stood=stood)


def has_stood(limit_state: LimitState | None) -> bool:
    """Whether the limit has stood in this boot."""
    return limit_state is not None and (limit_state.stood or limit_state.tree_standing is not None)


def mind_foreign(context: StepContext, link: Link) -> None:
    """A foreign root where a limit would fail, and foreign objects inside our tree, are warnings before they hurt."""
    state, name = context.state, link.name
    actual, applies, limit_state = state.tc.get(link.ifindex), state.effective.get(name), state.limit_states.get(name)
    found = dict.fromkeys(("root", "inside"), "")
    if actual is not None and applies is not None and applies.policy.mode is PolicyMode.ENFORCE:
        takeover = applies.policy.foreign_qdisc is ForeignQdisc.TAKEOVER
        replaced, stood = state.replaced.get(key_of(link)), has_stood(limit_state)
        found["root"] = root_blocker(name, actual.foreign_root, replaced, takeover=takeover, stood=stood)
    if actual is not None and actual.foreign:
        found["inside"] = f"foreign objects inside the limit: {', '.join(actual.foreign)}; they go when it goes"
    for place, text in found.items():
        context.warn(name, place, FaultReason.FOREIGN_QDISC, f"{name}: {text}" if text else None)


def _act(context: StepContext, limit_state: LimitState, actions: Sequence[Action]) -> None:
    for action in actions:
        if action.kind is ActionKind.SAVE_ROOT and isinstance(action.item, RootQdisc):
            context.state.replaced[key_of(limit_state.link)] = action.item
    context.actions.extend(actions)
    limit_state.awaiting = True
    context.reads.add(limit_state.link.ifindex)


def _advance_due(context: StepContext, limit_state: LimitState) -> None:
    if limit_state.put_back and limit_state.found_whole is None and not _still_due(context, limit_state):
        return
    blocked = _blocked(context, limit_state)
    if limit_state.link.ifindex not in context.state.tc or (blocked and not limit_state.fresh):
        return
    if not blocked:
        _ask_again(context, limit_state)
    planned = _plan(context, limit_state, limit_state.tree_wanted)
    if planned.blocker is None and not planned.actions:
        _seen(context, limit_state)
    elif blocked:
        return
    elif planned.blocker is not None:
        fail(context, limit_state, Blocker(*planned.blocker))
    else:
        if limit_state.tree_standing is not None and limit_state.tree_standing == limit_state.tree_wanted:
            context.state.counters.drift_repairs[limit_state.link.name] += 1
            context.tell(EventKind.REPAIR, limit_state.link.name, "drift", differences=list(planned.drift))
        _act(context, limit_state, planned.actions)


def _ask_again(context: StepContext, limit_state: LimitState) -> None:
    """Once a retry, take the kernel to have what it lacked: a module may have been loaded since."""
    if limit_state.blocker is None or limit_state.tree_wanted is None or not limit_state.tree_wanted.refused:
        return
    if limit_state.asked_again != limit_state.backoff.attempts:
        limit_state.asked_again = limit_state.backoff.attempts
        context.state.abilities = replace(context.state.abilities, htb=True, u32=True)
        refresh(context, limit_state)


def _still_due(context: StepContext, limit_state: LimitState) -> bool:
    """Take the first look at a link whose decision comes back.

    A limit that still stands whole is adopted, whatever policy applies now; one that does not is put back only under the
    policy that it was made by.
    """
    actual, effective = context.state.tc.get(limit_state.link.ifindex), context.state.effective[limit_state.link.name]
    limit_state.found_whole = actual is not None and is_whole(actual.tree)
    if not limit_state.found_whole and limit_state.impose()[0].policy != effective.policy.name:
        begin_release(context, limit_state, ReleaseReason.POLICY)
        return False
    _move_along(context, limit_state, effective)
    return True


def _seen(context: StepContext, limit_state: LimitState) -> None:
    """The kernel shows exactly what is wanted."""
    state, name = context.state, limit_state.link.name
    decision, tree = limit_state.impose()
    before = limit_state.tree_standing
    no_lifeline = (
        None if state.abilities.u32 else f"{name}: the limit is in force without its lifeline; this kernel has no u32 filters"
    )
    context.warn(name, "lifeline", FaultReason.MISSING_MODULE, no_lifeline)
    limit_state.signal(Signal.SEEN)
    limit_state.tree_standing = tree
    if not decision.stood:
        limit_state.decision = replace(decision, stood=True)
        state.journal_dirty = True
    limit_state.bypass.restart()
    if not (limit_state.bypass.active and limit_state.blocker is not None and limit_state.blocker.reason is FaultReason.BYPASS):
        _clear(context, limit_state)
    detail: dict[str, object] = {"limit_bps": tree.rate_bps}
    if limit_state.put_back:
        limit_state.put_back = False
        context.tell(EventKind.ADOPTED if limit_state.found_whole else EventKind.RESTORED, name, decision.reason, **detail)
    elif before is None:
        state.counters.limits_applied[name] += 1
        if limit_state.fired_t_ns is not None:
            detail["enforcement_ns"] = context.now.boot_ns - limit_state.fired_t_ns
        context.tell(EventKind.LIMITED, name, decision.reason, **detail)
    elif before.rate_bps != tree.rate_bps:
        context.tell(EventKind.RATE_CHANGED, name, decision.reason, before_bps=before.rate_bps, **detail)
    limit_state.fired_t_ns = None


def _advance_standing(context: StepContext, limit_state: LimitState) -> None:
    if limit_state.link.ifindex not in context.state.tc or (
        not limit_state.fresh and limit_state.tree_standing is limit_state.tree_wanted
    ):
        return
    planned = _plan(context, limit_state, limit_state.tree_wanted)
    if planned.actions or planned.blocker is not None:
        limit_state.signal(Signal.LOST)
        undone = planned.blocker is None and limit_state.tree_standing == limit_state.tree_wanted
        if undone and limit_state.repair_loop.repaired(context.now.boot_ns):
            words = _repair_loop_text(context, limit_state, planned.drift)
            context.warn(limit_state.link.name, "fight", FaultReason.FIGHT, words)
            fail(context, limit_state, Blocker(FaultReason.FIGHT, words))
        _advance_due(context, limit_state)
        return
    if limit_state.repair_loop.over(context.now.boot_ns):
        context.warn(limit_state.link.name, "fight", FaultReason.FIGHT, None)
    _watch_bypass(context, limit_state)
    cause = _demand_over(context, limit_state)
    if cause is not None:
        begin_release(context, limit_state, cause)


def _repair_loop_text(context: StepContext, limit_state: LimitState, drift: Sequence[str]) -> str:
    name, count = limit_state.link.name, len(limit_state.repair_loop.repairs_ns)
    _, wanted = limit_state.impose()
    actual = context.state.tc.get(limit_state.link.ifindex)
    tree = None if actual is None else actual.tree
    what, who = (drift[0] if len(drift) == 1 else f"{len(drift)} parts of it were changed"), REMEDY[FaultReason.FIGHT]
    if tree is None:
        what = "its root qdisc was removed"
    elif is_whole(tree) and tree.rate_bps != wanted.rate_bps:
        what = f"set to {format_rate(tree.rate_bps)} instead of {format_rate(wanted.rate_bps)}"
        who = f"another limiterd? {who}"
    return f"{name}: the limit was undone {count} times within a minute ({what}); {who}"


def _watch_bypass(context: StepContext, limit_state: LimitState) -> None:
    """A limit that traffic passes by is a fault: told once, with the figure of now, until it has been calm for a while."""
    if not limit_state.fresh:
        return
    link, meter = limit_state.link, limit_state.bypass
    actual, (_, tree) = context.state.tc[link.ifindex], limit_state.impose()
    device = None if context.state.recorded else context.state.detector.counter(link.name)
    meter.read(device, actual, tree.rate_bps)
    if meter.excess or meter.active:
        limit_state.quiet.since_ns = None
    if not meter.active:
        _clear(context, limit_state)
        return
    text = (
        f"{link.name}: {format_rate(meter.beside_bps)} pass beside the limit of {format_rate(tree.rate_bps)}; "
        f"{likely_cause(actual, direct=meter.direct)}"
    )
    blocker = Blocker(FaultReason.BYPASS, text)
    if limit_state.blocker is None or limit_state.blocker.reason is not FaultReason.BYPASS:
        _fault(context, limit_state, blocker)
    elif meter.excess:
        limit_state.blocker = blocker


def _demand_over(context: StepContext, limit_state: LimitState) -> ReleaseReason | None:
    decision, _ = limit_state.impose()
    rule = context.state.effective[limit_state.link.name].policy.release
    if decision.manual or rule.mode is not ReleaseMode.AUTO or limit_state.quiet.lasted_ns() < rule.quiet_for_ns:
        return None
    hold_ns, reason = hold(rule, decision.strikes)
    return reason if context.now.boot_ns >= limit_state.since_boot_ns + hold_ns else None


def _advance_draining(context: StepContext, limit_state: LimitState) -> None:
    actual = context.state.tc.get(limit_state.link.ifindex)
    if actual is None or not actual.ours or actual.tree is None:
        announce(context, limit_state)
        _drained(context, limit_state)
        return
    if not limit_state.release_announced:
        if _blocked(context, limit_state):
            return
        planned = _plan(context, limit_state, unlimited(actual.tree))
        if planned.actions and all(a.kind is ActionKind.CHANGE_CLASS for a in planned.actions):
            _act(context, limit_state, planned.actions)
            return
        announce(context, limit_state)
        limit_state.drain_until_ns = context.now.boot_ns + context.state.rules.config.enforcement.drain_ns
    if actual.queued_bytes == 0:
        _drained(context, limit_state)
    elif limit_state.drain_until_ns is not None and context.now.boot_ns >= limit_state.drain_until_ns:
        context.tell(EventKind.UNDRAINED, limit_state.link.name, "", backlog_bytes=actual.queued_bytes)
        _drained(context, limit_state)


def announce(context: StepContext, limit_state: LimitState) -> None:
    """The link runs free again: this is when a release takes effect."""
    if limit_state.release_announced:
        return
    limit_state.release_announced = context.state.journal_dirty = True
    name, decision, reason = limit_state.link.name, limit_state.decision, limit_state.release_reason or ReleaseReason.POLICY
    if decision is None:
        context.tell(EventKind.LEFTOVER, name, reason, limit_bps=limit_state.found_bps)
        return
    if not decision.stood:
        context.tell(EventKind.WITHDRAWN, name, reason, since_wall_ns=decision.since_wall_ns)
        return
    context.state.counters.limits_released[name, reason] += 1
    context.tell(
        EventKind.RELEASED,
        name,
        reason,
        since_wall_ns=decision.since_wall_ns,
        effect_ns=context.now.boot_ns - limit_state.lifted_t_ns,
    )


def _drained(context: StepContext, limit_state: LimitState) -> None:
    """The queue is empty: what hangs on the root goes first, once; the root itself follows when that was read back."""
    limit_state.signal(Signal.DRAINED)
    steps = teardown(limit_state.link, context.state.tc.get(limit_state.link.ifindex))
    if steps:
        _act(context, limit_state, steps)
    else:
        _advance_removing(context, limit_state)


def _advance_removing(context: StepContext, limit_state: LimitState) -> None:
    if _blocked(context, limit_state):
        return
    planned = _plan(context, limit_state, None)
    if planned.actions:
        _act(context, limit_state, planned.actions)
        return
    _clear(context, limit_state)
    limit_state.signal(Signal.GONE)
    drop(context, limit_state)
    context.state.detector.resume(limit_state.link.name, EpochReason.RELEASED)


def _advance_left(context: StepContext, limit_state: LimitState) -> None:
    """Name what stands; where nothing stands (any more), the decision is over."""
    actual, name = context.state.tc.get(limit_state.link.ifindex), limit_state.link.name
    if actual is not None and actual.ours:
        what = (
            "a limit of an earlier run stands" if is_whole(actual.tree) else "an earlier run's half-made limit is in the kernel"
        )
        _fault(context, limit_state, Blocker(FaultReason.OTHER, f"{name}: {what}; {LEFT_REMEDY.format(name)}"))
        return
    if limit_state.decision is not None:
        announce(context, limit_state)
    _clear(context, limit_state)
    limit_state.signal(Signal.GONE)
    drop(context, limit_state)
    context.state.detector.resume(name, EpochReason.RELEASED)


def drop(context: StepContext, limit_state: LimitState) -> None:
    """Forget a case that is over."""
    context.warn(limit_state.link.name, "lifeline", FaultReason.MISSING_MODULE, None)
    context.warn(limit_state.link.name, "fight", FaultReason.FIGHT, None)
    context.state.limit_states.pop(limit_state.link.name, None)
    context.state.replaced.pop(key_of(limit_state.link), None)
    context.state.journal_dirty = True
    mind_foreign(context, limit_state.link)


_DRIVERS: Final[dict[Stage, Callable[[StepContext, LimitState], None]]] = {
    Stage.DUE: _advance_due,
    Stage.STANDING: _advance_standing,
    Stage.DRAINING: _advance_draining,
    Stage.REMOVING: _advance_removing,
    Stage.LEFT: _advance_left,
}
