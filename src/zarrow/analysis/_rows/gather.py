"""How are the rows of each group brought together, when there are too many to hold in memory?

By counting: first how many rows each group has, then each row goes to the next free place of its group
(a counting sort, in batches). The numbers lie in memory while they are few, else in a temporary file that has
no name and is gone when nobody holds it; ``TMPDIR`` says where.

Place: tier 5, in `zarrow.analysis`; below `analysis._questions.evaluate`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["part", "pieces_of", "room"]

IN_MEMORY_BYTES = 64 << 20
CHUNK = 1 << 18

Numbers = npt.NDArray[Any]


def pieces_of(count: int, size: int) -> Iterator[slice]:
    """Yield slices of so many rows, the last one of what is left.

    >>> list(pieces_of(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def room(count: int, dtype: np.dtype[Any]) -> Numbers:
    """Return an array to be filled, of as many numbers."""
    if count * dtype.itemsize <= IN_MEMORY_BYTES:
        return np.empty(count, dtype)
    with tempfile.TemporaryFile(prefix="zarrow-gather-") as file:
        file.truncate(count * dtype.itemsize)
        return np.memmap(file, dtype, "r+", shape=(count,))


def part(values: Numbers, codes: npt.NDArray[np.int32], groups: int) -> list[Numbers]:
    """Return the values of each group, in their order.

    >>> [one.tolist() for one in part(np.array([5, 6, 7]), np.array([1, 0, 1], np.int32), 3)]
    [[6], [5, 7], []]
    """
    pieces = list(pieces_of(len(values), CHUNK))
    counts = sum((np.bincount(codes[here], minlength=groups) for here in pieces), np.zeros(groups, np.int64))
    bounds = np.append(0, np.cumsum(counts))
    free = bounds[:-1].copy()
    parted = room(len(values), values.dtype)
    for here in pieces:
        order = np.argsort(codes[here], kind="stable")
        counts = np.bincount(codes[here], minlength=groups)
        first = np.cumsum(counts) - counts  # where each group begins in `order`
        places = np.arange(len(order)) - np.repeat(first, counts) + np.repeat(free, counts)
        parted[places] = values[here][order]
        free += counts
    return [parted[start:stop] for start, stop in itertools.pairwise(bounds.tolist())]
