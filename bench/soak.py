"""Soak: a real daemon for a long time under everything at once, and what it costs, second by second.

    python bench/soak.py [MINUTES] [--csv docs/soak.csv] [--png docs/soak.png]

In a private namespace: traffic above and below the threshold on two links, links that are made and deleted, reloads that
change a rate or are refused, an override that comes and goes, foreign hands in tc, a scraper and a status client.
Every second a row: resident memory, descriptors, threads (from /proc), ticks, late and missed ones (from the metrics). At
the end the slope of the memory over the second half, and a plot where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from limiterd.sim.netns import Flow, Pair, PrivateNet, join, run  # found by the line above
from tests.rig import Rig, rig

POLICY: Final = (
    "detect: {threshold: 20mbit, window: 1s, slice: 500ms}, limit: {rate: RATE}, "
    "release: {mode: auto, min_hold: 3s, max_hold: 10s, quiet_for: 2s, forget_after: 1m}"
)
COLUMNS: Final = (
    *("second", "rss_kib", "descriptors", "threads", "cpu_s", "ticks", "missed_ticks", "late_10ms"),
    *("limits", "released", "repairs", "links"),
)


@dataclass(slots=True)
class Trouble:
    """Everything that happens to the daemon, by chance but the same each run."""

    daemon: Rig
    pair: Pair
    flows: list[Flow]
    chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - trouble, no secret
    born: int = 0
    born_now: list[str] = field(default_factory=list)

    def step(self) -> None:
        """One second's worth of trouble."""
        chance = self.chance
        for act, odds in (
            (self.traffic, 0.5), (self.birth, 0.7), (self.death, 0.7), (self.reload, 0.3), (self.hand, 0.2), (self.record, 0.2),
        ):  # fmt: skip
            if chance.random() < odds:
                act()

    def traffic(self) -> None:
        """One of the flows changes its rate."""
        self.chance.choice(self.flows).set_rate(self.chance.choice((0, 1_000_000, 15_000_000, 40_000_000)))

    def birth(self) -> None:
        """A pair of links."""
        self.born += 1
        name = f"eth1{self.born % 10000}"
        self.ip("link", "add", name, "type", "veth", "peer", "name", f"far{self.born % 10000}")
        self.born_now.append(name)

    def death(self) -> None:
        """One of them goes again."""
        if self.born_now:
            self.ip("link", "del", self.born_now.pop(self.chance.randrange(len(self.born_now))))

    def reload(self) -> None:
        """Another limit, or a mistake, by signal or by command."""
        rate = self.chance.choice(("4mbit", "5mbit", "6mbit", "nonsense"))
        self.daemon.configure(POLICY.replace("RATE", rate))
        if self.chance.random() < 0.5:
            self.daemon.process.send_signal(1)  # type: ignore[union-attr]  # it runs
        else:
            self.daemon.ctl("reload", check=False)

    def hand(self) -> None:
        """Somebody else's tc."""
        words = self.chance.choice(
            ("qdisc del dev eth0 root", "qdisc del dev eth0 parent 1d1d:20", "filter del dev eth0 parent 1d1d:")
        )
        run(self.pair.near.namespace, ["tc", *words.split()], check=False)

    def record(self) -> None:
        """An override comes or goes."""
        path = self.daemon.overrides / "soak.yaml"
        if path.exists():
            path.unlink()
        else:
            path.write_text(
                "overrides: [{id: SOAK, interfaces: [eth1], action: exempt, expires: never, approved_by: me, reason: soak}]\n"
            )

    def ip(self, *words: str) -> None:
        """One ip command."""
        run(self.pair.near.namespace, ["ip", *words])


def reading(daemon: Rig, second: int) -> dict[str, float]:
    """One row."""
    pid = daemon.process.pid  # type: ignore[union-attr]  # it runs
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    cpu = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    metrics = daemon.metrics()
    in_time = metrics['limiterd_tick_lateness_seconds_bucket{le="0.01"}']
    return {
        "second": second,
        "rss_kib": int(status["VmRSS"].split()[0]),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(status["Threads"]),
        "cpu_s": (int(cpu[11]) + int(cpu[12])) / 100,
        "ticks": metrics["limiterd_tick_duration_seconds_count"],
        "missed_ticks": metrics["limiterd_missed_ticks_total"],
        "late_10ms": metrics["limiterd_tick_lateness_seconds_count"] - in_time,
        "limits": total(metrics, "limiterd_limits_applied_total"),
        "released": total(metrics, "limiterd_limits_released_total"),
        "repairs": total(metrics, "limiterd_drift_repairs_total"),
        "links": len([name for name in metrics if name.startswith("limiterd_interface_transmit_bytes_total")]),
    }


