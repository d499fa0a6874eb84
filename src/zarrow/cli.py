"""Which command does what?

Thin: a command parses its arguments, calls the library, and prints. Whatever is heavy or optional is
imported by the command that needs it, so that ``zarrow info`` answers at once and runs without torch.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage, or the path is not a store. An error of ours is one
line on standard error, never a traceback.

Place: the top; nothing imports it. Writes nothing itself.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from typer.core import TyperGroup

from zarrow._commands import analyse, draw, move
from zarrow._commands.console import err, out
from zarrow._commands.show_store import facts_of, show_head, show_info
from zarrow.errors import (
    IncompleteStoreError,
    MissingExtraError,
    NotFoundError,
    ZarrowError,
)

if TYPE_CHECKING:
    from zarrow.demo import Summary

__all__ = ["app", "main"]

FAILED, NOT_A_STORE = 1, 2


class _Group(TyperGroup):
    """Commands whose errors are one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ZarrowError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(NOT_A_STORE if isinstance(error, NotFoundError) else FAILED) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Predictions on disk: narrow columns as Parquet, vectors as sharded Zarr, joined by row.",
)

StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store, e.g. run.zarrow.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"zarrow {version('zarrow')}")
        raise typer.Exit


@app.callback()
def _common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# Running something


@app.command(rich_help_panel="Run")
def demo(
    path: Annotated[Path, typer.Option("--out", help="The store to write.")] = Path("demo.zarrow"),
    rows: Annotated[int, typer.Option(min=4, help="Rows to predict.")] = 20_000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a demo that was stopped or killed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a small model on handwritten digits, predict, and draw its embeddings."""
    from zarrow import demo as digits

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    summary = digits.run(path, rows, resume=resume, overwrite=overwrite, console=out)
    _show_summary(summary)


def _show_summary(summary: Summary) -> None:
    out.print()
    show_info(facts_of(summary.store))
    out.print()
    out.print(
        f"trained in {summary.train_s:.1f} s, predicted in {summary.predict_s:.1f} s, "
        f"drawn in {summary.draw_s:.1f} s; "
        f"{summary.accuracy:.1%} of the digits kept from training are classified correctly"
    )
    out.print(f"picture [bold]{escape(str(summary.picture))}[/], model {escape(str(summary.checkpoint))}")
    name = escape(str(summary.store))
    commands = {
        "Open it:": (
            f"zarrow head {name}",
            f"python -c \"import zarrow; s = zarrow.open('{name}'); print(s['query_embed'][:3])\"",
            f"python -c \"import zarr; print(zarr.open('{name}/embeddings.zarr')['query_embed'].info)\"",
        ),
        "With DuckDB or xarray installed:": (
            f"duckdb -c \"from '{name}/table/*.parquet' select predicted, count(*) group by all\"",
            f"python -c \"import xarray; print(xarray.open_zarr('{name}/embeddings.zarr'))\"",
        ),
    }
    for title, lines in commands.items():
        out.print(f"\n[bold]{title}[/]")
        for line in lines:
            out.print(f"  [cyan]{line}[/]", soft_wrap=True)


@app.command(
    rich_help_panel="Run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def predict(
    context: typer.Context,
    store: Annotated[Path, typer.Option("--store", help="The store to write.", show_default=False)],
) -> None:
    """Run Lightning's predict with your own module, straight into a store.

    All options but --store are those of LightningCLI: --model, --data, --ckpt_path, --config, --trainer.….

    --writer.keys, --writer.identifiers, … are those of the callback; --print_config shows every one of them.

    zarrow predict --store run.zarrow --model my.Module --data my.DataModule --ckpt_path best.ckpt
    """
    from zarrow.lightning import PredictionWriter  # first: it says which extra is missing

    try:
        from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    except ImportError as error:
        raise MissingExtraError(f"zarrow predict needs {error}: pip install 'zarrow[predict]'") from error

    class PredictCLI(LightningCLI):
        """LightningCLI with the callback as ``--writer``."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(PredictionWriter, "writer")
            parser.set_defaults({"writer.path": str(store)})

        def before_instantiate_classes(self) -> None:
            self.config.predict.return_predictions = False

    sys.path.insert(0, os.getcwd())  # as "python -m" does: the user's module lies here, not beside our script
    sys.argv = ["zarrow", "predict", *context.args]  # LightningCLI warns where it is handed arguments instead
    cli = PredictCLI(
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={"logger": False, "enable_checkpointing": False},
    )
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PredictionWriter) and not callback.complete:
            raise IncompleteStoreError(f"{store}: the run ended without every row; see the warning above")
    show_info(facts_of(store))


# Looking at a store


@app.command(rich_help_panel="Look")
def info(path: StorePath, as_json: AsJson = False) -> None:
    """Say what a store holds: rows, arrays, sizes, whether it is complete, where it comes from."""
    facts = facts_of(path)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        show_info(facts)


@app.command(rich_help_panel="Look")
def head(
    path: StorePath,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 10,
    columns: Annotated[
        str, typer.Option(help="Which columns, with commas in between.", show_default="all")
    ] = "",
) -> None:
    """Show the first rows: columns, and how each vector begins."""
    import zarrow

    with zarrow.open(path, partial=True) as store:
        if not store.complete:
            err.print("[yellow]the store is incomplete[/]")
        show_head(
            store,
            min(rows, store.num_rows),
            _names(columns) or None,
        )


