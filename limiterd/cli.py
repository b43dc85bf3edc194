"""limiterctl: one word for each thing that people do with limiterd.

Rule: VERBS is the whole command line. A verb's module is imported when the verb is called, so that `status` answers at
once; the full parser (every verb's arguments) is built only for help, the manual pages and the completions.

Exit codes: 0 done, 1 failed, 2 usage, 3 the daemon cannot be reached, 75 inconclusive (demo), 77 not permitted, 78 invalid
configuration; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final, NamedTuple, cast

from limiterd import __version__
from limiterd.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAILED, LimiterdError
from limiterd.ctl.connect import common_arguments
from limiterd.ctl.terminal import PREFIX, begin_output, complain, deliver, discard_output, tolerant_streams
from limiterd.streams import settle

EXIT_INTERRUPTED: Final = 130

Arguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int | None]


class Verb(NamedTuple):
    """One word of limiterctl: its help, and where its arguments and its work are ("module:function")."""

    help: str
    arguments: str
    run: str


VERBS: Final[Mapping[str, Verb]] = {
    "status": Verb(
        "show what every watched link is doing, one row per link",
        "limiterd.ctl.show_status:status_arguments",
        "limiterd.ctl.show_status:status",
    ),
    "top": Verb("live view of status, with charts", "limiterd.ctl.top:top_arguments", "limiterd.ctl.top:top"),
    "explain": Verb(
        "explain why a link is in its phase, and what would lift its limit",
        "limiterd.ctl.show_explain:explain_arguments",
        "limiterd.ctl.show_explain:explain",
    ),
    "history": Verb(
        "show the audit trail, newest first", "limiterd.ctl.history:history_arguments", "limiterd.ctl.history:history"
    ),
    "reload": Verb(
        "apply the configuration and the overrides now, or change nothing and say why",
        "limiterd.ctl.operator:reload_arguments",
        "limiterd.ctl.operator:reload",
    ),
    "limit": Verb("limit a link by hand", "limiterd.ctl.operator:limit_arguments", "limiterd.ctl.operator:limit"),
    "release": Verb("lift a limit by hand", "limiterd.ctl.operator:release_arguments", "limiterd.ctl.operator:release"),
    "pause": Verb(
        "impose no new limits; those in force stay", "limiterd.ctl.operator:pause_arguments", "limiterd.ctl.operator:pause"
    ),
    "resume": Verb("end a pause", "limiterd.ctl.operator:resume_arguments", "limiterd.ctl.operator:resume"),
    "override": Verb(
        "add, list and revoke approved increase requests",
        "limiterd.ctl.override:override_arguments",
        "limiterd.ctl.override:override",
    ),
    "request": Verb("submit an increase request", "limiterd.ctl.request:request_arguments", "limiterd.ctl.request:request"),
    "requests": Verb(
        "list the increase requests and what became of them",
        "limiterd.ctl.request:requests_arguments",
        "limiterd.ctl.request:requests",
    ),
    "approve": Verb(
        "turn an increase request into an override", "limiterd.ctl.request:approve_arguments", "limiterd.ctl.request:approve"
    ),
    "deny": Verb("reject an increase request", "limiterd.ctl.request:deny_arguments", "limiterd.ctl.request:deny"),
    "check": Verb(
        "validate configuration and overrides, without a daemon", "limiterd.ctl.check:check_arguments", "limiterd.ctl.check:check"
    ),
    "replay": Verb(
        "show what a policy would have done to recorded traffic", "limiterd.replay:add_arguments", "limiterd.replay:run"
    ),
    "record": Verb(
        "record the watched links' counters for replay", "limiterd.ctl.record:add_arguments", "limiterd.ctl.record:run"
    ),
    "demo": Verb(
        "show the policy at work on real traffic, in its own namespaces", "limiterd.demo:add_arguments", "limiterd.demo:run"
    ),
    "install-service": Verb(
        "set limiterd up as a systemd service on this machine",
        "limiterd.ctl.install_service:add_arguments",
        "limiterd.ctl.install_service:run",
    ),
    "uninstall-service": Verb(
        "remove the systemd service", "limiterd.ctl.install_service:add_arguments", "limiterd.ctl.install_service:run"
    ),
    "completion": Verb(
        "print the completion script for a shell",
        "limiterd.ctl.completion:completion_arguments",
        "limiterd.ctl.completion:completion",
    ),
}

EPILOG: Final = "Every verb has its own help: limiterctl VERB --help. Exit codes: 0 done, 1 failed, 2 usage, \
3 the daemon cannot be reached, 75 inconclusive (demo), 77 not permitted, 78 invalid configuration."


def resolve(target: str) -> Callable[..., object]:
    """The function that "module:function" names."""
    module, _, name = target.partition(":")
    return cast("Callable[..., object]", getattr(import_module(module), name))


def build_parser(verbs: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The command line; the arguments of these verbs only (None: of all), the others by name and help."""
    parser = argparse.ArgumentParser(
        prog="limiterctl",
        description="Inspect and control limiterd, the egress rate limiter.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"limiterctl {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for name, verb in VERBS.items():
        # "resolve": a verb that gives --config a meaning of its own (check, replay) says so in its own words.
        subparser = subparsers.add_parser(name, help=verb.help, description=_sentence(verb.help), conflict_handler="resolve")
        subparser.set_defaults(usage_error=subparser.error)
        if verbs is None or name in verbs:
            common_arguments(subparser)
            cast("Arguments", resolve(verb.arguments))(subparser)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def run_verb(arguments: Sequence[str]) -> int:
    """Parse and carry out one command line. Raises LimiterdError, SystemExit (usage, help)."""
    verb = next((a for a in arguments if not a.startswith("-")), "")
    parser = build_parser([verb])
    if arguments and arguments[0].startswith("--") and not any(own.startswith(arguments[0]) for own in ("--help", "--version")):
        parser.error(f"options come after the verb: limiterctl VERB {arguments[0]} …")
    ns, unknown = parser.parse_known_args(arguments)
    if unknown:
        ns.usage_error(f"unrecognized arguments: {' '.join(unknown)}")
    return cast("Run", resolve(VERBS[ns.verb].run))(ns) or EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry of limiterctl: an exit code for everything that can happen, and never a traceback for what was foreseen."""
    settle()
    tolerant_streams()
    begin_output()
    try:
        return deliver(_code(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as ended:  # help, or a usage error
        raise SystemExit(deliver(ended.code if isinstance(ended.code, int) else EXIT_DONE)) from None


def _code(arguments: Sequence[str]) -> int:
    try:
        return run_verb(arguments)
    except LimiterdError as error:
        complain(str(error), prefix="" if error.exit_code == EXIT_CONFIG else PREFIX)
        return error.exit_code
    except BrokenPipeError:  # nobody reads on
        discard_output()
        return EXIT_DONE
    except OSError as error:  # a full disk behind standard output, most of all
        discard_output()
        complain(f"{error.filename or 'the output cannot be written'}: {error.strerror or error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
