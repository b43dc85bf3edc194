"""The connections of an HTTP(S) server: one task each, from the handshake to the last byte of the last answer.

Rule: whatever a client does or leaves undone, it costs a bounded number of bytes and seconds, and nobody waits for it.

Each state has a deadline after which the connection is dropped: a silent TLS peer, a slow header, an answer that nobody reads.
Answers that take work are made by a worker; requests for the same thing that arrive before that work begins share its
result, so a thousand scrapers cost one rendering. When connections or unread answers become too many, the ones nearest to
their deadline go first: a newcomer with a real request is served beside any number of idlers.

Who speaks TLS to the plain port, or plain HTTP to the TLS port, is told so at once, in the clear.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Final, TypeVar

from limiterd.core.errors import LimiterdError
from limiterd.serve.http_wire import END_OF_HEAD, BadRequestError, Request, Response, encode_head, parse_request, plain
from limiterd.serve.io_thread import IoThread, Wanted
from limiterd.serve.job_queue import PAGES
from limiterd.serve.stream import Stream

T = TypeVar("T")

METHODS: Final = ("GET", "HEAD")
_TLS_HELLO: Final = 0x16
_SPEAK_HTTP: Final = "this port speaks plain HTTP, not HTTPS: use http:// here, or set metrics.tls"
_SPEAK_HTTPS: Final = "this port speaks HTTPS, not plain HTTP: use https:// here"


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


def _whole(_: Request) -> Hashable:
    """Every request for the path gets the same answer."""
    return None


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path.

    A quick one is called in the loop itself and must return at once. Requests of one variant get the same answer; there are
    few variants, whatever clients send.
    """

    answer: Callable[[Request], Response]
    quick: bool = False
    variant: Callable[[Request], Hashable] = _whole


class State(Enum):
    """Where a connection stands."""

    HANDSHAKE = "handshake"
    READ = "read"
    WAIT = "wait"
    WRITE = "write"
    LINGER = "linger"


_IDLE: Final = frozenset({State.HANDSHAKE, State.READ, State.LINGER})


@dataclass(slots=True, eq=False)
class _Connection:
    stream: Stream
    state: State
    incoming: bytearray = field(default_factory=bytearray)
    body: bytes | None = None
    ends: bool = False
    """No further request is read."""
    task: asyncio.Task[object] | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def deadline(self) -> float:
        """When it is dropped, by the loop's clock."""
        return math.inf if self.timer is None else self.timer.when()

    def enter(self, state: State, seconds: float) -> None:
        """Go over to another state, for so long."""
        self.state = state
        self.stop_timer()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.drop)

    def stop_timer(self) -> None:
        """Let it have all the time there is."""
        if self.timer is not None:
            self.timer.cancel()

    def drop(self) -> None:
        """End it."""
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True, eq=False)
class _Answer:
    """One answer in the making and everyone who waits for it."""

    waiters: list[asyncio.Future[Response]] = field(default_factory=list)


