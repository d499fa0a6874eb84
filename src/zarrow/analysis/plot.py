"""What does it look like?

One function a picture, each of which returns a matplotlib figure; `save` writes it as PNG, SVG or PDF.
Colours are Okabe and Ito's and cividis, which most colour-blind people can tell apart. Above `MAX_POINTS`
rows a map shows cells, not points; nothing here holds more than a picture's worth of rows.

Place: tier 5, in `zarrow.analysis`. Matplotlib's global state is left alone. Reads only.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow.analysis._blocks import Progress, blocks, choose_array, split_finite
from zarrow.analysis._compare import Comparison, compare
from zarrow.analysis._curves import (
    calibrate,
    choose_label,
    choose_probability,
    group_name,
    largest_groups,
)
from zarrow.analysis._evaluate import Evaluation, evaluate
from zarrow.analysis._grid import Colour, Grid, Points, choose_map, read_cells, read_colour, read_points
from zarrow.analysis._groups import Groups, names_of
from zarrow.analysis._map import Map
from zarrow.analysis._moments import row_norms
from zarrow.analysis._scores import Scores
from zarrow.errors import InvalidInputError, MissingExtraError, WriteFailedError
from zarrow.store import Store, StoreArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration", "check_format", "drift", "map", "norms", "roc", "save"]

MAX_POINTS = 50_000
RASTERIZED_POINTS = 4000
NOTE_CHARACTERS = 74
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A900", "#8C8C8C")
"""Okabe and Ito, *Color Universal Design* (2008); their yellow darker, for white paper; grey for others."""
INK, FAINT, GRID = "#222222", "#5c5c5c", "#e3e3e3"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 26,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": "#9a9a9a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "zarrow",
}
FORMATS = (".png", ".svg", ".pdf")
NORM_BINS = 60
NORM_GROUPS = 6
MAX_LENGTHS = 5_000_000
CURVES = 6
DRIFT_GROUPS = 12
ROC_POINTS = 1000


def _draw(draw: Callable[[Figure], None], size: tuple[float, float] = (7.2, 5.0)) -> Figure:
    """Return a figure that `draw` has drawn on, in our style."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            f"pictures need {error.name}: pip install 'zarrow[analysis]'", name=error.name
        ) from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
    return figure


def _title(axes: Axes, title: str, note: str) -> None:
    """Write a title, and under it what is to be known, which never changes the room for the picture."""
    lines = textwrap.wrap(note, NOTE_CHARACTERS) or [""]
    axes.set_title(_plain(title), pad=12 + 13 * len(lines))
    text = _plain("\n".join(lines))
    under = axes.text(0, 1.02, text, transform=axes.transAxes, color=FAINT, fontsize=9.5, va="bottom")
    under.set_in_layout(False)


def _plain(text: str) -> str:
    """Return text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _short(text: str, most: int = 32) -> str:
    return _plain(text if len(text) <= most else text[: most - 1] + "…")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What one of this module's functions returned.
    path : path
        Ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    InvalidInputError
        If it ends otherwise.
    WriteFailedError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile, zarrow.analysis.plot, zarrow.testing
    >>> figure = zarrow.analysis.plot.norms(zarrow.testing.example_store())
    >>> zarrow.analysis.plot.save(figure, tempfile.mkdtemp() + "/norms.svg")
    """
    import matplotlib

    file = Path(path)
    check_format(file)
    dates: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    try:
        with matplotlib.rc_context(STYLE):
            figure.savefig(file, metadata=dates.get(file.suffix.lower()))
    except OSError as error:
        raise WriteFailedError(
            error.errno or 0, f"{file}: the picture cannot be written: {error.strerror or error}"
        ) from error


