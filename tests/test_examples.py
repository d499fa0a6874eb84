"""Do the examples run as they are, each in a process of its own?"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest
from example_runs import EXAMPLES, environment, needs_sentence_model, run

import zarrow

pytestmark = pytest.mark.slow


def test_quickstart(tmp_path: Path) -> None:
    """The quickstart leaves a complete store with a row per patient and query, and joins what it finds."""
    printed = run("quickstart.py", cwd=tmp_path)
    store = zarrow.open(tmp_path / "quickstart.zarrow")
    assert (store.num_rows, store["query_embed"].shape) == (6000, (6000, 256))
    assert "rows with sepsis above 0.6" in printed


@needs_sentence_model
def test_sentence_embeddings(tmp_path: Path) -> None:
    """The best paragraph for a question is one that answers it, and a second question embeds nothing anew."""
    arguments = ("--store", "topics.zarrow", "--limit", "96")
    printed = run(
        "sentence_embeddings.py", *arguments, "--query", "assert that a condition holds", cwd=tmp_path
    )
    assert printed.splitlines()[-5].split()[1] == "assert"
    store = zarrow.open(tmp_path / "topics.zarrow")
    assert (store.num_rows, store["embedding"].shape) == (96, (96, 384))
    again = run("sentence_embeddings.py", *arguments, "--query", "wait for a coroutine", cwd=tmp_path)
    assert "a coroutine" in again
    # What analysis makes of such a store: the best answer, its likes, and a map.
    question = "assert that a condition holds"
    printed = run("analysis/find_paragraphs.py", "topics.zarrow", question, cwd=tmp_path)
    assert printed.splitlines()[1].split()[1] == "assert"
    assert printed.splitlines()[7] == "like the best of them:"
    assert (tmp_path / "topics.png").stat().st_size > 10_000


def test_worker_processes(tmp_path: Path) -> None:
    """Independent processes write one store; one that was killed is run again and goes on with its rows."""
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
    """The processes of a Dask cluster write one store, every row once; a second run writes none anew."""
    printed = run("dask_cluster.py", cwd=tmp_path)
    assert "35,940 rows by 2 workers" in printed
    store = zarrow.open(tmp_path / "digits.zarrow")
    assert store.complete
    assert sorted(store.table()["sample"].to_pylist()) == list(range(35_940))
    assert "0 rows by 2 workers" in run("dask_cluster.py", cwd=tmp_path)


def test_all_examples_are_tested() -> None:
    """No example lies beside the tested ones."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
