"""The audit trail's format: lines that each carry the hash of the line before, in files that rotate.

A line is {"seq":…,"wall":…,"kind":…,"interface":…,"fields":{…},"prev":…}; prev is the SHA-256 of the previous line's bytes
without its newline, 64 zeros for the very first. Files: audit.jsonl (newest), audit.jsonl.1, … (oldest); the chain runs on
through them. A line that is no entry is sound only where a `torn` entry follows and carries its hash: a crash tore it,
and the next start ended and marked it.

Everything here only reads. Memory is bounded by a block and a line, whatever the files hold.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.units import format_wall
from limiterd.files import fault

FILE_NAME: Final = "audit.jsonl"
GENESIS: Final = "0" * 64
TORN: Final = "torn"
MAX_LINE_BYTES: Final = 256 << 10
_MAX_FIELDS_BYTES: Final = MAX_LINE_BYTES // 2
_MAX_FIELDS_DEPTH: Final = jsonsafe.MAX_DEPTH - 2
_SEQ_MARK: Final = b'{"seq":'
_TAIL_BYTES: Final = 4 * MAX_LINE_BYTES
_BLOCK_BYTES: Final = 64 << 10
_MAX_FINDINGS: Final = 100
_BEFORE_ALL: Final = 1 << 62
"""A seq above all there are."""
_LONGEST_HOLE: Final = 8
"""So many numbers without a file are looked at before the highest one is thought to be found."""


# ---- lines ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One line as read back; hash is the line's own, wall is RFC 3339 in UTC."""

    seq: int
    wall: str
    kind: str
    interface: str
    fields: Mapping[str, object]
    prev: str
    hash: str


def line_hash(line: bytes) -> str:
    """The hash of a line's bytes, without its newline."""
    return hashlib.sha256(line).hexdigest()


def seq_of(line: bytes) -> int | None:
    """A line's seq without parsing the rest; None for what is no line of a trail."""
    head = line[: len(_SEQ_MARK) + 20].partition(b",")[0]
    number = head.removeprefix(_SEQ_MARK)
    return int(number) if head.startswith(_SEQ_MARK) and number.isdigit() else None


def parse_line(line: bytes) -> Entry | None:
    """The line as an entry; None for what no trail would hold."""
    try:
        value = jsonsafe.parse(line)
        return jsonsafe.decode(Entry, {**value, "hash": line_hash(line)}) if isinstance(value, dict) else None
    except ValueError:
        return None


def _fields_text(fields: Mapping[str, object]) -> str:
    """The fields as JSON; where they are too long for a line, the largest give way and are named under "omitted"."""
    texts = {str(jsonsafe.plain(key)): jsonsafe.dump(jsonsafe.plain(value, _MAX_FIELDS_DEPTH)) for key, value in fields.items()}
    excess = sum(map(len, texts.values())) + sum(map(len, texts)) - _MAX_FIELDS_BYTES
    omitted = []
    for name in sorted(texts, key=lambda name: len(texts[name]) + len(name), reverse=True):
        if excess <= 0:
            break
        excess -= len(texts.pop(name)) + len(name)
        omitted.append(name[:100])
    if omitted:
        texts["omitted"] = jsonsafe.dump(sorted(omitted)[:100])
    return "{" + ",".join(f"{jsonsafe.dump(name)}:{text}" for name, text in texts.items()) + "}"


def body_of(wall_ns: int, kind: str, interface: str, fields: Mapping[str, object]) -> str:
    """What a line says, before it has its place in the chain."""
    head = jsonsafe.dump(jsonsafe.plain({"wall": format_wall(wall_ns), "kind": kind, "interface": interface}))
    return f'{head[1:-1]},"fields":{_fields_text(fields)}'


def seal(seq: int, body: str, prev: str) -> bytes:
    """The line itself, without its newline."""
    return f'{{"seq":{seq},{body},"prev":"{prev}"}}'.encode()


# ---- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One opened file of the trail, as long as it was when it was opened."""

    name: str
    descriptor: int
    size: int
    inode: tuple[int, int]


def _name(number: int) -> str:
    """The file of this number; 0 is the newest."""
    return f"{FILE_NAME}.{number}" if number else FILE_NAME


def _listed(directory: Path) -> list[int]:
    """The numbers that files of the trail have now, in ascending order; none where there is no directory. Raises OSError."""
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    suffixes = (name.removeprefix(f"{FILE_NAME}.") for name in names if name.startswith(f"{FILE_NAME}."))
    return sorted(int(suffix) for suffix in suffixes if suffix.isascii() and suffix.isdecimal() and len(suffix) < 10)


