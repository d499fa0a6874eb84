"""Ragged values — rows of any number of vectors each, such as the tokens of a sentence.

`Ragged` has one array of all vectors, one row's behind the other, and a count per row: CF's contiguous ragged
array in memory. Row ``i`` is ``values[offsets[i]:offsets[i + 1]]``. `vector_lists` turns it into other forms,
and other forms into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import vector_lists
from zarrow._format.given import as_index, dtype_name
from zarrow.errors import InvalidInputError

__all__ = ["Ragged", "RaggedArray", "is_ragged", "ragged"]


class Ragged:
    """Rows of any number of vectors: flat values, and a count per row.

    Indexed by rows: a number gives that row's vectors, a slice, an array of numbers or a mask gives a
    `Ragged`. Nothing is copied but by arrays of numbers and masks. Equal are two with equal counts and equal
    values of one dtype, NaN to NaN.

    Parameters
    ----------
    values : array or tensor, shape (vectors, *vector_shape)
        All vectors, in the order of rows. bfloat16 is widened to float32.
    counts : int array, shape (rows,)
        The number of vectors of each row, 0 or more; they sum to the number of vectors.

    Raises
    ------
    InvalidInputError
        If values or counts break these rules; it names the row.

    Examples
    --------
    >>> import numpy as np, zarrow
    >>> tokens = zarrow.Ragged(np.arange(10, dtype="float32").reshape(5, 2), [2, 0, 3])
    >>> tokens
    <zarrow.Ragged: 3 rows, 5 vectors (2,) float32>
    >>> tokens[0]
    array([[0., 1.],
           [2., 3.]], dtype=float32)
    >>> tokens[[2, 1]].counts, tokens.offsets
    (array([3, 0]), array([0, 2, 2, 5]))
    """

    __slots__ = ("_counts", "_offsets", "_values")
    __hash__ = None  # type: ignore[assignment]  # equal by value, which can change

    def __init__(self, values: Any, counts: Any) -> None:
        self._values = vector_lists.as_vectors(values)
        vectors = len(self._values)
        self._counts = vector_lists.count_per_row(counts, "counts", vectors, "the number of vectors")
        self._offsets = np.zeros(len(self._counts) + 1, np.int64)
        np.cumsum(self._counts, out=self._offsets[1:])
        if self._offsets[-1] != vectors:
            raise InvalidInputError(
                f"counts must sum to the number of vectors, got {len(self._counts)} counts that sum to "
                f"{self._offsets[-1]} and {vectors} vectors"
            )

    @classmethod
    def of(cls, rows: Any, dtype: str = "") -> Ragged:
        """Return rows of vectors in any form that says how many vectors each row has.

        Parameters
        ----------
        rows : Ragged, list of arrays, jagged tensor, awkward array, Arrow or Polars lists
            Arrow's are ``list<fixed_size_list>``, or lists of lists of equal length, also large or chunked;
            Polars' ``List(Array)`` or ``List(List)``.
        dtype : str
            Where ``"float16"``, that is what bfloat16 becomes, if it has the range.

        Returns
        -------
        Ragged
            Shares memory with `rows` where their vectors lie together.

        Raises
        ------
        InvalidInputError
            If they are something else, if a row or value is null, or if vectors differ in shape or dtype.

        Examples
        --------
        >>> Ragged.of(pa.array([[[1, 2], [3, 4]], []], pa.list_(pa.list_(pa.int8(), 2))))
        <zarrow.Ragged: 2 rows, 2 vectors (2,) int8>
        """
        return rows if isinstance(rows, Ragged) else cls(*vector_lists.from_any(rows, dtype))

    @classmethod
    def from_list(cls, rows: Sequence[Any]) -> Ragged:
        """Return the rows of a sequence of arrays.

        Parameters
        ----------
        rows : sequence of array or tensor, shapes (count, *vector_shape)
            One per row, of one vector shape and dtype; ``[]`` is a row without vectors.

        Returns
        -------
        Ragged
            A copy.

        Raises
        ------
        InvalidInputError
            If a row has another vector shape or dtype, or no row says which.

        Examples
        --------
        >>> Ragged.from_list([np.ones((2, 4)), [], np.ones((1, 4))]).counts
        array([2, 0, 1])
        """
        return cls(*vector_lists.from_sequence(rows))

    @classmethod
    def from_padded(cls, padded: Any, *, mask: Any = None, lengths: Any = None) -> Ragged:
        """Return the valid vectors of a padded array; of a tensor on a device, only they are copied from it.

        Parameters
        ----------
        padded : array or tensor, shape (rows, longest, *vector_shape)
            Vectors and padding.
        mask : bool or int array or tensor, shape (rows, longest), optional
            True or 1 where a vector is valid, in any pattern; such as an ``attention_mask``.
        lengths : int array or tensor, shape (rows,), optional
            Numbers of valid vectors, which come first in their rows. Either this or `mask`.

        Returns
        -------
        Ragged
            A copy of the valid vectors, in order.

        Raises
        ------
        InvalidInputError
            If the mask has another shape or another value, or a length is no integer from 0 to `longest`.

        Examples
        --------
        >>> padded = np.arange(6.0).reshape(2, 3, 1)
        >>> Ragged.from_padded(padded, mask=[[0, 1, 1], [1, 0, 1]]).to_list()
        [array([[1.], [2.]]), array([[3.], [5.]])]
        """
        return cls(*vector_lists.from_padded(padded, mask, lengths))

    @property
    def values(self) -> npt.NDArray[Any]:
        """All vectors, shape (vectors, *vector_shape)."""
        return self._values

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of vectors of each row, int64, shape (rows,)."""
        return self._counts

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """The first vector of each row, and the end of the last, int64, shape (rows + 1,)."""
        return self._offsets

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """The shape of one vector."""
        return tuple(self._values.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The vectors' dtype."""
        return self._values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of values and counts."""
        return int(self._values.nbytes + self._counts.nbytes)

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, rows: int) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, rows: Any) -> Any: ...
    def __getitem__(self, rows: Any) -> Any:
        rows = as_index(rows)
        offsets = self._offsets
        if type(rows) is int:
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} is not one of the {len(self)} rows")
            row = rows % len(self)
            return self._values[offsets[row] : offsets[row + 1]]
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            stop = max(start, stop)
            return Ragged(self._values[offsets[start] : offsets[stop]], self._counts[start:stop])
        numbers = np.arange(len(self))[rows]
        if numbers.ndim != 1:
            raise IndexError(f"rows are one number, a slice, an array of numbers or a mask, got {rows!r}")
        counts = self._counts[numbers]
        ends = np.cumsum(counts)
        # Of each vector taken: its place among them, moved by what lies between its row here and there.
        vectors = np.arange(counts.sum()) + np.repeat(offsets[numbers] - (ends - counts), counts)
        return Ragged(self._values.take(vectors, axis=0), counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ragged):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and np.array_equal(self._counts, other._counts)
            and np.array_equal(self._values, other._values, equal_nan=self.dtype.kind == "f")
        )

    def __array__(self, *_: Any, **__: Any) -> npt.NDArray[Any]:
        raise TypeError("rows of different lengths are no array: take .values, or to_padded()")

    def __repr__(self) -> str:
        rows, vectors = len(self), len(self._values)
        return (
            f"<zarrow.Ragged: {rows:,} row{'s' * (rows != 1)}, {vectors:,} vector{'s' * (vectors != 1)} "
            f"{self.vector_shape} {self.dtype}>"
        )

    def to_list(self) -> list[npt.NDArray[Any]]:
        """Return one array per row.

        Returns
        -------
        list of array, shapes (count, *vector_shape)
            Views of `values`.

        Examples
        --------
        >>> Ragged(np.ones((1, 2)), [0, 1]).to_list()
        [array([], shape=(0, 2), dtype=float64), array([[1., 1.]])]
        """
        return list(self)

    def to_padded(self, fill: Any = 0, *, return_mask: bool = False) -> Any:
        """Return the rows as one array, each padded to the longest.

        Parameters
        ----------
        fill : number
            The value of the padding.
        return_mask : bool
            Whether to return where the vectors are, too.

        Returns
        -------
        padded : array, shape (rows, longest, *vector_shape)
            The vectors of each row, then padding.
        mask : bool array, shape (rows, longest)
            True where there is a vector. Only with `return_mask`.

        Examples
        --------
        >>> Ragged(np.array([[1], [2], [3]]), [1, 2]).to_padded(-1)[:, :, 0]
        array([[ 1, -1],
               [ 2,  3]])
        """
        longest = int(self._counts.max(initial=0))
        padded = np.full((len(self), longest, *self.vector_shape), fill, self.dtype)
        mask = np.arange(longest) < self._counts[:, None]
        padded[mask] = self._values
        return (padded, mask) if return_mask else padded

    def to_torch(self) -> Any:
        """Return the rows as a nested tensor of torch.

        Returns
        -------
        torch.Tensor, shape (rows, any, *vector_shape), layout torch.jagged
            Over the memory of `values`, which is copied if it is read-only.

        Raises
        ------
        MissingExtraError
            If torch is not installed.

        Examples
        --------
        >>> Ragged(np.ones((3, 2), np.float16), [1, 2]).to_torch().unbind()[1].shape
        torch.Size([2, 2])
        """
        return vector_lists.to_torch(self._values, self._offsets)

    def to_awkward(self) -> Any:
        """Return the rows as an awkward array.

        Returns
        -------
        ak.Array, type rows * var * *vector_shape * dtype
            Over the memory of `values`.

        Raises
        ------
        MissingExtraError
            If awkward is not installed.

        Examples
        --------
        >>> print(Ragged(np.ones((3, 2), np.float16), [1, 2]).to_awkward().type)
        2 * var * 2 * float16
        """
        return vector_lists.to_awkward(self._values, self._counts)

    def to_arrow(self) -> pa.Array:
        """Return the rows as Arrow lists of fixed-size lists.

        Returns
        -------
        pyarrow.ListArray of pyarrow.FixedSizeListArray
            Over the memory of `values`, unless they are booleans; a ``LargeListArray`` if there are more
            than 2**31 - 1 vectors.

        Examples
        --------
        >>> Ragged(np.ones((3, 2), np.float16), [1, 2]).to_arrow().type
        ListType(list<item: fixed_size_list<item: halffloat>[2]>)
        """
        return vector_lists.to_arrow(self._values, self._offsets)


@dataclass(frozen=True, slots=True)
class RaggedArray:
    """The declaration of a ragged array, which `ragged` returns.

    Parameters
    ----------
    vector_shape : tuple of int
        The shape of one vector.
    dtype : str
        The dtype of the vectors.
    """

    vector_shape: tuple[int, ...]
    dtype: str


def ragged(vector_shape: int | Sequence[int], dtype: Any) -> RaggedArray:
    """Declare an array whose rows have any number of vectors, for ``Writer(arrays=…)``.

    Parameters
    ----------
    vector_shape : int or sequence of int
        The shape of one vector.
    dtype : str or dtype
        The dtype of the vectors.

    Returns
    -------
    RaggedArray
        What `zarrow.Writer` takes in place of a row shape and dtype.

    Raises
    ------
    InvalidInputError
        If the shape is not one of at least one axis, each at least 1 long.

    Examples
    --------
    >>> import zarrow
    >>> {"token_embed": zarrow.ragged((128,), "float16")}
    {'token_embed': RaggedArray(vector_shape=(128,), dtype='float16')}
    """
    shape = (vector_shape,) if isinstance(vector_shape, int) else tuple(vector_shape)
    if not shape or min(shape) < 1:
        raise InvalidInputError(
            f"a vector must have at least one axis, each at least 1 long, got shape {vector_shape!r}"
        )
    return RaggedArray(shape, dtype_name(dtype))


def is_ragged(values: Any) -> bool:
    """Tell whether values have a form that only rows of any number of vectors have.

    >>> is_ragged([np.ones((2, 4)), np.ones((1, 4))]), is_ragged([np.ones((2, 4)), np.ones((2, 4))])
    (True, False)
    """
    return isinstance(values, Ragged) or vector_lists.has_lengths(values)
