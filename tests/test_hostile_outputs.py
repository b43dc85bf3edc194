"""Hostile Unicode in every text that comes from outside, looked for in every output: none of it arrives."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from limiterd.core.model import Event, EventKind, Fault, FaultReason, Phase, Reason, Status
from limiterd.core.status import document
from limiterd.core.text import MAX_CGROUP, MAX_NAME, shown
from limiterd.ctl import history, show_explain, show_status
from limiterd.ctl.format import PLAIN
from limiterd.ctl.terminal import Terminal
from limiterd.daemon.event_log import EventLog
from limiterd.kernel import top_talkers
from limiterd.log import json_line, text_line
from limiterd.replay.plot import Curve, draw
from limiterd.serve.index_page import History, page
from limiterd.serve.metrics import render
from limiterd.store import hash_chain as chain
from tests.hostile import HOSTILE, NAMES, misleading
from tests.statuses import link, override, rich

WALL = 1_795_435_200_000_000_000
TEXTS = st.tuples(NAMES, HOSTILE)


def status_of(name: str, text: str) -> Status:
    """A status with that name and text wherever one can stand."""
    record = override("REQ-1", expires_s=3600, state="active", links=(name,))
    return replace(
        rich(),
        links=(
            link(name, Phase.LIMITED, ifindex=2, limit_bps=10**6, reason=Reason.OPERATOR, since_wall_ns=WALL, override=text),
            link("eth9", Phase.FAULT, ifindex=3),
        ),
        faults=(Fault(name, FaultReason.OTHER, text, WALL), Fault("", FaultReason.OTHER, f"{name}: {text}", WALL)),
        overrides=(replace(record, record=replace(record.record, reason=text, approved_by=text)),),
        config_error=text,
    )


def evidence_of(name: str, text: str) -> dict[str, object]:
    """Evidence about a process and a cgroup of those names."""
    process = {"pid": 1, "name": text, "uid": 0, "cgroup": f"/{text}", "unit": text}
    flow = {
        "remote": name,
        "remote_port": 1,
        "local": text,
        "local_port": 2,
        "bytes": 3,
        "share": 0.5,
        "uid": 0,
        "process": process,
    }
    return {
        "interface": name,
        "flows": [flow],
        "notes": [text],
        "problem": text,
        "device_bytes": 9,
        "sockets_bytes": 3,
        "explained": 0.3,
    }


def all_plain(lines: list[str]) -> None:
    """Nothing in these lines misleads."""
    for line in lines:
        assert not misleading(line), (misleading(line), line)


@given(TEXTS)
def test_metrics(texts: tuple[str, str]) -> None:
    """A scrape is text that misleads nobody, and parses; the label is the name as people see it everywhere else."""
    body = render(status_of(*texts), "")[0].decode()
    all_plain(body.split("\n"))
    families = text_string_to_metric_families(body)
    family = next(f for f in families if f.name == "limiterd_interface_transmit_bytes_per_second")
    assert {sample.labels["interface"] for sample in family.samples} == {shown(texts[0]), "eth9"}


@given(TEXTS)
def test_index_page(texts: tuple[str, str]) -> None:
    """The page has no markup from outside, and none of what it shows misleads."""
    body = page(status_of(*texts), History()).decode()
    assert "<script>alert" not in body
    all_plain(html.unescape(body).split("\n"))


@given(TEXTS)
def test_status_and_explain(texts: tuple[str, str]) -> None:
    """limiterctl's screens, as wide and as narrow as they come."""
    data = json.loads(json.dumps(document(status_of(*texts))))
    for width in (40, 200):
        all_plain(show_status.render(data, width=width, now=WALL / 1e9))
        row = data["links"][0]
        all_plain(show_status.link_detail(row, WALL / 1e9, width, PLAIN))
        told = {
            "link": row, "firing": {"at": "2026-11-23T12:00:00Z", "reason": texts[1], "note": texts[1]}, "faults": data["faults"],
            "evidence": evidence_of(*texts), "overrides": data["overrides"], "lift": [texts[1]], "remedies": [texts[1]],
            "detect": {"threshold_bps": 1, "window_s": 1, "slice_s": 1, "floor_percent": 1, "guard": {"mode": "observe"}},
        }  # fmt: skip
        all_plain(
            show_explain.render(told, Terminal(is_terminal=False, width=width, palette=PLAIN, unicode=True), now=WALL / 1e9)
        )


