"""`limiterctl check [FILE…]`: configuration and overrides judged without a daemon, every problem at once."""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict

from limiterd.config.check import check as judge
from limiterd.core.errors import EXIT_CONFIG, EXIT_DONE
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import json_argument
from limiterd.ctl.format import clean
from limiterd.ctl.terminal import complain, say, say_json


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `check`."""
    parser.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help="configuration files, override files or directories of them (default: --config and the overrides that it names)",
    )
    json_argument(parser)


def check(ns: argparse.Namespace) -> int:
    """Print every problem on standard error, remarks and the verdict on standard output."""
    problems, remarks = judge(ns.file, host=platform.node(), default=ns.config)
    if ns.json:
        say_json({"ok": not problems, "problems": [asdict(p) for p in problems], "remarks": list(remarks)})
        return EXIT_CONFIG if problems else EXIT_DONE
    say(f"note: {clean(remark)}" for remark in remarks)
    if problems:
        complain("\n".join(map(str, problems)), prefix="")
        complain(f"{fmt.plural(len(problems), 'problem')}: a daemon would refuse this and change nothing")
        return EXIT_CONFIG
    say([f"ok: {clean(', '.join(ns.file) or ns.config)}"])
    return EXIT_DONE
