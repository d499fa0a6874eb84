"""How does a store get other codecs, other segments, or another order of its rows, in bounded memory?

`pack` writes a new store from the rows of an old one:

1. the old one is verified: damage must not be copied under a fresh checksum;
2. its rows are streamed into a `Writer`, as they lie, or in another order: then the narrow columns are
   sorted outside of memory (`sorted_rows`), and the vectors are gathered, block by block, in the order of
   the rows that come out. Vectors that are compressed are first written out plainly, or a chunk would be
   decoded for every row of it;
3. the new one is verified, gets the derived arrays of the old one, and only then takes its place, at once.

A crash leaves the old store as it was and, beside it, a new one that is begun, ``<name>.incoming``, which
the next `pack` or ``Writer(mode="w")`` removes.

Place: above `writer`, `store`, `verify` and `derived`, which it puts together; used by `cli`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.arrow import without_dictionaries
from zarrow._format.codecs import choose
from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._format.spec import rows_of
from zarrow._maintenance.audit import audit
from zarrow._maintenance.sorted_rows import are_sorted, check_sortable, sort_rows
from zarrow._storage import files
from zarrow.derived import add_array
from zarrow.errors import (
    ConflictError,
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    NotFoundError,
    StoreChangedError,
    StoreExistsError,
    WriteFailedError,
    ZarrowError,
    unknown_name,
)
from zarrow.store import Store, StoreArray
from zarrow.store import open as open_store
from zarrow.writer import Writer

__all__ = ["Block", "block_rows", "chosen_codecs", "pack", "rewrite"]

BLOCK_BYTES = 8 << 20
MAX_BLOCK_ROWS = 16_384

_SAMPLE_ROWS = 4096
_SCRATCH_PREFIX = "zarrow-pack-"

Progress = Callable[[str, int, int], None]


def pack(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    order: str | Sequence[str] | None = None,
    codecs: Any = "keep",
    segment_rows: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Rewrite a complete store with other codecs, other segments, or its rows in another order.

    The new store is verified before it takes the place of the old one, at once; whatever ends the process
    before leaves the old one as it was. Columns, keys, sample indices, provenance and derived arrays are
    kept; an index of keys has to be built anew. A store that is as asked for already is left alone.

    Memory is that of a few blocks. The disk needs room for the new store; for another order also for the
    narrow columns, and for vectors that are compressed as plain bytes.

    Parameters
    ----------
    path : path
        A complete store, to which nobody is writing.
    out : path, optional
        Where the new store goes, if the old one is to stay.
    order : str or sequence of str, optional
        Columns to sort the rows by, ascending: ``"sample_index"``, the order of the dataset that was
        predicted, or keys, or any others. Rows that are equal in them keep their order.
    codecs : optional
        As `Writer` has them; None for plain bytes, ``"auto"`` for those that suit the first segment's rows.
        By default those of the store, as for arrays that a mapping leaves out.
    segment_rows : int, optional
        Rows of a segment, a power of two. By default as many as the store has.
    progress : callable of (str, int, int), optional
        Called with what is being done (``"verify"``, ``"sort"``, ``"write"``, ``"verify the new store"``),
        how much of it is done, and how much there is.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        If there is no complete store.
    InvalidInputError
        If an argument breaks a rule; a column that rows are sorted by is not there, or has no order.
    StoreExistsError
        If there is something at `out`.
    StoreLockedError
        If the store is being written or packed by somebody else.
    StoreChangedError
        If rows were appended to it meanwhile.
    CorruptionError
        If the store is damaged; says to repair it.
    WriteFailedError
        If the new store cannot be written; the old one is as it was.

    Examples
    --------
    >>> import tempfile, zarrow, zarrow.testing
    >>> packed = tempfile.mkdtemp() + "/packed.zarrow"
    >>> zarrow.pack(zarrow.testing.example_store().path, packed, order="sample_index", codecs="zstd")
    >>> zarrow.open(packed).in_sample_order()[:3]
    array([0, 1, 2])
    """
    say = progress or (lambda _what, _done, _total: None)
    root = Path(os.path.realpath(path))
    with open_store(root) as store:
        by = _checked_order(store, order)
        if out is None and _is_packed(store, by, codecs, segment_rows):
            return
        target = root if out is None else Path(os.path.realpath(out))
        if target != root and (target / layout.STORE_JSON).exists():
            raise StoreExistsError(f"{target}: there is a store already: pack to another path")
        remedy = "'zarrow repair' puts aside what is damaged; pack the rest then"
        _verify(root, lambda done, total: say("verify", done, total), {"damage"}, remedy)
        blocks = _sorted(store, by, target.parent, say) if by else _as_is(store)
        rewrite(store, blocks, store.num_rows, target, chosen_codecs(store, codecs), segment_rows, say)


