"""Resumed predict runs — a killed run, resumed, stores what an undisturbed one stores."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import zarrow
from zarrow._predict import identity
from zarrow.errors import (
    BatchError,
    InvalidInputError,
    SchemaMismatchError,
    StoreExistsError,
    ZarrowError,
)
from zarrow.lightning import MissingRowsSampler, PredictionWriter

NO_INDICES = pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices:UserWarning")
SHUFFLED = pytest.mark.filterwarnings("ignore:Your `predict_dataloader`'s sampler has shuffling:UserWarning")


class Numbers(Dataset):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return (torch.tensor(float(i)) for i in range(30))


class Buckets:
    """A batch sampler that Lightning does not know."""

    def __init__(self, *batches: list[int]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Model(LightningModule):
    """A model whose values depend on which rows share a batch, as with padding."""

    def __init__(self, *, stop_at: int | None = None, weight: float = 1.0, how: Any = RuntimeError) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self._stop_at = stop_at
        self.how = how
        self.seen: list[list[int]] = []

    def predict_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        if self._stop_at is not None and len(self.seen) >= self._stop_at:
            raise self.how("stop")
        self.seen.append(batch.int().tolist())
        mean = torch.full_like(batch, batch.sum().item()) * self.weight
        return {"number": batch, "together": mean, "query_embed": torch.stack([batch, mean], 1)}


def run(path: Path, loaders: Any, model: Model | None = None, **options: Any) -> Model:
    model = model or Model()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[PredictionWriter(path, **options)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if isinstance(loaders, LightningDataModule):
        trainer.predict(model, datamodule=loaders, return_predictions=False)
    else:
        trainer.predict(model, loaders, return_predictions=False)
    return model


def stop(path: Path, loaders: Any, batches: int, **options: Any) -> None:
    """Predict a number of batches, then die."""
    with pytest.raises(RuntimeError, match="stop"):
        run(path, loaders, Model(stop_at=batches), **options)


def content(path: Path) -> tuple[pa.Table, np.ndarray]:
    """Return a complete store's rows in the dataset's order."""
    with zarrow.open(path) as store:
        table = store.table()
        keys = [
            (name, "ascending") for name in ("dataloader_idx", "sample_index") if name in table.column_names
        ]
        order = pa.compute.sort_indices(table, sort_keys=keys)
        return table.take(order).drop_columns(["row"]), np.asarray(store["query_embed"][:])[order.to_numpy()]


def assert_equal(one: Path, other: Path) -> None:
    (table, vectors), (other_table, other_vectors) = content(one), content(other)
    assert table.equals(other_table)
    np.testing.assert_array_equal(vectors, other_vectors)


# What is predicted again


@pytest.mark.parametrize("stopped_at", [0, 1, 5, 12])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_runs_equal_undisturbed_ones(tmp_path, stopped_at, workers):
    """A resumed run predicts exactly the missing batches, with the same values."""
    loader = DataLoader(Numbers(50), batch_size=4, num_workers=workers)
    options: dict[str, Any] = {"identifiers": pa.table({"id": range(50)}), "segment_rows": 8}
    stop(tmp_path / "s", loader, stopped_at, **options)
    model = run(tmp_path / "s", loader, resume=True, **options)
    assert model.seen == [list(range(i, min(i + 4, 50))) for i in range(4 * stopped_at, 50, 4)]
    run(tmp_path / "whole", loader, **options)
    assert_equal(tmp_path / "s", tmp_path / "whole")


def test_many_deaths(tmp_path):
    """A run that dies after every batch is completed nevertheless."""
    loader = DataLoader(Numbers(20), batch_size=3)
    for _ in range(6):
        stop(tmp_path / "s", loader, 1, resume=True)
    assert run(tmp_path / "s", loader, resume=True).seen == [[18, 19]]
    run(tmp_path / "whole", loader)
    assert_equal(tmp_path / "s", tmp_path / "whole")


def test_batches_that_a_crash_cut_are_predicted_whole(tmp_path):
    """If a batch spans two segments and one is lost, only the missing rows are stored again."""
    with zarrow.Writer(tmp_path / "s", provenance={"predict": {}}) as writer:
        writer.append(
            {"number": np.arange(4, dtype="f4"), "together": np.float32([3, 3, 3, 12])},
            {"query_embed": np.float32([[0, 3], [1, 3], [2, 3], [3, 12]])},
            sample_index=np.arange(4),
        )
    loader = DataLoader(Numbers(10), batch_size=3)
    assert run(tmp_path / "s", loader, resume=True).seen == [[3, 4, 5], [6, 7, 8], [9]]
    run(tmp_path / "whole", loader)
    assert_equal(tmp_path / "s", tmp_path / "whole")


def test_another_batch_size(tmp_path):
    """A run can be resumed with another batch size; every row is stored once."""
    stop(tmp_path / "s", DataLoader(Numbers(50), batch_size=4), 3)
    model = run(tmp_path / "s", DataLoader(Numbers(50), batch_size=10), resume=True)
    assert model.seen[0] == list(range(10, 20))
    assert content(tmp_path / "s")[0]["sample_index"].to_pylist() == list(range(50))


def test_complete_stores_are_left_alone(tmp_path):
    """Resuming a complete store predicts nothing and changes nothing."""
    loader = DataLoader(Numbers(10), batch_size=4)
    run(tmp_path / "s", loader, resume=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert run(tmp_path / "s", loader, resume=True).seen == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}


def test_stores_that_were_completed_early_go_on(tmp_path, caplog):
    """A store that was completed without all rows is resumed like a killed one, and the rows are counted."""
    loader = DataLoader(Numbers(10), batch_size=4)
    stop(tmp_path / "s", loader, 1)
    with zarrow.Writer(tmp_path / "s", mode="a") as writer:
        writer.finalize(partial=True)
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    with pytest.raises(SchemaMismatchError, match="weights"):
        run(tmp_path / "s", loader, Model(weight=2.0), resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    with caplog.at_level("INFO", logger="lightning.pytorch.zarrow"):
        assert run(tmp_path / "s", loader, resume=True).seen == [[4, 5, 6, 7], [8, 9]]
    assert "4 of 10 rows are taken over from the run that began at 20" in caplog.text
    assert caplog.messages[-1] == f"{tmp_path / 's'}: complete, 10 rows"
    run(tmp_path / "whole", loader)
    assert_equal(tmp_path / "s", tmp_path / "whole")
    assert zarrow.open(tmp_path / "s").expected_rows == 10


@NO_INDICES
def test_streams_that_were_completed_early_say_what_to_do(tmp_path):
    """Where the number of rows is unknown, the error counts the stored ones; its remedy works."""
    loader = DataLoader(Stream(), batch_size=4)
    stop(tmp_path / "s", loader, 2)
    with zarrow.Writer(tmp_path / "s", mode="a") as writer:
        writer.finalize()
    with pytest.raises(BatchError, match=r"completed with 8 rows .* sample_index 8: .* expected_rows="):
        run(tmp_path / "s", loader, resume=True)
    run(tmp_path / "s", loader, resume=True, expected_rows=30)
    assert content(tmp_path / "s")[0]["sample_index"].to_pylist() == list(range(30))


@SHUFFLED
@pytest.mark.parametrize("sampler", [None, SubsetRandomSampler(range(5, 45))])
def test_shuffled_loaders(tmp_path, sampler):
    """With a shuffled loader exactly the missing rows are predicted."""
    loader = DataLoader(Numbers(50), batch_size=4, shuffle=sampler is None, sampler=sampler)
    stop(tmp_path / "s", loader, 5)
    model = run(tmp_path / "s", loader, resume=True)
    assert sum(map(len, model.seen)) == (50 if sampler is None else 40) - 20
    rows = content(tmp_path / "s")[0]["sample_index"].to_pylist()
    assert rows == list(range(50) if sampler is None else range(5, 45))


def test_samplers_with_an_order_of_their_own(tmp_path):
    """A deterministic sampler yields the same batches again."""

    class Backwards(torch.utils.data.Sampler):
        def __iter__(self) -> Any:
            return iter(range(19, -1, -1))

        def __len__(self) -> int:
            return 20

    loader = DataLoader(Numbers(20), batch_size=6, sampler=Backwards())
    stop(tmp_path / "s", loader, 1)
    assert run(tmp_path / "s", loader, resume=True).seen == [
        [13, 12, 11, 10, 9, 8],
        [7, 6, 5, 4, 3, 2],
        [1, 0],
    ]
    run(tmp_path / "whole", loader)
    assert_equal(tmp_path / "s", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:You are using a custom batch sampler `Buckets`:UserWarning")
def test_custom_batch_samplers(tmp_path):
    """Batches of a custom batch sampler are skipped or predicted as a whole."""
    loader = DataLoader(Numbers(6), batch_sampler=Buckets([5, 3], [1], [0, 2, 4]))
    stop(tmp_path / "s", loader, 2)
    assert run(tmp_path / "s", loader, resume=True).seen == [[0, 2, 4]]
    run(tmp_path / "whole", loader)
    assert_equal(tmp_path / "s", tmp_path / "whole")


def test_subsets_and_data_modules(tmp_path):
    """Loaders of a DataModule are resumed like those passed to predict."""

    class Data(LightningDataModule):
        def predict_dataloader(self) -> Any:
            return DataLoader(Subset(Numbers(50), range(30, 50)), batch_size=4)

    stop(tmp_path / "s", Data(), 2)
    assert run(tmp_path / "s", Data(), resume=True).seen[0] == [38, 39, 40, 41]
    run(tmp_path / "whole", Data())
    assert_equal(tmp_path / "s", tmp_path / "whole")


def test_two_loaders(tmp_path):
    """Each loader continues where it stopped, and a finished one is skipped."""
    loaders = [DataLoader(Numbers(10), batch_size=4), DataLoader(Numbers(7), batch_size=2)]
    stop(tmp_path / "s", loaders, 4)
    assert run(tmp_path / "s", loaders, resume=True).seen == [[2, 3], [4, 5], [6]]
    run(tmp_path / "whole", loaders)
    assert_equal(tmp_path / "s", tmp_path / "whole")


@NO_INDICES
def test_streams_are_predicted_again_and_stored_once(tmp_path):
    """A stream is predicted from the start, and its stored rows are not stored again."""
    loader = DataLoader(Stream(), batch_size=4)
    stop(tmp_path / "s", loader, 3)
    run(tmp_path / "s", loader, resume=True)
    assert content(tmp_path / "s")[0]["sample_index"].to_pylist() == list(range(30))


def test_the_weights_are_read_once(tmp_path, monkeypatch):
    """A run reads its model's weights once, resumed or not."""
    calls = []
    original = identity._checksum
    monkeypatch.setattr(identity, "_checksum", lambda named: calls.append(1) or original(named))
    loader = DataLoader(Numbers(10), batch_size=4)
    stop(tmp_path / "s", loader, 1)
    assert len(calls) == 2  # parameters and buffers
    run(tmp_path / "s", loader, resume=True)
    assert len(calls) == 4


