"""Regression scores — how good predicted numbers are.

R² (the share of the variance that is explained), the root mean squared error and the mean absolute error,
with percentile intervals of a bootstrap over units. R² of numbers that do not vary is None.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.analysis._numbers.draws import interval
from zarrow.analysis._rows.groups import Groups, metric_table

__all__ = ["regression_scores"]

METRICS = ("r2", "rmse", "mae")
Float = npt.NDArray[np.float64]


def regression_scores(
    groups: Groups | None,
    codes: npt.NDArray[np.int64] | None,
    target: Float,
    predicted: Float,
    units: npt.NDArray[np.int64],
    bootstrap: int,
    seed: int,
) -> pa.Table:
    """Return a table with a row per group: its key, rows, metrics and their intervals.

    >>> target = np.array([1.0, 2.0, 3.0])
    >>> regression_scores(None, None, target, target, np.arange(3), 0, 0)["r2"].to_pylist()
    [1.0]
    """
    places = [np.arange(len(target))]
    if groups is not None and codes is not None:
        places = [np.flatnonzero(codes == number) for number in range(groups.count)]
    lines = []
    for here in places:
        sums = _sums(target[here], predicted[here], units[here])
        point = _metrics(sums.sum(axis=0, keepdims=True))
        generator = np.random.default_rng(seed)
        drawn = np.zeros((bootstrap, sums.shape[1]))
        for draw in drawn:
            draw[:] = sums[generator.integers(0, len(sums), len(sums))].sum(axis=0)
        line: dict[str, float | None] = {"rows": len(here)}
        for name, draws in _metrics(drawn).items():
            value = float(point[name][0])
            line[name] = None if np.isnan(value) else value
            line[f"{name}_low"], line[f"{name}_high"] = interval(draws) or (None, None)
        lines.append(line)
    return metric_table(groups, lines, ["rows"], METRICS)


def _sums(target: Float, predicted: Float, units: npt.NDArray[np.int64]) -> Float:
    """Return, per unit, the sums that the metrics are made of."""
    inverse = np.unique(units, return_inverse=True)[1].reshape(-1)
    centred = target - target.mean() if len(target) else target
    error = target - predicted
    terms = (np.ones(len(target)), centred, centred**2, error**2, np.abs(error))
    return np.stack([np.bincount(inverse, term) for term in terms], axis=1)


def _metrics(sums: Float) -> dict[str, Float]:
    count, first, second, squared, absolute = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = second - first**2 / count
        return {
            "r2": np.where(spread > 0, 1 - squared / spread, np.nan),
            "rmse": np.sqrt(squared / count),
            "mae": absolute / count,
        }
