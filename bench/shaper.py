"""Shaping: how soon, how exactly, at what cost to latency and packets; beside other tools doing what they can of the job.

Usage: python bench/shaper.py [--quick] [--write]   (root or user namespaces; --write puts the section into bench/RESULTS.md)

The job: hold eth0, a veth between two private namespaces, to 200 Mbit/s of egress, and let go of it again. The tools
take turns in one run: limiterd (its engine, executor and kernel side, as in the daemon), a `tc` script (an
HTB root with one class and the defaults), the same with TBF, `tcset` of tcconfig and wondershaper where they are found
(TCSET and WONDERSHAPER in the environment, else PATH). Rates are bytes on the wire by the root qdisc's counter;
"first second" begins when the tool returns. Latency is a ping outside the lifeline under 8 TCP flows. Losses are gaps in a
150 Mbit/s stream of numbered datagrams, for each swap, with the median and the mean. "Time to enforce" is wall clock with
a pause before each trial; for limiterd it ends when the limit was read back and compared. Many links at once are timed from
the firing sample to the last limit read back, and from the command to the last root seen gone.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limiterd.core.model import SECOND, Detect, Link, Policy  # noqa: E402 - found by the line above
from limiterd.kernel.links import LinkTable  # noqa: E402 - likewise
from limiterd.kernel.tc import TcKernel  # noqa: E402 - likewise
from limiterd.sim.netns import (  # noqa: E402 - likewise
    Flow,
    Pair,
    PrivateNet,
    can_make_namespaces,
    enter_user_namespace,
    inside,
    route_in,
    run,
)
from tests.driver import Driver  # noqa: E402 - likewise

LIMIT_BPS: Final = 200_000_000
STREAM_BPS: Final = 150_000_000
QUICK: Final = Policy("quick", ("*",), detect=Detect(window_ns=SECOND, slice_ns=SECOND // 2))
RESULTS: Final = ROOT / "bench" / "RESULTS.md"
BEGIN: Final = "<!-- shaper: begin -->"
END: Final = "<!-- shaper: end -->"


@dataclass(frozen=True)
class Tool:
    """Something that can hold and release; problem says why it cannot here."""

    name: str
    hold: Callable[[], None]
    release: Callable[[], None]
    problem: str = ""


class Limiterd(Driver):
    """The engine, the executor and the kernel side, as the daemon drives them."""

    def __init__(self, pair: Pair) -> None:
        with inside(pair.near.namespace):
            kernel = TcKernel()
        super().__init__(kernel, Link(pair.near.ifindex, "eth0"))

    def limit(self, rate_bps: int = LIMIT_BPS) -> None:
        """Put the limit on, or change it."""
        self.hold("eth0", rate_bps)


def command(pair: Pair, *lines: str) -> Callable[[], None]:
    """A tool that is a list of programs to run in the link's namespace; their errors count only where they leave no limit."""

    def call() -> None:
        for line in lines:
            run(pair.near.namespace, line.split(), check=False)

    return call


def tools(pair: Pair, ours: Limiterd) -> Iterator[Tool]:
    """Everything that can be compared here."""
    clear = command(pair, "tc qdisc del dev eth0 root")
    yield Tool("limiterd", ours.limit, ours.release)
    yield Tool(
        "tc script, HTB",
        command(
            pair,
            "tc qdisc add dev eth0 root handle 1: htb default 1",
            "tc class add dev eth0 parent 1: classid 1:1 htb rate 200mbit",
        ),
        clear,
    )
    yield Tool("tc script, TBF", command(pair, "tc qdisc add dev eth0 root tbf rate 200mbit burst 64kb latency 10ms"), clear)
    yield found("tcset", "tcconfig", lambda path: command(pair, f"{path} eth0 --rate 200Mbps --direction outgoing"), clear)
    yield found("wondershaper", "wondershaper", lambda path: command(pair, f"bash {path} eth0 1000000 200000"), clear)


def found(program: str, name: str, hold: Callable[[str], Callable[[], None]], release: Callable[[], None]) -> Tool:
    """A tool that may not be installed."""
    path = os.environ.get(program.upper()) or shutil.which(program)
    return Tool(name, hold(path or program), release, "" if path else "not installed")


# ---- measuring -----------------------------------------------------------------------------------


