"""How does a store become files of another kind, and files of another kind a store?

`export` writes a store's rows for tools that read neither Parquet and Zarr side by side nor zarrow;
`import_` makes a store of what others wrote. Both stream: memory is that of a few batches, however many
rows there are. One module per format has the particulars; what they share is in `_rows` (where rows come
from) and `_place` (how a finished file takes its name).

Place: tier 5, the edge that faces other formats; used by `cli`. Loads a format's library when that format
is asked for. A crash of an export leaves ``.<name>.exporting`` beside the target, which the next one
replaces, and never half a target; one of an import an incomplete store, which the next one replaces.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from zarrow.errors import ConflictError, InvalidInputError, StoreExistsError
from zarrow.store import Store
from zarrow.store import open as open_store
from zarrow.transfer._place import in_place
from zarrow.transfer._rows import Outgoing, Progress
from zarrow.writer import Writer

__all__ = ["EXPORTS", "IMPORTS", "ExportFormat", "ImportFormat", "export", "import_"]

ExportFormat = Literal["npy", "parquet", "embedding-atlas", "anndata", "lance", "safetensors", "everyquery"]
ImportFormat = Literal["npy", "parquet", "anndata", "lance", "everyquery"]
EXPORTS: tuple[ExportFormat, ...] = get_args(ExportFormat)
"""What `export` can write."""
IMPORTS: tuple[ImportFormat, ...] = ("npy", "parquet", "anndata", "lance", "everyquery")
"""What `import_` can read."""

_SUFFIXES = {
    ".npy": "npy",
    ".parquet": "parquet",
    ".h5ad": "anndata",
    ".zarr": "anndata",
    ".lance": "lance",
    ".safetensors": "safetensors",
}


def export(
    store: Store | str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: ExportFormat | None = None,
    *,
    columns: Sequence[str] | None = None,
    arrays: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a store's rows, in row order, as files of another kind: whole and durable on return.

    Until then there is nothing at the target, or what was there before. The formats:

    * ``"npy"``: a folder with ``<array>/<array>_0.npy`` per array and ``metadata/metadata_0.parquet``, as
      embedding-reader (and so autofaiss) and clip-retrieval have it; or, if the target ends in ``.npy``,
      one array as one file.
    * ``"parquet"``: one file with the vectors as ``fixed_size_list`` columns, as embedding-atlas, DuckDB,
      Polars and Hugging Face's datasets read it.
    * ``"embedding-atlas"``: one Parquet file with the columns and the places of a stored map
      (`zarrow.analysis.map_rows`) as ``projection_x`` and ``projection_y``; without vectors.
    * ``"anndata"``: AnnData's Zarr layout, the columns in ``obs``, the arrays in ``obsm``; for
      ``anndata.read_zarr`` and ``read_lazy``. Times are text there, and dictionaries their values.
    * ``"lance"``: a Lance dataset. Needs ``pip install pylance``.
    * ``"safetensors"``: one file with a tensor per array and per column of numbers.
    * ``"everyquery"``: EveryQuery's predictions, and their embeddings in a file beside them, whose name ends
      in ``_embeddings.parquet``.

    Parameters
    ----------
    store : Store or path
        A complete store, or a `Store` that is open, incomplete or not.
    target : path
        Where; its parent must exist.
    format : str, optional
        One of those above; by default what the target's suffix says.
    columns : list of str, optional
        The narrow columns; by default the user's, of which ``"safetensors"`` takes the numbers.
    arrays : list of str, optional
        The arrays, derived ones too; all but those by default.
    overwrite : bool
        Whether to replace what is at the target, in one step.
    progress : callable of (int, int), optional
        Called with the rows written so far and those to write.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    InvalidInputError
        If there is no such format, or it cannot hold what is to be written.
    UnknownNameError
        If there is no such column or array.
    IncompleteStoreError
        If the store at a path was not finalized.
    ConflictError
        If there is something at the target and `overwrite` is False.
    MissingExtraError
        If the format's library is not installed.
    OSError
        If the files cannot be written.

    Examples
    --------
    >>> import tempfile, zarrow.testing, pyarrow.parquet as pq
    >>> target = tempfile.mkdtemp() + "/run.parquet"
    >>> export(zarrow.testing.example_store(), target)
    5000
    >>> pq.read_schema(target).field("query_embed").type
    FixedSizeListType(fixed_size_list<element: float not null>[8])
    """
    path = Path(os.path.abspath(target))
    chosen = _format(format, path, EXPORTS, "export")
    if not isinstance(store, Store):
        with open_store(store) as opened:
            return export(
                opened, path, chosen, columns=columns, arrays=arrays, overwrite=overwrite, progress=progress
            )
    if path == store.path or store.path in path.parents:
        raise InvalidInputError(f"{path}: lies in the store that is to be exported: choose another target")
    if os.path.lexists(path) and not overwrite:
        raise ConflictError(f"{path}: there is something already: choose another target, or overwrite it")
    rows = Outgoing.of(store, columns, arrays, progress)
    module = _module(chosen)
    if chosen == "everyquery":
        module.write(rows, path, overwrite=overwrite)  # two files, and in place of its own accord
    else:
        with in_place(path) as (scratch,):
            module.write(rows, scratch, path)
    return store.num_rows


