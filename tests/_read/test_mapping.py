"""Mapping — shards as one piece of memory, without copies."""

import gc
import mmap
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zarrow._read import mapping
from zarrow._read.mapping import JoinedRows, RowsPerFile, map_rows
from zarrow._read.shard_files import ShardFile
from zarrow._storage.reading import open_file
from zarrow.errors import CorruptionError, StoreChangedError

ROWS = 1000
FILE_ROWS = 256
INDEX = b"behind the rows lies the shard index"


def no_guard():
    """The store is the one that was opened."""


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(ROWS, 16)).astype(np.float32)


def write(folder: Path, rows: np.ndarray, file_rows: int = FILE_ROWS) -> list[ShardFile]:
    files = []
    for number, start in enumerate(range(0, len(rows), file_rows)):
        path = folder / f"{number}.shard"
        path.write_bytes(rows[start : start + file_rows].tobytes() + INDEX)
        files.append(ShardFile(path.parent, path.name, path.stat().st_size))
    return files


def mapped(files, rows, file_rows=FILE_ROWS, guard=no_guard, first_row=0):
    return map_rows(
        rows=len(rows),
        file_rows=file_rows,
        row_shape=rows.shape[1:],
        dtype=rows.dtype,
        locate=files.__getitem__,
        guard=guard,
        first_row=first_row,
    )


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture(params=["joined", "per file"])
def found(request, tmp_path, vectors, monkeypatch):
    if request.param == "per file":
        monkeypatch.setattr(mapping, "_max_maps", lambda: 0)
    rows = mapped(write(tmp_path, vectors), vectors)
    assert isinstance(rows, JoinedRows if request.param == "joined" else RowsPerFile)
    return rows


@pytest.mark.parametrize(("start", "stop"), [(0, ROWS), (0, 1), (255, 257), (256, 512), (999, 1000), (5, 5)])
def test_reads_any_run_of_rows(found, vectors, start, stop):
    """Rows that follow each other come back as they were written, across files too."""
    np.testing.assert_array_equal(found.read(start, stop), vectors[start:stop])


def test_takes_rows_in_any_order(found, vectors):
    """A gather keeps the order asked for, and rows that are asked for twice come twice."""
    rows = np.array([999, 0, 255, 256, 0, 999, 512])
    np.testing.assert_array_equal(found.take(rows), vectors[rows])
    assert found.take(np.empty(0, np.int64)).shape == (0, 16)


@pytest.mark.parametrize("count", [7, 1000])
def test_a_large_gather_is_that_of_a_small_one(tmp_path, vectors, monkeypatch, count):
    """Where several threads gather, every row comes to its place, in a buffer that was given, too."""
    monkeypatch.setattr(mapping, "_PIECE_BYTES", 100)
    found = mapped(write(tmp_path, vectors), vectors)
    rows = np.random.default_rng(1).integers(0, ROWS, count)
    np.testing.assert_array_equal(found.take(rows), vectors[rows])
    out = np.full((count, 16), np.nan, np.float32)
    assert found.take(rows, out) is out
    np.testing.assert_array_equal(out, vectors[rows])


def test_takes_into_a_buffer(found, vectors):
    """A gather fills the buffer that it is given."""
    rows = np.array([3, 700, 3])
    out = np.full((3, 16), np.nan, np.float32)
    assert found.take(rows, out) is out
    np.testing.assert_array_equal(out, vectors[rows])


def test_the_whole_array_is_the_files_themselves(tmp_path, vectors):
    """All files together are one array without a copy: a change of a file shows in it."""
    rows = mapped(write(tmp_path, vectors), vectors)
    whole = rows.read(0, ROWS)
    with (tmp_path / "2.shard").open("r+b") as file:
        file.write(np.float32(42).tobytes())
    assert whole[512, 0] == 42
    assert not whole.flags.owndata
    assert not whole.flags.writeable
    assert np.shares_memory(whole, rows.read(300, 301))


def test_nothing_is_opened_before_it_is_asked_for(tmp_path, vectors):
    """Reading a row maps the file of that row and no other."""
    rows = mapped(write(tmp_path, vectors), vectors)
    assert maps_of(tmp_path) == 0
    rows.read(300, 310)
    assert maps_of(tmp_path) == 1
    rows.take(np.array([0, 999]))
    assert maps_of(tmp_path) == 3


