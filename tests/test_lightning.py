"""PredictionWriter — one rank: from what `predict_step` returns to a complete store."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import zarrow
from zarrow._predict.identifiers import open_identifiers
from zarrow.errors import (
    BatchError,
    IncompleteStoreError,
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    WriteFailedError,
)
from zarrow.lightning import PredictionWriter

HIDDEN = 5
# Advice for validation from Lightning; the order of predictions does not matter here.
SHUFFLED = pytest.mark.filterwarnings("ignore:Your `predict_dataloader`'s sampler has shuffling:UserWarning")
# Lightning warns about every iterable dataset and list; the writer counts the rows itself.
NO_INDICES = pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices:UserWarning")


class Numbers(Dataset):
    """Sample i is the number i."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


class Stream(IterableDataset):
    def __init__(self, rows: int, *, shard: bool = False) -> None:
        self.rows = rows
        self.shard = shard

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        step, first = (info.num_workers, info.id) if self.shard and info else (1, 0)
        return (torch.tensor(float(i)) for i in range(first, self.rows, step))


class Batches:
    """An iterable of batches that is not a DataLoader."""

    def __init__(self, *batches: torch.Tensor) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Buckets:
    """A batch sampler that Lightning does not know."""

    batches = ([5, 3], [1], [0, 2, 4])

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Sized(Stream):
    def __len__(self) -> int:
        return self.rows


def vectors(numbers: torch.Tensor) -> torch.Tensor:
    return numbers[:, None] * 10 + torch.arange(HIDDEN)


def predict_both(batch: torch.Tensor) -> dict[str, Any]:
    return {"number": batch.clone(), "query_embed": vectors(batch)}


class Model(LightningModule):
    def __init__(self, step: Any = predict_both) -> None:
        super().__init__()
        self.step = step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.step(batch)


