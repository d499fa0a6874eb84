"""Ragged arrays — rows of any number of vectors: written, killed, continued, read; by stock readers, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import zarrow
from zarrow.errors import (
    BatchError,
    CorruptionError,
    InvalidInputError,
    SchemaMismatchError,
)

WIDTH = 6
CODECS = [None, "zstd", "blosc"]


def _rows(counts, start=0, dtype="float32", width=WIDTH):
    """Return rows whose vectors are numbered from `start` on."""
    total = int(np.sum(counts))
    values = np.arange(start, start + total)[:, None] + np.arange(width) / 8
    return zarrow.Ragged(values.astype(dtype), np.asarray(counts))


def _random_counts(generator, rows):
    counts = generator.integers(0, 9, rows)
    counts[generator.random(rows) < 0.2] = 0
    counts[generator.random(rows) < 0.02] = 700
    return counts


def _write(path, counts, *, batch=7, finalize=True, **options):
    expected = _rows(counts)
    with zarrow.Writer(path, **{"segment_rows": 64, "keys": ["id"], **options}) as writer:
        for start in range(0, len(expected), batch):
            here = slice(start, start + batch)
            ids = np.arange(len(expected))[here]
            writer.append(
                {"id": ids}, {"t": expected[here], "e": np.repeat(ids[:, None], 3, 1).astype("f4")}, ids
            )
        if finalize:
            writer.finalize()
        else:
            writer.flush(durable=True)
    return expected


def _same(store, expected):
    array = store["t"]
    assert len(array) == len(expected)
    assert array[:] == expected
    assert array.counts.tolist() == expected.counts.tolist()
    values, offsets = array.values, array.offsets
    for row in range(0, len(expected), 5):
        assert np.array_equal(array[row], expected[row])
        assert np.array_equal(values[offsets[row] : offsets[row] + array.counts[row]], expected[row])
    order = np.random.default_rng(1).permutation(len(expected))
    assert array[order] == expected[order]
    assert array.take(order, check="crc") == expected[order]
    assert array[::-3] == expected[np.arange(len(expected))[::-3]]
    assert array.read(3, len(expected) - 2, check="crc") == expected[3 : len(expected) - 2]


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 300])
def test_rows_come_back(tmp_path, rows, codecs):
    counts = _random_counts(np.random.default_rng(rows), rows)
    options = {"arrays": {"t": zarrow.ragged(WIDTH, "float32"), "e": (3, "float32")}} if rows == 0 else {}
    if rows == 0:
        import pyarrow as pa

        options["schema"] = pa.schema([("id", pa.int64())])
    expected = _write(tmp_path / "s", counts, codecs=codecs, **options)
    with zarrow.open(tmp_path / "s") as store:
        if rows > 6:
            _same(store, expected)
        assert store["t"][:] == expected
        assert sum(len(vectors["t"]) for _, vectors in store.join(batch_size=11)) == rows
        assert list(store.ragged) == ["t"]
        assert list(store.arrays) == ["e"]
    assert not zarrow.verify(tmp_path / "s", "full").findings


@pytest.mark.parametrize("codecs", CODECS)
def test_live_rows_and_a_store_that_goes_on(tmp_path, codecs):
    counts = _random_counts(np.random.default_rng(3), 400)
    expected = _rows(counts)
    for stop in (10, 64, 150, 400):
        with zarrow.Writer(tmp_path / "s", mode="a", segment_rows=64, codecs=codecs) as writer:
            for start in range(writer.accepted_rows, stop, 9):
                here = slice(start, min(start + 9, stop))
                ids = np.arange(400)[here]
                writer.append({"id": ids}, {"t": expected[here], "e": np.ones((len(ids), 3), "f4")})
            writer.flush(durable=True)
        with zarrow.open(tmp_path / "s", partial=True) as store:
            _same(store, expected[:stop])
        if stop == 150:
            with zarrow.Writer(tmp_path / "s", mode="a") as writer:
                writer.finalize()
            with zarrow.open(tmp_path / "s") as store:
                _same(store, expected[:stop])
    with zarrow.Writer(tmp_path / "s", mode="a") as writer:
        writer.finalize()
    assert not zarrow.verify(tmp_path / "s", "full").findings
    with zarrow.open(tmp_path / "s") as store:
        _same(store, expected)


def test_many_writers_at_once(tmp_path):
    writers = [zarrow.Writer(tmp_path / "s", segment_rows=32, mode="a", shared=True) for _ in range(3)]
    counts = np.random.default_rng(0).integers(0, 5, 600)
    expected = _rows(counts)
    for start in range(0, 600, 5):
        ids = np.arange(start, start + 5)
        writers[start // 5 % 3].append({"id": ids}, {"t": expected[start : start + 5]})
        if start == 300:
            with zarrow.open(tmp_path / "s", partial=True) as store:
                found = store.table(["id"])["id"].to_pylist()
                assert store["t"][:] == expected[found]
    for writer in writers:
        writer.close()
    with zarrow.Writer(tmp_path / "s", mode="a") as writer:
        writer.finalize()
    with zarrow.open(tmp_path / "s") as store:
        found = store.table(["id"])["id"].to_pylist()
        assert sorted(found) == list(range(600))
        assert store["t"][:] == expected[found]
    assert not zarrow.verify(tmp_path / "s", "full").findings


KILLED = """
import os, sys, numpy, zarrow
path, codecs = sys.argv[1:]
writer = zarrow.Writer(path, segment_rows=64, mode="a", codecs=codecs or None)
first = writer.accepted_rows
print(first, flush=True)
while True:
    ids = numpy.arange(first, first + 5)
    counts = ids % 7
    values = numpy.repeat(ids, counts)[:, None] + numpy.arange(6) / 8
    writer.append({"id": ids}, {"t": zarrow.Ragged(values.astype("float32"), counts)})
    first += 5
