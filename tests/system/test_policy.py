"""The policy as published, at full scale, on a real interface with real traffic."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet
from tests.machine import Sent
from tests.netns import wait_for
from tests.rig import rig, shaped_bps

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.serial]

GBIT = 10**9
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
    with rig(pair.near.namespace, tmp_path) as daemon, Sent(pair.near) as sent:
        before = daemon.root()
        daemon.start()
        begun_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        flow = lab.tcp(pair.near, pair.far, rate_bps=1_500_000_000, streams=2)
        wait_for(lambda: daemon.phase() == "pending", "pending")
        wait_for(lambda: daemon.phase() == "limited", "limited", pause_s=0.02)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        fired_ns = now_ns - time.time_ns() + int(datetime.fromisoformat(daemon.link()["since"]).timestamp() * 1e9)
        sent.must_have_held(GBIT, sent.onset_ns(GBIT) + 2 * 10**8, fired_ns)
        assert (fired_ns - begun_ns) / 1e9 > 10.0
        assert (now_ns - sent.onset_ns(GBIT)) / 1e9 <= 10.9
        assert daemon.root() == "htb 1d1d:"
        time.sleep(1)  # the first second belongs to the queue's settling
        shares = [bps / 200e6 for bps in shaped_bps(daemon, 5)]
        assert 0.98 <= max(shares) <= 1.02  # a busy kernel serves a queue late, and no one's too soon
        link, metrics = daemon.link(), daemon.metrics()
        assert link["limit_bps"] == 200_000_000
        assert metrics['limiterd_interface_limit_bytes_per_second{interface="eth0"}'] == 25_000_000
        assert metrics['limiterd_interface_phase{interface="eth0",phase="limited"}'] == 1
        (daemon.overrides / "one.yaml").write_text(OVERRIDE)
        daemon.ctl("reload")
        wait_for(lambda: flow.stats() and daemon.link()["rate_bps"] > GBIT, "full rate", longest_s=3)
        wait_for(lambda: daemon.root() == before, "the previous root", longest_s=2)
        assert daemon.phase() == "exempt"
