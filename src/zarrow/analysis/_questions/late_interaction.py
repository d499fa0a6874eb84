"""Late interaction — the rows of a ragged array that are nearest to queries of several vectors each.

The score of a row is the sum, over the vectors of the query, of the largest inner product with any vector of
the row: ColBERT's MaxSim (Khattab and Zaharia, 2020, https://arxiv.org/abs/2004.12832). Every row is scored,
so the result is exact. Inner products are computed in float32, or in float64 for arrays of wider types.

Rules: rows without vectors, and rows with one that is not finite, are never found; of equal scores the lower
row comes first; where fewer than `k` rows can be found, the result has fewer columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow._format.array_spec import rows_of
from zarrow._format.given import as_index
from zarrow._format.layout import ROW
from zarrow._format.ragged import Ragged
from zarrow._read.indexing import IndexedRagged, row_numbers
from zarrow._read.ragged_rows import StoreRagged
from zarrow.analysis._rows.blocks import Progress
from zarrow.errors import InvalidInputError
from zarrow.several import Union, UnionRagged
from zarrow.store import Store

__all__ = ["blocks_of", "read_ragged_queries", "search"]

BLOCK_BYTES = 32 << 20
MAX_BLOCK_ROWS = 65_536

Numbers = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


def read_ragged_queries(
    store: Store | Union, array: IndexedRagged, queries: Any
) -> tuple[Ragged, npt.NDArray[np.int64] | None]:
    """Return the queries' vectors, and their rows if the queries are rows or keys.

    Raises
    ------
    InvalidInputError
        If a query has vectors of another shape, none at all, or one that is not finite.
    """
    rows: npt.NDArray[np.int64] | None = None
    if isinstance(queries, Mapping) or hasattr(queries, "columns") or hasattr(queries, "schema"):
        rows = store.locate(queries, missing="raise")
    elif isinstance(queries, slice | range | int) or _are_numbers(queries):
        rows = row_numbers([queries] if isinstance(queries, int) else queries, store.num_rows)
    if rows is not None:
        found = array.take(rows)
    elif getattr(queries, "ndim", 0) == 1 + len(array.vector_shape) and not getattr(
        queries, "is_nested", False
    ):
        found = Ragged.of([queries])
    else:
        found = Ragged.of(queries)
    if found.vector_shape != array.vector_shape:
        raise InvalidInputError(
            f"queries must have vectors of shape {array.vector_shape} for array {array.name!r}, "
            f"got {found.vector_shape}"
        )
    finite = np.isfinite(_flat(found)).all(axis=1)
    for wrong, what in ((found.counts == 0, "no vectors"), (~_all_of(found, finite), "a NaN or an infinity")):
        if wrong.any():
            place = int(np.argmax(wrong))
            name = f"query {place}" if rows is None else f"row {rows[place]}"
            raise InvalidInputError(f"queries must have vectors, all of them finite: {name} has {what}")
    return found, rows


def _are_numbers(queries: Any) -> bool:
    index = (
        as_index(queries) if not isinstance(queries, list | Ragged) or not _holds_arrays(queries) else None
    )
    return isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype.kind in "iub"


def _holds_arrays(queries: Any) -> bool:
    return isinstance(queries, Ragged) or any(np.ndim(one) for one in queries)


def _flat(rows: Ragged) -> npt.NDArray[Any]:
    """Return the vectors, each of one axis."""
    return rows.values.reshape(len(rows.values), int(np.prod(rows.vector_shape)))


def _all_of(rows: Ragged, good: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell for each row whether all of its vectors are good."""
    bad = np.concatenate(([0], np.cumsum(~good)))
    return np.asarray(bad[rows.offsets[1:]] == bad[rows.offsets[:-1]])


