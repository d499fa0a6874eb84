"""Appender — the two threads that append batches and seal segments while the caller goes on.

One takes batches from the queue and appends them to the open segment; the other seals full segments and
prepares the next one before it is needed, so that no batch waits for an fsync.

It owns the order of a writer's rows: an open segment is handed to the sealer before rows enter the next,
and under a `Durability` policy it is durable before they do. An error in either thread ends both;
`Appender.error` keeps it, for the writer to raise. What is queued then is lost, as it is when the process
dies.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from zarrow._format.records import Owner
from zarrow._format.spec import StoreSpec
from zarrow._read.catalog import dense_segments
from zarrow._storage import threads
from zarrow._storage.lock import FileLock
from zarrow._write import seal
from zarrow._write.batches import CheckedBatch, split
from zarrow._write.directory import require_in_place
from zarrow._write.open_segment import OpenSegment, discard
from zarrow._write.spooled import SpooledStore
from zarrow._write.worker import Worker
from zarrow.errors import InvalidInputError, WriteFailedError, ZarrowError

__all__ = ["Appender", "Durability", "durability_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """When accepted rows become safe against a power cut, too.

    A full segment always is, when it is sealed; and so are all rows after `Writer.flush` with
    ``durable=True`` and after `Writer.finalize`.

    Parameters
    ----------
    batches : int, optional
        After this many batches.
    seconds : float, optional
        When the oldest row that is not durable was accepted this many seconds ago. Of a store in a bucket,
        the rows are put there, too, so that the loss of the machine costs no more than the last ones; they
        are uploaded a second time with their segment.

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


def durability_of(policy: object) -> Durability:
    """Return a policy that may be given by its name, ``"segment"`` or ``"batch"``."""
    if policy in ("segment", "batch"):
        return Durability(batches=1 if policy == "batch" else None)
    if not isinstance(policy, Durability):
        raise InvalidInputError(f"durability must be 'segment', 'batch' or Durability, got {policy!r}")
    return policy


