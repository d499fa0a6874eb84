"""Store — a snapshot of a store for reading: its rows at the instant when it was opened.

`open` takes the snapshot, and whatever is read later shows the rows of that instant, however many writers
are at work. A `Store` hands out

* the narrow columns: `Store.table`, `Store.scan`, the Arrow stream, Polars, SQL;
* the vectors: ``store[name]``, a `StoreArray`, without a copy where they are stored as they are;
* both, joined by row: `Store.join` streams the rows that pass a filter, or that have the given keys, and
  reads the vectors of those rows only; `Store.take` picks rows;
* row numbers by key: `Store.locate`, through an index on disk.

Opening reads only what the store is; rows are read when they are needed. The room `_read` does the work,
this class is its surface. It never writes and never locks: a reader needs no write permission, and a crash
of one leaves nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._read.appearance import as_html, as_line
from zarrow._read.arrays import StoreArray
from zarrow._read.asked_keys import read_keys
from zarrow._read.catalog import read_attributes
from zarrow._read.columns import NarrowColumns
from zarrow._read.contents import Contents
from zarrow._read.filters import Filter, read_filter
from zarrow._read.indexing import Check, row_numbers
from zarrow._read.join import Join, Joined, Vectors, batch_rows, rows_found
from zarrow._read.quantized_array import QuantizedArray
from zarrow._read.ragged_rows import StoreRagged
from zarrow._read.view import View, take_view
from zarrow._storage.objects import ObjectPath, located
from zarrow.errors import InvalidInputError, MissingExtraError, StoreChangedError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow.compute as pc

__all__ = ["QuantizedArray", "Store", "StoreArray", "open"]


def open(
    path: str | os.PathLike[str],
    *,
    partial: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = 10 << 30,
) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path : path, URL or obstore store
        The store: on a disk, or in a bucket (``s3://``, ``gs://``, ``az://``, ``https://``; extra ``cloud``).
    partial : bool
        Whether to open a store that was not finalized. If so, it shows the rows that its writers have
        accepted so far: those of open segments come after the committed ones, with provisional row numbers.
    storage_options : dict of str, optional
        For a URL: the configuration of its client, with obstore's names (``endpoint``, ``region``,
        ``access_key_id``, ``secret_access_key``, ``skip_signature``, ``allow_http``). What is missing comes
        from the environment (``AWS_ACCESS_KEY_ID``, …). Pickles of the store contain them.
    cache : path, optional
        For a URL: a directory in which what is read is kept, in blocks of 64 KiB, for this process and
        others. By default that which the environment variable ``ZARROW_CACHE`` names, else none. Ignored for
        a path.
    cache_bytes : int
        About how much the directory may take; what was used longest ago is removed.

    Returns
    -------
    Store
        A snapshot.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store at the path.
    InvalidInputError
        If the directory of the cache cannot be made.
    IncompleteStoreError
        If it was not finalized and `partial` is False.
    CorruptionError
        If it is damaged.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> with zarrow.open(zarrow.testing.example_store().path) as store:
    ...     store.num_rows
    5000
    """
    return Store(path, partial=partial, storage_options=storage_options, cache=cache, cache_bytes=cache_bytes)


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _of_one_snapshot(
    method: Callable[Concatenate[Store, Parameters], Result],
) -> Callable[Concatenate[Store, Parameters], Result]:
    """Have a method see one snapshot from its start to its end."""

    @functools.wraps(method)
    def bound(self: Store, /, *args: Parameters.args, **options: Parameters.kwargs) -> Result:
        return method(self._pinned(), *args, **options)

    return bound


