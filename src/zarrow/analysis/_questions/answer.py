"""Answer — the results of analyses: as JSON values, in a line, in a notebook.

An answer is a frozen dataclass. Its JSON has a value per field, under the field's name: tables become lists
of lines, arrays lists. The field's metadata say if it is shown otherwise (`shown`) or not at all (`HIDDEN`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from zarrow._read.appearance import html_table

__all__ = ["HIDDEN", "Answer", "shown"]


SHOWN_LINES = 10
SHOWN_ITEMS = 6
SHOWN_NUMBERS = 3


class Answer:
    """A result of an analysis."""

    __slots__ = ()

    def __repr__(self) -> str:
        values = {one: getattr(self, one.name) for one in _fields(self)}
        shown = [
            f"{one.name}={_short(value)}"
            for one, value in values.items()
            if one.repr or (isinstance(value, np.ndarray) and value.dtype.kind in "fiu")
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the facts, then the first lines of each table."""
        facts, tables = [], []
        for one in _fields(self):
            value = getattr(self, one.name)
            if isinstance(value, pa.Table):
                lines = [list(map(_cell, line.values())) for line in value.slice(0, SHOWN_LINES).to_pylist()]
                left = value.num_rows - len(lines)
                more = f"<p>… {left:,} more rows</p>" if left else ""
                tables.append(f"<b>{one.name}</b>{html_table(lines, value.column_names)}{more}")
            elif isinstance(value, Mapping) and one.repr:
                facts += [(name, _cell(inner)) for name, inner in value.items()]
            elif one.repr or (isinstance(value, np.ndarray) and value.dtype.kind in "fiu"):
                facts.append((one.name, _cell(value)))
        return f"<div><b>{type(self).__name__}</b>{html_table(facts)}{''.join(tables)}</div>"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, except for times among the keys of groups.

        Returns
        -------
        dict
            Numbers, lists and objects; counts in place of rows.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_store()
        >>> zarrow.analysis.compare(store, store).to_dict()["neighbour_overlap"]
        1.0
        """
        found = {}
        for one in _fields(self):
            name, value = one.metadata.get("json", (one.name, lambda own, one=one: getattr(own, one.name)))
            if name:
                found[name] = _plain(value(self))
        return found


def shown(name: str, value: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the metadata of a dataclass field whose JSON value `value` computes from the answer."""
    return {"json": (name, value)}


HIDDEN = shown("", lambda _: None)
"""The metadata of a dataclass field that is not in the answer's JSON."""


def _fields(answer: Answer) -> tuple[Field[Any], ...]:
    return fields(cast(Any, answer))


def _short(value: Any) -> str:
    """Return a value in few words.

    >>> _short(np.arange(9) / 4), _short(np.zeros((2, 3)))
    ('[0, 0.25, 0.5, …]', '<2 × 3 float64>')
    >>> _short({"auroc": 0.812345678, "curve": list(range(100))})
    "{'auroc': 0.8123, 'curve': [0, 1, 2, 3, 4, 5, …]}"
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, pa.Table):
        return f"<table, {value.num_rows:,} rows of {value.num_columns}>"
    if isinstance(value, np.ndarray):
        if value.ndim == 1:
            first = ", ".join(_short(one) for one in value[:SHOWN_NUMBERS].tolist())
            return f"[{first}{', …' * (len(value) > SHOWN_NUMBERS)}]"
        return f"<{' × '.join(f'{one:,}' for one in value.shape)} {value.dtype}>"
    if isinstance(value, Mapping):
        items = [f"{name!r}: {_short(one)}" for name, one in list(value.items())[:SHOWN_ITEMS]]
        return "{" + ", ".join([*items, "…"] if len(value) > SHOWN_ITEMS else items) + "}"
    if isinstance(value, list | tuple):
        items = [_short(one) for one in value[:SHOWN_ITEMS]]
        text = ", ".join([*items, "…"] if len(value) > SHOWN_ITEMS else items)
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    return repr(value)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, str | Path) else _short(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Answer):
        return value.to_dict()
    if isinstance(value, pa.Table):
        return value.to_pylist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
