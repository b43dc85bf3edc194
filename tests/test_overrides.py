"""Override records: the operator's files, the daemon's own store, and records given by a control client."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limiterd.config import override_files as overrides
from limiterd.config import yaml_reader as yamlsafe
from limiterd.config.override_files import Store
from limiterd.core.errors import EXIT_FAILED, ConfigError, EnvironmentFault, PeerError
from limiterd.core.model import Config, Detect, Override, OverrideAction, Policy, Rules
from limiterd.core.units import parse_wall

EXAMPLE = Path(__file__).resolve().parent.parent / "config/overrides.d/example.yaml.example"
NOW = parse_wall("2026-11-23")

DOCUMENTED = """\
overrides:
  - id: REQ-1234             # required, unique over all files
    interfaces: ["eth0"]     # required, globs
    hosts: ["gpu-*"]         # optional: host-name globs, so that one directory can serve a fleet
    action: limit            # exempt | limit
    threshold: 5gbit         # with action limit: a higher threshold and/or another limit
    limit: 1gbit
    not_before: 2026-11-01T00:00:00Z
    expires: 2026-12-31T00:00:00Z   # required, with a zone (a bare date is 00:00 UTC); `never` is allowed, and reported
    approved_by: ops@example.net    # required
    reason: nightly backup window   # required
"""
MEANS = Override(
    id="REQ-1234",
    interfaces=("eth0",),
    action=OverrideAction.LIMIT,
    expires_wall_ns=parse_wall("2026-12-31"),
    approved_by="ops@example.net",
    reason="nightly backup window",
    hosts=("gpu-*",),
    threshold_bps=5 * 10**9,
    limit_bps=10**9,
    not_before_wall_ns=parse_wall("2026-11-01"),
    origin="o.yaml:2",
)
EXEMPT = Override("REQ-1", ("eth0",), OverrideAction.EXEMPT, None, "ops", "test", origin="state")


def read(text: str) -> list[Override]:
    """The records of a text as the file o.yaml; raises ConfigError where anything is wrong."""
    found = overrides.parse(text.encode(), "o.yaml")
    if found.problems:
        raise ConfigError(found.problems)
    return [placed.record for placed in found.records]


def flow(**changes: str | None) -> str:
    """A file with one exempt record, some of its keys changed, or left out with None."""
    keys: dict[str, str | None] = {
        "id": "REQ-1",
        "interfaces": "[eth0]",
        "action": "exempt",
        "expires": "never",
        "approved_by": "ops",
        "reason": "test",
    }
    lines = [f"{key}: {value}" for key, value in {**keys, **changes}.items() if value is not None]
    return "overrides:\n  - " + "\n    ".join(lines) + "\n"


# ---- the format --------------------------------------------------------------------------------------


def test_the_documented_record_reads_as_documented() -> None:
    """Every key reaches its field; the record knows where it stands."""
    assert read(DOCUMENTED) == [MEANS]


def test_the_shipped_example_is_valid_and_not_loaded(tmp_path: Path) -> None:
    """The example reads as the documented record, and its name keeps it out of a load."""
    example = tmp_path / EXAMPLE.name
    example.write_bytes(EXAMPLE.read_bytes())
    found = overrides.parse(example.read_bytes(), str(example))
    assert not found.problems
    assert [replace(placed.record, origin="o.yaml:2") for placed in found.records] == [MEANS]
    whole = overrides.read_directory(str(tmp_path))
    assert (whole.records, whole.problems) == ([], [])


def test_a_file_may_hold_many_records_or_none() -> None:
    """In their order; an empty list must be written as one."""
    two = flow() + flow(id="REQ-2").partition("\n")[2]
    assert [record.id for record in read(two)] == ["REQ-1", "REQ-2"]
    assert read("overrides: []\n") == []


@pytest.mark.parametrize(
    ("text", "expires_wall_ns"),
    [("never", None), ('"never"', None), ("2026-11-23", NOW), ('"2026-11-23"', NOW), ("2026-11-23 01:00:00+01:00", NOW)],
)
def test_when_a_record_expires(text: str, expires_wall_ns: int | None) -> None:
    """Never, a date, or a time with a zone."""
    assert read(flow(expires=text))[0].expires_wall_ns == expires_wall_ns


def test_long_texts_may_be_folded() -> None:
    """YAML's folded and literal texts, which libraries write for long ones, become one line."""
    for reason in ("one two\n      three", ">\n      one two\n      three", "|\n      one two\n      three", '"one two\\nthree"'):
        assert read(flow(reason=reason))[0].reason == "one two three"


