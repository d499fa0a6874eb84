"""Stored chunks — the rows of one shard file, sealed or not, compared with their checksums.

Of a committed segment the record knows the checksums of the shard index and of every chunk: `CommittedShard`
checks the index when it is made, and each chunk before it is decoded, because a damaged chunk can crash a
codec, and a crafted one fill the memory. Readers, audits and writers that reopen a segment all read through
it; rows of plain bytes that are mapped instead are compared by `is_written`.

Of an open segment the frames know the checksums: `sound_frames` tells up to which frame the bytes of the
file, and of the tail of an unfinished chunk, are those that were written; `read_tail` reads such a tail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import combine, crc32c, crc32c_of_zeros
from zarrow._format.codecs import ChunkCodec
from zarrow._format.frames import ArrayEntry, Chunk
from zarrow._format.layout import rows_name, tail_name
from zarrow._format.records import SegmentRecord
from zarrow._format.shard_index import decode_index, index_bytes, index_crc32c
from zarrow._storage.reading import File, Place, open_file
from zarrow.errors import CorruptionError

__all__ = [
    "CommittedShard",
    "StoredChunks",
    "committed_rows",
    "damaged_chunk",
    "is_unvouched",
    "is_written",
    "read_tail",
    "sound_frames",
]


class StoredChunks:
    """The consecutive chunks of a file, each compared with its checksum.

    Parameters
    ----------
    file : File
        A shard, or the file of an open segment that becomes one.
    array : ArraySpec
        The array.
    chunks : sequence of Chunk
        Size and checksum of every chunk.
    tail : array, shape (rows, *row_shape), optional
        The rows after the last chunk, which are not encoded yet.
    first_row : int
        The row of the store at which the file begins, for messages.
    """

    def __init__(
        self,
        file: File,
        array: ArraySpec,
        chunks: Sequence[Chunk],
        tail: npt.NDArray[Any] | None = None,
        first_row: int = 0,
    ) -> None:
        self.file = file
        self.chunks = chunks
        self.ends = list(itertools.accumulate(chunk.size_bytes for chunk in chunks))
        self._array = array
        self._tail = tail
        self._first_row = first_row

    @cached_property
    def _codec(self) -> ChunkCodec:
        return ChunkCodec(self._array)

    def holds(self, number: int) -> bool:
        """Tell whether a chunk is in the file and has its checksum; reads it in blocks."""
        chunk, own = self.chunks[number], self._array.own_crc_bytes
        start, size_bytes = self.ends[number] - chunk.size_bytes, chunk.size_bytes - own
        return (
            size_bytes >= 0
            and self.ends[number] <= self.file.size_bytes
            and self.file.holds(start, size_bytes, chunk.crc32c)
            and (not own or self.file.read(start + size_bytes, own) == chunk.crc32c.to_bytes(own, "little"))
        )

    def decode(self, number: int) -> npt.NDArray[Any]:
        """Return the rows of a chunk, padding included; `CorruptionError` if it is not what was written."""
        if number == len(self.chunks) and self._tail is not None:
            return self._tail
        chunk = self.chunks[number]
        start = self._first_row + number * self._array.chunk_rows
        rows = range(start, start + self._array.chunk_rows)
        data = self.file.read(self.ends[number] - chunk.size_bytes, chunk.size_bytes)
        if crc32c(data[: len(data) - self._array.own_crc_bytes]) != chunk.crc32c:
            raise damaged_chunk(self.file.path, number, rows)
        try:
            return self._codec.decode(data)
        except CorruptionError as error:
            raise damaged_chunk(self.file.path, number, rows, error.reason) from error


def is_unvouched(
    file: File, size_bytes: int, array: ArraySpec, rows: int, end: int, lost_rows: int, segment_rows: int
) -> bool:
    """Tell whether a file of an open segment goes on after its rows further than a killed writer leaves it.

    It leaves rows of one frame, which it had not written yet, or what it added to seal the segment: zeros up
    to the end of the chunk, and the shard's index.

    Parameters
    ----------
    file : File
        The file.
    size_bytes : int
        Its size before the journal was read: writers may be active.
    array : ArraySpec
        Its array.
    rows, end : int
        The rows that frames vouch for, and where they, or the chunks of them, end in the file.
    lost_rows : int
        The most rows of a frame that was never written.
    segment_rows : int
        Rows of a full segment.
    """
    index = index_bytes(array, segment_rows)
    if not array.is_plain:
        chunks = lost_rows // array.chunk_rows + 2
        return size_bytes > end + chunks * array.max_stored_bytes + index
    if size_bytes <= end + lost_rows * array.row_bytes:
        return False
    padded = -(-rows // array.chunk_rows) * array.chunk_bytes
    return size_bytes > padded + index or any(file.read(end, min(padded, size_bytes) - end))


class CommittedShard(StoredChunks):
    """The shard of an array in a committed segment, whose index was compared with the segment's record.

    Parameters
    ----------
    file : File
        The shard.
    array : ArraySpec
        The array.
    segment_rows : int
        Rows of a full segment.
    record : SegmentRecord
        The segment's.
    first_row : int
        The row of the store at which the segment begins, for messages.

    Raises
    ------
    CorruptionError
        If it is not the shard that was committed.
    """

    def __init__(
        self, file: File, array: ArraySpec, segment_rows: int, record: SegmentRecord, first_row: int = 0
    ) -> None:
        facts = record.arrays[array.name]
        if file.size_bytes != facts.size_bytes:
            raise CorruptionError(
                f"{file.size_bytes} bytes, {facts.size_bytes} were committed", path=file.path
            )
        size_bytes = index_bytes(array, segment_rows)
        if size_bytes > file.size_bytes:
            raise CorruptionError(
                f"{file.size_bytes} bytes have no room for a shard index of {size_bytes}", path=file.path
            )
        index = file.read(file.size_bytes - size_bytes, size_bytes)
        if index_crc32c(index) != facts.index_crc32c:
            raise CorruptionError("not the shard index that was committed", path=file.path)
        sizes = decode_index(
            index, array, len(facts.chunks_crc32c), file.size_bytes - size_bytes, str(file.path)
        )
        super().__init__(file, array, list(map(Chunk, sizes, facts.chunks_crc32c)), None, first_row)


def is_written(data: npt.NDArray[np.uint8], checksum: int, array: ArraySpec) -> bool:
    """Tell whether rows of plain bytes, padded with zeros to a chunk, have the chunk's checksum."""
    found, padding = crc32c(data), array.chunk_bytes - data.size
    return (combine(found, crc32c_of_zeros(padding), padding) if padding else found) == checksum


