"""Backend for xarray — ``xr.open_dataset("run.zarrow")``.

`ZarrowBackendEntrypoint` is registered with xarray as the engine ``zarrow``. A dataset has

* one variable per array, derived or not, ``(row, <name>_dim)``: slices of plain bytes are the mapped files
  themselves;
* one variable per column of the table, along ``row``. Key columns are coordinates. They have no index
  unless ``key_index=True`` asks for a `KeyIndex`, which uses the store's index on disk: an index of
  xarray's own would be in memory, and with any index xarray refuses to compute with two stores whose keys
  differ.

The column ``row`` is not a variable: it is the position along the dimension ``row``, and xarray would load
a variable of that name as an index.

Opening reads what the store is, and no row. Rows are read when xarray needs them, segment by segment with
dask (``chunks={}``). `_read.column_values` lists the dtypes of columns. Reads only.
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
from zarrow._format.given import to_host
from zarrow._format.layout import ROW
from zarrow._format.spec import rows_of_expected
from zarrow._format.zarr_metadata import CF_CONVENTIONS, dimension_names, ragged_dimension_names
from zarrow._read.column_values import ColumnValues, as_keys, column_values
from zarrow._read.ragged_rows import PackedVectors, StoreRagged
from zarrow._storage.objects import ObjectPath
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.store import Store, StoreArray, open

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
    """The engine ``zarrow`` of `xarray.open_dataset`, which xarray chooses for stores by itself.

    Nullable integers and booleans become floats with NaN, as elsewhere in xarray, and the attribute
    ``arrow_type`` has their own type; give `fill_values` to keep their dtype. Key columns are never null, so
    they keep theirs. Strings are objects, None where null; timestamps are ``datetime64`` in UTC.
    With pandas 3, xarray itself makes NaN of None in what it loads through dask. Dask does not know the size
    of objects: use ``chunks={}``, one chunk per segment, or drop such columns to use ``chunks="auto"``.

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
            The argument of `xarray.open_dataset`.

        Returns
        -------
        bool
            Whether it is the path of a directory with a ``zarrow.json``, or ends in ``.zarrow``.

        Examples
        --------
        >>> ZarrowBackendEntrypoint().guess_can_open("run.zarrow")
        True
        >>> ZarrowBackendEntrypoint().guess_can_open("run.nc")
        False
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        if isinstance(filename_or_obj, ObjectPath):
            return True
        path = os.fspath(filename_or_obj)
        if not isinstance(path, str):
            return False
        return path.rstrip("/").endswith(".zarrow") or os.path.isfile(os.path.join(path, layout.STORE_JSON))

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: object = None,
        decode_times: object = None,
        decode_timedelta: object = None,
        use_cftime: object = None,
        concat_characters: object = None,
        decode_coords: object = None,
        partial: bool = False,
        fill_values: Mapping[str, object] | None = None,
        key_index: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open a store as a lazy dataset; call `xarray.open_dataset` instead.

        Parameters
        ----------
        filename_or_obj : path or URL
            The store.
        drop_variables : str or list of str, optional
            Columns and arrays to leave out.
        mask_and_scale, decode_times, decode_timedelta, use_cftime, concat_characters, decode_coords : object
            Ignored: options of xarray for formats that encode their values, which a store does not.
        partial : bool
            Whether to open a store that was not finalized; see `zarrow.open`.
        fill_values : dict of str to value, optional
            The value that replaces null, by column, which then keeps its dtype; −1 in ``sample_index``.
        key_index : bool
            Whether ``dataset.sel`` finds rows by key; see `KeyIndex`.
        storage_options : dict of str, optional
            For the URL of a store in a bucket; see `zarrow.open`.

        Returns
        -------
        xarray.Dataset
            A snapshot of the store, whose rows are read when they are needed.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, IncompleteStoreError, CorruptionError
            As `zarrow.open`.
        UnknownNameError, InvalidInputError
            If a fill value does not belong to a column or does not fit it, or there is no key to index.

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
            raise InvalidInputError(f"filename_or_obj must be the path of a store, got {filename_or_obj!r}")
        del mask_and_scale, decode_times, decode_timedelta, use_cftime, concat_characters, decode_coords
        store = open(filename_or_obj, partial=partial, storage_options=storage_options)
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
            own = _attributes(values, store.schema.field(name).metadata or {})
            variables[name] = xr.Variable((ROW,), lazy, own, {"preferred_chunks": chunks})
    for name, array in {**store.arrays, **store.derived}.items():
        if name not in dropped and not isinstance(array, StoreRagged):
            names = dimension_names(name, array.row_shape)
            lazy = indexing.LazilyIndexedArray(_Vectors(handle, name))
            preferred = chunks | dict(zip(names[1:], array.row_shape, strict=True))
            said = _as_netcdf(array.attrs)
            variables[name] = xr.Variable(names, lazy, said, {"preferred_chunks": preferred})
    for name, ragged in {**store.ragged, **store.derived}.items():
        if name not in dropped and isinstance(ragged, StoreRagged):
            made = _ragged_variables(handle, ragged, chunks)
            variables |= {one: variable for one, variable in made.items() if one not in dropped}
    keys = {name: variables.pop(name) for name in store.keys if name in variables}
    if key_index and (not keys or len(keys) < len(store.keys)):
        raise InvalidInputError(
            f"{store.path}: key_index=True needs the keys {list(store.keys) or '(the store has none)'} "
            f"in the dataset, got {list(keys)}: keep these variables, or omit key_index"
        )
    index = KeyIndex(handle, {name: name for name in keys}) if key_index else None
    coords = xr.Coordinates(keys, indexes={} if index is None else dict.fromkeys(keys, index))
    attributes: dict[str, Any] = {
        "Conventions": CF_CONVENTIONS,
        **_as_netcdf(store.attrs),
        "zarrow_uuid": store.uuid,
        "zarrow_keys": json.dumps(store.keys),  # attributes of netCDF-3 are texts and numbers
        "provenance": json.dumps(store.provenance),
    }
    if not store.complete:
        attributes["committed_rows"] = store.committed_rows
    if store.num_rows < (store.expected_rows or 0):
        attributes["rows"] = rows_of_expected(store.num_rows, store.expected_rows)
    return xr.Dataset(variables, coords, attributes)


