"""From a parsed command line to the daemon's answer.

The configuration is read for one thing only, the socket's path, and only where --socket does not name it. A configuration
that cannot be used is no reason to refuse: the daemon goes on under its last good one, and that is exactly when somebody
asks for its status. So the path is first looked for in the text (`socket` is the name of one key alone); only where that is not
plain the whole file is read as the daemon would, and where that fails the default is tried, with a note.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Mapping
from typing import Final

from limiterd import DEFAULT_CONFIG
from limiterd.core.errors import EXIT_NOPERM, EXIT_UNREACHABLE, LimiterdError, NotDurableError, PeerError
from limiterd.ctl.format import clean
from limiterd.ctl.terminal import complain, output_is_extra, say_json
from limiterd.serve.messages import Message
from limiterd.trusted_files import UntrustedError, distrust, open_trusted

DEFAULT_SOCKET: Final = "/run/limiterd/control.sock"
ASK_TIMEOUT_S: Final = 5.0
APPLY_TIMEOUT_S: Final = 30.0

Data = Mapping[str, object]


def common_arguments(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """--config and --socket, which every verb takes; nested: below a verb that has them already, whose values then hold."""
    group = parser.add_argument_group("the daemon")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS if nested else DEFAULT_CONFIG,
        help=f"the daemon's configuration: it names the socket and the directories (default: {DEFAULT_CONFIG})",
    )
    group.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS if nested else None,
        help="the daemon's control socket (default: the one that --config names)",
    )


def json_argument(parser: argparse.ArgumentParser) -> None:
    """--json, which every verb that prints data takes."""
    parser.add_argument("--json", action="store_true", help="print JSON (see docs/cli.md for its schema)")


def socket_path(ns: argparse.Namespace) -> str:
    """Where the daemon listens."""
    if ns.socket is not None:
        return str(ns.socket)
    try:
        text = _read(ns.config)
    except (OSError, ValueError, UntrustedError) as error:
        if ns.config != DEFAULT_CONFIG:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            complain(f"{clean(ns.config)}: {why}; trying the default socket {DEFAULT_SOCKET} (--socket PATH names another)")
        return DEFAULT_SOCKET
    return socket_in(text) or _configured_socket(ns.config)


def _read(path: str) -> str:
    """The configuration's text. Raises OSError, ValueError, and UntrustedError for what others could have written, or no file."""
    descriptor = open_trusted(path)
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UntrustedError("it is not a regular file")
        if (reason := distrust(descriptor)) is not None:
            raise UntrustedError(f"it {reason}")
        return file.read(_MAX_CONFIG)


def socket_in(text: str) -> str | None:
    """The socket that a configuration's text names, or the default where it names none; None where that is not plain."""
    bare = _COMMENT.sub("", text)
    if "socket" not in bare:
        return DEFAULT_SOCKET
    named = _PLAIN_SOCKET.findall(bare)
    return str(named[0]) if len(named) == 1 and bare.count("socket:") == 1 else None


_MAX_CONFIG: Final = 256 << 10
_COMMENT: Final = re.compile(r"(^|\s)#.*")
_PLAIN_SOCKET: Final = re.compile(r"""(?:^|[\s{,])socket: *["']?(/[^\s"',}#\\]+)["']? *(?=[,}]|$)""", re.MULTILINE)


def _configured_socket(config: str) -> str:
    from limiterd.config.load import load  # noqa: PLC0415 - it brings YAML along, and is hardly ever needed

    try:
        return load(config).control.socket
    except LimiterdError as error:
        first = str(error).partition("\n")[0]
        complain(f"the configuration cannot be used ({first}); trying the default socket {DEFAULT_SOCKET}")
        return DEFAULT_SOCKET


def ask(ns: argparse.Namespace, message: Message, *, timeout_s: float = ASK_TIMEOUT_S) -> dict[str, object]:
    """The daemon's data for one question. Raises PeerError with the exit code and one sentence that says what to do."""
    from limiterd.serve.control_client import close_all  # noqa: PLC0415 - not for help and usage errors

    data, descriptors = ask_for_files(ns, message, timeout_s=timeout_s)
    close_all(descriptors)
    return data


def ask_for_files(
    ns: argparse.Namespace, message: Message, *, timeout_s: float = ASK_TIMEOUT_S
) -> tuple[dict[str, object], list[int]]:
    """As `ask`, with the files that came along, to be closed."""
    from limiterd.serve.control_client import call_for_files  # noqa: PLC0415 - not for help and usage errors
    from limiterd.serve.protocol import CHANGING  # noqa: PLC0415 - likewise

    try:
        data, descriptors = call_for_files(socket_path(ns), message.verb, message.args(), timeout_s)
    except PeerError as error:
        raise PeerError(advise(str(error), error.exit_code), exit_code=error.exit_code) from error
    except NotDurableError as error:
        output_is_extra()
        if getattr(ns, "json", False):
            say_json({"durable": False, "error": str(error)})
        raise
    if message.verb in CHANGING:
        output_is_extra()
    return dict(data) if isinstance(data, Mapping) else {"data": data}, descriptors


def advise(message: str, exit_code: int) -> str:
    """The error with what to do about it, where it does not say so itself."""
    if any(word in message for word in _ADVISED.get(exit_code, ())):
        return message
    advice = _STALLED if "in time" in message else _ADVICE.get(exit_code, "")
    return message.rstrip(".") + advice


_MEANWHILE: Final = "\nlimits in force stay in the kernel without it: tc qdisc show | grep 1d1d:"
_STALLED: Final = f"; it may be stalled. See: systemctl status limiterd, journalctl -u limiterd -e{_MEANWHILE}"
_ADVICE: Final[Mapping[int, str]] = {
    EXIT_UNREACHABLE: f"; is limiterd running? See: systemctl status limiterd{_MEANWHILE}",
    EXIT_NOPERM: "; run this as root or as a member of the group that control.group or control.admin_group names",
}
_ADVISED: Final[Mapping[int, tuple[str, ...]]] = {
    EXIT_UNREACHABLE: ("systemctl", "is it running", "is limiterd running"),
    EXIT_NOPERM: ("group", "root"),
}


# ---- reading JSON of unknown make ------------------------------------------------------------------


def records(value: object) -> list[dict[str, object]]:
    """The objects of a JSON list; anything else is an empty list."""
    return [dict(item) for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def record(value: object) -> dict[str, object]:
    """A JSON object; anything else is an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def texts(value: object) -> list[str]:
    """The items of a JSON list, or the one text, as text."""
    if value is None or value == "":
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def number(value: object) -> float | None:
    """A JSON number; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def figure(value: object) -> float:
    """A JSON number; 0 for anything else."""
    return number(value) or 0.0
