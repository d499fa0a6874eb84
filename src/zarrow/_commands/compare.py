"""Compare — the command ``zarrow compare``, for the stores of two models or of more.

Two stores are compared in full, more pair by pair. Reads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option, Typer

from zarrow._commands.arguments import (
    Array,
    AsJson,
    By,
    Names,
    Neighbours,
    Seed,
    StorePath,
    comma_list,
    open_store,
)
from zarrow._commands.show_answer import show_left_out
from zarrow._commands.terminal import (
    cell,
    escape,
    grid_of,
    out,
    print_json,
    progress_bar,
    say,
    show_facts,
    show_table,
)
from zarrow._storage.objects import named

__all__ = ["app"]

app = Typer()


@app.command(rich_help_panel="Analyse")
def compare(
    path: StorePath,
    others: Annotated[
        list[Path], Argument(metavar="OTHER...", help="Another store, or several.", show_default=False)
    ],
    on: Annotated[
        Names, comma_list("Columns that match rows, comma-separated, e.g. sample_index.", default="the keys")
    ] = (),
    array: Array = None,
    other_array: Annotated[str | None, Option(help="Array of OTHER.", show_default="the same name")] = None,
    by: By = (),
    probability: Annotated[str | None, Option(help="Column of numbers to compare too.")] = None,
    first: Annotated[
        bool, Option("--first", help="Of several: compare each with STORE only, not with each other.")
    ] = False,
    sample: Annotated[int, Option(min=0, help="Rows whose neighbours are compared.")] = 1000,
    k: Neighbours = 10,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare the vectors of the same rows in two stores, e.g. of two checkpoints, or in several.

    zarrow compare step1000.zarrow step2000.zarrow step3000.zarrow
    """
    options: dict[str, Any] = {
        "on": on or None,
        "probability": probability,
        "sample": sample,
        "k": k,
        "seed": seed,
    }
    if len(others) > 1:
        if by or other_array:
            raise BadParameter("--by and --other-array are for two stores")
        _compare_all([path, *others], as_json=as_json, first=first, array=array, **options)
        return
    from zarrow.analysis import compare as run

    other = others[0]
    with open_store(path) as store, open_store(other) as second, progress_bar() as bar:
        found = run(store, second, array=(array, other_array or array), by=by, progress=bar, **options)
    if as_json:
        print_json(found.to_dict())
        return
    one_sided = len(found.only_a), len(found.only_b)
    say(
        f"{found.matched:,} rows in both; {one_sided[0]:,} only in {escape(named(path))}, {one_sided[1]:,} "
        f"only in {escape(named(other))}"
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
        show_table(found.groups, keys=len(by))
    if found.dimensions is not None:
        out.print("\ndimensions that moved most")
        drift = [abs(value or 0) for value in found.dimensions["drift"].to_pylist()]
        most = sorted(range(len(drift)), key=lambda place: -drift[place])[:5]
        show_table(found.dimensions.take(most))


def _compare_all(paths: Sequence[Path], *, as_json: bool, first: bool, **options: Any) -> None:
    """Compare several stores, pair by pair."""
    from zarrow.analysis import compare_all
    from zarrow.several import model_names

    names = model_names([path.absolute() for path in paths])
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(open_store(path)) for name, path in zip(names, paths, strict=True)
        }
        bar = stack.enter_context(progress_bar())
        found = compare_all(stores, against=names[0] if first else None, progress=bar, **options)
    if as_json:
        print_json(found.to_dict())
        return
    if not first:
        out.print("[bold]linear CKA[/]  (1: the same up to rotation and scale)")
        grid = grid_of({"": False} | dict.fromkeys(found.models, True))
        for name, line in zip(found.models, found.matrix("cka").tolist(), strict=True):
            grid.add_row(escape(name), *(cell(None if value != value else value) for value in line))
        out.print(grid)
        out.print()
    show_table(found.table, keys=2)
