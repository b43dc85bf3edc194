"""`limiterctl status`: what runs here, what is not as it should be, in sentences, then one row a link (status_rows).

What is printed is what the daemon says, and it says `limited` only of what it read back from the kernel. The table fits
80 columns; what does not fit is in `status IFACE` and in --json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from limiterd.core.errors import EXIT_DONE, EXIT_FAILED
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import Data, ask, figure, json_argument, number, record, records, texts
from limiterd.ctl.format import NOTHING, PHASE_STYLES, PLAIN, Cell, Column, Palette, clean
from limiterd.ctl.status_rows import FOLD_ABOVE, PHASES, folded, head, ordered
from limiterd.ctl.terminal import complain
from limiterd.ctl.watch import repeated, show, watch_argument
from limiterd.serve import messages as msg

EXPIRED_LATELY_S: Final = 7 * 86_400
EXPIRES_SOON_S: Final = 86_400
COLUMNS: Final = (
    Column("INTERFACE"),
    Column("PHASE"),
    Column("RATE", right=True),
    Column("LIMIT/TIMER"),
    Column("SINCE"),
    Column("STRIKES", right=True, short="STR"),
    Column("OVERRIDE", least=10),
    Column("REASON"),
)


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `status`."""
    parser.add_argument("interface", nargs="?", metavar="IFACE", help="show this link in detail")
    parser.add_argument(
        "--all", action="store_true", help=f"show conforming links too where there are more than {FOLD_ABOVE} rows"
    )
    parser.add_argument("--phase", choices=PHASES, action="append", help="show only links in this phase (may be repeated)")
    watch_argument(parser)
    json_argument(parser)


def status(ns: argparse.Namespace) -> int:
    """Print the status once, or again and again."""
    return repeated(ns, lambda: _once(ns))


def _once(ns: argparse.Namespace) -> int:
    data = ask(ns, msg.GetStatus(interface=ns.interface or None))
    show(
        ns,
        data,
        lambda screen: render(
            data, interface=ns.interface, width=screen.width, palette=screen.palette, every=ns.all, phases=ns.phase or ()
        ),
    )
    if ns.interface and not records(data.get("links")):
        complain(unwatched(ns.interface))
        return EXIT_FAILED
    return EXIT_DONE


def unwatched(interface: str) -> str:
    """What to say of a link that the daemon does not know."""
    return f"{clean(interface)} is not watched: no policy's `interfaces` matches it (limiterctl status lists those that are)"


# ---- text ------------------------------------------------------------------------------------------


def render(
    data: Data,
    *,
    interface: str | None = None,
    width: int = 80,
    palette: Palette = PLAIN,
    now: float | None = None,
    every: bool = False,
    phases: Sequence[str] = (),
) -> list[str]:
    """Status as lines of at most width columns: head, problems, table; or one link in detail. now is Unix seconds.

    Without every and phases, conforming links are folded into one line where there are many rows.
    """
    at = now if now is not None else fmt.moment(data.get("wall")) or time.time()
    links = records(data.get("links"))
    notes = notices(data, at, width, palette)
    if interface is not None:
        detail = [line for link in links for line in link_detail(link, at, width, palette)]
        return [*detail, *notes] or [f"no link {clean(interface)}"]
    if not links:
        return ["No link is watched: no policy's `interfaces` matches a link of this machine.", *notes]
    rows = ordered(link for link in links if not phases or link.get("phase") in phases)
    shown, rest = (rows, "") if every or phases else folded(rows)
    top = [line for text in head(data, links, at) for line in fmt.wrap(text, width, "  ", first="")]
    table = fmt.table(COLUMNS, [_row(link, at) for link in shown], width, palette) if shown else []
    below = fmt.wrap(rest, width, "  ", first="") if rest else []
    lines = ["", *table, *below] if rows else ["", f"No link is in phase {' or '.join(phases)}."]
    return [*top, *notes, *lines]


