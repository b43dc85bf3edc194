"""Evidence: the arithmetic of readings with sockets made up, the whole of it with real traffic."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import SECOND, Link
from limiterd.core.ports import TcpSocket
from limiterd.kernel import top_talkers as evidence
from limiterd.kernel.netlink import boottime_ns
from limiterd.kernel.sockets import SocketDiag
from limiterd.kernel.top_talkers import EvidenceSampler, processes_of, thin, unit_of
from limiterd.sim.netns import Pair, PrivateNet, inside
from tests.netns import wait_for

ETH0 = Link(2, "eth0")


class Sockets:
    """A host whose sockets the test decides: {cookie: (bytes sent, ifindex it leaves by)}."""

    def __init__(self) -> None:
        self.now: dict[int, tuple[int, int]] = {}
        self.problem = ""
        self.reads = 0
        self.closed = False

    def read(self) -> array[int]:
        """Every socket."""
        self.reads += 1
        if self.problem:
            raise EnvironmentFault(self.problem, operation="sockets")
        return array("Q", [number for cookie, (sent, _) in self.now.items() for number in (cookie, sent)])

    def describe(self, cookies: Collection[int]) -> Mapping[int, TcpSocket]:
        """Those asked for that are there."""
        return {c: TcpSocket(c, "10.0.0.1", c, "10.0.0.2", 443, 0, 0, 0) for c in cookies if c in self.now}

    def egress(self, sockets: Sequence[TcpSocket]) -> list[int]:
        """As decided."""
        return [self.now[found.cookie][1] for found in sockets]

    def carried_by(self, ifindex: int) -> frozenset[int]:
        """The link and one thing above it."""
        return frozenset({ifindex, ifindex + 100})

    def close(self) -> None:
        """Remember that it came."""
        self.closed = True


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.t_ns = 1000 * SECOND

    def __call__(self) -> int:
        """The time now, in ns."""
        return self.t_ns


@pytest.fixture
def host() -> Sockets:
    """Made-up sockets."""
    return Sockets()


@pytest.fixture
def clock() -> Clock:
    """A clock at 1000 s."""
    return Clock()


@pytest.fixture
def sampler(host: Sockets, clock: Clock) -> Iterator[EvidenceSampler]:
    """Evidence about the made-up host."""
    with EvidenceSampler(host, clock) as made:
        yield made
    assert host.closed


def started(sampler: EvidenceSampler, host: Sockets) -> None:
    """Ask for samples, and wait for the first."""
    before = host.reads
    sampler.want({"eth0"})
    wait_for(lambda: host.reads > before, "the first reading")


def test_nothing_is_read_unless_wanted(sampler: EvidenceSampler, host: Sockets) -> None:
    """No reading before want, one at once after it, none again after the wish has ended."""
    assert host.reads == 0
    sampler.want(())
    assert host.reads == 0
    started(sampler, host)
    sampler.want(())
    wait_for(lambda: not sampler._wake.is_set(), "the thread to notice")
    reads = host.reads
    assert not threading.Event().wait(1.5 * evidence._PERIOD_S)
    assert host.reads == reads


def test_a_defect_ends_one_reading(sampler: EvidenceSampler, host: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that raises what nobody expected ends the thread; when sockets are wanted again the next one reads."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(host, "now", {7: None})
    sampler.want({"eth0"})
    wait_for(lambda: told, "the defect is told")
    monkeypatch.undo()
    sampler.want(())
    started(sampler, host)


def test_flows_rank_by_what_they_sent_in_the_window(sampler: EvidenceSampler, host: Sockets, clock: Clock) -> None:
    """What a socket sent before the window does not count; one made in it counts whole; the top five are shown."""
    host.now = {1: (9_000_000, 2), 2: (0, 2), 3: (50, 2), 4: (0, 2), 5: (0, 2), 6: (0, 2)}
    started(sampler, host)
    start_ns, clock.t_ns = clock.t_ns, clock.t_ns + 10 * SECOND
    host.now = {1: (9_000_010, 2), 2: (700, 2), 3: (50, 2), 4: (20, 2), 5: (30, 2), 6: (40, 2), 7: (100, 2)}
    found = sampler.at_firing(ETH0, start_ns, clock.t_ns, 1000)
    assert [(flow["local_port"], flow["bytes"]) for flow in found["flows"]] == [(2, 700), (7, 100), (6, 40), (5, 30), (4, 20)]
    assert (found["sockets_bytes"], found["explained"], found["flows"][0]["share"]) == (900, 0.9, 0.7)
    assert found["sockets"] == {"sent": 6, "examined": 6}
    assert found["window"] == {
        "from_t_ns": start_ns,
        "to_t_ns": clock.t_ns,
        "sampled_from_t_ns": start_ns,
        "sampled_to_t_ns": clock.t_ns,
    }
    json.dumps(found)


def test_only_what_leaves_by_the_link_is_its_evidence(sampler: EvidenceSampler, host: Sockets, clock: Clock) -> None:
    """Loopback, other links and unknown ways are left out; a bond or VLAN that the link carries is in."""
    started(sampler, host)
    start_ns, clock.t_ns = clock.t_ns, clock.t_ns + SECOND
    host.now = {1: (500, 1), 2: (400, 3), 3: (300, 0), 4: (200, 102), 5: (100, 2)}
    found = sampler.at_firing(ETH0, start_ns, clock.t_ns, 400)
    assert [flow["bytes"] for flow in found["flows"]] == [200, 100]
    assert found["sockets_bytes"] == 300


def test_a_firing_without_readings_says_so(sampler: EvidenceSampler, clock: Clock) -> None:
    """With nothing to subtract no flow is named, and a note tells why."""
    found = sampler.at_firing(ETH0, clock.t_ns - 10 * SECOND, clock.t_ns, 1000)
    assert found["flows"] == []
    assert any("no reading" in note for note in found["notes"])
    assert any("forwarded" in note for note in found["notes"])


def test_a_late_first_reading_is_told(sampler: EvidenceSampler, host: Sockets, clock: Clock) -> None:
    """When the window began before the first reading, the note says by how much."""
    started(sampler, host)
    first_ns, clock.t_ns = clock.t_ns, clock.t_ns + 8 * SECOND
    found = sampler.at_firing(ETH0, first_ns - 2 * SECOND, clock.t_ns, 1000)
    assert any("2.0 s" in note for note in found["notes"])


def test_a_refusal_is_evidence_too(sampler: EvidenceSampler, host: Sockets, clock: Clock) -> None:
    """Where sockets cannot be read, the problem is in the evidence and on the sampler, until a reading succeeds."""
    host.problem = "no tcp_diag here"
    found = sampler.at_firing(ETH0, clock.t_ns - SECOND, clock.t_ns, 1000)
    assert found["problem"] == sampler.problem == "no tcp_diag here"
    assert found["flows"] == []
    host.problem = ""
    assert sampler.at_firing(ETH0, clock.t_ns - SECOND, clock.t_ns, 1000)["problem"] == sampler.problem == ""


def test_a_refusal_half_way_is_evidence_too(
    sampler: EvidenceSampler, host: Sockets, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routing that cannot be asked leaves the device's bytes and the problem."""

    def refused(_: Sequence[TcpSocket]) -> list[int]:
        raise EnvironmentFault("no routes", operation="sockets")

    monkeypatch.setattr(host, "egress", refused)
    started(sampler, host)
    host.now = {1: (500, 2)}
    found = sampler.at_firing(ETH0, clock.t_ns, clock.t_ns + SECOND, 1000)
    assert (found["problem"], found["device_bytes"], found["flows"]) == ("no routes", 1000, [])


