"""The framing: encoded and decoded again, torn at by hypothesis, and spoken with the real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault, PermissionFault
from limiterd.kernel import netlink
from limiterd.kernel.netlink import (
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_CREATE,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_HEADER,
    Frame,
    MalformedMessage,
    Message,
    NetlinkSocket,
    Overrun,
    attr,
    attr_list,
    attrs,
    decode_ack,
    encode,
    frames,
    nested,
    text_of,
)
from limiterd.sim.netns import Pair, PrivateNet, inside, run

RTM_NEWLINK, RTM_GETLINK, RTM_GETADDR, RTM_NEWQDISC = 16, 18, 22, 36
IFINFO = struct.Struct("=BxHiII")
IFADDR = struct.Struct("=BxxxI")
TCMSG = struct.Struct("=BxxxiIII")

texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))
payloads = st.binary(max_size=64)
messages = st.builds(Message, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), payloads)


def link_request(ifindex: int) -> Message:
    """RTM_GETLINK of one link."""
    return Message(RTM_GETLINK, 0, IFINFO.pack(0, 0, ifindex, 0, 0))


# ---- encoding and decoding -----------------------------------------------------------------------


@given(st.lists(st.tuples(messages, st.integers(0, 0xFFFFFFFF)), max_size=8))
def test_what_is_encoded_decodes_to_itself(sent: list[tuple[Message, int]]) -> None:
    """A datagram of any messages yields them again, in order, whatever their lengths."""
    wire = b"".join(encode(message, number, 0) for message, number in sent)
    assert [(f.type, f.flags, bytes(f.payload), f.sequence) for f in frames(wire)] == [(*m, n) for m, n in sent]


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), payloads), max_size=8))
def test_attributes_keep_order_and_bytes(sent: list[tuple[int, bytes]]) -> None:
    """attr_list gives back what attr packed; attrs keeps the last of a kind, as the kernel does."""
    wire = b"".join(attr(kind, payload) for kind, payload in sent)
    assert [(kind, bytes(p)) for kind, p in attr_list(wire)] == sent
    assert {kind: bytes(p) for kind, p in attrs(wire).items()} == dict(sent)


@given(st.integers(0, 0x3FFF), st.lists(payloads, max_size=4))
def test_nesting_is_seen_through(kind: int, inner: list[bytes]) -> None:
    """A nested attribute carries the flag on the wire and the bare kind after decoding."""
    wire = nested(kind, *(attr(i, p) for i, p in enumerate(inner)))
    assert struct.unpack_from("=HH", wire)[1] & netlink.NLA_F_NESTED
    assert [bytes(p) for _, p in attr_list(attrs(wire)[kind])] == inner


def test_an_attribute_too_long_for_its_header_is_refused() -> None:
    """What would wrap the 16-bit length is an error of the caller."""
    assert len(attr(1, bytes(65_531))) == 65_536
    with pytest.raises(ValueError, match="65532"):
        attr(1, bytes(65_532))


@given(st.binary(max_size=200))
@example(NLMSG_HEADER.pack(0, 2, 0, 0, 0))
@example(NLMSG_HEADER.pack(15, 2, 0, 0, 0))
@example(NLMSG_HEADER.pack(20, 2, NLM_F_ACK_TLVS, 0, 0) + bytes(4))
def test_any_bytes_raise_only_the_documented_error(noise: bytes) -> None:
    """Whatever arrives, decoding ends, and raises MalformedMessage or nothing."""
    decoders: list[Callable[[bytes], object]] = [attrs, lambda b: text_of(memoryview(b)), decode_everything]
    for decode in decoders:
        with contextlib.suppress(MalformedMessage):
            decode(noise)


def decode_everything(noise: bytes) -> None:
    """Frames, and each frame as if it were an acknowledgement."""
    for frame in frames(noise):
        with contextlib.suppress(MalformedMessage):
            decode_ack(frame)


@given(payloads, st.integers(0, 0xFFFF), st.integers(0, 60))
def test_lengths_that_lie_are_found(payload: bytes, claimed: int, cut: int) -> None:
    """A header whose length does not fit what is there never yields a payload beyond it."""
    wire = NLMSG_HEADER.pack(claimed, 1, 0, 0, 0) + payload
    with contextlib.suppress(MalformedMessage):
        for frame in frames(wire[: len(wire) - min(cut, len(wire))]):
            assert len(frame.payload) <= len(payload)


@given(texts, st.integers(1, 133), st.booleans())
def test_the_kernels_words_are_found_behind_any_echo(said: str, code: int, capped: bool) -> None:  # noqa: FBT001
    """The extended ack is read behind a capped echo, a whole echo, and in a DONE."""
    tlv = attr(1, said.encode() + b"\0")
    echo = encode(Message(36, 0, b"x" * 21), 7, 0)
    header = echo[: NLMSG_HEADER.size]
    error = struct.pack("=i", -code) + (header if capped else echo) + tlv
    flags = NLM_F_ACK_TLVS | (NLM_F_CAPPED if capped else 0)
    assert decode_ack(Frame(NLMSG_ERROR, flags, 7, 0, memoryview(error))) == (code, said)
    done = struct.pack("=i", -code) + tlv
    assert decode_ack(Frame(NLMSG_DONE, NLM_F_ACK_TLVS, 7, 0, memoryview(done))) == (code, said)


def test_names_that_are_no_text_stay_what_they_are() -> None:
    """Bytes that are not UTF-8 are kept as the file system's names are, never an exception, never another name."""
    for raw in (b"eth\xff", b"eth\\xff", b"eth\xfe"):
        assert os.fsencode(text_of(memoryview(raw + b"\0junk"))) == raw


