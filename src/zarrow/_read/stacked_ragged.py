"""Stacked ragged arrays — one ragged array of several stores, their rows one behind the other.

`UnionRagged` finds out in which stores the rows lie that are asked for, and puts what these return one behind
the other. Reads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.ragged import Ragged
from zarrow._read.indexing import Check, IndexedRagged, check_option
from zarrow._read.ragged_rows import StoreRagged

__all__ = ["UnionRagged"]


class UnionRagged(IndexedRagged):
    """One ragged array of several stores, their rows one behind the other, read as it is indexed.

    A number gives that row's vectors, shape ``(count, *vector_shape)``; a slice, an array of row numbers or a
    mask gives a `zarrow.Ragged`.

    Parameters
    ----------
    parts : list of StoreRagged
        The array of each store.

    Examples
    --------
    >>> import tempfile, numpy as np, zarrow
    >>> path = tempfile.mkdtemp() + "/tokens.zarrow"
    >>> with zarrow.Writer(path) as writer:
    ...     writer.append(None, {"t": zarrow.Ragged(np.ones((3, 4), "float32"), [2, 1])})
    ...     _ = writer.finalize()
    >>> array = zarrow.union({"a": zarrow.open(path), "b": zarrow.open(path)})["t"]
    >>> array.counts, array[2].shape, array[[3, 0]]
    (array([2, 1, 2, 1]), (2, 4), <zarrow.Ragged: 2 rows, 3 vectors (4,) float32>)
    """

    def __init__(self, parts: Sequence[StoreRagged]) -> None:
        self._parts = list(parts)
        self._starts: list[int] = np.cumsum([0, *map(len, parts)]).tolist()

    @property
    def name(self) -> str:
        """Its name."""
        return self._parts[0].name

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """The shape of one vector."""
        return self._parts[0].vector_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type."""
        return self._parts[0].dtype

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of vectors of each row, int64, shape (rows,)."""
        return np.concatenate([part.counts for part in self._parts])

    @property
    def num_vectors(self) -> int:
        """The number of vectors of all rows."""
        return sum(part.num_vectors for part in self._parts)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the committed rows take on disk, with what says where each row's vectors lie."""
        return sum(part.stored_bytes for part in self._parts)

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        rows = f"{len(self):,} rows of {self.vector_shape}"
        return f"<zarrow.UnionRagged {self.name!r} {rows} {self.dtype.name}>"

    def read(self, start: int, stop: int, *, check: Check = None) -> Ragged:
        """Return consecutive rows.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``, in 0..len.
        check : {"crc"}, optional
            As in `StoreRagged.read`.

        Returns
        -------
        Ragged
            Without a copy if the rows are of one store, and `StoreRagged.read` needs none.

        Raises
        ------
        IndexError, CorruptionError
            As from `StoreRagged.read`.
        """
        check_option(check)
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} are out of bounds for {len(self)} rows")
        pieces = [part.read(low, high, check=check) for part, low, high in self._between(start, stop)]
        return _joined(pieces) if pieces else self._parts[0].read(0, 0)

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the kernel that rows will be needed soon.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``; those out of range are ignored.
        """
        for part, low, high in self._between(max(start, 0), min(stop, len(self))):
            part.prefetch(low, high)

    def release(self) -> None:
        """Tell the kernel that the memory of rows that were read can be used for something else."""
        for part in self._parts:
            part.release()

    def _row(self, row: int) -> npt.NDArray[Any]:
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        found: npt.NDArray[Any] = self._parts[number][row - self._starts[number]]
        return found

    def _take(self, rows: npt.NDArray[np.int64], check: Check = None) -> Ragged:
        owners = np.searchsorted(self._starts, rows, "right") - 1
        places, pieces = [], []
        for number in np.unique(owners).tolist():
            places.append(np.flatnonzero(owners == number))
            here = rows[places[-1]] - self._starts[number]
            pieces.append(self._parts[number].take(here, check=check))
        if len(pieces) < 2:
            return pieces[0] if pieces else self._parts[0].read(0, 0)
        found: Ragged = _joined(pieces)[np.argsort(np.concatenate(places))]
        return found

    def _between(self, start: int, stop: int) -> list[tuple[StoreRagged, int, int]]:
        """Return the arrays that have rows of a range, and which rows of theirs."""
        spans = [
            (part, max(start - first, 0), min(stop - first, len(part)))
            for part, first in zip(self._parts, self._starts, strict=False)
        ]
        return [(part, low, high) for part, low, high in spans if high > low]


def _joined(pieces: Sequence[Ragged]) -> Ragged:
    """Return the rows of several, one behind the other."""
    if len(pieces) == 1:
        return pieces[0]
    values = np.concatenate([piece.values for piece in pieces])
    return Ragged(values, np.concatenate([piece.counts for piece in pieces]))
