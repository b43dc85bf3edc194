"""The loop's promise that nobody but its own thread touches the engine, at its edges."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from limiterd.core.errors import EnvironmentFault
from limiterd.daemon.loop import Loop
from tests.netns import wait_for


def asked(loop: Loop, answers: list[object]) -> threading.Thread:
    """A thread that asks the loop which thread it runs in."""

    def ask() -> None:
        try:
            answers.append(loop.call(threading.get_ident, 5))
        except EnvironmentFault as fault:
            answers.append(str(fault))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_question_before_the_loop_runs_waits_for_it() -> None:
    """A control client before the loop runs: its question waits and is served by the loop, not by the asking thread."""
    loop, answers = Loop(20_000_000, lambda: None), list[object]()
    thread = asked(loop, answers)
    wait_for(lambda: loop._calls, "the question waits")
    assert answers == []
    loop.call(lambda: loop._calls.append((loop.stop, Future())))  # the loop's own thread is served at once
    loop.run()
    thread.join()
    loop.close()
    assert answers == [threading.get_ident()]


def test_a_question_after_the_loop_has_ended_is_refused_at_once() -> None:
    """A control client while the daemon stops: refused at once; its own thread never touches the engine."""
    loop, answers = Loop(20_000_000, lambda: None), list[object]()
    loop.stop()
    loop.run()
    asked(loop, answers).join(2)
    assert answers == ["the daemon is stopping"]
    assert loop.call(threading.get_ident) == threading.get_ident()
    loop.close()


def test_a_question_that_has_begun_is_waited_for() -> None:
    """A reload that waits for the kernel longer than its time-out is done all the same: who asked hears that, not a failure."""
    loop, answers = Loop(20_000_000, lambda: None), list[object]()
    late = threading.Event()

    def slow() -> str:
        late.wait(10)
        return "done"

    def ask() -> None:
        answers.append(loop.call(slow, 0.05))
        loop.stop()

    thread = threading.Thread(target=ask)
    thread.start()
    threading.Timer(0.3, late.set).start()
    loop.run()
    thread.join()
    loop.close()
    assert answers == ["done"]


def test_a_defect_reaches_who_asked_and_ends_the_loop() -> None:
    """A question that hits a defect: the loop ends with it, and who asked is told at once."""
    loop, answers = Loop(20_000_000, lambda: None), list[object]()

    def defect() -> None:
        raise RuntimeError("planted")

    def ask() -> None:
        with pytest.raises(EnvironmentFault, match="stops on a defect") as caught:
            loop.call(defect, 5)
        answers.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(RuntimeError, match="planted"):
        loop.run()
    thread.join(2)
    loop.close()
    assert len(answers) == 1