def _checked_order(store: Store, order: str | Sequence[str] | None) -> list[str]:
    """Return the columns to sort by; none, if the rows may stay where they are."""
    by = [order] if isinstance(order, str) else list(order or ())
    for name in by:
        if name not in store.schema.names:
            raise unknown_name("column", name, store.schema.names)
    check_sortable(without_dictionaries(store.schema), by)
    if SAMPLE_INDEX in by:
        for batch in store.scan([SAMPLE_INDEX]):
            if batch[SAMPLE_INDEX].null_count:
                raise InvalidInputError(
                    f"{store.path}: rows can be sorted by {SAMPLE_INDEX} only if all were appended with one, "
                    "and some were not: sort them by something else"
                )
    return by


def _is_packed(store: Store, by: list[str], codecs: Any, segment_rows: int | None) -> bool:
    """Tell whether the store is as asked for already."""
    same = isinstance(codecs, str) and codecs == "keep" and segment_rows in (None, store.segment_rows)
    return same and (not by or are_sorted(map(_plain, store.scan(list(dict.fromkeys(by)))), by))


def chosen_codecs(store: Store, codecs: Any) -> Any:
    kept = {name: array.codecs for name, array in store.arrays.items()}
    if isinstance(codecs, str) and codecs == "keep":
        return kept
    by_name = isinstance(codecs, Mapping) and "name" not in codecs
    chosen = {**kept, **codecs} if by_name else dict.fromkeys(kept, codecs)
    for name, array in store.arrays.items():
        if isinstance(chosen[name], str) and chosen[name] == "auto":
            chosen[name] = choose(array[: min(store.segment_rows, _SAMPLE_ROWS)], array.dtype.name)
    return chosen


def _verify(root: Path, progress: Callable[[int, int], None], grades: set[str], remedy: str) -> None:
    for finding in audit(root, "checksums", progress).report.findings:
        if finding.severity in grades:
            raise CorruptionError(f"{root} was not packed: {finding}: {remedy}")


def rewrite(
    store: Store,
    blocks: Iterable[Block],
    rows: int,
    target: Path,
    codecs: Any,
    segment_rows: int | None,
    say: Progress,
) -> None:
    """Write rows of a store into a new one, and that to its place."""
    in_place = target == store.path
    grows_at = target.with_name(target.name + layout.INCOMING_SUFFIX) if in_place else target
    writer = None
    try:
        writer = Writer(
            target,
            arrays={name: (array.row_shape, array.dtype.name) for name, array in store.arrays.items()},
            schema=pa.schema([field for field in store.schema if field.name not in layout.RESERVED_COLUMNS]),
            keys=store.keys,
            mode="w" if in_place else "x",
            segment_rows=segment_rows or store.segment_rows,
            codecs=codecs,
            provenance=store.provenance,
        )
        with tempfile.TemporaryFile(prefix=_SCRATCH_PREFIX, dir=target.parent) as numbers:
            say("write", 0, rows)
            for block in blocks:
                columns = {name: block.table[name] for name in writer.spec.schema.names}  # type: ignore[union-attr]  # declared
                writer.append(columns, block.vectors, block.table[SAMPLE_INDEX], copy=False)
                if store.derived:
                    numbers.write(np.ascontiguousarray(block.rows).data)
                say("write", writer.queued_rows, rows)
            assert writer.queued_rows == rows

            def check(new: Path) -> None:
                remedy = "the disk does not keep what is written to it; the old store is as it was"
                _verify(
                    new,
                    lambda done, total: say("verify the new store", done, total),
                    {"damage", "defect"},
                    remedy,
                )
                _copy_derived(store, numbers, new)
                if in_place:
                    _check_unchanged(store)

            writer.finalize(check=check)
    except BaseException as error:
        with contextlib.suppress(ZarrowError, OSError):  # the error under way is the news
            if writer is not None:
                writer.close()
        if writer is not None or not isinstance(error, ConflictError | NotFoundError):  # else it is not ours
            with contextlib.suppress(OSError):
                files.remove_tree(grows_at)
        failed = isinstance(error, WriteFailedError)  # whose remedy, to go on writing, is not ours
        if not isinstance(error, OSError) or (isinstance(error, ZarrowError) and not failed):
            raise
        number = error.errno or errno.EIO
        reason = os.strerror(number) if failed else error.strerror or error
        raise WriteFailedError(number, f"{target.parent}: {reason}: {store.path} is as it was") from error


