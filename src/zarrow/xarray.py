"""How does ``xr.open_dataset("run.zarrow")`` work?

`ZarrowBackendEntrypoint` is xarray's backend of that name; xarray finds it by itself. A dataset has

* one variable per array, derived ones too, ``(row, <name>_dim)``: slices of plain bytes are the mapped
  files themselves;
* one variable per column of the table, along ``row``; the columns that name a row are coordinates. They
  have no index: xarray would have to hold one in memory.

The column ``row`` is no variable: it is the position along the dimension ``row``, and xarray would load a
variable of a dimension's name for an index.

Opening reads what the store is, and no row. Rows are read where xarray asks for them, segment by segment
with dask (``chunks={}``). `_column_values` says which dtypes columns have.

Place: tier 5, the edge that faces xarray; imported by nothing of the library. Reads only.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow import layout
from zarrow._column_values import ColumnValues, column_values
from zarrow._zarr_metadata import dimension_names
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.layout import ROW
from zarrow.store import Store, open

try:
    import xarray as xr
    from xarray.backends import BackendArray, BackendEntrypoint
    from xarray.core import indexing
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.xarray needs {error.name}: pip install 'zarrow[xarray]'", name=error.name
    ) from error

__all__ = ["ZarrowBackendEntrypoint"]

_STORES_KEPT = 8
_WITHOUT_NAN: dict[Any, Callable[..., Any]] = {np.nanmean: np.mean, np.nansum: np.sum}


class ZarrowBackendEntrypoint(BackendEntrypoint):
    """The engine ``zarrow`` of `xarray.open_dataset`, which xarray takes for stores by itself.

    Nullable integers and booleans are floats with NaN, as in xarray at large; name their `fill_values` to
    have them in their own dtype. Key columns are never null, and so keep theirs. Strings are objects, None
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

        Returns
        -------
        xarray.Dataset
            A snapshot of the store, nothing of it read.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, IncompleteStoreError, CorruptionError
            As `zarrow.open`.
        UnknownNameError, InvalidInputError
            If a fill value is for no column, or does not fit it.

        Examples
        --------
        >>> import xarray as xr, zarrow.testing
        >>> path = zarrow.testing.example_store().path
        >>> dataset = xr.open_dataset(path, chunks={}, drop_variables=["occurs_prob"])
        >>> dataset.query_embed.chunks
        ((2048, 2048, 904), (8,))
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            raise InvalidInputError(f"a store is opened by its path, got {filename_or_obj!r}")
        store = open(filename_or_obj, partial=partial)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        dataset = _dataset(store, dropped, fill_values)
        dataset.set_close(store.close)
        return dataset


def _dataset(store: Store, dropped: set[str], fill_values: Mapping[str, object] | None) -> xr.Dataset:
    handle = _Handle(store)
    lengths = tuple(len(rows) for rows in store.segments if len(rows))
    chunks = {ROW: store.segment_rows if store.complete else lengths or (0,)}
    variables: dict[str, xr.Variable] = {}
    for name, values in column_values(store.schema, fill_values, widen=True).items():
        if name != ROW and name not in dropped:
            lazy = indexing.LazilyIndexedArray(_Column(handle, values))
            timezone = {} if values.timezone is None else {"timezone": values.timezone}
            variables[name] = xr.Variable((ROW,), lazy, timezone, {"preferred_chunks": chunks})
    for name, array in {**store.arrays, **store.derived}.items():
        if name not in dropped:
            names = dimension_names(name, array.row_shape)
            lazy = indexing.LazilyIndexedArray(_Vectors(handle, name))
            preferred = chunks | dict(zip(names[1:], array.row_shape, strict=True))
            variables[name] = xr.Variable(names, lazy, None, {"preferred_chunks": preferred})
    keys = {name: variables.pop(name) for name in store.keys if name in variables}
    coords = xr.Coordinates(keys, indexes={})
    attributes: dict[str, Any] = {
        "zarrow_uuid": store.uuid,
        "zarrow_keys": list(store.keys),
        "provenance": json.dumps(store.provenance),
    }
    if not store.complete:
        attributes["committed_rows"] = store.committed_rows
    return xr.Dataset(variables, coords, attributes)


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

    def _read(self, key: tuple[Any, ...]) -> Any:
        raise NotImplementedError


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
