"""Shards — the shard files of an open segment, filled in place, so that every row is written once.

A shard of the codec ``sharding_indexed`` is a file of encoded inner chunks, followed by an index of their
offsets (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html). Chunks here hold
whole rows in row order, so that:

* with plain bytes the data part *is* the rows: `PlainShard` appends them to the file that will be the shard;
  sealing pads the last chunk and writes the index;
* with other codecs `EncodedShard` encodes each chunk when it is full and appends it. Until then the rows of
  the unfinished chunk are in a *tail* file. There are two, used in turn: while the first rows of a new chunk
  go to one, the other still holds the rows that the last frame vouches for.

Of a ragged array, what is said here of rows holds of vectors.

Both continue after the rows that a crash left (`restore`), once `_read.shard_rows.sound_frames` has found the
last frame whose bytes are as they were written. A crash leaves bytes after the accepted ones, which the next
append overwrites.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import combine, crc32c, crc32c_of_zeros
from zarrow._format.codecs import ChunkCodec
from zarrow._format.frames import ArrayEntry, Chunk
from zarrow._format.layout import rows_name, tail_name
from zarrow._format.records import ShardFacts
from zarrow._format.shard_index import encode_index, index_crc32c
from zarrow._read.shard_rows import read_tail
from zarrow._storage import files, threads
from zarrow._storage.reading import map_file

__all__ = ["EncodedShard", "PlainShard", "Shard", "open_shard"]

WRITEBACK_BYTES = 8 << 20


def _bytes_of(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return rows.reshape(-1).view(np.uint8)


class _ShardFile:
    """The file that becomes the shard; what both kinds have in common."""

    def __init__(self, directory: Path, array: ArraySpec, segment_rows: int, *, create: bool) -> None:
        self.array = array
        self.path = directory / rows_name(array.name)
        self.rows = 0
        self._chunks = array.shard_rows(segment_rows) // array.chunk_rows
        self._size_bytes = 0
        self._written_back = 0
        self._fd = files.create(self.path, exist_ok=not create)

    def _write(self, data: Any, size_bytes: int) -> None:
        files.write(self._fd, data, self._size_bytes)
        self._size_bytes += size_bytes

    @property
    def wants_writeback(self) -> bool:
        """Whether enough was written to start writeback."""
        return self._size_bytes - self._written_back >= WRITEBACK_BYTES

    def start_writeback(self) -> None:
        """Have the kernel start to write to the disk, so that `sync` finds little left to do."""
        size_bytes = self._size_bytes
        files.start_writeback(self._fd, self._written_back, size_bytes - self._written_back)
        self._written_back = size_bytes

    def _finish(self, chunks: Sequence[Chunk]) -> ShardFacts:
        """Write the index after the chunks and make the shard durable."""
        index = encode_index([chunk.size_bytes for chunk in chunks], self._chunks)
        files.write(self._fd, index, self._size_bytes)
        size_bytes = self._size_bytes + len(index)
        files.truncate(self._fd, size_bytes)  # a crash may have left bytes after the index
        files.sync(self._fd)
        checksums = tuple(chunk.crc32c for chunk in chunks)
        return ShardFacts(
            size_bytes=size_bytes,
            chunks_crc32c=checksums,
            index_crc32c=index_crc32c(index),
            vectors=self.rows if self.array.is_ragged else None,
        )

    def sync(self) -> None:
        """Make all rows durable."""
        files.sync(self._fd)

    def needs_sync(self, rows: int) -> bool:  # noqa: ARG002 - one kind of shard needs it
        """Tell whether appending `rows` rows would overwrite durable bytes."""
        return False

    def frames_synced(self) -> None:
        """Note that the frames of all rows are durable, too."""

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1  # first: a descriptor that is closed twice may be another file's
        if fd >= 0:
            os.close(fd)


class PlainShard(_ShardFile):
    """A shard of plain bytes, filled in place.

    Parameters
    ----------
    directory : Path
        Of the open segment.
    array : ArraySpec
        The array.
    segment_rows : int
        Rows of the full shard.
    create : bool
        Whether to create the file; it must not exist then.
    """

    def __init__(self, directory: Path, array: ArraySpec, segment_rows: int, *, create: bool) -> None:
        super().__init__(directory, array, segment_rows, create=create)
        self._checksums: list[int] = []
        self._chunk_crc = 0
        self._chunk_used = 0

    def append(self, *pieces: npt.NDArray[Any]) -> ArrayEntry:
        """Append rows: accepted when their frame is written.

        Parameters
        ----------
        *pieces : array, shape (n, *row_shape)
            Contiguous, of the array's dtype.

        Returns
        -------
        ArrayEntry
            What the frame says of them.
        """
        whole = 0
        for rows in pieces:
            data = _bytes_of(rows)
            self._write(data, data.size)
            whole = self._sum(data, whole)
            self.rows += len(rows)
        return ArrayEntry(whole)

    def _sum(self, data: npt.NDArray[np.uint8], whole: int = 0) -> int:
        """Add bytes to the chunks' checksums; return `whole`, the checksum of all bytes so far, continued."""
        start = 0
        while start < data.size:
            stop = min(data.size, start + self.array.chunk_bytes - self._chunk_used)
            piece = crc32c(data[start:stop])
            whole = combine(whole, piece, stop - start)
            self._chunk_crc = combine(self._chunk_crc, piece, stop - start) if self._chunk_used else piece
            self._chunk_used += stop - start
            if self._chunk_used == self.array.chunk_bytes:
                self._checksums.append(self._chunk_crc)
                self._chunk_crc = self._chunk_used = 0
            start = stop
        return whole

    def restore(
        self,
        entries: Sequence[ArrayEntry],  # noqa: ARG002 - the other kind needs them
        counts: Sequence[int],
    ) -> None:
        """Continue after the rows of these frames, which `sound_frames` has checked.

        Parameters
        ----------
        entries : sequence of ArrayEntry
            Of all accepted frames.
        counts : sequence of int
            The rows of each.
        """
        self.rows = sum(counts)
        self._size_bytes = self.rows * self.array.row_bytes
        self._sum(map_file(self.path.parent, self.path.name)[: self._size_bytes])

    def seal(self) -> ShardFacts:
        """Turn the file into a shard: pad the last chunk, write the index, sync.

        Returns
        -------
        ShardFacts
            For the record.
        """
        checksums = list(self._checksums)
        used, position = self._chunk_used, self._size_bytes
        if used:
            padding = self.array.chunk_bytes - used
            # A hole reads as zeros, once the bytes that a crash may have left after the rows are cut off.
            files.truncate(self._fd, position)
            self._size_bytes += padding
            checksums.append(combine(self._chunk_crc, crc32c_of_zeros(padding), padding))
        facts = self._finish([Chunk(self.array.chunk_bytes, checksum) for checksum in checksums])
        self._size_bytes = position
        return facts


