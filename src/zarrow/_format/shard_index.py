"""Shard index — offset and size of every chunk of a shard, at the end of its file, then their crc32c.

The file is one of Zarr's codec ``sharding_indexed``
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html). Zarr lets chunks lie
anywhere in it; in a store they lie in row order from the first byte on, without gaps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import crc32c
from zarrow.errors import CorruptionError

__all__ = ["decode_index", "encode_index", "index_bytes", "index_crc32c"]

_NO_CHUNK = 2**64 - 1
_ENTRY_BYTES = 16
_CRC_BYTES = 4


def index_bytes(array: ArraySpec, segment_rows: int) -> int:
    """Return the size of a shard's index.

    >>> index_bytes(ArraySpec(name="e", row_shape=(4,), dtype="float32", chunk_rows=256), 1024)
    68
    """
    return array.shard_rows(segment_rows) // array.chunk_rows * _ENTRY_BYTES + _CRC_BYTES


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


def index_crc32c(data: bytes) -> int:
    """Return the crc32c of an index's entries, which follows them."""
    return int.from_bytes(data[-_CRC_BYTES:], "little")


def decode_index(data: bytes, array: ArraySpec, chunks: int, data_bytes: int, path: str) -> list[int]:
    """Return the sizes of a shard's chunks, which lie one behind the other from its first byte.

    Parameters
    ----------
    data : bytes
        The index as it lies at the end of the shard.
    array : ArraySpec
        The array.
    chunks : int
        How many chunks have rows.
    data_bytes : int
        Where the index begins.
    path : str
        For messages.

    Returns
    -------
    list of int
        In bytes.

    Raises
    ------
    CorruptionError
        If its checksum does not hold, or if it says anything else, as that of a hostile store may.
    """
    entries = data[:-_CRC_BYTES]
    if crc32c(entries) != index_crc32c(data) or len(entries) % _ENTRY_BYTES:
        raise CorruptionError("the shard index is damaged", path=path)
    places = np.frombuffer(entries, "<u8").reshape(-1, 2)
    if len(places) < chunks or (places[chunks:] != np.uint64(_NO_CHUNK)).any():
        raise CorruptionError(f"the shard index does not list the {chunks} chunks that have rows", path=path)
    position = 0
    sizes = []
    for number, (start, size) in enumerate(places[:chunks].tolist()):
        if (
            start != position
            or size > array.max_stored_bytes
            or (array.is_plain and size != array.chunk_bytes)
        ):
            raise CorruptionError(
                f"the shard index puts chunk {number} at byte {start}, {size} bytes", path=path
            )
        position += size
        sizes.append(size)
    if position != data_bytes:
        raise CorruptionError(
            f"the shard index lists chunks of {position} bytes, but begins at byte {data_bytes}", path=path
        )
    return sizes
