"""Netlink events: lost, late or absent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, route_in, run
from tests.faults.harness import Spoilt, plant, problems, stopped
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

NO_POLLING = "enforcement: {read_back: 1h}"
REPAIRS = 'limiterd_drift_repairs_total{interface="eth0"}'


def repaired(daemon: Rig, times: int) -> None:
    """Wait until that many repairs were counted."""
    wait_for(lambda: daemon.metrics()[REPAIRS] >= times, f"repair {times}", longest_s=3)


UNDOINGS = (
    ("class change dev eth0 parent 1d1d: classid 1d1d:1 htb rate 999mbit burst 64k",),
    ("qdisc replace dev eth0 parent 1d1d:20 handle 99: pfifo limit 5",),
    ("class del dev eth0 classid 1d1d:20",),
    ("qdisc del dev eth0 root", "qdisc add dev eth0 root handle 1d1d: htb default 1"),
    ("qdisc del dev eth0 root",),
)
"""Foreign hands on a limit, as tc commands: rate, queue, class, default class, root; as many as are no fight yet."""


def shown(daemon: Rig) -> list[str]:
    """The limit as tc shows it, but for its counters."""
    return [
        re.sub(r"direct_packets_stat \d+|refcnt \d+", "", run(daemon.namespace, ["tc", what, "show", "dev", "eth0"]).stdout)
        for what in ("qdisc", "class")
    ]


def undo_and_see(daemon: Rig) -> None:
    """Undo a standing limit in every way: each time it comes to stand as it did."""
    whole = shown(daemon)
    for times, commands in enumerate(UNDOINGS, start=1):
        with stopped(daemon):  # it sees what all the commands leave
            for command in commands:
                run(daemon.namespace, ["tc", *command.split()])
            assert shown(daemon) != whole
        repaired(daemon, times)
        daemon.wait_phase("limited")
        assert shown(daemon) == whole


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


def test_polling_repairs_when_no_event_comes(pair: Pair, tmp_path: Path) -> None:
    """Events lost with polling on: whatever foreign hands undo unseen is put right by the next look, and counted."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        plant(daemon, "from limiterd.kernel.events import Events, EventSocket\nEventSocket.drain = lambda self: Events()\n")
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        undo_and_see(daemon)


def test_events_repair_when_nothing_is_polled(pair: Pair, tmp_path: Path) -> None:
    """Polling off with events on: whatever foreign hands undo is put right and counted, and new links are watched."""
    with rig(pair.near.namespace, tmp_path, FAST, NO_POLLING) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        undo_and_see(daemon)
        run(pair.near.namespace, ["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "other"])
        daemon.wait_phase("conforming", "eth1", longest_s=2)


def test_limits_are_looked_after_while_nothing_can_be_sampled(pair: Pair, tmp_path: Path) -> None:
    """Sampling fails and events are lost: standing limits are still read back and repaired, and the failure shows."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        spoilt = Spoilt(
            daemon,
            "limiterd.kernel.samplers:NetlinkSampler.sample",
            "EnvironmentFault('no sample', operation='sample', errno_name='EIO')",
        )
        plant(daemon, "from limiterd.kernel.events import Events, EventSocket\nEventSocket.drain = lambda self: Events()\n")
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        spoilt.on()
        wait_for(lambda: "no sample" in problems(daemon), "the problem in status")
        shown = daemon.metrics()
        assert shown['limiterd_kernel_errors_total{errno="EIO",operation="sample"}'] >= 1
        assert shown['limiterd_faults{interface="",reason="no_answer"}'] == 1
        run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"])
        repaired(daemon, 1)
        spoilt.off()
        wait_for(lambda: problems(daemon) == "", "no problem any more")
        daemon.wait_phase("limited")


def test_a_first_sample_that_is_dropped_costs_no_adoption(pair: Pair, tmp_path: Path) -> None:
    """The first sample of a start is dropped (a starved machine): the standing limit is adopted with the next one."""
    with rig(pair.near.namespace, tmp_path, FAST, NO_POLLING) as daemon:
        daemon.start()
        daemon.ask("limit", interface="eth0", reason="test")
        daemon.stop()
        for path in (tmp_path / "state").glob("journal*"):
            path.unlink()
        plant(
            daemon,
            "from limiterd.kernel.samplers import NetlinkSampler as S\n"
            "whole, calls = S.sample, []\n"
            "S.sample = lambda self: calls.append(1) or (whole(self) if len(calls) > 1 else None)\n",
        )
        daemon.start()
        assert daemon.wait_phase("limited")["reason"] == "adopted"
