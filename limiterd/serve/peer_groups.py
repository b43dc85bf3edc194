"""All groups of the process at the other end of a unix socket, as the kernel knows them (SO_PEERGROUPS).

Where the kernel does not tell, no group is assumed: what a user database says are the groups that somebody could have, also
those that the process gave up.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

_SO_PEERGROUPS: Final = 59
"""Linux 4.13, asm-generic/socket.h; the socket module has no name for it."""
_SMALL_BYTES: Final = 1024
"""The most that socket.getsockopt takes: 256 groups."""
_LARGEST_BYTES: Final = 65_536 * 4
"""NGROUPS_MAX of them."""


def peer_groups(connection: socket.socket) -> frozenset[int]:
    """The supplementary groups; none where the kernel does not tell them. Does not block."""
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _SMALL_BYTES)
    except OSError as error:
        packed = _large(connection) if error.errno == errno.ERANGE else b""
    return frozenset(group for (group,) in struct.iter_unpack("I", packed))


def _large(connection: socket.socket) -> bytes:
    """The same with room for all that there can be, which the standard library's call has not."""
    import ctypes  # noqa: PLC0415 - hardly anybody is in so many groups

    buffer = ctypes.create_string_buffer(_LARGEST_BYTES)
    length = ctypes.c_uint(_LARGEST_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(connection.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(length)) != 0:
        return b""
    return buffer.raw[: length.value]
