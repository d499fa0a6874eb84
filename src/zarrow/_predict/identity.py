"""Is this the run that the store was begun by?

What decides about the values of predictions is written into the store's provenance, and compared when the
run is resumed: the model's class and weights, the datasets, the precision, and whatever the user's own
provenance says. The weights are known by a checksum of a sample of every tensor, which training changes
as surely as it changes all of it, and which costs milliseconds. Batch size, number of ranks and device are
written down, but may change.

Place: under the edge `lightning`; imports torch and lightning. Pure.
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
    """Return what is to be written into the store's provenance.

    Parameters
    ----------
    trainer : Trainer
        About to predict: the checkpoint has been loaded.
    module : LightningModule
        The model.
    datasets : sequence of (type, rows), optional
        Per loader the type of its dataset, and its rows if it has a length; None if they are not known yet.

    Returns
    -------
    dict
        JSON values.
    """
    # Sharded weights look different on every rank.
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    return {
        PREDICT: {
            # Without its module: that is __main__ or not, depending on how a script is started.
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
    """Return in what the run that began the store differs from this one, in words.

    Parameters
    ----------
    stored, now : mapping
        Two provenances. What only one of them knows is no difference.

    Returns
    -------
    list of str
        Empty if they are the same as far as anybody knows.

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
