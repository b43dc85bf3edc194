"""Which policy and override govern a link, against a definition written separately."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.model import Config, Detect, Guard, Limit, Override, OverrideAction, Policy, Rules
from limiterd.core.policy import (
    effective,
    entries_for,
    host_matches,
    is_glob,
    literal_names,
    matches,
    next_boundary_wall_ns,
    override_for,
    override_state,
    policy_for,
    sole_link,
    why_before,
)

NAMES = ("eth0", "eth1", "eth0.5", "en1", "no", "1e3", "Eth0")
GLOBS = ("*", "eth*", "eth0", "eth?", "en*", "!*.*", "!eth1", "[en]*", "no", "1e3", "!*")
HOSTS = ("gpu-1", "gpu-2.example.net", "db")
HOST_GLOBS = ("gpu-*", "gpu-2", "db", "!gpu-1", "*", "GPU-1", "*.example.net", "!*.net")

entries = st.lists(st.sampled_from(GLOBS), max_size=3).map(tuple)
moments = st.none() | st.integers(0, 12)
records = st.builds(
    Override,
    id=st.text("abc", min_size=1, max_size=2),
    interfaces=entries,
    action=st.sampled_from(OverrideAction),
    expires_wall_ns=moments,
    approved_by=st.just("ops"),
    reason=st.just("test"),
    hosts=st.lists(st.sampled_from(HOST_GLOBS), max_size=2).map(tuple),
    threshold_bps=st.none() | st.integers(1, 9),
    limit_bps=st.none() | st.integers(1, 9),
    not_before_wall_ns=moments,
)
policies = st.builds(Policy, name=st.text("pq", min_size=1, max_size=2), interfaces=entries)
rule_sets = st.builds(
    Rules,
    config=st.builds(Config, policies=st.lists(policies, max_size=3).map(tuple)),
    overrides=st.lists(records, max_size=6, unique_by=lambda record: record.id).map(tuple),
    host=st.sampled_from(HOSTS),
)


# ---- the definition, written separately --------------------------------------------------------------


def fits(glob: str, name: str) -> bool:
    """A glob as a regular expression; enough for the globs above."""
    expression = "".join({"*": ".*", "?": "."}.get(sign, sign if sign in "[]" else re.escape(sign)) for sign in glob)
    return re.fullmatch(expression, name) is not None


def listed(globs: tuple[str, ...], name: str) -> bool:
    """Whether a list takes a name in and nothing takes it out."""
    verdict = False
    for glob in globs:
        if glob[0] == "!" and fits(glob[1:], name):
            return False
        if glob[0] != "!" and fits(glob, name):
            verdict = True
    return verdict


def on_host(record: Override, host: str) -> bool:
    """Whether a record speaks of a host, under its full or its short name."""
    if record.hosts == ():
        return True
    both = [host.lower(), host.lower().split(".")[0]]
    taken_out = [glob for glob in record.hosts if glob[0] == "!" and any(fits(glob[1:].lower(), one) for one in both)]
    taken_in = [glob for glob in record.hosts if glob[0] != "!" and any(fits(glob.lower(), one) for one in both)]
    return taken_in != [] and taken_out == []


def is_active(record: Override, host: str, now: int) -> bool:
    """not_before ≤ now < expires, on this host."""
    begun = record.not_before_wall_ns is None or record.not_before_wall_ns <= now
    ended = record.expires_wall_ns is not None and now >= record.expires_wall_ns
    return begun and not ended and on_host(record, host)


def goes_before(one: Override, other: Override, name: str) -> bool:
    """The order of precedence, as a chain of comparisons."""
    if (name in one.interfaces) != (name in other.interfaces):
        return name in one.interfaces
    if bool(one.hosts) != bool(other.hosts):
        return bool(one.hosts)
    if one.not_before_wall_ns != other.not_before_wall_ns:
        if None in (one.not_before_wall_ns, other.not_before_wall_ns):
            return other.not_before_wall_ns is None
        assert one.not_before_wall_ns is not None
        assert other.not_before_wall_ns is not None
        return one.not_before_wall_ns > other.not_before_wall_ns
    return one.id > other.id


# ---- properties --------------------------------------------------------------------------------------


@given(rule_sets, st.sampled_from(NAMES), st.integers(0, 13))
def test_the_winner_goes_before_every_other_active_record(rules: Rules, name: str, now: int) -> None:
    """Of the active records that match, the one that precedes all others wins; without one, none does."""
    active = [record for record in rules.overrides if is_active(record, rules.host, now) and listed(record.interfaces, name)]
    winner = override_for(rules, name, now)
    if not active:
        assert winner is None
    else:
        assert winner in active
        assert all(goes_before(winner, other, name) for other in active if other is not winner)


@given(rule_sets, st.sampled_from(NAMES), st.integers(0, 13), st.randoms(use_true_random=False))
def test_precedence_does_not_depend_on_the_order_of_records(rules: Rules, name: str, now: int, random: object) -> None:
    """Shuffled records have the same winner."""
    shuffled = list(rules.overrides)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' Random
    assert override_for(rules, name, now) == override_for(replace(rules, overrides=tuple(shuffled)), name, now)


@given(rule_sets, st.sampled_from(NAMES))
def test_the_first_policy_that_matches_applies(rules: Rules, name: str) -> None:
    """Policies are tried in the order of the file."""
    expected = None
    for policy in reversed(rules.config.policies):
        if listed(policy.interfaces, name):
            expected = policy
    assert policy_for(rules, name) is expected


@given(rule_sets, st.sampled_from(NAMES), st.integers(0, 13))
def test_effective_is_the_policy_with_the_winners_figures(rules: Rules, name: str, now: int) -> None:
    """A threshold and a limit replace the policy's alone; exempt replaces nothing; without a policy nothing governs."""
    governs = effective(rules, name, now)
    policy, winner = policy_for(rules, name), override_for(rules, name, now)
    if policy is None:
        assert governs is None
        return
    assert governs is not None
    assert (governs.policy, governs.override) == (policy, winner)
    assert governs.exempt == (winner is not None and winner.action is OverrideAction.EXEMPT)
    shapes = winner is not None and winner.action is OverrideAction.LIMIT
    threshold_bps = winner.threshold_bps if shapes and winner is not None else None
    limit_bps = winner.limit_bps if shapes and winner is not None else None
    assert governs.detect == replace(policy.detect, threshold_bps=threshold_bps or policy.detect.threshold_bps)
    assert governs.limit == replace(policy.limit, rate_bps=limit_bps or policy.limit.rate_bps)


