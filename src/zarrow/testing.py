"""Testing — small stores to try things on, as the docstrings and the tests of zarrow do."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.store import Store, open
from zarrow.writer import Writer

__all__ = ["example_predictions", "example_store"]

ROWS = 5000
HIDDEN = 8


def example_store(path: str | os.PathLike[str] | None = None) -> Store:
    """Write a complete store of 5,000 made-up predictions, and open it.

    Parameters
    ----------
    path : path, optional
        Where to write it; by default a temporary directory that is removed when the process ends.

    Returns
    -------
    Store
        With the columns ``subject_id``, ``query`` and ``occurs_prob`` (0.0000, 0.0002, …) and the array
        ``query_embed`` of 8 float32. Its rows are in the reverse order of the dataset.

    Examples
    --------
    >>> example_store()
    <zarrow.Store '...': 5,000 rows, complete; query_embed (8,)>
    """
    rows = np.arange(ROWS)
    columns = {
        "subject_id": rows // 10,
        "query": [f"code//{row % 10}" for row in rows],
        "occurs_prob": rows / ROWS,
    }
    vectors = np.random.default_rng(0).normal(size=(ROWS, HIDDEN))
    keys = ["subject_id", "query"]
    return _written(path or _temporary() / "example.zarrow", keys, columns, vectors, ROWS - 1 - rows)


def example_predictions(path: str | os.PathLike[str] | None = None) -> Store:
    """Write a complete store of 5,000 made-up predictions with labels, and open it.

    Parameters
    ----------
    path : path, optional
        Where to write it; by default a temporary directory that is removed when the process ends.

    Returns
    -------
    Store
        With the keys ``subject_id``, ``prediction_time`` and ``query`` (500 times ten queries), the label
        ``occurs`` (null where censored: one in ten), the probability ``occurs_prob`` and the array
        ``query_embed`` of 8 float32, from which a linear probe can predict the label.

    Examples
    --------
    >>> example_predictions()
    <zarrow.Store '...': 5,000 rows, complete; query_embed (8,)>
    """
    generator, rows = np.random.default_rng(0), np.arange(ROWS)
    logits = generator.normal(size=ROWS) * 1.5 - 0.5
    occurs = generator.random(ROWS) < 1 / (1 + np.exp(-logits))
    directions = generator.normal(size=HIDDEN)
    vectors = generator.normal(size=(ROWS, HIDDEN)) + logits[:, None] * directions
    columns = {
        "subject_id": rows // 50,
        "prediction_time": np.datetime64("2026-01-01", "us") + rows // 10 * np.timedelta64(1, "h"),
        "query": [f"code//{row % 10}" for row in rows],
        "occurs": pa.array(occurs, mask=rows // 10 % 10 == 0),
        "occurs_prob": (1 / (1 + np.exp(-logits))).astype(np.float32),
    }
    keys = ["subject_id", "prediction_time", "query"]
    return _written(path or _temporary() / "predictions.zarrow", keys, columns, vectors, rows)


def _written(
    path: str | os.PathLike[str],
    keys: list[str],
    columns: dict[str, Any],
    vectors: npt.NDArray[np.float64],
    sample_index: npt.NDArray[np.int64],
) -> Store:
    if not Path(path).exists():
        with Writer(path, keys=keys, segment_rows=2048) as writer:
            writer.append(columns, {"query_embed": vectors.astype(np.float32)}, sample_index=sample_index)
            writer.finalize()
    return open(path)


@cache
def _temporary() -> Path:
    directory = tempfile.mkdtemp(prefix="zarrow-example-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)
