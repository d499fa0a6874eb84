"""How does a command line ask about vectors, and how is the answer shown?

Conditions and keys as text become filters and values of the columns' types; tables, facts and metrics become
what fits a terminal.

Place: below `analyse`. Nothing is read but schemas.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from zarrow._commands.console import err, out
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
    "show_columns",
    "show_facts",
    "show_left_out",
    "show_metric_table",
    "show_metrics",
    "where_of",
]


SHOWN_ROWS = 30
CELL_CHARACTERS = 28
GAP = 2
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


def row_number(text: str, count: int) -> int:
    try:
        row = int(text)
    except ValueError:
        raise typer.BadParameter(f"--rows takes row numbers, got {text!r}") from None
    if not -count <= row < count:
        raise typer.BadParameter(f"--rows takes numbers of rows, of which there are {count}, got {row}")
    return row


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
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("running" if running else "reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(found: dict[str, Any]) -> None:
    """Print JSON as its standard has it: no NaN, no infinity."""
    sys.stdout.write(json.dumps(_finite(found), indent=2, default=str, allow_nan=False) + "\n")


def _finite(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _finite(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def grid_of(titles: dict[str, bool]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, GAP // 2))
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


def show(table: pa.Table, limit: int = SHOWN_ROWS, keys: int = 1) -> None:
    """Print the first rows of a table; columns for which there is no room below, beside the keys again."""
    import pyarrow as pa

    right = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in table.schema]
    columns = table.slice(0, limit).to_pydict().values()
    # Numbers of rows and patients are there to be copied: no separators.
    cells = [[str(one) if type(one) is int else cell(one) for one in column] for column in columns]
    widths = [
        max(map(cell_len, [name, *values])) for name, values in zip(table.column_names, cells, strict=True)
    ]
    for number, places in enumerate(_side_by_side(widths, keys, out.width)):
        if number:
            out.print()
        grid = grid_of({table.column_names[place]: right[place] for place in places})
        for row in zip(*(cells[place] for place in places), strict=True):
            grid.add_row(*map(escape, row))
        out.print(grid)
    if table.num_rows > limit:
        out.print(f"[dim]… {table.num_rows - limit:,} more; --json has all of them[/]")


def _side_by_side(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Return which columns to print together, the keys with all.

    >>> _side_by_side([8, 10, 10, 10], 1, 34)
    [[0, 1, 2], [0, 3]]
    """
    together: list[list[int]] = [list(range(min(keys, len(widths))))]
    for place in range(keys, len(widths)):
        wanted = sum(widths[one] + GAP for one in [*together[-1], place]) - GAP
        if wanted > room and len(together[-1]) > keys:
            together.append(list(range(keys)))
        together[-1].append(place)
    return together


def show_columns(table: pa.Table, keys: int) -> None:
    """Print what `zarrow.analysis.describe` says of columns; of times as times, in a table of their own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    timed = pc.match_substring_regex(table["type"], "^(timestamp|date)")
    numbers, times = table.filter(pc.invert(timed)), table.filter(timed)
    if numbers.num_rows:
        show(numbers.drop_columns(["exact", "q05", "q95"]), keys=keys)
    if numbers.num_rows and times.num_rows:
        out.print()
    if times.num_rows:
        counted = times.select([*times.column_names[:keys], "type", "count", "nulls", "distinct"])
        zone = " UTC" if pc.any(pc.match_substring(times["type"], "tz=")).as_py() else ""
        for name in ("min", "median", "max"):
            seconds = pc.round(times[name]).cast(pa.int64()).cast(pa.timestamp("s"))
            counted = counted.append_column(name + zone, seconds)
        show(counted, keys=keys)


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


def show_metric_table(table: pa.Table, keys: int) -> None:
    """Print a table of metrics, the first one with its interval."""
    import pyarrow as pa

    ends = ("_low", "_high")
    shown = table.select([name for name in table.column_names if not name.endswith(ends)])
    first = next((name for name in table.column_names[keys:] if name.endswith("_low")), "").removesuffix(
        "_low"
    )
    if first and table[f"{first}_low"].null_count < table.num_rows:
        values = zip(
            *(table[name].to_pylist() for name in (first, f"{first}_low", f"{first}_high")), strict=True
        )
        texts = ["–" if low is None else f"{one:.3f} [{low:.3f}, {high:.3f}]" for one, low, high in values]
        shown = shown.set_column(
            shown.column_names.index(first), f"{first}, 95 %", pa.array(texts, pa.string())
        )
    show(shown, keys=keys)
