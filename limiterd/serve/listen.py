"""Where a server listens and with which certificate: listening sockets, and a TLS context that follows its files."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from limiterd.core.model import Tls

BACKLOG: Final = 1024
SEND_BUFFER_BYTES: Final = 256 * 1024
"""Kernel memory that a client who does not read can pin, per connection (the kernel doubles it, socket(7))."""


def parse_listen(text: str) -> tuple[str, int]:
    """Split "host:port" or "[IPv6 address]:port"; an empty host, "*" or "[::]" means every address. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError(f"{text!r} has no valid port; write host:port, like 127.0.0.1:9817 or [::1]:9817")
    if host.startswith("[") and host.endswith("]"):
        return ("" if host == "[::]" else host[1:-1]), int(port)
    if ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, like [::1]:9817")
    return ("" if host == "*" else host), int(port)


def bind(listen: str) -> list[socket.socket]:
    """Listening sockets for every address of "host:port". Raises OSError or ValueError, with nothing left open.

    An address family that this machine lacks is skipped as long as another one could be bound.
    """
    host, port = parse_listen(listen)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    missing: list[OSError] = []
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            try:
                listeners.append(_listener(family, address))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                missing.append(error)
        if not listeners:
            raise missing[0]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


@contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except OSError:
        sock.close()
        raise


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    with _closed_on_error(socket.socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener


class Certificate:
    """A server context that follows its files: a rotated certificate serves the next handshake.

    While a rotation is half done (certificate and key do not fit) the previous pair goes on serving. context is None
    until a pair has been loaded.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._stamp: list[tuple[int, int, int]] = []
        self.context: ssl.SSLContext | None = None

    def refresh(self) -> str | None:
        """Load the files where they differ from those last loaded. Returns what is wrong, or None."""
        path = self._tls.certificate
        try:
            stamp = []
            for path in (self._tls.certificate, self._tls.key):
                found = Path(path).stat()
                stamp.append((found.st_mtime_ns, found.st_size, found.st_ino))
            if stamp != self._stamp:
                path = f"{self._tls.certificate} with {self._tls.key}"
                self.context = self._load()
                self._stamp = stamp
        except (OSError, ValueError) as error:
            then = "the previous one goes on serving" if self.context else "nothing is served until it can be loaded"
            reason = getattr(error, "strerror", None) or error
            return f"the TLS certificate of metrics cannot be loaded: {path}: {reason}; {then}"
        return None

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # With a password at hand an encrypted key is an error instead of a question on the terminal.
        context.load_cert_chain(self._tls.certificate, self._tls.key, password="-")  # noqa: S106  (no secret: it never fits)
        return context