@given(TEXTS, HOSTILE)
def test_history(texts: tuple[str, str], kind: str) -> None:
    """The trail on the screen: known sentences and unknown fields."""
    name, text = texts
    entries = [
        {"wall": "2026-11-23T12:00:00.000Z", "kind": "limit", "interface": name, "fields": {"text": text}},
        {"wall": "2026-11-23T12:00:00.000Z", "kind": kind, "interface": name, "fields": {text: [text, {text: text}], "by": text}},
    ]
    all_plain(history.render({"entries": entries, "problems": [text]}, width=80, now=WALL / 1e9))


class Kept:
    """A log and a trail that keep what they are told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, Mapping[str, object]]] = []
        self.entries: list[tuple[str, str, Mapping[str, object]]] = []

    def emit(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """A line."""
        self.lines.append((level, event, fields))

    def append(self, kind: str, interface: str = "", fields: Mapping[str, object] | None = None) -> str:
        """An entry."""
        self.entries.append((kind, interface, fields or {}))
        return "f" * 64


@given(TEXTS)
def test_log_and_trail(texts: tuple[str, str]) -> None:
    """A firing with evidence from such processes: one log line in either form, one line of the trail, all of it there."""
    name, text = texts
    kept = Kept()
    told = EventLog(kept, kept, lambda _: evidence_of(name, text))
    told._write(Event(EventKind.LIMIT, 1, name, Reason.SUSTAINED, "fair-use", {"note": text, "by": text, "mean_bps": 1}))
    ((level, event, fields),) = kept.lines
    assert next(iter(fields)) == "audit_head"
    all_plain([text_line("now", level, event, fields)])
    line = json_line("now", level, event, fields)
    assert line.isascii()
    assert line.isprintable()
    ((kind, interface, entry),) = kept.entries
    sealed = chain.seal(1, chain.body_of(WALL, kind, interface, entry), chain.GENESIS)
    assert sealed.isascii()
    assert sealed.decode().isprintable()
    parsed = chain.parse_line(sealed)
    assert parsed is not None
    assert "evidence" in parsed.fields


def test_evidence_survives_any_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that calls itself 100 kB of anything, in a cgroup as long, takes a bounded part of the entry: all is kept."""

    class Process:
        def __init__(self, _: int) -> None:
            self.pid = 1

        def name(self) -> str:
            return "\u202e\U0001f600" * 50_000

        def uids(self) -> object:
            return type("Uids", (), {"effective": 1000})

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(top_talkers, "_cgroup", lambda _: "/user.slice/user@1000.service/" + "\u3164" * 100_000 + ".service")
    process = top_talkers._process(1)
    assert isinstance(process, dict)
    assert (len(process["name"]), len(process["cgroup"]), process["unit"]) == (MAX_NAME, MAX_CGROUP, "user@1000.service")
    flows = [{**dict.fromkeys(("remote", "local"), "f" * 39), "process": process} for _ in range(5)]
    body = chain.body_of(WALL, "limit", "eth0", {"evidence": {"flows": flows}, "text": "x"})
    assert len(body) < 32 << 10
    assert '"omitted"' not in body


@pytest.mark.filterwarnings("ignore:Glyph")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_plot(tmp_path: Path, name: str) -> None:
    """The names in a drawing, read out of the drawing."""
    matplotlib = pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw([Curve(name, ((0, 10**9, 1000),), ())], str(path), title=name)
    texts = re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)
    assert texts
    all_plain([html.unescape(text) for text in texts])


def test_names_that_are_no_text_are_two_links() -> None:
    """Of links named by the byte ff and by the four letters for it, each has its own label, row and key."""
    names = [os.fsdecode(b"eth\xff"), "eth\\xff", os.fsdecode(b"eth\xfe")]
    status = replace(rich(), links=tuple(link(name, ifindex=number) for number, name in enumerate(names, 2)), faults=())
    scrape = render(status, "")[0].decode()
    assert len(set(re.findall(r'limiterd_interface_transmit_bytes_total\{interface="(.*?)"\}', scrape))) == 3
    data = json.loads(json.dumps(document(status)))
    assert len({row["interface"] for row in data["links"]}) == 3
    assert len(set(show_status.render(data, width=100, now=WALL / 1e9))) >= 3