def check_format(path: Path) -> None:
    """Refuse a file name that no picture can have, before anything is computed.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    InvalidInputError
        If it does not end in ``.png``, ``.svg`` or ``.pdf``.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidInputError(f"a picture's name must end in {', '.join(FORMATS)}, got {path.name!r}")


# Where rows lie


def map(
    store: Store,
    name: str | None = None,
    colour: str | None = None,
    *,
    progress: Progress | None = None,
) -> Figure:
    """Draw where the rows lie, as points or, above 50,000 rows, as cells.

    Parameters
    ----------
    store : Store
        The store.
    name : str, optional
        A map that was stored (`map_rows`), or an array, whose principal components are drawn. By default a
        stored map, else the principal components of the first array.
    colour : str, optional
        A column to colour by; without, points are of one colour and cells show how many rows they hold.
    progress : callable, optional
        Is called with rows done and rows in all.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such map or column, or nothing to draw.

    Examples
    --------
    >>> import zarrow.analysis.plot, zarrow.testing
    >>> figure = zarrow.analysis.plot.map(zarrow.testing.example_store(), colour="occurs_prob")
    >>> figure.axes[0].get_xlabel()
    'principal component 1 (13 %)'
    """
    shown = None if colour is None else read_colour(store, colour)
    what, places = choose_map(store, name, progress)
    colours = [] if shown is None else [shown]
    if store.num_rows <= MAX_POINTS:
        points = read_points(store, places, colours)
        spans = np.ptp(points.xy, axis=0) if len(points.xy) else np.ones(2)
        return _draw(lambda figure: _draw_points(figure, points, what, shown), _map_size(spans))
    grid = read_cells(store, places, colours, progress=progress)
    spans = grid.bounds.high - grid.bounds.low
    return _draw(lambda figure: _draw_cells(figure, grid, what, shown), _map_size(spans))


def _map_size(spans: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return a figure's size for a map of this width and height, both of one scale."""
    ratio = float(np.clip(spans[1] / max(spans[0], 1e-30), 0.45, 1.1))
    return 8.0, 1.3 + 5.8 * ratio


def _map_axes(figure: Figure, what: Map, drawn: int, as_what: str) -> Axes:
    axes = figure.add_subplot()
    axes.grid(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    method = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}.get(what.method, what.method)
    _title(axes, f"{method} of {what.array}", f"{drawn:,} rows{as_what}")
    if what.method == "pca" and len(what.explained_variance_ratio) == 2:
        first, second = what.explained_variance_ratio
        axes.set_xlabel(f"principal component 1 ({first:.0%})".replace("%", " %"))
        axes.set_ylabel(f"principal component 2 ({second:.0%})".replace("%", " %"))
    return axes


def _draw_points(figure: Figure, points: Points, what: Map, colour: Colour | None) -> None:
    count = len(points.rows)
    axes = _map_axes(figure, what, count, "" if colour is None else f", coloured by {colour.name}")
    size = float(np.clip(6000 / max(count, 1), 2.5, 40))
    order = np.random.default_rng(0).permutation(count)  # no group is always on top
    x, y = points.xy[order].T
    many = count > RASTERIZED_POINTS  # an SVG of as many circles is slow to open: they become an image in it
    look: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": many}
    if colour is None:
        axes.scatter(x, y, color=PALETTE[0], **look)
        return
    codes = points.colours[colour.name][order]
    unknown = np.isnan(codes)
    axes.scatter(x[unknown], y[unknown], color="#c9c9c9", **look)
    x, y, codes = x[~unknown], y[~unknown], codes[~unknown]
    if colour.categories:
        axes.scatter(x, y, c=np.array(_colours(colour))[codes.astype(int)], **look)
        _category_legend(axes, colour)
    else:
        drawn = axes.scatter(x, y, c=codes, cmap="cividis", **look)
        _colour_bar(figure, axes, drawn, colour.name)


def _draw_cells(figure: Figure, grid: Grid, what: Map, colour: Colour | None) -> None:
    from matplotlib.colors import LogNorm, to_rgba

    note = " in cells" + ("" if colour is None else f", coloured by {colour.name}")
    if grid.outside:
        note += f"; {grid.outside:,} outside, drawn at the edge"
    axes = _map_axes(figure, what, int(grid.counts.sum()), note)
    columns, lines = grid.shape
    counts = grid.counts.reshape(lines, columns)
    extent = (grid.bounds.low[0], grid.bounds.high[0], grid.bounds.low[1], grid.bounds.high[1])
    look: dict[str, Any] = {
        "extent": extent,
        "origin": "lower",
        "interpolation": "nearest",
        "aspect": "equal",
    }
    shown = np.ma.masked_equal(counts, 0)
    if colour is None:
        drawn = axes.imshow(shown, cmap="cividis_r", norm=LogNorm(vmin=1, vmax=max(counts.max(), 2)), **look)
        _colour_bar(figure, axes, drawn, "rows in a cell")
        return
    values = grid.colour(colour.name).reshape(lines, columns)
    strength = np.where(counts > 0, 0.35 + 0.65 * np.log1p(counts) / np.log1p(max(counts.max(), 1)), 0)
    if colour.categories:
        table = np.array([to_rgba(one) for one in _colours(colour)])
        pixels = np.zeros((lines, columns, 4))
        known = ~np.isnan(values)
        pixels[known] = table[values[known].astype(int)]
        pixels[~known & (counts > 0)] = to_rgba("#c9c9c9")
        pixels[..., 3] = strength
        axes.imshow(pixels, **look)
        _category_legend(axes, colour)
    else:
        drawn = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", **look)
        _colour_bar(figure, axes, drawn, f"mean {colour.name}")


