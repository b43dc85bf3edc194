"""`limiterctl explain IFACE`: why a link is in its phase, with the figures, in words that a tenant can follow.

In the order of the questions that people ask: what is it, what is wrong, why, who sent it, what lifts it. Figures and
sentences are the daemon's own; this file only sets them.
"""

from __future__ import annotations

import argparse
import pwd
import time
from collections.abc import Sequence
from typing import Final

from limiterd.core.errors import EXIT_DONE
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import Data, ask, figure, json_argument, number, record, records, texts
from limiterd.ctl.format import NOTHING, PHASE_STYLES, Cell, Column, Palette, clean
from limiterd.ctl.show_status import headline, link_detail, notices
from limiterd.ctl.terminal import Terminal
from limiterd.ctl.watch import repeated, show, watch_argument
from limiterd.serve import messages as msg

CHART_COLUMNS: Final = 60
TOP_FLOWS: Final = 5
FLOWS: Final = (
    Column("SENT", right=True),
    Column("SHARE", right=True),
    Column("TO", least=12),
    Column("FROM PORT", right=True),
)


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `explain`."""
    parser.add_argument("interface", metavar="IFACE", help="the link")
    watch_argument(parser)
    json_argument(parser)


def explain(ns: argparse.Namespace) -> int:
    """Print why, once or again and again."""
    return repeated(ns, lambda: _once(ns))


def _once(ns: argparse.Namespace) -> int:
    data = ask(ns, msg.Explain(interface=ns.interface))
    show(ns, data, lambda screen: render(data, screen))
    return EXIT_DONE


def render(data: Data, screen: Terminal, *, now: float | None = None) -> list[str]:
    """The explanation as lines of at most the screen's width. now is Unix seconds."""
    link = record(data.get("link"))
    at = now if now is not None else fmt.moment(data.get("wall")) or time.time()
    detail = link_detail(link, at, screen.width, screen.palette)
    # The detail's first lines are the headline, its last one points here.
    head = len(fmt.wrap(headline(link), screen.width))
    parts = [
        detail[:head],
        detail[head:-1],
        notices({key: data.get(key) for key in ("link", "faults", "overrides")}, at, screen.width, screen.palette)[1:],
        _listed("What to do about it", data.get("remedies"), screen),
        _seen(data, screen, at),
        _rule(data, screen.palette, screen.width),
        _who(data, screen.palette, screen.width),
        _before(data, screen, at),
        _listed(_lift_title(link), data.get("lift"), screen),
    ]
    return [line for part in parts if part for line in [*part, ""]][:-1]


# ---- what was seen -------------------------------------------------------------------------------------


def _pairs(value: object) -> list[tuple[int, int]]:
    items = value if isinstance(value, list | tuple) else []
    return [(int(figure(i[0])), int(figure(i[1]))) for i in items if isinstance(i, list | tuple) and len(i) == 2]


def _seen(data: Data, screen: Terminal, now: float) -> list[str]:
    firing = record(data.get("firing"))
    evidence = record(data.get("evidence"))
    held = _pairs(firing.get("samples")) or _pairs(evidence.get("samples"))
    samples = held if firing and held else _pairs(data.get("samples"))
    threshold = number(record(data.get("detect")).get("threshold_bps")) or 0
    if len(samples) < 2:
        return [] if not firing else [screen.palette.paint("What was seen", "bold"), *_firing(firing, screen, now)]
    rates = fmt.rates_over(samples, min(CHART_COLUMNS, screen.width - 12))
    peak = max((r for r in rates if r is not None), default=0.0)
    length_s = (samples[-1][0] - samples[0][0]) / 1e9
    title = "What was seen" if firing else "What is seen now"
    chart = fmt.sparkline(rates, top=max(peak, threshold), unicode=screen.unicode)
    style = PHASE_STYLES.get(str(record(data.get("link")).get("phase")), "")
    scale = f"the {fmt.span(length_s)} up to {'the firing' if firing else 'now'}; full height {fmt.rate(max(peak, threshold))}"
    return [
        screen.palette.paint(title, "bold"),
        "  " + screen.palette.paint(chart, style),
        *fmt.wrap(scale, screen.width, "  "),
        *_firing(firing, screen, now),
    ]


def _firing(firing: Data, screen: Terminal, now: float) -> list[str]:
    if not firing:
        return []
    when = fmt.moment(firing.get("wall") or firing.get("at"))
    sentence = (
        f"fired{' ' + fmt.both(when, now) if when is not None else ''} by the {clean(firing.get('reason', 'sustained'))} rule: "
        f"mean {fmt.rate(number(firing.get('mean_bps')))}, peak {fmt.rate(number(firing.get('peak_bps')))}, "
        f"threshold {fmt.rate(number(firing.get('threshold_bps')))}"
    )
    return fmt.wrap(sentence, screen.width, "  ")


# ---- the rule --------------------------------------------------------------------------------------------


