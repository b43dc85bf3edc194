"""SIGKILL, whenever it comes. LIMITERD_KILLS sets how many random ones there are."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from limiterd.core.errors import PeerError
from limiterd.sim.netns import Pair, PrivateNet, join, run
from tests.faults.harness import Echo, plant
from tests.netns import LONG, wait_for
from tests.rig import FAST, Rig, rig

pytestmark = [pytest.mark.root, pytest.mark.slow]

KILLS: Final = int(os.environ.get("LIMITERD_KILLS", "40" if LONG else "10"))
STEPS: Final = tuple(range(60)) if LONG else (0, 1, 2, 4, 9, 60)
_VERB_S: Final = 0.012
_START_S: Final = 0.35
"""The spans in which a kill may fall: a little longer than a change of a limit, and than a start, takes."""


def kill(daemon: Rig) -> None:
    """SIGKILL, and wait for the end."""
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL, daemon.log()[-2000:]


def converged(daemon: Rig, default: str) -> bool:
    """Status and kernel agree: limited and whole, or free with the root that was there before; no fault."""
    phase, root, status = daemon.phase(), daemon.root(), daemon.status()
    return not status["faults"] and (phase, root) in {("limited", "htb 1d1d:"), ("conforming", default)}


def converges(daemon: Rig, default: str, what: str) -> None:
    """Wait until status and kernel agree."""
    wait_for(lambda: converged(daemon, default), f"{what} converges; its log: {daemon.log()[-2000:]}")


def aside(lab: PrivateNet, pair: Pair) -> Pair:
    """A link that no policy watches: how long an echo over it is silent is the machine's doing."""
    return join(pair.near.namespace, lab.namespace(), "aside", "eth0", number=9)


def attack(daemon: Rig, chance: random.Random) -> None:
    """Ask for an install, a change or a release, and kill at a random instant of it."""
    limited = daemon.phase() == "limited"
    verb = "release" if limited and chance.random() < 0.5 else "limit"
    args: dict[str, object] = {"interface": "eth0", "reason": "test"}
    if verb == "limit":
        args["rate_bps"] = chance.choice([10_000_000, 20_000_000, 30_000_000])

    def ask() -> None:
        with contextlib.suppress(Exception):  # its end is cut off, at times with its question
            daemon.ask(verb, **args)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(chance.uniform(0, _VERB_S))  # the random instant
    kill(daemon)
    asking.join()


@pytest.mark.timeout(180 + 3 * KILLS)
def test_sigkill_at_random_instants(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """SIGKILL at random instants of start, install, change and release: an echo goes on, the next start converges."""
    chance = random.Random(KILLS)  # noqa: S311 - instants, not secrets
    lab.tcp(pair.near, pair.far, rate_bps=25_000_000)
    with rig(pair.near.namespace, tmp_path, FAST) as daemon, Echo(pair) as echo, Echo(aside(lab, pair)) as yardstick:
        default = daemon.root()
        for number in range(KILLS):
            daemon.start(wait=False)
            if chance.random() < 0.2:
                time.sleep(chance.uniform(0, _START_S))  # a random instant of the start
                kill(daemon)
            else:
                wait_for(daemon.answers, f"start {number}: {daemon.log()[-2000:]}", longest_s=20)
                converges(daemon, default, f"start {number}")
                attack(daemon, chance)
            echo.alive(f"after kill {number}; root {daemon.root()}")
        daemon.start()
        converges(daemon, default, "the last start")
        silent_ms = [round(1000 * each.longest_silence_s) for each in (echo, yardstick)]
        print(f"{KILLS} kills, {echo.sent} datagrams, longest silence {silent_ms[0]} ms, beside it {silent_ms[1]} ms")  # noqa: T201
        assert echo.longest_silence_s < 1 + yardstick.longest_silence_s


_AT_STEP = """
import os, signal
from limiterd.kernel.netlink import NetlinkSocket
left, whole = STEPS, NetlinkSocket.exchange
def exchange(self, data, offsets, *, operation=""):
    global left
    if operation != "apply" or not os.path.exists(SWITCH):
        return whole(self, data, offsets, operation=operation)
    if left < len(offsets):
        if left:
            self.raw.send(data[:offsets[left]])  # the kernel has carried it out when send returns
        os.kill(os.getpid(), signal.SIGKILL)
    left -= len(offsets)
    return whole(self, data, offsets, operation=operation)
NetlinkSocket.exchange = exchange
"""


@pytest.mark.parametrize("verb", ["install", "change", "release"])
def test_sigkill_after_every_single_step(lab: PrivateNet, pair: Pair, tmp_path: Path, verb: str) -> None:
    """SIGKILL after each message of an install, a change, a release: an echo goes on, the next start converges."""
    switch = tmp_path / "now"
    args = {} if verb == "release" else {"rate_bps": 5_000_000}
    with rig(pair.near.namespace, tmp_path, FAST) as daemon, Echo(pair) as echo, Echo(aside(lab, pair)) as yardstick:
        default = daemon.root()
        for steps in STEPS:
            plant(daemon, _AT_STEP.replace("STEPS", str(steps)).replace("SWITCH", repr(str(switch))))
            daemon.start()
            converges(daemon, default, f"the start after step {steps}")
            ready = "conforming" if verb == "install" else "limited"
            if daemon.phase() != ready:
                daemon.ask("release" if verb == "install" else "limit", interface="eth0", reason="before")
            daemon.wait_phase(ready)
            converges(daemon, default, "what is to be interrupted")
            switch.touch()
            with contextlib.suppress(Exception):  # killed before it answered
                daemon.ask("release" if verb == "release" else "limit", interface="eth0", reason="test", **args)
            if daemon.survived():
                break
            switch.unlink()
            echo.alive(f"after step {steps}; root {daemon.root()}")
        else:
            raise AssertionError("the plan has no end")
        assert steps >= {"install": 6, "change": 1, "release": 2}[verb]
        assert echo.longest_silence_s < 1 + yardstick.longest_silence_s


@pytest.mark.parametrize("verb", ["install", "release"])
def test_sigkill_within_a_takeover(pair: Pair, tmp_path: Path, verb: str) -> None:
    """SIGKILL after each message of a takeover and of its end: the foreign qdisc is never lost, released it is as it was."""
    switch = tmp_path / "now"
    with rig(pair.near.namespace, tmp_path, f"{FAST}, foreign_qdisc: takeover") as daemon:
        run(pair.near.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "pfifo", "limit", "77"])
        foreign = daemon.tc("qdisc", "show", "dev", "eth0")
        for steps in STEPS:
            plant(daemon, _AT_STEP.replace("STEPS", str(steps)).replace("SWITCH", repr(str(switch))))
            daemon.start()
            if verb == "release":
                daemon.ask("limit", interface="eth0", reason="before")
                daemon.wait_phase("limited")
            switch.touch()
            with contextlib.suppress(Exception):  # killed before it answered
                daemon.ask("limit" if verb == "install" else "release", interface="eth0", reason="test")
            survived = daemon.survived()
            switch.unlink()
            if not survived:
                daemon.start()
            with contextlib.suppress(PeerError):  # where nothing is limited
                daemon.ask("release", interface="eth0", reason="after")
            wait_for(
                lambda: daemon.tc("qdisc", "show", "dev", "eth0") == foreign,
                f"the foreign qdisc after {steps}: {daemon.log()[-3000:]}",
            )
            daemon.stop()
            if survived:
                break
        else:
            raise AssertionError("the plan has no end")
        assert steps >= 3
