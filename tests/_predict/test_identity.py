"""Identity of a run — it covers whatever determines the predictions, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from zarrow._predict import settings as module
from zarrow._predict.identity import differences, identify
from zarrow._predict.settings import plain, settings, tensor_crc32c


class Texts(Dataset):
    def __init__(self, rows: int = 10, **attributes: Any) -> None:
        self.rows = rows
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


class Data(LightningDataModule):
    def __init__(self, max_len: int | None = 8, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()


class Model(LightningModule):
    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, 3)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("computed", torch.zeros(2), persistent=False)


@dataclasses.dataclass
class Config:
    max_seq_len: int = 256
    path: Path = Path("x")


@functools.cache
def the_trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def identity(model: Any = None, data: Any = None, loader: Any = None) -> dict[str, Any]:
    trainer = the_trainer()
    trainer.datamodule = data  # type: ignore[attr-defined]
    loaders = [DataLoader(Texts()) if loader is None else loader]
    found = identify(trainer, model or Model(), loaders)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    return found


def changed(**parts: Any) -> Any:
    """Say how a run with other parts differs from the usual one."""
    usual = {"data": Data()} if "data" in parts else {}
    return differences(identity(**usual), identity(**parts))


# Weights

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int8,
    torch.bool,
    torch.complex64,
    torch.float64,
]


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    dtype=st.sampled_from(DTYPES),
    at=st.integers(0, 10**6),
    piece=st.integers(1, 64),
)
def test_every_element_counts_however_it_lies_in_memory(
    shape: list[int], dtype: torch.dtype, at: int, piece: int
) -> None:
    """One other element is another checksum; pieces, strides and views do not matter."""
    tensor = torch.zeros(shape, dtype=dtype)
    other = tensor.clone()
    other.view(-1)[at % other.numel()] = 1
    before = module._PIECE_BYTES
    module._PIECE_BYTES = max(piece, tensor.element_size())
    try:
        assert tensor_crc32c(tensor) != tensor_crc32c(other)
        strided = other.transpose(0, -1).contiguous().transpose(0, -1) if shape else other
        found = tensor_crc32c(strided)
    finally:
        module._PIECE_BYTES = before
    assert found == tensor_crc32c(other)


def test_the_column_that_was_not_sampled() -> None:
    """In a large square matrix every element counts, as it does in a buffer, persistent or not."""
    for name in ("layer.weight", "layer.bias", "kept", "computed"):
        model = Model()
        if name == "layer.weight":
            model.layer.weight = torch.nn.Parameter(torch.zeros(3, 3))
        tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
        tensor.data.view(-1)[-1] = 1
        what = "weights" if "layer" in name else "buffers"
        (found,) = changed(model=model)
        assert found.startswith(f"{what}: the store has '")


def test_weights_that_are_no_plain_parameters() -> None:
    """Packed, sparse, lazy and conjugated tensors have a checksum, too."""

    class Packed(Model):
        def __init__(self, value: int) -> None:
            super().__init__()
            self.value = value

        def state_dict(self, *args: Any, **options: Any) -> Any:
            return {"packed": (torch.full((2,), self.value), None, {"scale": torch.ones(1)})}

    one, other = identity(Packed(1)), identity(Packed(2))
    assert [found.split(":")[0] for found in differences(one, other)] == ["hparams.value", "weights"]
    assert tensor_crc32c(torch.eye(2).to_sparse()) == tensor_crc32c(torch.eye(2))
    z = torch.tensor([1 + 2j])
    assert tensor_crc32c(z.conj()) == tensor_crc32c(torch.tensor([1 - 2j]))
    lazy = Model()
    lazy.head = torch.nn.LazyLinear(2)
    assert identity(lazy)["predict"]["weights"]


# Data and settings


class Kind(Enum):
    ONE = 1
    TWO = 2


SETTINGS: list[Any] = [
    8,
    8.5,
    "left",
    None,
    Path("/data"),
    Kind.ONE,
    torch.float16,
    np.int64(8),
    [1, 2],
    (1, [2]),
    {"a", "b"},
    {"max_len": 8},
    {"a": {"b": [8]}},
    Config(8),
    SimpleNamespace(max_len=8),
    partial(sorted, reverse=True),
    torch.ones(3),
    np.arange(3),
    range(3),
]


@given(st.sampled_from(SETTINGS), st.sampled_from(SETTINGS))
def test_a_setting_of_a_dataset_that_changed_is_named(one: Any, other: Any) -> None:
    """Whatever kind of value a public attribute has, another value of it is a difference."""
    of_one, of_other = ({"predict": {"datasets": [settings(Texts(option=value))]}} for value in (one, other))
    found = differences(of_one, of_other)
    if one is other:
        assert found == []
    else:
        assert plain(one) == plain(other) or found
        assert all(text.startswith("datasets[0].option") for text in found)


def test_what_changes_predictions_is_named() -> None:
    """Hyperparameters, configurations, collate functions, subsets, fingerprints and lengths count."""
    assert changed(model=Model(2.0)) == ["hparams.temperature: the store has 1.0, now 2.0"]
    assert changed(data=Data(16)) == ["data.hparams.max_len: the store has 8, now 16"]
    assert changed(data=Data(None)) == ["data.hparams.max_len: the store has 8, now None"]
    assert changed(loader=DataLoader(Texts(11)))[-1] == "datasets[0].rows: the store has 10, now 11"

    def of(*loaders: Any) -> list[str]:
        return differences(*(identity(loader=loader) for loader in loaders))

    def texts(**attributes: Any) -> Any:
        return DataLoader(Texts(**attributes))

    found = of(texts(config=Config()), texts(config=Config(8)))
    assert found == ["datasets[0].config.max_seq_len: the store has 256, now 8"]
    found = of(*(DataLoader(Texts(), collate_fn=partial(list, max_len)) for max_len in (8, 16)))
    assert found == ["datasets[0].collate_fn.args[0]: the store has 8, now 16"]
    found = of(*(DataLoader(Subset(Texts(), range(a, a + 3))) for a in (0, 4)))
    assert len(found) == 1
    assert found[0].startswith("datasets[0].indices: the store has 'crc32c ")
    assert of(*(DataLoader(Subset(Texts(), rows)) for rows in (range(2), [0, 1]))) == []
    found = of(*(DataLoader(ConcatDataset([Texts(), Texts(option=a)])) for a in "ab"))
    assert found == ["datasets[0].datasets[1].option: the store has 'a', now 'b'"]
    for name in ("fingerprint", "_fingerprint"):
        for offer in (str, lambda text: lambda: text):
            found = of(*(texts(**{name: offer(text)}) for text in "ab"))
            assert found == ["datasets[0].fingerprint: the store has 'a', now 'b'"]
    assert settings(Texts(fingerprint=lambda molecule: molecule))["fingerprint"].endswith(
        "<lambda>"
    )  # a setting


def test_how_a_run_is_executed_does_not_matter() -> None:
    """Batch size, workers, devices, ranks, caches, objects, and what is set late are no difference."""
    assert changed(data=Data(batch_size=64)) == []
    same = Texts(batch_size=3, num_workers=2, rank=1, world_size=8, device="cuda:1", _cache={1: 2}, late="x")
    same.stream = iter([])  # type: ignore[attr-defined]
    assert changed(loader=DataLoader(same, batch_size=7, num_workers=2)) == []
    model = Model()
    model.trainer = None  # type: ignore[assignment]
    assert changed(model=model) == []


def test_packages_that_compute_are_named() -> None:
    """The versions of torch, lightning and of whatever the modules come from are compared."""
    versions = identity()["predict"]["versions"]
    assert versions["torch"] == torch.__version__
    assert {"torch", "lightning"} <= set(versions)
    before = {"predict": {"versions": versions | {"torch": "1.0", "gone": "1"}}}
    assert differences(before, {"predict": {"versions": versions}}) == [
        f"versions.torch: the store has '1.0', now {torch.__version__!r}"
    ]


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_identity import *
things = Texts(codes={"a", "b", "c", "d"}, fn=len, config=Config(), kinds=frozenset(Kind))
print(json.dumps(identity(Model(), Data(), DataLoader(things)), sort_keys=True))
"""


@pytest.mark.slow
def test_an_honest_restart_has_the_same_identity() -> None:
    """In another process, with another order of sets, the identity is the same to the byte."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    things = Texts(codes={"a", "b", "c", "d"}, fn=len, config=Config(), kinds=frozenset(Kind))
    here = identity(Model(), Data(), DataLoader(things))
    assert found.strip() == json.dumps(here, sort_keys=True)


@pytest.mark.parametrize("rows", [3, 20_000])
def test_large_settings_are_bounded(rows: int) -> None:
    """A large attribute does not swell the store's provenance."""
    found = settings(Texts(rows=1, words=[f"word {i}" for i in range(rows)]))
    assert ("words" in found) == (rows == 3)
    text = settings(Texts(rows=1, words=["x" * 1000] * 100))["words"]
    assert text.startswith("crc32c ")
