"""How many examples a fuzz target tries: few in the suite, which is run often, and many at a time in `make fuzz`."""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

MANY: Final = "limiterd-fuzz"
settings.register_profile(MANY, max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def few(count: int) -> settings:
    """So many in the suite; where the profile MANY is loaded, as many as that says."""
    return settings() if settings.default is settings.get_profile(MANY) else settings(max_examples=count)
