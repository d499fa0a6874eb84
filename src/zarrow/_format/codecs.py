"""Codecs — encoding and decoding one inner chunk, and the codecs that an array may have.

An array's codecs are a Zarr v3 chain: any array-to-array codecs, one array-to-bytes codec, any bytes-to-bytes
codecs. They are in the metadata as the Zarr specification and the zarr-extensions registry write them, so
that stock readers decode the chunks; here numcodecs runs the same chain, one chunk at a time and without
loading zarr.

Only the codecs that are listed here are run, and nothing much larger than a chunk is ever decompressed: the
names and the bytes come from files, and a store may be hostile.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import PLAIN, ZARR_DTYPES, ArraySpec, rows_of
from zarrow._format.checksum import crc32c
from zarrow.errors import CorruptionError, InvalidInputError, MissingExtraError, did_you_mean

__all__ = ["AUTO", "ChunkCodec", "check_names", "choose", "normalize"]

Codec = Mapping[str, Any]

_BLOSC_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_ARRAY_TO_ARRAY = ("numcodecs.bitround",)
_ARRAY_TO_BYTES = ("bytes", "numcodecs.pcodec")
_BYTES_TO_BYTES = (
    "blosc",
    "crc32c",
    "gzip",
    "zstd",
    "numcodecs.shuffle",
)
_OPTIONS = {
    "blosc": ("cname", "clevel", "shuffle", "blocksize", "typesize"),
    "bytes": ("endian",),
    "crc32c": (),
    "gzip": ("level",),
    "numcodecs.bitround": ("keepbits",),
    "numcodecs.pcodec": (
        "delta_encoding_order",
        "delta_spec",
        "equal_pages_up_to",
        "level",
        "mode_spec",
        "paging_spec",
    ),
    "numcodecs.shuffle": ("elementsize",),
    "zstd": ("level", "checksum"),
}
"""The options of every codec. Any other name would reach numcodecs, where "id" chooses the codec."""
ALLOWED = (*_ARRAY_TO_ARRAY, *_ARRAY_TO_BYTES, *_BYTES_TO_BYTES)


def _blosc(cname: str, shuffle: str, clevel: int = 5) -> dict[str, Any]:
    return {
        "name": "blosc",
        "configuration": {"cname": cname, "clevel": clevel, "shuffle": shuffle, "blocksize": 0},
    }


_SAMPLE_BYTES = 4 << 20

AUTO = "auto"
PRESETS: dict[str, tuple[Codec, ...]] = {
    "none": (),
    "crc32c": ({"name": "crc32c"},),
    "blosc": (_blosc("lz4", "bitshuffle"),),
    "blosc-lz4-bitshuffle": (_blosc("lz4", "bitshuffle"),),
    "blosc-zstd-bitshuffle": (_blosc("zstd", "bitshuffle"),),
    "zstd": ({"name": "zstd", "configuration": {"level": 3, "checksum": False}},),
    "pcodec": ({"name": "numcodecs.pcodec", "configuration": {}},),
}
"""Chains that have a name."""


def check_names(codecs: object) -> None:
    """Raise if names of codecs, alone or in lists and mappings, are unknown, or need a package.

    Raises
    ------
    InvalidInputError, MissingExtraError
        As `normalize` would when the first batch comes.
    """
    if isinstance(codecs, str):
        if codecs not in (AUTO, *PRESETS):
            raise _unknown(codecs)
        if codecs == "pcodec":
            _numcodec("pcodec")
    elif isinstance(codecs, Mapping) and "name" not in codecs:
        for one in codecs.values():
            check_names(one)
    elif isinstance(codecs, list | tuple):
        for one in codecs:
            check_names(one)


def _unknown(codec: str) -> InvalidInputError:
    known = f"'auto' (alone), {', '.join(PRESETS)} or Zarr v3 codecs"
    return InvalidInputError(f"codecs must be {known}, got {codec!r}{did_you_mean(codec, PRESETS)}")


def normalize(codecs: object, dtype: str) -> tuple[dict[str, Any], ...]:
    """Return an array's codecs as Zarr v3 metadata writes them.

    Parameters
    ----------
    codecs : None, str, dict, zarr codec, or a sequence of them
        None is plain bytes. A string names a preset (`PRESETS`); a dict is a codec as ``zarr.json`` has it;
        of anything with ``to_dict()``, such as zarr's own codec objects, that is used. ``bytes`` is inserted
        if there is no array-to-bytes codec.
    dtype : str
        The array's data type, whose size blosc and shuffle need.

    Returns
    -------
    tuple of dict
        The chain, checked.

    Raises
    ------
    InvalidInputError
        If a codec is unknown, or in a place where it cannot be.

    Examples
    --------
    >>> [codec["name"] for codec in normalize("zstd", "float32")]
    ['bytes', 'zstd']
    """
    if codecs is None:
        return PLAIN
    given: list[Any] = (
        list(codecs) if isinstance(codecs, Iterable) and not isinstance(codecs, str | Mapping) else [codecs]
    )
    chain: list[Codec] = []
    for codec in given:
        if isinstance(codec, str):
            if codec not in PRESETS:
                raise _unknown(codec)
            chain.extend(PRESETS[codec])
        elif isinstance(codec, Mapping) or hasattr(codec, "to_dict"):
            chain.append(codec if isinstance(codec, Mapping) else codec.to_dict())
        else:
            raise InvalidInputError(f"codecs must be names or Zarr v3 codecs, got {codec!r}")
    itemsize = ZARR_DTYPES[dtype].itemsize
    checked = [_normalize_one(codec, itemsize) for codec in chain]
    if not any(codec["name"] in _ARRAY_TO_BYTES for codec in checked):
        before = sum(codec["name"] in _ARRAY_TO_ARRAY for codec in checked)
        checked.insert(before, PLAIN[0])
    stages = [_stage(codec["name"]) for codec in checked]
    if stages != sorted(stages) or stages.count(1) != 1:
        names = [codec["name"] for codec in checked]
        raise InvalidInputError(
            f"codecs must be array-to-array, then one array-to-bytes, then bytes-to-bytes, got {names}"
        )
    chain_spec = tuple(checked)
    probe = ArraySpec(name="probe", row_shape=(4,), dtype=dtype, chunk_rows=4, codecs=chain_spec)
    try:
        codec = ChunkCodec(probe)
        codec.decode(codec.encode(np.zeros((4, 4), ZARR_DTYPES[dtype])))
    except MissingExtraError:
        raise
    except Exception as error:
        reason = str(error).removeprefix("array 'probe': ")
        raise InvalidInputError(f"codecs {codecs!r} cannot encode {dtype}: {reason}") from error
    return chain_spec


def choose(sample: npt.NDArray[Any], dtype: str) -> tuple[dict[str, Any], ...]:
    """Return the lossless codecs that suit a sample of an array's rows: the meaning of ``"auto"``.

    They are tried on the rows. Plain bytes are the fastest to write and the only ones that are read without a
    copy, so a codec must save a quarter of them: blosc's lz4 after bitshuffle, which is as fast as a disk, or
    zstd, a few times slower, if it saves another quarter of the rest.

    Parameters
    ----------
    sample : array, shape (rows, *row_shape)
        The rows; if there are none, the result is plain bytes.
    dtype : str
        The array's data type, to which they are cast.

    Returns
    -------
    tuple of dict
        The chain, as `normalize` returns it.

    Examples
    --------
    >>> [codec["name"] for codec in choose(np.random.default_rng(0).random((64, 64)), "float32")]
    ['bytes']
    >>> [codec["name"] for codec in choose(np.arange(4096).reshape(64, 64), "float32")]
    ['bytes', 'blosc']
    """
    if not sample.size:
        return PLAIN
    row_bytes = sample[:1].size * ZARR_DTYPES[dtype].itemsize
    count = min(len(sample), rows_of(_SAMPLE_BYTES, row_bytes))
    count = 1 << (count.bit_length() - 1)  # a chunk has a power of two
    rows = np.ascontiguousarray(sample[:count], ZARR_DTYPES[dtype])
    best, left = PLAIN, float(rows.nbytes)
    for preset in ("blosc-lz4-bitshuffle", "zstd"):
        chain = normalize(preset, dtype)
        array = ArraySpec(
            name="sample", row_shape=rows.shape[1:], dtype=dtype, chunk_rows=count, codecs=chain
        )
        size = len(ChunkCodec(array).encode(rows))
        if size <= 0.75 * left:
            best, left = chain, size
    return best


def _stage(name: str) -> int:
    return 0 if name in _ARRAY_TO_ARRAY else 1 if name in _ARRAY_TO_BYTES else 2


def _plain_value(value: Any) -> Any:
    return getattr(value, "value", value)  # enumerations of zarr's codec objects


def _normalize_one(codec: Codec, itemsize: int) -> dict[str, Any]:
    name = codec.get("name")
    if name not in ALLOWED:
        raise InvalidInputError(f"codec {name!r} is not supported: use one of {', '.join(ALLOWED)}")
    configuration = {key: _plain_value(value) for key, value in (codec.get("configuration") or {}).items()}
    if name == "blosc":
        configuration["typesize"] = itemsize
        if _BLOSC_SHUFFLES.get(configuration.setdefault("shuffle", "bitshuffle")) is None:
            raise InvalidInputError(
                f"blosc's shuffle must be one of {', '.join(_BLOSC_SHUFFLES)}, "
                f"got {configuration['shuffle']!r}"
            )
        configuration = {"cname": "lz4", "clevel": 5, "blocksize": 0, **configuration}
    elif name == "zstd":
        configuration = {"level": 3, "checksum": False, **configuration}
    elif name == "gzip":
        configuration = {"level": 5, **configuration}
    elif name == "numcodecs.shuffle":
        configuration = {"elementsize": itemsize, **configuration}
    elif name == "bytes":
        if configuration.get("endian", "little") != "little":
            raise InvalidInputError("arrays are stored little-endian, got codec 'bytes' with another endian")
        configuration = {"endian": "little"}
    if name == "crc32c":
        return {"name": name}
    return {"name": name, "configuration": configuration}  # zarr-python needs numcodecs' even if empty


@lru_cache(maxsize=64)
def _numcodec(kind: str, *items: tuple[str, Any]) -> Any:
    import numcodecs  # takes a tenth of a second, and plain bytes need none of it

    try:
        return numcodecs.get_codec({"id": kind, **dict(items)})
    except (ValueError, ImportError) as error:
        if kind == "pcodec":
            raise MissingExtraError("codec 'pcodec' needs the package pcodec: pip install pcodec") from error
        raise


def _runner(codec: Codec) -> Any:
    """Return the numcodecs codec that runs a Zarr v3 one; None for plain little-endian bytes."""
    name, configuration = codec["name"], dict(codec.get("configuration") or {})
    if unknown := configuration.keys() - set(_OPTIONS[name]):
        options = ", ".join(_OPTIONS[name]) or "none"
        raise InvalidInputError(f"codec {name!r} has the options {options}, got {', '.join(sorted(unknown))}")
    if name == "blosc":
        configuration["shuffle"] = _BLOSC_SHUFFLES[configuration["shuffle"]]
    if name == "bytes":
        if configuration.get("endian", "little") != "little":
            raise InvalidInputError("arrays are stored little-endian, got codec 'bytes' with another endian")
        return None
    kind = name.removeprefix("numcodecs.")
    if kind == "bitround":
        if "keepbits" not in configuration:
            raise InvalidInputError(f"codec {name!r} needs keepbits, the number of mantissa bits to keep")
        return _Bitround(**configuration)
    if kind == "crc32c":
        return _Crc32c()
    if kind == "gzip":
        return _Gzip(**configuration)
    return _numcodec(kind, *sorted(configuration.items()))


class _Crc32c:
    """Zarr v3's crc32c codec: the bytes, then their checksum."""

    def encode(self, data: Any) -> bytes:
        raw = bytes(memoryview(data).cast("B"))
        return raw + crc32c(raw).to_bytes(4, "little")

    def decode(self, data: Any) -> bytes:
        raw = bytes(memoryview(data).cast("B"))
        if len(raw) < 4 or crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise CorruptionError("does not have the crc32c that it ends with")
        return raw[:-4]


