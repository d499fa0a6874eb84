"""How can a store be shown to somebody who has neither the store nor Python?

As one HTML file with everything in it: what the store holds, how good its probabilities are, and a map whose
rows tell who they are. Few rows are points; of many the map has cells, each with a row that stands for it, so
that the page stays small. Text of the store is never taken for markup (`analysis._pictures.page`), and the
page asks the
network for nothing. What a person sees is in ``report.css`` and ``report.js`` beside this file.

Place: tier 5, in `zarrow.analysis`. Reads the store; a crash leaves the page that was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow.analysis._pictures.charts import bars_chart, calibration_chart, roc_chart
from zarrow.analysis._pictures.curves import calibrate, choose_label, choose_probability
from zarrow.analysis._pictures.grid import Colour, choose_map, read_cells, read_colour, read_points
from zarrow.analysis._pictures.output import in_one_step, require_writable
from zarrow.analysis._pictures.page import (
    Html,
    Interval,
    assemble,
    cards,
    embed,
    facts,
    pack,
    say,
    section,
    table,
)
from zarrow.analysis._questions.describe import Description, describe
from zarrow.analysis._questions.evaluate import Evaluation, evaluate
from zarrow.analysis._questions.map import Map
from zarrow.analysis._rows.blocks import Progress
from zarrow.analysis._rows.groups import free_names, names_of
from zarrow.errors import InvalidInputError
from zarrow.store import Store

__all__ = ["report"]

MAX_POINTS = 8000
CELLS = 200
MAX_FIELDS = 12
MAX_GROUPS = 500
MAX_COLOURS = 6
FIELD_CHARACTERS = 160
HISTOGRAM_BINS = 40
BOOTSTRAP = 200
MAX_BOOTSTRAP_ROWS = 1_000_000
METHODS = {"pca": "Principal components", "umap": "UMAP", "tsne": "t-SNE"}
HINT = (
    "Point at the map, or tap it, to see who is there. With the keyboard: arrows go from one to the next, "
    "+ and − zoom, 0 shows all, Escape lets go."
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
    """Write a page about a store: one HTML file that needs nothing else.

    Parameters
    ----------
    store : Store
        The store.
    output : path
        The file; replaced if it is there.
    map : str, optional
        A stored map or an array to show, as of `zarrow.analysis.plot.map`.
    colours : list of str, optional
        Columns to colour the map by; probabilities, labels and columns of few values by default.
    probability, label : str, optional
        What to evaluate; found by names and types by default, and left out if there is no such.
    by : str or list of str, optional
        Columns to evaluate by; ``query`` and ``duration_days`` by default, where there are such.
    title : str, optional
        What to call it; the store's name by default.
    bootstrap : int, optional
        Draws for the intervals of the evaluation; by default 200, and none above a million rows, where they
        would take minutes and be narrower than what is shown.
    progress : callable, optional
        Is called with rows done and rows in all, in each part.
    stage : callable, optional
        Is called with what is done next, in words.

    Raises
    ------
    UnknownNameError
        If there is no such map or column.
    InvalidInputError
        If what was asked for does not fit.
    WriteFailedError
        If the file cannot be written; the one that was there stays.

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
    say_stage = stage or (lambda _: None)
    wanted = [read_colour(store, name) for name in colours] if colours is not None else None
    say_stage("describing")
    described = describe(store, progress=progress)
    say_stage("evaluating")
    evaluated = _evaluate(store, probability, label, by, bootstrap)
    if wanted is None:
        wanted = _colours(store, evaluated, described)
    say_stage("mapping")
    shown = _map_section(store, map, wanted, progress)
    name = title or store.path.name
    parts = [
        shown,
        _evaluation_section(evaluated) if evaluated is not None else "",
        _columns_section(described),
        _arrays_section(described),
        section("provenance", "Where the rows come from", facts(_provenance(store))),
    ]
    body = (
        '<a class="skip" href="#content">Skip to the content</a>'
        f"<header><h1>{escape(name)}</h1>{_summary(store, described, evaluated)}</header>"
        f'<main id="content">{"".join(parts)}</main>'
        f"<footer>Written by zarrow {escape(version('zarrow'))} from {escape(str(store.path))}</footer>"
    )
    say_stage("writing")
    with in_one_step(target) as file:
        file.write_text(assemble(name, body), encoding="utf-8")


