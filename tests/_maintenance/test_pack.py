"""Pack — a packed store has the same rows, and the old store stays until the new one is in place."""

import errno
import math
import os
import random
import sys

import numpy as np
import pyarrow as pa
import pytest
from crash.disk import Disk, Recorder, Tree
from crash.states import State, Tally
from crash.workloads import calls, scratch
from typer.testing import CliRunner

import zarrow
from zarrow import cli
from zarrow._format import layout
from zarrow._maintenance import external_sort, pack
from zarrow._storage import files
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    MissingExtraError,
    StoreChangedError,
    StoreExistsError,
    StoreLockedError,
    UnknownNameError,
    WriteFailedError,
)

ROWS = 700


def make(path, rows=ROWS, *, codecs=None, segment_rows=64, seed=0):
    """Write and finalize a store with unordered rows and columns of many kinds."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(rows)
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("word", pa.dictionary(pa.int32(), pa.string())),
            ("when", pa.timestamp("us", "UTC")),
            ("maybe", pa.float32()),
        ]
    )
    arrays = {"embed": ((5,), "float32"), "pair": ((2, 3), "int16")}
    with zarrow.Writer(
        path,
        arrays=arrays,
        schema=schema,
        keys=["word", "id"],
        codecs=codecs,
        segment_rows=segment_rows,
        provenance={"run": "the first"},
    ) as writer:
        for start in range(0, rows, 50):
            here = places[start : start + 50]
            maybe = [None if p % 5 == 0 else math.nan if p % 5 == 1 else -p for p in here.tolist()]
            table = {
                "id": here,
                "word": [f"w{place % 7}" for place in here],
                "when": pa.array(1_700_000_000_000_000 + here % 13, pa.timestamp("us", "UTC")),
                "maybe": pa.array(maybe, pa.float32()),
            }
            pairs = np.repeat(here, 6).reshape(-1, 2, 3).astype(np.int16)
            vectors = {"embed": vectors_of(here), "pair": pairs}
            writer.append(table, vectors, here)
        writer.finalize()
    return path


def vectors_of(places):
    return np.sin(np.arange(5) + np.asarray(places)[:, None]).astype(np.float32)


def assert_whole(path, expected=None, rows=ROWS):
    """Assert that every row is there once, with its own values, in the order expected."""
    with zarrow.open(path) as store:
        table = store.table()
        ids = table["id"].to_numpy()
        assert sorted(ids.tolist()) == list(range(rows))
        assert table["row"].to_pylist() == list(range(rows))
        assert table["sample_index"].to_pylist() == ids.tolist()
        assert table["word"].to_pylist() == [f"w{i % 7}" for i in ids]
        assert table["maybe"].is_null().to_pylist() == [i % 5 == 0 for i in ids.tolist()]
        np.testing.assert_array_equal(store["embed"][:], vectors_of(ids))
        np.testing.assert_array_equal(store["pair"][:, 1, 2], ids)
        assert store.provenance["run"] == "the first"
        assert store.keys == ("word", "id")
        assert str(table.schema.field("word").type) == "dictionary<values=string, indices=int32, ordered=0>"
        if expected is not None:
            assert ids.tolist() == expected
    assert zarrow.verify(path, level="full").ok


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "s.zarrow")


# Results


@pytest.mark.parametrize("codecs", [None, "blosc"])
def test_rows_are_put_into_the_order_of_the_dataset(tmp_path, codecs):
    """Sorted by sample_index, every row keeps its columns and vectors, with any codec."""
    path = make(tmp_path / "s.zarrow", codecs=codecs)
    before = zarrow.open(path)
    uuid, kept = before.uuid, before["embed"].codecs
    zarrow.pack(path, order="sample_index")
    assert_whole(path, list(range(ROWS)))
    after = zarrow.open(path)
    assert after.uuid != uuid
    assert (after["embed"].codecs, after.segment_rows) == (kept, 64)
    assert sorted(os.listdir(tmp_path)) == ["s.zarrow"]


def test_rows_are_sorted_by_several_columns_however_small_the_memory(store, monkeypatch):
    """Rows gathered in many small blocks are in the same order as after a single sort."""
    monkeypatch.setattr(pack, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(pack, "MAX_BLOCK_ROWS", 33)
    zarrow.pack(store, order=["when", "word", "id"])
    assert_whole(store, sorted(range(ROWS), key=lambda i: (i % 13, f"w{i % 7}", i)))


def test_codecs_and_segments_change_and_rows_stay(store, tmp_path):
    """A new codec for one array and a new segment size leave rows, order and the old store unchanged."""
    order = zarrow.open(store).table()["id"].to_pylist()
    zarrow.pack(store, tmp_path / "t.zarrow", codecs={"embed": "zstd"}, segment_rows=256)
    assert_whole(tmp_path / "t.zarrow", order)
    new = zarrow.open(tmp_path / "t.zarrow")
    assert [codec["name"] for codec in new["embed"].codecs] == ["bytes", "zstd"]
    assert new["pair"].is_plain
    assert new.segment_rows == 256
    assert_whole(store, order)
    zarrow.pack(tmp_path / "t.zarrow", codecs="auto")
    found = zarrow.open(tmp_path / "t.zarrow").arrays
    assert [codec["name"] for codec in found["pair"].codecs] == ["bytes", "zstd"], "mostly zeros"
    zarrow.pack(tmp_path / "t.zarrow", codecs=None)
    assert zarrow.open(tmp_path / "t.zarrow")["embed"].is_plain
    assert_whole(tmp_path / "t.zarrow", order)


def test_rows_without_a_sample_index_stay_without(tmp_path):
    """A null sample_index stays with its row."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path) as writer:
        writer.append({"x": [5, 3]}, sample_index=[0, 1])
        writer.append({"x": [4, 1]})
        writer.finalize()
    with pytest.raises(InvalidInputError, match="only if all of them have one"):
        zarrow.pack(path, order="sample_index")
    zarrow.pack(path, order="x")
    assert zarrow.open(path).table().select(["x", "sample_index"]).to_pydict() == {
        "x": [1, 3, 4, 5],
        "sample_index": [None, 1, None, 0],
    }


