"""Export and import — what other tools read of a store, and stores made from their files."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import anndata
import duckdb
import lance
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import zarr
from anndata.experimental import read_lazy

import zarrow
from zarrow.errors import ConflictError, IncompleteStoreError, InvalidInputError, UnknownNameError
from zarrow.testing import example_store
from zarrow.transfer import EXPORTS, IMPORTS, _rows, export, import_

ROWS = 3000


def table_of(start: int, stop: int) -> pa.Table:
    rows = np.arange(start, stop)
    return pa.table(
        {
            "id": rows,
            "query": pa.array([None if row % 7 == 0 else f"code//{row % 10}" for row in rows.tolist()]),
            "label": pa.array([None if row % 5 == 0 else row % 2 == 0 for row in rows.tolist()]),
            "count": pa.array([None if row % 3 == 0 else row for row in rows.tolist()], pa.int32()),
            "prob": (rows / ROWS).astype(np.float32),
            "time": pa.array(rows * 1_000_000, pa.timestamp("us")),
            "kind": pa.array([f"kind{row % 3}" for row in rows.tolist()]).dictionary_encode(),
        }
    )


def vectors_of(start: int, stop: int) -> dict[str, np.ndarray]:
    rows = np.arange(start, stop, dtype=np.float32)[:, None]
    return {
        "embed": rows + np.arange(16, dtype=np.float32) / 16,
        "layers": (rows.astype(np.float16) + np.zeros(12, np.float16)).reshape(-1, 3, 4),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "run.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=1024) as writer:
        for start in range(0, ROWS, 500):
            arrays = vectors_of(start, start + 500)
            writer.append(table_of(start, start + 500), arrays, sample_index=np.arange(start, start + 500))
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Several batches, of which the last is short."""
    monkeypatch.setattr(_rows, "MAX_BATCH_ROWS", 512)


def plain(table: pa.Table) -> pa.Table:
    """Decode dictionaries, for comparison."""
    for place, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, column.name, table[column.name].cast(pa.string()))
    return table.combine_chunks()


def same_rows(found: zarrow.Store, columns: list[str]) -> None:
    """The rows are those of the original."""
    assert found.complete
    assert found.num_rows == ROWS
    truth = plain(table_of(0, ROWS))
    assert plain(found.table(columns)).to_pydict() == truth.select(columns).to_pydict()
    for name, rows in vectors_of(0, ROWS).items():
        np.testing.assert_array_equal(found[name][:], rows)
        assert found[name].dtype == rows.dtype


ALL = ["id", "query", "label", "count", "prob", "time", "kind"]


