"""limiterd beside Prometheus with node_exporter: the same links, the same traffic, the same minute.

    python bench/peers.py        (needs the Debian packages prometheus and prometheus-node-exporter)

Prometheus scrapes node_exporter every second and evaluates rules every second: `rate(transmit[RANGE]) * 8 > threshold`
with `for: 10s`, with the three ranges that people choose. node_exporter runs as its package has it, and for the cost also
with its netdev collector alone, the least it can be. Rates are those of the default policy divided by a hundred, windows
and durations are real. Each link has one kind of traffic; the onset is the clock before the first frame. limiterd's
verdict is the wall time of its audit entry, Prometheus' the wall time at which a 50 ms poll of its API first sees the
alert firing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world
from bench.world import Namespace

THRESHOLD_BPS: Final = 10_000_000
RANGES_S: Final = (2, 5, 15)
SETTLE_S: Final = 6.0
RUN_S: Final = 48.0
COST_S: Final = 12.0
POLICY: Final = "mode: observe, detect: {threshold: 10mbit, guard: {mode: off}}, limit: {rate: 2mbit}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one link sends: bursts of rate_bps for on_s, with pauses of off_s; should is what the policy's text asks for."""

    name: str
    rate_bps: int
    on_s: float
    off_s: float
    times: int
    should: str


PATTERNS: Final = (
    Pattern("1.2 × threshold, without end", 12_000_000, 40.0, 0.0, 1, "limit"),
    Pattern("1.2 × threshold, without end (half a second later)", 12_000_000, 39.5, 0.0, 1, "limit"),
    Pattern("2 × threshold for 9.9 s", 20_000_000, 9.9, 15.0, 2, "leave alone"),
    Pattern("10 × threshold for 9.9 s", 100_000_000, 9.9, 15.0, 2, "leave alone"),
    Pattern("10 × threshold for 1.1 s", 100_000_000, 1.1, 18.0, 2, "leave alone"),
    Pattern("1.2 × threshold, 100 ms dip every 2 s", 12_500_000, 1.9, 0.1, 20, "limit"),
)

_SENDER: Final = """
import json, socket, sys, time
o = json.loads(sys.argv[1])
frame = b"\\x02" + bytes(11) + b"\\x88\\xb5" + bytes(2986)
start = time.time() + 0.3
state = []
for name, begin, rate, on, off, times in o:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((name, 0))
    state.append([sock.send, start + begin, 8 * len(frame) / rate, on, off, times, 0])
print(json.dumps({row[0]: start + row[1] for row in o}), flush=True)
while any(s[5] for s in state):
    now = time.time()
    for s in state:
        if not s[5] or now < s[1]:
            continue
        due = int((min(now, s[1] + s[3]) - s[1]) / s[2])
        for _ in range(due - s[6]):
            s[0](frame)
        s[6] = max(s[6], due)
        if now >= s[1] + s[3]:
            s[1], s[5], s[6] = s[1] + s[3] + s[4], s[5] - 1, 0
    time.sleep(0.001)
"""


@contextlib.contextmanager
def program(namespace: Namespace, command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the namespace, for the block."""
    with world.inside(namespace), log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def configuration(home: Path) -> Path:
    """Prometheus' files."""
    rules = [
        {
            "alert": f"range{seconds}s",
            "expr": f"rate(node_network_transmit_bytes_total[{seconds}s]) * 8 > {THRESHOLD_BPS}",
            "for": "10s",
        }
        for seconds in RANGES_S
    ]
    (home / "rules.yml").write_text(json.dumps({"groups": [{"name": "egress", "interval": "1s", "rules": rules}]}))
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": ["127.0.0.1:9100"]}]}],
    }
    path = home / "prometheus.yml"
    path.write_text(json.dumps(settings))
    return path


def alerts(namespace: Namespace) -> list[dict[str, Any]]:
    """The alerts that Prometheus' API shows now."""
    with world.inside(namespace):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open("http://127.0.0.1:9090/api/v1/alerts", timeout=5) as answer:
            shown: list[dict[str, Any]] = json.load(answer)["data"]["alerts"]
            return shown


def watch(namespace: Namespace, found: dict[tuple[str, str], list[float]], done: threading.Event) -> None:
    """Note when each alert begins to fire, until done."""
    firing: set[tuple[str, str]] = set()
    while not done.wait(0.05):
        with contextlib.suppress(OSError):
            now = {(a["labels"]["alertname"], a["labels"]["device"]) for a in alerts(namespace) if a["state"] == "firing"}
            for key in now - firing:
                found.setdefault(key, []).append(time.time())
            firing = now


def verdicts(stamps: list[float], onset: float) -> str:
    """When a peer fired, after the onset."""
    return ", ".join(f"{stamp - onset:.2f} s" for stamp in stamps[:2]) + (" …" if len(stamps) > 2 else "") if stamps else "–"


