"""Repair in a bucket — a plan carried out by one who takes the store over, as a writer does.

1. The store must still be what was audited: nothing else was committed or left there meanwhile.
2. The manifest goes, and ``zarrow.json`` is put again, by which readers notice. Zarr's shapes shrink.
3. Rows that can still be read become tails, which count once what they repeat is gone.
4. What is damaged is copied to ``quarantine/``, then removed. The number of a segment is claimed before that,
   so that the next segment is put there.
5. The last segments move to free numbers (`SpooledStore.close_gaps`); what is derived is made again.

There is no lock: a writer that is at work is overtaken, and stops. A crash leaves claims, tails and copies,
and a second repair, or a writer that has the store to itself, does the rest.
"""

from __future__ import annotations

import contextlib
from typing import Any

from zarrow._format import layout
from zarrow._format.bucket import HOLDER, Holder
from zarrow._format.records import Owner
from zarrow._format.statistics import statistics_of
from zarrow._maintenance import build_index
from zarrow._maintenance.repair_plan import Plan
from zarrow._read import catalog
from zarrow._read.open_rows import read, slots
from zarrow._storage import files
from zarrow._storage.conditional import look, swap
from zarrow._storage.copies import local_copy
from zarrow._storage.objects import ObjectPath
from zarrow._storage.reading import read_file
from zarrow._write import publishing
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import discard
from zarrow._write.quarantine import AsideInBucket
from zarrow._write.spooled import SpooledStore
from zarrow.errors import CorruptionError, StoreChangedError

__all__ = ["carry_out", "pulse"]


def pulse(place: ObjectPath) -> Any:
    """Return what changes when rows get in, or the store is completed."""
    tails = {name for name in place.list(layout.OPEN_DIR) if layout.is_slot(name)}
    return place.list(layout.SEGMENTS_DIR), tails, place.stamp(layout.MANIFEST_JSON)


def carry_out(place: ObjectPath, plan: Plan, owner: Owner, before: object, *, finalize: bool) -> None:
    """Execute a plan.

    Parameters
    ----------
    place : ObjectPath
        The store.
    plan : Plan
        The plan.
    owner : Owner
        Who repairs.
    before : object
        What `pulse` returned before the audit.
    finalize : bool
        Whether to complete the store.

    Raises
    ------
    StoreChangedError
        If rows got in since the audit began.
    """
    if HOLDER in plan.rebuilt:
        _put_holder(place, plan, owner)
    store = SpooledStore(place, owner, "a", None)
    try:
        if pulse(place) != before:
            raise StoreChangedError(
                f"{place}: it was written to meanwhile: repair it again when its writers have ended"
            )
        _Repair(store, plan, owner).run()
        if finalize:
            store.finalize(plan.spec, plan.spec.expected_rows, partial=True)
        elif place.exists(layout.MANIFEST_JSON):
            store.bucket.let_go(plan.spec)
        else:
            store.leave(plan.spec)
        _make_derived(place, plan)
        store.remove_spool()
    except BaseException:
        store.give_up()
        store.claim.lock.release()
        raise


def _put_holder(place: ObjectPath, plan: Plan, owner: Owner) -> None:
    """Replace a damaged holder by one with all tails that are whole, which is what a writer puts there."""
    seen = look(place, HOLDER)
    tails = []
    for slot in filter(layout.is_slot, place.list(layout.OPEN_DIR)):
        with contextlib.suppress(CorruptionError):  # which the plan sets aside
            found = read(local_copy(place, layout.slot_dir(slot)), plan.spec)
            tails += [] if found is None else [slot]
    swap(
        place,
        HOLDER,
        None if seen is None else seen.version,
        Holder(owner=owner, tails=tuple(tails)).encode(),
    )


def _make_derived(place: ObjectPath, plan: Plan) -> None:
    """Make statistics and key index again, of a store that is complete."""
    manifest = catalog.read_manifest(place, plan.spec)
    if layout.STATISTICS in plan.rebuilt and manifest is not None:
        parts = [record.part for record, _ in publishing.all_records(place, plan.spec)]
        place.put_bytes(layout.STATISTICS, statistics_of(plan.spec.table_schema, parts, manifest.identity))
    if layout.KEY_INDEX in plan.rebuilt:
        if plan.spec.keys and manifest is not None:
            build_index.build_index(place)
        else:
            place.delete(layout.KEY_INDEX)


