"""Makes the transcripts in docs/runbook.md from a real run: `python docs/build_transcripts.py` (root, about two minutes).

The daemon runs under its default policy in a network namespace of its own, with real traffic; each scene is brought
about, then looked at as an engineer on call would. What stands between the two marks in the runbook is written anew:
commands, what they printed, and the prose below. Shown as if installed are only the files' places: limiterctl is really
called with --config, and the run's directory is replaced by where a package puts things.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limiterd.sim.netns import Flow, Pair, PrivateNet, run  # noqa: E402  # the checkout's own
from tests.faults.harness import LOOP, Held  # noqa: E402  # likewise
from tests.netns import wait_for  # noqa: E402  # likewise
from tests.rig import Rig, rig  # noqa: E402  # likewise

RUNBOOK: Final = ROOT / "docs" / "runbook.md"
BEGIN: Final = "<!-- transcripts: written by docs/build_transcripts.py -->\n"
END: Final = "<!-- end of transcripts -->\n"
EXCESS_BPS: Final = 1_600_000_000
MODEST_BPS: Final = 90_000_000
GRACE_S: Final = 1.5
PATIENCE_S: Final = 40.0


class Scene:
    """One transcript: prose, and commands with what they really print."""

    def __init__(self, made: Rig, pair: Pair, flow: Flow, blocked: Held, title: str, prose: str) -> None:
        self.rig, self.pair, self.flow, self.blocked = made, pair, flow, blocked
        self._lines = [f"### {title}", "", prose, "", "```"]

    def ctl(self, words: str, remark: str = "") -> None:
        """limiterctl, shown with its prompt; remark follows the command as a shell comment."""
        done = self.rig.ctl(*shlex.split(words), check=False)
        self._show(f"limiterctl {words}", remark, done)

    def tc(self, words: str, remark: str = "") -> None:
        """A tc command in the machine's namespace, shown likewise."""
        self._show(f"tc {words}", remark, run(self.pair.near.namespace, ["tc", *shlex.split(words)], check=False))

    def _show(self, command: str, remark: str, done: subprocess.CompletedProcess[str]) -> None:
        self._lines.append(f"$ {command}" + (f"   # {remark}" if remark else ""))
        said = (done.stdout + done.stderr).replace(self.rig.socket, "/run/limiterd/control.sock")
        said = said.replace(str(self.rig.home), "/etc/limiterd")
        self._lines += [line.rstrip() for line in said.splitlines()]
        self._lines += [f"(exit code {done.returncode})"] if done.returncode else []
        self._lines.append("")

    def text(self) -> str:
        """The section as Markdown."""
        return "\n".join([*self._lines[:-1], "```", ""])

    # ---- what happens around the commands ----

    def excess(self) -> None:
        """Send more than the policy allows until the daemon acts on it, and let its limit be felt for a moment."""
        self.flow.set_rate(EXCESS_BPS)
        wait_for(lambda: self.rig.phase() in ("limited", "fault"), "the excess is acted on", longest_s=PATIENCE_S)
        time.sleep(GRACE_S)

    def calm(self) -> None:
        """Go back to modest traffic and wait until the limit is gone and the daemon sees the calm."""
        self.flow.set_rate(MODEST_BPS)
        wait_for(
            lambda: self.rig.phase() == "conforming" and "htb" not in self.rig.root() and self._modest(),
            "the link is as before",
            longest_s=PATIENCE_S,
        )

    def _modest(self) -> bool:
        return bool(self.rig.link()["rate_bps"] < 2 * MODEST_BPS)


# ---- the scenes ------------------------------------------------------------------------------------------

LIMITED: Final = "Limited by policy"
LIMITED_PROSE: Final = """\
More than 1 Gbit/s for more than 10 seconds. `explain` has the process; it is a backup that somebody vouches for."""


def limited(scene: Scene) -> None:
    """A firing, its explanation, and a release by hand."""
    scene.excess()
    scene.ctl("status")
    scene.ctl("explain eth0")
    scene.ctl("history eth0 --limit 2")
    scene.flow.set_rate(MODEST_BPS)
    scene.ctl("release eth0 --reason 'INC-2040: known backup, calmed down'")
    scene.calm()
    scene.ctl("status")


BY_HAND: Final = "Limited by hand"
BY_HAND_PROSE: Final = """\
The reason is `operator`: no traffic is to blame, a colleague is to be asked. `explain` and `history` say who it was
and why."""


def by_hand(scene: Scene) -> None:
    """A colleague has set a limit; nothing of an earlier firing is blamed."""
    scene.rig.ctl("limit", "eth0", "--rate", "50mbit", "--reason", "INC-2041: upstream is congested")
    time.sleep(GRACE_S)
    scene.ctl("status")
    scene.ctl("explain eth0")
    scene.ctl("release eth0 --reason 'INC-2041 is over'")
    scene.calm()


