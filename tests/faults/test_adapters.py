"""An exception planted in each adapter: the daemon degrades loudly, or stops with exit 1 and leaves its limits standing."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from pathlib import Path
from typing import Final

import pytest

from limiterd.core.errors import PeerError
from limiterd.kernel.lab import Pair, inside, run
from tests.faults.harness import Spoilt, plant, problems, some
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

FAULT: Final = "EnvironmentFault('planted', operation='planted', errno_name='EIO')"
SILENCE: Final = "EnvironmentFault('planted', operation='apply', errno_name='ETIMEDOUT')"
DEFECT: Final = "RuntimeError('planted')"


def provoke(daemon: Rig) -> None:
    """Make every adapter do something: a repair, a change, a reload by signal."""
    run(daemon.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)
    daemon.ask("limit", interface="eth0", rate_bps=5_000_000, reason="test")
    daemon.hang_up()


@pytest.mark.parametrize(
    ("target", "error", "says"),
    some(
        4,
        [
            ("limiterd.kernel.samplers:NetlinkSampler.sample", FAULT, "links cannot be sampled: planted"),
            ("limiterd.kernel.tc:TcKernel.apply", SILENCE, "failed with ETIMEDOUT"),
            ("limiterd.kernel.events:EventSocket.drain", FAULT, "by polling alone: planted"),
            ("limiterd.recordfile:RecordFile.write", DEFECT, "thread journal died"),
            ("limiterd.kernel.tc:TcKernel.read", FAULT, "the kernel did not answer"),
            ("limiterd.kernel.tc:TcKernel.apply", FAULT, "failed with EIO"),
            ("limiterd.recordfile:RecordFile.write", FAULT, "planted"),
            ("limiterd.config:load_all", DEFECT, "thread reload died"),
            ("limiterd.kernel.sockets:SocketDiag.read", FAULT, "planted"),
        ],
    ),
)
def test_a_failing_adapter_is_told_and_survived(pair: Pair, tmp_path: Path, target: str, error: str, says: str) -> None:
    """An adapter raises: the daemon goes on, status says what is degraded, and when it works again the limit is whole."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        spoilt = Spoilt(daemon, target, error)
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        spoilt.on()
        provoke(daemon)
        wait_for(lambda: says in problems(daemon), f"status says {says!r}; {problems(daemon)}; {daemon.log()}")
        spoilt.off()
        daemon.wait_phase("limited", longest_s=6)
        assert daemon.root() == "htb 1d1d:"
        if error is not DEFECT:  # what a thread died of stays to be reported
            wait_for(lambda: problems(daemon) == "", f"no problem any more: {problems(daemon)}")


@pytest.mark.parametrize(
    "target",
    some(
        1,
        [
            "limiterd.core.status:frame",
            "limiterd.kernel.samplers:NetlinkSampler.sample",
            "limiterd.journal:JournalStore.save",
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


def test_the_history_goes_on_after_a_defect_in_it(pair: Pair, tmp_path: Path) -> None:
    """A defect while an event is written down: that event is lost and told, the next ones are written again."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        spoilt = Spoilt(daemon, "limiterd.audit:AuditTrail.append", DEFECT)
        daemon.start()
        spoilt.on()
        daemon.ask("limit", interface="eth0", reason="first")
        wait_for(lambda: "thread chronicle died" in problems(daemon), "the defect in status")
        spoilt.off()
        daemon.ask("limit", interface="eth0", rate_bps=5_000_000, reason="second")
        wait_for(lambda: "second" in json.dumps(daemon.ask("history")), "the second limit in the history")


def test_sighup_works_after_a_defect_in_a_reload(pair: Pair, tmp_path: Path) -> None:
    """A defect in one reload: told; the next SIGHUP reloads."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        spoilt = Spoilt(daemon, "limiterd.config:load_all", DEFECT)
        daemon.start()
        before = daemon.status()["config"]["sha256"]
        spoilt.on()
        daemon.hang_up()
        wait_for(lambda: "thread reload died" in problems(daemon), "the defect in status")
        spoilt.off()
        daemon.configure(extra="log: {level: debug}")
        daemon.hang_up()
        wait_for(lambda: daemon.status()["config"]["sha256"] != before, "the new configuration")


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
        wait_for(lambda: healthz(daemon) == 503, "the metrics server says that the loop hangs")
        hang.unlink()
        hear(manager, b"WATCHDOG=1")
        wait_for(lambda: healthz(daemon) == 200, "the loop is well again")


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


def healthz(daemon: Rig) -> int:
    """The status of GET /healthz."""
    with inside(daemon.namespace), contextlib.closing(http.client.HTTPConnection("127.0.0.1", 9817, timeout=5)) as connection:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
