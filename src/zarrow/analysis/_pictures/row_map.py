"""Row map — where the rows lie on a map, as points or, above `MAX_POINTS` rows, as cells.

The map is a stored one, or the first two principal components. More points than that would hide each other
and fill memory and file. `map_cells` computes what is drawn here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zarrow.analysis._pictures.figure import CATEGORY_COLOURS, FAINT, PALETTE, draw, short, write_title
from zarrow.analysis._pictures.map_cells import (
    Colour,
    Shown,
    choose_map,
    read_colour,
    read_map,
)
from zarrow.analysis._questions.map import Map
from zarrow.analysis._rows.blocks import Progress
from zarrow.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["map"]

MAX_POINTS = 50_000
RASTERIZED_POINTS = 4000
COUNTS = [digit * 10**place for place in range(10) for digit in (1, 2, 5)]
"""Ticks of a logarithmic scale of counts."""
LEGEND_INCHES = 0.23
"""Height of a line of the legend."""
UNKNOWN = "#c9c9c9"


def map(
    store: Store,
    map: str | None = None,
    colour: str | None = None,
    *,
    progress: Progress | None = None,
) -> Figure:
    """Draw where the rows lie, as points or, above 50,000 rows, as cells.

    Parameters
    ----------
    store : Store
        The store.
    map : str, optional
        A stored map (see `map_rows`), or an array whose principal components are drawn. By default a stored
        map, or the principal components of the first array if there is none.
    colour : str, optional
        A column to colour by. Without it, points have one colour and cells show how many rows they hold.
    progress : callable, optional
        Called with the number of rows done and the total.

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
    by = None if colour is None else read_colour(store, colour, MAX_POINTS)
    what, coordinates = choose_map(store, map, progress)
    shown = read_map(store, coordinates, [] if by is None else [by], MAX_POINTS, progress)
    width, height = shown.high - shown.low
    ratio = float(np.clip(height / max(width, 1e-30), 0.45, 1.1))
    legend = 0 if by is None else len(by.labels)
    content = _draw_cells if shown.side else _draw_points
    inches = max(1.3 + 5.8 * ratio, 1.6 + LEGEND_INCHES * legend)
    return draw(lambda figure: content(figure, shown, what, by), (8.0, inches))


def _map_axes(figure: Figure, what: Map, drawn: int, as_what: str) -> Axes:
    axes = figure.add_subplot()
    axes.grid(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    method = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}.get(what.method, what.method)
    write_title(axes, f"{method} of {what.array}", f"{drawn:,} rows{as_what}")
    if what.method == "pca" and len(what.explained_variance_ratio) == 2:
        first, second = what.explained_variance_ratio
        axes.set_xlabel(f"principal component 1 ({first:.0%})".replace("%", " %"))
        axes.set_ylabel(f"principal component 2 ({second:.0%})".replace("%", " %"))
    return axes


def _draw_points(figure: Figure, points: Shown, what: Map, colour: Colour | None) -> None:
    count = len(points.rows)
    axes = _map_axes(figure, what, count, "" if colour is None else f", coloured by {colour.name}")
    size = float(np.clip(6000 / max(count, 1), 2.5, 40))
    order = np.random.default_rng(0).permutation(count)  # so that no group is always on top
    x, y = points.xy[order].T
    many = count > RASTERIZED_POINTS  # an SVG of that many circles opens slowly: embed them as an image
    look: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": many}
    if colour is None:
        axes.scatter(x, y, color=PALETTE[0], **look)
        return
    codes = points.colours[colour.name][order]
    unknown = np.isnan(codes)
    axes.scatter(x[unknown], y[unknown], color=UNKNOWN, **look)
    x, y, codes = x[~unknown], y[~unknown], codes[~unknown]
    if colour.categories:
        axes.scatter(x, y, c=np.array(_colours(colour))[codes.astype(int)], **look)
        _category_legend(axes, colour)
    else:
        drawn = axes.scatter(x, y, c=codes, cmap="cividis", **look)
        _colour_bar(figure, axes, drawn, colour.name)


def _draw_cells(figure: Figure, cells: Shown, what: Map, colour: Colour | None) -> None:
    from matplotlib.colors import LogNorm, to_rgba

    note = " in cells" + ("" if colour is None else f", coloured by {colour.name}")
    if cells.outside:
        note += f"; {cells.outside:,} outside, drawn at the edge"
    axes = _map_axes(figure, what, int(cells.counts.sum()), note)
    look: dict[str, Any] = {
        "extent": (cells.low[0], cells.high[0], cells.low[1], cells.high[1]),
        "origin": "lower",
        "interpolation": "nearest",
        "aspect": "equal",
    }
    most = max(int(cells.counts.max(initial=0)), 2)
    if colour is None:
        norm = LogNorm(vmin=1, vmax=most)
        drawn = axes.imshow(
            np.ma.masked_equal(cells.image(cells.counts, 0), 0), cmap="cividis_r", norm=norm, **look
        )
        bar = _colour_bar(figure, axes, drawn, "rows in a cell")
        bar.minorticks_off()
        ticks = [count for count in COUNTS if count <= most]
        bar.set_ticks(ticks, labels=[f"{count:,}" for count in ticks])
        return
    values = cells.colours[colour.name]
    if colour.categories:
        table = np.array([to_rgba(one) for one in (*_colours(colour), UNKNOWN)])
        pixels = table[np.where(np.isnan(values), -1, values).astype(int)]
        pixels[:, 3] = 0.35 + 0.65 * np.log1p(cells.counts) / np.log1p(most)
        axes.imshow(cells.image(pixels, 0), **look)
        _category_legend(axes, colour)
    else:
        drawn = axes.imshow(np.ma.masked_invalid(cells.image(values, np.nan)), cmap="cividis", **look)
        _colour_bar(figure, axes, drawn, f"mean {colour.name}")


def _colours(colour: Colour) -> list[str]:
    last = [PALETTE[-1]] if colour.others else []
    return [*CATEGORY_COLOURS[: len(colour.categories)], *last]


def _category_legend(axes: Axes, colour: Colour) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=one, label=short(label))
        for one, label in zip(_colours(colour), colour.labels, strict=True)
    ]
    axes.legend(handles=handles, title=short(colour.name), loc="center left", bbox_to_anchor=(1.0, 0.5))


def _colour_bar(figure: Figure, axes: Axes, drawn: Any, label: str) -> Any:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, aspect=24, pad=0.02)
    bar.set_label(short(label), color=FAINT)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    return bar
