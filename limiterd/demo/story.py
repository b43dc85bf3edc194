"""The story: five acts, each a function of the stage; what is measured goes into Findings, what happens into the scene.

The story never looks at how it is shown: it tells the show whenever there is something new. Everything that it claims it
has read: phases and reasons from the daemon, rates from the kernel's counters beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from limiterd.core.units import NS_PER_SECOND, format_rate, format_wall
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import number, records
from limiterd.ctl.format import PHASE_STYLES, clean
from limiterd.demo.chart import Point
from limiterd.demo.demand import Demand, Onset, Reading
from limiterd.demo.findings import Findings
from limiterd.demo.scale import EXEMPT_S, IDLE_S, LATE_S, RELEASE_S, ROOT_BACK_S, SETTLE_S, STEP_S, Act, Scale
from limiterd.demo.stage import Document, Stage

GIVE_UP_S: Final = 5.0
TRIES: Final = 3
"""How many times as long as without pauses a measurement may take before the story goes on without it."""
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
    act: Act = Act.IDLE
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
        self._onset = Onset(scale, self._begin_ns)
        self._demand = Demand(scale, self._begin_ns)
        self._last = stage.read()
        self._idle_root = self._last.root
        self.scene.findings.pauses = self._demand.pauses

    def play(self) -> Findings:
        """All acts. Raises LimiterdError where the stage breaks down; an unkept promise is a finding, no error."""
        self._idle()
        self._excess()
        if not self.scene.findings.starved:
            for act in (self._limited, self._granted, self._free):
                act()
        return self.scene.findings

    # ---- acts ----

    def _idle(self) -> None:
        self._open(Act.IDLE, f"the policy: {self._scale.policy_text()}")
        self._during(IDLE_S)

    def _excess(self) -> None:
        self._open(Act.EXCESS, f"TCP at {format_rate(self._scale.traffic_bps)} begins", "yellow")
        before = self._last
        self._stage.send(self._scale.traffic_bps)
        self._onset = onset = Onset(self._scale, before.t_ns)
        end_ns = before.t_ns + int((TRIES * (self._scale.window_s + LATE_S) + GIVE_UP_S) * NS_PER_SECOND)
        while self.scene.link.get("phase") not in ("limited", "fault"):
            overdue_ns = self._last.t_ns - onset.due_ns
            if overdue_ns > GIVE_UP_S * NS_PER_SECOND or (overdue_ns < 0 and self._last.t_ns > end_ns):
                self.scene.findings.starved = overdue_ns < 0
                self._say(
                    "no limit: " + ("the traffic did not hold for long enough" if overdue_ns < 0 else "it is overdue"), "alarm"
                )
                return
            earlier = self._last
            self._step()
            bits = 8 * (self._last.tx_bytes - earlier.tx_bytes)
            free = self._last.class_bytes is None and overdue_ns < 0
            if free and onset.note(earlier.t_ns, self._last.t_ns, bits):
                pause = self._demand.pauses[-1]
                self._say(f"{pause.who} paused at second {pause.begin_s:.0f}: the clock starts again with its traffic", "alarm")
        self._note_firing(before)

    def _note_firing(self, before: Reading) -> None:
        findings, link = self.scene.findings, self.scene.link
        onset_ns = before.t_ns if self._onset.since_ns is None else self._onset.since_ns
        decided_s = fmt.moment(link.get("since"))
        onset_wall_s = self._stage.wall_s() - (self._stage.now_ns() - onset_ns) / NS_PER_SECOND
        findings.fired_s = None if decided_s is None else decided_s - onset_wall_s
        findings.held_up_s = self._onset.held_up_s
        findings.before_bps = self._mean_bps(before, self._last)
        findings.reason = clean(link.get("reason") or "")
        if link.get("phase") != "limited":
            self._say("the limit could not be set; the daemon says why: " + "; ".join(self._troubles()), "alarm")
            return
        findings.limited_s = (self._last.t_ns - onset_ns) / NS_PER_SECOND
        when = "" if findings.fired_s is None else f" after {findings.fired_s:.2f} s"
        self._say(f"FIRED{when}: {findings.reason} excess, {fmt.rate(findings.before_bps)} on average", "alarm")
        self._say(
            f"limited to {fmt.rate(number(link.get('limit_bps')))}, read back: the root qdisc is {self._last.root} now", "red"
        )

    def _troubles(self) -> list[str]:
        return [clean(fault.get("message", "")) for fault in records(self._stage.status().get("faults"))]

    def _limited(self) -> None:
        self._open(Act.LIMITED, "the sender goes on asking for as much; the class lets this through:")
        self._during(SETTLE_S)
        if words := self._stage.words():
            self._say(f"the daemon's log: {clean(words)}")
        sent_bits, asked_ns, begin_ns = 0, 0, self._last.t_ns
        while asked_ns < self._scale.measure_s * NS_PER_SECOND:  # the class's rate while more was asked for than it gave
            earlier = self._last
            demanded = self._step()
            if earlier.class_bytes is None or self._last.class_bytes is None:
                self._say("there is no class to measure", "alarm")
                return
            if demanded:
                sent_bits += 8 * (self._last.class_bytes - earlier.class_bytes)
                asked_ns += self._last.t_ns - earlier.t_ns
            if self._last.t_ns - begin_ns > TRIES * self._scale.measure_s * NS_PER_SECOND:
                self._say("the traffic did not hold for long enough to measure the class", "alarm")
                return
        shaped = NS_PER_SECOND * sent_bits / asked_ns
        self.scene.findings.shaped_bps = shaped
        self._say(f"{fmt.rate(shaped)} over {self._scale.measure_s:.0f} s by the class's own counter", "red")

    def _granted(self) -> None:
        self._open(Act.GRANTED, "an override file appears, and the daemon reloads", "cyan")
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
        self._open(Act.FREE, "the detector goes on watching; the override lifts what it would do")
        first = self._last
        self._during(EXEMPT_S)
        self.scene.findings.after_bps = self._mean_bps(first, self._last)

    @staticmethod
    def _mean_bps(first: Reading, last: Reading) -> float:
        return 8 * NS_PER_SECOND * (last.tx_bytes - first.tx_bytes) / max(1, last.t_ns - first.t_ns)

    # ---- how time passes ----

    def _open(self, act: Act, text: str, style: str = "") -> None:
        self.scene.act = act
        self._say(text, style)

    def _say(self, text: str, style: str = "") -> None:
        self.scene.said.append(Said(self.scene.now_s, text, style))
        self._show.update(self.scene)

    def _during(self, seconds: float) -> None:
        end_ns = self._stage.now_ns() + int(seconds * NS_PER_SECOND)
        while self._stage.now_ns() < end_ns:
            self._step()

    def _step(self) -> bool:
        """One step of the clock: read the kernel, ask the daemon, show. Whether the sender asked for all that it could get."""
        was_limited = self.scene.link.get("phase") == "limited"
        self._stage.pause(STEP_S)
        scene, reading = self.scene, self._stage.read()
        links = records(self._stage.status().get("links"))
        scene.link = links[0] if links else {}
        scene.now_s = (reading.t_ns - self._begin_ns) / NS_PER_SECOND
        elapsed_ns = reading.t_ns - self._last.t_ns
        if elapsed_ns > 0:
            rate_bps = 8 * NS_PER_SECOND * (reading.tx_bytes - self._last.tx_bytes) / elapsed_ns
            scene.points.append(Point(scene.now_s, rate_bps, PHASE_STYLES.get(str(scene.link.get("phase")), "")))
        limited = was_limited or scene.link.get("phase") == "limited"
        demanded = scene.act is Act.IDLE or self._demand.note(scene.act, self._last, reading, limited=limited)
        self._last = reading
        self._show.update(scene)
        return demanded
