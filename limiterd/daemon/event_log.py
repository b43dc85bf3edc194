"""Tells what happened: every event becomes one log line and one entry of the audit trail, in order, off the loop.

The loop only puts events into a queue. A thread looks up the evidence of a firing (which sockets sent it), finds the words,
writes. When the queue is full the newest are counted instead of kept: enforcement never waits for its historian.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Event, EventKind
from limiterd.core.units import format_duration, format_rate, format_wall

MAX_QUEUED: Final = 20_000
_ANCHORED: Final = frozenset({EventKind.LIMIT, EventKind.RELEASED})
"""Events whose hash goes to the log, so that a trail with its tail cut off shows."""
_FIRINGS: Final = frozenset({EventKind.LIMIT, EventKind.WOULD_LIMIT, EventKind.NOTED})


class Log(Protocol):
    """What the event log needs of the log."""

    def emit(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Write one line: interface and text first, then the rest."""


class Trail(Protocol):
    """What the event log needs of the audit trail."""

    def append(self, kind: str, interface: str = "", fields: Mapping[str, object] | None = None) -> str:
        """Add one entry and return its hash."""


Evidence = Callable[[Event], Mapping[str, object] | None]


def log_act(log: Log, kind: str, interface: str, text: str, fields: Mapping[str, object], level: str = "info") -> None:
    """Put what people did into the log."""
    shown = {"interface": interface, "text": text, **fields}
    log.emit(level, kind, {k: v for k, v in shown.items() if isinstance(v, str | int) and v != ""})


def tell(log: Log, trail: Trail, kind: str, interface: str, text: str, fields: Mapping[str, object], level: str = "info") -> None:
    """Put what people did into the audit trail and the log; returns at once."""
    trail.append(kind, interface, {"text": text, **fields})
    log_act(log, kind, interface, text, fields, level)


# ---- words ---------------------------------------------------------------------------------------


def _rate(event: Event, key: str) -> str:
    value = event.detail.get(key)
    return format_rate(value) if isinstance(value, int) else "?"