WRONG = [
    ("", "o.yaml:1:1: overrides: no record is in this file; write `overrides: []` for none"),
    ("# nothing\n", "no record is in this file"),
    ("overrides:\n", "o.yaml:1:11: overrides: is empty; write a list of record entries"),
    ("overrides: {}\n", "is not a list"),
    ("{}\n", "the key `overrides` is missing"),
    ("override: []\n", "did you mean `overrides`?"),
    ("overrides:\n  -\n", "overrides[0]: is empty; write a record, or remove the dash"),
    (flow(id=None), "o.yaml:2:5: overrides[0]: the key `id` is missing; it is required"),
    (flow(interfaces=None), "the key `interfaces` is missing"),
    (flow(action=None), "the key `action` is missing"),
    (flow(expires=None), "the key `expires` is missing"),
    (flow(approved_by=None), "the key `approved_by` is missing"),
    (flow(reason=None), "the key `reason` is missing"),
    (flow(id="a b"), "overrides[0].id: 'a b' is not an id"),
    (flow(id="x" * 65), "at most 64 are allowed"),
    (flow(interfaces="[]"), "name at least one interface pattern"),
    (flow(interfaces="eth0"), "is not a list"),
    (flow(hosts="['a b']"), "can match no host name"),
    (flow(action="excempt"), "did you mean `exempt`?"),
    (flow(expires=""), "overrides[0].expires: is empty"),
    (flow(expires="~"), "is empty"),
    (flow(expires="soon"), "'soon' is not a time"),
    (flow(expires="2026-12-31T00:00:00"), "has no time zone; end it with Z"),
    (flow(expires="2026-13-01"), "is not a valid date"),
    (flow(expires="1798675200"), "is not a time"),
    (
        flow(not_before="2026-01-02", expires="2026-01-02"),
        "overrides[0].expires: expires 2026-01-02T00:00:00Z must come after not_before 2026-",
    ),
    (flow(not_before="never"), "'never' is not a time"),
    (flow(action="limit"), "`action: limit` changes nothing by itself; add a threshold, a limit, or both"),
    (flow(action="limit", limit="1gbit", threshold="1gbit"), "the limit 1gbit must be below the threshold 1gbit"),
    (flow(action="limit", limit="0"), "a unit is missing"),
    (flow(action="limit", limit="100mbps"), "means bytes per second to tc"),
    (flow(reason='"   "'), "is empty"),
    (flow(reason='"\\e[2J"'), "control character U+001B"),
    (flow(reason='"\\u202e"'), "control character U+202E"),
    (flow(reason="x" * 501), "at most 500 are allowed"),
    (flow(expire="never"), "overrides[0].expire: is not a known key; did you mean `expires`?"),
    (flow().rstrip("\n"), "ends within a value"),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[says[:50] for _, says in WRONG])
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    """Each mistake is refused, at its place, with what would be right."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert says in str(caught.value)
    assert all(str(problem).isprintable() for problem in caught.value.problems)


def test_all_that_is_wrong_with_one_record_is_told() -> None:
    """Conditions across valid keys are judged although another key of the record is wrong or missing."""
    with pytest.raises(ConfigError) as caught:
        read(flow(action="limit", threshold="1gbit", limit="2gbit", expires="soon", approved_by=None))
    assert [problem.path for problem in caught.value.problems] == [
        "overrides[0]",
        "overrides[0].expires",
        "overrides[0].limit",
    ]
    with pytest.raises(ConfigError) as caught:
        read(flow(not_before="2027-01-01", expires="2026-01-01", reason=None))
    assert [problem.path for problem in caught.value.problems] == ["overrides[0]", "overrides[0].expires"]


def test_rates_beside_exempt_have_no_effect_and_are_reported() -> None:
    """The annotated list of all keys is a valid record: exempt, with a remark that names it."""
    found = overrides.parse(DOCUMENTED.replace("action: limit", "action: exempt").encode(), "o.yaml")
    assert not found.problems
    (record,) = [placed.record for placed in found.records]
    assert (record.action, record.threshold_bps, record.limit_bps) == (OverrideAction.EXEMPT, None, None)
    (note,) = found.notes
    assert note == "o.yaml:2: override REQ-1234: a threshold or limit has no effect with `action: exempt`"


def test_valid_records_stand_beside_a_wrong_one() -> None:
    """What is right is still known, so that duplicates and conflicts of it are told in the same pass."""
    found = overrides.parse((flow() + flow(id="REQ-2", action="nothing").partition("\n")[2]).encode(), "o.yaml")
    assert [placed.record.id for placed in found.records] == ["REQ-1"]
    assert [problem.path for problem in found.problems] == ["overrides[1].action"]


def test_a_cut_file_of_one_record_is_refused_or_means_the_same() -> None:
    """At every byte offset, with or without the end mark: the required keys come last."""
    for text in (DOCUMENTED, f"---\n{DOCUMENTED}...\n", EXAMPLE.read_text()):
        whole, data = bare(read(text)), text.encode()
        for end in range(len(data)):
            found = overrides.parse(data[:end], "o.yaml")
            assert found.problems or bare([placed.record for placed in found.records]) == whole, end


def test_a_cut_marked_file_of_many_records_is_always_refused() -> None:
    """At every byte offset: not one record is lost unseen."""
    data = overrides.to_yaml([EXEMPT, replace(EXEMPT, id="REQ-2"), replace(EXEMPT, id="REQ-3", hosts=("a",))]).encode()
    for end in range(len(data)):
        found = overrides.parse(data[:end], "o.yaml")
        assert found.problems or len(found.records) == 3, end


def bare(records: list[Override]) -> list[Override]:
    """Records without their places."""
    return [replace(record, origin="") for record in records]


# ---- directories -------------------------------------------------------------------------------------


def test_which_files_are_read(tmp_path: Path) -> None:
    """*.yaml and *.yml in the order of their names; hidden, backup and other files are not looked at."""
    for name in ("b.yaml", "a.yml", "C.yaml"):
        (tmp_path / name).write_text(flow(id=name))
    for name in (".hidden.yaml", "a.yaml~", "README", "x.yaml.bak", "y.yaml.example", ".z.yaml.swp"):
        (tmp_path / name).write_text("not: [yaml")
    (tmp_path / "directory").mkdir()
    found = overrides.read_directory(str(tmp_path))
    assert not found.problems
    assert [placed.record.id for placed in found.records] == ["C.yaml", "a.yml", "b.yaml"]


def test_every_bad_entry_is_told(tmp_path: Path) -> None:
    """Links into the void, fifos and directories with a record file's name are refused by name, without blocking."""
    (tmp_path / "good.yaml").write_text(flow())
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "dir.yaml").mkdir()
    (tmp_path / "wrong.yaml").write_text("x: 1\n")
    open_mode = tmp_path / "open.yaml"
    open_mode.write_text(flow(id="REQ-9"))
    open_mode.chmod(0o666)
    found = overrides.read_directory(str(tmp_path))
    bad = {Path(problem.file).name for problem in found.problems}
    assert bad == {"link.yaml", "fifo.yaml", "dir.yaml", "wrong.yaml", "open.yaml"}
    assert [placed.record.id for placed in found.records] == ["REQ-1"]