def _row(link: Data, now: float) -> list[Cell]:
    phase = clean(link.get("phase", ""))
    strikes = int(figure(link.get("strikes")))
    return [
        Cell(clean(link.get("interface", "")), "bold"),
        Cell(phase, PHASE_STYLES.get(phase, "")),
        Cell(NOTHING if phase == "absent" else fmt.rate(number(link.get("rate_bps")))),
        Cell(progress(link), "yellow" if phase == "pending" else ""),
        Cell(fmt.brief(fmt.moment(link.get("since")), now)),
        Cell(str(strikes) if strikes else NOTHING),
        Cell(clean(link.get("override") or NOTHING)),
        Cell(clean(link.get("reason") or NOTHING)),
    ]


def _pending(link: Data) -> str:
    window = number(link.get("window_s"))
    held = f"{figure(link.get('pending_seconds')):.1f}s"
    return f"{held} of {fmt.span(window)}" if window else held


def _limited(link: Data) -> str:
    actual, wanted = number(link.get("limit_bps")), number(link.get("limit_wanted_bps"))
    return fmt.rate(actual) if wanted in (None, actual) else f"{fmt.rate(actual)}!"


def _due(link: Data) -> str:
    wanted = number(link.get("limit_wanted_bps"))
    return f"due {fmt.rate(wanted)}" if wanted is not None else NOTHING


def _idle(link: Data) -> str:
    return "observe" if link.get("mode") == "observe" else NOTHING


_PROGRESS: Final[Mapping[str, Callable[[Data], str]]] = {
    "pending": _pending,
    "limited": _limited,
    "fault": _due,
    "absent": _due,
    "exempt": lambda _: "none",
    "conforming": _idle,
}


def progress(link: Data) -> str:
    """What is in force or under way on a link: its limit, the time that the excess has lasted, or why there is neither."""
    show = _PROGRESS.get(str(link.get("phase")))
    return show(link) if show is not None else NOTHING


# ---- one link ----------------------------------------------------------------------------------------


def headline(link: Data) -> str:
    """One sentence with a link's phase and what it means."""
    name = clean(link.get("interface", ""))
    show = _HEADLINES.get(str(link.get("phase")))
    return show(name, link) if show is not None else f"{name} is {clean(link.get('phase'))}."


def _headline_pending(name: str, link: Data) -> str:
    end = "will be limited" if link.get("mode") == "enforce" else "would be limited, were its policy not in observe mode,"
    return (
        f"{name} is pending: an excess over {fmt.rate(number(link.get('threshold_bps')))} has lasted {_pending(link)}; "
        f"{name} {end} if it goes on."
    )


def _headline_fault(name: str, link: Data) -> str:
    wanted = number(link.get("limit_wanted_bps"))
    due = f"to {fmt.rate(wanted)} " if wanted is not None else ""
    return f"{name} is in fault: a limit {due}is due and the kernel cannot be made so now; traffic is NOT limited as decided."


def _headline_absent(name: str, link: Data) -> str:
    wanted = number(link.get("limit_wanted_bps"))
    if wanted is None:
        return f"{name} is absent: a policy names it, and this machine has no such link now."
    return f"{name} is absent: it was limited, and will be limited to {fmt.rate(wanted)} again when it returns."


_HEADLINES: Final[Mapping[str, Callable[[str, Data], str]]] = {
    "absent": _headline_absent,
    "conforming": lambda n, _: f"{n} is conforming: no limit is in force, none is near.",
    "pending": _headline_pending,
    "limited": lambda n, k: f"{n} is limited to {fmt.rate(number(k.get('limit_bps')))} (read back from the kernel).",
    "exempt": lambda n, k: f"{n} is exempt: override {clean(k.get('override') or '?')} lifts its policy.",
    "fault": _headline_fault,
}


