"""Codecs — chunks are encoded as Zarr readers expect, and values come out as they went in."""

from __future__ import annotations

import contextlib
import gzip
import warnings
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import zarr
import zarr.codecs
from hypothesis import example, given
from hypothesis import strategies as st

import zarrow
from zarrow._format.array_spec import PLAIN, ArraySpec
from zarrow._format.codecs import ALLOWED, PRESETS, ChunkCodec, normalize
from zarrow._format.spec import StoreSpec
from zarrow._format.zarr_metadata import array_json
from zarrow.errors import CorruptionError, InvalidInputError

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")

CHUNK_ROWS = 16
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BITROUND = {"name": "numcodecs.bitround", "configuration": {"keepbits": 7}}
CHAINS: dict[str, Any] = {
    **{name: name for name in PRESETS},
    "gzip": {"name": "gzip"},
    "zstd-checksum": {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
    "blosc-zlib": {"name": "blosc", "configuration": {"cname": "zlib", "shuffle": "shuffle"}},
    "blosc-noshuffle": {"name": "blosc", "configuration": {"cname": "blosclz", "shuffle": "noshuffle"}},
    "shuffle-zstd": [{"name": "numcodecs.shuffle"}, "zstd"],
    "zstd-crc32c": ["zstd", "crc32c"],
    "pcodec-crc32c": ["pcodec", "crc32c"],
    "bitround-blosc": [BITROUND, "blosc"],
    "bitround-pcodec": [BITROUND, "pcodec"],
}
chains = pytest.mark.parametrize("chain", CHAINS)


def _spec(codecs: Any, dtype: str = "float32", row_shape: tuple[int, ...] = (3, 5)) -> ArraySpec:
    return ArraySpec(
        name="e", row_shape=row_shape, dtype=dtype, chunk_rows=CHUNK_ROWS, codecs=normalize(codecs, dtype)
    )


def _rows(spec: ArraySpec) -> npt.NDArray[Any]:
    rng = np.random.default_rng(5)
    shape = (CHUNK_ROWS, *spec.row_shape)
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.numpy_dtype)
    return rng.integers(0, 120, shape).astype(spec.numpy_dtype)


def _expected(spec: ArraySpec, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if spec.codecs[0]["name"] == "numcodecs.bitround":
        return numcodecs.BitRound(keepbits=7).encode(rows.copy()).view(rows.dtype).reshape(rows.shape)
    return rows


@chains
def test_zarr_reads_what_is_encoded(chain: str, tmp_path: Path) -> None:
    """zarr-python, given the metadata, decodes a chunk to what was encoded."""
    spec = _spec(CHAINS[chain])
    rows = _rows(spec)
    store = StoreSpec(uuid="0" * 32, segment_rows=CHUNK_ROWS, schema=_empty_schema(), arrays=(spec,))
    document = array_json(store, spec, CHUNK_ROWS)
    (tmp_path / "zarr.json").write_bytes(document)
    mine = ChunkCodec(spec).encode(rows)
    # The chunk as zarr-python writes it, without the shard around it.
    inner = zarr.create_array(
        store=tmp_path / "inner",
        shape=rows.shape,
        chunks=rows.shape,
        dtype=rows.dtype,
        fill_value=0,
        **_zarr_chain(zarr.open_array(tmp_path, mode="r")),
    )
    path = tmp_path / "inner" / "c" / "0" / "0" / "0"
    path.parent.mkdir(parents=True)
    path.write_bytes(mine)
    assert np.array_equal(inner[:], _expected(spec, rows))


# zarr-python hands pcodec the integers that bitround makes of floats, so its chunks say another type.
@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain != "bitround-pcodec"])
def test_what_zarr_encodes_is_read(chain: str, tmp_path: Path) -> None:
    """A chunk that zarr-python encoded by the same metadata decodes to the same rows."""
    spec = _spec(CHAINS[chain])
    rows = _rows(spec)
    store = StoreSpec(uuid="0" * 32, segment_rows=CHUNK_ROWS, schema=_empty_schema(), arrays=(spec,))
    (tmp_path / "zarr.json").write_bytes(array_json(store, spec, CHUNK_ROWS))
    inner = zarr.create_array(
        store=tmp_path / "inner",
        shape=rows.shape,
        chunks=rows.shape,
        dtype=rows.dtype,
        fill_value=0,
        **_zarr_chain(zarr.open_array(tmp_path, mode="r")),
    )
    inner[:] = rows
    data = (tmp_path / "inner" / "c" / "0" / "0" / "0").read_bytes()
    assert np.array_equal(ChunkCodec(spec).decode(data), _expected(spec, rows))


