"""Netlink framing: requests in one sendmsg, every answer read, nothing believed that does not fit.

Rule: an answer counts only when it comes from the kernel, carries the sequence number of an open request and decodes
without remainder; whatever else arrives is skipped, and waiting is bounded.

Why by hand and not through a library: (1) the messages that put a limit on a link must leave in *one* sendmsg, so that
at most one packet passes unshaped between them; (2) the daemon's resident memory is about 25 MiB less without the
import of pyroute2; (3) the daemon works beside any version of it; (4) time-outs, buffer growth and the repeat of
interrupted dumps are decided here and nowhere else. pyroute2 stays where convenience counts: in the lab.

Theory of operation. rtnetlink works a request off inside the sender's own sendmsg, in order, and queues one
acknowledgement each (a failed message does not stop the ones behind it); a dump is continued by each recvmsg. So the
wait for the kernel's RTNL lock happens in sendmsg, where no time-out reaches; the time-out here bounds the wait for
answers. A socket whose answer did not come may still hold half a dump or a late ack: it is replaced by a fresh one
with the same port id, and the sequence numbers run on, so that nothing stale can be taken for an answer.

Layouts: include/uapi/linux/netlink.h; man 7 netlink, man 7 rtnetlink.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple, Self

from limiterd.core.errors import EnvironmentFault, PermissionFault, errno_name

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
RTM_GETLINK: Final = 18

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_ECHO: Final = 0x8
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200

NLMSG_NOOP: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLMSG_HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port id."""
HEADER_BYTES: Final = NLMSG_HEADER.size
NLA_F_NESTED: Final = 0x8000

_NLA: Final = struct.Struct("=HH")
_NLA_TYPE_MASK: Final = 0x3FFF
_NLA_MAX_BYTES: Final = 0xFFFF
_SEQUENCE: Final = struct.Struct("=I")
_SEQUENCE_AT: Final = 8
_ERRNO: Final = struct.Struct("=i")
_NLMSGERR_ATTR_MSG: Final = 1

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26
_SO_NETNS_COOKIE: Final = 71

_BUFFER_BYTES: Final = 1 << 16
_LARGEST_BUFFER_BYTES: Final = 1 << 24
_MESSAGES_A_SEND: Final = 64
"""All acks of a sendmsg are queued before the first is read: with about 1 KiB each this stays far inside the smallest
usual receive buffer, and is several times the longest plan for one link."""
_DUMP_TRIES: Final = 8
_DUMPED: Final = {18: "the links", 38: "the qdiscs", 42: "the classes", 46: "the filters", 94: "the counters"}
"""What a dump is of: RTM_GETLINK, GETQDISC, GETTCLASS, GETTFILTER, GETSTATS."""
_ELSEWHERE: Final = "EXDEV"
_WHOLE: Final = int(socket.MSG_TRUNC)
"""A datagram's own length is told, though it did not fit."""
_TIMED_OUT: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})


Instruction = tuple[int, int, int, int]
"""Of classic BPF (struct sock_filter): code, jump if true, jump if false, operand."""
_INSTRUCTION: Final = struct.Struct("=HBBI")


class Overrun(EnvironmentFault):
    """The kernel dropped messages for this socket (ENOBUFS): what it would have told is lost, read everything anew."""


class MalformedMessage(EnvironmentFault):
    """Bytes that are not what the kernel's headers promise; the message was not used."""


class _TruncatedMessage(MalformedMessage):
    """A datagram longer than the buffer, which has grown since: what is asked again fits."""


class Message(NamedTuple):
    """One request: rtnetlink type, flags beyond REQUEST and ACK (which are added), and the body behind the header."""

    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The kernel's answer to one request.

    errno 0 is success; text is the kernel's own explanation (extended ack), which may also come with success, "" where
    it gave none; replies are the (type, payload) that came for this request ahead of the ack.
    """

    errno: int
    text: str = ""
    replies: tuple[tuple[int, memoryview], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the kernel did it."""
        return self.errno == 0


DONE: Final = Ack(0)
"""Done, and nothing to say."""


class Frame(NamedTuple):
    """One decoded message: its header's fields and the payload behind the header."""

    type: int
    flags: int
    sequence: int
    port_id: int
    payload: memoryview


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: never steps, counts suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


