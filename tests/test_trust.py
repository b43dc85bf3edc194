"""Files and directories that others could have written: named, never followed, never waited for, never given away by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from limiterd.core.model import Journal, StrikeRecord
from limiterd.replay.plot import Curve, draw
from limiterd.sim.netns import Pair
from limiterd.store.journal import JournalStore
from limiterd.trusted_files import untrusted_directory
from tests.netns import wait_for
from tests.rig import FAST, rig

ONE = Journal(strike_records=(StrikeRecord("eth0", "", 1, 1),))


def test_a_directory_that_others_may_write_is_named(tmp_path: Path) -> None:
    """By mode, and by what it is; one that is not there yet is no fault."""
    assert untrusted_directory(str(tmp_path / "none")) is None
    assert untrusted_directory(str(tmp_path)) is None
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "can be written by others (mode 0777); chmod go-w it" in str(untrusted_directory(str(tmp_path / "open")))
    (tmp_path / "file").touch()
    assert "cannot be trusted" in str(untrusted_directory(str(tmp_path / "file")))


@pytest.mark.root
def test_an_open_state_directory_is_a_fault(pair: Pair, tmp_path: Path) -> None:
    """The daemon starts, and says so in status until it is mended."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.state.mkdir()
        daemon.state.chmod(0o777)
        daemon.start()
        wait_for(lambda: "chmod go-w it; until then others can change" in str(daemon.status()["faults"]), "the fault")
        daemon.state.chmod(0o750)
        wait_for(lambda: not daemon.status()["faults"], "no fault any more")


@pytest.mark.parametrize("kind", ["fifo", "open", "directory"])
def test_limiterctl_never_waits_for_its_configuration(tmp_path: Path, kind: str) -> None:
    """A fifo, a directory or a file that others may write in its place: one sentence, and the default socket."""
    path = tmp_path / "limiterd.yaml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_text(f"control: {{socket: {tmp_path}/evil}}\n")
        path.chmod(0o666)
    command = [sys.executable, "-m", "limiterd.cli", "requests", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3
    assert f"{path}: " in done.stderr
    assert "trying the default socket" in done.stderr
    assert f"{tmp_path}/evil" not in done.stderr


def test_a_plot_follows_no_link(tmp_path: Path) -> None:
    """A link in the place of the drawing is replaced; what it led to is as it was."""
    pytest.importorskip("matplotlib")
    target, path = tmp_path / "target", tmp_path / "plot.svg"
    target.write_text("precious")
    path.symlink_to(target)
    draw([Curve("eth0", ((0, 10**9, 1000),), ())], str(path), title="x")
    assert target.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_bytes().startswith(b"<?xml")


@pytest.mark.usefixtures("real_root")
def test_what_root_writes_for_the_daemon_stays_the_daemons(tmp_path: Path) -> None:
    """The file's owner is kept without a name being given away; a link in its place is nobody's."""
    JournalStore(tmp_path).save_now(ONE)
    path = tmp_path / "journal.json"
    os.chown(path, 65_532, 65_532)
    JournalStore(tmp_path, keep_owner=True).save_now(ONE)
    assert (path.stat().st_uid, path.stat().st_gid) == (65_532, 65_532)
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_text("root's")
    path.symlink_to(victim)
    JournalStore(tmp_path, keep_owner=True).save_now(ONE)
    assert (victim.read_text(), victim.stat().st_uid, path.lstat().st_uid) == ("root's", 0, 0)


@pytest.mark.root
def test_the_log_says_what_the_trail_lacks_at_the_end(pair: Pair, tmp_path: Path) -> None:
    """A disk that refuses to the last: the log's last lines name how much is lost, with the head that --verify then misses."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        trail = daemon.state / "audit.jsonl"
        aside = trail.rename(daemon.state / "aside")
        trail.mkdir()
        daemon.stop()
        line = next(line for line in daemon.log().splitlines() if "event=unsaved" in line)
        assert "of the audit trail are lost with this process" in line
        head = line.partition("audit_head=")[2].split()[0]
        trail.rmdir()
        aside.rename(trail)
        assert daemon.ctl("history", "--verify", check=False).returncode == 0
        assert "NOT complete" in daemon.ctl("history", "--verify", "--head", head, check=False).stdout
