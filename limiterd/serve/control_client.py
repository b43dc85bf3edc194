"""The control socket's other end: one question to the daemon, and its answer (docs/control.md)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EXIT_FAILED, EXIT_NOPERM, EXIT_UNREACHABLE, NotDurableError, PeerError
from limiterd.serve.protocol import MAX_ANSWER_BYTES, MAX_DESCRIPTORS, VERSION, admin_path

_RETRY_S: Final = 0.05
"""Between two attempts while the daemon is busy."""


def call(socket_path: str, verb: str, args: Mapping[str, object] | None = None, timeout_s: float = 10.0) -> object:
    """As `call_for_files`, without the files."""
    data, descriptors = call_for_files(socket_path, verb, args, timeout_s)
    close_all(descriptors)
    return data


def call_for_files(
    socket_path: str, verb: str, args: Mapping[str, object] | None = None, timeout_s: float = 10.0
) -> tuple[object, list[int]]:
    """Ask the daemon, trying again while it is busy; return the answer's data and the files that came along, to be closed.

    The administrators' socket is tried first: who may not use it, or finds none, asks at the one for everybody.

    Raises PeerError: exit code 3 when the daemon cannot be reached or does not answer in time, 77 when the socket or the
    daemon refuses this user, else the code that the daemon gives. Raises NotDurableError where what was asked for took effect
    and is not on the disk yet.
    """
    deadline_s = time.monotonic() + timeout_s
    question = f"{jsonsafe.dump({'v': VERSION, 'verb': verb, 'args': args or {}})}\n".encode()
    descriptors: list[int] = []
    try:
        while True:
            answer = _exchange(socket_path, question, deadline_s, descriptors)
            if not (answer.get("busy") and time.monotonic() + _RETRY_S < deadline_s):
                return _data_of(answer), descriptors
            time.sleep(_RETRY_S)
    except PeerError:
        close_all(descriptors)
        raise


def _data_of(answer: Mapping[str, object]) -> object:
    if answer.get("ok") is True:
        return answer.get("data")
    exit_code = answer.get("exit")
    code = exit_code if type(exit_code) is int and 0 < exit_code < 256 else EXIT_FAILED
    text = str(answer.get("error") or "the daemon refused without a reason")
    if answer.get("durable") is False:
        raise NotDurableError(text)
    raise PeerError(text, exit_code=code)


def _exchange(socket_path: str, question: bytes, deadline_s: float, descriptors: list[int]) -> dict[str, object]:
    try:
        with _connected(socket_path, deadline_s) as connection:
            with contextlib.suppress(ConnectionError):  # a server that has heard enough answers all the same
                connection.sendall(question)
            line = _receive(connection, deadline_s, descriptors)
    except PermissionError as error:
        raise PeerError(f"you may not use the control socket {socket_path}", exit_code=EXIT_NOPERM) from error
    except TimeoutError as error:
        raise PeerError(f"limiterd did not answer at {socket_path} in time", exit_code=EXIT_UNREACHABLE) from error
    except OSError as error:
        raise PeerError(
            f"limiterd cannot be reached at {socket_path}: {error.strerror or error}", exit_code=EXIT_UNREACHABLE
        ) from error
    if not line:
        raise PeerError(f"limiterd hung up at {socket_path} without an answer", exit_code=EXIT_UNREACHABLE)
    try:
        answer = jsonsafe.parse(line, errors="surrogateescape")
    except ValueError as error:
        raise PeerError(f"what answers at {socket_path} is not limiterd: {error}") from error
    if not isinstance(answer, dict):
        raise PeerError(f"what answers at {socket_path} is not limiterd: no object")
    return answer


def close_all(descriptors: Iterable[int]) -> None:
    """Close the files that came along with an answer."""
    for descriptor in descriptors:
        os.close(descriptor)


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _connected(socket_path: str, deadline_s: float) -> socket.socket:
    try:
        return _connect(admin_path(socket_path), deadline_s)
    except TimeoutError:
        raise
    except OSError:  # not an administrator, or an older daemon
        return _connect(socket_path, deadline_s)


def _connect(path: str, deadline_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        while True:
            connection.settimeout(_left_s(deadline_s))
            try:
                connection.connect(path)
            except BlockingIOError:  # the backlog is full
                time.sleep(min(_RETRY_S, _left_s(deadline_s)))
            else:
                return connection
    except OSError:
        connection.close()
        raise


def _receive(connection: socket.socket, deadline_s: float, descriptors: list[int]) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        connection.settimeout(_left_s(deadline_s))
        data, more, _flags, _address = socket.recv_fds(connection, 1 << 20, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        descriptors += more
        if not data:
            break
        received += data
        if len(received) > 2 * MAX_ANSWER_BYTES:
            raise OSError("the answer has no end")
    return bytes(received)
