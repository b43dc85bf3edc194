"""What `limiterctl replay` costs by kind of recording, and whether a long one makes it grow.

    python bench/replay.py [--mb 1000]

Each recording is written first: ten samples a second (scraped ones: one), links whose traffic changes every fifty seconds, one
in twenty above the threshold each time ("busy"), or none ("quiet"). The command runs as its users run it, with its
report to a file; its wall and CPU time are those of the whole process, start and report included. Resident memory is read
four times a second: shown are what it was after a tenth of the run, half of it, and at its end. The last recording is as
large as --mb says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import world

MB: Final = 10**6
TENTH: Final = 10**8
FAST: Final = 13_000_000
SLOW: Final = (1_000, 50_000, 1_000_000)
CHANGES: Final = 500
"""Ticks between changes of the traffic."""
APPROVAL: Final = "policies: [{name: fair-use, interfaces: ['eth*']}]\n"
AUTO: Final = "policies: [{name: fair-use, interfaces: ['eth*'], release: {mode: auto, min_hold: 1m}}]\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One recording and the policy that it is replayed under."""

    name: str
    path: Path
    links: int
    ticks: int
    policy: str


def traffic(links: int, *, busy: bool) -> Iterator[list[int]]:
    """All counters, a tick after the other, for ever."""
    chance = random.Random(links)  # noqa: S311 - traffic, no secret
    counters = [chance.randrange(10**9) for _ in range(links)]
    steps = [0] * links
    tick = 0
    while True:
        if tick % CHANGES == 0:
            steps = [FAST if busy and chance.random() < 0.05 else chance.choice(SLOW) for _ in range(links)]
        counters = [counter + step for counter, step in zip(counters, steps, strict=True)]
        yield counters
        tick += 1


def json_lines(path: Path, links: int, *, busy: bool, ticks: int = sys.maxsize, size: int = sys.maxsize) -> int:
    """Write a recording of so many ticks, or bytes; returns its ticks."""
    heads = [f'[{i + 2},"eth{i}",' for i in range(links)]
    written = 0
    with path.open("w", encoding="ascii", buffering=MB) as file:
        file.write('{"limiterd_recording": 1, "host": "h", "clock": "boottime", "started_at": "2026-11-23T12:00:00Z"}\n')
        for tick, counters in enumerate(traffic(links, busy=busy)):
            if tick == ticks or written >= size:
                return tick
            rows = ",".join(f"{head}{counter}]" for head, counter in zip(heads, counters, strict=True))
            written += file.write(f'{{"t":{10**12 + tick * TENTH},"links":[{rows}]}}\n')
    return ticks


def csv(path: Path, links: int, ticks: int) -> None:
    """The same as CSV."""
    with path.open("w", encoding="ascii", buffering=MB) as file:
        file.write("t_seconds,interface,tx_bytes\n")
        for tick, counters in zip(range(ticks), traffic(links, busy=True), strict=False):
            file.writelines(f"{tick // 10}.{tick % 10},eth{i},{counter}\n" for i, counter in enumerate(counters))


def prometheus(path: Path, links: int, points: int) -> None:
    """An answer of query_range, a point a second."""
    columns = list(zip(*(c for _, c in zip(range(points), traffic(links, busy=True), strict=False)), strict=True))
    series = [
        {
            "metric": {"instance": "machine:9100", "device": f"eth{i}"},
            "values": [[1_795_435_200 + second, str(10 * counter)] for second, counter in enumerate(column)],
        }
        for i, column in enumerate(columns)
    ]
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}}), encoding="ascii")


def limit_states(home: Path, megabytes: int) -> Iterator[Case]:
    """One recording after the other; none is kept longer than it is needed."""
    path = home / "one.jsonl"
    yield Case("JSON lines, quiet", path, 1, json_lines(path, 1, busy=False, ticks=200_000), APPROVAL)
    for busy, policy, name in ((False, APPROVAL, "quiet"), (True, APPROVAL, "busy"), (True, AUTO, "busy, auto release")):
        path = home / "hundred.jsonl"
        yield Case(f"JSON lines, {name}", path, 100, json_lines(path, 100, busy=busy, ticks=10_000), policy)
    path = home / "hundred.csv"
    csv(path, 100, 10_000)
    yield Case("CSV, busy", path, 100, 10_000, APPROVAL)
    path = home / "scraped.json"
    prometheus(path, 100, 10_000)
    yield Case("Prometheus, busy", path, 100, 10_000, APPROVAL)
    path = home / "long.jsonl"
    ticks = json_lines(path, 100, busy=True, size=megabytes * MB)
    yield Case("JSON lines, busy, auto release", path, 100, ticks, AUTO)


def replayed(case: Case, config: Path) -> tuple[float, float, list[float]]:
    """(wall s, CPU s, memory in MiB read again and again) of one replay. Raises CalledProcessError where it failed."""
    config.write_text(case.policy, encoding="utf-8")
    command = [sys.executable, "-m", "limiterd.cli", "replay", str(case.path), "--config", str(config)]
    before, began, readings = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), [0.0]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=world.ROOT) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, KeyError):  # it has ended since
                readings.append(world.usage(process.pid).rss_kib / 1024)
            time.sleep(0.25)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, readings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what replay costs")
    parser.add_argument("--mb", type=int, default=200, help="size of the long recording (200)")
    megabytes = parser.parse_args().mb
    print("Goals: 20 000 ticks a second with one link, 300 000 link-samples a second with a hundred, memory flat.\n")
    print("| recording | links | ticks | MB | wall | CPU | ticks/s | link-samples/s | RSS: at a tenth, half, the end |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as directory:
        for case in limit_states(Path(directory), megabytes):
            wall_s, cpu_s, readings = replayed(case, Path(directory) / "limiterd.yaml")
            tenth, half, end = (readings[(len(readings) - 1) * share // 10] for share in (1, 5, 10))
            figures = (case.links, f"{case.ticks:,}", f"{case.path.stat().st_size / MB:.0f}", f"{wall_s:.1f} s", f"{cpu_s:.1f} s")
            rates = (f"{case.ticks / wall_s:,.0f}", f"{case.ticks * case.links / wall_s:,.0f}")
            strike_record = f"{tenth:.0f} → {half:.0f} → {end:.0f} MiB"
            print(f"| {' | '.join(map(str, (case.name, *figures, *rates, strike_record)))} |", flush=True)
            case.path.unlink()


if __name__ == "__main__":
    main()
