"""Moments — mean and covariance of rows that are read once.

`Moments` and `GroupMoments` take blocks of rows in float64. Each block is centred on its own mean before
anything is squared, and is then joined to the sums so far by the pairwise update of Chan, Golub and LeVeque,
*Updating Formulae and a Pairwise Algorithm for Computing Sample Variances* (1979): so the sums of squares of
a million rows that differ only in their last digits keep those digits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["GroupMoments", "Moments", "group_sums", "unit_rows"]

Float = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


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

    @property
    def full(self) -> bool:
        """Whether the covariance is computed, not only the variances."""
        return self.squares.ndim == 2

    def add(self, values: Float) -> None:
        """Add rows, all of them finite."""
        if len(values):
            mean = values.mean(axis=0)
            centred = values - mean
            self._join(len(values), mean, centred.T @ centred if self.full else (centred**2).sum(axis=0))

    def merge(self, later: Moments) -> None:
        """Add the moments of other rows."""
        if later.count:
            self._join(later.count, later.mean, later.squares)

    def _join(self, count: int, mean: Float, squares: Float) -> None:
        share = count / (self.count + count)
        delta = mean - self.mean
        self.squares += squares
        self.squares += (np.outer(delta, delta) if self.full else delta**2) * (self.count * share)
        self.mean += delta * share
        self.count += count

    def part(self, columns: slice) -> Moments:
        """Return the moments of some of the columns."""
        found = Moments(0)
        found.count, found.mean = self.count, self.mean[columns]
        found.squares = self.squares[columns, columns] if self.full else self.squares[columns]
        return found

    def covariance(self) -> Float:
        """Return the covariance matrix, with ``count - 1`` degrees of freedom."""
        return self.squares / max(self.count - 1, 1)

    def variance(self) -> Float:
        """Return the variances, with ``count - 1`` degrees of freedom."""
        return (np.diagonal(self.squares) if self.full else self.squares) / max(self.count - 1, 1)


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

    def add(self, codes: Numbers, values: Float) -> None:
        """Add rows, all of them finite, and the group of each."""
        present, inverse, count = np.unique(codes, return_inverse=True, return_counts=True)
        mean = group_sums(inverse, values) / count[:, None]
        self._join(present, count, mean, group_sums(inverse, (values - mean[inverse]) ** 2))

    def merge(self, later: GroupMoments) -> None:
        """Add the moments of other rows of the same groups."""
        self._join(np.arange(len(self.count)), later.count, later.mean, later.squares)

    def _join(self, groups: Numbers, count: Numbers, mean: Float, squares: Float) -> None:
        before = self.count[groups]
        share = (count / np.maximum(before + count, 1))[:, None]
        delta = mean - self.mean[groups]
        self.squares[groups] += squares + delta**2 * (before[:, None] * share)
        self.mean[groups] += delta * share
        self.count[groups] += count

    def variance(self) -> Float:
        """Return the variances, with ``count - 1`` degrees of freedom; 0 for a single row."""
        return self.squares / np.maximum(self.count - 1, 1)[:, None]


def group_sums(codes: Numbers, values: Float) -> Float:
    """Return the sum of the rows of each group; each group has a row.

    >>> group_sums(np.array([0, 1, 0]), np.array([[1.0], [5.0], [3.0]])).tolist()
    [[4.0], [5.0]]
    """
    from scipy.sparse import csr_array

    shape = int(codes.max(initial=-1)) + 1, len(codes)
    return np.asarray(csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape) @ values)


def unit_rows(values: Float) -> Float:
    """Return rows divided by their lengths; rows of zeros stay as they are.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)
