"""Bucket — claims of segment numbers, and commits, of a store in a bucket.

A bucket has neither locks nor renames, and a request whose answer is lost may have acted. So everything is
made or replaced by conditional puts (`_storage.conditional`), and what a writer has in common with others are
documents that only one of them can replace (`_format.bucket`): who may add rows (`hold`), and claims.

1. Opening: what was decided, but has no record, gets it. A writer that has the store to itself takes over
   the claims that are not decided.
2. A segment is committed so: claim the number, and see that one may still add rows; put shards and part
   under their final names; *decide* the claim, by replacing it by one with the commit record; create the
   record, from which moment the rows are visible; remove the claim.
3. Shared writers upload at once, but each decides only when all lower numbers are committed, so that there
   is never a gap to be filled when the store is completed. The lowest claim of a writer that is not listed
   any more, or stands still, is taken over by one that waits for it, which puts its segment there.

A writer that stood still for long and wakes up finds out before anything of it counts: another one holds its
claim, so that it cannot decide it any more. An object that is in its way is looked at first, then the claim,
then the object is replaced, if it is still the same: nothing that is committed is overwritten.

A crash leaves a claim with or without objects of its segment, which others take over.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from zarrow._format import layout
from zarrow._format.bucket import HOLDER, NumberClaim
from zarrow._format.parts import to_table
from zarrow._format.records import Owner, SegmentRecord, ShardFacts, Source
from zarrow._format.spec import StoreSpec
from zarrow._read import catalog
from zarrow._storage import files
from zarrow._storage.conditional import create, look, require_conditional, swap
from zarrow._storage.objects import ObjectPath, Version
from zarrow._storage.reading import map_file
from zarrow._write import parts, publishing
from zarrow._write.hold import Hold
from zarrow.errors import CorruptionError, InvalidInputError, StoreLockedError, ZarrowError

__all__ = ["Bucket"]

_PATIENCE_SECONDS = (1, 3, 10, 30, 60, 60, 60, 60, 60, 60)
"""How long a bucket that fails is waited for, step by step, while the caller goes on."""
_STANDSTILL_SECONDS = 300
"""How long a shared writer may hold the lowest number, which others wait for, before one takes it over."""
_POLL_SECONDS = 0.5
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
    """A store in a bucket, as one of its writers sees it.

    Parameters
    ----------
    place : ObjectPath
        The store.
    owner : Owner
        The writer.
    """

    def __init__(self, place: ObjectPath, owner: Owner) -> None:
        self.place = place
        self.hold = Hold(place, owner)
        self._owner = owner
        self._mine: list[_Held] = []  # claims without a segment yet, lowest number first
        self._next = self._dense = 0
        self._shared = False  # as it was when it was last asked
        self._alone = False  # as far as the numbers tell: a shared writer need not list them then

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

    # Segments

    def create(self, spec: StoreSpec) -> StoreSpec:
        """Create the store, without rows; return its spec, or that of a shared writer that was first."""
        self.hold.require_held()
        try:
            create(self.place, layout.STORE_JSON, spec.encode())
        except FileExistsError:
            if self.hold.is_held() and self.hold.require_held().shared:
                return catalog.read_spec(self.place)
            raise self.hold.store_exists() from None
        self.publish_shape(spec)
        return spec

    def settle(self, *, take: bool) -> None:
        """Finish what was decided; take over what was not, if the store is this writer's alone."""
        claims = catalog.claim_numbers(self.place)
        holder = self.hold.require_held()  # after the claims: who has one of them was listed before
        self._shared, self._mine = holder.shared, []
        for number in claims:
            if not take:
                self._undecided(number)
            elif (held := self._taken(number, holder.sessions)) is not None:
                self._mine.append(held)
        records = catalog.segment_numbers(self.place)
        if not take and self.has_gap():
            raise StoreLockedError(
                f"{self.place}: a repair was interrupted, and must be finished first: run 'zarrow repair'"
            )
        self._next = max([*claims, *records], default=-1) + 1
        self._dense = len(records)

    def _undecided(self, number: int) -> tuple[NumberClaim, Version] | None:
        """Return a claim; None if its segment is committed, or is now."""
        path = layout.claim_path(number)
        seen = look(self.place, path)
        if seen is None:
            return None
        claim = NumberClaim.decode(seen.data, str(self.place / path))
        if claim.record is not None:
            create(self.place, layout.record_path(number), claim.record)
        if claim.record is not None or catalog.has_record(self.place, number):
            self.place.delete(path)
            return None
        return claim, seen.version

    def _taken(self, number: int, living: Collection[str]) -> _Held | None:
        """Take a claim over; None if its segment is committed, or its writer is living."""
        while (found := self._undecided(number)) is not None:
            claim, version = found
            if claim.session in living and claim.session != self._owner.session:
                return None
            mine = NumberClaim(segment=number, session=self._owner.session)
            with contextlib.suppress(FileExistsError):  # decided or taken over meanwhile
                return _Held(mine, swap(self.place, layout.claim_path(number), version, mine.encode()))
        return None

    def _claimed(self, sources: Sequence[Source]) -> _Held:
        """Return a claim: of a number that was taken over, or of the next one."""
        while True:
            while not self._mine:
                held = self._claim_among_others(sources) if self._shared else self._claim_next(sources)
                self._mine += [] if held is None else [held]
            held = self._mine[0]
            try:  # after the claim: whoever takes over looks at the claims after that
                self._shared = self.hold.require_held().shared
            except StoreLockedError:
                self._withdraw(held, ())
                raise
            if not self._shared:
                return held
            for idle in self._mine[1:]:
                self._release(idle)
            if not catalog.has_record(self.place, held.claim.segment):
                return held
            self._mine.remove(held)  # another one has committed it, and removed its claim, before ours
            self.place.delete(held.path)

    def _claim_next(self, sources: Sequence[Source]) -> _Held | None:
        number, self._next = self._next, self._next + 1
        try:
            return self._claim(number, sources)
        except FileExistsError:  # of one who held the store before, and was slow, or of one who has joined
            return self._taken(number, self.hold.living())
        except OSError:
            self._next = number
            raise

    def _claim_among_others(self, sources: Sequence[Source]) -> _Held | None:
        """Claim the number behind all others, or take over the lowest or highest claim if nobody's."""
        if self._alone:
            with contextlib.suppress(FileExistsError):
                return self._claim(self._dense, sources)
        records, claims = catalog.numbers_from(self.place, self._dense)
        self._alone = not records and not claims
        while self._dense in records:
            self._dense += 1
        undecided = sorted(claims - records)
        for number in dict.fromkeys((*undecided[:1], *undecided[-1:])):
            held = self._taken(number, self.hold.living())
            if held is not None:
                return held
        try:
            return self._claim(max(records | claims, default=self._dense - 1) + 1, sources)
        except FileExistsError:
            return None

    def _claim(self, number: int, sources: Sequence[Source]) -> _Held:
        claim = NumberClaim(segment=number, session=self._owner.session, sources=sources)
        return _Held(claim, create(self.place, layout.claim_path(number), claim.encode()))

    def _release(self, held: _Held) -> None:
        """Leave a claim to whoever takes it over. It is not removed: objects of the number are there."""
        self._mine = [one for one in self._mine if one is not held]
        released = NumberClaim(segment=held.claim.segment, session="")
        with contextlib.suppress(FileExistsError):
            swap(self.place, held.path, held.version, released.encode())

    # Gaps, which only a repair makes, and only of a store that it has to itself

    def free(self, number: int) -> None:
        """Claim the number of a segment that is about to go, or is gone: another one is put there."""
        path, claim = layout.claim_path(number), NumberClaim(segment=number, session=self._owner.session)
        seen = look(self.place, path)
        version = swap(self.place, path, None if seen is None else seen.version, claim.encode())
        others = [held for held in self._mine if held.claim.segment != number]
        self._mine = sorted([*others, _Held(claim, version)], key=lambda held: held.claim.segment)

    def has_gap(self) -> bool:
        """Tell whether a number below the last segment has none."""
        numbers = catalog.segment_numbers(self.place)
        missing = next((number for number, found in enumerate(numbers) if number != found), None)
        # It is looked for, since the end of a long list is newer than its beginning.
        return missing is not None and not catalog.has_record(self.place, missing)

    def free_gaps(self) -> None:
        """Claim the numbers below the last one that have neither record nor claim."""
        records, claims = catalog.numbers_from(self.place, 0)
        for number in {*range(max(records | claims, default=0))} - records - claims:
            self.free(number)

    def withdraw(self, spec: StoreSpec, number: int) -> None:
        """Take a segment back, whose rows are in a tail: that counts from the moment that the record goes."""
        self.free(number)
        self.hold.require_held()
        self.place.delete(layout.record_path(number))
        self.remove_files(spec, number)

    def remove_files(self, spec: StoreSpec, number: int) -> None:
        """Remove shards and part of a number that has no record."""
        for array in spec.arrays:
            self.place.delete(array.shard_path(number))
        self.place.delete(layout.part_path(number))

    def _lower(self, number: int) -> _Held | None:
        """Wait until all lower numbers are committed; return the claim of one that nobody else commits."""
        seen: object = None
        since = 0.0
        while True:
            if self._dense < number:
                self._dense = catalog.dense_segments(self.place, self._dense)
            if self._dense >= number:
                return None
            found = self._undecided(self._dense)
            living = self.hold.living()
            if seen != (self._dense, found):
                seen, since = (self._dense, found), time.monotonic()
            elif time.monotonic() - since < _STANDSTILL_SECONDS:
                time.sleep(_POLL_SECONDS)
            elif found is not None:
                living -= {found[0].session}
            elif not catalog.has_record(self.place, self._dense):
                raise CorruptionError(
                    "the claim is missing", path=self.place / layout.claim_path(self._dense)
                )
            held = self._taken(self._dense, living)
            if held is not None:
                return held

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
        part, rows = directory / layout.PART, sum(batch.num_rows for batch in batches)
        while True:
            held = self.persist(partial(self._claimed, sources))
            number = held.claim.segment
            files.remove(part)
            table = to_table(spec, batches, number * spec.segment_rows)
            facts = parts.write_part(part, spec, table)
            record = SegmentRecord(
                segment=number, rows=rows, arrays=shards, part=facts, sources=tuple(sources)
            )
            names = {
                array.shard_path(number): layout.rows_name(array.name)
                for array in spec.arrays
                if shards[array.name].size_bytes
            }
            names[layout.part_path(number)] = layout.PART
            done = self.persist(partial(self._publish, held, directory, names, record.encode()))
            files.remove(part)
            if done:
                self._mine.remove(held)
                self._dense = max(self._dense, number + 1)
                return number

    def _publish(self, held: _Held, directory: Path, names: dict[str, str], record: bytes) -> bool:
        """Put a segment in place; False if another number must be taken for it."""

        def put(path: str) -> None:
            self._put(held, path, map_file(directory, names[path]).data)

        try:
            with ThreadPoolExecutor(min(_PUTS_AT_ONCE, len(names)), "zarrow-puts") as pool:
                for done in [pool.submit(put, path) for path in names]:
                    done.result()
            lower = self._lower(held.claim.segment) if self._shared else None
            if lower is not None:
                self._release(held)
                self._mine.insert(0, lower)
                return False
            swap(self.place, held.path, held.version, replace(held.claim, record=record).encode())
            create(self.place, layout.record_path(held.claim.segment), record)
        except FileExistsError:
            if self._is_decided(held, record):  # by an attempt whose answer was lost
                return True
            self._withdraw(held, names)
            if not self.hold.is_held():
                raise self.hold.lost() from None
            # A shared writer, which took this one to stand still, has the number.
            self._mine = [one for one in self._mine if one is not held]
            return False
        with contextlib.suppress(OSError):  # the next writer removes it
            self.place.delete(held.path)
        return True

    def _is_decided(self, held: _Held, record: bytes) -> bool:
        """Tell whether a claim was decided by this writer, and see that its record is there."""
        with contextlib.suppress(FileExistsError):
            self._undecided(held.claim.segment)
        seen = look(self.place, layout.record_path(held.claim.segment))
        return seen is not None and seen.data == record

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
        while True:
            dense = catalog.dense_segments(self.place)
            for path, data in publishing.shape_documents(self.place, spec, dense):
                self.replace(path, data)
            if not self._shared or catalog.dense_segments(self.place) == dense:
                return  # else a shared writer may have shown more rows meanwhile, and this one fewer

    def replace(self, path: str, data: bytes) -> None:
        """Replace an object, or create it, unless the store was taken over."""
        while True:
            seen = look(self.place, path, _MAX_REPLACED_BYTES)
            if seen is not None and seen.data == data:
                return
            self.hold.require_held()  # after the look, for the same reason as in `_put`
            with contextlib.suppress(FileExistsError):
                swap(self.place, path, None if seen is None else seen.version, data)
                return

    def let_go(self, spec: StoreSpec) -> None:
        """Let the store go, which is complete, and remove what is left behind its last segment.

        In this order: one that was overtaken, and has put something there, finds no holder then, and removes
        it itself (`_withdraw`).
        """
        mine = self._mine
        self.hold.require_held()
        self.place.delete(HOLDER)
        for name in (self.place / layout.OPEN_DIR).names():
            self.place.delete(f"{layout.OPEN_DIR}/{name}")
        self._drop(spec, {*(held.claim.segment for held in mine), *catalog.claim_numbers(self.place)})

    def drop_claims(self, spec: StoreSpec) -> None:
        """Remove the claims that no segment is to be put to, of a store that this writer has to itself."""
        self.hold.require_held()
        self._drop(spec, {held.claim.segment for held in self._mine})

    def _drop(self, spec: StoreSpec, numbers: Iterable[int]) -> None:
        for number in numbers:
            if not catalog.has_record(self.place, number):
                self.remove_files(spec, number)
            self.place.delete(layout.claim_path(number))
        self._mine = []
