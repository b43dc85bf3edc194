"""The daemon's log on stderr: one line an event, as key=value text or as JSON, and never in anybody's way.

Lines are queued, bounded, and written by a thread: a blocked pipe costs lines, not time. What is dropped is counted, and
reported once lines flow again. Under systemd (JOURNAL_STREAM names our stderr) each line starts with its journald
priority `<N>`, and text lines leave the time to journald.

No value can forge a line or reach a terminal with control characters: what is not plainly printable is quoted and escaped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TextIO

from limiterd import json_codec as jsonsafe
from limiterd.core.text import shown
from limiterd.core.units import format_wall

LEVELS: Final[Mapping[str, int]] = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""Level → journald priority, syslog(3)."""

FORMATS: Final = ("text", "json")
_MAX_LINE: Final = 32 << 10
_MAX_TEXT: Final = 8 << 10
_MAX_QUEUED_LINES: Final = 2048
_MAX_QUEUED_BYTES: Final = 2 << 20
_POLL_MS: Final = 1000


# ---- lines: pure ---------------------------------------------------------------------------------


def _text_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = (
        value
        if isinstance(value, str)
        else ""
        if value is None
        else str(value)
        if isinstance(value, int | float)
        else jsonsafe.dump(value)
    )
    if isinstance(value, str):
        text = "\n".join(shown(line, _MAX_TEXT) for line in text.split("\n"))
    return text if text and not any(mark in text for mark in ' "=\\') else json.dumps(text, ensure_ascii=False)


def text_line(time_text: str, level: str, event: str, fields: Mapping[str, object]) -> str:
    """`time=… level=… event=… key=value …`; an empty time is left out, as are fields that are None."""
    shown = {"time": time_text or None, "level": level, "event": event, **fields}
    return " ".join(f"{key}={_text_value(value)}" for key, value in shown.items() if value is not None)


def json_line(time_text: str, level: str, event: str, fields: Mapping[str, object]) -> str:
    """The same as one JSON object, plain ASCII."""
    shown = {"time": time_text, "level": level, "event": event, **fields}
    return jsonsafe.dump(jsonsafe.plain({key: value for key, value in shown.items() if value is not None}))


def is_journal(descriptor: int, journal_stream: str) -> bool:
    """Whether a descriptor is the stream that JOURNAL_STREAM ("device:inode") names, systemd.exec(5)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


# ---- the log -------------------------------------------------------------------------------------


class Log:
    """The log and the thread that writes it. Every method may be called from any thread and returns at once."""

    def __init__(
        self,
        descriptor: int = 2,
        *,
        level: str = "info",
        form: str = "text",
        environ: Mapping[str, str] = os.environ,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Log to a descriptor, which stays open; level and form are those of the configuration's `log`."""
        self._descriptor = descriptor
        self._journal = is_journal(descriptor, environ.get("JOURNAL_STREAM", ""))
        self._wall_ns = wall_ns
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._dropped = 0
        self._unreported = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self.configure(level, form)

    def configure(self, level: str, form: str) -> None:
        """Change level and form from the next line on. Raises KeyError or ValueError for words that LEVELS and FORMATS lack."""
        self._threshold = LEVELS[level]
        if form not in FORMATS:
            raise ValueError(f"log form {form!r}")
        self._json = form == "json"

    @property
    def dropped(self) -> int:
        """Lines that were never written, cumulative."""
        return self._dropped

    @property
    def writer(self) -> threading.Thread | None:
        """The thread that writes."""
        return self._thread

    def debug(self, event: str, **fields: object) -> None:
        """For whoever looks for a defect."""
        self.emit("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Something happened as it should."""
        self.emit("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something is degraded or about to be."""
        self.emit("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something does not work."""
        self.emit("error", event, fields)

    def emit(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Queue one line. fields come in their order; by custom interface first and text, a readable sentence, second."""
        if LEVELS[level] > self._threshold:
            return
        line = self._render(level, event, fields)
        with self._changed:
            if self._closing or len(self._queue) >= _MAX_QUEUED_LINES or self._queued_bytes >= _MAX_QUEUED_BYTES:
                self._dropped += 1
                self._unreported += 1
                return
            self._enqueue(line)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _render(self, level: str, event: str, fields: Mapping[str, object]) -> bytes:
        now = format_wall(self._wall_ns())
        if self._json:
            text = json_line(now, level, event, fields)
            if len(text) > _MAX_LINE:
                text = json_line(now, level, event, {"text": str(fields.get("text", ""))[: _MAX_LINE // 16], "cut": True})
        else:
            text = text_line("" if self._journal else now, level, event, fields)
            text = text if len(text) <= _MAX_LINE else text[:_MAX_LINE] + "…"
        prefix = f"<{LEVELS[level]}>" if self._journal else ""
        return f"{prefix}{text}\n".encode(errors="backslashreplace")

    def _enqueue(self, line: bytes) -> None:
        self._queue.append(line)
        self._queued_bytes += len(line)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                line = self._queue[0]
            written = False
            try:
                written = self._write(line)
            finally:  # also when a defect ends this thread: the next one begins with the next line
                self._done(line, written=written)

    def _done(self, line: bytes, *, written: bool) -> None:
        with self._changed:
            self._queue.popleft()
            self._queued_bytes -= len(line)
            self._changed.notify_all()
            if not written:
                self._dropped += 1
                self._unreported += 1
            elif self._unreported:
                report = {"lines": self._unreported, "text": f"{self._unreported} log lines were dropped: stderr was blocked"}
                self._unreported = 0
                self._enqueue(self._render("warning", "log_dropped", report))

    def _write(self, line: bytes) -> bool:
        """Write a whole line, however long that takes; whether it could be."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_POLL_MS)
            except OSError:
                return False
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is queued, for at most that long; whether that came."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout_s)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write what is queued, for at most that long, and end; whether all of it was written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return not self._queue


# ---- what Python itself and the libraries have to say ----------------------------------------------


class _Bridge(logging.Handler):
    """Records of libraries' loggers as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._log.emit(level, "library", {"text": record.getMessage(), "logger": record.name})


def _trace(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)) if error is not None else ""


@contextlib.contextmanager
def bridged(log: Log) -> Iterator[None]:
    """While it lasts, warnings, libraries' logs, threads that die of an exception and unraisable errors are lines of this log."""

    def on_thread(args: threading.ExceptHookArgs) -> None:
        if args.thread is log.writer:  # it would die of this line too, and so on without an end
            before[0](args)
        elif args.exc_type is not SystemExit:
            name = args.thread.name if args.thread else "?"
            log.error("thread_died", text=f"thread {name}: {args.exc_value!r}", traceback=_trace(args.exc_value))

    def on_unraisable(args: sys.UnraisableHookArgs) -> None:
        log.error(
            "unraisable", text=f"{args.err_msg or 'exception ignored'}: {args.exc_value!r}", traceback=_trace(args.exc_value)
        )

    def on_warning(  # as the hook is called
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001  # likewise
        line: str | None = None,  # noqa: ARG001  # likewise
    ) -> None:
        log.warning("python_warning", text=f"{category.__name__}: {message}", place=f"{filename}:{lineno}")

    before = threading.excepthook, sys.unraisablehook, warnings.showwarning
    bridge = _Bridge(log)
    threading.excepthook, sys.unraisablehook, warnings.showwarning = on_thread, on_unraisable, on_warning
    logging.getLogger().addHandler(bridge)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(bridge)
        threading.excepthook, sys.unraisablehook, warnings.showwarning = before
