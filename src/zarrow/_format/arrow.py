"""Arrow helpers — numbers between numpy and Arrow without a copy and without pandas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Values", "as_arrow", "numbers_as_arrow"]

Values = Any
"""A column: numbers as numpy has them, anything as Arrow has it, None where all values are null."""


def numbers_as_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers as Arrow has them: what `pyarrow.array` does, without its import of pandas."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def as_arrow(values: Values, kind: pa.DataType | None, rows: int) -> pa.Array:
    """Return a column as Arrow has it."""
    if values is None:
        return pa.nulls(rows, kind)
    return numbers_as_arrow(values) if isinstance(values, np.ndarray) else values
