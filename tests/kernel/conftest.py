"""What the tests of the kernel side share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from limiterd.kernel.links import LinkTable
from limiterd.sim.netns import Pair, inside


@pytest.fixture
def table(pair: Pair) -> Iterator[LinkTable]:
    """The link table of the near namespace."""
    with inside(pair.near.namespace):
        made = LinkTable()
    with contextlib.closing(made):
        yield made
