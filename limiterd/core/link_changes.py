"""Links that come, go, are renamed or made anew: what was decided and remembered moves along with them.

A link is its ifindex and incarnation; over an absence it is its name and MAC. A decision on a link that went waits for the
return of the same name and MAC; what is remembered of links that are not there is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from limiterd.core.enforcement import announce, order, reconsider, refresh
from limiterd.core.limit_state import HOLDING, LEAVING
from limiterd.core.model import HOUR, EventKind, Link
from limiterd.core.policy import effective
from limiterd.core.schedule import put_under, tell_override
from limiterd.core.state import State, Turn, key_of

GONE_FORGET_NS: Final = 1 * HOUR
GONE_LINKS_MAX: Final = 4096
AWAY_MAX: Final = 4096
"""Bounds on what is remembered of links that are not there."""


def _same_instance(one: Link, other: Link) -> bool:
    return one.ifindex == other.ifindex and one.incarnation == other.incarnation


def take_links(turn: Turn, links: tuple[Link, ...]) -> None:
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
            waiting = state.away.pop(key_of(link), None)  # where it has the MAC again that a decision waits for, that one
            case.decision = waiting or replace(case.decision, mac=link.mac)
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
    state.detector.forget(link.name)  # it rested for this limit; the next link of the name is judged from its first sample
    state.journal_dirty = True
    if case.stage in LEAVING:
        announce(turn, case)
    if case.decision is not None and case.stage in HOLDING:
        home = renamed if renamed is not None and moved else link
        state.away[key_of(home)] = replace(case.decision, interface=home.name, mac=home.mac)
        while len(state.away) > AWAY_MAX:
            del state.away[next(iter(state.away))]
        turn.tell(EventKind.LINK_GONE, link.name, case.decision.reason, renamed_to=home.name if moved else None)


def _arrive(turn: Turn, link: Link) -> None:
    """A link came: its policy, and a decision that waited for it."""
    state = turn.state
    state.gone_since_ns.pop(link.name, None)
    applies = effective(state.rules, link.name, turn.now.wall_ns)
    if applies is not None:
        put_under(turn, link, None, applies)
        tell_override(turn, link, None, applies)
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
