"""Which rows does a shard's file hold, sealed or not, and are they those that were written?

Of a committed segment the record knows the checksums of index and chunks: `committed_rows` reads the rows
chunk by chunk and compares. Of an open one the frames do: `sound_frames` tells up to which frame the bytes of
the file, and of the tail of an unfinished chunk, are those that were written; `read_tail` reads such a tail.

Place: tier 1, used by `_write.shards`, `_write.open_segment` and `_write.reopening`; the codecs are handed
in. Reads only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.checksum import crc32c
from zarrow._format.codecs import ChunkCodec
from zarrow._format.frames import ArrayEntry
from zarrow._format.layout import rows_name, shard_path, tail_name
from zarrow._format.records import SegmentRecord
from zarrow._format.shard_index import decode_index, index_bytes
from zarrow._format.spec import ArraySpec
from zarrow._storage import reading
from zarrow.errors import CorruptionError

__all__ = ["committed_rows", "mapped", "read_tail", "sound_frames"]


def committed_rows(
    root: Path, array: ArraySpec, segment_rows: int, record: SegmentRecord
) -> Iterator[npt.NDArray[Any]]:
    """Yield a committed segment's rows of one array, chunk by chunk, checked against its record.

    Parameters
    ----------
    root : Path
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
    path = root / shard_path(array.name, record.segment, len(array.row_shape))
    facts, codec = record.arrays[array.name], ChunkCodec(array)
    if not facts.size_bytes:
        return
    reading.require_own_dirs(root, path)
    data = mapped(path)
    if data.size != facts.size_bytes:
        raise CorruptionError(f"{data.size} bytes, {facts.size_bytes} were committed", path=path)
    index = data[data.size - index_bytes(array, segment_rows) :].tobytes()
    if crc32c(index) != facts.index_crc32c:
        raise CorruptionError("not the shard index that was committed", path=path)
    places = decode_index(index, str(path), data.size - len(index))
    for number, (start, checksum) in enumerate(
        zip(range(0, record.rows, array.chunk_rows), facts.chunks_crc32c, strict=True)
    ):
        offset, size = (int(value) for value in places[number])
        chunk = data[offset : offset + size]
        if len(chunk) != size or crc32c(chunk) != checksum:
            raise CorruptionError(
                f"chunk {number} (rows {start} to {start + array.chunk_rows} of the segment) "
                "is not what was committed",
                path=path,
            )
        rows = codec.decode(chunk, str(path))
        yield rows[: record.rows - start]


def mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file's bytes, mapped for reading; a file that is not there has none."""
    try:
        return reading.map_bytes(path)
    except FileNotFoundError:
        return np.empty(0, np.uint8)


def read_tail(directory: Path, array: ArraySpec, side: int, rows: int) -> npt.NDArray[Any]:
    """Return the rows of an unfinished chunk."""
    data = mapped(directory / tail_name(array.name, side))[: rows * array.row_bytes]
    return data.view(array.numpy_dtype).reshape(rows, *array.row_shape)


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
        What every frame says of the array.
    counts : sequence of int
        The rows of every frame.

    Returns
    -------
    callable of int to bool
        Whether the bytes of the first so many frames are all there and as they were written.
    """
    data = mapped(directory / rows_name(array.name))
    if array.is_plain:
        return _sound_plain(array, data, entries, counts)
    return _sound_encoded(directory, array, data, entries, counts)


def _sound_plain(
    array: ArraySpec, data: npt.NDArray[np.uint8], entries: Sequence[ArrayEntry], counts: Sequence[int]
) -> Callable[[int], bool]:
    start = good = 0
    for entry, count in zip(entries, counts, strict=True):
        stop = start + count * array.row_bytes
        if stop > data.size or crc32c(data[start:stop]) != entry.rows_crc32c:
            break
        start = stop
        good += 1
    return lambda frames: frames <= good


def _sound_encoded(
    directory: Path,
    array: ArraySpec,
    data: npt.NDArray[np.uint8],
    entries: Sequence[ArrayEntry],
    counts: Sequence[int],
) -> Callable[[int], bool]:
    chunks = [chunk for entry in entries for chunk in entry.chunks]
    start = good = 0
    for chunk in chunks:
        stop = start + chunk.size_bytes
        if stop > data.size or crc32c(data[start:stop]) != chunk.crc32c:
            break
        start = stop
        good += 1
    listed = [0, *itertools.accumulate(len(entry.chunks) for entry in entries)]
    rows = [0, *itertools.accumulate(counts)]

    def sound(frames: int) -> bool:
        if listed[frames] > good or listed[frames] != rows[frames] // array.chunk_rows:
            return False
        used = rows[frames] % array.chunk_rows * array.row_bytes
        if not used:
            return True
        entry = entries[frames - 1]
        if entry.tail_side not in (0, 1):
            return False
        tail = mapped(directory / tail_name(array.name, entry.tail_side))
        return tail.size >= used and crc32c(tail[:used]) == entry.tail_crc32c

    return sound
