"""How the story is shown: one live picture on a terminal (80×24 is enough), plain lines in a pipe.

`picture` is pure. The live show leaves its last picture on the screen when it ends.
"""

from __future__ import annotations

import shutil
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from limiterd.core.units import format_rate
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import number
from limiterd.ctl.format import PHASE_STYLES, Cell, Column, Palette, clean
from limiterd.ctl.show_status import progress, shaped
from limiterd.ctl.terminal import Terminal, say
from limiterd.demo.chart import AXIS_WIDTH, chart
from limiterd.demo.findings import Findings, Verdict
from limiterd.demo.scale import Scale
from limiterd.demo.story import Said, Scene

SAID_LINES: Final = 6
LEAST_CHART: Final = 6
MOST_CHART: Final = 16
HEADROOM: Final = 1.15
COLUMNS: Final = (
    Column("INTERFACE"),
    Column("PHASE"),
    Column("RATE", right=True),
    Column("LIMIT/TIMER"),
    Column("REASON"),
    Column("OVERRIDE"),
)
WIDTHS: Final = (9, 10, 8, 11, 9, 8)
VERDICT_STYLES: Final = {Verdict.KEPT: "bold", Verdict.BROKEN: "alarm", Verdict.INCONCLUSIVE: "yellow"}


# ---- the picture ---------------------------------------------------------------------------------------------


def picture(scene: Scene, screen: Terminal, height: int) -> list[str]:
    """The scene in at most height lines of the screen's width."""
    paint, width = screen.palette.paint, screen.width
    where = "SIMULATED: no packet is sent" if scene.simulated else "private namespaces, real traffic"
    title = f"limiterd demo: {where}"
    head = [paint(fmt.cut(f"{fmt.pad(title, width - 8)}{scene.now_s:6.1f} s", width), "bold"), ""]
    table = [*row(scene, screen), paint(fmt.cut("           " + shaped(scene.link), width), "dim")]
    said = [line for item in scene.said[-SAID_LINES:] for line in _said(item, width, screen.palette)][-SAID_LINES:]
    said += [""] * (SAID_LINES - len(said))
    act = paint(fmt.cut(f"Act {scene.act}", width), "bold")
    rows = max(LEAST_CHART, min(MOST_CHART, height - len(head) - len(table) - SAID_LINES - 4))
    plot = width - AXIS_WIDTH - 1
    drawn = chart(
        scene.points,
        [scene.scale.threshold_bps, scene.scale.limit_bps],
        width=width,
        height=rows,
        top_bps=scene.scale.traffic_bps * HEADROOM,
        column_s=max(0.1, scene.scale.planned_s / plot),
        palette=screen.palette,
        unicode=screen.unicode,
    )
    return [*head, *table, *drawn, "", act, *said][:height]


def row(scene: Scene, screen: Terminal) -> list[str]:
    """The table: the link as `limiterctl status` shows it."""
    link = scene.link
    phase = clean(link.get("phase", "conforming"))
    cells = [
        Cell(fmt.pad(clean(link.get("interface", "")), WIDTHS[0]), "bold"),
        Cell(fmt.pad(phase, WIDTHS[1]), PHASE_STYLES.get(phase, "")),
        Cell(fmt.pad(fmt.rate(number(link.get("rate_bps"))), WIDTHS[2], right=True)),
        Cell(fmt.pad(progress(link), WIDTHS[3])),
        Cell(fmt.pad(clean(link.get("reason") or fmt.NOTHING), WIDTHS[4])),
        Cell(fmt.pad(clean(link.get("override") or fmt.NOTHING), WIDTHS[5])),
    ]
    return fmt.table(COLUMNS, [cells], screen.width, screen.palette)


def _said(item: Said, width: int, palette: Palette) -> list[str]:
    stamp = f"{item.at_s:6.1f} s  "
    first, *rest = fmt.wrap(item.text, width, " " * len(stamp))
    head = palette.paint(stamp, "dim") + palette.paint(first[len(stamp) :], item.style)
    return [head, *(palette.paint(line, item.style) for line in rest)]


class LiveShow:
    """On a terminal."""

    def __init__(self, screen: Terminal) -> None:
        self._screen = screen
        console = Console(no_color=not screen.palette.enabled, highlight=False)
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def update(self, scene: Scene) -> None:
        """Draw anew."""
        size = shutil.get_terminal_size((80, 24))
        screen = Terminal(
            is_terminal=True, width=max(60, size.columns), palette=self._screen.palette, unicode=self._screen.unicode
        )
        lines = picture(scene, screen, max(20, size.lines - 1))
        self._live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)


class LineShow:
    """In a pipe: what is said, and one line a second."""

    def __init__(self, screen: Terminal) -> None:
        self._screen = screen
        self._told = 0
        self._second = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def update(self, scene: Scene) -> None:
        """Print what is new."""
        for item in scene.said[self._told :]:
            say([f"{item.at_s:6.1f} s  * {item.text}"])
        self._told = len(scene.said)
        if int(scene.now_s) != self._second and scene.points:
            self._second = int(scene.now_s)
            say([line(scene)], flush=True)


def line(scene: Scene) -> str:
    """The scene in one line."""
    link = scene.link
    at = f"{scene.now_s:6.1f} s    {clean(link.get('interface', '')):<6} {clean(link.get('phase', '')):<10}"
    words = {"pending": f"over the threshold for {progress(link)}", "limited": f"limit {progress(link)}"}
    return f"{at} {fmt.rate(scene.points[-1].rate_bps):>8}  {words.get(str(link.get('phase')), '')}".rstrip()


# ---- the end --------------------------------------------------------------------------------------------------


def summary(findings: Findings, scale: Scale, screen: Terminal, *, simulated: bool) -> list[str]:
    """What was promised and whether it was kept."""
    paint = screen.palette.paint
    before, limited, after = (fmt.rate(bps) for bps in (findings.before_bps, findings.shaped_bps, findings.after_bps))
    lines = [f"rate before {before}, limited {limited}, after the override {after}"]
    for check in findings.checks(scale):
        mark, style = ("ok  ", "green") if check.kept else ("?   ", "yellow") if check.excuse else ("FAIL", "alarm")
        lines += [f"{paint(mark, style)} {check.text}"]
    if simulated:
        lines.append("simulated: the engine is the real one, its kernel and its traffic were not")
    return [*lines, paint(findings.sentence(scale), VERDICT_STYLES[findings.verdict(scale)])]


def introduction(scale: Scale, *, simulated: bool) -> str:
    """The first sentence, before the curtain."""
    if simulated:
        return f"The same engine on an in-memory kernel (simulated): {scale.policy_text()}."
    setting = f"Two private network namespaces, the real daemon, TCP at {format_rate(scale.traffic_bps)}"
    return f"{setting}: {scale.policy_text()}."
