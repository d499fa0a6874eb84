"""Array specification — one array of a store, as ``zarrow.json`` says it, and the sizes that follow from it.

Validated on construction, so that every specification keeps the rules and the limits of `layout`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zarrow._format.layout import (
    MAX_CHUNK_BYTES,
    MAX_DEFAULT_SEGMENT_ROWS,
    MAX_ROW_AXES,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENT_ROWS,
    MAX_SHARD_BYTES,
    MIN_SEGMENT_ROWS,
    RAGGED_CHUNKS,
    TABLE_ONLY_SEGMENT_ROWS,
    TARGET_CHUNK_BYTES,
    check_name,
    shard_path,
)
from zarrow._format.quantized import QUANTIZED
from zarrow.errors import InvalidInputError

__all__ = ["ArraySpec", "rows_of"]

ZARR_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        [
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "float16",
            "float32",
            "float64",
        ]
    )
}
"""Zarr v3 core data types that an array may have (bfloat16 is widened before)."""

QUANTIZED_FEATURE, RAGGED = "quantized", "ragged"
READER_FEATURES = (QUANTIZED_FEATURE, RAGGED)
"""What a reader must know of a store that needs it."""

EXTENT_DTYPE, EXTENT_SHAPE = "int64", (2,)
"""Of the array that says where a row's vectors lie: from which vector of its segment on, and how many."""

PAGE_BYTES = 4096

PLAIN: tuple[dict[str, Any], ...] = ({"name": "bytes", "configuration": {"endian": "little"}},)
"""The default codecs: a chunk's stored bytes are its rows, in order."""


