"""Increase requests: filed by a tenant, decided by an administrator, kept in <state>/requests.json.

A request is a wish and nothing more: an approved one takes effect as the override that carries its id. What is bounded: the
pending requests of one user and of all, every text, the evidence, and how many decided ones are remembered (the audit trail
remembers all). A change is on disk before it is seen; when the disk refuses, nothing has changed.

Methods wait for the disk: call them beside the loop, never in it.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EXIT_USAGE, EnvironmentFault, PeerError
from limiterd.core.model.policies import LEAST_RATE
from limiterd.core.units import MAX_RATE_BPS, exact_wall, format_rate, format_wall
from limiterd.store.crc_store import CrcStore, Record

FILE_NAME: Final = "requests.json"
_MAX_NAME_BYTES: Final = 15


class RequestState(StrEnum):
    """What became of a request."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be kept; texts in characters, evidence as JSON in bytes."""

    pending_per_account: int = 8
    pending: int = 256
    decided: int = 256
    text: int = 500
    evidence_bytes: int = 16 << 10


@dataclass(frozen=True, slots=True)
class RequestInput:
    """What somebody asks for: a rate (None = no limit at all) until a time, and why; evidence is of the limit that they met."""

    interface: str
    rate_bps: int | None
    until_wall_ns: int
    reason: str
    uid: int
    user: str
    account: int
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One increase request and what became of it. The decision's fields are empty while it is pending."""

    id: str
    interface: str
    rate_bps: int | None
    until_wall_ns: int
    reason: str
    uid: int
    user: str
    filed_wall_ns: int
    account: int | None = None
    """The account that uid belongs to; None: the uid itself."""
    evidence: Mapping[str, object] = field(default_factory=dict)
    state: RequestState = RequestState.PENDING
    decided_by: str = ""
    decided_wall_ns: int | None = None
    decision_reason: str = ""
    granted: str = ""
    """What the override allows and until when, in words; empty unless approved."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What an administrator grants. Nothing set: what the request asks for, until when it asks, for its own reason."""

    exempt: bool = False
    threshold_bps: int | None = None
    limit_bps: int | None = None
    until_wall_ns: int | None = None
    never: bool = False
    reason: str = ""
    approved_by: str = ""
    """Who decided, where the peer's own user (root, under sudo) does not say it."""


Audit = Callable[[Sequence[Request]], None]
"""Puts requests, filed or decided, into the audit trail; raises EnvironmentFault where that is not on the disk."""


# ---- rules: pure ---------------------------------------------------------------------------------


def check_grant(grant: Approval) -> None:
    """Raises PeerError for one that contradicts itself."""
    if grant.exempt and (grant.threshold_bps is not None or grant.limit_bps is not None):
        raise PeerError("either exempt, or a threshold and/or a limit", exit_code=EXIT_USAGE)
    if grant.never and grant.until_wall_ns is not None:
        raise PeerError("either until a time, or never ending", exit_code=EXIT_USAGE)


def check_increase(interface: str, rate_bps: int | None, limit_bps: int) -> None:
    """Raises PeerError for a rate that is no increase over the limit that applies."""
    if rate_bps is not None and rate_bps <= limit_bps:
        asked, applies = format_rate(rate_bps), format_rate(limit_bps)
        raise PeerError(
            f"{interface}: {asked} is not above the limit of {applies} that applies already; ask for more", exit_code=EXIT_USAGE
        )


def granted_rates(request: Request, grant: Approval, threshold_bps: int, limit_bps: int) -> Mapping[str, int]:
    """The `threshold` and/or `limit` in bit/s of the override that grants a request; none = exempt.

    By default the rate that was asked for becomes the threshold. Below the one in force, threshold_bps, that would be
    stricter than no override at all; what helps somebody there is a limit of that rate, if it is above limit_bps, the one in
    force. Raises PeerError where it is not.
    """
    rates = {"threshold": grant.threshold_bps, "limit": grant.limit_bps}
    if not grant.exempt and not any(rates.values()) and request.rate_bps is not None:
        check_increase(request.interface, request.rate_bps, limit_bps)
        rates["threshold" if request.rate_bps >= threshold_bps else "limit"] = request.rate_bps
    return {key: rate_bps for key, rate_bps in rates.items() if rate_bps is not None}


def _require_text(name: str, text: str, longest: int, *, empty: bool = False) -> None:
    if not empty and not text.strip():
        raise PeerError(f"{name} is missing; say it in a few words", exit_code=EXIT_USAGE)
    if len(text) > longest:
        raise PeerError(f"{name} has {len(text)} characters; {longest} are kept, so shorten it", exit_code=EXIT_USAGE)
    if not text.isprintable():
        raise PeerError(f"{name} holds line breaks or control characters; write it as one line", exit_code=EXIT_USAGE)