def test_a_directory_that_cannot_be_trusted_or_read_is_a_problem(tmp_path: Path) -> None:
    """Missing is no record; a file in its place, one that others may write, or too many files, is a problem."""
    assert overrides.read_directory(str(tmp_path / "none")).problems == []
    (tmp_path / "file").write_text("")
    assert "cannot be read" in str(overrides.read_directory(str(tmp_path / "file")).problems[0])
    assert "NUL" in str(overrides.read_directory("a\0b").problems[0])
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "can be written by others" in str(overrides.read_directory(str(tmp_path / "open")).problems[0])
    (tmp_path / "many").mkdir()
    for number in range(overrides.MAX_FILES + 1):
        (tmp_path / "many" / f"{number}.yaml").touch()
    problem = overrides.read_directory(str(tmp_path / "many")).problems[0]
    assert "holds 1001 files; at most 1000 are read" in str(problem)


def test_a_directory_is_bounded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are small one by one may not be huge together: reading ends, and says at which file."""
    for number in range(3):
        (tmp_path / f"{number}.yaml").write_text(flow(id=f"REQ-{number}"))
    monkeypatch.setattr(overrides, "MAX_RECORDS", 1)
    (problem,) = overrides.read_directory(str(tmp_path)).problems
    assert "the files up to 1.yaml hold more than 16 MiB or 1 records" in str(problem)
    monkeypatch.setattr(overrides, "MAX_RECORDS", 3)
    monkeypatch.setattr(overrides, "MAX_TOTAL_BYTES", len(flow(id="REQ-0")))
    assert "the files up to 1.yaml hold" in str(overrides.read_directory(str(tmp_path)).problems[0])


def test_names_that_are_no_text_are_shown_safely(tmp_path: Path) -> None:
    """A file name may hold any byte; what is printed holds none that a terminal obeys."""
    for name in (b"\xff\xfe.yaml", b"\x1b[31m.yaml", b"a\nb.yaml"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x: 1\n")
    problems = overrides.read_directory(str(tmp_path)).problems
    assert len({problem.file for problem in problems}) == 3
    assert all(str(problem).isprintable() for problem in problems)


def test_an_id_given_twice_names_both_places(tmp_path: Path) -> None:
    """In one file or in two, the later place holds the problem and its text both."""
    (tmp_path / "a.yaml").write_text(flow())
    (tmp_path / "b.yaml").write_text(flow(id="REQ-2") + flow().partition("\n")[2])
    (problem,) = overrides.read_directory(str(tmp_path)).problems
    assert str(problem) == (
        f"{tmp_path}/b.yaml:8:9: overrides[1].id: REQ-1 is given twice, in {tmp_path}/a.yaml:2 and in {tmp_path}/b.yaml:8; "
        "rename or remove one"
    )


# ---- beside the policies -----------------------------------------------------------------------------


def clash(record: Override, rules: Rules) -> str | None:
    """The key that a record is refused for, or None."""
    return next((key for key, _ in overrides.conflicts(record, rules, NOW)), None)


def test_a_record_must_leave_the_limit_below_the_threshold() -> None:
    """What is certain is refused: an exactly named link under its policy, a glob where no policy fits."""
    fast = Policy(name="fast", interfaces=("eth9",), detect=Detect(threshold_bps=10**10))
    rules = Rules(config=Config(policies=(fast, Policy())), host="h")
    limit = replace(EXEMPT, action=OverrideAction.LIMIT, limit_bps=2 * 10**9)
    assert clash(limit, rules) == "limit"
    assert clash(replace(limit, interfaces=("eth9",)), rules) is None
    assert clash(replace(limit, interfaces=("eth9", "eth0")), rules) == "limit"
    assert clash(replace(limit, interfaces=("lo",)), rules) is None
    assert clash(replace(limit, interfaces=("eth*",)), rules) is None
    assert clash(replace(limit, interfaces=("eth*",), limit_bps=10**10), rules) == "limit"
    assert clash(replace(limit, limit_bps=None, threshold_bps=10**8), rules) == "threshold"
    assert clash(replace(limit, threshold_bps=3 * 10**9), rules) is None


def test_records_without_effect_are_not_judged() -> None:
    """Expired and foreign records are information, never errors; so are exempt ones."""
    limit = replace(EXEMPT, action=OverrideAction.LIMIT, limit_bps=2 * 10**9)
    rules = Rules(host="h")
    assert clash(limit, rules) == "limit"
    assert clash(replace(limit, expires_wall_ns=NOW), rules) is None
    assert clash(replace(limit, hosts=("other",)), rules) is None
    assert clash(replace(limit, action=OverrideAction.EXEMPT, limit_bps=None), rules) is None


# ---- records from a control client -------------------------------------------------------------------


def test_a_record_given_as_json_is_read_like_yaml() -> None:
    """The same keys, forms and checks; keys with null count as not given."""
    mapping = {
        "id": "REQ-1234",
        "interfaces": ["eth0"],
        "hosts": ["gpu-*"],
        "action": "limit",
        "threshold": "5gbit",
        "limit": "1gbit",
        "not_before": "2026-11-01",
        "expires": "2026-12-31",
        "approved_by": "ops@example.net",
        "reason": "nightly backup window",
    }
    assert overrides.record_from_mapping(mapping, "o.yaml:2") == MEANS
    exempt = {**mapping, "action": "exempt", "threshold": None, "limit": None, "hosts": None, "expires": "never"}
    made = overrides.record_from_mapping(exempt)
    assert (made.threshold_bps, made.hosts, made.expires_wall_ns, made.origin) == (None, (), None, "state")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": None}, "the key `id` is missing"),
        ({"id": 7.5, "expires": True}, "control:1:1: expires: 'True' is not a time"),
        ({"threshold": 5_000_000_000, "action": "limit"}, "threshold: '5000000000': a unit is missing"),
        ({"interfaces": "eth0"}, "interfaces: is not a list"),
        ({"interfaces": {"a": 1}}, "interfaces: is not a list"),
        ({"reason": ["x"]}, "reason: is a list"),
        ({"reason": ""}, "reason: is empty"),
        ({"reason": "a\x1b[31m"}, "control character"),
        ({"id": "\ud800"}, "control character"),
        ({"origin": "x"}, "origin: is not a known key"),
        ({"action": 10**50}, "is not known"),
        ({"limit": "1gbit"}, "has no effect with `action: exempt`; leave it out"),
    ],
)
def test_a_wrong_json_record_is_refused(changes: dict[str, object], says: str) -> None:
    """With the key and the reason."""
    mapping: dict[str, object] = {
        "id": "a", "interfaces": ["eth0"], "action": "exempt", "expires": "never", "approved_by": "o", "reason": "r",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        overrides.record_from_mapping({**mapping, **changes}, "control")
    assert says in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["id", "interfaces", "action", "expires", "reason", "approved_by", "limit"]), json_values))
def test_no_json_escapes_the_config_error(mapping: dict[str, object]) -> None:
    """Whatever a client sends is a record or a ConfigError."""
    try:
        assert isinstance(overrides.record_from_mapping(mapping), Override)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either answer is right


# ---- the daemon's own store --------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
globs = st.lists(st.text("ab*?-.", min_size=1, max_size=8), min_size=1, max_size=3).map(tuple)
moments = st.integers(0, parse_wall("9999-12-31"))
rates = st.integers(1000, 10**15)


@st.composite
def valid_records(draw: st.DrawFn) -> Override:
    """Records as a loader could have made them."""
    begin, end = draw(st.none() | moments), draw(st.none() | moments)
    if begin is not None and end is not None:
        begin, end = min(begin, end), max(begin, end) + 1
    low, high = sorted(draw(st.tuples(rates, rates)))
    limit_bps, threshold_bps = draw(st.sampled_from([(low, None), (None, high), (low, high + 1 if high < 10**15 else None)]))
    exempt = draw(st.booleans())
    return Override(
        id=draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)),
        interfaces=draw(globs),
        action=OverrideAction.EXEMPT if exempt else OverrideAction.LIMIT,
        expires_wall_ns=end,
        approved_by=draw(words),
        reason=draw(words.map(lambda word: f'{word} "\\ #: {word}')),
        hosts=draw(st.just(()) | globs),
        threshold_bps=None if exempt else threshold_bps,
        limit_bps=None if exempt else limit_bps,
        not_before_wall_ns=begin,
        origin="state",
    )


@given(st.lists(valid_records(), max_size=3, unique_by=lambda record: record.id))
def test_what_is_written_reads_back(records: list[Override]) -> None:
    """The YAML of records is read by the same loader as exactly these."""
    found = overrides.parse(overrides.to_yaml(records).encode(), "o.yaml", origin="state")
    assert found.problems == []
    assert [placed.record for placed in found.records] == records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(valid_records(), max_size=4, unique_by=lambda record: record.id))
def test_the_store_keeps_and_forgets(tmp_path: Path, records: list[Override]) -> None:
    """Whatever is added is loaded by the next one that looks, until it is revoked; file names hold any id."""
    store = Store(tmp_path / "state/overrides.d")
    for record in records:
        store.add(record)
    assert {placed.record for placed in store.load().records} == set(records)
    for record in records:
        store.revoke(record.id)
    assert store.load().records == []
    assert list((tmp_path / "state/overrides.d").iterdir()) == [] if records else True


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one record."""
    made = Store(tmp_path / "overrides.d")
    made.add(EXEMPT)
    return made