class Store:
    """A snapshot of a store: its rows at the instant when it was opened. See `open`.

    A context manager. It can be pickled: unpickling opens the same rows, or raises if they changed.

    Parameters
    ----------
    path : path, URL or obstore store
        The store.
    partial : bool
        As in `open`.
    storage_options, cache, cache_bytes : optional
        As in `open`.

    Examples
    --------
    >>> import pyarrow.compute as pc, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> for batch, vectors in store.join(pc.field("occurs_prob") >= 0.99):
    ...     print(batch.num_rows, vectors["query_embed"].shape)
    50 (50, 8)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        partial: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = 10 << 30,
    ) -> None:
        self.path: Any = _kept(located(path, storage_options), cache, cache_bytes)
        """Where it is: a `Path`, or for a URL what takes its place."""
        self.partial = partial
        self._show(take_view(self.path, partial=partial))

    def _pinned(self) -> Self:
        """Return this store as it is now: `refresh`, in another thread, does not move it."""
        pinned = object.__new__(type(self))
        pinned.__dict__.update(self.__dict__, _maybe_contents=self._contents)
        return pinned

    def _show(self, view: View) -> None:
        reopen = _reopen, (self.path, self.partial, _facts(view))
        self._maybe_contents: Contents | None = Contents(view, reopen)

    @property
    def _contents(self) -> Contents:
        if self._maybe_contents is None:
            raise InvalidInputError(f"{self.path}: this store was closed: open it again")
        return self._maybe_contents

    @property
    def _view(self) -> View:
        return self._contents.view

    @property
    def _columns(self) -> NarrowColumns:
        return self._contents.columns

    # What it holds

    @property
    def num_rows(self) -> int:
        """Rows, live ones included."""
        return self._view.rows

    @property
    def committed_rows(self) -> int:
        """Rows whose numbers are final: all of them in a complete store."""
        return self._view.snapshot.rows

    @property
    def complete(self) -> bool:
        """Whether the store is finalized; it may lack rows nevertheless, see `expected_rows`."""
        return self._view.snapshot.complete

    @property
    def expected_rows(self) -> int | None:
        """Rows that the store was to have, if its run knew: more than `num_rows` if some are missing."""
        return self._view.snapshot.expected_rows

    @property
    def schema(self) -> pa.Schema:
        """The table's columns: the user's, then ``row`` and ``sample_index``."""
        return self._columns.schema

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return list(self.schema.names)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key columns, which name a row."""
        return self._view.spec.keys

    @property
    def uuid(self) -> str:
        """32 hex digits, unique to this store."""
        return self._view.spec.uuid

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the rows from any others: JSON values, for whatever is derived from them."""
        return asdict(self._view.identity)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the rows come from, as given to the writer."""
        return dict(self._view.spec.provenance)

    @property
    def attrs(self) -> dict[str, Any]:
        """What other programs say of it, such as its title: the attributes of its Zarr group, read anew."""
        return read_attributes(self._view.snapshot.root, layout.ARRAYS_DIR)

    @property
    def segment_rows(self) -> int:
        """Rows of a full segment: what one shard and one Parquet part hold."""
        return self._view.spec.segment_rows

    @property
    def segments(self) -> tuple[range, ...]:
        """The rows of each committed segment, then of each open one: those that lie together on disk."""
        return (*self._view.segment_ranges(), *self._view.live_ranges())

    @property
    def table_bytes(self) -> int:
        """Bytes that the committed rows of the table take on disk."""
        snapshot = self._view.snapshot
        if snapshot.manifest is not None:
            return sum(snapshot.manifest.part_bytes)
        return sum(self._view.record(number).part.size_bytes for number in range(snapshot.segments))

    @property
    def arrays(self) -> Mapping[str, StoreArray]:
        """The arrays by name."""
        return self._contents.arrays

    @property
    def ragged(self) -> Mapping[str, StoreRagged]:
        """The ragged arrays by name: those whose rows have any number of vectors."""
        return self._contents.ragged

    @property
    def derived(self) -> Mapping[str, StoreArray | StoreRagged]:
        """The arrays, ragged or not, that `zarrow.add_array` computed from these rows, by name.

        Arrays computed from other rows, for example before the last append, are left out; ``store[name]``
        says why.
        """
        return MappingProxyType(self._contents.derived.arrays)

    def __getitem__(self, name: str) -> Any:
        """Return the array of that name: a `StoreArray`, or a `StoreRagged`.

        `UnknownNameError` if there is none.
        """
        return self._contents.array(name)

    def __len__(self) -> int:
        return self.num_rows

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an array or a column of that name."""
        return name in {**self.arrays, **self.ragged, **self.derived} or name in self.columns

    def __repr__(self) -> str:
        return as_line(self.path, self._maybe_contents)

    def _repr_html_(self) -> str | None:
        return None if self._maybe_contents is None else as_html(self.path, self._maybe_contents)

    def _ipython_key_completions_(self) -> list[str]:
        return [*self.arrays, *self.ragged, *self.derived]

    # Narrow columns

    @_of_one_snapshot
    def table(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """Return narrow columns of the rows that pass a filter, in row order.

        Parameters
        ----------
        columns : list of str, optional
            The columns; all by default.
        filter : pyarrow.compute.Expression, optional
            Which rows, e.g. ``pc.field("occurs_prob") > 0.9``. Segments that it rules out by
            their statistics are not read.

        Returns
        -------
        pyarrow.Table
            The rows that pass.

        Raises
        ------
        UnknownNameError
            If there is no such column.
        InvalidInputError
            If the filter does not fit the table.
        CorruptionError
            If a part is damaged; names its segment.

        Examples
        --------
        >>> import pyarrow.compute as pc, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> store.table(["subject_id"], filter=pc.field("row") < 3).num_rows
        3
        """
        return self._columns.table(self._columns.names(columns), self._filter(filter))

    @_of_one_snapshot
    def scan(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        batch_size: int | None = None,
    ) -> pa.RecordBatchReader:
        """Stream narrow columns of the rows that pass a filter, in row order and in bounded memory.

        Parameters
        ----------
        columns, filter : optional
            As in `table`.
        batch_size : int, optional
            Rows of every batch but the last; by default whatever takes no copy.

        Returns
        -------
        pyarrow.RecordBatchReader
            The batches.

        Raises
        ------
        UnknownNameError, InvalidInputError
            As in `table`.

        Examples
        --------
        >>> import zarrow.testing
        >>> sum(batch.num_rows for batch in zarrow.testing.example_store().scan(["subject_id"]))
        5000
        """
        names, rows = self._columns.names(columns), None if batch_size is None else _positive(batch_size)
        schema = pa.schema([self.schema.field(name) for name in names])
        batches = self._columns.batches(names, self._filter(filter), rows)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export all narrow columns as an Arrow stream."""
        return self.scan().__arrow_c_stream__(requested_schema)

    def head(self, rows: int = 10, columns: Sequence[str] | None = None) -> pa.Table:
        """Return narrow columns of the first rows.

        Parameters
        ----------
        rows : int
            How many.
        columns : list of str, optional
            As in `table`.

        Returns
        -------
        pyarrow.Table
            The rows.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store().head(2, ["subject_id"]).to_pydict()
        {'subject_id': [0, 0]}
        """
        return self.take(range(min(rows, self.num_rows)), columns, [])[0]

    def to_pandas(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None
    ) -> pd.DataFrame:
        """Return narrow columns of the rows that pass a filter as a pandas frame.

        Parameters
        ----------
        columns, filter : optional
            As in `table`.

        Returns
        -------
        pandas.DataFrame
            The rows that pass, in memory.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store().to_pandas(["subject_id"]).shape
        (5000, 1)
        """
        try:
            return self.table(columns, filter).to_pandas()
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"to_pandas needs {error.name}: pip install pandas") from error

    def to_polars(self) -> pl.LazyFrame:
        """Return the narrow columns as a Polars lazy frame, which reads only what a query needs.

        Returns
        -------
        polars.LazyFrame
            Over the Parquet parts; live rows and those of a short last segment are in memory. In a bucket a
            filter leaves out parts by the store's statistics.

        Raises
        ------
        MissingExtraError
            If Polars is not installed.
        CorruptionError
            If a part is missing or has the wrong size. Polars trusts what is in it: `zarrow.verify` checks.

        Examples
        --------
        >>> import polars as pl, zarrow.testing
        >>> zarrow.testing.example_store().to_polars().select(pl.len()).collect().item()
        5000
        """
        from zarrow._read import engines

        return engines.polars_frame(*self._columns.full_parts())

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run SQL over the narrow columns with DuckDB; the table is called ``predictions``.

        Parameters
        ----------
        query : str
            The query. Keep the column ``row`` in the result to read the vectors with `vectors`.

        Returns
        -------
        duckdb.DuckDBPyRelation
            The result; ``.fetchall()``, ``.df()``, ``.pl()`` or ``.arrow()`` fetch it.

        Raises
        ------
        MissingExtraError
            If DuckDB is not installed.
        CorruptionError
            If a part is missing or has the wrong size. DuckDB trusts what is in it: `zarrow.verify` checks.

        Examples
        --------
        >>> import zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> best = store.sql("SELECT row FROM predictions ORDER BY occurs_prob DESC LIMIT 3")
        >>> store.vectors(best)["query_embed"].shape
        (3, 8)
        """
        self._view.guard()
        return self._contents.sql.sql(query)

    # Columns and vectors of the same rows

    @_of_one_snapshot
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
        rows : int or bool array, shape (n,) or (num_rows,)
            Row numbers, repeated if need be, negative ones counted from the end; or a mask.
        columns : list of str, optional
            The narrow columns; all by default.
        arrays : list of str, optional
            The arrays, derived or not; all that are not derived by default.
        check : {"crc"}, optional
            Compare the vectors' chunks with their checksums; see `StoreArray.read`.

        Returns
        -------
        table : pyarrow.Table
            The narrow columns.
        vectors : dict of str to array, shapes (n, *row_shape)
            The vectors.

        Raises
        ------
        IndexError
            If a row is out of range.
        UnknownNameError
            If there is no such column or array.
        CorruptionError
            If the rows' files are damaged.

        Examples
        --------
        >>> import zarrow.testing
        >>> table, vectors = zarrow.testing.example_store().take([4000, -1, 4000])
        >>> table["row"].to_pylist(), vectors["query_embed"].shape
        ([4000, 4999, 4000], (3, 8))
        """
        names, chosen = self._columns.names(columns), self._chosen(arrays)
        numbers = row_numbers(rows, self.num_rows)
        table = self._columns.take(numbers, names)
        return table, {array.name: array.take(numbers, check=check) for array in chosen}

    @_of_one_snapshot
    def vectors(self, rows: Any, arrays: Sequence[str] | None = None, *, check: Check = None) -> Vectors:
        """Return the vectors of the rows that a query found.

        Parameters
        ----------
        rows : table-like with a column ``row``, or int array
            A table or frame of pyarrow, Polars, pandas or DuckDB.
        arrays, check : optional
            As in `take`.

        Returns
        -------
        dict of str to array, shapes (n, *row_shape)
            In the order of `rows`.

        Raises
        ------
        IndexError
            If a row is out of range.
        UnknownNameError
            If there is no such array, or the table has no column ``row``.
        StoreChangedError
            If a table is given, and rows have other numbers by now.

        Examples
        --------
        >>> import zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> store.vectors(store.table(["row"]).slice(10, 5))["query_embed"].shape
        (5, 8)
        """
        found = rows_found(rows)
        if found is not rows:  # an engine read the files that are at the path now
            self._view.guard()
        numbers = row_numbers(found, self.num_rows)
        return {array.name: array.take(numbers, check=check) for array in self._chosen(arrays)}

    @_of_one_snapshot
    def locate(self, keys: Any, *, missing: Literal["raise", -1] = "raise") -> npt.NDArray[np.int64]:
        """Return the rows that have these keys.

        Uses the index that `build_index` made. If there is none of exactly these rows (it never has live
        rows), the first call makes one in a temporary file, which takes a scan of the key columns and disk
        space, but little memory. Later calls take the same time however many rows there are.

        Parameters
        ----------
        keys : table, frame, mapping of str to values, or values
            The values of each key column, by name; other columns are ignored. A single key column needs no
            name. Values must be of the column's kind, but may differ in width: integers for integers,
            strings for strings, times with a zone for times with a zone.
        missing : {"raise", -1}
            What to do about a key that no row has, such as one with a null: raise, or give −1 for its row.
            Leave those out before `take`: there, −1 is the last row, as in numpy.

        Returns
        -------
        int64 array, shape (n,)
            The row of each key, the first one if several have it (see `duplicated`).

        Raises
        ------
        InvalidInputError
            If the store has no keys, or the columns or types are not those of its keys.
        KeyNotFoundError
            If a key has no row and `missing` is ``"raise"``.
        CorruptionError
            If the index is damaged, or the table that it is made from.

        Examples
        --------
        >>> import zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> store.locate({"subject_id": [3, 4], "query": ["code//7"] * 2})
        array([37, 47])
        >>> store.locate({"subject_id": [3, 999_999], "query": ["code//7"] * 2}, missing=-1)
        array([37, -1])
        """
        if missing not in (-1, "raise"):
            raise InvalidInputError(f"missing must be -1 or 'raise', got {missing!r}")
        asked = read_keys(keys, self._contents.key_schema)
        rows = np.full(len(asked.possible), -1, np.int64)
        rows[asked.possible] = self._contents.index.find(asked.keys)
        if missing == "raise":
            asked.require(rows, self.path)
        return rows

    def duplicated(self) -> npt.NDArray[np.int64]:
        """Return the rows whose key an earlier row has, and which `locate` therefore never finds.

        Reads the whole index, in bounded memory.

        Returns
        -------
        int64 array, shape (n,)
            Row numbers, in order.

        Raises
        ------
        InvalidInputError, CorruptionError
            As in `locate`.

        Examples
        --------
        >>> import zarrow.testing
        >>> len(zarrow.testing.example_store().duplicated())
        0
        """
        return self._contents.index.repeated()

    @_of_one_snapshot
    def join(
        self,
        filter: pc.Expression | None = None,
        columns: Sequence[str] | None = None,
        arrays: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        keys: Any = None,
        order: Literal["sample_index"] | None = None,
        check: Check = None,
    ) -> Iterator[Joined]:
        """Stream the rows that pass a filter, or have the given keys: narrow columns and vectors, joined.

        The vectors of other rows are not read. Memory is that of a few batches, however many rows pass.

        Parameters
        ----------
        filter, columns : optional
            As in `table`.
        arrays : list of str, optional
            As in `take`.
        batch_size : int, optional
            Rows of every batch but the last; by default such that the vectors of a batch take 16 to 32 MiB.
        keys : table, frame, mapping of str to values, or values, optional
            The keys of the rows, as in `locate`; each must have a row. Rows come in the order of the keys,
            once per key. Not together with `filter` or `order`.
        order : {"sample_index"}, optional
            Return rows in the order of the dataset that was predicted, not in row order. Needs 16 bytes of
            memory per row that passes.
        check : {"crc"}, optional
            As in `take`.

        Returns
        -------
        iterator of (RecordBatch, dict of str to array)
            Batches of the narrow columns and of the vectors of the same rows, shapes
            (batch.num_rows, *row_shape): the mapped files themselves, read-only, where the rows lie together.

        Raises
        ------
        UnknownNameError, InvalidInputError, KeyNotFoundError
            As in `table` and `locate`, at the call.
        CorruptionError
            When a batch of damaged rows is reached; names segment and rows.

        Examples
        --------
        >>> import zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> for batch, vectors in store.join(columns=["subject_id"], batch_size=2000):
        ...     print(batch.num_rows, vectors["query_embed"].shape)
        2000 (2000, 8)
        2000 (2000, 8)
        1000 (1000, 8)
        """
        names, chosen = self._columns.names(columns), self._chosen(arrays)
        size = batch_rows(chosen) if batch_size is None else _positive(batch_size)
        join = Join(columns=self._columns, names=names, arrays=chosen, size=size, check=check)
        if keys is not None:
            if filter is not None or order is not None:
                raise InvalidInputError(
                    "join takes keys, or a filter and an order, not both, because rows come in the order of "
                    "the keys: choose among the row numbers that locate() returns instead"
                )
            return join.of_rows(self.locate(keys, missing="raise"))
        condition = self._filter(filter)
        if order is None:
            return join.filtered(condition)
        if order != "sample_index":
            raise InvalidInputError(f"order must be None or 'sample_index', got {order!r}")
        return join.ordered(condition)

    def __iter__(self) -> Iterator[Joined]:
        """Stream all rows: `join` without a filter."""
        return self.join()

    def in_sample_order(self, filter: pc.Expression | None = None) -> npt.NDArray[np.int64]:
        """Return the rows in the order of the dataset that was predicted.

        Parameters
        ----------
        filter : pyarrow.compute.Expression, optional
            As in `table`.

        Returns
        -------
        int64 array, shape (n,)
            Row numbers, ordered by ``sample_index``.

        Raises
        ------
        InvalidInputError
            If rows have no sample index.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store().in_sample_order()[:3]
        array([4999, 4998, 4997])
        """
        return self._columns.in_sample_order(self._filter(filter))

    def _filter(self, filter: pc.Expression | None) -> Filter | None:
        return None if filter is None else read_filter(filter, self.schema, [*self.arrays, *self.ragged])

    def _chosen(self, arrays: Sequence[str] | None) -> list[StoreArray | StoreRagged]:
        if isinstance(arrays, str):
            raise InvalidInputError(f"arrays must be a list of names, got {arrays!r}")
        if arrays is None:
            return [*self.arrays.values(), *self.ragged.values()]
        return [self[name] for name in arrays]

    # The snapshot

    def refresh(self) -> bool:
        """Move on to the rows of this instant.

        Arrays and iterators that were handed out before keep showing the rows they had.

        Returns
        -------
        bool
            Whether anything changed.

        Raises
        ------
        StoreChangedError
            If another store lies at the path now.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store().refresh()
        False
        """
        old = self._view
        view = take_view(self.path, partial=self.partial)
        if view.spec.uuid != old.spec.uuid:
            raise StoreChangedError(f"{self.path}: this store was replaced by another one: open it again")
        if _facts(view) == _facts(old) and old.guard.holds():
            return False
        self._show(view)
        return True

    def require_unchanged(self) -> None:
        """Make sure that the path still leads to this store.

        Raises
        ------
        StoreChangedError
            If the store was replaced, moved or removed since it was opened.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store().require_unchanged()
        """
        self._view.guard()

    def close(self) -> None:
        """Release files and memory; arrays that were handed out stay usable."""
        self._maybe_contents = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        return self._contents.reopen


