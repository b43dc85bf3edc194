"""The thread that serves and its workers: whose work comes first, what is not done any more, and what a defect costs."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.serve.io_thread import IoThread, Wanted
from limiterd.serve.job_queue import PAGES, JobQueue
from tests.netns import wait_for


@pytest.fixture
def thread() -> Iterator[IoThread]:
    """A thread that runs."""
    made = IoThread()
    made.start()
    yield made
    made.close(20)


async def outcome(thread: IoThread, work: Callable[[Wanted], object], who: object = 1, *, first: bool = False) -> object:
    """What comes of a piece of work."""
    return await thread.do(work, who, first=first)


@given(st.lists(st.tuples(st.sampled_from([PAGES, 1, 2, 3]), st.booleans())))
def test_nobody_stands_before_somebody_elses_next(jobs: list[tuple[object, bool]]) -> None:
    """Administrators' jobs come first and in order; of the others pages have every second turn, users one each in turn."""
    queue: JobQueue[tuple[object, int]] = JobQueue()
    for number, (who, first) in enumerate(jobs):
        queue.put((who, number), who, first=first)
    expected_first = [(who, number) for number, (who, first) in enumerate(jobs) if first]
    taken: list[tuple[object, int]] = []
    while (job := queue.pop(first_only=False)) is not None:
        taken.append(job)
    assert taken[: len(expected_first)] == expected_first
    rest = taken[len(expected_first) :]
    assert sorted(number for _, number in taken) == list(range(len(jobs)))
    for who in (PAGES, 1, 2, 3):
        theirs = [index for index, (asker, _) in enumerate(rest) if asker == who]
        assert [rest[index][1] for index in theirs] == sorted(rest[index][1] for index in theirs)
        for before, after in itertools.pairwise(theirs):
            between = [asker for asker, _ in rest[before + 1 : after]]
            others = [asker for asker in between if asker != PAGES] if who != PAGES else between
            assert len(others) == len(set(others)), "somebody had two turns between two of another"


def test_an_administrator_does_not_wait_for_others(thread: IoThread) -> None:
    """While the worker for everybody is held up, administrators' work is done; theirs held up too, the other one helps."""
    gate = threading.Event()
    held = [thread.run(outcome(thread, lambda _: gate.wait(20), n)) for n in range(5)]
    assert thread.run(outcome(thread, lambda _: "done", 0, first=True)).result(20) == "done"
    gate.set()
    assert all(one.result(20) for one in held)
    gate.clear()
    slow = thread.run(outcome(thread, lambda _: gate.wait(20), 0, first=True))
    assert thread.run(outcome(thread, lambda _: "done", 0, first=True)).result(20) == "done"
    gate.set()
    assert slow.result(20)


def test_what_nobody_waits_for_is_not_begun(thread: IoThread) -> None:
    """Cancelled in the queue it never runs; cancelled at work it is told, and its result is thrown away in order."""
    gate, begun, told = threading.Event(), threading.Event(), threading.Event()
    ran: list[str] = []
    discarded: list[object] = []

    def work(wanted: Wanted) -> str:
        begun.set()
        gate.wait(20)
        if not wanted:
            told.set()
        return "late"

    async def leave() -> None:
        first = thread.do(work, 1, discard=discarded.append)
        second = thread.do(lambda _: ran.append("second"), 1)
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, 20)
        first.cancel()
        second.cancel()

    thread.run(leave()).result(20)
    gate.set()
    assert thread.run(outcome(thread, lambda _: "next")).result(20) == "next"
    assert told.is_set()
    assert (ran, discarded) == ([], ["late"])


def test_a_defect_is_raised_where_it_is_waited_for(thread: IoThread) -> None:
    """The worker goes on with the next piece."""
    with pytest.raises(ZeroDivisionError):
        thread.run(outcome(thread, lambda _: 1 // 0)).result(20)
    assert thread.run(outcome(thread, lambda _: "next")).result(20) == "next"


def test_a_defect_in_the_loop_is_told(thread: IoThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in a call of the loop reaches threading.excepthook; the loop goes on."""
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type.__name__))
    thread.call(lambda: 1 // 0)
    wait_for(lambda: told == ["ZeroDivisionError"], "it is told")
    assert thread.run(outcome(thread, lambda _: "next")).result(20) == "next"


def test_the_end_waits_no_longer_than_it_may(thread: IoThread) -> None:
    """Work that does not end holds up the end for the given time only; a second end is harmless."""
    gate, begun = threading.Event(), threading.Event()

    def work(_: Wanted) -> None:
        begun.set()
        gate.wait(20)

    thread.run(outcome(thread, work))
    assert begun.wait(20)
    thread.close(0.05)
    thread.close()
    gate.set()