def _colours(colour: Colour) -> list[str]:
    last = [PALETTE[-1]] if colour.others else []
    return [*PALETTE[: len(colour.categories)], *last]


def _category_legend(axes: Axes, colour: Colour) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=one, label=_short(label))
        for one, label in zip(_colours(colour), colour.labels, strict=True)
    ]
    axes.legend(handles=handles, title=_short(colour.name), loc="center left", bbox_to_anchor=(1.0, 0.5))


def _colour_bar(figure: Figure, axes: Axes, drawn: Any, label: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, aspect=24, pad=0.02)
    bar.set_label(_short(label), color=FAINT)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1)


# How long vectors are


def norms(
    store: Store,
    array: str | None = None,
    by: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    *,
    progress: Progress | None = None,
) -> Figure:
    """Draw how the lengths of an array's rows are distributed.

    Parameters
    ----------
    store : Store
        The store.
    array : str, optional
        The array; need not be named if there is only one.
    by : str or list of str, optional
        Columns; the largest groups get a line each.
    filter : pyarrow.compute.Expression, optional
        Which rows.
    progress : callable, optional
        Is called with rows done and rows in all.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such array or column, or no finite row.

    Examples
    --------
    >>> import zarrow.analysis.plot, zarrow.testing
    >>> figure = zarrow.analysis.plot.norms(zarrow.testing.example_store(), by="query")
    >>> len(figure.axes[0].get_lines())
    6
    """
    chosen = choose_array(store, array)
    names = names_of(by)
    groups = Groups.of_store(store, names, filter) if names else None
    found, codes, total = _lengths(store, chosen, groups, filter, progress)
    known = np.isfinite(found)
    if not known.any():
        raise InvalidInputError(f"array {chosen.name!r}: there is no row without NaN or infinity to draw")
    edges = np.histogram_bin_edges(found[known], NORM_BINS)
    if edges[-1] - edges[0] < 1e-5 * max(abs(edges[-1]), 1e-9):  # vectors of one length
        middle = float(np.mean(edges))
        edges = np.linspace(middle * 0.9 if middle else -1, middle * 1.1 if middle else 1, NORM_BINS + 1)
    lines = [("", found[known])]
    if groups is not None:
        sizes = np.bincount(codes[known], minlength=groups.count)
        largest = np.argsort(-sizes, kind="stable")[:NORM_GROUPS]
        keys = groups.keys.to_pylist()
        lines = [
            (", ".join(str(value) for value in keys[one].values()), found[known & (codes == one)])
            for one in sorted(largest)
            if sizes[one]
        ]

    def _draw_norms(figure: Figure) -> None:
        axes = figure.add_subplot()
        left_out = int((~known).sum())
        few = f"{len(found):,} of " * (len(found) < total)
        note = f"{few}{total:,} rows" + f"; {left_out:,} with NaN or infinity left out" * bool(left_out)
        zero = int((found == 0).sum())
        note += f"; {zero:,} of length 0" * bool(zero)
        _title(axes, f"Lengths of {chosen.name}", note)
        for number, (label, values) in enumerate(lines):
            heights, _ = np.histogram(values, edges)
            share = heights / max(len(values), 1)
            if groups is None:
                axes.stairs(share, edges, fill=True, color=PALETTE[0], alpha=0.85)
                middle = float(np.median(values))
                axes.axvline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)))
                axes.annotate(
                    f"median {middle:.4g}", (middle, 1), xycoords=("data", "axes fraction"),
                    xytext=(5, -4), textcoords="offset points", va="top", color=INK,
                )  # fmt: skip
            else:
                centres = (edges[1:] + edges[:-1]) / 2
                axes.plot(centres, share, color=PALETTE[number], linewidth=2, label=_short(label))
        if groups is not None:
            more = f" (largest {len(lines)} of {groups.count:,})" if groups.count > len(lines) else ""
            axes.legend(title=_short(", ".join(names) + more, 60))
        axes.set(xlabel="Euclidean length", ylabel="share of rows", ylim=(0, None))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")

    return _draw(_draw_norms)


