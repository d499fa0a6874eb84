"""Visible rows — readers, recovery and audits agree on which rows of an incomplete store count."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import zarrow
from zarrow._format import layout
from zarrow._format.records import Claim, Owner, PartFacts, SegmentRecord, Source
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


def record(number: int, *sources: Source) -> tuple[SegmentRecord, int]:
    """Return a record of these sources, and a checksum."""
    part, rows = PartFacts(size_bytes=1, crc32c=1, footer_crc32c=1), sum(one.rows for one in sources)
    return SegmentRecord(segment=number, rows=rows, arrays={}, part=part, sources=sources), 70 + number


def source(name: int, start: int, stop: int, session: str = "a") -> Source:
    """Return rows of the open segment that `facts` describes."""
    return Source(slot=f"{name:016x}", start=start, stop=stop, session=session, sequence=name)


def left(*slots: OpenSegmentFacts, records: tuple[tuple[SegmentRecord, int], ...] = ()) -> Any:
    """Return the rows that count, by open segment, or what is damaged."""
    found = visible_rows(slots, records, FULL)
    if found.damage:
        return {int(name, 16): message for name, message in found.damage.items()}
    return {
        int(name, 16): [(rows.start, rows.stop) for rows in ranges] for name, ranges in found.ranges.items()
    }


def test_rows_behind_an_open_segment_that_is_not_full_do_not_count() -> None:
    """The order is that of `sequence`, an empty segment is not full either, and other sessions go on."""
    assert left(facts(0, FULL), facts(1, 3)) == {0: [(0, FULL)], 1: [(0, 3)]}
    assert left(facts(0, 0), facts(1, FULL), facts(2, 3)) == {0: []}
    assert left(facts(1, 5, sequence=1), facts(2, FULL, sequence=0)) == {1: [(0, 5)], 2: [(0, FULL)]}
    assert left(facts(0, 5), facts(1, 3, session="b", sequence=0)) == {0: [(0, 5)], 1: [(0, 3)]}
    found = visible_rows([facts(0, 5), facts(1, 3, durable=1)], (), FULL)
    assert (list(found.damage), found.behind[f"{1:016x}"].slot) == ([f"{1:016x}"], f"{0:016x}")
    with pytest.raises(CorruptionError, match="only 5 rows are left"):
        found.check(Path("run.zarrow"))


def test_rows_that_are_committed_do_not_count_twice() -> None:
    """Sources of records are left out, wherever they lie, and so are copies of what still counts."""
    records = (record(0, source(0, 2, 4), source(5, 0, FULL, "b")),)
    assert left(facts(0, 6), facts(5, FULL, session="b", sequence=0), records=records) == {
        0: [(0, 2), (4, 6)], 5: []
    }  # fmt: skip
    copy = facts(5, 3, session="b", sequence=0, reopens=(5, 75))
    last = record(5, source(9, 0, 3))
    assert left(facts(0, 6), copy, records=(last,)) == {0: [(0, 6)]}
    assert left(facts(0, 6), copy) == {0: [(0, 6)], 5: [(0, 3)]}
    other = (last[0], 76)
    assert left(facts(0, 6), copy, records=(other,)) == {0: [(0, 6)], 5: [(0, 3)]}
    assert left(facts(0, 6), replace(copy, owner=replace(copy.owner, reopens=f"{0:016x}"))) == {0: [(0, 6)]}
    assert "and more rows" in left(replace(copy, rows=4), records=(last,))[5]


def test_rows_follow_those_before_them() -> None:
    """An open segment with rows follows one that is there, or of which records have all rows."""
    assert "the rows before its own are missing" in left(facts(1, 3))[1]
    assert left(facts(1, 0)) == {1: []}
    assert left(facts(1, 3), records=(record(0, source(0, 0, FULL)),)) == {1: [(0, 3)]}
    assert left(facts(1, 3), records=(record(0, source(0, 0, 5)), record(1, source(0, 5, FULL)))) == {
        1: [(0, 3)]
    }  # fmt: skip
    assert "missing" in left(facts(1, 3), records=(record(0, source(0, 0, 5)),))[1]
    assert "missing" in left(facts(1, 3), records=(record(0, source(0, 0, FULL, "b")),))[1]
    # It was copied before it was full, and is committed: those behind it follow a record.
    early = left(facts(0, 5), facts(1, 3), records=(record(0, source(0, 0, FULL)),))
    assert early == {0: [], 1: [(0, 3)]}


def test_a_number_below_a_record_or_with_a_part_has_a_record_or_a_reason() -> None:
    """A claim and a directory in quarantine are reasons, and for the last part, that it was taken back."""
    assert missing_records([]) == []
    assert missing_records([0, 1, 2], [0, 1, 2]) == []
    assert missing_records([1, 4], claims=[2], aside=[3]) == [0]
    assert missing_records([0, 1], [0, 1, 2, 3, 4], claims=[3], aside=[4]) == [2]
    owner = facts(0, 3, reopens=(2, 5)).owner
    assert missing_records([0, 1], [0, 1, 2], owners=[owner]) == []
    assert missing_records([99_999_999])[:3] == [0, 1, 2]


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


@pytest.mark.parametrize(("byte", "rows"), [(300, 8), (-100, 12)])
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
    flip(first / "table.frames", 300)
    assert_all_refuse(store, "only 0 rows are left")


@pytest.mark.parametrize("name", ["e.rows", "z.rows", "z.tail0", "z.tail1", "table.frames", "owner.json"])
def test_a_missing_file_is_damage(store: Path, name: str) -> None:
    """A file that an open segment has before its first row is not missed silently, whatever the codec."""
    (open_rows.slots(store)[1] / name).unlink()
    assert_all_refuse(store, "missing, though the open segment has rows")


def test_rows_that_were_claimed_are_there(store: Path) -> None:
    """A claim of rows that an open segment has not is damage; one of rows that it has, is not."""
    slot = open_rows.slots(store)[1].name
    claim = Claim(segment=1, sources=(Source(slot=slot, start=0, stop=5, session="b" * 32, sequence=1),))
    (store / layout.claim_path(1)).write_bytes(claim.encode())
    assert ids_read(store) == list(range(21))
    claim = replace(claim, sources=(replace(claim.sources[0], stop=6),))
    (store / layout.claim_path(1)).write_bytes(claim.encode())
    assert_all_refuse(store, f"claims 6 rows of {slot}, 5 are left")


def test_a_record_that_is_lost_is_damage(tmp_path: Path) -> None:
    """Rows after those of a missing record are not shown, and the last record is missed, too."""
    for number in (1, 2):
        path = tmp_path / f"{number}.zarrow"
        write(path, 24)
        (path / layout.record_path(number)).unlink()
        assert_all_refuse(path, "the record is missing")


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


CRASH = """
import os, signal, sys
import numpy as np
import zarrow

