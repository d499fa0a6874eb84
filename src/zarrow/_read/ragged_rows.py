"""Ragged rows — a ragged array of a store as users hold it: rows of any number of vectors.

The array of its *extents* says of each row where in its segment its vectors begin, and how many there are.
The vectors of all segments lie behind one another in one array (`extents.find_vectors`), mapped where they
are of plain bytes: so a row is a slice of it, and many rows are a gather. What an extent says is compared
with the segment before it is used. Reads only.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import ArraySpec
from zarrow._format.layout import extent_name
from zarrow._format.ragged import Ragged
from zarrow._read.arrays import Reopened, StoreArray
from zarrow._read.extents import Block, Extent, find_vectors
from zarrow._read.indexing import Check, Indexed, IndexedRagged
from zarrow._read.view import View
from zarrow.errors import CorruptionError, printable

if TYPE_CHECKING:
    import zarr

__all__ = ["PackedVectors", "StoreRagged"]

_RUN_VECTORS = 4
"""From how many vectors per row on a gather copies rows, not vectors."""


class _Vectors(StoreArray):
    """The vectors of all rows, segment behind segment."""

    def __init__(self, view: View, array: ArraySpec, reopen: Any, extents: tuple[Extent, ...]) -> None:
        super().__init__(view, array, reopen)
        self._made = extents

    def __len__(self) -> int:
        return self._extents()[-1].stop if self._extents() else 0


class PackedVectors(Indexed):
    """The vectors of all rows, one row's behind the other's, as an array that is read as it is indexed.

    From `StoreRagged.packed`.

    Parameters
    ----------
    vectors : array of vectors
        Of all segments, with gaps between them.
    begin : int64 array, shape (segments,)
        Where those of each segment begin in there.
    packed : int64 array, shape (segments + 1,)
        Where they would if there were no gaps.
    """

    def __init__(
        self, vectors: StoreArray, begin: npt.NDArray[np.int64], packed: npt.NDArray[np.int64]
    ) -> None:
        self._vectors, self._begin, self._packed = vectors, begin, packed

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one vector."""
        return self._vectors.row_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type."""
        return self._vectors.dtype

    def __len__(self) -> int:
        return int(self._packed[-1])

    def read(
        self, start: int, stop: int, *, out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return consecutive vectors: without a copy if they are plain bytes of one segment.

        Parameters
        ----------
        start, stop : int
            Vectors ``start`` to ``stop - 1``, in 0..len.
        out : array, shape (stop - start, *vector_shape), optional
            Where to put them.
        check : {"crc"}, optional
            As in `StoreRagged.read`.

        Returns
        -------
        array, shape (stop - start, *vector_shape)
            `out`, if given.

        Raises
        ------
        IndexError
            If they are out of range.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"vectors {start} to {stop} are out of bounds for {len(self)} vectors")
        pieces = []
        for number in range(int(np.searchsorted(self._packed, start, "right")) - 1, len(self._begin)):
            low, high = max(start, int(self._packed[number])), min(stop, int(self._packed[number + 1]))
            if low >= stop:
                break
            if high > low:
                shift = int(self._begin[number] - self._packed[number])
                pieces.append(self._vectors.read(low + shift, high + shift, check=check))
        if len(pieces) == 1 and out is None:
            return pieces[0]
        nothing = np.empty((0, *self.row_shape), self.dtype)
        if out is not None:
            self._check_out(out, stop - start)
        return np.concatenate([nothing, *pieces], out=out)

    def _take(
        self, rows: npt.NDArray[Any], out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        numbers = np.searchsorted(self._packed, rows, "right") - 1
        return self._vectors.take(rows + (self._begin - self._packed[:-1])[numbers], out=out, check=check)


class StoreRagged(IndexedRagged):
    """One ragged array of a store, read as it is indexed: any number of vectors per row.

    From ``store[name]`` or ``store.ragged``; shows the rows of the store's snapshot. A number gives that
    row's vectors, shape ``(count, *vector_shape)``: the files themselves, read-only, if the array is of plain
    bytes. A slice, an array of row numbers or a mask gives a `zarrow.Ragged`.

    Examples
    --------
    >>> import tempfile, numpy as np, zarrow
    >>> path = tempfile.mkdtemp() + "/tokens.zarrow"
    >>> tokens = zarrow.Ragged(np.arange(10, dtype="float32").reshape(5, 2), [2, 0, 3])
    >>> with zarrow.Writer(path) as writer:
    ...     writer.append({"id": [7, 8, 9]}, {"token_embed": tokens})
    ...     _ = writer.finalize()
    >>> array = zarrow.open(path)["token_embed"]
    >>> array
    <zarrow.StoreRagged 'token_embed' 3 rows of (2,) float32 [bytes]>
    >>> array[2]
    array([[4., 5.],
           [6., 7.],
           [8., 9.]], dtype=float32)
    >>> array[[2, 1]].counts, array.counts
    (array([3, 0]), array([2, 0, 3]))
    """

    def __init__(
        self, view: View, array: ArraySpec, reopen: tuple[Callable[..., Any], tuple[Any, ...]]
    ) -> None:
        self._view = view
        self._array = array
        self._reopen = reopen
        self._extents = StoreArray(view, view.spec.array(extent_name(array.name)), reopen)
        # Whether a segment's files can be kept at hand, since mapping them reads nothing.
        self._is_near = array.is_plain and isinstance(view.snapshot.root, Path)
        self._near: dict[int, tuple[int, memoryview, npt.NDArray[Any], int]] = {}

    # Properties

    @property
    def name(self) -> str:
        """Its name."""
        return self._array.name

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """The shape of one vector."""
        return self._array.row_shape

    @property
    def count_column(self) -> str | None:
        """The column of the table with `counts`; None in a store that has none."""
        return self._array.count

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type."""
        return self._array.numpy_dtype

    @property
    def codecs(self) -> tuple[dict[str, Any], ...]:
        """The codecs of a chunk, as in Zarr v3 metadata."""
        return self._array.codecs

    @property
    def attrs(self) -> dict[str, Any]:
        """What other programs say of it, such as its units: the attributes of its Zarr array, read anew."""
        return self._vectors.attrs

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk of vectors: the unit of decoding and of checksums."""
        return self._vectors.chunks

    @property
    def provenance(self) -> dict[str, Any]:
        """How its rows were made, as their writer said: for a derived array, what it was computed from."""
        return dict(self._view.spec.provenance)

    @property
    def is_plain(self) -> bool:
        """Whether the files hold the plain bytes of the vectors, which are then read without a copy."""
        return self._array.is_plain

    @property
    def stored_bytes(self) -> int:
        """Bytes that the committed rows take on disk, with what says where each row's vectors lie."""
        return self._vectors.stored_bytes + self._extents.stored_bytes

    @property
    def packed(self) -> PackedVectors:
        """All vectors, numbered without gaps, shape (vectors, *vector_shape): read as they are indexed."""
        return PackedVectors(self._vectors, *self._spans)

    @property
    def num_vectors(self) -> int:
        """The number of vectors of all rows."""
        return int(self._spans[1][-1])

    @property
    def values(self) -> npt.NDArray[Any]:
        """All vectors, shape (vectors, *vector_shape), without a copy where they can be mapped.

        Row ``i`` is ``values[offsets[i] : offsets[i] + counts[i]]``. Behind the last vector of a segment
        there may be some that are no row's, all zeros.
        """
        return self._vectors.read(0, len(self._vectors))

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of vectors of each row, int64, shape (rows,)."""
        return self._located(0, len(self))[1]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each row begins in `values`, int64, shape (rows,)."""
        return self._located(0, len(self))[0]

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        codecs = printable(", ".join(codec["name"] for codec in self.codecs))
        return (
            f"<zarrow.StoreRagged {self.name!r} {len(self):,} row{'s' * (len(self) != 1)} of "
            f"{self.vector_shape} {self.dtype.name} [{codecs}]>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, (Reopened(*self._reopen, self._view.identity), self.name)

    def zarr(self) -> zarr.Array[Any]:
        """Return the committed vectors as zarr-python's array, shape (segments, vectors, *vector_shape).

        Returns
        -------
        zarr.Array
            Opened for reading.

        Raises
        ------
        CorruptionError
            If zarr-python cannot read the array's metadata.
        """
        return self._vectors.zarr()

    # Reading

    def _row(self, row: int) -> npt.NDArray[Any]:
        """Return a row's vectors: a slice of the file of its segment, which is looked up once."""
        if not self._is_near:
            offsets, counts = self._located(row, row + 1)
            first = int(offsets[0])
            return self._vectors.read(first, first + int(counts[0]))
        number = bisect.bisect_right(self._starts, row) - 1
        near = self._near.get(number)
        if near is None:
            near = self._near[number] = self._look_up(number)
        start, extents, vectors, room = near
        at = 2 * (row - start)
        offset, count = extents[at], extents[at + 1]
        if not 0 <= offset <= offset + count <= room:
            raise self._lying()
        return vectors[offset : offset + count]

    def _look_up(self, number: int) -> tuple[int, memoryview, npt.NDArray[Any], int]:
        """Return a segment's first row, its extents one behind the other, its vectors and their number."""
        block, stop = self._found[1][number], (*self._starts, len(self))[number + 1]
        extents = self._extents.read(block.start, stop)
        vectors = self._vectors.read(block.first, block.stop)
        # A memoryview gives Python's integers, in a third of the time that an array needs.
        return block.start, extents.reshape(-1).data, vectors, len(vectors)

    def read(self, start: int, stop: int, *, check: Check = None) -> Ragged:
        """Return consecutive rows.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``, in 0..len.
        check : {"crc"}, optional
            Compare the chunks with the checksums that were computed when they were written. Chunks of
            compressed arrays are always compared.

        Returns
        -------
        Ragged
            Without a copy if the vectors are plain bytes of one segment.

        Raises
        ------
        IndexError
            If the rows are out of range.
        CorruptionError
            If a file or a checked chunk of theirs is damaged; other rows stay readable.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} are out of bounds for {len(self)} rows")
        offsets, counts = self._located(start, stop, check)
        ends = offsets + counts
        apart = np.flatnonzero(offsets[1:] != ends[:-1]) + 1
        runs = zip(
            offsets[np.concatenate(([0], apart))].tolist() if stop > start else [],
            ends[np.append(apart - 1, stop - start - 1)].tolist() if stop > start else [],
            strict=True,
        )
        pieces = [self._vectors.read(low, high, check=check) for low, high in runs if high > low]
        if not pieces:
            pieces = [np.empty((0, *self.vector_shape), self.dtype)]
        return Ragged(pieces[0] if len(pieces) == 1 else np.concatenate(pieces), counts)

    def _take(self, rows: npt.NDArray[np.int64], check: Check = None) -> Ragged:
        extents = self._extents.take(rows, check=check)
        if self._is_near and check is None and int(extents[:, 1].sum()) >= _RUN_VECTORS * len(rows) > 0:
            # Rows of several vectors are copied as they lie, each at once.
            pieces = [self._row(row) for row in rows.tolist()]
            return Ragged(np.concatenate(pieces), np.fromiter(map(len, pieces), np.int64, len(pieces)))
        offsets, counts = self._placed(rows, extents)
        ends = np.cumsum(counts)
        vectors = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(offsets - (ends - counts), counts)
        return Ragged(self._vectors.take(vectors, check=check), counts)

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the kernel that rows will be needed soon; those out of range are ignored."""
        start, stop = max(start, 0), min(stop, len(self))
        if start < stop:
            offsets, counts = self._located(start, stop)
            self._vectors.prefetch(int(offsets[0]), int(offsets[-1] + counts[-1]))

    def release(self) -> None:
        """Tell the kernel that the memory of rows that were read can be used for something else."""
        self._near.clear()
        self._vectors.release()
        self._extents.release()

    # Where rows lie

    @cached_property
    def _found(self) -> tuple[_Vectors, tuple[Block, ...]]:
        extents, blocks = find_vectors(self._view, self._array)
        return _Vectors(self._view, self._array, self._reopen, extents), blocks

    @cached_property
    def _count(self) -> int:
        return self._view.rows

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(block.start for block in self._found[1])

    @property
    def _vectors(self) -> _Vectors:
        return self._found[0]

    @cached_property
    def _blocks(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Where the rows and the vectors of each block begin, and where its vectors end."""
        found = [(block.start, block.first, block.stop) for block in self._found[1]]
        table = np.array(found, np.int64).reshape(-1, 3)
        return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()

    @cached_property
    def _spans(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the vectors of the rows of each block begin, and where they would if no gaps were counted."""
        starts = self._blocks[0]
        stops = np.append(starts[1:], len(self))
        has_rows = stops > starts
        begin, packed = np.zeros(len(starts), np.int64), np.zeros(len(starts) + 1, np.int64)
        if has_rows.any():
            first, _ = self._placed(starts[has_rows], self._extents.take(starts[has_rows]))
            last, counts = self._placed(stops[has_rows] - 1, self._extents.take(stops[has_rows] - 1))
            begin[has_rows] = first
            packed[1:][has_rows] = last + counts - first
        return begin, np.cumsum(packed)

    def _located(
        self, start: int, stop: int, check: Check = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where consecutive rows begin among all vectors, and their counts."""
        extents = self._extents.read(start, stop, check=check)
        blocks = self._found[1]
        number = bisect.bisect_right(blocks, start, key=lambda block: block.start) - 1
        last = number + 1 == len(blocks) or stop <= blocks[number + 1].start
        if not last or number < 0:
            return self._placed(np.arange(start, stop), extents)
        block = blocks[number]
        return self._checked(extents, block.first, block.stop)

    def _placed(
        self, rows: npt.NDArray[np.int64], extents: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        starts, first, stop = self._blocks
        numbers = np.searchsorted(starts, rows, "right") - 1
        return self._checked(extents, first[numbers], stop[numbers])

    def _checked(
        self, extents: npt.NDArray[Any], first: Any, stop: Any
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        within, counts = extents[:, 0], extents[:, 1]
        room = stop - first
        if ((within < 0) | (counts < 0) | (within > room) | (counts > room - within)).any():
            raise self._lying()
        return within + first, counts

    def _lying(self) -> CorruptionError:
        return CorruptionError(
            f"says that rows of array {self.name!r} have vectors that their segment does not have",
            path=f"{self._view.snapshot.root}: array {self._extents.name!r}",
        )
