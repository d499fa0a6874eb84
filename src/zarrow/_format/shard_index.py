"""Where in a shard do its chunks lie?

The index at the end of a file of Zarr's codec ``sharding_indexed``
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html): offset and size of
every chunk, then their crc32c.

Place: tier 1; pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zarrow._format.checksum import crc32c
from zarrow._format.spec import ArraySpec
from zarrow.errors import CorruptionError

__all__ = ["decode_index", "encode_index", "index_bytes"]

_NO_CHUNK = 2**64 - 1
_ENTRY_BYTES = 16
_CRC_BYTES = 4


def index_bytes(array: ArraySpec, segment_rows: int) -> int:
    """Return the size of a shard's index.

    >>> index_bytes(ArraySpec(name="e", row_shape=(4,), dtype="float32", chunk_rows=256), 1024)
    68
    """
    return segment_rows // array.chunk_rows * _ENTRY_BYTES + _CRC_BYTES


def encode_index(sizes: Sequence[int], chunks: int) -> bytes:
    """Return the index of a shard.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of the chunks that are there; they lie one behind the other.
    chunks : int
        How many chunks the shard has room for.

    Returns
    -------
    bytes
        Offset and size of every chunk, uint64, all ones where there is none; then their crc32c.
    """
    table = np.full((chunks, 2), _NO_CHUNK, "<u8")
    table[: len(sizes), 1] = sizes
    table[: len(sizes), 0] = [0, *itertools.accumulate(sizes)][:-1] if sizes else []
    entries = table.tobytes()
    return entries + crc32c(entries).to_bytes(_CRC_BYTES, "little")


def decode_index(data: bytes, path: str, data_bytes: int | None = None) -> npt.NDArray[np.uint64]:
    """Return offsets and sizes of a shard's chunks.

    Parameters
    ----------
    data : bytes
        The index as it lies at the end of the shard.
    path : str
        For messages.
    data_bytes : int, optional
        Where the chunks end; the checksum of an index that points behind that may hold all the same.

    Returns
    -------
    uint64 array, shape (chunks, 2)
        In bytes; all ones where there is no chunk.

    Raises
    ------
    CorruptionError
        If its checksum does not hold, or if it points elsewhere.
    """
    entries = data[:-_CRC_BYTES]
    if crc32c(entries) != int.from_bytes(data[-_CRC_BYTES:], "little") or len(entries) % _ENTRY_BYTES:
        raise CorruptionError("the shard index is damaged", path=path)
    places = np.frombuffer(entries, "<u8").reshape(-1, 2)
    if data_bytes is not None:
        used = places[(places != np.uint64(_NO_CHUNK)).any(axis=1)]
        limit = np.uint64(data_bytes)
        if ((used > limit).any()) or (used.sum(axis=1) > limit).any():
            raise CorruptionError("the shard index points behind its chunks", path=path)
    return places
