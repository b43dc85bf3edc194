"""Draws rate, threshold, limit, phases and what happened over time, with matplotlib (the extra limiterd[plot]).

Colours are those of Okabe and Ito, which every kind of colour vision tells apart; marks differ in shape, too. The data are
bit/s over seconds since the first tick; the axes show them as Gbit/s (or what fits) over the time of day.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from io import BytesIO
from math import ceil, nan
from pathlib import Path
from typing import TYPE_CHECKING, Final

from limiterd.core.errors import EnvironmentFault
from limiterd.core.text import shown as text_shown
from limiterd.core.units import NS_PER_SECOND
from limiterd.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS: Final = 12
SUFFIXES: Final = (".png", ".svg")
_BLUE, _SKY, _ORANGE, _RED, _GREEN, _PURPLE, _BLACK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000"
_MARKS: Final = {
    "limit": ("fires", _RED, "v"),
    "would_limit": ("would limit", _ORANGE, "v"),
    "noted": ("noted", _BLACK, "x"),
    "possible": ("possible", _PURPLE, "D"),
    "released": ("released", _GREEN, "^"),
}
_SHADES: Final = {"pending": _ORANGE, "limited": _RED, "exempt": _GREEN, "fault": _PURPLE}
_UNITS: Final = ((10**9, "Gbit/s"), (10**6, "Mbit/s"), (10**3, "kbit/s"), (1, "bit/s"))
_STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_TICKS_MAX: Final = 9
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at an instant."""

    t_ns: int
    what: str


@dataclass(frozen=True, slots=True)
class Level:
    """A rate that held for a while: a threshold, or a limit that stood."""

    since_ns: int
    until_ns: int
    rate_bps: int


