"""A private network: private network namespaces, links between them, and real traffic. For the demo, the tests and the benches.

Rule: nothing of it outlives its user. A namespace here has no name in the file system: only a descriptor holds it, so
it, its links and its qdiscs vanish with the process, whatever ends that (SIGKILL too). Traffic programs are tethered to
their starter by a pipe and end with it.

Theory of operation. A network namespace belongs to a thread, sockets keep the one they were made in, and a child
process inherits that of the thread which starts it. So `with inside(ns):` is the one tool: open a socket, start a
program, use pyroute2, all of it then lives in `ns`. Without root the same works in a user namespace of one's own, which
`enter_user_namespace` makes before anything else happens in the process.

The daemon does not use this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pyroute2 import IPRoute, NetlinkError

from limiterd.core.errors import EnvironmentFault, PermissionFault

_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWUSER: Final = 0x10000000
_IFA_F_NODAD: Final = 0x02
_IFA_F_TENTATIVE: Final = 0x40
_UP_S: Final = 5.0
_UP_POLL_S: Final = 0.001
_OWN_NETNS: Final = "/proc/thread-self/ns/net"
_TRAFFIC: Final = str(Path(__file__).with_name("traffic.py"))

_libc = ctypes.CDLL(None, use_errno=True)


# ---- namespaces ----------------------------------------------------------------------------------


class Namespace:
    """A network namespace held by a descriptor; label is for people."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.fd = -1
        home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", _CLONE_NEWNET)
            try:
                self.fd = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _call("setns", home, _CLONE_NEWNET)
        finally:
            os.close(home)

    def __repr__(self) -> str:
        return f"Namespace({self.label!r}, fd={self.fd})"

    @property
    def path(self) -> str:
        """Where other programs find it while this process lives, e.g. for nsenter --net=…."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Let go: the namespace vanishes as soon as no socket and no process is in it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _call(name: str, *arguments: int) -> None:
    """One system call by its libc wrapper (os.setns and os.unshare came with Python 3.12)."""
    if getattr(_libc, name)(*arguments) == 0:
        return
    code = ctypes.get_errno()
    kind = PermissionFault if code == errno.EPERM else EnvironmentFault
    hint = "; run as root, or where user namespaces are allowed" if code == errno.EPERM else ""
    raise kind(f"{name}: {os.strerror(code)}{hint}", operation="namespace", errno_name=errno.errorcode.get(code, str(code)))


@contextlib.contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Put this thread into the namespace for the block. Sockets and programs made in it stay there."""
    home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", namespace.fd, _CLONE_NEWNET)
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces and change links in them (CAP_SYS_ADMIN and CAP_NET_ADMIN).

    Not where the kernel has none (EINVAL), or allows no more of them (ENOSPC: user.max_net_namespaces), either.
    """
    try:
        trial = Namespace("trial")
    except EnvironmentFault:
        return False
    try:
        with inside(trial), IPRoute() as route:
            route.link("set", index=1, state="up")
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            return False
        raise
    finally:
        trial.close()
    return True


def enter_user_namespace() -> None:
    """Become root of a user namespace of one's own, so that network namespaces can be made without being root.

    Must come before the process has a second thread; it cannot be undone. Files and limits outside are seen with the
    caller's own rights. Raises PermissionFault where the machine does not allow it (sysctl kernel.unprivileged_userns_clone,
    kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces).
    """
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER)
    try:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    except OSError as error:
        raise PermissionFault(f"user namespace: {error}", operation="namespace", errno_name="EPERM") from error
    _call("unshare", _CLONE_NEWNET)


# ---- links ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """One end of a veth pair."""

    namespace: Namespace
    ifname: str
    ifindex: int
    v4: str
    v6: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two namespaces joined by a veth pair: near is where limits are put, far is the world."""

    near: End
    far: End


class PrivateNet:
    """Owns what it makes; leaving the block ends traffic and lets every namespace go, also on Ctrl-C."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything; again is harmless."""
        self._stack.close()

    def namespace(self, label: str = "") -> Namespace:
        """A fresh network namespace with its loopback up."""
        self._made += 1
        made = Namespace(label or f"lim-{os.getpid()}-{self._made}")
        self._stack.callback(made.close)
        with route_in(made) as route:
            route.link("set", index=1, state="up")
        return made

    def pair(self, near_ifname: str = "eth0", far_ifname: str = "eth0", *, number: int = 1) -> Pair:
        """Two fresh namespaces joined by a veth pair with 10.77.N.1/24, fd77:N::1/64 near and .2, ::2 far (N: number)."""
        near, far = self.namespace(), self.namespace()
        return join(near, far, near_ifname, far_ifname, number=number)

    def tcp(self, source: End, sink: End, rate_bps: int | None = None, *, streams: int = 1, host: str | None = None) -> Flow:
        """TCP from source to sink at rate_bps (None: as fast as it goes; 0: paused), over IPv4 or to the given address."""
        return self._flow("tcp", source, sink, host or sink.v4, {"rate_bps": rate_bps, "streams": streams})

    def udp(self, source: End, sink: End, rate_bps: int | None, *, size_bytes: int = 1400, host: str | None = None) -> Flow:
        """Numbered UDP datagrams of size_bytes payload from source to sink."""
        return self._flow("udp", source, sink, host or sink.v4, {"rate_bps": rate_bps, "size_bytes": size_bytes})

    def _flow(self, kind: str, source: End, sink: End, host: str, options: Mapping[str, Any]) -> Flow:
        receiver = self._stack.enter_context(Program(sink.namespace, f"{kind}-receive", {"host": host}))
        where = {"host": host, "port": receiver.hello["port"]}
        sender = self._stack.enter_context(Program(source.namespace, f"{kind}-send", {**where, **options}))
        return Flow(sender, receiver)


