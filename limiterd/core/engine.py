"""The heart: step(state, rules, inputs) -> Output. The daemon, the replay and the tests all call it.

One step takes what is new, in a fixed order: the kernel's answers, changed rules, the links that came and went, the
calendar of the overrides, the detector's verdicts on the snapshot, what was read of tc; then it drives every case one step
on. Verdicts come after the calendar: an override that begins or ends at a tick holds, or not, for that tick's sample.
What it returns is data: actions for the kernel, links to read next, events to tell. A caller carries the actions out,
reads, and steps again without a snapshot until nothing is left to do (see docs/architecture.md).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from limiterd.core.case import HOLDING, LEAVING, Stage
from limiterd.core.detector import Detector
from limiterd.core.errors import errno_name
from limiterd.core.faults import NOT_SENT, OPERATION_OF, REMEDY, Obstacle, obstacle_of
from limiterd.core.limits import (
    announce,
    drive,
    lift,
    lift_cause,
    obstruct,
    order,
    override_key,
    owed,
    reconsider,
    refresh,
    stray,
    strikes_of,
)
from limiterd.core.model import (
    DAY,
    HANDLE_ROOT,
    HOUR,
    ActionKind,
    ActionResult,
    Decision,
    EpochReason,
    EventKind,
    FaultReason,
    Firing,
    Journal,
    KernelAbilities,
    Leaf,
    Link,
    Now,
    PolicyMode,
    ReleaseReason,
    RootQdisc,
    Rules,
    Snapshot,
    TcActual,
)
from limiterd.core.policy import (
    Effective,
    OverrideState,
    effective,
    end_cause,
    host_matches,
    next_boundary_wall_ns,
    override_state,
)
from limiterd.core.responses import response
from limiterd.core.state import Inputs, Output, State, Turn, key_of

EXPIRY_NOTICES_NS: Final = (24 * HOUR, 1 * HOUR)
"""How long before its expiry an override is called to mind."""

SAMPLES_SHOWN: Final = 128
"""How many samples of its window a firing's event carries."""

GONE_FORGET_NS: Final = 1 * HOUR
GONE_LINKS_MAX: Final = 4096
AWAY_MAX: Final = 4096
"""Bounds on what is remembered of links that are not there."""


def start(rules: Rules, journal: Journal, abilities: KernelAbilities, now: Now) -> State:
    """A fresh state that remembers what the journal does. The links come with the first snapshot, tc with the first reading."""
    state = State(detector=Detector(rules.config.sampling), rules=rules, abilities=abilities, paused=journal.paused)
    state.away = {(d.interface, d.mac): d for d in journal.decisions}
    state.memories = {(m.interface, m.mac): m for m in journal.memories if now.wall_ns < m.forget_wall_ns}
    state.saved = {(s.interface, s.mac): s.root for s in journal.saved}
    state.stood = set(state.away) if journal.same_boot else set()
    _set_calendar(state, now)
    state.calendar_due_wall_ns = now.wall_ns
    return state


def step(state: State, rules: Rules, inputs: Inputs) -> Output:
    """One step; state is changed in place. Deterministic: the same state and arguments give the same output."""
    turn = Turn(state, inputs.now, ticking=inputs.tick or inputs.snapshot is not None, rooted=inputs.roots is not None)
    _take_results(turn, inputs.results)
    if rules is not state.rules:
        _take_rules(turn, rules)
    snapshot = inputs.snapshot
    if snapshot is not None and snapshot.links is not state.links:
        _take_links(turn, snapshot.links)
    _take_calendar(turn)
    if snapshot is not None:
        _take_verdicts(turn, snapshot)
    if inputs.roots is not None:
        _take_roots(turn, inputs.roots)
    for ifindex, actual in inputs.tc.items():
        _take_tc(turn, ifindex, actual)
    _take_silence(turn, inputs.unanswered)
    for case in tuple(state.cases.values()):
        drive(turn, case)
    return turn.output()


