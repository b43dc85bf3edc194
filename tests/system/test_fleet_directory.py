"""One overrides.d for a whole fleet: what is for other hosts costs this one nearly nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from limiterd.sim.netns import Pair
from tests.rig import FAST, Rig, rig

pytestmark = [pytest.mark.root, pytest.mark.serial]

RECORD: Final = """\
  - id: REQ-{number}
    interfaces: ["eth0", "bond*"]
    hosts: ["gpu-{number}.example.net", "gpu-{number}-spare"]
    action: limit
    limit: 50mbit
    expires: 2999-12-31T00:00:00Z
    approved_by: ops@example.net
    reason: nightly backup window of machine {number}
"""
RECORDS: Final = 5000
FILES: Final = 25
MIB: Final = 1 << 20


def rss_bytes(daemon: Rig) -> int:
    """What the daemon's process holds."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def fill(directory: Path) -> None:
    """Write the fleet's records."""
    each = RECORDS // FILES
    for file in range(FILES):
        texts = (RECORD.format(number=number) for number in range(file * each, (file + 1) * each))
        (directory / f"{file:02}.yaml").write_text("overrides:\n" + "".join(texts))


def late_ticks(daemon: Rig) -> float:
    """How many ticks came later than an interval, or not at all."""
    metrics = daemon.metrics()
    name = "limiterd_tick_lateness_seconds"
    return metrics[f"{name}_count"] - metrics[f'{name}_bucket{{le="0.1"}}'] + metrics["limiterd_missed_ticks_total"]


YARDSTICK: Final = """
import sys, threading, time
sys.setswitchinterval(0.001)
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set())).start()
def compute():
    while not done.is_set():
        sum(range(1000))
threading.Thread(target=compute).start()
late, due_s = 0, time.monotonic()
while not done.is_set():
    due_s += 0.1
    time.sleep(max(0.0, due_s - time.monotonic()))
    missed = (time.monotonic() - due_s) // 0.1
    late, due_s = late + missed, due_s + 0.1 * missed
print(late)
"""
"""Ticks as the daemon does, beside a thread that computes: what comes late here is the machine's doing."""


def test_records_of_other_hosts_cost_nearly_nothing(pair: Pair, tmp_path: Path) -> None:
    """5 000 of them: at most 2 MiB more, no series, and no effect."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        for _ in range(3):  # what any reload and any scrape costs once
            daemon.ctl("reload")
            daemon.metrics()
        before = rss_bytes(daemon)
        fill(daemon.overrides)
        for _ in range(3):
            daemon.ctl("reload")
        assert not [name for name in daemon.metrics() if "override" in name]
        assert daemon.ask("override.list")["overrides"] == []
        assert f"{RECORDS} records are for other hosts" in daemon.log()
        more = rss_bytes(daemon) - before
        assert more <= 2 * MIB, f"{more / MIB:.1f} MiB more"


@pytest.mark.long
def test_no_tick_is_late_while_they_are_read(pair: Pair, tmp_path: Path) -> None:
    """No tick comes later than an interval, beside a process that ticks and computes; only a calm machine can show it."""
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if busy > cores:
        pytest.skip(f"the machine is busy (load {busy:.1f} on {cores} cores): what is late here would be its doing")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("reload")
        late = late_ticks(daemon)
        fill(daemon.overrides)
        yardstick = subprocess.Popen([sys.executable, "-c", YARDSTICK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3):
            daemon.ctl("reload")
        out, _ = yardstick.communicate()
        assert late_ticks(daemon) - late <= float(out)
