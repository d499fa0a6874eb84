"""Report — a store shown to people who have neither the store nor Python, as one HTML file.

The page says what the store holds and how good its probabilities are, and has a map on which single rows can
be looked at. Few rows are points; many are counted in cells, each with one row as its example, so that the
page stays small. Charts are those of `zarrow.analysis.plot`.

This file collects what the page says. The template ``report.html.j2`` puts it into order
(`_pictures.page`), ``report.css`` gives it its look, and ``report.js`` moves the map and sorts the
tables. The page loads nothing from the network. A crash leaves the file that was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.filesize import decimal

from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._format.spec import rows_of_expected
from zarrow._read.appearance import nested_lines
from zarrow.analysis._pictures.figure import CATEGORY_COLOURS, PALETTE, draw, to_markup
from zarrow.analysis._pictures.map_cells import Colour, choose_map, read_colour, read_map
from zarrow.analysis._pictures.norms import draw_histogram
from zarrow.analysis._pictures.output import in_one_step, require_writable
from zarrow.analysis._pictures.page import Interval, as_text, pack, page_writer
from zarrow.analysis._pictures.roc_calibration import draw_calibration, draw_roc, score_note
from zarrow.analysis._questions.describe import ArrayDescription, Description, VectorCounts, describe
from zarrow.analysis._questions.evaluate import Evaluation, evaluate
from zarrow.analysis._questions.map import Map
from zarrow.analysis._rows.blocks import Progress
from zarrow.analysis._rows.groups import free_names, names_of
from zarrow.analysis._rows.roles import choose_label, choose_probability, tasks_of
from zarrow.errors import InvalidInputError
from zarrow.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["report"]

MAX_POINTS = 8000
MAX_FIELDS = 12
MAX_GROUPS = 500
MAX_COLOURS = 6
FIELD_CHARACTERS = 160
HISTOGRAM_BINS = 40
CHART_INCHES = 4.4, 3.8
BOOTSTRAP = 200
MAX_BOOTSTRAP_ROWS = 1_000_000
METHODS = {"pca": "Principal components", "umap": "UMAP", "tsne": "t-SNE"}
HINT = (
    "Point at the map, or tap it, to see the row there. Keyboard: the arrow keys move from row to row, "
    "+ and − zoom, 0 shows everything, Escape clears the selection."
)

Stage = Callable[[str], None]


def report(
    store: Store,
    output: str | os.PathLike[str],
    *,
    map: str | None = None,
    colours: Sequence[str] | None = None,
    probability: str | None = None,
    label: str | None = None,
    by: str | Sequence[str] | None = None,
    title: str | None = None,
    bootstrap: int | None = None,
    progress: Progress | None = None,
    stage: Stage | None = None,
) -> None:
    """Write a page about a store: one HTML file that needs no other.

    Parameters
    ----------
    store : Store
        The store.
    output : path
        The file to write; replaced if it exists.
    map : str, optional
        A stored map or an array to show, as in `zarrow.analysis.plot.map`.
    colours : list of str, optional
        Columns to colour the map by; by default probability, label and columns with few values.
    probability, label : str, optional
        Columns to evaluate; by default found by name and type, and left out if there are none.
    by : str or list of str, optional
        Columns to group the evaluation by; by default those of the task, if there are any.
    title : str, optional
        Title of the page; the store's name by default.
    bootstrap : int, optional
        Bootstrap draws for the intervals of the evaluation. By default 200, and none above a million rows,
        where they would take minutes and be too narrow to see.
    progress : callable, optional
        Called with the number of rows done and the total, in each part.
    stage : callable, optional
        Called with the name of each stage as it begins.

    Raises
    ------
    UnknownNameError
        If there is no such map or column.
    InvalidInputError
        If a column or map cannot be used as asked.
    WriteFailedError
        If the file cannot be written; a file that was there before stays.

    Examples
    --------
    >>> import pathlib, tempfile, zarrow.analysis.report, zarrow.testing
    >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> zarrow.analysis.report.report(zarrow.testing.example_predictions(), page)
    >>> page.read_text()[:15]
    '<!doctype html>'
    """
    target = Path(output)
    require_writable(target)
    write_page = page_writer()
    say_stage = stage or (lambda _: None)
    chosen = [read_colour(store, name, MAX_POINTS) for name in colours] if colours is not None else None
    say_stage("describing")
    described = describe(store, progress=progress)
    say_stage("evaluating")
    evaluated = _evaluate(store, probability, label, by, bootstrap)
    if chosen is None:
        chosen = _colours(store, evaluated, described)
    say_stage("mapping")
    page = {
        "title": title or store.path.name,
        "complete": store.complete and store.num_rows >= (store.expected_rows or 0),
        "state": _state(store),
        "nonfinite_rows": sum(array.nonfinite_rows for array in described.arrays.values()),
        "cards": _cards(store, described, evaluated),
        "map": _map(store, map, chosen, progress),
        "evaluation": None if evaluated is None else _evaluation(evaluated),
        "columns": _columns(described),
        "arrays": _arrays(described),
        "provenance": _provenance(store),
        "version": version("zarrow"),
        "path": store.path.name,
    }
    say_stage("writing")
    with in_one_step(target) as file:
        file.write_text(write_page(page), encoding="utf-8")


def _state(store: Store) -> str:
    rows = rows_of_expected(store.num_rows, store.expected_rows)
    if not store.complete:
        return f"incomplete: {rows} so far"
    return f"finalized with {rows}" if store.num_rows < (store.expected_rows or 0) else "complete"


def _provenance(store: Store) -> dict[str, str]:
    said = dict(nested_lines("run", store.provenance))
    return {"uuid": store.uuid, "keys": ", ".join(store.keys) or "none", **said}


def _cards(store: Store, described: Description, evaluated: Evaluation | None) -> dict[str, object]:
    stored = store.table_bytes + sum(array.stored_bytes for array in store.arrays.values())
    stored += sum(array.stored_bytes for array in store.ragged.values())
    cards: dict[str, object] = {"rows": store.num_rows, "columns": len(described.columns)}
    for name, one in described.arrays.items():
        cards[name] = f"{'any × ' * (one.vectors is not None)}{_shape(one.row_shape)} {one.dtype}"
    cards["on disk"] = decimal(stored)
    if evaluated is not None:
        cards["prevalence"] = evaluated.overall["prevalence"]
        cards["AUROC"] = evaluated.overall["auroc"]
    return cards


def _shape(row_shape: Sequence[int]) -> str:
    return " × ".join(f"{axis:,}" for axis in row_shape)


def _chart(content: Callable[[Axes], None], label: str, caption: str) -> dict[str, str]:
    """Return a chart for the page; `label` is for people who do not see it."""
    figure = draw(lambda figure: content(figure.add_subplot()), CHART_INCHES)
    return {"svg": to_markup(figure, label), "caption": caption}


# Columns and arrays


def _columns(described: Description) -> dict[str, Any]:
    rows = [
        {
            "column": one["column"],
            "type": one["type"],
            "values": one["count"],
            "nulls": one["nulls"],
            "NaN, ±∞": one["nonfinite"],
            "distinct": one["distinct"],
            **{name: _time(one, name) for name in ("mean", "std", "min", "q05", "median", "q95", "max")},
        }
        for one in described.columns.to_pylist()
    ]
    note = "q05 and q95 are the 5 % and 95 % quantiles."
    if not rows:
        note = "The table has no columns of its own."
    elif not all(described.columns["exact"].to_pylist()):
        note = f"The numbers of distinct values and the quantiles are approximate; {note}"
    return {"note": note, "rows": rows}


def _time(one: dict[str, Any], name: str) -> object:
    """Return a statistic; of a column of times, as a time."""
    value = one[name]
    if value is None or not str(one["type"]).startswith(("timestamp", "date")):
        return value
    if name == "std":
        return f"{value / 86400:,.1f} days"
    return str(np.datetime64(round(value * 1e6), "us").astype("datetime64[s]")).replace("T", " ")


def _arrays(described: Description) -> dict[str, Any]:
    note = (
        "Effective rank: how many dimensions the rows really use. Mean cosine of two rows: 0 if they point "
        "everywhere, 1 if all point one way."
    )
    ragged = {name: one.vectors for name, one in described.arrays.items() if one.vectors is not None}
    if ragged:
        note += (
            " Of an array with any number of vectors per row, everything is about the vectors. "
            + " ".join(f"{name}: {found.in_words()}." for name, found in ragged.items())
        )
    rows = [
        {
            "array": name,
            "rows": one.rows,
            "shape of a row": _shape(one.row_shape),
            "type": one.dtype,
            "mean length": one.norm_mean,
            "its std": one.norm_std,
            "effective rank": one.effective_rank,
            "mean cosine": one.anisotropy,
            "dead dimensions": len(one.dead_dimensions),
            "rows with NaN or ∞": one.nonfinite_rows,
            "zero rows": one.zero_rows,
        }
        for name, one in described.arrays.items()
    ]
    charts = [_lengths(one) for one in described.arrays.values() if one.rows > one.nonfinite_rows]
    charts += [_counts(name, found) for name, found in ragged.items() if found.rows]
    return {"note": note if rows else "The store has no arrays.", "rows": rows, "charts": charts}


def _lengths(array: ArrayDescription) -> dict[str, str]:
    counted, median = array.norms.histogram(HISTOGRAM_BINS), array.norms.quantile(0.5)
    caption = f"Lengths of {array.name}"
    return _chart(lambda axes: draw_histogram(axes, *counted, median), caption, caption)


def _counts(name: str, found: VectorCounts) -> dict[str, str]:
    counted, caption = found.counts.histogram(HISTOGRAM_BINS), f"Vectors per row of {name}"
    return _chart(lambda axes: draw_histogram(axes, *counted, float(found.median or 0)), caption, caption)


# How good the probabilities are


def _evaluate(
    store: Store,
    probability: str | None,
    label: str | None,
    by: str | Sequence[str] | None,
    bootstrap: int | None,
) -> Evaluation | None:
    """Evaluate the columns that were named or found; None if nothing was named and nothing found."""
    try:
        columns = choose_probability(store, probability), choose_label(store, label)
    except InvalidInputError:
        if probability is not None or label is not None:
            raise
        return None
    names = tasks_of(store) if by is None else names_of(by)
    if bootstrap is None:
        bootstrap = BOOTSTRAP if store.num_rows <= MAX_BOOTSTRAP_ROWS else 0
    return evaluate(store, *columns, by=names, bootstrap=bootstrap)


def _evaluation(found: Evaluation) -> dict[str, Any]:
    overall, everything = found.overall, ("all rows", found.scores[-1], PALETTE[0])
    if not overall["labelled"]:
        note = f"No row has both a label ({found.label}) and a probability ({found.probability})."
        return {"note": note, "rows": []}
    note = f"{score_note(found)}."
    if overall["brier_low"] is not None:
        note += " Brackets hold 95 % bootstrap intervals."
    groups = sorted(found.table.to_pylist() if found.by else [], key=lambda one: -one["labelled"])
    (task,) = free_names([", ".join(found.by) or "task"], _scores(overall))
    rows = [{task: "all rows", **_scores(overall)}]
    for one in groups[:MAX_GROUPS]:
        key = ", ".join(as_text(value) for value in list(one.values())[: len(found.by)])
        rows.append({task: key, **_scores(one)})
    charts = []
    if overall["auroc"] is not None:
        label = f"ROC curve: true against false positive rate, AUROC {overall['auroc']:.3f}"
        charts.append(_chart(lambda axes: draw_roc(axes, [everything]), label, "ROC of all rows"))
    label = "Calibration: share with a true label against mean predicted probability"
    caption = "Calibration of all rows: ten groups of equal size, with 95 % intervals"
    charts.append(_chart(lambda axes: draw_calibration(axes, [everything]), label, caption))
    return {
        "note": note,
        "charts": charts,
        "heading": f"By {', '.join(found.by)}" if found.by else "All rows",
        "more": f"The {MAX_GROUPS} largest of {len(groups):,} groups." * (len(groups) > MAX_GROUPS),
        "rows": rows,
    }


def _scores(one: dict[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {name: one[name] for name in ("rows", "labelled", "prevalence")}
    for name, title in {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier", "ece": "ECE"}.items():
        value, low, high = one[name], one[f"{name}_low"], one[f"{name}_high"]
        if value is None or low is None:
            found[title] = value
        else:
            found[title] = Interval(value, low, high)
    return found


# The map


def _colours(store: Store, evaluated: Evaluation | None, described: Description) -> list[Colour]:
    """Choose columns to colour by: probability and label, then classes, then numbers."""
    names = [] if evaluated is None else [evaluated.probability, evaluated.label]
    few, numbers = [], []
    for one in described.columns.to_pylist():
        kind = store.schema.field(one["column"]).type
        if pa.types.is_nested(kind) or one["column"] in names:
            continue
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            numbers.append(one["column"])
        elif (one["distinct"] or 0) in range(2, 41) and not pa.types.is_timestamp(kind):
            few.append((one["column"] in store.keys, -one["distinct"], one["column"]))
    few = [name for *_, name in sorted(few)]  # classes first: they have more values than a split; keys last
    return [read_colour(store, name, MAX_POINTS) for name in [*names, *few, *numbers][:MAX_COLOURS]]


def _map(
    store: Store, name: str | None, colours: Sequence[Colour], progress: Progress | None
) -> dict[str, Any]:
    try:
        made, coordinates = choose_map(store, name, progress)
    except InvalidInputError as error:
        if name is not None:
            raise
        return {"note": str(error), "data": None}
    shown = read_map(store, coordinates, colours, MAX_POINTS, progress)
    if not len(shown.rows):
        return {"note": "There is no row without NaN or infinity to show.", "data": None}
    data = {
        "kind": "cells" if shown.side else "points",
        "hint": HINT,
        "side": shown.side,
        "palette": [*CATEGORY_COLOURS, PALETTE[-1]],
        "x": pack(shown.xy[:, 0], "f4"),
        "y": pack(shown.xy[:, 1], "f4"),
        "row": pack(shown.rows, "f8"),
        "count": pack(shown.counts, "f8"),
        "fields": _fields(store, shown.rows, [colour.name for colour in colours]),
        "colours": [_colour(colour, shown.colours[colour.name]) for colour in colours],
    }
    drawn = int(shown.counts.sum())
    note = _map_note(made, store, drawn, len(shown.rows) if shown.side else 0, shown.outside)
    return {"note": note, "drawn": drawn, "data": data}


def _map_note(made: Map, store: Store, drawn: int, cells: int, outside: int) -> str:
    note = f"{METHODS.get(made.method, made.method)} of {made.array}"
    if made.explained_variance_ratio:
        note += f", {sum(made.explained_variance_ratio):.0%} of the variance".replace("%", " %")
    if made.method in ("umap", "tsne") and made.sample_rows < made.rows:
        note += f", made from {made.sample_rows:,} rows, the others placed near similar rows"
    note += f". {drawn:,} rows"
    if drawn < store.num_rows:
        note += f" ({store.num_rows - drawn:,} with NaN or infinity are not on it)"
    if cells:
        note += f" in {cells:,} cells, each with its first row as an example"
    if outside:
        note += f"; {outside:,} far outside are shown at the edge"
    return note + "."


def _colour(colour: Colour, values: npt.NDArray[np.float64]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    shown: dict[str, Any] = {"name": colour.name, "values": pack(values, "f4")}
    if colour.categories:
        return shown | {"labels": colour.labels, "named": len(colour.categories)}
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return shown | {"low": low, "high": high}


def _fields(store: Store, rows: npt.NDArray[np.int64], first: Sequence[str]) -> list[dict[str, Any]]:
    """Return the columns shown for single rows, keys first, each as its distinct texts and their codes."""
    others = [name for name in store.schema.names if name not in (ROW, SAMPLE_INDEX)]
    names = list(dict.fromkeys([*store.keys, *first, *others]))[:MAX_FIELDS]
    order = np.argsort(rows, kind="stable")
    found, _ = store.take(rows[order], names, [])
    fields = []
    for name in names:
        texts: dict[str, int] = {}
        codes = np.empty(len(rows), np.uint32)
        codes[order] = [
            texts.setdefault(as_text(value)[:FIELD_CHARACTERS], len(texts)) for value in _values(found[name])
        ]
        fields.append({"name": name, "values": list(texts), "codes": pack(codes, "u4")})
    return fields


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return values; integers as texts, since identifiers must not get thousands separators."""
    values: list[Any] = column.to_pylist()
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in values]
    return values
