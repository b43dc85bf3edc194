"""limiterd, the daemon: wires the adapters to the engine and runs the loop.

main() is the outermost edge: it turns what goes wrong into one clear line and the documented exit status. Its parts:
daemon (everything assembled), loop (ticks and calls), controller (what a tick does), executor (carries out actions), reload,
event_log (what happened, told), verbs (what the control socket can ask), problems (what is degraded).
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from limiterd.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAILED, EXIT_NOPERM, ConfigError, LimiterdError
from limiterd.core.model import PolicyMode, Rules
from limiterd.streams import settle

if TYPE_CHECKING:
    from limiterd.config.load import Loaded

CANNOT_CLEAN_UP = "limiterd: --cleanup needs CAP_NET_ADMIN; run it as root"
NO_CAPABILITY = (
    "limiterd: CAP_NET_ADMIN is missing, which shaping needs; run it as root, as the limiterd.service unit, "
    "or set `mode: observe`, which needs none"
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the daemon, validate, or clean up; ends the process with the documented exit status."""
    from limiterd.daemon.entry import parser  # noqa: PLC0415 - argparse is not needed once the loop runs

    settle()
    try:
        arguments = parser().parse_args(argv)
        if arguments.keep_decisions and not arguments.cleanup:
            parser().error("--keep-decisions goes with --cleanup")
    except SystemExit as ended:  # help, or a usage error
        os._exit(int(ended.code or EXIT_DONE) or (EXIT_DONE if _flushed() else EXIT_FAILED))
    faulthandler.enable(2)
    try:
        status = _run(arguments.config, check=arguments.check, cleanup=arguments.cleanup, keep_decisions=arguments.keep_decisions)
    except ConfigError as error:
        _say(str(error))
        status = EXIT_CONFIG
    except LimiterdError as error:
        _say(f"limiterd: {error}")
        status = error.exit_code
    except KeyboardInterrupt:
        status = 128 + 2
    except Exception as error:  # noqa: BLE001 - the outermost edge: a defect ends the process, limits stay in the kernel
        from traceback import print_exc  # noqa: PLC0415 - only a defect needs it

        print_exc()
        _say(f"limiterd: stopped by a defect: {type(error).__name__}: {error}; limits stay as they are in the kernel")
        status = EXIT_FAILED
    if not _flushed() and status == EXIT_DONE and not arguments.cleanup:  # what is cleaned up is, told or not
        status = EXIT_FAILED
    os._exit(status)  # threads that wait for a disk must not hold up a restart


def _flushed() -> bool:
    """Write out what is buffered, which os._exit would drop; False where stdout does not take it. A reader may go."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    except OSError as error:
        _say(f"limiterd: the output could not be written: {error.strerror}")
        return False
    return True


def _say(text: str) -> None:
    from limiterd.log import LEVELS, is_journal  # noqa: PLC0415 - only what goes wrong needs it

    priority = f"<{LEVELS['error']}>" if is_journal(2, os.environ.get("JOURNAL_STREAM", "")) else ""
    sys.stderr.write("".join(f"{priority}{line}\n" for line in text.splitlines()))


def _run(path: str, *, check: bool, cleanup: bool, keep_decisions: bool) -> int:
    from limiterd.config import load as config  # noqa: PLC0415 - a usage error needs no YAML
    from limiterd.daemon.host import CAP_NET_ADMIN, has_capability, hostname  # noqa: PLC0415 - likewise

    if cleanup and not has_capability(CAP_NET_ADMIN):
        _say(CANNOT_CLEAN_UP)
        return EXIT_NOPERM
    if cleanup:
        from limiterd.daemon.cleanup import clean_up  # noqa: PLC0415 - a command of its own

        return clean_up(path, keep_decisions=keep_decisions)
    loaded = config.load_all(path, host=hostname())
    if check:
        for line in (*loaded.notes, *map(str, loaded.damaged)):
            _say(line)
        sys.stdout.write(
            f"{path}: valid, {len(loaded.rules.config.policies)} policies, {len(loaded.rules.overrides)} overrides\n"
        )
        return EXIT_DONE
    if _enforces(loaded.rules) and not has_capability(CAP_NET_ADMIN):
        _say(NO_CAPABILITY)
        return EXIT_NOPERM
    return _serve(path, loaded)


def _enforces(rules: Rules) -> bool:
    return any(policy.mode is PolicyMode.ENFORCE for policy in rules.config.policies)


def _serve(path: str, loaded: Loaded) -> int:
    from limiterd.daemon.daemon import Daemon  # noqa: PLC0415 - the daemon proper
    from limiterd.log import Log, bridged  # noqa: PLC0415 - likewise

    settings = loaded.rules.config
    for directory, mode in ((Path(settings.state.directory), 0o750), (Path(settings.control.socket).parent, 0o755)):
        _make(directory, mode)
    log = Log(level=settings.log.level, form=settings.log.format)
    with bridged(log):
        try:
            Daemon(path, loaded, log).run()
        finally:
            log.close(0.3)
    return EXIT_DONE


def _make(directory: Path, mode: int) -> None:
    """Make a directory where it is missing and may be made; where not, its user says so."""
    from limiterd.files import make_directory  # noqa: PLC0415 - only a start needs it

    try:
        make_directory(directory, mode)
    except OSError as error:
        raise LimiterdError(f"{directory} cannot be made: {error.strerror}; make it, writable for this user") from error