# ---- the kernel's answers ------------------------------------------------------------------------


def _take_results(turn: Turn, results: Iterable[ActionResult]) -> None:
    state = turn.state
    for result in results:
        if result.errno in (0, NOT_SENT):
            if result.errno == 0 and result.action.kind is ActionKind.RESTORE_ROOT:
                state.saved.pop(_key_at(state, result.action.ifindex), None)
            continue
        state.tally.kernel_errors[OPERATION_OF[result.action.kind], errno_name(result.errno)] += 1
        if _not_taken(result):
            state.journal_dirty |= state.saved.pop(_key_at(state, result.action.ifindex), None) is not None
        case = state.cases.get(result.action.interface)
        if case is None or result.errno == errno.ENODEV or _lost_ability(turn, result):
            continue
        obstruct(turn, case, obstacle_of(result))


def _not_taken(result: ActionResult) -> bool:
    """Whether a takeover ended before the foreign root was deleted: it stays its owner's, there is nothing to restore.

    Where the kernel gave no answer the root may be gone: what was saved is kept.
    """
    action = result.action
    if action.kind is ActionKind.SAVE_ROOT:
        return result.errno in (errno.EIO, errno.ESTALE)
    return action.kind is ActionKind.DELETE_ROOT and action.item != HANDLE_ROOT


def _key_at(state: State, ifindex: int) -> tuple[str, str]:
    link = state.by_index.get(ifindex)
    return key_of(link) if link is not None else ("", "")


def _lost_ability(turn: Turn, result: ActionResult) -> bool:
    """A kernel that turns out to lack a leaf or the filters: plan without them, at once, and say so."""
    if result.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
        return False
    state, action = turn.state, result.action
    able = state.abilities
    if action.kind is ActionKind.ADD_LEAF and isinstance(action.item, Leaf) and action.item.kind == "fq_codel" and able.fq_codel:
        state.abilities = replace(able, fq_codel=False)
    elif action.kind is ActionKind.ADD_FILTER and able.u32:
        state.abilities = replace(able, u32=False)
    else:
        return False
    for case in state.cases.values():
        refresh(turn, case)
    return True


def _take_silence(turn: Turn, unanswered: Iterable[int]) -> None:
    """Links of which the kernel gave no answer at all."""
    for ifindex in unanswered:
        link = turn.state.by_index.get(ifindex)
        case = turn.state.cases.get(link.name) if link is not None else None
        if case is not None and turn.now.boot_ns >= case.backoff.retry_at_ns:
            message = f"{case.link.name}: the kernel did not answer in time; {REMEDY[FaultReason.NO_ANSWER]}"
            obstruct(turn, case, Obstacle(FaultReason.NO_ANSWER, message))


def _take_roots(turn: Turn, roots: Mapping[int, RootQdisc]) -> None:
    """Every root qdisc at once: what is gone is forgotten, what is ours is read in full."""
    in_full = {case.link.ifindex for case in turn.state.cases.values()}
    for ifindex in roots.keys() | turn.state.tc.keys():
        actual = TcActual(ifindex, roots.get(ifindex), read_t_ns=turn.now.boot_ns)
        if actual.ours:
            in_full.add(ifindex)
        if ifindex not in in_full:
            _take_tc(turn, ifindex, actual)
    turn.reads |= in_full


def _take_tc(turn: Turn, ifindex: int, actual: TcActual) -> None:
    state = turn.state
    link = state.by_index.get(ifindex)
    if link is None:
        return
    before = state.tc.get(ifindex)
    state.tc[ifindex] = actual
    case = state.cases.get(link.name)
    _mind_foreign(turn, link, actual)
    if case is None:
        if actual.ours:
            stray(turn, link, actual)
            return
        owed(turn, link, actual)
        if actual.foreign_root is None:
            del state.tc[ifindex]
        return
    case.awaiting = False
    case.fresh = True
    case.read_t_ns = turn.now.boot_ns
    if (
        before is not None
        and before.root != actual.root
        and case.obstacle is not None
        and case.obstacle.reason is not FaultReason.FIGHT
    ):
        case.backoff.hurry()
    applies = state.effective.get(link.name)
    if case.stage is Stage.STANDING and case.tree_standing is not None and applies is not None:
        quiet_rate_ppm = applies.policy.release.quiet_rate_ppm
        case.quiet.read(actual.stats, turn.now.boot_ns, case.tree_standing.rate_bps, quiet_rate_ppm)


