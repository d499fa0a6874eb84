"""How does ``xr.open_dataset("run.zarrow")`` work?

`ZarrowBackendEntrypoint` is xarray's backend of that name; xarray finds it by itself. A dataset has

* one variable per array, derived ones too, ``(row, <name>_dim)``: slices of plain bytes are the mapped
  files themselves;
* one variable per column of the table, along ``row``; the columns that name a row are coordinates. They
  have no index unless ``key_index=True`` asks for `KeyIndex`, which looks rows up in the store's index on
  disk: xarray's own would be in memory, and any index makes xarray refuse to compute with two stores
  whose keys differ.

The column ``row`` is no variable: it is the position along the dimension ``row``, and xarray would load a
variable of a dimension's name for an index.

Opening reads what the store is, and no row. Rows are read where xarray asks for them, segment by segment
with dask (``chunks={}``). `_read.column_values` says which dtypes columns have.

Place: tier 5, the edge that faces xarray; imported by nothing of the library. Reads only.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow._format import layout
from zarrow._format.arrow import number_dtype
from zarrow._format.layout import ROW
from zarrow._format.zarr_metadata import dimension_names
from zarrow._read.column_values import ColumnValues, column_values
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.store import Store, open

try:
    import xarray as xr
    from xarray.backends import BackendArray, BackendEntrypoint
    from xarray.core import indexing
    from xarray.core.indexing import IndexSelResult
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.xarray needs {error.name}: pip install 'zarrow[xarray]'", name=error.name
    ) from error

__all__ = ["KeyIndex", "ZarrowBackendEntrypoint"]

_STORES_KEPT = 8
_WITHOUT_NAN: dict[Any, Callable[..., Any]] = {np.nanmean: np.mean, np.nansum: np.sum}


class ZarrowBackendEntrypoint(BackendEntrypoint):
    """The engine ``zarrow`` of `xarray.open_dataset`, which xarray takes for stores by itself.

    Nullable integers and booleans are floats with NaN, as in xarray at large, with their own type for an
    attribute, ``arrow_type``; name their `fill_values` to have them in their own dtype. Key columns are never
    null, and so keep theirs. Strings are objects, None
    where null; timestamps are ``datetime64`` in UTC.

    Examples
    --------
    >>> import xarray as xr, zarrow.testing
    >>> dataset = xr.open_dataset(zarrow.testing.example_store().path)
    >>> dict(dataset.sizes)
    {'row': 5000, 'query_embed_dim': 8}
    >>> dataset.query_embed.isel(row=dataset.occurs_prob.values >= 0.99).mean("row").shape
    (8,)
    """

    description = "Open zarrow stores, lazily"
    url = "https://pypi.org/project/zarrow"

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether something is a store.

        Parameters
        ----------
        filename_or_obj : object
            What was given to `xarray.open_dataset`.

        Returns
        -------
        bool
            Whether it is the path of a directory that holds a ``zarrow.json``, or ends in ``.zarrow``.

        Examples
        --------
        >>> ZarrowBackendEntrypoint().guess_can_open("run.zarrow")
        True
        >>> ZarrowBackendEntrypoint().guess_can_open("run.nc")
        False
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = os.fspath(filename_or_obj)
        if not isinstance(path, str):
            return False
        return path.rstrip("/").endswith(".zarrow") or os.path.isfile(os.path.join(path, layout.STORE_JSON))

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        partial: bool = False,
        fill_values: Mapping[str, object] | None = None,
        key_index: bool = False,
    ) -> xr.Dataset:
        """Open a store as a lazy dataset; call `xarray.open_dataset` instead.

        Parameters
        ----------
        filename_or_obj : path
            The store.
        drop_variables : str or list of str, optional
            Columns and arrays to leave out.
        partial : bool
            Whether a store that was not finalized will do; see `zarrow.open`.
        fill_values : dict of str to value, optional
            Per column, what stands for null; the column keeps its dtype. −1 in ``sample_index``.
        key_index : bool
            Whether ``dataset.sel`` finds rows by key; see `KeyIndex`.

        Returns
        -------
        xarray.Dataset
            A snapshot of the store, nothing of it read.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, IncompleteStoreError, CorruptionError
            As `zarrow.open`.
        UnknownNameError, InvalidInputError
            If a fill value is for no column, or does not fit it; if there is no key to index.

        Examples
        --------
        >>> import xarray as xr, zarrow.testing
        >>> path = zarrow.testing.example_store().path
        >>> dataset = xr.open_dataset(path, chunks={}, drop_variables=["occurs_prob"])
        >>> dataset.query_embed.chunks
        ((2048, 2048, 904), (8,))
        >>> dataset = xr.open_dataset(path, key_index=True)
        >>> dataset.sel(subject_id=3, query="code//7").occurs_prob.item()
        0.0074
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            raise InvalidInputError(f"a store is opened by its path, got {filename_or_obj!r}")
        store = open(filename_or_obj, partial=partial)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        dataset = _dataset(store, dropped, fill_values, key_index=key_index)
        dataset.set_close(store.close)
        return dataset


