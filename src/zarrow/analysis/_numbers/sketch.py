"""Sketch — the distribution of numbers that are read once, in a fixed amount of memory.

`Sketch` counts positive numbers in bins whose edges grow by one per cent, so that any quantile is known to
half a per cent of its value. Sketches of parts add up to the sketch of the whole, and one takes about 140 kB.
It is DDSketch (Masson, Rim and Lee, *DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees*, VLDB 2019), with bins from 10⁻³⁸ to 10³⁸, the range of float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Sketch", "bin_edges"]

ACCURACY = 0.005
GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
LOWEST = int(np.floor(np.log(1e-38) / np.log(GAMMA)))
BINS = 2 * -LOWEST + 1


class Sketch:
    """The distribution of non-negative numbers.

    Examples
    --------
    >>> sketch = Sketch()
    >>> sketch.add(np.arange(1001.0))
    >>> abs(sketch.quantile(0.5) - 500) < 500 * 0.006
    True
    """

    def __init__(self) -> None:
        self.zeros = 0
        self.lowest, self.highest = np.inf, 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, numbers: npt.NDArray[np.floating]) -> None:
        """Add finite numbers."""
        if not len(numbers):
            return
        self.lowest = min(self.lowest, float(numbers.min()))
        self.highest = max(self.highest, float(numbers.max()))
        positive = numbers[numbers > 0].astype(np.float64)
        self.zeros += len(numbers) - len(positive)
        places = np.ceil(np.log(positive) / np.log(GAMMA)).astype(np.int64) - LOWEST
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def merge(self, later: Sketch) -> None:
        """Add the counts of another sketch."""
        self.zeros += later.zeros
        self.lowest = min(self.lowest, later.lowest)
        self.highest = max(self.highest, later.highest)
        self.counts += later.counts

    @property
    def count(self) -> int:
        """How many numbers were added."""
        return self.zeros + int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Return a quantile, to half a per cent of its value; 0 if there are no numbers.

        The smallest and the largest number are exact.
        """
        if not self.count or share <= 0:
            return self.lowest if self.count else 0.0
        rank = share * (self.count - 1)
        if rank < self.zeros:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.counts), rank - self.zeros, side="right"))
        found = float(2 * GAMMA ** (place + LOWEST) / (GAMMA + 1))
        return self.highest if share >= 1 else min(max(found, self.lowest), self.highest)

    def histogram(self, bins: int = 50) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return the edges and counts of up to `bins` bins of equal width, from the smallest to the largest.

        No bin is narrower than the accuracy of the sketch.
        """
        low, high = (self.lowest, self.highest) if self.count else (0.0, 0.0)
        if high - low <= 2 * ACCURACY * high:
            edges = bin_edges(low, high, bins)
            return edges, np.histogram([high], edges)[0] * self.count
        bins = int(np.clip((high - low) / (2 * ACCURACY * high), 1, bins))
        edges = bin_edges(low, high, bins)
        ends = GAMMA ** (np.arange(BINS) + float(LOWEST))
        below = np.interp(edges, np.clip(ends, low, high), self.zeros + np.cumsum(self.counts))
        below[0], below[-1] = 0, self.count
        return edges, np.diff(np.round(below)).astype(np.int64)


def bin_edges(low: float, high: float, bins: int) -> npt.NDArray[np.float64]:
    """Return the edges of bins of equal width, with some room around numbers that hardly differ.

    Those lie in the middle of a bin: on an edge, rounding would put them into two.

    >>> bin_edges(1.0, 2.0, 2).tolist(), bin_edges(0.0, 0.0, 2).tolist()
    ([1.0, 1.5, 2.0], [0.0, 0.5, 1.0])
    >>> bin_edges(1.0, 1.0, 2).round(2).tolist(), bin_edges(1.0, 1.0, 1).round(2).tolist()
    ([0.85, 0.95, 1.05], [0.9, 1.1])
    """
    if high - low <= 2 * ACCURACY * high:
        shift = 0.0 if bins % 2 else 0.1 * high / bins
        low, high = 0.9 * high - shift, (1.1 * high - shift) or 1.0
    return np.linspace(low, high, bins + 1)
