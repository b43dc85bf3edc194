"""What the fault tests share: an echo that must never fall silent, and defects planted in a daemon from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

from limiterd.core.errors import PeerError
from limiterd.sim.netns import Pair, inside
from tests.netns import LONG, wait_for
from tests.rig import Rig

_PAUSE_S: Final = 0.004

QUICK: Final = "detect: {threshold: 20mbit, window: 1s, slice: 500ms}, limit: {rate: 5mbit}"
"""A policy that fires after little traffic and little time."""
EXCESS_BPS: Final = 40_000_000
"""Traffic that is too much under it."""


T = TypeVar("T")


def some(first: int, limit_states: Sequence[T]) -> Sequence[T]:
    """The first of these cases, or with LONG all of them."""
    return limit_states if LONG else limit_states[:first]


class Echo:
    """Numbered datagrams to the far end and back, all the time; knows the longest silence and waits for fresh answers."""

    def __init__(self, pair: Pair) -> None:
        with inside(pair.far.namespace):
            self._mirror = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._mirror.bind((pair.far.v4, 0))
        with inside(pair.near.namespace):
            self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._near.connect(self._mirror.getsockname())
        for end in (self._mirror, self._near):
            end.settimeout(0.2)
        self.sent = 0
        self.answered = 0
        self.longest_silence_s = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._reflect, self._send, self._listen)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.alive("before the first fault")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._mirror.close()
        self._near.close()

    def alive(self, when: str) -> None:
        """Datagrams that are sent from now on come back; fails the test where they do not."""
        first = self.sent + 1
        wait_for(lambda: self.answered >= first, f"an echo {when}", longest_s=3, pause_s=0.002)

    def _reflect(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                data, sender = self._mirror.recvfrom(64)
                self._mirror.sendto(data, sender)

    def _send(self) -> None:
        while not self._over.wait(_PAUSE_S):
            with contextlib.suppress(OSError):  # a full queue is the test's business, not ours
                self._near.send(self.sent.to_bytes(8, "big"))
            self.sent += 1

    def _listen(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                self.answered = max(self.answered, int.from_bytes(self._near.recv(64), "big"))
                now = time.monotonic()
                self.longest_silence_s = max(self.longest_silence_s, now - last)
                last = now


_PLANTED: Final = """
import pathlib
for path in sorted(pathlib.Path(__file__).parent.glob("*.planted")):
    exec(compile(path.read_text(), str(path), "exec"), {})
"""


def plant(daemon: Rig, code: str, name: str = "code") -> None:
    """Run this code in the daemon's process before the daemon itself (after the next start), besides what has other names."""
    directory = daemon.home / "planted"
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(_PLANTED)
    (directory / f"{name}.planted").write_text(code)
    # A cached compilation would be taken for what is planted later in the same second.
    fresh = {"PYTHONPATH": f"{directory}:{Path.cwd()}", "PYTHONDONTWRITEBYTECODE": "1"}
    daemon.environment = {**daemon.environment, **fresh}


_REPLACED: Final = """
import importlib, pathlib, time
from limiterd.core.errors import EnvironmentFault
from limiterd.kernel.netlink import MalformedMessage
module, _, path = {target!r}.partition(":")
*owners, name = path.split(".")
owner = importlib.import_module(module)
for part in owners:
    owner = getattr(owner, part)
whole, switch, reached = getattr(owner, name), pathlib.Path({switch!r}), pathlib.Path({reached!r})
def replaced(*args, **kwargs):
    while switch.exists():
        {act}
    return whole(*args, **kwargs)
setattr(owner, name, replaced)
"""


class _Switched:
    """A function of the daemon, "module:Class.method", that does something else while this is switched on."""

    def __init__(self, daemon: Rig, target: str, act: str) -> None:
        self._name = f"{target} {len(list(daemon.home.glob('*/*.planted')))}"
        self._switch, self._reached = daemon.home / f"{self._name}.switch", daemon.home / f"{self._name}.reached"
        code = _REPLACED.format(target=target, switch=str(self._switch), reached=str(self._reached), act=act)
        plant(daemon, code, self._name)

    def __str__(self) -> str:
        return self._name

    def on(self) -> None:
        """From now on it does."""
        self._reached.unlink(missing_ok=True)
        self._switch.touch()

    def off(self) -> None:
        """It works again."""
        self._switch.unlink()


class Spoilt(_Switched):
    """A function of the daemon that raises while it is switched on."""

    def __init__(self, daemon: Rig, target: str, error: str) -> None:
        """Plant it; error is an expression (EnvironmentFault, MalformedMessage and OSError are known)."""
        super().__init__(daemon, target, f"raise {error}")


class Held(_Switched):
    """A function of the daemon that does not begin while it is switched on."""

    def __init__(self, daemon: Rig, target: str) -> None:
        super().__init__(daemon, target, "reached.touch(); time.sleep(0.001)")

    def wait(self) -> None:
        """Until somebody has called it in vain."""
        wait_for(self._reached.exists, "the daemon is held up")


LOOP: Final = "limiterd.kernel.samplers:NetlinkSampler.sample"
"""Held, the loop stands still."""
WRITING: Final = "limiterd.kernel.tc:TcKernel.apply"
"""Held, the daemon stands between what it has read and what it is about to write."""
READING: Final = "limiterd.kernel.tc:TcKernel.read"
"""Held, the loop waits for what the kernel shows."""


def watched_interfaces(daemon: Rig) -> list[str]:
    """The interfaces that status lists."""
    return [link["interface"] for link in daemon.status()["links"]]


def problems(daemon: Rig) -> str:
    """All fault messages of the status, as one text."""
    return " | ".join(fault["message"] for fault in daemon.status()["faults"])


@contextlib.contextmanager
def stopped(daemon: Rig) -> Iterator[None]:
    """The daemon's process does not run during the block (SIGSTOP, SIGCONT)."""
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def starved(daemon: Rig) -> Iterator[None]:
    """During the block the daemon, as nice as can be, shares one processor with loops that never rest."""
    assert daemon.process is not None
    processor = {min(os.sched_getaffinity(0))}
    for thread in (int(path.name) for path in Path(f"/proc/{daemon.process.pid}/task").iterdir()):
        os.sched_setaffinity(thread, processor)
        os.setpriority(os.PRIO_PROCESS, thread, 19)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for loop in loops:
            os.sched_setaffinity(loop.pid, processor)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def burst(pair: Pair, size_bytes: int) -> None:
    """That many bytes out of the near end as fast as they go."""
    with inside(pair.near.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(size_bytes // 50_000):
            sender.sendto(bytes(50_000), (pair.far.v4, 9))


def later(daemon: Rig, verb: str, **args: object) -> None:
    """Ask without waiting for the answer, which the gate holds up."""

    def ask() -> None:
        with contextlib.suppress(PeerError):  # what became of it is seen in the kernel and in status
            daemon.ask(verb, **args)

    threading.Thread(target=ask, daemon=True).start()


def descriptors(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
