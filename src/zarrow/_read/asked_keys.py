"""Asked keys — the keys that a caller looks up, as columns of the right type.

A caller gives anything that holds columns by name or, for a single key column, values: lists, numpy arrays,
series and frames of pyarrow, Polars and pandas. Values must be of the column's family (integers for
integers of any width, strings for strings, …): ``"12"`` never finds 12. Within the family the value counts:
an int64 that an int8 column cannot hold is a key that no row has, not an error, and so is a null.

Values without a type of their own (a Python list) take that of the column: 0.1 finds the float32 nearest to
it. Those of an array keep theirs: no float32 equals the float64 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import key_words
from zarrow._format.arrow import numbers_as_arrow, value_type, without_view
from zarrow._format.given import as_column, as_columns
from zarrow._format.key_words import Keys
from zarrow._format.sequences import as_python
from zarrow.errors import BatchError, InvalidInputError, KeyNotFoundError

__all__ = ["Asked", "read_keys"]

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """Keys as a caller gave them.

    Parameters
    ----------
    columns : dict of str to pyarrow.Array
        The values, by key column.
    possible : bool array, shape (n,)
        Which of the keys a row can have.
    keys : Keys
        The possible ones.
    """

    columns: dict[str, pa.Array]
    possible: npt.NDArray[np.bool_]
    keys: Keys

    def require(self, rows: npt.NDArray[np.int64], path: object) -> None:
        """Raise `KeyNotFoundError`, which names some of them, if keys have no row."""
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return
        shown = [
            ", ".join(f"{name}={values[place].as_py()!r}" for name, values in self.columns.items())
            for place in missing[:_SHOWN].tolist()
        ]
        more = f"; and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise KeyNotFoundError(
            f"{path}: {len(missing)} of {len(rows)} keys have no row: {'; '.join(shown)}{more}: "
            f"omit them; zarrow.open({str(path)!r}).locate(keys, missing=-1) returns -1 for them"
        )


def read_keys(given: Any, schema: pa.Schema) -> Asked:
    """Return the keys that a caller gives.

    Parameters
    ----------
    given : table-like, mapping, or values
        As in `Store.locate`.
    schema : pyarrow.Schema
        The key columns.

    Raises
    ------
    InvalidInputError
        If a key column is missing, of another family, or of another length.

    Examples
    --------
    >>> asked = read_keys([7, None, 8], pa.schema({"id": pa.int8()}))
    >>> asked.possible.tolist(), asked.keys.words.tolist()
    ([True, False, True], [[7], [8]])
    """
    columns = {
        field.name: _as_array(values, field)
        for field, values in zip(schema, _by_name(given, schema.names), strict=True)
    }
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise InvalidInputError(f"the key columns must be of equal length, got {lengths}")
    possible = np.ones(next(iter(lengths.values())), np.bool_)
    for field in schema:
        values = columns[field.name]
        if values.null_count:
            possible &= values.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_integer(values.type):
            possible &= _has_word(values, field.type)
    chosen = list(columns.values())
    if not possible.all():
        chosen = [values.filter(pa.array(possible)) for values in chosen]
    return Asked(columns, possible, key_words.encode(chosen))


def _by_name(given: Any, names: Sequence[str]) -> list[Any]:
    """Return the values of each key column."""
    found: Any = None
    if isinstance(given, Mapping) or hasattr(given, "columns") or hasattr(given, "schema"):
        found = given
    elif len(names) == 1 and not isinstance(given, str | bytes) and hasattr(given, "__len__"):
        return [given]
    if found is not None:
        columns = found if isinstance(found, Mapping) else as_columns(found, None)[0]
        if all(name in columns for name in names):
            return [columns[name] for name in names]
    wanted = ", ".join(map(repr, names))
    or_values = ", or an array of its values" if len(names) == 1 else ""
    if found is not None and any(name in columns for name in names):
        given_names = " and ".join(repr(name) for name in names if name in columns)
        raise InvalidInputError(f"a key of this store has all of {wanted}, got only {given_names}")
    got = f"columns {list(columns)}" if found is not None else f"{type(given).__name__}"
    raise InvalidInputError(
        f"keys must be a table or mapping with the store's key columns ({wanted}){or_values}, got {got}"
    )


def _as_array(values: Any, field: pa.Field) -> pa.Array:
    kind = value_type(field.type)
    family = key_words.family(kind)
    try:
        plain = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        array = _of_sequence(values, kind) if plain else as_column(field.name, values, None)
        if isinstance(array, np.ndarray):
            array = numbers_as_arrow(array)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary.cast(without_view(array.type.value_type)).take(array.indices)
        if (plainer := without_view(array.type)) != array.type:
            array = array.cast(plainer)
        if pa.types.is_null(array.type):
            return array.cast(kind)
        if key_words.family(array.type) != family:
            raise InvalidInputError(
                f"key {field.name!r} is of type {field.type}, got {array.type}: cast it to {kind}"
            )
        done = array.type == kind or family in ("integer", "float", "string", "bytes")
        return array if done else array.cast(kind)
    except (BatchError, pa.ArrowException, TypeError, OverflowError) as error:
        raise InvalidInputError(
            f"the values of key {field.name!r} must be of its type {field.type}: {error}"
        ) from error


def _of_sequence(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    values = list(map(as_python, values))
    if pa.types.is_integer(kind):
        try:
            return pa.array(values)  # a number that the column cannot hold is not an error
        except OverflowError:  # a large uint64
            pass
    return pa.array(values, kind)


def _has_word(values: pa.Array, kind: pa.DataType) -> npt.NDArray[np.bool_] | bool:
    """Tell which integers stand for themselves as a 64-bit word: −1 and 2**64 − 1 have the same word."""
    kind = value_type(kind)
    given_unsigned, unsigned = (pa.types.is_unsigned_integer(one) for one in (values.type, kind))
    if given_unsigned == unsigned:
        return True
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(numbers <= np.uint64(2**63 - 1) if given_unsigned else numbers >= 0)
