"""Contents — what a store hands out of one view, each part made on first use and kept.

Opening a store takes its view and nothing else. Columns, arrays, derived arrays, the key index and a
connection for SQL are made when they are first needed, all of the same rows. A refreshed store has a new
view, and so new contents; arrays of the old ones keep showing the old rows.

Reads only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zarrow._format.array_spec import ArraySpec
from zarrow._read.arrays import StoreArray
from zarrow._read.columns import NarrowColumns
from zarrow._read.derived_arrays import DerivedArrays, find_derived
from zarrow._read.key_index import find_index, key_schema
from zarrow._read.quantized_array import QuantizedArray
from zarrow._read.ragged_rows import StoreRagged
from zarrow._read.view import View
from zarrow.errors import UnknownNameError, unknown_name

if TYPE_CHECKING:
    import duckdb

    from zarrow._read.keys import IndexFile

__all__ = ["Contents"]


class Contents:
    """A view, and what was made of it so far.

    Parameters
    ----------
    view : View
        The rows.
    reopen : callable and its arguments
        Opens the store where an array of it is unpickled.
    """

    def __init__(self, view: View, reopen: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        self.view = view
        self.reopen = reopen

    @cached_property
    def columns(self) -> NarrowColumns:
        """The narrow columns."""
        return NarrowColumns(self.view)

    @cached_property
    def arrays(self) -> Mapping[str, StoreArray]:
        """The arrays by name."""
        spec = self.view.spec
        own = [one for one in spec.arrays if not one.is_ragged and one.name not in spec.extents]
        return MappingProxyType({one.name: self._array(one) for one in own})

    def _array(self, array: ArraySpec) -> StoreArray:
        if array.scale is None:
            return StoreArray(self.view, array, self.reopen)
        return QuantizedArray(self.view, array, self.reopen, self.columns)

    @cached_property
    def ragged(self) -> Mapping[str, StoreRagged]:
        """The ragged arrays by name."""
        found = self.view.spec.ragged
        return MappingProxyType({one.name: StoreRagged(self.view, one, self.reopen) for one in found})

    @cached_property
    def derived(self) -> DerivedArrays:
        """The derived arrays, and why others are unusable."""
        return find_derived(self.view, self.reopen)

    @cached_property
    def key_schema(self) -> pa.Schema:
        """The key columns; `InvalidInputError` if there are none."""
        return key_schema(self.view)

    @cached_property
    def index(self) -> IndexFile:
        """The index of the keys; `InvalidInputError` if there are none."""
        return find_index(self.view, self.columns)

    @cached_property
    def sql(self) -> duckdb.DuckDBPyConnection:
        """A connection with the table ``predictions``."""
        from zarrow._read import engines

        return engines.duckdb_connection(*self.columns.full_parts())

    def array(self, name: str) -> StoreArray | StoreRagged:
        """Return the array of that name, derived or not; `UnknownNameError` if there is none."""
        try:
            if name in self.arrays:
                return self.arrays[name]
            if name in self.ragged:
                return self.ragged[name]
            if name in self.derived.unusable:
                raise self.derived.unusable[name]
            return self.derived.arrays[name]
        except (KeyError, TypeError):
            if name in self.columns.schema.names:
                raise UnknownNameError(
                    f"{name!r} is a column of the table, not an array: use table([{name!r}])"
                ) from None
            raise unknown_name("array", name, [*self.arrays, *self.ragged, *self.derived.arrays]) from None