def total(metrics: dict[str, float], name: str) -> float:
    """The sum of a counter's series."""
    return sum(value for series, value in metrics.items() if series.startswith(name))


def soak(minutes: float, note: Callable[[dict[str, float]], None]) -> list[dict[str, float]]:
    """The rows of that many minutes."""
    rows = []
    with PrivateNet() as lab, tempfile.TemporaryDirectory() as home:
        pair = lab.pair()
        other = join(pair.near.namespace, lab.namespace(), "eth1", "eth0", number=2)
        with rig(pair.near.namespace, Path(home), POLICY.replace("RATE", "5mbit")) as daemon:
            daemon.start()
            flows = [lab.udp(pair.near, pair.far, 0), lab.tcp(other.near, other.far, 0)]
            trouble, began = Trouble(daemon, pair, flows), time.monotonic()
            for second in range(1, round(60 * minutes) + 1):
                trouble.step()
                daemon.status()
                rows.append(reading(daemon, second))
                note(rows[-1])
                time.sleep(max(0, began + second - time.monotonic()))  # one row a second
            if daemon.stop() != 0:
                raise SystemExit(f"the daemon did not end in order: {daemon.log()[-4000:]}")
    return rows


def slope_kib_h(rows: list[dict[str, float]]) -> float:
    """The least-squares slope of the memory over the second half, in KiB an hour."""
    half = rows[len(rows) // 2 :]
    return 3600 * statistics.linear_regression([r["second"] for r in half], [r["rss_kib"] for r in half]).slope


def plot(rows: list[dict[str, float]], path: str) -> None:
    """Four panels over time, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency
    except ImportError:
        print(f"no {path}: matplotlib is not installed (pip install 'limiterd[plot]')")
        return
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    minutes = [row["second"] / 60 for row in rows]
    late = [100 * b / a if a else 0.0 for a, b in ((row["ticks"], row["late_10ms"]) for row in rows)]
    series: tuple[tuple[str, dict[str, list[float]]], ...] = (
        ("resident memory, MiB", {"": [row["rss_kib"] / 1024 for row in rows]}),
        ("held", {name: [row[name] for row in rows] for name in ("descriptors", "threads", "links")}),
        ("so far", {name: [row[name] for row in rows] for name in ("limits", "released", "repairs")}),
        ("ticks more than 10 ms late so far, %", {"": late}),
    )
    for panel, (title, lines) in zip(panels, series, strict=True):
        for name, values in lines.items():
            panel.plot(minutes, values, linewidth=0.9, label=name)
        panel.set_title(title, loc="left", fontsize=9)
        panel.set_ylim(0, 1.1 * max(map(max, lines.values())) or 1)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend(fontsize=8, loc="center right")
    panels[3].set_xlabel("minutes")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Soak, write, and say what came of it."""
    parser = argparse.ArgumentParser(description="A real daemon under everything at once, for long.")
    parser.add_argument("minutes", nargs="?", type=float, default=3)
    parser.add_argument("--csv", default="docs/soak.csv")
    parser.add_argument("--png", default="docs/soak.png")
    arguments = parser.parse_args()
    with Path(arguments.csv).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        rows = soak(arguments.minutes, writer.writerow)
    plot(rows, arguments.png)
    print("\n".join(findings(rows)))


def findings(rows: list[dict[str, float]]) -> list[str]:
    """What came of it, a line a subject; the first half minute is warm-up."""
    first, last = rows[min(30, len(rows) - 1)], rows[-1]
    most = {name: max(row[name] for row in rows) for name in ("descriptors", "threads", "links")}
    return [
        f"{len(rows)} s: {last['limits']:.0f} limits, {last['released']:.0f} releases, {last['repairs']:.0f} repairs",
        f"memory {first['rss_kib'] / 1024:.1f} → {last['rss_kib'] / 1024:.1f} MiB",
        f"its slope over the second half {slope_kib_h(rows):+.0f} KiB an hour",
        f"descriptors {first['descriptors']:.0f} → {last['descriptors']:.0f}, at most {most['descriptors']:.0f}",
        f"threads at most {most['threads']:.0f}, watched links at most {most['links']:.0f}",
        f"ticks {last['ticks']:.0f}, missed {last['missed_ticks']:.0f}, more than 10 ms late {last['late_10ms']:.0f}",
        f"CPU {100 * last['cpu_s'] / last['second']:.1f} % of one",
    ]


if __name__ == "__main__":
    main()
