"""Paths — a store of any name is found, read and moved by every program that it is handed to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from typer.main import get_command

import zarrow
from zarrow import transfer
from zarrow.cli import app
from zarrow.errors import InvalidInputError

NAMES = ["a[1]*? b'c\"d", "100%25#x{a,b}\\$HOME;|ä", "-dash", "~", "file:x", "s3:x", "x=1", "new\nline"]
WHOLE = list(range(20))
Use = Callable[[str], object]


def write(path: str) -> None:
    """Write 20 rows."""
    with zarrow.Writer(path, keys=["id"], segment_rows=8) as writer:
        vectors = np.random.default_rng(0).random((20, 8)).astype("f4")
        columns = {"id": np.arange(20), "q": [f"q{row % 3}" for row in range(20)]}
        columns |= {"prob": np.linspace(0, 1, 20), "occurs": np.arange(20) % 3 == 0}
        writer.append(columns, {"e": vectors})
        writer.finalize()


def ids(path: str) -> list[int]:
    """Return the rows of a store."""
    with zarrow.open(path) as store:
        return list(store.table(["id"])["id"].to_pylist())


def command(*arguments: str) -> int:
    """Run a command; names that look like options come after ``--``."""
    return CliRunner().invoke(get_command(app), arguments).exit_code


def moved(format: str, suffix: str) -> Use:
    """Return a use that exports a store and imports it again."""

    def move(path: str) -> list[int]:
        out, back = f"{path}.out{suffix}", f"{path}.{format}.zarrow"
        assert command("export", "--to", format, "--", path, out) == 0
        assert Path(out).exists()
        assert command("import", "--from", format, "--", out, back) == 0
        return ids(back)

    return move


def packed(path: str) -> list[int]:
    """Return the rows of a store that was packed beside, by its queries, and in place, by its keys."""
    zarrow.pack(path, f"{path}.packed", order="q")
    zarrow.pack(f"{path}.packed", order="id", codecs="zstd")
    return ids(f"{path}.packed")


USES: dict[str, Use] = {
    "table": ids,
    "sql": lambda path: [
        row for (row,) in zarrow.open(path).sql("SELECT id FROM predictions ORDER BY row").fetchall()
    ],
    "polars": lambda path: zarrow.open(path).to_polars().collect()["id"].to_list(),
    "xarray": lambda path: xr.open_dataset(path, engine="zarrow")["id"].values.tolist(),
    "zarr": lambda path: np.arange(len(zarrow.open(path)["e"].zarr()[:])).tolist(),
    "index": lambda path: (
        zarrow.build_index(path),
        zarrow.open(path).locate({"id": np.arange(20)}).tolist(),
    )[1],
    "pack": packed,
    "parquet": moved("parquet", ".parquet"),
    "npy": moved("npy", ""),
    "anndata": moved("anndata", "_a.zarr"),
    "lance": moved("lance", ".lance"),
}
COMMANDS = (
    ["info"],
    ["head"],
    ["watch", "--once"],
    ["verify"],
    ["repair", "--dry-run"],
    ["describe"],
    ["map"],
    ["pca"],
    ["nearest", "--rows", "3"],
    ["evaluate", "--bootstrap", "5"],
    ["probe", "--label", "occurs", "--group", "", "--bootstrap", "5"],
    ["compose", "--by", "id", "--over", "q"],
    ["neighbours"],
)
DRAWINGS = ((".png", ["plot"]), (".svg", ["plot", "--kind", "roc"]), (".html", ["report"]))


@pytest.mark.parametrize(
    ("name", "absolute"),
    [
        pytest.param(name, absolute, marks=[pytest.mark.slow] * (absolute != (number < 2) or number > 2))
        for number, name in enumerate(NAMES)
        for absolute in (False, True)
    ],
)
def test_a_store_of_any_name_is_the_one_that_is_used(
    name: str, absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program takes a path for a pattern, an address or an option."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a1bb'c\"d.zarrow").mkdir()
    path = f"{tmp_path / name}.zarrow" if absolute else f"{name}.zarrow"
    write(path)
    assert (tmp_path / f"{name}.zarrow" / "zarrow.json").exists()
    for what, use in USES.items():
        if what == "lance" and "\n" in name:
            with pytest.raises(InvalidInputError, match="Lance takes no control characters"):
                transfer.export(path, f"{path}.lance")
        else:
            assert use(path) == WHOLE, what
    for words in COMMANDS:
        assert command(*words, "--", path) == 0, words
    for suffix, words in DRAWINGS:
        assert command(*words, f"--out={path}{suffix}", "--", path) == 0, words
        assert Path(f"{path}{suffix}").stat().st_size
    assert ids(path) == zarrow.union([path]).table(["id"])["id"].to_pylist()
    assert command("copy", "--", path, f"{path}.copy") == 0
    assert ids(f"{path}.copy") == WHOLE
    assert all(found.startswith((name, "a1bb")) for found in os.listdir())


def test_a_path_that_duckdb_cannot_be_told_is_refused(tmp_path: Path) -> None:
    """DuckDB would take a backslash for a slash, in a path that is a pattern."""
    path = f"{tmp_path}/a\\b?.zarrow"
    write(path)
    with pytest.raises(InvalidInputError, match="DuckDB finds no file whose path has a backslash"):
        USES["sql"](path)
    assert USES["polars"](path) == WHOLE


def test_a_path_that_is_not_utf8_works_or_is_refused(tmp_path: Path) -> None:
    """What other programs cannot be told is refused in words, before the first byte."""
    path = f"{tmp_path}/\udcff.zarrow"
    write(path)
    for what in ("table", "xarray", "zarr", "index", "pack"):
        assert USES[what](path) == WHOLE, what
    for refused in (
        lambda: zarrow.open(path).sql("SELECT 1"),
        lambda: zarrow.open(path).to_polars(),
        *(lambda to=to: transfer.export(path, f"{path}.out", to) for to in ("npy", "parquet", "lance")),
        lambda: transfer.import_(path, tmp_path / "again.zarrow", "parquet"),
    ):
        with pytest.raises(InvalidInputError, match="paths in UTF-8 only"):
            refused()
    for words in COMMANDS:
        assert command(*words, path) == 0, words
