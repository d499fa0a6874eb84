"""How are a few rows of a compressed array had without decoding it all?

Chunk by chunk: the shard index says where a chunk lies, the chunk's checksum is compared with that of the
segment's record before a byte is decoded (a damaged chunk can crash a codec, and a crafted one fill the
memory), and what was decoded is kept for the next call, up to a limit. Chunks of one call are decoded by
several threads, for the codecs let go of Python's lock.

`EncodedRows` has the methods of the mapped arrays of `mapping`, so that who reads need not know which
kind an array is.

Place: tier 3, used by `arrays`. Reads only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format import shard_index
from zarrow._format.checksum import crc32c
from zarrow._format.codecs import ChunkCodec
from zarrow._format.records import ShardFacts
from zarrow._format.spec import ArraySpec
from zarrow._read.mapping import File, Guard, ShardFile
from zarrow._storage import threads
from zarrow._storage.cache import Cache
from zarrow.errors import CorruptionError

__all__ = ["EncodedRows", "Places", "committed_places"]

CACHE_BYTES = 64 << 20
OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True)
class Places:
    """Where the chunks of one shard lie.

    Parameters
    ----------
    file : File
        The shard, or the file of an open segment that will be it.
    offsets, sizes : sequence of int
        Of every chunk, in bytes.
    checksums : sequence of int
        The crc32c of every chunk's stored bytes.
    tail : array, shape (rows, *row_shape), or None
        The rows behind the last chunk, which are not encoded yet.
    """

    file: File
    offsets: Sequence[int]
    sizes: Sequence[int]
    checksums: Sequence[int]
    tail: npt.NDArray[Any] | None = None


def committed_places(
    array: ArraySpec, segment_rows: int, shard: ShardFile, facts: ShardFacts, guard: Guard, rows: str
) -> Places:
    """Return where the chunks of a committed shard lie.

    Parameters
    ----------
    array : ArraySpec
        The array.
    segment_rows : int
        Rows of a full segment.
    shard : ShardFile
        The shard.
    facts : ShardFacts
        What its segment's record says of it.
    guard : callable
        See `ShardFile.open`.
    rows : str
        What it holds, for messages.

    Returns
    -------
    Places
        Of its chunks.

    Raises
    ------
    CorruptionError
        If it is not the shard that was committed.
    """
    file = shard.open(guard, rows)
    index_bytes = shard_index.index_bytes(array, segment_rows)
    index = file.read(file.size_bytes - index_bytes, index_bytes)
    if crc32c(index) != facts.index_crc32c:
        raise CorruptionError(f"not the shard index that was committed for {rows}", path=shard.path)
    table = shard_index.decode_index(index, str(shard.path), file.size_bytes - index_bytes)
    table = table[: len(facts.chunks_crc32c)]
    return Places(file, table[:, 0].tolist(), table[:, 1].tolist(), facts.chunks_crc32c)


class EncodedRows:
    """The rows of a compressed array.

    Parameters
    ----------
    array : ArraySpec
        The array.
    rows : int
        How many.
    file_rows : int
        Rows of every shard but the last.
    places : callable of int to Places
        Opens the shard of that number.
    first_row : int
        The row of the store that row 0 is, for messages.
    """

    def __init__(
        self,
        array: ArraySpec,
        rows: int,
        file_rows: int,
        places: Callable[[int], Places],
        first_row: int = 0,
    ) -> None:
        self.rows = rows
        self._array = array
        self._file_chunks = file_rows // array.chunk_rows
        self._places = places
        self._first_row = first_row
        self._codec = ChunkCodec(array)
        self._open: Cache[Places] = Cache(OPEN_SHARDS)
        self._decoded: Cache[npt.NDArray[Any]] = Cache(CACHE_BYTES)

    def _chunk(self, number: int) -> npt.NDArray[Any]:
        found = self._decoded.get(number)
        if found is None:
            found = self._decode(number)
            self._decoded.put(number, found, found.nbytes)
        return found

    def _decode(self, number: int) -> npt.NDArray[Any]:
        shard, chunk = divmod(number, self._file_chunks)
        places = self._open.get(shard)
        if places is None:
            places = self._places(shard)
            self._open.put(shard, places, 1)
        if chunk == len(places.checksums) and places.tail is not None:
            return places.tail
        data = places.file.read(places.offsets[chunk], places.sizes[chunk])
        start = self._first_row + number * self._array.chunk_rows
        where = f"{places.file.path}: chunk {chunk} (rows {start} to {start + self._array.chunk_rows})"
        if len(data) != places.sizes[chunk] or crc32c(data) != places.checksums[chunk]:
            raise CorruptionError(
                f"{where} is not what was committed: the rows of other chunks can still be read"
            )
        return self._codec.decode(data, where)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop`, decoded.

        Raises
        ------
        CorruptionError
            If a chunk of theirs is damaged.
        """
        chunk_rows = self._array.chunk_rows
        out = np.empty((max(stop - start, 0), *self._array.row_shape), self._array.numpy_dtype)

        def fill(number: int) -> None:
            first = number * chunk_rows
            low, high = max(start, first), min(stop, first + chunk_rows)
            out[low - start : high - start] = self._chunk(number)[low - first : high - first]

        numbers = range(start // chunk_rows, -(-stop // chunk_rows)) if len(out) else range(0)
        deque(threads.in_order(fill, numbers), maxlen=0)
        return out

    def take(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return these rows, which are in range, in the order given.

        Raises
        ------
        CorruptionError
            If a chunk of theirs is damaged.
        """
        chunk_rows = self._array.chunk_rows
        if out is None:
            out = np.empty((len(rows), *self._array.row_shape), self._array.numpy_dtype)
        target = out
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        numbers, starts = np.unique(ordered // chunk_rows, return_index=True)
        stops = np.append(starts[1:], len(rows))

        def fill(index: int) -> None:
            here = slice(starts[index], stops[index])
            number = int(numbers[index])
            target[order[here]] = self._chunk(number)[ordered[here] - number * chunk_rows]

        deque(threads.in_order(fill, range(len(numbers))), maxlen=0)
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: decoding takes longer than reading."""
