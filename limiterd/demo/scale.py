"""What the demo plays and how it judges it: the policy's figures at full scale, and the same story in small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from limiterd.core.model import Detect, Limit, Policy
from limiterd.core.units import NS_PER_SECOND, format_duration, format_rate

LINK: Final = "eth0"
LATE_S: Final = 0.6
RATE_TOLERANCE: Final = 0.05
RELEASE_S: Final = 1.0
"""How long after its cause a release may take effect, and the rate be back over the threshold."""
ROOT_BACK_S: Final = 2.0
IDLE_S: Final = 1.5
EXEMPT_S: Final = 3.0
SETTLE_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of the story. policy_yaml is what is written over the defaults (nothing at full scale)."""

    threshold_bps: int
    window_ns: int
    limit_bps: int
    traffic_bps: int
    measure_s: float
    policy_yaml: str = ""

    @property
    def window_s(self) -> float:
        """The window in seconds."""
        return self.window_ns / NS_PER_SECOND

    @property
    def planned_s(self) -> float:
        """About how long the story lasts from the first picture to the last."""
        return IDLE_S + self.window_s + LATE_S + self.measure_s + EXEMPT_S + 1.5

    def policy_text(self) -> str:
        """The policy in one line."""
        return (
            f"{format_rate(self.threshold_bps)} or more for more than {format_duration(self.window_ns)} "
            f"is limited to {format_rate(self.limit_bps)}"
        )


_DETECT: Final = Detect()
FULL: Final = Scale(
    threshold_bps=_DETECT.threshold_bps,
    window_ns=_DETECT.window_ns,
    limit_bps=Limit().rate_bps,
    traffic_bps=3 * _DETECT.threshold_bps // 2,
    measure_s=5.0,
)
FAST: Final = Scale(
    threshold_bps=100 * 10**6,
    window_ns=2 * NS_PER_SECOND,
    limit_bps=20 * 10**6,
    traffic_bps=150 * 10**6,
    measure_s=3.0,
    policy_yaml="    detect: {threshold: 100mbit, window: 2s}\n    limit: {rate: 20mbit}\n",
)


def config_text(scale: Scale, directory: str) -> str:
    """The daemon's configuration: the default policy on the demo's link, everything else inside directory."""
    return (
        f"policies:\n  - name: {Policy().name}\n    interfaces: [{LINK}]\n{scale.policy_yaml}"
        f"overrides: {{directory: {directory}/overrides.d}}\n"
        f'metrics: {{listen: "127.0.0.1:9817"}}\n'
        f"control: {{socket: {directory}/control.sock}}\n"
        f"state: {{directory: {directory}/state}}\n"
    )


def override_text(expires: str) -> str:
    """The override that the demo grants, as an operator would write it."""
    return (
        "overrides:\n"
        "  - id: REQ-1234\n"
        f"    interfaces: [{LINK}]\n"
        "    action: exempt\n"
        f"    expires: {expires}\n"
        "    approved_by: ops@example.net\n"
        "    reason: nightly backup window\n"
    )


@dataclass(slots=True)
class Findings:
    """What was measured, None until it was. Seconds from the onset of the traffic, or from the reload."""

    fired_s: float | None = None
    limited_s: float | None = None
    before_bps: float | None = None
    shaped_bps: float | None = None
    lifted_s: float | None = None
    rate_back_s: float | None = None
    after_bps: float | None = None
    root_back_s: float | None = None
    reason: str = ""

    def checks(self, scale: Scale) -> list[tuple[bool, str]]:
        """Each promise with whether it was kept."""
        first, last = scale.window_s, scale.window_s + LATE_S
        low, high = (scale.limit_bps * (1 + sign * RATE_TOLERANCE) for sign in (-1, 1))
        return [
            (
                _within(self.fired_s, first, last),
                f"fired {_seconds(self.fired_s)} after the traffic began (between {first:.1f} and {last:.1f} s)",
            ),
            (
                _within(self.limited_s, first, last),
                f"limit read back from the kernel after {_seconds(self.limited_s)} (by {last:.1f} s)",
            ),
            (
                _within(self.shaped_bps, low, high),
                f"class counters at {_rate(self.shaped_bps)} ({format_rate(scale.limit_bps)} ± {RATE_TOLERANCE:.0%})",
            ),
            (
                _within(self.rate_back_s, 0, RELEASE_S),
                f"rate over the threshold again {_seconds(self.rate_back_s)} after the reload (within {RELEASE_S:.0f} s)",
            ),
            (
                _within(self.root_back_s, 0, ROOT_BACK_S),
                f"the link's own root qdisc back after {_seconds(self.root_back_s)} (within {ROOT_BACK_S:.0f} s)",
            ),
        ]

    def good(self, scale: Scale) -> bool:
        """Whether every promise was kept."""
        return all(kept for kept, _ in self.checks(scale))


def _within(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _rate(value: float | None) -> str:
    return "nothing" if value is None else format_rate(round(value / 1e5) * 10**5)
