"""Filter — a condition on the columns of the table, checked before a row is read.

`read_filter` binds the caller's expression to the table's schema, so that an unknown column, or a
comparison of what cannot be compared, is an error of the call and not of a later batch. It also finds the
columns that the condition needs, which are decoded first. Arrow does not list them, but the text of an
expression names them. A name that stands there for another reason, in a string say, costs one more column
to decode and changes no answer.

Pure. What pyarrow has besides its core is loaded when there is a filter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow._format.arrow import computable_type, with_types
from zarrow.errors import InvalidInputError, unknown_column

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = ["Filter", "read_filter"]

_NO_FIELD = re.compile(r"No match for FieldRef\.\w+\((.*?)\)")


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition that fits the table.

    Parameters
    ----------
    expression : pyarrow.compute.Expression
        The condition.
    columns : list of str
        The columns that it needs, and perhaps others.
    """

    expression: pc.Expression
    columns: list[str]

    def select(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table that pass, in their order."""
        from pyarrow import acero

        steps = [
            acero.Declaration(
                "table_source", acero.TableSourceNodeOptions(with_types(table, computable_type))
            ),
            acero.Declaration("project", acero.ProjectNodeOptions([self.expression], ["passes"])),
        ]
        passes = acero.Declaration.from_sequence(steps).to_table(use_threads=False)
        return table.filter(passes["passes"])


def read_filter(filter: object, schema: pa.Schema, arrays: Collection[str] = ()) -> Filter:
    """Return a caller's filter, checked.

    Parameters
    ----------
    filter : object
        Should be a pyarrow expression.
    schema : pyarrow.Schema
        The table's.
    arrays : collection of str
        Names of the store's arrays, which may be taken for columns.

    Returns
    -------
    Filter
        Fits the schema.

    Raises
    ------
    UnknownNameError
        If it names a column that the schema does not have.
    InvalidInputError
        If it is not an expression, or not a condition on these columns.

    Examples
    --------
    >>> import pyarrow.compute as pc
    >>> schema = pa.schema({"row": pa.int64(), "prob": pa.float32(), "query": pa.string()})
    >>> read_filter((pc.field("prob") > 0.9) & (pc.field("row") < 10), schema).columns
    ['row', 'prob']
    """
    from pyarrow.compute import Expression

    if not isinstance(filter, Expression):
        raise InvalidInputError(
            "filter must be a pyarrow expression, such as pyarrow.compute.field('occurs_prob') > 0.9, "
            f"got {filter!r}"
        )
    try:
        kind = _result_type(filter, schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        if found := _NO_FIELD.search(str(error)):
            raise unknown_column(found[1], schema.names, arrays) from None
        remedy = "; compare float16 with a Python float or a float32" if "halffloat" in str(error) else ""
        raise InvalidInputError(
            f"the filter {filter} does not fit the table's columns: {error}{remedy}"
        ) from error
    if not pa.types.is_boolean(kind):
        raise InvalidInputError(f"the filter {filter} must be true or false for each row, it gives {kind}")
    text = str(filter)
    by_position = "FieldPath" in text  # pc.field(0): means another column if one is missing
    return Filter(filter, [name for name in schema.names if by_position or _is_named(name, text)])


def _is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _result_type(filter: pc.Expression, schema: pa.Schema) -> pa.DataType:
    """Return the type that an expression has for rows of a schema."""
    import pyarrow.dataset as ds

    scanner = ds.dataset(with_types(schema, computable_type).empty_table()).scanner(
        columns={"passes": filter}
    )
    return scanner.projected_schema.field(0).type
