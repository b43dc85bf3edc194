"""The controller: everything that the loop's thread does with the engine, without the loop.

It samples, follows events, reads what they name, settles the kernel and shows the outcome. It starts no thread, reads no
clock and opens nothing: all that it touches is handed in, so that tests drive this very code on a kernel in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from limiterd.core import engine, status
from limiterd.core.errors import EnvironmentFault
from limiterd.core.faults import REMEDY, Backoff
from limiterd.core.model import Event, FaultReason, Journal, Link, Now, Rules, Snapshot
from limiterd.core.ports import SamplerPort, TcPort
from limiterd.core.state import Inputs, Output, State
from limiterd.core.status import RATE_SPAN_NS, DaemonInfo, StatusSnapshot
from limiterd.daemon.executor import Executor
from limiterd.daemon.health import Health
from limiterd.kernel.events import Events

_NAMED: Final = 5
_DENIED: Final = ("EPERM", "EACCES")


class EventsPort(Protocol):
    """Tells which links other hands have touched."""

    def drain(self) -> Events:
        """Everything that waits, without blocking. Raises EnvironmentFault; the next drain tries again."""


class KernelPort(Protocol):
    """The kernel as the controller sees it; a reload may replace the sampler."""

    @property
    def sampler(self) -> SamplerPort:
        """Where snapshots come from."""

    def look(self, ifindexes: Collection[int]) -> Callable[[], Mapping[int, Link]]:
        """Ask for links; what is returned takes the answers in."""

    @property
    def tc(self) -> TcPort:
        """Where limits are read and made."""

    @property
    def events(self) -> EventsPort:
        """Where outside changes show."""


class JournalPort(Protocol):
    """Keeps decisions over a restart."""

    def save(self, journal: Journal) -> object:
        """Hand over the newest journal; returns at once."""

    def save_now(self, journal: Journal) -> None:
        """Return when it is durable. Raises EnvironmentFault where it is not."""


Attempt = Snapshot | EnvironmentFault | None
"""What sampling led to: see SamplerPort.sample."""


def attempt(kernel: KernelPort) -> Attempt:
    """Sample; a fault is an outcome like the others, for the controller to count and to tell."""
    try:
        return kernel.sampler.sample()
    except EnvironmentFault as fault:
        return fault


class StandbyPort(Protocol):
    """Entered around whatever waits for the kernel's tc: samples in the meantime."""

    def __enter__(self) -> object:
        """The controller waits from now on."""

    def __exit__(self, *_: object) -> None:
        """The sampler is the controller's again."""

    def taken(self) -> Sequence[Attempt]:
        """What the controller has not had yet, in its order."""


class Nobody:
    """No standby sampler: for a kernel that never makes one wait."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def taken(self) -> Sequence[Attempt]:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class Ports:
    """What the controller is given. None of these may block for long."""

    kernel: KernelPort
    journal: JournalPort
    problems: Health
    clock: Callable[[], Now]
    tell: Callable[[Sequence[Event]], None]
    want_evidence: Callable[[Collection[str]], None]
    renewed: Callable[[], None]
    """The events' descriptor may be another one now."""
    daemon_info: Callable[[], DaemonInfo]
    standby: StandbyPort = field(default_factory=Nobody)


