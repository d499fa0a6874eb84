"""How does a user make a loader over the rows that a store does not have yet?

`MissingRowsSampler`, which `zarrow.lightning` exports.

Place: under the edge `lightning`, above `store`; imports torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sized

import torch.distributed

from zarrow._predict.remaining_batches import RemainingBatches, batches_in_order
from zarrow._predict.row_set import RowSet
from zarrow._predict.stored_rows import stored_rows
from zarrow.errors import InvalidInputError

__all__ = ["MissingRowsSampler"]


class MissingRowsSampler(RemainingBatches):
    """A batch sampler of the rows that a store does not have yet: the public way to resume.

    `PredictionWriter` chooses the batches by itself; this is for those who make their own loaders, or call
    a model themselves. It yields the batches ``[0, batch_size)``, ``[batch_size, 2 batch_size)``, … of the
    dataset, without those that are stored, and on several ranks every rank its own. It holds one bit per
    row of the dataset.

    Parameters
    ----------
    path : path
        The store, which need not be there yet. Looked at now.
    dataset : sized or int
        The dataset, or its length.
    batch_size : int
        Rows of a batch.
    dataloader_idx : int
        Of which data loader the rows are, if the store has those of several.
    rank, world_size : int, optional
        By default those of `torch.distributed`, if it was initialized, when the batches are asked for.

    Raises
    ------
    InvalidInputError
        If `batch_size` is not positive, or the store's rows have no ``sample_index``.

    Examples
    --------
    >>> import tempfile, zarrow
    >>> from zarrow.lightning import MissingRowsSampler
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> with zarrow.Writer(path) as writer:
    ...     writer.append({"x": [1.0, 2.0]}, sample_index=[0, 1])
    >>> list(MissingRowsSampler(path, 7, batch_size=2))
    [[2, 3], [4, 5], [6]]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dataset: Sized | int,
        *,
        batch_size: int,
        dataloader_idx: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be positive, got {batch_size}")
        rows = dataset if isinstance(dataset, int) else len(dataset)
        stored, _ = stored_rows(path)
        warnings.filterwarnings("ignore", f"You are using a custom batch sampler `{type(self).__name__}`")

        def ranks() -> tuple[int, int]:
            if rank is not None and world_size is not None:
                return rank, world_size
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                return torch.distributed.get_rank(), torch.distributed.get_world_size()
            return 0, 1

        super().__init__(
            batches_in_order(rows, batch_size), stored.get(dataloader_idx, RowSet()), ranks, rows
        )
