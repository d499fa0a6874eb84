"""Host copies — a prediction's tensors in memory that the writer may keep, while the model goes on.

A tensor on a GPU is copied on the GPU first, by the step's own stream: views become contiguous, types
change, and whatever the next step does to the memory no longer matters. From there another stream takes it
into a pinned buffer (`CudaCopies`), so that neither the step's stream nor the thread that feeds it waits for
the bus; the thread that prepares the batch does. The pinned buffers come from torch's pool, which takes each
back when the writer is done with it; the queue bounds how many there are.

On the host every value is copied before the hook returns. Whether memory is used again cannot be told from
outside: a model may take turns with any number of buffers, another callback gets the same tensors after this
one, and a compiled graph writes to memory that nothing refers to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from zarrow._format.quantized import (
    LARGEST,
    LARGEST_SCALE,
    QUANTIZED,
    SMALLEST_SCALE,
    STEPS,
    scale_column,
)
from zarrow._predict.rules import check_cast
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["CudaCopies", "DeviceCopies", "HostBatch", "HostCopies"]

_FLOATS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class DeviceCopies(Protocol):
    """Asynchronous copies from a device."""

    def covers(self, tensor: torch.Tensor) -> bool:
        """Tell whether the tensor is on such a device."""

    def start(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        """Return buffers on the host that will hold the tensors, and a function that waits until they do."""


class CudaCopies:
    """Copies from GPUs, on a separate stream for each."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def covers(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cuda"

    def start(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        hosts = []
        events: dict[torch.device, torch.cuda.Event] = {}
        for tensor in tensors:
            device = tensor.device
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream = self._streams[device]
            if device not in events:
                stream.wait_stream(torch.cuda.current_stream(device))  # the step that computes it
                events[device] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                hosts.append(host.copy_(tensor, non_blocking=True))
            tensor.record_stream(stream)  # its memory is not reused before this stream has copied it
        for device, event in events.items():
            event.record(self._streams[device])

        def wait() -> None:
            for event in events.values():
                event.synchronize()

        return hosts, wait


@dataclass(slots=True)
class HostBatch:
    """The values of a batch, some of which may still be on their way.

    Parameters
    ----------
    values : dict of str to tensor, array or sequence
        By their names in the store.
    wait : callable, optional
        Waits until all of them have arrived.
    lost : dict of str to tensor, shape (rows,)
        For each entry that was narrowed on a device, the rows in which a finite value became infinite.
    size_bytes : int
        Size of the tensors and arrays among the values.
    """

    values: dict[str, Any] = field(default_factory=dict)
    wait: Callable[[], None] | None = None
    lost: dict[str, torch.Tensor] = field(default_factory=dict)
    size_bytes: int = 0

    def get(self) -> dict[str, Any]:
        """Wait until all values have arrived, and return them, tensors as numpy arrays."""
        if self.wait is not None:
            self.wait()
            self.wait = None
        for name, rows in self.lost.items():
            if rows.any():
                raise BatchError(
                    f"array {name!r}: row {int(rows.nonzero()[0])} of the batch has a value that "
                    f"{self.values[name].numpy().dtype} cannot hold: store it in a wider dtype"
                )
        return {
            name: value.numpy(force=True) if isinstance(value, torch.Tensor) else value
            for name, value in self.values.items()
        }


class HostCopies:
    """Copies the values of predictions to the host.

    Parameters
    ----------
    dtypes : mapping of str to {"float16", "float32", "float64", "int8"}
        Types to store floating-point columns and arrays as; by default their own, and float32 for bfloat16.
        ``int8`` quantizes arrays: on a device before they are copied, otherwise when they are appended.
    device : DeviceCopies, optional
        Copies from devices; by default from GPUs.

    Raises
    ------
    InvalidInputError
        If a dtype is none of these.
    """

    def __init__(self, dtypes: Mapping[str, str] | None = None, device: DeviceCopies | None = None) -> None:
        self._dtypes = dict(dtypes or {})
        for name, dtype in self._dtypes.items():
            if dtype not in (*_FLOATS, QUANTIZED):
                raise InvalidInputError(
                    f"dtypes: {name!r} must be one of {', '.join(_FLOATS)} and {QUANTIZED}, got {dtype!r}"
                )
        self._device: DeviceCopies = CudaCopies() if device is None else device
        self._targets: dict[tuple[str, torch.dtype], torch.dtype] = {}

    def begin(self, values: Mapping[str, Any]) -> HostBatch:
        """Start to copy values into memory that only the writer uses.

        Parameters
        ----------
        values : mapping of str to tensor, array or sequence
            By their names in the store. May be overwritten on return.

        Returns
        -------
        HostBatch
            The copies.

        Raises
        ------
        BatchError
            If a tensor is sparse, or a value on the host does not fit its dtype.
        """
        batch = HostBatch()
        staged: dict[tuple[str, bool], torch.Tensor] = {}
        for name, given in values.items():
            value = given
            if isinstance(value, np.ndarray):
                if value.dtype.kind != "f" or self._dtypes.get(name) not in _FLOATS:
                    batch.values[name] = value.copy()
                    batch.size_bytes += value.nbytes
                    continue
                value = torch.from_numpy(value)
            if not isinstance(value, torch.Tensor):
                # An Arrow array is copied as well: it may view memory that is not Arrow's.
                batch.values[name] = copy.deepcopy(value)
                continue
            if value.layout is not torch.strided:
                raise BatchError(
                    f"{name!r} must be a dense tensor, got layout {value.layout}: return it with .to_dense()"
                )
            batch.size_bytes += value.nbytes
            dtype = self._targets.get((name, value.dtype)) or self._target(name, value.dtype)
            tensor = value if dtype is value.dtype else value.detach()
            if self._device.covers(tensor):
                tensor = tensor.detach()
                if self._dtypes.get(name) == QUANTIZED:
                    scale = scale_column(name)
                    if scale in values:
                        raise BatchError(f"{scale!r} is the name of the scales of {name!r}: rename it")
                    staged[name, False], staged[scale, False], staged[name, True] = _quantized(tensor)
                    continue
                staged[name, False] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
                if _narrows(tensor.dtype, dtype):
                    lost = staged[name, False].isinf() & ~tensor.isinf()
                    staged[name, True] = lost.reshape(len(lost), math.prod(lost.shape[1:])).any(dim=1)
            elif not tensor.is_cpu:
                batch.values[name] = _cast_on_host(name, tensor.detach().cpu(), dtype)
            elif dtype is not tensor.dtype:
                batch.values[name] = _cast_on_host(name, tensor, dtype)
            else:
                copied = torch.empty(tensor.shape, dtype=tensor.dtype)
                batch.values[name] = copied.copy_(tensor.detach())
        if staged:
            hosts, batch.wait = self._device.start(list(staged.values()))
            for (name, is_lost), host in zip(staged, hosts, strict=True):
                (batch.lost if is_lost else batch.values)[name] = host
        return batch

    def _target(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Return the type that an entry is stored as, and remember it."""
        target = torch.float32 if dtype is torch.bfloat16 else dtype
        if name in self._dtypes:
            if not dtype.is_floating_point:
                raise BatchError(
                    f"dtypes: {name!r} must have a floating-point type, got {dtype}: cast it in predict_step"
                )
            target = _FLOATS.get(self._dtypes[name], target)  # quantized later
        self._targets[name, dtype] = target
        return target


def _quantized(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `_format.quantized.quantize` does, on the tensor's device, and which rows have no scale."""
    rows = tensor.reshape(len(tensor), -1) if len(tensor) else tensor.reshape(0, math.prod(tensor.shape[1:]))
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    most = rows.abs().amax(dim=1)
    scale = (most / STEPS).float().clamp(SMALLEST_SCALE, LARGEST_SCALE)
    integers = (rows / scale[:, None]).round_().to(torch.int8).reshape(tensor.shape)
    return integers, torch.where(most > 0, scale, 0), ~(most <= LARGEST)


def _narrows(before: torch.dtype, after: torch.dtype) -> bool:
    """Tell whether a cast may turn finite values into infinite ones."""
    return after.itemsize < before.itemsize or (after, before) == (torch.float16, torch.bfloat16)


def _cast_on_host(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if _narrows(tensor.dtype, dtype) and cast.isinf().any():
        check_cast(name, tensor.to(torch.float64).numpy(), cast.numpy())
    return cast
