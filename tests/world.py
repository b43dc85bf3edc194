"""The daemon's keeper, engine and executor on a kernel in memory, with a disk and two clocks in hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from limiterd.core.commands import limit, release
from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import (
    MS,
    SECOND,
    Action,
    ActionResult,
    Config,
    Detect,
    Event,
    EventKind,
    Journal,
    Limit,
    Link,
    LinkView,
    Now,
    Override,
    Policy,
    PolicyMode,
    Release,
    ReleaseMode,
    Rules,
    Snapshot,
    TcActual,
)
from limiterd.core.state import Output, State
from limiterd.core.status import DaemonInfo, StatusSnapshot, build
from limiterd.daemon.controller import Controller, Ports
from limiterd.daemon.executor import Executor
from limiterd.daemon.health import Health
from limiterd.kernel.events import Events
from limiterd.sim.fake_kernel import FakeKernel
from limiterd.store.crc_store import records_of, text_of
from limiterd.store.journal import from_records, to_records

MBIT = 10**6
DETECT = Detect(threshold_bps=100 * MBIT, window_ns=2 * SECOND, slice_ns=SECOND // 2)
LIMIT = Limit(rate_bps=20 * MBIT)
AUTO = Release(
    mode=ReleaseMode.AUTO,
    min_hold_ns=5 * SECOND,
    max_hold_ns=60 * SECOND,
    quiet_for_ns=3 * SECOND,
    forget_after_ns=1000 * SECOND,
)
POLICY = Policy(name="fair-use", interfaces=("eth*",), detect=DETECT, limit=LIMIT)
START = Now(1000 * SECOND, 1_800_000_000 * SECOND)
TICK_NS = 100 * MS
PACKET_BYTES = 1_514


def rules_of(*policies: Policy, overrides: Sequence[Override] = (), **settings: object) -> Rules:
    """Rules with these policies (default: POLICY)."""
    config = Config(policies=policies or (POLICY,))
    return Rules(replace(config, **settings), tuple(overrides), "host", "0" * 64)  # type: ignore[arg-type]  # fields by name


class Died(BaseException):
    """The daemon's process ended in the middle of its work."""


class Kernel(FakeKernel):
    """A kernel that can be watched step by step, and under which the daemon may die. A hand's own steps are not the daemon's."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        super().__init__(now_ns=now_ns)
        self.lives: int | None = None
        """How many more of its steps the daemon survives; None: all."""
        self.before_step: Callable[[Action], None] = lambda _: None
        self.after_step: Callable[[Action, ActionResult], None] = lambda *_: None
        self._by_hand = False

    def by_hand(self, actions: Sequence[Action]) -> list[ActionResult]:
        """What somebody else does, who gets answers even when the daemon gets none."""
        silent, self.silent, self._by_hand = self.silent, False, True
        try:
            return [self._step(action) for action in actions]
        finally:
            self.silent, self._by_hand = silent, False

    def shows(self, ifindex: int) -> TcActual:
        """What stands on a link, told to the test even when the daemon gets no answer."""
        silent, self.silent = self.silent, False
        try:
            return self.read([ifindex])[ifindex]
        finally:
            self.silent = silent

    def carries(self, ifindex: int) -> bool:
        """Whether a packet that nobody classifies leaves, or finds room in an empty queue."""
        htb = self.links[ifindex].htb
        if htb is None or htb.passes_by():
            return True
        leaf = htb.leaves.get(htb.default_classid)
        classid, slowest_bps = htb.default_classid, htb.classes[htb.default_classid].ceil_bps
        while (parent := htb.classes[classid].parent) in htb.classes:
            classid, slowest_bps = parent, min(slowest_bps, htb.classes[parent].ceil_bps)
        return slowest_bps > 0 and (leaf is None or not leaf.limit_bytes or leaf.limit_bytes >= PACKET_BYTES)

    def _step(self, action: Action) -> ActionResult:
        if self._by_hand:
            return super()._step(action)
        if self.lives is not None:
            if self.lives == 0:
                raise Died
            self.lives -= 1
        self.before_step(action)
        result = super()._step(action)
        self.after_step(action, result)
        return result


@dataclass(slots=True)
class Disk:
    """What holds the journal, as the bytes of its file; full: nothing more is written; slow: not at once."""

    data: bytes = b""
    full: bool = False
    slow: bool = False
    waiting: Journal | None = None
    boot: str = "one"
    """The machine's name for this boot."""

    def save(self, journal: Journal) -> None:
        """Write soon: at once, unless the disk is slow or full."""
        self.waiting = journal
        if not self.slow:
            self.catch_up()

    def save_now(self, journal: Journal) -> None:
        """Write before anything else happens."""
        self.waiting = journal
        if self.full:
            raise EnvironmentFault("no space left on device", operation="write", errno_name="ENOSPC")
        self.catch_up()

    def catch_up(self) -> None:
        """Write what waits, if there is room."""
        if not self.full and self.waiting is not None:
            self.data = text_of("limiterd_journal", 1, to_records(self.waiting, self.boot)).encode()
            self.waiting = None

    def load(self) -> Journal:
        """What a start finds."""
        records, lost = records_of(self.data) if self.data else ([], "")
        journal, problems = from_records(tuple(records), self.boot)
        assert not lost
        assert not problems or all("rebooted" in problem for problem in problems)
        return journal


