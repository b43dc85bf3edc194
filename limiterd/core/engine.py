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

from limiterd.core.adoption import orphan_tree, restore_pending
from limiterd.core.detector import Detector
from limiterd.core.enforcement import (
    advance,
    begin_release,
    fail,
    impose,
    mind_foreign,
    override_key,
    refresh,
    strikes_of,
)
from limiterd.core.errors import errno_name
from limiterd.core.faults import OPERATION_OF, REMEDY, Blocker, obstacle_of
from limiterd.core.firing_policy import response
from limiterd.core.limit_state import HOLDING, Stage
from limiterd.core.link_changes import take_links, take_look
from limiterd.core.model import (
    HANDLE_ROOT,
    NOT_SENT,
    ActionKind,
    ActionResult,
    Decision,
    EventKind,
    FaultReason,
    Firing,
    Journal,
    KernelAbilities,
    Leaf,
    Link,
    Now,
    ReleaseReason,
    RootQdisc,
    Rules,
    Snapshot,
    TcActual,
)
from limiterd.core.policy import Effective
from limiterd.core.schedule import mind_refresh, set_schedule, take_rules, take_schedule
from limiterd.core.state import Inputs, Output, State, StepContext, key_of

SAMPLES_SHOWN: Final = 128
"""How many samples of its window a firing's event carries."""


def start(rules: Rules, journal: Journal, abilities: KernelAbilities, now: Now) -> State:
    """A fresh state that remembers what the journal does. The links come with the first snapshot, tc with the first reading."""
    state = State(detector=Detector(rules.config.sampling), rules=rules, abilities=abilities, paused=journal.paused)
    state.absent_limits = {(d.interface, d.mac): d for d in journal.decisions}
    state.strike_records = {(m.interface, m.mac): m for m in journal.strike_records if now.wall_ns < m.forget_wall_ns}
    state.replaced = {(s.interface, s.mac): s.root for s in journal.replaced}
    state.releases = {(r.interface, r.mac): r for r in journal.releases}
    state.journalled = set(state.absent_limits)
    state.stood = {key for key, d in state.absent_limits.items() if d.stood and journal.same_boot}
    set_schedule(state, now)
    state.calendar_due_wall_ns = now.wall_ns
    return state


def step(state: State, rules: Rules, inputs: Inputs) -> Output:
    """One step; state is changed in place. Deterministic: the same state and arguments give the same output."""
    context = StepContext(state, inputs.now, ticking=inputs.tick or inputs.snapshot is not None, rooted=inputs.roots is not None)
    if inputs.results:
        _take_results(context, inputs.results)
    if rules is not state.rules:
        take_rules(context, rules)
    snapshot = inputs.snapshot
    if snapshot is not None:
        links = snapshot.links if inputs.links is None else inputs.links
        if links is not state.links:
            take_links(context, links)
    take_schedule(context)
    if snapshot is not None:
        _take_verdicts(context, snapshot)
    _take_readings(context, inputs)
    for limit_state in tuple(state.limit_states.values()):
        advance(context, limit_state)
    return context.output()


# ---- the kernel's answers ------------------------------------------------------------------------


def _take_results(context: StepContext, results: Iterable[ActionResult]) -> None:
    state = context.state
    for result in results:
        if result.errno in (0, NOT_SENT):
            if result.errno == 0 and result.action.kind is ActionKind.RESTORE_ROOT:
                state.replaced.pop(_key_at(state, result.action.ifindex), None)
            continue
        state.counters.kernel_errors[OPERATION_OF[result.action.kind], errno_name(result.errno)] += 1
        if _not_taken(result):
            state.journal_dirty |= state.replaced.pop(_key_at(state, result.action.ifindex), None) is not None
        limit_state = state.limit_states.get(result.action.interface)
        if limit_state is None or result.errno == errno.ENODEV or _lost_ability(context, result):
            continue
        fail(context, limit_state, obstacle_of(result))


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


def _take_readings(context: StepContext, inputs: Inputs) -> None:
    """What was read of the kernel: the links themselves ahead of what stands on them."""
    if inputs.roots is not None:
        _take_roots(context, inputs.roots)
    for link in inputs.looked.values():
        take_look(context, link)
    for ifindex, actual in inputs.tc.items():
        _take_tc(context, ifindex, actual)
    if inputs.unanswered:
        _take_silence(context, inputs.unanswered)


def _lost_ability(context: StepContext, result: ActionResult) -> bool:
    """A kernel that turns out to lack a leaf or the filters: plan without them, at once, and say so."""
    if result.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
        return False
    state, action = context.state, result.action
    able = state.abilities
    if action.kind is ActionKind.ADD_LEAF and isinstance(action.item, Leaf) and action.item.kind == "fq_codel" and able.fq_codel:
        state.abilities = replace(able, fq_codel=False)
    elif action.kind is ActionKind.ADD_FILTER and able.u32:
        state.abilities = replace(able, u32=False)
    else:
        return False
    for limit_state in state.limit_states.values():
        refresh(context, limit_state)
    return True


