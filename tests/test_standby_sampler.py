"""The standby sampler, with a sampler and a clock of the tests' own making."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Snapshot
from limiterd.daemon.controller import KernelPort
from limiterd.daemon.loop import Pace
from limiterd.daemon.standby_sampler import StandbySampler
from tests.netns import wait_for

MS = 1_000_000


class Sampler:
    """Counts its samples and knows who took them."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.fault: EnvironmentFault | None = None
        self.held = threading.Event()
        self.held.set()

    def sample(self) -> Snapshot:
        """One more, as soon as `held` is set."""
        self.threads.append(threading.get_ident())
        self.held.wait()
        if self.fault is not None:
            raise self.fault
        return Snapshot(len(self.threads), (), ())


@pytest.fixture
def sampler() -> Sampler:
    """The sampler of this test."""
    return Sampler()


@pytest.fixture
def make(sampler: Sampler) -> Iterator[Callable[..., StandbySampler]]:
    """Makes a standby sampler whose next tick is due in so many milliseconds, further ones every millisecond or as said."""
    made: list[StandbySampler] = []

    def standby(due_ms: int, every_ms: int = 1) -> StandbySampler:
        pace = Pace(every_ms * MS, time.monotonic_ns() + due_ms * MS)
        kernel = cast("KernelPort", SimpleNamespace(sampler=sampler))
        made.append(StandbySampler(kernel, pace, time.monotonic_ns))
        return made[-1]

    yield standby
    for each in made:
        each.close()


def test_a_short_wait_is_left_alone(make: Callable[..., StandbySampler], sampler: Sampler) -> None:
    """A wait that ends before the next tick is due takes no sample."""
    standby = make(3_600_000)
    for _ in range(100):
        with standby:
            pass
    assert standby.taken() == ()
    assert sampler.threads == []


def test_a_long_wait_is_sampled_at_the_pace(make: Callable[..., StandbySampler], sampler: Sampler) -> None:
    """While the loop waits another thread samples; the loop gets each sample once, in order."""
    standby = make(0)
    with standby:
        wait_for(lambda: len(sampler.threads) >= 5, "five samples")
    count = len(sampler.threads)
    taken = standby.taken()
    assert [cast("Any", each).t_ns for each in taken] == list(range(1, count + 1))
    assert standby.taken() == ()
    assert threading.get_ident() not in sampler.threads


def test_the_sampler_has_one_user_at_a_time(make: Callable[..., StandbySampler], sampler: Sampler) -> None:
    """The wait ends within a sample: the loop gets on only when that is complete, and none follows."""
    standby = make(0, 3_600_000)
    sampler.held.clear()
    with standby:
        wait_for(lambda: len(sampler.threads) == 1, "a sample that has begun")
        threading.Timer(0.05, sampler.held.set).start()
    assert sampler.held.is_set()
    assert len(standby.taken()) == len(sampler.threads) == 1


def test_a_defect_ends_one_performance(
    make: Callable[..., StandbySampler], sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling raises what nobody expected: the loop is not held up, and the next wait is sampled again."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    standby = make(0)
    sampler.fault = cast("EnvironmentFault", ZeroDivisionError())
    with standby:
        wait_for(lambda: told, "the defect is told")
    sampler.fault = None
    with standby:
        wait_for(lambda: len(sampler.threads) >= 3, "samples again")
    assert [type(sample) for sample in standby.taken()][:1] == [Snapshot]


def test_a_failed_sample_is_handed_on(make: Callable[..., StandbySampler], sampler: Sampler) -> None:
    """Where sampling fails, the loop gets the fault in the sample's place."""
    standby = make(0)
    sampler.fault = EnvironmentFault("refused", operation="sample")
    with standby:
        wait_for(lambda: len(sampler.threads) >= 2, "two attempts")
    assert {*standby.taken()} == {sampler.fault}
