"""Run — ``zarrow demo`` and ``zarrow predict``: a model's predictions, straight into a store."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Context, Option, Typer

from zarrow._commands.arguments import AsJson, out_option
from zarrow._commands.show_store import facts_of, show_info
from zarrow._commands.terminal import err, escape, out, print_json, say
from zarrow._format.spec import safe_rows
from zarrow.errors import IncompleteStoreError, MissingExtraError, ZarrowError

if TYPE_CHECKING:
    from zarrow.demo import Summary

__all__ = ["app"]

app = Typer()


@app.command(rich_help_panel="Run")
def demo(
    path: Annotated[Path, out_option("Store to write.")] = Path("demo.zarrow"),
    rows: Annotated[int, Option(min=4, help="Rows to predict.")] = 20_000,
    resume: Annotated[bool, Option("--resume", help="Continue a demo that was stopped or killed.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier demo.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a small model on handwritten digits, predict, and draw the embeddings."""
    from zarrow import demo as digits

    if resume and overwrite:
        raise BadParameter("--resume and --overwrite exclude each other")
    console = err if as_json else out
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        summary = digits.run(path, rows, resume=resume, overwrite=overwrite, console=console)
    if as_json:
        print_json(asdict(summary))
    else:
        _show_summary(summary)


def _show_summary(summary: Summary) -> None:
    out.print()
    show_info(facts_of(summary.store))
    out.print()
    out.print(
        f"trained in {summary.train_s:.1f} s, predicted in {summary.predict_s:.1f} s, "
        f"drawn in {summary.draw_s:.1f} s; "
        f"{summary.accuracy:.1%} of the digits held out from training are classified correctly"
    )
    out.print(f"picture [bold]{escape(str(summary.picture))}[/], model {escape(str(summary.checkpoint))}")
    name = escape(str(summary.store))
    say(
        f"\n[bold]Open it:[/]\n[cyan]"
        f"  zarrow head {name}\n"
        f'  zarrow sql {name} "from predictions select predicted, count(*) group by all"\n'
        f"  python -c \"import zarrow; s = zarrow.open('{name}'); print(s['query_embed'][:3])\"\n"
        f"  python -c \"import zarr; print(zarr.open('{name}/embeddings.zarr')['query_embed'].info)\"[/]\n"
        "\n[bold]With xarray installed:[/]\n[cyan]"
        f"  python -c \"import xarray; print(xarray.open_zarr('{name}/embeddings.zarr'))\"[/]"
    )


@app.command(
    rich_help_panel="Run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def predict(
    context: Context,
    store: Annotated[
        str, Option("--store", metavar="PATH", help="Store to write, a path or URL.", show_default=False)
    ],
    resume: Annotated[bool, Option("--resume", help="Go on with the run that wrote it.")] = False,
    as_json: AsJson = False,
) -> None:
    r"""Run Lightning's predict with your own module, straight into a store.

    What you need: a LightningModule whose predict_step returns a dictionary
    of arrays with one row per sample (one number per row becomes a column,
    a vector an array), and a LightningDataModule with predict_dataloader.
    Both are named as Python imports them, from this folder too.

    A model and its data:

    zarrow predict --store run.zarrow --model my.Module --data my.DataModule

    A checkpoint, and arguments of the classes:

    zarrow predict --store run.zarrow --model my.Module --ckpt_path last.ckpt
    --data my.DataModule --data.batch_size 256

    Columns that identify a row, and a file with more of them:

    zarrow predict --store run.zarrow … --writer.keys '\[subject_id]'
    --writer.identifiers rows.parquet

    Two GPUs, in half precision; and on after a kill:

    zarrow predict --store run.zarrow … --trainer.devices 2
    --trainer.precision bf16-mixed --resume

    All of that from a file, which --print_config writes to begin with:

    zarrow predict --store run.zarrow --config run.yaml

    All other options are those of LightningCLI and, after --writer., of the
    callback. "zarrow docs predict" says more.
    """
    from zarrow.lightning import PredictionWriter  # first: it says which extra is missing

    try:
        from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    except ImportError as error:
        raise MissingExtraError(f"zarrow predict needs {error}: pip install 'zarrow[predict]'") from error

    trainers: list[Any] = []

    class PredictCLI(LightningCLI):
        """LightningCLI with the callback as ``--writer``."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(PredictionWriter, "writer")
            parser.set_defaults({"writer.path": store})

        def before_instantiate_classes(self) -> None:
            self.config.predict.return_predictions = False
            self.config.predict.writer.path = store  # whatever a config file says
            self.config.predict.writer.resume |= resume

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainers.append(super().instantiate_trainer(**kwargs))
            return trainers[-1]

    if any(argument.startswith("--writer.path") for argument in context.args):
        raise BadParameter("--writer.path: the store is named by --store")
    sys.path.insert(0, os.getcwd())  # as "python -m" does: the user's module is here, not next to our script
    sys.argv = ["zarrow", "predict", *context.args]  # LightningCLI warns if given arguments another way
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            cli = PredictCLI(
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"logger": False, "enable_checkpointing": False},
            )
    except (KeyboardInterrupt, SystemExit):
        if any(trainer.interrupted for trainer in trainers):  # of which Lightning makes exit code 1
            _say_what_is_safe(store)
            raise KeyboardInterrupt from None
        raise
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PredictionWriter) and not callback.complete:
            raise IncompleteStoreError(
                f"{store}: the run ended before every row was stored; see the warning above"
            )
    show_info(facts_of(Path(store)), as_json=as_json)


def _say_what_is_safe(store: str) -> None:
    """Say how many rows an interrupted run has stored, and how to go on."""
    import zarrow

    with contextlib.suppress(ZarrowError), zarrow.open(store, partial=True) as found:
        if found.num_rows:
            say(f"{escape(store)}: {safe_rows(found.num_rows, None)}; go on with --resume", err)
