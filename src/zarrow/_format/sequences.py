"""Plain sequences — Python values as an Arrow column, refused where a value would not come back equal.

Arrow converts what it is given to the type that it was told, and silently cuts what does not fit: the
fraction of a `decimal.Decimal`, a key of a dict that the struct lacks, a float beyond the range of float32.
So every value is compared with what became of it. That costs about a microsecond per value; columns whose
values are all of one simple type, which Arrow converts or refuses by itself, are spared it.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow.errors import BatchError

__all__ = ["as_column", "as_python"]

_EXACT = {
    str: pa.types.is_string,
    bytes: pa.types.is_binary,
    bool: pa.types.is_boolean,
    int: pa.types.is_integer,
    float: pa.types.is_float64,
}
"""The simple types of Python, and the Arrow types that hold all of their values or raise."""

_MISSING = ("NAType", "NaTType")
"""What pandas calls its nulls, by the names of their types."""


def as_column(name: str, values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    """Return a sequence of Python values as an Arrow array, of `kind` if that is known.

    Raises
    ------
    BatchError
        If Arrow cannot convert a value, or would change it; names the row.
    """
    plain = [as_python(value) for value in values]
    found = set(map(type, plain)) - {type(None)}
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind is not None and pa.types.is_integer(kind) and float in found:
        row = next(row for row, value in enumerate(plain) if isinstance(value, float))
        raise BatchError(
            f"column {name!r}: expected {kind}, got {plain[row]!r} in row {row}: declare schema= with "
            "float64; without it, the first batch decides"
        )
    try:
        array = pa.array(plain, type=kind)
        if isinstance(array, pa.ChunkedArray):
            raise BatchError(f"column {name!r}: more than 2 GiB of text in one batch: split it")
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise BatchError(f"column {name!r}: {_reason(plain, kind, error)}") from error
    if len(found) == 1 and (test := _EXACT.get(next(iter(found)))) is not None and test(array.type):
        return array
    for row, (value, scalar) in enumerate(zip(plain, array, strict=True)):
        # Nanoseconds have no Python value without pandas; numpy's, of which they are, Arrow does not change.
        got = value if isinstance(value, np.datetime64 | np.timedelta64) else scalar.as_py()
        if not _same(value, got, array.type):
            raise BatchError(
                f"column {name!r}: {array.type} cannot hold {value!r} of row {row}, it would become "
                f"{got!r}: declare schema= with a type that can, or convert it yourself"
            )
    return array


def as_python(value: Any) -> Any:
    """Return a value as Python has it: scalars of numpy, torch and Arrow, and pandas' nulls."""
    if value is None or type(value) in _EXACT:
        return value
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, pa.Scalar):
        return value.as_py()
    if isinstance(value, np.generic) and value.dtype.kind in "biufSU":
        return value.item()
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return value.detach().cpu().tolist()  # of a scalar tensor, the number
    if isinstance(value, Mapping):
        return {key: as_python(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_python(one) for one in value] if type(value) is list else tuple(map(as_python, value))
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biufSUO":
        return [as_python(one) for one in value.tolist()]
    return value


def _reason(values: list[Any], kind: pa.DataType | None, error: Exception) -> str:
    """Return what is wrong, with the first row whose value cannot be converted by itself."""
    for row, value in enumerate(values):
        try:
            pa.array([value], type=kind)
        except (TypeError, ValueError, OverflowError, pa.ArrowException) as found:
            expected = "values that Arrow can hold" if kind is None else f"{kind}"
            return (
                f"expected {expected}, got {value!r} in row {row}: {found}: declare schema= with another type"
                + ("; without it, the first batch decides" if kind is not None else "")
            )
    return f"its values have no type in common: {error}: declare schema="


def _same(value: Any, got: Any, kind: pa.DataType) -> bool:
    """Tell whether what a value became is the value."""
    if value is None or got is None:
        return value is None and got is None
    if isinstance(value, Mapping):
        if pa.types.is_map(kind):
            got = dict(got)
        if not isinstance(got, Mapping):
            return False
        if pa.types.is_map(kind):
            return value.keys() == got.keys() and all(
                _same(value[key], got[key], kind.item_type) for key in value
            )
        return value.keys() <= got.keys() and all(
            _same(value.get(key), one, kind.field(key).type) for key, one in got.items()
        )
    if isinstance(value, list | tuple | np.ndarray):
        if pa.types.is_map(kind):
            return _same(dict(value), dict(got), kind) and len(value) == len(got)
        if not isinstance(got, list) or len(value) != len(got):
            return False
        return all(_same(one, other, kind.value_type) for one, other in zip(value, got, strict=True))
    if isinstance(value, bool) != isinstance(got, bool):
        return False
    if isinstance(value, float | int) and isinstance(got, float):
        return _same_number(value, got, kind)
    if isinstance(value, datetime.datetime) != isinstance(got, datetime.datetime):
        return False
    if isinstance(value, decimal.Decimal) != isinstance(got, decimal.Decimal):
        return False
    try:
        return bool(value == got)
    except (TypeError, ValueError):
        return False


def _same_number(value: float, got: float, kind: pa.DataType) -> bool:
    """Tell whether a float is that of its type nearest to a number; for an integer, exactly it."""
    if isinstance(value, int) or not math.isfinite(value):
        return value == got or (value != value and got != got)
    narrow = {16: np.float16, 32: np.float32}.get(kind.bit_width if pa.types.is_floating(kind) else 64)
    if narrow is None:
        return value == got
    with np.errstate(over="ignore"):
        return math.isfinite(got) and bool(narrow(value) == got)
