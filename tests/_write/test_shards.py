"""Shards — shard files written in place, and their index."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zarrow._format import layout, zarr_metadata
from zarrow._format.array_spec import ZARR_DTYPES, ArraySpec
from zarrow._format.checksum import crc32c
from zarrow._format.codecs import normalize
from zarrow._format.frames import ArrayEntry
from zarrow._format.records import PartFacts, SegmentRecord, ShardFacts
from zarrow._format.shard_index import decode_index, encode_index, index_bytes
from zarrow._format.spec import StoreSpec
from zarrow._read.shard_rows import committed_rows, sound_frames
from zarrow._write.shards import EncodedShard, PlainShard, open_shard
from zarrow.errors import CorruptionError

SEGMENT_ROWS, CHUNK_ROWS = 64, 8
ODD = (1, 7, 8, 9, 30, 9)
codecs = pytest.mark.parametrize("codec", [None, "crc32c", "blosc", "zstd"])
shared_path = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def _array(codec: str | None = None, row_shape: tuple[int, ...] = (3,), dtype: str = "float32") -> ArraySpec:
    return ArraySpec(
        name="e", row_shape=row_shape, dtype=dtype, chunk_rows=CHUNK_ROWS, codecs=normalize(codec, dtype)
    )


def _values(array: ArraySpec, rows: int = SEGMENT_ROWS) -> npt.NDArray[Any]:
    rng = np.random.default_rng(2)
    return (rng.standard_normal((rows, *array.row_shape)) * 50).astype(array.numpy_dtype)


def _open(directory: Path, array: ArraySpec, *, create: bool = True) -> PlainShard | EncodedShard:
    directory.mkdir(exist_ok=True)
    return open_shard(directory, array, SEGMENT_ROWS, create=create)


def _append(
    shard: PlainShard | EncodedShard, values: npt.NDArray[Any], counts: tuple[int, ...]
) -> list[ArrayEntry]:
    """Append rows in batches of so many and return what the frames would say of them."""
    entries, start = [], 0
    for count in counts:
        entries.append(shard.append(values[start : start + count]))
        start += count
    return entries


def _publish(root: Path, array: ArraySpec, shards: list[Path], rows: int) -> Path:
    """Put shard files into a Zarr array of so many rows and return its group."""
    spec = StoreSpec(uuid="0" * 32, segment_rows=SEGMENT_ROWS, schema=pa.schema([]), arrays=(array,))
    for number, source in enumerate(shards):
        target = root / layout.shard_path(array.name, number, len(array.row_shape))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)
    group = root / layout.ARRAYS_DIR
    (group / array.name / "zarr.json").write_bytes(zarr_metadata.array_json(spec, array, rows))
    (group / "zarr.json").write_bytes(zarr_metadata.group_json(spec, rows))
    return group


def _read(group: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return what zarr-python and tensorstore find."""
    path = {"driver": "file", "path": str(group / "e")}
    return (
        zarr.open_group(group, mode="r")["e"][:],  # type: ignore[index,return-value]
        tensorstore.open({"driver": "zarr3", "kvstore": path}).result().read().result(),
    )


@codecs
@pytest.mark.parametrize("row_shape", [(3,), (2, 3), (1, 1, 5)])
def test_stock_readers_read_shards_filled_in_odd_batches(
    codec: str | None, row_shape: tuple[int, ...], tmp_path: Path
) -> None:
    """A full shard and a short one, appended in batches of any size, are what Zarr readers read."""
    array = _array(codec, row_shape)
    values = _values(array, SEGMENT_ROWS + 13)
    paths = []
    for number, counts in enumerate((ODD, (13,))):
        shard = _open(tmp_path / str(number), array)
        _append(shard, values[number * SEGMENT_ROWS :], counts)
        facts = shard.seal()
        shard.close()
        assert shard.path.stat().st_size == facts.size_bytes
        paths.append(shard.path)
    for found in _read(_publish(tmp_path, array, paths, len(values))):
        assert found.dtype == array.numpy_dtype
        assert np.array_equal(found, values)


@pytest.mark.parametrize("dtype", ZARR_DTYPES)
def test_stock_readers_read_every_type(dtype: str, tmp_path: Path) -> None:
    """Every type that an array may have is read by Zarr readers with its values."""
    array = _array("zstd", dtype=dtype)
    shard = _open(tmp_path / "open", array)
    values = _values(array)
    _append(shard, values, ODD)
    shard.seal()
    shard.close()
    for found in _read(_publish(tmp_path, array, [shard.path], SEGMENT_ROWS)):
        assert np.array_equal(found, values)


