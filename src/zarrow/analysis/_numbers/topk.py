"""Top k — the best rows for each of many queries, exactly, as rows are read block by block.

For each block

1. one matrix product, by BLAS's threads or on a GPU, scores all its rows for all queries in the dtype of the
   block, with rounding errors;
2. rows that may be among the best `k`, given how wrong the product can be, are candidates: few, once the
   first blocks have been read;
3. candidates are scored again in float64, each pair by itself, so that equal rows have equal scores in
   whatever block they are; of equal scores the lower row is better.

The allowance for rounding is a few times √width units in the last place of the norms, as rounding errors add
up at random (Higham and Mary, *A New Approach to Probabilistic Rounding Error Analysis*, 2019). L2 distances
are taken from a centre among the rows, or they would drown in the rounding of rows far from the origin.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zarrow.analysis._numbers.moments import row_norms
from zarrow.analysis._rows.blocks import Block, Matrix, split_finite
from zarrow.errors import InvalidInputError

__all__ = ["Metric", "TopK"]

Metric = Literal["cosine", "dot", "l2"]
Float = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

CHUNK_ELEMENTS = 1 << 22
PAIR_BYTES = 8 << 20
MOST_FLOAT32, MOST = 1e18, 1e150  # the lengths whose squares fit into float32 and float64


class TopK:
    """The best rows so far.

    Parameters
    ----------
    queries : float64 array, shape (q, width)
        Finite.
    k : int
        How many rows to keep per query.
    metric : {"cosine", "dot", "l2"}
        What is better: a larger cosine or product, a smaller distance.
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
        self.queries, self.k, self.metric = queries, k, metric
        self.excluded, self.device = excluded, device
        self.rows = np.full((len(queries), k), -1)
        self.scores = np.full((len(queries), k), -np.inf)
        self._norms = row_norms(queries)
        self._centre: Float | None = None
        self._ready: dict[Any, tuple[Any, Float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}

    def add(self, block: Block) -> None:
        """Add the rows of a block."""
        values, rows = block.values, block.rows
        finite = split_finite(values)
        if finite is not None:
            values, rows = values[finite], rows[finite]
        if not len(values) or not self.k:
            return
        if self.metric == "l2" and self._centre is None:
            # Rounded as the rows are: rows and queries must be moved by the same.
            self._centre = values.mean(axis=0, dtype=np.float64).astype(values.dtype).astype(np.float64)
        values, prepared, norms = self._prepare(values)
        queries, query_norms = self._prepared_queries(values.dtype)
        unit = (8 + 4 * np.sqrt(values.shape[1])) * float(np.finfo(values.dtype).eps) / 2
        halves, bar, allowance = None, self.scores[:, -1], unit * norms.max() * query_norms
        if self.metric == "l2":  # −d² = 2 (q·x − x²/2) − q²
            halves = self._on_device((norms**2 / 2).astype(values.dtype))
            bar, allowance = (bar + query_norms**2) / 2, unit * (norms.max() + query_norms) ** 2
        right = self._on_device(prepared).T
        step = max(CHUNK_ELEMENTS // len(values), 1)
        for start in range(0, len(self.queries), step):
            here = slice(start, start + step)
            products = queries[here] @ right
            if halves is not None:
                products -= halves
            found, places = self._candidates(products, bar[here], allowance[here], values.dtype)
            found += start
            if self.excluded is not None:
                others = rows[places] != self.excluded[found]
                found, places = found[others], places[others]
            if len(found) > 8 * (self.k + 8) * len(products):
                found, places = self._first_copies(found, places, values)
            if len(found):
                self._keep(found, rows[places], self._exact(found, values, places))

    def merge(self, later: TopK) -> None:
        """Add the best of later rows."""
        queries, places = np.nonzero(later.rows >= 0)
        self._keep(queries, later.rows[queries, places], later.scores[queries, places])

    def offer(self, queries: Numbers, rows: Numbers, values: Matrix, places: Numbers) -> None:
        """Add pairs of a query and a row; the vector of ``rows[i]`` is ``values[places[i]]``."""
        self._keep(queries, rows, self._exact(queries, values, places))

    # The product

    def _prepare(self, values: Matrix) -> tuple[Matrix, Matrix, Float]:
        """Return rows, the same as they are multiplied, and their norms then.

        Rows of float32 whose products would not fit into it become float64.
        """
        moved = values
        with np.errstate(over="ignore", invalid="ignore"):
            if self._centre is not None:
                moved = values - self._centre.astype(values.dtype)
            norms = row_norms(moved)
        largest = max(float(norms.max()), float(self._norms.max(initial=0)))
        least = float(norms.min(where=norms > 0, initial=1))
        if values.dtype == np.float32 and not (largest < MOST_FLOAT32 and least > 1 / MOST_FLOAT32):
            return self._prepare(values.astype(np.float64))
        if self.metric == "cosine":
            return values, values * _inverse(norms).astype(values.dtype)[:, None], np.ones(1)
        if not largest < MOST:
            raise InvalidInputError(
                f"rows and queries must be shorter than {MOST:g}, got a length of {largest:g}"
            )
        return values, moved, norms

    def _prepared_queries(self, dtype: np.dtype[Any]) -> tuple[Any, Float]:
        """Return the queries as they are multiplied with rows of a dtype, and their norms then."""
        if dtype not in self._ready:
            queries, norms = self.queries, self._norms
            if self.metric == "cosine":
                queries, norms = queries * _inverse(norms)[:, None], np.ones(len(queries))
            elif self._centre is not None:
                queries = queries - self._centre
                norms = row_norms(queries)
            self._ready[dtype] = self._on_device(queries.astype(dtype)), norms
        return self._ready[dtype]

    def _on_device(self, values: Any) -> Any:
        if self.device is None:
            return values
        import torch

        # A copy, since torch warns of memory that must not be written.
        return torch.from_numpy(values if values.flags.writeable else values.copy()).to(self.device)

    # Candidates

    def _candidates(
        self, products: Any, bar: Float, allowance: Float, dtype: np.dtype[Any]
    ) -> tuple[Numbers, Numbers]:
        """Return pairs of a query and a row of the block whose score may be above the bar."""
        library: Any = np
        if self.device is not None:
            import torch as library

        def above(products: Any, limits: Float) -> Any:
            below = np.nextafter(limits.astype(dtype), dtype.type(-np.inf))  # rounded down
            return products > self._on_device(below)[:, None]

        mask = above(products, bar - allowance)
        most = self.k + (self.excluded is not None)
        many = library.count_nonzero(mask, axis=1) > 4 * most + 64
        if many.any():  # as in the first block: then only those near the best of this block
            chosen, left = _on_host(many), products[many]
            best = _on_host(left.topk(most)[0] if self.device else np.partition(left, -most)[:, -most:])
            limits = np.maximum(bar[chosen], best.min(axis=1) - allowance[chosen]) - allowance[chosen]
            mask[many] = above(left, limits)
        queries, places = np.divmod(_on_host(library.where(mask.reshape(-1))[0]), mask.shape[1])
        return queries, places

    def _first_copies(self, queries: Numbers, places: Numbers, values: Matrix) -> tuple[Numbers, Numbers]:
        """Keep, per query, the first `k` of rows that are equal: the others cannot be among the best."""
        used, inverse = np.unique(places, return_inverse=True)
        rows = np.ascontiguousarray(values[used]) + values.dtype.type(0)  # −0.0 becomes 0.0
        as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
        vector = np.unique(as_bytes, return_inverse=True)[1].reshape(-1)[inverse.reshape(-1)]
        order = np.lexsort((places, vector, queries))
        first = (np.diff(queries[order], prepend=-1) != 0) | (np.diff(vector[order], prepend=-1) != 0)
        keep = np.sort(order[_ranks(first) < self.k])
        return queries[keep], places[keep]

    def _exact(self, queries: Numbers, values: Matrix, places: Numbers) -> Float:
        """Score pairs in float64, each by itself."""
        scores = np.empty(len(queries))
        step = max(PAIR_BYTES // (8 * values.shape[1]), 1)
        for start in range(0, len(queries), step):
            here = slice(start, start + step)
            left, right = self.queries[queries[here]], values[places[here]].astype(np.float64)
            if self.metric == "l2":
                left = left - right
                scores[here] = -np.einsum("ij,ij->i", left, left)
                continue
            products = np.einsum("ij,ij->i", left, right)
            if self.metric == "cosine":
                norms = self._norms[queries[here]] * row_norms(right)
                cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
                products = np.clip(cosines, -1, 1)
            scores[here] = products
        return scores

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


def _ranks(first: npt.NDArray[np.bool_]) -> Numbers:
    """Return each element's place in its group, of groups one after the other whose first elements are true.

    >>> _ranks(np.array([True, False, False, True, False])).tolist()
    [0, 1, 2, 0, 1]
    """
    places = np.arange(len(first))
    return places - np.maximum.accumulate(np.where(first, places, 0))


def _inverse(norms: Float) -> Float:
    """Return one over each norm, and 0 for 0."""
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _on_host(values: Any) -> npt.NDArray[Any]:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
