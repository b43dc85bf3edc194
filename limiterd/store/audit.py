"""The audit trail: <state>/audit.jsonl, append-only, each line with the hash of the one before (format: chain.py).

append returns at once with the new line's own hash, the head, for the log; a thread writes and fsyncs in batches. While the
disk refuses, lines wait in a bounded queue and writing is tried again with back-off. What finds the queue full is counted
as an error, and a later `lost` entry says how many.

The file is opened anew for each batch: a file that was moved, deleted or put on another disk meanwhile is no obstacle. Before
the file would exceed its size it becomes audit.jsonl.1, .1 becomes .2, and so on; the oldest goes. Nothing that was written
is ever changed: a write cut short by a full disk is resumed in the middle of its line once there is room; a line torn by a
crash is ended with a newline, and a `torn` entry that carries its hash follows.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limiterd.background import RETRY_S, Background
from limiterd.core.errors import EnvironmentFault
from limiterd.files import fault, make_directory, sync_directory
from limiterd.store import hash_chain as chain

_BATCH_BYTES: Final = 1 << 20
_ANSWER_BYTES: Final = 4 << 20
NEWEST: Final = chain.Look(lines=1000, size_bytes=4 << 20)
"""How far back `newest` looks, whoever asks for whatever."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the trail may take: a file, the files kept besides the newest, and the queue for a disk that refuses."""

    file_bytes: int = 8 << 20
    kept_files: int = 8
    queued_lines: int = 4096
    queued_bytes: int = 8 << 20


@dataclass(slots=True)
class _Progress:
    """How far the file got with the first queued lines: `done` bytes of them stand at its end, at `size` bytes."""

    device: int = 0
    inode: int = 0
    size: int = -1
    done: int = 0


