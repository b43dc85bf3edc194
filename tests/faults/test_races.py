"""Foreign hands between our reading and our writing, on the real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, run
from tests.faults.harness import WRITING, Held, later
from tests.netns import wait_for
from tests.rig import FAST, rig

pytestmark = pytest.mark.root


def tc(pair: Pair, words: str) -> None:
    """Somebody else's tc."""
    run(pair.near.namespace, ["tc", *words.split()])


def test_a_foreign_root_appears_before_an_install(pair: Pair, tmp_path: Path) -> None:
    """Foreign root between read and write of an install: not touched, phase fault; when it goes the limit comes."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        gate = Held(daemon, WRITING)
        daemon.start()
        gate.on()
        later(daemon, "limit", interface="eth0", reason="test")
        gate.wait()
        tc(pair, "qdisc add dev eth0 root handle 5: pfifo limit 77")
        gate.off()
        daemon.wait_phase("fault")
        assert daemon.root() == "pfifo 5:"
        assert daemon.status()["faults"][0]["reason"] == "foreign_qdisc"
        tc(pair, "qdisc del dev eth0 root")
        daemon.wait_phase("limited", longest_s=3)


def test_a_foreign_root_takes_our_place_before_a_release(pair: Pair, tmp_path: Path) -> None:
    """Foreign root between read and write of a release: left alone and warned of; the link is released, without a fault."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        gate = Held(daemon, WRITING)
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        gate.on()
        later(daemon, "release", interface="eth0", reason="test")
        gate.wait()
        tc(pair, "qdisc replace dev eth0 root handle 5: pfifo limit 77")
        gate.off()
        daemon.wait_phase("conforming")
        assert daemon.root() == "pfifo 5:"
        (told,) = daemon.status()["faults"]
        assert (told["reason"], told["warning"]) == ("foreign_qdisc", True)


def test_our_root_goes_before_a_change(pair: Pair, tmp_path: Path) -> None:
    """Our root deleted between read and write of a change: built anew at the new rate."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        gate = Held(daemon, WRITING)
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        gate.on()
        later(daemon, "limit", interface="eth0", rate_bps=7_000_000, reason="test")
        gate.wait()
        tc(pair, "qdisc del dev eth0 root")
        gate.off()
        assert daemon.wait_phase("limited", longest_s=4)["limit_bps"] == 7_000_000


@pytest.mark.parametrize("verb", ["limit", "release"])
def test_the_link_goes_before_a_write(pair: Pair, tmp_path: Path, verb: str) -> None:
    """ENODEV: the link vanishes between read and write: no fault; what was decided waits for it, the daemon goes on."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        gate = Held(daemon, WRITING)
        daemon.start()
        if verb == "release":
            daemon.ask("limit", interface="eth0", reason="test")
        gate.on()
        later(daemon, verb, interface="eth0", reason="test")
        gate.wait()
        run(pair.near.namespace, ["ip", "link", "del", "eth0"])
        gate.off()
        after = {"limit": "absent", "release": "gone"}[verb]
        wait_for(lambda: daemon.phase() == after and not daemon.status()["faults"], f"eth0 is {after}, without a fault")
