"""Which commands let rows come in and go out, and watch them do so?

``export``, ``import``, ``index``, ``watch``. As thin as `cli`, which they are part of and which shows their
errors.

Place: below `cli`, above all else. Writes nothing itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from zarrow._commands.console import err, out

if TYPE_CHECKING:
    from zarrow.transfer._rows import Progress

__all__ = ["app"]

app = typer.Typer()

Store = Annotated[Path, typer.Argument(metavar="STORE", help="A store, e.g. run.zarrow.", show_default=False)]
Names = Annotated[str, typer.Option(help="Which, with commas in between.", show_default="all")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, in one step.")]
FORMATS = "npy, parquet, anndata, lance, everyquery"


@app.command("export", rich_help_panel="Move")
def export_store(
    path: Store,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="What to write.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            "--to", help=f"{FORMATS}, safetensors or embedding-atlas.", show_default="by the suffix"
        ),
    ] = "",
    columns: Names = "",
    arrays: Names = "",
    overwrite: Overwrite = False,
    partial: Annotated[bool, typer.Option("--partial", help="The rows of an incomplete store.")] = False,
) -> None:
    """Write a store as files of another kind: numpy, one Parquet file, AnnData, Lance, safetensors."""
    import zarrow
    from zarrow import transfer

    with zarrow.open(path, partial=partial) as store, _bar("export") as progress:
        rows = transfer.export(
            store,
            target,
            format or None,  # type: ignore[arg-type]
            columns=_names(columns),
            arrays=_names(arrays),
            overwrite=overwrite,
            progress=progress,
        )
    out.print(f"[green]written:[/] {escape(str(target))} has {rows:,} rows", soft_wrap=True)


@app.command("import", rich_help_panel="Move")
def import_store(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="What others wrote.", show_default=False)],
    path: Annotated[Path, typer.Argument(metavar="STORE", help="The store to make.", show_default=False)],
    format: Annotated[str, typer.Option("--from", help=f"{FORMATS}.", show_default="by the suffix")] = "",
    beside: Annotated[
        Path | None,
        typer.Option(help="The second file of a pair: a .npy file's table, EveryQuery's embeddings."),
    ] = None,
    keys: Annotated[str, typer.Option(help="Columns that name a row.", show_default="none")] = "",
    codecs: Annotated[str, typer.Option(help="blosc, zstd or pcodec.", show_default="plain bytes")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Make a store of numpy files, Parquet, AnnData, Lance, or EveryQuery's pair of files."""
    from zarrow import transfer

    with _bar("import") as progress:
        rows = transfer.import_(
            source,
            path,
            format or None,  # type: ignore[arg-type]
            beside=beside,
            keys=_names(keys) or (),
            codecs=codecs or None,
            overwrite=overwrite,
            progress=progress,
        )
    out.print(f"[green]complete:[/] {escape(str(path))} has {rows:,} rows", soft_wrap=True)


@app.command(rich_help_panel="Keep")
def index(path: Store) -> None:
    """Build the index that finds rows by key at once; tell of keys that several rows have."""
    import zarrow

    zarrow.build_index(path)
    with zarrow.open(path) as store:
        repeated = store.duplicated()
        out.print(
            f"[green]indexed:[/] {escape(str(path))}: {store.num_rows - len(repeated):,} keys "
            f"({escape(', '.join(store.keys))}) of {store.num_rows:,} rows",
            soft_wrap=True,
        )
        if len(repeated):
            first = store.take(repeated[:5], [*store.keys, "row"], [])[0].to_pylist()
            err.print(
                f"[yellow]{len(repeated):,} rows have the key of an earlier row[/], which is the one that is "
                f"found; all of them: Store.duplicated(). The first: {escape(str(first))}",
                soft_wrap=True,
            )


@app.command(rich_help_panel="Look")
def watch(
    path: Store,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per look, for machines.")] = False,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between looks.")] = 1.0,
    total: Annotated[
        int | None, typer.Option(min=1, help="Rows to come.", show_default="as the run said")
    ] = None,
) -> None:
    """Show how a run gets on: rows, speed, writers, time left; ends when the store is complete."""
    from zarrow._commands.watching import Watch

    watched = Watch(path, total)
    if as_json or not out.is_terminal:
        while True:
            seen = watched.look()
            sys.stdout.write((json.dumps(seen) if as_json else _line(seen)) + "\n")
            sys.stdout.flush()
            if once or seen["complete"]:
                return
            time.sleep(interval)
    from rich.live import Live

    with Live(console=out, auto_refresh=False) as live:
        while True:
            seen = watched.look()
            live.update("\n".join([_line(seen), *map(_writer_line, seen["writers"])]), refresh=True)
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
    parts.append(f"{len(seen['writers'])} writer{'s' * (len(seen['writers']) != 1)}")
    return ", ".join(parts)


def _writer_line(writer: dict[str, Any]) -> str:
    speed = "" if writer["rows_per_s"] is None else f", {writer['rows_per_s']:,.0f} rows/s"
    return f"  {escape(writer['host'])} process {writer['pid']}: {writer['rows']:,} rows{speed}"


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """Show a progress bar, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
