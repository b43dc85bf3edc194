"""Steps of the wall clock: nothing of the detection hangs on it, but overrides, holds and the trail's times do."""

from __future__ import annotations

from typing import Final

from limiterd.core.model import SECOND, Now
from limiterd.core.units import format_duration, format_wall

_STEP_NS: Final = 1 * SECOND
"""Less is a correction: NTP slews by at most 0.5 ms in a second."""


class ClockSteps:
    """Compares the wall clock with the one that never steps, look by look."""

    def __init__(self, now: Now) -> None:
        self._offset_ns = now.wall_ns - now.boot_ns

    def look(self, now: Now) -> str | None:
        """Say that the wall clock was set since the last look, and by how much; None where it was not."""
        before_ns, self._offset_ns = self._offset_ns, now.wall_ns - now.boot_ns
        step_ns = self._offset_ns - before_ns
        if abs(step_ns) < _STEP_NS:
            return None
        way = "forward" if step_ns > 0 else "back"
        by, to = format_duration(abs(step_ns)), format_wall(now.wall_ns)
        return f"the wall clock was set {way} by {by}, to {to}; overrides now begin and end by it, detection does not use it"
