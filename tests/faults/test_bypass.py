"""Traffic that passes a standing limit by, on the real kernel: found, named, and told from what is honest."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from limiterd.sim.netns import Namespace, Pair, PrivateNet, inside, run
from tests.rig import FAST, Rig, rig
from tests.world import MBIT

pytestmark = [pytest.mark.root, pytest.mark.serial]

LIMIT_BPS: Final = 20 * MBIT
FRAME_BYTES: Final = 1_514
_SOL_PACKET: Final = 263
_PACKET_QDISC_BYPASS: Final = 20
_LOCAL_EXPERIMENTS: Final = 0x88B5


@contextmanager
def beside(namespace: Namespace, rate_bps: int, interface: str = "eth0") -> Iterator[None]:
    """Frames that a packet socket hands to the device without its qdisc, at this rate."""
    with inside(namespace):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    with inside(namespace):
        sender.bind((interface, 0))
    frame = bytes.fromhex("ffffffffffff") + sender.getsockname()[4] + _LOCAL_EXPERIMENTS.to_bytes(2, "big")
    frame += bytes(FRAME_BYTES - len(frame))
    ended = threading.Event()

    def send() -> None:
        begun, sent = time.monotonic(), 0
        while not ended.wait(0.005):
            due = int((time.monotonic() - begun) * rate_bps / 8) // FRAME_BYTES
            for _ in range(due - sent):
                sender.send(frame)
            sent = due

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sender.close()


def foreign_class(daemon: Rig, *, present: bool) -> None:
    """A class of others inside the tree, and a filter that sends all IPv4 to it; or none of them any more."""
    if present:
        words = ("parent", "1d1d:", "classid", "1d1d:99", "htb", "rate", "1gbit", "quantum", "1514")
        daemon_tc(daemon, "class", "add", "dev", "eth0", *words)
        match = ("protocol", "ip", "u32", "match", "u32", "0", "0", "flowid", "1d1d:99")
        daemon_tc(daemon, "filter", "add", "dev", "eth0", "parent", "1d1d:", "prio", "1", *match)
    else:
        daemon_tc(daemon, "filter", "del", "dev", "eth0", "parent", "1d1d:", "prio", "1")
        daemon_tc(daemon, "class", "del", "dev", "eth0", "classid", "1d1d:99")


def daemon_tc(daemon: Rig, *words: str) -> None:
    """What another hand does with tc."""
    run(daemon.namespace, ["tc", *words])


def fault_text(daemon: Rig) -> str:
    """What status says of the bypass, "" where it says nothing."""
    return next((fault["message"] for fault in daemon.status()["faults"] if fault["reason"] == "bypass"), "")


def seconds_until(daemon: Rig, phase: str, longest_s: float) -> float:
    """How long it takes until the link has this phase."""
    begun = time.monotonic()
    daemon.wait_phase(phase, longest_s=longest_s)
    return time.monotonic() - begun


def limited(daemon: Rig) -> None:
    """Start, and limit eth0 by hand."""
    daemon.start()
    daemon.ask("limit", interface="eth0", reason="test")
    daemon.wait_phase("limited")


def told(daemon: Rig) -> int:
    """How often the trail speaks of a bypass."""
    return sum("bypass" in str(entry) for entry in daemon.ask("history", interface="eth0", limit=1000)["entries"])


def test_a_foreign_class_inside_the_limit(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """All traffic goes to a class of others: fault within 5 s, with the class's name; over ten seconds after it has gone."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        limited(daemon)
        flow = lab.udp(pair.near, pair.far, 40 * MBIT)
        foreign_class(daemon, present=True)
        assert seconds_until(daemon, "fault", 10) < 5.5
        assert "class 1d1d:99" in fault_text(daemon)
        assert daemon.metrics()['limiterd_faults{interface="eth0",reason="bypass"}'] == 1
        assert daemon.root() == "htb 1d1d:"
        foreign_class(daemon, present=False)
        assert seconds_until(daemon, "limited", 20) > 8
        assert told(daemon) == 2
        flow.stop()


@pytest.mark.parametrize(("share", "phase"), [(0.4, "fault"), (0.1, "limited")])
def test_a_packet_socket_that_bypasses_qdiscs(lab: PrivateNet, pair: Pair, tmp_path: Path, share: float, phase: str) -> None:
    """Beside TCP at the limit: two fifths of it are a fault within 5 s, a tenth is none in 12."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        limited(daemon)
        flow = lab.tcp(pair.near, pair.far)
        with beside(pair.near.namespace, int(share * LIMIT_BPS)):
            if phase == "fault":
                assert seconds_until(daemon, "fault", 10) < 5.5
                assert "packet sockets" in fault_text(daemon)
            else:
                time.sleep(12)
                assert told(daemon) == 0
                assert daemon.phase() == "limited"
        flow.stop()


def test_honest_traffic_is_no_bypass(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """TCP with GSO, UDP, exempt traffic of many times the limit; another rate, another MTU, a restart, a release: no fault."""
    exempt = "detect: {threshold: 100mbit, window: 2s}, limit: {rate: 20mbit, exempt: [{protocol: udp, to: 10.0.0.0/8}]}"
    with rig(pair.near.namespace, tmp_path, exempt) as daemon:
        limited(daemon)
        flows = [lab.tcp(pair.near, pair.far, streams=2), lab.udp(pair.near, pair.far, 400 * MBIT)]
        time.sleep(5)
        assert daemon.link()["exempt_bps"] > 100 * MBIT
        daemon.configure(exempt.replace("20mbit", "5mbit"))
        daemon.ask("reload")
        time.sleep(4)
        run(pair.near.namespace, ["ip", "link", "set", "eth0", "mtu", "9000"])
        time.sleep(4)
        daemon.restart()
        time.sleep(4)
        daemon.ask("release", interface="eth0", reason="test")
        daemon.ask("limit", interface="eth0", reason="test")
        time.sleep(4)
        assert daemon.phase() == "limited"
        assert told(daemon) == 0
        for flow in flows:
            flow.stop()
