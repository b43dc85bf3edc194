"""What a fault advises is done, word for word, on the real kernel, and works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, run
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root


def advice(daemon: Rig) -> str:
    """The one fault's text."""
    (fault,) = daemon.status()["faults"]
    return str(fault["message"])


def follow(daemon: Rig) -> None:
    """Run the tc command that the fault names."""
    found = re.search(r"tc qdisc del dev \S+ root", advice(daemon))
    assert found, advice(daemon)
    run(daemon.namespace, found[0].split())


def test_a_root_in_the_place_of_ours(pair: Pair, tmp_path: Path) -> None:
    """Replaced under a limit, with and without takeover: the advised command brings the limit back."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        for policy in (FAST, f"{FAST}, foreign_qdisc: takeover"):
            daemon.configure(policy)
            daemon.ctl("reload")
            run(daemon.namespace, ["tc", "qdisc", "replace", "dev", "eth0", "root", "pfifo"])
            daemon.wait_phase("fault")
            assert "takeover" not in advice(daemon)
            follow(daemon)
            daemon.wait_phase("limited")
            wait_for(lambda: not daemon.status()["faults"], "the fault is over")


def test_a_root_before_ours(pair: Pair, tmp_path: Path) -> None:
    """In the way from the beginning: both ways that are advised work, the setting and the command."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        run(daemon.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "pfifo", "limit", "77"])
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test", check=False)
        daemon.wait_phase("fault")
        assert "or set foreign_qdisc: takeover and reload" in advice(daemon)
        daemon.configure(f"{FAST}, foreign_qdisc: takeover")
        daemon.ctl("reload")
        daemon.wait_phase("limited", longest_s=5)
        daemon.ctl("release", "eth0", "--reason", "test")
        wait_for(lambda: daemon.root() == "pfifo 5:", "the root as it was")
        assert daemon.status()["faults"] == [], "a takeover that works is nothing to warn of"
        daemon.configure(FAST)
        daemon.ctl("reload")
        wait_for(lambda: daemon.status()["faults"], "the warning is back")
        follow(daemon)
        wait_for(lambda: not daemon.status()["faults"], "nothing is in the way")


def test_a_root_that_cannot_be_restored(pair: Pair, tmp_path: Path) -> None:
    """Classes under it: takeover does not help, so it is not advised; the command does."""
    with rig(pair.near.namespace, tmp_path, f"{FAST}, foreign_qdisc: takeover") as daemon:
        run(daemon.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "htb", "default", "1"])
        run(
            daemon.namespace,
            ["tc", "class", "add", "dev", "eth0", "parent", "5:", "classid", "5:1", "htb", "rate", "1gbit", "quantum", "1514"],
        )
        daemon.start()
        wait_for(lambda: daemon.status()["faults"], "the warning")
        assert "takeover" not in advice(daemon)
        follow(daemon)
        wait_for(lambda: not daemon.status()["faults"], "nothing is in the way")
