"""Links and samples: against the real kernel, against each other's decoders, and against torn dumps."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link, Snapshot, Source
from limiterd.core.units import NS_PER_SECOND
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import (
    NLM_F_ACK_TLVS,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    MalformedMessage,
    Message,
    attr,
    boottime_ns,
    encode,
)
from limiterd.kernel.samplers import NetlinkSampler, PsutilSampler, open_sampler
from limiterd.kernel.statsdump import RTM_NEWSTATS, Columns, decode_stats
from limiterd.sim.netns import Namespace, Pair, PrivateNet, inside, route_in, run
from tests.netns import in_child, wait_for

INTERVAL_NS = NS_PER_SECOND // 10
SEQUENCE = 77


@pytest.fixture
def sampler(pair: Pair, table: LinkTable) -> Iterator[NetlinkSampler]:
    """A netlink sampler of the near namespace."""
    with inside(pair.near.namespace):
        made = NetlinkSampler(table, INTERVAL_NS)
    with contextlib.closing(made):
        yield made


def ip(namespace: Namespace, command: str) -> str:
    """Run ip inside the namespace."""
    return run(namespace, ["ip", *command.split()]).stdout


def taken(sampler: NetlinkSampler | PsutilSampler) -> Snapshot:
    """A snapshot that was not dropped (a busy machine may drop some)."""
    snapshot = wait_for(sampler.sample, "a sample that is not dropped")
    assert snapshot is not None
    return snapshot


def by_name(snapshot: Snapshot) -> dict[str, int]:
    """tx_bytes by interface name."""
    return {link.name: tx for link, tx in zip(snapshot.links, snapshot.tx_bytes, strict=True)}


# ---- the table -----------------------------------------------------------------------------------


@pytest.mark.root
def test_a_link_has_its_kernel_properties(pair: Pair, table: LinkTable) -> None:
    """Name, MAC, MTU, queues, GSO size and state are those that ip shows."""
    ip(pair.near.namespace, "link set eth0 mtu 1400 gso_max_size 40000 address 02:00:00:00:00:07")
    ip(pair.near.namespace, "link add v1 numtxqueues 3 type veth peer name v2")
    assert table.refresh()
    by_link = {link.name: link for link in table.links}
    assert by_link["eth0"] == Link(
        pair.near.ifindex, "eth0", "02:00:00:00:00:07", 1400, 40_000, by_link["eth0"].tx_queues, kind="veth"
    )
    assert (by_link["v1"].tx_queues, by_link["v1"].up) == (3, False)
    assert by_link["lo"].mac == ""


@pytest.mark.root
def test_the_tuple_is_the_same_while_nothing_changed(pair: Pair, table: LinkTable) -> None:
    """A refresh that finds nothing new hands out the identical tuple; a rename hands out another."""
    before = table.links
    assert not table.refresh()
    assert table.links is before
    ip(pair.near.namespace, "link set eth0 down")
    ip(pair.near.namespace, "link set eth0 name wan0")
    assert table.refresh()
    renamed = table.get(pair.near.ifindex)
    assert renamed is not None
    assert (renamed.name, renamed.up, renamed.incarnation) == ("wan0", False, 0)


# ---- the netlink sampler -------------------------------------------------------------------------


@pytest.mark.root
def test_samples_are_the_kernels_counters(lab: PrivateNet, pair: Pair, sampler: NetlinkSampler) -> None:
    """What the kernel shows for the link lies between two samples around it, and none is below what was received."""
    flow = lab.tcp(pair.near, pair.far)
    wait_for(lambda: flow.stats()["received_bytes"] > 10_000_000, "ten megabytes")
    received = flow.stop()["received_bytes"]
    before = by_name(taken(sampler))["eth0"]
    with route_in(pair.near.namespace) as route:
        (link,) = route.get_links(pair.near.ifindex)
        shown = link.get_attr("IFLA_STATS64")["tx_bytes"]
    assert received <= before <= shown <= by_name(taken(sampler))["eth0"]


@pytest.mark.root
def test_the_stamp_is_the_clock_before_the_dump(pair: Pair, table: LinkTable) -> None:
    """Stamps lie between the caller's own readings of CLOCK_BOOTTIME."""
    with inside(pair.near.namespace), contextlib.closing(NetlinkSampler(table, INTERVAL_NS)) as made:
        before = boottime_ns()
        snapshot = taken(made)
        assert before <= snapshot.t_ns <= boottime_ns()


