"""The story: five acts, each a function of the stage; what is measured goes into Findings, what happens into the scene.

The story never looks at how it is shown: it tells the show whenever there is something new. Everything that it claims it
has read: phases and reasons from the daemon, rates from the kernel's counters beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from limiterd.core.units import NS_PER_SECOND, format_rate, format_wall
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import number, records
from limiterd.ctl.format import PHASE_STYLES, clean
from limiterd.demo.chart import Point
from limiterd.demo.scale import EXEMPT_S, IDLE_S, LATE_S, RELEASE_S, ROOT_BACK_S, SETTLE_S, Findings, Scale
from limiterd.demo.stage import Document, Reading, Stage

STEP_S: Final = 0.1
GIVE_UP_S: Final = 5.0
OVERRIDE_LASTS_NS: Final = 3600 * NS_PER_SECOND


class Said(NamedTuple):
    """One thing that happened: seconds since the curtain, a sentence, a style."""

    at_s: float
    text: str
    style: str = ""


@dataclass(slots=True)
class Scene:
    """Everything that there is to show now."""

    scale: Scale
    simulated: bool
    act: str = ""
    now_s: float = 0.0
    link: Document = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


class Show(Protocol):
    """Whoever puts the scene before an audience."""

    def update(self, scene: Scene) -> None:
        """Something is new."""


class Director:
    """Plays the acts in order."""

    def __init__(self, stage: Stage, scale: Scale, show: Show) -> None:
        self.scene = Scene(scale, stage.simulated)
        self._stage = stage
        self._scale = scale
        self._show = show
        self._begin_ns = stage.now_ns()
        self._onset_ns = self._begin_ns
        self._onset_wall_s = stage.wall_s()
        self._before: Reading = stage.read()
        self._last = self._before
        self._idle_root = self._before.root

    def play(self) -> Findings:
        """All acts. Raises LimiterdError where the stage breaks down; an unkept promise is a finding, no error."""
        for act in (self._idle, self._excess, self._limited, self._granted, self._free):
            act()
        self._stage.send(0)
        return self.scene.findings

    # ---- acts ----

    def _idle(self) -> None:
        self._open("1  an idle link", f"the policy: {self._scale.policy_text()}")
        self._during(IDLE_S)

    def _excess(self) -> None:
        self._open("2  too much, for too long", f"TCP at {format_rate(self._scale.traffic_bps)} begins", "yellow")
        self._onset_ns, self._onset_wall_s = self._stage.now_ns(), self._stage.wall_s()
        self._stage.send(self._scale.traffic_bps)
        self._before = self._last
        longest_s = self._scale.window_s + LATE_S + GIVE_UP_S
        if not self._until(lambda: self.scene.link.get("phase") in ("limited", "fault"), longest_s):
            self._say(f"no limit after {longest_s:.0f} s: the traffic did not reach the threshold long enough", "alarm")
            return
        self._note_firing()

    def _note_firing(self) -> None:
        findings, link = self.scene.findings, self.scene.link
        decided_s = fmt.moment(link.get("since"))
        findings.fired_s = None if decided_s is None else decided_s - self._onset_wall_s
        findings.before_bps = self._mean_bps(self._before, self._last)
        findings.reason = clean(link.get("reason") or "")
        if link.get("phase") != "limited":
            self._say("the limit could not be set; the daemon says why: " + "; ".join(self._troubles()), "alarm")
            return
        findings.limited_s = self._since_onset(self._last)
        when = "" if findings.fired_s is None else f" after {findings.fired_s:.2f} s"
        self._say(f"FIRED{when}: {findings.reason} excess, {fmt.rate(findings.before_bps)} on average", "alarm")
        self._say(
            f"limited to {fmt.rate(number(link.get('limit_bps')))}, read back: the root qdisc is {self._last.root} now", "red"
        )

    def _troubles(self) -> list[str]:
        return [clean(fault.get("message", "")) for fault in records(self._stage.status().get("faults"))]

    def _since_onset(self, reading: Reading) -> float:
        return (reading.t_ns - self._onset_ns) / NS_PER_SECOND

    def _limited(self) -> None:
        self._open("3  limited", "the sender goes on asking for as much; the class lets this through:")
        self._during(SETTLE_S)
        if words := self._stage.words():
            self._say(f"the daemon's log: {clean(words)}")
        first = self._last
        self._during(self._scale.measure_s)
        last = self._last
        if first.class_bytes is None or last.class_bytes is None:
            self._say("there is no class to measure", "alarm")
            return
        shaped = 8 * NS_PER_SECOND * (last.class_bytes - first.class_bytes) / (last.t_ns - first.t_ns)
        self.scene.findings.shaped_bps = shaped
        self._say(f"{fmt.rate(shaped)} over {self._scale.measure_s:.0f} s by the class's own counter", "red")

    def _granted(self) -> None:
        self._open("4  an increase request is approved", "an override file appears, and the daemon reloads", "cyan")
        self._stage.grant(format_wall(time.time_ns() + OVERRIDE_LASTS_NS))
        begun_ns = self._stage.now_ns()
        for change in self._stage.reload():
            self._say(clean(change), "cyan")
        findings = self.scene.findings
        first = self._last = self._stage.read()
        while findings.rate_back_s is None or findings.root_back_s is None:
            self._step()
            after_s = (self._last.t_ns - begun_ns) / NS_PER_SECOND
            if findings.lifted_s is None and self.scene.link.get("phase") != "limited":
                findings.lifted_s = after_s
            if findings.rate_back_s is None and self.scene.points[-1].rate_bps >= self._scale.threshold_bps:
                findings.rate_back_s = after_s
                self._say(f"{fmt.rate(self.scene.points[-1].rate_bps)} again, {after_s:.2f} s after the reload", "cyan")
            if findings.root_back_s is None and self._last.root == self._idle_root:
                findings.root_back_s = after_s
            if after_s > RELEASE_S + ROOT_BACK_S:
                break
        if self._last.t_ns == first.t_ns or findings.rate_back_s is None:
            self._say("the rate did not come back", "alarm")

    def _free(self) -> None:
        self._open("5  free again", "the detector goes on watching; the override lifts what it would do")
        first = self._last
        self._during(EXEMPT_S)
        self.scene.findings.after_bps = self._mean_bps(first, self._last)

    @staticmethod
    def _mean_bps(first: Reading, last: Reading) -> float:
        return 8 * NS_PER_SECOND * (last.tx_bytes - first.tx_bytes) / max(1, last.t_ns - first.t_ns)

    # ---- how time passes ----

    def _open(self, act: str, text: str, style: str = "") -> None:
        self.scene.act = act
        self._say(text, style)

    def _say(self, text: str, style: str = "") -> None:
        self.scene.said.append(Said(self.scene.now_s, text, style))
        self._show.update(self.scene)

    def _during(self, seconds: float) -> None:
        end_ns = self._stage.now_ns() + int(seconds * NS_PER_SECOND)
        while self._stage.now_ns() < end_ns:
            self._step()

    def _until(self, condition: Callable[[], bool], longest_s: float) -> bool:
        end_ns = self._stage.now_ns() + int(longest_s * NS_PER_SECOND)
        while not condition():
            if self._stage.now_ns() > end_ns:
                return False
            self._step()
        return True

    def _step(self) -> None:
        """One step of the clock: read the kernel, ask the daemon, show."""
        self._stage.pause(STEP_S)
        scene, reading = self.scene, self._stage.read()
        links = records(self._stage.status().get("links"))
        scene.link = links[0] if links else {}
        scene.now_s = (reading.t_ns - self._begin_ns) / NS_PER_SECOND
        elapsed_ns = reading.t_ns - self._last.t_ns
        if elapsed_ns > 0:
            rate_bps = 8 * NS_PER_SECOND * (reading.tx_bytes - self._last.tx_bytes) / elapsed_ns
            scene.points.append(Point(scene.now_s, rate_bps, PHASE_STYLES.get(str(scene.link.get("phase")), "")))
        self._last = reading
        self._show.update(scene)