# ---- the kernel ----------------------------------------------------------------------------------


@pytest.mark.root
def test_many_requests_are_answered_in_order(pair: Pair) -> None:
    """Each request has its own ack and its own replies, also beyond one sendmsg's share."""
    with inside(pair.near.namespace), NetlinkSocket() as rtnl:
        wanted = [pair.near.ifindex, 1, 999] * 60
        acks = rtnl.request([link_request(ifindex) for ifindex in wanted])
    assert [ack.errno for ack in acks] == [0, 0, errno.ENODEV] * 60
    for ifindex, ack in zip(wanted, acks, strict=True):
        assert [IFINFO.unpack_from(p)[2] for _, p in ack.replies] == ([ifindex] if ack.ok else [])


@pytest.mark.root
def test_a_failed_message_does_not_stop_the_next(pair: Pair) -> None:
    """The kernel works every message of a batch off; the errors stand where they belong."""

    def add(handle: int) -> Message:
        body = TCMSG.pack(0, pair.near.ifindex, handle, 0xFFFFFFFF, 0) + attr(1, b"pfifo\0")
        return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)

    with inside(pair.near.namespace), NetlinkSocket() as rtnl:
        # tc equivalent: tc qdisc add dev eth0 root handle 1: pfifo (twice), then again with another handle
        first, second, third = rtnl.request([add(1 << 16), add(1 << 16), link_request(1)])
    assert (first.errno, second.errno, third.errno) == (0, errno.EEXIST, 0)
    assert second.text
    assert "pfifo 1: root" in run(pair.near.namespace, ["tc", "qdisc", "show", "dev", "eth0"]).stdout


@pytest.mark.root
def test_a_terse_request_still_tells_every_failure(lab: PrivateNet) -> None:
    """Acks asked for the last message only: failures anywhere stand in their places, the rest counts as done."""
    with inside(lab.namespace()), NetlinkSocket() as rtnl:
        for wanted in ([1, 999, 1], [999, 1, 998], [1, 1, 999], [1], [1, 999] * 50):
            acks = rtnl.request([link_request(ifindex) for ifindex in wanted], terse=True)
            assert [ack.errno for ack in acks] == [0 if ifindex == 1 else errno.ENODEV for ifindex in wanted]


