"""MEDS evaluation — a folder with one Parquet file per task, as meds-evaluation reads it.

meds-evaluation (https://github.com/kamilest/meds-evaluation) scores one task at a time and takes no other
columns than subject, time, label and prediction. So the rows of a store of EveryQuery's predictions are
divided by task: a query and a duration, or the sequence that a multitask row asked. Rows without a label or a
probability are left out. ``tasks.json`` lists the files, in the order of the tasks, with their rows and how
many were left out; a task without a labelled row has no file.

1. One scan counts the rows of every task.
2. Of some tasks at a time the rows are read in the order of the dataset, divided, and appended to their files
   a million at a time, so memory does not grow with the rows.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zarrow._storage import files
from zarrow.analysis._rows.groups import Groups
from zarrow.errors import InvalidInputError
from zarrow.transfer._everyquery import in_sample_order, pipeline_of
from zarrow.transfer._rows import Outgoing

__all__ = ["write"]

_OPEN_FILES = 256
_HELD_ROWS = 1 << 20
_TITLE = 60
_SCHEMA = pa.schema(
    {
        "subject_id": pa.int64(),
        "prediction_time": pa.timestamp("us"),
        "boolean_value": pa.bool_(),
        "predicted_boolean_value": pa.bool_(),
        "predicted_boolean_probability": pa.float32(),
    }
)


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write a folder."""
    del target
    store, names = rows.store, rows.store.schema.names
    pipeline = pipeline_of(names)
    probability = pipeline.probabilities[-1]
    wanted = [*pipeline.keys, pipeline.label, probability]
    lacks = [name for name in wanted if name not in names]
    if lacks or rows.explicit:
        raise InvalidInputError(
            "the columns of MEDS predictions are fixed: do not choose columns"
            if rows.explicit
            else f"{store.path}: an export for meds-evaluation needs the columns {wanted} of EveryQuery's "
            f"predictions, missing {lacks}"
        )
    groups = Groups.of_store(store, pipeline.task)
    count, kept = np.zeros((2, groups.count), np.int64)
    for batch in store.scan(wanted):
        codes = groups.codes(batch)
        count += np.bincount(codes, minlength=groups.count)
        kept += np.bincount(codes[_usable(batch, pipeline.label, probability)], minlength=groups.count)
    files.make_dir(scratch)
    tasks = []
    for number, key in enumerate(groups.keys.to_pylist()):
        title = re.sub(r"[^\w.-]+", "_", "-".join(map(str, _title(key))))[:_TITLE]
        named = {"file": f"{number:05d}-{title}.parquet" if kept[number] else None, **key}
        tasks.append({**named, "rows": int(kept[number]), "left_out": int(count[number] - kept[number])})
    with (scratch / "tasks.json").open("x", encoding="utf-8") as file:
        json.dump(tasks, file, indent=1, default=str)
    order = in_sample_order(store)

    def blocks(first: int) -> Iterator[tuple[Any, pa.Table]]:
        """Yield the usable rows of some tasks, and which task each is of."""
        held: list[pa.RecordBatch] = []
        for batch, _ in store.join(columns=wanted, arrays=[], order=order):
            codes = groups.codes(batch)
            here = (codes >= first) & (codes < first + _OPEN_FILES)
            held.append(batch.filter(pa.array(here & _usable(batch, pipeline.label, probability))))
            if sum(one.num_rows for one in held) >= _HELD_ROWS:
                yield from joined(held)
                held = []
        yield from joined(held)

    def joined(held: list[pa.RecordBatch]) -> Iterator[tuple[Any, pa.Table]]:
        if any(one.num_rows for one in held):
            table = pa.Table.from_batches(held).combine_chunks()
            yield groups.codes(table), table

    for first in range(0, groups.count, _OPEN_FILES):
        with contextlib.ExitStack() as opened:
            writers: dict[int, pq.ParquetWriter] = {}
            for codes, table in blocks(first):
                values = table[probability].cast(pa.float32())
                columns = [table["subject_id"], table["prediction_time"], table[pipeline.label]]
                predictions = pa.table([*columns, pc.greater(values, 0.5), values], schema=_SCHEMA)
                places = np.argsort(codes, kind="stable")
                predictions, codes = predictions.take(pa.array(places)), codes[places]
                starts = np.flatnonzero(np.diff(codes, prepend=-1))
                for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
                    task = int(codes[start])
                    if task not in writers:
                        path = scratch / str(tasks[task]["file"])
                        writers[task] = opened.enter_context(pq.ParquetWriter(path, _SCHEMA))
                    writers[task].write_table(predictions.slice(start, stop - start))
    if rows.progress is not None:
        rows.progress(rows.rows, rows.rows)


def _usable(batch: pa.RecordBatch, label: str, probability: str) -> Any:
    """Return which rows have a label and a probability."""
    known = pc.and_(batch[label].is_valid(), batch[probability].is_valid())
    return pc.and_not(known, pc.is_nan(batch[probability]).fill_null(True)).to_numpy(zero_copy_only=False)


def _title(key: dict[str, Any]) -> list[Any]:
    """Return the parts of a file's name that say what its task is."""
    values = list(key.values())
    try:
        return [" ".join(json.loads(values[0])["queries"])] if len(values) == 1 else values
    except (ValueError, KeyError, TypeError):
        return values
