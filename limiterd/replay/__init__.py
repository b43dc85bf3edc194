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

from limiterd import plot
from limiterd.config import load_rules
from limiterd.core.errors import EXIT_DONE, UnitError
from limiterd.core.model import Event, Link, Rules, Snapshot
from limiterd.core.policy import effective
from limiterd.core.units import NS_PER_SECOND, parse_duration
from limiterd.ctl.connect import DEFAULT_CONFIG, json_argument
from limiterd.ctl.format import clean, span
from limiterd.ctl.terminal import complain, say, terminal
from limiterd.recording import METRIC, Recording, RecordingError, open_recording, query
from limiterd.replay.curves import Curves
from limiterd.replay.report import Clock, Report, as_json, epochs, event_lines, table
from limiterd.replay.runner import Run, by_device

LONG_BYTES: Final = 8 << 20
"""From this size on a recording takes long enough for a progress bar."""

_BAR_EVERY_TICKS: Final = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `replay`."""
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help="JSON lines or CSV as `record` and docs/replay.md describe them, the saved answer of a Prometheus query_range, "
        "or the URL of a Prometheus server",
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help=f"the policy to try (default: {DEFAULT_CONFIG})")
    parser.add_argument("--compare", metavar="OTHER.yaml", help="a second policy, side by side with the first")
    parser.add_argument("--plot", metavar="OUT.png|svg", type=_picture, help="draw rate, threshold and limits over time")
    live = parser.add_argument_group("a Prometheus server")
    live.add_argument("--from", dest="start", metavar="TIME", type=_instant, help="RFC 3339, Unix seconds, or ago: 24h")
    live.add_argument("--to", dest="end", metavar="TIME", type=_instant, help="the same (default: now)")
    live.add_argument("--step", metavar="DURATION", type=_step, default=Decimal(15), help="between points (default: 15s)")
    live.add_argument("--query", metavar="SELECTOR", default=METRIC, help=f"the series to ask for (default: {METRIC})")
    live.add_argument("--timeout", metavar="DURATION", type=_step, default=Decimal(30), help="for each answer (default: 30s)")
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
    recording = _open(ns)
    replay = _Replay(recording, configs, rules, as_json_lines=ns.json, drawing=bool(ns.plot))
    failure: RecordingError | None = None
    try:
        with _progress(recording) as advance:
            replay.run(advance)
    except RecordingError as error:
        failure = error
    replay.finish()
    if ns.plot:
        replay.draw(ns.plot)
    if failure is not None:
        raise failure
    return EXIT_DONE


def _open(ns: argparse.Namespace) -> Recording:
    if "://" not in ns.recording:
        if ns.start is not None or ns.end is not None:
            raise RecordingError(f"{ns.recording}: --from and --to belong to a Prometheus server's URL; this is a file")
        return open_recording(ns.recording)
    end_s = int(time.time()) if ns.end is None else ns.end
    if ns.start is None or ns.start >= end_s:
        raise RecordingError(f"{ns.recording}: --from is needed for a server, and before --to; write for example --from 24h")
    return query(ns.recording, start_s=ns.start, end_s=end_s, step_s=ns.step, selector=ns.query, timeout_s=float(ns.timeout))


class _Advance:
    """Moves the progress bar, if there is one."""

    def to(self, read_bytes: int) -> None:
        """So much of the recording is read."""


@contextmanager
def _progress(recording: Recording) -> Iterator[_Advance]:
    if recording.size_bytes < LONG_BYTES or not sys.stderr.isatty():
        yield _Advance()
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("replay"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replay", total=recording.size_bytes)

        class Bar(_Advance):
            def to(self, read_bytes: int) -> None:
                progress.update(task, completed=read_bytes)

        yield Bar()


class _Replay:
    """A recording, one run and one report for each policy, and where it all goes."""

    def __init__(
        self, recording: Recording, configs: list[str], rules: list[Rules], *, as_json_lines: bool, drawing: bool
    ) -> None:
        self._recording = recording
        self._json = as_json_lines
        self._runs = [Run(r, started_wall_ns=recording.started_wall_ns, qualified=recording.qualified) for r in rules]
        self._reports = [Report(config) for config in configs]
        self._curves = Curves() if drawing else None
        self._rules = [by_device(r) if recording.qualified else r for r in rules]
        self._clock = Clock(0, recording.started_wall_ns)
        self._thresholds: dict[str, int] = {}
        self._links: tuple[Link, ...] = ()
        self._ticks = 0
        self._first_ns: int | None = None
        self._end_ns = 0
        if recording.started_wall_ns is None and any(r.overrides for r in rules):
            complain("note: the recording does not say when it was made (started_at), so overrides are ignored")

    def run(self, advance: _Advance) -> None:
        """Feed every tick to every policy."""
        recording, runs = self._recording, tuple(enumerate(self._runs))
        for lane, snapshot in recording:
            if self._first_ns is None:
                self._begin(snapshot)
            self._ticks += 1
            self._end_ns = snapshot.t_ns
            if self._curves is not None:
                self._trace(snapshot, self._curves)
            for i, policy in runs:
                events = policy.feed(lane, snapshot)
                if events:
                    self._tell(i, events)
            if not self._ticks % _BAR_EVERY_TICKS:
                advance.to(recording.read_bytes)

    def _begin(self, snapshot: Snapshot) -> None:
        self._first_ns = snapshot.t_ns
        self._clock = Clock(snapshot.t_ns, self._recording.started_wall_ns)

    def _trace(self, snapshot: Snapshot, curves: Curves) -> None:
        curves.sample(snapshot)
        if snapshot.links is self._links:
            return
        self._links = snapshot.links
        for link in snapshot.links:
            applies = effective(self._rules[0], link.name, self._recording.started_wall_ns or 0)
            if applies is not None:
                self._thresholds[link.name] = applies.detect.threshold_bps

    def _tell(self, i: int, events: Sequence[Event]) -> None:
        report = self._reports[i]
        for event in events:
            if self._json:
                of = {"config": report.title} if len(self._reports) > 1 else {}
                sys.stdout.write(json.dumps(as_json(event) | of) + "\n")
            else:
                report.add(event)
            if self._curves is not None and i == 0:
                self._curves.event(event)

    # ---- the end ----

    def finish(self) -> None:
        """Tell what is left to tell: with --json the last events, else the whole report."""
        for i, policy in enumerate(self._runs):
            self._tell(i, policy.close())
            for note in policy.notes:
                complain(f"note: {note}")
        if self._json:
            return
        for report, policy in zip(self._reports, self._runs, strict=True):
            say(self._summary(report, policy))
        for report in self._reports:
            say(self._events(report))

    def _summary(self, report: Report, policy: Run) -> Iterator[str]:
        shown = terminal()
        ticks = f"{self._ticks} ticks over {span(max(0, self._end_ns - self._clock.first_ns) / NS_PER_SECOND)}"
        yield shown.palette.paint(f"{clean(report.title)}", "bold") + f": {clean(self._recording.name)}, {ticks}"
        width = shown.width if shown.is_terminal else None
        yield from table(report, self._end_ns, policy.over_bytes, self._clock, width, shown.palette)
        others = epochs(report)
        if others:
            yield f"fresh epochs: {others}"
        yield ""

    def _events(self, report: Report) -> Iterator[str]:
        if not report.kept:
            return
        if len(self._reports) > 1:
            yield f"{clean(report.title)}:"
        yield from event_lines(report.kept, self._clock, terminal().palette)
        if report.left_out:
            yield f"… and {report.left_out} events more; --json prints them all"

    def draw(self, path: str) -> None:
        """Write the picture of the first policy."""
        if self._curves is None:
            return
        curves = self._curves.curves(self._thresholds)
        left_out = plot.draw(curves, path, first_ns=self._clock.first_ns, title=self._recording.name)
        if left_out:
            complain(f"note: {left_out} links more are not drawn; {plot.MAX_PANELS} fit into a picture")
