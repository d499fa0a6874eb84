"""What does Lightning know about the rows of a batch, and what does it keep of them?

Of a map-style `DataLoader` that has batches Lightning records the dataset indices of every batch; of
iterable datasets, ``batch_size=None`` and plain iterables it knows nothing, and shows the indices of the
loader before. `describe` says, once per loader, where a row's place in the dataset comes from:

* ``recorded``: Lightning's record;
* ``running``: counted, because the loader yields the dataset in its order;
* ``given``: the caller finds it in the batch.

and how many rows are to be expected. Lightning keeps the record of every batch until the end, 40 to 140
bytes a row; `trim` replaces it by one that forgets what was written.

Place: under the edge `lightning`; imports torch and lightning. Knows one thing of Lightning that is not
public: ``seen_batch_indices``.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset

from zarrow.errors import InvalidInputError

__all__ = ["LoaderFacts", "as_indices", "describe", "length_of", "loaders_of", "recorded_indices", "trim"]

Order = Literal["recorded", "running", "given"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderFacts:
    """What is known of one predict data loader before its first batch.

    Parameters
    ----------
    position : int
        Its ``dataloader_idx``.
    order : {"recorded", "running", "given"}
        Where a row's place in the dataset comes from.
    dataset_rows : int or None
        Length of the dataset, if it has one.
    expected_rows : int or None
        Rows that all ranks together will yield, if anybody knows.
    expected_batches : int or None
        Batches that this loader will yield, if it can tell.
    dataset : tuple of (str, int or None)
        The dataset's type and length.
    name : str
        For messages.
    """

    position: int
    order: Order
    dataset_rows: int | None
    expected_rows: int | None
    expected_batches: int | None
    dataset: tuple[str, int | None]
    name: str


def loaders_of(trainer: Trainer) -> list[Any]:
    """Return the loaders that the trainer predicts with, by ``dataloader_idx``."""
    found = trainer.predict_dataloaders
    return [] if found is None else list(CombinedLoader(found, "sequential").flattened)


def describe(loader: Any, position: int, *, given: bool, world_size: int = 1) -> LoaderFacts:
    """Return what is known of a loader.

    Parameters
    ----------
    loader : DataLoader or iterable
        As Lightning will iterate over it.
    position : int
        Its ``dataloader_idx``.
    given : bool
        Whether the caller finds the rows' places in the batch.
    world_size : int
        How many ranks predict.

    Returns
    -------
    LoaderFacts
        What is known.

    Raises
    ------
    InvalidInputError
        If nobody can tell which rows of the dataset a batch will have.
    """
    name = f"predict data loader {position} ({type(loader).__name__})"
    order: Order = "given" if given else "running"
    remedy = "or tell the rows' places in the dataset with sample_index="
    if not isinstance(loader, DataLoader):
        _check_one_rank(name, world_size, remedy, given=given)
        return LoaderFacts(
            position=position,
            order=order,
            dataset_rows=None,
            expected_rows=None,
            expected_batches=length_of(loader) if world_size == 1 else None,
            dataset=(type(loader).__qualname__, None),
            name=name,
        )
    if not given and loader.num_workers > 1 and not getattr(loader, "in_order", True):
        raise InvalidInputError(
            f"{name}: with in_order=False nobody can tell which rows a batch has: leave in_order as it is, "
            f"{remedy}"
        )
    dataset_rows = length_of(loader.dataset)
    expected = dataset_rows
    if isinstance(loader.dataset, IterableDataset):
        _check_one_rank(name, world_size, remedy, given=given)
        if not given and loader.num_workers > 1:
            raise InvalidInputError(
                f"{name}: {loader.num_workers} workers read an iterable dataset side by side, so that nobody "
                f"can tell which rows a batch has: use num_workers=1, a map-style dataset, {remedy}"
            )
    elif loader.batch_sampler is not None:
        order = "given" if given else "recorded"
        sampler = getattr(loader.batch_sampler, "sampler", None)
        dealt: Any = loader.batch_sampler
        if hasattr(dealt, "expected_rows"):
            expected = dealt.expected_rows
        elif world_size == 1 and length_of(sampler) is not None:
            expected = length_of(sampler)
    else:
        _check_one_rank(name, world_size, remedy, given=given)
        expected = length_of(loader.sampler)
        if not given and not isinstance(loader.sampler, SequentialSampler):
            raise InvalidInputError(
                f"{name}: Lightning reports no dataset indices for it, and its sampler is a "
                f"{type(loader.sampler).__name__}, so that nobody can tell which rows a batch has: "
                f"set a batch_size, {remedy}"
            )
    return LoaderFacts(
        position=position,
        order=order,
        dataset_rows=dataset_rows,
        expected_rows=expected,
        expected_batches=length_of(loader) if world_size == 1 else None,
        dataset=(type(loader.dataset).__qualname__, dataset_rows),
        name=f"{name} over {_dataset_name(loader.dataset)}",
    )


def _check_one_rank(name: str, world_size: int, remedy: str, *, given: bool) -> None:
    if world_size > 1 and not given:
        raise InvalidInputError(
            f"{name}: Lightning reports no dataset indices for it, so that nobody can tell which rows each "
            f"of {world_size} ranks predicts: use a map-style dataset with a batch_size, {remedy}"
        )


def length_of(thing: Any) -> int | None:
    """Return a thing's length; None if it has none."""
    if not isinstance(thing, Sized):
        return None
    try:
        return len(thing)
    except (TypeError, NotImplementedError):
        return None


