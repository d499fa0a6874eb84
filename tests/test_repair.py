"""Repair — damaged files are moved aside and sound rows stay, even if the repair dies halfway."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from crash.disk import Disk, Recorder, Tree
from crash.states import State, Tally
from crash.workloads import NAME, calls, scratch

import zarrow
from zarrow._format.documents import decode_document
from zarrow._format.records import Owner
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    StoreChangedError,
    StoreLockedError,
    StoreNotFoundError,
)

ROWS = 37
SEGMENT_ROWS = 8


def vectors(samples: np.ndarray, width: int) -> np.ndarray:
    """Return the vectors of these sample_index values."""
    return (samples[:, None] * 10 + np.arange(width)).astype(np.float32)


def append(writer: zarrow.Writer, samples: np.ndarray) -> None:
    """Append the rows of these sample_index values."""
    writer.append(
        {"id": samples, "q": [f"q{sample}" for sample in samples]},
        {"e": vectors(samples, 3), "z": vectors(samples, 2).astype("i4")},
        samples,
    )


def write(path: Path, *, finalize: bool) -> None:
    """Write a store whose row r has the sample_index 1000 − r."""
    with zarrow.Writer(path, keys=["id"], segment_rows=SEGMENT_ROWS, codecs={"z": "zstd"}) as writer:
        for start in range(0, ROWS, 5):
            append(writer, 1000 - np.arange(start, min(start + 5, ROWS)))
            writer.flush()  # otherwise they might be written together
        if finalize:
            writer.finalize()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store and an incomplete one: four segments and five rows."""
    directory = tmp_path_factory.mktemp("templates")
    write(directory / "complete.zarrow", finalize=True)
    write(directory / "open.zarrow", finalize=False)
    with mock.patch("zarrow._format.array_spec.TARGET_CHUNK_BYTES", 24):  # two rows
        write(directory / "chunks.zarrow", finalize=False)
    return directory


@pytest.fixture
def store(templates: Path, tmp_path: Path) -> Path:
    """A complete store."""
    return Path(shutil.copytree(templates / "complete.zarrow", tmp_path / "s.zarrow"))


@pytest.fixture
def unfinished(templates: Path, tmp_path: Path) -> Path:
    """A store of four segments and an open one."""
    return Path(shutil.copytree(templates / "open.zarrow", tmp_path / "s.zarrow"))


@pytest.fixture
def chunks(templates: Path, tmp_path: Path) -> Path:
    """A store of four segments, of several chunks each, and an open one."""
    return Path(shutil.copytree(templates / "chunks.zarrow", tmp_path / "s.zarrow"))


def flip(path: Path, byte: int = 20) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def shard(store: Path, segment: int) -> Path:
    """Return the path of a shard."""
    return store / f"embeddings.zarr/e/c/{segment}/0"


def slot_of(store: Path) -> Path:
    """Return the open segment that has rows."""
    return next(path.parent for path in store.glob("open/*/table.frames") if path.stat().st_size)


def samples_in(store: Path) -> list[int]:
    """Return the sample_index values of all rows, after checking their vectors and columns."""
    with zarrow.open(store, partial=True) as opened:
        table = opened.table()
        samples = table["sample_index"].to_numpy()
        assert table["id"].to_pylist() == samples.tolist()
        assert table["q"].to_pylist() == [f"q{sample}" for sample in samples]
        assert table["row"].to_pylist() == list(range(len(samples)))
        np.testing.assert_array_equal(opened["e"][:], vectors(samples, 3))
        np.testing.assert_array_equal(opened["z"][:], vectors(samples, 2).astype("i4"))
    return sorted(samples.tolist())