def _dataset(
    store: Store, dropped: set[str], fill_values: Mapping[str, object] | None, *, key_index: bool
) -> xr.Dataset:
    handle = _Handle(store)
    lengths = tuple(len(rows) for rows in store.segments if len(rows))
    chunks = {ROW: store.segment_rows if store.complete else lengths or (0,)}
    variables: dict[str, xr.Variable] = {}
    for name, values in column_values(store.schema, fill_values, widen=True).items():
        if name != ROW and name not in dropped:
            lazy = indexing.LazilyIndexedArray(_Column(handle, values))
            variables[name] = xr.Variable((ROW,), lazy, _attributes(values), {"preferred_chunks": chunks})
    for name, array in {**store.arrays, **store.derived}.items():
        if name not in dropped:
            names = dimension_names(name, array.row_shape)
            lazy = indexing.LazilyIndexedArray(_Vectors(handle, name))
            preferred = chunks | dict(zip(names[1:], array.row_shape, strict=True))
            variables[name] = xr.Variable(names, lazy, None, {"preferred_chunks": preferred})
    keys = {name: variables.pop(name) for name in store.keys if name in variables}
    if key_index and (not keys or len(keys) < len(store.keys)):
        raise InvalidInputError(
            f"{store.path}: key_index=True needs the keys {list(store.keys) or '(the store has none)'} "
            f"in the dataset, got {list(keys)}: do not drop them, or leave key_index away"
        )
    index = KeyIndex(handle, {name: name for name in keys}) if key_index else None
    coords = xr.Coordinates(keys, indexes={} if index is None else dict.fromkeys(keys, index))
    attributes: dict[str, Any] = {
        "zarrow_uuid": store.uuid,
        "zarrow_keys": list(store.keys),
        "provenance": json.dumps(store.provenance),
    }
    if not store.complete:
        attributes["committed_rows"] = store.committed_rows
    return xr.Dataset(variables, coords, attributes)


def _attributes(values: ColumnValues) -> dict[str, str]:
    """Return what the dtype does not say of a column: its time zone, its type if it became a float."""
    if values.timezone is not None:
        return {"timezone": values.timezone}
    was = number_dtype(values.arrow_type) if values.dtype.kind == "f" else values.dtype
    return {"arrow_type": str(values.arrow_type)} if was.kind != values.dtype.kind else {}


