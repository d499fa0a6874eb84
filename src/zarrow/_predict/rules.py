"""Prediction rules — which entries of a prediction become columns, which arrays, and which are ignored.

`PredictionRules` decides once, on the first prediction, and holds every later one to it:

1. an entry that `columns`, `arrays` or `ignore` names is what the option says;
2. of the others, an entry with one value per row is a column, and one with more axes an array, unless the
   option for that kind was given;
3. any other entry is an error that names it: nothing is left out silently.

Tensors are recognised by their attributes; torch is not imported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format.layout import RESERVED_COLUMNS
from zarrow.errors import BatchError, InvalidInputError, unknown_name

__all__ = ["EntryNames", "PredictionRules"]

EntryNames = Sequence[str] | Mapping[str, str]
"""Names of entries, or a mapping of names in the store to names of entries."""


def _renaming(names: EntryNames | None, what: str) -> dict[str, str] | None:
    """Return name in the store -> name of the entry; None for "by rule"."""
    if names is None:
        return None
    if isinstance(names, str):
        raise InvalidInputError(
            f"{what} must be a sequence of names or a mapping, got the string {names!r}: [{names!r}]"
        )
    renaming = dict(names) if isinstance(names, Mapping) else dict(zip(names, names, strict=True))
    for name, entry in renaming.items():
        if not all(isinstance(one, str) for one in (name, entry)):
            raise InvalidInputError(
                f"{what} must map names in the store to names of entries, got {name!r}: {entry!r}"
            )
        if name in RESERVED_COLUMNS:
            raise InvalidInputError(
                f"{what}: the name {name!r} is reserved: store the entry under another name"
            )
    return renaming


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"


def axes(value: Any) -> int | None:
    """Return how many axes a value has; None if it has no rows.

    Parameters
    ----------
    value : tensor, array, Arrow array, sequence, or anything
        An entry of a prediction.

    Returns
    -------
    int or None
        1 for a sequence, whatever its elements.
    """
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return 1
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return len(value.shape)
    return 1 if isinstance(value, list | tuple) else None


class PredictionRules:
    """Splits predictions into columns and arrays.

    Parameters
    ----------
    columns : sequence or mapping of str, optional
        Entries that become columns; by default those with one value per row.
    arrays : sequence or mapping of str, optional
        Entries that become arrays; by default those with more than one axis.
    ignore : collection of str
        Entries that are left out.
    beside : collection of str
        Entries that need not be stored, but must be there: masks of other entries.
    typed : collection of str
        Names in the store for which a dtype was given.

    Raises
    ------
    InvalidInputError
        If the names contradict each other.
    """

    def __init__(
        self,
        columns: EntryNames | None = None,
        arrays: EntryNames | None = None,
        ignore: Collection[str] = (),
        beside: Collection[str] = (),
        typed: Collection[str] = (),
    ) -> None:
        if isinstance(ignore, str):
            raise InvalidInputError(
                f"ignore must be a collection of names, got the string {ignore!r}: [{ignore!r}]"
            )
        self._columns = _renaming(columns, "columns")
        self._arrays = _renaming(arrays, "arrays")
        self._ignore = frozenset(ignore)
        self._beside = frozenset(beside)
        self._typed = tuple(typed)
        both = (self._columns or {}).keys() & (self._arrays or {}).keys()
        if both:
            raise InvalidInputError(f"{sorted(both)} cannot be both columns and arrays: rename one of them")
        used = {*(self._columns or {}).values(), *(self._arrays or {}).values()} & self._ignore
        if used:
            raise InvalidInputError(f"{sorted(used)} cannot be both stored and ignored")
        self._chosen: tuple[dict[str, str], dict[str, str]] | None = None
        self._wanted = self._known = frozenset[str]()

    def split(self, prediction: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the prediction's columns and arrays by their names in the store.

        Parameters
        ----------
        prediction : mapping of str to tensor, array or sequence
            What the step returned.

        Returns
        -------
        dict, dict
            The values, unchanged.

        Raises
        ------
        BatchError
            If the prediction is not a mapping, lacks an entry, or has one that no rule covers.
        """
        if prediction is None:
            raise BatchError(
                "predict_step must return a dict of tensors, got None: return the values to store "
                "(a step without a return statement returns None)"
            )
        if not isinstance(prediction, Mapping):
            raise BatchError(
                f"predict_step must return a dict of tensors, got {_describe(prediction)}: "
                'name it: {"query_embed": ...}'
            )
        columns, arrays = self._choose(prediction)
        if not self._wanted <= prediction.keys() <= self._known:
            self._refuse(prediction, columns, arrays)
        return (
            {name: prediction[entry] for name, entry in columns.items()},
            {name: prediction[entry] for name, entry in arrays.items()},
        )

    def _refuse(
        self, prediction: Mapping[str, Any], columns: Mapping[str, str], arrays: Mapping[str, str]
    ) -> None:
        """Raise which entries are missing, or unknown."""
        for kind, chosen in (("column", columns), ("array", arrays)):
            for name, entry in chosen.items():
                if entry not in prediction:
                    raise BatchError(
                        f"the prediction lacks the entry {entry!r}, which {kind} {name!r} is made of; "
                        f"it has {list(prediction)}"
                    )
        for entry in sorted(self._beside - prediction.keys()):
            raise BatchError(
                f"the prediction lacks the entry {entry!r}, which ragged= names as a mask or lengths; "
                f"it has {list(prediction)}"
            )
        unknown = [entry for entry in prediction if entry not in self._known]
        raise BatchError(
            f"the prediction has entries that are neither stored nor ignored: {unknown}: "
            f"name them in columns= or arrays=, or leave them out with ignore={unknown}"
        )

    def _choose(self, prediction: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        if self._chosen is None:
            named = {*(self._columns or {}).values(), *(self._arrays or {}).values(), *self._ignore}
            named |= self._beside
            columns, arrays = dict(self._columns or {}), dict(self._arrays or {})
            for entry, value in prediction.items():
                if entry in named:
                    continue
                count = axes(value)
                if not count:
                    what = "no rows"
                    if count is not None:
                        what = (
                            "no axis, so it is one value for the whole batch (squeeze() drops the axis of a "
                        )
                        what += "batch of one row: use squeeze(-1))"
                    raise BatchError(
                        f"the entry {entry!r} is {_describe(value)}, which has {what}: "
                        f"return one value per row, or leave it out with ignore=[{entry!r}]"
                    )
                if count == 1 and self._columns is None:
                    columns[entry] = entry
                elif count > 1 and self._arrays is None:
                    arrays[entry] = entry
            if not columns and not arrays:
                raise BatchError(
                    "the prediction has no column and no array, so there is nothing to store; "
                    f"it has {list(prediction)}"
                )
            for name in self._typed:
                if name not in columns and name not in arrays:
                    raise BatchError(f"dtypes: {unknown_name('entry', name, [*columns, *arrays])}")
            self._chosen = columns, arrays
            self._wanted = frozenset({*columns.values(), *arrays.values()}) | self._beside
            self._known = self._wanted | self._ignore
        return self._chosen


def count_rows(columns: Mapping[str, Any], arrays: Mapping[str, Any], expected: int | None, why: str) -> int:
    """Return how many rows a prediction has.

    Parameters
    ----------
    columns, arrays : mapping of str to tensor, array or sequence
        What `PredictionRules.split` returned.
    expected : int, optional
        The number that it must have, if known.
    why : str
        What determines that number, for the message.

    Returns
    -------
    int
        The common length.

    Raises
    ------
    BatchError
        If the lengths differ; the message names the column or array.
    """
    rows = expected
    for kind, values in (("column", columns), ("array", arrays)):
        for name, value in values.items():
            count = axes(value)
            if (
                count is None
                or count == 0
                or (kind == "array" and count < 2)
                or (kind == "column" and count > 1)
            ):
                rule = "one value per row" if kind == "column" else "one vector per row"
                remedy = (
                    "squeeze() drops the axis of a batch of one row: squeeze(-1)"
                    if count == 0
                    else "reshape it"
                )
                raise BatchError(f"{kind} {name!r}: expected {rule}, got {_describe(value)}: {remedy}")
            if rows is None:
                rows, why = len(value), f"{kind} {name!r}"
            if len(value) != rows:
                raise BatchError(f"{kind} {name!r}: expected {rows} rows, as {why} has, got {len(value)}")
    assert rows is not None
    return rows


def check_cast(name: str, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> None:
    """Raise `BatchError` if a cast turned finite values into infinite ones.

    Parameters
    ----------
    name : str
        The array.
    before, after : array, shape (rows, ...)
        The same values before and after the cast.
    """
    lost = np.isinf(after) & ~np.isinf(before)
    if lost.any():
        row = int(np.argwhere(lost)[0][0])
        raise BatchError(
            f"array {name!r}: row {row} of the batch has {before[lost][0]!r}, which {after.dtype} cannot "
            "hold: store it in a wider dtype"
        )
