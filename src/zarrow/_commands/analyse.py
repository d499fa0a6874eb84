"""Which commands answer questions about vectors and probabilities?

``describe``, ``nearest``, ``neighbours``, ``pca``, ``probe``, ``evaluate``, ``compose``, ``compare``. As thin
as `cli`, which they are part of and which shows their errors: arguments in, `zarrow.analysis` called, the
answer printed. Progress goes to standard error, so that ``--json`` leaves standard output to machines.

Place: below `cli`, above all else. Reads only, but for ``neighbours`` and the files that are asked for with
``--out``; Ctrl-C leaves the store as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from zarrow._commands.answers import (
    SHOWN_ROWS,
    bar,
    cell,
    err,
    grid_of,
    key_of,
    names,
    open_store,
    out,
    print_json,
    row_number,
    show,
    show_columns,
    show_facts,
    show_left_out,
    show_metric_table,
    show_metrics,
    where_of,
)
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    from zarrow.store import Store

__all__ = ["app"]

app = typer.Typer()

StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store, e.g. run.zarrow.", show_default=False)
]
ArrayName = Annotated[str | None, typer.Option("--array", help="Which array.", show_default="the only one")]
By = Annotated[str, typer.Option("--by", help="Columns to group by, with commas in between.")]
Names = Annotated[str, typer.Option(help="Which, with commas in between.", show_default="all")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="Only rows like query=stroke or occurs_prob>0.9; all of several."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]
Draws = Annotated[int, typer.Option("--bootstrap", min=0, help="Draws for the 95 % intervals.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]


@app.command(rich_help_panel="Analyse")
def describe(
    path: StorePath, arrays: Names = "", columns: Names = "", by: By = "", as_json: AsJson = False
) -> None:
    """Say how vectors and columns are distributed: norms, effective rank, NaNs, quantiles; per group."""
    from zarrow.analysis import describe as run

    with open_store(path) as store, bar() as progress:
        found = run(
            store,
            names(arrays) if arrays else None,
            names(columns) if columns else None,
            names(by),
            progress=progress,
        )
    if as_json:
        print_json(found.to_dict())
        return
    for name, one in found.arrays.items():
        shape = " × ".join(f"{axis:,}" for axis in (one.rows, *one.row_shape))
        out.print(f"[bold]{escape(name)}[/]  {shape} {one.dtype}")
        norm = "–"
        if one.norm_mean is not None:
            quantiles = ", ".join(f"{one.norms.quantile(share):.4g}" for share in (0.05, 0.5, 0.95))
            norm = f"{cell(one.norm_mean)} ± {cell(one.norm_std)}  (5 %, 50 %, 95 %: {quantiles})"
        show_facts(
            {
                "rows with NaN or infinity": f"{one.nonfinite_rows:,}",
                "rows of zeros": f"{one.zero_rows:,}",
                "norm": norm,
                "effective rank": f"{cell(one.effective_rank)} of {len(one.mean):,} dimensions",
                "anisotropy": f"{cell(one.anisotropy)}  (mean cosine of two rows)",
                "dead dimensions": f"{len(one.dead_dimensions):,}  "
                + ", ".join(map(str, one.dead_dimensions[:10])),
            }
        )
        if one.groups is not None:
            show(one.groups, keys=len(names(by)))
        out.print()
    if found.columns.num_rows:
        show_columns(found.columns, keys=len(names(by)) + 1)


@app.command(rich_help_panel="Analyse")
def nearest(
    path: StorePath,
    rows: Annotated[str, typer.Option("--rows", help="Rows to ask about, with commas in between.")] = "",
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="The row to ask about, as COLUMN=VALUE; once per key column."),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="A .npy file of vectors to ask about.")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="A question in words, for vectors of sentences.")] = "",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Package of the sentence model.", show_default="by the vectors' width"),
    ] = None,
    array: ArrayName = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 10,
    metric: Annotated[
        Literal["cosine", "dot", "l2"], typer.Option(help="What near means: cosine, dot or l2.")
    ] = "cosine",
    where: Where = None,
    columns: Names = "",
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave out the rows asked about.")
    ] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Use the index that zarrow neighbours made.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where torch multiplies, e.g. cuda.", show_default="a GPU if any")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the rows whose vectors are nearest: to rows, to the row of a key, to vectors, to a text.

    zarrow nearest run.zarrow --key subject_id=42 --key query=stroke -k 5

    zarrow nearest python-topics.zarrow --text "how do I define a class"
    """
    from zarrow.analysis import nearest as run

    if sum([bool(names(rows)), bool(key), vectors is not None, bool(text)]) != 1:
        raise typer.BadParameter("say what to look for: one of --rows, --key, --vectors, --text")
    with open_store(path) as store, bar() as progress:
        queries: Any
        if vectors is not None:
            queries = _read_vectors(vectors)
        elif text:
            queries = _embed(text, model, store, array)
        elif key:
            queries = key_of(store, key)
        else:
            queries = [row_number(row, store.num_rows) for row in names(rows)]
        found = run(
            store,
            queries,
            array=array,
            k=k,
            metric=metric,
            filter=where_of(store, where),
            exclude_self=exclude_self,
            approximate=approximate,
            device=device,
            progress=progress,
        )
        table = found.table(store, names(columns) if columns else None)
    if as_json:
        print_json({**found.to_dict(), "table": table.to_pylist()})
    else:
        show(table, SHOWN_ROWS if len(found.rows) > 1 else max(k, SHOWN_ROWS), keys=3)


