"""What each control verb does: a literal table from the verb to a function of the daemon.

Functions take the daemon, the arguments and who asks; they return JSON-able data or raise a LimiterdError whose exit code
is the client's. What may block (files, evidence) happens here, in the control server's worker; what touches the engine
goes through the loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from limiterd import json_codec as jsonsafe
from limiterd.core import commands, explain
from limiterd.core.commands import where_to_look
from limiterd.core.errors import EXIT_USAGE, PeerError
from limiterd.core.model import LinkView, Now, Rules, Status
from limiterd.core.policy import effective
from limiterd.core.stacking import still_limited
from limiterd.core.state import Output, State
from limiterd.core.status import document, fault_document, link_document, override_document
from limiterd.core.units import NS_PER_SECOND, PPM, parse_wall
from limiterd.daemon.actor import Actor, at_host, by
from limiterd.daemon.approvals import Approvals
from limiterd.daemon.durability import Durability
from limiterd.daemon.reload import Reloading
from limiterd.serve import messages as m
from limiterd.serve.protocol import Answer
from limiterd.store.audit import AuditTrail
from limiterd.store.hash_chain import Filter, Found
from limiterd.store.request_store import Approval, RequestInput, check_increase

_HASH: Final = re.compile("[0-9a-f]{64}")

Args = Mapping[str, object]
Data = object


class DaemonPort(Protocol):
    """What the verbs use of the daemon."""

    @property
    def audit(self) -> AuditTrail:
        """The audit trail."""

    @property
    def refusals(self) -> AuditTrail:
        """The trail of what was refused."""

    @property
    def approvals(self) -> Approvals:
        """Overrides and requests."""

    @property
    def durability(self) -> Durability:
        """Waits until what a command led to is on the disk."""

    @property
    def reloading(self) -> Reloading:
        """The reload."""

    @property
    def rules(self) -> Rules:
        """The rules in force."""

    def status(self) -> Status:
        """What is known now."""

    def name_of(self, interface: str) -> str:
        """The name of the link that people call so; what nothing is called comes back as it is."""

    def trail(self, interface: str) -> tuple[tuple[int, int], ...]:
        """The detector's samples of a link."""

    def last_firing(self, interface: str) -> Mapping[str, object] | None:
        """The figures, samples and evidence of the link's last firing."""

    def command(self, act: Callable[[State, Now], Output]) -> Output:
        """Let an operator's command change the state; what was decided."""


def moment(name: str, value: str | None) -> int | None:
    """A wall-clock time as RFC 3339 text, or None where there is none. Raises PeerError."""
    if value is None:
        return None
    try:
        return parse_wall(value)
    except ValueError as error:
        raise PeerError(f"{name}: {error}", exit_code=EXIT_USAGE) from error


# ---- reading -------------------------------------------------------------------------------------


def _status(daemon: DaemonPort, asked: m.GetStatus, _: Actor) -> Data:
    status = daemon.status()
    if asked.interface is not None:
        status = replace(status, links=(_row(status, asked.interface),))
    return document(status)


def _row(status: Status, interface: str) -> LinkView:
    view = next((v for v in status.links if v.interface == interface), None)
    if view is None:
        raise PeerError(f"{interface}: no policy watches a link of this name; {where_to_look(interface)}")
    return view


def _explain(daemon: DaemonPort, asked: m.Explain, _: Actor) -> Data:
    status = daemon.status()
    view = _row(status, asked.interface)
    applies = effective(daemon.rules, view.interface, status.wall_ns, view.altnames)
    if applies is None:
        raise PeerError(f"{view.interface}: no policy watches it any more; ask again")
    trail = daemon.trail(view.interface)
    last = daemon.last_firing(view.interface)
    firing = last if last is not None and explain.caused(view, last) else None
    detect = applies.detect
    faults = [fault for fault in status.faults if fault.interface in ("", view.interface)]
    overrides = [override_document(v) for v in status.overrides if view.interface in v.links]
    return {
        "link": link_document(view),
        "detect": {
            "threshold_bps": detect.threshold_bps,
            "window_s": detect.window_ns / NS_PER_SECOND,
            "slice_s": detect.slice_ns / NS_PER_SECOND,
            "floor_percent": detect.floor_ppm * 100 / PPM,
            "guard": {"mode": str(detect.guard.mode), "burst_bits": detect.guard.burst_bits},
        },
        "samples": firing.get("samples", []) if firing is not None else [list(sample) for sample in trail],
        "conditions": [
            condition.document()
            for condition in (explain.of_firing(detect, firing) if firing is not None else explain.of_trail(detect, trail))
        ],
        "firing": firing,
        "evidence": firing.get("evidence") if firing is not None else None,
        "last_firing": last,
        "lift": list(explain.what_lifts(view, applies.policy.release)),
        "override": next((item for item in overrides if item["id"] == view.override), None),
        "overrides": overrides,
        "faults": [fault_document(fault) for fault in faults],
        "remedies": [way for fault in faults for way in explain.what_to_do(fault, view.phase)],
    }


