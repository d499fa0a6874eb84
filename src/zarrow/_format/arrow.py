"""Arrow helpers — numbers between numpy and Arrow without a copy or pandas, and predicates of types."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.errors import InvalidInputError

__all__ = [
    "Values",
    "are_null",
    "as_arrow",
    "bits_of",
    "bools_as_arrow",
    "computable_type",
    "decoded",
    "is_bytes",
    "is_compressed",
    "is_number",
    "is_text",
    "lists_as_array",
    "number_dtype",
    "numbers_as_arrow",
    "rebatched",
    "value_type",
    "with_children",
    "with_types",
    "without_dictionaries",
    "without_view",
]

Values = Any
"""A column: numbers as a numpy array, anything as an Arrow array, None if all values are null."""

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""Arrow's names of types that numpy calls otherwise."""


def numbers_as_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers as an Arrow array: `pyarrow.array` without its import of pandas."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def bools_as_arrow(values: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """Return truth values as an Arrow array.

    >>> bools_as_arrow(np.array([True, False])).to_pylist()
    [True, False]
    """
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits_of(values)])


def bits_of(values: npt.NDArray[np.bool_]) -> pa.Buffer:
    """Return truth values as Arrow keeps them, also those of what is not null."""
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def are_null(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which values are null.

    >>> are_null(pa.array([None, 1, 2]).slice(0, 2))
    array([ True, False])
    """
    valid = values.buffers()[0]
    if not values.null_count or valid is None:
        return np.zeros(len(values), np.bool_)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little").astype(np.bool_)
    found: npt.NDArray[np.bool_] = ~bits[values.offset : values.offset + len(values)]
    return found


def number_dtype(kind: pa.DataType) -> np.dtype[Any]:
    """Return the numpy dtype of an Arrow type of integers, floats or booleans.

    `pyarrow.DataType.to_pandas_dtype` needs pandas up to pyarrow 25.

    >>> number_dtype(pa.float16()), number_dtype(pa.uint8()), number_dtype(pa.bool_())
    (dtype('float16'), dtype('uint8'), dtype('bool'))
    """
    return np.dtype(_FLOATS.get(str(kind), str(kind)))


def lists_as_array(values: pa.Array, row_shape: Sequence[int] | None = None) -> npt.NDArray[Any]:
    """Return lists of lists of numbers as an array of as many axes.

    Parameters
    ----------
    values : pyarrow.Array
        Lists of one length at each depth, or tensors of a fixed shape.
    row_shape : sequence of int, optional
        These lengths; by default those of the first lists, and 0 where there are none.

    Returns
    -------
    array, shape (rows, *row_shape)
        Of the numbers' own dtype.

    Raises
    ------
    InvalidInputError
        If a list or a number is null, lists differ in length, or they hold no numbers.
    """
    if isinstance(kind := values.type, pa.FixedShapeTensorType):
        flat = lists_as_array(values.storage).reshape(-1, *kind.shape)
        return flat.transpose(0, *(1 + axis for axis in kind.permutation or range(len(kind.shape))))
    shape, lengths = [len(values)], iter(row_shape or ())
    while pa.types.is_nested(values.type) or isinstance(values.type, pa.BaseExtensionType):
        if isinstance(values.type, pa.BaseExtensionType):
            values = values.storage
            continue
        if values.null_count:
            raise InvalidInputError("a vector is null, and vectors never are: leave such rows out")
        if pa.types.is_fixed_size_list(values.type):
            found = np.full(1, values.type.list_size)
        elif hasattr(values, "value_lengths") and not pa.types.is_map(values.type):
            found = np.asarray(values.value_lengths())
        else:
            break
        length = next(lengths, int(found[0]) if len(found) else 0)
        if (found != length).any():
            raise InvalidInputError(
                f"got lists of {length} and of {found[found != length][0]} values, but vectors have equal "
                "length: pad them"
            )
        shape.append(length)
        values = values.flatten()
    if values.null_count:
        raise InvalidInputError("a value within a vector is null: fill it")
    if not is_number(values.type):
        raise InvalidInputError(f"vectors hold numbers, got {values.type}")
    numbers: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(shape)


