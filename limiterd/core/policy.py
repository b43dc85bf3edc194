"""Which policy and which override govern a link, and what they amount to at a moment of the wall clock.

Rules. The first policy whose globs match a link's name applies; a link that none matches is not watched. Globs are
case-sensitive shell patterns; "!glob" takes names out again, wherever it stands in the list, and a list of exclusions
alone matches nothing. A link's altnames are names of it: it matches by any of its names, and is excluded by any.

An override is active while not_before ≤ now < expires on a host that it names (any, where it names none). Of the active
ones that match a link exactly one wins, records never merge: an exact interface name goes before a glob, then a record
bound to hosts before one that is not, then the latest not_before (none is the earliest), then the greatest id.

Nothing here reads a clock: `wall_ns` is always an argument, and next_boundary_wall_ns says when to ask again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from limiterd.core.model import Detect, Limit, Override, OverrideAction, Policy, Rules

_GLOB_SIGNS: Final = frozenset("*?[")


def is_glob(entry: str) -> bool:
    """Whether an entry of an interface list is a pattern rather than one name."""
    return not _GLOB_SIGNS.isdisjoint(entry)


def glob_matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern matches a name, as fnmatchcase does.

    What the literal ends of the pattern rule out costs no regular expression: fnmatch keeps up to 32 768 of them, and a
    fleet's records have a pattern for each host.
    """
    head, tail = _HEAD.match(pattern), _TAIL.search(pattern)
    if head is None or tail is None or not (name.startswith(head[0]) and name.endswith(tail[0])):
        return False
    return name == pattern if head.end() == len(pattern) else fnmatchcase(name, pattern)


_HEAD: Final = re.compile(r"[^*?\[]*")
_TAIL: Final = re.compile(r"[^*?\]]*\Z")


def entries_for(name: str) -> list[str]:
    """A list of entries that matches this name and no other; a leading "!" would exclude, so a class stands for it."""
    escaped = re.sub(r"[*?\[]", r"[\g<0>]", name)
    return [f'["!]{escaped[1:]}', f'!"{escaped[1:]}'] if name.startswith("!") else [escaped]


def matches(entries: Sequence[str], name: str, altnames: tuple[str, ...] = ()) -> bool:
    """Whether a list of globs with "!" exclusions matches a link of this name."""
    names = (name, *altnames)
    wanted = any(glob_matches(name, entry) for entry in entries if not entry.startswith("!") for name in names)
    return wanted and not any(glob_matches(name, entry[1:]) for entry in entries if entry.startswith("!") for name in names)


def names_exactly(entries: Sequence[str], name: str, altnames: tuple[str, ...] = ()) -> bool:
    """Whether a list holds a name of the link itself, not merely a pattern that matches it."""
    return any(not is_glob(each) and each in entries for each in (name, *altnames))


def host_matches(entries: Sequence[str], host: str) -> bool:
    """Whether a host list matches: an empty one does; otherwise the full name or its first label, in any case, must."""
    if not entries:
        return True
    names = {host.lower(), host.lower().partition(".")[0]}
    patterns = [entry.lower() for entry in entries]
    excluded = any(glob_matches(name, entry[1:]) for entry in patterns if entry.startswith("!") for name in names)
    return not excluded and any(glob_matches(name, entry) for entry in patterns if not entry.startswith("!") for name in names)


# ---- policies --------------------------------------------------------------------------------------


def policy_for(rules: Rules, name: str, altnames: tuple[str, ...] = ()) -> Policy | None:
    """The policy that applies to a link of this name: the first that matches, or None."""
    return next((policy for policy in rules.config.policies if matches(policy.interfaces, name, altnames)), None)


def literal_names(rules: Rules) -> tuple[tuple[str, Policy], ...]:
    """Every interface that a policy names without a glob, with the policy that applies to it; in order, each once.

    Such a link is missed where there is none; a name that is excluded again, or that an earlier policy takes, goes with
    what applies.
    """
    found: dict[str, Policy] = {}
    for policy in rules.config.policies:
        for entry in policy.interfaces:
            if not is_glob(entry) and not entry.startswith("!") and (applies := policy_for(rules, entry)) is not None:
                found.setdefault(entry, applies)
    return tuple(found.items())


# ---- overrides -------------------------------------------------------------------------------------


