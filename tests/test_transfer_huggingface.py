"""Hugging Face export — what is in the folder, and who reads it: datasets, mlcroissant, rocrate."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import zarrow
import zarrow.testing
from zarrow.errors import ConflictError
from zarrow.transfer import export

DATA = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> zarrow.Store:
    return zarrow.testing.example_predictions(tmp_path_factory.mktemp("hub") / "run.zarrow")


@pytest.fixture(scope="module")
def folder(store: zarrow.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "run"
    assert export(store, folder, "huggingface") == store.num_rows
    return folder


def test_the_folder_describes_its_rows(store: zarrow.Store, folder: Path) -> None:
    """Card, Croissant and RO-Crate name the file, its columns, its checksum and where the rows come from."""
    found = pq.read_table(folder / DATA)
    vectors = found["query_embed"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    np.testing.assert_array_equal(vectors, store["query_embed"][:])
    assert found.select(["query", "occurs"]).equals(store.table(["query", "occurs"]))

    card = (folder / "README.md").read_text()
    assert "path: data/*.parquet" in card.split("---")[1]
    assert "* `query`: string, key" in card
    assert "* `query_embed`: float32, [8] per row" in card
    assert store.uuid in card
    described = json.loads((folder / "croissant.json").read_text())
    assert described["distribution"][0]["sha256"] == hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
    fields = {one["name"]: one for one in described["recordSet"][0]["field"]}
    assert list(fields) == found.column_names
    assert (fields["query_embed"]["dataType"], fields["query_embed"]["arrayShape"]) == ("sc:Float", "8")
    crate = {one["@id"]: one for one in json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]}
    assert crate[DATA]["contentSize"] == str((folder / DATA).stat().st_size)
    assert crate["#uuid"]["value"] == store.uuid


def test_only_its_own_files_are_replaced(store: zarrow.Store, folder: Path, tmp_path: Path) -> None:
    """An export replaces an earlier one if it is told to, but no folder with other files."""
    export(store, folder, "huggingface", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.md").write_text("mine")
    with pytest.raises(ConflictError, match=r"notes\.md"):
        export(store, tmp_path / "mine", "huggingface", overwrite=True)
    assert (tmp_path / "mine/notes.md").read_text() == "mine"


def test_names_cannot_act_in_the_card(tmp_path: Path) -> None:
    """Names from a store are text in the dataset card, not markup."""
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        writer.append({"a`b<script>": [1]}, {"v": np.ones((1, 2, 3), np.float32)})
        writer.finalize()
    export(tmp_path / "run.zarrow", tmp_path / "out", "huggingface")
    card = (tmp_path / "out/README.md").read_text()
    assert "* `a'b<script>`: int64\n* `v`: float32, [2, 3] per row" in card
    field = json.loads((tmp_path / "out/croissant.json").read_text())["recordSet"][0]["field"][1]
    assert field["arrayShape"] == "2, 3"


@pytest.mark.filterwarnings("default")
def test_datasets_reads_it(
    store: zarrow.Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets.load_dataset` of the folder has the rows, with their types."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'zarrow[engines]'")
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert found.num_rows == store.num_rows
    np.testing.assert_array_equal(np.array(found[:50]["query_embed"], np.float32), store["query_embed"][:50])
    assert found[7]["query"] == store.table(["query"])["query"][7].as_py()


@pytest.mark.filterwarnings("default")
def test_croissant_is_valid(store: zarrow.Store, folder: Path) -> None:
    """MLCommons' reader finds no error in the description, and reads the rows by it."""
    croissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant: pip install 'zarrow[engines]'")
    found = croissant.Dataset(str(folder / "croissant.json"))
    assert not found.metadata.ctx.issues.errors
    first = next(iter(found.records("rows")))
    assert first["rows/subject_id"] == store.table(["subject_id"])["subject_id"][0].as_py()
    np.testing.assert_array_equal(np.array(first["rows/query_embed"], np.float32), store["query_embed"][0])


@pytest.mark.filterwarnings("default")
def test_the_crate_is_read(store: zarrow.Store, folder: Path) -> None:
    """RO-Crate's reader finds the data file and where the rows come from."""
    crate = pytest.importorskip("rocrate.rocrate", reason="needs rocrate: pip install 'zarrow[engines]'")
    found = crate.ROCrate(str(folder))
    assert [one.id for one in found.root_dataset["hasPart"]] == [DATA]
    assert found.dereference("#uuid")["value"] == store.uuid
