"""The demo: its judgement, its pictures, the story on the in-memory kernel, and for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd import cli, demo
from limiterd.core.errors import PermissionFault
from limiterd.ctl.format import PLAIN, Palette, display_width
from limiterd.ctl.terminal import Terminal
from limiterd.demo import chart, show
from limiterd.demo.chart import Point
from limiterd.demo.scale import FAST, FULL, Findings, Scale
from limiterd.demo.simulated import SimulatedStage
from limiterd.demo.story import Director, Scene
from limiterd.sim import netns as lab
from tests import netns
from tests.netns import LONG

SCREEN = Terminal(is_terminal=True, width=80, palette=PLAIN, unicode=True)
GOOD = Findings(
    fired_s=10.2,
    limited_s=10.25,
    before_bps=1.5e9,
    shaped_bps=2e8,
    lifted_s=0.1,
    rate_back_s=0.2,
    after_bps=1.5e9,
    root_back_s=0.6,
    reason="sustained",
)


class Pictures:
    """A show that draws every scene and keeps the pictures."""

    def __init__(self) -> None:
        self.pictures: list[list[str]] = []
        self.lines: list[str] = []
        self.acts: list[str] = []

    def update(self, scene: Scene) -> None:
        """Draw."""
        self.pictures.append(show.picture(scene, SCREEN, 23))
        if scene.points:
            self.lines.append(show.line(scene))
        if scene.act not in self.acts:
            self.acts.append(scene.act)


# ---- the story, simulated --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [FULL, FAST], ids=["full", "fast"])
def test_the_simulated_story_keeps_every_promise(scale: Scale) -> None:
    """The real engine on the in-memory kernel: fires after the window, shapes to the limit, is released by the override."""
    pictures = Pictures()
    findings = Director(SimulatedStage(scale, hurry=True), scale, pictures).play()
    assert findings.good(scale), findings
    assert findings.reason == "sustained"
    assert [act[0] for act in pictures.acts] == ["1", "2", "3", "4", "5"]


def test_every_picture_fits_an_80x24_terminal() -> None:
    """From the first to the last, no picture has more than 23 lines of 80 columns, and phases show as they are."""
    pictures = Pictures()
    Director(SimulatedStage(FAST, hurry=True), FAST, pictures).play()
    assert all(len(picture) <= 23 for picture in pictures.pictures)
    assert all(display_width(line) <= 80 and line.isprintable() for picture in pictures.pictures for line in picture)
    assert all("SIMULATED" in picture[0] for picture in pictures.pictures)
    told = "\n".join(pictures.lines)
    assert [told.index(phase) for phase in ("conforming", "pending", "limited", "exempt")] == sorted(
        told.index(phase) for phase in ("conforming", "pending", "limited", "exempt")
    )


def test_too_little_traffic_is_told_as_such() -> None:
    """Where the machine does not reach the threshold the story ends with findings that fail, not with a claim."""
    lame = Scale(
        threshold_bps=FAST.threshold_bps,
        window_ns=FAST.window_ns,
        limit_bps=FAST.limit_bps,
        traffic_bps=FAST.threshold_bps // 2,
        measure_s=0.5,
        policy_yaml=FAST.policy_yaml,
    )
    findings = Director(SimulatedStage(lame, hurry=True), lame, Pictures()).play()
    assert findings.fired_s is None
    assert findings.shaped_bps is None
    assert not findings.good(lame)


# ---- the judgement ---------------------------------------------------------------------------------------------------


def test_what_kept_every_promise_is_good() -> None:
    """Figures inside every bound are good."""
    assert GOOD.good(FULL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fired_s", 9.99),
        ("fired_s", 10.61),
        ("fired_s", None),
        ("limited_s", 10.7),
        ("shaped_bps", 189e6),
        ("shaped_bps", 211e6),
        ("shaped_bps", None),
        ("rate_back_s", 1.01),
        ("rate_back_s", None),
        ("root_back_s", 2.1),
    ],
)
def test_each_broken_promise_fails_alone(field: str, value: float | None) -> None:
    """One figure out of its bounds is enough, and exactly one line says FAIL."""
    findings = Findings(**{name: getattr(GOOD, name) for name in GOOD.__slots__} | {field: value})
    assert not findings.good(FULL)
    assert sum("FAIL" in line for line in show.summary(findings, FULL, SCREEN, simulated=False)) == 1


def test_full_scale_is_the_default_policy() -> None:
    """The demo plays what limiterd.yaml's defaults say: 1gbit, 10s, 200mbit."""
    assert FULL.policy_text() == "1gbit or more for more than 10s is limited to 200mbit"
    assert FULL.policy_yaml == ""


# ---- the chart -------------------------------------------------------------------------------------------------------

POINTS = st.lists(st.builds(Point, st.floats(0, 100), st.floats(0, 1e10), st.sampled_from(["", "red"])), max_size=60)


