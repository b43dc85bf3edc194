"""The answers of Prometheus range queries, read into series of (time, counter).

An answer is parsed by json, whole, within MAX_ANSWER_BYTES; each series is turned into arrays (16 bytes a point) as soon as
its own object ends, so that the objects of one series at most are in memory beside the text. Several answers (of the pieces
of a span, or files put together) are joined by their series' labels. What a series is called, and which of them are one
machine, is decided in `scraped`.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Final

from limiterd.core.units import NS_PER_SECOND
from limiterd.recording.source import MILLISECONDS_FROM, RecordingError, shown

METRIC: Final = "node_network_transmit_bytes_total"
MAX_ANSWER_BYTES: Final = 256 << 20
DEVICE_LABELS: Final = ("device", "interface", "ifName", "nic")

_NO_ANSWER: Final = "neither a recording nor the answer of a Prometheus query_range (a matrix)"
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_OTHERS: Final = re.compile(r"packet|pkts|error|errs|drop|discard|bits|:|rate|per_?sec", re.IGNORECASE)
"""In the name of a metric: it counts something else than bytes, or counts nothing."""
_BYTES: Final = re.compile(r"bytes|octets", re.IGNORECASE)
_RECEIVED: Final = re.compile(r"recei?ve|recv|(^|_)rx(_|$)|In(Octets|Bytes|Ucast)|_in_", re.IGNORECASE)

Labels = Mapping[str, str]


@dataclass(slots=True, eq=False)
class Series:
    """A counter under its labels: stamps in ns, ascending once it is read, and bytes."""

    labels: Labels
    times: array[int] = field(default_factory=lambda: array("q"))
    counters: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def words(self) -> str:
        """The labels for a message."""
        return f"{{{', '.join(f'{name}={shown(value)}' for name, value in sorted(self.labels.items()))}}}"

    def put_in_order(self) -> None:
        """Sort by time. Raises RecordingError where one instant has two counters: no order of the file may decide."""
        if all(p < q for p, q in pairwise(self.times)):
            return
        points: dict[int, int] = {}
        for t_ns, counter in zip(self.times, self.counters, strict=True):
            if points.setdefault(t_ns, counter) != counter:
                raise RecordingError(
                    f"{self.words} has two counters, {points[t_ns]} and {counter}, at {t_ns / NS_PER_SECOND:.3f}: answers of "
                    "different servers or queries are put together here; replay each by itself"
                )
        self.times = array("q", sorted(points))
        self.counters = array("Q", (points[t_ns] for t_ns in self.times))


@dataclass(slots=True)
class Answers:
    """What was read: the series by their labels, notes for people, and the error that ended the reading, if any."""

    series: list[Series]
    notes: list[str]
    failure: RecordingError | None = None


def read(texts: Iterable[tuple[str, str]], label: str | None = None) -> Answers:
    """All series of all texts, (name, JSON) each; label is the one that names the device. Raises RecordingError.

    An error that comes after whole series does not undo them: it is handed back beside them.
    """
    joined: _Joined = {}
    notes: list[str] = []
    failure: RecordingError | None = None
    try:
        for name, text in texts:
            _documents(_Text(name, text), (label,) if label else DEVICE_LABELS, joined, notes)
    except RecordingError as error:
        failure = error
    found = [one for one in joined.values() if one.times]
    if failure is not None and not found:
        raise failure
    found = _counted(found, notes)
    for one in found:
        one.put_in_order()
    return Answers(found, notes, failure)


# ---- JSON ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Text:
    name: str
    text: str

    def error(self, at: int, what: str) -> RecordingError:
        return RecordingError(f"{self.name}:{1 + self.text.count(chr(10), 0, at)}: {what}")

    def error_at_point(self, point: object, what: str) -> RecordingError:
        """The error for the line that ends this [time, value] pair: the first such pair of the text is the one."""
        if not isinstance(point, list):
            return self.error(0, what)
        figures = [str(part) if isinstance(part, Decimal) else json.dumps(part) for part in point if not isinstance(part, dict)]
        match = re.search(r"\[\s*" + r"\s*,\s*".join(map(re.escape, figures)), self.text)
        return self.error(match.end() if match else 0, what)


_Joined = dict[frozenset[tuple[str, str]], Series]


def _documents(text: _Text, devices: Sequence[str], joined: _Joined, notes: list[str]) -> None:
    """Read one answer after the other. Raises RecordingError; whole series before it have been joined."""
    whole: list[Series] = []

    def series_or_object(value: dict[str, object]) -> object:
        """A finished object of the text: a series if it is one."""
        if "metric" not in value or not isinstance(value.get("values"), list):
            return value
        _fill(text, value, whole)
        return whole[-1]

    scan = json.JSONDecoder(object_hook=series_or_object, parse_float=Decimal).raw_decode
    at, first = _skip(text.text, 0), True
    while first or at < len(text.text):
        if not first and text.text[at] not in "{[":
            raise text.error(at, "not JSON (extra data)")
        try:
            answer, end = scan(text.text, at)
            _judge(text, at, answer, devices, notes)
        except json.JSONDecodeError as error:
            cut = "" if text.text[error.pos :].strip() else "; is the file cut off?"
            raise text.error(error.pos, f"not JSON ({error.msg}){cut}") from None
        except (ValueError, RecursionError) as error:
            raise text.error(at, f"not JSON ({str(error).partition(':')[0]})") from None
        finally:
            _join((one for one in whole if any(one.labels.get(name) for name in devices)), joined)
            whole.clear()
        at, first = _skip(text.text, end), False


def _join(whole: Iterable[Series], joined: _Joined) -> None:
    for one in whole:
        into = joined.setdefault(frozenset(one.labels.items()), Series(one.labels))
        into.times.extend(one.times)
        into.counters.extend(one.counters)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _judge(text: _Text, at: int, answer: object, devices: Sequence[str], notes: list[str]) -> None:
    """See that a whole JSON value is an answer, or the data or the result of one. Raises RecordingError."""
    said = answer if isinstance(answer, dict) else {"status": "success", "resultType": "matrix", "result": answer}
    if said.get("status") == "error":
        raise text.error(at, f"the server's answer is an error: {said.get('errorType')}: {said.get('error')}")
    for kind in ("warnings", "infos"):
        told = said.get(kind)
        notes += [f"the server's answer says: {word}" for word in told if isinstance(word, str)] if isinstance(told, list) else []
    data = said.get("data", said)
    if not isinstance(data, dict) or data.get("resultType") != "matrix" or not isinstance(data.get("result"), list):
        raise text.error(at, _NO_ANSWER)
    for one in data["result"]:
        if not isinstance(one, Series):
            raise text.error(at, f"{shown(one)} is a series without metric or values")
        if not any(one.labels.get(name) for name in devices):
            others = f" (nor {', '.join(devices[1:])})" if devices[1:] else ""
            raise text.error(
                at,
                f'a series without the label "{devices[0]}"{others}: {one.words}; '
                f"if another label names the interface, say --label NAME; else query {METRIC}",
            )


def _fill(text: _Text, value: Mapping[str, object], whole: list[Series]) -> None:
    """Append the series of an object of the text. Raises RecordingError; the points before it are kept."""
    metric = value["metric"]
    labels = {str(name): str(of) for name, of in metric.items()} if isinstance(metric, dict) else {}
    series = Series(labels)
    whole.append(series)
    if "timestamps" in value:
        raise text.error(0, "this is an export, not the answer of a query_range; ask /api/v1/query_range for the same series")
    points = value["values"]
    for point in points if isinstance(points, list) else ():
        read_point = _point(point)
        if isinstance(read_point, str):
            device = next((labels[name] for name in DEVICE_LABELS if labels.get(name)), "")
            name = "/".join(part for part in (labels.get("instance", ""), device) if part) or series.words
            raise text.error_at_point(point, f"{name}: {shown(point)} {read_point}")
        series.times.append(read_point[0])
        series.counters.append(read_point[1])


def _point(value: object) -> tuple[int, int] | str:
    """(t_ns, bytes) of a point, or what is wrong with it."""
    wrong = "is not [time, counter ≥ 0 in whole bytes]"
    if not isinstance(value, list) or len(value) != 2:
        return wrong
    at, counter = value
    if isinstance(at, bool) or not isinstance(at, int | Decimal) or not isinstance(counter, str):
        return wrong
    if at >= MILLISECONDS_FROM:
        return "has a time in milliseconds; a Prometheus answer has seconds: divide the times by 1000"
    try:
        tx_bytes = int(counter) if counter.isdigit() else Decimal(counter)
        t_ns = int(at * NS_PER_SECOND)
        if 0 <= t_ns < 2**63 and 0 <= tx_bytes < 2**64:
            if tx_bytes == int(tx_bytes):
                return t_ns, int(tx_bytes)
            return f"{wrong}; is it the result of rate()? query the counter itself, such as {METRIC}"
    except (ArithmeticError, ValueError):  # NaN compares with nothing
        pass
    return wrong


# ---- what is counted -----------------------------------------------------------------------------


def _counted(series: list[Series], notes: list[str]) -> list[Series]:
    """The series that count the bytes sent, all of one metric. Raises RecordingError where there is no telling."""
    names = sorted({one.labels.get("__name__", "") for one in series})
    sent = [name for name in names if not name or _counts_sent_bytes(name)]
    if names and not sent:
        raise RecordingError(f"{', '.join(names)} does not count the bytes that a link sent; query {METRIC}")
    if len(sent) > 1:
        listed = ", ".join(name or "one without a name" for name in sent)
        raise RecordingError(f"series of several metrics ({listed}); query one of them")
    if len(sent) < len(names):
        notes.append(f"left out, for they do not count the bytes sent: {', '.join(name for name in names if name not in sent)}")
    kept = [one for one in series if one.labels.get("__name__", "") in sent]
    if sent == [""]:
        for one in kept:
            fallen = next((q for p, q in pairwise(one.counters) if q < p), None)
            if fallen is not None:
                raise RecordingError(
                    f"{one.words} has no metric name and falls (to {fallen}), as the result of rate() or another function does; "
                    f"query the counter itself, such as {METRIC}"
                )
        notes.append("the series have no metric name, as the results of a function; they are taken for counters of bytes sent")
    sums = {one.labels["interface"] for one in kept if one.labels.get("interface", "").startswith("machine/")}
    if sums:
        notes.append(f"left out, for they are sums of links: {', '.join(sorted(sums))}")
    return [one for one in kept if one.labels.get("interface") not in sums]


def _counts_sent_bytes(name: str) -> bool:
    return bool(_BYTES.search(name)) and not _OTHERS.search(name) and not _RECEIVED.search(name)


def text_of(name: str, chunks: Iterable[bytes]) -> str:
    """The text of an answer, within MAX_ANSWER_BYTES. Raises RecordingError."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise RecordingError(f"{name}: the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB; ask for less at a time")
    try:
        return str(body, "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + body.count(b"\n", 0, error.start)
        raise RecordingError(f"{name}:{line}: not UTF-8 text") from None