def _kept(path: Any, cache: str | os.PathLike[str] | None, cache_bytes: int) -> Any:
    """Return a path; one in a bucket with the directory in which what is read is kept, if there is one."""
    folder = cache or os.environ.get("ZARROW_CACHE")
    if not folder or not isinstance(path, ObjectPath):
        return path
    from zarrow._storage.object_cache import Blocks, CachedPath

    if cache is None and isinstance(path, CachedPath):  # it was pickled with its own
        return path
    return CachedPath(path, Blocks(folder, cache_bytes))


def _facts(view: View) -> tuple[Any, ...]:
    """Return what differs between views of different rows; hashable."""
    complete = view.snapshot.complete
    return view.identity, complete, None if complete else view.guard.identity


def _reopen(path: Any, partial: bool, facts: tuple[Any, ...]) -> Store:
    """Unpickle a store: the same rows, or an error."""
    store = Store(path, partial=partial)
    if _facts(store._view) != facts:
        raise StoreChangedError(
            f"{path}: the store changed since it was pickled, when it had {facts[0].rows} rows (now "
            f"{store.num_rows}): open it again"
        )
    return store


def _positive(batch_size: object) -> int:
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InvalidInputError(f"batch_size must be a positive number of rows, got {batch_size!r}")
    return int(batch_size)