def test_a_link_that_sent_nothing_has_no_share(sampler: EvidenceSampler, clock: Clock) -> None:
    """No division by a window of no bytes."""
    assert sampler.at_firing(ETH0, clock.t_ns, clock.t_ns, 0)["explained"] is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(1, 200))
def test_thinning_bounds_and_keeps_both_ends(sizes: list[int], entries: int) -> None:
    """However many readings come, their number and size stay bounded, in order, with the oldest and newest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "_ENTRIES", entries)
        kept: list[evidence._Reading] = []
        for t_ns, size in enumerate(sizes):
            kept.append(evidence._Reading(t_ns, array("Q", bytes(16 * size))))
            thin(kept)
            assert len(kept) <= evidence._READINGS
            assert len(kept) <= 2 or sum(len(r.sent) for r in kept) <= 2 * entries
            assert (kept[0].t_ns, kept[-1].t_ns) == (0, t_ns)
            assert [r.t_ns for r in kept] == sorted({r.t_ns for r in kept})


def test_the_last_seconds_stay_dense() -> None:
    """After an hour of readings the last sixteen are a second apart."""
    kept: list[evidence._Reading] = []
    for t_ns in range(3600):
        kept.append(evidence._Reading(t_ns, array("Q", bytes(160))))
        thin(kept)
    assert [r.t_ns for r in kept][-16:] == list(range(3584, 3600))


# ---- processes -----------------------------------------------------------------------------------


def test_a_socket_leads_to_its_process() -> None:
    """Our own socket's inode gives our own pid, name and uid."""
    with socket.socket() as ours:
        inode = os.fstat(ours.fileno()).st_ino
        (found,) = processes_of({inode}).values()
    assert isinstance(found, dict)
    assert (found["pid"], found["uid"]) == (os.getpid(), os.geteuid())
    assert found["name"] == Path("/proc/self/comm").read_text().strip()
    assert found["cgroup"] is None or found["cgroup"].startswith("/")