def rule(link: Data) -> str:
    """The policy in one line."""
    threshold, window = number(link.get("threshold_bps")), number(link.get("window_s"))
    text = f"{clean(link.get('policy', ''))} ({clean(link.get('mode', ''))})"
    if threshold is not None and window is not None:
        text += f": {fmt.rate(threshold)} or more for more than {fmt.span(window)}"
        limit = number(link.get("policy_limit_bps"))
        if limit is not None:
            text += f" is limited to {fmt.rate(limit)}"
        if link.get("override"):
            text += f", as override {clean(link['override'])} has it" if link.get("phase") != "exempt" else ", were it not exempt"
    return text


def link_detail(link: Data, now: float, width: int, palette: Palette) -> list[str]:
    """One link, a line a fact."""
    phase = str(link.get("phase"))
    ifindex = int(figure(link.get("ifindex")))
    pairs = [
        ("policy", rule(link)),
        ("rate now", "" if phase == "absent" else fmt.rate(number(link.get("rate_bps")))),
        ("sent", "" if number(link.get("tx_bytes")) is None else fmt.size(figure(link.get("tx_bytes")))),
        ("since", "" if link.get("since") is None else fmt.both(fmt.moment(link.get("since")), now)),
        ("reason", _reason(link)),
        ("strikes", _strikes(link)),
        ("override", clean(link.get("override") or "")),
        ("release", _release(link)),
        ("shaped", shaped(link)),
        ("exempt", _passing(link, "exempt_bps", "by the policy's `exempt` matches, outside the limit")),
        ("bypass", _passing(link, "bypass_bps", "beside the limit")),
        ("ifindex", str(ifindex) if ifindex else ""),
    ]
    head = fmt.wrap(headline(link), width)
    tail = fmt.wrap(f"Why, with the figures: limiterctl explain {clean(link.get('interface', ''))}", width, "  ")
    return [palette.paint(line, PHASE_STYLES.get(phase, "")) for line in head] + fmt.fields(pairs, width, palette) + tail


_RELEASE: Final[Mapping[str, str]] = {
    "approval": "only by an override or an operator",
    "auto": "by itself, once its hold is over and demand has ended",
}


def _release(link: Data) -> str:
    if link.get("manual"):
        return _RELEASE["approval"]
    return _RELEASE.get(str(link.get("release")), clean(link.get("release") or ""))


def _passing(link: Data, key: str, where: str) -> str:
    rate = number(link.get(key))
    return f"{fmt.rate(rate)} {where}" if rate else ""


def _strikes(link: Data) -> str:
    strikes = int(figure(link.get("strikes")))
    if not strikes:
        return ""
    return f"{strikes} (firings that led to a limit and are not forgotten yet)"


_REASONS: Final[Mapping[str, str]] = {
    "sustained": "sustained: too much for too long",
    "guard": "guard: more in bursts than the policy's allowance",
    "operator": "operator: set by hand",
    "adopted": "adopted: found in force at the start, with nothing on record that says why",
}


def _reason(link: Data) -> str:
    reason, note = clean(link.get("reason") or ""), clean(link.get("note") or "")
    text = _REASONS.get(reason, reason)
    text += f" by {clean(link['by'])}" if link.get("by") else ""
    return f"{text} ({note})" if note else text


def shaped(link: Data) -> str:
    """The shaped class's counters in one line; "" where there is none."""
    stats = record(link.get("shaped"))
    if not stats:
        return ""
    return (
        f"{fmt.size(figure(stats.get('sent_bytes')))} passed, {fmt.size(figure(stats.get('backlog_bytes')))} queued, "
        f"{fmt.count(figure(stats.get('drops')))} packets dropped, {fmt.count(figure(stats.get('overlimits')))} overlimits"
    )


# ---- what is not as it should be -----------------------------------------------------------------------


def notices(data: Data, now: float, width: int = 80, palette: Palette = PLAIN) -> list[str]:
    """Sentences on everything that a reader of the table must know, the gravest first; nothing when all is well."""
    found = [
        *_faults(data, now),
        *_config(data),
        *_paused(data),
        *_overrides(data, now),
        *_requests(data),
    ]
    lines: list[str] = []
    for style, label, text in found:
        head, *rest = fmt.wrap(text, width, "  ", first=f"{label}: ")
        lines.append(palette.paint(label, style) + head[len(label) :])
        lines.extend(rest)
    return ["", *lines] if lines else []


