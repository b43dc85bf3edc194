"""The alerts: valid, each tested by promtool both silent and firing, each with a section in the runbook."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.prometheus import prometheus, tool

ROOT: Final = Path(__file__).resolve().parent.parent
RULES: Final = ROOT / "config" / "prometheus" / "limiterd.rules.yml"
UNIT_TESTS: Final = RULES.with_name("limiterd.rules.test.yml")
SCRAPE: Final = RULES.with_name("scrape.yml")


def rules() -> list[dict[str, Any]]:
    """All alerts of the rules file."""
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def limit_states(alert: str) -> list[dict[str, Any]]:
    """The moments at which the unit tests look at an alert."""
    tests = yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]
    return [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == alert]


each_alert = pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])


def promtool(*arguments: str) -> None:
    """Run promtool beside the rules; its complaint is the failure."""
    done = subprocess.run([tool("promtool"), *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    """`promtool check rules` finds nothing wrong."""
    promtool("check", "rules", RULES.name)


def test_promtool_accepts_the_scrape_job() -> None:
    """The scrape job that the rules expect is a valid configuration."""
    promtool("check", "config", SCRAPE.name)
    assert [job["job_name"] for job in yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))["scrape_configs"]] == ["limiterd"]


def test_the_alerts_fire_as_their_unit_tests_say() -> None:
    """`promtool test rules` agrees with every expectation, the words of the annotations included."""
    promtool("test", "rules", UNIT_TESTS.name)


@each_alert
def test_each_alert_is_seen_silent_and_firing(rule: dict[str, Any]) -> None:
    """The unit tests hold at least one moment at which the alert fires, and one at which it does not."""
    fires = {bool(case["exp_alerts"]) for case in limit_states(rule["alert"])}
    assert fires == {True, False}


@each_alert
def test_each_alert_says_what_and_where_to_read_on(rule: dict[str, Any]) -> None:
    """An alert has a severity, a summary that names the machine, a description, and a section in the runbook."""
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "$labels.instance" in annotations["summary"]
    path, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"))
    assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


# ---- any scrape interval, any instants of evaluation, one instance for several machines ----------------

SCRAPES: Final = (15, 30, 120)
EVALUATION_S: Final = 13
"""No multiple of it is one of a scrape interval within an hour and a half: every phase between them comes up."""
A: Final = 'job="limiterd", instance="127.0.0.1:9817", cluster="a"'
B: Final = 'job="limiterd", instance="127.0.0.1:9817", cluster="b"'
each_scrape = pytest.mark.parametrize("scrape_s", SCRAPES)


def values(scrape_s: int, seconds: int, steps: Mapping[int, float], *, first: float = 0, until: int | None = None) -> str:
    """A series of promtool: this value from that second on; no longer scraped after `until`."""
    said, value = [], first
    for t in range(0, seconds + 1, scrape_s):
        value = max(((at, value) for at, value in steps.items() if at <= t), default=(0, first))[1]
        said.append("stale" if until is not None and t >= until else f"{value:g}")
    return " ".join(said)


def fires(
    directory: Path, scrape_s: int, series: Mapping[str, str], alert: str, at: Mapping[int, Sequence[str]], name: str = "case"
) -> None:
    """Let promtool evaluate: at these seconds the alert fires for these clusters, and no others."""
    rule = next(one for one in rules() if one["alert"] == alert)
    # The annotations' words are the shipped unit tests' business; here it is when and for whom.
    bare = {"groups": [{"name": "g", "rules": [{key: rule[key] for key in ("alert", "expr", "for") if key in rule}]}]}
    (directory / "rules.yml").write_text(yaml.safe_dump(bare), encoding="utf-8")
    expected = [
        {"eval_time": f"{t}s", "alertname": alert, "exp_alerts": [{"exp_labels": labels(label)} for label in who]}
        for t, who in at.items()
    ]
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{EVALUATION_S}s",
        "tests": [
            {
                "name": name,
                "interval": f"{scrape_s}s",
                "input_series": [{"series": key, "values": value} for key, value in series.items()],
                "alert_rule_test": expected,
            }
        ],
    }
    (directory / "test.yml").write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "test.yml"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def labels(text: str) -> dict[str, str]:
    """The labels of `a="b", c="d"`."""
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


MORE_THAN: Final = {
    "LimiterdFlapping": ("limiterd_limits_applied_total", 3, 3600),
    "LimiterdDriftFight": ("limiterd_drift_repairs_total", 5, 600),
    "LimiterdAuditErrors": ("limiterd_audit_errors_total", 0, 600),
}
"""The alerts on counts: the counter, N of "more than N", and the window in seconds."""


@each_scrape
@pytest.mark.parametrize("alert", MORE_THAN)
@pytest.mark.parametrize("first", [0, 1000])
def test_more_than_n_fires_at_one_more_and_never_at_n(alert: str, first: int, scrape_s: int, tmp_path: Path) -> None:
    """At no evaluation at N, whether the target goes on, vanishes, or appeared lately; at N + 1 within a scrape or two."""
    metric, n, window_s = MORE_THAN[alert]
    end_s = 2 * window_s
    begin_s = window_s // 2
    at = [begin_s + k * (window_s // 2) // (n + 1) for k in range(n + 1)]
    counts = {t: first + k for k, t in enumerate(at, 1)}
    at_n = {t: value for t, value in counts.items() if value <= first + n}
    who = f'interface="eth0", {A}'
    every = dict.fromkeys(range(EVALUATION_S, end_s, 5 * EVALUATION_S), ())
    for until in (None, at[-1] + 2 * scrape_s):
        fires(tmp_path, scrape_s, {f"{metric}{{{who}}}": values(scrape_s, end_s, at_n, first=first, until=until)}, alert, every)
    late = "_ " * (begin_s // scrape_s) + values(
        scrape_s, end_s - begin_s, {t - begin_s: v for t, v in at_n.items()}, first=first
    )
    fires(tmp_path, scrape_s, {f"{metric}{{{who}}}": late}, alert, every)
    seen_s = at[-1] + 2 * scrape_s + EVALUATION_S
    series = {f"{metric}{{{who}}}": values(scrape_s, end_s, counts, first=first)}
    fires(tmp_path, scrape_s, series, alert, {at[0] - scrape_s: (), seen_s: [who], end_s: ()})


@each_scrape
@pytest.mark.parametrize("alert", ["LimiterdFlapping", "LimiterdDriftFight"])
def test_a_restart_is_no_event(alert: str, scrape_s: int, tmp_path: Path) -> None:
    """A daemon that is started anew counts from 0: neither the fall nor what was before it is counted twice."""
    metric, n, window_s = MORE_THAN[alert]
    who = f'interface="eth0", {A}'
    steps = {scrape_s * 2: 1000 + n - 1, scrape_s * 3: 0}
    every = dict.fromkeys(range(EVALUATION_S, window_s, 3 * EVALUATION_S), ())
    fires(tmp_path, scrape_s, {f"{metric}{{{who}}}": values(scrape_s, window_s, steps, first=1000)}, alert, every)
    if (n + 3) * scrape_s > window_s:
        return  # so many scrapes are not in a window
    more = steps | {scrape_s * (3 + k): k for k in range(1, n + 2)}
    seen_s = scrape_s * (4 + n) + 2 * EVALUATION_S
    fires(tmp_path, scrape_s, {f"{metric}{{{who}}}": values(scrape_s, 2 * window_s, more, first=1000)}, alert, {seen_s: [who]})


@each_scrape
def test_a_stalled_loop_is_seen_at_any_scrape_interval(scrape_s: int, tmp_path: Path) -> None:
    """Ten ticks a second, then none: silent before, and while one scrape fails; firing at most eight minutes later."""
    ticking = {t: t * 10 for t in range(0, 1200, scrape_s)}
    series = {
        f"limiterd_tick_duration_seconds_count{{{A}}}": values(scrape_s, 2400, ticking),
        f"limiterd_tick_duration_seconds_count{{{B}}}": values(scrape_s, 2400, {t: t * 10 for t in range(0, 2400, scrape_s)}),
    }
    before = dict.fromkeys(range(EVALUATION_S, 1200, 5 * EVALUATION_S), ())
    quick = {1200 + 60: ()} | ({1200 + 240: [A]} if scrape_s < 120 else {})
    fires(tmp_path, scrape_s, series, "LimiterdStalled", before | quick | {1200 + 480 + 2 * EVALUATION_S: [A], 2400: [A]})
    gone = {f"limiterd_tick_duration_seconds_count{{{A}}}": values(scrape_s, 2400, ticking, until=900)}
    fires(tmp_path, scrape_s, gone, "LimiterdStalled", dict.fromkeys(range(EVALUATION_S, 2400, 5 * EVALUATION_S), ()))


@each_scrape
@pytest.mark.parametrize("until", [None, 1200])
def test_one_instance_may_be_two_machines(until: int | None, scrape_s: int, tmp_path: Path) -> None:
    """What one machine is or has hides nothing of the other, and joins find their partner; both vanish with the target."""
    end_s = 3600
    on, off = values(scrape_s, end_s, {}, first=1, until=until), values(scrape_s, end_s, {}, first=0)
    eth0 = 'interface="eth0", '
    foreign = 'interface="eth0", reason="foreign_qdisc", '

    def check(alert: str, series: Mapping[str, str], *who: str) -> None:
        gone: dict[int, Sequence[str]] = {} if until is None else {until + 660: ()}
        fires(tmp_path, scrape_s, series, alert, {1180: list(who)} | gone)

    soon = values(scrape_s, end_s, {}, first=7200, until=until)
    override = 'id="REQ-1", '
    check(
        "LimiterdOverrideExpiring",
        {
            f"limiterd_override_expiry_timestamp_seconds{{{override}{A}}}": soon,
            f"limiterd_override_expiry_timestamp_seconds{{{override}{B}}}": soon,
            f"limiterd_override_active{{{override}{eth0}{A}}}": on,
            f'limiterd_override_active{{{override}interface="eth1", {A}}}': on,
            f"limiterd_override_active{{{override}{eth0}{B}}}": off,
        },
        override + eth0 + A,
        f'{override}interface="eth1", {A}',
    )
    check(
        "LimiterdDegraded",
        {
            f"limiterd_faults{{{foreign}{A}}}": on,
            f"limiterd_faults{{{foreign}{B}}}": on,
            f'limiterd_interface_phase{{phase="fault", {eth0}{A}}}': off,
            f'limiterd_interface_phase{{phase="fault", {eth0}{B}}}': on,
        },
        foreign + A,
    )
    fight = 'interface="eth0", reason="fight", '
    repairs = values(scrape_s, end_s, {t: t // scrape_s for t in range(0, end_s, scrape_s)}, until=until)
    if scrape_s < 100:  # else there are not more than five in ten minutes
        check(
            "LimiterdDriftFight",
            {f"limiterd_drift_repairs_total{{{eth0}{A}}}": repairs, f"limiterd_faults{{{fight}{B}}}": on},
            eth0 + A,
            fight + B,
        )
    late = {
        f'limiterd_tick_lateness_seconds_bucket{{le="{le}", {who}}}': values(
            scrape_s, end_s, {t: share * t for t in range(0, end_s, scrape_s)}, until=until
        )
        for who, shares in ((A, (0.5, 1, 1)), (B, (10, 10, 10)))
        for le, share in zip(("0.1", "0.5", "+Inf"), shares, strict=True)
    }
    check("LimiterdTickLate", late, A)


def test_the_scrape_job_names_the_machine() -> None:
    """127.0.0.1 is every machine: where a name is written, it is the instance; without one the address stays."""
    job = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))["scrape_configs"][0]
    (rule,) = job["relabel_configs"]
    name, address = (("this-machine", "127.0.0.1:9817"), rule["source_labels"])
    assert address == ["__machine", "__address__"]
    found = re.fullmatch(rule["regex"], ";".join(name))
    assert found is not None
    assert found.expand(rule["replacement"].replace("$", "\\")) == "this-machine:9817"
    assert re.fullmatch(rule["regex"], ";127.0.0.1:9817") is None


# ---- a real server -------------------------------------------------------------------------------------

GOLDEN: Final = ROOT / "tests" / "data" / "golden_scrape.txt"
FAULTY: Final = """\
limiterd_faults{interface="eth0",reason="fight"} 1
limiterd_faults{interface="eth7",reason="foreign_qdisc"} 1
"""


@contextmanager
def agent(text: str) -> Iterator[str]:
    """An agent that says this; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


