"""Top k — the best rows for each of many queries, exactly, as rows are read block by block.

For each block, in float64

1. one matrix product, by BLAS's threads or on a GPU, scores all its rows for all queries, with rounding
   errors;
2. rows that may be among the best `k`, given how wrong the product can be, are candidates: few, once the
   first block has been read;
3. candidates are scored again, each pair by itself, so that equal rows have equal scores in whatever block
   they are; of equal scores the lower row is better.

The allowance for rounding is a few times √width units in the last place of the norms, as rounding errors add
up at random (Higham and Mary, *A New Approach to Probabilistic Rounding Error Analysis*, 2019).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from zarrow.analysis._numbers.moments import unit_rows
from zarrow.analysis._rows.blocks import Block
from zarrow.analysis._rows.folds import State
from zarrow.errors import InvalidInputError

__all__ = ["Metric", "TopK"]

Metric = Literal["cosine", "dot", "l2"]
Float = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

CHUNK_ELEMENTS = 1 << 21
PAIR_BYTES = 8 << 20
MOST = 1e150
"""The greatest length whose square fits into float64."""


class TopK(State):
    """The best rows so far.

    Parameters
    ----------
    queries : float64 array, shape (q, width)
        Finite.
    k : int
        How many rows to keep per query.
    metric : {"cosine", "dot", "l2"}
        What is better: a larger cosine or product, a smaller distance; `scores` has its square, negative.
    excluded : int64 array, shape (q,), optional
        Per query a row that must not be found.
    device : str, optional
        Where torch multiplies; None for numpy.
    """

    def __init__(
        self,
        queries: Float,
        k: int,
        metric: Metric,
        excluded: Numbers | None = None,
        device: str | None = None,
    ) -> None:
        self.k, self.metric, self.excluded, self.device = k, metric, excluded, device
        self.queries = unit_rows(queries) if metric == "cosine" else queries
        self.lengths = np.ones(len(queries)) if metric == "cosine" else _lengths(queries)
        self.rows = np.full((len(queries), k), -1)
        self.scores = np.full((len(queries), k), -np.inf)

    def add(self, block: Block) -> None:
        """Add the rows of a block."""
        block = block.split()[0]
        rows, values = block.rows, block.values
        if not len(rows) or not self.k:
            return
        if self.metric == "cosine":
            values, lengths = unit_rows(values), np.ones(len(values))
        else:
            lengths = _lengths(values)
        longest, nearness = lengths.max(), self.metric == "l2"
        wrong = (self.lengths + longest) ** 2 if nearness else self.lengths * longest
        wrong *= (8 + 4 * np.sqrt(values.shape[1])) * np.finfo(np.float64).eps
        most = self.k + (self.excluded is not None)
        step = max(CHUNK_ELEMENTS // len(values), 1)
        for start in range(0, len(self.queries), step):
            here = slice(start, start + step)
            scores = self._products(self.queries[here], values)
            if nearness:  # −d² = 2 q·x − x² − q²
                scores = 2 * scores - lengths**2 - self.lengths[here, None] ** 2
            bar = self.scores[here, -1]
            if len(rows) > most and np.isinf(bar).any():  # then only the best of this block matter
                bar = np.maximum(bar, np.partition(scores, -most)[:, -most] - wrong[here])
            found, places = np.nonzero(scores >= (bar - wrong[here])[:, None])
            if len(found) > 8 * (self.k + 8) * len(scores):
                found, places = self._first_copies(found, places, values)
            self._score(found + start, rows, values, places)

    def merge(self, later: TopK) -> None:
        """Add the best of later rows."""
        queries, places = np.nonzero(later.rows >= 0)
        self._keep(queries, later.rows[queries, places], later.scores[queries, places])

    def offer(self, queries: Numbers, rows: Numbers, values: Float, places: Numbers) -> None:
        """Add pairs of a query and a row, ``rows[place]`` with the vector ``values[place]``."""
        self._score(queries, rows, unit_rows(values) if self.metric == "cosine" else values, places)

    def _score(self, queries: Numbers, rows: Numbers, values: Float, places: Numbers) -> None:
        if self.excluded is not None:
            others = rows[places] != self.excluded[queries]
            queries, places = queries[others], places[others]
        scores = np.empty(len(queries))
        step = max(PAIR_BYTES // (8 * values.shape[1]), 1)
        for start in range(0, len(queries), step):
            here = slice(start, start + step)
            left, right = self.queries[queries[here]], values[places[here]]
            if self.metric == "l2":
                scores[here] = -np.einsum("ij,ij->i", left - right, left - right)
            else:
                scores[here] = np.einsum("ij,ij->i", left, right)
        self._keep(queries, rows[places], np.clip(scores, -1, 1) if self.metric == "cosine" else scores)

    def _products(self, queries: Float, values: Float) -> Float:
        if self.device is None:
            return queries @ values.T
        import torch

        left, right = (torch.tensor(one, device=self.device) for one in (queries, values))
        return np.asarray((left @ right.T).cpu())

    def _first_copies(self, queries: Numbers, places: Numbers, values: Float) -> tuple[Numbers, Numbers]:
        """Keep, per query, the first `k` of rows that are equal: the others cannot be among the best."""
        known: dict[bytes, int] = {}
        vector = np.array([known.setdefault((row + 0.0).tobytes(), len(known)) for row in values])[places]
        order = np.lexsort((places, vector, queries))
        first = (np.diff(queries[order], prepend=-1) != 0) | (np.diff(vector[order], prepend=-1) != 0)
        keep = order[_ranks(first) < self.k]
        return queries[keep], places[keep]

    def _keep(self, queries: Numbers, rows: Numbers, scores: Float) -> None:
        """Put candidates among the best of their queries."""
        touched = np.unique(queries)
        old, places = np.nonzero(self.rows[touched] >= 0)
        queries = np.concatenate([touched[old], queries])
        rows = np.concatenate([self.rows[touched[old], places], rows])
        scores = np.concatenate([self.scores[touched[old], places], scores])
        order = np.lexsort((rows, -scores, queries))
        ranks = _ranks(np.diff(queries[order], prepend=-1) != 0)
        best, ranks = order[ranks < self.k], ranks[ranks < self.k]
        self.rows[queries[best], ranks] = rows[best]
        self.scores[queries[best], ranks] = scores[best]


def _lengths(values: Float) -> Float:
    with np.errstate(over="ignore"):
        found = np.linalg.norm(values, axis=1)
    if found.max(initial=0) > MOST:
        raise InvalidInputError(
            f"rows and queries must be shorter than {MOST:g}, got a length of {found.max():g}"
        )
    return np.asarray(found)


def _ranks(first: npt.NDArray[np.bool_]) -> Numbers:
    """Return each element's place in its group, of groups one after the other whose first elements are true.

    >>> _ranks(np.array([True, False, False, True, False])).tolist()
    [0, 1, 2, 0, 1]
    """
    places = np.arange(len(first))
    return places - np.maximum.accumulate(np.where(first, places, 0))
