"""`limiterctl check`: files judged without a daemon, as a daemon will judge them.

Rule: what passes here starts and reloads, and what is refused here is refused there, on a machine with the same groups. Without
paths: what a daemon with the configuration file `default` would load. With paths: exactly these, together. A file is one of
override records where it lies in a directory of them, or holds a list under `overrides`; else it is a configuration. Records are
judged beside the configuration among the paths, else beside `default`, where there is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from limiterd.config import override_files as overrides
from limiterd.config.load import (
    DEFAULT_PATH,
    Parsed,
    clashes,
    load_all,
    parse_valid,
    policy_remarks,
    record_remarks,
    store_directory,
    unknown_groups,
)
from limiterd.config.override_files import Found, Store
from limiterd.config.record_ids import Ids, Spot, duplicates
from limiterd.config.yaml_reader import Items, Problems, Table, compose, decode, read_bytes, shown
from limiterd.core.errors import ConfigError, Problem
from limiterd.core.model import Config, Rules

RECORDS: Final = "overrides.d"
"""The name of a directory of override files, wherever it is."""

Verdict = tuple[tuple[Problem, ...], tuple[str, ...]]
"""Problems and remarks."""


def check(paths: Sequence[str | os.PathLike[str]], *, host: str = "", default: str | os.PathLike[str] = DEFAULT_PATH) -> Verdict:
    """Validate without a daemon: (problems, remarks), both empty where all is well. Raises nothing."""
    if not paths:
        try:
            loaded = load_all(default, host=host)
        except ConfigError as error:
            return error.problems, ()
        return (), (*loaded.notes, *(str(problem) for problem in loaded.damaged))
    return _check_these([os.fspath(path) for path in paths], host, os.fspath(default))


def _check_these(paths: Sequence[str], host: str, default: str) -> Verdict:
    whole = Found()
    installed, note = _installed(default)
    config: Config | None = None
    for path in paths:
        if _is_directory(path):
            whole.add(overrides.read_directory(path))
            continue
        try:
            data = read_bytes(path)
        except ConfigError as error:
            whole.problems += error.problems
            continue
        if _holds_records(data, path, installed):
            whole.add(overrides.parse(data, shown(path)))
            continue
        parsed = parse_valid(data, shown(path))
        whole.problems += _problems_of(parsed)
        if parsed.config is not None and parsed.context.is_valid("policies"):
            config = parsed.config
            whole.notes += policy_remarks(shown(path), Rules(config))
    judge = config or installed
    rules = replace(Rules(host=host), config=judge or Config())
    around = _around(paths, judge) if judge is not None else []
    whole.problems += duplicates(around, whole.ids)
    now_ns = time.time_ns()
    if judge is not None:
        whole.problems += clashes(whole.records, rules, now_ns)
    elif whole.ids:
        whole.notes.append(f"the records are not judged beside any policy: {note}")
    whole.notes += record_remarks((placed.record for placed in whole.records), rules, now_ns, configured=judge is not None)
    return tuple(sorted(set(whole.problems))), tuple(whole.notes)


def _problems_of(parsed: Parsed) -> Iterator[Problem]:
    yield from parsed.problems
    if parsed.config is not None:
        yield from unknown_groups(parsed.config, parsed.context)


def _installed(default: str) -> tuple[Config | None, str]:
    """The configuration of this machine, or why it cannot be used."""
    try:
        parsed = parse_valid(read_bytes(default), shown(default))
    except ConfigError as error:
        return None, str(error.problems[0])
    return (None, f"{shown(default)} is not valid") if parsed.problems else (parsed.config, "")


def _around(paths: Sequence[str], config: Config) -> list[Spot]:
    """The ids that stand beside the checked files already, where these lie in the directory that a daemon reads."""
    directory = _resolved(config.overrides.directory)
    checked = {_resolved(path) for path in paths}
    inside = {path for path in checked if directory in (path, path.parent)}
    if not inside:
        return []
    others = Ids() if directory in checked else overrides.read_directory(config.overrides.directory).ids
    return [*Store(store_directory(config)).load().ids, *(spot for spot in others if _resolved(spot.file) not in checked)]


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path)) if "\0" not in path else Path(path)


def _is_directory(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _holds_records(data: bytes, path: str, installed: Config | None) -> bool:
    """Whether a file is one of override records."""
    directory = Path(path).absolute().parent
    if directory.name == RECORDS or (installed is not None and directory == Path(installed.overrides.directory)):
        return True
    try:
        root = compose(decode(data, path), Problems(path))
    except ConfigError:
        return False
    return isinstance(root, Table) and "overrides" in root.pairs and isinstance(root.pairs["overrides"][1], Items)