def sent_bytes(pair: Pair) -> int:
    """Bytes on the wire by the root qdisc's counter."""
    text = run(pair.near.namespace, ["tc", "-s", "qdisc", "show", "dev", "eth0", "root"]).stdout
    found_ = re.search(r"Sent (\d+) bytes", text)
    return int(found_[1]) if found_ else 0


def rate_percent(pair: Pair, span_s: float) -> float:
    """The rate over the coming span in percent of the limit."""
    bytes_before, began = sent_bytes(pair), time.monotonic()
    time.sleep(span_s)
    return 100 * 8 * (sent_bytes(pair) - bytes_before) / (time.monotonic() - began) / LIMIT_BPS


def enforce_ms(tool: Tool, trials: int) -> float:
    """Median time of a hold, each after a pause."""
    times = []
    for _ in range(trials):
        time.sleep(0.05)
        began = time.perf_counter()
        tool.hold()
        times.append((time.perf_counter() - began) * 1e3)
        tool.release()
    return statistics.median(times)


def accuracy(lab: PrivateNet, pair: Pair, tool: Tool, span_s: float) -> dict[str, tuple[float, float]]:
    """For each load (first second, the time after it) in percent of the limit."""
    results = {}
    for load in ("tcp 1", "tcp 8", "udp"):
        flow = (
            lab.udp(pair.near, pair.far, 290_000_000)
            if load == "udp"
            else lab.tcp(pair.near, pair.far, streams=int(load.split()[1]))
        )
        time.sleep(0.5)
        tool.hold()
        results[load] = rate_percent(pair, 1.0), rate_percent(pair, span_s)
        flow.stop()
        tool.release()
    return results


