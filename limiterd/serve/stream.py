"""A connected socket in an asyncio loop: TCP, unix or TLS, for the one task that owns it.

Rule: each step is tried at once; only where it would block the task waits, and nobody else does.

asyncio's own streams are not used: they pass no descriptors, do not tell a peer that hung up from one that has only ended
its side, and hold four objects a connection, of which there may be a thousand that say nothing.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

CHUNK_BYTES: Final = 256 << 10
"""What is sent at a stretch: a fraction of a millisecond, under TLS too."""


async def readable(sock: socket.socket) -> None:
    """Wait until a socket has something to read, or a client."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


async def _writable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)


class Stream:
    """One connection; close it at the end. Every method raises OSError for what the peer or the network does."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over an accepted socket. Call it in the loop."""
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def _step(self, action: Callable[[], T], *, writes: bool = False) -> T:
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                await readable(self._sock)
            except ssl.SSLWantWriteError:
                await _writable(self._sock)
            except BlockingIOError:
                await (_writable if writes else readable)(self._sock)

    async def peek(self) -> bytes:
        """The first byte that comes, left in place; empty at the end of input. Not under TLS."""
        return await self._step(lambda: self._sock.recv(1, socket.MSG_PEEK))

    async def encrypt(self, context: ssl.SSLContext) -> None:
        """Go on under TLS, as the server."""
        self._sock = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        await self._step(self._sock.do_handshake)

    async def receive(self, size: int) -> bytes:
        """Up to so many bytes, at least one; empty at the end of input."""
        return await self._step(lambda: self._sock.recv(size))

    async def send(self, data: memoryview, descriptors: Sequence[int] = ()) -> None:
        """All of it; others have a turn after each chunk. The descriptors go with the first byte, and stay the caller's."""
        if descriptors:
            head = data[:CHUNK_BYTES]
            data = data[await self._step(lambda: socket.send_fds(self._sock, [head], descriptors), writes=True) :]
        while data:
            data = data[await self._step(lambda data=data[:CHUNK_BYTES]: self._sock.send(data), writes=True) :]  # type: ignore[misc]
            if data:
                await asyncio.sleep(0)

    def end_output(self) -> None:
        """Say that nothing more will come."""
        self._sock.shutdown(socket.SHUT_WR)

    async def unless_hung_up(self, work: asyncio.Future[T]) -> None:
        """Wait until the work is done; when the peer hangs up before, or the wait is cancelled, the work is cancelled.

        A peer that has only ended its own side still waits for an answer. Over TCP the two look the same until it is sent, so
        there only a reset counts. Raises ConnectionResetError.
        """

        def look() -> None:
            self._loop.remove_reader(self._sock)
            if self._hung_up():
                work.cancel()

        self._loop.add_reader(self._sock, look)
        try:
            await asyncio.wait([work])
        finally:
            self._loop.remove_reader(self._sock)
            work.cancel()
        if work.cancelled():
            raise ConnectionResetError

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    async def until_hung_up(self) -> None:
        """Wait until the peer ends its side; what it still sends is thrown away."""
        while True:
            if not await self.receive(CHUNK_BYTES):
                return
            await asyncio.sleep(0)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
