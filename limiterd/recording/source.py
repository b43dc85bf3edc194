"""What the readers of all formats share: recordings, sources, and the numbered lines of a file."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from typing import BinaryIO, Final

from limiterd.core.errors import LimiterdError
from limiterd.core.model import Link, Snapshot
from limiterd.core.text import shown as text_shown

MAX_FIRST_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 64 << 10
MILLISECONDS_FROM: Final = 10**11
"""A time in seconds from here on is a time in ms: the year 5138."""
_HEAD_BYTES: Final = 8
_GZIP: Final = b"\x1f\x8b"
_PACKED_ERRORS: Final = (EOFError, gzip.BadGzipFile, zlib.error)
_NO_TEXT: Final = {
    b"\xfd7zXZ": "compressed by xz; unpack it: xz -dc FILE | limiterctl replay -",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it: zstd -dc FILE | limiterctl replay -",
    b"BZh": "compressed by bzip2; unpack it: bzip2 -dc FILE | limiterctl replay -",
    b"PK\x03\x04": "a zip archive; unpack it: unzip -p FILE | limiterctl replay -",
    b"\xff\xfe": "UTF-16 text; turn it into UTF-8: iconv -f UTF-16 -t UTF-8 FILE | limiterctl replay -",
    b"\xfe\xff": "UTF-16 text; turn it into UTF-8: iconv -f UTF-16 -t UTF-8 FILE | limiterctl replay -",
    b"\xd4\xc3\xb2\xa1": "a packet capture; replay reads counters (docs/recordings.md)",
    b"\x0a\x0d\x0d\x0a": "a packet capture; replay reads counters (docs/recordings.md)",
}
"""Beginnings of files that are no recordings, and what to do with them."""


class RecordingError(LimiterdError):
    """A recording cannot be read (on), or a server does not give one. The text begins with file and line, or the URL.

    What others wrote (names, a server's words) is in it with escapes for what is not printable.
    """

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(map(text_shown, text.split("\n"))))


@dataclass(slots=True, eq=False)
class Source:
    """Links that are sampled together.

    host is the machine they are of ("" unknown); resolution_ns is the true spacing of each link's samples where that is
    inferred (Prometheus) and not simply what the ticks say. links are all links of the source where its ticks need not have a
    sample of each; None: a link that a tick does not have was gone then.
    """

    key: str = ""
    host: str = ""
    resolution_ns: Mapping[str, int] = field(default_factory=dict)
    links: tuple[Link, ...] | None = None


Tick = tuple[Source, Snapshot]


@dataclass(frozen=True, slots=True)
class Header:
    """What a recording says of itself.

    started_wall_ns anchors the first tick's wall clock; qualified: names are instance/device; notes are sentences for people.
    """

    started_wall_ns: int | None = None
    host: str = ""
    qualified: bool = False
    notes: tuple[str, ...] = ()


class Lines:
    """A recording's file: numbered lines, bounded in length, or chunks. notes are sentences for people about its text."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        """Read the file, or what is packed in it where it is a gzip. Raises RecordingError for what is no text."""
        self.name = name
        self.number = 0
        self.read_bytes = 0
        self.size_bytes = os.fstat(file.fileno()).st_size
        self.notes: list[str] = []
        self._file = file
        self._stream: BinaryIO | gzip.GzipFile = file
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES] if isinstance(file, BufferedReader) else b""
        for magic, what in _NO_TEXT.items():
            if head.startswith(magic):
                raise RecordingError(f"{name}: {what}")
        if head.startswith(_GZIP):
            self._stream = gzip.GzipFile(fileobj=file)
            self.size_bytes = 0  # unknown

    def first(self) -> bytes:
        """The first line, or as much of it as tells the format."""
        try:
            line = self._stream.readline(MAX_FIRST_BYTES)
        except _PACKED_ERRORS as error:
            raise self._packed(error) from None
        self.number = 1
        self.read_bytes = len(line)
        return line

    def rest(self) -> Iterator[bytes]:
        """Every line that is left. Raises RecordingError for one that is longer than any recording's."""
        readline = self._stream.readline
        try:
            while line := readline(MAX_LINE_BYTES):
                self.number += 1
                self.read_bytes += len(line)
                if len(line) == MAX_LINE_BYTES:
                    raise self.error(f"the line is longer than {MAX_LINE_BYTES} bytes; is this a recording?")
                yield line
        except _PACKED_ERRORS as error:
            raise self._packed(error) from None

    def chunks(self) -> Iterator[bytes]:
        """What is left, whatever its lines."""
        try:
            while chunk := self._stream.read(CHUNK_BYTES):
                self.read_bytes += len(chunk)
                yield chunk
        except _PACKED_ERRORS as error:
            raise self._packed(error) from None

    def _packed(self, error: Exception) -> RecordingError:
        """What is wrong with a gzip, in words."""
        return self.error("the gzip file is cut off" if isinstance(error, EOFError) else f"the gzip file is damaged ({error})")

    def error(self, what: str) -> RecordingError:
        """The error for the current line."""
        return RecordingError(f"{self.name}:{max(1, self.number)}: {what}")

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()
        self._file.close()


@dataclass(slots=True)
class Recording:
    """An open recording; lines is its file, None for a server's answers."""

    name: str
    header: Header
    ticks: Iterable[Tick]
    lines: Lines | None = None

    def __iter__(self) -> Iterator[Tick]:
        """The ticks in the recording's order, once. Raises RecordingError where it cannot be read on."""
        try:
            yield from self.ticks
        except OSError as error:
            raise RecordingError(f"{self.name}: {error.strerror or error}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the file; reading to the end does too."""
        if self.lines is not None:
            self.lines.close()

    @property
    def notes(self) -> list[str]:
        """Sentences for people about what was odd, once it is read."""
        return [*self.header.notes, *(self.lines.notes if self.lines is not None else ())]


def shown(value: object) -> str:
    """A value out of a recording, short enough for a message."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
