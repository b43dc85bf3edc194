"""The words for time: durations in ns, and the two clocks of one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from limiterd.core.units import NS_PER_SECOND

MS: Final = 1_000_000
SECOND: Final = NS_PER_SECOND
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Now:
    """The two clocks of one moment: boot_ns never steps and counts suspend, wall_ns is the calendar (Unix epoch)."""

    boot_ns: int
    wall_ns: int
