"""The whole daemon but for its threads and sockets: the engine, the executor, a kernel in memory and two clocks in hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from limiterd.core import engine
from limiterd.core.commands import limit, release
from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import (
    MS,
    SECOND,
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
)
from limiterd.core.state import Inputs, Output, State
from limiterd.core.status import Frame, Surroundings, build, frame
from limiterd.daemon.hands import Hands
from limiterd.kernel.fake import FakeKernel

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


def rules_of(*policies: Policy, overrides: Sequence[Override] = (), **settings: object) -> Rules:
    """Rules with these policies (default: POLICY)."""
    config = Config(policies=policies or (POLICY,))
    return Rules(replace(config, **settings), tuple(overrides), "host", "0" * 64)  # type: ignore[arg-type]  # fields by name


@dataclass(slots=True)
class World:
    """One machine. disk is what the journal last held; events are all that were ever told."""

    rules: Rules = field(default_factory=rules_of)
    now: Now = START
    events: list[Event] = field(default_factory=list)
    disk: Journal = field(default_factory=Journal)
    disk_full: bool = False
    links: tuple[Link, ...] = ()
    kernel: FakeKernel = field(init=False)
    hands: Hands = field(init=False)
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = FakeKernel(now_ns=lambda: self.now.boot_ns)
        self.add(2, "eth0")
        self.boot()

    # ---- life ----

    def boot(self) -> None:
        """Start the daemon on what the disk holds."""
        self.hands = Hands(self.kernel, lambda: self.now, self.events.extend, self._save, self._save_now)
        self.state = engine.start(self.rules, self.disk, self.kernel.abilities(), self.now)
        self.hands.settle(self.state, self.rules, self.hands.with_roots(Inputs(self.now, snapshot=self.snapshot())))

    def _save(self, journal: Journal) -> None:
        if not self.disk_full:
            self.disk = journal

    def _save_now(self, journal: Journal) -> None:
        if self.disk_full:
            raise engine_fault("no space left on device")
        self.disk = journal

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
        self.hands.settle(self.state, self.rules, Inputs(self.now, snapshot=self.snapshot()))

    def run(self, seconds: float, offers: Mapping[str, int] | None = None) -> None:
        """Tick for a while, with this much offered on links (bit/s; what is not named keeps its rate)."""
        for name, rate_bps in (offers or {}).items():
            self.kernel.offer(self.link(name).ifindex, rate_bps)
        for _ in range(round(seconds * SECOND / TICK_NS)):
            self.tick()

    # ---- hands ----

    def touch(self, name: str = "eth0") -> None:
        """What the event socket does: something changed on the link, look."""
        self.hands.settle(self.state, self.rules, self.hands.read_now(frozenset({self.link(name).ifindex})))

    def reload(self, rules: Rules) -> None:
        """Swap the rules in."""
        self.rules = rules
        self.hands.settle(self.state, self.rules, Inputs(self.now))

    def command(self, output: Output) -> None:
        """Carry out an operator's command."""
        self.hands.publish(self.state, output)
        self.hands.settle(self.state, self.rules, Inputs(self.now))

    def limit(self, name: str = "eth0", rate_bps: int | None = None, *, force: bool = False) -> None:
        """Limit by hand."""
        self.command(limit(self.state, self.now, name, rate_bps=rate_bps, reason="test", force=force, by="root"))

    def release(self, name: str = "eth0") -> None:
        """Release by hand."""
        self.command(release(self.state, self.now, name, reason="test", by="root"))

    def fire(self, name: str = "eth0") -> None:
        """Traffic above the threshold until the link fires."""
        self.run(2.4, {name: 150 * MBIT})

    # ---- looking ----

    def frame(self) -> Frame:
        """The engine's frame now."""
        return frame(self.state, self.now, self.snapshot(), None, Surroundings("0", 0))

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


def engine_fault(text: str) -> Exception:
    """What the journal raises when the disk refuses."""
    return EnvironmentFault(text, operation="write", errno_name="ENOSPC")


def observing(policy: Policy = POLICY) -> Policy:
    """The policy, only observing."""
    return replace(policy, mode=PolicyMode.OBSERVE)
