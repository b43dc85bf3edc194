"""One policy against a recording: the daemon's own step() and executor, over the kernel in memory.

Rule: the samples are fed as they stand; what the policy would have done to them is what the engine then tells. A limit
acts as a fluid: what was recorded goes through up to the limit's rate, and there is demand while more was recorded. The
recorded counters themselves stay as they are: a link under a limit is not judged, and a release begins a fresh epoch.

Two clocks move with the recording: the engine's runs on where the recording's steps back (a reboot), the wall's is
anchored at started_at. Where that is unknown overrides are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median_low
from typing import Final

from limiterd.core.engine import start
from limiterd.core.model import (
    CLASS_LIMIT,
    ClassStats,
    Event,
    EventKind,
    Journal,
    KernelAbilities,
    Link,
    Now,
    Policy,
    Reason,
    Rules,
    Snapshot,
)
from limiterd.core.policy import effective
from limiterd.core.state import Inputs
from limiterd.daemon.hands import Hands
from limiterd.kernel.fake import FakeKernel
from limiterd.recording import Lane
from limiterd.replay.possible import Possible

REPORTED: Final = frozenset(
    {
        EventKind.LIMIT,
        EventKind.WOULD_LIMIT,
        EventKind.NOTED,
        EventKind.LIMITED,
        EventKind.RELEASED,
        EventKind.POSSIBLE,
        EventKind.EPOCH,
    }
)
LOOK_AHEAD: Final = 16
"""Ticks of a lane that tell how far apart its samples are."""

PACKET_BYTES: Final = 1_514
_BEGINS: Final = frozenset({EventKind.LIMITED, EventKind.ADOPTED, EventKind.RESTORED})
_ENDS: Final = frozenset({EventKind.RELEASED, EventKind.LINK_GONE})


@dataclass(slots=True)
class Flow:
    """A limited link's last recorded sample."""

    ifindex: int
    t_ns: int
    tx_bytes: int


class Run:
    """One set of rules over all lanes of a recording. notes are sentences for people about what could not be judged."""

    def __init__(self, rules: Rules, *, started_wall_ns: int | None, qualified: bool) -> None:
        if started_wall_ns is None:
            rules = replace(rules, overrides=())
        self.rules = by_device(rules) if qualified else rules
        self.notes: list[str] = []
        self.over_bytes: dict[str, int] = {}
        self._started_wall_ns = started_wall_ns or 0
        self._lanes: dict[str, _LaneRun] = {}
        self._first_ns: int | None = None

    def feed(self, lane: Lane, snapshot: Snapshot) -> Sequence[Event]:
        """Take in one tick; the events it led to that a replay reports."""
        run = self._lanes.get(lane.key)
        if run is None:
            if self._first_ns is None:
                self._first_ns = snapshot.t_ns
            wall_ns = self._started_wall_ns + snapshot.t_ns - self._first_ns
            run = self._lanes[lane.key] = _LaneRun(self, lane, Now(snapshot.t_ns, max(0, wall_ns)))
        return run.feed(snapshot)

    def limit_bps(self, name: str) -> int | None:
        """The rate of the limit that stands on the link now."""
        return next((rate for run in self._lanes.values() if (rate := run.limit_bps(name)) is not None), None)

    def close(self) -> Sequence[Event]:
        """The events that were still held back at the end of the recording."""
        return [event for run in self._lanes.values() for event in run.close()]


def by_device(rules: Rules) -> Rules:
    """The same rules for links that are called instance/device: globs without a slash speak of the device."""

    def qualified(globs: Iterable[str]) -> tuple[str, ...]:
        return tuple(g if "/" in g else f"!*/{g[1:]}" if g.startswith("!") else f"*/{g}" for g in globs)

    policies = tuple(replace(p, interfaces=qualified(p.interfaces)) for p in rules.config.policies)
    overrides = tuple(replace(o, interfaces=qualified(o.interfaces)) for o in rules.overrides)
    return replace(rules, config=replace(rules.config, policies=policies), overrides=overrides)


