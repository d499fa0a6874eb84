"""Quantized vectors — floats as 8-bit integers, with a scale per row.

A row's scale is its largest magnitude divided by 127, as float32; each of its values is stored as the
nearest integer multiple of the scale, and read as integer times scale in float32. So no value is off by more
than half the scale, and a row of zeros, whose scale is 0, is exact. What is not finite, or too large for
float32, has no such multiple and is refused.

Pure; blocks of rows stay within a processor's cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow.errors import BatchError

__all__ = ["QUANTIZED", "dequantize", "quantize", "scale_column"]

QUANTIZED = "int8"
"""The only dtype that arrays are quantized to."""

STEPS = 127
"""Multiples of the scale on each side of 0."""

LARGEST = float(np.finfo(np.float32).max)
LARGEST_SCALE = float(np.nextafter(np.float32(LARGEST) / np.float32(STEPS), np.float32(0)))
"""The largest scale of which 127 are finite."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Smaller ones are too coarse themselves."""
_BLOCK_VALUES = 1 << 17


def scale_column(array: str) -> str:
    """Return the name of the column with the scales of an array's rows."""
    return f"{array}_scale"


def quantize(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return rows of floats as integers, and the scale of each row.

    Parameters
    ----------
    rows : float array, shape (rows, *row_shape)
        The vectors.

    Returns
    -------
    integers : int8 array, shape (rows, *row_shape)
        From −127 to 127.
    scales : float32 array, shape (rows,)
        Finite, and 0 where all values of a row are.

    Raises
    ------
    BatchError
        If a value is not finite or beyond float32; it names the row.

    Examples
    --------
    >>> integers, scales = quantize(np.array([[0.5, -1.27], [0, 0]]))
    >>> integers
    array([[  50, -127],
           [   0,    0]], dtype=int8)
    >>> scales
    array([0.01, 0.  ], dtype=float32)
    """
    width = math.prod(rows.shape[1:])
    flat = rows.reshape(len(rows), width)
    integers = np.empty(flat.shape, np.int8)
    scales = np.empty(len(flat), np.float32)
    step = max(_BLOCK_VALUES // width, 1)
    for start in range(0, len(flat), step):
        block = flat[start : start + step]
        if block.dtype == np.float16:
            block = block.astype(np.float32)
        most = np.maximum(block.max(axis=1), -block.min(axis=1))
        fits = most <= LARGEST  # false for NaN
        if not fits.all():
            place = int(np.argmin(fits))
            bad = block[place][~(np.abs(block[place]) <= LARGEST)][0]
            raise BatchError(
                f"row {start + place} of the batch has {bad}, which cannot be quantized to {QUANTIZED}: "
                "leave the row out, or store the array as float32 or float64"
            )
        scale = np.clip((most / STEPS).astype(np.float32), SMALLEST_SCALE, LARGEST_SCALE)
        nearest = block / scale[:, None]
        np.rint(nearest, out=nearest)
        np.copyto(integers[start : start + step], nearest, casting="unsafe")
        scales[start : start + step] = np.where(most > 0, scale, 0)
    return integers.reshape(rows.shape), scales


def dequantize(
    integers: npt.NDArray[Any], scales: npt.NDArray[np.float32], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.float32]:
    """Return the values that quantized rows stand for.

    Parameters
    ----------
    integers : int8 array, shape (rows, *row_shape)
        The stored integers.
    scales : float32 array, shape (rows,)
        The scale of each row.
    out : float array, shape (rows, *row_shape), optional
        Where to put them; what float32 rounds them to, in a wider dtype too.

    Returns
    -------
    float32 array, shape (rows, *row_shape)
        `out`, or a new one.

    Examples
    --------
    >>> dequantize(np.array([[50, -127]], np.int8), np.array([0.01], np.float32))
    array([[ 0.5 , -1.27]], dtype=float32)
    """
    by_row = scales.reshape(-1, *[1] * (integers.ndim - 1))
    found: npt.NDArray[np.float32] = np.multiply(integers, by_row, out=out, dtype=np.float32)
    return found
