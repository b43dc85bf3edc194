"""`limiterctl request`, `requests`, `approve`, `deny`: the life of an increase request.

Anyone in the control group may ask; the daemon records who did (from the kernel, not from the text), when, and the evidence
of the limit that stood. Approving turns the request into an override record.
"""

from __future__ import annotations

import argparse
import time
from typing import Final

from limiterd.core.errors import EXIT_DONE
from limiterd.core.units import NS_PER_SECOND, parse_rate
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import APPLY_TIMEOUT_S, Data, ask, json_argument, number, record, records, texts
from limiterd.ctl.effect import report, rows
from limiterd.ctl.format import NOTHING, PLAIN, Cell, Column, Palette, clean
from limiterd.ctl.override import checked_grant, grant_arguments, observe, until_arguments
from limiterd.ctl.terminal import say, say_json, terminal
from limiterd.ctl.values import future, rate_bps, sudo_user
from limiterd.serve import messages as msg

STATE_STYLES: Final = {"pending": "yellow", "approved": "green", "denied": "red"}
COLUMNS: Final = (
    Column("ID"),
    Column("STATE"),
    Column("LINK"),
    Column("WANTS"),
    Column("UNTIL"),
    Column("ASKED"),
    Column("BY", least=6),
)


def request_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `request`."""
    parser.add_argument("--interface", required=True, metavar="IFACE", help="the link that is, or would be, limited")
    parser.add_argument(
        "--rate", type=rate_bps, metavar="R", help="the rate that you need, like 2gbit (default: no limit at all)"
    )
    parser.add_argument(
        "--until",
        required=True,
        type=future,
        metavar="TIME",
        help="until when: a date, a time with a zone, or a duration such as 24h or 7d",
    )
    parser.add_argument("--reason", required=True, metavar="TEXT", help="what it is for: whoever approves it reads this")
    json_argument(parser)


def request(ns: argparse.Namespace) -> int:
    """Submit a request."""
    wish = msg.AddRequest(interface=ns.interface, until=ns.until, reason=ns.reason, rate_bps=ns.rate)
    data = ask(ns, wish, timeout_s=APPLY_TIMEOUT_S)
    item = record(data.get("request")) or data
    name = clean(item.get("id", ""))
    report(ns, data, (), f"request {name} submitted; an administrator answers it with: limiterctl approve {name}")
    return EXIT_DONE


def requests_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `requests`."""
    parser.add_argument("--all", action="store_true", help="those that were answered too")
    json_argument(parser)


def requests(ns: argparse.Namespace) -> int:
    """List the requests."""
    data = ask(ns, msg.ListRequests())
    if ns.json:
        say_json(data)
        return EXIT_DONE
    screen = terminal()
    say(render(data, everything=ns.all, width=screen.width, palette=screen.palette, now=time.time()))
    return EXIT_DONE


def approve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `approve`."""
    parser.add_argument("id", metavar="ID")
    grant_arguments(parser, "default: what the request asks for")
    until_arguments(parser, required=False)
    parser.add_argument("--reason", metavar="TEXT", default="", help="why it was granted (default: the request's own reason)")
    json_argument(parser)


def approve(ns: argparse.Namespace) -> int:
    """Turn a request into an override, then say what became of its link."""
    checked_grant(ns, "approve", required=False)
    before, started = rows(ns), time.monotonic()
    approval = msg.ApproveRequest(
        id=ns.id,
        exempt=bool(ns.exempt),
        threshold_bps=parse_rate(ns.threshold) if ns.threshold else None,
        limit_bps=parse_rate(ns.limit) if ns.limit else None,
        until="never" if ns.never else ns.until or None,
        reason=ns.reason or "",
        approved_by=sudo_user() or "",  # the daemon sees root, and would write down that root approved it
    )
    data = ask(ns, approval, timeout_s=APPLY_TIMEOUT_S)
    effects = observe(ns, before, started, ns.id, texts(data.get("in_force_on")))
    report(ns, data, effects, f"request {clean(ns.id)} approved")
    return EXIT_DONE


def deny_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `deny`."""
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why not: whoever asked reads this")
    json_argument(parser)


def deny(ns: argparse.Namespace) -> int:
    """Turn a request down."""
    data = ask(ns, msg.DenyRequest(id=ns.id, reason=ns.reason), timeout_s=APPLY_TIMEOUT_S)
    report(ns, data, (), f"request {clean(ns.id)} denied")
    return EXIT_DONE


def render(data: Data, *, everything: bool = False, width: int = 80, palette: Palette = PLAIN, now: float = 0.0) -> list[str]:
    """The requests as lines of at most width columns: the pending ones, or everything."""
    items = records(data.get("requests", data.get("data")))
    shown = [item for item in items if everything or item.get("state", "pending") == "pending"]
    if not shown:
        answered = len(items)
        return ["no request waits for an answer" + (f" ({fmt.plural(answered, 'answered one')}: --all)" if answered else "")]
    head, *rows_shown = fmt.table(COLUMNS, [_row(item, now) for item in shown], width, palette)
    lines = [head]
    for row, item in zip(rows_shown, shown, strict=True):
        lines += [row, *(palette.paint(line, "dim") for line in fmt.wrap(_story(item), width, "    "))]
    return lines


def _met(item: Data) -> str:
    """The limit that stood when it was asked, and what had led to it."""
    evidence = record(item.get("evidence"))
    link, firing = record(evidence.get("link")), record(evidence.get("firing"))
    limit, mean = number(link.get("limit_bps")), number(firing.get("mean_bps"))
    if limit is None:
        return ""
    sent = f" after {fmt.span((number(firing.get('span_ns')) or 0) / NS_PER_SECOND)} at {fmt.rate(mean)}" if mean else ""
    return f"filed under a limit of {fmt.rate(limit)}{sent}"


def _story(item: Data) -> str:
    """What it is for, the limit that was met, and what was answered."""
    parts = [part for part in (clean(item.get("reason", "")), _met(item)) if part]
    if item.get("decided_by"):
        answer = "; ".join(clean(item[key]) for key in ("granted", "decision_reason") if item.get(key))
        parts.append(f"{clean(item.get('state', ''))} by {clean(item['decided_by'])}{f': {answer}' if answer else ''}")
    return "; ".join(parts)


def _seconds(wall_ns: object) -> float | None:
    known = number(wall_ns)
    return None if known is None else known / NS_PER_SECOND


def _row(item: Data, now: float) -> list[Cell]:
    state = clean(item.get("state", "pending"))
    rate = number(item.get("rate_bps"))
    until = _seconds(item.get("until_wall_ns"))
    return [
        Cell(clean(item.get("id", "")), "bold"),
        Cell(state, STATE_STYLES.get(state, "")),
        Cell(clean(item.get("interface", ""))),
        Cell("no limit" if rate is None else fmt.rate(rate)),
        Cell(NOTHING if until is None else f"{fmt.local(until):%Y-%m-%d}"),
        Cell(fmt.brief(_seconds(item.get("filed_wall_ns")), now)),
        Cell(clean(item.get("user") or f"uid {item.get('uid', '?')}")),
    ]
