"""Split — which rows train a probe and which test it.

Whole groups, such as patients, are drawn for testing, so that no group is on both sides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zarrow.errors import InvalidInputError

__all__ = ["split"]


def split(units: npt.NDArray[np.int64], test_fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which rows are for testing: those of a share of the units, rounded up.

    >>> split(np.array([0, 0, 1, 1, 2, 2, 3, 3]), 0.25, seed=0).sum()
    np.int64(2)
    """
    if not 0 < test_fraction < 1:
        raise InvalidInputError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    names, inverse = np.unique(units, return_inverse=True)
    if len(names) < 2:
        raise InvalidInputError(
            f"training and testing need at least two groups, but the labelled rows have {len(names)}"
        )
    drawn = np.random.default_rng(seed).permutation(len(names))
    count = min(int(np.ceil(test_fraction * len(names))), len(names) - 1)
    chosen = np.zeros(len(names), np.bool_)
    chosen[drawn[:count]] = True
    return chosen[inverse.reshape(-1)]
