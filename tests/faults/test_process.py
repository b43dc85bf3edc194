"""The process and its sockets: signals, descriptors, pipes, ports and crowds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from limiterd.sim.netns import Pair, PrivateNet, inside, run
from tests.faults.harness import EXCESS_BPS, QUICK, Echo, descriptors, problems
from tests.netns import LONG, wait_for
from tests.rig import Rig, rig

pytestmark = pytest.mark.root


@pytest.mark.parametrize("on_exit", ["keep", "remove"])
def test_sigterm_under_traffic(lab: PrivateNet, pair: Pair, tmp_path: Path, on_exit: str) -> None:
    """SIGTERM under traffic beyond the limit: gone within 2 s with exit 0, the limit kept or removed as configured."""
    with rig(pair.near.namespace, tmp_path, QUICK, f"on_exit: {on_exit}") as daemon, Echo(pair) as echo:
        default = daemon.root()
        lab.tcp(pair.near, pair.far, rate_bps=15_000_000, streams=2)
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        wait_for(lambda: daemon.class_bytes() > 300_000, "traffic in the limit")
        assert daemon.stop(within_s=2) == 0
        assert daemon.root() == (default if on_exit == "remove" else "htb 1d1d:")
        echo.alive("after the end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_while_it_starts(pair: Pair, tmp_path: Path, number: int) -> None:
    """A signal at any instant of a start that puts a limit back: SIGTERM ends it, traffic passes, the next start limits."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon, Echo(pair) as echo:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        daemon.stop()
        for tenth in range(1, 5):
            run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)
            daemon.start(wait=False)
            assert daemon.process is not None
            time.sleep(tenth / 11)  # another instant of the start each time
            daemon.process.send_signal(number)
            if number == signal.SIGTERM:
                wait_for(daemon.ended, "the end after SIGTERM", longest_s=5)
                assert daemon.process.returncode in {0, -signal.SIGTERM}
            elif daemon.process.poll() is None:
                daemon.stop()
            echo.alive("after the signal")
        daemon.start()
        daemon.wait_phase("limited")


@contextlib.contextmanager
def blocked_pipe(path: Path) -> Iterator[None]:
    """A full named pipe whose reader never reads."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ, fcntl(2)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    try:
        yield
    finally:
        os.close(writer)
        os.close(reader)


def test_a_blocked_stderr(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """A stderr pipe that nobody reads: the daemon starts, samples, limits and ends as ever."""
    pipe = tmp_path / "stderr"
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon, blocked_pipe(pipe):
        daemon.prefix = ("sh", "-c", f'exec "$@" 2>{pipe}', "sh")
        daemon.start()
        lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        daemon.wait_phase("limited", longest_s=8)
        assert daemon.log() == ""
        assert daemon.stop(within_s=5) == 0


CROWD: Final = 500 if LONG else 100


def test_no_descriptor_is_left(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """EMFILE (a limit on descriptors that is used up): sampling and limiting go on; with room again everything answers."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid), before[1]))
        lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        wait_for(lambda: daemon.root() == "htb 1d1d:", "the limit in the kernel", longest_s=8)
        assert daemon.process.poll() is None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        daemon.wait_phase("limited", longest_s=5)
        daemon.metrics()
        wait_for(lambda: problems(daemon) == "", f"no problem any more: {problems(daemon)}")


@pytest.mark.long
def test_a_taken_metrics_port(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """The metrics port is taken at the start: told in status, limits as ever; freed, it is served without a restart."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        with inside(pair.near.namespace):
            squatter = socket.create_server(("127.0.0.1", 9817))
        with squatter:
            daemon.start()
            wait_for(lambda: "9817" in problems(daemon), "the problem in status")
            lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
            daemon.wait_phase("limited", longest_s=8)
        wait_for(lambda: scraped(daemon), "a scrape", longest_s=40)
        wait_for(lambda: problems(daemon) == "", "no problem any more")


def scraped(daemon: Rig) -> bool:
    """Whether a scrape works."""
    with contextlib.suppress(OSError, ValueError):
        return bool(daemon.metrics())
    return False


def test_five_hundred_silent_clients(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """500 control clients (in the suite 100) that say nothing: limits come, limiterctl is served, descriptors are bounded."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon, contextlib.ExitStack() as crowd:
        daemon.start()
        assert daemon.process is not None
        quiet = descriptors(daemon.process.pid)
        lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        refused = 0
        for _ in range(CROWD):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            refused += client.connect_ex(daemon.socket) == errno.EAGAIN
        wait_for(lambda: daemon.root() == "htb 1d1d:", "the limit in the kernel", longest_s=8)
        assert descriptors(daemon.process.pid) < quiet + 80
        assert daemon.wait_phase("limited", longest_s=30)
        assert refused < CROWD
