"""Makes mixed.jsonl: half a minute of real traffic over a veth pair, recorded by `limiterctl record` in its namespace.

sudo python tests/data/make_recording.py OUT.jsonl        (about 40 s; touches nothing outside its own namespaces)
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from limiterd.sim.netns import PrivateNet, inside

ROOT = Path(__file__).resolve().parents[2]
MBIT = 10**6


def main(output: str) -> int:
    """Record while the traffic of the table below runs."""
    with PrivateNet() as lab:
        pair = lab.pair()
        with inside(pair.near.namespace):
            command = [sys.executable, "-m", "limiterd.cli", "record", "--output", output, "--duration", "38s"]
            recorder = subprocess.Popen([*command, "--interface", "eth0", "--interface", "lo", "--force"], cwd=ROOT)
        time.sleep(1)
        tcp = lab.tcp(pair.near, pair.far, 0)
        udp = lab.udp(pair.near, pair.far, 0)
        for seconds, tcp_bps, udp_bps in (
            (2, 40 * MBIT, 0),
            (3, 300 * MBIT, 50 * MBIT),
            (2, 2500 * MBIT, 0),
            (2, 0, 20 * MBIT),
            (14, 1350 * MBIT, 20 * MBIT),
            (3, 900 * MBIT, 0),
            (2, 0, 0),
            (3, 1500 * MBIT, 0),
            (2, 0, 5 * MBIT),
        ):
            tcp.set_rate(tcp_bps)
            udp.set_rate(udp_bps)
            time.sleep(seconds)
        tcp.stop()
        udp.stop()
        return recorder.wait(timeout=30)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