@app.command(rich_help_panel="Analyse")
def neighbours(
    path: StorePath,
    array: ArrayName = None,
    metric: Annotated[
        Literal["cosine", "dot", "l2"], typer.Option(help="What near means: cosine, dot or l2.")
    ] = "cosine",
    as_json: AsJson = False,
) -> None:
    """Make the index that nearest --approximate uses, and say how many true neighbours it finds."""
    import zarrow
    from zarrow.analysis import build_neighbours

    with zarrow.open(path) as store, bar() as progress:
        made = build_neighbours(store, array, metric=metric, progress=progress)
    if as_json:
        facts = ("array", "metric", "rows", "size_bytes", "probes", "recall")
        print_json({"path": str(made.path), **{name: getattr(made, name) for name in facts}})
    else:
        out.print(
            f"[bold]{escape(made.array)}[/] by {made.metric}: {made.rows:,} rows, {made.size_bytes:,} bytes; "
            f"finds {made.recall:.1%} of the true 10 nearest",
            soft_wrap=True,
        )


@app.command(rich_help_panel="Analyse")
def pca(
    path: StorePath,
    array: ArrayName = None,
    components: Annotated[
        int | None, typer.Option("-n", "--components", min=1, help="How many.", show_default="50 or width")
    ] = None,
    where: Where = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write components, mean and variances here, as .npz.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how much of the variance the principal components hold."""
    import numpy as np

    from zarrow.analysis import pca as run
    from zarrow.analysis._pictures.output import in_one_step, require_writable

    if out_file is not None:
        require_writable(out_file)
    with open_store(path) as store, bar() as progress:
        found = run(store, array, components, where_of(store, where), progress=progress)
    if out_file is not None:
        fields = ("components_", "mean_", "explained_variance_", "explained_variance_ratio_")
        with in_one_step(out_file) as scratch, scratch.open("wb") as file:
            np.savez(file, **{name: getattr(found, name) for name in fields})
    if as_json:
        print_json(found.to_dict())
        return
    ratio = found.explained_variance_ratio_
    out.print(
        f"[bold]{escape(found.array)}[/]  {found.n_samples_:,} rows of {len(found.mean_):,} numbers"
        + (f", {found.nonfinite_rows:,} with NaN or infinity left out" if found.nonfinite_rows else "")
    )
    grid = grid_of({"component": True, "variance": True, "share": True, "together": True})
    for place in [*range(min(10, len(ratio))), *range(19, len(ratio), 10)]:
        shares = f"{ratio[place]:.1%}", f"{ratio[: place + 1].sum():.1%}"
        grid.add_row(f"{place + 1}", f"{found.explained_variance_[place]:.4g}", *shares)
    out.print(grid)
    _show_written(out_file)


@app.command(rich_help_panel="Analyse")
def probe(
    path: StorePath,
    label: Annotated[str, typer.Option("--label", help="The column to tell.", show_default=False)],
    array: ArrayName = None,
    group: Annotated[
        str, typer.Option(help="Its values are trained on or tested on, never both; '' for none.")
    ] = "subject_id",
    kind: Annotated[
        Literal["auto", "logistic", "ridge"], typer.Option(help="auto, logistic or ridge.")
    ] = "auto",
    by: By = "",
    where: Where = None,
    test_fraction: Annotated[float, typer.Option(help="The share of groups kept for the test.")] = 0.2,
    regularization: Annotated[float, typer.Option(help="C of logistic, alpha of ridge.")] = 1.0,
    bootstrap: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a linear probe that tells a label from the vectors, and say how well it does on other patients."""
    from zarrow.analysis import probe as run

    with open_store(path) as store, bar() as progress:
        found = run(
            store,
            label,
            array=array,
            group=group or None,
            kind=kind,
            by=names(by),
            filter=where_of(store, where),
            test_fraction=test_fraction,
            regularization=regularization,
            bootstrap=bootstrap,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dict())
        return
    apart = f"; no {escape(found.group)} on both sides" if found.group else ""
    out.print(
        f"[bold]{escape(found.label)}[/] from [bold]{escape(found.array)}[/], {found.kind}: fitted to "
        f"{len(found.train_rows):,} rows, tested on {len(found.test_rows):,}{apart}",
        soft_wrap=True,
    )
    show_left_out({"no label": found.missing_labels, "NaN or infinity in the vector": found.nonfinite_rows})
    if not found.converged:
        err.print("[yellow]the fit did not converge: more --regularization makes it easier[/]")
    show_metrics(found.overall)
    if by or len(found.classes) > 2:
        show_metric_table(found.report, len(names(by)) + (len(found.classes) > 2))


@app.command(rich_help_panel="Analyse")
def evaluate(
    path: StorePath,
    probability: Annotated[str, typer.Option(help="The column of probabilities.")] = "occurs_prob",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "boolean_value",
    by: By = "",
    where: Where = None,
    unit: Annotated[
        str | None, typer.Option(help="Draw its values as a whole, e.g. subject_id.", show_default="rows")
    ] = None,
    bootstrap: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Hold stored probabilities against labels: AUROC, AUPRC, Brier, calibration error; per group.

    zarrow evaluate run.zarrow --label boolean_value --by query,duration_days
    """
    from zarrow.analysis import evaluate as run

    with open_store(path) as store, bar() as progress:
        found = run(
            store,
            probability,
            label,
            by=names(by),
            filter=where_of(store, where),
            unit=unit,
            bootstrap=bootstrap,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dict())
        return
    out.print(f"[bold]{escape(probability)}[/] against [bold]{escape(label)}[/]")
    show_left_out({"no label": found.missing_labels, "no probability": found.missing_probabilities})
    show_metrics(found.overall)
    if by:
        show_metric_table(found.table, len(names(by)))


@app.command(rich_help_panel="Analyse")
def compose(
    path: StorePath,
    how: Annotated[
        Literal["max", "or", "sum", "mean"], typer.Option(help="How to join: max, or, sum or mean.")
    ] = "max",
    over: Annotated[str, typer.Option(help="What tells the joined rows apart.")] = "query",
    by: By = "subject_id,prediction_time",
    probability: Annotated[str, typer.Option(help="The column to join.")] = "occurs_prob",
    label: Annotated[str | None, typer.Option(help="A column of labels to join.")] = None,
    where: Where = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the table here, as Parquet.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join the probabilities of several queries into one per subject and time."""
    from zarrow.analysis import compose as run
    from zarrow.analysis._pictures.output import in_one_step, require_writable

    if out_file is not None:
        require_writable(out_file)
    with open_store(path) as store, bar(running=True):
        table = run(
            store,
            how,
            over,
            names(by),
            probability=probability,
            label=label,
            filter=where_of(store, where),
        )
    if out_file is not None:
        import pyarrow.parquet as pq

        with in_one_step(out_file) as scratch:
            pq.write_table(table, scratch)
    if as_json:
        print_json({"rows": table.num_rows, "table": table.to_pylist()})
    else:
        show(table)
        _show_written(out_file)


@app.command(rich_help_panel="Analyse")
def compare(
    path: StorePath,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Another store.", show_default=False)],
    on: Annotated[
        str, typer.Option(help="Which rows are the same: columns, row or sample_index.", show_default="keys")
    ] = "",
    array: ArrayName = None,
    other_array: Annotated[
        str | None, typer.Option(help="Which array of OTHER.", show_default="of the same name")
    ] = None,
    by: By = "",
    probability: Annotated[str | None, typer.Option(help="A column of numbers to compare too.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Rows whose neighbours are compared.")] = 1000,
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 10,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare the vectors of the same rows in two stores, such as those of two checkpoints."""
    import zarrow
    from zarrow.analysis import compare as run

    with zarrow.open(path) as store, zarrow.open(other) as second, bar() as progress:
        found = run(
            store,
            second,
            on=names(on) if on else None,
            array=(array, other_array or array),
            by=names(by),
            probability=probability,
            sample=sample,
            k=k,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dict())
        return
    one_sided = len(found.only_a), len(found.only_b)
    out.print(
        f"{found.matched:,} rows in both; {one_sided[0]:,} only in {escape(str(path))}, {one_sided[1]:,} "
        f"only in {escape(str(other))}",
        soft_wrap=True,
    )
    show_left_out({"NaN or infinity in a vector": found.nonfinite_rows})
    cosines = f"{cell(found.cosine_mean)} ± {cell(found.cosine_std)}, at least {cell(found.cosine_min)}"
    shared = f"{found.neighbour_overlap:.1%}" if found.neighbour_overlap is not None else "–"
    facts = {
        "linear CKA": f"{cell(found.cka)}  (1: the same up to rotation and scale)",
        "Procrustes": f"{cell(found.procrustes)}  (0: the same up to rotation and scale)",
        "cosine of a row": cosines if found.cosine_mean is not None else "–",
        "shared neighbours": f"{shared} of the {found.k} nearest, over {found.sampled:,} rows",
    }
    if found.probability is not None:
        p = found.probability
        facts[probability or ""] = (
            f"{cell(p['mean_a'])} → {cell(p['mean_b'])}, "
            f"mean |change| {cell(p['mean_absolute_difference'])}, "
            f"KS {cell(p['ks'])}, correlation {cell(p['correlation'])}"
        )
    show_facts(facts)
    if found.groups is not None:
        show(found.groups, keys=len(names(by)))
    if found.dimensions is not None:
        out.print("\ndimensions that moved most")
        drift = [abs(value or 0) for value in found.dimensions["drift"].to_pylist()]
        most = sorted(range(len(drift)), key=lambda place: -drift[place])[:5]
        show(found.dimensions.take(most))


def _show_written(file: Path | None) -> None:
    if file is not None:
        out.print(f"[green]written:[/] {escape(str(file))}", soft_wrap=True)


def _read_vectors(file: Path) -> Any:
    """Return the array of a .npy file."""
    import numpy as np

    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInputError(
            f"{file}: --vectors takes a .npy file of numbers, which this is not"
        ) from error
    if not isinstance(found, np.ndarray):
        raise InvalidInputError(f"{file}: --vectors takes a .npy file, one array, got several: save the one")
    return found


def _embed(text: str, model: str | None, store: Store, array: str | None) -> Any:
    """Return the vector of a question in words."""
    from zarrow.analysis._questions.texts import embed_texts, model_for
    from zarrow.analysis._rows.blocks import choose_array, width_of

    return embed_texts([text], model or model_for(width_of(choose_array(store, array))))
