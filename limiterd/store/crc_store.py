"""A small state file of independent records: damage costs the records it hits, no more.

The file is one JSON object, `{"<magic>":1,"records":[…]}`, with a record on each line, `{"crc":…,"<kind>":{…}}`; crc is the
CRC-32 of the record's canonical text. A file that does not parse as a whole is read line by line, and a record counts only
if its crc holds: what comes back is always a part of what was written, wherever the file was cut or altered.

A damaged file stays beside the next one as `<name>.damaged` (the latest such). A file of a newer format version is moved to
`<name>.newer` (or `.newer.1` …), byte for byte; until that succeeds nothing is written over it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EnvironmentFault
from limiterd.files import fault, read_bounded, write_atomic

MAX_BYTES: Final = 8 << 20
_MAX_ASIDE: Final = 10
_NAMES: Final = "surrogateescape"
"""Interface names are bytes to the kernel, not always UTF-8."""

Record = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: (kind, value) records in their order, and what was wrong with it as sentences."""

    records: tuple[Record, ...] = ()
    problems: tuple[str, ...] = ()
    copied: bool = False
    """Whether it is damaged and a copy is kept, so that it may be written anew."""


def _canonical(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _crc(kind: str, text: str) -> int:
    return zlib.crc32(f"{kind} {text}".encode())


def _line(kind: str, value: object) -> str:
    text = _canonical(value)
    return f'{{"crc":{_crc(kind, text)},"{kind}":{text}}}'


def _record(entry: object) -> Record | None:
    if not isinstance(entry, dict) or len(entry) != 2 or "crc" not in entry:
        return None
    kind = next(key for key in entry if key != "crc")
    value = entry[kind]
    return (kind, value) if entry["crc"] == _crc(kind, _canonical(value)) else None


def text_of(magic: str, version: int, records: Iterable[Record]) -> str:
    """A whole file's text, from records of plain JSON."""
    body = ",\n".join(_line(kind, value) for kind, value in records)
    return f'{{"{magic}":{version},"records":[\n{body}\n]}}\n'


def records_of(data: bytes) -> tuple[list[Record], str]:
    """The sound records of a file's text, and what is wrong with the others ("" for nothing)."""
    entries: list[object]
    lost = ""
    try:
        entries = _entries(jsonsafe.parse(data, errors=_NAMES))
    except ValueError as error:
        entries, lost = list(_lines(data)), f"it is not whole ({error})"
    checked = [_record(entry) for entry in entries]
    records = [record for record in checked if record is not None]
    if not lost and len(records) < len(entries):
        lost = f"{len(entries) - len(records)} of its records are altered"
    return records, lost


def _entries(value: object) -> list[object]:
    records = value.get("records") if isinstance(value, dict) else None
    if not isinstance(records, list):
        raise ValueError('there is no list "records"')  # noqa: TRY004  # one error type for all input
    return records


def _lines(data: bytes) -> Iterator[object]:
    for line in data.split(b"\n")[1:]:
        with contextlib.suppress(ValueError):  # reported for the file as a whole
            yield jsonsafe.parse(line.rstrip(b", \r"), errors=_NAMES)


class CrcStore:
    """One such file. Not for several threads at once: its owner holds a lock."""

    def __init__(self, path: Path, magic: str, version: int = 1, *, max_bytes: int = MAX_BYTES, keep_owner: bool = False) -> None:
        self.path = path
        self._magic = magic
        self._version = version
        self._max_bytes = max_bytes
        self._keep_owner = keep_owner
        self._newer = False

    # ---- reading

    def read(self) -> Contents:
        """What the file holds. Never raises: what cannot be read is a problem, and the rest is kept."""
        try:
            found = read_bounded(self.path, self._max_bytes)
        except EnvironmentFault as error:
            return Contents(problems=(str(error),))
        if found is None:
            return Contents()
        data, whole = found
        version = self._version_of(data)
        if version is not None and version > self._version:
            return Contents(problems=(self._set_newer_aside(version),))
        records, lost = records_of(data)
        why = "" if whole else f"it is larger than {self._max_bytes} bytes"
        why = why or ("" if version is not None else f"it does not begin as a {self._magic} file")
        why = why or lost
        if not why:
            return Contents(tuple(records))
        kept, aside = f"{len(records)} records could be read and are kept", self._keep_damaged()
        problem = f"{self.path} is damaged: {why}; {kept}; {aside or f'the damaged file is kept as {self.path.name}.damaged'}"
        return Contents(tuple(records), (problem,), copied=not aside)

    def _version_of(self, data: bytes) -> int | None:
        match = re.match(rb'\s*\{\s*"%s"\s*:\s*([0-9]{1,9})\b' % self._magic.encode(), data[:200])
        return int(match[1]) if match else None

    def _keep_damaged(self) -> str:
        """Keep a copy; why that failed, or ""."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        try:
            aside.unlink(missing_ok=True)
            os.link(self.path, aside, follow_symlinks=False)
        except OSError as error:
            return f"a copy could not be kept aside ({error.strerror})"
        return ""

    # ---- a newer version's file

    def _set_newer_aside(self, version: int) -> str:
        self._newer = True
        what = f"{self.path} has format version {version}, this program knows {self._version}: it is not used"
        try:
            return f"{what}; it was moved to {self._move_newer()}"
        except EnvironmentFault as error:
            return f"{what}; {error}"

    def _move_newer(self) -> str:
        names = (f"{self.path.name}.newer" + (f".{number}" if number else "") for number in range(_MAX_ASIDE))
        aside = next((path for name in names if not os.path.lexists(path := self.path.with_name(name))), None)
        if aside is None:
            raise EnvironmentFault(
                f"there are {_MAX_ASIDE} files {self.path.name}.newer* already; move them away", operation="write"
            )
        try:
            with contextlib.suppress(FileNotFoundError):  # somebody else moved it: as good
                self.path.rename(aside)
        except OSError as error:
            raise fault(f"{self.path} cannot be moved to {aside.name}, so nothing is saved", error, "write") from error
        self._newer = False
        return aside.name

    # ---- writing

    def write(self, records: Iterable[Record]) -> None:
        """Replace the file durably with these records of plain JSON.

        Raises EnvironmentFault(operation="write"); the old file then stands.
        """
        if self._newer:
            self._move_newer()
        data = text_of(self._magic, self._version, records).encode()
        if len(data) > self._max_bytes:
            raise EnvironmentFault(
                f"{self.path} would be {len(data)} bytes, more than the {self._max_bytes} that are read back: not written",
                operation="write",
            )
        write_atomic(self.path, data, keep_owner=self._keep_owner)
