"""Shared fixtures, and the rule for tests that need the kernel's consent.

A test marked `root` needs CAP_SYS_ADMIN and CAP_NET_ADMIN over a network namespace. Where the run has them not, it tries
to become root of a user namespace of its own (LIMITERD_TEST_USERNS=0: not). Where that is refused too, such tests are
skipped, with a line at the end of the report that nobody overlooks; with CI=true in the environment they fail instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from limiterd.core.errors import EnvironmentFault
from limiterd.sim import netns as laboratory
from limiterd.sim.netns import Lab, Pair
from tests import netns

_IN_CI: Final = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
_WHY: Final = "needs CAP_SYS_ADMIN and CAP_NET_ADMIN (run as root, or allow user namespaces)"
# How long an example takes depends on the machine.
settings.register_profile("limiterd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("limiterd")
_able = pytest.StashKey[bool]()
_skipped = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Find out once, before anything starts a thread, whether namespaces can be made.

    Programs that tests start get none of Python's own settings (PYTHONUNBUFFERED would hide output that is never flushed), and
    hear SIGINT, which a shell script makes those deaf to that it starts in the background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("PYTHON") and name != "PYTHONPATH"]:
        del os.environ[name]
    able = laboratory.can_make_namespaces()
    if not able and os.environ.get("LIMITERD_TEST_USERNS") != "0":
        able = _in_user_namespace()
    config.stash[_able] = able
    config.stash[_skipped] = []


def _in_user_namespace() -> bool:
    try:
        laboratory.enter_user_namespace()
    except EnvironmentFault:
        return False
    return laboratory.can_make_namespaces()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `long`, unless it is asked for."""
    if netns.LONG:
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or in CI fail, what is marked root and cannot run."""
    if item.get_closest_marker("root") is None or item.config.stash[_able]:
        return
    if _IN_CI:
        pytest.fail(f"{_WHY}; in CI that is an error", pytrace=False)
    item.config.stash[_skipped].append(item.nodeid)
    pytest.skip(_WHY)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what did not run."""
    skipped = config.stash[_skipped]
    if skipped:
        terminalreporter.section("tests against the real kernel DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: {_WHY}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A laboratory whose namespaces, links and traffic end with the test."""
    with Lab() as made:
        yield made


@pytest.fixture
def pair(lab: Lab) -> Pair:
    """Two namespaces joined by a veth pair: limits go on pair.near (eth0 in it), pair.far is the world."""
    return lab.pair()


@pytest.fixture
def real_root() -> None:
    """Skip where the run is not root of the machine (other users' ids cannot be taken on then)."""
    if not netns.REAL_ROOT:
        pytest.skip("needs root of the machine, not of a user namespace")
