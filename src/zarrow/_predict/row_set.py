"""Which rows of a dataset are these, at a bit per row?

So a hundred million rows take 12 MB.

Place: tier 1. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["RowSet", "SampleIndex"]

SampleIndex = npt.NDArray[np.int64]
"""Per row of a batch the index of its sample in the dataset."""
_BLOCK_BYTES = 1 << 16
_WINDOW = 64
"""Indices that span at most so many times their number are added together."""


class RowSet:
    """A set of dataset rows.

    Examples
    --------
    >>> rows = RowSet()
    >>> rows.add(np.array([0, 1, 9]))
    >>> rows.contains(np.array([1, 2, 9, 700])).tolist(), len(rows)
    ([True, False, True, False], 3)
    >>> rows.first_missing(0), rows.first_missing(9)
    (2, 10)
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def contains(self, indices: SampleIndex) -> npt.NDArray[np.bool_]:
        """Tell for each index whether it is in the set."""
        if not self._count:
            return np.zeros(len(indices), bool)
        places = indices >> 3
        inside = places < len(self._bits)
        found = np.zeros(len(indices), bool)
        found[inside] = (self._bits[places[inside]] >> (indices[inside] & 7).astype(np.uint8)) & 1
        return found

    def fresh(self, indices: SampleIndex) -> npt.NDArray[np.bool_]:
        """Tell for each index whether it is neither in the set nor among those before it.

        >>> rows = RowSet()
        >>> rows.add(np.array([4]))
        >>> rows.fresh(np.array([3, 4, 3])).tolist()
        [True, False, False]
        """
        if (indices[1:] > indices[:-1]).all():  # as they mostly are
            if len(indices) and indices[0] >= 8 * len(self._bits):
                return np.ones(len(indices), bool)
            return ~self.contains(indices)
        first = np.zeros(len(indices), bool)
        first[np.unique(indices, return_index=True)[1]] = True
        return first & ~self.contains(indices)

    def covers(self, batch: Sequence[int]) -> bool:
        """Tell whether all rows of a batch are in the set."""
        return bool(self._count) and bool(self.contains(np.asarray(batch, np.int64)).all())

    def first_missing(self, start: int) -> int:
        """Return the first row from `start` on that is not in the set."""
        while start & 7 and start >> 3 < len(self._bits):
            if not self._bits[start >> 3] >> (start & 7) & 1:
                return start
            start += 1
        for first in range(start >> 3, len(self._bits), _BLOCK_BYTES):
            gaps = np.flatnonzero(self._bits[first : first + _BLOCK_BYTES] != 255)
            if gaps.size:
                place = first + int(gaps[0])
                bits = int(self._bits[place])
                return 8 * place + (~bits & (bits + 1)).bit_length() - 1
        return max(start, 8 * len(self._bits))

    def add(self, indices: SampleIndex) -> None:
        """Add indices, of which none is in the set and none stands there twice."""
        if not len(indices):
            return
        first, need = int(indices.min() >> 3), int(indices.max() >> 3) + 1
        if need > len(self._bits):
            bits = np.zeros(max(need, 2 * len(self._bits)), np.uint8)
            bits[: len(self._bits)] = self._bits
            self._bits = bits
        if 8 * (need - first) <= _WINDOW * len(indices):
            window = np.zeros(8 * (need - first), bool)
            window[indices - 8 * first] = True
            self._bits[first:need] |= np.packbits(window, bitorder="little")
        else:
            np.bitwise_or.at(self._bits, indices >> 3, np.left_shift(1, indices & 7).astype(np.uint8))
        self._count += len(indices)

    def update(self, other: RowSet) -> int:
        """Add the rows of another set, and return how many of them were here already.

        >>> rows, others = RowSet(), RowSet()
        >>> rows.add(np.array([1, 2]))
        >>> others.add(np.array([2, 30]))
        >>> rows.update(others), len(rows)
        (1, 3)
        """
        bits = np.zeros(max(len(self._bits), len(other._bits)), np.uint8)
        bits[: len(self._bits)] = self._bits
        here = bits[: len(other._bits)]
        common = int(np.unpackbits(here & other._bits).sum())
        here |= other._bits
        self._bits = bits
        self._count += other._count - common
        return common
