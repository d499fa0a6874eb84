"""Analysis — what embeddings look like, how good they are, and which are near which, while rows stream by.

Nothing here loads an array: rows are read in blocks, and memory does not grow with the store, except where a
function says so. ``pip install 'zarrow[analysis]'`` installs what it needs: scipy, scikit-learn, DuckDB,
matplotlib, Jinja2. It only reads a store, but for two functions that add to it: `map_rows` and
`build_neighbours`.

Behind the functions below and the doors `zarrow.analysis.plot` and `zarrow.analysis.report` lie four rooms:
`_rows` (blocks of rows), `_numbers` (what they add up to), `_questions` (one file per function) and
`_pictures` (answers drawn). ``import zarrow`` does not import any of it.
"""

from typing import Any

from zarrow.analysis._questions.compare import Comparison, compare
from zarrow.analysis._questions.compare_all import ModelComparison, compare_all
from zarrow.analysis._questions.compose import compose
from zarrow.analysis._questions.describe import ArrayDescription, Description, VectorCounts, describe
from zarrow.analysis._questions.evaluate import Evaluation, evaluate
from zarrow.analysis._questions.map import Map, map_rows, place_rows
from zarrow.analysis._questions.nearest import Neighbours, nearest
from zarrow.analysis._questions.neighbour_index import NeighbourIndex, build_neighbours
from zarrow.analysis._questions.pca import Pca, pca
from zarrow.analysis._questions.pool import pool
from zarrow.analysis._questions.probe import Probe, probe
from zarrow.analysis._questions.quantization import QuantizationError, quantization_error
from zarrow.analysis._questions.texts import embed_texts

__all__ = [
    "ArrayDescription",
    "Comparison",
    "Description",
    "Evaluation",
    "Map",
    "ModelComparison",
    "NeighbourIndex",
    "Neighbours",
    "Pca",
    "Probe",
    "QuantizationError",
    "VectorCounts",
    "build_neighbours",
    "compare",
    "compare_all",
    "compose",
    "describe",
    "embed_texts",
    "evaluate",
    "map_rows",
    "nearest",
    "pca",
    "place_rows",
    "pool",
    "probe",
    "quantization_error",
]


def __getattr__(name: str) -> Any:
    if name in ("plot", "report"):  # the doors above these functions
        from importlib import import_module

        return import_module(f"zarrow.analysis.{name}")
    raise AttributeError(f"module 'zarrow.analysis' has no attribute {name!r}")
