"""Draws rate, threshold, limit, phases and what happened over time, with matplotlib (the extra limiterd[plot])."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Final

from limiterd.core.errors import EnvironmentFault
from limiterd.core.units import NS_PER_SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS: Final = 12
SUFFIXES: Final = (".png", ".svg")
_COLOURS: Final = {
    "limit": "tab:red",
    "would_limit": "tab:orange",
    "noted": "tab:olive",
    "possible": "tab:orange",
    "released": "tab:green",
}
_WORDS: Final = {"limit": "fires", "would_limit": "would limit"}
_SHADES: Final = {"pending": "tab:orange", "limited": "tab:red", "exempt": "tab:green", "fault": "tab:purple"}


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


def draw(curves: Sequence[Curve], path: str, *, title: str) -> int:
    """Write the picture (PNG or SVG by its suffix); how many links were left out. Raises EnvironmentFault."""
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    shown = curves[:MAX_PANELS]
    figure = Figure(figsize=(12, 1.2 + 2.8 * max(1, len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)  # a $ in a name is no formula
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)
    for axis, curve in zip(axes[:, 0], shown, strict=False):
        _panel(axis, curve)
    axes[-1, 0].set_xlabel("seconds since the recording's first tick")
    try:
        figure.savefig(path, format=Path(path).suffix[1:])
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror or error}", operation="plot") from error
    return len(curves) - len(shown)


def _panel(axis: Axes, curve: Curve) -> None:
    named: set[str] = set()

    def once(label: str) -> str | None:
        """The legend names everything once."""
        new = label not in named
        named.add(label)
        return label if new else None

    times = [_seconds(t) for t0, t1, _ in curve.stretches for t in (t0, t1)]
    rates = [rate for t0, t1, size in curve.stretches for rate in [8e9 * size / (t1 - t0)] * 2]
    axis.plot(times, rates, linewidth=0.8, color="tab:blue", label="recorded rate")
    axis.plot(*_steps(curve.thresholds), linestyle="--", linewidth=0.8, color="grey", label="threshold")
    for shade in curve.phases:
        span = _seconds(shade.since_ns), _seconds(shade.until_ns)
        axis.axvspan(*span, color=_SHADES[shade.phase], alpha=0.12, linewidth=0, label=once(shade.phase))
    if curve.limits:
        axis.plot(*_steps(curve.limits), linewidth=1.2, color="tab:red", label="limit")
    for mark in curve.marks:
        colour = _COLOURS.get(mark.what)
        if colour is not None:
            axis.axvline(_seconds(mark.t_ns), color=colour, linewidth=1, label=once(_WORDS.get(mark.what, mark.what)))
    axis.set_ylim(bottom=0)
    axis.set_ylabel("bit/s")
    axis.set_title(curve.name, loc="left", fontsize="medium", parse_math=False)
    axis.legend(loc="upper right", fontsize="x-small")


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
