"""Copy — the committed rows of a store, also of one that is being written, as a store of their own."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

import zarrow
from zarrow._storage import files
from zarrow.cli import app
from zarrow.errors import (
    CorruptionError,
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    WriteFailedError,
)


def append(writer: zarrow.Writer, start: int, stop: int) -> None:
    """Append rows that say their number."""
    ids = np.arange(start, stop)
    vectors = np.repeat(ids[:, None], 3, axis=1).astype("f4")
    writer.append({"id": ids}, {"e": vectors, "z": vectors}, sample_index=ids)


def write(path: Path, rows: int, *, finalize: bool = True) -> Path:
    """Write a store."""
    with zarrow.Writer(path, keys=["id"], segment_rows=16, codecs={"z": "zstd"}) as writer:
        for start in range(0, rows, 10):
            append(writer, start, min(start + 10, rows))
        writer.finalize() if finalize else writer.close()
    return path


def ids_of(path: Path) -> list[int]:
    """Return the identifiers, after comparing them with the vectors."""
    with zarrow.open(path, partial=True) as store:
        ids = store.table(["id"])["id"].to_pylist()
        assert store["e"][:][:, 0].tolist() == store["z"][:][:, 0].tolist() == ids
        return ids


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a complete store with an index and a derived array."""
    path = write(tmp_path / "run.zarrow", 40)
    zarrow.build_index(path)
    zarrow.add_array(path, "score", np.arange(40, dtype="f4")[:, None])
    return path


def test_a_complete_store_is_copied_with_all_it_has(store, tmp_path):
    """Rows, index and derived arrays are those of the source, and so is its identity."""
    done = zarrow.copy(store, tmp_path / "copy.zarrow")
    assert (done.complete, done.rows, done.segments, done.left_rows) == (True, 40, 3, 0)
    assert zarrow.verify(tmp_path / "copy.zarrow", "full").findings == ()
    copy, source = zarrow.open(tmp_path / "copy.zarrow"), zarrow.open(store)
    assert ids_of(copy.path) == ids_of(store)
    assert copy.identity == source.identity
    assert copy["score"][:].tolist() == source["score"][:].tolist()
    assert copy.locate({"id": [7]}).tolist() == [7]
    assert (copy.path / "index/keys.index").exists()
    assert sorted(os.listdir(tmp_path)) == ["copy.zarrow", "run.zarrow"]


def test_rows_that_are_not_committed_are_not_copied(tmp_path):
    """The copy of an incomplete store is incomplete, sound, and can be continued."""
    path = write(tmp_path / "run.zarrow", 40, finalize=False)
    done = zarrow.copy(path, tmp_path / "copy.zarrow")
    assert (done.complete, done.rows, done.left_rows) == (False, 32, 8)
    assert zarrow.verify(done.path).findings == ()
    with zarrow.Writer(done.path, mode="a") as writer:
        append(writer, 32, 50)
        writer.finalize()
    assert ids_of(Path(done.path)) == list(range(50))
    assert ids_of(path) == list(range(40))


def test_a_store_that_is_written_is_copied_as_it_was(tmp_path):
    """Each copy of a live store, which grows, is completed and taken back, is a sound prefix."""
    path, stopped, rows = tmp_path / "run.zarrow", threading.Event(), 10

    def run() -> None:
        nonlocal rows
        while not stopped.is_set():
            with zarrow.Writer(path, mode="a") as writer:
                append(writer, rows, rows + 21)
                rows += 21
                writer.finalize()

    write(path, rows)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        for number in range(15):
            done = zarrow.copy(path, tmp_path / f"{number}.zarrow")
            assert ids_of(Path(done.path)) == list(range(done.rows))
            assert zarrow.verify(done.path).ok
    finally:
        stopped.set()
        thread.join()


class Killed(BaseException):
    """The process is dead."""


def test_a_copy_that_was_killed_is_no_store_and_goes_on(store, tmp_path):
    """After each step at which it is killed there is no store, and copying again completes it."""
    target, calls = tmp_path / "copy.zarrow", 0
    while not target.exists():
        left, calls = calls, calls + 7

        class Dying(files.Calls):
            def rename(self, source: str, target: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                super().rename(source, target)

        with mock.patch.object(files, "calls", Dying()):
            try:
                zarrow.copy(store, target)
            except Killed:
                assert not target.exists()
        if not target.exists():
            grows = target.with_name("copy.zarrow.incoming")
            written = {one: one.stat().st_ino for one in grows.glob("segments/*.json")}
            zarrow.copy(store, target)
            moved = {
                grows / one.relative_to(target): one.stat().st_ino for one in target.glob("segments/*.json")
            }
            assert written.items() <= moved.items()  # not copied again
            assert zarrow.verify(target).findings == ()
            assert ids_of(target) == list(range(40))
            shutil.rmtree(target)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("run.zarrow", InvalidInputError, "outside of the store"),
        ("run.zarrow/copy", InvalidInputError, "outside of the store"),
        (".", InvalidInputError, "not contain it"),
        ("other.zarrow", StoreExistsError, "there is a store already"),
        ("notes", StoreExistsError, "there is something else already"),
        ("nowhere/copy.zarrow", WriteFailedError, "no such directory: create it"),
        ("busy.zarrow", NotAStoreError, "no unfinished copy of this store: move it away"),
    ],
)
def test_a_bad_target_is_refused(store, tmp_path, target, error, message):
    """What is there stays as it is, and nothing is written."""
    write(tmp_path / "other.zarrow", 3)
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "busy.zarrow.incoming").mkdir()
    (tmp_path / "busy.zarrow.incoming/mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        zarrow.copy(store, tmp_path / target)
    assert sorted(one for one in tmp_path.rglob("*") if "busy.zarrow.incoming/open" not in str(one)) == before


def test_damage_is_not_copied(store, tmp_path):
    """A flipped bit is found, and there is no copy."""
    shard = store / "embeddings.zarr/e/c/1/0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match="nothing was copied"):
        zarrow.copy(store, tmp_path / "copy.zarrow")
    shard.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        zarrow.copy(store, tmp_path / "copy.zarrow")
    assert not (tmp_path / "copy.zarrow").exists()


def test_a_private_store_stays_private(store, tmp_path):
    """Directories and files have the modes of the source before they have a byte."""
    os.chmod(store, 0o700)
    os.chmod(store / "zarrow.json", 0o600)
    real, modes = files.write, []

    def write_and_look(fd, data, offset):
        modes.append(stat.S_IMODE(os.stat(tmp_path / "copy.zarrow.incoming").st_mode))
        real(fd, data, offset)

    with mock.patch.object(files, "write", write_and_look):
        zarrow.copy(store, tmp_path / "copy.zarrow")
    assert set(modes) == {0o700}
    assert stat.S_IMODE((tmp_path / "copy.zarrow").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "copy.zarrow/zarrow.json").stat().st_mode) == 0o600


def test_the_command_says_what_it_copied(store, tmp_path):
    """``zarrow copy`` prints the rows, or with --json one object."""
    found = CliRunner().invoke(app, ["copy", str(store), str(tmp_path / "one.zarrow")])
    assert found.exit_code == 0
    assert "has 40 rows" in found.output
    found = CliRunner().invoke(app, ["copy", str(store), str(tmp_path / "two.zarrow"), "--json"])
    assert json.loads(found.stdout)["rows"] == 40
