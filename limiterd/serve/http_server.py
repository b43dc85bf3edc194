"""A small HTTP(S) server that no client can hold up; it knows nothing of what it serves.

Rule: two threads, a bounded number of connections, and never an exception for the one who started it.

Theory of operation. One thread turns a selector loop: it listens, accepts, and lets the exchange move connections on.
Nothing in it blocks on a peer. The other is the exchange's worker. A port that is taken, a certificate that cannot be
read, descriptors that ran out: each is a line in `problem` and is tried again with back-off. With TLS configured
nothing is ever served in the clear.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from limiterd.core.model import MetricsConfig
from limiterd.serve.exchange import READ, Exchange, Limits, Route
from limiterd.serve.listen import Certificate, bind

ACCEPT_BATCH: Final = 64
"""Connections taken per turn of the loop: a flood of new ones cannot starve those that are being served."""
ACCEPT_PAUSE_S: Final = 1.0
TLS_CHECK_S: Final = 1.0
START_WAIT_S: Final = 1.0
CLOSE_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Chore:
    """Something that the worker does every period_s while the server listens."""

    name: str
    work: Callable[[], None]
    period_s: float


class HttpServer:
    """Serves routes on config.listen until closed. The methods may be called from any thread.

    address is where it listens (the real port where 0 was asked for), None while it does not.
    """

    def __init__(
        self, config: MetricsConfig, routes: Mapping[str, Route], *, chore: Chore | None = None, limits: Limits | None = None
    ) -> None:
        self.address: tuple[str, int] | None = None
        self._wanted = config
        self._config = MetricsConfig(listen=None)
        self._routes = routes
        self._chore = chore
        self._limits = Limits() if limits is None else limits
        self._problems: dict[str, tuple[str, float]] = {}
        self._certificate: Certificate | None = None
        self._listeners: list[socket.socket] = []
        self._capacity = self._limits.connections
        self._next_bind = 0.0
        self._bind_delay_s = self._limits.retry_first_s
        self._next_tls = 0.0
        self._next_chore = 0.0
        self._resume_accept = math.inf
        self._closing = False
        self._tried = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_lock = threading.Lock()
        self._wake_fd = -1

    # -- for the owner ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads and try to listen; returns after the first attempt, or a second. Call it once."""
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_fd, READ, partial(os.eventfd_read, self._wake_fd))
        self._exchange = Exchange(self._routes, self._limits, self._selector, wake=self._wake, note=self._note)
        self._thread = threading.Thread(target=self._run, name="limiterd-http", daemon=True)
        self._thread.start()
        self._tried.wait(START_WAIT_S)

    def reconfigure(self, config: MetricsConfig) -> None:
        """Serve under another configuration from now on; an equal one changes nothing."""
        self._wanted = config
        self._wake()

    def close(self) -> None:
        """Stop listening, drop every connection and end the threads."""
        if self._thread is None or self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join(CLOSE_WAIT_S)
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1

    @property
    def problem(self) -> str | None:
        """What is wrong now, for people; None where all is well."""
        now = time.monotonic()
        return "; ".join(text for text, until in self._problems.values() if now < until) or None

    def _note(self, topic: str, text: str | None, lasts_s: float = math.inf) -> None:
        if text is None and topic not in self._problems:
            return
        others = {k: v for k, v in self._problems.items() if k != topic}
        self._problems = others if text is None else others | {topic: (text, time.monotonic() + lasts_s)}

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    # -- the loop ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            if not self._closing:
                self._note("thread", "the metrics server ended on an internal error; restart limiterd to have it back")
            self._tried.set()
            self._stop_listening()
            self._exchange.close()
            self._selector.close()

    def _turn(self) -> None:
        self._adopt_configuration()
        now = time.monotonic()
        self._follow_certificate(now)
        self._try_to_listen(now)
        self._tried.set()
        self._do_chore(now)
        for key, _ in self._selector.select(self._patience_s(time.monotonic())):
            key.data()
        self._exchange.deliver()
        now = time.monotonic()
        self._exchange.expire(now)
        if now >= self._resume_accept:
            self._start_accepting()

    def _patience_s(self, now: float) -> float | None:
        """Seconds until the loop has something to do by itself; None: only when woken."""
        due = min(self._exchange.next_expiry, self._resume_accept)
        if self._config.listen is not None:
            due = min(due, self._next_chore if self._listeners else self._next_bind)
            due = min(due, math.inf if self._certificate is None else self._next_tls)
        return None if due == math.inf else max(0.0, due - now)

    def _adopt_configuration(self) -> None:
        wanted, now_used = self._wanted, self._config
        if wanted == now_used:
            return
        if wanted.listen != now_used.listen:
            self._stop_listening()
            self._next_bind = 0.0
            self._bind_delay_s = self._limits.retry_first_s
            self._note("listen", None)
        if wanted.tls != now_used.tls:
            self._certificate = None if wanted.tls is None else Certificate(wanted.tls)
            self._next_tls = 0.0
            self._note("tls", None)
        self._exchange.drop_idle(1.0)
        self._config = wanted

    def _follow_certificate(self, now: float) -> None:
        if self._certificate is not None and now >= self._next_tls:
            self._next_tls = now + TLS_CHECK_S
            self._note("tls", self._certificate.refresh())

    def _do_chore(self, now: float) -> None:
        chore = self._chore
        if chore is None:
            self._next_chore = math.inf
        elif self._listeners and now >= self._next_chore:
            self._next_chore = math.inf

            def again(_: None) -> None:
                self._next_chore = now + chore.period_s

            self._exchange.submit(chore.work, chore.name, again)

    # -- listening --------------------------------------------------------------------------------

    def _try_to_listen(self, now: float) -> None:
        listen = self._config.listen
        if listen is None or self._listeners or now < self._next_bind:
            return
        if self._certificate is not None and self._certificate.context is None:
            self._next_bind = self._next_tls
            return
        try:
            self._listeners = bind(listen)
        except (OSError, ValueError) as error:
            self._next_bind = time.monotonic() + self._bind_delay_s
            cure = "free the address or change metrics.listen; it is tried again until it works"
            self._note("listen", f"metrics cannot be served on {listen}: {getattr(error, 'strerror', None) or error}; {cure}")
            self._bind_delay_s = min(2 * self._bind_delay_s, self._limits.retry_last_s)
            return
        self._note("listen", None)
        self._bind_delay_s = self._limits.retry_first_s
        self._capacity = min(self._limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        host, port, *_ = self._listeners[0].getsockname()
        self.address = (str(host), int(port))
        self._start_accepting()

    def _start_accepting(self) -> None:
        self._resume_accept = math.inf
        for listener in self._listeners:
            self._selector.register(listener, READ, partial(self._accept, listener))

    def _stop_accepting(self) -> None:
        for listener in self._listeners if self._resume_accept == math.inf else ():
            self._selector.unregister(listener)

    def _stop_listening(self) -> None:
        self._stop_accepting()
        self._resume_accept = math.inf
        self.address = None
        self._note("accept", None)
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH if self._resume_accept == math.inf else 0):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause_accepting(error)
                return
            self._note("accept", None)
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        context = self._certificate.context if self._certificate is not None else None
        full = len(self._exchange) >= self._capacity and not self._exchange.drop_idle(0.0)
        if full or (self._certificate is not None and context is None):
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._exchange.admit(sock, context)

    def _pause_accepting(self, error: OSError) -> None:
        """Out of descriptors or memory: give half of what idles back to the process, let newcomers wait a moment."""
        name = errno.errorcode.get(error.errno or 0, "?")
        self._note("accept", f"metrics cannot accept connections: {name}: {error.strerror}; tried again every second")
        self._exchange.drop_idle(0.5)
        self._stop_accepting()
        self._resume_accept = time.monotonic() + ACCEPT_PAUSE_S