@dataclass(slots=True)
class Side:
    """The kernel's side of a world, as the controller knows it."""

    world: World
    name: str = "memory"

    @property
    def sampler(self) -> Side:
        """Where snapshots come from."""
        return self

    @property
    def events(self) -> Side:
        """Where outside changes show."""
        return self

    @property
    def tc(self) -> Kernel:
        """Where limits are."""
        return self.world.kernel

    def look(self, ifindexes: Collection[int]) -> Callable[[], Mapping[int, Link]]:
        """Ask the world."""
        return lambda: self.world.look(ifindexes)

    def sample(self) -> Snapshot | None:
        """Ask the world."""
        return self.world.sample()

    def drain(self) -> Events:
        """Ask the world."""
        return self.world.drain()

    def close(self) -> None:
        """Nothing to release."""


@dataclass(slots=True)
class World:
    """One machine. disk is what the journal last held; events are all that were ever told."""

    rules: Rules = field(default_factory=rules_of)
    now: Now = START
    events: list[Event] = field(default_factory=list)
    store: Disk = field(default_factory=Disk)
    links: tuple[Link, ...] = ()
    gso_max_bytes: int = 0
    """What a link shows that is looked at, whatever it was when it came; 0: the same."""
    heard: set[int] = field(default_factory=set)
    """Links whose tc events wait to be read."""
    kernel: Kernel = field(init=False)
    controller: Controller = field(init=False)
    problems: Health = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = Kernel(lambda: self.now.boot_ns)
        self.add(2, "eth0")
        self.boot()

    # ---- life ----

    def boot(self) -> None:
        """Start the daemon on what the disk holds."""
        self.problems = Health(lambda: self.now.wall_ns, lambda *_: None)
        self.store.waiting = None
        self.heard.clear()
        self.controller = Controller(self.rules, self.store.load(), self.ports())
        self.controller.take_sample()

    def ports(self) -> Ports:
        """What the controller is given."""
        return Ports(
            kernel=Side(self),
            journal=self.store,
            problems=self.problems,
            clock=lambda: self.now,
            tell=self.tell,
            want_evidence=lambda _: None,
            renewed=lambda: None,
            daemon_info=self.daemon_info,
        )

    def tell(self, events: Sequence[Event]) -> None:
        """Hear what the daemon tells."""
        self.events.extend(events)

    def daemon_info(self) -> DaemonInfo:
        """What status shows beside the engine."""
        return DaemonInfo("0", 0, faults=self.problems.all())

    # ---- the kernel, as the controller sees it ----

    def sample(self) -> Snapshot | None:
        """All counters now."""
        return self.snapshot()

    def drain(self) -> Events:
        """What was heard of."""
        heard, self.heard = frozenset(self.heard), set()
        return Events(tc_ifindexes=heard)

    # ---- what is inside ----

    @property
    def state(self) -> State:
        """The engine's state."""
        return self.controller.state

    @property
    def executor(self) -> Executor:
        """The executor."""
        return self.controller.executor

    @property
    def disk(self) -> Journal:
        """What the journal holds."""
        return self.store.load()

    @disk.setter
    def disk(self, journal: Journal) -> None:
        self.store.save_now(journal)

    @property
    def disk_full(self) -> bool:
        """Whether nothing more can be written."""
        return self.store.full

    @disk_full.setter
    def disk_full(self, full: bool) -> None:
        self.store.full = full

    # ---- links ----

    def add(self, ifindex: int, name: str, *, mac: str = "", incarnation: int = 0) -> Link:
        """A link appears."""
        link = Link(ifindex, name, mac or f"02:00:00:00:00:{ifindex:02x}", incarnation=incarnation)
        self.kernel.add_link(ifindex)
        self.links = (*self.links, link)
        return link

    def remove(self, name: str) -> Link:
        """A link goes."""
        link = self.link(name)
        self.links = tuple(other for other in self.links if other is not link)
        self.kernel.delete_link(link.ifindex)
        return link

    def rename(self, name: str, new: str) -> None:
        """A link gets another name."""
        self.links = tuple(replace(link, name=new) if link.name == name else link for link in self.links)

    def link(self, name: str = "eth0") -> Link:
        """A present link by name."""
        return next(link for link in self.links if link.name == name)

    def look(self, ifindexes: Collection[int]) -> Mapping[int, Link]:
        """Some links as they are, which the table knows from then on."""
        size = self.gso_max_bytes
        if size and any(link.ifindex in ifindexes and link.gso_max_bytes != size for link in self.links):
            self.links = tuple(replace(k, gso_max_bytes=size) if k.ifindex in ifindexes else k for k in self.links)
        return {link.ifindex: link for link in self.links if link.ifindex in ifindexes}

    def snapshot(self) -> Snapshot:
        """All counters now."""
        return Snapshot(self.now.boot_ns, self.links, [self.kernel.links[link.ifindex].tx_bytes for link in self.links])

    # ---- time ----

    def pass_time(self, duration_ns: int, *, wall_ns: int | None = None) -> None:
        """Both clocks go on (the wall clock possibly by another amount), and traffic flows."""
        self.kernel.advance(duration_ns)
        self.now = Now(self.now.boot_ns + duration_ns, self.now.wall_ns + (duration_ns if wall_ns is None else wall_ns))

    def tick(self) -> None:
        """One interval, one sample."""
        self.pass_time(TICK_NS)
        self.store.catch_up()
        self.controller.tick()

    def run(self, seconds: float, offers: Mapping[str, int] | None = None) -> None:
        """Tick for a while, with this much offered on links (bit/s; what is not named keeps its rate)."""
        for name, rate_bps in (offers or {}).items():
            self.kernel.offer(self.link(name).ifindex, rate_bps)
        for _ in range(round(seconds * SECOND / TICK_NS)):
            self.tick()

    # ---- hands ----

    def touch(self, name: str = "eth0") -> None:
        """What the event socket does: something changed on the link, look."""
        self.heard.add(self.link(name).ifindex)
        self.controller.take_events()

    def reload(self, rules: Rules) -> None:
        """Swap the rules in."""
        self.rules = rules
        self.controller.take_rules(rules)

    def command(self, act: Callable[[State, Now], Output]) -> None:
        """Carry out an operator's command."""
        self.controller.command(act)

    def limit(self, name: str = "eth0", rate_bps: int | None = None, *, force: bool = False) -> None:
        """Limit by hand."""
        self.command(lambda state, now: limit(state, now, name, rate_bps=rate_bps, reason="test", force=force, by="root"))

    def release(self, name: str = "eth0") -> None:
        """Release by hand."""
        self.command(lambda state, now: release(state, now, name, reason="test", by="root"))

    def fire(self, name: str = "eth0") -> None:
        """Traffic above the threshold until the link fires."""
        self.run(2.4, {name: 150 * MBIT})

    # ---- looking ----

    def frame(self) -> StatusSnapshot:
        """The frame of this moment."""
        self.controller.forget_frame()
        return self.controller.frame()

    def view(self, name: str = "eth0") -> LinkView:
        """One link as status shows it."""
        return next(view for view in build(self.frame()).links if view.interface == name)

    def told(self, *kinds: EventKind) -> list[tuple[EventKind, str]]:
        """(kind, reason) of the events of these kinds so far."""
        return [(event.kind, event.reason) for event in self.events if event.kind in kinds]

    def root(self, name: str = "eth0") -> str:
        """What the kernel shows as the link's root: kind and major number."""
        root = self.kernel.roots().get(self.link(name).ifindex)
        return f"{root.kind} {root.handle >> 16:x}:" if root is not None else "none"

    def rate(self, name: str = "eth0") -> int | None:
        """The rate of the limit that stands in the kernel, or None."""
        actual = self.kernel.read([self.link(name).ifindex])[self.link(name).ifindex]
        return actual.tree.rate_bps if actual.ours and actual.tree is not None else None


def observing(policy: Policy = POLICY) -> Policy:
    """The policy, only observing."""
    return replace(policy, mode=PolicyMode.OBSERVE)