def test_loaders_are_given_back(tmp_path):
    """A resumed run leaves trainer, loader and model as they were."""
    loader = DataLoader(Numbers(10), batch_size=4)
    stop(tmp_path / "s", loader, 1)
    model = run(tmp_path / "s", loader, resume=True)
    assert list(loader.batch_sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    model.seen.clear()
    run(tmp_path / "t", loader, model)
    assert len(model.seen) == 3
    run(tmp_path / "s", loader, model, resume=True)
    assert model.allow_zero_length_dataloader_with_multiple_devices is False
    model.trainer.callbacks.clear()
    model.trainer.predict(model, loader, return_predictions=False)
    assert len(model.seen) == 6


# What is refused


def test_incomplete_stores_ask_for_resume(tmp_path):
    """Without resume=True an incomplete store is an error that says so."""
    loader = DataLoader(Numbers(10), batch_size=4)
    stop(tmp_path / "s", loader, 1)
    with pytest.raises(StoreExistsError, match="resume=True continues it"):
        run(tmp_path / "s", loader)
    with pytest.raises(InvalidInputError, match="choose one"):
        PredictionWriter(tmp_path / "s", resume=True, mode="w")


def test_another_run_is_refused_with_what_differs(tmp_path):
    """Another model, dataset or provenance is refused, unless force=True."""

    class Other(Model):
        pass

    loader = DataLoader(Numbers(10), batch_size=4)
    stop(tmp_path / "s", loader, 1, provenance={"checkpoint": "a.ckpt"})
    for options, message in (
        ({"model": Model(weight=2.0)}, "weights: the store has '[0-9a-f]{8}', now '[0-9a-f]{8}'"),
        ({"model": Other()}, "model: the store has 'Model', now '.*Other'"),
        ({"loaders": DataLoader(Numbers(11))}, r"datasets\[0\].rows: the store has 10, now 11"),
        ({"provenance": {"checkpoint": "b.ckpt"}}, r"checkpoint: the store has 'a.ckpt', now 'b.ckpt'"),
        ({"keys": ["number"]}, "keys"),
    ):
        with pytest.raises(SchemaMismatchError, match=message):
            run(tmp_path / "s", **{"loaders": loader, "resume": True, **options})
    run(tmp_path / "s", loader, Model(weight=2.0), resume=True, force=True)
    assert content(tmp_path / "s")[0]["sample_index"].to_pylist() == list(range(10))
    with pytest.raises(SchemaMismatchError, match="datasets"):
        run(tmp_path / "s", DataLoader(Numbers(9)), resume=True)


class Cohort(LightningDataModule):
    def __init__(self, max_len: int, fingerprint: str = "a", workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters("max_len")
        self.num_workers = workers
        self.numbers = Numbers(10)
        self.numbers.fingerprint = lambda: fingerprint

    def predict_dataloader(self) -> Any:
        return DataLoader(self.numbers, batch_size=4, num_workers=self.num_workers)


def test_settings_and_data_are_part_of_the_run(tmp_path):
    """Other hyperparameters of the data module, or other data, are refused, named, and not stored."""
    stop(tmp_path / "s", Cohort(256), 1)
    for data, message in (
        (Cohort(8), "data.hparams.max_len: the store has 256, now 8"),
        (Cohort(256, "b"), r"datasets\[0\].fingerprint: the store has 'a', now 'b'"),
    ):
        with pytest.raises(SchemaMismatchError, match=message + r".*mode='w'.*force=True"):
            run(tmp_path / "s", data, resume=True)
    run(tmp_path / "s", Cohort(256, workers=2), resume=True)
    run(tmp_path / "whole", Cohort(256))
    assert_equal(tmp_path / "s", tmp_path / "whole")
    with pytest.raises(SchemaMismatchError, match="max_len"):  # also where nothing is left to predict
        run(tmp_path / "s", Cohort(8), resume=True)


def test_other_identifiers_are_refused(tmp_path):
    """Identifiers in another order would name the new rows otherwise than the stored ones."""
    loader = DataLoader(Numbers(50), batch_size=4)
    ids = pa.table({"id": range(50), "name": [float("nan"), *map(float, range(49))]})
    stop(tmp_path / "s", loader, 2, identifiers=ids)
    for other in (ids.slice(1).take([*range(49), 0]), ids.set_column(1, "name", [[1.0] * 50])):
        with pytest.raises(
            SchemaMismatchError, match=r"identifier '\w+' of sample_index \d: the store has .*, now"
        ):
            run(tmp_path / "s", loader, resume=True, identifiers=other)
    run(tmp_path / "s", loader, resume=True, identifiers=ids)
    assert content(tmp_path / "s")[0]["id"].to_pylist() == list(range(50))


def test_another_schema_is_refused(tmp_path):
    """Predictions that do not fit the store end the run, and the store is unchanged."""
    loader = DataLoader(Numbers(10), batch_size=4)
    stop(tmp_path / "s", loader, 1)
    with pytest.raises(InvalidInputError, match=r"columns must be .* missing \['together'\]"):
        run(tmp_path / "s", loader, resume=True, columns=["number"], ignore=["together"])
    run(tmp_path / "s", loader, resume=True)


def test_stores_of_others_are_refused(tmp_path):
    """A store with rows without sample_index is refused, as missing rows are unknown."""
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"number": [1.0]})
    with pytest.raises(InvalidInputError, match="some rows have no sample_index"):
        run(tmp_path / "s", DataLoader(Numbers(10)), resume=True)


