"""Lists of vectors — rows of any number of vectors, in every form that callers have, as values and counts.

Values are one array of all vectors, shape ``(vectors, *vector_shape)``; counts are int64, one per row. Arrow
lists come as they are, Polars and pandas series and awkward arrays through Arrow; jagged tensors, padded
arrays with a mask or lengths, and sequences of arrays directly. Where the values lie together in memory they
are not copied. An error names the row.

Neither torch nor awkward is imported here, except to make what is theirs: what they made is recognised by its
attributes, and of tensors on a device only the valid vectors are copied to the host.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import lists_as_array, numbers_as_arrow
from zarrow._format.given import is_arrow, numpy_values, to_host
from zarrow.errors import BatchError, InvalidInputError, MissingExtraError

__all__ = [
    "as_vectors",
    "count_per_row",
    "from_any",
    "from_padded",
    "from_sequence",
    "has_lengths",
    "pick_valid",
    "to_arrow",
    "to_awkward",
    "to_torch",
]

Flat = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""Values, shape (vectors, *vector_shape), and counts, shape (rows,)."""

MAX_LIST_OFFSET = 2**31 - 1
"""The most vectors that an Arrow list array refers to; beyond it, a large one is needed."""


# In


def as_vectors(values: Any, dtype: str = "") -> npt.NDArray[Any]:
    """Return vectors, shape (vectors, *vector_shape), as a numpy array of numbers."""
    array = numpy_values(values, dtype)
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise InvalidInputError(
            "vectors must have shape (vectors, *vector_shape) with at least one axis for each, "
            f"got {array.shape}"
        )
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(f"vectors must be numbers, got {array.dtype}")
    return array


def count_per_row(given: Any, what: str, limit: int, limit_is: str) -> npt.NDArray[np.int64]:
    """Return numbers of vectors, one per row, each from 0 to `limit`."""
    if is_arrow(given):
        chunked = given if isinstance(given, pa.Array) else pa.chunked_array(given)
        if chunked.null_count:
            row = chunked.is_null().index(True).as_py()
            raise InvalidInputError(f"{what} must be integers, got null in row {row}")
        array = chunked.to_numpy() if isinstance(chunked, pa.ChunkedArray) else np.asarray(chunked)
    else:
        array = np.asarray(to_host(given))
    if array.ndim != 1:
        raise InvalidInputError(f"{what} must be one integer per row, got shape {array.shape}")
    if not array.size:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        row = next((row for row, one in enumerate(array.tolist()) if not _is_integer(one)), 0)
        raise InvalidInputError(f"{what} must be integers, got {array.dtype}: {array[row]} in row {row}")
    bad = np.flatnonzero((array < 0) | (array > limit))
    if bad.size:
        raise InvalidInputError(
            f"{what} must lie in 0..{limit} ({limit_is}), got {array[bad[0]]} in row {bad[0]}"
        )
    return array.astype(np.int64, copy=False)


def _is_integer(value: object) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def from_padded(padded: Any, mask: Any, lengths: Any) -> Flat:
    """Return the valid vectors of a padded array, in order; only they leave a device."""
    flat, counts = pick_valid(padded, mask, lengths)
    return as_vectors(flat), counts


