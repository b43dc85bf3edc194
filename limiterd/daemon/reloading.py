"""A reload: read, validate and compare everything first, then swap it in; on an error nothing has changed.

Files are read in the thread of whoever asked; only the swap itself happens in the loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from limiterd import config
from limiterd.core.diff import describe
from limiterd.core.errors import ConfigError, EnvironmentFault
from limiterd.core.model import Config, Now, Rules
from limiterd.daemon.chronicle import Log, Trail
from limiterd.daemon.keeper import Keeper
from limiterd.daemon.machine import hostname
from limiterd.daemon.problems import Problems

T = TypeVar("T")


class Surface(Protocol):
    """The rest of the daemon, as far as a reload changes it."""

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the loop."""

    def reload_begins(self) -> None:
        """Tell the service manager; in the loop."""

    def reload_ends(self) -> None:
        """Tell the service manager, however it ended; in the loop."""

    def reserve(self, config: Config) -> Callable[[], None]:
        """Let those follow that may be refused or may block; returns what takes it back. Raises EnvironmentFault."""

    def adapt(self, before: Config, after: Config) -> None:
        """Let all others follow; in the loop. Raises EnvironmentFault, and has changed nothing then."""


class Reloading:
    """Loads the configuration and the overrides, at the start and again; any thread may."""

    def __init__(
        self,
        path: str,
        loaded: config.Loaded,
        keeper: Keeper,
        surface: Surface,
        log: Log,
        trail: Trail,
        problems: Problems,
        clock: Callable[[], Now],
    ) -> None:
        self.lock = threading.RLock()
        self.config_error: str | None = None
        self.loaded_wall_ns = clock().wall_ns
        self._path = path
        self._keeper = keeper
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
        unfit = loaded.unfit_after(self._keeper.rules)
        if unfit:
            raise ConfigError(unfit)
        return loaded

    def reload(self, who: str) -> tuple[str, ...]:
        """Read, validate and diff everything, then swap it in; the lines that say what changed.

        Raises ConfigError, or EnvironmentFault where the machine refuses what the files want (a group that does not exist):
        nothing changed then.
        """
        with self.lock:
            self._surface.call(self._surface.reload_begins)
            try:
                loaded = self.load()
                changes = describe(self._keeper.rules, loaded.rules, self._clock().wall_ns)
                self._take_over(loaded.rules)
            except (ConfigError, EnvironmentFault) as error:
                self._failed(who, str(error))
                raise
            finally:
                self._surface.call(self._surface.reload_ends)
            self._note_damage(loaded)
            told = f"{who} reloaded: " + ("; ".join(changes) or "nothing changed")
            fields = {"text": told, "by": who, "sha256": loaded.rules.sha256, "changes": list(changes)}
            self._trail.append("reload", "", fields)
            for line in changes or ("nothing changed",):
                self._log.emit("info", "reload", {"text": line, "by": who})
            return changes

    def _failed(self, who: str, error: str) -> None:
        self.config_error = error
        self._keeper.forget_frame()
        text = f"the configuration stays as it was: {'; '.join(error.splitlines())}"
        self._trail.append("reload_failed", "", {"text": text, "by": who, "error": error})
        self._log.emit("error", "reload_failed", {"text": text, "by": who})

    def _take_over(self, rules: Rules) -> None:
        """Swap the rules in. What may be refused or may block comes first, and is taken back where the rest is refused."""
        take_back = self._surface.reserve(rules.config)
        try:
            self._surface.call(lambda: self._swap(rules))
        except EnvironmentFault:
            take_back()
            raise

    def _swap(self, rules: Rules) -> None:
        self._surface.adapt(self._keeper.rules.config, rules.config)
        self.config_error = None
        self.loaded_wall_ns = self._clock().wall_ns
        self._keeper.take_rules(rules)

    def _note_damage(self, loaded: config.Loaded) -> None:
        text = "; ".join(str(problem) for problem in loaded.damaged)
        self._problems.note("overrides", f"own override records cannot be read: {text}" if text else None)
        for note in loaded.notes:
            if note not in self._notes:
                self._log.emit("info", "note", {"text": note})
        self._notes = frozenset(loaded.notes)
