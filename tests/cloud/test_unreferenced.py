"""Unreferenced objects — named by verify, removed from a bucket only if asked, and nothing else is."""

import numpy as np
import obstore
import pytest
from typer.testing import CliRunner

import zarrow
from zarrow.cli import app
from zarrow.errors import CorruptionError, IncompleteStoreError, InvalidInputError

LEFT = [
    "embeddings.zarr/e/c/7/0",
    "embeddings.zarr/e/c/0/0/0",
    "embeddings.zarr/other/c/0/0",
    "notes.txt",
    "open/of.json",
    "segments/00000007.json.part",
    "table/part-00000007.parquet",
]


@pytest.fixture
def store(bucket, tmp_path, monkeypatch) -> zarrow.Store:
    """Return a store in a bucket with an index and a derived array."""
    for name, value in bucket.options.items():
        monkeypatch.setenv(f"AWS_{name.upper()}", str(value))
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=4) as writer:
        writer.append({"id": range(10)}, {"e": np.ones((10, 2), "f4")})
        writer.finalize()
    zarrow.build_index(path)
    with zarrow.open(path) as local:
        zarrow.add_array(local, "twice", np.asarray(local["e"]) * 2)
    zarrow.copy(path, bucket.url("run.zarrow"))
    return zarrow.open(bucket.url("run.zarrow"))


def keys(store):
    return sorted(one["path"] for page in obstore.list(store.path.client) for one in page)


def test_what_is_no_part_of_the_store_goes_and_nothing_else(store):
    """A dry run lists it, the repair removes it, and the store is as it was."""
    before, url = keys(store), str(store.path)
    assert zarrow.repair(url, remove_unreferenced=True).nothing_to_do
    for path in LEFT:
        obstore.put(store.path.client, path, b"left")
    named = " ".join(str(one) for one in zarrow.verify(url).findings)
    assert all(path.split("/c/")[0] in named for path in LEFT)
    done = zarrow.repair(url, remove_unreferenced=True, dry_run=True)
    assert list(done.removed) == sorted(LEFT)
    assert keys(store) == sorted([*before, *LEFT])
    result = CliRunner().invoke(app, ["repair", "--remove-unreferenced", url])
    assert result.exit_code == 0, result.output
    assert "notes.txt" in result.output
    assert keys(store) == before
    assert zarrow.verify(url, "full").findings == ()


def test_it_is_refused_where_it_could_destroy_rows(store, tmp_path):
    """Not in an incomplete or damaged store, on a disk, or without being asked."""
    url, client = str(store.path), store.path.client
    with pytest.raises(InvalidInputError, match="in a bucket"):
        zarrow.repair(tmp_path / "run.zarrow", remove_unreferenced=True)
    part = bytes(obstore.get(client, "table/part-00000001.parquet").bytes())
    obstore.put(client, "notes.txt", b"mine")
    obstore.delete(client, "table/part-00000001.parquet")
    with pytest.raises(CorruptionError, match="nothing was removed"):
        zarrow.repair(url, remove_unreferenced=True)
    obstore.put(client, "table/part-00000001.parquet", part)
    obstore.delete(client, "manifest.json")
    with pytest.raises(IncompleteStoreError):
        zarrow.repair(url, remove_unreferenced=True)
    assert "notes.txt" in keys(store)
