"""Appearance — what a store looks like where it is shown: a line in a session, a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from zarrow._format.spec import rows_of_expected
from zarrow._read.arrays import StoreArray
from zarrow._read.contents import Contents
from zarrow._read.ragged_rows import StoreRagged
from zarrow.errors import printable

__all__ = ["as_html", "as_line", "html_table", "nested_lines"]


def as_line(path: Path, contents: Contents | None) -> str:
    """Return the store's repr; its contents are None once it is closed."""
    if contents is None:
        return f"<zarrow.Store {str(path)!r}, closed>"
    arrays = ", ".join(
        [
            *(f"{printable(name)} {array.row_shape}" for name, array in contents.arrays.items()),
            *(f"{printable(name)} any × {array.vector_shape}" for name, array in contents.ragged.items()),
        ]
    )
    return f"<zarrow.Store {str(path)!r}: {_state(contents)}; {arrays or 'no arrays'}>"


def as_html(path: Path, contents: Contents) -> str:
    """Return what a notebook shows of an open store: its arrays and columns, with shapes and types."""
    keys = contents.view.spec.keys
    named: dict[str, StoreArray | StoreRagged] = {
        **contents.arrays,
        **contents.ragged,
        **contents.derived.arrays,
    }
    lines = [
        *((name, f"array {_shape(array.shape)}", array.dtype.name) for name, array in named.items()),
        *(
            (one.name, "key" if one.name in keys else "column", str(one.type))
            for one in contents.columns.schema
        ),
    ]
    title = f"{escape(printable(path.name))}: {_state(contents)}"
    return f"<div><b>zarrow.Store</b> {title}{html_table(lines)}</div>"


def html_table(lines: Iterable[Iterable[object]], titles: Iterable[object] = ()) -> str:
    """Return a table in HTML, whose cells may hold anything."""

    def row(cells: Iterable[object], tag: str) -> str:
        shown = "".join(f"<{tag} style=text-align:left>{escape(printable(cell))}</{tag}>" for cell in cells)
        return f"<tr>{shown}</tr>" if shown else ""

    return f"<table>{row(titles, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"


def nested_lines(name: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield nested facts as lines: the plain values of a mapping in one, then each mapping within it.

    >>> for line in nested_lines(
    ...     "run", {"seed": 3, "model": {"type": "Net", "layers": [4, 2], "device": None}}
    ... ):
    ...     print(*line, sep=": ")
    run: seed 3
    run model: type Net · layers 4, 2
    """
    plain, nested = [], []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            nested.append((key, value))
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            nested += [(f"{key} {place}", one) for place, one in enumerate(value) if isinstance(one, Mapping)]
        elif isinstance(value, list | tuple):
            plain.append(f"{key} {', '.join(map(str, value))}")
        elif value is not None:
            plain.append(f"{key} {value}")
    if plain:
        yield name, " · ".join(plain)
    for key, inner in nested:
        yield from nested_lines(f"{name} {key}".removeprefix("provenance ").strip(), inner)


def _shape(shape: tuple[int | None, ...]) -> str:
    return " × ".join("any" if axis is None else f"{axis:,}" for axis in shape)


def _state(contents: Contents) -> str:
    view = contents.view
    expected, committed = view.snapshot.expected_rows, view.snapshot.rows
    state = "complete" if view.snapshot.complete else f"incomplete, {committed:,} committed"
    if view.snapshot.complete and view.rows < (expected or 0):
        state = "finalized without the others"
    return f"{rows_of_expected(view.rows, expected)}, {state}"
