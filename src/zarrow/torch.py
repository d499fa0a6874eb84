"""Torch datasets — a store's rows, fed to a model.

* `StoreDataset` is map-style: a batch is one gather, whatever sampler picks its rows.
* `StoreIterableDataset` yields batches in the order of the files, every row once over all ranks and
  workers, shuffled by block and within a buffer.

Both yield dicts of tensors in the dtypes of the columns and arrays; strings and other objects come as
lists. Timestamps and durations are int64 in the column's unit. A null in a column of integers or booleans
is an error unless `fill_values` replaces it; in floats it is NaN, in strings None.

Tensors may be written to, because a gather copies anyway. With ``writable=False`` they are the mapped files
where rows lie together: nothing is copied, and writing to such a tensor kills the process. Reads only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.layout import ROW
from zarrow._read.column_values import ColumnValues, column_values
from zarrow._read.indexing import row_numbers
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.store import Store, open

try:
    import torch
    import torch.distributed
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.torch needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

__all__ = ["StoreDataset", "StoreIterableDataset", "collate"]

TensorBatch = dict[str, Any]


class _Source:
    """Columns and arrays of a store, read as tensors."""

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        columns: Sequence[str] | None,
        arrays: Sequence[str] | None,
        fill_values: Mapping[str, object] | None,
        writable: bool,
    ) -> None:
        self.store = store if isinstance(store, Store) else open(store)
        values = column_values(self.store.schema, fill_values, widen=False)
        # The store checks the names; nothing is read.
        schema = self.store.scan(columns).schema
        self.columns: dict[str, ColumnValues] = {name: values[name] for name in schema.names}
        if isinstance(arrays, str):
            raise InvalidInputError(f"arrays must be a list of names, got {arrays!r}")
        names = list(self.store.arrays) if arrays is None else list(arrays)
        self.arrays: list[str] = [self.store[name].name for name in names]
        self.writable = writable

    def column_tensors(self, table: pa.Table) -> TensorBatch:
        return {
            name: self._column(values.convert(table[name]), values) for name, values in self.columns.items()
        }

    def _column(self, values: npt.NDArray[Any], how: ColumnValues) -> Any:
        if values.dtype.kind == "O":
            return values.tolist()
        if values.dtype.kind in "mM":
            if np.isnat(values).any() and how.fill_value is None:
                raise InvalidInputError(
                    f"column {how.name!r}: int64 has no value for null, got one: {how.remedy}"
                )
            values = values.astype(np.int64)
        return _tensor(values, writable=True)  # Arrow's memory may be shared with what the store keeps

    def take(self, rows: npt.NDArray[np.int64]) -> TensorBatch:
        table, vectors = self.store.take(rows, list(self.columns), self.arrays)
        found = self.column_tensors(table)
        return found | {name: _tensor(values, writable=True) for name, values in vectors.items()}


def _tensor(values: npt.NDArray[Any], *, writable: bool) -> torch.Tensor:
    """Return a tensor over an array, copied only if it must be writable and is not.

    >>> _tensor(np.zeros((2, 3), np.float16), writable=True).dtype
    torch.float16
    """
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.flags.writeable:
        return torch.from_numpy(values)
    if writable:
        return torch.from_numpy(values.copy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(values)


class _BatchRows(Sequence[TensorBatch]):
    """A batch as the sequence of its rows, as torch collates them; `collate` takes it whole."""

    def __init__(self, batch: TensorBatch, count: int) -> None:
        self.batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(self._count))]
        if not -self._count <= row < self._count:
            raise IndexError(f"row {row} is not in a batch of {self._count} rows")
        return {name: values[row] for name, values in self.batch.items()}


def collate(rows: Sequence[TensorBatch]) -> TensorBatch:
    """Return a batch of rows, without a copy if it was read as one; for a DataLoader's ``collate_fn``.

    torch's own ``default_collate`` gives the same, but splits the batch into rows first, and refuses strings
    that are null.

    Parameters
    ----------
    rows : sequence of dict
        From `StoreDataset`.

    Returns
    -------
    dict of str to tensor or list
        One row behind the other.

    Examples
    --------
    >>> import zarrow.testing
    >>> dataset = StoreDataset(zarrow.testing.example_store(), columns=["occurs_prob"])
    >>> collate([dataset[0], dataset[4999]])["occurs_prob"]
    tensor([0.0000, 0.9998], dtype=torch.float64)
    """
    if isinstance(rows, _BatchRows):
        return rows.batch
    if not rows:
        raise InvalidInputError("a batch must have at least one row, got none")
    found: TensorBatch = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        found[name] = torch.stack(values) if isinstance(first, torch.Tensor) else values
    return found


class StoreDataset(Dataset[TensorBatch]):
    """Rows of a store by number, for any sampler; a DataLoader's batch is read in one go.

    Can be pickled to worker processes, each of which opens the store.

    Parameters
    ----------
    store : Store or path
        The store; a path must be that of a complete one.
    columns : list of str, optional
        The narrow columns; all by default.
    arrays : list of str, optional
        The arrays; all by default.
    filter : pyarrow.compute.Expression, optional
        Which rows, as in `Store.table`. Takes 8 bytes of memory per row that passes.
    fill_values : dict of str to value, optional
        The value that replaces null, by column; −1 in ``sample_index``.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such column or array, or the filter or a fill value does not fit.

    Examples
    --------
    >>> import pyarrow.compute as pc, zarrow.testing
    >>> from torch.utils.data import DataLoader
    >>> store = zarrow.testing.example_store()
    >>> likely = StoreDataset(store, columns=["subject_id"], filter=pc.field("occurs_prob") >= 0.9)
    >>> batch = next(iter(DataLoader(likely, batch_size=64, shuffle=True, collate_fn=collate)))
    >>> len(likely), batch["query_embed"].shape, batch["subject_id"].dtype
    (500, torch.Size([64, 8]), torch.int64)
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        arrays: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        fill_values: Mapping[str, object] | None = None,
    ) -> None:
        self._source = _Source(store, columns, arrays, fill_values, writable=True)
        self._rows: npt.NDArray[np.int64] | None = None
        if filter is not None:
            self._rows = self._source.store.table([ROW], filter)[ROW].to_numpy()

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row numbers in the store of the dataset's rows, in order."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._source.store.num_rows if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> TensorBatch:
        """Return one row: tensors without the batch axis."""
        batch = self._source.take(self._numbers([index]))
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> Sequence[TensorBatch]:
        """Return the rows of a batch, read in one go; a DataLoader calls this."""
        return _BatchRows(self._source.take(self._numbers(indices)), len(indices))

    def _numbers(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        numbers = row_numbers(indices, len(self))
        return numbers if self._rows is None else self._rows[numbers]


class _Share(NamedTuple):
    rank: int
    ranks: int


class StoreIterableDataset(IterableDataset[TensorBatch]):
    """Batches of a store, read block by block; every row once over all ranks and workers.

    Blocks of `block_rows` rows are dealt to the ranks in turn, and the blocks of a rank to its workers. No
    batch crosses the end of a block or, if shuffled, of a buffer, so the number of batches is known.

    Use it with ``DataLoader(dataset, batch_size=None, num_workers=…)``. Ranks may have different numbers of
    batches, for which training with a collective per batch needs ``Join`` or a limit.

    Parameters
    ----------
    store : Store or path
        The store; a path must be that of a complete one.
    batch_size : int
        Rows of a batch; the last one of a block or buffer may be shorter.
    columns, arrays : list of str, optional
        As in `StoreDataset`.
    filter : pyarrow.compute.Expression, optional
        Which rows, as in `Store.table`.
    shuffle : bool
        Whether blocks come in random order, and rows in random order within buffers of several blocks. The
        order depends on `seed`, the epoch and the number of ranks. The number of workers only decides which
        worker yields the batches of which buffer.
    seed : int
        See `shuffle`.
    block_rows : int, optional
        Rows that are read together; a segment by default.
    buffer_rows : int
        Rows that are shuffled together: as many blocks as fit, at least one. Compressed arrays are held in
        memory for that many rows; others stay on disk.
    rank, world_size : int, optional
        Which share of the blocks; by default that of `torch.distributed` when the iteration begins.
    writable : bool
        Whether tensors may be written to. If not, and neither filtered nor shuffled, vectors of plain bytes
        are the mapped files: nothing is copied, and writing to them kills the process.
    fill_values : dict of str to value, optional
        As in `StoreDataset`.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such column or array, or another argument is invalid.

    Examples
    --------
    >>> import zarrow.testing
    >>> from torch.utils.data import DataLoader
    >>> store = zarrow.testing.example_store()
    >>> dataset = StoreIterableDataset(store, batch_size=500, columns=["row"], shuffle=True)
    >>> loader = DataLoader(dataset, batch_size=None)
    >>> len(loader), len({row for batch in loader for row in batch["row"].tolist()})
    (10, 5000)
    >>> dataset.set_epoch(1)  # another order
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        batch_size: int,
        *,
        columns: Sequence[str] | None = None,
        arrays: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        shuffle: bool = False,
        seed: int = 0,
        block_rows: int | None = None,
        buffer_rows: int = 65_536,
        rank: int | None = None,
        world_size: int | None = None,
        writable: bool = True,
        fill_values: Mapping[str, object] | None = None,
    ) -> None:
        self._source = _Source(store, columns, arrays, fill_values, writable)
        self._source.store.scan([ROW], filter)  # a filter that does not fit is an error here
        given: dict[str, Any] = {
            "batch_size": batch_size,
            "block_rows": block_rows,
            "buffer_rows": buffer_rows,
        }
        for name, value in given.items():
            if value is not None and (not isinstance(value, int | np.integer) or value < 1):
                raise InvalidInputError(f"{name} must be a positive number of rows, got {value!r}")
        if (rank is None) != (world_size is None):
            raise InvalidInputError(f"give both rank and world_size, or neither, got {rank} and {world_size}")
        self._share: _Share | None = None
        if rank is not None and world_size is not None:
            if not 0 <= rank < world_size:
                raise InvalidInputError(f"rank must be in 0..world_size-1, got {rank} of {world_size}")
            self._share = _Share(rank, world_size)
        self._filter = filter
        self._batch_size = int(batch_size)
        self._shuffle, self._seed = bool(shuffle), int(seed)
        self._block_rows = int(block_rows or self._source.store.segment_rows)
        self._buffer_blocks = max(1, int(buffer_rows) // self._block_rows) if shuffle else 1
        # In shared memory, so that workers that persist over epochs see it too.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration.

        Parameters
        ----------
        epoch : int
            The number of the epoch.

        Examples
        --------
        >>> import zarrow.testing
        >>> StoreIterableDataset(zarrow.testing.example_store(), batch_size=500).set_epoch(1)
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of batches of this rank, over all its workers; TypeError if there is a filter."""
        if self._filter is not None:
            raise TypeError("with a filter, the number of batches is not known before they are read")
        rows = (sum(map(len, buffer)) for buffer in self._buffers())
        return sum(-(-count // self._batch_size) for count in rows)

    def __iter__(self) -> Iterator[TensorBatch]:
        """Yield the batches of this rank and worker."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for index, buffer in enumerate(self._buffers()):
            if index % workers == number:
                yield from self._shuffled(buffer, index) if self._shuffle else self._in_order(buffer[0])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker, with the rank: a spawned one does not know it."""
        return self.__dict__ | {"_share": self._found_share()}

    def _found_share(self) -> _Share:
        if self._share is not None:
            return self._share
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return _Share(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return _Share(0, 1)

    def _random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([abs(self._seed), int(self._seed < 0), int(self._epoch), *numbers])

    def _buffers(self) -> list[list[range]]:
        """Return this rank's blocks in the order of the epoch, grouped as they are shuffled together."""
        rows, size = self._source.store.num_rows, self._block_rows
        blocks = [range(start, min(start + size, rows)) for start in range(0, rows, size)]
        if self._shuffle:
            blocks = [blocks[place] for place in self._random().permutation(len(blocks))]
        share = self._found_share()
        mine = blocks[share.rank :: share.ranks]
        step = self._buffer_blocks
        return [mine[start : start + step] for start in range(0, len(mine), step)]

    def _table(self, block: range) -> pa.Table:
        """Return the columns of the rows of a block that pass, and ``row``."""
        here = (pc.field(ROW) >= block.start) & (pc.field(ROW) < block.stop)
        names = list(dict.fromkeys([*self._source.columns, ROW]))
        return self._source.store.table(names, here if self._filter is None else here & self._filter)

    def _in_order(self, block: range) -> Iterator[TensorBatch]:
        table, source = self._table(block), self._source
        for start in range(0, table.num_rows, self._batch_size):
            batch = table.slice(start, self._batch_size)
            rows = batch[ROW].to_numpy()
            found = source.column_tensors(batch)
            first, stop = int(rows[0]), int(rows[-1]) + 1
            for name in source.arrays:
                array = source.store[name]
                if stop - first == len(rows):
                    array.prefetch(stop, stop + self._batch_size)
                    found[name] = _tensor(array.read(first, stop), writable=source.writable)
                else:
                    found[name] = _tensor(array.take(rows), writable=source.writable)
            yield found

    def _shuffled(self, buffer: list[range], index: int) -> Iterator[TensorBatch]:
        source = self._source
        table = pa.concat_tables([self._table(block) for block in buffer]).unify_dictionaries()
        table = table.combine_chunks()
        rows = table[ROW].to_numpy()
        # Plain rows are read one by one. Of compressed ones, the same chunks would be decoded repeatedly.
        held = {
            name: None if source.store[name].is_plain else source.store[name].take(rows)
            for name in source.arrays
        }
        order = self._random(self._found_share().rank, index).permutation(len(rows))
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            found = source.column_tensors(table.take(pa.array(places)))
            for name, values in held.items():
                vectors = source.store[name].take(rows[places]) if values is None else values[places]
                found[name] = _tensor(vectors, writable=True)
            yield found
