"""Which commands make pictures: ``map``, ``plot``, ``report``?

Thin, as `cli` is, which they are part of: arguments in, `zarrow.analysis` called, what was made said.
Progress goes to standard error, so that ``--json`` leaves standard output to machines.

Place: below `cli`, which has the group that tells errors. Ctrl-C leaves store and files as they were.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zarrow._commands.console import err, out
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zarrow.store import Store

__all__ = ["app"]

app = typer.Typer()

StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store, e.g. run.zarrow.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]
ArrayName = Annotated[str | None, typer.Option("--array", help="Which array.", show_default="the only one")]
By = Annotated[str, typer.Option("--by", help="Columns to group by, with commas in between.")]


class Method(StrEnum):
    """How a map is made."""

    PCA = "pca"
    UMAP = "umap"
    TSNE = "tsne"


class Kind(StrEnum):
    """What is drawn."""

    MAP = "map"
    NORMS = "norms"
    CALIBRATION = "calibration"
    ROC = "roc"
    DRIFT = "drift"


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Yield what tells rows done, and what is done next."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def stage(what: str) -> None:
            bar.reset(task, description=escape(what), total=None)

        yield tell, stage


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _show(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        out.print(text, soft_wrap=True)


@app.command("map", rich_help_panel="Draw")
def map_store(
    path: StorePath,
    method: Annotated[Method, typer.Option(help="umap needs the extra 'map'.")] = Method.PCA,
    array: ArrayName = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the map.", show_default="ARRAY_METHOD")
    ] = None,
    by: By = "",
    sample_rows: Annotated[
        int | None,
        typer.Option(min=20, help="Rows that umap or tsne see.", show_default="20000; tsne 10000"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one gives another map.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Give every row a place on a map of two dimensions, stored beside the rows.

    The map becomes an array of the store: store["query_embed_pca"], a variable in xarray. The rows stay
    as they are. umap and tsne see a sample, drawn from every group of --by; others are placed near it.
    """
    import zarrow
    from zarrow.analysis import map_rows

    with zarrow.open(path) as store, _progress() as (progress, stage):
        made = map_rows(
            store,
            array,
            method.value,
            name=name,
            by=_names(by),
            sample_rows=sample_rows,
            seed=seed,
            progress=progress,
            stage=stage,
        )
    shares = made.explained_variance_ratio
    said = f", {sum(shares):.1%} of the variance" if shares else f", made from {made.sample_rows:,} rows"
    text = (
        f"[green]mapped[/] {made.rows:,} rows of {escape(made.array)} by {made.method}{said}\n"
        f"it is the array [bold]{escape(str(made.name))}[/] of {escape(str(path))}; draw it: "
        f"[cyan]zarrow plot {escape(str(path))} --map {escape(str(made.name))} -o map.png[/]"
    )
    _show(made.to_dict(), text, as_json=as_json)


