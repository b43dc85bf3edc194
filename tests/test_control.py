"""The control socket: who may ask, what is refused, and what a mad or silent client may cost."""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import pwd
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limiterd.core.errors import ConfigError, EnvironmentFault, PeerError, Problem
from limiterd.core.model import ControlConfig
from limiterd.serve import control, peer_groups, protocol
from limiterd.serve.control import ControlServer
from limiterd.serve.control_client import call, call_for_files
from limiterd.serve.messages import Role
from limiterd.serve.protocol import Access, Answer, Call, Peer
from tests.netns import wait_for


class Daemon:
    """What stands behind the socket in these tests."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.denied: list[Call] = []
        self.answer: Callable[[Call], Answer] = lambda call: Answer(ok=True, data={"verb": call.verb, "args": dict(call.args)})

    def handle(self, call: Call) -> Answer:
        """Answer as the test wants it."""
        self.calls.append(call)
        return self.answer(call)


@pytest.fixture
def daemon() -> Daemon:
    """What the server asks."""
    return Daemon()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The socket's path."""
    return str(tmp_path / "control.sock")


@pytest.fixture
def server(daemon: Daemon, path: str) -> Iterator[ControlServer]:
    """A server that has started, with short deadlines."""
    made = ControlServer(
        ControlConfig(path), daemon.handle, denied=daemon.denied.append, read_deadline_s=0.3, write_deadline_s=0.3
    )
    made.start()
    yield made
    made.close()


def connect(path: str) -> socket.socket:
    """A client that says nothing yet."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(20)
    client.connect(path)
    return client


def read_all(client: socket.socket) -> bytes:
    """Everything up to the server's hanging up."""
    received = b""
    while True:
        try:
            data = client.recv(1 << 20)
        except ConnectionResetError:  # it hung up on what it did not want to read
            return received
        if not data:
            return received
        received += data


def exchange(path: str, data: bytes, *, end: bool = False) -> dict[str, object]:
    """Send these bytes and parse the one line that comes back."""
    with connect(path) as client:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(data)
        if end:
            client.shutdown(socket.SHUT_WR)
        answer: dict[str, object] = json.loads(read_all(client))
    return answer


def open_files() -> set[str]:
    """The numbers of this process's descriptors."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def line(verb: str, **args: object) -> bytes:
    """A question as bytes."""
    return json.dumps({"v": 1, "verb": verb, "args": args}).encode() + b"\n"


# ---- asking and answering ------------------------------------------------------------------------


def test_a_question_reaches_the_daemon_and_its_answer_the_client(server: ControlServer, daemon: Daemon, path: str) -> None:
    """Verb and arguments arrive with who asks, as the kernel tells it; the data comes back."""
    assert call(path, "explain", {"interface": "eth0"}) == {"verb": "explain", "args": {"interface": "eth0"}}
    (asked,) = daemon.calls
    assert asked.peer == Peer(
        os.getpid(), os.getuid(), frozenset({os.getgid(), *os.getgroups()}), pwd.getpwuid(os.getuid()).pw_name, os.getuid()
    )
    assert asked.role is Role.ADMIN
    assert server.counts == {("explain", "ok"): 1}


@pytest.mark.parametrize("end", [False, True])
def test_the_protocol_is_one_json_line_each_way(server: ControlServer, path: str, *, end: bool) -> None:
    """As raw bytes: a line, or what stands before the end of input, gives one line and the end."""
    question = line("status").rstrip(b"\n") if end else line("status")
    assert exchange(path, question, end=end) == {"ok": True, "data": {"verb": "status", "args": {}}}


def test_a_question_in_pieces_is_understood(server: ControlServer, path: str) -> None:
    """Bytes that come one by one make the same question."""
    with connect(path) as client:
        for byte in line("status"):
            client.send(bytes([byte]))
        assert json.loads(read_all(client))["ok"] is True


@pytest.mark.parametrize(
    ("answer", "code", "result"),
    [
        (Answer.failed("no such link"), 1, "error"),
        (Answer.failed("use it so", 2), 2, "invalid"),
        (Answer.failed("not you", 77), 77, "denied"),
        (PeerError("no such request"), 1, "error"),
        (EnvironmentFault("disk full"), 1, "error"),
        (ConfigError([Problem("f", 1, 2, "policies", "wrong")]), 78, "invalid"),
    ],
)
def test_a_refusal_comes_back_with_its_code(
    server: ControlServer, daemon: Daemon, path: str, answer: Answer | Exception, code: int, result: str
) -> None:
    """What the daemon answers or raises becomes the client's PeerError with the exit code and the text."""

    def refuse(_call: Call) -> Answer:
        if isinstance(answer, Answer):
            return answer
        raise answer

    daemon.answer = refuse
    with pytest.raises(PeerError) as raised:
        call(path, "reload")
    assert raised.value.exit_code == code
    assert str(raised.value) == (answer.error if isinstance(answer, Answer) else str(answer))
    assert server.counts == {("reload", result): 1}


