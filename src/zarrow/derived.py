"""Derived arrays — arrays computed from a complete store's rows and stored with them.

`add_array` stores a projection, a reconstruction or a score row by row, so that ``store[name]``,
``store.take``, xarray and other readers find it. The committed rows do not change
(`_read.derived_arrays` says where the array is stored and when it is valid).

A crash of `add_array` leaves the array that was there before, or none; readers ignore what had been written,
and the next attempt replaces it. For a store in a bucket the array is made in the directory for temporary
files, and put there when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import array_spec, layout
from zarrow._format.given import as_array
from zarrow._format.ragged import Ragged, RaggedArray, is_ragged
from zarrow._format.records import Identity
from zarrow._read.catalog import read_spec
from zarrow._read.derived_arrays import DERIVED_FROM, derived_names
from zarrow._storage import files
from zarrow._storage.lock import FileLock
from zarrow._storage.objects import ObjectPath, located
from zarrow._storage.reading import open_file
from zarrow._write.directory import exclusively, require_rows
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    StoreLockedError,
    UnknownNameError,
    WriteFailedError,
    unknown_name,
)
from zarrow.store import Store
from zarrow.store import open as open_store
from zarrow.writer import Writer

__all__ = ["add_array", "remove_array"]

SEGMENT_ROWS = 65_536
"""Many, so that a narrow array takes few files; not too many to seal a segment in little memory."""
APPEND_BYTES = 8 * layout.MEBIBYTE


def add_array(
    store: Store | str | os.PathLike[str],
    name: str,
    values: npt.ArrayLike | Ragged | Iterable[npt.NDArray[Any] | Ragged],
    *,
    provenance: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Store an array that was computed from a store's rows: durable and visible on return.

    An existing derived array of that name is replaced in one step; in a bucket, readers miss it while the new
    one is put there. Stores that are already open see the new one when they are reopened. It belongs
    to the rows of `store`: after an append it is ignored until it is added again.

    Parameters
    ----------
    store : Store, path or URL
        A complete store: the one that the values were computed from, or the path of a store that nothing has
        changed since.
    name : str
        Its name, ``[A-Za-z0-9_-]{1,64}``, which no column or array of the store may have.
    values : array, shape (num_rows, ...), Ragged, or iterable of such blocks
        One row, of at least one axis, for each row of the store, in order; blocks are written as they come.
        Rows of any number of vectors, in any form that `Writer.append` takes, make a ragged array.
    provenance : mapping, optional
        JSON values that say how it was computed.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        If there is no complete store.
    InvalidInputError
        If the name cannot be used, or the blocks are not one array with a row for each of the store's.
    StoreLockedError
        If another process is storing an array of that name, or writing the store.
    StoreChangedError
        If the store has other rows by now than those that the array belongs to.
    WriteFailedError
        If it cannot be written; the store is as it was.

    Examples
    --------
    >>> import tempfile, zarrow, zarrow.testing
    >>> store = zarrow.testing.example_store(tempfile.mkdtemp() + "/example.zarrow")
    >>> zarrow.add_array(store, "doubled", (block["query_embed"] * 2 for _, block in store.join()))
    >>> store = zarrow.open(store.path)
    >>> store["doubled"], list(store.derived)
    (<zarrow.StoreArray 'doubled' (5000, 8) float32 [bytes]>, ['doubled'])
    """
    if not isinstance(store, Store):
        with open_store(store, storage_options=storage_options) as opened:
            store_array(opened, name, values, provenance)
    else:
        store_array(store, name, values, provenance)


def store_array(
    store: Store,
    name: str,
    values: npt.ArrayLike | Ragged | Iterable[npt.NDArray[Any] | Ragged],
    provenance: Mapping[str, Any] | None,
    *,
    locked: bool = False,
) -> None:
    """Do what `add_array` does.

    Parameters
    ----------
    store, name, values, provenance : object
        As in `add_array`.
    locked : bool
        Whether the caller holds the store's lock.
    """
    if not store.complete:
        raise IncompleteStoreError(
            f"{store.path}: only a complete store has derived arrays: finalize it first"
        )
    check_derived_name(name, {*store.arrays, *store.ragged, *store.schema.names}, store.path)
    if isinstance(store.path, ObjectPath):
        _put(store, store.path / layout.DERIVED_DIR / name, name, values, provenance)
        return
    root, identity = Path(os.path.realpath(store.path)), store.identity
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
    with _only_one(target):
        # Under the lock: a pack that begins later takes the array along.
        within = contextlib.nullcontext() if locked else exclusively(root, Identity(**identity))
        try:
            _write(store, target, name, values, provenance, within)
        except WriteFailedError:
            require_rows(root, Identity(**identity))  # or that is why
            raise


def _put(
    store: Store, target: ObjectPath, name: str, values: Any, provenance: Mapping[str, Any] | None
) -> None:
    """Make the array on the disk, and put it into the bucket in place of what is there."""
    with tempfile.TemporaryDirectory(prefix="zarrow-derived-") as folder:
        made = Path(folder) / name
        _write(store, made, name, values, provenance, contextlib.nullcontext())
        try:
            _delete(target)
            found = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
            for path in (*sorted(found - {layout.STORE_JSON}), layout.STORE_JSON):  # which makes it a store
                target.put(path, open_file(made, path))
        except OSError as error:
            raise WriteFailedError(
                error.errno or 0, f"{target}: the derived array cannot be put here: {error.strerror or error}"
            ) from error


