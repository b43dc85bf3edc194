"""check = start: whatever a file or directory holds, everybody who judges it gives one verdict.

The judges: `limiterctl check FILE`, `limiterctl check DIRECTORY`, `limiterd --check`, a start, and a reload.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from limiterd import cli, daemon
from limiterd.config import load as config
from limiterd.config.check import check
from limiterd.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_NOPERM, ConfigError
from limiterd.core.keys import Section, keys_of
from limiterd.core.model import Config, Override, Policy, Rules
from tests import test_config, test_overrides
from tests.test_approvals import Daemon

ROOT: Final = Path(__file__).resolve().parent.parent
HOSTILE: Final = sorted((ROOT / "tests/data/hostile").glob("*.yaml"))
RECORD: Final = test_config.RECORD


# ---- the corpus --------------------------------------------------------------------------------------


def leaves(owner: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every key that has a value of its own, with its default as text."""
    for key in keys_of(owner).values():
        if isinstance(key.kind, Section):
            yield from leaves(key.kind.make, (*path, key.name))
        elif key.name != "policies":
            yield (*path, key.name), key.kind.write(key.default)


def nested(path: tuple[str, ...], value: str) -> str:
    """A key at a path as text in flow style: "a: {b: {c: value}}"."""
    *outer, last = path
    text = f"{last}: {value}"
    for name in reversed(outer):
        text = f"{name}: {{{text}}}"
    return text


def generated() -> Iterator[tuple[str, str]]:
    """Each key with its default, with a word that it cannot be, with a list and with nothing; the shipped file cut anywhere."""
    for owner, before, after in ((Config, "", "\n"), (Policy, "policies: [{", "}]\n")):
        for path, default in leaves(owner):
            for name, value in (("default", default), ("word", "x?y"), ("list", "[[]]"), ("nothing", "")):
                yield f"{'.'.join(path)}-{name}", before + nested(path, value) + after
    shipped = (ROOT / "config/limiterd.yaml").read_text(encoding="utf-8")
    for end in range(0, len(shipped), 419):
        yield f"cut-{end}", shipped[:end]


CONFIGS: Final[list[tuple[str, bytes]]] = [
    *((f"wrong-{number}", text.encode()) for number, (text, _) in enumerate(test_config.WRONG)),
    *((path.name, path.read_bytes()) for path in HOSTILE),
    *((name, text.encode()) for name, text in generated()),
    ("documented", test_config.DOCUMENTED.encode()),
    ("other", test_config.OTHER.replace("group: users, admin_group: wheel", "group: root").encode()),
    ("unknown-group", b"control: {group: there-is-no-such-group}\n"),
    ("unknown-admin-group", b"control: {admin_group: there-is-no-such-group}\n"),
    ("every-address", b'metrics: {listen: "*:9817"}\n'),
    ("mapped", b'metrics: {listen: "[::ffff:127.0.0.1]:9817"}\n'),
    ("only-overrides", b"overrides:\n"),
]
RECORDS: Final[list[tuple[str, bytes]]] = [
    *((f"wrong-{number}", text.encode()) for number, (text, _) in enumerate(test_overrides.WRONG)),
    *((path.name, path.read_bytes()) for path in HOSTILE),
    ("null", b"overrides:\n"),
    ("none", b"overrides: []\n"),
    ("a-configuration", b"overrides: {directory: /srv}\n"),
    ("good", RECORD.encode()),
    ("documented", test_overrides.DOCUMENTED.encode()),
    ("twice", (RECORD + RECORD.partition("\n")[2]).encode()),
    ("taken", RECORD.replace("REQ-1", "REQ-own").encode()),
    ("above-the-threshold", RECORD.replace("exempt", "limit\n    limit: 2gbit").encode()),
    ("above-but-elsewhere", RECORD.replace("exempt", "limit\n    limit: 2gbit\n    hosts: [elsewhere]").encode()),
    ("wrong-and-elsewhere", RECORD.replace("exempt", "nothing\n    hosts: [elsewhere]").encode()),
    *(
        (f"{key.name}-{name}", test_overrides.flow(**{key.name: value}).encode())
        for key in keys_of(Override).values()
        for name, value in (("word", "x? y"), ("list", "[[]]"), ("empty", ""), ("left-out", None))
    ),
]


def test_the_corpus_is_large() -> None:
    """At least 200 texts of each kind, good ones among them."""
    assert len(CONFIGS) >= 200
    assert len(CONFIGS) + len(RECORDS) >= 400


