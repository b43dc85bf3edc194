"""The control socket's other end: one question to the daemon, and its answer (docs/control.md)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EXIT_FAILED, EXIT_NOPERM, EXIT_UNREACHABLE, PeerError
from limiterd.serve.protocol import MAX_ANSWER_BYTES, VERSION

_RETRY_S: Final = 0.05
"""Between two attempts while the daemon is busy."""


def call(socket_path: str, verb: str, args: Mapping[str, object] | None = None, timeout_s: float = 10.0) -> object:
    """Ask the daemon, trying again while it is busy, and return the answer's data.

    Raises PeerError: exit code 3 when the daemon cannot be reached or does not answer in time, 77 when the socket or the
    daemon refuses this user, else the code that the daemon gives.
    """
    deadline_s = time.monotonic() + timeout_s
    question = f"{jsonsafe.dump({'v': VERSION, 'verb': verb, 'args': args or {}})}\n".encode()
    while True:
        answer = _exchange(socket_path, question, deadline_s)
        if not (answer.get("busy") and time.monotonic() + _RETRY_S < deadline_s):
            break
        time.sleep(_RETRY_S)
    if answer.get("ok") is True:
        return answer.get("data")
    exit_code = answer.get("exit")
    code = exit_code if type(exit_code) is int and 0 < exit_code < 256 else EXIT_FAILED
    raise PeerError(str(answer.get("error") or "the daemon refused without a reason"), exit_code=code)


def _exchange(socket_path: str, question: bytes, deadline_s: float) -> dict[str, object]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            _connect(connection, socket_path, deadline_s)
            with contextlib.suppress(ConnectionError):  # a server that has heard enough answers all the same
                connection.sendall(question)
            line = _receive(connection, deadline_s)
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


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _connect(connection: socket.socket, socket_path: str, deadline_s: float) -> None:
    while True:
        connection.settimeout(_left_s(deadline_s))
        try:
            connection.connect(socket_path)
        except BlockingIOError:  # the backlog is full
            time.sleep(min(_RETRY_S, _left_s(deadline_s)))
        else:
            return


def _receive(connection: socket.socket, deadline_s: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        connection.settimeout(_left_s(deadline_s))
        data = connection.recv(1 << 20)
        if not data:
            break
        received += data
        if len(received) > 2 * MAX_ANSWER_BYTES:
            raise OSError("the answer has no end")
    return bytes(received)
