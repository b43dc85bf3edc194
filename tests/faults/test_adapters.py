"""An exception planted in each adapter: the daemon degrades loudly, or stops with exit 1 and leaves its limits standing."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from limiterd.core.errors import NotDurableError, PeerError
from limiterd.sim.netns import Pair, inside, run
from tests.faults.harness import Spoilt, plant, problems, some
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

FAULT: Final = "EnvironmentFault('planted', operation='planted', errno_name='EIO')"
SILENCE: Final = "EnvironmentFault('planted', operation='apply', errno_name='ETIMEDOUT')"
MALFORMED: Final = "MalformedMessage('planted')"
REFUSED: Final = "OSError(5, 'planted')"
DEFECT: Final = "RuntimeError('planted')"

Trouble = tuple[str, str, str]
"""What fails, what it raises, and the words that status and log have for it."""
OF_THE_LOOP: Final[Sequence[Trouble]] = (
    ("limiterd.kernel.samplers:NetlinkSampler.sample", FAULT, "links cannot be sampled: planted"),
    ("limiterd.kernel.statsdump:Columns.read", MALFORMED, "links cannot be sampled: planted"),
    ("limiterd.kernel.events:EventSocket.drain", FAULT, "by polling alone: planted"),
    ("limiterd.kernel.tcwire:stats_of", MALFORMED, "the kernel did not answer"),
    ("limiterd.kernel.tc:TcKernel.apply", SILENCE, "failed with ETIMEDOUT"),
    ("limiterd.kernel.tc:TcKernel.read", FAULT, "the kernel did not answer"),
    ("limiterd.kernel.tc:TcKernel.apply", FAULT, "failed with EIO"),
)
BESIDE_IT: Final[Sequence[Trouble]] = (
    ("limiterd.kernel.sockets:SocketDiag.read", FAULT, "planted"),
    ("limiterd.store.crc_store:CrcStore.write", FAULT, "planted"),
    ("limiterd.store.audit:AuditTrail._write", REFUSED, "audit.jsonl cannot be written"),
    ("limiterd.config.load:load_all", FAULT, "planted"),
    ("limiterd.config.override_files:Store.load", FAULT, "planted"),
    ("limiterd.serve.metrics:render", FAULT, "the answer for /metrics cannot be made: planted"),
    ("limiterd.serve.metrics:page", FAULT, "the answer for / cannot be made: planted"),
)
ALONE: Final = [[trouble] for trouble in (*some(5, OF_THE_LOOP), *some(0, BESIDE_IT))]
"""Rounds of one; what is beside the loop fails all at once as well."""

_NUMBERS: Final = itertools.count()


def provoke(daemon: Rig) -> str:
    """Make every adapter do something: a limit that changes to the rate returned, a reload, a link that comes and goes, pages."""
    rate_bps = 5_000_000 + 10_000 * next(_NUMBERS)
    with contextlib.suppress(NotDurableError):  # it took effect, and who asked hears that it is not on the disk yet
        daemon.ask("limit", interface="eth0", rate_bps=rate_bps, reason="test")
    daemon.hang_up()
    run(daemon.namespace, ["ip", "link", "add", "passing", "type", "veth", "peer", "name", "by"])
    run(daemon.namespace, ["ip", "link", "del", "passing"])
    for path in ("/", "/metrics"):
        get(daemon, path)
    return str(rate_bps)


def told(daemon: Rig) -> str:
    """Everything that status has to say of what is degraded, as one text."""
    return f"{problems(daemon)} | {daemon.status()['config']['error'] or ''}".strip(" |")


def tells(daemon: Rig, words: str) -> bool:
    """Whether status says so."""
    return words in told(daemon)


def logs(daemon: Rig, words: str, known: int = 0) -> bool:
    """Whether the log says so beyond what is known of it."""
    return words in daemon.log()[known:]


def well(daemon: Rig) -> bool:
    """Whether nothing is degraded."""
    return told(daemon) == ""


def test_a_failing_adapter_is_told_and_survived(pair: Pair, tmp_path: Path) -> None:
    """Each adapter's environment fails it: the daemon goes on, status and log say what is degraded, then all is whole again."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        rounds = [[(Spoilt(daemon, target, error), says) for target, error, says in one] for one in (*ALONE, BESIDE_IT)]
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        for troubles in rounds:
            known = len(daemon.log())
            for spoilt, _ in troubles:
                spoilt.on()
            provoke(daemon)
            for spoilt, says in troubles:
                waits(partial(tells, daemon, says), spoilt, daemon)
                waits(partial(logs, daemon, says, known), spoilt, daemon)
                spoilt.off()
            provoke(daemon)
            waits(partial(well, daemon), troubles[-1][0], daemon)
            daemon.wait_phase("limited")
            assert daemon.root() == "htb 1d1d:"


