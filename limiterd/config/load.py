"""Loads limiterd.yaml and every override record into one Rules object, or raises one ConfigError with all that is wrong.

Rule: nothing is applied from here. A load reads, validates and answers; whoever called swaps the answer in. Only
ConfigError leaves this module, whatever the files hold.

A missing certificate is not looked for here: the metrics server alone needs it, and enforcement never depends on that.
"""

from __future__ import annotations

import grp
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from limiterd.config import override_files as overrides
from limiterd.config.conditions import ACROSS
from limiterd.config.context import Context
from limiterd.config.override_files import Placed, Store
from limiterd.config.reader import read
from limiterd.config.record_ids import Taken, duplicates
from limiterd.config.yaml_reader import Place, Problems, compose, decode, read_bytes, shown
from limiterd.core.errors import ConfigError, Problem
from limiterd.core.keys import Section
from limiterd.core.model import Config, Override, PolicyMode, Rules
from limiterd.core.rule_changes import needs_restart

DEFAULT_PATH: Final = "/etc/limiterd/limiterd.yaml"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A complete load: the rules, remarks for people, and the daemon's own records that could not be read."""

    rules: Rules
    context: Context
    """Where the configuration's keys are."""
    digest: hashlib._Hash
    """Of the configuration and the operator's records; the daemon's own records come after them."""
    theirs: Taken
    """The ids of the operator's records, also of those that are for other hosts."""
    notes: tuple[str, ...] = ()
    damaged: tuple[Problem, ...] = ()
    blank: bool = False
    """Whether the configuration file holds nothing at all, not even a comment."""

    def unfit_after(self, before: Rules) -> list[Problem]:
        """What keeps a daemon that runs under `before` from following this load, although a start could."""
        found = [_problem(self.context, key, message) for key, message in needs_restart(before, self.rules)]
        if self.blank and self.rules.config != before.config:
            message = "is empty, which would mean all defaults; write the configuration, or a comment if defaults are meant"
            found.append(_problem(self.context, "file", message))
        return found


def _problem(context: Context, key: str, message: str) -> Problem:
    place: Place = context.place_of(key)
    return Problem(context.problems.file, place.line, place.column, key, message)


class Parsed(NamedTuple):
    """A configuration as far as it is valid; config is None where not even the directories can be told."""

    config: Config | None
    problems: tuple[Problem, ...]
    context: Context


def unknown_groups(config: Config, context: Context) -> Iterator[Problem]:
    """Yield a problem for each group that this machine does not have."""
    for key, name in (("control.group", config.control.group), ("control.admin_group", config.control.admin_group)):
        if name is not None and not _is_group(name):
            yield _problem(context, key, f"there is no group {name!r} on this machine; create it, or correct the name")


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def parse(data: bytes, file: str) -> Config:
    """Read the bytes of a configuration file; without any key it is all defaults. Raises ConfigError."""
    parsed = parse_valid(data, file)
    if parsed.config is None or parsed.problems:
        raise ConfigError(parsed.problems)
    return parsed.config


def parse_valid(data: bytes, file: str, *, paced: bool = True) -> Parsed:
    """Read a configuration as far as it is valid, so that the overrides can be judged in the same pass."""
    context = Context(Problems(file), paced)
    try:
        root = compose(decode(data, file), context.problems)
        made = Config() if root is None else read(Section(Config), root, "", context)
        if isinstance(made, Config):
            for condition in ACROSS:
                condition(made, context)
    except ConfigError as error:
        return Parsed(None, error.problems, context)
    known = isinstance(made, Config) and context.is_valid("overrides") and context.is_valid("state")
    return Parsed(made if known else None, context.problems.take(), context)


def load(path: str | os.PathLike[str]) -> Config:
    """Read the configuration file alone. Raises ConfigError, also for a file that is missing or cannot be trusted."""
    name = os.fspath(path)
    return parse(read_bytes(name), shown(name))


def store_directory(config: Config) -> str:
    """Where the daemon keeps its own override records."""
    return f"{config.state.directory.rstrip('/')}/overrides.d"


def load_rules(config_path: str | os.PathLike[str], *, host: str, paced: bool = True) -> Rules:
    """Read everything that a reload swaps in. Raises ConfigError with every problem of every file.

    paced False is for recorded samples, on any machine: neither the sampling interval nor the groups are checked.
    """
    return load_all(config_path, host=host, paced=paced).rules


def load_all(config_path: str | os.PathLike[str], *, host: str, wall_ns: int | None = None, paced: bool = True) -> Loaded:
    """Read configuration, the operator's overrides and the daemon's own, as load_rules does, with remarks.

    wall_ns (default: now) is only for judging which records have expired: those are information, never errors.
    """
    now_ns = time.time_ns() if wall_ns is None else wall_ns
    name = os.fspath(config_path)
    data = read_bytes(name)
    parsed = parse_valid(data, shown(name), paced=paced)
    config = parsed.config
    if config is None:
        raise ConfigError(parsed.problems)
    digest = hashlib.sha256(data)  # of the texts one after the other: `cat limiterd.yaml overrides.d/*.yaml … | sha256sum`
    theirs = overrides.read_directory(config.overrides.directory, digest=digest.update, host=host if paced else None)
    before_own = digest.copy()
    own = Store(store_directory(config)).load(digest=digest.update)
    records = [*theirs.records, *own.records]
    rules = Rules(
        config=config,
        overrides=tuple(placed.record for placed in records),
        host=host,
        sha256=digest.hexdigest(),
    )
    wrong = [*parsed.problems, *theirs.problems, *duplicates(own.ids, theirs.ids)]
    if paced:
        wrong += unknown_groups(config, parsed.context)
    if parsed.context.is_valid("policies"):
        wrong += clashes(theirs.records, rules, now_ns)
    if wrong:
        raise ConfigError(wrong)
    notes = [*theirs.notes, *policy_remarks(shown(name), rules)]
    notes += record_remarks(rules.overrides, rules, now_ns, configured=True)
    notes += [str(problem) for problem in clashes(own.records, rules, now_ns)]
    taken = Taken(theirs.ids)
    return Loaded(rules, parsed.context, before_own, taken, tuple(notes), tuple(own.problems), blank=not data.strip())


def clashes(records: Iterable[Placed], rules: Rules, wall_ns: int) -> Iterator[Problem]:
    """Yield a problem for each record that cannot make sense beside the policies."""
    for placed in records:
        for key, message in overrides.conflicts(placed.record, rules, wall_ns):
            yield placed.problem(key, message)


def policy_remarks(file: str, rules: Rules) -> Iterator[str]:
    """Yield what is valid but worth a look."""
    config = rules.config
    if not config.policies:
        yield f"{file}: there is no policy, so no link is watched"
    for policy in config.policies:
        if all(entry.startswith("!") for entry in policy.interfaces):
            yield f"{file}: policy {policy.name} only excludes interfaces, so it matches none"
        for entry in (entry for entry in policy.interfaces if "/" in entry):
            yield f"{file}: policy {policy.name} names {entry}, which only a recording of several machines can have"
        if policy.mode is PolicyMode.OBSERVE:
            yield f"{file}: policy {policy.name} observes: it reports and never limits"


def record_remarks(records: Iterable[Override], rules: Rules, wall_ns: int, *, configured: bool) -> Iterator[str]:
    """Yield what is worth knowing of valid records; configured: the policies are known."""
    for record in records:
        yield from overrides.remarks(record, rules, wall_ns)
        if configured:
            yield from overrides.unwatched(record, rules, wall_ns)
