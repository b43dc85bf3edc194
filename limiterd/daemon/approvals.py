"""Overrides and increase requests as people handle them: through the daemon, audited, applied at once.

Records live in the daemon's own store; the operator's files in /etc are only ever read. A new record is judged against the
rules in force: files that were broken meanwhile are no obstacle. The record and its entry of the audit trail are on the
disk first, then the rules are swapped once. Where a step fails the steps before it are taken back, and the trail says so.

An override whose id is a request's is its approval: that the request is approved is written down afterwards, as soon as the
disk lets it.

Every call waits for the disk: in the control server's workers, never in the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

from limiterd import json_codec as jsonsafe
from limiterd.background import Background
from limiterd.config.override_files import KEPT_NS, OWN, Store, conflicts, judge, record_from_mapping, unwatched
from limiterd.core.errors import EXIT_USAGE, ConfigError, EnvironmentFault, PeerError
from limiterd.core.model import LinkView, Override, OverrideAction, Policy, Rules, Status
from limiterd.core.policy import (
    OverrideState,
    entries_for,
    host_matches,
    matches,
    override_for,
    override_state,
    policy_for,
    sole_link,
    why_before,
)
from limiterd.core.rule_changes import describe, override_line, terms
from limiterd.core.stacking import still_limited
from limiterd.core.units import exact_rate, exact_wall, format_rate, parse_wall
from limiterd.daemon.actor import Actor, at_host, by
from limiterd.daemon.durability import Act, Durability
from limiterd.daemon.health import Health
from limiterd.daemon.host import hostname
from limiterd.daemon.reload import HALF_DONE, Reloading
from limiterd.store.audit import AuditTrail
from limiterd.store.request_store import Approval, Request, RequestInput, RequestState, RequestStore, check_grant, granted_rates

_MOST_WARNINGS: Final = 8
DAY_NS: Final = 86_400 * 10**9


class DaemonPort(Protocol):
    """What overrides and requests use of the daemon."""

    @property
    def audit(self) -> AuditTrail:
        """The audit trail."""

    @property
    def durability(self) -> Durability:
        """Puts acts on the disk."""

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
        """Read the requests; what was wrong with them as sentences. The rules are in force already.

        A pending request whose own override is there was approved: a crash came before that was written down.
        """
        troubles = self.requests.load()
        own = {record.id: record for record in self._daemon.rules.overrides if record.origin == OWN}
        for request in self.requests.requests:
            if request.state is RequestState.PENDING and request.id in own:
                record = own[request.id]
                decided = self._approval(request.id, record, record.approved_by)
                self.requests.note(decided)
                if not self._is_told(request):
                    act = _approved(decided)
                    self._daemon.tell(act.kind, act.interface, f"{act.text}, as its override says", act.fields)
                self._decisions.poke()
        return troubles

    def _is_told(self, request: Request) -> bool:
        """Whether the trail has the approval, among the newest ones."""
        with suppress(EnvironmentFault):
            told = self._daemon.audit.read(request.interface, {"request_approved"}, limit=20)
            return any(entry.fields.get("id") == request.id for entry in told)
        return False

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
            return self._keep(record, actor)

    def _keep(self, record: Override, actor: str, *acts: Act) -> dict[str, object]:
        """Add a record to the store and to the rules in force; acts are further entries of the trail."""
        wall_ns = time.time_ns()
        self._prune(wall_ns)
        rules = self._daemon.rules
        if override_state(record, rules.host, wall_ns) == OverrideState.EXPIRED:
            ended = exact_wall(record.expires_wall_ns or 0)
            raise PeerError(
                f"override {record.id}: expires: {ended} is past already, so it would do nothing", exit_code=EXIT_USAGE
            )
        judge(record, rules, wall_ns, self._daemon.reloading.theirs)
        status = self._daemon.status()
        links = {view.interface: view.altnames for view in status.links}
        in_force_on, met = _reach(record, rules, links, wall_ns)
        self.overrides.add(record)
        after = self._daemon.reloading.with_records((*rules.overrides, record), self.overrides.texts())
        changes = describe(rules, after, wall_ns)
        text = f"{actor} added {override_line(record, rules.host, wall_ns)}"
        act = Act("override_added", sole_link(record), text, _fields(record, actor, after.sha256, changes))
        try:
            self._daemon.durability.record(act, *acts)
            self._daemon.reloading.put_in_force(after)
        except EnvironmentFault as fault:
            self._take_back(record.id, act, fault, lambda: self.overrides.revoke(record.id))
            raise
        aliases = {alias for altnames in links.values() for alias in altnames}
        warnings = [remark.removeprefix(f"{OWN}: ") for remark in unwatched(record, rules, wall_ns, aliases)] + met
        if not warnings and not in_force_on and override_state(record, rules.host, wall_ns) == OverrideState.ACTIVE:
            warnings = [f"override {record.id}: no watched link matches it now"]
        warnings += [text for name in in_force_on for text in still_limited(status, name)][:_MOST_WARNINGS]
        return {"changes": list(changes), "warnings": warnings, "in_force_on": in_force_on}

    def revoke(self, identifier: str, reason: str, actor: str) -> object:
        """Forget a record of the daemon's own store; what changed. On an error nothing has.

        The trail has it before the record is gone: a full disk still lets a file go, but takes no entry.
        """
        with self._daemon.reloading.lock:
            self.requests.save()  # the record may be all that says that its request is approved
            rules, wall_ns = self._daemon.rules, time.time_ns()
            record = self._own(identifier)
            if record is None and not self.overrides.holds(identifier):
                raise PeerError(f"the daemon's own store has no override {identifier}; see `limiterctl override list`")
            rest = [one for one in rules.overrides if one is not record]
            after = self._daemon.reloading.with_records(rest, self.overrides.texts(without=identifier))
            changes = describe(rules, after, wall_ns)
            text = f"{actor} revoked override {identifier}{f': {reason}' if reason else ''}"
            known = {"id": identifier, "by": actor} if record is None else _fields(record, actor, after.sha256, changes)
            act = Act("override_revoked", "" if record is None else sole_link(record), text, known)
            try:
                self._daemon.durability.record(act)
                self.overrides.revoke(identifier)
            except EnvironmentFault as fault:
                self._take_back(identifier, act, fault)
                raise
            if record is not None:
                self._drop(record, act, after)
            self._mend(identifier, actor, damaged=record is None)
            return {"changes": list(changes) or [f"override {identifier} is gone; it had no effect"]}

    def extend(self, identifier: str, expires_wall_ns: int | None, reason: str, actor: str) -> object:
        """Let a record of the daemon's own store end at another time (None: never); what changed. On an error nothing has."""
        with self._daemon.reloading.lock:
            rules, wall_ns = self._daemon.rules, time.time_ns()
            before = self._own(identifier)
            if before is None:
                raise PeerError(f"the daemon's own store has no override {identifier}; see `limiterctl override list`")
            record = replace(before, expires_wall_ns=expires_wall_ns)
            begins_ns = max(wall_ns, record.not_before_wall_ns or 0)
            if expires_wall_ns is not None and expires_wall_ns <= begins_ns:
                late = "is past already" if begins_ns == wall_ns else f"is not after its begin, {exact_wall(begins_ns)}"
                message = f"override {identifier}: expires: {exact_wall(expires_wall_ns)} {late}; to end it now, revoke it"
                raise PeerError(message, exit_code=EXIT_USAGE)
            rest = tuple(record if one is before else one for one in rules.overrides)
            for name, message in conflicts(record, rules, wall_ns):  # an expired one was not judged while it was
                raise PeerError(f"override {identifier}: {name}: {message}")
            self.overrides.change(record)
            after = self._daemon.reloading.with_records(rest, self.overrides.texts())
            changes = describe(rules, after, wall_ns)
            text = f"{actor} extended override {identifier}: {terms(record)}{f': {reason}' if reason else ''}"
            act = Act("override_extended", sole_link(record), text, _fields(record, actor, after.sha256, changes))
            try:
                self._daemon.durability.record(act)
                self._daemon.reloading.put_in_force(after)
            except EnvironmentFault as fault:
                self._take_back(identifier, act, fault, lambda: self.overrides.change(before))
                raise
            return {"changes": list(changes)}

    def _own(self, identifier: str) -> Override | None:
        """The daemon's own record of that id, if it is in force. Raises PeerError where it is the operator's."""
        record = next((one for one in self._daemon.rules.overrides if one.id == identifier), None)
        if record is not None and record.origin != OWN:
            raise PeerError(
                f"override {identifier} is in {record.origin}, which only its owner changes; edit that file and reload"
            )
        return record

    def _drop(self, record: Override, act: Act, after: Rules) -> None:
        """Go on under the rules without that record, whose file is gone already."""
        try:
            self._daemon.reloading.put_in_force(after)
        except EnvironmentFault as fault:
            self._take_back(record.id, act, fault, lambda: self.overrides.add(record))
            raise

    def _mend(self, identifier: str, actor: str, *, damaged: bool) -> None:
        """Load the files again where that record, now gone, was what was wrong with them."""
        if damaged or identifier in (self._daemon.reloading.config_error or ""):
            with suppress(ConfigError, EnvironmentFault):  # told by the reload itself
                self._daemon.reloading.reload(actor)

    def _take_back(self, identifier: str, act: Act, why: Exception, undo: Callable[[], object] = lambda: None) -> None:
        """Undo a change on disk that did not take effect, and tell the trail, which may have its entry."""
        self._daemon.tell("undone", act.interface, f"this was not carried out: {act.text}: {why}", {"id": identifier})
        try:
            undo()
        except (ConfigError, EnvironmentFault, PeerError) as trouble:
            text = f"{why}; what was refused is on disk all the same ({trouble}), so a later reload or start applies it"
            self._daemon.problems.note(HALF_DONE, f"override {identifier}: {text}")
            raise EnvironmentFault(text, operation="write") from why

    def _prune(self, wall_ns: int) -> None:
        """Let go of own records that expired some time ago."""
        rules = self._daemon.rules
        gone = self.overrides.prune(rules.overrides, wall_ns)
        if gone:
            rest = [record for record in rules.overrides if record.id not in gone]
            self._daemon.reloading.put_in_force(self._daemon.reloading.with_records(rest, self.overrides.texts()))
            text = f"removed {len(gone)} records that expired more than {KEPT_NS // DAY_NS} days ago: {', '.join(gone)}"
            self._daemon.tell("override_pruned", "", text, {"ids": gone})

    # ---- increase requests ----

    def file(self, asked: RequestInput) -> object:
        """Record an increase request."""
        taken = {one.id for one in self._daemon.rules.overrides}
        return jsonsafe.encode(self.requests.add(asked, time.time_ns(), taken, audit=self._audit))

    def _audit(self, requests: Sequence[Request]) -> None:
        self._daemon.durability.record(*map(_act_of, requests))

    def listed(self) -> list[object]:
        """Every request that is kept."""
        return [jsonsafe.encode(request) for request in self.requests.requests]

    def approve(self, identifier: str, approval: Approval, actor: Actor) -> object:
        """Turn a request into an override record of the same id, and apply it; it stays pending where that fails."""
        check_grant(approval)
        with self._daemon.reloading.lock:
            request = self.requests.get(identifier)
            view = self._view(request.interface)
            policy = policy_for(self._daemon.rules, request.interface, () if view is None else view.altnames)
            limit_bps = 0 if view is None else view.applying_limit_bps
            record = _record_of(_granted(request, approval, policy, actor, limit_bps))
            decided = self._approval(identifier, record, by(actor), approval.reason)
            kept = self._keep(record, by(actor), _approved(decided))
            self.requests.note(decided)
            self._decisions.poke()
        return {"request": jsonsafe.encode(decided), **kept}

    def _approval(self, identifier: str, record: Override, actor: str, reason: str = "") -> Request:
        return self.requests.decision(
            identifier, RequestState.APPROVED, by=actor, wall_ns=time.time_ns(), reason=reason, granted=terms(record)
        )

    def _view(self, interface: str) -> LinkView | None:
        """What is shown of a link; None where there is no such link now."""
        return next((one for one in self._daemon.status().links if one.interface == interface), None)

    def deny(self, identifier: str, reason: str, actor: str) -> object:
        """Deny a request."""
        with self._daemon.reloading.lock:
            denied = self.requests.decide(
                identifier, RequestState.DENIED, by=actor, wall_ns=time.time_ns(), reason=reason, audit=self._audit
            )
        return jsonsafe.encode(denied)

    def _write_decisions(self) -> bool:
        """Write down what is approved already; whether nothing is left."""
        try:
            self.requests.save()
        except EnvironmentFault as fault:
            self._daemon.problems.note("requests", f"approvals are in force and not yet written to the requests: {fault}")
            return False
        self._daemon.problems.note("requests", None)
        return True