def check_wish(wish: RequestInput, wall_ns: int, bounds: Bounds) -> None:
    """Raises PeerError for a wish that makes no sense or is too long."""
    _require_text("interface", wish.interface, _MAX_NAME_BYTES)
    if len(os.fsencode(wish.interface)) > _MAX_NAME_BYTES or "/" in wish.interface:
        raise PeerError(f"{wish.interface!r} is no interface name", exit_code=EXIT_USAGE)
    _require_text("reason", wish.reason, bounds.text)
    if wish.rate_bps is not None and not LEAST_RATE <= wish.rate_bps <= MAX_RATE_BPS:
        bounds_shown = f"{format_rate(LEAST_RATE)} to {format_rate(MAX_RATE_BPS)}"
        raise PeerError(f"the rate {wish.rate_bps} bit/s is out of range; use {bounds_shown}", exit_code=EXIT_USAGE)
    if wish.until_wall_ns <= wall_ns:
        raise PeerError(f"until {exact_wall(wish.until_wall_ns)} is in the past; name a later time", exit_code=EXIT_USAGE)


def _account_of(request: Request) -> int:
    return request.uid if request.account is None else request.account


def check_room(requests: Iterable[Request], account: int, bounds: Bounds) -> Request | None:
    """Which pending request gives way to a new one of that account; None while there is room for both.

    Where all places are taken, the account with the most of them gives way with its newest, as long as it has more than the
    newcomer would. Raises PeerError where too many requests are pending.
    """
    pending = [request for request in requests if request.state is RequestState.PENDING]
    counts = Counter(map(_account_of, pending))
    if counts[account] >= bounds.pending_per_account:
        raise PeerError(f"you have {counts[account]} pending requests, the most one account may have; wait for a decision")
    if len(pending) < bounds.pending:
        return None
    heaviest, most = counts.most_common(1)[0]
    if most <= counts[account] + 1:
        raise PeerError(f"{len(pending)} requests are pending, the most there may be; ask an administrator to decide some")
    return next(request for request in reversed(pending) if _account_of(request) == heaviest)


def _given_way(request: Request, wall_ns: int) -> Request:
    why = "all places for requests were taken, and most of them by this account; file it again once some are decided"
    return replace(request, state=RequestState.DENIED, decided_by="limiterd", decided_wall_ns=wall_ns, decision_reason=why)


def remembered(requests: tuple[Request, ...], bounds: Bounds) -> tuple[Request, ...]:
    """All pending requests and the latest decided ones, in their order."""
    decided = [request for request in requests if request.state is not RequestState.PENDING]
    decided.sort(key=lambda request: request.decided_wall_ns or 0)
    dropped = {request.id for request in decided[: max(0, len(decided) - bounds.decided)]}
    return tuple(request for request in requests if request.id not in dropped)


def next_number(number: int, wall_ns: int, taken: Container[str]) -> tuple[int, str]:
    """The next free number after that one and the id it gives: REQ-<day>-<number>, a number is never used twice."""
    day = format_wall(wall_ns)[:10].replace("-", "")
    while (identifier := f"REQ-{day}-{number + 1}") in taken:
        number += 1
    return number + 1, identifier


def _bounded_evidence(evidence: Mapping[str, object], longest: int) -> Mapping[str, object]:
    plain = jsonsafe.plain(evidence)
    size = len(jsonsafe.dump(plain))
    if isinstance(plain, dict) and size <= longest:
        return plain
    return {"omitted": f"{size} bytes of evidence; see the audit trail"}


def from_records(records: Iterable[Record]) -> tuple[tuple[Request, ...], int, tuple[str, ...]]:
    """The requests, the last number given out, and a sentence for each record that cannot be used."""
    requests: dict[str, Request] = {}
    number = 0
    problems: list[str] = []
    for kind, value in records:
        if kind == "last_number" and type(value) is int:
            number = max(number, value)
        elif kind == "request":
            try:
                request = jsonsafe.decode(Request, value)
            except ValueError as error:
                problems.append(f"a request is not usable ({error}); the rest is kept")
                continue
            requests[request.id] = request
            tail = request.id.rpartition("-")[2]
            number = max(number, int(tail) if tail.isascii() and tail.isdecimal() and len(tail) < 19 else 0)
        else:
            problems.append(f"a record of the unknown kind {kind[:40]!r} is left out")
    return tuple(requests.values()), number, tuple(problems[:10])


# ---- the store -----------------------------------------------------------------------------------