def part_of(name: str, descriptor: int) -> Part:
    """A file that somebody opened, as long as it is now. Raises OSError; what is no regular file reads as empty."""
    found = os.fstat(descriptor)
    return Part(name, descriptor, found.st_size if stat.S_ISREG(found.st_mode) else 0, (found.st_dev, found.st_ino))


def _open_part(directory: Path, name: str) -> Part | None:
    """One file of the trail, None where there is none of that name. Raises OSError, for a link too; a fifo reads as empty."""
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return part_of(name, descriptor)


def close(parts: Iterable[Part]) -> None:
    """Close files that were opened."""
    for part in parts:
        os.close(part.descriptor)


def _open_all(directory: Path) -> list[Part]:
    """All files, newest first, however they are rotated meanwhile. Raises OSError.

    A rotation only ever moves a file one number up. So whoever looks at one number after the other comes upon every file that
    was there at the beginning; upon one that moves along several times, of which the last counts: by then nothing is added
    to it, and all that is older comes after it. While files are moved there is a hole between two of them: it is no end.
    """
    parts: dict[tuple[int, int], Part] = {}
    number, missing, listed = 0, 0, _listed(directory)
    try:
        while missing <= _LONGEST_HOLE or (listed and listed[-1] >= number):
            if missing > _LONGEST_HOLE:
                number = next(known for known in listed if known >= number)
            part = _open_part(directory, _name(number))
            number, missing = number + 1, 0 if part else missing + 1
            if part is not None:
                close(earlier for earlier in [parts.pop(part.inode, None)] if earlier)
                parts[part.inode] = part
    except OSError:
        close(parts.values())
        raise
    return [*parts.values()]


def open_parts(directory: Path) -> list[Part]:
    """The trail's files, newest first: those that there were at the beginning, with no gap that a rotation makes.

    Whoever opened them closes them. Raises EnvironmentFault(operation="read").
    """
    try:
        return _open_all(directory)
    except OSError as error:
        raise fault(f"the audit trail in {directory} cannot be opened", error, "read") from error


@contextmanager
def opened(trail: Path | Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The files of a trail's directory, opened and closed again; or those that the caller has opened, as they are.

    Raises EnvironmentFault(operation="read"), also for what goes wrong while they are read.
    """
    parts = open_parts(trail) if isinstance(trail, Path) else trail
    try:
        yield parts
    except OSError as error:
        where = f" in {trail}" if isinstance(trail, Path) else ""
        raise fault(f"the audit trail{where} cannot be read", error, "read") from error
    finally:
        if isinstance(trail, Path):
            close(parts)


def _backwards(part: Part) -> Iterator[bytes]:
    """A file's lines, last first; of a line that is far too long only pieces come."""
    rest = b""
    position = part.size
    while position > 0:
        step = min(_BLOCK_BYTES, position)
        position -= step
        first, *others = (os.pread(part.descriptor, step, position) + rest).split(b"\n")
        yield from (line for line in reversed(others) if line)
        rest = first if len(first) <= _TAIL_BYTES else b""
    if rest:
        yield rest


def _forwards(part: Part) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whether a newline ends it), first line first; a line that is far too long comes in pieces."""
    rest = b""
    number = position = 0
    while position < part.size and (block := os.pread(part.descriptor, min(_BLOCK_BYTES, part.size - position), position)):
        position += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for number, line in enumerate(lines, number + 1):  # noqa: B020  # goes on counting
            yield number, line, True
        if len(rest) > _TAIL_BYTES:
            number += 1
            yield number, rest, False
            rest = b""
    if rest:
        yield number + 1, rest, False


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a chain goes on: the last seq, the last line's hash, and whether that line is no entry (torn)."""

    seq: int = 0
    head: str = GENESIS
    torn: bool = False


