"""Links that come, go, are renamed or made anew: what was decided and remembered moves along with them.

A link is its ifindex and incarnation; over an absence it is its name and MAC. A decision on a link that went waits for the
return of the same name and MAC; what is remembered of links that are not there is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from limiterd.core.adoption import leave_alone, only_observes, resume_release
from limiterd.core.enforcement import announce, impose, reconsider, refresh
from limiterd.core.limit_state import HOLDING, LEAVING
from limiterd.core.model import HOUR, EventKind, Link
from limiterd.core.policy import effective
from limiterd.core.schedule import put_under, reevaluate, tell_override
from limiterd.core.state import State, StepContext, key_of, pending_release

GONE_FORGET_NS: Final = 1 * HOUR
GONE_LINKS_MAX: Final = 4096
AWAY_MAX: Final = 4096
"""Bounds on what is remembered of links that are not there."""


def _same_instance(one: Link, other: Link) -> bool:
    return one.ifindex == other.ifindex and one.incarnation == other.incarnation


def take_links(context: StepContext, links: tuple[Link, ...]) -> None:
    """Links came, went, were renamed or changed their properties."""
    state = context.state
    before, state.links = state.by_name, links
    state.by_name = {link.name: link for link in links}
    state.by_index = {link.ifindex: link for link in links}
    state.canonical = {alias: link.name for link in links for alias in link.altnames}
    _carry(state, before)
    for link in before.values():
        after = state.by_name.get(link.name)
        if after is not None and _same_instance(link, after):
            if after.altnames != link.altnames:
                reevaluate(context, after)
            _update(context, after)
        else:
            _leave(context, link)
    for link in links:
        known = before.get(link.name)
        if known is None or not _same_instance(known, link):
            _arrive(context, link)
    _forget_gone(context)


def take_look(context: StepContext, link: Link) -> None:
    """A link was read anew: what no event tells of it may have changed."""
    state = context.state
    known = state.by_index.get(link.ifindex)
    if known is None or known == link or known.name != link.name or not _same_instance(known, link):
        return  # it will be told in its turn
    state.by_index[link.ifindex] = state.by_name[link.name] = link
    _update(context, link)


def _update(context: StepContext, link: Link) -> None:
    state = context.state
    limit_state = state.limit_states.get(link.name)
    if limit_state is None:
        _put_back(context, link)  # a link that is made anew may get its MAC after its name
    elif limit_state.link != link:
        limit_state.link = link
        if limit_state.decision is not None and limit_state.decision.mac != link.mac:
            waiting = state.absent_limits.pop(
                key_of(link), None
            )  # where it has the MAC again that a decision waits for, that one
            limit_state.decision = waiting or replace(limit_state.decision, mac=link.mac)
            state.journal_dirty = True
        refresh(context, limit_state)


def _carry(state: State, before: Mapping[str, Link]) -> None:
    """A root that was taken over and the strikes belong to the link, whatever its name and MAC become.

    All links at once: names may be swapped, and the members of a bond have one MAC.
    """
    replaced, strike_records = {}, {}
    for link in before.values():
        after, old = state.by_index.get(link.ifindex), key_of(link)
        alive = after is not None and _same_instance(after, link)
        new = key_of(after) if after is not None and alive else None
        if new == old:
            continue
        root = state.replaced.pop(old, None)
        strike_record = state.strike_records.pop(old, None) if alive else None
        state.journal_dirty |= root is not None or strike_record is not None
        if new is not None and root is not None:
            replaced[new] = root
        if new is not None and strike_record is not None:
            strike_records[new] = replace(strike_record, interface=new[0], mac=new[1])
    state.replaced |= replaced
    state.strike_records |= strike_records


def _leave(context: StepContext, link: Link) -> None:
    """A link went. A decision on it waits for its return; a release under way is over."""
    state = context.state
    state.gone_since_ns[link.name] = context.now.boot_ns
    renamed = state.by_index.get(link.ifindex)
    moved = renamed is not None and _same_instance(renamed, link)
    if not moved:
        state.tc.pop(link.ifindex, None)
    state.effective.pop(link.name, None)
    for key in [k for k in state.warnings if k[0] == link.name]:
        del state.warnings[key]
    limit_state = state.limit_states.pop(link.name, None)
    if limit_state is None:
        return
    state.detector.forget(link.name)  # it rested for this limit; the next link of the name is judged from its first sample
    state.journal_dirty = True
    home = renamed if renamed is not None and moved else link
    if limit_state.stage in LEAVING and moved:
        state.releases[key_of(home)] = replace(pending_release(limit_state), interface=home.name, mac=home.mac)
    elif limit_state.stage in LEAVING:
        announce(context, limit_state)
    if limit_state.decision is not None and limit_state.stage in HOLDING:
        state.absent_limits[key_of(home)] = replace(limit_state.decision, interface=home.name, mac=home.mac)
        while len(state.absent_limits) > AWAY_MAX:
            del state.absent_limits[next(iter(state.absent_limits))]
        context.tell(EventKind.LINK_GONE, link.name, limit_state.decision.reason, renamed_to=home.name if moved else None)


def _arrive(context: StepContext, link: Link) -> None:
    """A link came: its policy, and a decision that waited for it."""
    state = context.state
    state.gone_since_ns.pop(link.name, None)
    applies = effective(state.rules, link.name, context.now.wall_ns, link.altnames)
    if applies is not None:
        put_under(context, link, None, applies)
        tell_override(context, link, None, applies)
    else:
        state.detector.forget(link.name)  # a policy may have watched an earlier link of this name
    _put_back(context, link)
    if not context.rooted:
        context.reads.add(link.ifindex)


def _put_back(context: StepContext, link: Link) -> None:
    """Take up what waits for a link of this name and MAC: a release that was not finished, or a decision."""
    state, key = context.state, key_of(link)
    release = state.releases.pop(key, None)
    if release is not None:
        resume_release(context, link, release)
        return
    decision = state.absent_limits.pop(key, None)
    if decision is None:
        return
    journalled, stood = key in state.journalled, key in state.stood
    state.journalled.discard(key)
    state.stood.discard(key)
    if journalled and not decision.forced and only_observes(state.effective.get(link.name)):
        leave_alone(context, link, decision)
        return
    context.tell(EventKind.LINK_BACK, link.name, decision.reason)
    limit_state = impose(context, link, decision, put_back=True)
    limit_state.stood = stood
    reconsider(context, limit_state)


def _forget_gone(context: StepContext) -> None:
    gone = context.state.gone_since_ns
    horizon_ns = context.now.boot_ns - GONE_FORGET_NS
    while gone and (len(gone) > GONE_LINKS_MAX or next(iter(gone.values())) < horizon_ns):
        name = next(iter(gone))
        del gone[name]
        context.state.detector.forget(name)
        context.state.firings.pop(name, None)
        context.state.counters.forget(name)
