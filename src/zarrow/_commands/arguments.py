"""Arguments — the options that commands share, and what their texts mean.

One type per kind of argument: a store (`StorePath`, `open_store`), comma-separated names (`comma_list`), a
condition on rows (`Where`, `where_of`), a key (`key_of`). Texts become values of the columns' types; of a
store only the schema is read.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from zarrow._commands.terminal import err, escape, say
from zarrow._format.spec import rows_of_expected, safe_rows
from zarrow._storage.objects import is_remote, named
from zarrow.errors import IncompleteStoreError, InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

    from zarrow.several import Union
    from zarrow.store import Store

__all__ = [
    "Array",
    "Arrays",
    "AsJson",
    "By",
    "Columns",
    "Label",
    "Names",
    "Neighbours",
    "Probability",
    "Seed",
    "StorePath",
    "StorePaths",
    "Where",
    "comma_list",
    "key_of",
    "open_store",
    "open_stores",
    "out_option",
    "row_numbers",
    "where_of",
]

_CONDITION = re.compile(r"\s*(.+?)\s*(==|!=|>=|<=|=|>|<)\s*(.*?)\s*")
_OPERATORS = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

Names = Sequence[str]
"""What `comma_list` makes of a text; empty if the option was not given."""


def split_names(given: str | Names) -> Names:
    """Return comma-separated names without the blanks around them; empty ones are dropped.

    >>> split_names("query, duration_days,")
    ['query', 'duration_days']
    """
    parts = given.split(",") if isinstance(given, str) else given
    return [name.strip() for name in parts if name.strip()]


def comma_list(help: str, *flags: str, default: str | bool = False, metavar: str = "NAMES") -> Any:
    """Return an option of comma-separated names; `default` describes what holds without it."""
    return Option(*flags, parser=split_names, metavar=metavar, help=help, show_default=default)


def out_option(help: str, **more: Any) -> Any:
    """Return the option for what a command writes, which is called the same for all of them."""
    return Option("--out", "-o", help=help, **more)


StorePath = Annotated[Path, Argument(metavar="STORE", help="A store, e.g. run.zarrow.", show_default=False)]
StorePaths = Annotated[
    list[Path],
    Argument(metavar="STORE...", help="A store, or those of several models.", show_default=False),
]
Arrays = Annotated[Names, comma_list("Arrays, comma-separated.", default="all that are not derived")]
Columns = Annotated[Names, comma_list("Columns, comma-separated.", default="all")]
Array = Annotated[
    str | None, Option("--array", metavar="NAME", help="Array to use.", show_default="the only one")
]
By = Annotated[Names, comma_list("Columns to group by, comma-separated.", "--by")]
Probability = Annotated[
    str | None,
    Option("--probability", metavar="NAME", help="Column of probabilities.", show_default="the likely one"),
]
Label = Annotated[
    str | None, Option("--label", metavar="NAME", help="Column of labels.", show_default="the likely one")
]
Where = Annotated[
    list[str] | None,
    Option(
        "--where",
        metavar="CONDITION",
        help="Filter, e.g. query=stroke or prob>0.9; repeat to combine with AND.",
    ),
]
Neighbours = Annotated[int, Option("-k", metavar="K", min=1, help="Number of neighbours.")]
Seed = Annotated[int, Option("--seed", help="Random seed.")]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON.")]


def open_store(path: Path, *, partial: bool = False, remedy: str = "") -> Store:
    """Open a store.

    Parameters
    ----------
    path : Path
        The store.
    partial : bool
        Whether an incomplete store will do: its rows so far are shown, and a warning says so.
    remedy : str
        What else to try if an incomplete store will not do.
    """
    import zarrow

    try:
        return zarrow.open(path)
    except IncompleteStoreError as error:
        if not partial:
            with zarrow.open(path, partial=True) as store:
                rows = safe_rows(store.num_rows, store.expected_rows)
                lacking = store.num_rows < (store.expected_rows or 0)
            spools = ", besides those in the spools of its writers" if is_remote(path) else ""
            raise IncompleteStoreError(
                f"{named(path)}: the store is incomplete: {rows}{spools}: resume its run, or complete it as "
                f"it is: zarrow finalize {'--partial ' * lacking}{named(path)}{remedy}"
            ) from error
    store = zarrow.open(path, partial=True)
    if not store.complete:
        rows = rows_of_expected(store.num_rows, store.expected_rows)
        say(f"[yellow]{escape(named(path))} is incomplete: {rows} so far[/]", err)
    return store


def open_stores(paths: Sequence[Path], *, partial: bool = False) -> Store | Union:
    """Open a store, or those of several models as one view with a column ``model``."""
    from zarrow.several import model_names, union

    if len(paths) == 1:
        return open_store(paths[0], partial=partial)
    names = model_names([path.absolute() for path in paths])
    stores = [open_store(path, partial=partial) for path in paths]
    try:
        return union(dict(zip(names, stores, strict=True)))
    finally:  # the view has opened them itself
        for store in stores:
            store.close()


def row_numbers(given: Names, count: int) -> list[int]:
    """Return the row numbers of ``--rows``; negative ones count from the end."""
    try:
        rows = [int(row) for row in given]
    except ValueError:
        raise BadParameter(f"--rows takes row numbers, got {','.join(given)!r}") from None
    for row in rows:
        if not -count <= row < count:
            raise BadParameter(f"--rows: the store has {count} rows, got {row}")
    return rows


def key_of(store: Store, given: Sequence[str]) -> dict[str, pa.Array]:
    """Return the key of ``--key COLUMN=VALUE``, one value per column."""
    import pyarrow as pa

    pairs = [one.partition("=") for one in given]
    if any(not equals for _, equals, _ in pairs):
        raise BadParameter("--key must be COLUMN=VALUE")
    return {name.strip(): pa.array([_value(store, name.strip(), text.strip())]) for name, _, text in pairs}


def where_of(store: Store | Union, conditions: Sequence[str] | None) -> pc.Expression | None:
    """Return the filter that all conditions of ``--where`` make together; None if there is none."""
    import pyarrow.compute as pc

    from zarrow._format.arrow import computable_type

    whole = None
    for text in conditions or ():
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise BadParameter(f"--where must be like query=stroke or prob>0.9, got {text!r}")
        name, sign, value = found.groups()
        wanted = _value(store, name, value)
        one = _OPERATORS[sign](pc.field(name), wanted.cast(computable_type(wanted.type)))
        whole = one if whole is None else whole & one
    return whole


def _value(store: Store | Union, name: str, text: str) -> pa.Scalar:
    """Return a value of a column's type."""
    import pyarrow as pa

    from zarrow._format.arrow import value_type

    if name not in store.schema.names:
        raise unknown_name("column", name, store.schema.names)
    kind = value_type(store.schema.field(name).type)
    try:
        return pa.scalar(text).cast(kind)
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"{text!r} is not a value of column {name!r}, whose type is {kind}"
        ) from error
