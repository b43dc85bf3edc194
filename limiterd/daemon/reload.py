"""A reload: read, validate and compare everything first, then swap it in; on an error nothing has changed.

Files are read in the thread of whoever asked; only the swap itself happens in the loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from limiterd.config import load as config
from limiterd.core.errors import ConfigError, EnvironmentFault, PeerError
from limiterd.core.model import Config, Now, Rules
from limiterd.core.rule_changes import describe
from limiterd.daemon.controller import Controller
from limiterd.daemon.event_log import Log, Trail, tell
from limiterd.daemon.health import Health
from limiterd.daemon.host import hostname

T = TypeVar("T")

_HALF_DONE = "overrides on disk"


class Surface(Protocol):
    """The rest of the daemon, as far as a reload changes it."""

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the loop."""

    def reload_begins(self) -> None:
        """Tell the service manager; in the loop."""

    def reload_ends(self) -> None:
        """Tell the service manager, however it ended; in the loop."""

    def reserve(self, config: Config, /) -> Callable[[], None]:
        """Let those follow that may be refused or may block; returns what takes it back. Raises EnvironmentFault."""

    def adapt(self, before: Config, after: Config, /) -> None:
        """Let all others follow; in the loop. Raises EnvironmentFault, and has changed nothing then."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A change of one override record on disk that a reload applies; one entry of the trail tells of both.

    make is durable when it returns. undo takes it back where the whole cannot be applied.
    """

    kind: str
    interface: str
    text: str
    fields: Mapping[str, object]
    record_id: str
    make: Callable[[], object]
    undo: Callable[[], object]

    def own(self, changes: Sequence[str]) -> list[str]:
        """Those lines of a description that are about this record."""
        return [line for line in changes if line[1:].startswith(f" override {self.record_id} ")]


class Reloading:
    """Loads the configuration and the overrides, at the start and again; any thread may."""

    def __init__(
        self,
        path: str,
        loaded: config.Loaded,
        controller: Controller,
        surface: Surface,
        log: Log,
        trail: Trail,
        problems: Health,
        clock: Callable[[], Now],
    ) -> None:
        self.lock = threading.RLock()
        self.config_error: str | None = None
        self.loaded_wall_ns = clock().wall_ns
        self._path = path
        self._controller = controller
        self._surface = surface
        self._log = log
        self._trail = trail
        self._problems = problems
        self._clock = clock
        self._notes: frozenset[str] = frozenset()
        self._note_damage(loaded)

    def load(self) -> config.Loaded:
        """Read and validate everything as a reload would; waits for the disk.

        Raises ConfigError, also for what needs a restart, and for an empty file.
        """
        loaded = config.load_all(self._path, host=hostname(), wall_ns=self._clock().wall_ns)
        unfit = loaded.unfit_after(self._controller.rules)
        if unfit:
            raise ConfigError(unfit)
        return loaded

    def reload(self, actor: str, cause: Cause | None = None) -> tuple[str, ...]:
        """Make the change that is the cause, if any; read, validate and diff everything, then swap it in: what changed, as lines.

        Raises ConfigError, or EnvironmentFault where the machine refuses (a loop that does not answer): nothing changed then.
        """
        with self.lock:
            if cause is not None:
                cause.make()
            try:
                return self._apply(actor, cause)
            except (ConfigError, EnvironmentFault) as error:
                if cause is not None:
                    self._take_back(cause, error)
                raise

    def _take_back(self, cause: Cause, error: Exception) -> None:
        try:
            cause.undo()
        except (ConfigError, EnvironmentFault, PeerError) as trouble:
            text = f"{error}; what was refused is on disk all the same ({trouble}), so a later reload or start applies it"
            self._problems.note(_HALF_DONE, f"override {cause.record_id}: {text}")
            raise EnvironmentFault(text, operation="write") from error

    def _apply(self, actor: str, cause: Cause | None) -> tuple[str, ...]:
        self._surface.call(self._surface.reload_begins)
        try:
            loaded = self.load()
            changes = describe(self._controller.rules, loaded.rules, self._clock().wall_ns)
            self._take_over(loaded.rules, partial(self._tell, actor, cause, changes, loaded.rules.sha256))
        except (ConfigError, EnvironmentFault) as error:
            self._failed(actor, str(error))
            raise
        finally:
            self._surface.call(self._surface.reload_ends)
        self._note_damage(loaded)
        self._problems.note(_HALF_DONE, None)
        return changes

    def _tell(self, actor: str, cause: Cause | None, changes: Sequence[str], sha256: str) -> None:
        """One entry for the load and what caused it; a second one for what else has changed in the files meanwhile."""
        own = [] if cause is None else cause.own(changes)
        if cause is not None:
            fields = {**cause.fields, "by": actor, "sha256": sha256, "changes": own}
            tell(self._log, self._trail, cause.kind, cause.interface, cause.text, fields)
        others = [line for line in changes if line not in own]
        if cause is not None and not others:
            return
        told = f"{actor} reloaded: " + ("; ".join(others) or "nothing changed")
        self._trail.append("reload", "", {"text": told, "by": actor, "sha256": sha256, "changes": others})
        for line in others or ("nothing changed",):
            self._log.emit("info", "reload", {"text": line, "by": actor})

    def _failed(self, actor: str, error: str) -> None:
        self.config_error = error
        self._controller.forget_frame()
        first, *more = error.splitlines() or [""]
        text = f"the configuration stays as it was: {first}" + (f" (and {len(more)} more)" if more else "")
        self._trail.append("reload_failed", "", {"text": text, "by": actor, "error": error})
        self._log.emit("error", "reload_failed", {"text": text, "by": actor})

    def _take_over(self, rules: Rules, told: Callable[[], None]) -> None:
        """Swap the rules in. What may be refused or may block comes first, and is taken back where the rest is refused."""
        take_back = self._surface.reserve(rules.config)
        try:
            self._surface.call(lambda: self._swap(rules, told))
        except EnvironmentFault:
            take_back()
            raise

    def _swap(self, rules: Rules, told: Callable[[], None]) -> None:
        self._surface.adapt(self._controller.rules.config, rules.config)
        self.config_error = None
        self.loaded_wall_ns = self._clock().wall_ns
        told()  # before what follows from it
        self._controller.take_rules(rules)

    def _note_damage(self, loaded: config.Loaded) -> None:
        text = "; ".join(str(problem) for problem in loaded.damaged)
        self._problems.note("overrides", f"own override records cannot be read: {text}" if text else None)
        for note in loaded.notes:
            if note not in self._notes:
                self._log.emit("info", "note", {"text": note})
        self._notes = frozenset(loaded.notes)