def test_a_record_is_kept_privately(store: Store, tmp_path: Path) -> None:
    """One file a record, mode 0640, marked against cuts, readable by people; no temporary file stays."""
    (path,) = (tmp_path / "overrides.d").iterdir()
    assert path.name == "record-REQ-1.yaml"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text() == (
        f'{yamlsafe.ENDS_MARKED}\noverrides:\n  - id: REQ-1\n    interfaces: ["eth0"]\n    action: exempt\n'
        '    expires: never\n    approved_by: "ops"\n    reason: "test"\n...\n'
    )
    assert store.load().notes == []


def test_an_id_is_taken_once(store: Store) -> None:
    """By the store or by an operator's file: the answer says where it lives."""
    with pytest.raises(PeerError, match="REQ-1 exists already, in the daemon's own store"):
        overrides.judge(EXEMPT, Rules(overrides=(EXEMPT,)), NOW)
    with pytest.raises(PeerError, match=r"REQ-2 exists already, in /etc/o.yaml:3"):
        overrides.judge(replace(EXEMPT, id="REQ-2"), Rules(overrides=(replace(EXEMPT, id="REQ-2", origin="/etc/o.yaml:3"),)), NOW)
    with pytest.raises(PeerError, match="exists already; revoke REQ-1 first"):
        store.add(EXEMPT)
    overrides.judge(replace(EXEMPT, id="REQ-3"), Rules(), NOW)


