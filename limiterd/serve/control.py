"""The control socket: one JSON line in, one JSON line out (docs/control.md).

Who asks is told by the kernel (SO_PEERCRED, SO_PEERGROUPS), what they may ask by one table. Each client is a task in the thread
that serves: at most MAX_CLIENTS at once, a deadline for the question and one for taking the answer, bounds on both; further
clients are told `busy`, the silent ones first, and connections are taken at a bounded pace. Workers carry questions to
`handle`, which may block. So no client, slow, silent, mad or many, costs more than a part of one core.

Root and administrators have a socket of their own, SOCKET.admin, which nobody else can connect to, and whose queue nobody
else can fill; their questions come first, one worker is theirs alone, and so are the last places.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Final

from limiterd.core.errors import (
    EXIT_CONFIG,
    EXIT_NOPERM,
    EXIT_USAGE,
    EnvironmentFault,
    LimiterdError,
    NotDurableError,
)
from limiterd.core.model import ControlConfig
from limiterd.serve.accounts import Accounts
from limiterd.serve.io_thread import IoThread, Wanted, tell_defect
from limiterd.serve.messages import Role
from limiterd.serve.peer_groups import peer_groups
from limiterd.serve.protocol import (
    BUSY,
    DEFECT,
    MAX_REQUEST_BYTES,
    Access,
    Answer,
    Call,
    Peer,
    admin_path,
    parse_request,
    refusal,
    render,
)
from limiterd.serve.stream import Stream, readable
from limiterd.serve.unix_listener import InstanceLock, OwnedSocket

MAX_CLIENTS: Final = 32
MAX_CLIENTS_OF_ONE_ACCOUNT: Final = 16
RESERVED_FOR_ADMINS: Final = 4
MAX_HOLDERS: Final = 8
"""So many clients, beside administrators, may hold files that they were sent."""
_OUTSTANDING_BYTES: Final = 32 << 20
_BREATHER_S: Final = 0.05
_ACCEPTS_PER_BREATHER: Final = 16
_CHECK_S: Final = 2.0
_SILENCE_S: Final = 0.05
_BUSY_LINE: Final = render(BUSY)
_UNNAMED: Final = "none"
"""The verb under which questions are counted that never named a known one."""
_DEFECT: Final = "the control socket ended by a defect; the log has the details, a restart brings it back"


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


def _name_of(uid: int) -> str:
    """The user's name, or the uid as text; asks the user database, which may block."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# ---- the server ----------------------------------------------------------------------------------


class _Files:
    """Opened files on their way from a worker to a client; closed with the client, also where they come too late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self.descriptors: tuple[int, ...] = ()

    def hold(self, descriptors: tuple[int, ...]) -> None:
        with self._lock:
            self.descriptors += descriptors
        if self._over:
            self.close()

    def close(self) -> None:
        with self._lock:
            descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)

    def end(self) -> None:
        """Close them, and those that are still to come."""
        self._over = True
        self.close()


class Stage(Enum):
    """What a client does now, or what is done for it."""

    ASKING = "asking"
    WAITING = "waiting"
    TAKING = "taking"
    HOLDING = "holding"
    """It has been sent files and has not hung up: until then the kernel counts them as the daemon's."""


@dataclass(slots=True, eq=False)
class _Client:
    """One connection."""

    sock: socket.socket
    stream: Stream
    pid: int
    uid: int
    gids: frozenset[int]
    account: int
    role: Role | None
    since_s: float
    stage: Stage = Stage.ASKING
    received: bytearray = field(default_factory=bytearray)
    files: _Files = field(default_factory=_Files)
    task: asyncio.Task[None] | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it is root's, the daemon's own or an administrator's."""
        return self.role is Role.ADMIN


@dataclass(slots=True, eq=False)
class _Door:
    """One of the two sockets: where clients come in. Its task closes the listener when it ends."""

    owned: OwnedSocket
    paced: bool
    listener: socket.socket | None = None
    task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Leave nobody waiting."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()