# What it says


def _summary(store: Store, described: Description, evaluated: Evaluation | None) -> Html:
    state = "complete" if store.complete else f"incomplete: {store.committed_rows:,} rows are committed"
    stored = store.table_bytes + sum(array.stored_bytes for array in store.arrays.values())
    figures: dict[str, object] = {"rows": store.num_rows, "columns": len(described.columns)}
    for name, array in store.arrays.items():
        figures[name] = " × ".join(f"{axis:,}" for axis in array.row_shape) + f" {array.dtype.name}"
    figures["on disk"] = _bytes(stored)
    if evaluated is not None:
        figures["prevalence"] = evaluated.overall["prevalence"]
        figures["AUROC"] = evaluated.overall["auroc"]
    bad = sum(array.nonfinite_rows for array in described.arrays.values())
    notes = [f'<span class="{"good" if store.complete else "warn"}">{escape(state)}</span>']
    if bad:
        notes.append(f'<span class="warn">{bad:,} rows of vectors hold NaN or infinity</span>')
    return Html(f'<p class="note">{" · ".join(notes)}</p>{cards(figures)}')


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _provenance(store: Store) -> dict[str, object]:
    said = {
        name: value if isinstance(value, str) else repr(value) for name, value in store.provenance.items()
    }
    return {"uuid": store.uuid, "keys": ", ".join(store.keys) or "none", **said}


def _columns_section(described: Description) -> Html:
    rows = [
        {
            "column": one["column"],
            "type": one["type"],
            "values": one["count"],
            "nulls": one["nulls"],
            "NaN, ±∞": one["nonfinite"],
            "different": one["distinct"],
            **{name: _time(one, name) for name in ("mean", "std")},
            **{name: _time(one, name) for name in ("min", "q05", "median", "q95", "max")},
        }
        for one in described.columns.to_pylist()
    ]
    if not rows:
        return section("columns", "Columns", '<p class="note">The table has no columns of its own.</p>')
    note = "q05 and q95 are the 5 % and 95 % quantiles."
    if not all(described.columns["exact"].to_pylist()):
        note = f"How many different values there are is about right; {note}"
    return section("columns", "Columns", f'<p class="note">{note}</p>', table("Columns", rows, ["type"]))


def _time(one: dict[str, Any], name: str) -> object:
    """Return a statistic, of times as a time."""
    value = one[name]
    if value is None or not str(one["type"]).startswith(("timestamp", "date")):
        return value
    if name == "std":
        return f"{value / 86400:,.1f} days"
    return str(np.datetime64(round(value * 1e6), "us").astype("datetime64[s]")).replace("T", " ")


def _arrays_section(described: Description) -> Html:
    if not described.arrays:
        return section("arrays", "Arrays", '<p class="note">The store has no arrays.</p>')
    rows = []
    charts = []
    for name, one in described.arrays.items():
        rows.append(
            {
                "array": name,
                "rows": one.rows,
                "shape of a row": " × ".join(f"{axis:,}" for axis in one.row_shape),
                "type": one.dtype,
                "mean length": one.norm_mean,
                "its std": one.norm_std,
                "effective rank": one.effective_rank,
                "mean cosine": one.anisotropy,
                "dead dimensions": len(one.dead_dimensions),
                "rows with NaN or ∞": one.nonfinite_rows,
                "zero rows": one.zero_rows,
            }
        )
        if one.rows > one.nonfinite_rows:
            edges, counts = one.norms.histogram(HISTOGRAM_BINS)
            chart = bars_chart(edges, counts, f"Lengths of {name}", "Euclidean length")
            charts.append(_figure(chart, f"Lengths of {name}"))
    note = (
        "Effective rank: how many dimensions the rows really use. Mean cosine of two rows: 0 if they point "
        "everywhere, 1 if all point one way."
    )
    return section(
        "arrays",
        "Arrays",
        f'<p class="note">{note}</p>',
        table("Arrays", rows, ["type", "shape of a row"]),
        f'<div class="figures">{"".join(charts)}</div>',
    )


