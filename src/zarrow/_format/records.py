"""Records — the facts that a store keeps about its segments and about itself.

The commit record of a segment, the claim of a segment number, the owner of an open segment, the manifest of a
complete store: frozen dataclasses that are validated when they are made, and documents with a checksum
(`documents`) on disk. A crash leaves each of them whole or absent (`_storage.files.publish`).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES, decode_document, encode_document
from zarrow._format.layout import MAX_SEGMENTS, is_slot
from zarrow._format.shard_index import index_bytes
from zarrow._format.spec import StoreSpec, check_expected
from zarrow._format.statistics import ColumnStatistics, check_statistics
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = [
    "Claim",
    "Identity",
    "Manifest",
    "Owner",
    "PartFacts",
    "SegmentRecord",
    "ShardFacts",
    "Source",
    "check_record",
    "max_manifest_bytes",
    "this_host",
]


_MAX_DIGITS = 22
_U32 = 2**32
_U63 = 2**63


def _require(what: str, *numbers: object, limit: int = _U63) -> None:
    """Raise unless these are counts: that a document's checksum matches does not make its content true."""
    for number in numbers:
        if type(number) is not int or not 0 <= number < limit:
            raise InvalidInputError(f"{what} must be in 0..{limit - 1}, got {str(number)[:40]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows `start` to `stop` of an open segment that become, or became, rows of a committed one.

    Its `session` and `sequence` are those of the open segment's owner: they say which rows these follow.

    >>> Source(slot="0" * 16, start=0, stop=512, session="a" * 32, sequence=0).rows
    512
    """

    slot: str
    start: int
    stop: int
    session: str
    sequence: int

    def __post_init__(self) -> None:
        _require("not a source: its rows", self.start, self.stop, self.sequence)
        if not is_slot(self.slot) or self.start > self.stop or type(self.session) is not str:
            raise InvalidInputError(f"not a source: {self.slot!r}[{self.start}:{self.stop}]")

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Segment `segment` will consist of these sources, and of nothing else.

    It is durable before any file of the segment is put into place, so that the next writer can finish the
    work of a dead one, and it stays until the sources are gone.
    """

    segment: int
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        _require("a segment", self.segment, limit=MAX_SEGMENTS)

    @property
    def rows(self) -> int:
        """Rows of the segment."""
        return sum(source.rows for source in self.sources)

    def encode(self) -> bytes:
        """Return the content of the claim's file."""
        return encode_document({"segment": self.segment, "sources": _sources_to_json(self.sources)})

    @classmethod
    def decode(cls, data: bytes, path: str) -> Claim:
        """Return the claim in a file; `CorruptionError` if it is damaged."""
        body = decode_document(data, path)
        try:
            return cls(segment=body["segment"], sources=_sources_from_json(body["sources"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"breaks the format: {error}", path=path) from error


def _sources_to_json(sources: Sequence[Source]) -> list[list[str | int]]:
    return [[one.slot, one.start, one.stop, one.session, one.sequence] for one in sources]


def _sources_from_json(body: Any) -> tuple[Source, ...]:
    names = [one.name for one in fields(Source)]
    return tuple(Source(**dict(zip(names, one, strict=True))) for one in body)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """The facts about one shard file.

    Parameters
    ----------
    size_bytes : int
        The file's size; 0 if there is no shard because the segment has no rows.
    chunks_crc32c : tuple of int
        The crc32c of the stored bytes of every chunk that has rows, in order; without a checksum that they
        end with.
    index_crc32c : int
        The crc32c of the entries of the shard index, without Zarr's own checksum after them: with it, the
        result would be the same for all.
    vectors : int or None
        The number of vectors of a ragged array.
    """

    size_bytes: int
    chunks_crc32c: tuple[int, ...]
    index_crc32c: int
    vectors: int | None = None

    def __post_init__(self) -> None:
        _require("a size", self.size_bytes, self.vectors or 0)
        _require("a crc32c", self.index_crc32c, *self.chunks_crc32c, limit=_U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """The facts about one Parquet part.

    Parameters
    ----------
    size_bytes : int
        Of the file.
    crc32c : int
        Of the whole file.
    footer_crc32c : int
        Of its footer, whose statistics let a filter skip parts.
    statistics : dict of str to ColumnStatistics
        Those of its columns, which spare a filter opening it.
    """

    size_bytes: int
    crc32c: int
    footer_crc32c: int
    statistics: dict[str, ColumnStatistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("a size", self.size_bytes)
        _require("a crc32c", self.crc32c, limit=_U32)
        _require("a crc32c", self.footer_crc32c, limit=_U32)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """The commit record of a segment: its rows are visible from the moment that it is in place.

    Parameters
    ----------
    segment : int
        The segment's number; its first row is ``segment * segment_rows``.
    rows : int
        The number of its rows: ``segment_rows``, or fewer in the last segment.
    arrays : dict of str to ShardFacts
        Its shards.
    part : PartFacts
        Its Parquet part.
    sources : tuple of Source
        The open segments that it was made of.

    Examples
    --------
    >>> record = SegmentRecord(
    ...     segment=0, rows=0, arrays={}, part=PartFacts(size_bytes=4, crc32c=1, footer_crc32c=2), sources=()
    ... )
    >>> SegmentRecord.decode(record.encode(), "segments/00000000.json") == record
    True
    """

    segment: int
    rows: int
    arrays: dict[str, ShardFacts]
    part: PartFacts
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        _require("a segment", self.segment, limit=MAX_SEGMENTS)
        _require("rows", self.rows)

    def items(self, array: ArraySpec) -> int:
        """Return how many rows, or of a ragged array vectors, the shard of an array has."""
        return (self.arrays[array.name].vectors or 0) if array.is_ragged else self.rows

    def encode(self) -> bytes:
        """Return the content of the record's file."""
        return encode_document(
            {
                "segment": self.segment,
                "rows": self.rows,
                "arrays": {
                    name: {
                        "size_bytes": facts.size_bytes,
                        "index_crc32c": facts.index_crc32c,
                        "chunks_crc32c": list(facts.chunks_crc32c),
                    }
                    | ({} if facts.vectors is None else {"vectors": facts.vectors})
                    for name, facts in self.arrays.items()
                },
                "part": {
                    "size_bytes": self.part.size_bytes,
                    "crc32c": self.part.crc32c,
                    "footer_crc32c": self.part.footer_crc32c,
                    "statistics": {name: one.to_json() for name, one in self.part.statistics.items()},
                },
                "sources": _sources_to_json(self.sources),
            }
        )

    @classmethod
    def decode(cls, data: bytes, path: str) -> SegmentRecord:
        """Return the record in a file; `CorruptionError` if it is damaged."""
        body = decode_document(data, path)
        try:
            return cls(
                segment=body["segment"],
                rows=body["rows"],
                arrays={
                    name: ShardFacts(
                        size_bytes=facts["size_bytes"],
                        index_crc32c=facts["index_crc32c"],
                        chunks_crc32c=tuple(facts["chunks_crc32c"]),
                        vectors=facts.get("vectors"),
                    )
                    for name, facts in body["arrays"].items()
                },
                part=PartFacts(
                    size_bytes=body["part"]["size_bytes"],
                    crc32c=body["part"]["crc32c"],
                    footer_crc32c=body["part"]["footer_crc32c"],
                    statistics={
                        name: ColumnStatistics.from_json(one)
                        for name, one in body["part"].get("statistics", {}).items()
                    },
                ),
                sources=_sources_from_json(body["sources"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"breaks the format: {error}", path=path) from error


def check_record(record: SegmentRecord, spec: StoreSpec, path: str) -> None:
    """Raise `CorruptionError` if a record contradicts itself or the store's spec.

    A checksum says that a record is what was written, not that it is true.
    """
    if not 0 <= record.rows <= spec.segment_rows or (record.segment and not record.rows):
        raise CorruptionError(
            f"rows must be in 1..{spec.segment_rows}, or 0 in the first segment, got {record.rows}", path=path
        )
    if set(record.arrays) != {array.name for array in spec.arrays}:
        raise CorruptionError(f"its arrays are {sorted(record.arrays)}, not the store's", path=path)
    if sum(source.rows for source in record.sources) != record.rows:
        raise CorruptionError(f"its sources do not have the {record.rows} rows of the segment", path=path)
    if record.part.statistics:
        check_statistics(record.part.statistics, spec.table_schema, record.rows, path)
    for array in spec.arrays:
        facts = record.arrays[array.name]
        rows = record.items(array)
        chunks = -(-rows // array.chunk_rows)
        size = chunks * array.chunk_bytes + index_bytes(array, spec.segment_rows) if record.rows else 0
        if (
            (facts.vectors is not None) != array.is_ragged
            or rows > (array.shard_rows(spec.segment_rows) if record.rows else 0)
            or len(facts.chunks_crc32c) != chunks
            or (facts.size_bytes != size if array.is_plain or not chunks else facts.size_bytes <= 0)
        ):
            raise CorruptionError(
                f"{len(facts.chunks_crc32c)} chunks and {facts.size_bytes} bytes of array "
                f"{array.name!r} do not fit {rows} {'vectors' if array.is_ragged else 'rows'}",
                path=path,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What tells the rows of a store from any others: whatever is derived from rows names theirs.

    Parameters
    ----------
    uuid : str
        The store's.
    rows : int
        Their number.
    records_crc32c : int
        The crc32c of the manifest's ``records_crc32c``, each as a u32: it changes with any file of the rows.
        Of an incomplete store, whose rows can still change, a number that tells the rows of one instant from
        those of another.
    """

    uuid: str
    rows: int
    records_crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a complete store consists of.

    It is small, so that a store of ten thousand segments is opened by reading one file: the records are read
    when more is needed, and must have the checksums that are listed here.

    Parameters
    ----------
    uuid : str
        The store's.
    rows : int
        The number of rows of the store.
    shard_bytes : dict of str to tuple of int
        Per array the size of every shard file.
    part_bytes : tuple of int
        The size of every part.
    records_crc32c : tuple of int
        The crc32c of every record's file.
    expected_rows : int or None
        The number that its run expected, if known: the store is complete, but lacks rows, if it is larger.
    vectors : dict of str to tuple of int
        Per ragged array the vectors of every segment.
    """

    uuid: str
    rows: int
    shard_bytes: dict[str, tuple[int, ...]]
    part_bytes: tuple[int, ...]
    records_crc32c: tuple[int, ...]
    expected_rows: int | None = None
    vectors: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("rows", self.rows, *(count for counts in self.vectors.values() for count in counts))
        check_expected(self.expected_rows)
        _require("a size", *self.part_bytes, *(size for sizes in self.shard_bytes.values() for size in sizes))
        _require("a crc32c", *self.records_crc32c, limit=_U32)

    @property
    def segments(self) -> int:
        """The number of segments."""
        return len(self.records_crc32c)

    @property
    def identity(self) -> Identity:
        """What tells the store's rows from any others."""
        checksum = crc32c(struct.pack(f"<{self.segments}I", *self.records_crc32c))
        return Identity(uuid=self.uuid, rows=self.rows, records_crc32c=checksum)

    def encode(self) -> bytes:
        """Return the content of ``manifest.json``."""
        return encode_document(
            {
                "uuid": self.uuid,
                "rows": self.rows,
                "expected_rows": self.expected_rows,
                "shard_bytes": {name: list(sizes) for name, sizes in self.shard_bytes.items()},
                "part_bytes": list(self.part_bytes),
                "records_crc32c": list(self.records_crc32c),
            }
            | (
                {"vectors": {name: list(counts) for name, counts in self.vectors.items()}}
                if self.vectors
                else {}
            )
        )

    @classmethod
    def decode(cls, data: bytes, path: str) -> Manifest:
        """Return the manifest in a file; `CorruptionError` if it is damaged."""
        body = decode_document(data, path)
        try:
            return cls(
                uuid=body["uuid"],
                rows=body["rows"],
                expected_rows=body.get("expected_rows"),
                shard_bytes={name: tuple(sizes) for name, sizes in body["shard_bytes"].items()},
                part_bytes=tuple(body["part_bytes"]),
                records_crc32c=tuple(body["records_crc32c"]),
                vectors={name: tuple(counts) for name, counts in body.get("vectors", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"breaks the format: {error}", path=path) from error


def max_manifest_bytes(spec: StoreSpec, segments: int) -> int:
    """Return the most bytes that the manifest of a store with this number of records may have."""
    return MAX_DOCUMENT_BYTES + segments * (len(spec.arrays) + len(spec.ragged) + 2) * _MAX_DIGITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The writer that fills an open segment.

    Parameters
    ----------
    session : str
        32 hex digits that identify the writer.
    sequence : int
        The index of the open segment among those of the session, from 0; rows of a later one follow those of
        an earlier one.
    host, pid, since : str, int, str
        For messages: where the writer runs, and since when (ISO 8601, UTC).
    from_segment : int
        No record of a lower number has rows of this open segment, nor of the one before it in the session.
    reopens : (int, int), str or None
        What this one began as a copy of: a committed segment, by its number and the crc32c of its record, or
        a damaged open segment. While that stands, this one does not count.
    """

    session: str
    sequence: int
    host: str
    pid: int
    since: str
    from_segment: int = 0
    reopens: tuple[int, int] | str | None = None

    def __post_init__(self) -> None:
        _require("a sequence or process number", self.sequence, self.pid)
        _require("a segment", self.from_segment, limit=MAX_SEGMENTS)
        if isinstance(self.reopens, tuple):
            number, checksum = self.reopens
            _require("a segment", number, limit=MAX_SEGMENTS)
            _require("a crc32c", checksum, limit=_U32)
        elif self.reopens is not None and not is_slot(str(self.reopens)):
            raise InvalidInputError(f"neither a segment nor an open one: {str(self.reopens)[:40]}")
        if not all(isinstance(text, str) for text in (self.session, self.host, self.since)):
            raise InvalidInputError("session, host and since must be text")

    def encode(self) -> bytes:
        """Return the content of ``owner.json``."""
        return encode_document(
            {
                "session": self.session,
                "sequence": self.sequence,
                "host": self.host,
                "pid": self.pid,
                "since": self.since,
                "from_segment": self.from_segment,
                "reopens": self.reopens,
            }
        )

    @classmethod
    def decode(cls, data: bytes, path: str) -> Owner:
        """Return the owner in a file; `CorruptionError` if it is damaged."""
        body = decode_document(data, path)
        try:
            values = {one.name: body[one.name] for one in fields(cls)}
            if isinstance(values["reopens"], list):
                values["reopens"] = tuple(values["reopens"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"breaks the format: {error}", path=path) from error

    def source(self, slot: str, start: int, stop: int) -> Source:
        """Return rows of its open segment of this name, as a claim lists them."""
        return Source(slot=slot, start=start, stop=stop, session=self.session, sequence=self.sequence)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def this_host() -> str:
    """Return this machine's name."""
    return socket.gethostname()
