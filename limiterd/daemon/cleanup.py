"""`limiterd --cleanup`: lift what is left in the kernel under our handle, without a daemon.

Used when the package is removed. It goes the way of every release (raise the rate, let the queue drain, remove, restore
what a takeover saved), driven by the same engine with a configuration that watches nothing. Beside a running daemon
nothing is done: it would put its limits back. Decisions stay on record: a daemon that starts again puts their limits back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from limiterd.config import load as config
from limiterd.core import engine
from limiterd.core.errors import EXIT_DONE, EXIT_FAILED, ConfigError, EnvironmentFault
from limiterd.core.model import Config, Event, EventKind, Journal, Rules, Snapshot, StateConfig
from limiterd.core.state import Inputs, State
from limiterd.daemon.event_log import sentence
from limiterd.daemon.executor import Executor
from limiterd.daemon.host import hostname
from limiterd.daemon.loop import clocks
from limiterd.kernel.instance_mark import InstanceMark
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import boottime_ns
from limiterd.kernel.tc import TcKernel
from limiterd.serve.unix_listener import is_owned
from limiterd.store.journal import FILE_NAME, JournalStore

_LONGEST_NS = 10_000_000_000
_PAUSE_S = 0.05


def _settings(path: str) -> Config:
    """The configuration's own, or the defaults where it is broken or gone: a clean-up must not need it."""
    try:
        return config.load_all(path, host=hostname()).rules.config
    except ConfigError as error:
        _say(f"the configuration cannot be used, so the default socket and state directory are looked at: {error.problems[0]}")
        return Config()


def _say(text: str) -> None:
    sys.stderr.write(f"limiterd: {text}\n")


def _forget_saved(directory: Path, store: JournalStore, kept: Journal, state: State) -> None:
    """Take what was restored out of the journal, or a later release would restore it once more; its owner stays the daemon."""
    left = state.journal().replaced
    if left == kept.replaced:
        return
    try:
        store.save_now(replace(kept, replaced=left))
    except EnvironmentFault as error:
        _say(f"{directory / FILE_NAME} still names root qdiscs that are restored: {error}")


def _tell(events: Sequence[Event]) -> None:
    for event in events:
        if event.kind is not EventKind.EPOCH:
            sys.stdout.write(f"{event.interface}: {sentence(event)[1]}\n")


def clean_up(path: str) -> int:
    """Lift every limit of ours; 0 when none is left, 1 when one could not be removed in time, or where a daemon runs."""
    settings = _settings(path)
    mark = InstanceMark(settings.control.socket, (settings.state.directory, StateConfig().directory))
    mark.take()  # held to the end of the process: no daemon starts meanwhile
    if mark.problem:
        _say(mark.problem)
    if is_owned(settings.control.socket):  # in another network namespace, or beside a mark that does not count
        raise EnvironmentFault(f"a daemon runs ({settings.control.socket}) and uses the same files; stop that one first")
    rules = Rules(config=Config(policies=(), enforcement=settings.enforcement))
    store = JournalStore(settings.state.directory, keep_owner=True)
    kept, troubles = store.load()
    for trouble in troubles:
        _say(trouble)
    table, tc = LinkTable(), TcKernel()
    state = engine.start(rules, Journal(replaced=kept.replaced), tc.abilities(), clocks())
    told: list[Event] = []
    executor = Executor(tc, clocks, told.extend, lambda _: None, lambda _: None)
    until_ns = boottime_ns() + _LONGEST_NS
    snapshot = Snapshot(boottime_ns(), table.links, [0] * len(table.links))
    executor.reconcile(state, rules, executor.with_roots(Inputs(clocks(), snapshot=snapshot)))
    while state.limit_states and boottime_ns() < until_ns:
        time.sleep(_PAUSE_S)
        executor.reconcile(
            state, rules, executor.read_now(frozenset(limit_state.link.ifindex for limit_state in state.limit_states.values()))
        )
    _tell(told)
    _forget_saved(Path(settings.state.directory), store, kept, state)
    for limit_state in state.limit_states.values():
        why = limit_state.blocker.message if limit_state.blocker is not None else "its queue does not drain"
        _say(f"{limit_state.link.name}: the limit could not be removed: {why}")
    if not told and not state.limit_states:
        sys.stdout.write("no limit of limiterd is in force in this network namespace\n")
    return EXIT_FAILED if state.limit_states else EXIT_DONE
