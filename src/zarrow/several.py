"""Union — the stores of several models in one view, without copying: rows one behind the other.

`union` puts stores of equal columns together, such as those that several checkpoints predicted from one
dataset. A column ``model`` says which store a row is from. ``row`` is the row's number in the view: the rows
of the first store come first. What is read is read from the stores, each of which is a snapshot:

* a filter on the stores' own columns is handed to each store, which skips what its statistics rule out;
* one on ``model`` or ``row`` first leaves out stores and segments, and is then applied to the rows that they
  have;
* an array is one array for `numpy` and the analyses; nothing is joined in memory but the rows asked for.

Reads only; a crash leaves nothing.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.given import as_columns
from zarrow._format.layout import ROW
from zarrow._read.appearance import html_table
from zarrow._read.filters import Filter, read_filter
from zarrow._read.indexing import Check, row_numbers
from zarrow._read.join import Join, Joined, Vectors, batch_rows, rows_found
from zarrow._read.stacked import (
    StackedColumns,
    UnionArray,
    UnionRagged,
    agreed_schema,
    shared_arrays,
    users_columns,
)
from zarrow.errors import InvalidInputError, UnknownNameError, unknown_name
from zarrow.store import Store, open

if TYPE_CHECKING:
    import duckdb
    import polars as pl
    import pyarrow.compute as pc

__all__ = ["Union", "UnionArray", "UnionRagged", "union"]

Stores = Sequence[Store | str | os.PathLike[str]] | Mapping[str, Store | str | os.PathLike[str]]


def union(
    stores: Stores, *, columns: Sequence[str] | None = None, column: str = "model", partial: bool = False
) -> Union:
    """Return several models' stores as one view.

    Parameters
    ----------
    stores : list of Store or path, or dict of str to Store or path
        The stores. The keys of a dict name the models; otherwise the paths do: ``runs/base.zarrow`` is
        ``base``, and ``a/run.zarrow`` and ``b/run.zarrow`` are ``a/run`` and ``b/run``.
    columns : list of str, optional
        The columns to show; all by default. Each store must have them, of the same type.
    column : str
        The name of the column that says which model a row is from.
    partial : bool
        Whether stores may be incomplete, as in `open`.

    Returns
    -------
    Union
        Snapshots of the stores.

    Raises
    ------
    InvalidInputError
        If there are no stores, two with one name, or columns that are not those of the first store.
    StoreNotFoundError, IncompleteStoreError, CorruptionError
        As from `open`.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> a, b = zarrow.testing.example_predictions(), zarrow.testing.example_predictions()
    >>> both = zarrow.union({"small": a, "large": b})
    >>> both.num_rows == a.num_rows + b.num_rows, both.columns[-3:]
    (True, ['model', 'row', 'sample_index'])
    """
    return Union(stores, columns=columns, column=column, partial=partial)


class Union:
    """Several models' stores as one view. See `union`.

    A context manager; it can be pickled. Every analysis takes it in place of a store, unless it writes.

    Parameters
    ----------
    stores : list of Store or path, or dict of str to Store or path
        As in `union`.
    columns : list of str, optional
        As in `union`.
    column : str
        As in `union`.
    partial : bool
        As in `union`.

    Attributes
    ----------
    stores : dict of str to Store
        The stores, by model.
    schema : pyarrow.Schema
        The columns: those of the stores, ``model``, ``row`` and ``sample_index``.
    left_out : dict of str to str
        Arrays that are not in the view, and why.

    Examples
    --------
    >>> import pyarrow.compute as pc, zarrow, zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_predictions()
    >>> both = zarrow.union({"small": store, "large": store})
    >>> both.table(["model", "row"], pc.field("row") >= both.num_rows - 1)["model"].to_pylist()
    ['large']
    >>> zarrow.analysis.evaluate(both, "occurs_prob", "occurs", by="model").table.num_rows
    2
    """

    def __init__(
        self,
        stores: Stores,
        *,
        columns: Sequence[str] | None = None,
        column: str = "model",
        partial: bool = False,
    ) -> None:
        given = list(stores.values()) if isinstance(stores, Mapping) else _listed(stores)
        if not given:
            raise InvalidInputError("a union needs at least one store, got none")
        # A copy, so that the caller's refresh() moves no row here.
        found = [copy.copy(one) if isinstance(one, Store) else open(one, partial=partial) for one in given]
        names = list(stores) if isinstance(stores, Mapping) else model_names([store.path for store in found])
        self.stores: Mapping[str, Store] = MappingProxyType(dict(zip(names, found, strict=True)))
        self.column = column
        schemas = {name: store.schema for name, store in self.stores.items()}
        self.schema: pa.Schema = agreed_schema(
            schemas if columns is not None else self._without_own(schemas), columns, column
        )
        self._columns = StackedColumns(self.stores, self.schema, column)
        self._starts = self._columns.starts
        self._connection: duckdb.DuckDBPyConnection | None = None

    def _without_own(self, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Schema]:
        """Return schemas without the counts of ragged arrays that not every store has."""
        own = {
            name: {array.count_column for array in store.ragged.values()}
            for name, store in self.stores.items()
        }
        shared = set.intersection(*own.values())
        return {
            name: pa.schema([field for field in schema if field.name not in own[name] - shared])
            for name, schema in schemas.items()
        }

    # What it holds

    @property
    def models(self) -> list[str]:
        """The names of the stores."""
        return list(self.stores)

    @property
    def num_rows(self) -> int:
        """Rows of all stores."""
        return int(self._starts[-1])

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that name a row: the model, and the stores' keys. Empty if these are not alike."""
        keys = {store.keys for store in self.stores.values()}
        only = next(iter(keys))
        shared = len(keys) == 1 and only and all(name in self.schema.names for name in only)
        return (self.column, *only) if shared else ()

    @property
    def segments(self) -> tuple[range, ...]:
        """The rows of each segment of each store."""
        return tuple(rows for ranges in self._columns.segments for rows in ranges)

    @property
    def path(self) -> Path:
        """The folder that all stores are in."""
        return Path(os.path.commonpath([store.path.parent for store in self.stores.values()]))

    @property
    def arrays(self) -> Mapping[str, UnionArray]:
        """The arrays that all stores have, of the same width and dtype."""
        return self._arrays[0]

    @property
    def ragged(self) -> Mapping[str, UnionRagged]:
        """The ragged arrays that all stores have, of the same vector shape and dtype."""
        return self._arrays[1]

    @property
    def left_out(self) -> Mapping[str, str]:
        """Arrays that are not in the view, and why."""
        return self._arrays[2]

    @property
    def derived(self) -> Mapping[str, UnionArray]:
        """No arrays: those computed from one store's rows are in that store."""
        return {}

    def __getitem__(self, name: str) -> Any:
        """Return the array of that name: a `UnionArray`, or a `UnionRagged`.

        `UnknownNameError` if the view has none.
        """
        if name in self.arrays:
            return self.arrays[name]
        if name in self.ragged:
            return self.ragged[name]
        if name in self.left_out:
            raise UnknownNameError(f"array {name!r} is not in the view: {self.left_out[name]}")
        raise unknown_name("array", name, [*self.arrays, *self.ragged])

    def __len__(self) -> int:
        return self.num_rows

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an array or a column of that name."""
        return name in {**self.arrays, **self.ragged} or name in self.columns

    def __repr__(self) -> str:
        return f"<zarrow.Union of {', '.join(self.models)}: {self.num_rows:,} rows>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the arrays and columns, with shapes and types."""
        arrays = [
            (name, f"array {' × '.join(f'{axis:,}' for axis in array.shape)}", array.dtype.name)
            for name, array in self.arrays.items()
        ] + [
            (name, f"array any × {' × '.join(map(str, array.vector_shape))}", array.dtype.name)
            for name, array in self.ragged.items()
        ]
        columns = [(one.name, "column", str(one.type)) for one in self.schema]
        return f"<div><b>zarrow.Union</b> {escape(repr(self))}{html_table([*arrays, *columns])}</div>"

    # Columns

    def table(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """Return columns of the rows that pass a filter, model by model.

        Parameters
        ----------
        columns : list of str, optional
            The columns; all by default.
        filter : pyarrow.compute.Expression, optional
            Which rows, e.g. ``(pc.field("model") == "base") & (pc.field("occurs_prob") > 0.9)``.

        Returns
        -------
        pyarrow.Table
            The rows that pass.

        Raises
        ------
        UnknownNameError, InvalidInputError, CorruptionError
            As from `Store.table`.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> zarrow.union({"a": store, "b": store}).table(["model"])["model"].unique().to_pylist()
        ['a', 'b']
        """
        names = self._names(columns)
        batches = [
            pa.Table.from_batches([one])
            for one in self._columns.batches(names or [ROW], self._filter(filter))
        ]
        empty = self._columns.empty(names or [ROW])
        return pa.concat_tables([empty, *batches]).unify_dictionaries().select(names)

    def scan(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        batch_size: int | None = None,
    ) -> pa.RecordBatchReader:
        """Stream columns of the rows that pass a filter, in bounded memory.

        Parameters
        ----------
        columns, filter, batch_size : optional
            As in `Store.scan`.

        Returns
        -------
        pyarrow.RecordBatchReader
            The batches.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> sum(batch.num_rows for batch in zarrow.union({"a": store, "b": store}).scan(["subject_id"]))
        10000
        """
        names = self._names(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.RecordBatchReader.from_batches(
            schema, self._columns.batches(names, self._filter(filter), batch_size)
        )

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export all columns as an Arrow stream."""
        return self.scan().__arrow_c_stream__(requested_schema)

    def to_polars(self) -> pl.LazyFrame:
        """Return the columns as a Polars lazy frame; see `Store.to_polars`.

        Returns
        -------
        polars.LazyFrame
            Over the Parquet parts of all stores.

        Examples
        --------
        >>> import polars as pl, zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> frame = zarrow.union({"a": store, "b": store}).to_polars()
        >>> frame.select(pl.len()).collect().item(), frame.select("row").max().collect().item()
        (10000, 9999)
        """
        frames = [store.to_polars() for store in self.stores.values()]
        import polars as pl

        return pl.concat(
            [
                frame.with_columns(pl.lit(name, pl.String).alias(self.column), pl.col(ROW) + start).select(
                    self.columns
                )
                for frame, name, start in zip(frames, self.models, self._starts, strict=False)
            ],
            how="vertical_relaxed",
        )

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run SQL over the columns with DuckDB; the table is called ``predictions``.

        Parameters
        ----------
        query : str
            The query; see `Store.sql`.

        Returns
        -------
        duckdb.DuckDBPyRelation
            The result.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> both = zarrow.union({"a": zarrow.testing.example_store(), "b": zarrow.testing.example_store()})
        >>> both.sql("SELECT model, count(*) FROM predictions GROUP BY model ORDER BY model").fetchall()
        [('a', 5000), ('b', 5000)]
        """
        from zarrow._read import engines

        for store in self.stores.values():
            store.require_unchanged()
        if self._connection is None:
            self._connection = engines.duckdb_union(
                [store._columns.full_parts() for store in self.stores.values()],
                self.models,
                self._starts[:-1],
                self.columns,
                self.column,
            )
        return self._connection.sql(query)

    # Columns and vectors of the same rows

    def take(
        self,
        rows: Any,
        columns: Sequence[str] | None = None,
        arrays: Sequence[str] | None = None,
        *,
        check: Check = None,
    ) -> tuple[pa.Table, Vectors]:
        """Return rows, in the order given.

        Parameters
        ----------
        rows, columns, arrays, check : optional
            As in `Store.take`; rows are those of the view.

        Returns
        -------
        table : pyarrow.Table
            The columns.
        vectors : dict of str to array, shapes (n, *row_shape)
            The vectors; of ragged arrays a `Ragged`.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> table, vectors = zarrow.union({"a": store, "b": store}).take([-1, 0], ["model"])
        >>> table["model"].to_pylist(), vectors["query_embed"].shape
        (['b', 'a'], (2, 8))
        """
        names, chosen = self._names(columns), self._chosen(arrays)
        numbers = row_numbers(rows, self.num_rows)
        table = self._columns.take(numbers, names)
        return table, {array.name: array.take(numbers, check=check) for array in chosen}

    def vectors(self, rows: Any, arrays: Sequence[str] | None = None, *, check: Check = None) -> Vectors:
        """Return the vectors of the rows that a query found.

        Parameters
        ----------
        rows, arrays, check : optional
            As in `Store.vectors`.

        Returns
        -------
        dict of str to array, shapes (n, *row_shape)
            In the order of `rows`.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> both = zarrow.union({"a": store, "b": store})
        >>> found = both.sql("SELECT row FROM predictions WHERE model = 'b' LIMIT 3")
        >>> both.vectors(found)["query_embed"].shape
        (3, 8)
        """
        numbers = row_numbers(rows_found(rows), self.num_rows)
        return {array.name: array.take(numbers, check=check) for array in self._chosen(arrays)}

    def locate(self, keys: Any, *, missing: Literal["raise", -1] = "raise") -> npt.NDArray[np.int64]:
        """Return the rows that have these keys.

        Parameters
        ----------
        keys : table, frame or mapping of str to values
            The model, and the values of each key column, by name.
        missing : {"raise", -1}
            As in `Store.locate`.

        Returns
        -------
        int64 array, shape (n,)
            The row of each key.

        Raises
        ------
        InvalidInputError, KeyNotFoundError, CorruptionError
            As from `Store.locate`.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> both = zarrow.union({"a": zarrow.testing.example_store(), "b": zarrow.testing.example_store()})
        >>> both.locate({"model": ["b", "a"], "subject_id": [3, 3], "query": ["code//7"] * 2})
        array([5037, 37])
        """
        columns = dict(keys) if isinstance(keys, Mapping) else dict(as_columns(keys, None)[0])
        if not self.keys or not all(name in columns for name in self.keys):
            wanted = ", ".join(self.keys) or "none: its stores have different key columns"
            raise InvalidInputError(f"keys must be a table or mapping with the view's key columns ({wanted})")
        table = pa.table({name: columns[name] for name in self.keys})
        models = table[self.column].to_pylist()
        for name in set(models):
            if name not in self.stores:
                raise unknown_name("model", name, self.models)
        rows = np.full(len(models), -1, np.int64)
        for (name, store), start in zip(self.stores.items(), self._starts, strict=False):
            places = np.flatnonzero([model == name for model in models])
            if len(places):
                found = store.locate(table.select(list(store.keys)).take(pa.array(places)), missing=missing)
                rows[places] = np.where(found < 0, -1, found + start)
        return rows

    def join(
        self,
        filter: pc.Expression | None = None,
        columns: Sequence[str] | None = None,
        arrays: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        order: Literal["sample_index"] | None = None,
        check: Check = None,
    ) -> Iterator[Joined]:
        """Stream the rows that pass a filter: columns and vectors, joined.

        Parameters
        ----------
        filter, columns, arrays, batch_size : optional
            As in `Store.join`.
        order : {"sample_index"}, optional
            Return rows in the order of the dataset that was predicted: each sample's rows of all models
            follow each other.
        check : {"crc"}, optional
            As in `Store.take`.

        Returns
        -------
        iterator of (RecordBatch, dict of str to array)
            Batches of the columns and of the vectors of the same rows.

        Examples
        --------
        >>> import zarrow, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> both = zarrow.union({"a": store, "b": store})
        >>> [batch.num_rows for batch, vectors in both.join(columns=["model"], batch_size=4000)]
        [4000, 4000, 2000]
        """
        names, chosen = self._names(columns), self._chosen(arrays)
        size = batch_rows(chosen) if batch_size is None else int(batch_size)
        if size < 1:
            raise InvalidInputError(f"batch_size must be a positive number of rows, got {batch_size!r}")
        join = Join(columns=self._columns, names=names, arrays=chosen, size=size, check=check)
        if order is None:
            return join.filtered(self._filter(filter))
        if order != "sample_index":
            raise InvalidInputError(f"order must be None or 'sample_index', got {order!r}")
        return join.ordered(self._filter(filter))

    def __iter__(self) -> Iterator[Joined]:
        """Stream all rows: `join` without a filter."""
        return self.join()

    def close(self) -> None:
        """Release files and memory of the view; stores that it was given stay open."""
        self._connection = None
        for store in self.stores.values():
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (dict(self.stores), users_columns(self.columns, self.column), self.column)

    # Behind it

    def _names(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return self.columns
        if isinstance(columns, str):
            raise InvalidInputError(f"columns must be a list of names, got {columns!r}")
        for name in columns:
            if name not in self.schema.names:
                raise unknown_name("column", name, self.columns)
        return list(columns)

    def _chosen(self, arrays: Sequence[str] | None) -> list[UnionArray | UnionRagged]:
        if isinstance(arrays, str):
            raise InvalidInputError(f"arrays must be a list of names, got {arrays!r}")
        if arrays is None:
            return [*self.arrays.values(), *self.ragged.values()]
        return [self[name] for name in arrays]

    def _filter(self, filter: pc.Expression | None) -> Filter | None:
        return None if filter is None else read_filter(filter, self.schema)

    @cached_property
    def _arrays(self) -> tuple[Mapping[str, UnionArray], Mapping[str, UnionRagged], Mapping[str, str]]:
        """Return the arrays of the view, the ragged ones, and the reasons why others are left out."""
        return shared_arrays({name: {**store.arrays, **store.ragged} for name, store in self.stores.items()})


def _again(stores: dict[str, Store], columns: list[str], column: str) -> Union:
    """Unpickle a view."""
    return Union(stores, columns=columns, column=column)


def _listed(stores: object) -> list[Any]:
    if isinstance(stores, str | os.PathLike | Store) or not isinstance(stores, Sequence):
        raise InvalidInputError(
            f"union takes a list of stores or paths, or a dict of them by name, got {stores!r}"
        )
    return list(stores)


def model_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ, without .zarrow.

    Parameters
    ----------
    paths : list of Path
        Absolute paths.

    Returns
    -------
    list of str
        The names of the models.

    Raises
    ------
    InvalidInputError
        If a path is given twice.

    Examples
    --------
    >>> model_names([Path("/a/run.zarrow"), Path("/b/run.zarrow")])
    ['a/run', 'b/run']
    """
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InvalidInputError(
            f"{twice} is given twice: give each model a name, as in union({{'a': store, 'b': store}})"
        )
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]).removesuffix(".zarrow") for path in paths]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))
