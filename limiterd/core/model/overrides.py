"""The record of an approved increase request: every key of it once (core/keys.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from limiterd.core.keys import key
from limiterd.core.kinds import (
    Choice,
    Glob,
    ListOf,
    Maybe,
    Text,
    Wall,
)
from limiterd.core.model.policies import INTERFACES, LIMIT_RATE, THRESHOLD

_HOSTS: Final = ListOf(Glob("host name", 253), what="host pattern", empty="any")


class OverrideAction(StrEnum):
    """exempt lifts the policy; limit sets another threshold and/or another limit."""

    EXEMPT = "exempt"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Override:
    """The record of an approved increase request. Wall-clock times in ns since the epoch.

    not_before_wall_ns None = always; expires_wall_ns None = never. origin says where the record lives
    ("/etc/limiterd/overrides.d/a.yaml:3" or "state").
    """

    id: str = field(
        metadata=key(
            "id",
            Text(64, "an id; use no spaces, like REQ-1234", pattern=r"[!-~]+"),
            "unique over all files and the daemon's own records; up to 64 characters without spaces",
        )
    )
    interfaces: tuple[str, ...] = field(metadata=key("interfaces", INTERFACES, "globs of links", option="--interface"))
    hosts: tuple[str, ...] = field(
        default=(),
        kw_only=True,
        metadata=key(
            "hosts",
            _HOSTS,
            "globs of host names, so that one directory can serve a fleet: the full name or its first label must match, in any "
            "case",
            option="--host",
        ),
    )
    action: OverrideAction = field(
        metadata=key(
            "action",
            Choice(OverrideAction),
            "`exempt`: the policy does not limit the link; `limit`: another threshold, another limit, or both",
            option="--exempt",
        )
    )
    threshold_bps: int | None = field(
        default=None,
        kw_only=True,
        metadata=key(
            "threshold",
            Maybe(THRESHOLD, absent="the policy's"),
            "with `action: limit`; left out: the policy's own; above the limit, also where one of the two is the policy's",
        ),
    )
    limit_bps: int | None = field(
        default=None,
        kw_only=True,
        metadata=key("limit", Maybe(LIMIT_RATE, absent="the policy's"), "with `action: limit`; left out: the policy's own"),
    )
    not_before_wall_ns: int | None = field(
        default=None,
        kw_only=True,
        metadata=key("not_before", Maybe(Wall(), absent="always"), "a time; left out: from the start", option="--from"),
    )
    expires_wall_ns: int | None = field(
        metadata=key(
            "expires",
            Maybe(Wall(), absent="never", words=("never",)),
            "a time with a zone, a date (00:00 UTC), or `never` (which `check` reports)",
            option="--until",
        )
    )
    approved_by: str = field(
        metadata=key("approved_by", Text(200, folds=True), "who granted it (`limiterctl override add`: you)")
    )
    reason: str = field(metadata=key("reason", Text(500, folds=True), "why; a longer text may be folded over several lines"))
    origin: str = field(default="", kw_only=True)
