"""Linear models — logistic and ridge regression, fitted to rows that are read again and again.

*Logistic*: the loss and its gradient are sums over rows, so each step of L-BFGS (scipy's, as in
scikit-learn's ``lbfgs``; Liu and Nocedal, 1989) is one pass. The objective is scikit-learn's: the mean
cross-entropy plus the squared weights over 2 C n, with the intercept not penalised; with several classes it
is multinomial.

*Ridge*: the covariance of the vectors and the label holds everything that the normal equations need, so one
pass is enough.

Both standardise the columns by the mean and the standard deviation of the training rows; a column that does
not vary becomes zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow.analysis._numbers.moments import Moments
from zarrow.analysis._rows.blocks import Block, Progress, split_finite
from zarrow.analysis._rows.folds import Passes

__all__ = ["Scatter", "Standard", "fit_logistic", "fit_ridge", "predict"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Standard:
    """The standardisation of columns.

    Parameters
    ----------
    mean, scale : float64 array, shape (width,)
        Subtracted, and then divided by.
    """

    mean: Float
    scale: Float

    @classmethod
    def of(cls, moments: Moments) -> Standard:
        """Return the standardisation of rows, with ``n`` degrees of freedom as in scikit-learn."""
        std = np.sqrt(moments.variance() * (moments.count - 1) / max(moments.count, 1))
        # The rounding error of a float32 mean of equal values is not variation.
        return cls(moments.mean, np.where(std > 1e-7 * np.abs(moments.mean), std, np.inf))

    def __call__(self, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Return standardised rows."""
        found = values - self.mean.astype(values.dtype)
        found *= (1 / self.scale).astype(values.dtype)
        return found


class Scatter:
    """Moments of the finite rows, with a numeric label as the last column; and the other rows."""

    def __init__(self, width: int, *, full: bool) -> None:
        self.moments = Moments(width + full, full=full)
        self.bad: list[npt.NDArray[np.int64]] = []

    def add(self, block: Block) -> None:
        finite, values, aside = split_finite(block.values), block.values, block.aside
        assert aside is not None
        if finite is not None:
            self.bad.append(block.rows[~finite])
            values, aside = values[finite], aside[finite]
        if self.moments.full:
            # In float64 the label keeps its digits, even if it is large compared to its variation.
            values = np.concatenate([values, aside[:, None]], axis=1, dtype=np.float64)
        self.moments.add(values)

    def merge(self, later: Scatter) -> None:
        self.moments.merge(later.moments)
        self.bad += later.bad


def fit_ridge(moments: Moments, standard: Standard, alpha: float) -> tuple[Float, Float]:
    """Return weights, shape (1, width), and intercept, shape (1,), from the moments of vectors and label."""
    from scipy.linalg import solve

    inverse = 1 / standard.scale
    inner = moments.squares[:-1, :-1] * np.outer(inverse, inverse)
    inner[np.diag_indices_from(inner)] += alpha
    weights = solve(inner, moments.squares[:-1, -1] * inverse, assume_a="pos")
    return weights[None], moments.mean[-1:]


def fit_logistic(
    passes: Passes,
    standard: Standard,
    classes: int,
    regularization: float,
    max_iterations: int,
    tolerance: float,
    progress: Progress | None,
) -> tuple[Float, Float, int, bool]:
    """Return weights, shape (outputs, width), intercepts, the number of iterations, and convergence.

    `Passes.aside` is the class of each row. Two classes share one output.
    """
    from scipy.optimize import minimize

    outputs = 1 if classes == 2 else classes
    width, count = len(standard.mean), len(passes.rows)

    def objective(flat: Float) -> tuple[float, Float]:
        packed = flat.reshape(outputs, width + 1)
        found = passes.fold(partial(_Gradient, packed, standard), progress)
        weights = packed[:, :-1]
        loss = found.loss / count + (weights**2).sum() / (2 * regularization * count)
        gradient = found.gradient / count
        gradient[:, :-1] += weights / (regularization * count)
        return float(loss), gradient.reshape(-1)

    found = minimize(
        objective,
        np.zeros(outputs * (width + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "gtol": tolerance, "ftol": 1e-12, "maxls": 50},
    )
    packed = found.x.reshape(outputs, width + 1)
    return packed[:, :-1], packed[:, -1], int(found.nit), bool(found.success)


class _Gradient:
    """The cross-entropy of rows, and its gradient."""

    def __init__(self, packed: Float, standard: Standard) -> None:
        self.packed, self.standard = packed, standard
        self.loss = 0.0
        self.gradient = np.zeros_like(packed)

    def add(self, block: Block) -> None:
        values, target = self.standard(block.values), block.aside
        assert target is not None
        logits = _logits(values, self.packed[:, :-1], self.packed[:, -1])
        rows = np.arange(len(target))
        if logits.shape[1] == 1:
            logit = logits[:, 0]
            self.loss += float((np.logaddexp(0, logit) - target * logit).sum())
            wrong = (1 / (1 + np.exp(-np.clip(logit, -700, 700))) - target)[:, None]
        else:
            wrong = _softmax(logits)
            self.loss -= float(np.log(np.maximum(wrong[rows, target], 1e-300)).sum())
            wrong[rows, target] -= 1
        self.gradient[:, :-1] += wrong.T.astype(values.dtype) @ values
        self.gradient[:, -1] += wrong.sum(axis=0)

    def merge(self, later: _Gradient) -> None:
        self.loss += later.loss
        self.gradient += later.gradient


def _logits(values: npt.NDArray[np.floating[Any]], weights: Float, intercept: Float) -> Float:
    return (values @ weights.T.astype(values.dtype)).astype(np.float64) + intercept


def _softmax(logits: Float) -> Float:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def predict(
    values: npt.NDArray[np.floating[Any]], standard: Standard, weights: Float, intercept: Float, kind: str
) -> Float:
    """Return a model's predictions: probabilities, shape (n, classes), or numbers, shape (n, 1)."""
    logits = _logits(standard(values), weights, intercept)
    if kind == "ridge":
        return logits
    if logits.shape[1] == 1:
        yes = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        return np.concatenate([1 - yes, yes], axis=1)
    return _softmax(logits)
