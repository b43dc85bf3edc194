"""Recorded counters: JSON lines, CSV and Prometheus range queries in, snapshots out; and the writer of JSON lines.

Rule: what a recording says is fed as it stands, in its order. Clocks and counters that run backwards are data; what is
no recording at all (truncated, binary, NaN, a fraction of a byte) is a RecordingError with file and line, raised after
everything before it was handed out.

Theory of operation. Files are read line by line, so memory does not grow with them. Each tick becomes a Snapshot whose
links tuple stays the same object while the links do, which is what makes the detector fast. Ticks come in *lanes*: links
of one lane are sampled together, and a link that is missing in a tick of its lane was gone then. JSON lines are one lane;
CSV rows of the same instant share one; in an answer of Prometheus every instance is one.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby, pairwise
from operator import itemgetter
from statistics import median_low
from typing import IO, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, build_opener

from limiterd.core.errors import LimiterdError
from limiterd.core.model import Link, Snapshot
from limiterd.core.units import NS_PER_SECOND

VERSION: Final = 1
CSV_HEADER: Final = "t_seconds,interface,tx_bytes"
METRIC: Final = "node_network_transmit_bytes_total"
MAX_LINE_BYTES: Final = 64 << 20
MAX_ANSWER_BYTES: Final = 256 << 20
POINTS_PER_QUERY: Final = 10_000
"""A Prometheus server refuses more than 11 000 points a series."""
MISSED_SCRAPES: Final = 3
"""A series with this many resolutions without a point was not observed, rather than idle."""


class RecordingError(LimiterdError):
    """A recording cannot be read (on), or a server does not give one. The text begins with file and line, or the URL."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Links that are sampled together.

    host is the machine they are of ("" unknown); resolution_ns is the true spacing of each link's samples where that is
    inferred (Prometheus) and not simply what the ticks say.
    """

    key: str = ""
    host: str = ""
    resolution_ns: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Recording:
    """An open recording. started_wall_ns anchors the first tick's wall clock; qualified: names are instance/device.

    read_bytes of size_bytes have been read so far (0 of 0 where that is not known).
    """

    name: str
    started_wall_ns: int | None = None
    host: str = ""
    qualified: bool = False
    size_bytes: int = 0
    read_bytes: int = 0
    _ticks: Iterable[tuple[Lane, Snapshot]] = ()
    _stream: IO[bytes] | None = None

    def __iter__(self) -> Iterator[tuple[Lane, Snapshot]]:
        """The ticks in the recording's order, once. Raises RecordingError where it cannot be read on."""
        try:
            yield from self._ticks
        except OSError as error:
            raise RecordingError(f"{self.name}: {error.strerror or error}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the file; reading to the end does too."""
        if self._stream is not None:
            self._stream.close()


def open_recording(path: str) -> Recording:
    """Open a recording of any of the three formats, told apart by its first line. Raises RecordingError."""
    try:
        stream = open(path, "rb")  # noqa: SIM115, PTH123 - the recording closes it
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}") from error
    try:
        recording = Recording(path, size_bytes=os.fstat(stream.fileno()).st_size, _stream=stream)
        return _recognised(recording, _Lines(recording, stream))
    except OSError as error:
        stream.close()
        raise RecordingError(f"{path}: {error.strerror or error}") from error
    except RecordingError:
        stream.close()
        raise


def _recognised(recording: Recording, lines: _Lines) -> Recording:
    """The recording with its ticks, of the format that the first line tells."""
    first = next(lines.rest(), b"")
    if not first.strip():
        raise lines.error("it is empty; not even a header is there")
    if b'"limiterd_recording"' in first:
        return _open_json_lines(recording, lines, first)
    if first.lstrip().startswith(b"{"):
        return _open_answer(recording, lines, first)
    if first.decode("utf-8-sig", "replace").strip().replace(" ", "") == CSV_HEADER:
        recording._ticks = _csv_ticks(lines)  # noqa: SLF001 - of this module
        return recording
    raise lines.error(
        f'it is no recording: the first line is neither {{"limiterd_recording": {VERSION}, …}} nor "{CSV_HEADER}" '
        "nor the answer of a Prometheus query_range"
    )


