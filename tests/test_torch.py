"""torch datasets — every row once, with its dtype, for any loader, worker or rank."""

import contextlib
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch.utils.data import DataLoader

import zarrow
from zarrow.errors import (
    IncompleteStoreError,
    InvalidInputError,
    StoreChangedError,
    StoreNotFoundError,
    UnknownNameError,
)
from zarrow.torch import StoreDataset, StoreIterableDataset, collate
from zarrow.torch._order import Order

ROWS, SEGMENT_ROWS, HIDDEN = 2500, 256, 8


def write(path, **options):
    row = np.arange(ROWS)
    vectors = (row[:, None] + np.arange(HIDDEN) / HIDDEN).astype(np.float32)
    table = pa.table(
        {
            "id": row,
            "query": pa.array([None if number % 7 == 0 else f"q{number % 5}" for number in row]),
            "prob": (row / ROWS).astype(np.float32),
            "label": row % 3 == 0,
            "small": pa.array(row % 100, pa.int16()),
            "time": pa.array(row, pa.timestamp("us")),
        }
    )
    with zarrow.Writer(path, keys=["id"], segment_rows=SEGMENT_ROWS, **options) as writer:
        writer.append(table, {"embed": vectors, "layers": vectors.reshape(-1, 2, 4).astype(np.float16)})
        writer.finalize()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("plain") / "run.zarrow"
    write(found)
    return found


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    found = tmp_path_factory.mktemp("zstd") / "run.zarrow"
    write(found, codecs="zstd")
    return found


@pytest.fixture
def store(path):
    return zarrow.open(path)


def check(batch):
    """Assert that everything in a batch belongs to the rows that it names."""
    row = batch["row"]
    assert torch.equal(batch["embed"][:, 0], row.to(torch.float32))
    if "layers" in batch:
        assert torch.equal(batch["layers"].reshape(len(row), -1), batch["embed"].to(torch.float16))
        assert torch.equal(batch["label"], row % 3 == 0)
        assert batch["query"] == [None if n % 7 == 0 else f"q{n % 5}" for n in row.tolist()]
    return row.tolist()


