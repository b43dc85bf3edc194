"""Overrides and increase requests as people handle them: through the daemon, audited, applied at once.

Records live in the daemon's own store; the operator's files in /etc are only ever read. Everything on disk is read and
judged before anything is written; a change is durable first, then the same reload applies it that reads those files, so
that what is in force after a restart is what is in force now. Where it cannot be applied it is taken back.

An approval is two writes: the override, then the decision. The override is what counts: where the second write fails
the request is approved all the same, which status says, and the decision is written down as soon as the disk lets it.

Every call waits for the disk: in the control server's workers, never in the loop.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from glob import escape
from typing import Final, Protocol

from limiterd import json_codec as jsonsafe
from limiterd.background import Background
from limiterd.config.override_files import OWN, Store, record_from_mapping, unwatched
from limiterd.core.errors import EXIT_USAGE, ConfigError, EnvironmentFault, PeerError
from limiterd.core.model import Override, OverrideAction, Rules, Status
from limiterd.core.policy import (
    OverrideState,
    host_matches,
    matches,
    override_for,
    override_state,
    policy_for,
    sole_link,
    why_before,
)
from limiterd.core.rule_changes import override_line, terms
from limiterd.core.units import exact_rate, exact_wall, format_rate, parse_wall
from limiterd.daemon.actor import Actor, at_host, by
from limiterd.daemon.health import Health
from limiterd.daemon.host import hostname
from limiterd.daemon.reload import Cause, Reloading
from limiterd.store.audit import AuditTrail
from limiterd.store.request_store import Approval, Request, RequestInput, RequestState, RequestStore, check_grant, granted_rates

_MOST_WARNINGS: Final = 8


class DaemonPort(Protocol):
    """What overrides and requests use of the daemon."""

    @property
    def audit(self) -> AuditTrail:
        """The audit trail."""

    @property
    def reloading(self) -> Reloading:
        """The reload."""

    @property
    def problems(self) -> Health:
        """What is degraded in the daemon itself."""

    @property
    def rules(self) -> Rules:
        """The rules in force."""

    def status(self) -> Status:
        """What is known now."""

    def tell(self, kind: str, interface: str, text: str, fields: Mapping[str, object]) -> None:
        """One line of the log and one entry of the audit trail."""


class Approvals:
    """What was asked for, and what was granted."""

    def __init__(self, daemon: DaemonPort, requests: RequestStore, overrides: Store) -> None:
        self._daemon = daemon
        self.requests = requests
        self.overrides = overrides
        self._decisions = Background("requests", self._write_decisions)

    def load(self) -> tuple[str, ...]:
        """Read the requests; what was wrong with them as sentences. The rules are in force already."""
        troubles = self.requests.load()
        if self._undecided():
            self._decisions.poke()
        return troubles

    def tell_missed_ends(self) -> None:
        """Put into the trail which records expired while no daemon ran: since its newest entry, so before the first new one."""
        try:
            newest = self._daemon.audit.read(limit=1)
        except EnvironmentFault:
            return  # the trail's own problem shows in status
        rules, now_ns = self._daemon.rules, time.time_ns()
        for record in rules.overrides if newest else ():
            end_ns = record.expires_wall_ns
            if end_ns is not None and parse_wall(newest[0].wall) < end_ns <= now_ns and host_matches(record.hosts, rules.host):
                text = f"override {record.id} has expired while limiterd was not running"
                self._daemon.tell("override_ended", sole_link(record), text, {"reason": record.id, "cause": "expired"})

    # ---- overrides ----

    def add(self, fields: Mapping[str, object], actor: str) -> object:
        """Keep a record in the daemon's own store and apply it; what changed. On an error nothing has."""
        record = _record_of(fields)
        with self._daemon.reloading.lock:
            if any(one.id == record.id and one.state is RequestState.PENDING for one in self.requests.requests):
                way = f"use `limiterctl approve {record.id}`, or another id"
                raise PeerError(f"{record.id} is a pending request, which this would not answer; {way}")
            return self._keep(record, self._daemon.reloading.load().rules, actor)

    def _keep(self, record: Override, rules: Rules, actor: str) -> dict[str, object]:
        """Add a record to a store that was just read as part of these rules."""
        wall_ns = time.time_ns()
        if override_state(record, rules.host, wall_ns) == OverrideState.EXPIRED:
            ended = exact_wall(record.expires_wall_ns or 0)
            raise PeerError(
                f"override {record.id}: expires: {ended} is past already, so it would do nothing", exit_code=EXIT_USAGE
            )
        self.overrides.validate(record, rules, wall_ns)
        in_force_on, met = _reach(record, rules, [view.interface for view in self._daemon.status().links], wall_ns)
        cause = Cause(
            kind="override_added",
            interface=sole_link(record),
            text=f"{actor} added {override_line(record, rules.host, wall_ns)}",
            fields=_fields(record),
            record_id=record.id,
            make=lambda: self._store(record),
            undo=lambda: self.overrides.revoke(record.id),
        )
        changes = self._daemon.reloading.reload(actor, cause)
        warnings = [remark.removeprefix(f"{OWN}: ") for remark in unwatched(record, rules, wall_ns)] + met
        if not warnings and not in_force_on and override_state(record, rules.host, wall_ns) == OverrideState.ACTIVE:
            warnings = [f"override {record.id}: no watched link matches it now"]
        return {"changes": list(changes), "warnings": warnings, "in_force_on": in_force_on}

    def _store(self, record: Override) -> None:
        try:
            self.overrides.add(record)
        except EnvironmentFault:
            with suppress(PeerError, EnvironmentFault):  # what is half there must not come alive at the next reload
                self.overrides.revoke(record.id)
            raise

    def revoke(self, identifier: str, reason: str, actor: str) -> object:
        """Forget a record of the daemon's own store; what changed. On an error nothing has.

        Files that are wrong for want of this (the same id in the operator's files) are no obstacle: they are judged afterwards.
        """
        daemon = self._daemon
        text = f"{actor} revoked override {identifier}{f': {reason}' if reason else ''}"
        with daemon.reloading.lock:
            record = next((p.record for p in self.overrides.load().records if p.record.id == identifier), None)
            theirs = next((one for one in daemon.rules.overrides if one.id == identifier and one.origin != OWN), None)
            if record is None and theirs is not None:
                raise PeerError(
                    f"override {identifier} is in {theirs.origin}, which only its owner changes; edit that file and reload"
                )
            if record is None:  # a damaged file, which was not in force; removing it needs no reload to come true
                self.overrides.revoke(identifier)
                daemon.tell("override_revoked", "", text, {"id": identifier, "by": actor})
                changes = daemon.reloading.reload(actor)
            else:
                kept = record
                cause = Cause(
                    kind="override_revoked",
                    interface=sole_link(kept),
                    text=text,
                    fields=_fields(kept),
                    record_id=identifier,
                    make=lambda: self.overrides.revoke(identifier),
                    undo=lambda: self.overrides.add(kept),
                )
                changes = daemon.reloading.reload(actor, cause)
            return {"changes": list(changes) or [f"override {identifier} is gone; it had no effect"]}

    # ---- increase requests ----

    def file(self, request_input: RequestInput) -> object:
        """Record an increase request."""
        request = self.requests.add(request_input, time.time_ns(), {o.id for o in self._daemon.rules.overrides})
        actor = f"{request.user} (uid {request.uid})"
        asked = "no limit" if request.rate_bps is None else format_rate(request.rate_bps)
        until = exact_wall(request.until_wall_ns)
        text = f"{actor} filed request {request.id} for {asked} until {until}: {request.reason}"
        fields = {"by": actor, "id": request.id, "reason": request.reason, "until": until, "rate_bps": request.rate_bps}
        self._daemon.tell("request", request.interface, text, fields)
        return jsonsafe.encode(request)

    def listed(self) -> list[object]:
        """Every request that is kept."""
        return [jsonsafe.encode(request) for request in self.requests.requests]

    def approve(self, identifier: str, approval: Approval, actor: Actor) -> object:
        """Turn a request into an override record of the same id, and apply it; it stays pending where that fails."""
        check_grant(approval)
        with self._daemon.reloading.lock:
            request = self._pending(identifier)
            rules = self._daemon.reloading.load().rules
            record = _record_of(_granted(request, approval, rules, actor, self._limit_bps(request.interface)))
            kept = self._keep(record, rules, by(actor))
            try:
                decided = self._approved(request, record, by(actor), approval.reason)
            except EnvironmentFault as fault:
                self._decisions.poke()
                raise EnvironmentFault(
                    f"override {identifier} applies, but that request {identifier} is approved could not be written down and "
                    f"will be tried again: {fault}",
                    operation=fault.operation,
                    errno_name=fault.errno_name,
                ) from fault
        return {"request": jsonsafe.encode(decided), **kept}

    def _limit_bps(self, interface: str) -> int:
        """The limit that a link has, or would get; 0 where there is no such link now."""
        view = next((one for one in self._daemon.status().links if one.interface == interface), None)
        return 0 if view is None else view.applying_limit_bps

    def deny(self, identifier: str, reason: str, actor: str) -> object:
        """Deny a request."""
        with self._daemon.reloading.lock:
            self._pending(identifier)
            decided = self.requests.decide(identifier, RequestState.DENIED, by=actor, wall_ns=time.time_ns(), reason=reason)
            text = f"{actor} denied request {identifier} of {decided.user}: {reason}"
            self._daemon.tell("request_denied", decided.interface, text, {"by": actor, "id": identifier, "reason": reason})
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

    def _approved(self, request: Request, record: Override, actor: str, reason: str = "") -> Request:
        """Write down that a request is approved, then tell so."""
        decided = self.requests.decide(
            request.id, RequestState.APPROVED, by=actor, wall_ns=time.time_ns(), reason=reason, granted=terms(record)
        )
        text = f"{actor} approved request {request.id} of {request.user}: {decided.granted}"
        fields = {"by": actor, "id": request.id, "granted": decided.granted}
        self._daemon.tell("request_approved", request.interface, text, fields)
        return decided

    def _undecided(self) -> list[tuple[Request, Override]]:
        """Pending requests whose own override applies: approved, and not written down."""
        pending = {request.id: request for request in self.requests.requests if request.state is RequestState.PENDING}
        applying = (record for record in self._daemon.rules.overrides if record.origin == OWN)
        return [(pending[record.id], record) for record in applying if record.id in pending]

    def _write_decisions(self) -> bool:
        """Write down what is approved already; whether nothing is left."""
        try:
            for request, record in self._undecided():
                self._approved(request, record, record.approved_by)
        except EnvironmentFault as fault:
            self._daemon.problems.note("requests", f"requests that are approved still show as pending: {fault}")
            return False
        except PeerError:
            return True  # decided by somebody else meanwhile
        self._daemon.problems.note("requests", None)
        return True


