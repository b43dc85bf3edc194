"""Overrides and increase requests as people handle them: through the daemon, audited, applied at once.

Records live in the daemon's own store; the operator's files in /etc are only ever read. Everything on disk is read and
judged before anything is written; a change is durable first, then it is applied by the same reload that reads those files,
so that what stands after a restart is what stands now.

An approval is two writes: the override, then the decision. The override is what counts: where the second write fails
the request is approved all the same, which status says, and the decision is written down as soon as the disk lets it.

Every call waits for the disk: in the control server's workers, never in the loop.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from typing import TYPE_CHECKING

from limiterd import jsonsafe
from limiterd.background import Background
from limiterd.core.diff import override_line
from limiterd.core.errors import EXIT_USAGE, ConfigError, EnvironmentFault, PeerError
from limiterd.core.model import Override, OverrideAction, Rules
from limiterd.core.policy import OverrideState, host_matches, is_glob, override_state, policy_for
from limiterd.core.units import exact_rate, exact_wall, format_rate, parse_wall
from limiterd.daemon.machine import hostname
from limiterd.daemon.verbs import Who, by
from limiterd.overrides import OWN, Store, record_from_mapping, unwatched
from limiterd.requests import Grant, Request, RequestState, RequestStore, Wish, check_grant, granted_rates

if TYPE_CHECKING:
    from limiterd.daemon.house import House


class Petitions:
    """What was asked for, and what was granted."""

    def __init__(self, house: House, requests: RequestStore, overrides: Store) -> None:
        self._house = house
        self.requests = requests
        self.overrides = overrides
        self._decisions = Background("requests", self._write_decisions)

    def load(self) -> tuple[str, ...]:
        """Read the requests; what was wrong with them as sentences."""
        troubles = self.requests.load()
        if self._undecided():
            self._decisions.poke()
        return troubles

    def tell_missed_ends(self) -> None:
        """Put into the trail which records expired while no daemon ran: since its newest entry, so before the first new one."""
        try:
            newest = self._house.audit.read(limit=1)
        except EnvironmentFault:
            return  # the trail's own problem shows in status
        rules, now_ns = self._house.rules, time.time_ns()
        for record in rules.overrides if newest else ():
            end_ns = record.expires_wall_ns
            if end_ns is not None and parse_wall(newest[0].wall) < end_ns <= now_ns and host_matches(record.hosts, rules.host):
                text = f"override {record.id} has expired while limiterd was not running"
                self._house.tell("override_ended", _link_of(record), text, {"reason": record.id, "cause": "expired"})

    # ---- overrides ----

    def add(self, fields: Mapping[str, object], who: str) -> object:
        """Keep a record in the daemon's own store and apply it; what changed. On an error nothing has."""
        record = _record_of(fields)
        with self._house.reload_lock:
            rules = self._house.load().rules
            changes = self._keep(record, rules, who)
        remarks = [remark.removeprefix(f"{OWN}: ") for remark in unwatched(record, rules, time.time_ns())]
        return {"changes": list(changes), "warnings": remarks}

    def _keep(self, record: Override, rules: Rules, who: str) -> tuple[str, ...]:
        """Add a record to a store that was just read as part of these rules."""
        wall_ns = time.time_ns()
        if override_state(record, rules.host, wall_ns) == OverrideState.EXPIRED:
            ended = exact_wall(record.expires_wall_ns or 0)
            raise PeerError(
                f"override {record.id}: expires: {ended} is past already, so it would do nothing", exit_code=EXIT_USAGE
            )
        self.overrides.validate(record, rules, wall_ns)
        try:
            kept = self.overrides.add(record)
        except EnvironmentFault:
            with suppress(PeerError, EnvironmentFault):  # what is half there must not come alive at the next reload
                self.overrides.revoke(record.id)
            raise
        self._tell("override_added", f"{who} added {override_line(kept, rules.host, wall_ns)}", who, kept)
        try:
            return self._house.reload(who)
        except ConfigError:
            self.overrides.revoke(kept.id)
            self._tell("override_revoked", f"override {kept.id} is gone again: the files could not be applied", who, kept)
            raise

    def revoke(self, identifier: str, reason: str, who: str) -> object:
        """Forget a record of the daemon's own store; what changed. On an error nothing has.

        Files that are wrong for want of this (the same id in the operator's files) are no obstacle: they are judged afterwards.
        """
        house = self._house
        with house.reload_lock:
            theirs = next((one for one in house.rules.overrides if one.id == identifier and one.origin != OWN), None)
            if theirs is not None and all(placed.record.id != identifier for placed in self.overrides.load().records):
                raise PeerError(
                    f"override {identifier} stands in {theirs.origin}, which only its owner changes; edit that file and reload"
                )
            gone = self.overrides.revoke(identifier)
            why = f": {reason}" if reason else ""
            self._tell("override_revoked", f"{who} revoked override {identifier}{why}", who, gone, id=identifier)
            try:
                changes = house.reload(who)
            except ConfigError:
                if gone is not None:
                    self.overrides.add(gone)
                    self._tell("override_added", f"override {identifier} is back: the files could not be applied", who, gone)
                raise
            return {"changes": list(changes) or [f"override {identifier} is gone; it had no effect"]}

    def _tell(self, kind: str, text: str, who: str, record: Override | None = None, **fields: object) -> None:
        """Log and audit what became of a record."""
        if record is not None:
            fields |= {
                "id": record.id,
                "expires": "never" if record.expires_wall_ns is None else exact_wall(record.expires_wall_ns),
                "approved_by": record.approved_by,
                "reason": record.reason,
            }
        self._house.tell(kind, "" if record is None else _link_of(record), text, fields | {"by": who})

    # ---- increase requests ----

    def file(self, wish: Wish) -> object:
        """Record an increase request."""
        request = self.requests.add(wish, time.time_ns(), {o.id for o in self._house.rules.overrides})
        who = f"{request.user} (uid {request.uid})"
        asked = "no limit" if request.rate_bps is None else format_rate(request.rate_bps)
        until = exact_wall(request.until_wall_ns)
        text = f"{who} filed request {request.id} for {asked} until {until}: {request.reason}"
        fields = {"by": who, "id": request.id, "reason": request.reason, "until": until, "rate_bps": request.rate_bps}
        self._house.tell("request", request.interface, text, fields)
        return jsonsafe.encode(request)

    def listed(self) -> list[object]:
        """Every request that is kept."""
        return [jsonsafe.encode(request) for request in self.requests.requests]

    def approve(self, identifier: str, grant: Grant, who: Who) -> object:
        """Turn a request into an override record of the same id, and apply it; it stays pending where that fails."""
        check_grant(grant)
        with self._house.reload_lock:
            request = self._pending(identifier)
            rules = self._house.load().rules
            changes = self._keep(_record_of(_granted(request, grant, rules, who)), rules, by(who))
            text = f"{by(who)} approved request {identifier} of {request.user}"
            self._house.tell("request_approved", request.interface, text, {"by": by(who), "id": identifier})
            decided = self._decide(identifier, by(who), grant.reason)
        return {"request": jsonsafe.encode(decided), "changes": list(changes)}

    def deny(self, identifier: str, reason: str, who: str) -> object:
        """Deny a request."""
        with self._house.reload_lock:
            self._pending(identifier)
            decided = self.requests.decide(identifier, RequestState.DENIED, by=who, wall_ns=time.time_ns(), reason=reason)
            text = f"{who} denied request {identifier} of {decided.user}: {reason}"
            self._house.tell("request_denied", decided.interface, text, {"by": who, "id": identifier, "reason": reason})
        return jsonsafe.encode(decided)

    def _pending(self, identifier: str) -> Request:
        """Look up a request that waits for a decision. Raises PeerError where none does."""
        self._write_decisions()
        request = self.requests.get(identifier)
        if request.state is not RequestState.PENDING:
            raise PeerError(f"request {identifier} was {request.state} by {request.decided_by} already")
        if any(one.id == identifier for one, _ in self._undecided()):
            raise PeerError(f"request {identifier} was approved already, its override applies; only that is not written down yet")
        return request

    # ---- decisions that could not be written ----

    def _decide(self, identifier: str, who: str, reason: str) -> Request:
        try:
            return self.requests.decide(identifier, RequestState.APPROVED, by=who, wall_ns=time.time_ns(), reason=reason)
        except EnvironmentFault as fault:
            self._decisions.poke()
            raise EnvironmentFault(
                f"override {identifier} applies, but that request {identifier} is approved could not be written down and will be "
                f"tried again: {fault}",
                operation=fault.operation,
                errno_name=fault.errno_name,
            ) from fault

    def _undecided(self) -> list[tuple[Request, Override]]:
        """Pending requests whose override stands in the store: approved, and not written down."""
        pending = {request.id: request for request in self.requests.requests if request.state is RequestState.PENDING}
        if not pending:
            return []
        records = (placed.record for placed in self.overrides.load().records)
        return [(pending[record.id], record) for record in records if record.id in pending]

    def _write_decisions(self) -> bool:
        """Write down what is approved already; whether nothing is left."""
        try:
            for request, record in self._undecided():
                self.requests.decide(request.id, RequestState.APPROVED, by=record.approved_by, wall_ns=time.time_ns())
        except EnvironmentFault as fault:
            self._house.problems.note("requests", f"requests that are approved still show as pending: {fault}")
            return False
        except PeerError:
            return True  # decided by somebody else meanwhile
        self._house.problems.note("requests", None)
        return True


