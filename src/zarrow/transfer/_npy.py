"""numpy files — one array as one ``.npy`` file, or a store as a folder of them with a Parquet table.

A single file can be mapped with ``numpy.load(…, mmap_mode="r")``
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). The folder is as embedding-reader
reads it (``file_format="parquet_npy"``): one folder of ``.npy`` files per array, and a folder ``metadata`` of
Parquet files, paired in natural order (``img_2`` before ``img_10``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.array_spec import ZARR_DTYPES
from zarrow._format.arrow import rebatched
from zarrow._format.ragged import Ragged, RaggedArray
from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage import files
from zarrow._storage.reading import in_natural_order
from zarrow.errors import InvalidInputError
from zarrow.store import StoreArray
from zarrow.transfer._parquet import ParquetRows, open_parquet, write_parquet
from zarrow.transfer._rows import (
    Incoming,
    IncomingBatch,
    Outgoing,
    array_names,
    batch_rows,
    from_arrow,
    without_columns,
)

__all__ = ["read", "write"]

METADATA = "metadata"
COUNTS = "counts.npy"
FILES = re.compile(r"([^/]+)/(\1_0|counts)\.npy|metadata/metadata_0\.parquet")
"""The files of a folder that `write` makes."""


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write one file if the target's name ends in ``.npy``, else a folder."""
    if target.suffix == ".npy":
        if len(rows.arrays) != 1 or (rows.explicit and rows.schema.names):
            raise InvalidInputError(
                f"{target}: a .npy file holds one array and no columns, got the arrays "
                f"{', '.join(array.name for array in rows.arrays) or 'none'}: choose one, or name a folder"
            )
        if isinstance(rows.arrays[0], StoreRagged):
            raise InvalidInputError(
                f"{target}: rows of any number of vectors take a second file with their counts: name a folder"
            )
        with _create(scratch, rows.arrays[0]) as file:
            for _, _, vectors in rows.only([]).batches():
                np.ascontiguousarray(vectors[rows.arrays[0].name]).tofile(file)
        return
    if METADATA in (array.name for array in rows.arrays):
        raise InvalidInputError(
            f"the folder {METADATA!r} holds the columns: leave the array of that name out"
        )
    files.make_dir(scratch)
    with contextlib.ExitStack() as open_files:
        outputs = {}
        for array in rows.arrays:
            files.make_dir(scratch / array.name)
            path = scratch / array.name / f"{array.name}_0.npy"
            outputs[array.name] = open_files.enter_context(_create(path, array))
            if isinstance(array, StoreRagged):
                np.save(scratch / array.name / COUNTS, array.counts)

        def batches() -> Iterator[pa.RecordBatch]:
            for _, batch, vectors in rows.batches():
                for name, found in vectors.items():
                    values = found.values if isinstance(found, Ragged) else found
                    np.ascontiguousarray(values).tofile(outputs[name])
                yield batch

        files.make_dir(scratch / METADATA)
        if rows.schema.names:
            path = scratch / METADATA / f"{METADATA}_0.parquet"
            write_parquet(path, rows.schema, batches(), rows.schema.names)
        else:
            for _ in batches():
                pass


def _open_csv(path: Path) -> tuple[int, pa.Schema, ParquetRows]:
    """Read a table of narrow columns, all of it; return rows, schema, batches, as `open_parquet` does."""
    from pyarrow import csv

    try:
        table = csv.read_csv(path)
    except pa.ArrowInvalid as error:
        raise InvalidInputError(f"{path}: not a CSV table: {error}") from error
    return table.num_rows, table.schema, lambda size: rebatched(iter(table.to_batches()), size)


