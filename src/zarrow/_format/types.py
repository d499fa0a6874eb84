"""Column types — the Arrow types that a column may have, and how each of them is kept.

Parquet lacks some of Arrow's types and gives others back changed. So that what a reader gets is what the
store says, a column has a type that survives Parquet (`kept_type`), which holds the same values as the type
that the caller had. ``FORMAT.md``, section 5.1, has the table; `represent` brings a batch's column into its
kept type, or raises where a value would change.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from zarrow._format.arrow import is_bytes, is_text, value_type, with_children
from zarrow.errors import InvalidInputError

__all__ = ["check_type", "holds_null_type", "is_representable", "kept_type", "represent", "row_of_null"]

_Test = Callable[[pa.DataType], bool]


def _has(kind: pa.DataType, *names: str) -> bool:
    """Tell whether a type passes one of pyarrow's tests; the oldest pyarrow lacks some of them."""
    return any(getattr(pa.types, f"is_{name}", lambda _: False)(kind) for name in names)


def _children(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]


def kept_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column of a type is kept as.

    Views are for memory, not for files. Parquet has neither times in seconds, nor dates in milliseconds, nor
    decimals of 32 and 64 bits. A segment may see more categories than one batch has, so the indices of a
    dictionary are int32, in no order; Parquet gives back dictionaries of text and bytes only, not of large
    ones, and only as whole columns.

    >>> kept_type(pa.timestamp("s", "UTC")), kept_type(pa.list_(pa.string_view())).value_type
    (TimestampType(timestamp[ms, tz=UTC]), DataType(string))
    """
    if pa.types.is_dictionary(kind):
        value = kept_type(kind.value_type)
        if is_text(value) or is_bytes(value):
            value = pa.dictionary(pa.int32(), pa.string() if is_text(value) else pa.binary())
        return value
    return _kept(kind)


def _kept(kind: pa.DataType) -> pa.DataType:
    """Return the kept type of a value that is not a whole column."""
    if pa.types.is_dictionary(kind) or _has(kind, "run_end_encoded"):
        return _kept(kind.value_type)
    if _has(kind, "string_view"):
        return pa.string()
    if _has(kind, "binary_view"):
        return pa.binary()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("ms", kind.tz) if kind.unit == "s" else kind
    if pa.types.is_time32(kind):
        return pa.time32("ms")
    if pa.types.is_date64(kind):
        return pa.date32()
    if _has(kind, "decimal32", "decimal64"):
        return pa.decimal128(kind.precision, kind.scale)
    if _has(kind, "list_view"):
        kind = pa.list_(kind.value_field)
    if _has(kind, "large_list_view"):
        kind = pa.large_list(kind.value_field)
    return with_children(kind, _kept)


def check_type(name: str, kind: pa.DataType) -> None:
    """Raise `InvalidInputError` if a column cannot have a type, however it is kept."""
    if isinstance(kind, pa.BaseExtensionType) and not kind.extension_name.startswith("arrow."):
        raise InvalidInputError(
            f"column {name!r}: the extension type {kind} is known to this process only: cast the column to "
            f"{kind.storage_type}"
        )
    if _has(kind, "union", "interval"):
        raise InvalidInputError(f"column {name!r}: Parquet cannot hold {kind}: cast it")
    if pa.types.is_struct(kind):
        names = [field.name for field in _children(kind)]
        if not names or len(set(names)) < len(names):
            raise InvalidInputError(
                f"column {name!r}: a struct must have fields of different names, got {kind}: cast it"
            )
    for field in _children(kind):
        check_type(name, field.type)


def holds_null_type(kind: pa.DataType) -> bool:
    """Tell whether a type does not say what it holds: that of nulls only, or of empty lists only."""
    if pa.types.is_null(kind):
        return True
    if pa.types.is_dictionary(kind):
        return holds_null_type(kind.value_type)
    return any(holds_null_type(field.type) for field in _children(kind))


def is_representable(have: pa.DataType, wanted: pa.DataType) -> bool:
    """Tell whether values of one type are values of another, kept one, in another representation."""
    have = _kept(have)
    wanted = value_type(wanted)
    if have.equals(wanted) or pa.types.is_null(have):
        return True
    for family in _FAMILIES:
        if _has(have, *family) and _has(wanted, *family):
            return True
    if _has(have, *_LISTS) and _has(wanted, *_LISTS):
        if (
            pa.types.is_fixed_size_list(wanted)
            and have != wanted
            and not (pa.types.is_fixed_size_list(have) and have.list_size == wanted.list_size)
        ):
            return False
        return is_representable(have.value_type, wanted.value_type)
    if pa.types.is_struct(have) and pa.types.is_struct(wanted):
        names = [field.name for field in _children(wanted)]
        return sorted(names) == sorted(field.name for field in _children(have)) and all(
            is_representable(have.field(name).type, wanted.field(name).type) for name in names
        )
    if pa.types.is_map(have) and pa.types.is_map(wanted):
        return is_representable(have.key_type, wanted.key_type) and is_representable(
            have.item_type, wanted.item_type
        )
    return False


_FAMILIES = (("string", "large_string"), ("binary", "large_binary"))
_LISTS = ("list", "large_list", "fixed_size_list")


def represent(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Return a column in its kept type, decoded; `is_representable` was asked before.

    Raises
    ------
    pyarrow.ArrowException
        If a value has no equal in the kept type, such as a date64 within a day.
    """
    values = _plain(values)
    if pa.types.is_dictionary(wanted):
        wanted = wanted.value_type
    return values if values.type.equals(wanted) else values.cast(wanted)


