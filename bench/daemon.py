"""What the daemon costs and how fast it answers, by number of links.

    python bench/daemon.py [LINKS ...]        (default 4 128 4096)

The real daemon at 10 Hz over real links; CPU time is that of the whole process, all threads, landing page and
housekeeping included, over spans of some seconds; shown are the least and the median of them. Of every size with more
than four links, sixteen are hot: their traffic runs above the threshold of a policy that observes, so that they are
judged and fire for ever. Beside it, in the same run, a C program that only dumps the counters at the same pace: what the
kernel alone asks for.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world
from bench.world import Namespace, Rig

SPAN_S = 5.0
SPANS = 5
WARM_UP_S = 3.0
HOT = 16
INTERVAL_S = 0.1
RUNS = 7


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured at one size."""

    links: int
    percents: tuple[float, ...]
    c_percent: float
    tick_ms: float
    rss_mib: float
    threads: int
    descriptors: int
    missed: int
    start_ms: float
    status_ms: float
    scrape_ms: tuple[float, float]
    late_ms: float


def hot_links(links: int) -> list[str]:
    """The near ends that are sent on."""
    return [f"eth{n}" for n in range(0, links, 2)][:HOT] if links > 4 else []


def timed_ms(work: Callable[[], object], runs: int = RUNS) -> list[float]:
    """How long each of several runs took."""
    took = []
    for _ in range(runs):
        began = time.monotonic()
        work()
        took.append(1e3 * (time.monotonic() - began))
    return took


def first_sample_ms(made: Rig) -> float:
    """From exec to the first sample, by the daemon's own notification (READY=1 is sent after it)."""
    import os  # noqa: PLC0415 - used here alone
    import socket  # noqa: PLC0415 - likewise

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        path = str(made.home / f"notify-{time.monotonic_ns()}")
        listener.bind(path)
        listener.settimeout(20)
        before = dict(made.environment)
        made.environment = {**before, "NOTIFY_SOCKET": path}
        began = time.monotonic()
        made.start(wait=False)
        while b"READY=1" not in listener.recv(4096):
            pass
        took_ms = 1e3 * (time.monotonic() - began)
        made.environment = before
        os.unlink(path)  # noqa: PTH108 - a socket, no file
    return took_ms


def dumping_percent(program: Path, namespace: Namespace) -> float:
    """CPU of a C program that dumps the counters at the daemon's pace, in percent of one core."""
    with world.inside(namespace):
        done = subprocess.run([program, "30", str(round(INTERVAL_S * 1e6))], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0]) / 1e9 / INTERVAL_S * 100


def status_ms(made: Rig) -> float:
    """`limiterctl status`, from exec to exit, as a median."""
    import os  # noqa: PLC0415 - used here alone

    command = [sys.executable, "-m", "limiterd.cli", "status", "--config", str(made.config)]
    environment = {**os.environ, **made.environment}

    def run() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=world.ROOT)

    return statistics.median(timed_ms(run))


def scrape(made: Rig) -> None:
    """One scrape, not parsed: the client's own work is no part of it."""
    with world.inside(made.namespace):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open("http://127.0.0.1:9817/metrics", timeout=10).read()


def latest_ms(before: dict[str, float], after: dict[str, float]) -> float:
    """The upper bound of the bucket that the latest tick between two scrapes fell in."""
    name = 'limiterd_tick_lateness_seconds_bucket{le="'
    bounds = sorted((float(key[len(name) : -2]), key) for key in after if key.startswith(name) and "+Inf" not in key)
    total = after["limiterd_tick_lateness_seconds_count"] - before["limiterd_tick_lateness_seconds_count"]
    return next((1e3 * bound for bound, key in bounds if after[key] - before[key] >= total), float("inf"))


def measure(links: int, program: Path) -> Cost:
    """Everything at one size."""
    with world.world(links) as (_, namespace):
        c_percent = dumping_percent(program, namespace)
        with world.daemon(namespace) as made, world.hot(namespace, hot_links(links)):
            starts = []
            for _ in range(3):
                made.stop()
                starts.append(first_sample_ms(made))
            time.sleep(WARM_UP_S)
            pid, percents = world.pid_of(made), []
            last = world.usage(pid)
            for _ in range(SPANS):
                time.sleep(SPAN_S)
                now = world.usage(pid)
                percents.append(now.percent_since(last))
                last = now
            quiet = made.metrics()
            scrapes = timed_ms(lambda: scrape(made), 15)
            scraped = made.metrics()
            return Cost(
                links=links,
                percents=tuple(percents),
                c_percent=(c_percent + dumping_percent(program, namespace)) / 2,
                tick_ms=1e3 * quiet["limiterd_tick_duration_seconds_sum"] / quiet["limiterd_tick_duration_seconds_count"],
                rss_mib=last.rss_kib / 1024,
                threads=last.threads,
                descriptors=last.descriptors,
                missed=int(scraped["limiterd_missed_ticks_total"]),
                start_ms=min(starts),
                status_ms=status_ms(made),
                scrape_ms=(statistics.median(scrapes), max(scrapes)),
                late_ms=latest_ms(quiet, scraped),
            )


def row(cost: Cost) -> str:
    """One row of the table."""
    least, middle = min(cost.percents), statistics.median(cost.percents)
    cells = (
        f"{cost.links}",
        f"{least:.2f} / {middle:.2f} %",
        f"{cost.c_percent:.2f} %",
        f"{middle / cost.c_percent:.1f}",
        f"{cost.tick_ms:.2f} ms",
        f"{cost.rss_mib:.1f} MiB",
        f"{cost.threads} / {cost.descriptors}",
        f"{cost.missed}",
        f"{cost.start_ms:.0f} ms",
        f"{cost.status_ms:.0f} ms",
        f"{cost.scrape_ms[0]:.1f} / {cost.scrape_ms[1]:.1f} ms",
        f"≤ {cost.late_ms:g} ms",
    )
    return "| " + " | ".join(cells) + " |"


def compile_dumper(directory: str) -> Path:
    """The C program that only dumps."""
    program = Path(directory, "statsdump")
    subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name("statsdump.c")], check=True)
    return program


def main() -> None:
    """Print the section."""
    world.need_namespaces()
    print("## The daemon by number of links\n")
    print("Goals: CPU 0.3 % at 4 links, 0.6 % at 128, 6 % at 4096; RSS 40 MiB at 4, 60 MiB at 4096; start 400 ms;")
    print("`limiterctl status` 150 ms; a scrape of 128 links 15 ms; no tick later than one interval (100 ms) beside scrapes.\n")
    print(
        "| links | CPU, least / median | C dump alone | ratio | tick, mean | RSS | threads / fds | missed "
        "| start to first sample | `limiterctl status` | scrape, median / max | latest tick beside scrapes |"
    )
    print("|--:" * 12 + "|")
    with tempfile.TemporaryDirectory() as directory:
        program = compile_dumper(directory)
        for links in [int(text) for text in sys.argv[1:]] or [4, 128, 4096]:
            print(row(measure(links, program)), flush=True)


if __name__ == "__main__":
    main()