def pick_valid(padded: Any, mask: Any = None, lengths: Any = None) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the valid vectors of a padded array, in order, on its device, and how many each row has."""
    if (mask is None) == (lengths is None):
        raise InvalidInputError("a padded array needs either mask= or lengths=, to tell vectors from padding")
    if not hasattr(padded, "shape"):
        padded = np.asarray(padded)
    if padded.ndim < 3:
        raise InvalidInputError(
            f"a padded array must have shape (rows, longest, *vector_shape), got {tuple(padded.shape)}"
        )
    rows, longest, *vector_shape = map(int, padded.shape)
    if mask is None:
        counts = count_per_row(lengths, "lengths", longest, "the second axis of the padded array")
        if len(counts) != rows:
            raise InvalidInputError(f"lengths must be one per row of the {rows}, got {len(counts)}")
        valid = np.arange(longest) < counts[:, None]
    else:
        valid = _valid(mask, (rows, longest))
        counts = valid.sum(axis=1, dtype=np.int64)
    picked: Any = np.flatnonzero(valid)
    flat = padded.reshape(rows * longest, *vector_shape)
    if hasattr(flat, "index_select"):  # a tensor
        picked = _module("torch", "predict").from_numpy(picked).to(flat.device)
        return flat.detach().index_select(0, picked), counts
    return np.take(flat, picked, axis=0), counts


def _valid(given: Any, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask of booleans, or of 0 and 1, as booleans."""
    mask = np.asarray(to_host(given))
    if mask.shape != shape:
        raise InvalidInputError(f"the mask must have shape {shape}, as the padded array, got {mask.shape}")
    if mask.dtype == np.bool_:
        return mask
    valid = mask == 1
    bad = np.argwhere(~valid & (mask != 0))
    if len(bad):
        raise InvalidInputError(f"a mask has 0 and 1 only, got {mask[tuple(bad[0])]} in row {bad[0][0]}")
    return np.asarray(valid)


def from_any(given: Any, dtype: str = "") -> Flat:
    """Return rows of vectors in any form that says how many vectors each row has."""
    if getattr(given, "is_nested", False):
        return _from_nested(given, dtype)
    if type(given).__module__.partition(".")[0] == "awkward":
        given = sys.modules["awkward"].to_arrow(given, extensionarray=False)
    if isinstance(given, list | tuple) or getattr(given, "dtype", None) == np.dtype(object):
        return from_sequence(list(given), dtype)
    if is_arrow(given) and not hasattr(given, "columns"):
        return _from_arrow(given)
    shape = tuple(getattr(given, "shape", ()))
    raise InvalidInputError(
        "rows of vectors must be a Ragged, a list of arrays, a jagged tensor, or an awkward or Arrow array "
        f"of lists, got {type(given).__name__}{f' of shape {shape}' if shape else ''}: "
        "Ragged.from_padded takes a padded array with its mask or lengths"
    )


def has_lengths(given: Any) -> bool:
    """Tell whether values have a form for rows of any number of vectors, and no array has."""
    if getattr(given, "is_nested", False):
        return True
    if type(given).__module__.partition(".")[0] == "awkward":
        return "var" in str(given.type)
    if isinstance(given, list | tuple) or getattr(given, "dtype", None) == np.dtype(object):
        return len({len(one) for one in given if getattr(one, "ndim", 0) > 1}) > 1
    if not is_arrow(given) or hasattr(given, "columns"):
        return False
    if str(getattr(given, "dtype", "")) == "Object":
        return False
    kind = given.type if isinstance(given, pa.Array | pa.ChunkedArray) else pa.chunked_array(given).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and is_vector(kind.value_type))


def is_vector(kind: pa.DataType) -> bool:
    """Tell whether values of a type are vectors of one shape."""
    return pa.types.is_fixed_size_list(kind) or isinstance(kind, pa.FixedShapeTensorType)


def from_sequence(rows: Sequence[Any], dtype: str = "") -> Flat:
    """Return arrays of shapes (count, *vector_shape), one per row."""
    arrays = []
    for row, one in enumerate(rows):
        try:
            arrays.append(numpy_values(one, dtype))
        except BatchError as error:
            raise InvalidInputError(f"row {row}: {error}") from error.__cause__
    first = next((row for row, array in enumerate(arrays) if array.ndim > 1), None)
    if first is None:
        got = f"shape {arrays[0].shape} in row 0" if arrays else "no rows"
        raise InvalidInputError(
            f"rows must be arrays of shape (count, *vector_shape), got {got}: "
            "rows without any vector are Ragged(np.empty((0, width), dtype), counts)"
        )
    shape, kind = arrays[first].shape[1:], arrays[first].dtype
    for row, array in enumerate(arrays):
        if array.shape == (0,):  # [], which has no width
            arrays[row] = arrays[first][:0]
        elif array.ndim < 2 or array.shape[1:] != shape:
            expected = f"(count, {', '.join(map(str, shape))})"
            raise InvalidInputError(
                f"row {row}: expected shape {expected}, as row {first} has, got {array.shape}"
            )
        elif array.dtype != kind:
            raise InvalidInputError(
                f"row {row}: expected dtype {kind}, as row {first} has, got {array.dtype}: cast it"
            )
    return as_vectors(np.concatenate(arrays)), np.array([len(array) for array in arrays], np.int64)


