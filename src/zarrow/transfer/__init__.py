"""Transfer — a store's rows to files of another format, and files of another format to a store.

`export` writes for tools that read neither zarrow nor a pair of Parquet and Zarr; `import_` makes a store
from files that other tools wrote. Both stream: memory is that of a few batches, however many rows there are.
Each format has a module, imported with its library when the format is used, which has ``write(rows, scratch,
target)`` or ``read(source, beside)`` or both. To add one: write the module, and name it in `ExportFormat` or
`ImportFormat`. What the formats share is in `_rows` (the rows on their way) and `_place` (how a finished file
gets its name).

A crash of an export leaves scratch files next to the target (``.<name>.exporting``), which the next export to
it removes, and never half a target; a crash of an import leaves an incomplete store, which the next import
replaces.
"""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from zarrow._format.layout import STORE_JSON, require_utf8
from zarrow._maintenance.copy import copy
from zarrow._storage.objects import ObjectPath, is_remote, located, on_disk
from zarrow.errors import (
    ConflictError,
    InvalidInputError,
    StoreExistsError,
    WriteFailedError,
    did_you_mean,
)
from zarrow.store import Store
from zarrow.store import open as open_store
from zarrow.transfer._place import NO_FILES, in_place, into_bucket
from zarrow.transfer._rows import Outgoing, Progress
from zarrow.writer import Writer

__all__ = ["EXPORTS", "IMPORTS", "ExportFormat", "ImportFormat", "export", "import_"]

ExportFormat = Literal[
    "npy",
    "parquet",
    "huggingface",
    "embedding-atlas",
    "anndata",
    "lance",
    "safetensors",
    "everyquery",
    "meds",
]
ImportFormat = Literal[
    "npy", "parquet", "huggingface", "anndata", "lance", "safetensors", "everyquery", "colbert"
]
EXPORTS: tuple[ExportFormat, ...] = get_args(ExportFormat)
"""What `export` can write."""
IMPORTS: tuple[ImportFormat, ...] = get_args(ImportFormat)
"""What `import_` can read."""

_RAGGED = ("npy", "parquet", "huggingface", "lance", "safetensors")
"""The formats that hold rows of any number of vectors."""

_SUFFIXES = {
    ".npy": "npy",
    ".parquet": "parquet",
    ".h5ad": "anndata",
    ".zarr": "anndata",
    ".lance": "lance",
    ".safetensors": "safetensors",
}


_TORCH = ": load what torch.save wrote with torch.load, and append it with a Writer"
_HINTS = {
    ".csv": ": columns alone are written by 'zarrow sql STORE \"FROM predictions\" --csv', and read beside a "
    ".npy file",
    ".pt": _TORCH,
    ".pth": _TORCH,
}


