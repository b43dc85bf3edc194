"""The words of limiterd as types: immutable values that every part shares.

Units are in the names: _ns nanoseconds (CLOCK_BOOTTIME unless `wall` is in the name), _bps bits per second, _bytes, _ppm.
Three truths are told apart by suffix: _wanted (what policy asks), _actual (what the kernel shows), _saved (what was
there before us). Nothing here computes; the rules live in the modules that use these types.
"""

from __future__ import annotations

from limiterd.core.model.clock import DAY, HOUR, MINUTE, MS, SECOND, Now
from limiterd.core.model.decisions import Decision, Journal, Memory, SavedQdisc
from limiterd.core.model.links import Link, Snapshot
from limiterd.core.model.rules import (
    Config,
    ControlConfig,
    Detect,
    Enforcement,
    ForeignQdisc,
    Guard,
    GuardMode,
    Lifeline,
    Limit,
    LogConfig,
    Match,
    MetricsConfig,
    OnExit,
    Override,
    OverrideAction,
    Policy,
    PolicyMode,
    Release,
    ReleaseMode,
    Rules,
    Sampling,
    Source,
    Tls,
)
from limiterd.core.model.tcobjects import (
    CLASS_DEFAULT,
    CLASS_EXEMPT,
    CLASS_LIFELINE,
    CLASS_LIMIT,
    HANDLE_ROOT,
    LEAF_DEFAULT,
    LEAF_EXEMPT,
    LEAF_LIFELINE,
    NOT_SENT,
    OUR_MAJOR,
    PARENT_ROOT,
    Action,
    ActionKind,
    ActionResult,
    ClassStats,
    Filter,
    HtbClass,
    KernelAbilities,
    Leaf,
    RootQdisc,
    TcActual,
    TcTree,
)
from limiterd.core.model.verdicts import EpochReason, Event, EventKind, FaultReason, Firing, Phase, Reason, ReleaseReason
from limiterd.core.model.views import Counters, Fault, Histogram, LinkView, OverrideView, Status

# fmt: off
__all__ = [
    "CLASS_DEFAULT", "CLASS_EXEMPT", "CLASS_LIFELINE", "CLASS_LIMIT", "DAY", "HANDLE_ROOT", "HOUR", "LEAF_DEFAULT",
    "LEAF_EXEMPT", "LEAF_LIFELINE", "MINUTE", "MS", "NOT_SENT", "OUR_MAJOR", "PARENT_ROOT", "SECOND", "Action", "ActionKind",
    "ActionResult", "ClassStats", "Config", "ControlConfig", "Counters", "Decision", "Detect", "Enforcement", "EpochReason",
    "Event", "EventKind", "Fault", "FaultReason", "Filter", "Firing", "ForeignQdisc", "Guard", "GuardMode", "Histogram",
    "HtbClass", "Journal", "KernelAbilities", "Leaf", "Lifeline", "Limit", "Link", "LinkView", "LogConfig", "Match", "Memory",
    "MetricsConfig", "Now", "OnExit", "Override", "OverrideAction", "OverrideView", "Phase", "Policy", "PolicyMode", "Reason",
    "Release", "ReleaseMode", "ReleaseReason", "RootQdisc", "Rules", "Sampling", "SavedQdisc", "Snapshot", "Source", "Status",
    "TcActual", "TcTree", "Tls",
]
# fmt: on
