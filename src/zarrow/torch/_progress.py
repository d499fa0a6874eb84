"""Progress — the epoch, and how many of its batches a dataset has yielded.

The epoch is in shared memory, so that workers that persist over epochs see a new one, and so is a flag that
says that workers iterate: the dataset in the process that trains then does not know how far they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import get_worker_info

from zarrow.errors import InvalidInputError
from zarrow.torch._source import TensorBatch

__all__ = ["Progress"]

_OURS = ("epoch", "batches", "worker", "workers")


class Progress:
    """Where an iteration is."""

    def __init__(self) -> None:
        self._shared = torch.zeros(2, dtype=torch.int64)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._latest = {"epoch": 0, "batches": 0, "worker": 0, "workers": 1}
        self._loaded: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """The number of the next epoch."""
        return int(self._shared[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._shared[0] = epoch

    def start(self, worker: int, workers: int) -> dict[str, int]:
        """Begin an iteration; return its epoch, and the batches that were yielded before."""
        loaded, self._loaded = self._loaded, None
        self._shared[1] = get_worker_info() is not None
        self._latest = {"epoch": self.epoch, "batches": 0, "worker": worker, "workers": workers}
        if loaded is not None and loaded["epoch"] == self.epoch:  # else set_epoch was called since
            self._latest["batches"] = loaded["batches"]
            if loaded["batches"] and loaded != self._latest:
                raise InvalidInputError(
                    f"the state is of worker {loaded['worker']} of {loaded['workers']}, and is loaded by "
                    f"worker {worker} of {workers}: go on with as many workers, or begin the epoch again"
                )
        return self._latest

    def counted(self, batches: Iterator[TensorBatch], iteration: dict[str, int]) -> Iterator[TensorBatch]:
        """Yield the batches of an iteration, and count them."""
        for batch in batches:
            iteration["batches"] += 1
            yield batch
            del batch  # else its memory could not be used for the next one

    def state(self) -> dict[str, int]:
        """Return where the latest iteration is."""
        if self._shared[1] and get_worker_info() is None:
            raise InvalidInputError(
                "workers iterate, and this dataset does not know how far they are: take the state of "
                "torchdata's StatefulDataLoader, or use num_workers=0"
            )
        return dict(self._latest if self._loaded is None else self._loaded)

    def load(self, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Have the next iteration go on where a state was taken; check that the order is the same."""
        for name in (*_OURS, *facts):
            if name not in state:
                raise InvalidInputError(
                    f"the state must be one of a StoreIterableDataset, got none of {name!r}"
                )
        for name, value in facts.items():
            if state[name] != value:
                raise InvalidInputError(
                    f"the state is one with {name}={state[name]!r}, this dataset has {value!r}: rows would "
                    "be missing or come twice: use the same store and arguments, or begin the epoch again"
                )
        self.epoch = int(state["epoch"])
        self._loaded = {name: int(state[name]) for name in _OURS}
