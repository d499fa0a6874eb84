"""Cache — what was read from a bucket is read from this machine the next time, within bounds."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import obstore
import pyarrow.compute as pc
import pytest

import zarrow
from zarrow._storage.object_cache import BLOCK_BYTES, Blocks
from zarrow.errors import CorruptionError, InvalidInputError, StoreChangedError

ROWS = 20_000


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Return a complete store of ten segments of half a MiB."""
    path = tmp_path_factory.mktemp("local") / "run.zarrow"
    vectors = np.random.default_rng(0).standard_normal((ROWS, 64)).astype("float32")
    with zarrow.Writer(path, keys=["id"], segment_rows=2048, codecs={"packed": "zstd"}) as writer:
        writer.append({"id": range(ROWS)}, {"plain": vectors, "packed": vectors.round(1)})
        writer.finalize()
    zarrow.build_index(path)
    return path


@pytest.fixture
def url(bucket, local) -> str:
    """Return the URL of a copy of it."""
    target = bucket.url("run.zarrow")
    zarrow.copy(local, target, storage_options=bucket.options)
    bucket.requests.clear()
    return target


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read(store: zarrow.Store) -> list[object]:
    rows = np.random.default_rng(1).integers(0, ROWS, 300)
    return [
        np.asarray(store["plain"]),
        store["plain"][rows],
        store["packed"][rows],
        store["plain"].read(100, 5000, check="crc"),
        store.table(filter=pc.field("id") > 15_000).to_pydict(),
        store.locate({"id": [5, -1, 19_999]}, missing=-1).tolist(),
    ]


def same(one: list[object], other: list[object]) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True)
    )


def test_the_second_time_no_byte_is_read_again(bucket, url, local, tmp_path):
    """The first time, each byte is read once; then, in any process, objects are asked for their tags only."""
    options = {"storage_options": bucket.options, "cache": tmp_path / "cache"}
    right = read(zarrow.open(local))
    store = zarrow.open(url, **options)
    assert len(bucket.requests) <= 3
    assert same(read(store), right)
    spans: dict[str, list[tuple[int, int]]] = {}
    for one in bucket.requests:
        if one.start is not None and one.method == "GET":
            spans.setdefault(one.path, []).append((one.start, one.stop))
    for path, taken in spans.items():
        taken.sort()
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(taken)), path
    bucket.requests.clear()
    for again in (zarrow.open(url, **options), pickle.loads(pickle.dumps(store))):
        assert same(read(again), right)
    assert {one.method for one in bucket.requests} == {"HEAD"}
    bucket.requests.clear()
    assert zarrow.open(url, **options).num_rows == ROWS
    assert len(bucket.requests) <= 3


def test_checked_rows_are_read_once(bucket, url, local):
    """Comparing rows with their checksums reads the chunks that they are in, each once."""
    store, here = zarrow.open(url, storage_options=bucket.options), zarrow.open(local)
    rows = np.array([7, 19_999, 8, 4000, 7])
    chunk = store["plain"].chunks[0] * 256
    for read, right, most in (
        (
            lambda: store["plain"].read(100, 9000, check="crc"),
            here["plain"][100:9000],
            8900 * 256 + 2 * chunk,
        ),
        (lambda: store["plain"].take(rows, check="crc"), here["plain"][rows], 3 * chunk),
        (lambda: store.take(rows, [], ["plain"], check="crc")[1]["plain"], here["plain"][rows], 3 * chunk),
    ):
        bucket.requests.clear()
        assert np.array_equal(read(), right)
        taken = [one for one in bucket.requests if "/plain/c/" in one.path and one.method == "GET"]
        assert sum(one.stop - one.start for one in taken) <= most


def test_an_object_that_was_replaced_is_not_taken_from_it(bucket, url, local, tmp_path):
    """Another store in its place is found, and its own rows are shown when it is opened anew."""
    options = {"storage_options": bucket.options, "cache": tmp_path / "cache"}
    store = zarrow.open(url, **options)
    assert store["plain"][:10].any()
    other = tmp_path / "other.zarrow"
    with zarrow.Writer(other, keys=["id"], segment_rows=2048) as writer:
        arrays = {name: np.zeros((ROWS, 64), "f4") for name in ("plain", "packed")}
        writer.append({"id": range(ROWS)}, arrays)
        writer.finalize()
    for path in other.rglob("*"):
        if path.is_file():
            obstore.put(store.path.client, str(path.relative_to(other)), path.read_bytes())
    with pytest.raises(StoreChangedError):
        store["plain"][:10]
    with pytest.raises(StoreChangedError):
        store["plain"][3000:9000]
    with pytest.raises(StoreChangedError):
        store.refresh()
    assert not zarrow.open(url, **options)["plain"][:10].any()


