"""Quantized vectors — how near integers and a scale per row come to the floats, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zarrow._format.quantized import dequantize, quantize
from zarrow.errors import BatchError

LARGEST = float(np.finfo(np.float32).max)


@st.composite
def rows_of_floats(draw: st.DrawFn) -> np.ndarray:
    """Rows of any size and magnitude, zeros and subnormal numbers among them."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    bound = float(np.finfo(np.float16).max) if dtype == np.float16 else LARGEST
    shape = draw(st.sampled_from([(0, 3), (1, 1), (5, 4), (3, 2, 3), (2, 8192)]))
    kind = np.dtype(dtype)
    floats = st.floats(-bound, bound, width=kind.itemsize * 8)
    return draw(hnp.arrays(kind, shape, elements=floats, fill=st.just(0.0)))


@given(rows=rows_of_floats())
def test_no_value_is_off_by_more_than_half_a_step(rows: np.ndarray) -> None:
    """Every value comes back within half its row's scale, finite, and a row of zeros exactly."""
    integers, scales = quantize(rows)
    found = dequantize(integers, scales)
    assert (integers.dtype, scales.dtype, found.dtype) == (np.int8, np.float32, np.float32)
    assert np.isfinite(found).all()
    by_row = scales.astype(np.float64).reshape(-1, *[1] * (rows.ndim - 1))
    magnitude = np.abs(rows.astype(np.float64))
    off = np.abs(found.astype(np.float64) - rows.astype(np.float64))
    assert (off <= by_row * 0.5 + magnitude * 1e-6).all()
    zero = ~rows.any(axis=tuple(range(1, rows.ndim)))
    assert not scales[zero].any()
    assert not found[zero].any()
    assert (scales[~zero] > 0).all()


@given(rows=rows_of_floats())
def test_what_was_quantized_stays_as_it_is(rows: np.ndarray) -> None:
    """The integers of values that were quantized before are the same again."""
    integers, scales = quantize(rows)
    np.testing.assert_array_equal(quantize(dequantize(integers, scales))[0], integers)


def test_the_largest_float_is_finite_again() -> None:
    """Neither end of float32's range overflows."""
    rows = np.array([[LARGEST, -LARGEST], [1e-45, -1e-45]], np.float32)
    found = dequantize(*quantize(rows))
    assert np.isfinite(found).all()
    assert abs(found[0, 0] / LARGEST - 1) < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_has_no_step_is_refused_by_row(bad: float) -> None:
    """A NaN, an infinity, and a number beyond float32 are refused, with their row."""
    rows = np.ones((70_000, 4))
    rows[66_000, 2] = bad
    with pytest.raises(BatchError, match=f"row 66000 of the batch has {bad!r}".replace("+", r"\+")):
        quantize(rows)
