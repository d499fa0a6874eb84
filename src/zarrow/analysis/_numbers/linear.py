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

import numpy as np
import numpy.typing as npt

from zarrow.analysis._numbers.moments import Moments
from zarrow.analysis._rows.blocks import Block, Progress
from zarrow.analysis._rows.folds import Passes, State

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
        # The rounding error of a mean of equal values is not variation.
        return cls(moments.mean, np.where(std > 1e-7 * np.abs(moments.mean), std, np.inf))

    def __call__(self, values: Float) -> Float:
        """Return standardised rows."""
        return (values - self.mean) / self.scale


class Scatter(State):
    """Moments of the finite rows, with a numeric label as the last column; and the other rows."""

    def __init__(self, width: int, *, full: bool) -> None:
        self.moments = Moments(width + full, full=full)
        self.bad: list[npt.NDArray[np.int64]] = []

    def add(self, block: Block) -> None:
        block, bad = block.split()
        self.bad.append(bad.rows)
        values = block.values
        if self.moments.full:
            assert block.aside is not None
            values = np.concatenate([values, block.aside[:, None]], axis=1)
        self.moments.add(values)


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


class _Gradient(State):
    """The cross-entropy of rows, and its gradient."""

    def __init__(self, packed: Float, standard: Standard) -> None:
        self._packed, self._standard = packed, standard
        self.loss = 0.0
        self.gradient = np.zeros_like(packed)

    def add(self, block: Block) -> None:
        from scipy.special import log_softmax

        values, target = self._standard(block.values), block.aside
        assert target is not None
        logs = log_softmax(_logits(values, self._packed[:, :-1], self._packed[:, -1]), axis=1)
        rows = np.arange(len(target))
        self.loss -= float(logs[rows, target].sum())
        wrong = np.exp(logs)
        wrong[rows, target] -= 1
        wrong = wrong[:, -len(self.gradient) :]  # two classes share one output
        self.gradient[:, :-1] += wrong.T @ values
        self.gradient[:, -1] += wrong.sum(axis=0)


def _logits(values: Float, weights: Float, intercept: Float) -> Float:
    """Return the logit of each class; two classes share one output, and the first has the logit 0."""
    logits = values @ weights.T + intercept
    return logits if logits.shape[1] > 1 else np.pad(logits, ((0, 0), (1, 0)))


def predict(values: Float, standard: Standard, weights: Float, intercept: Float, kind: str) -> Float:
    """Return a model's predictions: probabilities, shape (n, classes), or numbers, shape (n, 1)."""
    from scipy.special import softmax

    if kind == "ridge":
        return standard(values) @ weights.T + intercept
    return np.asarray(softmax(_logits(standard(values), weights, intercept), axis=1))