"""


@pytest.mark.parametrize("codecs", ["", "zstd"])
def test_a_killed_writer_loses_nothing(tmp_path, codecs, profile):
    generator, accepted = np.random.default_rng(0), 0
    for _ in range(60 if profile == "long" else 5):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "s"), codecs]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            first = int(process.stdout.readline())
            assert first >= accepted
            try:
                process.wait(generator.uniform(0.02, 0.4) if accepted else 3)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        if not accepted and not (tmp_path / "s" / "zarrow.json").exists():
            continue  # killed before its first batch, on a busy machine
        with zarrow.open(tmp_path / "s", partial=True) as store:
            accepted = len(store)
            assert store.table(["id"])["id"].to_pylist() == list(range(accepted))
            ids = np.arange(accepted)
            assert store["t"].counts.tolist() == (ids % 7).tolist()
            assert np.array_equal(store["t"][:].values[:, 0], np.repeat(ids, ids % 7))
    assert accepted
    with zarrow.Writer(tmp_path / "s", mode="a") as writer:
        writer.finalize()
    assert not zarrow.verify(tmp_path / "s", "full").findings
    assert len(zarrow.open(tmp_path / "s")) == accepted


def test_stock_readers_find_every_vector(tmp_path):
    counts = _random_counts(np.random.default_rng(5), 200)
    expected = _write(tmp_path / "s", counts)
    group = zarr.open_group(tmp_path / "s" / "embeddings.zarr", mode="r")
    tokens, extents = group["t"], group["t_extent"][:]
    rows = tokens.attrs["zarrow"]["segment_rows"]
    for row, (offset, count) in enumerate(extents.tolist()):
        assert np.array_equal(tokens[row // rows, offset : offset + count], expected[row])
    assert tokens.shape[0] == 4
    assert tokens.shape[1] == max(counts[start : start + 64].sum() for start in range(0, 200, 64))


def test_tensorstore_and_awkward_read_the_files(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    counts = np.random.default_rng(5).integers(0, 5, 100)
    expected = _write(tmp_path / "s", counts, segment_rows=128)
    root = str(tmp_path / "s" / "embeddings.zarr")
    opened = [
        tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{root}/{name}/"}}
        ).result()
        for name in ("t", "t_extent")
    ]
    values, extents = opened[0][0].read().result(), opened[1].read().result()
    assert np.array_equal(values[: counts.sum()], expected.values)
    assert np.array_equal(extents[:, 1], counts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 9), st.sampled_from(CODECS))
def test_any_counts_in_any_batches(tmp_path_factory, counts, batch, codecs):
    path = tmp_path_factory.mktemp("ragged") / "s"
    expected = _write(path, np.array(counts), batch=batch, segment_rows=8, codecs=codecs)
    assert zarrow.open(path)["t"][:] == expected


@pytest.mark.parametrize("width", [1, 8192])
def test_narrow_and_wide_vectors(tmp_path, width):
    expected = _rows([3, 0, 40], width=width, dtype="float16")
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append(None, {"t": expected})
        writer.finalize()
    assert zarrow.open(tmp_path / "s")["t"][:] == expected


def test_one_row_of_a_million_vectors(tmp_path):
    values = np.arange(4_000_000, dtype="float32").reshape(1_000_000, 4)
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"id": [1, 2, 3]}, {"t": zarrow.Ragged(values, [0, 1_000_000, 0])})
        writer.finalize()
    array = zarrow.open(tmp_path / "s")["t"]
    assert np.array_equal(array[1], values)
    assert not array[1].flags.owndata
    assert array[2].shape == (0, 4)


def test_what_every_form_of_rows_becomes(tmp_path):
    torch = pytest.importorskip("torch")
    rows = [np.ones((2, 3), "f4"), np.zeros((0, 3), "f4"), np.full((1, 3), 5, "f4")]
    expected = zarrow.Ragged.from_list(rows)
    padded = np.zeros((3, 4, 3), "f4")
    mask = np.zeros((3, 4), bool)
    for row, vectors in enumerate(rows):
        padded[row, : len(vectors)], mask[row, : len(vectors)] = vectors, True
    forms = [
        expected,
        rows,
        expected.to_arrow(),
        torch.nested.as_nested_tensor([torch.from_numpy(one) for one in rows], layout=torch.jagged),
        zarrow.Ragged.from_padded(padded, mask=mask),
    ]
    with zarrow.Writer(tmp_path / "s") as writer:
        for form in forms:
            writer.append(None, {"t": form})
        writer.finalize()
    found = zarrow.open(tmp_path / "s")["t"]
    for index in range(len(forms)):
        assert found[3 * index : 3 * index + 3] == expected


def test_wrong_batches_are_refused_whole(tmp_path):
    good = _rows([2, 1])
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"id": [1, 2]}, {"t": good})
        for bad in (
            np.ones((2, WIDTH), "f4"),
            np.ones((2, 4, WIDTH), "f4"),
            _rows([2, 1], width=WIDTH + 1),
            _rows([2, 1], dtype="float64"),
            _rows([2, 1, 4]),
        ):
            with pytest.raises(BatchError, match=r"batch 1: .*'t'"):
                writer.append({"id": [1, 2]}, {"t": bad})
        writer.finalize()
    assert len(zarrow.open(tmp_path / "s")) == 2
    with zarrow.Writer(tmp_path / "fixed") as writer:
        writer.append({"id": [1, 2]}, {"t": np.ones((2, WIDTH), "f4")})
        with pytest.raises(BatchError, match=r"'t'.*any number of vectors"):
            writer.append({"id": [1, 2]}, {"t": good})
    declared = {"t": zarrow.ragged(WIDTH, "float32")}
    with pytest.raises(SchemaMismatchError, match="arrays"):
        zarrow.Writer(tmp_path / "fixed", mode="a", arrays=declared).append({"id": [1]}, {"t": good[:1]})


def test_names_of_the_extents_are_taken(tmp_path):
    with zarrow.Writer(tmp_path / "s") as writer, pytest.raises(InvalidInputError, match="t_extent"):
        writer.append({"t_extent": [1]}, {"t": _rows([2])})


def test_more_vectors_than_a_segment_may_have(tmp_path, monkeypatch):
    from zarrow._write import declaration

    monkeypatch.setattr(declaration, "ragged_chunks", lambda _bytes: (256, 512))
    writer = zarrow.Writer(tmp_path / "s", segment_rows=64)
    with pytest.raises(BatchError, match="512 vectors, got 600"):
        writer.append(None, {"t": _rows([600])})
    writer.append(None, {"t": _rows([500])})
    writer.flush()
    writer.append(None, {"t": _rows([500])})
    with pytest.raises(InvalidInputError, match="smaller segment_rows"):
        writer.close()
    assert len(zarrow.open(tmp_path / "s", partial=True)) == 1


def test_extents_that_lie_are_damage(tmp_path):
    _write(tmp_path / "s", np.full(64, 3))
    shard = tmp_path / "s" / "embeddings.zarr" / "t_extent" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[8:16] = (1 << 40).to_bytes(8, "little")
    shard.write_bytes(data)
    store = zarrow.open(tmp_path / "s")
    with pytest.raises(CorruptionError, match="does not have"):
        store["t"][:]
    with pytest.raises(CorruptionError, match="is not what was written"):
        store["t"].read(0, 5, check="crc")
    assert zarrow.verify(tmp_path / "s").findings


def test_an_older_reader_refuses(tmp_path):
    _write(tmp_path / "s", np.array([1, 2]))
    declared = json.loads(Path(tmp_path / "s" / "zarrow.json").read_text())
    assert declared["reader_features"] == ["ragged"]
    assert os.path.isdir(tmp_path / "s" / "embeddings.zarr" / "t")


def _damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("codecs", [None, "zstd"])
@pytest.mark.parametrize("place", ["t/c/1/0/0", "t_extent/c/1/0", "e/c/1/0"])
def test_repair_keeps_the_rows_that_can_be_read(tmp_path, codecs, place):
    expected = _write(tmp_path / "s", np.random.default_rng(0).integers(1, 4, 200), codecs={"t": codecs})
    _damage(tmp_path / "s" / "embeddings.zarr" / place, 40)
    report = zarrow.verify(tmp_path / "s")
    assert [finding.segment for finding in report.findings] == [1]
    assert report.findings[0].rows == (64, 128)
    zarrow.repair(tmp_path / "s")
    assert not zarrow.verify(tmp_path / "s", "full").ok or zarrow.verify(tmp_path / "s").ok
    with zarrow.open(tmp_path / "s", partial=True) as store:
        ids = store.table(["id"])["id"].to_pylist()
        assert sorted(ids) == [*range(64), *range(128, 200)]
        assert store["t"][:] == expected[ids]
        assert store["e"][:, 0].tolist() == ids


def test_repair_of_an_open_segment_keeps_its_sound_rows(tmp_path):
    expected = _rows(np.full(50, 2))
    with zarrow.Writer(tmp_path / "s", segment_rows=128) as writer:
        for start in range(0, 50, 7):
            here = slice(start, min(start + 7, 50))
            writer.append({"id": np.arange(50)[here]}, {"t": expected[here]})
            writer.flush()  # else batches share a frame
        writer.flush(durable=True)
        writer.close()
    (slot,) = [path for path in (tmp_path / "s" / "open").iterdir() if path.is_dir() and len(path.name) == 16]
    _damage(slot / "t.rows", 2 * WIDTH * 4 * 9)  # a vector of row 9, in the second batch of seven
    with pytest.raises(CorruptionError):
        zarrow.open(tmp_path / "s", partial=True)
    zarrow.repair(tmp_path / "s")
    with zarrow.open(tmp_path / "s", partial=True) as store:
        ids = store.table(["id"])["id"].to_pylist()
        assert ids == [*range(7), *range(14, 50)]
        assert store["t"][:] == expected[ids]


def test_damage_names_the_rows_of_a_chunk(tmp_path):
    counts = np.full(64, 100)
    with zarrow.Writer(tmp_path / "s", segment_rows=64) as writer:
        writer.append({"id": np.arange(64)}, {"t": _rows(counts, width=256)})  # 6,400 vectors, 1,024 a chunk
        writer.finalize()
    _damage(tmp_path / "s" / "embeddings.zarr/t/c/0/0/0", 1024 * 1024 * 2 + 5)  # the third chunk
    (finding,) = zarrow.verify(tmp_path / "s").findings
    assert finding.rows == (20, 31)


@pytest.mark.parametrize("order", [None, "key"])
def test_pack(tmp_path, order):
    expected = _write(tmp_path / "s", np.random.default_rng(0).integers(0, 5, 200))
    zarrow.pack(tmp_path / "s", order="id" if order else None, codecs={"t": "zstd"}, segment_rows=128)
    with zarrow.open(tmp_path / "s") as store:
        _same(store, expected)
        assert [codec["name"] for codec in store["t"].codecs] == ["bytes", "zstd"]
    assert zarrow.verify(tmp_path / "s", "full").ok


def test_a_copy_and_one_in_a_bucket(tmp_path):
    expected = _write(tmp_path / "s", np.random.default_rng(0).integers(0, 5, 200))
    zarrow.copy(tmp_path / "s", tmp_path / "copy")
    _same(zarrow.open(tmp_path / "copy"), expected)
    zarrow.copy(tmp_path / "s", "memory://ragged/copy")
    with zarrow.open("memory://ragged/copy") as store:
        assert store["t"][:] == expected
        assert store["t"][[5, 199, 3]] == expected[[5, 199, 3]]
        assert np.array_equal(store["t"][70], expected[70])


def test_xarray_shows_cf_ragged_arrays(tmp_path):
    xr = pytest.importorskip("xarray")
    counts = _random_counts(np.random.default_rng(2), 200)
    expected = _write(tmp_path / "s", counts)
    for chunks in (None, {}):
        with xr.open_dataset(tmp_path / "s", chunks=chunks) as dataset:
            assert dataset.t.dims == ("t_vector", "t_dim")
            assert dataset.t_count.attrs["sample_dimension"] == "t_vector"
            assert np.array_equal(dataset.t.values, expected.values)
            assert np.array_equal(dataset.t[5:9, 2].values, expected.values[5:9, 2])
            assert np.array_equal(dataset.t[[900, 3]].values, expected.values[[900, 3]])
            assert dataset.t_count.values.tolist() == counts.tolist()
            assert dataset.t_offset.values.tolist() == expected.offsets[:-1].tolist()


def test_looks(tmp_path):
    from typer.testing import CliRunner

    from zarrow.cli import app

    _write(tmp_path / "s", np.array([2, 0, 3] * 5))
    store = zarrow.open(tmp_path / "s")
    assert f"t any × ({WIDTH},)" in repr(store)
    assert "15 × any × 6" in store._repr_html_()
    assert "t" in store
    assert store["t"].shape == (15, None, WIDTH)
    assert len(store["t"].packed) == 25
    for command in ("info", "schema", "head"):
        said = CliRunner().invoke(app, [command, str(tmp_path / "s")], env={"COLUMNS": "200"})
        assert said.exit_code == 0
        assert ("no vectors" if command == "head" else "15 × any × 6") in said.output


def test_what_needs_one_vector_per_row_says_so(tmp_path):
    pytest.importorskip("sklearn")
    import zarrow.analysis

    _write(tmp_path / "s", np.array([2, 0, 3] * 5))
    store = zarrow.open(tmp_path / "s")
    for ask in (
        lambda: zarrow.analysis.pca(store, array="t"),
        lambda: zarrow.analysis.probe(store, "id", array="t"),
        lambda: zarrow.analysis.compare(store, store, array="t"),
    ):
        with pytest.raises(InvalidInputError, match="pool"):
            ask()


def test_counts_are_a_column(tmp_path):
    """How many vectors rows have is a column: filters, SQL, frames and xarray use it."""
    counts = np.array([2, 0, 3, 1, 70, 0] * 30)
    expected = _write(tmp_path / "s", counts)
    store = zarrow.open(tmp_path / "s")
    assert store.schema.field("t_count").type == pa.int64()
    assert store.table(["t_count"])["t_count"].to_pylist() == counts.tolist()
    many = pc.field("t_count") >= 3
    joined = [(batch["row"].to_pylist(), vectors["t"]) for batch, vectors in store.join(many, arrays=["t"])]
    rows = [row for numbers, _ in joined for row in numbers]
    assert rows == np.flatnonzero(counts >= 3).tolist()
    assert all(
        np.array_equal(one, expected[row])
        for numbers, found in joined
        for row, one in zip(numbers, found, strict=True)
    )
    assert store.sql("SELECT sum(t_count) FROM predictions").fetchall() == [(int(counts.sum()),)]
    union = zarrow.union({"a": store, "b": store})
    assert union.table(["row"], pc.field("t_count") == 0).num_rows == 2 * np.count_nonzero(counts == 0)
    with xr.open_dataset(tmp_path / "s") as dataset:
        assert dataset["t_count"].attrs["sample_dimension"] == "t_vector"
        assert np.array_equal(dataset["t_count"], counts)
    with xr.open_dataset(tmp_path / "s", drop_variables="t_count") as dataset:
        assert "t_count" not in dataset


def test_counts_may_be_given_if_they_are_right(tmp_path):
    """A column of the counts is compared with the array, so that what was read can be written again."""
    tokens = zarrow.Ragged(np.ones((5, 2), "f4"), [2, 0, 3])
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"t_count": pa.array([2, 0, 3], pa.int32())}, {"t": tokens})
        with pytest.raises(BatchError, match=r"column 't_count'.*array 't'.*expected 3, got 4 in row 2"):
            writer.append({"t_count": [2, 0, 4]}, {"t": tokens})
        writer.append(None, {"t": tokens})
        writer.finalize()
    assert zarrow.open(tmp_path / "s").table(["t_count"])["t_count"].to_pylist() == [2, 0, 3] * 2
    for name, options, column, says in (
        ("text", {}, ["a", "b", "c"], r"'t_count' of int64.*got string: rename"),
        ("key", {"keys": ["t_count"]}, [2, 0, 3], "no key"),
    ):
        with (
            zarrow.Writer(tmp_path / name, **options) as writer,
            pytest.raises(InvalidInputError, match=says),
        ):
            writer.append({"t_count": column}, {"t": tokens})
        assert not (tmp_path / name / "zarrow.json").exists()


def test_counts_that_lie_are_found(tmp_path, monkeypatch):
    """verify compares the column with the array; a store that has no such column is read as any."""
    lie = {"t_count": np.array([2, 1, 3])}
    monkeypatch.setattr("zarrow._write.batches.BatchChecker._with_counts", lambda *_: lie)
    tokens = zarrow.Ragged(np.ones((5, 2), "f4"), [2, 0, 3])
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append(None, {"t": tokens})
        writer.finalize()
    assert "does not say how many vectors" in str(zarrow.verify(tmp_path / "s", "full").findings)
    monkeypatch.setattr("zarrow._write.declaration.count_column", lambda _: None)
    with zarrow.Writer(tmp_path / "none") as writer:
        writer.append({"t_count": ["a", "b", "c"]}, {"t": tokens})
        writer.finalize()
    store = zarrow.open(tmp_path / "none")
    assert store["t"][2].shape == (3, 2)
    assert not zarrow.verify(tmp_path / "none", "full").findings
    assert store["t"].count_column is None
