"""Netlink events: lost, late or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from limiterd.kernel.lab import Pair, route_in, run
from tests.faults.harness import plant, stopped
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

NO_POLLING = "enforcement: {read_back: 1h}"
REPAIRS = 'limiterd_drift_repairs_total{interface="eth0"}'


def repaired(daemon: Rig, times: int) -> None:
    """Wait until that many repairs were counted."""
    wait_for(lambda: daemon.metrics()[REPAIRS] >= times, f"repair {times}", longest_s=3)


def test_events_flow_again_after_an_overrun(pair: Pair, tmp_path: Path) -> None:
    """ENOBUFS (tiny buffer, thousands of changes): a resync, counted; what changed meanwhile is found, later events are seen."""
    with rig(pair.near.namespace, tmp_path, FAST, NO_POLLING) as daemon:
        plant(daemon, "import limiterd.kernel.events as events\nevents._RECEIVE_BUFFER_BYTES = 4096\n")
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        with stopped(daemon), route_in(pair.near.namespace) as route:
            for mtu in range(1000):
                route.link("set", index=pair.near.ifindex, mtu=1400 + mtu % 2)
            route.tc("del", "htb", pair.near.ifindex, 0x1D1D0000)
        wait_for(lambda: daemon.metrics()["limiterd_netlink_resyncs_total"] >= 1, "a resync")
        wait_for(lambda: daemon.root() == "htb 1d1d:", "the root that was deleted unseen")
        for repairs in (2, 3):
            run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"])
            repaired(daemon, repairs)
        daemon.wait_phase("limited")
