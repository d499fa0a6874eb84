"""What is made of a store, put into a bucket or watched there: exports, an index of neighbours, a run."""

import json

import numpy as np
import obstore
import pytest
from cloud.places import new_url
from typer.testing import CliRunner

import zarrow
from zarrow._commands.watching import Watch
from zarrow._storage.objects import located
from zarrow.analysis import build_neighbours, nearest
from zarrow.cli import app
from zarrow.errors import ConflictError, InvalidInputError, NotFoundError
from zarrow.transfer import export, import_

ROWS = 500


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    """Return the URL of a complete store."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    place = new_url()
    with zarrow.Writer(place, keys=["id"], segment_rows=128) as writer:
        vectors = np.random.default_rng(0).standard_normal((ROWS, 8)).astype("f4")
        writer.append({"id": range(ROWS)}, {"e": vectors})
        writer.finalize()
    return place


def names(url: str) -> list[str]:
    return sorted(located(url).names())


@pytest.mark.parametrize("format", ["npy", "parquet", "safetensors", "anndata", "huggingface"])
def test_an_export_in_a_bucket_has_the_bytes_of_one_on_a_disk(url, tmp_path, format):
    """A file or a folder; what is there already is not replaced."""
    pytest.importorskip({"safetensors": "safetensors", "anndata": "anndata"}.get(format, "numpy"))
    above = url.removesuffix("/run.zarrow")
    target = f"{above}/exported"
    assert export(url, target, format) == ROWS
    export(url, tmp_path / "exported", format)
    for name in names(above):
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(obstore.get(located(above).client, name).bytes())
    copied = tmp_path / "there/exported"
    if format in ("npy", "parquet", "safetensors"):
        import_(copied, tmp_path / "back.zarrow", format, keys=["id"])
        with zarrow.open(url) as old, zarrow.open(tmp_path / "back.zarrow") as new:
            assert new.table(["id"]) == old.table(["id"])
            np.testing.assert_array_equal(new["e"][:], old["e"][:])
    else:
        there = {str(path.relative_to(tmp_path / "exported")) for path in (tmp_path / "exported").rglob("*")}
        assert {str(path.relative_to(copied)) for path in copied.rglob("*")} == there
    for overwrite in (False, True):
        with pytest.raises(ConflictError, match="choose another target"):
            export(url, target, format, overwrite=overwrite)


def test_an_export_into_the_store_is_refused(url):
    """It would become part of it."""
    before = names(url)
    with pytest.raises(InvalidInputError, match="within the exported store"):
        export(url, f"{url}/table/x.parquet")
    assert names(url) == before


def test_the_command_exports_to_a_url(url):
    """From one URL to another."""
    target = url.removesuffix("run.zarrow") + "x.parquet"
    result = CliRunner().invoke(app, ["export", url, target])
    assert result.exit_code == 0, result.output
    assert f"written: {target}" in " ".join(result.output.split())


def test_an_index_of_neighbours_is_put_there_and_found(url):
    """Approximate neighbours are those that the exact search finds; the index belongs to the rows."""
    pytest.importorskip("faiss")
    with zarrow.open(url) as store:
        with pytest.raises(NotFoundError, match="no index of neighbours"):
            nearest(store, [7], k=1, approximate=True)
        built = build_neighbours(store)
        assert built.rows == ROWS
        exact, approximate = (nearest(store, [7, 9], k=3, approximate=one).rows for one in (False, True))
        np.testing.assert_array_equal(exact, approximate)
    assert zarrow.verify(url).findings == ()
    assert CliRunner().invoke(app, ["neighbours", url]).exit_code == 0


def test_a_run_in_a_bucket_is_watched(tmp_path, monkeypatch):
    """Rows that are there, by writer; then that it is complete."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    url = new_url()

    def look() -> dict:
        result = CliRunner().invoke(app, ["watch", url, "--once", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    assert CliRunner().invoke(app, ["watch", url, "--once"]).exit_code != 0
    writer = zarrow.Writer(url, segment_rows=64, expected_rows=100)
    watched = Watch(url)
    assert (look()["rows"], watched.look()["rows"]) == (0, 0)
    writer.append({"id": [0]}, {"e": np.ones((1, 2), "f4")})
    writer.flush()
    watched.look()
    writer.append({"id": range(1, 70)}, {"e": np.ones((69, 2), "f4")})
    writer.flush(durable=True)
    writer._appender.stop()  # waits for the upload
    seen = watched.look()
    assert (seen["rows"], seen["total_rows"], seen["complete"]) == (64, 100, False)
    assert [(one["rows"], one["running"]) for one in seen["writers"]] == [(64, True)]
    writer.close()
    assert look()["rows"] == 70
    with zarrow.Writer(url, mode="a") as writer:
        writer.append({"id": range(30)}, {"e": np.ones((30, 2), "f4")})
        writer.finalize()
    assert look()["complete"]


def test_what_a_writer_has_begun_can_be_discarded_twice(tmp_path, monkeypatch):
    """Nothing is left in the bucket, nor in the spool."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    url = new_url()
    writer = zarrow.Writer(url, segment_rows=4)
    writer.append({"id": range(10)}, {"e": np.ones((10, 2), "f4")})
    writer.discard()
    writer.discard()
    assert names(url) == []
    assert list((tmp_path / "spool").iterdir()) == []
