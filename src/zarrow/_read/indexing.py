"""Indexing — rows of an array, indexed as numpy's arrays are, and read by whatever holds them.

`Indexed` turns an index into the rows that it needs, has them read, and lets numpy do the rest, so that every
index that numpy takes gives what numpy gives. `IndexedRagged` is the same for rows of any number of vectors,
which are indexed by rows only. Pure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from zarrow._format.given import as_index
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    from zarrow._format.ragged import Ragged

__all__ = ["Check", "Indexed", "IndexedRagged", "check_option", "row_numbers"]

Check = Literal["crc"] | None


class Indexed(ABC):
    """Rows that can be indexed: the first axis of an array that is not in memory."""

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """The data type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of one row."""
        return (len(self), *self.row_shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return 1 + len(self.row_shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return len(self) * int(np.prod(self.row_shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, uncompressed."""
        return self.size * self.dtype.itemsize

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(
        self, start: int, stop: int, *, out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return consecutive rows."""

    @abstractmethod
    def _take(
        self, rows: npt.NDArray[Any], out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return rows that are in range, in the order given."""

    def _is_one_piece(self) -> bool:
        """Tell whether reading all rows costs nothing, because they are mapped as one array."""
        return False

    def __getitem__(self, key: Any) -> Any:
        if type(key) is tuple:
            return self._index(key)
        key = as_index(key)
        if isinstance(key, slice):
            return self._slice(key)
        if type(key) is int:
            row = self._in_range(key)
            return np.asarray(self.read(row, row + 1)[0])
        if isinstance(key, np.ndarray) and key.ndim == 1:
            return self._take(self._row_numbers(key))
        return self._index((key,))

    def _slice(self, rows: slice) -> npt.NDArray[Any]:
        start, stop, step = rows.indices(len(self))
        if step == 1:
            return self.read(start, max(start, stop))
        if self._is_one_piece():
            return np.asarray(self.read(0, len(self))[rows])
        return self._take(np.arange(start, stop, step))

    def _index(self, keys: tuple[Any, ...]) -> Any:
        """Index as numpy does: the rows are read, and numpy indexes them, which then are all there is."""
        keys = tuple(map(as_index, keys))
        if any(np.ndim(key) == 0 and np.asarray(key).dtype.kind not in "iO" for key in keys):
            raise IndexError(
                "only integers, slices (`:`), ellipsis (`...`), None and integer or boolean arrays are valid "
                f"indices, got {keys!r}"
            )
        masks = {place: key for place, key in enumerate(keys) if getattr(key, "dtype", None) == np.bool_}
        used = sum(masks[place].ndim if place in masks else key is not None for place, key in enumerate(keys))
        used -= sum(key is Ellipsis for key in keys)
        if used > self.ndim:
            raise IndexError(
                f"too many indices for array: array is {self.ndim}-dimensional, but {used} were indexed"
            )
        passed = (None, Ellipsis) if used == self.ndim else (None,)  # then an ellipsis stands for no axis
        first = next((place for place, key in enumerate(keys) if not any(key is one for one in passed)), None)
        if first is None or keys[first] is Ellipsis:
            return self.read(0, len(self))[keys]
        rows = keys[first]
        if isinstance(rows, slice):
            return self._slice(rows)[(*keys[:first], slice(None), *keys[first + 1 :])]
        if isinstance(rows, int):
            row = self._in_range(rows)
            return self.read(row, row + 1)[(*keys[:first], 0, *keys[first + 1 :])]
        within: list[Any] = []
        if rows.dtype == np.bool_:
            if rows.shape != self.shape[: rows.ndim]:
                raise IndexError(
                    f"boolean index did not match indexed array; its shape is {rows.shape}, the array's "
                    f"{self.shape}"
                )
            rows, *within = rows.nonzero()
        numbers = self._row_numbers(rows.reshape(-1))
        places = np.arange(len(numbers)).reshape(rows.shape)
        return self._take(numbers)[(*keys[:first], places, *within, *keys[first + 1 :])]

    def take(
        self, rows: npt.ArrayLike, *, out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return these rows, in the order given.

        Parameters
        ----------
        rows : int or bool array, shape (n,) or (rows,)
            Row numbers, negative ones counted from the end, or a mask.
        out : array, shape (n, *row_shape), optional
            Where to put them.
        check : {"crc"}, optional
            As in `read`.

        Returns
        -------
        array, shape (n, *row_shape)
            `out`, or a new one.

        Raises
        ------
        IndexError
            If a row is out of range.
        CorruptionError
            If a file or a checked chunk of theirs is damaged; other rows stay readable.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store()["query_embed"].take([4000, 7, 7]).shape
        (3, 8)
        """
        check_option(check)
        numbers = self._row_numbers(rows)
        if out is not None:
            self._check_out(out, len(numbers))
        return self._take(numbers, out, check)

    def _in_range(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"index {row} is out of bounds for axis 0 with size {len(self)}")
        return row + len(self) if row < 0 else row

    def _row_numbers(self, rows: Any) -> npt.NDArray[np.int64]:
        return row_numbers(rows, len(self))

    def _check_out(self, out: npt.NDArray[Any], count: int) -> None:
        shape = (count, *self.row_shape)
        if out.shape != shape or out.dtype != self.dtype:
            raise InvalidInputError(
                f"out must be an array of shape {shape} and dtype {self.dtype}, "
                f"got {out.shape} and {out.dtype}"
            )


class IndexedRagged(ABC):
    """Rows of any number of vectors that can be indexed, by rows: the vectors are not in memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name."""

    @property
    @abstractmethod
    def vector_shape(self) -> tuple[int, ...]:
        """The shape of one vector."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """The data type."""

    @property
    @abstractmethod
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of vectors of each row, int64, shape (rows,)."""

    @property
    @abstractmethod
    def num_vectors(self) -> int:
        """The number of vectors of all rows."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """None: what needs rows of one shape raises this `InvalidInputError`."""
        raise InvalidInputError(
            f"array {self.name!r} has any number of vectors per row, and this needs one: pool them first, as "
            f"zarrow.analysis.pool(store, {self.name!r}) does, and name the array that it makes"
        )

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Rows, None for any number of vectors, then the shape of one vector."""
        return (len(self), None, *self.vector_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors, uncompressed."""
        return self.num_vectors * int(np.prod(self.vector_shape)) * self.dtype.itemsize

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, start: int, stop: int, *, check: Check = None) -> Ragged:
        """Return consecutive rows."""

    @abstractmethod
    def _row(self, row: int) -> npt.NDArray[Any]:
        """Return the vectors of a row that is in range."""

    @abstractmethod
    def _take(self, rows: npt.NDArray[np.int64], check: Check = None) -> Ragged:
        """Return rows that are in range, in the order given."""

    def __array__(self, *_: Any, **__: Any) -> npt.NDArray[Any]:
        raise TypeError(
            f"array {self.name!r} has rows of different lengths: index it, and take .values or to_padded()"
        )

    def __getitem__(self, rows: Any) -> Any:
        rows = as_index(rows)
        if type(rows) is int:
            count = len(self)
            if not -count <= rows < count:
                raise IndexError(f"index {rows} is out of bounds for axis 0 with size {count}")
            return self._row(rows + count if rows < 0 else rows)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self.read(start, max(start, stop))
        return self.take(rows)

    def take(self, rows: npt.ArrayLike, *, check: Check = None) -> Ragged:
        """Return these rows, in the order given.

        Parameters
        ----------
        rows : int or bool array, shape (n,) or (rows,)
            Row numbers, negative ones counted from the end, or a mask.
        check : {"crc"}, optional
            As in `read`.

        Returns
        -------
        Ragged
            Of n rows.

        Raises
        ------
        IndexError
            If a row is out of range.
        CorruptionError
            If a file or a checked chunk of theirs is damaged; other rows stay readable.
        """
        check_option(check)
        return self._take(row_numbers(rows, len(self)), check)


def row_numbers(rows: Any, count: int) -> npt.NDArray[np.int64]:
    """Return row numbers in 0..count-1 from row numbers or a mask, by numpy's rules.

    >>> row_numbers([-1, 0], 5), row_numbers([True, False, True], 3), row_numbers(slice(1, 3), 5)
    (array([4, 0]), array([0, 2]), array([1, 2]))
    """
    if type(rows) is np.ndarray and rows.dtype == np.int64 and rows.ndim == 1 and len(rows):
        # As is mostly the case. As unsigned numbers, negative ones are out of range, too.
        largest = int(np.maximum.reduce(rows.view(np.uint64)))
        if largest < count:
            return rows
    given: Any = as_index(rows)
    if isinstance(given, slice):
        start, stop, step = given.indices(count)
        return np.arange(start, stop, step)
    if np.ndim(given) != 1:
        raise IndexError(
            f"rows must be a slice, a 1-D array of row numbers or a mask, got {rows!r}"
            + (f" of shape {given.shape}" if hasattr(given, "shape") else "")
        )
    if given.dtype == np.bool_:
        if len(given) != count:
            raise IndexError(
                f"boolean index did not match indexed array along axis 0; size of axis is {count} "
                f"but size of corresponding boolean axis is {len(given)}"
            )
        return np.flatnonzero(given)
    if not len(given):
        return np.empty(0, np.int64)
    if given.dtype.kind not in "iu":
        raise IndexError(f"rows must be integers or a boolean mask, got dtype {given.dtype}")
    low, high = int(given.min()), int(given.max())
    if low < -count or high >= count:
        bad = low if low < -count else high
        raise IndexError(f"index {bad} is out of bounds for axis 0 with size {count}")
    numbers: npt.NDArray[np.int64] = given.astype(np.int64, copy=False)
    return np.where(numbers < 0, numbers + count, numbers) if low < 0 else numbers


def check_option(check: object) -> None:
    if check not in (None, "crc"):
        raise InvalidInputError(f"check must be None or 'crc', got {check!r}")
