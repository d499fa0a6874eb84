"""Plots — pictures of a store, as matplotlib figures.

There is one function per picture; `save` writes a picture as PNG, SVG or PDF. Above 50,000 rows a map shows
cells instead of points, and no picture holds more rows than it can show. Matplotlib's global state is left
alone.
"""

from zarrow.analysis._pictures.drift import drift
from zarrow.analysis._pictures.figure import check_format, save
from zarrow.analysis._pictures.norms import norms
from zarrow.analysis._pictures.roc_calibration import calibration, roc
from zarrow.analysis._pictures.row_map import map

__all__ = ["calibration", "check_format", "drift", "map", "norms", "roc", "save"]