def tail(directory: Path) -> Tail:
    """Find where to go on, reading about a megabyte from the end at most. Raises EnvironmentFault(operation="read")."""
    with opened(directory) as parts:
        budget = _TAIL_BYTES
        head: str | None = None
        for part in parts:
            for line in _backwards(part):
                entry = parse_line(line)
                head = head or line_hash(line)
                budget -= len(line)
                if entry is not None:
                    return Tail(entry.seq, head, head != entry.hash)
                if budget < 0:
                    return Tail(0, head, torn=True)
        return Tail(0, head or GENESIS, head is not None)


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are wanted; None = all. Wall-clock bounds in ns: since ≤ entry < until; the seq is below before_seq."""

    interface: str | None = None
    kinds: Collection[str] | None = None
    since_wall_ns: int | None = None
    until_wall_ns: int | None = None
    before_seq: int | None = None

    def marks(self) -> Sequence[Sequence[bytes]]:
        """Texts of which each accepted line holds one out of each group: a cheap test before the dear one."""
        groups = [[] if self.interface is None else [self.interface], self.kinds or []]
        return [[jsonsafe.dump(jsonsafe.plain(word)).encode() for word in group] for group in groups if group]

    def accepts(self, entry: Entry) -> bool:
        """Whether the entry is one of them."""
        return (
            self.interface in {None, entry.interface}
            and (self.kinds is None or entry.kind in self.kinds)
            and (self.since_wall_ns is None or entry.wall >= format_wall(self.since_wall_ns))
            and (self.until_wall_ns is None or entry.wall < format_wall(self.until_wall_ns))
            and (self.before_seq is None or entry.seq < self.before_seq)
        )


def _newest_seq(parts: Sequence[Part]) -> int:
    entries = (parse_line(line) for part in parts for line in _backwards(part))
    return next((entry.seq for entry in entries if entry is not None), 0)


@dataclass(frozen=True, slots=True)
class Look:
    """How far back is looked: at so many lines, and so many bytes of them."""

    lines: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """Entries, newest first. Where older ones were not looked at, before_seq is the seq of the oldest line that was."""

    entries: tuple[Entry, ...]
    before_seq: int | None = None


def read(
    trail: Path | Sequence[Part], wanted: Filter, *, waiting: Mapping[int, bytes], limit: int, max_bytes: int
) -> tuple[Entry, ...]:
    """Newest first; of the `waiting` lines (by seq, oldest first) those that the files do not hold yet come before theirs.

    Stops at `limit` entries or about max_bytes of lines. Raises EnvironmentFault(operation="read").
    """
    found: list[Entry] = []
    wanted_marks = wanted.marks()
    with opened(trail) as parts:
        for line in newest_first(parts, waiting):
            if len(found) >= limit or max_bytes < 0:
                break
            entry = parse_line(line) if all(any(mark in line for mark in marks) for marks in wanted_marks) else None
            if entry is not None and wanted.accepts(entry):
                found.append(entry)
                max_bytes -= len(line)
    return tuple(found)


def read_newest(directory: Path, wanted: Filter, *, waiting: Mapping[int, bytes], limit: int, look: Look) -> Found:
    """As `read`, but never further back than `look` allows, whatever is wanted. Raises EnvironmentFault(operation="read")."""
    found: list[Entry] = []
    seq = _BEFORE_ALL
    lines, size_bytes = 0, 0
    with opened(directory) as parts:
        for line in newest_first(parts, waiting):
            if len(found) >= limit:
                break
            if lines >= look.lines or (lines and size_bytes + len(line) > look.size_bytes):
                return Found(tuple(found), seq)
            lines, size_bytes = lines + 1, size_bytes + len(line)
            entry = parse_line(line)
            if entry is not None:
                seq = entry.seq
                found += [entry] if wanted.accepts(entry) else []
    return Found(tuple(found))


def newest_first(parts: Sequence[Part], waiting: Mapping[int, bytes]) -> Iterator[bytes]:
    """The lines, those of the `waiting` ones (by seq, oldest first) that no file holds yet before the files' own."""
    newest = _newest_seq(parts) if waiting else 0
    in_memory = (line for seq, line in reversed([*waiting.items()]) if seq > newest)
    return chain(in_memory, *map(_backwards, parts))


def entry(trail: Path | Sequence[Part], seq: int) -> Entry | None:
    """The entry of this number, looked for in the one file that can hold it. Raises EnvironmentFault(operation="read")."""
    with opened(trail) as parts:
        for part in parts:
            first = next((number for _, line, _ in _forwards(part) if (number := seq_of(line)) is not None), _BEFORE_ALL)
            if first <= seq:
                return next((parse_line(line) for line in _backwards(part) if seq_of(line) == seq), None)
    return None


# ---- verifying -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verification:
    """What the chain shows. findings ("file:line: …") are breaks or expected hashes that are not there; notes are harmless.

    ok: there are no findings; intact: there is no break, so the findings, if any, are of expected hashes. first_seq and
    last_seq bound what is there (None: nothing); head is the hash of the last line.
    """

    ok: bool
    entries: int
    first_seq: int | None
    last_seq: int | None
    head: str
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    intact: bool = True