def add(writer, first, rows):
    ids = np.arange(first, first + rows)
    writer.append({"id": ids}, {"e": np.zeros((rows, 2), "f4")}, ids)
    writer.flush()

path, step = sys.argv[1:]
one = zarrow.Writer(path, mode="a", segment_rows=8, shared=True)
if step == "first":
    add(one, 0, 11)
    one.finalize()
    sys.exit()
if step == "second":
    other = zarrow.Writer(path, mode="a", segment_rows=8, shared=True)
    add(other, 11, 8)
    other.flush(durable=True)  # sealed under the number of the segment that the first has reopened
print(one.accepted_rows)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_reopened_segment_outlives_another_one_of_its_number(tmp_path: Path) -> None:
    """Also when it has got another owner since, who knows of no record that low: its rows are no copy."""
    path = tmp_path / "run.zarrow"
    for step in ("first", "second", "third", "fourth"):
        command = [sys.executable, "-c", CRASH, str(path), step]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -9), done.stderr
        with zarrow.open(path, partial=True) as store:
            assert sorted(store.table(["id"])["id"].to_pylist()) == [*range(11 if step == "first" else 19)]
        assert zarrow.verify(path).ok
    assert int(done.stdout) == 19
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    assert sorted(zarrow.open(path).table(["id"])["id"].to_pylist()) == [*range(19)]
