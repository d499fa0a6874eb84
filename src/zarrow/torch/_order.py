"""Order — which rows make which batch of an epoch.

Rows are counted among those that pass the filter. They form blocks of neighbours. An epoch

1. puts the blocks in random order, a group of segments at a time, so that no more of the table than a group
   need be decoded at once;
2. deals them to the ranks in turn;
3. cuts the blocks of a rank into buffers, which the workers take in turn;
4. puts the rows of a buffer in random order, and cuts them into batches.

Without shuffling a buffer is a block, and steps 1 and 4 leave the order alone. Two rows that follow each
other in a batch are from the same block once in as many times as a buffer has blocks: this is how far the
order is from a true permutation, for rows whose neighbours are alike. Pure: the same order for the same
numbers, whatever the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Order"]

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of the batches of a rank.

    Parameters
    ----------
    rows : int
        How many, over all ranks.
    batch_size : int
        Rows of a batch; the last one of a buffer may be shorter.
    shuffle : bool
        Whether the order is random.
    seed : int
        See `shuffle`.
    block_rows, buffer_rows, segment_rows, group_rows : int
        Rows that are read together, are shuffled together, lie in one part of the table, and whose columns
        are decoded together.
    rank, ranks : int
        Whose batches.

    Examples
    --------
    >>> order = Order(
    ...     rows=10,
    ...     batch_size=3,
    ...     shuffle=False,
    ...     seed=0,
    ...     block_rows=4,
    ...     buffer_rows=4,
    ...     segment_rows=4,
    ...     group_rows=8,
    ...     rank=0,
    ...     ranks=1,
    ... )
    >>> [order.rows_of(buffer, 0, 0).tolist() for buffer in order.buffers(0)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    >>> order.batches(0).tolist()
    [2, 2, 1]
    """

    rows: int
    batch_size: int
    shuffle: bool
    seed: int
    block_rows: int
    buffer_rows: int
    segment_rows: int
    group_rows: int
    rank: int
    ranks: int

    def buffers(self, epoch: int) -> list[Numbers]:
        """Return the blocks of each buffer of an epoch, as their numbers."""
        mine = self._blocks(epoch)[self.rank :: self.ranks]
        step = max(self.buffer_rows // self.block_rows, 1) if self.shuffle else 1
        return [mine[start : start + step] for start in range(0, len(mine), step)]

    def batches(self, epoch: int) -> Numbers:
        """Return the number of batches of each buffer of an epoch."""
        last = -(-self.rows // self.block_rows) - 1  # the only block that may be short
        missing = (last + 1) * self.block_rows - self.rows
        counts = [
            len(buffer) * self.block_rows - missing * bool((buffer == last).any())
            for buffer in self.buffers(epoch)
        ]
        return -(-np.array(counts, np.int64) // self.batch_size)

    def rows_of(self, buffer: Numbers, epoch: int, index: int) -> Numbers:
        """Return the rows of a buffer in the order of its batches; `index` is the buffer's own."""
        rows = (buffer[:, None] * self.block_rows + np.arange(self.block_rows)).ravel()
        rows = rows[rows < self.rows]
        if self.shuffle:
            self._random(epoch, self.rank, index).shuffle(rows)
        return rows

    def spans(self, buffer: Numbers) -> Iterator[tuple[int, int]]:
        """Yield where each block of a buffer starts and stops."""
        for start in (buffer * self.block_rows).tolist():
            yield start, min(start + self.block_rows, self.rows)

    def _random(self, epoch: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([abs(self.seed), int(self.seed < 0), epoch, *numbers])

    def _blocks(self, epoch: int) -> Numbers:
        """Return all blocks, as their numbers, in the order of an epoch."""
        blocks = np.arange(-(-self.rows // self.block_rows))
        if not self.shuffle:
            return blocks
        random = self._random(epoch)
        per_segment = max(self.segment_rows // self.block_rows, 1)
        segments = random.permutation(-(-len(blocks) // per_segment))
        step = max(self.group_rows // (per_segment * self.block_rows), 1)
        found = []
        for start in range(0, len(segments), step):
            here = segments[start : start + step, None] * per_segment + np.arange(per_segment)
            found.append(random.permutation(here[here < len(blocks)]))
        return np.concatenate([blocks[:0], *found])