def test_a_record_that_contradicts_the_policies_is_refused(store: Store) -> None:
    """Before anything is written; it is an argument that is wrong, no file."""
    record = replace(EXEMPT, id="REQ-4", action=OverrideAction.LIMIT, limit_bps=10**10)
    with pytest.raises(PeerError, match="not below the threshold") as caught:
        overrides.judge(record, Rules(), NOW)
    assert caught.value.exit_code == EXIT_FAILED


def test_a_record_that_would_not_read_back_is_not_written(store: Store, tmp_path: Path) -> None:
    """A caller's mistake changes nothing on disk."""
    for wrong in (replace(EXEMPT, id="REQ-5", reason=""), replace(EXEMPT, id="REQ-5", reason="two  spaces")):
        with pytest.raises(ConfigError):
            store.add(wrong)
    assert len(list((tmp_path / "overrides.d").iterdir())) == 1


def test_revoking_what_is_not_there(store: Store) -> None:
    """Says so, and where to look."""
    with pytest.raises(PeerError, match="has no override REQ-9; see `limiterctl override list`"):
        store.revoke("REQ-9")


def test_a_damaged_record_can_be_revoked_and_hinders_no_other(store: Store, tmp_path: Path) -> None:
    """It is reported, its id stays taken until it is revoked, and the others load."""
    store.add(replace(EXEMPT, id="REQ-2"))
    path = tmp_path / "overrides.d/record-REQ-1.yaml"
    path.write_text(path.read_text()[:50])
    found = store.load()
    assert [placed.record.id for placed in found.records] == ["REQ-2"]
    assert {problem.file for problem in found.problems} == {str(path)}
    with pytest.raises(PeerError, match="exists already"):
        store.add(EXEMPT)
    store.revoke("REQ-1")
    store.add(EXEMPT)
    assert store.load().problems == []


