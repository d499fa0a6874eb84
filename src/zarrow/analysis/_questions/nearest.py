"""Which rows are nearest?

`nearest` looks at every row (`analysis._numbers.topk`), so what it finds is exact. ``approximate=True``
asks the index that
`build_neighbours` made (`neighbour_index`) for candidates, and scores those exactly.

What is defined: rows that are not finite are nobody's neighbours; the cosine with a zero vector is 0; of
equal scores the lower row comes first; where fewer rows than `k` can be found, there are fewer columns.

Place: tier 5, in `zarrow.analysis`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow.analysis._numbers.topk import Metric, TopK
from zarrow.analysis._rows.arguments import require_choice
from zarrow.analysis._rows.blocks import Progress, as_matrix, choose_array, width_of
from zarrow.analysis._rows.dataset import Array, Rows, Source, source_of
from zarrow.analysis._rows.folds import fold
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.store import Store, StoreArray

__all__ = ["Neighbours", "nearest", "read_queries"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest rows of some queries.

    Parameters
    ----------
    array : str
        The array.
    metric : {"cosine", "dot", "l2"}
        What near means.
    rows : int64 array, shape (q, k)
        Per query the nearest rows, nearest first; −1 where fewer could be found.
    scores : float64 array, shape (q, k)
        Their cosine or product with the query, or for ``l2`` their Euclidean distance; −inf or, for ``l2``,
        inf where there is no row.
    query_rows : int64 array, shape (q,), or None
        The rows asked about, if rows or keys were given.
    """

    array: str
    metric: Metric
    rows: npt.NDArray[np.int64] = field(repr=False)
    scores: npt.NDArray[np.float64] = field(repr=False)
    query_rows: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    def table(self, store: Source, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one line per neighbour: ``query``, ``rank``, ``row``, ``score``, and columns of the row.

        Parameters
        ----------
        store : Store or xarray.Dataset
            What was asked.
        columns : list of str, optional
            Which columns; all by default.

        Returns
        -------
        pyarrow.Table
            In the order of the queries, nearest first; ranks count from 1.

        Raises
        ------
        UnknownNameError
            If there is no such column.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> zarrow.analysis.nearest(store, [7, 8], k=3).table(store, ["query"]).column_names
        ['query', 'rank', 'row', 'score', 'query_']
        """
        source, _ = source_of(store)
        queries, ranks = np.nonzero(self.rows >= 0)
        rows = self.rows[queries, ranks]
        if columns is None:
            columns = [name for name in source.schema.names if name != "row"]
        table = pa.table(
            {"query": queries, "rank": ranks + 1, "row": rows, "score": self.scores[queries, ranks]}
        )
        taken = source.take(rows, list(columns), [])[0]
        for name in taken.column_names:
            unused = name
            while unused in table.column_names:
                unused += "_"
            table = table.append_column(unused, taken[name])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values.

        Returns
        -------
        dict
            Per query the rows and scores that were found.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> found = zarrow.analysis.nearest(zarrow.testing.example_store(), [7], k=3).to_dict()
        >>> found["neighbours"][0]["rows"][0]
        7
        """
        neighbours = []
        for place, (rows, scores) in enumerate(zip(self.rows, self.scores, strict=True)):
            one: dict[str, Any] = {"rows": rows[rows >= 0].tolist(), "scores": scores[rows >= 0].tolist()}
            if self.query_rows is not None:
                one["query_row"] = int(self.query_rows[place])
            neighbours.append(one)
        return {"array": self.array, "metric": self.metric, "neighbours": neighbours}


def nearest(
    store: Source,
    queries: Any,
    *,
    array: str | None = None,
    k: int = 10,
    metric: Metric = "cosine",
    filter: pc.Expression | None = None,
    exclude_self: bool = False,
    approximate: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Neighbours:
    """Find the rows whose vectors are nearest to some queries: exactly, in one pass over the array.

    Memory is that of the queries and a few blocks. Rows of several axes are taken as one long vector.

    Parameters
    ----------
    store : Store, xarray.Dataset or xarray.DataArray
        The store; or a Dataset whose rows lie along ``row``, of a store or not, chunked for dask or not, and
        whatever was selected of it. It is read chunk by chunk; rows are numbered from its first.
    queries : vectors, row numbers or keys
        Numbers of shape (q, width), (q, *row_shape) or (width,); or integers in a list: rows of the store; or
        a table or mapping of the key columns, as in `Store.locate`.
    array : str, optional
        The array; need not be named if there is only one.
    k : int
        How many rows per query; fewer are returned where there are not as many.
    metric : {"cosine", "dot", "l2"}
        What near means: a large cosine, a large inner product, or a small Euclidean distance.
    filter : pyarrow.compute.Expression, optional
        Which rows may be found; all by default.
    exclude_self : bool
        Whether a query that is a row of the store is kept from finding itself.
    approximate : bool
        Whether to use the index that `build_neighbours` made: much faster, and may miss some rows.
    device : str, optional
        Where torch multiplies, such as ``"cuda"``. By default a GPU if there is one, and numpy's BLAS if
        not, which was measured to be as fast as torch's.
    progress : callable, optional
        Is called with rows done and rows in all.
    client : distributed.Client, optional
        Whose dask workers read the segments. Of a Dataset of dask arrays the one that dask uses by default.

    Returns
    -------
    Neighbours
        Rows and scores; of equal scores the lower row comes first.

    Raises
    ------
    InvalidInputError
        If queries are of another width, not finite, or none of the above; if `k` is not positive; if
        `approximate` is asked for of a Dataset.
    KeyNotFoundError, IndexError
        If a key has no row, or a row is out of range.
    NotFoundError
        If `approximate` is asked for and there is no index of these rows for this metric.
    MissingExtraError
        If a device is named and torch is not installed.

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
    chosen = choose_array(source, array)
    require_choice("metric", metric, Metric)
    if k < 1 or k != int(k):
        raise InvalidInputError(f"k must be a positive number of rows, got {k!r}")
    vectors, rows = read_queries(source, chosen, queries)
    if exclude_self and rows is None:
        raise InvalidInputError("exclude_self needs queries that are rows of the store: row numbers or keys")
    k = min(int(k), source.num_rows)
    excluded = rows if exclude_self else None
    if approximate:
        from zarrow.analysis._questions.neighbour_index import search

        if not (isinstance(source, Store) and isinstance(chosen, StoreArray)):
            raise InvalidInputError("approximate search needs the index that lies in a store: give the store")
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


def read_queries(
    store: Rows, array: Array, queries: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]:
    """Return the vectors that are asked about, and the rows that they are of, if they are of rows.

    Raises
    ------
    InvalidInputError
        If they are of another width or not finite.
    """
    rows: npt.NDArray[np.int64] | None = None
    width = width_of(array)
    if isinstance(queries, Mapping) or hasattr(queries, "__arrow_c_stream__") or hasattr(queries, "columns"):
        rows = store.locate(queries, missing="raise")
    else:
        given = np.asarray(queries)
        if given.dtype.kind in "iu" and given.ndim <= 1:
            rows = given.reshape(-1).astype(np.int64)
            outside = rows[(rows < -store.num_rows) | (rows >= store.num_rows)]
            if len(outside):
                raise IndexError(f"row {outside[0]} is out of bounds for {store.num_rows} rows")
            rows = np.where(rows < 0, rows + store.num_rows, rows)
        elif given.dtype.kind not in "fiu":
            raise InvalidInputError(
                "queries must be vectors of numbers, row numbers, or a table or mapping of keys, got "
                f"{given.dtype} of shape {given.shape}"
            )
    if rows is not None:
        vectors = as_matrix(array.take(rows)).astype(np.float64)
    else:
        if given.shape in ((width,), array.row_shape):
            given = given.reshape(1, width)
        if given.ndim < 2 or int(np.prod(given.shape[1:])) != width:
            raise InvalidInputError(
                f"queries must be of shape (q, {width}) for array {array.name!r}, got {given.shape}"
            )
        vectors = given.reshape(len(given), width).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        what = f"row {rows[bad[0]]}" if rows is not None else f"query {bad[0]}"
        raise InvalidInputError(f"queries must be finite: {what} has a NaN or an infinity")
    return vectors, rows


def _device(asked: str | None) -> str | None:
    """Return where torch is to multiply, None for numpy."""
    if asked is None and not os.path.exists("/dev/nvidiactl"):
        return None  # without loading torch to find out
    try:
        import torch
    except ImportError as error:
        if asked is None:
            return None
        raise MissingExtraError(f"device={asked!r} needs torch: pip install torch") from error
    if asked is None:
        return "cuda" if torch.cuda.is_available() else None
    try:
        return str(torch.empty(0, device=asked).device)
    except (RuntimeError, AssertionError) as error:  # what torch raises if it was built without CUDA
        raise InvalidInputError(
            f"device must be one of torch's that this machine has, such as 'cuda', got {asked!r}: {error}"
        ) from error
