"""A traffic source or sink as a program of its own: real packets for the demo, the tests and the benches.

Rule: it dies with its parent. Standard input is the tether: commands come in by it, and its end is the program's end.

It is started by the lab as a script (standard library only, nothing of this package), inside the network namespace of
its starter. Arguments: ROLE, then a JSON object. Answers are JSON lines on standard output: one when ready, one for
each command.

    tcp-receive {"host"}                             → {"port"}, then discards what comes, without copying it
    tcp-send    {"host","port","streams","rate_bps"} → {"ready"}; rate_bps null: as fast as TCP goes; 0: pause
    udp-receive {"host"}                             → {"port"}; counts by sequence number
    udp-send    {"host","port","rate_bps","size_bytes"} → {"ready"}; each datagram carries its number

Commands: "stats" answers the counters, "rate BPS" (or "rate max") changes the pace, "stop" answers the final counters
and ends. Pacing is by schedule: a source that was held up (by a shaper, say) for more than 50 ms does not catch up, so
it demands its rate and no more. A UDP source in Python reaches some 300 Mbit/s at 1400 bytes a datagram.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

_CATCH_UP_S: Final = 0.05
_PAUSE_S: Final = 0.005
_SLICE_S: Final = 0.002
_CHUNK_BYTES: Final = 256 * 1024
_LEAST_CHUNK_BYTES: Final = 1448
_POLL_S: Final = 0.2
_NUMBER: Final = struct.Struct("=Q")
_RECEIVE_BUFFER_BYTES: Final = 16 << 20
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Paced:
    """A source's pace: rate_bps None is unpaced, 0 pauses. Shared by its streams, each of which gets its part."""

    def __init__(self, rate_bps: int | None, streams: int) -> None:
        self.rate_bps = rate_bps
        self.streams = streams
        self.stopped = threading.Event()

    def chunk_bytes(self) -> int:
        """How much a stream hands over at once: about 2 ms of its rate."""
        if self.rate_bps is None:
            return _CHUNK_BYTES
        return max(_LEAST_CHUNK_BYTES, min(_CHUNK_BYTES, int(self.rate_bps / self.streams / 8 * _SLICE_S)))

    def run(self, send: Callable[[], int]) -> None:
        """Call send (which returns the bytes it got rid of) at the pace until stopped."""
        due = time.monotonic()
        while not self.stopped.is_set():
            rate = self.rate_bps
            if rate == 0:
                time.sleep(_PAUSE_S)
                due = time.monotonic()
                continue
            sent = send()
            now = time.monotonic()
            due = now if rate is None else due + sent * 8 * self.streams / rate
            if due > now:
                time.sleep(min(due - now, _POLL_S))
            elif now - due > _CATCH_UP_S:
                due = now


class TcpSource:
    """Parallel TCP streams to one sink."""

    def __init__(self, host: str, port: int, streams: int, rate_bps: int | None) -> None:
        self.pace = Paced(rate_bps, streams)
        self._payload = memoryview(bytes(_CHUNK_BYTES))
        self._sent = [0] * streams
        self._sockets = [socket.create_connection((host, port), timeout=5) for _ in range(streams)]
        self._threads = [threading.Thread(target=self._stream, args=(i,), daemon=True) for i in range(streams)]
        for thread in self._threads:
            thread.start()

    def hello(self) -> dict[str, Any]:
        """What the starter waits for: the streams are connected."""
        return {"ready": True, "local_ports": [s.getsockname()[1] for s in self._sockets]}

    def stats(self) -> dict[str, Any]:
        """Bytes handed to the kernel."""
        return {"sent_bytes": sum(self._sent)}

    def stop(self) -> None:
        """End the streams at once: what is still queued in the kernel is thrown away with a reset."""
        self.pace.stopped.set()
        for thread in self._threads:
            thread.join()
        for stream in self._sockets:
            stream.close()

    def _stream(self, index: int) -> None:
        stream = self._sockets[index]
        stream.settimeout(_POLL_S)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

        def send() -> int:
            try:
                sent = stream.send(self._payload[: self.pace.chunk_bytes()])
            except TimeoutError:
                return 0
            self._sent[index] += sent
            return sent

        try:
            self.pace.run(send)
        except OSError:
            return  # the sink is gone: the counters stand


