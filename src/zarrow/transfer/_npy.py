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

from zarrow._format.spec import ZARR_DTYPES
from zarrow._storage import files
from zarrow._storage.reading import in_natural_order
from zarrow.errors import InvalidInputError
from zarrow.store import StoreArray
from zarrow.transfer._parquet import open_parquet, write_parquet
from zarrow.transfer._rows import Incoming, IncomingBatch, Outgoing, batch_rows, from_arrow, without_columns

__all__ = ["read", "write"]

METADATA = "metadata"
FILES = re.compile(r"([^/]+)/\1_0\.npy|metadata/metadata_0\.parquet")
"""The files of a folder that `write` makes."""


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write one file if the target's name ends in ``.npy``, else a folder."""
    if target.suffix == ".npy":
        if len(rows.arrays) != 1 or (rows.explicit and rows.schema.names):
            raise InvalidInputError(
                f"{target}: a .npy file holds one array and no columns, got the arrays "
                f"{', '.join(array.name for array in rows.arrays) or 'none'}: choose one, or name a folder"
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

        def batches() -> Iterator[pa.RecordBatch]:
            for _, batch, vectors in rows.batches():
                for name, found in vectors.items():
                    np.ascontiguousarray(found).tofile(outputs[name])
                yield batch

        files.make_dir(scratch / METADATA)
        if rows.schema.names:
            path = scratch / METADATA / f"{METADATA}_0.parquet"
            write_parquet(path, rows.schema, batches(), rows.schema.names)
        else:
            for _ in batches():
                pass


def _create(path: Path, array: StoreArray) -> BinaryIO:
    """Create a ``.npy`` file that only lacks its rows."""
    file = path.open("xb")
    header = {"shape": array.shape, "fortran_order": False, "descr": array.dtype.str}
    np.lib.format.write_array_header_2_0(file, header)
    return file


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a file and its table, or of a folder."""
    if source.is_dir():
        if beside is None and (source / METADATA).is_dir():
            beside = source / METADATA
        folders = {source.name: source} if any(source.glob("*.npy")) else {}
        folders |= {path.name: path for path in sorted(source.iterdir()) if any(path.glob("*.npy"))}
        arrays = {name: _Parts(in_natural_order(folder.glob("*.npy"))) for name, folder in folders.items()}
    else:
        arrays = {source.stem: _Parts([source])}
    arrays = {re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]: parts for name, parts in arrays.items()}
    if not arrays:
        raise InvalidInputError(f"{source}: neither this folder nor one in it has a .npy file")
    totals = {name: parts.rows for name, parts in arrays.items()}
    size = batch_rows(max(parts.row_bytes for parts in arrays.values()))
    with contextlib.ExitStack() as opened:
        tables = None
        total = next(iter(totals.values()))
        schema = pa.schema([])
        if beside is not None:
            totals[str(beside)], schema, tables = open_parquet(beside, opened)
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

        shapes = {name: (parts.row_shape, parts.dtype) for name, parts in arrays.items()}
        return Incoming(
            schema=table.schema, arrays=shapes, total=total, batches=read_all, files=opened.pop_all()
        )


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
        self.rows = sum(len(found) for found in self._maps)
        self.row_bytes = int(np.prod(self.row_shape)) * self._maps[0].dtype.itemsize

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        pieces = []
        for found in self._maps:
            if start < len(found) and stop > 0:
                pieces.append(found[max(start, 0) : stop])
            start, stop = start - len(found), stop - len(found)
        return np.concatenate(pieces) if len(pieces) > 1 else np.asarray(pieces[0])
