"""A small HTTP(S) server that no client can hold up; it knows nothing of what it serves.

Rule: no thread of its own, a bounded number of connections, and never an exception for the one who started it.

Theory of operation. One task in the thread that serves clients adopts the configuration, listens and follows the certificate;
each connection has its own. What may block (names that are looked up, the certificate's files) is done by a worker. A port
that is taken, a certificate that cannot be read, descriptors that ran out: each is a line in `problem` and is tried again
with back-off. With TLS configured nothing is ever served in the clear.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import resource
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import MetricsConfig
from limiterd.serve.http_connections import Connections, Limits, Route
from limiterd.serve.io_thread import IoThread, tell_defect
from limiterd.serve.job_queue import PAGES
from limiterd.serve.listen import Certificate, bind
from limiterd.serve.stream import Stream, readable

ACCEPT_BATCH: Final = 64
"""Connections taken per turn of the loop: a flood of new ones cannot starve those that are being served."""
ACCEPT_PAUSE_S: Final = 1.0
TLS_CHECK_S: Final = 1.0
START_WAIT_S: Final = 1.0
CLOSE_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Chore:
    """Something that a worker does every period_s while the server listens."""

    name: str
    work: Callable[[], None]
    period_s: float


def _close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _close_after(listener: socket.socket, _: object) -> None:
    listener.close()


class HttpServer:
    """Serves routes on config.listen until closed, in a thread that it may share. Methods may be called from any thread.

    address is where it listens (the real port where 0 was asked for), None while it does not.
    """

    def __init__(
        self,
        config: MetricsConfig,
        routes: Mapping[str, Route],
        thread: IoThread | None = None,
        *,
        chore: Chore | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Name what is served. Without a thread to share it has its own."""
        self.address: tuple[str, int] | None = None
        self._wanted = config
        self._config = MetricsConfig(listen=None)
        self._chore = chore
        self._limits = Limits() if limits is None else limits
        self._thread = IoThread() if thread is None else thread
        self._shares_thread = thread is not None
        self._connections = Connections(routes, self._limits, self._thread, note=self._note, broken=self._break)
        self._problems: dict[str, tuple[str, float]] = {}
        self._certificate: Certificate | None = None
        self._listeners: list[socket.socket] = []
        self._capacity = self._limits.connections
        self._bind_delay_s = self._limits.retry_first_s
        self._next_bind = self._next_tls = self._next_chore = 0.0
        self._tried = threading.Event()
        self._changed: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []

    # -- for the owner ----------------------------------------------------------------------------

    def start(self) -> None:
        """Try to listen; returns after the first attempt, or a second. Call it once.

        Raises EnvironmentFault where the thread cannot be started.
        """
        self._thread.start()
        self._thread.run(self._begin())
        self._tried.wait(START_WAIT_S)

    def reconfigure(self, config: MetricsConfig) -> None:
        """Serve under another configuration from now on; an equal one changes nothing."""
        self._wanted = config
        self._thread.call(self._wake)

    def close(self) -> None:
        """Stop listening and drop every connection."""
        with contextlib.suppress(EnvironmentFault, TimeoutError):
            self._thread.run(self._end()).result(CLOSE_WAIT_S)
        if not self._shares_thread:
            self._thread.close(CLOSE_WAIT_S)

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

    # -- the task ---------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._changed = asyncio.Event()
        self._spawn(self._run(self._changed))

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    async def _run(self, changed: asyncio.Event) -> None:
        while True:
            changed.clear()
            await self._turn()
            self._tried.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._patience_s(time.monotonic()))

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    def _break(self, error: BaseException) -> None:
        """An error that nobody foresaw: it is told, and this server ends."""
        self._stop_listening()
        self._note("defect", "the metrics server ended on an internal error; restart limiterd to have it back")
        tell_defect(error, "metrics")
        self._stop()

    def _stop(self) -> None:
        self._tried.set()
        for task in self._tasks:
            task.cancel()
        self._stop_listening()
        self._connections.drop_all()

    async def _end(self) -> None:
        self._stop()
        await self._connections.gone()

    async def _turn(self) -> None:
        """Do what is due."""
        await self._adopt_configuration()
        await self._follow_certificate()
        await self._try_to_listen()
        self._do_chore()

    def _patience_s(self, now: float) -> float | None:
        """Seconds until there is something to do by itself; None: only when woken."""
        due = math.inf
        if self._config.listen is not None:
            due = self._next_chore if self._listeners else self._next_bind
            due = min(due, math.inf if self._certificate is None else self._next_tls)
        return None if due == math.inf else max(0.0, due - now)

    async def _adopt_configuration(self) -> None:
        wanted, now_used = self._wanted, self._config
        if wanted == now_used:
            return
        if wanted.tls != now_used.tls:  # loaded first: from one connection to the next it is the new one that counts
            certificate = None if wanted.tls is None else Certificate(wanted.tls)
            trouble = None if certificate is None else await self._refreshed(certificate)
            self._certificate = certificate
            self._note("tls", trouble)
        if wanted.listen != now_used.listen:
            self._stop_listening()
            if self._accepting:
                await asyncio.wait(self._accepting)
            self._accepting.clear()
            self._next_bind = 0.0
            self._bind_delay_s = self._limits.retry_first_s
            self._note("listen", None)
        self._connections.end()
        self._config = wanted

    async def _follow_certificate(self) -> None:
        if self._certificate is not None and time.monotonic() >= self._next_tls:
            self._note("tls", await self._refreshed(self._certificate))

    async def _refreshed(self, certificate: Certificate) -> str | None:
        """Load the certificate's files if they are new; what is wrong with them."""
        self._next_tls = time.monotonic() + TLS_CHECK_S
        return await self._thread.do(lambda _: certificate.refresh(), PAGES)

    def _do_chore(self) -> None:
        chore = self._chore
        if chore is None:
            self._next_chore = math.inf
        elif self._listeners and time.monotonic() >= self._next_chore:
            self._next_chore = time.monotonic() + chore.period_s
            self._connections.do(chore.name, lambda _: chore.work())

    # -- listening --------------------------------------------------------------------------------

    async def _try_to_listen(self) -> None:
        listen = self._config.listen
        if listen is None or self._listeners or time.monotonic() < self._next_bind:
            return
        if self._certificate is not None and self._certificate.context is None:
            self._next_bind = self._next_tls
            return
        try:
            self._listeners = await self._thread.do(lambda _: bind(listen), PAGES, discard=_close)
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
        for listener in self._listeners:
            self._accepting.append(self._spawn(self._accept_all(listener)))
            self._accepting[-1].add_done_callback(partial(_close_after, listener))

    def _stop_listening(self) -> None:
        self.address = None
        self._note("accept", None)
        self._listeners = []
        for task in self._accepting:
            task.cancel()  # which closes its listener

    async def _accept_all(self, listener: socket.socket) -> None:
        """Take in whoever comes, for as long as the listener is in use."""
        while True:
            await readable(listener)
            try:
                for _ in range(ACCEPT_BATCH):
                    sock, _address = listener.accept()
                    self._note("accept", None)
                    self._admit(sock)
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                self._crowded(error)
                await asyncio.sleep(ACCEPT_PAUSE_S)

    def _admit(self, sock: socket.socket) -> None:
        context = self._certificate.context if self._certificate is not None else None
        full = len(self._connections) >= self._capacity and not self._connections.drop_idle(0.0)
        if full or (self._certificate is not None and context is None):
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.admit(Stream(sock), context)

    def _crowded(self, error: OSError) -> None:
        """Out of descriptors or memory: give half of what idles back to the process, let newcomers wait a moment."""
        name = errno.errorcode.get(error.errno or 0, "?")
        self._note("accept", f"metrics cannot accept connections: {name}: {error.strerror}; tried again every second")
        self._connections.drop_idle(0.5)
