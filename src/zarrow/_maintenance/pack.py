"""Pack — a complete store rewritten with other codecs, segments or dtypes, or its rows in another order.

1. If rows are to be sorted, their new order is found first (`external_sort`); it may be the one they have.
2. The old store is verified: damage must not be copied under a new checksum.
3. Its rows are streamed into a `Writer`, in blocks. For another order, the vectors of a block are gathered by
   row. Compressed vectors are first written out uncompressed, or a chunk would be decoded for each row of it.
4. The new store is verified, gets the derived arrays of the old one, and then takes its place in one step.

A store in a bucket is read from there. One that is to lie in a bucket is made in the directory for temporary
files, then uploaded: there is a store when all of it is there.

A crash leaves the old store as it was and, next to where the new one was to be, an unfinished new one,
``NAME.incoming``, which the next `pack` to there removes, and so does ``Writer(mode="w")``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.array_spec import rows_of
from zarrow._format.arrow import without_dictionaries
from zarrow._format.codecs import choose
from zarrow._format.layout import SAMPLE_INDEX
from zarrow._format.quantized import quantize
from zarrow._format.ragged import Ragged, RaggedArray
from zarrow._maintenance.array_forms import ArrayForms
from zarrow._maintenance.audit import audit
from zarrow._maintenance.copy import copy
from zarrow._maintenance.external_sort import SCRATCH_PREFIX, check_sortable, sort, spool, take
from zarrow._read.catalog import read_spec
from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage import files
from zarrow._storage.objects import ObjectPath, is_remote, located
from zarrow._write.directory import empty, exclusively
from zarrow._write.publishing import publish_shape
from zarrow.derived import store_array
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
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

Progress = Callable[[str, int, int], None]


def pack(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    order: str | Sequence[str] | None = None,
    codecs: Any = "keep",
    segment_rows: int | None = None,
    dtypes: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Rewrite a complete store with other codecs, segments or dtypes, or its rows in another order.

    The new store is verified, then takes the place of the old one in one step; if the process dies before
    that, the old store is as it was. Columns, keys, sample indices, provenance and derived arrays are kept;
    an index of keys must be built again. If nothing would change, nothing is written.

    Memory is that of a few blocks, and some 256 MB for sorting. The disk needs room for the new store; for
    another order also for the narrow columns, and for compressed vectors in uncompressed form. What goes into
    a bucket is made in the directory for temporary files (``TMPDIR``).

    Parameters
    ----------
    path : path or URL
        A complete store, without an active writer.
    out : path or URL, optional
        Where to write the new store. By default it replaces the old one, unless that is in a bucket.
    order : str or sequence of str, optional
        Columns to sort the rows by, ascending: ``"sample_index"``, the order of the dataset that was
        predicted, or any others. Text is compared by its bytes; NaN comes after all numbers, null last.
        Rows that are equal keep their order.
    codecs : optional
        As for `Writer`; None for uncompressed, ``"auto"`` to choose by the first segment's rows. By default,
        and for arrays that a mapping leaves out, those of the store.
    segment_rows : int, optional
        Rows per segment, a power of two. By default as in the store.
    dtypes : mapping of str to str, optional
        Arrays of floats to store in another dtype, e.g. ``{"query_embed": "float16"}``, or quantized, as
        ``"int8"`` (see `Writer`). `zarrow.analysis.quantization_error` measures what that costs.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.
    progress : callable of (str, int, int), optional
        Called with the step (``"sort"``, ``"verify"``, ``"write"``, ``"verify the new store"``,
        ``"upload"``), how much of it is done, and its total.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        If there is no complete store.
    InvalidInputError
        If an argument breaks a rule, or a column to sort by is missing or has no order.
    MissingExtraError
        If rows are to be sorted and DuckDB is not installed.
    StoreExistsError
        If there is something at `out`.
    StoreLockedError
        If another process is writing or packing the store.
    StoreChangedError
        If rows were appended while it was packed.
    CorruptionError
        If the store is damaged: repair it first.
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
    root = _place(path, storage_options)
    goal = root if out is None else _place(out, storage_options)
    how = order, codecs, segment_rows, dtypes
    if isinstance(goal, Path):
        _pack(root, goal, progress, *how)
    elif goal == root:
        raise InvalidInputError(
            f"{root}: a store in a bucket cannot be replaced in one step: pack it to another URL or a path"
        )
    else:
        _pack_to_bucket(root, goal, progress, *how)


def _place(path: object, options: Mapping[str, Any] | None) -> Path | ObjectPath:
    place = located(path, options if is_remote(path) else None)
    return Path(os.path.realpath(place)) if isinstance(place, Path) else place


def _pack_to_bucket(root: Path | ObjectPath, goal: ObjectPath, progress: Progress | None, *how: Any) -> None:
    """Make the new store on a disk, and upload it."""
    if next(goal.names(), None) is not None:
        raise StoreExistsError(f"{goal}: there is something already: pack to another URL")
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
        packed = Path(os.path.realpath(scratch)) / "packed.zarrow"
        _pack(root, packed, progress, *how)
        copy(packed, goal, progress=progress and partial(progress, "upload"))


def _pack(
    root: Path | ObjectPath,
    target: Path,
    progress: Progress | None,
    order: str | Sequence[str] | None,
    codecs: Any,
    segment_rows: int | None,
    dtypes: Mapping[str, str] | None,
) -> None:
    say = progress or (lambda _what, _done, _total: None)
    with open_store(root) as store:
        by = _checked_order(store, order)
        if isinstance(root, Path) and (root in target.parents or target in root.parents):
            raise InvalidInputError(f"{target}: lies in {root}, or around it: pack to another path")
        if target != root:
            _check_free(target)
        forms = ArrayForms.of(store, dtypes)
        with _old_store_stays(store, target):
            blocks = _sorted(store, forms, by, target.parent, say) if by else None
        same = isinstance(codecs, str) and codecs == "keep" and segment_rows in (None, store.segment_rows)
        if blocks is None and same and target == root and not forms.changed:
            return
        remedy = "run 'zarrow repair', which sets damaged rows aside, then pack the rest"
        _verify(root, lambda done, total: say("verify", done, total), {"damage"}, remedy)
        given = forms, chosen_codecs(store, forms, codecs), segment_rows, say
        if target == root:
            rewrite(store, blocks or _as_is(store, forms), store.num_rows, target, *given)
            return
        incoming = target.with_name(target.name + layout.INCOMING_SUFFIX)
        with _old_store_stays(store, target):
            _remove_unfinished(incoming)
            rewrite(store, blocks or _as_is(store, forms), store.num_rows, incoming, *given)
            try:
                files.rename(incoming, target)
            except OSError as error:
                raise StoreExistsError(
                    f"{target}: something was put here meanwhile: the packed store is {incoming}"
                ) from error
            files.sync_dir(target.parent)


def _check_free(target: Path) -> None:
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        what = "a store" if (target / layout.STORE_JSON).exists() else "something else"
        raise StoreExistsError(f"{target}: there is {what} already: pack to another path, or move it away")


def _remove_unfinished(incoming: Path) -> None:
    """Remove what a killed pack left where the new store is to grow, unless another one is at work there."""
    if (incoming / layout.STORE_JSON).exists():
        with exclusively(incoming):
            empty(incoming)


def _checked_order(store: Store, order: str | Sequence[str] | None) -> list[str]:
    """Return the columns to sort by; none if the rows keep their order."""
    by = [order] if isinstance(order, str) else list(order or ())
    for name in by:
        if name not in store.schema.names:
            raise unknown_name("column", name, store.schema.names)
    check_sortable(without_dictionaries(store.schema), by)
    if SAMPLE_INDEX in by:
        for batch in store.scan([SAMPLE_INDEX]):
            if batch[SAMPLE_INDEX].null_count:
                raise InvalidInputError(
                    f"{store.path}: rows can be sorted by {SAMPLE_INDEX} only if all of them have one, and "
                    "some were appended without: sort by another column"
                )
    return by


def declared(array: StoreArray | StoreRagged, dtype: str) -> tuple[tuple[int, ...], str] | RaggedArray:
    """Return what a writer is told of an array."""
    if isinstance(array, StoreRagged):
        return RaggedArray(array.vector_shape, dtype)
    return array.row_shape, dtype


def chosen_codecs(store: Store, forms: ArrayForms, codecs: Any) -> Any:
    kept = {name: array.codecs for name, array in forms.sources.items()}
    if isinstance(codecs, str) and codecs == "keep":
        return kept
    by_name = isinstance(codecs, Mapping) and "name" not in codecs
    chosen = {**kept, **codecs} if by_name else dict.fromkeys(kept, codecs)
    for name, array in forms.sources.items():
        if isinstance(chosen[name], str) and chosen[name] == "auto":
            rows = np.arange(min(store.segment_rows, _SAMPLE_ROWS, len(array)))
            sample = forms.converted({name: array.take(rows)}, rows)[name]
            if isinstance(sample, Ragged):
                sample = sample.values
            elif name in forms.quantized and sample.dtype.kind == "f":
                sample = quantize(sample)[0]
            chosen[name] = choose(sample, sample.dtype.name)
    return chosen


def _verify(
    root: Path | ObjectPath, progress: Callable[[int, int], None], grades: set[str], remedy: str
) -> None:
    for finding in audit(root, "checksums", progress).report.findings:
        if finding.severity in grades:
            raise CorruptionError(f"{root} was not packed: {finding}: {remedy}")


def rewrite(
    store: Store,
    blocks: Iterable[Block],
    rows: int,
    target: Path,
    forms: ArrayForms,
    codecs: Any,
    segment_rows: int | None,
    say: Progress,
) -> None:
    """Write rows of a store into a new one, verify it, and put it in its place."""
    in_place = target == store.path
    left_out = {*layout.RESERVED_COLUMNS, *forms.dropped}
    schema = pa.schema([field for field in store.schema if field.name not in left_out])
    with _old_store_stays(store, target):
        writer = None
        likes = not in_place and isinstance(store.path, Path) and target.parent.is_dir()
        made = likes and files.make_dir_like(target, store.path)
        try:
            writer = Writer(
                target,
                arrays={name: declared(one, forms.dtypes[name]) for name, one in forms.sources.items()},
                schema=schema,
                dtypes=forms.quantized,
                keys=store.keys,
                mode="w" if in_place else "x",
                segment_rows=segment_rows or store.segment_rows,
                codecs=codecs,
                provenance=store.provenance,
                expected_rows=store.expected_rows,
            )
            with tempfile.TemporaryFile(prefix=SCRATCH_PREFIX, dir=target.parent) as numbers:
                say("write", 0, rows)
                for block in blocks:
                    columns = {name: block.table[name] for name in schema.names}
                    vectors = forms.converted(block.vectors, block.rows)
                    writer.append(columns, vectors, block.table[SAMPLE_INDEX], copy=False)
                    numbers.write(np.ascontiguousarray(block.rows).data)
                    say("write", writer.queued_rows, rows)
                assert writer.queued_rows == rows

                def check(new: Path) -> None:
                    spec = read_spec(new)
                    publish_shape(new, spec, new / layout.OPEN_DIR, attributes_of=store.path)
                    remedy = "the disk does not keep what is written to it; the old store is as it was"
                    _verify(
                        new,
                        lambda done, total: say("verify the new store", done, total),
                        {"damage", "defect"},
                        remedy,
                    )
                    if in_place:
                        _check_unchanged(store)  # its lock is held by now
                    _copy_derived(store, numbers, new)

                writer.finalize(partial=True, check=check)
        except BaseException:
            if writer is not None and writer.spec is not None:
                if os.path.lexists(target):  # or the exchange failed, and the new store may be needed
                    writer.discard()
            elif made:
                files.remove_empty_dir(target)
            raise


@contextlib.contextmanager
def _old_store_stays(store: Store, target: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that says that the old store is as it was."""
    try:
        yield
    except OSError as error:
        failed = isinstance(error, WriteFailedError)  # whose remedy, to go on writing, does not apply here
        if isinstance(error, ZarrowError) and not failed:
            raise
        with contextlib.suppress(StoreChangedError):
            store.require_unchanged()  # or the new store is in place, and the error says what else there is
            number = error.errno or errno.EIO
            # That of a failed write is the system's, without what a writer could do.
            cause = error.__cause__ if failed else error
            reason = getattr(cause, "strerror", None) or (os.strerror(number) if failed else error)
            raise WriteFailedError(number, f"{target.parent}: {reason}: {store.path} is as it was") from error
        raise


