"""Given data — what a caller hands over, in the two forms that the rest of the library has.

Numbers are numpy arrays, anything else is Arrow: columns come from tables, Polars and pandas frames,
mappings, tensors and plain sequences (`sequences`); vectors from whatever numpy takes for an array, and from
lists in Arrow. Types stay as they are, but for bfloat16, which numpy lacks: it is widened to float32, which
holds all of its values. What would not stay the same is refused: masked vectors, Python objects, names that
are not text.

torch is not imported: a tensor is recognised by its methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import sequences
from zarrow._format.arrow import lists_as_array
from zarrow.errors import BatchError, InvalidInputError

__all__ = [
    "TableLike",
    "as_array",
    "as_column",
    "as_columns",
    "as_index",
    "as_integers",
    "as_table",
    "dtype_name",
    "is_arrow",
    "names_in",
    "numpy_values",
    "to_host",
]

TableLike = Any
"""A pyarrow Table or RecordBatch, anything with ``__arrow_c_stream__`` (polars, pandas), or a mapping of
names to 1-D arrays, tensors or sequences."""

_NUMBERS = frozenset("bBhHiIlLqQefd")
"""The characters of numpy's types of numbers that Arrow has."""


def names_in(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return names that were given as a sequence, or one as it is.

    >>> names_in("id"), names_in(["id", "query"])
    (('id',), ('id', 'query'))
    """
    return (given,) if isinstance(given, str) else tuple(given)


def to_host(values: Any) -> Any:
    """Return a tensor, or another library's array, as a numpy array; leave everything else alone.

    A bfloat16 tensor is widened to float32, which holds all its values.

    Parameters
    ----------
    values : torch.Tensor, jax.Array or anything
        On any device, requiring grad or not.

    Returns
    -------
    array or anything
        On the host; shares memory with a tensor that was there.
    """
    if not (hasattr(values, "detach") and hasattr(values, "cpu")):
        is_foreign = hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray | np.generic)
        if is_foreign and hasattr(values, "__array__") and not is_arrow(values):
            return np.asarray(values)  # JAX, for example: a list of its numbers would be no column
        return values
    tensor = values.detach().cpu()
    if hasattr(tensor, "resolve_neg"):  # PyTorch may note a change of sign instead of making it
        tensor = tensor.resolve_conj().resolve_neg()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def as_array(name: str, values: Any, dtype: str = "") -> npt.NDArray[Any]:
    """Return vectors as a numpy array; bfloat16 as float32, or as float16 where `dtype` says so.

    Raises
    ------
    BatchError
        If they are no array, or a value is masked or null; it names the array.
    """
    try:
        return numpy_values(values, dtype)
    except BatchError as error:
        raise BatchError(f"array {name!r}: {error}") from error.__cause__


def numpy_values(values: Any, dtype: str = "") -> npt.NDArray[Any]:
    """Return what `as_array` does; its errors name no array."""
    try:
        array = values if type(values) is np.ndarray else _vectors(values)
    except (TypeError, ValueError, RuntimeError, InvalidInputError, pa.ArrowException) as error:
        pair = isinstance(values, tuple) and len(values) == 2
        hint = "; got a pair: give its second part, if that is the array" if pair else ""
        raise BatchError(f"must be an array: {error}{hint}") from error
    if _is_bfloat16(array.dtype):
        array = array.astype(np.float32)
    if dtype == "float16" and str(getattr(values, "dtype", "")) in ("torch.bfloat16", "bfloat16"):
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float16)
        if not np.array_equal(np.isinf(narrow), np.isinf(array)):
            raise BatchError(
                "expected dtype float16, got bfloat16 values beyond its range "
                f"(up to {np.abs(array[np.isfinite(array)]).max():.3g}): declare float32"
            )
        return narrow
    return array


def _vectors(values: Any) -> npt.NDArray[Any]:
    """Return what is not a plain numpy array as one."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise ValueError(
                "a value is masked, and vectors are never null: fill it, as .filled(np.nan) does"
            )
        return np.asarray(values.data)
    if isinstance(values, list | tuple) and values and hasattr(values[0], "detach"):
        return np.stack([to_host(one) for one in values])
    if is_arrow(values) and not hasattr(values, "columns"):
        return lists_as_array(_arrow(values))
    if hasattr(values, "toarray"):  # a sparse matrix of scipy
        return np.asarray(values.toarray())
    return np.asarray(to_host(values))


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "V" and dtype.name == "bfloat16"  # that of ml_dtypes


