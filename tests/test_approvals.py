"""Overrides and requests through the daemon: all or nothing on disk and in force, one entry of the trail for one act."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from limiterd.config import load as config
from limiterd.config.override_files import Store, record_from_mapping, to_yaml
from limiterd.core.errors import ConfigError, EnvironmentFault, PeerError
from limiterd.core.model import Config, LinkView, Now, Phase, Rules
from limiterd.core.units import exact_wall, parse_wall
from limiterd.daemon.approvals import Approvals
from limiterd.daemon.durability import Act
from limiterd.daemon.health import Health
from limiterd.daemon.reload import Reloading
from limiterd.store.request_store import Approval, Request, RequestInput, RequestState, RequestStore
from tests.netns import wait_for

T = TypeVar("T")
MBIT = 10**6
DAY = 86_400 * 10**9
LATER = "2099-01-01"
EXEMPT: Mapping[str, object] = {
    "id": "A", "interfaces": ["eth0"], "action": "exempt", "expires": LATER, "approved_by": "ops", "reason": "why",
}  # fmt: skip


@dataclass(frozen=True)
class Somebody:
    """Who asks."""

    uid: int = 0
    name: str = "root"
    account: int = 0


class Daemon:
    """Real files, a real reload and real stores; no engine, no loop, no kernel."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "limiterd.yaml"
        (home / "overrides.d").mkdir()
        self.configure()
        self.rules: Rules = config.load_rules(self.path, host=config_host())
        self.trail: list[tuple[str, str, dict[str, Any]]] = []
        self.problems = Health(time.time_ns, lambda *_: None)
        self.refuses: Callable[[], None] = lambda: None
        self.disk_refuses: Callable[[], None] = lambda: None
        self.durability = self
        self.audit = self
        self.links: tuple[str, ...] = ("eth0", "eth1")
        loaded = config.load_all(self.path, host=config_host())
        self.reloading = Reloading(str(self.path), loaded, self, self, self, self, self.problems, clocks)  # type: ignore[arg-type]
        state = home / "state"
        self.approvals = Approvals(self, RequestStore(state), Store(state / "overrides.d"))  # type: ignore[arg-type]
        assert self.approvals.load() == ()

    def configure(self, extra: str = "") -> None:
        """Write the configuration."""
        own = f"overrides: {{directory: {self.home}/overrides.d}}\nstate: {{directory: {self.home}/state}}\n"
        self.path.write_text(own + extra)

    # ---- what approvals need of the daemon, beside the reloading

    def status(self) -> Any:
        """Links that are not limited."""

        class Shown:
            links = tuple(
                LinkView(name, 2, "fair-use", "enforce", Phase.CONFORMING, 0, 0, policy_limit_bps=200 * MBIT)
                for name in self.links
            )

        return Shown

    def tell(self, kind: str, interface: str, text: str, fields: Mapping[str, object], _: str = "info") -> None:
        """An entry of the trail."""
        self.append(kind, interface, {"text": text, **fields})

    def read(self, *_: object, **__: object) -> tuple[()]:
        """Nothing of an earlier run."""
        return ()

    def record(self, *acts: Act) -> None:
        """Acts on the disk, with what stands there at that moment."""
        for act in acts:
            self.append(act.kind, act.interface, {"text": act.text, **act.fields})
        self.disk_refuses()

    # ---- what a reload needs

    def append(self, kind: str, interface: str = "", fields: Mapping[str, object] | None = None) -> str:
        """An entry of the trail."""
        self.trail.append((kind, interface, dict(fields or {})))
        return ""

    def emit(self, *_: object) -> None:
        """A line of the log."""

    def call(self, function: Callable[[], T]) -> T:
        """In the loop."""
        return function()

    def reload_begins(self) -> None:
        """Told to the service manager."""

    reload_ends = reload_begins
    forget_frame = reload_begins

    def reserve(self, _: Config) -> Callable[[], None]:
        """What a machine may refuse."""
        return lambda: None

    def adapt(self, *_: object) -> None:
        """Follow."""

    def take_rules(self, rules: Rules) -> None:
        """Swap in; an entry marks the moment, from which on links are released."""
        self.refuses()
        self.rules = rules
        self.append("(in force)")

    # ---- what tests look at

    def in_force(self) -> list[str]:
        """The ids of the records that are in force."""
        return [record.id for record in self.rules.overrides]

    def on_disk(self) -> list[str]:
        """The daemon's own record files."""
        return sorted(path.name for path in (self.home / "state" / "overrides.d").glob("*"))

    def kinds(self) -> list[str]:
        """The trail's kinds so far, which are then forgotten."""
        kinds = [kind for kind, _, _ in self.trail]
        self.trail.clear()
        return kinds

    def request(self, rate_bps: int | None = 400 * MBIT) -> str:
        """File a request; its id."""
        filed = self.approvals.file(RequestInput("eth0", rate_bps, time.time_ns() + DAY, "backup", 1000, "alice", 1000))
        assert isinstance(filed, dict)
        return str(filed["id"])

    def requested(self, identifier: str) -> Request:
        """A request as it is kept."""
        return self.approvals.requests.get(identifier)