# ---- encoding ------------------------------------------------------------------------------------


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes. Raises ValueError for a payload over 65531 bytes."""
    length = _NLA.size + len(payload)
    if length > _NLA_MAX_BYTES:
        raise ValueError(f"netlink attribute {kind} of {len(payload)} bytes: an attribute holds at most 65531")
    return _NLA.pack(length, kind) + payload + bytes(-length & 3)


def nested(kind: int, *children: bytes) -> bytes:
    """An attribute made of attributes (with NLA_F_NESTED set, as the strict parsers of the kernel want it)."""
    return attr(kind | NLA_F_NESTED, b"".join(children))


def encode(message: Message, sequence: int, extra_flags: int) -> bytes:
    """One request on the wire, padded to 4 bytes."""
    length = HEADER_BYTES + len(message.body)
    flags = message.flags | extra_flags
    return NLMSG_HEADER.pack(length, message.type, flags, sequence, 0) + message.body + bytes(-length & 3)


class Batch(NamedTuple):
    """Encoded messages for one sendmsg, and where each begins; their numbers are still to be written."""

    data: bytes
    offsets: tuple[int, ...]


def batches(messages: Sequence[Message], *, terse: bool) -> Iterator[Batch]:
    """Encode messages, so many together as may leave in one sendmsg; terse: only the last of each asks for its answer."""
    for start in range(0, len(messages), _MESSAGES_A_SEND):
        some = messages[start : start + _MESSAGES_A_SEND]
        flags = [NLM_F_REQUEST if terse else NLM_F_REQUEST | NLM_F_ACK] * (len(some) - 1) + [NLM_F_REQUEST | NLM_F_ACK]
        encoded = [encode(message, 0, flag) for message, flag in zip(some, flags, strict=True)]
        yield Batch(b"".join(encoded), (0, *accumulate(map(len, encoded[:-1]))))


# ---- decoding ------------------------------------------------------------------------------------


def frames(buffer: bytes | bytearray | memoryview) -> Iterator[Frame]:
    """The messages of one datagram. Raises MalformedMessage where a length does not fit."""
    view = memoryview(buffer)
    at, end = 0, len(view)
    while at < end:
        if end - at < HEADER_BYTES:
            raise MalformedMessage(f"netlink: {end - at} bytes left of a datagram, a header has {HEADER_BYTES}")
        length, kind, flags, sequence, port_id = NLMSG_HEADER.unpack_from(view, at)
        if not HEADER_BYTES <= length <= end - at:
            raise MalformedMessage(f"netlink: message of type {kind} claims {length} bytes, {end - at} are there")
        yield Frame(kind, flags, sequence, port_id, view[at + HEADER_BYTES : at + length])
        at += length + (-length & 3)


def attr_list(buffer: bytes | memoryview) -> list[tuple[int, memoryview]]:
    """Attributes in the order they stand, flag bits taken off the kind. Raises MalformedMessage."""
    view = memoryview(buffer)
    at, end = 0, len(view)
    found: list[tuple[int, memoryview]] = []
    while end - at >= _NLA.size:
        length, kind = _NLA.unpack_from(view, at)
        if not _NLA.size <= length <= end - at:
            raise MalformedMessage(f"netlink: attribute {kind & _NLA_TYPE_MASK} claims {length} bytes, {end - at} are there")
        found.append((kind & _NLA_TYPE_MASK, view[at + _NLA.size : at + length]))
        at += length + (-length & 3)
    return found


def attrs(buffer: bytes | memoryview) -> dict[int, memoryview]:
    """Attributes by kind; of several of one kind the last, as the kernel itself reads them. Raises MalformedMessage."""
    return dict(attr_list(buffer))


def same_words(view: memoryview, stride: int, offsets: Iterable[int]) -> bool:
    """Whether every record of `stride` bytes has at these offsets the 4-byte words that the first has; all multiples of 4.

    Compares whole columns, so that a thousand records cost what one costs in a loop.
    """
    words, count = view.cast("I"), len(view) // stride
    return all(words[at // 4 :: stride // 4].tobytes() == bytes(view[at : at + 4]) * count for at in offsets)


def text_of(payload: memoryview) -> str:
    """A NUL-terminated string; bytes that are no UTF-8 are kept as os.fsdecode keeps them, so that no two names are the same."""
    return bytes(payload).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def decode_ack(frame: Frame) -> tuple[int, str]:
    """(errno, the kernel's text) of an NLMSG_ERROR or NLMSG_DONE. Raises MalformedMessage."""
    if len(frame.payload) < _ERRNO.size:
        if frame.type == NLMSG_DONE:
            return 0, ""
        raise MalformedMessage(f"netlink: an acknowledgement of {len(frame.payload)} bytes, at least 4 are due")
    (code,) = _ERRNO.unpack_from(frame.payload)
    if not frame.flags & NLM_F_ACK_TLVS:
        return abs(code), ""
    message = attrs(frame.payload[_tlv_offset(frame) :]).get(_NLMSGERR_ATTR_MSG)
    return abs(code), "" if message is None else text_of(message)


def _tlv_offset(frame: Frame) -> int:
    """Where the extended ack begins: behind the errno (DONE), the echoed header (capped), or the whole echo."""
    if frame.type == NLMSG_DONE:
        return _ERRNO.size
    if frame.flags & NLM_F_CAPPED:
        return _ERRNO.size + HEADER_BYTES
    if len(frame.payload) < _ERRNO.size + HEADER_BYTES:
        raise MalformedMessage("netlink: an acknowledgement without the header it acknowledges")
    length = NLMSG_HEADER.unpack_from(frame.payload, _ERRNO.size)[0]
    return int(_ERRNO.size + length + (-length & 3))


def fault(what: str, code: int, text: str = "", *, operation: str) -> EnvironmentFault:
    """The error to raise for an errno: PermissionFault where a capability is missing, EnvironmentFault else."""
    kind = PermissionFault if code in _REFUSED else EnvironmentFault
    hint = "; CAP_NET_ADMIN or access to AF_NETLINK is missing" if code in _REFUSED else ""
    said = f" ({text})" if text else ""
    try:
        meaning = os.strerror(code)
    except (ValueError, OverflowError):
        meaning = "unknown error"
    return kind(f"{what}: {meaning}{said}{hint}", operation=operation, errno_name=errno_name(code))


# ---- the socket ----------------------------------------------------------------------------------


class NetlinkSocket:
    """One netlink socket of the network namespace that its thread was in when it was made. One thread at a time.

    groups are multicast group numbers (RTNLGRP_…), timeout_s bounds the wait for an answer, rcvbuf_bytes asks for a
    receive buffer (forced past rmem_max where CAP_NET_ADMIN allows), program is a classic BPF program that the kernel asks
    about every datagram for this socket: 0 drops it. Raises EnvironmentFault or PermissionFault.
    """

    def __init__(
        self,
        family: int = NETLINK_ROUTE,
        groups: Sequence[int] = (),
        timeout_s: float = 2.0,
        rcvbuf_bytes: int | None = None,
        program: Sequence[Instruction] = (),
    ) -> None:
        self._family = family
        self._groups = tuple(groups)
        self._timeout_s = timeout_s
        self._rcvbuf_bytes = rcvbuf_bytes
        self._program = tuple(program)
        self._sequence = 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._socket = self._open(0)
        self._namespace = _namespace_of(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port_id(self) -> int:
        """The address that the kernel knows this socket by; it survives a reopening where no one else took it."""
        return int(self._socket.getsockname()[0])

    @property
    def raw(self) -> socket.socket:
        """The socket of this moment, for a hot path that brings its own buffer; a time-out replaces it."""
        return self._socket

    def fileno(self) -> int:
        """The descriptor, for select and poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Release the descriptor; again is harmless."""
        self._socket.close()

    def next_sequence(self) -> int:
        """A sequence number that no open request of this socket has (never 0: notifications carry that)."""
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence

    def request(self, messages: Sequence[Message], *, operation: str = "", terse: bool = False) -> list[Ack]:
        """Send all messages in one sendmsg (over 64: in several) and read every acknowledgement.

        The acks stand in the order of the messages. What the kernel answers is returned, never raised. terse: it speaks
        of failures and of the last message only (a fraction of the time for a long plan); words that would come with a
        success are lost. Raises EnvironmentFault when an answer does not come in time and Overrun when answers were lost:
        in both cases any of the messages may have been carried out.
        """
        acks: list[Ack] = []
        for batch in batches(messages, terse=terse):
            acks += self.exchange(bytearray(batch.data), batch.offsets, operation=operation)
        return acks

    def exchange(self, data: bytearray, offsets: Sequence[int], *, operation: str = "") -> list[Ack]:
        """As request, with messages that are encoded already and begin at these offsets; their numbers are written into data.

        Messages without NLM_F_ACK are answered when they fail, ahead of the last one's answer (netlink_rcv_skb).
        """
        sequences = [self.next_sequence() for _ in offsets]
        for at, number in zip(offsets, sequences, strict=True):
            _SEQUENCE.pack_into(data, at + _SEQUENCE_AT, number)
        with self.cleaned(operation):
            self._socket.send(data)
            return self._acks(sequences, operation)

    def dump(self, kind: int, body: bytes, *, operation: str = "dump") -> list[tuple[int, memoryview]]:
        """All (type, payload) of a dump, read anew (at most 8 times) where it was interrupted or longer than the buffer.

        Raises EnvironmentFault with the kernel's errno_name where it refuses, when the answer does not come in time,
        and as EINTR when the objects changed during every try.
        """
        for _ in range(_DUMP_TRIES):
            try:
                with self.cleaned(operation):
                    found, interrupted, ended = self._dump_once(kind, body, operation)
            except _TruncatedMessage:
                continue
            code, text = ended
            if code:
                raise fault(f"netlink dump of type {kind}", code, text, operation=operation)
            if not interrupted:
                return found
        what = _DUMPED.get(kind, f"the objects of type {kind}")
        text = f"{what} changed during each of {_DUMP_TRIES} readings, so none is whole; they are read again"
        raise EnvironmentFault(text, operation=operation, errno_name=errno_name(errno.EINTR))

    def receive(self, *, operation: str = "events") -> list[Frame]:
        """The messages of one waiting datagram, [] when none waits. Never blocks.

        Raises Overrun when the kernel dropped notifications (the socket has been replaced: resync), MalformedMessage,
        EnvironmentFault.
        """
        with self.cleaned(operation):
            try:
                data = self._datagram(int(socket.MSG_DONTWAIT))
            except BlockingIOError:
                return []
            return [] if data is None else list(frames(data))

    def reopen(self) -> None:
        """Replace the socket by a fresh one with the same port id where possible; what was queued is gone.

        Raises EnvironmentFault when this thread is in another network namespace than the socket was made in: nothing
        may then be read or changed by mistake in the wrong one.
        """
        port_id = self.port_id if self._socket.fileno() >= 0 else 0
        self._socket.close()
        fresh = self._open(port_id)
        if _namespace_of(fresh) != self._namespace:
            fresh.close()
            raise EnvironmentFault("netlink: the socket would reopen in another network namespace", errno_name=_ELSEWHERE)
        self._socket = fresh

    def recovered(self, error: OSError | EnvironmentFault, operation: str) -> EnvironmentFault:
        """What to raise after an exchange broke half-way; the socket has been replaced by a fresh one.

        Raises EnvironmentFault itself where the socket cannot be replaced.
        """
        if isinstance(error, EnvironmentFault):
            error.operation = error.operation or operation
            if error.errno_name != _ELSEWHERE:
                self.reopen()
            return error
        self.reopen()
        code = error.errno or 0
        if code == errno.ENOBUFS:
            return Overrun("netlink: the receive buffer overran", operation=operation, errno_name="ENOBUFS")
        return self._no_answer(operation) if code in _TIMED_OUT else fault("netlink", code, operation=operation)

    @contextlib.contextmanager
    def cleaned(self, operation: str) -> Iterator[None]:
        """Around every exchange: whatever breaks it half-way leaves a fresh socket and one of the documented errors."""
        try:
            yield
        except EnvironmentFault as error:
            self.recovered(error, operation)
            raise
        except OSError as error:
            raise self.recovered(error, operation) from error

    # ---- inside

    def _open(self, port_id: int) -> socket.socket:
        try:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._family)
        except OSError as error:
            raise fault("netlink: cannot open a socket", error.errno or 0, operation="socket") from error
        try:
            self._prepare(made, port_id)
        except OSError as error:
            made.close()
            raise fault("netlink: cannot prepare a socket", error.errno or 0, operation="socket") from error
        return made

    def _prepare(self, made: socket.socket, port_id: int) -> None:
        _receive_buffer(made, self._rcvbuf_bytes)
        seconds, micros = divmod(round(self._timeout_s * 1e6), 1_000_000)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", seconds, micros))
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # kernels before 4.20 lack some: the answers are then only less precise
                made.setsockopt(_SOL_NETLINK, option, 1)
        try:
            made.bind((port_id, 0))
        except OSError:
            made.bind((0, 0))
        made.connect((0, 0))
        if self._program:
            _attach(made, self._program)
        for group in self._groups:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def _no_answer(self, operation: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"netlink: no answer from the kernel within {self._timeout_s:g} s",
            operation=operation,
            errno_name="ETIMEDOUT",
        )

    def _acks(self, sequences: Sequence[int], operation: str) -> list[Ack]:
        """The answers up to that of the last message, which is the last to come."""
        open_ = set(sequences)
        replies: dict[int, list[tuple[int, memoryview]]] = {}
        acks: dict[int, Ack] = {}
        for frame in self._answers(operation):
            if frame.sequence not in open_:
                continue
            if frame.type == NLMSG_ERROR:
                open_.remove(frame.sequence)
                acks[frame.sequence] = Ack(*decode_ack(frame), tuple(replies.pop(frame.sequence, ())))
                if frame.sequence == sequences[-1]:
                    break
            else:
                replies.setdefault(frame.sequence, []).append((frame.type, frame.payload))
        return [acks.get(n) or (Ack(0, "", tuple(replies[n])) if n in replies else DONE) for n in sequences]

    def _dump_once(self, kind: int, body: bytes, operation: str) -> tuple[list[tuple[int, memoryview]], bool, tuple[int, str]]:
        """(what came, whether the kernel calls it interrupted, how it ended: errno and text)."""
        sequence = self.next_sequence()
        self._socket.send(encode(Message(kind, 0, body), sequence, NLM_F_REQUEST | NLM_F_DUMP))
        found: list[tuple[int, memoryview]] = []
        interrupted, ended = False, (0, "")
        for frame in self._answers(operation):
            if frame.sequence != sequence:
                continue
            interrupted |= bool(frame.flags & NLM_F_DUMP_INTR)
            if frame.type in (NLMSG_ERROR, NLMSG_DONE):
                ended = decode_ack(frame)
                break
            if frame.type != NLMSG_NOOP:
                found.append((frame.type, frame.payload))
        return found, interrupted, ended

    def _answers(self, operation: str) -> Iterator[Frame]:
        """Every message from the kernel until the caller has what it wants or the time is up."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            data = self._datagram(0)
            if data is not None:
                yield from frames(data)
            if time.monotonic() > deadline:
                raise self._no_answer(operation)

    def _datagram(self, flags: int) -> bytes | None:
        """One whole datagram; None where someone other than the kernel sent it. Raises OSError, or where it did not fit."""
        got, sender = self._socket.recvfrom_into(self._buffer, 0, flags | _WHOLE)
        if got > _LARGEST_BUFFER_BYTES:
            raise MalformedMessage(f"netlink: a datagram of {got} bytes is beyond anything the kernel sends")
        if got > len(self._buffer):
            self._buffer = bytearray(1 << got.bit_length())
            raise _TruncatedMessage(f"netlink: a datagram of {got} bytes did not fit; there is room for the next one")
        return bytes(memoryview(self._buffer)[:got]) if sender[0] == 0 else None


def _attach(made: socket.socket, program: Sequence[Instruction]) -> None:
    """Let the kernel ask a program (struct sock_fprog: a length and a pointer) about every datagram."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))


def _receive_buffer(made: socket.socket, wanted_bytes: int | None) -> None:
    if wanted_bytes is None:
        return
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted_bytes)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted_bytes)


def _namespace_of(made: socket.socket) -> bytes:
    """The cookie of the socket's network namespace; b"" on kernels before 5.14, which do not tell."""
    try:
        return made.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""
