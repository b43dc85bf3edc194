"""What is lost in bursts: a warning while it goes on and a minute longer, and one line of the log when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from limiterd.daemon.problems import Problems

LASTS_NS: Final = 60_000_000_000


@dataclass(slots=True)
class _Burst:
    """Until when a topic's loss shows (0: there is none), the count when it began, and the last one seen."""

    until_ns: int = 0
    before: int = 0
    seen: int = 0


class Losses:
    """Follows counters of losses; the warning's text stays the same while they grow, so that it is told once."""

    def __init__(self, problems: Problems, report: Callable[[str], None]) -> None:
        self._problems = problems
        self._report = report
        self._bursts: dict[str, _Burst] = {}

    def follow(self, now_ns: int, counts: Iterable[tuple[str, int, str]]) -> None:
        """Look at (topic, count so far, what is lost and why) of each; call it every second or so."""
        for topic, count, text in counts:
            burst = self._bursts.setdefault(topic, _Burst())
            if count > burst.seen:
                burst.before = burst.before if burst.until_ns else burst.seen
                burst.until_ns = now_ns + LASTS_NS
            burst.seen = count
            if burst.until_ns and now_ns >= burst.until_ns:
                burst.until_ns = 0
                self._report(f"{text} ({count - burst.before} in all)")
            self._problems.note(topic, text if burst.until_ns else None, warning=True)
