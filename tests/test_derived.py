"""Derived arrays — they belong to the rows they were computed from, and to no others."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from typer.testing import CliRunner

import zarrow
from zarrow.cli import app
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    StoreChangedError,
    StoreLockedError,
    StoreNotFoundError,
    UnknownNameError,
)
from zarrow.testing import example_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    example_store(tmp_path / "run.zarrow").close()
    return tmp_path / "run.zarrow"


@pytest.fixture
def places() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5000, 2)).astype(np.float32)


def test_every_reader_sees_it(path: Path, places: np.ndarray) -> None:
    """zarrow, xarray, zarr-python and a pickled array return the stored rows."""
    zarrow.add_array(path, "pca", (places[start : start + 700] for start in range(0, 5000, 700)))
    store = zarrow.open(path)
    assert list(store.derived) == ["pca"]
    assert list(store.arrays) == ["query_embed"]
    assert np.array_equal(store["pca"], places)
    assert np.array_equal(pickle.loads(pickle.dumps(store["pca"]))[:], places)
    table, vectors = store.take([7, 4999], arrays=["pca"])
    assert table["row"].to_pylist() == [7, 4999]
    assert np.array_equal(vectors["pca"], places[[7, 4999]])
    joined = [found["pca"] for _, found in store.join(columns=[], arrays=["pca", "query_embed"])]
    assert np.array_equal(np.concatenate(joined), places)
    array = zarr.open_group(path / "derived/pca/embeddings.zarr", mode="r")["pca"]
    assert np.array_equal(array[:], places)
    with xr.open_dataset(path, chunks={}) as dataset:
        assert dataset.pca.dims == ("row", "pca_dim")
        assert dataset.chunks["row"] == (2048, 2048, 904)
        assert np.array_equal(dataset.pca.values, places)
    with xr.open_zarr(path / "derived/pca/embeddings.zarr") as dataset:
        assert np.array_equal(dataset.pca.values, places)


def test_provenance_names_the_rows(path: Path, places: np.ndarray) -> None:
    """An array says how it was made and of which rows, and the store's own array what the writer said."""
    zarrow.add_array(path, "pca", places, provenance={"method": "pca"})
    store = zarrow.open(path)
    made = store["pca"].provenance
    assert (made["method"], made["derived_from"]) == ("pca", store.identity)
    assert store["query_embed"].provenance == store.provenance
    with zarrow.Writer(path, mode="a") as writer:
        vectors = {"query_embed": np.zeros((1, 8), np.float32)}
        writer.append({"subject_id": [9], "query": ["x"], "occurs_prob": [0.5]}, vectors)
        writer.finalize()
    assert zarrow.open(path).identity != store.identity