# Signals


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from torch.utils.data import DataLoader
from test_lightning_resume import Model, Numbers, run

class Slow(Model):
    __qualname__ = "Model"

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        time.sleep(0.002)
        print(batch_idx, flush=True)
        return super().predict_step(batch, batch_idx, dataloader_idx)

loader = DataLoader(Numbers(1500), batch_size=7, num_workers=int(sys.argv[3]))
run(Path(sys.argv[2]), loader, Slow(), resume=True, segment_rows=64)
print("done", flush=True)
"""


def start(path: Path, workers: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_batches(process: subprocess.Popen[str], batches: int) -> bool:
    """Wait until a number of batches is predicted; return whether that happened before the end."""
    assert process.stdout is not None
    return all(process.stdout.readline().strip() not in ("", "done") for _ in range(batches))


def finish(path: Path) -> None:
    """Resume in this process, and compare with an undisturbed run."""
    loader = DataLoader(Numbers(1500), batch_size=7)
    run(path, loader, resume=True)
    run(path.with_name("whole"), loader, segment_rows=64)
    assert_equal(path, path.with_name("whole"))


@pytest.mark.slow
def test_sigkill(tmp_path):
    """A run killed with its workers loses no row and stores none twice; tests/crash kills many more."""
    process = start(tmp_path / "s", workers=2)
    wait_for_batches(process, 60)
    process.kill()
    process.communicate()
    with zarrow.open(tmp_path / "s", partial=True) as store:
        assert store.num_rows > 0
    finish(tmp_path / "s")


@pytest.mark.slow
def test_sigterm(tmp_path):
    """On SIGTERM the current batch is stored, everything is durable, and the exit code is that of SIGTERM."""
    process = start(tmp_path / "s")
    assert wait_for_batches(process, 20)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    batches = 20 + len(output.split())
    assert batches < 200
    with zarrow.open(tmp_path / "s", partial=True) as store:
        assert store.num_rows == 7 * batches
    finish(tmp_path / "s")


# The public sampler


def test_missing_rows_sampler(tmp_path):
    """A loader over the missing rows, made by the user, completes the store."""
    loader = DataLoader(Numbers(50), batch_size=4)
    stop(tmp_path / "s", loader, 5)
    sampler = MissingRowsSampler(tmp_path / "s", Numbers(50), batch_size=4)
    assert len(sampler) == 8
    model = run(tmp_path / "s", DataLoader(Numbers(50), batch_sampler=sampler), resume=True)
    assert model.seen[0] == [20, 21, 22, 23]
    run(tmp_path / "whole", loader)
    assert_equal(tmp_path / "s", tmp_path / "whole")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_missing_rows_sampler_deals_out(tmp_path, world_size):
    """The ranks share the missing batches, each once and about equally."""
    stop(tmp_path / "s", DataLoader(Numbers(20), batch_size=3), 2)
    ranks = [
        MissingRowsSampler(tmp_path / "s", 20, batch_size=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(rank) for rank in batches]
    assert sorted(itertools.chain.from_iterable(batches)) == [
        [6, 7, 8],
        [9, 10, 11],
        [12, 13, 14],
        [15, 16, 17],
        [18, 19],
    ]
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_missing_rows_sampler_without_a_store(tmp_path):
    """Without a store all rows are missing."""
    assert list(MissingRowsSampler(tmp_path / "s", 5, batch_size=2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(InvalidInputError, match="batch_size must be positive"):
        MissingRowsSampler(tmp_path / "s", 5, batch_size=0)


@pytest.mark.parametrize("what", ["embeddings.zarr/query_embed/c/1/0", "table/part-00000001.parquet"])
def test_a_resume_after_a_repair_predicts_what_was_damaged_and_nothing_else(
    tmp_path: Path, what: str
) -> None:
    """After a repair, exactly the rows set aside are predicted again, and the store is as before."""
    loader = DataLoader(Numbers(60), batch_size=4)
    for name in ("whole", "damaged"):
        run(tmp_path / name, loader, segment_rows=16)
    path = tmp_path / "damaged" / what
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    done = zarrow.repair(tmp_path / "damaged")
    again = run(tmp_path / "damaged", loader, resume=True)
    predicted = sorted(itertools.chain.from_iterable(again.seen))
    assert predicted == list(range(16, 32))
    assert list(done.sample_index) == ([] if "part" in what else predicted)
    assert done.nameless_rows == (16 if "part" in what else 0)
    assert_equal(tmp_path / "whole", tmp_path / "damaged")
    assert zarrow.verify(tmp_path / "damaged", "full").ok


def test_a_plain_writers_store_is_not_resumed(tmp_path):
    """Rows that no predict wrote count as another run's: they are taken over only with force=True."""
    path = tmp_path / "run.zarrow"
    for finalize in (False, True):
        with zarrow.Writer(path, mode="w") as writer:
            writer.append(
                {"prob": np.zeros(4, np.float32)}, {"query_embed": np.zeros((4, 4), np.float32)}, range(4)
            )
            if finalize:
                writer.finalize()
        with pytest.raises(
            SchemaMismatchError, match=r"not written by a predict.*predict again \(mode='w'\), or take"
        ):
            plain_predict(path)
        assert len(zarrow.open(path, partial=True)) == 4
    plain_predict(path, force=True)
    assert len(zarrow.open(path)) == 10


