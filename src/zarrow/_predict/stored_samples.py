"""Stored samples — which samples of a dataset a store holds, and dropping those that it holds twice.

A row's index in the dataset is its ``sample_index``, per ``dataloader_idx`` where the store has that column:
`PredictionWriter` writes both, and every sample once. A sample can come twice nevertheless, if samplers give
it to several ranks, or if independent writers predict it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._maintenance.array_forms import ArrayForms
from zarrow._maintenance.pack import Block, block_rows, chosen_codecs, rewrite
from zarrow._predict.sample_set import SampleIndex, SampleSet
from zarrow._write.recovery import require_expected
from zarrow.errors import InvalidInputError, NotFoundError
from zarrow.store import Store
from zarrow.store import open as open_store

__all__ = ["DATALOADER_IDX", "drop_repeated", "stored_samples"]

DATALOADER_IDX = "dataloader_idx"


def stored_samples(
    path: str | os.PathLike[str], *, repeated_ok: bool = False
) -> tuple[dict[int, SampleSet], Store | None]:
    """Return the samples that a store holds, those of open segments included.

    Parameters
    ----------
    path : path
        The store, which need not exist.
    repeated_ok : bool
        Whether a sample may be stored twice.

    Returns
    -------
    dict of int to SampleSet, Store or None
        Per ``dataloader_idx``; without that column all rows belong to loader 0. None if there is no store.

    Raises
    ------
    InvalidInputError
        If a row has no ``sample_index``, or a sample is stored twice.
    """
    try:
        store = open_store(path, partial=True)
    except NotFoundError:
        return {}, None
    found: dict[int, SampleSet] = {}
    for loader, _, sample_index, fresh in _scan(store, found):
        if not fresh.all() and not repeated_ok:
            raise InvalidInputError(
                f"{path}: sample_index {sample_index[~fresh][0]} of data loader {loader} is stored more than "
                "once, as happens when samplers yield the same rows on several ranks: 'zarrow finalize "
                "--drop-duplicates' completes the store with one of each; or predict again, into another "
                "store, with samplers that divide the rows, with none of your own, or with duplicates='drop'"
            )
    return found, store


def drop_repeated(path: str | os.PathLike[str], *, partial: bool = False) -> int:
    """Complete a store with the first row of every sample, and return how many rows were dropped.

    Parameters
    ----------
    path : path
        A store, complete or not, with no active writer. Unchanged if this raises.
    partial : bool
        Whether to complete it even if it then has fewer rows than expected.
    """
    with open_store(os.path.realpath(path), partial=True) as store:
        left = sum(map(len, _first_rows(store)))
        if not partial:
            require_expected(store.path, left, store.expected_rows)
        forms = ArrayForms.of(store)
        arrays = forms.sources
        blocks = (
            Block(
                rows,
                store.take(rows, arrays=[])[0],
                {name: array.take(rows, check="crc") for name, array in arrays.items()},
            )
            for some in _first_rows(store)
            for rows in np.array_split(some, -(-len(some) // block_rows(arrays.values())) or 1)
        )
        codecs = chosen_codecs(store, forms, "keep")
        rewrite(store, blocks, left, store.path, forms, codecs, None, lambda *_: None)
        return store.num_rows - left


def _first_rows(store: Store) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the numbers of the rows that are the first of their sample, in order."""
    for _, rows, _, fresh in _scan(store, {}):
        yield rows[fresh]


def _scan(
    store: Store, found: dict[int, SampleSet]
) -> Iterator[tuple[int, npt.NDArray[np.int64], SampleIndex, npt.NDArray[np.bool_]]]:
    """Yield loader, row numbers, sample_index and which rows are new, and add these to `found`."""
    several = DATALOADER_IDX in store.schema.names
    for batch in store.scan([ROW, SAMPLE_INDEX, *([DATALOADER_IDX] if several else [])]):
        if batch[SAMPLE_INDEX].null_count:
            raise InvalidInputError(
                f"{store.path}: some rows have no {SAMPLE_INDEX}, so it is unknown which samples are stored: "
                "only stores written by PredictionWriter, or with sample_index= and then by force=True, can "
                "be resumed"
            )
        rows, sample_index = batch[ROW].to_numpy(), batch[SAMPLE_INDEX].to_numpy(zero_copy_only=False)
        of = batch[DATALOADER_IDX].to_numpy() if several else np.zeros(len(rows), np.int64)
        for loader in np.unique(of).tolist():
            here = of == loader
            known = found.setdefault(loader, SampleSet())
            fresh = known.fresh(sample_index[here])
            known.add(sample_index[here][fresh])
            yield loader, rows[here], sample_index[here], fresh
