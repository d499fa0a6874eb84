"""Declaration — what a writer's caller declared, completed by the first batch or checked against a store.

What is left open is taken from the first batch: names, types and row shapes. Rows of a segment and of a chunk
follow from the size of a row. The schema is the one that Parquet gives back.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from zarrow._format import codecs
from zarrow._format.array_spec import (
    EXTENT_DTYPE,
    EXTENT_SHAPE,
    PLAIN,
    ArraySpec,
    default_chunk_rows,
    default_segment_rows,
    is_power_of_two,
    ragged_chunks,
)
from zarrow._format.arrow import as_arrow
from zarrow._format.documents import MAX_DOCUMENT_BYTES, decode_document, encode_document
from zarrow._format.given import TableLike, as_array, as_columns, dtype_name
from zarrow._format.layout import count_column, extent_name
from zarrow._format.quantized import QUANTIZED, quantize, scale_column
from zarrow._format.ragged import Ragged, RaggedArray, is_ragged
from zarrow._format.records import this_host
from zarrow._format.spec import StoreSpec, check_expected
from zarrow._format.types import check_type, holds_null_type, kept_type
from zarrow.errors import BatchError, CorruptionError, InvalidInputError, SchemaMismatchError, unknown_name

__all__ = ["Declaration", "kept_schema"]

_KEPT_METADATA = {b"long_name", b"standard_name", b"units"}
"""Of an Arrow field: the attributes of the CF conventions that say what the values are."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the caller declared; None where the first batch, or the store, decides.

    Parameters
    ----------
    arrays : mapping of str to (row shape, dtype) or RaggedArray, optional
        The arrays.
    schema : pyarrow.Schema, optional
        The columns.
    keys : sequence of str
        The key columns.
    segment_rows : int, optional
        Rows of a segment.
    codecs : object
        As `zarrow.Writer` takes it.
    provenance : mapping
        JSON values that describe where the rows come from; versions, host and time are added.
    expected_rows : int, optional
        Rows that the store is to have in the end.
    dtypes : mapping of str to str
        The arrays that are quantized, each with ``"int8"``.
    """

    arrays: Mapping[str, tuple[int | Sequence[int], str] | RaggedArray] | None
    schema: pa.Schema | None
    keys: Sequence[str]
    segment_rows: int | None
    codecs: Any
    provenance: Mapping[str, Any] = field(default_factory=dict)
    expected_rows: int | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_expected(self.expected_rows)
        for name, dtype in self.dtypes.items():
            if dtype_name(dtype) != QUANTIZED:
                raise InvalidInputError(
                    f"dtypes: {name!r} can only be quantized to {QUANTIZED}, got {dtype}: declare any other "
                    "dtype in arrays=, and cast the vectors to it"
                )
        codecs.check_names(self.codecs)
        try:
            decode_document(encode_document(dict(self.provenance)), "provenance")
        except (CorruptionError, RecursionError, TypeError, ValueError) as error:
            raise InvalidInputError(f"provenance must be JSON values: {error.__cause__ or error}") from error

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to the first batch."""
        chosen = self.codecs.values() if self._has_codecs_by_name() else [self.codecs]
        has_auto = any(isinstance(one, str) and one == codecs.AUTO for one in chosen)
        return self.arrays is not None and self.schema is not None and not has_auto

    def infer(self, columns: TableLike, arrays: Mapping[str, Any]) -> StoreSpec:
        """Return the spec of a new store.

        Parameters
        ----------
        columns : Table, RecordBatch, frame or mapping
            The first batch's columns.
        arrays : mapping of str to array, shapes (rows, *row_shape)
            Its arrays.

        Returns
        -------
        StoreSpec
            With a new uuid.
        """
        if self.keys and self.schema is None and columns is None and not arrays:
            raise InvalidInputError(
                f"a store without rows needs schema=, since there is no batch with the types of the keys "
                f"{list(self.keys)}: declare it"
            )
        if columns is not None or arrays or self.arrays is not None:  # not for a run without any row
            self._check_codecs(arrays if self.arrays is None else self.arrays)
        shapes = self._shapes()
        if shapes is None:
            shapes = {name: _shape_of(name, values) for name, values in arrays.items()}
        if columns is not None or shapes or self.arrays is not None:  # likewise
            self._check_dtypes(shapes)
        schema = _schema_of(columns) if self.schema is None else self.schema
        specs = [_array_of(name, facts, quantized=name in self.dtypes) for name, facts in shapes.items()]
        segment_rows = self.segment_rows
        if segment_rows is None:
            widest = (spec.row_bytes * _vectors_per_row(spec, arrays.get(spec.name)) for spec in specs)
            segment_rows = default_segment_rows(max(map(int, widest), default=None))
        if not is_power_of_two(segment_rows):
            raise InvalidInputError(f"segment_rows must be a power of two, got {segment_rows!r}")
        spec = StoreSpec(
            uuid=uuid.uuid4().hex,
            segment_rows=segment_rows,
            schema=kept_schema(_with_own_columns(schema, specs), self.keys),
            arrays=tuple(
                array
                for spec in specs
                for array in _with_chunks(
                    replace(spec, codecs=self._codecs_of(spec.name, spec.dtype, arrays.get(spec.name))),
                    segment_rows,
                )
            ),
            keys=tuple(self.keys),
            provenance=_of_this_process() | dict(self.provenance),
            expected_rows=self.expected_rows,
        )
        if (size_bytes := len(spec.encode())) > MAX_DOCUMENT_BYTES:
            raise InvalidInputError(
                f"columns, arrays and provenance must fit into {MAX_DOCUMENT_BYTES} bytes of JSON, got "
                f"{size_bytes}: shorten the provenance, or store fewer columns"
            )
        return spec

    def check(self, spec: StoreSpec) -> None:
        """Raise `SchemaMismatchError` if a store is not what was declared."""
        differences = []

        def compare(what: str, declared: Any, stored: Any) -> None:
            if declared != stored:
                differences.append(f"{what}: the store has {stored}, declared is {declared}")

        shapes = self._shapes()
        own = [one for one in spec.arrays if one.name not in spec.extents]
        quantized = dict.fromkeys(self.dtypes, f"quantized {QUANTIZED}")
        if shapes is not None:
            wanted = {
                name: facts
                if isinstance(facts, RaggedArray) or name not in quantized
                else (facts[0], quantized[name])
                for name, facts in shapes.items()
            }
            compare("arrays", wanted, {one.name: _facts_of(one) for one in own})
        else:
            stored = {one.name: f"{'quantized ' if one.scale else ''}{one.dtype}" for one in own}
            compare("dtypes", quantized, {name: stored.get(name) for name in quantized})
        if self.schema is not None:
            declared = kept_schema(_with_own_columns(self.schema, spec.arrays), spec.keys)
            compare("columns", list(map(str, declared)), list(map(str, spec.schema)))
        if self.keys:
            compare("keys", tuple(self.keys), spec.keys)
        if self.segment_rows is not None:
            compare("segment_rows", self.segment_rows, spec.segment_rows)
        if self.codecs is not None:
            self._check_codecs(array.name for array in own)
            for array in own:
                if (
                    self._chosen(array.name) != codecs.AUTO
                ):  # any codec of the store may have been chosen by it
                    declared = self._codecs_of(array.name, array.dtype)
                    compare(f"codecs of {array.name!r}", declared, array.codecs)
        if differences:
            raise SchemaMismatchError(
                "; ".join(differences) + ": declare what the store has (or nothing), or write another store"
            )

    def _shapes(self) -> dict[str, Facts] | None:
        if self.arrays is None:
            return None
        found: dict[str, Facts] = {}
        for name, declared in self.arrays.items():
            if isinstance(declared, RaggedArray):
                found[name] = declared
            else:
                shape, dtype = declared
                found[name] = ((shape,) if isinstance(shape, int) else tuple(shape), dtype_name(dtype))
        return found

    def _has_codecs_by_name(self) -> bool:
        return isinstance(self.codecs, Mapping) and "name" not in self.codecs  # else it is one codec itself

    def _chosen(self, array: str) -> Any:
        return self.codecs.get(array) if self._has_codecs_by_name() else self.codecs

    def _codecs_of(self, array: str, dtype: str, sample: Any = None) -> tuple[dict[str, Any], ...]:
        chosen = self._chosen(array)
        if isinstance(chosen, str) and chosen == codecs.AUTO:
            return PLAIN if sample is None else codecs.choose(self._as_stored(array, sample), dtype)
        return codecs.normalize(chosen, dtype)

    def _as_stored(self, array: str, sample: Any) -> npt.NDArray[Any]:
        """Return vectors of the first batch as they are stored."""
        if is_ragged(sample):
            return Ragged.of(sample).values
        rows = as_array(array, sample)
        return quantize(rows)[0] if array in self.dtypes and rows.dtype.kind == "f" else rows

    def _check_dtypes(self, shapes: Mapping[str, Facts]) -> None:
        """Raise if what is to be quantized is no array of floats, nor quantized already."""
        for name in self.dtypes:
            if name not in shapes:
                raise InvalidInputError(f"dtypes: there is no array {name!r}; the arrays are {list(shapes)}")
            facts = shapes[name]
            if isinstance(facts, RaggedArray):
                raise InvalidInputError(
                    f"dtypes: array {name!r} has any number of vectors per row, which cannot be quantized: "
                    "store it as float16"
                )
            if not facts[1].startswith(("float", "bfloat")) and facts[1] != QUANTIZED:
                raise InvalidInputError(
                    f"dtypes: array {name!r} must have a floating-point type to be quantized, got "
                    f"{facts[1]}: cast it, or store it as it is"
                )

    def _check_codecs(self, arrays: Iterable[str]) -> None:
        """Raise if codecs are given for an unknown array: a typo would store the array without them."""
        names = list(arrays)
        for name in self.codecs if self._has_codecs_by_name() else ():
            if name not in names:
                raise InvalidInputError(f"codecs: {unknown_name('array', name, names)}")