def _lengths(
    store: Store,
    array: StoreArray,
    groups: Groups | None,
    filter: pc.Expression | None,
    progress: Progress | None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], int]:
    """Return the lengths of rows (NaN where not finite), their groups, and how many rows there were.

    Of very many rows every second, third, … is enough for a picture.
    """
    step = -(-store.num_rows // MAX_LENGTHS) or 1
    lengths, codes, total = [np.empty(0, np.float32)], [np.empty(0, np.int32)], 0
    for block in blocks(store, array, groups.names if groups else (), filter, progress=progress):
        total += len(block.rows)
        values = block.values[::step]
        found = np.full(len(values), np.nan, np.float32)
        finite = split_finite(values)
        found[slice(None) if finite is None else finite] = row_norms(
            values if finite is None else values[finite]
        )
        lengths.append(found)
        if groups is not None:
            codes.append(groups.codes(block.table)[::step].astype(np.int32))
    return np.concatenate(lengths), np.concatenate(codes), total


# How good probabilities are


def roc(
    store: Store,
    probability: str | None = None,
    label: str | None = None,
    by: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,
) -> Figure:
    """Draw ROC curves of a column of probabilities against a column of labels.

    Parameters
    ----------
    store : Store
        The store.
    probability : str, optional
        The column of probabilities; ``occurs_prob``, or what looks like it, by default.
    label : str, optional
        The column of labels, null where unknown; ``boolean_value``, or what looks like it, by default.
    by : str or list of str, optional
        Columns; the largest groups get a curve each.
    filter : pyarrow.compute.Expression, optional
        Which rows.

    Returns
    -------
    matplotlib.figure.Figure
        The picture; groups of one class are named, not drawn.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If the columns cannot be told, do not fit, or all labels are of one class.

    Examples
    --------
    >>> import tempfile, numpy as np, zarrow, zarrow.analysis.plot
    >>> with zarrow.Writer(tempfile.mkdtemp() + "/run.zarrow") as writer:
    ...     writer.append({"prob": np.linspace(0, 1, 9), "label": np.arange(9) > 3})
    ...     writer.finalize()
    >>> figure = zarrow.analysis.plot.roc(zarrow.open(writer.path))
    """
    found = _evaluated(store, probability, label, by, filter)
    found.roc_curve()  # raises if there is nothing to draw
    return _draw(lambda figure: _draw_roc(figure, found), (6.4, 6.2))


def _evaluated(
    store: Store,
    probability: str | None,
    label: str | None,
    by: str | Sequence[str] | None,
    filter: pc.Expression | None,
) -> Evaluation:
    columns = choose_probability(store, probability), choose_label(store, label)
    return evaluate(store, *columns, by=by, filter=filter, bootstrap=0)


def _curves(found: Evaluation) -> list[tuple[str, Scores, str]]:
    """Return name, scores and colour: of all rows, then of the largest groups."""
    groups = largest_groups(found, CURVES)
    colours = PALETTE[: len(groups)]
    named = [(_short(name, 28), one, colour) for (name, one), colour in zip(groups, colours, strict=True)]
    return [("all rows", found.scores[-1], INK), *named]


def _score_note(found: Evaluation) -> str:
    overall = found.overall
    return (
        f"{found.probability} against {found.label}: {overall['labelled']:,} of {overall['rows']:,} rows "
        f"have both, {overall['positives']:,} are true"
    )


def _draw_roc(figure: Figure, found: Evaluation) -> None:
    axes = figure.add_subplot()
    _title(axes, "ROC", _score_note(found))
    axes.plot([0, 1], [0, 1], color="#9a9a9a", linewidth=1, linestyle=(0, (4, 3)))
    for name, scores, colour in _curves(found):
        area = scores.metrics()["auroc"]
        first = colour == INK
        if area is None:
            axes.plot([], [], " ", label=f"{name}: one class only")
            continue
        axes.plot(
            *scores.roc_curve(ROC_POINTS)[:2],
            color=colour,
            linewidth=2.4 if first else 1.8,
            label=f"{name}: AUROC {area:.3f}",
            zorder=3 if first else 2,
        )
    axes.set(
        xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01)
    )
    axes.set_aspect("equal")
    axes.legend(loc="lower right")


