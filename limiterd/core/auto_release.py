"""When a limit ends by itself (release mode `auto`): after its hold, once demand has ended.

The hold is min_hold · multiplier^(strikes−1), capped at max_hold. Demand has ended after quiet_for of unbroken quiet
slices of one second: the shaped classes carried less than quiet_rate of the limit, dropped nothing, and their queues were
empty at the slice's end. The device counter alone cannot show demand behind a shaper, and the overlimits counter moves
for harmless traffic: neither is asked. A slice that nobody observed is not quiet, and no slice is so long that it averages
quiet with loud time: it ends with the reading that is nearest to its second, and one of more than LONGEST_SLICE_NS was not
observed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from limiterd.core.model import SECOND, ClassStats, Release, ReleaseReason
from limiterd.core.units import NS_PER_SECOND, PPM

SLICE_NS: Final = 1 * SECOND
LONGEST_SLICE_NS: Final = 1_500_000_000
"""A reading that comes later than this leaves unobserved time behind it, and breaks the quiet."""


def hold(release: Release, strikes: int) -> tuple[int, ReleaseReason]:
    """The shortest time that a limit stands, in ns, for its number of strikes (1 = the first), and how its end is called.

    That is `max_hold` where the cap had shortened the hold, `demand_ended` otherwise; in both, demand has ended.
    """
    hold_ns = release.min_hold_ns
    for _ in range(strikes - 1):
        hold_ns = hold_ns * release.multiplier_ppm // PPM
        if hold_ns > release.max_hold_ns:
            return release.max_hold_ns, ReleaseReason.MAX_HOLD
    return min(hold_ns, release.max_hold_ns), ReleaseReason.DEMAND_ENDED


@dataclass(slots=True)
class IdleSlices:
    """Follows the shaped classes' counters, one slice of about a second after the other."""

    stats: ClassStats | None = None
    t_ns: int = 0
    """Where the slice begins."""
    read_ns: int = 0
    since_ns: int | None = None

    def read(self, stats: ClassStats, t_ns: int, limit_bps: int, quiet_rate_ppm: int) -> None:
        """Take a reading. It ends the slice unless the next one, as far away as the last, will be nearer to a second."""
        if self.stats is None:
            self._begin(stats, t_ns)
            return
        elapsed_ns, apart_ns = t_ns - self.t_ns, t_ns - self.read_ns
        self.read_ns = t_ns
        if 2 * elapsed_ns + apart_ns < 2 * SLICE_NS:
            return
        sent_bytes = stats.sent_bytes - self.stats.sent_bytes
        quiet = (
            elapsed_ns <= LONGEST_SLICE_NS
            and sent_bytes >= 0
            and 8 * sent_bytes * NS_PER_SECOND * PPM < quiet_rate_ppm * limit_bps * elapsed_ns
            and stats.drops == self.stats.drops
            and stats.backlog_bytes == 0
        )
        start_ns = self.t_ns
        self._begin(stats, t_ns)
        if not quiet:
            self.since_ns = None
        elif self.since_ns is None:
            self.since_ns = start_ns

    def _begin(self, stats: ClassStats, t_ns: int) -> None:
        self.stats = stats
        self.t_ns = self.read_ns = t_ns

    def due_ns(self) -> int:
        """When the slice should end; 0 before the first one."""
        return 0 if self.stats is None else self.t_ns + SLICE_NS

    def lasted_ns(self) -> int:
        """How long it has been quiet without a break, up to the last reading."""
        return 0 if self.since_ns is None else self.t_ns - self.since_ns