# ---- records -------------------------------------------------------------------------------------


def _reach(record: Override, rules: Rules, watched: list[str], wall_ns: int) -> tuple[list[str], list[str]]:
    """The watched links on which a record that is added to these rules is in force, and what is surprising about it."""
    if override_state(record, rules.host, wall_ns) != OverrideState.ACTIVE:
        return [], []
    both = replace(rules, overrides=(*rules.overrides, record))
    in_force_on: list[str] = []
    warnings: list[str] = []
    for name in (name for name in watched if matches(record.interfaces, name)):
        before, winner = override_for(rules, name, wall_ns), override_for(both, name, wall_ns)
        if winner is record:
            in_force_on.append(name)
            if before is not None:
                warnings.append(f"{name}: goes before override {before.id} ({why_before(record, before, name)})")
        elif winner is not None:
            why = why_before(winner, record, name)
            warnings.append(
                f"{name}: override {winner.id} goes before it ({why}), so nothing changes there; revoke that one first"
            )
    if len(warnings) > _MOST_WARNINGS:
        warnings[_MOST_WARNINGS:] = [f"… and {len(warnings) - _MOST_WARNINGS} more links like these"]
    return in_force_on, warnings


def _record_of(fields: Mapping[str, object]) -> Override:
    """The record that was sent. Raises PeerError that names every bad key: there is no file to point into."""
    try:
        return record_from_mapping(fields)
    except ConfigError as error:
        wrong = "\n".join(f"{problem.path or 'the record'}: {problem.message}" for problem in error.problems)
        raise PeerError(wrong, exit_code=EXIT_USAGE) from error


