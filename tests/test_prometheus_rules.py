"""The alerts: valid, each tested by promtool both silent and firing, each with a section in the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.prometheus import tool

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