def test_an_inode_of_nobody_is_no_process() -> None:
    """A socket that no process holds leads to none: gone, or not permitted where some process may not be looked at."""
    assert processes_of({1 << 60})[1 << 60] in {"gone", "not permitted"}


def test_the_look_up_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with too many descriptors costs the name, not the time."""
    monkeypatch.setattr(evidence, "_LOOKUP_S", -1.0)
    assert processes_of({77}) == {77: "not found in time"}


def test_what_may_not_be_read_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a process that hides its descriptors, an unfound socket is "not permitted"."""

    def denied(_: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(evidence, "_socket_inodes", denied)
    assert processes_of({77}) == {77: "not permitted"}


def test_a_process_that_ends_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid whose /proc entry has vanished is passed over; found but gone before it was named: gone."""

    def vanished(_: int) -> set[int]:
        raise FileNotFoundError

    monkeypatch.setattr(evidence, "_socket_inodes", vanished)
    assert processes_of({77}) == {77: "gone"}
    assert evidence._process(2**22 + 1) == "gone"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox.scope", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/nginx.service", "user@1000.service"),
        ("/system.slice/backup.service/worker", "backup.service"),
        ("/user.slice", None),
        ("/", None),
        (None, None),
    ],
)
def test_the_unit_is_the_outermost_of_the_path(cgroup: str | None, unit: str | None) -> None:
    """Of nested units the outermost: what stands further in its owner can name at will."""
    assert unit_of(cgroup) == unit


# ---- the whole of it -----------------------------------------------------------------------------


@pytest.mark.root
def test_real_traffic_is_explained(lab: PrivateNet, pair: Pair) -> None:
    """Two flows of unlike pace and one over loopback: the faster is on top, by name; loopback is not there."""
    fast = lab.tcp(pair.near, pair.far, rate_bps=200_000_000)
    slow = lab.tcp(pair.near, pair.far, rate_bps=20_000_000, host=pair.far.v6)
    with inside(pair.near.namespace):
        made = EvidenceSampler(SocketDiag(), boottime_ns)
    with contextlib.closing(made):
        start_ns = boottime_ns()
        before = fast.stats()["received_bytes"] + slow.stats()["received_bytes"]
        made.want({"eth0"})
        wait_for(lambda: len(made._readings) >= 2, "two readings")
        sent = fast.stats()["received_bytes"] + slow.stats()["received_bytes"] - before
        found: dict[str, Any] = made.at_firing(Link(pair.near.ifindex, "eth0"), start_ns, boottime_ns(), sent)
    assert [flow["remote"] for flow in found["flows"]] == [pair.far.v4, pair.far.v6]
    assert found["flows"][0]["bytes"] > 3 * found["flows"][1]["bytes"] > 0
    assert found["explained"] > 0.5
    top = found["flows"][0]["process"]
    assert top["pid"] == fast.source._process.pid
    assert top["name"] in Path(sys.executable).resolve().name
    assert found["flows"][0]["local_port"] in fast.source.hello["local_ports"]
    assert found["problem"] == ""
    json.dumps(found)