def _check_unchanged(store: Store) -> None:
    """Raise if rows were appended: they would be lost with the old store, whose lock is held by now."""
    try:
        changed = store.refresh()
    except IncompleteStoreError:
        changed = True
    if changed:
        raise StoreChangedError(f"{store.path}: it was written to while it was packed: pack it again")


def _copy_derived(store: Store, numbers: IO[bytes], new: Path) -> None:
    """Add the derived arrays of the old store to the new one, in the new order of the rows.

    They are looked up only now: one may have been added meanwhile.
    """
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
        with open_store(new) as packed:
            store_array(packed, name, blocks, provenance, locked=True)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows on their way from the old store to the new one, with their row numbers in the old one."""

    rows: npt.NDArray[np.int64]
    table: pa.Table
    vectors: dict[str, Any]


def block_rows(arrays: Iterable[StoreArray | StoreRagged]) -> int:
    row_bytes = sum(array.nbytes // max(len(array), 1) for array in arrays)
    return min(rows_of(BLOCK_BYTES, row_bytes), MAX_BLOCK_ROWS)


def _as_is(store: Store, forms: ArrayForms) -> Iterator[Block]:
    """Yield all rows in their present order."""
    size, start = block_rows(forms.sources.values()), 0
    for batch in store.scan(batch_size=size):
        stop = start + batch.num_rows
        for array in forms.sources.values():
            array.prefetch(stop, stop + size)
        vectors = {name: array.read(start, stop) for name, array in forms.sources.items()}
        yield Block(np.arange(start, stop), pa.Table.from_batches([batch]), vectors)
        start = stop


def _sorted(
    store: Store, forms: ArrayForms, by: list[str], scratch: Path, say: Progress
) -> Iterator[Block] | None:
    """Return all rows in order; None if they are in order already."""

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in store.scan():
            yield _plain(batch)
            rows += batch.num_rows
            say("sort", rows, store.num_rows)

    columns = spool(batches(), without_dictionaries(store.schema), scratch)
    numbers = sort(columns, by, scratch)
    return None if numbers is None else _taken(forms, columns, numbers, scratch)


def _taken(
    forms: ArrayForms, columns: pa.Table, numbers: npt.NDArray[np.int64], scratch: Path
) -> Iterator[Block]:
    """Yield rows in the given order."""
    gatherers = {name: _gatherer(array, scratch) for name, array in forms.sources.items()}
    size = block_rows(forms.sources.values())
    step = max(2 * BLOCK_BYTES * columns.num_rows // columns.nbytes, 1)
    for start in range(0, len(numbers), step):
        here = np.asarray(numbers[start : start + step])
        table = take(columns, here)
        for at in range(0, len(here), size):
            rows = here[at : at + size]
            vectors = {name: gather(rows) for name, gather in gatherers.items()}
            yield Block(rows, table.slice(at, size), vectors)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows without dictionaries, since each batch may have its own."""
    return batch.cast(without_dictionaries(batch.schema))


def _gatherer(array: StoreArray | StoreRagged, scratch: Path) -> Callable[[npt.NDArray[np.int64]], Any]:
    """Return a function that gathers rows of an array without decoding their chunks again for each call."""
    if isinstance(array, StoreRagged) or array.is_plain or not len(array):
        return array.take
    with tempfile.TemporaryFile(prefix=SCRATCH_PREFIX, dir=scratch) as file:
        step = block_rows([array])
        for start in range(0, len(array), step):
            file.write(array.read(start, min(start + step, len(array))).data)
        file.flush()
        mapped = np.memmap(file, array.dtype, "r", shape=array.shape)
    return lambda rows: np.asarray(mapped[rows])
