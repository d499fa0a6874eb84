"""How does a command line ask about vectors, and how is the answer shown?

Conditions and keys as text become filters and values of the columns' types; tables, facts and metrics become
what fits a terminal.

Place: below `_analysis_commands`. Nothing is read but schemas.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from zarrow._console import err, out
from zarrow.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

    from zarrow.store import Store

__all__ = [
    "SHOWN_ROWS",
    "bar",
    "cell",
    "err",
    "grid_of",
    "key_of",
    "names",
    "open_store",
    "out",
    "print_json",
    "row_number",
    "show",
    "show_facts",
    "show_left_out",
    "show_metric_table",
    "show_metrics",
    "where_of",
]


SHOWN_ROWS = 30
CELL_CHARACTERS = 28
CONDITION = re.compile(r"\s*(.+?)\s*(==|!=|>=|<=|=|>|<)\s*(.*?)\s*")


def open_store(path: Path) -> Store:
    """Open a store; of an incomplete one the rows so far, and say so."""
    import zarrow

    store = zarrow.open(path, partial=True)
    if not store.complete:
        err.print(f"[yellow]the store is incomplete: {store.num_rows:,} rows so far[/]")
    return store


def names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def row_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--rows takes row numbers, got {text!r}") from None


def _value(store: Store, name: str, text: str) -> pa.Scalar:
    """Return a value of a column's type."""
    import pyarrow as pa

    if name not in store.schema.names:
        known = ", ".join(store.schema.names)
        raise UnknownNameError(f"there is no column {name!r}. There are: {known}")
    kind = store.schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        return pa.scalar(text).cast(kind)
    except pa.ArrowException as error:
        raise InvalidInputError(f"{text!r} is no value of column {name!r}, of type {kind}") from error


def key_of(store: Store, given: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa

    pairs = [one.partition("=") for one in given]
    if any(not equals for _, equals, _ in pairs):
        raise typer.BadParameter("--key must be COLUMN=VALUE")
    return {name.strip(): pa.array([_value(store, name.strip(), text.strip())]) for name, _, text in pairs}


def where_of(store: Store, conditions: Sequence[str] | None) -> pc.Expression | None:
    """Return the filter that conditions on columns make together."""
    import operator

    import pyarrow.compute as pc

    compare_by = {
        "==": operator.eq,
        "=": operator.eq,
        "!=": operator.ne,
        ">=": operator.ge,
        "<=": operator.le,
        ">": operator.gt,
        "<": operator.lt,
    }
    whole = None
    for text in conditions or ():
        found = CONDITION.fullmatch(text)
        if found is None:
            raise typer.BadParameter(f"--where must be like query=stroke or occurs_prob>0.9, got {text!r}")
        name, sign, value = found.groups()
        one = compare_by[sign](pc.field(name), _value(store, name, value))
        whole = one if whole is None else whole & one
    return whole


# What is answered


@contextmanager
def bar(*, running: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows progress on standard error; it is gone when all is done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("running" if running else "reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def grid_of(titles: dict[str, bool]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 2))
    for title, right in titles.items():
        grid.add_column(escape(title), justify="right" if right else "left", no_wrap=True)
    return grid


def show_facts(facts: dict[str, str]) -> None:
    grid = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in facts.items():
        grid.add_row(f"  {escape(name)}", escape(value))
    out.print(grid)


def show_left_out(counts: dict[str, int]) -> None:
    reasons = [f"{count:,} for {reason}" for reason, count in counts.items() if count]
    if reasons:
        out.print(f"[dim]rows left out: {', '.join(reasons)}[/]")


def show(table: pa.Table, limit: int = SHOWN_ROWS) -> None:
    """Print the first rows of a table."""
    import pyarrow as pa

    grid = grid_of(
        {
            field.name: pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
            for field in table.schema
        }
    )
    for row in zip(*(column.to_pylist() for column in table.slice(0, limit).columns), strict=True):
        grid.add_row(*(escape(cell(value)) for value in row))
    out.print(grid)
    if table.num_rows > limit:
        out.print(f"[dim]… {table.num_rows - limit:,} more; --json has all of them[/]")


def show_metrics(overall: dict[str, Any]) -> None:
    """Print metrics, each with its interval."""
    shown = {}
    for name, value in overall.items():
        if name.endswith(("_low", "_high")):
            continue
        low, high = overall.get(f"{name}_low"), overall.get(f"{name}_high")
        interval = "" if low is None else f"  [{low:.4g}, {high:.4g}]"
        shown[name] = cell(value) + interval
    show_facts(shown)


def show_metric_table(table: pa.Table) -> None:
    """Print a table of metrics, the intervals of the first one only."""
    first = next((name for name in table.column_names if name.endswith("_low")), "_low").removesuffix("_low")
    bounds = {f"{first}_low", f"{first}_high"}
    ends = ("_low", "_high")
    kept = [name for name in table.column_names if not name.endswith(ends) or name in bounds]
    show(table.select(kept))
