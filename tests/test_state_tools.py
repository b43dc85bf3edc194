"""The tools that state files stand on: atomic writes, bounded reads, careful JSON, a thread that tries again."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiterd import json_codec as jsonsafe
from limiterd.background import Background
from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Reason
from limiterd.files import read_bounded, write_atomic
from tests.netns import wait_for

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)

# ---- files ---------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """A process killed at any instant of its writes leaves a whole file, and the next write works and leaves no litter."""
    path = tmp_path / "state.json"
    contents = [bytes([letter]) * 50_000 for letter in b"abc"]
    write_atomic(path, contents[0])
    for round_ in range(20):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, b"x")
                while True:
                    for content in contents:
                        write_atomic(path, content)
            finally:
                os._exit(1)
        os.read(reading, 1)
        for _ in range(round_ * 500):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)
        assert path.read_bytes() in contents
    write_atomic(path, b"done")
    assert path.read_bytes() == b"done"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_what_lies_under_the_temporary_name_is_no_trap(tmp_path: Path) -> None:
    """A fifo or a link left under the temporary name is neither waited for nor followed."""
    path, precious = tmp_path / "state.json", tmp_path / "precious"
    precious.write_bytes(b"precious")
    temporary = tmp_path / ".state.json.tmp"
    os.mkfifo(temporary)
    write_atomic(path, b"one")
    temporary.symlink_to(precious)
    write_atomic(path, b"two")
    assert (path.read_bytes(), precious.read_bytes()) == (b"two", b"precious")


def test_a_link_in_the_files_place_is_replaced_not_followed(tmp_path: Path) -> None:
    """Writing where a link stands replaces the link; what it names stays."""
    path, precious = tmp_path / "state.json", tmp_path / "precious"
    precious.write_bytes(b"precious")
    path.symlink_to(precious)
    write_atomic(path, b"new")
    assert not path.is_symlink()
    assert precious.read_bytes() == b"precious"


def test_a_failed_write_says_what_to_do(tmp_path: Path) -> None:
    """The fault names the file, the cause and its symbol."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentFault, match=r"state\.json cannot be written") as raised:
        write_atomic(tmp_path / "file" / "state.json", b"x")
    assert raised.value.operation == "write"
    assert raised.value.errno_name in {"ENOTDIR", "EEXIST"}


@settings(deadline=None)
@given(content=st.binary(max_size=200), bound=st.integers(0, 220))
def test_no_more_is_read_than_allowed(tmp_path_factory: pytest.TempPathFactory, content: bytes, bound: int) -> None:
    """The beginning up to the bound comes back, and whether it was all."""
    path = tmp_path_factory.getbasetemp() / "bounded"
    path.write_bytes(content)
    assert read_bounded(path, bound) == (content[:bound], len(content) <= bound)


# ---- JSON ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(any_json)
def test_what_is_dumped_is_parsed_back(value: object) -> None:
    """Plain JSON survives as one line of ASCII."""
    text = jsonsafe.dump(value)
    assert text.isascii()
    assert text.isprintable()
    assert jsonsafe.parse(text.encode()) == value
    assert "".join(jsonsafe.pieces(value)) == text


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_parsing_raises_value_errors_alone(data: bytes) -> None:
    """Any bytes parse as the standard library reads them, or raise ValueError."""
    failed = False
    try:
        value = jsonsafe.parse(data)
    except ValueError:
        failed, value = True, None
    assert failed or value == json.loads(data)


@pytest.mark.parametrize("depth", [31, 32, 33, 1000, 1_000_000])
def test_depth_is_bounded(depth: int) -> None:
    """32 levels are read, deeper ones refused, however deep."""
    text = b"[" * depth + b"]" * depth
    if depth <= 32:
        assert jsonsafe.parse(text) is not None
    else:
        with pytest.raises(ValueError, match="deeper than 32"):
            jsonsafe.parse(text)


def test_whatever_is_dumped_raises_nothing() -> None:
    """Endless nesting, cycles, keys that are no text and objects of any class become some JSON."""
    cycle: list[object] = []
    cycle.append(cycle)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (cycle, deep, {(1, 2): 3}, {None: 1}, object(), {"x": {1, 2}}, float("nan"), b"\x00"):
        json.loads(jsonsafe.dump(value))


