"""Dataset columns — the Arrow column that the values of a Dataset's variable make.

The inverse of `zarrow._read.column_values`, as far as there is one: NaN, NaT and None become null; numbers,
times and strings have the type of their dtype; a time zone, and the type that an integer or boolean column
with nulls had before it became floats, are read from the attributes that ``xr.open_dataset(…,
engine="zarrow")`` gives a variable. Objects have the type of the first ones that are not null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow.errors import InvalidInputError

__all__ = ["arrow_type", "arrow_values"]

ARROW_TYPE, TIMEZONE = "arrow_type", "timezone"


def arrow_type(
    name: str,
    dtype: np.dtype[Any],
    attributes: Mapping[Any, Any],
    samples: Iterable[npt.NDArray[Any]],
) -> pa.DataType:
    """Return the type of the column that a variable makes; `InvalidInputError` if Arrow has none for it.

    `samples` are its values, piece by piece; only read if they are objects, until one is not null.

    >>> print(arrow_type("label", np.dtype("float32"), {"arrow_type": "bool"}, []))
    bool
    >>> print(arrow_type("query", np.dtype(object), {}, [np.array([None, "stroke"], object)]))
    string
    """
    try:
        if dtype.kind == "f" and ARROW_TYPE in attributes:
            return pa.type_for_alias(str(attributes[ARROW_TYPE]))
        if dtype.kind == "O":
            for values in samples:
                found = pa.array(values, from_pandas=True).type
                if not pa.types.is_null(found):
                    return found
            return pa.null()
        found = pa.array(np.empty(0, dtype)).type
    except (pa.ArrowException, ValueError) as error:
        raise InvalidInputError(
            f"variable {name!r} of dtype {dtype} cannot be a column: {error}; leave it out, with drop_vars"
        ) from error
    if pa.types.is_timestamp(found) and TIMEZONE in attributes:
        return pa.timestamp(found.unit, str(attributes[TIMEZONE]))
    return found


def arrow_values(name: str, values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return values as a column of the type that `arrow_type` found; `InvalidInputError` if they do not fit.

    >>> arrow_values("label", np.array([1.0, np.nan]), pa.bool_()).to_pylist()
    [True, None]
    """
    try:
        if values.dtype.kind == "f" and not pa.types.is_floating(kind):
            numbers = pa.array(values, from_pandas=True)
            if not pa.types.is_boolean(kind):
                return numbers.cast(kind)
            found = numbers.cast(pa.int8())
            others = pc.drop_null(found.filter(pc.greater(pc.abs_checked(found), 1)))
            if len(others):
                raise pa.ArrowInvalid(f"{others[0]} is neither 0 nor 1")
            return found.cast(kind)
        return pa.array(values, kind, from_pandas=True)
    except (pa.ArrowException, ValueError) as error:
        raise InvalidInputError(
            f"variable {name!r} is a column of type {kind}, which its values are not: {error}; give them one "
            f"type, with astype, and drop the attribute {ARROW_TYPE!r} if it has one"
        ) from error
