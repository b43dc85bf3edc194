"""The connections of a server: every one a small state machine on a non-blocking socket.

Rule: whatever a client does or leaves undone, it costs a bounded number of bytes and seconds, and nobody waits for it.

Theory of operation. A connection walks handshake → read → wait → write → (read | linger) by a literal table; each step
goes as far as it can and says through its exception what it waits for. Each state has a deadline after which the
connection is dropped: a silent TLS peer, a slow header, an answer that nobody reads. Answers that take work are made by
a worker thread, one at a time; requests for the same thing that arrive before that work begins share its result, so a
thousand scrapers cost one rendering. When connections or unread answers become too many, the ones nearest to their
deadline go first: a newcomer with a real request is served beside any number of idlers.
"""

from __future__ import annotations

import math
import selectors
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Final, TypeVar

from limiterd.core.errors import LimiterdError
from limiterd.serve.http_wire import END_OF_HEAD, BadRequestError, Request, Response, encode_head, parse_request, plain

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE
NOTHING: Final = 0
SEND_CHUNK_BYTES: Final = 256 * 1024
METHODS: Final = ("GET", "HEAD")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may cost, in counts, bytes and seconds.

    connections is lowered to half of the descriptors that the process may open. request_s runs from the accept (or the
    first byte of a further request) to the end of the header, TLS handshake included. unread_bytes bounds all answers
    that wait to be read, together; one that several wait for counts once. An answer that failed is a problem for failure_s:
    perhaps nobody will ever ask for it again.
    """

    connections: int = 1024
    header_bytes: int = 16_384
    request_s: float = 10.0
    idle_s: float = 120.0
    answer_s: float = 30.0
    send_s: float = 30.0
    linger_s: float = 1.0
    failure_s: float = 60.0
    unread_bytes: int = 64 * 1024 * 1024
    retry_first_s: float = 0.5
    retry_last_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path. A quick one is called in the loop itself and must return at once."""

    answer: Callable[[Request], Response]
    quick: bool = False


class _NextTurn(Exception):
    """The connection could go on at once; others come first."""


class State(Enum):
    """Where a connection stands."""

    HANDSHAKE = "handshake"
    READ = "read"
    WAIT = "wait"
    WRITE = "write"
    LINGER = "linger"


_INTEREST: Final = {State.HANDSHAKE: READ, State.READ: READ, State.WRITE: WRITE, State.LINGER: READ}
_IDLE: Final = frozenset({State.HANDSHAKE, State.READ, State.LINGER})


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    state: State
    deadline: float = math.inf
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: deque[memoryview] = field(default_factory=deque)
    body: bytes | None = None
    method: str = ""
    keep_alive: bool = False
    interest: int = NOTHING


@dataclass(slots=True, eq=False)
class _Job:
    """One answer in the making and everyone who waits for it."""

    path: str
    waiters: list[_Connection] = field(default_factory=list)


