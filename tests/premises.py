"""The daemon with its files: the configuration as YAML, both places of override records, the log and the audit trail.

What is left out are threads and sockets alone: the same loader, reload, controller, codec, store and event log are at work.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from limiterd.config import load as config
from limiterd.config.override_files import Store, judge, to_yaml
from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Config, Event, Override, Snapshot, Status
from limiterd.core.status import DaemonInfo, build
from limiterd.daemon.event_log import EventLog
from limiterd.daemon.host import hostname
from limiterd.daemon.reload import Reloading
from limiterd.kernel.events import Events
from tests.world import World

T = TypeVar("T")

_SHM: Final = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
_FRAME: Final = """\
sampling: {{interval: 100ms, max_gap: 3s}}
policies:
{policies}
overrides: {{directory: "{home}/etc"}}
state: {{directory: "{state}"}}
metrics: {{listen: null}}
"""


@dataclass(slots=True)
class Records:
    """A log and an audit trail that keep what they are told; whatever cannot be JSON does not get in."""

    lines: list[tuple[str, str, Mapping[str, object]]] = field(default_factory=list)
    entries: list[tuple[str, str, Mapping[str, object]]] = field(default_factory=list)

    def emit(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """A log line."""
        self.lines.append((level, event, fields))

    def append(self, kind: str, interface: str = "", fields: Mapping[str, object] | None = None) -> str:
        """An entry of the trail."""
        self.entries.append((kind, interface, json.loads(json.dumps(fields or {}))))
        return "0" * 64


@dataclass(slots=True)
class Premises(World):
    """One machine with a daemon and its files. listeners hear every event at the moment at which it is told."""

    policies: str = ""
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="limiterd-", dir=_SHM if _SHM.is_dir() else None)))
    records: Records = field(default_factory=Records)
    listeners: list[Callable[[Event], None]] = field(default_factory=list)
    samplers: list[Callable[[Snapshot], None]] = field(default_factory=list)
    """They get every snapshot that the daemon gets."""
    blind: bool = False
    """Sampling is refused."""
    drops: bool = False
    """Every snapshot is dropped."""
    deaf: bool = False
    """The events' socket is refused."""
    overrun: bool = False
    """Events have been lost."""
    stubborn: bool = False
    """An adapter refuses what a reload wants of it."""
    reloading: Reloading = field(init=False)

    def __post_init__(self) -> None:
        for name in ("etc", "state"):
            (self.home / name).mkdir()
        self.configure(self.policies)
        World.__post_init__(self)

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.home)

    # ---- files ----

    @property
    def path(self) -> Path:
        """The configuration."""
        return self.home / "limiterd.yaml"

    @property
    def store_of_records(self) -> Store:
        """The daemon's own records."""
        return Store(self.home / "state" / "overrides.d")

    def configure(self, policies: str, *, state: str = "") -> None:
        """Write the configuration."""
        self.policies = policies
        self.path.write_text(_FRAME.format(policies=policies, home=self.home, state=state or self.home / "state"))

    def grant(self, record: Override, *, own: bool) -> None:
        """Write a record where the operator or the daemon keeps them."""
        if own:
            judge(record, self.controller.rules, self.now.wall_ns)
            self.store_of_records.add(record)
        else:
            (self.home / "etc" / f"{record.id}.yaml").write_text(to_yaml([record]))

    def withdraw(self) -> None:
        """Remove every record."""
        for placed in self.store_of_records.load().records:
            self.store_of_records.revoke(placed.record.id)
        for path in (self.home / "etc").iterdir():
            path.unlink()

    # ---- life ----

    def boot(self) -> None:
        """Start on what the files hold."""
        loaded = config.load_all(self.path, host=hostname(), wall_ns=self.now.wall_ns)
        self.rules = loaded.rules
        World.boot(self)
        self.reloading = Reloading(
            str(self.path), loaded, self.controller, self, self.records, self.records, self.problems, lambda: self.now
        )

    def follow(self, who: str = "test") -> tuple[str, ...]:
        """Reload."""
        changes = self.reloading.reload(who)
        self.rules = self.controller.rules
        return changes

    # ---- what a reload needs ----

    def call(self, function: Callable[[], T]) -> T:
        """There is one thread."""
        return function()

    def reload_begins(self) -> None:
        """Nobody waits for it."""

    def reload_ends(self) -> None:
        """Nobody waits for it."""

    def reserve(self, _: Config) -> Callable[[], None]:
        """Nothing may block."""
        return lambda: None

    def adapt(self, *_: Config) -> None:
        """Refuse, if so wanted."""
        if self.stubborn:
            raise EnvironmentFault("netlink is refused", operation="sample", errno_name="EPERM")

    # ---- the kernel's side ----

    def sample(self) -> Snapshot | None:
        """All counters, if the kernel gives them."""
        if self.blind:
            raise EnvironmentFault("the kernel refuses the dump", operation="sample", errno_name="EPERM")
        if self.drops:
            return None
        snapshot = self.snapshot()
        for hear in self.samplers:
            hear(snapshot)
        return snapshot

    def drain(self) -> Events:
        """What was heard of, if the socket works."""
        if self.deaf:
            raise EnvironmentFault("no socket for events", operation="events", errno_name="EMFILE")
        found = replace(World.drain(self), resync=self.overrun)
        self.overrun = False
        return found

    # ---- what is told and shown ----

    def tell(self, events: Sequence[Event]) -> None:
        """Write everything down, as the event log does in its own thread."""
        for event in events:
            self.events.append(event)
            for hear in self.listeners:
                hear(event)
        event_log = EventLog(self.records, self.records, lambda _: None)
        event_log.tell(events)
        event_log.start()
        event_log.close(10)

    def daemon_info(self) -> DaemonInfo:
        """What status shows beside the engine."""
        return DaemonInfo(
            "0",
            0,
            config_error=self.reloading.config_error,
            config_loaded_wall_ns=self.reloading.loaded_wall_ns,
            kernel_errors=dict(self.executor.errors),
            faults=self.problems.all(),
        )

    def status(self) -> Status:
        """The status of this moment."""
        return build(self.frame())