def calibration(
    store: Store,
    probability: str | None = None,
    label: str | None = None,
    by: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    *,
    bins: int = 10,
) -> Figure:
    """Draw how often what was predicted with a probability was so, in groups of as many rows.

    Parameters
    ----------
    store : Store
        The store.
    probability : str, optional
        As of `roc`.
    label : str, optional
        As of `roc`.
    by : str or list of str, optional
        As of `roc`.
    filter : pyarrow.compute.Expression, optional
        As of `roc`.
    bins : int
        How many groups along the probability.

    Returns
    -------
    matplotlib.figure.Figure
        The picture; vertical lines are 95 % intervals (Wilson).

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If the columns cannot be told or do not fit, or no row has a label.

    Examples
    --------
    >>> import tempfile, numpy as np, zarrow, zarrow.analysis.plot
    >>> with zarrow.Writer(tempfile.mkdtemp() + "/run.zarrow") as writer:
    ...     writer.append({"prob": np.linspace(0, 1, 9), "label": np.arange(9) > 3})
    ...     writer.finalize()
    >>> figure = zarrow.analysis.plot.calibration(zarrow.open(writer.path), bins=3)
    """
    if not 2 <= bins <= 100:
        raise InvalidInputError(f"bins must be in 2..100, got {bins}")
    found = _evaluated(store, probability, label, by, filter)
    calibrate(found.scores[-1], bins)  # raises if there is nothing to draw
    return _draw(lambda figure: _draw_calibration(figure, found, bins), (6.4, 6.2))


def _draw_calibration(figure: Figure, found: Evaluation, bins: int) -> None:
    axes = figure.add_subplot()
    _title(axes, "Calibration", _score_note(found))
    curves = _curves(found)
    top = 0.0
    for name, scores, colour in curves:
        if not len(scores.label):
            continue
        shown = calibrate(scores, bins)
        first = colour == INK
        top = max(top, float(shown.predicted.max()), float(shown.observed.max()))
        axes.errorbar(
            shown.predicted,
            shown.observed,
            np.maximum(np.stack([shown.observed - shown.low, shown.high - shown.observed]), 0),
            color=colour,
            linewidth=2.2 if first else 1.5,
            elinewidth=1,
            marker="o",
            markersize=5 if first else 4,
            label=name,
            zorder=3 if first else 2,
        )
    top = min(1.02, top * 1.12 + 1e-3)
    axes.plot([0, top], [0, top], color="#9a9a9a", linewidth=1, linestyle=(0, (4, 3)))
    axes.set(
        xlabel=f"mean probability, in {bins} groups of as many rows",
        ylabel="share that is true, 95 % interval",
        xlim=(0, top),
        ylim=(0, top),
    )
    axes.set_aspect("equal")
    if len(curves) > 1:
        axes.legend(loc="upper left")


# How two models differ