class KeyIndex(xr.Index):
    """Lets ``dataset.sel`` find rows by key, through the index on disk.

    ``xr.open_dataset(path, key_index=True)`` makes it. ``dataset.sel(subject_id=3, query="stroke")`` is one
    row, and ``dataset.sel(subject_id=[3, 4], query="stroke")`` two: all key columns are named, each by a
    value or by as many values as the others, which are taken side by side. Labels that are DataArrays give
    the result their dimensions. Of several rows with one key the first is found; a key that no row has is a
    KeyError. `zarrow.build_index` makes the first look-up fast, also in the processes of dask.

    The index is of the whole store: a selection has none. Two stores whose keys differ do not align; open
    them without it to compute with both, or to put one behind the other.

    Parameters
    ----------
    handle : object
        The store.
    names : dict of str to str
        Per coordinate, the key column that it is.

    Examples
    --------
    >>> import xarray as xr, zarrow.testing
    >>> dataset = xr.open_dataset(zarrow.testing.example_store().path, key_index=True)
    >>> dataset.sel(subject_id=[3, 499], query="code//7").occurs_prob.values
    array([0.0074, 0.9994])
    """

    def __init__(self, handle: _Handle, names: Mapping[Hashable, str]) -> None:
        self._handle, self._names = handle, dict(names)

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> IndexSelResult:
        """Return the rows that have keys; xarray calls this.

        Parameters
        ----------
        labels : dict of str to values
            Per coordinate what was asked for.
        method, tolerance : None
            Keys are equal or not: there is nothing else.

        Returns
        -------
        IndexSelResult
            The rows.

        Raises
        ------
        KeyNotFoundError
            A KeyError: no row has a key.
        InvalidInputError
            If a key column is not named, the labels are of another type, not side by side, or a slice.
        """
        if method is not None or tolerance is not None:
            raise InvalidInputError("keys are equal or not: sel takes no method or tolerance here")
        if missing := [name for name in self._names if name not in labels]:
            raise InvalidInputError(
                f"a row is named by all of {', '.join(map(str, self._names))}; missing {missing}: for the "
                "rows of some, filter: dataset.isel(row=dataset.query.values == 'stroke')"
            )
        named = {self._names[name]: _labels(name, label) for name, label in labels.items()}
        try:
            values = xr.broadcast(*named.values())
        except ValueError as error:
            raise InvalidInputError(f"keys are taken side by side, so as many of each: {error}") from None
        dims, shape = values[0].dims, values[0].shape
        keys = {name: value.values.reshape(-1) for name, value in zip(named, values, strict=True)}
        rows = self._handle.store.locate(keys, missing="raise").reshape(shape)
        if not shape:
            return IndexSelResult({ROW: int(rows[()])})
        return IndexSelResult({ROW: rows if dims == (ROW,) else xr.Variable(dims, rows)})

    def isel(self, indexers: Mapping[Any, Any]) -> KeyIndex | None:
        """Return the index if all rows stay where they are, else None; xarray calls this.

        Parameters
        ----------
        indexers : mapping of str to indexer
            Which rows.

        Returns
        -------
        KeyIndex or None
            The index is of the whole store.
        """
        rows = indexers.get(ROW, slice(None))
        count = self._handle.store.num_rows
        return self if isinstance(rows, slice) and rows.indices(count) == (0, count, 1) else None

    def equals(self, other: xr.Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Tell whether another index is of the same rows; xarray calls this.

        Parameters
        ----------
        other : Index
            Of another dataset.
        exclude : set of str, optional
            Of no effect.

        Returns
        -------
        bool
            Whether it is.
        """
        del exclude
        if not isinstance(other, KeyIndex):
            return False
        mine, theirs = self._handle.store, other._handle.store
        return (mine.uuid, mine.num_rows, self._names) == (theirs.uuid, theirs.num_rows, other._names)

    def rename(self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]) -> KeyIndex:
        """Return the index under other names; xarray calls this.

        Parameters
        ----------
        name_dict : mapping of str to str
            New names of coordinates.
        dims_dict : mapping of str to str
            New names of dimensions.

        Returns
        -------
        KeyIndex
            Of the same rows.
        """
        if dims_dict.get(ROW, ROW) != ROW:
            raise InvalidInputError("the dimension 'row' keeps its name while keys are indexed: drop_indexes")
        return KeyIndex(self._handle, {name_dict.get(name, name): key for name, key in self._names.items()})

    @classmethod
    def concat(
        cls,
        indexes: Sequence[Self],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> Self:
        """Refuse: an index is of one store; xarray calls this.

        Parameters
        ----------
        indexes : sequence of KeyIndex
            Of the datasets.
        dim : str
            Along which.
        positions : list of int arrays, optional
            Where the rows go.

        Returns
        -------
        KeyIndex
            Never.

        Raises
        ------
        InvalidInputError
            Always.
        """
        del indexes, dim, positions
        raise InvalidInputError(
            "the index of keys is of one store: open the stores without key_index to concatenate them"
        )

    def _repr_inline_(self, max_width: int) -> str:
        return f"KeyIndex of {self._handle.store.path.name}"[:max_width]


def _labels(name: Hashable, label: Any) -> xr.DataArray:
    """Return labels without coordinates, along the rows unless they say otherwise."""
    if isinstance(label, slice):
        raise InvalidInputError(f"keys have no order to slice {name!r} by: give values")
    if isinstance(label, xr.DataArray | xr.Variable):
        return xr.DataArray(label.data, dims=label.dims)
    values = np.asarray(label)
    if values.ndim > 1:
        raise InvalidInputError(f"values of {name!r} must be one or a list, got shape {values.shape}")
    return xr.DataArray(values, dims=(ROW,) * values.ndim)


class _Handle:
    """A store that the variables of a dataset share, also where they are unpickled one by one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle, self.store.__reduce__()


@functools.lru_cache(maxsize=_STORES_KEPT)
def _handle(opener: Callable[..., Store], arguments: tuple[Any, ...]) -> _Handle:
    return _Handle(opener(*arguments))


class _Lazy(BackendArray):
    """A variable: xarray's indexers, taken apart into one index per axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    @abstractmethod
    def _read(self, key: tuple[Any, ...]) -> Any:
        """Return what an index per axis selects."""


class _Vectors(_Lazy):
    """An array of a store."""

    def __init__(self, handle: _Handle, name: str) -> None:
        self._handle, self._name = handle, name
        array = handle.store[name]
        self.shape, self.dtype = array.shape, array.dtype

    def _read(self, key: tuple[Any, ...]) -> Any:
        found = self._handle.store[self._name][key[0]]
        behind = 0
        for index in reversed(key[1:]):
            found = found[(..., index, *(slice(None),) * behind)]
            behind += np.ndim(index) if not isinstance(index, slice) else 1
        if found.dtype.kind == "f" and found.ndim > 1:
            return found.view(_Rows)
        return found


class _Column(_Lazy):
    """A column of a store's table."""

    def __init__(self, handle: _Handle, values: ColumnValues) -> None:
        self._handle, self._values = handle, values
        self.shape, self.dtype = (handle.store.num_rows,), values.dtype

    def _read(self, key: tuple[Any, ...]) -> Any:
        store, name, (rows,) = self._handle.store, self._values.name, key
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step == 1:
                low, high = pc.field(ROW) >= start, pc.field(ROW) < stop
                whole = (start, stop) == (0, self.shape[0])
                return self._convert(store.table([name], None if whole else low & high)[name])
            rows = np.arange(start, stop, step)
        if np.ndim(rows):
            return self._convert(store.take(rows, [name], [])[0][name])
        return self._convert(store.take([rows], [name], [])[0][name]).reshape(())

    def _convert(self, column: Any) -> npt.NDArray[Any]:
        found = self._values.convert(column)
        if not found.flags.writeable:
            found = found.copy()  # Arrow's memory; xarray users may write to what they loaded
        return found


class _Rows(np.ndarray[Any, Any]):
    """Vectors whose ``nanmean`` and ``nansum``, which xarray takes for all floats, copy nothing.

    numpy's copy the whole array to replace its NaNs. A plain sum that is not NaN had none to replace.
    """

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain = _WITHOUT_NAN.get(func)
        if plain is not None and len(args) == 1 and kwargs.keys() <= {"axis", "dtype"}:
            values = np.asarray(args[0])
            if values.size:
                with warnings.catch_warnings(), np.errstate(invalid="ignore", over="ignore"):
                    found = plain(values, **kwargs)
                if np.isfinite(found).all():
                    return found
            return func(values, **kwargs)
        return super().__array_function__(func, types, args, kwargs)