# How good the probabilities are


def _evaluate(
    store: Store,
    probability: str | None,
    label: str | None,
    by: str | Sequence[str] | None,
    bootstrap: int | None,
) -> Evaluation | None:
    """Evaluate what was asked for, or what there is to evaluate."""
    try:
        columns = choose_probability(store, probability), choose_label(store, label)
    except InvalidInputError:
        if probability is not None or label is not None:
            raise
        return None
    names = names_of(by)
    if by is None:
        names = [name for name in ("query", "duration_days") if name in store.schema.names]
    if bootstrap is None:
        bootstrap = BOOTSTRAP if store.num_rows <= MAX_BOOTSTRAP_ROWS else 0
    return evaluate(store, *columns, by=names, bootstrap=bootstrap)


def _evaluation_section(found: Evaluation) -> Html:
    overall = found.overall
    if not overall["labelled"]:
        note = f"No row has both a label ({found.label}) and a probability ({found.probability})."
        return section("evaluation", "Evaluation", f'<p class="note">{escape(note)}</p>')
    note = (
        f"{found.probability} against {found.label}: {overall['labelled']:,} of {overall['rows']:,} rows "
        f"have both, {overall['positives']:,} are true."
    )
    if overall["brier_low"] is not None:
        note += " In brackets 95 % bootstrap intervals."
    (task,) = free_names([", ".join(found.by) or "task"], _scores(overall))
    rows = [{task: "all rows", **_scores(overall)}]
    listed = found.table.to_pylist() if found.by else []
    listed.sort(key=lambda one: -one["labelled"])
    for one in listed[:MAX_GROUPS]:
        key = ", ".join(map(say, list(one.values())[: len(found.by)]))
        rows.append({task: key, **_scores(one)})
    more = ""
    if len(listed) > MAX_GROUPS:
        more = f'<p class="note">The {MAX_GROUPS} largest of {len(listed):,} groups.</p>'
    scores = found.scores[-1]
    charts = ""
    if overall["auroc"] is not None:
        fpr, tpr, _ = scores.roc_curve(400)
        charts = _figure(roc_chart(fpr, tpr, overall["auroc"]), "ROC of all rows")
    told = "Calibration of all rows: ten groups of as many rows, with 95 % intervals"
    charts += _figure(calibration_chart(calibrate(scores)), told)
    by = f"By {', '.join(found.by)}" if found.by else "All rows"
    return section(
        "evaluation",
        "Evaluation",
        f'<p class="note">{escape(note)}</p><div class="figures">{charts}</div><h3>{escape(by)}</h3>{more}',
        table("Evaluation", rows),
    )


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


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
    """Choose columns to colour by: probability and label, then columns of few values, then numbers."""
    names = [] if evaluated is None else [evaluated.probability, evaluated.label]
    few, numbers = [], []
    for one in described.columns.to_pylist():
        kind = store.schema.field(one["column"]).type
        if pa.types.is_nested(kind) or one["column"] in names:
            continue
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            numbers.append(one["column"])
        elif (one["distinct"] or 0) in range(2, 41) and not pa.types.is_timestamp(kind):
            few.append(one["column"])
    return [read_colour(store, name) for name in [*names, *few, *numbers][:MAX_COLOURS]]


