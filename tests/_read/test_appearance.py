"""Appearance — what a session and a notebook show of stores, writers, datasets and results."""

from pathlib import Path

import numpy as np
import pytest

import zarrow
import zarrow.lightning
import zarrow.testing
import zarrow.torch
from zarrow import analysis


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> zarrow.Store:
    return zarrow.testing.example_predictions(tmp_path_factory.mktemp("seen") / "run.zarrow")


def test_a_writer_says_where_and_how_far_it_is(tmp_path: Path) -> None:
    """A writer's repr has its path, its rows and its state, at every moment of its life."""
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path) as writer:
        assert repr(writer) == f"<zarrow.Writer {str(path)!r}: open, accepted_rows=0>"
        writer.append({"id": [1]}, {"v": np.ones((1, 2), np.float32)})
        writer.finalize()
    assert repr(writer) == f"<zarrow.Writer {str(path)!r}: finalized, accepted_rows=1>"
    again = zarrow.lightning.PredictionWriter(path, resume=True)
    assert repr(again) == f"<zarrow.lightning.PredictionWriter {str(path)!r}, mode='a'>"


def test_a_dataset_says_what_it_yields(store: zarrow.Store) -> None:
    """A torch dataset's repr has its store, its rows, arrays and columns."""
    dataset = zarrow.torch.StoreDataset(store, columns=["query"])
    assert repr(dataset).endswith("run.zarrow': 5,000 rows; query_embed (8,), query>")
    batches = zarrow.torch.StoreIterableDataset(store, columns=[], batch_size=32)
    assert repr(batches).endswith("run.zarrow': 5,000 rows; query_embed (8,)>")


@pytest.mark.parametrize(
    "question", ["describe", "evaluate", "pca", "map_rows", "build_neighbours", "verify"]
)
def test_a_result_is_short_in_a_session_and_a_table_in_a_notebook(store: zarrow.Store, question: str) -> None:
    """A result fits into a few lines, however many rows it is about; a notebook shows its tables."""
    found = zarrow.verify(store.path) if question == "verify" else getattr(analysis, question)(store)
    assert len(repr(found)) < 400
    assert repr(found).startswith(f"{type(found).__name__}(")
    assert "<table>" in found._repr_html_()


def test_what_a_notebook_shows_is_escaped(tmp_path: Path) -> None:
    """Names and values from a store are text in a notebook, not markup."""
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        names = np.array(["<script>", "b"])
        writer.append({"<b>": names, "p": [0.1, 0.9], "y": [0, 1]}, {"v": np.ones((2, 2), np.float32)})
        writer.finalize()
    store = zarrow.open(tmp_path / "run.zarrow")
    shown = analysis.evaluate(store, "p", "y", by="<b>", bootstrap=0)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "<b>&lt;b&gt;" not in zarrow.union({"<i>": store, "b": store})._repr_html_()
    assert "<i>" not in zarrow.union({"<i>": store, "b": store})._repr_html_()
