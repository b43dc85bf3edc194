"""A busy machine decides no test: waiting by the clock of a control, and tests whose own sender was starved are repeated.

Bounds in seconds count a control's seconds: a small process beside the test that sleeps and works in turns. Where the
machine gives it no processor they stand still, so that only the daemon's own slowness comes up to a bound. What a test
presupposes of its own sender is looked at every 100 ms; MachineTooSlow says that it did not hold, and the test is run
again, at the most three times in all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from itertools import pairwise
from typing import Final, Self

import pytest
from _pytest.runner import runtestprotocol

from limiterd.kernel.links import LinkTable
from limiterd.kernel.samplers import NetlinkSampler
from limiterd.sim.netns import End, inside

TRIES: Final = 3
LOOK_S: Final = 0.1
LOOKS_APART_S: Final = 0.3
"""Looks further apart have seen nothing: whoever looks was starved himself."""
_TICK_S: Final = 0.02
_CONTROL: Final = f"""
import os, sys, time
parent, ticks = os.getppid(), 0
while os.getppid() == parent:
    time.sleep({_TICK_S})
    sum(range(20_000))
    ticks += 1
    os.pwrite(int(sys.argv[1]), ticks.to_bytes(8, "little"), 0)
"""


# ---- a control's clock -----------------------------------------------------------------------------------------------


class Control:
    """A process that sleeps 20 ms and works for about one, in turns; its seconds are those that the machine gave it."""

    def __init__(self) -> None:
        self._made_s = time.monotonic()
        self._count = os.memfd_create("ticks")
        os.ftruncate(self._count, 8)
        command = [sys.executable, "-I", "-S", "-c", _CONTROL, str(self._count)]
        self.process = subprocess.Popen(command, pass_fds=[self._count], stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._count)

    def seconds(self) -> float:
        """How long it has run."""
        return int.from_bytes(os.pread(self._count, 8, 0), "little") * _TICK_S

    def stolen_s(self) -> float:
        """How much of the time since it was made it did not run: what a busy machine may be late by."""
        return time.monotonic() - self._made_s - self.seconds()


# ---- senders ---------------------------------------------------------------------------------------------------------


class MachineTooSlow(Exception):
    """What the test presupposes of its own sender did not hold: nothing is said of the product."""

    def __init__(self, what: str) -> None:
        super().__init__(f"machine too slow: {what}")


class Sent:
    """What leaves by a link, looked at every 100 ms while the block lasts."""

    def __init__(self, end: End) -> None:
        self._ifindex = end.ifindex
        with inside(end.namespace):
            self._table = LinkTable()
            self._sampler = NetlinkSampler(self._table, int(LOOKS_APART_S * 1e9))
        self._looks: list[tuple[int, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sampler.close()
        self._table.close()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            if (snapshot := self._sampler.sample()) is not None:
                counted = zip(snapshot.links, snapshot.tx_bytes, strict=True)
                self._looks.append((snapshot.t_ns, next(sent for link, sent in counted if link.ifindex == self._ifindex)))

    def onset_ns(self, rate_bps: int) -> int:
        """When the first interval at that rate began."""
        looks = tuple(self._looks)
        for (begin_ns, before), (end_ns, after) in pairwise(looks):
            if 8e9 * (after - before) >= rate_bps * (end_ns - begin_ns):
                return begin_ns
        raise MachineTooSlow(f"the sender never came to {rate_bps / 1e6:.0f} Mbit/s")

    def must_have_held(self, rate_bps: int, begin_ns: int, end_ns: int) -> None:
        """Raise MachineTooSlow where an interval between these moments was under that rate, or nobody looked."""
        looks = [look for look in tuple(self._looks) if begin_ns <= look[0] <= end_ns]
        for (earlier_ns, before), (later_ns, after) in pairwise(looks):
            at_s = (earlier_ns - begin_ns) / 1e9
            if later_ns - earlier_ns > LOOKS_APART_S * 1e9:
                raise MachineTooSlow(f"nobody looked for {(later_ns - earlier_ns) / 1e9:.1f} s from second {at_s:.1f} on")
            if 8e9 * (after - before) < rate_bps * (later_ns - earlier_ns):
                mbit = 8e3 * (after - before) / (later_ns - earlier_ns)
                raise MachineTooSlow(f"the sender fell to {mbit:.0f} of {rate_bps / 1e6:.0f} Mbit/s at second {at_s:.1f}")


# ---- once more -------------------------------------------------------------------------------------------------------

_slow = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note who was too slow."""
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(MachineTooSlow):
        item.stash[_slow] = True
    return report


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test as pytest does, and again while the machine was too slow; only the last run is reported."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports: list[pytest.TestReport] = []
    for _ in range(TRIES):
        item.stash[_slow] = False
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not item.stash[_slow]:
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