def config_host() -> str:
    """This machine, as the daemon names it."""
    from limiterd.daemon.host import hostname  # noqa: PLC0415 - for this one line

    return hostname()


def clocks() -> Now:
    """Both clocks."""
    return Now(time.monotonic_ns(), time.time_ns())


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon without a link that is limited."""
    return Daemon(tmp_path)


def _refuse() -> None:
    raise EnvironmentFault("the machine refuses", operation="control")


def test_one_act_is_one_entry(daemon: Daemon) -> None:
    """Adding and revoking each leave one entry with the new hash, before what follows from it; no reload repeats it."""
    daemon.approvals.add(EXEMPT, "root")
    (added, _) = daemon.trail
    assert added[:2] == ("override_added", "eth0")
    assert (added[2]["sha256"], added[2]["by"], added[2]["id"]) == (daemon.rules.sha256, "root", "A")
    assert added[2]["changes"] == [f"+ override A eth0 exempt until {LATER}T00:00:00Z"]
    assert daemon.kinds() == ["override_added", "(in force)"]
    daemon.approvals.revoke("A", "over", "root")
    assert daemon.trail[0][2]["text"] == "root revoked override A: over"
    assert daemon.kinds() == ["override_revoked", "(in force)"]
    assert (daemon.in_force(), daemon.on_disk()) == ([], [])


def test_what_changed_in_the_files_meanwhile_stays_for_the_reload(daemon: Daemon) -> None:
    """An act changes its own record alone: files that were edited wait for their reload, and their hash is not claimed."""
    daemon.configure("on_exit: remove\n")
    daemon.approvals.add(EXEMPT, "root")
    assert daemon.kinds() == ["override_added", "(in force)"]
    daemon.reloading.reload("root")
    assert daemon.trail[0][2]["changes"] == ["~ on_exit keep → remove"]


@pytest.mark.parametrize("broken", ["limiterd.yaml", "overrides.d/x.yaml"])
def test_broken_files_are_no_obstacle(daemon: Daemon, broken: str) -> None:
    """A record is judged against the rules in force, whatever stands in the files; the next load of mended files finds it."""
    before = {path: path.read_text() for path in [daemon.path]}
    identifier = daemon.request()
    (daemon.home / broken).write_text("nonsense: [\n")
    daemon.approvals.approve(identifier, Approval(), Somebody())
    daemon.approvals.add(EXEMPT, "root")
    daemon.approvals.revoke(identifier, "", "root")
    assert daemon.in_force() == ["A"]
    (daemon.home / broken).unlink()
    for path, text in before.items():
        path.write_text(text)
    sha256 = daemon.rules.sha256
    assert daemon.reloading.reload("root") == ()
    assert (daemon.rules.sha256, daemon.in_force()) == (sha256, ["A"])


def test_the_hash_is_that_of_the_files(daemon: Daemon) -> None:
    """After any sequence of acts status shows the hash that a load of the files gives."""
    (daemon.home / "state").mkdir(exist_ok=True)
    for number in (3, 1, 2):
        daemon.approvals.add({**EXEMPT, "id": f"R{number}"}, "root")
        assert daemon.rules.sha256 == config.load_rules(daemon.path, host=config_host()).sha256
    several = to_yaml([replace(daemon.rules.overrides[0], id=name) for name in ("X", "Y")])
    (daemon.home / "state" / "overrides.d" / "by-hand.yaml").write_text(several)
    daemon.reloading.reload("root")
    for identifier in ("R1", "X", "R3"):
        daemon.approvals.revoke(identifier, "", "root")
        assert daemon.rules.sha256 == config.load_rules(daemon.path, host=config_host()).sha256
    assert sorted(daemon.in_force()) == ["R2", "Y"]


def test_an_id_of_another_hosts_record_is_taken(daemon: Daemon) -> None:
    """The operator's records for other hosts are not in force here; their ids are taken all the same, or a start would fail."""
    elsewhere = replace(record_from_mapping(EXEMPT), hosts=("elsewhere",))
    (daemon.home / "overrides.d" / "fleet.yaml").write_text(to_yaml([elsewhere]))
    daemon.reloading.reload("root")
    with pytest.raises(PeerError, match=r"override A exists already, in .*/fleet.yaml"):
        daemon.approvals.add(EXEMPT, "root")


