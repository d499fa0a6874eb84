"""What is the store whose first batch this is?

A writer that was told neither schema nor arrays learns them here: names, types and shapes from the batch,
rows of a segment and of a chunk from how wide they are. The schema is the one that Parquet will give back.

Place: tier 2, used by `declaration`. Pure.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from zarrow._format.arrow import as_arrow, is_bytes, is_text
from zarrow._format.spec import (
    ArraySpec,
    StoreSpec,
    default_chunk_rows,
    default_segment_rows,
    is_power_of_two,
)
from zarrow._write.given import Columns, as_array, as_columns
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["infer_spec", "kept_schema"]


def infer_spec(
    columns: Columns,
    arrays: Mapping[str, Any],
    *,
    keys: Sequence[str] = (),
    segment_rows: int | None = None,
    codecs: Callable[[str, str], tuple[dict[str, Any], ...]],
    schema: pa.Schema | None = None,
    declared: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> StoreSpec:
    """Return what a store is, from its declaration and, for what that leaves open, its first batch.

    Parameters
    ----------
    columns : Table, RecordBatch, frame or mapping
        The first batch's columns.
    arrays : mapping of str to array, shapes (rows, *row_shape)
        Its arrays.
    keys : sequence of str
        The key columns.
    segment_rows : int, optional
        Rows of a segment; by default those of `layout.default_segment_rows`.
    codecs : callable of (array name, dtype) to tuple of dict
        Says how an array is encoded.
    schema : pyarrow.Schema, optional
        The columns, if declared.
    declared : mapping of str to (row shape, dtype), optional
        The arrays, if declared.
    provenance : mapping, optional
        Where the rows come from.

    Returns
    -------
    StoreSpec
        With a new uuid.
    """
    shapes = dict(declared) if declared is not None else {}
    if declared is None:
        for name, values in arrays.items():
            rows = as_array(name, values)
            shapes[name] = (rows.shape[1:], rows.dtype.name)
    if schema is None:
        values, length = as_columns(columns, None)
        found = {name: as_arrow(column, None, length or 0) for name, column in values.items()}
        schema = pa.schema([(name, values.type) for name, values in found.items()])
        for column in schema:
            if pa.types.is_null(column.type):
                got = "only nulls" if len(found[column.name]) else "no values"
                raise BatchError(
                    f"column {column.name!r}: expected values that tell its type, got {got}: "
                    "declare schema=, or hand over an Arrow array of the type"
                )
    widest = max(
        (
            ArraySpec(name=name, row_shape=shape, dtype=dtype, chunk_rows=1).row_bytes
            for name, (shape, dtype) in shapes.items()
        ),
        default=None,
    )
    rows_per_segment = default_segment_rows(widest) if segment_rows is None else segment_rows
    if not is_power_of_two(rows_per_segment):
        raise InvalidInputError(f"segment_rows must be a power of two, got {rows_per_segment!r}")
    specs = []
    for name, (shape, dtype) in shapes.items():
        spec = ArraySpec(name=name, row_shape=shape, dtype=dtype, chunk_rows=1)
        chunk_rows = default_chunk_rows(spec.row_bytes, rows_per_segment)
        specs.append(
            ArraySpec(
                name=name, row_shape=shape, dtype=dtype, chunk_rows=chunk_rows, codecs=codecs(name, dtype)
            )
        )
    return StoreSpec(
        uuid=uuids.uuid4().hex,
        segment_rows=rows_per_segment,
        schema=kept_schema(schema, keys),
        arrays=tuple(specs),
        keys=tuple(keys),
        provenance=dict(provenance or {}),
    )


def kept_schema(schema: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Return the schema that columns are kept with; a key is never null, which Parquet then knows too."""
    return pa.schema(
        pa.field(
            column.name,
            _kept(column.type),
            pa.types.is_null(column.type) or (column.nullable and column.name not in keys),
        )
        for column in schema
    )


def _kept(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column is kept as.

    Views are for memory, not for files; and a segment may see more categories than one batch has, so a
    dictionary's indices are int32, and in no order. Parquet gives back dictionaries of text and binary only.
    """
    if pa.types.is_dictionary(kind):
        value = _kept(kind.value_type)
        return pa.dictionary(pa.int32(), value) if is_text(value) or is_bytes(value) else value
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
