"""Derived arrays — arrays computed from a complete store's rows and stored with them.

`add_array` stores a projection, a reconstruction or a score row by row, so that ``store[name]``,
``store.take``, xarray and other readers find it. The committed rows do not change
(`_read.derived_arrays` says where the array is stored and when it is valid).

A crash of `add_array` leaves the array that was there before, or none; readers ignore what had been written,
and the next attempt replaces it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout, spec
from zarrow._format.given import as_array
from zarrow._read.origin import DERIVED_FROM, derived_names, origin
from zarrow._read.view import take_view
from zarrow._storage import files
from zarrow._storage.lock import FileLock
from zarrow.errors import (
    CorruptionError,
    InvalidInputError,
    StoreChangedError,
    StoreLockedError,
    UnknownNameError,
    WriteFailedError,
)
from zarrow.writer import Writer

__all__ = ["add_array", "remove_array"]

SEGMENT_ROWS = 65_536
"""Many, so that a narrow array takes few files; not too many to seal a segment in little memory."""
APPEND_BYTES = 8 * layout.MEBIBYTE


def add_array(
    path: str | os.PathLike[str],
    name: str,
    values: npt.ArrayLike | Iterable[npt.NDArray[Any]],
    *,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Store an array that was computed from a store's rows: durable and visible on return.

    An existing derived array of that name is replaced in one step. Stores that are already open see the new
    one when they are reopened. It belongs to the rows that the store has now: after an append it is ignored
    until it is added again.

    Parameters
    ----------
    path : path
        A complete store.
    name : str
        Its name, ``[A-Za-z0-9_-]{1,64}``, which no column or array of the store may have.
    values : array, shape (num_rows, ...), or iterable of such blocks
        One row, of at least one axis, for each row of the store, in order; blocks are written as they come.
    provenance : mapping, optional
        JSON values that say how it was computed.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        If there is no complete store.
    InvalidInputError
        If the name cannot be used, or the blocks are not one array with a row for each of the store's.
    StoreLockedError
        If another process is storing an array of that name.
    StoreChangedError
        If rows were appended to the store while the array was added.
    WriteFailedError
        If it cannot be written; the store is as it was.

    Examples
    --------
    >>> import tempfile, zarrow, zarrow.testing
    >>> store = zarrow.testing.example_store(tempfile.mkdtemp() + "/example.zarrow")
    >>> zarrow.add_array(store.path, "doubled", (block["query_embed"] * 2 for _, block in store.join()))
    >>> store = zarrow.open(store.path)
    >>> store["doubled"], list(store.derived)
    (<zarrow.StoreArray 'doubled' (5000, 8) float32 [bytes]>, ['doubled'])
    """
    root = Path(os.path.realpath(path))
    view = take_view(root, partial=False)
    taken = {array.name for array in view.spec.arrays} | set(view.spec.table_schema.names)
    check_derived_name(name, taken, root)
    target = root / layout.DERIVED_DIR / name
    if target.is_symlink():
        raise CorruptionError("a symbolic link, which may lead out of the store: remove it", path=target)
    try:
        files.make_dir(root / layout.DERIVED_DIR, exist_ok=True)
        files.sync_dir(root)
    except OSError as error:
        raise WriteFailedError(
            error.errno or 0, f"{target}: a derived array cannot be stored here: {error.strerror}"
        ) from error
    blocks = _blocks(values, name)
    first = next(blocks, None)
    if first is None:
        raise InvalidInputError(
            f"array {name!r}: must have at least one block, from which its shape is taken, got none"
        )
    row_bytes = first.dtype.itemsize * int(np.prod(first.shape[1:]))
    few = row_bytes * SEGMENT_ROWS <= layout.MAX_SHARD_BYTES // 2
    with _only_one(target):
        writer = Writer(
            target,
            mode="w",
            arrays={name: (first.shape[1:], str(first.dtype))},
            schema=pa.schema([]),
            segment_rows=SEGMENT_ROWS if few else None,
            provenance={**(provenance or {}), DERIVED_FROM: origin(view.snapshot)},
        )
        try:
            with writer:
                _append(writer, name, first, blocks, view.rows)
                now = take_view(root, partial=True)
                if origin(now.snapshot) != origin(view.snapshot) or not now.snapshot.complete:
                    raise StoreChangedError(
                        f"{root}: the store changed while {name!r} was computed from it: compute it again"
                    )
                writer.finalize()
        except BaseException:
            with contextlib.suppress(OSError):
                files.remove_tree(writer.grows_at)  # readers would ignore it
            raise


