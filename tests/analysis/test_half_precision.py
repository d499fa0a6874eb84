"""Half precision — a float16 column, as a model makes it, answers as its float32 twin does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xarray as xr

import zarrow
from zarrow import analysis
from zarrow.analysis.report import report

ROWS = 60


def _store(path: Path, dtype: Any) -> zarrow.Store:
    """Return a store whose numbers all fit into float16."""
    rng = np.random.default_rng(0)

    def numbers(values: Any) -> Any:
        return np.asarray(values, np.float16).astype(dtype)

    columns = {
        "query": ["a", "b"] * (ROWS // 2),
        "prob": numbers(rng.random(ROWS)),
        "other": numbers([np.nan, *rng.normal(size=ROWS - 1)]),
        "group": numbers(np.arange(ROWS) % 3),
        "label": np.arange(ROWS) % 2 == 0,
    }
    with zarrow.Writer(path, segment_rows=16) as writer:
        writer.append(columns, {"v": numbers(rng.normal(size=(ROWS, 4)))})
        writer.finalize()
    return zarrow.open(path)


def _without_types(table: pa.Table) -> Any:
    lines = table.drop_columns(["type"]).to_pylist()  # threads add up in any order
    return [
        {key: round(fact, 9) if type(fact) is float else fact for key, fact in line.items()} for line in lines
    ]


def _neighbours(source: Any) -> Any:
    return analysis.nearest(source, [1, 2], k=3, filter=pc.field("prob") > 0.2).rows.tolist()


ASKED: dict[str, Callable[[Any], Any]] = {
    "filter": lambda store: store.table(["row"], filter=pc.field("prob") > 0.55)["row"].to_pylist(),
    "is nan": lambda store: store.table(["row"], filter=pc.field("other").is_nan())["row"].to_pylist(),
    "sql": lambda store: store.sql("SELECT avg(prob), count(*) FROM predictions WHERE prob > 0.5").fetchall(),
    "polars": lambda store: store.to_polars().select("prob", "group").collect().to_dicts(),
    "describe": lambda store: _without_types(analysis.describe(store).columns),
    "describe by": lambda store: _without_types(analysis.describe(store, by="group").columns),
    "describe a Dataset": lambda store: _without_types(
        analysis.describe(xr.open_dataset(store.path)).columns
    ),
    "evaluate": lambda store: analysis.evaluate(
        store, "prob", "label", by="group", bootstrap=3
    ).table.to_pylist(),
    "nearest": _neighbours,
    "nearest of a Dataset": lambda store: _neighbours(xr.open_dataset(store.path)),
    "probe": lambda store: analysis.probe(store, "other").overall,
    "compose": lambda store: analysis.compose(
        store, over="query", by=["group", "other"], probability="prob"
    ).to_pylist(),
}  # fmt: skip


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> list[zarrow.Store]:
    """Return the same numbers as float16 and as float32."""
    folder = tmp_path_factory.mktemp("twins")
    return [_store(folder / f"{dtype.__name__}.zarrow", dtype) for dtype in (np.float16, np.float32)]


@pytest.mark.parametrize("name", ASKED)
def test_a_float16_column_answers_as_its_float32_twin(name: str, twins: list[zarrow.Store]) -> None:
    """Filters, SQL, Polars and the analyses give the same for both; the stored type stays float16."""
    half, single = twins
    assert half.schema.field("prob").type == pa.float16()
    assert repr(ASKED[name](half)) == repr(ASKED[name](single))


def test_a_report_shows_float16_columns(twins: list[zarrow.Store], tmp_path: Path) -> None:
    """The report of a store in half precision is made."""
    report(twins[0], tmp_path / "report.html", probability="prob", label="label")
    assert "prob" in (tmp_path / "report.html").read_text()


def test_a_filter_with_a_float16_literal_says_what_to_write(twins: list[zarrow.Store]) -> None:
    """Arrow cannot compare with a float16 literal, and the message says what can be compared."""
    with pytest.raises(zarrow.errors.InvalidInputError, match="Python float"):
        twins[0].table(filter=pc.field("prob") > np.float16(0.5))


def test_conditions_of_the_command_line_compare_float16(twins: list[zarrow.Store]) -> None:
    """``--where`` works for a float16 column, also where its value is no float32 of the same text."""
    from zarrow._commands.arguments import where_of

    for condition in ("prob>0.5", f"prob={twins[0].table(['prob'])['prob'][3].as_py()}"):
        half, single = (store.table(["row"], filter=where_of(store, [condition])) for store in twins)
        assert half.num_rows
        assert half.equals(single)