def test_a_store_without_rows_or_arrays_can_be_packed(tmp_path):
    """A store without rows can be packed."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path, schema=pa.schema({"x": pa.int64()}), arrays={"v": (3, "float32")}) as writer:
        writer.finalize()
    zarrow.pack(path, order="x", codecs="zstd", segment_rows=8)
    assert zarrow.open(path)["v"].shape == (0, 3)


def test_what_is_in_order_is_left_alone(store):
    """Packing a store that is already as requested leaves it unchanged."""
    zarrow.pack(store, order="sample_index")
    uuid = zarrow.open(store).uuid
    zarrow.pack(store, order="sample_index")
    zarrow.pack(store, order=["id"], segment_rows=64)
    assert zarrow.open(store).uuid == uuid


# The command line


def test_the_command_line(store, tmp_path):
    """`zarrow pack` sorts, encodes and copies; `zarrow finalize --sort` is its shorthand."""
    run = CliRunner().invoke
    packed = str(tmp_path / "p.zarrow")
    options = ["--order", "word,id", "--codecs", "embed=zstd,pair=blosc", "--segment-rows", "128"]
    result = run(cli.app, ["pack", str(store), packed, *options])
    assert result.exit_code == 0, result.output
    assert "complete, 700 rows in 6 segments of 128" in result.output
    assert_whole(packed, sorted(range(ROWS), key=lambda i: (f"w{i % 7}", i)))
    result = run(cli.app, ["pack", packed, "--codecs", "none"])
    assert result.exit_code == 0, result.output
    assert zarrow.open(packed)["embed"].is_plain
    result = run(cli.app, ["finalize", packed, "--sort"])
    assert result.exit_code == 0, result.output
    assert_whole(packed, list(range(ROWS)))
    assert run(cli.app, ["pack", packed]).exit_code == 2
    assert run(cli.app, ["pack", packed, "--order", "nothing"]).exit_code == 2
    assert run(cli.app, ["pack", packed, "--codecs", "nothing"]).exit_code == 1
    assert_whole(packed, list(range(ROWS)))


def test_finalize_sorts_what_a_dead_run_left(tmp_path):
    """`zarrow finalize --sort` completes an incomplete store and puts the rows into the dataset's order."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path) as writer:
        for loader, place in ((1, 0), (0, 1), (1, 1), (0, 0)):
            writer.append({"dataloader_idx": [loader]}, {"v": np.full((1, 2), place)}, [place])
    result = CliRunner().invoke(cli.app, ["finalize", str(path), "--sort"])
    assert result.exit_code == 0, result.output
    table = zarrow.open(path).table()
    assert table["dataloader_idx"].to_pylist() == [0, 0, 1, 1]
    assert table["sample_index"].to_pylist() == [0, 1, 0, 1]


