"""How does a run come to predict only the batches that are missing, and each rank only its own?

`choose_batches` puts itself in front of the place where Lightning asks for the loaders, whoever has them:
the call of ``predict``, a DataModule, or the model. What it gives back are copies of the loaders, with
`RemainingBatches` for a batch sampler. Which batches those are depends on the loader's own:

* in the dataset's order, or dealt out by a `DistributedSampler` (which pads): in the dataset's order;
* in random order: the missing rows, in the dataset's order, since it is another order every time;
* by a sampler or batch sampler of the user's: the batches of that. On several ranks all of them must yield
  the same, which are then dealt out; or they divide the rows by themselves, which is respected. A row that
  comes on more than one rank is refused before the first batch, or left to the first of these ranks.

Iterable datasets, ``batch_size=None`` and loaders that are no `DataLoader` are left as they are.

Place: under the edge `lightning`; imports torch and lightning. Knows one thing of Lightning that is not
public: ``predict_loop._data_source``.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from zarrow._format.checksum import crc32c
from zarrow._predict import remaining_batches
from zarrow._predict.loaders import length_of
from zarrow._predict.remaining_batches import Dealer, RemainingBatches
from zarrow._predict.row_set import RowSet
from zarrow.errors import InvalidInputError

__all__ = ["choose_batches"]


def choose_batches(
    trainer: Trainer, stored: dict[int, RowSet], *, drop_duplicates: bool
) -> Callable[[], None]:
    """Let the run's loaders yield the batches that are still to be predicted, to each rank its own.

    Parameters
    ----------
    trainer : Trainer
        Before it has asked for the loaders: in ``setup``.
    stored : dict of int to RowSet
        Per ``dataloader_idx`` the rows that are stored; those that another rank is to store are added.
    drop_duplicates : bool
        Whether a row may come on several ranks.

    Returns
    -------
    callable
        Undoes it.

    Raises
    ------
    InvalidInputError
        If this version of Lightning has the loaders in another place.
    """
    source = getattr(trainer.predict_loop, "_data_source", None)
    if not hasattr(source, "dataloader"):
        raise InvalidInputError(
            "this version of Lightning does not let a callback choose the batches: give the DataLoader "
            "batch_sampler=zarrow.lightning.MissingRowsSampler(...)"
        )
    undo = contextlib.ExitStack()

    def dataloader() -> CombinedLoader:
        found = type(source).dataloader(source)  # type: ignore[union-attr]  # has it, see above
        loaders = (
            copy.copy(found) if isinstance(found, CombinedLoader) else CombinedLoader(found, "sequential")
        )
        chosen = [
            _remaining(trainer, loader, stored.setdefault(i, RowSet()), drop_duplicates=drop_duplicates)
            for i, loader in enumerate(loaders.flattened)
        ]
        loaders.flattened = chosen
        if any(length_of(one) == 0 for one in chosen):
            undo.enter_context(_zero_batches_will_do(trainer))
        return loaders

    # Lightning warns that a batch sampler may leave rows out, which is what this one is for.
    warnings.filterwarnings("ignore", f"You are using a custom batch sampler `{RemainingBatches.__name__}`")
    vars(source)["dataloader"] = dataloader  # in front of the class's method
    undo.callback(vars(source).pop, "dataloader", None)
    return undo.close


@contextlib.contextmanager
def _zero_batches_will_do(trainer: Trainer) -> Iterator[None]:
    """Let a rank have no batch: the others have what is left."""
    module = trainer.lightning_module
    before = module.allow_zero_length_dataloader_with_multiple_devices
    module.allow_zero_length_dataloader_with_multiple_devices = True
    warnings.filterwarnings("ignore", "Total length of `.*` across ranks is zero")
    try:
        yield
    finally:
        module.allow_zero_length_dataloader_with_multiple_devices = before


def _remaining(trainer: Trainer, loader: Any, stored: RowSet, *, drop_duplicates: bool) -> Any:
    """Return a copy of the loader that yields what is left, or the loader if it cannot be chosen from."""
    world_size = trainer.world_size
    if not len(stored) and world_size == 1:
        return loader
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
        or isinstance(loader.batch_sampler, RemainingBatches)
    ):
        return loader
    deal, expected = _dealer(loader)
    ranks = (trainer.global_rank, world_size)
    if world_size > 1 and not _is_plain(loader):
        mine, checksum = _summary(loader)
        first: int = trainer.strategy.broadcast(checksum)
        if not trainer.strategy.reduce_boolean_decision(first == checksum):
            # The user has dealt out: all of it is ours, but what a rank before has too.
            stored.update(_others(trainer, mine, length_of(loader.dataset), drop_duplicates=drop_duplicates))
            ranks, expected = (0, 1), length_of(loader.dataset)
    chosen = copy.copy(loader)
    # A DataLoader forbids setting this. Lightning makes a new one from the attributes of this one.
    vars(chosen)["batch_sampler"] = RemainingBatches(deal, stored, lambda: ranks, expected)
    if world_size > 1:
        # Not asked for a row, but it keeps Lightning from making one, which fails if there are fewer rows
        # than ranks.
        vars(chosen)["sampler"] = DistributedSampler(loader.dataset, num_replicas=world_size, rank=ranks[0])
    return chosen


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Tell whether it is known which rows all ranks together are to have: those of the dataset."""
    plain = (SequentialSampler, RandomSampler, DistributedSampler)
    return type(loader.batch_sampler) is BatchSampler and type(loader.sampler) in plain