def trainer(writer: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=[writer, *options.pop("callbacks", ())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def predict(
    path: Path, loaders: Any, step: Any = predict_both, *, trainer_options: Any = None, **options: Any
) -> PredictionWriter:
    writer = PredictionWriter(path, **options)
    trainer(writer, **(trainer_options or {})).predict(Model(step), loaders, return_predictions=False)
    return writer


def stored(path: Path) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Return a complete store's columns and vectors."""
    with zarrow.open(path) as store:
        table = store.table()
        return table.to_pydict(), np.asarray(store["query_embed"][:])


def finished_rows(path: Path) -> dict[str, list[Any]]:
    """Return the rows of an incomplete store, by completing it."""
    with pytest.raises(IncompleteStoreError):
        zarrow.open(path)
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize(partial=True)
    return stored(path)[0]


def check(path: Path, rows: int) -> None:
    """Assert that every number of the dataset is there once, with its own vector and its own index."""
    columns, found = stored(path)
    assert sorted(columns["number"]) == list(range(rows))
    assert columns["sample_index"] == columns["number"]
    np.testing.assert_array_equal(found, vectors(torch.tensor(columns["number"])).reshape(-1, HIDDEN).numpy())


# A run


@pytest.mark.parametrize(("rows", "workers"), [(1, 0), (7, 0), (8, 0), (100, 0), (100, 2)])
def test_every_row_is_stored_with_its_index_and_its_vector(tmp_path, rows, workers):
    """A run over a map-style dataset stores every row once and makes the store complete."""
    loader = DataLoader(Numbers(rows), batch_size=8, num_workers=workers)
    writer = predict(tmp_path / "s", loader)
    check(tmp_path / "s", rows)
    assert writer.complete


def test_persistent_workers(tmp_path):
    """Persistent workers serve the next run, each with its own record of indices."""
    loader = DataLoader(Numbers(50), batch_size=8, num_workers=2, persistent_workers=True)
    for run in range(2):
        predict(tmp_path / f"{run}", loader)
        check(tmp_path / f"{run}", 50)


@SHUFFLED
def test_shuffled_loaders_keep_their_indices(tmp_path):
    """Rows of a shuffled loader are stored in order of prediction, each with its sample_index."""
    loader = DataLoader(Numbers(60), batch_size=7, shuffle=True)
    predict(tmp_path / "s", loader, identifiers=pa.table({"id": range(60)}))
    check(tmp_path / "s", 60)
    columns, _ = stored(tmp_path / "s")
    assert columns["id"] == columns["sample_index"] != sorted(columns["id"])


@pytest.mark.filterwarnings("ignore:You are using a custom batch sampler:UserWarning")
def test_custom_batch_sampler(tmp_path):
    """Batches of a batch sampler that Lightning does not know keep their indices."""
    predict(tmp_path / "s", DataLoader(Numbers(6), batch_sampler=Buckets()))
    check(tmp_path / "s", 6)
    assert stored(tmp_path / "s")[0]["sample_index"] == [5, 3, 1, 0, 2, 4]


def test_drop_last_drops_nothing(tmp_path):
    """Lightning also predicts the short last batch that the loader would drop."""
    predict(tmp_path / "s", DataLoader(Numbers(10), batch_size=4, drop_last=True))
    check(tmp_path / "s", 10)


def test_subset_indices_are_those_of_the_subset(tmp_path):
    """The rows of a Subset are numbered within the Subset."""
    loader = DataLoader(Subset(Numbers(100), range(50, 60)), batch_size=4)
    predict(tmp_path / "s", loader, identifiers=pa.table({"id": range(50, 60)}))
    columns, _ = stored(tmp_path / "s")
    assert columns["id"] == columns["number"]
    assert columns["sample_index"] == list(range(10))


def test_identifiers_of_the_whole_dataset_do_not_fit_a_subset(tmp_path):
    """A table of the whole dataset's identifiers is refused for a Subset, before the first batch."""
    loader = DataLoader(Subset(Numbers(100), range(50, 60)), batch_size=4)
    with pytest.raises(InvalidInputError, match=r"dataset, 10, got 100: .* a Subset of 10 of 100 rows"):
        predict(tmp_path / "s", loader, identifiers=pa.table({"id": range(100)}))


def test_sampler_of_some_rows_completes_the_store(tmp_path):
    """With a sampler for some rows of the dataset, the run is complete when those are stored."""
    loader = DataLoader(Numbers(100), batch_size=4, sampler=SubsetRandomSampler(range(30, 40)))
    assert predict(tmp_path / "s", loader, identifiers=pa.table({"id": range(100)})).complete
    columns, _ = stored(tmp_path / "s")
    assert sorted(columns["id"]) == list(range(30, 40))


@pytest.mark.parametrize("workers", [0, 1])
@NO_INDICES
def test_iterable_datasets_are_counted(tmp_path, workers):
    """Rows of a stream are numbered as they arrive."""
    predict(tmp_path / "s", DataLoader(Stream(50), batch_size=8, num_workers=workers))
    check(tmp_path / "s", 50)


@NO_INDICES
def test_workers_that_read_a_stream_side_by_side_are_refused(tmp_path):
    """A stream with two workers is refused, since the rows of its batches are unknown and may repeat."""
    with pytest.raises(
        InvalidInputError, match=r"2 workers that read an iterable dataset.*pass sample_index="
    ):
        predict(tmp_path / "s", DataLoader(Stream(50), batch_size=8, num_workers=2))


@NO_INDICES
def test_streams_that_carry_their_indices(tmp_path):
    """Rows of a sharded stream have the index that the prediction, or a callable, finds in the batch."""
    loader = DataLoader(Stream(50, shard=True), batch_size=8, num_workers=2)

    def step(batch: torch.Tensor) -> dict[str, Any]:
        return {**predict_both(batch), "index": batch.long()}

    predict(tmp_path / "a", loader, step, sample_index="index")
    check(tmp_path / "a", 50)
    predict(
        tmp_path / "b",
        loader,
        sample_index=lambda batch: batch.long(),
        identifiers=pa.table({"id": range(50)}),
    )
    check(tmp_path / "b", 50)
    columns, _ = stored(tmp_path / "b")
    assert columns["id"] == columns["sample_index"]
    with pytest.raises(BatchError, match="sample_index='nowhere': the prediction has no such entry"):
        predict(tmp_path / "c", loader, step, sample_index="nowhere", ignore=["index"])


@NO_INDICES
def test_streams_that_repeat_rows_are_refused(tmp_path):
    """Workers that each read the whole stream are noticed by the repeated indices."""
    loader = DataLoader(Stream(50), batch_size=8, num_workers=2)
    with pytest.raises(BatchError, match=r"8 of its 8 rows are stored already, .* duplicates='drop'"):
        predict(tmp_path / "s", loader, sample_index=lambda batch: batch.long())
    predict(tmp_path / "t", loader, sample_index=lambda batch: batch.long(), duplicates="drop")
    check(tmp_path / "t", 50)


@NO_INDICES
def test_loaders_without_batches_are_counted(tmp_path):
    """With batch_size=None the dataset yields batches, and any iterable of batches is a loader, too."""
    predict(tmp_path / "s", Batches(torch.arange(5.0), torch.arange(5.0, 7.0)))
    check(tmp_path / "s", 7)
    predict(tmp_path / "t", DataLoader(Numbers(4), batch_size=None), lambda batch: predict_both(batch[None]))
    check(tmp_path / "t", 4)


@NO_INDICES
@SHUFFLED
def test_loaders_without_batches_in_random_order_are_refused(tmp_path):
    """A shuffling sampler whose indices Lightning does not report is refused."""
    loader = DataLoader(Numbers(5), batch_size=None, sampler=RandomSampler(Numbers(5)))
    with pytest.raises(InvalidInputError, match=r"no record of its rows.* RandomSampler.*set batch_size"):
        predict(tmp_path / "s", loader)


@pytest.mark.skipif(
    "in_order" not in DataLoader.__init__.__code__.co_varnames, reason="torch 2.6 has in_order"
)
def test_workers_that_overtake_are_refused(tmp_path):
    """in_order=False is refused, because Lightning reports the indices of another batch."""
    loader = DataLoader(Numbers(50), batch_size=4, num_workers=2, in_order=False)
    with pytest.raises(InvalidInputError, match="in_order=False"):
        predict(tmp_path / "s", loader)


def test_two_loaders(tmp_path):
    """Rows of two loaders are distinguished by dataloader_idx; each has its own indices and identifiers."""
    loaders = [DataLoader(Numbers(5), batch_size=2), DataLoader(Numbers(3), batch_size=2)]
    identifiers = [pa.table({"id": range(5)}), pl.DataFrame({"id": range(100, 103)})]
    predict(tmp_path / "s", loaders, identifiers=identifiers)
    columns, _ = stored(tmp_path / "s")
    assert columns["dataloader_idx"] == [0] * 5 + [1] * 3
    assert columns["sample_index"] == [*range(5), *range(3)]
    assert columns["id"] == [*range(5), *range(100, 103)]


@SHUFFLED
def test_second_loaders_have_indices_of_their_own(tmp_path):
    """The indices of the second loader are used once Lightning has started it."""
    loaders = [DataLoader(Numbers(50), batch_size=8, shuffle=True) for _ in range(3)]
    predict(tmp_path / "s", loaders)
    columns, _ = stored(tmp_path / "s")
    assert columns["number"] == columns["sample_index"] != sorted(columns["sample_index"])


def test_one_table_for_two_loaders_is_refused(tmp_path):
    """Two loaders need two tables of identifiers."""
    loaders = [DataLoader(Numbers(5)), DataLoader(Numbers(3))]
    with pytest.raises(InvalidInputError, match="one per predict data loader: there are 2 loaders, got 1"):
        predict(tmp_path / "s", loaders, identifiers=pa.table({"id": range(8)}))


@NO_INDICES
def test_stale_indices_are_not_believed(tmp_path):
    """A stream after a map-style loader is counted, although Lightning still reports old indices."""
    loaders = [DataLoader(Numbers(8), batch_size=4), DataLoader(Stream(8), batch_size=4)]
    predict(tmp_path / "s", loaders)
    assert stored(tmp_path / "s")[0]["sample_index"] == [*range(8), *range(8)]


def test_data_module(tmp_path):
    """Loaders of a DataModule work like loaders passed to predict."""

    class Data(LightningDataModule):
        def predict_dataloader(self) -> Any:
            return DataLoader(Numbers(9), batch_size=4)

    writer = PredictionWriter(tmp_path / "s")
    trainer(writer).predict(Model(), datamodule=Data(), return_predictions=False)
    check(tmp_path / "s", 9)


# Entries and their storage


def test_names_choose_rename_and_leave_out(tmp_path):
    """Entries are stored under the names given, and left out only by name."""

    def step(batch: torch.Tensor) -> dict[str, Any]:
        return {
            **predict_both(batch),
            "censor_probs": batch / 2,
            "loss": batch.sum(),
            "text": [f"{x:.0f}" for x in batch],
        }

    predict(
        tmp_path / "s",
        DataLoader(Numbers(5), batch_size=2),
        step,
        columns={"number": "number", "censor_prob": "censor_probs", "name": "text"},
        ignore=["loss"],
        keys=["name"],
    )
    columns, found = stored(tmp_path / "s")
    assert columns["censor_prob"] == [0, 0.5, 1, 1.5, 2]
    assert columns["name"] == list("01234")
    assert found.shape == (5, HIDDEN)
    assert "loss" not in columns


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ({"loss": torch.tensor(1.0)}, {}, r"'loss' is Tensor of shape \(\), .* ignore=\['loss'\]"),
        ({"loss": 1.0}, {}, r"'loss' is float, which has no rows"),
        ({"note": "text"}, {}, r"'note' is str"),
        ({"nested": {}}, {}, r"'nested' is dict"),
        (
            {"x": torch.ones(2)},
            {"columns": ["number"]},
            r"neither stored nor ignored: \['x'\]: .* ignore=\['x'\]",
        ),
        ({"x": torch.ones(2, 3)}, {"arrays": ["query_embed"]}, r"neither stored nor ignored: \['x'\]"),
        (
            {},
            {"columns": ["probs"]},
            r"lacks the entry 'probs', which column 'probs' is made of; it has \['number'",
        ),
        ({}, {"arrays": {"e": "embed"}}, r"lacks the entry 'embed', which array 'e' is made of"),
        (
            {"x": torch.ones(3)},
            {},
            r"column 'x': expected 2 rows, as Lightning's record of the batch has, got 3",
        ),
        ({"x": torch.ones(3, 2)}, {}, r"array 'x': expected 2 rows"),
        (
            {"x": torch.ones(2, 1)},
            {"columns": ["number", "x"]},
            r"column 'x': expected one value per row, got Tensor",
        ),
        ({"x": torch.ones(2)}, {"arrays": ["query_embed", "x"]}, r"array 'x': expected one vector per row"),
        ({"row": torch.ones(2)}, {}, r"'row'.*reserved"),
        ({"a b/c": torch.ones(2, 2)}, {}, r"\[A-Za-z0-9_-\]\{1,64\}, got 'a b/c'"),
        ({"s": torch.ones(2, 2).to_sparse()}, {}, r"to_dense"),
    ],
)
def test_entries_that_break_a_rule(tmp_path, extra, options, message):
    """A prediction that does not fit ends the run with the name, the rule and the remedy."""
    with pytest.raises((BatchError, InvalidInputError), match=message) as caught:
        predict(
            tmp_path / "s",
            DataLoader(Numbers(2), batch_size=2),
            lambda b: {**predict_both(b), **extra},
            **options,
        )
    assert "batch 0" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (None, "must return a dict of tensors, got None: return the values to store"),
        (torch.ones(2, 3), r"must return a dict of tensors, got Tensor of shape \(2, 3\): name it"),
        ([torch.ones(2)], "must return a dict of tensors, got list"),
        ({}, "no column and no array"),
    ],
)
@pytest.mark.filterwarnings("ignore:predict returned None:UserWarning")
def test_predictions_that_are_no_dict(tmp_path, prediction, message):
    """Entries without names are refused, and the batches before are not lost."""

    def step(batch: torch.Tensor) -> Any:
        return predict_both(batch) if batch[0] < 4 else prediction

    with pytest.raises(BatchError, match=message if prediction != {} else "lacks the entry 'number'"):
        predict(tmp_path / "s", DataLoader(Numbers(8), batch_size=2), step)
    assert finished_rows(tmp_path / "s")["sample_index"] == [0, 1, 2, 3]
    if prediction == {}:
        with pytest.raises(BatchError, match="no column and no array"):
            predict(tmp_path / "t", DataLoader(Numbers(8), batch_size=2), lambda batch: {})


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"query_embed": torch.ones(2, 3)}, r"array 'query_embed': expected shape \(rows, 5\), got \(2, 3\)"),
        ({"query_embed": torch.ones(2, 5, 1)}, r"expected shape \(rows, 5\), got \(2, 5, 1\)"),
        ({"query_embed": torch.ones(2, 5).double()}, "expected dtype float32, got float64"),
        ({"number": torch.ones(2).long()}, "column 'number': expected float, got int64"),
        ({"number": torch.tensor(1.0)}, r"squeeze\(\) drops the axis of a batch of one row: squeeze\(-1\)"),
        ({"number": torch.tensor([1.0, float("nan")])}, "key 'number': expected a number, got NaN in row 1"),
        ({"new": torch.ones(2)}, r"neither stored nor ignored: \['new'\]"),
    ],
)
def test_changes_in_mid_stream(tmp_path, later, message):
    """A batch unlike the first is refused as a whole; the batches before it are stored."""

    def step(batch: torch.Tensor) -> Any:
        return {**predict_both(batch), **(later if batch[0] == 4 else {})}

    with pytest.raises(BatchError, match=message) as caught:
        predict(tmp_path / "s", DataLoader(Numbers(8), batch_size=2), step, keys=["number"])
    assert "in batch 2 of predict data loader 0 (DataLoader) over a Numbers" in str(caught.value)
    assert finished_rows(tmp_path / "s")["sample_index"] == [0, 1, 2, 3]


