"""limiterctl demo: the policy seen working, on real traffic, with nothing outside touched.

The parts: scale.py (what is played), stage.py (namespaces, traffic, the real daemon), simulated.py (the same engine on the
in-memory kernel), story.py (the acts), demand.py (whether the traffic was there), findings.py (what was measured, and the
verdict), chart.py and show.py (how it looks). Exit code 0 only when every promise was kept, 75 where the demo's own traffic
paused and nothing is proven.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

from limiterd.core.errors import EXIT_FAILED, EnvironmentFault
from limiterd.ctl.format import PLAIN, wrap
from limiterd.ctl.terminal import Terminal, complain, discard_output, say, terminal
from limiterd.demo.findings import Findings
from limiterd.demo.scale import FAST, FULL, Scale
from limiterd.demo.show import LineShow, LiveShow, introduction, summary
from limiterd.demo.stage import RealStage, Stage, held
from limiterd.demo.story import Director
from limiterd.sim import netns as lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `demo`."""
    parser.epilog = (
        "Exit codes: 0 every promise was kept; 1 a promise was not kept; 75 inconclusive: the demo's own traffic paused, "
        "because the machine is busy; run it again."
    )
    parser.add_argument("--fast", action="store_true", help="the same story in small: 100mbit for 2s, limited to 20mbit")
    parser.add_argument("--simulate", action="store_true", help="no namespaces and no traffic: the engine on an in-memory kernel")
    parser.add_argument("--no-color", action="store_true", help="no colours (NO_COLOR does the same)")


def run(ns: argparse.Namespace) -> int:
    """Play the story. Raises LimiterdError where the stage cannot be built or breaks down."""
    try:
        return _run(ns)
    except BrokenPipeError:  # nobody watches any more: put away unfinished, so nothing is proven
        discard_output()
        return EXIT_FAILED


def _run(ns: argparse.Namespace) -> int:
    scale = FAST if ns.fast else FULL
    screen = terminal()
    if ns.no_color:
        screen = replace(screen, palette=PLAIN)
    with held():
        simulated = ns.simulate or not _can_be_real()
    say(wrap(introduction(scale, simulated=simulated), screen.width), flush=True)
    with _interruptible():
        findings = _simulate(scale, screen) if simulated else _play_for_real(scale, screen)
    say(summary(findings, scale, screen, simulated=simulated), flush=True)
    return findings.verdict(scale).value


def _can_be_real() -> bool:
    """Whether namespaces can be made here, in a user namespace of our own if need be; says so where they cannot."""
    if lab.can_make_namespaces():
        return True
    try:
        lab.enter_user_namespace()
    except EnvironmentFault as fault:
        complain(f"no namespaces can be made here ({fault}): what follows is SIMULATED")
        return False
    if lab.can_make_namespaces():
        return True
    complain("network namespaces are refused here: what follows is SIMULATED")
    return False


def _play_for_real(scale: Scale, screen: Terminal) -> Findings:
    with RealStage(scale) as stage:
        return _play(stage, scale, screen)


def _simulate(scale: Scale, screen: Terminal) -> Findings:
    from limiterd.demo.simulated import SimulatedStage  # noqa: PLC0415 - the engine is for this alone

    return _play(SimulatedStage(scale), scale, screen)


def _play(stage: Stage, scale: Scale, screen: Terminal) -> Findings:
    with LiveShow(screen) if screen.is_terminal else LineShow(screen) as show:
        return Director(stage, scale, show).play()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Being told to end (kill, a closed terminal) is Ctrl-C: everything is put away first."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
