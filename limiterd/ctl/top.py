"""`limiterctl top`: the status live, a chart a link.

The board is plain data: what was last heard, and a few minutes of rates. `frame` turns it into lines for a given screen;
only `top` itself knows the clock, the keyboard and the daemon. The daemon may go away and come back: the board says so
and keeps the last figures, marked as old.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from limiterd.core.errors import EXIT_DONE, EXIT_UNREACHABLE, PeerError
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import Data, ask, figure, json_argument, number, record, records, socket_path
from limiterd.ctl.format import PHASE_STYLES, Cell, Column, clean
from limiterd.ctl.show_status import notices, progress
from limiterd.ctl.terminal import Terminal, say, say_json, terminal
from limiterd.serve import messages as msg

MEMORY: Final = 600
PERIOD_S: Final = 1.0
POLL_TIMEOUT_S: Final = 2.0
LEAST_CHART: Final = 10
LEAST_BODY: Final = 12
GRAVITY: Final = {"fault": 0, "limited": 1, "pending": 2, "exempt": 3, "conforming": 4, "absent": 5}
COLUMNS: Final = (Column("INTERFACE"), Column("PHASE"), Column("RATE", right=True), Column("LIMIT/TIMER"))
WIDTHS: Final = (11, 8, 11)
"""Least widths of all columns but the first, so that nothing jumps when a figure grows."""


# ---- the board: what is known ------------------------------------------------------------------------------


@dataclass(slots=True)
class Track:
    """One link over time: rates in bit/s, what waits behind its limit in bytes, and the counters last heard."""

    ifindex: int = 0
    rates: deque[float | None] = field(default_factory=lambda: deque(maxlen=MEMORY))
    queued: deque[float | None] = field(default_factory=lambda: deque(maxlen=MEMORY))
    heard_s: float = 0.0
    drops: float = 0.0
    overlimits: float = 0.0
    drops_per_s: float = 0.0
    overlimits_per_s: float = 0.0


@dataclass(slots=True)
class Board:
    """The last status and every link's track; error is why there is no newer one."""

    data: Data = field(default_factory=dict)
    tracks: dict[str, Track] = field(default_factory=dict)
    heard_wall: float = 0.0
    error: str = ""

    def hear(self, data: Data, at_s: float, wall: float) -> None:
        """Take a status heard at at_s (a clock that never steps) and wall (Unix seconds)."""
        self.data, self.heard_wall, self.error = data, wall, ""
        links = {str(link.get("interface")): link for link in records(data.get("links"))}
        self.tracks = {name: self._track(name, link) for name, link in links.items()}
        for name, link in links.items():
            _follow(self.tracks[name], link, at_s)

    def miss(self, error: str) -> None:
        """Note that the daemon did not answer; every chart shows a gap."""
        self.error = error
        for track in self.tracks.values():
            track.rates.append(None)
            track.queued.append(None)

    def _track(self, name: str, link: Data) -> Track:
        known, ifindex = self.tracks.get(name), int(figure(link.get("ifindex")))
        return known if known is not None and known.ifindex == ifindex else Track(ifindex)


def _follow(track: Track, link: Data, at_s: float) -> None:
    absent = link.get("phase") == "absent"
    track.rates.append(None if absent else number(link.get("rate_bps")))
    shaped = record(link.get("shaped"))
    track.queued.append(figure(shaped.get("backlog_bytes")) if shaped else None)
    drops, overlimits = figure(shaped.get("drops")), figure(shaped.get("overlimits"))
    elapsed = at_s - track.heard_s
    if track.heard_s and elapsed > 0:
        track.drops_per_s = max(0.0, drops - track.drops) / elapsed
        track.overlimits_per_s = max(0.0, overlimits - track.overlimits) / elapsed
    track.heard_s, track.drops, track.overlimits = at_s, drops, overlimits


# ---- the frame: how it is shown ----------------------------------------------------------------------------

SortKey = Callable[[Data], tuple[object, ...]]
SORTS: Final[Mapping[str, tuple[str, SortKey]]] = {
    "r": ("rate", lambda link: (-figure(link.get("rate_bps")), str(link.get("interface")))),
    "n": ("name", lambda link: (str(link.get("interface")),)),
    "p": ("phase", lambda link: (GRAVITY.get(str(link.get("phase")), 9), -figure(link.get("rate_bps")))),
}


