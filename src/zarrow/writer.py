"""How do rows get in?

`Writer` is the only way. Its caller hands batches over; a thread of its own appends them to the open
segment, another seals full ones and makes the next ready, so that a model's step waits for neither disk
nor fsync unless the disk is slower than the model.

Three counts are kept apart:

* *queued* rows were handed over and checked; they are lost if the process dies;
* *accepted* rows were written (`accepted_rows`): they survive the death of the process, SIGKILL included;
* *durable* rows were fsynced (`durable_rows`): they survive a power cut. When that happens is the
  `Durability` policy.

An error of the operating system poisons the writer: it says which rows are safe and takes no more; the
store can be opened again. Opening recovers what dead writers left (`_seal`).

Place: tier 4, with `store` and `verify`, which it must not import.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import platform
import threading
import time
import uuid as uuids
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa

from zarrow import _batches, _catalog, _parts, _seal, layout
from zarrow._batches import Batch
from zarrow._declaration import Declaration
from zarrow._directory import Mode, claim_store, install
from zarrow._open_segment import OpenSegment, discard
from zarrow._queue import BatchQueue
from zarrow._records import Owner, this_host
from zarrow.errors import (
    InvalidInputError,
    StoreLockedError,
    WriteFailedError,
    WriterClosedError,
    ZarrowError,
)
from zarrow.layout import StoreSpec

__all__ = ["Durability", "Writer"]

DEFAULT_QUEUE_BYTES = 32 * layout.MEBIBYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """When accepted rows are made safe against a power cut too.

    A full segment always is, when it is sealed; and so is everything on `Writer.flush` with
    ``durable=True`` and on `Writer.finalize`.

    Parameters
    ----------
    batches : int, optional
        After every so many batches.
    seconds : float, optional
        When the oldest row that is not durable was accepted so many seconds ago.

    Raises
    ------
    InvalidInputError
        If a number is not positive.

    Examples
    --------
    >>> Durability(seconds=30)
    Durability(batches=None, seconds=30)
    """

    batches: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, number in (("batches", self.batches), ("seconds", self.seconds)):
            if number is not None and not number > 0:
                raise InvalidInputError(f"durability: {name} must be positive, got {number}")


class Writer:
    """Streams rows into a store: narrow columns into Parquet, vectors into Zarr arrays.

    A context manager. Leaving the block closes the writer and **does not finalize**: every accepted row
    is kept, but the store is complete only after `finalize`, and says so to readers. A killed or closed
    run goes on with ``mode="a"``.

    Parameters
    ----------
    path : path
        The store, a directory. Its parent must exist.
    arrays : mapping of str to (row shape, dtype), optional
        The arrays, e.g. ``{"query_embed": ((768,), "float32")}``. By default those of the first batch.
    schema : pyarrow.Schema, optional
        The columns. By default those of the first batch.
    keys : sequence of str
        Columns that name a row; never null.
    mode : {"x", "w", "a"}
        ``"x"``: there must be no store. ``"w"``: replace a store; the old one stays in place until the
        new one, which grows beside it as ``<name>.incoming``, is finalized. ``"a"``: create, resume an
        incomplete store, or append to a complete one, which is incomplete from then on.
    segment_rows : int, optional
        Rows of a segment, a power of two. By default the widest array's shard has 48 to 96 MiB.
    codecs : optional
        How chunks are encoded: None for plain bytes (the fastest, and the only one read without a copy),
        ``"blosc"``, ``"zstd"``, ``"pcodec"``, Zarr v3 codecs, or a mapping of array names to those.
    durability : Durability, "segment" or "batch"
        When accepted rows become durable; see `Durability`. ``"segment"``: when theirs is full.
    queue_bytes : int
        Bytes of batches that may wait; `append` blocks beyond.
    provenance : mapping, optional
        JSON values that say where the rows come from; kept in the store.
    shared : bool
        Whether other writers may be at work on the same store, each of them opened so.

    Raises
    ------
    StoreExistsError
        If there is a store and the mode is ``"x"``.
    NotAStoreError
        If there is something else.
    StoreLockedError
        If another writer is at work and not both are `shared`.
    SchemaMismatchError
        If the store is another one than what is declared here.
    CorruptionError
        If what a dead writer left is damaged.
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
        arrays: Mapping[str, tuple[int | Sequence[int], str]] | None = None,
        schema: pa.Schema | None = None,
        keys: Sequence[str] = (),
        mode: Mode = "x",
        segment_rows: int | None = None,
        codecs: Any = None,
        durability: Durability | Literal["segment", "batch"] = "segment",
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
        provenance: Mapping[str, Any] | None = None,
        shared: bool = False,
    ) -> None:
        if mode not in ("x", "w", "a"):
            raise InvalidInputError(f"mode must be 'x', 'w' or 'a', got {mode!r}")
        if durability in ("segment", "batch"):
            durability = Durability(batches=1 if durability == "batch" else None)
        if not isinstance(durability, Durability):
            raise InvalidInputError(
                f"durability must be 'segment', 'batch' or Durability, got {durability!r}"
            )
        if queue_bytes <= 0:
            raise InvalidInputError(f"queue_bytes must be positive, got {queue_bytes}")
        self.path = Path(os.path.abspath(path))
        self._durability = durability
        self._provenance = dict(provenance or {})
        self._declaration = Declaration(arrays, schema, keys, segment_rows, codecs)
        self._session = uuids.uuid4().hex
        self._sequence = 0
        self._owner = Owner(
            session=self._session,
            sequence=0,
            host=this_host(),
            pid=os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._spec: StoreSpec | None = None
        self._reader: _batches.BatchReader | None = None
        self._segment: OpenSegment | None = None
        self._spare: Future[OpenSegment] | None = None
        self._sealing: Future[None] | None = None
        self._batches = self._queued = self._accepted = self._durable = 0
        self._undurable_batches = 0
        self._undurable_since = 0.0
        self._error: BaseException | None = None
        self._closed = self._finalized = False
        self._root, self._lock = claim_store(self.path, mode, shared=shared, owner=self._owner)
        try:
            self._recover(shared=shared)
        except BaseException:
            self._lock.release()
            raise
        self._queue = BatchQueue(queue_bytes)
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="zarrow-sealer")
        self._thread = threading.Thread(target=self._run, name="zarrow-appender", daemon=True)
        self._thread.start()
        self._at_exit = _close_at_exit(weakref.ref(self))

    # What there is

    @property
    def spec(self) -> StoreSpec | None:
        """What the store is; None until the first batch has told."""
        return self._spec

    @property
    def queued_rows(self) -> int:
        """Rows handed over, those that the store held when it was opened included."""
        return self._queued

    @property
    def accepted_rows(self) -> int:
        """Rows that survive the death of the process, those that the store held when it was opened included.

        With one writer this is the row that the next batch starts at.
        """
        return self._accepted

    @property
    def durable_rows(self) -> int:
        """Rows that survive a power cut, those that the store held when it was opened included."""
        return self._durable

    # The caller's side

    def append(
        self,
        table: _batches.Columns = None,
        arrays: Mapping[str, Any] | None = None,
        sample_index: Any = None,
        *,
        copy: bool = True,
    ) -> None:
        """Hand a batch over: queued on return.

        Parameters
        ----------
        table : pyarrow Table or RecordBatch, polars or pandas frame, or mapping of str to 1-D values
            The narrow columns, in any order.
        arrays : mapping of str to array or tensor, shapes (rows, *row_shape)
            The vectors. bfloat16 is widened to float32.
        sample_index : int array, shape (rows,), optional
            Where in the predicted dataset the rows come from.
        copy : bool
            False gives the arrays' memory away: it must not be written to afterwards. What is not
            contiguous is copied anyway.

        Raises
        ------
        BatchError
            If the batch breaks a rule; nothing of it was written, and the writer is as it was.
        WriteFailedError
            If an earlier batch could not be written; says which rows are safe.
        WriterClosedError
            If the writer was closed or finalized.
        """
        self._check_usable()
        if self._spec is None:
            self._define(table, arrays or {})
        assert self._reader is not None
        batch = self._reader.read(table, arrays or {}, sample_index, copy=copy, number=self._batches)
        self._batches += 1
        if batch.rows:
            self._queue.put(batch)
            self._queued += batch.rows
            self._check_usable()

    def flush(self, *, durable: bool = False) -> None:
        """Wait until every queued row is accepted, or durable.

        Parameters
        ----------
        durable : bool
            Whether to wait for the disk: every row handed over so far survives a power cut on return.

        Raises
        ------
        WriteFailedError
            If a row could not be written.
        """
        self._check_usable()
        self._in_turn(self._make_durable if durable else lambda: None)

    def finalize(self) -> None:
        """Make the store complete: all rows visible and durable on return. The writer takes no more.

        Doing it twice does no harm.

        Raises
        ------
        WriteFailedError
            If a row could not be written.
        StoreLockedError
            If another writer of a shared store is still at work.
        """
        if self._finalized:
            return
        self._check_usable()
        if self._spec is None:
            self._define(None, {})
        assert self._spec is not None
        self.flush()
        self._stop()
        if self._lock.shared and not self._lock.convert(shared=False):
            self._release()
            raise StoreLockedError(
                f"{self.path}: other writers are still at work; the last of them to end, "
                "or 'zarrow finalize', completes the store"
            )
        try:
            _seal.finalize(self._root, self._spec, self._owner)
            self._durable = self._accepted
            install(self._root, self.path)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self._release(remove_lock=True)
        self._finalized = True

    def close(self) -> None:
        """Accept what is queued and let go of the store, which stays incomplete unless it was finalized.

        Doing it twice does no harm.

        Raises
        ------
        WriteFailedError
            If a row could not be written.
        """
        if self._closed:
            return
        try:
            if self._error is None:
                self._in_turn(self._make_durable)
        finally:
            self._stop()
            self._release()
        if self._error is not None:
            raise self._failure(self._error) from self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            # The exception under way is the news; a second one would hide it.
            with contextlib.suppress(ZarrowError):
                self.close()

    def _check_usable(self) -> None:
        if self._error is not None:
            raise self._failure(self._error) from self._error
        if self._closed:
            state = "finalized" if self._finalized else "closed"
            raise WriterClosedError(f"{self.path}: the writer was {state}: open another one with mode='a'")

    def _failure(self, error: BaseException) -> Exception:
        if isinstance(error, OSError) and not isinstance(error, ZarrowError):
            return WriteFailedError(
                error.errno or errno.EIO,
                f"{self.path}: {error.strerror or error}: the writer takes no more; {self._accepted} rows "
                f"are accepted, {self._durable} of them durable; open the store again with mode='a'",
                accepted_rows=self._accepted,
                durable_rows=self._durable,
            )
        if isinstance(error, ZarrowError):
            return error
        return RuntimeError(f"{self.path}: the writing thread failed: {error!r}")

    def _in_turn(self, action: Callable[[], None]) -> None:
        """Run `action` in the appending thread, behind everything that is queued, and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                action()
            finally:
                done.set()

        self._queue.put(run)
        while not done.wait(0.1 if self._queue.stopped else 1.0):
            if self._queue.stopped:
                break
        if self._error is not None:
            raise self._failure(self._error) from self._error

    # Opening and defining

    def _define(self, table: _batches.Columns, arrays: Mapping[str, Any]) -> None:
        """Write down what the store is, as declared or as the first batch tells."""
        spec = self._declaration.infer(table, arrays, _provenance(self._provenance))
        _parts.check_columns(spec)
        # The first batch must be one, before a store is made after it.
        _batches.BatchReader(spec).read(
            spec.schema.empty_table() if table is None else table, arrays, None, copy=False, number=0
        ) if arrays or table is not None else None
        found = _catalog.create(self._root, spec, self._root / layout.OPEN_DIR)
        if found.uuid != spec.uuid:
            self._declaration.check(found)
        self._set_spec(found)

    def _set_spec(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._reader = _batches.BatchReader(spec)

    def _recover(self, *, shared: bool) -> None:
        """Read what the store is, if it is one yet; finish what dead writers began; find where to go on."""
        if not (self._root / layout.STORE_JSON).exists():
            if self._declaration.is_whole:
                self._define(None, {})
            if shared:
                self._lock.convert(shared=True)
            return
        spec = _catalog.read_spec(self._root)
        self._declaration.check(spec)
        _catalog.create(self._root, spec, self._root / layout.OPEN_DIR)  # what a crash may have left out
        self._set_spec(spec)
        if self._lock.shared:
            return  # other writers are at work; whoever was first has recovered
        dead = _seal.recover(self._root, spec, self._owner)
        try:
            reopened = _seal.reopen(self._root, spec, self._owner)
            if reopened is not None:
                dead.insert(0, reopened)
            committed = _catalog.read_snapshot(self._root).rows
            self._accepted = committed + sum(one.rows.rows for one in dead)
            self._durable = committed + sum(one.rows.durable_rows for one in dead)
            self._queued = self._accepted
            if dead:
                last = dead[-1]
                self._segment = OpenSegment.adopt(last.rows, spec, self._next_owner(), last.lock)
                dead.pop()
        finally:
            _seal.release(dead)
        if shared:
            self._lock.convert(shared=True)

    def _next_owner(self) -> Owner:
        owner = replace(self._owner, sequence=self._sequence)
        self._sequence += 1
        return owner

    # The appending thread's side

    def _run(self) -> None:
        while True:
            item = self._queue.get(self._until_due())
            if self._queue.stopped:
                return
            try:
                if item is None:
                    self._make_durable_if_due()
                    continue
                if isinstance(item, Batch):
                    self._append(item)
                else:
                    item()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
                self._error = error
                self._queue.stop()
                return
            self._queue.done()

    def _append(self, batch: Batch) -> None:
        if self._sealing is not None and self._sealing.done():
            self._wait_for_sealer()  # raises what went wrong there, early
        start = 0
        while start < batch.rows:
            segment = self._open_segment()
            stop = min(batch.rows, start + segment.room)
            segment.append(batch.slice(start, stop))
            self._accepted += stop - start
            start = stop
            if not segment.room:
                self._roll()
            elif self._spare is None and segment.room < segment.rows:
                self._spare = self._sealer.submit(self._create)
        if not self._undurable_batches:
            self._undurable_since = time.monotonic()
        self._undurable_batches += 1
        self._make_durable_if_due()

    def _open_segment(self) -> OpenSegment:
        if self._segment is None:
            spare, self._spare = self._spare, None
            self._segment = self._create() if spare is None else spare.result()
        return self._segment

    def _create(self) -> OpenSegment:
        assert self._spec is not None
        return OpenSegment.create(self._root, self._spec, self._next_owner())

    def _roll(self) -> None:
        """Hand the full segment to the sealer; at most one waits there, so memory stays bounded."""
        segment, self._segment = self._segment, None
        assert segment is not None
        if self._durability.batches or self._durability.seconds:
            # Rows of the next segment must not be durable before those of this one.
            segment.sync()
        self._wait_for_sealer()
        self._sealing = self._sealer.submit(self._seal, segment, self._accepted)

    def _seal(self, segment: OpenSegment, rows: int) -> None:
        assert self._spec is not None
        try:
            _seal.seal(self._root, self._spec, segment)
        finally:
            segment.close()
        self._durable = max(self._durable, rows)

    def _wait_for_sealer(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def _make_durable(self) -> None:
        self._wait_for_sealer()
        if self._segment is not None:
            self._segment.sync()
        self._durable = self._accepted
        self._undurable_batches = 0

    def _until_due(self) -> float | None:
        if not self._durability.seconds or not self._undurable_batches:
            return None
        return max(0.0, self._undurable_since + self._durability.seconds - time.monotonic())

    def _make_durable_if_due(self) -> None:
        batches, due_s = self._durability.batches, self._until_due()
        if (batches and self._undurable_batches >= batches) or due_s == 0.0:
            self._make_durable()

    # The end

    def _stop(self) -> None:
        """End the threads and let go of the open segments."""
        self._queue.stop()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._wait_for_sealer()  # its error is the writer's, or came after it
        segments = [self._segment]
        if self._spare is not None:
            with contextlib.suppress(Exception):
                segments.append(self._spare.result())
        self._sealer.shutdown()
        for segment in filter(None, segments):
            segment.close()
            if not segment.rows:
                with contextlib.suppress(OSError):  # an empty one left behind does no harm
                    discard(segment.path)
        self._segment = self._spare = None

    def _release(self, *, remove_lock: bool = False) -> None:
        self._closed = True
        self._lock.release(remove_file=remove_lock)
        atexit.unregister(self._at_exit)


def _close_at_exit(writer: weakref.ref[Writer]) -> Callable[[], None]:
    """Close a forgotten writer when the interpreter ends, so that what is queued is not lost."""
    process = os.getpid()

    def close() -> None:
        forgotten = writer()
        if forgotten is not None and os.getpid() == process:
            forgotten.close()

    atexit.register(close)
    return close


def _provenance(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "zarrow": version("zarrow"),
        "python": platform.python_version(),
        "host": this_host(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **given,
    }
