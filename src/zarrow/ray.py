"""Ray — the rows of a Ray dataset into a store, by many workers, and the rows of a store as a Ray dataset.

1. Every write task of `ZarrowDatasink` opens a writer of its own (shared: they need no lock and do not know
   about one another), appends its blocks and closes it: when Ray takes the task as done, its rows are safe.
2. Ray repeats a task whose worker died, perhaps after it wrote. So a task first looks which of its keys are
   stored, in open segments too, and leaves those out: every row is stored once.
3. When all tasks are done, the driver completes the store.

A job that is killed leaves an incomplete store. `not_stored` takes what it has out of the dataset, before the
model sees it, and ``ZarrowDatasink(path, resume=True)`` adds the rest. All machines see one file system.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.arrow import lists_as_array
from zarrow._format.layout import SAMPLE_INDEX
from zarrow.errors import InvalidInputError, MissingExtraError, NotFoundError, StoreExistsError
from zarrow.store import open
from zarrow.writer import Writer

try:
    import ray.data
    from ray.data.block import BlockAccessor
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.ray needs {error.name}: pip install 'zarrow[ray]'", name=error.name
    ) from error

__all__ = ["ZarrowDatasink", "not_stored", "read"]

_AT = "__place_in_block"


class ZarrowDatasink(ray.data.Datasink[int]):  # type: ignore[misc] # Ray may not be installed
    """Writes a Ray dataset into a store: numpy arrays and fixed-size lists as arrays, all else as columns.

    Parameters
    ----------
    path : path
        The store, which every machine of the cluster reaches under this path.
    keys : sequence of str
        Columns that name a row. Needed: by them a repeated task knows what it has stored.
    resume : bool
        Whether to go on with a store that is there, with a dataset that `not_stored` has filtered.
    **options : object
        Other parameters of `zarrow.Writer`, such as ``codecs`` or ``provenance``.

    Raises
    ------
    InvalidInputError
        If there are no keys.

    Examples
    --------
    >>> import ray, tempfile, zarrow.ray
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> rows = ray.data.from_items([{"id": n, "embedding": np.full(4, n, np.float32)} for n in range(9)])
    >>> rows.write_datasink(zarrow.ray.ZarrowDatasink(path, keys=["id"]))
    >>> zarrow.open(path)["embedding"].shape
    (9, 4)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, keys: Sequence[str], resume: bool = False, **options: Any
    ) -> None:
        if isinstance(keys, str) or not keys:
            raise InvalidInputError(f"keys must name the columns that identify a row, got {keys!r}")
        self._path, self._resume = Path(path).absolute(), resume
        self._options = {"keys": tuple(keys), **options}

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Refuse a store that is there, unless it is to be resumed.

        Parameters
        ----------
        schema : pyarrow.Schema, optional
            Ignored: the first batch says what the columns and arrays are.

        Raises
        ------
        StoreExistsError
            If there is something at the path.
        """
        if os.path.lexists(self._path) and not self._resume:
            raise StoreExistsError(f"{self._path}: there is a store already: resume=True goes on with it")

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        """Append the rows of a task that are not stored yet; accepted and durable on return.

        Parameters
        ----------
        blocks : iterable of block
            The rows.
        ctx : TaskContext
            Ignored.

        Returns
        -------
        int
            Rows written.
        """
        written, keys = 0, self._options["keys"]
        with Writer(self._path, mode="a", shared=True, **self._options) as writer:
            for block in blocks:
                accessor = BlockAccessor.for_block(block)
                places = _missing(accessor.to_arrow(), self._path, keys)
                if len(places):
                    accessor = BlockAccessor.for_block(accessor.take(places.tolist()))
                    writer.append(*_split(accessor))
                    written += len(places)
        return written

    def on_write_complete(self, write_result: Any) -> None:
        """Complete the store.

        Parameters
        ----------
        write_result : WriteResult
            Ignored.
        """
        if self._path.exists():  # not if there was no row at all
            with Writer(self._path, mode="a") as writer:
                writer.finalize()


def _split(accessor: Any) -> tuple[pa.Table, dict[str, Any], Any]:
    """Return the columns, the arrays and, if it is there, the sample_index of a block."""
    table, arrays = accessor.to_arrow(), {}
    for field in table.schema:
        if isinstance(field.type, pa.BaseExtensionType):  # a tensor, of Ray's type or Arrow's
            arrays[field.name] = accessor.to_numpy([field.name])[field.name]
        elif pa.types.is_fixed_size_list(field.type):
            arrays[field.name] = lists_as_array(table[field.name].combine_chunks())
    table = table.drop_columns(list(arrays))
    if SAMPLE_INDEX not in table.column_names:
        return table, arrays, None
    return table.drop_columns([SAMPLE_INDEX]), arrays, table[SAMPLE_INDEX].to_numpy()


def _missing(table: pa.Table, path: Path, keys: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the places of the rows that the store lacks; only segments that may have them are read."""
    places = np.arange(table.num_rows)
    if not table.num_rows:
        return places
    try:
        with open(path, partial=True) as store:
            bounds = pc.min_max(table[keys[0]])
            first = pc.field(keys[0])
            stored = store.table(list(keys), filter=(first >= bounds["min"]) & (first <= bounds["max"]))
    except NotFoundError:  # no row has been written yet
        return places
    asked = table.select(keys).cast(stored.schema).append_column(_AT, pa.array(places))
    return np.sort(asked.join(stored, list(keys), join_type="left anti")[_AT].to_numpy())


def not_stored(dataset: ray.data.Dataset, path: str | os.PathLike[str], keys: Sequence[str]) -> Any:
    """Return the rows of a dataset whose keys are not in the store yet: what a killed job has left to do.

    Parameters
    ----------
    dataset : ray.data.Dataset
        The rows, before the model.
    path : path
        The store; if there is none, all rows are returned.
    keys : sequence of str
        Its keys.

    Returns
    -------
    ray.data.Dataset
        The others, lazily.

    Examples
    --------
    >>> import ray, tempfile, zarrow.ray
    >>> zarrow.ray.not_stored(ray.data.range(7), tempfile.mkdtemp() + "/none.zarrow", ["id"]).count()
    7
    """
    step = partial(_left, path=Path(path).absolute(), keys=keys)
    return dataset.map_batches(step, batch_format="pyarrow", batch_size=None)


def _left(batch: pa.Table, *, path: Path, keys: Sequence[str]) -> pa.Table:
    return batch.take(_missing(batch, path, keys))


def read(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, arrays: Sequence[str] | None = None
) -> Any:
    """Return a complete store as a Ray dataset, a block per segment.

    Parameters
    ----------
    path : path
        The store.
    columns, arrays : list of str, optional
        What to read; everything by default.

    Returns
    -------
    ray.data.Dataset
        The rows, vectors as tensors; read by the workers.

    Examples
    --------
    >>> import zarrow.ray, zarrow.testing
    >>> zarrow.ray.read(zarrow.testing.example_store().path, columns=["query"]).count()
    5000
    """
    with open(path) as store:
        starts = range(0, store.num_rows, store.segment_rows)
    step = partial(_read, path=Path(path).absolute(), columns=columns, arrays=arrays)
    blocks = ray.data.from_items(list(starts), override_num_blocks=max(len(starts), 1))
    return blocks.map_batches(step, batch_size=1)


def _read(batch: dict[str, Any], *, path: Path, columns: Any, arrays: Any) -> dict[str, Any]:
    with open(path) as store:
        start = int(batch["item"][0])
        rows = range(start, min(start + store.segment_rows, store.num_rows))
        table, vectors = store.take(rows, columns, arrays)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.schema.names} | vectors