def _mind_foreign(turn: Turn, link: Link, actual: TcActual) -> None:
    """A foreign root where a limit may become due, and foreign objects inside our tree, are warnings before they hurt."""
    applies = turn.state.effective.get(link.name)
    root = actual.foreign_root
    enforcing = applies is not None and applies.policy.mode is PolicyMode.ENFORCE
    found = {}
    if root is not None and enforcing:
        found["root"] = f"{link.name}: foreign root qdisc {root.kind} {root.handle >> 16:x}: stands where a limit would go"
    if actual.foreign:
        found["inside"] = f"{link.name}: foreign objects inside the limit: {', '.join(actual.foreign)}; they go when it goes"
    for place in ("root", "inside"):
        turn.warn(link.name, place, FaultReason.FOREIGN_QDISC, found.get(place))


# ---- rules and the calendar ----------------------------------------------------------------------


def _take_rules(turn: Turn, rules: Rules) -> None:
    state = turn.state
    before, state.rules = state.rules, rules
    if rules.config.sampling != before.config.sampling:
        state.detector.set_sampling(rules.config.sampling)
    _reevaluate(turn)
    _skip_notices(turn, before)
    _set_calendar(state, turn.now)


def _skip_notices(turn: Turn, before: Rules) -> None:
    """Mark the notices as told that a new record would have had already: who has just approved an hour knows."""
    known = {(record.id, record.expires_wall_ns) for record in before.overrides}
    for record in turn.state.rules.overrides:
        if record.expires_wall_ns is not None and (record.id, record.expires_wall_ns) not in known:
            due = (record.expires_wall_ns - notice_ns for notice_ns in EXPIRY_NOTICES_NS)
            turn.state.expiry_told.update((record.id, d) for d in due if d <= turn.now.wall_ns)


def _take_calendar(turn: Turn) -> None:
    """Overrides begin and end by the wall clock, whatever way it steps."""
    state, wall_ns = turn.state, turn.now.wall_ns
    seen_ns, state.wall_seen_ns = state.wall_seen_ns, wall_ns
    stepped_back = wall_ns < seen_ns
    if not stepped_back and (state.calendar_due_wall_ns is None or wall_ns < state.calendar_due_wall_ns):
        return
    _reevaluate(turn)
    _tell_unused(turn, seen_ns)
    _remind(turn)
    for key in [k for k, m in state.memories.items() if wall_ns >= m.forget_wall_ns]:
        del state.memories[key]
        state.journal_dirty = True
    _set_calendar(state, turn.now)


def _set_calendar(state: State, now: Now) -> None:
    dates = [m.forget_wall_ns for m in state.memories.values()]
    boundary = next_boundary_wall_ns(state.rules, now.wall_ns)
    if boundary is not None:
        dates.append(boundary)
    for override in state.rules.overrides:
        if override.expires_wall_ns is not None:
            dates.extend(d for n in EXPIRY_NOTICES_NS if (d := override.expires_wall_ns - n) > now.wall_ns)
    state.calendar_due_wall_ns = min(dates, default=None)
    state.wall_seen_ns = now.wall_ns


def _tell_unused(turn: Turn, seen_wall_ns: int) -> None:
    """Records that expired since, and that applied to no link at their end: their end is told as well."""
    state = turn.state
    told = {event.reason for event in turn.events if event.kind is EventKind.OVERRIDE_ENDED}
    for record in state.rules.overrides:
        end_ns = record.expires_wall_ns
        over = end_ns is not None and seen_wall_ns < end_ns <= turn.now.wall_ns
        if over and record.id not in told and host_matches(record.hosts, state.rules.host):
            turn.tell(EventKind.OVERRIDE_ENDED, "", record.id, cause="expired")