def _full() -> None:
    raise EnvironmentFault("the disk is full", operation="write", errno_name="ENOSPC")


@pytest.mark.parametrize("obstacle", ["disk_refuses", "refuses"])
def test_a_refused_record_leaves_nothing_behind(daemon: Daemon, obstacle: str) -> None:
    """Where the trail or the loop refuses, the record is gone from disk; the trail, which may have its entry, says so."""
    setattr(daemon, obstacle, _full)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        daemon.approvals.add(EXEMPT, "root")
    assert (daemon.in_force(), daemon.on_disk()) == ([], [])
    assert daemon.trail[-1][2]["text"].startswith("this was not carried out: root added override A")
    assert daemon.kinds() == ["override_added", "undone"]
    setattr(daemon, obstacle, lambda: None)
    assert daemon.reloading.reload("root") == ()


@pytest.mark.parametrize("obstacle", ["disk_refuses", "refuses"])
def test_a_refused_revocation_keeps_the_record(daemon: Daemon, obstacle: str) -> None:
    """Where the trail or the loop refuses, the record is on disk as before, and in force."""
    daemon.approvals.add(EXEMPT, "root")
    daemon.kinds()
    setattr(daemon, obstacle, _full)
    with pytest.raises(EnvironmentFault):
        daemon.approvals.revoke("A", "", "root")
    assert (daemon.in_force(), daemon.on_disk()) == (["A"], ["record-A.yaml"])
    assert daemon.kinds() == ["override_revoked", "undone"]