def test_a_file_of_several_records_loses_only_the_revoked_one(store: Store, tmp_path: Path) -> None:
    """Such a file is not ours to write, but it may be there."""
    others = [replace(EXEMPT, id="REQ-7"), replace(EXEMPT, id="REQ-8")]
    (tmp_path / "overrides.d/by-hand.yaml").write_text(overrides.to_yaml(others))
    store.revoke("REQ-7")
    assert {placed.record.id for placed in store.load().records} == {"REQ-1", "REQ-8"}


def test_a_full_store_takes_no_more_and_loses_none(store: Store, tmp_path: Path) -> None:
    """The 1 001st record is refused before anything is written; where more files stand there all the same, 1 000 are read."""
    directory = tmp_path / "overrides.d"
    for number in range(overrides.MAX_FILES - 1):
        (directory / f"record-N{number}.yaml").write_text(overrides.to_yaml([replace(EXEMPT, id=f"N{number}")]))
    with pytest.raises(PeerError, match="holds 1000 records, the most there may be; revoke those not needed any more"):
        store.add(replace(EXEMPT, id="ONE-MORE"))
    assert len(store.load().records) == len(list(directory.iterdir())) == overrides.MAX_FILES
    assert store.load().problems == []
    (directory / "record-by-hand.yaml").write_text(overrides.to_yaml([replace(EXEMPT, id="ONE-MORE")]))
    found = store.load()
    assert len(found.records) == overrides.MAX_FILES
    assert "holds 1001 files" in str(found.problems[0])


