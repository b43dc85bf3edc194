"""A listening unix socket that one instance owns: a lock file beside it decides who.

`<socket>.lock` is held (flock) for the life of the process and never removed; whoever holds it may clear away a stale socket and
bind. Where anybody else could have put things under these names (a run directory that others may write to, a link, a foreign
owner, something that is no socket) it refuses and says what to do, rather than follow or delete.

A socket is born 0600, gets its group, and only then opens to 0660: at no instant can a wrong group connect. The mode is set on
the descriptor before bind, which the kernel takes over, and not by umask, which would strike other threads' files too. A file
has one group; another one is let in by an access list (acl(5)), where the file system keeps such.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from limiterd.core.errors import EnvironmentFault
from limiterd.files import fault

LOCKED: Final = "instance"
"""The operation of the fault that says another instance runs."""
_OPERATION: Final = "control"
_BACKLOG: Final = 128
_ACL: Final = "system.posix_acl_access"
_ACL_VERSION: Final = 2
_ACL_ENTRY: Final = struct.Struct("<HHI")
_NOBODY: Final = 0xFFFFFFFF
_READ_WRITE: Final = 6


def _access_list(gid: int) -> bytes:
    """user::rw- group::rw- group:GID:rw- mask::rw- other::---, as linux/posix_acl_xattr.h lays it out."""
    entries = (
        (0x01, _READ_WRITE, _NOBODY),
        (0x04, _READ_WRITE, _NOBODY),
        (0x08, _READ_WRITE, gid),
        (0x10, _READ_WRITE, _NOBODY),
        (0x20, 0, _NOBODY),
    )
    return struct.pack("<I", _ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)


def _trusted(uid: int) -> bool:
    return uid in {0, os.geteuid()}


def _check_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise fault(f"the run directory {directory} cannot be used", error, _OPERATION) from error
    if not stat.S_ISDIR(found.st_mode):
        raise EnvironmentFault(f"the run directory {directory} is a link; put a directory there", operation=_OPERATION)
    if not _trusted(found.st_uid) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EnvironmentFault(
            f"the run directory {directory} (owner {found.st_uid}, mode {found.st_mode & 0o7777:04o}) can be written to by "
            "others than root and the daemon; chown and chmod 755 it",
            operation=_OPERATION,
        )


def _another(who: str) -> EnvironmentFault:
    text = f"another limiterd is running already: {who}; stop that one first"
    return EnvironmentFault(text, operation=LOCKED, errno_name="EWOULDBLOCK")


def is_owned(path: str | Path) -> bool:
    """Whether a running instance owns the socket of this path; makes nothing, and holds nothing afterwards."""
    lock_path = Path(path).with_name(Path(path).name + ".lock")
    try:
        descriptor = os.open(lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class InstanceLock:
    """The lock of one path. One thread at a time."""

    def __init__(self, path: str | Path) -> None:
        """Name the socket that it belongs to; nothing is touched yet."""
        self.path = Path(path)
        self._lock_path = self.path.with_name(self.path.name + ".lock")
        self._lock: int | None = None

    @property
    def held(self) -> bool:
        """Whether this is the one instance."""
        return self._lock is not None

    def lock(self) -> None:
        """Become the one instance; does nothing when it is already.

        Raises EnvironmentFault: operation "instance" when another one is, naming its pid, "control" for all else.
        """
        if self._lock is not None:
            return
        try:
            _check_directory(self.path.parent)
        except EnvironmentFault as error:
            if is_owned(self.path):  # the service's, seen by root: nothing is wrong with the directory
                raise _another(f"{self._lock_path} is held") from error
            raise
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._lock_path, flags, 0o600)
        except OSError as error:
            raise fault(f"the lock file {self._lock_path} cannot be opened", error, _OPERATION) from error
        try:
            self._take(descriptor)
        except EnvironmentFault:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def _take(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _trusted(found.st_uid):
            raise EnvironmentFault(
                f"{self._lock_path} is not ours (owner {found.st_uid}); remove it and find out who put it there",
                operation=_OPERATION,
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise _another(f"pid {pid} holds {self._lock_path}") from error
        except OSError as error:
            if error.errno != errno.ENOSPC:  # the pid in it is a courtesy; the lock itself needs no room
                raise fault(f"{self._lock_path} cannot be locked", error, _OPERATION) from error

    def close(self) -> None:
        """Give it up."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class OwnedSocket:
    """The socket of one path, bound under a lock. One thread at a time."""

    def __init__(self, path: str | Path, lock: InstanceLock, *, private: bool = False) -> None:
        """Name the socket; nothing is touched yet. A private one without a group is its owner's alone."""
        self.path = Path(path)
        self._lock = lock
        self._private = private
        self._inode: tuple[int, int] | None = None
        self.excluded = False
        """Whether the second group is left out, because the file system keeps no access lists."""

    def bind(self, gid: int | None, also_gid: int | None = None) -> socket.socket:
        """Listen at the path, open to this group (None: the daemon's own) and that one, in place of a stale socket.

        Raises EnvironmentFault(operation="control"). The lock must be held.
        """
        if not self._lock.held:
            raise EnvironmentFault("the socket is bound under its lock only", operation=_OPERATION)
        _check_directory(self.path.parent)
        self._clear()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self.path))
            found = self.path.lstat()
            self._inode = (found.st_dev, found.st_ino)
            self.admit(gid, also_gid)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise fault(f"the control socket {self.path} cannot be made", error, _OPERATION) from error
        except EnvironmentFault:
            listener.close()
            raise
        return listener

    def _clear(self) -> None:
        """Remove a stale socket, and nothing else."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise fault(f"{self.path} cannot be looked at", error, _OPERATION) from error
        if not stat.S_ISSOCK(found.st_mode) or not _trusted(found.st_uid):
            raise EnvironmentFault(
                f"{self.path} is in the way: it is no socket of ours (owner {found.st_uid}, mode {found.st_mode:07o}); "
                "find out who put it there and remove it",
                operation=_OPERATION,
            )
        try:
            self.path.unlink()
        except OSError as error:
            raise fault(f"the stale socket {self.path} cannot be removed", error, _OPERATION) from error

    def admit(self, gid: int | None, also_gid: int | None = None) -> None:
        """Open the bound socket to other groups. Raises EnvironmentFault(operation="control")."""
        wanted = os.getegid() if gid is None else gid
        mode = 0o600 if self._private and gid is None else 0o660
        try:
            self.path.chmod(0o600)
            try:
                if self.path.lstat().st_gid != wanted:  # the service's system call filter allows no chown unless a group is set
                    os.chown(self.path, -1, wanted, follow_symlinks=False)
                self._admit_also(None if also_gid == wanted else also_gid)
            finally:  # where the new group was refused, the old one is still served
                self.path.chmod(mode)
        except OSError as error:
            raise fault(f"{self.path} cannot be given to group {gid}", error, _OPERATION) from error

    def _admit_also(self, gid: int | None) -> None:
        self.excluded = False
        try:
            if gid is None:
                os.removexattr(self.path, _ACL, follow_symlinks=False)
            else:
                os.setxattr(self.path, _ACL, _access_list(gid), follow_symlinks=False)
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
                raise
            self.excluded = gid is not None

    def stands(self) -> bool:
        """Whether the path still leads to the socket that was bound."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return self._inode == (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Remove the socket if it is still ours."""
        if self._inode is not None and self.stands():
            with contextlib.suppress(OSError):  # a read-only run directory: the next start clears it
                self.path.unlink()
        self._inode = None
