"""Drift — how far the vectors of the same rows moved from one store to another, as a picture.

One panel shows each dimension: how far its mean moved, and how well its values correlate; with groups, a
second panel shows those that moved most. The numbers are those of `compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zarrow.analysis._pictures.curves import group_name
from zarrow.analysis._pictures.figure import FAINT, PALETTE, draw, plain, short
from zarrow.analysis._questions.compare import Comparison, compare
from zarrow.analysis._rows.blocks import Progress
from zarrow.errors import InvalidInputError
from zarrow.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["drift"]

DRIFT_GROUPS = 12


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

    The left panel shows each dimension, the one that moved most first: the difference of its means in
    standard deviations, and the correlation of its values. With `by`, the right panel shows the groups that
    moved most.

    Parameters
    ----------
    a, b : Store
        The stores, such as those of two checkpoints.
    on : str or list of str, optional
        The columns by which rows are matched, as in `zarrow.analysis.compare`.
    array : str or pair of str, optional
        The arrays; may be left out if each store has only one.
    by : str or list of str, optional
        Columns of `a` to group by.
    probability : str, optional
        A column of both stores whose mean shift is shown too.
    progress : callable, optional
        Called with the number of rows done and the total.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.

    Raises
    ------
    UnknownNameError
        If there is no such array or column.
    InvalidInputError
        If the stores share fewer than two finite rows, or their vectors differ in width.

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
            "infinity: there is nothing to compare; name the columns by which rows are matched, with on="
        )
    if found.dimensions is None:
        names = zip((a, b), found.arrays, strict=True)
        widths = " and ".join(str(store[name].row_shape) for store, name in names)
        raise InvalidInputError(
            f"the vectors are of different widths ({widths}), so their dimensions cannot be compared one by "
            "one, only as a whole: 'zarrow compare', or zarrow.analysis.compare"
        )
    size = (9.6, 5.0) if found.groups is not None else (7.2, 5.0)
    return draw(lambda figure: _draw_drift(figure, found, a, b), size)


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
    names = f"From {short(a.path.name, 24)} to {short(b.path.name, 24)}"
    figure.suptitle(names, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(plain("; ".join(said)), x=0.01, ha="left", fontsize=9.5, color=FAINT)
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
    left.locator_params(axis="x", integer=True)
    left.legend(loc="best")


def _draw_group_drift(axes: Axes, found: Comparison) -> None:
    assert found.groups is not None
    measures = ("rows", "cosine_mean", "drift", "probability_difference")
    rows = [row for row in found.groups.to_pylist() if row["drift"] is not None]
    rows.sort(key=lambda row: -row["drift"])
    shown = rows[:DRIFT_GROUPS]
    names = [group_name({key: value for key, value in row.items() if key not in measures}) for row in shown]
    axes.barh(range(len(shown)), [row["drift"] for row in shown], color=PALETTE[2], height=0.7)
    axes.set_yticks(range(len(shown)), [short(name, 22) for name in names])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    more = f", {len(shown)} of {len(rows):,}" if len(rows) > len(shown) else ""
    axes.set_title(f"Groups{more}", fontsize=10.5, pad=8)
    axes.set_xlabel("distance between their means")