def expected(*lost: int) -> list[int]:
    """Return the sample_index values of a store without these segments."""
    return sorted(1000 - row for row in range(ROWS) if row // SEGMENT_ROWS not in lost)


def resume(store: Path, missing: list[int]) -> None:
    """Predict these samples again, and complete the store."""
    with zarrow.Writer(store, mode="a") as writer:
        append(writer, np.array(missing))
        writer.finalize()


def test_a_sound_store_is_left_alone(store: Path) -> None:
    """A sound store is not changed."""
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert zarrow.repair(store).nothing_to_do
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert zarrow.verify(store).complete


def test_a_dry_run_does_nothing(store: Path) -> None:
    """A dry run reports what would be done without doing it."""
    flip(shard(store, 1))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    plan = zarrow.repair(store, dry_run=True)
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert plan.dry_run
    assert plan.sample_index == tuple(range(985, 993))
    assert plan.moved_rows == 5
    done = zarrow.repair(store)
    assert (done.set_aside, done.moved_rows) == (plan.set_aside, plan.moved_rows)


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        *(("store", lost) for lost in ((0,), (1,), (3,), (4,), (0, 1), (0, 4), (0, 1, 2), (2, 3, 4))),
        *(("unfinished", lost) for lost in ((0,), (1,), (3,), (1, 3), (0, 1, 2, 3))),
    ],
)
def test_damaged_segments_go_aside(
    request: pytest.FixtureRequest, template: str, lost: tuple[int, ...]
) -> None:
    """Exactly the damaged rows are removed and listed; once predicted again, the store is complete."""
    store: Path = request.getfixturevalue(template)
    for number in lost:
        flip(shard(store, number))
    done = zarrow.repair(store)
    assert [one.segment for one in done.set_aside] == list(lost)
    missing = sorted(set(expected()) - set(expected(*lost)))
    assert list(done.sample_index) == missing
    report = zarrow.verify(store, "full")
    assert report.ok, report.findings
    assert not report.complete
    with pytest.raises(IncompleteStoreError):
        zarrow.open(store)
    assert samples_in(store) == expected(*lost)
    assert len(list(store.glob("table/*.parquet"))) == report.segments
    assert zarr.open_group(store / "embeddings.zarr", mode="r")["e"].shape == (report.rows, 3)
    assert zarrow.repair(store).nothing_to_do
    resume(store, missing)
    assert samples_in(store) == expected()
    report = zarrow.verify(store, "full")
    assert report.ok, report.findings
    assert report.complete


@pytest.mark.parametrize(
    "harm",
    [
        lambda s: flip(s / "segments/00000001.json"),
        lambda s: (s / "segments/00000001.json").unlink(),
        lambda s: flip(s / "table/part-00000001.parquet"),
        lambda s: (s / "table/part-00000001.parquet").unlink(),
        lambda s: shutil.rmtree(s / "embeddings.zarr/z/c/1"),
    ],
    ids=["record", "lost record", "part", "lost part", "lost shard"],
)
def test_whatever_is_damaged_of_a_segment_the_rest_of_it_goes_too(
    store: Path, harm: Callable[[Path], Any]
) -> None:
    """A damaged segment is set aside as a whole, and none of its files is lost."""
    harm(store)
    left = {
        path.read_bytes()
        for path in (
            *store.glob("table/part-00000001.parquet"),
            *store.glob("segments/00000001.json"),
            *store.glob("embeddings.zarr/*/c/1/0"),
        )
    }
    (aside,) = zarrow.repair(store).set_aside
    assert left <= {path.read_bytes() for path in (store / aside.to).iterdir()}
    assert samples_in(store) == expected(1)
    assert zarrow.verify(store, "full").ok


@pytest.mark.parametrize("change", ["repair", "pack"])
def test_a_reader_notices_that_rows_have_other_numbers(store: Path, change: str) -> None:
    """A store that was open while rows moved says so, as does its pickle; refreshed, it shows them."""
    reader = zarrow.open(store)
    reader.take([0])
    pickled = pickle.dumps(reader), pickle.dumps(reader["e"])
    if change == "repair":
        flip(shard(store, 1))
        zarrow.repair(store)
        with zarrow.Writer(store, mode="a") as writer:
            append(writer, 1000 - np.arange(8, 16))
            writer.finalize()
    else:
        zarrow.pack(store, order="id")
    asked: list[Callable[[], Any]] = [
        lambda: reader.take(np.arange(ROWS)),
        lambda: reader["e"][:],
        reader.table,
        lambda: list(reader.join()),
        lambda: pickle.loads(pickled[0]),
        lambda: pickle.loads(pickled[1]),
    ]
    for ask in asked:
        with pytest.raises(StoreChangedError, match="open it again"):
            ask()
    if change == "repair":
        assert reader.refresh()
        table, found = reader.take(np.arange(ROWS))
        assert np.array_equal(found["e"], vectors(table["id"].to_numpy(), 3))