@dataclass(frozen=True, slots=True)
class Shade:
    """A phase that lasted for a while."""

    since_ns: int
    until_ns: int
    phase: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One link: (t0_ns, t1_ns, bytes) stretches, its thresholds, the limits that stood, its phases and what happened.

    All times are ns since the recording's first tick.
    """

    name: str
    stretches: tuple[tuple[int, int, int], ...]
    thresholds: tuple[Level, ...]
    limits: tuple[Level, ...] = ()
    phases: tuple[Shade, ...] = ()
    marks: tuple[Mark, ...] = ()


def require() -> None:
    """Make sure that matplotlib is there. Raises EnvironmentFault that says how to get it."""
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "--plot needs matplotlib, which is not installed; it comes with the extra limiterd[plot] "
            "(pip install '.[plot]' in the checkout) or as your distribution's python3-matplotlib",
            operation="plot",
        )


def draw(curves: Sequence[Curve], path: str, *, title: str, started_wall_ns: int | None = None) -> int:
    """Write the picture (PNG or SVG by its suffix); how many links were left out. Raises EnvironmentFault.

    started_wall_ns is the first tick's time; None: the axis shows seconds since then.
    """
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    shown = curves[:MAX_PANELS]
    figure = Figure(figsize=(12, 1.4 + 2.8 * max(1, len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(text_shown(title), parse_math=False)  # a $ in a name is no formula
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)
    for axis, curve in zip(axes[:, 0], shown, strict=False):
        _panel(axis, curve)
    _time_axis(axes[-1, 0], max((t1 for curve in shown for _, t1, _ in curve.stretches), default=0), started_wall_ns)
    if not Path(path).parent.is_dir():
        raise EnvironmentFault(f"{path}: there is no such directory", operation="plot")
    drawn = BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:], dpi=110)
    write_atomic(Path(path), drawn.getvalue(), mode=0o644)  # a link of that name is replaced, not followed
    return len(curves) - len(shown)


def _time_axis(axis: Axes, end_ns: int, started_wall_ns: int | None) -> None:
    """Ticks at round times of the day (UTC), or at round seconds where it is not known when the recording was made."""
    begin_s, span_s = (started_wall_ns or 0) / NS_PER_SECOND, max(1.0, _seconds(end_ns))
    step_s = next((step for step in _STEPS_S if span_s / step <= _TICKS_MAX), _DAY_S * (1 + int(span_s / _TICKS_MAX / _DAY_S)))
    ticks = [k * step_s - begin_s for k in range(ceil(begin_s / step_s), int((begin_s + span_s) // step_s) + 1)]
    axis.set_xlim(-0.01 * span_s, 1.01 * span_s)
    if started_wall_ns is None:
        axis.set_xticks(ticks)
        axis.set_xlabel("seconds since the recording's first tick")
        return
    moments = [datetime.fromtimestamp(round(begin_s + tick), UTC) for tick in ticks]
    first, last = (datetime.fromtimestamp(begin_s + at, UTC) for at in (0, span_s))
    one_day = first.date() == last.date()
    form = ("%H:%M:%S" if step_s < 60 else "%H:%M") if one_day else "%m-%d" if step_s >= _DAY_S else "%m-%d %H:%M"
    axis.set_xticks(ticks, [f"{moment:{form}}" for moment in moments])
    axis.set_xlabel(f"UTC, {first:%Y-%m-%d}" if one_day else f"UTC, {first:%Y-%m-%d} to {last:%Y-%m-%d}")


def _panel(axis: Axes, curve: Curve) -> None:
    named: set[str] = set()

    def once(label: str) -> str | None:
        """The legend names everything once."""
        new = label not in named
        named.add(label)
        return label if new else None

    times = [_seconds(t) for t0, t1, _ in curve.stretches for t in (t0, t1)]
    rates = [rate for t0, t1, size in curve.stretches for rate in [8e9 * size / (t1 - t0)] * 2]
    top = 1.18 * max([*rates, *(level.rate_bps for level in curve.thresholds), 1])
    for shade in curve.phases:
        span = _seconds(shade.since_ns), _seconds(shade.until_ns)
        axis.axvspan(*span, color=_SHADES[shade.phase], alpha=0.12, linewidth=0, label=once(shade.phase))
    axis.plot(times, rates, linewidth=0.9, color=_SKY if curve.limits else _BLUE, label="recorded")
    if curve.limits:
        axis.fill_between(times, passing(curve), color=_BLUE, alpha=0.55, linewidth=0, label="passes")
        axis.plot(*_steps(curve.limits), linewidth=1.5, color=_RED, label="limit")
    axis.plot(*_steps(curve.thresholds), linestyle="--", linewidth=1, color=_BLACK, label="threshold")
    for mark in curve.marks:
        if mark.what in _MARKS:
            label, colour, shape = _MARKS[mark.what]
            at = _seconds(mark.t_ns)
            axis.axvline(at, color=colour, linewidth=0.8, alpha=0.8)
            axis.plot([at], [0.95 * top], marker=shape, color=colour, linestyle="none", markersize=6, label=once(label))
    axis.set_ylim(0, top)
    factor, unit = next((one for one in _UNITS if top >= one[0]), _UNITS[-1])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")
    axis.set_ylabel(unit)
    axis.set_title(text_shown(curve.name), loc="left", fontsize="medium", parse_math=False)
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), borderaxespad=0, frameon=False, fontsize="small")


def passing(curve: Curve) -> list[float]:
    """What passes in bit/s at both ends of each stretch: what was recorded, up to the limit that stands then."""
    rates: list[float] = []
    levels = deque(curve.limits)
    for t0, t1, size in curve.stretches:
        while levels and levels[0].until_ns <= t0:
            levels.popleft()
        stands = bool(levels) and levels[0].since_ns < t1
        rate = 8e9 * size / (t1 - t0)
        rates += [min(rate, levels[0].rate_bps) if stands else rate] * 2
    return rates


def _seconds(t_ns: int) -> float:
    return t_ns / NS_PER_SECOND


def _steps(levels: Sequence[Level]) -> tuple[list[float], list[float]]:
    """A step line's points, with a hole where nothing held."""
    times: list[float] = []
    rates: list[float] = []
    until_ns: int | None = None
    for level in levels:
        if until_ns is not None and level.since_ns > until_ns:
            times.append(_seconds(until_ns))
            rates.append(nan)
        times += [_seconds(level.since_ns), _seconds(level.until_ns)]
        rates += [level.rate_bps] * 2
        until_ns = level.until_ns
    return times, rates
