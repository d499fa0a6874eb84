"""Draws — how often each row counts in a bootstrap, when rows, or whole units of rows, are drawn again.

As many rows are drawn, with replacement, as there are (Efron, *Bootstrap Methods: Another Look at the
Jackknife*, 1979). The counts come in pieces of the rows, so that many draws at a time need little memory:
first how many of the draws fall into each piece (a multinomial draw), then into which rows of the piece. That
is distributed as drawing one row after the other. The interval of a metric is between two percentiles of its
draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["draw_rows", "draw_units", "interval", "pieces_of"]

Counts = npt.NDArray[np.int64]

TAIL = 0.025


def pieces_of(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` rows; the last one may be shorter.

    >>> list(pieces_of(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def draw_rows(generator: np.random.Generator, draws: int, count: int, rows: int) -> Iterator[Counts]:
    """Yield how often each row is drawn, in pieces of `rows`, shape (draws, rows of the piece).

    >>> pieces = list(draw_rows(np.random.default_rng(0), 3, 1000, 300))
    >>> [piece.shape for piece in pieces], np.concatenate(pieces, axis=1).sum(axis=1).tolist()
    ([(3, 300), (3, 300), (3, 300), (3, 100)], [1000, 1000, 1000])
    """
    sizes = [here.stop - here.start for here in pieces_of(count, rows)]
    falling = generator.multinomial(count, np.array(sizes) / count, size=draws)
    for size, fallen in zip(sizes, falling.T, strict=True):
        drawn = generator.integers(0, size, int(fallen.sum()))
        drawn += np.repeat(np.arange(draws) * size, fallen)
        yield np.bincount(drawn, minlength=draws * size).reshape(draws, size)


def draw_units(
    generator: np.random.Generator, draws: int, units: int, unit: npt.NDArray[np.int32], rows: int
) -> Iterator[Counts]:
    """Yield how often each row is drawn with its unit, in pieces of `rows`.

    >>> unit = np.array([0, 0, 1, 2, 2, 2], np.int32)
    >>> (one,) = draw_units(np.random.default_rng(0), 1, 3, unit, 10)
    >>> bool((one[0, :2] == one[0, 0]).all()), int(one[0, [0, 2, 3]].sum())
    (True, 3)
    """
    weights = np.concatenate(list(draw_rows(generator, draws, units, rows)), axis=1)
    for here in pieces_of(len(unit), rows):
        yield weights[:, unit[here]]


def interval(draws: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric, from its draws that are not NaN; None if there are none.

    >>> interval(np.array([np.nan, 1, 2, 3]))
    (1.05, 2.95)
    """
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [TAIL, 1 - TAIL]).tolist()
    return low, high