def test_what_was_set_aside_says_what_it_was(store: Path) -> None:
    """The list of samples is stored with the damaged files."""
    flip(shard(store, 1))
    (aside,) = zarrow.repair(store).set_aside
    assert sorted(path.name for path in (store / aside.to).iterdir()) == [
        "damage.json",
        "e.shard",
        "part.parquet",
        "record.json",
        "z.shard",
    ]
    body = decode_document((store / aside.to / "damage.json").read_bytes(), "")
    assert (body["segment"], body["rows"], body["sample_index"]) == (1, [8, 16], list(range(985, 993)))
    assert str(aside).startswith("segments/00000001.json → quarantine/00000001-0: embeddings.zarr/e/c/1/0: ")


def test_the_same_number_can_be_damaged_twice(store: Path) -> None:
    """Files set aside earlier are not overwritten."""
    for number in range(2):
        flip(shard(store, 1))
        (aside,) = zarrow.repair(store, finalize=True).set_aside
        assert aside.to == f"quarantine/00000001-{number}"
    assert zarrow.verify(store, "full").complete


def test_a_damaged_open_segment_goes_aside(unfinished: Path) -> None:
    """Its damaged rows are listed; what can still be read and checked stays, as do committed rows."""
    flip(slot_of(unfinished) / "e.rows", 0)
    done = zarrow.repair(unfinished)
    assert list(done.sample_index) == [1000 - row for row in (34, 33, 32)]
    assert samples_in(unfinished) == sorted([*expected(4), 964, 965])
    assert zarrow.verify(unfinished, "full").ok
    resume(unfinished, list(done.sample_index))
    assert samples_in(unfinished) == expected()


@pytest.mark.parametrize(("name", "byte", "lost"), [("e", 20, (0, 2)), ("e", 60, (4, 6)), ("z", 0, (0, 2))])
def test_the_sound_chunks_of_a_damaged_segment_stay(
    chunks: Path, name: str, byte: int, lost: tuple[int, int]
) -> None:
    """Only rows whose chunk is damaged are lost, of plain and of compressed arrays."""
    flip(chunks / f"embeddings.zarr/{name}/c/1/0", byte)
    missing = [1000 - 8 - row for row in range(*lost)]
    plan = zarrow.repair(chunks, dry_run=True)
    (aside,) = zarrow.repair(chunks, finalize=True).set_aside
    assert plan.set_aside == (aside,)
    assert (aside.rows, aside.kept_rows) == ((8, 16), 8 - len(missing))
    assert list(aside.sample_index) == sorted(missing)
    assert samples_in(chunks) == sorted({*expected()} - {*missing})
    assert zarrow.verify(chunks, "full").complete


def test_a_plain_shard_needs_no_index(chunks: Path) -> None:
    """Rows of a shard whose index is damaged are kept; of one that was cut, those before the cut."""
    flip(shard(chunks, 1), -1)
    os.truncate(shard(chunks, 2), 3 * 24 + 5)
    done = zarrow.repair(chunks, finalize=True)
    assert [one.kept_rows for one in done.set_aside] == [8, 6]
    assert samples_in(chunks) == sorted({*expected()} - {978, 977})
    assert zarrow.verify(chunks, "full").complete