def _plain(values: pa.Array) -> pa.Array:
    """Return an array without dictionaries, runs and views, which Arrow's casts leave out or get wrong."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        found = _plain(values.dictionary)
        if not len(found):  # within a null, Arrow leaves indices that point to nothing
            return pa.nulls(len(values), found.type)
        return found.take(values.indices)
    if _has(kind, "run_end_encoded"):
        import pyarrow.compute as pc

        return _plain(pc.run_end_decode(values))
    if _has(kind, "string_view", "binary_view"):
        return values.cast(_kept(kind))
    if _has(kind, "list_view", "large_list_view") or (
        _has(kind, *_LISTS, "struct", "map") and _needs_work(kind)
    ):
        return _rebuilt(values)
    return values


def _needs_work(kind: pa.DataType) -> bool:
    odd = _has(
        kind, "dictionary", "run_end_encoded", "list_view", "large_list_view", "string_view", "binary_view"
    )
    return odd or any(_needs_work(field.type) for field in _children(kind))


def _rebuilt(values: pa.Array) -> pa.Array:
    """Return a nested array with its children plain."""
    kind, mask = values.type, values.is_null() if values.null_count else None
    if pa.types.is_struct(kind):
        masked = values.flatten()  # what lies under a null may be anything, such as an index out of bounds
        children = [
            _plain(masked[index] if field.nullable else values.field(index))
            for index, field in enumerate(_children(kind))
        ]
        fields = [field.with_type(child.type) for field, child in zip(_children(kind), children, strict=True)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=mask)
    if pa.types.is_map(kind):
        ends = pa.array(np.asarray(values.offsets))
        return pa.MapArray.from_arrays(ends, _plain(values.keys), _plain(values.items), mask=mask)
    child = _plain(values.flatten())
    if pa.types.is_fixed_size_list(kind):
        if mask is not None:  # `flatten` leaves the values of nulls out
            child = _plain(values.values.slice(values.offset * kind.list_size, len(values) * kind.list_size))
        field = kind.value_field.with_type(child.type)
        return pa.FixedSizeListArray.from_arrays(child, type=pa.list_(field, kind.list_size), mask=mask)
    sizes = values.value_lengths().fill_null(0) if hasattr(values, "value_lengths") else values.sizes
    large = _has(kind, "large_list", "large_list_view")
    offsets = np.zeros(len(values) + 1, np.int64 if large else np.int32)
    np.cumsum(np.asarray(sizes), out=offsets[1:])
    field = kind.value_field.with_type(child.type)
    made = pa.LargeListArray if large else pa.ListArray
    of = pa.large_list(field) if large else pa.list_(field)
    return made.from_arrays(pa.array(offsets), child, type=of, mask=mask)


def row_of_null(values: pa.Array, field: pa.Field) -> int | None:
    """Return the first row in which a field that is not nullable is null, at any depth; None if none is.

    Arrow itself does not look, not even in a full validation.
    """
    if not _has_null(values, field):
        return None
    return next(row for row in range(len(values)) if _has_null(values.slice(row, 1), field))


def _has_null(values: pa.Array, field: pa.Field) -> bool:
    if not field.nullable and values.null_count:
        return True
    if not _has_required(field.type):
        return False
    if pa.types.is_map(field.type):
        items = (item for one in values.to_pylist() if one is not None for _, item in one)
        return _has_null(pa.array(list(items), field.type.item_type), field.type.item_field)
    if pa.types.is_struct(field.type):
        there = values.filter(values.is_valid())
        return any(_has_null(there.field(i), child) for i, child in enumerate(_children(field.type)))
    return _has_null(values.flatten(), field.type.value_field)


def _has_required(kind: pa.DataType) -> bool:
    """Tell whether there is a field within a type that is not nullable; the keys of a map never are null."""
    if pa.types.is_map(kind):
        return not kind.item_field.nullable or _has_required(kind.item_type)
    return any(not field.nullable or _has_required(field.type) for field in _children(kind))