@pytest.mark.root
def test_a_refused_dump_raises_with_the_kernels_errno(lab: PrivateNet) -> None:
    """The errno's symbol is on the exception; the socket goes on working."""
    with inside(lab.namespace()), NetlinkSocket() as rtnl:
        with pytest.raises(EnvironmentFault) as caught:
            rtnl.dump(38, b"x", operation="trial")
        assert (caught.value.errno_name, caught.value.operation) == ("EINVAL", "trial")
        assert rtnl.dump(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0))


@pytest.mark.root
def test_strict_checking_filters_in_the_kernel(pair: Pair) -> None:
    """A dump of addresses for one ifindex holds that link's only (without strict checking the kernel ignores the field)."""
    with inside(pair.near.namespace), NetlinkSocket() as rtnl:
        found = rtnl.dump(RTM_GETADDR, IFADDR.pack(0, pair.near.ifindex))
    assert {IFADDR.unpack_from(payload)[1] for _, payload in found} == {pair.near.ifindex}


@pytest.mark.root
def test_datagrams_of_any_size_are_read_whole(pair: Pair) -> None:
    """The buffer grows to what the kernel sends."""
    with inside(pair.near.namespace), NetlinkSocket() as rtnl:
        whole = rtnl.dump(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0))
        rtnl._buffer = bytearray(16)
        again = rtnl.dump(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0))
    assert [len(p) for _, p in again] == [len(p) for _, p in whole]


@pytest.mark.root
def test_an_overrun_is_told_and_the_socket_goes_on(lab: PrivateNet) -> None:
    """A listener that is too slow gets Overrun once, and then fresh events."""
    namespace = lab.namespace()
    with inside(namespace), NetlinkSocket(groups=(1,), rcvbuf_bytes=1) as events, NetlinkSocket() as rtnl:
        toggles = [Message(RTM_NEWLINK, 0, IFINFO.pack(0, 0, 1, up, 1)) for up in (0, 1) * 30]
        rtnl.request(toggles)
        with pytest.raises(Overrun) as caught:
            read_all(events)
        assert caught.value.errno_name == "ENOBUFS"
        assert events.receive() == []
        rtnl.request(toggles[:1])
        assert [frame.type for frame in events.receive()] == [RTM_NEWLINK]


def read_all(events: NetlinkSocket) -> None:
    """Receive until nothing waits."""
    while events.receive():
        pass


@pytest.mark.root
def test_reopening_keeps_the_port_id(lab: PrivateNet) -> None:
    """Events caused by a socket can be told as ours before and after it was reopened."""
    with inside(lab.namespace()), NetlinkSocket() as rtnl:
        before = rtnl.port_id
        rtnl.reopen()
        assert rtnl.port_id == before
        assert rtnl.request([link_request(1)])[0].ok


@pytest.mark.root
def test_a_socket_never_reopens_in_another_namespace(lab: PrivateNet) -> None:
    """Reopening from a thread that is elsewhere is an error, not a silent change of sides."""
    with inside(lab.namespace()):
        rtnl = NetlinkSocket()
    with rtnl, pytest.raises(EnvironmentFault, match="namespace"):
        rtnl.reopen()


# ---- a kernel that misbehaves: the other end of a socket pair --------------------------------------


@pytest.fixture
def played() -> Iterator[tuple[NetlinkSocket, socket.socket]]:
    """A NetlinkSocket whose kernel is the test: (it, the kernel's end). Reopened, it is the same pair again."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = NetlinkSocket(timeout_s=0.2)
    made.close()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 200_000))

    class FromKernel(socket.socket):
        def recvfrom_into(self, buffer: bytearray, nbytes: int = 0, flags: int = 0) -> tuple[int, tuple[int, int]]:  # type: ignore[override]
            return self.recv_into(buffer, nbytes, flags), (0, 0)

    made._socket = FromKernel(fileno=near.detach())
    made.reopen = lambda: None  # type: ignore[method-assign]
    with far:
        yield made, far
    made._socket.close()


def in_background(act: Callable[[], None]) -> threading.Thread:
    """Run the kernel's part."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def answer(far: socket.socket, *parts: Callable[[int], bytes]) -> None:
    """Read one request and answer each part, made from its sequence number, as a datagram of its own."""
    sequence = NLMSG_HEADER.unpack_from(far.recv(65536))[3]
    for part in parts:
        far.send(part(sequence))


