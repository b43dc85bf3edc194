"""What is missing or wrong from the start: each gets one clear sentence and its documented exit status."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet, inside, run
from tests.machine import MachineTooSlow
from tests.netns import wait_for
from tests.rig import FAST, METRICS, Rig, measured_bps, rig

pytestmark = pytest.mark.root

DAEMON = [sys.executable, "-m", "limiterd.daemon"]
WITHOUT_NET_ADMIN = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]


def attempt(daemon: Rig, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end inside the rig's namespace."""
    return run(daemon.namespace, [*command, "--config", str(daemon.config)], check=False)


def test_without_the_capability_an_enforcing_daemon_refuses(pair: Pair, tmp_path: Path) -> None:
    """No CAP_NET_ADMIN: exit 77 and one sentence that names it and the way out."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        done = attempt(daemon, *WITHOUT_NET_ADMIN, *DAEMON)
        assert done.returncode == 77
        assert done.stderr.count("\n") == 1
        assert "CAP_NET_ADMIN" in done.stderr
        assert "mode: observe" in done.stderr


def test_observing_needs_no_capability(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """mode: observe runs without CAP_NET_ADMIN, detects, and touches nothing."""
    policy = f"mode: observe, {FAST}"
    with rig(pair.near.namespace, tmp_path, policy) as daemon:
        before = daemon.root()
        with inside(pair.near.namespace), (tmp_path / "log").open("ab") as log:
            daemon.process = subprocess.Popen([*WITHOUT_NET_ADMIN, *DAEMON, "--config", str(daemon.config)], stderr=log)
        wait_for(daemon.answers, "the daemon answers", longest_s=10)
        lab.tcp(pair.near, pair.far, rate_bps=200_000_000)
        name = 'limiterd_detections_total{interface="eth0",reason="sustained"}'
        wait_for(lambda: daemon.metrics()[name] >= 1, "a detection", longest_s=10)
        assert daemon.root() == before
        wait_for(lambda: "would be limited" in daemon.log(), "the log line")


@pytest.mark.parametrize("text", ["policies: [{mode: enfroce}]\n", "policies: [\n", "sampling: {interval: 100}\n"])
def test_an_invalid_configuration_is_exit_78(pair: Pair, tmp_path: Path, text: str) -> None:
    """Invalid: exit 78, every problem with file:line:column, for the daemon, --check and limiterctl check alike."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.config.write_text(text)
        for command in (DAEMON, [*DAEMON, "--check"], [sys.executable, "-m", "limiterd.cli", "check"]):
            done = attempt(daemon, *command)
            assert done.returncode == 78, done
            assert re.search(rf"{re.escape(str(daemon.config))}:[12]:[0-9]+: ", done.stderr + done.stdout)