def waits(condition: Callable[[], bool], spoilt: Spoilt, daemon: Rig) -> None:
    """Until it holds; the failure names what was spoilt and shows what is told instead."""
    try:
        wait_for(condition, str(spoilt))
    except AssertionError as error:
        error.add_note(f"status: {told(daemon)}\nlog: {daemon.log()[-3000:]}")
        raise


@pytest.mark.parametrize(
    "target",
    some(
        1,
        [
            "limiterd.core.status:frame",
            "limiterd.kernel.samplers:NetlinkSampler.sample",
            "limiterd.store.journal:JournalStore.save",
            "limiterd.kernel.events:EventSocket.drain",
            "limiterd.kernel.tc:TcKernel.apply",
            "limiterd.systemd:Notifier.tick",
            "limiterd.daemon.loss_warnings:LossWarnings.follow",
        ],
    ),
)
def test_a_defect_in_the_loop_ends_the_daemon_and_no_limit(pair: Pair, tmp_path: Path, target: str) -> None:
    """A defect in the loop: exit 1 with its trace, the limit stands even with on_exit: remove, the next start adopts it."""
    with rig(pair.near.namespace, tmp_path, FAST, "on_exit: remove") as daemon:
        spoilt = Spoilt(daemon, target, DEFECT)
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        spoilt.on()
        assert daemon.process is not None
        with contextlib.suppress(PeerError):  # the answer dies with the daemon
            daemon.ask("limit", interface="eth0", rate_bps=5_000_000, reason="test")
            daemon.status()
        assert daemon.process.wait(5) == 1
        assert "stopped by a defect: RuntimeError: planted" in daemon.log()
        assert daemon.root() == "htb 1d1d:"
        spoilt.off()
        daemon.start()
        daemon.wait_phase("limited")


_LOSE_CAPABILITY = """
import ctypes, pathlib
from limiterd.kernel.tc import TcKernel
whole, switch, libc = TcKernel.apply, pathlib.Path({switch!r}), ctypes.CDLL(None, use_errno=True)
def wield(able):  # capset(2): CAP_NET_ADMIN (12) out of, or back into, the effective set of this thread
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, sets) == 0
    sets[0] = sets[0] | 1 << 12 if able else sets[0] & ~(1 << 12)
    assert libc.capset(head, sets) == 0, ctypes.get_errno()
def apply(self, actions):
    wield(not switch.exists())
    try:
        return whole(self, actions)
    finally:
        wield(True)
TcKernel.apply = apply
"""


def test_a_capability_that_is_lost(pair: Pair, tmp_path: Path) -> None:
    """CAP_NET_ADMIN lost while running (EPERM mid-operation): phase fault, reason permission; back again, the limit comes."""
    switch = tmp_path / "lost"
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        plant(daemon, _LOSE_CAPABILITY.format(switch=str(switch)))
        daemon.confined = False  # the filter would not let it take its own capability away
        daemon.start()
        switch.touch()
        daemon.ask("limit", interface="eth0", reason="test")
        daemon.wait_phase("fault")
        assert daemon.status()["faults"][0]["reason"] == "permission"
        assert daemon.metrics()['limiterd_kernel_errors_total{errno="EPERM",operation="install"}'] >= 1
        switch.unlink()
        daemon.wait_phase("limited", longest_s=6)


