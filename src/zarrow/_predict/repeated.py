"""Repeated rows — dropping those of a dataset that a store holds twice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from zarrow._maintenance.pack import Block, block_rows, chosen_codecs, rewrite
from zarrow._predict.row_set import RowSet
from zarrow._predict.stored_rows import scan
from zarrow.store import Store
from zarrow.store import open as open_store

__all__ = ["drop_repeated"]


def drop_repeated(path: str | os.PathLike[str]) -> int:
    """Complete a store with the first row of each place in the dataset, and return how many rows it lost.

    Parameters
    ----------
    path : path
        A store, complete or not, that nobody is writing; as it was if this does not return.
    """
    with open_store(os.path.realpath(path), partial=True) as store:
        left = sum(map(len, first_of_each(store)))
        blocks = (
            Block(rows, *store.take(rows, check="crc"))
            for some in first_of_each(store)
            for rows in np.array_split(some, -(-len(some) // block_rows(store.arrays.values())) or 1)
        )
        rewrite(store, blocks, left, store.path, chosen_codecs(store, "keep"), None, lambda *_: None)
        return store.num_rows - left


def first_of_each(store: Store) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the numbers of the rows that are the first of their place in the dataset, in order."""
    found: dict[int, RowSet] = {}
    for _, rows, _, fresh in scan(store, found):
        yield rows[fresh]