class Appender(Worker[CheckedBatch]):
    """The threads of a writer.

    Parameters
    ----------
    path : Path or ObjectPath
        The store, as messages call it.
    root : Path
        Where it grows, if it is to replace another.
    lock : FileLock
        The store's, held by the writer.
    owner : Owner
        The writer.
    durability : Durability
        When rows become durable.
    queue_bytes : int
        Size of the batches that may wait.
    spooled : SpooledStore, optional
        Of a store in a bucket, whose open segments `root` has.
    """

    def __init__(
        self,
        path: object,
        root: Path,
        lock: FileLock,
        owner: Owner,
        durability: Durability,
        queue_bytes: int,
        spooled: SpooledStore | None = None,
    ) -> None:
        self.accepted_rows = 0
        self.durable_rows = 0
        self._path = path
        self._root = root
        self._lock = lock
        self._owner = owner
        self._durability = durability
        self._spooled = spooled
        self._sequence = 0
        self._last_slot = ""
        self._segments = 0  # committed, as far as it is known
        self._from_segment = 0  # and when the last open segment was begun
        self._spec: StoreSpec | None = None
        self._segment: OpenSegment | None = None
        self._spare: Future[OpenSegment] | None = None
        self._sealing: deque[Future[None]] = deque()
        self._copying: Future[None] | None = None
        self._waiting_segments = 1
        self._seal_failed = False  # what follows stays behind: rows become visible in their order
        self._undurable_batches = 0
        self._undurable_since = 0.0
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="zarrow-sealer")
        super().__init__("zarrow-appender", queue_bytes)

    # The caller's side

    def start(self, spec: StoreSpec) -> None:
        """Set the store's spec, before the first batch."""
        self._spec = spec
        if self._spooled is not None:
            self._waiting_segments = self._spooled.waiting_segments(spec)

    def go_on(self, dead: list[seal.Dead], committed_rows: int, segments: int) -> None:
        """Take over what dead writers left, before the first batch.

        Parameters
        ----------
        dead : list of Dead
            The unfinished open segments. The last is filled further; the locks of the others are released.
        committed_rows : int
            Rows in committed segments, and in the tails of a bucket.
        segments : int
            Number of committed segments, of those that stay.
        """
        assert self._spec is not None
        self.accepted_rows = committed_rows + sum(one.rows.rows for one in dead)
        self.durable_rows = committed_rows + sum(one.rows.durable_rows for one in dead)
        self._segments = self._from_segment = segments
        try:
            if dead:
                last = dead[-1]
                self._segment = OpenSegment.adopt(last.rows, self._spec, self._next_owner(), last.lock)
                self._last_slot = self._segment.slot
                dead = dead[:-1]
        finally:
            seal.release(dead)

    def take_back(self, reopened: seal.Dead | None) -> None:
        """Fill a segment that was reopened, whose rows are counted already, if no open segment is left."""
        if reopened is not None and self._segment is None:
            assert self._spec is not None
            owner = self._next_owner()
            self._segment = OpenSegment.adopt(reopened.rows, self._spec, owner, reopened.lock)
        elif reopened is not None:
            reopened.lock.release()

    def flush(self, *, durable: bool) -> None:
        """Wait until every queued batch is accepted, or durable; returns early if a thread failed."""
        self.call(self._make_durable if durable else lambda: None)

    def check(self) -> None:
        """Raise the error of the threads, if any."""
        if self.error is not None:
            raise self.failure(self.error) from self.error

    def failure(self, error: BaseException) -> Exception:
        """Return what the writer raises for an error of its threads or its own calls: which rows are safe."""
        if isinstance(error, ZarrowError):
            return error
        if not isinstance(error, OSError):
            return RuntimeError(f"{self._path}: the writing thread failed: {error!r}")
        accepted, durable = self.accepted_rows, self.durable_rows
        return WriteFailedError(
            error.errno or errno.EIO,
            f"{self._path}: {error.strerror or error}: the writer refuses more rows; {accepted} rows are "
            f"accepted, {durable} of them durable: open the store again with mode='a'",
            accepted_rows=accepted,
            durable_rows=durable,
        )

    def forget(self, at_exit: Callable[[], None]) -> None:
        """Finish what a lost writer has queued, and release its store; for a destructor: does not wait.

        Parameters
        ----------
        at_exit : callable
            Registered with `atexit`; no longer needed in the end.
        """
        if os.getpid() != self._owner.pid:
            return

        def finish() -> None:
            try:
                if self.error is None:
                    self._make_durable()
            finally:
                self.end()
                self._lock.release()
                atexit.unregister(at_exit)

        self.end_with(finish)
        warnings.warn(
            f"{self._path}: a Writer was lost without close(); the rows that it has queued are written all "
            "the same",
            ResourceWarning,
            stacklevel=2,
        )

    # The appending thread's side

    def end(self) -> None:
        """End the sealing thread and let go of the open segments."""
        self._sealer.shutdown()
        segments = [self._segment]
        if self._spare is not None:
            with contextlib.suppress(Exception):  # an empty segment that could not be created is no loss
                segments.append(self._spare.result())
        for segment in filter(None, segments):
            segment.close()
            if not segment.rows:
                with contextlib.suppress(OSError):  # nor is one that stays behind
                    discard(segment.path)
        self._segment = self._spare = None

    def work_on(self, taken: tuple[list[CheckedBatch], int] | Callable[[], None]) -> int:
        """Work on a group or call a function; an error in a store that is gone says so."""
        try:
            return super().work_on(taken)
        except OSError:
            require_in_place(self._lock)
            raise

    def work(self, items: list[CheckedBatch]) -> None:
        """Append batches: accepted on return; durable, too, if that is due."""
        self._append(items)
        self._undurable_batches += len(items)
        batches, due = self._durability.batches, self.idle_s() == 0.0
        if (batches and self._undurable_batches >= batches) or due:
            self._make_durable(wait=self._spooled is None)
        if due and self._spooled is not None:
            self._copy_rows()

    def idle_s(self) -> float | None:
        """Return in how many seconds rows must be made durable; None if no time is set."""
        if not self._durability.seconds or not self._undurable_batches:
            return None
        return max(0.0, self._undurable_since + self._durability.seconds - time.monotonic())

    def _append(self, batches: list[CheckedBatch]) -> None:
        if not self._undurable_batches:
            self._undurable_since = time.monotonic()
        while self._sealing and self._sealing[0].done():
            self._sealing.popleft().result()  # raises its error early
        while batches:
            segment = self._open_segment()
            now, batches = split(batches, segment.room)
            segment.append(now)
            self.accepted_rows += sum(batch.rows for batch in now)
            if not segment.room:
                self._roll()
                continue
            if self._spare is None and segment.room < segment.rows:
                self._spare = threads.submit(self._sealer, self._create)
            if segment.wants_writeback:
                # Here, though the kernel may block: behind an fsync of the sealer the disk would idle.
                segment.start_writeback()

    def _open_segment(self) -> OpenSegment:
        if self._segment is None:
            spare, self._spare = self._spare, None
            self._segment = self._create() if spare is None else spare.result()
        return self._segment

    def _create(self) -> OpenSegment:
        assert self._spec is not None
        require_in_place(self._lock)
        if not self._sequence and self._spooled is None:  # which has told by `go_on`
            self._segments = self._from_segment = dense_segments(self._root)
        segment = OpenSegment.create(self._root, self._spec, self._next_owner(), self._last_slot)
        self._last_slot = segment.slot
        return segment

    def _next_owner(self) -> Owner:
        owner = replace(self._owner, sequence=self._sequence, from_segment=self._from_segment)
        self._sequence += 1
        self._from_segment = self._segments  # the next one's record and this one's have no lower number
        return owner

    def _roll(self) -> None:
        """Hand the full segment to the sealer, where at most one waits: in a bucket's spool, some more."""
        segment = self._segment
        assert segment is not None
        if self._durability.batches or self._durability.seconds:
            # Rows of the next segment must not be durable before those of this one.
            segment.sync()
        while len(self._sealing) >= self._waiting_segments:
            self._sealing.popleft().result()
        self._segment = None  # not before: if that raises, `stop` must close the segment
        rows = self.accepted_rows
        self._sealing.append(threads.submit(self._sealer, lambda: self._seal(segment, rows)))

    def _seal(self, segment: OpenSegment, rows: int) -> None:
        assert self._spec is not None
        try:
            if self._seal_failed:
                raise OSError(errno.EIO, "an earlier segment could not be sealed")
            self._seal_failed = True
            if self._spooled is not None:
                self._segments = self._spooled.seal(self._spec, segment)
            else:
                self._segments = seal.seal(self._root, self._spec, segment, self._segments, self._lock)
            self._seal_failed = False
        finally:
            segment.close()
        self.durable_rows = max(self.durable_rows, rows)

    def _wait_for_sealer(self) -> None:
        while self._sealing:
            self._sealing.popleft().result()

    def _copy_rows(self) -> None:
        """Have the open segment's rows put into the bucket, behind the segments before it."""
        if self._copying is not None and self._copying.done():
            self._copying.result()
            self._copying = None
        segment, spec, spooled = self._segment, self._spec, self._spooled
        if self._copying is None and segment is not None and spec is not None and spooled is not None:
            self._copying = threads.submit(self._sealer, lambda: spooled.copy_rows(spec, segment))

    def _make_durable(self, *, wait: bool = True) -> None:
        if wait:  # else full segments were synced before they were handed to the sealer
            self._wait_for_sealer()
        if self._segment is not None:
            self._segment.sync()
        self.durable_rows = self.accepted_rows
        self._undurable_batches = 0