def remove_array(path: str | os.PathLike[str], name: str) -> None:
    """Remove a derived array, whether or not it can still be used.

    Parameters
    ----------
    path : path
        The store.
    name : str
        The derived array.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store.
    UnknownNameError
        If the store has no derived array of that name.

    Examples
    --------
    >>> import tempfile, zarrow, zarrow.testing
    >>> store = zarrow.testing.example_store(tempfile.mkdtemp() + "/example.zarrow")
    >>> zarrow.add_array(store.path, "doubled", store["query_embed"][:] * 2)
    >>> zarrow.remove_array(store.path, "doubled")
    >>> list(zarrow.open(store.path).derived)
    []
    """
    root = Path(os.path.realpath(path))
    take_view(root, partial=True)
    there = derived_names(root)
    if name not in there:
        known = f"it has {', '.join(there)}" if there else "it has none"
        raise UnknownNameError(f"{root}: no derived array {name!r}: {known}")
    target = root / layout.DERIVED_DIR / name
    try:
        files.make_dir(root / layout.OPEN_DIR, exist_ok=True)
        scratch = files.scratch_name(root / layout.OPEN_DIR)
        files.rename(target, scratch)  # gone in one step; a crash after it leaves a scratch directory
        files.sync_dir(root / layout.DERIVED_DIR)
        files.remove_tree(scratch)
    except OSError as error:
        raise WriteFailedError(
            error.errno or 0, f"{target}: the derived array cannot be removed: {error.strerror}"
        ) from error


def check_derived_name(name: str, taken: Collection[str], path: Path) -> None:
    """Raise if a derived array of a store cannot have this name.

    Parameters
    ----------
    name : str
        The name.
    taken : collection of str
        The store's columns and arrays.
    path : Path
        The store.

    Raises
    ------
    InvalidInputError
        If it is not a valid name, or that of a column or array.
    """
    layout.check_name(name, "a derived array")
    if name in taken:
        raise InvalidInputError(
            f"a derived array needs a new name, got {name!r}, which is a column or array of {path}: "
            "choose another one"
        )


def _blocks(values: Any, name: str) -> Iterator[npt.NDArray[Any]]:
    whole = (
        hasattr(values, "__array__")
        or hasattr(values, "__arrow_c_stream__")
        or isinstance(values, list | tuple)
    )
    for block in [values] if whole else values:
        found = as_array(name, block)
        if found.ndim < 2:
            raise InvalidInputError(
                f"array {name!r}: a block must have the shape (rows, values per row), got {found.shape}: "
                "reshape one value per row to (rows, 1)"
            )
        if found.dtype.name not in spec.ZARR_DTYPES:
            raise InvalidInputError(
                f"array {name!r}: a block must be of one of {', '.join(spec.ZARR_DTYPES)}, "
                f"got {found.dtype}: convert it"
            )
        yield found


def _append(
    writer: Writer,
    name: str,
    first: npt.NDArray[Any],
    rest: Iterator[npt.NDArray[Any]],
    expected: int,
) -> None:
    rows, block = 0, first
    while True:
        rows += len(block)
        if rows > expected:
            break
        step = spec.rows_of(APPEND_BYTES, block[:1].nbytes)
        for start in range(0, len(block), step):
            writer.append(None, {name: block[start : start + step]})
        following = next(rest, None)
        if following is None:
            break
        block = following
    if rows != expected:
        more = "or more " if rows > expected else ""
        raise InvalidInputError(
            f"array {name!r} must have a row for each of the store's {expected}, got {rows} {more}rows: "
            "nothing was stored"
        )


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Keep other processes from storing the same array: each would replace the other's."""
    lock = FileLock(target.with_name(target.name + layout.LOCK_SUFFIX))
    if not lock.acquire():
        raise StoreLockedError(
            f"{target}: another process is storing this array: wait until it is done, or stop it"
        )
    try:
        yield
    finally:
        lock.release(remove_file=True)
