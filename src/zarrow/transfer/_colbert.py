"""ColBERT — a folder of token vectors in chunks, with the number of vectors of each passage.

=============================================  ==============================================================
``doclens.N.json``                             the number of vectors of each passage of chunk N
``N.pt``                                       its vectors, as ColBERT's first version wrote them
``N.codes.pt``, ``N.residuals.pt``             the same, compressed: per vector the number of its centroid,
                                               and per value a bucket of what is left, in as few bits as fit
``centroids.pt``, ``buckets.pt``               the centroids; the buckets' limits and values
``N.codes.npy``, …, ``bucket_weights.npy``     the same as numpy files, as fast-plaid (PyLate) writes them
=============================================  ==============================================================

Compressed vectors are restored as the searchers of these libraries do it: centroid plus the buckets' values,
at length 1 (https://github.com/stanford-futuredata/ColBERT, ``colbert/indexing/codecs/residual.py``). Chunks
are mapped, and restored a batch at a time. All files are checked against each other before the first row.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.given import numpy_values
from zarrow._format.ragged import Ragged, RaggedArray
from zarrow._storage.reading import in_natural_order
from zarrow.errors import BatchError, InvalidInputError
from zarrow.transfer._rows import Incoming, IncomingBatch, missing, row_ranges

__all__ = ["DOCLENS", "read"]

DOCLENS = "doclens.*.json"
ARRAY, KEY = "token_embed", "pid"

Numbers = npt.NDArray[Any]


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the passages of an index: a number each, and their token vectors in float16."""
    if beside is not None:
        raise InvalidInputError(f"{source}: an index holds its vectors itself: leave beside out")
    chunks = [_chunk(path) for path in in_natural_order(source.glob(DOCLENS))]
    if not chunks:
        raise InvalidInputError(f"{source}: this folder has no {DOCLENS}, which an index of ColBERT has")
    names = [chunk.number for chunk in chunks]
    if names != list(range(len(names))):
        gap = next(number for number in itertools.count() if number not in names)
        raise InvalidInputError(f"{source}: doclens.{gap}.json is missing, of chunks up to {names[-1]}")
    first_file, kind = chunks[0].vectors.name, chunks[0].kind
    for chunk in chunks:
        if chunk.kind != kind:
            raise InvalidInputError(
                f"{chunk.vectors}: expected vectors of {kind}, as in {first_file}, got {chunk.kind}"
            )

    def batches() -> Iterator[IncomingBatch]:
        first = 0
        for chunk in chunks:
            for start, stop in row_ranges(chunk.counts, kind.row_bytes):
                passages = np.arange(first + start, first + stop)
                yield pa.record_batch({KEY: passages}), {ARRAY: chunk.rows(start, stop)}, None
            first += len(chunk.counts)

    return Incoming(
        schema=pa.schema({KEY: pa.int64()}),
        arrays={ARRAY: RaggedArray((kind.width,), kind.dtype)},
        total=sum(len(chunk.counts) for chunk in chunks),
        batches=batches,
        keys=(KEY,),
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the vectors of all chunks have in common."""

    width: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.width} {self.dtype}"

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Consecutive passages: where each one's vectors begin, and how to get vectors by their places."""

    number: int
    offsets: npt.NDArray[np.int64]
    vectors: Path
    kind: _Kind
    get: Callable[[slice], Numbers]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    def rows(self, start: int, stop: int) -> Ragged:
        values = self.get(slice(self.offsets[start], self.offsets[stop]))
        return Ragged(values.astype(self.kind.dtype, copy=False), np.diff(self.offsets[start : stop + 1]))


def _chunk(path: Path) -> _Chunk:
    folder, number = path.parent, path.name.split(".")[1]
    if not number.isdecimal():
        raise InvalidInputError(f"{path}: expected doclens.N.json, where N is the number of a chunk")
    offsets = np.concatenate([[0], np.cumsum(_counts(path))])
    plain = folder / f"{number}.pt"
    suffix = next((one for one in (".pt", ".npy") if (folder / f"{number}.codes{one}").exists()), "")
    get: Callable[[slice], Numbers]
    if suffix:
        vectors = folder / f"{number}.codes{suffix}"
        found, kind, get = _compressed(folder, number, suffix)
    elif plain.exists():
        vectors, flat = plain, _load(plain, 2)
        found, kind, get = len(flat), _Kind(flat.shape[1], flat.dtype.name), flat.__getitem__
    else:
        raise InvalidInputError(f"{path}: there is neither {plain.name} nor {number}.codes.pt, its vectors")
    if offsets[-1] != found:
        raise InvalidInputError(
            f"{path}: counts must sum to the number of vectors in {vectors.name}, {found}, got {offsets[-1]}"
        )
    return _Chunk(number=int(number), offsets=offsets, vectors=vectors, kind=kind, get=get)


def _counts(path: Path) -> npt.NDArray[np.int64]:
    try:
        given = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInputError(f"{path}: not JSON: {error}") from error
    if not isinstance(given, list):
        raise InvalidInputError(f"{path}: must be a list of counts, got {type(given).__name__}")
    for row, count in enumerate(given):
        if type(count) is not int or not 0 <= count < 2**31:
            raise InvalidInputError(f"{path}: counts must be integers, 0 or more, got {count!r} in row {row}")
    return np.array(given, np.int64)


def _compressed(folder: Path, number: str, suffix: str) -> tuple[int, _Kind, Callable[[slice], Numbers]]:
    """Return how many vectors a compressed chunk has, their kind, and what restores some of them."""
    codes = _load(folder / f"{number}.codes{suffix}", 1)
    residuals = _load(folder / f"{number}.residuals{suffix}", 2)
    centroids = _load(folder / f"centroids{suffix}", 2)
    weights_path = folder / ("buckets.pt" if suffix == ".pt" else "bucket_weights.npy")
    weights = _load(weights_path, 1, member=1 if suffix == ".pt" else None)
    width = centroids.shape[1]
    bits = residuals.shape[1] * 8 // width
    fits = residuals.dtype == np.uint8 and residuals.shape == (len(codes), width * bits // 8)
    if not fits or bits not in (1, 2, 4, 8) or len(weights) != 1 << bits:
        raise InvalidInputError(
            f"{folder / f'{number}.residuals{suffix}'}: {residuals.shape} {residuals.dtype} does not fit "
            f"{len(codes)} codes, centroids of {width} values and {len(weights)} buckets"
        )
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(centroids):
        raise InvalidInputError(
            f"{folder / f'{number}.codes{suffix}'}: codes must be numbers of the {len(centroids)} centroids, "
            f"got {codes.min()} to {codes.max()}"
        )
    centroids = centroids.astype(np.float32)
    # A byte holds 8 / bits buckets, the first in its highest bits, and of each the lowest bit comes first.
    each = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).reshape(256, 8 // bits, bits)
    of_byte = weights.astype(np.float32)[np.packbits(each, axis=2, bitorder="little")[:, :, 0]]

    def restored(some: slice) -> Numbers:
        found = of_byte[residuals[some]].reshape(-1, width)
        found += centroids[codes[some]]
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        np.divide(found, lengths, out=found, where=lengths > 0)
        return found

    return len(codes), _Kind(width, "float16"), restored


def _load(path: Path, axes: int, *, member: int | None = None) -> Numbers:
    """Return an array of a file, or of a pair that a file has, mapped where its format allows it."""
    if not path.exists():
        raise InvalidInputError(f"{path}: missing, of a compressed index")
    try:
        found = np.load(path, "r", allow_pickle=False) if path.suffix == ".npy" else _load_tensor(path)
        if member is not None:
            found = found[member]
        elif isinstance(found, list):  # of the oldest versions
            found = np.concatenate([numpy_values(one) for one in found])
        array = numpy_values(found)
    except (BatchError, EOFError, LookupError, RuntimeError, TypeError, ValueError, UnpicklingError) as error:
        raise InvalidInputError(f"{path}: not a file of numbers: {error}") from error
    if array.ndim != axes or array.dtype.kind not in "iuf" or 0 in array.shape[1:]:
        raise InvalidInputError(
            f"{path}: expected numbers with {axes} ax{'i' if axes == 1 else 'e'}s, "
            f"got {array.shape} {array.dtype}"
        )
    return array


def _load_tensor(path: Path) -> Any:
    try:
        torch = import_module("torch")
    except ImportError as error:
        raise missing(f"{path.name}, a file of torch,", error, "torch") from error
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