def _map_section(
    store: Store, name: str | None, colours: Sequence[Colour], progress: Progress | None
) -> Html:
    try:
        what, places = choose_map(store, name, progress)
    except InvalidInputError as error:
        if name is not None:
            raise
        return section("map-title", "Map", f'<p class="note">{escape(str(error))}</p>')
    if store.num_rows <= MAX_POINTS:
        points = read_points(store, places, colours)
        rows, xy, side = points.rows, points.xy, 0.0
        counts, outside = np.ones(len(rows), np.int64), 0
        values = points.colours
    else:
        grid = read_cells(store, places, colours, CELLS, progress)
        cells = np.flatnonzero(grid.counts)
        rows, xy, counts, outside = grid.example[cells], grid.centres(cells), grid.counts[cells], grid.outside
        side = float((grid.bounds.high[0] - grid.bounds.low[0]) / grid.shape[0])
        values = {colour.name: grid.colour(colour.name)[cells] for colour in colours}
    if not len(rows):
        return section("map-title", "Map", '<p class="note">There is no row without NaN to show.</p>')
    data = {
        "kind": "cells" if side else "points",
        "hint": HINT,
        "side": side,
        "x": pack(xy[:, 0], "f4"),
        "y": pack(xy[:, 1], "f4"),
        "row": pack(rows, "f8"),
        "count": pack(counts, "f8"),
        "fields": _fields(store, rows, [colour.name for colour in colours]),
        "colours": [_colour(colour, values[colour.name]) for colour in colours],
    }
    options = "".join(
        f'<option value="{place}">{escape(colour.name)}</option>' for place, colour in enumerate(colours)
    )
    plain = "how many rows" if side else "one colour"
    note = _map_note(what, store, int(counts.sum()), len(rows) if side else 0, outside)
    label = f"Map of {int(counts.sum()):,} rows; arrow keys move from row to row"
    return section(
        "map-title",
        "Map",
        f'<p class="note">{escape(note)}</p>',
        '<div class="controls"><label for="colour">Colour</label> '
        f'<select id="colour">{options}<option value="none">{plain}</option></select>'
        '<button type="button" id="in" aria-label="Zoom in">+</button>'
        '<button type="button" id="out" aria-label="Zoom out">−</button>'
        '<button type="button" id="reset">Show all</button></div>',
        f'<div class="map"><canvas id="map" tabindex="0" role="application" aria-label="{label}" '
        'aria-describedby="detail"></canvas><div class="side">'
        '<div class="legend" id="legend"></div><div class="detail" id="detail"></div>'
        '<p id="said" class="heard" aria-live="polite"></p></div></div>'
        "<noscript><p>The map needs JavaScript, which is in this page itself.</p></noscript>",
        embed("map-data", data),
    )


def _map_note(what: Map, store: Store, drawn: int, cells: int, outside: int) -> str:
    note = f"{METHODS.get(what.method, what.method)} of {what.array}"
    if what.explained_variance_ratio:
        note += f", {sum(what.explained_variance_ratio):.0%} of the variance".replace("%", " %")
    if what.method in ("umap", "tsne") and what.sample_rows < what.rows:
        note += f", made from {what.sample_rows:,} rows, the others placed near their likes"
    note += f". {drawn:,} rows"
    if drawn < store.num_rows:
        note += f" ({store.num_rows - drawn:,} with NaN or infinity are not on it)"
    if cells:
        note += f" in {cells:,} cells, each told by the first of its rows"
    if outside:
        note += f"; {outside:,} far outside are shown at the edge"
    return note + "."


def _colour(colour: Colour, values: npt.NDArray[np.float64]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    told: dict[str, Any] = {"name": colour.name, "values": pack(values, "f4")}
    if colour.categories:
        return told | {"labels": colour.labels, "named": len(colour.categories)}
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return told | {"low": low, "high": high}


def _fields(store: Store, rows: npt.NDArray[np.int64], first: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is told of single rows, keys first: each column as its different texts, and which."""
    others = [name for name in store.schema.names if name not in (ROW, SAMPLE_INDEX)]
    names = list(dict.fromkeys([*store.keys, *first, *others]))[:MAX_FIELDS]
    order = np.argsort(rows, kind="stable")
    found, _ = store.take(rows[order], names, [])
    fields = []
    for name in names:
        texts: dict[str, int] = {}
        codes = np.empty(len(rows), np.uint32)
        codes[order] = [
            texts.setdefault(say(value)[:FIELD_CHARACTERS], len(texts)) for value in _values(found[name])
        ]
        fields.append({"name": name, "values": list(texts), "codes": pack(codes, "u4")})
    return fields


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return values; integers as texts, since identifiers have no thousands separators."""
    values: list[Any] = column.to_pylist()
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in values]
    return values
