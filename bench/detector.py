"""What the detector costs per (link, sample), beside a plain deque per link and a ring in numpy, in one run.

    python bench/detector.py [--links 1,16,…] [--budget-ms 400]

Method: for each fleet size and mix a stream of snapshots is made; the loops are paced (a pause before every timed update
lets caches cool as between real ticks), process CPU time is taken of the updates alone, the figure is the median over the
ticks. Mixes: cold, no link at the threshold; 10 % hot; hot, every link alternates around the threshold, so that candidates
live and nothing fires. Counters come as the sampler hands them out, as a view of packed words. The first window of ticks
warms up (of 100 000 links a quarter of one: a whole one takes a gigabyte). The rivals do the least that a detector could: a
deque of (t, bytes) per link with its mean over the window; the same as a ring of numpy columns. Neither knows epochs, floor
or guard.
"""

from __future__ import annotations

import argparse
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from statistics import median

from limiterd.core.detector import Detector
from limiterd.core.model import Detect, Link, Sampling, Snapshot

TENTH = 10**8
WINDOW_TICKS = 100
SIZES = (1, 16, 128, 1_024, 10_000, 100_000)
MIXES = ("cold", "10 % hot", "hot")
STEPS = {"cold": (1_000_000, 1_500_000), "hot": (13_000_000, 11_800_000)}

Update = Callable[[Snapshot], object]


def snapshots(count: int, mix: str) -> Iterator[Snapshot]:
    """Snapshots of so many watched links and an unwatched one, for ever; packed as from a dump."""
    links = (Link(1, "lo"), *(Link(i, f"tap{i}") for i in range(2, count + 2)))
    is_hot = [mix == "hot" or (mix != "cold" and i % 10 == 0) for i in range(count)]
    counters = [0] * (count + 1)
    tick = 0
    while True:
        cold, hot = STEPS["cold"][tick % 2], STEPS["hot"][tick % 2]
        counters = [0, *(c + (hot if h else cold) for c, h in zip(counters[1:], is_hot, strict=True))]
        yield Snapshot(10**12 + tick * TENTH, links, memoryview(array("Q", counters)))
        tick += 1


def limiterd(count: int) -> Update:
    """The detector itself, with its defaults (guard observing)."""
    detector = Detector(Sampling())
    detect = Detect()
    for i in range(2, count + 2):
        detector.watch(f"tap{i}", detect)
    return detector.update


def deques(count: int) -> Update:
    """A deque per link: what one would write first."""
    windows: list[deque[tuple[int, int]]] = [deque() for _ in range(count)]

    def update(snapshot: Snapshot) -> list[int]:
        t_ns, fired = snapshot.t_ns, []
        for i, (window, tx_bytes) in enumerate(zip(windows, islice(snapshot.tx_bytes, 1, None), strict=True)):
            window.append((t_ns, tx_bytes))
            while t_ns - window[0][0] > WINDOW_TICKS * TENTH:
                window.popleft()
            t0_ns, bytes0 = window[0]
            if t_ns - t0_ns >= WINDOW_TICKS * TENTH and 8 * 10**9 * (tx_bytes - bytes0) >= 10**10 * (t_ns - t0_ns):
                fired.append(i)
        return fired

    return update


def ring(count: int) -> Update:
    """A ring of the last window's counters as numpy columns."""
    np = import_module("numpy")

    columns = np.zeros((WINDOW_TICKS + 1, count), dtype=np.uint64)
    at = 0

    def update(snapshot: Snapshot) -> object:
        nonlocal at
        now = np.frombuffer(snapshot.tx_bytes, dtype=np.uint64)[1:]
        oldest = columns[(at + 1) % (WINDOW_TICKS + 1)]
        fired = np.flatnonzero(now - oldest >= np.uint64(10 * 125_000_000 * 10))
        columns[at % (WINDOW_TICKS + 1)] = now
        at += 1
        return fired

    return update


def measure(update: Update, stream: Iterator[Snapshot], count: int, budget_ms: int) -> float:
    """Median CPU nanoseconds per (link, sample), over as many ticks as fit into the budget, at least three."""
    for snapshot in islice(stream, WINDOW_TICKS + 5 if count <= 10_000 else 25):
        update(snapshot)
    spent_ns: list[int] = []
    until_ns = time.monotonic_ns() + budget_ms * 10**6
    while len(spent_ns) < 3 or time.monotonic_ns() < until_ns:
        snapshot = next(stream)
        time.sleep(0.001)
        begun_ns = time.process_time_ns()
        update(snapshot)
        spent_ns.append(time.process_time_ns() - begun_ns)
    return median(spent_ns) / count


def main(sizes: Sequence[int], budget_ms: int) -> None:
    """Print the table."""
    rivals: dict[str, Callable[[int], Update]] = {"limiterd": limiterd, "deque per link": deques}
    if find_spec("numpy") is not None:
        rivals["numpy ring"] = ring
    print("| links | mix | " + " | ".join(f"{name}, ns" for name in rivals) + " |")
    print("|---:|---|" + "---:|" * len(rivals))
    for count in sizes:
        for mix in MIXES:
            figures = [measure(make(count), snapshots(count, mix), count, budget_ms) for make in rivals.values()]
            print(f"| {count} | {mix} | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ns per (link, sample) of the detector and of two plain ones")
    parser.add_argument("--links", default=",".join(map(str, SIZES)), help="fleet sizes")
    parser.add_argument("--budget-ms", type=int, default=400, help="time for each figure")
    arguments = parser.parse_args()
    main([int(size) for size in arguments.links.split(",")], arguments.budget_ms)