@given(POINTS, st.integers(40, 120), st.integers(5, 20), st.sampled_from(["unicode", "ascii"]))
def test_a_chart_has_the_size_that_was_asked_for(points: list[Point], width: int, height: int, glyphs: str) -> None:
    """Any points give height lines of at most width columns; colour changes nothing but the colour."""
    options = {"width": width, "height": height, "top_bps": 2e9, "column_s": 0.5, "unicode": glyphs == "unicode"}
    plain = chart.chart(points, [1e9, 2e8], palette=PLAIN, **options)  # type: ignore[arg-type]  # one value a key
    painted = chart.chart(points, [1e9, 2e8], palette=Palette(enabled=True), **options)  # type: ignore[arg-type]  # likewise
    assert len(plain) == height
    assert all(display_width(line) <= width for line in plain)
    assert [strip(line) for line in painted] == plain


def strip(line: str) -> str:
    """A painted line without its escape sequences."""
    head, *rest = line.split("\x1b[")
    return head + "".join(part.partition("m")[2] for part in rest)


def test_a_chart_shows_rates_at_their_height() -> None:
    """A rate of half the top fills half the rows."""
    lines = chart.chart([Point(0.0, 1e9, "")], [], width=20, height=10, top_bps=2e9, column_s=1.0, palette=PLAIN, unicode=True)
    assert [line[9:10].strip() for line in lines[:8]] == [""] * 4 + ["█"] * 4


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated stage does not wait for the real clock."""
    monkeypatch.setattr(demo, "_simulate", lambda scale, screen: demo._play(SimulatedStage(scale, hurry=True), scale, screen))


@pytest.mark.usefixtures("hurried")
def test_simulate_labels_itself_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    """--simulate says at the beginning and at the end that it is a simulation."""
    assert cli.main(["demo", "--fast", "--simulate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "simulated" in lines[0]
    assert any(line.startswith("simulated:") for line in lines[-3:])


@pytest.mark.usefixtures("hurried")
def test_where_namespaces_are_refused_it_says_so_and_simulates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A locked-down machine gets the same story, with the reason why it is not real."""

    def refuse() -> None:
        raise PermissionFault("unshare: Operation not permitted")

    monkeypatch.setattr(lab, "can_make_namespaces", lambda: False)
    monkeypatch.setattr(lab, "enter_user_namespace", refuse)
    assert cli.main(["demo", "--fast"]) == 0
    assert "unshare: Operation not permitted" in capsys.readouterr().err


@pytest.mark.usefixtures("hurried")
def test_a_promise_that_was_not_kept_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is the verdict."""
    monkeypatch.setattr(Findings, "good", lambda *_: False)
    assert cli.main(["demo", "--fast", "--simulate"]) == 1


def test_a_demo_that_nobody_watches_to_its_end_exits_1() -> None:
    """`limiterctl demo | head` ends quietly, and not with the 0 that says that every promise was kept."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "limiterd.cli", "demo", "--fast", "--simulate"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# ---- for real --------------------------------------------------------------------------------------------------------


def processes_with(text: str) -> set[int]:
    """The processes that have this text in their command line or environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in words:
                found.add(int(entry.name))
    return found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`limiterctl demo --fast` as a process of its own, its temporary files below tmp_path."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "limiterd.cli", "demo", "--fast"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


@pytest.mark.long
@pytest.mark.root
@pytest.mark.slow
def test_the_real_demo_keeps_every_promise(running: subprocess.Popen[str], tmp_path: Path) -> None:
    """Real namespaces, real traffic, the real daemon: exit code 0, and nothing is left behind."""
    shown, said = running.communicate(timeout=90)
    assert running.returncode == 0, shown + said
    assert "FIRED" in shown
    assert "SIMULATED" not in shown + said
    assert not list(tmp_path.iterdir())
    assert not processes_with(str(tmp_path)) - {os.getpid()}


@pytest.mark.long
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("cue", ["Two private", "begins", "FIRED", "override REQ-1234"] if LONG else ["FIRED"])
def test_ctrl_c_at_any_time_leaves_nothing_behind(cue: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    """Interrupted in any act, also while the stage is being built: no process, no file, no namespace remains."""
    assert running.stdout is not None
    for line in running.stdout:
        if cue in line:
            break
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "")
    assert not list(tmp_path.iterdir())
    netns.wait_for(lambda: not processes_with(str(tmp_path)) - {os.getpid()}, "the end of every process of the demo")


@pytest.mark.root
@pytest.mark.slow
def test_being_killed_leaves_no_process_behind(running: subprocess.Popen[str], tmp_path: Path) -> None:
    """SIGKILL cannot be heard, but the kernel ends the daemon and the traffic with their parent."""
    assert running.stdout is not None
    for line in running.stdout:
        if "begins" in line:
            break
    running.kill()
    running.communicate(timeout=30)
    netns.wait_for(lambda: not processes_with(str(tmp_path)) - {os.getpid()}, "the end of every process of the demo")
