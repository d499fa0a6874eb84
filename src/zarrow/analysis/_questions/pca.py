"""Principal components — the few directions that hold most of the variance.

There are two solvers, both streamed:

* ``covariance``: one pass for the covariance matrix (`_numbers.moments`), whose eigenvectors are the
  components. Exact; takes 8 × width² bytes, about 5 MB for a width of 768.
* ``randomized``: subspace iteration with a random start, the streamed form of Halko, Martinsson and Tropp,
  *Finding Structure with Randomness* (SIAM Review 53, 2011), algorithm 4.4, with a Rayleigh-Ritz step at the
  end. Eight passes, and memory for a few matrices of width × components.

Signs are those of scikit-learn: the largest entry of each component is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow._format.given import as_array
from zarrow.analysis._numbers.moments import Moments
from zarrow.analysis._questions.answer import HIDDEN, Answer, shown
from zarrow.analysis._rows.arguments import read_vectors, require_choice
from zarrow.analysis._rows.blocks import Block, Progress, blocks, choose_array, width_of
from zarrow.analysis._rows.dataset import Source, source_of
from zarrow.analysis._rows.folds import State, fold
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError

__all__ = ["Pca", "pca"]

Float = npt.NDArray[np.float64]
Solver = Literal["auto", "covariance", "randomized"]

DEFAULT_COMPONENTS = 50
MAX_COVARIANCE_WIDTH = 4096
ITERATIONS = 6
OVERSAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Pca(Answer):
    """Principal components of an array; the names are scikit-learn's.

    Parameters
    ----------
    array : str
        The array.
    components_ : float64 array, shape (n_components, width)
        Directions, orthonormal, most variance first.
    mean_ : float64 array, shape (width,)
        The mean of the rows.
    explained_variance_ : float64 array, shape (n_components,)
        The variance along each component.
    explained_variance_ratio_ : float64 array, shape (n_components,)
        Its share of the total variance; 0 if rows do not vary at all.
    n_samples_ : int
        Rows that were used: those that are finite.
    nonfinite_rows : int
        Rows left out for a NaN or an infinity.
    """

    array: str
    components_: Float = field(repr=False, metadata=HIDDEN)
    mean_: Float = field(repr=False, metadata=shown("width", lambda own: len(own.mean_)))
    explained_variance_: Float = field(
        repr=False, metadata=shown("explained_variance", lambda own: own.explained_variance_)
    )
    explained_variance_ratio_: Float = field(
        repr=False, metadata=shown("explained_variance_ratio", lambda own: own.explained_variance_ratio_)
    )
    n_samples_: int = field(metadata=shown("rows", lambda own: own.n_samples_))
    nonfinite_rows: int

    def transform(self, vectors: npt.ArrayLike) -> npt.NDArray[Any]:
        """Project vectors onto the components.

        Parameters
        ----------
        vectors : array, shape (n, width) or (n, *row_shape)
            Vectors; the projection of one that is not finite is not finite either.

        Returns
        -------
        float32 or float64 array, shape (n, n_components)
            Their coordinates; float32 where the dtype of the vectors fits into it.

        Raises
        ------
        InvalidInputError
            If they have another width.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> zarrow.analysis.pca(store, n_components=2).transform(store["query_embed"][:5]).shape
        (5, 2)
        """
        values = read_vectors(vectors, self.components_.shape[1], self.array)
        with np.errstate(invalid="ignore"):
            found = (values - self.mean_) @ self.components_.T
        return np.asarray(found, np.result_type(as_array("vectors", vectors).dtype, np.float32))

    def project(
        self,
        store: Source,
        array: str | None = None,
        filter: pc.Expression | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Project the rows of a store: row numbers and coordinates, a block at a time.

        Parameters
        ----------
        store : Store, xarray.Dataset or xarray.DataArray
            The store or Dataset: the one analysed, or another.
        array : str, optional
            The array; the one with the same name by default.
        filter : pyarrow.compute.Expression, optional
            Rows to use; all by default.
        progress : callable, optional
            Called with the number of rows done and the total.

        Returns
        -------
        iterator of (int64 array, shape (n,); float array, shape (n, n_components))
            Row numbers, ascending, and coordinates.

        Raises
        ------
        UnknownNameError, InvalidInputError
            If there is no such array, or it has another width.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> found = zarrow.analysis.pca(store, n_components=2)
        >>> sum(len(rows) for rows, xy in found.project(store))
        5000
        """
        rows, _ = source_of(store)
        chosen = rows[self.array if array is None else array]
        if width_of(chosen) != self.components_.shape[1]:
            raise InvalidInputError(
                f"array {chosen.name!r} has rows of {width_of(chosen)} numbers, the components are of "
                f"{self.components_.shape[1]}"
            )
        stream = blocks(rows, chosen, filter=filter, progress=progress)
        dtype = np.result_type(chosen.dtype, np.float32)
        return ((block.rows, self.transform(block.values).astype(dtype)) for block in stream)