class EncodedShard(_ShardFile):
    """A shard of a codec chain, encoded chunk by chunk.

    Parameters
    ----------
    directory : Path
        Of the open segment.
    array : ArraySpec
        The array.
    segment_rows : int
        Rows of the full shard.
    create : bool
        Whether to create the files; they must not exist then.
    """

    def __init__(self, directory: Path, array: ArraySpec, segment_rows: int, *, create: bool) -> None:
        super().__init__(directory, array, segment_rows, create=create)
        self._codec = ChunkCodec(array)
        self._done: list[Chunk] = []
        self._buffer = np.zeros((array.chunk_rows, *array.row_shape), array.numpy_dtype)
        self._used = 0
        self._side = 0
        self._tail_crc = 0
        self._tail_durable = [False, False]
        self._tails = [
            files.create(directory / tail_name(array.name, side), exist_ok=not create) for side in (0, 1)
        ]

    def needs_sync(self, rows: int) -> bool:
        """Tell whether appending `rows` rows would overwrite durable rows of a tail file.

        The caller then syncs the whole open segment first: the rows are durable in their chunk by then,
        but only frames that are durable too say so.
        """
        new_tail = self._used + rows > self.array.chunk_rows or not self._used
        return new_tail and self._tail_durable[1 - self._side]

    def append(self, *pieces: npt.NDArray[Any]) -> ArrayEntry:
        """Encode the chunks that these rows complete and keep the rest in a tail file.

        Parameters
        ----------
        *pieces : array, shape (n, *row_shape)
            Contiguous, of the array's dtype.

        Returns
        -------
        ArrayEntry
            What the frame says of them.
        """
        first_done, tail_start = len(self._done), self._used
        whole = list(self._filled(pieces))
        self._encode(whole)
        if whole:
            tail_start = 0
        if self._used:
            fresh = _bytes_of(self._buffer[tail_start : self._used])
            if not tail_start:
                # The other file still holds the rows that the last frame vouches for.
                self._side = 1 - self._side
                self._tail_durable[self._side] = False
                self._tail_crc = 0
            files.write(self._tails[self._side], fresh, tail_start * self.array.row_bytes)
            self._tail_crc = crc32c(fresh, self._tail_crc)
        else:
            self._tail_crc = 0
        self.rows += sum(map(len, pieces))
        checksum = 0
        for rows in pieces:
            checksum = crc32c(_bytes_of(rows), checksum)
        return ArrayEntry(checksum, self._tail_crc, self._side, tuple(self._done[first_done:]))

    def _filled(self, pieces: Sequence[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
        """Yield the chunks that these rows complete; the rows of the unfinished one go to the buffer."""
        chunk_rows = self.array.chunk_rows
        for rows in pieces:
            position = 0
            while position < len(rows):
                if not self._used and len(rows) - position >= chunk_rows:
                    yield rows[position : position + chunk_rows]
                    position += chunk_rows
                    continue
                count = min(chunk_rows - self._used, len(rows) - position)
                self._buffer[self._used : self._used + count] = rows[position : position + count]
                self._used += count
                position += count
                if self._used == chunk_rows:
                    yield self._buffer
                    self._buffer = np.empty_like(self._buffer)
                    self._used = 0

    def _encode(self, chunks: Sequence[npt.NDArray[Any]]) -> None:
        for data in threads.in_order(self._codec.encode, chunks):
            self._write(data, len(data))
            checksum = crc32c(data[: len(data) - self.array.own_crc_bytes])
            self._done.append(Chunk(len(data), checksum))

    def restore(self, entries: Sequence[ArrayEntry], counts: Sequence[int]) -> None:
        """Continue after the rows of these frames, which `sound_frames` has checked."""
        self._done = [chunk for entry in entries for chunk in entry.chunks]
        self._size_bytes = self._written_back = sum(chunk.size_bytes for chunk in self._done)
        self.rows = sum(counts)
        self._used = self.rows % self.array.chunk_rows
        if entries:
            self._side, self._tail_crc = entries[-1].tail_side, entries[-1].tail_crc32c
        if self._used:
            self._buffer[: self._used] = read_tail(self.path.parent, self.array, self._side, self._used)
        self._tail_durable = [True, True]  # possibly: what was synced before is unknown

    def sync(self) -> None:
        """Make all rows durable."""
        files.sync(self._fd)
        if self._used:
            files.sync(self._tails[self._side])
            self._tail_durable[self._side] = True

    def frames_synced(self) -> None:
        """Note that the rows of the idle tail file are durable in their chunk, as a durable frame says."""
        self._tail_durable[1 - self._side] = False

    def seal(self) -> ShardFacts:
        """Turn the file into a shard: encode the last chunk, padded with zeros, write the index, sync."""
        done = list(self._done)
        position = self._size_bytes
        if self._used:
            chunk = self._buffer.copy()
            chunk[self._used :] = 0
            self._encode([chunk])
            # Once the rows are claimed, a power cut that took them from the tail would look like damage.
            files.sync(self._tails[self._side])
        facts = self._finish(self._done)
        self._done, self._size_bytes = done, position
        return facts

    def close(self) -> None:
        """Close the files."""
        super().close()
        while self._tails:
            os.close(self._tails.pop())


Shard = PlainShard | EncodedShard


def open_shard(directory: Path, array: ArraySpec, segment_rows: int, *, create: bool) -> Shard:
    """Return the shard file of an array in a directory, created or opened."""
    kind = PlainShard if array.is_plain else EncodedShard
    return kind(directory, array, segment_rows, create=create)
