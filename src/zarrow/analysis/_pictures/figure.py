"""What do all pictures have in common?

A figure in our style, with a title that never changes the room for the picture, text in which matplotlib
sees no formula, and a file of it: PNG, SVG or PDF. Colours are Okabe and Ito's and cividis, which most
colour-blind people can tell apart.

Place: tier 5, in `zarrow.analysis`; what `plot`'s pictures are drawn with. Matplotlib's global state is left
alone, and nothing of it is loaded before a picture is drawn.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarrow.analysis._pictures.output import in_one_step, require_writable
from zarrow.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "PALETTE", "check_format", "draw", "plain", "save", "short", "write_title"]

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


def draw(content: Callable[[Figure], None], size: tuple[float, float] = (7.2, 5.0)) -> Figure:
    """Return a figure that `content` has drawn on, in our style."""
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
        content(figure)
    return figure


def write_title(axes: Axes, title: str, note: str) -> None:
    """Write a title, and under it what is to be known, which never changes the room for the picture."""
    lines = textwrap.wrap(note, NOTE_CHARACTERS) or [""]
    axes.set_title(plain(title), pad=12 + 13 * len(lines))
    text = plain("\n".join(lines))
    under = axes.text(0, 1.02, text, transform=axes.transAxes, color=FAINT, fontsize=9.5, va="bottom")
    under.set_in_layout(False)


def plain(text: str) -> str:
    """Return text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def short(text: str, most: int = 32) -> str:
    """Return the beginning of a text that is too long for its place, plain."""
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What one of `zarrow.analysis.plot`'s functions returned.
    path : path
        Ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    InvalidInputError
        If it ends otherwise.
    WriteFailedError
        If it cannot be written; what was there before stays.

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
    """Refuse a file that no picture can be, before anything is computed.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    InvalidInputError
        If it does not end in ``.png``, ``.svg`` or ``.pdf``.
    WriteFailedError
        If its directory is missing or must not be written to.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidInputError(f"a picture's name must end in {', '.join(FORMATS)}, got {path.name!r}")
    require_writable(path)