def _codec_tuple(codecs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(json.dumps(dict(codec))) for codec in codecs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """The specification of one array of a store.

    Parameters
    ----------
    name : str
        Its name and directory.
    row_shape : tuple of int
        The shape of one row, e.g. ``(768,)`` or ``(layers, hidden)``; at least one axis.
    dtype : str
        A Zarr v3 core data type, e.g. ``"float32"``; stored little-endian.
    chunk_rows : int
        Rows of an inner chunk; a power of two.
    codecs : tuple of dict
        The inner codecs as Zarr v3 writes them; plain bytes by default.
    scale : str, optional
        Of a quantized array, the column with the scale of each row.
    segment_vectors : int, optional
        Of a ragged array, whose rows have any number of vectors: the most that a segment may have, a power of
        two. `row_shape` is then the shape of a vector, and `chunk_rows` are vectors of a chunk.
    count : str, optional
        Of a ragged array, the column with the number of vectors of each row.

    Raises
    ------
    InvalidInputError
        If a value breaks a rule of the format.

    Examples
    --------
    >>> spec = ArraySpec(name="query_embed", row_shape=(768,), dtype="float32", chunk_rows=256)
    >>> spec.row_bytes, spec.is_plain
    (3072, True)
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    codecs: tuple[dict[str, Any], ...] = PLAIN
    scale: str | None = None
    segment_vectors: int | None = None
    count: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "an array")
        object.__setattr__(self, "row_shape", tuple(int(axis) for axis in self.row_shape))
        object.__setattr__(self, "codecs", _codec_tuple(self.codecs))
        if not self.row_shape or any(not 0 < axis < 2**31 for axis in self.row_shape):
            raise InvalidInputError(
                f"array {self.name!r}: a row must have at least one axis, each at least 1 long, "
                f"got shape {self.row_shape}: one value per row is a column of the table"
            )
        if self.dtype not in ZARR_DTYPES:
            raise InvalidInputError(
                f"array {self.name!r}: dtype must be one of {', '.join(ZARR_DTYPES)}, "
                f"got {self.dtype}: cast it"
            )
        if self.scale is not None and (self.dtype != QUANTIZED or not isinstance(self.scale, str)):
            raise InvalidInputError(
                f"array {self.name!r}: only {QUANTIZED} has a column of scales, got {self.dtype} with "
                f"{self.scale!r}"
            )
        if self.count is not None and not (self.is_ragged and isinstance(self.count, str)):
            raise InvalidInputError(
                f"array {self.name!r}: only ragged arrays have a column of counts, got {self.count!r}"
            )
        if not is_power_of_two(self.chunk_rows):
            raise InvalidInputError(
                f"array {self.name!r}: chunk_rows must be a power of two, got {self.chunk_rows}"
            )
        if len(self.row_shape) > MAX_ROW_AXES or self.chunk_bytes > MAX_CHUNK_BYTES:
            raise InvalidInputError(
                f"array {self.name!r}: a row may have {MAX_ROW_AXES} axes, and {self.chunk_rows} rows "
                f"{MAX_CHUNK_BYTES} bytes, got shape {self.row_shape} of {self.row_bytes} bytes: split it"
            )
        vectors = self.segment_vectors
        if vectors is not None and not (
            is_power_of_two(vectors)
            and self.chunk_rows <= vectors <= MAX_SEGMENT_ROWS
            and vectors * self.row_bytes <= MAX_SEGMENT_BYTES
        ):
            raise InvalidInputError(
                f"array {self.name!r}: segment_vectors must be a power of two from {self.chunk_rows} to "
                f"{MAX_SEGMENT_ROWS}, of {MAX_SEGMENT_BYTES} bytes at most, got {vectors}"
            )
        if not self.codecs or not all(isinstance(codec.get("name"), str) for codec in self.codecs):
            raise InvalidInputError(
                f"array {self.name!r}: codecs must be objects with a name, at least one; plain bytes is None"
            )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The little-endian numpy dtype."""
        return ZARR_DTYPES[self.dtype]

    @property
    def is_ragged(self) -> bool:
        """Whether its rows have any number of vectors."""
        return self.segment_vectors is not None

    def shard_rows(self, segment_rows: int) -> int:
        """Return how many rows, or of a ragged array vectors, a shard has room for."""
        return self.segment_vectors or segment_rows

    @property
    def shard_ndim(self) -> int:
        """The axes of its Zarr array after the first, which tells shards apart."""
        return len(self.row_shape) + self.is_ragged

    def shard_path(self, segment: int) -> str:
        """Return the path of a segment's shard."""
        return shard_path(self.name, segment, self.shard_ndim)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed; of a ragged array, of one vector."""
        return math.prod(self.row_shape) * self.numpy_dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk, uncompressed."""
        return self.chunk_rows * self.row_bytes

    @property
    def max_stored_bytes(self) -> int:
        """The most bytes that an encoded chunk may have: a bound on what a hostile store can ask for."""
        return self.chunk_bytes if self.is_plain else 2 * self.chunk_bytes + 4096

    @property
    def is_plain(self) -> bool:
        """Whether the data of a shard are the bytes of its rows, in order."""
        return self.codecs in (PLAIN, ({"name": "bytes"},))

    @property
    def own_crc_bytes(self) -> int:
        """The size of the checksum that every encoded chunk ends with, if its last codec is ``crc32c``.

        A crc32c over bytes and their own crc32c is the same for all bytes: a chunk's checksum leaves it out.
        """
        return 4 if self.codecs[-1].get("name") == "crc32c" else 0

    def to_json(self) -> dict[str, Any]:
        """Return the spec as ``zarrow.json`` has it."""
        own = {"scale": self.scale, "segment_vectors": self.segment_vectors, "count": self.count}
        return {
            "name": self.name,
            "row_shape": list(self.row_shape),
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "codecs": list(self.codecs),
        } | {name: value for name, value in own.items() if value is not None}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ArraySpec:
        """Return the spec from ``zarrow.json``."""
        return cls(
            name=body["name"],
            row_shape=tuple(body["row_shape"]),
            dtype=body["dtype"],
            chunk_rows=body["chunk_rows"],
            codecs=tuple(body["codecs"]),
            scale=body.get("scale"),
            segment_vectors=body.get("segment_vectors"),
            count=body.get("count"),
        )


def is_power_of_two(number: object) -> bool:
    """Tell whether `number` is a power of two."""
    return isinstance(number, int) and number > 0 and not number & (number - 1)


def rows_of(size_bytes: int, row_bytes: int) -> int:
    """Return how many rows of `row_bytes` bytes fit into `size_bytes`: at least one.

    >>> rows_of(1 << 20, 768 * 4), rows_of(100, 768 * 4), rows_of(100, 0)
    (341, 1, 100)
    """
    return max(size_bytes // max(row_bytes, 1), 1)


def default_chunk_rows(row_bytes: int, segment_rows: int) -> int:
    """Return the rows of a chunk of about 1 MiB, at most a segment.

    >>> default_chunk_rows(768 * 4, 32768)
    256
    """
    return min(segment_rows, _floor_power_of_two(rows_of(TARGET_CHUNK_BYTES, row_bytes)))


def ragged_chunks(vector_bytes: int) -> tuple[int, int]:
    """Return the vectors of a chunk and of a segment of a ragged array, by the bytes of a vector.

    Chunks are of about 1 MiB, and of whole pages, so that shards can be mapped one after the other.

    >>> ragged_chunks(256), ragged_chunks(768 * 4), ragged_chunks(1)
    ((4096, 67108864), (256, 4194304), (1048576, 2147483648))
    """
    chunk = _floor_power_of_two(rows_of(TARGET_CHUNK_BYTES, vector_bytes))
    while chunk * vector_bytes % PAGE_BYTES and 2 * chunk * vector_bytes <= MAX_CHUNK_BYTES:
        chunk *= 2
    vectors = min(chunk * RAGGED_CHUNKS, MAX_SEGMENT_ROWS)
    while vectors > chunk and vectors * vector_bytes > MAX_SEGMENT_BYTES:
        vectors //= 2
    return chunk, vectors


def default_segment_rows(widest_row_bytes: int | None) -> int:
    """Return the rows of a segment whose widest shard has 48 to 96 MiB, or less if rows are narrow.

    >>> default_segment_rows(768 * 4)
    32768
    >>> default_segment_rows(10**6), default_segment_rows(16), default_segment_rows(None)
    (1024, 131072, 65536)
    """
    if widest_row_bytes is None:
        return TABLE_ONLY_SEGMENT_ROWS
    rows = _floor_power_of_two(rows_of(MAX_SHARD_BYTES, widest_row_bytes))
    return min(max(rows, MIN_SEGMENT_ROWS), MAX_DEFAULT_SEGMENT_ROWS)


def _floor_power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)
