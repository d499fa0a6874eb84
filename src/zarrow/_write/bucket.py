"""Bucket — the writer of a store in a bucket: who holds it, claims of segment numbers, commits.

A bucket has neither locks nor renames, and a request whose answer is lost may have acted. So everything is
made or replaced by conditional puts (`_storage.conditional`), and what a writer has in common with others are
documents that only one of them can replace (`_format.bucket`):

1. Opening makes a writer the holder of the store. The claims of others that are not decided become its own;
   what was decided, but has no record, gets it.
2. A segment is committed so: claim the number, and see that one still holds the store; put shards and part
   under their final names; *decide* the claim, by replacing it by one with the commit record; create the
   record, from which moment the rows are visible; remove the claim.

A writer that stood still for long and wakes up finds out before anything of it counts: who took the store
over holds its claim, so that it cannot decide it any more. An object that is in its way is looked at first,
then the claim, then the object is replaced, if it is still the same: nothing that is committed is
overwritten.

A crash leaves a claim with or without objects of its segment, which the next holder takes over.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from zarrow._format import layout
from zarrow._format.bucket import HOLDER, Holder, NumberClaim
from zarrow._format.parts import to_table
from zarrow._format.records import Owner, SegmentRecord, ShardFacts, Source
from zarrow._format.spec import StoreSpec
from zarrow._read import catalog
from zarrow._storage import files
from zarrow._storage.conditional import create, look, require_conditional, swap
from zarrow._storage.objects import ObjectPath, Version
from zarrow._storage.reading import map_file
from zarrow._write import parts, publishing
from zarrow.errors import InvalidInputError, StoreExistsError, StoreLockedError, ZarrowError

__all__ = ["Bucket"]

_PATIENCE_SECONDS = (1, 3, 10, 30, 60, 60, 60, 60, 60, 60)
"""How long a bucket that fails is waited for, step by step, while the caller goes on."""
_PUTS_AT_ONCE = 4
_MAX_REPLACED_BYTES = 1 << 30

Made = TypeVar("Made")


@dataclass(slots=True)
class _Held:
    """A claim of this writer."""

    claim: NumberClaim
    version: Version

    @property
    def path(self) -> str:
        return layout.claim_path(self.claim.segment)


class Bucket:
    """A store in a bucket, as its one writer sees it.

    Parameters
    ----------
    place : ObjectPath
        The store.
    owner : Owner
        The writer.
    """

    def __init__(self, place: ObjectPath, owner: Owner) -> None:
        self.place = place
        self._owner = owner
        self._mine: list[_Held] = []  # claims without a segment yet, lowest number first
        self._next = 0

    def probe(self) -> None:
        """Raise unless objects can be made, replaced and removed here, and conditions are kept."""
        for number in range(2):
            path = f"{layout.OPEN_DIR}/{layout.SCRATCH_PREFIX}{self._owner.session}-{number}"
            create(self.place, path, self._owner.encode())
            try:
                require_conditional(self.place, path, replaces=True)
                break
            except InvalidInputError:  # or one who has completed the store has removed the object just now
                if number:
                    raise
        self.place.delete(path)

    # Who holds the store

    def take(self, may_take: Callable[[Holder | None], None]) -> None:
        """Become the holder; `may_take` may object to the one before."""
        while True:
            seen = look(self.place, HOLDER)
            before = None if seen is None else self._holder_in(seen.data)
            may_take(before)
            mine = Holder(owner=self._owner, tails=() if before is None else before.tails)
            try:
                swap(self.place, HOLDER, None if seen is None else seen.version, mine.encode())
            except FileExistsError:
                continue  # another one took it meanwhile
            return

    def _holder_in(self, data: bytes) -> Holder:
        return Holder.decode(data, str(self.place / HOLDER))

    def require_held(self) -> Holder:
        """Return the holder, which this writer is; else raise `StoreLockedError`."""
        seen = look(self.place, HOLDER)
        holder = None if seen is None else self._holder_in(seen.data)
        if holder is None or holder.owner.session != self._owner.session:
            raise self._taken_over(holder)
        return holder

    def _taken_over(self, holder: Holder | None) -> StoreLockedError:
        who = "another writer" if holder is None else str(holder.owner)
        return StoreLockedError(
            f"{self.place}: {who} has taken the store over or completed it, so this writer stops; its rows "
            "that are not in the bucket stay in its spool"
        )

    def add_tail(self, slot: str) -> None:
        """Have a tail count, all of whose objects are there, unless the store was taken over."""
        while True:
            holder, seen = self.require_held(), look(self.place, HOLDER)
            if slot in holder.tails:
                return
            if seen is not None and self._holder_in(seen.data) == holder:
                wanted = replace(holder, tails=(*holder.tails, slot))
                with contextlib.suppress(FileExistsError):
                    swap(self.place, HOLDER, seen.version, wanted.encode())
                    return

    # Segments

    def create(self, spec: StoreSpec) -> None:
        """Create the store, without rows."""
        self.require_held()
        try:
            create(self.place, layout.STORE_JSON, spec.encode())
        except FileExistsError:
            raise self.store_exists() from None
        self.publish_shape(spec)

    def store_exists(self) -> StoreExistsError:
        """Return the error of one that became the holder of a store which another one had just made."""
        with contextlib.suppress(OSError, ZarrowError):
            self.require_held()
            self.place.delete(HOLDER)
        return StoreExistsError(f"{self.place}: another writer has made a store here meanwhile")

    def settle(self) -> None:
        """Take over the claims of dead writers, and of living ones that do not hold the store any more."""
        claims, records = catalog.claim_numbers(self.place), catalog.segment_numbers(self.place)
        self._mine = []
        for number in claims:
            held = self._settled(number)
            if held is not None:
                self._mine.append(held)
        self._next = max([*claims, *records], default=-1) + 1

    def _settled(self, number: int) -> _Held | None:
        """Take a claim over; None if its segment is committed, or is now."""
        path = layout.claim_path(number)
        while (seen := look(self.place, path)) is not None:
            claim = NumberClaim.decode(seen.data, str(self.place / path))
            if claim.record is not None:
                create(self.place, layout.record_path(number), claim.record)
            if claim.record is not None or catalog.has_record(self.place, number):
                self.place.delete(path)
                return None
            mine = NumberClaim(segment=number, session=self._owner.session)
            with contextlib.suppress(FileExistsError):  # decided or taken over meanwhile
                return _Held(mine, swap(self.place, path, seen.version, mine.encode()))
        return None

    def _claimed(self, sources: Sequence[Source]) -> _Held:
        """Return a claim: of a number that was taken over, or of the next one."""
        while not self._mine:
            number, self._next = self._next, self._next + 1
            claim = NumberClaim(segment=number, session=self._owner.session, sources=sources)
            held: _Held | None
            try:
                version = create(self.place, layout.claim_path(number), claim.encode())
                held = _Held(claim, version)
            except FileExistsError:  # of one who held the store before, and was slow
                held = self._settled(number)
            except OSError:
                self._next = number
                raise
            if held is not None:
                self._mine.append(held)
        try:
            self.require_held()  # after the claim: whoever takes over looks at the claims after that
        except StoreLockedError:
            self._withdraw(self._mine[0], ())
            raise
        return self._mine[0]

    def commit(
        self,
        spec: StoreSpec,
        sources: Sequence[Source],
        directory: Path,
        shards: dict[str, ShardFacts],
        batches: Sequence[pa.RecordBatch],
    ) -> int:
        """Commit rows: visible to every reader on return.

        Parameters
        ----------
        spec : StoreSpec
            The store's spec.
        sources : sequence of Source
            The open segments that they come from.
        directory : Path
            Where the finished shards are, and the part will be.
        shards : dict of str to ShardFacts
            Facts about these.
        batches : sequence of RecordBatch
            The table's rows.

        Returns
        -------
        int
            The segment's number.
        """
        held = self.persist(lambda: self._claimed(sources))
        number, part = held.claim.segment, directory / layout.PART
        files.remove(part)
        table = to_table(spec, batches, number * spec.segment_rows)
        facts = parts.write_part(part, spec, table)
        record = SegmentRecord(
            segment=number, rows=table.num_rows, arrays=shards, part=facts, sources=tuple(sources)
        )
        names = {
            array.shard_path(number): layout.rows_name(array.name)
            for array in spec.arrays
            if shards[array.name].size_bytes
        }
        names[layout.part_path(number)] = layout.PART
        self.persist(lambda: self._publish(held, directory, names, record.encode()))
        self._mine.remove(held)
        files.remove(part)
        return number

    def _publish(self, held: _Held, directory: Path, names: dict[str, str], record: bytes) -> None:
        def put(path: str) -> None:
            self._put(held, path, map_file(directory, names[path]).data)

        try:
            with ThreadPoolExecutor(min(_PUTS_AT_ONCE, len(names)), "zarrow-puts") as pool:
                for done in [pool.submit(put, path) for path in names]:
                    done.result()
            swap(self.place, held.path, held.version, replace(held.claim, record=record).encode())
            create(self.place, layout.record_path(held.claim.segment), record)
        except FileExistsError:
            self._withdraw(held, names)
            raise self._lost() from None
        with contextlib.suppress(OSError):  # the next holder removes it
            self.place.delete(held.path)

    def _put(self, held: _Held, path: str, data: Any) -> None:
        """Put an object of a claimed segment in place, whatever another one, before, has left there."""
        version: Version | None = None
        while True:
            try:
                swap(self.place, path, version, data)
                return
            except FileExistsError:
                pass
            try:
                with self.place.open(path) as there:
                    version = there.version
            except FileNotFoundError:
                version = None
            # In this order: what took its place after the claim was lost has another version.
            seen = look(self.place, held.path)
            if seen is None or seen.data != held.claim.encode():
                raise FileExistsError(errno.EEXIST, "the claim was taken over", held.path)

    def _withdraw(self, held: _Held, names: Iterable[str]) -> None:
        """Remove what a writer that was overtaken has put behind the last segment of a complete store.

        While there is a holder, that one uses the number, or removes what is there.
        """
        with contextlib.suppress(OSError, ZarrowError):
            if look(self.place, HOLDER) is not None:
                return
            free = not catalog.has_record(self.place, held.claim.segment)
            for path in (*names, held.path) if free else (held.path,):
                self.place.delete(path)

    def _lost(self) -> StoreLockedError:
        seen = look(self.place, HOLDER)
        return self._taken_over(None if seen is None else self._holder_in(seen.data))

    def persist(self, step: Callable[[], Made]) -> Made:
        """Do something that may be repeated until it succeeds, as long as the bucket merely fails."""
        for wait in _PATIENCE_SECONDS:
            try:
                return step()
            except (ZarrowError, PermissionError):
                raise
            except OSError:
                time.sleep(wait)
        return step()

    # What is derived from the records

    def publish_shape(self, spec: StoreSpec) -> None:
        """Show Zarr readers the committed rows."""
        dense = catalog.dense_segments(self.place)
        for path, data in publishing.shape_documents(self.place, spec, dense):
            self.replace(path, data)

    def replace(self, path: str, data: bytes) -> None:
        """Replace an object, or create it, unless the store was taken over."""
        while True:
            seen = look(self.place, path, _MAX_REPLACED_BYTES)
            if seen is not None and seen.data == data:
                return
            self.require_held()  # after the look, for the same reason as in `_put`
            with contextlib.suppress(FileExistsError):
                swap(self.place, path, None if seen is None else seen.version, data)
                return

    def let_go(self, spec: StoreSpec) -> None:
        """Let the store go, which is complete, and remove what is left behind its last segment.

        In this order: one that was overtaken, and has put something there, finds no holder then, and removes
        it itself (`_withdraw`).
        """
        numbers = [held.claim.segment for held in self._mine]
        self.require_held()
        self.place.delete(HOLDER)
        for name in (self.place / layout.OPEN_DIR).names():
            self.place.delete(f"{layout.OPEN_DIR}/{name}")
        for number in {*numbers, *catalog.claim_numbers(self.place)}:
            if not catalog.has_record(self.place, number):
                for array in spec.arrays:
                    self.place.delete(array.shard_path(number))
                self.place.delete(layout.part_path(number))
            self.place.delete(layout.claim_path(number))
        self._mine = []
