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
from limiterd.core.faults import REMEDY, Obstacle
from limiterd.core.htb_tree import raised, tree_for
from limiterd.core.limit_state import HOLDING, LEAVING, Case, Signal, Stage
from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_LIMIT,
    MINUTE,
    SECOND,
    Action,
    ActionKind,
    Decision,
    EpochReason,
    EventKind,
    FaultReason,
    ForeignQdisc,
    Link,
    Memory,
    PolicyMode,
    Reason,
    ReleaseMode,
    ReleaseReason,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.plan import Plan, dismantling, plan
from limiterd.core.policy import Effective
from limiterd.core.state import Turn, key_of

PEACE_NS: Final = 1 * MINUTE
"""How long no packet has passed a limit by until that is no fault any more."""
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


def refresh(turn: Turn, case: Case) -> None:
    """Work out the wanted tree anew, after the rules, the link or the kernel's abilities changed."""
    effective = turn.state.effective.get(case.link.name)
    if case.decision is None or effective is None or case.stage in LEAVING:
        return
    rate_bps = rate_wanted_bps(case.decision, effective)
    case.tree_wanted = tree_for(effective.limit, rate_bps, case.link, turn.state.abilities)


# ---- decisions -----------------------------------------------------------------------------------


def order(turn: Turn, link: Link, decision: Decision, *, fired_t_ns: int | None = None, put_back: bool = False) -> Case:
    """Decide that the link is limited; the kernel follows in the same turn or later."""
    case = turn.state.cases.setdefault(link.name, Case(link))
    if case.stage not in HOLDING:
        case.signal(Signal.ORDER)
        case.backoff.reset()
        case.tree_standing = None
    now = turn.now
    case.decision = decision
    case.put_back = put_back
    case.found_ours = None
    case.fired_t_ns = fired_t_ns
    case.release_reason = None
    case.awaiting = True
    state = turn.state
    if len(state.cases) == 1:  # a module that was loaded meanwhile brings the lifeline back; other limits are left in peace
        state.abilities = replace(state.abilities, u32=True)
    case.since_boot_ns = now.boot_ns - max(0, now.wall_ns - decision.since_wall_ns)
    turn.state.detector.rest(link.name)
    turn.state.journal_dirty = True
    refresh(turn, case)
    return case


def lift(turn: Turn, case: Case, reason: ReleaseReason) -> None:
    """Decide that the limit goes. Strikes are forgotten after an override, remembered otherwise."""
    state, decision = turn.state, case.decision
    key = key_of(case.link)
    if reason is ReleaseReason.OVERRIDE:
        state.memories.pop(key, None)
    elif decision is not None and decision.strikes > 0 and case.link.name in state.effective:
        forget_wall_ns = turn.now.wall_ns + state.effective[case.link.name].policy.release.forget_after_ns
        state.memories.pop(key, None)  # the newest stands last
        state.memories[key] = Memory(*key, decision.strikes, forget_wall_ns)
        if len(state.memories) > MEMORIES_MAX:
            del state.memories[next(iter(state.memories))]
        state.calendar_due_wall_ns = min(state.calendar_due_wall_ns or forget_wall_ns, forget_wall_ns)
    case.signal(Signal.LIFT)
    case.release_reason = reason
    case.release_announced = False
    case.lifted_t_ns = turn.now.boot_ns
    case.drain_until_ns = None
    case.awaiting = True
    case.backoff.reset()
    state.journal_dirty = True


def strikes_of(turn: Turn, link: Link) -> int:
    """The strikes that are remembered of the link now."""
    memory = turn.state.memories.get(key_of(link))
    return memory.strikes if memory is not None and turn.now.wall_ns < memory.forget_wall_ns else 0


def reconsider(turn: Turn, case: Case) -> None:
    """Hold a standing decision against the rules as they are now: it stands, moves along, or is lifted."""
    effective = turn.state.effective.get(case.link.name)
    if case.decision is None or case.stage not in HOLDING:
        return
    cause = lift_cause(case.decision, effective)
    if cause is not None:
        lift(turn, case, cause)
        return
    if effective is not None and not case.put_back:
        _move_along(turn, case, effective)
    refresh(turn, case)


def _move_along(turn: Turn, case: Case, effective: Effective) -> None:
    decision, _ = case.order()
    if decision.policy != effective.policy.name:
        case.decision = replace(decision, policy=effective.policy.name)
        turn.state.journal_dirty = True


