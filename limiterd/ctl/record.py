"""`limiterctl record`: the watched links' counters as JSON lines, sampled as the daemon samples them."""

from __future__ import annotations

import argparse
import contextlib
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Final

from limiterd import DEFAULT_CONFIG
from limiterd.config.load import load
from limiterd.core.errors import EXIT_DONE, EnvironmentFault, UnitError
from limiterd.core.model import Config, Link, Rules, Snapshot
from limiterd.core.policy import policy_for
from limiterd.core.units import NS_PER_SECOND, format_duration, parse_duration
from limiterd.ctl.terminal import complain
from limiterd.kernel.links import LinkTable
from limiterd.kernel.netlink import boottime_ns
from limiterd.kernel.samplers import Sampler, open_sampler
from limiterd.recording import Writer

_FLUSH_EVERY_NS: Final = NS_PER_SECOND
"""What a kill may cost of a recording."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `record`."""
    parser.add_argument("--output", metavar="FILE", required=True, help="the recording, JSON lines; - is standard output")
    parser.add_argument("--duration", metavar="D", type=_duration, help="how long to record, such as 10m (default: until Ctrl-C)")
    parser.add_argument(
        "--interface", metavar="GLOB", action="append", help="record these links instead of the watched ones; may be repeated"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(ns: argparse.Namespace) -> int:
    """Record. Raises ConfigError, EnvironmentFault; Ctrl-C and SIGTERM end a recording properly."""
    config = _config(ns.config)
    try:
        table = LinkTable()
    except EnvironmentFault:
        table = None
    sampler = open_sampler(config.sampling.source, table, config.sampling.interval_ns)
    try:
        with _output(ns.output, force=ns.force) as stream:
            ticks, seen = _record(ns, config, sampler, stream)
    finally:
        sampler.close()
        if table is not None:
            table.close()
    if not seen:
        complain("note: no link matched, so the recording holds none; see --interface")
    complain(f"{ticks} ticks of {', '.join(sorted(seen)) or 'no link'} written to {ns.output}")
    return EXIT_DONE


def _config(path: str) -> Config:
    if path == DEFAULT_CONFIG and not Path(path).exists():
        complain(f"note: there is no {path}; using the built-in defaults")
        return Config()
    return load(path)


@contextlib.contextmanager
def _output(path: str, *, force: bool) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout
        return
    try:
        with Path(path).open("w" if force else "x", encoding="ascii") as stream:
            yield stream
    except FileExistsError:
        raise EnvironmentFault(f"{path} exists already; name another file or add --force", operation="record") from None
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror or error}", operation="record") from error


def _record(ns: argparse.Namespace, config: Config, sampler: Sampler, stream: IO[str]) -> tuple[int, set[str]]:
    interval_ns = config.sampling.interval_ns
    chosen = _Chosen(config, ns.interface)
    stopped = _Stopped()
    writer: Writer | None = None
    ticks, seen, flushed_ns = 0, set[str](), boottime_ns()
    due_ns = boottime_ns()
    end_ns = None if ns.duration is None else due_ns + ns.duration
    while not stopped and (end_ns is None or due_ns <= end_ns):
        time.sleep(max(0, due_ns - boottime_ns()) / 1e9)
        snapshot = sampler.sample()
        due_ns = max(due_ns + interval_ns, boottime_ns() - interval_ns)
        if snapshot is None:
            continue
        if writer is None:
            started_wall_ns = time.time_ns() - (boottime_ns() - snapshot.t_ns)
            writer = Writer(stream, host=platform.node(), started_wall_ns=started_wall_ns)
        kept = chosen.of(snapshot)
        writer.write(kept)
        ticks += 1
        seen.update(link.name for link in kept.links)
        if snapshot.t_ns - flushed_ns >= _FLUSH_EVERY_NS:
            stream.flush()
            flushed_ns = snapshot.t_ns
    if writer is None:  # ended before the first sample: a recording all the same
        Writer(stream, host=platform.node(), started_wall_ns=time.time_ns())
    if ns.duration is not None and ns.duration < interval_ns:
        complain(f"note: {format_duration(ns.duration)} is shorter than the interval of {format_duration(interval_ns)}")
    return ticks, seen


class _Stopped:
    """True once SIGINT or SIGTERM came: the tick at hand is written whole."""

    def __init__(self) -> None:
        self._stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def __bool__(self) -> bool:
        return self._stopped


class _Chosen:
    """The links worth recording: those that a policy watches, or that the command line names."""

    def __init__(self, config: Config, globs: Sequence[str] | None) -> None:
        self._rules = Rules(config)
        self._globs = globs
        self._of: tuple[Link, ...] | None = None
        self._kept: tuple[Link, ...] = ()
        self._positions: list[int] = []

    def of(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot of these links only."""
        if snapshot.links is not self._of:
            self._of = snapshot.links
            self._positions = [i for i, link in enumerate(snapshot.links) if self._wanted(link.name)]
            self._kept = tuple(snapshot.links[i] for i in self._positions)
        return Snapshot(snapshot.t_ns, self._kept, [snapshot.tx_bytes[i] for i in self._positions])

    def _wanted(self, name: str) -> bool:
        if self._globs:
            return any(fnmatchcase(name, glob) for glob in self._globs)
        return policy_for(self._rules, name) is not None
