"""Safe reading — the files of a store that may be damaged, or made to do harm."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow.errors import CorruptionError

__all__ = ["Beneath", "PlainFile"]


@contextlib.contextmanager
def no_odd_file(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CorruptionError(
                "not a regular file, but perhaps a link to one, which a store never has", path=path
            ) from error
        raise


def require_file(fd: int, path: Path) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise CorruptionError("not a regular file, as all of a store are", path=path)


def require_own_dirs(root: Path, path: Path) -> None:
    """Raise `CorruptionError` if a directory from `root` to `path` is a link, perhaps to the outside."""
    for parent in path.parents:
        if parent == root:
            return
        if parent.is_symlink():
            raise CorruptionError("a symbolic link, which may lead out of the store", path=parent)


def open_to_read(path: Path) -> int:
    with no_odd_file(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    return require_file(fd, path)


def map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file's bytes, mapped for reading: no more memory than what is touched.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    CorruptionError
        If it is no regular file.
    """
    fd = open_to_read(path)
    with os.fdopen(fd, "rb") as file:
        if not os.fstat(fd).st_size:
            return np.empty(0, np.uint8)
        return np.memmap(file, np.uint8, "r")


def data_end(fd: int) -> int:
    """Return where a file's last bytes that were written end: behind them there is only a hole.

    A file of a few bytes may pretend to be as large as it likes.
    """
    size_bytes = os.fstat(fd).st_size
    end = 0
    while end < size_bytes:
        try:
            end = os.lseek(fd, os.lseek(fd, end, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind `end`
                return end
            return size_bytes  # a file system that does not tell
    return end


def read(path: Path, *, limit_bytes: int = MAX_DOCUMENT_BYTES, drop_hole: bool = False) -> bytes:
    """Return a file's content, with `drop_hole` without the hole at its end.

    Raises
    ------
    CorruptionError
        If it is larger than `limit_bytes`: no document of ours is; or if it is no regular file.
    FileNotFoundError
        If it is not there.
    """
    fd = open_to_read(path)
    try:
        size_bytes = data_end(fd) if drop_hole else os.fstat(fd).st_size
        os.lseek(fd, 0, os.SEEK_SET)
        if size_bytes > limit_bytes:
            raise CorruptionError(
                f"a document of {size_bytes} bytes, at most {limit_bytes} are allowed", path=path
            )
        pieces = []
        while piece := os.read(fd, max(size_bytes, 1)):
            size_bytes -= len(piece)
            pieces.append(piece)
            if size_bytes <= 0:
                break
        return b"".join(pieces)
    finally:
        os.close(fd)


BLOCK_BYTES = 1 << 20


class PlainFile:
    """A regular file that is open for reading.

    Parameters
    ----------
    fd : int
        Its descriptor, which is closed with it.
    path : str
        Relative to the store, for messages.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.size_bytes = os.fstat(fd).st_size

    @property
    def data_bytes(self) -> int:
        """Its size without the hole at its end."""
        return data_end(self.fd)

    def _some(self, size_bytes: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, size_bytes, offset)
        except OSError as error:
            raise CorruptionError(f"cannot be read: {error.strerror}", path=self.path) from error

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes; `CorruptionError` if the file ends before."""
        pieces = []
        while size_bytes:
            piece = self._some(size_bytes, offset)
            if not piece:
                raise CorruptionError(f"ends at byte {offset}", path=self.path)
            pieces.append(piece)
            offset += len(piece)
            size_bytes -= len(piece)
        return b"".join(pieces)

    def crc32c(self, offset: int, size_bytes: int, value: int = 0) -> int:
        """Return the crc32c of bytes, read in pieces; of those that are there, if the file ends before."""
        while size_bytes:
            piece = self._some(min(size_bytes, BLOCK_BYTES), offset)
            if not piece:
                break
            value = crc32c(piece, value)
            offset += len(piece)
            size_bytes -= len(piece)
        return value

    def stream(self) -> io.BufferedReader:
        """Return a stream of it, for pyarrow."""
        return os.fdopen(os.dup(self.fd), "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Beneath:
    """The files of a store.

    Parameters
    ----------
    root : Path
        The store; may itself be reached by a link, as its user chose.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _open(self, path: str, flags: int) -> int:
        *parents, name = path.split("/")
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parents:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            return os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=fd
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise CorruptionError(
                    "a symbolic link, or behind one, or nothing that can be read as a file", path=path
                ) from error
            if error.errno in (errno.EIO, errno.EACCES, errno.EPERM, errno.ENODEV):
                raise CorruptionError(f"cannot be read: {error.strerror}", path=path) from error
            raise  # of what the machine lacks (descriptors, memory) the store is not to blame
        finally:
            os.close(fd)

    def open(self, path: str) -> PlainFile:
        """Open a file.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        CorruptionError
            If it, or a directory on the way, is a link, or if it is no regular file.
        """
        fd = self._open(path, 0)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptionError("not a regular file", path=path)
        return PlainFile(fd, path)

    def read(self, path: str, limit_bytes: int, *, drop_hole: bool = False) -> bytes:
        """Return the content of a file; `CorruptionError` also if it is larger than `limit_bytes`."""
        with self.open(path) as file:
            size_bytes = file.data_bytes if drop_hole else file.size_bytes
            if size_bytes > limit_bytes:
                raise CorruptionError(f"{size_bytes} bytes, at most {limit_bytes} are allowed", path=path)
            return file.read(0, size_bytes)

    def exists(self, path: str) -> bool:
        """Tell whether there is anything of that name; no link is followed."""
        return os.path.lexists(self.root / path)

    def names(self, path: str) -> frozenset[str]:
        """Return the names in a directory; none if it cannot be listed."""
        try:
            return frozenset(self.list(path))
        except CorruptionError:
            return frozenset()

    def list(self, path: str) -> dict[str, str]:
        """Return what a directory holds: "file", "directory", "link" or "other" by name.

        Nothing if it is not there; `CorruptionError` if it is no directory.
        """
        try:
            fd = (
                self._open(path, os.O_DIRECTORY) if path else os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            )
        except FileNotFoundError:
            return {}
        try:
            with os.scandir(fd) as entries:
                return {entry.name: _kind(entry) for entry in entries}
        finally:
            os.close(fd)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"
