"""Which rows are best for each of many queries, when rows come past in blocks?

For each block

1. one matrix product, of BLAS's threads or of a GPU, gives the scores of all its rows for all queries, in
   the dtype of the block, so nearly right;
2. the rows whose score may be among the best `k`, by more than the product can be wrong, are candidates:
   after the first blocks these are few;
3. candidates are scored again in float64, each pair by itself, so that equal rows have equal scores wherever
   they stand; of equal scores the lower row is better.

The allowance for rounding is a few times √width units in the last place of the norms, as rounding errors add
up at random (Higham and Mary, *A New Approach to Probabilistic Rounding Error Analysis*, 2019). L2 distances
are taken from a centre among the rows, lest they drown in the rounding of rows far from the origin.

Place: tier 5, in `zarrow.analysis`; below `analysis._questions.nearest`. Pure, but for the device.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zarrow.analysis._numbers.moments import row_norms
from zarrow.analysis._rows.blocks import Block, as_matrix, split_finite
from zarrow.errors import InvalidInputError
from zarrow.store import StoreArray

__all__ = ["Metric", "TopK"]

Metric = Literal["cosine", "dot", "l2"]
Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Any2d = npt.NDArray[np.floating[Any]]

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
        Per query a row that is not to be found.
    device : str, optional
        Where torch is to multiply; None for numpy.
    """

    def __init__(
        self, queries: Float, k: int, metric: Metric, excluded: Rows | None = None, device: str | None = None
    ) -> None:
        self.queries, self.k, self.metric = queries, k, metric
        self.excluded, self.device = excluded, device
        self.rows = np.full((len(queries), k), -1)
        self.scores = np.full((len(queries), k), -np.inf)
        self._norms = row_norms(queries)
        self._centre: Float | None = None
        self._ready: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}

    # Blocks

    def add(self, block: Block) -> None:
        """Take in a block."""
        values, rows = block.values, block.rows
        finite = split_finite(values)
        if finite is not None:
            values, rows = values[finite], rows[finite]
        if not len(values) or not self.k:
            return
        if self.metric == "l2" and self._centre is None:
            # Rounded as the rows are: rows and queries must be moved by the same.
            self._centre = values.mean(axis=0, dtype=np.float64).astype(values.dtype).astype(np.float64)
        prepared, norms, halves = self._prepare(values)
        values = values.astype(prepared.dtype, copy=False)
        largest = float(norms.max())
        step = max(CHUNK_ELEMENTS // len(values), 1)
        right = self._on_device(prepared)
        for start in range(0, len(self.queries), step):
            chosen = slice(start, min(start + step, len(self.queries)))
            self._add(chosen, values, rows, right, halves, largest)

    def merge(self, later: TopK) -> None:
        """Take in the best of later rows."""
        queries, places = np.nonzero(later.rows >= 0)
        self._keep(queries, later.rows[queries, places], later.scores[queries, places])

    def offer(self, queries: Rows, rows: Rows, array: StoreArray) -> None:
        """Take in pairs of a query and a row, whose vectors are read and scored."""
        used, places = np.unique(rows, return_inverse=True)
        values = as_matrix(array.take(used))
        self._keep(queries, rows, self._exact(queries, values, places.reshape(-1)))

    def _prepare(self, values: Any2d) -> tuple[Any2d, Float, Any2d | None]:
        """Return rows ready to be multiplied, their norms then, and what to take off their products.

        Rows of float32 whose products would not fit into it become float64.
        """
        given = values
        with np.errstate(over="ignore", invalid="ignore"):
            if self.metric == "l2":
                assert self._centre is not None
                values = values - self._centre.astype(values.dtype)
            norms = row_norms(values)
        largest = max(float(norms.max()), float(self._norms.max(initial=0)))
        least = float(norms.min(where=norms > 0, initial=1))
        if given.dtype == np.float32 and not (largest < MOST_FLOAT32 and least > 1 / MOST_FLOAT32):
            return self._prepare(given.astype(np.float64))
        if self.metric != "cosine" and not largest < MOST:
            raise InvalidInputError(
                f"rows and queries must be shorter than {MOST:g}, got a length of {largest:g}"
            )
        if self.metric == "cosine":
            inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
            return values * inverse.astype(values.dtype)[:, None], np.ones(1), None
        halves = (norms**2 / 2).astype(values.dtype) if self.metric == "l2" else None
        return values, norms, halves

    def _left(self, dtype: np.dtype[Any]) -> tuple[Any2d, Float, Any]:
        """Return the queries ready to be multiplied with rows of a dtype, and their norms then."""
        if dtype not in self._ready:
            left, norms = self.queries, self._norms
            if self.metric == "cosine":
                left = left * np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)[:, None]
                norms = np.ones(len(left))
            elif self.metric == "l2":
                assert self._centre is not None
                left = left - self._centre
                norms = row_norms(left)
            cast = left.astype(dtype)
            self._ready[dtype] = cast, norms, self._on_device(cast)
        found: tuple[Any2d, Float, Any] = self._ready[dtype]
        return found

    def _on_device(self, values: Any2d) -> Any:
        if self.device is None:
            return values
        import torch

        # A copy, since torch warns of memory that must not be written.
        return torch.from_numpy(values if values.flags.writeable else values.copy()).to(self.device)

    def _add(
        self, chosen: slice, values: Any2d, rows: Rows, right: Any, halves: Any2d | None, largest: float
    ) -> None:
        dtype = values.dtype
        _, norms, left = self._left(dtype)
        norms = norms[chosen]
        unit = float(np.finfo(dtype).eps) / 2
        allowance = (8 + 4 * np.sqrt(values.shape[1])) * unit * largest * norms
        worst = self.scores[chosen, -1].copy()
        if halves is not None:  # −d² = 2 (q·x − x²/2) − q²
            worst = (worst + norms**2) / 2
            allowance = (8 + 4 * np.sqrt(values.shape[1])) * unit * (largest + norms) ** 2
        queries, places = self._candidates(left[chosen], right, halves, worst, allowance)
        queries = queries + chosen.start
        if self.excluded is not None:
            others = rows[places] != self.excluded[queries]
            queries, places = queries[others], places[others]
        if len(queries) > 8 * (self.k + 8) * len(norms):
            queries, places = self._first_copies(queries, places, values)
        if len(queries):
            self._keep(queries, rows[places], self._exact(queries, values, places))

    def _candidates(
        self, left: Any, right: Any, halves: Any2d | None, worst: Float, allowance: Float
    ) -> tuple[Rows, Rows]:
        """Return pairs of a query and a row of the block that may be among the best."""
        count = right.shape[0]
        wanted = self.k + (self.excluded is not None)
        limits = worst - allowance
        many = 4 * wanted + 64
        if self.device is not None:
            return _candidates_of_torch(left, right, halves, limits, allowance, wanted, many)
        scores = left @ right.T
        if halves is not None:
            scores -= halves

        def passing(which: Any, limits: Float) -> npt.NDArray[np.bool_]:
            return np.asarray(scores[which] > _below(limits, scores.dtype)[:, None])

        new = ~np.isfinite(limits)
        heavy = new if new.any() else np.zeros(len(limits), np.bool_)
        mask = passing(slice(None), limits)
        heavy = heavy | (np.count_nonzero(mask, axis=1) > many)
        if heavy.any() and count > wanted:
            kth = np.partition(scores[heavy], count - wanted, axis=1)[:, count - wanted].astype(np.float64)
            mask[heavy] = passing(heavy, np.maximum(limits[heavy], kth - 2 * allowance[heavy]))
        queries, places = np.divmod(np.flatnonzero(mask), count)
        return queries, places

    def _first_copies(self, queries: Rows, places: Rows, values: Any2d) -> tuple[Rows, Rows]:
        """Leave out, per query, the copies of a row that as many copies with lower numbers beat."""
        used, inverse = np.unique(places, return_inverse=True)
        kept = np.ascontiguousarray(values[used]) + values.dtype.type(0)  # −0.0 is 0.0
        bytes_of_rows = kept.view(np.dtype((np.void, kept.dtype.itemsize * kept.shape[1]))).reshape(-1)
        vector = np.unique(bytes_of_rows, return_inverse=True)[1].reshape(-1)[inverse.reshape(-1)]
        order = np.lexsort((places, vector, queries))
        start = np.append(True, (np.diff(queries[order]) != 0) | (np.diff(vector[order]) != 0))
        firsts = np.maximum.accumulate(np.where(start, np.arange(len(order)), 0))
        keep = np.sort(order[np.arange(len(order)) - firsts < self.k])
        return queries[keep], places[keep]

    def _exact(self, queries: Rows, values: Any2d, places: Rows) -> Float:
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
                products = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
                products = np.clip(products, -1, 1)
            scores[here] = products
        return scores

    def _keep(self, queries: Rows, rows: Rows, scores: Float) -> None:
        """Put candidates among the best of their queries."""
        touched = np.unique(queries)
        old_rows, old_scores = self.rows[touched].reshape(-1), self.scores[touched].reshape(-1)
        there = old_rows >= 0
        all_queries = np.concatenate([np.repeat(touched, self.k)[there], queries])
        all_rows = np.concatenate([old_rows[there], rows])
        all_scores = np.concatenate([old_scores[there], scores])
        order = np.lexsort((all_rows, -all_scores, all_queries))
        starts = np.searchsorted(all_queries[order], touched)
        lengths = np.diff(np.append(starts, len(order)))
        rank = np.arange(len(order)) - np.repeat(starts, lengths)
        best = order[rank < self.k]
        self.rows[all_queries[best], rank[rank < self.k]] = all_rows[best]
        self.scores[all_queries[best], rank[rank < self.k]] = all_scores[best]


