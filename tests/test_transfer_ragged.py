"""Ragged arrays in other formats — rows of any number of vectors, out and back in."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

import zarrow
from zarrow.errors import InvalidInputError
from zarrow.transfer import export, import_

ROWS = 300


@pytest.fixture(scope="module", params=[np.float16, np.float32])
def store(request, tmp_path_factory):
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 6, ROWS)
    counts[5] = 2000
    tokens = zarrow.Ragged(generator.standard_normal((counts.sum(), 8)).astype(request.param), counts)
    path = tmp_path_factory.mktemp("ragged") / "s.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=64) as writer:
        fixed = generator.random((ROWS, 3), np.float32)
        cubes = zarrow.Ragged(tokens.values.reshape(-1, 2, 4), counts)
        writer.append({"id": np.arange(ROWS)}, {"t": tokens, "cubes": cubes, "e": fixed}, np.arange(ROWS))
        writer.finalize()
    return zarrow.open(path)


@pytest.mark.parametrize("kind", ["parquet", "lance", "npy", "huggingface", "safetensors"])
def test_what_goes_out_comes_in(store, tmp_path, kind):
    if kind == "lance":
        pytest.importorskip("lance")
    target = tmp_path / f"out.{kind}" if kind != "npy" else tmp_path / "out"
    assert export(store, target, kind) == ROWS
    assert import_(target, tmp_path / "again.zarrow", kind, keys=["id"]) == ROWS
    with zarrow.open(tmp_path / "again.zarrow") as again:
        assert again["t"][:] == store["t"][:]
        assert again["cubes"][:] == store["cubes"][:]
        assert np.array_equal(again["e"][:], store["e"][:])
        assert again.table(["id"])["id"].to_pylist() == list(range(ROWS))


def test_stock_readers_of_what_goes_out(store, tmp_path):
    export(store, tmp_path / "out.parquet")
    lists = pq.read_table(tmp_path / "out.parquet")["t"]
    assert zarrow.Ragged.of(lists) == store["t"][:]
    export(store, tmp_path / "out", "npy")
    flat, counts = np.load(tmp_path / "out/t/t_0.npy", mmap_mode="r"), np.load(tmp_path / "out/t/counts.npy")
    assert zarrow.Ragged(flat, counts) == store["t"][:]
    safetensors = pytest.importorskip("safetensors.numpy")
    export(store, tmp_path / "out.safetensors")
    found = safetensors.load_file(tmp_path / "out.safetensors")
    assert zarrow.Ragged(found["t"], found["t_count"]) == store["t"][:]
    assert np.array_equal(found["e"], store["e"][:])


def test_duckdb_reads_the_lists(store, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    if store["t"].dtype == np.float16:
        pytest.skip("DuckDB has no float16 in lists")
    export(store, tmp_path / "out.parquet")
    found = duckdb.sql(f"SELECT id, len(t) FROM '{tmp_path}/out.parquet' ORDER BY id").fetchall()
    assert [count for _, count in found] == store["t"].counts.tolist()


def test_formats_that_cannot_hold_them_say_so(store, tmp_path):
    for kind in ("anndata", "embedding-atlas"):
        with pytest.raises(InvalidInputError, match="pool"):
            export(store, tmp_path / "out.zarr", kind)
        assert not (tmp_path / "out.zarr").exists()
    with pytest.raises(InvalidInputError, match="name a folder"):
        export(store, tmp_path / "out.npy", columns=[], arrays=["t"])


def test_counts_that_do_not_fit_the_vectors(tmp_path):
    (tmp_path / "in" / "t").mkdir(parents=True)
    np.save(tmp_path / "in/t/t_0.npy", np.ones((5, 4), "f4"))
    for counts in (np.array([2, 2]), np.array([6, -1]), np.array([2.0, 3.0])):
        np.save(tmp_path / "in/t/counts.npy", counts)
        with pytest.raises(InvalidInputError, match=r"counts\.npy"):
            import_(tmp_path / "in", tmp_path / "s.zarrow", "npy")
        assert not (tmp_path / "s.zarrow").exists()


def test_a_folder_for_the_hub(store, tmp_path):
    export(store, tmp_path / "hub", "huggingface")
    (data,) = (tmp_path / "hub").rglob("*.parquet")
    assert zarrow.Ragged.of(pq.read_table(data)["t"]) == store["t"][:]
    assert "any number of [8] per row" in (tmp_path / "hub" / "README.md").read_text()
