"""What do examples and tests need that users do not?

`example_store` and `example_predictions`: small stores to try things on, as the docstrings do.

Place: above the edges; imported by nothing of the library.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
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
        Where; by default in a temporary directory that goes with the process.

    Returns
    -------
    Store
        With the columns ``subject_id``, ``query`` and ``occurs_prob`` (0.0000, 0.0002, …) and the array
        ``query_embed`` of 8 float32; the dataset that was "predicted" came in reverse order.

    Examples
    --------
    >>> example_store()
    <zarrow.Store '...': 5000 rows, complete; query_embed (8,)>
    """
    if path is None:
        path = _temporary() / "example.zarrow"
    if not Path(path).exists():
        vectors = np.random.default_rng(0).normal(size=(ROWS, HIDDEN)).astype(np.float32)
        with Writer(path, keys=["subject_id", "query"], segment_rows=2048) as writer:
            for start in range(0, ROWS, 500):
                rows = np.arange(start, start + 500)
                writer.append(
                    {
                        "subject_id": rows // 10,
                        "query": [f"code//{row % 10}" for row in rows],
                        "occurs_prob": (rows / ROWS).astype(np.float64),
                    },
                    {"query_embed": vectors[start : start + 500]},
                    sample_index=ROWS - 1 - rows,
                )
            writer.finalize()
    return open(path)


def example_predictions(path: str | os.PathLike[str] | None = None) -> Store:
    """Write a complete store of 5,000 made-up predictions with labels, and open it.

    Parameters
    ----------
    path : path, optional
        Where; by default in a temporary directory that goes with the process.

    Returns
    -------
    Store
        With the keys ``subject_id``, ``prediction_time`` and ``query`` (ten queries each of 500), the label
        ``occurs`` (null where censored: one in ten), the probability ``occurs_prob`` and the array
        ``query_embed`` of 8 float32, of which the label can be told by a linear probe.

    Examples
    --------
    >>> example_predictions()
    <zarrow.Store '...': 5000 rows, complete; query_embed (8,)>
    """
    if path is None:
        path = _temporary() / "predictions.zarrow"
    if not Path(path).exists():
        generator = np.random.default_rng(0)
        rows = np.arange(ROWS)
        logits = generator.normal(size=ROWS) * 1.5 - 0.5
        occurs = generator.random(ROWS) < 1 / (1 + np.exp(-logits))
        directions = generator.normal(size=HIDDEN)
        vectors = generator.normal(size=(ROWS, HIDDEN)) + logits[:, None] * directions
        with Writer(path, keys=["subject_id", "prediction_time", "query"], segment_rows=2048) as writer:
            writer.append(
                {
                    "subject_id": rows // 50,
                    "prediction_time": np.datetime64("2026-01-01", "us")
                    + rows // 10 * np.timedelta64(1, "h"),
                    "query": [f"code//{row % 10}" for row in rows],
                    "occurs": pa.array(occurs, mask=rows // 10 % 10 == 0),
                    "occurs_prob": (1 / (1 + np.exp(-logits))).astype(np.float32),
                },
                {"query_embed": vectors.astype(np.float32)},
                sample_index=rows,
            )
            writer.finalize()
    return open(path)


@cache
def _temporary() -> Path:
    directory = tempfile.mkdtemp(prefix="zarrow-example-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)