class Controller:
    """Owns the engine's state. Every method but `newest` belongs to one thread."""

    def __init__(self, rules: Rules, journal: Journal, ports: Ports) -> None:
        self.rules = rules
        self.state: State = engine.start(rules, journal, ports.kernel.tc.abilities(), ports.clock())
        self.executor = Executor(
            ports.kernel.tc, ports.clock, ports.tell, ports.journal.save, ports.journal.save_now, ports.standby, ports.kernel.look
        )
        self._ports = ports
        self._recent: deque[Snapshot] = deque()
        self._touched: set[int] = set()
        self._resync = True
        self._unread_backoff = Backoff()
        self._frame: StatusSnapshot | None = None
        self._frame_is_old = True

    # ---- what comes from the kernel ----

    def tick(self) -> None:
        """One interval is over."""
        if self._resync:  # what the events could not tell is asked for again
            self.take_events()
        self.take_sample()

    def take_sample(self) -> None:
        """Sample, read what was touched, and step; what was sampled while the kernel was waited for comes first."""
        while taken := self._ports.standby.taken():
            for missed in taken:
                self._settle_missed(self._received(missed))
        snapshot = self._received(attempt(self._ports.kernel))
        inputs = Inputs(self._ports.clock(), snapshot=snapshot, tick=True)
        if self._resync and snapshot is not None:  # without the links nobody knows whose roots they are
            inputs = self.executor.with_roots(inputs)
            self._resync = inputs.roots is None
        elif self._touched:
            inputs = replace(self.executor.read_now(frozenset(self._touched)), snapshot=snapshot, tick=True)
            self._touched.clear()
        if snapshot is not None:
            self._remember(snapshot)
        self.reconcile(inputs)

    def _settle_missed(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            self._remember(snapshot)
            self.reconcile(Inputs(self._ports.clock(), snapshot=snapshot))

    def _received(self, outcome: Attempt) -> Snapshot | None:
        if isinstance(outcome, EnvironmentFault):
            self.executor.errors[outcome.operation or "sample", outcome.errno_name or "none"] += 1
            why = FaultReason.PERMISSION if outcome.errno_name in _DENIED else FaultReason.NO_ANSWER
            self._ports.problems.note("sampling", f"links cannot be sampled: {outcome}", why)
            return None
        self._ports.problems.note("sampling", None)
        return outcome

    def _remember(self, snapshot: Snapshot) -> None:
        recent = self._recent
        recent.append(snapshot)
        while len(recent) > 2 and recent[1].t_ns <= snapshot.t_ns - RATE_SPAN_NS:
            recent.popleft()

    def take_events(self) -> None:
        """See what changed outside; links with a limit are looked at immediately, the others at the next tick."""
        try:
            found = self._ports.kernel.events.drain()
        except EnvironmentFault as fault:
            self.executor.errors["events", fault.errno_name or "none"] += 1
            self._ports.problems.note("events", f"outside changes are found by polling alone: {fault}")
            self._resync = True
            self._ports.renewed()
            return
        self._ports.problems.note("events", None)
        if found.resync:
            self._ports.renewed()
        self._resync |= found.resync
        self._touched |= found.tc_ifindexes
        held = {limit_state.link.ifindex for limit_state in self.state.limit_states.values()} & self._touched
        if held:
            self._touched -= held
            self.reconcile(self.executor.read_now(frozenset(held)))

    def reconcile(self, inputs: Inputs) -> None:
        """Step until nothing is left to do now."""
        self.executor.reconcile(self.state, self.rules, inputs)
        self._mind_unread()
        self.forget_frame()
        self._ports.want_evidence(self.state.limit_states.keys() or self.state.detector.pending().keys())

    def _mind_unread(self) -> None:
        """What could not be read is a fault; links without a limit are asked for again here, limited ones by the engine."""
        executor, links = self.executor, self.state.by_index
        executor.unread &= links.keys()
        if not (executor.unread or (self._resync and executor.silence)):
            self._ports.problems.note("tc", None)
            self._unread_backoff.reset()
            return
        names = sorted(links[ifindex].name for ifindex in executor.unread)
        what = f"{', '.join(names[:_NAMED])}{' …' if len(names) > _NAMED else ''}" if names else "the links"
        text = (
            f"what stands on {what} cannot be read ({executor.silence}): until it can, no limit is adopted, repaired or lifted "
            f"there; {REMEDY[FaultReason.NO_ANSWER]}"
        )
        self._ports.problems.note("tc", text, FaultReason.NO_ANSWER)
        now_ns = self._ports.clock().boot_ns
        if now_ns >= self._unread_backoff.retry_at_ns:
            held = {limit_state.link.ifindex for limit_state in self.state.limit_states.values()}
            self._touched |= executor.unread - held
            self._unread_backoff.failed(now_ns)

    # ---- what people ask for ----

    def command(self, act: Callable[[State, Now], Output]) -> Output:
        """Let an operator's command change the state, and settle the kernel at once; returns what was decided.

        It is about the links that there are now: one that was made anew since the last tick is not the one that was known.
        """
        self.take_sample()
        output = act(self.state, self._ports.clock())
        self.executor.publish(self.state, output)
        self.reconcile(Inputs(self._ports.clock()))
        return output

    def take_rules(self, rules: Rules) -> None:
        """Follow other rules from now on."""
        self.rules = rules
        self.reconcile(Inputs(self._ports.clock()))

    def lift_all(self) -> None:
        """Begin to lift every limit because the daemon stops; `look_again` goes on with it."""
        self.executor.publish(self.state, engine.release_for_exit(self.state, self._ports.clock()))
        self.look_again()

    def look_again(self) -> None:
        """Read every link that has a limit, or is being freed of one, and settle."""
        self.reconcile(
            self.executor.read_now(frozenset(limit_state.link.ifindex for limit_state in self.state.limit_states.values()))
        )

    # ---- what shows ----

    def newest(self) -> Snapshot | None:
        """The latest snapshot; from any thread."""
        return self._recent[-1] if self._recent else None

    def frame(self) -> StatusSnapshot:
        """One moment of the engine; the same one until something changes."""
        if self._frame is None or self._frame_is_old:
            self._frame_is_old = False
            oldest = self._recent[0] if self._recent else None
            self._frame = status.frame(self.state, self._ports.clock(), self.newest(), oldest, self._ports.daemon_info())
        return self._frame

    def last_frame(self) -> StatusSnapshot | None:
        """The frame that was taken last, however old it is; from any thread."""
        return self._frame

    def forget_frame(self) -> None:
        """What the next frame shows is different; from any thread."""
        self._frame_is_old = True