def _time(event: Event, key: str) -> str:
    value = event.detail.get(key)
    return format_duration(value // 10**6 * 10**6) if isinstance(value, int) else "?"


def _text(event: Event, key: str) -> str:
    return str(event.detail.get(key) or "")


def _who(event: Event) -> str:
    by, note = _text(event, "by"), _text(event, "note")
    return f" by {by or 'an operator'}" + (f" ({note})" if note else "")


def _excess(event: Event) -> str:
    if event.reason == "guard":
        return f"sent {_bits(event)} above {_rate(event, 'threshold_bps')} in bursts"
    return (
        f"sent {_rate(event, 'mean_bps')} on average for {_time(event, 'span_ns')} "
        f"(threshold {_rate(event, 'threshold_bps')}, peak {_rate(event, 'peak_bps')})"
    )


def _bits(event: Event) -> str:
    value = event.detail.get("excess_bits")
    return format_rate(value) if isinstance(value, int) else "more"


def _limit(event: Event) -> str:
    if event.reason == "operator":
        return f"limiting it to {_rate(event, 'limit_bps')}, asked for{_who(event)}"
    return f"{_excess(event)}: limiting it to {_rate(event, 'limit_bps')}, strike {event.detail.get('strikes')}"


def _would(event: Event) -> str:
    why = "limits are paused" if event.detail.get("paused") else "the policy only observes"
    return f"{_excess(event)}: would be limited to {_rate(event, 'limit_bps')}, but {why}"


def _noted(event: Event) -> str:
    override = _text(event, "override")
    return f"{_excess(event)}: noted" + (f", exempt by {override}" if override else "")


def _why_released(event: Event) -> str:
    return {
        "override": "lifted by an override",
        "operator": f"released{_who(event)}",
        "demand_ended": "demand has ended",
        "max_hold": "the longest hold is over and demand has ended",
        "policy": "no policy asks for it any more",
        "exit": "the daemon stops",
    }.get(event.reason, event.reason)


def _released(event: Event) -> str:
    why = _why_released(event)
    if event.detail.get("absent"):
        return f"not limited any more when it returns: {f'released{_who(event)}' if event.reason == 'operator' else why}"
    since = event.detail.get("since_wall_ns")
    lasted = f"; limited since {format_wall(since)}" if isinstance(since, int) else ""
    return f"full rate again: {why}{lasted}"


def _leftover(event: Event) -> str:
    if event.detail.get("limit_bps") is None:
        return "removed what an earlier run had left half done"
    return f"removed a limit of {_rate(event, 'limit_bps')} of which no decision is known: {_why_released(event)}"


def _message(event: Event) -> str:
    """The engine's own words; the link, with which they begin, is told beside them."""
    return _text(event, "message").removeprefix(f"{event.interface}: ")


def _over(event: Event) -> str:
    return f"{'warning' if event.detail.get('warning') else 'fault'} over: {event.reason.replace('_', ' ')}"


def _gone(event: Event) -> str:
    name = _text(event, "renamed_to")
    return (
        f"renamed to {name}; its limit goes with it"
        if name
        else "the limited link is gone; it will be limited again when it returns"
    )


def _ended(event: Event) -> str:
    other = _text(event, "by_override")
    why = {
        "expired": "has expired",
        "replaced": f"gives way to override {other}",
        "withdrawn": "was withdrawn",
        "changed": "was changed",
        "unmatched": "matches no more",
    }
    return f"override {event.reason} {why.get(_text(event, 'cause'), 'applies no more')}"


def _expiring(event: Event) -> str:
    left = event.detail.get("left_s")
    hours, minutes = divmod((left + 30) // 60, 60) if isinstance(left, int) else (0, 0)
    shown = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or not hours else "")
    return f"override {event.reason} expires in {shown}; renew it or inform its owner"


_WORDS: Final[Mapping[EventKind, tuple[str, Callable[[Event], str]]]] = {
    EventKind.LIMIT: ("warning", _limit),
    EventKind.WOULD_LIMIT: ("warning", _would),
    EventKind.NOTED: ("info", _noted),
    EventKind.LIMITED: ("warning", lambda e: f"limited to {_rate(e, 'limit_bps')}, read back from the kernel"),
    EventKind.RELEASING: ("info", lambda e: ("release" if e.interface else "release of everything") + f" asked for{_who(e)}"),
    EventKind.RELEASED: ("warning", _released),
    EventKind.RATE_CHANGED: (
        "info",
        lambda e: f"limit changed in place from {_rate(e, 'before_bps')} to {_rate(e, 'limit_bps')}",
    ),
    EventKind.POSSIBLE: ("info", lambda _: "possible excess; the samples are too coarse to say"),
    EventKind.EPOCH: ("debug", lambda e: f"a fresh epoch begins ({e.reason})"),
    EventKind.FAULT: ("error", _message),
    EventKind.FAULT_CLEARED: ("info", _over),
    EventKind.FOREIGN: ("warning", _message),
    EventKind.REPAIR: ("warning", lambda e: f"repairing the limit: {'; '.join(map(str, _differences(e))) or 'it was undone'}"),
    EventKind.ADOPTED: ("info", lambda e: f"found the limit of {_rate(e, 'limit_bps')} in the kernel and adopted it"),
    EventKind.RESTORED: ("warning", lambda e: f"put the limit of {_rate(e, 'limit_bps')} back"),
    EventKind.OVERRIDE_ACTIVE: (
        "info",
        lambda e: f"override {e.reason} applies ({_text(e, 'action')}, approved by {_text(e, 'approved_by')})",
    ),
    EventKind.OVERRIDE_ENDED: ("info", _ended),
    EventKind.OVERRIDE_EXPIRING: ("warning", _expiring),
    EventKind.LINK_GONE: ("info", _gone),
    EventKind.LINK_BACK: ("info", lambda _: "it is on record as limited: its limit is looked for, and put back if it is gone"),
    EventKind.PAUSED: ("warning", lambda e: f"new limits are paused{_who(e)}"),
    EventKind.RESUMED: ("info", lambda e: f"new limits are no longer paused{_who(e)}"),
    EventKind.UNDRAINED: (
        "warning",
        lambda e: f"{e.detail.get('backlog_bytes')} bytes were still queued when the limit was removed",
    ),
    EventKind.LEFTOVER: ("warning", _leftover),
    EventKind.WITHDRAWN: ("warning", lambda e: f"its limit, which never stood, is not due any more: {_why_released(e)}"),
}


def _differences(event: Event) -> Sequence[object]:
    found = event.detail.get("differences")
    return found if isinstance(found, list) else ()


def sentence(event: Event) -> tuple[str, str]:
    """(level, text) of an event, for people."""
    level, words = _WORDS[event.kind]
    return level, words(event)


# ---- the thread ----------------------------------------------------------------------------------


class EventLog:
    """Queues events and writes them down in its own thread."""

    def __init__(self, log: Log, trail: Trail, evidence: Evidence) -> None:
        self._log = log
        self._trail = trail
        self._evidence = evidence
        self._queue: queue.SimpleQueue[Event | threading.Event | None] = queue.SimpleQueue()
        self.lost = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write, again where a defect had ended the thread (its event is lost, the others are not)."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="event_log", daemon=True)
            self._thread.start()

    def tell(self, events: Sequence[Event]) -> None:
        """Queue events; returns at once."""
        if self._thread is not None:
            self.start()
        for event in events:
            if self._queue.qsize() >= MAX_QUEUED:
                self.lost += 1
            else:
                self._queue.put(event)

    def wait(self, timeout_s: float) -> None:
        """Return when everything told before is handed to the trail and the log.

        Raises EnvironmentFault(operation="write") where that takes longer.
        """
        reached = threading.Event()
        self._queue.put(reached)
        if not reached.wait(timeout_s):
            raise EnvironmentFault(f"events wait longer than {timeout_s:g} s to be written down", operation="write")

    def close(self, timeout_s: float) -> None:
        """Write what is queued, as far as the time allows."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            if isinstance(event, threading.Event):
                event.set()
            else:
                self._write(event)

    def _write(self, event: Event) -> None:
        level, text = sentence(event)
        fields = {key: value for key, value in event.detail.items() if value not in (None, "")}
        evidence = self._evidence(event) if event.kind in _FIRINGS and event.reason != "operator" else None
        if evidence:
            fields["evidence"] = evidence
            text += _top(evidence)
        named = {"interface": event.interface, "text": text, "reason": str(event.reason), "policy": event.policy}
        shown: dict[str, object] = {key: value for key, value in named.items() if value}
        shown |= {key: value for key, value in fields.items() if isinstance(value, str | int) and key != "message"}
        if event.kind is not EventKind.EPOCH:
            head = self._trail.append(event.kind, event.interface, {**shown, **fields})
            if event.kind in _ANCHORED:
                shown = {"audit_head": head, **shown}  # first: whatever cuts a long line short leaves it
        self._log.emit(level, str(event.kind), shown)


def _top(evidence: Mapping[str, object]) -> str:
    """The biggest sender, for the log line."""
    flows = evidence.get("flows")
    if not isinstance(flows, list | tuple) or not flows:
        return ""
    first = flows[0]
    process = first.get("process")
    actor = f" by {process.get('name')}[{process.get('pid')}]" if isinstance(process, Mapping) else ""
    share = first.get("share")
    part = f", {share:.0%} of it" if isinstance(share, float) else ""
    ends = (f"{first.get(side)}:{first.get(f'{side}_port')}" for side in ("local", "remote"))
    return f"; top sender {' → '.join(ends)}{actor}{part}"
