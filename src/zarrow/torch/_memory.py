"""Memory — where the vectors of a batch are put, used again when nobody holds the batch any more.

Fresh memory costs as much as the gather into it, because the kernel must supply every page. So vectors are
put where those of an earlier batch were:

* `Reused`, in the process that trains, for batches that are too large for malloc to do the same. A piece
  comes back when the tensor over it is gone, with all views of it: a batch that somebody keeps is never
  overwritten.
* `Slots`, in a worker of a DataLoader. torch copies a worker's batch into new shared memory, and passes a
  file descriptor for every tensor. Here the worker gathers into a slot of shared memory that is passed once,
  and then names the slot (`SharedBatch`). It is free again when the tensors over it are gone in the process
  that trains.

If all slots are in use, a batch is passed as torch does it; nobody waits. A worker that is killed leaves no
file: its memory goes with the last tensor over it.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Place", "Reused", "SharedBatch", "Slots"]

_LARGE_BYTES = 32 << 20
"""What glibc's malloc returns to the kernel at once."""
_KEPT = 4
_SLOTS = 8
_SEEN = _SLOTS
"""The byte that says that the other process has the memory; those before it say which slots are in use."""
_ALIGN_BYTES = 4096

Bytes = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[Any]]


class Place(NamedTuple):
    """An array of a batch: its name, the shape of a row, the data type."""

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.row_shape) * self.dtype.itemsize

    def over(self, memory: Bytes, rows: int) -> npt.NDArray[Any]:
        """Return the array of `rows` rows at the beginning of memory."""
        return memory[: rows * self.row_bytes].view(self.dtype).reshape(rows, *self.row_shape)


def _lend(memory: Bytes, give_back: Callable[..., object], *arguments: object) -> Bytes:
    """Return an array over memory, and call `give_back` when it is gone, with all views of it."""
    # numpy would have a view of a view refer to the first array; it does not look behind a memoryview.
    lent = np.frombuffer(memoryview(memory.data), np.uint8)
    weakref.finalize(lent, give_back, *arguments).atexit = False
    return lent


