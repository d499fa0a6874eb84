"""Publishing — claims, commit records, Zarr shapes and the manifest: what makes rows visible."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zarrow._format import layout, zarr_metadata
from zarrow._format.records import Claim, Manifest, PartFacts, SegmentRecord, Source
from zarrow._format.spec import StoreSpec
from zarrow._format.statistics import statistics_of
from zarrow._read.catalog import (
    dense_segments,
    has_record,
    read_attributes,
    read_record,
    read_spec,
    segment_numbers,
)
from zarrow._storage import files
from zarrow._storage.reading import Place, read_file
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = [
    "all_records",
    "claim",
    "commit",
    "create",
    "manifest_of",
    "publish_manifest",
    "publish_shape",
    "publish_statistics",
    "release_claim",
    "shape_documents",
    "uncommit",
    "withdraw_manifest",
]

_RECORDS_AT_ONCE = 16
"""Read from a bucket."""
MAX_CLAIM_BYTES = 4 << 20
"""Half of what a record may have; the checksums of the most chunks take the other half."""


def create(root: Path, spec: StoreSpec, scratch: Path, *, segments: int | None = None) -> StoreSpec:
    """Publish the store's spec, unless another writer was first, and create the directories that are missing.

    Parameters
    ----------
    root : Path
        The store's directory.
    spec : StoreSpec
        The spec that this writer proposes.
    scratch : Path
        Directory for scratch files.
    segments : int, optional
        Show Zarr readers this number of segments only, before others are withdrawn.

    Returns
    -------
    StoreSpec
        The store's spec: `spec`, or that of the writer that was first.
    """
    try:
        files.publish(root / layout.STORE_JSON, spec.encode(), scratch=scratch)
    except FileExistsError:
        spec = read_spec(root)
        # That writer may have died before the name was durable, without which the rest is not a store.
        files.sync_dir(root)
    for name in (layout.ARRAYS_DIR, layout.TABLE_DIR, layout.SEGMENTS_DIR):
        files.make_dir(root / name, exist_ok=True)
    for array in spec.arrays:
        files.make_dir(root / layout.array_dir(array.name), exist_ok=True)
        files.make_dir(root / layout.array_dir(array.name) / "c", exist_ok=True)
        files.sync_dir(root / layout.array_dir(array.name))
    files.sync_dir(root / layout.ARRAYS_DIR)
    files.sync_dir(root)
    if segments is not None:
        publish_shape(root, spec, scratch, segments=min(segments, dense_segments(root)))
    elif not (root / layout.ARRAYS_DIR / "zarr.json").exists():
        publish_shape(root, spec, scratch)
    return spec


def claim(root: Path, sources: Iterable[Source], scratch: Path, known: int = 0) -> Claim:
    """Claim the lowest free segment number for these sources: durable on return.

    That is the next one, unless `repair` has put a damaged segment aside, whose number is free again.

    Parameters
    ----------
    root : Path
        The store.
    sources : iterable of Source
        The rows that the segment will consist of.
    scratch : Path
        Directory for scratch files.
    known : int
        Number of segments, from the first on, that are known to be committed.

    Returns
    -------
    Claim
        It exists until `release_claim`.

    Raises
    ------
    InvalidInputError
        If there are so many sources that no reader would take the record.
    """
    rows = tuple(sources)
    for number in itertools.count(dense_segments(root, known)):
        assert number < layout.MAX_SEGMENTS
        if has_record(root, number) or (root / layout.claim_path(number)).exists():
            continue
        wanted = Claim(segment=number, sources=rows)
        document = wanted.encode()
        if len(document) > MAX_CLAIM_BYTES:  # the record has the same sources, and the chunks' checksums
            raise InvalidInputError(
                f"{root}: a segment of rows from {len(rows)} open segments does not fit in its record: read "
                "the rows with partial=True, and write them into a new store by fewer writers"
            )
        try:
            files.publish(root / layout.claim_path(number), document, scratch=scratch)
        except FileExistsError:
            pass  # another writer was first: try the next number
        else:
            if not has_record(root, number):
                return wanted
            # Another writer claimed, committed and released it after `has_record` above.
            release_claim(root, wanted)
    raise AssertionError("there is no last number")


def commit(root: Path, record: SegmentRecord, scratch: Path) -> None:
    """Publish a segment: its rows are visible, and durable, on return.

    The caller has synced shards, part and their directories: a record before its files were durable would
    promise rows that a power cut takes.
    """
    files.publish(root / layout.record_path(record.segment), record.encode(), scratch=scratch)


def uncommit(root: Path, spec: StoreSpec, segment: int, scratch: Path) -> None:
    """Withdraw the last, short segment, whose rows a durable open segment holds.

    The shape shrinks first, so that no crash leaves one that covers rows which are not committed.
    """
    publish_shape(root, spec, scratch, segments=min(segment, dense_segments(root)))
    # The segment's claim was removed, but perhaps not durably: without the record it would claim rows of an
    # open segment that is gone.
    files.sync_dir(root / layout.SEGMENTS_DIR)
    files.remove(root / layout.record_path(segment))
    files.sync_dir(root / layout.SEGMENTS_DIR)


def release_claim(root: Path, claim: Claim) -> None:
    """Remove a claim whose segment is committed and whose sources are removed."""
    files.remove(root / layout.claim_path(claim.segment))


def publish_shape(
    root: Path,
    spec: StoreSpec,
    scratch: Path,
    *,
    known: int = 0,
    segments: int | None = None,
    attributes_of: Place | None = None,
) -> int:
    """Show Zarr readers the committed rows: the dense prefix of the records.

    If several writers do this at once, the last to rename may have been the first to look, so each looks
    again when it is done.

    Parameters
    ----------
    root, spec, scratch
        As in `create`.
    known : int
        Number of segments, from the first on, that are known to be committed.
    segments : int, optional
        Fewer segments, before the others are withdrawn.
    attributes_of : Path or RemotePath, optional
        Another store, whose attributes Zarr readers are to see; by default, what is there is kept.

    Returns
    -------
    int
        The segments that the new shape covers.
    """
    while True:
        dense = dense_segments(root, known) if segments is None else segments
        documents = shape_documents(root, spec, dense, attributes_of or root, known=known)
        if segments is not None:
            documents.reverse()  # shrinking: the group goes first, since xarray relies on it
        for path, data in documents:
            files.replace(root / path, data, scratch=scratch)
        if segments is not None or dense_segments(root, known) == dense:
            return dense


def shape_documents(
    root: Place, spec: StoreSpec, segments: int, attributes_of: Place | None = None, *, known: int = 0
) -> list[tuple[str, bytes]]:
    """Return the paths and contents of the ``zarr.json`` of arrays and group that cover these segments."""
    names, rows = [array.name for array in spec.arrays], 0
    if segments:
        rows = (segments - 1) * spec.segment_rows + read_record(root, segments - 1, spec)[0].rows
    model = root if attributes_of is None else attributes_of
    kept = {name: read_attributes(model, layout.array_dir(name)) for name in names}
    widths = _widths(root, spec, range(known, segments))
    documents = [
        (
            f"{layout.array_dir(array.name)}/zarr.json",
            zarr_metadata.array_json(spec, array, rows, kept[array.name], widths.get(array.name, 0)),
        )
        for array in spec.arrays
    ]
    group = zarr_metadata.group_json(spec, rows, read_attributes(model, layout.ARRAYS_DIR), kept, widths)
    return [*documents, (f"{layout.ARRAYS_DIR}/zarr.json", group)]


def _widths(root: Place, spec: StoreSpec, segments: range) -> dict[str, int]:
    """Return the most vectors that each ragged array has in a segment: of these, and of those before them."""
    widths = dict.fromkeys((array.name for array in spec.ragged), 0)
    for name in widths if segments.start else ():
        with contextlib.suppress(FileNotFoundError):
            widths[name] = zarr_metadata.width_in(read_file(root, f"{layout.array_dir(name)}/zarr.json"))
    for number in segments if widths else ():
        record = read_record(root, number, spec)[0]
        for array in spec.ragged:
            widths[array.name] = max(widths[array.name], record.items(array))
    return widths


def publish_manifest(root: Path, spec: StoreSpec, expected_rows: int | None, scratch: Path) -> Manifest:
    """Declare the store complete: it consists of the segments that are committed.

    Returns
    -------
    Manifest
        As published.

    Raises
    ------
    CorruptionError
        If there is a gap in the records, or a short segment before the last.
    """
    records = all_records(root, spec)
    manifest = manifest_of(spec, records, expected_rows)
    # First, so that a complete store has them; those of other rows count for nothing.
    publish_statistics(root, spec, manifest, scratch, [record.part for record, _ in records])
    files.replace(root / layout.MANIFEST_JSON, manifest.encode(), scratch=scratch)
    return manifest


def all_records(root: Place, spec: StoreSpec) -> list[tuple[SegmentRecord, int]]:
    """Return all records, each with its crc32c; see `publish_manifest`."""
    numbers = segment_numbers(root)
    if isinstance(root, Path):
        records = [read_record(root, number, spec) for number in numbers]
    else:
        with ThreadPoolExecutor(_RECORDS_AT_ONCE, "zarrow-records") as pool:
            records = list(pool.map(lambda number: read_record(root, number, spec), numbers))
    if numbers != list(range(len(numbers))) or any(
        record.rows != spec.segment_rows for record, _ in records[:-1]
    ):
        raise CorruptionError(
            "the segments have gaps or a short one in between, so the store cannot be complete", path=root
        )
    return records


def manifest_of(
    spec: StoreSpec, records: Sequence[tuple[SegmentRecord, int]], expected_rows: int | None
) -> Manifest:
    """Return the manifest of these segments."""
    return Manifest(
        uuid=spec.uuid,
        rows=sum(record.rows for record, _ in records),
        expected_rows=expected_rows,
        shard_bytes={
            array.name: tuple(record.arrays[array.name].size_bytes for record, _ in records)
            for array in spec.arrays
        },
        part_bytes=tuple(record.part.size_bytes for record, _ in records),
        vectors={array.name: tuple(record.items(array) for record, _ in records) for array in spec.ragged},
        records_crc32c=tuple(checksum for _, checksum in records),
    )


def publish_statistics(
    root: Path,
    spec: StoreSpec,
    manifest: Manifest | None,
    scratch: Path,
    parts: Sequence[PartFacts] | None = None,
) -> None:
    """Write the statistics of a complete store's segments, which filters ask before they open a part.

    Without a manifest they are removed; without `parts` the records are read.
    """
    if manifest is None:
        files.remove(root / layout.STATISTICS)
        files.sync_dir(root)
        return
    if parts is None:
        parts = [read_record(root, number, spec)[0].part for number in range(manifest.segments)]
    data = statistics_of(spec.table_schema, parts, manifest.identity)
    files.replace(root / layout.STATISTICS, data, scratch=scratch)


def withdraw_manifest(root: Path) -> None:
    """Declare the store incomplete: durable on return."""
    files.remove(root / layout.MANIFEST_JSON)
    files.remove(root / layout.STATISTICS)
    files.sync_dir(root)