def test_large_answers_arrive_whole(server: ControlServer, daemon: Daemon, path: str) -> None:
    """The status of 4 096 links, some megabytes, arrives as it was given."""
    data = {"links": [{"interface": f"veth{n}", "reason": "x" * 500} for n in range(4096)], "paused": False, "faults": []}
    daemon.answer = lambda _call: Answer(ok=True, data=data)
    assert call(path, "status") == data


def test_an_answer_without_end_is_refused(server: ControlServer, daemon: Daemon, path: str) -> None:
    """What exceeds the bound is replaced by an error that says so."""
    daemon.answer = lambda _call: Answer(ok=True, data="x" * (protocol.MAX_ANSWER_BYTES + 1))
    with pytest.raises(PeerError, match="ask for less"):
        call(path, "history")


def test_odd_values_are_answered_as_text(server: ControlServer, daemon: Daemon, path: str) -> None:
    """Names that are not UTF-8 and numbers that are not finite do not break the answer."""
    daemon.answer = lambda _call: Answer(ok=True, data={"name": "eth\udc80", "rate": float("inf"), "set": {1}})
    assert call(path, "status") == {"name": "eth\udc80", "rate": "inf", "set": ["1"]}


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i, max_size=200) | st.dictionaries(st.text(), i)
    )
)
def test_pieces_make_the_whole(data: object) -> None:
    """An answer written in pieces is the same JSON."""
    rendered = protocol.render(Answer(ok=True, data=data))
    assert rendered.endswith(b"\n")
    assert b"\n" not in rendered[:-1]
    assert json.loads(rendered) == {"ok": True, "data": data}


# ---- garbage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\n", "not JSON"),
        (b"status\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 60_000 + b"\n", "deeper"),
        (b'{"v":1,"verb":"status","args":' + b'{"a":' * 40 + b"1" + b"}" * 41 + b"\n", "deeper"),
        (b"[]\n", "no object"),
        (b'{"verb":"status"}\n', "version"),
        (b'{"v":true,"verb":"status"}\n', "version"),
        (b'{"v":2,"verb":"status"}\n', "version"),
        (b'{"v":1}\n', "unknown verb"),
        (b'{"v":1,"verb":["status"]}\n', "unknown verb"),
        (b'{"v":1,"verb":"drop"}\n', "unknown verb 'drop'; known are explain"),
        (b'{"v":1,"verb":"status","args":[]}\n', "args"),
        (b'{"v":1,"verb":"status","args":{"a":"\\ud800"}}\n', "not JSON"),
        (b'{"v":1,"verb":"status","args":{"a":1e999}}\n', "too large"),
        (b'{"v":1,"verb":"status","args":{"a":NaN}}\n', "NaN"),
        (b"x" * 70_000, "65536 bytes"),
        (b"x" * 70_000 + b"\n", "65536 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not JSON"),
    ],
)
def test_garbage_is_answered_with_what_is_wrong(
    server: ControlServer, daemon: Daemon, path: str, data: bytes, complaint: str
) -> None:
    """Whatever is no question gets exit code 2 and a sentence, never reaches the daemon, and is counted as invalid."""
    answer = exchange(path, data)
    assert answer["ok"] is False
    assert answer["exit"] == 2
    assert complaint in str(answer["error"])
    assert daemon.calls == []
    assert server.counts == {("none", "invalid"): 1}
    assert call(path, "status")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)
    ).map(lambda value: json.dumps(value).encode() + b"\n")
    | st.fixed_dictionaries(
        {"v": st.sampled_from([1, 2, "1", None])},
        optional={
            "verb": st.sampled_from([*protocol.VERBS, "x"]) | st.integers(),
            "args": st.dictionaries(st.text(), st.integers()) | st.none(),
        },
    ).map(lambda value: json.dumps(value).encode() + b"\n")
)
def test_any_bytes_get_an_answer_and_leave_the_server_well(server: ControlServer, path: str, data: bytes) -> None:
    """Whatever a client sends, it gets one JSON line or (for nothing at all) the end; the next client is served."""
    with connect(path) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
    assert received == b"" if not data else set(json.loads(received)) >= {"ok"}
    assert call(path, "status")
    assert server.problem is None


