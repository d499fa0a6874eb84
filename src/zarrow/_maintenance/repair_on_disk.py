"""Repair on a disk — a plan carried out: what is damaged goes aside, and recovery closes the gaps.

See `repair` for the order and its reasons. A crash leaves what a second repair, or a writer, finishes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zarrow._format import layout
from zarrow._format.records import Owner
from zarrow._format.spec import StoreSpec
from zarrow._maintenance import build_index
from zarrow._maintenance.repair_plan import Plan
from zarrow._read import catalog
from zarrow._storage import files
from zarrow._storage.reading import read_file
from zarrow._write import publishing, recovery, seal
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import OpenSegment, discard
from zarrow._write.quarantine import Aside
from zarrow._write.reopening import remove_segment_files

__all__ = ["carry_out"]


def carry_out(root: Path, plan: Plan, owner: Owner, *, finalize: bool) -> None:
    """Execute a plan: durable on return.

    Parameters
    ----------
    root : Path
        The store, whose lock is held.
    plan : Plan
        The plan, made while the lock was held.
    owner : Owner
        The lock's owner.
    finalize : bool
        Whether to complete the store.
    """
    scratch = root / layout.OPEN_DIR
    for slot in plan.stale:
        discard(root / layout.slot_dir(slot))
    incidents = [one for one in plan.incidents if isinstance(one, Aside)]
    damaged = [one.facts.segment for one in incidents if one.facts.segment is not None]
    for one in incidents:
        path = one.facts.path
        if path == layout.MANIFEST_JSON or path.startswith(layout.ARRAYS_DIR):
            one.fill()
    if plan.moves_rows:
        publishing.withdraw_manifest(root)
        # Rows will have other numbers. Readers that have the store open notice by this file (`Guard`).
        files.replace(root / layout.STORE_JSON, read_file(root, layout.STORE_JSON), scratch=scratch)
    if damaged:
        # Zarr readers must not see the zeros that stand for missing shards, wherever a crash ends this.
        publishing.create(root, plan.spec, scratch, segments=min(damaged))
    for of, (left, start) in plan.copies.items():
        reopens = of if isinstance(of, str) else (of, catalog.read_record(root, of, plan.spec)[1])
        alone = in_own_session(owner, reopens=reopens)
        copy = OpenSegment.build(files.scratch_name(scratch), plan.spec, alone)
        try:
            for batch in left.batches(start):
                copy.append([batch])
            copy.enter(root)
        finally:
            copy.close()
    for number in plan.remains:
        remove_segment_files(root, plan.spec, number)
    # Before the rows that they follow are gone, but for those whose owner is set aside itself.
    damaged_owners = {path for one in incidents for path in one.files}
    for last in (False, True):
        for slot in plan.disowned:
            path = f"{layout.slot_dir(slot)}/{layout.OWNER_JSON}"
            if (path in damaged_owners) == last:
                alone = in_own_session(owner, reopens=None)
                files.replace(root / path, alone.encode(), scratch=scratch)
        for one in incidents if not last else ():
            one.fill()
    spec = publishing.create(root, plan.spec, scratch)
    dead = recovery.recover(root, spec, owner)
    try:
        for segment in dead:
            if f"{layout.slot_dir(segment.rows.slot)}/{layout.FRAMES}" in plan.rebuilt:
                # This cuts off what follows the rows.
                OpenSegment.adopt(segment.rows, spec, segment.rows.owner, segment.lock).close(keep_lock=True)
    finally:
        seal.release(dead)
    publishing.publish_shape(root, spec, root / layout.OPEN_DIR)
    if finalize:
        recovery.finalize(root, spec, owner, expected_rows=spec.expected_rows, partial=True)
    _remove_empty_dirs(root, plan)
    if layout.KEY_INDEX in plan.rebuilt:
        _rebuild_index(root, spec)
    if layout.STATISTICS in plan.rebuilt:
        publishing.publish_statistics(root, spec, catalog.read_manifest(root, spec), scratch)
    for name in (layout.SEGMENTS_DIR, layout.TABLE_DIR):
        files.sync_dir(root / name)


def _rebuild_index(root: Path, spec: StoreSpec) -> None:
    """Build the index again if the store can have one, else remove it."""
    if spec.keys and (root / layout.MANIFEST_JSON).exists():
        build_index.write_index(root, locked=True)
    else:
        files.remove(root / layout.KEY_INDEX)
        files.sync_dir(root / layout.INDEX_DIR)


def _remove_empty_dirs(root: Path, plan: Plan) -> None:
    """Remove the directories of shards that were moved, if no other shard took their place."""
    for array in plan.spec.arrays:
        for name in os.listdir(root / layout.array_dir(array.name) / "c"):
            if not re.fullmatch(r"0|[1-9]\d{0,7}", name):
                continue
            shard = root / array.shard_path(int(name))
            for parent in shard.parents[: array.shard_ndim]:
                files.remove_empty_dir(parent)
