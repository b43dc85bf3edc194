"""`limiterctl completion bash|zsh|fish`: prints a completion script. The scripts are made from the parser by `make docs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Final

from limiterd.core.errors import EXIT_DONE

SHELLS: Final[Mapping[str, str]] = {"bash": "limiterctl.bash", "fish": "limiterctl.fish", "zsh": "_limiterctl"}
"""The file of each shell's script, as that shell's packages name it."""


def completion_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `completion`."""
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell to complete for")


def completion(ns: argparse.Namespace) -> int:
    """Print the script."""
    script = resources.files("limiterd.ctl") / "completions" / SHELLS[ns.shell]
    sys.stdout.write(script.read_text(encoding="utf-8"))
    return EXIT_DONE
