"""Visible rows — readers, recovery and audits agree on which rows of an incomplete store count."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import zarrow
from zarrow._format import layout
from zarrow._format.records import Claim, Owner, Source
from zarrow._read import catalog, open_rows
from zarrow._read.visible import OpenSegmentFacts, missing_records, visible_rows
from zarrow._storage.lock import FileLock
from zarrow._write import publishing
from zarrow._write.batches import BatchChecker
from zarrow._write.open_segment import OpenSegment
from zarrow.errors import CorruptionError

FULL = 8


def facts(name: int, rows: int, durable: int = 0, **owner: Any) -> OpenSegmentFacts:
    """Return an open segment of session "a", the `name`-th of it unless something else is said."""
    made = {"session": "a", "sequence": name, "host": "h", "pid": 1, "since": "now", **owner}
    return OpenSegmentFacts(f"{name:016x}", Owner(**made), rows, durable)


def left(*slots: OpenSegmentFacts, records: tuple[int, ...] = (), sources: tuple[Source, ...] = ()) -> Any:
    """Return the rows that count, by open segment."""
    found = visible_rows(slots, records, sources, FULL)
    assert not found.lost
    return {
        int(name, 16): [(rows.start, rows.stop) for rows in ranges] for name, ranges in found.ranges.items()
    }


def test_rows_behind_an_open_segment_that_is_not_full_do_not_count() -> None:
    """The order is that of `sequence`, an empty segment is not full either, and other sessions go on."""
    assert left(facts(1, FULL), facts(2, 3)) == {1: [(0, FULL)], 2: [(0, 3)]}
    assert left(facts(1, 0), facts(2, FULL), facts(3, 3)) == {1: []}
    assert left(facts(1, 5, sequence=7), facts(2, FULL, sequence=6)) == {1: [(0, 5)], 2: [(0, FULL)]}
    assert left(facts(1, 5), facts(2, 3, session="b")) == {1: [(0, 5)], 2: [(0, 3)]}
    found = visible_rows([facts(1, 5), facts(2, 3, durable=1)], (), (), FULL)
    assert (found.lost, found.behind[f"{2:016x}"].slot) == ((f"{2:016x}",), f"{1:016x}")
    with pytest.raises(CorruptionError, match="only 5 rows are left"):
        found.check(Path("run.zarrow"))


def test_rows_that_are_committed_do_not_count_twice() -> None:
    """Sources of records are left out, wherever they lie, and so are copies of what still counts."""
    sources = (Source(slot=f"{1:016x}", start=2, stop=4), Source(slot=f"{2:016x}", start=0, stop=FULL))
    assert left(facts(1, 6), facts(2, FULL, session="b"), sources=sources) == {1: [(0, 2), (4, 6)], 2: []}
    copy = facts(2, 3, session="b", reopens=5)
    assert left(facts(1, 6), copy, records=(0, 5)) == {1: [(0, 6)]}
    assert left(facts(1, 6), copy, records=(0,)) == {1: [(0, 6)], 2: [(0, 3)]}
    assert left(facts(1, 6), replace(copy, owner=replace(copy.owner, reopens=f"{1:016x}"))) == {1: [(0, 6)]}


def test_a_number_below_a_record_has_a_record_or_a_reason() -> None:
    """A claim and a directory in quarantine are reasons."""
    assert missing_records([], [], []) == []
    assert missing_records([0, 1, 2], [], []) == []
    assert missing_records([1, 4], [2], [3]) == [0]


def write(path: Path, rows: int) -> None:
    """Write a store of one plain and one compressed array; each row says its number."""
    with zarrow.Writer(path, segment_rows=FULL, codecs={"z": "zstd"}) as writer:
        writer.append(*columns(0, rows))


def columns(start: int, stop: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return rows as a writer takes them."""
    rows = np.arange(start, stop)
    vectors = np.repeat(rows[:, None], 3, axis=1).astype("f4")
    return {"id": rows}, {"e": vectors, "z": vectors}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of 8 committed rows and two open segments of one session, of 8 and 5 rows."""
    path = tmp_path_factory.mktemp("visible") / "run.zarrow"
    write(path, FULL)
    spec = catalog.read_spec(path)
    owner, checker = Owner(session="b" * 32, sequence=0, host="h", pid=1, since="now"), BatchChecker(spec)
    for sequence, starts in enumerate([(8, 12), (16, 20)]):
        segment = OpenSegment.create(path, spec, replace(owner, sequence=sequence))
        for start in starts:
            segment.append([checker.check(*columns(start, min(start + 4, 21)), None, copy=True, number=0)])
        segment.close()
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(template, tmp_path / "run.zarrow"))


def ids_read(path: Path) -> list[int]:
    """Return what a partial reader shows, after comparing it with the vectors."""
    with zarrow.open(path, partial=True) as store:
        ids = store.table()["id"].to_pylist()
        for name in ("e", "z"):
            assert store[name].read(0, len(ids), check="crc")[:, 0].tolist() == ids
        return ids


def ids_kept(path: Path) -> list[int]:
    """Return what recovery keeps."""
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    return ids_read(path)


def assert_all_agree(path: Path, rows: int) -> None:
    """Check that reader, audit and recovery count these rows, the first ones of what was written."""
    report = zarrow.verify(path)
    assert report.rows + report.open_rows == rows
    assert sorted(ids_read(path)) == sorted(ids_kept(path)) == list(range(rows))


def assert_all_refuse(path: Path, message: str) -> None:
    """Check that reader and recovery raise, and the audit reports damage."""
    assert zarrow.verify(path).counts["damage"]
    for way in (ids_read, ids_kept):
        with pytest.raises(CorruptionError, match=message):
            way(path)


def flip(path: Path, byte: int) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_everything_of_a_sound_store_counts(store: Path) -> None:
    """Rows of a session's open segments follow the committed ones."""
    assert zarrow.verify(store).ok
    assert_all_agree(store, 21)


