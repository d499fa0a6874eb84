"""Keep — ``zarrow finalize``, ``pack``, ``verify``, ``repair``, ``index``, ``remove``: care of a store.

``repair`` and ``verify`` say what is damaged, ``pack`` rewrites a store, ``finalize`` completes one whose run
ended early. Each of them calls the function of that name; whatever ends the command in the middle leaves
what that function promises.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from typer import Argument, BadParameter, Exit, Option, Typer

from zarrow._commands.arguments import AsJson, Names, StorePath, comma_list, open_store
from zarrow._commands.show_audit import show_repair, show_report
from zarrow._commands.show_store import facts_of, show_info
from zarrow._commands.terminal import (
    answer,
    counted,
    err,
    escape,
    print_json,
    progress_bar,
    say,
    show_facts,
)
from zarrow._format.bucket import HOLDER
from zarrow._format.spec import rows_of_expected
from zarrow._storage.objects import is_remote, named, on_disk
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    from zarrow.analysis import QuantizationError

__all__ = ["app"]

app = Typer()


@app.command(rich_help_panel="Keep")
def finalize(
    path: StorePath,
    sort: Annotated[
        bool, Option("--sort", help="Sort the rows by sample_index, the dataset's order.")
    ] = False,
    drop_duplicates: Annotated[
        bool, Option("--drop-duplicates", help="Keep one of each row that several ranks predicted.")
    ] = False,
    partial: Annotated[
        bool, Option("--partial", help="Complete it even if it has fewer rows than its run expected.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Complete a store whose run was killed, with the rows accepted so far."""
    import zarrow
    from zarrow._predict.stored_samples import drop_repeated, stored_samples

    if sort or drop_duplicates:
        on_disk(path)  # raises if it is a URL
    with zarrow.open(path, partial=True) as store:  # raises if there is no store: a writer would create one
        name = escape(named(path))
        rows, complete, expected = store.num_rows, store.complete, store.expected_rows
        order = [name for name in ("dataloader_idx", "sample_index") if name in store.schema.names]
        if not complete and "predict" in store.provenance and not drop_duplicates:
            stored_samples(path)  # raises if the run's ranks stored a row twice
    dropped = 0
    if drop_duplicates:
        dropped = drop_repeated(path, partial=partial)
        rows -= dropped
    elif not complete or (is_remote(path) and (store.path / HOLDER).exists()):  # killed before the last step
        # In a bucket together with others, which are not to lose the store by a command that then refuses.
        with zarrow.Writer(path, mode="a", shared=is_remote(path)) as writer:
            writer.finalize(partial=partial)
        with zarrow.open(path) as store:
            rows = store.num_rows
    if sort:
        _pack(path, None, order=order)
    has = rows_of_expected(rows, expected)
    gone = f"dropped {counted(dropped, 'duplicate')} of {rows + dropped:,} rows\n" if drop_duplicates else ""
    text = f"{name} is complete already: {has}" if complete else f"[green]complete:[/] {name} has {has}"
    facts = {"path": named(path), "rows": rows, "expected_rows": expected, "dropped_rows": dropped}
    answer(facts, gone + text, as_json=as_json)


@app.command(rich_help_panel="Keep")
def pack(
    path: StorePath,
    new: Annotated[
        Path | None,
        Argument(metavar="OUT", help="Write here instead of replacing STORE.", show_default=False),
    ] = None,
    order: Annotated[
        Names, comma_list("Columns to sort by, comma-separated, e.g. sample_index.", default="unchanged")
    ] = (),
    codecs: Annotated[
        Names,
        comma_list(
            "none, auto, crc32c, blosc, zstd or pcodec; or per array: name=codec, comma-separated.",
            default="unchanged",
            metavar="CODEC",
        ),
    ] = (),
    segment_rows: Annotated[
        int | None, Option(help="Rows per segment, a power of two.", show_default="unchanged")
    ] = None,
    dtypes: Annotated[
        Names,
        comma_list(
            "name=int8 to quantize an array, or name=float16; comma-separated.",
            default="unchanged",
            metavar="NAME=DTYPE",
        ),
    ] = (),
    as_json: AsJson = False,
) -> None:
    """Rewrite a complete store with other codecs, another segment size, row order or dtypes.

    The old store stays until the new one has been written and verified.
    """
    if not (order or codecs or segment_rows or dtypes or new):
        raise BadParameter("nothing to change: give --order, --codecs, --segment-rows, --dtypes or OUT")
    chosen = _dtypes(dtypes)
    errors = _measured(path, chosen)
    if not as_json:
        _show_errors(errors)
    how = {"codecs": _codecs(codecs), "segment_rows": segment_rows, "dtypes": chosen}
    _pack(path, new, order=list(order), **how)
    facts = facts_of(new or path)
    if errors:
        facts["errors"] = {name: one.to_dict() for name, one in errors.items()}
    show_info(facts, as_json=as_json)


def _dtypes(given: Names) -> dict[str, str]:
    for one in given:
        if "=" not in one:
            raise BadParameter(f"--dtypes takes NAME=DTYPE, such as query_embed=int8, got {one!r}")
    pairs = [one.partition("=") for one in given]
    return {name.strip(): dtype.strip() for name, _, dtype in pairs}


