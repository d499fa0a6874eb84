"""Stacked stores — their columns and arrays, rows one behind the other.

What `zarrow.union` hands out is made of these: `StackedColumns` yields the rows of one store after the other,
with the name of the store and the row's number in all of them; `UnionArray` finds out in which stores the
rows lie that are asked for, and `UnionRagged` (`stacked_ragged`) does of a ragged one. A filter that needs
neither name nor row number is left to each store, which prunes. Another one is first simplified by what is
known of every segment (its store and row numbers), and then applied to the rows of the segments that are
left.

Reads only; holds a few batches.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import numbers_as_arrow, rebatched, without_dictionaries
from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._read.arrays import StoreArray
from zarrow._read.columns import NarrowColumns, by_sample
from zarrow._read.filters import Filter
from zarrow._read.indexing import Check, Indexed, check_option
from zarrow._read.pruning import possible_places
from zarrow._read.ragged_rows import StoreRagged
from zarrow._read.stacked_ragged import UnionRagged
from zarrow.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = ["StackedColumns", "UnionArray", "UnionRagged", "agreed_schema", "shared_arrays", "users_columns"]


class Table(Protocol):
    """What is used of a store."""

    @property
    def num_rows(self) -> int: ...
    @property
    def segments(self) -> tuple[range, ...]: ...
    @property
    def _columns(self) -> NarrowColumns: ...
    def scan(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None
    ) -> pa.RecordBatchReader: ...
    def take(
        self, rows: Any, columns: Sequence[str] | None = None, arrays: Sequence[str] | None = None
    ) -> tuple[pa.Table, Any]: ...


class StackedColumns:
    """The columns of several stores.

    Parameters
    ----------
    stores : dict of str to Store
        By the name that their rows have in the column `column`.
    schema : pyarrow.Schema
        The columns of the view: those of every store, and `column`.
    column : str
        The column that says which store a row is from.
    """

    def __init__(self, stores: Mapping[str, Table], schema: pa.Schema, column: str) -> None:
        self._names, self._stores = list(stores), list(stores.values())
        self._schema, self._column = schema, column
        self.starts: list[int] = np.cumsum([0, *(store.num_rows for store in self._stores)]).tolist()
        self.segments = [
            [range(rows.start + start, rows.stop + start) for rows in store.segments if len(rows)]
            for store, start in zip(self._stores, self.starts, strict=False)
        ]

    def empty(self, names: Sequence[str]) -> pa.Table:
        """Return no rows."""
        return pa.Table.from_batches([], self._schema).select(names)

    def batches(
        self, names: Sequence[str], filter: Filter | None = None, batch_rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that pass a filter; in batches of `batch_rows` rows, the last one shorter."""
        found = self._found(names or [ROW], filter)
        found = (batch for batch in found if batch.num_rows)
        if batch_rows is not None:
            found = rebatched(found, batch_rows)
        return found if names else (batch.select([]) for batch in found)

    def _found(self, names: Sequence[str], filter: Filter | None) -> Iterator[pa.RecordBatch]:
        if filter is None or not {self._column, ROW} & set(filter.columns):
            for number, store in enumerate(self._stores):
                expression = None if filter is None else filter.expression
                for batch in store.scan(self._stored(names), expression):
                    yield self._placed(number, batch, names)
            return
        needed = list(dict.fromkeys([*filter.columns, ROW]))
        more = [name for name in names if name not in needed]
        for number, within in self._possible(filter):
            for batch in self._stores[number].scan(self._stored(needed), within):
                passing = filter.select(pa.Table.from_batches([self._placed(number, batch, needed)]))
                if not passing.num_rows:
                    continue
                if more:
                    rows = np.from_dlpack(passing[ROW].combine_chunks())
                    rest = self.take(np.asarray(rows), more)
                    for name in more:
                        passing = passing.append_column(self._schema.field(name), rest[name])
                yield from passing.select(names).combine_chunks().to_batches()

    def _possible(self, filter: Filter) -> Iterator[tuple[int, pc.Expression]]:
        """Yield stores, and conditions on their rows, that names, row numbers and statistics leave."""
        import pyarrow.compute as pc

        row, model = pc.field(ROW), pc.field(self._column)
        schema = without_dictionaries(self._schema)
        owners = [
            (number, index, rows)
            for number, ranges in enumerate(self.segments)
            for index, rows in enumerate(ranges)
        ]
        known = [
            (model == self._names[number]) & (row >= rows.start) & (row < rows.stop)
            for number, _, rows in owners
        ]
        cases = [
            (place, known[place] & case)
            for place in possible_places(known, filter, schema)
            for case in self._stores[owners[place][0]]._columns.cases(owners[place][1], filter)
        ]
        left = [cases[place][0] for place in possible_places([case for _, case in cases], filter, schema)]
        runs: list[tuple[int, range]] = []
        for place in dict.fromkeys(left):
            number, _, rows = owners[place]
            if runs and runs[-1][0] == number and runs[-1][1].stop == rows.start:
                runs[-1] = number, range(runs[-1][1].start, rows.stop)
            else:
                runs.append((number, rows))
        for number, rows in runs:
            start = self.starts[number]
            yield number, (row >= rows.start - start) & (row < rows.stop - start)

    def _stored(self, names: Sequence[str]) -> list[str]:
        """Return the columns to read of a store: at least one, so that rows are counted."""
        return [name for name in names if name != self._column] or [ROW]

    def _placed(self, number: int, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        """Return rows of a store as those of the view."""
        fields = [self._schema.field(name) for name in names]
        columns = []
        for field in fields:
            if field.name == self._column:
                columns.append(pa.repeat(pa.scalar(self._names[number], field.type), batch.num_rows))
            elif field.name == ROW:
                columns.append(numbers_as_arrow(np.from_dlpack(batch[ROW]) + self.starts[number]))
            else:
                columns.append(batch[field.name])
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))

    def take(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> pa.Table:
        """Return these rows, which are in range, in the order given."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        order, tables = [], [self.empty(names)]
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            table, _ = self._stores[number].take(rows[places] - self.starts[number], self._stored(names), [])
            tables += [
                pa.Table.from_batches([self._placed(number, one, names)]) for one in table.to_batches()
            ]
            order.append(places)
        joined = pa.concat_tables(tables).unify_dictionaries()
        if len(order) < 2:
            return joined
        return joined.combine_chunks().take(numbers_as_arrow(np.argsort(np.concatenate(order))))

    def in_sample_order(self, filter: Filter | None) -> npt.NDArray[np.int64]:
        """Return the rows that pass a filter, ordered by sample index, then row."""
        return by_sample(self.batches([ROW, SAMPLE_INDEX], filter))


class UnionArray(Indexed):
    """One array of several stores, their rows one behind the other, read as it is indexed.

    Parameters
    ----------
    name : str
        Its name.
    parts : list of StoreArray
        The array of each store.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> array = zarrow.union({"a": store, "b": store})["query_embed"]
    >>> array.shape, array[4998:5002].shape, bool((array[0] == array[5000]).all())
    ((10000, 8), (4, 8), True)
    """

    def __init__(self, name: str, parts: Sequence[StoreArray]) -> None:
        self.name = name
        self._parts = list(parts)
        self._starts: list[int] = np.cumsum([0, *map(len, parts)]).tolist()

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self._parts[0].row_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type."""
        return self._parts[0].dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes that the committed rows take on disk."""
        return sum(part.stored_bytes for part in self._parts)

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"<zarrow.UnionArray {self.name!r} {self.shape} {self.dtype.name}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False and len(self._parts) > 1:
            raise ValueError(f"array {self.name!r} of several stores cannot be returned without a copy")
        return np.asarray(self.read(0, len(self)), dtype)

    def read(
        self, start: int, stop: int, *, out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return consecutive rows.

        Parameters
        ----------
        start, stop, out, check : optional
            As in `StoreArray.read`.

        Returns
        -------
        array, shape (stop - start, *row_shape)
            Without a copy where rows of one store are asked for, and `StoreArray.read` needs none.

        Raises
        ------
        IndexError, CorruptionError
            As from `StoreArray.read`.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> zarrow.union({"a": store, "b": store})["query_embed"].read(4000, 6000).shape
        (2000, 8)
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} are out of bounds for {len(self)} rows")
        check_option(check)
        if out is not None:
            self._check_out(out, stop - start)
        pieces = list(self._between(start, stop))
        if out is None and len(pieces) == 1:
            part, low, high = pieces[0]
            return part.read(low, high, check=check)
        found = np.empty((stop - start, *self.row_shape), self.dtype) if out is None else out
        position = 0
        for part, low, high in pieces:
            part.read(low, high, out=found[position : position + high - low], check=check)
            position += high - low
        return found

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the kernel that rows will be needed soon.

        Parameters
        ----------
        start, stop : int
            As in `StoreArray.prefetch`.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> zarrow.union([zarrow.testing.example_store()])["query_embed"].prefetch(0, 1000)
        """
        for part, low, high in self._between(max(start, 0), min(stop, len(self))):
            part.prefetch(low, high)

    def release(self) -> None:
        """Tell the kernel that the memory of rows that were read can be used for something else.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> zarrow.union([zarrow.testing.example_store()])["query_embed"].release()
        """
        for part in self._parts:
            part.release()

    def _take(
        self, rows: npt.NDArray[Any], out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        found = np.empty((len(rows), *self.row_shape), self.dtype) if out is None else out
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            found[places] = self._parts[number].take(rows[places] - self._starts[number], check=check)
        return found

    def _between(self, start: int, stop: int) -> Iterator[tuple[StoreArray, int, int]]:
        """Yield the arrays that have rows of a range, and which rows of theirs."""
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = self._starts[number], min(self._starts[number + 1], stop)
            if end > start:
                yield self._parts[number], start - first, end - first
            start, number = max(end, start), number + 1


def shared_arrays(
    stores: Mapping[str, Mapping[str, StoreArray | StoreRagged]],
) -> tuple[Mapping[str, UnionArray], Mapping[str, UnionRagged], Mapping[str, str]]:
    """Return the arrays that all stores have, of one shape and dtype, and why others are left out."""
    found: dict[str, UnionArray] = {}
    ragged: dict[str, UnionRagged] = {}
    reasons: dict[str, str] = {}
    for name in dict.fromkeys(name for arrays in stores.values() for name in arrays):
        without = [model for model, arrays in stores.items() if name not in arrays]
        if without:
            reasons[name] = f"not in {', '.join(map(repr, without))}"
            continue
        parts = [arrays[name] for arrays in stores.values()]
        if len(set(map(_rows_of, parts))) > 1:
            shapes = (f"{model!r} has {_rows_of(one)}" for model, one in zip(stores, parts, strict=True))
            reasons[name] = f"its rows differ: {', '.join(shapes)}"
        elif isinstance(parts[0], StoreRagged):
            ragged[name] = UnionRagged([one for one in parts if isinstance(one, StoreRagged)])
        else:
            found[name] = UnionArray(name, [one for one in parts if isinstance(one, StoreArray)])
    return MappingProxyType(found), MappingProxyType(ragged), MappingProxyType(reasons)


def _rows_of(array: StoreArray | StoreRagged) -> str:
    """Return what the rows of an array are, as text."""
    if isinstance(array, StoreRagged):
        return f"any number of {array.vector_shape} {array.dtype}"
    return f"{array.row_shape} {array.dtype}"


def users_columns(names: Sequence[str], column: str) -> list[str]:
    """Return the columns that the user gave."""
    return [name for name in names if name not in (column, ROW, SAMPLE_INDEX)]


def agreed_schema(schemas: Mapping[str, pa.Schema], columns: Sequence[str] | None, column: str) -> pa.Schema:
    """Return the columns of the view, after checking that every store has them, of one type."""
    for model in schemas:
        if not isinstance(model, str):
            raise InvalidInputError(f"the names of models must be strings, got {model!r}")
    first, schema = next(iter(schemas.items()))
    if isinstance(columns, str):
        raise InvalidInputError(f"columns must be a list of names, got {columns!r}")
    asked = schema.names if columns is None else list(dict.fromkeys(columns))
    found: dict[str, pa.Field] = {}
    for model, others in schemas.items():
        if column in others.names and (column in asked or column in (ROW, SAMPLE_INDEX)):
            raise InvalidInputError(
                f"store {model!r} has a column {column!r} itself: choose another name with column="
            )
        if columns is None:
            for name in others.names:
                if name not in schema.names:
                    raise _disagree(name, f"store {model!r} has it, {first!r} has not")
        for name in asked:
            if name not in others.names:
                if columns is not None:
                    raise unknown_name("column", name, others.names)
                raise _disagree(name, f"store {first!r} has it, {model!r} has not")
            field = others.field(name)
            known = found.setdefault(name, field)
            if field.type != known.type:
                raise _disagree(name, f"it is {known.type} in {first!r} and {field.type} in {model!r}")
            if field.nullable:
                found[name] = known.with_nullable(True)
    return pa.schema(
        [
            *(found[name].remove_metadata() for name in users_columns(asked, column)),
            pa.field(column, pa.string(), nullable=False),
            *(schema.field(name) for name in (ROW, SAMPLE_INDEX)),
        ]
    )


def _disagree(name: str, how: str) -> InvalidInputError:
    return InvalidInputError(
        f"the stores do not agree on column {name!r}: {how}: name the columns to show with columns=, or "
        "write the stores alike"
    )