def _dataset_name(dataset: Any) -> str:
    if isinstance(dataset, Subset):
        whole = length_of(dataset.dataset)
        return f"a Subset of {len(dataset)} of {whole} rows"
    return f"a {type(dataset).__name__}"


class _Recent:
    """The record of a loader's batches, as far as they have not been written."""

    def __init__(self, batches: list[Any]) -> None:
        self._kept = dict(enumerate(batches))
        self._count = len(batches)

    def append(self, indices: Any) -> None:
        self._kept[self._count] = indices
        self._count += 1

    def forget(self, batch: int) -> None:
        self._kept.pop(batch, None)

    def __getitem__(self, batch: int) -> Any:
        return self._kept[batch]

    def __len__(self) -> int:
        return self._count


def recorded_indices(loader: Any, batch_idx: int) -> Any:
    """Return the dataset indices that Lightning recorded for a batch.

    What it hands to the callback may be those of a loader before, so they are read where they are written.

    Parameters
    ----------
    loader : DataLoader
        The loader that yielded it.
    batch_idx : int
        The batch's number.

    Returns
    -------
    sequence of int
        In the batch's order.

    Raises
    ------
    InvalidInputError
        If there is no record.
    """
    try:
        indices = loader.batch_sampler.seen_batch_indices[batch_idx]
    except (AttributeError, LookupError):
        raise InvalidInputError(
            f"Lightning has no record of the dataset indices of batch {batch_idx}: tell the rows' places in "
            "the dataset with sample_index="
        ) from None
    return indices[:] if type(indices) is list else np.array(indices)  # samplers may use theirs again


def trim(loader: Any, batch_idx: int) -> None:
    """Forget the indices of a batch that was written.

    Parameters
    ----------
    loader : DataLoader or iterable
        The loader that yielded it.
    batch_idx : int
        The batch's number.
    """
    sampler = getattr(loader, "batch_sampler", None)
    seen = getattr(sampler, "seen_batch_indices", None)
    if type(seen) is list:
        seen = _Recent(seen)
        sampler.seen_batch_indices = seen  # type: ignore[union-attr]  # seen came from it
    if isinstance(seen, _Recent):
        seen.forget(batch_idx)


def as_indices(indices: Any, what: str) -> npt.NDArray[np.int64]:
    """Return dataset indices as an array.

    Parameters
    ----------
    indices : sequence or tensor of int
        As Lightning or the caller gave them.
    what : str
        Whose they are, for the message.

    Returns
    -------
    int64 array, shape (rows,)
        In the batch's order.

    Raises
    ------
    InvalidInputError
        If they are no places in a dataset.
    """
    values = np.asarray(indices)
    if values.size == 0:
        return np.zeros(0, np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= 2**40:
        raise InvalidInputError(
            f"{what} must be one place in the dataset per row (0..2**40-1), got {values.dtype} of shape "
            f"{values.shape}, {values.reshape(-1)[:3].tolist()}…: tell the places with sample_index="
        )
    return values.astype(np.int64)
