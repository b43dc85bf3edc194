"""What a sample costs, and how much of it is ours: against a C program that only dumps, in the same run.

Usage: python bench/sampling.py [LINKS ...]   (default 4 128 4096; needs root or user namespaces, and a C compiler)

Method: a private namespace with that many links; rounds of C and of the sampler take turns, so that both meet the same
machine; each round takes paced samples (a pause of 20 ms between two: tight loops run from warm caches and flatter),
and the process CPU time of the samples alone is counted. Shown are the medians over the rounds. The "tight" column is the same
without pauses, for comparison with other people's numbers.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from limiterd.core.errors import EnvironmentFault
from limiterd.core.units import NS_PER_SECOND
from limiterd.kernel.links import LinkTable
from limiterd.kernel.samplers import NetlinkSampler
from limiterd.sim.netns import Namespace, PrivateNet, can_make_namespaces, enter_user_namespace, inside, route_in

ROUNDS = 7
PAUSE_S = 0.02
INTERVAL_NS = NS_PER_SECOND


def populate(namespace: Namespace, links: int) -> None:
    """Fill the namespace up to that many links with veth pairs (one more where the number does not come out even)."""
    with route_in(namespace) as route:
        pairs = (links - len(route.get_links()) + 1) // 2
        for number in range(pairs):
            route.link("add", ifname=f"a{number}", kind="veth", peer={"ifname": f"b{number}"})


def sampler_ns(sampler: NetlinkSampler, samples: int, pause_s: float) -> float:
    """Mean process CPU time of a sample."""
    total = 0
    for _ in range(samples):
        before = time.process_time_ns()
        sampler.sample()
        total += time.process_time_ns() - before
        if pause_s:
            time.sleep(pause_s)
    return total / samples


def c_ns(program: Path, namespace: Namespace, samples: int, pause_s: float) -> float:
    """Mean process CPU time of a bare dump."""
    with inside(namespace):
        done = subprocess.run([program, str(samples), str(round(pause_s * 1e6))], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


@contextlib.contextmanager
def compiled() -> Iterator[Path]:
    """The C program, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "statsdump")
        subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name("statsdump.c")], check=True)
        yield program


def measure(program: Path, links: int) -> None:
    """One row of the table."""
    with PrivateNet() as lab:
        namespace = lab.namespace()
        populate(namespace, links)
        with inside(namespace), contextlib.closing(LinkTable()) as table:
            sampler = NetlinkSampler(table, INTERVAL_NS)
        with contextlib.closing(sampler):
            sampler.sample()
            count, samples = len(table.links), max(8, min(50, 8192 // links))
            rounds = [
                (c_ns(program, namespace, samples, pause_s), sampler_ns(sampler, samples, pause_s), pause_s)
                for _ in range(ROUNDS)
                for pause_s in (PAUSE_S, 0.0)
            ]
    cells = [f"{count:>5}"]
    for pause_s in (PAUSE_S, 0.0):
        c = statistics.median(c for c, _, pause in rounds if pause == pause_s)
        ours = statistics.median(o for _, o, pause in rounds if pause == pause_s)
        ratio = statistics.median(o / c for c, o, pause in rounds if pause == pause_s)
        cells += [f"{c / 1000:>8.1f}", f"{ours / 1000:>8.1f}", f"{ours / count:>7.0f}", f"{ratio:>5.2f}"]
    print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Print the table."""
    if not can_make_namespaces():
        try:
            enter_user_namespace()
        except EnvironmentFault as error:
            sys.exit(f"bench/sampling.py: {error}")
    print("| links | C µs | ours µs | ns/link | ratio | C µs tight | ours µs tight | ns/link tight | ratio tight |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with compiled() as program:
        for links in [int(text) for text in sys.argv[1:]] or [4, 128, 4096]:
            measure(program, links)


if __name__ == "__main__":
    main()
