"""What a scrape costs, and what it does to a tick beside it.

    python bench/metrics.py

Scrapes come from another process, a few a second, over loopback. Beside the server a paced loop plays the sampling
loop: it wakes every interval, gives the interpreter away a dozen times as the real one does for its netlink calls, and
computes for some milliseconds; what counts is how late it wakes and how long it takes with and without scrapes. The
same with the library's own exposition for all families shows why per-link families are written out directly.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from limiterd.core.model import ClassStats, MetricsConfig, Phase, Status
from limiterd.serve import metrics
from limiterd.serve.metrics import MetricsServer
from tests.statuses import link, rich

SCRAPER: Final = """
import sys, time, urllib.request
url, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for _ in range(count):
    began = time.perf_counter()
    urllib.request.urlopen(url).read()
    print(time.perf_counter() - began, flush=True)
    time.sleep(pause)
"""
RUN_S: Final = 4.0


def machine(links: int) -> Status:
    """A machine on which a quarter of the links is limited."""
    views = tuple(
        link(f"veth{i:05}", Phase.LIMITED, ifindex=i + 2, limit_bps=200_000_000, stats=ClassStats(10**9, 10**6, 5, 10**5, 65_536))
        if i % 4 == 0
        else link(f"veth{i:05}", ifindex=i + 2, tx_bytes=10**12 + i)
        for i in range(links)
    )
    return replace(rich(), links=views)


class ThroughTheLibrary(Collector):
    """The per-link families as the library's objects."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The same series as limiterd.serve.metrics.LINK_FAMILIES."""
        for family in metrics.LINK_FAMILIES:
            labels = ["interface", family.label] if family.label else ["interface"]
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            made = kind(metrics.PREFIX + family.name, family.help, labels=labels)
            for view in self._status.links:
                for second, value in family.values(view, self._status.counters):
                    made.add_metric([view.interface, second] if family.label else [view.interface], value)
            yield made


def scrape(url: str, count: int, pause_s: float) -> list[float]:
    """Seconds of each scrape, taken in another process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRAPER, url, str(count), str(pause_s)], capture_output=True, text=True, check=True
    )
    return [float(line) for line in done.stdout.split()]


def in_words(took_s: list[float]) -> str:
    """Median and maximum of these times."""
    return f"median {1e3 * statistics.median(took_s):5.1f} ms, max {1e3 * max(took_s):5.1f} ms"


@contextmanager
def serving(status: Status) -> Iterator[str]:
    """A server of this status; its address as a URL."""
    server = MetricsServer(MetricsConfig("127.0.0.1:0"), lambda: status, lambda: True)
    server.start()
    try:
        yield "http://{}:{}/metrics".format(*(server.address or ("", 0)))
    finally:
        server.close()


def ticks(interval_s: float, beside: Callable[[], object] | None) -> tuple[float, float]:
    """Longest lateness and longest duration of a tick, in ms, while `beside` runs again and again in another thread."""
    stop = threading.Event()

    def disturb() -> None:
        while beside is not None and not stop.wait(0.02):
            beside()

    thread = threading.Thread(target=disturb)
    thread.start()
    near, far = socket.socketpair()
    late, took = [], []
    due = time.monotonic() + interval_s
    end = due + RUN_S
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        late.append(began - due)
        for _ in range(6):
            near.send(b"x")
            far.recv(1)
        sum(range(100_000))
        took.append(time.monotonic() - began)
        due = max(due + interval_s, time.monotonic())
    stop.set()
    thread.join()
    near.close()
    far.close()
    return 1e3 * max(late), 1e3 * max(took)


def main() -> None:
    """Print every figure."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    for links in (1, 128, 1024, 4096):
        with serving(machine(links)) as url:
            scrape(url, 2, 0.0)
            before = time.process_time()
            took = scrape(url, 20, 0.1)
            cpu_ms = 1e3 * (time.process_time() - before) / len(took)
        print(f"{links:5} links: scrape {in_words(took)}, CPU {cpu_ms:5.1f} ms")
    with serving(machine(128)) as url, ExitStack() as stack:
        host, port = url.split("/")[2].split(":")
        for _ in range(500):
            stack.enter_context(socket.create_connection((host, int(port))))
        took = scrape(url, 20, 0.1)
        print(f"  128 links beside 500 idle connections: scrape {in_words(took)}")
    status = machine(4096)
    ways: tuple[tuple[str, Callable[[], object] | None], ...] = (
        ("nothing", None),
        ("written out", lambda: metrics.render(status)),
        ("the library", lambda: generate_latest(ThroughTheLibrary(status))),
    )
    for interval_s in (0.1, 0.02):
        for name, beside in ways:
            late_ms, took_ms = ticks(interval_s, beside)
            what = f"tick every {1e3 * interval_s:.0f} ms beside 4096 links, {name:12}"
            print(f"{what}: latest {late_ms:5.1f} ms, longest {took_ms:5.1f} ms")
    print(f"peak RSS of all this {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