def test_originals_stay_as_they_are(path: Path, places: np.ndarray) -> None:
    """Adding an array changes no file of the store, and verify finds nothing."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    zarrow.add_array(path, "pca", places)
    assert {file: file.read_bytes() for file in before} == before
    report = zarrow.verify(path, "full")
    assert report.ok
    assert report.findings == ()


def test_replace_and_remove(path: Path, places: np.ndarray) -> None:
    """A second array of the same name replaces the first; removing it leaves the store as it was."""
    zarrow.add_array(path, "pca", places)
    old = zarrow.open(path)
    assert np.array_equal(old["pca"], places)
    zarrow.add_array(path, "pca", places[:, :1] + 1)
    assert np.array_equal(zarrow.open(path)["pca"], places[:, :1] + 1)
    zarrow.remove_array(path, "pca")
    assert zarrow.open(path).derived == {}
    with pytest.raises(UnknownNameError, match="'pca'"):
        zarrow.remove_array(path, "pca")
    assert zarrow.verify(path).findings == ()


def test_outdated_after_an_append(path: Path, places: np.ndarray) -> None:
    """An array from before an append is ignored with a notice, and can be computed again."""
    zarrow.add_array(path, "pca", places)
    with zarrow.Writer(path, mode="a") as writer:
        vectors = {"query_embed": np.zeros((1, 8), np.float32)}
        writer.append({"subject_id": [9], "query": ["x"], "occurs_prob": [0.5]}, vectors)
        assert zarrow.open(path, partial=True).derived == {}
        writer.finalize()
    store = zarrow.open(path)
    assert store.derived == {}
    with pytest.raises(IncompleteStoreError, match="other rows than the store has now"):
        store["pca"]
    facts = json.loads(CliRunner().invoke(app, ["info", str(path), "--json"]).stdout)
    assert facts["derived"]["pca"]["usable"] is False
    assert "made of other rows" in CliRunner().invoke(app, ["info", str(path)]).stdout
    report = zarrow.verify(path)
    assert report.ok
    assert "other rows" in report.findings[0].message
    zarrow.add_array(path, "pca", np.vstack([places, [[0, 0]]]).astype(np.float32))
    assert zarrow.open(path)["pca"].shape == (5001, 2)


def test_info_lists_it(path: Path, places: np.ndarray) -> None:
    """zarrow info lists derived arrays and their shapes."""
    zarrow.add_array(path, "pca", places, provenance={"method": "PCA"})
    assert "derived: pca 5,000 × 2 float32" in CliRunner().invoke(app, ["info", str(path)]).stdout


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("query_embed", np.zeros((5000, 2)), "needs a new name"),
        ("occurs_prob", np.zeros((5000, 2)), "needs a new name"),
        ("row", np.zeros((5000, 2)), "needs a new name"),
        ("../x", np.zeros((5000, 2)), "must be"),
        ("pca", np.zeros((4999, 2)), "each of the store's 5000, got 4999 rows"),
        ("pca", np.zeros((5001, 2)), "each of the store's 5000, got 5001 or more rows"),
        ("pca", np.zeros(5000), "reshape one value per row"),
        ("pca", iter(()), "at least one block"),
        ("pca", (np.zeros((2500, 2 + step)) for step in range(2)), "pca"),
        ("pca", np.full((5000, 2), "x"), "pca"),
    ],
)
def test_bad_input_stores_nothing(path: Path, name: str, values: object, message: str) -> None:
    """Values that cannot be stored are refused, and the previous array stays."""
    zarrow.add_array(path, "kept", np.ones((5000, 1)))
    with pytest.raises(InvalidInputError, match=message):
        zarrow.add_array(path, name, values)  # type: ignore[arg-type]
    assert list(zarrow.open(path).derived) == ["kept"]
    assert os.listdir(path / "derived") == ["kept"]


def test_no_store(tmp_path: Path) -> None:
    """Without a store the call is refused, and nothing is created."""
    with pytest.raises(StoreNotFoundError):
        zarrow.add_array(tmp_path / "none.zarrow", "pca", np.zeros((1, 2)))
    assert os.listdir(tmp_path) == []


def test_an_interrupted_one_leaves_the_old(path: Path, places: np.ndarray) -> None:
    """Ctrl-C while blocks arrive keeps the previous array of that name."""
    zarrow.add_array(path, "pca", places)

    def blocks() -> object:
        yield places[:3000] * 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zarrow.add_array(path, "pca", blocks())  # type: ignore[arg-type]
    assert np.array_equal(zarrow.open(path)["pca"], places)
    assert os.listdir(path / "derived") == ["pca"]


def test_a_killed_one_is_ignored(path: Path) -> None:
    """After a SIGKILL halfway the store opens, names the unfinished array, and allows another attempt."""
    code = (
        "import os, signal, sys, numpy as np, zarrow\n"
        "def blocks():\n"
        "    yield np.ones((3000, 2))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "zarrow.add_array(sys.argv[1], 'pca', blocks())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    store = zarrow.open(path)
    assert store.derived == {}
    with pytest.raises(IncompleteStoreError, match="not finished"):
        store["pca"]
    report = zarrow.verify(path)
    assert report.ok
    assert any("unfinished" in finding.message for finding in report.findings)
    (path / "derived/pca/embeddings.zarr/zarr.json").unlink()  # as if it had been killed earlier
    assert zarrow.verify(path).ok
    zarrow.add_array(path, "pca", np.ones((5000, 2)))
    assert zarrow.open(path)["pca"].shape == (5000, 2)


def test_two_at_once(path: Path, places: np.ndarray) -> None:
    """Adding an array is refused while another process adds one of the same name."""

    def blocks() -> object:
        yield places[:3000]
        with pytest.raises(StoreLockedError):
            zarrow.add_array(path, "pca", places)
        yield places[3000:]

    zarrow.add_array(path, "pca", blocks())  # type: ignore[arg-type]
    assert np.array_equal(zarrow.open(path)["pca"], places)


def test_an_append_meanwhile(path: Path, places: np.ndarray) -> None:
    """An array is refused if rows were appended meanwhile, because it would belong to other rows."""

    def blocks() -> object:
        yield places[:3000]
        table, vectors = zarrow.open(path).take([0])
        with zarrow.Writer(path, mode="a") as writer:
            writer.append(table.drop_columns(["row", "sample_index"]), vectors, table["sample_index"])
        yield places[3000:]

    with pytest.raises(StoreChangedError, match="written to, packed"):
        zarrow.add_array(path, "pca", blocks())  # type: ignore[arg-type]
    assert os.listdir(path / "derived") == []


def test_damage(path: Path, places: np.ndarray) -> None:
    """A flipped bit in a derived array is found by verify, and the store's own rows stay readable."""
    zarrow.add_array(path, "pca", places)
    shard = path / "derived/pca/embeddings.zarr/pca/c/0/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    report = zarrow.verify(path)
    assert [finding.severity for finding in report.findings] == ["defect"]
    assert report.findings[0].path.startswith("derived/pca/")
    (path / "derived/pca/zarrow.json").write_bytes(b"{}")
    store = zarrow.open(path)
    assert store.derived == {}
    assert store["query_embed"].shape == (5000, 8)
    assert not zarrow.verify(path).ok