def stray(turn: Turn, link: Link, actual: TcActual) -> None:
    """Our root on a link that no decision is known of: adopt a whole limit, clear away a half-made or half-lifted one."""
    effective = turn.state.effective.get(link.name)
    if effective is None or effective.policy.mode is PolicyMode.OBSERVE or not _whole(effective, actual):
        lift(turn, turn.state.cases.setdefault(link.name, Case(link)), ReleaseReason.POLICY)
        return
    decision = Decision(
        interface=link.name,
        mac=link.mac,
        policy=effective.policy.name,
        reason=Reason.ADOPTED,
        since_wall_ns=turn.now.wall_ns,
        strikes=max(1, strikes_of(turn, link)),
    )
    reconsider(turn, order(turn, link, decision, put_back=True))


def owed(turn: Turn, link: Link, actual: TcActual) -> None:
    """A saved root without a limit: an earlier run ended between our root's end and the restore, or just after it."""
    state, key = turn.state, key_of(link)
    if key not in state.saved:
        return
    if actual.foreign_root is None:
        lift(turn, state.cases.setdefault(link.name, Case(link)), ReleaseReason.POLICY)
    else:
        del state.saved[key]
        state.journal_dirty = True


def _whole(effective: Effective, actual: TcActual) -> bool:
    """Whether a tree of ours is a finished limit of some rate; what else of it is not as wanted is put right in place.

    A half-made one lacks the default class, which commits it; a raised one is on its way out, whatever its shape.
    """
    found = {c.classid: c for c in actual.tree.classes} if actual.tree is not None else {}
    limit, default = found.get(CLASS_LIMIT), found.get(CLASS_DEFAULT)
    if actual.tree is None or limit is None or default is None:
        return False
    below = limit.rate_bps == limit.ceil_bps == default.ceil_bps < effective.policy.detect.threshold_bps
    return below and (actual.tree.default_classid, default.parent) == (CLASS_DEFAULT, CLASS_LIMIT)


# ---- obstacles -----------------------------------------------------------------------------------


def obstruct(turn: Turn, case: Case, obstacle: Obstacle) -> None:
    """Note what hinders the case, tell it once, and set the time of the next try."""
    _fault(turn, case, obstacle)
    case.backoff.failed(turn.now.boot_ns)


def _fault(turn: Turn, case: Case, obstacle: Obstacle) -> None:
    if case.obstacle is None:
        case.obstacle_since_wall_ns = turn.now.wall_ns
    if case.obstacle != obstacle:
        turn.tell(EventKind.FAULT, case.link.name, obstacle.reason, message=obstacle.message)
    case.obstacle = obstacle


def _clear(turn: Turn, case: Case) -> None:
    if case.obstacle is not None:
        turn.tell(EventKind.FAULT_CLEARED, case.link.name, case.obstacle.reason)
        case.obstacle = None
    if case.fight.over(turn.now.boot_ns):
        case.backoff.reset()


def _blocked(turn: Turn, case: Case) -> bool:
    return case.obstacle is not None and turn.now.boot_ns < case.backoff.retry_at_ns


# ---- the stages ----------------------------------------------------------------------------------


def drive(turn: Turn, case: Case) -> None:
    """Do what the case's stage asks for, now that the link was read; ask for the next reading when it is due."""
    if case.awaiting:
        if not _blocked(turn, case):
            turn.reads.add(case.link.ifindex)
        return
    _DRIVERS[case.stage](turn, case)
    case.fresh = False
    if case.stage is not Stage.IDLE and _read_due(turn, case):
        turn.reads.add(case.link.ifindex)


def _read_due(turn: Turn, case: Case) -> bool:
    """At the tick that is nearest to the due time: ticks jitter, and the next one may be a whole period later.

    A limit that has just come to stand is looked at in the next tick, whatever the period: does traffic go through it?
    """
    slack_ns = turn.state.rules.config.sampling.interval_ns // 2
    return case.awaiting or (turn.ticking and turn.now.boot_ns + slack_ns >= case.read_t_ns + _read_period_ns(turn, case))


def _read_period_ns(turn: Turn, case: Case) -> int:
    if case.stage in LEAVING or (case.stage is Stage.STANDING and not case.verified):
        return 0
    period_ns = turn.state.rules.config.enforcement.read_back_ns
    effective = turn.state.effective.get(case.link.name)
    if effective is not None and effective.policy.release.mode is ReleaseMode.AUTO:
        return min(period_ns, SECOND)
    return period_ns


def _plan(turn: Turn, case: Case, wanted: TcTree | None) -> Plan:
    state, link = turn.state, case.link
    effective = state.effective.get(link.name)
    takeover = (
        effective is not None
        and effective.policy.foreign_qdisc is ForeignQdisc.TAKEOVER
        and not (case.stood or case.tree_standing)
    )
    return plan(link, wanted, state.tc.get(link.ifindex), state.saved.get(key_of(link)), takeover=takeover)


