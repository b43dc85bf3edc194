"""Counters that a driver refreshes seldom: how often one moves under load, and what to say of it.

Rule. A move is an interval at the threshold or above. From eight moves on, over eight seconds at least, that each took one
interval, with the counter standing still in between, at equal distances (to one interval) and with a mean not below the
floor, the counter is refreshed at that distance. Moves in one interval after the other, closer than half of that, end it.

Theory of operation. The detector shows hot intervals only. That is enough: whether the counter stood still since the last
move is seen by its value, and a pause of the traffic itself is no part of a regular beat, nor is a burst of some intervals.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from limiterd.core.model import MS, SECOND
from limiterd.core.units import NS_PER_SECOND, format_duration

MOVES: Final = 9
"""Eight distances."""
SPAN_NS: Final = 8 * SECOND
_KEPT: Final = 64
_STEP_NS: Final = 100 * MS


class LazyCounter:
    """One link's moves. refresh_ns is the distance between them, once it is known to be regular."""

    __slots__ = ("_at_bytes", "_close", "_moves_ns", "refresh_ns")

    def __init__(self) -> None:
        self.refresh_ns: int | None = None
        self._moves_ns: deque[int] = deque(maxlen=_KEPT)
        self._at_bytes = 0
        self._close = 0

    def rest(self) -> None:
        """The link is not judged for a while: what comes next follows nothing."""
        self._moves_ns.clear()

    def hot(self, t_ns: int, tx_bytes: int, delta_ns: int, delta_bytes: int, floor_bps: int) -> bool:
        """Take in an interval that runs at the threshold or above; whether refresh_ns has changed.

        floor_bps is the least mean of a move over its whole distance.
        """
        moves, before = self._moves_ns, self.refresh_ns
        if moves and (tx_bytes - delta_bytes != self._at_bytes or t_ns - delta_ns <= moves[-1]):
            self._close = self._close + 1 if before is not None and 2 * delta_ns < before else 0
            moves.clear()
            if self._close >= MOVES:
                self.refresh_ns, self._close = None, 0
        elif moves and 8 * NS_PER_SECOND * delta_bytes < floor_bps * (t_ns - moves[-1]):
            moves.clear()
        moves.append(t_ns)
        self._at_bytes = tx_bytes
        distance_ns = _beat(moves, delta_ns)
        if distance_ns is not None:
            self.refresh_ns, self._close = distance_ns, 0
        return _differ(before, self.refresh_ns)


def _beat(moves_ns: deque[int], interval_ns: int) -> int | None:
    """The distance of moves that are regular, to the interval in which each is seen."""
    count = len(moves_ns) - 1
    if count + 1 < MOVES or moves_ns[-1] - moves_ns[0] < SPAN_NS:
        return None
    span_ns = moves_ns[-1] - moves_ns[0]
    first_ns = moves_ns[0]
    regular = all(abs(count * (t_ns - first_ns) - i * span_ns) <= count * interval_ns for i, t_ns in enumerate(moves_ns))
    return span_ns // count if regular else None


def _differ(one: int | None, other: int | None) -> bool:
    """Whether two distances are told apart: in steps of a tenth."""
    if one is None or other is None:
        return one is not other
    return 10 * abs(one - other) > one


def suggested_ns(refresh_ns: int) -> int:
    """The counter_refresh for a counter that moves so often: a quarter more, in whole steps."""
    return -(-refresh_ns * 5 // 4 // _STEP_NS) * _STEP_NS


def advice(refresh_ns: int, max_gap_ns: int) -> str:
    """What to say of it, and the setting that helps."""
    suggested = suggested_ns(refresh_ns)
    shown = format_duration((refresh_ns + 50 * MS) // _STEP_NS * _STEP_NS)
    gap = f", and sampling.max_gap: {format_duration(2 * suggested)}" if suggested >= max_gap_ns else ""
    return (
        f"its counter moves only every {shown}, so steady traffic looks interrupted and fires late or never; "
        f"set counter_refresh: {suggested // MS}ms{gap}"
    )
