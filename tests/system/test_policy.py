"""The policy as published, at full scale, on a real interface with real traffic."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet
from tests.netns import wait_for
from tests.rig import measured_bps, rig

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.serial]

OVERRIDE = """overrides:
  - id: REQ-1
    interfaces: [eth0]
    action: exempt
    expires: 2099-01-01
    approved_by: ops@example.net
    reason: backup
"""


def test_policy_at_full_scale(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Over 1.2 Gbit/s of TCP: free for 10.0 s, limited by 10.9 s to 200 Mbit/s ± 2 %; an override lifts it at the reload."""
    with rig(pair.near.namespace, tmp_path) as daemon:
        before = daemon.root()
        daemon.start()
        flow = lab.tcp(pair.near, pair.far, rate_bps=1_500_000_000, streams=2)
        onset = time.clock_gettime(time.CLOCK_BOOTTIME)
        wait_for(lambda: daemon.phase() == "pending", "pending", longest_s=3)
        wait_for(lambda: daemon.phase() == "limited", "limited", longest_s=13, pause_s=0.02)
        took = time.clock_gettime(time.CLOCK_BOOTTIME) - onset
        assert 10.0 <= took <= 10.9
        assert daemon.root() == "htb 1d1d:"
        time.sleep(1)  # the first second belongs to the queue's settling
        shaped = measured_bps(daemon.class_bytes, 5)
        assert shaped == pytest.approx(200e6, rel=0.02)
        link, metrics = daemon.link(), daemon.metrics()
        assert link["limit_bps"] == 200_000_000
        assert metrics['limiterd_interface_limit_bytes_per_second{interface="eth0"}'] == 25_000_000
        assert metrics['limiterd_interface_phase{interface="eth0",phase="limited"}'] == 1
        (daemon.overrides / "one.yaml").write_text(OVERRIDE)
        lifted_at = time.monotonic()
        daemon.ctl("reload")
        wait_for(lambda: flow.stats() and daemon.link()["rate_bps"] > 10**9, "full rate", longest_s=3)
        assert time.monotonic() - lifted_at < 3
        wait_for(lambda: daemon.root() == before, "the previous root", longest_s=2)
        assert daemon.phase() == "exempt"