def test_what_does_not_read_back_is_not_kept(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes a record and gives another one back: an error, and no file stays."""
    monkeypatch.setattr(overrides, "write_atomic", lambda path, data, **_: path.write_bytes(data.replace(b"eth0", b"eth1")))
    with pytest.raises(EnvironmentFault, match="does not read back"):
        store.add(replace(EXEMPT, id="REQ-2"))
    assert [path.name for path in (tmp_path / "overrides.d").iterdir()] == ["record-REQ-1.yaml"]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow: every write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_content(store: Store, tmp_path: Path) -> None:
    """The fault is the environment's; nothing is half-written, and the next attempt works."""
    new = replace(EXEMPT, id="REQ-2")
    with full_disk(), pytest.raises(EnvironmentFault, match="cannot be written"):
        store.add(new)
    assert [path.name for path in (tmp_path / "overrides.d").iterdir()] == ["record-REQ-1.yaml"]
    assert [placed.record for placed in store.load().records] == [EXEMPT]
    store.add(new)
    assert len(store.load().records) == 2


def test_a_store_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    """A file in the place of the directory, for one."""
    (tmp_path / "state").write_text("")
    with pytest.raises(EnvironmentFault) as caught:
        Store(tmp_path / "state/overrides.d").add(EXEMPT)
    assert caught.value.errno_name in {"ENOTDIR", "EEXIST"}


def test_a_cut_store_file_is_refused_at_every_offset(store: Store, tmp_path: Path) -> None:
    """No cut record is taken for a whole one."""
    path = tmp_path / "overrides.d/record-REQ-1.yaml"
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        found = store.load()
        assert found.problems or [placed.record for placed in found.records] == [EXEMPT], end


@pytest.mark.usefixtures("real_root")
def test_the_daemons_user_may_own_its_records(store: Store, tmp_path: Path) -> None:
    """Root, who checks, trusts the owner of the state directory, and nobody else."""

    def give(uid: int) -> Callable[[Path], None]:
        return lambda path: os.chown(path, uid, 0)

    for path in (tmp_path, tmp_path / "overrides.d", *(tmp_path / "overrides.d").iterdir()):
        give(65_532)(path)
    assert store.load().problems == []
    give(65_531)(tmp_path / "overrides.d/record-REQ-1.yaml")
    assert "belongs to uid 65531" in str(store.load().problems[0])