# ---- records -------------------------------------------------------------------------------------


def _reach(record: Override, rules: Rules, watched: Mapping[str, tuple[str, ...]], wall_ns: int) -> tuple[list[str], list[str]]:
    """The watched links on which a record that is added to these rules is in force, and what is surprising about it.

    watched gives each link's further names.
    """
    if override_state(record, rules.host, wall_ns) != OverrideState.ACTIVE:
        return [], []
    both = replace(rules, overrides=(*rules.overrides, record))
    in_force_on: list[str] = []
    warnings: list[str] = []
    for name, altnames in watched.items():
        if not matches(record.interfaces, name, altnames):
            continue
        before, winner = override_for(rules, name, wall_ns, altnames), override_for(both, name, wall_ns, altnames)
        if winner is record:
            in_force_on.append(name)
            if before is not None:
                warnings.append(f"{name}: goes before override {before.id} ({why_before(record, before, name, altnames)})")
        elif winner is not None:
            why = why_before(winner, record, name, altnames)
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


def _fields(record: Override, actor: str, sha256: str, changes: Sequence[str]) -> dict[str, object]:
    """What the trail keeps of a change of a record."""
    return {
        "id": record.id,
        "expires": "never" if record.expires_wall_ns is None else exact_wall(record.expires_wall_ns),
        "approved_by": record.approved_by,
        "reason": record.reason,
        "by": actor,
        "sha256": sha256,
        "changes": list(changes),
    }