class _LaneRun:
    """The engine, the kernel and the clocks of one lane."""

    def __init__(self, run: Run, lane: Lane, now: Now) -> None:
        self._run = run
        self._lane = lane
        self._now = now
        self._last_ns = now.boot_ns
        self._told: list[Event] = []
        self._flows: dict[str, Flow] = {}
        self._links: tuple[Link, ...] = ()
        self._fine: tuple[tuple[Link, ...], list[int], tuple[Link, ...]] | None = None
        self._coarse: dict[str, Possible] = {}
        self._stamps: list[int] = []
        self._early: list[Snapshot] = []
        self._rules = self._rules_of(lane)
        self._kernel = FakeKernel(abilities=KernelAbilities(fq_codel=True), now_ns=lambda: self._now.boot_ns)
        self._state = start(self._rules, Journal(), self._kernel.abilities(), now)
        self._hands = Hands(
            tc=self._kernel,
            clock=lambda: self._now,
            tell=self._told.extend,
            save=lambda _: None,
            save_now=lambda _: None,
        )

    def _rules_of(self, lane: Lane) -> Rules:
        """The rules as they hold in this lane: its host, and repeats of scraped counters dropped."""
        rules = self._run.rules
        sampling = rules.config.sampling
        spacing_ns = max(lane.resolution_ns.values(), default=0)
        if sampling.counter_refresh_ns < spacing_ns < sampling.max_gap_ns:
            rules = replace(rules, config=replace(rules.config, sampling=replace(sampling, counter_refresh_ns=spacing_ns)))
        return replace(rules, host=lane.host or rules.host)

    # ---- a tick ----

    def feed(self, snapshot: Snapshot) -> Sequence[Event]:
        t_ns = snapshot.t_ns
        ahead_ns = max(0, t_ns - self._last_ns)
        self._last_ns = t_ns
        self._now = Now(self._now.boot_ns + ahead_ns, self._now.wall_ns + ahead_ns)
        possible = self._look(snapshot)
        snapshot = self._finely(snapshot) if self._lane.resolution_ns else snapshot
        if snapshot.links is not self._links:
            self._plug(snapshot.links)
        if self._flows:
            self._flow(snapshot)
        told = self._told
        told.clear()
        self._hands.settle(self._state, self._rules, Inputs(self._now, snapshot))
        if not told and not possible:
            return ()
        for event in told:
            if event.kind in _BEGINS and (link := self._state.by_name.get(event.interface)) is not None:
                self._flows[link.name] = Flow(link.ifindex, t_ns, _counter(snapshot, link.name))
            elif event.kind in _ENDS:
                self._flows.pop(event.interface, None)
        return [replace(event, t_ns=t_ns) for event in told if event.kind in REPORTED] + possible

    def _plug(self, links: tuple[Link, ...]) -> None:
        """Let the kernel have exactly these links."""
        present = {link.ifindex for link in links}
        for ifindex in set(self._kernel.links) - present:
            self._kernel.delete_link(ifindex)
        for ifindex in present - set(self._kernel.links):
            self._kernel.add_link(ifindex)
        self._links = links

    def _flow(self, snapshot: Snapshot) -> None:
        """Let what was recorded since the last tick flow through the limits that stand."""
        position = {link.name: i for i, link in enumerate(snapshot.links)}
        for name, flow in self._flows.items():
            htb = self._kernel.links[flow.ifindex].htb if flow.ifindex in self._kernel.links else None
            i = position.get(name)
            if htb is None or i is None or CLASS_LIMIT not in htb.classes:
                continue
            delta_ns, delta_bytes = snapshot.t_ns - flow.t_ns, snapshot.tx_bytes[i] - flow.tx_bytes
            if delta_ns == 0 and delta_bytes >= 0:
                continue
            flow.t_ns, flow.tx_bytes = snapshot.t_ns, snapshot.tx_bytes[i]
            if delta_ns < 0 or delta_bytes < 0:
                continue
            sent = min(delta_bytes, htb.classes[CLASS_LIMIT].rate_bps * delta_ns // (8 * 10**9))
            over = delta_bytes - sent
            self._run.over_bytes[name] = self._run.over_bytes.get(name, 0) + over
            htb.stats = _through(htb.stats, sent, over)

    def limit_bps(self, name: str) -> int | None:
        flow = self._flows.get(name)
        htb = self._kernel.links[flow.ifindex].htb if flow is not None and flow.ifindex in self._kernel.links else None
        return htb.classes[CLASS_LIMIT].rate_bps if htb is not None and CLASS_LIMIT in htb.classes else None

    # ---- coarse samples ----

    def _policy(self, name: str) -> Policy | None:
        """The policy that judges the link now; None where none does or an override exempts it."""
        applies = effective(self._rules, name, self._now.wall_ns)
        return None if applies is None or applies.exempt else replace(applies.policy, detect=applies.detect)

    def _finely(self, snapshot: Snapshot) -> Snapshot:
        """Only the links whose samples are fine enough for the rule."""
        if self._fine is None or self._fine[0] is not snapshot.links:
            kept = [i for i, link in enumerate(snapshot.links) if not self._too_coarse(link.name)]
            self._fine = (snapshot.links, kept, tuple(snapshot.links[i] for i in kept))
        _, kept, links = self._fine
        return Snapshot(snapshot.t_ns, links, [snapshot.tx_bytes[i] for i in kept])

    def _too_coarse(self, name: str) -> bool:
        applies = effective(self._rules, name, self._now.wall_ns)
        spacing_ns = self._lane.resolution_ns.get(name, 0)
        return applies is not None and spacing_ns > applies.detect.slice_ns

    def _look(self, snapshot: Snapshot) -> list[Event]:
        """What can at least be called possible where samples are too far apart for the rule."""
        if self._lane.resolution_ns:
            return self._possible(snapshot, [i for i, link in enumerate(snapshot.links) if self._too_coarse(link.name)])
        if len(self._stamps) < LOOK_AHEAD:
            self._stamps.append(snapshot.t_ns)
            self._early.append(snapshot)
            return [] if len(self._stamps) < LOOK_AHEAD else self._decide()
        return self._possible(snapshot, range(len(snapshot.links))) if self._coarse else []

    def _decide(self) -> list[Event]:
        """Look, once the lane's first ticks are in, whether they are so far apart that every sample opens an epoch."""
        early, self._early = self._early, []
        gaps = [q - p for p, q in pairwise(self._stamps)]
        if not gaps or median_low(gaps) <= self._rules.config.sampling.max_gap_ns:
            return []
        return [event for snapshot in early for event in self._possible(snapshot, range(len(snapshot.links)))]

    def close(self) -> Sequence[Event]:
        return self._decide()

    def _possible(self, snapshot: Snapshot, positions: Iterable[int]) -> list[Event]:
        events: list[Event] = []
        for i in positions:
            name = snapshot.links[i].name
            policy = self._policy(name)
            if policy is None:
                continue
            meter = self._coarse.get(name)
            if meter is None:
                meter = self._coarse[name] = self._meter(name, policy)
            mean_bps = meter.add(snapshot.t_ns, snapshot.tx_bytes[i])
            if mean_bps is not None:
                detail = {"mean_bps": mean_bps}
                events.append(Event(EventKind.POSSIBLE, snapshot.t_ns, name, Reason.SUSTAINED, policy.name, detail))
        return events

    def _meter(self, name: str, policy: Policy) -> Possible:
        gaps = [q - p for p, q in pairwise(self._stamps)]
        spacing_ns = self._lane.resolution_ns.get(name) or median_low(gaps)
        limit, of = (
            ("slice", policy.detect.slice_ns) if self._lane.resolution_ns else ("max_gap", self._rules.config.sampling.max_gap_ns)
        )
        self._run.notes.append(
            f"{name}: its samples are {spacing_ns / 1e9:g} s apart, further than the {limit} of {of / 1e9:g} s: "
            "what happened between them was not seen, so an excess can be called possible at most"
        )
        return Possible(policy.detect, spacing_ns, scraped=bool(self._lane.resolution_ns))


def _counter(snapshot: Snapshot, name: str) -> int:
    return next(c for link, c in zip(snapshot.links, snapshot.tx_bytes, strict=True) if link.name == name)


def _through(stats: ClassStats, sent: int, over: int) -> ClassStats:
    return ClassStats(
        sent_bytes=stats.sent_bytes + sent,
        sent_packets=stats.sent_packets - (-sent // PACKET_BYTES),
        drops=stats.drops - (-over // PACKET_BYTES),
        overlimits=stats.overlimits + (over > 0),
        backlog_bytes=0,
    )