class _Bitround:
    """Bitround that keeps the values that rounding would turn into something else.

    Rounding adds to the bits as if they were an integer: the largest floats would become infinite, and CUDA's
    NaN, all ones, would become -0.
    """

    def __init__(self, keepbits: int) -> None:
        self._codec = _numcodec("bitround", ("keepbits", keepbits))

    def encode(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rounded: npt.NDArray[Any] = np.asarray(self._codec.encode(data)).view(data.dtype).reshape(data.shape)
        kept = ~np.isfinite(rounded) | np.isnan(data)
        return np.where(kept, data, rounded) if kept.any() else rounded


class _Gzip:
    """gzip with a bound on the decompressed size, which its header does not declare."""

    def __init__(self, level: int) -> None:
        self._codec = _numcodec("gzip", ("level", level))

    def encode(self, data: Any) -> Any:
        return self._codec.encode(data)

    def decode(self, data: Any, limit_bytes: int) -> bytes:
        inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        raw = inflater.decompress(memoryview(data).cast("B"), limit_bytes)
        if not inflater.eof or inflater.unused_data:
            raise CorruptionError(f"is cut short, or decompresses to more than {limit_bytes} bytes")
        return raw


class ChunkCodec:
    """Encodes and decodes the chunks of one array.

    Parameters
    ----------
    array : ArraySpec
        The array.

    Raises
    ------
    InvalidInputError
        If the array has a codec that is not supported.
    """

    def __init__(self, array: ArraySpec) -> None:
        self._array = array
        for codec in array.codecs:
            if codec.get("name") not in ALLOWED:
                raise InvalidInputError(f"array {array.name!r}: codec {codec.get('name')!r} is not supported")
        stages: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        for codec in array.codecs:
            try:
                runner = _runner(codec)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise InvalidInputError(f"array {array.name!r}: not a codec: {codec}: {error}") from error
            if runner is not None:
                stages[_stage(codec["name"])].append(runner)
        self._filters: Sequence[Any] = stages[0]
        self._packer: Any = stages[1][0] if stages[1] else None
        self._compressors: Sequence[Any] = stages[2]

    def encode(self, chunk: npt.NDArray[Any]) -> bytes:
        """Return a chunk's stored bytes.

        Parameters
        ----------
        chunk : array, shape (chunk_rows, *row_shape)
            The rows, contiguous.

        Returns
        -------
        bytes
            As they are in the shard.
        """
        data: Any = chunk
        for step in self._filters:
            data = step.encode(data)
        if self._packer is not None:
            data = self._packer.encode(data)
        for step in self._compressors:
            data = step.encode(data)
        return bytes(data) if not isinstance(data, np.ndarray) else data.tobytes()

    def decode(self, data: Any) -> npt.NDArray[Any]:
        """Return a chunk's rows.

        Parameters
        ----------
        data : bytes-like
            The stored bytes.

        Returns
        -------
        array, shape (chunk_rows, *row_shape)
            The rows.

        Raises
        ------
        CorruptionError
            If the bytes do not decode to a chunk; nothing much larger than a chunk is decompressed.
        """
        array = self._array
        try:
            for step in reversed(self._compressors):
                data = _decompress(step, data, array.max_stored_bytes)
            if self._packer is not None:
                data = _unpack(
                    data, np.empty(array.chunk_bytes // array.numpy_dtype.itemsize, array.numpy_dtype)
                )
            rows = np.frombuffer(memoryview(data).cast("B"), array.numpy_dtype)
            return rows.reshape(array.chunk_rows, *array.row_shape)
        except CorruptionError:
            raise
        except Exception as error:  # codecs raise RuntimeError, ValueError, TypeError, …: all mean the same
            raise CorruptionError(f"cannot be decoded: {error}") from error


def _decompress(step: Any, data: Any, limit_bytes: int) -> Any:
    """Undo one bytes-to-bytes codec; a result larger than a chunk with checksums is refused."""
    if isinstance(step, _Gzip):
        return step.decode(data, limit_bytes)
    size_of = _declared_size.get(getattr(step, "codec_id", ""))
    if size_of is not None:
        declared = size_of(memoryview(data).cast("B"))
        if declared is None:
            raise CorruptionError("does not declare its size, as a compressed chunk must")
        if declared > limit_bytes:
            raise CorruptionError(f"declares {declared} bytes, at most {limit_bytes} are allowed")
    return step.decode(data)


def _unpack(data: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Decode pcodec's numbers into as many values as a chunk has; numcodecs would accept any number."""
    from pcodec import standalone  # optional, but installed: the codec was made

    progress = standalone.simple_decompress_into(bytes(data), values)
    if progress.n_processed != values.size or not progress.finished:
        raise CorruptionError(f"does not hold the {values.size} values of a chunk")
    return values


def _blosc_size(view: memoryview) -> int | None:
    """Return the size that a blosc header declares, if its compressed size is that of the buffer.

    c-blosc trusts the compressed size, and reads beyond the buffer if it is too large.
    """
    if len(view) < 16 or int.from_bytes(view[12:16], "little") != len(view):
        return None
    return int.from_bytes(view[4:8], "little")


def _zstd_size(view: memoryview) -> int | None:
    """Return the content size that a zstd frame declares (RFC 8878, section 3.1.1).

    None also if there are several frames: the first does not say what the second declares.
    """
    if len(view) < 9 or bytes(view[:4]) != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = view[4]
    single_segment = descriptor >> 5 & 1
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if not width:
        return None
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    position, last = start + width, 0
    while not last and position + 3 <= len(view):
        block = int.from_bytes(view[position : position + 3], "little")
        last = block & 1
        position += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)  # a block of one repeated byte has one
    if not last or position + 4 * (descriptor >> 2 & 1) != len(view):
        return None
    return int.from_bytes(view[start : start + width], "little") + (256 if width == 2 else 0)


_declared_size: dict[str, Callable[[memoryview], int | None]] = {"blosc": _blosc_size, "zstd": _zstd_size}