def _filed(request: Request) -> Act:
    actor = f"{request.user} (uid {request.uid})"
    asked = "no limit" if request.rate_bps is None else format_rate(request.rate_bps)
    until = exact_wall(request.until_wall_ns)
    text = f"{actor} filed request {request.id} for {asked} until {until}: {request.reason}"
    fields = {"by": actor, "id": request.id, "reason": request.reason, "until": until, "rate_bps": request.rate_bps}
    return Act("request", request.interface, text, fields)


def _approved(decided: Request) -> Act:
    actor = decided.decided_by
    text = f"{actor} approved request {decided.id} of {decided.user}: {decided.granted}"
    return Act("request_approved", decided.interface, text, {"by": actor, "id": decided.id, "granted": decided.granted})


def _denied(decided: Request) -> Act:
    actor, reason = decided.decided_by, decided.decision_reason
    text = f"{actor} denied request {decided.id} of {decided.user}: {reason}"
    return Act("request_denied", decided.interface, text, {"by": actor, "id": decided.id, "reason": reason})


_ACTS: Final[Mapping[RequestState, Callable[[Request], Act]]] = {
    RequestState.PENDING: _filed,
    RequestState.APPROVED: _approved,
    RequestState.DENIED: _denied,
}


def _act_of(request: Request) -> Act:
    return _ACTS[request.state](request)


def _granted(request: Request, approval: Approval, policy: Policy | None, actor: Actor, limit_bps: int) -> dict[str, object]:
    """The override record of a grant, as a file would have it. It begins now, so that the latest approval is in force."""
    if policy is None:
        raise PeerError(f"{request.interface}: no policy watches it any more, so there is no limit to increase; deny the request")
    rates = granted_rates(request, approval, policy.detect.threshold_bps, limit_bps)
    until_wall_ns = request.until_wall_ns if approval.until_wall_ns is None else approval.until_wall_ns
    now_ns = time.time_ns()
    return {
        "id": request.id,
        "interfaces": entries_for(request.interface),
        "hosts": [hostname()],
        "action": str(OverrideAction.LIMIT if rates else OverrideAction.EXEMPT),
        **{key: exact_rate(rate_bps) for key, rate_bps in rates.items()},
        "not_before": exact_wall(now_ns) if approval.never or now_ns < until_wall_ns else None,
        "expires": "never" if approval.never else exact_wall(until_wall_ns),
        "approved_by": approval.approved_by or at_host(actor),
        "reason": approval.reason or request.reason,
    }
