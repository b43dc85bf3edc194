"""The engine, the executor and the real kernel, without the daemon around them: limits on command, for tests and benches.

What is measured through it is what the daemon does: the same decisions, plans, messages and readings.
"""

from __future__ import annotations

import time
from dataclasses import replace

from limiterd.core import engine
from limiterd.core.commands import limit, release_all
from limiterd.core.limit_state import LimitState, Stage
from limiterd.core.model import (
    HOUR,
    MS,
    SECOND,
    Config,
    Detect,
    EventKind,
    Journal,
    Limit,
    Link,
    Now,
    Override,
    Policy,
    Rules,
    Snapshot,
    TcActual,
)
from limiterd.core.ports import TcPort
from limiterd.core.state import Inputs, Output
from limiterd.daemon.executor import Executor

PACE_S = 0.005
LONGEST_S = 10.0
ANY = Policy("test", ("*",), detect=Detect(threshold_bps=10**12))
"""Nothing fires by itself, and any rate below the threshold may be asked for."""
NOTHING = Journal()


def clocks() -> Now:
    """This moment."""
    return Now(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())


class Driver:
    """Links that are limited and released on command, all by one policy; what an earlier one left is in journal."""

    def __init__(
        self,
        kernel: TcPort,
        *links: Link,
        policy: Policy = ANY,
        overrides: tuple[Override, ...] = (),
        journal: Journal = NOTHING,
    ) -> None:
        self.kernel, self.links = kernel, links
        self.rules = Rules(Config(policies=(policy,)), overrides)
        self.state = engine.start(self.rules, journal, kernel.abilities(), clocks())
        self.told: list[EventKind] = []
        self.sent_bytes = 0
        self.executor = Executor(
            kernel, clocks, lambda events: self.told.extend(event.kind for event in events), lambda _: None, lambda _: None
        )
        self._reconcile(self.executor.with_roots(Inputs(clocks(), snapshot=self.look())))

    def _reconcile(self, inputs: Inputs) -> None:
        self.executor.reconcile(self.state, self.rules, inputs)

    def look(self) -> Snapshot:
        """A sample of now."""
        return Snapshot(clocks().boot_ns, self.links, [self.sent_bytes] * len(self.links))

    def _command(self, output: Output) -> None:
        self.executor.publish(self.state, output)
        self._reconcile(Inputs(clocks()))

    def tick(self) -> None:
        """One sample, as the loop takes it."""
        self._reconcile(Inputs(clocks(), snapshot=self.look()))

    def reload(self, wanted: Limit) -> None:
        """Another limit in the policy."""
        policy = replace(self.rules.config.policies[0], limit=wanted)
        self.rules = replace(self.rules, config=replace(self.rules.config, policies=(policy,)))
        self._reconcile(Inputs(clocks()))

    def hold(self, name: str, rate_bps: int) -> None:
        """Limit a link, or change its rate; done when the limit was read back."""
        self._command(limit(self.state, clocks(), name, rate_bps=rate_bps, reason="test", force=True, by="test"))
        case = self.state.limit_states[name]
        if case.stage is not Stage.STANDING or case.blocker is not None:
            raise AssertionError(f"{name}: the limit does not stand: {case.blocker}")

    def fire(self, rate_bps: int, pace_ns: int = 100 * MS) -> tuple[float, float]:
        """Let every link have sent at this rate until all fire; (wall, CPU) seconds from that sample to all limits read back.

        The counters and their stamps are made up, and lie in the past; the kernel is real.
        """
        t_ns, known, taken = clocks().boot_ns - HOUR, len(self.told), (0.0, 0.0)
        while EventKind.LIMIT not in self.told[known:]:
            t_ns += pace_ns
            self.sent_bytes += rate_bps * pace_ns // (8 * SECOND)
            sample = Snapshot(t_ns, self.links, [self.sent_bytes] * len(self.links))
            begun = time.perf_counter(), time.process_time()
            self._reconcile(Inputs(clocks(), snapshot=sample))
            taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
        if any(case.stage is not Stage.STANDING for case in self.standing()) or len(self.standing()) != len(self.links):
            raise AssertionError("not every limit stands")
        return taken

    def release(self) -> None:
        """Lift every limit; done when the last root was seen gone."""
        self._command(release_all(self.state, clocks(), reason="test", by="test"))
        self.until_free()

    def until_free(self) -> None:
        """Tick until no limit is on its way out any more."""
        until_s = time.monotonic() + LONGEST_S
        while self.state.limit_states:
            if time.monotonic() > until_s:
                raise AssertionError(f"limits that could not be released: {self.standing()}")
            time.sleep(PACE_S)
            self.tick()

    def standing(self) -> list[LimitState]:
        """The links that a limit is on, or on its way."""
        return list(self.state.limit_states.values())

    def actual(self, name: str) -> TcActual:
        """What the kernel shows of a link now."""
        ifindex = self.state.by_name[name].ifindex
        return self.kernel.read([ifindex])[ifindex]