class Connections:
    """All connections of one server. Everything happens in the loop, but for what the workers do.

    note(topic, text | None, seconds) reports what is wrong, for so long where it is not reported again. broken(error) is
    called for an error that nobody foresaw.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        limits: Limits,
        thread: IoThread,
        *,
        note: Callable[[str, str | None, float], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._routes = dict(routes)
        self._limits = limits
        self._thread = thread
        self._note = note
        self._broken = broken
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._open_answers: dict[tuple[str, Hashable], _Answer] = {}
        self._holders: Counter[int] = Counter()
        self._unread_bytes = 0

    # -- for the server ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, stream: Stream, context: ssl.SSLContext | None) -> None:
        """Serve an accepted connection; with a context, under TLS."""
        connection = _Connection(stream, State.READ if context is None else State.HANDSHAKE)
        self._connections.add(connection)
        connection.enter(connection.state, self._limits.request_s)
        connection.task = self._spawn(self._converse(connection, context))
        connection.task.add_done_callback(lambda _: self._end(connection))

    def do(self, what: str, work: Callable[[Wanted], object]) -> None:
        """Have a worker do something; an error is noted."""
        self._spawn(self._attempt(what, work))

    def _spawn(self, coroutine: Coroutine[object, object, object]) -> asyncio.Task[object]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or isinstance(error := task.exception(), OSError | None):  # the peer is gone
            return
        self._broken(error)

    def drop_idle(self, share: float) -> bool:
        """Drop this share of the connections that wait for their peer, but at least one, nearest to its deadline first.

        Returns whether there was any.
        """
        idle = sorted((c for c in self._connections if c.state in _IDLE), key=lambda c: c.deadline)
        for connection in idle[: max(1, math.ceil(len(idle) * share))]:
            self._drop(connection)
        return bool(idle)

    def end(self) -> None:
        """Drop the connections that wait for their peer; the others end with the answer that they are at."""
        self.drop_idle(1.0)
        for connection in self._connections:
            connection.ends = True

    def drop_all(self) -> None:
        """Drop every connection."""
        for task in self._tasks:
            task.cancel()

    async def gone(self) -> None:
        """Wait until all that were dropped have gone."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- one connection ---------------------------------------------------------------------------

    def _drop(self, connection: _Connection) -> None:
        """End it; it counts no more from now on."""
        self._forget(connection)
        connection.drop()

    def _forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._let_go(connection)

    def _end(self, connection: _Connection) -> None:
        connection.stop_timer()
        self._forget(connection)
        connection.stream.close()

    async def _converse(self, connection: _Connection, context: ssl.SSLContext | None) -> None:
        if context is not None and not await self._handshake(connection, context):
            return
        first = True
        while (request := await self._read(connection, first=first)) is not None:
            first = False
            await self._write(connection, await self._answer(connection, request), request)
            if connection.ends or not request.keep_alive:
                break
            # One request a turn: a client that sends them without pause does not have the loop to itself.
            await asyncio.sleep(0)
        await self._linger(connection)

    async def _handshake(self, connection: _Connection, context: ssl.SSLContext) -> bool:
        """Whether there is anything to read afterwards."""
        if (await connection.stream.peek() or b"\x16")[0] != _TLS_HELLO:
            await self._refuse(connection, BadRequestError(_SPEAK_HTTPS))
            await self._linger(connection)
            return False
        await connection.stream.encrypt(context)
        connection.state = State.READ
        return True

    async def _read(self, connection: _Connection, *, first: bool) -> Request | None:
        """The next request; None after one that was refused."""
        if not first:
            connection.enter(State.READ, self._limits.request_s if connection.incoming else self._limits.idle_s)
        try:
            return parse_request(await self._head(connection, first=first))
        except BadRequestError as bad:
            await self._refuse(connection, bad)
            return None

    async def _head(self, connection: _Connection, *, first: bool) -> bytes:
        """A request's line and headers. Raises BadRequestError."""
        incoming = connection.incoming
        start = 0
        while (end := END_OF_HEAD.search(incoming, start)) is None:
            if len(incoming) > self._limits.header_bytes:
                raise BadRequestError("the request's header is too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            start = max(0, len(incoming) - 3)
            data = await connection.stream.receive(self._limits.header_bytes)
            if not data:
                raise ConnectionResetError
            if not (incoming or first):
                connection.enter(State.READ, self._limits.request_s)
            incoming += data
            if incoming[0] == _TLS_HELLO:
                raise BadRequestError(_SPEAK_HTTP)
        head = bytes(incoming[: end.start()])
        del incoming[: end.end()]
        return head

    async def _refuse(self, connection: _Connection, bad: BadRequestError) -> None:
        await self._write(connection, plain(bad.status, str(bad)), None)

    async def _answer(self, connection: _Connection, request: Request) -> Response:
        route = self._routes.get(request.path)
        if request.method not in METHODS:
            allow = ", ".join(METHODS)
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, f"read-only: {allow}", ("Allow", allow))
        if route is None:
            return plain(HTTPStatus.NOT_FOUND, "not found; there are: " + " ".join(self._routes))
        if route.quick:
            return route.answer(request)
        connection.enter(State.WAIT, self._limits.answer_s)
        answer = self._join(request, route)
        await connection.stream.unless_hung_up(answer)
        return answer.result()

    def _join(self, request: Request, route: Route) -> asyncio.Future[Response]:
        """The answer that is made next for requests of this kind."""
        key = request.path, route.variant(request)
        answer = self._open_answers.get(key)
        if answer is None:
            answer = self._open_answers[key] = _Answer()
            self._spawn(self._make(key, answer, request, route))
        waiter: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        answer.waiters.append(waiter)
        return waiter

    async def _make(self, key: tuple[str, Hashable], answer: _Answer, request: Request, route: Route) -> None:
        def work(_: Wanted) -> Response | None:
            # From here on nobody may join: an answer is never older than its question.
            self._open_answers.pop(key)
            return None if all(waiter.done() for waiter in answer.waiters) else route.answer(request)

        failed = plain(HTTPStatus.INTERNAL_SERVER_ERROR, "the answer could not be made; limiterctl status says why")
        response = await self._attempt(f"the answer for {request.path}", work)
        for waiter in answer.waiters:
            if not waiter.done():
                waiter.set_result(response or failed)

    async def _attempt(self, what: str, work: Callable[[Wanted], T]) -> T | None:
        """What a worker makes of it; None where it raised, which is noted."""
        done = self._thread.do(work, PAGES)
        await asyncio.wait([done])
        error = done.exception()
        if error is None:
            self._note(what, None, 0.0)
            return done.result()
        said = str(error) if isinstance(error, LimiterdError) else repr(error)  # a defect's type says more than its text
        self._note(what, f"{what} cannot be made: {said}", self._limits.failure_s)
        return None

    async def _write(self, connection: _Connection, response: Response, request: Request | None) -> None:
        connection.enter(State.WRITE, self._limits.send_s)
        head = encode_head(response, keep_alive=request is not None and request.keep_alive)
        if request is not None and request.method == "HEAD":
            await connection.stream.send(memoryview(head))
            return
        self._hold(connection, response.body)
        await connection.stream.send(memoryview(head))
        await connection.stream.send(memoryview(response.body))
        self._let_go(connection)

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

    async def _linger(self, connection: _Connection) -> None:
        """Closing with unread input would reset the connection and could take the answer with it (RFC 9112, 9.6)."""
        connection.enter(State.LINGER, self._limits.linger_s)
        connection.stream.end_output()
        await connection.stream.until_hung_up()
