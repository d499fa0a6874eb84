"""Arrow helpers — numbers between numpy and Arrow without a copy and without pandas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Values", "as_arrow", "number_dtype", "numbers_as_arrow"]

Values = Any
"""A column: numbers as numpy has them, anything as Arrow has it, None where all values are null."""

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""Arrow's names of types that numpy calls otherwise."""


def numbers_as_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers as Arrow has them: what `pyarrow.array` does, without its import of pandas."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def number_dtype(kind: pa.DataType) -> np.dtype[Any]:
    """Return the numpy dtype of an Arrow type of integers, floats or booleans.

    `pyarrow.DataType.to_pandas_dtype` needs pandas up to pyarrow 25.

    >>> number_dtype(pa.float16()), number_dtype(pa.uint8()), number_dtype(pa.bool_())
    (dtype('float16'), dtype('uint8'), dtype('bool'))
    """
    return np.dtype(_FLOATS.get(str(kind), str(kind)))


def as_arrow(values: Values, kind: pa.DataType | None, rows: int) -> pa.Array:
    """Return a column as Arrow has it."""
    if values is None:
        return pa.nulls(rows, kind)
    return numbers_as_arrow(values) if isinstance(values, np.ndarray) else values