class _Lines:
    """Numbered lines of a recording's file, bounded in length."""

    def __init__(self, recording: Recording, stream: IO[bytes]) -> None:
        self.name = recording.name
        self.number = 0
        self.stream = stream
        self._recording = recording

    def rest(self) -> Iterator[bytes]:
        """Every line that is left. Raises RecordingError for one that is longer than any recording's."""
        readline, recording = self.stream.readline, self._recording
        while line := readline(MAX_LINE_BYTES):
            self.number += 1
            recording.read_bytes += len(line)
            if len(line) == MAX_LINE_BYTES:
                raise self.error(f"the line is longer than {MAX_LINE_BYTES} bytes; is this a recording?")
            yield line

    def error(self, what: str) -> RecordingError:
        """The error for the current line."""
        return RecordingError(f"{self.name}:{max(1, self.number)}: {what}")


# ---- JSON lines ----------------------------------------------------------------------------------


def _open_json_lines(recording: Recording, lines: _Lines, first: bytes) -> Recording:
    header = _json(lines, first)
    version = header.get("limiterd_recording")
    if version != VERSION or isinstance(version, bool):
        raise lines.error(f"format version {version!r} is not known; this limiterd reads version {VERSION}")
    host = header.get("host", "")
    recording.host = host if isinstance(host, str) else ""
    if header.get("started_at") is not None:
        recording.started_wall_ns = _wall_ns(lines, header["started_at"])
    recording._ticks = _json_ticks(lines, recording.host)  # noqa: SLF001 - of this module
    return recording