def test_all_kinds_of_tensors(tmp_path):
    """Tensors with gradients, views, bfloat16 or many axes are stored unchanged."""

    def step(batch: torch.Tensor) -> dict[str, Any]:
        hidden = batch[:, None, None].expand(-1, 3, HIDDEN).contiguous()
        return {
            "number": batch.clone().requires_grad_(),
            "half": batch.bfloat16(),
            "flag": batch > 2,
            "query_embed": hidden[:, 0],
            "transposed": hidden.mT,
            "narrow": hidden[:, 1].half(),
            "brain": hidden[:, 1].bfloat16().requires_grad_(),
            "wide": hidden.double(),
            "host": hidden.numpy(),
            "ints": hidden.long(),
        }

    predict(
        tmp_path / "s", DataLoader(Numbers(5), batch_size=2), step, trainer_options={"inference_mode": False}
    )
    with zarrow.open(tmp_path / "s") as store:
        columns = store.table()
        assert columns["half"].type == pa.float32()
        assert columns["flag"].to_pylist() == [False, False, False, True, True]
        expected = np.repeat(np.arange(5.0, dtype=np.float32), HIDDEN).reshape(5, HIDDEN)
        for name, dtype in {"query_embed": "f4", "narrow": "f2", "brain": "f4"}.items():
            np.testing.assert_array_equal(store[name][:], expected.astype(dtype), strict=True)
        assert store["transposed"][:].shape == (5, HIDDEN, 3)
        assert store["wide"][:].dtype == np.float64
        np.testing.assert_array_equal(store["host"][:], np.repeat(expected[:, None], 3, 1))
        np.testing.assert_array_equal(store["ints"][:][:, 2], expected.astype(int))


