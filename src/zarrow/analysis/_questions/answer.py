"""Answer — the results of analyses as JSON values.

An answer is a frozen dataclass. Its JSON has a value per field, under the field's name: tables become lists
of lines, arrays lists. The field's metadata say if it is shown otherwise (`shown`) or not at all (`HIDDEN`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["HIDDEN", "Answer", "shown"]


class Answer:
    """A result of an analysis."""

    __slots__ = ()

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
        for one in fields(self):  # type: ignore[arg-type]
            name, value = one.metadata.get("json", (one.name, lambda own, one=one: getattr(own, one.name)))
            if name:
                found[name] = _plain(value(self))
        return found


def shown(name: str, value: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the metadata of a dataclass field whose JSON value `value` computes from the answer."""
    return {"json": (name, value)}


HIDDEN = shown("", lambda _: None)
"""The metadata of a dataclass field that is not in the answer's JSON."""


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
