"""The service manager's notification protocol, sd_notify(3), without a dependency: one datagram a message.

Without NOTIFY_SOCKET every call does nothing. Sending never blocks: what must not be missed (READY, RELOADING, STOPPING) waits
for the next message, or the next tick, when the manager's queue is full.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from limiterd.core.units import NS_PER_SECOND

_MAX_STATUS: Final = 400
_MAX_UNSENT: Final = 8


def _address(path: str) -> str | None:
    """The socket's address as Python takes it; None where it is no unix socket."""
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else None


class Notifier:
    """The service manager, if one listens. One thread at a time."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = _address(path)
        self._problem = None if self._address or not path else f"NOTIFY_SOCKET {path!r} is no unix socket: systemd is not told"
        self._watchdog_ns = _watchdog_ns(environ)
        self._ping_due_ns = 0
        self._unsent: list[str] = []
        self._socket: socket.socket | None = None

    @property
    def problem(self) -> str | None:
        """Why the last message could not be sent; None when it was, or when nobody listens."""
        return self._problem

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is complete."""
        self._must("READY=1" + (f"\nSTATUS={_one_line(status)}" if status else ""))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._must(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """The daemon is shutting down."""
        self._must("STOPPING=1" + (f"\nSTATUS={_one_line(status)}" if status else ""))

    def status(self, text: str) -> None:
        """One line for systemctl status; may get lost."""
        self._send(f"STATUS={_one_line(text)}")

    def tick(self, now_ns: int) -> None:
        """The loop is alive: pings the watchdog twice in each of its periods, and sends what it could not send before."""
        if self._unsent:
            self._flush()
        if self._watchdog_ns and now_ns >= self._ping_due_ns and self._send("WATCHDOG=1"):
            self._ping_due_ns = now_ns + self._watchdog_ns // 2

    def close(self) -> None:
        """Release the descriptor."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _must(self, message: str) -> None:
        if self._address is not None:
            self._unsent = [*self._unsent, message][-_MAX_UNSENT:]
            self._flush()

    def _send(self, message: str) -> bool:
        return self._address is not None and self._flush() and self._datagram(message)

    def _flush(self) -> bool:
        while self._unsent:
            if not self._datagram(self._unsent[0]):
                return False
            del self._unsent[0]
        return True

    def _datagram(self, message: str) -> bool:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            self._socket.sendto(message.encode(errors="backslashreplace"), self._address or "")
        except OSError as error:
            self._problem = f"systemd cannot be told: {error.strerror or error}"
            return False
        self._problem = None
        return True


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_STATUS]


def _watchdog_ns(environ: Mapping[str, str]) -> int:
    """The watchdog's period; 0 where it does not watch this process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    ours = not pid or pid == str(os.getpid())
    period_ns = int(usec) * (NS_PER_SECOND // 10**6) if usec.isascii() and usec.isdecimal() and len(usec) < 20 else 0
    return period_ns if ours else 0
