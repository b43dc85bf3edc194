"""What is degraded in the daemon itself: one sentence a topic, with its beginning, told once when it begins and ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from limiterd.core.model import Fault, FaultReason


class Health:
    """The open problems by topic; any thread may note one."""

    def __init__(self, wall_ns: Callable[[], int], tell: Callable[[str, str | None], None]) -> None:
        self._wall_ns = wall_ns
        self._tell = tell
        self._lock = threading.Lock()
        self._open: dict[str, Fault] = {}

    def note(self, topic: str, text: str | None, reason: FaultReason = FaultReason.OTHER, *, warning: bool = False) -> None:
        """The topic is degraded as the text says; None: it is well again. warning: something was lost, and all goes on."""
        with self._lock:
            known = self._open.get(topic)
            if text is None and known is None:
                return
            if known is not None and (known.message, known.reason) == (text, reason):
                return
            if text is None:
                del self._open[topic]
            else:
                since_ns = known.since_wall_ns if known is not None else self._wall_ns()
                self._open[topic] = Fault("", reason, text, since_ns, warning)
        self._tell(topic, text)

    def all(self) -> tuple[Fault, ...]:
        """Every open problem, oldest topic first."""
        with self._lock:
            return tuple(self._open.values())