def test_narrower_floats_on_request(tmp_path):
    """Arrays and columns are stored in a narrower type on request, if their values fit."""
    loader = DataLoader(Numbers(5), batch_size=2)
    predict(tmp_path / "s", loader, dtypes={"query_embed": "float16", "number": "float64"})
    columns, found = stored(tmp_path / "s")
    assert found.dtype == np.float16
    assert columns["number"] == [0, 1, 2, 3, 4]

    def big(batch: torch.Tensor) -> dict[str, Any]:
        return {"number": batch, "query_embed": torch.tensor([[1.0], [1e5]]).bfloat16()}

    with pytest.raises(
        BatchError, match=r"array 'query_embed': row 1 of the batch has .*99840.*, which float16"
    ):
        predict(tmp_path / "t", DataLoader(Numbers(2), batch_size=2), big, dtypes={"query_embed": "float16"})
    with pytest.raises(InvalidInputError, match="'bfloat16'"):
        PredictionWriter(tmp_path / "u", dtypes={"query_embed": "bfloat16"})
    with pytest.raises(BatchError, match="must have a floating-point type"):
        predict(tmp_path / "v", loader, lambda b: {"n": b.long()}, dtypes={"n": "float16"})


@pytest.mark.parametrize(("buffers", "first"), [(1, 0), (2, 0), (4, 0), (9, 0), (1, 20)])
def test_memory_that_is_not_ours(tmp_path, buffers, first):
    """What a step returned is stored, whatever becomes of its memory: in rings, begun at any batch."""
    ring = [torch.zeros(4, HIDDEN) for _ in range(buffers)]
    steps = itertools.count()

    def step(batch: torch.Tensor) -> dict[str, Any]:
        number = next(steps)
        if number < first:
            return {"number": batch.clone(), "query_embed": vectors(batch)}
        buffer = ring[number % buffers]
        return {"number": batch.clone(), "query_embed": buffer.copy_(vectors(batch))}

    predict(tmp_path / "s", DataLoader(Numbers(4000), batch_size=4), step)
    check(tmp_path / "s", 4000)


def test_a_callback_that_writes_to_the_prediction(tmp_path):
    """Another callback gets the same values later, and may change them: tensors, arrays and Arrow's alike."""

    class Vandal(Callback):
        def on_predict_batch_end(self, trainer, module, outputs, *_):
            for value in outputs.values():
                (value if isinstance(value, torch.Tensor) else held[-1])[:] = -1

    held: list[np.ndarray] = []

    def step(batch: torch.Tensor) -> dict[str, Any]:
        held.append(batch.numpy().copy())
        return {"number": pa.array(held[-1]), "query_embed": vectors(batch)}

    predict(
        tmp_path / "s",
        DataLoader(Numbers(400), batch_size=4),
        step,
        trainer_options={"callbacks": [Vandal()]},
    )
    check(tmp_path / "s", 400)


def test_views_do_not_pin_what_they_are_views_of():
    """What is queued shares no memory with the prediction, be it a view of a larger tensor or whole."""
    from zarrow._predict.host_copies import HostCopies

    copies = HostCopies()
    hidden = torch.ones(4, 100, HIDDEN)
    given = {"view": hidden[:, 0], "slice": hidden[:2], "own": torch.ones(4, HIDDEN)}
    hosted = copies.begin(given).get()
    for name, tensor in given.items():
        assert not np.shares_memory(hosted[name], tensor.numpy())


# Identifiers