def damaged_chunk(
    path: object, number: int, rows: range, reason: str = "is not what was written"
) -> CorruptionError:
    """Return the error for a damaged chunk."""
    return CorruptionError(
        f"chunk {number} (rows {rows.start} to {rows.stop}) {reason}: the rows of other chunks can still be "
        "read",
        path=path,
    )


def committed_rows(
    root: Place, array: ArraySpec, segment_rows: int, record: SegmentRecord
) -> Iterator[npt.NDArray[Any]]:
    """Yield a committed segment's rows, or vectors, of one array, by chunks, checked against its record.

    Parameters
    ----------
    root : Path or RemotePath
        The store.
    array : ArraySpec
        The array.
    segment_rows : int
        Rows of a full segment.
    record : SegmentRecord
        The segment's.

    Yields
    ------
    array, shape (up to chunk_rows, *row_shape)
        The rows.

    Raises
    ------
    CorruptionError
        If the shard is not the one that was committed.
    """
    if not record.rows:
        return
    path = array.shard_path(record.segment)
    try:
        file = open_file(root, path)
    except FileNotFoundError as error:
        raise CorruptionError("the shard is missing", path=root / path) from error
    shard = CommittedShard(file, array, segment_rows, record, record.segment * segment_rows)
    for number in range(len(shard.chunks)):
        yield shard.decode(number)[: record.items(array) - number * array.chunk_rows]


def read_tail(directory: Path, array: ArraySpec, side: int, rows: int) -> npt.NDArray[Any]:
    """Return the rows of an unfinished chunk."""
    with open_file(directory, tail_name(array.name, side)) as file:
        data = file.read(0, rows * array.row_bytes)
    return np.frombuffer(data, array.numpy_dtype).reshape(rows, *array.row_shape)


def sound_frames(
    directory: Path, array: ArraySpec, entries: Sequence[ArrayEntry], counts: Sequence[int]
) -> Callable[[int], bool]:
    """Check an open segment's files of one array against its frames.

    Parameters
    ----------
    directory : Path
        Of the open segment.
    array : ArraySpec
        The array.
    entries : sequence of ArrayEntry
        The entry for the array in every frame.
    counts : sequence of int
        The rows of every frame.

    Returns
    -------
    callable of int to bool
        Whether the bytes of the given number of frames, from the first, are those that were written.
    """
    if array.is_plain:
        return _sound_plain(directory, array, entries, counts)
    return _sound_encoded(directory, array, entries, counts)


def _open_if_there(directory: Path, name: str) -> File | None:
    try:
        return open_file(directory, name)
    except FileNotFoundError:
        return None


def _sound_plain(
    directory: Path, array: ArraySpec, entries: Sequence[ArrayEntry], counts: Sequence[int]
) -> Callable[[int], bool]:
    file = _open_if_there(directory, rows_name(array.name))
    start = good = 0
    for entry, count in zip(entries, counts, strict=True):
        size_bytes = count * array.row_bytes
        if not (file.holds(start, size_bytes, entry.rows_crc32c) if file else not size_bytes):
            break
        start += size_bytes
        good += 1
    return lambda frames: frames <= good


def _sound_encoded(
    directory: Path, array: ArraySpec, entries: Sequence[ArrayEntry], counts: Sequence[int]
) -> Callable[[int], bool]:
    file = _open_if_there(directory, rows_name(array.name))
    good = 0
    if file is not None:
        stored = StoredChunks(file, array, [chunk for entry in entries for chunk in entry.chunks])
        numbers = range(len(stored.chunks))
        good = next((number for number in numbers if not stored.holds(number)), len(numbers))
    listed = [0, *itertools.accumulate(len(entry.chunks) for entry in entries)]
    rows = [0, *itertools.accumulate(counts)]

    def sound(frames: int) -> bool:
        if frames >= len(rows) or listed[frames] > good or listed[frames] != rows[frames] // array.chunk_rows:
            return False
        used = rows[frames] % array.chunk_rows * array.row_bytes
        if not used:
            return True
        entry = entries[frames - 1]
        if entry.tail_side not in (0, 1):
            return False
        tail = _open_if_there(directory, tail_name(array.name, entry.tail_side))
        return tail is not None and tail.holds(0, used, entry.tail_crc32c)

    return sound