class RequestStore:
    """The requests and their file. Every method may be called from any thread."""

    def __init__(self, directory: str | Path, *, bounds: Bounds = Bounds()) -> None:
        """Name the state directory; `load` reads it."""
        self._file = CrcStore(Path(directory) / FILE_NAME, "limiterd_requests")
        self._bounds = bounds
        self._lock = threading.Lock()
        self._requests: tuple[Request, ...] = ()
        self._number = 0
        self._is_saved = True

    def load(self) -> tuple[str, ...]:
        """Read what is kept; what was wrong with it as sentences. Raises nothing."""
        with self._lock:
            contents = self._file.read()
            self._requests, self._number, problems = from_records(contents.records)
            if contents.copied:
                with suppress(EnvironmentFault):  # the next change tries again
                    self._commit(self._requests, self._number)
        return contents.problems + tuple(f"{self._file.path}: {problem}" for problem in problems)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request that is remembered, in the order of filing."""
        return self._requests

    @property
    def pending(self) -> int:
        """How many wait for a decision."""
        return sum(request.state is RequestState.PENDING for request in self._requests)

    def get(self, identifier: str) -> Request:
        """One request. Raises PeerError where there is none."""
        found = next((request for request in self._requests if request.id == identifier), None)
        if found is None:
            raise PeerError(f"there is no request {identifier[:40]!r}; limiterctl requests lists them")
        return found

    def add(self, asked: RequestInput, wall_ns: int, taken: Container[str] = (), *, audit: Audit = lambda _: None) -> Request:
        """File a request under an id that is not taken (by overrides).

        Raises PeerError for a bad request or no room, EnvironmentFault(operation="write") when the disk refuses.
        """
        check_wish(asked, wall_ns, self._bounds)
        with self._lock:
            ousted = check_room(self._requests, asked.account, self._bounds)
            number, identifier = next_number(self._number, wall_ns, taken)
            request = Request(
                id=identifier,
                interface=asked.interface,
                rate_bps=asked.rate_bps,
                until_wall_ns=asked.until_wall_ns,
                reason=asked.reason,
                uid=asked.uid,
                user=asked.user[:64],
                filed_wall_ns=wall_ns,
                account=asked.account,
                evidence=_bounded_evidence(asked.evidence, self._bounds.evidence_bytes),
            )
            changed = ([] if ousted is None else [_given_way(ousted, wall_ns)]) + [request]
            others = self._requests if ousted is None else self._with(changed[0])
            self._commit((*others, request), number, lambda: audit(changed))
        return request

    def decision(
        self, identifier: str, state: RequestState, *, by: str, wall_ns: int, reason: str = "", granted: str = ""
    ) -> Request:
        """A pending request as it will be once it is approved or denied; nothing changes yet.

        Raises PeerError where there is none of that id, it is decided already, or a denial gives no reason.
        """
        _require_text("reason", reason, self._bounds.text, empty=state is RequestState.APPROVED)
        request = self.get(identifier)
        if request.state is not RequestState.PENDING:
            when = format_wall(request.decided_wall_ns or 0)
            raise PeerError(f"request {request.id} was {request.state} by {request.decided_by} at {when} already")
        return replace(request, state=state, decided_by=by[:64], decided_wall_ns=wall_ns, decision_reason=reason, granted=granted)

    def decide(
        self,
        identifier: str,
        state: RequestState,
        *,
        by: str,
        wall_ns: int,
        reason: str = "",
        granted: str = "",
        audit: Audit = lambda _: None,
    ) -> Request:
        """Take a decision; raises as `decision` does, and EnvironmentFault(operation="write") when the disk refuses."""
        with self._lock:
            decided = self.decision(identifier, state, by=by, wall_ns=wall_ns, reason=reason, granted=granted)
            self._commit(self._with(decided), self._number, lambda: audit([decided]))
        return decided

    def note(self, decided: Request) -> None:
        """Take a decision that is durable elsewhere; `save` writes it down."""
        with self._lock:
            self._requests, self._is_saved = remembered(self._with(decided), self._bounds), False

    def save(self) -> None:
        """Write down what was only noted. Raises EnvironmentFault(operation="write")."""
        with self._lock:
            if not self._is_saved:
                self._write(self._requests, self._number)

    def _with(self, decided: Request) -> tuple[Request, ...]:
        return tuple(decided if entry.id == decided.id else entry for entry in self._requests)

    def _commit(self, requests: tuple[Request, ...], number: int, audit: Callable[[], None] = lambda: None) -> None:
        """Write, audit, and only then follow; where the audit fails, the file becomes the old one again."""
        kept = remembered(requests, self._bounds)
        self._write(kept, number)
        try:
            audit()
        except EnvironmentFault as fault:
            self._take_back(fault)
            raise
        self._requests, self._number = kept, number

    def _take_back(self, why: EnvironmentFault) -> None:
        try:
            self._write(self._requests, self._number)
        except EnvironmentFault as trouble:
            raise EnvironmentFault(
                f"{why}; it is in {self._file.path} all the same ({trouble}), so the next start finds it", operation="write"
            ) from why

    def _write(self, requests: Iterable[Request], number: int) -> None:
        records: list[Record] = [("last_number", number)]
        records.extend(("request", jsonsafe.encode(request)) for request in requests)
        self._file.write(records)
        self._is_saved = True
