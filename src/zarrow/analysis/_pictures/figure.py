"""Figure — what every picture is drawn on, and how it becomes a file or a part of the report's page.

`draw` makes a figure in the style of this package, `write_title` gives it a title and a note, `plain` escapes
what matplotlib would take for a formula, `save` writes PNG, SVG or PDF, and `to_markup` returns SVG in the
page's own colours. The colours are Okabe and Ito's and cividis, which most colour-blind people can tell
apart.

Matplotlib's global state is left alone, and matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarrow.analysis._pictures.output import in_one_step, require_writable
from zarrow.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CATEGORY_COLOURS",
    "FAINT",
    "INK",
    "PALETTE",
    "check_format",
    "draw",
    "plain",
    "save",
    "short",
    "to_markup",
    "write_title",
]

NOTE_CHARACTERS = 74
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A900", "#8C8C8C")
"""Okabe and Ito, *Color Universal Design* (2008), with a darker yellow for white paper and a grey."""
CATEGORY_COLOURS = (
    *PALETTE[:-1],
    "#8E5BC7", "#A0522D", "#E7298A", "#5FB233", "#00B3A4", "#F08080", "#6470E0",
    "#8A7F2D", "#C2185B", "#4F8A6B", "#B39DDB", "#D2B48C", "#6D8EA0",
)  # fmt: skip
"""For up to 20 categories: the palette, and more that stand out on white and on black."""
INK, FAINT, GRID, EDGE = "#222222", "#5c5c5c", "#e3e3e3", "#9a9a9a"
PAGE_COLOURS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    GRID: "var(--line)",
    EDGE: "var(--faint)",
    PALETTE[0].lower(): "var(--accent)",
}
"""Our colours as SVG has them, and the variables of ``report.css`` that stand for them, in light and dark."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 26,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": EDGE,
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


def draw(content: Callable[[Figure], None], size: tuple[float, float] = (7.2, 5.0)) -> Figure:
    """Return a figure in the style of this package, on which `content` has drawn."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from zarrow.analysis._pictures.notebook_figure import NotebookFigure
    except ImportError as error:
        raise MissingExtraError(
            f"pictures need {error.name}: pip install 'zarrow[analysis]'", name=error.name
        ) from error
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        content(figure)
    return figure


def write_title(axes: Axes, title: str, note: str) -> None:
    """Write a title and a note under it, whose length does not change the size of the plot."""
    lines = textwrap.wrap(note, NOTE_CHARACTERS) or [""]
    axes.set_title(plain(title), pad=12 + 13 * len(lines))
    text = plain("\n".join(lines))
    under = axes.text(0, 1.02, text, transform=axes.transAxes, color=FAINT, fontsize=9.5, va="bottom")
    under.set_in_layout(False)


def plain(text: str) -> str:
    """Return text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def short(text: str, most: int = 32) -> str:
    """Return a text as `plain` does, cut to `most` characters."""
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        A picture made by one of the functions of `zarrow.analysis.plot`.
    path : path
        Where to write it; must end in ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    InvalidInputError
        If the path ends in anything else.
    WriteFailedError
        If the file cannot be written; a file that was there before stays.

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
    with in_one_step(file) as scratch, matplotlib.rc_context(STYLE):
        figure.savefig(scratch, metadata=dates.get(file.suffix.lower()))


def check_format(path: Path) -> None:
    """Check that a picture can be written to a path, before anything is computed.

    Parameters
    ----------
    path : Path
        Where the picture is to be written.

    Raises
    ------
    InvalidInputError
        If the path does not end in ``.png``, ``.svg`` or ``.pdf``.
    WriteFailedError
        If its directory is missing or not writable.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidInputError(f"the name of a picture must end in {', '.join(FORMATS)}, got {path.name!r}")
    require_writable(path)


def to_markup(figure: Figure, label: str) -> str:
    """Return a picture as an SVG element of the report's page.

    Its colours are the page's, its font is the page's, and it has no ``style`` attribute, which the page's
    content security policy would ignore: each of its declarations becomes an attribute of its own.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The picture.
    label : str
        What it shows, for people who do not see it; differs from that of other pictures on the page.

    Returns
    -------
    str
        Markup.
    """
    import matplotlib

    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)  # the paper is the page's
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):  # its ids differ from those of others
        figure.savefig(file, format="svg", metadata={"Date": None})
    drawing = file.getvalue().partition("</metadata>")[2]
    drawing = re.sub(r"<style.*?</style>", "", drawing)
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing).replace("xlink:href", "href")
    drawing = re.sub(r'style="([^"]*)"', _as_attributes, drawing)
    width, height = figure.get_size_inches() * 72
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{drawing.strip()}"
    )


def _as_attributes(style: re.Match[str]) -> str:
    """Return the declarations of a style attribute as attributes; fonts are left to the page's style."""
    declared = (one.partition(": ") for one in style[1].split("; "))
    return " ".join(
        f'{name}="{PAGE_COLOURS.get(value, value)}"' for name, _, value in declared if "font" not in name
    )
