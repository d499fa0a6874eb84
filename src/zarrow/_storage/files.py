"""Changing a disk — every write, sync, link, rename and removal of the library.

Everything goes through `calls`, a table of the operating system's calls: tests replace the table by one that
records, tears, fails or dies, and so reach every durable step of the library. The rules:

* a write is repeated until all bytes are out, and a write of nothing is an error, never an endless loop;
* a failed fsync is never repeated: the kernel may have dropped the bytes;
* no symbolic link inside a store is followed, since it may lead out of the store, and only regular files are
  opened: opening a pipe would wait for ever;
* a small document appears whole or not at all: it is written under a scratch name, synced, then linked
  (`publish`: only if the name is free) or renamed (`replace`) into place, and the directory is synced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zarrow._storage.reading import refuse_odd, require_regular
from zarrow.errors import CorruptionError

__all__ = [
    "calls",
    "create",
    "exchange",
    "give_access",
    "link",
    "make_dir",
    "make_dir_like",
    "publish",
    "remove",
    "remove_empty_dir",
    "remove_tree",
    "replace",
    "scratch_name",
    "start_writeback",
    "sync",
    "sync_dir",
    "truncate",
    "write",
]


_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Calls:
    """The operating system's calls that change a disk, one method each."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Open a file that will be written."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        """Write some of `data` at `offset`."""
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd: int, size_bytes: int) -> None:
        """Set a file's size."""
        os.ftruncate(fd, size_bytes)

    def fsync(self, fd: int) -> None:
        """Wait until a file's bytes, its size included, are on the disk."""
        if sys.platform == "darwin":  # fsync stops at the drive's cache
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def fsync_dir(self, path: str) -> None:
        """Wait until a directory's entries are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def mkdir(self, path: str) -> None:
        """Make a directory; the name must be free."""
        os.mkdir(path)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, which must be free."""
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        """Move a file or directory over `target`."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def exchange(self, one: str, other: str) -> bool:
        """Swap two names atomically; return False if the platform cannot."""
        if not hasattr(_libc, "renameat2"):
            return False
        at_cwd = -100
        if not _libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), _RENAME_EXCHANGE):
            return True
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS):
            return False
        raise OSError(number, os.strerror(number), one, None, other)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        os.rmdir(path)


calls = Calls()
"""The table in use; tests replace it."""


def create(path: Path, *, exist_ok: bool = False) -> int:
    """Create a file for reading and writing and return its descriptor.

    Raises
    ------
    FileExistsError
        If it exists, unless `exist_ok`.
    CorruptionError
        If the name is that of something other than a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = calls.open(str(path), flags | (0 if exist_ok else os.O_EXCL))
    except OSError as error:
        refuse_odd(error, path)
        raise
    return require_regular(fd, path)


def write(fd: int, data: Any, offset: int) -> None:
    """Write all of `data` (a contiguous buffer) at `offset`: accepted on return."""
    with memoryview(data) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view):
            count = calls.pwrite(fd, view[done:], offset + done)
            if count <= 0:
                raise OSError(errno.EIO, "the file system wrote nothing and reported no error")
            done += count


def truncate(fd: int, size_bytes: int) -> None:
    """Set a file's size."""
    calls.ftruncate(fd, size_bytes)


def start_writeback(fd: int, offset: int, size_bytes: int) -> None:
    """Make the kernel start to write a range out, without waiting, so that `sync` finds little to do.

    It promises nothing: a platform without the call is not an error.
    """
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(
            fd, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
        )


def sync(fd: int) -> None:
    """Make a file's bytes durable."""
    calls.fsync(fd)


def sync_dir(path: Path) -> None:
    """Make a directory's entries durable."""
    calls.fsync_dir(str(path))


def make_dir(path: Path, *, exist_ok: bool = False, link_ok: bool = False) -> None:
    """Make a directory; its entry in the parent is not synced.

    `link_ok` is for the store itself, whose path may be a link.

    Raises
    ------
    FileExistsError
        If it exists, unless `exist_ok` and it is a directory.
    CorruptionError
        If the name is that of a link to a directory.
    """
    try:
        calls.mkdir(str(path))
    except FileExistsError:
        if not exist_ok or not path.is_dir():
            raise
        if path.is_symlink() and not link_ok:
            raise CorruptionError("a symbolic link, which may lead out of the store", path=path) from None