def _ragged_variables(handle: _Handle, array: StoreRagged, chunks: dict[Any, Any]) -> dict[str, xr.Variable]:
    """Return a ragged array as CF's contiguous one: its vectors, and of each row how many, and from where on.

    https://cfconventions.org/cf-conventions/cf-conventions.html#_contiguous_ragged_array_representation
    """
    name, samples = array.name, f"{array.name}_vector"
    names = (samples, *ragged_dimension_names(name, array.vector_shape)[2:])
    preferred = {samples: array.chunks[0]} | dict(zip(names[1:], array.vector_shape, strict=True))
    lazy = indexing.LazilyIndexedArray(_Vectors(handle, name))
    own = _as_netcdf(array.attrs)
    variables = {name: xr.Variable(names, lazy, own, {"preferred_chunks": preferred})}
    for what, said in (("count", "number of vectors"), ("offset", "first vector")):
        attributes = {"long_name": f"{said} of each row of {name}"}
        if what == "count":
            attributes["sample_dimension"] = samples
        lazy = indexing.LazilyIndexedArray(_PerRow(handle, name, what))
        variables[f"{name}_{what}"] = xr.Variable((ROW,), lazy, attributes, {"preferred_chunks": chunks})
    return variables


def _attributes(values: ColumnValues, metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return what its field says of a column, and what its dtype lacks: its time zone, or its own type."""
    said = {name.decode(errors="replace"): text.decode(errors="replace") for name, text in metadata.items()}
    if values.dtype.kind in "mM":
        said.pop("units", None)  # xarray says those of times itself
    if values.timezone is not None:
        return said | {"timezone": values.timezone}
    was = number_dtype(values.arrow_type) if values.dtype.kind == "f" else values.dtype
    return said | ({"arrow_type": str(values.arrow_type)} if was.kind != values.dtype.kind else {})


def _as_netcdf(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as netCDF can hold them: other than text, numbers and lists of those, as JSON."""

    def fits(value: object) -> bool:
        return isinstance(value, str | int | float) and not isinstance(value, bool)

    def is_list(value: object) -> bool:
        return isinstance(value, list) and len({*map(type, value)}) == 1 and all(map(fits, value))

    return {
        name: value if fits(value) or is_list(value) else json.dumps(value)
        for name, value in attributes.items()
    }


class KeyIndex(xr.Index):
    """An index of the key columns: ``dataset.sel`` finds rows by key through the store's index on disk.

    ``xr.open_dataset(path, key_index=True)`` makes it. ``dataset.sel(subject_id=3, query="stroke")`` selects
    one row, ``dataset.sel(subject_id=[3, 4], query="stroke")`` two: every key column must be given, as one
    value or as a list as long as the others, and lists are paired element by element. DataArrays as labels
    give the result their dimensions. If several rows have one key, the first is selected; a key that no row
    has is a KeyError. `zarrow.build_index` makes the first look-up fast, also in dask's processes.

    The index covers the whole store: a selection has none. Stores whose keys differ do not align; open them
    without it to compute with both, or to concatenate them.

    Parameters
    ----------
    handle : object
        The store.
    names : dict of str to str
        The key column of each coordinate.

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
            The values of each coordinate.
        method, tolerance : None
            Not supported: keys are equal or not.

        Returns
        -------
        IndexSelResult
            The rows.

        Raises
        ------
        KeyNotFoundError
            A KeyError: no row has a key.
        InvalidInputError
            If a key column is missing, or the labels are of another type, of different lengths, or a slice.
        """
        if method is not None or tolerance is not None:
            raise InvalidInputError("keys are equal or not: sel takes no method or tolerance for them")
        if missing := [name for name in self._names if name not in labels]:
            name, label = next(iter(labels.items()))
            raise InvalidInputError(
                f"sel needs all of the keys {', '.join(map(str, self._names))}, missing {missing}: to select "
                f"by some of them, use a mask, as in dataset.isel(row=dataset[{name!r}].values == {label!r})"
            )
        named = {self._names[name]: _labels(name, label) for name, label in labels.items()}
        try:
            values = xr.broadcast(*named.values())
        except ValueError as error:
            raise InvalidInputError(f"the keys must have as many values each: {error}") from None
        dims, shape = values[0].dims, values[0].shape
        schema = self._handle.store.schema
        keys = {
            name: as_keys(value.values.reshape(-1), schema.field(name).type)
            for name, value in zip(named, values, strict=True)
        }
        rows = self._handle.store.locate(keys, missing="raise").reshape(shape)
        if not shape:
            return IndexSelResult({ROW: int(rows[()])})
        return IndexSelResult({ROW: rows if dims == (ROW,) else xr.Variable(dims, rows)})

    def isel(self, indexers: Mapping[Any, Any]) -> KeyIndex | None:
        """Return the index if every row is selected, in order, else None; xarray calls this.

        Parameters
        ----------
        indexers : mapping of str to indexer
            The selected rows.

        Returns
        -------
        KeyIndex or None
            An index always covers the whole store.
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
            Ignored.

        Returns
        -------
        bool
            Whether both are of the same rows and names.
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
            raise InvalidInputError(
                "the dimension 'row' cannot be renamed while keys are indexed: call drop_indexes first"
            )
        return KeyIndex(self._handle, {name_dict.get(name, name): key for name, key in self._names.items()})

    @classmethod
    def concat(
        cls,
        indexes: Sequence[Self],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> Self:
        """Raise, because an index belongs to one store; xarray calls this.

        Parameters
        ----------
        indexes : sequence of KeyIndex
            Of the datasets.
        dim : str
            The dimension to concatenate along.
        positions : list of int arrays, optional
            The positions of the rows in the result.

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
            "an index of keys belongs to one store: open the stores without key_index to concatenate them"
        )

    def _repr_inline_(self, max_width: int) -> str:
        return f"KeyIndex of {self._handle.store.path.name}"[:max_width]