@given(rule_sets, st.sampled_from(NAMES), st.integers(0, 13))
def test_nothing_changes_before_the_next_boundary(rules: Rules, name: str, now: int) -> None:
    """Between now and the next boundary the winner stays the same; the boundary lies in the future; None means never again."""
    boundary = next_boundary_wall_ns(rules, now)
    assert boundary is None or boundary > now
    for later in range(now, boundary if boundary is not None else 15):
        assert override_for(rules, name, later) == override_for(rules, name, now)


@given(rule_sets, st.integers(0, 13))
def test_the_next_boundary_changes_some_records_state(rules: Rules, now: int) -> None:
    """At the boundary at least one record of this host begins or ends, unless it is empty of time."""
    boundary = next_boundary_wall_ns(rules, now)
    if boundary is not None:
        assert any(
            boundary in (record.not_before_wall_ns, record.expires_wall_ns) and on_host(record, rules.host)
            for record in rules.overrides
        )


@given(records, st.sampled_from(HOSTS), st.integers(0, 13))
def test_a_record_has_exactly_one_state(record: Override, host: str, now: int) -> None:
    """Expired on every host; else other-host; else pending; else active."""
    state = override_state(record, host, now)
    assert (state == "active") == is_active(record, host, now)
    assert (state == "expired") == (record.expires_wall_ns is not None and now >= record.expires_wall_ns)
    assert (state == "other-host") == (state != "expired" and not on_host(record, host))


@given(entries, st.sampled_from(NAMES))
def test_a_list_matches_as_defined(globs: tuple[str, ...], name: str) -> None:
    """Taken in by some glob, taken out by none, wherever the exclusion stands."""
    assert matches(globs, name) == listed(globs, name)


