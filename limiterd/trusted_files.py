"""Opens files and directories that only trusted hands can have written, without ever waiting for one.

Trusted hands are root, the user that this process runs as, and the owner of limiterd's own program files (in a checkout:
whoever made it). A file counts that belongs to one of them and that nobody else may write; on a file system that is mounted
read-only nobody may write, whatever the mode says.

A symbolic link is followed where its whole chain is trusted: the directory that holds it, each link and each directory on the
way, and at last the file. So a ConfigMap's `..data` and NixOS's /etc/static work, and a link in a directory that a tenant can
write leads nowhere. Within trusted directories nobody can exchange a name between the look at it and its opening.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import Final

MAX_LINKS: Final = 40
"""As the kernel follows at most."""
_PROGRAM_OWNER: Final = os.stat(__file__).st_uid  # noqa: PTH116 - asked once, before an upgrade can take the file away
_ONE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedError(Exception):
    """A file that others can have written; the text says what to do, as the rest of a sentence about the path."""


def distrust(descriptor: int, owners: Collection[int] = ()) -> str | None:
    """Tell why an open file or directory cannot be trusted, or None; owners are trusted too."""
    return _distrust(os.fstat(descriptor), descriptor, owners)


def _distrust(status: os.stat_result, descriptor: int, owners: Collection[int]) -> str | None:
    allowed = {0, os.geteuid(), _PROGRAM_OWNER, *owners}
    if status.st_uid not in allowed:
        wanted = " or ".join(str(uid) for uid in sorted(allowed))
        return f"belongs to uid {status.st_uid}, who could change it at will; chown it to root (trusted uids: {wanted})"
    open_to_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)
    if open_to_others and not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o}); chmod go-w it"
    return None


def open_trusted(path: str, *, dir_fd: int | None = None, owners: Collection[int] = (), directory: bool = False) -> int:
    """Open a file, or a directory, for reading; its descriptor. What it is itself must still be judged: distrust().

    Raises UntrustedError for a link that is not to be followed, OSError, and ValueError for a path that holds a NUL.
    """
    if not stat.S_ISLNK(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        return os.open(path, _ONE | (os.O_DIRECTORY if directory else 0), dir_fd=dir_fd)
    head, name = os.path.split(path.rstrip("/"))
    base = os.open(head or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if (reason := distrust(base, owners)) is not None:
            raise UntrustedError(f"is a symbolic link in a directory that {reason}")
        return _follow(base, name, owners, os.O_DIRECTORY if directory else 0)
    finally:
        os.close(base)


def untrusted_directory(path: str) -> str | None:
    """Why what is in a directory cannot be trusted, as a sentence; None where it can, or where there is no such directory."""
    try:
        descriptor = open_trusted(path, directory=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UntrustedError) as error:
        return f"{path} cannot be trusted: {error}"
    try:
        reason = distrust(descriptor)
    finally:
        os.close(descriptor)
    return None if reason is None else f"{path} {reason}; until then others can change what limiterd remembers"


def _follow(base: int, name: str, owners: Collection[int], how: int) -> int:
    """Open what a name in a trusted directory leads to, step by step."""
    at, parts, links = os.dup(base), [name], 0
    try:
        while parts:
            part = parts.pop(0)
            status = os.stat(part, dir_fd=at, follow_symlinks=False)
            sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX  # as /tmp: a name stays its owner's
            if not sticky and (reason := _distrust(status, at, owners)) is not None:
                raise UntrustedError(f"is a symbolic link by way of {part!r}, which {reason}")
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > MAX_LINKS:
                    raise UntrustedError("is a symbolic link that leads in a circle; put the file itself here")
                target = os.readlink(part, dir_fd=at)
                parts[:0] = [one for one in target.split("/") if one not in {"", "."}]
                if target.startswith("/"):
                    at = _move(at, "/")
            elif parts:
                at = _move(at, part)
            else:
                return os.open(part, _ONE | how, dir_fd=at)
        raise UntrustedError("is a symbolic link to a directory; put the file itself here")
    finally:
        os.close(at)


def _move(at: int, part: str) -> int:
    """Go on to a directory; closes the one before."""
    there = os.open(part, _STEP, dir_fd=at)
    os.close(at)
    return there
