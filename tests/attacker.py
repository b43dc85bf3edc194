"""`python -m tests.attacker KIND THREADS PATH UID GID`: a tenant who means harm to a unix socket, until its standard input ends.

It says "ready" once its threads are at it. KIND echo is no attacker: it is a server that answers each line with itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

THREAD_BYTES: Final = 64 << 10


def line(verb: str, **args: object) -> bytes:
    """A question."""
    return json.dumps({"v": 1, "verb": verb, "args": args}).encode() + b"\n"


def connected(path: str) -> socket.socket:
    """A connection; waits for a place in the queue."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.settimeout(5)
    return sock


def ask_and_hang_up(path: str) -> None:
    """Ask for something dear, and be gone."""
    with connected(path) as sock:
        sock.sendall(line("history.verify"))


def search_in_vain(path: str) -> None:
    """Ask for entries that there are not, and wait for the answer."""
    with connected(path) as sock:
        sock.sendall(line("history", interface="nothing0", kinds=["limited"], limit=1000))
        while sock.recv(1 << 16):
            continue


def explain(path: str) -> None:
    """Ask why, again and again."""
    with connected(path) as sock:
        sock.sendall(line("explain", interface="eth0"))
        while sock.recv(1 << 16):
            continue


def connect(path: str) -> None:
    """Come and go."""
    connected(path).close()


held: list[socket.socket] = []


def hold(path: str) -> None:
    """Connect, and say nothing."""
    keep(connected(path))


def half_ask(path: str) -> None:
    """Say half of something."""
    sock = connected(path)
    keep(sock)
    sock.sendall(b'{"v":1,')


def keep(sock: socket.socket) -> None:
    """Hold a connection for as long as there are descriptors."""
    held.append(sock)
    if len(held) > 800:
        held.pop(0).close()


ATTACKS: Final[dict[str, Callable[[str], None]]] = {
    "verify": ask_and_hang_up,
    "filters": search_in_vain,
    "explain": explain,
    "connect": connect,
    "hold": hold,
    "half": half_ask,
}


class Echo(socketserver.StreamRequestHandler):
    """Answers each line with itself."""

    def handle(self) -> None:
        """One connection."""
        with contextlib.suppress(OSError):
            while said := self.rfile.readline():
                self.wfile.write(said)


class EchoServer(socketserver.ThreadingUnixStreamServer):
    """With the daemon's backlog."""

    request_queue_size = 128
    daemon_threads = True


def main(kind: str, threads: int, path: str, uid: int, gid: int) -> None:
    """Attack."""
    threading.stack_size(THREAD_BYTES)
    begin = threading.Event()
    if kind == "echo":
        server = EchoServer(path, Echo)
        os.chmod(path, 0o666)  # noqa: PTH101, S103  # anybody may
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
            resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)

        def run() -> None:
            begin.wait()
            while True:
                try:
                    ATTACKS[kind](path)
                except OSError:
                    time.sleep(0.001)

        for _ in range(threads):
            threading.Thread(target=run, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    begin.set()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