def drift(
    a: Store,
    b: Store,
    *,
    on: str | Sequence[str] | None = None,
    array: str | tuple[str, str] | None = None,
    by: str | Sequence[str] | None = None,
    probability: str | None = None,
    progress: Progress | None = None,
) -> Figure:
    """Draw how far the vectors of the same rows moved from one store to another.

    On the left each dimension, the one that moved most first: the difference of its means in standard
    deviations, and how well its values go together. On the right, with `by`, the groups that moved most.

    Parameters
    ----------
    a, b : Store
        The stores, such as those of two checkpoints.
    on : str or list of str, optional
        What tells which rows are the same, as of `zarrow.analysis.compare`.
    array : str or pair of str, optional
        The arrays; need not be named if there is only one.
    by : str or list of str, optional
        Columns of `a` to group by.
    probability : str, optional
        A column of both stores whose shift is shown too.
    progress : callable, optional
        Is called with rows done and rows in all.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    UnknownNameError
        If there is no such array or column.
    InvalidInputError
        If the stores share no rows, or their vectors are of different widths.

    Examples
    --------
    >>> import zarrow.analysis.plot, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> figure = zarrow.analysis.plot.drift(store, store, by="query")
    >>> len(figure.axes)
    2
    """
    found = compare(a, b, on=on, array=array, by=by, probability=probability, progress=progress)
    if found.matched - found.nonfinite_rows < 2:
        raise InvalidInputError(
            f"{a.path} and {b.path} share {found.matched} rows, {found.nonfinite_rows} of them with NaN or "
            "infinity: there is nothing to compare; on= says which columns tell which rows are the same"
        )
    if found.dimensions is None:
        names = zip((a, b), found.arrays, strict=True)
        widths = " and ".join(str(store[name].row_shape) for store, name in names)
        raise InvalidInputError(
            f"the vectors are of different widths ({widths}), so their dimensions cannot be compared one by "
            "one; zarrow.analysis.compare tells how alike they are as a whole"
        )
    size = (9.6, 5.0) if found.groups is not None else (7.2, 5.0)
    return _draw(lambda figure: _draw_drift(figure, found, a, b), size)


def _draw_drift(figure: Figure, found: Comparison, a: Store, b: Store) -> None:
    assert found.dimensions is not None
    left: Axes
    if found.groups is not None:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_group_drift(right, found)
    else:
        left = figure.add_subplot()
    said = [f"{found.matched:,} rows"]
    for name, value in (
        ("linear CKA", found.cka),
        ("mean cosine", found.cosine_mean),
        ("neighbours shared", found.neighbour_overlap),
    ):
        if value is not None:
            said.append(f"{name} {value:.3f}")
    if found.probability is not None and found.probability["mean_difference"] is not None:
        said.append(f"mean probability {found.probability['mean_difference']:+.4f}")
    names = f"From {_short(a.path.name, 24)} to {_short(b.path.name, 24)}"
    figure.suptitle(names, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(_plain("; ".join(said)), x=0.01, ha="left", fontsize=9.5, color=FAINT)
    left.set_title("Dimensions", fontsize=10.5, pad=8)
    moved = found.dimensions["drift"].to_numpy(zero_copy_only=False).astype(np.float64)
    together = found.dimensions["correlation"].to_numpy(zero_copy_only=False).astype(np.float64)
    size = np.where(np.isnan(moved), 0, np.abs(moved))
    order = np.argsort(-size, kind="stable")
    place = np.arange(1, len(order) + 1)
    left.fill_between(place, size[order], step="mid", color=PALETTE[0], alpha=0.3, linewidth=0)
    left.step(place, size[order], where="mid", color=PALETTE[0], linewidth=1.6, label="drift of the mean")
    known = ~np.isnan(together[order])
    left.scatter(
        place[known], together[order][known], s=float(np.clip(2000 / len(order), 4, 24)),
        color=PALETTE[1], linewidths=0, alpha=0.8, label="correlation",
    )  # fmt: skip
    top, bottom = float(size.max(initial=0)) * 1.1, float(np.nanmin(together, initial=0)) * 1.1
    left.set(
        xlabel="dimension, the one that moved most first",
        ylabel="drift in standard deviations; correlation",
        xlim=(0.5, len(order) + 0.5),
        ylim=(min(0.0, bottom), max(1.05, top)),
    )
    left.legend(loc="upper right")


def _draw_group_drift(axes: Axes, found: Comparison) -> None:
    assert found.groups is not None
    measures = ("rows", "cosine_mean", "drift", "probability_difference")
    rows = [row for row in found.groups.to_pylist() if row["drift"] is not None]
    rows.sort(key=lambda row: -row["drift"])
    shown = rows[:DRIFT_GROUPS]
    names = [group_name({key: value for key, value in row.items() if key not in measures}) for row in shown]
    axes.barh(range(len(shown)), [row["drift"] for row in shown], color=PALETTE[2], height=0.7)
    axes.set_yticks(range(len(shown)), [_short(name, 22) for name in names])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    more = f", {len(shown)} of {len(rows):,}" if len(rows) > len(shown) else ""
    axes.set_title(f"Groups{more}", fontsize=10.5, pad=8)
    axes.set_xlabel("distance between their means")
