"""What tests do on a machine that is too slow for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet
from tests import netns
from tests.machine import Control, MachineTooSlow, Sent

ROOT = Path(__file__).resolve().parent.parent
SUITE = """
from collections import Counter
import pytest
from tests.machine import MachineTooSlow

tries = Counter()

@pytest.mark.parametrize(("slow", "kept"), [(0, True), (2, True), (3, True), (0, False), (1, False)])
def test(slow, kept):
    tries[slow, kept] += 1
    if tries[slow, kept] <= slow:
        raise MachineTooSlow("the sender slept")
    assert kept, f"broken at run {tries[slow, kept]}"

def test_count():
    assert list(tries.values()) == [1, 3, 3, 1, 2]
"""


def test_a_slow_run_is_repeated_and_told_apart(tmp_path: Path) -> None:
    """Up to three runs while the machine is too slow; a failure of the product is one at once, and is told as such."""
    suite = tmp_path / "test_it.py"
    suite.write_text(SUITE)
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-I",
        "-c",
        script,
        "-q",
        "--tb=line",
        "-p",
        "tests.machine",
        "--rootdir",
        str(tmp_path),
        str(suite),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    assert "3 failed, 3 passed" in shown
    assert "machine too slow: the sender slept" in shown
    assert "broken at run 1" in shown
    assert "broken at run 2" in shown


def test_a_wait_counts_the_seconds_that_the_machine_gave() -> None:
    """A control that does not run has no seconds; once it runs they pass."""
    with Control() as control:
        netns.wait_for(lambda: control.seconds() > 0, "the control runs")
        control.process.send_signal(signal.SIGSTOP)
        netns.wait_for(lambda: stopped(control.process.pid), "the control is stopped")
        first, began = control.seconds(), time.monotonic()
        netns.wait_for(lambda: time.monotonic() > began + 0.2, "a fifth of a second")
        assert control.seconds() == first
        control.process.send_signal(signal.SIGCONT)
        netns.wait_for(lambda: control.seconds() > first + 0.1, "the control goes on")


def stopped(pid: int) -> bool:
    """Whether the process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_wait_ends() -> None:
    """What never comes fails with its name."""
    with pytest.raises(AssertionError, match="what never comes"):
        netns.wait_for(lambda: False, "what never comes", longest_s=0.7)


@pytest.mark.root
def test_a_sender_that_paused_is_seen(lab: PrivateNet, pair: Pair) -> None:
    """By the link's counter, each 100 ms: when it began, that it held, and where it did not."""
    with Sent(pair.near) as sent:
        flow = lab.udp(pair.near, pair.far, 40_000_000)
        onset_ns = netns.wait_for(lambda: begun(sent), "the sender's onset")
        netns.wait_for(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) > onset_ns + 4 * 10**8, "some traffic")
        flow.set_rate(0)
        until_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 5 * 10**8
        netns.wait_for(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) > until_ns, "a pause")
        with pytest.raises(MachineTooSlow, match="the sender fell to 0 of 20 Mbit/s"):
            sent.must_have_held(20_000_000, until_ns - 4 * 10**8, until_ns)
        with pytest.raises(MachineTooSlow, match="never came to 900 Mbit/s"):
            sent.onset_ns(900_000_000)


def begun(sent: Sent) -> int:
    """When the traffic began, 0 while it has not."""
    try:
        return sent.onset_ns(20_000_000)
    except MachineTooSlow:
        return 0


def test_a_look_that_did_not_come_is_no_proof() -> None:
    """Nobody looked: nothing held."""
    looks = object.__new__(Sent)
    looks._looks = [(0, 0), (10**8, 10**8), (6 * 10**8, 6 * 10**8)]
    looks.must_have_held(10**9, 0, 10**8)
    with pytest.raises(MachineTooSlow, match=r"nobody looked for 0.5 s from second 0.1 on"):
        looks.must_have_held(10**9, 0, 10**9)