def _check_unchanged(store: Store) -> None:
    """Raise if rows were appended: they would be lost with the old store. Its lock is held by now."""
    try:
        changed = store.refresh()
    except IncompleteStoreError:
        changed = True
    if changed:
        raise StoreChangedError(f"{store.path}: somebody wrote to it while it was packed: pack it again")


def _copy_derived(store: Store, numbers: IO[bytes], new: Path) -> None:
    """Store the derived arrays of the old rows beside the new ones."""
    numbers.flush()
    for name, array in store.derived.items():
        if not len(array):
            continue
        with open_store(store.path / layout.DERIVED_DIR / name) as one:
            provenance = one.provenance
        rows = np.memmap(numbers, np.int64, "r")
        gather = _gatherer(array, new.parent)
        step = block_rows([array])
        blocks = (gather(np.asarray(rows[at : at + step])) for at in range(0, len(rows), step))
        add_array(new, name, blocks, provenance=provenance)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the old store, with their numbers there, on their way to the new one."""

    rows: npt.NDArray[np.int64]
    table: pa.Table
    vectors: dict[str, npt.NDArray[Any]]


def block_rows(arrays: Iterable[StoreArray]) -> int:
    row_bytes = sum(int(np.prod(array.row_shape)) * array.dtype.itemsize for array in arrays)
    return min(rows_of(BLOCK_BYTES, row_bytes), MAX_BLOCK_ROWS)


def _as_is(store: Store) -> Iterator[Block]:
    """Yield all rows as they lie."""
    for batch, vectors in store.join(batch_size=block_rows(store.arrays.values())):
        yield Block(batch[ROW].to_numpy(), pa.Table.from_batches([batch]), vectors)


def _sorted(store: Store, by: list[str], scratch: Path, say: Progress) -> Iterator[Block]:
    """Yield all rows, sorted."""
    gatherers = {name: _gatherer(array, scratch) for name, array in store.arrays.items()}
    size = block_rows(store.arrays.values())

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in store.scan():
            yield _plain(batch)
            rows += batch.num_rows
            say("sort", rows, store.num_rows)

    for table in sort_rows(batches(), [*by, ROW], scratch):
        for start in range(0, table.num_rows, size):
            block = table.slice(start, size)
            rows = block[ROW].to_numpy()
            yield Block(rows, block, {name: gather(rows) for name, gather in gatherers.items()})


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows without dictionaries, of which every batch may have another."""
    return batch.cast(without_dictionaries(batch.schema))


def _gatherer(array: StoreArray, scratch: Path) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]:
    """Return what gathers rows of an array at the price of these rows."""
    if array.is_plain or not len(array):
        return array.take
    with tempfile.TemporaryFile(prefix=_SCRATCH_PREFIX, dir=scratch) as file:
        step = block_rows([array])
        for start in range(0, len(array), step):
            file.write(array.read(start, min(start + step, len(array))).data)
        file.flush()
        mapped = np.memmap(file, array.dtype, "r", shape=array.shape)
    return lambda rows: np.asarray(mapped[rows])
