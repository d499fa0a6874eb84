"""Settings — what an object was configured with, as JSON values that are the same in every process.

`plain` translates a value: numbers, texts, paths, enumerations, dataclasses, mappings, sequences, sets, small
arrays (by checksum), functions (by name), partial functions, and objects whose public attributes are all
plain. Anything else has no settings. Nothing depends on addresses, on the order of sets, or on a device.

`settings` collects those of a dataset or data module, and of the datasets in it. Names that say how a run is
executed, not what it predicts (`EXECUTION`), are left out wherever they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from enum import Enum
from typing import Any

import numpy as np
import torch

from zarrow._format.checksum import crc32c

__all__ = ["attributes_of", "plain", "settings", "tensor_crc32c"]

# fmt: off
EXECUTION = frozenset({
    "batch_size", "device", "devices", "drop_last", "global_rank", "in_order", "local_rank",
    "multiprocessing_context", "num_nodes", "num_replicas", "num_workers", "persistent_workers",
    "pin_memory", "pin_memory_device", "prefetch_factor", "rank", "timeout", "trainer", "world_size",
})
# fmt: on
_WRAPPED = {"dataset", "datasets", "indices"}
_OF_LIGHTNING = {"allow_zero_length_dataloader_with_multiple_devices", "prepare_data_per_node", "training"}
"""Attributes that every module or data module has, and that say nothing of its rows."""
_PIECE_BYTES = 16 << 20
_MAX_ITEMS = 10_000
_MAX_DEPTH = 8
_MAX_ARRAY_BYTES = 1 << 20
_MAX_TEXT = 1 << 14


class _OpaqueError(Exception):
    """A value that has no settings."""


def settings(thing: Any) -> dict[str, Any]:
    """Return class, settings, length and fingerprint of a dataset or data module, and of the datasets in it.

    Parameters
    ----------
    thing : object
        The dataset or data module.

    Returns
    -------
    dict
        JSON values.

    Examples
    --------
    >>> from torch.utils.data import Dataset, Subset
    >>> class Texts(Dataset):
    ...     def __init__(self, max_len):
    ...         self.max_len, self.num_workers, self._cache = max_len, 4, {}
    ...
    ...     def __len__(self):
    ...         return 10
    >>> settings(Texts(8))
    {'max_len': 8, 'type': 'Texts', 'rows': 10}
    >>> settings(Subset(Texts(8), [3, 4]))["indices"], settings(Subset(Texts(8), [3, 5]))["indices"]
    ('crc32c 70957874', 'crc32c 39a90553')
    """
    attributes: dict[str, Any] = getattr(thing, "__dict__", {})
    found = attributes_of(thing)
    found["type"] = type(thing).__qualname__
    if isinstance(hparams := getattr(thing, "hparams", None), Mapping):
        found["hparams"] = plain(hparams)
    if isinstance(indices := attributes.get("indices"), Sequence | np.ndarray):  # of a Subset
        found["indices"] = _indices(indices)
    with contextlib.suppress(TypeError, NotImplementedError):
        found["rows"] = len(thing)
    fingerprint = _fingerprint(thing)
    if fingerprint is not None:
        found["fingerprint"] = fingerprint
    inner = attributes.get("datasets")
    inner = inner if isinstance(inner, list | tuple) else [attributes.get("dataset")]
    within = [settings(one) for one in inner if hasattr(one, "__getitem__") or hasattr(one, "__iter__")]
    return found | ({"datasets": within} if within else {})


def attributes_of(thing: Any) -> dict[str, Any]:
    """Return the public attributes of an object that are plain, but for those that wrap data.

    >>> class Model:
    ...     def __init__(self):
    ...         self.scale, self.device, self._cache = 2.0, "cuda:1", {}
    >>> attributes_of(Model())
    {'scale': 2.0}
    """
    found: dict[str, Any] = {}
    for name, value in getattr(thing, "__dict__", {}).items():
        if not name.startswith("_") and name not in EXECUTION | _WRAPPED | _OF_LIGHTNING:
            with contextlib.suppress(_OpaqueError):
                found[name] = _bounded(_plain(value))
    return found


def _indices(indices: Any) -> str:
    checksum = 0
    for start in range(0, len(indices), 1 << 20):
        block = np.asarray(indices[start : start + (1 << 20)])
        checksum = crc32c(np.ascontiguousarray(block.astype(np.int64)), checksum)
    return f"crc32c {checksum:08x}"


def _fingerprint(thing: Any) -> Any:
    """Return what the object offers as its fingerprint; None if it offers none."""
    for name in ("fingerprint", "_fingerprint"):
        found = getattr(thing, name, None)
        if callable(found):
            try:
                inspect.signature(found).bind()
            except (TypeError, ValueError):
                continue  # something else of that name
            found = found()
        if found is not None:
            return plain(found)
    return None


def plain(value: Any) -> Any:
    """Return a value as JSON; what has no settings is replaced by the name of its class.

    Parameters
    ----------
    value : object
        Hyperparameters, or a function.

    Returns
    -------
    object
        A JSON value.

    Examples
    --------
    >>> plain({"max_len": 8, "codes": {"b", "a"}, "stream": iter([])})
    {'max_len': 8, 'codes': ['a', 'b'], 'stream': 'list_iterator'}
    >>> plain(functools.partial(sorted, reverse=True))
    {'func': 'sorted', 'args': [], 'keywords': {'reverse': True}}
    """
    return _bounded(_plain(value, named=True))


def _bounded(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= _MAX_TEXT else f"crc32c {crc32c(text.encode()):08x}"


def _plain(value: Any, *, named: bool = False, depth: int = 0) -> Any:
    """Return a value as JSON; raise `_OpaqueError` for what has no settings, or name its class if `named`."""
    try:
        if depth > _MAX_DEPTH:
            raise _OpaqueError
        return _scalar(value) if _is_scalar(value) else _parts(value, named=named, depth=depth + 1)
    except _OpaqueError:
        if not named:
            raise
        return type(value).__qualname__


def text_of(value: object) -> str:
    """Return a text, such as a path, that JSON can hold."""
    return str(value).encode(errors="backslashreplace").decode()


_AS_TEXT = (date, timedelta, range, complex, bytes, torch.dtype, np.dtype)


def _is_scalar(value: Any) -> bool:
    return (
        value is None
        or isinstance(
            value,
            (Enum, bool, int, str, float, os.PathLike, np.generic, np.ndarray, torch.Tensor, type, *_AS_TEXT),
        )
        or inspect.isroutine(value)
    )


def _scalar(value: Any) -> Any:
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, np.generic):
        return _scalar(value.item()) if _is_scalar(value.item()) else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, os.PathLike | str):
        return text_of(os.fspath(value))
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    if isinstance(value, np.ndarray | torch.Tensor):
        if value.nbytes > _MAX_ARRAY_BYTES or (isinstance(value, np.ndarray) and value.dtype.hasobject):
            raise _OpaqueError
        if isinstance(value, torch.Tensor):
            return f"crc32c {tensor_crc32c(value):08x}"
        return f"crc32c {crc32c(f'{value.dtype} {value.shape} '.encode() + value.tobytes()):08x}"
    return str(value) if isinstance(value, _AS_TEXT) else value


def _parts(value: Any, *, named: bool, depth: int) -> Any:
    """Return a container, a configuration or a partial function with its parts as JSON."""
    pairs: Mapping[Any, Any]
    if isinstance(value, Mapping | list | tuple | set | frozenset) and len(value) > _MAX_ITEMS:
        raise _OpaqueError
    if isinstance(value, set | frozenset):
        return sorted((_plain(one, named=named, depth=depth) for one in value), key=repr)
    if isinstance(value, Sequence):
        return [_plain(one, named=named, depth=depth) for one in value]
    if isinstance(value, Mapping):
        pairs = value
    elif isinstance(value, functools.partial):
        pairs = {"func": value.func, "args": value.args, "keywords": value.keywords}
    elif dataclasses.is_dataclass(value):
        pairs = {one.name: getattr(value, one.name, None) for one in dataclasses.fields(value)}
    elif hasattr(value, "__dict__"):  # a configuration, if all of it is plain
        named = False
        public = {name: one for name, one in vars(value).items() if not name.startswith("_")}
        if not public:
            raise _OpaqueError
        pairs = {"type": type(value)} | public
    else:
        raise _OpaqueError
    return {
        str(name): _plain(one, named=named, depth=depth)
        for name, one in pairs.items()
        if name not in EXECUTION
    }


# Tensors


def tensor_crc32c(tensor: torch.Tensor, checksum: int = 0) -> int:
    """Return the crc32c of a tensor's type, shape and elements, whatever its type, layout and device.

    Parameters
    ----------
    tensor : torch.Tensor
        The tensor. No more than a piece of it is copied at a time.
    checksum : int
        The checksum to go on from.

    Returns
    -------
    int
        The checksum.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    checksum = crc32c(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), checksum)
    for piece in _pieces(tensor.reshape(1) if tensor.dim() == 0 else tensor):
        flat = piece.reshape(-1).contiguous().cpu()
        flat = flat.as_strided((flat.numel(),), (1,))  # a single element may have any stride
        checksum = crc32c(flat.view(torch.uint8).numpy(), checksum)
    return checksum


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor in pieces of bounded size, in the order of its elements."""
    if not tensor.numel():
        return
    row_bytes = tensor[0].numel() * tensor.element_size()
    if row_bytes > _PIECE_BYTES:
        for row in tensor:
            yield from _pieces(row)
    else:
        step = _PIECE_BYTES // row_bytes
        yield from (tensor[start : start + step] for start in range(0, len(tensor), step))


def tensors_in(value: Any) -> Iterable[torch.Tensor]:
    """Yield the tensors of a value that a module saves: one, or several in containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [found for one in value for found in tensors_in(one)] if isinstance(value, list | tuple) else []
