"""The daemon: every adapter wired to the one controller, and what the outside asks of it.

Threads: the loop owns the controller; control workers, the metrics server, the event log and the evidence sampler only ever
hand functions to the loop or read what it published. What may block on a disk is done by whoever asked for it.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from limiterd import __version__
from limiterd.background import Background
from limiterd.config import load as config
from limiterd.config.override_files import Store
from limiterd.core import status
from limiterd.core.errors import EXIT_USAGE, ConfigError, EnvironmentFault, PeerError
from limiterd.core.histogram import Buckets
from limiterd.core.model import Config, Event, FaultReason, Now, OnExit, PolicyMode, Rules, StateConfig, Status
from limiterd.core.state import Output, State
from limiterd.core.status import DaemonInfo, StatusSnapshot
from limiterd.daemon import denials
from limiterd.daemon import summary as words
from limiterd.daemon.approvals import Approvals
from limiterd.daemon.clock_steps import ClockSteps
from limiterd.daemon.controller import Controller, Ports
from limiterd.daemon.denials import Denials
from limiterd.daemon.durability import Durability
from limiterd.daemon.event_log import EventLog, tell
from limiterd.daemon.health import Health
from limiterd.daemon.kernel_io import open_kernel
from limiterd.daemon.loop import Loop, clocks
from limiterd.daemon.loss_warnings import LossWarnings
from limiterd.daemon.reload import Reloading
from limiterd.daemon.standby_sampler import StandbySampler
from limiterd.daemon.verbs import VERBS
from limiterd.kernel.instance_mark import InstanceMark
from limiterd.kernel.netlink import boottime_ns
from limiterd.kernel.top_talkers import EvidenceSampler
from limiterd.log import Log
from limiterd.serve.control import ControlServer
from limiterd.serve.io_thread import IoThread
from limiterd.serve.metrics import MetricsServer
from limiterd.serve.protocol import Answer, Call
from limiterd.store.audit import AuditTrail
from limiterd.store.journal import JournalStore
from limiterd.store.last_firings import LastFirings
from limiterd.store.request_store import RequestStore
from limiterd.systemd import Notifier
from limiterd.trusted_files import untrusted_directory

T = TypeVar("T")

_HOUSEKEEPING_NS: Final = 1_000_000_000
_STALLED_NS: Final = 3_000_000_000
_LOOK_NS: Final = 1_000_000_000
"""How long people wait for the loop before they are shown its last frame."""
_SOME: Final = 10
"""So many within a minute are worth a warning, where a few are everyday."""
_NO_LOG_FILE: Final = "{} is ignored: the log goes to standard error, there is no file to reopen; SIGHUP reloads"
_SWITCH_S: Final = 0.001
"""How long a thread that reads or renders may keep the interpreter from the loop at a stretch (Python's own 5 ms add up)."""
_EXIT_NS: Final = 1_200_000_000
_SETTLE_PAUSE_S: Final = 0.02


class Daemon:
    """The daemon, assembled. Raises EnvironmentFault where it cannot be (a second instance, no netlink)."""

    def __init__(self, config_path: str, loaded: config.Loaded, log: Log) -> None:
        self.log = log
        settings = loaded.rules.config
        state_directory = Path(settings.state.directory)
        self.problems = Health(time.time_ns, self._tell_problem)
        self.notifier = Notifier()
        self.mark = InstanceMark(settings.control.socket, (state_directory, StateConfig().directory))
        self.mark.take()
        self.refusals = AuditTrail(state_directory / denials.DIRECTORY, name="refusals", bounds=denials.BOUNDS)
        self.denials = Denials(partial(tell, log, self.refusals))
        self.serving = IoThread()
        self.control = ControlServer(settings.control, self._answer, self.serving, denied=self.denials.note)
        self.control.lock()
        self.audit = AuditTrail(state_directory, name="audit")
        self.last_firings = LastFirings(state_directory, self.audit)
        self.journal = JournalStore(state_directory)
        self.kernel = open_kernel(settings.sampling.source, settings.sampling.interval_ns)
        self.evidence = EvidenceSampler(self.kernel.sockets, boottime_ns)
        self.event_log = EventLog(log, self.audit, self._evidence_of)
        self.durability = Durability(log, self.audit, self.journal, self.event_log)
        self.loop = Loop(settings.sampling.interval_ns, self._tick)
        self.approvals = Approvals(self, RequestStore(state_directory), Store(config.store_directory(settings)))
        self.standby = StandbySampler(self.kernel, self.loop.pace, boottime_ns)
        self.tick_duration = Buckets()
        self.started_wall_ns = time.time_ns()
        self._housekeeping_ns = 0
        self._clock_steps = ClockSteps(clocks())
        self._reloader = Background("reload", self._reload_on_demand)
        self._event_descriptor = self.kernel.events.fileno()
        kept, troubles = self.journal.load()
        self.controller = Controller(
            loaded.rules,
            kept,
            Ports(
                kernel=self.kernel,
                journal=self.journal,
                problems=self.problems,
                clock=clocks,
                tell=self.event_log.tell,
                want_evidence=self.evidence.want,
                renewed=self._follow_event_socket,
                daemon_info=self._daemon_info,
                standby=self.standby,
            ),
        )
        self.loss_warnings = LossWarnings(self.problems, lambda text: log.warning("lost", text=text))
        self.metrics = MetricsServer(settings.metrics, self.status, self.alive, self.serving, newest=self.controller.newest)
        self.reloading = Reloading(config_path, loaded, self.controller, self, log, self.audit, self.problems, clocks)
        for topic, damage in (("journal", troubles), ("requests", self.approvals.load())):
            text = f"{'; '.join(damage)} (shown until the next start)"
            self.problems.note(f"{topic} at the start", text if damage else None)

    @property
    def rules(self) -> Rules:
        """The rules in force."""
        return self.controller.rules

    @property
    def state(self) -> State:
        """The engine's state; the loop's own."""
        return self.controller.state

    # ---- life ----

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, self.loop.stop)
        self.loop.on_signal(signal.SIGHUP, self._reloader.poke)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            self.loop.on_signal(number, partial(self.log.info, "ignored", text=_NO_LOG_FILE.format(number.name)))
        threading.excepthook = partial(self._thread_died, threading.excepthook)
        self.event_log.start()
        self.approvals.tell_missed_ends()
        started = f"limiterd {__version__} started with the configuration {self.rules.sha256[:12]}"
        self.audit.append("start", "", {"text": started, "version": __version__, "sha256": self.rules.sha256})
        self.controller.take_sample()
        self.controller.frame()
        self.metrics.start()
        self.control.start()
        self.loop.watch(self._event_descriptor, self.controller.take_events)
        self.notifier.ready(self.summary())
        self.log.info("started", text=words.inventory(self.state, self.rules, self.kernel.sampler.name), version=__version__)
        sys.setswitchinterval(_SWITCH_S)
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
        self.serving.close()
        self.evidence.close()
        self.event_log.close(0.3)
        self.denials.reconcile(everything=True)
        standing = f"limiterd stopped; {self.summary()}"
        self.audit.append("stop", "", {"text": standing})
        self.log.info("stopped", text=standing)
        saved = self.audit.close(0.3)
        self.refusals.close(0.1)
        self.journal.save(self.state.journal())
        kept = self.journal.close(0.3)
        self._tell_unsaved(trail=saved, journal=kept)
        self.loop.close()
        self.mark.close()
        self.standby.close()
        self.kernel.close()
        self.notifier.close()

    def _tell_unsaved(self, *, trail: bool, journal: bool) -> None:
        """The log's last lines, where the disk did not take all: the trail is then shorter than what happened."""
        if not trail:
            why = self.audit.problem or "the disk does not answer"
            text = f"{self.audit.queued} entries of the audit trail are lost with this process: {why}"
            self.log.error("unsaved", audit_head=self.audit.head, text=text)
        if not journal:
            why = self.journal.problem or "the disk does not answer"
            self.log.error("unsaved", text=f"the newest decisions are lost with this process: {why}")

    def lift_all_for_exit(self) -> None:
        """Lift every limit and wait, for a bounded time, until the kernel shows it."""
        until_ns = boottime_ns() + _EXIT_NS
        self.controller.lift_all()
        while self.state.limit_states and boottime_ns() < until_ns:
            time.sleep(_SETTLE_PAUSE_S)
            self.controller.look_again()

    # ---- the tick ----

    def _tick(self) -> None:
        late_ns = self.loop.pace.late_ns
        if late_ns >= _STALLED_NS:
            text = f"the loop stood still for {late_ns / 1e9:.1f} s; time that was not sampled meanwhile is no evidence"
            self.log.warning("stalled", text=text)
        self.controller.tick()
        self.mark.answer()
        now_ns = boottime_ns()
        self.notifier.tick(now_ns)
        self.tick_duration.observe((now_ns - self.loop.pace.last_ns) / 1e9)
        if now_ns >= self._housekeeping_ns:
            self._housekeeping_ns = now_ns + _HOUSEKEEPING_NS
            self._keep_house()

    def _follow_event_socket(self) -> None:
        """After an overrun the events come through a fresh socket, which mostly has the number of the closed one."""
        if self._event_descriptor >= 0:
            self.loop.unwatch(self._event_descriptor)
        self._event_descriptor = self.kernel.events.fileno()
        if self._event_descriptor >= 0:
            self.loop.watch(self._event_descriptor, self.controller.take_events)

    def _keep_house(self) -> None:
        """Once a second: what the service manager shows, the adapters' own troubles, and a frame should the loop stall."""
        self.notifier.status(self.summary())
        if (step := self._clock_steps.look(clocks())) is not None:
            self.log.warning("clock_step", text=step)
        enforces = any(policy.mode is PolicyMode.ENFORCE for policy in self.rules.config.policies)
        hindered = FaultReason.PERMISSION if enforces else FaultReason.OTHER  # who only observes needs no tc
        self.problems.note("netlink", words.refused(self.kernel.refusal), hindered)
        self.denials.reconcile()
        self.mark.retry()
        for topic, trouble in (
            ("instance mark", self.mark.problem),
            ("psutil", words.fallback(self.kernel.refusal, self.kernel.sampler.why)),
            ("metrics", self.metrics.problem),
            ("journal", self.journal.problem),
            ("state directory", untrusted_directory(self.rules.config.state.directory)),
            ("audit", self.audit.problem),
            ("refusals", self.refusals.problem),
            ("control", self.control.problem),
            ("systemd", self.notifier.problem),
            ("evidence", self.evidence.problem or None),
        ):
            self.problems.note(topic, trouble)
        self.loss_warnings.follow(boottime_ns(), self._lost())
        self.controller.frame()

    def _lost(self) -> tuple[tuple[str, int, int, str], ...]:
        busy = self.control.counts.get(("none", "error"), 0)
        dropped, overrun = self.kernel.sampler.dropped, self.kernel.events.resyncs
        return (
            ("event_log", self.event_log.lost, 1, "events are not logged: the log or the audit trail is too slow"),
            ("log", self.log.dropped, 1, "log lines are lost: standard error is read too slowly"),
            ("events lost", overrun, 1, "outside changes come too fast to be read one by one"),
            ("samples", dropped, _SOME, "samples are dropped: reading the counters takes too long"),
            ("clients", busy, _SOME, "control clients are told `busy`: too many at once"),
        )

    def summary(self) -> str:
        """One line for systemctl status."""
        return words.summary(self.state, self.kernel.sampler.name, reload_failed=self.reloading.config_error is not None)

    # ---- status ----

    def _daemon_info(self) -> DaemonInfo:
        pace = self.loop.pace
        counts: Counter[tuple[str, str]] = Counter(self.control.counts)
        return DaemonInfo(
            version=__version__,
            started_wall_ns=self.started_wall_ns,
            config_error=self.reloading.config_error,
            config_loaded_wall_ns=self.reloading.loaded_wall_ns,
            requests_pending=self.approvals.requests.pending,
            source=self.kernel.sampler.name,
            last_tick_age_ns=self._tick_age_ns(),
            missed_ticks=pace.missed,
            netlink_resyncs=self.kernel.events.resyncs,
            audit_errors=self.audit.errors + self.refusals.errors,
            dropped_snapshots=self.kernel.sampler.dropped,
            kernel_errors=dict(self.controller.executor.errors),
            control_requests=counts,
            histograms={
                "tick_duration_seconds": self.tick_duration.view(),
                "tick_lateness_seconds": pace.lateness.view(),
                "enforcement_seconds": self.controller.executor.enforcement.view(),
            },
            faults=self.problems.all(),
        )

    def status(self) -> Status:
        """The status now; while the loop is stalled the last one, at most a second older than the stall, with a fault."""
        return status.build(self._look())

    def _look(self) -> StatusSnapshot:
        last = self.controller.last_frame()
        if last is None or self.alive():
            try:
                return self.loop.call(self.controller.frame, _LOOK_NS / 1e9)
            except EnvironmentFault:
                if last is None or self._tick_age_ns() < _LOOK_NS:
                    raise
        now, age_ns = clocks(), self._tick_age_ns()
        stall = () if self.alive() else (status.stall(now, age_ns),)
        return status.aged(last, now, age_ns, (*stall, *self.problems.all()))

    def _tick_age_ns(self) -> int:
        last_ns = self.loop.pace.last_ns
        return max(0, boottime_ns() - last_ns) if last_ns else 0

    def alive(self) -> bool:
        """Whether the loop has ticked lately, or is about to for the first time."""
        return self._tick_age_ns() < _STALLED_NS + self.loop.pace.interval_ns

    def name_of(self, interface: str) -> str:
        """The name of the link that has this altname; what is no altname comes back as it is."""
        return self.state.canonical.get(interface, interface)

    def trail(self, interface: str) -> tuple[tuple[int, int], ...]:
        """The detector's samples of a link; none while the loop is stalled."""
        if not self.alive():
            return ()
        with contextlib.suppress(EnvironmentFault):
            return self.loop.call(lambda: self.state.detector.trail(interface), _LOOK_NS / 1e9)
        return ()

    def last_firing(self, interface: str) -> Mapping[str, object] | None:
        """The figures, samples and evidence of the link's last firing, from the audit trail."""
        found = self.last_firings.of(interface)
        return None if found is None else {"at": found.wall, "kind": found.kind, **found.fields}

    def tell(self, kind: str, interface: str, text: str, fields: Mapping[str, object], level: str = "info") -> None:
        """Put what people did into the audit trail and the log; any thread may."""
        tell(self.log, self.audit, kind, interface, text, fields, level)

    # ---- commands ----

    def command(self, act: Callable[[State, Now], Output]) -> Output:
        """Let an operator's command change the state, and settle the kernel at once; returns what was decided.

        Raises NotDurableError where it took effect and the disk does not confirm it in time.
        """
        with self.durability.command():
            return self.loop.call(lambda: self.controller.command(act))

    def _answer(self, call: Call) -> Answer:
        act = VERBS.get(call.verb)
        if act is None:
            raise PeerError(f"{call.verb}: there is no such verb", exit_code=EXIT_USAGE)
        found = act(self, call.args, call.peer)
        return found if isinstance(found, Answer) else Answer(ok=True, data=found)

    # ---- reload ----

    def _reload_on_demand(self) -> bool:
        """SIGHUP: a storm of them is one reload after the other until none is new; reload tells its failures."""
        with contextlib.suppress(ConfigError, EnvironmentFault):
            self.reloading.reload("SIGHUP")
        return True

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the loop."""
        return self.loop.call(function)

    def reload_begins(self) -> None:
        """Tell the service manager."""
        self.notifier.reloading()

    def reload_ends(self) -> None:
        """Tell the service manager."""
        self.notifier.ready(self.summary())

    def reserve(self, config: Config) -> Callable[[], None]:
        """Let the control socket follow, whose groups the machine may not know."""
        before = self.rules.config.control
        if config.control == before:
            return lambda: None
        self.control.reconfigure(config.control)
        return lambda: self.control.reconfigure(before)

    def adapt(self, before: Config, after: Config) -> None:
        """Let sampling, log and metrics follow."""
        if after.sampling.source != before.sampling.source:
            self.kernel.resample(after.sampling.source, after.sampling.interval_ns)
        self.log.configure(after.log.level, after.log.format)
        if after.metrics != before.metrics:
            self.metrics.reconfigure(after.metrics)
        if after.sampling.interval_ns != before.sampling.interval_ns:
            self.kernel.sampler.set_interval(after.sampling.interval_ns)
            self.loop.pace.change(after.sampling.interval_ns, boottime_ns())

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
