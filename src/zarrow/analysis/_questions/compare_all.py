"""Comparison of several models — every pair of their stores, one line each.

Each pair is compared as `compare` does; what it says of a pair is a line of one table, and each of its
figures can be had as a matrix. Memory is that of one comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.analysis._questions.answer import Answer
from zarrow.analysis._questions.compare import Comparison, compare
from zarrow.analysis._rows.blocks import Progress, part_of
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError, unknown_name
from zarrow.several import Union
from zarrow.store import Store

__all__ = ["ModelComparison", "compare_all"]

_FIGURES = ("cka", "procrustes", "cosine_mean", "cosine_std", "cosine_min", "neighbour_overlap")
_OF_PROBABILITY = ("mean_difference", "mean_absolute_difference", "correlation", "ks")
_SAME = {"cka": 1.0, "procrustes": 0.0, "cosine_mean": 1.0, "cosine_std": 0.0, "cosine_min": 1.0}
_SAME |= {"neighbour_overlap": 1.0, "correlation": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ModelComparison(Answer):
    """How the vectors of several models differ, pair by pair.

    Parameters
    ----------
    models : tuple of str
        The models.
    table : pyarrow.Table
        A line per pair: ``model_a``, ``model_b``, ``matched``, ``only_a``, ``only_b``, and the figures of a
        `Comparison`: ``cka``, ``procrustes``, ``cosine_mean``, ``cosine_std``, ``cosine_min``,
        ``neighbour_overlap``; with a probability ``mean_difference`` (b less a),
        ``mean_absolute_difference``, ``correlation``, ``ks``. Null where a figure is not defined.
    """

    models: tuple[str, ...]
    table: pa.Table = field(repr=False)

    def matrix(self, figure: str = "cka") -> npt.NDArray[np.float64]:
        """Return one figure of all pairs.

        Parameters
        ----------
        figure : str
            A column of `table`.

        Returns
        -------
        float64 array, shape (models, models)
            In the order of `models`. NaN where a pair was not compared or the figure is not defined.
            ``mean_difference`` is that of the column's model less the row's, other figures are symmetric.

        Raises
        ------
        UnknownNameError
            If there is no such figure.

        Examples
        --------
        >>> import zarrow, zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> found = zarrow.analysis.compare_all(zarrow.union({"a": store, "b": store, "c": store}))
        >>> found.matrix("cka").round(6).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        figures = self.table.column_names[5:]
        if figure not in figures:
            raise unknown_name("figure", figure, figures)
        matrix = np.full((len(self.models),) * 2, np.nan)
        np.fill_diagonal(matrix, _SAME.get(figure, 0.0))
        for line in self.table.to_pylist():
            a, b = self.models.index(line["model_a"]), self.models.index(line["model_b"])
            if line[figure] is not None:
                matrix[a, b] = line[figure]
                matrix[b, a] = -line[figure] if figure == "mean_difference" else line[figure]
        return matrix


def compare_all(
    stores: Union | Mapping[str, Store],
    *,
    against: str | None = None,
    on: str | Sequence[str] | None = None,
    array: str | None = None,
    probability: str | None = None,
    sample: int = 1000,
    k: int = 10,
    seed: int = 0,
    client: Client | None = None,
    progress: Progress | None = None,
) -> ModelComparison:
    """Compare the vectors of the same rows in several stores, such as those of four checkpoints.

    Parameters
    ----------
    stores : Union or dict of str to Store
        The stores, by model. Widths may differ.
    against : str, optional
        Compare each model with this one only; every pair by default.
    on, array, probability, sample, k, seed, client : optional
        As in `compare`; the array has one name in all stores.
    progress : callable, optional
        Called with the number of rows done and the total, over all pairs.

    Returns
    -------
    ModelComparison
        A line per pair, and matrices.

    Raises
    ------
    InvalidInputError
        If there are fewer than two models, or as from `compare`.
    UnknownNameError
        If there is no such model, array or column.

    Examples
    --------
    >>> import zarrow, zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> both = {"step 100": store, "step 200": store, "step 300": store}
    >>> zarrow.analysis.compare_all(both, against="step 100").table["model_b"].to_pylist()
    ['step 200', 'step 300']
    """
    if not isinstance(stores, Union | Mapping):
        raise InvalidInputError(
            f"compare_all takes stores by model: a dict, or zarrow.union([...]), got {type(stores).__name__}"
        )
    found: Mapping[str, Store] = stores.stores if isinstance(stores, Union) else stores
    if len(found) < 2:
        raise InvalidInputError(f"compare_all needs at least two models, got {len(found)}")
    if against is not None and against not in found:
        raise unknown_name("model", against, list(found))
    pairs = (
        [(against, name) for name in found if name != against]
        if against is not None
        else list(itertools.combinations(found, 2))
    )
    lines = []
    for number, (a, b) in enumerate(pairs):
        one = compare(
            found[a], found[b], on=on, array=array, probability=probability, sample=sample, k=k, seed=seed,
            progress=part_of(progress, number, len(pairs)), client=client,
        )  # fmt: skip
        lines.append({"model_a": a, "model_b": b, **_line(one)})
    names = [*_FIGURES, *(_OF_PROBABILITY if probability is not None else ())]
    schema = pa.schema(
        [("model_a", pa.string()), ("model_b", pa.string())]
        + [(name, pa.int64()) for name in ("matched", "only_a", "only_b")]
        + [(name, pa.float64()) for name in names]
    )
    return ModelComparison(models=tuple(found), table=pa.Table.from_pylist(lines, schema))


def _line(found: Comparison) -> dict[str, Any]:
    counts = {"matched": found.matched, "only_a": len(found.only_a), "only_b": len(found.only_b)}
    figures = {name: getattr(found, name) for name in _FIGURES}
    return counts | figures | {name: (found.probability or {}).get(name) for name in _OF_PROBABILITY}
