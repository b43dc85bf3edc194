"""The kernel keeps the daemon waiting: somebody else holds the lock that tc needs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from limiterd.kernel.lab import Lab, Pair, join
from tests.faults.harness import EXCESS_BPS, QUICK, plant
from tests.netns import wait_for
from tests.rig import rig

pytestmark = [pytest.mark.root, pytest.mark.slow]

_STUCK = """
import pathlib, time
from limiterd.kernel.tc import TcKernel
switch, whole = pathlib.Path({switch!r}), TcKernel.read
def read(self, ifindexes):
    if switch.exists():
        switch.unlink()
        time.sleep(1.5)
    return whole(self, ifindexes)
TcKernel.read = read
"""
GAPS = 'limiterd_epochs_total{reason="gap"}'


def test_sampling_goes_on_while_tc_is_stuck(lab: Lab, pair: Pair, tmp_path: Path) -> None:
    """Reading a limit takes 1.5 s: the other links are sampled all the while, no window is lost, excess is found at its time."""
    join(pair.near.namespace, lab.namespace(), "eth1", "eth0", number=2)
    switch = tmp_path / "stuck"
    with rig(pair.near.namespace, tmp_path, QUICK, "sampling: {max_gap: 500ms}") as daemon:
        plant(daemon, _STUCK.format(switch=str(switch)))
        daemon.start()
        daemon.ask("limit", interface="eth1", reason="test")
        gaps = daemon.metrics()[GAPS]
        switch.touch()
        wait_for(lambda: not switch.exists(), "the limit is read back")
        lab.udp(pair.near, pair.far, rate_bps=EXCESS_BPS)
        daemon.wait_phase("limited")
        assert daemon.metrics()[GAPS] == gaps, daemon.log()
        samples = daemon.ask("history", interface="eth0", kinds=["limit"])["entries"][0]["fields"]["samples"]
        stamps = [t_ns for t_ns, _ in samples]
        assert max(b - a for a, b in pairwise(stamps)) < 500_000_000
