"""What the readers of all formats share: recordings, lanes, and the numbered lines of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Final

from limiterd.core.errors import LimiterdError
from limiterd.core.model import Link, Snapshot

MAX_FIRST_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 64 << 10


class RecordingError(LimiterdError):
    """A recording cannot be read (on), or a server does not give one. The text begins with file and line, or the URL."""


@dataclass(slots=True, eq=False)
class Source:
    """Links that are sampled together.

    host is the machine they are of ("" unknown); resolution_ns is the true spacing of each link's samples where that is
    inferred (Prometheus) and not simply what the ticks say. links are all links of the lane where its ticks need not have a
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

    started_wall_ns anchors the first tick's wall clock; qualified: names are instance/device.
    """

    started_wall_ns: int | None = None
    host: str = ""
    qualified: bool = False


class Lines:
    """A recording's file: numbered lines, bounded in length, or chunks. notes are sentences for people about its text."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.name = name
        self.number = 0
        self.read_bytes = 0
        self.size_bytes = os.fstat(stream.fileno()).st_size
        self.notes: list[str] = []
        self._stream = stream

    def first(self) -> bytes:
        """The first line, or as much of it as tells the format."""
        line = self._stream.readline(MAX_FIRST_BYTES)
        self.number = 1
        self.read_bytes = len(line)
        return line

    def rest(self) -> Iterator[bytes]:
        """Every line that is left. Raises RecordingError for one that is longer than any recording's."""
        readline = self._stream.readline
        while line := readline(MAX_LINE_BYTES):
            self.number += 1
            self.read_bytes += len(line)
            if len(line) == MAX_LINE_BYTES:
                raise self.error(f"the line is longer than {MAX_LINE_BYTES} bytes; is this a recording?")
            yield line

    def chunks(self) -> Iterator[bytes]:
        """What is left, whatever its lines."""
        while chunk := self._stream.read(CHUNK_BYTES):
            self.read_bytes += len(chunk)
            yield chunk

    def error(self, what: str) -> RecordingError:
        """The error for the current line."""
        return RecordingError(f"{self.name}:{max(1, self.number)}: {what}")

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()


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
        return self.lines.notes if self.lines is not None else []


def shown(value: object) -> str:
    """A value out of a recording, short enough for a message."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