Facts = tuple[tuple[int, ...], str] | RaggedArray
"""The shape and dtype of an array's rows, or of a ragged array's vectors."""

_DEFAULT_VECTORS = 64
"""Vectors that a row of a ragged array is taken to have, where no batch tells."""


def _facts_of(array: ArraySpec) -> Facts:
    dtype = f"quantized {array.dtype}" if array.scale else array.dtype
    return RaggedArray(array.row_shape, dtype) if array.is_ragged else (array.row_shape, dtype)


def _shape_of(name: str, values: Any) -> Facts:
    """Return what the first batch says of an array."""
    if is_ragged(values):
        try:
            rows = Ragged.of(values)
        except (InvalidInputError, BatchError) as error:
            raise BatchError(f"array {name!r}: {error}") from error.__cause__
        return RaggedArray(rows.vector_shape, rows.dtype.name)
    array = as_array(name, values)
    return array.shape[1:], array.dtype.name


def _array_of(name: str, facts: Facts, *, quantized: bool) -> ArraySpec:
    if isinstance(facts, RaggedArray):
        return ArraySpec(
            name=name,
            row_shape=facts.vector_shape,
            dtype=facts.dtype,
            chunk_rows=1,
            segment_vectors=1,
            count=count_column(name),
        )
    shape, dtype = facts
    return ArraySpec(
        name=name,
        row_shape=shape,
        dtype=QUANTIZED if quantized else dtype,
        chunk_rows=1,
        scale=scale_column(name) if quantized else None,
    )


