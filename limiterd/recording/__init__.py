"""Recorded counters: JSON lines, CSV and Prometheus range queries in, snapshots out; and the writer of JSON lines.

Rule: what a recording says is fed as it stands, in its order. Clocks and counters that run backwards are data; what is
no recording at all (truncated, binary, NaN, a fraction of a byte) is a RecordingError with file and line, raised after
everything before it was handed out.

Theory of operation. Files are read line by line or point by point. Each tick becomes a Snapshot whose links tuple stays
the same object while the links do, which is what makes the detector fast. Ticks come in *lanes*: links of one lane are
sampled together. JSON lines are one lane; CSV interfaces that first appear together share one; in an answer of Prometheus
every instance is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from limiterd.recording import csv, jsonlines, prometheus
from limiterd.recording.jsonlines import Writer
from limiterd.recording.jsonstream import JsonStream
from limiterd.recording.prometheus import METRIC
from limiterd.recording.prometheus_server import query
from limiterd.recording.source import Header, Lines, Recording, RecordingError, Source, Tick

__all__ = ["METRIC", "Header", "Progress", "Recording", "RecordingError", "Source", "Writer", "open_recording", "query"]

Progress = Callable[[int, int], None]


def open_recording(path: str, progress: Progress = lambda _done, _total: None) -> Recording:
    """Open a recording of any of the three formats, told apart by its first line. Raises RecordingError.

    A Prometheus answer is read whole before its first tick; progress is then told how many of how many bytes are read.
    """
    lines: Lines | None = None
    try:
        lines = Lines(path, open(path, "rb"))  # noqa: SIM115, PTH123 - the recording closes it
        return Recording(path, *_recognised(lines, progress), lines)
    except OSError as error:
        if lines is not None:
            lines.close()
        raise RecordingError(f"{path}: {error.strerror or error}") from error
    except RecordingError:
        if lines is not None:
            lines.close()
        raise


def _recognised(lines: Lines, progress: Progress) -> tuple[Header, Iterator[Tick]]:
    """Header and ticks, of the format that the first line tells."""
    first = lines.first()
    if not first.strip():
        raise lines.error("the file is empty, without even a header")
    if b'"limiterd_recording"' in first:
        return jsonlines.read(lines, first)
    if first.lstrip().startswith(b"{"):
        if jsonlines.missing_header(first):
            raise lines.error(f'the header is missing: {{"limiterd_recording": {jsonlines.VERSION}, …}}')
        return prometheus.read([JsonStream(lines.name, _told(lines, first, progress))])
    if csv.is_header(first):
        return csv.read(lines)
    raise lines.error(
        f'not a recording: the first line is neither {{"limiterd_recording": {jsonlines.VERSION}, …}} nor "{csv.HEADER}" '
        "nor the answer of a Prometheus query_range"
    )


def _told(lines: Lines, first: bytes, progress: Progress) -> Iterator[bytes]:
    yield first
    for chunk in lines.chunks():
        progress(lines.read_bytes, lines.size_bytes)
        yield chunk