FAULT: Final = "Fault: a foreign qdisc"
FAULT_PROSE: Final = """\
A limit is due and somebody else's root qdisc is in its place. limiterd never removes it (unless the policy says
`foreign_qdisc: takeover`): find its owner, or remove it by hand; the limit is then in force at once."""


def fault(scene: Scene) -> None:
    """A forgotten tbf stands where the limit would go."""
    run(scene.pair.near.namespace, shlex.split("tc qdisc add dev eth0 root handle 8001: tbf rate 5gbit burst 2m latency 50ms"))
    scene.excess()
    scene.ctl("status")
    scene.ctl("explain eth0")
    scene.tc("-s qdisc show dev eth0")
    scene.tc("qdisc del dev eth0 root", "its owner needs it no more")
    scene.rig.wait_phase("limited", longest_s=PATIENCE_S)
    time.sleep(GRACE_S)
    scene.ctl("status")
    scene.ctl("history eth0 --limit 4")
    scene.rig.ctl("release", "eth0", "--reason", "end of the scene")
    scene.calm()


EXPIRED: Final = "An override has expired"
EXPIRED_PROSE: Final = """\
The link was exempt and is limited now: its override ended, and the traffic went on. Nothing was limited
retroactively; the evidence began again at the end of the override. `override add` with a later end, or `approve`,
lifts the limit."""


def expired(scene: Scene) -> None:
    """An exempt link is limited a window after its override has ended, and exempt again once there is a new one."""
    add = "override add --interface eth0 --exempt --approved-by ops@example.net --reason 'nightly backup window'"
    scene.rig.ctl(*shlex.split(f"{add} --id REQ-1234 --until 8s"))
    scene.flow.set_rate(EXCESS_BPS)
    wait_for(lambda: scene.rig.phase() != "exempt", "the override ends", longest_s=PATIENCE_S)
    scene.excess()
    scene.ctl("status")
    scene.ctl("override list")
    scene.ctl("history eth0 --limit 3")
    scene.ctl(f"{add} --id REQ-1240 --until 7d")
    scene.ctl("status")
    scene.rig.ctl("override", "revoke", "REQ-1240")
    scene.calm()


STALLED: Final = "The daemon is stalled"
STALLED_PROSE: Final = """\
The sampling loop no longer turns: nothing is detected, limited, repaired or lifted. `status`, `explain`, `history` and
the metrics go on from the last sample, with a fault that says how old it is; commands that act fail after five seconds.
A limit in force stays in the kernel. Under systemd the watchdog restarts a stalled daemon; the new one finds the limit
in force and adopts it, with its reason and its time. Where the whole process is stopped, nothing answers: `limiterctl`
then exits with 3 after five seconds."""


def stalled(scene: Scene) -> None:
    """The loop is blocked, then the whole process is stopped, then what the watchdog would do."""
    scene.excess()
    scene.blocked.on()
    wait_for(lambda: "no_answer" in str(scene.rig.status()["faults"]), "the stall is seen")
    scene.ctl("status")
    scene.ctl("release eth0 --reason 'INC-2044: known backup'")
    scene.tc("class show dev eth0 classid 1d1d:1", "the limit is in force without the daemon")
    if scene.rig.process is not None:
        scene.rig.process.send_signal(signal.SIGSTOP)
    scene.ctl("status", "where the whole process is stopped")
    scene.rig.stop(signal.SIGKILL)
    scene.blocked.off()
    scene.rig.start()
    time.sleep(GRACE_S)
    scene.ctl("status", "after systemctl restart limiterd, or the watchdog's")
    scene.ctl("history --limit 3")


SCENES: Final[tuple[tuple[str, str, Callable[[Scene], None]], ...]] = (
    (LIMITED, LIMITED_PROSE, limited),
    (BY_HAND, BY_HAND_PROSE, by_hand),
    (FAULT, FAULT_PROSE, fault),
    (EXPIRED, EXPIRED_PROSE, expired),
    (STALLED, STALLED_PROSE, stalled),
)


# ---- the runbook ------------------------------------------------------------------------------------------


def transcripts() -> str:
    """Play all scenes; the sections as Markdown."""
    sections = []
    with PrivateNet() as lab, tempfile.TemporaryDirectory(prefix="limiterd-transcripts-") as home:
        pair = lab.pair()
        with rig(pair.near.namespace, Path(home)) as made:
            blocked = Held(made, LOOP)
            made.start()
            flow = lab.tcp(pair.near, pair.far, MODEST_BPS)
            for title, prose, play in SCENES:
                scene = Scene(made, pair, flow, blocked, title, prose)
                play(scene)
                sections.append(scene.text())
            flow.stop()
            made.stop()
    return "\n".join(sections)


def main() -> None:
    """Write the runbook's transcripts anew."""
    os.environ.update(TZ="UTC", LC_ALL="C.UTF-8", PYTHONUTF8="1")
    time.tzset()
    before, begin, rest = RUNBOOK.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{RUNBOOK} has lost its marks: {BEGIN.strip()} and {END.strip()}")
    RUNBOOK.write_text(f"{before}{begin}\n{transcripts()}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