def test_a_view_outlives_files_and_owner(tmp_path, vectors):
    """An array that was handed out stays readable when the files are deleted and everything else is gone."""
    rows = mapped(write(tmp_path, vectors), vectors)
    view = rows.read(200, 600)
    del rows
    gc.collect()
    for path in tmp_path.iterdir():
        path.unlink()
    np.testing.assert_array_equal(view, vectors[200:600])


def test_memory_is_given_back_with_the_last_view(tmp_path, vectors):
    """When the last array is gone, nothing stays mapped and no file open."""
    opened = len(os.listdir("/proc/self/fd"))
    rows = mapped(write(tmp_path, vectors), vectors)
    view = rows.read(0, ROWS)[10:20]
    del rows
    gc.collect()
    assert maps_of(tmp_path) == 4
    del view
    gc.collect()
    assert maps_of(tmp_path) == 0
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("size_bytes", [0, 100, 16_384])
def test_a_truncated_file_is_an_error_and_spares_the_others(tmp_path, vectors, size_bytes):
    """A file that was cut off is named, with its segment and rows, in place of killing the process."""
    files = write(tmp_path, vectors)
    os.truncate(files[1].where, size_bytes)
    rows = mapped(files, vectors)
    with pytest.raises(CorruptionError, match=r"1\.shard.*segment 1 \(rows 256 to 512\)"):
        rows.read(0, ROWS)
    with pytest.raises(CorruptionError, match="segment 1"):
        rows.take(np.array([300]))
    np.testing.assert_array_equal(rows.read(512, ROWS), vectors[512:])
    np.testing.assert_array_equal(rows.take(np.array([0, 999])), vectors[[0, 999]])


def test_a_missing_file_is_an_error_and_spares_the_others(tmp_path, vectors):
    """A file that is gone is named, with its segment and rows."""
    files = write(tmp_path, vectors)
    files[3].where.unlink()
    rows = mapped(files, vectors)
    with pytest.raises(CorruptionError, match=r"3\.shard.*segment 3 \(rows 768 to 1000\) is missing"):
        rows.read(700, 800)
    np.testing.assert_array_equal(rows.read(0, 768), vectors[:768])


def test_a_replaced_store_explains_a_missing_file(tmp_path, vectors):
    """If the store itself is another one by now, that is said, not that a file is missing."""

    def guard():
        raise StoreChangedError("the store was replaced")

    files = write(tmp_path, vectors)
    for file in files:
        file.where.unlink()
    with pytest.raises(StoreChangedError):
        mapped(files, vectors, guard=guard).read(0, 1)


def test_a_directory_in_place_of_a_file_is_an_error(tmp_path, vectors):
    """What is no regular file is not mapped."""
    files = write(tmp_path, vectors)
    files[0].where.unlink()
    files[0].where.mkdir()
    with pytest.raises(CorruptionError, match="not a regular file"):
        mapped(files, vectors).read(0, 1)


def test_rows_that_fill_no_pages_are_mapped_file_by_file(tmp_path):
    """Rows of an odd size are read all the same, and without a copy inside of a file."""
    odd = np.arange(300 * 3, dtype=np.float64).reshape(300, 3)
    assert 100 * 3 * 8 % mmap.PAGESIZE
    rows = mapped(write(tmp_path, odd, 100), odd, 100)
    assert isinstance(rows, RowsPerFile)
    np.testing.assert_array_equal(rows.read(0, 300), odd)
    np.testing.assert_array_equal(rows.take(np.array([299, 0, 100])), odd[[299, 0, 100]])
    assert not rows.read(110, 190).flags.owndata
    assert not rows.read(110, 190).flags.writeable


def test_rows_of_one_file_need_fill_no_pages(tmp_path):
    """A single file is one array whatever the size of its rows."""
    odd = np.arange(99 * 3, dtype=np.float64).reshape(99, 3)
    rows = mapped(write(tmp_path, odd, 100), odd, 100)
    assert isinstance(rows, JoinedRows)
    np.testing.assert_array_equal(rows.read(0, 99), odd)


