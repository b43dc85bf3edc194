"""Which rows `limiterctl status` shows, in which order, and the lines above them.

Problems stand first; links that conform are folded into one line where more than FOLD_ABOVE rows would be shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from limiterd.ctl import format as fmt
from limiterd.ctl.connect import Data, figure, number
from limiterd.ctl.format import clean

PHASES: Final = ("fault", "limited", "pending", "absent", "exempt", "conforming")
"""In the order of the rows: what somebody may have to act on stands first."""

FOLD_ABOVE: Final = 20


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts eth2 before eth10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part)


def ordered(links: Iterable[Data]) -> list[Data]:
    """The rows, problems first, then by name."""
    rank = {phase: place for place, phase in enumerate(PHASES)}
    return sorted(links, key=lambda link: (rank.get(str(link.get("phase")), -1), natural(str(link.get("interface", "")))))


def folded(links: Sequence[Data]) -> tuple[list[Data], str]:
    """The rows that are shown where not all are asked for, and a line that stands for the others ("" where there are none)."""
    if len(links) <= FOLD_ABOVE:
        return list(links), ""
    hidden = [link for link in links if link.get("phase") == "conforming"]
    if not hidden:
        return list(links), ""
    fastest = max(hidden, key=lambda link: figure(link.get("rate_bps")))
    name, rate = clean(fastest.get("interface", "")), fmt.rate(number(fastest.get("rate_bps")))
    line = f"{fmt.plural(len(hidden), 'conforming link')} not shown, the fastest {name} at {rate} (--all)"
    return [link for link in links if link.get("phase") != "conforming"], line


def head(data: Data, links: Sequence[Data], now: float) -> list[str]:
    """What runs here and for how long, how many links are in which phase, and each policy in words."""
    started = fmt.moment(data.get("started"))
    up = f", up {fmt.span(max(0.0, now - started))}" if started is not None else ""
    counts = Counter(str(link.get("phase")) for link in links)
    phases = ", ".join(f"{counts[phase]} {phase}" for phase in PHASES if counts[phase])
    name = f"limiterd {clean(data.get('version', ''))} on {clean(data.get('host', ''))}{up}"
    return [f"{name}: {fmt.plural(len(links), 'link')}: {phases}", *policies(links)]


def policies(links: Iterable[Data]) -> list[str]:
    """Each policy that applies unchanged to a link, in words, in the order of the rows."""
    lines: dict[str, str] = {}
    for link in links:
        threshold, window, limit = (number(link.get(key)) for key in ("threshold_bps", "window_s", "policy_limit_bps"))
        if threshold is None or window is None or link.get("override"):
            continue
        does = f"limited to {fmt.rate(limit)}" if link.get("mode") == "enforce" else "only reported (observe)"
        policy = clean(link.get("policy", ""))
        lines.setdefault(policy, f"{policy}: {fmt.rate(threshold)} or more for more than {fmt.span(window)} is {does}")
    return list(lines.values())
