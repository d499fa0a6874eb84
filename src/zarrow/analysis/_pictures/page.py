"""Report page — from figures, tables and charts to one HTML document that runs and loads nothing else.

The page is the Jinja template ``report.html.j2``, next to ``report.css`` and ``report.js`` in the package.
Autoescaping is on, so text from a store is never taken for markup; JSON is written by Jinja's ``tojson``, in
which no ``<`` is left that could end the script element that holds it. The page's content security policy
allows its own script and style, by their hashes, and nothing else: no network, and nothing that slipped in.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zarrow.errors import MissingExtraError

__all__ = ["Interval", "as_text", "pack", "page_writer"]

MAX_TEXT = 200
_PACKED = {"f4": np.float32, "f8": np.float64, "i4": np.int32, "u4": np.uint32}


class Interval(NamedTuple):
    """A number with its interval: sorted as the number, shown as both."""

    value: float
    low: float
    high: float


def as_text(value: object) -> str:
    """Return a value as it is shown on the page.

    >>> as_text(1234567), as_text(20000.0), as_text(0.00012345678), as_text(None), as_text(True)
    ('1,234,567', '20,000', '0.0001235', '–', 'true')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, Interval):
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, float | np.floating):
        number = float(value)
        return f"{number:,.0f}" if 1e3 <= abs(number) < 1e12 else f"{number:.4g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _sort_value(value: object) -> str | None:
    """Return the number by which the page sorts a cell, empty if unknown; None to sort by its text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Interval):
        value = value.value
    return repr(float(value)) if isinstance(value, int | float) else None


def pack(values: npt.NDArray[Any], kind: str) -> dict[str, str]:
    """Return an array as compact JSON: its bytes, little-endian, in Base64.

    >>> pack(np.array([1.0]), "f4")
    {'type': 'f4', 'data': 'AACAPw=='}
    """
    data = np.ascontiguousarray(values, np.dtype(_PACKED[kind]).newbyteorder("<")).tobytes()
    return {"type": kind, "data": base64.b64encode(data).decode()}


def page_writer() -> Callable[[Mapping[str, Any]], str]:
    """Return a function from the template's variables to the page.

    Raises
    ------
    MissingExtraError
        If Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            f"a report needs {error.name}: pip install 'zarrow[analysis]'", name=error.name
        ) from error
    source, style, script = (
        files("zarrow.analysis").joinpath(f"report.{suffix}").read_text(encoding="utf-8")
        for suffix in ("html.j2", "css", "js")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"as_text": as_text, "sort_value": _sort_value, "policy_hash": _policy_hash}
    template = environment.from_string(source, {"style": style, "script": script})
    return template.render


def _policy_hash(text: str) -> str:
    """Return the source expression by which a content security policy allows a script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
