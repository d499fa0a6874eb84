"""Store array — an array of a store as users hold it, like numpy's along its first axis.

A `StoreArray` has the shape ``(rows, *row_shape)``, and reads what is indexed from the extents that the
rows lie in (`extents`). Rows of plain bytes are copied only if they do not lie together. Reads only.
"""

from __future__ import annotations

import bisect
import contextlib
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.records import Identity
from zarrow._read.catalog import read_attributes
from zarrow._read.extents import Extent, find_extents
from zarrow._read.indexing import Check, Indexed, check_option
from zarrow._read.mapping import JoinedRows
from zarrow._read.view import View
from zarrow._storage import reading
from zarrow.errors import CorruptionError, StoreChangedError, printable

if TYPE_CHECKING:
    import zarr

__all__ = ["Reopened", "StoreArray"]


class StoreArray(Indexed):
    """One array of a store, read as it is indexed.

    From ``store[name]`` or ``store.arrays``; shows the rows of the store's snapshot.

    Examples
    --------
    >>> import zarrow.testing
    >>> array = zarrow.testing.example_store()["query_embed"]
    >>> array.shape, array.dtype.name
    ((5000, 8), 'float32')
    >>> array[-1].shape, array[10:20].shape, array[[3, 1, 3]].shape
    ((8,), (10, 8), (3, 8))
    >>> import numpy as np
    >>> np.asarray(array).flags.owndata  # the files themselves, mapped
    False
    """

    def __init__(
        self, view: View, array: ArraySpec, reopen: tuple[Callable[..., Any], tuple[Any, ...]]
    ) -> None:
        self._view = view
        self._array = array
        self._reopen = reopen
        self._made: tuple[Extent, ...] | None = None

    # Properties

    @property
    def name(self) -> str:
        """Its name."""
        return self._array.name

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self._array.row_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type."""
        return self._array.numpy_dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes that the committed rows take on disk: without the hole in which the last chunk may end."""
        snapshot = self._view.snapshot
        if snapshot.manifest is not None:
            size_bytes = sum(snapshot.manifest.shard_bytes[self.name])
        else:
            records = map(self._view.record, range(snapshot.segments))
            size_bytes = sum(record.arrays[self.name].size_bytes for record in records)
        if isinstance(snapshot.root, Path) and snapshot.segments:
            with contextlib.suppress(CorruptionError, FileNotFoundError):
                path = self._array.shard_path(snapshot.segments - 1)
                with reading.open_file(snapshot.root, path) as last:
                    size_bytes -= last.hole_bytes
        return size_bytes

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk: the unit of decoding and of checksums."""
        return (self._array.chunk_rows, *self._array.row_shape)

    @property
    def shards(self) -> tuple[int, ...]:
        """The shape of a shard: the rows of one file."""
        return (self._array.shard_rows(self._view.spec.segment_rows), *self._array.row_shape)

    @property
    def codecs(self) -> tuple[dict[str, Any], ...]:
        """The codecs of a chunk, as in Zarr v3 metadata."""
        return self._array.codecs

    @property
    def provenance(self) -> dict[str, Any]:
        """How its rows were made, as their writer said: for a derived array, what it was computed from."""
        return dict(self._view.spec.provenance)

    @property
    def attrs(self) -> dict[str, Any]:
        """What other programs say of it, such as its units: the attributes of its Zarr array, read anew."""
        return read_attributes(self._view.snapshot.root, layout.array_dir(self.name))

    @property
    def is_plain(self) -> bool:
        """Whether the files hold the plain bytes of the rows, which are then read without a copy."""
        return self._array.is_plain

    def __len__(self) -> int:
        return self._view.rows

    def __repr__(self) -> str:
        codecs = printable(", ".join(codec["name"] for codec in self.codecs))
        return f"<zarrow.StoreArray {self.name!r} {self.shape} {self.dtype.name} [{codecs}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, (Reopened(*self._reopen, self._view.identity), self.name)

    def zarr(self) -> zarr.Array[Any]:
        """Return the committed rows as zarr-python's array.

        Returns
        -------
        zarr.Array
            Opened for reading.

        Raises
        ------
        CorruptionError
            If zarr-python cannot read the array's metadata.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store()["query_embed"].zarr().shape
        (5000, 8)
        """
        import zarr

        root = self._view.snapshot.root
        path = root / layout.array_dir(self.name)
        try:
            reading.read_file(path, "zarr.json")  # zarr-python waits for pipes, and reads files of any size
            if isinstance(root, Path):
                found = zarr.open_array(path, mode="r")
            else:
                objects = zarr.storage.ObjectStore(root.client, read_only=True)
                found = zarr.open_array(objects, path=layout.array_dir(self.name), mode="r")
        except CorruptionError:
            raise
        except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"zarr-python cannot read it ({error}): 'zarrow repair' writes it again",
                path=path / "zarr.json",
            ) from error
        self._view.guard()
        snapshot = self._view.snapshot
        shape = (snapshot.rows, *self.row_shape)
        if self._array.is_ragged:
            shape = (snapshot.segments, *found.shape[1:2], *self.row_shape)
        if snapshot.complete and found.shape != shape:
            raise CorruptionError(
                f"says shape {found.shape}, but the store has {snapshot.rows} rows: another program has "
                "changed it: 'zarrow repair' writes it again",
                path=path / "zarr.json",
            )
        return found

    # Reading

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        same = dtype is None or np.dtype(dtype) == self.dtype
        extents = self._extents()
        free = len(extents) == 1 and isinstance(extents[0].rows, JoinedRows)
        if copy is False and not (same and (free or not len(self))):
            raise ValueError(
                f"array {self.name!r} ({self.dtype}) cannot be returned without a copy: only the committed "
                "rows of an array of plain bytes can, in its own dtype; use np.asarray, or read slices of it"
            )
        found = self.read(0, len(self))
        if not same:
            return found.astype(dtype)
        return found.copy() if copy and free else found

    def read(
        self, start: int, stop: int, *, out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return consecutive rows.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``, in 0..len.
        out : array, shape (stop - start, *row_shape), optional
            Where to put them.
        check : {"crc"}, optional
            Compare the chunks with the checksums that were computed when they were written. Chunks of
            compressed arrays are always compared.

        Returns
        -------
        array, shape (stop - start, *row_shape)
            `out` if given; else the mapped files themselves, read-only, if the rows are plain bytes that lie
            together.

        Raises
        ------
        IndexError
            If the rows are out of range.
        CorruptionError
            If a file or a checked chunk of theirs is damaged; other rows stay readable.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store()["query_embed"].read(1000, 1100, check="crc").shape
        (100, 8)
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} are out of bounds for {len(self)} rows")
        check_option(check)
        pieces = []
        for extent in self._between(start, stop):
            low, high = max(start, extent.start), min(stop, extent.stop)
            found = extent.verify(low, high) if check else None
            pieces.append(
                extent.rows.read(low + extent.shift, high + extent.shift) if found is None else found
            )
        if out is not None:
            self._check_out(out, stop - start)
            position = 0
            for piece in pieces:
                out[position : position + len(piece)] = piece
                position += len(piece)
            return out
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, *self.row_shape), self.dtype)

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the kernel that rows will be needed soon.

        Parameters
        ----------
        start, stop : int
            Rows ``start`` to ``stop - 1``; those out of range are ignored.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store()["query_embed"].prefetch(0, 1000)
        """
        for extent in self._between(max(start, 0), min(stop, len(self))):
            low, high = max(start, extent.start), min(stop, extent.stop)
            extent.rows.prefetch(low + extent.shift, high + extent.shift)

    def release(self) -> None:
        """Tell the kernel that the memory of rows that were read can be used for something else.

        Views of mapped files stay valid: what they show is read again when it is used.

        Examples
        --------
        >>> import zarrow.testing
        >>> zarrow.testing.example_store()["query_embed"].release()
        """
        for extent in self._made or ():
            extent.rows.release()

    # Extents

    def _is_one_piece(self) -> bool:
        return self.is_plain and len(self._extents()) == 1

    def _take(
        self, rows: npt.NDArray[Any], out: npt.NDArray[Any] | None = None, check: Check = None
    ) -> npt.NDArray[Any]:
        """Return rows that are in range."""
        extents, chunk_rows = self._extents(), self._array.chunk_rows
        if check:
            read = 0
            for extent in extents:
                chosen = rows[(rows >= extent.start) & (rows < extent.stop)]
                for first in (np.unique(chosen // chunk_rows) * chunk_rows).tolist():
                    low, high = max(first, extent.start), min(first + chunk_rows, extent.stop)
                    found = extent.verify(low, high)
                    if found is not None:
                        out = np.empty((len(rows), *self.row_shape), self.dtype) if out is None else out
                        places = np.flatnonzero((rows >= low) & (rows < high))
                        out[places] = found[rows[places] - low]
                        read += len(places)
            if out is not None and read == len(rows):
                return out
        if len(extents) == 1:
            extent = extents[0]
            return extent.rows.take(rows + extent.shift if extent.shift else rows, out)
        if out is None:
            out = np.empty((len(rows), *self.row_shape), self.dtype)
        for extent in extents:
            places = np.flatnonzero((rows >= extent.start) & (rows < extent.stop))
            if len(places):
                out[places] = extent.rows.take(rows[places] + extent.shift)
        return out

    def _between(self, start: int, stop: int) -> Iterator[Extent]:
        extents = self._extents()
        if start >= stop:
            return
        first = bisect.bisect_right(extents, start, key=lambda extent: extent.stop)
        for extent in extents[first:]:
            if extent.start >= stop:
                return
            yield extent

    def _extents(self) -> tuple[Extent, ...]:
        if self._made is None:
            self._made = find_extents(self._view, self._array)
        return self._made


class Reopened:
    """A store in a pickled array, which is opened when the array is unpickled."""

    def __init__(self, opener: Callable[..., Any], arguments: tuple[Any, ...], identity: Identity) -> None:
        self._opener = opener
        self._arguments = arguments
        self._identity = identity

    def __getitem__(self, name: str) -> Any:
        found = self._opener(*self._arguments)[name]
        if found._view.identity != self._identity:  # a derived array, which is a store of its own
            raise StoreChangedError(f"{name!r} was computed again since it was pickled: open the store again")
        return found