def _take_silence(context: StepContext, unanswered: Iterable[int]) -> None:
    """Links of which the kernel gave no answer at all."""
    for ifindex in unanswered:
        link = context.state.by_index.get(ifindex)
        limit_state = context.state.limit_states.get(link.name) if link is not None else None
        if limit_state is None:
            continue
        limit_state.awaiting = True
        if context.now.boot_ns >= limit_state.backoff.retry_at_ns:
            message = f"{limit_state.link.name}: the kernel did not answer in time; {REMEDY[FaultReason.NO_ANSWER]}"
            fail(context, limit_state, Blocker(FaultReason.NO_ANSWER, message))


def _take_roots(context: StepContext, roots: Mapping[int, RootQdisc]) -> None:
    """Every root qdisc at once: what is gone is forgotten, what is ours is read in full."""
    in_full = {limit_state.link.ifindex for limit_state in context.state.limit_states.values()}
    for ifindex in roots.keys() | context.state.tc.keys():
        actual = TcActual(ifindex, roots.get(ifindex), read_t_ns=context.now.boot_ns)
        if actual.ours:
            in_full.add(ifindex)
        if ifindex not in in_full:
            _take_tc(context, ifindex, actual)
    context.reads |= in_full


def _take_tc(context: StepContext, ifindex: int, actual: TcActual) -> None:
    state = context.state
    link = state.by_index.get(ifindex)
    if link is None:
        return
    before = state.tc.get(ifindex)
    state.tc[ifindex] = actual
    limit_state = state.limit_states.get(link.name)
    mind_foreign(context, link)
    if limit_state is None:
        if actual.ours:
            orphan_tree(context, link, actual)
            return
        restore_pending(context, link, actual)
        if actual.foreign_root is None:
            del state.tc[ifindex]
        return
    limit_state.awaiting = False
    limit_state.fresh = True
    limit_state.read_t_ns = context.now.boot_ns
    if (
        before is not None
        and before.root != actual.root
        and limit_state.blocker is not None
        and limit_state.blocker.reason is not FaultReason.FIGHT
    ):
        limit_state.backoff.hurry()
    applies = state.effective.get(link.name)
    if limit_state.stage is Stage.STANDING and limit_state.tree_standing is not None and applies is not None:
        quiet_rate_ppm = applies.policy.release.quiet_rate_ppm
        limit_state.quiet.read(actual.stats, context.now.boot_ns, limit_state.tree_standing.rate_bps, quiet_rate_ppm)


# ---- verdicts ------------------------------------------------------------------------------------


def _take_verdicts(context: StepContext, snapshot: Snapshot) -> None:
    state = context.state
    outcome = state.detector.update(snapshot)
    state.counters.dropped_samples += outcome.dropped
    for link, reason in outcome.epochs:
        state.counters.epochs[reason] += 1
        context.tell(EventKind.EPOCH, link.name, reason)
    for link in outcome.paces:
        mind_refresh(context, link)
    for link, firing in outcome.firings:
        _respond(context, link, firing)
    for link, firing in outcome.noted:
        _note(context, link, firing)


def _respond(context: StepContext, link: Link, firing: Firing) -> None:
    """One firing, one event; in an enforcing policy a strike and a limit."""
    state, applies = context.state, context.state.effective[link.name]
    state.counters.detections[link.name, firing.reason] += 1
    state.firings[link.name] = firing
    kind = response(applies.policy.mode, exempt=applies.exempt, paused=state.paused)
    strikes = strikes_of(context, link)
    if kind is EventKind.LIMIT:
        strikes += 1
        decision = Decision(
            interface=link.name,
            mac=link.mac,
            policy=applies.policy.name,
            reason=firing.reason,
            since_wall_ns=context.now.wall_ns,
            strikes=strikes,
            override=override_key(applies),
        )
        impose(context, link, decision, fired_t_ns=firing.t_ns)
    context.tell(kind, link.name, firing.reason, strikes=strikes, paused=state.paused, **figures(firing, applies))


def _note(context: StepContext, link: Link, firing: Firing) -> None:
    context.state.counters.detections[link.name, firing.reason] += 1
    context.state.firings[link.name] = firing
    context.tell(EventKind.NOTED, link.name, firing.reason, **figures(firing, context.state.effective[link.name]))


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
    context = StepContext(state, now)
    state.journal_dirty |= bool(state.absent_limits)
    state.absent_limits.clear()
    for limit_state in state.limit_states.values():
        if limit_state.stage in HOLDING:
            begin_release(context, limit_state, ReleaseReason.EXIT)
    return context.output()