def frame(board: Board, screen: Terminal, height: int, sort: str, now: float) -> list[str]:
    """The board as at most height lines (0: as many as it takes) for this screen, links in the order of SORTS[sort]."""
    links = sorted(records(board.data.get("links")), key=SORTS[sort][1])
    head = [_title(board, screen, now), *_trouble(board, screen, now), ""]
    body, notes = _body(board, links, screen), notices(board.data, now, screen.width, screen.palette)
    if not height:
        return [*head, *body, *notes]
    keys = ["", screen.palette.paint(f"sorted by {SORTS[sort][0]}   r rate   n name   p phase   q quit", "dim")]
    room = max(2, height - len(head) - len(keys))
    notes = notes[: max(0, room - min(len(body), LEAST_BODY))]
    return [*head, *_shortened(body, room - len(notes), screen), *notes, *keys][:height]


def _shortened(body: list[str], room: int, screen: Terminal) -> list[str]:
    """The body in room lines; the last says how many more there would be."""
    if len(body) <= room:
        return body
    hidden = fmt.plural(len(body) - room + 1, "more line")
    return [*body[: room - 1], screen.palette.paint(f"({hidden}: sort otherwise, or use a taller terminal)", "dim")]


def _title(board: Board, screen: Terminal, now: float) -> str:
    data = board.data
    started = fmt.moment(data.get("started"))
    facts = [
        f"limiterd {clean(data.get('version', '?'))} on {clean(data.get('host', '?'))}",
        f"{fmt.local(now):%H:%M:%S}",
        f"up {fmt.span(max(0.0, now - started))}" if started is not None and not board.error else "",
        f"sampling by {clean(data.get('source'))}" if data.get("source") else "",
    ]
    return screen.palette.paint(fmt.cut("   ".join(f for f in facts if f), screen.width), "bold")


def _trouble(board: Board, screen: Terminal, now: float) -> list[str]:
    if not board.error:
        return []
    old = f"The figures below are of {fmt.relative(board.heard_wall, now)}. " if board.heard_wall else ""
    text = f"{old}Trying again. {clean('; '.join(board.error.splitlines()))}"
    return [screen.palette.paint(line, "alarm") for line in fmt.wrap(text, screen.width)]


def _body(board: Board, links: list[dict[str, object]], screen: Terminal) -> list[str]:
    if not links:
        return ["no link is watched"] if board.data else []
    name_width = max(len("INTERFACE"), *(fmt.display_width(clean(link.get("interface", ""))) for link in links))
    chart = max(LEAST_CHART, screen.width - name_width - sum(WIDTHS) - 4 * 2)
    rows = [_row(link) for link in links]
    filler = [Cell(" " * name_width), *(Cell(" " * width) for width in WIDTHS)]
    table = fmt.table(COLUMNS, [filler, *rows], None, screen.palette)
    lines = [f"{screen.palette.paint(_flush(COLUMNS, (name_width, *WIDTHS)), 'bold')}  {_scale(board, chart)}".rstrip()]
    for line, link in zip(table[2:], links, strict=True):
        track = board.tracks.get(str(link.get("interface")), Track())
        lines.append(_beside(line, name_width + sum(WIDTHS) + 3 * 2, _chart(track, link, chart, screen)).rstrip())
        lines += _demand(track, link, name_width, chart, screen)
    return lines


def _flush(columns: tuple[Column, ...], widths: tuple[int, ...]) -> str:
    return "  ".join(fmt.pad(c.title, w, right=c.right) for c, w in zip(columns, widths, strict=True))


def _beside(line: str, width: int, chart: str) -> str:
    """A painted line filled to width columns, and the chart after it."""
    return line + " " * (width - _visible(line)) + "  " + chart


def _visible(line: str) -> int:
    plain, rest = "", line
    while rest:
        text, _, rest = rest.partition("\x1b[")
        plain += text
        rest = rest.partition("m")[2]
    return fmt.display_width(plain)


def _scale(board: Board, chart: int) -> str:
    seen = min(chart, max((len(track.rates) for track in board.tracks.values()), default=0))
    return f"LAST {seen}s" if seen > 1 else ""