def _empty_schema() -> Any:
    import pyarrow as pa

    return pa.schema([])


def _zarr_chain(array: zarr.Array[Any]) -> dict[str, Any]:
    (sharding,) = array.metadata.codecs  # type: ignore[union-attr]
    codecs = sharding.codecs  # type: ignore[union-attr]
    kinds = {"filters": "ArrayArrayCodec", "compressors": "BytesBytesCodec"}
    found: dict[str, Any] = {
        option: [codec for codec in codecs if kind in {base.__name__ for base in type(codec).__mro__}]
        for option, kind in kinds.items()
    }
    (found["serializer"],) = (
        codec for codec in codecs if codec not in found["filters"] + found["compressors"]
    )
    return found


@chains
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "uint64", "bool"])
def test_every_type_comes_back(chain: str, dtype: str) -> None:
    """Every chain that takes a type gives its values back, and any other refuses the type by name."""
    if ("pcodec" in chain and dtype in ("bool", "int8")) or ("bitround" in chain and dtype[0] != "f"):
        with pytest.raises(InvalidInputError, match=dtype):
            _spec(CHAINS[chain], dtype)
        return
    spec = _spec(CHAINS[chain], dtype)
    rows = _rows(spec)
    codec = ChunkCodec(spec)
    back = codec.decode(codec.encode(rows))
    assert back.dtype == spec.numpy_dtype
    assert back.tobytes() == _expected(spec, rows).tobytes()


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=CHUNK_ROWS, max_size=CHUNK_ROWS),
    chain=st.sampled_from(sorted(PRESETS)),
)
def test_presets_lose_no_bit(bits: list[int], chain: str) -> None:
    """Every preset is lossless for any bits, NaN payloads and denormals included."""
    spec = _spec(chain, row_shape=(1,))
    rows = np.array(bits, np.uint32).view(np.float32).reshape(-1, 1)
    codec = ChunkCodec(spec)
    assert codec.decode(codec.encode(rows)).tobytes() == rows.tobytes()


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=CHUNK_ROWS, max_size=CHUNK_ROWS))
@example(bits=[0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000] + [0x80000000] * 10)
def test_bitround_makes_no_value_another_kind_of_value(bits: list[int]) -> None:
    """NaN (CUDA's is all ones), infinities and the largest floats stay what they are; others are rounded."""
    spec = _spec([BITROUND, "zstd"], row_shape=(1,))
    rows = np.array(bits, np.uint32).view(np.float32).reshape(-1, 1)
    codec = ChunkCodec(spec)
    back = codec.decode(codec.encode(rows))
    finite = np.isfinite(rows)
    assert np.array_equal(np.isfinite(back), finite)
    assert np.array_equal(back[~finite], rows[~finite], equal_nan=True)
    want, got = rows[finite].astype("f8"), back[finite].astype("f8")
    assert np.all(np.abs(got - want) <= np.maximum(np.abs(want), np.finfo("f4").tiny) / 2**8)


@pytest.mark.parametrize("codecs", [None, "none", [], {"name": "bytes"}, LITTLE, zarr.codecs.BytesCodec()])
def test_plain_bytes_have_one_form(codecs: Any) -> None:
    """However plain bytes are asked for, they are recognised as such."""
    assert normalize(codecs, "float32") == PLAIN


