"""`limiterctl override add | extend | list | revoke`: the records of approved increase requests.

`add`, `extend` and `revoke` go through the daemon, which keeps its own records; the files of the operator are listed beside them
and never written. A record is sent as the YAML file would say it, and the daemon judges it by the same rules.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from typing import Final

from limiterd.core.errors import EXIT_DONE, PeerError
from limiterd.core.keys import keys_of
from limiterd.core.kinds import ListOf
from limiterd.core.model import Override
from limiterd.core.units import exact_wall
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import APPLY_TIMEOUT_S, Data, ask, common_arguments, json_argument, number, records, texts
from limiterd.ctl.effect import PATIENCE_S, Rows, await_effect, report, rows
from limiterd.ctl.format import NOTHING, PLAIN, Cell, Column, Palette, clean
from limiterd.ctl.terminal import say, say_json, terminal
from limiterd.ctl.values import future, rate_text, sudo_user
from limiterd.serve import messages as msg

STATE_STYLES: Final = {"active": "cyan", "pending": "yellow", "expired": "dim", "other-host": "dim"}
COLUMNS: Final = (
    Column("ID", least=8),
    Column("STATE"),
    Column("INTERFACES", least=6),
    Column("ALLOWS", least=10),
    Column("EXPIRES"),
)


def override_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `override` and of what follows it."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    add = actions.add_parser("add", help="add a record and apply it", description="Add an override record and apply it.")
    _add_arguments(add)
    listing = actions.add_parser("list", help="every record, with its source and state", description="List every override.")
    revoke = actions.add_parser(
        "revoke", help="remove a record", description="Revoke a record made by `override add` or `approve`."
    )
    revoke.add_argument("id", metavar="ID")
    revoke.add_argument("--reason", metavar="TEXT", default="", help="why, for the audit trail")
    longer = actions.add_parser(
        "extend", help="let a record end later, or earlier", description="Change when a record of the daemon's own ends."
    )
    longer.add_argument("id", metavar="ID")
    until_arguments(longer)
    longer.add_argument("--reason", metavar="TEXT", default="", help="why, for the audit trail")
    for action in (add, listing, revoke, longer):
        json_argument(action)
        common_arguments(action, nested=True)


_APART: Final = frozenset({"action", "threshold", "limit", "not_before", "expires"})
"""Keys of a record whose options are made by hand below."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each key of a record: core/model/overrides.py has their names and meanings."""
    for key in keys_of(Override).values():
        if key.name in _APART:
            continue
        many = isinstance(key.kind, ListOf)
        meaning = key.meaning.replace("`", "") + ("; may be repeated" if many else "")
        parser.add_argument(
            key.option,
            dest=key.name,
            required=key.required and key.name != "approved_by",  # the daemon knows who asks
            action="append" if many else "store",
            metavar="GLOB" if many else "ID" if key.name == "id" else "TEXT",
            help=meaning,
        )
    grant_arguments(parser)
    parser.add_argument("--from", dest="not_before", type=future, metavar="TIME", help="when it begins (default: now)")
    until_arguments(parser)


def grant_arguments(parser: argparse.ArgumentParser, rule: str = "one is required") -> None:
    """What an override allows: --exempt, or --threshold and/or --limit."""
    group = parser.add_argument_group(f"what it allows ({rule})")
    group.add_argument("--exempt", action="store_true", help="no limit at all")
    group.add_argument("--threshold", type=rate_text, metavar="R", help="limit only from this rate on, like 5gbit")
    group.add_argument("--limit", type=rate_text, metavar="R", help="limit to this rate instead of the policy's, like 1gbit")


def until_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """When an override ends: --until or --never."""
    end = parser.add_mutually_exclusive_group(required=required)
    end.add_argument(
        "--until",
        type=future,
        metavar="TIME",
        help="when it ends: 2026-12-31 (00:00 UTC), 2026-12-31T18:00:00Z, or 24h, 7d, 1h30m",
    )
    end.add_argument("--never", action="store_true", help="never expires")