def _below(limits: Float, dtype: np.dtype[Any]) -> Any2d:
    """Return limits in another dtype, rounded down."""
    return np.asarray(np.nextafter(limits.astype(dtype), dtype.type(-np.inf)))


def _candidates_of_torch(
    left: Any, right: Any, halves: Any2d | None, limits: Float, allowance: Float, wanted: int, many: int
) -> tuple[Rows, Rows]:
    """Do as `TopK._candidates` does, on a device."""
    import torch

    scores = left @ right.T
    if halves is not None:
        scores -= torch.from_numpy(halves).to(scores.device)
    kind = np.float32 if scores.dtype == torch.float32 else np.float64

    def column(values: Float) -> Any:
        return torch.from_numpy(_below(values, np.dtype(kind))).to(scores.device)[:, None]

    mask = scores > column(limits)
    heavy = torch.from_numpy(~np.isfinite(limits)).to(scores.device) | (mask.sum(1) > many)
    if bool(heavy.any()) and scores.shape[1] > wanted:
        which = heavy.cpu().numpy()
        kth = torch.topk(scores[heavy], wanted, dim=1).values[:, -1].double().cpu().numpy()
        mask[heavy] = scores[heavy] > column(np.maximum(limits[which], kth - 2 * allowance[which]))
    queries, places = mask.nonzero(as_tuple=True)
    return queries.cpu().numpy(), places.cpu().numpy()
