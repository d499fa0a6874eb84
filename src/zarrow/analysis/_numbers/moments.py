"""Moments — mean and covariance of rows that are read once.

`Moments` takes blocks of rows. Each block is centred on (nearly) its own mean before anything is squared, and
is then joined to the sums so far by the pairwise update of Chan, Golub and LeVeque, *Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances* (1979): so the sums of squares of a million rows that
differ only in their last digits keep those digits. Within a block, products are BLAS's, in the dtype of the
block; the sums over blocks are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GroupMoments", "Moments", "row_norms"]


class Moments:
    """Count, mean and sums of squares of rows.

    Parameters
    ----------
    width : int
        Length of a row.
    full : bool
        Whether to compute the covariance, or only the variances.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(1000, 1, size=(500, 3))
    >>> moments = Moments(3)
    >>> moments.add(rows[:200])
    >>> moments.add(rows[200:])
    >>> bool(np.allclose(moments.covariance(), np.cov(rows.T)))
    True
    """

    def __init__(self, width: int, *, full: bool = True) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.squares = np.zeros((width, width) if full else width)
        self._scratch: npt.NDArray[Any] | None = None

    @property
    def full(self) -> bool:
        """Whether the covariance is computed, not only the variances."""
        return self.squares.ndim == 2

    def add(self, values: npt.NDArray[np.floating[Any]]) -> None:
        """Add rows, all of them finite."""
        count = len(values)
        if not count:
            return
        ones = np.ones(count, values.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            shift = (ones @ values) / values.dtype.type(count)
        shift = np.where(np.isfinite(shift), shift, values[0]).astype(values.dtype, copy=False)
        centred = np.subtract(values, shift, out=self._buffer(values))
        with np.errstate(over="ignore", invalid="ignore"):
            rest = (ones @ centred).astype(np.float64)  # what the rounding of the shift left of the mean
            # numpy uses the symmetry of the full product: half the work.
            squares = centred.T @ centred if self.full else np.einsum("ij,ij->j", centred, centred)
            largest = np.diagonal(squares) if self.full else squares
        if values.dtype == np.float32 and not np.isfinite(largest).all():
            self.add(values.astype(np.float64))  # beyond 10¹⁹ the squares overflow
            return
        self._join(count, shift.astype(np.float64) + rest / count, squares, rest)

    def merge(self, later: Moments) -> None:
        """Add the moments of other rows."""
        self._join(later.count, later.mean, later.squares, np.zeros_like(later.mean))

    def _join(
        self,
        count: int,
        mean: npt.NDArray[np.float64],
        squares: npt.NDArray[np.floating[Any]],
        rest: npt.NDArray[np.float64],
    ) -> None:
        """Add sums of squares about a point; `rest` is the sum of the differences of the rows from it."""
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        left = np.stack([-rest / count, delta * (self.count * (count / total))])
        right = np.stack([rest, delta])
        self.squares += squares
        # Both corrections in one pass, which counts for a wide matrix.
        self.squares += left.T @ right if self.full else (left * right).sum(axis=0)
        self.mean += delta * (count / total)
        self.count = total

    def _buffer(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._scratch is None or len(self._scratch) < len(values) or self._scratch.dtype != values.dtype:
            self._scratch = np.empty(values.shape, values.dtype)
        return self._scratch[: len(values)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": None}

    def part(self, columns: slice) -> Moments:
        """Return the moments of some of the columns."""
        found = Moments(0)
        found.count, found.mean = self.count, self.mean[columns]
        found.squares = self.squares[columns, columns] if self.full else self.squares[columns]
        return found

    def covariance(self) -> npt.NDArray[np.float64]:
        """Return the covariance matrix, with ``count - 1`` degrees of freedom."""
        return self.squares / max(self.count - 1, 1)

    def variance(self) -> npt.NDArray[np.float64]:
        """Return the variances, with ``count - 1`` degrees of freedom."""
        diagonal = np.diagonal(self.squares) if self.full else self.squares
        return np.maximum(diagonal, 0) / max(self.count - 1, 1)


class GroupMoments:
    """Count, mean and sums of squared deviations of rows, per group: `Moments`, for many groups at once.

    Parameters
    ----------
    groups : int
        Number of groups.
    width : int
        Length of a row.

    Examples
    --------
    >>> moments = GroupMoments(2, 1)
    >>> moments.add(np.array([0, 1, 0]), np.array([[1.0], [5.0], [3.0]]))
    >>> moments.mean.tolist(), moments.variance().tolist()
    ([[2.0], [5.0]], [[2.0], [0.0]])
    """

    def __init__(self, groups: int, width: int) -> None:
        self.count = np.zeros(groups, np.int64)
        self.mean = np.zeros((groups, width))
        self.squares = np.zeros((groups, width))

    def add(self, codes: npt.NDArray[np.int64], values: npt.NDArray[np.floating[Any]]) -> None:
        """Add rows, all of them finite, and the group of each."""
        if not len(values):
            return
        order = np.argsort(codes, kind="stable")
        present, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
        ordered = values[order]
        with np.errstate(over="ignore", invalid="ignore"):
            shift = np.add.reduceat(ordered, starts, axis=0) / counts[:, None].astype(values.dtype)
            ordered -= np.repeat(shift, counts, axis=0)
            rest = np.add.reduceat(ordered, starts, axis=0).astype(np.float64)
            np.square(ordered, out=ordered)
            squares = np.add.reduceat(ordered, starts, axis=0) - rest * rest / counts[:, None]
        if values.dtype == np.float32 and not np.isfinite(squares).all():
            self.add(codes, values.astype(np.float64))  # beyond 10¹⁹ the squares overflow
            return
        self._join(present, counts, shift + rest / counts[:, None], squares)

    def merge(self, later: GroupMoments) -> None:
        """Add the moments of other rows of the same groups."""
        self._join(np.arange(len(self.count)), later.count, later.mean, later.squares)

    def _join(
        self,
        groups: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
        mean: npt.NDArray[np.float64],
        squares: npt.NDArray[np.float64],
    ) -> None:
        before = self.count[groups]
        total = before + count
        share = (count / np.maximum(total, 1))[:, None]
        delta = mean - self.mean[groups]
        self.squares[groups] += squares + delta * delta * (before[:, None] * share)
        self.mean[groups] += delta * share
        self.count[groups] = total

    def variance(self) -> npt.NDArray[np.float64]:
        """Return the variances, with ``count - 1`` degrees of freedom; 0 for a single row."""
        return np.maximum(self.squares, 0) / np.maximum(self.count - 1, 1)[:, None]


def row_norms(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the Euclidean norms of finite rows, including those whose squares overflow.

    >>> bool(row_norms(np.array([[3e30, 4e30]], np.float32))[0] > 4e30)
    True
    """
    with np.errstate(over="ignore", under="ignore"):
        squares = np.einsum("ij,ij->i", values, values).astype(np.float64)
    extreme = np.flatnonzero(
        ~np.isfinite(squares) | (squares < np.finfo(values.dtype).tiny * values.shape[1])
    )
    norms = np.sqrt(squares)
    if len(extreme):
        largest = np.abs(values[extreme]).max(axis=1, initial=0).astype(np.float64)
        safe = np.where(largest > 0, largest, 1)
        scaled = values[extreme] / safe[:, None]
        norms[extreme] = safe * np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    return np.asarray(norms)
