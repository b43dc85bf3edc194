"""What a reload says that it changed."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.model import (
    Config,
    ControlConfig,
    Guard,
    GuardMode,
    Limit,
    Match,
    MetricsConfig,
    Override,
    OverrideAction,
    Policy,
    Rules,
    Sampling,
    StateConfig,
    Tls,
)
from limiterd.core.rule_changes import describe, needs_restart
from limiterd.core.units import parse_wall

NOW = parse_wall("2026-11-23")
END = parse_wall("2026-12-31")
RECORD = Override("REQ-1234", ("eth0",), OverrideAction.EXEMPT, END, "ops@example.net", "backup", origin="a.yaml:2")


def with_policies(*policies: Policy) -> Rules:
    """Rules of these policies alone."""
    return Rules(config=Config(policies=policies))


def test_nothing_changed_says_nothing() -> None:
    """Equal rules, and rules that differ only in hash and places, describe as nothing."""
    old = Rules(overrides=(RECORD,), sha256="a")
    new = Rules(overrides=(replace(RECORD, origin="b.yaml:7"),), sha256="b")
    assert describe(old, new, NOW) == ()


def test_the_order_of_records_is_no_change() -> None:
    """Records are a set: precedence does not look at their order."""
    other = replace(RECORD, id="REQ-2")
    assert describe(Rules(overrides=(RECORD, other)), Rules(overrides=(other, RECORD)), NOW) == ()


def test_a_limit_reads_as_documented() -> None:
    """A changed limit shows as policy, key, old and new."""
    new = with_policies(replace(Policy(), limit=Limit(rate_bps=300 * 10**6)))
    assert describe(Rules(), new, NOW) == ("~ policy fair-use limit 200mbit → 300mbit",)


def test_an_override_reads_as_documented() -> None:
    """A new record shows its id, links, what it grants and until when; a removed one likewise."""
    line = "override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z"
    assert describe(Rules(), Rules(overrides=(RECORD,)), NOW) == (f"+ {line}",)
    assert describe(Rules(overrides=(RECORD,)), Rules(), NOW) == (f"- {line}",)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (replace(RECORD, expires_wall_ns=None), "+ override REQ-1234 eth0 exempt and never expires"),
        (replace(RECORD, expires_wall_ns=NOW), "+ override REQ-1234 eth0 exempt until 2026-11-23T00:00:00Z (expired: no effect)"),
        (
            replace(RECORD, hosts=("db",)),
            "+ override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z (for other hosts: no effect here)",
        ),
        (
            replace(RECORD, not_before_wall_ns=NOW + 1),
            "+ override REQ-1234 eth0 exempt from 2026-11-23T00:00:00.000000001Z until 2026-12-31T00:00:00Z",
        ),
        (
            replace(RECORD, action=OverrideAction.LIMIT, threshold_bps=5 * 10**9, limit_bps=10**9),
            "+ override REQ-1234 eth0 threshold 5gbit limit 1gbit until 2026-12-31T00:00:00Z",
        ),
        (
            replace(RECORD, action=OverrideAction.LIMIT, limit_bps=1_234_567),
            "+ override REQ-1234 eth0 limit 1234.567kbit until 2026-12-31T00:00:00Z",
        ),
    ],
)
def test_a_record_says_what_it_amounts_to(record: Override, line: str) -> None:
    """Expired, foreign and future records say so; figures are exact."""
    assert describe(Rules(), Rules(overrides=(record,)), NOW) == (line,)


def test_a_changed_record_shows_key_by_key() -> None:
    """Each key that differs has its line, with words for what is left out."""
    new = replace(RECORD, action=OverrideAction.LIMIT, limit_bps=10**9, hosts=("gpu-*",), not_before_wall_ns=NOW, reason="more")
    assert describe(Rules(overrides=(RECORD,)), Rules(overrides=(new,)), NOW) == (
        "~ override REQ-1234 hosts any → gpu-*",
        "~ override REQ-1234 action exempt → limit",
        "~ override REQ-1234 limit the policy's → 1gbit",
        "~ override REQ-1234 not_before always → 2026-11-23T00:00:00Z",
        "~ override REQ-1234 reason backup → more",
    )


def test_policies_that_come_go_and_swap() -> None:
    """Added and removed policies show whole; a new order of the others shows, because the first match applies."""
    one, two, three = (Policy(name=name, interfaces=(f"{name}*",)) for name in ("one", "two", "three"))
    assert describe(with_policies(one, two), with_policies(two, one, three), NOW) == (
        "+ policy three three*: enforce, limit 200mbit above 1gbit for 10s",
        "~ policies' order one, two → two, one",
    )
    assert describe(with_policies(one, two), with_policies(two), NOW) == (
        "- policy one one*: enforce, limit 200mbit above 1gbit for 10s",
    )


def test_the_start_describes_everything_as_new() -> None:
    """Without old rules every policy and record is an addition, and nothing else is said."""
    assert describe(None, Rules(overrides=(RECORD,)), NOW) == (
        "+ policy fair-use eth* en* !*.*: enforce, limit 200mbit above 1gbit for 10s",
        "+ override REQ-1234 eth0 exempt until 2026-12-31T00:00:00Z",
    )


def test_the_rest_of_the_configuration_shows() -> None:
    """Nested, optional and switched-off values read well."""
    matches = (Match(protocol="tcp", port=22, to="203.0.113.0/24"), Match(from_net="2001:db8::/32"))
    policy = replace(Policy(), limit=Limit(exempt=matches), detect=replace(Policy().detect, guard=Guard(GuardMode.OFF, 10**9)))
    config = Config(
        sampling=Sampling(max_plausible_bps=10**12),
        policies=(policy,),
        metrics=MetricsConfig(listen=None, tls=Tls("/c", "/k")),
        control=ControlConfig(group="ops"),
    )
    assert describe(Rules(), Rules(config=config, host="gpu-1"), NOW) == (
        "~ policy fair-use guard observe → off",
        "~ policy fair-use guard burst 90gbit → 1gbit",
        "~ policy fair-use exempt none → protocol tcp port 22 to 203.0.113.0/24; from 2001:db8::/32",
        "~ sampling max_plausible_rate off → 1tbit",
        "~ metrics listen 127.0.0.1:9817 → none",
        "~ metrics tls off → certificate /c key /k",
        "~ control group none → ops",
        "~ host  → gpu-1",
    )


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every field that is no section itself."""
    paths = []
    for one in fields(value):
        inner = getattr(value, one.name)
        if is_dataclass(inner):
            paths += leaves(inner, (*path, one.name))
        elif one.name not in {"policies", "origin"}:
            paths.append((*path, one.name))
    return paths


