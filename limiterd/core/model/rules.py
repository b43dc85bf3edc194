"""Everything that a reload swaps in as one object."""

from __future__ import annotations

from dataclasses import dataclass, field

from limiterd.core.model.config import Config
from limiterd.core.model.overrides import Override


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that a reload swaps in as one object: configuration, overrides and the host's name.

    sha256 is the hash over the configuration and override texts as loaded.
    """

    config: Config = field(default=Config())
    overrides: tuple[Override, ...] = ()
    host: str = ""
    sha256: str = ""
