"""Recorded counters: JSON lines, CSV and Prometheus range queries in, snapshots out; and the writer of JSON lines.

Rule: what a recording says is fed as it stands, in its order. Clocks and counters that run backwards are data; what is
no recording at all (truncated, binary, NaN, a fraction of a byte) is a RecordingError with file and line, raised after
everything before it was handed out. Nothing is merged or left out without a note.

Theory of operation. Files (also gzip, also standard input) are read line by line; a Prometheus answer is read whole. Each
tick becomes a Snapshot whose links tuple stays the same object while the links do, which is what makes the detector fast.
Ticks come in *sources*: links of one source are sampled together. JSON lines are one source; CSV interfaces that first appear
together share one; in an answer of Prometheus every machine is one.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from limiterd.recording import csv, jsonlines, prometheus, scraped
from limiterd.recording.jsonlines import Writer
from limiterd.recording.prometheus import DEVICE_LABELS, METRIC
from limiterd.recording.prometheus_server import query, server
from limiterd.recording.source import Header, Lines, Recording, RecordingError, Source, Tick

__all__ = [
    "DEVICE_LABELS",
    "METRIC",
    "Header",
    "Progress",
    "Recording",
    "RecordingError",
    "Source",
    "Writer",
    "open_recording",
    "query",
    "server",
]

Progress = Callable[[int, int], None]


def open_recording(path: str, progress: Progress = lambda _done, _total: None, label: str | None = None) -> Recording:
    """Open a recording of any of the three formats, told apart by its first line; "-" is standard input.

    label names the label of a Prometheus answer that holds the interface (None: the usual ones). Such an answer is read
    whole before its first tick; progress is then told how many of how many bytes (0: unknown) are read. Raises
    RecordingError.
    """
    file: BinaryIO | None = None
    name = "standard input" if path == "-" else path
    try:
        # A duplicate, so that closing it leaves standard input alone.
        file = open(os.dup(0) if path == "-" else path, "rb")  # noqa: SIM115, PTH123 - the recording closes it
        lines = Lines(name, file)
        return Recording(name, *_recognised(lines, progress, label), lines)
    except OSError as error:
        if file is not None:
            file.close()
        raise RecordingError(f"{name}: {error.strerror or error}") from error
    except RecordingError:
        if file is not None:
            file.close()
        raise


def _recognised(lines: Lines, progress: Progress, label: str | None) -> tuple[Header, Iterator[Tick]]:
    """Header and ticks, of the format that the first line tells."""
    first = lines.first()
    if not first:
        raise lines.error("the file is empty, without even a header")
    begin = first.removeprefix(codecs.BOM_UTF8).lstrip()
    if b'"limiterd_recording"' in first:
        return jsonlines.read(lines, first)
    if begin[:1] in {b"{", b"["} or not begin:
        if jsonlines.missing_header(first):
            raise lines.error(f'the header is missing: {{"limiterd_recording": {jsonlines.VERSION}, …}}')
        text = prometheus.text_of(lines.name, _told(lines, first, progress))
        if not text.strip():
            raise lines.error("the file is empty, without even a header")
        found = prometheus.read([(lines.name, text)], label)
        if not found.series and found.failure is None:
            raise lines.error("the answer holds no series; see that the query finds some in that time")
        return scraped.read(found, label)
    if csv.is_header(first):
        return csv.read(lines)
    raise lines.error(
        f'not a recording: the first line is neither {{"limiterd_recording": {jsonlines.VERSION}, …}} nor "{csv.HEADER}" '
        "nor the answer of a Prometheus query_range; docs/recordings.md has a line for turning other data into one"
    )


def _told(lines: Lines, first: bytes, progress: Progress) -> Iterator[bytes]:
    yield first
    for chunk in lines.chunks():
        progress(lines.read_bytes, lines.size_bytes)
        yield chunk
