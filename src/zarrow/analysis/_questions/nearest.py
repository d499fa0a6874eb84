"""Nearest — the rows whose vectors are nearest to some queries.

`nearest` scores every row (`_numbers.topk`), so its result is exact. With ``approximate=True``, the
index that `build_neighbours` made (`neighbour_index`) yields candidates, which are scored exactly.

Rules: rows that are not finite are never found; the cosine with a zero vector is 0; of equal scores the lower
row comes first; where fewer than `k` rows can be found, the result has fewer columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.given import as_array
from zarrow._read.indexing import row_numbers
from zarrow._read.ragged_rows import StoreRagged
from zarrow.analysis._numbers.topk import Metric, TopK
from zarrow.analysis._questions.answer import HIDDEN, Answer, shown
from zarrow.analysis._rows.arguments import require_choice
from zarrow.analysis._rows.blocks import Progress, as_matrix, choose_array, width_of
from zarrow.analysis._rows.dataset import Array, Rows, Source, source_of
from zarrow.analysis._rows.folds import fold
from zarrow.analysis._rows.groups import free_names
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.several import Union, UnionRagged
from zarrow.store import Store, StoreArray

__all__ = ["Neighbours", "nearest", "read_queries"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Neighbours(Answer):
    """The nearest rows of some queries.

    Parameters
    ----------
    array : str
        The array.
    metric : {"cosine", "dot", "l2", "maxsim"}
        The measure of nearness.
    rows : int64 array, shape (q, k)
        The nearest rows of each query, nearest first; −1 where fewer were found.
    scores : float64 array, shape (q, k)
        Their cosine or inner product with the query, or their Euclidean distance for ``l2``. Where there is
        no row, −inf, or inf for ``l2``.
    query_rows : int64 array, shape (q,), or None
        The rows of the queries, if these were given as rows or keys.
    """

    array: str
    metric: Metric | Literal["maxsim"]
    rows: npt.NDArray[np.int64] = field(repr=False, metadata=shown("neighbours", lambda own: own._found()))
    scores: npt.NDArray[np.float64] = field(repr=False, metadata=HIDDEN)
    query_rows: npt.NDArray[np.int64] | None = field(default=None, repr=False, metadata=HIDDEN)

    def table(self, store: Source, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table of neighbours: ``query``, ``rank``, ``row``, ``score``, and columns of the row.

        Parameters
        ----------
        store : Store or xarray.Dataset
            The store that was searched.
        columns : list of str, optional
            Columns of the store to add; all by default.

        Returns
        -------
        pyarrow.Table
            A line per neighbour, in the order of the queries, nearest first: ``query`` (its place), ``rank``
            (from 1), ``row``, ``score``, each with an underscore if the store has a column of that name.

        Raises
        ------
        UnknownNameError
            If there is no such column.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> zarrow.analysis.nearest(store, [7, 8], k=3).table(store, ["query"]).column_names
        ['query_', 'rank', 'row', 'score', 'query']
        """
        source, _ = source_of(store)
        queries, ranks = np.nonzero(self.rows >= 0)
        rows = self.rows[queries, ranks]
        if columns is None:
            columns = [name for name in source.schema.names if name != "row"]
        found = {"query": queries, "rank": ranks + 1, "row": rows, "score": self.scores[queries, ranks]}
        taken = source.take(rows, list(columns), [])[0]
        names = free_names(list(found), taken.schema.names)  # a store's columns keep theirs
        found = dict(zip(names, found.values(), strict=True))
        return pa.table({**found, **dict(zip(taken.schema.names, taken.columns, strict=True))})

    def _found(self) -> list[dict[str, Any]]:
        """Return the rows and scores found for each query."""
        found = []
        for place, (rows, scores) in enumerate(zip(self.rows, self.scores, strict=True)):
            one: dict[str, Any] = {"rows": rows[rows >= 0].tolist(), "scores": scores[rows >= 0].tolist()}
            if self.query_rows is not None:
                one["query_row"] = int(self.query_rows[place])
            found.append(one)
        return found