@app.command(rich_help_panel="Draw")
def plot(
    path: StorePath,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .svg or .pdf.", show_default=False)],
    kind: Annotated[Kind, typer.Option(help="What to draw.")] = Kind.MAP,
    array: ArrayName = None,
    map_name: Annotated[
        str | None, typer.Option("--map", help="Which stored map.", show_default="the latest, else PCA")
    ] = None,
    colour: Annotated[str | None, typer.Option("--colour", "--color", help="map: a column.")] = None,
    probability: Annotated[
        str | None, typer.Option(help="roc, calibration: a column.", show_default="the likely one")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="roc, calibration: a column.", show_default="the likely one")
    ] = None,
    other: Annotated[
        Path | None, typer.Option(metavar="STORE", help="drift: the store to compare with.")
    ] = None,
    on: Annotated[str, typer.Option(help="drift: columns of the same rows.", show_default="the keys")] = "",
    by: By = "",
    as_json: AsJson = False,
) -> None:
    """Draw a picture: a map of the rows, lengths of vectors, ROC curves, calibration, drift.

    zarrow plot run.zarrow --kind map --colour occurs_prob -o map.png

    zarrow plot run.zarrow --kind roc --by query -o roc.svg

    zarrow plot old.zarrow --kind drift --other new.zarrow --by query -o drift.svg
    """
    import zarrow
    from zarrow.analysis import plot as pictures

    pictures.check_format(output)
    given = {
        "--array": array,
        "--map": map_name,
        "--colour": colour,
        "--by": by,
        "--probability": probability,
        "--label": label,
        "--other": other,
        "--on": on,
    }
    _check_options(kind, {option for option, value in given.items() if value})
    with zarrow.open(path) as store, _progress() as (progress, _):
        if kind == Kind.MAP:
            figure = pictures.map(store, map_name or array, colour, progress=progress)
        elif kind == Kind.NORMS:
            figure = pictures.norms(store, array, _names(by), progress=progress)
        elif kind == Kind.DRIFT:
            assert other is not None
            figure = _draw_drift(store, other, array, _names(on), _names(by), probability, progress)
        else:
            draw = pictures.roc if kind == Kind.ROC else pictures.calibration
            figure = draw(store, probability, label, _names(by))
        pictures.save(figure, output)
    facts = {"file": str(output), "kind": kind.value, "bytes": output.stat().st_size}
    _show(facts, f"[green]drawn:[/] {escape(str(output))}", as_json=as_json)


def _draw_drift(
    store: Store,
    other: Path,
    array: str | None,
    on: list[str],
    by: list[str],
    probability: str | None,
    progress: Callable[[int, int], None],
) -> Figure:
    import zarrow
    from zarrow.analysis import plot as pictures

    with zarrow.open(other) as second:
        return pictures.drift(
            store, second, on=on or None, array=array, by=by, probability=probability, progress=progress
        )


def _check_options(kind: Kind, given: set[str]) -> None:
    """Refuse options that this kind of picture has no use for."""
    scores = {"--by", "--probability", "--label"}
    allowed = {
        Kind.MAP: {"--array", "--map", "--colour"},
        Kind.NORMS: {"--array", "--by"},
        Kind.ROC: scores,
        Kind.CALIBRATION: scores,
        Kind.DRIFT: {"--other", "--on", "--array", "--by", "--probability"},
    }[kind]
    for option in sorted(given - allowed):
        raise InvalidInputError(
            f"--kind {kind.value} takes {', '.join(sorted(allowed))}, not {option}: leave it out"
        )
    if kind == Kind.DRIFT and "--other" not in given:
        raise InvalidInputError("--kind drift compares with a second store: name it with --other")
    if {"--map", "--array"} <= given:
        raise InvalidInputError("--map and --array exclude each other: a map is of one array already")


@app.command(rich_help_panel="Draw")
def report(
    path: StorePath,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    map_name: Annotated[
        str | None,
        typer.Option("--map", help="A stored map or an array.", show_default="the latest map, else PCA"),
    ] = None,
    colours: Annotated[
        str, typer.Option("--colours", "--colors", help="Columns, with commas in between.")
    ] = "",
    probability: Annotated[str | None, typer.Option(help="A column.", show_default="the likely one")] = None,
    label: Annotated[str | None, typer.Option(help="A column.", show_default="the likely one")] = None,
    by: Annotated[
        str, typer.Option("--by", help="Columns to evaluate by.", show_default="query,duration_days")
    ] = "",
    title: Annotated[str | None, typer.Option(help="What to call it.", show_default="the store")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a store, to look at and to send: summary, scores, a map that answers.

    It needs no network and no server. It holds identifiers and values of rows: mind whom you send it to.
    """
    import zarrow
    from zarrow.analysis.report import report as write_report

    with zarrow.open(path) as store, _progress() as (progress, stage):
        write_report(
            store,
            output,
            map=map_name,
            colours=_names(colours) or None,
            probability=probability,
            label=label,
            by=_names(by) or None,
            title=title,
            progress=progress,
            stage=stage,
        )
    size = output.stat().st_size
    facts = {"file": str(output), "bytes": size}
    text = f"[green]written:[/] {escape(str(output))}, {size / 1024:,.0f} KiB; open it in a browser"
    _show(facts, text, as_json=as_json)