def test_frames_behind_a_damaged_one_stay(tmp_path: Path) -> None:
    """Of the journal of plain arrays, only the rows of the damaged frame are lost."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path, segment_rows=64) as writer:
        for start in range(0, 30, 10):
            append(writer, np.arange(start, start + 10))
            writer.flush()
    journal = slot_of(path) / "table.frames"
    flip(journal, journal.stat().st_size // 2)
    (aside,) = zarrow.repair(path, finalize=True).set_aside
    assert (aside.rows, aside.kept_rows) == ((0, 30), 20)
    assert samples_in(path) == [*range(10), *range(20, 30)]
    assert zarrow.verify(path, "full").complete


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_an_open_segment_without_an_owner_keeps_its_rows(
    unfinished: Path, harm: Callable[[Path], Any]
) -> None:
    """A damaged owner costs no row: the open segment gets another one."""
    harm(slot_of(unfinished) / "owner.json")
    done = zarrow.repair(unfinished)
    assert (done.sample_index, done.nameless_rows) == ((), 0)
    assert not any((unfinished / one.to / "open").exists() for one in done.set_aside)
    assert samples_in(unfinished) == expected()
    assert zarrow.verify(unfinished, "full").ok
    assert zarrow.repair(unfinished).nothing_to_do


def test_a_manifest_of_another_state_is_distrusted_not_sound_records(store: Path) -> None:
    """A manifest that was put back from a copy moves no row that can be read and checked."""
    old = (store / "manifest.json").read_bytes()
    with zarrow.Writer(store, mode="a") as writer:
        append(writer, np.arange(900, 920))
        writer.finalize()
    (store / "manifest.json").write_bytes(old)
    done = zarrow.repair(store, finalize=True)
    assert [one.path for one in done.set_aside] == ["manifest.json"]
    assert samples_in(store) == sorted([*expected(), *range(900, 920)])
    assert zarrow.verify(store, "full").complete


def test_a_damaged_manifest_goes_aside(store: Path) -> None:
    """A store without its manifest is incomplete, and can be completed."""
    flip(store / "manifest.json")
    done = zarrow.repair(store)
    assert [one.path for one in done.set_aside] == ["manifest.json"]
    assert zarrow.verify(store).ok
    assert not zarrow.verify(store).complete
    zarrow.repair(store, finalize=True)
    with zarrow.Writer(store, mode="a") as writer:
        writer.finalize()
    assert samples_in(store) == expected()


@pytest.mark.parametrize("command", ["repair", "finalize"])
def test_a_damaged_manifest_costs_no_index_and_no_derived_array(store: Path, command: str) -> None:
    """A store that is completed again without a change of its rows has the records that it had."""
    zarrow.build_index(store)
    zarrow.add_array(store, "pca", np.ones((ROWS, 2), np.float32))
    with zarrow.open(store) as before:
        identity = before.identity
    flip(store / "manifest.json")
    zarrow.repair(store, finalize=command == "repair")
    if command == "finalize":
        with zarrow.Writer(store, mode="a") as writer:
            writer.finalize()
    with zarrow.open(store) as after:
        assert after.identity == identity
        assert after.locate({"id": [1000]}).tolist() == [0]
        assert list(after.derived) == ["pca"]
    assert [str(finding) for finding in zarrow.verify(store, "full").findings] == [
        "note: quarantine: 1 entry that a repair set aside"
    ]


@pytest.mark.parametrize(
    "name", ["segments/00000001.json", "embeddings.zarr/e/c/1/0", "table", "manifest.json"]
)
def test_what_may_not_be_read_is_not_taken_for_damaged(store: Path, name: str) -> None:
    """Without permission a repair says so, and moves no rows to quarantine."""
    mode = (store / name).stat().st_mode
    (store / name).chmod(0)
    try:
        if os.access(store / name, os.R_OK):
            pytest.skip("this user may read anything")
        assert "Permission denied" in str(zarrow.verify(store).findings[0])
        for dry_run in (True, False):
            with pytest.raises(PermissionError, match=f"{name}: may not be read"):
                zarrow.repair(store, dry_run=dry_run)
    finally:
        (store / name).chmod(mode)
    assert zarrow.verify(store).findings == ()


def test_what_is_derived_is_rebuilt(store: Path) -> None:
    """Zarr's metadata are rebuilt, and the store stays complete."""
    flip(store / "embeddings.zarr/zarr.json")
    (store / "embeddings.zarr/e/zarr.json").unlink()
    done = zarrow.repair(store)
    assert sorted(done.rebuilt) == ["embeddings.zarr/e/zarr.json", "embeddings.zarr/zarr.json"]
    assert not done.set_aside
    report = zarrow.verify(store, "full")
    assert report.findings == ()
    assert report.complete


