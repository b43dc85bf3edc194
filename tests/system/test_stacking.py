"""Links that stand on each other, from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, run
from tests.rig import FAST, rig


@pytest.mark.root
def test_a_release_names_what_still_limits(pair: Pair, tmp_path: Path) -> None:
    """A macvlan and its parent are limited: either one's release says that the other goes on."""
    for command in ("link add link eth0 name eth1 type macvlan mode bridge", "link set eth1 up"):
        run(pair.near.namespace, ["ip", *command.split()])
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        for name in ("eth0", "eth1"):
            daemon.ask("limit", interface=name, reason="test")
        assert (daemon.link("eth1")["lower"], daemon.link("eth0")["upper"]) == (["eth0"], ["eth1"])
        (message,) = daemon.ask("release", interface="eth1", reason="test")["message"]
        assert message.startswith("eth0, which eth1 sends through, still limits it")
        record = {"id": "R", "interfaces": ["eth1"], "action": "exempt", "expires": "never", "approved_by": "o", "reason": "t"}
        assert message in daemon.ask("override.add", record=record)["warnings"]
        daemon.ask("override.revoke", id="R", reason="test")
        daemon.ask("limit", interface="eth1", reason="test")
        (message,) = daemon.ask("release", interface="eth0", reason="test")["message"]
        assert message == "eth1, which sends through eth0, is still limited itself"
