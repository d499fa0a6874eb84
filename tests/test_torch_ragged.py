"""Ragged arrays in torch datasets — every row's own vectors, jagged or padded, for any loader."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import zarrow
from zarrow.errors import InvalidInputError
from zarrow.torch import StoreDataset, StoreIterableDataset, collate

ROWS, WIDTH = 300, 4
COUNTS = np.where(np.arange(ROWS) % 5 == 0, 0, np.arange(ROWS) % 7)


def write(path, **options):
    values = np.repeat(np.arange(ROWS, dtype=np.float32), COUNTS)[:, None] + np.arange(WIDTH) / 8
    tokens = zarrow.Ragged(values.astype(np.float32), COUNTS)
    with zarrow.Writer(path, segment_rows=64, **options) as writer:
        writer.append(
            {"n": np.arange(ROWS)}, {"tokens": tokens, "embed": np.arange(ROWS * 2.0).reshape(-1, 2)}
        )
        writer.finalize()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain") / "run.zarrow")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    return write(tmp_path_factory.mktemp("zstd") / "run.zarrow", codecs="zstd")


def check(batch, ragged="jagged"):
    """Assert that everything in a batch belongs to the rows that it names."""
    rows = batch["row"]
    counts = torch.from_numpy(COUNTS)[rows]
    assert torch.equal(batch["embed"][:, 0], 2.0 * rows)
    if ragged == "jagged":
        assert batch["tokens"].layout == torch.jagged
        found = list(batch["tokens"].unbind())
        assert "tokens_mask" not in batch
    else:
        assert batch["tokens"].shape == (len(rows), counts.max(), WIDTH)
        assert torch.equal(batch["tokens_mask"].sum(1), counts)
        assert not batch["tokens"][~batch["tokens_mask"]].any()
        found = [one[mask] for one, mask in zip(batch["tokens"], batch["tokens_mask"], strict=True)]
    for row, count, vectors in zip(rows.tolist(), counts.tolist(), found, strict=True):
        assert vectors.shape == (count, WIDTH)
        assert (vectors == row + torch.arange(WIDTH) / 8).all()
    return rows.tolist()


@pytest.mark.parametrize("ragged", ["jagged", "padded"])
class TestBothForms:
    def test_rows(self, path, ragged):
        """A single row has its own vectors, and rows read one by one make a batch."""
        dataset = StoreDataset(path, ragged=ragged)
        assert dataset[3]["tokens"].shape == (3, WIDTH)
        assert dataset[5]["tokens"].shape == (0, WIDTH)
        check(collate([dataset[6], dataset[5], dataset[3]]), ragged)
        check(collate([pickle.loads(pickle.dumps(dataset[row])) for row in (1, 2)]), ragged)
        batch = dataset.__getitems__([6, 5, 3])
        check(batch.batch, ragged)
        check(collate([batch[2], batch[0]]), ragged)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_loader_that_shuffles(self, path, ragged, workers):
        """A DataLoader yields every row once, collated by torch or by `collate`, from workers too."""
        for function in (None, collate):
            loader = DataLoader(
                StoreDataset(path, ragged=ragged),
                batch_size=64,
                shuffle=True,
                num_workers=workers,
                collate_fn=function,
            )
            assert sorted(row for batch in loader for row in check(batch, ragged)) == list(range(ROWS))

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("kind", ["plain", "zstd"])
    def test_streams(self, path, compressed, ragged, shuffle, kind):
        """For any ranks and workers every row comes once; with and without a thread that reads ahead."""
        source = compressed if kind == "zstd" else path
        for ranks, workers, prefetch in ((1, 0, 0), (2, 0, 2), (1, 2, 2)):
            rows = []
            for rank in range(ranks):
                dataset = StoreIterableDataset(
                    source, 50, ragged=ragged, shuffle=shuffle, prefetch=prefetch, rank=rank, world_size=ranks
                )
                loader = DataLoader(dataset, batch_size=None, num_workers=workers)
                batches = [check(batch, ragged) for batch in loader]
                assert len(batches) == len(dataset)
                rows += [row for batch in batches for row in batch]
            assert sorted(rows) == list(range(ROWS))

    def test_it_goes_on_in_the_middle_of_an_epoch(self, path, ragged):
        """A state of a dataset with ragged arrays is loaded as any other."""

        def make():
            return StoreIterableDataset(path, 50, ragged=ragged, shuffle=True, buffer_rows=100)

        whole = [check(batch, ragged) for batch in make()]
        dataset = make()
        begun = iter(dataset)
        first = [check(next(begun), ragged) for _ in range(3)]
        again = make()
        again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
        assert first + [check(batch, ragged) for batch in again] == whole

    def test_batches_can_be_written_to(self, path, ragged):
        """A batch belongs to the caller: changing it does not change the store."""
        for _ in range(2):
            batch = next(iter(StoreIterableDataset(path, 50, ragged=ragged)))
            check(batch, ragged)
            (batch["tokens"].values() if ragged == "jagged" else batch["tokens"]).zero_()

    def test_rows_without_vectors(self, tmp_path, ragged):
        """A batch in which no row has a vector is a batch."""
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append({"n": [1, 2]}, {"t": zarrow.Ragged(np.empty((0, WIDTH), np.float16), [0, 0])})
            writer.finalize()
        for batch in (
            next(iter(DataLoader(StoreDataset(tmp_path / "s", ragged=ragged), batch_size=2))),
            next(iter(StoreIterableDataset(tmp_path / "s", 2, ragged=ragged, shuffle=True))),
        ):
            assert batch["t"].dtype == torch.float16
            assert batch["t"].size(0) == 2
            assert [one.shape for one in batch["t"].unbind()] == [(0, WIDTH)] * 2


def test_a_jagged_batch_is_the_mapped_file_if_asked_for(path):
    """writable=False copies no vectors; a model takes the batch as it is."""
    store = zarrow.open(path)
    batch = next(iter(StoreIterableDataset(store, 64, writable=False)))
    assert batch["tokens"].values().data_ptr() == store["tokens"].values.ctypes.data
    assert torch.nn.Linear(WIDTH, 3)(batch["tokens"]).sum(1).shape == (64, 3)


def test_arrays_that_are_named(path):
    """arrays= chooses among ragged and other arrays; what is not named is not read."""
    assert "tokens" not in StoreDataset(path, arrays=["embed"])[3]
    assert StoreDataset(path, arrays=["tokens"]).__getitems__([3]).batch.keys() >= {"n", "row", "tokens"}
    assert "tokens any × (4,)" in repr(StoreDataset(path))


def test_a_buffer_of_compressed_rows_is_bounded_in_bytes(compressed, monkeypatch):
    """Rows of very many vectors are not held in memory by the ten thousands."""
    monkeypatch.setattr("zarrow.torch._BUFFER_BYTES", 2000)
    dataset = StoreIterableDataset(compressed, 50, shuffle=True, block_rows=16)
    assert 16 <= dataset.state_dict()["buffer_rows"] < 64
    assert sorted(row for batch in dataset for row in check(batch)) == list(range(ROWS))


def test_bad_input(path, tmp_path):
    """Another form, and a mask whose name is taken, are refused with a remedy."""
    for kind in (StoreDataset, lambda store, **options: StoreIterableDataset(store, 8, **options)):
        with pytest.raises(InvalidInputError, match="'jagged' or 'padded', got 'packed'"):
            kind(path, ragged="packed")
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"t_mask": [1]}, {"t": zarrow.Ragged(np.ones((2, 2)), [2])})
        writer.finalize()
    with pytest.raises(InvalidInputError, match="mask 't_mask', which is the name of another one"):
        StoreDataset(tmp_path / "s", ragged="padded")
    assert StoreDataset(tmp_path / "s", columns=["row"], ragged="padded")[0]["t_mask"].tolist() == [True] * 2


def test_a_torch_without_jagged_tensors(path, monkeypatch):
    """It is named with the version that is needed; padded tensors do without."""
    monkeypatch.delattr("torch.nested.nested_tensor_from_jagged")
    with pytest.raises(InvalidInputError, match=r"need torch 2\.4.*ragged=\"padded\""):
        StoreDataset(path)
    check(StoreDataset(path, ragged="padded").__getitems__([1, 2]).batch, "padded")
