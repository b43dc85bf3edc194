"""Override records: read from the operator's directory, kept in the daemon's own.

Rule: the operator's files are only ever read. The daemon writes its records, one file each, into `overrides.d` under its
state directory, in the same format and through the same parser: what is written was read back first.

A damaged file of the operator's is an error of the whole load, because somebody is there to correct it. A damaged file
of the daemon's own is left out and reported: enforcement goes on without that record, and the file stays for people to
look at. Ids are unique over both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from limiterd.config.context import Context
from limiterd.config.reader import is_null, read
from limiterd.config.record_ids import LIST, Ids, Spot, Taken
from limiterd.config.yaml_reader import (
    ENDS_MARKED,
    MAX_DEPTH,
    START,
    Items,
    Node,
    Place,
    Problems,
    Refused,
    Scalar,
    Table,
    compose,
    decode,
    read_bytes,
    refuse,
    shown,
)
from limiterd.core.errors import ConfigError, EnvironmentFault, PeerError, Problem
from limiterd.core.keys import Section, given, key, keys_of
from limiterd.core.kinds import ListOf
from limiterd.core.model import Override, OverrideAction, Policy, Rules
from limiterd.core.policy import OverrideState, host_matches, is_glob, override_state, policy_for
from limiterd.core.units import exact_rate
from limiterd.files import fault, sync_directory, write_atomic
from limiterd.trusted_files import UntrustedError, distrust, open_trusted

SUFFIXES: Final = (".yaml", ".yml")
MAX_FILES: Final = 1000
MAX_RECORDS: Final = 5000
"""Override records in one file, and in all files of a directory."""
MAX_TOTAL_BYTES: Final = 16 << 20
"""All files of one directory together."""
KEPT_NS: Final = 7 * 86_400 * 10**9
"""So long the daemon's own records stay on the disk, and in lists, after they have expired."""
OWN: Final = "state"
"""The origin of the daemon's own records."""


class Placed(NamedTuple):
    """A record with the file that it stands in, its path there, and where its keys are."""

    record: Override
    file: str
    path: str
    places: Mapping[str, Place]

    def problem(self, key: str, message: str) -> Problem:
        """Make a problem of this record's key."""
        line, column = self.places.get(key, self.places[""])
        return Problem(self.file, line, column, f"{self.path}.{key}", message)


@dataclass(slots=True)
class Found:
    """What a directory or file held: valid records, where every readable id stands, problems and remarks.

    Records that are for other hosts are judged like all others, and then only counted.
    """

    records: list[Placed] = field(default_factory=list)
    ids: Ids = field(default_factory=Ids)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    elsewhere: int = 0

    def add(self, other: Found) -> None:
        """Take in what another file held; an id that was known already is a problem."""
        self.records += other.records
        self.problems += other.problems
        self.problems += self.ids.add(other.ids)
        self.notes += other.notes
        self.elsewhere += other.elsewhere


# ---- reading ---------------------------------------------------------------------------------------


def parse(data: bytes, file: str, *, origin: str | None = None, host: str | None = None, only_valid: bool = False) -> Found:
    """Read the bytes of an override file. Never raises: what is wrong is in the answer, beside the records that are right.

    origin is what the records carry; by default the file and the line. host: only records that can apply there are kept.
    only_valid: ids of records that are wrong otherwise do not count.
    """
    problems = Problems(file)
    records = _Records(problems, origin, host, only_valid=only_valid)
    try:
        root = compose(decode(data, file), problems, taken_from=LIST, take=records.take)
        if root is None:
            problems.add(START, LIST, "no record is in this file; write `overrides: []` for none, or remove it")
        else:
            read(_FILE, root, "", Context(problems))
    except ConfigError as error:
        return Found(problems=list(error.problems))
    records.found.problems += problems.take()
    return records.found