@given(st.binary(max_size=300))
def test_parsing_raises_the_documented_error_alone(data: bytes) -> None:
    """For any bytes parse_request gives a known verb with its arguments, or raises PeerError with exit code 2."""
    code = 0
    try:
        verb, args = protocol.parse_request(data)
    except PeerError as error:
        code, verb, args = error.exit_code, "status", {}
    assert code in {0, 2}
    assert verb in protocol.VERBS
    assert isinstance(args, dict)


# ---- slow, silent and many -----------------------------------------------------------------------


def test_a_silent_client_is_told_and_dropped(server: ControlServer, path: str) -> None:
    """Who does not finish a question within the deadline gets an error and the end."""
    with connect(path) as client:
        client.send(b'{"v":1,')
        answer = json.loads(read_all(client))
    assert answer["exit"] == 2
    assert "no whole request within" in answer["error"]
    assert server.counts == {("none", "invalid"): 1}


def test_a_client_that_does_not_read_is_dropped(server: ControlServer, daemon: Daemon, path: str) -> None:
    """Who does not take an answer within the deadline loses it; the memory is free again."""
    daemon.answer = lambda _call: Answer(ok=True, data="x" * (8 << 20))
    with connect(path) as client:
        client.sendall(line("status"))
        wait_for(lambda: server.counts, "answered")
        wait_for(lambda: not server._clients, "dropped")
    assert server._outstanding_bytes == 0
    daemon.answer = lambda _call: Answer(ok=True, data=1)
    assert call(path, "status") == 1


def test_answers_that_wait_are_bounded_in_memory(daemon: Daemon, path: str) -> None:
    """Many clients that do not read their large answers get an error in their place once a bound is reached."""
    daemon.answer = lambda _call: Answer(ok=True, data="x" * (8 << 20))
    server = ControlServer(ControlConfig(path), daemon.handle)
    server.start()
    clients = [connect(path) for _ in range(8)]
    for client in clients:
        client.sendall(line("status"))
    wait_for(lambda: sum(server.counts.values()) == 8, "all answered")
    wait_for(lambda: sum(client.stage is control.Stage.TAKING for client in tuple(server._clients)) >= 3, "answers wait")
    assert server._outstanding_bytes <= 32 << 20
    answers = [json.loads(read_all(client))["ok"] for client in clients]
    assert answers.count(False) >= 4
    assert answers.count(True) >= 3
    for client in clients:
        client.close()
    server.close()


def test_clients_that_hang_up_leave_nothing(server: ControlServer, daemon: Daemon, path: str) -> None:
    """Hanging up before, within or after the question frees the place."""
    for data in (b"", b'{"v"', line("status")):
        for _ in range(20):
            client = connect(path)
            client.send(data)
            client.close()
    wait_for(lambda: not server._clients, "all places are free")
    assert call(path, "status")


def test_a_slow_question_does_not_hold_up_others(server: ControlServer, daemon: Daemon, path: str) -> None:
    """While the daemon thinks about one question the next is answered."""
    gate = threading.Event()
    daemon.answer = lambda asked: Answer(ok=gate.wait(20) if asked.verb == "reload" else True)
    slow = threading.Thread(target=call, args=(path, "reload"))
    slow.start()
    wait_for(lambda: daemon.calls, "the slow one is being thought about")
    call(path, "status")
    assert not gate.is_set()
    gate.set()
    slow.join()


def test_a_question_of_a_client_that_left_is_not_begun(server: ControlServer, daemon: Daemon, path: str) -> None:
    """Who hangs up while their question waits costs no work; who only ends their own side is answered."""
    gate = threading.Event()
    daemon.answer = lambda _: Answer(ok=gate.wait(20))
    held = [connect(path) for _ in range(2)]  # one for each worker
    for client in held:
        client.sendall(line("reload"))
    wait_for(lambda: len(daemon.calls) == 2, "both workers are busy")
    gone, waiting = [connect(path) for _ in range(5)], connect(path)
    for client in (*gone, waiting):
        client.sendall(line("pause"))
    wait_for(lambda: sum(c.stage is control.Stage.WAITING for c in tuple(server._clients)) == 8, "all wait")
    waiting.shutdown(socket.SHUT_WR)
    for client in gone:
        client.close()
    wait_for(lambda: len(server._clients) == 3, "they are forgotten at once")
    gate.set()
    assert json.loads(read_all(waiting))["ok"] is True
    assert [asked.verb for asked in daemon.calls] == ["reload", "reload", "pause"]
    for client in (*held, waiting):
        client.close()


def _connected(client: socket.socket, path: str) -> bool:
    return client.connect_ex(path) != errno.EAGAIN


