"""The landing page: which links there are, in which phase, how fast, under which limit.

Rule: self-contained (nothing is loaded from anywhere), read-only, bounded, and silent on why: no flows, processes,
people or reasons; those stay behind the control socket.

Theory of operation. History keeps a few minutes of counters, eight bytes a link and point. page() writes one HTML document
from a Status and that history. Its only script fetches the page again and swaps the parts that change; where scripts
are off the browser reloads. Style and script are allowed by their hashes alone (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from limiterd.core.model import Link, LinkView, Phase, Snapshot, Status
from limiterd.core.text import shown
from limiterd.core.units import NS_PER_SECOND

SAMPLE_PERIOD_S: Final = 5.0
POINTS: Final = 60
REFRESH_S: Final = 5
MAX_ROWS: Final = 200
STALLED_NS: Final = 3 * NS_PER_SECOND
SPARK_WIDTH: Final = 180
SPARK_HEIGHT: Final = 28
SPARK_FLOOR_BPS: Final = 1_000_000
"""A link that only whispers does not fill its sparkline."""

_ORDER: Final = (Phase.FAULT, Phase.LIMITED, Phase.PENDING, Phase.EXEMPT, Phase.CONFORMING, Phase.ABSENT)
_RANK: Final = {phase: rank for rank, phase in enumerate(_ORDER)}
_STEPS: Final = ((10**12, "Tbit/s"), (10**9, "Gbit/s"), (10**6, "Mbit/s"), (10**3, "kbit/s"))
_SPANS: Final = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


class _Places:
    """Where each link of a tuple stands; worked out when the first one is looked for."""

    __slots__ = ("_places", "links")

    def __init__(self, links: tuple[Link, ...]) -> None:
        self.links = links
        self._places: dict[tuple[int, str], int] | None = None

    def of(self, link: LinkView) -> int | None:
        """The link's place, None where it is not among them."""
        if self._places is None:
            self._places = {(each.ifindex, each.name): place for place, each in enumerate(self.links)}
        return self._places.get((link.ifindex, link.interface))


class History:
    """Transmit counters of the last few minutes. Taking a point costs next to nothing; rates are for those who look."""

    def __init__(self) -> None:
        self._columns: deque[tuple[int, _Places, Sequence[int]]] = deque(maxlen=POINTS + 1)

    def add(self, snapshot: Snapshot) -> None:
        """Take one point of every link."""
        last = self._columns[-1][1] if self._columns else None
        places = last if last is not None and last.links is snapshot.links else _Places(snapshot.links)
        self._columns.append((snapshot.t_ns, places, snapshot.tx_bytes))

    def rates_bps(self, link: LinkView) -> Sequence[float]:
        """The link's mean rates from point to point, oldest first, since it was last gone or its counter last fell."""
        rates: list[float] = []
        before: tuple[int, int] | None = None
        for t_ns, places, sent in tuple(self._columns):
            place = places.of(link)
            now = (t_ns, sent[place]) if place is not None else None
            if before is None or now is None or now[0] <= before[0] or now[1] < before[1]:
                rates.clear()
            else:
                rates.append(8 * (now[1] - before[1]) * NS_PER_SECOND / (now[0] - before[0]))
            before = now
        return rates


# ---- values for people ---------------------------------------------------------------------------------


def rate_text(rate_bps: float) -> str:
    """A rate with three significant digits: 1023456789 → "1.02 Gbit/s"."""
    for factor, unit in _STEPS:
        if rate_bps >= 0.9995 * factor:
            scaled = rate_bps / factor
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{rate_bps:.0f} bit/s"


