"""What a limit does to real traffic: over a veth between two namespaces, measured by the class's own counters.

Rates come from counters and the kernel's clock; latencies are compared with the idle link of the same run.
"""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from limiterd.core.model import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    Lifeline,
    Limit,
    Link,
    Match,
    TcActual,
)
from limiterd.kernel.tc import TcKernel
from limiterd.sim.netns import Flow, Pair, PrivateNet, inside, run
from tests.driver import Driver
from tests.machine import MachineTooSlow
from tests.netns import LONG, wait_for

pytestmark = pytest.mark.root

MBIT = 10**6
ECHO_PORT = 2_222


@dataclass
class Shaped:
    """A link, what limits it, and the lab around it. empty: at how many looks of the last measurement nothing was queued."""

    lab: PrivateNet
    pair: Pair
    driver: Driver
    empty: int = 0

    @property
    def link(self) -> Link:
        """The link as the engine knows it."""
        return self.driver.links[0]

    def will_be(self, limit: Limit) -> None:
        """From now on limits are like this one."""
        self.driver.reload(limit)

    def hold(self, rate_bps: int) -> None:
        """Put the limit on, or change its rate."""
        self.driver.hold("eth0", rate_bps)

    def release(self) -> None:
        """Raise, wait for the queue to run empty, take down."""
        self.driver.release()

    def read(self) -> TcActual:
        """What the kernel shows."""
        return self.driver.actual("eth0")

    def rate_bps(self, span_s: float, since: TcActual | None = None) -> float:
        """The class's rate by its counters over the coming span, or since a reading until span_s after it."""
        first = last = since or self.read()
        self.empty = 0
        while (left_s := span_s - (last.read_t_ns - first.read_t_ns) / 1e9) > 0:
            time.sleep(min(0.1, left_s))  # the measurement itself
            last = self.read()
            self.empty += not last.stats.backlog_bytes
        return 8e9 * (last.stats.sent_bytes - first.stats.sent_bytes) / (last.read_t_ns - first.read_t_ns)

    def reached(self, share: float, rate_bps: int, span_s: float) -> float:
        """The share of a rate that the limit gave. Under the wanted share because nothing waited for it: MachineTooSlow."""
        seen = self.rate_bps(span_s) / rate_bps
        if seen < share and self.empty:
            raise MachineTooSlow(f"{seen:.2f} of the rate, with nothing queued at {self.empty} looks")
        return seen

    def near_tc(self, *arguments: str) -> str:
        """The system's tc on our side."""
        return run(self.pair.near.namespace, ["tc", *arguments]).stdout

    def packets(self, classid: str) -> int:
        """Packets that a class has sent, by the system's tc."""
        found = re.search(
            rf"class htb {classid} .*?Sent \d+ bytes (\d+) pkt", self.near_tc("-s", "class", "show", "dev", "eth0"), re.DOTALL
        )
        assert found is not None
        return int(found[1])


@pytest.fixture
def shaped(lab: PrivateNet, pair: Pair) -> Iterator[Shaped]:
    """eth0 between two namespaces."""
    with inside(pair.near.namespace):
        kernel = TcKernel()
    with kernel:
        yield Shaped(lab, pair, Driver(kernel, Link(pair.near.ifindex, "eth0")))


def flowing(shaped: Shaped, what: str, udp_bps: int = 290 * MBIT) -> Flow:
    """One of the usual loads, beyond the limit, already flowing."""
    near, far = shaped.pair.near, shaped.pair.far
    flow = (
        shaped.lab.udp(near, far, udp_bps) if what == "udp" else shaped.lab.tcp(near, far, streams=int(what.removeprefix("tcp")))
    )
    wait_for(lambda: flow.stats()["received_bytes"] > 5_000_000, "traffic")
    return flow


# ---- rates ---------------------------------------------------------------------------------------

FIRST_SECONDS: Final = [
    (200 * MBIT, "udp"),
    (10 * MBIT, "tcp8"),
    (10 * MBIT, "tcp1"),
    (10 * MBIT, "udp"),
    (200 * MBIT, "tcp1"),
    (200 * MBIT, "tcp8"),
]


