"""Comparison — how two models' vectors of the same rows differ.

In one pass over the matched rows (`_rows.match`), from the covariance of both vectors side by side:

* *linear CKA* (Kornblith, Norouzi, Lee and Hinton, *Similarity of Neural Network Representations Revisited*,
  ICML 2019): 1 for vectors that are the same up to rotation and scale;
* *Procrustes* disparity: what the best rotation, scale and shift leave of the squared distances, 0 to 1, as
  from ``scipy.spatial.procrustes``;
* the mean cosine of a row's two vectors, and how far the means of dimensions and groups moved.

Then the neighbours of a sample of rows are searched in both arrays (`_numbers.topk`), for the share
that they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.layout import ROW
from zarrow.analysis._numbers.moments import GroupMoments, Moments, unit_rows
from zarrow.analysis._numbers.topk import TopK
from zarrow.analysis._questions.answer import Answer, shown
from zarrow.analysis._questions.evaluate import read_numbers
from zarrow.analysis._rows.arguments import require_store
from zarrow.analysis._rows.blocks import Block, Progress, as_matrix, choose_array, width_of
from zarrow.analysis._rows.folds import Passes, State
from zarrow.analysis._rows.groups import Groups, names_of
from zarrow.analysis._rows.match import Match, match
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError
from zarrow.store import Store, StoreArray

__all__ = ["Comparison", "compare"]

MAX_WIDTH = 4096
MAX_GROUPS_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(Answer):
    """How the vectors of two stores differ. What cannot be computed is None, never NaN.

    Parameters
    ----------
    arrays : tuple of str
        The arrays.
    matched : int
        Number of rows that both stores have.
    only_a, only_b : int64 array
        Rows that only one of them has.
    nonfinite_rows : int
        Matched rows left out because either vector has a NaN or infinity.
    cka, procrustes : float or None
        See the module's docstring. None for fewer than two rows, for rows that do not vary, and if the sum
        of the widths is more than 4096.
    cosine_mean, cosine_std, cosine_min : float or None
        Of the cosines of each row's two vectors (0 where one is zero). None if the widths differ.
    neighbour_overlap : float or None
        Mean share of a row's `k` nearest matched rows, by cosine, that are the same in both arrays.
    sampled, k : int
        The number of rows over which `neighbour_overlap` is the mean, and of neighbours of each.
    dimensions : pyarrow.Table or None
        Per dimension ``mean_a``, ``mean_b``, ``std_a``, ``std_b``, ``drift`` (the difference of the means,
        divided by the root mean square of both standard deviations; null where neither varies) and
        ``correlation`` (null where one does not vary). None if the widths differ.
    probability : dict or None
        Of the column that was named: ``mean_a``, ``mean_b``, ``mean_difference`` (b less a),
        ``mean_absolute_difference``, ``max_difference``, ``correlation``, ``ks`` (the Kolmogorov-Smirnov
        statistic) and ``rows``.
    groups : pyarrow.Table or None
        Per group ``rows``, ``cosine_mean``, ``drift`` (the distance between the means of a and b) and
        ``probability_difference``.
    """

    arrays: tuple[str, str]
    matched: int
    only_a: npt.NDArray[np.int64] = field(repr=False, metadata=shown("only_a", lambda own: len(own.only_a)))
    only_b: npt.NDArray[np.int64] = field(repr=False, metadata=shown("only_b", lambda own: len(own.only_b)))
    nonfinite_rows: int
    cka: float | None
    procrustes: float | None
    cosine_mean: float | None
    cosine_std: float | None
    cosine_min: float | None
    neighbour_overlap: float | None
    sampled: int
    k: int
    dimensions: pa.Table | None = field(repr=False)
    probability: dict[str, Any] | None
    groups: pa.Table | None = field(repr=False)


def compare(
    a: Store,
    b: Store,
    *,
    on: str | Sequence[str] | None = None,
    array: str | tuple[str | None, str | None] | None = None,
    by: str | Sequence[str] | None = None,
    probability: str | None = None,
    sample: int = 1000,
    k: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Comparison:
    """Compare the vectors of the same rows in two stores, such as those of two checkpoints.

    Parameters
    ----------
    a, b : Store
        The stores.
    on : str or list of str, optional
        The columns by which rows are matched: the key columns by default, or ``"row"`` or
        ``"sample_index"``.
    array : str or pair of str, optional
        The array, or that of `a` and that of `b`; may be left out if there is only one.
    by : str or list of str, optional
        Columns of `a` to group by.
    probability : str, optional
        A column of numbers in both stores, to compare as well.
    sample : int
        Number of rows whose neighbours are compared; 0 for none.
    k : int
        Number of neighbours of each.
    seed : int
        Random seed of the sample.
    progress : callable, optional
        Called with the number of rows done and the total, in each of three passes.
    client : distributed.Client, optional
        The dask client whose workers read the vectors; they must see both stores.

    Returns
    -------
    Comparison
        Also for stores that share no row, or whose vectors have different widths.

    Raises
    ------
    UnknownNameError
        If there is no such array or column.
    InvalidInputError
        If the stores have no such keys, keys of different types, or several rows with one key.
    CorruptionError
        If a store is damaged.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> found = zarrow.analysis.compare(store, store, by="query", probability="occurs_prob")
    >>> found.matched, round(found.cka, 6), round(found.procrustes, 6), found.groups.num_rows
    (5000, 1.0, 0.0, 10)
    """
    for store in (a, b):
        require_store(store)
    names_ab = array if isinstance(array, tuple) else (array, array)
    array_a, array_b = choose_array(a, names_ab[0]), choose_array(b, names_ab[1])
    names = names_of(by)
    if probability is not None:  # an error of the caller is raised before the passes
        for store in (a, b):
            read_numbers(store.table([probability], pc.field(ROW) < 0)[probability], probability)
    pairs = match(a, b, on)
    groups, codes = None, np.zeros(len(pairs.a), np.int64)
    if names:
        groups = Groups.of_store(a, names)
        size_bytes = groups.count * (width_of(array_a) + width_of(array_b)) * 8 * 2
        if size_bytes > MAX_GROUPS_BYTES:
            raise InvalidInputError(
                f"{groups.count} groups need more than 256 MiB: group by columns with fewer values"
            )
        codes = np.concatenate([groups.codes(batch) for batch in a.scan(names)] or [codes])[pairs.a]
    widths = width_of(array_a), width_of(array_b)
    aside = np.stack([pairs.b, codes], axis=1)
    make = partial(_Pairs, array_b, widths, 0 if groups is None else groups.count)
    state = Passes(a, array_a, pairs.a, aside, client).fold(make, progress)
    bad = np.concatenate([np.empty(0, np.int64), *state.bad])
    overlap, sampled, k = _overlap(a, b, array_a, array_b, pairs, bad, sample, k, seed, progress, client)
    shift, per_row = (None, None) if probability is None else _probabilities(a, b, pairs, probability)
    return Comparison(
        arrays=(array_a.name, array_b.name),
        matched=len(pairs.a),
        only_a=pairs.only_a,
        only_b=pairs.only_b,
        nonfinite_rows=len(bad),
        **state.likeness(),
        neighbour_overlap=overlap,
        sampled=sampled,
        k=k,
        dimensions=state.dimensions(),
        probability=shift,
        groups=None if groups is None else state.group_table(groups, codes, per_row),
    )


class _Pairs(State):
    """The moments of the vectors of matched rows, side by side."""

    def __init__(self, array_b: StoreArray, widths: tuple[int, int], groups: int) -> None:
        self._array_b, self._widths, self._groups = array_b, widths, groups
        self.moments = Moments(sum(widths), full=sum(widths) <= MAX_WIDTH)
        self.cosine = Moments(1, full=False)
        self.lowest: list[float] = []
        self.bad: list[npt.NDArray[np.int64]] = []
        self.group_moments = GroupMoments(groups, sum(widths) if groups else 0)
        self.group_cosine = GroupMoments(groups, 1)

    def add(self, block: Block) -> None:
        assert block.aside is not None
        rows_b = block.aside[:, 0]
        first, stop = int(rows_b[0]), int(rows_b[-1]) + 1
        together = stop - first == len(rows_b) and bool((np.diff(rows_b) == 1).all())
        taken = self._array_b.read(first, stop) if together else self._array_b.take(rows_b)
        both = np.concatenate([block.values, as_matrix(taken)], axis=1)
        block, bad = replace(block, values=both).split()
        self.bad.append(bad.rows)
        assert block.aside is not None
        codes = block.aside[:, 1]
        self.moments.add(block.values)
        if self._groups:
            self.group_moments.add(codes, block.values)
        if self._widths[0] == self._widths[1] and len(codes):
            left, right = np.split(block.values, 2, axis=1)
            cosines = np.einsum("ij,ij->i", unit_rows(left), unit_rows(right)).clip(-1, 1)
            self.cosine.add(cosines[:, None])
            self.lowest.append(float(cosines.min()))
            if self._groups:
                self.group_cosine.add(codes, cosines[:, None])

    def likeness(self) -> dict[str, float | None]:
        """Return CKA, Procrustes and the cosines."""
        found: dict[str, float | None] = {"cka": None, "procrustes": None}
        moments, width = self.moments, self._widths[0]
        if moments.full and moments.count > 1:
            inner, outer = moments.squares[:width, :width], moments.squares[width:, width:]
            cross = moments.squares[:width, width:]
            below = float(np.linalg.norm(inner) * np.linalg.norm(outer))
            if below > 0:
                found["cka"] = float(np.linalg.norm(cross) ** 2 / below)
                nuclear = float(np.linalg.svd(cross, compute_uv=False).sum())
                found["procrustes"] = max(1 - nuclear**2 / float(np.trace(inner) * np.trace(outer)), 0.0)
        cosine, some = self.cosine, self.cosine.count > 0
        found["cosine_mean"] = float(cosine.mean[0]) if some else None
        found["cosine_std"] = float(np.sqrt(cosine.variance()[0])) if cosine.count > 1 else None
        found["cosine_min"] = min(self.lowest, default=None)
        return found

    def dimensions(self) -> pa.Table | None:
        """Return how far each dimension moved."""
        width, other = self._widths
        if width != other or not self.moments.count:
            return None
        mean, variance = self.moments.mean, self.moments.variance()
        first, second = variance[:width], variance[width:]
        table = {
            "dimension": pa.array(np.arange(width)),
            "mean_a": pa.array(mean[:width]),
            "mean_b": pa.array(mean[width:]),
            "std_a": pa.array(np.sqrt(first)),
            "std_b": pa.array(np.sqrt(second)),
            "drift": _ratio(mean[width:] - mean[:width], np.sqrt((first + second) / 2)),
        }
        if self.moments.full:
            cross = np.diagonal(self.moments.squares[:width, width:]) / max(self.moments.count - 1, 1)
            table["correlation"] = _ratio(cross, np.sqrt(first * second))
        return pa.table(table)

    def group_table(
        self, groups: Groups, codes: npt.NDArray[np.int64], per_row: npt.NDArray[np.float64] | None
    ) -> pa.Table:
        """Return how far the rows of each group moved."""
        rows = np.bincount(codes, minlength=groups.count)
        none = self.group_moments.count == 0
        table = {"rows": pa.array(rows)}
        if self._widths[0] == self._widths[1]:
            moved = (
                self.group_moments.mean[:, self._widths[0] :] - self.group_moments.mean[:, : self._widths[0]]
            )
            table["cosine_mean"] = pa.array(self.group_cosine.mean[:, 0], mask=none)
            table["drift"] = pa.array(np.linalg.norm(moved, axis=1), mask=none)
        if per_row is not None:
            known = ~np.isnan(per_row)
            counts = np.bincount(codes[known], minlength=groups.count)
            sums = np.bincount(codes[known], per_row[known], minlength=groups.count).astype(np.float64)
            table["probability_difference"] = _ratio(sums, counts.astype(np.float64))
        return groups.with_columns(table)


def _ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> pa.Array:
    zero = below <= 0
    return pa.array(np.divide(above, below, out=np.zeros_like(below), where=~zero), mask=zero)


def _overlap(
    a: Store,
    b: Store,
    array_a: StoreArray,
    array_b: StoreArray,
    pairs: Match,
    bad: npt.NDArray[np.int64],
    sample: int,
    k: int,
    seed: int,
    progress: Progress | None,
    client: Client | None,
) -> tuple[float | None, int, int]:
    """Return the share of neighbours in common, the number of rows, and of neighbours of each."""
    usable = np.flatnonzero(~np.isin(pairs.a, bad))
    k = min(k, len(usable) - 1)
    if k < 1 or sample < 1:
        return None, 0, 0
    drawn = np.random.default_rng(seed).permutation(len(usable))[:sample]
    asked = usable[np.sort(drawn)]
    found = []
    for store, array, rows in ((a, array_a, pairs.a), (b, array_b, pairs.b)):
        order = usable[np.argsort(rows[usable], kind="stable")]
        vectors = as_matrix(array.take(rows[asked]))
        make = partial(TopK, vectors, k, "cosine", rows[asked])
        best = Passes(store, array, rows[order], order, client).fold(make, progress).rows
        found.append(order[np.searchsorted(rows[order], best)])
    shared = [len(np.intersect1d(*both)) for both in zip(*found, strict=True)]
    return float(np.mean(shared) / k), len(asked), k


def _probabilities(
    a: Store, b: Store, pairs: Match, name: str
) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Return how a column of numbers differs, and the difference of each matched row."""
    from scipy.stats import ks_2samp

    left = read_numbers(a.table([name])[name], name)[pairs.a]
    right = read_numbers(b.table([name])[name], name)[pairs.b]
    known = np.isfinite(left) & np.isfinite(right)
    difference = np.where(known, right - left, np.nan)
    first, second, moved = left[known], right[known], difference[known]
    if not len(moved):
        names = ("mean_a", "mean_b", "mean_difference", "mean_absolute_difference", "max_difference")
        return {"rows": 0, **dict.fromkeys((*names, "correlation", "ks"))}, difference
    varies = len(moved) > 1 and first.std() > 0 and second.std() > 0
    return {
        "rows": len(moved),
        "mean_a": float(first.mean()),
        "mean_b": float(second.mean()),
        "mean_difference": float(moved.mean()),
        "mean_absolute_difference": float(np.abs(moved).mean()),
        "max_difference": float(np.abs(moved).max()),
        "correlation": float(np.corrcoef(first, second)[0, 1]) if varies else None,
        "ks": float(ks_2samp(first, second, method="asymp").statistic),
    }, difference
