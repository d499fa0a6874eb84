"""Datasets — an xarray Dataset, read as a store is.

`source_of` takes the first argument of an analysis and returns what the analysis reads: a `Store`, or a
`Union` of several, as it is, a
Dataset (or DataArray) as `DatasetRows`, which has those members of a store that an analysis uses. In a
Dataset

* variables along the dimension ``row`` alone are columns (`dataset_columns`); numeric variables along ``row``
  and other dimensions are arrays; ``row`` need not come first;
* row numbers are positions in the Dataset as it is given, whatever rows of whatever store it was made from;
* rows come in *pieces*: as many whole chunks as make a block, or slices of a variable that is not a dask
  array. A piece is computed by itself (`workers`), and released when the next one has been.

`pieces` is the seam: `blocks` and `folds` do piece by piece what they do with all rows of a store at once.
xarray is imported only if the caller has a Dataset, and so has imported it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format import key_words
from zarrow._format.array_spec import rows_of
from zarrow._format.layout import ROW
from zarrow._read.asked_keys import read_keys
from zarrow._read.filters import read_filter
from zarrow.analysis._rows.dataset_columns import arrow_type, arrow_values
from zarrow.analysis._rows.workers import Client, active_client, compute, load, sender
from zarrow.errors import InvalidInputError, unknown_name
from zarrow.several import Union, UnionArray
from zarrow.store import Store, StoreArray

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Array",
    "DatasetArray",
    "DatasetRows",
    "Rows",
    "Source",
    "pieces",
    "received",
    "source_of",
]

PIECE_BYTES = 16 << 20

Source: TypeAlias = "Store | Union | xr.Dataset | xr.DataArray"
Rows: TypeAlias = "Store | Union | DatasetRows"
Array: TypeAlias = "StoreArray | UnionArray | DatasetArray"


def source_of(given: Source | DatasetRows, client: Client | None = None) -> tuple[Rows, Client | None]:
    """Return what an analysis reads, and the dask client whose workers read it.

    These are its first argument and its argument `client`; for a Dataset of dask arrays, the client is dask's
    own default client by default. `InvalidInputError` if it is neither a store nor a Dataset with
    the dimension ``row``.
    """
    if isinstance(given, Store | Union | DatasetRows):
        return given, client
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(given, xarray.DataArray):
        given = given.to_dataset(name="array" if given.name is None else given.name)
    if xarray is None or not isinstance(given, xarray.Dataset):
        raise InvalidInputError(
            "an analysis needs a store, as returned by zarrow.open(path), or an xarray Dataset, got "
            f"{type(given).__name__}"
        )
    if ROW not in given.sizes:
        raise InvalidInputError(
            f"the rows of a Dataset must lie along the dimension {ROW!r}, got the dimensions "
            f"{list(given.sizes)}: rename the right one, as in dataset.rename(sample={ROW!r})"
        )
    if client is None and any(given.variables[name].chunks for name in given.variables):
        client = active_client()
    return DatasetRows(given, client), client


def pieces(
    source: Rows, names: Sequence[str], filter: pc.Expression | None = None
) -> list[tuple[range, Callable[[], Rows]]]:
    """Return ranges of rows, in order, each with a function that loads these rows.

    `names` are the arrays and columns to be read, without those of the filter. A store is one range that
    needs no loading.
    """
    if isinstance(source, Store | Union):
        return [(range(source.num_rows), lambda: source)]
    if source.at_hand:
        return [(source.span, lambda: source)]
    wanted = source.wanted(names, filter)
    return [(span, functools.partial(source.load, wanted, span)) for span in source.spans(wanted)]


def received(sent: Any, schema: pa.Schema | None, span: range) -> Rows:
    """Return, on a worker, the rows that it was sent: a store, or a piece sent by `DatasetRows.senders`."""
    return sent if isinstance(sent, Store | Union) else DatasetRows(load(sent), None, span, schema)


class DatasetRows:
    """Rows of a Dataset, with those members of a `Store` that analyses use.

    Parameters
    ----------
    dataset : xarray.Dataset
        A Dataset with variables along the dimension ``row``.
    client : distributed.Client, optional
        The dask client whose workers compute it.
    span : range, optional
        The row numbers; from 0 by default.
    schema : pyarrow.Schema, optional
        The columns; given for a piece, whose values are in memory.

    Examples
    --------
    >>> import xarray as xr, zarrow.testing
    >>> rows = DatasetRows(xr.open_dataset(zarrow.testing.example_store().path))
    >>> rows.num_rows, list(rows.arrays), rows.schema.names[:2]
    (5000, ['query_embed'], ['subject_id', 'query'])
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        client: Client | None = None,
        span: range | None = None,
        schema: pa.Schema | None = None,
    ) -> None:
        # Variables, not coordinates: the index of a dimension would be compared wherever two meet.
        self._variables: dict[str, xr.Variable] = {
            str(name): dataset.variables[name].to_base_variable().transpose(ROW, ...)
            for name in (*dataset.coords, *dataset.data_vars)
            if ROW in dataset.variables[name].dims and name != ROW
        }
        self._attributes = dataset.attrs
        self._client, self._known = client, schema
        self.span = range(dataset.sizes[ROW]) if span is None else span
        self.num_rows = len(self.span)

    @property
    def at_hand(self) -> bool:
        """Whether the rows are in memory, as those of a piece are."""
        return self._known is not None

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns, then ``row``."""
        fields = list(self._known or ())
        if self._known is None:
            for name, variable in self._variables.items():
                if variable.ndim == 1:
                    kind = arrow_type(name, variable.dtype, variable.attrs, self._samples(name))
                    fields.append(pa.field(name, kind))
        return pa.schema([*fields, pa.field(ROW, pa.int64(), nullable=False)])

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that name a row; empty if the Dataset is not of a store."""
        return tuple(
            name
            for name in json.loads(self._attributes.get("zarrow_keys", "[]"))
            if name in self.schema.names
        )

    def _samples(self, name: str) -> Iterator[npt.NDArray[Any]]:
        for span in self.spans([name]):
            yield self._computed([name], span)[name].values

    @functools.cached_property
    def arrays(self) -> Mapping[str, DatasetArray]:
        """The arrays by name."""
        return {
            name: DatasetArray(name, variable, self.span.start, self._client)
            for name, variable in self._variables.items()
            if variable.ndim > 1 and np.can_cast(variable.dtype, np.float64)
        }

    @property
    def ragged(self) -> Mapping[str, Any]:
        """No arrays: xarray has their vectors along a dimension of their own, not along ``row``."""
        return {}

    def __getitem__(self, name: str) -> DatasetArray:
        """Return the array with that name; `UnknownNameError` if there is none."""
        if name not in self.arrays:
            raise unknown_name("array", name, self.arrays)
        return self.arrays[name]

    # Pieces

    def wanted(self, names: Iterable[str], filter: pc.Expression | None = None) -> list[str]:
        """Return the variables that must be read, including those of a filter.

        Raises
        ------
        UnknownNameError
            If there is no such array or column.
        """
        asked = [] if filter is None else read_filter(filter, self.schema).columns
        wanted = [name for name in dict.fromkeys([*names, *asked]) if name != ROW]
        for name in wanted:
            if name not in self.arrays and name not in self.schema.names:
                raise unknown_name("column", name, self.schema.names)
        return wanted

    def spans(self, names: Sequence[str]) -> list[range]:
        """Return the rows of each piece: whole chunks of the widest of some variables.

        Variables with other chunks are loaded, or every piece would compute them again.
        """
        if not self.num_rows or not names:
            return [self.span] if self.num_rows else []
        sizes = {
            name: variable.dtype.itemsize * (variable.size // self.num_rows)
            for name, variable in self._variables.items()
            if name in names
        }
        rows = rows_of(PIECE_BYTES, sum(sizes.values()))
        chunks = {name: self._variables[name].chunksizes.get(ROW) for name in sizes}
        widest = chunks[max(sizes, key=lambda name: (self._variables[name].ndim > 1, sizes[name]))]
        for name, own in chunks.items():
            if own is not None and own != widest:
                self._variables[name] = self._computed([name], self.span)[name].variable
        ends = [*range(rows, self.num_rows, rows), self.num_rows]
        if widest is not None:
            ends = list(itertools.accumulate(widest))
        borders = [0]
        for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
            if following - borders[-1] > rows:
                borders.append(end)
        cuts = itertools.pairwise(borders)
        return [self.span[start:stop] for start, stop in cuts if start < stop]

    def load(self, names: Sequence[str], span: range) -> DatasetRows:
        """Return rows, loaded into memory."""
        return DatasetRows(self._computed(names, span), None, span, self.columns_of(names))

    def senders(self, names: Sequence[str], client: Client) -> Iterator[tuple[range, Callable[[], Any]]]:
        """Yield the rows of each piece, and the function that sends it to a worker; see `received`."""
        for span in self.spans(names):
            yield span, sender(self._chosen(names, span), client)

    def columns_of(self, names: Sequence[str]) -> pa.Schema:
        """Return the columns among some variables; no other variable is looked at."""
        return pa.schema([self.schema.field(name) for name in names if name not in self.arrays])

    def _chosen(self, names: Sequence[str], rows: range | npt.NDArray[np.int64]) -> xr.Dataset:
        import xarray

        start = self.span.start
        here = slice(rows.start - start, rows.stop - start) if isinstance(rows, range) else rows - start
        return xarray.Dataset({name: self._variables[name].isel({ROW: here}) for name in names})

    def _computed(self, names: Sequence[str], rows: range | npt.NDArray[np.int64]) -> xr.Dataset:
        return compute(self._chosen(names, rows), self._client)

    # Members of a store

    def _table(self, columns: xr.Dataset, schema: pa.Schema, rows: npt.NDArray[np.int64]) -> pa.Table:
        arrays = [
            pa.array(rows, pa.int64())
            if field.name == ROW
            else arrow_values(field.name, columns[field.name].values, field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _passing(self, filter: pc.Expression | None) -> pa.Table:
        """Return the columns of the rows of a piece that pass a filter."""
        columns = self._chosen(self.schema.names[:-1], self.span)
        table = self._table(columns, self.schema, np.array(self.span))
        return table if filter is None else read_filter(filter, self.schema).select(table)

    def scan(
        self, columns: Sequence[str], filter: pc.Expression | None = None, batch_size: int | None = None
    ) -> pa.RecordBatchReader:
        """Stream columns of the rows that pass a filter."""
        wanted = self.wanted(columns, filter)
        schema = pa.schema([self.schema.field(name) for name in columns])
        tables = (self.load(wanted, span)._passing(filter) for span in self.spans(wanted))
        batches = (batch for table in tables for batch in table.select(list(columns)).to_batches(batch_size))
        return pa.RecordBatchReader.from_batches(schema, batches)

    def table(self, columns: Sequence[str], filter: pc.Expression | None = None) -> pa.Table:
        """Return columns of the rows that pass a filter."""
        return self.scan(columns, filter).read_all()

    def take(
        self, rows: npt.NDArray[np.int64], columns: Sequence[str], arrays: Sequence[str] = ()
    ) -> tuple[pa.RecordBatch, dict[str, npt.NDArray[Any]]]:
        """Return rows: columns and arrays."""
        found = self._computed(self.wanted(columns), rows)
        schema = pa.schema([self.schema.field(name) for name in columns])
        table = self._table(found, schema, rows)
        batch = pa.record_batch([column.combine_chunks() for column in table.columns], schema=schema)
        return batch, {name: self[name].take(rows) for name in arrays}

    def join(
        self, filter: pc.Expression | None, columns: Sequence[str], arrays: Sequence[str], batch_size: int
    ) -> Iterator[tuple[pa.RecordBatch, dict[str, npt.NDArray[Any]]]]:
        """Stream columns and vectors of the rows of a piece that pass a filter."""
        for batch in self._passing(filter).combine_chunks().to_batches(batch_size):
            rows = batch[ROW].to_numpy()
            if len(rows):
                start, stop = int(rows[0]), int(rows[-1]) + 1
                whole = stop - start == len(rows)
                vectors = {
                    one: self[one].read(start, stop) if whole else self[one].take(rows) for one in arrays
                }
                yield batch.select(list(columns)), vectors

    def locate(self, keys: Any, missing: Literal["raise"] = "raise") -> npt.NDArray[np.int64]:
        """Return the first row with each key; `KeyNotFoundError` if there is none.

        The columns are the key columns of the store, or any columns if the store has no keys.
        """
        del missing  # as in Store.locate; a Dataset always raises
        names = list(self.keys)
        if not names:
            names = list(keys if isinstance(keys, Mapping) else pa.table(keys).column_names)
        schema = self.columns_of(self.wanted(names))
        asked = read_keys(keys, schema)
        rows = np.full(len(asked.possible), -1, np.int64)
        possible = np.flatnonzero(asked.possible)
        for batch in self.scan([*names, ROW]):
            table = pa.Table.from_batches([batch]).drop_null()
            here = key_words.encode([table[name].combine_chunks() for name in names])
            order = np.argsort(here.hashes, kind="stable")  # the first of rows with equal keys
            left = np.flatnonzero(rows[possible] < 0)
            hashes = asked.keys.hashes[left]
            places = np.searchsorted(here.hashes, hashes, sorter=order)
            found = places < len(order)
            left, places = left[found], order[places[found]]
            is_it = key_words.same(
                schema.types, asked.keys.words[left], asked.keys.heap, here.words[places], here.heap
            )
            rows[possible[left[is_it]]] = table[ROW].to_numpy()[places[is_it]]
        asked.require(rows, "the Dataset")
        return rows


class DatasetArray:
    """One array of a Dataset, with those members of a `StoreArray` that analyses use."""

    def __init__(self, name: str, variable: xr.Variable, first: int, client: Client | None) -> None:
        self.name, self._variable, self._first, self._client = name, variable, first, client
        self.dtype: np.dtype[Any] = variable.dtype
        self.shape: tuple[int, ...] = variable.shape
        self.row_shape = self.shape[1:]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows of a piece, without a copy."""
        return np.asarray(self._variable.values[start - self._first : stop - self._first])

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return rows by number."""
        import xarray

        chosen = xarray.Dataset({self.name: self._variable.isel({ROW: rows - self._first})})
        return np.asarray(compute(chosen, self._client)[self.name].values)

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: a piece is in memory."""