@pytest.mark.serial
@pytest.mark.parametrize(("rate_bps", "load"), FIRST_SECONDS if LONG else FIRST_SECONDS[:1])
def test_the_rate_is_held_exactly_from_the_first_second(shaped: Shaped, load: str, rate_bps: int) -> None:
    """At most 105 % in the first second of the limit's life, 101 % in spans after it; 99 % are reached, and kept by all.

    A busy machine may starve the sources for a while: the lower bound is asked of the best span, the upper of every one. A
    span is so long that the largest packet, 64 KiB that leave at once, is less than a hundredth of it.
    """
    flowing(shaped, load)
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shaped.hold(rate_bps)
    begun = shaped.read()
    shaped.rate_bps(1.0, begun)
    first = shaped.read()
    assert 8e9 * first.stats.sent_bytes <= 1.05 * rate_bps * (first.read_t_ns - before_ns)
    assert 0.99 * rate_bps <= best_span_bps(shaped, rate_bps, max(1.0, 6e7 / rate_bps)) <= 1.01 * rate_bps
    assert shaped.read().direct_packets == begun.direct_packets


def best_span_bps(shaped: Shaped, limit_bps: int, span_s: float = 1.0, most: int = 10) -> float:
    """The first span that comes near the limit, else the highest of many."""
    best_bps = 0.0
    for _ in range(most):
        best_bps = max(best_bps, shaped.rate_bps(span_s))
        if best_bps >= 0.99 * limit_bps:
            break
    return best_bps


@pytest.mark.serial
@pytest.mark.parametrize(("rate_bps", "span_s"), [(MBIT, 6), (20 * MBIT, 2), (50 * MBIT, 2)] if LONG else [(20 * MBIT, 2)])
def test_low_rates_are_reached(shaped: Shaped, rate_bps: int, span_s: int) -> None:
    """At 1, 20 and 50 Mbit/s TCP gets 85 % of the limit, no more than the limit and one GSO packet, and pings pass."""
    shaped.hold(rate_bps)
    near, far = shaped.pair.near, shaped.pair.far
    shaped.lab.tcp(near, far)
    wait_for(lambda: shaped.read().stats.sent_bytes > 70_000, "the first burst")
    assert 0.85 <= shaped.reached(0.85, rate_bps, span_s) <= 1.02 + 8 * shaped.link.gso_max_bytes / span_s / rate_bps
    assert run(near.namespace, ["ping", "-c", "2", "-W", "5", "-i", "0.2", far.v4], check=False).returncode == 0