@dataclass(slots=True)
class _Walk:
    """The state of one pass over all lines, oldest first."""

    entries: int = 0
    first_seq: int | None = None
    last_seq: int | None = None
    head: str = GENESIS
    place: str = ""
    junk: str = ""
    """Where the line before stands, if it was no entry."""
    junk_lines: int = 0
    broken: int = 0
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, text: str) -> None:
        """Report a break."""
        self.broken += 1
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(text)

    def note(self, text: str) -> None:
        """Report what is odd and harmless."""
        if len(self.notes) < _MAX_FINDINGS:
            self.notes.append(text)

    def line(self, place: str, line: bytes) -> None:
        """Take the next line."""
        entry = parse_line(line)
        if entry is None:
            self.settle()
            self.junk = place
            self.junk_lines += 1
        else:
            self._entry(place, entry)
        self.head = line_hash(line)
        self.place = place

    def _entry(self, place: str, entry: Entry) -> None:
        if not self.place:
            self._first(place, entry)
        elif entry.prev != self.head:
            self._break(place, entry)
        elif self.junk:
            self._after_junk(entry)
        elif self.last_seq is not None and entry.seq != self.last_seq + 1:
            self.find(f"{place}: altered: seq {entry.seq} where {self.last_seq + 1} follows")
        self.junk = ""
        self.junk_lines = 0
        self.entries += 1
        self.first_seq = entry.seq if self.first_seq is None else self.first_seq
        self.last_seq = entry.seq

    def _first(self, place: str, entry: Entry) -> None:
        if entry.seq == 1 and entry.prev != GENESIS:
            self.find(f"{place}: altered: the first entry of all follows none, yet it names one before it")
        elif entry.seq != 1:
            self.note(f"{place}: the trail begins at seq {entry.seq}; what was before was rotated away or removed")

    def _after_junk(self, entry: Entry) -> None:
        if entry.kind == TORN:
            self.note(f"{self.junk}: torn by a crash, ended and marked by seq {entry.seq}")
        else:
            self.settle()

    def settle(self) -> None:
        """Report the line before, if it was no entry and nothing marks it as torn."""
        if self.junk:
            self.find(f"{self.junk}: altered: not an entry, and not marked as torn by a crash")

    def _break(self, place: str, entry: Entry) -> None:
        self.settle()
        step = None if self.last_seq is None else entry.seq - self.last_seq - self.junk_lines
        if step is not None and step > 1:
            verb = "entry was" if step == 2 else "entries were"
            self.find(f"{place}: {step - 1} {verb} removed before seq {entry.seq}")
        elif step is not None and step < 1:
            self.find(f"{place}: out of order: seq {entry.seq} after seq {self.last_seq}")
        elif not self.junk:
            self.find(f"{self.place}: altered, or else the next line's prev: they do not fit together")


def expectations(written: str | None, head: str | None) -> dict[str, str]:
    """What `verify` must find: the line that the daemon wrote last, and the one that the asker knows of."""
    known = ((written, "what this daemon wrote last"), (head, "the expected head"))
    return {hash_: words for hash_, words in known if hash_ is not None}


def verify(trail: Path | Sequence[Part], *, expected: Mapping[str, str] | None = None) -> Verification:
    """Follow the chain through all files, oldest first.

    expected: hashes that some line must have, each with the words that name it in a finding ("the head logged at …"); so a
    cut tail shows, which the chain alone cannot tell from a shorter trail. Raises EnvironmentFault(operation="read").
    """
    missing = dict(expected or {})
    walk = _Walk()
    with opened(trail) as parts:
        for part in reversed(parts):
            ended = True
            for number, line, ended in _forwards(part):  # noqa: B007  # used below
                walk.line(f"{part.name}:{number}", line)
                missing.pop(walk.head, None)
            if parts and part is parts[0] and not ended and walk.junk:
                walk.note(f"{walk.junk}: incomplete: being written right now, or torn by a crash and not yet marked")
                walk.junk = ""
    walk.settle()
    intact = not walk.broken
    for hash_, words in missing.items():
        walk.find(
            f"{walk.place or FILE_NAME}: no line has the hash {hash_} ({words}): the end was cut off after it, "
            "its line altered, or its file rotated away"
        )
    if walk.broken > _MAX_FINDINGS:
        walk.findings.append(f"… and {walk.broken - _MAX_FINDINGS} more")
    return Verification(
        not walk.broken, walk.entries, walk.first_seq, walk.last_seq, walk.head, tuple(walk.findings), tuple(walk.notes), intact
    )
