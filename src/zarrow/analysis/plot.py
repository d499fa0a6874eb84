"""What does it look like?

One function a picture, each of which returns a matplotlib figure; `save` writes it as PNG, SVG or PDF.
Above 50,000 rows a map shows cells, not points; nothing here holds more than a picture's worth of rows.

Place: tier 5, in `zarrow.analysis`: the public face of `analysis._pictures.row_map`,
`analysis._pictures.norms`, `analysis._pictures.roc_calibration`,
`analysis._pictures.drift`, and of `analysis._pictures.figure`, which they draw with. Matplotlib's
global state is left alone. Reads only.
"""

from zarrow.analysis._pictures.drift import drift
from zarrow.analysis._pictures.figure import check_format, save
from zarrow.analysis._pictures.norms import norms
from zarrow.analysis._pictures.roc_calibration import calibration, roc
from zarrow.analysis._pictures.row_map import map

__all__ = ["calibration", "check_format", "drift", "map", "norms", "roc", "save"]
