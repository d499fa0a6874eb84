"""Look — ``zarrow info``, ``schema``, ``head``, ``sql`` and ``watch``: what a store holds. Read only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

from typer import Argument, Option, Typer

from zarrow._commands.arguments import AsJson, Columns, StorePath, open_store
from zarrow._commands.show_store import facts_of, schema_of, show_head, show_info, show_schema
from zarrow._commands.terminal import counted, escape, out, print_json, show_table
from zarrow._commands.watching import Watch
from zarrow.errors import InvalidInputError, MissingExtraError

__all__ = ["app"]

app = Typer()


@app.command(rich_help_panel="Look")
def info(path: StorePath, as_json: AsJson = False) -> None:
    """Show what a store holds: rows, arrays, sizes, completeness, provenance."""
    show_info(facts_of(path), as_json=as_json)


@app.command(rich_help_panel="Look")
def head(
    path: StorePath,
    rows: Annotated[int, Option("-n", "--rows", min=1, help="Number of rows.")] = 10,
    columns: Columns = (),
    as_json: AsJson = False,
) -> None:
    """Show the first rows: their columns, and the first values of each vector."""
    with open_store(path, partial=True) as store:
        count = min(rows, store.num_rows)
        if as_json:
            first, vectors = store.take(range(count), columns or None)
            lists = {name: values.tolist() for name, values in vectors.items()}
            print_json(
                [row | {name: lists[name][at] for name in lists} for at, row in enumerate(first.to_pylist())]
            )
        else:
            show_head(store, count, columns or None)


@app.command(rich_help_panel="Look")
def schema(path: StorePath, as_json: AsJson = False) -> None:
    """Show the columns and arrays: types, keys, shapes, codecs."""
    with open_store(path, partial=True) as store:
        facts = schema_of(store)
    if as_json:
        print_json(facts)
    else:
        show_schema(facts)


@app.command(rich_help_panel="Look")
def sql(
    path: StorePath,
    query: Annotated[
        str,
        Argument(
            metavar="QUERY",
            help="A query of the table predictions, e.g. 'SELECT count(*) FROM predictions'.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
    as_csv: Annotated[bool, Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """Run SQL over the columns, by DuckDB; the table is called predictions."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("sql needs DuckDB: pip install duckdb") from error
    import pyarrow as pa

    with open_store(path, partial=True) as store:
        try:
            found: Any = store.sql(query)
            table = None if found is None else pa.table(found)
        except duckdb.Error as error:
            message = " ".join(str(error).partition("\n\n")[0].split())
            for name in (*store.arrays, *store.ragged, *store.derived):
                if f'"{name}"' in message:
                    message += (
                        f": {name} is an array, which SQL does not see: select row, and in Python "
                        f"store.vectors(result, arrays=[{name!r}]) has the vectors"
                    )
            raise InvalidInputError(message) from error
    if table is None:
        return  # a statement without a result
    if as_json:
        print_json(table.to_pylist())
    elif as_csv:
        import sys

        from pyarrow import csv

        csv.write_csv(table, sys.stdout.buffer)
    else:
        show_table(table)


@app.command(rich_help_panel="Look")
def watch(
    path: StorePath,
    once: Annotated[bool, Option("--once", help="Look once and exit.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one line of JSON per look.")] = False,
    interval: Annotated[float, Option(min=0.05, help="Seconds between looks.")] = 1.0,
    total: Annotated[
        int | None, Option(min=1, help="Rows to expect.", show_default="what the run stated")
    ] = None,
) -> None:
    """Show a run's progress: rows, speed, writers, time left; ends when the store is complete."""
    looks = _looks(Watch(path, total), interval, once=once)
    if as_json:
        for seen in looks:
            print_json(seen, one_line=True)
    elif not out.is_terminal:
        for seen in looks:
            out.print(_line(seen), markup=False, soft_wrap=True)
    else:
        from rich.live import Live

        with Live(console=out, auto_refresh=False) as live:
            for seen in looks:
                live.update("\n".join([_line(seen), *map(_writer_line, seen["writers"])]), refresh=True)


def _looks(watched: Watch, interval: float, *, once: bool) -> Iterator[dict[str, Any]]:
    """Look until the store is complete, or once."""
    while True:
        seen = watched.look()
        yield seen
        if once or seen["complete"]:
            return
        time.sleep(interval)


def _line(seen: dict[str, Any]) -> str:
    parts = [f"{seen['rows']:,} rows"]
    if seen["total_rows"]:
        parts[0] += f" of {seen['total_rows']:,} ({seen['rows'] / seen['total_rows']:.1%})"
    if seen["complete"]:
        return f"{parts[0]}, complete"
    if seen["rows_per_s"] is not None:
        parts.append(f"{seen['rows_per_s']:,.0f} rows/s")
        parts.append(f"{seen['vector_mb_per_s']:,.1f} MB/s of vectors")
    if seen["eta_s"] is not None:
        parts.append(f"{timedelta(seconds=round(seen['eta_s']))} left")
    parts.append(counted(sum(writer["running"] is not False for writer in seen["writers"]), "writer"))
    return ", ".join(parts)


def _writer_line(writer: dict[str, Any]) -> str:
    speed = "" if writer["rows_per_s"] is None else f", {writer['rows_per_s']:,.0f} rows/s"
    ended = "" if writer["running"] is not False else ", has ended"
    return f"  {escape(writer['host'])} process {writer['pid']}: {writer['rows']:,} rows{speed}{ended}"
