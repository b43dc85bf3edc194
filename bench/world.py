"""What the benches share: a private namespace full of links, the real daemon in it, and what /proc says of a process.

Links are veth pairs with both ends in one namespace, named eth0, eth1, …; IPv6 is off there, so that an idle link is
silent. A hot link is sent whole frames through a packet socket by one small process. Nothing is left behind: the
namespace has no name and goes with this process.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limiterd.core.errors import EnvironmentFault  # noqa: E402 - found by the line above
from limiterd.sim.netns import Namespace, PrivateNet, can_make_namespaces, enter_user_namespace, inside, run  # noqa: E402 - likewise
from tests.rig import Rig, rig  # noqa: E402 - likewise

_CPUCLOCK_SCHED: Final = 2
SCALED: Final = "mode: observe, detect: {threshold: 1mbit, window: 10s}, limit: {rate: 200kbit}"
"""The default policy with its rates divided by a thousand: sixteen hot links then cost the sender nothing. Observing, a hot
link is judged, and fires, for ever; a limited one would be left alone."""

_SENDER: Final = """
import socket, sys, time
names, frame_bytes, pause_s = sys.argv[3:], int(sys.argv[1]), float(sys.argv[2])
frame = b"\\x02" + bytes(11) + b"\\x88\\xb5" + bytes(frame_bytes - 14)
socks = []
for name in names:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((name, 0))
    socks.append(sock)
print("ready", flush=True)
due = time.monotonic()
while True:
    for sock in socks:
        sock.send(frame)
    due += pause_s
    time.sleep(max(0.0, due - time.monotonic()))
"""


def need_namespaces() -> None:
    """Enter a user namespace where this process is not root; ends it where that is not allowed."""
    if can_make_namespaces():
        return
    try:
        enter_user_namespace()
    except EnvironmentFault as error:
        sys.exit(f"bench: {error}")


def populate(namespace: Namespace, links: int) -> None:
    """Make that many links (an even number), all up."""
    with inside(namespace):
        for which in ("default", "all"):
            subprocess.run(["sysctl", "-qw", f"net.ipv6.conf.{which}.disable_ipv6=1"], check=False, capture_output=True)
        made = "".join(f"link add eth{n} up mtu 65000 type veth peer name eth{n + 1}\n" for n in range(0, links, 2))
        up = "".join(f"link set eth{n} mtu 65000 up\n" for n in range(1, links, 2))
        subprocess.run(["ip", "-batch", "-"], input=made + up, text=True, check=True, capture_output=True)


@contextlib.contextmanager
def hot(namespace: Namespace, names: Sequence[str], frame_bytes: int = 10_000, pause_s: float = 0.025) -> Iterator[None]:
    """Send a frame on each of these links, paced, while the block runs (defaults: 3.2 Mbit/s a link)."""
    if not names:
        yield
        return
    with inside(namespace):
        command = [sys.executable, "-I", "-c", _SENDER, str(frame_bytes), str(pause_s), *names]
        sender = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        if sender.stdout is not None:
            sender.stdout.readline()
        yield
    finally:
        sender.kill()
        sender.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used until now."""

    at_s: float
    cpu_s: float
    rss_kib: int
    threads: int
    descriptors: int

    def percent_since(self, before: Usage) -> float:
        """CPU time in percent of one core between two readings."""
        return 100 * (self.cpu_s - before.cpu_s) / (self.at_s - before.at_s)


def usage(pid: int) -> Usage:
    """Read a process; its CPU time is that of all its threads that are and were (clock_getcpuclockid(3): exact to the ns)."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return Usage(
        at_s=time.monotonic(),
        cpu_s=time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / 1e9,
        rss_kib=int(status["VmRSS"].split()[0]),
        threads=int(status["Threads"]),
        descriptors=len(list((process / "fd").iterdir())),
    )


@contextlib.contextmanager
def world(links: int = 0) -> Iterator[tuple[PrivateNet, Namespace]]:
    """A namespace with that many links."""
    with PrivateNet() as lab:
        namespace = lab.namespace()
        populate(namespace, links)
        yield lab, namespace


@contextlib.contextmanager
def daemon(namespace: Namespace, policy: str = SCALED, extra: str = "") -> Iterator[Rig]:
    """The real daemon in the namespace, answering; its byte code is compiled, as that of an installed one is."""
    with tempfile.TemporaryDirectory(prefix="limiterd-bench-") as home, rig(namespace, Path(home), policy, extra) as made:
        made.environment = compiled_environment()
        made.confined = False  # what it is compared with runs without the unit's filter, too
        made.start()
        yield made


def compiled_environment() -> dict[str, str]:
    """Environment in which imports find byte code: kept beside the system's temporary files, made on the first use."""
    return {"PYTHONPYCACHEPREFIX": f"{tempfile.gettempdir()}/limiterd-bench-pyc-{os.getuid()}", "PYTHONDONTWRITEBYTECODE": ""}


def pid_of(made: Rig) -> int:
    """The daemon's process id."""
    if made.process is None:
        raise ValueError("the daemon does not run")
    return made.process.pid


def machine() -> str:
    """One line about what this ran on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    software = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} × {model}, {software}, load {os.getloadavg()[0]:.2f} at the start"


__all__ = [
    "ROOT",
    "SCALED",
    "Namespace",
    "PrivateNet",
    "Rig",
    "Usage",
    "compiled_environment",
    "daemon",
    "hot",
    "inside",
    "machine",
    "need_namespaces",
    "pid_of",
    "populate",
    "run",
    "usage",
    "world",
]  # fmt: skip
