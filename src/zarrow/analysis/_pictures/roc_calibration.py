"""ROC and calibration — how good probabilities are, as curves of all rows and of the largest groups.

The numbers are those of `evaluate` and `curves`; `draw_roc` and `draw_calibration` draw them on any axes, for
a picture of their own or for the report's page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow.compute as pc

from zarrow.analysis._numbers.scores import Scores
from zarrow.analysis._pictures.curves import calibrate, largest_groups
from zarrow.analysis._pictures.figure import CATEGORY_COLOURS, EDGE, INK, draw, short, write_title
from zarrow.analysis._questions.evaluate import Evaluation, evaluate
from zarrow.errors import InvalidInputError
from zarrow.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "calibration", "draw_calibration", "draw_roc", "roc", "score_note"]

Curve: TypeAlias = tuple[str, Scores, str]
"""A name, what the curve is made of, and a colour."""

CURVES = 10
ROC_POINTS = 1000
BINS = 10


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
        The column of probabilities; by default the one that looks like it.
    label : str, optional
        The column of labels, null where unknown; by default the one that looks like it.
    by : str or list of str, optional
        Columns to group by; the largest groups get a curve each.
    filter : pyarrow.compute.Expression, optional
        Which rows to use; all by default.

    Returns
    -------
    matplotlib.figure.Figure
        The picture; groups of one class are only named in the legend.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If the columns cannot be found by default, have the wrong type, or all labels are of one class.

    Examples
    --------
    >>> import tempfile, numpy as np, zarrow, zarrow.analysis.plot
    >>> with zarrow.Writer(tempfile.mkdtemp() + "/run.zarrow") as writer:
    ...     writer.append({"prob": np.linspace(0, 1, 9), "label": np.arange(9) > 3})
    ...     writer.finalize()
    >>> figure = zarrow.analysis.plot.roc(zarrow.open(writer.path))
    """
    found = evaluate(store, probability, label, by=by, filter=filter, bootstrap=0)
    found.roc_curve()  # raises if there is nothing to draw
    return _draw("ROC", found, draw_roc)


def _draw(title: str, found: Evaluation, content: Callable[[Axes, list[Curve]], None]) -> Figure:
    """Draw the curve of all rows and those of the largest groups."""
    curves = [("all rows", found.scores[-1], INK)]
    for (name, one), colour in zip(largest_groups(found, CURVES), CATEGORY_COLOURS, strict=False):
        curves.append((short(name, 28), one, colour))

    def on_figure(figure: Figure) -> None:
        axes = figure.add_subplot()
        write_title(axes, title, score_note(found))
        content(axes, curves)
        if (legend := axes.get_legend()) is not None and found.by:
            shown, groups = len(curves) - 1, len(found.scores) - 1
            more = f" (largest {shown} of {groups:,})" if groups > shown else ""
            legend.set_title(short(", ".join(found.by) + more, 60))

    return draw(on_figure, (6.4, 6.2))


def score_note(found: Evaluation) -> str:
    """Return what was evaluated, in words."""
    overall = found.overall
    return (
        f"{found.probability} against {found.label}: {overall['labelled']:,} of {overall['rows']:,} rows "
        f"have both, {overall['positives']:,} are true"
    )


def draw_roc(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw ROC curves, the first one stronger than the others; those of one class are only named."""
    axes.plot([0, 1], [0, 1], color=EDGE, linewidth=1, linestyle=(0, (4, 3)))
    for place, (name, scores, colour) in enumerate(curves):
        area = scores.metrics()["auroc"]
        if area is None:
            axes.plot([], [], " ", label=f"{name}: one class only")
            continue
        axes.plot(
            *scores.roc_curve(ROC_POINTS)[:2],
            color=colour,
            linewidth=1.8 if place else 2.4,
            label=f"{name}: AUROC {area:.3f}",
            zorder=2 if place else 3,
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
    bins: int = BINS,
) -> Figure:
    """Draw the observed against the predicted probability, in groups of equally many rows.

    Parameters
    ----------
    store : Store
        The store.
    probability, label, by, filter : optional
        As in `roc`.
    bins : int
        Number of groups along the probability.

    Returns
    -------
    matplotlib.figure.Figure
        The picture; vertical lines are 95 % intervals (Wilson), of all rows.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If the columns cannot be found by default, have the wrong type, or no row has a label.

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
    found = evaluate(store, probability, label, by=by, filter=filter, bootstrap=0)
    calibrate(found.scores[-1], bins)  # raises if there is nothing to draw
    return _draw("Calibration", found, partial(draw_calibration, bins=bins))


def draw_calibration(axes: Axes, curves: Sequence[Curve], bins: int = BINS) -> None:
    """Draw calibration curves, the first one stronger than the others; those without rows are left out."""
    top = 0.0
    for place, (name, scores, colour) in enumerate(curves):
        if not len(scores):
            continue
        shown = calibrate(scores, bins)
        top = max(top, float(shown.predicted.max()), float(shown.observed.max()))
        interval = np.maximum(np.stack([shown.observed - shown.low, shown.high - shown.observed]), 0)
        axes.errorbar(
            shown.predicted,
            shown.observed,
            None if place else interval,  # those of groups would hide each other
            color=colour,
            linewidth=1.5 if place else 2.2,
            elinewidth=1,
            marker="o",
            markersize=4 if place else 5,
            label=name,
            zorder=2 if place else 3,
        )
    top = min(1.02, top * 1.12 + 1e-3)
    axes.plot([0, top], [0, top], color=EDGE, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(
        xlabel=f"mean probability, in {bins} groups of equal size",
        ylabel="share that is true, 95 % interval" + " of all rows" * (len(curves) > 1),
        xlim=(0, top),
        ylim=(0, top),
    )
    axes.set_aspect("equal")
    if len(curves) > 1:
        axes.legend(loc="upper left")