@dataclass(frozen=True)
class Sample:
    """Every kind of field that state files have."""

    name: str
    count: int
    on: bool
    raw: bytes
    why: Reason
    limit: int | None = None
    more: Mapping[str, object] = field(default_factory=dict)


GOOD = {"name": "x", "count": 1, "on": True, "raw": "AQI=", "why": "guard"}


def test_a_dataclass_is_read_with_its_types() -> None:
    """Fields come back as what they were; missing ones take their defaults, unknown ones are ignored."""
    value = Sample("x", 1, on=True, raw=b"\x01\x02", why=Reason.GUARD)
    assert jsonsafe.decode(Sample, {**GOOD, "novelty": 1}) == value
    assert jsonsafe.decode(Sample, jsonsafe.encode(value)) == value


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": 1}, "name: an integer where text is expected"),
        ({"name": None}, "name: null where text"),
        ({"count": True}, "count: true or false where an integer"),
        ({"count": 1.0}, "count: a decimal where an integer"),
        ({"count": -1}, "count: a number is out of range"),
        ({"count": 2**63}, "count: a number is out of range"),
        ({"on": 1}, "on: an integer where true or false"),
        ({"raw": "!"}, "raw: "),
        ({"why": "whim"}, "why: 'whim' is not a valid Reason"),
        ({"why": ["guard"]}, "why: a list where text"),
        ({"limit": "1"}, "limit: text where an integer"),
        ({"more": []}, "more: a list where an object"),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, object], complaint: str) -> None:
    """A field of another type raises ValueError with its name."""
    with pytest.raises(ValueError, match=complaint):
        jsonsafe.decode(Sample, GOOD | change)


@pytest.mark.parametrize("value", [None, [], "x", 1, {"name": "x"}])
def test_what_is_no_record_is_refused(value: object) -> None:
    """Anything but an object with the required fields raises ValueError."""
    with pytest.raises(ValueError, match=r"is expected|missing"):
        jsonsafe.decode(Sample, value)


# ---- the thread ----------------------------------------------------------------------------------


def test_a_job_is_tried_again_until_it_succeeds() -> None:
    """A failing job is repeated without a new poke, and rests once it has succeeded."""
    outcomes = iter([False, False, True])
    done: list[bool] = []

    def job() -> bool:
        done.append(next(outcomes))
        return done[-1]

    thread = Background("test", job, (0.001, 0.002))
    thread.poke()
    wait_for(lambda: len(done) == 3, "three attempts")
    thread.close(10)
    assert done == [False, False, True]


def test_pokes_during_the_job_are_not_lost() -> None:
    """What is poked while the job runs makes it run once more, however many pokes there were."""
    entered, gate = threading.Event(), threading.Event()
    runs: list[int] = []

    def job() -> bool:
        runs.append(1)
        entered.set()
        return gate.wait(20)

    thread = Background("test", job)
    thread.poke()
    assert entered.wait(10)
    for _ in range(5):
        thread.poke()
    gate.set()
    thread.close(10)
    assert len(runs) == 2


def test_closing_tries_once_more_and_no_more() -> None:
    """At the end a job that is due gets one last attempt, also when it was waiting to be tried again."""
    runs: list[int] = []

    def job() -> bool:
        runs.append(1)
        return False

    thread = Background("test", job, (60, 60))
    thread.poke()
    wait_for(lambda: runs, "the first attempt")
    thread.close(10)
    assert len(runs) == 2
    thread.poke()
    assert len(runs) == 2


def test_a_job_that_died_of_a_defect_lives_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception ends the thread loudly; the next poke starts it anew."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    runs: list[int] = []

    def job() -> bool:
        runs.append(1)
        if len(runs) == 1:
            raise ZeroDivisionError
        return True

    thread = Background("test", job)
    thread.poke()
    wait_for(lambda: told, "it is told")
    wait_for(lambda: thread._thread is not None and not thread._thread.is_alive(), "it has ended")
    thread.poke()
    wait_for(lambda: len(runs) == 2, "it runs again")
    thread.close(10)