@pytest.mark.root
@pytest.mark.parametrize("kind", [NetlinkSampler, PsutilSampler])
@pytest.mark.parametrize(("took_ns", "kept"), [(INTERVAL_NS // 2, True), (INTERVAL_NS // 2 + 1, False)])
def test_slow_samples_are_dropped_and_counted(
    pair: Pair, table: LinkTable, kind: type[NetlinkSampler | PsutilSampler], took_ns: int, *, kept: bool
) -> None:
    """Half an interval between the clock readings is kept, a nanosecond more is not."""
    readings = iter([1_000, 1_000 + took_ns])
    with inside(pair.near.namespace), contextlib.closing(kind(table, INTERVAL_NS, lambda: next(readings))) as made:
        snapshot = made.sample()
    assert (snapshot is not None) == kept
    assert made.dropped == (not kept)
    if snapshot is not None:
        assert snapshot.t_ns == 1_000


@pytest.mark.root
def test_links_are_the_same_object_while_nothing_changed(pair: Pair, table: LinkTable, sampler: NetlinkSampler) -> None:
    """Consumers may compare by identity, from the first sample to the next change."""
    first, second = taken(sampler), taken(sampler)
    assert first.links is second.links is table.links
    ip(pair.near.namespace, "link add v1 type veth peer name v2")
    third, fourth = taken(sampler), taken(sampler)
    assert third.links is fourth.links is not first.links
    assert {"v1", "v2"} <= by_name(third).keys()


@pytest.mark.root
def test_a_link_that_appears_or_vanishes_needs_no_event(pair: Pair, sampler: NetlinkSampler) -> None:
    """The dump itself tells: the table refreshes, links and counters stay in step."""
    for number in range(3):
        ip(pair.near.namespace, f"link add v{number} type veth peer name w{number}")
        assert {f"v{number}", f"w{number}"} <= by_name(taken(sampler)).keys()
    ip(pair.near.namespace, "link del v1")
    assert by_name(taken(sampler)).keys() >= {"v0", "v2", "w0", "w2", "eth0"}
    assert not by_name(taken(sampler)).keys() & {"v1", "w1"}


@pytest.mark.root
def test_a_link_that_moves_away_is_gone(pair: Pair, lab: PrivateNet, sampler: NetlinkSampler) -> None:
    """A link in another namespace is in its samples no more."""
    other = lab.namespace()
    assert "eth0" in by_name(taken(sampler))
    with route_in(pair.near.namespace) as route:
        route.link("set", index=pair.near.ifindex, net_ns_fd=other.fd)
    assert "eth0" not in by_name(taken(sampler))


@pytest.mark.root
def test_dumps_of_many_datagrams_are_one_sample(pair: Pair, sampler: NetlinkSampler) -> None:
    """More links than a datagram and than the first buffer hold: each is there once, with its own counter."""
    with route_in(pair.near.namespace) as route:
        for number in range(320):
            route.link("add", ifname=f"a{number}", kind="veth", peer={"ifname": f"b{number}"})
    snapshot = taken(sampler)
    assert len(snapshot.links) == len(snapshot.tx_bytes) == len({link.name for link in snapshot.links}) >= 642
    assert snapshot.links is taken(sampler).links
    assert {f"a{n}" for n in range(320)} <= by_name(snapshot).keys()


@pytest.mark.root
def test_churn_never_breaks_a_sample(pair: Pair, table: LinkTable, sampler: NetlinkSampler) -> None:
    """Random links that come and go between and during samples: every sample names links that are all different."""
    dice = random.Random(7)  # noqa: S311 # a reproducible course, no secret
    alive: list[str] = []
    with route_in(pair.near.namespace) as route:
        for number in range(120):
            if alive and dice.random() < 0.45:
                route.link("del", ifname=alive.pop(dice.randrange(len(alive))))
            else:
                alive.append(f"c{number}")
                route.link("add", ifname=alive[-1], kind="veth", peer={"ifname": f"d{number}"})
            snapshot = taken(sampler)
            names = [link.name for link in snapshot.links]
            assert len(names) == len(set(names)) == len(snapshot.tx_bytes)
            assert set(alive) <= set(names)
    assert taken(sampler).links == table.links


@pytest.mark.root
def test_a_timed_out_sample_is_a_fault_and_the_next_is_clean(sampler: NetlinkSampler) -> None:
    """A socket that brings no answer is replaced: the next sample works."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 50_000))
    netlink = sampler._socket
    real, netlink._socket = netlink._socket, near
    netlink.reopen = lambda: setattr(netlink, "_socket", real)  # type: ignore[method-assign]
    with far, pytest.raises(EnvironmentFault) as caught:
        sampler.sample()
    near.close()
    assert (caught.value.operation, caught.value.errno_name) == ("sample", "ETIMEDOUT")
    assert "eth0" in by_name(taken(sampler))


# ---- decoding ------------------------------------------------------------------------------------

counters = st.integers(0, 2**64 - 1)
dumps = st.lists(st.tuples(st.integers(1, 2**31 - 1), counters), min_size=1, max_size=20, unique_by=lambda pair: pair[0])


def stats_record(ifindex: int, tx_bytes: int, *, words: int = 25, flags: int = 2, sequence: int = SEQUENCE) -> bytes:
    """One RTM_NEWSTATS as the kernel lays it out; words is the length of its rtnl_link_stats64."""
    stats = struct.pack("=4Q", 1, 2, 3, tx_bytes) + bytes(8 * (words - 4))
    return encode(Message(RTM_NEWSTATS, flags, struct.pack("=B3xII", 0, ifindex, 1) + attr(1, stats)), sequence, 0)


@given(dumps, st.integers(4, 30))
def test_both_decoders_agree(dump: list[tuple[int, int]], words: int) -> None:
    """On equal records, of any kernel's length, columns and walking give the same."""
    view = memoryview(bytearray(b"".join(stats_record(i, tx, words=words) for i, tx in dump)))
    ids, tx_bytes = struct.pack(f"={len(dump)}I", *(i for i, _ in dump)), [tx for _, tx in dump]
    found = Columns(view).read(SEQUENCE)
    assert found is not None
    assert (found[0], list(found[1])) == (ids, tx_bytes)
    assert decode_stats(view, SEQUENCE) == (ids, tx_bytes, False)


@given(dumps, st.data())
def test_one_odd_record_sends_the_dump_to_the_walker(dump: list[tuple[int, int]], data: st.DataObject) -> None:
    """Another length, an interrupt flag, a foreign sequence number, anywhere: never read by columns, never misread."""
    odd_at = data.draw(st.integers(0, len(dump) - 1))
    odd = data.draw(st.sampled_from([{"words": 26}, {"flags": 2 | NLM_F_DUMP_INTR}, {"sequence": SEQUENCE + 1}]))
    options: list[dict[str, Any]] = [odd if i == odd_at else {} for i in range(len(dump))]
    view = memoryview(bytearray(b"".join(stats_record(*r, **o) for r, o in zip(dump, options, strict=True))))
    alone = len(dump) == 1 and "words" in odd
    assert (Columns(view).read(SEQUENCE) is None) != alone
    kept = [record for record, option in zip(dump, options, strict=True) if "sequence" not in option]
    ids, tx_bytes, interrupted = decode_stats(view, SEQUENCE)
    assert list(zip(memoryview(ids).cast("I").tolist(), tx_bytes, strict=True)) == kept
    assert interrupted == ("flags" in odd)


def test_a_padded_attribute_is_found() -> None:
    """Machines that need alignment put an empty attribute in front: the walker reads behind it."""
    body = struct.pack("=B3xII", 0, 5, 1) + attr(0, b"") + attr(1, struct.pack("=25Q", 1, 2, 3, 42, *range(21)))
    view = memoryview(bytearray(encode(Message(RTM_NEWSTATS, 2, body), SEQUENCE, 0)))
    assert Columns(view).read(SEQUENCE) is None
    assert decode_stats(view, SEQUENCE) == (struct.pack("=I", 5), [42], False)


@given(st.binary(min_size=16, max_size=300), st.integers(0, 2**32 - 1))
def test_noise_raises_only_the_documented_errors(noise: bytes, sequence: int) -> None:
    """Any bytes yield a list as long as its ifindexes, or one of the documented errors."""
    view = memoryview(bytearray(noise[: len(noise) - len(noise) % 8]))
    columns = Columns(view).read(sequence)
    if columns is not None:
        assert len(columns[0]) == 4 * len(columns[1])
    with contextlib.suppress(EnvironmentFault):
        ids, tx_bytes, _ = decode_stats(view, sequence)
        assert len(ids) == 4 * len(tx_bytes)


@given(dumps, st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_raises_only_the_documented_errors(dump: list[tuple[int, int]], at: int, value: int) -> None:
    """A dump with one byte changed decodes to as many counters as ifindexes, or raises MalformedMessage."""
    wire = bytearray(b"".join(stats_record(i, tx) for i, tx in dump) + encode(Message(NLMSG_DONE, 2, bytes(4)), SEQUENCE, 0))
    wire[at % len(wire)] = value
    with contextlib.suppress(MalformedMessage, EnvironmentFault):
        ids, tx_bytes, _ = decode_stats(memoryview(wire), SEQUENCE)
        assert len(ids) == 4 * len(tx_bytes)


def played(sampler: NetlinkSampler, *datagrams: Callable[[int], bytes]) -> tuple[dict[int, int], bool]:
    """What the sampler makes of these datagrams ({ifindex: tx_bytes}, interrupted) when the kernel sends them."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    netlink = sampler._socket
    real, netlink._socket = netlink._socket, near
    netlink.reopen = lambda: None  # type: ignore[method-assign]
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 200_000))
    with near, far:
        for datagram in datagrams:
            far.send(datagram(netlink._sequence + 1))
        try:
            ids, tx_bytes, interrupted = sampler._dump_once()
        finally:
            netlink._socket = real
    return dict(zip(memoryview(ids).cast("I").tolist(), tx_bytes, strict=True)), interrupted


def records(dump: list[tuple[int, int]], **options: int) -> Callable[[int], bytes]:
    """A datagram of records."""
    return lambda n: b"".join(stats_record(*one, sequence=n, **options) for one in dump)


def both(first: Callable[[int], bytes], second: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Two in one datagram."""
    return lambda n: first(n) + second(n)


def end(text: str = "", code: int = 0) -> Callable[[int], bytes]:
    """The end of a dump, with the kernel's text where it has one."""
    tlvs = attr(1, text.encode()) if text else b""
    flags = 2 | (NLM_F_ACK_TLVS if text else 0)
    return lambda n: encode(Message(NLMSG_DONE, flags, struct.pack("=i", -code) + tlvs), n, 0)


@pytest.mark.root
def test_every_way_in_which_a_dump_can_arrive(sampler: NetlinkSampler) -> None:
    """One datagram or many, the end apart or with the last records, with or without a text, records of two lengths."""
    one, two = [(1, 10), (2, 20)], [(3, 30), (4, 40)]
    whole = dict(one + two)
    assert played(sampler, records(one), records(two), end()) == (whole, False)
    for ended in map(end, ("", "x", "xxxxx", "long enough to be any length")):
        assert played(sampler, records(one), both(records(two), ended)) == (whole, False)
        assert played(sampler, records(one), records(two), ended) == (whole, False)
    assert played(sampler, records(one), records(two, words=27), end()) == (whole, False)
    assert played(sampler, records(one, flags=2 | NLM_F_DUMP_INTR), records(two), end()) == (whole, True)
    assert played(sampler, records(one), records(two), end()) == (whole, False)


@pytest.mark.root
@pytest.mark.parametrize("text", ["", "no", "no statistics for you", "eight888"])
def test_a_refused_dump_is_a_fault_at_once(sampler: NetlinkSampler, text: str) -> None:
    """An error in place of records is raised with the kernel's errno, whatever its length; no time-out is waited for."""
    with pytest.raises(EnvironmentFault) as caught:
        played(sampler, end(text, errno.EOPNOTSUPP))
    assert (caught.value.errno_name, caught.value.operation) == ("EOPNOTSUPP", "sample")


# ---- psutil, and choosing ------------------------------------------------------------------------


def psutil_sample() -> Snapshot | None:
    """One sample by psutil in this process, without a link table."""
    return PsutilSampler(None, 10 * INTERVAL_NS).sample()


@pytest.mark.root
def test_psutil_sees_what_netlink_sees(lab: PrivateNet, pair: Pair, sampler: NetlinkSampler) -> None:
    """What psutil reads lies between two netlink readings around it, under the same names and ifindexes."""
    flow = lab.tcp(pair.near, pair.far)
    wait_for(lambda: flow.stats()["received_bytes"] > 1_000_000, "a megabyte")
    flow.stop()
    before = by_name(taken(sampler))
    by_psutil = in_child(pair.near.namespace, psutil_sample)
    by_netlink = taken(sampler)
    assert by_psutil is not None
    for name, tx_bytes in by_name(by_psutil).items():
        assert before[name] <= tx_bytes <= by_name(by_netlink)[name]
    assert {(x.ifindex, x.name) for x in by_psutil.links} == {(x.ifindex, x.name) for x in by_netlink.links}


def psutil_with_table() -> tuple[bool, tuple[Link, ...], tuple[Link, ...]]:
    """(whether links stay the same object, the sample's links, the table's) in this process."""
    table = LinkTable()
    made = PsutilSampler(table, 10 * INTERVAL_NS)
    first, second = taken(made), taken(made)
    table.close()
    return first.links is second.links, first.links, table.links


def psutil_of_a_link_that_the_table_lacks() -> Link | None:
    """How psutil's sampler shows eth0 in this process where no event has told the table of it yet."""
    table = LinkTable()
    made = PsutilSampler(table, 10 * INTERVAL_NS)
    table._links.clear()
    shown = next((link for link in taken(made).links if link.name == "eth0"), None)
    table.close()
    return shown


@pytest.mark.root
def test_psutil_reads_the_table_anew_for_a_link_that_it_lacks(pair: Pair) -> None:
    """A link that came since the last events has its MAC in the first sample that shows it: its decision waits under that."""
    shown = in_child(pair.near.namespace, psutil_of_a_link_that_the_table_lacks)
    assert shown is not None
    assert shown.mac


@pytest.mark.root
def test_psutil_uses_the_table_where_there_is_one(pair: Pair) -> None:
    """With a table the links are the table's, with MAC and MTU."""
    same, sampled, known = in_child(pair.near.namespace, psutil_with_table)
    assert same
    assert set(sampled) == set(known)
    assert all(link.mac for link in sampled if link.name == "eth0")


def test_psutil_does_not_hide_a_fallen_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """nowrap=False reaches psutil: a counter that goes back is handed out as it is."""
    asked: list[dict[str, object]] = []

    def recorded(**options: object) -> dict[str, Any]:
        asked.append(options)
        return {}

    monkeypatch.setattr("limiterd.kernel.samplers.psutil.net_io_counters", recorded)
    assert psutil_sample() is not None
    assert asked == [{"pernic": True, "nowrap": False}]


@pytest.mark.root
def test_auto_takes_netlink_where_it_works(pair: Pair, table: LinkTable) -> None:
    """Auto and netlink give the netlink sampler, psutil gives psutil's, none with a complaint."""
    with inside(pair.near.namespace):
        for source, name in ((Source.AUTO, "netlink"), (Source.NETLINK, "netlink"), (Source.PSUTIL, "psutil")):
            with contextlib.closing(open_sampler(source, table, INTERVAL_NS)) as made:
                assert (made.name, made.why) == (name, "")


def test_auto_falls_back_and_says_why() -> None:
    """Without netlink auto gives psutil with the reason; a demand for netlink is an error."""
    made = open_sampler(Source.AUTO, None, INTERVAL_NS)
    assert made.name == "psutil"
    assert "netlink" in made.why
    with pytest.raises(EnvironmentFault, match="netlink"):
        open_sampler(Source.NETLINK, None, INTERVAL_NS)


def test_auto_falls_back_when_the_first_sample_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that opens the socket but refuses the dump leads to psutil too."""

    def refused(_: NetlinkSampler) -> Snapshot | None:
        raise EnvironmentFault("netlink: no statistics here", operation="sample")

    monkeypatch.setattr(NetlinkSampler, "sample", refused)
    with contextlib.closing(LinkTable()) as own:
        made = open_sampler(Source.AUTO, own, INTERVAL_NS)
    assert (made.name, made.why) == ("psutil", "netlink: no statistics here")


def test_the_clock_is_boottime() -> None:
    """The stamp's clock agrees with the kernel's own uptime (which counts suspend) within a second."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(boottime_ns() / NS_PER_SECOND - uptime_s) < 5


def test_a_look_finds_what_no_event_told(pair: Pair, table: LinkTable) -> None:
    """The largest GSO packet changes in silence: a look learns it, the next one nothing; links that are gone are left out."""
    before = table.links
    run(pair.near.namespace, ["ip", "link", "set", "eth0", "gso_max_size", "196608"])
    learn = table.look([pair.near.ifindex, 4242])
    assert table.links is before
    assert {ifindex: link.gso_max_bytes for ifindex, link in learn().items()} == {pair.near.ifindex: 196_608}
    after = table.links
    assert after is not before
    assert table.look([pair.near.ifindex])() == {pair.near.ifindex: table.get(pair.near.ifindex)}
    assert table.links is after


@pytest.mark.root
def test_what_a_link_is_bound_to_and_called(pair: Pair, table: LinkTable) -> None:
    """Altnames, kind, master and lower link as the kernel has them, gone again with the next message that leaves them out."""
    ip(pair.near.namespace, "link add link eth0 name mac0 type macvlan")
    ip(pair.near.namespace, "link property add dev mac0 altname lan0 altname lan1")
    table.refresh()
    found = next(link for link in table.links if link.name == "mac0")
    assert (found.altnames, found.kind, found.link_ifindex) == (("lan0", "lan1"), "macvlan", pair.near.ifindex)
    lower = table.get(pair.near.ifindex)
    assert lower is not None
    assert lower.link_ifindex == 0  # its peer is in another namespace
    ip(pair.near.namespace, "link property del dev mac0 altname lan0")
    table.refresh()
    assert next(link for link in table.links if link.name == "mac0").altnames == ("lan1",)