def import_(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: ImportFormat | None = None,
    *,
    beside: str | os.PathLike[str] | None = None,
    keys: Sequence[str] = (),
    codecs: Any = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Make a store of what others wrote: complete on return.

    The formats are those of `export`, as other tools write them, too:

    * ``"npy"``: one ``.npy`` file, with its table in a Parquet file `beside` it, or a folder in
      embedding-reader's layout: ``.npy`` files in one folder per array (or right there), Parquet files in
      ``metadata``, each in the order of their numbers.
    * ``"parquet"``: a file, or a folder of them; lists of numbers that are all equally long become arrays.
    * ``"anndata"``: a Zarr group or ``.h5ad`` file; ``obs`` becomes columns, ``obsm`` and a dense ``X``
      arrays. ``.h5ad`` needs ``pip install h5py``.
    * ``"lance"``: a dataset. Needs ``pip install pylance``.
    * ``"everyquery"``: the predictions, and the embeddings `beside` them, whose identifiers are compared.

    A column ``sample_index`` of integers becomes the store's.

    Parameters
    ----------
    source : path
        What there is.
    path : path
        The store to make.
    format : str, optional
        One of those above; by default what the source's suffix says.
    beside : path, optional
        The second file of a pair.
    keys : sequence of str
        Columns that name a row; for ``"everyquery"`` its identifiers by default.
    codecs : optional
        As `zarrow.Writer` has it.
    overwrite : bool
        Whether to replace a store, which stays in place until the new one is complete.
    progress : callable of (int, int), optional
        Called with the rows read so far and those to read.

    Returns
    -------
    int
        Rows of the store.

    Raises
    ------
    InvalidInputError
        If there is no such format, or the source is not of it, or holds what a store cannot.
    StoreExistsError
        If there is a store and `overwrite` is False.
    MissingExtraError
        If the format's library is not installed.
    OSError
        If the source cannot be read, or the store not be written.

    Examples
    --------
    >>> import tempfile, zarrow.testing
    >>> folder = tempfile.mkdtemp()
    >>> export(zarrow.testing.example_store(), folder + "/run", "npy")
    5000
    >>> import_(folder + "/run", folder + "/again.zarrow", "npy", keys=["subject_id", "query"])
    5000
    """
    place, goal = Path(os.path.abspath(source)), Path(os.path.abspath(path))
    chosen = _format(format, place, IMPORTS, "import")
    if not place.exists():
        raise FileNotFoundError(f"{place}: there is nothing to import at this path")
    if os.path.lexists(goal) and not overwrite:
        raise StoreExistsError(f"{goal}: there is something already: choose another path, or overwrite it")
    rows = _module(chosen).read(place, None if beside is None else Path(os.path.abspath(beside)))
    with (
        rows,
        Writer(
            goal,
            schema=rows.schema,
            arrays=rows.arrays,
            keys=keys or rows.keys,
            mode="w",
            codecs=codecs,
            provenance={"imported_from": str(place), "imported_as": chosen},
        ) as writer,
    ):
        done = 0
        for columns, vectors, sample_index in rows.batches():
            writer.append(columns, vectors, sample_index, copy=True)
            done += columns.num_rows
            if progress is not None:
                progress(done, max(rows.total, done))
        writer.finalize()
    return done


def _format(format: str | None, path: Path, known: Sequence[str], what: str) -> Any:
    chosen = _SUFFIXES.get(path.suffix, "") if format is None else format
    if chosen not in known:
        raise InvalidInputError(
            f"the format of an {what} must be one of {', '.join(known)}, got "
            f"{'none, and ' + repr(path.name) + ' does not tell' if format is None else repr(format)}"
        )
    return chosen


def _module(format: str) -> Any:
    return importlib.import_module(f"zarrow.transfer._{format.replace('-', '_')}")
