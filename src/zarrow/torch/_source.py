"""Source — columns and arrays of a store, read as tensors.

A batch is read with one gather per array, into memory that is used again (`_memory`; of ragged arrays into
new memory, since every batch has another number of vectors), and without a step per row: columns of numbers
that fit into `_HELD_BYTES` are decoded once, and others a batch or buffer at a time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import get_worker_info

from zarrow._format.ragged import Ragged
from zarrow._read.column_values import ColumnValues, column_values
from zarrow._read.ragged_rows import StoreRagged
from zarrow.errors import InvalidInputError
from zarrow.store import Store, open
from zarrow.torch._memory import Place, Reused, Slots
from zarrow.torch._ragged import Form, as_tensors, names_in_batch, require_form

__all__ = ["Columns", "Rows", "Source", "TensorBatch", "as_tensor"]

_HELD_BYTES = 64 << 20

Rows = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]
TensorBatch = dict[str, Any]


class Source:
    """Columns and arrays of a store, read as tensors.

    Parameters
    ----------
    store, columns, arrays, ragged, fill_values
        As in `StoreDataset`.
    pin_memory : bool
        Whether vectors are put into memory that a GPU copies from without waiting.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        columns: Sequence[str] | None,
        arrays: Sequence[str] | None,
        ragged: Form,
        fill_values: Mapping[str, object] | None,
        *,
        pin_memory: bool = False,
    ) -> None:
        # A refresh of the caller's store would give rows other numbers.
        self.store = store._pinned() if isinstance(store, Store) else open(store)
        values = column_values(self.store.schema, fill_values, widen=False)
        # The store checks the names; nothing is read.
        schema = self.store.scan(columns).schema
        self.columns: dict[str, ColumnValues] = {name: values[name] for name in schema.names}
        if isinstance(arrays, str):
            raise InvalidInputError(f"arrays must be a list of names, got {arrays!r}")
        require_form(ragged)
        names = [*self.store.arrays, *self.store.ragged] if arrays is None else list(arrays)
        found = list(dict.fromkeys(self.store[name].name for name in names))
        self.ragged = [name for name in found if isinstance(self.store[name], StoreRagged)]
        self.arrays = [name for name in found if name not in self.ragged]
        self.form = ragged
        taken = {*self.columns, *found}
        self.ragged_names = [one for name in self.ragged for one in names_in_batch(name, ragged, taken)]
        self._pin_memory = pin_memory
        self._forget()

    def _forget(self) -> None:
        self._most = 0
        self._reused = Reused()
        self._slots: Slots | None = None
        self._held: Columns | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without memory."""
        kept = ("store", "columns", "arrays", "ragged", "form", "ragged_names", "_pin_memory")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {name: self.store[name] for name in self.arrays}

    @cached_property
    def places(self) -> list[Place]:
        """The arrays of a batch, in native byte order."""
        found = [self.store[name] for name in self.arrays]
        return [Place(one.name, one.row_shape, one.dtype.newbyteorder("=")) for one in found]

    @property
    def column_bytes(self) -> int:
        """Bytes of the columns of a row, about."""
        return sum(values.dtype.itemsize for values in self.columns.values())

    @property
    def chunk_rows(self) -> int:
        """Rows of the largest chunk, of ragged arrays about; 0 without arrays."""
        fixed = [self.store[name].chunks[0] for name in self.arrays]
        return max(fixed + [_chunk_rows(self.store[name]) for name in self.ragged], default=0)

    @property
    def held_ragged_bytes(self) -> int:
        """Bytes of the ragged arrays of a row, on average, that are read before the batches of a buffer."""
        held = [self.store[name] for name in self.ragged if not self.is_mapped(name)]
        return sum(array.nbytes // max(len(array), 1) for array in held)

    def is_mapped(self, name: str) -> bool:
        """Whether an array is plain bytes on a disk, so that single rows are read as fast as many."""
        return isinstance(self.store.path, Path) and bool(self.store[name].is_plain)

    # Columns

    def described(self, rows: int) -> str:
        """Return what a dataset of some rows says of itself."""
        arrays = [f"{name} {self.store[name].row_shape}" for name in self.arrays]
        ragged = [f"{name} any × {self.store[name].vector_shape}" for name in self.ragged]
        return f"{str(self.store.path)!r}: {rows:,} rows; {', '.join([*arrays, *ragged, *self.columns])}"

    def columns_of(self, rows: Rows) -> Columns:
        """Return the columns of rows as numpy values."""
        held = self._held_columns()
        if held or not self.columns:
            return {name: values[rows] for name, values in held.items()}
        return self._converted(self.store.take(rows, list(self.columns), [])[0])

    def _converted(self, table: pa.Table) -> Columns:
        return {name: self._column(table[name], values) for name, values in self.columns.items()}

    def _column(self, column: pa.ChunkedArray, how: ColumnValues) -> npt.NDArray[Any]:
        values = how.convert(column)
        if values.dtype.kind in "mM":
            if np.isnat(values).any() and how.fill_value is None:
                raise InvalidInputError(
                    f"column {how.name!r}: int64 has no value for null, got one: {how.remedy}"
                )
            values = values.astype(np.int64)
        return values

    def _held_columns(self) -> Columns:
        """Return all rows of the columns, if they are kept; else nothing."""
        if self._held is None:
            numbers = all(values.dtype.kind != "O" for values in self.columns.values())
            self._held = {}
            if self.columns and numbers and self.column_bytes * self.store.num_rows <= _HELD_BYTES:
                with suppress(InvalidInputError):  # a row has a null: an error when that row is read
                    self._held = self._converted(self.store.table(list(self.columns)))
        return self._held

    # Batches

    def take(self, rows: Rows) -> TensorBatch:
        """Return the batch of some rows."""
        return self.batch(self.columns_of(rows), rows)

    def batch(
        self,
        columns: Columns,
        rows: Rows,
        held: Mapping[str, Any] | None = None,
        *,
        together: range | None = None,
    ) -> TensorBatch:
        """Return a batch, which may be written to.

        Parameters
        ----------
        columns : dict of str to array, shape (n,)
            Its columns, which become the batch's own.
        rows : int64 array, shape (n,)
            Its rows.
        held : dict of str to array, shape (n, *row_shape), or Ragged
            Arrays that were read already.
        together : range
            The same rows, if they lie together.
        """
        self._most = max(self._most, len(rows))
        arrays, finish = self._empty(len(rows))
        for name, out in arrays.items():
            if held and name in held:
                out[...] = held[name]
            elif together is not None:
                self.store[name].read(together.start, together.stop, out=out)
            else:
                self._opened[name].take(rows, out=out)
        found: TensorBatch = {name: as_tensor(values) for name, values in columns.items()}
        found |= {name: torch.from_numpy(values) for name, values in arrays.items()}
        for name in self.ragged:
            if held and name in held:
                found |= self.tensors_of(name, held[name])
            else:
                array = self.store[name]
                here = array.take(rows) if together is None else array.read(together.start, together.stop)
                found |= self.tensors_of(name, here)
        return finish(found)

    def tensors_of(self, name: str, rows: Ragged, *, writable: bool = True) -> TensorBatch:
        """Return what a batch has of some rows of a ragged array."""

        def make(values: npt.NDArray[Any]) -> torch.Tensor:
            tensor: torch.Tensor = as_tensor(values, writable=writable)
            return tensor.pin_memory() if self._pin_memory and get_worker_info() is None else tensor

        return as_tensors(name, rows, self.form, make)

    def _empty(self, rows: int) -> tuple[Columns, Callable[[TensorBatch], TensorBatch]]:
        """Return memory for the arrays of a batch, and what makes the batch of their tensors."""
        places = self.places
        if places and get_worker_info() is not None:
            if self._slots is None or self._slots.most < rows:
                self._slots = Slots(places, rows)
            return self._slots.take(rows) or ({place.name: _fresh(place, rows) for place in places}, dict)
        if self._pin_memory:
            # torch's own memory, which it does not use again while a copy to the GPU is under way.
            return {place.name: _pinned(place, rows) for place in places}, dict
        return {place.name: self._reused.empty(place, rows, self._most) for place in places}, dict


def _chunk_rows(array: StoreRagged) -> int:
    """Return how many rows the vectors of a chunk are of, on average: a power of two."""
    rows = array.chunks[0] * max(len(array), 1) // max(array.num_vectors, 1)
    return 1 << (max(rows, 1).bit_length() - 1)


def _fresh(place: Place, rows: int) -> npt.NDArray[Any]:
    return np.empty((rows, *place.row_shape), place.dtype)


def _pinned(place: Place, rows: int) -> npt.NDArray[Any]:
    memory: npt.NDArray[np.uint8] = torch.empty(
        rows * place.row_bytes, dtype=torch.uint8, pin_memory=True
    ).numpy()
    return place.over(memory, rows)


def as_tensor(values: npt.NDArray[Any], *, writable: bool = True) -> Any:
    """Return a tensor over an array, copied only if it must be writable and is not; a list of objects.

    >>> as_tensor(np.zeros((2, 3), np.float16)).dtype
    torch.float16
    """
    if values.dtype.kind == "O":
        return values.tolist()
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.flags.writeable:
        return torch.from_numpy(values)
    if writable:
        return torch.from_numpy(values.copy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(values)