def test_five_hundred_clients_are_bounded(daemon: Daemon, path: str) -> None:
    """With 500 silent clients at once at most 32 are held, the others wait or hear that it is busy, and all end."""
    server = ControlServer(ControlConfig(path), daemon.handle, read_deadline_s=1.0)
    server.start()
    held: list[int] = []
    clients: list[socket.socket] = []
    before = open_files()
    for _ in range(500):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(20)
        wait_for(partial(_connected, client, path), "a place in the backlog")
        clients.append(client)
        held.append(len(server._clients))
    assert max(held) <= control.MAX_CLIENTS
    assert threading.active_count() < 20
    busy = [json.loads(read_all(client)) for client in clients]
    assert all(answer["ok"] is False for answer in busy)
    assert sum(bool(answer.get("busy")) for answer in busy) >= 300
    for client in clients:
        client.close()
    assert call(path, "status", timeout_s=20)
    server.close()
    assert not open_files() - before


def test_the_silent_give_way_to_a_newcomer(daemon: Daemon, path: str) -> None:
    """Silent clients in every place are told `busy` one by one as others come; nobody waits for their deadline."""
    server = ControlServer(ControlConfig(path), daemon.handle, read_deadline_s=60)
    server.start()
    crowd = [connect(path) for _ in range(control.MAX_CLIENTS)]
    wait_for(lambda: len(server._clients) == control.MAX_CLIENTS, "the places are taken")
    assert call(path, "status", timeout_s=20)
    assert json.loads(read_all(crowd[0]))["busy"] is True  # who came first has had the longest time
    wait_for(lambda: len(server._clients) < control.MAX_CLIENTS, "who was answered has gone")
    assert server.counts[("none", "error")] >= 1
    for client in crowd:
        client.close()
    server.close()


def test_the_client_tries_again_while_it_is_busy(daemon: Daemon, path: str) -> None:
    """A crowd that is about to ask delays limiterctl, it does not turn it away, and is not turned away itself."""
    server = ControlServer(ControlConfig(path), daemon.handle, read_deadline_s=60)
    server.start()
    crowd = [connect(path) for _ in range(control.MAX_CLIENTS)]
    for client in crowd:
        client.sendall(b"{")
    wait_for(lambda: sum(bool(c.received) for c in tuple(server._clients)) == control.MAX_CLIENTS, "the places are taken")
    assert exchange(path, b"")["busy"] is True
    refused, answers = server.counts["none", "error"], list[object]()
    asking = threading.Thread(target=lambda: answers.append(call(path, "status", timeout_s=20)))
    asking.start()
    wait_for(lambda: server.counts["none", "error"] > refused, "the client is told to come again")
    assert not answers
    for client in crowd:
        client.close()
    asking.join()
    assert answers
    server.close()


