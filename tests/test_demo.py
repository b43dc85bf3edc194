"""The demo: its judgement, its pictures, the story on the in-memory kernel, and for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, cycle
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limiterd import cli, demo
from limiterd.core.errors import EXIT_INCONCLUSIVE, PermissionFault
from limiterd.core.model import Detect, Sampling
from limiterd.ctl.format import PLAIN, Palette, display_width
from limiterd.ctl.terminal import Terminal
from limiterd.demo import chart, show
from limiterd.demo.chart import Point
from limiterd.demo.demand import Onset
from limiterd.demo.findings import Findings, Verdict
from limiterd.demo.scale import FAST, FULL, Scale
from limiterd.demo.simulated import SimulatedStage
from limiterd.demo.story import Director, Scene
from limiterd.sim import netns as lab
from tests import netns
from tests.core.reference import Sample
from tests.core.streams import Case, first_firing_ns

Pauses = Sequence[tuple[float, float]]

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
    assert findings.verdict(scale) is Verdict.KEPT, findings
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
    assert findings.sentence(lame).startswith("inconclusive: the sender was under 100mbit ")


# ---- traffic that pauses ---------------------------------------------------------------------------------------------


class Faltering(SimulatedStage):
    """The sender does not get the processor in some times, nor does this program in some: (begin, length) in seconds."""

    def __init__(self, scale: Scale, sender: Pauses = (), demo: Pauses = ()) -> None:
        super().__init__(scale, hurry=True)
        self._begin_ns = self.now_ns()
        self._rate_bps = 0
        self._sender, self._demo = sender, demo

    def send(self, rate_bps: int) -> None:
        """What it would send if it were not paused."""
        self._rate_bps = rate_bps

    def pause(self, seconds: float) -> None:
        """In small pieces, each with the traffic that there is in it."""
        now_s = self._now_s()
        end_s = max([now_s + seconds, *(begin + length for begin, length in self._demo if begin <= now_s < begin + length)])
        while (now_s := self._now_s()) < end_s - 0.001:
            paused = any(begin <= now_s < begin + length for begin, length in self._sender)
            super().send(0 if paused else self._rate_bps)
            super().pause(0.01)

    def _now_s(self) -> float:
        return (self.now_ns() - self._begin_ns) / 1e9


def played(scale: Scale, sender: Pauses = (), demo: Pauses = (), rules: Scale | None = None) -> Findings:
    """The story on a faltering stage; rules: another policy in the daemon than the one that is judged."""
    return Director(Faltering(rules or scale, sender, demo), scale, Pictures()).play()


@pytest.mark.parametrize(("scale", "begin_s"), [(FULL, 8.0), (FAST, 3.0)], ids=["full", "fast"])
def test_a_pause_of_the_sender_starts_the_clock_again(scale: Scale, begin_s: float) -> None:
    """1.6 s of silence within the window: the firing is judged from where the traffic began anew, and nothing is accused."""
    findings = played(scale, sender=[(begin_s, 1.6)])
    assert findings.verdict(scale) is Verdict.KEPT, findings
    assert findings.fired_s is not None
    assert findings.fired_s - scale.window_s < 0.3
    assert [str(pause) for pause in findings.pauses] == [f"the sender paused 1.6 s at second {begin_s:.0f}"]


def test_a_sender_that_pauses_again_and_again_proves_nothing() -> None:
    """No window is ever full: inconclusive, with the longest pause; the later acts are not played."""
    findings = played(FULL, sender=[(begin, 1.6 if begin == 18 else 1.3) for begin in range(8, 60, 5)])
    assert findings.verdict(FULL) is Verdict.INCONCLUSIVE
    assert findings.sentence(FULL) == "inconclusive: the sender paused 1.6 s at second 18; run it again"
    assert findings.shaped_bps is None


@pytest.mark.parametrize(
    ("sender", "demo", "told"),
    [
        ([], [(2.0, 1.5)], Verdict.KEPT),  # nobody looked for a while: the counters tell all
        ([(4.5, 1.5)], [], Verdict.KEPT),  # while limited: the class is measured while packets wait
        ([(4.0, 60.0)], [], Verdict.INCONCLUSIVE),  # gone in act 3, for good
        ([(6.9, 2.6)], [], Verdict.INCONCLUSIVE),  # gone while the rate should come back
        ([], [(6.85, 2.6)], Verdict.INCONCLUSIVE),  # nobody saw when the root qdisc came back
    ],
)
def test_a_pause_excuses_what_it_touched(sender: Pauses, demo: Pauses, told: Verdict) -> None:
    """In any act: what can be judged in spite of it is, what cannot is inconclusive and names the pause."""
    findings = played(FAST, sender, demo)
    assert findings.verdict(FAST) is told, findings
    assert ("run it again" in findings.sentence(FAST)) is (told is Verdict.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("rules", "check"),
    [
        (replace(FAST, policy_yaml="    detect: {threshold: 100mbit, window: 4s}\n    limit: {rate: 20mbit}\n"), 0),
        (replace(FAST, policy_yaml="    detect: {threshold: 100mbit, window: 1s}\n    limit: {rate: 20mbit}\n"), 0),
        (replace(FAST, policy_yaml="    detect: {threshold: 100mbit, window: 2s}\n    limit: {rate: 15mbit}\n"), 2),
    ],
    ids=["late", "early", "too narrow"],
)
def test_a_pause_excuses_nothing_else(rules: Scale, check: int) -> None:
    """A daemon that breaks a promise is accused, also beside a sender that paused in the same act."""
    findings = played(FAST, sender=[(1.8, 0.3), (7.0, 0.3)], rules=rules)
    assert findings.verdict(FAST) is Verdict.BROKEN, findings
    assert next(missed.excuse for missed in findings.checks(FAST) if not missed.kept) is None
    assert not findings.checks(FAST)[check].kept


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200)), max_size=6),
    st.integers(0, 9),
    st.lists(st.integers(10, 14), min_size=1),
)
@example([(80, 160)], 0, [10])
def test_no_pause_makes_the_judge_accuse_the_real_detector(runs: list[tuple[int, int]], offset: int, steps: list[int]) -> None:
    """On and off in units of 10 ms, then on: the detector's firing is never early, nor late, by what the readings show."""
    sending = [on for run in runs for on in [True] * run[0] + [False] * run[1]] + [True] * 400
    sent_bytes = [0, *accumulate(FAST.traffic_bps // 800 if on else 0 for on in sending)]
    samples = [Sample(10**7 * tick, 0) for tick in range(offset, 50, 10)]  # the detector has looked at an idle link before
    samples += [Sample(10**7 * (50 + tick), sent_bytes[tick]) for tick in range(offset, len(sent_bytes), 10)]
    detect = Detect(threshold_bps=FAST.threshold_bps, window_ns=FAST.window_ns)
    fired_ns = first_firing_ns(Case(detect, Sampling(), tuple(samples)))
    assert fired_ns is not None
    onset, at = Onset(FAST, 50 * 10**7), 0
    for step in cycle(steps):
        if 10**7 * (50 + at + step) > fired_ns:  # the limit is there at the next reading
            break
        onset.note(10**7 * (50 + at), 10**7 * (50 + at + step), 8 * (sent_bytes[at + step] - sent_bytes[at]))
        at += step
    assert onset.since_ns is not None
    assert onset.since_ns + FAST.window_ns <= fired_ns <= onset.due_ns


# ---- the judgement ---------------------------------------------------------------------------------------------------


def test_what_kept_every_promise_is_good() -> None:
    """Figures inside every bound are good."""
    assert GOOD.verdict(FULL) is Verdict.KEPT


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
    assert findings.verdict(FULL) is Verdict.BROKEN
    *checks, verdict = show.summary(findings, FULL, SCREEN, simulated=False)
    assert sum("FAIL" in line for line in checks) == 1
    assert verdict == "FAIL (4 of 5): a promise was not kept"


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
@pytest.mark.parametrize("verdict", Verdict)
def test_the_exit_code_is_the_verdict(verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 every promise kept, 1 one broken, 75 nothing proven."""
    monkeypatch.setattr(Findings, "verdict", lambda *_: verdict)
    monkeypatch.setattr(Findings, "sentence", lambda *_: "")
    assert cli.main(["demo", "--fast", "--simulate"]) == {"KEPT": 0, "BROKEN": 1, "INCONCLUSIVE": 75}[verdict.name]


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


class Running(subprocess.Popen[str]):
    """`limiterctl demo --fast` as a process of its own, its temporary files below place (short: a socket's path is).

    It is started in the parent of a checkout that holds something hostile: what is in the current directory is not run.
    """

    def __init__(self, place: Path, outside: Path) -> None:
        self.place = place
        super().__init__(
            [Path(sys.executable).parent / "limiterctl", "demo", "--fast"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(place)},
            cwd=outside,
        )

    def until(self, cue: str) -> str:
        """What it shows up to the first line with these words."""
        assert self.stdout is not None
        shown = ""
        for line in self.stdout:
            shown += line
            if cue in line:
                return shown
        raise AssertionError(f"{cue!r} was never shown:\n{shown}{self.stderr.read() if self.stderr else ''}")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """The demo, running."""
    (tmp_path / "limiterd").mkdir()
    hostile = f"open({str(tmp_path / 'was-run')!r}, 'w').close(); raise SystemExit('hostile')\n"
    for name in ("limiterd/__init__.py", "limiterd/daemon.py", "yaml.py", "json.py"):
        (tmp_path / name).write_text(hostile)
    with tempfile.TemporaryDirectory(prefix="d") as place, Running(Path(place), tmp_path) as process:
        yield process
        process.kill()
    assert not (tmp_path / "was-run").exists()


def nothing_is_left(running: Running) -> None:
    """No process, and no file where the demo has its files."""
    netns.wait_for(lambda: not processes_with(str(running.place)) - {os.getpid()}, "the end of every process of the demo")
    assert not list(running.place.iterdir())


@pytest.mark.long
@pytest.mark.root
@pytest.mark.slow
def test_the_real_demo_keeps_every_promise(running: Running) -> None:
    """Real namespaces, real traffic, the real daemon: exit code 0, and nothing is left behind."""
    shown, said = running.communicate(timeout=90)
    assert running.returncode == 0, shown + said
    assert "FIRED" in shown
    assert "SIMULATED" not in shown + said
    nothing_is_left(running)


@pytest.mark.long
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["1.6 s", "for good"])
def test_a_sender_that_is_stopped_is_no_broken_promise(running: Running, *, for_good: bool) -> None:
    """SIGSTOP to the real sender within the window: the clock starts again; where it never goes on, exit code 75 says so."""
    shown = running.until("pending")
    (sender,) = processes_with("tcp-send") & processes_with(str(running.place))
    os.kill(sender, signal.SIGSTOP)
    if not for_good:
        shown += running.until("clock starts again")
        os.kill(sender, signal.SIGCONT)
    rest, said = running.communicate(timeout=90)
    assert (running.returncode == EXIT_INCONCLUSIVE) is for_good, shown + rest + said
    assert "the sender paused" in shown + rest
    assert ("run it again" in rest) is for_good


@pytest.mark.long
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("cue", ["Two private", "begins", "FIRED", "override REQ-1234"])
def test_ctrl_c_at_any_time_leaves_nothing_behind(cue: str, running: Running) -> None:
    """Interrupted in any act, also while the stage is being built: no process, no file, no namespace remains."""
    running.until(cue)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "")
    nothing_is_left(running)


@pytest.mark.root
@pytest.mark.slow
def test_being_killed_leaves_no_process_behind(running: Running) -> None:
    """SIGKILL cannot be heard, but the kernel ends the daemon and the traffic with their parent."""
    running.until("begins")
    running.kill()
    running.communicate(timeout=30)
    netns.wait_for(lambda: not processes_with(str(running.place)) - {os.getpid()}, "the end of every process of the demo")