DEFECTS: Final[Sequence[tuple[str, str, Callable[[Rig, str], bool]]]] = (
    (
        "limiterd.daemon.event_log:sentence",
        "thread event_log died",
        lambda daemon, rate: rate in json.dumps(daemon.ask("history")),
    ),
    ("limiterd.store.audit:AuditTrail._write_out", "thread audit died", lambda daemon, rate: holds(daemon, "audit.jsonl", rate)),
    (
        "limiterd.store.crc_store:CrcStore.write",
        "thread journal died",
        lambda daemon, rate: holds(daemon, "journal.json", rate),
    ),
    (
        "limiterd.config.load:load_all",
        "thread reload died",
        lambda daemon, rate: "event=reload " in daemon.log().partition(rate)[2],
    ),
    (
        "limiterd.kernel.sockets:SocketDiag.read",
        "thread evidence died",
        lambda daemon, _: bool(daemon.ask("explain", interface="eth0")),
    ),
    ("limiterd.log:Log._write", "thread log died", lambda daemon, rate: rate in daemon.log()),
    (
        "limiterd.serve.metrics:render",
        "/metrics cannot be made: RuntimeError('planted')",
        lambda daemon, _: get(daemon, "/metrics") == 200,
    ),
)
"""What has a defect, the words of status for it, and how it shows that what is to be done next is done."""


def holds(daemon: Rig, name: str, text: str) -> bool:
    """Whether a file of the daemon's state does."""
    return text in (daemon.state / name).read_text()


def test_a_defect_beside_the_loop_costs_what_it_hit(pair: Pair, tmp_path: Path) -> None:
    """A defect in each thread beside the loop: told, limits change as ever, and what comes next is done again."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        rows = [(Spoilt(daemon, target, DEFECT), says, works) for target, says, works in DEFECTS]
        daemon.start()
        for spoilt, says, works in rows:
            daemon.ask("release", all=True, reason="test")
            spoilt.on()
            provoke(daemon)
            waits(partial(tells, daemon, says), spoilt, daemon)
            spoilt.off()
            waits(partial(works, daemon, provoke(daemon)), spoilt, daemon)
            daemon.wait_phase("limited")
        assert daemon.stop() == 0


def test_a_server_that_a_defect_ends_takes_nothing_with_it(pair: Pair, tmp_path: Path) -> None:
    """A defect in the threads that hold the sockets: what is left says so, limits are kept and repaired, SIGTERM ends it."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        pages, questions = (
            Spoilt(daemon, target, DEFECT)
            for target in ("limiterd.serve.http_server:HttpServer._admit", "limiterd.serve.control:ControlServer._look_after")
        )
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        pages.on()
        with contextlib.suppress(OSError):  # this answer may still come
            get(daemon, "/healthz")
        wait_for(lambda: tells(daemon, "the metrics server ended on an internal error"), "the defect in status")
        questions.on()
        wait_for(lambda: logs(daemon, "the control socket ended by a defect"), "the defect in the log")
        run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"])
        wait_for(lambda: daemon.root() == "htb 1d1d:", "the limit is repaired")
        assert daemon.stop(within_s=2) == 0


RECORD: Final = {"id": "A", "interfaces": ["eth0"], "action": "exempt", "expires": "2099-01-01", "reason": "test"}


def test_a_store_that_fails_is_told_to_who_asked(pair: Pair, tmp_path: Path) -> None:
    """The stores of requests and overrides fail: who asks hears it, nothing has changed, and the next time it works."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        requests, decisions, overrides, revocations = (
            Spoilt(daemon, target, FAULT)
            for target in (
                "limiterd.store.request_store:RequestStore.add",
                "limiterd.store.request_store:RequestStore.save",
                "limiterd.config.override_files:Store.add",
                "limiterd.config.override_files:Store.revoke",
            )
        )
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        filed = refused_once(daemon, requests, "request.add", interface="eth0", until="2099-01-01", reason="test")
        refused_once(daemon, overrides, "override.add", record=RECORD)
        assert daemon.phase() == "exempt"
        refused_once(daemon, revocations, "override.revoke", id="A")
        assert daemon.phase() == "conforming"
        decisions.on()
        daemon.ask(
            "request.approve", id=filed["id"], exempt=True
        )  # the override of the request's id is the approval, and is kept
        assert daemon.phase() == "exempt"
        wait_for(lambda: tells(daemon, "not yet written to the requests"), "the decision that is not in the store of requests")
        decisions.off()
        wait_for(lambda: well(daemon), f"no problem any more: {told(daemon)}")
        assert [request["state"] for request in daemon.ask("request.list")["requests"]] == ["approved"]


def refused_once(daemon: Rig, spoilt: Spoilt, verb: str, **args: object) -> Any:
    """What the question comes to once it works; before, it is refused, and no record has come or gone."""
    before = daemon.ask("override.list"), daemon.ask("request.list"), daemon.phase()
    spoilt.on()
    with pytest.raises(PeerError, match="planted"):
        daemon.ask(verb, **args)
    assert (daemon.ask("override.list"), daemon.ask("request.list"), daemon.phase()) == before
    spoilt.off()
    return daemon.ask(verb, **args)


@pytest.mark.long
def test_a_control_socket_that_cannot_be_made_anew(pair: Pair, tmp_path: Path) -> None:
    """The control socket is removed and cannot be bound: the log and the metrics say so; then it is served again."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        spoilt = Spoilt(daemon, "limiterd.serve.unix_listener:OwnedSocket.bind", FAULT)
        daemon.start()
        spoilt.on()
        Path(daemon.socket).unlink()
        wait_for(lambda: logs(daemon, "text=planted topic=control"), f"the log says so: {daemon.log()}")
        assert daemon.metrics()['limiterd_faults{interface="",reason="other"}'] == 1
        spoilt.off()
        wait_for(daemon.answers, "it is served again")
        wait_for(lambda: well(daemon), "no problem any more")


