"""The control socket: one JSON line in, one JSON line out (docs/control.md).

Who asks is told by the kernel (SO_PEERCRED, SO_PEERGROUPS), what they may ask by one table. One thread does all the sockets'
work without ever waiting for a peer: at most MAX_CLIENTS at once, a deadline for the question and one for taking the answer,
bounds on both; further clients are told `busy`, the silent ones first, and connections are taken at a bounded pace. A few
workers carry questions to `handle`, which may block; each rests in proportion to the processor time that a question took,
and one at a time writes out its answer. So no client, slow, silent, mad or many, costs more than a part of one core.

Root and administrators have a socket of their own, SOCKET.admin, which nobody else can connect to, and whose queue nobody
else can fill; they have a worker of their own, and the last places are theirs.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from limiterd.core.errors import (
    EXIT_CONFIG,
    EXIT_NOPERM,
    EXIT_USAGE,
    EnvironmentFault,
    LimiterdError,
    NotDurableError,
    PeerError,
)
from limiterd.core.model import ControlConfig
from limiterd.serve.accounts import Accounts
from limiterd.serve.job_queue import JobQueue
from limiterd.serve.peer_groups import peer_groups
from limiterd.serve.protocol import (
    BUSY,
    DEFECT,
    MAX_REQUEST_BYTES,
    Access,
    Answer,
    Call,
    Peer,
    Role,
    admin_path,
    parse_request,
    refusal,
    render,
)
from limiterd.serve.unix_listener import InstanceLock, OwnedSocket

MAX_CLIENTS: Final = 32
MAX_CLIENTS_OF_ONE_ACCOUNT: Final = 16
RESERVED_FOR_ADMINS: Final = 4
MAX_HOLDERS: Final = 8
"""So many clients, beside administrators, may hold files that they were sent."""
WORKERS: Final = 4
_OUTSTANDING_BYTES: Final = 32 << 20
_BREATHER_S: Final = 0.05
_ACCEPTS_PER_BREATHER: Final = 16
_LEAST_REST_S: Final = 0.005
_LONGEST_REST_S: Final = 0.5
_REST_PER_WORK: Final = 8
_CHECK_S: Final = 2.0
_SILENCE_S: Final = 0.05
_SEND_BYTES: Final = 256 << 10
_BUSY_LINE: Final = render(BUSY)
_UNNAMED: Final = "none"
"""The verb under which questions are counted that never named a known one."""


# ---- who asks ------------------------------------------------------------------------------------


def _gid_of(name: str | None, key: str) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise EnvironmentFault(f"{key}: there is no group {name!r} on this machine; create it", operation="control") from None


def access_of(config: ControlConfig) -> Access:
    """Look the groups up. Raises EnvironmentFault(operation="control") for one that does not exist."""
    read_gid, admin_gid = _gid_of(config.group, "control.group"), _gid_of(config.admin_group, "control.admin_group")
    return Access(read_gid, admin_gid, os.geteuid())


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    return struct.Struct("3i").unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def _peer(connection: socket.socket, accounts: Accounts) -> Peer:
    """Everything about the peer; may ask the user database, so not for the sockets' thread."""
    pid, uid, gid = _credentials(connection)
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    accounts.refresh()
    return Peer(pid, uid, frozenset({gid, *peer_groups(connection)}), name, accounts.of(uid))


# ---- the server ----------------------------------------------------------------------------------


def _selector_and_wake(listener: socket.socket) -> tuple[selectors.BaseSelector, int]:
    """What the sockets' thread waits on, and the eventfd that wakes it; without them the listener is closed."""
    try:
        return selectors.DefaultSelector(), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError as error:
        listener.close()
        raise EnvironmentFault(f"the control socket cannot be served: {error.strerror}", operation="control") from error


def _closed(descriptors: tuple[int, ...]) -> tuple[int, ...]:
    """Close them; what is left."""
    for descriptor in descriptors:
        os.close(descriptor)
    return ()


@dataclass(slots=True, eq=False)
class _Client:
    """One connection: reading until the line is whole, then with a worker, then writing."""

    connection: socket.socket
    uid: int
    account: int
    deadline_s: float
    received: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))
    descriptors: tuple[int, ...] = ()
    at_work: bool = False
    admin: bool = False
    holds_files: bool = False
    """It has been sent files and has not hung up: until then they count as the daemon's, in the kernel's books."""

    @property
    def is_timed(self) -> bool:
        """Whether it is the client's turn, for which there is a deadline."""
        return not (self.at_work or self.holds_files)