@pytest.mark.serial
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("rate_bps", [10 * MBIT, 100 * MBIT, 200 * MBIT, 1_000 * MBIT])
@pytest.mark.parametrize("load", ["tcp1", "tcp8", "udp"])
def test_rates_are_held_for_long(shaped: Shaped, load: str, rate_bps: int) -> None:
    """10 Mbit/s to 1 Gbit/s within 99 to 101 % over five seconds, beginning a second after the engagement.

    Over 101 % is never right; under 99 % may be a source that was starved: then nothing waits in the queue.
    """
    flowing(shaped, load, 3 * rate_bps // 2)
    shaped.hold(rate_bps)
    shaped.rate_bps(1.0)
    assert 0.99 <= shaped.reached(0.99, rate_bps, 5.0) <= 1.01


@pytest.mark.serial
@pytest.mark.parametrize("setting", ["txqueuelen 0", "txqueuelen 1", "txqueuelen 2", "mtu 9000", "gso_max_segs 1"])
def test_odd_links_are_held_as_well(shaped: Shaped, setting: str) -> None:
    """A queue length of 0 to 2, jumbo frames, no GSO: 50 Mbit/s are reached and held, and nothing passes by."""
    for end in (shaped.pair.near, shaped.pair.far):
        run(end.namespace, ["ip", "link", "set", "eth0", *setting.split()])
    shaped.driver.links = (replace(shaped.link, mtu=9_000 if "mtu" in setting else 1_500),)
    shaped.driver.tick()
    flowing(shaped, "tcp1")
    shaped.hold(50 * MBIT)
    begun = shaped.read()
    assert 0.98 * 50 * MBIT <= best_span_bps(shaped, 50 * MBIT) <= 1.02 * 50 * MBIT
    assert shaped.read().direct_packets == begun.direct_packets


# ---- latency -------------------------------------------------------------------------------------


def ping_ms(pair: Pair, count: int) -> list[float]:
    """Round-trip times of echoes outside the lifeline."""
    text = run(pair.near.namespace, ["ping", "-c", str(count), "-i", "0.02", pair.far.v4], check=False).stdout
    return [float(ms) for ms in re.findall(r"time=([\d.]+)", text)]


@pytest.mark.serial
def test_another_flow_waits_only_for_the_queues_time(shaped: Shaped) -> None:
    """Under 8 TCP flows at 200 Mbit/s a ping waits at most half as long again as a full queue takes to empty, in the median.

    That is how much longer than one over a link without a limit, of the same machine under the same load.
    """
    other = shaped.lab.pair("eth1", "eth1", number=2)
    flowing(shaped, "tcp8")
    shaped.hold(200 * MBIT)
    free_ms: list[float] = []
    loaded_ms: list[float] = []
    for _ in range(6):
        wait_for_queue(shaped)
        loaded_ms += ping_ms(shaped.pair, 10)
        free_ms += ping_ms(other, 10)
    tree = shaped.read().tree
    assert tree is not None
    queue_ms = next(8e3 * leaf.limit_bytes / tree.rate_bps for leaf in tree.leaves if leaf.parent == CLASS_DEFAULT) or 10
    assert queue_ms == 10
    assert statistics.median(loaded_ms) - statistics.median(free_ms) <= 1.5 * queue_ms
    assert len(loaded_ms) >= 55


def wait_for_queue(shaped: Shaped) -> None:
    """Wait until the load has come up against the limit."""
    wait_for(lambda: shaped.read().stats.backlog_bytes > shaped.link.gso_max_bytes, "a queue")


@contextlib.contextmanager
def echo(shaped: Shaped) -> Iterator[Callable[[], float]]:
    """A TCP ping-pong of small messages, as an SSH session makes; yields a function that takes one round trip in ms."""
    with inside(shaped.pair.far.namespace):
        server = socket.create_server((shaped.pair.far.v4, ECHO_PORT))
    with inside(shaped.pair.near.namespace):
        client = socket.create_connection((shaped.pair.far.v4, ECHO_PORT))
    peer, _ = server.accept()

    def answer() -> None:
        with contextlib.suppress(OSError):
            while data := peer.recv(64):
                peer.sendall(data)

    thread = threading.Thread(target=answer)
    thread.start()
    for end in (client, peer):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def trip() -> float:
        begun = time.perf_counter()
        client.sendall(b"x" * 48)
        client.recv(64)
        return (time.perf_counter() - begun) * 1e3

    try:
        yield trip
    finally:
        for end in (client, peer, server):
            end.close()
        thread.join()


def with_a_queue(shaped: Shaped, trip: Callable[[], float]) -> float:
    """One round trip that meets a queue: sources that get no processor let it run empty."""
    wait_for_queue(shaped)
    return trip()


@pytest.mark.serial
def test_the_lifeline_stays_quick_under_full_load(shaped: Shaped) -> None:
    """While 8 flows fill the limit, a ping-pong in the lifeline takes less than half as long as the same outside of it."""
    took_ms = {}
    for lifeline in (True, False):
        port = ECHO_PORT if lifeline else ECHO_PORT + 1
        shaped.will_be(Limit(lifeline=Lifeline(match=(Match(protocol="tcp", port=port),))))
        with echo(shaped) as trip:
            flow = flowing(shaped, "tcp8")
            shaped.hold(200 * MBIT)
            took_ms[lifeline] = statistics.median(with_a_queue(shaped, trip) for _ in range(150))
            flow.stop()
        shaped.release()
    assert took_ms[True] < took_ms[False] / 2, took_ms


# ---- losses --------------------------------------------------------------------------------------


def missing(stats: dict[str, Any]) -> int:
    """Datagrams that did not arrive, wherever they were lost."""
    return int(stats["lost_packets"] + stats["refused_packets"])


@pytest.mark.serial
def test_a_change_of_rate_loses_nothing(shaped: Shaped) -> None:
    """Thirty changes in place under a 150 Mbit/s stream of numbered datagrams: every one arrives.

    (The limits' queues hold what a source that was starved for 50 ms sends at once.)
    """
    shaped.hold(800 * MBIT)
    flow = shaped.lab.udp(shaped.pair.near, shaped.pair.far, 150 * MBIT)
    wait_for(lambda: flow.stats()["received_packets"] > 1_000, "the stream")
    for n in range(30):
        shaped.hold((800 + 100 * (n % 7)) * MBIT)
        time.sleep(0.03)
    stats = flow.stop()
    assert stats["received_packets"] > 5_000
    assert missing(stats) == 0


@pytest.mark.serial
def test_engaging_and_releasing_lose_next_to_nothing(shaped: Shaped) -> None:
    """Putting a limit on and releasing it each lose at most three datagrams of a 150 Mbit/s stream, in the median.

    While the kernel destroys a root the link has no queue (dev_deactivate): 50 µs, or milliseconds where others want the
    processor. That much is not ours: a bare pfifo that is put on and taken off in turns with the limit tells how much it is, and
    the best of ten rounds counts. The limit's queue holds what a source that was starved for 50 ms sends at once.
    """
    flow = shaped.lab.udp(shaped.pair.near, shaped.pair.far, 150 * MBIT)
    wait_for(lambda: flow.stats()["received_packets"] > 1_000, "the stream")
    bare = ("dev", "eth0", "root", "handle", "7:", "pfifo")
    swaps: list[Callable[[], object]] = [
        lambda: shaped.hold(800 * MBIT),
        shaped.release,
        lambda: shaped.near_tc("qdisc", "add", *bare),
        lambda: shaped.near_tc("qdisc", "del", *bare),
    ]
    rounds: list[tuple[float, ...]] = []
    while not any(engaged <= max(3, put_on) and released <= max(3, taken_off) for engaged, released, put_on, taken_off in rounds):
        assert len(rounds) < 10, rounds
        losses: list[list[int]] = [[] for _ in swaps]
        for context in range(9):
            for lost, swap in zip(losses, swaps, strict=True):
                before = gaps(flow)
                time.sleep(context * 0.0006)  # the source sends in bursts, and is not to be met at the same place each time
                swap()
                lost.append(gaps(flow) - before)
        rounds.append(tuple(map(statistics.median, losses)))


def flows_on(flow: Flow) -> None:
    """Wait until more has arrived."""
    before = flow.stats()["received_bytes"]
    wait_for(lambda: flow.stats()["received_bytes"] > before + 1_000_000, "more traffic")


def gaps(flow: Flow) -> int:
    """Datagrams that were overtaken by later ones, once a few later ones have come."""
    seen_number = flow.sink.ask("stats")["next_number"]
    wait_for(lambda: flow.sink.ask("stats")["next_number"] > seen_number + 200, "later datagrams")
    stats = flow.sink.ask("stats")
    return int(stats["next_number"] - stats["received_packets"])


def test_a_release_drains_what_is_queued(shaped: Shaped) -> None:
    """A stream beyond the limit keeps the queue full; once its source pauses, a release delivers all that was queued."""
    shaped.hold(100 * MBIT)
    flow = flowing(shaped, "udp")
    wait_for(lambda: shaped.read().stats.backlog_bytes > 50_000, "a queue")
    flow.set_rate(0)
    held = shaped.read()
    shaped.release()
    stats = flow.stop()
    assert stats["lost_packets"] <= held.stats.drops + 3


@pytest.mark.serial
def test_next_to_nothing_passes_between_root_and_class(shaped: Shaped) -> None:
    """Installed under full TCP load, at most two packets go past the limit: the messages travel in one datagram."""
    flow = flowing(shaped, "tcp8")
    passed = []
    for _ in range(9):
        shaped.hold(200 * MBIT)
        passed.append(shaped.read().direct_packets)
        shaped.release()
        flows_on(flow)
    assert statistics.median(passed) <= 2


def test_what_waits_outside_the_limit_is_seen(shaped: Shaped) -> None:
    """Exempt traffic that queues (here because a foreign hand slowed its class) counts as queued, and not as the limit's."""
    shaped.will_be(Limit(exempt=(Match(to="10.77.1.0/24"),)))
    shaped.hold(200 * MBIT)
    slow = "class change dev eth0 parent 1d1d: classid 1d1d:30 htb rate 1mbit ceil 1mbit"
    shaped.near_tc(*slow.split())
    flow = shaped.lab.udp(shaped.pair.near, shaped.pair.far, 20 * MBIT)
    wait_for(lambda: shaped.read().queued_bytes > 50_000, "a queue")
    assert shaped.read().stats.backlog_bytes == 0
    flow.set_rate(0)
    shaped.release()
    assert missing(flow.stop()) == 0


# ---- who is limited ------------------------------------------------------------------------------


@pytest.mark.serial
def test_exempt_traffic_is_not_limited(shaped: Shaped) -> None:
    """A flow to an exempt network runs beside a full limit at many times its rate, and does not eat into it."""
    shaped.will_be(Limit(exempt=(Match(to="fd77:1::/64"),)))
    near, far = shaped.pair.near, shaped.pair.far
    shaped.hold(20 * MBIT)
    shaped.lab.tcp(near, far)
    free = shaped.lab.tcp(near, far, 100 * MBIT, host=far.v6)
    wait_for(lambda: free.stats()["received_bytes"] > 1_000_000, "the exempt flow")
    before = free.stats()["received_bytes"], time.monotonic()
    limited = shaped.reached(0.95, 20 * MBIT, 2.0)
    free_bps = 8 * (free.stats()["received_bytes"] - before[0]) / (time.monotonic() - before[1])
    assert 0.95 <= limited <= 1.02
    if MBIT < free_bps < 60 * MBIT and not shaped.read().queued_bytes > shaped.read().stats.backlog_bytes:
        raise MachineTooSlow("the exempt flow was starved: nothing of it waits")
    assert free_bps > 3 * 20 * MBIT


def test_packets_go_where_the_selectors_say(shaped: Shaped) -> None:
    """Real packets: DHCP in both families, IPv4 options, first and later fragments, a port on either side."""
    shaped.will_be(Limit(lifeline=Lifeline(match=(Match(protocol="udp", port=5_001), Match(protocol="tcp", port=22)))))
    shaped.hold(200 * MBIT)
    near = shaped.pair.near
    run(near.namespace, ["ping", "-c", "1", shaped.pair.far.v4])  # so that no neighbour has to be asked for below
    run(near.namespace, ["ping", "-c", "1", shaped.pair.far.v6])

    def lands_in_lifeline(count: int, send: Callable[[socket.socket], object], family: int = socket.AF_INET) -> bool:
        before = shaped.packets("1d1d:10")
        with inside(near.namespace), socket.socket(family, socket.SOCK_DGRAM) as sender:
            send(sender)
        return shaped.packets("1d1d:10") - before == count

    def to(
        address: str, port: int, size: int = 10, options: bytes = b"", source_port: int = 0
    ) -> Callable[[socket.socket], object]:
        def send(sender: socket.socket) -> None:
            if options:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
            if source_port:
                sender.bind(("", source_port))
            sender.sendto(bytes(size), (address, port))

        return send

    v4, v6 = shaped.pair.far.v4, shaped.pair.far.v6
    router_alert = struct.pack(">BBH", 148, 4, 0)
    assert lands_in_lifeline(1, to(v4, 67))
    assert lands_in_lifeline(1, to(v6, 547), socket.AF_INET6)
    assert lands_in_lifeline(1, to(v4, 5_001))
    assert lands_in_lifeline(1, to(v4, 9, source_port=5_001))
    assert lands_in_lifeline(1, to(v6, 5_001), socket.AF_INET6)
    assert lands_in_lifeline(1, to(v4, 5_001, options=router_alert))
    assert lands_in_lifeline(0, to(v4, 5_002))
    assert lands_in_lifeline(0, to(v4, 5_002, options=router_alert))
    assert lands_in_lifeline(0, to(v4, 22))
    assert lands_in_lifeline(1, to(v4, 5_001, size=4_000))  # of three fragments the first has ports


def test_neighbours_are_asked_in_the_lifeline(shaped: Shaped) -> None:
    """ARP and neighbour discovery of a flushed cache go by the lifeline's class."""
    shaped.hold(200 * MBIT)
    for address in (shaped.pair.far.v4, shaped.pair.far.v6):
        run(shaped.pair.near.namespace, ["ip", "neigh", "flush", "all"])
        before = shaped.packets("1d1d:10")
        run(shaped.pair.near.namespace, ["ping", "-c", "1", address])
        assert shaped.packets("1d1d:10") > before


def test_the_kernel_has_no_complaint(shaped: Shaped) -> None:
    """No limit from 1 Mbit/s to 100 Gbit/s makes the kernel warn of a quantum."""
    shaped.will_be(Limit(exempt=(Match(to="10.0.0.0/8"),)))
    for rate_bps in (MBIT, 200 * MBIT, 10**10, 10**11):
        shaped.hold(rate_bps)
    tree = shaped.read().tree
    assert tree is not None
    assert {c.classid for c in tree.classes} >= {CLASS_DEFAULT, CLASS_LIFELINE, CLASS_EXEMPT}
    complaints = [
        line
        for line in run(shaped.pair.near.namespace, ["dmesg"], check=False).stdout.splitlines()
        if "quantum of class 1D1D" in line
    ]
    assert complaints == []
