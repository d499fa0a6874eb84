"""The short suite — what every environment must do that ``pyproject.toml`` promises to work in.

``.ci/run`` runs it in environments that hold zarrow, its dependencies at their oldest or newest, and pytest:
no pandas, and what an extra brings only where the extra was installed. A test of something that is not
installed is skipped, and the versions that are installed are printed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest

import zarrow
from zarrow.transfer import export, import_

PACKAGES = [
    *(
        "zarrow",
        "numpy",
        "pyarrow",
        "zarr",
        "numcodecs",
        "google-crc32c",
        "typer",
        "rich",
        "pandas",
        "polars",
    ),
    *("duckdb", "xarray", "dask", "torch", "lightning", "jsonargparse", "everyquery"),
    *("scikit-learn", "scipy", "matplotlib", "faiss-cpu", "h5py", "pylance", "obstore"),
]
ROWS, WIDTH, BATCH = 1000, 8, 50

WRITE = f"""
import sys, time
import numpy as np
import zarrow
with zarrow.Writer(sys.argv[1], mode="a", keys=["subject_id", "query"], segment_rows=128) as writer:
    for start in range(writer.accepted_rows, {ROWS}, {BATCH}):
        ids = np.arange(start, start + {BATCH})
        queries = [["stroke", None, "fracture"][i % 3] or "" for i in ids]
        columns = {{"subject_id": ids, "query": queries, "prob": ids / {ROWS}}}
        vectors = np.repeat(ids[:, None], {WIDTH}, 1).astype(np.float32)
        writer.append(columns, {{"query_embed": vectors}}, ids)
        print(writer.flush(), flush=True)
        time.sleep(float(sys.argv[2]))
    writer.finalize()
"""

PREDICT = f"""
import sys, time
import lightning.pytorch as pl
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, TensorDataset
from zarrow.lightning import PredictionWriter

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, {WIDTH}, bias=False)
        torch.nn.init.ones_(self.layer.weight)

    def predict_step(self, batch):
        time.sleep(float(sys.argv[2]))
        print("step", flush=True)
        return {{"prob": batch[0][:, 0] / {ROWS}, "query_embed": self.layer(batch[0]).detach()}}

