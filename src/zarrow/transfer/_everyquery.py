"""How do a store and EveryQuery's pair of Parquet files become each other?

`zarrow.transfer._everyquery_files` writes the pair; this module chooses the names, and reads a pair back:
row by
row, the identifiers of both files compared.

Place: tier 5, used by `zarrow.transfer`; imports nothing of EveryQuery.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from zarrow.errors import ConflictError, InvalidInputError
from zarrow.transfer._everyquery_columns import ARRAY, EMBEDDING, KEYS
from zarrow.transfer._everyquery_files import export_predictions
from zarrow.transfer._parquet import open_parquet
from zarrow.transfer._rows import Incoming, Outgoing, batch_rows, from_arrow

__all__ = ["read", "write"]


def write(rows: Outgoing, target: Path, *, overwrite: bool) -> None:
    """Write the predictions, and the embeddings beside them if the store has any."""
    if len(rows.arrays) > 1:
        names = ", ".join(array.name for array in rows.arrays)
        raise InvalidInputError(f"EveryQuery keeps one embedding per row, the store has {names}: choose one")
    if rows.explicit:
        raise InvalidInputError("the columns of EveryQuery's files are fixed: leave columns away")
    embeddings = target.with_name(f"{target.stem}_embeddings.parquet") if rows.arrays else None
    if embeddings is not None and embeddings.exists() and not overwrite:
        raise ConflictError(f"{embeddings}: there is something already: choose another target, or overwrite")
    array = rows.arrays[0].name if rows.arrays else ARRAY
    done = export_predictions(rows.store, target, embeddings, array=array)
    if rows.progress is not None:
        rows.progress(done, rows.rows)


def read(source: Path, beside: Path | None) -> Incoming:
    """Return what a pair of files, or the predictions alone, hold."""
    with contextlib.ExitStack() as files:
        total, schema, predictions = open_parquet(source, files)
        lacks = [name for name in KEYS if name not in schema.names]
        if lacks:
            raise InvalidInputError(f"{source}: EveryQuery's predictions have {list(KEYS)}, missing {lacks}")
        if beside is None:
            empty = pa.RecordBatch.from_pylist([], schema=schema)
            found = from_arrow(total, empty, lambda: predictions(batch_rows(0)), source)
        else:
            count, kinds, embeddings = open_parquet(beside, files)
            lacks = [name for name in (*KEYS, EMBEDDING) if name not in kinds.names]
            if lacks or count != total:
                raise InvalidInputError(
                    f"{beside}: not the embeddings of {source}: "
                    + (f"missing {lacks}" if lacks else f"{count} rows for {total}")
                )
            width = kinds.field(EMBEDDING).type
            size = batch_rows(getattr(width, "list_size", 1024) * 4)

            def pairs() -> Iterator[pa.RecordBatch]:
                done = 0
                for ours, theirs in zip(predictions(size), embeddings(size), strict=True):
                    for name in KEYS:
                        if not ours[name].equals(theirs[name]):
                            raise InvalidInputError(
                                f"{beside}: {name} differs from {source} in rows {done} to "
                                f"{done + ours.num_rows}: the files are of different runs, or orders"
                            )
                    yield ours.append_column(ARRAY, theirs[EMBEDDING])
                    done += ours.num_rows

            first = next(pairs(), None)
            if first is None:
                fields = [*schema, pa.field(ARRAY, kinds.field(EMBEDDING).type)]
                first = pa.RecordBatch.from_pylist([], schema=pa.schema(fields))
            found = from_arrow(total, first, pairs, source)
        found.keys = KEYS
        found.files = files.pop_all()
        return found
