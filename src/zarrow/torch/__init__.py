"""Torch datasets — a store's rows, fed to a model.

* `StoreDataset` is map-style: a batch is one gather, whatever sampler picks its rows.
* `StoreIterableDataset` yields batches in the order of the files, every row once over all ranks and
  workers, shuffled by block and within a buffer.

Both yield dicts of tensors in the dtypes of the columns and arrays; strings and other objects come as lists,
and arrays with any number of vectors per row as jagged tensors, or padded ones with a mask. Timestamps and
durations are int64 in the column's unit. A null in a column of integers or booleans is an error unless
`fill_values` replaces it; in floats it is NaN, in strings None.

Tensors may be written to, because a gather copies anyway. With ``writable=False`` they are the mapped files
where rows lie together: nothing is copied, and writing to such a tensor kills the process. Reads only.

Behind them, in the order in which a batch is made: `_order` (which rows), `_source` (read as tensors),
`_ragged` (rows of any number of vectors), `_memory` (where they are put), `_ahead` (in a thread), `_rows`
(what torch takes for a list of rows).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow._format.checksum import crc32c
from zarrow._format.layout import ROW
from zarrow._read.columns import CACHE_BYTES
from zarrow._read.indexing import row_numbers
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.store import Store

try:
    import torch
    import torch.distributed
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.torch needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

from zarrow.torch._ahead import ahead
from zarrow.torch._order import Order
from zarrow.torch._progress import Progress
from zarrow.torch._ragged import Form
from zarrow.torch._rows import BatchRows, collate
from zarrow.torch._source import Source, TensorBatch
from zarrow.torch._stream import Stream

__all__ = ["StoreDataset", "StoreIterableDataset", "collate"]

_BLOCK_ROWS = 1024
_BUFFER_ROWS = 65_536
_BUFFER_BLOCKS = 64
_BUFFER_BYTES = 1 << 30
"""Of compressed ragged arrays, whose rows are as large as they happen to be."""


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
    ragged : {"jagged", "padded"}
        What an array with any number of vectors per row becomes: a nested tensor of layout `torch.jagged`,
        shape (rows, any, *vector_shape); or a tensor of shape (rows, longest, *vector_shape) with zeros
        behind the vectors, and ``<name>_mask``, bool, shape (rows, longest). The shape of a single row,
        ``dataset[i]``, is (count, *vector_shape) in both.
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
        ragged: Form = "jagged",
        filter: pc.Expression | None = None,
        fill_values: Mapping[str, object] | None = None,
    ) -> None:
        self._source = Source(store, columns, arrays, ragged, fill_values)
        self._rows = _chosen(self._source, filter)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row numbers in the store of the dataset's rows, in order."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def __repr__(self) -> str:
        return f"<zarrow.torch.StoreDataset {self._source.described(len(self))}>"

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._source.store.num_rows if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> TensorBatch:
        """Return one row: tensors without the batch axis."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[TensorBatch]:
        """Return the rows of a batch, read in one go; a DataLoader calls this."""
        ragged = dict.fromkeys(self._source.ragged_names, self._source.form)
        return BatchRows(self._source.take(self._numbers(indices)), len(indices), ragged)

    def _numbers(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        numbers = row_numbers(indices, len(self))
        return numbers if self._rows is None else self._rows[numbers]


class StoreIterableDataset(IterableDataset[TensorBatch]):
    """Batches of a store, read block by block; every row once over all ranks and workers.

    Blocks of `block_rows` rows are dealt to the ranks in turn, and the blocks of a rank to its workers. No
    batch crosses the end of a block or, if shuffled, of a buffer, so the number of batches is known.

    Use it with ``DataLoader(dataset, batch_size=None)``, or with torchdata's ``StatefulDataLoader`` to go on
    in the middle of an epoch (`state_dict`). A thread prepares batches while the model works, so that workers
    (``num_workers``) are worth it for compressed arrays only. Ranks may have different numbers of batches,
    for which training with a collective per batch needs ``Join`` or a limit.

    Parameters
    ----------
    store : Store or path
        The store; a path must be that of a complete one.
    batch_size : int
        Rows of a batch; the last one of a block or buffer may be shorter.
    columns, arrays : list of str, optional
        As in `StoreDataset`.
    ragged : {"jagged", "padded"}
        As in `StoreDataset`.
    filter : pyarrow.compute.Expression, optional
        Which rows, as in `StoreDataset`.
    shuffle : bool
        Whether blocks come in random order, and rows in random order within buffers of several blocks. The
        order depends on `seed`, the epoch and the number of ranks. The number of workers only decides which
        worker yields the batches of which buffer.
    seed : int
        See `shuffle`.
    block_rows : int, optional
        Rows that are read together: by default a segment, or if shuffled a chunk (about 1 MiB).
    buffer_rows : int, optional
        Rows that are shuffled together: as many blocks as fit, at least one. By default 65,536 or 64 blocks,
        whichever is more; with compressed ragged arrays no more than 1 GiB of their vectors. Compressed
        arrays are held in memory for that many rows; others stay on disk.
    rank, world_size : int, optional
        Which share of the blocks; by default that of `torch.distributed` when the iteration begins.
    writable : bool
        Whether tensors may be written to. If not, and neither filtered nor shuffled, vectors of plain bytes
        are the mapped files: nothing is copied, and writing to them kills the process.
    prefetch : int
        Batches that a thread prepares before they are asked for; none with 0, or in a worker.
    pin_memory : bool
        Whether vectors are in pinned memory, from which ``to("cuda", non_blocking=True)`` copies while the
        model works; not in a worker, where the DataLoader's ``pin_memory`` does it.
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
        ragged: Form = "jagged",
        filter: pc.Expression | None = None,
        shuffle: bool = False,
        seed: int = 0,
        block_rows: int | None = None,
        buffer_rows: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        writable: bool = True,
        prefetch: int = 2,
        pin_memory: bool = False,
        fill_values: Mapping[str, object] | None = None,
    ) -> None:
        self._source = Source(store, columns, arrays, ragged, fill_values, pin_memory=pin_memory)
        for name, value in (
            ("batch_size", batch_size),
            ("block_rows", block_rows),
            ("buffer_rows", buffer_rows),
        ):
            if value is not None:
                _require_number(name, value, 1)
        _require_number("prefetch", prefetch, 0)
        if (rank is None) != (world_size is None):
            raise InvalidInputError(f"give both rank and world_size, or neither, got {rank} and {world_size}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise InvalidInputError(f"rank must be in 0..world_size-1, got {rank} of {world_size}")
        self._share = None if rank is None or world_size is None else (rank, world_size)
        self._rows = _chosen(self._source, filter)
        self._mapped, self._ahead = not writable, prefetch
        self._order = _order(self._source, self._rows, batch_size, shuffle, seed, block_rows, buffer_rows)
        self._progress = Progress()

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
        self._progress.epoch = epoch

    def __repr__(self) -> str:
        rows = self._source.store.num_rows if self._rows is None else len(self._rows)
        return f"<zarrow.torch.StoreIterableDataset {self._source.described(rows)}>"

    def __len__(self) -> int:
        """Return the number of batches of this rank, over all its workers."""
        return int(self._mine().batches(self._progress.epoch).sum())

    def __iter__(self) -> Iterator[TensorBatch]:
        """Yield the batches of this rank and worker, behind those of a state that was loaded."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        began = self._progress.start(number, workers)
        stream = Stream(source=self._source, order=self._mine(), chosen=self._rows, mapped=self._mapped)
        batches = stream.batches(began["epoch"], number, workers, began["batches"])
        return self._progress.counted(ahead(batches, self._ahead if worker is None else 0), began)

    def state_dict(self) -> dict[str, Any]:
        """Return where the latest iteration is, for `load_state_dict`; JSON values.

        With ``num_workers``, every worker has a state, and torchdata's ``StatefulDataLoader`` collects them.

        Returns
        -------
        dict of str
            The epoch, the number of batches that were yielded, and what the order depends on.

        Raises
        ------
        InvalidInputError
            If workers iterate: this dataset does not know what they have yielded.

        Examples
        --------
        >>> import zarrow.testing
        >>> dataset = StoreIterableDataset(zarrow.testing.example_store(), batch_size=500, columns=["row"])
        >>> first = next(iter(dataset))
        >>> state = dataset.state_dict()
        >>> dataset.load_state_dict(state)
        >>> next(iter(dataset))["row"][0]
        tensor(500)
        """
        return self._progress.state() | self._facts()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on behind the batches that were yielded when a state was taken.

        Parameters
        ----------
        state : dict of str
            From `state_dict` of a dataset with the same store and arguments.

        Raises
        ------
        InvalidInputError
            If it is of another store, or other arguments, so that rows would be missing or come twice.

        Examples
        --------
        See `state_dict`.
        """
        self._progress.load(state, self._facts())

    def _facts(self) -> dict[str, Any]:
        """Return what the order of the batches depends on."""
        rows = None if self._rows is None else crc32c(self._rows.view(np.uint8))
        order = asdict(self._mine())
        return {"store": self._source.store.identity, "filtered_rows_crc32c": rows, **order}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker, with the rank: a spawned one does not know it."""
        return self.__dict__ | {"_share": self._found_share()}

    def _found_share(self) -> tuple[int, int]:
        if self._share is not None:
            return self._share
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _mine(self) -> Order:
        rank, ranks = self._found_share()
        return replace(self._order, rank=rank, ranks=ranks)


def _require_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        what = "a positive number of rows" if least else "0 or a number of batches"
        raise InvalidInputError(f"{name} must be {what}, got {value!r}")


def _chosen(source: Source, filter: pc.Expression | None) -> npt.NDArray[np.int64] | None:
    """Return the rows that pass a filter."""
    return None if filter is None else source.store.table([ROW], filter)[ROW].to_numpy()


def _order(
    source: Source,
    chosen: npt.NDArray[np.int64] | None,
    batch_size: int,
    shuffle: bool,
    seed: int,
    block_rows: int | None,
    buffer_rows: int | None,
) -> Order:
    """Return the order of rank 0 of 1, with the defaults filled in."""
    store = source.store
    segment_rows = store.segment_rows
    if block_rows is None:
        block_rows = min(source.chunk_rows or _BLOCK_ROWS, segment_rows) if shuffle else segment_rows
    if buffer_rows is None:
        buffer_rows = max(_BUFFER_ROWS, _BUFFER_BLOCKS * block_rows)
        if held := source.held_ragged_bytes:
            buffer_rows = max(min(buffer_rows, _BUFFER_BYTES // held), block_rows)
    return Order(
        rows=store.num_rows if chosen is None else len(chosen),
        batch_size=int(batch_size),
        shuffle=bool(shuffle),
        seed=int(seed),
        block_rows=int(block_rows),
        buffer_rows=int(buffer_rows),
        segment_rows=segment_rows,
        group_rows=CACHE_BYTES // 2 // max(source.column_bytes, 1),
        rank=0,
        ranks=1,
    )
