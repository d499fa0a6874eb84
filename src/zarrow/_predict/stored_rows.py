"""Which rows of the dataset does a store hold, and does it hold one twice?

A row's place in the dataset is its ``sample_index``, per ``dataloader_idx`` where the store has that column:
`PredictionWriter` writes both, and a row of a dataset once. Samplers that give the same rows to several
ranks, and independent writers that predict the same rows, can make it come twice all the same.

Place: above `store`, below the edges and `_maintenance.pack`. Reads only, at a bit per row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._predict.row_set import RowSet
from zarrow.errors import InvalidInputError, NotFoundError
from zarrow.store import Store
from zarrow.store import open as open_store

__all__ = ["DATALOADER_IDX", "scan", "stored_rows"]

DATALOADER_IDX = "dataloader_idx"


def stored_rows(
    path: str | os.PathLike[str], *, repeated_ok: bool = False
) -> tuple[dict[int, RowSet], Store | None]:
    """Return the dataset rows that a store holds, those of open segments included.

    Parameters
    ----------
    path : path
        The store, or where one may be.
    repeated_ok : bool
        Whether a row may be there twice.

    Returns
    -------
    dict of int to RowSet, Store or None
        Per ``dataloader_idx``; without that column all rows are of loader 0. None if there is no store.

    Raises
    ------
    InvalidInputError
        If rows have no sample index, or one stands there twice.
    """
    try:
        store = open_store(path, partial=True)
    except NotFoundError:
        return {}, None
    found: dict[int, RowSet] = {}
    for loader, _, indices, fresh in scan(store, found):
        if not fresh.all() and not repeated_ok:
            raise InvalidInputError(
                f"{path}: dataset index {indices[~fresh][0]} of data loader {loader} is stored more than "
                "once, as it is if samplers yield the same rows on several ranks: 'zarrow finalize "
                "--drop-duplicates' completes the store with one of each; or predict again, into another "
                "store, with samplers that divide the rows, with none of your own, or with duplicates='drop'"
            )
    return found, store


def scan(
    store: Store, found: dict[int, RowSet]
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Yield loader, row numbers, places and which of them are new, and add these to `found`."""
    several = DATALOADER_IDX in store.schema.names
    for batch in store.scan([ROW, SAMPLE_INDEX, *([DATALOADER_IDX] if several else [])]):
        if batch[SAMPLE_INDEX].null_count:
            raise InvalidInputError(
                f"{store.path}: it has rows without a {SAMPLE_INDEX}, so that nobody can tell which rows "
                "they are: only what PredictionWriter wrote can be resumed by it"
            )
        numbers, places = batch[ROW].to_numpy(), batch[SAMPLE_INDEX].to_numpy(zero_copy_only=False)
        of = batch[DATALOADER_IDX].to_numpy() if several else np.zeros(len(places), np.int64)
        for loader in np.unique(of).tolist():
            here = of == loader
            known = found.setdefault(loader, RowSet())
            fresh = known.fresh(places[here])
            known.add(places[here][fresh])
            yield loader, numbers[here], places[here], fresh
