"""What changes about a link under its limit, mostly without an event: the sizes of its packets, its queues, its features."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet, run
from tests.rig import Rig, measured_bps, rig
from tests.world import MBIT

pytestmark = [pytest.mark.root, pytest.mark.serial]

BIG_BYTES = 196_608


def limited(daemon: Rig, rate_mbit: int) -> None:
    """Start, and limit eth0 by hand."""
    daemon.start()
    daemon.ask("limit", interface="eth0", rate_bps=rate_mbit * MBIT, reason="test")
    daemon.wait_phase("limited")


@pytest.mark.parametrize("rate_mbit", [20, 50, 100, 200])
def test_big_tcp_under_a_standing_limit(lab: PrivateNet, pair: Pair, tmp_path: Path, rate_mbit: int) -> None:
    """Packets of 192 KiB are allowed after the daemon's start, which no event tells: after 2 s at least 90 % of the limit."""
    policy = f"detect: {{threshold: 1gbit}}, limit: {{rate: {rate_mbit}mbit}}"
    with rig(pair.near.namespace, tmp_path, policy) as daemon:
        limited(daemon, rate_mbit)
        for end, size in ((pair.near, "gso_max_size"), (pair.far, "gro_max_size")):
            run(end.namespace, ["ip", "link", "set", end.ifname, size, str(BIG_BYTES)])
        flow = lab.tcp(pair.near, pair.far, host=pair.far.v6)
        time.sleep(2)
        assert measured_bps(daemon.class_bytes, 3) >= 0.9 * rate_mbit * MBIT
        assert daemon.phase() == "limited"
        assert daemon.metrics()['limiterd_drift_repairs_total{interface="eth0"}'] == 0
        flow.stop()


CHANGES = (
    "ip link set eth0 gso_ipv4_max_size 196608",
    "ip link set eth0 gso_max_size 16384",
    "ip link set eth0 gso_max_segs 4",
    "ip link set eth0 mtu 9000",
    "ip link set eth0 mtu 600",
    "ip link set eth0 txqueuelen 1",
    "ethtool -K eth0 gso off tso off gro off",
    "ethtool -L eth0 tx 2 rx 2",
)


@pytest.mark.parametrize("change", CHANGES)
def test_another_size_under_a_standing_limit(lab: PrivateNet, pair: Pair, tmp_path: Path, change: str) -> None:
    """Whatever is changed: new connections have at least 90 % of the limit 2 s later, and nothing counts as repaired."""
    with rig(pair.near.namespace, tmp_path, "detect: {threshold: 1gbit}, limit: {rate: 50mbit}") as daemon:
        limited(daemon, 50)
        try:
            run(pair.near.namespace, change.split())
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip(f"this kernel has no such setting for eth0, or this machine no tool for it: {change}")
        flow = lab.tcp(pair.near, pair.far, streams=2)
        time.sleep(2)
        assert measured_bps(daemon.class_bytes, 2) >= 0.9 * 50 * MBIT
        assert daemon.phase() == "limited"
        assert daemon.metrics()['limiterd_drift_repairs_total{interface="eth0"}'] == 0
        flow.stop()