def as_arrow(values: Values, kind: pa.DataType | None, rows: int) -> pa.Array:
    """Return a column as an Arrow array."""
    if values is None:
        return pa.nulls(rows, kind)
    return numbers_as_arrow(values) if isinstance(values, np.ndarray) else values


def is_compressed(metadata: pa.Buffer) -> bool:
    """Tell whether an Arrow message, whose checksum matches, has compressed buffers.

    They may inflate to any size.

    Field 3 of the table ``RecordBatch``, which is field 2 of the table ``Message``
    (https://github.com/apache/arrow/blob/main/format/Message.fbs).
    """
    data = memoryview(metadata)

    def field(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        place = 4 + 2 * number
        if place >= struct.unpack_from("<H", data, vtable)[0]:
            return 0
        offset = int(struct.unpack_from("<H", data, vtable + place)[0])
        return table + offset if offset else 0

    def follow(position: int) -> int:
        return position + int(struct.unpack_from("<I", data, position)[0])

    return bool(field(follow(field(follow(0), 2)), 3))


def is_number(kind: pa.DataType) -> bool:
    """Tell whether a type's values are integers, floats or booleans."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type's values are strings, in whatever representation but a dictionary.

    >>> is_text(pa.large_string()), is_text(pa.binary())
    (True, False)
    """
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Tell whether a type's values are bytes of any length, in whatever representation but a dictionary."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def without_view(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same values that pyarrow can filter and take, which it cannot with views."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values; any other type as it is.

    >>> value_type(pa.dictionary(pa.int32(), pa.string())), value_type(pa.int8())
    (DataType(string), DataType(int8))
    """
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def with_children(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a list, struct or map type with the types of its children changed; any other as it is."""

    def changed(field: pa.Field) -> pa.Field:
        return field.with_type(change(field.type))

    if pa.types.is_list(kind):
        return pa.list_(changed(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(changed(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(changed(kind.value_field), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([changed(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(changed(kind.key_field), changed(kind.item_field), kind.keys_sorted)
    return kind


def computable_type(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same values that engines compute with: Arrow and DuckDB cannot with float16.

    >>> computable_type(pa.list_(pa.float16())), computable_type(pa.int8())
    (ListType(list<item: float>), DataType(int8))
    """
    return pa.float32() if pa.types.is_float16(kind) else with_children(kind, computable_type)


def with_types(
    columns: pa.Table | pa.RecordBatch | pa.Schema, change: Callable[[pa.DataType], pa.DataType]
) -> Any:
    """Return columns, or a schema of them, with their types changed; the others are not touched.

    >>> with_types(pa.schema({"half": pa.float16(), "n": pa.int8()}), computable_type).types
    [DataType(float), DataType(int8)]
    """
    schema = columns if isinstance(columns, pa.Schema) else columns.schema
    changed = pa.schema([field.with_type(change(field.type)) for field in schema])
    if isinstance(columns, pa.Schema):
        return changed
    arrays = [
        column
        if column.type == field.type
        else column.cast(field.type)  # Arrow cannot cast list<null> to itself
        for column, field in zip(columns.columns, changed, strict=True)
    ]
    return type(columns).from_arrays(arrays, schema=changed)


def without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """Return a schema of the same columns, their dictionaries decoded."""
    return pa.schema([column.with_type(value_type(column.type)) for column in schema])


def decoded(column: pa.Array) -> pa.Array:
    """Return a column as its values, not as a dictionary of them."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def rebatched(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of as many rows each, the last one shorter.

    >>> [batch.num_rows for batch in rebatched([pa.record_batch({"x": range(5)})] * 2, 4)]
    [4, 4, 2]
    """
    pending: list[pa.RecordBatch] = []
    have = 0
    for batch in batches:
        start = 0
        while have + batch.num_rows - start >= rows:
            stop = start + rows - have
            yield _joined([*pending, batch.slice(start, stop - start)])
            pending, have, start = [], 0, stop
        if start < batch.num_rows:
            pending.append(batch.slice(start))
            have += batch.num_rows - start
    if pending:
        yield _joined(pending)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