def _remind(turn: Turn) -> None:
    state, wall_ns = turn.state, turn.now.wall_ns
    for override in state.rules.overrides:
        if override.expires_wall_ns is None or override_state(override, state.rules.host, wall_ns) != OverrideState.ACTIVE:
            continue
        left_ns = override.expires_wall_ns - wall_ns
        keys = {(override.id, override.expires_wall_ns - notice_ns) for notice_ns in EXPIRY_NOTICES_NS if left_ns <= notice_ns}
        if not keys <= state.expiry_told:
            state.expiry_told |= keys
            turn.tell(EventKind.OVERRIDE_EXPIRING, "", override.id, left_s=left_ns // 10**9, interfaces=list(override.interfaces))
    state.expiry_told = {k for k in state.expiry_told if k[1] > wall_ns - DAY}


def _reevaluate(turn: Turn) -> None:
    """Which policy and override apply to every link now; only what changed is touched."""
    state = turn.state
    for link in state.links:
        before = state.effective.get(link.name)
        now_applies = effective(state.rules, link.name, turn.now.wall_ns)
        if now_applies == before:
            continue
        _apply(turn, link, before, now_applies)
        _tell_override(turn, link, before, now_applies)
        case = state.cases.get(link.name)
        if case is not None:
            reconsider(turn, case)
    _lift_absent(turn)


def _lift_absent(turn: Turn) -> None:
    """An override lifts the limit of a link that is away as well: it may have ended when the link returns."""
    state = turn.state
    for key, decision in tuple(state.away.items()):
        applies = effective(state.rules, key[0], turn.now.wall_ns)
        if lift_cause(decision, applies) is ReleaseReason.OVERRIDE:
            del state.away[key]
            state.memories.pop(key, None)
            state.journal_dirty = True
            turn.tell(EventKind.RELEASED, key[0], ReleaseReason.OVERRIDE, absent=True)


def _apply(turn: Turn, link: Link, before: Effective | None, after: Effective | None) -> None:
    """Give a link its policy: the detector's parameters, and the end of remembered strikes under an override."""
    state, name = turn.state, link.name
    if after is None:
        state.effective.pop(name, None)
        state.detector.forget(name)
        return
    state.effective[name] = after
    state.detector.watch(name, after.detect)
    if any(one is not None and (one.exempt or override_key(one)) for one in (before, after)):
        state.journal_dirty |= state.memories.pop(key_of(link), None) is not None
    if before is not None and name not in state.cases and _starts_afresh(before, after):
        state.detector.resume(name, EpochReason.RELOAD)


def _starts_afresh(before: Effective, after: Effective) -> bool:
    """Whether detection starts afresh: other rules, or an override that ended, so that nothing is limited retroactively."""
    old, new = before.override, after.override
    ended = old is not None and (new is None or new.id != old.id)
    return ended or _epoch_fields(before) != _epoch_fields(after)


def _epoch_fields(applies: Effective) -> tuple[object, ...]:
    """What starts detection afresh when it changes, beside the detector's own parameters."""
    return (applies.policy.name, applies.exempt, override_key(applies))


def _tell_override(turn: Turn, link: Link, before: Effective | None, after: Effective | None) -> None:
    old = before.override if before is not None else None
    new = after.override if after is not None else None
    if old == new:
        return
    if old is not None:
        cause = end_cause(turn.state.rules, old, new, turn.now.wall_ns)
        turn.tell(EventKind.OVERRIDE_ENDED, link.name, old.id, cause=cause, by_override="" if new is None else new.id)
    if new is not None:
        turn.tell(EventKind.OVERRIDE_ACTIVE, link.name, new.id, action=str(new.action), approved_by=new.approved_by)


# ---- snapshots: links and verdicts ---------------------------------------------------------------


def _take_verdicts(turn: Turn, snapshot: Snapshot) -> None:
    state = turn.state
    outcome = state.detector.update(snapshot)
    state.tally.dropped_samples += outcome.dropped
    for link, reason in outcome.epochs:
        state.tally.epochs[reason] += 1
        turn.tell(EventKind.EPOCH, link.name, reason)
    for link, firing in outcome.firings:
        _respond(turn, link, firing)
    for link, firing in outcome.noted:
        _note(turn, link, firing)


def _same_instance(one: Link, other: Link) -> bool:
    return one.ifindex == other.ifindex and one.incarnation == other.incarnation


def _take_links(turn: Turn, links: tuple[Link, ...]) -> None:
    """Links came, went, were renamed or changed their properties."""
    state = turn.state
    before, state.links = state.by_name, links
    state.by_name = {link.name: link for link in links}
    state.by_index = {link.ifindex: link for link in links}
    _carry(state, before)
    for link in before.values():
        after = state.by_name.get(link.name)
        if after is not None and _same_instance(link, after):
            _update(turn, after)
        else:
            _leave(turn, link)
    for link in links:
        known = before.get(link.name)
        if known is None or not _same_instance(known, link):
            _arrive(turn, link)
    _forget_gone(turn)


def _update(turn: Turn, link: Link) -> None:
    state = turn.state
    case = state.cases.get(link.name)
    if case is None:
        _put_back(turn, link)  # a link that is made anew may get its MAC after its name
    elif case.link != link:
        case.link = link
        if case.decision is not None and case.decision.mac != link.mac:
            case.decision = replace(case.decision, mac=link.mac)
            state.journal_dirty = True
        refresh(turn, case)


def _carry(state: State, before: Mapping[str, Link]) -> None:
    """A root that was taken over and the strikes belong to the link, whatever its name and MAC become.

    All links at once: names may be swapped, and the members of a bond have one MAC.
    """
    saved, memories = {}, {}
    for link in before.values():
        after, old = state.by_index.get(link.ifindex), key_of(link)
        alive = after is not None and _same_instance(after, link)
        new = key_of(after) if after is not None and alive else None
        if new == old:
            continue
        root = state.saved.pop(old, None)
        memory = state.memories.pop(old, None) if alive else None
        state.journal_dirty |= root is not None or memory is not None
        if new is not None and root is not None:
            saved[new] = root
        if new is not None and memory is not None:
            memories[new] = replace(memory, interface=new[0], mac=new[1])
    state.saved |= saved
    state.memories |= memories


def _leave(turn: Turn, link: Link) -> None:
    """A link went. A decision on it waits for its return; a release under way is over."""
    state = turn.state
    state.gone_since_ns[link.name] = turn.now.boot_ns
    renamed = state.by_index.get(link.ifindex)
    moved = renamed is not None and _same_instance(renamed, link)
    if not moved:
        state.tc.pop(link.ifindex, None)
    state.effective.pop(link.name, None)
    for key in [k for k in state.warnings if k[0] == link.name]:
        del state.warnings[key]
    case = state.cases.pop(link.name, None)
    if case is None:
        return
    state.journal_dirty = True
    if case.stage in LEAVING:
        announce(turn, case)
    if case.decision is not None and case.stage in HOLDING:
        name = renamed.name if renamed is not None and moved else link.name
        state.away[name, link.mac] = replace(case.decision, interface=name)
        while len(state.away) > AWAY_MAX:
            del state.away[next(iter(state.away))]
        turn.tell(EventKind.LINK_GONE, link.name, case.decision.reason, renamed_to=name if moved else None)


def _arrive(turn: Turn, link: Link) -> None:
    """A link came: its policy, and a decision that waited for it."""
    state = turn.state
    state.gone_since_ns.pop(link.name, None)
    applies = effective(state.rules, link.name, turn.now.wall_ns)
    if applies is not None:
        _apply(turn, link, None, applies)
        _tell_override(turn, link, None, applies)
    else:
        state.detector.forget(link.name)  # a policy may have watched an earlier link of this name
    _put_back(turn, link)
    if not turn.rooted:
        turn.reads.add(link.ifindex)


def _put_back(turn: Turn, link: Link) -> None:
    """Take up the decision that waits for a link of this name and MAC, if there is one."""
    decision = turn.state.away.pop(key_of(link), None)
    if decision is not None:
        turn.tell(EventKind.LINK_BACK, link.name, decision.reason)
        case = order(turn, link, decision, put_back=True)
        case.stood = key_of(link) in turn.state.stood
        turn.state.stood.discard(key_of(link))
        reconsider(turn, case)


def _forget_gone(turn: Turn) -> None:
    gone = turn.state.gone_since_ns
    horizon_ns = turn.now.boot_ns - GONE_FORGET_NS
    while gone and (len(gone) > GONE_LINKS_MAX or next(iter(gone.values())) < horizon_ns):
        name = next(iter(gone))
        del gone[name]
        turn.state.detector.forget(name)
        turn.state.firings.pop(name, None)
        turn.state.tally.forget(name)


def _respond(turn: Turn, link: Link, firing: Firing) -> None:
    """One firing, one event; in an enforcing policy a strike and a limit."""
    state, applies = turn.state, turn.state.effective[link.name]
    state.tally.detections[link.name, firing.reason] += 1
    state.firings[link.name] = firing
    kind = response(applies.policy.mode, exempt=applies.exempt, paused=state.paused)
    strikes = strikes_of(turn, link)
    if kind is EventKind.LIMIT:
        strikes += 1
        decision = Decision(
            interface=link.name,
            mac=link.mac,
            policy=applies.policy.name,
            reason=firing.reason,
            since_wall_ns=turn.now.wall_ns,
            strikes=strikes,
            override=override_key(applies),
        )
        order(turn, link, decision, fired_t_ns=firing.t_ns)
    turn.tell(kind, link.name, firing.reason, strikes=strikes, paused=state.paused, **figures(firing, applies))


def _note(turn: Turn, link: Link, firing: Firing) -> None:
    turn.state.tally.detections[link.name, firing.reason] += 1
    turn.state.firings[link.name] = firing
    turn.tell(EventKind.NOTED, link.name, firing.reason, **figures(firing, turn.state.effective[link.name]))


def figures(firing: Firing, applies: Effective) -> dict[str, object]:
    """A firing's figures as the event carries them: JSON-able, rates in bit/s, times in ns."""
    return {
        "mean_bps": firing.mean_bps,
        "peak_bps": firing.peak_bps,
        "threshold_bps": firing.threshold_bps,
        "window_ns": applies.detect.window_ns,
        "span_ns": firing.b_t_ns - firing.a_t_ns,
        "samples": [list(sample) for sample in thinned(firing.samples)],
        "first_flank_bps": firing.first_flank_bps,
        "last_flank_bps": firing.last_flank_bps,
        "lowest_slice_bps": firing.lowest_slice_bps,
        "excess_bits": firing.excess_bits,
        "limit_bps": applies.limit.rate_bps,
        "override": applies.override.id if applies.override is not None else "",
    }


def thinned(samples: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """At most about SAMPLES_SHOWN of them, evenly chosen, the first and the last among them."""
    stride = -(-len(samples) // SAMPLES_SHOWN) or 1
    return (*samples[:-1:stride], *samples[-1:])


def release_for_exit(state: State, now: Now) -> Output:
    """Lift every limit, those of absent links too, because the daemon ends (on_exit: remove)."""
    turn = Turn(state, now)
    state.journal_dirty |= bool(state.away)
    state.away.clear()
    for case in state.cases.values():
        if case.stage in HOLDING:
            lift(turn, case, ReleaseReason.EXIT)
    return turn.output()
