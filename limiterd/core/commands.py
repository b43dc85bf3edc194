"""The operator's hand: limit, release, pause, resume.

Each command checks everything first, then changes the state's decisions; the kernel follows in the step that the caller
takes next. A refusal is a PeerError that says why and what would work; it changes nothing.
"""

from __future__ import annotations

from limiterd.core.enforcement import begin_release, impose, override_key, rate_wanted_bps, strikes_of
from limiterd.core.errors import EXIT_FAILED, EXIT_USAGE, PeerError
from limiterd.core.htb_tree import LOWEST_BPS
from limiterd.core.limit_state import HOLDING, LIFTABLE, LimitState
from limiterd.core.model import Decision, EventKind, Link, Now, PolicyMode, Reason, ReleaseReason
from limiterd.core.policy import Effective
from limiterd.core.state import Output, State, StepContext
from limiterd.core.units import format_rate

MIN_RATE_BPS = 2 * LOWEST_BPS
"""The least that a limit can be made of; a lower rate is a typing error."""


def where_to_look(interface: str) -> str:
    """What to do about a name that no link has."""
    name, at, _ = interface.partition("@")
    if at:
        return f"`ip link` writes {interface} for the link {name} and what it is bound to: say {name}"
    return "`limiterctl status` lists the watched ones"


def _watched(state: State, interface: str) -> tuple[Link, Effective]:
    link = state.by_name.get(interface)
    if link is None:
        raise PeerError(f"{interface}: there is no such link; {where_to_look(interface)}")
    effective = state.effective.get(interface)
    if effective is None:
        raise PeerError(f"{interface}: no policy matches it, so it is not watched; add it to a policy's interfaces")
    return link, effective


def _may_limit(state: State, interface: str, effective: Effective, *, force: bool) -> None:
    if effective.exempt and effective.override is not None:
        raise PeerError(f"{interface}: exempt by override {effective.override.id}; revoke it first")
    if effective.policy.mode is PolicyMode.OBSERVE and not force:
        raise PeerError(f"{interface}: policy {effective.policy.name} only observes; --force limits all the same")
    if state.paused and not force:
        raise PeerError(f"{interface}: new limits are paused; `limiterctl resume` ends that, --force limits all the same")


def _may_be(rate_bps: int, interface: str, effective: Effective) -> None:
    shown, threshold_bps, override = format_rate(rate_bps), effective.detect.threshold_bps, effective.override
    if rate_bps < MIN_RATE_BPS:
        least = format_rate(MIN_RATE_BPS)
        raise PeerError(f"{interface}: a limit of {shown} would cut it off; the least is {least}", exit_code=EXIT_USAGE)
    if rate_bps >= threshold_bps:
        top = format_rate(threshold_bps)
        raise PeerError(
            f"{interface}: the limit {shown} must be below the threshold {top}; choose a lower --rate", exit_code=EXIT_USAGE
        )
    if override is not None and override.limit_bps is not None:
        stands = format_rate(override.limit_bps)
        raise PeerError(f"{interface}: override {override.id} sets its limit to {stands}; revoke it, or leave the rate out")


def _strikes(context: StepContext, link: Link) -> int:
    """The strikes of the limit that is taken over, else those that are remembered."""
    limit_state = context.state.limit_states.get(link.name)
    if limit_state is not None and limit_state.decision is not None and limit_state.stage in HOLDING:
        return limit_state.decision.strikes
    return strikes_of(context, link)


def limit(state: State, now: Now, interface: str, *, rate_bps: int | None, reason: str, force: bool, by: str) -> Output:
    """Limit a link by hand, until a manual release or an override; on a limited link it takes the decision over."""
    link, effective = _watched(state, interface)
    _may_limit(state, interface, effective, force=force)
    if rate_bps is not None:
        _may_be(rate_bps, interface, effective)
    context = StepContext(state, now)
    decision = Decision(
        interface=interface,
        mac=link.mac,
        policy=effective.policy.name,
        reason=Reason.OPERATOR,
        since_wall_ns=now.wall_ns,
        strikes=_strikes(context, link),
        rate_bps=rate_bps,
        manual=True,
        forced=force and effective.policy.mode is PolicyMode.OBSERVE,
        note=reason,
        by=by,
        override=override_key(effective),
    )
    impose(context, link, decision)
    context.tell(EventKind.LIMIT, interface, Reason.OPERATOR, note=reason, by=by, limit_bps=rate_wanted_bps(decision, effective))
    return context.output()


def release(state: State, now: Now, interface: str, *, reason: str, by: str) -> Output:
    """Lift the limit of one link."""
    context = StepContext(state, now)
    limit_state = state.limit_states.get(interface)
    if limit_state is None or limit_state.stage not in LIFTABLE:
        absent_limits = [key for key in state.absent_limits if key[0] == interface]
        if not absent_limits:
            _watched(state, interface)
            raise PeerError(f"{interface} is not limited; nothing to release (`limiterctl status` shows what is)")
        for key in absent_limits:
            del state.absent_limits[key]
        state.journal_dirty = True
        _tell_absent(context, interface, reason, by)
        return context.output()
    _lift(context, [limit_state], reason, by)
    return context.output()


def release_all(state: State, now: Now, *, reason: str, by: str) -> Output:
    """Lift every limit, those of absent links too."""
    context = StepContext(state, now)
    context.tell(EventKind.RELEASING, "", ReleaseReason.OPERATOR, note=reason, by=by)
    for interface, _ in state.absent_limits:
        _tell_absent(context, interface, reason, by)
    state.journal_dirty |= bool(state.absent_limits)
    state.absent_limits.clear()
    _lift(context, [c for c in state.limit_states.values() if c.stage in LIFTABLE], reason, by)
    return context.output()


def _lift(context: StepContext, limit_states: list[LimitState], reason: str, by: str) -> None:
    for limit_state in limit_states:
        context.tell(EventKind.RELEASING, limit_state.link.name, ReleaseReason.OPERATOR, note=reason, by=by)
        begin_release(context, limit_state, ReleaseReason.OPERATOR)


def _tell_absent(context: StepContext, interface: str, reason: str, by: str) -> None:
    context.tell(EventKind.RELEASED, interface, ReleaseReason.OPERATOR, note=reason, by=by, absent=True)


def _set_paused(state: State, now: Now, reason: str, by: str, *, paused: bool) -> Output:
    if state.paused == paused:
        raise PeerError("limits are paused already" if paused else "limits are not paused", exit_code=EXIT_FAILED)
    state.paused = paused
    state.journal_dirty = True
    context = StepContext(state, now)
    context.tell(EventKind.PAUSED if paused else EventKind.RESUMED, "", "", note=reason, by=by)
    return context.output()


def pause(state: State, now: Now, *, reason: str, by: str) -> Output:
    """Stop every new limit; lift none. Detection goes on, firings yield would_limit."""
    return _set_paused(state, now, reason, by, paused=True)


def resume(state: State, now: Now, *, reason: str, by: str) -> Output:
    """End a pause. What fired meanwhile is not limited retroactively."""
    return _set_paused(state, now, reason, by, paused=False)
