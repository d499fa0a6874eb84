"""Hugging Face — folders of its datasets: what ``load_dataset`` reads, and what ``save_to_disk`` writes.

Out goes a folder for ``datasets.load_dataset`` and the Hub, described for other catalogues, too:

=========================================  ==================================================================
``data/train-00000-of-00001.parquet``      the columns, and each array as a column of fixed-size lists
``README.md``                              the dataset card: where the data are, what they are, where from
``croissant.json``                         the same in Croissant, for machine-learning catalogues
``ro-crate-metadata.json``                 the same in RO-Crate, for research repositories
=========================================  ==================================================================

Licence, authors and title are the user's to add: a store does not know them.

In comes such a folder, or one of ``datasets.Dataset.save_to_disk``: ``state.json``, which lists streams of
Arrow (``data-00000-of-00001.arrow``), and ``dataset_info.json``. Two-dimensional features of any length are
ragged arrays, and so are those beside ``token_ids``, the activations of SAELens' ``CacheActivationsRunner``:
a row per sequence, a vector per token. The streams are mapped, and only a batch of them is held.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from zarrow._format.arrow import rebatched
from zarrow._format.ragged import Ragged
from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage import files
from zarrow.errors import InvalidInputError, printable
from zarrow.store import StoreArray
from zarrow.transfer import _parquet
from zarrow.transfer._croissant import croissant
from zarrow.transfer._parquet import write_parquet
from zarrow.transfer._ro_crate import ro_crate
from zarrow.transfer._rows import Incoming, Outgoing, batch_rows, from_arrow, to_arrow

__all__ = ["FILES", "STATE", "read", "write"]

DATA = "data/train-00000-of-00001.parquet"
FILES = re.compile(rf"{DATA}|README\.md|croissant\.json|ro-crate-metadata\.json")
STATE = "state.json"
"""The file that a folder of ``save_to_disk`` has."""
TOKENS = "token_ids"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write the folder."""
    files.make_dir(scratch)
    files.make_dir(scratch / "data")
    schema, batches = to_arrow(rows)
    write_parquet(scratch / DATA, schema, batches, [field.name for field in rows.schema])
    with open(scratch / DATA, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = target.name, _summary(rows), str(rows.store.provenance.get("created", ""))
    documents = {
        "croissant.json": croissant(*about, schema, DATA, sha256),
        "ro-crate-metadata.json": ro_crate(*about, DATA, (scratch / DATA).stat().st_size, rows),
    }
    for file_name, document in documents.items():
        (scratch / file_name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (scratch / "README.md").write_text(_card(rows, *about[:2]), encoding="utf-8")


def _per_row(array: StoreArray | StoreRagged) -> str:
    if isinstance(array, StoreRagged):
        return f"any number of {list(array.vector_shape)}"
    return str(list(array.row_shape))


def _axes(array: StoreArray | StoreRagged) -> list[str]:
    """Return the shape of a row in words."""
    return ["any" if axis is None else str(axis) for axis in array.shape[1:]]


def _summary(rows: Outgoing) -> str:
    arrays = [f"{one.name} ({' × '.join(_axes(one))} {one.dtype.name})" for one in rows.arrays]
    return f"{rows.rows:,} rows of a model's predictions; vectors: {', '.join(arrays) or 'none'}."


def _card(rows: Outgoing, name: str, text: str) -> str:
    size = next((size for most, size in _SIZES if rows.rows < most), "n>1M")
    keys = rows.store.keys
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/*.parquet",
        "size_categories:",
        f"- {size}",
        "tags:",
        "- embeddings",
        "---",
        "",
        f"# {_code(name)}",
        "",
        _code(text),
        "",
        *(f"* {_code(one.name)}: {one.type}{', key' * (one.name in keys)}" for one in rows.schema),
        *(f"* {_code(one.name)}: {one.dtype.name}, {_per_row(one)} per row" for one in rows.arrays),
        "",
        "Exported from a zarrow store; its provenance:",
        "",
        "```json",
        json.dumps({**rows.store.provenance, "uuid": rows.store.uuid}, indent=1, default=str),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Return a text as code in Markdown, whatever characters it has."""
    return f"`{printable(text).replace('`', chr(39))}`"


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a folder."""
    if beside is not None:
        raise InvalidInputError(f"{source}: a dataset holds its vectors itself: leave beside out")
    if (source / "dataset_dict.json").exists():
        splits = _document(source / "dataset_dict.json").get("splits", [])
        names = ", ".join(str(source / str(split)) for split in splits)
        raise InvalidInputError(f"{source}: a dataset of several splits: import one of {names}")
    if not (source / STATE).exists():
        if source.is_dir() and any(source.glob("**/*.parquet")):
            return _parquet.read(source, None)
        raise InvalidInputError(f"{source}: expected a folder with {STATE} or *.parquet, which has neither")
    features = _document(source / "dataset_info.json").get("features") or {}
    ragged = [name for name, feature in features.items() if _is_ragged(feature, TOKENS in features)]
    streams = [_Stream(path) for path in _data_files(source)]
    schema = streams[0].schema
    for stream in streams:
        if stream.schema != schema:
            raise InvalidInputError(
                f"{stream.path}: its columns differ from those of {streams[0].path.name}: "
                "import them one at a time"
            )
    total = sum(stream.rows for stream in streams)
    size = batch_rows(sum(stream.size_bytes for stream in streams) // max(total, 1))

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in rebatched((one for stream in streams for one in stream.batches()), size):
            yield _plain(batch, ragged, f"{source}: rows from {done} on")
            done += batch.num_rows

    first = next(batches(), None)
    if first is None:
        first = _plain(pa.RecordBatch.from_pylist([], schema=schema), ragged, f"{source}: no rows")
    return from_arrow(total, first, batches, source)


def _is_ragged(feature: Any, has_tokens: bool) -> bool:
    """Tell whether a feature is of rows of any number of vectors, such as one per token."""
    if not isinstance(feature, dict) or feature.get("_type") != "Array2D":
        return False
    return has_tokens or next(iter(feature.get("shape") or [0])) is None


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise InvalidInputError(f"{path}: missing, or not JSON, of a folder of datasets: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{path}: must be an object, got {type(found).__name__}")
    return found


def _data_files(source: Path) -> list[Path]:
    listed = _document(source / STATE).get("_data_files")
    try:
        names = [str(one["filename"]) for one in listed]  # type: ignore[union-attr]
    except (TypeError, KeyError) as error:
        raise InvalidInputError(f"{source / STATE}: lists no _data_files, each with its filename") from error
    if not names:
        raise InvalidInputError(f"{source / STATE}: lists no file")
    return [source / Path(name).name for name in names]


class _Stream:
    """The batches of a mapped Arrow stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as file:
                self._bytes = file.read_buffer()  # which keeps the map
            self.schema = pa.ipc.open_stream(self._bytes).schema.remove_metadata()
            self.rows = sum(batch.num_rows for batch in self.batches())
        except FileNotFoundError as error:
            raise InvalidInputError(f"{path}: missing, though {STATE} lists it") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInputError(f"{path}: not a stream of Arrow: {error}") from error
        self.size_bytes = self._bytes.size

    def batches(self) -> Iterator[pa.RecordBatch]:
        for batch in pa.ipc.open_stream(self._bytes):
            yield batch.replace_schema_metadata(None)


def _plain(batch: pa.RecordBatch, ragged: list[str], what: str) -> pa.RecordBatch:
    """Return a batch without the types of datasets, and with ragged columns as lists of fixed-size lists."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        if name in ragged:
            try:
                column = Ragged.of(column).to_arrow()
            except InvalidInputError as error:
                raise InvalidInputError(f"{what}: column {name!r}: {error}") from error
        columns[name] = column
    return pa.record_batch(columns)
