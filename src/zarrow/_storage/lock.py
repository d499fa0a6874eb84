"""File locks — exclusive or shared locks on a file, which end with the process that holds them.

A `FileLock` is a lock of the operating system. Its holder can convert it between shared and exclusive; the
file says who took it exclusively last. A crash leaves a file that is not locked, which the next holder takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from zarrow._storage import files, reading

__all__ = ["FileLock", "is_running"]


def is_running(pid: int) -> bool:
    """Tell whether a process of this machine is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


class FileLock:
    """A lock on a file that ends with the process that holds it, however that ends.

    A forked child, such as a data loader's worker, does not share it, and may outlive its parent.

    The content of the file serves messages only; that no rows are lost or doubled depends on `publish`.

    Parameters
    ----------
    path : Path
        The file; created if it does not exist.
    shared : bool
        Whether others may hold a shared lock at the same time.
    holder : bytes
        The holder's description, which is written into the file.
    """

    def __init__(self, path: Path, *, shared: bool = False, holder: bytes = b"") -> None:
        self.path = path
        self.shared = shared
        self._holder = holder
        self._fd = -1

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether it was."""
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
        """Make a held lock shared or exclusive; return whether other holders allow it."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.shared = shared
        return True

    def holder(self) -> bytes:
        """Return the description that the last exclusive holder wrote into the file."""
        try:
            return reading.read_file(self.path.parent, self.path.name)
        except FileNotFoundError:
            return b""

    def release(self, *, remove_file: bool = False) -> None:
        """Release the lock; releasing it again does nothing."""
        if self._fd >= 0:
            try:
                if remove_file:
                    files.remove(self.path)
            finally:
                os.close(self._fd)
                self._fd = -1

    def _forget(self) -> None:
        """Close a forked child's copy, which would keep the lock after its parent's death."""
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
