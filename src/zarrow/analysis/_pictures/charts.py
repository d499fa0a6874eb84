"""How does a small chart get into a page?

As SVG whose colours are the page's, so that it fits light and dark. All text in it is escaped; a chart has a
name for those who do not see it.

Place: tier 5, in `zarrow.analysis`; used by `report`. Pure.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy.typing as npt

from zarrow.analysis._pictures.curves import Calibration

__all__ = ["bars_chart", "calibration_chart", "roc_chart"]

Numbers = npt.NDArray[Any]

WIDTH, HEIGHT = 320, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 40


def _frame(
    name: str, x_label: str, y_label: str, body: str, top: float = 1.0, *, ticks_below: bool = True
) -> str:
    lines = []
    for value in ticks(top):
        x, y = _x(value / top), _y(value / top)
        lines.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
        if ticks_below:
            below = HEIGHT - BOTTOM + 16
            lines.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{_tick(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    lines.append(
        f'<text transform="translate(11 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{''.join(lines)}{body}</svg>"
    )


def ticks(top: float) -> list[float]:
    """Return round numbers from 0 to `top`, four to six of them or so.

    >>> ticks(0.826), ticks(40_000)
    ([0.0, 0.2, 0.4, 0.6, 0.8], [0.0, 10000.0, 20000.0, 30000.0, 40000.0])
    """
    rough = top / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * one for one in (1, 2, 2.5, 5, 10) if size * one >= rough * 0.999)
    return [round(step * place, 12) for place in range(int(top / step * (1 + 1e-9)) + 1)]


def _tick(value: float) -> str:
    """Return a number in little room.

    >>> _tick(0.25), _tick(2500), _tick(40_000), _tick(3e6)
    ('0.25', '2,500', '40k', '3M')
    """
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _path(x: Numbers, y: Numbers) -> str:
    points = " ".join(f"{_x(float(a)):.1f},{_y(float(b)):.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="curve" points="{points}"/>'


def _diagonal() -> str:
    return f'<path class="diagonal" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>'


def roc_chart(false_positive_rate: Numbers, true_positive_rate: Numbers, area: float) -> str:
    """Return a ROC curve.

    >>> import numpy as np
    >>> "AUROC 0.750" in roc_chart(np.array([0, 0.5, 1]), np.array([0, 1, 1]), 0.75)
    True
    """
    body = _diagonal() + _path(false_positive_rate, true_positive_rate)
    name = f"ROC curve: true against false positive rate, AUROC {area:.3f}"
    return _frame(name, "false positive rate", "true positive rate", body)


def calibration_chart(found: Calibration) -> str:
    """Return observed shares against predicted probabilities."""
    top = min(1.0, float(max(found.predicted.max(), found.high.max())) * 1.05 + 1e-6)
    body = _diagonal() + _path(found.predicted / top, found.observed / top)
    for x, y, low, high in zip(found.predicted, found.observed, found.low, found.high, strict=True):
        at = _x(x / top)
        body += f'<path class="range" d="M{at:.1f} {_y(low / top):.1f}V{_y(min(high / top, 1)):.1f}"/>'
        body += f'<circle class="dot" cx="{at:.1f}" cy="{_y(y / top):.1f}" r="3"/>'
    name = (
        "Calibration: share with a true label against mean predicted probability, in groups of as many rows"
    )
    return _frame(name, "mean predicted probability", "share with a true label", body, top)


def bars_chart(edges: Numbers, counts: Numbers, name: str, label: str) -> str:
    """Return a histogram.

    >>> import numpy as np
    >>> bars_chart(np.array([0.0, 1, 2]), np.array([3, 1]), "n", "<x>").count("<rect")
    2
    """
    top = float(max(counts.max(initial=0), 1))
    span = float(edges[-1] - edges[0]) or 1.0
    body = ""
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        left, right = _x((low - edges[0]) / span), _x((high - edges[0]) / span)
        y = _y(count / top)
        width = max(right - left - 0.6, 0.4)
        body += f'<rect class="bar" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_y(0) - y:.1f}"/>'
    for share in (0.0, 0.5, 1.0):
        text = f"{edges[0] + share * span:.4g}"
        anchor = ("start", "middle", "end")[int(share * 2)]
        body += f'<text x="{_x(share):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{text}</text>'
    return _frame(name, label, "rows", body, top, ticks_below=False)
