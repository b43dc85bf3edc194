"""What a command did, as seen in the status afterwards: the daemon is asked until the links show it.

The answer to `limit` or `override add` says that it was accepted. People want to know whether it came true and how soon,
so the links concerned are compared before and after. Phases and limits in the status are the kernel's own, read back.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from limiterd.ctl import format as fmt
from limiterd.ctl.connect import Data, ask, number, records, texts
from limiterd.ctl.format import clean
from limiterd.ctl.terminal import say, say_json
from limiterd.serve import messages as msg

PATIENCE_S: Final = 2.0
POLL_S: Final = 0.05
TOLD_KEYS: Final = ("message", "changes", "warnings")

Rows = Mapping[str, Data]


def rows(ns: argparse.Namespace) -> Rows:
    """The status rows by interface."""
    return {str(link.get("interface")): link for link in records(ask(ns, msg.GetStatus()).get("links"))}


def await_effect(
    ns: argparse.Namespace,
    before: Rows,
    started: float,
    settled: Callable[[Rows], bool],
    *,
    late: Callable[[Rows], list[str]] = lambda _: [],
) -> list[str]:
    """Ask until settled(rows) or PATIENCE_S is over; one sentence for each link that changed. started: time.monotonic().

    late(rows) are further sentences where it did not settle in time.
    """
    while True:
        after = rows(ns)
        elapsed = time.monotonic() - started
        if settled(after):
            return differences(before, after, elapsed)
        if elapsed > PATIENCE_S:
            return [*differences(before, after, elapsed), *late(after)]
        time.sleep(POLL_S)


def differences(before: Rows, after: Rows, elapsed_s: float) -> list[str]:
    """One sentence for each link whose phase or limit changed, with how long that took."""
    found = [_difference(before.get(name, {}), row, elapsed_s) for name, row in after.items()]
    return [sentence for sentence in found if sentence]


def _difference(old: Data, new: Data, elapsed_s: float) -> str:
    name, later = clean(new.get("interface", "")), f"{elapsed_s:.2g} s later"
    was, now = old.get("phase"), new.get("phase")
    limit = fmt.rate(number(new.get("limit_bps")))
    if now == "limited" and was == "limited":
        changed = old.get("limit_bps") != new.get("limit_bps")
        return f"{name}: limit changed from {fmt.rate(number(old.get('limit_bps')))} to {limit} {later}" if changed else ""
    if now == was:
        return ""
    if now == "limited":
        return f"{name}: limited to {limit} {later}, read back from the kernel"
    if now == "fault":
        return f"{name}: the kernel could not be made so ({later}): limiterctl explain {name}"
    if was == "fault" and now != "exempt":
        return f"{name}: no limit is due any more"
    end = f", exempt under {clean(new.get('override') or '?')}" if now == "exempt" else ""
    return f"{name}: limit lifted {later}{end}" if was in ("limited", "fault") else f"{name}: {clean(was)} → {clean(now)} {later}"


def report(ns: argparse.Namespace, data: Data, effects: Sequence[str], otherwise: str) -> None:
    """Print the daemon's answer and what was seen to follow from it; `otherwise` where neither says anything."""
    if ns.json:
        say_json({**data, "observed": list(effects)})
        return
    told = [clean(text) for key in TOLD_KEYS for text in texts(data.get(key))]
    say([*told, *effects] or [otherwise])