def test_few_maps_are_kept_at_a_time(tmp_path, vectors, monkeypatch):
    """Where files are mapped one by one, those not used for long are let go, and come back when wanted."""
    monkeypatch.setattr(mapping, "_max_maps", lambda: 0)
    monkeypatch.setattr(mapping, "_MAPS_KEPT", 2)
    rows = mapped(write(tmp_path, vectors), vectors)
    for start in range(0, ROWS, 100):
        np.testing.assert_array_equal(rows.read(start, start + 50), vectors[start : start + 50])
        gc.collect()
        assert maps_of(tmp_path) <= 3
    np.testing.assert_array_equal(rows.read(0, 50), vectors[:50])


def test_maps_are_let_go_when_the_process_may_have_no_more(tmp_path, vectors, monkeypatch):
    """Where the kernel refuses a map, those of other files make room."""
    limit, put = 2, mapping._Region.put

    def limited(region, *args):
        gc.collect()
        if maps_of(tmp_path) >= limit:
            raise OSError(12, "so many maps")
        put(region, *args)

    monkeypatch.setattr(mapping, "_max_maps", lambda: 0)
    monkeypatch.setattr(mapping._Region, "put", limited)
    rows = mapped(write(tmp_path, vectors), vectors)
    np.testing.assert_array_equal(rows.take(np.arange(ROWS)), vectors)
    limit = 0
    with pytest.raises(OSError, match="so many maps"):
        mapped(write(tmp_path, vectors), vectors).read(0, 1)


def test_no_address_space_is_no_obstacle(tmp_path, vectors, monkeypatch):
    """If the system gives no room for the whole array, files are mapped one by one."""

    class Refused(JoinedRows):
        def __init__(self, *args):
            raise OSError(12, "no memory")

    monkeypatch.setattr(mapping, "JoinedRows", Refused)
    rows = mapped(write(tmp_path, vectors), vectors)
    np.testing.assert_array_equal(rows.read(0, ROWS), vectors)


def test_cold_rows_are_asked_for_and_come_back_right(tmp_path):
    """Rows that are not in memory are gathered right, and a scan afterwards too."""
    data = np.random.default_rng(1).normal(size=(4096, 1024)).astype(np.float32)
    files = write(tmp_path, data, 1024)
    for file in files:
        fd = os.open(file.where, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    rows = mapped(files, data, 1024)
    assert isinstance(rows, JoinedRows)
    chosen = np.random.default_rng(2).permutation(4096)[:200]
    np.testing.assert_array_equal(rows.take(chosen), data[chosen])
    rows.prefetch(0, 2048)
    np.testing.assert_array_equal(rows.read(0, 4096), data)


def test_a_file_that_is_mostly_in_memory_is_not_taken_for_warm(tmp_path):
    """One row in ten that is missing is noticed, lest the kernel reads far ahead of every such row."""
    data = np.random.default_rng(1).normal(size=(4096, 1024)).astype(np.float32)
    (file,) = write(tmp_path, data, 4096)
    chosen = np.sort(np.random.default_rng(2).permutation(4096)[:200])
    missing = chosen[10::10]
    with open(file.where, "rb") as source:
        os.fsync(source.fileno())
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for row in np.setdiff1d(chosen, missing).tolist():
            os.pread(source.fileno(), 4096, row * 4096)
    rows = mapped([file], data, 4096)
    rows.read(0, 1)
    if any(rows._is_resident(row) for row in missing.tolist()):
        pytest.skip("a file system that keeps what nobody needs, or does not tell")
    assert rows._is_cold(chosen, mapping._disk_reads())
    np.testing.assert_array_equal(rows.take(chosen), data[chosen])
    assert not rows._is_cold(chosen, mapping._disk_reads())


def test_an_open_file_does_not_mind_what_becomes_of_its_name(tmp_path, vectors):
    """A file that was opened beforehand is read from there, though another one has its name by now."""
    files = write(tmp_path, vectors[:100])
    opened = replace(files[0], file=open_file(files[0].root, files[0].path))
    files[0].where.unlink()
    files[0].where.write_bytes(bytes(10_000))
    np.testing.assert_array_equal(mapped([opened], vectors[:100]).read(0, 100), vectors[:100])


def test_a_file_of_an_open_segment_may_be_larger_than_its_rows(tmp_path, vectors):
    """A file whose size is not known must hold the rows, and may hold more."""
    file = replace(write(tmp_path, vectors[:100])[0], size_bytes=None)
    np.testing.assert_array_equal(mapped([file], vectors[:50]).read(0, 50), vectors[:50])
    with pytest.raises(CorruptionError):
        mapped([file], vectors[:200]).read(0, 200)
