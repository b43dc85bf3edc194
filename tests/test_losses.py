"""What is lost in bursts."""

from __future__ import annotations

from limiterd.daemon.losses import Losses
from limiterd.daemon.problems import Problems


def test_a_loss_is_a_warning_for_a_minute_and_told_twice() -> None:
    """A counter that grows is one warning with one text, over a minute after its last growth, with the sum in the log."""
    told: list[tuple[str, str | None]] = []
    reported: list[str] = []
    problems = Problems(lambda: 0, lambda topic, text: told.append((topic, text)))
    losses = Losses(problems, reported.append)
    for second, count in ((0, 0), (1, 5), (2, 9), (40, 9), (50, 10), (109, 10)):
        losses.follow(second * 10**9, [("log", count, "lines are lost")])
    assert [(fault.message, fault.warning) for fault in problems.all()] == [("lines are lost", True)]
    assert (told, reported) == ([("log", "lines are lost")], [])
    losses.follow(110 * 10**9, [("log", 10, "lines are lost")])
    assert not problems.all()
    assert (told[1:], reported) == ([("log", None)], ["lines are lost (10 in all)"])
    losses.follow(111 * 10**9, [("log", 12, "lines are lost")])
    losses.follow(171 * 10**9, [("log", 12, "lines are lost")])
    assert reported[1:] == ["lines are lost (2 in all)"]