class TestRoundTrips:
    def test_parquet(self, store, tmp_path):
        """One Parquet file has columns and vectors, and gives the same store back."""
        assert export(store, tmp_path / "run.parquet") == ROWS
        query = f"SELECT embed[2], layers[12] FROM '{tmp_path}/run.parquet' OFFSET 7"
        assert duckdb.sql(query).fetchall()[0] == (7.0625, 7.0)
        layers = pq.read_table(tmp_path / "run.parquet")["layers"]
        assert layers.type == pa.fixed_shape_tensor(pa.float16(), (3, 4), ["layers_dim0", "layers_dim1"])
        np.testing.assert_array_equal(
            layers.combine_chunks().to_numpy_ndarray(), vectors_of(0, ROWS)["layers"]
        )
        frame = pd.read_parquet(tmp_path / "run.parquet", columns=["embed"])
        np.testing.assert_array_equal(np.stack(frame["embed"]), vectors_of(0, ROWS)["embed"])
        assert pq.ParquetFile(tmp_path / "run.parquet").num_row_groups > 1
        import_(tmp_path / "run.parquet", tmp_path / "again.zarrow", keys=["id"])
        again = zarrow.open(tmp_path / "again.zarrow")
        same_rows(again, ALL)
        assert again.schema.field("time") == store.schema.field("time")
        assert again["layers"].row_shape == (3, 4)
        assert again.keys == ("id",)
        assert again.provenance["imported_as"] == "parquet"

    def test_tensors_of_others(self, tmp_path):
        """Tensors of a fixed shape become arrays of that shape, whatever the order of their axes on disk."""
        values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        kind = pa.fixed_shape_tensor(pa.int16(), (3, 4), permutation=[1, 0])
        lists = pa.array(values.reshape(2, 12).tolist(), kind.storage_type)
        tensors = pa.ExtensionArray.from_storage(kind, lists)
        pq.write_table(pa.table({"id": [1, 2], "turned": tensors}), tmp_path / "tensors.parquet")
        import_(tmp_path / "tensors.parquet", tmp_path / "s.zarrow")
        with zarrow.Writer(tmp_path / "w.zarrow") as writer:
            writer.append({"id": [1, 2]}, {"turned": tensors})
            writer.finalize()
        for name in ("s", "w"):
            found = zarrow.open(tmp_path / f"{name}.zarrow")["turned"][:]
            np.testing.assert_array_equal(found, values.transpose(0, 2, 1))

    def test_npy_folder(self, store, tmp_path):
        """A folder in embedding-reader's layout can be mapped by numpy, and gives the same store back."""
        export(store, tmp_path / "run", "npy", columns=[*ALL, "sample_index"])
        mapped = np.load(tmp_path / "run/embed/embed_0.npy", mmap_mode="r")
        np.testing.assert_array_equal(mapped, vectors_of(0, ROWS)["embed"])
        assert pq.read_table(tmp_path / "run/metadata/metadata_0.parquet")["id"].to_pylist() == list(
            range(ROWS)
        )
        import_(tmp_path / "run", tmp_path / "again.zarrow", "npy")
        again = zarrow.open(tmp_path / "again.zarrow")
        same_rows(again, ALL)
        assert again.table(["sample_index"])["sample_index"].to_pylist() == list(range(ROWS))

    def test_npy_files_come_in_the_order_of_their_numbers(self, tmp_path):
        """Files are read in numerical order, as are the tables, and may have different lengths."""
        for folder in ("img_emb", "metadata"):
            (tmp_path / "laion" / folder).mkdir(parents=True)
        start = 0
        for number in range(12):
            stop = start + 10 + number
            rows = np.arange(start, stop)
            np.save(
                tmp_path / f"laion/img_emb/img_emb_{number}.npy",
                np.float16(rows)[:, None] + np.zeros(4, "f2"),
            )
            pq.write_table(pa.table({"key": rows}), tmp_path / f"laion/metadata/metadata_{number}.parquet")
            start = stop
        assert import_(tmp_path / "laion", tmp_path / "s.zarrow", "npy") == start
        found = zarrow.open(tmp_path / "s.zarrow")
        assert found.table(["key"])["key"].to_pylist() == list(range(start))
        np.testing.assert_array_equal(found["img_emb"][:, 0], np.arange(start))

    def test_one_npy_file(self, store, tmp_path):
        """One array is one file, with or without a table next to it."""
        export(store, tmp_path / "embed.npy", arrays=["embed"])
        np.testing.assert_array_equal(np.load(tmp_path / "embed.npy"), vectors_of(0, ROWS)["embed"])
        pq.write_table(table_of(0, ROWS), tmp_path / "table.parquet")
        import_(tmp_path / "embed.npy", tmp_path / "a.zarrow", beside=tmp_path / "table.parquet")
        assert zarrow.open(tmp_path / "a.zarrow").table(["id"])["id"].to_pylist() == list(range(ROWS))
        import_(tmp_path / "embed.npy", tmp_path / "b.zarrow")
        bare = zarrow.open(tmp_path / "b.zarrow")
        assert bare.schema.names == ["row", "sample_index"]
        np.testing.assert_array_equal(bare["embed"][:], vectors_of(0, ROWS)["embed"])

    def test_lance(self, store, tmp_path):
        """A Lance dataset has all columns, and gives the same store back."""
        export(store, tmp_path / "run.lance")
        dataset = lance.dataset(str(tmp_path / "run.lance"))
        assert dataset.count_rows() == ROWS
        taken = dataset.take([7, 2999], columns=["id", "embed"])
        assert taken["id"].to_pylist() == [7, 2999]
        np.testing.assert_array_equal(taken["embed"].to_pylist()[1], vectors_of(2999, 3000)["embed"][0])
        import_(tmp_path / "run.lance", tmp_path / "again.zarrow")
        same_rows(zarrow.open(tmp_path / "again.zarrow"), ALL)

    def test_anndata(self, store, tmp_path):
        """anndata reads the columns as obs and the arrays as obsm, lazily too, and the store comes back."""
        export(store, tmp_path / "run.zarr")
        found = anndata.read_zarr(tmp_path / "run.zarr")
        truth = table_of(0, ROWS)
        assert found.shape == (ROWS, 0)
        for name, rows in vectors_of(0, ROWS).items():
            np.testing.assert_array_equal(found.obsm[name], rows)
        for name in ("id", "prob", "kind"):
            assert found.obs[name].tolist() == truth[name].to_pylist()
        for name in ("query", "label", "count"):
            assert [None if pd.isna(value) else value for value in found.obs[name]] == truth[name].to_pylist()
        assert found.obs["count"].dtype == pd.Int32Dtype()
        stored = zarr.open_group(tmp_path / "run.zarr", mode="r")
        assert stored.metadata.zarr_format == 3
        assert stored["obsm/embed"].shards > stored["obsm/embed"].chunks
        lazy = read_lazy(tmp_path / "run.zarr")
        np.testing.assert_array_equal(lazy.obsm["embed"][100:110].compute(), vectors_of(100, 110)["embed"])
        import_(tmp_path / "run.zarr", tmp_path / "again.zarrow", keys=["id"])
        again = zarrow.open(tmp_path / "again.zarrow")
        same_rows(again, [name for name in ALL if name != "time"])
        assert (
            pc.strptime(
                again.table(["time"])["time"].combine_chunks(), "%Y-%m-%d %H:%M:%S.000000", "us"
            ).to_pylist()
            == truth["time"].to_pylist()
        )

    # anndata 0.12.6, the last version that can be installed with pandas 3, cannot write its text columns.
    @pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")
    @pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
    def test_anndata_of_others(self, tmp_path, suffix):
        """A file written by anndata becomes a store, with row names, categories and a dense X."""
        with pd.option_context("future.infer_string", False):
            names = np.array([f"cell{row}" for row in range(700)])
            obs = pd.DataFrame(
                {
                    "depth": np.arange(700),
                    "cluster": pd.Categorical.from_codes(np.arange(700) % 3 - 1, ["a", "b"]),
                    "seen": pd.array([None, True] * 350, "boolean"),
                },
                index=names,
            )
            var = pd.DataFrame(index=np.array(list("xyz")))
            data = anndata.AnnData(
                np.ones((700, 3), np.float32), obs, var, obsm={"X_pca": np.arange(1400.0).reshape(700, 2)}
            )
            path = tmp_path / f"cells{suffix}"
            data.write_zarr(path) if suffix == ".zarr" else data.write_h5ad(path)
        import_(path, tmp_path / "s.zarrow", keys=["obs_names"])
        found = zarrow.open(tmp_path / "s.zarrow")
        table = plain(found.table())
        assert table["obs_names"].to_pylist() == names.tolist()
        assert table["cluster"].to_pylist() == [None, "a", "b"] * 233 + [None]
        assert table["seen"].to_pylist() == [None, True] * 350
        assert set(found.arrays) == {"X", "X_pca"}
        np.testing.assert_array_equal(found["X_pca"][-1], [1398, 1399])

    def test_safetensors(self, store, tmp_path):
        """The safetensors library reads arrays and columns of numbers."""
        export(store, tmp_path / "run.safetensors", columns=["prob", "id"])
        found = safetensors.numpy.load_file(tmp_path / "run.safetensors")
        assert sorted(found) == ["embed", "id", "layers", "prob"]
        np.testing.assert_array_equal(found["id"], np.arange(ROWS))
        for name, rows in vectors_of(0, ROWS).items():
            np.testing.assert_array_equal(found[name], rows)
            assert found[name].dtype == rows.dtype

    def test_everyquery(self, tmp_path):
        """EveryQuery's pair becomes a store, and the store the same pair."""
        rows = np.arange(ROWS)
        keys = {
            "subject_id": rows // 10,
            "prediction_time": pa.array(rows, pa.timestamp("us")),
            "query": pa.array([f"code//{row % 10}" for row in rows.tolist()], pa.large_string()),
            "duration_days": np.full(ROWS, 30, np.float32),
        }
        label = pa.array([None, True, False] * 1000)
        probabilities = {"censor_prob": np.float32(rows), "occurs_prob": np.float32(rows) / ROWS}
        pq.write_table(pa.table({**keys, "boolean_value": label, **probabilities}), tmp_path / "p.parquet")
        values = pa.array(vectors_of(0, ROWS)["embed"].reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(values, 16)
        pq.write_table(
            pa.table({**keys, "boolean_value": label, "embedding": vectors}),
            tmp_path / "e.parquet",
            row_group_size=700,
        )
        import_(tmp_path / "p.parquet", tmp_path / "s.zarrow", "everyquery", beside=tmp_path / "e.parquet")
        found = zarrow.open(tmp_path / "s.zarrow")
        assert found.keys == tuple(keys)
        np.testing.assert_array_equal(found["query_embed"][:], vectors_of(0, ROWS)["embed"])
        export(found, tmp_path / "again.parquet", "everyquery")
        again = pq.read_table(tmp_path / "again.parquet")
        theirs = pq.read_table(tmp_path / "p.parquet")
        assert again.select(theirs.column_names).to_pydict() == theirs.to_pydict()
        beside = pq.read_table(tmp_path / "again.embeddings.parquet")
        assert beside["embedding"].to_pylist() == vectors.to_pylist()


def tree(path):
    """Return everything at a path: names, and what files hold."""
    found = [path, *sorted(path.rglob("*"))]
    return {one.relative_to(path): one.read_bytes() if one.is_file() else None for one in found}


FOLDERS = ["npy", "anndata", "lance"]


class TestTargets:
    """What an export must not write to, or remove."""

    def test_the_store_and_what_contains_it(self, store, tmp_path):
        """Neither the store nor a folder around it is a target, by whatever link it is named."""
        (tmp_path / "link").symlink_to(store.path)
        for target in (store.path, store.path / "x.npy", tmp_path / "link", store.path.parent):
            with pytest.raises((InvalidInputError, ConflictError), match=r"within|contains|exists"):
                export(store, target, "npy", columns=[])
            with pytest.raises(InvalidInputError, match=r"within the exported|contains the exported"):
                export(store, target, "npy", overwrite=True)
        assert zarrow.verify(store.path).ok

    @pytest.mark.parametrize("format", ["parquet", *FOLDERS])
    def test_a_folder_with_other_files(self, store, tmp_path, format):
        """A folder that holds anything else than an export in this format is not overwritten."""
        for number, name in enumerate(("notes.txt", "data/raw.csv", "obs/notes", "e/e_1.npy", "zarrow.json")):
            target = tmp_path / f"out-{number}"
            if format in FOLDERS:
                export(store, target, format)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text("mine")
            before = tree(target)
            with pytest.raises(ConflictError, match=f"would remove '{name}'"):
                export(store, target, format, overwrite=True)
            assert tree(target) == before
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked/e").symlink_to(tmp_path)
        with pytest.raises(ConflictError, match="would remove 'e'"):
            export(store, tmp_path / "linked", format, overwrite=True)

    @pytest.mark.parametrize("format", ["parquet", *FOLDERS])
    def test_an_earlier_export_and_a_link_to_it(self, store, tmp_path, format):
        """An export in the same format is overwritten; a link to it stays a link."""
        export(store, tmp_path / "out", format, columns=["id"])
        before = tree(tmp_path / "out")
        (tmp_path / "link").symlink_to("out")
        export(store, tmp_path / "link", format, overwrite=True)
        assert os.readlink(tmp_path / "link") == "out"
        assert tree(tmp_path / "out") != before
        assert sorted(os.listdir(tmp_path)) == ["link", "out"]

    def test_what_is_neither_file_nor_folder(self, store, tmp_path):
        """A pipe or device is not replaced."""
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConflictError, match="neither a file nor a folder"):
            export(store, tmp_path / "pipe", "parquet", overwrite=True)
        assert (tmp_path / "pipe").is_fifo()

    def test_two_at_once(self, store, tmp_path):
        """The second export to a target is refused; the first one is whole."""

        def second(done, total):
            if done < total:
                with pytest.raises(ConflictError, match="another process is exporting to it"):
                    export(store, tmp_path / "out.parquet", overwrite=True)

        export(store, tmp_path / "out.parquet", progress=second)
        assert pq.read_table(tmp_path / "out.parquet").num_rows == ROWS
        assert os.listdir(tmp_path) == ["out.parquet"]

    def test_a_killed_one_is_tidied_up(self, store, tmp_path):
        """The next export to the target removes what a killed one left, and nothing else."""
        code = (
            "import os, sys, zarrow.transfer as t\n"
            "t.export(sys.argv[1], sys.argv[2], progress=lambda *_: os.kill(os.getpid(), 9))\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1])}
        words = [sys.executable, "-c", code, store.path, tmp_path / "out.parquet"]
        assert subprocess.run(words, env=environment, check=False).returncode == -9
        assert len(os.listdir(tmp_path)) == 2
        (tmp_path / ".out.parquet.0123456789abcdef.exporting").write_text("mine")
        export(store, tmp_path / "out.parquet")
        assert sorted(os.listdir(tmp_path)) == [".out.parquet.0123456789abcdef.exporting", "out.parquet"]

    @pytest.mark.parametrize("kind", ["file", "folder", "link"])
    def test_a_name_that_is_somebody_elses(self, store, tmp_path, kind):
        """Where the name of the lock is taken, the export is refused in words."""
        name = tmp_path / ".out.parquet.exporting"
        if kind == "folder":
            name.mkdir()
        else:
            (name if kind == "file" else tmp_path / "mine").write_text("mine")
            if kind == "link":
                name.symlink_to("mine")
        before = tree(tmp_path)
        with pytest.raises(ConflictError, match="needs this name: move it away"):
            export(store, tmp_path / "out.parquet")
        assert tree(tmp_path) == before

    def test_a_file_that_appears_meanwhile(self, store, tmp_path):
        """A file that somebody else makes at the target meanwhile stays."""

        def make(done, total):
            (tmp_path / "out.parquet").write_text("mine")

        with pytest.raises(ConflictError, match="exists"):
            export(store, tmp_path / "out.parquet", progress=make)
        assert (tmp_path / "out.parquet").read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    @pytest.mark.parametrize("format", ["npy", "parquet", "anndata", "lance", "safetensors"])
    def test_what_is_private_stays_private(self, store, tmp_path, format):
        """What another user may not read in the store, he may not read in the export, nor while it grows."""
        store = zarrow.open(shutil.copytree(store.path, tmp_path / "private.zarrow"))
        os.chown(store.path, 1234, 2345)
        os.chmod(store.path, 0o750)
        tmp_path.chmod(0o755)
        (tmp_path / "public").touch()
        code = (
            "import os, sys\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "for folder, folders, files in os.walk('.'):\n"
            "    for name in files:\n"
            "        path = os.path.join(folder, name)\n"
            "        if not name.endswith('.exporting') and os.access(path, os.R_OK): print(path)\n"
        )

        def readable(*_):
            words = [sys.executable, "-I", "-c", code]
            found = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
            assert found.stdout == b"./public\n"

        seen = []  # the first time takes long enough
        columns = ["id"] if format == "safetensors" else None
        export(
            store,
            tmp_path / "out",
            format,
            columns=columns,
            progress=lambda *_: seen or seen.append(readable()),
        )
        readable()
        for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
            status = path.stat()
            assert (status.st_uid, status.st_gid) == (1234, 2345), path
            assert status.st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path

    def test_an_import_of_a_part_of_the_target(self, store):
        """A store is not replaced by what lies in it."""
        with pytest.raises(InvalidInputError, match="which is imported"):
            import_(store.path / "table", store.path, "parquet", overwrite=True)
        assert zarrow.verify(store.path).ok


class TestRules:
    @pytest.mark.parametrize("format", ["npy", "parquet", "anndata", "lance", "safetensors"])
    def test_a_store_without_rows(self, tmp_path, format):
        """A store without rows survives export and import."""
        with zarrow.Writer(
            tmp_path / "s.zarrow", schema=pa.schema({"id": pa.int64()}), arrays={"v": (4, "float32")}
        ) as writer:
            writer.finalize()
        assert export(tmp_path / "s.zarrow", tmp_path / "out", format) == 0
        if format in IMPORTS:
            assert import_(tmp_path / "out", tmp_path / "again.zarrow", format) == 0
            again = zarrow.open(tmp_path / "again.zarrow")
            assert again.schema.names[0] == "id"
            assert again["v"].shape == (0, 4)

    @pytest.mark.parametrize("format", EXPORTS)
    def test_what_is_there_is_kept(self, store, tmp_path, format):
        """An existing target is refused and left unchanged, unless overwrite=True."""
        target = tmp_path / "out"
        target.write_text("mine")
        with pytest.raises(ConflictError, match="exists already"):
            export(store, target, format)
        assert target.read_text() == "mine"
        if format not in ("everyquery", "meds", "embedding-atlas"):  # these have tests of their own
            export(store, target, format, columns=["id"], overwrite=True)
            assert target.is_dir() or target.read_bytes() != b"mine"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("format", ["npy", "parquet", "anndata", "lance", "safetensors"])
    def test_an_export_that_fails_leaves_nothing(self, store, tmp_path, format, monkeypatch):
        """If reading rows fails, the old target is still there, and nothing else."""
        target = tmp_path / "out"
        export(store, target, format, columns=["id"])
        before = tree(target)
        join = zarrow.Store.join

        def broken(self, *args, **kwargs):
            for count, batch in enumerate(join(self, *args, **kwargs)):
                if count == 2:
                    raise OSError("the disk is gone")
                yield batch

        monkeypatch.setattr(zarrow.Store, "join", broken)
        with pytest.raises((OSError, RuntimeError), match="the disk is gone"):
            export(store, target, format, columns=["id"], overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert tree(target) == before

    def test_progress(self, store, tmp_path):
        """The progress function is called for every batch, and at the end."""
        calls = []
        export(store, tmp_path / "a.parquet", progress=lambda done, total: calls.append((done, total)))
        assert calls[0] == (512, ROWS)
        assert calls[-1] == (ROWS, ROWS)
        back = []
        import_(
            tmp_path / "a.parquet",
            tmp_path / "s.zarrow",
            progress=lambda done, total: back.append((done, total)),
        )
        assert back[-1] == (ROWS, ROWS)

    def test_names_are_checked(self, store, tmp_path):
        """An unknown column or array is named, with the existing ones."""
        with pytest.raises(UnknownNameError, match="embed"):
            export(store, tmp_path / "a.parquet", arrays=["embde"])
        with pytest.raises(UnknownNameError, match="prob"):
            export(store, tmp_path / "a.parquet", columns=["porb"])
        with pytest.raises(InvalidInputError, match="must be one of npy, parquet"):
            export(store, tmp_path / "a.csv")
        with pytest.raises(InvalidInputError, match="got 'csv'"):
            export(store, tmp_path / "a", "csv")
        assert list(tmp_path.iterdir()) == []

    def test_not_into_the_store_itself(self, store):
        """A target within a store's directory is refused."""
        with pytest.raises(InvalidInputError, match="lies within the exported store"):
            export(store, store.path / "a.parquet")

    def test_an_incomplete_store(self, tmp_path):
        """An incomplete store is not exported by its path, but it is if opened with partial=True."""
        with zarrow.Writer(tmp_path / "s.zarrow") as writer:
            writer.append({"id": [1, 2]}, {"v": np.ones((2, 4), np.float32)})
        with pytest.raises(IncompleteStoreError):
            export(tmp_path / "s.zarrow", tmp_path / "a.parquet")
        assert export(zarrow.open(tmp_path / "s.zarrow", partial=True), tmp_path / "a.parquet") == 2

    def test_what_a_format_cannot_hold(self, store, tmp_path):
        """Values that would be lost or changed are refused by name."""
        for target, options, match in [
            ("a.npy", {}, "one array"),
            ("a.npy", {"arrays": ["embed"], "columns": ["id"]}, "no columns"),
            ("a.safetensors", {"columns": ["query"]}, "'query'"),
            ("a.safetensors", {"columns": ["count"]}, "'count' has a null in rows 0 to"),
            ("a.h5ad", {}, "ends in .zarr"),
        ]:
            with pytest.raises(InvalidInputError, match=match):
                export(store, tmp_path / target, **options)
        assert list(tmp_path.iterdir()) == []

    def test_a_library_that_is_missing_is_named(self):
        """Without a format's library the error names the command that installs it."""
        program = (
            "import sys; sys.modules['lance'] = None\n"
            "import zarrow.testing, zarrow.transfer\n"
            "zarrow.transfer.export(zarrow.testing.example_store(), '/tmp/never.lance')"
        )
        done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
        assert "MissingExtraError: The format 'lance' needs lance: pip install pylance" in done.stderr


class TestBadSources:
    def refuse(self, tmp_path: Path, source: Path, format: str, match: str, **options) -> None:
        """The import is refused, and no store is left, not even an incomplete one."""
        with pytest.raises((InvalidInputError, FileNotFoundError), match=match):
            import_(source, tmp_path / "s.zarrow", format, **options)
        with pytest.raises((LookupError, IncompleteStoreError)):
            zarrow.open(tmp_path / "s.zarrow")

    @pytest.mark.parametrize("format", IMPORTS)
    def test_nothing_there(self, tmp_path, format):
        """A missing path is refused."""
        self.refuse(tmp_path, tmp_path / "none", format, "no such file or directory to import")

    @pytest.mark.parametrize("format", IMPORTS)
    def test_something_else(self, tmp_path, format):
        """A file or folder of another format is refused."""
        (tmp_path / "file").write_text("hello" * 100)
        (tmp_path / "folder").mkdir()
        for name in ("file", "folder"):
            self.refuse(tmp_path, tmp_path / name, format, name)

    def test_vectors_of_different_lengths(self, tmp_path):
        """Ragged lists cannot become an array; the rows are named."""
        pq.write_table(pa.table({"v": [[1.0, 2.0]] * 600 + [[1.0]]}), tmp_path / "a.parquet")
        self.refuse(
            tmp_path, tmp_path / "a.parquet", "parquet", "rows from 512 on: got lists of 2 and of 1 values"
        )

    def test_a_null_vector(self, tmp_path):
        """A missing vector is refused."""
        pq.write_table(pa.table({"v": [[1.0, 2.0], None]}), tmp_path / "a.parquet")
        self.refuse(tmp_path, tmp_path / "a.parquet", "parquet", "a vector is null")

    def test_lists_that_are_no_vectors(self, tmp_path):
        """Lists of text, and lists of different lengths from the first row on, stay columns."""
        columns = {"v": [[1.0, 2.0]] * 2, "tags": [["a", "b"]] * 2, "codes": [[1], [1, 2]]}
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        import_(tmp_path / "a.parquet", tmp_path / "s.zarrow")
        found = zarrow.open(tmp_path / "s.zarrow")
        assert list(found.arrays) == ["v"]
        assert found.table(["tags", "codes"]).to_pydict() == {
            name: columns[name] for name in ("tags", "codes")
        }

    def test_a_table_of_another_length(self, tmp_path):
        """Vectors and table must have as many rows."""
        np.save(tmp_path / "v.npy", np.ones((3, 2)))
        pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "t.parquet")
        self.refuse(tmp_path, tmp_path / "v.npy", "npy", "same number of rows", beside=tmp_path / "t.parquet")

    def test_pickles_are_not_loaded(self, tmp_path):
        """A .npy file of objects is refused, because it could run code."""
        np.save(tmp_path / "v.npy", np.array([{"a": 1}], object), allow_pickle=True)
        self.refuse(tmp_path, tmp_path / "v.npy", "npy", "not a .npy file of numbers")

    def test_embeddings_of_other_predictions(self, tmp_path):
        """The identifiers of EveryQuery's files are compared row by row."""
        keys = {
            "subject_id": [1, 2],
            "prediction_time": pa.array([0, 0], pa.timestamp("us")),
            "query": ["a", "b"],
            "duration_days": [30.0, 30.0],
        }
        pq.write_table(pa.table({**keys, "occurs_prob": [0.1, 0.2]}), tmp_path / "p.parquet")
        keys["query"] = ["b", "a"]
        pq.write_table(pa.table({**keys, "embedding": [[1.0], [2.0]]}), tmp_path / "e.parquet")
        self.refuse(
            tmp_path, tmp_path / "p.parquet", "everyquery", "query differs", beside=tmp_path / "e.parquet"
        )

    def test_a_store_that_is_there(self, tmp_path):
        """An existing store is refused, or replaced with overwrite=True once the new one is complete."""
        np.save(tmp_path / "v.npy", np.ones((3, 2)))
        import_(tmp_path / "v.npy", tmp_path / "s.zarrow")
        with pytest.raises(ConflictError, match="exists already"):
            import_(tmp_path / "v.npy", tmp_path / "s.zarrow")
        np.save(tmp_path / "v.npy", np.ones((5, 2)))
        import_(tmp_path / "v.npy", tmp_path / "s.zarrow", overwrite=True)
        assert zarrow.open(tmp_path / "s.zarrow").num_rows == 5
        pq.write_table(pa.table({"v": [[1.0, 2.0]] * 600 + [[1.0]]}), tmp_path / "a.parquet")
        with pytest.raises(InvalidInputError):
            import_(tmp_path / "a.parquet", tmp_path / "s.zarrow", overwrite=True)
        assert zarrow.open(tmp_path / "s.zarrow").num_rows == 5


@pytest.mark.parametrize("format", ["npy", "parquet", "anndata", "safetensors", "everyquery"])
def test_memory_does_not_grow_with_the_rows(tmp_path, format, monkeypatch):
    """Peak memory of an export is that of a few batches, at most a quarter of the vectors."""
    monkeypatch.undo()
    monkeypatch.setattr(_rows, "BATCH_BYTES", 1 << 20)
    rows, step = 65_536, 8192
    columns = {
        "subject_id": np.arange(step),
        "prediction_time": pa.array(np.arange(step), pa.timestamp("us")),
        "query": pa.array(["a"] * step, pa.large_string()),
        "duration_days": np.ones(step, np.float32),
        "censor_prob": np.ones(step, np.float32),
        "occurs_prob": np.ones(step, np.float32),
    }
    with zarrow.Writer(tmp_path / "s.zarrow", segment_rows=8192) as writer:
        for _ in range(0, rows, step):
            writer.append(columns, {"v": np.zeros((step, 256), np.float32)})
        writer.finalize()
    store = zarrow.open(tmp_path / "s.zarrow")
    before, most = pa.total_allocated_bytes(), 0

    def look(done, total):
        nonlocal most
        most = max(most, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[1])

    tracemalloc.start()
    try:
        export(store, tmp_path / "out", format, progress=look)
        look(0, 0)
    finally:
        tracemalloc.stop()
    assert 0 < most < rows * 256 * 4 / 4


def test_json_of_the_header(store, tmp_path):
    """The header of a safetensors file is aligned, as other readers require."""
    export(store, tmp_path / "a.safetensors", columns=["id"])
    data = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    assert header["__metadata__"]["zarrow_uuid"] == store.uuid
    assert all(facts["data_offsets"][0] % 8 == 0 for name, facts in header.items() if name[0] != "_")


def test_embedding_atlas_gets_a_map(tmp_path: Path) -> None:
    """The columns and a map's coordinates are in one file; of several maps one must be named."""
    store = example_store(tmp_path / "atlas.zarrow")
    with pytest.raises(InvalidInputError, match="zarrow map"):
        export(store, tmp_path / "a.parquet", "embedding-atlas")
    places = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    places[7] = np.nan
    zarrow.add_array(store.path, "first", places)
    assert export(store.path, tmp_path / "a.parquet", "embedding-atlas") == 5000
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["subject_id", "query", "occurs_prob", "projection_x", "projection_y"]
    assert table["projection_x"].null_count == table["projection_y"].null_count == 1
    found = np.stack([table[name].to_numpy() for name in ("projection_x", "projection_y")], axis=1)
    assert np.array_equal(found, places, equal_nan=True)
    zarrow.add_array(store.path, "second", places + 1)
    with pytest.raises(InvalidInputError, match="first, second"):
        export(store.path, tmp_path / "b.parquet", "embedding-atlas")
    export(store.path, tmp_path / "b.parquet", "embedding-atlas", arrays=["second"])
    assert pq.read_table(tmp_path / "b.parquet")["projection_x"][0].as_py() == places[0, 0] + 1


class TestSources:
    """Sources of others — files in natural order, and nothing of theirs is lost without a word."""

    def test_parquet_files_come_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        """The parts of a folder are read as part.2 before part.10, and hidden ones are not."""
        for number in range(12):
            pq.write_table(
                pa.table({"id": [2 * number, 2 * number + 1]}), tmp_path / f"part.{number}.parquet"
            )
        pq.write_table(pa.table({"id": [99]}), tmp_path / "_copy.parquet")
        import_(tmp_path, tmp_path / "s.zarrow", "parquet")
        assert zarrow.open(tmp_path / "s.zarrow").table(["id"])["id"].to_pylist() == list(range(24))

    def test_a_partitioned_folder_is_refused(self, tmp_path: Path) -> None:
        """A column that only the names of folders have is not dropped silently."""
        pq.write_to_dataset(pa.table({"id": [1, 2], "split": ["a", "b"]}), tmp_path / "f", ["split"])
        with pytest.raises(InvalidInputError, match="partitioned by split"):
            import_(tmp_path / "f", tmp_path / "s.zarrow", "parquet")

    def test_what_no_array_or_column_is(self, tmp_path: Path) -> None:
        """An archive of arrays, a column as vectors, and a doubled name are refused with a remedy."""
        np.savez(tmp_path / "v.npz", v=np.ones((2, 3)))
        np.save(tmp_path / "v.npy", np.arange(4.0))
        twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
        pq.write_table(twice, tmp_path / "t.parquet")
        for name, message in {
            "v.npz": "save each one as a .npy",
            "v.npy": r"reshape\(-1, 1\)",
            "t.parquet": "'a' is there more than once",
        }.items():
            with pytest.raises(InvalidInputError, match=message):
                import_(tmp_path / name, tmp_path / "s.zarrow", "parquet" if "parquet" in name else "npy")