def _json(lines: _Lines, line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends in the middle of it"
        raise lines.error(f"not a JSON object ({str(error).partition(':')[0]}){cut}") from None
    if not isinstance(value, dict):
        raise lines.error("not a JSON object")
    return value


def _wall_ns(lines: _Lines, text: object) -> int:
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise lines.error(f"started_at {text!r} is no time with a zone; write it like 2026-11-23T12:00:00Z")
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_SECOND + since.microseconds * 1000


def _json_ticks(lines: _Lines, host: str) -> Iterator[tuple[Lane, Snapshot]]:
    lane = Lane(host=host)
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
        yield lane, Snapshot(t_ns, links, counters)


def _tick(line: bytes) -> tuple[int, tuple[object, ...], tuple[object, ...], tuple[int, ...]] | None:
    """(t, ifindexes, names, counters) by columns, for speed; None where anything at all is wrong with the line."""
    try:
        tick = json.loads(line)
        t_ns, rows = tick["t"], tick["links"]
        ifindexes, names, counters = zip(*rows, strict=True) if rows else ((), (), ())
        if type(t_ns) is int and t_ns >= 0 and (not rows or (set(map(type, counters)) == _INT and min(counters) >= 0)):
            return t_ns, ifindexes, names, counters
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # _tick_error finds out what it was and says so
    return None


_INT: Final = {int}


def _links_of(lines: _Lines, ifindexes: Sequence[object], names: Sequence[object]) -> tuple[Link, ...]:
    links = []
    for ifindex, name in zip(ifindexes, names, strict=True):
        if type(ifindex) is not int or ifindex < 0:
            raise lines.error(f"ifindex {_shown(ifindex)} is no integer ≥ 0")
        if not isinstance(name, str) or not name:
            raise lines.error(f"interface {_shown(name)} is no name")
        links.append(Link(ifindex, name))
    if len({link.name for link in links}) < len(links):
        raise lines.error("an interface stands twice in one tick")
    return tuple(links)


def _tick_error(lines: _Lines, line: bytes) -> RecordingError:
    """Say what is wrong with a tick that the fast path refused."""
    tick = _json(lines, line)
    t_ns, rows = tick.get("t"), tick.get("links")
    if type(t_ns) is not int or t_ns < 0:
        return lines.error(f"t is {_shown(t_ns)}; an integer ≥ 0 in ns is needed")
    if not isinstance(rows, list):
        return lines.error("links is missing or no list")
    for row in rows:
        if not isinstance(row, list) or len(row) != 3:
            return lines.error(f"{_shown(row)} is no [ifindex, interface, tx_bytes]")
        if type(row[2]) is not int or row[2] < 0:
            return lines.error(f"tx_bytes of {_shown(row[1])} is {_shown(row[2])}; an integer ≥ 0 is needed")
    return lines.error("the tick cannot be read")


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- CSV -----------------------------------------------------------------------------------------

_SECONDS = re.compile(r"(\d+)(?:\.(\d*))?", re.ASCII)
_COUNTER = re.compile(r"\d+", re.ASCII)


def _csv_ticks(lines: _Lines) -> Iterator[tuple[Lane, Snapshot]]:
    lanes = _Lanes()
    rows: dict[str, int] = {}
    at_ns = 0
    try:
        for line in lines.rest():
            if line.isspace():
                continue
            t_ns, name, tx_bytes = _csv_row(lines, line)
            if rows and (t_ns != at_ns or name in rows):
                yield from lanes.snapshots(at_ns, rows)
                rows = {}
            at_ns = t_ns
            rows[name] = tx_bytes
    except RecordingError:
        yield from lanes.snapshots(at_ns, rows)
        raise
    yield from lanes.snapshots(at_ns, rows)


def _csv_row(lines: _Lines, line: bytes) -> tuple[int, str, int]:
    try:
        fields = [part.strip() for part in line.decode().split(",")]
    except UnicodeDecodeError:
        raise lines.error("not UTF-8 text") from None
    if len(fields) != 3:
        raise lines.error(f"{len(fields)} fields where 3 are needed: {CSV_HEADER}")
    seconds, name, counter = fields[0], fields[1].strip('"'), fields[2]
    match = _SECONDS.fullmatch(seconds)
    if match is None:
        raise lines.error(f"t_seconds is {_shown(seconds)}; a decimal number ≥ 0 is needed")
    if not name:
        raise lines.error("the interface's name is missing")
    if _COUNTER.fullmatch(counter) is None:
        raise lines.error(f"tx_bytes of {_shown(name)} is {_shown(counter)}; an integer ≥ 0 is needed")
    fraction = match[2] or ""
    if fraction[9:].strip("0"):
        raise lines.error(f"t_seconds {seconds} is finer than a nanosecond; nine decimals are the most")
    return int(match[1]) * NS_PER_SECOND + int(fraction[:9].ljust(9, "0")), name, int(counter)


class _Lanes:
    """Rows of one instant as snapshots, one for each lane: interfaces that first appear together are sampled together."""

    def __init__(self) -> None:
        self._lane_of: dict[str, Lane] = {}
        self._links: dict[str, Link] = {}
        self._known: dict[str, tuple[tuple[str, ...], tuple[Link, ...]]] = {}

    def snapshots(self, t_ns: int, rows: Mapping[str, int]) -> Iterator[tuple[Lane, Snapshot]]:
        """The snapshots of this instant."""
        if any(name not in self._lane_of for name in rows):
            self._admit(rows)
        lanes = {self._lane_of[name].key: self._lane_of[name] for name in rows}
        for lane in lanes.values():
            names = tuple(rows) if len(lanes) == 1 else tuple(name for name in rows if self._lane_of[name] is lane)
            known = self._known.get(lane.key)
            if known is None or known[0] != names:
                known = self._known[lane.key] = (names, tuple(self._links[name] for name in names))
            yield lane, Snapshot(t_ns, known[1], [rows[name] for name in names])

    def _admit(self, rows: Mapping[str, int]) -> None:
        lane = next((self._lane_of[name] for name in rows if name in self._lane_of), None)
        lane = lane or Lane(key=str(len(self._lane_of)))
        for name in rows:
            if name not in self._lane_of:
                self._lane_of[name] = lane
                self._links[name] = Link(len(self._links) + 1, name)


# ---- Prometheus ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Series:
    """One device of one instance: (t_ns, tx_bytes) in the order of time."""

    instance: str
    device: str
    points: list[tuple[int, int]]

    @property
    def name(self) -> str:
        return f"{self.instance}/{self.device}" if self.instance else self.device


def _open_answer(recording: Recording, lines: _Lines, first: bytes) -> Recording:
    if recording.size_bytes > MAX_ANSWER_BYTES:
        raise lines.error(f"the answer is larger than {MAX_ANSWER_BYTES} bytes; query a shorter span or a longer step")
    text = first + lines.stream.read(MAX_ANSWER_BYTES)
    recording.read_bytes = len(text)
    return _from_answers(recording, [_Answer(lines.name, text)])


class _Answer:
    """The text of one query_range answer, for parsing and for pointing at lines in it."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name = name
        self._text = text

    def series(self) -> Iterator[_Series | RecordingError]:
        """Every series; last, instead of one, the error that ends the reading."""
        try:
            answer = json.loads(self._text, parse_float=Decimal)
        except json.JSONDecodeError as error:
            yield RecordingError(f"{self.name}:{error.lineno}: not JSON ({error.msg}); is the file cut off?")
            return
        except (ValueError, RecursionError) as error:
            yield RecordingError(f"{self.name}:1: not JSON ({error})")
            return
        if isinstance(answer, dict) and "t" in answer and "links" in answer:
            yield RecordingError(f'{self.name}:1: the header is missing: {{"limiterd_recording": {VERSION}, …}}')
            return
        if isinstance(answer, dict) and answer.get("status") == "error":
            yield RecordingError(
                f"{self.name}:1: the server's answer is an error: {answer.get('errorType')}: {answer.get('error')}"
            )
            return
        data = answer.get("data") if isinstance(answer, dict) else None
        result = data.get("result") if isinstance(data, dict) else None
        if not isinstance(data, dict) or data.get("resultType") != "matrix" or not isinstance(result, list):
            yield RecordingError(f"{self.name}:1: neither a recording nor the answer of a Prometheus query_range (a matrix)")
            return
        for entry in result:
            made = self._series(entry)
            yield made
            if isinstance(made, RecordingError):
                return

    def _series(self, entry: object) -> _Series | RecordingError:
        metric = entry.get("metric") if isinstance(entry, dict) else None
        values = entry.get("values") if isinstance(entry, dict) else None
        if not isinstance(metric, dict) or not isinstance(values, list):
            return RecordingError(f"{self.name}:1: a series without metric or values")
        instance, device = metric.get("instance", ""), metric.get("device", "")
        if not device:
            return RecordingError(f'{self._where("metric")}: a series without the label "device"; query {METRIC}')
        points: list[tuple[int, int]] = []
        for value in values:
            point = _point(value)
            if point is None:
                what = f"{self._where(value[1] if isinstance(value, list) and len(value) == 2 else '')}"
                return RecordingError(f"{what}: {instance}/{device}: {_shown(value)} is no [time, counter ≥ 0 in whole bytes]")
            points.append(point)
        return _Series(str(instance), str(device), points)

    def _where(self, text: object) -> str:
        at = self._text.find(json.dumps(str(text)).encode()) if text else 0
        line = self._text.count(b"\n", 0, max(0, at)) + 1
        return f"{self.name}:{line}"


def _point(value: object) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    at, counter = value
    if isinstance(at, bool) or not isinstance(at, int | Decimal) or not isinstance(counter, str):
        return None
    try:
        tx_bytes = int(counter) if counter.isdigit() else Decimal(counter)
        whole = at >= 0 and 0 <= tx_bytes < 2**64 and tx_bytes == int(tx_bytes)
    except (ArithmeticError, ValueError):  # NaN compares with nothing
        return None
    return (int(at * NS_PER_SECOND), int(tx_bytes)) if whole else None


def _from_answers(recording: Recording, answers: Iterable[_Answer]) -> Recording:
    """All series of all answers, merged by name; an error ends the reading, what came before it is kept."""
    series: dict[str, _Series] = {}
    failure: RecordingError | None = None
    for answer in answers:
        for found in answer.series():
            if isinstance(found, RecordingError):
                failure = found
            elif found.name in series:
                series[found.name].points += found.points
            else:
                series[found.name] = found
        if failure is not None:
            break
    if failure is not None and not series:
        raise failure
    recording.qualified = True
    starts = [one.points[0][0] for one in series.values() if one.points]
    recording.started_wall_ns = min(starts, default=None)
    recording._ticks = _answer_ticks(list(series.values()), failure)  # noqa: SLF001 - of this module
    return recording


def resolution_ns(points: Sequence[tuple[int, int]]) -> int | None:
    """The true spacing of a series' samples: the median distance between distinct values; None without two of them."""
    changes = [q[0] for p, q in pairwise(points) if p[1] != q[1]]
    return median_low([q - p for p, q in pairwise(changes)]) if len(changes) > 1 else None


def _answer_ticks(series: list[_Series], failure: RecordingError | None) -> Iterator[tuple[Lane, Snapshot]]:
    lanes = [_Instance(instance, list(group)) for instance, group in _by_instance(series)]
    ticks = [(snapshot.t_ns, i, snapshot) for i, one in enumerate(lanes) for snapshot in one.snapshots()]
    ticks.sort(key=itemgetter(0, 1))
    for _, i, snapshot in ticks:
        yield lanes[i].lane, snapshot
    if failure is not None:
        raise failure


def _by_instance(series: Iterable[_Series]) -> Iterator[tuple[str, Iterator[_Series]]]:
    return groupby(sorted(series, key=lambda one: (one.instance, one.device)), key=lambda one: one.instance)


class _Instance:
    """The devices of one scraped machine: one lane, whose links hold their last value between scrapes."""

    def __init__(self, instance: str, series: list[_Series]) -> None:
        steps = [q[0] - p[0] for one in series for p, q in pairwise(one.points) if q[0] > p[0]]
        own = {one.name: resolution_ns(one.points) for one in series}
        common = min((r for r in own.values() if r is not None), default=min(steps, default=NS_PER_SECOND))
        self._series = series
        host = instance.rpartition(":")[0] or instance
        self.lane = Lane(instance, host, {one.name: common for one in series})
        self._held_ns = MISSED_SCRAPES * common

    def snapshots(self) -> Iterator[Snapshot]:
        """A snapshot at every instant at which one of the devices has a point."""
        values = [dict(one.points) for one in self._series]
        links = [Link(i, one.name) for i, one in enumerate(self._series, 1)]
        last: list[tuple[int, int] | None] = [None] * len(values)
        present: tuple[int, ...] = ()
        shown: tuple[Link, ...] = ()
        for t_ns in sorted({t for of in values for t in of}):
            for i, of in enumerate(values):
                if t_ns in of:
                    last[i] = (t_ns, of[t_ns])
            there = tuple(i for i, kept in enumerate(last) if kept is not None and t_ns - kept[0] <= self._held_ns)
            if there != present:
                present, shown = there, tuple(links[i] for i in there)
            yield Snapshot(t_ns, shown, [kept[1] for i in there if (kept := last[i]) is not None])


def query(url: str, *, start_s: int, end_s: int, step_s: Decimal, selector: str = METRIC, timeout_s: float = 30.0) -> Recording:
    """Ask a Prometheus server for the span, in as many queries as its limit of points needs. Raises RecordingError."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise RecordingError(f"{url}: only http and https are asked")
    chunk = max(1, int(step_s * POINTS_PER_QUERY))
    spans = [(at, min(at + chunk, end_s)) for at in range(start_s, end_s, chunk)]
    base = url.rstrip("/").removesuffix("/api/v1/query_range")
    answers = (
        _ask(f"{base}/api/v1/query_range", {"query": selector, "start": a, "end": b, "step": step_s}, timeout_s) for a, b in spans
    )
    return _from_answers(Recording(url), answers)


def _ask(url: str, parameters: Mapping[str, object], timeout_s: float) -> _Answer:
    opener = build_opener(ProxyHandler(), HTTPHandler(), HTTPSHandler())
    deadline_s = time.monotonic() + timeout_s
    try:
        with opener.open(f"{url}?{urlencode(parameters)}", timeout=timeout_s) as response:
            return _Answer(url, _body(response, url, deadline_s))
    except HTTPError as error:
        raise RecordingError(f"{url}: HTTP {error.code}: {_words(error)}") from error
    except URLError as error:
        raise RecordingError(f"{url}: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise RecordingError(f"{url}: {error}") from error


def _body(response: IO[bytes], url: str, deadline_s: float) -> bytes:
    parts: list[bytes] = []
    left = MAX_ANSWER_BYTES
    while part := response.read(min(left, 1 << 20)):
        parts.append(part)
        left -= len(part)
        if left <= 0:
            raise RecordingError(f"{url}: the answer is larger than {MAX_ANSWER_BYTES} bytes; ask for less at a time")
        if time.monotonic() > deadline_s:
            raise RecordingError(f"{url}: the server is too slow; ask for a shorter span or a longer step")
    return b"".join(parts)


def _words(error: HTTPError) -> str:
    """What the server says of its refusal: Prometheus' own words where it gives any."""
    text = error.read(65_536).decode(errors="replace")
    try:
        answer = json.loads(text)
        return f"{answer['errorType']}: {answer['error']}"
    except (ValueError, LookupError, TypeError):
        return text.strip()[:200] or str(error.reason)


# ---- writing -------------------------------------------------------------------------------------


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
