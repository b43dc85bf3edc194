"""Configuration and state: storms of signals, disks that are full or read-only, files that are missing or broken."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from limiterd.sim.netns import Pair, PrivateNet
from tests import needs, smalldisk
from tests.faults.harness import EXCESS_BPS, QUICK, WRITING, Held, descriptors, later, problems, some, threads
from tests.netns import wait_for
from tests.rig import Rig, rig

pytestmark = pytest.mark.root


def test_a_storm_of_sighup(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """1 000 SIGHUPs while the file changes: the last content applies, sampling goes on, threads and descriptors stay bounded."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        held = (threads(pid), descriptors(pid))
        lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        for number in range(1000):
            if number % 20 == 0:
                rate = 5_000_000 + number * 1000
                daemon.configure(QUICK.replace("5mbit", f"{rate}bit"))
            daemon.hang_up()
            time.sleep(0.001)  # a storm, not one signal: pending ones merge
        daemon.hang_up()
        wait_for(lambda: daemon.phase() == "limited" and daemon.link()["limit_bps"] == rate, "the last rate applies")
        assert problems(daemon) == ""
        assert daemon.status()["config"]["error"] is None
        assert daemon.metrics()['limiterd_limits_applied_total{interface="eth0"}'] == 1
        assert not daemon.ask("history", kinds=["released", "repair", "fault"])["entries"]
        wait_for(lambda: threads(pid) <= held[0] + 6 and descriptors(pid) <= held[1] + 6, "threads and descriptors as before")


@pytest.mark.parametrize("verb", ["limit", "release"])
def test_sighup_during_an_apply(pair: Pair, tmp_path: Path, verb: str) -> None:
    """SIGHUP between read and write of an install or a release: both are done, the limit has the new file's rate."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        gate = Held(daemon, WRITING)
        daemon.start()
        if verb == "release":
            daemon.ask("limit", interface="eth0", reason="test")
        before = daemon.status()["config"]["sha256"]
        gate.on()
        later(daemon, verb, interface="eth0", reason="test")
        gate.wait()
        daemon.configure(QUICK.replace("5mbit", "7mbit"))
        daemon.hang_up()
        gate.off()
        wait_for(lambda: daemon.status()["config"]["sha256"] != before, "the new configuration")
        if verb == "limit":
            wait_for(lambda: daemon.link()["limit_bps"] == 7_000_000, "the limit at the new rate")
        assert daemon.wait_phase("limited" if verb == "limit" else "conforming")
        assert daemon.status()["faults"] == []


def test_files_that_are_gone(pair: Pair, tmp_path: Path) -> None:
    """Configuration and overrides vanish: a reload says so and changes nothing; when they are back it works again."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        text = daemon.config.read_text()
        daemon.config.unlink()
        daemon.hang_up()
        wait_for(lambda: "limiterd.yaml" in (daemon.status()["config"]["error"] or ""), "the error in status")
        assert daemon.metrics()["limiterd_config_last_reload_successful"] == 0
        assert daemon.phase() == "limited"
        daemon.config.write_text(text)
        daemon.overrides.rmdir()
        daemon.hang_up()
        wait_for(lambda: daemon.status()["config"]["error"] is None, "no error any more")
        assert daemon.phase() == "limited"


MOUNT: Final = 'mount -t tmpfs -o "mode=700,$1" limiterd-test "$2" && shift 2 && exec "$@"'


def small_disk(daemon: Rig, options: str) -> Callable[[], Path]:
    """Give the daemon a state directory of its own on a tmpfs; the result is where this process sees it while it runs."""
    daemon.state.mkdir()
    daemon.prefix = (*needs.private_mounts(), "sh", "-c", MOUNT, "sh", options, str(daemon.state))

    def seen() -> Path:
        assert daemon.process is not None
        return Path(f"/proc/{daemon.process.pid}/root{daemon.state}")

    return seen


def remount(daemon: Rig, options: str) -> None:
    """Change the options of the daemon's small disk."""
    assert daemon.process is not None
    command = ["nsenter", f"--mount=/proc/{daemon.process.pid}/ns/mnt", "mount", "-o", f"remount,{options}", str(daemon.state)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.usefixtures("real_root")
@pytest.mark.parametrize("trouble", some(1, ["full", "inodes", "read-only"]))
def test_a_disk_that_takes_nothing(lab: PrivateNet, pair: Pair, tmp_path: Path, trouble: str) -> None:
    """State on a full (64 KiB), inode-less or read-only disk: limits come in time, the trouble shows, and ends by itself."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        seen = small_disk(daemon, "size=64k,nr_inodes=16" if trouble == "inodes" else "size=64k")
        daemon.start()
        taken: list[Path] = []
        if trouble == "full":
            taken = [smalldisk.fill(seen())]
        elif trouble == "inodes":
            taken = smalldisk.use_up_inodes(seen())
        else:
            remount(daemon, "ro")
        lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        daemon.wait_phase("limited", longest_s=6)
        wait_for(lambda: "journal" in problems(daemon), f"the trouble in status: {problems(daemon)}")
        assert daemon.metrics()["limiterd_missed_ticks_total"] < 10
        for path in taken:
            path.unlink()
        if trouble == "read-only":
            remount(daemon, "rw")
        wait_for(lambda: problems(daemon) == "", f"no trouble any more: {problems(daemon)}", longest_s=30, pause_s=0.1)
        wait_for(lambda: "eth0" in (seen() / "journal.json").read_text(), "the decision in the journal")


DEEP: Final = "[" * 100_000
STATES: Final = {
    "garbage": "\x00\x01 no journal at all \xff",
    "newer": json.dumps({"limiterd_journal": 99, "records": []}) + "\n",
    "deep": DEEP,
    "empty": "",
    "another kind": json.dumps({"hello": "world"}) + "\n",
}


@pytest.mark.parametrize("kind", some(2, list(STATES)))
def test_a_journal_that_cannot_be_used(pair: Pair, tmp_path: Path, kind: str) -> None:
    """State corrupt, deep, empty or of a newer version: the start succeeds, adopts what stands, and loses no file."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        daemon.stop()
        for name in ("journal.json", "requests.json"):
            (daemon.state / name).write_text(STATES[kind], encoding="latin-1")
        daemon.start()
        assert daemon.wait_phase("limited")["reason"] == "adopted"
        if kind != "empty":
            assert "journal.json" in daemon.log()
            kept = [p for p in daemon.state.iterdir() if p.is_file() and p.read_text(encoding="latin-1") == STATES[kind]]
            assert len(kept) >= 2
        daemon.restart()
        assert daemon.phase() == "limited"


def test_an_invalid_configuration_at_the_start(pair: Pair, tmp_path: Path) -> None:
    """Configuration broken at a start: exit 78 with file, line and column; the limit that stands goes on standing."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        daemon.stop(signal.SIGKILL)
        daemon.config.write_text(daemon.config.read_text() + "sampling: {interval: 100}\n")
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(10) == 78
        assert "limiterd.yaml:6:22: sampling.interval" in daemon.log()
        assert daemon.root() == "htb 1d1d:"
