"""Safe reading — opening the files of a store that may be damaged, or made to do harm.

`open_file` is the one way in which a file of a store is opened to be read. It

1. descends from the store's root directory by directory and follows no link on the way, since a link may
   lead out of the store; the root itself may be a link, as its user chose;
2. does not wait (`O_NONBLOCK`): opening a pipe would wait for its writer;
3. refuses anything but a regular file.

The `File` it returns is read by offset, so that threads may share it, and stays open, and so readable, for as
long as it is referenced, whatever becomes of its name. `read_file` and `map_file` return whole files.

Readers get the operating system's errors as they are: a missing permission is no damage. An audit, which goes
on after an error, opens files through `Beneath`, where what cannot be read is `CorruptionError` too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._format.journal import Journal
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = [
    "Beneath",
    "File",
    "Place",
    "exists",
    "in_natural_order",
    "map_file",
    "names_in",
    "open_file",
    "parquet_files",
    "read_file",
    "refuse_odd",
    "require_own_dirs",
    "require_regular",
    "stamp_of",
]

BLOCK_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ODD = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
_UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENODEV, errno.ESTALE)
"""Errors for which an audit blames the store, not the machine, which may lack memory or descriptors."""


class RemotePath(Protocol):
    """What `objects.ObjectPath` is: a store in a bucket, or something in it."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def client(self) -> Any:
        """The obstore store of the URL."""

    def __truediv__(self, path: str, /) -> Any:
        """Return what lies below."""

    def exists(self) -> bool:
        """Tell whether there is an object."""

    def open(self, path: str) -> File:
        """Return an object, to be read by ranges."""

    def fetch(self, path: str) -> File:
        """Return an object, which is read whole if it is small."""

    def ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return ranges of an object, given by their starts and stops."""

    def list(self, path: str, *, after: str = "") -> dict[str, str]:
        """Return what lies below a path, by name; of files only, those after a name."""

    def stamp(self, path: str, *, keep: bool = False) -> object:
        """Return what tells an object from one that takes its place."""


Place = Path | RemotePath
"""Where a store is: on a disk or in a bucket. What is below does not ask which."""


def refuse_odd(error: OSError, path: object, *, below: bool = False) -> None:
    """Raise `CorruptionError` if what could not be opened is a link, or not a file.

    With `below` also if something on the way is not a directory.
    """
    if error.errno in _ODD or (below and error.errno == errno.ENOTDIR):
        raise CorruptionError(
            "a symbolic link, or behind one, or nothing that can be read as a file", path=path
        ) from error


def require_regular(fd: int, path: object) -> int:
    """Return a descriptor of a regular file; close any other and raise `CorruptionError`."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise CorruptionError("not a regular file", path=path)


def require_own_dirs(root: Place, path: str) -> None:
    """Raise `CorruptionError` if what is there from `root` to a path below it is a link, or no directory."""
    if not isinstance(root, Path):
        return
    parent = str(root)
    for name in path.split("/")[:-1]:  # from the root on, so that no link is followed
        parent = f"{parent}/{name}"
        try:
            mode = os.lstat(parent).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise CorruptionError("a symbolic link, which may lead out of the store", path=parent)
        if not stat.S_ISDIR(mode):
            raise CorruptionError("not a directory", path=parent)