def test_codecs_are_written_as_zarr_writes_them() -> None:
    """A name, a codec of zarr's, and the dict of its metadata stand for one another."""
    blosc = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0, "typesize": 4}
    expected = (LITTLE, {"name": "blosc", "configuration": blosc})
    assert normalize("blosc", "float32") == expected
    assert normalize({"name": "blosc"}, "float32") == expected
    assert normalize(zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle"), "float32") == expected
    assert normalize([zarr.codecs.BytesCodec(), zarr.codecs.BloscCodec(cname="lz4")], "float32") == expected
    zstd = ({"name": "zstd", "configuration": {"level": 7, "checksum": True}},)
    assert normalize(zarr.codecs.ZstdCodec(level=7, checksum=True), "int8") == (LITTLE, *zstd)
    assert normalize(zarr.codecs.GzipCodec(level=2), "int8")[1]["configuration"] == {"level": 2}
    assert normalize(zarr.codecs.Crc32cCodec(), "int8") == (LITTLE, {"name": "crc32c"})
    assert normalize(zarr.codecs.PCodec(), "float32")[0]["name"] == "numcodecs.pcodec"
    rounded = normalize([zarr.codecs.BitRound(keepbits=9), "zstd"], "float32")
    assert [codec["name"] for codec in rounded] == ["numcodecs.bitround", "bytes", "zstd"]


@pytest.mark.parametrize(
    ("codecs", "dtype", "message"),
    [
        ("lzma", "float32", "codecs must be .*blosc.*zstd.*got 'lzma'"),
        ({"name": "numcodecs.lzma"}, "float32", "'numcodecs.lzma' is not supported: use one of"),
        ({"name": "transpose", "configuration": {"order": [1, 0]}}, "float32", "'transpose' is not"),
        ({"name": "sharding_indexed"}, "float32", "'sharding_indexed' is not supported"),
        ({}, "float32", "codec None is not supported"),
        ({"name": "bytes", "configuration": {"endian": "big"}}, "float32", "little-endian"),
        (["zstd", {"name": "bytes"}], "float32", r"then one array-to-bytes.*got \['zstd', 'bytes'\]"),
        (["pcodec", {"name": "bytes"}], "float32", "one array-to-bytes"),
        (["zstd", BITROUND], "float32", "array-to-array, then"),
        (BITROUND, "int32", "cannot encode int32"),
        ({**BITROUND, "configuration": {"keepbits": 99}}, "float32", "cannot encode float32"),
        ({"name": "numcodecs.bitround"}, "float32", "needs keepbits"),
        ({"name": "zstd", "configuration": {"lvl": 3}}, "float32", "the options level, checksum, got lvl$"),
        (["auto"], "float32", r"codecs must be 'auto' \(alone\), none.*got 'auto'"),
        ("pcodec", "bool", "cannot encode bool"),
        ({"name": "blosc", "configuration": {"cname": "lz5"}}, "float32", "cannot encode float32.*lz5"),
        ({"name": "blosc", "configuration": {"shuffle": "sideways"}}, "float32", "shuffle.*got 'sideways'"),
        ({"name": "zstd", "configuration": {"speed": 3}}, "float32", "speed"),
        ({"name": "gzip", "configuration": {"level": 77}}, "float32", "cannot encode float32"),
        ([3], "float32", "got 3"),
        (3, "float32", "got 3"),
    ],
)  # fmt: skip
def test_a_chain_that_cannot_be_run_is_refused(codecs: Any, dtype: str, message: str) -> None:
    """What is unknown, misplaced or unfit for the type is refused before a byte is written."""
    with pytest.raises(InvalidInputError, match=message):
        normalize(codecs, dtype)


def test_a_store_cannot_make_us_run_other_codecs() -> None:
    """A codec that a store's metadata names is run only if it is one of the few allowed."""
    spec = ArraySpec(
        name="e",
        row_shape=(4,),
        dtype="float32",
        chunk_rows=1,
        codecs=({"name": "numcodecs.pickle"}, LITTLE),
    )
    assert "numcodecs.pickle" not in ALLOWED
    with pytest.raises(InvalidInputError, match=r"'e': codec 'numcodecs.pickle' is not supported"):
        ChunkCodec(spec)


@chains
@given(st.data())
def test_damaged_chunks_are_reported(chain: str, data: st.DataObject) -> None:
    """A cut or garbled chunk raises the error that says so, or gives rows of the right shape; no other."""
    spec = _spec(CHAINS[chain])
    codec = ChunkCodec(spec)
    whole = codec.encode(_rows(spec))
    cut = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:cut] + data.draw(st.binary(max_size=20))
    with contextlib.suppress(CorruptionError):
        assert codec.decode(damaged).shape == (CHUNK_ROWS, 3, 5)


BOMB_BYTES = 64 << 20