class _Records:
    """Judges one record after the other while their file is read, so that a file of thousands is never held whole."""

    def __init__(self, problems: Problems, origin: str | None, host: str | None, *, only_valid: bool) -> None:
        self.found = Found()
        self._problems = problems
        self._origin = origin
        self._host = host
        self._only_valid = only_valid
        self._rested = time.monotonic()

    def take(self, node: Node, path: str) -> Node:
        """Read a record. What is not read is left to the list's reader, which says why."""
        self._rest()
        if is_null(node):
            return node
        context = Context(self._problems)
        context.places[path] = node.place
        read(Section(Override), node, path, context)
        record = context.entries.get(path)
        if record is not None:
            self._keep(record, path, context)
        return Refused(node.place)

    def _rest(self) -> None:
        """Leave the interpreter to other threads for a while: a sampling loop can take a whole turn then."""
        if time.monotonic() - self._rested > _STRETCH_S:
            time.sleep(_REST_S)
            self._rested = time.monotonic()

    def _keep(self, record: Override, path: str, context: Context) -> None:
        found, file = self.found, self._problems.file
        if context.is_valid(path) if self._only_valid else context.is_read(f"{path}.id"):
            number = int(path.removeprefix(f"{LIST}[").removesuffix("]"))
            found.problems += found.ids.add([Spot(record.id, file, *context.place_of(f"{path}.id"), number)])
        if not context.is_valid(path):
            return
        if self._host is not None and not host_matches(record.hosts, self._host):
            found.elsewhere += 1
            return
        placed = _placed(record, path, context, self._origin)
        if _has_idle_rates(record):
            found.notes.append(f"{placed.record.origin}: override {record.id}: {_IDLE_RATES}")
            placed = placed._replace(record=replace(placed.record, threshold_bps=None, limit_bps=None))
        found.records.append(placed)


_STRETCH_S: Final = 0.004
"""Longer than the interpreter's switch interval: else a thread that waits would never get to insist."""
_REST_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class _OverrideFile:
    """The whole of an override file."""

    overrides: tuple[Override, ...] = field(metadata=key(LIST, ListOf(Section(Override), what="record", most=MAX_RECORDS)))


_FILE: Final = Section(_OverrideFile)


def _placed(record: Override, path: str, context: Context, origin: str | None) -> Placed:
    file, start = context.problems.file, context.place_of(path)
    places = {name: context.places[where] for name in keys_of(Override) if (where := f"{path}.{name}") in context.places}
    return Placed(replace(record, origin=origin or f"{file}:{start.line}"), file, path, {"": start, **places})


_IDLE_RATES: Final = "a threshold or limit has no effect with `action: exempt`"


def _has_idle_rates(record: Override) -> bool:
    return record.action is OverrideAction.EXEMPT and (record.threshold_bps, record.limit_bps) != (None, None)


def read_directory(
    directory: str,
    *,
    owners: Collection[int] = (),
    digest: Callable[[bytes], object] = lambda _: None,
    host: str | None = None,
    only_valid: bool = False,
) -> Found:
    """Read every *.yaml and *.yml of a directory in the order of their names; names that begin with "." are left out.

    A directory that is not there holds no records, which is noted. digest gets the bytes of each file; host and only_valid
    as parse() takes them. Never raises for what it finds.
    """
    name = shown(directory)
    try:
        descriptor = open_trusted(directory, owners=owners, directory=True)
    except FileNotFoundError:
        return Found(notes=[f"{name}: there is no such directory, so there are no overrides"])
    except UntrustedError as error:
        return Found(problems=list(refuse(name, f"the overrides directory {error}").problems))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds a NUL"
        return Found(problems=list(refuse(name, f"the overrides directory cannot be read: {reason}").problems))
    try:
        found = _read_entries(descriptor, name, owners, digest, partial(parse, host=host, only_valid=only_valid))
    except OSError as error:
        return Found(problems=list(refuse(name, f"the overrides directory cannot be read: {error.strerror}").problems))
    finally:
        os.close(descriptor)
    if found.elsewhere:
        found.notes.append(f"{name}: {found.elsewhere} records are for other hosts, and are not kept")
    return found


def _names_of(directory: int) -> list[str]:
    """The names of an opened directory's override files, in order. Raises OSError."""
    return sorted(name for name in os.listdir(directory) if name.endswith(SUFFIXES) and not name.startswith("."))