class Reused:
    """Memory of batches in one process.

    Examples
    --------
    >>> reused, place = Reused(), Place("v", (1 << 20,), np.dtype(np.float32))
    >>> first = torch.from_numpy(reused.empty(place, 7, 8))
    >>> address, view = first.data_ptr(), first[1:]
    >>> del first
    >>> reused.empty(place, 7, 8).ctypes.data == address  # somebody has a view of it
    False
    >>> del view
    >>> reused.empty(place, 8, 8).ctypes.data == address
    True
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Bytes]] = defaultdict(list)

    def empty(self, place: Place, rows: int, most: int) -> npt.NDArray[Any]:
        """Return an array of `rows` rows, of anything, in memory for `most` rows."""
        size_bytes = max(rows, most) * place.row_bytes
        if size_bytes < _LARGE_BYTES:
            return np.empty((rows, *place.row_shape), place.dtype)
        free = self._free[size_bytes]
        memory = free.pop() if free else np.empty(size_bytes, np.uint8)
        return place.over(_lend(memory, _keep, free, memory), rows)


def _keep(free: list[Bytes], memory: Bytes) -> None:
    if len(free) < _KEPT:
        free.append(memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """A slot with a batch in it."""

    owner: tuple[int, int]
    number: int
    rows: int
    span: slice
    places: tuple[tuple[Place, int], ...]

    def arrays(self, memory: Bytes, give_back: Callable[..., object], *arguments: object) -> Arrays:
        """Return the arrays in it, and call `give_back` when they are gone."""
        lent = _lend(memory[self.span], give_back, memory, self.number, *arguments)
        return {place.name: place.over(lent[start:], self.rows) for place, start in self.places}


class Slots:
    """Memory of a worker's batches, which the process that trains has too.

    Parameters
    ----------
    places : sequence of Place
        The arrays of a batch.
    most : int
        Rows of the largest batch that fits.
    """

    _numbers = itertools.count()

    def __init__(self, places: Sequence[Place], most: int) -> None:
        self.most = most
        self._owner = os.getpid(), next(self._numbers)
        starts = np.cumsum([0, *(-(-most * place.row_bytes // _ALIGN_BYTES) for place in places)])
        *offsets, self._slot_bytes = (starts * _ALIGN_BYTES).tolist()
        self._places = tuple(zip(places, offsets, strict=True))
        # Pages are supplied when they are touched: slots that are never used cost nothing.
        size_bytes = _ALIGN_BYTES + _SLOTS * self._slot_bytes
        storage = torch.UntypedStorage._new_shared(size_bytes)  # type: ignore[no-untyped-call]
        self.shared = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.memory: Bytes = self.shared.numpy()
        self.memory[: _SEEN + 1] = 0

    def take(self, rows: int) -> tuple[Arrays, Callable[[Mapping[str, Any]], SharedBatch]] | None:
        """Return arrays, of anything, and what makes the batch of their tensors; None if no slot is free."""
        free = np.flatnonzero(self.memory[:_SLOTS] == 0)
        if rows > self.most or not len(free):
            return None
        number = int(free[0])
        start = _ALIGN_BYTES + number * self._slot_bytes
        span = slice(start, start + self._slot_bytes)
        slot = _Slot(owner=self._owner, number=number, rows=rows, span=span, places=self._places)
        self.memory[number] = 1
        passed: list[bool] = []
        arrays = slot.arrays(self.memory, _free, passed)
        return arrays, lambda batch: SharedBatch(batch, _Passage(self, slot, passed, dict(batch)))


def _free(memory: Bytes, number: int, passed: Sequence[bool] = ()) -> None:
    if not passed:  # else it is the other process's to free
        memory[number] = 0


@dataclass(frozen=True, slots=True)
class _Passage:
    """What a batch that lies in a slot consists of, and whether it was passed."""

    slots: Slots
    slot: _Slot
    passed: list[bool]
    batch: dict[str, Any] = field(repr=False)


class SharedBatch(dict[str, Any]):
    """A batch of a worker, whose vectors lie in a slot. It arrives as a plain dict.

    Parameters
    ----------
    values : mapping
        Its tensors and lists.
    passage : _Passage
        How it is passed.
    """

    def __init__(self, values: Mapping[str, Any], passage: _Passage) -> None:
        super().__init__(values)
        self.passage = passage

    def __copy__(self) -> SharedBatch:
        return SharedBatch(self, self.passage)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _pass(batch: SharedBatch) -> tuple[Any, ...]:
    """Reduce a batch to its slot, and what does not lie in it."""
    passage, slot = batch.passage, batch.passage.slot
    same = {name for name, value in batch.items() if passage.batch.get(name) is value}
    inside = {place.name for place, _ in slot.places}
    if passage.passed or not inside <= same:  # passed before, or changed by the user
        return dict, (dict(batch),)
    passage.passed.append(True)
    # As a tensor, every column would need shared memory of its own, as those of ragged arrays do.
    columns = {
        name: value.numpy()
        for name, value in batch.items()
        if name in same - inside and isinstance(value, torch.Tensor) and value.dim() == 1
    }
    rest = {name: value for name, value in batch.items() if name not in inside and name not in columns}
    shared = None if passage.slots.memory[_SEEN] else passage.slots.shared
    return _receive, (slot, shared, columns, rest, list(batch))


ForkingPickler.register(SharedBatch, _pass)

_seen: dict[tuple[int, int], Bytes] = {}
"""The memory of workers, by owner."""


def _receive(
    slot: _Slot, shared: torch.Tensor | None, columns: Arrays, rest: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    """Return a batch that a worker put into a slot."""
    if shared is not None:
        for owner in [owner for owner in _seen if not _runs(owner[0])]:
            del _seen[owner]
        _seen[slot.owner] = shared.numpy()
        _seen[slot.owner][_SEEN] = 1
    arrays = columns | slot.arrays(_seen[slot.owner], _free)
    return {name: torch.from_numpy(arrays[name]) if name in arrays else rest[name] for name in names}


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