def _zstd_without_size() -> bytes:
    """Return a zstd frame of zeros that does not declare its size (RFC 8878: blocks of a repeated byte)."""
    block_bytes = 128 << 10
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (17 - 10) << 3])
    repeated = (block_bytes << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (block_bytes << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return header + repeated * (BOMB_BYTES // block_bytes - 1) + last


def _bombs() -> dict[str, tuple[Any, bytes]]:
    zeros = np.zeros(BOMB_BYTES // 4, np.float32)
    return {
        "blosc": ("blosc", numcodecs.Blosc("zstd", clevel=1).encode(zeros)),
        "zstd": ("zstd", numcodecs.Zstd().encode(zeros)),
        "zstd-without-size": ("zstd", _zstd_without_size()),
        "gzip": ("gzip", gzip.compress(zeros.tobytes(), 1)),
        "gzip-in-parts": ("gzip", gzip.compress(bytes(CHUNK_ROWS * 60)) + gzip.compress(zeros.tobytes(), 1)),
        "pcodec": ("pcodec", numcodecs.get_codec({"id": "pcodec"}).encode(zeros)),
    }


@pytest.mark.parametrize("name", ["blosc", "zstd", "zstd-without-size", "gzip", "gzip-in-parts", "pcodec"])
def test_a_bomb_is_refused(name: str, bombs: dict[str, tuple[Any, bytes]]) -> None:
    """A small chunk that would inflate to hundreds of times its array's is refused, not inflated."""
    chain, data = bombs[name]
    codec = ChunkCodec(_spec({"name": chain} if chain == "gzip" else chain))
    # Linux: the most memory that the process has had, counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kib()
    with pytest.raises(CorruptionError, match=r"^(declares|does not|is cut|cannot)"):
        codec.decode(data)
    assert _peak_kib() - before < BOMB_BYTES // 1024 // 4


@pytest.fixture(scope="module")
def bombs() -> dict[str, tuple[Any, bytes]]:
    return _bombs()


def _peak_kib() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])


def test_no_warning_for_codecs_of_the_specification() -> None:
    """The codecs that the Zarr specification has are used without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("blosc", "zstd", "crc32c"):
            normalize(name, "float32")


@pytest.mark.parametrize("chain", ["pcodec", "zstd", "blosc", "gzip"])
@pytest.mark.parametrize("rows", [1, CHUNK_ROWS - 1, CHUNK_ROWS + 1])
def test_a_chunk_of_another_size_is_reported(chain: str, rows: int) -> None:
    """A sound chunk of too few or too many rows is not padded, cut, or filled with old memory."""
    codec = ChunkCodec(_spec(CHAINS[chain], row_shape=(5,)))
    data = codec.encode(np.ones((rows, 5), np.float32))
    with pytest.raises(CorruptionError, match=r"^(declares|does not|is cut|cannot)"):
        codec.decode(data)


def _first_batch(kind: str) -> Any:
    values = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    if kind == "bf16-valued":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if kind == "bfloat16":
        import torch

        return torch.from_numpy(values).bfloat16()
    return np.repeat(values[:3], 100, 0) if kind == "repeated" else values


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("random", ["bytes"]),
        ("bf16-valued", ["bytes", "blosc"]),
        ("bfloat16", ["bytes", "blosc"]),
        ("repeated", ["bytes", "zstd"]),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_auto_takes_what_shrinks_the_first_batch(
    kind: str, chosen: list[str], declared: bool, tmp_path: Path
) -> None:
    """Plain bytes where nothing is saved; a codec where it is; the rows come back; a resumed run keeps it."""
    batch = _first_batch(kind)
    arrays: Any = {"e": (64, "float32")} if declared else None
    schema = pa.schema([]) if declared else None
    options: dict[str, Any] = {"codecs": "auto", "arrays": arrays, "schema": schema}
    with zarrow.Writer(tmp_path / "s.zarrow", **options) as writer:
        writer.append(arrays={"e": batch})
    with zarrow.Writer(tmp_path / "s.zarrow", mode="a", **options) as writer:
        writer.append(arrays={"e": _first_batch("random")})
        writer.finalize()
    store = zarrow.open(tmp_path / "s.zarrow")
    assert [codec["name"] for codec in store["e"].codecs] == chosen
    want = batch if isinstance(batch, np.ndarray) else batch.float().numpy()
    np.testing.assert_array_equal(store["e"][:300], want)
    np.testing.assert_array_equal(store["e"][300:], _first_batch("random"))


def test_auto_per_array_and_without_rows(tmp_path: Path) -> None:
    """Each array has its own; a store that never saw a row has plain bytes."""
    with zarrow.Writer(tmp_path / "s.zarrow", codecs={"a": "auto", "b": "zstd"}) as writer:
        writer.append(arrays={"a": _first_batch("bf16-valued"), "b": _first_batch("random")})
        writer.finalize()
    found = {name: [c["name"] for c in one.codecs] for name, one in zarrow.open(writer.path).arrays.items()}
    assert found == {"a": ["bytes", "blosc"], "b": ["bytes", "zstd"]}
    options: dict[str, Any] = {"arrays": {"a": (4, "float32")}, "schema": pa.schema([]), "codecs": "auto"}
    with zarrow.Writer(tmp_path / "empty.zarrow", **options) as writer:
        writer.finalize()
    assert [codec["name"] for codec in zarrow.open(writer.path)["a"].codecs] == ["bytes"]