def dtype_name(dtype: object) -> str:
    """Return the name of a type that is given by its name, or as numpy's or torch's.

    >>> dtype_name("<f4"), dtype_name(np.float16), dtype_name("torch.bfloat16")
    ('float32', 'float16', 'bfloat16')
    """
    if isinstance(dtype, str | type | np.dtype):
        with contextlib.suppress(TypeError):
            return np.dtype(dtype).name
    return str(dtype).removeprefix("torch.")


def is_arrow(values: Any) -> bool:
    """Tell whether values are Arrow's, or can be handed over as such: an array, a series, a frame."""
    arrow = isinstance(values, pa.Array | pa.ChunkedArray)
    return arrow or hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__")


def _arrow(values: Any) -> pa.Array:
    """Return an array or series of Arrow, Polars or pandas as one Arrow array."""
    if isinstance(values, pa.Array):
        return values
    if str(getattr(values, "dtype", "")) == "Object":  # of Polars, which hands out addresses
        raise BatchError("it holds Python objects: cast it to String or Binary")
    chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array(values)
    if pa.types.is_dictionary(chunked.type):
        chunked = chunked.unify_dictionaries()
    array = chunked.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        raise BatchError("more than 2 GiB of text in one batch: split it")
    return array


def as_columns(
    columns: TableLike, schema: pa.Schema | None
) -> tuple[dict[str, pa.Array | npt.NDArray[Any]], int | None]:
    """Return the caller's columns, types as they are, and their length; None if there are no columns.

    Raises
    ------
    BatchError
        If something is no column, or has no name that is text.
    """
    if columns is None:
        return {}, None
    if type(columns) is dict or isinstance(columns, Mapping):
        found = {name: as_column(name, values, schema) for name, values in columns.items()}
        lengths = {len(values) for values in found.values()}
        if len(lengths) > 1:
            raise BatchError(
                f"columns must have one length, got { {name: len(values) for name, values in found.items()} }"
            )
        return found, lengths.pop() if lengths else None
    if isinstance(columns, pa.RecordBatch):
        names, arrays = columns.schema.names, columns.columns
    else:
        table = columns if isinstance(columns, pa.Table) else as_table(columns)
        names = table.column_names
        arrays = [_named(name, table.column(index)) for index, name in enumerate(names)]
    for name in names:
        if names.count(name) > 1:
            raise BatchError(f"column {name!r} is there more than once: rename one")
    return dict(zip(names, arrays, strict=True)), len(arrays[0]) if names else None


def _named(name: str, values: Any) -> pa.Array:
    try:
        return _arrow(values)
    except (BatchError, TypeError, ValueError, pa.ArrowException) as error:
        raise BatchError(f"column {name!r}: {error}") from error


