"""Store and array specifications — what a store is, as ``zarrow.json`` says it.

Written once, with the first batch, and never changed. Validated on construction, so that every spec keeps the
rules and the limits of `layout`.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format.arrow import without_dictionaries
from zarrow._format.documents import decode_document, encode_document
from zarrow._format.layout import (
    FORMAT_VERSION,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_DEFAULT_SEGMENT_ROWS,
    MAX_FRAME_ROW_BYTES,
    MAX_FRAME_ROWS,
    MAX_ROW_AXES,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENT_ROWS,
    MAX_SHARD_BYTES,
    MIN_SEGMENT_ROWS,
    RAGGED_CHUNKS,
    RESERVED_COLUMNS,
    ROW,
    SAMPLE_INDEX,
    TABLE_ONLY_SEGMENT_ROWS,
    TARGET_CHUNK_BYTES,
    check_name,
    extent_name,
    is_uuid,
    shard_path,
)
from zarrow._format.quantized import QUANTIZED
from zarrow.errors import CorruptionError, InvalidInputError, NotAStoreError

__all__ = ["ArraySpec", "StoreSpec", "rows_of_expected"]

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


def check_expected(rows: object) -> None:
    """Raise unless this is a number of rows, or None where it is unknown."""
    if rows is not None and (type(rows) is not int or not 0 <= rows < 2**63):
        raise InvalidInputError(f"expected_rows must be a number of rows, or None, got {str(rows)[:40]}")


def rows_of_expected(rows: int, expected: int | None) -> str:
    """Return a number of rows in words, with the expected number if it is larger.

    >>> rows_of_expected(4480, 10037), rows_of_expected(1, None), rows_of_expected(12, 10)
    ('4,480 of 10,037 rows', '1 row', '12 rows')
    """
    if expected is not None and rows < expected:
        return f"{rows:,} of {expected:,} rows"
    return f"{rows:,} row{'s' * (rows != 1)}"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """The specification of a store: written once, with the first batch, and never changed.

    Parameters
    ----------
    uuid : str
        32 hex digits; identifies the store and salts its frames.
    segment_rows : int
        Rows of a segment; a power of two.
    schema : pyarrow.Schema
        The user's columns, without ``row`` and ``sample_index``.
    arrays : tuple of ArraySpec
        The arrays, in the order of their entries in frames.
    keys : tuple of str
        The columns that identify a row.
    provenance : dict
        Where the rows come from: JSON values.
    writer_features : tuple of str
        What a program must know to change the store, of which this one knows nothing.
    expected_rows : int or None
        Rows that the store is to have in the end, as far as the run that began it knew.

    Raises
    ------
    InvalidInputError
        If a value breaks a rule of the format.

    Examples
    --------
    >>> spec = StoreSpec(uuid="0" * 32, segment_rows=1024, schema=pa.schema({"id": pa.int64()}))
    >>> StoreSpec.decode(spec.encode(), "zarrow.json") == spec
    True
    """

    uuid: str
    segment_rows: int
    schema: pa.Schema
    arrays: tuple[ArraySpec, ...] = ()
    keys: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    writer_features: tuple[str, ...] = ()
    expected_rows: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", tuple(self.arrays))
        object.__setattr__(self, "keys", tuple(self.keys))
        check_expected(self.expected_rows)
        if not is_power_of_two(self.segment_rows):
            raise InvalidInputError(f"segment_rows must be a power of two, got {self.segment_rows}")
        self._check_bounds()
        columns = self.schema.names
        names = [*columns, *(array.name for array in self.arrays)]
        counts = Counter(names)
        for name in counts:
            if name in RESERVED_COLUMNS:
                raise InvalidInputError(
                    f"column or array {name!r}: {' and '.join(RESERVED_COLUMNS)} are reserved names: "
                    "rename it, or pass the dataset's index as sample_index="
                )
            if counts[name] > 1:
                raise InvalidInputError(
                    f"the name {name!r} is that of more than one column or array: rename one"
                )
            if not name or "\0" in name:
                raise InvalidInputError(
                    f"the name of a column must not be empty or contain NUL, got {name!r}: query engines "
                    "cannot name it: rename it"
                )
        folded: dict[str, str] = {name: name for name in RESERVED_COLUMNS}
        for name in counts:
            if (other := folded.setdefault(name.lower(), name)) != name:
                raise InvalidInputError(
                    f"the names {other!r} and {name!r} differ only by case, which SQL cannot tell apart: "
                    "rename one"
                )
        for place, key in enumerate(self.keys):
            if key in self.keys[:place]:
                raise InvalidInputError(f"key {key!r} is named twice in keys={list(self.keys)}: name it once")
            if key not in columns:
                raise InvalidInputError(f"key {key!r} is not a column; the columns are {columns}")
            kind = self.schema.field(key).type
            if pa.types.is_nested(kind) or pa.types.is_null(kind) or isinstance(kind, pa.BaseExtensionType):
                raise InvalidInputError(f"key {key!r}: a key must be a scalar type, got {kind}")
        for array in self.arrays:
            if array.is_ragged:
                self._check_extent(array)
            elif self.segment_rows % array.chunk_rows:
                raise InvalidInputError(
                    f"array {array.name!r}: chunk_rows ({array.chunk_rows}) must divide "
                    f"segment_rows ({self.segment_rows})"
                )
            if array.scale is not None:
                self._check_own_column(array.name, array.scale, pa.float32(), "the scales of a quantized")
            if array.count is not None:
                self._check_own_column(array.name, array.count, pa.int64(), "the counts of a ragged")
            if array.scale is not None and array.is_ragged:
                raise InvalidInputError(f"array {array.name!r}: a ragged array cannot be quantized")

    def _check_own_column(self, array: str, name: str, kind: pa.DataType, what: str) -> None:
        """Raise unless there is the column that a quantized or ragged array has."""
        place = self.schema.get_field_index(name)
        column = self.schema.field(place) if place >= 0 else None
        if column is None or column.type != kind or column.nullable or name in self.keys:
            raise InvalidInputError(
                f"array {array!r}: {what} array are a column {name!r} of {kind}, not nullable and no key, "
                f"got {'none' if column is None else column.type}: rename another column of that name"
            )

    def _check_extent(self, array: ArraySpec) -> None:
        """Raise unless a ragged array has the array that says where its rows lie."""
        name = extent_name(array.name)
        extent = next((one for one in self.arrays if one.name == name), None)
        if extent is None or (extent.dtype, extent.row_shape) != (EXTENT_DTYPE, EXTENT_SHAPE):
            raise InvalidInputError(
                f"array {array.name!r}: a ragged array needs the array {name!r} of two {EXTENT_DTYPE} per row"
            )
        if not extent.is_plain or extent.is_ragged:
            raise InvalidInputError(f"array {name!r}: must be of plain bytes")

    def _check_bounds(self) -> None:
        """Raise if a segment would exceed the limits."""
        chunks = sum(array.shard_rows(self.segment_rows) // array.chunk_rows for array in self.arrays)
        widest = max((array.row_bytes for array in self.arrays if not array.is_ragged), default=0)
        if (
            self.segment_rows > MAX_SEGMENT_ROWS
            or widest * self.segment_rows > MAX_SEGMENT_BYTES
            or chunks > MAX_CHUNKS
        ):
            raise InvalidInputError(
                f"a segment may have {MAX_SEGMENT_ROWS} rows, {MAX_SEGMENT_BYTES} bytes per array and "
                f"{MAX_CHUNKS} chunks, got {self.segment_rows} rows of {widest} bytes in {chunks} chunks: "
                "make segment_rows smaller"
            )

    def array(self, name: str) -> ArraySpec:
        """Return the array of that name."""
        return next(array for array in self.arrays if array.name == name)

    @property
    def reader_features(self) -> list[str]:
        """What a reader must know to read the store."""
        quantized = any(array.scale is not None for array in self.arrays)
        return [QUANTIZED_FEATURE] * quantized + [RAGGED] * bool(self.ragged)

    @property
    def ragged(self) -> tuple[ArraySpec, ...]:
        """The ragged arrays."""
        return tuple(array for array in self.arrays if array.is_ragged)

    @property
    def extents(self) -> dict[str, ArraySpec]:
        """The ragged arrays, by the name of the array that says where their rows lie."""
        return {extent_name(array.name): array for array in self.ragged}

    @property
    def extent_places(self) -> dict[int, int]:
        """For each ragged array, by its place in `arrays`, the place of the array of its extents."""
        places = {array.name: place for place, array in enumerate(self.arrays)}
        return {places[array.name]: places[extent_name(array.name)] for array in self.ragged}

    @property
    def fixed_bytes(self) -> int:
        """Row bytes of all arrays but the ragged ones."""
        return sum(array.row_bytes for array in self.arrays if not array.is_ragged)

    @property
    def frame_rows(self) -> int:
        """The most rows of one frame; the bytes of ragged arrays may allow for fewer."""
        return min(MAX_FRAME_ROWS, rows_of(MAX_FRAME_ROW_BYTES, self.fixed_bytes))

    @property
    def table_schema(self) -> pa.Schema:
        """The schema of a part: the user's columns, then ``row`` and ``sample_index``."""
        return self.schema.append(pa.field(ROW, pa.int64(), nullable=False)).append(
            pa.field(SAMPLE_INDEX, pa.int64())
        )

    @property
    def wire_schema(self) -> pa.Schema:
        """The schema of a frame's payload: dictionaries decoded, ``sample_index`` last."""
        return without_dictionaries(self.schema).append(pa.field(SAMPLE_INDEX, pa.int64()))

    def encode(self) -> bytes:
        """Return the content of ``zarrow.json``."""
        return encode_document(
            {
                "zarrow_format": FORMAT_VERSION,
                "uuid": self.uuid,
                "segment_rows": self.segment_rows,
                "arrays": [array.to_json() for array in self.arrays],
                "columns": [
                    {"name": column.name, "type": str(column.type), "nullable": column.nullable}
                    for column in self.schema
                ],
                "arrow_schema": b64encode(self.schema.serialize().to_pybytes()).decode(),
                "keys": list(self.keys),
                "provenance": self.provenance,
                "expected_rows": self.expected_rows,
                **({"reader_features": self.reader_features} if self.reader_features else {}),
            }
        )

    @classmethod
    def decode(cls, data: bytes, path: str) -> StoreSpec:
        """Return the spec in the content of a ``zarrow.json``.

        Raises
        ------
        CorruptionError
            If the content is damaged.
        NotAStoreError
            If it is of a newer format, or not of a store.
        """
        body = decode_document(data, path)
        if body.get("zarrow_format") != FORMAT_VERSION:
            raise NotAStoreError(
                f"{path}: this zarrow reads format {FORMAT_VERSION}, got {body.get('zarrow_format')!r}: "
                "upgrade zarrow"
            )
        needed = body.get("reader_features") or []
        needed = needed if isinstance(needed, list) else [needed]
        if unknown := [one for one in needed if one not in READER_FEATURES]:
            raise NotAStoreError(f"{path}: this zarrow cannot read stores with {unknown}: upgrade zarrow")
        try:
            if not is_uuid(body["uuid"]) or not isinstance(body["provenance"], dict):
                raise ValueError("uuid must be 32 hexadecimal digits, provenance an object")
            return cls(
                uuid=body["uuid"],
                segment_rows=body["segment_rows"],
                schema=pa.ipc.read_schema(pa.py_buffer(b64decode(body["arrow_schema"]))),
                arrays=tuple(ArraySpec.from_json(array) for array in body["arrays"]),
                keys=tuple(body["keys"]),
                provenance=body["provenance"],
                writer_features=tuple(body.get("writer_features", ())),
                expected_rows=body.get("expected_rows"),
            )
        except (AttributeError, KeyError, OSError, TypeError, ValueError, pa.ArrowException) as error:
            raise CorruptionError(f"breaks the format: {error}", path=path) from error
