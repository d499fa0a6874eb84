"""Do the examples of analysis run as they are, and say what they are to say?"""

from pathlib import Path

import pytest
from example_runs import EXAMPLES, run

import zarrow

pytestmark = pytest.mark.slow


def run_strictly(name: str, *arguments: str, cwd: Path) -> str:
    """Run an example to which no library may object."""
    return run(name, *arguments, cwd=cwd, options=["-W", "error::UserWarning"])


def test_inspect_with_xarray(tmp_path: Path) -> None:
    """xarray shows columns and vectors lazily, and the map once it is stored."""
    printed = run_strictly("analysis/inspect_with_xarray.py", cwd=tmp_path)
    assert "query_embed_pca" in printed
    assert "dask.array<" in printed
    assert list(zarrow.open(tmp_path / "predictions.zarrow").derived) == ["query_embed_pca"]


def test_probe_queries(tmp_path: Path) -> None:
    """The probe tells the label of patients that it has not seen, query by query."""
    printed = run_strictly("analysis/probe_queries.py", cwd=tmp_path).splitlines()
    auroc = float(next(line for line in printed if line.startswith("AUROC")).split()[1])
    assert auroc > 0.7
    assert sum(line.startswith("code//") for line in printed) == 13


def test_compare_checkpoints(tmp_path: Path) -> None:
    """The query whose vectors were moved most is named first, and drawn."""
    printed = run_strictly("analysis/compare_checkpoints.py", cwd=tmp_path).splitlines()
    assert printed[0] == "5,000 rows in both, 0 and 0 in one"
    assert next(line for line in printed if "mean moved by" in line).startswith("code//3")
    assert (tmp_path / "drift.png").stat().st_size > 10_000


def test_evaluate_predictions(tmp_path: Path) -> None:
    """Every task gets its line, and pictures and page are there."""
    printed = run_strictly("analysis/evaluate_predictions.py", cwd=tmp_path)
    assert "4,500 rows with a label, 500 censored" in printed
    assert printed.count("\ncode//") == 10
    for name in ("roc.svg", "calibration.svg", "report.html"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_all_examples_are_tested() -> None:
    """No example lies beside the tested ones."""
    beside = Path(__file__).parents[1] / "test_examples.py"  # where there is a store of sentences
    text = Path(__file__).read_text(encoding="utf-8") + beside.read_text(encoding="utf-8")
    assert [path.name for path in (EXAMPLES / "analysis").glob("*.py") if path.name not in text] == []
