"""What is lost in bursts: a warning while it goes on and a minute longer, and one line of the log when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from limiterd.daemon.health import Health

LASTS_NS: Final = 60_000_000_000


@dataclass(slots=True)
class _Burst:
    """The count before a topic's burst, the last one seen, until when the burst goes on, and whether it shows."""

    before: int = 0
    seen: int = 0
    until_ns: int = 0
    shows: bool = False


class LossWarnings:
    """Follows counters of losses; the warning's text stays the same while they grow, so that it is told once."""

    def __init__(self, problems: Health, report: Callable[[str], None]) -> None:
        self._problems = problems
        self._report = report
        self._bursts: dict[str, _Burst] = {}

    def follow(self, now_ns: int, counts: Iterable[tuple[str, int, int, str]]) -> None:
        """Look at each (topic, count so far, how many make a burst, what is lost and why); call it every second or so."""
        for topic, count, least, text in counts:
            burst = self._bursts.setdefault(topic, _Burst())
            if now_ns >= burst.until_ns:
                if burst.shows:
                    self._report(f"{text} ({burst.seen - burst.before} in all)")
                burst.before = min(burst.seen, count)
            if count > burst.seen:
                burst.until_ns = now_ns + LASTS_NS
            burst.seen = count
            burst.shows = now_ns < burst.until_ns and count - burst.before >= least
            self._problems.note(topic, text if burst.shows else None, warning=True)
