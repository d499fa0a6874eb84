"""Array forms — in which dtype each array of a store is read, and in which a rewritten store has it.

An array that stays as it is is read as it is stored: of a quantized one the integers, whose scales are copied
as any column is, so that nothing is rounded twice. Any other is read as floats, which are cast, or quantized
by the writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.given import dtype_name
from zarrow._format.quantized import QUANTIZED
from zarrow._read.ragged_rows import StoreRagged
from zarrow.errors import InvalidInputError, unknown_name
from zarrow.store import QuantizedArray, Store, StoreArray

__all__ = ["ArrayForms"]

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class ArrayForms:
    """The arrays of a store on their way into another one.

    Parameters
    ----------
    sources : dict of str to StoreArray or StoreRagged
        What is read.
    dtypes : dict of str to str
        The dtype of what is written, before it is quantized.
    quantized : dict of str to str
        The arrays that the new store quantizes, as `Writer` takes them.
    dropped : frozenset of str
        Columns of scales that the new store does not have.
    """

    sources: dict[str, StoreArray | StoreRagged]
    dtypes: dict[str, str]
    quantized: dict[str, str]
    dropped: frozenset[str]

    @classmethod
    def of(cls, store: Store, dtypes: Mapping[str, str] | None = None) -> ArrayForms:
        """Return the forms of a store's arrays, some of them changed.

        Parameters
        ----------
        store : Store
            The store that is read.
        dtypes : mapping of str to str, optional
            What to change: names of floating-point types, or ``"int8"`` to quantize.

        Raises
        ------
        InvalidInputError
            If an array is not of floats, or would be of something else.
        UnknownNameError
            If there is no such array.
        """
        sources: dict[str, StoreArray | StoreRagged] = {**store.arrays, **store.ragged}
        kept = {name: array.dtype.name for name, array in store.ragged.items()}
        quantized, dropped = {}, set()
        asked = {name: dtype_name(dtype) for name, dtype in (dtypes or {}).items()}
        for name in asked:
            if name not in sources:
                raise unknown_name("array", name, sources)
            if name in kept:
                raise InvalidInputError(f"dtypes: array {name!r} is ragged, and keeps its dtype {kept[name]}")
        for name, array in store.arrays.items():
            dtype = asked.get(name, QUANTIZED if isinstance(array, QuantizedArray) else array.dtype.name)
            if name in asked and (dtype not in (*_FLOATS, QUANTIZED) or array.dtype.kind != "f"):
                raise InvalidInputError(
                    f"dtypes: an array of floats can be stored as {', '.join(_FLOATS)} or {QUANTIZED}, got "
                    f"{dtype} for {name!r} of {array.dtype.name}"
                )
            if isinstance(array, QuantizedArray):
                if dtype == QUANTIZED:
                    sources[name] = array.stored
                else:
                    dropped.add(array.scale)
            if dtype == QUANTIZED and array.dtype.kind == "f":
                quantized[name] = QUANTIZED
            kept[name] = sources[name].dtype.name if dtype == QUANTIZED else dtype
        return cls(sources, kept, quantized, frozenset(dropped))

    @property
    def changed(self) -> list[str]:
        """The arrays that change their dtype."""
        return [
            name
            for name, array in self.sources.items()
            if array.dtype.name != self.dtypes[name] or (name in self.quantized and array.dtype.kind == "f")
        ]

    def converted(self, vectors: Mapping[str, Any], rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return vectors that were read from `sources` in the dtypes in which they are written.

        Raises
        ------
        InvalidInputError
            If a finite value is infinite in its new dtype; it names the row.
        """
        return {name: _cast(name, values, self.dtypes[name], rows) for name, values in vectors.items()}


def _cast(name: str, values: Any, dtype: str, rows: npt.NDArray[np.int64]) -> Any:
    if values.dtype.name == dtype:
        return values
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    lost = np.isinf(found) & ~np.isinf(values)
    if lost.any():
        place = np.unravel_index(int(np.argmax(lost)), lost.shape)
        raise InvalidInputError(
            f"array {name!r}: {dtype} cannot hold {values[place]} of row {rows[place[0]]}: choose a wider "
            "dtype"
        )
    return found
