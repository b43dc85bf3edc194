"""`limiterctl replay`: what a policy would have done to recorded traffic.

The engine, its executor and the kernel in memory are the daemon's own (runner); this file reads the command line and
wires a recording to one or two policies and to what is told of them (report, curves).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from limiterd import DEFAULT_CONFIG
from limiterd.config.load import load_rules
from limiterd.core.errors import EXIT_DONE, UnitError
from limiterd.core.model import Rules
from limiterd.core.units import NS_PER_SECOND, parse_duration
from limiterd.ctl.connect import json_argument
from limiterd.ctl.format import clean, span
from limiterd.ctl.terminal import complain, say, terminal
from limiterd.recording import DEVICE_LABELS, METRIC, Progress, Recording, RecordingError, open_recording, query, server
from limiterd.replay import plot
from limiterd.replay.curves import Curves
from limiterd.replay.report import Clock, Report, Side, as_json, event_lines, table
from limiterd.replay.runner import Run, Told

STEP_S: Final = 15
TIMEOUT_S: Final = 30
LONG_BYTES: Final = 8 << 20
"""From this size on a recording takes long enough for a progress bar."""

_BAR_EVERY_TICKS: Final = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `replay`."""
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help="JSON lines or CSV (docs/replay.md), the saved answer of a Prometheus query_range, any of them as .gz, "
        "- for standard input, or the URL of a Prometheus server",
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help=f"the policy to try (default: {DEFAULT_CONFIG})")
    parser.add_argument("--compare", metavar="OTHER.yaml", help="a second policy to show side by side with the first")
    parser.add_argument("--plot", metavar="OUT.png|svg", type=_picture, help="draw rate, threshold, limit and phases over time")
    parser.add_argument(
        "--label",
        metavar="NAME",
        help=f"the label of a Prometheus series that names the interface (default: {', '.join(DEVICE_LABELS)})",
    )
    live = parser.add_argument_group("a Prometheus server")
    live.add_argument(
        "--from",
        dest="start",
        metavar="TIME",
        type=_instant,
        help="the start: RFC 3339, Unix seconds, or a duration ago such as 24h",
    )
    live.add_argument("--to", dest="end", metavar="TIME", type=_instant, help="the end, in the same forms (default: now)")
    live.add_argument("--step", metavar="DURATION", type=_step, help=f"the distance between points (default: {STEP_S}s)")
    live.add_argument("--query", metavar="SELECTOR", help=f"the selector of the series (default: {METRIC})")
    live.add_argument("--header", metavar="HEADER", action="append", help="'Name: value' for the server; may be repeated")
    live.add_argument("--token-file", metavar="FILE", help="a file with the bearer token for the server")
    live.add_argument("--ca", metavar="FILE", help="the certificates (PEM) that the server's is judged by")
    live.add_argument(
        "--timeout", metavar="DURATION", type=_step, help=f"the longest wait for each answer (default: {TIMEOUT_S}s)"
    )
    json_argument(parser)


def _picture(text: str) -> str:
    if Path(text).suffix not in plot.SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r}: name a file that ends in {' or '.join(plot.SUFFIXES)}")
    return text


def _instant(text: str) -> int:
    """Unix seconds of a time, or of a duration ago."""
    try:
        return int(time.time()) - parse_duration(text) // NS_PER_SECOND
    except UnitError:
        pass
    try:
        if text.replace(".", "", 1).isdigit():
            return int(Decimal(text))
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (ValueError, ArithmeticError):
        raise argparse.ArgumentTypeError(f"{text!r}: write 2026-11-23T12:00:00Z, Unix seconds, or how long ago: 24h") from None


def _step(text: str) -> Decimal:
    try:
        step_s = Decimal(text) if text.replace(".", "", 1).isdigit() else Decimal(parse_duration(text)) / NS_PER_SECOND
    except (UnitError, InvalidOperation) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if step_s <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a duration above 0 is needed")
    return step_s


def run(ns: argparse.Namespace) -> int:
    """Replay. Raises ConfigError (78), RecordingError (1) after everything before it was reported, EnvironmentFault."""
    if ns.plot:
        plot.require()
    configs = [ns.config, *([ns.compare] if ns.compare else [])]
    rules = [load_rules(config, host=platform.node(), paced=False) for config in configs]
    failure: RecordingError | None = None
    with _progress(ns) as progress:
        recording = _open(ns, progress)
        replay = _Replay(recording, configs, rules, as_json_lines=ns.json, drawing=bool(ns.plot))
        try:
            replay.run(progress)
        except RecordingError as error:
            failure = error
    replay.finish()
    if ns.plot:
        replay.draw(ns.plot)
    if failure is not None:
        raise failure
    return EXIT_DONE


def _is_server(recording: str) -> bool:
    return "://" in recording