# ---- the judges --------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Ask every judge about a configuration file; `also` are further paths for limiterctl to check beside the installed one."""
    home = tmp_path / "running"
    home.mkdir()
    running = Daemon(home)
    own = home / "state/overrides.d"
    own.mkdir(parents=True)
    (own / "own.yaml").write_text(RECORD.replace("REQ-1", "REQ-own"))
    running.rules = config.load_rules(running.path, host="h")
    monkeypatch.setattr(daemon, "_serve", lambda *_: EXIT_DONE)

    def exit_of(act: Callable[[], int]) -> int:
        try:
            code = act()
        except ConfigError:
            return EXIT_CONFIG
        return EXIT_DONE if code == EXIT_NOPERM else code  # it was valid, and only root may go on

    def judge(path: Path, *also: Path) -> dict[str, int]:
        acts: dict[str, Callable[[], int]] = {
            f"limiterctl check {one.name}": partial(cli.main, ["check", str(one), "--config", str(running.path)]) for one in also
        }
        acts["limiterctl check"] = partial(cli.main, ["check", "--config", str(path)])
        acts["limiterd --check"] = partial(daemon._run, str(path), check=True, cleanup=False, keep_decisions=False)
        acts["limiterd"] = partial(daemon._run, str(path), check=False, cleanup=False, keep_decisions=False)
        verdicts = {name: exit_of(act) for name, act in acts.items()}
        running.reloading._path = str(path)
        running.rules = Rules(config=running.rules.config, host="h")
        try:
            running.reloading.reload("test")
            verdicts["reload"] = EXIT_DONE
        except ConfigError as error:
            fixed = all(
                "needs a restart" in problem.message or "is empty, which" in problem.message for problem in error.problems
            )
            verdicts["reload"] = EXIT_DONE if fixed else EXIT_CONFIG
        capsys.readouterr()
        return verdicts

    yield judge
    assert running.path.exists()


def one_of(verdicts: dict[str, int]) -> int:
    """The one verdict of all judges."""
    assert len(set(verdicts.values())) == 1, verdicts
    return next(iter(verdicts.values()))


@pytest.mark.parametrize("data", [data for _, data in CONFIGS], ids=[name for name, _ in CONFIGS])
def test_one_verdict_on_a_configuration(data: bytes, tmp_path: Path, judged: Callable[..., dict[str, int]]) -> None:
    """Every judge takes it, or every judge refuses it with 78."""
    path = tmp_path / "limiterd.yaml"
    path.write_bytes(data)
    path.chmod(0o644)
    assert one_of(judged(path, path)) in {EXIT_DONE, EXIT_CONFIG}


@pytest.mark.parametrize("data", [data for _, data in RECORDS], ids=[name for name, _ in RECORDS])
def test_one_verdict_on_an_override_file(data: bytes, tmp_path: Path, judged: Callable[..., dict[str, int]]) -> None:
    """The file by itself, its directory, and the configuration that names the directory: one verdict."""
    home = tmp_path / "running"
    path = home / "overrides.d/a.yaml"
    path.write_bytes(data)
    path.chmod(0o644)
    assert one_of(judged(home / "limiterd.yaml", path, path.parent)) in {EXIT_DONE, EXIT_CONFIG}


def test_what_is_good_is_taken(tmp_path: Path, judged: Callable[..., dict[str, int]]) -> None:
    """The verdicts are not all refusals: the good texts of the corpus are taken."""
    good = {"documented", "other", "every-address", "only-overrides"} | {name for name, _ in CONFIGS if name.endswith("-default")}
    path = tmp_path / "limiterd.yaml"
    for name, data in CONFIGS:
        if name in good:
            path.write_bytes(data)
            assert one_of(judged(path, path)) == EXIT_DONE, name
    assert len(good) > 40


def _two(directory: Path) -> None:
    for name in "ab":
        (directory / f"{name}.yaml").write_text(RECORD)


def _linked(directory: Path) -> None:
    (directory / "a").write_text(RECORD)
    (directory / "a.yaml").symlink_to("a")


def _open(directory: Path) -> None:
    (directory / "a.yaml").write_text(RECORD)
    (directory / "a.yaml").chmod(0o666)


def _many(directory: Path) -> None:
    for number in range(1001):
        (directory / f"{number}.yaml").touch()


