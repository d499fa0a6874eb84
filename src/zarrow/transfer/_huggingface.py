"""Hugging Face — a folder that ``datasets.load_dataset`` reads, described for other catalogues, too.

=========================================  ==================================================================
``data/train-00000-of-00001.parquet``      the columns, and each array as a column of fixed-size lists
``README.md``                              the dataset card: where the data are, what they are, where from
``croissant.json``                         the same in Croissant, for machine-learning catalogues
``ro-crate-metadata.json``                 the same in RO-Crate, for research repositories
=========================================  ==================================================================

Licence, authors and title are the user's to add: a store does not know them.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage import files
from zarrow.errors import printable
from zarrow.store import StoreArray
from zarrow.transfer._croissant import croissant
from zarrow.transfer._parquet import write_parquet
from zarrow.transfer._ro_crate import ro_crate
from zarrow.transfer._rows import Outgoing, to_arrow

__all__ = ["FILES", "write"]

DATA = "data/train-00000-of-00001.parquet"
FILES = re.compile(rf"{DATA}|README\.md|croissant\.json|ro-crate-metadata\.json")
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
