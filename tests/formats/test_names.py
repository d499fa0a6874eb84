"""Names — a column of any name comes back right from every surface, or is refused in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xarray as xr

import zarrow
from zarrow import analysis
from zarrow.errors import InvalidInputError
from zarrow.transfer import export, import_

NAMES = [
    "dataloader_idx", "batch_idx", "query", "rows", "score", "rank", "group", "count", "column", "n", "o",
    "p", "index", "__index_level_0__", "obs_names", "_index", "metadata", "emb_dim", "predictions",
    "zarrow_rest", "passes", "incoming", "v0", "filename", "values", "obs", "select", "0", "a.b", "other",
    ".other", ".", "..", "a/b", "a b", 'a"b', "a'b", "*", "ä", "\U0001f600", "x\ny", "l" * 300,
]  # fmt: skip
COLUMNS = {name: [3 * number + 2, 3 * number, 3 * number + 1] for number, name in enumerate(NAMES)}
Found = dict[str, list[int]]


def _write(path: Path, columns: Any, arrays: Any = None) -> zarrow.Store:
    with zarrow.Writer(path, segment_rows=2) as writer:
        writer.append(columns, arrays)
        writer.finalize()
    return zarrow.open(path)


def _sql(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _queried(query: Callable[[str], Any], table: str) -> Found:
    return {
        name: [one for (one,) in query(f"SELECT {_sql(name)} FROM {table} ORDER BY row").fetchall()]
        for name in NAMES
    }


def _moved(format: str, suffix: str) -> Callable[[zarrow.Store, Path], Found]:
    def move(store: zarrow.Store, folder: Path) -> Found:
        left = [name for name in NAMES if name not in REFUSED.get(format, ())]
        for name in REFUSED.get(format, ()):
            with pytest.raises(InvalidInputError, match="leave"):
                export(store, folder / f"out{suffix}", format, columns=[name])
        export(store, folder / f"out{suffix}", format, columns=left)
        import_(folder / f"out{suffix}", folder / f"{format}.zarrow", format)
        return zarrow.open(folder / f"{format}.zarrow").table(left).to_pydict()

    return move


def _described(store: zarrow.Store, _: Path) -> Found:
    found = analysis.describe(store, columns=NAMES).columns
    assert found["column"].to_pylist() == NAMES
    for name, low, high in zip(NAMES, found["min"].to_pylist(), found["max"].to_pylist(), strict=True):
        assert (low, high) == (min(COLUMNS[name]), max(COLUMNS[name]))
    for name in NAMES:
        by = analysis.describe(store, columns=["other"], by=name).columns
        assert by.column(0).to_pylist() == sorted(COLUMNS[name])
    return COLUMNS


def _nearest(store: zarrow.Store, _: Path) -> Found:
    table = analysis.nearest(store, [0], k=3, metric="l2").table(store, NAMES)
    return dict(zip(NAMES, (column.to_pylist() for column in table.columns[-len(NAMES) :]), strict=True))


SURFACES: dict[str, Callable[[zarrow.Store, Path], Any]] = {
    "table": lambda store, _: store.table(NAMES).to_pydict(),
    "filter": lambda store, _: {
        name: store.table([name], filter=pc.field(name) >= 0)[name].to_pylist() for name in NAMES
    },
    "take": lambda store, _: store.take([0, 1, 2], NAMES)[0].to_pydict(),
    "sql": lambda store, _: _queried(store.sql, "predictions"),
    "duckdb": lambda store, _: _queried(duckdb.sql, f"'{store.path}/table/*.parquet'"),
    "polars": lambda store, _: store.to_polars().collect().to_dict(as_series=False),
    "pandas": lambda store, _: pd.read_parquet(store.path / "table").to_dict("list"),
    "xarray": lambda store, _: {name: xr.open_dataset(store.path)[name].values.tolist() for name in NAMES},
    "nearest": _nearest,
    "describe": _described,
    "parquet": _moved("parquet", ".parquet"),
    "npy": _moved("npy", ""),
    "anndata": _moved("anndata", "_a.zarr"),
    "lance": _moved("lance", ".lance"),
}
REFUSED = {
    "anndata": ["_index", ".", "..", "l" * 300],
    "lance": [name for name in NAMES if "." in name],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> zarrow.Store:
    """Return a store with a column of every name, each with values of its own."""
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    return _write(tmp_path_factory.mktemp("names") / "s.zarrow", COLUMNS, {"emb": vectors})


@pytest.mark.parametrize("surface", SURFACES)
def test_a_column_of_any_name_is_right_on_every_surface(
    surface: str, store: zarrow.Store, tmp_path: Path
) -> None:
    """No surface hides a column, or gives another one's values; what a format cannot name is refused."""
    found = SURFACES[surface](store, tmp_path)
    for name in NAMES:
        if name not in REFUSED.get(surface, ()):
            assert found[name] == COLUMNS[name], name


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"": [1]}, "must not be empty"),
        ({"x\0y": [1]}, "must not be empty or contain NUL"),
        ({"a": [1], "A": [2]}, "'a' and 'A' differ only by case"),
        ({"Row": [1]}, "'row' and 'Row' differ only by case"),
        ({"row": [1]}, "reserved"),
        ({"sample_index": [1]}, "reserved"),
        ({0: [1]}, "must be a string"),
        ({"\ud800": [1]}, "must be text"),
        (pl.DataFrame({"a": [1], "A": [2]}), "differ only by case"),
        (pd.DataFrame({"a": [1]}, index=pd.Index([5], name="a")), "already exists|more than once"),
        (pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]), "more than once"),
    ],
    ids=[
        "empty",
        "NUL",
        "case",
        "Row",
        "row",
        "sample_index",
        "number",
        "surrogate",
        "frame",
        "index",
        "twice",
    ],
)
def test_a_name_that_would_be_lost_is_refused(columns: Any, message: str, tmp_path: Path) -> None:
    """A name that SQL cannot express, or mixes up with another, is refused before the first byte."""
    with zarrow.Writer(tmp_path / "s.zarrow") as writer, pytest.raises(InvalidInputError, match=message):
        writer.append(columns)
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        writer.append({"ok": [1]})
        writer.finalize()


@pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")
def test_names_of_observations_are_not_lost(tmp_path: Path) -> None:
    """The names of an AnnData's rows are a column, also beside one that is called obs_names."""
    import anndata

    with pd.option_context("future.infer_string", False):  # anndata 0.12 cannot write pandas 3's strings
        obs = pd.DataFrame({"obs_names": [1, 2]}, index=["cell a", "cell b"])
        anndata.AnnData(obs=obs, obsm={"v": np.ones((2, 3), np.float32)}).write_zarr(tmp_path / "a.zarr")
    import_(tmp_path / "a.zarr", tmp_path / "s.zarrow", "anndata")
    table = zarrow.open(tmp_path / "s.zarrow").table(["obs_names", "obs_names_"])
    assert table.to_pydict() == {"obs_names": [1, 2], "obs_names_": ["cell a", "cell b"]}