def test_out_of_descriptors_is_a_problem_that_passes(server: ControlServer, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE at accept is shown, does not spin, and ends by itself."""
    attempts: list[float] = []
    real = server._everybody.listener
    assert real is not None
    number = real.fileno()

    class Exhausted:
        def accept(self) -> tuple[socket.socket, object]:
            attempts.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return number

    server._everybody.listener = Exhausted()  # type: ignore[assignment]  # what a full descriptor table makes of it
    with connect(path) as client:
        wait_for(lambda: len(attempts) >= 3, "it is tried again")
        assert "Too many open files" in str(server.problem)
        assert attempts[-1] - attempts[0] >= 0.9 * control._BREATHER_S * (len(attempts) - 1)
        server._everybody.listener = real
        client.send(line("status"))
        assert json.loads(read_all(client))["ok"] is True
    assert server.problem is None


def test_a_defect_costs_one_answer(server: ControlServer, daemon: Daemon, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody expected ends its worker loudly; the client is told, and the workers are as many as before."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def defect(_call: Call) -> Answer:
        raise ZeroDivisionError

    daemon.answer = defect
    for _ in range(10):
        with pytest.raises(PeerError, match="defect"):
            call(path, "status")
    wait_for(lambda: len(told) == 10, "each is told")
    daemon.answer = lambda _call: Answer(ok=True, data=7)
    assert call(path, "status") == 7
    assert server.counts == {("status", "error"): 10, ("status", "ok"): 1}


# ---- who may what --------------------------------------------------------------------------------


READ_VERBS = {"status", "explain", "history", "history.verify", "override.list", "request.list", "request.add"}


@pytest.mark.parametrize("verb", protocol.VERBS)
def test_the_table_of_roles(verb: str) -> None:
    """Members of the group look and file requests; everything else is the administrators'."""
    config = ControlConfig(group="users", admin_group="ops")
    access = Access(read_gid=100, admin_gid=200, own_uid=500)
    for uid, gids, most in [
        (0, {0}, Role.ADMIN),
        (500, {500}, Role.ADMIN),
        (1000, {1000, 200}, Role.ADMIN),
        (1000, {1000, 100}, Role.READ),
        (1000, {1000}, None),
    ]:
        peer = Peer(1, uid, frozenset(gids), "alice", uid)
        asked = Call(verb, {}, peer, access.role_of(uid, peer.gids))
        allowed = most is Role.ADMIN or (most is Role.READ and verb in READ_VERBS)
        refused = protocol.refusal(asked, config)
        assert (refused is None) == allowed
        if refused is not None:
            assert refused.exit_code == 77
            assert "alice (uid 1000)" in refused.error
            assert ("'users'" if verb in READ_VERBS else "'ops'") in refused.error


def test_without_groups_only_root_and_the_daemon_may() -> None:
    """With both groups null nobody else has a role, whatever groups they are in."""
    access = Access(read_gid=None, admin_gid=None, own_uid=500)
    assert access.role_of(1000, frozenset({0, 100})) is None
    assert access.role_of(0, frozenset()) is Role.ADMIN
    assert access.role_of(500, frozenset()) is Role.ADMIN


def _as_user(uid: int, gids: list[int], function: Callable[[], int]) -> int:
    """function()'s value as the exit code of a process that is this user in these groups."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setgroups(gids[1:])
            os.setgid(gids[0])
            os.setuid(uid)
            code = function()
        except PeerError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _called(path: str, verb: str) -> Callable[[], int]:
    def ask() -> int:
        call(path, verb)
        return 0

    return ask


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
def test_all_groups_of_a_real_process_count(daemon: Daemon, tmp_path: Path) -> None:
    """A process's supplementary groups decide as its primary one does; refusals end with 77, are audited and counted."""
    group, admins = grp.getgrnam("users"), grp.getgrnam("daemon")
    nobody = pwd.getpwnam("nobody").pw_uid
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    path = str(tmp_path / "control.sock")
    server = ControlServer(ControlConfig(path, group.gr_name, admins.gr_name), daemon.handle, denied=daemon.denied.append)
    server.start()
    found = Path(path).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
    plain = 65534
    assert _as_user(nobody, [plain], _called(path, "status")) == 77  # the file system refuses
    assert daemon.calls == []
    assert _as_user(nobody, [group.gr_gid], _called(path, "status")) == 0
    assert _as_user(nobody, [plain, group.gr_gid], _called(path, "status")) == 0
    assert _as_user(nobody, [plain, group.gr_gid], _called(path, "release")) == 77
    assert [(c.verb, c.peer.uid, c.role) for c in daemon.denied] == [("release", nobody, Role.READ)]
    assert _as_user(nobody, [plain, group.gr_gid, admins.gr_gid], _called(path, "release")) == 0
    assert daemon.calls[-1].peer.name == "nobody"
    assert daemon.calls[-1].peer.gids == {plain, group.gr_gid, admins.gr_gid}
    assert server.counts["release", "denied"] == 1

    assert server.problem is None
    assert _as_user(nobody, [admins.gr_gid], _called(path, "release")) == 0  # of the admin group alone

    server.reconfigure(ControlConfig(path, admins.gr_name, None))
    assert Path(path).stat().st_gid == admins.gr_gid
    assert _as_user(nobody, [group.gr_gid], _called(path, "status")) == 77
    assert _as_user(nobody, [admins.gr_gid], _called(path, "status")) == 0
    assert _as_user(nobody, [admins.gr_gid], _called(path, "release")) == 77
    with pytest.raises(EnvironmentFault, match="no group 'nonsense'"):
        server.reconfigure(ControlConfig(path, "nonsense", None))
    assert _as_user(nobody, [admins.gr_gid], _called(path, "status")) == 0
    server.close()


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
def test_without_access_lists_the_second_group_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps none: the first group is served, and the problem says what the others must do."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for name in ("setxattr", "removexattr"):
        monkeypatch.setattr(os, name, refuse)
    server = server_at(path, group="users", admin_group="daemon")
    server.start()
    found = Path(path).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, grp.getgrnam("users").gr_gid)
    assert "members of control.admin_group alone cannot reach" in str(server.problem)
    server.reconfigure(ControlConfig(path, "users", None))
    assert server.problem is None
    server.close()


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
def test_a_crowd_cannot_lock_root_out(daemon: Daemon, tmp_path: Path) -> None:
    """However many connections one user holds, root is served at once."""
    group = grp.getgrnam("users")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    path = str(tmp_path / "control.sock")
    server = ControlServer(ControlConfig(path, group.gr_name), daemon.handle, read_deadline_s=60)
    server.start()
    ready, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(group.gr_gid)
            os.setuid(65534)
            crowd = [connect(path) for _ in range(50)]
            os.write(writing, str(len(crowd)).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(ready, 10) == b"50"
        assert call(path, "status", timeout_s=5)
        wait_for(lambda: len(server._clients) <= control.MAX_CLIENTS_OF_ONE_ACCOUNT, "only one user's share is held")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        server.close()


def test_without_peer_groups_no_group_counts(
    server: ControlServer, daemon: Daemon, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel does not tell a peer's groups, only the one of its credentials counts: given up rights stay given up."""
    monkeypatch.setattr(peer_groups, "_SO_PEERGROUPS", 9999)
    call(path, "status")
    assert daemon.calls[0].peer.gids == {os.getgid()}


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
@pytest.mark.parametrize("count", [1, 256, 257, 3000])
def test_any_number_of_groups_is_known(count: int) -> None:
    """A process in hundreds of groups is in all of them and in no other, whatever the user database says."""
    groups = list(range(70_000, 70_000 + count))
    assert _as_user(65534, [65534, *groups], lambda: _speaks(groups)) == 0


def _speaks(groups: list[int]) -> int:
    """0 where a socket of this process tells these groups."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return int(peer_groups.peer_groups(theirs) != frozenset(groups))


# ---- the socket, the lock and the run directory --------------------------------------------------


def server_at(path: Path | str, **config: str) -> ControlServer:
    """A server that answers with nothing."""
    return ControlServer(ControlConfig(str(path), **config), lambda _call: Answer(ok=True, data="here"))


def test_the_socket_is_open_to_owner_and_group_alone(server: ControlServer, path: str) -> None:
    """0660, whatever the umask; the lock beside it is private."""
    found = os.lstat(path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == os.getegid()
    assert stat.S_IMODE(os.lstat(f"{path}.lock").st_mode) == 0o600


def test_the_end_removes_the_socket_and_frees_the_lock(path: str) -> None:
    """After close nothing listens, the path is free, and another server can start."""
    for _ in range(3):
        server = server_at(path)
        server.start()
        assert call(path, "status") == "here"
        server.close()
        assert not os.path.lexists(path)
        with pytest.raises(PeerError) as raised:
            call(path, "status")
        assert raised.value.exit_code == 3


def _start_in_child(path: str) -> tuple[str, str]:
    """(operation, text) of the fault with which a server in another process refuses to start."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            server_at(path).start()
            os.write(writing, b"\0started")
        except EnvironmentFault as error:
            os.write(writing, f"{error.operation}\0{error}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    operation, _, text = os.read(reading, 65536).decode().partition("\0")
    os.close(reading)
    os.close(writing)
    return operation, text


def test_a_second_instance_refuses_and_names_the_first(server: ControlServer, path: str) -> None:
    """Another process with the same socket does not start, says whose pid holds the lock, and disturbs nothing."""
    operation, text = _start_in_child(path)
    assert operation == "instance"
    assert f"pid {os.getpid()}" in text
    assert call(path, "status")


def test_the_lock_is_held_before_the_socket_is_made(path: str) -> None:
    """lock alone makes this the one instance: a second one refuses before anything is touched."""
    server = server_at(path)
    server.lock()
    assert _start_in_child(path)[0] == "instance"
    assert not os.path.lexists(path)
    server.start()
    assert call(path, "status") == "here"
    server.close()


def test_a_socket_left_by_a_killed_daemon_is_taken_over(path: str) -> None:
    """SIGKILL leaves socket and lock file behind; the next start serves at once."""
    pid = os.fork()
    if pid == 0:
        server_at(path).start()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.path.lexists(path)
    server = server_at(path)
    server.start()
    assert call(path, "status") == "here"
    server.close()


def test_a_removed_socket_is_made_anew(server: ControlServer, path: str) -> None:
    """When somebody cleans up the run directory the daemon is reachable again by itself."""
    Path(path).unlink()

    def reachable() -> bool:
        try:
            return bool(call(path, "status"))
        except PeerError:
            return False

    wait_for(reachable, "it is reachable")


def test_what_stands_in_the_way_is_not_removed(tmp_path: Path) -> None:
    """A file, a directory or a link in the socket's place stays, and the start says what to do; once gone it works."""
    path, elsewhere = tmp_path / "control.sock", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    server = server_at(path)
    makers: list[tuple[Callable[[], object], Callable[[], None]]] = [
        (lambda: path.write_text("x"), path.unlink),
        (path.mkdir, path.rmdir),
        (lambda: path.symlink_to(elsewhere), path.unlink),
    ]
    for make, remove in makers:
        make()
        with pytest.raises(EnvironmentFault, match="in the way"):
            server.start()
        assert "in the way" in str(server.problem)
        assert os.path.lexists(path)
        remove()
    assert elsewhere.read_text() == "precious"
    server.start()
    assert server.problem is None
    assert call(str(path), "status") == "here"
    server.close()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_run_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """Where others could swap the socket, nothing is put."""
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(mode)
    with pytest.raises(EnvironmentFault, match=f"mode {mode:04o}.*chmod 755"):
        server_at(run / "control.sock").start()
    assert list(run.iterdir()) == []


def test_a_linked_run_directory_is_refused(tmp_path: Path) -> None:
    """A link in the run directory's place is not followed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(EnvironmentFault, match="is a link"):
        server_at(tmp_path / "run" / "control.sock").start()
    assert list((tmp_path / "real").iterdir()) == []


def test_a_linked_lock_file_is_refused(tmp_path: Path) -> None:
    """A link in the lock's place is not followed: what it names is neither made nor cut."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "control.sock.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(EnvironmentFault, match="symbolic link"):
        server_at(tmp_path / "control.sock").start()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
@pytest.mark.parametrize("what", ["directory", "lock", "socket"])
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, what: str) -> None:
    """A run directory, lock or socket owned by another user is neither used nor removed."""
    run = tmp_path / "run"
    run.mkdir()
    path = run / "control.sock"
    if what == "lock":
        (run / "control.sock.lock").touch()
        os.chown(run / "control.sock.lock", 65534, -1)
    elif what == "socket":
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        os.chown(path, 65534, -1)
    else:
        os.chown(run, 65534, -1)
    with pytest.raises(EnvironmentFault, match="owner 65534"):
        server_at(path).start()
    assert path.exists() == (what == "socket")


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
def test_another_users_daemon_is_no_fault_of_its_directory(tmp_path: Path) -> None:
    """Where a daemon of another user runs, a second one by root is told just that, and not to change the directory."""
    run = tmp_path / "run"
    first = server_at(run / "control.sock")
    first.start()
    os.chown(run, 65534, -1)
    with pytest.raises(EnvironmentFault, match=r"another limiterd is running already: .*stop that one first") as refused:
        server_at(run / "control.sock").start()
    assert "chmod" not in str(refused.value)
    first.close()


def test_a_missing_run_directory_is_made(tmp_path: Path) -> None:
    """Started by hand, the daemon makes the last part of the path itself."""
    server = server_at(tmp_path / "run" / "control.sock")
    server.start()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o022 == 0
    server.close()


@pytest.mark.parametrize(
    ("key", "config"), [("control.group", {"group": "no such group"}), ("control.admin_group", {"admin_group": "nor this"})]
)
def test_an_unknown_group_is_refused_by_its_key(path: str, key: str, config: dict[str, str]) -> None:
    """A group that does not exist stops the socket, with the key and the name."""
    with pytest.raises(EnvironmentFault, match=key):
        server_at(path, **config).start()
    assert not os.path.lexists(path)


def test_a_path_too_long_is_a_fault(tmp_path: Path) -> None:
    """A path that no socket can have raises the documented fault."""
    with pytest.raises(EnvironmentFault, match="cannot be made"):
        server_at(tmp_path / ("x" * 120)).start()


# ---- the administrators' socket ----------------------------------------------------------------------


def mode_of(path: str) -> tuple[int, int]:
    """(mode, group) of a file."""
    found = os.lstat(path)
    return stat.S_IMODE(found.st_mode), found.st_gid


def test_the_administrators_socket_is_private(server: ControlServer, daemon: Daemon, path: str) -> None:
    """SOCKET.admin is the daemon's user's alone where no group is named, is tried first, and goes with the daemon."""
    assert mode_of(protocol.admin_path(path))[0] == 0o600
    Path(path).unlink()
    call(path, "status")
    assert daemon.calls[0].role is Role.ADMIN
    server.close()
    assert not os.path.lexists(protocol.admin_path(path))


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
def test_the_administrators_socket_follows_their_group(path: str) -> None:
    """It is open to control.admin_group and to nobody else, whatever control.group is; a reload changes that."""
    server, admins = server_at(path, group="users", admin_group="daemon"), grp.getgrnam("daemon").gr_gid
    server.start()
    assert mode_of(protocol.admin_path(path)) == (0o660, admins)
    server.reconfigure(ControlConfig(path, "users", None))
    assert mode_of(protocol.admin_path(path))[0] == 0o600
    server.close()


def test_the_administrators_socket_is_made_anew(server: ControlServer, path: str) -> None:
    """It comes back by itself as the other one does."""
    Path(protocol.admin_path(path)).unlink()
    wait_for(lambda: os.path.lexists(protocol.admin_path(path)), "it is there again")
    assert mode_of(protocol.admin_path(path))[0] == 0o600


def test_without_an_administrators_socket_the_other_serves(server: ControlServer, path: str) -> None:
    """A daemon that has none, or a client that may not use it, is answered all the same."""
    Path(protocol.admin_path(path)).unlink()
    assert call(path, "status")


def test_files_go_along_with_an_answer(server: ControlServer, daemon: Daemon, path: str, tmp_path: Path) -> None:
    """Opened files reach the client, the server closes its own, and who asks without wanting them keeps none."""
    names = [tmp_path / "new", tmp_path / "old"]
    for name in names:
        name.write_text(name.name)
    before = open_files()
    daemon.answer = lambda _call: Answer(
        ok=True, data="x" * (1 << 20), descriptors=tuple(os.open(name, os.O_RDONLY) for name in names)
    )
    data, descriptors = call_for_files(path, "history.verify")
    assert data == "x" * (1 << 20)
    assert [os.read(descriptor, 10) for descriptor in descriptors] == [b"new", b"old"]
    for descriptor in descriptors:
        os.close(descriptor)
    call(path, "history.verify")
    with connect(path) as client:
        client.sendall(line("history.verify"))
        wait_for(lambda: daemon.calls[2:], "asked, never read")
    wait_for(lambda: not server._clients, "all have gone")
    assert open_files() == before


@pytest.mark.root
@pytest.mark.usefixtures("real_root")
def test_files_that_are_held_are_bounded(daemon: Daemon, tmp_path: Path) -> None:
    """A user who never takes the files is told `busy` after some; root is answered, and so are other questions."""
    path = reachable_by_all(tmp_path)
    server = ControlServer(ControlConfig(path, "users"), daemon.handle)
    server.start()
    daemon.answer = lambda asked: Answer(
        ok=True, data=0, descriptors=(os.open(tmp_path, os.O_RDONLY),) if asked.verb == "history.verify" else ()
    )

    def hold() -> int:
        clients = [connect(path) for _ in range(control.MAX_HOLDERS + 3)]
        for number, client in enumerate(clients):
            client.sendall(line("history.verify"))
            answer = json.loads(client.recv(1 << 16))
            assert answer["ok"] is (number < control.MAX_HOLDERS)
        call(path, "status")
        assert exchange(path, line("history.verify"))["busy"]
        return 0

    assert _as_user(65534, [grp.getgrnam("users").gr_gid], hold) == 0
    wait_for(lambda: not server._clients, "all have gone")
    assert call(path, "history.verify") == 0
    server.close()


def reachable_by_all(directory: Path) -> str:
    """A socket's path that any user may reach."""
    directory.chmod(0o755)
    for parent in directory.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    return str(directory / "control.sock")


# ---- the client ----------------------------------------------------------------------------------


def test_nobody_listening_is_exit_code_3(tmp_path: Path) -> None:
    """No socket, a dead socket and a hang-up without an answer all say that the daemon cannot be reached."""
    path = str(tmp_path / "control.sock")
    with pytest.raises(PeerError, match="No such file") as missing:
        call(path, "status")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    with pytest.raises(PeerError, match="refused") as dead:
        call(path, "status")
    listener.listen()

    def hang_up() -> None:
        client, _ = listener.accept()
        client.recv(65536)
        client.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    with pytest.raises(PeerError, match="hung up") as mute:
        call(path, "status")
    thread.join()
    listener.close()
    assert {missing.value.exit_code, dead.value.exit_code, mute.value.exit_code} == {3}


def test_a_stalled_daemon_is_exit_code_3_in_time(tmp_path: Path) -> None:
    """A daemon that does not answer, or does not even accept with its backlog full, ends in the time-out."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        for _ in range(3):  # the later ones find the backlog full
            with pytest.raises(PeerError, match="did not answer") as raised:
                call(path, "status", timeout_s=0.2)
            assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    "answer", [b"hello\n", b"[]\n", b"\xff\n", b'{"ok":"yes"}\n', b'{"ok":false,"exit":"x"}\n', b'{"ok":false,"exit":900}\n']
)
def test_a_strange_answer_is_an_error(tmp_path: Path, answer: bytes) -> None:
    """What is no answer of ours fails with exit code 1, never as success and never with another exception."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def reply() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(PeerError) as raised:
            call(path, "status")
        thread.join()
    assert raised.value.exit_code == 1


def test_credentials_are_the_kernels() -> None:
    """The peer's uid comes from the socket, not from anything that it says."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert control._credentials(ours) == (os.getpid(), os.getuid(), os.getgid())
        assert struct.calcsize("3i") == 12
