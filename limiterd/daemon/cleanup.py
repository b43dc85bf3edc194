"""`limiterd --cleanup`: lift what is left in the kernel under our handle, without a daemon.

Used when the package is removed. It goes the way of every release (raise the rate, let the queue drain, remove, restore
what a takeover saved), driven by the same engine with a configuration that watches nothing. Beside a running daemon
nothing is done: it would put its limits back. What was done is printed, and is in the audit trail. The decisions are forgotten;
with --keep-decisions they stay on record, and a daemon that starts again puts their limits back.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from limiterd.config import load as config
from limiterd.core import engine
from limiterd.core.errors import EXIT_DONE, EXIT_FAILED, ConfigError, EnvironmentFault
from limiterd.core.model import (
    Config,
    Event,
    EventKind,
    Journal,
    PendingRelease,
    ReleaseReason,
    Rules,
    Snapshot,
    StateConfig,
)
from limiterd.core.state import Inputs, State, pending_release
from limiterd.daemon.event_log import sentence
from limiterd.daemon.executor import Executor
from limiterd.daemon.host import hostname
from limiterd.daemon.loop import clocks
from limiterd.kernel.instance_mark import InstanceMark
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import boottime_ns
from limiterd.kernel.tc import TcKernel
from limiterd.serve.unix_listener import is_owned
from limiterd.store.audit import AuditTrail
from limiterd.store.journal import FILE_NAME, JournalStore

_LONGEST_NS = 10_000_000_000
_PAUSE_S = 0.05
_TRAIL_S = 2.0
BY = "limiterd --cleanup"


def _settings(path: str) -> Config:
    """The configuration's own, or the defaults where it is broken or gone: a clean-up must not need it."""
    try:
        return config.load_all(path, host=hostname()).rules.config
    except ConfigError as error:
        _say(f"the configuration cannot be used, so the default socket and state directory are looked at: {error.problems[0]}")
        return Config()


def _say(text: str) -> None:
    sys.stderr.write(f"limiterd: {text}\n")


def _save(directory: Path, store: JournalStore, kept: Journal, state: State, *, keep_decisions: bool) -> None:
    """Put on record what is left: decisions that are kept, or else releases that could not be finished."""
    decisions = kept.decisions if keep_decisions else ()
    unfinished = () if keep_decisions else tuple(map(pending_release, state.limit_states.values()))
    left = replace(kept, decisions=decisions, releases=unfinished, replaced=state.journal().replaced)
    if left == kept:
        return
    try:
        store.save_now(left)
    except EnvironmentFault as error:
        _say(f"{directory / FILE_NAME} still says what was before: {error}")


def _record(directory: Path, events: Sequence[Event]) -> None:
    """Print what was done, and put it into the audit trail as the trail's owner, whose new files must stay the daemon's."""
    shown = [(event, sentence(event)[1]) for event in events if event.kind is not EventKind.EPOCH]
    for event, text in shown:
        sys.stdout.write(f"{event.interface}: {text}\n")
    if not shown or not directory.is_dir():
        return
    trail = None
    try:
        owner = directory.stat()
        if os.geteuid() != owner.st_uid:
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)
        trail = AuditTrail(directory, name="audit")
        for event, text in shown:
            trail.append(event.kind, event.interface, {"text": text, "reason": str(event.reason), **event.detail})
        trail.wait(_TRAIL_S)
    except (OSError, EnvironmentFault) as error:
        _say(f"the audit trail in {directory} does not have it: {error}")
    finally:
        if trail is not None:
            trail.close(_TRAIL_S)


def _by_hand(event: Event) -> Event:
    """The event with who did it."""
    return replace(event, detail={**event.detail, "by": BY})


def _releases(kept: Journal) -> tuple[PendingRelease, ...]:
    """Every decision as a release that was decided; those that an earlier run did not finish among them."""
    return (*kept.releases, *(PendingRelease(d.interface, d.mac, ReleaseReason.OPERATOR, d) for d in kept.decisions))


def _forgotten(state: State) -> list[Event]:
    """What is told of decisions whose links are not there."""
    now_ns = boottime_ns()
    return [
        Event(EventKind.RELEASED, now_ns, release.interface, ReleaseReason.OPERATOR, detail={"absent": True})
        for release in state.releases.values()
    ]


def clean_up(path: str, *, keep_decisions: bool) -> int:
    """Lift every limit of ours, and forget their decisions unless they are to be kept.

    0 when none is left, 1 when one could not be removed in time. Raises EnvironmentFault where a daemon runs.
    """
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
    state = engine.start(
        rules, Journal(replaced=kept.replaced, releases=_releases(kept), same_boot=kept.same_boot), tc.abilities(), clocks()
    )
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
    told += [] if keep_decisions else _forgotten(state)
    _save(Path(settings.state.directory), store, kept, state, keep_decisions=keep_decisions)
    _record(Path(settings.state.directory), [_by_hand(event) for event in told])
    for limit_state in state.limit_states.values():
        why = limit_state.blocker.message if limit_state.blocker is not None else "its queue does not drain"
        _say(f"{limit_state.link.name}: the limit could not be removed: {why}")
    if not told and not state.limit_states:
        sys.stdout.write("no limit of limiterd is in force in this network namespace\n")
    return EXIT_FAILED if state.limit_states else EXIT_DONE
