"""Links that come, go, flap, move, change their names or have odd ones; counters that jump."""

from __future__ import annotations

import contextlib
import gc
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Final

import pytest

from limiterd.core.link_changes import GONE_LINKS_MAX
from limiterd.core.model import HOUR, EpochReason, EventKind, Phase
from limiterd.kernel.links import RTM_DELLINK, RTM_NEWLINK, LinkTable
from limiterd.sim.netns import Namespace, Pair, PrivateNet, inside, route_in, run
from tests.faults.harness import QUICK, Echo, problems, watched_interfaces
from tests.netns import LONG, wait_for
from tests.rig import Rig, rig
from tests.world import MBIT, World, rules_of

CHURNED: Final = 500 if LONG else 150


def ip(pair: Pair, *commands: str) -> None:
    """Run ip commands in the near namespace, all in one process."""
    with inside(pair.near.namespace):
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands) + "\n", text=True, check=True, capture_output=True)


def move(name: str, source: Namespace, target: Namespace) -> None:
    """Move a link to another namespace, up."""
    with route_in(source) as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], net_ns_fd=target.fd)
    run(target, ["ip", "link", "set", name, "up"])


def limited(daemon: Rig) -> None:
    """Start, and limit eth0 by hand."""
    daemon.start()
    daemon.ask("limit", interface="eth0", reason="test")


@pytest.mark.root
def test_flapping(pair: Pair, tmp_path: Path) -> None:
    """A limited link goes down and up 100 times: still limited, nothing repaired, nothing released, and it works."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        limited(daemon)
        ip(pair, *["link set eth0 down", "link set eth0 up"] * 100)
        daemon.wait_phase("limited")
        assert daemon.root() == "htb 1d1d:"
        assert daemon.metrics()['limiterd_drift_repairs_total{interface="eth0"}'] == 0
        with Echo(pair):
            pass


@pytest.mark.root
def test_renaming(pair: Pair, tmp_path: Path) -> None:
    """A limited link is renamed, to a watched name and to one that nobody watches: the limit goes along, then it is lifted."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        default = daemon.root()
        limited(daemon)
        ip(pair, "link set eth0 name eth7")
        daemon.wait_phase("limited", "eth7", longest_s=3)
        assert watched_interfaces(daemon) == ["eth7"]
        ip(pair, "link set eth7 name lan0")
        wait_for(lambda: daemon.root("lan0") == default, "the limit is lifted", longest_s=3)
        assert watched_interfaces(daemon) == []


