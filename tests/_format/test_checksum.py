"""Checksums — CRC32C, and joining the CRCs of adjacent pieces."""

import os

import google_crc32c
import numpy as np
import pytest

from zarrow._format.checksum import combine, crc32c, crc32c_of_zeros


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0), (1, 1), (3, 4096), (100_003, 7), (7, 1 << 20)])
def test_two_pieces_sum_to_their_whole(sizes: tuple[int, int]) -> None:
    """The checksum of two joined pieces follows from theirs."""
    first, second = os.urandom(sizes[0]), os.urandom(sizes[1])
    whole = google_crc32c.value(first + second)
    assert combine(crc32c(first), crc32c(second), len(second)) == whole
    assert crc32c(second, crc32c(first)) == whole


def test_a_piece_whose_checksum_is_zero_still_counts() -> None:
    """A piece whose checksum happens to be 0 is not treated as empty."""
    rng = np.random.default_rng(1)
    prefix = rng.bytes(8)
    # Four bytes can always be chosen so that the sum of all becomes 0: crc32c is affine in them.
    base = crc32c(prefix + bytes(4))
    columns = [crc32c(prefix + (1 << bit).to_bytes(4, "little")) ^ base for bit in range(32)]
    suffix = _solve(columns, base)
    message = prefix + suffix.to_bytes(4, "little")
    assert crc32c(message) == 0
    assert combine(crc32c(message), crc32c(b"abc"), 3) == crc32c(message + b"abc")


def _solve(columns: list[int], target: int) -> int:
    """Return the bits whose columns add up to `target` over GF(2)."""
    rows = [(column, 1 << bit) for bit, column in enumerate(columns)]
    solution = 0
    for bit in range(32):
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        if pivot is None:
            continue
        rows = [
            (row[0] ^ pivot[0], row[1] ^ pivot[1]) if row is not pivot and row[0] >> bit & 1 else row
            for row in rows
            if row is not pivot
        ]
        if target >> bit & 1:
            target ^= pivot[0]
            solution ^= pivot[1]
    assert not target
    return solution


def test_zeros_sum_as_zeros() -> None:
    """Zeros can be summed without being in memory."""
    for size in (0, 1, 17, 4096, 100_000):
        assert crc32c_of_zeros(size) == google_crc32c.value(bytes(size))