def _summary(loader: DataLoader[Any]) -> tuple[RowSet, int]:
    """Return the rows that a rank's sampler yields, and a checksum of its batches."""
    rows, checksum = RowSet(), 0
    for batch in loader.batch_sampler or ():
        indices = np.asarray(batch, np.int64)
        checksum = crc32c(indices.tobytes(), checksum)
        rows.add(indices[rows.fresh(indices)])
    return rows, checksum


def _others(trainer: Trainer, mine: RowSet, available: int | None, *, drop_duplicates: bool) -> RowSet:
    """Return the rows that the ranks before this one have; raise if rows come on several, and may not.

    A rank holds two sets of rows at a time, however many ranks there are.
    """
    before, union = RowSet(), RowSet()
    repeated = 0
    for rank in range(trainer.world_size):
        if rank == trainer.global_rank:
            before.update(union)
        theirs: RowSet = trainer.strategy.broadcast(mine, src=rank)
        repeated += union.update(theirs)
    if repeated and not drop_duplicates:
        raise InvalidInputError(
            f"the samplers of {trainer.world_size} ranks yield {len(union) + repeated} rows of a dataset of "
            f"{available}, {repeated} of them more than once: use samplers that divide the rows without "
            "padding and are seeded alike, or none of your own, or leave them out with duplicates='drop'"
        )
    return before


def _dealer(loader: DataLoader[Any]) -> tuple[Dealer, int | None]:
    """Return how a loader's batches are dealt out, and how many rows they have in all."""
    batch_sampler, sampler = loader.batch_sampler, loader.sampler
    rows = length_of(loader.dataset)
    if type(batch_sampler) is not BatchSampler:
        assert batch_sampler is not None
        return remaining_batches.given_batches(batch_sampler), rows
    batch_size = batch_sampler.batch_size
    if type(sampler) in (SequentialSampler, DistributedSampler) and rows is not None:
        return remaining_batches.batches_in_order(rows, batch_size), rows
    # An order that changes from run to run, and from rank to rank, is nobody's concern: any will do.
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == rows:
        return remaining_batches.packed(range(rows), batch_size), rows
    if type(sampler) is SubsetRandomSampler:
        candidates = np.sort(np.asarray(sampler.indices, np.int64))
        return remaining_batches.packed(candidates, batch_size), len(candidates)  # type: ignore[arg-type]
    return remaining_batches.grouped(sampler, batch_size), length_of(sampler)
