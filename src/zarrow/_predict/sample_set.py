"""Sample set — a set of indices of a dataset, at one bit each: a hundred million samples take 12 MB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SampleIndex", "SampleSet"]

SampleIndex = npt.NDArray[np.int64]
"""The index in the dataset of every row of a batch."""

_BLOCK_BYTES = 1 << 16
_WINDOW = 64
"""Indices that span at most this many times their number are added through one window."""


class SampleSet:
    """A set of indices of a dataset.

    Examples
    --------
    >>> samples = SampleSet()
    >>> samples.add(np.array([0, 1, 9]))
    >>> samples.contains(np.array([1, 2, 9, 700])).tolist(), len(samples)
    ([True, False, True, False], 3)
    >>> samples.first_missing(0), samples.first_missing(9)
    (2, 10)
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def contains(self, sample_index: SampleIndex) -> npt.NDArray[np.bool_]:
        """Tell for each index whether it is in the set."""
        if not self._count:
            return np.zeros(len(sample_index), bool)
        byte = sample_index >> 3
        inside = byte < len(self._bits)
        found = np.zeros(len(sample_index), bool)
        found[inside] = (self._bits[byte[inside]] >> (sample_index[inside] & 7).astype(np.uint8)) & 1
        return found

    def fresh(self, sample_index: SampleIndex) -> npt.NDArray[np.bool_]:
        """Tell for each index whether it is neither in the set nor among the indices before it.

        >>> samples = SampleSet()
        >>> samples.add(np.array([4]))
        >>> samples.fresh(np.array([3, 4, 3])).tolist()
        [True, False, False]
        """
        if (sample_index[1:] > sample_index[:-1]).all():  # the usual case
            if len(sample_index) and sample_index[0] >= 8 * len(self._bits):
                return np.ones(len(sample_index), bool)
            return ~self.contains(sample_index)
        first = np.zeros(len(sample_index), bool)
        first[np.unique(sample_index, return_index=True)[1]] = True
        return first & ~self.contains(sample_index)

    def covers(self, batch: Sequence[int]) -> bool:
        """Tell whether every index of a batch is in the set."""
        return bool(self._count) and bool(self.contains(np.asarray(batch, np.int64)).all())

    def first_missing(self, start: int) -> int:
        """Return the first index from `start` on that is not in the set."""
        while start & 7 and start >> 3 < len(self._bits):
            if not self._bits[start >> 3] >> (start & 7) & 1:
                return start
            start += 1
        for first in range(start >> 3, len(self._bits), _BLOCK_BYTES):
            gaps = np.flatnonzero(self._bits[first : first + _BLOCK_BYTES] != 255)
            if gaps.size:
                byte = first + int(gaps[0])
                bits = int(self._bits[byte])
                return 8 * byte + (~bits & (bits + 1)).bit_length() - 1
        return max(start, 8 * len(self._bits))

    def add(self, sample_index: SampleIndex) -> None:
        """Add indices, all different and none of them in the set."""
        if not len(sample_index):
            return
        first, need = int(sample_index.min() >> 3), int(sample_index.max() >> 3) + 1
        if need > len(self._bits):
            bits = np.zeros(max(need, 2 * len(self._bits)), np.uint8)
            bits[: len(self._bits)] = self._bits
            self._bits = bits
        if 8 * (need - first) <= _WINDOW * len(sample_index):
            window = np.zeros(8 * (need - first), bool)
            window[sample_index - 8 * first] = True
            self._bits[first:need] |= np.packbits(window, bitorder="little")
        else:
            masks = np.left_shift(1, sample_index & 7).astype(np.uint8)
            np.bitwise_or.at(self._bits, sample_index >> 3, masks)
        self._count += len(sample_index)

    def update(self, other: SampleSet) -> int:
        """Add another set, and return how many of its indices were in this one already.

        >>> samples, others = SampleSet(), SampleSet()
        >>> samples.add(np.array([1, 2]))
        >>> others.add(np.array([2, 30]))
        >>> samples.update(others), len(samples)
        (1, 3)
        """
        bits = np.zeros(max(len(self._bits), len(other._bits)), np.uint8)
        bits[: len(self._bits)] = self._bits
        common_bytes = bits[: len(other._bits)]
        common = int(np.unpackbits(common_bytes & other._bits).sum())
        common_bytes |= other._bits
        self._bits = bits
        self._count += other._count - common
        return common
