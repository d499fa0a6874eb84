"""Map — a place in two dimensions for each row.

* ``pca``: the first two principal components: exact, two passes.
* ``umap``: UMAP (McInnes, Healy and Melville, arXiv 1802.03426) of a sample; the other rows are placed by its
  own ``transform``.
* ``tsne``: Barnes-Hut t-SNE (van der Maaten, JMLR 15, 2014) of a sample; each other row is placed at the mean
  of its ten nearest rows of the sample, weighted by 1 / distance.

The sample is drawn at random, from each group in proportion to its rows but at least `FLOOR_ROWS` of each.
UMAP and t-SNE see the first 50 principal components, as is usual, so memory and time per row do not grow
with the width. Rows that are not finite have no place: NaN.

`map_rows` stores the places with the rows (`zarrow.derived`); `place_rows` only returns them. Interrupting
either leaves the store as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zarrow.analysis._questions.answer import Answer
from zarrow.analysis._questions.pca import Pca, pca
from zarrow.analysis._rows.arguments import require_choice
from zarrow.analysis._rows.blocks import Progress, choose_array, width_of
from zarrow.analysis._rows.groups import Groups, names_of
from zarrow.derived import add_array, check_derived_name
from zarrow.errors import InvalidInputError, MissingExtraError, unknown_name
from zarrow.store import Store, StoreArray

__all__ = ["Map", "Method", "map_rows", "place_rows"]

Method = Literal["pca", "umap", "tsne"]
Places = npt.NDArray[np.float32]
Placed = Iterator[tuple[npt.NDArray[np.int64], Places]]
Stage = Callable[[str], None]

SAMPLE_ROWS = {"umap": 20_000, "tsne": 10_000}
FLOOR_ROWS = 50
MIN_ROWS = 20
REDUCED = 50
NEIGHBOURS = 10
TRANSFORM_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Map(Answer):
    """How a map was made.

    Parameters
    ----------
    name : str or None
        The derived array that holds the map; None if it was not stored.
    array : str
        The array whose rows are on it.
    method : {"pca", "umap", "tsne"}
        The method.
    rows : int
        Rows of the store.
    sample_rows : int
        Rows that the method was fitted to; for ``pca`` all finite rows.
    explained_variance_ratio : tuple of float
        For ``pca``, the share of variance along each axis; empty otherwise.
    by : tuple of str
        The columns whose groups the sample was drawn from.
    seed : int
        Random seed of the sample and the method.
    """

    name: str | None
    array: str
    method: Method
    rows: int
    sample_rows: int
    explained_variance_ratio: tuple[float, ...] = ()
    by: tuple[str, ...] = ()
    seed: int = 0


def map_rows(
    store: Store,
    array: str | None = None,
    method: Method = "pca",
    *,
    name: str | None = None,
    by: str | Sequence[str] | None = None,
    sample_rows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    stage: Stage | None = None,
) -> Map:
    """Make a map of a store's rows and store it as a derived array of two float32 per row.

    Parameters
    ----------
    store : Store
        A complete store; reopen it to see the map.
    array : str, optional
        The array; may be left out if there is only one.
    method : {"pca", "umap", "tsne"}
        The method; ``umap`` needs the extra ``map``.
    name : str, optional
        Name of the derived array; by default that of the array and the method, as in ``embed_umap``. An
        existing derived array with that name is replaced.
    by : str or list of str, optional
        Columns whose groups are all represented in the sample of ``umap`` or ``tsne``, even small ones.
    sample_rows : int, optional
        Size of the sample; by default 20,000 rows for ``umap`` and 10,000 for ``tsne``.
    seed : int
        Random seed of the sample and the method.
    progress : callable, optional
        Called with the number of rows done and the total, in each pass.
    stage : callable, optional
        Called with the name of each stage as it begins.

    Returns
    -------
    Map
        How the map was made; ``store[name]`` of the reopened store has the places.

    Raises
    ------
    UnknownNameError
        If there is no such array or column.
    InvalidInputError
        If there are too few finite rows, or the name belongs to another array or column.
    MissingExtraError
        If UMAP is not installed.
    StoreChangedError, WriteFailedError
        As in `zarrow.add_array`; the store is unchanged.

    Examples
    --------
    >>> import tempfile, zarrow, zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_store(tempfile.mkdtemp() + "/example.zarrow")
    >>> zarrow.analysis.map_rows(store).name
    'query_embed_pca'
    >>> zarrow.open(store.path)["query_embed_pca"].shape
    (5000, 2)
    """
    chosen = choose_array(store, array)
    wanted = f"{chosen.name}_{method}"[:64] if name is None else name
    check_derived_name(
        wanted, {*store.arrays, *store.ragged, *store.schema.names}, store.path
    )  # before minutes are spent
    made, places = place_rows(
        store, chosen.name, method, by=by, sample_rows=sample_rows, seed=seed, progress=progress, stage=stage
    )
    made = replace(made, name=wanted)
    add_array(store, wanted, (xy for _, xy in places), provenance={"map": made.to_dict()})
    return made


def place_rows(
    store: Store,
    array: str | None = None,
    method: Method = "pca",
    *,
    by: str | Sequence[str] | None = None,
    sample_rows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    stage: Stage | None = None,
) -> tuple[Map, Placed]:
    """Make a map of a store's rows and return it without storing it.

    Parameters
    ----------
    store : Store
        The store.
    array, method, by, sample_rows, seed, progress, stage : optional
        As in `map_rows`.

    Returns
    -------
    map : Map
        How the map is made.
    places : iterator of (int64 array, shape (n,); float32 array, shape (n, 2))
        Row numbers, ascending, and places; NaN for rows that are not finite.

    Raises
    ------
    UnknownNameError, InvalidInputError, MissingExtraError
        As in `map_rows`.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> made, places = zarrow.analysis.place_rows(zarrow.testing.example_store())
    >>> made.sample_rows, sum(len(rows) for rows, xy in places)
    (5000, 5000)
    """
    require_choice("method", method, Method)
    chosen = choose_array(store, array)
    names = names_of(by)
    for column in names:
        if column not in store.schema.names:
            raise unknown_name("column", column, store.schema.names)
    say = stage or (lambda _: None)
    place = _umap if method == "umap" else _tsne
    if method == "umap":
        _import_umap()  # before minutes are spent
    if method == "pca":
        say("principal components")
        found = pca(store, chosen.name, min(2, width_of(chosen)), progress=progress)
        made = Map(
            name=None,
            array=chosen.name,
            method=method,
            rows=store.num_rows,
            sample_rows=found.n_samples_,
            explained_variance_ratio=tuple(found.explained_variance_ratio_.tolist()),
        )
        say("placing rows")
        return made, _two(found.project(store, progress=progress))
    limit = SAMPLE_ROWS[method] if sample_rows is None else sample_rows
    if limit < MIN_ROWS:
        raise InvalidInputError(f"a sample must have at least {MIN_ROWS} rows, got {limit}")
    if store.num_rows < MIN_ROWS:
        raise InvalidInputError(
            f"{method} needs at least {MIN_ROWS} rows, the store has {store.num_rows}: use method='pca'"
        )
    say("principal components")
    reduced = pca(store, chosen.name, min(REDUCED, width_of(chosen), store.num_rows), progress=progress)
    rows = _sample(store, names, limit, np.random.default_rng(seed))
    scores = reduced.transform(chosen.take(rows))
    finite = np.isfinite(scores).all(axis=1)
    rows, scores = rows[finite], scores[finite]
    if len(rows) < MIN_ROWS:
        raise InvalidInputError(
            f"{method} needs at least {MIN_ROWS} rows without NaN and infinity, the sample has {len(rows)}: "
            "use method='pca'"
        )
    size = float(np.ptp(scores, axis=0).max())
    if not size > 0:
        raise InvalidInputError(
            f"{method} needs rows that differ, but the {len(rows):,} of the sample are all the same: use "
            "method='pca'"
        )
    size = 1.0 if 1e-9 < size < 1e9 else size  # scale does not matter, but squares may overflow
    say(f"{method} of {len(rows):,} rows")
    there, transform = place(np.ascontiguousarray(scores / size, np.float32), seed)
    made = Map(
        name=None,
        array=chosen.name,
        method=method,
        rows=store.num_rows,
        sample_rows=len(rows),
        by=tuple(names),
        seed=seed,
    )
    say("placing the other rows" if len(rows) < store.num_rows else "storing")
    return made, _spread(
        store, chosen, reduced, rows, there, lambda others: transform(others / np.float32(size)), progress
    )


def _two(projected: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]) -> Placed:
    """Yield places of two values; the second is 0 where rows have only one dimension."""
    for rows, xy in projected:
        there = np.zeros((len(rows), 2), np.float32)
        there[:, : xy.shape[1]] = xy
        yield rows, there


def _sample(store: Store, by: Sequence[str], limit: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw row numbers, ascending: from each group its share, but at least a few."""
    if store.num_rows <= limit:
        return np.arange(store.num_rows)
    if not by:
        return np.sort(rng.choice(store.num_rows, limit, replace=False))
    groups = Groups.of_store(store, by)
    codes = np.concatenate([groups.codes(batch).astype(np.int32) for batch in store.scan(list(by))])
    sizes = np.bincount(codes, minlength=groups.count)
    shares = shares_of(sizes, limit)
    order = rng.permutation(store.num_rows)
    order = order[np.argsort(codes[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    within = np.arange(store.num_rows) - np.repeat(starts, sizes)
    return np.asarray(np.sort(order[within < np.repeat(shares, sizes)]))


def shares_of(sizes: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Return how many rows to draw from each group: in proportion, but at least one from each.

    The sum is about `limit`, and more only if there are more groups than that.

    >>> shares_of(np.array([1_000_000, 30, 500]), 1000).tolist()
    [919, 30, 50]
    """
    floor = max(min(FLOOR_ROWS, limit // max(len(sizes), 1)), 1)
    least = np.minimum(sizes, floor)
    left = max(limit - int(least.sum()), 0)
    rest = sizes - least
    more = np.floor(rest * (left / max(int(rest.sum()), 1))).astype(np.int64)
    return np.asarray(np.minimum(sizes, least + more))


def _spread(
    store: Store,
    array: StoreArray,
    reduced: Pca,
    sample: npt.NDArray[np.int64],
    there: Places,
    transform: Callable[[Places], Places],
    progress: Progress | None,
) -> Placed:
    """Yield the places of all rows: those of the sample are given, the others come from `transform`."""
    done = 0
    for rows, scores in reduced.project(store, array.name):
        places = np.full((len(rows), 2), np.nan, np.float32)
        first, stop = np.searchsorted(sample, [rows[0], rows[-1] + 1])
        mine = sample[first:stop] - rows[0]
        places[mine] = there[first:stop]
        wanted = np.isfinite(scores).all(axis=1)
        wanted[mine] = False
        others = np.flatnonzero(wanted)
        for start in range(0, len(others), TRANSFORM_ROWS):
            here = others[start : start + TRANSFORM_ROWS]
            places[here] = transform(np.ascontiguousarray(scores[here], np.float32))
            if progress is not None:
                progress(done + int(here[-1]) + 1, store.num_rows)
        done += len(rows)
        if progress is not None:
            progress(done, store.num_rows)
        yield rows, places


def _import_umap() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # that Tensorflow is not installed
            import umap
    except ImportError as error:
        raise MissingExtraError(
            f"method='umap' needs {error.name}: pip install 'zarrow[map]'", name=error.name
        ) from error
    return umap


def _umap(scores: Places, seed: int) -> tuple[Places, Callable[[Places], Places]]:
    # One job: several would draw in an order that varies, and the seed would not hold.
    neighbours = min(15, len(scores) - 1)
    model = _import_umap().UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    there = np.asarray(model.fit_transform(scores), np.float32)
    return there, lambda others: np.asarray(model.transform(others), np.float32)


def _tsne(scores: Places, seed: int) -> tuple[Places, Callable[[Places], Places]]:
    from sklearn.manifold import TSNE
    from sklearn.neighbors import KNeighborsRegressor

    perplexity = min(30.0, (len(scores) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    there = np.asarray(model.fit_transform(scores), np.float32)
    near = KNeighborsRegressor(NEIGHBOURS, weights="distance").fit(scores, there)
    return there, lambda others: np.asarray(near.predict(others), np.float32)