def _labels(name: Hashable, label: Any) -> xr.DataArray:
    """Return labels without coordinates, along the rows unless they have dimensions of their own."""
    if isinstance(label, slice):
        raise InvalidInputError(f"{name!r} cannot be sliced, because keys have no order: give values")
    if isinstance(label, xr.DataArray | xr.Variable):
        return xr.DataArray(label.data, dims=label.dims)
    values = np.asarray(to_host(label))
    if values.ndim > 1:
        raise InvalidInputError(f"{name!r} must be one value or a list of values, got shape {values.shape}")
    return xr.DataArray(values, dims=(ROW,) * values.ndim)


class _Handle:
    """A store that the variables of a dataset share, even if they are unpickled one by one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle, self.store.__reduce__()


@functools.lru_cache(maxsize=_STORES_KEPT)
def _handle(opener: Callable[..., Store], arguments: tuple[Any, ...]) -> _Handle:
    return _Handle(opener(*arguments))


class _Lazy(BackendArray):
    """A variable that is read where it is indexed, by one index per axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    @abstractmethod
    def _read(self, key: tuple[Any, ...]) -> Any:
        """Return the values that one index per axis selects."""


class _Vectors(_Lazy):
    """An array of a store; the vectors of a ragged one."""

    def __init__(self, handle: _Handle, name: str) -> None:
        self._handle, self._name = handle, name
        self.shape, self.dtype = self._array.shape, self._array.dtype

    @property
    def _array(self) -> StoreArray | PackedVectors:
        array = self._handle.store[self._name]
        return array.packed if isinstance(array, StoreRagged) else array

    def _read(self, key: tuple[Any, ...]) -> Any:
        found = self._array[key[0]]
        behind = 0
        for index in reversed(key[1:]):
            found = found[(..., index, *(slice(None),) * behind)]
            behind += np.ndim(index) if not isinstance(index, slice) else 1
        if found.dtype.kind == "f" and found.ndim > 1:
            return found.view(_NanReductions)
        return found


class _PerRow(_Lazy):
    """How many vectors each row of a ragged array has, or the number of its first."""

    dtype = np.dtype(np.int64)

    def __init__(self, handle: _Handle, name: str, what: str) -> None:
        self._handle, self._name, self._what = handle, name, what
        self.shape = (handle.store.num_rows,)

    def _read(self, key: tuple[Any, ...]) -> Any:
        counts = self._handle.store[self._name].counts
        return counts[key[0]] if self._what == "count" else (np.cumsum(counts) - counts)[key[0]]


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
            found = found.copy()  # it is Arrow's memory, and users may write to what they loaded
        return found


class _NanReductions(np.ndarray[Any, Any]):
    """Vectors whose ``nanmean`` and ``nansum`` copy nothing if no value is NaN.

    xarray uses these two for every float array unless ``skipna=False``, and numpy's own copy the whole array
    to replace NaNs: for the mean of 1.2 GB that takes 10 times the CPU time, and 1.8 GB of memory against
    0.1 MB. A plain sum that is finite had no NaN to replace. `__array_function__` is numpy's way to override
    them.
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