DIRECTORIES: Final[dict[str, tuple[Callable[[Path], object], int]]] = {
    "empty": (lambda _: None, EXIT_DONE),
    "good": (lambda d: (d / "a.yaml").write_text(RECORD), EXIT_DONE),
    "other-names": (lambda d: (d / "README").write_text("no: [yaml"), EXIT_DONE),
    "twice": (_two, EXIT_CONFIG),
    "fifo": (lambda d: os.mkfifo(d / "a.yaml"), EXIT_CONFIG),
    "directory": (lambda d: (d / "a.yaml").mkdir(), EXIT_CONFIG),
    "void": (lambda d: (d / "a.yaml").symlink_to("nowhere"), EXIT_CONFIG),
    "link": (_linked, EXIT_DONE),
    "circle": (lambda d: (d / "a.yaml").symlink_to("a.yaml"), EXIT_CONFIG),
    "open": (_open, EXIT_CONFIG),
    "open-directory": (lambda d: d.chmod(0o777), EXIT_CONFIG),
    "large": (lambda d: (d / "a.yaml").write_bytes(b"#" * (256 * 1024 + 1)), EXIT_CONFIG),
    "no-utf-8": (lambda d: (d / "a.yaml").write_bytes(b"\xff"), EXIT_CONFIG),
    "many": (_many, EXIT_CONFIG),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_one_verdict_on_a_directory(kind: str, tmp_path: Path, judged: Callable[..., dict[str, int]]) -> None:
    """What lies in a directory beside texts: links, fifos, modes, too much."""
    make, verdict = DIRECTORIES[kind]
    directory = tmp_path / "running/overrides.d"
    make(directory)
    assert one_of(judged(tmp_path / "running/limiterd.yaml", directory)) == verdict


@pytest.mark.parametrize(
    ("data", "code"),
    [("on_exit: remove\n", 0), ("control: {group: there-is-no-such-group}\n", 78), ("overrides: [{id: a}]\n", 78)],
)
def test_the_programs_themselves_agree(data: str, code: int, tmp_path: Path) -> None:
    """`limiterctl check FILE`, `check --config FILE` and `limiterd --check` as processes: one exit code."""
    path = tmp_path / "limiterd.yaml"
    path.write_text(data)
    for words in (["cli", "check", "--config"], ["daemon", "--check", "--config"]):
        done = subprocess.run([sys.executable, "-m", f"limiterd.{words[0]}", *words[1:], path], capture_output=True, check=False)
        assert done.returncode == code, (words, done)


# ---- what a check knows besides ------------------------------------------------------------------------


def test_records_are_judged_beside_the_installed_configuration(tmp_path: Path) -> None:
    """Without a configuration among the paths it is the installed one's policies that count; without that, a note says so."""
    file = tmp_path / "overrides.d/a.yaml"
    file.parent.mkdir()
    file.write_text(RECORD.replace("exempt", "limit\n    limit: 900mbit"))
    installed = tmp_path / "limiterd.yaml"
    own = f"overrides: {{directory: {file.parent}}}\nstate: {{directory: {tmp_path}/state}}\n"
    installed.write_text(f"{own}policies: [{{detect: {{threshold: 500mbit}}}}]\n")
    problems, _ = check([file], default=installed)
    assert "the limit 900mbit is not below the threshold 500mbit of policy fair-use" in problems[0].message
    problems, remarks = check([file], default=tmp_path / "none.yaml")
    assert problems == ()
    assert any("are not judged beside any policy" in remark and "no such file" in remark for remark in remarks)


def test_a_checked_file_meets_its_neighbours(tmp_path: Path) -> None:
    """An id that another file of the daemon's directory has is told, though only the one file is checked; elsewhere it is not."""
    directory = tmp_path / "overrides.d"
    directory.mkdir()
    for name in "ab":
        (directory / f"{name}.yaml").write_text(RECORD)
    (tmp_path / "new.yaml").write_text(RECORD)
    installed = tmp_path / "limiterd.yaml"
    installed.write_text(f"overrides: {{directory: {directory}}}\nstate: {{directory: {tmp_path}/state}}\n")
    (problem,), _ = check([directory / "b.yaml"], default=installed)
    assert f"REQ-1 is given twice, in {directory}/a.yaml:2 and in {directory}/b.yaml:2" in problem.message
    assert check([tmp_path / "new.yaml"], default=installed)[0] == ()