def test_what_cannot_be_taken_back_is_said_and_shown(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes the record and keeps it: the error says that it is there; status shows it until a reload applies it."""

    def stuck(_: object, record_id: str) -> None:
        raise EnvironmentFault(f"{record_id} cannot be removed", operation="write")

    daemon.disk_refuses = _full
    with monkeypatch.context() as patch:
        patch.setattr(Store, "revoke", stuck)
        with pytest.raises(EnvironmentFault, match=r"full; what was refused is on disk all the same \(A cannot be removed\)"):
            daemon.approvals.add(EXEMPT, "root")
    assert "override A: " in daemon.problems.all()[0].message
    daemon.disk_refuses = lambda: None
    daemon.reloading.reload("root")
    assert daemon.in_force() == ["A"]
    assert daemon.problems.all() == ()


@pytest.mark.parametrize("obstacle", ["disk_refuses", "refuses"])
def test_a_refused_approval_leaves_the_request_pending(daemon: Daemon, obstacle: str) -> None:
    """It can be approved once the machine allows it: the first attempt decided nothing."""
    identifier = daemon.request()
    daemon.kinds()
    setattr(daemon, obstacle, _full)
    with pytest.raises(EnvironmentFault):
        daemon.approvals.approve(identifier, Approval(), Somebody())
    assert daemon.requested(identifier).state is RequestState.PENDING
    assert (daemon.on_disk(), daemon.kinds()) == ([], ["override_added", "request_approved", "undone"])
    setattr(daemon, obstacle, lambda: None)
    daemon.approvals.approve(identifier, Approval(), Somebody())
    assert daemon.requested(identifier).state is RequestState.APPROVED
    assert daemon.kinds() == ["override_added", "request_approved", "(in force)"]


def test_a_request_or_denial_that_the_trail_refuses_is_none(daemon: Daemon) -> None:
    """Filing and denying change neither memory nor the file where their entry is not on the disk."""
    identifier = daemon.request()
    daemon.disk_refuses = _full
    with pytest.raises(EnvironmentFault):
        daemon.request()
    with pytest.raises(EnvironmentFault):
        daemon.approvals.deny(identifier, "no", "root")
    for store in (daemon.approvals.requests, RequestStore(daemon.home / "state")):
        store.load()
        assert [(one.id, one.state) for one in store.requests] == [(identifier, RequestState.PENDING)]


def test_expired_records_go_after_a_while(daemon: Daemon) -> None:
    """The next act removes own records that expired a week ago, and says which; younger ones and the operator's stay."""
    for age_days, name in ((8, "OLD"), (6, "YOUNG")):
        end = exact_wall(time.time_ns() - age_days * DAY)
        record = record_from_mapping({**EXEMPT, "id": name, "expires": end})
        daemon.approvals.overrides.add(record)
        (daemon.home / "overrides.d" / f"{name}.yaml").write_text(to_yaml([replace(record, id=f"THEIR-{name}")]))
    daemon.reloading.reload("root")
    daemon.kinds()
    daemon.approvals.add(EXEMPT, "root")
    assert daemon.in_force() == ["THEIR-OLD", "THEIR-YOUNG", "YOUNG", "A"]
    assert daemon.on_disk() == ["record-A.yaml", "record-YOUNG.yaml"]
    assert next(fields["ids"] for kind, _, fields in daemon.trail if kind == "override_pruned") == ["OLD"]
    assert daemon.reloading.reload("root") == ()


def test_what_was_granted_is_kept_with_the_request(daemon: Daemon) -> None:
    """Whoever asked sees what they got, which may be less than what they wanted; the trail has it, too."""
    identifier = daemon.request()
    daemon.approvals.approve(identifier, Approval(limit_bps=300 * MBIT, never=True), Somebody())
    assert daemon.requested(identifier).granted == "limit 300mbit and never expires"
    assert daemon.trail[-2][2]["granted"] == "limit 300mbit and never expires"
    (record,) = daemon.rules.overrides
    assert record.approved_by == f"root@{config_host()}"


@pytest.mark.parametrize("name", ["!eth9", "eth[0]", "e*th", "!!x"])
def test_an_approval_matches_its_link_alone(daemon: Daemon, name: str) -> None:
    """A link whose name looks like a pattern or an exclusion gets an override that matches it, and nothing else."""
    daemon.links = (name, "eth9", "eth0", "exth")
    daemon.configure("policies: [{name: all, interfaces: ['*']}]\n")
    daemon.reloading.reload("root")
    asked = RequestInput(name, 400 * MBIT, time.time_ns() + DAY, "backup", 1000, "alice", 1000)
    filed = daemon.approvals.file(asked)
    assert isinstance(filed, dict)
    said = daemon.approvals.approve(str(filed["id"]), Approval(), Somebody())
    assert isinstance(said, dict)
    assert said["in_force_on"] == [name]


def test_the_latest_approval_is_in_force(daemon: Daemon) -> None:
    """Of ten requests for one link each approval goes before the one before it, whatever their ids, and says so."""
    for number in range(1, 11):
        identifier = daemon.request((300 + number) * MBIT)
        said = daemon.approvals.approve(identifier, Approval(), Somebody())
        assert isinstance(said, dict)
        assert said["in_force_on"] == ["eth0"]
        assert ["goes before override" in warning for warning in said["warnings"]] == [True] * (number > 1)


@pytest.mark.parametrize(
    ("fields", "in_force_on", "warning"),
    [
        ({"id": "Z"}, ["eth0"], "eth0: goes before override B (its id is greater)"),
        ({"id": "A"}, [], "eth0: override B goes before it (its id is greater), so nothing changes there; revoke that one first"),
        ({"interfaces": ["eth*"]}, ["eth1"], "eth0: override B goes before it (it names the link exactly), so nothing changes"),
        ({"interfaces": ["wlan*"]}, [], "override A: no watched link matches it now"),
        ({"interfaces": ["lan0"]}, [], "override A names lan0, which no policy watches"),
        ({"interfaces": ["!eth0"]}, [], "override A only excludes interfaces, so it matches none"),
        ({"not_before": "2098-01-01"}, [], None),
    ],
)
def test_a_record_without_effect_says_so(
    fields: Mapping[str, object], in_force_on: list[str], warning: str | None, daemon: Daemon
) -> None:
    """Where another record goes before it, or nothing matches it, the answer names that; else the links it is in force on."""
    daemon.approvals.add({**EXEMPT, "id": "B"}, "root")
    said = daemon.approvals.add({**EXEMPT, **fields}, "root")
    assert isinstance(said, dict)
    assert said["in_force_on"] == in_force_on
    assert [text[: len(warning or "")] for text in said["warnings"]] == ([warning] if warning else [])


def test_many_warnings_are_cut(daemon: Daemon) -> None:
    """A record for every link of a hypervisor does not print a line for each."""
    daemon.links = tuple(f"eth{number}" for number in range(500))
    daemon.approvals.add({**EXEMPT, "interfaces": ["eth*"]}, "root")
    said = daemon.approvals.add({**EXEMPT, "id": "B", "interfaces": ["eth*"]}, "root")
    assert isinstance(said, dict)
    assert len(said["warnings"]) == 9
    assert said["warnings"][-1] == "… and 492 more links like these"


def test_the_id_of_a_pending_request_is_not_free(daemon: Daemon) -> None:
    """A record under it would pass for the approval of a request that it does not answer."""
    identifier = daemon.request()
    with pytest.raises(PeerError, match=f"{identifier} is a pending request.*limiterctl approve {identifier}"):
        daemon.approvals.add({**EXEMPT, "id": identifier}, "root")
    assert daemon.requested(identifier).state is RequestState.PENDING
    daemon.approvals.deny(identifier, "no", "root")
    assert daemon.on_disk() == []


def test_a_wrong_record_is_a_usage_error(daemon: Daemon) -> None:
    """What was sent is no file: its mistakes are named by key, with the exit code of a wrong argument."""
    with pytest.raises(PeerError) as refused:
        daemon.approvals.add({**EXEMPT, "id": "a b", "reason": ""}, "root")
    assert refused.value.exit_code == 2
    assert str(refused.value).splitlines()[0].startswith("id: 'a b' is not an id")
    assert len(str(refused.value).splitlines()) == 2


def test_a_long_list_of_problems_is_one_in_the_trails_text(daemon: Daemon) -> None:
    """The sentence names the first and how many more there are; the entry holds all of them."""
    daemon.path.write_text(daemon.path.read_text() + "on_exit: never\nlog: {level: x, format: y}\n")
    with pytest.raises(ConfigError):
        daemon.reloading.reload("root")
    (kind, _, fields) = daemon.trail[-1]
    assert kind == "reload_failed"
    assert fields["text"].endswith("on_exit: 'never' is not known; write keep or remove (and 2 more)")
    assert fields["error"].count("\n") == 2


def test_an_approval_that_a_crash_cut_in_two_is_completed(daemon: Daemon, tmp_path: Path) -> None:
    """The override is on disk, the decision is not: the next start takes it for approved, writes it down, and audits it."""
    identifier = daemon.request()
    daemon.approvals.approve(identifier, Approval(), Somebody())
    path = tmp_path / "state" / "requests.json"
    wait_for(lambda: b'"state":"approved"' in path.read_bytes(), "the decision is written down")
    pending = replace(daemon.requested(identifier), state=RequestState.PENDING, decided_by="", decided_wall_ns=None, granted="")
    RequestStore(path.parent)._commit((pending,), 1)
    daemon.trail.clear()
    daemon.approvals.load()
    assert daemon.requested(identifier).state is RequestState.APPROVED
    assert daemon.kinds() == ["request_approved"]
    with pytest.raises(PeerError, match="was approved by root@"):
        daemon.approvals.deny(identifier, "x", "root")
    wait_for(lambda: b'"state":"approved"' in path.read_bytes(), "the decision is written down again")


def test_a_record_is_extended_in_place(daemon: Daemon) -> None:
    """Its end alone changes, at once, on the disk and in the hash; the trail says who and until when; revoking still works."""
    daemon.approvals.add(EXEMPT, "root")
    shown = daemon.approvals.extend("A", parse_wall("2998-01-01"), "more work", "root")
    assert shown == {"changes": ["~ override A expires 2099-01-01T00:00:00Z → 2998-01-01T00:00:00Z"]}
    assert daemon.rules.overrides[0].expires_wall_ns == parse_wall("2998-01-01")
    assert daemon.rules.sha256 == config.load_rules(daemon.path, host=config_host()).sha256
    (fields,) = [fields for kind, _, fields in daemon.trail if kind == "override_extended"]
    assert fields["text"] == "root extended override A: exempt until 2998-01-01T00:00:00Z: more work"
    daemon.approvals.extend("A", None, "", "root")
    daemon.approvals.revoke("A", "", "root")
    assert daemon.in_force() == []


def test_what_cannot_be_extended_is_refused(daemon: Daemon) -> None:
    """Into the past, before its begin, a record of the operator's, one that is not there, one that the policy contradicts."""
    daemon.approvals.add({**EXEMPT, "not_before": "2998-01-01", "expires": "2998-02-01"}, "root")
    theirs = replace(record_from_mapping(EXEMPT), id="B")
    (daemon.home / "overrides.d" / "b.yaml").write_text(to_yaml([theirs]))
    daemon.reloading.reload("root")
    before = daemon.rules
    for identifier, until, says in (
        ("A", "2000-01-01", "expires: 2000-01-01T00:00:00Z is past already|is not after its begin"),
        ("A", "2997-01-01", "is not after its begin, 2998-01-01T00:00:00Z; to end it now, revoke it"),
        ("B", "2999-01-01", "only its owner changes"),
        ("C", "2999-01-01", "has no override C"),
    ):
        with pytest.raises(PeerError, match=says):
            daemon.approvals.extend(identifier, parse_wall(until), "", "root")
    assert daemon.rules is before


def test_an_extension_that_cannot_be_told_is_taken_back(daemon: Daemon) -> None:
    """Where the trail takes no entry the record ends as it did, on the disk too."""
    daemon.approvals.add(EXEMPT, "root")
    sha256 = daemon.rules.sha256

    def full() -> None:
        raise EnvironmentFault("the disk is full", operation="write")

    daemon.disk_refuses = full
    with pytest.raises(EnvironmentFault):
        daemon.approvals.extend("A", parse_wall("2998-01-01"), "", "root")
    assert config.load_rules(daemon.path, host=config_host()).sha256 == sha256 == daemon.rules.sha256
