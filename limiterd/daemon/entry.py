"""The command line of limiterd."""

from __future__ import annotations

import argparse

from limiterd import DEFAULT_CONFIG, __version__


def parser() -> argparse.ArgumentParser:
    """The daemon's options."""
    made = argparse.ArgumentParser(
        prog="limiterd",
        description="Detects links in sustained egress excess, shapes them with tc/HTB, holds the limit, releases it. "
        "Runs in the foreground and logs to stderr; limiterctl talks to it.",
        epilog="Exit status: 0 done, 1 failed, 2 usage, 77 CAP_NET_ADMIN is missing, 78 invalid configuration.",
        allow_abbrev=False,
    )
    made.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="the configuration (default: %(default)s)")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="validate the configuration and the overrides, and exit")
    what.add_argument(
        "--cleanup",
        action="store_true",
        help="remove all limits that limiterd left in this network namespace, and exit; no daemon may be running",
    )
    made.add_argument(
        "--keep-decisions",
        action="store_true",
        help="with --cleanup: leave the decisions on record, so that a later start puts their limits back",
    )
    made.add_argument("--version", action="version", version=f"limiterd {__version__}")
    return made
