"""One policy against a recording: the daemon's own step() and executor, over the kernel in memory.

Rule: the samples are fed as they stand; what the policy would have done to them is what the engine then tells. A limit
acts as a fluid: what was recorded goes through up to the limit's rate, and there is demand while more was recorded. The
recorded counters themselves stay as they are: a link under a limit is not judged, and a release begins a fresh epoch.

Two clocks move with the recording: the engine's runs on where the recording's steps back (a reboot), the wall's is
anchored at started_at. Where that is unknown overrides are left out. Ticks are held back while the first of a source do not
tell yet how far apart its samples are; they are played in the recording's order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median_low
from typing import Final, NamedTuple

from limiterd.core.auto_release import LONGEST_SLICE_NS
from limiterd.core.engine import start
from limiterd.core.limit_state import Stage, calm_phase
from limiterd.core.model import (
    CLASS_LIMIT,
    ClassStats,
    Event,
    EventKind,
    Journal,
    KernelAbilities,
    Link,
    Now,
    Phase,
    PolicyMode,
    Reason,
    ReleaseMode,
    Rules,
    Snapshot,
)
from limiterd.core.policy import Effective, effective, policy_for
from limiterd.core.state import Inputs
from limiterd.daemon.executor import Executor
from limiterd.recording import Source
from limiterd.replay.lazy_counter import LOOK_EVERY, LazyCounter, advice
from limiterd.replay.possible import Possible
from limiterd.sim.fake_kernel import FakeKernel

REPORTED: Final = frozenset(
    {
        EventKind.LIMIT,
        EventKind.WOULD_LIMIT,
        EventKind.NOTED,
        EventKind.LIMITED,
        EventKind.RATE_CHANGED,
        EventKind.RELEASED,
        EventKind.POSSIBLE,
        EventKind.EPOCH,
    }
)
LOOK_AHEAD: Final = 16
"""Ticks of a source that tell how far apart its samples are."""

HELD_MAX: Final = 4_096
"""Ticks that are held back at most: a source with fewer than LOOK_AHEAD is judged by what it has."""

PACKET_BYTES: Final = 1_514
NAMES_IN_A_NOTE: Final = 4
_BEGINS: Final = frozenset({EventKind.LIMITED, EventKind.ADOPTED, EventKind.RESTORED})
_ENDS: Final = frozenset({EventKind.RELEASED, EventKind.LINK_GONE})


class Told(NamedTuple):
    """An event at the recording's own stamp, and the ns that have gone by since its first tick: they never run back."""

    at_ns: int
    event: Event


class Look(NamedTuple):
    """What is true of a watched link at a tick; limit_bps None: no limit stands."""

    phase: Phase
    threshold_bps: int
    limit_bps: int | None


Watcher = Callable[[int, Snapshot, Mapping[str, Look | None]], None]
"""Who is shown every tick: how many ns in, its samples, and each watched link that is there; once None for one that is gone."""


@dataclass(slots=True)
class Flow:
    """A limited link's last recorded sample."""

    ifindex: int
    t_ns: int
    tx_bytes: int


class Run:
    """One set of rules over all sources of a recording. watched are the links that a policy applies to, and its name."""

    def __init__(self, rules: Rules, *, started_wall_ns: int | None, qualified: bool, watcher: Watcher | None = None) -> None:
        if started_wall_ns is None:
            rules = replace(rules, overrides=())
        self.rules = rules
        self.by_device = by_device(rules) if qualified else rules
        self.watched: dict[str, str] = {}
        self.over_bytes: dict[str, int] = {}
        self.watcher = watcher
        self.first_ns: int | None = None
        self._notes: dict[str, list[str]] = {}
        self._started_wall_ns = started_wall_ns or 0
        self._sources: dict[str, _SourceRun] = {}
        self._held: deque[tuple[_SourceRun, Snapshot]] = deque()

    def feed(self, source: Source, snapshot: Snapshot) -> Sequence[Told]:
        """Take in one tick; the events it led to that a replay reports, and those of ticks that were held back."""
        run = self._sources.get(source.key)
        if run is None:
            if self.first_ns is None:
                self.first_ns = snapshot.t_ns
            wall_ns = self._started_wall_ns + snapshot.t_ns - self.first_ns
            run = self._sources[source.key] = _SourceRun(self, source, Now(snapshot.t_ns, max(0, wall_ns)))
        if not run.decided:
            run.look(snapshot)
        elif not self._held:
            return run.tick(snapshot)
        self._held.append((run, snapshot))
        return self._play(HELD_MAX)

    def close(self) -> Sequence[Told]:
        """The events of ticks that were still held back at the end of the recording."""
        return self._play(0)

    def _play(self, most: int) -> Sequence[Told]:
        """Play what was held back, as far as its sources are decided, and all but so many ticks in any case."""
        held, told = self._held, list[Told]()
        while held and (held[0][0].decided or len(held) > most):
            run, snapshot = held.popleft()
            run.decide()
            told += run.tick(snapshot)
        return told

    @property
    def end_ns(self) -> int:
        """How long the recording is, by the clock that never runs back."""
        return max((run.at_ns for run in self._sources.values()), default=0)

    def note(self, name: str, what: str) -> None:
        """Something about a link that people should know."""
        self._notes.setdefault(what, []).append(name)

    def notes(self) -> Iterable[str]:
        """Sentences for people about what could not be judged, or not as usual."""
        for run in self._sources.values():
            run.note_lazy_counters()
        for what, names in self._notes.items():
            more = len(names) - NAMES_IN_A_NOTE
            yield f"{', '.join(names[:NAMES_IN_A_NOTE])}{f' and {more} more' if more > 0 else ''}: {what}"