def _vectors_per_row(spec: ArraySpec, rows: Any) -> float:
    """Return how many vectors a row is likely to have: 1 of an array that is not ragged."""
    if not spec.is_ragged:
        return 1
    counts = None if rows is None else Ragged.of(rows, spec.dtype).counts
    return _DEFAULT_VECTORS if counts is None or not counts.size else max(float(counts.mean()), 1.0)


def _with_chunks(spec: ArraySpec, segment_rows: int) -> list[ArraySpec]:
    """Return an array with its chunks; with a ragged one, the array of its extents."""
    if not spec.is_ragged:
        return [replace(spec, chunk_rows=default_chunk_rows(spec.row_bytes, segment_rows))]
    chunk, vectors = ragged_chunks(spec.row_bytes)
    extent = ArraySpec(name=extent_name(spec.name), row_shape=EXTENT_SHAPE, dtype=EXTENT_DTYPE, chunk_rows=1)
    return [
        replace(spec, chunk_rows=chunk, segment_vectors=vectors),
        replace(extent, chunk_rows=default_chunk_rows(extent.row_bytes, segment_rows)),
    ]


def _schema_of(columns: TableLike) -> pa.Schema:
    """Return the schema of a batch's columns."""
    values, length = as_columns(columns, None)
    found = {name: as_arrow(column, None, length or 0) for name, column in values.items()}
    for name, column in found.items():
        if holds_null_type(column.type):
            got = "only nulls" if len(column) else "no values"
            if not pa.types.is_null(column.type):
                got = str(column.type)
            raise BatchError(
                f"column {name!r}: expected values that have a type, got {got}: declare schema=, or pass an "
                "Arrow array of the type"
            )
    said = columns.schema if isinstance(columns, pa.Table | pa.RecordBatch) else pa.schema([])
    metadata = {field.name: field.metadata for field in said}
    return pa.schema(pa.field(name, one.type, metadata=metadata.get(name)) for name, one in found.items())


def _with_own_columns(schema: pa.Schema, arrays: Iterable[ArraySpec]) -> pa.Schema:
    """Return a schema with the columns that quantized and ragged arrays have, unless it has them."""
    for array in arrays:
        for name, kind in ((array.scale, pa.float32()), (array.count, pa.int64())):
            if name is None:
                continue
            column, place = pa.field(name, kind, nullable=False), schema.get_field_index(name)
            if place < 0:
                schema = schema.append(column)
            elif schema.field(place).type == kind or (
                kind == pa.int64() and pa.types.is_integer(schema.field(place).type)
            ):
                schema = schema.set(place, column)
    return schema


def _of_this_process() -> dict[str, Any]:
    from importlib.metadata import version  # slow to import, and only needed to create a store

    return {
        "zarrow": version("zarrow"),
        "python": platform.python_version(),
        "host": this_host(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def kept_schema(schema: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Return the schema that columns are stored with; a key is never null, which Parquet records.

    Of a column's metadata, what says what its values are is kept.
    """
    for column in schema:
        check_type(column.name, column.type)
    return pa.schema(
        pa.field(
            column.name,
            kept_type(column.type),
            pa.types.is_null(column.type) or (column.nullable and column.name not in keys),
            {name: value for name, value in (column.metadata or {}).items() if name in _KEPT_METADATA},
        )
        for column in schema
    )