# Refusals


def test_what_is_refused(store, tmp_path):
    """A wrong argument is refused before anything is written or changed."""
    with pytest.raises(UnknownNameError, match="no column 'wordy'; did you mean 'word'"):
        zarrow.pack(store, order="wordy")
    with pytest.raises(InvalidInputError, match="segment_rows must be a power of two, got 100"):
        zarrow.pack(store, segment_rows=100)
    with pytest.raises(InvalidInputError, match="there is no array 'embd'"):
        zarrow.pack(store, codecs={"embd": "zstd"})
    for out in (store / "packed", store.parent):
        with pytest.raises(InvalidInputError, match="or around it"):
            zarrow.pack(store, out)
    with pytest.raises(StoreExistsError, match="there is a store already: pack to another path"):
        zarrow.pack(store, make(tmp_path / "t.zarrow", 50))
    with zarrow.Writer(tmp_path / "open.zarrow") as writer:
        writer.append({"x": [1]})
    with pytest.raises(IncompleteStoreError):
        zarrow.pack(tmp_path / "open.zarrow", codecs="zstd")
    listed = pa.table({"codes": [[1, 2]]})
    with zarrow.Writer(tmp_path / "lists.zarrow") as writer:
        writer.append(listed)
        writer.finalize()
    with pytest.raises(InvalidInputError, match="cannot be sorted by 'codes', which is list"):
        zarrow.pack(tmp_path / "lists.zarrow", order="codes")
    assert_whole(store)
    assert sorted(os.listdir(tmp_path)) == ["lists.zarrow", "open.zarrow", "s.zarrow", "t.zarrow"]


def test_rows_appended_meanwhile_are_not_lost(store):
    """Rows appended while the store is packed are kept; packing fails."""

    def append(what, done, total):
        if what == "write" and not done:
            with zarrow.Writer(store, mode="a") as writer:
                old = zarrow.open(store, partial=True)
                table, vectors = old.take([0], ["id", "word", "when", "maybe"])
                writer.append(table, vectors, [0])
                writer.finalize()

    with pytest.raises(StoreChangedError, match="it was written to while it was packed"):
        zarrow.pack(store, order="id", progress=append)
    assert zarrow.open(store).num_rows == ROWS + 1
    assert os.listdir(store.parent) == ["s.zarrow"]


def test_what_another_process_packs_or_writes_is_left_alone(store):
    """A second pack, or a writer that would replace the store, is refused, and the first pack continues."""
    with zarrow.Writer(store, mode="w") as writer:
        writer.append({"x": [1]})
        with pytest.raises(StoreLockedError, match="a Writer of this process has it open"):
            zarrow.pack(store, order="id")
        writer.finalize()
    assert zarrow.open(store).table()["x"].to_pylist() == [1]