class OverrideState:
    """What a record amounts to now, as status and `override list` show it."""

    ACTIVE: Final = "active"
    PENDING: Final = "pending"
    EXPIRED: Final = "expired"
    OTHER_HOST: Final = "other-host"


def override_state(record: Override, host: str, wall_ns: int) -> str:
    """Tell a record's state. An expired one is expired on every host."""
    if record.expires_wall_ns is not None and wall_ns >= record.expires_wall_ns:
        return OverrideState.EXPIRED
    if not host_matches(record.hosts, host):
        return OverrideState.OTHER_HOST
    if record.not_before_wall_ns is not None and wall_ns < record.not_before_wall_ns:
        return OverrideState.PENDING
    return OverrideState.ACTIVE


def sole_link(record: Override) -> str:
    """The one link that a record names, or ""."""
    names = record.interfaces
    return names[0] if len(names) == 1 and not is_glob(names[0]) and not names[0].startswith("!") else ""


def candidates(rules: Rules, name: str, wall_ns: int, altnames: tuple[str, ...] = ()) -> Iterator[Override]:
    """Every active record that matches a link's name."""
    for record in rules.overrides:
        if matches(record.interfaces, name, altnames) and override_state(record, rules.host, wall_ns) == OverrideState.ACTIVE:
            yield record


_RULES: Final = ("it names the link exactly", "it is bound to this host", "it begins later", "its id is greater")


def _rank(record: Override, name: str, altnames: tuple[str, ...]) -> tuple[bool, bool, tuple[bool, int], str]:
    """What precedence compares, in the order of _RULES."""
    start = record.not_before_wall_ns
    return (names_exactly(record.interfaces, name, altnames), bool(record.hosts), (start is not None, start or 0), record.id)


def override_for(rules: Rules, name: str, wall_ns: int, altnames: tuple[str, ...] = ()) -> Override | None:
    """The one record that wins for a link's name now, or None."""
    return max(candidates(rules, name, wall_ns, altnames), key=lambda record: _rank(record, name, altnames), default=None)


def why_before(winner: Override, other: Override, name: str, altnames: tuple[str, ...] = ()) -> str:
    """Which rule lets one record go before another on a link that both match, in words."""
    pairs = zip(_RULES, _rank(winner, name, altnames), _rank(other, name, altnames), strict=True)
    return next(rule for rule, mine, theirs in pairs if mine != theirs)


def next_boundary_wall_ns(rules: Rules, wall_ns: int) -> int | None:
    """The next moment at which a record of this host begins or ends, strictly after now; None where none will."""
    times = (
        moment
        for record in rules.overrides
        if host_matches(record.hosts, rules.host)
        for moment in (record.not_before_wall_ns, record.expires_wall_ns)
        if moment is not None and moment > wall_ns
    )
    return min(times, default=None)


def end_cause(rules: Rules, old: Override, new: Override | None, wall_ns: int) -> str:
    """Why a record applies to a link no more, where new (None: none) does under these rules."""
    if old.expires_wall_ns is not None and old.expires_wall_ns <= wall_ns:
        return "expired"
    if new is not None and new.id == old.id:
        return "changed"
    if all(record.id != old.id for record in rules.overrides):
        return "withdrawn"
    return "replaced" if new is not None else "unmatched"


# ---- both together ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effective:
    """What governs one link now.

    override is the winning active record; detect and limit are the policy's with the record's threshold and limit in
    place of its own. exempt: firings are noted only. Under an exempt record detect and limit stay the policy's.
    """

    policy: Policy
    override: Override | None
    detect: Detect
    limit: Limit
    exempt: bool = False


def effective(rules: Rules, name: str, wall_ns: int, altnames: tuple[str, ...] = ()) -> Effective | None:
    """Work out what governs a link of this name at this moment; None where no policy matches (it is not watched)."""
    policy = policy_for(rules, name, altnames)
    if policy is None:
        return None
    record = override_for(rules, name, wall_ns, altnames)
    if record is None:
        return Effective(policy, None, policy.detect, policy.limit)
    if record.action is OverrideAction.EXEMPT:
        return Effective(policy, record, policy.detect, policy.limit, exempt=True)
    detect = policy.detect if record.threshold_bps is None else replace(policy.detect, threshold_bps=record.threshold_bps)
    limit = policy.limit if record.limit_bps is None else replace(policy.limit, rate_bps=record.limit_bps)
    return Effective(policy, record, detect, limit)