def test_the_index_of_keys_is_rebuilt(store: Path) -> None:
    """A damaged index is rebuilt, and gives the correct rows."""
    zarrow.build_index(store)
    sound = (store / "index/keys.index").read_bytes()
    flip(store / "index/keys.index")
    done = zarrow.repair(store)
    assert (done.rebuilt, done.set_aside) == (("index/keys.index",), ())
    assert (store / "index/keys.index").read_bytes() == sound
    flip(store / "index/keys.index")
    flip(shard(store, 1))
    zarrow.repair(store)
    assert not (store / "index/keys.index").exists(), "of a store that is incomplete"
    assert zarrow.verify(store).ok
    zarrow.repair(store, finalize=True)
    assert zarrow.open(store).locate({"id": [1000]}).tolist() == [0]


def test_what_readers_would_take_for_rows_goes_aside(store: Path) -> None:
    """A stray part is moved, and the store stays complete."""
    shutil.copy(store / "table/part-00000001.parquet", store / "table/part-00000009.parquet")
    zarrow.repair(store)
    report = zarrow.verify(store)
    assert report.ok
    assert report.complete
    assert (store / "quarantine/stray-0-0/part-00000009.parquet").exists()


def test_what_is_no_file_where_one_should_be_goes_aside(store: Path, tmp_path: Path) -> None:
    """Links and directories in place of derived files are moved, without touching their content."""
    zarrow.build_index(store)
    (store / "index/keys.index").rename(tmp_path / "precious")
    (store / "index/keys.index").symlink_to(tmp_path / "precious")
    (store / "embeddings.zarr/e/zarr.json").unlink()
    (store / "embeddings.zarr/e/zarr.json").mkdir()
    before = (tmp_path / "precious").read_bytes()
    assert len(zarrow.repair(store).set_aside) == 2
    assert zarrow.verify(store).complete
    assert zarrow.verify(store).ok
    assert (tmp_path / "precious").read_bytes() == before
    (store / "open/lock").symlink_to(tmp_path / "precious")
    for dry_run in (True, False):
        with pytest.raises(CorruptionError, match="open/lock"):
            zarrow.repair(store, dry_run=dry_run)
    assert (tmp_path / "precious").read_bytes() == before


def test_nothing_is_left_of_segments_that_moved(store: Path) -> None:
    """Directories of removed shards are gone, so a repaired store has notes only about quarantine."""
    for number in (0, 1, 3):
        flip(shard(store, number))
    zarrow.repair(store, finalize=True)
    (note,) = zarrow.verify(store).findings
    assert str(note) == "note: quarantine: 3 entries that a repair set aside"


def test_repair_refuses_what_it_cannot_do(store: Path, tmp_path: Path) -> None:
    """No store, a writer at work, or a damaged zarrow.json: nothing is touched."""
    with pytest.raises(StoreNotFoundError):
        zarrow.repair(tmp_path / "nothing")
    flip(store / "zarrow.json")
    with pytest.raises(CorruptionError, match=r"zarrow\.json: .*; restore it from a copy"):
        zarrow.repair(store)


