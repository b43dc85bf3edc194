"""A reload: read, validate and compare everything first, then swap it in; on an error nothing has changed.

Files are read in the thread of whoever asked; only the swap itself happens in the loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar

from limiterd.config import load as config
from limiterd.core.errors import ConfigError, EnvironmentFault
from limiterd.core.model import Config, Now, Override, Rules
from limiterd.core.rule_changes import describe
from limiterd.daemon.controller import Controller
from limiterd.daemon.event_log import Log, Trail
from limiterd.daemon.health import Health
from limiterd.daemon.host import hostname

T = TypeVar("T")

HALF_DONE: Final = "overrides on disk"
"""The topic of a record that is on the disk and should not be, or the other way round."""


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
        self._digest, self.theirs = loaded.digest, loaded.theirs
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

    def reload(self, actor: str) -> tuple[str, ...]:
        """Read, validate and diff everything, then swap it in: what changed, as lines.

        Raises ConfigError, or EnvironmentFault where the machine refuses (a loop that does not answer): nothing changed then.
        """
        with self.lock:
            self._surface.call(self._surface.reload_begins)
            try:
                loaded = self.load()
                changes = describe(self._controller.rules, loaded.rules, self._clock().wall_ns)
                self._take_over(loaded.rules, partial(self._tell, actor, changes, loaded.rules.sha256))
            except (ConfigError, EnvironmentFault) as error:
                self._failed(actor, str(error))
                raise
            finally:
                self._surface.call(self._surface.reload_ends)
            self._digest, self.theirs = loaded.digest, loaded.theirs
            self._note_damage(loaded)
            self._problems.note(HALF_DONE, None)
            return changes

    def with_records(self, records: Iterable[Override], own: Iterable[bytes]) -> Rules:
        """The rules in force with other records; own are the texts of the daemon's own record files, in their order."""
        digest = self._digest.copy()
        for text in own:
            digest.update(text)
        return replace(self._controller.rules, overrides=tuple(records), sha256=digest.hexdigest())

    def put_in_force(self, rules: Rules) -> None:
        """Swap in rules that differ in their records alone. Raises EnvironmentFault where the loop does not answer."""
        self._surface.call(lambda: self._controller.take_rules(rules))

    def _tell(self, actor: str, changes: Sequence[str], sha256: str) -> None:
        told = f"{actor} reloaded: " + ("; ".join(changes) or "nothing changed")
        self._trail.append("reload", "", {"text": told, "by": actor, "sha256": sha256, "changes": list(changes)})
        for line in changes or ("nothing changed",):
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