def changed(value: Any, path: tuple[str, ...]) -> Any:
    """A copy with the field at the path altered."""
    name, *rest = path
    inner = getattr(value, name)
    if rest:
        return replace(value, **{name: changed(inner, tuple(rest))})
    return replace(value, **{name: _other(name, inner)})


def _other(name: str, value: Any) -> Any:
    if name == "tls":
        return Tls("/c", "/k")
    if isinstance(value, tuple):
        return (Match(port=1),) if name in {"match", "exempt"} else ("x*",)
    if isinstance(value, int):
        return value + 1
    if value is None:
        return 7 if name.endswith(("_bps", "_ns")) else "x"
    options = [one for one in type(value) if one is not value] if type(value) is not str else []
    return options[0] if options else value + "x"


@pytest.mark.parametrize("path", leaves(Config()), ids=".".join)
def test_every_key_of_the_configuration_shows(path: tuple[str, ...]) -> None:
    """No key of the configuration can change without a line."""
    new = Rules(config=changed(Config(), path))
    assert len(describe(Rules(), new, NOW)) == 1


@pytest.mark.parametrize("path", [path for path in leaves(Policy()) if path != ("name",)], ids=".".join)
def test_every_key_of_a_policy_shows(path: tuple[str, ...]) -> None:
    """No key of a policy can change without exactly one line that names the policy."""
    (line,) = describe(Rules(), with_policies(changed(Policy(), path)), NOW)
    assert line.startswith("~ policy fair-use ")


@pytest.mark.parametrize("path", [path for path in leaves(RECORD) if path != ("id",)], ids=".".join)
def test_every_key_of_a_record_shows(path: tuple[str, ...]) -> None:
    """No key of a record can change without exactly one line that names it."""
    (line,) = describe(Rules(overrides=(RECORD,)), Rules(overrides=(changed(RECORD, path),)), NOW)
    assert line.startswith("~ override REQ-1234 ")


@given(st.lists(st.sampled_from(leaves(Config())), max_size=4), st.lists(st.sampled_from(leaves(Policy())), max_size=4))
def test_no_line_means_no_change(config_paths: list[tuple[str, ...]], policy_paths: list[tuple[str, ...]]) -> None:
    """The description is empty exactly where the rules mean the same; a change and its reverse leave nothing."""
    config = Config()
    policy = Policy()
    for path in config_paths:
        config = changed(config, path)
    for path in policy_paths:
        policy = changed(policy, path)
    new = Rules(config=replace(config, policies=(policy,)))
    assert (describe(Rules(), new, NOW) == ()) == (new == Rules())
    assert describe(new, new, NOW) == ()


def test_what_needs_a_restart() -> None:
    """Only the state directory and the control socket cannot change under a running daemon, and each is named."""
    assert needs_restart(Rules(), with_policies()) == ()
    moved = Rules(config=Config(state=StateConfig("/var/lib/other"), control=ControlConfig(socket="/run/other.sock")))
    way_out = "needs a restart; put the old value back, or restart limiterd"
    assert needs_restart(Rules(), moved) == (
        ("control.socket", f"/run/limiterd/control.sock → /run/other.sock {way_out}"),
        ("state.directory", f"/var/lib/limiterd → /var/lib/other {way_out}"),
    )