def _measured(path: Path, dtypes: dict[str, str]) -> dict[str, QuantizationError]:
    """Return what other dtypes change, measured on rows of the store; raises if they are impossible."""
    if not dtypes:
        return {}
    from zarrow._maintenance.array_forms import ArrayForms
    from zarrow.analysis import quantization_error

    with open_store(path) as store:
        changed = ArrayForms.of(store, dtypes).changed
        return {name: quantization_error(store, name, dtype=cast("Any", dtypes[name])) for name in changed}


def _show_errors(errors: dict[str, QuantizationError]) -> None:
    for name, found in errors.items():
        say(f"{escape(name)} as {found.dtype}, measured on {found.rows:,} rows:")
        show_facts(
            {
                "largest error": f"{found.max_error:.3g}",
                "relative error": f"{found.relative_error:.3g}",
                "cosine": f"{found.min_cosine:.6f} at least, {found.mean_cosine:.6f} on average",
                "recall@10": f"{found.recall_at_10:.3f}",
            }
        )


def _codecs(given: Names) -> Any:
    def chain_of(codec: str) -> Any:
        chain = codec.strip().split("+")
        return chain[0] if len(chain) == 1 else chain

    if not any("=" in one for one in given):
        return chain_of(",".join(given)) if given else "keep"
    pairs = [one.partition("=") for one in given]
    return {name.strip(): chain_of(codec) for name, _, codec in pairs}


def _pack(path: Path, new: Path | None, **options: Any) -> None:
    import zarrow

    open_store(path).close()  # raises if it is incomplete, and says what to do
    with progress_bar() as bar:
        zarrow.pack(path, new, progress=bar.staged, **options)


@app.command(rich_help_panel="Keep")
def verify(
    path: StorePath,
    level: Annotated[
        Literal["structure", "checksums", "full"],
        Option(help="structure: sizes and indexes; checksums: every byte; full: every value too."),
    ] = "checksums",
    as_json: AsJson = False,
) -> None:
    """Check a store for damage; exit code 0 if it is sound, 1 if not, 2 if it is not a store."""
    import zarrow

    with progress_bar("verifying") as bar:
        report = zarrow.verify(path, level, bar)
    if as_json:
        print_json(json.loads(report.to_json()))
    else:
        show_report(report)
    if not report.ok:
        raise Exit(1)


@app.command(rich_help_panel="Keep")
def repair(
    path: StorePath,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what would be done; exit code 1 if anything.")
    ] = False,
    complete: Annotated[
        bool, Option("--finalize", help="Then complete the store, without what was set aside.")
    ] = False,
    level: Annotated[
        Literal["checksums", "full"], Option(help="How closely to check, as for zarrow verify.")
    ] = "checksums",
    remove_unreferenced: Annotated[
        bool,
        Option("--remove-unreferenced", help="In a bucket: remove objects that are no part of the store."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Move damaged parts to quarantine/, list the rows to predict again, rebuild derived files."""
    import zarrow

    with progress_bar("verifying") as bar:
        done = zarrow.repair(
            path,
            dry_run=dry_run,
            finalize=complete,
            level=level,
            remove_unreferenced=remove_unreferenced,
            progress=bar,
        )
    if as_json:
        print_json(json.loads(done.to_json()))
    else:
        show_repair(done)
    if dry_run and not done.nothing_to_do:
        raise Exit(1)


@app.command(rich_help_panel="Keep")
def index(path: StorePath, as_json: AsJson = False) -> None:
    """Build the index that finds rows by key, and report duplicate keys."""
    import zarrow

    open_store(path).close()  # raises if it is incomplete, and says what to do
    zarrow.build_index(path)
    with zarrow.open(path) as store:
        repeated = store.duplicated()
        keys = store.num_rows - len(repeated)
        text = (
            f"[green]indexed:[/] {escape(named(path))}: {keys:,} keys ({escape(', '.join(store.keys))}) of "
            f"{store.num_rows:,} rows"
        )
        facts = {
            "path": named(path),
            "rows": store.num_rows,
            "keys": list(store.keys),
            "distinct_keys": keys,
        }
        answer(facts, text, as_json=as_json)
        if len(repeated):
            first = store.take(repeated[:5], [*store.keys, "row"], [])[0].to_pylist()
            say(
                f"[yellow]{len(repeated):,} rows have the key of an earlier row[/], which is the one that a "
                f"search by key finds. Store.duplicated() returns all; the first: {escape(str(first))}",
                err,
            )


@app.command(rich_help_panel="Keep")
def remove(
    path: StorePath,
    name: Annotated[str, Argument(metavar="NAME", help="A derived array.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Remove a derived array, which was computed from the rows, such as a map."""
    import zarrow

    with zarrow.open(path, partial=True) as store:
        if name in store.arrays or name in store.ragged or name in store.columns:
            kind = "a column" if name in store.columns else "an array"
            raise InvalidInputError(
                f"{named(path)}: {name!r} is {kind} of the run, and only derived arrays can be removed: "
                "export what is to stay (zarrow export --columns, --arrays) and import it as another store"
            )
    zarrow.remove_array(path, name)
    answer({"path": named(path), "removed": name}, f"[green]removed:[/] {escape(name)}", as_json=as_json)
