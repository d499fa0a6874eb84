"""Quantized array — integers and a scale per row, read as the floats that they stand for.

`QuantizedArray` is a `StoreArray` of float32. Its integers are read as those of any array, and its scales
from their column, a segment at a time when rows of it are first needed; they are kept, 4 bytes a row. Reads
only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import ArraySpec
from zarrow._format.quantized import dequantize
from zarrow._read.arrays import StoreArray
from zarrow._read.columns import NarrowColumns
from zarrow._read.indexing import Check, check_option
from zarrow._read.view import View

__all__ = ["QuantizedArray"]


class QuantizedArray(StoreArray):
    """A quantized array, read as float32: each integer times the scale of its row.

    `stored` has the integers. Nothing is read without a copy.

    Examples
    --------
    >>> import numpy as np, tempfile, zarrow
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> with zarrow.Writer(path, dtypes={"embed": "int8"}) as writer:
    ...     writer.append({"id": [7]}, {"embed": np.array([[0.5, -1.27]])})
    ...     writer.finalize()
    >>> array = zarrow.open(path)["embed"]
    >>> array[0], array.stored[0], array.scales
    (array([ 0.5 , -1.27], dtype=float32), array([  50, -127], dtype=int8), array([0.01], dtype=float32))
    """

    def __init__(
        self,
        view: View,
        array: ArraySpec,
        reopen: tuple[Callable[..., Any], tuple[Any, ...]],
        columns: NarrowColumns,
    ) -> None:
        super().__init__(view, array, reopen)
        self._stored = _StoredIntegers(self, view, array, reopen)
        self._scales = _Scales(columns, self.scale, view)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type of the values that are read."""
        return np.dtype(np.float32)

    @property
    def is_plain(self) -> bool:
        """Whether rows are read without a copy: never."""
        return False

    @property
    def stored(self) -> StoreArray:
        """The integers as they are stored, int8, shape (rows, *row_shape)."""
        return self._stored

    @property
    def scale(self) -> str:
        """The column of the scales."""
        return str(self._array.scale)

    @property
    def scales(self) -> npt.NDArray[np.float32]:
        """The scale of each row, float32, shape (rows,)."""
        return self._scales.between(0, len(self)).copy()

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + f", quantized to {self._array.dtype}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError(f"array {self.name!r} is quantized and cannot be returned without a copy")
        return np.asarray(self.read(0, len(self)), dtype)

    def read(
        self, start: int, stop: int, *, out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return consecutive rows.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``, in 0..len.
        out : float32 array, shape (stop - start, *row_shape), optional
            Where to put them.
        check : {"crc"}, optional
            As in `StoreArray.read`.

        Returns
        -------
        float32 array, shape (stop - start, *row_shape)
            `out`, or a new one.

        Raises
        ------
        IndexError
            If the rows are out of range.
        CorruptionError
            If a file or a checked chunk of theirs is damaged; other rows stay readable.

        Examples
        --------
        >>> import numpy as np, tempfile, zarrow
        >>> path = tempfile.mkdtemp() + "/run.zarrow"
        >>> with zarrow.Writer(path, dtypes={"embed": "int8"}) as writer:
        ...     writer.append({"id": [7, 8]}, {"embed": np.ones((2, 3))})
        ...     writer.finalize()
        >>> zarrow.open(path)["embed"].read(1, 2)
        array([[1., 1., 1.]], dtype=float32)
        """
        check_option(check)
        if out is not None:
            self._check_out(out, stop - start)
        integers = self._stored.read(start, stop, check=check)
        return dequantize(integers, self._scales.between(start, stop), out)

    def _take(
        self, rows: npt.NDArray[Any], out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        return dequantize(self._stored._take(rows, check=check), self._scales.of(rows), out)

    def read_float64(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return what `read` does as float64, with one copy less.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``, in 0..len.

        Returns
        -------
        float64 array, shape (stop - start, *row_shape)
            The values that `read` returns.

        Examples
        --------
        >>> import numpy as np, tempfile, zarrow
        >>> path = tempfile.mkdtemp() + "/run.zarrow"
        >>> with zarrow.Writer(path, dtypes={"embed": "int8"}) as writer:
        ...     writer.append({"id": [7, 8]}, {"embed": np.ones((2, 3))})
        ...     writer.finalize()
        >>> zarrow.open(path)["embed"].read_float64(1, 2)
        array([[1., 1., 1.]])
        """
        integers = self._stored.read(start, stop)
        found = np.empty(integers.shape)
        dequantize(integers, self._scales.between(start, stop), found)
        return found

    def _extents(self) -> tuple[Any, ...]:
        return self._stored._extents()

    def release(self) -> None:
        """Tell the kernel that the memory of rows that were read can be used for something else.

        Examples
        --------
        >>> import numpy as np, tempfile, zarrow
        >>> path = tempfile.mkdtemp() + "/run.zarrow"
        >>> with zarrow.Writer(path, dtypes={"embed": "int8"}) as writer:
        ...     writer.append({"id": [7, 8]}, {"embed": np.ones((2, 3))})
        ...     writer.finalize()
        >>> zarrow.open(path)["embed"].release()
        """
        self._stored.release()


class _StoredIntegers(StoreArray):
    """The integers of a quantized array, which are pickled with it."""

    def __init__(self, quantized: QuantizedArray, *args: Any) -> None:
        super().__init__(*args)
        self._quantized = quantized

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.attrgetter("stored"), (self._quantized,)


class _Scales:
    """The scales of rows, each segment's read once."""

    def __init__(self, columns: NarrowColumns, name: str, view: View) -> None:
        self._columns, self._name, self._view = columns, name, view
        self._values = np.empty(view.rows, np.float32)
        self._is_read = np.zeros(view.snapshot.segments + 1, bool)  # the last are the live rows

    def between(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        if start < stop:
            first, last = self._pieces(np.array([start, stop - 1])).tolist()
            self._need(np.arange(first, last + 1))
        return self._values[start:stop]

    def of(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if not self._is_read.all():
            self._need(np.flatnonzero(np.bincount(self._pieces(rows))))
        scales: npt.NDArray[np.float32] = self._values[rows]
        return scales

    def _pieces(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the segment of each row, or the number after the last of them."""
        snapshot, full = self._view.snapshot, self._view.spec.segment_rows
        return np.where(rows < snapshot.rows, rows // full, snapshot.segments)

    def _need(self, pieces: npt.NDArray[Any]) -> None:
        snapshot, full = self._view.snapshot, self._view.spec.segment_rows
        for piece in pieces[~self._is_read[pieces]].tolist():
            if piece < snapshot.segments:
                table, row = self._columns.segment(piece, [self._name], keep=False), piece * full
            else:
                table, row = self._columns.live, snapshot.rows
            for chunk in table[self._name].chunks:
                self._values[row : row + len(chunk)] = np.from_dlpack(chunk)  # to_numpy would import pandas
                row += len(chunk)
            self._is_read[piece] = True  # last: another thread may be reading the same