@app.command(rich_help_panel="Run")
def finalize(
    path: StorePath,
    sort: Annotated[
        bool, typer.Option("--sort", help="Put the rows into the dataset's order: pack --order sample_index.")
    ] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep one of rows that several ranks predicted.")
    ] = False,
) -> None:
    """Complete a store whose run was killed, with the rows that were accepted."""
    import zarrow
    from zarrow._predict.repeated import drop_repeated
    from zarrow._predict.stored_rows import stored_rows

    with zarrow.open(path, partial=True) as store:  # refuses what is no store: a writer would make one
        rows, complete = store.num_rows, store.complete
        order = [name for name in ("dataloader_idx", "sample_index") if name in store.schema.names]
        if not complete and "predict" in store.provenance and not drop_duplicates:
            stored_rows(path)  # raises if the run's ranks stored a row twice
    if drop_duplicates:
        dropped = drop_repeated(path)
        out.print(f"{dropped:,} of {rows:,} rows were there already")
        rows -= dropped
    elif not complete:
        with zarrow.Writer(path, mode="a") as writer:
            writer.finalize()
            rows = writer.accepted_rows
    if sort:
        _pack(path, None, order=order)
    if complete:
        out.print(f"{escape(str(path))} is complete already: {rows:,} rows", soft_wrap=True)
    else:
        out.print(f"[green]complete:[/] {escape(str(path))} has {rows:,} rows", soft_wrap=True)


@app.command(rich_help_panel="Keep")
def pack(
    path: StorePath,
    new: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="Where to, if STORE is to stay.", show_default=False),
    ] = None,
    order: Annotated[
        str, typer.Option(help="Columns to sort by: sample_index, or key,key…", show_default="as it is")
    ] = "",
    codecs: Annotated[
        str,
        typer.Option(
            help="plain, auto, blosc, zstd, pcodec; or per array: name=codec,….",
            show_default="as they are",
        ),
    ] = "",
    segment_rows: Annotated[
        int | None, typer.Option(help="Rows of a segment, a power of two.", show_default="as many")
    ] = None,
) -> None:
    """Rewrite a complete store: other codecs, other segments, or its rows in another order.

    The new store is verified before it takes the place of the old one; until then the old one stays.
    """
    if not (order or codecs or segment_rows or new):
        raise typer.BadParameter("say what to change: --order, --codecs, --segment-rows, or OUT")
    _pack(path, new, order=_names(order), codecs=_codecs(codecs), segment_rows=segment_rows)
    show_info(facts_of(new or path))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _codecs(text: str) -> Any:
    def one(codec: str) -> Any:
        chain = [None if name == "plain" else name for name in codec.strip().split("+")]
        return chain[0] if len(chain) == 1 else chain

    if "=" not in text:
        return one(text) if text else "keep"
    pairs = [pair.partition("=") for pair in text.split(",")]
    return {name.strip(): one(codec) for name, _, codec in pairs}


def _pack(path: Path, new: Path | None, **options: Any) -> None:
    """Pack with a bar per step."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    import zarrow

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    steps: dict[str, TaskID] = {}
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def show(step: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = bars.add_task(step)
            bars.update(steps[step], completed=done, total=total)

        zarrow.pack(path, new, progress=show, **options)


@app.command(rich_help_panel="Keep")
def verify(
    path: StorePath,
    level: Annotated[
        Literal["structure", "checksums", "full"],
        typer.Option(help="structure: sizes and indexes; checksums: every byte; full: every value too."),
    ] = "checksums",
    as_json: AsJson = False,
) -> None:
    """Tell what is wrong with a store; exit code 0 if nothing, 1 if something, 2 if it is no store."""
    import zarrow
    from zarrow._commands.show_audit import progress_bar, show_report

    with progress_bar(err, "verifying") as progress:
        report = zarrow.verify(path, level, progress)
    if as_json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        show_report(out, report)
    if not report.ok:
        raise typer.Exit(FAILED)


@app.command(rich_help_panel="Keep")
def repair(
    path: StorePath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; exit code 1 if anything.")
    ] = False,
    complete: Annotated[
        bool, typer.Option("--finalize", help="Complete the store in the end, without what was set aside.")
    ] = False,
    level: Annotated[
        Literal["checksums", "full"], typer.Option(help="How closely to look: checksums or full.")
    ] = "checksums",
    as_json: AsJson = False,
) -> None:
    """Move what is damaged to quarantine/ in the store, name the rows to predict again, rebuild the rest."""
    import zarrow
    from zarrow._commands.show_audit import progress_bar, show_repair

    with progress_bar(err, "looking") as progress:
        done = zarrow.repair(
            path,
            dry_run=dry_run,
            finalize=complete,
            level=level,
            progress=progress,
        )
    if as_json:
        sys.stdout.write(done.to_json() + "\n")
    else:
        show_repair(out, done)
    if dry_run and not done.nothing_to_do:
        raise typer.Exit(FAILED)


app.add_typer(move.app)
app.add_typer(analyse.app)
app.add_typer(draw.app)


def main() -> None:
    """Run the command line: what the console script calls."""
    app()