def _rule(data: Data, palette: Palette, width: int) -> list[str]:
    conditions = records(data.get("conditions"))
    if not conditions:
        return []
    held = sum(bool(c.get("holds")) for c in conditions)
    title = f"The rule: a limit is due when all of these hold at once ({held} of {len(conditions)} do)"
    if data.get("firing"):
        title = "The rule, at the firing: a limit is due when all of these hold at once"
    lines = [palette.paint(line, "bold") for line in fmt.wrap(title, width)]
    for condition in conditions:
        holds = bool(condition.get("holds"))
        mark = palette.paint("yes" if holds else "no ", "yellow" if holds else "green")
        name = clean(condition.get("name", ""))
        text = f"{clean(condition.get('is', ''))}; needs {clean(condition.get('needs', ''))}"
        first, *rest = fmt.wrap(text, width, " " * 14)
        lines += [f"  {mark}  {fmt.pad(name, 6)} {first.strip()}", *rest]
    return lines


# ---- who sent it -----------------------------------------------------------------------------------------


def _who(data: Data, palette: Palette, width: int) -> list[str]:
    evidence = record(data.get("evidence"))
    if not evidence:
        return []
    title = "Who sent it: the largest flows of that window"
    explained = number(evidence.get("explained"))
    if explained is not None:
        title += f" (sockets of this machine explain {explained:.0%} of the bytes)"
    problem = clean(evidence.get("problem") or "")
    notes = [f"not known: {problem}" if problem else "", *texts(evidence.get("notes"))]
    return [
        *(palette.paint(line, "bold") for line in fmt.wrap(title, width)),
        *("  " + line for line in _flows(records(evidence.get("flows"))[:TOP_FLOWS], palette, width - 2)),
        *(palette.paint(line, "dim") for note in notes if note for line in fmt.wrap(clean(note), width, "  ")),
    ]


def _flows(flows: Sequence[Data], palette: Palette, width: int) -> list[str]:
    if not flows:
        return ["no TCP socket of this machine is known to have sent by this link"]
    head, *rows = fmt.table(FLOWS, [_flow(flow) for flow in flows], width, palette)
    return [head, *(line for row, flow in zip(rows, flows, strict=True) for line in (row, f"    by {process(flow)}"))]


def _flow(flow: Data) -> list[Cell]:
    part = number(flow.get("share"))
    return [
        Cell(fmt.size(figure(flow.get("bytes")))),
        Cell(f"{part:.0%}" if part is not None else NOTHING),
        Cell(_address(flow)),
        Cell(clean(flow.get("local_port", NOTHING))),
    ]


def _address(flow: Data) -> str:
    host, port = clean(flow.get("remote", "?")), clean(flow.get("remote_port", "?"))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_UNSEEN: Final = {"not permitted": "a process that limiterd is not permitted to see", "gone": "a process that is gone"}


def process(flow: Data) -> str:
    """The process of a flow in one cell: name, pid, user, unit; or why it is not known."""
    owner = flow.get("process")
    who = record(owner)
    uid = who.get("uid") if who.get("uid") is not None else flow.get("uid")
    facts = [
        f"pid {clean(who['pid'])}" if who.get("pid") is not None else "",
        _user(uid),
        clean(who.get("unit") or str(who.get("cgroup") or "").rstrip("/")),
    ]
    known = ", ".join(fact for fact in facts if fact)
    name = clean(who.get("name") or _UNSEEN.get(str(owner), "a process that is not known"))
    return f"{name} ({known})" if known else name


def _user(uid: object) -> str:
    """A uid with this machine's name for it."""
    if not isinstance(uid, int):
        return ""
    try:
        return f"user {clean(pwd.getpwuid(uid).pw_name)}, uid {uid}"
    except (KeyError, OverflowError):
        return f"uid {uid}"


# ---- what lifts it -----------------------------------------------------------------------------------------


def _lift_title(link: Data) -> str:
    return "What lifts the limit that is due" if link.get("phase") in ("fault", "absent") else "What lifts it"


def _listed(title: str, ways: object, screen: Terminal) -> list[str]:
    """Sentences of the daemon's as a list with a title; nothing where there are none."""
    lines = [line for way in texts(ways) for line in fmt.wrap(clean(way), screen.width, "    ", first="  - ")]
    return [screen.palette.paint(title, "bold"), *lines] if lines else []


# ---- what was before ---------------------------------------------------------------------------------------


def _before(data: Data, screen: Terminal, now: float) -> list[str]:
    """The last firing, where it is not what the link is limited for now: told as what it is, the past."""
    last = record(data.get("last_firing"))
    if not last or record(data.get("firing")):
        return []
    when = fmt.both(fmt.moment(last.get("at")), now)
    text = f"{when}: {clean(last.get('text') or last.get('reason') or 'no more is known')}"
    return [screen.palette.paint("The last firing, which limits nothing now", "bold"), *fmt.wrap(text, screen.width, "  ")]