class TestStoreDataset:
    def test_a_row(self, store):
        """A row is a dict of all its columns and arrays."""
        dataset = StoreDataset(store)
        row = dataset[-3]
        assert len(dataset) == ROWS
        assert row["row"] == ROWS - 3
        assert row["query"] == "q2"
        assert row["embed"].shape == (HIDDEN,)
        assert row["layers"].shape == (2, 4)
        assert row["sample_index"] == -1

    def test_dtypes_are_kept(self, store):
        """Tensors have the dtypes of the stored rows; times are int64."""
        batch = collate(StoreDataset(store).__getitems__([5, 1]))
        assert {name: v.dtype for name, v in batch.items() if name != "query"} == {
            "id": torch.int64, "prob": torch.float32, "label": torch.bool, "small": torch.int16,
            "time": torch.int64, "row": torch.int64, "sample_index": torch.int64,
            "embed": torch.float32, "layers": torch.float16,
        }  # fmt: skip
        assert batch["time"].tolist() == [5, 1]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_loader_gives_every_row_once(self, store, workers):
        """A shuffling DataLoader yields every row once per epoch, complete."""
        loader = DataLoader(
            StoreDataset(store), batch_size=300, shuffle=True, num_workers=workers, collate_fn=collate
        )
        rows = [row for batch in loader for row in check(batch)]
        assert sorted(rows) == list(range(ROWS))
        assert rows != sorted(rows)

    def test_torch_collates_too(self, store):
        """torch's default_collate gives the same batch."""
        dataset = StoreDataset(store, columns=["row", "prob", "label"], arrays=["embed"])
        ours, theirs = (
            next(iter(DataLoader(dataset, batch_size=7, collate_fn=function))) for function in (collate, None)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_rows_one_by_one_are_collated(self, store):
        """Rows read one by one make the same batch."""
        dataset = StoreDataset(store)
        check(collate([dataset[7], dataset[3]]))

    def test_batches_can_be_written_to(self, store):
        """A batch belongs to the caller: changing it does not change the store, and causes no warning."""
        dataset = StoreDataset(store)
        batch = collate(dataset.__getitems__(range(10)))
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
        assert check(collate(dataset.__getitems__(range(10)))) == list(range(10))

    def test_filter_and_columns(self, store):
        """A filter, columns and arrays leave everything else out."""
        dataset = StoreDataset(
            store, columns=["row"], arrays=["embed"], filter=pc.field("prob") >= np.float32(0.5)
        )
        assert len(dataset) == 1250
        assert dataset.rows[:2].tolist() == [1250, 1251]
        batch = collate(dataset.__getitems__([0, -1]))
        assert batch.keys() == {"row", "embed"}
        assert check(batch) == [1250, 2499]
        assert len(StoreDataset(store, filter=pc.field("row") < 0)) == 0

    def test_it_is_pickled(self, compressed):
        """An unpickled dataset has the same rows, filter included."""
        dataset = StoreDataset(compressed, filter=pc.field("row") >= 2000)
        assert check(collate(pickle.loads(pickle.dumps(dataset)).__getitems__([3, 1]))) == [2003, 2001]

    def test_spawned_workers(self, path):
        """Spawned workers open the store by themselves."""
        loader = DataLoader(
            StoreDataset(path), batch_size=1000, num_workers=1, collate_fn=collate,
            multiprocessing_context="spawn",
        )  # fmt: skip
        assert [row for batch in loader for row in check(batch)] == list(range(ROWS))

    def test_torchs_own_collate_takes_a_batch_whole(self, store):
        """A DataLoader needs no collate_fn, also where strings are null."""
        batches = list(DataLoader(StoreDataset(store), batch_size=100))
        assert [row for batch in batches for row in check(batch)] == list(range(ROWS))

    def test_a_store_that_is_refreshed(self, tmp_path):
        """A dataset shows the rows that its store had."""
        write(tmp_path / "s")
        store = zarrow.open(tmp_path / "s")
        dataset = StoreDataset(store, columns=["row"])
        with zarrow.Writer(tmp_path / "s", mode="a") as writer:
            writer.append(
                store.table(["id", "query", "prob", "label", "small", "time"]),
                dict(store.take([0] * ROWS)[1]),
            )
            writer.finalize()
        store.refresh()
        assert store.num_rows == 2 * ROWS
        assert len(dataset) == ROWS
        assert collate(dataset.__getitems__([ROWS - 1]))["row"].tolist() == [ROWS - 1]


def _double(batch):
    return batch | {"embed": 2 * batch["embed"]}


class TestStoreIterableDataset:
    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("filter", [None, "thirds"])
    @pytest.mark.parametrize("kind", ["plain", "zstd"])
    def test_every_row_once_over_ranks_and_workers(self, path, compressed, shuffle, filter, kind):
        """For any ranks and workers every row comes once, complete, in as many batches as announced."""
        store = zarrow.open(compressed if kind == "zstd" else path)
        wanted = [row for row in range(ROWS) if filter is None or row % 3 == 0]
        for ranks, workers in ((1, 0), (3, 0), (2, 2)) if shuffle and kind == "plain" else ((1, 0), (3, 0)):
            rows = []
            for rank in range(ranks):
                dataset = StoreIterableDataset(
                    store, 100, shuffle=shuffle, filter=None if filter is None else pc.field("label"),
                    buffer_rows=600, rank=rank, world_size=ranks,
                )  # fmt: skip
                batches = [
                    check(batch) for batch in DataLoader(dataset, batch_size=None, num_workers=workers)
                ]
                if filter is None:
                    assert len(dataset) == len(batches)
                rows += [row for batch in batches for row in batch]
            assert sorted(rows) == wanted
            assert (rows == wanted) is (not shuffle and ranks == 1)

    def test_more_workers_than_blocks(self, store):
        """Workers and ranks without a block yield nothing, and no row is lost."""
        rows = []
        for rank in range(20):
            dataset = StoreIterableDataset(store, 1000, columns=["row"], arrays=[], rank=rank, world_size=20)
            rows += [row for batch in dataset for row in batch["row"].tolist()]
        assert sorted(rows) == list(range(ROWS))

    def test_the_order_follows_from_seed_and_epoch(self, store):
        """The same seed and epoch give the same order, others a different one."""

        def order(dataset):
            return [row for batch in dataset for row in batch["row"].tolist()]

        def make(seed):
            return StoreIterableDataset(store, 64, columns=["row"], arrays=[], shuffle=True, seed=seed)

        dataset = make(1)
        first = order(dataset)
        assert order(dataset) == order(make(1)) == first
        assert order(make(2)) != first
        dataset.set_epoch(3)
        assert order(dataset) != first
        dataset.set_epoch(0)
        assert order(dataset) == first

    def test_rows_are_mixed_within_buffers(self, store):
        """A batch of a shuffled store has rows of several blocks."""
        dataset = StoreIterableDataset(store, 64, columns=["row"], shuffle=True, buffer_rows=1024)
        rows = next(iter(dataset))["row"]
        assert len((rows // SEGMENT_ROWS).unique()) >= 3

    def test_workers_that_stay_are_told_the_epoch(self, store):
        """set_epoch reaches persistent workers."""
        dataset = StoreIterableDataset(store, 500, columns=["row"], arrays=[], shuffle=True)
        loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
        first = [batch["row"].tolist() for batch in loader]
        dataset.set_epoch(1)
        assert [batch["row"].tolist() for batch in loader] != first

    def test_blocks_can_be_smaller_than_segments(self, store):
        """block_rows distributes rows in smaller blocks than segments."""
        dataset = StoreIterableDataset(store, 64, block_rows=100, rank=1, world_size=2)
        assert check(next(iter(dataset))) == list(range(100, 164))
        assert len(dataset) == len(list(dataset))

    def test_tensors_are_the_mapped_files_if_asked_for(self, store):
        """writable=False copies no vectors and causes no warning; by default a batch can be written to."""
        mapped = store["embed"][:].ctypes.data
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shown = next(iter(StoreIterableDataset(store, 100, writable=False)))
            own = next(iter(StoreIterableDataset(store, 100)))
        assert shown["embed"].data_ptr() == mapped
        assert check(shown) == list(range(100))
        own["embed"].zero_()
        assert check(next(iter(StoreIterableDataset(store, 100)))) == list(range(100))

    def test_a_filtered_dataset_has_a_length(self, store):
        """With a filter the batches are as full as without, and counted."""
        dataset = StoreIterableDataset(store, 100, filter=pc.field("label"), shuffle=True)
        batches = [len(batch["row"]) for batch in dataset]
        assert len(dataset) == len(batches)
        assert batches == [100] * 8 + [34]

    def test_ranks_are_torch_distributeds(self, store, monkeypatch):
        """Without rank and world_size the process group decides, also in workers that have none."""
        dataset = StoreIterableDataset(store, 1000, columns=["row"], arrays=[])
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        worker = pickle.dumps(dataset)
        mine = [batch["row"][0].item() for batch in dataset]
        assert mine == list(range(SEGMENT_ROWS, ROWS, 2 * SEGMENT_ROWS))
        monkeypatch.undo()
        assert [batch["row"][0].item() for batch in pickle.loads(worker)] == mine
        assert len(list(dataset)) == 10

    def test_batches_that_are_kept_are_not_overwritten(self, store, compressed, monkeypatch):
        """Memory is used again only when nobody holds the batch, whoever made it."""
        monkeypatch.setattr("zarrow.torch._memory._LARGE_BYTES", 0)
        for source, workers in ((store, 0), (store, 2), (compressed, 2)):
            dataset = StoreIterableDataset(source, 64, shuffle=True)
            batches = list(DataLoader(dataset, batch_size=None, num_workers=workers))
            assert sorted(row for batch in batches for row in check(batch)) == list(range(ROWS))
        vectors = [batch["embed"][:, :1] for batch in dataset]
        assert sorted(torch.cat(vectors).ravel().tolist()) == list(range(ROWS))

    def test_batches_of_workers_can_be_changed_and_copied(self, store):
        """What a collate function makes of a worker's batch arrives, whether it copies or changes it."""
        for change in (copy.deepcopy, _double, dict, lambda batch: pickle.loads(pickle.dumps(batch))):
            dataset = StoreIterableDataset(store, 64, columns=["row"], arrays=["embed"])
            loader = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=change)
            factor = 2 if change is _double else 1
            batches = list(loader)
            assert [row for batch in batches for row in batch["row"].tolist()] == list(range(ROWS))
            for batch in batches:
                assert torch.equal(batch["embed"][:, 0], factor * batch["row"].to(torch.float32))

    def test_a_shuffled_order_is_close_to_a_permutation(self):
        """Rows that follow each other in the default order are hardly more alike than in a permutation."""
        rows, sizes = 1 << 18, {"block_rows": 256, "buffer_rows": 65_536, "segment_rows": 32_768}
        order = Order(
            rows=rows, batch_size=256, shuffle=True, seed=1, group_rows=1 << 17, rank=0, ranks=1, **sizes
        )
        labels = np.repeat(np.random.default_rng(0).random(rows // 1024) < 0.5, 1024)  # runs of four blocks
        found = np.concatenate([order.rows_of(one, 0, n) for n, one in enumerate(order.buffers(0))])
        assert sorted(found.tolist()) == list(range(rows))
        before, after = (np.corrcoef(one[:-1], one[1:])[0, 1] for one in (labels, labels[found]))
        assert before > 0.99
        assert after < 0.02

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("skip", [0, 1, 13, 25])
    def test_it_goes_on_in_the_middle_of_an_epoch(self, store, shuffle, skip):
        """A new dataset that loads a state yields the rest of that epoch, and then whole ones."""

        def make():
            dataset = StoreIterableDataset(
                store, 100, columns=["row"], shuffle=shuffle, buffer_rows=600, block_rows=200, seed=5
            )
            dataset.set_epoch(3)
            return dataset

        dataset = make()
        batches = [batch["row"].tolist() for batch in dataset]
        begun = iter(dataset)
        for _ in range(skip):
            next(begun)
        state = json.loads(json.dumps(dataset.state_dict()))
        resumed = make()
        resumed.set_epoch(0)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert [batch["row"].tolist() for batch in resumed] == batches[skip:]
        assert [batch["row"].tolist() for batch in resumed] == batches

    @pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata asks torch for it
    @pytest.mark.parametrize("workers", [0, 2])
    def test_torchdatas_stateful_loader(self, store, workers):
        """A StatefulDataLoader goes on where its state was taken, with workers too."""
        module = pytest.importorskip("torchdata.stateful_dataloader")

        def make():
            dataset = StoreIterableDataset(store, 100, columns=["row"], shuffle=True, buffer_rows=600)
            return module.StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

        whole = [batch["row"].tolist() for batch in make()]
        loader = make()
        begun = iter(loader)
        first = [next(begun)["row"].tolist() for _ in range(7)]
        state = json.loads(json.dumps(loader.state_dict()))
        del begun
        again = make()
        again.load_state_dict(state)
        assert first + [batch["row"].tolist() for batch in again] == whole
        assert [batch["row"].tolist() for batch in again] == whole

    def test_the_state_of_each_worker(self, store, monkeypatch):
        """The rest of an epoch over the states that workers have taken is what was not yielded yet."""
        rows = []
        for number in range(3):
            worker = types.SimpleNamespace(id=number, num_workers=3)
            monkeypatch.setattr("zarrow.torch.get_worker_info", lambda worker=worker: worker)
            dataset = StoreIterableDataset(
                store, 100, columns=["row"], arrays=[], shuffle=True, block_rows=100
            )
            begun = iter(dataset)
            rows += [
                row for _, batch in zip(range(number), begun, strict=False) for row in batch["row"].tolist()
            ]
            state = dataset.state_dict()
            dataset.load_state_dict(state)
            rows += [row for batch in dataset for row in batch["row"].tolist()]
        assert sorted(rows) == list(range(ROWS))


class TestBadInput:
    @pytest.mark.parametrize("kind", ["batch_size", "seed", "filter", "rank", "store", "workers", "nothing"])
    def test_a_state_of_something_else(self, store, compressed, kind, monkeypatch):
        """A state is refused by a dataset whose batches have other rows; the message names the difference."""
        options = {"batch_size": 100, "shuffle": True, "seed": 1, "rank": 0, "world_size": 2}
        dataset = StoreIterableDataset(store, **options)
        next(iter(dataset))
        state = dataset.state_dict()
        other, match = {
            "batch_size": ({"batch_size": 50}, "batch_size=100, this dataset has 50"),
            "seed": ({"seed": 2}, "seed=1"),
            "filter": ({"filter": pc.field("label")}, "filtered_rows"),
            "rank": ({"rank": 1}, "rank=0"),
            "store": ({}, "store="),
            "workers": ({}, "worker 0 of 1, and is loaded by worker 0 of 2"),
            "nothing": ({}, "got none of 'epoch'"),
        }[kind]
        resumed = StoreIterableDataset(compressed if kind == "store" else store, **options | other)
        if kind == "workers":
            worker = types.SimpleNamespace(id=0, num_workers=2)
            monkeypatch.setattr("zarrow.torch.get_worker_info", lambda: worker)
            resumed.load_state_dict(state)
            with pytest.raises(InvalidInputError, match=match):
                iter(resumed)
        else:
            with pytest.raises(InvalidInputError, match=match):
                resumed.load_state_dict({} if kind == "nothing" else state)

    def test_the_state_while_workers_iterate(self, store):
        """The dataset does not know how far its workers are, and says so."""
        dataset = StoreIterableDataset(store, 100, columns=["row"], arrays=[])
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
        with pytest.raises(InvalidInputError, match="StatefulDataLoader"):
            dataset.state_dict()

    @pytest.mark.parametrize("kind", [StoreDataset, StoreIterableDataset])
    def test_a_worker_that_is_killed(self, store, kind):
        """It is an error, not a hang, and not the end of the epoch; batches that arrived stay valid."""
        if kind is StoreDataset:
            loader = DataLoader(StoreDataset(store), batch_size=8, num_workers=2)
        else:
            loader = DataLoader(StoreIterableDataset(store, 8), batch_size=None, num_workers=2)
        batches = iter(loader)
        kept = [next(batches) for _ in range(6)]
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="worker"):
            kept += list(batches)
        rows = [row for batch in kept for row in check(batch)]
        assert len(rows) == len(set(rows)) < ROWS

    def test_a_store_that_is_replaced(self, tmp_path):
        """No batch has a row of the new store: it is the old one's, or an error."""
        write(tmp_path / "s")
        dataset = StoreIterableDataset(tmp_path / "s", 100, shuffle=True, seed=3, prefetch=0)
        begun = iter(dataset)
        rows = check(next(begun))
        pickled = pickle.dumps(dataset)
        with zarrow.Writer(tmp_path / "s", mode="w") as writer:
            writer.append({"row_": np.arange(ROWS)}, {"embed": np.full((ROWS, HIDDEN), -1, np.float32)})
            writer.finalize()
        with contextlib.suppress(StoreChangedError):
            rows += [row for batch in begun for row in check(batch)]
        assert len(rows) == len(set(rows))
        with pytest.raises(StoreChangedError):
            pickle.loads(pickled)

    def test_an_error_in_the_thread(self, tmp_path):
        """What goes wrong in the thread is raised where its batch would have come, after those before it."""
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append({"n": pa.array([1] * 10 + [None])})
            writer.finalize()
        batches = iter(StoreIterableDataset(tmp_path / "s", 5, block_rows=5))
        assert [len(next(batches)["n"]) for _ in range(2)] == [5, 5]
        with pytest.raises(InvalidInputError, match="fill_values"):
            next(batches)
        for thread in threading.enumerate():
            if thread.name == "zarrow-ahead":
                thread.join(timeout=60)
                assert not thread.is_alive()

    @pytest.mark.parametrize(
        "kind", [StoreDataset, lambda store, **options: StoreIterableDataset(store, 8, **options)]
    )
    def test_names_and_filters(self, store, kind):
        """Unknown names and wrong types are refused when the dataset is created."""
        with pytest.raises(UnknownNameError, match="did you mean 'prob'"):
            kind(store, columns=["probb"])
        with pytest.raises(UnknownNameError, match="did you mean 'embed'"):
            kind(store, arrays=["embd"])
        with pytest.raises(InvalidInputError, match="list of names"):
            kind(store, arrays="embed")
        with pytest.raises(InvalidInputError, match="pyarrow expression"):
            kind(store, filter="prob > 0.5")
        with pytest.raises(UnknownNameError, match="no column 'nothing'"):
            kind(store, fill_values={"nothing": 0})

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 0},
            {"block_rows": -1},
            {"buffer_rows": 0.5},
            {"prefetch": -1},
            {"rank": 2, "world_size": 2},
            {"rank": 0},
        ],
    )
    def test_numbers(self, store, options):
        """Sizes and shares that make no sense are refused, with the value."""
        with pytest.raises(InvalidInputError, match="got"):
            StoreIterableDataset(store, **{"batch_size": 10, **options})

    def test_rows_out_of_range(self, store):
        """An index beyond the dataset is an IndexError."""
        with pytest.raises(IndexError, match="2500"):
            StoreDataset(store)[ROWS]
        with pytest.raises(IndexError, match="index 3 is out of bounds"):
            StoreDataset(store, filter=pc.field("row") < 3).__getitems__([0, 3])

    def test_nulls_need_a_fill_value(self, tmp_path):
        """Null integers, booleans and times are refused with a remedy, and accepted with it."""
        table = pa.table(
            {
                "n": [1, None],
                "label": [None, True],
                "x": [None, 2.0],
                "time": pa.array([1, None], pa.timestamp("s")),
            }
        )
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append(table)
            writer.finalize()
        for name in ("n", "label", "time"):
            with pytest.raises(InvalidInputError, match=f"{name}.*fill_values"):
                StoreDataset(tmp_path / "s", columns=[name]).__getitems__([0, 1])
        filled = {"n": -1, "label": False, "time": 0}
        batch = collate(StoreDataset(tmp_path / "s", fill_values=filled).__getitems__([0, 1]))
        assert batch["n"].tolist() == [1, -1]
        assert batch["label"].tolist() == [False, True]
        assert batch["time"].tolist() == [1000, 0]  # seconds are kept as milliseconds
        assert batch["x"].isnan().tolist() == [True, False]

    def test_stores_that_are_missing_or_incomplete(self, tmp_path):
        """A path is opened as by zarrow.open."""
        with pytest.raises(StoreNotFoundError):
            StoreDataset(tmp_path / "gone")
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append({"n": [1]})
        with pytest.raises(IncompleteStoreError):
            StoreDataset(os.fspath(tmp_path / "s"))
        assert len(StoreDataset(zarrow.open(tmp_path / "s", partial=True))) == 1


def test_without_torch_the_extra_is_named():
    """Without torch the error names the extra that adds it."""
    program = """
import sys
sys.modules["torch"] = None
try:
    import zarrow.torch
except ImportError as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.startswith("MissingExtraError")
    assert "pip install 'zarrow[predict]'" in said
