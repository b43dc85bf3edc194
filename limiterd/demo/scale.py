"""What the demo plays: the policy's figures at full scale, and the same story in small."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from limiterd.core.model import Detect, Limit, Policy
from limiterd.core.units import NS_PER_SECOND, format_duration, format_rate

LINK: Final = "eth0"
STEP_S: Final = 0.1
"""From one reading of the counters to the next: the daemon's sampling interval."""
LATE_S: Final = 0.6
RATE_TOLERANCE: Final = 0.05
RELEASE_S: Final = 1.0
"""How long after its cause a release may take effect, and the rate be back over the threshold."""
ROOT_BACK_S: Final = 2.0
IDLE_S: Final = 1.5
EXEMPT_S: Final = 3.0
SETTLE_S: Final = 0.3


class Act(StrEnum):
    """The acts with their titles."""

    IDLE = "1  an idle link"
    EXCESS = "2  sustained excess"
    LIMITED = "3  limited"
    GRANTED = "4  an increase request is approved"
    FREE = "5  free again"


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of the story. policy_yaml is what is written over the defaults (nothing at full scale)."""

    threshold_bps: int
    window_ns: int
    limit_bps: int
    traffic_bps: int
    measure_s: float
    policy_yaml: str = ""
    slice_ns: int = Detect().slice_ns
    floor_ppm: int = Detect().floor_ppm

    @property
    def floor_bps(self) -> int:
        """What no slice of sustained excess may fall below."""
        return self.threshold_bps * self.floor_ppm // 1_000_000

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
