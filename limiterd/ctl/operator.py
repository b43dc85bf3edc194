"""An operator's hand: reload, limit, release, pause, resume. Each is audited by the daemon with who did it and why."""

from __future__ import annotations

import argparse
import time

from limiterd.core.errors import EXIT_DONE, EXIT_FAILED
from limiterd.ctl.connect import APPLY_TIMEOUT_S, Data, ask, json_argument, number
from limiterd.ctl.effect import Rows, await_effect, report, rows
from limiterd.ctl.format import clean, rate
from limiterd.ctl.terminal import complain
from limiterd.ctl.values import rate_bps
from limiterd.serve import messages as msg

_REASON_HELP = "why, for the audit trail and for whoever asks later"


def reload_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `reload`."""
    json_argument(parser)


def reload(ns: argparse.Namespace) -> int:
    """Apply the files as they are now; a ConfigError's exit code (78) comes back through the daemon's refusal."""
    data = ask(ns, msg.Reload(), timeout_s=APPLY_TIMEOUT_S)
    report(ns, data, (), "reloaded: nothing changed")
    return EXIT_DONE


def limit_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `limit`."""
    parser.add_argument("interface", metavar="IFACE", help="the link")
    parser.add_argument("--rate", type=rate_bps, metavar="R", help="the limit, like 200mbit (default: the policy's)")
    parser.add_argument("--reason", required=True, metavar="TEXT", help=_REASON_HELP)
    parser.add_argument("--force", action="store_true", help="also under a policy in observe mode, or while limits are paused")
    json_argument(parser)


def limit(ns: argparse.Namespace) -> int:
    """Limit one link and wait until the kernel shows it."""
    order = msg.Limit(interface=ns.interface, reason=ns.reason, rate_bps=ns.rate, force=ns.force)
    before, started = rows(ns), time.monotonic()
    data = ask(ns, order, timeout_s=APPLY_TIMEOUT_S)

    def settled(now: Rows) -> bool:
        row = now.get(ns.interface, {})
        return row.get("phase") == "fault" or (row.get("phase") == "limited" and ns.rate in (None, row.get("limit_bps")))

    effects = await_effect(ns, before, started, settled)
    report(ns, data, effects, f"{clean(ns.interface)}: accepted; see: limiterctl status {clean(ns.interface)}")
    return _kept(ns, rows(ns).get(ns.interface, {}))


def _kept(ns: argparse.Namespace, row: Data) -> int:
    """Whether the link is limited as it was asked for; says so where the rate is another."""
    if row.get("phase") != "limited":
        return EXIT_FAILED
    if ns.rate in (None, row.get("limit_bps")):
        return EXIT_DONE
    override = f": override {clean(row['override'])} sets the limit" if row.get("override") else ""
    complain(f"{clean(ns.interface)}: limited to {rate(number(row.get('limit_bps')))}, not to {rate(ns.rate)}{override}")
    return EXIT_FAILED


def release_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `release`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("interface", nargs="?", metavar="IFACE", help="the limited link")
    which.add_argument("--all", action="store_true", help="every limited link")
    parser.add_argument("--reason", required=True, metavar="TEXT", help=_REASON_HELP)
    json_argument(parser)


def release(ns: argparse.Namespace) -> int:
    """Lift one limit or all, and wait until the kernel shows it."""
    order = msg.Release(reason=ns.reason, all=ns.all, interface=None if ns.all else ns.interface)
    before, started = rows(ns), time.monotonic()
    data = ask(ns, order, timeout_s=APPLY_TIMEOUT_S)

    def standing(now: Rows) -> list[str]:
        concerned = now if ns.all else {ns.interface: now.get(ns.interface, {})}
        return [name for name, row in concerned.items() if row.get("phase") in ("limited", "fault")]

    effects = await_effect(ns, before, started, lambda now: not standing(now))
    report(ns, data, effects, "nothing was limited")
    return EXIT_FAILED if standing(rows(ns)) else EXIT_DONE


def pause_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pause` and `resume`."""
    parser.add_argument("--reason", metavar="TEXT", default="", help=_REASON_HELP)
    json_argument(parser)


def pause(ns: argparse.Namespace) -> int:
    """Impose no new limits."""
    data = ask(ns, msg.Pause(reason=ns.reason))
    report(ns, data, (), "paused: no new limit is imposed until `limiterctl resume`; those in force stay")
    return EXIT_DONE


resume_arguments = pause_arguments


def resume(ns: argparse.Namespace) -> int:
    """End a pause."""
    data = ask(ns, msg.Resume(reason=ns.reason))
    report(ns, data, (), "resumed: links are limited again when their policy says so")
    return EXIT_DONE