def _fields(record: Override) -> dict[str, object]:
    """What the trail keeps of a record."""
    return {
        "id": record.id,
        "expires": "never" if record.expires_wall_ns is None else exact_wall(record.expires_wall_ns),
        "approved_by": record.approved_by,
        "reason": record.reason,
    }


def _granted(request: Request, approval: Approval, rules: Rules, actor: Actor, limit_bps: int) -> dict[str, object]:
    """The override record of a grant, as a file would have it. It begins now, so that the latest approval is in force."""
    policy = policy_for(rules, request.interface)
    if policy is None:
        raise PeerError(f"{request.interface}: no policy watches it any more, so there is no limit to increase; deny the request")
    rates = granted_rates(request, approval, policy.detect.threshold_bps, limit_bps)
    until_wall_ns = request.until_wall_ns if approval.until_wall_ns is None else approval.until_wall_ns
    now_ns = time.time_ns()
    return {
        "id": request.id,
        "interfaces": [escape(request.interface)],
        "hosts": [hostname()],
        "action": str(OverrideAction.LIMIT if rates else OverrideAction.EXEMPT),
        **{key: exact_rate(rate_bps) for key, rate_bps in rates.items()},
        "not_before": exact_wall(now_ns) if approval.never or now_ns < until_wall_ns else None,
        "expires": "never" if approval.never else exact_wall(until_wall_ns),
        "approved_by": approval.approved_by or at_host(actor),
        "reason": approval.reason or request.reason,
    }
