"""How do a prediction's tensors get into memory that the writer may keep?

Every tensor is copied at most once on the host:

* one on a device goes into a pinned buffer; all of a batch's copies are under way at once, and waited for
  together. The buffers come from torch's pool of pinned memory, which takes each back when the writer is
  done with it, so they are few;
* one on the host that is contiguous and has its storage for itself is given away as it is;
* every other one is copied: a view may pin memory many times its size.

Some models return the same buffer in every step. So tensors are copied, too, in the first few batches, and
held: memory that is held cannot be handed out again, so if an address comes back, it is such a buffer, and
its entry is copied for good.

Place: under the edge `lightning`; imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from zarrow._prediction_rules import check_cast
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["HostCopies"]

_WATCHED_BATCHES = 4
_FLOATS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class HostCopies:
    """Brings the values of predictions to the host.

    Parameters
    ----------
    dtypes : mapping of str to {"float16", "float32", "float64"}
        What floating-point columns and arrays are stored as; by default what they are, bfloat16 as float32.

    Raises
    ------
    InvalidInputError
        If a dtype is none of these.
    """

    def __init__(self, dtypes: Mapping[str, str] | None = None) -> None:
        self._dtypes = dict(dtypes or {})
        for name, dtype in self._dtypes.items():
            if dtype not in _FLOATS:
                raise InvalidInputError(
                    f"dtypes: {name!r} must be one of {', '.join(_FLOATS)}, got {dtype!r}"
                )
        self._watched: dict[str, list[torch.Tensor]] = {}
        self._reused: set[str] = set()
        self._batches = 0

    def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values in memory that is nobody else's.

        Parameters
        ----------
        values : mapping of str to tensor, array or sequence
            By their names in the store.

        Returns
        -------
        dict of str to array or sequence
            Tensors and arrays as numpy arrays, the rest as it came.

        Raises
        ------
        BatchError
            If a tensor is sparse, or a value does not fit its dtype.
        """
        hosted: dict[str, Any] = {}
        casts: dict[str, torch.Tensor] = {}
        devices: set[torch.device] = set()
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value = (
                    torch.from_numpy(value)
                    if value.dtype.kind == "f" and name in self._dtypes
                    else value.copy()
                )
            if not isinstance(value, torch.Tensor):
                hosted[name] = value
                continue
            if value.layout is not torch.strided:
                raise BatchError(
                    f"{name!r} is a tensor of layout {value.layout}: return it dense: .to_dense()"
                )
            tensor = value.detach()
            dtype = self._dtype(name, tensor)
            if dtype != tensor.dtype:
                if dtype.itemsize < tensor.dtype.itemsize or (dtype, tensor.dtype) == (
                    torch.float16,
                    torch.bfloat16,
                ):
                    casts[name] = tensor
                hosted[name] = self._to_host(tensor.to(dtype), devices)
            elif tensor.device.type == "cpu":
                hosted[name] = self._given_away(name, tensor)
            else:
                hosted[name] = self._to_host(tensor, devices)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        self._batches += 1
        if self._batches == _WATCHED_BATCHES:
            self._watched.clear()
        for name, tensor in hosted.items():
            if isinstance(tensor, torch.Tensor):
                hosted[name] = tensor.numpy()
        for name, tensor in casts.items():
            if np.isinf(hosted[name]).any():
                check_cast(name, tensor.cpu().to(torch.float64).numpy(), hosted[name])
        return hosted

    def _dtype(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        if not tensor.is_floating_point():
            if name in self._dtypes:
                raise BatchError(
                    f"dtypes: {name!r} is {tensor.dtype}, which is no floating-point type: cast it yourself"
                )
            return tensor.dtype
        if name in self._dtypes:
            return _FLOATS[self._dtypes[name]]
        return torch.float32 if tensor.dtype is torch.bfloat16 else tensor.dtype

    @staticmethod
    def _to_host(tensor: torch.Tensor, devices: set[torch.device]) -> torch.Tensor:
        """Return the tensor on the host; if `devices` has its device, only once that has been waited for."""
        if tensor.device.type != "cuda":
            return tensor.cpu().contiguous()
        devices.add(tensor.device)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _given_away(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        alone = (
            tensor.is_contiguous()
            and not tensor.is_conj()
            and not tensor.is_neg()
            and tensor.untyped_storage().nbytes() == tensor.nbytes
        )
        if alone and name not in self._reused:
            if self._batches >= _WATCHED_BATCHES:
                return tensor
            held = self._watched.setdefault(name, [])
            if any(other.data_ptr() == tensor.data_ptr() for other in held) and tensor.nbytes:
                self._reused.add(name)
            held.append(tensor)
        copied = torch.empty(tensor.shape, dtype=tensor.dtype)
        return copied.copy_(tensor)