def _act(turn: Turn, case: Case, actions: Sequence[Action]) -> None:
    for action in actions:
        if action.kind is ActionKind.SAVE_ROOT and isinstance(action.item, RootQdisc):
            turn.state.saved[key_of(case.link)] = action.item
    turn.actions.extend(actions)
    case.awaiting = True
    turn.reads.add(case.link.ifindex)


def _drive_due(turn: Turn, case: Case) -> None:
    if case.put_back and case.found_ours is None and not _still_due(turn, case):
        return
    blocked = _blocked(turn, case)
    if case.link.ifindex not in turn.state.tc or (blocked and not case.fresh):
        return
    if not blocked:
        _ask_again(turn, case)
    planned = _plan(turn, case, case.tree_wanted)
    if planned.obstacle is None and not planned.actions:
        _seen(turn, case)
    elif blocked:
        return
    elif planned.obstacle is not None:
        obstruct(turn, case, Obstacle(*planned.obstacle))
    else:
        if case.tree_standing is not None and case.tree_standing == case.tree_wanted:
            turn.state.tally.drift_repairs[case.link.name] += 1
            turn.tell(EventKind.REPAIR, case.link.name, "drift", differences=list(planned.drift))
        _act(turn, case, planned.actions)


def _ask_again(turn: Turn, case: Case) -> None:
    """Once a retry, take the kernel to have what it lacked: a module may have been loaded since."""
    if case.obstacle is None or case.tree_wanted is None or not case.tree_wanted.refused:
        return
    if case.asked_again != case.backoff.attempts:
        case.asked_again = case.backoff.attempts
        turn.state.abilities = replace(turn.state.abilities, htb=True, u32=True)
        refresh(turn, case)


def _still_due(turn: Turn, case: Case) -> bool:
    """Take the first look at a link whose decision comes back.

    A limit that still stands is adopted, whatever policy applies now; one that is gone is put back only under the policy
    that it was made by.
    """
    actual, effective = turn.state.tc.get(case.link.ifindex), turn.state.effective[case.link.name]
    case.found_ours = actual is not None and actual.ours
    if not case.found_ours and case.order()[0].policy != effective.policy.name:
        lift(turn, case, ReleaseReason.POLICY)
        return False
    _move_along(turn, case, effective)
    return True


def _seen(turn: Turn, case: Case) -> None:
    """The kernel shows exactly what is wanted."""
    state, name = turn.state, case.link.name
    decision, tree = case.order()
    before = case.tree_standing
    no_lifeline = (
        None if state.abilities.u32 else f"{name}: the limit is in force without its lifeline; this kernel has no u32 filters"
    )
    turn.warn(name, "lifeline", FaultReason.MISSING_MODULE, no_lifeline)
    case.signal(Signal.SEEN)
    case.tree_standing = tree
    case.direct_packets, case.verified, case.bypassed_ns = state.tc[case.link.ifindex].direct_packets, False, None
    _clear(turn, case)
    detail: dict[str, object] = {"limit_bps": tree.rate_bps}
    if case.put_back:
        case.put_back = False
        turn.tell(EventKind.ADOPTED if case.found_ours else EventKind.RESTORED, name, decision.reason, **detail)
    elif before is None:
        state.tally.limits_applied[name] += 1
        if case.fired_t_ns is not None:
            detail["enforcement_ns"] = turn.now.boot_ns - case.fired_t_ns
        turn.tell(EventKind.LIMITED, name, decision.reason, **detail)
    elif before.rate_bps != tree.rate_bps:
        turn.tell(EventKind.RATE_CHANGED, name, decision.reason, before_bps=before.rate_bps, **detail)
    case.fired_t_ns = None


def _drive_standing(turn: Turn, case: Case) -> None:
    if case.link.ifindex not in turn.state.tc or (not case.fresh and case.tree_standing is case.tree_wanted):
        return
    planned = _plan(turn, case, case.tree_wanted)
    if planned.actions or planned.obstacle is not None:
        case.signal(Signal.LOST)
        undone = planned.obstacle is None and case.tree_standing == case.tree_wanted
        if undone and case.fight.repaired(turn.now.boot_ns):
            words = _fight_words(case, len(case.fight.repairs_ns), planned)
            turn.warn(case.link.name, "fight", FaultReason.FIGHT, words)
            obstruct(turn, case, Obstacle(FaultReason.FIGHT, words))
        _drive_due(turn, case)
        return
    if case.fight.over(turn.now.boot_ns):
        turn.warn(case.link.name, "fight", FaultReason.FIGHT, None)
    _watch_bypass(turn, case)
    cause = _demand_over(turn, case)
    if cause is not None:
        lift(turn, case, cause)