def _read_entries(
    descriptor: int, directory: str, owners: Collection[int], digest: Callable[[bytes], object], judge_file: Callable[..., Found]
) -> Found:
    if (reason := distrust(descriptor, owners)) is not None:
        return Found(problems=list(refuse(directory, f"the overrides directory {reason}").problems))
    names = _names_of(descriptor)
    whole, size = Found(), 0
    if len(names) > MAX_FILES:
        whole.problems += refuse(directory, f"holds {len(names)} files; at most {MAX_FILES} are read").problems
    for name in names[:MAX_FILES]:
        file = f"{directory.rstrip('/')}/{shown(name)}"
        try:
            data = read_bytes(name, dir_fd=descriptor, file=file, owners=owners)
        except ConfigError as error:
            whole.problems += error.problems
            continue
        size += len(data)
        digest(data)
        whole.add(judge_file(data, file))
        if size > MAX_TOTAL_BYTES or len(whole.ids) > MAX_RECORDS:
            most = f"more than {MAX_TOTAL_BYTES >> 20} MiB or {MAX_RECORDS} records; remove what has expired"
            whole.problems += refuse(directory, f"the files up to {shown(name)} hold {most}").problems
            break
    return whole


# ---- judging a set ---------------------------------------------------------------------------------


def conflicts(record: Override, rules: Rules, wall_ns: int) -> Iterator[tuple[str, str]]:
    """Yield (key, message) where a record cannot make sense beside the policies: limit < threshold must hold in effect.

    Only what is certain counts: an interface named exactly with the policy that applies to it; a glob where no policy
    would do. Records that have expired or are for other hosts are not judged.
    """
    if record.action is not OverrideAction.LIMIT or _is_moot(record, rules, wall_ns):
        return
    exact = [policy for name in _literals(record) if (policy := policy_for(rules, name)) is not None]
    clashing = [policy for policy in exact if _clashes(record, policy)]
    has_glob = any(is_glob(entry) and not entry.startswith("!") for entry in record.interfaces)
    every = rules.config.policies
    if not clashing and has_glob and every and all(_clashes(record, policy) for policy in every):
        clashing = [every[0]]
    for policy in clashing[:1]:
        yield _clash(record, policy)


def _is_moot(record: Override, rules: Rules, wall_ns: int) -> bool:
    return override_state(record, rules.host, wall_ns) in {OverrideState.EXPIRED, OverrideState.OTHER_HOST}


def _literals(record: Override) -> Iterator[str]:
    return (entry for entry in record.interfaces if not is_glob(entry) and not entry.startswith("!"))


def _clashes(record: Override, policy: Policy) -> bool:
    threshold_bps = policy.detect.threshold_bps if record.threshold_bps is None else record.threshold_bps
    limit_bps = policy.limit.rate_bps if record.limit_bps is None else record.limit_bps
    return limit_bps >= threshold_bps


def _clash(record: Override, policy: Policy) -> tuple[str, str]:
    if record.threshold_bps is None:
        return "limit", (
            f"the limit {exact_rate(record.limit_bps or 0)} is not below the threshold {exact_rate(policy.detect.threshold_bps)} "
            f"of policy {policy.name}, which stays in effect; lower it, or add a higher `threshold`"
        )
    return "threshold", (
        f"the threshold {exact_rate(record.threshold_bps)} is not above the limit {exact_rate(policy.limit.rate_bps)} "
        f"of policy {policy.name}, which stays in effect; raise it, or add a lower `limit`"
    )


def remarks(record: Override, rules: Rules, wall_ns: int) -> Iterator[str]:
    """Yield what is worth knowing about a valid record by itself: that it never expires, or has."""
    if record.expires_wall_ns is None:
        yield f"{record.origin}: override {record.id} never expires"
    elif override_state(record, rules.host, wall_ns) == OverrideState.EXPIRED:
        yield f"{record.origin}: override {record.id} has expired and has no effect"


def unwatched(record: Override, rules: Rules, wall_ns: int, altnames: Collection[str] = ()) -> Iterator[str]:
    """Yield a remark for each interface that a record of this host names, and that no policy watches.

    altnames are those of watched links, where it is known what links there are.
    """
    if not _is_moot(record, rules, wall_ns):
        if all(entry.startswith("!") for entry in record.interfaces):
            yield f"{record.origin}: override {record.id} only excludes interfaces, so it matches none"
        for name in _literals(record):
            if policy_for(rules, name) is None and name not in altnames:
                yield f"{record.origin}: override {record.id} names {name}, which no policy watches"