def ping_ms(lab: PrivateNet, pair: Pair, tool: Tool, count: int) -> tuple[float, float]:
    """(median, 99th percentile) of another flow's round trip under load."""
    flow = lab.tcp(pair.near, pair.far, streams=8)
    tool.hold()
    time.sleep(0.5)
    text = run(pair.near.namespace, ["ping", "-c", str(count), "-i", "0.02", pair.far.v4], check=False).stdout
    flow.stop()
    tool.release()
    times = sorted(float(ms) for ms in re.findall(r"time=([\d.]+)", text))
    return (statistics.median(times), times[len(times) * 99 // 100]) if times else (float("nan"), float("nan"))


def losses(flow: Flow, tool: Tool, trials: int) -> tuple[list[int], list[int]]:
    """Gaps in the stream for each hold and each release."""

    def gaps() -> int:
        time.sleep(0.04)
        stats = flow.sink.ask("stats")
        return int(stats["next_number"] - stats["received_packets"])

    held: list[int] = []
    released: list[int] = []
    for _ in range(trials):
        for losing, change in ((held, tool.hold), (released, tool.release)):
            before = gaps()
            change()
            losing.append(gaps() - before)
    return held, released


def many_ms(links: int, trials: int) -> list[tuple[float, float, float, float]]:
    """Milliseconds for so many links at once: wall and CPU from the firing sample to all limits read back, and of the release."""
    results = []
    with PrivateNet() as lab:
        namespace = lab.namespace()
        with route_in(namespace) as route:
            for number in range(links):
                route.link("add", ifname=f"a{number}", kind="veth", peer={"ifname": f"b{number}"})
            for index in route.link_lookup(lambda x: x.get_attr("IFLA_IFNAME")[0] == "a"):
                route.link("set", index=index, state="up")
        with inside(namespace):
            kernel, table = TcKernel(), LinkTable()
        driver = Driver(kernel, *(link for link in table.links if link.name[0] == "a"), policy=QUICK)
        gc.collect()
        gc.freeze()  # as the daemon does when it has started
        for _ in range(trials):
            time.sleep(0.5)
            wall_s, cpu_s = driver.fire(10 * QUICK.detect.threshold_bps)
            begun = time.perf_counter(), time.process_time()
            driver.release()
            released = time.perf_counter() - begun[0], time.process_time() - begun[1]
            results.append((1e3 * wall_s, 1e3 * cpu_s, 1e3 * released[0], 1e3 * released[1]))
    return results


# ---- the report ----------------------------------------------------------------------------------


def report(*, quick: bool) -> str:
    """The whole section."""
    trials, span_s, pings = (5, 2.0, 50) if quick else (30, 5.0, 400)
    lines = ["## Shaping", "", *(__doc__ or "").split("\n\n")[2].strip().splitlines(), ""]
    lines += [f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}.", ""]
    header = "| tool | time to enforce, ms | " + " | ".join(f"{x}: 1st s, then (% of limit)" for x in ("TCP 1", "TCP 8", "UDP"))
    lines += [
        header + " | ping under load, ms (median, p99) | lost at hold (median, mean) | lost at release |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with PrivateNet() as lab:
        pair = lab.pair()
        ours = Limiterd(pair)
        for tool in tools(pair, ours):
            lines.append(row(lab, pair, tool, trials=trials, span_s=span_s, pings=pings))
            print(lines[-1], file=sys.stderr, flush=True)
        lines += ["", changes(lab, pair, ours, trials)]
    lines += ["", "| links at once | limit: wall, ms | CPU, ms | release: wall, ms | CPU, ms |", "|---|---|---|---|---|"]
    for links in (1, 100) if quick else (1, 100, 1_000):
        measured = many_ms(links, 3 if quick else 10)
        medians = (statistics.median(column) for column in zip(*measured, strict=True))
        lines.append(f"| {links} | " + " | ".join(f"{ms:.1f}" for ms in medians) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def row(lab: PrivateNet, pair: Pair, tool: Tool, *, trials: int, span_s: float, pings: int) -> str:
    """One tool's line of the table."""
    problem = tool.problem or holds_at_all(lab, pair, tool)
    if problem:
        return f"| {tool.name} | {problem} | | | | | | |"
    cells = [tool.name, f"{enforce_ms(tool, trials):.2f}"]
    cells += [f"{first:.1f}, {then:.2f}" for first, then in accuracy(lab, pair, tool, span_s).values()]
    cells.append("{:.1f}, {:.1f}".format(*ping_ms(lab, pair, tool, pings)))
    flow = lab.udp(pair.near, pair.far, STREAM_BPS)
    time.sleep(0.3)
    cells += [f"{statistics.median(lost):g}, {statistics.mean(lost):.1f}" for lost in losses(flow, tool, trials)]
    flow.stop()
    return "| " + " | ".join(cells) + " |"


def holds_at_all(lab: PrivateNet, pair: Pair, tool: Tool) -> str:
    """Why a tool that is installed does not hold the link on this kernel; "" where it does."""
    flow = lab.tcp(pair.near, pair.far, streams=4)
    try:
        tool.hold()
        far_before = received(flow)
        time.sleep(1)
        percent = 100 * 8 * (received(flow) - far_before) / LIMIT_BPS
        return f"does not hold on this kernel ({percent:.0f} % of the limit passes)" if percent > 150 else ""
    finally:
        flow.stop()
        tool.release()


def received(flow: Flow) -> int:
    """What has arrived of a flow."""
    return int(flow.sink.ask("stats")["received_bytes"])


def changes(lab: PrivateNet, pair: Pair, ours: Limiterd, trials: int) -> str:
    """Losses of rate changes in place."""
    ours.limit()
    flow = lab.udp(pair.near, pair.far, STREAM_BPS)
    time.sleep(0.3)
    for n in range(trials):
        ours.limit(LIMIT_BPS + (n % 7) * 10_000_000)
        time.sleep(0.02)
    drops = ours.actual("eth0").stats.drops
    stats = flow.stop()
    ours.release()
    lost = stats["lost_packets"] + stats["refused_packets"]
    return (
        f"{trials} changes of the rate in place under the same stream lost {lost} of {stats['sent_packets']} datagrams "
        f"({drops} of them dropped by the limit's own full queue, after the source had been starved)."
    )


def write(section: str) -> None:
    """Put the section where it belongs in the results file."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    block = f"{BEGIN}\n{section}{END}\n"
    if BEGIN in text:
        head, rest = text.split(BEGIN, 1)
        text = head + block + rest.split(END, 1)[1].lstrip("\n")
    else:
        text = text.rstrip() + "\n\n" + block
    RESULTS.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few trials: to see that it works")
    parser.add_argument("--write", action="store_true", help="put the section into bench/RESULTS.md")
    arguments = parser.parse_args()
    if not can_make_namespaces():
        enter_user_namespace()
    section = report(quick=arguments.quick)
    print(section)
    if arguments.write:
        write(section)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
