"""Groups — which group a row is in.

A group is a combination of values of some columns. Groups are numbered in the order of their values, with the
nulls of each column last (and NaN before them), so that results come sorted; null is a value like any other.
Only narrow columns are read.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.arrow import computable_type, decoded
from zarrow.analysis._rows.dataset import Rows
from zarrow.errors import InvalidInputError

__all__ = ["Groups", "column_codes", "free_names", "metric_table", "names_of", "plain"]


def names_of(by: str | Sequence[str] | None) -> list[str]:
    """Return the columns to group by, as a list without repetitions.

    >>> names_of("query"), names_of(None)
    (['query'], [])
    """
    if by is None:
        return []
    return [by] if isinstance(by, str) else list(dict.fromkeys(by))


def free_names(names: Sequence[str], taken: Container[str]) -> list[str]:
    """Return names, with trailing underscores where they are taken.

    >>> free_names(["query", "rows"], ["rows", "auroc"])
    ['query', 'rows_']
    """
    found: list[str] = []
    for name in names:
        while name in taken or name in found:
            name += "_"
        found.append(name)
    return found


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column in one piece, with dictionaries decoded, of a type that Arrow computes with."""
    array = decoded(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    kind = computable_type(array.type)
    return array if kind == array.type else array.cast(kind)


def column_codes(column: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Return the place of each value among the sorted distinct ones, and the distinct ones.

    >>> codes, values = column_codes(pa.array(["b", None, "a", "b"]))
    >>> codes.tolist(), values.to_pylist()
    ([1, 2, 0, 1], ['a', 'b', None])
    """
    try:
        encoded = plain(column).dictionary_encode(null_encoding="encode")
        values = encoded.dictionary
        order = pc.sort_indices(values).to_numpy()
    except pa.ArrowNotImplementedError as error:
        raise InvalidInputError(f"rows cannot be grouped by values of type {column.type}") from error
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], values.take(pa.array(order))


def _decoded(table: pa.Table) -> pa.Table:
    return pa.table({name: plain(table[name]) for name in table.column_names})


def _distinct(table: pa.Table, by: Sequence[str]) -> pa.Table:
    for field in table.schema:
        if pa.types.is_nested(field.type):
            raise InvalidInputError(
                f"rows cannot be grouped by column {field.name!r}, of type {field.type}: it must hold "
                "single values"
            )
    numbers = [
        str(number) for number in range(len(by))
    ]  # Arrow takes a name that begins with a dot for a path
    found = table.select(list(by)).rename_columns(numbers).group_by(numbers).aggregate([])
    return found.rename_columns(list(by))


class Groups:
    """The groups of the rows of a table.

    Parameters
    ----------
    table : pyarrow.Table
        The columns to group by; rows may repeat.

    Examples
    --------
    >>> table = pa.table({"query": ["b", "a", "b"], "days": [30, 30, 7]})
    >>> groups = Groups(table)
    >>> groups.keys.to_pylist()
    [{'query': 'a', 'days': 30}, {'query': 'b', 'days': 7}, {'query': 'b', 'days': 30}]
    >>> groups.codes(table).tolist()
    [2, 0, 1]
    """

    def __init__(self, table: pa.Table) -> None:
        table = _decoded(table)
        self._values = [column_codes(table[name])[1] for name in table.column_names]
        if math.prod(max(len(values), 1) for values in self._values) >= 2**63:
            raise InvalidInputError(
                f"columns {table.column_names} have too many values to group by all of them"
            )
        self.names: list[str] = table.column_names
        self._numbers, first = np.unique(self._number(table), return_index=True)
        self.keys: pa.Table = table.take(pa.array(first))
        self.count = len(first)

    @classmethod
    def of_store(cls, store: Rows, by: Sequence[str], filter: pc.Expression | None = None) -> Groups:
        """Return the groups of the rows that pass a filter, in one scan that holds only distinct values."""
        reader = store.scan(list(by), filter)
        found = _decoded(reader.schema.empty_table())
        if not by:
            return cls(pa.table({}))
        new: list[pa.Table] = []
        for batch in reader:
            new.append(_distinct(_decoded(pa.Table.from_batches([batch])), by))
            if (
                sum(table.num_rows for table in new) > found.num_rows
            ):  # not with each batch: there may be many
                found, new = _distinct(pa.concat_tables([found, *new]), by), []
        found = _distinct(pa.concat_tables([found, *new]), by)
        return cls(found)

    def with_columns(self, columns: Mapping[str, pa.Array]) -> pa.Table:
        """Return a table of the keys and these columns; a key named like one gets a trailing underscore.

        >>> Groups(pa.table({"rows": [7]})).with_columns({"rows": pa.array([1])}).column_names
        ['rows_', 'rows']
        """
        return pa.table(
            dict(zip(free_names(self.names, columns), self.keys.columns, strict=True)) | dict(columns)
        )

    def codes(self, table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Return the number of the group of each row, −1 if it is in none of them."""
        numbers = self._number(table)
        if not self.count:
            return np.full(len(numbers), -1, np.int64)
        places = np.minimum(np.searchsorted(self._numbers, numbers), self.count - 1)
        return np.where(self._numbers[places] == numbers, places, -1)

    def _number(self, table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Return the places of the values of each row, as one number; −1 if a value is unknown."""
        number = np.zeros(table.num_rows, np.int64)
        unknown = np.zeros(table.num_rows, np.bool_)
        for name, values in zip(self.names, self._values, strict=True):
            found = pc.index_in(plain(table[name]).cast(values.type), value_set=values)
            place = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            unknown |= place < 0
            number = number * max(len(values), 1) + place
        return np.where(unknown, -1, number)

    def find(self, given: object) -> int:
        """Return the number of a group.

        Parameters
        ----------
        given : value, tuple or mapping
            The values of its key.

        Raises
        ------
        InvalidInputError
            If there is no such group.
        """
        wanted: Any = given
        if not isinstance(given, dict):
            values = given if isinstance(given, tuple | list) else (given,)
            wanted = dict(zip(self.names, values, strict=False))
        for number, key in enumerate(self.keys.to_pylist()):
            if key == wanted:
                return number
        known = ", ".join(str(tuple(key.values())) for key in self.keys.slice(0, 5).to_pylist())
        raise InvalidInputError(
            f"there is no group {given!r} of {', '.join(self.names) or 'no columns'}; "
            f"the first ones are {known}"
        )


def metric_table(
    groups: Groups | None,
    lines: Sequence[Mapping[str, float | None]],
    counts: Sequence[str],
    metrics: Sequence[str],
) -> pa.Table:
    """Return a line per group: its key, counts, and metrics, each with the ends of its interval.

    >>> line = {"rows": 3, "r2": 0.5, "r2_low": 0.4, "r2_high": None}
    >>> metric_table(None, [line], ["rows"], ["r2"]).to_pylist() == [line]
    True
    """
    names = [*counts, *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))]
    integers = ("rows", "labelled", "positives")
    types = [(name, pa.int64() if name in integers else pa.float64()) for name in names]
    table = pa.Table.from_pylist(lines, pa.schema(types))
    return table if groups is None else groups.with_columns(dict(zip(names, table.columns, strict=True)))
