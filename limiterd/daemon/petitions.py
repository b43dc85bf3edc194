"""Overrides and increase requests as people handle them: through the daemon, audited, applied at once.

Records live in the daemon's own store; the operator's files in /etc are only ever read. A change is durable first, then
it is applied by the same reload that reads those files, so that what stands after a restart is what stands now.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from limiterd import jsonsafe
from limiterd.core.errors import PeerError
from limiterd.core.model import Override, OverrideAction
from limiterd.core.units import exact_rate, exact_wall
from limiterd.daemon.loop import boot_ns, hostname
from limiterd.daemon.verbs import Who, by
from limiterd.overrides import OWN, Store, record_from_mapping
from limiterd.requests import RequestState, RequestStore, Wish

if TYPE_CHECKING:
    from limiterd.daemon.house import House


class Petitions:
    """What was asked for, and what was granted."""

    def __init__(self, house: House, requests: RequestStore, overrides: Store) -> None:
        self._house = house
        self.requests = requests
        self.overrides = overrides

    def add(self, fields: Mapping[str, object], who: str) -> object:
        """Keep a record in the daemon's own store, apply it, and tell its effect."""
        return self._keep_override(record_from_mapping(fields), who)

    def _keep_override(self, record: Override, who: str) -> object:
        with self._house.reload_lock:
            self.overrides.validate(record, self._house.rules, time.time_ns())
            kept = self.overrides.add(record)
            self._house.audit.append(
                "override_added", "", {"by": who, "id": kept.id, "expires": _until(kept), "reason": kept.reason}
            )
        return self._apply_overrides(who)

    def revoke(self, identifier: str, reason: str, who: str) -> object:
        """Forget a record of the daemon's own store."""
        with self._house.reload_lock:
            ours = next((o for o in self._house.rules.overrides if o.id == identifier), None)
            if ours is not None and ours.origin != OWN and not self._in_store(identifier):
                raise PeerError(
                    f"override {identifier} stands in {ours.origin}, which only its owner changes; edit that file and reload"
                )
            self.overrides.revoke(identifier)
            self._house.audit.append("override_revoked", "", {"by": who, "id": identifier, "reason": reason})
        return self._apply_overrides(who)

    def _in_store(self, identifier: str) -> bool:
        return any(placed.record.id == identifier for placed in self.overrides.load().records)

    def _apply_overrides(self, who: str) -> object:
        """Reload, and say what became of the limited links."""
        began_ns = boot_ns()
        limited = {view.interface for view in self._house.status().links if view.limit_bps is not None}
        changes = self._house.reload(who)
        after = {view.interface: view for view in self._house.status().links}
        spent_s = (boot_ns() - began_ns) / 1e9
        effects = [
            f"{name}: limit lifted {spent_s:.1f} s later"
            for name in sorted(limited)
            if name in after and after[name].limit_bps is None
        ]
        return {"changes": list(changes), "effects": effects}

    def file(self, wish: Wish) -> object:
        """Record an increase request."""
        request = self.requests.add(wish, time.time_ns(), {o.id for o in self._house.rules.overrides})
        fields = {
            "id": request.id,
            "by": f"{request.user} (uid {request.uid})",
            "reason": request.reason,
            "until": exact_wall(request.until_wall_ns),
        }
        self._house.audit.append("request", request.interface, fields)
        self._house.log.info(
            "request", interface=request.interface, text=f"increase request {request.id} by {request.user}: {request.reason}"
        )
        return jsonsafe.encode(request)

    def listed(self) -> list[object]:
        """Every request that is kept."""
        return [jsonsafe.encode(request) for request in self.requests.requests]

    def approve(self, identifier: str, terms: Mapping[str, object], who: Who) -> object:
        """Turn a request into an override record, and apply it."""
        request = self.requests.get(identifier)
        if request.state is not RequestState.PENDING:
            raise PeerError(f"request {request.id} was {request.state} already")
        threshold, limit = terms.get("threshold_bps"), terms.get("limit_bps")
        until = terms.get("until_wall_ns") or request.until_wall_ns
        fields: dict[str, object] = {
            "id": request.id,
            "interfaces": [request.interface],
            "hosts": [hostname()],
            "expires": exact_wall(until) if isinstance(until, int) else "never",
            "approved_by": who.name,
            "reason": request.reason,
        }
        rates = {"threshold": threshold, "limit": limit}
        if not terms.get("exempt") and threshold is None and limit is None and request.rate_bps is not None:
            rates["threshold"] = request.rate_bps
        chosen = {key: exact_rate(rate) for key, rate in rates.items() if isinstance(rate, int)}
        fields |= {"action": str(OverrideAction.LIMIT if chosen else OverrideAction.EXEMPT), **chosen}
        effect = self.add(fields, by(who))
        decided = self.requests.decide(
            identifier, RequestState.APPROVED, by=by(who), wall_ns=time.time_ns(), reason=str(terms.get("reason") or "")
        )
        self._house.audit.append("request_approved", request.interface, {"id": identifier, "by": by(who)})
        return {"request": jsonsafe.encode(decided), **(effect if isinstance(effect, dict) else {})}

    def deny(self, identifier: str, reason: str, who: str) -> object:
        """Deny a request."""
        decided = self.requests.decide(identifier, RequestState.DENIED, by=who, wall_ns=time.time_ns(), reason=reason)
        self._house.audit.append("request_denied", decided.interface, {"id": identifier, "by": who, "reason": reason})
        return jsonsafe.encode(decided)


def _until(record: Override) -> str:
    return "never" if record.expires_wall_ns is None else exact_wall(record.expires_wall_ns)
