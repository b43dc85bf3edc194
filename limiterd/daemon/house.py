"""The house: every adapter wired to the one engine, and what the outside asks of it.

Threads: the loop owns the engine's state; control workers, the metrics server, the chronicle and the evidence sampler only
ever hand functions to the loop or read what it published. What may block on a disk is done by whoever asked for it.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from limiterd import __version__, config, jsonsafe
from limiterd.audit import AuditTrail
from limiterd.background import Background
from limiterd.control import ControlServer
from limiterd.core import engine, status
from limiterd.core.diff import describe, needs_restart
from limiterd.core.errors import EXIT_USAGE, ConfigError, EnvironmentFault, PeerError, Problem
from limiterd.core.histogram import Buckets
from limiterd.core.model import Event, Now, OnExit, Reason, Rules, Snapshot, Status
from limiterd.core.policy import Effective, literal_names
from limiterd.core.state import Inputs, Output, State
from limiterd.core.status import RATE_SPAN_NS, Frame, Surroundings
from limiterd.core.units import format_duration, format_rate
from limiterd.daemon.chronicle import Chronicle
from limiterd.daemon.hands import Hands
from limiterd.daemon.kernelside import open_kernel
from limiterd.daemon.loop import Loop, boot_ns, hostname
from limiterd.daemon.petitions import Petitions
from limiterd.daemon.problems import Problems
from limiterd.daemon.verbs import VERBS, by
from limiterd.evidence import EvidenceSampler
from limiterd.journal import JournalStore
from limiterd.log import Log
from limiterd.metrics import MetricsServer
from limiterd.overrides import Store
from limiterd.protocol import Answer, Call
from limiterd.requests import RequestStore
from limiterd.systemd import Notifier

_HOUSEKEEPING_NS: Final = 1_000_000_000
_STALLED_NS: Final = 3_000_000_000
_EXIT_NS: Final = 1_200_000_000
_SETTLE_PAUSE_S: Final = 0.02


def clocks() -> Now:
    """Both clocks, now."""
    return Now(boot_ns(), time.time_ns())


class House:
    """The daemon, assembled. Raises EnvironmentFault where it cannot be (a second instance, no netlink)."""

    def __init__(self, config_path: str, loaded: config.Loaded, log: Log) -> None:
        self.config_path = config_path
        self.log = log
        self.rules = loaded.rules
        settings = loaded.rules.config
        state_directory = Path(settings.state_directory)
        self.problems = Problems(time.time_ns, self._tell_problem)
        self.notifier = Notifier()
        self.control = ControlServer(settings.control, self._answer, denied=self._denied)
        self.control.lock()
        self.audit = AuditTrail(state_directory)
        self.journal = JournalStore(state_directory)
        self.kernel = open_kernel(settings.sampling.source, settings.sampling.interval_ns)
        self.evidence = EvidenceSampler(self.kernel.sockets, boot_ns)
        self.chronicle = Chronicle(log, self.audit, self._evidence_of)
        self.hands = Hands(self.kernel.tc, clocks, self.chronicle.tell, self.journal.save, self.journal.save_now)
        self.metrics = MetricsServer(settings.metrics, self.status_or_last, self.alive, newest=self._newest)
        self.loop = Loop(settings.sampling.interval_ns, self._tick)
        self.petitions = Petitions(self, RequestStore(state_directory), Store(config.store_directory(settings)))
        self.tick_duration = Buckets()
        self.started_wall_ns = time.time_ns()
        self.config_error: str | None = None
        self.config_loaded_wall_ns = self.started_wall_ns
        self._recent: deque[Snapshot] = deque()
        self._touched: set[int] = set()
        self._resync = True
        self._frame: Frame | None = None
        self._housekeeping_ns = 0
        self.reload_lock = threading.RLock()
        self._reloader = Background("reload", self._reload_on_demand)
        self._event_descriptor = self.kernel.events.fileno()
        self._notes: frozenset[str] = frozenset()
        self._note_damage(loaded)
        kept, troubles = self.journal.load()
        for topic, text in (("journal", "; ".join(troubles)), ("requests", "; ".join(self.petitions.load()))):
            self.problems.note(f"{topic} at the start", text or None)
        self.state: State = engine.start(loaded.rules, kept, self.kernel.tc.abilities(), clocks())

    # ---- life ----

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, self.loop.stop)
        self.loop.on_signal(signal.SIGHUP, self._reloader.poke)
        threading.excepthook = partial(self._thread_died, threading.excepthook)
        self.chronicle.start()
        self.petitions.tell_missed_ends()
        started = f"limiterd {__version__} started with the configuration {self.rules.sha256[:12]}"
        self.audit.append("start", "", {"text": started, "version": __version__, "sha256": self.rules.sha256})
        self._take_sample()
        self.metrics.start()
        self.control.start()
        self.loop.watch(self._event_descriptor, self._on_events)
        self.notifier.ready(self.summary())
        self.log.info("started", text=self._inventory(), version=__version__)
        gc.collect()
        gc.freeze()  # what stands now stands for long: walking it again would take up to 80 ms in the middle of a tick
        asked = False
        try:
            self.loop.run()
            asked = True
        finally:
            self._leave(asked=asked)

    def _leave(self, *, asked: bool) -> None:
        """Let everything be written, within two seconds; who was asked to stop lifts limits first, if so configured."""
        self.notifier.stopping()
        if asked and self.rules.config.on_exit is OnExit.REMOVE:
            self.lift_all_for_exit()
        self.control.close()
        self.metrics.close()
        self.evidence.close()
        self.chronicle.close(0.3)
        standing = f"limiterd stopped; {self.summary()}"
        self.audit.append("stop", "", {"text": standing})
        self.log.info("stopped", text=standing)
        self.audit.close(0.3)
        self.journal.save(self.state.journal())
        self.journal.close(0.3)
        self.loop.close()
        self.kernel.close()
        self.notifier.close()

    def lift_all_for_exit(self) -> None:
        """Lift every limit and wait, for a bounded time, until the kernel shows it."""
        until_ns = boot_ns() + _EXIT_NS
        output: Output = engine.release_for_exit(self.state, clocks())
        self.hands.publish(self.state, output)
        while self.state.cases and boot_ns() < until_ns:
            links = frozenset(case.link.ifindex for case in self.state.cases.values())
            self.hands.settle(self.state, self.rules, self.hands.read_now(links))
            if self.state.cases:
                time.sleep(_SETTLE_PAUSE_S)

    # ---- the tick ----

    def _tick(self) -> None:
        if self._resync:  # what the events could not tell is asked for again
            self._on_events()
        self._take_sample()
        now_ns = boot_ns()
        self.tick_duration.observe((now_ns - self.loop.pace.last_ns) / 1e9)
        if now_ns >= self._housekeeping_ns:
            self._housekeeping_ns = now_ns + _HOUSEKEEPING_NS
            self._keep_house()

    def _take_sample(self) -> None:
        snapshot = self._sampled()
        inputs = Inputs(clocks(), snapshot=snapshot, tick=True)
        if self._resync and snapshot is not None:  # without the links nobody knows whose roots they are
            inputs = self.hands.with_roots(inputs)
            self._resync = inputs.roots is None
        elif self._touched:
            inputs = replace(self.hands.read_now(frozenset(self._touched)), snapshot=snapshot, tick=True)
            self._touched &= inputs.unanswered
        if snapshot is not None:
            self._remember(snapshot)
        self._settle(inputs)

    def _sampled(self) -> Snapshot | None:
        try:
            snapshot = self.kernel.sampler.sample()
        except EnvironmentFault as fault:
            self.hands.errors[fault.operation or "sample", fault.errno_name or "none"] += 1
            self.problems.note("sampling", f"links cannot be sampled: {fault}")
            return None
        self.problems.note("sampling", None)
        return snapshot

    def _remember(self, snapshot: Snapshot) -> None:
        recent = self._recent
        recent.append(snapshot)
        while len(recent) > 2 and recent[1].t_ns <= snapshot.t_ns - RATE_SPAN_NS:
            recent.popleft()

    def _newest(self) -> Snapshot | None:
        """The latest snapshot; from any thread."""
        return self._recent[-1] if self._recent else None

    def _settle(self, inputs: Inputs) -> None:
        self.hands.settle(self.state, self.rules, inputs)
        self._frame = None
        self.evidence.want(self.state.cases.keys() or self.state.detector.pending().keys())

    def _on_events(self) -> None:
        try:
            found = self.kernel.events.drain()
        except EnvironmentFault as fault:
            self.hands.errors["events", fault.errno_name or "none"] += 1
            self.problems.note("events", f"outside changes are found by polling alone: {fault}")
            self._resync = True
            self._follow_event_socket()
            return
        self.problems.note("events", None)
        if found.resync:
            self._follow_event_socket()
        self._resync |= found.resync
        self._touched |= found.tc_ifindexes
        held = {case.link.ifindex for case in self.state.cases.values()} & self._touched
        if held:
            self._touched -= held
            self._settle(self.hands.read_now(frozenset(held)))

    def _follow_event_socket(self) -> None:
        """After an overrun the events come through a fresh socket, which mostly has the number of the closed one."""
        if self._event_descriptor >= 0:
            self.loop.unwatch(self._event_descriptor)
        self._event_descriptor = self.kernel.events.fileno()
        if self._event_descriptor >= 0:
            self.loop.watch(self._event_descriptor, self._on_events)

    def _keep_house(self) -> None:
        """Once a second: the service manager, and the adapters' own troubles."""
        self.notifier.watchdog()
        self.notifier.status(self.summary())
        for topic, trouble in (
            ("netlink", self._netlink_trouble()),
            ("metrics", self.metrics.problem),
            ("journal", self.journal.problem),
            ("audit", self.audit.problem),
            ("control", self.control.problem),
            ("systemd", self.notifier.problem),
            ("evidence", self.evidence.problem or None),
        ):
            self.problems.note(topic, trouble)
        lost = self.chronicle.lost
        self.problems.note(
            "chronicle", f"{lost} events were not logged: the log or the audit trail is too slow" if lost else None
        )

    def _netlink_trouble(self) -> str | None:
        """Why samples come from psutil although netlink was to be tried, or why tc cannot be reached at all."""
        if self.kernel.refusal:
            return f"netlink is refused, so links are only observed, by psutil: {self.kernel.refusal}"
        why = self.kernel.sampler.why
        return f"samples come from psutil: {why}" if why else None

    def summary(self) -> str:
        """One line for systemctl status."""
        cases = tuple(self.state.cases.values())
        limited = [case.link.name for case in cases if case.stage == "standing"]
        faults = [case.link.name for case in cases if case.obstacle is not None]
        parts = [
            f"watching {len(self.state.effective)} links by {self.kernel.sampler.name}",
            f"{len(limited)} limited" + _some(limited),
        ]
        if faults:
            parts.append(f"{len(faults)} in fault{_some(faults)}")
        if self.state.paused:
            parts.append("paused")
        if self.config_error:
            parts.append("the last reload failed")
        return ", ".join(parts)

    def _inventory(self) -> str:
        """What is watched and how, for the first line of the log."""
        names = sorted(self.state.effective)
        watched = (
            f"watching {', '.join(names[:20])}{' …' if len(names) > 20 else ''}" if names else "no link matches a policy yet"
        )
        rules = "; ".join(
            f"policy {p.name} ({p.mode}): {format_rate(p.detect.threshold_bps)} for more than "
            f"{format_duration(p.detect.window_ns)} → {format_rate(p.limit.rate_bps)}"
            for p in self.rules.config.policies
        )
        absent = [name for name, _ in literal_names(self.rules) if name not in self.state.by_name]
        missing = f"; absent: {', '.join(absent)}" if absent else ""
        return f"{watched} by {self.kernel.sampler.name} every {format_duration(self.loop.pace.interval_ns)}{missing}; {rules}"

    # ---- status ----

    def frame(self) -> Frame:
        """One moment of the engine, taken in the loop; the same one until something changes."""
        if self._frame is None:
            newest = self._recent[-1] if self._recent else None
            oldest = self._recent[0] if self._recent else None
            self._frame = status.frame(self.state, clocks(), newest, oldest, self._surroundings())
        return self._frame

    def _surroundings(self) -> Surroundings:
        pace = self.loop.pace
        counts: Counter[tuple[str, str]] = Counter(self.control.counts)
        return Surroundings(
            version=__version__,
            started_wall_ns=self.started_wall_ns,
            config_error=self.config_error,
            config_loaded_wall_ns=self.config_loaded_wall_ns,
            requests_pending=self.petitions.requests.pending,
            source=self.kernel.sampler.name,
            last_tick_age_ns=max(0, boot_ns() - pace.last_ns) if pace.last_ns else 0,
            missed_ticks=pace.missed,
            netlink_resyncs=self.kernel.events.resyncs,
            audit_errors=self.audit.errors,
            dropped_snapshots=self.kernel.sampler.dropped,
            kernel_errors=dict(self.hands.errors),
            control_requests=counts,
            histograms={
                "tick_duration_seconds": self.tick_duration.view(),
                "tick_lateness_seconds": pace.lateness.view(),
                "enforcement_seconds": self.hands.enforcement.view(),
            },
            faults=self.problems.all(),
        )

    def status(self) -> Status:
        """The status now. Raises EnvironmentFault when the loop does not answer."""
        return status.build(self.loop.call(self.frame))

    def status_or_last(self) -> Status:
        """The status now, or the last one while the loop is stalled (alive() tells)."""
        try:
            return self.status()
        except EnvironmentFault:
            if self._frame is None:
                raise
            return status.build(self._frame)

    def alive(self) -> bool:
        """Whether the loop has ticked lately."""
        pace = self.loop.pace
        return boot_ns() - pace.last_ns < _STALLED_NS + pace.interval_ns

    def inside(self, interface: str) -> tuple[Effective, tuple[tuple[int, int], ...]]:
        """What applies to a watched link, and its detector's trail. Raises PeerError where it is not there."""

        def look() -> tuple[Effective, tuple[tuple[int, int], ...]]:
            applies = self.state.effective.get(interface)
            if applies is None:
                raise PeerError(f"{interface}: there is no such link now")
            return applies, self.state.detector.trail(interface)

        return self.loop.call(look)

    def last_firing(self, interface: str) -> Mapping[str, object] | None:
        """The figures, samples and evidence of the link's last firing, from the audit trail."""
        entries = self.audit.read(interface, {"limit", "would_limit", "noted"}, limit=20)
        found = next((entry for entry in entries if entry.fields.get("reason") != Reason.OPERATOR), None)
        return None if found is None else {"at": found.wall, "kind": found.kind, **found.fields}

    def history(self, **wanted: object) -> object:
        """Entries of the audit trail, newest first, as JSON."""
        entries = self.audit.read(**wanted)  # type: ignore[arg-type]  # the verb has checked each of them
        return {"entries": [jsonsafe.encode(entry) for entry in entries], "head": self.audit.head}

    def verify(self, head: str | None = None) -> object:
        """Whether the audit trail's chain is whole, and holds the head that was noted elsewhere, if one is given."""
        return jsonsafe.encode(self.audit.verify(head))

    def tell(self, kind: str, interface: str, text: str, fields: Mapping[str, object], level: str = "info") -> None:
        """Put what people did into the audit trail and the log; any thread may."""
        self.audit.append(kind, interface, {"text": text, **fields})
        shown = {"interface": interface, "text": text, **fields}
        self.log.emit(level, kind, {k: v for k, v in shown.items() if isinstance(v, str | int) and v != ""})

    # ---- commands ----

    def command(self, act: Callable[[State, Now], Output]) -> None:
        """Let an operator's command change the state, and settle the kernel at once."""

        def work() -> None:
            self.hands.publish(self.state, act(self.state, clocks()))
            self._settle(Inputs(clocks()))

        self.loop.call(work)

    def _answer(self, call: Call) -> Answer:
        act = VERBS.get(call.verb)
        if act is None:
            raise PeerError(f"{call.verb}: there is no such verb", exit_code=EXIT_USAGE)
        return Answer(ok=True, data=act(self, call.args, call.peer))

    def _denied(self, call: Call) -> None:
        """Note who asked for what they may not do; the link's name is theirs to choose, and cut where it is none."""
        named = call.args.get("interface")
        interface = named[:15] if isinstance(named, str) and named.isprintable() else ""
        text = f"{by(call.peer)} was refused {call.verb}"
        self.tell("refused", interface, text, {"by": by(call.peer), "verb": call.verb}, "warning")

    # ---- reload ----

    def load(self) -> config.Loaded:
        """Read and validate everything as a reload would; waits for the disk.

        Raises ConfigError, also for what needs a restart.
        """
        loaded = config.load_all(self.config_path, host=hostname())
        refused = needs_restart(self.rules, loaded.rules)
        if refused:
            raise ConfigError([Problem(self.config_path, 1, 1, *text.split(": ", 1)) for text in refused])
        return loaded

    def reload(self, who: str) -> tuple[str, ...]:
        """Read, validate and diff everything, then swap it in; the lines that say what changed.

        Raises ConfigError, or EnvironmentFault where the machine refuses what the files want (a group that does not exist):
        nothing changed then.
        """
        with self.reload_lock:
            self.loop.call(self.notifier.reloading)  # the notifier is the loop's
            try:
                loaded = self.load()
                changes = describe(self.rules, loaded.rules, time.time_ns())
                self._take_over(loaded.rules)
            except (ConfigError, EnvironmentFault) as error:
                self._reload_failed(who, str(error))
                raise
            finally:
                self.loop.call(lambda: self.notifier.ready(self.summary()))
            self._note_damage(loaded)
            told = f"{who} reloaded: " + ("; ".join(changes) or "nothing changed")
            self.audit.append("reload", "", {"text": told, "by": who, "sha256": loaded.rules.sha256, "changes": list(changes)})
            for line in changes or ("nothing changed",):
                self.log.info("reload", text=line, by=who)
            return changes

    def _reload_failed(self, who: str, error: str) -> None:
        self.config_error = error
        self._frame = None
        text = f"the configuration stays as it was: {'; '.join(error.splitlines())}"
        self.audit.append("reload_failed", "", {"text": text, "by": who, "error": error})
        self.log.error("reload_failed", text=text, by=who)

    def _take_over(self, rules: Rules) -> None:
        """Swap the rules in. What may be refused or may block comes first, and is taken back where the rest is refused."""
        before = self.rules.config.control
        changed = rules.config.control != before
        if changed:
            self.control.reconfigure(rules.config.control)
        try:
            self.loop.call(lambda: self._swap(rules))
        except EnvironmentFault:
            if changed:
                self.control.reconfigure(before)
            raise

    def _swap(self, rules: Rules) -> None:
        before, after = self.rules.config, rules.config
        if after.sampling.source != before.sampling.source:
            self.kernel.resample(after.sampling.source, after.sampling.interval_ns)
        self.rules = rules
        self.config_error = None
        self.config_loaded_wall_ns = time.time_ns()
        self.log.configure(after.log.level, after.log.format)
        if after.metrics != before.metrics:
            self.metrics.reconfigure(after.metrics)
        if after.sampling.interval_ns != before.sampling.interval_ns:
            self.kernel.sampler.set_interval(after.sampling.interval_ns)
            self.loop.pace.change(after.sampling.interval_ns, boot_ns())
        self._settle(Inputs(clocks()))

    def _reload_on_demand(self) -> bool:
        """SIGHUP: a storm of them is one reload after the other until none is new; reload tells its failures."""
        with contextlib.suppress(ConfigError, EnvironmentFault):
            self.reload("SIGHUP")
        return True

    def _note_damage(self, loaded: config.Loaded) -> None:
        text = "; ".join(str(problem) for problem in loaded.damaged)
        self.problems.note("overrides", f"own override records cannot be read: {text}" if text else None)
        for note in loaded.notes:
            if note not in self._notes:
                self.log.info("note", text=note)
        self._notes = frozenset(loaded.notes)

    # ---- telling ----

    def _evidence_of(self, event: Event) -> Mapping[str, object] | None:
        samples, link = event.detail.get("samples"), self.state.by_name.get(event.interface)
        if link is None or not isinstance(samples, list) or len(samples) < 2:
            return None
        return self.evidence.at_firing(link, samples[0][0], samples[-1][0], samples[-1][1] - samples[0][1])

    def _thread_died(self, logged: Callable[[threading.ExceptHookArgs], object], args: threading.ExceptHookArgs) -> None:
        """A defect in a thread ends it, not the daemon; the next one of its kind starts with the next thing to do."""
        logged(args)
        name = args.thread.name.rstrip("0123456789-_") if args.thread else "?"
        self.problems.note(
            f"thread {name}", f"thread {name} died of {args.exc_value!r}; report this defect, and restart when convenient"
        )

    def _tell_problem(self, topic: str, text: str | None) -> None:
        if text is None:
            self.log.info("recovered", text=f"{topic} works again", topic=topic)
        else:
            self.log.error("degraded", text=text, topic=topic)


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else ""