def exists(root: Place, path: str) -> bool:
    """Tell whether a store has a file: `pathlib.Path.exists`, in less time."""
    if not isinstance(root, Path):
        return bool((root / path).exists())
    try:
        os.stat(f"{root}/{path}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False
    return True


class File:
    """A regular file, open for reading while it is referenced.

    Parameters
    ----------
    fd : int
        Its descriptor, which is closed with it.
    path : str or Path
        For messages.
    """

    __slots__ = ("__weakref__", "_close", "fd", "path", "size_bytes")

    def __init__(self, fd: int, path: object) -> None:
        self.fd = fd
        self.path = str(path)
        self.size_bytes = os.fstat(fd).st_size
        self._close = weakref.finalize(self, os.close, fd)
        self._close.atexit = False

    @property
    def hole_bytes(self) -> int:
        """Bytes of it that take no room on the disk."""
        return max(self.size_bytes - os.fstat(self.fd).st_blocks * 512, 0)

    @property
    def data_bytes(self) -> int:
        """Where the last bytes that were written end: behind them there is only a hole.

        A file of a few bytes may pretend to be as large as it likes.
        """
        end = 0
        while end < self.size_bytes:
            try:
                end = os.lseek(self.fd, os.lseek(self.fd, end, os.SEEK_DATA), os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind `end`
                    return end
                return self.size_bytes  # a file system that cannot tell
        return end

    def next_data(self, offset: int) -> int:
        """Return where, from `offset` on, the next bytes are that were written: what is between is a hole."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            return self.size_bytes if error.errno == errno.ENXIO else offset

    def journal(self, *, small_bytes: int = BLOCK_BYTES) -> Journal:
        """Return it as a journal without the hole at its end; one of `small_bytes` is read at once."""
        size_bytes = self.data_bytes
        if size_bytes <= small_bytes:
            return Journal.of(self._up_to(0, size_bytes))
        return Journal(self._up_to, size_bytes, self.next_data)

    def _up_to(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes, fewer at the file's end."""
        return b"".join(list(self._blocks(offset, size_bytes, size_bytes)))

    def _blocks(self, offset: int, size_bytes: int, block_bytes: int) -> Iterator[bytes]:
        """Yield bytes in blocks, fewer at the file's end."""
        stop = offset + size_bytes
        while offset < stop and (block := os.pread(self.fd, min(stop - offset, block_bytes), offset)):
            yield block
            offset += len(block)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes; `CorruptionError` if the file ends before."""
        data = self._up_to(offset, size_bytes)
        if len(data) < size_bytes:
            raise CorruptionError(f"ends at byte {offset + len(data)}", path=self.path)
        return data

    def crc32c(self, offset: int, size_bytes: int) -> int:
        """Return the crc32c of bytes, read in blocks; of those that are there, if the file ends before."""
        checksum = 0
        for block in self._blocks(offset, size_bytes, BLOCK_BYTES):
            checksum = crc32c(block, checksum)
        return checksum

    def holds(self, offset: int, size_bytes: int, checksum: int) -> bool:
        """Tell whether bytes are all there and have this crc32c."""
        return offset + size_bytes <= self.size_bytes and self.crc32c(offset, size_bytes) == checksum

    def content(self, limit_bytes: int) -> bytes:
        """Return all bytes; `CorruptionError` if they are more than `limit_bytes`."""
        if self.size_bytes > limit_bytes:
            raise CorruptionError(
                f"must have at most {limit_bytes} bytes, but has {self.size_bytes}", path=self.path
            )
        return self._up_to(0, self.size_bytes)

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes, in blocks of some MiB."""
        yield from self._blocks(0, self.size_bytes, BLOCK_BYTES)

    def stream(self) -> io.BufferedReader:
        """Return a stream of it, for pyarrow."""
        return os.fdopen(os.dup(self.fd), "rb")

    @property
    def name(self) -> str:
        """A name under which this process can open the file again, whatever became of its path."""
        return f"/dev/fd/{self.fd}"

    def source(self) -> Any:
        """Return it as pyarrow reads it: a `pyarrow.NativeFile`."""
        import pyarrow as pa

        return pa.OSFile(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _descend(root: Path, path: str, called: object, flags: int) -> int:
    """Open what a path leads to from `root`, and follow no link on the way."""
    *parents, name = path.split("/")
    fd = os.open(root, _DIRECTORY) if parents else -1
    try:
        for parent in parents:
            above, fd = fd, os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(above)  # which `finally` must not close again, if Ctrl-C strikes here
        return os.open(name, flags, dir_fd=fd) if parents else os.open(f"{root}/{name}", flags)
    except OSError as error:
        error.filename = str(called)
        refuse_odd(error, called, below=bool(parents) or bool(flags & os.O_DIRECTORY))
        raise
    finally:
        if parents:
            os.close(fd)


def open_file(root: Place, path: str, *, called: object = None, whole: bool = False) -> File:
    """Open a file of a store for reading.

    Parameters
    ----------
    root : Path or RemotePath
        The store, or another directory that is trusted.
    path : str
        The file, relative to it, with forward slashes.
    called : str or Path, optional
        What messages call the file; by default the whole path.
    whole : bool
        Whether all of it will be read if it is small, for which one request will do in a bucket.

    Returns
    -------
    File
        Open.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    NotADirectoryError
        If `root` is no directory.
    CorruptionError
        If it, or a directory on the way, is a link, or if it is not a regular file.
    """
    if not isinstance(root, Path):
        return root.fetch(path) if whole else root.open(path)
    called = called or f"{root}/{path}"
    return File(require_regular(_descend(root, path, called, _FILE), called), called)


def read_file(root: Place, path: str, *, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Return the content of a small file, which `open_file` opens and `File.content` reads."""
    with open_file(root, path, whole=True) as file:
        return file.content(limit_bytes)


def map_file(root: Place, path: str) -> npt.NDArray[np.uint8]:
    """Return a file's bytes, mapped for reading: no more memory than what is touched. See `open_file`.

    From a bucket it is copied into an unnamed file in the directory for temporary files, and gone with the
    process.
    """
    with open_file(root, path) as file:
        if not file.size_bytes:
            return np.empty(0, np.uint8)
        if isinstance(root, Path):
            with file.stream() as stream:
                return np.memmap(stream, np.uint8, "r")
        with tempfile.TemporaryFile() as copy:
            copy.writelines(file.blocks())
            copy.flush()
            return np.memmap(copy, np.uint8, "r")


def names_in(root: Place, path: str) -> list[str]:
    """Return the names in a directory of a store; none if it does not exist."""
    if not isinstance(root, Path):
        return [*root.list(path)]
    try:
        return os.listdir(root / path)
    except FileNotFoundError:
        return []


def stamp_of(root: Place, path: str, *, keep: bool = False) -> object:
    """Return what tells a file of a store from one that takes its place; None if there is none.

    With `keep`, it will be read next, which then costs no other request in a bucket.
    """
    if not isinstance(root, Path):
        return root.stamp(path, keep=keep)
    try:
        status = os.stat(f"{root}/{path}", follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns


class Beneath:
    """The files of a store that is audited, by their paths relative to its root.

    Parameters
    ----------
    root : Path or RemotePath
        The store; may itself be reached by a link, as its user chose.
    """

    def __init__(self, root: Place) -> None:
        self.root = root

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[File]:
        """Open a file, as `open_file` does; within the context, what cannot be read is `CorruptionError`."""
        try:
            with open_file(self.root, path, called=path) as file:
                file.path = path
                yield file
        except OSError as error:
            if isinstance(self.root, Path):  # a network that fails is no damage
                _blame(error, path)
            raise

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return the content of a file; `CorruptionError` also if it is larger than `limit_bytes`."""
        with self.open(path) as file:
            return file.content(limit_bytes)

    def exists(self, path: str) -> bool:
        """Tell whether anything has that name; no link is followed."""
        if not isinstance(self.root, Path):
            return bool((self.root / path).exists())
        return os.path.lexists(self.root / path)

    def names(self, path: str) -> frozenset[str]:
        """Return the names in a directory; none if it cannot be listed."""
        try:
            return frozenset(self.list(path))
        except CorruptionError:
            return frozenset()

    def list(self, path: str) -> dict[str, str]:
        """Return what a directory holds: "file", "directory", "link" or "other" by name.

        Nothing if it does not exist; `CorruptionError` if it is not a directory.
        """
        if not isinstance(self.root, Path):
            return self.root.list(path)
        try:
            flags = _DIRECTORY | os.O_NOFOLLOW
            fd = _descend(self.root, path, path, flags) if path else os.open(self.root, _DIRECTORY)
        except FileNotFoundError:
            return {}
        except OSError as error:
            _blame(error, path)
            raise
        try:
            with os.scandir(fd) as entries:
                return {entry.name: _kind(entry) for entry in entries}
        finally:
            os.close(fd)


def _blame(error: OSError, path: str) -> None:
    """Raise `CorruptionError` if an error is the store's fault."""
    if error.errno in _UNREADABLE:
        raise CorruptionError(f"cannot be read: {error.strerror}", path=path) from error


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


# Files of others


def in_natural_order(paths: Iterable[Path]) -> list[Path]:
    """Return paths in the order of the numbers in them: ``part.2`` before ``part.10``.

    >>> [path.name for path in in_natural_order(map(Path, ["part.10", "part.2", "part.02"]))]
    ['part.02', 'part.2', 'part.10']
    """

    def key(path: Path) -> tuple[list[list[str | int]], str]:
        split = [re.split(r"([0-9]+)", part) for part in path.parts]
        return [[int(one) if place % 2 else one for place, one in enumerate(part)] for part in split], str(
            path
        )

    return sorted(paths, key=key)


def parquet_files(source: Path) -> list[Path]:
    """Return a Parquet file, or those of a folder in natural order; ``_`` and ``.`` hide files and folders.

    Raises
    ------
    InvalidInputError
        If the folder has none, or is partitioned: what only the names of its folders say would be lost.
    """
    if not source.is_dir():
        return [source]
    found = []
    for path in source.glob("**/*.parquet"):
        names = path.relative_to(source).parts
        if any(name[0] in "_." for name in names):
            continue
        if columns := [name.partition("=")[0] for name in names[:-1] if "=" in name]:
            raise InvalidInputError(
                f"{source}: the folder is partitioned by {', '.join(columns)}, whose values only the names "
                "of its folders have: write it as one Parquet file, as with pyarrow.dataset.dataset(folder, "
                "partitioning='hive').to_table()"
            )
        found.append(path)
    if not found:
        raise InvalidInputError(f"{source}: this folder has no *.parquet file")
    return in_natural_order(found)