def checked_grant(ns: argparse.Namespace, parser_name: str, *, required: bool = True) -> None:
    """End with a usage error where the flags contradict one another, or (required) allow nothing."""
    rates = bool(ns.threshold or ns.limit)
    if (ns.exempt and rates) or (required and not ns.exempt and not rates):
        raise SystemExit(usage(parser_name, "give either --exempt, or --threshold R and/or --limit R"))


def usage(parser_name: str, message: str) -> int:
    """Print a usage error as argparse does; its exit code."""
    parser = argparse.ArgumentParser(prog=f"limiterctl {parser_name}", usage=f"limiterctl {parser_name} --help")
    parser.error(message)


def override(ns: argparse.Namespace) -> int:
    """Carry out one of the actions."""
    return {"add": add, "extend": extend, "list": show, "revoke": revoke}[ns.action](ns)


def the_record(ns: argparse.Namespace) -> dict[str, object]:
    """The record as an override file would have it."""
    fields = {name: getattr(ns, name, None) for name in keys_of(Override)} | {
        "action": "exempt" if ns.exempt else "limit",
        "expires": "never" if ns.never else ns.until.after(ns.not_before),
        "approved_by": ns.approved_by or sudo_user(),
    }
    return {key: value for key, value in fields.items() if value is not None}


def add(ns: argparse.Namespace) -> int:
    """Add a record, then say what became of the links that it matches."""
    checked_grant(ns, "override add")
    _check_times(ns)
    before, started = rows(ns), time.monotonic()
    try:
        data = ask(ns, msg.AddOverride(record=the_record(ns)), timeout_s=APPLY_TIMEOUT_S)
    except PeerError as error:
        raise PeerError(by_option(str(error)), exit_code=error.exit_code) from error
    effects = observe(ns, before, started, ns.id, texts(data.get("in_force_on")))
    report(ns, data, effects, f"override {clean(ns.id)} added")
    return EXIT_DONE


def _check_times(ns: argparse.Namespace) -> None:
    """End with a usage error where the end does not come after the begin."""
    if ns.never or ns.not_before is None:
        return
    begin, end = ns.not_before, ns.until.after(ns.not_before)
    if end.wall_ns <= begin.wall_ns:
        shown = f"--until {exact_wall(end.wall_ns)} must come after --from {exact_wall(begin.wall_ns)}"
        raise SystemExit(usage("override add", f"{shown}; a duration like 7d counts from --from"))


def by_option(text: str) -> str:
    """A message about a record's keys, with limiterctl's options in place of the keys that begin its lines."""
    for key in keys_of(Override).values():
        text = re.sub(rf"(?m)^(override \S+: )?{key.name}(?:\[\d+\])?: ", rf"\g<1>{key.option}: ", text)
    return text


def extend(ns: argparse.Namespace) -> int:
    """Let a record end at another time."""
    until = "never" if ns.never else str(ns.until)
    data = ask(ns, msg.ExtendOverride(id=ns.id, until=until, reason=ns.reason), timeout_s=APPLY_TIMEOUT_S)
    report(ns, data, [], f"override {clean(ns.id)} extended")
    return EXIT_DONE


def observe(ns: argparse.Namespace, before: Rows, started: float, record_id: str, links: Sequence[str]) -> list[str]:
    """Wait until the links on which a new record is in force show it; one sentence for each that changed, or should have."""
    links = [name for name in links if name in before]
    limited = [name for name in links if before[name].get("phase") in ("limited", "fault")]

    def unchanged(now: Rows) -> list[str]:
        return [name for name in limited if _shape(now.get(name, {})) == _shape(before[name])]

    def settled(now: Rows) -> bool:
        return not unchanged(now) and all(now.get(name, {}).get("override") == record_id for name in links)

    return (
        await_effect(ns, before, started, settled, late=lambda now: [_still(now[name]) for name in unchanged(now)])
        if links
        else []
    )


def _still(row: Data) -> str:
    name, limit = clean(row.get("interface", "")), number(row.get("limit_bps"))
    state = f"limited to {fmt.rate(limit)}" if limit is not None else clean(row.get("phase", ""))
    return f"{name}: still {state} after {PATIENCE_S:g} s; see: limiterctl explain {name}"


