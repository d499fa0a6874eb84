"""How do tables and data get into a page, so that no text of a store is ever taken for markup?

`table` escapes every cell; `embed` writes JSON in which no ``<`` is left, so that it cannot end the script
element that holds it; `assemble` puts a page together whose content security policy allows its own script
and style, by their hashes, and nothing else: neither the network nor anything that slipped in.

Place: tier 5, in `zarrow.analysis`; used by `report`. Pure, but for reading the style and script beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Html", "Interval", "assemble", "cards", "embed", "facts", "pack", "say", "section", "table"]

MAX_TEXT = 200
_PACKED = {"f4": np.float32, "f8": np.float64, "i4": np.int32, "u4": np.uint32}


class Html(str):
    """Markup that is ready: not escaped again."""

    __slots__ = ()


class Interval(float):
    """A number with its interval: sorted as the number, shown as both.

    >>> print(say(Interval(0.5, 0.4, 0.6)))
    0.500 [0.400, 0.600]
    """

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> Interval:
        """Make one."""
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self


def say(value: object, digits: int = 4) -> str:
    """Return a value as people read it.

    >>> say(1234567), say(20000.0), say(0.00012345678), say(None), say(True), say("x")
    ('1,234,567', '20,000', '0.0001235', '–', 'true', 'x')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, Interval):
        return f"{float(value):.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, float | np.floating):
        number = float(value)
        whole = 10 ** (digits - 1) <= abs(number) < 1e12
        return f"{number:,.0f}" if whole else f"{number:.{digits}g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _cell(value: object, tag: str, *, text: bool) -> str:
    if isinstance(value, Html):
        return f"<{tag}>{value}</{tag}>"
    order = ""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        order = ' data-value=""'
    elif isinstance(value, int | float):
        order = f' data-value="{float(value)!r}"'
    look = ' class="text"' if text else ""
    scope = ' scope="row"' if tag == "th" else ""
    return f"<{tag}{scope}{look}{order}>{escape(say(value))}</{tag}>"


def table(caption: str, rows: Sequence[Mapping[str, object]], text: Sequence[str] = ()) -> Html:
    """Return a table that can be sorted by its columns.

    Parameters
    ----------
    caption : str
        What it shows, for those who do not see it.
    rows : list of mappings
        The cells by heading; all have the same. The first column is the rows' name.
    text : list of str
        The headings of columns that hold text.

    Returns
    -------
    Html
        The table.

    Examples
    --------
    >>> "&lt;b&gt;" in table("t", [{"a": "<b>"}])
    True
    """
    names = list(rows[0]) if rows else []
    head = "".join(f'<th scope="col"{" class=text" * (name in text)}>{escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            _cell(row[name], "th" if place == 0 else "td", text=name in text)
            for place, name in enumerate(names)
        )
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def cards(given: Mapping[str, object]) -> Html:
    """Return figures that stand out.

    >>> cards({"rows": 5000})
    '<dl class="cards"><div><dt>rows</dt><dd>5,000</dd></div></dl>'
    """
    each = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(say(value))}</dd></div>" for name, value in given.items()
    )
    return Html(f'<dl class="cards">{each}</dl>')


def facts(given: Mapping[str, object]) -> Html:
    """Return a table of names and values."""
    each = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(say(value))}</td></tr>'
        for name, value in given.items()
    )
    return Html(f'<div class="scroll"><table><tbody>{each}</tbody></table></div>')


def section(name: str, title: str, *parts: str) -> Html:
    """Return a part of the page, under a heading; `parts` are markup."""
    return Html(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{"".join(parts)}</section>'
    )


def pack(values: npt.NDArray[Any], kind: str) -> dict[str, str]:
    """Return numbers as JSON holds many of them: their bytes, little-endian, in Base64.

    >>> pack(np.array([1.0]), "f4")
    {'type': 'f4', 'data': 'AACAPw=='}
    """
    data = np.ascontiguousarray(values, np.dtype(_PACKED[kind]).newbyteorder("<")).tobytes()
    return {"type": kind, "data": base64.b64encode(data).decode()}


def embed(name: str, data: object) -> Html:
    """Return JSON as an element of the page.

    >>> "<!--" in embed("d", "</script><!--")
    False
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')


def assemble(title: str, body: str) -> str:
    """Return a page: `title` is text, `body` is markup."""
    here = files("zarrow.analysis")
    style = here.joinpath("report.css").read_text(encoding="utf-8")
    script = here.joinpath("report.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