@contextlib.contextmanager
def route_in(namespace: Namespace) -> Iterator[Any]:
    """pyroute2's IPRoute inside the namespace (never by IPRoute(netns=…), which creates what it does not find)."""
    with inside(namespace), IPRoute() as route:
        yield route


def join(near: Namespace, far: Namespace, near_ifname: str, far_ifname: str, *, number: int = 1) -> Pair:
    """A veth pair between two namespaces, up and addressed; IPv6 addresses work at once (no duplicate detection)."""
    with route_in(near) as route:
        # ip link add NEAR type veth peer name FAR netns …
        route.link("add", ifname=near_ifname, kind="veth", peer={"ifname": far_ifname, "net_ns_fd": far.fd})
    ends = [
        _address(namespace, ifname, f"10.77.{number}.{host}", f"fd77:{number}::{host}")
        for host, (namespace, ifname) in enumerate(((near, near_ifname), (far, far_ifname)), start=1)
    ]
    for end in ends:
        _await_up(end)
    return Pair(*ends)


def _await_up(end: End) -> None:
    """Wait until the link is operational and its addresses are in use: what is sent earlier is lost, ND for a second."""
    deadline = time.monotonic() + _UP_S
    with route_in(end.namespace) as route:
        while True:
            (link,) = route.get_links(end.ifindex)
            tentative = [a for a in route.get_addr(index=end.ifindex) if a.get_attr("IFA_FLAGS") & _IFA_F_TENTATIVE]
            if link.get_attr("IFLA_OPERSTATE") == "UP" and not tentative:
                return
            if time.monotonic() > deadline:
                raise EnvironmentFault(f"{end.ifname} in {end.namespace} did not come up within {_UP_S:g} s", operation="lab")
            time.sleep(_UP_POLL_S)


def _address(namespace: Namespace, ifname: str, v4: str, v6: str) -> End:
    """Addresses that work at once: the kernel's own link-local one would be tentative for a second, and ND with it."""
    link_local = "fe80::" + v6.rpartition("::")[2]
    with route_in(namespace) as route:
        ifindex = route.link_lookup(ifname=ifname)[0]
        # ip link set IFNAME addrgenmode none
        route.link("set", index=ifindex, IFLA_AF_SPEC={"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]})
        route.addr("add", index=ifindex, address=v4, prefixlen=24)
        for address in (v6, link_local):
            route.addr("add", index=ifindex, address=address, prefixlen=64, flags=_IFA_F_NODAD)
        route.link("set", index=ifindex, state="up")
    return End(namespace, ifname, ifindex, v4, v6)


# ---- traffic -------------------------------------------------------------------------------------


class Program:
    """One traffic program in its own process inside a namespace; hello is its first answer."""

    def __init__(self, namespace: Namespace, role: str, options: Mapping[str, Any]) -> None:
        command = [sys.executable, "-I", _TRAFFIC, role, json.dumps(options)]
        with inside(namespace):
            self._process = subprocess.Popen(  # noqa: S603 # our own file, run by our own interpreter
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self.role = role
        try:
            self.hello = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, command: str) -> dict[str, Any]:
        """Send one command and return its answer. Raises EnvironmentFault when the program has ended."""
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            raise EnvironmentFault(f"traffic program {self.role} has been stopped", operation="traffic")
        try:
            pipe.write(command + "\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        return self._answer()

    def close(self) -> None:
        """Cut the tether and wait for the end; a program that does not end within 2 s is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        pipe = self._process.stdout
        line = pipe.readline() if pipe is not None else ""
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> EnvironmentFault:
        code = self._process.poll()
        return EnvironmentFault(f"traffic program {self.role} ended (exit {code}); its stderr says why", operation="traffic")


@dataclass(frozen=True, slots=True)
class Flow:
    """A running source and its sink."""

    source: Program
    sink: Program

    def set_rate(self, rate_bps: int | None) -> None:
        """Change the pace: None as fast as it goes, 0 pauses."""
        self.source.ask("rate max" if rate_bps is None else f"rate {rate_bps}")

    def stats(self) -> dict[str, Any]:
        """The counters of both ends; for UDP also lost_packets: sent, and neither refused by the sender nor arrived.

        lost_packets counts datagrams in flight too: read it after the source has been paused or stopped.
        """
        return self._merged(self.source.ask("stats"), self.sink.ask("stats"))

    def stop(self) -> dict[str, Any]:
        """End the source, let what is in flight arrive, end the sink; the final counters, as stats gives them."""
        sent = self.source.ask("stop")
        self.source.close()
        received = _settled(lambda: self.sink.ask("stats"))
        self.sink.close()
        return self._merged(sent, received)

    @staticmethod
    def _merged(sent: dict[str, Any], received: dict[str, Any]) -> dict[str, Any]:
        merged = {**sent, **received}
        if "sent_packets" in sent:
            arrived = received["received_packets"] + received["sink_drops"]
            merged["lost_packets"] = sent["sent_packets"] - sent["refused_packets"] - arrived
        return merged


def _settled(read: Callable[[], dict[str, Any]], *, quiet_s: float = 0.1, longest_s: float = 5.0) -> dict[str, Any]:
    """Read until two readings quiet_s apart agree, at most longest_s."""
    last, deadline = read(), time.monotonic() + longest_s
    while time.monotonic() < deadline:
        time.sleep(quiet_s)
        now = read()
        if now == last:
            break
        last = now
    return last


def run(namespace: Namespace, command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program (ip, tc, ping, the daemon) inside the namespace and collect its output as text."""
    with inside(namespace):
        return subprocess.run(command, check=check, capture_output=True, text=True)  # noqa: S603 # the caller's own command
