"""Norms — how the lengths of an array's rows are distributed, as a histogram or a line per group.

While it draws, it holds the length of each row, of at most `MAX_LENGTHS` rows spaced evenly over the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow.analysis._numbers.sketch import bin_edges
from zarrow.analysis._pictures.curves import group_name
from zarrow.analysis._pictures.figure import INK, PALETTE, draw, short, write_title
from zarrow.analysis._rows.blocks import Progress, blocks, choose_array
from zarrow.analysis._rows.groups import Groups, names_of
from zarrow.errors import InvalidInputError
from zarrow.store import Store, StoreArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_histogram", "norms"]

FEWEST_BINS, NORM_BINS = 10, 60
NORM_GROUPS = 6
MAX_LENGTHS = 5_000_000


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
        The array; may be left out if the store has only one.
    by : str or list of str, optional
        Columns to group by; the largest groups get a line each.
    filter : pyarrow.compute.Expression, optional
        Which rows to draw; all by default.
    progress : callable, optional
        Called with the number of rows done and the total.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such array or column, or no row without NaN and infinity.

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
        raise InvalidInputError(f"array {chosen.name!r} has no row without NaN or infinity to draw")
    lines = [("", found[known])]
    if groups is not None:
        sizes = np.bincount(codes[known], minlength=groups.count)
        largest = np.argsort(-sizes, kind="stable")[:NORM_GROUPS]
        keys = groups.keys.to_pylist()
        lines = [
            (group_name(keys[one]), found[known & (codes == one)]) for one in sorted(largest) if sizes[one]
        ]
    # With few rows, narrow bins would show only noise.
    bins = int(np.clip(np.sqrt(min(len(values) for _, values in lines)), FEWEST_BINS, NORM_BINS))
    edges = bin_edges(float(found[known].min()), float(found[known].max()), bins)

    few = f"{len(found):,} of " * (len(found) < total)
    note = f"{few}{total:,} rows"
    if left_out := int((~known).sum()):
        note += f"; {left_out:,} with NaN or infinity left out"
    if zero := int((found == 0).sum()):
        note += f"; {zero:,} of length 0"

    def _content(figure: Figure) -> None:
        axes = figure.add_subplot()
        write_title(axes, f"Lengths of {chosen.name}", note)
        if groups is None:
            draw_histogram(axes, edges, np.histogram(found[known], edges)[0], float(np.median(found[known])))
            return
        for colour, (label, values) in zip(PALETTE, lines, strict=False):
            share = np.histogram(values, edges)[0] / len(values)
            axes.plot((edges[1:] + edges[:-1]) / 2, share, color=colour, linewidth=2, label=short(label))
        more = f" (largest {len(lines)} of {groups.count:,})" if groups.count > len(lines) else ""
        axes.legend(title=short(", ".join(names) + more, 60))
        _label_axes(axes)

    return draw(_content)


def draw_histogram(
    axes: Axes, edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], median: float
) -> None:
    """Draw lengths that were counted in bins, and their median."""
    axes.stairs(counts / max(counts.sum(), 1), edges, fill=True, color=PALETTE[0], alpha=0.85)
    axes.axvline(median, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"median {median:.4g}", (median, 1), xycoords=("data", "axes fraction"),
        xytext=(5, -4), textcoords="offset points", va="top", color=INK,
    )  # fmt: skip
    _label_axes(axes)


def _label_axes(axes: Axes) -> None:
    axes.set(xlabel="Euclidean length", ylabel="share of rows", ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def _lengths(
    store: Store,
    array: StoreArray,
    groups: Groups | None,
    filter: pc.Expression | None,
    progress: Progress | None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], int]:
    """Return the lengths of rows (NaN where not finite), their groups, and the number of rows passed.

    Of more than `MAX_LENGTHS` rows, only every second, third, … is measured.
    """
    step = -(-store.num_rows // MAX_LENGTHS) or 1
    lengths, codes, total = [np.empty(0, np.float32)], [np.empty(0, np.int32)], 0
    for block in blocks(store, array, groups.names if groups else (), filter, progress=progress):
        total += len(block.rows)
        found = np.linalg.norm(block.values[::step], axis=1)
        lengths.append(np.where(np.isfinite(found), found, np.nan).astype(np.float32))
        if groups is not None:
            codes.append(groups.codes(block.table)[::step].astype(np.int32))
    return np.concatenate(lengths), np.concatenate(codes), total
