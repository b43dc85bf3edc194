"""The log: its lines, and that nobody ever waits for it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiterd import log as logs
from limiterd.core.units import format_wall
from limiterd.log import Log
from tests.netns import wait_for

WALL = 1_795_435_200_250_000_000


class Pipe:
    """A pipe to log into; it is read only when asked."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self._data = b""

    def lines(self) -> list[str]:
        """Every whole line that has arrived."""
        while True:
            try:
                data = os.read(self.reading, 1 << 20)
            except BlockingIOError:
                break
            if not data:
                break
            self._data += data
        return [line.decode() for line in self._data.split(b"\n")[:-1]]

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe that ends with the test."""
    made = Pipe()
    yield made
    made.close()


def log_to(pipe: Pipe, *, level: str = "info", form: str = "text") -> Log:
    """A log with a standing clock and outside systemd."""
    return Log(pipe.writing, level=level, form=form, environ={}, wall_ns=lambda: WALL)


def test_wall_times_are_texts_that_compare_like_times() -> None:
    """RFC 3339 in UTC with milliseconds, one width for all, and out of range the nearest that can be written."""
    assert format_wall(WALL) == "2026-11-23T12:00:00.250Z"
    assert format_wall(-1) == "1969-12-31T23:59:59.999Z"
    assert format_wall(10**30) == "9999-12-31T23:59:59.999Z"
    assert format_wall(-(10**30)) == "0001-01-01T00:00:00.000Z"


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70))
def test_the_order_of_texts_is_the_order_of_times(a: int, b: int) -> None:
    """Of two times the later never has the smaller text."""
    assert (format_wall(a) <= format_wall(b)) or a > b


def test_a_text_line_is_key_value(pipe: Pipe) -> None:
    """Time, level and event come first, then the fields in their order; sentences are quoted."""
    log = log_to(pipe)
    log.warning("limit", interface="eth0", text='eth0 sent 1.2 Gbit/s for "10" s', rate_bps=1200, forced=False, note=None, by="")
    assert log.close()
    expected = (
        'time=2026-11-23T12:00:00.250Z level=warning event=limit interface=eth0 text="eth0 sent 1.2 Gbit/s for \\"10\\" s" '
        'rate_bps=1200 forced=false by=""'
    )
    assert pipe.lines() == [expected]


def test_a_json_line_is_one_object(pipe: Pipe) -> None:
    """In JSON the same fields are one ASCII object a line, with their types."""
    log = log_to(pipe, form="json")
    log.error("fault", interface="eth0", text="no ü", errno=1, detail={"a": [1, 2.5, None]}, nothing=None)
    assert log.close()
    (line,) = pipe.lines()
    assert line.isascii()
    assert json.loads(line) == {
        "time": "2026-11-23T12:00:00.250Z",
        "level": "error",
        "event": "fault",
        "interface": "eth0",
        "text": "no ü",
        "errno": 1,
        "detail": {"a": [1, 2.5, None]},
    }


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.text() | st.integers() | st.floats() | st.lists(st.text())))
def test_no_value_forges_a_line_or_a_field(fields: dict[str, object]) -> None:
    """Whatever the values hold, the text is one printable line whose fields can be taken apart again."""
    line = logs.text_line("", "info", "x", fields)
    assert line.isprintable()
    words = shlex.split(line.replace("\\\\", "").replace("\\'", "").replace("'", ""), posix=True)
    assert [word.split("=", 1)[0] for word in words] == ["level", "event", *fields]
    assert "\n" not in logs.json_line("", "info", "x", fields)


def test_levels_filter_and_change_at_run_time(pipe: Pipe) -> None:
    """Below the level nothing is written; level and format change between two lines."""
    log = log_to(pipe, level="warning")
    log.debug("one")
    log.info("two")
    log.warning("three")
    log.configure("debug", "json")
    log.debug("four")
    assert log.close()
    first, second = pipe.lines()
    assert "event=three" in first
    assert json.loads(second)["event"] == "four"


@pytest.mark.parametrize(("level", "form"), [("loud", "text"), ("info", "xml")])
def test_unknown_words_are_refused(pipe: Pipe, level: str, form: str) -> None:
    """A level or format that does not exist raises and changes nothing."""
    log = log_to(pipe)
    with pytest.raises((KeyError, ValueError)):
        log.configure(level, form)
    log.debug("hidden")
    log.info("shown")
    assert log.close()
    assert len(pipe.lines()) == 1


@pytest.mark.parametrize(("level", "prefix"), [("debug", "<7>"), ("info", "<6>"), ("warning", "<4>"), ("error", "<3>")])
def test_under_systemd_lines_carry_their_priority(pipe: Pipe, level: str, prefix: str) -> None:
    """Where JOURNAL_STREAM names our stream, each line starts with its priority and leaves the time to journald."""
    found = os.fstat(pipe.writing)
    log = Log(pipe.writing, level="debug", environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    log.emit(level, "x", {})
    assert log.close()
    assert pipe.lines() == [f"{prefix}level={level} event=x"]


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_elsewhere_lines_carry_no_priority(pipe: Pipe, stream: str) -> None:
    """A JOURNAL_STREAM of another stream, inherited from somewhere, does not count."""
    log = Log(pipe.writing, environ={"JOURNAL_STREAM": stream})
    log.info("x")
    assert log.close()
    assert pipe.lines()[0].startswith("time=")


def test_a_blocked_pipe_blocks_nobody_and_is_reported(pipe: Pipe) -> None:
    """With nobody reading, ten thousand lines return at once; when it flows again the dropped ones are counted in a line."""
    log = log_to(pipe)
    for number in range(10_000):  # it would be for ever
        log.info("x", number=number, text="y" * 200)
    assert log.dropped > 5_000
    wait_for(lambda: any("event=log_dropped" in line for line in pipe.lines()), "the report of dropped lines")
    assert log.close()
    lines = pipe.lines()
    written = [line for line in lines if "event=x " in line]
    reports = [line for line in lines if "event=log_dropped" in line]
    assert sum(int(line.split(" lines=")[1].split()[0]) for line in reports) == 10_000 - len(written)
    assert all("level=warning" in line for line in reports)
    numbers = [int(line.split("number=")[1].split()[0]) for line in written]
    assert numbers == sorted(set(numbers)), "in order, each once"


def test_the_end_does_not_wait_for_a_blocked_pipe(pipe: Pipe) -> None:
    """Closing gives up after its time-out and says that not everything was written."""
    log = log_to(pipe)
    for _ in range(1000):
        log.info("x", text="y" * 200)
    assert not log.flush(0.05)
    assert not log.close(0.05)  # it would be for ever
    wait_for(lambda: len(pipe.lines()) == 1000, "written out in the end")


def test_a_pipe_that_does_not_wait_is_waited_for(pipe: Pipe) -> None:
    """A stderr that was set non-blocking by somebody else loses no line and breaks none."""
    os.set_blocking(pipe.writing, False)
    log = log_to(pipe)
    for number in range(1500):
        log.info("x", number=number, text="y" * 200)
    wait_for(lambda: len(pipe.lines()) == 1500, "everything is written")
    assert [line.split("number=")[1].split()[0] for line in pipe.lines()] == [str(number) for number in range(1500)]
    assert log.dropped == 0
    log.close()


def test_a_closed_stderr_is_survived() -> None:
    """With nobody at the other end lines are counted as dropped, nothing else."""
    reading, writing = os.pipe()
    os.close(reading)
    log = Log(writing, environ={})
    for _ in range(10):
        log.info("x")
    assert log.close()
    assert log.dropped == 10
    os.close(writing)


def test_a_defect_costs_the_line_that_it_hit(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing raises what nobody expected: that line is lost and counted, the next ones come; no line tells of it."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    log = log_to(pipe)
    with logs.bridged(log):
        with monkeypatch.context() as patched:
            patched.setattr(log, "_write", lambda _: 1 // 0)
            log.info("x", number=1)
            wait_for(lambda: told, "the defect is told")
        log.info("x", number=2)
        wait_for(lambda: len(pipe.lines()) == 2, "the second line, and how many are missing")
    assert log.close()
    assert (log.dropped, len(told)) == (1, 1)
    assert "number=2" in pipe.lines()[0]
    assert "lines=1" in pipe.lines()[1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_endless_line_is_cut(pipe: Pipe, form: str) -> None:
    """A line is bounded, and in JSON still JSON."""
    log = log_to(pipe, form=form)
    log.info("x", text="t" * 10_000, evidence="y" * 10**6)
    lines = wait_for(pipe.lines, "the line")
    log.close()
    assert len(lines[0]) < 40_000
    if form == "json":
        assert json.loads(lines[0])["cut"] is True


def test_dying_threads_warnings_and_libraries_are_logged(pipe: Pipe) -> None:
    """While bridged, an uncaught exception in a thread, a warning and a library's record are lines of the log."""
    log = log_to(pipe)

    def die() -> None:
        raise RuntimeError("a defect")

    with logs.bridged(log), warnings.catch_warnings():
        warnings.simplefilter("always")
        thread = threading.Thread(target=die, name="worker")
        thread.start()
        thread.join()
        logging.getLogger("pyroute2").warning("odd %s", "thing")
        logging.getLogger("pyroute2").info("not shown")
        warnings.showwarning(UserWarning("beware"), UserWarning, "x.py", 7)
    after = logging.getLogger().handlers
    assert not any(isinstance(handler, logs._Bridge) for handler in after)
    assert log.close()
    died, library, warned = pipe.lines()
    assert "level=error event=thread_died" in died
    assert "a defect" in died
    assert "in die" in died
    assert 'level=warning event=library text="odd thing" logger=pyroute2' in library
    assert "UserWarning: beware" in warned
    assert "x.py:7" in warned


def test_an_ordinary_file_is_no_journal(tmp_path: Path) -> None:
    """A closed descriptor is no journal either."""
    path = tmp_path / "log"
    path.touch()
    found = path.stat()
    assert not logs.is_journal(10**6, f"{found.st_dev}:{found.st_ino}")
