"""Analyse — questions about vectors and probabilities, from ``zarrow describe`` to ``zarrow compose``.

Each command calls the function of that name in `zarrow.analysis` and prints its answer. Only ``neighbours``
writes to the store; a command that is interrupted leaves the store and the file of ``--out`` as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.filesize import decimal
from typer import BadParameter, Option, Typer

from zarrow._commands.arguments import (
    Array,
    Arrays,
    AsJson,
    By,
    Columns,
    Label,
    Names,
    Neighbours,
    Probability,
    Seed,
    StorePath,
    StorePaths,
    Where,
    comma_list,
    key_of,
    open_store,
    open_stores,
    out_option,
    row_numbers,
    where_of,
)
from zarrow._commands.show_answer import show_columns, show_left_out, show_metric_table, show_metrics
from zarrow._commands.terminal import (
    SHOWN_ROWS,
    cell,
    err,
    escape,
    grid_of,
    out,
    print_json,
    progress_bar,
    say,
    show_facts,
    show_table,
)
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    from zarrow.store import Store

__all__ = ["app"]

app = Typer()

Metric = Annotated[Literal["cosine", "dot", "l2"], Option(help="Similarity of two vectors.")]
Draws = Annotated[
    int, Option("--bootstrap", metavar="N", min=0, help="Bootstrap draws for 95 % intervals; 0 for none.")
]


def _ask(
    question: str,
    paths: Path | Sequence[Path],
    *more: Any,
    where: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Return the answer of the function of `zarrow.analysis` that is called as the question."""
    from zarrow import analysis

    listed = [paths] if isinstance(paths, Path) else paths
    with open_stores(listed, partial=True) as store, progress_bar() as bar:
        if where:
            options["filter"] = where_of(store, where)
        return getattr(analysis, question)(store, *more, progress=bar, **options)


@app.command(rich_help_panel="Analyse")
def describe(
    paths: StorePaths,
    arrays: Arrays = (),
    columns: Columns = (),
    by: By = (),
    as_json: AsJson = False,
) -> None:
    """Summarize vectors and columns: norms, effective rank, NaNs, quantiles; per group."""
    found = _ask("describe", paths, arrays or None, columns or None, by)
    if as_json:
        print_json(found.to_dict())
        return
    for name, one in found.arrays.items():
        rows = [f"{one.rows:,}"] if one.vectors is None else [f"{one.vectors.rows:,}", "any"]
        shape = " × ".join([*rows, *(f"{axis:,}" for axis in one.row_shape)])
        out.print(f"[bold]{escape(name)}[/]  {shape} {one.dtype}")
        rows_are = "rows" if one.vectors is None else "vectors"
        norm = "–"
        if one.norm_mean is not None:
            quantiles = ", ".join(f"{one.norms.quantile(share):.4g}" for share in (0.05, 0.5, 0.95))
            norm = f"{cell(one.norm_mean)} ± {cell(one.norm_std)}  (5 %, 50 %, 95 %: {quantiles})"
        show_facts(
            ({} if one.vectors is None else {"vectors": one.vectors.in_words()})
            | {
                f"{rows_are} with NaN or infinity": f"{one.nonfinite_rows:,}",
                f"{rows_are} of zeros": f"{one.zero_rows:,}",
                "norm": norm,
                "effective rank": f"{cell(one.effective_rank)} of {len(one.mean):,} dimensions",
                "anisotropy": f"{cell(one.anisotropy)}  (mean cosine of two {rows_are})",
                "dead dimensions": f"{len(one.dead_dimensions):,}  "
                + ", ".join(map(str, one.dead_dimensions[:10])),
            }
        )
        if one.groups is not None:
            show_table(one.groups, keys=len(by))
        out.print()
    if found.columns.num_rows:
        show_columns(found.columns, keys=len(by) + 1)


