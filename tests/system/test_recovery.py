"""What survives: restarts, kills, foreign hands, links that come and go."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limiterd.core.model import Config
from limiterd.daemon import cleanup
from limiterd.sim.netns import Pair, PrivateNet, run
from limiterd.store.journal import JournalStore
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root


def limited(daemon: Rig) -> None:
    """Limit eth0 by hand and see it read back."""
    daemon.ctl("limit", "eth0", "--reason", "test")
    assert daemon.phase() == "limited"


def test_restart_adopts_without_a_gap(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """A restart leaves the limit in the kernel untouched and takes since, reason and strikes from the journal."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        limited(daemon)
        flow = lab.udp(pair.near, pair.far, rate_bps=10_000_000)
        wait_for(lambda: daemon.class_bytes() > 100_000, "traffic in the limit")
        flow.stop()
        before, counted = daemon.link(), daemon.class_bytes()
        assert daemon.stop() == 0
        assert daemon.root() == "htb 1d1d:"
        daemon.start()
        after = daemon.wait_phase("limited")
        assert {k: after[k] for k in ("since", "reason", "strikes", "manual")} == {
            k: before[k] for k in ("since", "reason", "strikes", "manual")
        }
        assert daemon.class_bytes() >= counted  # a tree that is built anew counts from nothing
        assert "adopted" in daemon.log()
        assert "repair" not in daemon.log()


def test_kill_leaves_the_limit_and_the_next_start_adopts_it(pair: Pair, tmp_path: Path) -> None:
    """SIGKILL leaves the link shaped; the next start adopts the limit."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        limited(daemon)
        daemon.stop(signal.SIGKILL)
        assert daemon.root() == "htb 1d1d:"
        daemon.start()
        assert daemon.wait_phase("limited")["manual"]


def test_on_exit_remove_lifts_within_two_seconds(pair: Pair, tmp_path: Path) -> None:
    """With on_exit: remove SIGTERM lifts the limit and restores the root before the process ends."""
    with rig(pair.near.namespace, tmp_path, FAST, "on_exit: remove") as daemon:
        before = daemon.root()
        daemon.start()
        limited(daemon)
        assert daemon.stop(within_s=2) == 0
        assert daemon.root() == before


@pytest.mark.parametrize(
    "damage",
    [
        "qdisc del dev eth0 root",
        "class change dev eth0 parent 1d1d: classid 1d1d:1 htb rate 999mbit burst 64k",
        "qdisc del dev eth0 parent 1d1d:20",
        "filter del dev eth0 parent 1d1d:",
    ],
)
def test_foreign_hands_are_repaired(pair: Pair, tmp_path: Path, damage: str) -> None:
    """What others change in a limit is put right at its event, and counted."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        limited(daemon)
        run(pair.near.namespace, ["tc", *damage.split()])
        name = 'limiterd_drift_repairs_total{interface="eth0"}'
        wait_for(lambda: daemon.metrics()[name] == 1, f"a repair of {damage}; {daemon.log()}", longest_s=2)
        daemon.wait_phase("limited", longest_s=2)
        assert daemon.root() == "htb 1d1d:"


def test_foreign_root_instead_of_ours_is_a_fault_not_a_prey(pair: Pair, tmp_path: Path) -> None:
    """Somebody else's root in the place of ours: phase fault, nothing touched; when it goes the limit comes back."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        limited(daemon)
        run(
            pair.near.namespace,
            [
                "tc",
                "qdisc",
                "replace",
                "dev",
                "eth0",
                "root",
                "handle",
                "5:",
                "tbf",
                "rate",
                "1gbit",
                "burst",
                "100k",
                "limit",
                "1m",
            ],
        )
        daemon.wait_phase("fault", longest_s=3)
        assert daemon.root() == "tbf 5:"
        assert daemon.status()["faults"][0]["reason"] == "foreign_qdisc"
        run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"])
        daemon.wait_phase("limited", longest_s=3)


def test_foreign_root_before_is_warned_of_at_once(pair: Pair, tmp_path: Path) -> None:
    """A foreign root on a watched link is a warning in faults while nothing is due, and a fault when a limit is."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        run(pair.near.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "pfifo", "limit", "77"])
        daemon.start()
        assert daemon.phase() == "conforming"
        assert [fault["warning"] for fault in daemon.status()["faults"]] == [True]
        daemon.ctl("limit", "eth0", "--reason", "test", check=False)
        daemon.wait_phase("fault")
        assert daemon.root() == "pfifo 5:"


def test_takeover_restores_exactly(pair: Pair, tmp_path: Path) -> None:
    """foreign_qdisc: takeover replaces a single foreign qdisc and restores it exactly at the release, even over a restart."""
    with rig(pair.near.namespace, tmp_path, f"{FAST}, foreign_qdisc: takeover") as daemon:
        run(pair.near.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "pfifo", "limit", "77"])
        before = daemon.tc("qdisc", "show", "dev", "eth0")
        daemon.start()
        limited(daemon)
        daemon.stop(signal.SIGKILL)
        daemon.start()
        daemon.wait_phase("limited")
        daemon.ctl("release", "eth0", "--reason", "done")
        wait_for(lambda: daemon.tc("qdisc", "show", "dev", "eth0") == before, "the qdisc as it was", longest_s=2)