def make_dir_like(path: Path, model: Path) -> bool:
    """Make a directory that the same users may read as another one, before anything is in it.

    Returns whether it was made: False if the name was taken.
    """
    try:
        calls.mkdir(str(path))
    except FileExistsError:
        return False
    give_access(path, model)
    return True


def give_access(path: Path, model: Path) -> None:
    """Let the users of a directory read another one, or a file.

    An owner or group that this process may not give stays its own; a group that is not that of the model gets
    no access. A file system that keeps neither owners nor modes does what it does.
    """
    access, own = os.stat(model), os.stat(path)
    # Its owner can go on with it, even if the model may only be read.
    mode = stat.S_IMODE(access.st_mode) | 0o700
    mode &= 0o7777 if stat.S_ISDIR(own.st_mode) else 0o666
    try:
        os.chown(path, access.st_uid, access.st_gid)
    except OSError:  # EPERM, or in a container EINVAL
        try:
            os.chown(path, -1, access.st_gid)
        except OSError:
            mode &= ~0o070
    with contextlib.suppress(OSError):
        os.chmod(path, mode)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; `FileExistsError` if that name is taken."""
    try:
        calls.link(str(source), str(target))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(
                error.errno,
                f"{error.strerror}: hard links, by which rows become visible, are not possible here: write "
                "to another file system (ext4, XFS, NFS, tmpfs), and copy the complete store",
                str(target),
            ) from error
        raise


def rename(source: Path, target: Path) -> None:
    """Move a file or directory over `target`."""
    calls.rename(str(source), str(target))


def remove(path: Path, *, missing_ok: bool = True) -> None:
    """Remove a file's name."""
    try:
        calls.unlink(str(path))
    except FileNotFoundError:
        if not missing_ok:
            raise


def remove_tree(path: Path) -> None:
    """Remove a directory with its content; links, itself included, are removed, not followed."""
    if path.is_symlink():
        remove(path)
        return
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            remove(Path(entry.path))
    with contextlib.suppress(FileNotFoundError):
        calls.rmdir(str(path))


def remove_empty_dir(path: Path) -> None:
    """Remove a directory if it is empty."""
    try:
        calls.rmdir(str(path))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise


def scratch_name(scratch: Path) -> Path:
    """Return a unique path in `scratch`; the next writer removes whatever is left there."""
    return scratch / f"tmp-{secrets.token_hex(8)}"


@contextlib.contextmanager
def _written(data: bytes, scratch: Path) -> Iterator[Path]:
    path = scratch_name(scratch)
    fd = create(path)
    try:
        try:
            write(fd, data, 0)
            sync(fd)
        finally:
            os.close(fd)
        yield path
    finally:
        remove(path)


def publish(path: Path, data: bytes, *, scratch: Path) -> None:
    """Put a small file in place if its name is free: visible at once, durable on return.

    Parameters
    ----------
    path : Path
        The file.
    data : bytes
        Its content.
    scratch : Path
        A directory of the same file system, in which the file is written first.

    Raises
    ------
    FileExistsError
        If the name is taken.
    """
    with _written(data, scratch) as written:
        link(written, path)
    sync_dir(path.parent)


def replace(path: Path, data: bytes, *, scratch: Path) -> None:
    """Replace a small file, or create it: whole at every instant, durable on return."""
    with _written(data, scratch) as written:
        rename(written, path)
    sync_dir(path.parent)


def exchange(one: Path, other: Path) -> None:
    """Swap two directories, atomically if the platform can (Linux)."""
    if calls.exchange(str(one), str(other)):
        return
    aside = other.with_name(f"{other.name}.{secrets.token_hex(4)}")
    rename(other, aside)
    try:
        try:
            rename(one, other)
        except BaseException:
            rename(aside, other)
            raise
        rename(aside, one)
    except OSError as error:
        if not os.path.lexists(aside):
            raise
        where = f"{error.strerror}; what was at {other} is at {aside}"
        raise OSError(error.errno, where) from error