def _shape(row: Data) -> tuple[object, object]:
    return row.get("phase"), row.get("limit_bps")


def revoke(ns: argparse.Namespace) -> int:
    """Take a record away. Nothing is limited retroactively: detection starts afresh under the policy."""
    before, started = rows(ns), time.monotonic()
    held = [name for name, row in before.items() if row.get("override") == ns.id]
    data = ask(ns, msg.RevokeOverride(id=ns.id, reason=ns.reason or ""), timeout_s=APPLY_TIMEOUT_S)
    effects = await_effect(ns, before, started, lambda now: all(now.get(name, {}).get("override") != ns.id for name in held))
    report(ns, data, effects, f"override {clean(ns.id)} revoked")
    return EXIT_DONE


def show(ns: argparse.Namespace) -> int:
    """List every record."""
    data = ask(ns, msg.ListOverrides())
    if ns.json:
        say_json(data)
        return EXIT_DONE
    screen = terminal()
    say(render(data, width=screen.width, palette=screen.palette, now=time.time()))
    return EXIT_DONE


def allows(item: Data) -> str:
    """What a record allows, in a few words."""
    if item.get("action") == "exempt":
        return "no limit"
    parts = [
        f"{verb} {_rate(item, key)}" for verb, key in (("up to", "threshold"), ("limit", "limit")) if _rate(item, key) != NOTHING
    ]
    return ", ".join(parts) or NOTHING


def _rate(item: Data, key: str) -> str:
    value = item.get(f"{key}_bps", item.get(key))
    if value is None:
        return NOTHING
    known = number(value)
    return fmt.rate(known) if known is not None else clean(value)


def _expiry(item: Data, now: float) -> str:
    value = item.get("expires")
    at = fmt.moment(value)
    if at is None:
        return "never"
    return f"{fmt.local(at):%Y-%m-%d %H:%M %Z} ({fmt.relative(at, now)})"


def render(data: Data, *, width: int = 80, palette: Palette = PLAIN, now: float = 0.0) -> list[str]:
    """Every record as lines of at most width columns."""
    items = records(data.get("overrides", data.get("data")))
    if not items:
        return ["no overrides: every policy applies as it is written"]
    head, *rows_shown = fmt.table(COLUMNS, [_row(item, now) for item in items], width, palette)
    lines = [head]
    for row, item in zip(rows_shown, items, strict=True):
        lines += [row, *(palette.paint(line, "dim") for line in fmt.wrap(_story(item), width, "    "))]
    endless = [clean(item.get("id", "")) for item in items if fmt.moment(item.get("expires")) is None]
    if endless:
        lines += ["", *fmt.wrap(f"never expires: {', '.join(endless)}", width)]
    return lines


def _row(item: Data, now: float) -> list[Cell]:
    state = clean(item.get("state", ""))
    return [
        Cell(clean(item.get("id", "")), "bold"),
        Cell(state, STATE_STYLES.get(state, "")),
        Cell(clean(",".join(texts(item.get("interfaces"))))),
        Cell(allows(item)),
        Cell(_expiry(item, now)),
    ]


def _reach(effective: Sequence[str], links: Sequence[str]) -> str:
    """Where an active record is in force."""
    if effective:
        return f"in force on {clean(', '.join(effective))}"
    return f"another record goes before it on {clean(', '.join(links))}" if links else "no watched link matches it now"


def _story(item: Data) -> str:
    """Why there is this record, who approved it and where it lives."""
    parts = [clean(item.get("reason", "")), f"approved by {clean(item.get('approved_by', '?'))}"]
    begins = fmt.moment(item.get("not_before"))
    if item.get("state") == "pending" and begins is not None:
        parts.append(f"from {fmt.local(begins):%Y-%m-%d %H:%M %Z}")
    if item.get("hosts"):
        parts.append(f"hosts {clean(', '.join(texts(item.get('hosts'))))}")
    if item.get("state") == "active" and "effective_on" in item:
        parts.append(_reach(texts(item.get("effective_on")), texts(item.get("links"))))
    source = clean(item.get("source") or "")
    parts.append("kept by the daemon" if source == "state" else source)
    return "; ".join(part for part in parts if part)
