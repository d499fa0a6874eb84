"""Spooled store — a store in a bucket whose open segments are on a disk of this machine, the spool.

The spool is a directory like that of an incomplete store: the same code fills and recovers its open segments,
so that rows in it are as safe against the death of the process as on a disk. Full ones are committed to the
bucket (`bucket`) by the thread that seals them, and removed here. What a writer leaves when it is closed, an
open segment that is not full, goes to the bucket as a *tail*: its files as objects below ``open/``, then its
name into the list of tails that count. Rows of tails are packed when the store is completed, whoever does it.

A crash leaves open segments here. Those whose rows are committed, or that are tails, are dropped by the next
writer on this machine. If another writer, elsewhere, has taken the store over meanwhile, it may have written
the same rows again: then those of this spool are not added, and the error says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from zarrow._format import layout
from zarrow._format.bucket import HOLDER, Holder
from zarrow._format.records import Manifest, Owner, Source
from zarrow._format.spec import StoreSpec
from zarrow._format.statistics import statistics_of
from zarrow._read import catalog
from zarrow._read.open_rows import OpenRows, read, slots
from zarrow._read.view import take_view
from zarrow._read.visible import visible_rows
from zarrow._storage import files
from zarrow._storage.objects import ObjectPath
from zarrow._write import publishing, recovery
from zarrow._write.bucket import Bucket
from zarrow._write.directory import Mode, in_own_session
from zarrow._write.open_segment import OpenSegment, discard
from zarrow._write.reopening import committed_batches
from zarrow._write.seal import Dead, copy_pieces, release
from zarrow._write.spool import open_spools, spools_of
from zarrow._write.tails import Tails
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    StoreLockedError,
    ZarrowError,
)

__all__ = ["SpooledStore"]

_SPOOL_BYTES = 4 << 30
_MAX_WAITING = 64
_MAX_PUT_BYTES = 5_000_000_000
"""What S3 takes in one request, which a conditional one is."""


class SpooledStore:
    """A store in a bucket, its spool, and one of its writers.

    Parameters
    ----------
    place : ObjectPath
        The store.
    owner : Owner
        The writer.
    mode : {"x", "w", "a"}
        As for a writer.
    spool : path, optional
        Where the spool is made.
    shared : bool
        Whether others write it, too.

    Raises
    ------
    StoreExistsError, NotAStoreError
        If the place is taken.
    StoreLockedError
        If another writer of this machine has the store open.
    InvalidInputError
        If the service cannot be written to safely, or the spool's rows may be in the bucket already.
    """

    def __init__(
        self,
        place: ObjectPath,
        owner: Owner,
        mode: Mode,
        spool: str | os.PathLike[str] | None,
        *,
        shared: bool = False,
    ) -> None:
        if str(place).startswith(("http://", "https://")):
            raise InvalidInputError(
                f"{place}: a web server can only be read from: write to a bucket, or a disk"
            )
        self.place = place
        self._owner = owner
        self._shared = shared
        self.bucket = Bucket(place, owner)
        self._hold = self.bucket.hold
        self._no_more: str | None = None
        self.tails = Tails(self.bucket)
        self.is_new = not self._look(mode)
        self._spools = open_spools(spools_of(place, spool), owner, shared=shared)
        self._spool = self._spools[0]
        self.claim = self._spool.claim
        try:
            self._enter()
        except BaseException:
            self.give_up()
            for one in self._spools:
                one.drop()
            raise

    @property
    def root(self) -> Path:
        """The directory of the open segments."""
        return self._spool.root

    @property
    def roots(self) -> list[Path]:
        """That, and those of dead writers."""
        return [one.root for one in self._spools]

    def _look(self, mode: Mode) -> bool:
        """Tell whether there is a store that may be written to, or nothing."""
        if self.place.exists(layout.STORE_JSON):
            if mode == "x":
                raise StoreExistsError(
                    f"{self.place}: there is a store already: mode='a' resumes it if it is incomplete"
                )
            if mode == "w":
                raise StoreExistsError(
                    f"{self.place}: a store in a bucket cannot be replaced at once: write to another URL, or "
                    "remove this one first, manifest.json before the rest"
                )
            return True
        ours = (HOLDER, f"{layout.OPEN_DIR}/{layout.SCRATCH_PREFIX}")
        others = (name for name in self.place.names() if not name.startswith(ours))
        if (name := next(others, None)) is not None:
            raise NotAStoreError(
                f"{self.place}: there are objects that are not a store's, such as {name}: choose another "
                "URL, or remove them"
            )
        return False

    def _enter(self) -> None:
        """Take or join the store, and make the spool that of the store."""
        spec = None if self.is_new else catalog.read_spec(self.place)
        for one in self._spools:
            of = one.spec
            if of is not None and (spec is None or of.uuid != spec.uuid):
                if one.holds_rows():
                    raise NotAStoreError(
                        f"{one.folder}: this spool has rows of another store, {of.uuid}, which is not at "
                        f"{self.place} any more: move it away, or remove it"
                    )
                one.empty()
        sessions = {one: one.sessions() for one in self._spools if one.holds_rows()}

        def may_take(before: Holder | None) -> None:
            if spec is None and not self._shared and self.place.exists(layout.STORE_JSON):
                raise StoreExistsError(f"{self.place}: another writer has made a store here meanwhile")
            for one, used_by in sessions.items():
                if before is not None and not used_by & before.sessions:
                    raise InvalidInputError(
                        f"{one.folder}: this spool has rows that are not in {self.place}, which "
                        f"{before.owner} has taken over since, so that the same rows may have been written "
                        "again: remove the spool to go on without them"
                    )

        self.bucket.probe()
        self._hold.dead = {session for one in self._spools for session in one.sessions()}
        for one in self._spools:  # first: a crash after the other would make it look like another's
            one.note(self._owner.session)
        self._hold.join(may_take) if self._shared else self._hold.take(may_take)
        if spec is None and not self._shared and self.place.exists(layout.STORE_JSON):
            raise self._hold.store_exists()
        if spec is not None and self._spool.spec is None:
            publishing.create(self.root, spec, self.root / layout.OPEN_DIR)
        if spec is None:
            self._bury()

    def give_up(self) -> None:
        """Be listed no more, unless rows are left in the spool: their session must stay known."""
        with contextlib.suppress(OSError, ZarrowError):
            if not any(one.holds_rows() for one in self._spools):
                self._hold.depart()

    def _bury(self) -> None:
        """Remove what dead writers have left, whose rows are in the bucket, if they had any."""
        if self._shared:
            self._hold.depart(self._hold.dead, stays=True)
        for one in self._spools[1:]:
            one.remove()
        del self._spools[1:]

    # From the first row to the last

    def create(self, spec: StoreSpec) -> StoreSpec:
        """Create the store, here and in the bucket; return its spec, or that of a writer that was first."""
        for array in spec.arrays:
            if not array.is_ragged and spec.segment_rows * array.row_bytes > _MAX_PUT_BYTES:
                raise InvalidInputError(
                    f"{self.place}: a shard must have at most {_MAX_PUT_BYTES:,} bytes in a bucket, and that "
                    f"of array {array.name!r} would have {spec.segment_rows * array.row_bytes:,}: choose a "
                    "smaller segment_rows"
                )
        return self._here(self.bucket.create(spec))

    def _here(self, spec: StoreSpec) -> StoreSpec:
        return publishing.create(self.root, spec, self.root / layout.OPEN_DIR)

    def found(self) -> StoreSpec | None:
        """Return the spec of a store that another shared writer may have made meanwhile."""
        if not self._shared or not self.place.exists(layout.STORE_JSON):
            return None
        return self._here(catalog.read_spec(self.place))

    def waiting_segments(self, spec: StoreSpec) -> int:
        """Return how many full segments may wait for their upload, so that the spool stays bounded."""
        size_bytes = max(spec.segment_rows * spec.fixed_bytes, 1)
        size_bytes += layout.MAX_SHARD_BYTES * len(spec.ragged)  # about what a segment of them has
        return max(1, min(_SPOOL_BYTES // size_bytes, _MAX_WAITING))

    def recover(self, spec: StoreSpec) -> tuple[int, int]:
        """Finish what dead writers began; return the rows and segments in the bucket, which has all then.

        An open segment is not filled further: its rows become a tail, which readers see, such as one that
        looks for what is left to predict. A shared writer does not count the tails of others, which may be
        many, and would have to be read.
        """
        self.bucket.settle(take=not self._shared)
        dead: list[Dead] = []
        try:
            for one in self._spools:
                dead += self._recovered(one.root, spec)
            snapshot = catalog.read_snapshot(self.place)
            if snapshot.complete or snapshot.rows % spec.segment_rows:
                what = "complete" if snapshot.complete else "being completed"
                self._no_more = f"{self.place}: the store is {what}"
            if dead and snapshot.complete:
                raise InvalidInputError(
                    f"{dead[-1].rows.path.parents[2]}: this spool has {dead[-1].rows.rows} rows that "
                    f"{self.place}, which is complete, does not have: remove the spool if they are not needed"
                )
            for left in dead:
                self.tails.put(left.rows)
                discard(left.rows.path)
        finally:
            release(dead)
        if not self._shared and self.bucket.has_gap():
            self._close_gaps(spec)
            snapshot = catalog.read_snapshot(self.place)
        self._bury()
        if self._shared:
            return snapshot.rows + sum(left.rows.rows for left in dead), snapshot.segments
        return take_view(self.place, partial=True).rows, snapshot.segments

    def _close_gaps(self, spec: StoreSpec) -> None:
        """Move the rows of the last segments to the numbers that a repair has freed.

        Each becomes a tail, which counts from the moment that its record is gone, and is committed under the
        lowest free number; a short one stays a tail. A crash leaves fewer gaps, and a tail.
        """
        self._detach_tails(spec)
        while self.bucket.has_gap():
            number = catalog.segment_numbers(self.place)[-1]
            record, checksum = catalog.read_record(self.place, number, spec)
            owner = in_own_session(self._owner, reopens=(number, checksum))
            segment = OpenSegment.build(files.scratch_name(self.root / layout.OPEN_DIR), spec, owner)
            try:
                for batch in committed_batches(self.place, spec, record):
                    segment.append([batch])
                slot = self.tails.put_built(segment)
                self.bucket.withdraw(spec, number)
                if record.rows == spec.segment_rows:
                    shards, sources = segment.seal_shards(), [owner.source(slot, 0, record.rows)]
                    self.bucket.commit(spec, sources, segment.path, shards, segment.batches())
                    self.tails.remove([slot])
            finally:
                segment.close()
                files.remove_tree(segment.path)

    def _detach_tails(self, spec: StoreSpec) -> None:
        """Have no tail rely on a record that is about to go.

        Such a record may have some of its rows, since completing the store was interrupted, or those before,
        or all, since closing gaps was.
        """
        found = {one.slot: one for path in slots(self.place) if (one := read(path, spec)) is not None}
        counted = self._without_copies(spec, found)
        self.tails.remove(found.keys() - counted.keys())
        for slot, start in self._starts(spec, counted).items():
            one = counted[slot]
            if 0 < start < one.rows:
                owner = in_own_session(self._owner, reopens=slot)
                self.tails.put_rows(self.root, spec, owner, recovery.batches(one, spec, start))
            if start:
                self.tails.remove([slot])
            elif one.owner.sequence:
                self.tails.rename(slot, in_own_session(self._owner, reopens=one.owner.reopens), None)

    def _recovered(self, root: Path, spec: StoreSpec) -> list[Dead]:
        """Return a spool's open segments that are neither full nor empty, nor in the bucket."""
        for path in (root / layout.OPEN_DIR).glob(f"{layout.SCRATCH_PREFIX}*"):
            files.remove_tree(path) if path.is_dir() else files.remove(path)
        tails = self._hold.require_held().tails
        dead = recovery.lock_all(root, spec)
        try:
            for slot in [*dead]:
                if slot in tails:
                    self._drop(dead.pop(slot))
            numbers, owners = catalog.segment_numbers(self.place), [one.rows.owner for one in dead.values()]
            records = catalog.read_records_for(self.place, spec, numbers, owners)
            found = visible_rows((one.rows.facts for one in dead.values()), records, spec.segment_rows)
            found.check(root)
            for slot in (*found.copies, *found.behind):
                self._drop(dead.pop(slot))
            for record, _ in records:
                for source in record.sources:
                    if source.slot in dead:
                        dead[source.slot].start = max(dead[source.slot].start, source.stop)
            for slot, one in [*dead.items()]:
                if one.start >= one.rows.rows:
                    self._drop(dead.pop(slot))
                elif one.rows.unvouched:
                    self.tails.remove_copies_of_the_dead(slot)
                    dead |= recovery.put_open_aside(root, spec, self._owner, dead.pop(slot))
                elif one.start:
                    self.tails.put(one.rows)  # a finalize was interrupted
                    self._drop(dead.pop(slot))
            for slot, one in [*dead.items()]:
                if one.rows.rows == spec.segment_rows:
                    segment = OpenSegment.adopt(one.rows, spec, one.rows.owner, one.lock)
                    del dead[slot]
                    self.seal(spec, segment)
        except BaseException:
            release(dead.values())
            raise
        return [*dead.values()]

    def _drop(self, one: Dead) -> None:
        one.lock.release()
        discard(one.rows.path)

    def require_room(self) -> None:
        """Raise unless rows may be added."""
        if self._no_more:
            raise InvalidInputError(f"{self._no_more}, and stays as it is: write further rows to another URL")

    def seal(self, spec: StoreSpec, segment: OpenSegment) -> int:
        """Commit a full open segment, and remove it here; return the number of segments then."""
        try:
            shards = segment.seal_shards()
            sources = [segment.owner.source(segment.slot, 0, segment.rows)]
            number = self.bucket.commit(spec, sources, segment.path, shards, segment.batches())
        finally:
            segment.close()
        self.tails.remove_copies(segment.slot)
        discard(segment.path)
        return number + 1

    def copy_rows(self, spec: StoreSpec, segment: OpenSegment) -> None:
        """Put the rows of an open segment into the bucket that were accepted since the last time."""
        self.tails.copy(spec, segment)

    def leave(self, spec: StoreSpec | None) -> tuple[Owner, ...]:
        """Move the rows that are left here to the bucket, when nothing fills their open segments any more.

        Returns the writers that are left.
        """
        if spec is not None:
            for path in slots(self.root):
                found = read(path, spec)
                if found is not None and found.rows:
                    self.bucket.persist(partial(self.tails.put, found))
                discard(path)
            self.bucket.persist(lambda: self.bucket.publish_shape(spec))
        return self.bucket.persist(self._hold.depart)

    # The end

    def finalize(self, spec: StoreSpec, expected_rows: int | None, *, partial: bool) -> Manifest:
        """Complete the store: see `recovery.finalize`.

        Raises
        ------
        StoreLockedError
            If other writers were not closed, and it is not to be `partial`. All rows are in the bucket then.
        """
        others = self._hold.complete(alone=partial)
        if others:  # of several that do this at once, the last one to leave completes it
            others = self.leave(spec) or self._hold.complete()
        if others:
            self.remove_spool()
            names = ", ".join(map(str, others[:5])) + (", …" if len(others) > 5 else "")
            raise StoreLockedError(
                f"{self.place}: {len(others)} other writers were not closed: {names}: the last one to call "
                "finalize(), or 'zarrow finalize', completes the store; if they have ended, 'zarrow "
                "finalize' on their machine adds the rows in their spools, and 'zarrow finalize --partial' "
                "completes the store without these"
            )
        if self.bucket.has_gap():
            self.recover(spec)
        self.bucket.settle(take=True)
        manifest = catalog.read_manifest(self.place, spec)
        self.tails.put_copied(self.root, spec)
        left = self._without_copies(spec, {one.slot: one for one in self._left(spec)})
        pieces = _pieces(left, self._starts(spec, left), spec.segment_rows)
        if not partial:
            numbers = catalog.segment_numbers(self.place)
            rows = sum(source.rows for sources in pieces for source in sources)
            committed = 0
            if numbers:
                last, _ = catalog.read_record(self.place, numbers[-1], spec)
                committed = (len(numbers) - 1) * spec.segment_rows + last.rows
            try:
                recovery.require_expected(self.place, committed + rows, expected_rows)
            except IncompleteStoreError:
                self.leave(spec)
                self.remove_spool()
                raise
        if not pieces and not catalog.segment_numbers(self.place):
            pieces = [[]]
        for sources in pieces:
            with copy_pieces(self.root, spec, sources, left) as (scratch, shards, batches):
                self.bucket.commit(spec, sources, scratch, shards, batches)
        self.bucket.publish_shape(spec)
        if manifest is None or manifest.expected_rows != expected_rows:
            records = publishing.all_records(self.place, spec)
            manifest = publishing.manifest_of(spec, records, expected_rows)
            found = statistics_of(spec.table_schema, [one.part for one, _ in records], manifest.identity)
            self.bucket.replace(layout.STATISTICS, found)
            self.bucket.replace(layout.MANIFEST_JSON, manifest.encode())
        self.bucket.let_go(spec)
        return manifest

    def _left(self, spec: StoreSpec) -> Iterator[OpenRows]:
        """Yield the open segments whose rows are not all committed, here and in the bucket."""
        here = {path.name: path for path in slots(self.root)}
        there = {path.name: path for path in slots(self.place)}
        for _, path in sorted((there | here).items()):
            found = read(path, spec)
            if found is None and path.name in there:
                raise CorruptionError(
                    "not all its files are there", path=self.place / layout.slot_dir(path.name)
                )
            if found is not None and found.rows:
                yield found

    def _without_copies(self, spec: StoreSpec, left: dict[str, OpenRows]) -> dict[str, OpenRows]:
        """Return those of these open segments that repeat no other, nor what is committed."""
        if all(one.owner.reopens is None for one in left.values()):
            return left
        numbers, owners = catalog.segment_numbers(self.place), [one.owner for one in left.values()]
        records = catalog.read_records_for(self.place, spec, numbers, owners)
        found = visible_rows((one.facts for one in left.values()), records, spec.segment_rows)
        return {slot: one for slot, one in left.items() if slot not in found.copies}

    def _starts(self, spec: StoreSpec, left: dict[str, OpenRows]) -> dict[str, int]:
        """Return how many rows of these are committed."""
        starts = dict.fromkeys(left, 0)
        owners = [one.owner for one in left.values()]
        numbers = catalog.segment_numbers(self.place)
        for record, _ in catalog.read_records_for(self.place, spec, numbers, owners):
            for source in record.sources:
                if source.slot in starts:
                    starts[source.slot] = max(starts[source.slot], source.stop)
        return starts

    def remove_spool(self) -> None:
        """Remove the spool, all of whose rows are in the bucket."""
        self._spool.remove()

    def remove(self) -> None:
        """Remove a store that this writer has begun, and its spool."""
        self.place.delete(layout.STORE_JSON)
        for name in [*self.place.names()]:
            self.place.delete(name)
        self.remove_spool()


def _pieces(left: dict[str, OpenRows], starts: dict[str, int], full: int) -> list[list[Source]]:
    """Return the sources of each segment that the rows of open segments are packed into."""
    pieces: list[list[Source]] = [[]]
    room = full
    for slot, one in left.items():
        start = starts[slot]
        while start < one.rows:
            stop = min(one.rows, start + room)
            pieces[-1].append(one.owner.source(slot, start, stop))
            room -= stop - start
            start = stop
            if not room:
                pieces.append([])
                room = full
    return [sources for sources in pieces if sources]