@given(rule_sets)
def test_literal_names_are_those_that_a_policy_governs(rules: Rules) -> None:
    """Each name without a glob appears once, with the policy that applies to it."""
    named = literal_names(rules)
    assert len({name for name, _ in named}) == len(named)
    everything = {entry for policy in rules.config.policies for entry in policy.interfaces if not set("*?[!") & set(entry)}
    assert {name for name, _ in named} == {name for name in everything if policy_for(rules, name) is not None}
    assert all(policy_for(rules, name) is policy for name, policy in named)


# ---- single cases ------------------------------------------------------------------------------------


def record(record_id: str, interfaces: tuple[str, ...] = ("eth0",)) -> Override:
    """An exempt record that is always active."""
    return Override(record_id, interfaces, OverrideAction.EXEMPT, None, "ops", "test")


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (record("a", ("eth0",)), replace(record("b", ("eth*",)), hosts=("gpu-1",), not_before_wall_ns=9)),
        (replace(record("a"), hosts=("gpu-*",)), replace(record("b"), not_before_wall_ns=9)),
        (replace(record("a"), not_before_wall_ns=0), record("b")),
        (replace(record("a"), not_before_wall_ns=3), replace(record("b"), not_before_wall_ns=2)),
        (record("b"), record("a")),
    ],
    ids=["exact name", "host-bound", "some start before none", "latest start", "greatest id"],
)
def test_precedence_step_by_step(winner: Override, loser: Override) -> None:
    """Each step of the order decides before all that come after it."""
    for overrides in ((winner, loser), (loser, winner)):
        assert override_for(Rules(overrides=overrides, host="gpu-1"), "eth0", 10) == winner


def test_precedence_is_told_by_the_rule_that_decides() -> None:
    """Of two records the first rule that tells them apart is the reason."""
    plain = record("a")
    assert why_before(plain, record("z", ("eth*",)), "eth0") == "it names the link exactly"
    assert why_before(replace(plain, hosts=("gpu-*",)), record("b"), "eth0") == "it is bound to this host"
    assert why_before(replace(plain, not_before_wall_ns=0), record("b"), "eth0") == "it begins later"
    assert why_before(record("b"), plain, "eth0") == "its id is greater"


def test_the_sole_link_of_a_record() -> None:
    """One literal name is a link; a pattern, an exclusion or several names are none."""
    assert sole_link(record("a")) == "eth0"
    assert [sole_link(record("a", names)) for names in (("eth*",), ("!eth0",), ("eth0", "eth1"))] == ["", "", ""]


def test_a_threshold_record_keeps_the_rest_of_the_policy() -> None:
    """Window, slice, floor, guard and the limit stay the policy's."""
    rules = Rules(overrides=(replace(record("a"), action=OverrideAction.LIMIT, threshold_bps=5 * 10**9),))
    governs = effective(rules, "eth0", 0)
    assert governs is not None
    assert governs.detect == Detect(threshold_bps=5 * 10**9, guard=Guard())
    assert governs.limit == Limit()


def test_exclusions_alone_match_nothing() -> None:
    """A list that only takes out leaves nothing in; so does an empty one."""
    assert not matches(("!eth1",), "eth0")
    assert not matches((), "eth0")


def test_matching_heeds_case_for_interfaces_but_not_for_hosts() -> None:
    """Interface names are bytes to the kernel; host names are not told apart by case."""
    assert not matches(("ETH*",), "eth0")
    assert host_matches(("GPU-*",), "gpu-7")
    assert host_matches(("gpu-7",), "GPU-7.example.net")


def test_a_vlan_is_left_to_its_parent_by_default() -> None:
    """The default policy watches eth0 and not eth0.5, whose bytes eth0 counts."""
    assert policy_for(Rules(), "eth0") == Policy()
    assert policy_for(Rules(), "eth0.5") is None
    assert effective(Rules(), "lo", 0) is None


def test_what_is_a_glob() -> None:
    """Only * ? and [ make a pattern."""
    assert [is_glob(entry) for entry in ("eth0", "no", "eth*", "eth?", "eth[0]", "a.b-c")] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]


@given(st.text(st.sampled_from("!*?[]ae0"), min_size=1, max_size=5), st.text(st.sampled_from("!*?[]ae0"), min_size=1, max_size=5))
def test_entries_for_a_name_match_it_alone(name: str, other: str) -> None:
    """Whatever signs a link's name holds, an approval's entries match that link and no other."""
    assert matches(entries_for(name), name)
    assert matches(entries_for(name), other) == (other == name)