def _history(daemon: DaemonPort, asked: m.GetHistory, _: Actor) -> Data:
    wanted = Filter(
        interface=asked.interface,
        kinds=frozenset(asked.kinds) if asked.kinds else None,
        since_wall_ns=moment("since", asked.since),
        until_wall_ns=moment("until", asked.until),
    )
    head, limit = daemon.audit.head, min(asked.limit or 50, 1000)
    found = Found(()) if wanted.kinds == {"refused"} else daemon.audit.newest(wanted, limit)
    refused = daemon.refusals.newest(wanted, limit).entries if wanted.kinds is None or "refused" in wanted.kinds else ()
    merged = sorted((*found.entries, *refused), key=lambda entry: entry.wall, reverse=True)[:limit]
    data: dict[str, object] = {"entries": [jsonsafe.encode(entry) for entry in merged], "head": head}
    if found.before_seq is None or len(merged) == limit:
        return data
    return _with_files(daemon, data | {"before_seq": found.before_seq})


def _with_files(daemon: DaemonPort, data: Mapping[str, object]) -> Answer:
    """The answer with the trail's files: who asks hashes and searches them at their own cost."""
    parts = daemon.audit.open_parts()
    return Answer(
        ok=True, data={**data, "files": [part.name for part in parts]}, descriptors=tuple(part.descriptor for part in parts)
    )


def _verify(daemon: DaemonPort, asked: m.VerifyHistory, _: Actor) -> Data:
    if asked.head is not None and not _HASH.fullmatch(asked.head):
        raise PeerError("head must be the 64 hexadecimal digits of an audit_head", exit_code=EXIT_USAGE)
    return _with_files(daemon, {"written": daemon.audit.written_head})  # the head is read first: the files then hold it


# ---- the operator's hand -------------------------------------------------------------------------


def _reload(daemon: DaemonPort, _asked: m.Reload, actor: Actor) -> Data:
    with daemon.durability.command():
        return {"changes": list(daemon.reloading.reload(by(actor)))}


def _limit(daemon: DaemonPort, asked: m.Limit, actor: Actor) -> Data:
    daemon.command(
        lambda state, now: commands.limit(
            state, now, asked.interface, rate_bps=asked.rate_bps, reason=asked.reason, force=asked.force, by=by(actor)
        )
    )
    return {"link": link_document(_row(daemon.status(), asked.interface))}


def _release(daemon: DaemonPort, asked: m.Release, actor: Actor) -> Data:
    reason, interface = asked.reason, "" if asked.all else asked.interface
    if interface is None:
        raise PeerError("say which interface, or all", exit_code=EXIT_USAGE)
    if interface:
        output = daemon.command(lambda state, now: commands.release(state, now, interface, reason=reason, by=by(actor)))
    else:
        output = daemon.command(lambda state, now: commands.release_all(state, now, reason=reason, by=by(actor)))
    absent = [event.interface for event in output.events if event.detail.get("absent")]
    return {
        "links": [link_document(view) for view in daemon.status().links if interface in ("", view.interface)],
        "message": [f"{name}: not limited any more when it returns" for name in absent]
        + still_limited(daemon.status(), interface),
    }


def _pause(daemon: DaemonPort, asked: m.Pause, actor: Actor) -> Data:
    daemon.command(lambda state, now: commands.pause(state, now, reason=asked.reason, by=by(actor)))
    return {"paused": True}