# ---- one record from a control client --------------------------------------------------------------


def _node_of(value: object, depth: int = 0) -> Node:
    """Make the node that a JSON value would be in YAML; keys with null are left out, as keys that are not given."""
    if depth > MAX_DEPTH:
        return Refused(START)
    if isinstance(value, Mapping):
        pairs = {str(key): (Scalar(str(key), START), _node_of(one, depth + 1)) for key, one in value.items() if one is not None}
        return Table(START, pairs)
    if isinstance(value, list | tuple):
        return Items(START, [_node_of(one, depth + 1) for one in value])
    return Scalar(value if isinstance(value, str) else repr(value)[:100], START, plain=False)


def record_from_mapping(mapping: Mapping[str, object], origin: str = OWN) -> Override:
    """Read one record given as JSON, with the keys and forms of the YAML file. Raises ConfigError naming each bad key."""
    problems = Problems(origin)
    record = read(Section(Override), _node_of(mapping), "", Context(problems))
    problems.raise_if_any()
    if not isinstance(record, Override):
        raise refuse(origin, "is no override record")
    if _has_idle_rates(record):
        raise refuse(origin, f"{_IDLE_RATES}; leave it out, or write `action: limit`")
    return replace(record, origin=origin)


_NOTHING_TAKEN: Final = Taken()


def judge(record: Override, rules: Rules, wall_ns: int, theirs: Taken = _NOTHING_TAKEN) -> None:
    """Judge a new record beside the rules, and the operator's ids with their files.

    Raises PeerError: the id is taken, or a policy contradicts it.
    """
    known = next((one.origin for one in rules.overrides if one.id == record.id), theirs.file_of(record.id))
    if known is not None:
        where = "in the daemon's own store" if known == OWN else f"in {known}"
        raise PeerError(f"override {record.id} exists already, {where}; choose another id, or revoke that one first")
    for name, message in conflicts(record, rules, wall_ns):
        raise PeerError(f"override {record.id}: {name}: {message}")


# ---- the daemon's own records ----------------------------------------------------------------------


def to_yaml(records: Iterable[Override]) -> str:
    """Write records as an override file that reads back as exactly these."""
    lines = [ENDS_MARKED, "overrides:"]
    for record in records:
        written = [f"{key.name}: {key.kind.write(value)}" for key, value in given(record)]
        lines += [("  - " if index == 0 else "    ") + line for index, line in enumerate(written)]
    if len(lines) == 2:
        lines[1] += " []"
    return "\n".join([*lines, "...", ""])


