"""CSV: `t_seconds,interface,tx_bytes`, decimals exact to the nanosecond.

Interfaces that first appear together are one source; the rows of an instant are one tick of it. The format cannot say that a
link is gone, so an interface without a row at an instant of its source is there all the same, just not sampled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from limiterd.core.model import Link, Snapshot
from limiterd.core.units import NS_PER_SECOND
from limiterd.recording.source import MILLISECONDS_FROM, Header, Lines, RecordingError, Source, Tick, shown

HEADER: Final = "t_seconds,interface,tx_bytes"
_SECONDS: Final = re.compile(r"(\d{1,40})(?:\.(\d*))?", re.ASCII)
_COUNTER: Final = re.compile(r"\d{1,40}", re.ASCII)
"""More digits than any clock or counter has, fewer than Python refuses to read (4300)."""
_PLAIN: Final = re.compile(rb"(\d{1,20}(?:\.\d{1,9})?),([!#-+\--~]+),(\d{1,20})\r?\n")
"""A row as programs write it: nothing to strip, no quotes, no name beyond ASCII."""
_PATTERNS_MAX: Final = 64


def is_header(first: bytes) -> bool:
    """Whether a file's first line is the header of this format."""
    return re.sub(r'[\s"]', "", first.decode("utf-8-sig", "replace")) == HEADER


def read(lines: Lines) -> tuple[Header, Iterator[Tick]]:
    """The ticks behind the header line."""
    return Header(), _ticks(lines)


def _ticks(lines: Lines) -> Iterator[Tick]:
    sources = _Sources()
    rows: dict[str, int] = {}
    at_ns = t_ns = 0
    line, stamp = b"\n", b""
    try:
        for line in lines.rest():
            plain = _PLAIN.fullmatch(line)
            if plain is not None and plain[1] == stamp:
                name, tx_bytes = plain[2].decode(), int(plain[3])
            elif line.isspace():
                continue
            elif plain is None and is_header(line):
                lines.notes.append(f"{lines.name}:{lines.number}: a second header; what follows is taken for the same recording")
                continue
            else:
                t_ns, name, tx_bytes = _row(lines, line)
                stamp = b"" if plain is None else plain[1]
            if rows and (t_ns != at_ns or name in rows):
                yield from sources.ticks(at_ns, rows)
                rows = {}
            at_ns = t_ns
            rows[name] = tx_bytes
    except RecordingError:
        yield from sources.ticks(at_ns, rows)
        raise
    yield from sources.ticks(at_ns, rows)
    if not line.endswith(b"\n"):
        lines.notes.append(
            f"{lines.name}:{lines.number}: the last line has no line end; if the file was cut off there, its counter is wrong"
        )


def _row(lines: Lines, line: bytes) -> tuple[int, str, int]:
    try:
        fields = [part.strip().strip('"') for part in line.decode().split(",")]
    except UnicodeDecodeError:
        raise lines.error("not UTF-8 text") from None
    if len(fields) != 3:
        raise lines.error(f"{len(fields)} fields where 3 are needed: {HEADER}")
    seconds, name, counter = fields
    match = _SECONDS.fullmatch(seconds)
    if match is None:
        raise lines.error(f"t_seconds is {shown(seconds)}; a decimal number ≥ 0 is needed")
    if int(match[1]) >= MILLISECONDS_FROM:
        raise lines.error(f"t_seconds is {shown(seconds)}, a time in milliseconds; divide it by 1000")
    if not name:
        raise lines.error("the interface's name is missing")
    if _COUNTER.fullmatch(counter) is None:
        raise lines.error(f"tx_bytes of {shown(name)} is {shown(counter)}; an integer ≥ 0 is needed")
    fraction = match[2] or ""
    if fraction[9:].strip("0"):
        raise lines.error(f"t_seconds {seconds} is finer than a nanosecond; nine decimals are the most")
    return int(match[1]) * NS_PER_SECOND + int(fraction[:9].ljust(9, "0")), name, int(counter)


class _Sources:
    """Sorts the rows of one instant into snapshots, one for each source."""

    def __init__(self) -> None:
        self._source_of: dict[str, Source] = {}
        self._links: dict[str, Link] = {}
        self._tuples: dict[tuple[str, ...], tuple[Link, ...]] = {}

    def ticks(self, t_ns: int, rows: Mapping[str, int]) -> Iterator[Tick]:
        """The ticks of this instant."""
        if any(name not in self._source_of for name in rows):
            self._admit(rows)
        sources = {self._source_of[name].key: self._source_of[name] for name in rows}
        for source in sources.values():
            names = tuple(rows) if len(sources) == 1 else tuple(name for name in rows if self._source_of[name] is source)
            yield source, Snapshot(t_ns, self._tuple(source, names), [rows[name] for name in names])

    def _tuple(self, source: Source, names: tuple[str, ...]) -> tuple[Link, ...]:
        """The same tuple for the same names, and the source's own where all of it is sampled."""
        links = self._tuples.get(names)
        if links is None:
            if len(self._tuples) >= _PATTERNS_MAX:
                self._tuples.clear()
            links = self._tuples[names] = tuple(self._links[name] for name in names)
            if links == source.links:
                links = self._tuples[names] = source.links
        return links

    def _admit(self, rows: Mapping[str, int]) -> None:
        source = next((self._source_of[name] for name in rows if name in self._source_of), None)
        source = source or Source(key=str(len(self._source_of)), links=())
        new = [name for name in rows if name not in self._source_of]
        for name in new:
            self._source_of[name] = source
            self._links[name] = Link(len(self._links) + 1, name)
        source.links = (*(source.links or ()), *(self._links[name] for name in new))
        self._tuples.clear()