def test_a_plain_shard_is_its_rows(tmp_path: Path) -> None:
    """With plain bytes the file begins with the rows, in order, so that it can be mapped."""
    array = _array()
    values = _values(array, 13)
    shard = _open(tmp_path / "open", array)
    _append(shard, values, (5, 8))
    facts = shard.seal()
    shard.close()
    data = shard.path.read_bytes()
    assert data[: values.nbytes] == values.tobytes()
    assert not any(data[values.nbytes : 2 * array.chunk_bytes])
    assert facts.chunks_crc32c == tuple(
        crc32c(data[start : start + array.chunk_bytes]) for start in (0, array.chunk_bytes)
    )
    assert facts.index_crc32c == crc32c(data[2 * array.chunk_bytes : -4])


@pytest.mark.parametrize("sizes", [[], [5], [8, 8], [1, 0, 7, 2**20]])
def test_the_index_is_as_zarr_has_it(sizes: list[int]) -> None:
    """Offset and size of every chunk lie behind each other, all ones where there is none, then a crc32c."""
    data = encode_index(sizes, 6)
    array = ArraySpec(name="e", row_shape=(3,), dtype="float32", chunk_rows=8)
    assert len(data) == index_bytes(array, 48)
    entries = np.frombuffer(data[:-4], "<u8").reshape(6, 2)
    assert entries[: len(sizes), 1].tolist() == sizes
    assert entries[: len(sizes), 0].tolist() == [sum(sizes[:number]) for number in range(len(sizes))]
    assert (entries[len(sizes) :] == 2**64 - 1).all()
    assert crc32c(data[:-4]) == int.from_bytes(data[-4:], "little")
    coded = ArraySpec(
        name="e", row_shape=(2**24,), dtype="int8", chunk_rows=8, codecs=normalize("zstd", "int8")
    )
    assert decode_index(data, coded, len(sizes), sum(sizes), "here") == sizes


@pytest.mark.parametrize(
    ("places", "chunks", "data_bytes"),
    [
        ([(0, 5), (6, 7)], 2, 13),  # a gap
        ([(7, 5), (0, 7)], 2, 12),  # out of order
        ([(0, 5), (5, 7)], 1, 12),  # a chunk without rows
        ([(0, 5), (5, 7)], 2, 13),  # bytes that no chunk has
        ([(0, 2**63), (2**63, 2**63)], 2, 0),  # sizes that wrap
    ],
)
def test_chunks_lie_one_behind_the_other(places: list[tuple[int, int]], chunks: int, data_bytes: int) -> None:
    """An index whose checksum holds is refused all the same if its chunks do not fill the shard in order."""
    entries = np.array(places, "<u8").tobytes()
    index = entries + crc32c(entries).to_bytes(4, "little")
    with pytest.raises(CorruptionError, match="here: the shard index"):
        decode_index(index, _array("zstd"), chunks, data_bytes, "here")


def test_no_flipped_bit_of_an_index_is_believed() -> None:
    """A damaged index places no chunk."""
    data = encode_index([5, 7], 3)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError, match="here: the shard index is damaged"):
            decode_index(bytes(damaged), _array("zstd"), 2, 12, "here")