def pca(
    store: Source,
    array: str | None = None,
    n_components: int | None = None,
    filter: pc.Expression | None = None,
    *,
    solver: Solver = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Pca:
    """Return the principal components of an array, without loading it.

    Rows of several axes are flattened to one vector; rows that are not finite are left out and counted.

    Parameters
    ----------
    store : Store, xarray.Dataset or xarray.DataArray
        The store, or a Dataset whose rows lie along ``row``: made from a store or not, chunked for dask or
        not, whole or a selection. A Dataset is read chunk by chunk; its rows are numbered from 0.
    array : str, optional
        The array; may be left out if there is only one.
    n_components : int, optional
        Number of components; by default 50, or fewer if there are fewer dimensions or rows.
    filter : pyarrow.compute.Expression, optional
        Rows to use; all by default.
    solver : {"auto", "covariance", "randomized"}
        ``covariance`` is exact and takes 8 × width² bytes; ``randomized`` is for wide rows. ``auto`` takes
        ``randomized`` above a width of 4096.
    seed : int
        Random seed of ``randomized``.
    progress : callable, optional
        Called with the number of rows done and the total, in each pass.
    client : distributed.Client, optional
        The dask client whose workers read the segments. For a Dataset of dask arrays, dask's own default
        client by default.

    Returns
    -------
    Pca
        The components.

    Raises
    ------
    UnknownNameError
        If there is no such array or column.
    InvalidInputError
        If there are fewer than two finite rows, or fewer rows or dimensions than components.
    CorruptionError
        If the store is damaged.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> found = zarrow.analysis.pca(zarrow.testing.example_store(), n_components=3)
    >>> found.components_.shape, found.n_samples_
    ((3, 8), 5000)
    """
    rows, client = source_of(store, client)
    chosen = choose_array(rows, array)
    width = width_of(chosen)
    require_choice("solver", solver, Solver)
    if n_components is not None and not (1 <= n_components <= width and n_components == int(n_components)):
        raise InvalidInputError(f"n_components must be in 1..{width} for rows of {width}, got {n_components}")
    wanted = min(DEFAULT_COMPONENTS, width) if n_components is None else n_components
    exact = solver == "covariance" or (solver == "auto" and width <= MAX_COVARIANCE_WIDTH)
    run = partial(fold, store=rows, array=chosen, filter=filter, progress=progress, client=client)
    first = run(partial(_Spread, width, full=exact))
    moments = first.moments
    if moments.count < 2:
        raise InvalidInputError(
            f"principal components need at least two rows without NaN and infinity: array {chosen.name!r} "
            f"has {moments.count} among the {moments.count + first.nonfinite} rows that were read"
        )
    if n_components is not None and n_components > moments.count:
        raise InvalidInputError(
            f"n_components must be at most the number of finite rows, {moments.count}, got {n_components}"
        )
    wanted = min(wanted, moments.count)
    if exact:
        variances, vectors = _largest(moments.covariance(), wanted)
    else:
        variances, vectors = _randomized(run, moments, wanted, seed)
    total = float(moments.variance().sum())
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(wanted)])
    return Pca(
        array=chosen.name,
        components_=np.ascontiguousarray((vectors * np.where(signs == 0, 1, signs)).T),
        mean_=moments.mean,
        explained_variance_=variances,
        explained_variance_ratio_=variances / total if total > 0 else np.zeros(wanted),
        n_samples_=moments.count,
        nonfinite_rows=first.nonfinite,
    )


def _largest(symmetric: Float, count: int) -> tuple[Float, Float]:
    """Return the largest eigenvalues, largest first, and their eigenvectors as columns."""
    from scipy.linalg import eigh

    width = len(symmetric)
    values, vectors = eigh(symmetric, subset_by_index=[width - count, width - 1])
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _randomized(run: Callable[..., Any], moments: Moments, wanted: int, seed: int) -> tuple[Float, Float]:
    width = len(moments.mean)
    drawn = min(wanted + OVERSAMPLES, width)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, drawn)))[0]
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(run(partial(_Image, moments.mean, basis)).image)[0]
    inner = run(partial(_Image, moments.mean, basis)).inner
    variances, vectors = _largest(inner / (moments.count - 1), wanted)
    return variances, basis @ vectors


class _Spread(State):
    """Moments of the finite rows."""

    def __init__(self, width: int, *, full: bool) -> None:
        self.moments = Moments(width, full=full)
        self.nonfinite = 0

    def add(self, block: Block) -> None:
        block, bad = block.split()
        self.nonfinite += len(bad.rows)
        self.moments.add(block.values)


class _Image(State):
    """The scatter matrix times a basis, and the scatter matrix within the basis."""

    def __init__(self, mean: Float, basis: Float) -> None:
        self._mean, self._basis = mean, basis
        self.image = np.zeros_like(basis)
        self.inner = np.zeros((basis.shape[1], basis.shape[1]))

    def add(self, block: Block) -> None:
        centred = block.split()[0].values - self._mean
        along = centred @ self._basis
        self.image += centred.T @ along
        self.inner += along.T @ along
