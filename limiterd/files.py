"""Files that are either the old one or the new one, and reads that no file can hang or flood.

write_atomic: a temporary name in the same directory, fsync, rename, fsync of the directory. A crash or a full disk at any
instant leaves the old content or the new, never a mixture; the one temporary name of a file is reused, so crashes leave
no litter. read_bounded: opened without following a link and without waiting for a fifo's writer, regular files only, never
more than the given size in memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

from limiterd.core.errors import EnvironmentFault

_ADVICE: Final = {
    errno.ENOSPC: "free space or inodes on that file system",
    errno.EDQUOT: "raise the quota or free space",
    errno.EROFS: "the file system is mounted read-only; remount it writable",
    errno.EACCES: "give the daemon's user access to it",
    errno.EPERM: "give the daemon's user access to it",
    errno.ELOOP: "it is a symbolic link; put the real file or directory there",
    errno.ENOTDIR: "a part of its path is no directory",
    errno.EIO: "the disk reports errors; check it",
}


def fault(what: str, error: OSError, operation: str) -> EnvironmentFault:
    """The error as an EnvironmentFault whose text says what failed, why, and where known what to do."""
    advice = _ADVICE.get(error.errno or 0)
    text = f"{what}: {error.strerror or error}" + (f"; {advice}" if advice else "")
    return EnvironmentFault(text, operation=operation, errno_name=errno.errorcode.get(error.errno or 0, ""))


def sync_directory(directory: Path) -> None:
    """Make renames, new and deleted files of a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path, mode: int = 0o750) -> None:
    """Make a directory, and those above it, where they are missing; durable when it returns. Raises OSError."""
    if directory.is_dir():
        return
    make_directory(directory.parent, mode)
    directory.mkdir(mode, exist_ok=True)
    sync_directory(directory.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte to a regular file. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _write_new(path: Path, data: bytes, mode: int, owner: os.stat_result | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        if owner is not None:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _owner_of(path: Path) -> os.stat_result | None:
    """Whose the file is that stands there; None where it is none, or a link."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, keep_owner: bool = False) -> None:
    """Replace a file's content durably; missing directories above it are made (0750).

    keep_owner: the new file belongs to whom the old one did; no name is followed or given away.
    Raises EnvironmentFault(operation="write"): the old content then still stands, unless only the last step failed (the
    directory's fsync), when the new content is there but might not outlive a power cut. One writer per file at a time.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        make_directory(path.parent)
        temporary.unlink(missing_ok=True)
        try:
            _write_new(temporary, data, mode, _owner_of(path) if keep_owner else None)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell; the next write unlinks it too
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise fault(f"{path} cannot be written", error, "write") from error


def read_bounded(path: Path, max_bytes: int) -> tuple[bytes, bool] | None:
    """The file's first max_bytes and whether that is all of it; None where there is no such file.

    Raises EnvironmentFault(operation="read"), also for anything but a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise fault(f"{path} cannot be opened", error, "read") from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise EnvironmentFault(f"{path} is not a regular file; move it away", operation="read")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise fault(f"{path} cannot be read", error, "read") from error
    return data[:max_bytes], len(data) <= max_bytes
