"""Identity of a run — whether a store was started by the same run that resumes it.

What determines the predictions is written into the store's provenance and compared on resume:

* the model: its class, its hyperparameters, its own plain attributes, and the crc32c of every byte of its
  parameters and buffers;
* the data: the settings of the data module, of every dataset and of every collate function (`settings`), a
  dataset's length, and its fingerprint, if it offers one;
* the precision, and the versions of the packages that compute;
* whatever the user's own provenance says.

A *fingerprint* is what a dataset or data module offers as ``fingerprint`` or ``_fingerprint``, as those of
Hugging Face do: a text or number, or a method without arguments that returns one.

How a run is executed (checkpoint, ranks, devices, batch size, workers) may change. An honest resume has the
same identity on every rank, whatever their number.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parameter import is_lazy

from zarrow._format.checksum import crc32c
from zarrow._predict.settings import attributes_of, plain, settings, tensor_crc32c, tensors_in, text_of

__all__ = ["differences", "identify"]

PREDICT = "predict"
_COMPARED = (
    "model",
    "hparams",
    "attributes",
    "weights",
    "buffers",
    "data",
    "datasets",
    "precision",
    "versions",
)
_LENIENT = {"attributes", "data", "datasets", "versions"}
"""What may name things that another run does not: attributes that are set late, packages."""


def identify(trainer: Trainer, module: LightningModule, loaders: Sequence[Any]) -> dict[str, Any]:
    """Return the identity of a run, for the store's provenance. Reads every weight once.

    Parameters
    ----------
    trainer : Trainer
        About to predict, with the checkpoint loaded.
    module : LightningModule
        The model.
    loaders : sequence of DataLoader or iterable
        The data loaders.

    Returns
    -------
    dict
        JSON values.
    """
    data: Any = getattr(trainer, "datamodule", None)
    datasets = [getattr(loader, "dataset", loader) for loader in loaders]
    collates = [getattr(loader, "collate_fn", None) for loader in loaders]
    # Sharded weights look different on every rank.
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    return {
        PREDICT: {
            # Without its module, which may be __main__ or not, depending on how a script is started.
            "model": type(module).__qualname__,
            "hparams": plain(module.hparams),
            "attributes": _attributes(module),
            "weights": _checksum(_weights(module)) if whole else None,
            "buffers": _checksum(module.named_buffers()) if whole else None,
            "checkpoint": None if trainer.ckpt_path is None else text_of(trainer.ckpt_path),
            "data": None if data is None else settings(data),
            "datasets": [
                settings(dataset) | ({} if collate is None else {"collate_fn": plain(collate)})
                for dataset, collate in zip(datasets, collates, strict=True)
            ],
            "precision": str(trainer.precision),
            "versions": _versions([*module.modules(), data, *datasets, *collates]),
            "ranks": trainer.world_size,
        }
    }


def _attributes(module: LightningModule) -> dict[str, Any]:
    """Return a module's own plain attributes, but for those that its hyperparameters have.

    And but for containers, in which a step may collect something.
    """
    own, known = vars(module), set(module.hparams)
    left_out = {name for name, value in own.items() if isinstance(value, list | dict | set)} | known
    return {name: value for name, value in attributes_of(module).items() if name not in left_out}


def _weights(module: LightningModule) -> Iterator[tuple[str, Any]]:
    """Yield the parameters, and what else a module saves, such as packed weights."""
    seen = {name for name, _ in module.named_buffers()}
    for name, tensor in module.named_parameters():
        seen.add(name)
        yield name, tensor
    yield from ((name, value) for name, value in module.state_dict().items() if name not in seen)


def _checksum(named: Iterable[tuple[str, Any]]) -> str | None:
    """Return the crc32c of tensors and their names; None if there are none."""
    checksum, named = 0, [*named]
    for name, value in sorted(named, key=lambda one: one[0]):
        checksum = crc32c(name.encode(), checksum)
        for tensor in tensors_in(value):
            if not is_lazy(tensor) and not tensor.is_meta:
                checksum = tensor_crc32c(tensor, checksum)
    return f"{checksum:08x}" if named else None


def _versions(parts: Iterable[Any]) -> dict[str, str]:
    """Return the versions of the packages that compute: those that the parts of the run come from."""
    names = {type(part).__module__ for part in parts} | {getattr(part, "__module__", "") for part in parts}
    roots = {"torch", "lightning", *(str(name).partition(".")[0] for name in names)}
    if "transformers" in sys.modules:  # tokenizers may be anywhere
        roots.add("transformers")
    found = {}
    for root in sorted(roots - {"", "builtins", "__main__", "functools"}):
        version = getattr(sys.modules.get(root), "__version__", None)
        try:
            found[root] = str(version) if isinstance(version, str) else metadata.version(root)
        except metadata.PackageNotFoundError:
            # A look at all that is installed takes a tenth of a second: not for the user's own scripts.
            if "site-packages" in str(getattr(sys.modules.get(root), "__file__", "")):
                for distribution in metadata.packages_distributions().get(root, ())[:1]:
                    found[root] = metadata.version(distribution)
    return found


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how this run differs from the one that started the store, in words.

    Parameters
    ----------
    stored, now : mapping
        Two provenances. A value that only one of them has is not a difference.

    Returns
    -------
    list of str
        One text per difference. A store of which nothing can be compared, such as a plain `Writer` makes,
        differs.

    Examples
    --------
    >>> differences({"predict": {"weights": "aa"}, "note": 1}, {"predict": {"weights": "bb"}, "note": 1})
    ["weights: the store has 'aa', now 'bb'"]
    >>> stored, now = ({"predict": {"data": {"hparams": {"max_len": length}}}} for length in (256, 8))
    >>> differences(stored, now)
    ['data.hparams.max_len: the store has 256, now 8']
    """
    if not stored.keys() & now.keys():
        return ["it was not written by a predict, so that nothing says which model its rows are from"]
    old, new = stored.get(PREDICT, {}), now.get(PREDICT, {})
    pairs = [(name, old.get(name), new.get(name), name in _LENIENT) for name in _COMPARED]
    pairs += [(name, stored.get(name), value, False) for name, value in now.items() if name != PREDICT]
    return [
        found
        for name, before, after, lenient in pairs
        if before is not None and after is not None
        for found in _compare(name, before, after, lenient=lenient)
    ]


def _compare(name: str, before: Any, after: Any, *, lenient: bool) -> Iterator[str]:
    """Yield the differences of two values, by the path of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        both = before.keys() & after.keys()
        for key in sorted(both if lenient else before.keys() | after.keys()):
            of_each = (values.get(key, "(nothing)") for values in (before, after))
            # Datasets within a dataset are lenient, too; settings below are not.
            yield from _compare(f"{name}.{key}", *of_each, lenient=lenient and key == "datasets")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from _compare(f"{name}[{i}]", *pair, lenient=lenient)
    elif before != after:
        yield f"{name}: the store has {_short(before)}, now {_short(after)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}…"