def test_repair_does_not_disturb_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair is refused while a writer is active."""
    monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.1)
    with zarrow.Writer(tmp_path / "s.zarrow", keys=["id"]) as writer:
        append(writer, np.arange(5))
        writer.flush()
        flip(tmp_path / "s.zarrow/embeddings.zarr/zarr.json")
        with pytest.raises(StoreLockedError):
            zarrow.repair(tmp_path / "s.zarrow")


def test_a_writer_does_not_pass_over_a_lost_record(store: Path) -> None:
    """A gap not made by a repair is damage, and a writer refuses to append after it."""
    (store / "segments/00000001.json").unlink()
    (store / "manifest.json").unlink()
    with pytest.raises(CorruptionError, match="zarrow repair"):
        zarrow.Writer(store, mode="a")


def check_stock_readers(store: Path) -> None:
    """Check that what Zarr readers see are the first rows of the table, and none is made of zeros."""
    samples = np.concatenate(
        [pq.read_table(path)["sample_index"].to_numpy() for path in sorted(store.glob("table/*.parquet"))]
    )
    group = zarr.open_group(store / "embeddings.zarr", mode="r")
    for name, expected in (("e", vectors(samples, 3)), ("z", vectors(samples, 2).astype("i4"))):
        rows = np.asarray(group[name][:])
        assert len(rows) <= len(samples)
        wrong = np.flatnonzero((rows != expected[: len(rows)]).any(axis=1))
        assert set(wrong) <= {1}, f"{name}: {wrong}"  # row 1 has the flipped bit
        assert rows.any(axis=1).all()


def judge(tree: Tree, after: str, originals: set[bytes], left: list[int]) -> None:
    """Check what a crash in a repair left: no sound row lost or doubled, no damaged file discarded."""
    with scratch() as top:
        tree.put(top)
        store = top / NAME
        check_stock_readers(store)
        if not zarrow.verify(store).counts["damage"]:
            assert samples_in(store) == left
            if after == "writer":
                zarrow.Writer(store, mode="a").close()
        zarrow.repair(store)
        report = zarrow.verify(store)
        assert report.ok, report.findings
        assert samples_in(store) == left
        kept = {path.read_bytes() for path in (store / "quarantine").rglob("*") if path.is_file()}
        assert originals <= kept


@pytest.mark.slow
@pytest.mark.parametrize("template", ["complete", "open", "chunks"])
def test_a_crash_in_a_repair_is_harmless(
    templates: Path, template: str, profile: str, figures: Callable[..., None]
) -> None:
    """A repair killed or cut off from power at any call is finished by the next one or by a writer."""
    rng = random.Random(template)
    with scratch() as top:
        store = Path(shutil.copytree(templates / f"{template}.zarrow", top / NAME))
        flip(shard(store, 0))
        flip(store / "segments/00000002.json")
        left = expected(0, 2)
        if template == "chunks":  # of segment 0, the last six rows are sound; of the open one, the last two
            left = sorted([*left, *range(993, 999)])
            left = sorted({*left} - {966, 967, 968})
            flip(slot_of(store) / "e.rows")
        originals = {path.read_bytes() for path in store.rglob("c/[02]/*") if path.is_file()}
        base = Tree.take(top)
        recorder = Recorder(top)
        with calls(recorder):
            zarrow.repair(store)
    disk = Disk(base)
    tally = Tally()
    for number, call in enumerate(recorder.log):
        if profile == "ci" and number % 2:
            disk.do(call)
            continue
        trees = [("killed", disk.now()), ("power cut", disk.cut(rng))]
        if profile == "long":
            trees += [("power cut", disk.cut(rng)) for _ in range(100)]
        for turn, (label, tree) in enumerate(trees):
            one = ("repair", "writer")[(number // 2 + turn) % 2]
            for after in ("repair", "writer") if profile == "long" else (one,):
                tally.states += 1
                state = State(f"{label} before call {number}, {call}, then a {after}", tree, {})
                tally.check(state, lambda state, after=after: judge(state.tree, after, originals, left))
        disk.do(call)
    figures("crashes inside repair", calls=len(recorder.log), states=tally.states, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])
    assert len(recorder.log) > 50


@pytest.mark.parametrize("damaged", ["rows", "what they follow"])
def test_what_is_left_of_a_segment_taken_back_goes_with_its_rows(tmp_path: Path, damaged: str) -> None:
    """A part that only the owner of an open segment explains is no missing segment once it is new."""
    path, kept = tmp_path / NAME, tmp_path / "kept"
    write(path, finalize=True)
    last = ROWS // SEGMENT_ROWS
    shutil.copytree(path, kept)
    with zarrow.Writer(path, mode="a") as writer:
        append(writer, np.arange(2))
    for name in (f"table/part-{last:08d}.parquet", f"embeddings.zarr/e/c/{last}/0"):
        shutil.copy(kept / name, path / name)  # as a copy of a live store may have them
    (slot,) = (one for one in (path / "open").iterdir() if one.is_dir())
    if damaged == "rows":
        (slot / "e.rows").unlink()
    else:
        owner = Owner.decode((slot / "owner.json").read_bytes(), "owner")
        (slot / "owner.json").write_bytes(dataclasses.replace(owner, sequence=1).encode())
    assert not zarrow.verify(path).ok
    zarrow.repair(path)
    assert zarrow.verify(path).ok
    with zarrow.open(path, partial=True) as store:
        assert len(store) == (last * SEGMENT_ROWS if damaged == "rows" else ROWS + 2)
    zarrow.Writer(path, mode="a").finalize()
