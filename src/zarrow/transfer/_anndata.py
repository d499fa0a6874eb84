"""AnnData — a table of the rows (``obs``) and arrays (``obsm``) in a Zarr group or an HDF5 file.

https://anndata.readthedocs.io/en/stable/fileformat-prose.html defines the layout. It is written as anndata
0.13 writes it: Zarr format 3, sharded, which releases from 0.12 on read. A shard is a batch, so that nothing
is written twice; anndata itself is not needed. It is read from Zarr of either format or, with h5py, from
``.h5ad`` files.

A null in a column of integers, booleans or text is stored in a mask, and one in a column of floats as NaN.
Times and other types that AnnData does not have become text, and dictionaries their values. The names of the
rows are their numbers.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zarr

from zarrow._format.arrow import decoded, is_number, number_dtype
from zarrow.errors import InvalidInputError
from zarrow.transfer._rows import Incoming, IncomingBatch, Outgoing, batch_rows, missing, without_columns

__all__ = ["read", "write"]

INDEX = "_index"
MAX_NAME_BYTES = 255
FILES = re.compile(
    r"(?s)((obs|var|obsm|layers|obsp|uns|varm|varp)/(.+/)?)?(zarr\.json|c(/\d+)+|\.z[a-z]+|\d+(\.\d+)*)"
)
"""The files that `write` makes, also those of format 2, which it made before."""
CHUNKS = 16
"""Of a shard."""
_EMPTY = ("layers", "obsp", "uns", "varm", "varp")
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}


# Out


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write a Zarr group."""
    if target.suffix == ".h5ad":
        raise InvalidInputError(f"{target}: AnnData is written as Zarr: choose a name that ends in .zarr")
    root = zarr.open_group(scratch, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in _EMPTY:
        root.create_group(name).attrs.update(_DICT)
    nullable = _with_nulls(rows)
    columns = [
        _Column(_frame(root, "obs", rows.schema.names), field, rows, nulls=field.name in nullable)
        for field in rows.schema
    ]
    index = _create(root["obs"], INDEX, (rows.rows,), rows.batch_rows(), None)
    _create(_frame(root, "var", []), INDEX, (0,), 1, None)
    obsm = root.create_group("obsm")
    obsm.attrs.update(_DICT)
    vectors = {
        array.name: _create(obsm, array.name, array.shape, rows.batch_rows(), array.dtype)
        for array in rows.fixed
    }
    for start, batch, found in rows.batches():
        stop = start + batch.num_rows
        index[start:stop] = np.array([str(row) for row in range(start, stop)], object)
        for column, values in zip(columns, batch.columns, strict=True):
            column.put(start, values)
        for name, array in vectors.items():
            array[start:stop] = found[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        zarr.consolidate_metadata(root.store, zarr_format=3)


def _frame(root: Any, name: str, columns: list[str]) -> Any:
    group = root.require_group(name)
    group.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "column-order": columns,
            "_index": INDEX,
        }
    )
    return group


