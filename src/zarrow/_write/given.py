"""Given values — what callers pass as columns and arrays, in the two forms that the library works with.

Numbers become numpy arrays and anything else becomes Arrow arrays: columns from tables, polars and pandas
frames, mappings, tensors and plain sequences; vectors from whatever numpy accepts as an array. Types stay as
they are, except bfloat16, which numpy lacks: it is widened to float32.

torch is not imported: tensors are recognised by their methods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.errors import BatchError

__all__ = ["TableLike", "as_array", "as_columns", "to_host"]

TableLike = Any
"""A pyarrow Table or RecordBatch, anything with ``__arrow_c_stream__`` (polars, pandas), or a mapping of
names to 1-D arrays, tensors or sequences."""


_NUMBERS = frozenset("bBhHiIlLqQefd")
"""numpy's characters of the number types that Arrow has."""
_ROW_LABELS = re.compile(r"__index_level_\d+__\Z")


def to_host(values: Any) -> Any:
    """Return a tensor as a numpy array; leave everything else alone.

    A bfloat16 tensor is widened to float32, which holds all its values.

    Parameters
    ----------
    values : torch.Tensor or anything
        On any device, with or without grad.

    Returns
    -------
    array or anything
        On the host; shares memory with a tensor that was there.
    """
    if not (hasattr(values, "detach") and hasattr(values, "cpu")):
        return values
    tensor = values.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def as_array(name: str, values: Any, dtype: str = "") -> npt.NDArray[Any]:
    """Return rows as a numpy array; bfloat16 as float32, or as float16 if that is `dtype`."""
    try:
        array = values if type(values) is np.ndarray else np.asarray(to_host(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise BatchError(f"array {name!r} must be an array: {error}") from error
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":  # ml_dtypes'
        array = array.astype(np.float32)
    if dtype == "float16" and str(getattr(values, "dtype", "")) in ("torch.bfloat16", "bfloat16"):
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float16)
        if not np.array_equal(np.isinf(narrow), np.isinf(array)):
            raise BatchError(
                f"array {name!r}: expected dtype float16, got bfloat16 values beyond its range "
                f"(up to {np.abs(array[np.isfinite(array)]).max():.3g}): declare float32"
            )
        return narrow
    return array


def as_columns(
    columns: TableLike, schema: pa.Schema | None
) -> tuple[dict[str, pa.Array | npt.NDArray[Any]], int | None]:
    """Return the caller's columns, with their own types, and their length; None without columns."""
    if columns is None:
        return {}, None
    if type(columns) is dict or isinstance(columns, Mapping):
        found = {name: _as_column(name, values, schema) for name, values in columns.items()}
        lengths = {len(values) for values in found.values()}
        if len(lengths) > 1:
            raise BatchError(
                f"columns must have one length, got { {name: len(values) for name, values in found.items()} }"
            )
        return found, lengths.pop() if lengths else None
    if not isinstance(columns, pa.RecordBatch):
        try:
            table = columns if isinstance(columns, pa.Table) else _without_row_labels(pa.table(columns))
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise BatchError(
                "columns must be a pyarrow Table or RecordBatch, a polars or pandas frame, or a mapping "
                f"of names to values, got {type(columns).__name__}: {error}"
            ) from error
        batches = table.combine_chunks().to_batches()
        if len(batches) > 1:
            raise BatchError("a column must fit into one Arrow array, got 2 GiB of text: split the batch")
        columns = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    names = columns.schema.names
    for name in names:
        if names.count(name) > 1:
            raise BatchError(f"column {name!r}: the name is used more than once: rename one")
    return dict(zip(names, columns.columns, strict=True)), columns.num_rows if names else None


def _without_row_labels(table: pa.Table) -> pa.Table:
    """Return a table without the unnamed row labels of a pandas frame."""
    return table.drop_columns([name for name in table.column_names if _ROW_LABELS.match(name)])


def _as_column(name: str, values: Any, schema: pa.Schema | None) -> pa.Array | npt.NDArray[Any]:
    """Return a column: plain numbers as a numpy array, anything else as an Arrow array."""
    if type(values) is not np.ndarray:
        if isinstance(values, pa.Array):
            return values
        if isinstance(values, pa.ChunkedArray):
            return values.combine_chunks()
        values = to_host(values)
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype.char in _NUMBERS:
        return values
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise BatchError(f"column {name!r}: expected one value per row, got {values!r}")
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise BatchError(
            f"column {name!r}: expected one value per row, got shape {values.shape}: pass it in arrays="
        )
    if isinstance(values, np.ndarray) and not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    # A plain sequence has no type of its own, so the store's is used; that of an array is never overruled.
    known = schema is not None and name in schema.names and not hasattr(values, "dtype")
    kind = schema.field(name).type if known and schema is not None else None
    if kind is not None and pa.types.is_integer(kind):
        # Arrow would drop the fraction.
        fraction = next((value for value in values if isinstance(value, float | np.floating)), None)
        if fraction is not None:
            raise BatchError(f"column {name!r}: expected {kind}, got {fraction!r}: round it")
    try:
        if hasattr(values, "__arrow_c_stream__"):  # of polars or pandas
            return pa.chunked_array(values).combine_chunks()
        return pa.array(values, type=kind)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise BatchError(f"column {name!r} must be a column: {error}") from error