def done(flags: int = 0) -> Callable[[int], bytes]:
    """NLMSG_DONE."""
    return lambda n: encode(Message(NLMSG_DONE, flags, bytes(4)), n, 0)


def record(payload: bytes, *, offset: int = 0, flags: int = 0) -> Callable[[int], bytes]:
    """One object of a dump; offset moves its sequence number away."""
    return lambda n: encode(Message(RTM_NEWLINK, flags, payload), n + offset, 0)


def test_stale_and_foreign_answers_are_skipped(played: tuple[NetlinkSocket, socket.socket]) -> None:
    """Only messages with the sequence number of this request count."""
    rtnl, far = played
    kernel = in_background(lambda: answer(far, record(b"old", offset=-1), record(b"mine"), record(b"new", offset=5), done()))
    assert [bytes(p) for _, p in rtnl.dump(RTM_GETLINK, b"")] == [b"mine"]
    kernel.join()


def test_an_interrupted_dump_is_read_anew(played: tuple[NetlinkSocket, socket.socket]) -> None:
    """NLM_F_DUMP_INTR anywhere in a dump discards it and repeats the request."""
    rtnl, far = played

    def kernel() -> None:
        answer(far, record(b"half", flags=NLM_F_DUMP_INTR), record(b"rest"), done())
        answer(far, record(b"half"), done(NLM_F_DUMP_INTR))
        answer(far, record(b"whole"), done())

    playing = in_background(kernel)
    assert [bytes(p) for _, p in rtnl.dump(RTM_GETLINK, b"")] == [b"whole"]
    playing.join()


def test_a_dump_interrupted_for_ever_is_given_up(played: tuple[NetlinkSocket, socket.socket]) -> None:
    """The repeats are bounded; the error says EINTR."""
    rtnl, far = played

    def kernel() -> None:
        for _ in range(netlink._DUMP_TRIES):
            answer(far, done(NLM_F_DUMP_INTR))

    playing = in_background(kernel)
    with pytest.raises(EnvironmentFault) as caught:
        rtnl.dump(RTM_GETLINK, b"")
    assert caught.value.errno_name == "EINTR"
    playing.join()


def test_silence_ends_with_a_time_out(played: tuple[NetlinkSocket, socket.socket]) -> None:
    """No answer at all, and answers that never become the one awaited, both end as ETIMEDOUT."""
    rtnl, far = played
    with pytest.raises(EnvironmentFault) as caught:
        rtnl.request([link_request(1)], operation="install")
    assert (caught.value.errno_name, caught.value.operation) == ("ETIMEDOUT", "install")

    stop = threading.Event()

    def chatter() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.01):
                far.send(record(b"noise")(0))

    talking = in_background(chatter)
    with pytest.raises(EnvironmentFault) as caught:
        rtnl.request([link_request(1)])
    stop.set()
    talking.join()
    assert caught.value.errno_name == "ETIMEDOUT"


def test_a_refusal_names_the_missing_capability(played: tuple[NetlinkSocket, socket.socket]) -> None:
    """EPERM becomes a PermissionFault that says what to do."""
    rtnl, far = played
    refusal = Message(NLMSG_ERROR, 0, struct.pack("=i", -errno.EPERM) + bytes(16))
    kernel = in_background(lambda: answer(far, lambda n: encode(refusal, n, 0)))
    with pytest.raises(PermissionFault, match="CAP_NET_ADMIN"):
        rtnl.dump(RTM_GETLINK, b"")
    kernel.join()


def test_garbage_from_the_kernel_is_a_fault(played: tuple[NetlinkSocket, socket.socket]) -> None:
    """Bytes that do not decode raise MalformedMessage with the operation that met them."""
    rtnl, far = played
    kernel = in_background(lambda: answer(far, lambda _: b"\xff" * 40))
    with pytest.raises(MalformedMessage) as caught:
        rtnl.dump(RTM_GETLINK, b"", operation="dump")
    assert caught.value.operation == "dump"
    kernel.join()