class AuditTrail:
    """The trail and the thread that writes it. Every method may be called from any thread; only read and verify wait."""

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str = "audit",
        bounds: Bounds = Bounds(),
        retry_s: tuple[float, float] = RETRY_S,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Find where the chain goes on; name is the thread's. A trail that cannot be read now is tried again, see `problem`."""
        self._directory = Path(directory)
        self._path = self._directory / chain.FILE_NAME
        self._bounds = bounds
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        """Entries without a place in the chain: its end is not known yet."""
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._unreported = 0
        self._lost = 0
        self._errors = 0
        self._seq = 0
        self._head = ""
        self._written_head = chain.GENESIS
        self._problem: str | None = None
        self._errno_name = ""
        self._progress = _Progress()
        self._grows: str | None = None
        """Why the newest file could not be rotated."""
        self._writer = Background(name, self._write_out, retry_s)
        if not self._open() or self._lines:
            self._writer.poke()

    # ---- asking

    @property
    def head(self) -> str:
        """The hash of the newest line, queued or written; "" while the trail on disk cannot be read."""
        return self._head

    @property
    def errors(self) -> int:
        """Failed attempts and lost entries, cumulative."""
        return self._errors

    @property
    def lost(self) -> int:
        """Entries that found the queue full, cumulative."""
        return self._lost

    @property
    def problem(self) -> str | None:
        """Why entries are not reaching the disk, or files are not rotated; None once it works again."""
        return self._problem

    @property
    def queued(self) -> int:
        """Entries that are not safely on disk yet."""
        return len(self._lines) + len(self._waiting)

    def read(
        self,
        interface: str | None = None,
        kinds: Collection[str] | None = None,
        since_wall_ns: int | None = None,
        until_wall_ns: int | None = None,
        limit: int = 100,
    ) -> tuple[chain.Entry, ...]:
        """Entries newest first, those that still wait for the disk included; at most about 4 MiB of them.

        Raises EnvironmentFault(operation="read").
        """
        wanted = chain.Filter(interface, kinds, since_wall_ns, until_wall_ns)
        return chain.read(self._directory, wanted, waiting=self.waiting(), limit=limit, max_bytes=_ANSWER_BYTES)

    def newest(self, wanted: chain.Filter, limit: int) -> chain.Found:
        """Those of the newest entries that are wanted, those that still wait for the disk included.

        Looks no further back than NEWEST, so it costs little whatever is wanted. Raises EnvironmentFault(operation="read").
        """
        return chain.read_newest(self._directory, wanted, waiting=self.waiting(), limit=limit, look=NEWEST)

    def waiting(self) -> dict[int, bytes]:
        """The lines that are not safely on disk yet, by seq, oldest first."""
        with self._lock:
            first_seq = self._seq - len(self._lines) + 1
            return {seq: line[:-1] for seq, line in enumerate(self._lines, first_seq)}

    def open_parts(self) -> list[chain.Part]:
        """The trail's files, opened to be read, newest first; whoever asked closes them.

        Raises EnvironmentFault(operation="read").
        """
        return chain.open_parts(self._directory)

    @property
    def written_head(self) -> str | None:
        """The hash of the line that this daemon wrote last, which the files must hold; None before the first."""
        return None if self._written_head == chain.GENESIS else self._written_head

    def verify(self, expected_head: str | None = None) -> chain.Verification:
        """Follow the chain on disk; the end must hold what this daemon wrote last, and the expected head if one is given.

        Raises EnvironmentFault(operation="read").
        """
        return chain.verify(self._directory, expected=chain.expectations(self.written_head, expected_head))

    # ---- telling

    def append(self, kind: str, interface: str = "", fields: Mapping[str, object] | None = None) -> str:
        """Queue one entry and return the head, which is then its own hash. Returns at once, raises nothing."""
        body = chain.body_of(self._wall_ns(), kind, interface, fields or {})
        with self._lock:
            full = self.queued >= self._bounds.queued_lines or self._queued_bytes >= self._bounds.queued_bytes
            if full:
                self._lost += 1
                self._unreported += 1
                self._errors += 1
            else:
                self._admit_lost()
                self._admit(body)
            head = self._head
        self._writer.poke()
        return head

    def wait(self, timeout_s: float) -> None:
        """Return when every entry that was appended before is on the disk; those that were lost are not waited for.

        Raises EnvironmentFault(operation="write") when the disk refuses, or does not answer in that time.
        """
        if self._writer.wait(self._writer.poke(), timeout_s):
            return
        why = self._problem or f"{self._path} is not written after {timeout_s:g} s: the disk hangs"
        raise EnvironmentFault(why, operation="write", errno_name=self._errno_name)

    def _admit(self, body: str) -> None:
        if self._head:
            self._seal(body)
        else:
            self._waiting.append(body)
            self._queued_bytes += len(body)

    def _admit_lost(self) -> None:
        if self._unreported:
            self._admit(chain.body_of(self._wall_ns(), "lost", "", {"entries": self._unreported}))
            self._unreported = 0

    def _seal(self, body: str) -> None:
        self._seq += 1
        line = chain.seal(self._seq, body, self._head)
        self._head = chain.line_hash(line)
        self._lines.append(line + b"\n")
        self._queued_bytes += len(line) + 1

    def close(self, timeout_s: float = 2.0) -> bool:
        """Try to write what is queued, for at most that long; whether all of it is on disk."""
        self._writer.close(timeout_s)
        return not self.queued

    # ---- the disk: in the writer's thread

    def _open(self) -> bool:
        try:
            tail = chain.tail(self._directory)
        except EnvironmentFault as error:
            self._fail(error)
            return False
        with self._lock:
            self._seq, self._head = tail.seq, tail.head
            self._written_head = tail.head
            if tail.torn:
                self._admit(chain.body_of(self._wall_ns(), chain.TORN, "", {"after_seq": tail.seq}))
            while self._waiting:
                body = self._waiting.popleft()
                self._queued_bytes -= len(body)
                self._seal(body)
        return True

    def _fail(self, problem: EnvironmentFault) -> None:
        with self._lock:
            self._errors += 1
        self._problem, self._errno_name = str(problem), problem.errno_name

    def _write_out(self) -> bool:
        """Write all that is queued now, not what comes meanwhile; whether that succeeded."""
        if not self._head and not self._open():
            return False
        last_seq = self._seq
        while last_seq > self._seq - len(self._lines) and (batch := self._batch()):
            try:
                self._write(b"".join(batch))
            except OSError as error:
                self._fail(fault(f"{self._path} cannot be written, {self.queued} entries wait", error, "write"))
                return False
            self._progress = _Progress()
            with self._lock:
                for line in batch:
                    self._lines.popleft()
                    self._queued_bytes -= len(line)
                self._written_head = chain.line_hash(batch[-1][:-1])
                if self._unreported:
                    self._admit_lost()
                    last_seq = self._seq
        self._problem = self._grows
        return True

    def _batch(self) -> list[bytes]:
        """The first queued lines, as many as fit a batch and a file; the same ones first at every attempt."""
        batch: list[bytes] = []
        room = min(_BATCH_BYTES, self._bounds.file_bytes)
        with self._lock:
            for line in self._lines:
                room -= len(line)
                if batch and room < 0:
                    break
                batch.append(line)
        return batch

    def _write(self, data: bytes) -> None:
        """Append the data, or what an earlier attempt left of it, and make it durable. Raises OSError."""
        make_directory(self._directory)
        if self._must_rotate(len(data)):
            self._rotate()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file; move it away")
            self._append(descriptor, found, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if found.st_size == 0:
            sync_directory(self._directory)

    def _resumes(self, found: os.stat_result) -> bool:
        progress = self._progress
        return (found.st_dev, found.st_ino, found.st_size) == (progress.device, progress.inode, progress.size)

    def _append(self, descriptor: int, found: os.stat_result, data: bytes) -> None:
        done = self._progress.done if self._resumes(found) else 0
        size = found.st_size
        try:
            if size and not done and os.pread(descriptor, 1, size - 1) != b"\n":
                size += os.write(descriptor, b"\n")  # ends a line that a crash tore
            while done < len(data):
                written = os.write(descriptor, memoryview(data)[done:])
                done += written
                size += written
        finally:
            self._progress = _Progress(found.st_dev, found.st_ino, size, done)

    def _must_rotate(self, more: int) -> bool:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return False
        return found.st_size > 0 and found.st_size + more > self._bounds.file_bytes and not self._resumes(found)

    def _rotate(self) -> None:
        """Move every file one number up as far as the first free one; a failure is told and the newest file grows on."""
        slots = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._bounds.kept_files + 1))]
        free = next((n for n, slot in enumerate(slots) if not os.path.lexists(slot)), len(slots) - 1)
        try:
            for number in range(free, 0, -1):
                slots[number - 1].replace(slots[number])
            self._grows = None
        except OSError as error:
            trouble = fault(f"{self._path} cannot be rotated and grows on", error, "write")
            self._grows = str(trouble)
            self._fail(trouble)