@app.command(rich_help_panel="Analyse")
def nearest(
    path: StorePath,
    rows: Annotated[
        Names, comma_list("Row numbers to query by, comma-separated.", "--rows", metavar="ROWS")
    ] = (),
    key: Annotated[
        list[str] | None,
        Option("--key", metavar="COLUMN=VALUE", help="Key to query by; repeat for each key column."),
    ] = None,
    vectors: Annotated[Path | None, Option("--vectors", help="Vectors to query by, a .npy file.")] = None,
    text: Annotated[str, Option("--text", help="Sentence to query by, for sentence embeddings.")] = "",
    model: Annotated[
        str | None,
        Option("--model", help="Package of the sentence model.", show_default="by the vectors' width"),
    ] = None,
    array: Array = None,
    k: Neighbours = 10,
    metric: Metric = "cosine",
    where: Where = None,
    columns: Columns = (),
    exclude_self: Annotated[
        bool, Option("--exclude-self", help="Exclude each query row from its own results.")
    ] = False,
    approximate: Annotated[
        bool, Option("--approximate", help="Use the index built by zarrow neighbours.")
    ] = False,
    device: Annotated[
        str | None, Option(help="Torch device, e.g. cuda.", show_default="a GPU if present")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the rows nearest to given rows, to a key's row, to vectors in a file, or to a sentence.

    zarrow nearest run.zarrow --key subject_id=42 --key query=stroke -k 5

    zarrow nearest python-topics.zarrow --text "how do I define a class"
    """
    from zarrow.analysis import nearest as run

    if sum([bool(rows), bool(key), vectors is not None, bool(text)]) != 1:
        raise BadParameter("give the query by exactly one of --rows, --key, --vectors and --text")
    with open_store(path, partial=True) as store, progress_bar() as bar:
        queries: Any
        if vectors is not None:
            queries = _read_vectors(vectors)
        elif text:
            queries = _embed(text, model, store, array)
        elif key:
            queries = key_of(store, key)
        else:
            queries = row_numbers(rows, store.num_rows)
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
            progress=bar,
        )
        table = found.table(store, columns or None)
    if as_json:
        print_json({**found.to_dict(), "table": table.to_pylist()})
    else:
        show_table(table, SHOWN_ROWS if len(found.rows) > 1 else max(k, SHOWN_ROWS), keys=3)


@app.command(rich_help_panel="Analyse")
def neighbours(
    path: StorePath,
    array: Array = None,
    metric: Metric = "cosine",
    as_json: AsJson = False,
) -> None:
    """Build the index for nearest --approximate, and measure its recall."""
    from zarrow.analysis import build_neighbours

    with open_store(path) as store, progress_bar() as bar:
        made = build_neighbours(store, array, metric=metric, progress=bar)
    if as_json:
        print_json(made.to_dict())
    else:
        say(
            f"[bold]{escape(made.array)}[/] by {made.metric}: {made.rows:,} rows, "
            f"{decimal(made.size_bytes)}; finds {made.recall:.1%} of the true 10 nearest"
        )


@app.command(rich_help_panel="Analyse")
def pca(
    path: StorePath,
    array: Array = None,
    components: Annotated[
        int | None,
        Option(
            "-n", "--components", min=1, help="Number of components.", show_default="50, or the width if less"
        ),
    ] = None,
    where: Where = None,
    out_file: Annotated[
        Path | None, out_option("Write components, mean and variances to this .npz file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how much of the variance the principal components explain."""
    import numpy as np

    from zarrow.analysis._pictures.output import in_one_step, require_writable

    if out_file is not None:
        require_writable(out_file)
    found = _ask("pca", path, array, components, where=where)
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
    grid = grid_of({"component": True, "variance": True, "share": True, "cumulative": True})
    for place in [*range(min(10, len(ratio))), *range(19, len(ratio), 10)]:
        shares = f"{ratio[place]:.1%}", f"{ratio[: place + 1].sum():.1%}"
        grid.add_row(f"{place + 1}", f"{found.explained_variance_[place]:.4g}", *shares)
    out.print(grid)
    _show_written(out_file)


@app.command(rich_help_panel="Analyse")
def probe(
    path: StorePath,
    label: Annotated[str, Option("--label", help="Column to predict.", show_default=False)],
    array: Array = None,
    group: Annotated[
        str,
        Option(
            help="Column whose values training and test do not share; '' for none.",
            show_default="the subjects",
        ),
    ] = "auto",
    kind: Annotated[Literal["auto", "logistic", "ridge"], Option(help="Kind of regression.")] = "auto",
    by: By = (),
    where: Where = None,
    test_fraction: Annotated[float, Option(help="Share of the groups held out for the test.")] = 0.2,
    regularization: Annotated[
        float, Option(help="C of logistic (smaller is stronger), alpha of ridge.")
    ] = 1.0,
    bootstrap: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a linear probe that predicts a label from the vectors, and score it on held-out groups."""
    options: dict[str, Any] = {
        "test_fraction": test_fraction,
        "regularization": regularization,
        "bootstrap": bootstrap,
    }
    options |= {"array": array, "group": group or None, "kind": kind, "seed": seed}
    found = _ask("probe", path, label, by=by, where=where, **options)
    if as_json:
        print_json(found.to_dict())
        return
    apart = f"; no {escape(found.group)} on both sides" if found.group else ""
    say(
        f"[bold]{escape(found.label)}[/] from [bold]{escape(found.array)}[/], {found.kind}: fitted to "
        f"{len(found.train_rows):,} rows, tested on {len(found.test_rows):,}{apart}"
    )
    show_left_out({"no label": found.missing_labels, "NaN or infinity in the vector": found.nonfinite_rows})
    if not found.converged:
        say(
            "[yellow]the fit did not converge: try a smaller --regularization, which is a stronger one[/]",
            err,
        )
    show_metrics(found.overall)
    if by or len(found.classes) > 2:
        show_metric_table(found.report, len(by) + (len(found.classes) > 2))


@app.command(rich_help_panel="Analyse")
def evaluate(
    paths: StorePaths,
    probability: Probability = None,
    label: Label = None,
    by: By = (),
    where: Where = None,
    unit: Annotated[
        str | None,
        Option(help="Column whose values the bootstrap draws, e.g. subject_id.", show_default="rows"),
    ] = None,
    equal_units: Annotated[
        bool, Option("--equal-units", help="Count every value of --unit once, however many rows it has.")
    ] = False,
    censoring: Annotated[
        str | None,
        Option(help="Column of the probability that a row has no label.", show_default="none"),
    ] = None,
    draws: Annotated[
        Literal["rows", "cells"], Option(help="cells: the intervals of EQ_evaluate_multitask.")
    ] = "rows",
    bootstrap: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score stored probabilities against labels: AUROC, AUPRC, Brier, calibration error; per group.

    zarrow evaluate run.zarrow --label boolean_value --by query,duration_days

    zarrow evaluate small.zarrow large.zarrow --by model,query
    """
    if len(paths) > 1 and "model" not in by:
        by = ["model", *by]
    options = {"unit": unit, "bootstrap": bootstrap, "seed": seed}
    options |= {"equal_units": equal_units, "censoring": censoring, "draws": draws}
    found = _ask("evaluate", paths, probability, label, by=by, where=where, **options)
    if as_json:
        print_json(found.to_dict())
        return
    out.print(f"[bold]{escape(found.probability)}[/] against [bold]{escape(found.label)}[/]")
    show_left_out({"no label": found.missing_labels, "no probability": found.missing_probabilities})
    show_metrics(found.overall)
    if by:
        show_metric_table(found.table, len(by))


@app.command(rich_help_panel="Analyse")
def compose(
    path: StorePath,
    how: Annotated[Literal["max", "or", "sum", "mean"], Option(help="How to combine probabilities.")] = "max",
    over: Annotated[
        str | None, Option(help="Column in which the combined rows differ.", show_default="the query")
    ] = None,
    by: Annotated[
        Names, comma_list("Columns to group by, comma-separated.", "--by", default="subject and time")
    ] = (),
    probability: Probability = None,
    label: Annotated[str | None, Option(help="Column of labels, combined too.")] = None,
    where: Where = None,
    out_file: Annotated[Path | None, out_option("Write the table to this Parquet file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Combine the probabilities of several queries into one per subject and time."""
    from zarrow.analysis import compose as run
    from zarrow.analysis._pictures.output import in_one_step, require_writable

    if out_file is not None:
        require_writable(out_file)
    with open_store(path, partial=True) as store, progress_bar("computing"):
        table = run(
            store,
            how,
            over,
            by or None,
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
        show_table(table)
        _show_written(out_file)


def _show_written(file: Path | None) -> None:
    if file is not None:
        say(f"[green]written:[/] {escape(str(file))}")


def _read_vectors(file: Path) -> Any:
    """Return the array of a .npy file."""
    import numpy as np

    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInputError(
            f"{file}: --vectors takes a .npy file of numbers, and this is not one"
        ) from error
    if not isinstance(found, np.ndarray):
        raise InvalidInputError(f"{file}: --vectors takes a .npy file of one array, got several")
    return found


def _embed(text: str, model: str | None, store: Store, array: str | None) -> Any:
    """Return the vector of a sentence."""
    from zarrow.analysis._questions.texts import embed_texts, model_for
    from zarrow.analysis._rows.blocks import choose_array, width_of

    return embed_texts([text], model or model_for(width_of(choose_array(store, array))))