def test_what_is_kept_may_be_damaged_cut_or_gone(bucket, url, local, tmp_path):
    """A block that is not what was kept is read again; a disk that refuses makes nothing wrong."""
    cache = tmp_path / "cache"
    options = {"storage_options": bucket.options, "cache": cache}
    right = read(zarrow.open(local))
    assert same(read(zarrow.open(url, **options)), right)
    files = sorted(file for file in cache.rglob("*") if file.is_file())
    for number, file in enumerate(files):
        data = bytearray(file.read_bytes())
        if number % 3 == 0:
            data[len(data) // 2] ^= 8
            file.write_bytes(data)
        elif number % 3 == 1:
            file.write_bytes(data[: len(data) // 2])
        else:
            file.unlink()
    assert same(read(zarrow.open(url, **options)), right)
    for folder in cache.iterdir():
        if folder.is_dir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        folder.write_bytes(b"not a folder") if not folder.exists() else None
    assert same(read(zarrow.open(url, **options)), right)
    store = zarrow.open(url, **options)
    obstore.delete(store.path.client, "embeddings.zarr/plain/c/3/0")
    with pytest.raises(CorruptionError, match="missing"):
        store["plain"][3 * 2048 : 3 * 2048 + 5]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="directory of the cache"):
        zarrow.open(url, storage_options=bucket.options, cache=tmp_path / "file")
    with pytest.raises(InvalidInputError, match="cache_bytes"):
        zarrow.open(url, **options, cache_bytes=-1)


def test_it_stays_within_its_limit(bucket, url, local, tmp_path):
    """However much is read, the directory holds no more than the limit, the blocks used last."""
    cache, limit = tmp_path / "cache", 40 * BLOCK_BYTES
    options = {"storage_options": bucket.options, "cache": cache, "cache_bytes": limit}
    store, most = zarrow.open(url, **options), 0
    for start in range(0, ROWS, 2000):
        assert np.array_equal(
            store["plain"][start : start + 2000], zarrow.open(local)["plain"][start : start + 2000]
        )
        most = max(most, size_of(cache))
    assert most <= limit
    bucket.requests.clear()
    store["plain"][ROWS - 2000 :]
    assert {one.method for one in bucket.requests} == {"HEAD"}
    for blocks in (Blocks(tmp_path / "none", 0), Blocks(tmp_path / "few", 10)):
        blocks.put("a", b"x" * 100)
        assert blocks.get("a") is None


def test_a_killed_process_leaves_nothing_that_counts(tmp_path):
    """Blocks that a process was writing when it was killed are not read, and removed after an hour."""
    code = (
        "import sys\nfrom zarrow._storage.object_cache import Blocks\n"
        "blocks, number = Blocks(sys.argv[1], 1 << 30), 0\n"
        "while True:\n    blocks.put(f'{number % 50}', b'%08d' % (number % 50) * 8192)\n    number += 1\n"
        "    print(number, flush=True) if number == 100 else None"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        blocks = Blocks(tmp_path, 1 << 30)
        for number in range(50):
            assert blocks.get(f"{number}") == b"%08d" % number * 8192
    (tmp_path / "tmp-1-1").write_bytes(b"x")
    os.utime(tmp_path / "tmp-1-1", (time.time() - 7200,) * 2)
    blocks.trim()
    assert not (tmp_path / "tmp-1-1").exists()


def test_the_environment_may_name_it(bucket, url, tmp_path, monkeypatch):
    """ZARROW_CACHE serves commands and whatever opens stores; a path on a disk is not kept."""
    monkeypatch.setenv("ZARROW_CACHE", str(tmp_path / "cache"))
    assert zarrow.open(url, storage_options=bucket.options)["plain"][0].any()
    assert size_of(tmp_path / "cache")
