"""safetensors — a tensor per array and per numeric column in one file.

The file is the length of a JSON header in eight bytes, the header, and the tensors one after the other
(https://github.com/huggingface/safetensors#format). The library would need every tensor in memory; since all
sizes are known in advance, rows are written to their offsets instead, and read from a map of the file.

On the way in, a tensor of one axis is a column, and one of several an array, whose first axis is its rows; or
a ragged array, if the tensor ``NAME_count`` says how many vectors each row has. Several files, such as one of
each batch, are read one behind the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import is_number, number_dtype
from zarrow._format.ragged import Ragged, RaggedArray
from zarrow._read.join import Vectors
from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage import files
from zarrow._storage.reading import in_natural_order
from zarrow.errors import InvalidInputError
from zarrow.transfer._rows import (
    Incoming,
    IncomingBatch,
    Outgoing,
    array_names,
    batch_rows,
    from_arrow,
    row_ranges,
    without_columns,
)

__all__ = ["read", "write"]

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
_HEADER_BYTES = 100 << 20  # what the library accepts, too
COUNT = "_count"

Tensors = dict[str, npt.NDArray[Any]]


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


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a file, or of the files of a folder in natural order."""
    if beside is not None:
        raise InvalidInputError("a safetensors file holds its columns itself: leave beside out")
    paths = in_natural_order(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not paths:
        raise InvalidInputError(f"{source}: has no .safetensors file")
    parts = [_Part(path) for path in paths]
    for part in parts[1:]:
        if part.facts != parts[0].facts:
            raise InvalidInputError(
                f"{part.path}: expected the tensors of {paths[0]}, {parts[0].facts}, got {part.facts}"
            )
    first = parts[0]
    names = array_names(first.arrays, source)
    shapes = {names[name]: facts for name, facts in first.arrays.items()}
    total = sum(part.rows for part in parts)
    ranges = [(part, *found) for part in parts for found in part.ranges()]
    table = from_arrow(
        total,
        first.columns(0, min(first.rows, 1)),
        lambda: (part.columns(start, stop) for part, start, stop in ranges),
        source,
    )

    def batches() -> Iterator[IncomingBatch]:
        for (part, start, stop), (columns, _, index) in zip(ranges, table.batches(), strict=True):
            yield columns, {names[name]: one for name, one in part.vectors(start, stop).items()}, index

    return Incoming(schema=table.schema, arrays=shapes, total=total, batches=batches)


class _Part:
    """The rows of one file, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tensors = _tensors(path)
        self._counts: Tensors = {}
        for name in list(tensors):
            counts = tensors.get(f"{name}{COUNT}")
            if counts is not None and counts.ndim == 1 and counts.dtype.kind in "iu":
                self._counts[name] = _checked(tensors.pop(f"{name}{COUNT}"), tensors[name], path, name)
        self._offsets = {
            name: np.concatenate(([0], np.cumsum(counts))) for name, counts in self._counts.items()
        }
        lengths = {name: len(self._counts.get(name, tensor)) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise InvalidInputError(
                f"{path}: the first axis of every tensor must be the rows, as many in each, got "
                f"{lengths or 'none'}"
            )
        self.rows = next(iter(lengths.values()))
        self._vectors = {name: one for name, one in tensors.items() if one.ndim > 1 or name in self._counts}
        self._columns = {name: one for name, one in tensors.items() if name not in self._vectors}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str] | RaggedArray]:
        """The arrays, as a store declares them."""
        return {
            name: RaggedArray(one.shape[1:], one.dtype.name)
            if name in self._counts
            else (one.shape[1:], one.dtype.name)
            for name, one in self._vectors.items()
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Name and kind of every tensor."""
        return {**self.arrays, **{name: one.dtype.name for name, one in self._columns.items()}}

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield consecutive ranges of rows to hold at once."""
        row_bytes = sum(one.nbytes for one in self._vectors.values()) // max(self.rows, 1)
        if not self._counts:
            size = batch_rows(row_bytes)
            yield from ((start, min(start + size, self.rows)) for start in range(0, self.rows, size))
            return
        most = np.max(list(self._counts.values()), axis=0)
        widest = max(one.nbytes // max(len(one), 1) for one in self._vectors.values())
        yield from row_ranges(np.maximum(most, 1), widest)

    def columns(self, start: int, stop: int) -> pa.RecordBatch:
        """Return the columns of consecutive rows."""
        if not self._columns:
            return without_columns(stop - start)
        return pa.record_batch({name: pa.array(one[start:stop]) for name, one in self._columns.items()})

    def vectors(self, start: int, stop: int) -> Vectors:
        """Return the vectors of consecutive rows."""
        found: Vectors = {}
        for name, one in self._vectors.items():
            if name in self._counts:
                low, high = self._offsets[name][[start, stop]].tolist()
                found[name] = Ragged(one[low:high], self._counts[name][start:stop])
            else:
                found[name] = one[start:stop]
        return found


def _checked(
    counts: npt.NDArray[Any], vectors: npt.NDArray[Any], path: Path, name: str
) -> npt.NDArray[np.int64]:
    """Return the counts of a ragged array; raise if they cannot be."""
    if vectors.ndim < 2 or (len(counts) and int(counts.min()) < 0) or int(counts.sum()) != len(vectors):
        raise InvalidInputError(
            f"{path}: {name + COUNT!r} must be 0 or more per row, and sum to the vectors of {name!r}, whose "
            f"shape is {vectors.shape}, got a sum of {int(counts.sum())}"
        )
    return counts.astype(np.int64)


def _tensors(path: Path) -> Tensors:
    """Return the tensors of a file, mapped; bfloat16, which numpy does not have, as float32, in memory."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    try:
        size_bytes = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or size_bytes > min(len(data) - 8, _HEADER_BYTES):
            raise ValueError("its header is cut short")
        header = json.loads(data[8 : 8 + size_bytes].tobytes())
        body, found = data[8 + size_bytes :], {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            low, high = about["data_offsets"]
            if not 0 <= low <= high <= len(body):
                raise ValueError(f"tensor {name!r} is cut short")
            kind = about["dtype"]
            dtype = "uint16" if kind == "BF16" else {code: one for one, code in _DTYPES.items()}.get(kind)
            if dtype is None or not about["shape"]:
                raise InvalidInputError(
                    f"{path}: tensor {name!r} of type {kind} and shape {about['shape']} cannot become a "
                    "column or an array: leave it out of the file"
                )
            raw = body[low:high]
            # A map of bytes may be read at any offset; a copy is made if the values do not lie in line.
            values = np.frombuffer(raw.tobytes() if low % np.dtype(dtype).itemsize else raw, dtype)
            values = values.reshape(about["shape"])
            found[name] = (values.astype("<u4") << 16).view("<f4") if kind == "BF16" else values
    except InvalidInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(f"{path}: not a safetensors file: {error}") from error
    return found
