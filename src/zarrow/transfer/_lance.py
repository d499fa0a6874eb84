"""Lance — a dataset with each array as a column of fixed-size lists, which Lance can index for search.

Arrays of several axes are tensors of a fixed shape, which Lance stores as flat lists, and gives back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from zarrow.errors import InvalidInputError, printable
from zarrow.transfer._rows import Incoming, Outgoing, from_arrow, missing, to_arrow

try:
    import lance
except ImportError as error:
    raise missing("The format 'lance'", error, "pylance") from error

__all__ = ["read", "write"]

BATCH_ROWS = 4096
FILES = re.compile(r"data/[^/]+\.lance|_versions/[^/]+|_transactions/[^/]+\.txn|_(indices|deletions|refs)/.+")
"""The files of a dataset."""


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write a dataset of one version."""
    if printable(target) != str(target):
        raise InvalidInputError(f"{target}: Lance takes no control characters in a path: rename it")
    schema, batches = to_arrow(rows, tensors=True)
    if dotted := [name for name in schema.names if "." in name]:
        raise InvalidInputError(f"{dotted}: Lance has no dots in the names of columns: leave them out")
    lance.write_dataset(batches, str(scratch), schema=schema)


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of the latest version of a dataset."""
    if beside is not None:
        raise InvalidInputError("a Lance dataset holds its vectors itself: leave beside out")
    try:
        dataset = lance.dataset(str(source))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{source}: not a Lance dataset: {error}") from error

    def batches() -> Iterator[pa.RecordBatch]:
        # Small batches: Lance keeps in memory what it reads ahead.
        scanner = dataset.scanner(
            batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1, scan_in_order=True
        )
        return (batch.replace_schema_metadata(None) for batch in scanner.to_batches())

    first = next(batches(), None)
    if first is None:
        first = pa.RecordBatch.from_pylist([], schema=dataset.schema)
    return from_arrow(dataset.count_rows(), first, batches, source)
