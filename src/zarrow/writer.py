"""Writer — the only way for rows into a store.

The caller appends batches. They are checked and queued; a thread appends them to the open segment, and
another seals full segments and prepares the next, so that a model's step waits for neither disk nor fsync
unless the disk is slower than the model.

The rows of a batch are, in this order:

* *queued*: checked; lost if the process dies;
* *accepted*: written; they survive the death of the process, SIGKILL included (`Writer.accepted_rows`);
* *durable*: fsynced; they survive a power cut (`Writer.durable_rows`). The `Durability` policy says when.

An error of the operating system ends the writer: it says which rows are safe and refuses more. The store can
be opened again, which recovers what dead writers left (`_write.recovery`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa

from zarrow._format import layout
from zarrow._format.given import TableLike, names_in
from zarrow._format.ragged import RaggedArray
from zarrow._format.spec import StoreSpec, safe_rows
from zarrow._read import catalog
from zarrow._storage.objects import ObjectPath, located
from zarrow._write import parts, publishing, recovery, reopening, seal
from zarrow._write.appender import Appender, Durability, durability_of
from zarrow._write.batches import BatchChecker
from zarrow._write.declaration import Declaration
from zarrow._write.directory import (
    Mode,
    claim_store,
    discard,
    empty,
    install,
    new_owner,
    require_in_place,
)
from zarrow._write.spooled import SpooledStore
from zarrow._write.worker import close_at_exit
from zarrow.errors import (
    BatchError,
    InvalidInputError,
    StoreLockedError,
    WriterClosedError,
    ZarrowError,
)

__all__ = ["Durability", "Writer"]

DEFAULT_QUEUE_BYTES = 32 * layout.MEBIBYTE


class Writer:
    """Streams rows into a store: narrow columns into Parquet, vectors into Zarr arrays.

    A context manager. Leaving the block closes the writer and **does not finalize**: every row is kept, but
    readers see an incomplete store until `finalize`. Leaving it without `finalize` or `close` warns, unless
    the writer is `shared`. A killed or closed run is resumed with ``mode="a"``.

    Parameters
    ----------
    path : path, URL, or obstore store
        The store: a directory, whose parent must exist, or a place in a bucket (``s3://…``, ``gs://…``,
        ``az://…``), where the next writer takes the store over from this one.
    arrays : mapping of str to (row shape, dtype) or `zarrow.ragged`, optional
        The arrays, e.g. ``{"query_embed": ((768,), "float32")}``, or ``{"token_embed": zarrow.ragged(128,
        "float16")}`` for any number of vectors per row, which the column ``token_embed_count`` then has. By
        default those of the first batch.
    schema : pyarrow.Schema, optional
        The columns. By default those of the first batch. Of a field's metadata, ``units``, ``long_name`` and
        ``standard_name`` are kept.
    dtypes : mapping of str to str, optional
        Arrays to quantize, e.g. ``{"query_embed": "int8"}``: floats are stored as 8-bit integers with a
        float32 scale per row, in a quarter of the bytes, and read as float32. The scales are a column,
        ``query_embed_scale``. All other arrays are stored as they are.
    keys : sequence of str
        Columns that name a row; never null.
    mode : {"x", "w", "a"}
        ``"x"``: create; there must be no store. ``"w"``: replace a store; the old one stays in place until
        the new one, which grows next to it as ``<name>.incoming``, is finalized. ``"a"``: create, resume an
        incomplete store, or append to a complete one, which makes it incomplete.
    segment_rows : int, optional
        Rows of a segment, a power of two. By default the widest array's shard has 48 to 96 MiB,
        and no segment more than 131,072 rows.
    codecs : optional
        How chunks are encoded: None for plain bytes (the fastest, and the only ones read without a copy),
        ``"blosc"``, ``"zstd"``, ``"pcodec"``, Zarr v3 codecs, or a mapping of array names to those.
        ``"auto"`` tries lossless ones on the first batch and takes the best if it saves at least a quarter;
        the store is then created by the first batch, even if everything was declared.
    durability : Durability, "segment" or "batch"
        When accepted rows become durable; see `Durability`. ``"segment"``: when their segment is full.
    queue_bytes : int
        Size of the batches that may wait; beyond it `append` blocks.
    provenance : mapping, optional
        JSON values that describe where the rows come from; stored with them.
    expected_rows : int, optional
        Rows that the store is to have in the end, by whatever writers, if that is known: recorded in it, and
        `finalize` of fewer asks for ``partial=True``. By default what the store was begun with.
    shared : bool
        Whether other writers may write the same store, all of them opened with ``shared=True``. In a bucket,
        one that is not shared takes the store over from all others.
    storage_options : mapping, optional
        For a URL, as for `zarrow.open`.
    spool : path, optional
        For a URL: where a directory of this store is made, in which rows are kept until their segment is in
        the bucket. By default that of the variable ``ZARROW_SPOOL``, else the user's cache.

    Raises
    ------
    StoreExistsError
        If there is a store and the mode is ``"x"``.
    NotAStoreError
        If there is something else at the path.
    StoreLockedError
        If another writer is active and not both are `shared`.
    SchemaMismatchError
        If the store differs from what is declared.
    CorruptionError
        If rows that a dead writer left are damaged.
    OSError
        If the parent is missing or cannot be written to.

    Examples
    --------
    >>> import numpy as np, tempfile, zarrow
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> with zarrow.Writer(path, keys=["id"]) as writer:
    ...     writer.append({"id": [7, 8]}, {"query_embed": np.ones((2, 4), np.float32)})
    ...     writer.finalize()
    >>> zarrow.open(path).num_rows
    2
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        arrays: Mapping[str, tuple[int | Sequence[int], str] | RaggedArray] | None = None,
        schema: pa.Schema | None = None,
        dtypes: Mapping[str, str] | None = None,
        keys: str | Sequence[str] = (),
        mode: Mode = "x",
        segment_rows: int | None = None,
        codecs: Any = None,
        durability: Durability | Literal["segment", "batch"] = "segment",
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
        provenance: Mapping[str, Any] | None = None,
        expected_rows: int | None = None,
        shared: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> None:
        if mode not in ("x", "w", "a"):
            raise InvalidInputError(f"mode must be 'x', 'w' or 'a', got {mode!r}")
        policy = durability_of(durability)
        if queue_bytes <= 0:
            raise InvalidInputError(f"queue_bytes must be positive, got {queue_bytes}")
        place = located(path, storage_options)
        # Symbolic links are followed: replacing a store must not replace a link to it.
        self.path = Path(os.path.realpath(place)) if isinstance(place, Path) else place
        self._declaration = Declaration(
            arrays,
            schema,
            names_in(keys),
            segment_rows,
            codecs,
            provenance or {},
            expected_rows,
            dtypes or {},
        )
        self._owner = new_owner()
        self._spec: StoreSpec | None = None
        self._checker: BatchChecker | None = None
        self._batches = 0
        self._closed = self._finalizing = self._finalized = self._reopens = False
        self._shared = shared
        self._spooled: SpooledStore | None = None
        if isinstance(self.path, Path):
            if spool is not None:
                raise InvalidInputError(f"spool is for a store at a URL, and {self.path} is a path")
            self._claim = claim_store(self.path, mode, shared=shared, owner=self._owner)
        else:
            self._spooled = SpooledStore(self.path, self._owner, mode, spool, shared=shared)
            self._claim = self._spooled.claim
        self._root, self._lock = self._claim.root, self._claim.lock
        # Rows of a killed run in the way of a new one: they stay until it has its first.
        is_store = (self._root / layout.STORE_JSON).exists()
        self._in_the_way = self._root != self.path and is_store and self._spooled is None
        self._is_own = not shared and (self._in_the_way or not is_store)
        try:
            self._appender = Appender(
                self.path, self._root, self._lock, self._owner, policy, queue_bytes, self._spooled
            )
            try:
                self._recover(shared=shared)
                self._queued = self._appender.accepted_rows
                self._at_exit = close_at_exit(weakref.ref(self), self._appender)
                # What cannot be closed any more lets go of the store by itself.
                self._lost = weakref.finalize(self, self._appender.forget, self._at_exit)
                self._lost.atexit = False
            except BaseException:
                self._appender.stop()
                raise
        except BaseException:
            if self._is_own and not self._in_the_way:
                with contextlib.suppress(OSError):
                    empty(self._root)
            if self._spooled is not None:
                self._spooled.give_up()
            self._unlock()
            raise

    # State

    @property
    def spec(self) -> StoreSpec | None:
        """The store's spec; None until the first batch, unless everything was declared."""
        return self._spec

    @property
    def grows_at(self) -> Path | ObjectPath:
        """Place of the rows until `finalize`: `path`, or next to it if ``mode="w"`` replaces a store."""
        return self._root if self._spooled is None else self.path

    @property
    def queued_rows(self) -> int:
        """Rows appended, including those that the store held when it was opened."""
        return self._queued

    def __repr__(self) -> str:
        state = "finalized" if self._finalized else "closed" if self._closed else "open"
        return f"<zarrow.Writer {str(self.path)!r}: {state}, accepted_rows={self.accepted_rows}>"

    @property
    def accepted_rows(self) -> int:
        """Rows that survive the death of the process, including those that the store held when it was opened.

        If the disk keeps up, a batch is accepted about 0.05 s after `append`: small ones are written
        together. With one writer, this is the row at which the next batch starts.
        """
        return self._appender.accepted_rows

    @property
    def durable_rows(self) -> int:
        """Rows that survive a power cut, including those that the store held when it was opened."""
        return self._appender.durable_rows

    @property
    def closed(self) -> bool:
        """Whether the writer was closed or finalized."""
        return self._closed

    @property
    def expected_rows(self) -> int | None:
        """Rows that the store is to have in the end, if known."""
        if self._declaration.expected_rows is None and self._spec is not None:
            return self._spec.expected_rows
        return self._declaration.expected_rows

    def describe(self, provenance: Mapping[str, Any], expected_rows: int | None = None) -> None:
        """Add to what is known of a store that the first batch will create.

        Parameters
        ----------
        provenance : mapping
            JSON values that describe where the rows come from. Without effect on a store that exists:
            its provenance never changes.
        expected_rows : int, optional
            As given to the constructor, if it becomes known only now.
        """
        known = self._declaration
        self._declaration = replace(
            known,
            provenance={**known.provenance, **provenance},
            expected_rows=known.expected_rows if expected_rows is None else expected_rows,
        )

    # The caller's side

    def append(
        self,
        table: TableLike = None,
        arrays: Mapping[str, Any] | None = None,
        sample_index: Any = None,
        *,
        copy: bool = True,
    ) -> None:
        """Append a batch: queued on return.

        Parameters
        ----------
        table : pyarrow Table or RecordBatch, polars or pandas frame, or mapping of str to 1-D values
            The narrow columns, in any order.
        arrays : mapping of str to array or tensor, shapes (rows, *row_shape), or Ragged
            The vectors. bfloat16 is widened to float32. Quantized arrays are given in floats; or as their
            int8, with the column of their scales in `table`. Of a ragged array, any form that
            `zarrow.Ragged.of` takes: jagged tensors, lists of arrays, Arrow lists.
        sample_index : int array, shape (rows,), optional
            The rows' index in the dataset that was predicted; an Arrow array may have nulls.
        copy : bool
            False hands over the memory of the values, which must not be written to afterwards. Arrays that
            are not contiguous are copied anyway.

        Raises
        ------
        BatchError
            If the batch breaks a rule; nothing of it was written, and the writer is unchanged.
        WriteFailedError
            If an earlier batch could not be written; it says which rows are safe.
        WriterClosedError
            If the writer was closed or finalized.
        """
        self._check_usable()
        if self._spec is None:
            self._define((table, arrays or {}, sample_index))
        assert self._checker is not None
        batch = self._checker.check(table, arrays or {}, sample_index, copy=copy, number=self._batches)
        self._batches += 1
        if batch.rows:
            if self._reopens:
                self._reopen()
            self._appender.put(batch, batch.size_bytes)
            self._queued += batch.rows
            self._check_usable()  # a signal handler may have closed it

    def flush(self, *, durable: bool = False) -> None:
        """Wait until every queued row is accepted, or durable.

        Parameters
        ----------
        durable : bool
            Whether to wait for an fsync: every row appended so far survives a power cut on return.

        Raises
        ------
        WriteFailedError
            If a row could not be written.
        """
        self._check_usable()
        self._appender.flush(durable=durable)
        self._appender.check()

    def finalize(self, *, partial: bool = False, check: Callable[[Path], None] | None = None) -> None:
        """Complete the store: all rows are visible and durable on return, and the writer is closed.

        Calling it again does nothing.

        Parameters
        ----------
        partial : bool
            Whether to complete a store that has fewer rows than expected. Its readers are then shown both
            numbers.
        check : callable of Path, optional
            Called with the complete store before it replaces an old one (``mode="w"``); if it raises, the
            old one stays.

        Raises
        ------
        IncompleteStoreError
            If the store has fewer rows than expected and `partial` is False; all of them are kept.
        WriteFailedError
            If a row could not be written.
        StoreLockedError
            If another writer of a shared store is still active.
        """
        if self._finalized:
            return
        self._check_usable()
        if self._spec is None and (found := self._found_meanwhile()) is not None:
            self._declaration.check(found)
            self._set_spec(found)
        elif self._spec is None:
            self._define()
        assert self._spec is not None
        self.flush(durable=True)  # raises an error of the thread: a failed fsync is never retried
        self._check_usable()
        if not self._shared and not partial:  # of a shared store, others have rows, too
            recovery.require_expected(self.grows_at, self.accepted_rows, self.expected_rows)
        self._finalizing = True
        try:
            self._appender.stop()
            self._appender.check()
            if self._lock.shared and not self._lock.convert(shared=False):
                raise StoreLockedError(
                    f"{self.path}: other writers are still active: the last one to call finalize(), or "
                    "'zarrow finalize', completes the store"
                )
            require_in_place(self._lock)
            self._complete(partial=partial, check=check)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first error is the one to report
                self._release(remove_lock=not self._lock.shared)
            raise self._appender.failure(error) from error.__cause__
        finally:
            self._release(remove_lock=not self._lock.shared)
        self._finalized = True

    def _found_meanwhile(self) -> StoreSpec | None:
        """Return the spec of a shared store of which another writer had the first batch."""
        if self._spooled is not None:
            return self._spooled.found()
        if self._in_the_way or not (self._root / layout.STORE_JSON).exists():
            return None
        return catalog.read_spec(self._root)

    def _complete(self, *, partial: bool, check: Callable[[Path], None] | None) -> None:
        assert self._spec is not None
        if self._spooled is not None:
            self._spooled.finalize(self._spec, self.expected_rows, partial=partial)
            self._spooled.remove_spool()
            return
        assert isinstance(self.path, Path)
        recovery.finalize(
            self._root, self._spec, self._owner, expected_rows=self.expected_rows, partial=partial
        )
        install(self._root, self.path, owner=self._owner, check=check)
        self._lock.path = self.path / layout.OPEN_DIR / layout.LOCK  # it moved with the store

    def close(self) -> None:
        """Write what is queued and release the store, which stays incomplete unless it was finalized.

        Of a store in a bucket, all rows are in the bucket on return. Calling it again does nothing.

        Raises
        ------
        WriteFailedError
            If a row could not be written.
        """
        if self._closed or self._finalizing or self._is_forked:
            return  # the second: a signal handler must not release the lock now
        try:
            if self._appender.error is None:
                self._appender.flush(durable=True)
                self._leave()
        finally:
            self._release()
        self._appender.check()

    def _leave(self) -> None:
        """Move the rows of an open segment from the spool into the bucket."""
        self._appender.stop()
        if self._spooled is not None and self._appender.error is None:
            try:
                self._spooled.leave(self._spec)
                self._spooled.remove_spool()
            except OSError as error:
                raise self._appender.failure(error) from error

    def discard(self) -> None:
        """Close, and remove a store that this writer has begun and not finalized: all or nothing.

        Raises
        ------
        InvalidInputError
            If the store was there before, or other writers have rows in it (`shared`); it is only closed.
        """
        if self._finalized or self._is_forked or (self._closed and not self._is_own):
            return
        if not self._is_own:
            self.close()
            raise InvalidInputError(f"{self.path}: the store has rows of other writers, so it stays")
        if not self._closed:
            self._release()
        if self._spooled is not None:
            self._spooled.remove()
        elif self._spec is not None:
            discard(self._root, self._spec.uuid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            forgotten = not (self._closed or self._shared or self._is_forked)
            self.close()
            if forgotten:
                rows = safe_rows(self.accepted_rows, self.expected_rows)
                warnings.warn(
                    f"{self._root}: the writer's block ended without finalize(), so the store is incomplete: "
                    f"{rows}: call finalize() if these are all, or close() if more will follow; "
                    "to go on, open the store with mode='a'",
                    stacklevel=2,
                )
        else:
            # A second exception would hide the one that is being raised.
            with contextlib.suppress(ZarrowError):
                self.close()

    @property
    def _is_forked(self) -> bool:
        """Whether this process was forked from the one that writes, and must touch nothing."""
        return os.getpid() != self._owner.pid

    def _check_usable(self) -> None:
        if self._is_forked:
            raise WriterClosedError(
                f"{self.path}: a writer cannot be used in a process forked from its own, {self._owner.pid}: "
                "pass the rows to that one, or open a writer in each process with shared=True"
            )
        self._appender.check()
        if self._closed:
            state = "finalized" if self._finalized else "closed"
            raise WriterClosedError(f"{self.path}: the writer was {state}: open another one with mode='a'")

    # Opening and defining

    def _define(self, batch: tuple[TableLike, Mapping[str, Any], Any] | None = None) -> None:
        """Create the store, as declared or as the first batch implies."""
        table, arrays, sample_index = batch or (None, {}, None)
        try:
            spec = self._declaration.infer(table, arrays)
        except BatchError as error:
            raise BatchError(f"batch 0: {error}; nothing of it was written") from error.__cause__
        parts.check_columns(spec)
        if batch is not None:
            # Checked before the store is created from it.
            BatchChecker(spec).check(table, arrays, sample_index, copy=False, number=0)
        try:
            require_in_place(self._lock)
            if self._in_the_way:
                empty(self._root)
                self._in_the_way = False
            if self._spooled is not None:
                found = self._spooled.create(spec)
            else:
                found = publishing.create(self._root, spec, self._root / layout.OPEN_DIR)
        except OSError as error:
            raise self._appender.failure(error) from error
        if found.uuid != spec.uuid:
            self._declaration.check(found)
        self._set_spec(found)

    def _set_spec(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._checker = BatchChecker(spec)
        self._appender.start(spec)

    def _recover(self, *, shared: bool) -> None:
        """Create the store, or read its spec, finish what dead writers began, and find where to continue."""
        if self._in_the_way and shared:  # the others would take these rows for the run's own
            empty(self._root)
            self._in_the_way = False
        if self._in_the_way or not (self._root / layout.STORE_JSON).exists():
            if self._declaration.is_whole and not self._in_the_way:
                self._define()
            if shared and self._spooled is None:
                self._lock.convert(shared=True)
            return
        spec = catalog.read_spec(self._root)
        self._declaration.check(spec)
        # A crash may have left it unfinished.
        publishing.create(self._root, spec, self._root / layout.OPEN_DIR)
        self._set_spec(spec)
        if self._spooled is not None:
            self._appender.go_on([], *self._spooled.recover(spec))
            self._reopens = True
            return
        if self._lock.shared:
            return  # other writers are active; the first one has recovered
        dead = recovery.recover(self._root, spec, self._owner)
        try:
            committed = catalog.read_snapshot(self._root).rows
        except BaseException:
            seal.release(dead)
            raise
        # Without a short last segment, which is taken back by the first row: its number is free again then.
        self._appender.go_on(dead, committed, committed // spec.segment_rows)
        self._reopens = True
        if shared:
            self._reopen()  # which needs the lock for itself
            self._lock.convert(shared=True)

    def _reopen(self) -> None:
        """Make the store incomplete, and its short last segment an open one: rows will follow.

        Not before the first of them, so that a store to which none is appended stays what it is: complete,
        and with the records by which indexes and derived arrays know their rows.
        """
        assert self._spec is not None
        if self._spooled is not None:
            self._spooled.require_room()
            self._reopens = False
            return
        try:
            self._appender.take_back(reopening.reopen(self._root, self._spec, self._owner))
        except OSError as error:
            raise self._appender.failure(error) from error
        self._reopens = False

    def _release(self, *, remove_lock: bool = False) -> None:
        try:
            self._appender.stop()
        finally:
            try:
                # Again, if Ctrl-C interrupted that: locks of open segments are released before the store's.
                self._appender.stop()
                self._unlock(remove_file=remove_lock)
            finally:
                self._closed = True
                self._lost.detach()
                atexit.unregister(self._at_exit)

    def _unlock(self, *, remove_file: bool = False) -> None:
        if self._lock.shared or (self._root / layout.STORE_JSON).exists():
            self._lock.release(remove_file=remove_file)
        else:  # no batch was stored: nothing stays that would be in the way of another try
            self._claim.drop()