def _create(group: Any, name: str, shape: tuple[int, ...], rows: int, dtype: Any) -> Any:
    """Create an array with shards of a number of rows; of text if `dtype` is None."""
    made = group.create_array(
        name,
        shape=shape,
        chunks=(max(rows // CHUNKS, 1), *shape[1:]),
        shards=(rows, *shape[1:]),
        dtype="string" if dtype is None else dtype,
    )
    made.attrs.update(_TEXT if dtype is None else _ARRAY)
    return made


def _with_nulls(rows: Outgoing) -> set[str]:
    """Return the columns that have nulls, other than floats."""
    names = [field.name for field in rows.schema if field.nullable and not pa.types.is_floating(field.type)]
    found: set[str] = set()
    if names:
        for batch in rows.store.scan(names):
            found.update(name for name in names if batch[name].null_count)
    return found


class _Column:
    """A column of ``obs`` on its way out."""

    def __init__(self, group: Any, field: pa.Field, rows: Outgoing, *, nulls: bool) -> None:
        kind = field.type
        self._number = is_number(kind)
        self._dtype = number_dtype(kind) if self._number else None
        size, name = rows.batch_rows(), field.name
        if field.name in (".", "..") or len(field.name.encode()) > MAX_NAME_BYTES:
            raise InvalidInputError(
                f"AnnData as Zarr has a folder per column, and cannot name one {field.name!r}: leave it out"
            )
        if field.name == INDEX:
            raise InvalidInputError(
                f"AnnData reserves {INDEX!r} for the names of the rows: leave the column out"
            )
        self._mask = None
        if nulls:
            what = "string-array" if not self._number else "boolean" if kind == pa.bool_() else "integer"
            group = group.create_group(name)
            group.attrs.update({"encoding-type": f"nullable-{what}", "encoding-version": "0.1.0"})
            self._mask = _create(group, "mask", (rows.rows,), size, np.dtype(bool))
            name = "values"
        self._values = _create(group, name, (rows.rows,), size, self._dtype)

    def put(self, start: int, values: pa.Array) -> None:
        stop = start + len(values)
        if self._mask is not None:
            self._mask[start:stop] = values.is_null().to_numpy(zero_copy_only=False)
        values = decoded(values)
        if self._number:
            if not pa.types.is_floating(values.type):
                values = values.fill_null(False if values.type == pa.bool_() else 0)
            self._values[start:stop] = values.to_numpy(zero_copy_only=False)
            return
        try:
            text = values.cast(pa.string()).fill_null("")
        except pa.ArrowException as error:
            raise InvalidInputError(
                f"AnnData cannot hold a column of type {values.type}: leave it out ({error})"
            ) from error
        self._values[start:stop] = text.to_numpy(zero_copy_only=False).astype(object)


# In


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of ``obs``, ``obsm`` and a dense ``X``."""
    if beside is not None:
        raise InvalidInputError("AnnData holds its table itself: leave beside out")
    with contextlib.ExitStack() as files:
        root = _open(source, files)
        if "obs" not in root or root["obs"].attrs.get("encoding-type") != "dataframe":
            raise InvalidInputError(f"{source}: not AnnData of version 0.8 or later: it has no table 'obs'")
        obs = root["obs"]
        index = obs[obs.attrs["_index"]]
        total = int(index.shape[0])
        names = [str(name) for name in obs.attrs["column-order"]]
        columns = {name: obs[name] for name in names}
        arrays = {name: root["obsm"][name] for name in root["obsm"]} if "obsm" in root else {}
        if "X" in root and hasattr(root["X"], "shape") and root["X"].shape[1:] not in ((), (0,)):
            arrays["X"] = root["X"]
        for name, array in arrays.items():
            if not hasattr(array, "shape"):
                raise InvalidInputError(
                    f"{source}: obsm/{name} must be a dense array, got a table or a sparse matrix"
                )
        widest = max((int(np.prod(a.shape[1:])) * a.dtype.itemsize for a in arrays.values()), default=0)
        size = batch_rows(widest)
        if not _is_numbering(index, total):
            columns = {_free_name("obs_names", columns): index, **columns}

        def table(start: int, stop: int) -> pa.RecordBatch:
            found = {
                name: _values(column, start, stop, f"{source}: obs/{name}")
                for name, column in columns.items()
            }
            return pa.record_batch(found) if found else without_columns(stop - start)

        def batches() -> Iterator[IncomingBatch]:
            for start in range(0, total, size):
                stop = min(start + size, total)
                yield table(start, stop), {name: array[start:stop] for name, array in arrays.items()}, None

        return Incoming(
            schema=table(0, 0).schema,
            arrays={name: (tuple(array.shape[1:]), array.dtype.name) for name, array in arrays.items()},
            total=total,
            batches=batches,
            files=files.pop_all(),
        )


def _free_name(name: str, taken: Container[str]) -> str:
    """Return a name, with trailing underscores while it is taken."""
    while name in taken:
        name += "_"
    return name


def _open(source: Path, files: contextlib.ExitStack) -> Any:
    if source.is_dir():
        try:
            return zarr.open_group(source, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInputError(f"{source}: not a Zarr group: {error}") from error
    try:
        import h5py
    except ImportError as error:
        raise missing("An .h5ad file", error, "h5py") from error
    try:
        return files.enter_context(h5py.File(source, "r"))
    except OSError as error:
        raise InvalidInputError(f"{source}: not an HDF5 file: {error}") from error


def _is_numbering(index: Any, total: int) -> bool:
    """Tell whether the names of the rows are their numbers, which need not be stored."""
    step = 65_536
    return all(
        _text(index, start, min(start + step, total)).tolist()
        == [str(row) for row in range(start, min(start + step, total))]
        for start in range(0, total, step)
    )


def _text(array: Any, start: int, stop: int) -> npt.NDArray[Any]:
    found = (array.asstr() if hasattr(array, "asstr") else array)[start:stop]
    return np.asarray(found, dtype=object)


def _values(column: Any, start: int, stop: int, what: str) -> pa.Array:
    """Return values of a column as an Arrow array."""
    kind = column.attrs.get("encoding-type", "array")
    if kind == "array":
        return pa.array(column[start:stop])
    if kind == "string-array":
        return pa.array(_text(column, start, stop), pa.string())
    if kind == "categorical":
        codes, categories = np.asarray(column["codes"][start:stop]), column["categories"]
        labels = _values(categories, 0, int(categories.shape[0]), what)
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=codes < 0), labels)
    if kind in ("nullable-integer", "nullable-boolean", "nullable-string-array"):
        mask = np.asarray(column["mask"][start:stop])
        if kind == "nullable-string-array":
            return pa.array(_text(column["values"], start, stop), pa.string(), mask=mask)
        return pa.array(column["values"][start:stop], mask=mask)
    raise InvalidInputError(f"{what}: a column of encoding {kind!r} cannot be imported: drop it first")