def plain_predict(path, **options):
    class Plain(LightningModule):
        def predict_step(self, batch, batch_idx):
            return {"prob": batch[0].mean(1), "query_embed": batch[0]}

    data = TensorDataset(torch.arange(40.0).reshape(10, 4))
    writer = PredictionWriter(path, columns=["prob"], arrays=["query_embed"], resume=True, **options)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[writer],
    )
    trainer.predict(Plain(), DataLoader(data, batch_size=2), return_predictions=False)


def test_an_attribute_of_the_module_that_changed_is_another_run(tmp_path: Path) -> None:
    """A store that is half by one setting and half by another is no run's, hyperparameter or not."""

    class Scaled(LightningModule):
        def __init__(self, scale: float, fails_at: int | None) -> None:
            super().__init__()
            self.scale, self._fails_at = scale, fails_at

        def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            if batch_idx == self._fails_at:
                raise RuntimeError("hour nine")
            return {"e": batch[0] * self.scale}

    def predict(model: Scaled, **options: Any) -> None:
        quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False}
        writer = PredictionWriter(tmp_path / "run.zarrow", resume=True, **options)
        trainer = Trainer(accelerator="cpu", callbacks=[writer], logger=False, **quiet)
        loader = DataLoader(TensorDataset(torch.ones(20, 2)), batch_size=5)
        trainer.predict(model, loader, return_predictions=False)

    with pytest.raises(RuntimeError):
        predict(Scaled(1.0, 2))
    with pytest.raises(ZarrowError, match=r"attributes\.scale: the store has 1\.0, now 2\.0"):
        predict(Scaled(2.0, None))
    predict(Scaled(1.0, None))
    assert zarrow.open(tmp_path / "run.zarrow")["e"][:].tolist() == [[1, 1]] * 20


def test_a_dtype_for_no_entry_is_refused(tmp_path: Path) -> None:
    """As a typo in columns= is: the array would be stored as it is, unnoticed."""

    class Embedder(LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"embedding": batch[0], "id": batch[0][:, :1]}

    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    for options, message in (
        (
            {"dtypes": {"embed": "float16"}},
            "dtypes: there is no entry 'embed'; did you mean 'embedding'",
        ),
        ({"keys": ["id"]}, r"key 'id' is an array, not a column: .* not \(rows, 1\)"),
    ):
        writer = PredictionWriter(tmp_path / "run.zarrow", **options)
        trainer = Trainer(accelerator="cpu", callbacks=[writer], **quiet)
        loader = DataLoader(TensorDataset(torch.ones(20, 2)), batch_size=5)
        with pytest.raises(ZarrowError, match=message):
            trainer.predict(Embedder(), loader, return_predictions=False)
        assert not (tmp_path / "run.zarrow/zarrow.json").exists()
