"""Loaders — which samples of the dataset the rows of a batch are, and how many rows are expected.

Lightning records which samples it puts into every batch of a map-style `DataLoader`. Of iterable datasets,
``batch_size=None`` and plain iterables it has no record, and passes the one of the previous loader to
callbacks. `describe` says, once per loader, where the ``sample_index`` of a row comes from (`Order`):

* ``recorded``: Lightning's record;
* ``running``: counted, because the loader yields the dataset in its order;
* ``given``: the caller finds it in the batch.

`LoaderState` is what a run knows of one loader: these facts, and the samples stored so far.

Lightning keeps the record of every batch until the end, 40 to 140 bytes a row; `trim` replaces it by one that
forgets the batches that were handed over. It relies on private attributes, ``seen_batch_indices`` and
``predict_loop._data_source``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset

from zarrow._predict.identifiers import CallableIdentifiers, Identifiers
from zarrow._predict.rules import count_rows
from zarrow._predict.sample_set import SampleIndex, SampleSet
from zarrow.errors import BatchError, InvalidInputError

__all__ = [
    "LoaderFacts",
    "LoaderState",
    "as_sample_index",
    "describe",
    "length_of",
    "loaders_of",
    "recorded_samples",
    "trim",
]

Order = Literal["recorded", "running", "given"]
_WHO_KNOWS = {
    "recorded": "Lightning's record of the batch",
    "given": "sample_index",
    "running": "the batch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderFacts:
    """What is known of one predict data loader before its first batch.

    Parameters
    ----------
    position : int
        Its ``dataloader_idx``.
    order : {"recorded", "running", "given"}
        Where the ``sample_index`` of a row comes from.
    dataset_rows : int or None
        Length of the dataset, if it has one.
    expected_rows : int or None
        Rows that all ranks together will yield, if known.
    expected_batches : int or None
        Batches that this loader will yield, if known.
    name : str
        For messages.
    """

    position: int
    order: Order
    dataset_rows: int | None
    expected_rows: int | None
    expected_batches: int | None
    name: str


class LoaderState:
    """What a run knows of one data loader on this rank.

    Parameters
    ----------
    loader : DataLoader or iterable
        The loader.
    facts : LoaderFacts
        What is known of it.
    identifiers : Identifiers, CallableIdentifiers or None
        Where the identifiers of its rows come from.
    before : SampleSet
        Its samples that were stored when the run began.
    is_one_of_several : bool
        Whether the run has other loaders.
    """

    def __init__(
        self,
        loader: Any,
        facts: LoaderFacts,
        identifiers: Identifiers | CallableIdentifiers | None,
        before: SampleSet,
        *,
        is_one_of_several: bool,
    ) -> None:
        self.loader = loader
        self.facts = facts
        self.identifiers = identifiers
        self.before = before
        self.is_one_of_several = is_one_of_several
        self.next_row = self.batches = 0
        self.written = SampleSet()

    def sample_index(
        self, recorded: Any, columns: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> SampleIndex:
        """Return the ``sample_index`` of the rows of a batch; counts them if there is no record.

        Parameters
        ----------
        recorded : sequence of int, or None
            Lightning's or the caller's record of the rows.
        columns, arrays : mapping of str to tensor, array or sequence
            The prediction.

        Returns
        -------
        int64 array, shape (rows,)
            In the batch's order.

        Raises
        ------
        InvalidInputError
            If the record does not fit the prediction or the dataset.
        """
        found = None if recorded is None else as_sample_index(recorded, "what the sampler yields")
        order, known = self.facts.order, self.facts.dataset_rows
        rows = count_rows(columns, arrays, None if found is None else len(found), _WHO_KNOWS[order])
        if found is None:
            found = np.arange(self.next_row, self.next_row + rows)
        elif rows and known is not None and found.max() >= known:
            raise BatchError(f"sample_index must be below {known}, the dataset's length, got {found.max()}")
        self.next_row += rows
        return found

    @property
    def expected_rows(self) -> int | None:
        """Rows that all ranks together are to store, if that is known."""
        if self.facts.expected_rows is None and isinstance(self.identifiers, Identifiers):
            return self.identifiers.rows
        return self.facts.expected_rows

    def missing_rows(self, stored: int) -> str | None:
        """Return how many rows are missing, in words; None if none is, or if the number is unknown."""
        expected = self.expected_rows
        if expected is None and not stored and self.facts.expected_batches != 0:
            return f"{self.facts.name} yielded no row, and how many it has is unknown"
        if expected is None or stored >= expected:
            return None
        return f"{expected - stored:,} of {expected:,} rows of {self.facts.name} are missing"

    def ended_early(self, limit: int | float | None) -> str | None:
        """Return how the loader ended before its data did, in words; None if it yielded all that it has."""
        facts = self.facts
        if facts.expected_batches is not None:
            left = facts.expected_batches - self.batches
            if left > 0:
                return f"{left} of {facts.expected_batches} batches of {facts.name} are missing"
            return None
        if isinstance(limit, int) and self.batches >= limit:
            return (
                f"limit_predict_batches ended {facts.name} after {self.next_row} rows, "
                "and how many it has is unknown"
            )
        return None


def loaders_of(trainer: Trainer) -> list[Any]:
    """Return the loaders that the trainer predicts with, by ``dataloader_idx``."""
    found = trainer.predict_dataloaders
    if found is None and not trainer.limit_predict_batches:  # Lightning did not ask for them
        with contextlib.suppress(Exception):  # the user's own, who may have torn down what it needs
            found = trainer.predict_loop._data_source.dataloader()
    if found is None:
        return []
    return list(
        (found if isinstance(found, CombinedLoader) else CombinedLoader(found, "sequential")).flattened
    )


def describe(loader: Any, position: int, *, given: bool, world_size: int = 1) -> LoaderFacts:
    """Return what is known of a loader.

    Parameters
    ----------
    loader : DataLoader or iterable
        As Lightning will iterate over it.
    position : int
        Its ``dataloader_idx``.
    given : bool
        Whether the caller finds the ``sample_index`` in the batch.
    world_size : int
        Number of ranks that predict.

    Returns
    -------
    LoaderFacts
        What is known.

    Raises
    ------
    InvalidInputError
        If it cannot be known which samples a batch will have.
    """
    name = f"predict data loader {position} ({type(loader).__name__})"
    order: Order = "given" if given else "running"
    remedy = "or pass sample_index="
    if not isinstance(loader, DataLoader):
        _check_one_rank(name, world_size, remedy, given=given)
        return LoaderFacts(
            position=position,
            order=order,
            dataset_rows=None,
            expected_rows=None,
            expected_batches=length_of(loader) if world_size == 1 else None,
            name=name,
        )
    if not given and loader.num_workers > 1 and not getattr(loader, "in_order", True):
        raise InvalidInputError(
            f"{name}: with in_order=False the sample_index of a row is unknown: leave it True, {remedy}"
        )
    dataset_rows = length_of(loader.dataset)
    expected = dataset_rows
    if isinstance(loader.dataset, IterableDataset):
        _check_one_rank(name, world_size, remedy, given=given)
        if not given and loader.num_workers > 1:
            raise InvalidInputError(
                f"{name}: with {loader.num_workers} workers that read an iterable dataset the sample_index "
                f"of a row is unknown: use num_workers=1, a map-style dataset, {remedy}"
            )
    elif loader.batch_sampler is not None:
        order = "given" if given else "recorded"
        sampler = getattr(loader.batch_sampler, "sampler", None)
        remaining: Any = loader.batch_sampler
        if hasattr(remaining, "expected_rows"):
            expected = remaining.expected_rows
        elif world_size == 1 and length_of(sampler) is not None:
            expected = length_of(sampler)
    else:
        _check_one_rank(name, world_size, remedy, given=given)
        expected = length_of(loader.sampler)
        if not given and not isinstance(loader.sampler, SequentialSampler):
            raise InvalidInputError(
                f"{name}: Lightning has no record of its rows, and its sampler is a "
                f"{type(loader.sampler).__name__}, so their sample_index is unknown: set batch_size, {remedy}"
            )
    return LoaderFacts(
        position=position,
        order=order,
        dataset_rows=dataset_rows,
        expected_rows=expected,
        expected_batches=length_of(loader) if world_size == 1 else None,
        name=f"{name} over {_dataset_name(loader.dataset)}",
    )


def _check_one_rank(name: str, world_size: int, remedy: str, *, given: bool) -> None:
    if world_size > 1 and not given:
        raise InvalidInputError(
            f"{name}: Lightning has no record of its rows, so the sample_index of a row on each of "
            f"{world_size} ranks is unknown: use a map-style dataset with a batch_size, {remedy}"
        )


def length_of(thing: Any) -> int | None:
    """Return the length of anything; None if it has none."""
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
    """Lightning's record of a loader's batches, without those that were forgotten."""

    def __init__(self, batches: list[Any]) -> None:
        self._kept = dict(enumerate(batches))
        self._count = len(batches)

    def append(self, batch: Any) -> None:
        self._kept[self._count] = batch
        self._count += 1

    def forget(self, batch: int) -> None:
        self._kept.pop(batch, None)

    def __getitem__(self, batch: int) -> Any:
        return self._kept[batch]

    def __len__(self) -> int:
        return self._count


def recorded_samples(loader: Any, batch_idx: int) -> Any:
    """Return Lightning's record of the rows of a batch.

    What Lightning passes to callbacks may belong to the previous loader, so the record itself is read.

    Parameters
    ----------
    loader : DataLoader
        The loader that yielded it.
    batch_idx : int
        The batch's number.

    Returns
    -------
    list or array of int
        A copy, in the batch's order.

    Raises
    ------
    InvalidInputError
        If there is no record.
    """
    try:
        recorded = loader.batch_sampler.seen_batch_indices[batch_idx]
    except (AttributeError, LookupError):
        raise InvalidInputError(
            f"Lightning has no record of the rows of batch {batch_idx}: pass sample_index="
        ) from None
    return recorded[:] if type(recorded) is list else np.array(recorded)  # samplers may reuse theirs


def trim(loader: Any, batch_idx: int) -> None:
    """Forget Lightning's record of a batch.

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


def as_sample_index(values: Any, what: str) -> SampleIndex:
    """Return a sample index as an array.

    Parameters
    ----------
    values : sequence, array or tensor of int
        As Lightning or the caller gave it.
    what : str
        Where it comes from, for the message.

    Returns
    -------
    int64 array, shape (rows,)
        A copy, in the batch's order.

    Raises
    ------
    InvalidInputError
        If it is not one index per row.
    """
    found = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**40:
        raise InvalidInputError(
            f"{what} must be one index of the dataset per row (0..2**40-1), got {found.dtype} of shape "
            f"{found.shape}, {found.reshape(-1)[:3].tolist()}…: pass sample_index="
        )
    return found.astype(np.int64)
