"""Quantization error — what storing an array in fewer bytes would change, measured on some of its rows.

Rows drawn at random are converted and read back in memory: how far values are off, how far vectors turn, and
how many of the ten nearest rows, by cosine among those drawn, remain the nearest. Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import rows_of
from zarrow._format.quantized import QUANTIZED, dequantize, quantize
from zarrow.analysis._questions.answer import Answer
from zarrow.analysis._rows.arguments import require_choice
from zarrow.analysis._rows.blocks import choose_array, width_of
from zarrow.analysis._rows.dataset import Source, source_of
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["QuantizationError", "quantization_error"]

SAMPLE_BYTES = 64 << 20
MAX_SAMPLE_ROWS = 20_000
MAX_QUERIES = 500
NEIGHBOURS = 10
_ROUNDING = 1e-6

Stored = Literal["int8", "float16", "float32", "float64"]
Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationError(Answer):
    """What storing an array in another dtype changes.

    Parameters
    ----------
    array : str
        The array.
    dtype : {"int8", "float16", "float32", "float64"}
        What it would be stored as; ``int8`` with a scale per row.
    rows : int
        Rows that were measured.
    max_error : float
        The largest difference of a value.
    relative_error : float
        The mean over rows of the length of the difference, divided by the length of the row.
    min_cosine, mean_cosine : float
        The cosine of a row before and after.
    recall_at_10 : float
        The part of the ten rows nearest to a row, by cosine among those measured, that remain the nearest.
    """

    array: str
    dtype: Stored
    rows: int
    max_error: float
    relative_error: float
    min_cosine: float
    mean_cosine: float
    recall_at_10: float


def quantization_error(
    store: Source, array: str | None = None, *, dtype: Stored = "int8", rows: int | None = None, seed: int = 0
) -> QuantizationError:
    """Measure what storing an array in fewer bytes would change, on rows drawn at random.

    Parameters
    ----------
    store : Store or xarray.Dataset
        The store.
    array : str, optional
        The array; may be left out if there is only one.
    dtype : {"int8", "float16", "float32", "float64"}
        What it would be stored as; ``int8`` with a scale per row, as ``Writer(dtypes=…)`` does.
    rows : int, optional
        Rows to draw; by default those of 64 MiB, at most 20,000.
    seed : int
        Random seed.

    Returns
    -------
    QuantizationError
        The measures; of no rows, all are as of an exact copy.

    Raises
    ------
    InvalidInputError
        If a value cannot be stored as `dtype`; it names the row.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> found = zarrow.analysis.quantization_error(zarrow.testing.example_store(), "query_embed")
    >>> found.rows, found.min_cosine > 0.999
    (5000, True)
    """
    require_choice("dtype", dtype, Stored)
    source, _ = source_of(store)
    chosen = choose_array(source, array)
    most = rows or min(rows_of(SAMPLE_BYTES, 4 * width_of(chosen)), MAX_SAMPLE_ROWS)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(source.num_rows, min(most, source.num_rows), replace=False))
    before = chosen.take(drawn).reshape(len(drawn), width_of(chosen))
    after = _converted(before, dtype, chosen.name, drawn)
    before, after = before.astype(np.float32, copy=False), after.astype(np.float32, copy=False)
    difference = before - after
    lengths = _lengths(before)
    cosines = np.einsum("ij,ij->i", _units(before), _units(after))
    cosines[(lengths == 0) & (_lengths(after) == 0)] = 1
    queries = rng.permutation(len(drawn))[:MAX_QUERIES]
    return QuantizationError(
        array=chosen.name,
        dtype=dtype,
        rows=len(drawn),
        max_error=float(np.abs(difference).max(initial=0)),
        relative_error=_mean(_lengths(difference) / np.where(lengths > 0, lengths, 1), 0),
        min_cosine=float(cosines.min(initial=1)),
        mean_cosine=_mean(cosines, 1),
        recall_at_10=_recall(before, after, queries),
    )


def _converted(values: npt.NDArray[Any], dtype: Stored, name: str, rows: npt.NDArray[np.int64]) -> Any:
    if values.dtype.kind != "f":
        raise InvalidInputError(f"array {name!r}: only floats are quantized, got {values.dtype}")
    if dtype == QUANTIZED:
        try:
            return dequantize(*quantize(values))
        except BatchError:
            bad = ~(np.abs(values).max(axis=1) <= np.finfo(np.float32).max)
            raise InvalidInputError(
                f"array {name!r}: row {rows[int(np.argmax(bad))]} has a NaN, an infinity, or a value beyond "
                f"float32, which {QUANTIZED} cannot hold: leave such rows out, or keep {values.dtype}"
            ) from None
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _lengths(values: Float) -> Float:
    return np.asarray(np.linalg.norm(values, axis=1))


def _units(values: Float) -> Float:
    lengths = _lengths(values)
    return np.asarray(values / np.where(lengths > 0, lengths, 1)[:, None])


def _mean(values: npt.NDArray[Any], of_none: float) -> float:
    return float(values.mean()) if len(values) else of_none


def _recall(before: Float, after: Float, queries: npt.NDArray[np.int64]) -> float:
    """Return the part of each query's nearest rows that stay among them."""
    k = min(NEIGHBOURS, len(before) - 1)
    if k < 1:
        return 1.0
    known, found = (_cosines(values, queries) for values in (before, after))
    nearest = np.argpartition(-found, k - 1, axis=1)[:, :k]
    least = -np.partition(-known, k - 1, axis=1)[:, k - 1 : k]
    # Of rows that are equally near, such as repeated ones, any is right.
    return float((np.take_along_axis(known, nearest, axis=1) >= least - _ROUNDING).mean())


def _cosines(values: Float, queries: npt.NDArray[np.int64]) -> Float:
    units = _units(values)
    scores = units[queries] @ units.T
    scores[np.arange(len(queries)), queries] = -np.inf  # itself
    return np.asarray(scores)
