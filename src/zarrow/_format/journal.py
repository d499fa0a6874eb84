"""Journal — the bytes of an open segment's journal, read in blocks.

A journal that only pretends to be large, with holes or a damaged end, takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from zarrow._format.checksum import combine, crc32c, crc32c_of_zeros

__all__ = ["Journal"]

_ALIGNMENT = 8
_BLOCK_BYTES = 1 << 20


class Journal:
    """The bytes of a journal, read in blocks.

    Parameters
    ----------
    read : callable of (int, int) to bytes-like
        Takes an offset and a size, and returns those bytes of the file, fewer at its end.
    size_bytes : int
        How many bytes it has.
    next_data : callable of int to int, optional
        Returns where, from an offset on, bytes begin that may differ from zero.
    """

    __slots__ = ("_next_data", "_read", "_window", "size_bytes")

    def __init__(
        self,
        read: Callable[[int, int], bytes | memoryview],
        size_bytes: int,
        next_data: Callable[[int], int] = int,
    ) -> None:
        self.size_bytes = size_bytes
        self._read = read
        self._next_data = next_data
        self._window = (0, memoryview(b""))

    @classmethod
    def of(cls, data: bytes) -> Journal:
        """Return a journal of these bytes."""
        view = memoryview(data)
        return cls(lambda offset, size_bytes: view[offset : offset + size_bytes], len(view))

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return bytes; fewer at the end."""
        size_bytes = max(min(size_bytes, self.size_bytes - offset), 0)
        start, block = self._window
        if not start <= offset <= offset + size_bytes <= start + len(block):
            ahead = min(max(size_bytes, _BLOCK_BYTES), self.size_bytes - offset)
            start, block = self._window = offset, memoryview(self._read(offset, ahead))
        return block[offset - start :][:size_bytes]

    def blocks(self, offset: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the blocks from `offset` to `stop`, each with its offset, without those of zeros only."""
        while (offset := max(offset, self._next_data(offset) // _ALIGNMENT * _ALIGNMENT)) < stop:
            yield offset, self.view(offset, min(_BLOCK_BYTES, stop - offset))
            offset += _BLOCK_BYTES

    def crc32c(self, offset: int, stop: int) -> int:
        """Return the crc32c of the bytes from `offset` to `stop`."""
        checksum = 0
        for start, block in self.blocks(offset, stop):
            checksum = _then_zeros(checksum, start - offset)
            checksum = crc32c(np.frombuffer(block, np.uint8), checksum)
            offset = start + len(block)
        return _then_zeros(checksum, stop - offset)

    def has_data(self, offset: int) -> bool:
        """Tell whether any byte from `offset` on differs from zero."""
        return any(np.frombuffer(block, np.uint8).any() for _, block in self.blocks(offset, self.size_bytes))


def _then_zeros(checksum: int, size_bytes: int) -> int:
    """Return the crc32c of bytes with this crc32c and zeros behind them."""
    return combine(checksum, crc32c_of_zeros(size_bytes), size_bytes) if size_bytes else checksum