def _fight_words(case: Case, count: int, planned: Plan) -> str:
    what = "; ".join(planned.drift) or "its root was replaced"
    return f"{case.link.name}: the limit was undone {count} times within a minute ({what}); {REMEDY[FaultReason.FIGHT]}"


def _watch_bypass(turn: Turn, case: Case) -> None:
    """Traffic that HTB sends around its classes shows in direct_packets: a limit that does not limit is a fault.

    It is one until none was seen for a while: packets that come now and then are one fault, not many.
    """
    actual, now_ns = turn.state.tc[case.link.ifindex], turn.now.boot_ns
    before, case.direct_packets, case.verified = case.direct_packets, actual.direct_packets, True
    if before is not None and actual.direct_packets > before:
        case.bypassed_ns = now_ns
    if case.bypassed_ns is not None and now_ns < case.bypassed_ns + PEACE_NS:
        message = f"{case.link.name}: packets go around the limit's classes; look for sockets with SO_PRIORITY 0x1d1d0000"
        _fault(turn, case, Obstacle(FaultReason.OTHER, message))
    else:
        _clear(turn, case)


def _demand_over(turn: Turn, case: Case) -> ReleaseReason | None:
    decision, _ = case.order()
    rule = turn.state.effective[case.link.name].policy.release
    if decision.manual or rule.mode is not ReleaseMode.AUTO or case.quiet.lasted_ns() < rule.quiet_for_ns:
        return None
    hold_ns, reason = hold(rule, decision.strikes)
    return reason if turn.now.boot_ns >= case.since_boot_ns + hold_ns else None


def _drive_draining(turn: Turn, case: Case) -> None:
    actual = turn.state.tc.get(case.link.ifindex)
    if actual is None or not actual.ours or actual.tree is None:
        announce(turn, case)
        _drained(turn, case)
        return
    if not case.release_announced:
        if _blocked(turn, case):
            return
        planned = _plan(turn, case, raised(actual.tree))
        if planned.actions and all(a.kind is ActionKind.CHANGE_CLASS for a in planned.actions):
            _act(turn, case, planned.actions)
            return
        announce(turn, case)
        case.drain_until_ns = turn.now.boot_ns + turn.state.rules.config.enforcement.drain_ns
    if actual.queued_bytes == 0:
        _drained(turn, case)
    elif case.drain_until_ns is not None and turn.now.boot_ns >= case.drain_until_ns:
        turn.tell(EventKind.UNDRAINED, case.link.name, "", backlog_bytes=actual.queued_bytes)
        _drained(turn, case)


def announce(turn: Turn, case: Case) -> None:
    """The link runs free again: this is when a release takes effect."""
    if case.release_announced:
        return
    case.release_announced = True
    name, decision, reason = case.link.name, case.decision, case.release_reason or ReleaseReason.POLICY
    if decision is None:
        turn.tell(EventKind.LEFTOVER, name, reason)
        return
    turn.state.tally.limits_released[name, reason] += 1
    turn.tell(
        EventKind.RELEASED,
        name,
        reason,
        since_wall_ns=decision.since_wall_ns,
        effect_ns=turn.now.boot_ns - case.lifted_t_ns,
    )


def _drained(turn: Turn, case: Case) -> None:
    """The queue is empty: what hangs on the root goes first, once; the root itself follows when that was read back."""
    case.signal(Signal.DRAINED)
    steps = dismantling(case.link, turn.state.tc.get(case.link.ifindex))
    if steps:
        _act(turn, case, steps)
    else:
        _drive_removing(turn, case)


def _drive_removing(turn: Turn, case: Case) -> None:
    if _blocked(turn, case):
        return
    planned = _plan(turn, case, None)
    if planned.actions:
        _act(turn, case, planned.actions)
        return
    _clear(turn, case)
    case.signal(Signal.GONE)
    drop(turn, case)
    turn.state.detector.resume(case.link.name, EpochReason.RELEASED)


def drop(turn: Turn, case: Case) -> None:
    """Forget a case that is over."""
    turn.warn(case.link.name, "lifeline", FaultReason.MISSING_MODULE, None)
    turn.warn(case.link.name, "fight", FaultReason.FIGHT, None)
    turn.state.cases.pop(case.link.name, None)
    turn.state.saved.pop(key_of(case.link), None)
    turn.state.journal_dirty = True


_DRIVERS: Final[dict[Stage, Callable[[Turn, Case], None]]] = {
    Stage.DUE: _drive_due,
    Stage.STANDING: _drive_standing,
    Stage.DRAINING: _drive_draining,
    Stage.REMOVING: _drive_removing,
}