@pytest.mark.root
def test_another_namespace_and_back(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """A limited link moves to another namespace and returns: absent meanwhile, limited again on its return."""
    elsewhere = lab.namespace()
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        limited(daemon)
        move("eth0", pair.near.namespace, elsewhere)
        daemon.wait_phase("absent", longest_s=3)
        move("eth0", elsewhere, pair.near.namespace)
        daemon.wait_phase("limited", longest_s=3)
        assert daemon.root() == "htb 1d1d:"


@pytest.mark.root
def test_the_same_name_and_ifindex_made_anew(pair: Pair, tmp_path: Path) -> None:
    """A limited link deleted and made again with its name, ifindex and MAC between two ticks: limited again at once."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        limited(daemon)
        mac, index = daemon.mac(), pair.near.ifindex
        ip(pair, "link del eth0", f"link add eth0 index {index} address {mac} type veth peer name other")
        wait_for(lambda: daemon.root() == "htb 1d1d:", "the limit on the new link", longest_s=3)
        assert daemon.wait_phase("limited")["ifindex"] == index


@pytest.mark.root
@pytest.mark.slow
def test_churn(pair: Pair, tmp_path: Path) -> None:
    """500 links (in the suite 150) made and deleted beside a limited one: seen, forgotten; memory and descriptors are bounded."""
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        limited(daemon)
        before = daemon.metrics()
        pairs = range(1, CHURNED // 2 + 1)
        for part in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
            ip(pair, *[f"link add eth{n} type veth peer name en{n}" for n in part])
            wait_for(lambda: len(watched_interfaces(daemon)) == len(part) + 1, "the new links", longest_s=20)  # noqa: B023
            ip(pair, *[f"link del eth{n}" for n in part])
            wait_for(lambda: len(watched_interfaces(daemon)) == 1, "the old links only", longest_s=20)
        after = daemon.metrics()
        assert not [name for name in after if 'interface="eth1"' in name]
        assert after["process_open_fds"] <= before["process_open_fds"] + 2
        assert after["process_resident_memory_bytes"] < before["process_resident_memory_bytes"] + (32 << 20)
        assert daemon.phase() == "limited"
        assert problems(daemon) == ""


@pytest.mark.root
def test_odd_names(pair: Pair, tmp_path: Path) -> None:
    """Names that YAML, metrics or tc might take for something else: watched, limited, shown and released like any other."""
    names = ["no", "1e3", "0x1d1d", "null", "ünï—ß", "a" * 15, "eth0.100", 'q"uo\\te', "-"]
    with rig(pair.near.namespace, tmp_path, QUICK) as daemon:
        daemon.config.write_text(daemon.config.read_text().replace("'eth*'", "'*', '!lo', '!peer*'"))
        for number, name in enumerate(names):
            run(pair.near.namespace, ["ip", "link", "add", "name", name, "type", "veth", "peer", "name", f"peer{number}"])
        before = [daemon.root(name) for name in names]
        daemon.start()
        assert set(names) <= set(watched_interfaces(daemon))
        for name in names:
            daemon.ask("limit", interface=name, reason="test")
            assert daemon.wait_phase("limited", name)["limit_bps"] == 5_000_000
            assert daemon.root(name) == "htb 1d1d:"
        phases = [series for series, value in daemon.metrics().items() if 'phase="limited"' in series and value == 1]
        assert len(phases) == len(names)
        daemon.restart()
        assert all(daemon.phase(name) == "limited" for name in names)
        daemon.ask("release", all=True, reason="test")
        wait_for(lambda: [daemon.root(name) for name in names] == before, "all released")


# ---- what is remembered of links that are gone -----------------------------------------------------


def weight(root: object) -> int:
    """How many objects hang on this one."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) not in seen and not isinstance(found, type | ModuleType | FunctionType):
            seen[id(found)] = found
            waiting += gc.get_referents(found)
    return len(seen)


def churn(world: World, births: int, first: int) -> None:
    """So many links with names of their own are born and die, a hundred at a time."""
    for start in range(first, first + births, 100):
        links = [world.add(number, f"eth{number}") for number in range(start, start + 100)]
        world.tick()
        for link in links:
            world.remove(link.name)
        world.tick()


def test_what_is_remembered_of_links_ends_at_its_bounds() -> None:
    """Links that come and go without end, under new names: what is remembered stops growing, and an hour later it is gone."""
    world = World()
    world.tick()
    few = weight(world.state)
    churn(world, GONE_LINKS_MAX + 100, 1000)
    full = weight(world.state)
    churn(world, GONE_LINKS_MAX, 100_000)
    assert few + GONE_LINKS_MAX < weight(world.state) <= full + 10
    world.pass_time(HOUR)
    world.add(3, "eth3")
    world.tick()
    assert weight(world.state) <= few + 100


def test_incarnations_are_remembered_of_the_newest_links_alone() -> None:
    """Ifindexes without end: the link table stops growing, and still tells the newest dead from who comes after them."""
    with contextlib.closing(LinkTable()) as table:
        lives(table, range(1, 5000))
        full = weight(table)
        lives(table, range(5000, 10_000))
        assert weight(table) <= full
        table.apply([(RTM_NEWLINK, memoryview(ifinfo(9999)))])
        assert [link.incarnation for link in table.links] == [1]


def lives(table: LinkTable, ifindexes: Iterable[int]) -> None:
    """Links are born and die."""
    for ifindex in ifindexes:
        table.apply((kind, memoryview(ifinfo(ifindex))) for kind in (RTM_NEWLINK, RTM_DELLINK))


def ifinfo(ifindex: int) -> bytes:
    """An ifinfomsg, as links are told of."""
    return struct.pack("=BxHiII", 0, 1, ifindex, 0, 0)


# ---- counters, on the in-memory kernel -------------------------------------------------------------


def test_a_counter_that_is_reset() -> None:
    """Counter reset to zero in the middle of an excess: a fresh epoch, no limit before a whole window after it."""
    world = World()
    world.run(1.8, {"eth0": 150 * MBIT})
    world.kernel.links[2].tx_bytes = 0
    world.run(1.8)
    assert world.told(EventKind.LIMIT) == []
    assert (EventKind.EPOCH, EpochReason.COUNTER) in world.told(EventKind.EPOCH)
    world.run(0.8)
    assert world.view().phase is Phase.LIMITED


def test_a_counter_that_wraps_at_32_bits() -> None:
    """A 32-bit counter that wraps: one epoch lost, never a limit; between wraps the excess is found."""
    world = World()
    world.kernel.links[2].tx_bytes = (1 << 32) - 20 * MBIT // 8
    world.kernel.offer(2, 50 * MBIT)
    for _ in range(30):
        world.tick()
        world.kernel.links[2].tx_bytes %= 1 << 32
    assert world.told(EventKind.LIMIT) == []
    assert world.told(EventKind.EPOCH).count((EventKind.EPOCH, EpochReason.COUNTER)) == 1
    world.fire()
    assert world.view().phase is Phase.LIMITED


def test_a_counter_that_jumps_beyond_all_reason() -> None:
    """A 64-bit jump: alone no window of excess, so never a limit; with max_plausible_rate it is a fresh epoch."""
    plain = rules_of()
    strict = replace(plain, config=replace(plain.config, sampling=replace(plain.config.sampling, max_plausible_bps=10**12)))
    for rules in (plain, strict):
        world = World(rules)
        world.run(1, {"eth0": MBIT})
        world.kernel.links[2].tx_bytes += 1 << 62
        world.run(5)
        assert world.told(EventKind.LIMIT) == []
        implausible = (EventKind.EPOCH, EpochReason.IMPLAUSIBLE) in world.told(EventKind.EPOCH)
        assert implausible == (rules is strict)


def test_a_link_that_arrives_beside_a_limited_one() -> None:
    """Another link arrives and goes: a standing limit gets no message, and no epoch but the newcomer's begins."""
    world = World()
    world.limit()
    sent, epochs = len(world.kernel.sent), len(world.told(EventKind.EPOCH))
    world.add(3, "eth1")
    world.run(2)
    world.remove("eth1")
    world.run(2)
    assert len(world.kernel.sent) == sent
    assert len(world.told(EventKind.EPOCH)) == epochs + 1
    assert world.view().phase is Phase.LIMITED
