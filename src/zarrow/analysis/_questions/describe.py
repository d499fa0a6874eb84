"""Description — how the vectors and the columns of a store are distributed.

Of each array, in one pass: mean and standard deviation per dimension, norms, NaNs and infinities, and

* *effective rank*: the exponential of the entropy of the singular values of the centred rows (Roy and
  Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007): how many dimensions
  the rows really use;
* *anisotropy*: the mean cosine between two different rows (Ethayarajh, *How Contextual are Contextualized
  Word Representations?*, EMNLP 2019): 0 for rows that point everywhere, 1 for rows that all point one way;
* *dead dimensions*: those whose values are the same in all rows, to a millionth.

Of a ragged array, all this is about vectors, whichever rows they are of, and `VectorCounts` says how many
rows have. Sums are kept by `_numbers.moments`, quantiles of norms by `_numbers.sketch`. Columns are described
by DuckDB (`column_facts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._read.indexing import IndexedRagged
from zarrow.analysis._numbers.moments import GroupMoments, Moments, group_sums, unit_rows
from zarrow.analysis._numbers.sketch import Sketch
from zarrow.analysis._questions.answer import HIDDEN, Answer, shown
from zarrow.analysis._questions.column_facts import describe_columns
from zarrow.analysis._rows.blocks import Block, Progress, part_of, vector_width
from zarrow.analysis._rows.dataset import Array, Source, source_of
from zarrow.analysis._rows.folds import State, fold
from zarrow.analysis._rows.groups import Groups, names_of
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError

__all__ = ["ArrayDescription", "Description", "VectorCounts", "describe"]

MAX_COVARIANCE_WIDTH = 4096
MAX_GROUPS_BYTES = 256 << 20
DEAD = 1e-6
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VectorCounts(Answer):
    """How many vectors the rows of a ragged array have; None where there are no rows.

    Parameters
    ----------
    rows, vectors : int
        Rows of the array, and their vectors.
    rows_without : int
        Rows that have none.
    mean : float or None
        Vectors per row.
    min, q05, median, q95, max : int or None
        Quantiles of the vectors per row: of an even number of rows, the median is the lower one.
    counts : Sketch
        Their distribution, with ``quantile(share)`` and ``histogram(bins)``.
    """

    rows: int
    vectors: int
    rows_without: int
    mean: float | None
    min: int | None
    q05: int | None
    median: int | None
    q95: int | None
    max: int | None
    counts: Sketch = field(repr=False, metadata=HIDDEN)

    @classmethod
    def of(cls, array: IndexedRagged) -> VectorCounts:
        """Return those of an array.

        Parameters
        ----------
        array : StoreRagged or UnionRagged
            The array, of whose vectors none is read.

        Returns
        -------
        VectorCounts
            Exact, but for `counts`.

        Examples
        --------
        >>> import tempfile, numpy as np, zarrow
        >>> path = tempfile.mkdtemp() + "/tokens.zarrow"
        >>> with zarrow.Writer(path) as writer:
        ...     writer.append(None, {"t": zarrow.Ragged(np.ones((5, 2)), [2, 0, 3])})
        ...     _ = writer.finalize()
        >>> found = VectorCounts.of(zarrow.open(path)["t"])
        >>> found
        VectorCounts(rows=3, vectors=5, rows_without=1, mean=1.667, min=0, q05=0, median=2, q95=3, max=3)
        >>> found.in_words()
        '5 vectors in 3 rows: 0 to 3 per row, median 2; 1 row has none'
        """
        counts, sketch, low, q05, median, q95, high = array.counts, Sketch(), *[None] * 5
        if len(counts):
            sketch.add(counts.astype(np.float64))
            shares = (0, 0.05, 0.5, 0.95, 1)
            low, q05, median, q95, high = np.quantile(counts, shares, method="inverted_cdf").tolist()
        return cls(
            rows=len(counts),
            vectors=int(counts.sum()),
            rows_without=int(np.count_nonzero(counts == 0)),
            mean=float(counts.mean()) if len(counts) else None,
            min=low,
            q05=q05,
            median=median,
            q95=q95,
            max=high,
            counts=sketch,
        )

    def in_words(self) -> str:
        """Return the counts as a reader would say them.

        Returns
        -------
        str
            Of one line, without a full stop.

        Examples
        --------
        See `of`.
        """
        if self.min is None:
            return "no vectors"
        without = f"{self.rows_without:,} row{'s have' if self.rows_without != 1 else ' has'} none"
        spread = f"{self.min:,} to {self.max:,} per row, median {self.median:,}"
        return f"{self.vectors:,} vectors in {self.rows:,} rows: {spread}; {without}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ArrayDescription(Answer):
    """How an array is distributed. A statistic that needs more rows than there are is None, never NaN.

    What is said of rows holds of vectors, if the array is ragged.

    Parameters
    ----------
    name, dtype : str
        Name and data type.
    row_shape : tuple of int
        The shape of a row; the dimensions below are its elements in C order.
    rows : int
        Number of rows.
    nonfinite_rows : int
        Rows with a NaN or an infinity; everything below is about the other rows.
    nan_values, infinite_values : int
        Number of NaN and of infinite values.
    zero_rows : int
        Rows of zeros only: they have no direction and are left out of `anisotropy`.
    mean, std : float64 array, shape (width,)
        Per dimension; `std` with ``n - 1`` degrees of freedom, 0 for fewer than two rows.
    norm_mean, norm_std : float or None
        Of the rows' Euclidean norms.
    norms : Sketch
        Their distribution, with ``quantile(share)`` and ``histogram(bins)``.
    effective_rank : float or None
        See the module's docstring. None also for rows of more than 4096 numbers: use `pca` for these.
    anisotropy : float or None
        See the module's docstring.
    dead_dimensions : int64 array
        The dimensions that do not vary.
    groups : pyarrow.Table or None
        Per group, if there are any: the columns, ``rows``, ``nonfinite_rows``, ``norm_mean``, ``norm_std``,
        ``spread`` (the root of the sum of the variances), ``shift`` (how far the group's mean is from the
        mean of all rows) and ``anisotropy``; a key column named like one of these gets a trailing underscore.
    group_mean, group_std : float64 array, shape (groups, width), or None
        Per group and dimension.
    vectors : VectorCounts or None
        Of a ragged array, how many vectors its rows have.
    """

    name: str = field(metadata=HIDDEN)
    dtype: str
    row_shape: tuple[int, ...]
    rows: int
    nonfinite_rows: int
    nan_values: int
    infinite_values: int
    zero_rows: int
    mean: npt.NDArray[np.float64] = field(
        repr=False, metadata=shown("mean", lambda own: own._known(own.mean))
    )
    std: npt.NDArray[np.float64] = field(repr=False, metadata=shown("std", lambda own: own._known(own.std)))
    norm_mean: float | None
    norm_std: float | None
    norms: Sketch = field(
        repr=False,
        metadata=shown(
            "norm_quantiles",
            lambda own: own._known({str(share): own.norms.quantile(share) for share in QUANTILES}),
        ),
    )
    effective_rank: float | None
    anisotropy: float | None
    dead_dimensions: npt.NDArray[np.int64] = field(repr=False)
    groups: pa.Table | None = field(default=None, repr=False)
    group_mean: npt.NDArray[np.float64] | None = field(default=None, repr=False, metadata=HIDDEN)
    group_std: npt.NDArray[np.float64] | None = field(default=None, repr=False, metadata=HIDDEN)
    vectors: VectorCounts | None = field(default=None, repr=False)

    def _known(self, value: Any) -> Any:
        return value if self.rows > self.nonfinite_rows else None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Description(Answer):
    """How the arrays and columns of a store are distributed.

    Parameters
    ----------
    rows : int
        Number of rows.
    by : tuple of str
        The columns grouped by.
    arrays : dict of str to ArrayDescription
        The arrays by name.
    columns : pyarrow.Table
        Per column (and group): ``column``, ``type``, ``count``, ``nulls``, ``nonfinite``, ``distinct``,
        ``mean``, ``std``, ``min``, ``q05``, ``q25``, ``median``, ``q75``, ``q95``, ``max`` of numbers (of
        times, as seconds since 1970), and ``exact``: whether quantiles and ``distinct`` are exact.
    """

    rows: int
    by: tuple[str, ...]
    arrays: dict[str, ArrayDescription]
    columns: pa.Table


def describe(
    store: Source,
    arrays: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    by: str | Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Description:
    """Describe arrays and columns, in one pass over each array and one over the table.

    The columns of a Dataset are its variables along ``row`` alone; their NaNs count as nulls.

    Parameters
    ----------
    store : Store, xarray.Dataset or xarray.DataArray
        The store, or a Dataset whose rows lie along ``row``: made from a store or not, chunked for dask or
        not, whole or a selection. A Dataset is read chunk by chunk; its rows are numbered from 0.
    arrays : list of str, optional
        Arrays to describe, ragged ones by their vectors; all by default.
    columns : list of str, optional
        Columns to describe; all but ``row`` and ``sample_index`` by default.
    by : str or list of str, optional
        Columns to group by.
    progress : callable, optional
        Called with the number of rows done and the total.
    client : distributed.Client, optional
        The dask client whose workers read the arrays. For a Dataset of dask arrays, dask's own default client
        by default.

    Returns
    -------
    Description
        Also for an empty store.

    Raises
    ------
    UnknownNameError
        If there is no such array or column.
    InvalidInputError
        If the means of the groups would need more than 256 MiB.
    MissingExtraError
        If DuckDB is not installed.
    CorruptionError
        If the store is damaged.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> found = zarrow.analysis.describe(zarrow.testing.example_store(), by="query")
    >>> vectors = found.arrays["query_embed"]
    >>> round(vectors.effective_rank, 1), len(vectors.dead_dimensions), vectors.groups.num_rows
    (8.0, 0, 10)
    """
    rows, client = source_of(store, client)
    chosen = [rows[name] for name in ([*rows.arrays, *rows.ragged] if arrays is None else arrays)]
    names = names_of(by)
    if columns is None:
        columns = [name for name in rows.schema.names if name not in (ROW, SAMPLE_INDEX, *names)]
    facts = describe_columns(rows, list(columns), names)
    groups = Groups.of_store(rows, names) if names else None
    described = {}
    for place, array in enumerate(chosen):
        width = vector_width(array)
        if groups is not None and groups.count * width * 8 * 3 > MAX_GROUPS_BYTES:
            raise InvalidInputError(
                f"{groups.count} groups of {width} dimensions need more than "
                f"{MAX_GROUPS_BYTES >> 20} MiB: group by columns of fewer values, or leave array "
                f"{array.name!r} out with arrays="
            )
        make = partial(_ArrayState, width, groups)
        state = fold(make, rows, array, names, None, part_of(progress, place, len(chosen)), client)
        described[array.name] = state.result(array)
    return Description(rows=rows.num_rows, by=tuple(names), arrays=described, columns=facts)


class _ArrayState(State):
    """The sums over some of an array's blocks, of all rows and per group; without groups, they are one."""

    def __init__(self, width: int, groups: Groups | None) -> None:
        self._groups = groups
        count = 1 if groups is None else groups.count
        self.nan = self.infinite = 0
        self.moments = Moments(width, full=width <= MAX_COVARIANCE_WIDTH)
        self.norm, self.norms = Moments(1, full=False), Sketch()
        self.nonfinite, self.zeros = np.zeros((2, count), np.int64)
        self.directions = np.zeros((count, width))
        self.group_norms = GroupMoments(count, 1)
        self.group_moments = GroupMoments(0 if groups is None else count, width)

    def add(self, block: Block) -> None:
        block, bad = block.split()
        self.nan += int(np.isnan(bad.values).sum())
        self.infinite += int(np.isinf(bad.values).sum())
        self.nonfinite += np.bincount(self._codes(bad), minlength=len(self.nonfinite))
        values, codes = block.values, self._codes(block)
        norms = np.linalg.norm(values, axis=1)
        self.moments.add(values)
        self.norm.add(norms[:, None])
        self.norms.add(norms)
        self.zeros += np.bincount(codes[norms == 0], minlength=len(self.zeros))
        self.group_norms.add(codes, norms[:, None])
        present, inverse = np.unique(codes, return_inverse=True)
        self.directions[present] += group_sums(inverse, unit_rows(values))
        if self._groups is not None:
            self.group_moments.add(codes, values)

    def _codes(self, block: Block) -> npt.NDArray[np.int64]:
        if self._groups is None:
            return np.zeros(len(block.rows), np.int64)
        return self._groups.codes(block.table)

    def result(self, array: Array | IndexedRagged) -> ArrayDescription:
        moments = self.moments
        std = np.sqrt(moments.variance())
        scale = np.maximum(np.abs(moments.mean), std.max(initial=0))
        some, several, zeros = moments.count > 0, moments.count > 1, int(self.zeros.sum())
        grouped: dict[str, Any] = {}
        if self._groups is not None:
            grouped = {
                "groups": self._group_table(self._groups),
                "group_mean": self.group_moments.mean,
                "group_std": np.sqrt(self.group_moments.variance()),
            }
        return ArrayDescription(
            name=array.name,
            dtype=array.dtype.name,
            row_shape=array.vector_shape if isinstance(array, IndexedRagged) else array.row_shape,
            rows=moments.count + int(self.nonfinite.sum()),
            nonfinite_rows=int(self.nonfinite.sum()),
            nan_values=self.nan,
            infinite_values=self.infinite,
            zero_rows=zeros,
            mean=moments.mean,
            std=std,
            norm_mean=float(self.norm.mean[0]) if some else None,
            norm_std=float(np.sqrt(self.norm.variance()[0])) if several else None,
            norms=self.norms,
            effective_rank=_effective_rank(moments) if several and moments.full else None,
            anisotropy=_anisotropy(self.directions.sum(axis=0), moments.count - zeros),
            dead_dimensions=np.flatnonzero(std <= DEAD * scale) if several else np.empty(0, np.int64),
            vectors=VectorCounts.of(array) if isinstance(array, IndexedRagged) else None,
            **grouped,
        )

    def _group_table(self, groups: Groups) -> pa.Table:
        finite = self.group_moments.count
        none, few = finite == 0, finite < 2
        spread = np.sqrt(self.group_moments.variance().sum(axis=1))
        shift = np.linalg.norm(self.group_moments.mean - self.moments.mean, axis=1)
        directed = zip(self.directions, (finite - self.zeros).tolist(), strict=True)
        columns = {
            "rows": pa.array(finite + self.nonfinite),
            "nonfinite_rows": pa.array(self.nonfinite),
            "norm_mean": pa.array(self.group_norms.mean[:, 0], mask=none),
            "norm_std": pa.array(np.sqrt(self.group_norms.variance()[:, 0]), mask=few),
            "spread": pa.array(spread, mask=few),
            "shift": pa.array(shift, mask=none),
            "anisotropy": pa.array([_anisotropy(*one) for one in directed], pa.float64()),
        }
        return groups.with_columns(columns)


def _effective_rank(moments: Moments) -> float:
    variances = np.maximum(np.linalg.eigvalsh(moments.squares), 0)
    # What is left by rounding only is not a dimension.
    variances[variances < variances.max(initial=0) * len(variances) * np.finfo(np.float32).eps ** 2] = 0
    singular = np.sqrt(variances[variances > 0])
    if not len(singular):
        return 0.0
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _anisotropy(directions: npt.NDArray[np.float64], count: int) -> float | None:
    """Return the mean cosine of pairs of different rows, from the sum of their directions."""
    if count < 2:
        return None
    return float((directions @ directions - count) / (count * (count - 1)))
