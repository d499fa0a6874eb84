"""Which rows of a dataset have been stored, and which batches are still to be predicted?

`RowSet` is one bit per row, so that a hundred million rows take 12 MB.

Place: tier 2, used by `lightning`. Pure.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["RowSet"]

Indices = npt.NDArray[np.int64]


class RowSet:
    """A set of dataset rows.

    Examples
    --------
    >>> rows = RowSet()
    >>> rows.add(np.array([0, 1, 9]))
    >>> rows.contains(np.array([1, 2, 9, 700])).tolist(), len(rows)
    ([True, False, True, False], 3)
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def contains(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Tell for each index whether it is in the set."""
        places = indices >> 3
        inside = places < len(self._bits)
        found = np.zeros(len(indices), bool)
        found[inside] = (self._bits[places[inside]] >> (indices[inside] & 7).astype(np.uint8)) & 1
        return found

    def add(self, indices: Indices) -> None:
        """Add indices, of which none is in the set and none stands there twice."""
        if not len(indices):
            return
        need = int(indices.max() >> 3) + 1
        if need > len(self._bits):
            bits = np.zeros(max(need, 2 * len(self._bits)), np.uint8)
            bits[: len(self._bits)] = self._bits
            self._bits = bits
        np.bitwise_or.at(self._bits, indices >> 3, np.left_shift(1, indices & 7).astype(np.uint8))
        self._count += len(indices)
