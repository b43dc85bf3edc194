"""How the daemon's cost grows with the number of links, and what it is made of at each size.

    python bench/growth.py [--plot FILE] [LINKS ...]      (default 4 16 64 256 1024 4096 10000; the plot needs matplotlib)

At every size the real daemon at 10 Hz with sixteen hot links (none at 4). CPU time in the kernel and in Python is told apart by
the kernel's own accounting; the C program that only dumps gives what the kernel asks for without us. The profile is of the
loop's thread under cProfile in a second run, with sleeping left out: it slows small functions down more than large ones,
so it tells what dominates, not how much it costs.
"""

from __future__ import annotations

import argparse
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world
from bench.daemon import compile_dumper, dumping_percent, hot_links

SIZES: Final = (4, 16, 64, 256, 1024, 4096, 10_000)
SPAN_S: Final = 4.0
SPANS: Final = 3
PROFILE_S: Final = 6.0
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROFILED: Final = """
import cProfile, sys
from limiterd.daemon import main
from limiterd.daemon.loop import Loop
run, profile = Loop.run, cProfile.Profile()
def profiled(self):
    try:
        profile.runcall(run, self)
    finally:
        profile.dump_stats(sys.argv.pop())
Loop.run = profiled
main(sys.argv[1:3])
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One size: percent of one core, and what dominates."""

    links: int
    percent: float
    kernel_share: float
    c_percent: float
    rss_mib: float
    missed: int
    profile: str


def split_s(pid: int) -> tuple[float, float]:
    """CPU seconds in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS_PER_S, int(fields[12]) / TICKS_PER_S


def profile(made: world.Rig) -> str:
    """The functions that the loop spends most of its time in."""
    made.stop()
    path = made.home / "profile"
    command = [sys.executable, "-c", _PROFILED, "--config", str(made.config), str(path)]
    with world.inside(made.namespace), (made.home / "log").open("ab") as log:
        environment = {**os.environ, **made.environment, "PYTHONPATH": str(world.ROOT)}
        made.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    time.sleep(PROFILE_S)
    made.stop()
    table = pstats.Stats(str(path)).get_stats_profile().func_profiles
    times = {name: entry.tottime for name, entry in table.items() if "poll" not in name}
    total = sum(times.values()) or 1.0
    first = sorted(times, key=times.__getitem__, reverse=True)[:4]
    return ", ".join(f"{_plain(name)} {100 * times[name] / total:.0f} %" for name in first)


def _plain(name: str) -> str:
    """A built-in's name without its type."""
    return name.removeprefix("<method '").partition("'")[0] if name.startswith("<method") else name.strip("<>")


def measure(links: int, program: Path) -> Point:
    """One size."""
    with world.world(links) as (_, namespace):
        with world.daemon(namespace) as made, world.hot(namespace, hot_links(links)):
            time.sleep(3)
            pid, percents = world.pid_of(made), []
            user_s, kernel_s = split_s(pid)
            last = world.usage(pid)
            for _ in range(SPANS):
                time.sleep(SPAN_S)
                now = world.usage(pid)
                percents.append(now.percent_since(last))
                last = now
            after = split_s(pid)
            spent = (after[0] - user_s, after[1] - kernel_s)
            missed = int(made.metrics()["limiterd_missed_ticks_total"])
            dominant = profile(made)
        return Point(
            links=links,
            percent=statistics.median(percents),
            kernel_share=spent[1] / (sum(spent) or 1.0),
            c_percent=dumping_percent(program, namespace),
            rss_mib=last.rss_kib / 1024,
            missed=missed,
            profile=dominant,
        )


def plot(points: list[Point], path: str) -> None:
    """The curve, as a picture."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra of its own

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - likewise

    figure, axes = plt.subplots(figsize=(7, 4.2))
    sizes = [point.links for point in points]
    axes.loglog(sizes, [p.percent for p in points], "o-", label="limiterd, whole process")
    axes.loglog(sizes, [p.c_percent for p in points], "s--", label="C program that only dumps the counters")
    goals = {4: 0.3, 128: 0.6, 4096: 6.0}
    axes.loglog(list(goals), list(goals.values()), "k_", markersize=14, label="goals")
    axes.set(xlabel="links", ylabel="CPU, percent of one core", title="Cost of a daemon at 10 Hz by number of links")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the section."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sizes", type=int, nargs="*", metavar="LINKS")
    options.add_argument("--plot", metavar="FILE")
    arguments = options.parse_args()
    world.need_namespaces()
    print("## Growth from 4 to 10 000 links\n")
    if arguments.plot:
        print(f"![CPU by number of links]({Path(arguments.plot).name})\n")
    heads = ("links", "CPU", "of it in the kernel", "C dump alone", "per link and tick", "RSS", "missed")
    print("| " + " | ".join(heads) + " | the loop's time, apart from sleeping |")
    print("|--:" * 7 + "|:--|")
    points = []
    with tempfile.TemporaryDirectory() as directory:
        program = compile_dumper(directory)
        for links in arguments.sizes or SIZES:
            points.append(point := measure(links, program))
            cells = (
                f"{links}",
                f"{point.percent:.2f} %",
                f"{100 * point.kernel_share:.0f} %",
                f"{point.c_percent:.2f} %",
                f"{point.percent / 100 / 10 / links * 1e9:.0f} ns",
                f"{point.rss_mib:.1f} MiB",
                f"{point.missed}",
                point.profile,
            )
            print("| " + " | ".join(cells) + " |", flush=True)
    if arguments.plot:
        plot(points, arguments.plot)


if __name__ == "__main__":
    main()
