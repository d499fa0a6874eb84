"""Draw — ``zarrow map``, ``plot`` and ``report``: pictures of a store.

Whatever ends one of them in the middle leaves the store and the files as they were.
"""

from __future__ import annotations

from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.filesize import decimal
from typer import Option, Typer

from zarrow._commands.arguments import (
    Array,
    AsJson,
    By,
    Label,
    Names,
    Probability,
    Seed,
    StorePath,
    comma_list,
    open_store,
    out_option,
)
from zarrow._commands.terminal import answer, escape, progress_bar
from zarrow._storage.objects import named
from zarrow.errors import InvalidInputError

__all__ = ["app"]

app = Typer()

Kind = Literal["map", "norms", "calibration", "roc", "drift"]


@app.command("map", rich_help_panel="Draw")
def map_store(
    path: StorePath,
    method: Annotated[
        Literal["pca", "umap", "tsne"], Option(help="Projection; umap needs the extra 'map'.")
    ] = "pca",
    array: Array = None,
    name: Annotated[str | None, Option(help="Name of the map.", show_default="ARRAY_METHOD")] = None,
    by: By = (),
    sample_rows: Annotated[
        int | None,
        Option(min=20, help="Rows that umap or tsne is fitted to.", show_default="20000, 10000 for tsne"),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Project every row to two dimensions, and store the map with the rows.

    The map becomes an array of the store, such as store["query_embed_pca"];
    the rows stay as they are. umap and tsne are fitted to a sample drawn from
    every group of --by; the other rows are placed near it.
    """
    from zarrow.analysis import map_rows

    with open_store(path) as store, progress_bar() as bar:
        made = map_rows(
            store,
            array,
            method,
            name=name,
            by=by,
            sample_rows=sample_rows,
            seed=seed,
            progress=bar,
            stage=bar.stage,
        )
    shares = made.explained_variance_ratio
    how = f", {sum(shares):.1%} of the variance" if shares else f", fitted to {made.sample_rows:,} rows"
    text = (
        f"[green]mapped[/] {made.rows:,} rows of {escape(made.array)} by {made.method}{how}\n"
        f"stored as the array [bold]{escape(str(made.name))}[/] of {escape(named(path))}; to draw it: "
        f"[cyan]zarrow plot {escape(named(path))} --map {escape(str(made.name))} -o map.png[/]"
    )
    answer(made.to_dict(), text, as_json=as_json)


@app.command(rich_help_panel="Draw")
def plot(
    path: StorePath,
    output: Annotated[Path, out_option("File to write: .png, .svg or .pdf.", show_default=False)],
    kind: Annotated[Kind, Option(metavar="KIND", help="map, norms, roc, calibration or drift.")] = "map",
    array: Array = None,
    map_name: Annotated[
        str | None, Option("--map", metavar="NAME", help="map: stored map.", show_default="latest, else PCA")
    ] = None,
    colour: Annotated[
        str | None, Option("--colour", "--color", metavar="NAME", help="map: column to colour by.")
    ] = None,
    probability: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="roc, calibration, drift: column of probabilities.",
            show_default="the likely one; none for drift",
        ),
    ] = None,
    label: Annotated[
        str | None,
        Option(metavar="NAME", help="roc, calibration: column of labels.", show_default="the likely one"),
    ] = None,
    other: Annotated[Path | None, Option(metavar="STORE", help="drift: store to compare with.")] = None,
    on: Annotated[
        Names, comma_list("drift: columns that match rows, comma-separated.", default="the keys")
    ] = (),
    by: By = (),
    as_json: AsJson = False,
) -> None:
    """Draw a map of the rows, vector norms, ROC curves, calibration, or drift between stores.

    zarrow plot run.zarrow --kind map --colour occurs_prob -o map.png

    zarrow plot run.zarrow --kind roc --by query -o roc.svg

    zarrow plot old.zarrow --kind drift --other new.zarrow -o drift.svg
    """
    from zarrow.analysis import plot as pictures

    pictures.check_format(output)
    given: dict[str, Any] = {
        "map": map_name,
        "array": array,
        "colour": colour,
        "by": by,
        "probability": probability,
    }
    given |= {"label": label, "on": on}
    draw, options = getattr(pictures, kind), {name: value for name, value in given.items() if value}
    if kind == "map" and "array" in options:
        if map_name:
            raise InvalidInputError("--map and --array exclude each other: a map is of one array already")
        options["map"] = options.pop("array")
    takes = signature(draw).parameters
    for name in [*options, *(["other"] if other and "b" not in takes else [])]:
        if name not in takes:
            known = ", ".join(f"--{one}" for one in given if one in takes)
            raise InvalidInputError(f"--kind {kind} takes {known}, not --{name}: leave it out")
    if kind == "drift" and other is None:
        raise InvalidInputError("--kind drift compares with a second store: name it with --other")
    with ExitStack() as opened, progress_bar() as bar:
        stores = [opened.enter_context(open_store(one)) for one in (path, other) if one is not None]
        if "progress" in takes:
            options["progress"] = bar
        pictures.save(draw(*stores, **options), output)
    facts = {"file": str(output), "kind": kind, "bytes": output.stat().st_size}
    answer(facts, f"[green]drawn:[/] {escape(str(output))}", as_json=as_json)


@app.command(rich_help_panel="Draw")
def report(
    path: StorePath,
    output: Annotated[Path, out_option("File to write.")] = Path("report.html"),
    map_name: Annotated[
        str | None, Option("--map", help="Stored map, or array.", show_default="the latest map, else PCA")
    ] = None,
    colours: Annotated[
        Names, comma_list("Columns to colour by, comma-separated.", "--colours", "--colors")
    ] = (),
    probability: Probability = None,
    label: Label = None,
    by: Annotated[
        Names, comma_list("Columns to evaluate by, comma-separated.", "--by", default="the tasks")
    ] = (),
    title: Annotated[str | None, Option(help="Title.", show_default="the store's name")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a store: summary, scores, and an interactive map.

    The page needs no network and no server. It contains identifiers and values
    of rows: consider who receives it.
    """
    from zarrow.analysis.report import report as write_report

    with open_store(path) as store, progress_bar() as bar:
        write_report(
            store,
            output,
            map=map_name,
            colours=colours or None,
            probability=probability,
            label=label,
            by=by or None,
            title=title,
            progress=bar,
            stage=bar.stage,
        )
    size = output.stat().st_size
    text = f"[green]written:[/] {escape(str(output))}, {decimal(size)}; open it in a browser"
    answer({"file": str(output), "bytes": size}, text, as_json=as_json)
