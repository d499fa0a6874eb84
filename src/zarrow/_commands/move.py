"""Move — ``zarrow export``, ``import`` and ``copy``: a store from and to other tools' files, or a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from zarrow._commands.arguments import (
    Arrays,
    AsJson,
    Columns,
    Names,
    StorePath,
    comma_list,
    open_store,
)
from zarrow._commands.terminal import answer, escape, progress_bar
from zarrow._storage.objects import named

__all__ = ["app"]

app = Typer()

Overwrite = Annotated[bool, Option("--overwrite", help="Replace what is at the target, in one step.")]
FORMATS = "npy, parquet, huggingface, anndata, lance, safetensors, everyquery"


@app.command("export", rich_help_panel="Move")
def export_store(
    path: StorePath,
    target: Annotated[Path, Argument(metavar="TARGET", help="File or folder to write.", show_default=False)],
    format: Annotated[
        str,
        Option(
            "--to",
            help=f"{FORMATS}, meds or embedding-atlas.",
            show_default="by TARGET's suffix",
        ),
    ] = "",
    columns: Columns = (),
    arrays: Arrays = (),
    overwrite: Overwrite = False,
    partial: Annotated[
        bool, Option("--partial", help="Export the rows so far of an incomplete store.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a store as numpy files, one Parquet file, AnnData, Lance or safetensors."""
    from zarrow import transfer

    remedy = ", or export the rows so far: --partial"
    with open_store(path, partial=partial, remedy=remedy) as store, progress_bar("export") as bar:
        rows = transfer.export(
            store,
            target,
            format or None,  # type: ignore[arg-type]
            columns=columns or None,
            arrays=arrays or None,
            overwrite=overwrite,
            progress=bar,
        )
    text = f"[green]written:[/] {escape(named(target))} has {rows:,} rows"
    answer({"path": named(target), "rows": rows}, text, as_json=as_json)


@app.command("copy", rich_help_panel="Move")
def copy_store(
    path: StorePath,
    target: Annotated[Path, Argument(metavar="TARGET", help="Where the copy goes.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Copy a store, also while it is written: the rows committed so far, compared with their checksums."""
    import zarrow

    with progress_bar("copy") as bar:
        done = zarrow.copy(path, target, progress=bar)
    left = f"; {done.left_rows:,} that are not committed yet are not in it" if done.left_rows else ""
    state = "" if done.complete else ", incomplete as the store was"
    text = f"[green]copied:[/] {escape(done.path)} has {done.rows:,} rows{state}{left}"
    answer(json.loads(done.to_json()), text, as_json=as_json)


@app.command("import", rich_help_panel="Move")
def import_store(
    source: Annotated[Path, Argument(metavar="SOURCE", help="File or folder to read.", show_default=False)],
    path: Annotated[Path, Argument(metavar="STORE", help="Store to write.", show_default=False)],
    format: Annotated[
        str, Option("--from", help=f"{FORMATS} or colbert.", show_default="by SOURCE's suffix or files")
    ] = "",
    beside: Annotated[
        Path | None,
        Option(help="Second file of a pair: a .npy file's table (Parquet or CSV), EveryQuery's embeddings."),
    ] = None,
    keys: Annotated[Names, comma_list("Columns that identify a row, comma-separated.", default="none")] = (),
    codecs: Annotated[str, Option(help="auto, crc32c, blosc, zstd or pcodec.", show_default="none")] = "",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import numpy files, Parquet, Hugging Face, AnnData, Lance, EveryQuery or ColBERT as a store."""
    from zarrow import transfer

    with progress_bar("import") as bar:
        rows = transfer.import_(
            source,
            path,
            format or None,  # type: ignore[arg-type]
            beside=beside,
            keys=keys,
            codecs=codecs or None,
            overwrite=overwrite,
            progress=bar,
        )
    text = f"[green]complete:[/] {escape(named(path))} has {rows:,} rows"
    answer({"path": named(path), "rows": rows}, text, as_json=as_json)