def _delete(target: ObjectPath) -> None:
    """Remove the objects of a derived array, those first that make it one."""
    for path in (layout.MANIFEST_JSON, layout.STORE_JSON, *target.names()):
        target.delete(path)


def _write(
    store: Store,
    target: Path,
    name: str,
    values: Any,
    provenance: Mapping[str, Any] | None,
    within: contextlib.AbstractContextManager[object],
) -> None:
    """Write the array as a store of its own, which is completed `within` a context."""
    blocks = _blocks(values, name)
    first = next(blocks, None)
    if first is None:
        raise InvalidInputError(
            f"array {name!r}: must have at least one block, from which its shape is taken, got none"
        )
    if isinstance(first, Ragged) and layout.count_column(name) in store.schema.names:
        raise InvalidInputError(
            f"array {name!r}: its counts are shown as {layout.count_column(name)!r}, which is a column of "
            f"{store.path}: choose another name"
        )
    declared, few = _declared(first)
    writer = Writer(
        target,
        mode="w",
        arrays={name: declared},
        schema=pa.schema([]),
        segment_rows=SEGMENT_ROWS if few else None,
        provenance={**(provenance or {}), DERIVED_FROM: store.identity},
    )
    try:
        with writer:
            _append(writer, name, first, blocks, store.num_rows)
            with within:
                writer.finalize()
    except BaseException:
        writer.discard()
        raise


def remove_array(
    path: str | os.PathLike[str], name: str, *, storage_options: Mapping[str, Any] | None = None
) -> None:
    """Remove a derived array, whether or not it can still be used.

    Parameters
    ----------
    path : path or URL
        The store.
    name : str
        The derived array.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store.
    UnknownNameError
        If the store has no derived array of that name.
    StoreLockedError
        If a writer is active.

    Examples
    --------
    >>> import tempfile, zarrow, zarrow.testing
    >>> store = zarrow.testing.example_store(tempfile.mkdtemp() + "/example.zarrow")
    >>> zarrow.add_array(store.path, "doubled", store["query_embed"][:] * 2)
    >>> zarrow.remove_array(store.path, "doubled")
    >>> list(zarrow.open(store.path).derived)
    []
    """
    place = located(path, storage_options)
    if isinstance(place, ObjectPath):
        read_spec(place)  # raises if there is no store
        _require_derived(place, name)
        _delete(place / layout.DERIVED_DIR / name)
        return
    root = Path(os.path.realpath(place))
    with exclusively(root):  # or a pack would take the array along
        _require_derived(root, name)
        target = root / layout.DERIVED_DIR / name
        try:
            scratch = files.scratch_name(root / layout.OPEN_DIR)
            files.rename(target, scratch)  # gone in one step; a crash after it leaves a scratch directory
            files.sync_dir(root / layout.DERIVED_DIR)
            files.remove_tree(scratch)
        except OSError as error:
            raise WriteFailedError(
                error.errno or 0, f"{target}: the derived array cannot be removed: {error.strerror}"
            ) from error


def _require_derived(root: Path | ObjectPath, name: str) -> None:
    there = derived_names(root)
    if name not in there:
        raise UnknownNameError(f"{root}: {unknown_name('derived array', name, there)}")


def check_derived_name(name: str, taken: Collection[str], path: object) -> None:
    """Raise if a derived array of a store cannot have this name.

    Parameters
    ----------
    name : str
        The name.
    taken : collection of str
        The store's columns and arrays.
    path : path or URL
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


def _declared(first: npt.NDArray[Any] | Ragged) -> tuple[Any, bool]:
    """Return what the writer is told of an array, and whether many rows of it make a segment."""
    if isinstance(first, Ragged):
        row_bytes = first.nbytes // max(len(first), 1)
        declared: Any = RaggedArray(first.vector_shape, first.dtype.name)
    else:
        row_bytes = first.dtype.itemsize * int(np.prod(first.shape[1:]))
        declared = (first.shape[1:], str(first.dtype))
    return declared, row_bytes * SEGMENT_ROWS <= layout.MAX_SHARD_BYTES // 2


def _blocks(values: Any, name: str) -> Iterator[npt.NDArray[Any] | Ragged]:
    whole = (
        hasattr(values, "__array__")
        or hasattr(values, "__arrow_c_stream__")
        or isinstance(values, list | tuple)
    )
    ragged = False
    for block in [values] if whole else values:
        ragged = ragged or is_ragged(block)  # a later block may happen to have rows of one length
        if ragged:
            try:
                found: Any = Ragged.of(block)
            except InvalidInputError as error:
                raise InvalidInputError(f"array {name!r}: {error}") from None
        else:
            found = as_array(name, block)
        if not ragged and found.ndim < 2:
            raise InvalidInputError(
                f"array {name!r}: a block must have the shape (rows, values per row), got {found.shape}: "
                "reshape one value per row to (rows, 1)"
            )
        if found.dtype.name not in array_spec.ZARR_DTYPES:
            raise InvalidInputError(
                f"array {name!r}: a block must be of one of {', '.join(array_spec.ZARR_DTYPES)}, "
                f"got {found.dtype}: convert it"
            )
        yield found


def _append(
    writer: Writer,
    name: str,
    first: npt.NDArray[Any] | Ragged,
    rest: Iterator[npt.NDArray[Any] | Ragged],
    expected: int,
) -> None:
    rows, block = 0, first
    while True:
        rows += len(block)
        if rows > expected:
            break
        step = array_spec.rows_of(APPEND_BYTES, block.nbytes // max(len(block), 1))
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
