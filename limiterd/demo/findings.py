"""What the demo measured, and its verdict: every promise kept, one broken, or nothing proven because the traffic paused."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from limiterd.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_INCONCLUSIVE
from limiterd.core.units import format_rate
from limiterd.demo.demand import Pause, Who
from limiterd.demo.scale import LATE_S, RATE_TOLERANCE, RELEASE_S, ROOT_BACK_S, Act, Scale


class Verdict(Enum):
    """The value is the exit code."""

    KEPT = EXIT_DONE
    BROKEN = EXIT_FAILED
    INCONCLUSIVE = EXIT_INCONCLUSIVE


class Check(NamedTuple):
    """One promise. excuse: the pause for which it could not be judged; never there where it was kept."""

    kept: bool
    text: str
    excuse: Pause | None = None


@dataclass(slots=True)
class Findings:
    """What was measured, None until it was. Seconds from the onset of the traffic, or from the reload.

    held_up_s: how much later than without pauses the firing may come. starved: the traffic never held long enough for one.
    """

    fired_s: float | None = None
    limited_s: float | None = None
    before_bps: float | None = None
    shaped_bps: float | None = None
    lifted_s: float | None = None
    rate_back_s: float | None = None
    after_bps: float | None = None
    root_back_s: float | None = None
    reason: str = ""
    held_up_s: float = 0.0
    starved: bool = False
    pauses: list[Pause] = field(default_factory=list)

    def checks(self, scale: Scale) -> list[Check]:
        """Each promise, whether it was kept, and where not, what excuses it."""
        first, last = scale.window_s, scale.window_s + LATE_S + self.held_up_s
        low, high = (scale.limit_bps * (1 + sign * RATE_TOLERANCE) for sign in (-1, 1))
        held = f": the traffic held from {self.held_up_s:.1f} s on" if self.held_up_s else ""
        missed_s = RELEASE_S + ROOT_BACK_S
        lost_s = 2 * scale.measure_s if self.shaped_bps is None else float("inf")
        return [
            self._check(
                _within(self.fired_s, first, last),
                f"fired {_seconds(self.fired_s)} after the traffic began (between {first:.1f} and {last:.1f} s{held})",
                Act.EXCESS,
                float("inf"),
            ),
            self._check(
                _within(self.limited_s, first, last),
                f"limit read back from the kernel after {_seconds(self.limited_s)} (by {last:.1f} s)",
                Act.EXCESS,
                float("inf") if self.limited_s is None else self.limited_s - last,
                Who.DEMO,
            ),
            self._check(
                _within(self.shaped_bps, low, high),
                f"class counters at {_rate(self.shaped_bps)} ({format_rate(scale.limit_bps)} ± {RATE_TOLERANCE:.0%})",
                Act.LIMITED,
                lost_s,
            ),
            self._check(
                _within(self.rate_back_s, 0, RELEASE_S),
                f"rate over the threshold again {_seconds(self.rate_back_s)} after the reload (within {RELEASE_S:.0f} s)",
                Act.GRANTED,
                (self.rate_back_s or missed_s) - RELEASE_S,
            ),
            self._check(
                _within(self.root_back_s, 0, ROOT_BACK_S),
                f"the link's own root qdisc back after {_seconds(self.root_back_s)} (within {ROOT_BACK_S:.0f} s)",
                Act.GRANTED,
                (self.root_back_s or missed_s) - ROOT_BACK_S,
                Who.DEMO,
            ),
        ]

    def _check(self, kept: bool, text: str, act: Act, late_s: float, who: Who | None = None) -> Check:  # noqa: FBT001 - a verdict
        """A miss by late_s is excused by pauses (of who; None: anybody's) of at least that long in the act that measured it."""
        if kept:
            return Check(kept, text)
        if self.starved:
            return Check(kept, text, self._longest(Act.EXCESS, None))
        paused_s = sum(pause.seconds for pause in self._pauses(act, who))
        return Check(kept, text, self._longest(act, who) if paused_s >= late_s else None)

    def _pauses(self, act: Act, who: Who | None) -> list[Pause]:
        return [pause for pause in self.pauses if pause.act is act and who in (None, pause.who)]

    def _longest(self, act: Act, who: Who | None) -> Pause | None:
        return max(self._pauses(act, who), key=lambda pause: pause.seconds, default=None)

    def verdict(self, scale: Scale) -> Verdict:
        """Broken where a promise was missed and no pause excuses it."""
        missed = [check for check in self.checks(scale) if not check.kept]
        if not missed:
            return Verdict.KEPT
        return Verdict.INCONCLUSIVE if all(check.excuse for check in missed) else Verdict.BROKEN

    def sentence(self, scale: Scale) -> str:
        """The verdict in words."""
        checks, verdict = self.checks(scale), self.verdict(scale)
        if verdict is Verdict.INCONCLUSIVE:
            excuse = next(check.excuse for check in checks if check.excuse)
            return f"inconclusive: {excuse}; run it again"
        kept = f"({sum(check.kept for check in checks)} of {len(checks)})"
        return f"PASS {kept}" if verdict is Verdict.KEPT else f"FAIL {kept}: a promise was not kept"


def _within(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _rate(value: float | None) -> str:
    return "nothing" if value is None else format_rate(round(value / 1e5) * 10**5)