def expressions() -> Iterator[str]:
    """Every query of the alerts and the dashboards, for all that there is."""
    yield from (str(rule["expr"]) for rule in rules())
    for path in sorted((ROOT / "config" / "grafana").glob("*.json")):
        for panel in yaml.safe_load(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                text = target["expr"].replace("$__rate_interval", "4s").replace("$interface", ".*")
                yield text.replace('instance="$instance"', 'instance=~"$instance"').replace("$instance", ".*")


def test_two_agents_under_one_instance_on_a_real_server(tmp_path: Path) -> None:
    """A server that scrapes both answers every query of alerts and dashboards, and the alerts fire for each of them."""
    golden = GOLDEN.read_text(encoding="utf-8").replace("…", "1")
    said = "".join(line for line in golden.splitlines(keepends=True) if not line.startswith("limiterd_override_expiry"))
    soon = 'limiterd_override_expiry_timestamp_seconds{id="REQ-1"} 1e9\n'
    with ExitStack() as stack:
        places = [stack.enter_context(agent(text)) for text in (said + soon, said + soon + FAULTY)]
        jobs = [
            {"targets": [place], "labels": {"instance": "127.0.0.1:9817", "cluster": cluster}}
            for place, cluster in zip(places, "ab", strict=True)
        ]
        server = stack.enter_context(prometheus(jobs, tmp_path, RULES))
        server.wait_for("count(count_over_time(limiterd_paused[1m]) > 3) == 2")
        assert server.instances("limiterd_paused") == {"127.0.0.1:9817"}
        for expression in expressions():
            server.values(expression)  # fails with the server's own words where it cannot be evaluated
        server.wait_for('count(ALERTS{alertname="LimiterdOverrideExpiring"}) >= 2')
        server.wait_for('count(ALERTS{alertname="LimiterdDriftFight", cluster="b"}) == 1')
        server.wait_for('count(count by (cluster) (ALERTS{alertname="LimiterdLinkLimited"})) == 2')
