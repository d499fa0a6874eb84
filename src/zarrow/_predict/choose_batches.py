"""Choosing batches — a run predicts only the batches that are missing, and each rank only its own.

`choose_batches` replaces the method by which Lightning gets the loaders, from the call of ``predict``, a
DataModule, or the model. The new one returns copies of the loaders with `RemainingBatches` as batch sampler.
Which batches those are depends on the loader's own sampler:

* in the dataset's order, or a `DistributedSampler` (which pads): in the dataset's order;
* in random order: the missing samples in the dataset's order, since the order differs in every run;
* a sampler or batch sampler of the user's: its batches. On several ranks all of them must yield the same,
  which are then dealt out; or they divide the samples themselves, which is respected. A sample that comes on
  more than one rank is refused before the first batch, or left to the first of these ranks.

Iterable datasets, ``batch_size=None`` and loaders that are no `DataLoader` are left as they are.

It relies on one private attribute of Lightning, ``predict_loop._data_source``.
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
from zarrow._predict.loaders import length_of
from zarrow._predict.remaining_batches import (
    Dealer,
    RemainingBatches,
    batches_in_order,
    given_batches,
    grouped,
    packed,
)
from zarrow._predict.sample_set import SampleSet
from zarrow.errors import InvalidInputError

__all__ = ["choose_batches"]


def choose_batches(
    trainer: Trainer, stored: dict[int, SampleSet], *, drop_duplicates: bool
) -> Callable[[], None]:
    """Let the run's loaders yield only the batches that are missing, and on each rank only its own.

    Parameters
    ----------
    trainer : Trainer
        In ``setup``, before it gets the loaders.
    stored : dict of int to SampleSet
        The samples that are stored, per ``dataloader_idx``; those that another rank will store are added.
    drop_duplicates : bool
        Whether a sample may come on several ranks.

    Returns
    -------
    callable
        Undoes it.

    Raises
    ------
    InvalidInputError
        If this version of Lightning keeps the loaders elsewhere.
    """
    source: Any = getattr(trainer.predict_loop, "_data_source", None)
    if not hasattr(source, "dataloader"):
        raise InvalidInputError(
            "this version of Lightning does not let a callback choose the batches: make the DataLoader with "
            "batch_sampler=zarrow.lightning.MissingRowsSampler(...)"
        )
    undo = contextlib.ExitStack()

    def dataloader() -> CombinedLoader:
        found = type(source).dataloader(source)
        loaders = (
            copy.copy(found) if isinstance(found, CombinedLoader) else CombinedLoader(found, "sequential")
        )
        chosen = [
            _remaining(trainer, loader, stored.setdefault(i, SampleSet()), drop_duplicates=drop_duplicates)
            for i, loader in enumerate(loaders.flattened)
        ]
        loaders.flattened = chosen
        if any(length_of(one) == 0 for one in chosen):
            undo.enter_context(_zero_batches_will_do(trainer))
        return loaders

    source.dataloader = dataloader  # hides the method of the class
    undo.callback(delattr, source, "dataloader")
    return undo.close


@contextlib.contextmanager
def _zero_batches_will_do(trainer: Trainer) -> Iterator[None]:
    """Let a rank have no batch: the others have those that are left."""
    module = trainer.lightning_module
    before = module.allow_zero_length_dataloader_with_multiple_devices
    module.allow_zero_length_dataloader_with_multiple_devices = True
    warnings.filterwarnings("ignore", "Total length of `.*` across ranks is zero")
    try:
        yield
    finally:
        module.allow_zero_length_dataloader_with_multiple_devices = before


def _remaining(trainer: Trainer, loader: Any, stored: SampleSet, *, drop_duplicates: bool) -> Any:
    """Return a copy of the loader that yields the batches left, or the loader if it offers no choice."""
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
            # The user's samplers divide the samples: all are ours, except those of a rank before this one.
            stored.update(_others(trainer, mine, length_of(loader.dataset), drop_duplicates=drop_duplicates))
            ranks, expected = (0, 1), length_of(loader.dataset)
    chosen = copy.copy(loader)
    # A DataLoader refuses this, though Lightning only reads the samplers and makes another loader with them,
    # of the same class, which may be the user's.
    object.__setattr__(chosen, "batch_sampler", RemainingBatches(deal, stored, lambda: ranks, expected))
    if world_size > 1:
        # Yields nothing, but keeps Lightning from making one, which fails with fewer rows than ranks.
        sampler: Any = DistributedSampler(loader.dataset, num_replicas=world_size, rank=ranks[0])
        object.__setattr__(chosen, "sampler", sampler)
    return chosen


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Tell whether all ranks together predict exactly the dataset."""
    plain = (SequentialSampler, RandomSampler, DistributedSampler)
    return type(loader.batch_sampler) is BatchSampler and type(loader.sampler) in plain


def _summary(loader: DataLoader[Any]) -> tuple[SampleSet, int]:
    """Return the samples that a rank's sampler yields, and a checksum of its batches."""
    samples, checksum = SampleSet(), 0
    for batch in loader.batch_sampler or ():
        sample_index = np.asarray(batch, np.int64)
        checksum = crc32c(sample_index.tobytes(), checksum)
        samples.add(sample_index[samples.fresh(sample_index)])
    return samples, checksum


def _others(trainer: Trainer, mine: SampleSet, available: int | None, *, drop_duplicates: bool) -> SampleSet:
    """Return the samples of the ranks before this one; raise if a sample comes on several and may not.

    A rank holds two sets at a time, however many ranks there are.
    """
    before, union = SampleSet(), SampleSet()
    repeated = 0
    for rank in range(trainer.world_size):
        if rank == trainer.global_rank:
            before.update(union)
        theirs: SampleSet = trainer.strategy.broadcast(mine, src=rank)
        repeated += union.update(theirs)
    if repeated and not drop_duplicates:
        raise InvalidInputError(
            f"the samplers of {trainer.world_size} ranks yield {len(union) + repeated} rows of a dataset of "
            f"{available}, {repeated} of them more than once: use samplers that divide the rows without "
            "padding and have the same seed, or none of your own, or drop repeated rows with "
            "duplicates='drop'"
        )
    return before


def _dealer(loader: DataLoader[Any]) -> tuple[Dealer, int | None]:
    """Return how a loader's batches are dealt out, and the number of their rows."""
    batch_sampler, sampler = loader.batch_sampler, loader.sampler
    rows = length_of(loader.dataset)
    if type(batch_sampler) is not BatchSampler:
        assert batch_sampler is not None
        return given_batches(batch_sampler), rows
    batch_size = batch_sampler.batch_size
    if type(sampler) in (SequentialSampler, DistributedSampler) and rows is not None:
        return batches_in_order(rows, batch_size), rows
    # The order changes from run to run, and from rank to rank, so any order will do.
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == rows:
        return packed(range(rows), batch_size), rows
    if type(sampler) is SubsetRandomSampler:
        candidates = np.sort(np.asarray(sampler.indices, np.int64))
        return packed(candidates, batch_size), len(candidates)  # type: ignore[arg-type]
    return grouped(sampler, batch_size), length_of(sampler)