def test_derived_arrays_move_with_their_rows(store):
    """An array that was computed from the rows belongs to the same rows afterwards."""
    ids = zarrow.open(store).table()["id"].to_numpy()
    zarrow.add_array(store, "double", 2 * ids[:, None], provenance={"made": "by doubling"})
    zarrow.pack(store, order="id", codecs="zstd")
    assert_whole(store, list(range(ROWS)))
    packed = zarrow.open(store)
    assert packed["double"][:, 0].tolist() == [2 * i for i in range(ROWS)]
    assert zarrow.open(store / "derived" / "double").provenance["made"] == "by doubling"
    zarrow.pack(store, segment_rows=128)
    assert zarrow.open(store)["double"][5:7].tolist() == [[10], [12]]


def test_damage_is_not_copied_under_a_fresh_checksum(store):
    """A flipped bit in the old store ends packing before a byte is written."""
    shard = store / layout.shard_path("embed", 2, 1)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"embed/c/2/0.*repair"):
        zarrow.pack(store, order="id")
    assert not store.with_name("s.zarrow.incoming").exists()


# Interruptions


@pytest.mark.parametrize("step", ["verify", "sort", "write", "verify the new store"])
def test_an_interrupted_one_leaves_the_old_store_and_nothing_else(store, step):
    """After Ctrl-C at any step the old store is unchanged, nothing else is left, and packing works again."""
    before = zarrow.open(store).uuid

    def interrupt(what, done, total):
        if what == step and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zarrow.pack(store, order="id", progress=interrupt)
    assert zarrow.open(store).uuid == before
    assert_whole(store)
    assert os.listdir(store.parent) == ["s.zarrow"]
    assert os.listdir(store / layout.OPEN_DIR) == []
    zarrow.pack(store, order="id")
    assert_whole(store, list(range(ROWS)))


