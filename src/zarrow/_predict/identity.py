"""Identity of a run — whether a store was started by the same run that resumes it.

What determines the predictions is written into the store's provenance and compared on resume: the model's
class and weights, the datasets, the precision, and whatever the user's own provenance says. Weights are
identified by a checksum of a sample of every tensor, which training changes as surely as it changes the whole
tensor, and which takes milliseconds. Checkpoint, number of ranks and versions are recorded, but may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from zarrow._format.checksum import crc32c

__all__ = ["differences", "identify"]

PREDICT = "predict"
_COMPARED = ("model", "weights", "datasets", "precision")
_SAMPLED = 64


def identify(trainer: Trainer, module: LightningModule, datasets: Sequence[Any] | None) -> dict[str, Any]:
    """Return the identity of a run, for the store's provenance.

    Parameters
    ----------
    trainer : Trainer
        About to predict, with the checkpoint loaded.
    module : LightningModule
        The model.
    datasets : sequence of (type, rows), optional
        Type of each loader's dataset, and its length if it has one; None if not known yet.

    Returns
    -------
    dict
        JSON values.
    """
    # Sharded weights look different on every rank.
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    return {
        PREDICT: {
            # Without its module, which may be __main__ or not, depending on how a script is started.
            "model": type(module).__qualname__,
            "weights": f"{_checksum(module):08x}" if whole else None,
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "datasets": None if datasets is None else [list(one) for one in datasets],
            "precision": str(trainer.precision),
            "ranks": trainer.world_size,
            "lightning": lightning.__version__,
            "torch": torch.__version__,
        }
    }


def _checksum(module: LightningModule) -> int:
    checksum = 0
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED)].contiguous().cpu()
        text = f"{name} {tuple(tensor.shape)} {tensor.dtype} "
        data = sample.view(torch.uint8).numpy().tobytes() if len(sample) else b""
        checksum = crc32c(text.encode() + data, checksum)
    return checksum


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how this run differs from the one that started the store, in words.

    Parameters
    ----------
    stored, now : mapping
        Two provenances. A value that only one of them has is not a difference.

    Returns
    -------
    list of str
        One text per difference.

    Examples
    --------
    >>> differences({"predict": {"weights": "aa"}, "note": 1}, {"predict": {"weights": "bb"}, "note": 1})
    ["weights: the store has 'aa', now 'bb'"]
    """
    found = []
    old, new = stored.get(PREDICT, {}), now.get(PREDICT, {})
    pairs = [(name, old.get(name), new.get(name)) for name in _COMPARED]
    pairs += [(name, stored.get(name), value) for name, value in now.items() if name != PREDICT]
    for name, before, after in pairs:
        if before is not None and after is not None and before != after:
            found.append(f"{name}: the store has {before!r}, now {after!r}")
    return found
