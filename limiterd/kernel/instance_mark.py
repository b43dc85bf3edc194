"""One limiterd in a network namespace: whoever listens at the abstract unix socket @limiterd is the one.

Abstract sockets belong to a network namespace, whatever files, mounts and process ids an instance has, and end with their
process. Anybody may bind one. So who listens is asked of the kernel, and counts only where its user is root, our own, or the
owner of our files: any other holder is a fault, and no reason not to enforce.

The holder's credentials come with a connection (SO_PEERCRED, told without the holder's help); the holder itself adds the path
of its control socket. Where its queue stays full, the socket's owner is read by sock_diag. Asking takes a second at most.

Layouts: include/uapi/linux/unix_diag.h; man 7 unix, man 7 sock_diag.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limiterd.core.errors import EnvironmentFault
from limiterd.kernel.netlink import NETLINK_SOCK_DIAG, NetlinkSocket, attrs

NAME: Final = "@limiterd"
"""As ss(8) writes it; the kernel's name begins with a zero byte."""
ANSWER_S: Final = 0.8
"""The rest of a second is for sock_diag."""
_ADDRESS: Final = b"\0limiterd"
_BACKLOG: Final = 128
_ANSWERS_A_TURN: Final = 32
"""Connections answered in one turn of the loop: a flood of them costs it less than a millisecond."""
_DIAG_S: Final = 0.15
_PAUSE_S: Final = 0.02
_PATH_BYTES: Final = 4096
_PEERCRED: Final = struct.Struct("3i")
_SOCK_DIAG_BY_FAMILY: Final = 20
_DIAG_REQUEST: Final = struct.Struct("=BBHIIIQ")
"""unix_diag_req: family, protocol, pad, states, inode, what to show, cookie."""
_DIAG_HEAD_BYTES: Final = 16
_ALL_STATES: Final = 0xFFFFFFFF
_SHOW_NAME_AND_UID: Final = 0x41
_DIAG_NAME: Final = 0
_DIAG_UID: Final = 7
_U32: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the mark. pid 0: in another PID namespace, None: not known; uid None: not known either."""

    pid: int | None
    uid: int | None
    control_socket: str = ""

    def __str__(self) -> str:
        place = "in another container" if self.pid == 0 else f"PID {self.pid}" if self.pid else "of unknown PID"
        return place + (f", control socket {self.control_socket}" if self.control_socket else "")


class InstanceMark:
    """The mark of one instance. One thread at a time."""

    def __init__(self, control_socket: str, files: Iterable[str | Path] = ()) -> None:
        """Name the control socket that askers are told, and the files whose owners count; nothing is touched yet."""
        self._answer = os.fsencode(control_socket)
        self._trusted = frozenset((0, os.geteuid(), *_owners(files)))
        self._listener: socket.socket | None = None
        self.problem: str | None = None
        """Why this instance has no mark, although nobody who counts holds it."""

    def take(self) -> None:
        """Become the one instance of the network namespace that this thread is in.

        Raises EnvironmentFault (operation "instance") where another one is. Where the mark cannot be had for any other reason,
        `problem` says which.
        """
        until_s = time.monotonic() + ANSWER_S
        while not self._bound():
            holder = self._holder(until_s)
            if holder is None and time.monotonic() < until_s:
                time.sleep(_PAUSE_S)  # it has just gone, or does not listen yet
                continue
            holder = holder or Holder(None, _owner())
            if holder.uid in self._trusted:
                raise EnvironmentFault(
                    f"another limiterd is running in this network namespace: {holder}; stop that one first",
                    operation="instance",
                    errno_name="EADDRINUSE",
                )
            user = "an unknown user" if holder.uid is None else f"uid {holder.uid}"
            self.problem = (
                f"a process of {user} ({Holder(holder.pid, None)}) holds {NAME}, the mark by which a second limiterd would know "
                f"of this one; end it: ss -xlp | grep {NAME}"
            )
            return

    def retry(self) -> None:
        """Take the mark if it is free by now."""
        if self._listener is None:
            self._bound()

    def answer(self) -> None:
        """Tell whoever asks where the control socket is; never blocks."""
        if self._listener is None:
            return
        with contextlib.suppress(OSError):  # nobody asks, or an asker has gone
            for _ in range(_ANSWERS_A_TURN):
                with self._listener.accept()[0] as asker:
                    asker.setblocking(False)
                    asker.send(self._answer)

    def close(self) -> None:
        """Give the mark up."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _holder(self, until_s: float) -> Holder | None:
        """Who listens; None where nobody does, or its queue stays full. Only who counts is waited for."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asker:
            _end_waits(asker, until_s)
            try:
                asker.connect(_ADDRESS)  # waits in the kernel, which lets askers in one by one as the queue empties
            except OSError:
                return None
            pid, uid, _ = _PEERCRED.unpack(asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
            told = b""
            with contextlib.suppress(OSError):
                if uid in self._trusted:
                    _end_waits(asker, until_s)
                    told = asker.recv(_PATH_BYTES)
            return Holder(pid, uid, "".join(filter(str.isprintable, told.decode(errors="replace"))))

    def _bound(self) -> bool:
        """Whether the question is settled: the mark is ours, or the machine refuses such sockets."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(_ADDRESS)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                return False
            self.problem = f"the mark {NAME} cannot be taken, so that a second limiterd would not be noticed: {error.strerror}"
            return True
        self._listener, self.problem = listener, None
        return True


def _owners(files: Iterable[str | Path]) -> Iterator[int]:
    for path in files:
        with contextlib.suppress(OSError):
            yield Path(path).stat().st_uid


def _end_waits(asker: socket.socket, until_s: float) -> None:
    """Let connecting and receiving end then; a time of zero would mean for ever."""
    left_us = max(1000, round((until_s - time.monotonic()) * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        asker.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", left_us // 10**6, left_us % 10**6))


def _owner() -> int | None:
    """The user whose socket has the name; None where the kernel does not tell."""
    try:
        with NetlinkSocket(NETLINK_SOCK_DIAG, timeout_s=_DIAG_S) as diag:
            # ss -xl equivalent
            request = _DIAG_REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME_AND_UID, 0)
            found = diag.dump(_SOCK_DIAG_BY_FAMILY, request, operation="sockets")
    except EnvironmentFault:
        return None
    for _, payload in found:
        told = attrs(payload[_DIAG_HEAD_BYTES:])
        if bytes(told.get(_DIAG_NAME, b"")) == _ADDRESS and _DIAG_UID in told:
            return int(_U32.unpack(told[_DIAG_UID])[0])
    return None
