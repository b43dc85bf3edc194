"""Top talkers against the real kernel, and the record decoder against hypothesis."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault
from limiterd.core.ports import TcpSocket
from limiterd.kernel import sockets
from limiterd.kernel.netlink import NLMSG_DONE, MalformedMessage, Message, attr, encode
from limiterd.kernel.sockets import SocketDiag, sent_bytes, tcp_socket
from limiterd.sim.netns import Pair, PrivateNet, inside, run
from tests.netns import wait_for

MEGABYTE = 1_000_000


@pytest.fixture
def diag(pair: Pair) -> Iterator[SocketDiag]:
    """Reads the sockets of the near namespace."""
    with inside(pair.near.namespace):
        made = SocketDiag()
    with contextlib.closing(made):
        yield made


def by_cookie(sent: array[int]) -> dict[int, int]:
    """{cookie: bytes sent}."""
    return dict(zip(sent[::2], sent[1::2], strict=True))


def all_sockets(diag: SocketDiag) -> list[TcpSocket]:
    """Every socket there is now, described."""
    return list(diag.describe(by_cookie(diag.read())).values())


@contextlib.contextmanager
def connected(pair: Pair, host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(near, far): a connection from the near namespace to an address of the far one, or of the near one itself."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = pair.far.namespace if host in (pair.far.v4, pair.far.v6) else pair.near.namespace
    with inside(server):
        listener = socket.create_server((host, 0), family=family)
    with listener, inside(pair.near.namespace), socket.create_connection(listener.getsockname()[:2], timeout=5) as near:
        far, _ = listener.accept()
        with far:
            yield near, far


# ---- the kernel ----------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("version", ["v4", "v6"])
def test_a_connection_is_found_with_what_it_sent(pair: Pair, diag: SocketDiag, version: str) -> None:
    """Addresses, ports, owner and inode are the socket's own; bytes sent are exact."""
    with connected(pair, getattr(pair.far, version)) as (near, far):
        near.sendall(bytes(MEGABYTE // 10))
        far.setblocking(True)
        received = 0
        while received < MEGABYTE // 10:
            received += len(far.recv(65536))
        ((cookie, sent),) = by_cookie(diag.read()).items()
        (found,) = all_sockets(diag)
        assert sent == MEGABYTE // 10
        assert found == TcpSocket(
            cookie,
            getattr(pair.near, version),
            near.getsockname()[1],
            getattr(pair.far, version),
            near.getpeername()[1],
            0,
            os.getuid(),
            os.fstat(near.fileno()).st_ino,
        )


@pytest.mark.root
def test_bytes_sent_follow_a_flow(lab: PrivateNet, pair: Pair, diag: SocketDiag) -> None:
    """Each stream's count rises under the same cookie, and together they are at least what arrived."""
    flow = lab.tcp(pair.near, pair.far, streams=3)
    wait_for(lambda: flow.stats()["received_bytes"] > MEGABYTE, "a megabyte")
    first = by_cookie(diag.read())
    wait_for(lambda: flow.stats()["received_bytes"] > 50 * MEGABYTE, "fifty megabytes")
    received = flow.stats()["received_bytes"]
    second = by_cookie(diag.read())
    assert len(first) == 3
    assert first.keys() == second.keys()
    assert all(second[cookie] >= first[cookie] for cookie in first)
    assert sum(second.values()) >= received


@pytest.mark.root
def test_only_established_sockets_of_this_namespace(pair: Pair, diag: SocketDiag) -> None:
    """Listeners, closed connections and other namespaces' sockets are not there."""
    assert not diag.read()
    with connected(pair, pair.far.v4) as (near, _):
        assert [s.local_port for s in all_sockets(diag)] == [near.getsockname()[1]]
    assert not diag.read()


@pytest.mark.root
def test_a_mapped_address_reads_as_ipv4(pair: Pair, diag: SocketDiag) -> None:
    """An IPv6 socket that speaks IPv4 is shown, and routed, as IPv4."""
    with inside(pair.far.namespace):
        listener = socket.create_server((pair.far.v4, 0))
    with listener, inside(pair.near.namespace), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as near:
        near.connect((f"::ffff:{pair.far.v4}", listener.getsockname()[1]))
        (found,) = all_sockets(diag)
        assert (found.local, found.remote) == (pair.near.v4, pair.far.v4)
        assert diag.egress([found]) == [pair.near.ifindex]


@pytest.mark.root
def test_egress_is_what_routing_says(pair: Pair, diag: SocketDiag) -> None:
    """Connections over the link leave by it, those within the host by loopback, a bound one by its device."""
    with contextlib.ExitStack() as stack:
        for host in (pair.far.v4, pair.far.v6, "127.0.0.1", "::1", pair.near.v4):
            stack.enter_context(connected(pair, host))
        found = all_sockets(diag)
        leaving = dict(zip(found, diag.egress(found), strict=True))
    for one, ifindex in leaving.items():
        over_the_link = {one.local, one.remote} & {pair.far.v4, pair.far.v6}
        assert ifindex == (pair.near.ifindex if over_the_link else 1), one
    unknown = TcpSocket(1, "10.77.1.1", 1, "203.0.113.9", 2, 0, 0, 0)
    bound = TcpSocket(2, "10.77.1.1", 1, "203.0.113.9", 2, 5, 0, 0)
    assert diag.egress([unknown, bound]) == [0, 5]


@pytest.mark.root
def test_a_link_carries_what_stands_on_it(pair: Pair, diag: SocketDiag) -> None:
    """A bridge over the link and a macvlan on the bridge are carried by it; a veth's peer is not."""
    for command in (
        "link add br0 type bridge",
        "link set eth0 master br0",
        "link add link br0 name mv0 type macvlan",
        "link add v1 type veth peer name v2",
    ):
        run(pair.near.namespace, ["ip", *command.split()])
    with inside(pair.near.namespace):
        index = {name: number for number, name in socket.if_nameindex()}
    assert diag.carried_by(index["eth0"]) == {index["eth0"], index["br0"], index["mv0"]}
    assert diag.carried_by(index["v1"]) == {index["v1"]}


@pytest.mark.root
def test_many_sockets_are_each_read_once(pair: Pair, diag: SocketDiag) -> None:
    """Dumps of several datagrams, of both families, name every socket once."""
    with contextlib.ExitStack() as stack:
        for host in (pair.far.v4, pair.far.v6) * 120:
            stack.enter_context(connected(pair, host))
        found = diag.read()
        assert len(found) == 2 * 240 == 2 * len(by_cookie(found))
        assert len(all_sockets(diag)) == 240


# ---- records -------------------------------------------------------------------------------------

SEQUENCE = 9
cookies = st.integers(0, 2**64 - 1)
records = st.lists(st.tuples(cookies, cookies), min_size=1, max_size=20)


def record(cookie: int, sent: int, *, info_bytes: int = 248, more: bytes = b"") -> bytes:
    """One record as inet_diag lays it out; more stands before tcp_info."""
    head = struct.pack("=BBBB", socket.AF_INET, 1, 0, 0) + struct.pack("!HH", 80, 443)
    ends = bytes([10, 0, 0, 1]) + bytes(12) + bytes([10, 0, 0, 2]) + bytes(12)
    owner = struct.pack("=IQIIIII", 3, cookie, 0, 0, 0, 1000, 4242)
    info = bytes(120) + struct.pack("=Q", sent // 2) + bytes(72) + struct.pack("=Q", sent) + bytes(400)
    return encode(Message(20, 2, head + ends + owner + attr(8, b"\0") + more + attr(2, info[:info_bytes])), SEQUENCE, 0)


def done(code: int = 0) -> bytes:
    """The end of a dump."""
    return encode(Message(NLMSG_DONE, 2, struct.pack("=i", -code)), SEQUENCE, 0)


@given(records, st.integers(-1, 20), st.booleans())
def test_both_ways_of_reading_agree(wanted: list[tuple[int, int]], odd_at: int, ended: bool) -> None:  # noqa: FBT001
    """Whether all records are alike or one says more, each cookie comes with its own count, in order."""
    wire = b"".join(record(*r, more=attr(19, b"ktls") if i == odd_at else b"") for i, r in enumerate(wanted))
    found = sent_bytes(wire + (done() if ended else b""))
    assert list(found) == list(itertools.chain.from_iterable(wanted))


@pytest.mark.parametrize(("info_bytes", "expected"), [(248, 1000), (208, 1000), (200, 500), (128, 500), (104, 0), (0, 0)])
def test_kernels_of_every_age_are_read(info_bytes: int, expected: int) -> None:
    """Before bytes_sent there was bytes_acked, and before that nothing: 0, not a guess."""
    assert list(sent_bytes(record(7, 1000, info_bytes=info_bytes))) == [7, expected]


def test_a_record_decodes_to_its_fields() -> None:
    """Every field stands where inet_diag.h says."""
    payload = memoryview(record(7, 1))[16:]
    assert tcp_socket(payload) == TcpSocket(7, "10.0.0.1", 80, "10.0.0.2", 443, 3, 1000, 4242)


@given(st.binary(max_size=400))
def test_noise_raises_only_the_documented_error(noise: bytes) -> None:
    """Any bytes give whole pairs or MalformedMessage."""
    with contextlib.suppress(MalformedMessage):
        assert len(sent_bytes(noise)) % 2 == 0
    with contextlib.suppress(MalformedMessage):
        tcp_socket(memoryview(noise))


@given(records, st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_raises_only_the_documented_error(wanted: list[tuple[int, int]], at: int, value: int) -> None:
    """A dump with one byte changed gives whole pairs or MalformedMessage; so does looking for its end."""
    wire = bytearray(b"".join(record(*r) for r in wanted) + done())
    wire[at % len(wire)] = value
    with contextlib.suppress(MalformedMessage):
        assert len(sent_bytes(bytes(wire))) % 2 == 0
    with contextlib.suppress(EnvironmentFault):
        sockets._has_ended(bytes(wire), SEQUENCE)


def test_a_kernel_without_tcp_diag_says_so() -> None:
    """The error at a dump's end is raised, with the module that is missing."""
    with pytest.raises(EnvironmentFault, match="tcp_diag") as caught:
        sockets._has_ended(done(errno.ENOENT), SEQUENCE)
    assert (caught.value.operation, caught.value.errno_name) == ("sockets", "ENOENT")