def _record_of(fields: Mapping[str, object]) -> Override:
    """The record that was sent. Raises PeerError that names every bad key: there is no file to point into."""
    try:
        return record_from_mapping(fields)
    except ConfigError as error:
        wrong = "\n".join(f"{problem.path or 'the record'}: {problem.message}" for problem in error.problems)
        raise PeerError(wrong, exit_code=error.exit_code) from error


def _link_of(record: Override) -> str:
    """The one link that a record names, or ""."""
    return record.interfaces[0] if len(record.interfaces) == 1 and not is_glob(record.interfaces[0]) else ""


def _granted(request: Request, grant: Grant, rules: Rules, who: Who) -> dict[str, object]:
    """The override record of a grant, as a file would have it."""
    policy = policy_for(rules, request.interface)
    if policy is None:
        raise PeerError(f"{request.interface}: no policy watches it any more, so there is no limit to increase; deny the request")
    rates = granted_rates(request, grant, policy.detect.threshold_bps)
    until_wall_ns = request.until_wall_ns if grant.until_wall_ns is None else grant.until_wall_ns
    return {
        "id": request.id,
        "interfaces": [escape(request.interface)],
        "hosts": [hostname()],
        "action": str(OverrideAction.LIMIT if rates else OverrideAction.EXEMPT),
        **{key: exact_rate(rate_bps) for key, rate_bps in rates.items()},
        "expires": "never" if grant.never else exact_wall(until_wall_ns),
        "approved_by": grant.approved_by or who.name,
        "reason": grant.reason or request.reason,
    }
