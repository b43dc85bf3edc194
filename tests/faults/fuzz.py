"""`make fuzz`: every fuzz target of the suite for a span each, with fresh examples all the time.

    python -m tests.faults.fuzz [SECONDS]

A target is a property test that is in the suite anyway, with few examples; here it runs with thousands, round after round,
until its span is over. The first failure ends the run with the smallest example that hypothesis finds.
"""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Final

from hypothesis import settings

from tests.examples import MANY

TARGETS: Final = {
    "netlink decoder": (
        "tests.kernel.test_netlink:test_any_bytes_raise_only_the_documented_error",
        "tests.kernel.test_netlink:test_lengths_that_lie_are_found",
        "tests.kernel.test_links:test_noise_raises_only_the_documented_errors",
        "tests.kernel.test_links:test_a_flipped_byte_raises_only_the_documented_errors",
        "tests.faults.test_fuzz:test_damaged_dumps_of_tc_are_read_or_a_fault",
    ),
    "link events": ("tests.faults.test_fuzz:test_damaged_link_messages_are_applied_or_malformed",),
    "socket dumps": (
        "tests.kernel.test_sockets:test_noise_raises_only_the_documented_error",
        "tests.kernel.test_sockets:test_a_flipped_byte_raises_only_the_documented_error",
    ),
    "control protocol": ("tests.test_control:test_parsing_raises_the_documented_error_alone",),
    "YAML loader": (
        "tests.test_yaml_fuzz:test_mutants_are_read_or_refused",
        "tests.test_yaml_fuzz:test_noise_is_read_or_refused",
        "tests.test_yaml_fuzz:test_punctuation_is_read_or_refused",
        "tests.test_yaml_fuzz:test_well_formed_nonsense_is_read_or_refused",
        "tests.test_yaml_fuzz:test_a_cut_is_read_or_refused",
    ),
    "recordings": ("tests.faults.test_fuzz:test_damaged_recordings_are_read_or_refused",),
    "overrides and requests": (
        "tests.test_overrides:test_no_json_escapes_the_config_error",
        "tests.test_requests:test_any_records_are_taken_without_an_exception",
    ),
    "journal": ("tests.test_journal:test_any_bytes_are_read_without_an_exception",),
    "audit trail": ("tests.test_audit:test_any_bytes_are_verified_and_read_without_an_exception",),
    "HTTP requests": ("tests.test_http:test_any_bytes_are_a_request_or_a_bad_one",),
}


class Places:
    """Stands in for pytest's tmp_path_factory."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def getbasetemp(self) -> Path:
        """The one directory."""
        return self._base

    def mktemp(self, name: str) -> Path:
        """A fresh directory."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self._base))


def property_at(place: str) -> Any:
    """The property test at module:function."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def places(test: Callable[..., object], factory: object) -> dict[str, object]:
    """What the test asks of pytest, if it does."""
    return {"tmp_path_factory": factory} if "tmp_path_factory" in signature(test).parameters else {}


def target(place: str, base: Path) -> Callable[[], object]:
    """The property test at module:function, ready to be called."""
    test = property_at(place)
    return partial(test, **places(test.hypothesis.inner_test, Places(base)))


def main(seconds: float) -> None:
    """Run all of them."""
    faulthandler.enable()
    settings.load_profile(MANY)  # before the tests are imported: they take their settings then
    with tempfile.TemporaryDirectory() as base:
        for subject, places in TARGETS.items():
            rounds, until = 0, time.monotonic() + seconds
            works = [target(place, Path(base)) for place in places]
            while time.monotonic() < until:
                works[rounds % len(works)]()
                rounds += 1
            sys.stdout.write(f"{subject}: about {rounds * settings().max_examples} examples in {seconds:g} s, none failed\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
