"""The control protocol: who may ask what, and how questions and answers are written (docs/control.md). Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EXIT_FAILED, EXIT_NOPERM, EXIT_USAGE, PeerError
from limiterd.serve.messages import MESSAGES, Role

if TYPE_CHECKING:  # clients have no use for the model
    from limiterd.core.model import ControlConfig

VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 64 << 10
MAX_ANSWER_BYTES: Final = 16 << 20
MAX_DESCRIPTORS: Final = 64


def admin_path(socket_path: str) -> str:
    """The socket of root and the administrators, beside the one for everybody."""
    return f"{socket_path}.admin"


VERBS: Final[Mapping[str, Role]] = {verb: kind.role for verb, kind in MESSAGES.items()}
"""Every verb and the least role that may use it."""

CHANGING: Final = frozenset(verb for verb, role in VERBS.items() if role is Role.ADMIN) | {"request.add"}
"""The verbs that change something."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel tells it; gids are all groups of the process, name is the user's or the uid as text.

    account is the uid, or that of the account to which it is a subordinate one: what somebody may use up is counted by it.
    """

    pid: int
    uid: int
    gids: frozenset[int]
    name: str
    account: int


@dataclass(frozen=True, slots=True)
class Call:
    """One question. role None: the peer may not even look."""

    verb: str
    args: Mapping[str, object]
    peer: Peer
    role: Role | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it; data is anything that jsonsafe.dump takes. exit_code is what limiterctl ends with.

    descriptors are files that go along with it (SCM_RIGHTS); the server closes its own ones.
    """

    ok: bool
    data: object = None
    exit_code: int = 0
    error: str = ""
    busy: bool = False
    descriptors: tuple[int, ...] = ()
    durable: bool = True
    """False: what was asked for took effect, but is not on the disk yet."""

    @staticmethod
    def failed(error: str, exit_code: int = EXIT_FAILED, *, durable: bool = True) -> Answer:
        """An answer that says why not."""
        return Answer(ok=False, exit_code=exit_code, error=error, durable=durable)


BUSY: Final = Answer(ok=False, exit_code=EXIT_FAILED, error="the daemon is busy with other clients; try again", busy=True)
DEFECT: Final = Answer.failed("the daemon met a defect of its own in this; its log has the details")


def parse_request(line: bytes) -> tuple[str, Mapping[str, object]]:
    """The verb and its arguments. Raises PeerError(exit_code=2) that says what is wrong."""
    if len(line) > MAX_REQUEST_BYTES:
        raise PeerError(f"a request has at most {MAX_REQUEST_BYTES} bytes", exit_code=EXIT_USAGE)
    try:
        value = jsonsafe.parse(line)
    except ValueError as error:
        raise PeerError(f"the request is not JSON: {error}", exit_code=EXIT_USAGE) from error
    if not isinstance(value, dict):
        raise PeerError('the request is no object like {"v":1,"verb":"status"}', exit_code=EXIT_USAGE)
    if value.get("v") != VERSION or isinstance(value["v"], bool):
        raise PeerError(
            f'protocol version "v" must be {VERSION}; limiterctl and limiterd may differ in version', exit_code=EXIT_USAGE
        )
    verb, args = value.get("verb"), value.get("args", {})
    if not isinstance(verb, str) or verb not in VERBS:
        raise PeerError(f"unknown verb {str(verb)[:40]!r}; known are {', '.join(sorted(VERBS))}", exit_code=EXIT_USAGE)
    if not isinstance(args, dict):
        raise PeerError('"args" is no object', exit_code=EXIT_USAGE)
    return verb, args


def render(answer: Answer, *, wanted: object = True) -> bytes:
    """The answer as a line; other threads get a turn while it is made. Cut short once it is no longer wanted."""
    if answer.ok:
        pieces = itertools.takewhile(lambda _: wanted, jsonsafe.pieces(answer.data))
        text = "".join(('{"ok":true,"data":', *pieces, "}\n"))
        return text.encode() if len(text) <= MAX_ANSWER_BYTES else render(Answer.failed("the answer is too large; ask for less"))
    shown: dict[str, object] = {"ok": False, "exit": answer.exit_code, "error": answer.error}
    shown |= {"busy": True} if answer.busy else {}
    shown |= {} if answer.durable else {"durable": False}
    return f"{jsonsafe.dump(shown)}\n".encode()


@dataclass(frozen=True, slots=True)
class Access:
    """The gids of control.group and control.admin_group, and the daemon's own uid."""

    read_gid: int | None
    admin_gid: int | None
    own_uid: int

    def role_of(self, uid: int, gids: frozenset[int]) -> Role | None:
        """The most that this peer may do; None = nothing."""
        if uid in {0, self.own_uid} or self.admin_gid in gids:
            return Role.ADMIN
        return Role.READ if self.read_gid in gids else None


def refusal(call: Call, config: ControlConfig) -> Answer | None:
    """Why this peer may not use this verb; None where it may."""
    if call.role is Role.ADMIN or call.role is VERBS[call.verb]:
        return None
    group = config.admin_group if VERBS[call.verb] is Role.ADMIN else config.group
    who = "root" if group is None else f"root and members of the group {group!r}"
    return Answer.failed(f"{call.verb} is for {who} only; you are {call.peer.name} (uid {call.peer.uid})", EXIT_NOPERM)
