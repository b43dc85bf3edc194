"""The simulated stage: the same engine, executor and status as the daemon's, on the in-memory kernel.

For machines that refuse namespaces, and for a look at the story without any. Its clock runs beside the real one, or as fast
as the machine can (hurry); no packet is sent and no link is touched.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from limiterd import __version__
from limiterd.config import load as config
from limiterd.config import override_files as overrides
from limiterd.core import engine, status
from limiterd.core.model import Event, EventKind, Journal, Link, Now, Rules, Snapshot
from limiterd.core.rule_changes import describe
from limiterd.core.state import Inputs
from limiterd.core.status import RATE_SPAN_NS, DaemonInfo
from limiterd.core.units import NS_PER_SECOND
from limiterd.daemon.event_log import sentence
from limiterd.daemon.executor import Executor
from limiterd.demo.demand import Reading
from limiterd.demo.scale import LINK, Scale, config_text, override_text
from limiterd.demo.stage import Document
from limiterd.sim.fake_kernel import FakeKernel

HOST: Final = "demo"
IFINDEX: Final = 2
BOOT_NS: Final = 1000 * NS_PER_SECOND


class SimulatedStage:
    """Everything of a daemon but its processes and sockets; hurry: do not wait for the real clock."""

    simulated = True

    def __init__(self, scale: Scale, *, hurry: bool = False) -> None:
        self._hurry = hurry
        self._t_ns = BOOT_NS
        self._wall_offset_ns = time.time_ns() - self._t_ns
        self._begun_s = time.monotonic()
        self._link = (Link(IFINDEX, LINK, mac="02:00:00:00:00:01"),)
        self._kernel = FakeKernel(now_ns=lambda: self._t_ns)
        self._kernel.add_link(IFINDEX)
        self._rules = Rules(config=config.parse(config_text(scale, "/nowhere").encode(), "limiterd.yaml"), host=HOST)
        self._files: list[bytes] = []
        self._words = ""
        self._recent: deque[Snapshot] = deque()
        self._executor = Executor(self._kernel, self._now, self._hear, lambda _: None, lambda _: None)
        self._state = engine.start(self._rules, Journal(), self._kernel.abilities(), self._now())
        self._tick(0)

    def _now(self) -> Now:
        return Now(self._t_ns, self._t_ns + self._wall_offset_ns)

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind is EventKind.LIMIT:
                self._words = sentence(event)[1]

    def _tick(self, elapsed_ns: int) -> None:
        self._t_ns += elapsed_ns
        self._kernel.advance(elapsed_ns)
        snapshot = Snapshot(self._t_ns, self._link, (self._kernel.links[IFINDEX].tx_bytes,))
        self._recent.append(snapshot)
        while len(self._recent) > 2 and self._recent[1].t_ns <= self._t_ns - RATE_SPAN_NS:
            self._recent.popleft()
        self._executor.reconcile(self._state, self._rules, Inputs(self._now(), snapshot=snapshot))

    # ---- the protocol ----

    def now_ns(self) -> int:
        """The simulated CLOCK_BOOTTIME."""
        return self._t_ns

    def wall_s(self) -> float:
        """The simulated calendar."""
        return self._now().wall_ns / NS_PER_SECOND

    def pause(self, seconds: float) -> None:
        """Tick through this time, and wait until the real clock has come as far."""
        left_ns = int(seconds * NS_PER_SECOND)
        while left_ns > 0:
            elapsed_ns = min(left_ns, self._rules.config.sampling.interval_ns)
            self._tick(elapsed_ns)
            left_ns -= elapsed_ns
        ahead_s = (self._t_ns - BOOT_NS) / NS_PER_SECOND - (time.monotonic() - self._begun_s)
        if ahead_s > 0 and not self._hurry:
            time.sleep(ahead_s)

    def send(self, rate_bps: int) -> None:
        """Offer this much from now on."""
        self._kernel.offer(IFINDEX, rate_bps)

    def status(self) -> Document:
        """The daemon's own status of this state."""
        around = DaemonInfo(version=__version__, started_wall_ns=BOOT_NS + self._wall_offset_ns, source="simulated")
        shot = status.frame(self._state, self._now(), self._recent[-1], self._recent[0], around)
        return status.document(status.build(shot))

    def words(self) -> str:
        """The newest firing's sentence."""
        return self._words

    def read(self) -> Reading:
        """The in-memory kernel's counters."""
        actual = self._kernel.read([IFINDEX])[IFINDEX]
        root = f"{actual.root.kind} {actual.root.handle >> 16:x}:" if actual.root is not None else "none"
        tx_bytes = self._kernel.links[IFINDEX].tx_bytes
        stats = actual.stats
        return Reading(self._t_ns, tx_bytes, stats.sent_bytes if actual.ours else None, stats.backlog_bytes, root)

    def grant(self, expires: str) -> None:
        """Put the override's file there (it stays in memory)."""
        self._files = [override_text(expires).encode()]

    def reload(self) -> list[str]:
        """Read the file as the daemon would, and apply it."""
        found = [placed.record for data in self._files for placed in overrides.parse(data, "req-1234.yaml").records]
        before, self._rules = self._rules, replace(self._rules, overrides=tuple(found))
        self._executor.reconcile(self._state, self._rules, Inputs(self._now()))
        return list(describe(before, self._rules, self._now().wall_ns))