def _open(ns: argparse.Namespace, progress: Progress) -> Recording:
    if not _is_server(ns.recording):
        live = {
            "--from": ns.start,
            "--to": ns.end,
            "--step": ns.step,
            "--query": ns.query,
            "--header": ns.header,
            "--token-file": ns.token_file,
            "--ca": ns.ca,
            "--timeout": ns.timeout,
        }
        given = [name for name, value in live.items() if value is not None]
        if given:
            raise RecordingError(f"{ns.recording}: {', '.join(given)}: only for the URL of a Prometheus server; this is a file")
        return open_recording(ns.recording, progress, ns.label)
    asked = server(ns.recording, headers=tuple(ns.header or ()), token_file=ns.token_file, ca=ns.ca)
    end_s = int(time.time()) if ns.end is None else ns.end
    if ns.start is None or ns.start >= end_s:
        raise RecordingError(f"{asked.name}: --from is needed for a server, and before --to; write for example --from 24h")
    return query(
        asked,
        start_s=ns.start,
        end_s=end_s,
        step_s=ns.step or Decimal(STEP_S),
        selector=ns.query or METRIC,
        label=ns.label,
        timeout_s=float(ns.timeout or TIMEOUT_S),
        progress=progress,
    )


@contextmanager
def _progress(ns: argparse.Namespace) -> Iterator[Progress]:
    """A bar on standard error for what takes long, where that is a terminal and the events do not go to one."""
    if not sys.stderr.isatty() or (ns.json and sys.stdout.isatty()) or not _takes_long(ns.recording):
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (TextColumn("replay"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("replay", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _takes_long(recording: str) -> bool:
    if _is_server(recording):
        return True
    try:  # standard input is no file to look at
        return Path(recording).stat().st_size >= LONG_BYTES
    except OSError:
        return False  # opening it says why


class _Replay:
    """A recording, one run and one report for each policy, and where it all goes."""

    def __init__(
        self, recording: Recording, configs: list[str], rules: list[Rules], *, as_json_lines: bool, drawing: bool
    ) -> None:
        header = recording.header
        self._recording = recording
        self._json = as_json_lines
        self._curves = Curves() if drawing else None
        self._runs = [Run(r, started_wall_ns=header.started_wall_ns, qualified=header.qualified) for r in rules]
        if self._curves is not None:
            self._runs[0].watcher = self._curves.tick
        self._reports = [Report(config) for config in configs]
        self._ticks = 0
        if header.started_wall_ns is None and any(r.overrides for r in rules):
            complain("note: the recording does not say when it was made (started_at), so overrides are ignored")

    def run(self, progress: Progress) -> None:
        """Feed every tick to every policy."""
        runs = tuple(enumerate(self._runs))
        lines = self._recording.lines
        for source, snapshot in self._recording:
            self._ticks += 1
            for i, policy in runs:
                events = policy.feed(source, snapshot)
                if events:
                    self._tell(i, events)
            if not self._ticks % _BAR_EVERY_TICKS and lines is not None:
                progress(lines.read_bytes, lines.size_bytes)

    def _tell(self, i: int, events: Sequence[Told]) -> None:
        report = self._reports[i]
        for told in events:
            if not self._json:
                report.add(told)
            elif (line := as_json(told.event)) is not None:
                of = {"config": report.title} if len(self._reports) > 1 else {}
                sys.stdout.write(json.dumps(line | of) + "\n")
            if self._curves is not None and i == 0:
                self._curves.event(told)

    # ---- the end ----

    def finish(self) -> None:
        """Tell what is left to tell: with --json the last events, else the whole report."""
        for i, policy in enumerate(self._runs):
            self._tell(i, policy.close())
        for note in dict.fromkeys([*self._recording.notes, *(note for policy in self._runs for note in policy.notes())]):
            complain(f"note: {note}")
        if not self._json:
            say(self._lines())

    def _lines(self) -> Iterator[str]:
        """The report for people."""
        shown = terminal()
        marks = [chr(ord("A") + i) for i in range(len(self._runs))]
        sides = [
            Side(mark, report, policy.watched, policy.over_bytes, policy.end_ns)
            for mark, report, policy in zip(marks, self._reports, self._runs, strict=True)
        ]
        end_ns = max(side.end_ns for side in sides)
        clock = Clock(self._recording.header.started_wall_ns, end_ns)
        ticks = f"{self._ticks} ticks over {span(end_ns / NS_PER_SECOND)}{clock.since}"
        for side in sides:
            of = f"{side.mark}: " if len(sides) > 1 else ""
            yield shown.palette.paint(f"{of}{clean(side.report.title)}", "bold") + f": {clean(self._recording.name)}, {ticks}"
        if any(side.watched for side in sides):
            yield from table(sides, clock, shown.width if shown.is_terminal else None, shown.palette)
        else:
            yield self._why_nothing()
        for side in sides:
            others = side.report.fresh_epochs()
            if others:
                yield f"{f'{side.mark}: ' if len(sides) > 1 else ''}fresh epochs: {others}"
        if any(side.report.kept for side in sides):
            yield ""
        yield from event_lines(sides, clock, shown.palette)
        left_out = sum(side.report.left_out for side in sides)
        if left_out:
            yield f"… and {left_out} events more; --json prints them all"

    def _why_nothing(self) -> str:
        return "no link of the recording is watched by a policy" if self._ticks else "the recording holds no ticks"

    def draw(self, path: str) -> None:
        """Write the picture of the first policy."""
        if self._curves is None:
            return
        header = self._recording.header
        left_out = plot.draw(self._curves.curves(), path, title=self._recording.name, started_wall_ns=header.started_wall_ns)
        if left_out:
            complain(f"note: {left_out} links more are not drawn; {plot.MAX_PANELS} fit into a picture")
