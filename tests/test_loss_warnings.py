"""What is lost in bursts."""

from __future__ import annotations

import pytest

from limiterd.daemon.health import Health
from limiterd.daemon.loss_warnings import LossWarnings


def test_a_loss_is_a_warning_for_a_minute_and_told_twice() -> None:
    """A counter that grows is one warning with one text, over a minute after its last growth, with the sum in the log."""
    told: list[tuple[str, str | None]] = []
    reported: list[str] = []
    problems = Health(lambda: 0, lambda topic, text: told.append((topic, text)))
    losses = LossWarnings(problems, reported.append)

    def follow(second: int, count: int) -> None:
        losses.follow(second * 10**9, [("log", count, 1, "lines are lost")])

    for second, count in ((0, 0), (1, 5), (2, 9), (40, 9), (50, 10), (109, 10)):
        follow(second, count)
    assert [(fault.message, fault.warning) for fault in problems.all()] == [("lines are lost", True)]
    assert (told, reported) == ([("log", "lines are lost")], [])
    follow(110, 10)
    assert not problems.all()
    assert (told[1:], reported) == ([("log", None)], ["lines are lost (10 in all)"])
    follow(111, 12)
    follow(171, 12)
    assert reported[1:] == ["lines are lost (2 in all)"]


def test_a_few_losses_are_no_burst() -> None:
    """Where so many make a burst, fewer within a minute say nothing, and a counter that begins again is none."""
    problems = Health(lambda: 0, lambda *_: None)
    losses = LossWarnings(problems, pytest.fail)
    for second, count in ((0, 3), (30, 9), (100, 12), (101, 1), (170, 9), (240, 9)):
        losses.follow(second * 10**9, [("samples", count, 10, "samples are dropped")])
        assert not problems.all()
    losses.follow(310 * 10**9, [("samples", 19, 10, "samples are dropped")])
    assert problems.all()
