"""What grows: memory, descriptors and threads over long lives lived fast.

    python bench/longrun.py [--share 0.01]

Two lives of the engine and the executor on a kernel in memory with clocks in hand: 10^6 ticks of four links whose traffic
comes and goes (they fire, are limited, released and fire again), and 10^5 limits put on and lifted. Two lives of the real
daemon: 10^4 reloads that change a rate, over the control socket, and 10^4 links that are born and die. Each is read
twenty times; the slope is a least-squares line over the second half, all before is warm-up.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world
from tests.world import POLICY, World, rules_of

READINGS: Final = 20
MBIT: Final = 10**6
Life = Callable[[int], None]
"""Lives that many operations."""


def forget(machine: World) -> None:
    """Drop what this machine records for tests: it would grow."""
    machine.events.clear()
    machine.kernel.sent.clear()


def ticks() -> Life:
    """Ticks of four links whose traffic comes and goes."""
    machine = World()
    for ifindex in (3, 4, 5):
        machine.add(ifindex, f"eth{ifindex}")
    chance = random.Random(7)  # noqa: S311 - traffic, no secret

    def live(count: int) -> None:
        for number in range(count):
            if number % 37 == 0:
                link = chance.choice(machine.links)
                machine.kernel.offer(link.ifindex, chance.choice((0, 0, 20 * MBIT, 150 * MBIT, 900 * MBIT)))
                if machine.state.limit_states and chance.random() < 0.2:
                    machine.release(next(iter(machine.state.limit_states)))
            machine.tick()
            forget(machine)

    return live


def limits() -> Life:
    """Limits put on by hand and lifted, each read back and drained."""
    machine = World()

    def live(count: int) -> None:
        for _ in range(count):
            machine.limit()
            machine.tick()
            machine.release()
            while machine.state.limit_states:
                machine.tick()
            forget(machine)

    return live


def rules() -> Life:
    """Rules swapped on the engine, a threshold changed each time: a fresh epoch each time."""
    machine = World()
    variants = [rules_of(replace(POLICY, detect=replace(POLICY.detect, threshold_bps=n * MBIT))) for n in (100, 110)]

    def live(count: int) -> None:
        for number in range(count):
            machine.reload(variants[number % 2])
            machine.tick()
            forget(machine)

    return live


def reloads(made: world.Rig) -> Life:
    """Reloads of the real daemon, each of them a change."""
    state = {"rate": 0}

    def live(count: int) -> None:
        for _ in range(count):
            state["rate"] = 1 - state["rate"]
            made.configure(f"mode: observe, detect: {{threshold: 10mbit}}, limit: {{rate: {2 + state['rate']}mbit}}")
            made.ask("reload")

    return live


def births(made: world.Rig) -> Life:
    """Links that are born, watched, and die; a hundred at a time, and a tick's time in between."""

    def batch(lines: Iterator[str]) -> None:
        with world.inside(made.namespace):
            subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True)

    def live(count: int) -> None:
        for start in range(0, count, 100):
            numbers = range(100 + start, 100 + min(count, start + 100))
            batch(f"link add eth{n} type ifb" for n in numbers)
            time.sleep(0.12)
            batch(f"link del eth{n}" for n in numbers)

    return live


def slope(points: list[tuple[int, int]]) -> float:
    """Least squares over the second half, in KiB per 1000 operations."""
    late = points[len(points) // 2 :]
    return 1000 * statistics.linear_regression([p[0] for p in late], [p[1] for p in late]).slope


def run(name: str, operations: int, pid: int, live: Life) -> None:
    """Live it, and print one row."""
    step = max(1, operations // READINGS)
    began, first = time.monotonic(), world.usage(pid)
    points = []
    for reading in range(1, READINGS + 1):
        live(step)
        if reading == 2:
            first = world.usage(pid)
        points.append((reading * step, world.usage(pid).rss_kib))
    last = world.usage(pid)
    cells = (
        name,
        f"{step * READINGS:,}",
        f"{time.monotonic() - began:.0f} s",
        f"{points[0][1] / 1024:.1f} → {points[READINGS // 2][1] / 1024:.1f} → {points[-1][1] / 1024:.1f} MiB",
        f"{slope(points):+.2f} KiB",
        f"{first.descriptors} → {last.descriptors}",
        f"{first.threads} → {last.threads}",
    )
    print("| " + " | ".join(cells) + " |", flush=True)


@contextmanager
def daemon() -> Iterator[world.Rig]:
    """The real daemon on four quiet links."""
    with world.world(4) as (_, namespace), world.daemon(namespace) as made:
        yield made


def main() -> None:
    """Print the section."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--share", type=float, default=1.0, help="live only this share of each life")
    options.add_argument("--only", choices=("engine", "reloads", "links"), help="only these")
    arguments = options.parse_args()
    share, only = arguments.share, arguments.only
    world.need_namespaces()
    print("## Long runs\n")
    print("Goal: a slope of about 0 after warm-up; descriptors and threads constant (after the first tenth).\n")
    print("| what | operations | took | RSS: first, middle, last reading | slope per 1000 operations | descriptors | threads |")
    print("|:--" + "|--:" * 6 + "|")
    if only in (None, "engine"):
        run("ticks, engine on a kernel in memory", round(10**6 * share), os.getpid(), ticks())
        run("limits on and off, likewise", round(10**5 * share), os.getpid(), limits())
        run("rules swapped, likewise", round(10**5 * share), os.getpid(), rules())
    if only in (None, "reloads"):
        with daemon() as made:
            run("reloads, real daemon", round(10**4 * share), world.pid_of(made), reloads(made))
    if only in (None, "links"):
        with daemon() as made:
            run("links born and gone, real daemon", round(10**4 * share), world.pid_of(made), births(made))
    print("\nUp to 4096 links that are gone are remembered for an hour: until then the life of the links is in warm-up.")


if __name__ == "__main__":
    main()
