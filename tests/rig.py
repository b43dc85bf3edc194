"""The real daemon in a private namespace, for tests that look at it from outside as its users do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from limiterd.ctl.connect import record
from limiterd.ctl.history import completed, verified
from limiterd.serve.control_client import call, call_for_files
from limiterd.sim.netns import Namespace, inside, run
from tests.machine import MachineTooSlow
from tests.netns import wait_for
from tests.seccomp import SOCKET_GROUP, unit_filter

MEASURED: Final = "COVERAGE_PROCESS_CONFIG" in os.environ
"""Whether `make coverage` runs, and measures the daemons too."""
_ORDERLY_S: Final = 5.0
METRICS: Final = "127.0.0.1:9817"
FAST: Final = "detect: {threshold: 100mbit, window: 2s}, limit: {rate: 20mbit}"
"""The default policy scaled down by ten (rates) and five (time)."""


@dataclass(slots=True)
class Rig:
    """One daemon, its files and its namespace."""

    namespace: Namespace
    home: Path
    policy: str = ""
    extra: str = ""
    process: subprocess.Popen[bytes] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    """A command that the daemon's own is appended to and that becomes it by exec (unshare, sh -c 'exec "$@"')."""
    confined: bool = True
    """Without a prefix: under the unit's system call filter, where that can be had."""

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.home / "limiterd.yaml"

    @property
    def overrides(self) -> Path:
        """The operator's override directory."""
        return self.home / "overrides.d"

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.home / "state"

    @property
    def socket(self) -> str:
        """The control socket."""
        return str(self.home / "run" / "control.sock")

    def configure(self, policy: str | None = None, extra: str | None = None) -> None:
        """Write the configuration: one policy named fair-use for eth*, with these keys; extra are further top-level lines."""
        self.policy = self.policy if policy is None else policy
        self.extra = self.extra if extra is None else extra
        self.overrides.mkdir(exist_ok=True)
        keys = f", {self.policy}" if self.policy else ""
        self.config.write_text(
            f"policies: [{{name: fair-use, interfaces: ['eth*']{keys}}}]\n"
            f"control: {{socket: {self.socket}}}\n"
            f"state: {{directory: {self.state}}}\n"
            f"overrides: {{directory: {self.overrides}}}\n"
            f"{self.extra}\n"
        )

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon; wait until it answers."""
        command = [*self.prefix, sys.executable, "-m", "limiterd.daemon", "--config", str(self.config)]
        with inside(self.namespace), (self.home / "log").open("ab") as log:
            environment = {**os.environ, **self.environment}
            confine = self._filter() if self.confined and not self.prefix else None
            self.process = subprocess.Popen(
                command,
                stderr=log,
                stdout=log,
                env=environment,
                preexec_fn=confine,  # noqa: PLW1509 - two system calls, and no lock taken
            )
        if wait:
            wait_for(self.answers, f"the daemon answers; its log: {self.log()}", longest_s=20)

    def _filter(self) -> Callable[[], None] | None:
        return unit_filter(SOCKET_GROUP) if "group:" in self.config.read_text() else unit_filter()

    def answers(self) -> bool:
        """Whether the daemon answers with a sample taken."""
        assert not self.ended(), f"the daemon ended: {self.log()}"
        return self._reachable()

    def ended(self) -> bool:
        """Whether the process is over."""
        assert self.process is not None
        return self.process.poll() is not None

    def survived(self) -> bool:
        """Whether the daemon outlived what was done to it; a killed one takes a moment to go, so it waits for either."""
        wait_for(lambda: self.ended() or self._reachable(), f"the daemon has ended or answers; its log: {self.log()[-2000:]}")
        return not self.ended()

    def _reachable(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self.status()["links"] or self.status()["source"])
        return False

    def log(self) -> str:
        """All that the daemon logged."""
        path = self.home / "log"
        return path.read_text() if path.exists() else ""

    def stop(self, number: int = signal.SIGTERM, *, within_s: float = 20) -> int:
        """End the daemon and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        wait_for(self.ended, f"the daemon's end after signal {number}; its log: {self.log()[-2000:]}", longest_s=within_s)
        status = self.process.wait()
        self.process = None
        return status

    def hang_up(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """Stop in order, and start again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the daemon if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            if MEASURED:  # what it ran is written down at its end
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_ORDERLY_S)
            self.process.kill()
            self.process.wait()

    # ---- asking ----

    def ask(self, verb: str, **args: object) -> Any:
        """One question over the control socket; the trail is verified here, as limiterctl does it."""
        if verb == "history.verify":
            data, descriptors = call_for_files(self.socket, verb, args, 10)
            return completed(record(data), descriptors, lambda trail, told: verified(trail, None, told))
        return call(self.socket, verb, args, 10)

    def status(self) -> Any:
        """The whole of status --json."""
        return self.ask("status")

    def link(self, interface: str = "eth0") -> Any:
        """One link of the status."""
        return next(link for link in self.status()["links"] if link["interface"] == interface)

    def phase(self, interface: str = "eth0") -> str:
        """One link's phase; "gone" where status does not list it."""
        return next((str(link["phase"]) for link in self.status()["links"] if link["interface"] == interface), "gone")

    def wait_phase(self, phase: str, interface: str = "eth0", *, longest_s: float = 20) -> Any:
        """The link once it is in that phase."""
        wait_for(
            lambda: self.phase(interface) == phase, f"{interface} is {phase}; log: {self.log()[-3000:]}", longest_s=longest_s
        )
        return self.link(interface)

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """limiterctl as a user runs it."""
        command = [sys.executable, "-m", "limiterd.cli", *words, "--config", str(self.config)]
        return run(self.namespace, command, check=check)

    def metrics(self) -> dict[str, float]:
        """One scrape: series → value."""
        with inside(self.namespace):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            text = opener.open(f"http://{METRICS}/metrics", timeout=5).read().decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    # ---- the kernel's own word ----

    def mac(self, interface: str = "eth0") -> str:
        """The link's hardware address."""
        shown = json.loads(run(self.namespace, ["ip", "-j", "link", "show", interface]).stdout)
        return str(shown[0]["address"])

    def tc(self, *words: str) -> Any:
        """What `tc -j …` says."""
        return json.loads(run(self.namespace, ["tc", "-j", *words]).stdout or "[]")

    def root(self, interface: str = "eth0") -> str:
        """Kind and handle of the root qdisc, e.g. "htb 1d1d:" or "noqueue 0:"."""
        found = [q for q in self.tc("qdisc", "show", "dev", interface) if q.get("root")]
        return f"{found[0]['kind']} {found[0]['handle']}" if found else "none"

    def class_bytes(self, classid: str = "1d1d:1", interface: str = "eth0") -> int:
        """The bytes that a class has sent (the limit's own class)."""
        text = run(self.namespace, ["tc", "-s", "class", "show", "dev", interface]).stdout
        blocks = text.split("class htb ")
        block = next(b for b in blocks if b.startswith(f"{classid} "))
        return int(block.split("Sent ")[1].split()[0])

    def queued_bytes(self, interface: str = "eth0") -> int:
        """What waits under the root qdisc."""
        shown = self.tc("-s", "qdisc", "show", "dev", interface)
        return int(next(qdisc["backlog"] for qdisc in shown if qdisc.get("root")))


@contextlib.contextmanager
def rig(namespace: Namespace, home: Path, policy: str = "", extra: str = "") -> Iterator[Rig]:
    """A rig with its files in a directory of its own; the daemon ends with the block."""
    made = Rig(namespace, home, policy, extra)
    made.configure()
    try:
        yield made
    finally:
        made.close()


def measured_bps(read_bytes: Callable[[], int], seconds: float) -> float:
    """The mean rate of a byte counter over a span, in bit/s."""
    first, start = read_bytes(), time.monotonic()
    time.sleep(seconds)  # the measurement itself: a span of time is what is wanted
    return 8 * (read_bytes() - first) / (time.monotonic() - start)


def shaped_bps(daemon: Rig, seconds: int) -> list[float]:
    """The limit's own rate in each of the coming seconds in which packets waited at every look.

    MachineTooSlow where there was none: the sender did not ask for all of the limit.
    """
    rates_bps: list[float] = []
    for _ in range(seconds):
        queued: list[int] = []
        first, start = daemon.class_bytes(), time.monotonic()
        last, elapsed_s = first, 0.0
        while elapsed_s < 1:
            time.sleep(0.1)  # the measurement itself
            queued.append(daemon.queued_bytes())
            last, elapsed_s = daemon.class_bytes(), time.monotonic() - start
        if all(queued):
            rates_bps.append(8 * (last - first) / elapsed_s)
    if not rates_bps:
        raise MachineTooSlow("the limit's queue was empty once in every second")
    return rates_bps