class TcpSink:
    """Accepts streams and throws their bytes away inside the kernel (MSG_TRUNC)."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._received: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hello(self) -> dict[str, Any]:
        """The port to connect to."""
        return {"port": self._listener.getsockname()[1]}

    def stats(self) -> dict[str, Any]:
        """Bytes received, and streams accepted so far."""
        return {"received_bytes": sum(self._received), "streams": len(self._received)}

    def stop(self) -> None:
        """Take no more streams."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            self._received.append(0)
            threading.Thread(target=self._discard, args=(stream, len(self._received) - 1), daemon=True).start()

    def _discard(self, stream: socket.socket, index: int) -> None:
        buffer = bytearray(1 << 20)
        while True:
            try:
                got = stream.recv_into(buffer, 0, socket.MSG_TRUNC)
            except OSError:
                return
            if got == 0:
                return
            self._received[index] += got


class UdpSource:
    """Numbered datagrams at a pace."""

    def __init__(self, host: str, port: int, rate_bps: int | None, size_bytes: int) -> None:
        self.pace = Paced(rate_bps, 1)
        self._packets = 0
        self._refused = 0
        self._size_bytes = max(size_bytes, _NUMBER.size)
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((host, port))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hello(self) -> dict[str, Any]:
        """What the starter waits for."""
        return {"ready": True}

    def stats(self) -> dict[str, Any]:
        """Datagrams numbered, and how many of them the sender's own kernel refused (a full queue)."""
        return {"sent_packets": self._packets, "refused_packets": self._refused, "sent_bytes": self._packets * self._size_bytes}

    def stop(self) -> None:
        """Send no more."""
        self.pace.stopped.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        buffer = bytearray(self._size_bytes)

        def send() -> int:
            _NUMBER.pack_into(buffer, 0, self._packets)
            self._packets += 1
            try:
                return self._socket.send(buffer)
            except OSError:
                self._refused += 1
                return self._size_bytes

        self.pace.run(send)


class UdpSink:
    """Counts numbered datagrams: received, duplicate or late ones, the highest number, and what the sink itself lost."""

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._socket.bind((host, 0))
        self._packets = 0
        self._bytes = 0
        self._late = 0
        self._next = 0
        threading.Thread(target=self._run, daemon=True).start()

    def hello(self) -> dict[str, Any]:
        """The port to send to."""
        return {"port": self._socket.getsockname()[1]}

    def stats(self) -> dict[str, Any]:
        """Counters by sequence number; sink_drops are datagrams that arrived and found the sink's buffer full."""
        drops = struct.unpack("=9I", self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[_MEMINFO_DROPS]
        return {
            "received_packets": self._packets,
            "received_bytes": self._bytes,
            "late_packets": self._late,
            "next_number": self._next,
            "sink_drops": drops,
        }

    def stop(self) -> None:
        """Nothing is held but the socket, which ends with the program."""

    def _run(self) -> None:
        buffer = bytearray(1 << 16)
        while True:
            got = self._socket.recv_into(buffer)
            (number,) = _NUMBER.unpack_from(buffer)
            self._packets += 1
            self._bytes += got
            if number < self._next:
                self._late += 1
            else:
                self._next = number + 1


Role = TcpSource | TcpSink | UdpSource | UdpSink
ROLES: Final[dict[str, Callable[..., Role]]] = {
    "tcp-send": TcpSource,
    "tcp-receive": TcpSink,
    "udp-send": UdpSource,
    "udp-receive": UdpSink,
}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Play one role until "stop" or the end of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter hears Ctrl-C too, and ends the tether
    role = ROLES[arguments[0]](**json.loads(arguments[1]))
    _say(role.hello())
    for line in sys.stdin:
        command, _, value = line.strip().partition(" ")
        if command == "rate" and isinstance(role, (TcpSource, UdpSource)):
            role.pace.rate_bps = None if value == "max" else int(value)
        if command == "stop":
            role.stop()
        _say(role.stats())
        if command == "stop":
            break
    sys.stdout.flush()
    os._exit(0)  # threads may be deep in a send: nothing of theirs is worth waiting for


if __name__ == "__main__":
    main(sys.argv[1:])