class ControlServer:
    """The server. lock, start, reconfigure and close belong to one thread; the rest may be called from any."""

    def __init__(
        self,
        config: ControlConfig,
        handle: Callable[[Call], Answer],
        thread: IoThread | None = None,
        *,
        denied: Callable[[Call], None] | None = None,
        read_deadline_s: float = 5.0,
        write_deadline_s: float = 10.0,
    ) -> None:
        """Name what answers and what hears of refusals; both run in a worker and may block. Nothing is opened yet.

        Without a thread to share the server has its own.
        """
        self._config = config
        self._handle = handle
        self._thread = IoThread() if thread is None else thread
        self._shares_thread = thread is not None
        self._denied = denied
        self._read_deadline_s = read_deadline_s
        self._write_deadline_s = write_deadline_s
        self._lock = InstanceLock(config.socket)
        self._everybody = _Door(OwnedSocket(config.socket, self._lock), paced=True)
        self._admins = _Door(OwnedSocket(admin_path(config.socket), self._lock, private=True), paced=False)
        self._access = Access(None, None, os.geteuid())
        self._accounts = Accounts()
        self._accounts.refresh()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._count_lock = threading.Lock()
        self._problem: str | None = None
        self._clients: set[_Client] = set()
        self._outstanding_bytes = 0
        self._started = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(verb, result) → how many; result is ok, denied, invalid or error, the verb "none" where none was named."""
        with self._count_lock:
            return dict(self._counts)

    @property
    def problem(self) -> str | None:
        """Why clients, or some of them, cannot be served now."""
        if self._problem is None and self._everybody.owned.excluded:
            return (
                f"members of control.admin_group alone cannot reach {self._config.socket}: its file system keeps no access "
                "lists; make them members of control.group too"
            )
        return self._problem

    def lock(self) -> None:
        """Become the one instance. Raises EnvironmentFault: operation "instance" when another one runs, else "control"."""
        self._lock.lock()

    def start(self) -> None:
        """Serve. Raises EnvironmentFault as `lock` does or when the sockets cannot be made; may be called again then."""
        try:
            self.lock()
            self._access = access_of(self._config)
            for door, gids in self._doors():
                door.listener = door.owned.bind(*gids)
            self._thread.start()
        except EnvironmentFault as error:
            self._problem = str(error)
            for door in (self._everybody, self._admins):
                door.close()
            raise
        self._problem = None
        self._started = True
        self._thread.call(self._begin)

    def _socket_gids(self) -> tuple[int | None, int | None]:
        read_gid, admin_gid = self._access.read_gid, self._access.admin_gid
        return (admin_gid, None) if read_gid is None else (read_gid, admin_gid)

    def _doors(self) -> tuple[tuple[_Door, tuple[int | None, int | None]], ...]:
        """Both, with the groups that they are open to."""
        return (self._everybody, self._socket_gids()), (self._admins, (self._access.admin_gid, None))

    def reconfigure(self, config: ControlConfig) -> None:
        """Take other groups over from the next question on; the path stays. Raises EnvironmentFault and changes nothing."""
        access = access_of(config)
        before, self._access = self._access, access
        try:
            for door, gids in self._doors():
                door.owned.admit(*gids)
        except EnvironmentFault:
            self._access = before
            raise
        self._config = config

    def close(self, timeout_s: float = 0.5) -> None:
        """Stop listening, end every connection, remove the sockets; a question at work is waited for at most that long."""
        if self._started:
            self._started = False
            with contextlib.suppress(EnvironmentFault, TimeoutError):
                self._thread.run(self._leave(timeout_s)).result(2 * timeout_s)
        if not self._shares_thread:
            self._thread.close(timeout_s)
        self._everybody.owned.close()
        self._admins.owned.close()
        self._lock.close()

    # ---- in the loop: coming and going

    def _begin(self) -> None:
        self._watch = self._spawn(self._keep_listening())
        for door, _gids in self._doors():
            door.task = self._spawn(self._let_in(door))

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        """A task is over; by an error that nobody foresaw, which is told and ends this server, or as it should be."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problem = _DEFECT
            tell_defect(error, "control")
            self._stop()

    async def _keep_listening(self) -> None:
        """Make the sockets anew when somebody removed them."""
        while True:
            await asyncio.sleep(_CHECK_S)
            for door, gids in self._doors():
                await self._look_after(door, gids)

    async def _look_after(self, door: _Door, gids: tuple[int | None, int | None]) -> None:
        if door.owned.stands():
            return
        if door.task is not None:
            door.task.cancel()
            await asyncio.wait([door.task])
        door.close()
        try:
            door.listener = door.owned.bind(*gids)
        except EnvironmentFault as error:
            self._problem = str(error)
            return
        door.task = self._spawn(self._let_in(door))
        self._problem = None

    def _stop(self) -> None:
        for task in (self._watch, *(door.task for door, _ in self._doors())):
            if task is not None:
                task.cancel()
        for client in tuple(self._clients):
            if client.stage is not Stage.WAITING:
                self._end(client)

    async def _leave(self, timeout_s: float) -> None:
        self._stop()
        at_work = [client.task for client in self._clients if client.task is not None]
        if at_work:
            await asyncio.wait(at_work, timeout=timeout_s)
        for client in tuple(self._clients):
            self._end(client)

    async def _let_in(self, door: _Door) -> None:
        """Take in whoever comes, at a bounded pace where anybody may come."""
        since_s, accepted = 0.0, 0
        try:
            while door.listener is not None:
                await readable(door.listener)
                if time.monotonic() - since_s >= _BREATHER_S:
                    since_s, accepted = time.monotonic(), 0
                accepted += self._accept(door.listener)
                if door.paced and accepted >= _ACCEPTS_PER_BREATHER:
                    await asyncio.sleep(_BREATHER_S)
        finally:
            door.close()

    def _accept(self, listener: socket.socket) -> int:
        """For how many clients this counts."""
        try:
            sock = listener.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return 0
        except OSError as error:  # out of descriptors or memory: the backlog waits meanwhile
            self._problem = f"control clients cannot be accepted: {error.strerror}"
            return _ACCEPTS_PER_BREATHER
        self._problem = None
        self._admit(sock)
        return 1

    def _admit(self, sock: socket.socket) -> None:
        pid, uid, gid = _credentials(sock)
        gids = frozenset({gid, *peer_groups(sock)})
        role, account = self._access.role_of(uid, gids), self._accounts.of(uid)
        client = _Client(sock, Stream(sock), pid, uid, gids, account, role, time.monotonic())
        if not self._has_room(client):
            silent = self._longest_silent(account)
            self._send_away(silent or client)
            if silent is None:
                return
        self._clients.add(client)
        client.task = self._spawn(self._serve(client))
        client.task.add_done_callback(lambda _: self._gone(client))

    def _gone(self, client: _Client) -> None:
        self._clients.discard(client)
        client.files.end()
        client.stream.close()

    def _has_room(self, client: _Client) -> bool:
        held = [other for other in self._clients if other.stage is not Stage.HOLDING]
        limit = MAX_CLIENTS if client.is_admin else MAX_CLIENTS - RESERVED_FOR_ADMINS
        theirs = sum(other.account == client.account for other in held)
        return len(held) < limit and (client.uid == 0 or theirs < MAX_CLIENTS_OF_ONE_ACCOUNT)

    def _longest_silent(self, account: int) -> _Client | None:
        """The client of this account that has waited longest without a byte; the newcomer takes its place, and nobody else's."""
        before_s = time.monotonic() - _SILENCE_S
        silent = [c for c in self._clients if c.account == account and c.stage is Stage.ASKING and not c.received]
        return min((c for c in silent if c.since_s < before_s), key=lambda c: c.since_s, default=None)

    def _send_away(self, client: _Client) -> None:
        """Tell a client that there is no place for it; one that means well asks again."""
        self._count(_UNNAMED, "error")
        with contextlib.suppress(OSError):
            client.sock.send(_BUSY_LINE)
        self._end(client)

    def _end(self, client: _Client) -> None:
        self._clients.discard(client)
        if client.task is None:
            client.stream.close()
        else:
            client.task.cancel()

    # ---- in the loop: one client

    async def _serve(self, client: _Client) -> None:
        try:
            if answer := await self._answer(client):
                await self._hand_over(client, answer)
            if client.stage is Stage.HOLDING:
                await client.stream.until_hung_up()
        except OSError:  # it hung up, or did not take its answer in time
            return

    async def _answer(self, client: _Client) -> bytes:
        """The answer as a line, empty where nothing was asked."""
        try:
            async with asyncio.timeout(self._read_deadline_s):
                question = await self._question(client)
        except TimeoutError:
            self._count(_UNNAMED, "invalid")
            return render(Answer.failed(f"no whole request within {self._read_deadline_s:g} s", EXIT_USAGE))
        if not question:
            return b""
        client.stage = Stage.WAITING
        work = self._thread.do(partial(self._work, client, question), client.account, first=client.is_admin)
        await client.stream.unless_hung_up(work)
        error = work.exception()
        if error is not None:  # a defect costs one answer
            tell_defect(error, "serve-worker")
        answer = work.result() if error is None else render(DEFECT)
        if self._has_room_for(client, answer):
            return answer
        client.files.close()
        return _BUSY_LINE

    def _has_room_for(self, client: _Client, answer: bytes) -> bool:
        """Whether the answer may wait to be taken, and its files be held."""
        if self._outstanding_bytes + len(answer) > _OUTSTANDING_BYTES:
            return False
        holders = sum(other.stage is Stage.HOLDING and not other.is_admin for other in self._clients)
        return client.is_admin or not client.files.descriptors or holders < MAX_HOLDERS

    @staticmethod
    async def _question(client: _Client) -> bytes:
        """What is sent up to the first line's end, the input's end, or the bound."""
        received = client.received
        while data := await client.stream.receive(MAX_REQUEST_BYTES):
            received += data
            if b"\n" in data or len(received) > MAX_REQUEST_BYTES:
                break
        return bytes(received)

    async def _hand_over(self, client: _Client, answer: bytes) -> None:
        client.stage = Stage.HOLDING if client.files.descriptors else Stage.TAKING
        self._outstanding_bytes += len(answer)
        try:
            async with asyncio.timeout(self._write_deadline_s):
                await client.stream.send(memoryview(answer), client.files.descriptors)
        finally:
            self._outstanding_bytes -= len(answer)
            client.files.close()

    def _count(self, verb: str, result: str) -> None:
        with self._count_lock:
            self._counts[verb, result] += 1

    # ---- in a worker

    def _work(self, client: _Client, question: bytes, wanted: Wanted) -> bytes:
        line, _newline, _rest = question.partition(b"\n")
        verb, result = _UNNAMED, "error"
        try:
            verb, args = parse_request(line)
            answer = self._asked(client, verb, args)
            result = _RESULTS.get(answer.exit_code, "error")
            client.files.hold(answer.descriptors)
            return render(answer, wanted=wanted)
        except LimiterdError as error:
            result = _RESULTS.get(error.exit_code, "error")
            return render(Answer.failed(str(error), error.exit_code, durable=not isinstance(error, NotDurableError)))
        finally:
            self._count(verb, result)

    def _asked(self, client: _Client, verb: str, args: Mapping[str, object]) -> Answer:
        if not client.is_admin:  # nobody who may do everything waits for the user database because of others
            self._accounts.refresh()
        peer = Peer(client.pid, client.uid, client.gids, _name_of(client.uid), self._accounts.of(client.uid))
        call = Call(verb, args, peer, self._access.role_of(peer.uid, peer.gids))
        refused = refusal(call, self._config)
        if refused is None:
            return self._handle(call)
        if self._denied is not None:
            self._denied(call)
        return refused


_RESULTS: Final[Mapping[int, str]] = {0: "ok", EXIT_NOPERM: "denied", EXIT_USAGE: "invalid", EXIT_CONFIG: "invalid"}