def test_link_made_anew_is_limited_again(pair: Pair, tmp_path: Path) -> None:
    """The same name and MAC back under the same policy: limited again; another MAC is another link."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        limited(daemon)
        mac = daemon.mac()
        make = ["ip", "link", "add", "eth0", "address"]
        run(pair.near.namespace, ["ip", "link", "del", "eth0"])
        run(pair.near.namespace, [*make, mac, "type", "veth", "peer", "name", "other"])
        daemon.wait_phase("limited", longest_s=2)
        run(pair.near.namespace, ["ip", "link", "del", "eth0"])
        run(pair.near.namespace, [*make, "02:00:00:00:00:99", "type", "veth", "peer", "name", "other"])
        daemon.wait_phase("conforming", longest_s=2)


def test_second_instance_refuses(pair: Pair, tmp_path: Path) -> None:
    """A second daemon on the same socket ends with one sentence; the first goes on."""
    with rig(pair.near.namespace, tmp_path, FAST) as first:
        first.start()
        wait_for(lambda: "started" in first.log(), "the first one's own lines")
        second = Rig(pair.near.namespace, tmp_path, FAST)
        second.start(wait=False)
        assert second.process is not None
        told = len(first.log())
        assert second.process.wait(10) == 1
        (said,) = first.log()[told:].splitlines()  # both write to one file
        assert said.startswith("limiterd: ")
        assert first.socket in said
        assert first.phase() == "conforming"


def cleaned_up(daemon: Rig, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run limiterd --cleanup beside it."""
    command = [sys.executable, "-m", "limiterd.daemon", "--cleanup", *more, "--config", str(daemon.config)]
    return run(daemon.namespace, command, check=check)


def test_cleanup_without_a_daemon(pair: Pair, tmp_path: Path) -> None:
    """limiterd --cleanup removes what a killed daemon left standing, and says so; a second one finds nothing."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        before = daemon.root()
        daemon.start()
        limited(daemon)
        daemon.stop(signal.SIGKILL)
        assert cleaned_up(daemon).stdout.startswith("eth0: ")
        assert daemon.root() == before
        assert cleaned_up(daemon).stdout == "no limit of limiterd is in force in this network namespace\n"


@pytest.mark.parametrize("keep", [False, True])
def test_cleanup_says_audits_and_forgets(pair: Pair, tmp_path: Path, *, keep: bool) -> None:
    """A healthy limit is told as released, by whom and since when, in the trail too; a start knows it only if it was kept."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        before = daemon.root()
        daemon.start()
        limited(daemon)
        daemon.stop()
        said = cleaned_up(daemon, *["--keep-decisions"] * keep).stdout
        assert said.startswith("eth0: full rate again: released by limiterd --cleanup; limited since ")
        assert daemon.root() == before
        assert "released by limiterd --cleanup" in daemon.ctl("history", "eth0", "--json").stdout
        daemon.start()
        daemon.wait_phase("limited" if keep else "conforming")
        assert daemon.ask("history.verify")["intact"] is True


def test_cleanup_beside_a_daemon_is_refused(pair: Pair, tmp_path: Path) -> None:
    """A running daemon would put its limits back: --cleanup says so, exits 1 and touches nothing."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        limited(daemon)
        done = cleaned_up(daemon, check=False)
        assert done.returncode == 1
        assert "stop that one first" in done.stderr
        assert daemon.phase() == "limited"
        assert "repair" not in daemon.log()


def test_cleanup_restores_a_saved_root_once(pair: Pair, tmp_path: Path) -> None:
    """What --cleanup has restored is no longer on record; the journal keeps its owner."""
    with rig(pair.near.namespace, tmp_path, f"{FAST}, foreign_qdisc: takeover") as daemon:
        run(pair.near.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "pfifo", "limit", "77"])
        daemon.start()
        limited(daemon)
        daemon.stop(signal.SIGKILL)
        journal = JournalStore(daemon.state)
        assert journal.load()[0].replaced
        owner = (daemon.state / "journal.json").stat()
        cleaned_up(daemon)
        assert daemon.root() == "pfifo 5:"
        kept, problems = journal.load()
        assert (kept.replaced, problems, kept.decisions, kept.releases) == ((), (), (), ())
        found = (daemon.state / "journal.json").stat()
        assert (found.st_uid, found.st_gid) == (owner.st_uid, owner.st_gid)


def test_cleanup_says_what_it_could_not_read(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged journal and a broken configuration stop no clean-up, and are not passed over in silence."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.state.mkdir()
        (daemon.state / "journal.json").write_text("{")
        assert "journal.json" in cleaned_up(daemon).stderr
        daemon.config.write_text("sampling: {interval: 5}\n")
        assert cleanup._settings(str(daemon.config)) == Config()
        assert f"the default socket and state directory are looked at: {daemon.config}:1:" in capsys.readouterr().err