@codecs
@shared_path
@given(
    counts=st.lists(st.integers(0, 20), max_size=8), resumed=st.integers(0, 8), junk=st.binary(max_size=50)
)
def test_a_shard_goes_on_where_its_frames_end(
    codec: str | None,
    counts: list[int],
    resumed: int,
    junk: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After a crash behind any frame, with junk behind the rows, going on gives the undisturbed shard."""
    whole = [count for count, total in zip(counts, itertools.accumulate(counts), strict=True) if total <= 64]
    resumed = min(resumed, len(whole))
    array = _array(codec)
    values = _values(array)
    path = tmp_path_factory.mktemp("shards")
    straight = _open(path / "straight", array)
    _append(straight, values, tuple(whole))
    expected = straight.seal()
    straight.close()

    broken = _open(path / "broken", array)
    entries = _append(broken, values, tuple(whole[:resumed]))
    broken.close()
    with broken.path.open("ab") as file:
        file.write(junk)
    sound = sound_frames(path / "broken", array, entries, whole[:resumed])
    assert sound(resumed)
    again = _open(path / "broken", array, create=False)
    again.restore(entries, whole[:resumed])
    assert again.rows == sum(whole[:resumed])
    _append(again, values[again.rows :], tuple(whole[resumed:]))
    assert again.seal() == expected
    again.close()
    assert again.path.read_bytes() == straight.path.read_bytes()


@codecs
def test_frames_are_sound_only_with_their_bytes(codec: str | None, tmp_path: Path) -> None:
    """A frame counts only if every byte of its rows, and of those before, is as it was written."""
    array = _array(codec)
    counts = (3, 6, 1, 13)
    shard = _open(tmp_path / "open", array)
    entries = _append(shard, _values(array), counts)
    shard.close()
    sound = sound_frames(shard.path.parent, array, entries, counts)
    # Of the tails of an encoded shard, only those of the last two frames need to be there still.
    assert sound(0)
    assert sound(len(counts) - 1)
    assert sound(len(counts))
    data = shard.path.read_bytes()
    for size in range(0, len(data), 5):
        shard.path.write_bytes(data[:size])
        sound = sound_frames(shard.path.parent, array, entries, counts)
        good = [sound(frames) for frames in range(len(counts) + 1)]
        assert good[0]
        assert not good[-1]
        shard.path.write_bytes(data[:size] + bytes([data[size] ^ 1]) + data[size + 1 :])
        assert not sound_frames(shard.path.parent, array, entries, counts)(len(counts))


def test_the_tail_of_an_encoded_shard_is_checked(tmp_path: Path) -> None:
    """Rows of a chunk that is not full yet, which lie in a tail file, count only undamaged."""
    array = _array("zstd")
    shard = _open(tmp_path / "open", array)
    entries = _append(shard, _values(array), (3, 2))
    shard.close()
    tail = next(path for path in (tmp_path / "open").glob("e.tail*") if path.stat().st_size)
    tail.write_bytes(tail.read_bytes()[:-1])
    sound = sound_frames(tmp_path / "open", array, entries, (3, 2))
    assert (sound(0), sound(1), sound(2)) == (True, True, False)


def _committed(root: Path, codec: str | None) -> tuple[ArraySpec, SegmentRecord, npt.NDArray[Any]]:
    array = _array(codec)
    values = _values(array, 29)
    shard = _open(root / "open", array)
    _append(shard, values, (29,))
    facts = shard.seal()
    shard.close()
    _publish(root, array, [shard.path], 29)
    part = PartFacts(size_bytes=0, crc32c=0, footer_crc32c=0)
    return array, SegmentRecord(segment=0, rows=29, arrays={"e": facts}, part=part, sources=()), values


@codecs
def test_committed_rows_come_back_chunk_by_chunk(codec: str | None, tmp_path: Path) -> None:
    """A committed segment's rows are read a chunk at a time, without the padding of the last."""
    array, record, values = _committed(tmp_path, codec)
    blocks = list(committed_rows(tmp_path, array, SEGMENT_ROWS, record))
    assert [len(block) for block in blocks] == [8, 8, 8, 5]
    assert np.array_equal(np.concatenate(blocks), values)


@codecs
def test_no_flipped_bit_of_a_shard_is_returned(codec: str | None, tmp_path: Path) -> None:
    """Any damage to a committed shard is reported with its path, and cut files too."""
    array, record, _ = _committed(tmp_path, codec)
    path = tmp_path / layout.shard_path("e", 0, 1)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=str(path)):
            list(committed_rows(tmp_path, array, SEGMENT_ROWS, record))
    for size in (0, 1, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptionError, match=f"{size} bytes, {len(data)} were committed"):
            list(committed_rows(tmp_path, array, SEGMENT_ROWS, record))
    path.unlink()
    with pytest.raises(CorruptionError, match=f"{path}: the shard is missing"):
        list(committed_rows(tmp_path, array, SEGMENT_ROWS, record))


def test_a_segment_without_rows_has_no_shard(tmp_path: Path) -> None:
    """No file is asked for where a segment has no rows."""
    array = _array()
    facts = ShardFacts(size_bytes=0, chunks_crc32c=(), index_crc32c=0)
    part = PartFacts(size_bytes=0, crc32c=0, footer_crc32c=0)
    record = SegmentRecord(segment=0, rows=0, arrays={"e": facts}, part=part, sources=())
    assert list(committed_rows(tmp_path, array, SEGMENT_ROWS, record)) == []