def test_without_duckdb_only_the_order_stays(store, monkeypatch):
    """Sorting without DuckDB is refused before anything is written; recoding does not need it."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match="sorting rows needs DuckDB: pip install duckdb"):
        zarrow.pack(store, order="id")
    assert os.listdir(store.parent) == ["s.zarrow"]
    zarrow.pack(store, codecs="zstd")
    assert_whole(store)


def test_no_room_to_sort_leaves_the_old_store(store, monkeypatch):
    """If DuckDB runs out of memory the error says so, and the old store is unchanged."""
    monkeypatch.setattr(external_sort, "MEMORY_LIMITS", ("1kB",))
    with pytest.raises(WriteFailedError, match=r"DuckDB cannot sort the rows: .*s\.zarrow is as it was"):
        zarrow.pack(store, order="id")
    assert_whole(store)
    assert os.listdir(store.parent) == ["s.zarrow"]


class FullDisk(files.Calls):
    """Fails at the n-th write."""

    def __init__(self, writes):
        self.left = writes

    def pwrite(self, fd, data, offset):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(fd, data, offset)


@pytest.mark.parametrize("writes", [0, 3, 30])
def test_a_full_disk_leaves_the_old_store(store, monkeypatch, writes):
    """A full disk is reported, and the old store is unchanged."""
    monkeypatch.setattr(files, "calls", FullDisk(writes))
    with pytest.raises(
        WriteFailedError, match=r"No space left on device: .*s\.zarrow is as it was"
    ) as failed:
        zarrow.pack(store, order="id")
    assert "mode=" not in str(failed.value)
    monkeypatch.undo()
    assert_whole(store)
    assert os.listdir(store.parent) == ["s.zarrow"]


class Broken(files.Calls):
    """Has a disk that breaks at the exchange, or at a call after it."""

    def __init__(self, left, *, atomic):
        self.left, self.atomic, self.begun = left, atomic, False

    def _step(self):
        if self.begun:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def exchange(self, one, other):
        self.begun = True
        self._step()
        return super().exchange(one, other) if self.atomic else False

    def rename(self, source, target):
        self._step()
        super().rename(source, target)

    def fsync_dir(self, path):
        self._step()
        super().fsync_dir(path)

    def unlink(self, path):
        self._step()
        super().unlink(path)


@pytest.mark.parametrize("atomic", [True, False], ids=["at once", "three renames"])
def test_a_message_after_a_failed_exchange_is_true(tmp_path, monkeypatch, atomic):
    """Wherever the disk breaks, the error says whether the old store is at the path, or where it is."""
    monkeypatch.setattr(files, "scratch_name", lambda folder: folder / "tmp-0123456789abcdef")
    said = set()
    for left in range(12):
        store = make(tmp_path / f"{left}.zarrow", 60)
        uuid = zarrow.open(store).uuid
        with monkeypatch.context() as patched:
            patched.setattr(files, "calls", Broken(left, atomic=atomic))
            with pytest.raises(WriteFailedError) as failed:
                zarrow.pack(store, codecs="zstd")
        message = str(failed.value)
        places = [store, store.with_name(store.name + ".incoming"), *tmp_path.glob(f"{left}.zarrow.????????")]
        places += [*(store / "open").glob("tmp-*")]
        old = [one for one in places if one.exists() and zarrow.open(one, partial=True).uuid == uuid]
        if "is as it was" in message:
            said.add("old")
            assert old == [store], message
            continue
        said.add("new")
        new = next(one for one in places if one.exists() and one not in old)
        assert zarrow.open(new).complete
        assert str(new) in message, message
        for one in old:
            assert str(one) in message, message
    assert said == {"old", "new"}


def judge(state):
    """Check that the path holds all old rows or all new ones, and can be packed again."""
    with scratch() as top:
        state.tree.put(top)
        path = top / "s.zarrow"
        expected = list(range(150))
        ids = zarrow.open(path).table()["id"].to_pylist()
        assert sorted(ids) == expected
        if state.promise:
            assert ids == expected
        zarrow.pack(path, order="id", codecs="zstd")
        assert_whole(path, expected, 150)
        assert os.listdir(top) == ["s.zarrow"]


@pytest.mark.slow
def test_the_store_is_whole_at_every_instant(figures):
    """After a kill or power cut at any call, the path holds the old store or the new one."""
    rng = random.Random(4)
    with scratch() as top:
        make(top / "s.zarrow", 150)
        base = Tree.take(top)
        recorder = Recorder(top)
        with calls(recorder):
            zarrow.pack(top / "s.zarrow", order="id", codecs="zstd")
    disk, tally = Disk(base), Tally()
    for number, call in enumerate(recorder.log):
        if number % 4 == 0 or call.name in ("exchange", "rename", "remove"):
            label, tree = ("killed", disk.now()) if rng.random() < 0.5 else ("power cut", disk.cut(rng))
            tally.states += 1
            tally.check(State(f"{label} before call {number}, {call}", tree, {}), judge)
        disk.do(call)
    tally.check(State("at the end", disk.now(), {"new": True}), judge)
    figures("packing a store", calls=len(recorder.log), states=tally.states, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])


def test_what_a_killed_pack_left_is_taken_over(store, tmp_path):
    """A pack to another path that was killed leaves nothing there, and the next one succeeds."""
    out = tmp_path / "out.zarrow"
    child = os.fork()
    if not child:

        def die(step: str, done: int, _total: int) -> None:
            if step == "write" and done > 100:
                os._exit(9)

        zarrow.pack(store, out, codecs="zstd", progress=die)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert sorted(os.listdir(tmp_path)) == sorted({store.name, "out.zarrow.incoming"})
    zarrow.pack(store, out, codecs="zstd")
    assert sorted(os.listdir(tmp_path)) == sorted({store.name, "out.zarrow"})
    assert zarrow.open(out).table().num_rows == ROWS
    with pytest.raises(StoreExistsError, match="there is a store already: pack to another path"):
        zarrow.pack(store, out, codecs="zstd")


def test_a_file_system_without_hard_links_is_named(store, tmp_path, monkeypatch):
    """Where no file can have a second name, the message says so, and the old store stays."""

    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), target)

    monkeypatch.setattr(files.calls, "link", link)
    said = r"hard links, .* are not possible here: write to another file system .* is as it was"
    for out in (None, tmp_path / "out.zarrow"):
        with pytest.raises(WriteFailedError, match=said):
            zarrow.pack(store, out, codecs="zstd")
    monkeypatch.undo()
    assert zarrow.open(store).num_rows == ROWS