def test_repair_puts_a_damaged_one_aside(path: Path, places: np.ndarray) -> None:
    """A repair moves the whole derived array away, and the store is sound without it."""
    zarrow.add_array(path, "pca", places)
    zarrow.add_array(path, "kept", places)
    (path / "derived/pca/embeddings.zarr/pca/c/0/0").write_bytes(b"x" * 100)
    (path / "derived/pca/zarrow.json").write_bytes(b"{}")
    zarrow.repair(path)
    assert zarrow.verify(path, "full").ok
    store = zarrow.open(path)
    assert list(store.derived) == ["kept"]
    assert store.num_rows == 5000
    zarrow.add_array(path, "pca", places)
    assert np.array_equal(zarrow.open(path)["pca"], places)


def test_links_are_not_followed(path: Path, places: np.ndarray, tmp_path: Path) -> None:
    """A derived array behind a symbolic link is ignored, and verify reports the link."""
    zarrow.add_array(path, "pca", places)
    shutil.move(path / "derived/pca", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path / "derived/pca")
    assert zarrow.open(path).derived == {}
    assert not zarrow.verify(path).ok
    shutil.rmtree(path / "derived")
    os.symlink(tmp_path, path / "derived")
    assert zarrow.open(path).derived == {}


@pytest.mark.parametrize("where", ["derived/map", "derived/map.incoming", "../run.zarrow.incoming"])
def test_no_writer_is_led_out_of_a_store(path: Path, places: np.ndarray, tmp_path: Path, where: str) -> None:
    """A link where a derived array or a new store would grow is refused, and what it points to stays."""
    example_store(tmp_path / "mine.zarrow").close()
    zarrow.add_array(path, "map", places)
    if where == "derived/map":
        shutil.rmtree(path / where)
    (path / where).symlink_to(tmp_path / "mine.zarrow")
    with pytest.raises(CorruptionError, match="a symbolic link, which may lead out of the store"):
        zarrow.add_array(path, "map", places) if "map" in where else zarrow.pack(path, codecs="zstd")
    assert zarrow.open(tmp_path / "mine.zarrow").num_rows == 5000


def test_a_copied_one_belongs_elsewhere(path: Path, places: np.ndarray, tmp_path: Path) -> None:
    """A derived array copied from another store is ignored."""
    zarrow.add_array(path, "pca", places)
    other = example_store(tmp_path / "other.zarrow").path
    shutil.copytree(path / "derived", other / "derived")
    assert zarrow.open(other).derived == {}


def test_of_no_rows(tmp_path: Path) -> None:
    """A store without rows can have a derived array without rows."""
    with zarrow.Writer(tmp_path / "none.zarrow", arrays={"e": (4, "float32")}) as writer:
        writer.finalize()
    zarrow.add_array(tmp_path / "none.zarrow", "pca", np.zeros((0, 2), np.float32))
    assert zarrow.open(tmp_path / "none.zarrow")["pca"].shape == (0, 2)


def test_it_belongs_to_the_rows_of_the_open_store(path: Path) -> None:
    """An array computed from an open store is refused once a pack has put the rows in another order."""
    store = zarrow.open(path)
    values = store["query_embed"][:]
    zarrow.pack(path, order="sample_index")
    with pytest.raises(StoreChangedError, match="written to, packed"):
        zarrow.add_array(store, "same", values)
    assert zarrow.open(path).derived == {}
    zarrow.add_array(zarrow.open(path), "same", zarrow.open(path)["query_embed"][:])
    assert os.listdir(path / "derived") == ["same"]


def test_one_added_while_the_store_is_packed_is_kept(path: Path) -> None:
    """A pack takes along what was added while it ran, in the new order of the rows."""

    def add(step: str, done: int, total: int) -> None:
        if (step, done) == ("write", total) and not zarrow.open(path).derived:
            zarrow.add_array(path, "same", zarrow.open(path)["query_embed"][:])

    zarrow.pack(path, order="sample_index", progress=add)
    store = zarrow.open(path)
    assert np.array_equal(store["same"], store["query_embed"])


def test_one_whose_store_is_packed_meanwhile_is_refused(path: Path, places: np.ndarray) -> None:
    """An array is refused, in words, if its store was replaced while its blocks arrived."""

    def blocks() -> object:
        yield places[:3000]
        zarrow.pack(path, order="sample_index")
        yield places[3000:]

    with pytest.raises(StoreChangedError, match="written to, packed"):
        zarrow.add_array(path, "pca", blocks())  # type: ignore[arg-type]
    assert zarrow.open(path).derived == {}


def test_a_pickled_one_that_was_computed_again(path: Path, places: np.ndarray) -> None:
    """A pickled array says so if another one has its name by now."""
    zarrow.add_array(path, "pca", places)
    pickled = pickle.dumps(zarrow.open(path)["pca"])
    assert np.array_equal(pickle.loads(pickled)[:], places)
    zarrow.add_array(path, "pca", places + 1)
    with pytest.raises(StoreChangedError, match="'pca' was computed again"):
        pickle.loads(pickled)
