"""Draws rate, threshold, limit and what happened over time, with matplotlib (the extra limiterd[plot])."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
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


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at an instant."""

    t_ns: int
    what: str


@dataclass(frozen=True, slots=True)
class Span:
    """A limit that stood."""

    since_ns: int
    until_ns: int
    rate_bps: int


@dataclass(frozen=True, slots=True)
class Curve:
    """One link: (t0_ns, t1_ns, bytes) stretches, its threshold, the limits that stood and what happened."""

    name: str
    stretches: tuple[tuple[int, int, int], ...]
    threshold_bps: int
    limits: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()


def require() -> None:
    """Make sure that matplotlib is there. Raises EnvironmentFault that says how to get it."""
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "--plot needs matplotlib, which is not installed; it comes with the extra limiterd[plot] "
            "(pip install '.[plot]' in the checkout) or as your distribution's python3-matplotlib",
            operation="plot",
        )


def draw(curves: Sequence[Curve], path: str, *, first_ns: int, title: str) -> int:
    """Write the picture (PNG or SVG by its suffix); how many links were left out. Raises EnvironmentFault."""
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    shown = curves[:MAX_PANELS]
    figure = Figure(figsize=(12, 1.2 + 2.8 * max(1, len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)
    for axis, curve in zip(axes[:, 0], shown, strict=False):
        _panel(axis, curve, first_ns)
    axes[-1, 0].set_xlabel("seconds since the recording's first tick")
    try:
        figure.savefig(path, format=Path(path).suffix[1:])
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror or error}", operation="plot") from error
    return len(curves) - len(shown)


def _panel(axis: Axes, curve: Curve, first_ns: int) -> None:
    def seconds(t_ns: int) -> float:
        return (t_ns - first_ns) / NS_PER_SECOND

    times = [seconds(t) for t0, t1, _ in curve.stretches for t in (t0, t1)]
    rates = [rate for t0, t1, size in curve.stretches for rate in [8e9 * size / (t1 - t0)] * 2]
    axis.plot(times, rates, linewidth=0.8, color="tab:blue", label="recorded rate")
    axis.axhline(curve.threshold_bps, linestyle="--", linewidth=0.8, color="grey", label="threshold")
    for i, span in enumerate(curve.limits):
        left, right = seconds(span.since_ns), seconds(span.until_ns)
        axis.axvspan(left, right, color="tab:red", alpha=0.12, label="limited" if i == 0 else None)
        axis.hlines(span.rate_bps, left, right, color="tab:red", linewidth=1.2, label="limit" if i == 0 else "")
    told: set[str] = set()
    for mark in curve.marks:
        colour = _COLOURS.get(mark.what)
        if colour is not None:
            label = _WORDS.get(mark.what, mark.what) if mark.what not in told else None
            axis.axvline(seconds(mark.t_ns), color=colour, linewidth=1, label=label)
            told.add(mark.what)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("bit/s")
    axis.set_title(curve.name.replace("$", r"\$"), loc="left", fontsize="medium")
    axis.legend(loc="upper right", fontsize="x-small")