class ControlServer:
    """The server. lock, start, reconfigure and close belong to one thread; the rest may be called from any."""

    def __init__(
        self,
        config: ControlConfig,
        handle: Callable[[Call], Answer],
        *,
        denied: Callable[[Call], None] | None = None,
        read_deadline_s: float = 5.0,
        write_deadline_s: float = 10.0,
    ) -> None:
        """Name what answers and what hears of refusals; both run in a worker and may block. Nothing is opened yet."""
        self._config = config
        self._handle = handle
        self._denied = denied
        self._read_deadline_s = read_deadline_s
        self._write_deadline_s = write_deadline_s
        self._lock = InstanceLock(config.socket)
        self._owned = OwnedSocket(config.socket, self._lock)
        self._owned_admin = OwnedSocket(admin_path(config.socket), self._lock, private=True)
        self._access = Access(None, None, os.geteuid())
        self._accounts = Accounts()
        self._accounts.refresh()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._count_lock = threading.Lock()
        self._rendering = threading.Lock()
        self._problem: str | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._workers: list[threading.Thread] = []
        self._jobs: JobQueue[_Client] = JobQueue()
        self._answered: deque[tuple[_Client, bytes, tuple[int, ...]]] = deque()
        self._clients: set[_Client] = set()
        self._outstanding_bytes = 0
        self._listener: socket.socket | None = None
        self._admin_listener: socket.socket | None = None
        self._resume_s: float | None = None
        self._accepts_since_s = 0.0
        self._accepts = 0
        self._check_s = 0.0

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(verb, result) → how many; result is ok, denied, invalid or error, the verb "none" where none was named."""
        with self._count_lock:
            return dict(self._counts)

    @property
    def problem(self) -> str | None:
        """Why clients, or some of them, cannot be served now."""
        if self._problem is None and self._owned.excluded:
            return (
                f"members of control.admin_group alone cannot reach {self._config.socket}: its file system keeps no access "
                "lists; make them members of control.group too"
            )
        return self._problem

    def lock(self) -> None:
        """Become the one instance. Raises EnvironmentFault: operation "instance" when another one runs, else "control"."""
        self._lock.lock()

    def start(self) -> None:
        """Serve. Raises EnvironmentFault as `lock` does or when the socket cannot be made; may be called again then."""
        try:
            self.lock()
            self._access = access_of(self._config)
            self._listener = self._owned.bind(*self._socket_gids())
            self._admin_listener = self._owned_admin.bind(self._access.admin_gid)
            self._selector, self._wake = _selector_and_wake(self._listener)
        except EnvironmentFault as error:
            self._problem = str(error)
            raise
        self._problem = None
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_wake)
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_connect)
        self._selector.register(self._admin_listener, selectors.EVENT_READ, self._on_admin)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def _socket_gids(self) -> tuple[int | None, int | None]:
        read_gid, admin_gid = self._access.read_gid, self._access.admin_gid
        return (admin_gid, None) if read_gid is None else (read_gid, admin_gid)

    def reconfigure(self, config: ControlConfig) -> None:
        """Take other groups over from the next question on; the path stays. Raises EnvironmentFault and changes nothing."""
        access = access_of(config)
        before, self._access = self._access, access
        try:
            self._owned.admit(*self._socket_gids())
            self._owned_admin.admit(access.admin_gid)
        except EnvironmentFault:
            self._access = before
            raise
        self._config = config

    def close(self, timeout_s: float = 0.5) -> None:
        """Stop listening, end every connection, remove the socket; a question at work is waited for at most that long."""
        self._closing.set()
        if self._thread is not None:
            self._poke()
            self._jobs.close()
            deadline_s = time.monotonic() + timeout_s
            threads = (self._thread, *self._workers)
            for thread in threads:
                thread.join(max(0.0, deadline_s - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                os.close(self._wake)  # else it stays: its number must not become somebody else's file
            self._thread = None
        self._owned.close()
        self._owned_admin.close()
        self._lock.close()

    # ---- the sockets' thread

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake already; closed: nobody needs to wake
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                for key, _events in self._selector.select(self._pause_s()):
                    key.data()
                self._on_time()
        finally:
            if not self._closing.is_set():
                self._problem = "the control socket's thread ended by a defect; the log has the details, a restart brings it back"
            for client in tuple(self._clients):
                self._end(client)
            for listener in (self._listener, self._admin_listener):
                if listener is not None:
                    listener.close()
            self._selector.close()

    def _pause_s(self) -> float:
        times = [client.deadline_s for client in self._clients if client.is_timed]
        times.append(self._check_s)
        if self._resume_s is not None:
            times.append(self._resume_s)
        return max(0.0, min(times) - time.monotonic())

    def _on_time(self) -> None:
        now_s = time.monotonic()
        for client in [client for client in self._clients if client.is_timed and client.deadline_s <= now_s]:
            self._on_deadline(client)
        if self._resume_s is not None and self._resume_s <= now_s:
            self._resume_s = None
            if self._listener is not None:
                self._selector.register(self._listener, selectors.EVENT_READ, self._on_connect)
        if self._check_s <= now_s:
            self._check_s = now_s + _CHECK_S
            self._keep_listening()

    def _on_deadline(self, client: _Client) -> None:
        if client.answer:
            self._end(client)
            return
        self._count(_UNNAMED, "invalid")
        self._reply(client, render(Answer.failed(f"no whole request within {self._read_deadline_s:g} s", EXIT_USAGE)))

    def _keep_listening(self) -> None:
        """Make the sockets anew when somebody removed them."""
        self._keep_admin_listening()
        if self._owned.stands() or self._resume_s is not None:
            return
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        try:
            self._listener = self._owned.bind(*self._socket_gids())
        except EnvironmentFault as error:
            self._problem = str(error)
            return
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_connect)
        self._problem = None

    def _keep_admin_listening(self) -> None:
        if self._owned_admin.stands():
            return
        if self._admin_listener is not None:
            self._selector.unregister(self._admin_listener)
            self._admin_listener.close()
            self._admin_listener = None
        try:
            self._admin_listener = self._owned_admin.bind(self._access.admin_gid)
        except EnvironmentFault as error:
            self._problem = str(error)
            return
        self._selector.register(self._admin_listener, selectors.EVENT_READ, self._on_admin)
        self._problem = None

    def _on_admin(self) -> None:
        try:
            connection, _address = self._admin_listener.accept()  # type: ignore[union-attr]  # it called
        except OSError:  # gone again; or out of descriptors, of which the other listener tells
            return
        self._admit(connection)

    def _on_connect(self) -> None:
        now_s = time.monotonic()
        if now_s - self._accepts_since_s >= _BREATHER_S:
            self._accepts_since_s, self._accepts = now_s, 0
        while self._listener is not None and self._accepts < _ACCEPTS_PER_BREATHER:
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors or memory: the backlog waits meanwhile
                self._problem = f"control clients cannot be accepted: {error.strerror}"
                break
            self._problem = None
            self._accepts += 1
            self._admit(connection)
        self._rest()

    def _rest(self) -> None:
        if self._listener is not None and self._resume_s is None:
            self._selector.unregister(self._listener)
            self._resume_s = time.monotonic() + _BREATHER_S

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        _pid, uid, gid = _credentials(connection)
        client = _Client(connection, uid, self._accounts.of(uid), time.monotonic() + self._read_deadline_s)
        client.admin = self._access.role_of(uid, frozenset({gid, *peer_groups(connection)})) is Role.ADMIN
        if not self._has_room(client):
            silent = self._longest_silent(client.account)
            self._send_away(silent or client)
            if silent is None:
                return
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._on_readable(client))

    def _has_room(self, client: _Client) -> bool:
        held = [other for other in self._clients if not other.holds_files]
        limit = MAX_CLIENTS if client.admin else MAX_CLIENTS - RESERVED_FOR_ADMINS
        theirs = sum(other.account == client.account for other in held)
        return len(held) < limit and (client.uid == 0 or theirs < MAX_CLIENTS_OF_ONE_ACCOUNT)

    def _longest_silent(self, account: int) -> _Client | None:
        """The client of this account that has waited longest without a byte; the newcomer takes its place, and nobody else's."""
        latest_s = time.monotonic() + self._read_deadline_s - _SILENCE_S
        silent = [c for c in self._clients if c.account == account and not (c.received or c.answer or c.at_work or c.holds_files)]
        return min((c for c in silent if c.deadline_s < latest_s), key=lambda c: c.deadline_s, default=None)

    def _send_away(self, client: _Client) -> None:
        """Tell a client that there is no place for it; one that means well asks again."""
        self._count(_UNNAMED, "error")
        with contextlib.suppress(OSError):
            client.connection.send(_BUSY_LINE)
        self._end(client)

    def _on_readable(self, client: _Client) -> None:
        if client not in self._clients:  # sent away in this very turn
            return
        try:
            data = client.connection.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end(client)
            return
        client.received += data
        if b"\n" in data or (not data and client.received):
            self._selector.unregister(client.connection)
            client.at_work = True
            self._staff()
            self._jobs.put(client, client.account, first=client.admin)
        elif not data:
            self._end(client)
        elif len(client.received) > MAX_REQUEST_BYTES:
            self._count(_UNNAMED, "invalid")
            self._reply(client, render(Answer.failed(f"a request has at most {MAX_REQUEST_BYTES} bytes", EXIT_USAGE)))

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._answered:
            self._reply(*self._answered.popleft())

    def _reply(self, client: _Client, answer: bytes, descriptors: tuple[int, ...] = ()) -> None:
        holders = sum(other.holds_files and not other.admin for other in self._clients)
        crowded = bool(descriptors) and holders >= MAX_HOLDERS and not client.admin
        if crowded or self._outstanding_bytes + len(answer) > _OUTSTANDING_BYTES:
            answer, descriptors = _BUSY_LINE, _closed(descriptors)
        client.descriptors = descriptors
        client.holds_files = bool(descriptors)
        client.at_work = False
        client.answer = memoryview(answer)
        client.deadline_s = time.monotonic() + self._write_deadline_s
        self._outstanding_bytes += len(answer)
        with contextlib.suppress(KeyError):  # it came from a worker: not registered
            self._selector.unregister(client.connection)
        self._selector.register(client.connection, selectors.EVENT_WRITE, lambda: self._on_writable(client))

    def _on_writable(self, client: _Client) -> None:
        try:
            sent = socket.send_fds(client.connection, [client.answer[:_SEND_BYTES]], client.descriptors)
        except BlockingIOError:
            return
        except OSError:
            self._end(client)
            return
        client.descriptors = _closed(client.descriptors)
        self._outstanding_bytes -= sent
        client.answer = client.answer[sent:]
        if client.holds_files and not client.answer:
            self._selector.modify(client.connection, selectors.EVENT_READ, lambda: self._end(client))
        elif not client.answer:
            self._end(client)

    def _end(self, client: _Client) -> None:
        self._outstanding_bytes -= len(client.answer)
        self._clients.discard(client)
        client.descriptors = _closed(client.descriptors)
        with contextlib.suppress(KeyError):
            self._selector.unregister(client.connection)
        client.connection.close()

    def _count(self, verb: str, result: str) -> None:
        with self._count_lock:
            self._counts[verb, result] += 1

    # ---- the workers

    def _staff(self) -> None:
        """As many workers as there should be: one that died of a defect is replaced."""
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        missing = WORKERS + 1 - len(self._workers)
        if not any(worker.name == "control-admin" for worker in self._workers):
            self._workers.append(threading.Thread(target=self._work, args=(True,), name="control-admin", daemon=True))
            self._workers[-1].start()
            missing -= 1
        for _ in range(missing):
            self._workers.append(threading.Thread(target=self._work, args=(False,), name="control-worker", daemon=True))
            self._workers[-1].start()

    def _work(self, admins_only: bool) -> None:  # noqa: FBT001  # a thread's one argument
        while (client := self._jobs.get(first_only=admins_only)) is not None:
            answer = render(DEFECT)
            descriptors: tuple[int, ...] = ()
            began_s = time.thread_time()
            try:
                answer, descriptors = self._serve(client)
            finally:  # also when a defect ends this thread: threading.excepthook tells of it, the peer has its answer
                self._answered.append((client, answer, descriptors))
                self._poke()
            worked_s = time.thread_time() - began_s
            rest_s = 0.0 if client.admin else min(max(_LEAST_REST_S, _REST_PER_WORK * worked_s), _LONGEST_REST_S)
            self._closing.wait(rest_s)

    def _serve(self, client: _Client) -> tuple[bytes, tuple[int, ...]]:
        line, _newline, _rest = bytes(client.received).partition(b"\n")
        verb, result = _UNNAMED, "error"
        try:
            if len(line) > MAX_REQUEST_BYTES:
                raise PeerError(f"a request has at most {MAX_REQUEST_BYTES} bytes", exit_code=EXIT_USAGE)
            verb, args = parse_request(line)
            answer = self._answer(client, verb, args)
            result = _RESULTS.get(answer.exit_code, "error")
            with contextlib.nullcontext() if client.admin else self._rendering:
                return render(answer), answer.descriptors
        except LimiterdError as error:
            result = _RESULTS.get(error.exit_code, "error")
            return render(Answer.failed(str(error), error.exit_code, durable=not isinstance(error, NotDurableError))), ()
        finally:
            self._count(verb, result)

    def _answer(self, client: _Client, verb: str, args: Mapping[str, object]) -> Answer:
        peer = _peer(client.connection, self._accounts)
        call = Call(verb, args, peer, self._access.role_of(peer.uid, peer.gids))
        refused = refusal(call, self._config)
        if refused is None:
            return self._handle(call)
        if self._denied is not None:
            self._denied(call)
        return refused


_RESULTS: Final[Mapping[int, str]] = {0: "ok", EXIT_NOPERM: "denied", EXIT_USAGE: "invalid", EXIT_CONFIG: "invalid"}