def test_a_manager_that_does_not_listen(pair: Pair, tmp_path: Path) -> None:
    """Nobody listens on NOTIFY_SOCKET: status says so, limits as ever; when somebody does, pings come."""
    path = str(tmp_path / "notify")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        daemon.environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"}
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        assert daemon.root() == "htb 1d1d:"
        wait_for(lambda: tells(daemon, "systemd cannot be told"), "the problem in status")
        manager.bind(path)
        manager.settimeout(2)
        hear(manager, b"WATCHDOG=1")
        wait_for(lambda: well(daemon), "no problem any more")


def test_counters_that_psutil_cannot_read(pair: Pair, tmp_path: Path) -> None:
    """/proc/net/dev cannot be read where psutil samples: status and metric say so; then the excess is found."""
    with rig(pair.near.namespace, tmp_path, FAST, "sampling: {source: psutil}") as daemon:
        spoilt = Spoilt(daemon, "psutil:net_io_counters", REFUSED)
        daemon.start()
        spoilt.on()
        wait_for(lambda: tells(daemon, "links cannot be sampled: psutil"), "the problem in status")
        assert daemon.metrics()['limiterd_kernel_errors_total{errno="EIO",operation="sample"}'] >= 1
        spoilt.off()
        wait_for(lambda: well(daemon), "no problem any more")
        assert [link["interface"] for link in daemon.status()["links"]] == ["eth0"]


def test_the_watchdog_is_fed_by_the_loop_alone(pair: Pair, tmp_path: Path) -> None:
    """The loop hangs while every other thread lives: the watchdog's pings stop, /healthz says 503, and both come back."""
    path = str(tmp_path / "notify")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(path)
    manager.settimeout(2)
    hang = tmp_path / "hang"
    code = (
        "import pathlib, time\nfrom limiterd.kernel.samplers import NetlinkSampler as S\nwhole = S.sample\n"
        f"def sample(self):\n    while pathlib.Path({str(hang)!r}).exists():\n        time.sleep(0.02)\n    return whole(self)\n"
        "S.sample = sample\n"
    )
    with rig(pair.near.namespace, tmp_path, FAST) as daemon, manager:
        plant(daemon, code)
        daemon.environment = {**daemon.environment, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"}
        daemon.start()
        hear(manager, b"WATCHDOG=1")
        hang.touch()
        wait_for(lambda: not heard(manager), "two seconds without a ping", longest_s=8)
        wait_for(lambda: get(daemon, "/healthz") == 503, "the metrics server says that the loop hangs")
        hang.unlink()
        hear(manager, b"WATCHDOG=1")
        wait_for(lambda: get(daemon, "/healthz") == 200, "the loop is well again")


def hear(manager: socket.socket, message: bytes) -> None:
    """Read notifications until this one; TimeoutError when two seconds bring none at all."""
    while message not in manager.recv(4096):
        pass


def heard(manager: socket.socket) -> bool:
    """Whether there is a ping within two seconds."""
    with contextlib.suppress(TimeoutError):
        hear(manager, b"WATCHDOG=1")
        return True
    return False


def get(daemon: Rig, path: str) -> int:
    """The status of GET on a path of the metrics server."""
    with inside(daemon.namespace), contextlib.closing(http.client.HTTPConnection("127.0.0.1", 9817, timeout=5)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status