def _from_nested(tensor: Any, dtype: str) -> Flat:
    jagged = str(tensor.layout) == "torch.jagged"
    if not jagged or tensor.lengths() is not None or getattr(tensor, "_ragged_idx", 1) != 1:
        return from_sequence(list(tensor.unbind()), dtype)  # with gaps, or ragged along another axis
    offsets = to_host(tensor.offsets()).astype(np.int64)
    return as_vectors(tensor.values()[offsets[0] : offsets[-1]], dtype), np.diff(offsets)


def _from_arrow(given: Any) -> Flat:
    if str(getattr(given, "dtype", "")) == "Object":  # of Polars, which hands out addresses
        raise InvalidInputError("rows of vectors must be lists, got Python objects")
    chunked = pa.chunked_array([given] if isinstance(given, pa.Array) else given)
    counts, pieces, rows = [], [], 0
    shape: tuple[int, ...] | None = None
    for chunk in chunked.chunks or [pa.array([], chunked.type)]:
        while isinstance(chunk.type, pa.BaseExtensionType):
            chunk = chunk.storage
        if pa.types.is_fixed_size_list(chunk.type) or not hasattr(chunk, "value_lengths"):
            raise InvalidInputError(f"rows of vectors must be lists of lists of numbers, got {chunked.type}")
        if chunk.null_count:
            row = rows + chunk.is_null().index(True).as_py()
            raise InvalidInputError(f"row {row} is null: a row without vectors is an empty list")
        counts.append(np.asarray(chunk.value_lengths()).astype(np.int64))
        pieces.append(_numbers(chunk.flatten(), counts[-1], rows, shape))
        if len(pieces[-1]):
            shape = pieces[-1].shape[1:]
        rows += len(chunk)
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    if 0 in pieces[0].shape[1:]:
        raise InvalidInputError(
            f"rows without any vector need lists of a fixed size, which is their width, got {chunked.type}: "
            "cast it"
        )
    return as_vectors(pieces[0] if len(pieces) == 1 else np.concatenate(pieces)), np.concatenate(counts)


def _numbers(
    flat: pa.Array, counts: npt.NDArray[np.int64], first_row: int, shape: tuple[int, ...] | None
) -> npt.NDArray[Any]:
    """Return the vectors of rows as an array; an error names the first row that breaks a rule."""
    try:
        return lists_as_array(flat, shape)
    except InvalidInputError as error:
        start = 0
        for row, count in enumerate(counts.tolist()):
            try:
                found = lists_as_array(flat.slice(start, count), shape)
            except InvalidInputError as of_row:
                raise InvalidInputError(f"row {first_row + row}: {of_row}") from error
            shape = found.shape[1:] if count else shape
            start += count
        raise


# Out


def to_arrow(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.Array:
    """Return rows as Arrow lists of fixed-size lists, without a copy of native numbers."""
    flat = np.ascontiguousarray(values).reshape(-1)
    vectors = pa.array(flat) if flat.dtype == np.bool_ else numbers_as_arrow(flat)
    for axis in reversed(values.shape[1:]):
        vectors = pa.FixedSizeListArray.from_arrays(vectors, axis)
    if offsets[-1] > MAX_LIST_OFFSET:
        return pa.LargeListArray.from_arrays(pa.array(offsets), vectors)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), vectors)


def to_awkward(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Any:
    """Return rows as an awkward array, without a copy."""
    return _module("awkward", "").unflatten(values, counts)


def to_torch(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> Any:
    """Return rows as a jagged nested tensor; memory that must not be written to is copied."""
    torch = _module("torch", "predict")
    values = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
    return torch.nested.nested_tensor_from_jagged(torch.from_numpy(values), torch.from_numpy(offsets.copy()))


def _module(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        remedy = f"pip install 'zarrow[{extra}]'" if extra else f"pip install {name}"
        raise MissingExtraError(f"this needs {name}: {remedy}", name=name) from error