def by_device(rules: Rules) -> Rules:
    """The same rules for links that are called instance/device: globs without a slash speak of the device."""

    def qualified(globs: Iterable[str]) -> tuple[str, ...]:
        return tuple(g if "/" in g else f"!*/{g[1:]}" if g.startswith("!") else f"*/{g}" for g in globs)

    policies = tuple(replace(p, interfaces=qualified(p.interfaces)) for p in rules.config.policies)
    overrides = tuple(replace(o, interfaces=qualified(o.interfaces)) for o in rules.overrides)
    return replace(rules, config=replace(rules.config, policies=policies), overrides=overrides)


class _SourceRun:
    """The engine, the kernel and the clocks of one source."""

    def __init__(self, run: Run, source: Source, now: Now) -> None:
        self._run = run
        self._source = source
        self._now = now
        self._last_ns = now.boot_ns
        self._told: list[Event] = []
        self._flows: dict[str, Flow] = {}
        self._links: tuple[Link, ...] = ()
        self._paces: tuple[tuple[Link, ...], list[tuple[int, LazyCounter]]] = ((), [])
        self._pace_of: dict[str, LazyCounter] = {}
        self._followed: list[tuple[int, LazyCounter]] = []
        self._ticks = 0
        self._judged: tuple[tuple[Link, ...], tuple[Link, ...]] = ((), ())
        self._split: tuple[tuple[Link, ...], list[int], list[int], tuple[Link, ...]] = ((), [], [], ())
        self._meters: dict[str, Possible | None] = {}
        self._places: tuple[tuple[Link, ...], Mapping[str, int]] = ((), {})
        self._spacing_ns: Mapping[str, int] = source.resolution_ns
        self._usual_ns = 0
        self._early: list[Snapshot] | None = None if source.resolution_ns else []
        self._rules = self._rules_of(source)
        self._kernel = FakeKernel(abilities=KernelAbilities(fq_codel=True), now_ns=lambda: self._now.boot_ns)
        self._state = start(self._rules, Journal(), self._kernel.abilities(), now)
        self._state.recorded = True
        self._executor = Executor(
            tc=self._kernel,
            clock=lambda: self._now,
            tell=self._told.extend,
            save=lambda _: None,
            save_now=lambda _: None,
        )

    def _rules_of(self, source: Source) -> Rules:
        """The rules as they hold in this source: its host, and repeats of scraped counters dropped."""
        rules = self._run.by_device if source.key else self._run.rules
        spacing_ns = max(source.resolution_ns.values(), default=0)
        rules = _at_interval(rules, min(source.resolution_ns.values(), default=0))
        sampling = rules.config.sampling
        if sampling.counter_refresh_ns < spacing_ns < sampling.max_gap_ns:
            rules = replace(rules, config=replace(rules.config, sampling=replace(sampling, counter_refresh_ns=spacing_ns)))
        return replace(rules, host=source.host or rules.host)

    @property
    def at_ns(self) -> int:
        """The ns since the recording's first tick."""
        return self._now.boot_ns - (self._run.first_ns or 0)

    # ---- ticks ----

    @property
    def decided(self) -> bool:
        """Whether it is known how far apart the samples are."""
        return self._early is None

    def look(self, snapshot: Snapshot) -> None:
        """Take one of the first ticks into account, before it is played."""
        if self._early is not None:
            self._early.append(snapshot)
            if len(self._early) == LOOK_AHEAD:
                self.decide()

    def decide(self) -> None:
        """Settle how far apart the samples are, by the ticks looked at so far."""
        if self._early is not None:
            self._spacing_ns = _spacings(self._early)
            self._usual_ns = min(self._spacing_ns.values(), default=0)
            self._rules = _at_interval(self._rules, self._usual_ns)
            self._early = None

    def tick(self, snapshot: Snapshot) -> Sequence[Told]:
        t_ns = snapshot.t_ns
        ahead_ns = max(0, t_ns - self._last_ns)
        self._last_ns = t_ns
        self._now = Now(self._now.boot_ns + ahead_ns, self._now.wall_ns + ahead_ns)
        if snapshot.links is not self._split[0]:
            self._sort(snapshot.links)
        _, coarse, kept, fine = self._split
        possible = self._possible(snapshot, coarse) if coarse else ()
        samples = snapshot
        if not self._source.resolution_ns:
            self._watch_counters(snapshot)
        else:
            samples = Snapshot(t_ns, fine, [snapshot.tx_bytes[i] for i in kept])
        present = self._present(samples)
        before: tuple[Link, ...] = ()
        if present is not self._links:
            before = self._plug(present)
        if self._flows:
            self._flow(samples)
        told = self._told
        told.clear()
        self._executor.reconcile(self._state, self._rules, Inputs(self._now, samples, present))
        if self._run.watcher is not None:
            there = snapshot.links if self._source.links is None else self._source.links
            self._run.watcher(self.at_ns, snapshot, dict.fromkeys(link.name for link in before) | self._looks(there))
        if not told and not possible:
            return ()
        for event in told:
            if event.kind in _BEGINS and (link := self._state.by_name.get(event.interface)) is not None:
                self._flows[link.name] = Flow(link.ifindex, t_ns, _counter(samples, link.name))
            elif event.kind in _ENDS:
                self._flows.pop(event.interface, None)
        kept_events = [replace(event, t_ns=t_ns) for event in told if event.kind in REPORTED]
        return [Told(self.at_ns, event) for event in (*kept_events, *possible)]

    def _present(self, samples: Snapshot) -> tuple[Link, ...]:
        """The links that are there at this tick, of scraped ones those that the engine judges."""
        links = self._source.links
        if links is None:
            return samples.links
        if links is not self._judged[0]:
            fine = tuple(link for link in links if self._meter_of(link.name) is None) if self._source.resolution_ns else links
            self._judged = (links, links if len(fine) == len(links) else fine)
        return self._judged[1]

    def _plug(self, links: tuple[Link, ...]) -> tuple[Link, ...]:
        """Let the kernel have exactly these links; those that it had before."""
        present = {link.ifindex for link in links}
        for ifindex in set(self._kernel.links) - present:
            self._kernel.delete_link(ifindex)
        for ifindex in present - set(self._kernel.links):
            self._kernel.add_link(ifindex)
        before, self._links = self._links, links
        return before

    def _flow(self, snapshot: Snapshot) -> None:
        """Let what was recorded since the last tick flow through the limits that stand."""
        if snapshot.links is not self._places[0]:
            self._places = (snapshot.links, {link.name: i for i, link in enumerate(snapshot.links)})
        position = self._places[1]
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

    # ---- looking ----

    def _looks(self, links: Iterable[Link]) -> dict[str, Look | None]:
        pending = self._state.detector.pending()
        governed = ((link.name, self._applies(link.name)) for link in links)
        return {name: self._look(name, applies, pending) for name, applies in governed if applies is not None}

    def _applies(self, name: str) -> Effective | None:
        """What governs the link now; of links whose samples are too coarse the engine knows nothing."""
        return self._state.effective.get(name) or effective(self._rules, name, self._now.wall_ns)

    def _look(self, name: str, applies: Effective, pending: Mapping[str, int]) -> Look:
        case = self._state.limit_states.get(name)
        phase_of = calm_phase if case is None else case.phase
        standing = case.tree_standing if case is not None and case.stage is Stage.STANDING else None
        phase = phase_of(pending=name in pending, exempt=applies.exempt)
        return Look(phase, applies.detect.threshold_bps, None if standing is None else standing.rate_bps)

    # ---- lazy counters ----

    def _watch_counters(self, snapshot: Snapshot) -> None:
        """Follow how often the counters of watched links move under load."""
        t_ns, counters = snapshot.t_ns, snapshot.tx_bytes
        if snapshot.links is not self._paces[0]:
            self._paces = (snapshot.links, list(self._paces_of(snapshot)))
            self._followed.clear()
            self._ticks = 0
        self._ticks += 1
        if not self._ticks % LOOK_EVERY:
            unsettled = [(i, pace) for i, pace in self._paces[1] if not pace.settled]
            self._paces = (snapshot.links, unsettled)
            self._followed = [(i, pace) for i, pace in unsettled if pace.look(t_ns, counters[i])]
        for i, pace in self._followed:
            pace.add(t_ns, counters[i])

    def _paces_of(self, snapshot: Snapshot) -> Iterator[tuple[int, LazyCounter]]:
        for i, link in enumerate(snapshot.links):
            policy = policy_for(self._rules, link.name)
            if policy is not None:
                first = LazyCounter(snapshot.t_ns, snapshot.tx_bytes[i], policy.detect.threshold_bps // 2)
                yield i, self._pace_of.setdefault(link.name, first)

    def note_lazy_counters(self) -> None:
        """Name the links whose counters moved much more seldom than they were sampled."""
        sampling = self._rules.config.sampling
        for name, pace in self._pace_of.items():
            every_ns, spacing_ns = pace.moves_every_ns(), self._spacing_ns.get(name, self._usual_ns)
            if every_ns is not None and every_ns >= 2 * spacing_ns > 0 and every_ns > sampling.counter_refresh_ns:
                self._run.note(name, advice(every_ns, sampling.max_gap_ns))
        self._pace_of.clear()

    # ---- coarse samples ----

    def _sort(self, links: tuple[Link, ...]) -> None:
        """Tell apart the links whose samples allow for nothing better than `possible`, and the others."""
        coarse = [i for i, link in enumerate(links) if self._meter_of(link.name) is not None]
        kept = sorted(set(range(len(links))) - set(coarse))
        self._split = (links, coarse, kept, tuple(links[i] for i in kept))

    def _meter_of(self, name: str) -> Possible | None:
        """The meter of a link whose samples are too coarse for the rule."""
        if name not in self._meters:
            self._meters[name] = self._new_meter(name)
        return self._meters[name]

    def _new_meter(self, name: str) -> Possible | None:
        policy = policy_for(self._rules, name)
        if policy is None:
            return None
        self._run.watched[name] = policy.name
        scraped = bool(self._source.resolution_ns)
        spacing_ns = self._spacing_ns.get(name, self._usual_ns)
        slice_ns, max_gap_ns = policy.detect.slice_ns, self._rules.config.sampling.max_gap_ns
        apart = f"its samples are {spacing_ns / 1e9:g} s apart, further than the"
        if spacing_ns > (slice_ns if scraped else max_gap_ns):
            beyond = f"slice of {slice_ns / 1e9:g} s" if scraped else f"max_gap of {max_gap_ns / 1e9:g} s"
            unseen = "what happened between them was not observed, so an excess is reported as possible at most"
            self._run.note(name, f"{apart} {beyond}: {unseen}")
            return Possible(policy.detect, spacing_ns, scraped=scraped)
        if spacing_ns > LONGEST_SLICE_NS and policy.mode is PolicyMode.ENFORCE and policy.release.mode is ReleaseMode.AUTO:
            longest = f"{LONGEST_SLICE_NS / 1e9:g} s that quiet can be judged by"
            self._run.note(name, f"{apart} {longest}: no limit ends by itself here (release: auto)")
        if spacing_ns > slice_ns:
            self._run.note(name, f"{apart} slice of {slice_ns / 1e9:g} s: each slice of the rule is then a single interval")
        return None

    def _possible(self, snapshot: Snapshot, positions: Iterable[int]) -> list[Event]:
        """What can at least be called possible where samples are too far apart for the rule."""
        events: list[Event] = []
        for i in positions:
            name = snapshot.links[i].name
            applies, meter = effective(self._rules, name, self._now.wall_ns), self._meter_of(name)
            if applies is None or applies.exempt or meter is None:
                continue
            meter.judge_by(applies.detect)
            mean_bps = meter.add(snapshot.t_ns, snapshot.tx_bytes[i])
            if mean_bps is not None:
                detail = {"mean_bps": mean_bps}
                events.append(Event(EventKind.POSSIBLE, snapshot.t_ns, name, Reason.SUSTAINED, applies.policy.name, detail))
        return events


def _at_interval(rules: Rules, interval_ns: int) -> Rules:
    """The rules for samples so far apart (0: as configured): limits are read at ticks, as in a daemon of that interval."""
    if not interval_ns:
        return rules
    return replace(rules, config=replace(rules.config, sampling=replace(rules.config.sampling, interval_ns=interval_ns)))


def _spacings(snapshots: Sequence[Snapshot]) -> dict[str, int]:
    """The usual distance of each link's samples, where there are two of them."""
    stamps: dict[str, list[int]] = {}
    for snapshot in snapshots:
        for link in snapshot.links:
            stamps.setdefault(link.name, []).append(snapshot.t_ns)
    return {name: median_low([q - p for p, q in pairwise(times)]) for name, times in stamps.items() if len(times) > 1}


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
