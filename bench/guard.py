"""Guards against regressions: a few key ratios against recorded ones, in less than a minute.

    python bench/guard.py            compare with bench/guard.json; exit status 1 where one is worse than its bound
    python bench/guard.py --record   write what is measured now (on a quiet machine)

Rule: ratios, never times. Each figure is divided by something of the same kind that is measured between the same two breaths (a
plain Python loop, a C program, a bare interpreter), so that another machine, or a busy one, gives about the same. The bounds
are generous: they are for a function that has become twice as expensive, not for five per cent.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world
from bench.daemon import compile_dumper, dumping_percent
from limiterd.core.detector import Detector
from limiterd.core.model import MS, Detect, Link, Sampling, Snapshot
from limiterd.core.status import build
from limiterd.core.units import NS_PER_SECOND
from limiterd.kernel.links import LinkTable
from limiterd.kernel.samplers import NetlinkSampler
from limiterd.serve import metrics
from tests.world import World, rules_of

RECORDED: Final = Path(__file__).with_name("guard.json")
TOLERANCE: Final = 2.0
TIGHTER: Final = {"daemon RSS / bare interpreter": 1.3}
"""Memory does not depend on what else runs."""
ROUNDS: Final = 9
LINKS: Final = 1024
SMALL: Final = 256
DAEMON_S: Final = 6.0


def cpu_ns(work: Callable[[], object]) -> int:
    """CPU time of this thread for one piece of work."""
    before = time.thread_time_ns()
    work()
    return time.thread_time_ns() - before


def against(ours: Callable[[], object], reference: Callable[[], object]) -> float:
    """The ratio of two pieces of work that take turns, as a median."""
    ours()
    reference()
    return statistics.median(cpu_ns(ours) / max(1, cpu_ns(reference)) for _ in range(ROUNDS))


def plain_loop(count: int = 20_000) -> int:
    """Plain Python: what a machine takes to interpret a little arithmetic."""
    total = 0
    for number in range(count):
        total += number * 3 // 7
    return total


def detector_cold() -> float:
    """Snapshots of links at rest, against the plain loop."""
    links = tuple(Link(n, f"eth{n}") for n in range(1, LINKS + 1))
    watched = Detector(Sampling())
    for link in links:
        watched.watch(link.name, Detect())
    chance = random.Random(1)  # noqa: S311 - traffic, no secret
    counters = [[10**12 + n * 977 + tick * chance.randrange(2000) for n in range(LINKS)] for tick in range(50)]
    at = [0]

    def run() -> None:
        for column in counters:
            at[0] += 100 * MS
            watched.update(Snapshot(at[0], links, column))

    return against(run, plain_loop)


def detector_hot() -> float:
    """Snapshots of links above the threshold, firing again and again, against the plain loop."""
    links = tuple(Link(n, f"eth{n}") for n in range(1, 17))
    watched = Detector(Sampling())
    for link in links:
        watched.watch(link.name, Detect())
    at = [0]

    def run() -> None:
        for _ in range(100):
            at[0] += 1
            watched.update(Snapshot(at[0] * 100 * MS, links, [at[0] * 20_000_000] * len(links)))

    return against(run, plain_loop)


def many() -> World:
    """A machine with many links on a kernel in memory."""
    machine = World(rules_of())
    for ifindex in range(10, 10 + LINKS):
        machine.add(ifindex, f"eth{ifindex}")
    machine.tick()
    return machine


def status_of_many() -> float:
    """Building a status of many links, against the plain loop."""
    machine = many()
    return against(lambda: build(machine.frame()), plain_loop)


def scrape_of_many() -> float:
    """Rendering a scrape of many links, against the plain loop."""
    status = build(many().frame())
    return against(lambda: metrics.render(status), plain_loop)


def engine_tick() -> float:
    """A hundred ticks of the engine with one link at rest, against the plain loop."""
    machine = World()

    def run() -> None:
        for _ in range(100):
            machine.tick()

    return against(run, plain_loop)


def sampler(program: Path) -> float:
    """One sample of many links against the C program that only dumps."""
    with world.world(LINKS) as (_, namespace):
        with world.inside(namespace):
            table = LinkTable()
            source = NetlinkSampler(table, NS_PER_SECOND)
        source.sample()
        ratios = []
        for _ in range(5):
            ours = statistics.mean(cpu_ns(source.sample) for _ in range(10))
            with world.inside(namespace):
                done = subprocess.run([program, "10", "0"], check=True, capture_output=True, text=True)
            ratios.append(ours / float(done.stdout.split()[0]))
        source.close()
        table.close()
    return statistics.median(ratios)


def daemons(program: Path) -> dict[str, float]:
    """The whole daemon: CPU against the C program at its pace, memory and start against a bare interpreter."""
    bare = [sys.executable, "-I", "-c", "import sys; sys.stdin.read()"]
    with world.world(SMALL) as (_, namespace), world.daemon(namespace) as made:
        pid = world.pid_of(made)
        time.sleep(2)
        before = world.usage(pid)
        dumping = dumping_percent(program, namespace)
        time.sleep(DAEMON_S - 3)
        used = world.usage(pid)
        percent = used.percent_since(before)
        interpreter = subprocess.Popen(bare, stdin=subprocess.PIPE)
        time.sleep(0.3)
        rss_kib = world.usage(interpreter.pid).rss_kib
        interpreter.communicate()
    return {"daemon CPU / C dump": percent / dumping, "daemon RSS / bare interpreter": used.rss_kib / rss_kib}


def child_cpu_s(command: list[str]) -> float:
    """CPU time of a program, its least of some runs."""
    least = float("inf")
    environment = {**os.environ, **world.compiled_environment()}
    for _ in range(5):
        with subprocess.Popen(command, env=environment, cwd=world.ROOT, stdout=subprocess.DEVNULL) as process:
            _, _, used = os.wait4(process.pid, 0)
            process.returncode = 0
        least = min(least, used.ru_utime + used.ru_stime)
    return least


def imports() -> dict[str, float]:
    """What loading takes, against an interpreter that loads some of the standard library."""
    base = child_cpu_s([sys.executable, "-c", "import argparse, json, socket"])
    loads = {
        "daemon imports / small imports": "import limiterd.daemon.daemon",
        "limiterctl imports / small imports": "import limiterd.cli, limiterd.ctl.show_status, limiterd.serve.control_client",
    }
    return {name: child_cpu_s([sys.executable, "-c", code]) / base for name, code in loads.items()}


def measure() -> dict[str, float]:
    """Every ratio."""
    found = {
        "detector cold / plain loop": detector_cold(),
        "detector hot / plain loop": detector_hot(),
        "engine tick / plain loop": engine_tick(),
        "status / plain loop": status_of_many(),
        "scrape / plain loop": scrape_of_many(),
    }
    with tempfile.TemporaryDirectory() as directory:
        program = compile_dumper(directory)
        found["sampler / C dump"] = sampler(program)
        found |= daemons(program)
    return found | imports()


def main() -> int:
    """Measure; then record or compare."""
    world.need_namespaces()
    found = measure()
    if sys.argv[1:] == ["--record"]:
        RECORDED.write_text(json.dumps({name: round(ratio, 3) for name, ratio in found.items()}, indent=2) + "\n")
    recorded: dict[str, float] = json.loads(RECORDED.read_text())
    worse = []
    for name, ratio in found.items():
        times = TIGHTER.get(name, TOLERANCE)
        bound = times * recorded[name]
        if ratio > bound:
            worse.append(f"{name} is more than {times:g} times what was recorded")
        word = "WORSE" if ratio > bound else "ok"
        print(f"{name:<36} {ratio:8.2f}  recorded {recorded[name]:8.2f}  bound {bound:8.2f}  {word}")
    for line in worse:
        print(f"bench/guard.py: {line}: profile it (bench/growth.py)")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
