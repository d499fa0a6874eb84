"""Ragged derived arrays — computed from a store's rows, and found wherever other derived arrays are."""

import pickle

import numpy as np
import pytest
import torch
import xarray as xr

import zarrow
import zarrow.analysis
from zarrow.errors import InvalidInputError, StoreChangedError
from zarrow.torch import StoreDataset
from zarrow.transfer import export

ROWS, WIDTH = 40, 4
COUNTS = np.arange(ROWS) % 4


@pytest.fixture
def path(tmp_path):
    values = np.arange(COUNTS.sum() * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    with zarrow.Writer(tmp_path / "s", segment_rows=16, keys=["id"]) as writer:
        writer.append({"id": np.arange(ROWS)[::-1]}, {"t": zarrow.Ragged(values, COUNTS)})
        writer.finalize()
    store = zarrow.open(tmp_path / "s")
    # Only the first vectors of a row, twice as long: other counts, made block by block.
    blocks = (
        zarrow.Ragged.from_list([row[:2] * 2 for row in found["t"]] or [np.empty((0, WIDTH), np.float32)])
        for _, found in store.join(arrays=["t"], batch_size=7)
    )
    zarrow.add_array(store, "short", blocks, provenance={"how": "first two"})
    return tmp_path / "s"


def expected(path):
    return [row[:2] * 2 for row in zarrow.open(path)["t"][:]]


def check(found, rows):
    assert len(found) == len(rows)
    assert all(np.array_equal(one, other) for one, other in zip(found, rows, strict=True))


def test_it_is_read_as_any_ragged_array(path, tmp_path):
    """Rows, joins, xarray, torch, late interaction, exports and pickles have the derived array."""
    store, rows = zarrow.open(path), expected(path)
    array = store["short"]
    check(array[:], rows)
    check(array[[5, 3]], [rows[5], rows[3]])
    assert array.provenance["how"] == "first two"
    assert list(store.derived) == ["short"]
    assert "t" in store.take([0])[1]
    assert "short" not in store.take([0])[1]
    check(store.take([7, 3], arrays=["short"])[1]["short"], [rows[7], rows[3]])
    check(pickle.loads(pickle.dumps(array))[:], rows)
    with xr.open_dataset(path) as dataset:
        assert dataset["short"].shape == (sum(map(len, rows)), WIDTH)
        assert dataset["short_count"].values.tolist() == list(map(len, rows))
    batch = StoreDataset(path, arrays=["short"]).__getitems__([3, 4]).batch
    assert batch["short"].layout == torch.jagged
    best = zarrow.analysis.nearest(store, rows[3], array="short", metric="maxsim", k=1)
    scores = [(rows[3] @ row.T).max(axis=1).sum() if len(row) else -1 for row in rows]
    assert best.rows.tolist() == [[int(np.argmax(scores))]]
    assert zarrow.analysis.describe(store, ["short"]).arrays["short"].vectors.max == 2
    export(store, tmp_path / "out.parquet", arrays=["short"])
    assert "short" in store._repr_html_()


def test_it_goes_where_the_store_goes(path, tmp_path):
    """Sorting, copying and verifying take it along; an append outdates it; it can be removed."""
    zarrow.copy(path, tmp_path / "copied")
    check(zarrow.open(tmp_path / "copied")["short"][:], expected(path))
    rows = expected(path)
    zarrow.pack(path, order="id")
    check(zarrow.open(path)["short"][:], rows[::-1])
    assert not zarrow.verify(path, "full").findings
    before = zarrow.open(path)["short"]
    pickled = pickle.dumps(before)
    zarrow.add_array(path, "short", zarrow.Ragged(np.ones((ROWS, 2), np.float16), np.ones(ROWS, int)))
    with pytest.raises(StoreChangedError):
        pickle.loads(pickled)
    assert zarrow.open(path)["short"].vector_shape == (2,)
    zarrow.remove_array(path, "short")
    assert not zarrow.open(path).derived


def test_damage_is_found_and_set_aside(path):
    """verify names a damaged derived array, repair sets it aside, and the rows stay."""
    shards = (path / "derived/short/embeddings.zarr/short/c").rglob("0")
    shard = next(one for one in shards if one.is_file())
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    assert "derived/short" in str(zarrow.verify(path, "checksums").findings)
    zarrow.repair(path)
    store = zarrow.open(path)
    assert "short" not in store.derived
    assert len(store["t"]) == ROWS


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (zarrow.Ragged(np.ones((2, 2)), [2]), "a row for each of the store's 40, got 1"),
        ([np.ones((2, 2)), np.ones((1, 3))], "row 1: expected shape"),
    ],
)
def test_bad_values(path, values, says):
    """Values that do not fit the rows are refused, and the array that is there stays."""
    with pytest.raises(InvalidInputError, match=says):
        zarrow.add_array(path, "short", values)
    check(zarrow.open(path)["short"][:], expected(path))


def test_names_that_are_taken(tmp_path):
    """A derived ragged array needs a free name for its counts, too."""
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"x_count": [1]})
        writer.finalize()
    with pytest.raises(InvalidInputError, match="'x_count', which is a column"):
        zarrow.add_array(tmp_path / "s", "x", zarrow.Ragged(np.ones((1, 2)), [1]))
