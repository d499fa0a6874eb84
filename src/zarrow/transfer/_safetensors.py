"""safetensors — a tensor per array and per numeric column in one file.

The file is the length of a JSON header in eight bytes, the header, and the tensors one after the other
(https://github.com/huggingface/safetensors#format). The library would need every tensor in memory; since all
sizes are known in advance, rows are written to their offsets instead.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format.arrow import is_number, number_dtype
from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage import files
from zarrow.errors import InvalidInputError
from zarrow.transfer._rows import Outgoing

__all__ = ["write"]

_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_ALIGNMENT = 8
COUNT = "_count"


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write a tensor per array and per numeric column."""
    del target
    numbers = [field.name for field in rows.schema if is_number(field.type)]
    if rows.explicit and (others := [name for name in rows.schema.names if name not in numbers]):
        raise InvalidInputError(f"safetensors holds only numbers, got the columns {others}: leave them out")
    rows = rows.only(numbers)
    dtypes = {field.name: number_dtype(field.type) for field in rows.schema}
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(numbers, (rows.rows,))
    for array in rows.arrays:
        dtypes[array.name] = array.dtype
        if not isinstance(array, StoreRagged):
            shapes[array.name] = array.shape
            continue
        count = f"{array.name}{COUNT}"
        if count in dtypes and count != array.count_column:
            raise InvalidInputError(f"{count!r} is the tensor of the counts of {array.name!r}: leave it out")
        shapes[array.name], shapes[count], dtypes[count] = (
            array.packed.shape,
            (rows.rows,),
            np.dtype(np.int64),
        )
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "zarrow_uuid": rows.store.uuid}}
    offsets, end = {}, 0
    # Widest values first, so that every tensor starts at a multiple of its values' size.
    for name in sorted(dtypes, key=lambda name: -dtypes[name].itemsize):
        size_bytes = int(np.prod(shapes[name])) * dtypes[name].itemsize
        offsets[name] = end
        header[name] = {
            "dtype": _DTYPES[dtypes[name].name],
            "shape": list(shapes[name]),
            "data_offsets": [end, end + size_bytes],
        }
        end += size_bytes
    vectors_of = [array.name for array in rows.arrays if isinstance(array, StoreRagged)]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    fd = files.create(scratch)
    try:
        files.write(fd, len(encoded).to_bytes(8, "little") + encoded, 0)
        first_vectors = dict.fromkeys(vectors_of, 0)
        for start, batch, vectors in rows.batches():
            for name in vectors_of:
                found = vectors[name]
                vectors[f"{name}{COUNT}"] = found.counts
                data = np.ascontiguousarray(found.values, dtypes[name])
                offset = 8 + len(encoded) + offsets[name] + first_vectors[name]
                files.write(fd, data.reshape(-1).view(np.uint8).data, offset)
                first_vectors[name] += data.nbytes
                del vectors[name]
            for name, values in (*zip(batch.schema.names, batch.columns, strict=True), *vectors.items()):
                if isinstance(values, pa.Array):
                    if values.null_count:
                        raise InvalidInputError(
                            f"the column {name!r} has a null in rows {start} to {start + len(values)}, which "
                            "safetensors cannot store: choose columns without nulls"
                        )
                    values = values.to_numpy(zero_copy_only=False)
                found = np.ascontiguousarray(values, dtypes[name])
                offset = 8 + len(encoded) + offsets[name] + start * (found.nbytes // max(len(found), 1))
                files.write(fd, found.reshape(-1).view(np.uint8).data, offset)
    finally:
        os.close(fd)
