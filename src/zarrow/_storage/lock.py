"""Who may write here, and who else does?

A `FileLock` is a lock of the operating system on a file, which ends with the process that holds it, however
that ends. Whoever takes it shared or exclusive may convert it; the file says who took it exclusively.

Place: tier 1, on `files`. What a crash leaves is a file that nobody holds, which the next holder takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from zarrow._storage import files, reading

__all__ = ["FileLock"]


class FileLock:
    """A lock on a file that ends with the process that holds it, however that ends.

    Also if that was forked meanwhile, as data loaders do: a child has no part in it, and may live longer.

    The file says who holds it. A courtesy to users: that no rows are lost or doubled rests on `publish`.

    Parameters
    ----------
    path : Path
        The file; made if it is not there.
    shared : bool
        Whether other holders of a shared lock are welcome.
    holder : bytes
        What to write into the file.
    """

    def __init__(self, path: Path, *, shared: bool = False, holder: bytes = b"") -> None:
        self.path = path
        self.shared = shared
        self._holder = holder
        self._fd = -1

    def acquire(self) -> bool:
        """Take the lock if it is free, and tell whether it was."""
        while True:
            fd = files.create(self.path, exist_ok=True)
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            # Its last holder may have removed the file between our open and our lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    self._fd = fd
                    _held.add(self)
                    try:
                        if self._holder:
                            files.truncate(fd, 0)
                            files.write(fd, self._holder, 0)
                    except BaseException:
                        self.release()
                        raise
                    return True
            os.close(fd)

    def convert(self, *, shared: bool) -> bool:
        """Make a lock that is held shared or exclusive, and tell whether others allowed it."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.shared = shared
        return True

    def holder(self) -> bytes:
        """Return what the last exclusive holder wrote into the file."""
        try:
            return reading.read_file(self.path.parent, self.path.name)
        except FileNotFoundError:
            return b""

    def release(self, *, remove_file: bool = False) -> None:
        """Give the lock back; more than once does no harm."""
        if self._fd >= 0:
            try:
                if remove_file:
                    files.remove(self.path)
            finally:
                os.close(self._fd)
                self._fd = -1

    def _forget(self) -> None:
        """Close the copy that a forked child has, lest it keep the lock when its parent is dead."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_locks() -> None:
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_locks)