def span_text(duration_ns: int) -> str:
    """A duration in its two largest units: 3725 s → "1 h 2 min"."""
    seconds = max(0, duration_ns // NS_PER_SECOND)
    for large, large_name, small, small_name in _SPANS:
        if seconds >= large:
            rest = seconds % large // small
            return f"{seconds // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
    return f"{seconds} s"


def _safe(text: str) -> str:
    return escape(shown(text))


def sparkline(rates_bps: Sequence[float], limit_bps: int | None) -> str:
    """An inline SVG of rates, oldest first, with the limit as a dashed line."""
    if len(rates_bps) < 2:
        return ""
    peak = max(rates_bps)
    top = max(peak, limit_bps or 0, SPARK_FLOOR_BPS) * 1.08

    def height(rate: float) -> float:
        return round(SPARK_HEIGHT - 1 - rate / top * (SPARK_HEIGHT - 2), 1)

    step = SPARK_WIDTH / (POINTS - 1)
    start = SPARK_WIDTH - step * (len(rates_bps) - 1)
    line = " ".join(f"{start + i * step:.1f},{height(rate)}" for i, rate in enumerate(rates_bps))
    limit = "" if limit_bps is None else f'<path class="cap" d="M0 {height(limit_bps)}H{SPARK_WIDTH}"/>'
    return (
        f'<svg viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}" role="img" '
        f'aria-label="peak {rate_text(peak)}"><title>peak {rate_text(peak)}</title>'
        f'<polygon points="{start:.1f},{SPARK_HEIGHT} {line} {SPARK_WIDTH},{SPARK_HEIGHT}"/>'
        f'<polyline points="{line}"/>{limit}</svg>'
    )


# ---- the page ------------------------------------------------------------------------------------------

_STYLE: Final = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#1c2430;--soft:#5d6b7e;--line:#e1e5eb;--accent:#2563c9;
--conforming:#1a7f4b;--pending:#9a6700;--limited:#b4450f;--fault:#c0202f;--exempt:#6d4bc4;--absent:#6b7686}
@media(prefers-color-scheme:dark){:root{--bg:#10141a;--card:#181e27;--text:#e4e9f0;--soft:#94a2b5;--line:#28313d;
--accent:#6ba4f5;--conforming:#4cc38a;--pending:#e3b341;--limited:#f08c4b;--fault:#ff6b74;--exempt:#b39af5;--absent:#8794a6}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,sans-serif}
.wrap{max-width:62rem;margin:0 auto;padding:1.75rem 1.25rem 3rem}
header{display:flex;flex-wrap:wrap;align-items:baseline;gap:.25rem 1rem;margin-bottom:1.25rem}
h1{font-size:1.45rem;margin:0;letter-spacing:-.01em}
h1 span{color:var(--soft);font-weight:400}
.meta{color:var(--soft);font-size:.875rem}
#live{margin-left:auto}
#live::before{content:"";display:inline-block;width:.55rem;height:.55rem;border-radius:50%;background:var(--conforming);margin-right:.45rem}
.stale #live{color:var(--fault)}
.stale #live::before{background:var(--fault)}
.stale main{opacity:.45}
.note{border-left:4px solid var(--fault);background:var(--card);border-radius:0 8px 8px 0;padding:.6rem .9rem;margin:0 0 .75rem}
.note.mild{border-color:var(--pending)}
.tiles{display:flex;flex-wrap:wrap;gap:.75rem;margin:0 0 1rem;padding:0;list-style:none}
.tiles li,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tiles li{flex:1 1 6.5rem;padding:.65rem .9rem}
.tiles li:last-child{flex-basis:9.5rem;white-space:nowrap}
.tiles b{display:block;font-size:1.5rem;font-weight:600;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles .none b{color:var(--soft);font-weight:400}
.tiles span{color:var(--soft);font-size:.8125rem}
.card{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{padding:.55rem .9rem;text-align:left;white-space:nowrap}
th{font-size:.75rem;font-weight:600;color:var(--soft);text-transform:uppercase;letter-spacing:.05em;
border-bottom:1px solid var(--line)}
tr+tr td{border-top:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.i{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;font-size:.9rem;white-space:pre}
td small{color:var(--soft);font-size:.8125rem;margin-left:.4rem}
.badge{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 .6rem;font-size:.8125rem;font-weight:600}
.conforming{color:var(--conforming)}.pending{color:var(--pending)}.limited{color:var(--limited)}
.fault{color:var(--fault)}.exempt{color:var(--exempt)}.absent{color:var(--absent)}
svg{display:block}
polygon{fill:var(--accent);opacity:.16}
polyline{fill:none;stroke:var(--accent);stroke-width:1.5;stroke-linejoin:round}
.cap{fill:none;stroke:var(--limited);stroke-width:1;stroke-dasharray:4 3}
.dash{color:var(--soft)}
.empty{padding:2rem;text-align:center;color:var(--soft)}
footer{margin-top:1.1rem;color:var(--soft);font-size:.875rem;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
footer a{color:var(--accent)}
code{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;font-size:.92em}
"""

_SCRIPT: Final = """
"use strict";
const clock=()=>new Date().toLocaleTimeString();
let answered=clock();
async function refresh(){
 if(document.hidden)return;
 try{
  const answer=await fetch(location.pathname,{cache:"no-store",signal:AbortSignal.timeout(4000)});
  if(!answer.ok)throw new Error(answer.status);
  const fresh=new DOMParser().parseFromString(await answer.text(),"text/html");
  for(const part of["header","main"])document.querySelector(part).replaceWith(fresh.querySelector(part));
  document.title=fresh.title;
  document.body.className="";
  answered=clock();
 }catch(error){
  document.body.className="stale";
  document.getElementById("live").textContent="no answer since "+answered;
 }
}
setInterval(refresh,REFRESH_MS);
document.addEventListener("visibilitychange",refresh);
""".replace("REFRESH_MS", str(1000 * REFRESH_S))

_ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 13h4V4h6v5h4' fill='none' stroke='%232563c9' stroke-width='2'/%3E%3C/svg%3E"
)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_POLICY: Final = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (("Content-Security-Policy", _POLICY),)
CONTENT_TYPE: Final = "text/html; charset=utf-8"


def page(status: Status, history: History) -> bytes:
    """The whole document."""
    counts = Counter(link.phase for link in status.links)
    host = _safe(status.host)
    title = " · ".join([*(f"{counts[p]} {p}" for p in _ORDER[:3] if counts[p]), host or "limiterd"])
    return "".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>',
            title,
            '</title><meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="',
            _ICON,
            f'"><noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript><style>',
            _STYLE,
            '</style></head><body><div class="wrap">',
            _header(status, host),
            "<main>",
            *_notes(status),
            _tiles(status.links, counts),
            '<div class="card">',
            _table(status, history),
            "</div></main>",
            "<footer><span>Why, and how to lift it: <code>limiterctl explain</code> <i>interface</i> on this machine</span>",
            '<a href="metrics">metrics</a><a href="healthz">health</a></footer></div><script>',
            _SCRIPT,
            "</script></body></html>\n",
        ]
    ).encode()


def _header(status: Status, host: str) -> str:
    now = datetime.fromtimestamp(status.wall_ns // NS_PER_SECOND, UTC)
    return (
        f"<header><h1>limiterd <span>{host}</span></h1>"
        f'<span class="meta">version {_safe(status.version)}, up {span_text(status.wall_ns - status.started_wall_ns)}</span>'
        f'<span class="meta" id="live">{now:%H:%M:%S} UTC</span></header>'
    )


def _notes(status: Status) -> Iterable[str]:
    if status.last_tick_age_ns > STALLED_NS:
        age = span_text(status.last_tick_age_ns)
        yield f'<p class="note">The sampling loop has not turned for {age}: the figures below are old.</p>'
    if status.faults:
        faults = "1 fault" if len(status.faults) == 1 else f"{len(status.faults)} faults"
        yield f'<p class="note">{faults}: <code>limiterctl status</code> on this machine says which.</p>'
    if status.config_error is not None:
        yield '<p class="note">The last reload was refused: the configuration before it is in force.</p>'
    if status.paused:
        yield '<p class="note mild">Paused by an operator: no new limits are set; those in force stay.</p>'


def _tiles(links: Sequence[LinkView], counts: Counter[Phase]) -> str:
    shown = (Phase.LIMITED, Phase.PENDING, Phase.FAULT, Phase.EXEMPT, Phase.CONFORMING)
    tiles = [f'<li class="{p if counts[p] else "none"}"><b>{counts[p]}</b><span>{p}</span></li>' for p in shown]
    total = rate_text(sum(link.rate_bps for link in links))
    return f'<ul class="tiles">{"".join(tiles)}<li><b>{total}</b><span>sent by all links</span></li></ul>'


def _table(status: Status, history: History) -> str:
    if not status.links:
        return '<p class="empty">No link is watched: no policy matches an interface of this machine.</p>'
    chosen = sorted(status.links, key=lambda link: (_RANK[link.phase], -link.rate_bps))[:MAX_ROWS]
    chosen.sort(key=lambda link: (_RANK[link.phase], link.interface))
    rows = "".join(_row(link, status.wall_ns, history) for link in chosen)
    hidden = len(status.links) - len(chosen)
    more = f'<p class="empty">and {hidden} more links, all of them calmer or slower</p>' if hidden else ""
    span = span_text(int(POINTS * SAMPLE_PERIOD_S) * NS_PER_SECOND)
    return (
        f'<table><thead><tr><th>Interface</th><th>Phase</th><th class="n">Rate</th><th class="n">Limit</th>'
        f"<th>Last {span}</th></tr></thead><tbody>{rows}</tbody></table>{more}"
    )


def _row(link: LinkView, wall_ns: int, history: History) -> str:
    if link.phase is Phase.PENDING:
        detail = f"<small>{link.pending_ns / NS_PER_SECOND:.1f} s</small>"
    elif link.since_wall_ns is not None and link.phase in (Phase.LIMITED, Phase.FAULT):
        detail = f"<small>for {span_text(wall_ns - link.since_wall_ns)}</small>"
    else:
        detail = ""
    dash = '<span class="dash">–</span>'
    absent = link.phase is Phase.ABSENT
    limit_bps = link.limit_bps if link.phase is Phase.LIMITED else None
    return (
        f'<tr><td class="i">{_safe(link.interface)}</td><td><span class="badge {link.phase}">{link.phase}</span>{detail}</td>'
        f'<td class="n">{dash if absent else rate_text(link.rate_bps)}</td>'
        f'<td class="n">{dash if limit_bps is None else rate_text(limit_bps)}</td>'
        f"<td>{'' if absent else sparkline([*history.rates_bps(link), link.rate_bps][-POINTS:], limit_bps)}</td></tr>"
    )
