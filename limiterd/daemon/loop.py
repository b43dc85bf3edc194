"""The loop: one thread, one selector, paced ticks on CLOCK_BOOTTIME.

A tick is due every interval; one that comes late is taken late, and those that were missed altogether are counted and not
made up for (the counters keep the bytes). Between ticks the loop serves descriptors (netlink events, signals) and calls
from other threads, which hand in a function and wait for its result: nobody else ever touches the engine's state.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Final, TypeVar

from limiterd.core.errors import EnvironmentFault, LimiterdError
from limiterd.core.histogram import Buckets
from limiterd.core.model import Now
from limiterd.kernel.netlink import boottime_ns

T = TypeVar("T")

_CALLS_PER_WAKE: Final = 8
"""Calls served before the loop looks at the clock again: a crowd of clients never holds up a tick."""
_BEGUN_S: Final = 60.0
"""How long a call that is at work is waited for beyond its time-out."""


def clocks() -> Now:
    """Both clocks, now."""
    return Now(boottime_ns(), time.time_ns())


@dataclass(slots=True)
class Pace:
    """When the next tick is due, and how well the last ones were kept."""

    interval_ns: int
    due_ns: int
    missed: int = 0
    lateness: Buckets = field(default_factory=Buckets)
    last_ns: int = 0
    late_ns: int = 0

    def arrive(self, now_ns: int) -> None:
        """A tick begins now: note its lateness and set the next one on the same grid."""
        self.late_ns = max(0, now_ns - self.due_ns)
        self.lateness.observe(self.late_ns / 1e9)
        skipped = self.late_ns // self.interval_ns
        self.missed += skipped
        self.due_ns += (skipped + 1) * self.interval_ns
        self.last_ns = now_ns

    def change(self, interval_ns: int, now_ns: int) -> None:
        """Tick at another interval from now on."""
        self.interval_ns = interval_ns
        self.due_ns = now_ns + interval_ns


class Loop:
    """Runs until stop() is called from a handler."""

    def __init__(self, interval_ns: int, tick: Callable[[], None]) -> None:
        self.pace = Pace(interval_ns, boottime_ns())
        self._tick = tick
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._calls: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.watch(self._wake_read.fileno(), self._on_wake)
        self._signals: dict[int, Callable[[], object]] = {}
        self._stopping = False
        self._thread = threading.get_ident()
        self._over = False

    # ---- set-up ----

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call handler whenever the descriptor is readable."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._handlers[descriptor] = handler

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a descriptor, which may be closed by now."""
        del self._handlers[descriptor]
        with contextlib.suppress(OSError):  # a closed descriptor left the set by itself
            self._epoll.unregister(descriptor)

    def on_signal(self, number: int, handler: Callable[[], object]) -> None:
        """Call handler in the loop, not in the signal's own context; a signal that comes before run() is kept for it."""
        self._signals[number] = handler
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None)

    # ---- from any thread ----

    def call(self, function: Callable[[], T], timeout_s: float = 5.0) -> T:
        """Run a function in the loop's thread and return its result. Raises EnvironmentFault when the loop does not get to it.

        What has begun in time is waited for (60 s at most): its caller must not take for undone what is then done.
        The loop's thread is the one that made it, before it runs and after it ended too: nobody else ever acts in its place.
        """
        if threading.get_ident() == self._thread:
            return function()
        future: Future[object] = Future()
        self._calls.append((function, future))
        if self._over:
            self._fail_waiting()
        else:
            self._poke()
        try:
            return future.result(timeout_s)  # type: ignore[return-value]  # the queue forgets T, the future brings it back
        except FutureTimeout:
            if not future.cancel():
                return _begun(future)  # type: ignore[return-value]  # as above
            raise EnvironmentFault(
                f"the daemon's loop did not answer within {timeout_s:g} s; it may be stalled: limiterctl status", operation="loop"
            ) from None

    def _poke(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except BlockingIOError:
            return  # unread wake-ups are enough

    def stop(self) -> None:
        """End run() after the current handler."""
        self._stopping = True
        self._poke()

    # ---- running ----

    def run(self) -> None:
        """Tick and serve until stop()."""
        self.pace.due_ns = boottime_ns()
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._over = True
            self._fail_waiting()

    def _turn(self) -> None:
        """Sleep until the tick or until something comes; what has come is served before the tick, so that it sees it."""
        wait_s = 0.0 if self._calls else max(0, self.pace.due_ns - boottime_ns()) / 1e9
        for descriptor, _ in self._epoll.poll(wait_s):
            self._handlers[descriptor]()
        now_ns = boottime_ns()
        if now_ns >= self.pace.due_ns:
            self.pace.arrive(now_ns)
            self._tick()
        self._serve_calls()

    def _on_wake(self) -> None:
        for number in self._wake_read.recv(4096):
            handler = self._signals.get(number)
            if handler is not None:
                handler()

    def _fail_waiting(self) -> None:
        """Tell whoever waits that nothing is done any more; any thread may."""
        with contextlib.suppress(IndexError):
            while True:
                future = self._calls.popleft()[1]
                if future.set_running_or_notify_cancel():
                    future.set_exception(EnvironmentFault("the daemon is stopping", operation="loop"))

    def _serve_calls(self) -> None:
        for _ in range(min(len(self._calls), _CALLS_PER_WAKE)):
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except LimiterdError as error:
                future.set_exception(error)
            finally:
                if not future.done():  # a defect ends the loop; who asked need not wait for that
                    future.set_exception(EnvironmentFault("the daemon stops on a defect; its log says which", operation="loop"))

    def close(self) -> None:
        """Fail what still waits, and release the descriptors."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        self._over = True
        self._fail_waiting()
        self._epoll.close()
        self._wake_read.close()
        self._wake_write.close()


def _begun(future: Future[object]) -> object:
    """The result of a call that is at work."""
    try:
        return future.result(_BEGUN_S)
    except FutureTimeout:
        raise EnvironmentFault(
            f"the daemon's loop has been at it for {_BEGUN_S:g} s and goes on; status will show what came of it",
            operation="loop",
        ) from None
