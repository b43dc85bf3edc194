"""The kernel keeps the daemon waiting: somebody else holds the lock that tc needs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet, join
from tests.faults.harness import EXCESS_BPS, QUICK, READING, Held
from tests.netns import wait_for
from tests.rig import rig

pytestmark = [pytest.mark.root, pytest.mark.slow]

GAPS = 'limiterd_epochs_total{reason="gap"}'


def test_sampling_goes_on_while_tc_is_stuck(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Reading a limit takes over 1.5 s: other links are sampled all the while, no window is lost, excess is found at its time."""
    join(pair.near.namespace, lab.namespace(), "eth1", "eth0", number=2)
    with rig(pair.near.namespace, tmp_path, QUICK, "sampling: {max_gap: 500ms}") as daemon:
        reading = Held(daemon, READING)
        daemon.start()
        daemon.ask("limit", interface="eth1", reason="test")
        gaps = daemon.metrics()[GAPS]
        reading.on()
        reading.wait()
        flow = lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        wait_for(lambda: 8 * flow.stats()["received_bytes"] > 1.5 * EXCESS_BPS, "a second and a half of traffic")
        reading.off()
        daemon.wait_phase("limited")
        assert daemon.metrics()[GAPS] == gaps, daemon.log()
        entries = wait_for(lambda: daemon.ask("history", interface="eth0", kinds=["limit"])["entries"], "the entry in the trail")
        samples = entries[0]["fields"]["samples"]
        stamps = [t_ns for t_ns, _ in samples]
        assert max(b - a for a, b in pairwise(stamps)) < 500_000_000
