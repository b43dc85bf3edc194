"""What a firing of the detector leads to: one literal table, exactly one event for each firing.

| policy mode | link    | fires (sustained, or guard in enforce) | noted (guard in observe) |
|-------------|---------|----------------------------------------|--------------------------|
| enforce     | open    | limit                                  | noted                    |
| observe     | open    | would_limit                            | noted                    |
| any         | exempt  | noted                                  | noted                    |

While limits are paused an enforcing policy answers like an observing one.
"""

from __future__ import annotations

from typing import Final

from limiterd.core.model import EventKind, PolicyMode

_FIRES: Final = {
    (PolicyMode.ENFORCE, False): EventKind.LIMIT,
    (PolicyMode.OBSERVE, False): EventKind.WOULD_LIMIT,
    (PolicyMode.ENFORCE, True): EventKind.NOTED,
    (PolicyMode.OBSERVE, True): EventKind.NOTED,
}


def response(mode: PolicyMode, *, exempt: bool, paused: bool) -> EventKind:
    """The event that a firing yields on a link that no limit is on."""
    return _FIRES[PolicyMode.OBSERVE if paused else mode, exempt]
