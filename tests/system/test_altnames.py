"""Links by their other names, from outside: the real kernel's altnames in a policy, an override and every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from limiterd.core.errors import PeerError
from limiterd.sim.netns import Pair, run
from tests.netns import wait_for
from tests.rig import FAST, rig

pytestmark = pytest.mark.root

OTHER = "enp3s0f0np0"
RECORD = {"id": "REQ-1", "interfaces": [OTHER], "action": "exempt", "expires": "never", "approved_by": "ops", "reason": "test"}


def test_an_altname_is_a_name_everywhere(pair: Pair, tmp_path: Path) -> None:
    """limit, status, explain, history, release and an override by altname; eth0@if2 gets a hint."""
    run(pair.near.namespace, ["ip", "link", "property", "add", "dev", "eth0", "altname", OTHER])
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ask("limit", interface=OTHER, reason="test")
        daemon.wait_phase("limited")
        assert daemon.ask("status", interface=OTHER)["links"][0]["interface"] == "eth0"
        assert daemon.link()["altnames"] == [OTHER]
        assert daemon.ask("explain", interface=OTHER)["link"]["phase"] == "limited"
        assert daemon.ask("history", interface=OTHER)["entries"]
        assert daemon.ctl("status", OTHER).stdout.startswith("eth0 is limited")
        daemon.ask("release", interface=OTHER, reason="test")
        daemon.wait_phase("conforming")
        added = daemon.ask("override.add", record=RECORD)
        assert (added["in_force_on"], added["warnings"]) == (["eth0"], [])
        daemon.wait_phase("exempt")
        with pytest.raises(PeerError, match="say eth0"):
            daemon.ask("explain", interface="eth0@if2")


def test_an_altname_given_and_taken_while_the_daemon_runs(pair: Pair, tmp_path: Path) -> None:
    """A policy for the altname alone: watched within a second of the name, and no more when it is gone."""
    with rig(pair.near.namespace, tmp_path) as daemon:
        by_altname = f"policies: [{{name: other, interfaces: ['{OTHER}'], mode: observe}}, "
        daemon.config.write_text(daemon.config.read_text().replace("policies: [", by_altname))
        daemon.start()
        assert daemon.link()["policy"] == "fair-use"
        for word, policy in (("add", "other"), ("del", "fair-use")):
            run(pair.near.namespace, ["ip", "link", "property", word, "dev", "eth0", "altname", OTHER])
            wait_for(lambda: daemon.link()["policy"] == policy, policy, longest_s=3)  # noqa: B023