rows = pa.table({{"subject_id": range({ROWS}), "query": ["stroke", "", "fracture", "stroke"] * {ROWS // 4}}})
writer = PredictionWriter(sys.argv[1], identifiers=rows, keys=["subject_id", "query"], resume=True)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], **quiet)
data = TensorDataset(torch.arange({ROWS}).float()[:, None])
trainer.predict(Model(), DataLoader(data, batch_size={BATCH}), return_predictions=False)
"""


def _run(script: str, path: Path, pause_s: float = 0.0, *, lines: int | None = None) -> int:
    """Run a script on a store, kill it after `lines` lines if asked to, and return its exit status."""
    command = [sys.executable, "-W", "ignore", "-c", script, str(path), str(pause_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if lines is not None:
        for _ in range(lines):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> zarrow.Store:
    """Return a complete store whose writer was killed in the middle and went on."""
    path = tmp_path_factory.mktemp("short") / "run.zarrow"
    assert _run(WRITE, path, 0.02, lines=7) == -signal.SIGKILL
    with zarrow.open(path, partial=True) as begun:
        assert 7 * BATCH <= begun.num_rows < ROWS
    assert _run(WRITE, path) == 0
    return zarrow.open(path)


def _check_rows(store: zarrow.Store) -> None:
    assert store.num_rows == ROWS
    table = store.table(["subject_id", "prob", "row"])
    order = np.argsort(table["subject_id"].to_numpy())
    assert (table["subject_id"].to_numpy()[order] == np.arange(ROWS)).all()
    assert np.allclose(table["prob"].to_numpy()[order], np.arange(ROWS) / ROWS)
    assert (np.asarray(store["query_embed"])[order] == np.arange(ROWS)[:, None]).all()


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    """The versions under test are printed, so that a log says what was proved."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "–"
    with capsys.disabled():
        print(f"\nPython {sys.version.split()[0]}:", ", ".join(f"{name} {found[name]}" for name in PACKAGES))
    assert found["zarrow"] != "–"


def test_a_killed_writer_goes_on(store: zarrow.Store) -> None:
    """A store whose writer was killed with SIGKILL is completed by the same program."""
    _check_rows(store)
    assert zarrow.verify(store.path, "full").ok


def test_no_pandas_is_needed(store: zarrow.Store) -> None:
    """Where pandas is not installed nothing of this suite has loaded it."""
    try:
        version("pandas")
    except PackageNotFoundError:
        assert "pandas" not in sys.modules
    assert store.complete


def test_stock_readers_find_the_rows(store: zarrow.Store) -> None:
    """zarr-python and pyarrow read the store without zarrow."""
    import zarr

    group = zarr.open_group(f"{store.path}/embeddings.zarr", mode="r")
    assert (np.asarray(group["query_embed"][:])[:, 0] == np.arange(ROWS)).all()
    table = pyarrow.dataset.dataset(f"{store.path}/table").to_table()
    assert table["subject_id"].to_pylist() == list(range(ROWS))


def test_engines_find_the_rows(store: zarrow.Store) -> None:
    """DuckDB and Polars read the table."""
    duckdb = pytest.importorskip("duckdb")
    parts = f"{store.path}/table/*.parquet"
    assert duckdb.sql(f"select count(*) from '{parts}' where prob >= 0.9").fetchall() == [(ROWS // 10,)]
    assert store.sql("select count(*) from predictions where query = 'stroke'").fetchall()[0][0] == 334


def test_polars_finds_the_rows(store: zarrow.Store) -> None:
    """Polars reads the table, and is an accepted way in."""
    polars = pytest.importorskip("polars")
    lazy = polars.scan_parquet(f"{store.path}/table/*.parquet")
    assert lazy.select(polars.len()).collect().item() == ROWS


def test_filters_and_joins(store: zarrow.Store) -> None:
    """A filter finds its rows, and a join their vectors."""
    likely = pc.field("prob") >= 0.9
    assert store.table(["row"], filter=likely).num_rows == ROWS // 10
    for batch, vectors in store.join(filter=likely):
        assert (vectors["query_embed"][:, 0] == batch["subject_id"].to_numpy()).all()


def test_keys(store: zarrow.Store) -> None:
    """Rows are found by key, with the index on disk and without."""
    keys = {"subject_id": [42, 7, 5000], "query": ["stroke", "", "stroke"]}
    assert store.locate(keys, missing=-1).tolist() == [42, 7, -1]
    zarrow.build_index(store.path)
    assert zarrow.open(store.path).locate(keys, missing=-1).tolist() == [42, 7, -1]


def test_xarray_opens_the_store(store: zarrow.Store) -> None:
    """xarray opens the store by its engine, with dask's chunks if dask is installed."""
    xr = pytest.importorskip("xarray")
    with xr.open_dataset(store.path) as dataset:
        assert dataset["query_embed"].shape == (ROWS, WIDTH)
        assert float(dataset["prob"].max()) == pytest.approx(0.999)
    pytest.importorskip("dask.array")
    with xr.open_dataset(store.path, chunks={}) as dataset:
        assert float(dataset["query_embed"].mean()) == pytest.approx((ROWS - 1) / 2)


@pytest.mark.parametrize(
    ("target", "library"), [("parquet", ""), ("npy", ""), ("anndata", "h5py"), ("lance", "lance")]
)
def test_export_and_import(store: zarrow.Store, tmp_path: Path, target: str, library: str) -> None:
    """What is exported can be imported, and holds the same rows."""
    if library:
        pytest.importorskip(library)
    out = tmp_path / f"out.{target}" if target == "parquet" else tmp_path / "out"
    export(store, out, target)
    import_(out, tmp_path / "again.zarrow", target, keys=["subject_id", "query"])
    _check_rows(zarrow.open(tmp_path / "again.zarrow"))


def test_analysis(store: zarrow.Store) -> None:
    """Vectors are described, and near ones found: all compared, and through the index."""
    for library in ("sklearn", "scipy", "duckdb"):
        pytest.importorskip(library)
    from zarrow import analysis

    assert analysis.describe(store).arrays["query_embed"].rows == ROWS
    assert analysis.nearest(store, [500], k=3, metric="l2").rows[0, 0] == 500
    pytest.importorskip("faiss")
    analysis.build_neighbours(store, metric="l2")
    assert analysis.nearest(store, [500], k=3, metric="l2", approximate=True).rows[0, 0] == 500


def test_maintenance(store: zarrow.Store, tmp_path: Path) -> None:
    """A packed store is sound, takes a derived array, and loses one segment to a flipped bit and a repair."""
    path = tmp_path / "packed.zarrow"
    zarrow.pack(store.path, path, codecs="zstd", segment_rows=256)
    zarrow.add_array(path, "halved", np.asarray(store["query_embed"]) / 2)
    assert (zarrow.open(path)["halved"][10] == 5).all()
    part = path / "table" / "part-00000001.parquet"
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    assert not zarrow.verify(path).ok
    assert len(zarrow.repair(path).set_aside) == 1
    assert zarrow.open(path, partial=True).num_rows == ROWS - 256


def test_a_bucket(store: zarrow.Store, tmp_path: Path) -> None:
    """A copy in a bucket, here one in memory, has the rows, and a copy of it on a disk is sound."""
    pytest.importorskip("obstore")
    url = f"memory://bucket{tmp_path}/run.zarrow"
    zarrow.copy(store.path, url)
    _check_rows(zarrow.open(url))
    zarrow.copy(url, tmp_path / "back.zarrow")
    assert zarrow.verify(tmp_path / "back.zarrow").ok


def test_types(tmp_path: Path) -> None:
    """Columns of many types come back equal."""
    columns = {
        "int": pa.array([1, None], pa.int16()),
        "half": pa.array(np.array([0.5, np.nan], np.float16)),
        "text": pa.array(["a", None]),
        "when": pa.array([0, None], pa.timestamp("us", "UTC")),
        "list": pa.array([[1, 2], []], pa.list_(pa.int64())),
        "struct": pa.array([{"a": 1}, None]),
        "category": pa.array(["x", "y"]).dictionary_encode(),
    }
    with zarrow.Writer(tmp_path / "t.zarrow") as writer:
        writer.append(pa.table(columns))
        writer.finalize()
    table = zarrow.open(tmp_path / "t.zarrow").table(list(columns))
    for name, values in columns.items():
        assert str(table[name].to_pylist()) == str(values.to_pylist()), name
    assert zarrow.verify(tmp_path / "t.zarrow", "full").ok


def test_commands(store: zarrow.Store) -> None:
    """The command line describes and checks the store."""
    command = [sys.executable, "-c", "from zarrow.__main__ import main; main()"]
    environment = {**os.environ, "COLUMNS": "120"}
    for arguments in (["info", "--json"], ["head"], ["verify", "--json"], ["--help"]):
        name, *options = arguments
        target = [] if name == "--help" else [str(store.path)]
        done = subprocess.run(
            [*command, name, *target, *options], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        if "--json" in options:
            json.loads(done.stdout)


def test_a_killed_predict_goes_on(tmp_path: Path) -> None:
    """A Lightning predict that was killed with SIGKILL goes on and completes the store."""
    for name in ("torch", "lightning"):
        try:
            version(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    path = tmp_path / "run.zarrow"
    assert _run(PREDICT, path, 0.05, lines=9) == -signal.SIGKILL
    assert _run(PREDICT, path) == 0
    _check_rows(zarrow.open(path))
