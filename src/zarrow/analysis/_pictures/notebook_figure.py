"""Notebook figure — a matplotlib figure that a notebook shows as a picture, without ``%matplotlib inline``.

A notebook asks an object for ``_repr_png_``, which matplotlib's own figures lack unless pyplot is set up. The
picture is drawn with all its pixels and shown in two thirds of that size, so it is sharp on a fine screen.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["NotebookFigure"]

PIXELS_PER_SHOWN = 1.5


class NotebookFigure(Figure):
    """A figure that shows itself."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=self.dpi)
        width, height = self.get_size_inches() * self.dpi / PIXELS_PER_SHOWN
        return png.getvalue(), {"width": round(width), "height": round(height)}