def test_the_journal_gets_every_problem_as_an_error(tmp_path: Path) -> None:
    """Under systemd each line of a refused start begins with the priority by which journalctl finds errors."""
    config = tmp_path / "limiterd.yaml"
    config.write_text("sampling: {interval: 100}\npolicies: [{mode: enfroce}]\n")
    under_systemd = ["sh", "-c", 'JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) exec "$@"', "sh"]
    done = subprocess.run([*under_systemd, *DAEMON, "--config", config], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 78
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [f"<3>{config}:1:22", f"<3>{config}:2:19"]


def test_an_absent_link_is_taken_up_when_it_appears(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """A policy's literal name without a link is absent in status; the link is watched within a second of its birth."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.config.write_text(daemon.config.read_text().replace("['eth*']", "['eth0', 'late0']"))
        daemon.start()
        assert daemon.phase("late0") == "absent"
        run(pair.near.namespace, ["ip", "link", "add", "late0", "type", "veth", "peer", "name", "peer0"])
        daemon.wait_phase("conforming", "late0", longest_s=1)
        run(pair.near.namespace, ["ip", "link", "del", "late0"])
        daemon.wait_phase("absent", "late0", longest_s=1)


def test_a_taken_metrics_port_does_not_stop_enforcement(pair: Pair, tmp_path: Path) -> None:
    """The port is somebody else's: enforcement goes on, the fault is shown and logged; freed, the server comes up."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        with inside(pair.near.namespace):
            holder = socket.create_server(("127.0.0.1", int(METRICS.rpartition(":")[2])))
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        assert daemon.phase() == "limited"
        faults = wait_for(lambda: daemon.status()["faults"], "the fault", longest_s=5)
        assert "9817" in faults[0]["message"]
        assert "9817" in daemon.log()
        holder.close()
        wait_for(lambda: not daemon.status()["faults"], "the server is up", longest_s=40)
        assert daemon.metrics()['limiterd_interface_phase{interface="eth0",phase="limited"}'] == 1


def test_less_than_a_window_at_full_speed_never_limits(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Nine tenths of a window as fast as the machine goes, then silence: conforming, however fast it was."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        flow = lab.tcp(pair.near, pair.far, 0, streams=2)
        began = time.monotonic()
        flow.set_rate(None)
        rate_bps = measured_bps(lambda: daemon.link()["tx_bytes"], 1.8)
        flow.set_rate(0)
        if time.monotonic() - began > 2 or rate_bps < 3e8:
            raise MachineTooSlow("less than 2 s at three times the threshold were wanted")
        wait_for(lambda: daemon.link()["rate_bps"] < 10**6, "silence")
        assert daemon.phase() == "conforming"
        assert daemon.metrics()['limiterd_detections_total{interface="eth0",reason="sustained"}'] == 0


def test_check_says_that_a_file_is_good(tmp_path: Path) -> None:
    """The shipped configuration is valid: one line into a pipe and exit 0, or exit 1 where the line gets lost."""
    shipped = Path(__file__).parents[2] / "config" / "limiterd.yaml"
    config = tmp_path / "limiterd.yaml"
    config.write_bytes(shipped.read_bytes())
    command = [*DAEMON, "--check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{config}: valid, 1 policies, ")
    with Path("/dev/full").open("wb") as full:
        lost = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert lost.returncode == 1
    assert lost.stderr.endswith("limiterd: the output could not be written: No space left on device\n")


def test_cleaning_up_without_the_capability_is_exit_77(pair: Pair, tmp_path: Path) -> None:
    """--cleanup that may not touch the kernel says so, whether a limit is there or not."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        done = attempt(daemon, *WITHOUT_NET_ADMIN, *DAEMON, "--cleanup")
    assert done.returncode == 77
    assert done.stderr == "limiterd: --cleanup needs CAP_NET_ADMIN; run it as root\n"


NO_NETLINK = """
import ctypes, os, platform, struct, sys
# seccomp(2): socket(AF_NETLINK, …) fails with EPERM, all else is allowed.
nr = {"x86_64": 41, "aarch64": 198}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, nr), (0x20, 0, 0, 16), (0x15, 0, 1, 16)]
steps += [(0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *step) for step in steps)
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.executable, [sys.executable, "-m", "limiterd.daemon", *sys.argv[1:]])
"""


def test_where_netlink_is_refused_psutil_observes(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """No AF_NETLINK at all: links are sampled by psutil, detections go on, and the degraded mode shows."""
    with rig(pair.near.namespace, tmp_path, f"mode: observe, {FAST}") as daemon:
        with inside(pair.near.namespace), (tmp_path / "log").open("ab") as log:
            command = [sys.executable, "-c", NO_NETLINK, "--config", str(daemon.config)]
            daemon.process = subprocess.Popen(command, stderr=log)
        wait_for(daemon.answers, "the daemon answers", longest_s=10)
        assert daemon.status()["source"] == "psutil"
        lab.tcp(pair.near, pair.far, rate_bps=200_000_000)
        name = 'limiterd_detections_total{interface="eth0",reason="sustained"}'
        wait_for(lambda: daemon.metrics()[name] >= 1, "a detection", longest_s=10)
        assert [f["reason"] for f in daemon.status()["faults"] if "netlink is refused" in f["message"]] == ["other"]
        daemon.configure(FAST)
        daemon.ask("reload")
        wait_for(lambda: 'limiterd_faults{interface="",reason="permission"}' in daemon.metrics(), "an enforcing policy lacks tc")
