"""How the property tests draw their examples: the suite always the same ones, `make explore` others in every round."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

EXPLORING: Final = "LIMITERD_EXPLORE"
"""Set by `make explore` to the directory that gets what failed."""
_MANY: Final = 500


def settle() -> None:
    """Set the profile, before a test is imported; whatever hypothesis itself would choose (it looks at CI) is overruled."""
    plain = settings.get_profile("default")
    # How long an example takes depends on the machine.
    common = settings(plain, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("the same", common, derandomize=True)
    settings.register_profile("exploring", common, derandomize=False, print_blob=True, report_multiple_bugs=False)
    settings.load_profile("exploring" if exploring() else "the same")
    if not exploring():
        # It also draws constants found in those modules of the project that happen to be imported by then.
        providers._get_local_constants = lambda: providers._local_constants


def exploring() -> str:
    """The directory that gets what failed; nothing in the suite proper."""
    return os.environ.get(EXPLORING, "")


def few(count: int) -> settings:
    """So many in the suite, of what is quick and is tried with many when exploring."""
    return settings(max_examples=_MANY if exploring() else count)
