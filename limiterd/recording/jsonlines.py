"""JSON lines, limiterd's own format: a header, then an object a tick. Read by columns for speed; written as read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import IO, Final

from limiterd.core.model import Link, Snapshot
from limiterd.core.units import NS_PER_SECOND
from limiterd.recording.source import Header, Lines, RecordingError, Source, Tick, shown

VERSION: Final = 1
_INT: Final = {int}


def read(lines: Lines, first: bytes) -> tuple[Header, Iterator[Tick]]:
    """The header in the first line, and the ticks behind it. Raises RecordingError for a header that is none."""
    header = _json(lines, first)
    version = header.get("limiterd_recording")
    if version != VERSION or isinstance(version, bool):
        raise lines.error(f"format version {version!r} is not known; this limiterd reads version {VERSION}")
    host = header.get("host")
    started = header.get("started_at")
    made = Header(None if started is None else _wall_ns(lines, started), host if isinstance(host, str) else "")
    return made, _ticks(lines, made.host)


def missing_header(first: bytes) -> bool:
    """Whether a file's first line is a tick already."""
    return b'"t"' in first and b'"links"' in first and b'"status"' not in first


def _json(lines: Lines, line: bytes) -> dict[str, object]:
    try:
        value = json.loads(str(line, "utf-8"))
    except UnicodeDecodeError:
        raise lines.error("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends in the middle of it"
        raise lines.error(f"not a JSON object ({str(error).partition(':')[0]}){cut}") from None
    if not isinstance(value, dict):
        raise lines.error("not a JSON object")
    return value


def _wall_ns(lines: Lines, text: object) -> int:
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise lines.error(f"started_at {text!r} is not a time with a zone; write it like 2026-11-23T12:00:00Z")
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_SECOND + since.microseconds * 1000


def _ticks(lines: Lines, host: str) -> Iterator[Tick]:
    source = Source(host=host)
    known: tuple[object, object] = (None, None)
    links: tuple[Link, ...] = ()
    for line in lines.rest():
        tick = _tick(line)
        if tick is None:
            if line.isspace():
                continue
            raise _tick_error(lines, line)
        t_ns, ifindexes, names, counters = tick
        if known != (ifindexes, names):
            links = _links_of(lines, ifindexes, names)
            known = (ifindexes, names)
        yield source, Snapshot(t_ns, links, counters)


def _tick(line: bytes) -> tuple[int, tuple[object, ...], tuple[object, ...], tuple[int, ...]] | None:
    """(t, ifindexes, names, counters) by columns, for speed; None where anything at all is wrong with the line."""
    try:
        tick = json.loads(str(line, "utf-8"))
        t_ns, rows = tick["t"], tick["links"]
        if type(rows) is not list or type(t_ns) is not int or t_ns < 0:
            return None
        if not rows:
            return t_ns, (), (), ()
        ifindexes, names, counters = zip(*rows, strict=True)
        if set(map(type, counters)) == _INT and min(counters) >= 0:
            return t_ns, ifindexes, names, counters
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # _tick_error finds out what it was and says so
    return None


def _links_of(lines: Lines, ifindexes: Sequence[object], names: Sequence[object]) -> tuple[Link, ...]:
    links = []
    for ifindex, name in zip(ifindexes, names, strict=True):
        if type(ifindex) is not int or ifindex < 0:
            raise lines.error(f"ifindex {shown(ifindex)} is not an integer ≥ 0")
        if not isinstance(name, str) or not name:
            raise lines.error(f"interface {shown(name)} is not a name")
        links.append(Link(ifindex, name))
    if len({link.name for link in links}) < len(links):
        raise lines.error("an interface appears twice in one tick")
    if len({link.ifindex for link in links}) < len(links):
        raise lines.error("an ifindex appears twice in one tick")
    return tuple(links)


def _tick_error(lines: Lines, line: bytes) -> RecordingError:
    """Say what is wrong with a tick that the fast path refused."""
    tick = _json(lines, line)
    if "limiterd_recording" in tick:
        at = lines.number
        return lines.error(
            f"a second recording begins here; replay each by itself: head -n {at - 1} FILE | limiterctl replay -, "
            f"then tail -n +{at} FILE | limiterctl replay -"
        )
    t_ns, rows = tick.get("t"), tick.get("links")
    if type(t_ns) is not int or t_ns < 0:
        return lines.error(f"t is {shown(t_ns)}; an integer ≥ 0 in ns is needed")
    if not isinstance(rows, list):
        return lines.error(f"links is {shown(rows)}; a list is needed")
    for row in rows:
        if not isinstance(row, list) or len(row) != 3:
            return lines.error(f"{shown(row)} is not [ifindex, interface, tx_bytes]")
        if type(row[2]) is not int or row[2] < 0:
            return lines.error(f"tx_bytes of {shown(row[1])} is {shown(row[2])}; an integer ≥ 0 is needed")
    return lines.error("the tick cannot be read")


class Writer:
    """Writes a recording as JSON lines: the header first, then a line for each snapshot."""

    def __init__(self, stream: IO[str], *, host: str, started_wall_ns: int) -> None:
        self._stream = stream
        self._rows: tuple[tuple[Link, ...], list[str]] = ((), [])
        at = datetime.fromtimestamp(started_wall_ns // NS_PER_SECOND, UTC).replace(
            microsecond=started_wall_ns % NS_PER_SECOND // 1000
        )
        started = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        header = {"limiterd_recording": VERSION, "host": host, "clock": "boottime", "started_at": started}
        stream.write(json.dumps(header) + "\n")

    def write(self, snapshot: Snapshot) -> None:
        """Append one tick. Raises OSError."""
        links, heads = self._rows
        if snapshot.links is not links:
            heads = [f"[{link.ifindex},{json.dumps(link.name)}," for link in snapshot.links]
            self._rows = (snapshot.links, heads)
        rows = ",".join(f"{head}{tx_bytes}]" for head, tx_bytes in zip(heads, snapshot.tx_bytes, strict=True))
        self._stream.write(f'{{"t":{snapshot.t_ns},"links":[{rows}]}}\n')