def _create(path: Path, array: StoreArray | StoreRagged) -> BinaryIO:
    """Create a ``.npy`` file that only lacks its rows, or of a ragged array its vectors."""
    file = path.open("xb")
    shape = array.packed.shape if isinstance(array, StoreRagged) else array.shape
    header = {"shape": shape, "fortran_order": False, "descr": array.dtype.str}
    np.lib.format.write_array_header_2_0(file, header)
    return file


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a file and its table, or of a folder."""
    if source.is_dir():
        if beside is None and (source / METADATA).is_dir():
            beside = source / METADATA
        folders = {source.name: source} if any(source.glob("*.npy")) else {}
        folders |= {path.name: path for path in sorted(source.iterdir()) if any(path.glob("*.npy"))}
        arrays = {name: _of_folder(folder) for name, folder in folders.items()}
    else:
        arrays = {source.stem: _Parts([source])}
    names = array_names(arrays, source)
    arrays = {names[name]: parts for name, parts in arrays.items()}
    if not arrays:
        raise InvalidInputError(f"{source}: neither this folder nor one in it has a .npy file")
    totals = {name: parts.rows for name, parts in arrays.items()}
    size = batch_rows(max(parts.row_bytes for parts in arrays.values()))
    with contextlib.ExitStack() as opened:
        tables = None
        total = next(iter(totals.values()))
        schema = pa.schema([])
        if beside is not None:
            is_csv = beside.suffix.lower() == ".csv"
            totals[str(beside)], schema, tables = (
                _open_csv(beside) if is_csv else open_parquet(beside, opened)
            )
        if len(set(totals.values())) > 1:
            raise InvalidInputError(f"{source}: the files must have the same number of rows, got {totals}")

        def batches() -> Iterator[pa.RecordBatch]:
            if tables is not None:
                return tables(size)
            return iter(())

        first = pa.RecordBatch.from_pylist([], schema=schema)
        table = from_arrow(total, first, batches, source if beside is None else beside)

        def read_all() -> Iterator[IncomingBatch]:
            columns = table.batches()
            for start in range(0, total, size):
                stop = min(start + size, total)
                found = {name: parts.read(start, stop) for name, parts in arrays.items()}
                if tables is None:
                    yield without_columns(stop - start), found, None
                else:
                    batch, _, index = next(columns)
                    yield batch, found, index

        shapes = {name: parts.facts for name, parts in arrays.items()}
        return Incoming(
            schema=table.schema, arrays=shapes, total=total, batches=read_all, files=opened.pop_all()
        )


def _of_folder(folder: Path) -> _Parts | _RaggedParts:
    files = [path for path in in_natural_order(folder.glob("*.npy")) if path.name != COUNTS]
    if not files:
        raise InvalidInputError(f"{folder}: there are counts, but no vectors")
    parts = _Parts(files)
    return _RaggedParts(parts, folder / COUNTS) if (folder / COUNTS).exists() else parts


class _RaggedParts:
    """Rows of any number of vectors: mapped files of vectors, and the counts of the rows."""

    def __init__(self, parts: _Parts, counts: Path) -> None:
        self._parts = parts
        try:
            found = np.load(counts, allow_pickle=False)
        except ValueError as error:
            raise InvalidInputError(f"{counts}: not a .npy file of numbers: {error}") from error
        if found.ndim != 1 or found.dtype.kind not in "iu" or (found.size and int(found.min()) < 0):
            raise InvalidInputError(f"{counts}: counts must be one integer per row, 0 or more")
        self._counts = found.astype(np.int64)
        self._offsets = np.concatenate(([0], np.cumsum(self._counts)))
        if self._offsets[-1] != parts.rows:
            raise InvalidInputError(
                f"{counts}: must sum to the number of vectors, {parts.rows}, got {self._offsets[-1]}"
            )
        self.rows = len(self._counts)
        self.row_bytes = max(parts.rows * parts.row_bytes // max(self.rows, 1), 1)
        self.facts = RaggedArray(parts.row_shape, parts.dtype)

    def read(self, start: int, stop: int) -> Ragged:
        low, high = int(self._offsets[start]), int(self._offsets[stop])
        return Ragged(self._parts.read(low, high), self._counts[start:stop])


class _Parts:
    """Mapped ``.npy`` files, one after the other."""

    def __init__(self, paths: list[Path]) -> None:
        self._maps = []
        for path in paths:
            try:
                self._maps.append(np.load(path, mmap_mode="r", allow_pickle=False))
            except ValueError as error:
                raise InvalidInputError(f"{path}: not a .npy file of numbers: {error}") from error
            if not isinstance(self._maps[-1], np.ndarray):
                raise InvalidInputError(
                    f"{path}: an .npz file holds several arrays: save each one as a .npy file"
                )
            if self._maps[-1].ndim < 2:
                raise InvalidInputError(
                    f"{path}: vectors need at least two axes, got shape {self._maps[-1].shape}: one value "
                    "per row is a column: put it into a Parquet file, or save it as reshape(-1, 1)"
                )
        self.row_shape = self._maps[0].shape[1:]
        self.dtype = self._maps[0].dtype.name
        for path, found in zip(paths, self._maps, strict=True):
            if found.shape[1:] != self.row_shape or found.dtype.name != self.dtype:
                raise InvalidInputError(
                    f"{path}: expected rows of shape {self.row_shape} and dtype {self.dtype}, "
                    f"got an array of shape {found.shape} and dtype {found.dtype}"
                )
        if self.dtype not in ZARR_DTYPES:
            raise InvalidInputError(f"{paths[0]}: a store's arrays hold numbers, got dtype {self.dtype}")
        self.facts = self.row_shape, self.dtype
        self.rows = sum(len(found) for found in self._maps)
        self.row_bytes = int(np.prod(self.row_shape)) * self._maps[0].dtype.itemsize

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        if start == stop:
            return np.asarray(self._maps[0][:0])
        pieces = []
        for found in self._maps:
            if start < len(found) and stop > 0:
                pieces.append(found[max(start, 0) : stop])
            start, stop = start - len(found), stop - len(found)
        return np.concatenate(pieces) if len(pieces) > 1 else np.asarray(pieces[0])
