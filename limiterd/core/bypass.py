"""Does the traffic go through the limit? The device's counter beside those of the limit's classes.

Rule. Excess is what the device counts beyond what the classes passed (the exempt class too), from one reading to the next.
For three seconds in a row more than 20 % of the limit is a bypass; it is over when ten seconds have passed without.
Two slacks keep honest traffic out: a device may count each packet up to 4.3 % larger (most count GSO packets that much
smaller), and what the classes passed that the device has not counted yet is its queue: up to one second at the limit may
come later.

Theory of operation. The two counters are read one after the other, so rates are compared, each over its own time. A device
that stands still while the classes move has a counter that is seldom refreshed, or a queue: such a reading is left out, for
three seconds at most. A counter that went backwards is a new one (a device made anew, a tree rebuilt), and only a beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from limiterd.core.model import MS, SECOND, TcActual
from limiterd.core.units import NS_PER_SECOND, PPM

LASTS_NS: Final = 3 * SECOND - 100 * MS
"""Three seconds, less what readings jitter."""
CALM_NS: Final = 10 * SECOND
SHARE_PPM: Final = 200_000
"""Of the limit."""
LARGER_PPM: Final = 43_000
"""How much larger than the classes a device may count: 66 bytes of headers in 1 514."""
SMALLER_PPM: Final = 150_000
"""How much smaller, before it is a queue: GSO packets of small segments."""
SHORTEST_NS: Final = SECOND // 2
LONGEST_STILL_NS: Final = 3 * SECOND
QUEUE_NS: Final = SECOND
"""How much of the classes' traffic, at the limit's rate, may be counted late."""


@dataclass(frozen=True, slots=True)
class _Reading:
    device: tuple[int, int]
    classes: tuple[int, int]
    exempt_bytes: int
    direct_packets: int


@dataclass(slots=True)
class BypassMeter:
    """Follows one standing limit. beside_bps and exempt_bps are of the last interval that was judged.

    excess: it had excess; active: that has lasted for long enough, and no calm since; direct: packets went to HTB's direct
    queue, which is no class. began says whether there was a reading since the limit came to stand.
    """

    began: bool = False
    excess: bool = False
    active: bool = False
    direct: bool = False
    beside_bps: int = 0
    exempt_bps: int = 0
    _last: _Reading | None = None
    _since_ns: int | None = None
    _excess_ns: int = 0
    _queue_bytes: int = 0

    def restart(self) -> None:
        """The limit came to stand anew: begin with the next reading. A bypass that was seen is over after its calm only."""
        self.began = self.excess = False
        self._last = self._since_ns = None
        self._queue_bytes = 0

    def read(self, device: tuple[int, int] | None, actual: TcActual, limit_bps: int) -> None:
        """Take the device's (t_ns, bytes), None where it is not known, and what the kernel shows of the limit."""
        self.began = True
        if device is None:
            return
        stats = actual.stats
        passed_bytes = stats.sent_bytes + stats.exempt_bytes
        now = _Reading(device, (actual.read_t_ns, passed_bytes), stats.exempt_bytes, actual.direct_packets)
        last = self._last
        if last is None or _is_new(last, now):
            self._last, self._since_ns, self.excess = now, None, False
            self._calm(device[0])
            return
        elapsed_ns, classes_ns = device[0] - last.device[0], now.classes[0] - last.classes[0]
        if elapsed_ns < SHORTEST_NS or classes_ns < SHORTEST_NS:
            return
        counted_bytes = device[1] - last.device[1]
        passed_bytes = (passed_bytes - last.classes[1]) * elapsed_ns // classes_ns
        if counted_bytes == 0 and passed_bytes > 0 and elapsed_ns < LONGEST_STILL_NS:
            return
        self._judge(last.device[0], elapsed_ns, counted_bytes, passed_bytes, limit_bps)
        self.exempt_bps = _bps(now.exempt_bytes - last.exempt_bytes, classes_ns)
        self.direct = now.direct_packets > last.direct_packets
        self._last = now

    def _judge(self, since_ns: int, elapsed_ns: int, counted_bytes: int, passed_bytes: int, limit_bps: int) -> None:
        """One interval: which part of what the device counted came neither through the classes nor out of its queue."""
        now_ns = since_ns + elapsed_ns
        beside_bytes = counted_bytes - passed_bytes - self._queue_bytes
        most_bytes = limit_bps * QUEUE_NS // (8 * NS_PER_SECOND)
        queued_bytes = self._queue_bytes + passed_bytes * (PPM - SMALLER_PPM) // PPM - counted_bytes
        self._queue_bytes = min(max(0, queued_bytes), most_bytes)
        allowed_bytes = limit_bps * elapsed_ns * SHARE_PPM // (8 * NS_PER_SECOND * PPM) + passed_bytes * LARGER_PPM // PPM
        self.beside_bps = _bps(max(0, beside_bytes), elapsed_ns)
        self.excess = beside_bytes > allowed_bytes
        if not self.excess:
            self._since_ns = None
            self._calm(now_ns)
            return
        if self._since_ns is None:
            self._since_ns = since_ns
        if self.active or now_ns - self._since_ns >= LASTS_NS:
            self.active, self._excess_ns = True, now_ns

    def _calm(self, now_ns: int) -> None:
        self.active = self.active and now_ns - self._excess_ns < CALM_NS


def _is_new(last: _Reading, now: _Reading) -> bool:
    return (
        now.device[0] < last.device[0]
        or now.device[1] < last.device[1]
        or now.classes[1] < last.classes[1]
        or now.exempt_bytes < last.exempt_bytes
    )


def _bps(count_bytes: int, elapsed_ns: int) -> int:
    return 8 * NS_PER_SECOND * count_bytes // elapsed_ns


def likely_cause(actual: TcActual, *, direct: bool) -> str:
    """What lets traffic pass by: what can be seen of it, else what it may be."""
    if actual.foreign:
        return f"not limiterd's, and inside its tree: {', '.join(actual.foreign)}"
    if direct:
        return "packets with a priority of 0x1d1d0000 go to no class: look for sockets that set SO_PRIORITY"
    return "it may be packet sockets that bypass qdiscs, XDP, or flows offloaded to hardware"