class _Repair:
    def __init__(self, store: SpooledStore, plan: Plan, owner: Owner) -> None:
        self._store, self._place, self._bucket, self._tails = store, store.place, store.bucket, store.tails
        self._plan, self._spec, self._owner = plan, plan.spec, owner
        self._incidents = [one for one in plan.incidents if isinstance(one, AsideInBucket)]
        self._damaged = [one.facts.segment for one in self._incidents if one.facts.segment is not None]
        self._copies = dict(plan.copies)

    def run(self) -> None:
        """Do all but completing the store, and what is made of complete ones only."""
        self._tails.remove(self._plan.stale)
        for one in self._incidents:
            if one.facts.path == layout.MANIFEST_JSON or one.facts.path.startswith(layout.ARRAYS_DIR):
                self._set_aside(one)
        if self._plan.moves_rows:
            for path in (layout.MANIFEST_JSON, layout.STATISTICS):
                self._place.delete(path)
            self._place.put_bytes(layout.STORE_JSON, read_file(self._place, layout.STORE_JSON))
        if self._damaged:
            segments = min(*self._damaged, catalog.dense_segments(self._place))
            documents = publishing.shape_documents(self._place, self._spec, segments)
            for path, data in reversed(documents):
                self._bucket.replace(path, data)
        self._prepare_spool()
        for of, (left, start) in self._copies.items():
            reopens = of if isinstance(of, str) else (of, catalog.read_record(self._place, of, self._spec)[1])
            alone = in_own_session(self._owner, reopens=reopens)
            self._tails.put_rows(self._store.root, self._spec, alone, left.batches(start))
        self._disown()
        for one in self._incidents:
            if one.facts.segment is None and not one.facts.path.endswith(layout.OWNER_JSON):
                self._set_aside(one)
        self._bucket.settle(take=True)  # no claim is damaged any more
        for one in self._incidents:
            if one.facts.segment is not None:
                self._set_aside(one)
        self._bucket.free_gaps()
        for number in self._plan.remains:
            if not catalog.has_record(self._place, number):
                self._bucket.remove_files(self._spec, number)
        self._store.recover(self._spec)
        self._bucket.drop_claims(self._spec)
        self._bucket.publish_shape(self._spec)

    def _set_aside(self, one: AsideInBucket) -> None:
        one.keep()
        slot = one.facts.path.removeprefix(f"{layout.OPEN_DIR}/")
        if layout.is_slot(slot):
            self._bucket.hold.remove_tails([slot])
        if one.facts.segment is not None:
            self._bucket.free(one.facts.segment)
        self._bucket.hold.require_held()
        one.clear()

    def _prepare_spool(self) -> None:
        """Have rows in the spools of this machine follow nothing that goes, nor repeat what stays."""
        damaged = [of for of in self._copies if isinstance(of, int)]
        records = [catalog.read_record(self._place, of, self._spec)[0] for of in damaged]
        hit = {one.facts.path for one in self._incidents}
        tails = self._bucket.hold.require_held().tails
        for path in (path for root in self._store.roots for path in slots(root)):
            found = read(path, self._spec)
            if found is None:
                continue
            if path.name in tails and layout.slot_dir(path.name) not in hit:
                discard(path)
                continue
            # What is damaged in the bucket, but still whole here, counts again from here.
            self._copies.pop(path.name, None)
            for record in records:
                if all(one.slot == path.name and one.stop <= found.rows for one in record.sources):
                    self._copies.pop(record.segment, None)
            if self._damaged:
                alone = in_own_session(self._owner, reopens=found.owner.reopens)
                files.replace(path / layout.OWNER_JSON, alone.encode(), scratch=path.parent)

    def _disown(self) -> None:
        """Give tails new owners, and cut off what follows their rows."""
        for one in self._incidents:
            if one.facts.path.endswith(layout.OWNER_JSON):
                one.keep()
        cut = {path.split("/")[1] for path in self._plan.rebuilt if path.endswith(layout.FRAMES)}
        for slot in sorted({*self._plan.disowned, *cut}):
            owner, frames_bytes = in_own_session(self._owner, reopens=None), None
            if slot in cut:
                found = read(local_copy(self._place, layout.slot_dir(slot)), self._spec)
                assert found is not None
                frames_bytes = found.size_bytes
                owner = owner if slot in self._plan.disowned else found.owner
            self._tails.rename(slot, owner, frames_bytes)
