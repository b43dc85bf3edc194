"""The private network itself, with real namespaces and real packets."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from limiterd.core.errors import EnvironmentFault
from limiterd.sim import netns
from limiterd.sim.netns import Pair, PrivateNet, inside
from tests.netns import in_child, wait_for

pytestmark = pytest.mark.root

GBIT = 10**9


def own_namespace() -> str:
    """The network namespace of this thread."""
    return str(Path("/proc/thread-self/ns/net").readlink())


def test_inside_comes_back_even_after_an_error(lab: PrivateNet) -> None:
    """The block's thread is in the namespace inside it and at home behind it, however it ends."""
    home, namespace = own_namespace(), lab.namespace()
    with contextlib.suppress(RuntimeError), inside(namespace):
        assert own_namespace() == f"net:[{os.fstat(namespace.fd).st_ino}]" != home
        raise RuntimeError
    assert own_namespace() == home


class Exhausted:
    """A libc under which the kernel makes no more namespaces."""

    @staticmethod
    def unshare(_flags: int) -> int:
        """Fail as with user.max_net_namespaces=0."""
        ctypes.set_errno(errno.ENOSPC)
        return -1


def test_a_kernel_that_makes_no_namespace_is_no_laboratory(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC, EINVAL and the like mean the same as EPERM: it cannot be done here. The kernel's own word is kept."""
    monkeypatch.setattr(netns, "_libc", Exhausted)
    assert not netns.can_make_namespaces()
    with pytest.raises(EnvironmentFault, match="unshare: No space left on device"):
        netns.Namespace("trial")


def test_a_pair_is_joined_in_both_families(pair: Pair) -> None:
    """IPv4 and IPv6 work between the two ends as soon as the pair is there."""
    for host in (pair.far.v4, pair.far.v6):
        with inside(pair.far.namespace):
            listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        with listener, inside(pair.near.namespace), socket.create_connection(listener.getsockname()[:2], timeout=5) as near:
            far, _ = listener.accept()
            with far:
                near.sendall(b"hello")
                assert far.recv(5) == b"hello"


def test_namespaces_are_private(lab: PrivateNet) -> None:
    """A fresh namespace has loopback and nothing else but the kernel's own fall-back devices."""
    with inside(lab.namespace()):
        names = {name for _, name in socket.if_nameindex()}
    assert "lo" in names
    assert not any(name.startswith(("eth", "en", "veth")) for name in names)


def test_a_paced_flow_keeps_its_rate_and_follows_changes(lab: PrivateNet, pair: Pair) -> None:
    """The device transmits what the source is told to send: at a slow pace, in a pause, and many times faster."""
    flow = lab.tcp(pair.near, pair.far, rate_bps=GBIT // 10)
    wait_for(lambda: flow.stats()["received_bytes"] > GBIT // 80, "a tenth of a second's worth of bytes")
    flow.set_rate(0)
    wait_for(lambda: flow.stats() == flow.stats(), "silence in the pause")
    paused = flow.stats()["received_bytes"]
    flow.set_rate(None)
    wait_for(lambda: flow.stats()["received_bytes"] > paused + GBIT // 8, "a gigabit more")
    final = flow.stop()
    assert final["sent_bytes"] >= final["received_bytes"] > GBIT // 8


def test_udp_loss_is_counted_by_number(lab: PrivateNet, pair: Pair) -> None:
    """Every datagram is accounted for: none is lost on a free link, most are behind a far too narrow shaper."""
    free = lab.udp(pair.near, pair.far, rate_bps=20_000_000, host=pair.far.v6)
    wait_for(lambda: free.stats()["received_packets"] > 100, "a hundred datagrams")
    clean = free.stop()
    assert clean["lost_packets"] == clean["late_packets"] == 0

    shaper = "tc qdisc add dev eth0 root tbf rate 1mbit burst 5000 limit 5000"
    netns.run(pair.near.namespace, shaper.split())
    narrow = lab.udp(pair.near, pair.far, rate_bps=20_000_000)
    wait_for(lambda: narrow.stats()["sent_packets"] > 1000, "a thousand datagrams")
    lossy = narrow.stop()
    assert lossy["lost_packets"] + lossy["refused_packets"] > lossy["sent_packets"] // 2
    assert lossy["next_number"] <= lossy["sent_packets"]


def test_a_dead_traffic_program_is_an_error(lab: PrivateNet, pair: Pair) -> None:
    """Asking a program that has ended raises, and says which one."""
    flow = lab.tcp(pair.near, pair.far, rate_bps=0)
    flow.source.ask("stop")
    with pytest.raises(EnvironmentFault, match="tcp-send"):
        wait_for(lambda: not flow.source.ask("stats"), "the end of the source")


def test_a_failed_start_leaves_no_program(lab: PrivateNet, pair: Pair) -> None:
    """A program that cannot start (no such address) raises and is gone."""
    nowhere = netns.End(pair.near.namespace, "eth0", 2, "192.0.2.1", "2001:db8::1")
    with pytest.raises(EnvironmentFault, match="tcp-receive"):
        lab.tcp(pair.near, nowhere)
    assert not children_of(os.getpid())


def test_in_child_is_wholly_inside(lab: PrivateNet) -> None:
    """A function run by in_child sees the namespace through /proc/net too, which follows the process, not the thread."""
    assert "eth0" not in in_child(lab.namespace(), Path.read_text, Path("/proc/net/dev"))
    assert "eth0" in in_child(lab.pair().near.namespace, Path.read_text, Path("/proc/net/dev"))


def children_of(pid: int) -> list[int]:
    """The process ids of the children, by /proc."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_its_user(ending: signal.Signals) -> None:
    """After Ctrl-C, and even after SIGKILL, no traffic program of the netns is left running."""
    script = """
        import time
        from limiterd.sim.netns import PrivateNet
        with PrivateNet() as lab:
            pair = lab.pair()
            flow = lab.tcp(pair.near, pair.far, rate_bps=1_000_000)
            print("ready", flush=True)
            time.sleep(60)
    """
    user = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with user:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        programs = children_of(user.pid)
        assert len(programs) == 2
        user.send_signal(ending)
        user.wait(timeout=10)
    wait_for(lambda: not any(is_running(pid) for pid in programs), "the end of the traffic programs")


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie that waits for init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