def identifier_sources(tmp_path: Path, rows: int) -> dict[str, Any]:
    table = pa.table({"id": range(1000, 1000 + rows), "name": [f"n{i}" for i in range(rows)]})
    pq.write_table(table, tmp_path / "ids.parquet", row_group_size=7)
    (tmp_path / "ids").mkdir()
    pq.write_table(table.slice(0, 11), tmp_path / "ids" / "a.parquet", row_group_size=4)
    pq.write_table(table.slice(11), tmp_path / "ids" / "b.parquet")
    return {
        "arrow": table,
        "chunks": pa.concat_tables([table.slice(i, 3) for i in range(0, rows, 3)]),
        "polars": pl.from_arrow(table),
        "pandas": table.to_pandas()[::-1][::-1],
        "file": tmp_path / "ids.parquet",
        "text": str(tmp_path / "ids.parquet"),
        "folder": tmp_path / "ids",
        "callable": lambda batch, indices: table.take(pa.array(np.asarray(indices))),
        "from_batch": lambda batch, indices: {
            "id": batch.long().numpy() + 1000,
            "name": [f"n{int(x)}" for x in batch],
        },
    }


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "kind", ["arrow", "chunks", "polars", "pandas", "file", "text", "folder", "callable", "from_batch"]
)
@SHUFFLED
def test_identifiers_of_every_kind(tmp_path, kind, shuffle):
    """Each row gets its own identifiers, in any container and any order of prediction."""
    source = identifier_sources(tmp_path, 30)[kind]
    loader = DataLoader(Numbers(30), batch_size=4, shuffle=shuffle)
    predict(tmp_path / "s", loader, identifiers=source, keys=["id", "name"])
    columns, _ = stored(tmp_path / "s")
    assert columns["id"] == [1000 + i for i in columns["sample_index"]]
    assert columns["name"] == [f"n{i}" for i in columns["sample_index"]]


def test_parquet_identifiers_are_read_a_row_group_at_a_time(tmp_path, monkeypatch):
    """A run in the dataset's order decodes every row group once, and keeps two."""
    decoded = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **rest: decoded.append(i) or read(self, i, **rest)
    )
    pq.write_table(pa.table({"id": range(100)}), tmp_path / "ids.parquet", row_group_size=10)
    identifiers = open_identifiers(tmp_path / "ids.parquet")
    for first in range(0, 100, 7):
        rows = np.arange(first, min(first + 7, 100))
        assert identifiers.take(rows)["id"].to_pylist() == rows.tolist()
        assert len(identifiers._decoded) <= 2
    assert decoded == list(range(10))


@pytest.mark.parametrize("rows", [9, 11])
def test_identifiers_shorter_or_longer_than_the_dataset(tmp_path, rows):
    """Identifiers of a wrong length are refused before the first batch."""
    steps = []
    with pytest.raises(InvalidInputError, match=f"one row per sample of the dataset, 10, got {rows}"):
        predict(
            tmp_path / "s", DataLoader(Numbers(10)), steps.append, identifiers=pa.table({"id": range(rows)})
        )
    assert not steps


@NO_INDICES
def test_identifiers_shorter_than_a_stream(tmp_path):
    """A stream longer than the identifiers ends the run; rows with identifiers are stored."""
    with pytest.raises(BatchError, match="sample_index 5, but there are only 5 rows"):
        predict(tmp_path / "s", DataLoader(Stream(10), batch_size=5), identifiers=pa.table({"id": range(5)}))
    assert finished_rows(tmp_path / "s")["id"] == [0, 1, 2, 3, 4]


@NO_INDICES
def test_identifiers_longer_than_a_stream(tmp_path):
    """A stream that ends before the last identifier leaves the store incomplete."""
    with pytest.warns(UserWarning, match=r"2 of 7 rows of .* are missing"):
        predict(tmp_path / "s", DataLoader(Stream(5), batch_size=5), identifiers=pa.table({"id": range(7)}))
    assert finished_rows(tmp_path / "s")["id"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("identifiers", "message"),
    [
        ("nowhere.parquet", "nowhere.parquet does not exist"),
        (pa.table({"row": range(4)}), "'row' is reserved"),
        (
            pa.table({"number": range(1, 5)}),
            r"'number' is in the identifiers and in the prediction, .* for sample_index 0 they have 1 and 0",
        ),
        (17, "identifiers must be a pyarrow Table"),
        (lambda batch, indices: pa.table({"id": [1]}), "one row per prediction, 2, got 1"),
        (lambda batch, indices: 3, "identifiers must be a pyarrow Table"),
    ],
)
def test_identifiers_that_break_a_rule(tmp_path, identifiers, message):
    """Identifiers that do not fit are refused with their name and the rule."""
    with pytest.raises(InvalidInputError, match=message):
        predict(tmp_path / "s", DataLoader(Numbers(4), batch_size=2), identifiers=identifiers)


def test_a_column_in_both_is_compared(tmp_path):
    """A column that the identifiers and the prediction both have is stored once if it is the same in both."""
    predict(tmp_path / "s", DataLoader(Numbers(4), batch_size=2), identifiers=pa.table({"number": range(4)}))
    assert stored(tmp_path / "s")[0]["number"] == [0, 1, 2, 3]


