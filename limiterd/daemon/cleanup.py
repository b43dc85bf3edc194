"""`limiterd --cleanup`: lift what stands in the kernel under our handle, without a daemon.

Used when the package is removed. It goes the way of every release (raise the rate, let the queue drain, remove, restore
what a takeover saved), driven by the same engine with a configuration that watches nothing. A running daemon is left
alone: it would put its limits back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from limiterd import config
from limiterd.core import engine
from limiterd.core.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from limiterd.core.model import Config, Event, Journal, Rules, Snapshot
from limiterd.core.state import Inputs
from limiterd.daemon.chronicle import sentence
from limiterd.daemon.hands import Hands
from limiterd.daemon.house import clocks
from limiterd.daemon.loop import boot_ns, hostname
from limiterd.journal import JournalStore
from limiterd.kernel.links import LinkTable
from limiterd.kernel.tc import TcKernel

_LONGEST_NS = 10_000_000_000
_PAUSE_S = 0.05


def _settings(path: str) -> Config:
    """The configuration's own, or the defaults where it is broken or gone: a clean-up must not need it."""
    try:
        return config.load_all(path, host=hostname()).rules.config
    except ConfigError:
        return Config()


def _tell(events: Sequence[Event]) -> None:
    for event in events:
        if event.kind != "epoch":
            sys.stdout.write(f"{event.interface}: {sentence(event)[1]}\n")


def clean_up(path: str) -> int:
    """Lift every limit of ours; 0 when none is left, 1 when one could not be removed in time."""
    settings = _settings(path)
    rules = Rules(config=Config(policies=(), enforcement=settings.enforcement))
    store = JournalStore(settings.state_directory)
    kept, _ = store.load()
    table, tc = LinkTable(), TcKernel()
    state = engine.start(rules, Journal(saved=kept.saved), tc.abilities(), clocks())
    hands = Hands(tc, clocks, _tell, lambda _: None, lambda _: None)
    until_ns = boot_ns() + _LONGEST_NS
    snapshot = Snapshot(boot_ns(), table.links, [0] * len(table.links))
    hands.settle(state, rules, hands.with_roots(Inputs(clocks(), snapshot=snapshot)))
    found = len(state.cases)
    while state.cases and boot_ns() < until_ns:
        time.sleep(_PAUSE_S)
        hands.settle(state, rules, hands.read_now(frozenset(case.link.ifindex for case in state.cases.values())))
    for case in state.cases.values():
        why = case.obstacle.message if case.obstacle is not None else "its queue does not drain"
        sys.stderr.write(f"limiterd: {case.link.name}: the limit could not be removed: {why}\n")
    if not found:
        sys.stdout.write("no limit of ours stands in this network namespace\n")
    return EXIT_FAILED if state.cases else EXIT_DONE