@pytest.mark.parametrize(("byte", "rows"), [(100, 8), (-100, 12)])
def test_rows_with_a_hole_before_them_are_not_shown(store: Path, byte: int, rows: int) -> None:
    """If an open segment lost rows, all of them or some, those of its session's later ones do not count."""
    flip(open_rows.slots(store)[0] / "table.frames", byte)
    assert zarrow.verify(store).counts["damage"]
    assert_all_agree(store, rows)


def test_durable_rows_behind_lost_ones_are_damage(store: Path) -> None:
    """Nothing but damage takes rows before durable ones."""
    spec = catalog.read_spec(store)
    first, second = open_rows.slots(store)
    found = open_rows.read(second, spec)
    assert found is not None
    segment = OpenSegment.adopt(found, spec, found.owner, FileLock(second / "lock"))
    segment.sync()
    segment.close()
    assert ids_read(store) == list(range(21))
    flip(first / "table.frames", 100)
    assert_all_refuse(store, "only 0 rows are left")


@pytest.mark.parametrize("name", ["e.rows", "z.rows", "z.tail0", "z.tail1", "table.frames", "owner.json"])
def test_a_missing_file_is_damage(store: Path, name: str) -> None:
    """A file that an open segment has before its first row is not missed silently, whatever the codec."""
    (open_rows.slots(store)[1] / name).unlink()
    assert_all_refuse(store, "missing, though the open segment has rows")


def test_rows_that_were_claimed_are_there(store: Path) -> None:
    """A claim of rows that an open segment has not is damage; one of rows that it has, is not."""
    slot = open_rows.slots(store)[1].name
    claim = Claim(segment=1, sources=(Source(slot=slot, start=0, stop=5),))
    (store / layout.claim_path(1)).write_bytes(claim.encode())
    assert ids_read(store) == list(range(21))
    claim = replace(claim, sources=(Source(slot=slot, start=0, stop=6),))
    (store / layout.claim_path(1)).write_bytes(claim.encode())
    assert_all_refuse(store, f"claims 6 rows of {slot}, 5 are left")


def test_a_record_that_is_lost_is_damage(tmp_path: Path) -> None:
    """Rows after those of a record that is missing are not shown as if nothing were."""
    write(tmp_path / "run.zarrow", 30)
    (tmp_path / "run.zarrow" / layout.record_path(1)).unlink()
    assert_all_refuse(tmp_path / "run.zarrow", "the record is missing")


def test_a_repair_that_was_killed_hides_and_doubles_no_row(tmp_path: Path) -> None:
    """Records behind a number that was set aside count; a copy of the last one does not, while that does."""
    path = tmp_path / "run.zarrow"
    write(path, 30)
    flip(path / layout.shard_path("e", 1, 1), 0)
    killed = mock.patch.object(publishing, "uncommit", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        zarrow.repair(path)
    report = zarrow.verify(path)
    assert "a copy of segment 2" in str(report.findings)
    sound = sorted({*range(30)} - {*range(8, 16)})
    assert report.rows + report.open_rows == len(sound)
    assert sorted(ids_read(path)) == sorted(ids_kept(path)) == sound
