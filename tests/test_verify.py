"""Verify — what it reports about stores that are complete, killed, damaged or tampered with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr

import zarrow
from zarrow._format import key_tables, layout, zarr_metadata
from zarrow._format.checksum import crc32c
from zarrow._format.pages import read_footer
from zarrow._format.records import Claim, PartFacts, SegmentRecord, Source
from zarrow._maintenance.verify import Report
from zarrow._read import catalog, keys
from zarrow._storage import files
from zarrow.errors import CorruptionError, InvalidInputError, NotAStoreError, StoreNotFoundError

ROWS = 21
SHARD = "embeddings.zarr/e/c/1/0"
PART = "table/part-00000001.parquet"


def part_facts(data: bytes) -> PartFacts:
    """Return the facts that a record states about a part."""
    footer = read_footer(lambda offset, size: data[offset : offset + size], len(data))
    return PartFacts(size_bytes=len(data), crc32c=crc32c(data), footer_crc32c=crc32c(footer))


def batch(start: int, rows: int) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return the rows from `start`; a row's sample_index is 100 more than its number."""
    values = np.random.default_rng(start)
    return (
        {"id": np.arange(start, start + rows), "q": [f"q{row % 3}" for row in range(start, start + rows)]},
        {"e": values.random((rows, 3), np.float32), "z": values.integers(0, 9, (rows, 2)).astype("i2")},
        np.arange(start, start + rows) + 100,
    )


def write(path: Path, *, finalize: bool = True, rows: int = ROWS) -> None:
    """Write a store in this process."""
    with zarrow.Writer(path, keys=["id", "q"], segment_rows=8, codecs={"z": "zstd"}) as writer:
        for start in range(0, rows, 3):
            writer.append(*batch(start, min(3, rows - start)))
        if finalize:
            writer.finalize()
    if finalize:
        zarrow.build_index(path)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store and an incomplete one."""
    directory = tmp_path_factory.mktemp("templates")
    write(directory / "complete.zarrow")
    write(directory / "incomplete.zarrow", finalize=False)
    return directory


@pytest.fixture
def store(templates: Path, tmp_path: Path) -> Path:
    """A complete store of three segments, the last of five rows."""
    return Path(shutil.copytree(templates / "complete.zarrow", tmp_path / "s.zarrow"))


@pytest.fixture
def unfinished(templates: Path, tmp_path: Path) -> Path:
    """A store of two segments and an open one with five rows."""
    return Path(shutil.copytree(templates / "incomplete.zarrow", tmp_path / "s.zarrow"))


def slot_of(store: Path) -> Path:
    """Return the open segment that has rows."""
    return next(path.parent for path in store.glob("open/*/table.frames") if path.stat().st_size)


def messages(report: Report) -> str:
    """Return all findings as text."""
    return "\n".join(map(str, report.findings))


def rewrite_record(store: Path, number: int, **changes: Any) -> None:
    """Rewrite a segment's record with a valid checksum, and remove the manifest."""
    record, _ = catalog.read_record(store, number, catalog.read_spec(store))
    facts = {name: getattr(record, name) for name in ("segment", "rows", "arrays", "part", "sources")}
    (store / layout.record_path(number)).write_bytes(SegmentRecord(**(facts | changes)).encode())
    (store / "manifest.json").unlink(missing_ok=True)


# Sound stores


@pytest.mark.parametrize("level", ["structure", "checksums", "full"])
def test_a_complete_store_is_sound(store: Path, level: Any) -> None:
    """A finalized store has no findings at any level."""
    report = zarrow.verify(store, level)
    assert (report.ok, report.complete, report.findings) == (True, True, ())
    assert (report.rows, report.segments, report.open_rows) == (ROWS, 3, 0)


@pytest.mark.parametrize("level", ["structure", "checksums", "full"])
def test_an_incomplete_store_is_sound(unfinished: Path, level: Any) -> None:
    """Rows of an open segment are counted, and give no findings."""
    report = zarrow.verify(unfinished, level)
    assert (report.ok, report.complete) == (True, False)
    assert (report.rows, report.segments, report.open_rows) == (16, 2, 5)


