"""File locks — exclusive or shared locks on a file, which end with the process that holds them.

A `FileLock` is a lock of the operating system. Its holder can convert it between shared and exclusive; the
file says who took it exclusively last. A crash leaves a file that is not locked, which the next holder takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zarrow._format.documents import MAX_OWNER_BYTES
from zarrow._storage import files, reading, threads

__all__ = ["FileLock", "is_running"]


def is_running(pid: int) -> bool:
    """Tell whether a process of this machine is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
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

    _file: io.FileIO | None = None
    _process = 0

    def __init__(self, path: Path, *, shared: bool = False, holder: bytes = b"") -> None:
        self.path = path
        self.shared = shared
        self._holder = holder

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether it was.

        The main thread has another one do it, which no Ctrl-C interrupts: a descriptor that is open and not
        noted down yet would hold the lock as long as the process lives.
        """
        if threading.current_thread() is not threading.main_thread():
            return self._acquire()
        with ThreadPoolExecutor(1) as thread:
            return threads.submit(thread, self._acquire).result()

    def _acquire(self) -> bool:
        while True:
            file = io.FileIO(files.create(self.path, exist_ok=True), "r+")
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            except BaseException:
                file.close()
                raise
            # Its last holder may have removed the file between our open and our lock.
            self._file, self._process = file, os.getpid()
            if self.is_in_place():
                _held.add(self)
                try:
                    if self._holder:
                        self.describe(self._holder)
                except BaseException:
                    self.release(remove_file=True)
                    raise
                return True
            self.release()

    def is_in_place(self) -> bool:
        """Tell whether the file at the path is still the one that was locked."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def locked_path(self) -> Path | None:
        """Return the path that the locked file has now; None if it was removed or that cannot be told."""
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_nlink:
            with contextlib.suppress(OSError):  # Linux
                return Path(os.readlink(f"/proc/self/fd/{self._file.fileno()}"))
        return None

    def convert(self, *, shared: bool) -> bool:
        """Make a held lock shared or exclusive; return whether other holders allow it."""
        assert self._file is not None
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.shared = shared
        return True

    def describe(self, holder: bytes) -> None:
        """Write a description into the file of a held lock."""
        assert self._file is not None
        files.truncate(self._file.fileno(), 0)
        files.write(self._file.fileno(), holder, 0)

    def holder(self) -> bytes:
        """Return the description that the last exclusive holder wrote into the file."""
        try:
            return reading.read_file(self.path.parent, self.path.name, limit_bytes=MAX_OWNER_BYTES)
        except FileNotFoundError:
            return b""

    def release(self, *, remove_file: bool = False) -> None:
        """Release the lock; releasing it again does nothing."""
        if self._file is not None:
            try:
                if remove_file and self.is_in_place():
                    files.remove(self.path)
            finally:
                if self._process == os.getpid():
                    # Else a program that is just being started, which has all descriptors, would hold it.
                    with contextlib.suppress(OSError):
                        fcntl.flock(self._file, fcntl.LOCK_UN)
                self._file.close()
                self._file = None

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_locks() -> None:
    for lock in list(_held):
        lock.release()  # else it would hold the lock after its parent's death


os.register_at_fork(after_in_child=_forget_locks)
