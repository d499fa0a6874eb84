"""Does a filter fit the table, and which columns does it ask?

Arrow's expressions do not say; but Arrow refuses to bind one to a schema that lacks a column of it.

Place: tier 2, used by `columns` and `store`. Pure. Loads what pyarrow has beside its core when there is a
filter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = ["asked_columns"]

_NO_FIELD = re.compile(r"No match for FieldRef\.\w+\((.*?)\)")


def asked_columns(filter: object, schema: pa.Schema) -> list[str]:
    """Return the columns that a filter asks.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If the filter is none, or compares what cannot be compared.
    """
    from pyarrow.compute import Expression

    if not isinstance(filter, Expression):
        raise InvalidInputError(
            "filter must be a pyarrow expression, such as pyarrow.compute.field('occurs_prob') > 0.9, "
            f"got {filter!r}"
        )
    try:
        kind = _bound(filter, schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        if found := _NO_FIELD.search(str(error)):
            raise unknown_name("column", found[1], schema.names) from None
        raise InvalidInputError(f"the filter {filter} does not fit the table's columns: {error}") from error
    if not pa.types.is_boolean(kind):
        raise InvalidInputError(f"the filter {filter} is no condition: it gives {kind}, not true or false")
    asked = []
    for index, name in enumerate(schema.names):  # an expression does not tell
        try:
            _bound(filter, schema.remove(index))
        except pa.ArrowInvalid:
            asked.append(name)
    return asked


def _bound(filter: pc.Expression, schema: pa.Schema) -> pa.DataType:
    """Return the type that an expression has for rows of a schema."""
    import pyarrow.dataset as ds

    scanner = ds.dataset(schema.empty_table()).scanner(columns={"passes": filter})
    return scanner.projected_schema.field(0).type
