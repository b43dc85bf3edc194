"""The real stage: two private namespaces, a veth pair, the real daemon in one of them, and TCP through it.

What the story needs of a stage is the protocol at the top; the simulated stage gives the same. Nothing here outlives the
process: the namespaces are held by descriptors, the traffic is tethered, the daemon gets the kernel's word to die with us,
and the directory is removed when the stage is left, however that happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol, Self

from limiterd.core.errors import EXIT_UNREACHABLE, EnvironmentFault, PeerError
from limiterd.ctl.connect import record, records
from limiterd.demo.demand import Reading
from limiterd.demo.scale import LINK, Scale, config_text, override_text
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import boottime_ns
from limiterd.kernel.samplers import NetlinkSampler
from limiterd.kernel.tc import TcKernel
from limiterd.serve.control_client import call
from limiterd.sim.netns import Flow, Pair, PrivateNet, inside

START_S: Final = 15.0
STOP_S: Final = 5.0
CALL_S: Final = 10.0
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)

Document = dict[str, object]


class Stage(Protocol):
    """Where the story is played. Times are CLOCK_BOOTTIME nanoseconds, or the simulated clock's."""

    simulated: bool

    def now_ns(self) -> int:
        """The stage's clock."""

    def wall_s(self) -> float:
        """The calendar beside it, Unix seconds."""

    def pause(self, seconds: float) -> None:
        """Let time pass."""

    def send(self, rate_bps: int) -> None:
        """Send at this rate from now on."""

    def status(self) -> Document:
        """The daemon's status."""

    def words(self) -> str:
        """What the daemon wrote down about the limit, "" while it has not yet."""

    def read(self) -> Reading:
        """The kernel's counters, without the daemon."""

    def grant(self, expires: str) -> None:
        """Put the override's file there."""

    def reload(self) -> list[str]:
        """Have the daemon reload; what changed."""


class RealStage:
    """Owns everything; use it as a context manager."""

    simulated = False

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._stack = contextlib.ExitStack()
        self._directory = Path()
        self._pair: Pair
        self._flow: Flow
        self._daemon: subprocess.Popen[bytes]
        self._sampler: NetlinkSampler
        self._tc: TcKernel

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with _undisturbed():
            self._stack.close()

    # ---- setting up ----

    def _build(self) -> None:
        with held():
            self._furnish()
            self._start_daemon()
        self._await_daemon()

    def _furnish(self) -> None:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="limiterd-demo-")))
        lab = self._stack.enter_context(PrivateNet())
        self._pair = lab.pair(LINK, "world0")
        near = self._pair.near
        with inside(near.namespace):
            table = LinkTable()
            self._stack.callback(table.close)
            self._sampler = NetlinkSampler(table, self._scale.window_ns // 100)
            self._stack.callback(self._sampler.close)
            self._tc = TcKernel()
            self._stack.callback(self._tc.close)
        self._flow = lab.tcp(near, self._pair.far, 0)

    def _start_daemon(self) -> None:
        for name in ("state", "overrides.d"):
            (self._directory / name).mkdir(mode=0o700)
        config = self._directory / "limiterd.yaml"
        config.write_text(config_text(self._scale, str(self._directory)), encoding="utf-8")
        config.chmod(0o600)
        log = self._stack.enter_context((self._directory / "limiterd.log").open("wb"))
        # -P: what lies in the current directory is no part of the daemon, whatever its name.
        command = [sys.executable, "-P", "-m", "limiterd.daemon", "--config", str(config)]
        with inside(self._pair.near.namespace):
            # A session of its own: Ctrl-C is for this program, which then ends the daemon in good order.
            self._daemon = subprocess.Popen(  # noqa: S603 - our own daemon by our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(_die_with, os.getpid()),  # noqa: PLW1509 - this program has no second thread
            )
        self._stack.callback(self._stop_daemon)

    def _await_daemon(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self._daemon.poll() is not None:
                raise EnvironmentFault(
                    f"the daemon ended with exit code {self._daemon.returncode}:\n{self.log()}", operation="demo"
                )
            try:
                if any(link.get("phase") == "conforming" for link in records(self.status().get("links"))):
                    return
            except PeerError as error:
                if error.exit_code != EXIT_UNREACHABLE:
                    raise
            if time.monotonic() > deadline:
                raise EnvironmentFault(f"the daemon did not get ready within {START_S:g} s:\n{self.log()}", operation="demo")
            time.sleep(0.02)

    def _stop_daemon(self) -> None:
        self._daemon.terminate()
        try:
            self._daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def log(self) -> str:
        """What the daemon has logged, the last lines of it."""
        text = (self._directory / "limiterd.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-20:])

    # ---- the protocol ----

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        return boottime_ns()

    def wall_s(self) -> float:
        """CLOCK_REALTIME."""
        return time.time()

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, seconds))

    def send(self, rate_bps: int) -> None:
        """Change the sender's pace."""
        self._flow.set_rate(rate_bps)

    def status(self) -> Document:
        """Ask the daemon."""
        return self._ask("status")

    def words(self) -> str:
        """The newest firing's sentence in the audit trail."""
        entries = records(self._ask("history", interface=LINK, kinds=["limit"], limit=1).get("entries"))
        return str(record(entries[0].get("fields")).get("text") or "") if entries else ""

    def reload(self) -> list[str]:
        """Have the daemon reload."""
        changes = self._ask("reload").get("changes")
        return [str(change) for change in changes] if isinstance(changes, list) else []

    def grant(self, expires: str) -> None:
        """Write the override's file as an operator would: whole, then renamed into its place."""
        path = self._directory / "overrides.d" / "req-1234.yaml"
        fresh = path.with_suffix(".tmp")
        fresh.write_text(override_text(expires), encoding="utf-8")
        fresh.chmod(0o600)
        fresh.rename(path)

    def read(self) -> Reading:
        """Read the counters in the namespace, beside the daemon."""
        ifindex = self._pair.near.ifindex
        actual = self._tc.read([ifindex])[ifindex]
        snapshot = None
        while snapshot is None:
            snapshot = self._sampler.sample()
        tx_bytes = next(b for link, b in zip(snapshot.links, snapshot.tx_bytes, strict=True) if link.ifindex == ifindex)
        root = f"{actual.root.kind} {actual.root.handle >> 16:x}:" if actual.root is not None else "none"
        stats = actual.stats
        return Reading(snapshot.t_ns, tx_bytes, stats.sent_bytes if actual.ours else None, stats.backlog_bytes, root)

    def _ask(self, verb: str, **args: object) -> Document:
        data = call(str(self._directory / "control.sock"), verb, args, CALL_S)
        return dict(data) if isinstance(data, dict) else {}


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Being told to end waits until the block is over: a link half made, or a process not yet noted, could not be put away.

    Programs started in the block keep it so: traffic ends by its tether, the daemon takes the hold off (_die_with).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Putting away takes a moment and is bounded: an impatient second Ctrl-C does not leave half of it behind."""
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in ENDINGS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _die_with(parent: int) -> None:
    """Between fork and exec: the kernel ends the daemon when this program is killed without a chance to do it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    if os.getppid() != parent:
        os._exit(1)