def as_table(frame: Any) -> pa.Table:
    """Return a frame as an Arrow table; of a pandas frame with the parts of its index that have names.

    Raises
    ------
    BatchError
        If it is no frame, has a column without a proper name, or one of Python objects.
    """
    if type(frame).__module__.partition(".")[0] == "polars":
        for name, dtype in getattr(frame, "schema", {}).items():
            if str(dtype) == "Object":
                raise BatchError(f"column {name!r}: it holds Python objects: cast it to String or Binary")
    try:
        if type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "reset_index"):
            for name in frame.columns:
                _check_name(name)
            if any(name is not None for name in frame.index.names):
                frame = frame.reset_index()
            return pa.Table.from_pandas(frame, preserve_index=False)
        return pa.table(frame)
    except BatchError:
        raise
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise BatchError(
            "columns must be a pyarrow Table or RecordBatch, a polars or pandas frame, or a mapping "
            f"of names to values, got {type(frame).__name__}: {error}"
        ) from error


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise BatchError(f"the name of a column must be a string, got {name!r}: rename it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BatchError(f"the name of a column must be text, got {name!r}: {error}") from error


def as_column(name: str, values: Any, schema: pa.Schema | None) -> pa.Array | npt.NDArray[Any]:
    """Return a column: plain numbers as they are, anything else as Arrow has it."""
    if (
        type(values) is np.ndarray
        and values.ndim == 1
        and values.dtype.char in _NUMBERS
        and type(name) is str
    ):
        return values
    _check_name(name)
    if is_arrow(values):
        return _named(name, values)
    try:
        if type(values).__module__.partition(".")[0] == "pandas" and not hasattr(values, "sp_values"):
            return _named(name, pa.array(values))
        values = to_host(values)
    except (TypeError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _no_column(name, values, error) from error
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or values is None:
        raise BatchError(f"column {name!r}: a column has one value per row, got {values!r}")
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise BatchError(
                f"column {name!r}: a column has one value per row, got shape {values.shape}: "
                + ("squeeze() drops the axis of a batch of one row: squeeze(-1)" if not values.ndim else "")
                + ("pass it in arrays=" if values.ndim else "")
            )
        if values.dtype.kind != "O":
            return _of_numpy(name, values)
    # A plain sequence has no type of its own, so the store's may decide; an array's is never overruled.
    known = schema is not None and name in schema.names and not hasattr(values, "dtype")
    kind = schema.field(name).type if known and schema is not None else None
    try:
        return sequences.as_column(name, values, kind)
    except BatchError:
        raise
    except (TypeError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _no_column(name, values, error) from error


def _no_column(name: str, values: Any, error: Exception) -> BatchError:
    kind = getattr(values, "dtype", None) or f"a {type(values).__name__}"
    why = str(error).rstrip(". ")
    return BatchError(f"column {name!r}: values of {kind} cannot become a column: convert them ({why})")


def _of_numpy(name: str, values: npt.NDArray[Any]) -> pa.Array | npt.NDArray[Any]:
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if _is_bfloat16(values.dtype):
        values = values.astype(np.float32)
    if type(values) is np.ndarray and values.dtype.char in _NUMBERS:
        return values
    try:
        if isinstance(values, np.ma.MaskedArray):
            return pa.array(values.data, mask=np.ma.getmaskarray(values))
        return pa.array(values)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise _no_column(name, values, error) from error


def as_index(given: Any) -> Any:
    """Return an index in the form that numpy has: an integer, a slice, an array, None or an ellipsis.

    >>> as_index(range(0, 6, 2)), as_index(pa.array([True, False])), as_index(np.int8(3))
    (array([0, 2, 4]), array([ True, False]), 3)

    Raises
    ------
    IndexError
        If it has a null, or is no index.
    """
    if given is None or given is Ellipsis or type(given) in (int, slice):
        return given
    if type(given) is np.ndarray and given.ndim:
        return given
    if type(given) is np.int64:
        return int(given)
    if isinstance(given, range):
        return np.arange(given.start, given.stop, given.step)
    try:
        if is_arrow(given) and not hasattr(given, "columns"):
            array = _arrow(given)
            if array.null_count:
                raise IndexError(f"an index must not be null, got one at {array.is_null().index(True)}")
            found = array.to_numpy(zero_copy_only=False)
        else:
            plain = to_host(given)
            if isinstance(given, list | tuple) and not {*map(type, given)} <= {int}:
                plain = list(map(to_host, given))
            found = np.asarray(plain.as_py() if isinstance(plain, pa.Scalar) else plain)
    except (TypeError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise IndexError(f"an index must be integers or a boolean mask, got {given!r}: {error}") from error
    if isinstance(given, list | tuple) and not found.size:
        return found.astype(np.int64)
    return int(found) if found.ndim == 0 and found.dtype.kind in "iu" else found


def as_integers(values: Any, what: str) -> pa.Array | npt.NDArray[Any]:
    """Return integers, one per row and perhaps null, in whatever form they are handed over."""
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step)
    if type(values) is np.ndarray and values.dtype.kind in "iu":
        return values
    given, values = values, as_column(what, values, None)
    if (
        isinstance(values, pa.Array)
        and values.null_count
        and not isinstance(given, pa.Array | pa.ChunkedArray)
    ):
        raise BatchError(
            f"{what} must be one integer per row, got null: only Arrow arrays may have nulls here"
        )
    kind = pa.from_numpy_dtype(values.dtype) if isinstance(values, np.ndarray) else values.type
    if len(values) and not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise BatchError(f"{what} must be one integer per row, got {kind}")
    return values