class Exchange:
    """All connections of one server. Everything but `submit`'s work happens in the caller's loop thread.

    wake is called from the worker when `deliver` has something to do; note(topic, text | None, seconds) reports what is
    wrong, for so long where it is not reported again.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        limits: Limits,
        selector: selectors.BaseSelector,
        *,
        wake: Callable[[], None],
        note: Callable[[str, str | None, float], None],
    ) -> None:
        self._routes = dict(routes)
        self._limits = limits
        self._selector = selector
        self._wake = wake
        self._note = note
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="limiterd-http-worker")
        self._connections: set[_Connection] = set()
        self._open_jobs: dict[tuple[str, str, str], _Job] = {}
        self._done: deque[Callable[[], None]] = deque()
        self._holders: Counter[int] = Counter()
        self._unread_bytes = 0
        self.next_expiry = math.inf
        self._steps: Mapping[State, Callable[[_Connection], None]] = {
            State.HANDSHAKE: self._shake_hands,
            State.READ: self._read,
            State.WRITE: self._write,
            State.LINGER: self._linger,
        }

    # -- for the server ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take over an accepted socket; with a context, under TLS."""
        sock.setblocking(False)
        if context is not None:
            try:
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:  # the peer has left already
                sock.close()
                return
        connection = _Connection(sock, State.READ if context is None else State.HANDSHAKE)
        self._give(connection, self._limits.request_s)
        self._connections.add(connection)
        self._advance(connection)

    def drop_idle(self, share: float) -> bool:
        """Drop this share of the connections that wait for their peer, but at least one, nearest to its deadline first.

        Returns whether there was any.
        """
        idle = sorted((c for c in self._connections if c.state in _IDLE), key=lambda c: c.deadline)
        for connection in idle[: max(1, math.ceil(len(idle) * share))]:
            self._drop(connection)
        return bool(idle)

    def expire(self, now: float) -> None:
        """Drop every connection whose deadline has passed; next_expiry is then the earliest of the others."""
        if now < self.next_expiry:
            return
        for connection in [c for c in self._connections if c.deadline <= now]:
            self._drop(connection)
        self.next_expiry = min((c.deadline for c in self._connections), default=math.inf)

    def submit(self, work: Callable[[], _T], what: str, then: Callable[[_T | None], None]) -> None:
        """Have the worker do something; `then` gets its result in the loop, None where it raised (which is noted)."""

        def finish(future: Future[_T]) -> None:
            error = future.exception()
            said = str(error) if isinstance(error, LimiterdError) else repr(error)  # a defect's type says more than its text
            self._note(what, None if error is None else f"{what} cannot be made: {said}", self._limits.failure_s)
            then(future.result() if error is None else None)

        def done(future: Future[_T]) -> None:
            if not future.cancelled():
                self._done.append(lambda: finish(future))
                self._wake()

        self._worker.submit(work).add_done_callback(done)

    def deliver(self) -> None:
        """Hand on what the worker has finished."""
        while self._done:
            self._done.popleft()()

    def close(self) -> None:
        """Drop every connection and let the worker end."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        for connection in list(self._connections):
            self._drop(connection)

    # -- one connection ---------------------------------------------------------------------------

    def _give(self, connection: _Connection, seconds: float) -> None:
        connection.deadline = time.monotonic() + seconds
        self.next_expiry = min(self.next_expiry, connection.deadline)

    def _advance(self, connection: _Connection) -> None:
        """Take the connection as far as it goes without waiting."""
        if connection not in self._connections:  # dropped earlier in this turn of the loop
            return
        interest = NOTHING
        try:
            while connection.state is not State.WAIT:
                self._steps[connection.state](connection)
        except ssl.SSLWantReadError:
            interest = READ
        except (ssl.SSLWantWriteError, _NextTurn):  # what can be written to now is ready again in the next turn
            interest = WRITE
        except BlockingIOError:
            interest = _INTEREST[connection.state]
        except OSError:
            self._drop(connection)
            return
        self._watch(connection, interest)

    def _watch(self, connection: _Connection, interest: int) -> None:
        if interest == connection.interest:
            return
        if connection.interest != NOTHING:
            self._selector.unregister(connection.sock)
        if interest != NOTHING:
            self._selector.register(connection.sock, interest, lambda: self._advance(connection))
        connection.interest = interest

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._let_go(connection)
        self._watch(connection, NOTHING)
        connection.sock.close()

    def _shake_hands(self, connection: _Connection) -> None:
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        connection.state = State.READ

    def _read(self, connection: _Connection) -> None:
        incoming = connection.incoming
        start = 0
        while (end := END_OF_HEAD.search(incoming, start)) is None:
            if len(incoming) > self._limits.header_bytes:
                self._refuse(connection, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's header is too large")
                return
            start = max(0, len(incoming) - 3)
            data = connection.sock.recv(self._limits.header_bytes)
            if not data:
                raise ConnectionResetError
            if not incoming:
                self._give(connection, min(self._limits.request_s, connection.deadline - time.monotonic()))
            incoming += data
        head = bytes(incoming[: end.start()])
        del incoming[: end.end()]
        try:
            request = parse_request(head)
        except BadRequestError as bad:
            self._refuse(connection, bad.status, str(bad))
        else:
            self._dispatch(connection, request)

    def _refuse(self, connection: _Connection, status: HTTPStatus, text: str) -> None:
        connection.method, connection.keep_alive = "", False
        self._answer(connection, plain(status, text))

    def _dispatch(self, connection: _Connection, request: Request) -> None:
        connection.method, connection.keep_alive = request.method, request.keep_alive
        route = self._routes.get(request.path)
        if request.method not in METHODS:
            allow = ", ".join(METHODS)
            self._answer(connection, plain(HTTPStatus.METHOD_NOT_ALLOWED, f"read-only: {allow}", ("Allow", allow)))
        elif route is None:
            self._answer(connection, plain(HTTPStatus.NOT_FOUND, "not found; there are: " + " ".join(self._routes)))
        elif route.quick:
            self._answer(connection, route.answer(request))
        else:
            connection.state = State.WAIT
            self._give(connection, self._limits.answer_s)
            self._join_job(connection, request, route)

    def _join_job(self, connection: _Connection, request: Request, route: Route) -> None:
        job = self._open_jobs.get(request.key)
        if job is not None:
            job.waiters.append(connection)
            return
        job = self._open_jobs[request.key] = _Job(request.path, [connection])

        def work() -> Response:
            # From here on nobody may join: an answer is never older than its question.
            self._open_jobs.pop(request.key)
            return route.answer(request)

        def then(response: Response | None) -> None:
            failed = plain(HTTPStatus.INTERNAL_SERVER_ERROR, "the answer could not be made; limiterctl status says why")
            for waiter in job.waiters:
                if waiter in self._connections:
                    self._answer(waiter, failed if response is None else response)
                    self._advance(waiter)

        self.submit(work, f"the answer for {request.path}", then)

    def _answer(self, connection: _Connection, response: Response) -> None:
        connection.outgoing.append(memoryview(encode_head(response, keep_alive=connection.keep_alive)))
        if connection.method != "HEAD":
            body = memoryview(response.body)
            connection.outgoing.extend(body[i : i + SEND_CHUNK_BYTES] for i in range(0, len(body), SEND_CHUNK_BYTES))
            self._hold(connection, response.body)
        connection.state = State.WRITE
        self._give(connection, self._limits.send_s)

    def _hold(self, connection: _Connection, body: bytes) -> None:
        """Count a body for as long as somebody has it to send; where they grow too many the slowest readers go first."""
        connection.body = body
        self._holders[id(body)] += 1
        self._unread_bytes += len(body) if self._holders[id(body)] == 1 else 0
        if self._unread_bytes <= self._limits.unread_bytes:
            return
        readers = (c for c in self._connections if c.body is not None and c.body is not body)
        for reader in sorted(readers, key=lambda c: c.deadline):
            self._drop(reader)
            if self._unread_bytes <= self._limits.unread_bytes:
                return

    def _let_go(self, connection: _Connection) -> None:
        body, connection.body = connection.body, None
        if body is None:
            return
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self._unread_bytes -= len(body)

    def _write(self, connection: _Connection) -> None:
        outgoing = connection.outgoing
        while outgoing:
            sent = connection.sock.send(outgoing[0])
            rest = outgoing.popleft()[sent:]
            if rest:
                outgoing.appendleft(rest)
        self._let_go(connection)
        if connection.keep_alive:
            connection.state = State.READ
            self._give(connection, self._limits.request_s if connection.incoming else self._limits.idle_s)
            # One request a turn: a client that sends them without pause does not have the loop to itself.
            raise _NextTurn if connection.incoming else BlockingIOError
        # Closing with unread input would reset the connection and could take the answer with it (RFC 9112, 9.6).
        connection.sock.shutdown(socket.SHUT_WR)
        connection.state = State.LINGER
        self._give(connection, self._limits.linger_s)

    def _linger(self, connection: _Connection) -> None:
        if not connection.sock.recv(self._limits.header_bytes):
            raise ConnectionResetError
        raise BlockingIOError
