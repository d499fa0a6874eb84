"""Object cache — blocks of objects that were read from a bucket, kept in a directory on this machine.

`CachedPath` stands where an `ObjectPath` does. What is read of an object is read in blocks of 64 KiB, which
go into files named by a hash of the object's URL, its entity tag and the block's number: an object that takes
the place of another has another tag, so nothing that is kept becomes wrong. The rules:

* an object is asked for its tag before its blocks are used: one request, once per object and opened store;
* a block that is missing is read from exactly the object that was asked (`If-Match`), then kept;
* a file has the checksum of its block, and gets its name when it is whole: what a kill or a power cut leaves
  is a block that is read again;
* many processes share the directory without a lock. When blocks of a 32nd of the limit were added, the
  process removes those that were used longest ago, of whatever process;
* a disk that is full or fails makes reading slower, not wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zarrow._format.checksum import crc32c
from zarrow._storage.objects import ObjectFile, ObjectPath, printable_url
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = ["BLOCK_BYTES", "Blocks", "CachedPath"]

BLOCK_BYTES = 64 << 10
_SMALL_BYTES = 4 << 20
_REQUEST_BLOCKS = 256
_REQUESTS_AT_ONCE = 8
_BLOCKS_AT_ONCE = 512
_SUM_BYTES = 4
_SHARE = 32
"""The part of the limit by which a process may exceed it, until it removes blocks."""
_ABANDONED_SECONDS = 3600
_SCRATCH = "tmp-"


class Blocks:
    """Bytes by name, in files of a directory.

    Parameters
    ----------
    path : path
        The directory; made if it is missing.
    limit_bytes : int
        About what its files may take.

    Raises
    ------
    InvalidInputError
        If the directory cannot be made, or the limit is no number of bytes.

    Examples
    --------
    >>> import tempfile
    >>> blocks = Blocks(tempfile.mkdtemp(), 1 << 20)
    >>> blocks.put("a", b"bytes")
    >>> blocks.get("a"), blocks.get("b")
    (b'bytes', None)
    """

    def __init__(self, path: str | os.PathLike[str], limit_bytes: int) -> None:
        if type(limit_bytes) is not int or limit_bytes < 0:
            raise InvalidInputError(f"cache_bytes must be a number of bytes, 0 or more, got {limit_bytes!r}")
        self.path = Path(os.path.abspath(os.path.expanduser(path)))
        self.limit_bytes = limit_bytes
        self._added_bytes = limit_bytes // _SHARE  # so that the first block finds out what there is
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"{self.path}: cannot be the directory of the cache: {error.strerror}: choose another one"
            ) from error
        self._numbers = itertools.count()

    def _file(self, name: str) -> str:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return f"{self.path}/{digest[:2]}/{digest[2:40]}"

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, None if they are not there, or are not what was put."""
        file = self._file(name)
        try:
            with open(file, "rb", buffering=0) as stream:
                data = stream.read()
            os.utime(file)
        except OSError:
            return None
        if len(data) < _SUM_BYTES or crc32c(data[:-_SUM_BYTES]) != int.from_bytes(
            data[-_SUM_BYTES:], "little"
        ):
            with contextlib.suppress(OSError):
                os.unlink(file)
            return None
        return data[:-_SUM_BYTES]

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes by a name, if the disk allows it."""
        size_bytes = len(data) + _SUM_BYTES
        if size_bytes > self.limit_bytes:
            return
        file = self._file(name)
        scratch = f"{self.path}/{_SCRATCH}{os.getpid()}-{next(self._numbers)}"
        try:
            with open(scratch, "wb") as stream:
                stream.write(data)
                stream.write(crc32c(data).to_bytes(_SUM_BYTES, "little"))
            try:
                os.replace(scratch, file)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
                os.replace(scratch, file)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(scratch)
            return
        self._added_bytes += size_bytes
        if self._added_bytes >= self.limit_bytes // _SHARE:
            self._added_bytes = 0
            self.trim()

    def trim(self) -> None:
        """Remove what was used longest ago, until the rest is well within the limit."""
        found: list[tuple[float, int, str]] = []
        for folder in self._entries(str(self.path)):
            if folder.name.startswith(_SCRATCH):  # of a process that was killed, or is writing it
                with contextlib.suppress(OSError):
                    if folder.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                        os.unlink(folder.path)
                continue
            for entry in self._entries(folder.path):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        most = self.limit_bytes - 2 * (self.limit_bytes // _SHARE)
        for _, size, path in sorted(found) if total > most else ():
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
            if total <= most:
                return

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                return list(entries)
        except OSError:
            return []


class CachedPath(ObjectPath):
    """A store in a bucket, or something in it, of which what was read is kept.

    Parameters
    ----------
    of : ObjectPath
        The same without a cache.
    blocks : Blocks
        Where it is kept.
    seen : dict, optional
        What the service has said of objects since the store was opened. All paths below share it.
    """

    __slots__ = ("_blocks", "_seen", "_where")

    def __init__(
        self, of: ObjectPath, blocks: Blocks, seen: dict[str, Mapping[str, Any]] | None = None
    ) -> None:
        super().__init__(of._url, of._options, of._client, of._below)
        self._blocks = blocks
        self._seen = {} if seen is None else seen
        config = getattr(self._client, "config", None) or {}
        named = {**self._options, **dict(config)}
        places = [str(named.get(one, "")) for one in ("endpoint", "bucket", "container_name", "account_name")]
        prefix = str(getattr(self._client, "prefix", "") or "")
        self._where = "\0".join([printable_url(self._url), *places, prefix])

    def __truediv__(self, path: object) -> CachedPath:
        return CachedPath(super().__truediv__(path), self._blocks, self._seen)

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments = super().__reduce__()
        return _reopened, (make(*arguments), str(self._blocks.path), self._blocks.limit_bytes)

    @property
    def parent(self) -> CachedPath:
        """The path above, which is not above the URL."""
        return CachedPath(super().parent, self._blocks, self._seen)

    def stamp(self, path: str, *, keep: bool = False) -> object:
        """Return what tells an object from one that takes its place; None if there is none."""
        if keep:
            self._seen.clear()  # the store is opened anew
        return super().stamp(path, keep=keep)

    def open(self, path: str) -> _CachedFile:
        """Return an object, to be read by ranges."""
        key = self._key(path)
        if key not in self._seen:
            self._seen[key] = self._head(path)
        return _CachedFile(self, path, self._seen[key])

    def fetch(self, path: str) -> ObjectFile:
        """Return an object, read whole if it is small."""
        if path in self._kept:
            return self._kept.pop(path)
        known = f"{self._where}\0{self._key(path)}"
        if self._blocks.get(known) is None:
            file = super().fetch(path)
            if _is_strong(file._tag):
                self._seen[self._key(path)] = {"size": file.size_bytes, "e_tag": file._tag}
                self._blocks.put(known, b"seen")
                if file._whole is not None:
                    self._keep(path, file)
            return file
        self._seen.pop(self._key(path), None)  # as without a cache, it is what is there now
        found = self.open(path)
        if found.size_bytes <= _SMALL_BYTES:
            found._whole = found.content(_SMALL_BYTES)
        return found

    def _keep(self, path: str, file: ObjectFile) -> None:
        whole = file._whole or b""
        for number in range(-(-len(whole) // BLOCK_BYTES)):
            start = number * BLOCK_BYTES
            self._blocks.put(self._name(path, file._tag, number), whole[start : start + BLOCK_BYTES])

    def _name(self, path: str, tag: str, number: int) -> str:
        return f"{self._where}\0{self._key(path)}\0{tag}\0{number}"

    def ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return ranges of an object, each from start to stop; `CorruptionError` if it is too short."""
        if not ranges:
            return []
        file = self.open(path)
        if not _is_strong(file._tag):
            return super().ranges(path, ranges)
        if (stop := max(stop for _, stop in ranges)) > file.size_bytes:
            raise CorruptionError(f"ends at byte {file.size_bytes}, before {stop}", path=self / path)
        found: list[memoryview] = []
        while len(found) < len(ranges):  # rows that lie far apart take a block each
            here, taken = [], 0
            for start, stop in itertools.islice(ranges, len(found), None):
                here.append((start, stop))
                taken += -(-stop // BLOCK_BYTES) - start // BLOCK_BYTES
                if taken >= _BLOCKS_AT_ONCE:
                    break
            found += self.read_through(path, file._tag, file.size_bytes, here, file.request)
        return found

    def read_through(
        self,
        path: str,
        tag: str,
        size_bytes: int,
        ranges: Sequence[tuple[int, int]],
        request: Callable[[int, int], bytes],
    ) -> list[memoryview]:
        """Return ranges of an object of this tag, by blocks: those that are not kept are requested."""
        numbers = sorted(
            {
                number
                for start, stop in ranges
                for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
            }
        )
        blocks = {number: self._blocks.get(self._name(path, tag, number)) for number in numbers}
        runs: list[list[int]] = []
        for number in (number for number in numbers if blocks[number] is None):
            if runs and runs[-1][-1] == number - 1 and len(runs[-1]) < _REQUEST_BLOCKS:
                runs[-1].append(number)
            else:
                runs.append([number])

        def read(run: list[int]) -> None:
            first = run[0] * BLOCK_BYTES
            data = request(first, min((run[-1] + 1) * BLOCK_BYTES, size_bytes))
            for number in run:
                block = data[number * BLOCK_BYTES - first : (number + 1) * BLOCK_BYTES - first]
                blocks[number] = block
                self._blocks.put(self._name(path, tag, number), block)

        if len(runs) > 1:
            with ThreadPoolExecutor(min(_REQUESTS_AT_ONCE, len(runs)), "zarrow-cache") as pool:
                list(pool.map(read, runs))
        elif runs:
            read(runs[0])
        return [_part(blocks, start, stop) for start, stop in ranges]


def _part(blocks: Mapping[int, bytes | None], start: int, stop: int) -> memoryview:
    """Return a range of bytes that lie in blocks."""
    pieces = []
    for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
        block, first = blocks[number], number * BLOCK_BYTES
        assert block is not None
        pieces.append(memoryview(block)[max(start - first, 0) : stop - first])
    if len(pieces) == 1 and len(pieces[0]) > BLOCK_BYTES // 2:
        return pieces[0]
    return memoryview(b"".join(pieces))  # a copy, so that the rest of the blocks is not kept in memory


def _is_strong(tag: str | None) -> bool:
    """Tell whether a tag is one of these bytes, not of something like them."""
    return bool(tag) and not str(tag).startswith("W/")


def _reopened(of: ObjectPath, path: str, limit_bytes: int) -> CachedPath:
    return CachedPath(of, Blocks(path, limit_bytes))


class _CachedFile(ObjectFile):
    """An object of which what was read is kept."""

    __slots__ = ()

    def request(self, start: int, stop: int) -> bytes:
        """Return bytes of exactly this object, from the service."""
        return super()._range(start, stop)

    def _range(self, start: int, stop: int) -> bytes:
        root = self._root
        if self._whole is not None or not _is_strong(self._tag) or start >= stop:
            return super()._range(start, stop)
        assert isinstance(root, CachedPath)
        (found,) = root.read_through(self._key, self._tag, self.size_bytes, [(start, stop)], self.request)
        return bytes(found)
