"""The executor: steps the engine, carries out what it decides, reads what became of it, until nothing is left to do.

On an error nothing is rolled back: the next step sees the answers and what the kernel shows, and decides again. A saved
foreign root is on disk before the message that replaces it is sent.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

from limiterd.core.engine import step
from limiterd.core.errors import EnvironmentFault
from limiterd.core.histogram import Buckets
from limiterd.core.model import NOT_SENT, Action, ActionKind, ActionResult, Event, EventKind, Journal, Link, Now, Rules
from limiterd.core.ports import TcPort
from limiterd.core.state import NOTHING, Inputs, Output, State

MAX_ROUNDS: Final = 12
"""A limit takes two rounds (act, read back), a takeover or a release up to five; what is left waits for the next tick."""

LookPort = Callable[[Collection[int]], Callable[[], Mapping[int, Link]]]


@dataclass(slots=True)
class Executor:
    """What connects the engine to the kernel. save_now must not return before the journal is on disk.

    meanwhile is entered around every wait for the kernel. look asks for the links themselves, some of whose properties change
    without an event; what it returns takes the answers in, when nobody else samples any more.
    """

    tc: TcPort
    clock: Callable[[], Now]
    tell: Callable[[Sequence[Event]], None]
    save: Callable[[Journal], object]
    save_now: Callable[[Journal], None]
    meanwhile: AbstractContextManager[object] = field(default_factory=nullcontext)
    look: LookPort = lambda _: dict
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    enforcement: Buckets = field(default_factory=Buckets)
    unread: set[int] = field(default_factory=set)
    """Links that were to be read and of which there was no answer since."""
    silence: EnvironmentFault | None = None
    """Why what was asked for last could not be read."""

    def reconcile(self, state: State, rules: Rules, inputs: Inputs) -> None:
        """Step until the engine asks for nothing more, MAX_ROUNDS, or a silence of the kernel: one wait in a tick is enough."""
        vanished: frozenset[int] = frozenset()
        silent = False
        for _ in range(MAX_ROUNDS):
            output = step(state, rules, inputs)
            if output is NOTHING:
                return
            self.publish(state, output)
            reads = output.reads - vanished
            if silent or (not output.actions and not reads):
                return
            results = self._act(state, output.actions)
            found = self.read_now(reads)
            vanished |= reads - found.tc.keys()
            silent = bool(found.unanswered) or any(result.errno == errno.ETIMEDOUT for result in results)
            inputs = replace(found, results=tuple(results))

    def publish(self, state: State, output: Output) -> None:
        """Hand on the events, and the journal where it changed."""
        for event in output.events:
            if event.kind is EventKind.LIMITED and isinstance(spent_ns := event.detail.get("enforcement_ns"), int):
                self.enforcement.observe(spent_ns / 1e9)
        if output.events:
            self.tell(output.events)
        if output.journal_dirty:
            self.save(state.journal())

    def _act(self, state: State, actions: Sequence[Action]) -> list[ActionResult]:
        if not actions:
            return []
        refused = self._save_roots(state, actions)
        try:
            with self.meanwhile:
                results = self.tc.apply([a for a in actions if a.ifindex not in refused])
        except EnvironmentFault as fault:
            return _unanswered(actions, fault)
        return results + [
            ActionResult(a, errno.EIO if a.kind is ActionKind.SAVE_ROOT else NOT_SENT, refused[a.ifindex])
            for a in actions
            if a.ifindex in refused
        ]

    def _save_roots(self, state: State, actions: Sequence[Action]) -> dict[int, str]:
        """Make every root that is about to be replaced durable; the links for which that failed, with the reason."""
        takeovers = [a for a in actions if a.kind is ActionKind.SAVE_ROOT]
        if not takeovers:
            return {}
        try:
            self.save_now(state.journal())
        except EnvironmentFault as fault:
            return {a.ifindex: str(fault) for a in takeovers}
        return {}

    def read_now(self, ifindexes: frozenset[int]) -> Inputs:
        """Inputs that carry a reading of these links; those without an answer are told apart from those that are gone."""
        if not ifindexes:
            return Inputs(self.clock())
        try:
            with self.meanwhile:
                learn, tc = self.look(ifindexes), dict(self.tc.read(ifindexes))
        except EnvironmentFault as fault:
            self._count(fault)
            self.unread |= ifindexes
            return Inputs(self.clock(), unanswered=ifindexes)
        self.unread -= ifindexes
        self.silence = None
        return Inputs(self.clock(), looked=learn(), tc=tc)

    def with_roots(self, inputs: Inputs) -> Inputs:
        """The same inputs with every root qdisc of the namespace; without them where the dump fails."""
        try:
            with self.meanwhile:
                return replace(inputs, roots=self.tc.roots())
        except EnvironmentFault as fault:
            self._count(fault)
            return inputs

    def _count(self, fault: EnvironmentFault) -> None:
        self.silence = fault
        self.errors[fault.operation or "dump", fault.errno_name or "none"] += 1


def _unanswered(actions: Sequence[Action], fault: EnvironmentFault) -> list[ActionResult]:
    """No answer to a whole batch: each link's first step failed so, else the next round would wait as long again."""
    number = getattr(errno, fault.errno_name or "", errno.ETIMEDOUT)
    first = {action.ifindex: action for action in reversed(actions)}
    return [ActionResult(action, number, str(fault)) for action in first.values()]
