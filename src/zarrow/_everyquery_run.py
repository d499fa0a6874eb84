"""Is a stored run the one that is to go on, and how does the trainer go on behind its rows?

`facts` tells runs apart: by the number of tasks, the precision, and a checksum of the model's weights,
which a store keeps in its provenance. `skip_stored` replaces the trainer's data loader by one over the
batches that are left.

Place: tier 5, used by `everyquery`; imports torch and lightning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, SequentialSampler, Subset

from zarrow._checksum import crc32c
from zarrow._prediction_columns import identifiers

__all__ = ["facts", "skip_stored", "tasks_crc32c"]

_SLICE_ROWS = 1 << 16


def facts(rows: int, pl_module: LightningModule | None, trainer: Trainer | None) -> dict[str, Any]:
    """Return what the rows depend on, beside the tasks themselves."""
    return {
        "rows": rows,
        "weights_crc32c": None if pl_module is None else _weights_crc32c(pl_module),
        "precision": None if trainer is None else str(trainer.precision),
    }


def _weights_crc32c(module: torch.nn.Module) -> str:
    """Return a checksum of a model's weights, by name."""
    checksum = 0
    for name, tensor in module.state_dict().items():
        checksum = crc32c(name.encode(), checksum)
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            checksum = crc32c(flat.view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def tasks_crc32c(frame: Any) -> str:
    """Return a checksum of the identifiers and labels of a frame of tasks."""
    checksum = 0
    for start in range(0, len(frame), _SLICE_ROWS):
        for batch in identifiers(frame.slice(start, _SLICE_ROWS)).combine_chunks().to_batches():
            checksum = crc32c(np.frombuffer(batch.serialize(), np.uint8), checksum)
    return f"{checksum:08x}"


def skip_stored(trainer: Trainer, stored: int, rows: int) -> int:
    """Make the trainer predict from the first batch that is not whole in the store; return its first row.

    Whole batches are skipped and none is packed anew, so that a row is padded as it would have been. What
    cannot be skipped is predicted again, and left out where it is stored.
    """
    source = getattr(trainer.predict_loop, "_data_source", None)
    loader = getattr(source, "instance", None)
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if (
        source is None
        or type(loader) is not DataLoader
        or type(loader.sampler) is not SequentialSampler
        or loader.batch_size is None
        or len(loader.dataset) != rows  # type: ignore[arg-type]  # a sequential sampler has a sized one
    ):
        return 0
    first = rows if stored == rows else stored - stored % loader.batch_size
    workers: dict[str, Any] = (
        {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
        if loader.num_workers
        else {}
    )
    source.instance = DataLoader(
        Subset(loader.dataset, range(first, rows)),
        batch_size=loader.batch_size,
        shuffle=False,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        **workers,
    )
    return first
