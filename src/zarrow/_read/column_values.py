"""Column values — an Arrow column as numpy values, for xarray and torch.

The dtype depends on the column's type and on whether it may hold nulls, never on its rows, so it is known
before anything is read:

====================================  =====================================================
Arrow                                 numpy
====================================  =====================================================
bool, integers, without nulls         the same
float16, float32, float64             the same; null is NaN
bool that may be null                 float32: 0, 1, NaN              (`widen`)
integers that may be null             float32 up to 16 bits, else float64; null is NaN (`widen`)
timestamp                             datetime64 of the same unit, UTC; null is NaT
date32, date64                        datetime64[s], datetime64[ms]; null is NaT
duration                              timedelta64 of the same unit; null is NaT
string, and dictionaries of strings   object: str; null is None
anything else (binary, lists, …)      object: what ``to_pylist`` gives; null is None
====================================  =====================================================

Without `widen`, integers and booleans keep their type and a null is an error. A fill value replaces null, and
the column keeps its type. No integer is rounded: one beyond 2**53 that would become a float is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.arrow import is_text, number_dtype, value_type
from zarrow._format.layout import SAMPLE_INDEX
from zarrow.errors import InvalidInputError, unknown_name

__all__ = ["ColumnValues", "as_keys", "column_values"]

_EXACT = 2**53
_NO_SAMPLE = -1
_UNITS = ("s", "ms", "us", "ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnValues:
    """The conversion of one column to numpy values.

    Parameters
    ----------
    name : str
        The column.
    arrow_type : pyarrow.DataType
        Of its values; for a dictionary, of the values that it encodes.
    dtype : dtype
        Of the result.
    fill_value : pyarrow.Scalar, optional
        Replaces null.
    remedy : str
        What to do about nulls that `dtype` cannot represent, for messages.
    """

    name: str
    arrow_type: pa.DataType
    dtype: np.dtype[Any]
    fill_value: pa.Scalar | None = None
    remedy: str = ""

    @property
    def timezone(self) -> str | None:
        """The time zone of a timestamp, for display."""
        return self.arrow_type.tz if pa.types.is_timestamp(self.arrow_type) else None

    def convert(self, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        """Return the values.

        Raises
        ------
        InvalidInputError
            If `dtype` cannot represent a null or an integer.
        """
        if column.type != self.arrow_type:
            column = column.cast(self.arrow_type)
        if self.fill_value is not None and column.null_count:
            column = pc.fill_null(column, self.fill_value)
        if self.dtype.kind == "O":
            return self._objects(column)
        if column.null_count and self.dtype.kind in "biu":
            row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
            raise InvalidInputError(
                f"column {self.name!r}: {self.dtype} cannot represent null, got one in row {row} of those "
                f"read: {self.remedy}"
            )
        if pa.types.is_integer(self.arrow_type) and self.dtype.kind == "f":
            self._check_exact(column)
            column = column.cast(pa.float64())
        elif pa.types.is_boolean(self.arrow_type) and self.dtype.kind == "f":
            column = column.cast(pa.uint8()).cast(pa.float32())
        elif pa.types.is_date64(self.arrow_type):
            column = column.cast(pa.timestamp("ms"))
        return np.asarray(column.to_numpy()).astype(self.dtype, copy=False)

    def _check_exact(self, column: pa.ChunkedArray) -> None:
        if self.arrow_type.bit_width < 64 or not len(column):
            return
        limits = pc.min_max(column)
        for limit in (limits["min"].as_py(), limits["max"].as_py()):
            if limit is not None and abs(limit) > _EXACT:
                raise InvalidInputError(
                    f"column {self.name!r}: it may hold nulls and is read as {self.dtype}, which is exact "
                    f"for integers up to 2**53 only, got {limit}: {self.remedy}"
                )

    def _objects(self, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        if is_text(self.arrow_type):
            return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)
        found = np.empty(len(column), object)
        for row, value in enumerate(column.to_pylist()):
            found[row] = value  # one by one: numpy would turn lists of equal length into an axis
        return found


def column_values(
    schema: pa.Schema, fill_values: Mapping[str, object] | None = None, *, widen: bool
) -> dict[str, ColumnValues]:
    """Return the conversion of each column of a schema.

    Parameters
    ----------
    schema : pyarrow.Schema
        The columns.
    fill_values : mapping of str to value, optional
        The value that replaces null in a column, which then keeps its type; −1 in ``sample_index``.
    widen : bool
        Whether integers and booleans that may be null become floats.

    Returns
    -------
    dict of str to ColumnValues
        By column.

    Raises
    ------
    UnknownNameError
        If a fill value names a column that does not exist.
    InvalidInputError
        If a fill value does not fit its column.

    Examples
    --------
    >>> found = column_values(pa.schema({"label": pa.bool_(), "n": pa.int64()}), {"n": 0}, widen=True)
    >>> found["label"].dtype, found["n"].dtype
    (dtype('float32'), dtype('int64'))
    >>> found["label"].convert(pa.chunked_array([[True, None]]))
    array([ 1., nan], dtype=float32)
    """
    given = dict(fill_values or {})
    for name in given:
        if name not in schema.names:
            raise unknown_name("column", name, schema.names)
    if SAMPLE_INDEX in schema.names:
        given.setdefault(SAMPLE_INDEX, _NO_SAMPLE)
    return {field.name: _column(field, given, widen) for field in schema}


def _column(field: pa.Field, given: Mapping[str, object], widen: bool) -> ColumnValues:
    kind = value_type(field.type)
    fill_value = None
    if field.name in given:
        try:
            fill_value = pa.scalar(given[field.name], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(
                f"the fill value of column {field.name!r} must be a {kind}, got {given[field.name]!r}"
            ) from error
    dtype = _dtype(kind, may_be_null=widen and field.nullable and fill_value is None)
    remedy = f"give the value that replaces null, as in fill_values={{{field.name!r}: 0}}, or omit the column"
    return ColumnValues(name=field.name, arrow_type=kind, dtype=dtype, fill_value=fill_value, remedy=remedy)


def _dtype(kind: pa.DataType, *, may_be_null: bool) -> np.dtype[Any]:
    types = pa.types
    if types.is_boolean(kind):
        return np.dtype(np.float32 if may_be_null else np.bool_)
    if types.is_integer(kind) and may_be_null:
        return np.dtype(np.float32 if kind.bit_width <= 16 else np.float64)
    if types.is_integer(kind) or types.is_floating(kind):
        return number_dtype(kind)
    if types.is_timestamp(kind):
        return np.dtype(f"datetime64[{kind.unit}]")
    if types.is_date(kind):
        return np.dtype("datetime64[s]" if types.is_date32(kind) else "datetime64[ms]")
    if types.is_duration(kind):
        return np.dtype(f"timedelta64[{kind.unit}]")
    return np.dtype(object)


def as_keys(values: npt.NDArray[Any], kind: pa.DataType) -> Any:
    """Return values that stand for a key column as keys: moments as days, or as moments in UTC.

    >>> as_keys(np.array(["2020-01-01", "2020-01-01T12"], "datetime64[h]"), pa.date32()).to_pylist()
    [datetime.date(2020, 1, 1), None]
    """
    kind = value_type(kind)
    if values.dtype.kind != "M":
        return values
    if pa.types.is_date(kind):
        days = values.astype("datetime64[D]")
        return pa.array(days, pa.date32(), mask=days != values)  # no row has a moment within a day
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        moments = pa.array(values if values.dtype.name[11:-1] in _UNITS else values.astype("datetime64[ns]"))
        return moments.cast(pa.timestamp(moments.type.unit, "UTC"))
    return values