def nearest(
    store: Source,
    queries: Any,
    *,
    array: str | None = None,
    k: int = 10,
    metric: Metric | Literal["maxsim"] = "cosine",
    filter: pc.Expression | None = None,
    exclude_self: bool = False,
    approximate: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Neighbours:
    """Find the rows whose vectors are nearest to some queries, exactly, in one pass over the array.

    Memory is that of the queries and a few blocks. Rows of several axes are flattened to one vector.

    Parameters
    ----------
    store : Store, xarray.Dataset or xarray.DataArray
        The store, or a Dataset whose rows lie along ``row``: made from a store or not, chunked for dask or
        not, whole or a selection. A Dataset is read chunk by chunk; its rows are numbered from 0.
    queries : vectors, row numbers or keys
        Vectors of shape (q, width), (q, *row_shape) or (width,); or integers, a mask or a slice: rows of
        the store; or a table or mapping of the key columns, as in `Store.locate`.
        Of a ragged array, several vectors per query: whatever `zarrow.Ragged.of` takes, an array of shape
        (vectors, *vector_shape) for one query, row numbers or keys.
    array : str, optional
        The array; may be left out if there is only one.
    k : int
        Number of rows per query; fewer are returned if there are fewer.
    metric : {"cosine", "dot", "l2", "maxsim"}
        The measure of nearness: a large cosine, a large inner product, or a small Euclidean distance. Of a
        ragged array ``"maxsim"``: for each vector of the query its largest inner product with a vector of
        the row, summed up (`ColBERT <https://arxiv.org/abs/2004.12832>`_).
    filter : pyarrow.compute.Expression, optional
        Rows that may be found; all by default.
    exclude_self : bool
        Exclude each query row from its own results.
    approximate : bool
        Use the index made by `build_neighbours`: much faster, but it may miss some rows.
    device : str, optional
        The torch device that multiplies, such as ``"cuda"``. By default a GPU if there is one, or else
        numpy's BLAS, which was measured to be as fast as torch's.
    progress : callable, optional
        Called with the number of rows done and the total.
    client : distributed.Client, optional
        The dask client whose workers read the segments. For a Dataset of dask arrays, dask's own default
        client by default.

    Returns
    -------
    Neighbours
        Rows and scores; of equal scores the lower row comes first.

    Raises
    ------
    InvalidInputError
        If queries have another width, are not finite, or are none of the above; if `k` is not positive; if
        `approximate` is given with a Dataset.
    KeyNotFoundError, IndexError
        If a key has no row, or a row is out of range.
    NotFoundError
        If `approximate` is given and there is no index of these rows for this metric.
    MissingExtraError
        If a device is given and torch is not installed.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> found = zarrow.analysis.nearest(store, store["query_embed"][7:8], k=3)
    >>> found.rows[0, 0], found.scores.shape
    (np.int64(7), (1, 3))
    >>> zarrow.analysis.nearest(store, {"subject_id": [0], "query": ["code//7"]}, k=1).rows
    array([[7]])
    """
    source, client = source_of(store, client)
    if k < 1 or k != int(k):
        raise InvalidInputError(f"k must be a positive number of rows, got {k!r}")
    if metric == "maxsim":
        if approximate or client is not None or device is not None:
            raise InvalidInputError(
                "maxsim reads all rows, here: leave out approximate=, client= and device="
            )
        return _by_maxsim(source, queries, array, int(k), filter, progress, exclude_self=exclude_self)
    chosen = choose_array(source, array)
    require_choice("metric", metric, Metric)
    vectors, rows = read_queries(source, chosen, queries)
    if exclude_self and rows is None:
        raise InvalidInputError("exclude_self needs queries that are rows of the store: row numbers or keys")
    k = min(int(k), source.num_rows)
    excluded = rows if exclude_self else None
    if approximate:
        from zarrow.analysis._questions.neighbour_index import search

        if not (isinstance(source, Store) and isinstance(chosen, StoreArray)):
            raise InvalidInputError(
                "approximate search needs the index in a store, got a Dataset: open the store and search it"
            )
        found = search(source, chosen, vectors, k, metric, filter, excluded)
    else:
        make = partial(TopK, vectors, k, metric, excluded, _device(device))
        found = fold(make, source, chosen, filter=filter, progress=progress, client=client)
    used = int((found.rows >= 0).sum(axis=1).max(initial=0))
    scores = found.scores[:, :used]
    if metric == "l2":
        scores = np.sqrt(np.maximum(-scores, 0))
    return Neighbours(
        array=chosen.name, metric=metric, rows=found.rows[:, :used], scores=scores, query_rows=rows
    )


def _by_maxsim(
    store: Rows,
    queries: Any,
    array: str | None,
    k: int,
    filter: pc.Expression | None,
    progress: Progress | None,
    *,
    exclude_self: bool,
) -> Neighbours:
    from zarrow.analysis._questions.late_interaction import read_ragged_queries, search

    if not isinstance(store, Store | Union):
        raise InvalidInputError("maxsim needs a ragged array in a store, got a Dataset: open the store")
    names = list(store.ragged)
    if array is None and len(names) != 1:
        raise InvalidInputError(
            f"name one ragged array, with array=; there are: {', '.join(names) or 'none'}"
        )
    chosen = store[names[0] if array is None else array]
    if not isinstance(chosen, StoreRagged | UnionRagged):
        raise InvalidInputError(
            f"maxsim needs any number of vectors per row, array {chosen.name!r} has one: use another metric"
        )
    vectors, rows = read_ragged_queries(store, chosen, queries)
    if exclude_self and rows is None:
        raise InvalidInputError("exclude_self needs queries that are rows of the store: row numbers or keys")
    k = min(k, store.num_rows)
    excluded = rows if exclude_self else None
    found, scores = search(store, chosen, vectors, k, filter=filter, excluded=excluded, progress=progress)
    used = int((found >= 0).sum(axis=1).max(initial=0))
    return Neighbours(
        array=chosen.name, metric="maxsim", rows=found[:, :used], scores=scores[:, :used], query_rows=rows
    )


def read_queries(
    store: Rows, array: Array, queries: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]:
    """Return the vectors of the queries, and their rows if the queries are rows or keys.

    Raises
    ------
    InvalidInputError
        If they have another width or are not finite.
    """
    rows: npt.NDArray[np.int64] | None = None
    width = width_of(array)
    if isinstance(queries, Mapping) or hasattr(queries, "columns") or hasattr(queries, "schema"):
        rows = store.locate(queries, missing="raise")
    elif isinstance(queries, slice | range):
        rows = row_numbers(queries, store.num_rows)
    else:
        given = as_array("queries", queries)
        if given.dtype.kind in "iub" and given.ndim <= 1:
            rows = row_numbers(given.reshape(-1), store.num_rows)
        elif given.dtype.kind not in "fiu":
            raise InvalidInputError(
                "queries must be vectors of numbers, row numbers, or a table or mapping of keys, got "
                f"{given.dtype} of shape {given.shape}"
            )
    if rows is not None:
        vectors = as_matrix(array.take(rows))
    else:
        if given.shape in ((width,), array.row_shape):
            given = given.reshape(1, width)
        if given.ndim < 2 or int(np.prod(given.shape[1:])) != width:
            raise InvalidInputError(
                f"queries must be of shape (q, {width}) for array {array.name!r}, got {given.shape}"
            )
        vectors = as_matrix(given)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        what = f"row {rows[bad[0]]}" if rows is not None else f"query {bad[0]}"
        raise InvalidInputError(f"queries must be finite: {what} has a NaN or an infinity")
    return vectors, rows


def _device(asked: str | None) -> str | None:
    """Return the torch device that multiplies, or None for numpy."""
    if asked is None and not os.path.exists("/dev/nvidiactl"):
        return None  # spares the import of torch
    try:
        import torch
    except ImportError as error:
        if asked is None:
            return None
        raise MissingExtraError(f"device={asked!r} needs torch: pip install torch") from error
    if asked is None:
        return "cuda" if torch.cuda.is_available() else None
    try:
        return str(torch.empty(0, device=asked, dtype=torch.float64).device)
    except (RuntimeError, TypeError, AssertionError) as error:  # the last if torch was built without CUDA
        raise InvalidInputError(
            f"device must be one of torch's that this machine has, such as 'cuda', got {asked!r}: {error}"
        ) from error