@contextlib.contextmanager
def peers(namespace: Namespace, home: Path, *collectors: str) -> Iterator[dict[str, int]]:
    """Both peers in the namespace; their process ids by name."""
    exporter = [_tool("prometheus-node-exporter"), "--web.listen-address=127.0.0.1:9100", *collectors]
    data = home / f"data-{time.monotonic_ns()}"
    server = [_tool("prometheus"), f"--config.file={configuration(home)}", f"--storage.tsdb.path={data}"]
    with (
        program(namespace, exporter, home / "exporter.log") as node,
        program(namespace, [*server, "--web.listen-address=127.0.0.1:9090"], home / "server.log") as prometheus,
    ):
        time.sleep(SETTLE_S)
        yield {"prometheus": prometheus.pid, "node_exporter": node.pid}


def _tool(name: str) -> str:
    """The path of a peer. Ends the program where it is missing."""
    path = shutil.which(name)
    if path is None:
        sys.exit(f"bench/peers.py: {name} is missing; install the Debian package of that name")
    return path


def judge(namespace: Namespace, home: Path) -> None:
    """All verdicts on all patterns, in one run; prints the table."""
    interfaces = [f"eth{2 * n}" for n in range(len(PATTERNS))]
    found: dict[tuple[str, str], list[float]] = {}
    done = threading.Event()
    links = [
        [name, 0.5 * number, p.rate_bps, p.on_s, p.off_s, p.times]
        for number, (name, p) in enumerate(zip(interfaces, PATTERNS, strict=True))
    ]
    with world.daemon(namespace, POLICY) as made, peers(namespace, home):
        watcher = threading.Thread(target=watch, args=(namespace, found, done))
        watcher.start()
        with world.inside(namespace):
            command = [sys.executable, "-I", "-c", _SENDER, json.dumps(links)]
            sent = subprocess.run(command, check=True, capture_output=True, text=True, timeout=RUN_S + 60)
        onsets: dict[str, float] = json.loads(sent.stdout)
        time.sleep(3)
        done.set()
        watcher.join()
        ours: dict[str, list[float]] = {}
        for entry in reversed(made.ask("history", kinds=["would_limit"], limit=1000)["entries"]):
            ours.setdefault(entry["interface"], []).append(datetime.fromisoformat(entry["wall"]).timestamp())
    print("Verdicts, in seconds after the traffic's onset (the first two of each; – is none):\n")
    print("| traffic | the policy's text says | limiterd | " + " | ".join(f"rate()[{s}s], for 10s" for s in RANGES_S) + " |")
    print("|:--|:--" + "|--:" * (1 + len(RANGES_S)) + "|")
    for name, pattern in zip(interfaces, PATTERNS, strict=True):
        cells = [verdicts(ours.get(name, []), onsets[name])]
        cells += [verdicts(found.get((f"range{s}s", name), []), onsets[name]) for s in RANGES_S]
        print(f"| {pattern.name} | {pattern.should} | " + " | ".join(cells) + " |")


def cost(links: int, collectors: tuple[str, ...], home: Path) -> None:
    """What all three take over some seconds at this number of links, side by side; prints one row."""
    with (
        world.world(links) as (_, namespace),
        world.daemon(namespace, POLICY) as made,
        peers(namespace, home, *collectors) as theirs,
    ):
        pids = {"limiterd": world.pid_of(made), **theirs}
        before = {name: world.usage(pid) for name, pid in pids.items()}
        time.sleep(COST_S)
        after = {name: world.usage(pid) for name, pid in pids.items()}
    percents = {name: after[name].percent_since(before[name]) for name in pids}
    both = percents["prometheus"] + percents["node_exporter"]
    cells = [f"{links}", "netdev alone" if collectors else "the package's"]
    cells += [f"{percents[name]:.2f} %, {after[name].rss_kib / 1024:.0f} MiB" for name in pids]
    print("| " + " | ".join([*cells, f"{both / percents['limiterd']:.1f}"]) + " |", flush=True)


def main() -> None:
    """Print the section."""
    world.need_namespaces()
    print("## Beside Prometheus and node_exporter\n")
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with world.world(2 * len(PATTERNS)) as (_, namespace):
            judge(namespace, home)
        print("\nCost on quiet links, side by side: limiterd samples ten times a second, the peers once.\n")
        print("| links | node_exporter's collectors | limiterd | prometheus | node_exporter | both peers' CPU / limiterd's |")
        print("|--:|:--|--:|--:|--:|--:|")
        for links in (12, 128, 1024):
            for collectors in ((), ("--collector.disable-defaults", "--collector.netdev")):
                cost(links, collectors, home)


if __name__ == "__main__":
    main()