def blocks_of(
    store: Store | Union,
    array: StoreRagged | UnionRagged,
    filter: pc.Expression | None,
    vectors: int,
    progress: Progress | None,
) -> Iterator[tuple[Numbers, Ragged]]:
    """Yield row numbers and rows that pass a filter, about so many vectors at a time."""
    mean = max(array.num_vectors // max(len(array), 1), 1)
    size = max(min(vectors // mean, MAX_BLOCK_ROWS), 1)
    done = 0
    for batch, found in store.join(filter, [ROW], [array.name], batch_size=size):
        rows = np.asarray(np.from_dlpack(batch[ROW]), np.int64)
        yield rows, found[array.name]
        array.release()
        done = int(rows[-1]) + 1
        if progress is not None:
            progress(done, len(array))
    if progress is not None and done < len(array):
        progress(len(array), len(array))


def search(
    store: Store | Union,
    array: StoreRagged | UnionRagged,
    queries: Ragged,
    k: int,
    *,
    filter: pc.Expression | None,
    excluded: Numbers | None,
    progress: Progress | None,
) -> tuple[Numbers, Float]:
    """Return the best rows of each query, and their scores.

    Returns
    -------
    rows : int64 array, shape (q, k)
        −1 where there is none.
    scores : float64 array, shape (q, k)
        −inf where there is no row.
    """
    kind = np.float32 if array.dtype.itemsize <= 4 and array.dtype.kind == "f" else np.float64
    asked = np.ascontiguousarray(_flat(queries).T, kind)
    best_rows = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf)
    size = rows_of(BLOCK_BYTES, asked.shape[1] * np.dtype(kind).itemsize)
    for rows, found in blocks_of(store, array, filter, size, progress):
        usable = found.counts > 0
        values = _flat(found).astype(kind, copy=False)
        with np.errstate(invalid="ignore", over="ignore"):
            largest = _largest(values, asked, found.offsets[:-1][usable], size)
            scores = np.add.reduceat(largest, queries.offsets[:-1], axis=1, dtype=np.float64).T
        finite = np.isfinite(largest).all(axis=1) & _all_of(found, np.isfinite(values).all(axis=1))[usable]
        scores, here = scores[:, finite], rows[usable][finite]
        if excluded is not None:
            scores = np.where(here == excluded[:, None], -np.inf, scores)
        all_scores = np.concatenate([best, scores], axis=1)
        all_rows = np.concatenate([best_rows, np.broadcast_to(here, scores.shape)], axis=1)
        order = np.lexsort((all_rows, -all_scores))[:, :k]
        best, best_rows = np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_rows, order, 1)
    best_rows[np.isneginf(best)] = -1
    return best_rows, best


def _largest(
    values: npt.NDArray[Any], asked: npt.NDArray[Any], starts: Numbers, size: int
) -> npt.NDArray[Any]:
    """Return for each row and each vector of the queries the largest inner product with one of the row's."""
    if not len(starts):
        return np.empty((0, asked.shape[1]), asked.dtype)
    if len(values) <= 2 * size or len(starts) == 1:
        return _largest_at_once(values, asked, starts, size)
    pieces, low = [], 0
    while low < len(starts):  # a row or two of very many vectors
        high = max(int(np.searchsorted(starts, starts[low] + size, "right")) - 1, low + 1)
        stop = int(starts[high]) if high < len(starts) else len(values)
        here = values[starts[low] : stop]
        pieces.append(_largest_at_once(here, asked, starts[low:high] - starts[low], size))
        low = high
    return np.concatenate(pieces)


def _largest_at_once(
    values: npt.NDArray[Any], asked: npt.NDArray[Any], starts: Numbers, size: int
) -> npt.NDArray[Any]:
    if len(starts) > 1:
        return np.maximum.reduceat(values @ asked, starts, axis=0)
    found = np.full((1, asked.shape[1]), -np.inf, asked.dtype)
    for start in range(0, len(values), size):
        np.maximum(found, (values[start : start + size] @ asked).max(axis=0), out=found)
    return found