def _resume(daemon: DaemonPort, asked: m.Resume, actor: Actor) -> Data:
    daemon.command(lambda state, now: commands.resume(state, now, reason=asked.reason, by=by(actor)))
    return {"paused": False}


# ---- overrides and requests ----------------------------------------------------------------------


def _override_list(daemon: DaemonPort, _asked: m.ListOverrides, _: Actor) -> Data:
    return {"overrides": [override_document(view) for view in daemon.status().overrides]}


def _override_add(daemon: DaemonPort, asked: m.AddOverride, actor: Actor) -> Data:
    return daemon.approvals.add({"approved_by": at_host(actor), **asked.record}, by(actor))


def _override_extend(daemon: DaemonPort, asked: m.ExtendOverride, actor: Actor) -> Data:
    until_wall_ns = None if asked.until == "never" else moment("until", asked.until)
    return daemon.approvals.extend(asked.id, until_wall_ns, asked.reason, by(actor))


def _override_revoke(daemon: DaemonPort, asked: m.RevokeOverride, actor: Actor) -> Data:
    return daemon.approvals.revoke(asked.id, asked.reason, by(actor))


def _request_add(daemon: DaemonPort, asked: m.AddRequest, actor: Actor) -> Data:
    until_wall_ns = moment("until", asked.until)
    if until_wall_ns is None:
        raise PeerError("until: say until when, as 2026-12-31 or 2026-12-31T00:00:00Z", exit_code=EXIT_USAGE)
    view = _row(daemon.status(), asked.interface)
    firing = daemon.last_firing(asked.interface)
    evidence = {"link": link_document(view)}
    if firing is not None and not view.manual:  # what a hand has limited no firing explains
        evidence["firing"] = {key: value for key, value in firing.items() if key != "samples"}
    check_increase(asked.interface, asked.rate_bps, view.applying_limit_bps)
    request_input = RequestInput(
        asked.interface, asked.rate_bps, until_wall_ns, asked.reason, actor.uid, actor.name, actor.account, evidence
    )
    return daemon.approvals.file(request_input)


def _request_list(daemon: DaemonPort, _asked: m.ListRequests, _: Actor) -> Data:
    return {"requests": daemon.approvals.listed()}


def _request_approve(daemon: DaemonPort, asked: m.ApproveRequest, actor: Actor) -> Data:
    never = asked.until == "never"
    approval = Approval(
        exempt=asked.exempt,
        threshold_bps=asked.threshold_bps,
        limit_bps=asked.limit_bps,
        until_wall_ns=None if never else moment("until", asked.until),
        never=never,
        reason=asked.reason,
        approved_by=asked.approved_by,
    )
    return daemon.approvals.approve(asked.id, approval, actor)


def _request_deny(daemon: DaemonPort, asked: m.DenyRequest, actor: Actor) -> Data:
    return daemon.approvals.deny(asked.id, asked.reason, by(actor))


Act = Callable[[DaemonPort, Args, Actor], Data]


def _verb(kind: type[m.M], act: Callable[[DaemonPort, m.M, Actor], Data]) -> tuple[str, Act]:
    """A verb, and what it does with the arguments as they came; a link may be called by any of its names."""

    def called(daemon: DaemonPort, args: Args, actor: Actor) -> Data:
        interface = args.get("interface")
        if isinstance(interface, str):
            args = {**args, "interface": daemon.name_of(interface)}
        return act(daemon, m.decode(kind, args), actor)

    return kind.verb, called


VERBS: Final[Mapping[str, Act]] = dict(
    (
        _verb(m.GetStatus, _status),
        _verb(m.Explain, _explain),
        _verb(m.GetHistory, _history),
        _verb(m.VerifyHistory, _verify),
        _verb(m.Reload, _reload),
        _verb(m.Limit, _limit),
        _verb(m.Release, _release),
        _verb(m.Pause, _pause),
        _verb(m.Resume, _resume),
        _verb(m.ListOverrides, _override_list),
        _verb(m.AddOverride, _override_add),
        _verb(m.ExtendOverride, _override_extend),
        _verb(m.RevokeOverride, _override_revoke),
        _verb(m.AddRequest, _request_add),
        _verb(m.ListRequests, _request_list),
        _verb(m.ApproveRequest, _request_approve),
        _verb(m.DenyRequest, _request_deny),
    )
)
