"""Shared fixtures, the environment of all tests, and the rules for tests that need the kernel's consent or the machine alone.

A test marked `root` needs CAP_SYS_ADMIN and CAP_NET_ADMIN over a network namespace. Where the run has them not, it tries
to become root of a user namespace of its own (LIMITERD_TEST_USERNS=0: not). Where that is refused too, such tests are
skipped, with a line at the end of the report that nobody overlooks; with CI=true in the environment they fail instead.

A test marked `serial` runs last, and while it runs no other worker (`make test` has several) runs a test.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from limiterd.core.errors import EnvironmentFault
from limiterd.sim import netns as laboratory
from limiterd.sim.netns import Pair, PrivateNet
from tests import examples, machine, needs, netns
from tests.environment import Environment
from tests.explore import Recorder
from tests.turns import Turns

_able = pytest.StashKey[bool]()
_environment = pytest.StashKey[Environment]()
_turns = pytest.StashKey[Turns]()

examples.settle()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the environment; find out once, before anything starts a thread, whether namespaces can be made.

    pytest-xdist's workers are made afterwards and are inside the user namespace, if there is one.
    """
    config.pluginmanager.register(machine)
    place = getattr(config, "workerinput", {}).get("place")
    environment = config.stash[_environment] = Environment(place)
    config.option.basetemp = config.option.basetemp or str(environment.files)  # xdist gives its workers parts of it
    able = laboratory.can_make_namespaces()
    if not able and os.environ.get("LIMITERD_TEST_USERNS") != "0":
        able = _in_user_namespace()
    config.stash[_able] = able
    if place:
        config.stash[_turns] = Turns(Path(place))
    if explored := examples.exploring():
        config.pluginmanager.register(Recorder(Path(explored), config.getoption("--hypothesis-seed")))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist which place all of them share."""
    node.workerinput["place"] = node.config.stash[_environment].place


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove what the environment is made of; the files of tests that failed are of use."""
    if exitstatus == pytest.ExitCode.OK or "MUTANT_UNDER_TEST" in os.environ:  # mutants fail by the hundred
        session.config.stash[_environment].close()


def _in_user_namespace() -> bool:
    try:
        laboratory.enter_user_namespace()
    except EnvironmentFault:
        return False
    if not laboratory.can_make_namespaces():
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # tests of sockets have no namespace of their own
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `long`, unless it is asked for; what is marked `serial` comes last."""
    left_out = [] if netns.LONG else [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("serial") is not None)
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Among several workers: begin when the machine is free for it."""
    turns = item.config.stash.get(_turns, None)
    if turns is None:
        return (yield)
    with turns.taken(alone=item.get_closest_marker("serial") is not None):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or in CI fail, what is marked root and cannot run."""
    if item.get_closest_marker("root") is not None and not item.config.stash[_able]:
        needs.missing(needs.NAMESPACES)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what did not run, and for want of what."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    wanting = Counter(reason.partition(needs.SKIPPED)[2] for reason in reasons if needs.SKIPPED in reason)
    if wanting:
        terminalreporter.section("NOT EVERYTHING WAS TESTED", sep="!", red=True, bold=True)
        for reason, count in wanting.most_common():
            terminalreporter.write_line(f"{count} tests were skipped: {reason}")
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"the files of what failed: {config.option.basetemp}")


@pytest.fixture
def lab() -> Iterator[PrivateNet]:
    """A laboratory whose namespaces, links and traffic end with the test."""
    with PrivateNet() as made:
        yield made


@pytest.fixture
def pair(lab: PrivateNet) -> Pair:
    """Two namespaces joined by a veth pair: limits go on pair.near (eth0 in it), pair.far is the world."""
    return lab.pair()


@pytest.fixture
def real_root() -> None:
    """Skip where the run is not root of the machine."""
    needs.real_root()