class Store:
    """The daemon's own records under `<state>/overrides.d`, one file each. Every call reads the disk; none keeps a copy.

    add and revoke fsync: call them where a slow disk delays nobody.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def load(self, digest: Callable[[bytes], object] = lambda _: None) -> Found:
        """Read all records; damaged files are among the problems, and do not block the others. Never raises.

        digest gets the bytes of each file.
        """
        found = read_directory(str(self._directory), owners=self._owners(), digest=digest, only_valid=True)
        once = {placed.record.id: placed for placed in reversed(found.records)}
        found.records = [placed._replace(record=replace(placed.record, origin=OWN)) for placed in reversed(once.values())]
        found.notes.clear()
        return found

    def texts(self, *, without: str = "") -> Iterator[bytes]:
        """The bytes of each file in the order of their names, as they would be without that record."""
        path, rest = self._without(without) if without else (None, [])
        for name in self._names():
            if self._directory / name != path:
                with suppress(ConfigError):  # a load leaves it out as well
                    yield read_bytes(str(self._directory / name), owners=self._owners())
            elif rest:
                yield to_yaml(rest).encode("utf-8", "replace")

    def holds(self, record_id: str) -> bool:
        """Whether there is a file for that id, be it a damaged one."""
        return os.path.lexists(self._without(record_id)[0])

    def add(self, record: Override) -> None:
        """Keep one record durably.

        Raises PeerError where a file for that id stands there already (a damaged one too: revoke it) or there is no room,
        ConfigError where the record could not be read back, EnvironmentFault(operation="write") where the disk refuses:
        nothing changed then.
        """
        path = self._path_of(record.id)
        if os.path.lexists(path):
            raise PeerError(f"{path} exists already; revoke {record.id} first")
        if len(self._names()) >= MAX_FILES:
            raise PeerError(
                f"{self._directory} holds {MAX_FILES} records, the most there may be; revoke those not needed any more"
            )
        try:
            self._write(path, [record])
            self._verify(path, record)
        except EnvironmentFault:
            with suppress(EnvironmentFault):  # what is half there must not come alive at the next reload
                self._remove(path)
            raise

    def change(self, record: Override) -> None:
        """Put a record in the place of the one with its id, durably.

        Raises PeerError where there is none, EnvironmentFault(operation="write") where the disk refuses: nothing changed then.
        """
        found = [one for one in self.load().records if one.record.id == record.id]
        if not found:
            raise PeerError(f"the daemon's own store has no override {record.id}; see `limiterctl override list`")
        file = found[0].file
        beside = [one.record for one in self.load().records if one.file == file]
        self._write(Path(file), [record if one.id == record.id else one for one in beside])

    def revoke(self, record_id: str) -> None:
        """Forget one record durably.

        Raises PeerError where the store has no such record, EnvironmentFault(operation="write") where the disk refuses.
        """
        path, rest = self._without(record_id)
        if not os.path.lexists(path):
            raise PeerError(f"the daemon's own store has no override {record_id}; see `limiterctl override list`")
        if rest:
            self._write(path, rest)
        else:
            self._remove(path)

    def prune(self, records: Iterable[Override], wall_ns: int) -> list[str]:
        """Remove own records that expired more than KEPT_NS ago; the ids of those that are gone."""
        gone = []
        for record in records:
            over = record.expires_wall_ns is not None and record.expires_wall_ns + KEPT_NS < wall_ns
            if over and record.origin == OWN:
                with suppress(EnvironmentFault, PeerError):  # the next time tries again
                    self.revoke(record.id)
                    gone.append(record.id)
        return gone

    def _names(self) -> list[str]:
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise fault(f"{self._directory} cannot be read", error, "write") from error
        try:
            return _names_of(descriptor)
        finally:
            os.close(descriptor)

    def _verify(self, path: Path, record: Override) -> None:
        """Read back what was written, as the next start will. Raises EnvironmentFault."""
        try:
            found = parse(read_bytes(str(path), owners=self._owners()), str(path), origin=OWN)
        except ConfigError as error:
            raise EnvironmentFault(f"{path} cannot be read back: {error}", operation="write") from error
        if [placed.record for placed in found.records] != [replace(record, origin=OWN)] or len(self._names()) > MAX_FILES:
            raise EnvironmentFault(f"{path} does not read back as it was written: not kept", operation="write")

    def _owners(self) -> set[int]:
        """Whose files are trusted beside root's and the daemon's: those of who owns the state directory."""
        try:
            return {self._directory.parent.stat().st_uid}
        except OSError:
            return set()

    def _without(self, record_id: str) -> tuple[Path, list[Override]]:
        """The file that holds a record, or would, and the other records in it."""
        path = self._path_of(record_id)
        if os.path.lexists(path):
            return path, []
        records = self.load().records
        placed = next((one for one in records if one.record.id == record_id), None)
        if placed is None:
            return path, []
        return Path(placed.file), [one.record for one in records if one.file == placed.file and one is not placed]

    def _path_of(self, record_id: str) -> Path:
        return self._directory / f"record-{quote(record_id, safe='')}.yaml"

    def _write(self, path: Path, records: Sequence[Override]) -> None:
        text = to_yaml(records)
        data = text.encode("utf-8", "replace")
        back = parse(data, str(path), origin=OWN)
        if back.problems:
            raise ConfigError(back.problems)
        if [placed.record for placed in back.records] != [replace(record, origin=OWN) for record in records]:
            raise refuse(str(path), "would not read back as it was given; keep to texts on one line")
        write_atomic(path, data, mode=0o640)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink()
            sync_directory(path.parent)
        except OSError as error:
            raise fault(f"{path} cannot be removed", error, "write") from error
