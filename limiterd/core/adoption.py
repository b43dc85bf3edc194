"""What is found on a link: a limit to adopt, a release to finish, a rest to clear away, or a tree to leave alone.

A limit that stands whole is adopted where a policy enforces; one that is half made or half lifted goes. Under a policy that
only observes whatever stands is named and left alone. A release that was decided goes on, whatever the policy.
"""

from __future__ import annotations

from limiterd.core.enforcement import begin_release, impose, leave, reconsider, strikes_of
from limiterd.core.htb_tree import is_whole
from limiterd.core.limit_state import LimitState, Signal
from limiterd.core.model import Decision, Link, PendingRelease, PolicyMode, Reason, ReleaseReason, TcActual
from limiterd.core.policy import Effective
from limiterd.core.state import StepContext, key_of


def only_observes(effective: Effective | None) -> bool:
    """Whether the policy imposes and repairs nothing by itself, and no override lifts what stands."""
    return effective is not None and effective.policy.mode is PolicyMode.OBSERVE and not effective.exempt


def orphan_tree(context: StepContext, link: Link, actual: TcActual) -> None:
    """Our root on a link that no decision is known of: adopt a whole limit, clear away a half-made or half-lifted one.

    Under a policy that only observes it is left alone.
    """
    effective = context.state.effective.get(link.name)
    whole = is_whole(actual.tree)
    decision = Decision(
        interface=link.name,
        mac=link.mac,
        policy="" if effective is None else effective.policy.name,
        reason=Reason.ADOPTED,
        since_wall_ns=context.now.wall_ns,
        strikes=max(1, strikes_of(context, link)),
        stood=whole,
    )
    if only_observes(effective):
        leave_alone(context, link, decision if whole else None)
    elif effective is None or effective.policy.mode is PolicyMode.OBSERVE or not (whole and _below(effective, actual)):
        limit_state = context.state.limit_states.setdefault(link.name, LimitState(link))
        limit_state.found_bps = actual.tree.rate_bps if whole and actual.tree is not None else None
        exempt = effective is not None and effective.exempt
        begin_release(context, limit_state, ReleaseReason.OVERRIDE if exempt else ReleaseReason.POLICY)
    else:
        reconsider(context, impose(context, link, decision, put_back=True))


def leave_alone(context: StepContext, link: Link, decision: Decision | None) -> None:
    """Whatever stands on the link stays as it is, and is named; decision None: it is no whole limit."""
    limit_state = context.state.limit_states.setdefault(link.name, LimitState(link))
    limit_state.signal(Signal.FOUND)
    limit_state.decision = decision
    context.state.detector.rest(link.name)
    context.state.journal_dirty = True


def reconsider_left(context: StepContext, limit_state: LimitState) -> None:
    """What was left alone is taken up as if it were found now, when its policy no longer only observes."""
    effective = context.state.effective.get(limit_state.link.name)
    if only_observes(effective):
        return
    link, decision, actual = limit_state.link, limit_state.decision, context.state.tc.get(limit_state.link.ifindex)
    if decision is not None and effective is not None and effective.policy.mode is PolicyMode.ENFORCE:
        reconsider(context, impose(context, link, decision, put_back=True))
    elif actual is not None:
        orphan_tree(context, link, actual)


def _below(effective: Effective, actual: TcActual) -> bool:
    """Whether a whole tree limits: a raised one is on its way out, whatever its shape."""
    return actual.tree is not None and actual.tree.rate_bps < effective.policy.detect.threshold_bps


def resume_release(context: StepContext, link: Link, release: PendingRelease) -> None:
    """Go on with a release that an earlier run, or the link's earlier name, did not finish."""
    limit_state = context.state.limit_states.setdefault(link.name, LimitState(link))
    limit_state.decision = release.decision
    leave(context, limit_state, release.reason)
    limit_state.release_announced = release.announced
    if release.announced:
        limit_state.drain_until_ns = context.now.boot_ns + context.state.rules.config.enforcement.drain_ns


def restore_pending(context: StepContext, link: Link, actual: TcActual) -> None:
    """A saved root without a limit: an earlier run ended between our root's end and the restore, or just after it."""
    state, key = context.state, key_of(link)
    if key not in state.replaced:
        return
    if actual.foreign_root is None:
        begin_release(context, state.limit_states.setdefault(link.name, LimitState(link)), ReleaseReason.POLICY)
    else:
        del state.replaced[key]
        state.journal_dirty = True