def export(
    store: Store | str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: ExportFormat | None = None,
    *,
    columns: Sequence[str] | None = None,
    arrays: Sequence[str] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a store's rows, in row order, in another format: whole and durable on return.

    Until then the target is what it was before. Only who may read the store's directory may read what is
    exported. The formats:

    * ``"npy"``: a folder with ``<array>/<array>_0.npy`` per array and ``metadata/metadata_0.parquet``, as
      embedding-reader (and so autofaiss) and clip-retrieval read it; or, if the target ends in ``.npy``,
      one array as one file. Of a ragged array the file has all vectors, and ``<array>/counts.npy`` how many
      each row has.
    * ``"parquet"``: one file with the vectors as ``fixed_size_list`` columns, as embedding-atlas, DuckDB,
      Polars and Hugging Face's datasets read it; ragged arrays as lists of those. Arrays whose rows have
      several axes are ``arrow.fixed_shape_tensor``, which keeps their shape in Arrow, is a flat list to
      others, and is refused by datasets: use ``"huggingface"`` for that.
    * ``"huggingface"``: a folder that ``datasets.load_dataset(folder)`` reads and the Hub shows: the Parquet
      file, a dataset card, and the same description in Croissant and RO-Crate.
    * ``"embedding-atlas"``: one Parquet file with the columns and the coordinates of a stored map
      (`zarrow.analysis.map_rows`) as ``projection_x`` and ``projection_y``; without vectors.
    * ``"anndata"``: AnnData's Zarr layout, the columns in ``obs``, the arrays in ``obsm``; for
      ``anndata.read_zarr`` and ``read_lazy``. Times become text, and dictionaries their values.
    * ``"lance"``: a Lance dataset. Needs ``pip install pylance``.
    * ``"safetensors"``: one file with a tensor per array and per numeric column; of a ragged array one of
      all vectors, and one with the suffix ``_count``.
    * ``"everyquery"``: EveryQuery's predictions, and next to them their embeddings in a file whose name ends
      in ``.embeddings.parquet``.
    * ``"meds"``: a folder with the predictions of each of EveryQuery's tasks in a file of its own, as
      meds-evaluation reads them, and ``tasks.json``, which lists them. Rows without a label are left out.

    Parameters
    ----------
    store : Store or path
        The path of a complete store, or an open `Store`, complete or not.
    target : path or URL
        The file or folder to write; its parent must exist. What goes into a bucket is made in the directory
        for temporary files (``TMPDIR``), then put there, a folder file by file.
    format : str, optional
        One of those above; by default according to the target's suffix.
    columns : list of str, optional
        The narrow columns; by default the user's, for ``"safetensors"`` only the numeric ones.
    arrays : list of str, optional
        The arrays, which may include derived ones; by default all but derived ones.
    overwrite : bool
        Whether to replace an existing target, in one step; not a folder with files of other origin, nor what
        is in a bucket.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.
    progress : callable of (int, int), optional
        Called with the number of rows written so far and in all.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    InvalidInputError
        If the format is unknown, or cannot hold these columns or arrays, or if the target lies in the store
        or contains it.
    UnknownNameError
        If there is no such column or array.
    IncompleteStoreError
        If the store at a path was not finalized.
    ConflictError
        If the target exists and `overwrite` is False, or is a folder with other files, or if another process
        is exporting to it.
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
    path = located(target, storage_options if is_remote(target) else None)
    options = storage_options if is_remote(store) else None
    how: dict[str, Any] = {"columns": columns, "arrays": arrays, "progress": progress}
    if isinstance(path, ObjectPath):
        with into_bucket(target, storage_options, store, overwrite=overwrite) as made:
            return export(store, made, format, storage_options=options, **how)
    require_utf8(path)
    chosen = _format(format, path, EXPORTS, "export")
    if os.path.lexists(path) and not overwrite:
        raise ConflictError(
            f"{path} exists already: choose another target, or replace it with overwrite=True"
        )
    if not isinstance(store, Store):
        with open_store(store, storage_options=options) as opened:
            return export(opened, path, chosen, overwrite=overwrite, **how)
    rows = Outgoing.of(store, columns, arrays, progress, ragged=chosen in _RAGGED)
    module = _module(chosen)
    if chosen == "everyquery":
        module.write(rows, path, overwrite=overwrite)  # two files, which it puts into place itself
    else:
        known = getattr(module, "FILES", NO_FILES)
        with in_place(path, store=store.path, overwrite=overwrite, known=known) as (scratch,):
            module.write(rows, scratch, path)
    return store.num_rows


def import_(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: ImportFormat | None = None,
    *,
    beside: str | os.PathLike[str] | None = None,
    keys: str | Sequence[str] = (),
    codecs: Any = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> int:
    """Make a store from files of another format: complete on return.

    The formats are those of `export`, also as other tools write them:

    * ``"npy"``: one ``.npy`` file, with its table in the Parquet or CSV file `beside`, or a folder in
      embedding-reader's layout: ``.npy`` files in one folder per array (or directly in it), Parquet files in
      ``metadata``, each in the order of the numbers in their names. With ``counts.npy`` beside them, the
      vectors of a folder are a ragged array.
    * ``"parquet"``: a file, or a folder of files; lists of numbers of equal length and tensors of a fixed
      shape become arrays, and lists of fixed-size lists ragged ones.
    * ``"huggingface"``: a folder of ``datasets.Dataset.save_to_disk``, such as the activations that SAELens
      caches, or of Parquet files. Features ``Array2D`` of any length, and those beside ``token_ids``, become
      ragged arrays.
    * ``"anndata"``: a Zarr group or ``.h5ad`` file; ``obs`` becomes columns, ``obsm`` and a dense ``X``
      arrays. ``.h5ad`` needs ``pip install h5py``.
    * ``"lance"``: a dataset. Needs ``pip install pylance``.
    * ``"safetensors"``: a file, or a folder of files; tensors of one axis become columns, others arrays, and
      those beside a tensor with the suffix ``_count`` ragged ones. bfloat16 becomes float32.
    * ``"everyquery"``: the predictions, and the embeddings in the file `beside`, by default the one that
      EveryQuery wrote with them, whose identifiers are compared.
    * ``"colbert"``: the folder of an index of ColBERT, PyLate or RAGatouille, compressed or not: a row per
      passage, with its number as ``pid`` and its token vectors as the ragged array ``token_embed``. Files
      that end in ``.pt`` need ``pip install torch``.

    Characters that no array's name may have become ``_``. A column ``sample_index`` of integers becomes the
    store's.

    Parameters
    ----------
    source : path
        The file or folder to import.
    path : path or URL
        The store to make. One in a bucket is made in the directory for temporary files (``TMPDIR``), then
        copied there.
    format : str, optional
        One of those above; by default according to the source's suffix, or to the files that only a folder
        of ``"huggingface"`` or ``"colbert"`` has.
    beside : path, optional
        The second file of a pair.
    keys : sequence of str
        Columns that name a row; for ``"everyquery"`` its identifiers by default.
    codecs : optional
        As in `zarrow.Writer`.
    overwrite : bool
        Whether to replace an existing store, which stays in place until the new one is complete; not in a
        bucket.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.
    progress : callable of (int, int), optional
        Called with the number of rows read so far and in all.

    Returns
    -------
    int
        Rows of the store.

    Raises
    ------
    InvalidInputError
        If the format is unknown, the source is not of it, or it has values that a store cannot hold.
    StoreExistsError
        If `path` exists and `overwrite` is False.
    MissingExtraError
        If the format's library is not installed.
    OSError
        If the source cannot be read or the store cannot be written.

    Examples
    --------
    >>> import tempfile, zarrow.testing
    >>> folder = tempfile.mkdtemp()
    >>> export(zarrow.testing.example_store(), folder + "/run", "npy")
    5000
    >>> import_(folder + "/run", folder + "/again.zarrow", "npy", keys=["subject_id", "query"])
    5000
    """
    place = located(path, storage_options)
    if isinstance(place, ObjectPath):
        _require_free(place, overwrite=overwrite)
        with tempfile.TemporaryDirectory(prefix="zarrow-import-") as folder:
            made = Path(folder, "made.zarrow")
            done = import_(source, made, format, beside=beside, keys=keys, codecs=codecs, progress=progress)
            copy(made, place)
        return done
    origin, goal = Path(os.path.abspath(on_disk(source))), place
    require_utf8(origin)
    chosen = _format(format or _recognised(origin), origin, IMPORTS, "import")
    if not origin.exists():
        raise FileNotFoundError(f"{origin}: no such file or directory to import")
    for one in (origin, beside):
        if one is not None and Path(os.path.realpath(goal)) in Path(os.path.realpath(one)).parents:
            raise InvalidInputError(f"{goal}: contains {one}, which is imported: choose another path")
    with _module(chosen).read(origin, None if beside is None else Path(os.path.abspath(beside))) as rows:
        try:
            writer = Writer(
                goal,
                schema=rows.schema,
                arrays=rows.arrays,
                keys=keys or rows.keys,
                mode="w" if overwrite else "x",
                codecs=codecs,
                provenance={"imported_from": str(origin), "imported_as": chosen},
            )
        except StoreExistsError as error:
            raise StoreExistsError(
                f"{goal} exists already: choose another path, or replace it with overwrite=True"
            ) from error
        done = 0
        try:
            for columns, vectors, sample_index in rows.batches():
                writer.append(columns, vectors, sample_index, copy=True)
                done += columns.num_rows
                if progress is not None:
                    progress(done, max(rows.total, done))
            writer.finalize()
        except BaseException as error:
            writer.discard()
            if isinstance(error, WriteFailedError):  # it says which rows are safe
                why = os.strerror(error.errno or errno.EIO)
                raise OSError(error.errno, f"{goal}: {why}: nothing was imported") from error
            raise
    return done


def _require_free(place: ObjectPath, *, overwrite: bool) -> None:
    if overwrite:
        raise InvalidInputError(
            f"{place}: a store in a bucket cannot be replaced at once: import to another URL, or remove this "
            "one first, manifest.json before the rest"
        )
    if place.exists(STORE_JSON):
        raise StoreExistsError(f"{place} exists already: choose another URL")


def _format(format: str | None, path: Path, known: Sequence[str], what: str) -> Any:
    chosen = _SUFFIXES.get(path.suffix, "") if format is None else format
    if chosen not in known:
        hint = _HINTS.get(path.suffix if path.suffix or not path.is_dir() else _first_suffix(path), "")
        got = f"none, and {path.name!r} has no suffix of one" if format is None else repr(format)
        got += did_you_mean(path.suffix[1:] if format is None else format, known)
        raise InvalidInputError(f"the format of an {what} must be one of {', '.join(known)}, got {got}{hint}")
    return chosen


def _first_suffix(folder: Path) -> str:
    return next((path.suffix for path in sorted(folder.iterdir()) if path.is_file()), "")


def _recognised(folder: Path) -> ImportFormat | None:
    """Return the format of a folder that has a file which no other format's has."""
    if any(folder.glob("doclens.*.json")):
        return "colbert"
    return "huggingface" if (folder / "state.json").exists() else None


def _module(format: str) -> Any:
    return importlib.import_module(f"zarrow.transfer._{format.replace('-', '_')}")