def _row(link: Data) -> list[Cell]:
    phase = clean(link.get("phase", ""))
    return [
        Cell(clean(link.get("interface", "")), "bold"),
        Cell(phase, PHASE_STYLES.get(phase, "")),
        Cell(fmt.rate(number(link.get("rate_bps"))) if phase != "absent" else fmt.NOTHING),
        Cell(progress(link), "yellow" if phase == "pending" else ""),
    ]


def _chart(track: Track, link: Data, columns: int, screen: Terminal) -> str:
    """The rate; full height is the threshold, or the most that was seen where that is more."""
    values = list(track.rates)[-columns:]
    spark = fmt.sparkline(values, top=number(link.get("threshold_bps")), unicode=screen.unicode)
    return screen.palette.paint(spark, PHASE_STYLES.get(str(link.get("phase")), ""))


def _demand(track: Track, link: Data, name_width: int, columns: int, screen: Terminal) -> list[str]:
    """What waits behind a limit: the queue now and over time, and what was dropped."""
    if link.get("phase") != "limited":
        return []
    queued = list(track.queued)[-columns:]
    last = next((size for size in reversed(queued) if size is not None), 0.0)
    text = f"{fmt.size(last)} queued, {fmt.count(track.drops_per_s)} drops/s, {fmt.count(track.overlimits_per_s)} waits/s"
    width = name_width + sum(WIDTHS) + 3 * 2
    label = screen.palette.paint(fmt.pad(fmt.cut(f"  {text}", width), width), "dim")
    return [f"{label}  {screen.palette.paint(fmt.sparkline(queued, unicode=screen.unicode), 'magenta')}".rstrip()]


# ---- live --------------------------------------------------------------------------------------------------


def top_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `top`."""
    parser.add_argument("--sort", choices=sorted(SORTS), default="r", help="r rate, n name, p phase (default: %(default)s)")
    json_argument(parser)


def top(ns: argparse.Namespace) -> int:
    """Show the board until q or Ctrl-C; without a terminal one frame, and as JSON what `status --json` prints."""
    ns.socket = socket_path(ns)
    if ns.json:
        say_json(ask(ns, msg.GetStatus()))
        return EXIT_DONE
    board = Board()
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        board.hear(ask(ns, msg.GetStatus()), time.monotonic(), time.time())
        say(frame(board, terminal(), 0, ns.sort, time.time()))
        return EXIT_DONE
    with _keyboard():
        return _live(ns, board)


def _live(ns: argparse.Namespace, board: Board) -> int:
    from rich.console import Console  # noqa: PLC0415 - likewise
    from rich.live import Live  # noqa: PLC0415 - slow to import, and needed on a terminal alone
    from rich.text import Text  # noqa: PLC0415 - likewise

    sort, screen = str(ns.sort), terminal()

    def picture() -> Text:
        size = shutil.get_terminal_size((80, 24))
        lines = frame(board, replace(screen, width=size.columns), size.lines, sort, time.time())
        return Text.from_ansi("\n".join(lines), no_wrap=True)

    listen(ns, board)
    console = Console(no_color=not screen.palette.enabled, highlight=False)
    with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + PERIOD_S
        while True:
            key = _key(max(0.0, due - time.monotonic()))
            if key == "q":
                return EXIT_DONE
            sort = key if key in SORTS else sort
            if time.monotonic() >= due:
                listen(ns, board)
                due = max(due + PERIOD_S, time.monotonic())
            live.update(picture(), refresh=True)


def listen(ns: argparse.Namespace, board: Board) -> None:
    """Ask once. A daemon that is away is a gap; a refusal is the end (raises PeerError)."""
    try:
        board.hear(ask(ns, msg.GetStatus(), timeout_s=POLL_TIMEOUT_S), time.monotonic(), time.time())
    except PeerError as error:
        if error.exit_code != EXIT_UNREACHABLE:
            raise
        board.miss(str(error))


@contextlib.contextmanager
def _keyboard() -> Iterator[None]:
    """Keys one by one and unseen, until the block ends however it ends."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(wait_s: float) -> str:
    """The next key within wait_s, or ""."""
    descriptor = sys.stdin.fileno()
    ready, _, _ = select.select([descriptor], [], [], wait_s)
    if not ready:
        return ""
    typed = os.read(descriptor, 64).decode(errors="replace")
    return typed[:1].lower() if typed else "q"
