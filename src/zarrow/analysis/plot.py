"""What does it look like?

One function a picture, each of which returns a matplotlib figure; `save` writes it as PNG, SVG or PDF.
Above 50,000 rows a map shows cells, not points; nothing here holds more than a picture's worth of rows.

Place: tier 5, in `zarrow.analysis`: the public face of `analysis._pictures.map_plot`,
`analysis._pictures.norms_plot`, `analysis._pictures.probability_plots`,
`analysis._pictures.drift_plot`, and of `analysis._pictures.figure`, which they draw with. Matplotlib's
global state is left alone. Reads only.
"""

from zarrow.analysis._pictures.drift_plot import drift
from zarrow.analysis._pictures.figure import check_format, save
from zarrow.analysis._pictures.map_plot import map
from zarrow.analysis._pictures.norms_plot import norms
from zarrow.analysis._pictures.probability_plots import calibration, roc

__all__ = ["calibration", "check_format", "drift", "map", "norms", "roc", "save"]