def test_a_store_without_rows_is_sound(tmp_path: Path) -> None:
    """An empty store is sound."""
    schema = pa.schema({"id": pa.int64()})
    with zarrow.Writer(tmp_path / "s.zarrow", schema=schema, arrays={"e": (4, "float32")}) as writer:
        writer.finalize()
    report = zarrow.verify(tmp_path / "s.zarrow", "full")
    assert (report.findings, report.rows, report.complete) == ((), 0, True)


def test_a_store_may_be_verified_while_it_is_written(tmp_path: Path) -> None:
    """An active writer is not damage."""
    with zarrow.Writer(tmp_path / "s.zarrow", keys=["id"], segment_rows=8, codecs={"z": "zstd"}) as writer:
        for start in range(0, 240, 3):
            writer.append(*batch(start, 3))
            if start:
                report = zarrow.verify(tmp_path / "s.zarrow", "full")
                assert report.ok, messages(report)


def test_progress_ends_where_it_said_it_would(store: Path) -> None:
    """Progress grows up to the total."""
    seen: list[tuple[int, int]] = []
    zarrow.verify(store, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_report_is_json(store: Path) -> None:
    """A report can be read by programs."""
    (store / SHARD).unlink()
    body = json.loads(zarrow.verify(store).to_json())
    assert body["ok"] is False
    assert body["counts"] == {"damage": 1, "defect": 0, "note": 0}
    assert body["findings"][0]["path"] == SHARD


# Not a store


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """A path without a store is an error of the caller, not damage."""
    with pytest.raises(StoreNotFoundError):
        zarrow.verify(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAStoreError):
        zarrow.verify(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStoreError):
        zarrow.verify(tmp_path / "file")


def test_an_unknown_level_is_refused(store: Path) -> None:
    """A misspelt level is refused."""
    with pytest.raises(InvalidInputError, match="level must be one of structure, checksums, full"):
        zarrow.verify(store, "everything")  # type: ignore[arg-type]


# Damage


@pytest.mark.parametrize("name", ["complete", "incomplete"])
def test_no_file_can_be_lost_cut_grown_or_emptied(templates: Path, tmp_path: Path, name: str) -> None:
    """Any change to a single non-empty file is found, except the loss of the manifest."""
    template = templates / f"{name}.zarrow"
    files = [path for path in template.rglob("*") if path.is_file() and path.stat().st_size]
    for number, path in enumerate(files):
        relative = path.relative_to(template)
        if relative.suffix.startswith(".tail"):
            continue  # one of the two is unused; the other is tested below
        data = path.read_bytes()
        for deed, changed in {
            "lost": None,
            "cut": data[:-2],  # without its last line feed, zarr.json says the same
            "grown": data + b"\0",
            "emptied": b"",
            "zeroed": bytes(len(data)),
        }.items():
            if deed == "grown" and relative.parts[0] == "open" and relative.suffix in (".rows", ".frames"):
                continue  # a kill leaves them like this
            if deed == "lost" and relative.parts[0] in ("manifest.json", "statistics.arrow", "index"):
                continue  # the store was not finalized; it has none of what is derived
            store = Path(shutil.copytree(template, tmp_path / f"{number}-{deed}.zarrow"))
            if changed is None:
                (store / relative).unlink()
            else:
                (store / relative).write_bytes(changed)
            if (deed, str(relative)) in {("lost", "open/lock"), ("emptied", "open/lock")}:
                assert zarrow.verify(store).ok
            elif str(relative) == "zarrow.json" and deed == "lost":
                with pytest.raises(NotAStoreError):
                    zarrow.verify(store)
            elif relative.name == "table.frames" and deed in ("lost", "emptied", "cut", "zeroed"):
                # The loss of a whole journal cannot be detected, and its end may be torn.
                assert zarrow.verify(store).findings
            else:
                assert not zarrow.verify(store).ok, (relative, deed)
            shutil.rmtree(store)


# The key index


def index_of(store: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Write an index of the edited keys of the store, with valid checksums."""
    opened = zarrow.open(store)
    columns: dict[str, Any] = opened.table(["id", "q", "row"]).to_pydict()
    edit(columns)
    schema = pa.schema({"id": pa.int64(), "q": pa.string(), "row": pa.int64()})
    of = catalog.read_snapshot(store).manifest.identity, key_tables.keys_of(catalog.read_spec(store))
    with (store / "index/keys.index").open("w+b") as file, tempfile.TemporaryFile() as spill:
        batches = pa.table(columns, schema).to_batches()
        keys.build(files.write, file.fileno(), spill.fileno(), batches, of)


def swap(values: list[Any]) -> None:
    """Swap the first two."""
    values[0], values[1] = values[1], values[0]


@pytest.mark.parametrize("level", ["structure", "checksums", "full"])
@pytest.mark.parametrize("column", ["id", "q", "row", ""])
def test_an_index_of_other_keys_is_found(store: Path, column: str, level: Any) -> None:
    """An index with valid checksums that gives a wrong row for a key is found only by decoding."""
    index_of(store, lambda columns: swap(columns[column]) if column else None)
    report = zarrow.verify(store, level)
    assert report.ok == (level != "full" or not column), messages(report)
    if not report.ok:
        assert "its keys are not those of the table" in messages(report)
        assert report.counts == {"damage": 0, "defect": 1, "note": 0}
        assert zarrow.repair(store).nothing_to_do
        assert zarrow.repair(store, level=level).rebuilt == ("index/keys.index",)
        assert not zarrow.verify(store, level).findings


@pytest.mark.parametrize("name", [PART, "segments/00000001.json"])
def test_an_index_is_not_to_blame_for_a_damaged_table(store: Path, name: str) -> None:
    """A part that cannot be compared with the index is reported, but not the index."""
    zarrow.build_index(store)
    (store / name).unlink()
    assert not any(finding.path == "index/keys.index" for finding in zarrow.verify(store, "full").findings)


def test_an_index_of_other_rows_is_a_note(store: Path) -> None:
    """An outdated index is ignored by readers, so it is not a finding."""
    with zarrow.Writer(store, mode="a") as writer:
        writer.append(*batch(ROWS, 2))
        writer.finalize()
    report = zarrow.verify(store, "full")
    assert report.ok
    assert "built of other rows than the store has now" in messages(report)
    zarrow.build_index(store)
    assert not zarrow.verify(store, "full").findings


def test_an_index_is_looked_at_beneath_the_store_only(store: Path, tmp_path: Path) -> None:
    """A link is not followed."""
    (store / "index/keys.index").rename(tmp_path / "elsewhere")
    (store / "index/keys.index").symlink_to(tmp_path / "elsewhere")
    report = zarrow.verify(store)
    assert report.counts["defect"] == 2
    assert "a symbolic link" in messages(report)


def test_damage_is_told_by_row_and_sample_index(store: Path) -> None:
    """A damaged chunk is reported with its rows and their sample_index values."""
    path = store / SHARD
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    (finding,) = zarrow.verify(store).findings
    assert (finding.severity, finding.segment) == ("damage", 1)
    assert (finding.rows, finding.sample_index) == ((8, 16), (108, 115))
    assert str(finding) == (
        f"damage: {SHARD} (rows 8 to 15, sample_index 108 to 115): chunk 0 does not match its checksum"
    )


def test_a_damaged_part_names_its_rows(store: Path) -> None:
    """A damaged part is reported with its rows, without guessing sample_index values."""
    (store / PART).unlink()
    (finding,) = zarrow.verify(store).findings
    assert (finding.path, finding.rows, finding.sample_index) == (PART, (8, 16), None)


def test_files_that_changed_places_are_found(store: Path) -> None:
    """A sound shard of a different segment is damage."""
    one, other = store / "embeddings.zarr/e/c/0/0", store / SHARD
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert {finding.segment for finding in zarrow.verify(store).findings} == {0, 1}


@pytest.mark.parametrize("codecs", ["crc32c", ["zstd", "crc32c"]])
def test_shards_that_changed_places_are_found(tmp_path: Path, codecs: Any) -> None:
    """A shard whose own checksums hold, chunk by chunk, is damage where another one was written."""
    path = tmp_path / "run.zarrow"
    vectors = np.full((16, 512), 1, np.uint8)
    vectors[8:] = 2
    with zarrow.Writer(path, segment_rows=8, codecs=codecs) as writer:
        writer.append({"id": np.arange(16)}, {"e": vectors})
        writer.finalize()
    one, other = path / "embeddings.zarr/e/c/0/0", path / SHARD
    data = one.read_bytes()
    assert len(data) == other.stat().st_size
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    report = zarrow.verify(path)
    assert {finding.segment for finding in report.findings} == {0, 1}, messages(report)
    with zarrow.open(path) as store, pytest.raises(CorruptionError):
        store["e"].read(0, 8)


def test_a_record_that_is_lost_is_damage(store: Path) -> None:
    """A segment without a record is invisible to readers, so it is reported."""
    (store / "segments/00000001.json").unlink()
    report = zarrow.verify(store)
    assert report.counts["damage"] == 1
    assert report.findings[0].rows == (8, 16)


def test_a_gap_in_an_incomplete_store_is_damage(unfinished: Path) -> None:
    """Without a manifest, too, a missing record before later ones is reported."""
    (unfinished / "segments/00000000.json").unlink()
    report = zarrow.verify(unfinished)
    assert "segments/00000000.json (rows 0 to 7): missing" in messages(report)


def test_structure_leaves_bytes_alone(store: Path) -> None:
    """The lowest level does not read rows."""
    path = store / SHARD
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert zarrow.verify(store, "structure").ok
    assert not zarrow.verify(store, "checksums").ok


def test_sound_checksums_over_wrong_values_are_found(store: Path) -> None:
    """A part with wrong row numbers but valid checksums is found only at the highest level."""
    table = pq.read_table(store / PART)
    wrong = table.set_column(2, "row", pa.array(np.arange(9, 17)))
    schema = catalog.read_spec(store).table_schema
    pq.write_table(wrong.cast(schema), store / PART, store_schema=True)
    data = (store / PART).read_bytes()
    rewrite_record(store, 1, part=part_facts(data))
    assert zarrow.verify(store, "checksums").ok
    assert "column 'row' does not number the store's rows from 8" in messages(zarrow.verify(store, "full"))


def test_a_part_of_other_columns_is_found(store: Path) -> None:
    """A part must have the columns that the store has."""
    table = pq.read_table(store / PART).drop_columns(["q"])
    pq.write_table(table, store / PART)
    data = (store / PART).read_bytes()
    rewrite_record(store, 1, part=part_facts(data))
    assert "its columns are not the store's" in messages(zarrow.verify(store))


def test_rows_of_two_segments_from_one_place_are_found(store: Path) -> None:
    """The same accepted rows in two segments are damage."""
    source = Source(slot="0" * 16, start=0, stop=8, session="a", sequence=0)
    for number in (0, 1):
        rewrite_record(store, number, sources=(source,))
    assert "rows of 0000000000000000 that are also in segment 0" in messages(zarrow.verify(store))


def test_a_record_that_contradicts_itself_is_found(store: Path) -> None:
    """A record with a valid checksum can still be wrong."""
    rewrite_record(store, 1, rows=7, sources=())
    assert "its sources do not have the 7 rows" in messages(zarrow.verify(store))


# Open segments


def test_a_torn_tail_is_a_note(unfinished: Path) -> None:
    """A partial frame after the last one is what a kill leaves, and not damage."""
    frames = slot_of(unfinished) / "table.frames"
    data = frames.read_bytes()
    size = int.from_bytes(data[8:16], "little")
    for stop in (3, 12, 30, size - 1):
        frames.write_bytes(data + data[:stop])
        report = zarrow.verify(unfinished)
        assert report.ok
        assert f"{stop} bytes after the last sound frame are of one that was being written" in messages(
            report
        )
    frames.write_bytes(data + bytes(64))
    assert zarrow.verify(unfinished).ok


def test_a_whole_frame_that_is_damaged_is_damage(unfinished: Path) -> None:
    """The last frame of a killed run may be dropped by a writer, but it is reported."""
    frames = slot_of(unfinished) / "table.frames"
    data = bytearray(frames.read_bytes())
    del data[data.rindex(b"ZARROWF1") :]  # states that its rows are durable
    data[-1] ^= 1
    frames.write_bytes(data)
    assert "are damaged: accepted rows of this open segment, from row " in messages(zarrow.verify(unfinished))


def test_a_damaged_frame_without_rows_costs_none(unfinished: Path) -> None:
    """A power cut within the frame that marks rows durable is reported and repaired without losing a row."""
    with zarrow.Writer(unfinished, mode="a") as writer:
        writer.append(*batch(ROWS, 1))
        writer.flush(durable=True)
    frames = slot_of(unfinished) / "table.frames"
    data = bytearray(frames.read_bytes())
    last = data.rindex(b"ZARROWF1")
    assert int.from_bytes(data[last + 48 : last + 52], "little") == 0, "the last frame has no rows"
    before = zarrow.open(unfinished, partial=True).table()
    for byte in range(last, len(data)):
        data[byte] ^= 1
        frames.write_bytes(data)
        report = zarrow.verify(unfinished)
        assert report.counts == {"damage": 0, "defect": 1, "note": 0}, messages(report)
        data[byte] ^= 1
    done = zarrow.repair(unfinished)
    assert not done.set_aside
    assert done.rebuilt == (str(frames.relative_to(unfinished)),)
    assert zarrow.open(unfinished, partial=True).table().equals(before)
    assert not zarrow.verify(unfinished, "full").findings
    assert zarrow.repair(unfinished).nothing_to_do


def test_rows_of_an_open_segment_are_checked(unfinished: Path) -> None:
    """Row bytes covered by a frame must be there."""
    rows = slot_of(unfinished) / "e.rows"
    data = bytearray(rows.read_bytes())
    data[0] ^= 1
    rows.write_bytes(data)
    (finding,) = zarrow.verify(unfinished).findings
    assert (finding.severity, finding.path) == ("damage", f"open/{rows.parent.name}/e.rows")
    assert finding.rows is not None
    assert finding.rows[0] == 0


def test_an_owner_that_is_lost_is_damage(unfinished: Path) -> None:
    """An open segment without owner is reported, because a writer would discard it with its rows."""
    (slot_of(unfinished) / "owner.json").unlink()
    assert "the next writer will discard the rows" in messages(zarrow.verify(unfinished))


def test_a_journal_that_is_lost_is_damage(unfinished: Path) -> None:
    """Row bytes without a journal are reported, because a writer would discard them; a repair keeps them."""
    slot = slot_of(unfinished)
    kept = (slot / "e.rows").read_bytes()
    (slot / "table.frames").unlink()
    assert "missing, so the next writer will discard the rows" in messages(zarrow.verify(unfinished))
    (aside,) = zarrow.repair(unfinished).set_aside
    assert (unfinished / aside.to / "open/e.rows").read_bytes() == kept
    assert zarrow.verify(unfinished).ok


def test_a_claim_of_rows_that_are_gone_is_damage(unfinished: Path) -> None:
    """A claim without its sources can never be committed."""
    claim = Claim(segment=2, sources=(Source(slot="0" * 16, start=0, stop=8, session="a", sequence=0),))
    (unfinished / "segments/00000002.claim").write_bytes(claim.encode())
    assert "claims rows that are missing" in messages(zarrow.verify(unfinished))


def test_a_claim_whose_rows_are_there_is_a_note(unfinished: Path) -> None:
    """A segment about to be committed is not damage."""
    claim = Claim(
        segment=2, sources=(Source(slot=slot_of(unfinished).name, start=0, stop=5, session="a", sequence=0),)
    )
    (unfinished / "segments/00000002.claim").write_bytes(claim.encode())
    report = zarrow.verify(unfinished)
    assert report.ok
    assert "5 rows are about to be committed" in messages(report)


# Zarr metadata, and stray files


def test_zarr_metadata_that_are_behind_are_a_defect(store: Path) -> None:
    """Metadata that hides committed rows from Zarr readers is reported."""
    spec = catalog.read_spec(store)
    (store / "embeddings.zarr/zarr.json").write_bytes(zarr_metadata.group_json(spec, 16))
    (finding,) = zarrow.verify(store).findings
    assert (finding.severity, finding.path) == ("defect", "embeddings.zarr/zarr.json")


def test_zarr_metadata_that_a_kill_left_behind_are_a_note(unfinished: Path) -> None:
    """A kill between commit and metadata is recognised by the claim."""
    spec = catalog.read_spec(unfinished)
    record, _ = catalog.read_record(unfinished, 1, catalog.read_spec(unfinished))
    claim = Claim(segment=1, sources=record.sources)
    (unfinished / "segments/00000001.claim").write_bytes(claim.encode())
    (unfinished / "embeddings.zarr/zarr.json").write_bytes(zarr_metadata.group_json(spec, 8))
    report = zarrow.verify(unfinished)
    assert report.ok
    assert "without the last segment: its writer was about to add it" in messages(report)


def test_a_stray_part_is_a_defect(store: Path) -> None:
    """A stray part is reported, because Parquet readers would read it."""
    shutil.copy(store / PART, store / "table/part-00000007.parquet")
    (finding,) = zarrow.verify(store).findings
    assert (finding.severity, finding.path) == ("defect", "table/part-00000007.parquet")


def test_strays_are_notes(store: Path) -> None:
    """Harmless stray files are reported as notes."""
    for name in (
        "README",
        "table/notes.txt",
        "embeddings.zarr/e/c/9",
        "segments/x",
        "embeddings.zarr/e/c/1/1",
    ):
        (store / name).write_text("x")
    (store / "lost+found").mkdir()
    report = zarrow.verify(store)
    assert report.ok
    assert report.counts["note"] == 6


def test_many_strays_are_counted(store: Path) -> None:
    """A directory full of stray files is reported in a few lines."""
    for number in range(500):
        (store / f"stray{number}").touch()
    report = zarrow.verify(store)
    assert report.counts["note"] == 101
    assert "and 400 more" in messages(report)


@pytest.mark.parametrize("name", [SHARD, PART, "segments/00000001.json", "embeddings.zarr/e", "table"])
def test_a_link_is_not_followed(store: Path, name: str) -> None:
    """A symbolic link in place of a file is damage, even if it leads to the right bytes."""
    target = store.parent / "elsewhere"
    os.rename(store / name, target)
    (store / name).symlink_to(target)
    assert zarrow.verify(store).counts["damage"]


@pytest.mark.parametrize(
    "name", [SHARD, PART, "segments/00000001.json", "embeddings.zarr/zarr.json", "manifest.json"]
)
def test_a_pipe_is_not_waited_for(store: Path, name: str) -> None:
    """A pipe in place of a file is found at once."""
    (store / name).unlink()
    os.mkfifo(store / name)
    assert not zarrow.verify(store).ok


def test_verify_needs_no_writer_and_no_reader() -> None:
    """The audit shares no code with what it audits."""
    code = (
        "import sys, types; package = types.ModuleType('zarrow'); package.__path__ = sys.argv[1:]; "
        "sys.modules['zarrow'] = package; import zarrow._maintenance.audit, zarrow._maintenance.verify; "
        "names = 'writer', 'store', '_seal', '_recovery', '_view'; "
        "print(*(name for name in names if f'zarrow.{name}' in sys.modules))"
    )
    package = str(Path(zarrow.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, package], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_attributes_of_other_zarr_tools_are_kept(tmp_path: Path) -> None:
    """Attributes that zarr-python sets survive later rows, repairs and packing, and are no defect."""
    path = tmp_path / "run.zarrow"
    for mode, finalize in (("x", False), ("a", False), ("a", True)):
        with zarrow.Writer(path, mode=mode, segment_rows=8) as writer:
            vectors = np.ones((12, 3), np.float32)
            writer.append({"id": np.arange(12)}, {"e": vectors, "z": vectors})
            writer.finalize() if finalize else writer.close()
        if mode == "x":
            group = zarr.open_group(path / "embeddings.zarr", mode="a")
            group.attrs["mine"] = {"a": [1]}
            group["z"].attrs["units"] = "m"
        assert zarrow.verify(path).findings == ()
    (path / layout.part_path(2)).write_bytes(b"x")
    zarrow.repair(path)
    zarrow.Writer(path, mode="a").finalize(partial=True)
    zarrow.pack(path, codecs="zstd")
    assert zarrow.verify(path).ok
    group = zarr.open_group(path / "embeddings.zarr", mode="r")
    assert (group.attrs["mine"], group["z"].attrs["units"]) == ({"a": [1]}, "m")
    assert xr.open_zarr(path / "embeddings.zarr")["z"].attrs == {"units": "m"}


def test_a_shape_that_another_zarr_tool_changed_is_told(store: Path) -> None:
    """The shape is not for others to change: verify names it, `zarr()` refuses it, repair writes it again."""
    rows = len(zarrow.open(store))
    name = next(iter(zarrow.open(store).arrays))
    array = zarr.open_array(store / "embeddings.zarr" / name, mode="a")
    array.resize((rows + 8, *array.shape[1:]))
    (found,) = zarrow.verify(store).findings
    assert re.search(rf"it says shape \[{rows + 8}, .*another program may have changed it", str(found))
    with pytest.raises(CorruptionError, match="another program has changed it"):
        zarrow.open(store)[name].zarr()
    zarrow.repair(store)
    assert zarrow.open(store)[name].zarr().shape[0] == rows
