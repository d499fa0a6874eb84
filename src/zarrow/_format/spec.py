"""Store specification — what a store is, as ``zarrow.json`` says it.

Written once, with the first batch, and never changed. Validated on construction, so that every specification
keeps the rules and the limits of `layout`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from zarrow._format.array_spec import (
    EXTENT_DTYPE,
    EXTENT_SHAPE,
    QUANTIZED_FEATURE,
    RAGGED,
    READER_FEATURES,
    ArraySpec,
    is_power_of_two,
    rows_of,
)
from zarrow._format.arrow import without_dictionaries
from zarrow._format.documents import decode_document, encode_document
from zarrow._format.layout import (
    FORMAT_VERSION,
    MAX_CHUNKS,
    MAX_FRAME_ROW_BYTES,
    MAX_FRAME_ROWS,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENT_ROWS,
    RESERVED_COLUMNS,
    ROW,
    SAMPLE_INDEX,
    extent_name,
    is_uuid,
)
from zarrow.errors import CorruptionError, InvalidInputError, NotAStoreError

__all__ = ["StoreSpec", "rows_of_expected", "safe_rows"]


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


def safe_rows(rows: int, expected: int | None) -> str:
    """Return the beginning of a sentence on an incomplete store.

    >>> safe_rows(4480, 10037), safe_rows(1, None)
    ('4,480 of 10,037 rows are safe', '1 row is safe')
    """
    found = rows_of_expected(rows, expected)
    return f"{found} {'is' if found == '1 row' else 'are'} safe"


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
                    "rename it, or leave it out, or pass the dataset's index as sample_index="
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
                what = "an array, not a column: give its values as (rows,), not (rows, 1)"
                what = what if key in names else "not a column"
                raise InvalidInputError(f"key {key!r} is {what}; the columns are {columns}")
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