Notice = tuple[str, str, str]


def _faults(data: Data, now: float) -> Sequence[Notice]:
    return [_fault(fault, now) for fault in records(data.get("faults"))]


def _fault(fault: Data, now: float) -> Notice:
    style, label = ("yellow", "warning") if fault.get("warning") else ("alarm", "fault")
    where, message = clean(fault.get("interface") or "limiterd"), clean(fault.get("message", ""))
    said = message if message.startswith(where) else f"{where}: {message}"
    since = fmt.moment(fault.get("since"))
    when = f" (since {fmt.absolute(since)}, {fmt.relative(since, now)})" if since is not None else ""
    return style, f"{label} ({clean(fault.get('reason', ''))})", f"{said}{when}"


def _config(data: Data) -> Sequence[Notice]:
    errors = texts(record(data.get("config")).get("error"))
    lines = [clean(line) for line in "\n".join(errors).splitlines() if line.strip()]
    if not lines:
        return ()
    more = f" (and {fmt.plural(len(lines) - 1, 'more problem')})" if len(lines) > 1 else ""
    way_out = "" if "needs a restart" in lines[0] else ". See: limiterctl check"  # which finds nothing wrong there
    text = f"the last reload was refused, the configuration before it stays in force: {lines[0]}{more}{way_out}"
    return (("alarm", "config", text),)


def _paused(data: Data) -> Sequence[Notice]:
    if not data.get("paused"):
        return ()
    return (("yellow", "paused", "no new limit is imposed until `limiterctl resume`; those in force stay."),)


def _overrides(data: Data, now: float) -> Iterator[Notice]:
    """Overrides that end soon, and those that have ended lately where it is felt: by a link that is or may soon be limited."""
    dated = [(at, item) for item in records(data.get("overrides")) if (at := fmt.moment(item.get("expires"))) is not None]
    ended = {at: item for at, item in dated if item.get("state") == "expired" and now - at < EXPIRED_LATELY_S}
    for at, item in dated:
        name, effective = clean(item.get("id", "")), texts(item.get("effective_on"))
        concerned = sorted(link for link in _felt(data) if item is _latest(ended, link))
        if concerned:
            who = f"{clean(', '.join(concerned))} {'is' if len(concerned) == 1 else 'are'}"
            text = f"{name} expired {fmt.both(at, now)}: {who} under the policy again. See: limiterctl override list"
            yield "cyan", "override", text
        if item.get("state") == "active" and effective and at - now < EXPIRES_SOON_S:
            text = f"{name}, which applies to {clean(', '.join(effective))}, expires {fmt.both(at, now)}"
            yield "yellow", "override", text


def _felt(data: Data) -> list[str]:
    """The links on which the end of an override is felt: the policy, and no hand, has limited them or is about to."""
    links = [*records(data.get("links")), record(data.get("link"))]
    calm = [link for link in links if link.get("phase") not in _FELT or link.get("override") or link.get("manual")]
    return [str(link.get("interface")) for link in links if link not in calm]


_FELT: Final = ("pending", "limited", "fault")


def _latest(ended: Mapping[float, Data], link: str) -> Data | None:
    """Of the overrides that have ended the last one that was for a link; those before it are no news."""
    times = [at for at, item in ended.items() if link in texts(item.get("links"))]
    return ended[max(times)] if times else None


def _requests(data: Data) -> Sequence[Notice]:
    waiting = int(figure(data.get("requests_pending")))
    if not waiting:
        return ()
    verb = "waits" if waiting == 1 else "wait"
    return (("cyan", "requests", f"{fmt.plural(waiting, 'increase request')} {verb} for an answer: limiterctl requests"),)