def test_files_that_are_no_parquet(tmp_path):
    """A path that is not a Parquet file is named."""
    (tmp_path / "ids.parquet").write_text("id\n1\n")
    with pytest.raises(InvalidInputError, match=r"ids\.parquet is not a Parquet file"):
        predict(tmp_path / "s", DataLoader(Numbers(4)), identifiers=tmp_path / "ids.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=r"empty: this folder has no \*\.parquet file"):
        predict(tmp_path / "s", DataLoader(Numbers(4)), identifiers=tmp_path / "empty")


# How runs end


def test_exceptions_keep_every_finished_batch(tmp_path):
    """An exception in a step leaves an incomplete store with all batches before it."""

    def step(batch: torch.Tensor) -> Any:
        if batch[0] >= 6:
            raise RuntimeError("out of memory")
        return predict_both(batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        predict(tmp_path / "s", DataLoader(Numbers(8), batch_size=2), step)
    assert finished_rows(tmp_path / "s")["sample_index"] == [0, 1, 2, 3, 4, 5]


def test_ctrl_c_keeps_every_finished_batch(tmp_path):
    """Ctrl-C leaves an incomplete store with all batches before it."""

    def step(batch: torch.Tensor) -> Any:
        if batch[0] >= 6:
            raise KeyboardInterrupt
        return predict_both(batch)

    with pytest.raises(SystemExit):
        predict(tmp_path / "s", DataLoader(Numbers(8), batch_size=2), step)
    assert finished_rows(tmp_path / "s")["sample_index"] == [0, 1, 2, 3, 4, 5]


def test_limited_runs_are_incomplete(tmp_path):
    """limit_predict_batches ends a run normally; the store is incomplete and the warning counts the rows."""
    with pytest.warns(
        UserWarning, match=r"left incomplete: 6 of 20 rows are safe; 14 of 20 rows of .* are missing"
    ):
        writer = predict(
            tmp_path / "s",
            DataLoader(Numbers(20), batch_size=3),
            trainer_options={"limit_predict_batches": 2},
        )
    assert not writer.complete
    assert finished_rows(tmp_path / "s")["sample_index"] == list(range(6))


@pytest.mark.parametrize(
    "loader", [DataLoader(Numbers(8), batch_size=2), DataLoader(Stream(8), batch_size=2)]
)
@NO_INDICES
def test_swallowed_stop_iteration_is_noticed(tmp_path, loader):
    """A StopIteration from a step, which ends the run for Lightning, leaves the store incomplete."""

    def step(batch: torch.Tensor) -> Any:
        if batch[0] >= 6:
            raise StopIteration
        return predict_both(batch)

    with pytest.warns(UserWarning, match=r"a step ended the run with StopIteration"):
        predict(tmp_path / "s", loader, step)
    assert finished_rows(tmp_path / "s")["sample_index"] == list(range(6))


@NO_INDICES
def test_limited_streams_are_incomplete(tmp_path):
    """A stream cut short by limit_predict_batches stays incomplete; a list of batches is counted."""
    with pytest.warns(UserWarning, match=r"limit_predict_batches ended .* after 4 rows"):
        predict(
            tmp_path / "s", DataLoader(Stream(8), batch_size=2), trainer_options={"limit_predict_batches": 2}
        )
    with pytest.warns(UserWarning, match=r"1 of 3 batches of .* are missing"):
        predict(tmp_path / "t", Batches(*[torch.ones(2)] * 3), trainer_options={"limit_predict_batches": 2})


class Part(Buckets):
    """A batch sampler that yields only a part of the dataset."""

    batches = ([0, 1], [2, 3])


class Dies(Callback):
    def on_predict_start(self, *_: Any) -> None:
        raise RuntimeError("no memory")


@pytest.mark.filterwarnings("ignore:.*Running in `fast_dev_run`:UserWarning")
@pytest.mark.parametrize(
    ("loaders", "how", "words"),
    [
        (DataLoader(Numbers(10), batch_size=4), {"limit_predict_batches": 0}, "10 of 10 rows of .* missing"),
        (
            DataLoader(Numbers(10), batch_size=4),
            {"limit_predict_batches": 0.0},
            "10 of 10 rows of .* missing",
        ),
        (
            DataLoader(Numbers(10), batch_size=4),
            {"fast_dev_run": True},
            "4 of 10 rows are safe; 6 of 10 rows",
        ),
        (
            [DataLoader(Numbers(0)), DataLoader(Numbers(10), batch_size=4)],
            {"limit_predict_batches": 0},
            "10 of 10 rows of predict data loader 1",
        ),
        (DataLoader(Stream(10), batch_size=4), {"limit_predict_batches": 0}, "how many it has is unknown"),
        (DataLoader(Stream(0), batch_size=4), {}, "yielded no row, and how many it has is unknown"),
        (iter([]), {}, "yielded no row, and how many it has is unknown"),
        (DataLoader(Numbers(10), batch_size=4), {"callbacks": [Dies()]}, None),
    ],
    ids=["zero", "zero.0", "fast_dev_run", "two", "stream", "empty stream", "used iterator", "error"],
)
@pytest.mark.filterwarnings("ignore:Total length of:UserWarning")
@NO_INDICES
def test_a_run_that_did_not_predict_its_rows_replaces_nothing(tmp_path, loaders, how, words):
    """Without its rows a run neither completes a store nor replaces one, whatever ended it."""
    old = DataLoader(Numbers(3))
    for mode in ("x", "w"):
        path = tmp_path / mode
        if mode == "w":
            predict(path, old)

        def run(path: Path = path, mode: Any = mode) -> Any:
            return predict(path, loaders, mode=mode, trainer_options=dict(how))

        if words is None:
            with pytest.raises(RuntimeError, match="no memory"):
                run()
        else:
            with pytest.warns(UserWarning, match=words) as warned:
                assert not run().complete
            text = next(str(one.message) for one in warned if "left incomplete" in str(one.message))
            assert ("is as it was" in text) == (mode == "w")
        if mode == "w":
            assert zarrow.open(path).num_rows == 3
        elif path.exists():
            assert not (path / "manifest.json").exists()


def test_identifiers_of_a_run_without_a_batch(tmp_path):
    """limit_predict_batches=0 with identifiers is told like any limited run."""
    ids = pa.table({"id": range(10)})
    options: Any = {"trainer_options": {"limit_predict_batches": 0}}
    with pytest.warns(UserWarning, match="0 of 10 rows are safe; 10 of 10 rows"):
        predict(tmp_path / "s", DataLoader(Numbers(10)), identifiers=ids, **options)


@pytest.mark.filterwarnings("ignore:You are using a custom batch sampler `Part`:UserWarning")
@pytest.mark.filterwarnings("ignore:Total length of:UserWarning")
def test_a_batch_sampler_that_yields_a_part(tmp_path):
    """The advice helps: the same run again adds nothing, expected_rows= completes the store."""
    loader = DataLoader(Numbers(6), batch_sampler=Part())
    path = tmp_path / "s"
    for resume in (False, True):
        with pytest.warns(UserWarning, match=r"4 of 6 rows are safe; .*no others.*expected_rows=4"):
            predict(path, loader, resume=resume)
    assert predict(path, loader, resume=True, expected_rows=4).complete
    with zarrow.open(path) as store:
        assert (store.num_rows, store.expected_rows) == (4, 4)
    assert predict(tmp_path / "t", loader, expected_rows=4).complete


@NO_INDICES
def test_expected_rows_of_a_stream(tmp_path):
    """The caller may say how many rows a stream has; fewer leave the store incomplete."""
    with pytest.warns(UserWarning, match="5 of 7 rows are safe; 2 of 7 rows are missing"):
        predict(tmp_path / "s", DataLoader(Stream(5), batch_size=5), expected_rows=7)
    assert predict(tmp_path / "t", DataLoader(Stream(5), batch_size=5), expected_rows=5).complete


def test_the_store_knows_how_many_rows_its_run_expects(tmp_path):
    """Fewer rows ask for partial=True, which readers are then told; messages count rows in open segments."""
    path = tmp_path / "s"
    loaders = [DataLoader(Numbers(10), batch_size=4), DataLoader(Numbers(1000), batch_size=4)]
    with pytest.warns(UserWarning, match="8 of 1,010 rows"):
        predict(path, loaders, trainer_options={"limit_predict_batches": 1})
    with pytest.raises(IncompleteStoreError, match="8 of 1,010 rows are safe"):
        zarrow.open(path)
    with zarrow.Writer(path, mode="a") as writer:
        with pytest.raises(IncompleteStoreError, match=r"8 of 1,010 rows .*1,002, .*partial=True"):
            writer.finalize()
        writer.finalize(partial=True)
    with zarrow.open(path) as store:
        assert (store.num_rows, store.expected_rows, store.complete) == (8, 1010, True)
        assert "8 of 1,010 rows, finalized without the others" in repr(store)


KILLED_AT_ONCE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_lightning as t

class Kill(t.PredictionWriter):
    def write_on_batch_end(self, trainer, module, prediction, indices, batch, batch_idx, dataloader_idx):
        super().write_on_batch_end(trainer, module, prediction, indices, batch, batch_idx, dataloader_idx)
        if batch_idx == 5:
            os.kill(os.getpid(), signal.SIGKILL)

writer = Kill(sys.argv[2], wait_until_accepted=True)
t.trainer(writer).predict(t.Model(), t.DataLoader(t.Numbers(20), batch_size=2), return_predictions=False)
"""


def test_a_batch_that_was_waited_for_survives_sigkill(tmp_path):
    """With wait_until_accepted=True a kill right after the hook loses no batch."""
    arguments = [str(Path(__file__).parent), str(tmp_path / "s")]
    command = [sys.executable, "-W", "ignore", "-c", KILLED_AT_ONCE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    with zarrow.open(tmp_path / "s", partial=True) as store:
        assert store.table()["sample_index"].to_pylist() == list(range(12))


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero:UserWarning")
def test_datasets_without_rows(tmp_path):
    """A dataset without rows gives a complete store without rows."""
    ids = pa.table({"id": pa.array([], pa.int64())})
    assert predict(tmp_path / "s", DataLoader(Numbers(0)), identifiers=ids, keys=["id", "number"]).complete
    with zarrow.open(tmp_path / "s") as store:
        assert store.num_rows == 0
        assert store.table().schema.field("id").type == pa.int64()


def test_samplers_that_repeat_rows_are_refused(tmp_path):
    """A repeated row is refused, or dropped with duplicates='drop', and then the store is complete."""
    torch.manual_seed(0)
    loader = DataLoader(Numbers(4), batch_size=4, sampler=WeightedRandomSampler([1.0] * 4, 40))
    with pytest.raises(BatchError, match="rows are stored already, the first of them with sample_index"):
        predict(tmp_path / "s", loader)


def test_hoarded_predictions_are_warned_about(tmp_path):
    """The user is warned that Lightning keeps all predictions in memory by default."""
    with pytest.warns(UserWarning, match="pass return_predictions=False"):
        trainer(PredictionWriter(tmp_path / "s")).predict(Model(), DataLoader(Numbers(4)))
    check(tmp_path / "s", 4)


# Where the store goes


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("store", StoreExistsError),
        ("other", NotAStoreError),
        ("nowhere/s", WriteFailedError),
        ("file", NotAStoreError),
    ],
)
def test_paths_are_checked_before_the_first_batch(tmp_path, place, error):
    """A path where no store can be written fails in setup."""
    predict(tmp_path / "store", DataLoader(Numbers(3)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    (tmp_path / "file").touch()
    steps: list[Any] = []
    with pytest.raises(error):
        predict(tmp_path / place, DataLoader(Numbers(3)), steps.append)
    assert not steps
    check(tmp_path / "store", 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_parents_fail_before_the_first_batch(tmp_path):
    """A parent that cannot be written to fails in setup."""
    tmp_path.chmod(0o500)
    steps: list[Any] = []
    with pytest.raises(WriteFailedError):
        predict(tmp_path / "s", DataLoader(Numbers(3)), steps.append)
    assert not steps


def test_replacing_a_store(tmp_path):
    """With mode w the old store stays in place until the new one is complete."""
    predict(tmp_path / "s", DataLoader(Numbers(3)))
    with pytest.warns(UserWarning, match="incomplete"):
        predict(
            tmp_path / "s", DataLoader(Numbers(9)), mode="w", trainer_options={"limit_predict_batches": 2}
        )
    check(tmp_path / "s", 3)
    predict(tmp_path / "s", DataLoader(Numbers(9)), mode="w")
    check(tmp_path / "s", 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "a"}, "mode must be 'x' or 'w', got 'a': to continue"),
        ({"columns": "probs"}, "columns must be a sequence of names"),
        ({"ignore": "probs"}, "ignore must be a collection"),
        ({"columns": ["a"], "arrays": ["a"]}, "cannot be both columns and arrays"),
        ({"columns": ["a"], "ignore": ["a"]}, "cannot be both stored and ignored"),
        ({"columns": {"sample_index": "a"}}, "'sample_index' is reserved"),
        ({"columns": {"a": 1}}, "must map names"),
        ({"duplicates": "keep"}, "duplicates must be"),
    ],
)
def test_arguments_that_break_a_rule(tmp_path, options, message):
    """The constructor refuses arguments that can never work."""
    with pytest.raises(InvalidInputError, match=message):
        PredictionWriter(tmp_path / "s", **options)


def test_trainers_of_the_other_package_are_refused(tmp_path):
    """The Trainer of pytorch_lightning is refused, since it records no indices for this callback."""
    with pytest.raises(InvalidInputError, match=r"must come from lightning\.pytorch, got builtins"):
        PredictionWriter(tmp_path / "s").setup(object(), Model(), stage="predict")
    assert not (tmp_path / "s").exists()


def test_training_is_none_of_its_business(tmp_path):
    """The callback does nothing outside of predict."""

    class Trained(Model):
        def training_step(self, batch: Any) -> Any:
            return self.layer(batch[:, None]).sum()

        def configure_optimizers(self) -> Any:
            self.layer = torch.nn.Linear(1, 1)
            return torch.optim.SGD(self.layer.parameters(), 0.1)

    run = trainer(PredictionWriter(tmp_path / "s"), max_epochs=1)
    run.fit(Trained(), DataLoader(Numbers(4), batch_size=2))
    assert not (tmp_path / "s").exists()


# What it costs


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_keeps_no_record_of_written_batches(tmp_path, workers):
    """The indices that Lightning records for every batch are dropped once the batch is written."""
    sizes = []

    class Watch(PredictionWriter):
        def write_on_batch_end(self, run: Trainer, *rest: Any) -> None:
            super().write_on_batch_end(run, *rest)
            sizes.append(len(pickle.dumps(run.predict_dataloaders.batch_sampler.seen_batch_indices)))

    loader = DataLoader(Numbers(6000), batch_size=2 if not workers else 20, num_workers=workers)
    trainer(Watch(tmp_path / "s")).predict(Model(), loader, return_predictions=False)
    check(tmp_path / "s", 6000)
    assert max(sizes) < 1000


def test_lightning_is_asked_for_by_name():
    """Without lightning the import says what to install."""
    code = """
import sys
sys.modules["lightning"] = None
import zarrow
assert "torch" not in sys.modules
from zarrow.errors import MissingExtraError
try:
    import zarrow.lightning
except MissingExtraError as error:
    assert "pip install 'zarrow[predict]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class _Tokens(LightningModule):
    """Yields token vectors of as many tokens as the sample's number says, padded to six."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def predict_step(self, batch):
        lengths = (batch[0][:, 0] % 7).long()
        mask = torch.arange(6) < lengths[:, None]
        padded = (batch[0][:, :1, None] + torch.arange(6)[:, None] + torch.zeros(3)).to(torch.bfloat16)
        if self.form == "jagged":
            rows = [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]
            return {"token_embed": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}
        beside = {"mask": mask, "ints": mask.int(), "lengths": lengths}[self.form]
        return {"token_embed": padded, "beside": beside}


@pytest.mark.parametrize("form", ["mask", "ints", "lengths", "jagged"])
def test_padding_is_not_stored(tmp_path, form):
    numbers = torch.arange(25.0).reshape(25, 1)
    loader = DataLoader(TensorDataset(numbers), batch_size=4)
    masks = {} if form == "jagged" else {"token_embed": "beside"}
    for resume in (False, True):
        writer = PredictionWriter(tmp_path / "s", ragged=masks, resume=resume)
        trainer(writer).predict(_Tokens(form), loader, return_predictions=False)
    with zarrow.open(tmp_path / "s") as store:
        assert list(store.ragged) == ["token_embed"]
        array = store["token_embed"]
        assert array.counts.tolist() == [row % 7 for row in range(25)]
        for row in range(25):
            expected = row + np.arange(row % 7)[:, None] + np.zeros(3)
            assert np.array_equal(array[row], expected.astype("float32"))
        assert "beside" not in store


def test_a_mask_that_does_not_fit_is_refused(tmp_path):
    class Wrong(_Tokens):
        def predict_step(self, batch):
            found = super().predict_step(batch)
            return found | {"beside": found["beside"][:, :5]}

    loader = DataLoader(TensorDataset(torch.arange(8.0).reshape(8, 1)), batch_size=4)
    writer = PredictionWriter(tmp_path / "s", ragged={"token_embed": "beside"})
    with pytest.raises(
        BatchError, match=r"batch 0 .*'token_embed' \(with 'beside'\): the mask must have shape"
    ):
        trainer(writer).predict(Wrong("mask"), loader, return_predictions=False)
    writer = PredictionWriter(tmp_path / "t", ragged={"token_embed": "attention_mask"})
    with pytest.raises(BatchError, match="lacks the entry 'attention_mask'"):
        trainer(writer).predict(_Tokens("mask"), loader, return_predictions=False)
