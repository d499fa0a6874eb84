"""Imports of token vectors — ColBERT's indexes and SAELens' activations, as those libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

import zarrow
from zarrow.cli import app
from zarrow.errors import InvalidInputError, StoreNotFoundError
from zarrow.transfer import _rows, import_

WIDTH = 16


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches of a chunk."""
    monkeypatch.setattr(_rows, "BATCH_BYTES", 1 << 12)


def units(rows: int, seed: int = 0) -> torch.Tensor:
    """Return vectors of length 1."""
    made = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def counts_of(chunk: int) -> list[int]:
    """Return how many vectors the passages of a chunk have; some have none."""
    return np.random.default_rng(chunk).integers(0, 40, 30 + chunk).tolist()


def uncompressed(folder: Path, chunks: int = 3) -> zarrow.Ragged:
    """Write an index as ColBERT's first version does, and return its rows."""
    folder.mkdir()
    values = []
    for chunk in range(chunks):
        counts = counts_of(chunk)
        values.append(units(sum(counts), chunk).half())
        torch.save(values[-1], folder / f"{chunk}.pt")
        torch.save(values[-1][:3], folder / f"{chunk}.sample")
        (folder / f"doclens.{chunk}.json").write_text(json.dumps(counts))
    every = [count for chunk in range(chunks) for count in counts_of(chunk)]
    return zarrow.Ragged(torch.cat(values).numpy(), every)


def compressed(folder: Path, bits: int, suffix: str, chunks: int = 2) -> tuple[zarrow.Ragged, zarrow.Ragged]:
    """Write a compressed index; return the rows as a searcher restores them, and the original ones.

    As ColBERT has it: the numbers of buckets bit by bit, the lowest first, packed into bytes from their
    highest bit on.
    """
    folder.mkdir()
    centroids = units(8, 99).half()
    cutoffs = torch.linspace(-0.3, 0.3, (1 << bits) + 1)[1:-1]
    weights = torch.linspace(-0.3, 0.3, 1 << bits)

    def save(name: str, tensor: torch.Tensor) -> None:
        if suffix == ".npy":
            np.save(folder / f"{name}.npy", tensor.numpy())
        else:
            torch.save(tensor, folder / f"{name}.pt")

    save("centroids", centroids)
    if suffix == ".npy":
        save("bucket_weights", weights)
        save("bucket_cutoffs", cutoffs)
    else:
        torch.save((cutoffs, weights), folder / "buckets.pt")
    restored, original = [], []
    for chunk in range(chunks):
        counts = counts_of(chunk)
        values = units(sum(counts), chunk)
        codes = (values @ centroids.float().T).argmax(1)
        buckets = torch.bucketize(values - centroids.float()[codes], cutoffs)
        flat = [(int(number) >> bit) & 1 for number in buckets.flatten() for bit in range(bits)]
        packed = np.packbits(np.array(flat, np.uint8)).reshape(len(values), WIDTH * bits // 8)
        save(f"{chunk}.codes", codes.int() if suffix == ".pt" else codes)
        save(f"{chunk}.residuals", torch.from_numpy(packed))
        (folder / f"doclens.{chunk}.json").write_text(json.dumps(counts))
        about = {"num_passages": len(counts), "num_embeddings": len(values)}
        (folder / f"{chunk}.metadata.json").write_text(json.dumps(about))
        found = torch.nn.functional.normalize(centroids.float()[codes] + weights[buckets], dim=-1)
        restored.append(found.half().numpy())
        original.append(values.numpy())
    every = [count for chunk in range(chunks) for count in counts_of(chunk)]
    return zarrow.Ragged(np.concatenate(restored), every), zarrow.Ragged(np.concatenate(original), every)


@pytest.mark.usefixtures("_small_batches")
def test_an_uncompressed_index(tmp_path: Path) -> None:
    """A folder of ColBERT's first version is recognised, and every vector is there as it was."""
    expected = uncompressed(tmp_path / "index")
    done = CliRunner().invoke(app, ["import", str(tmp_path / "index"), str(tmp_path / "s.zarrow")])
    assert done.exit_code == 0, done.output
    with zarrow.open(tmp_path / "s.zarrow") as store:
        assert store["token_embed"][:] == expected
        assert store.table()["pid"].to_pylist() == list(range(len(expected)))
        assert store.keys == ("pid",)
        assert store.provenance["imported_as"] == "colbert"


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("suffix", [".pt", ".npy"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_compressed_index(tmp_path: Path, bits: int, suffix: str) -> None:
    """Vectors are restored as ColBERT, or fast-plaid, restores them: the more bits, the nearer."""
    expected, original = compressed(tmp_path / "index", bits, suffix)
    assert import_(tmp_path / "index", tmp_path / "s.zarrow") == len(expected)
    found = zarrow.open(tmp_path / "s.zarrow")["token_embed"][:]
    assert np.array_equal(found.counts, expected.counts)
    np.testing.assert_allclose(found.values, expected.values, atol=2e-3)
    assert (found.values * original.values).sum(1).mean() > {1: 0.7, 2: 0.8, 4: 0.8, 8: 0.8}[bits]


def _counts(folder: Path, given: Any, chunk: int = 1) -> None:
    (folder / f"doclens.{chunk}.json").write_text(given if isinstance(given, str) else json.dumps(given))


WRONG_INDEXES = {
    "too few": (
        lambda f: _counts(f, [1, 2]),
        r"doclens\.1\.json: counts must sum to .* in 1\.\S+, \d+, got 3",
    ),
    "negative": (lambda f: _counts(f, [1, -2]), r"doclens\.1\.json: .* 0 or more, got -2 in row 1"),
    "a float": (lambda f: _counts(f, [1.0]), r"got 1\.0 in row 0"),
    "NaN": (lambda f: _counts(f, "[NaN]"), r"got nan in row 0"),
    "no list": (lambda f: _counts(f, {"a": 1}), r"must be a list of counts, got dict"),
    "no JSON": (lambda f: _counts(f, "[1,"), r"doclens\.1\.json: not JSON"),
    "a gap": (lambda f: (f / "doclens.0.json").unlink(), r"doclens\.0\.json is missing, of chunks up to"),
    "no number": (lambda f: _counts(f, [1], "x"), r"doclens\.x\.json: expected doclens\.N\.json"),
    "no vectors": (lambda f: _counts(f, [1], 7), r"there is neither 7\.pt nor 7\.codes\.pt"),
}


@pytest.mark.parametrize("name", WRONG_INDEXES)
@pytest.mark.parametrize("make", [uncompressed, lambda folder: compressed(folder, 2, ".pt")])
def test_an_index_whose_files_disagree(tmp_path: Path, make: Any, name: str) -> None:
    """The file and the row are named, and no store is begun."""
    make(tmp_path / "index")
    spoil, message = WRONG_INDEXES[name]
    spoil(tmp_path / "index")
    _refused(tmp_path, message)


def _refused(tmp_path: Path, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        import_(tmp_path / "index", tmp_path / "s.zarrow")
    with pytest.raises(StoreNotFoundError):
        zarrow.open(tmp_path / "s.zarrow", partial=True)


def test_chunks_of_another_width(tmp_path: Path) -> None:
    """A width, or a dtype, that changes between chunks is refused, with both files."""
    uncompressed(tmp_path / "index")
    for other in (torch.ones(sum(counts_of(2)), 8, dtype=torch.float16), units(sum(counts_of(2)))):
        torch.save(other, tmp_path / "index/2.pt")
        _refused(tmp_path, r"2\.pt: expected vectors of 16 float16, as in 0\.pt, got (8 float16|16 float32)")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "1.residuals",
            torch.zeros(3, 4, dtype=torch.uint8),
            r"1\.residuals\.pt: \(3, 4\) uint8 does not fit",
        ),
        (
            "1.codes",
            torch.full((sum(counts_of(1)),), 8),
            r"1\.codes\.pt: codes must be .* 8 centroids, got 8",
        ),
        ("centroids", torch.ones(8), r"centroids\.pt: expected numbers with 2 axes, got \(8,\)"),
        ("buckets", (torch.ones(1),), r"buckets\.pt: not a file of numbers"),
        ("1.codes", {"a": 1}, r"1\.codes\.pt: not a file of numbers|1\.codes\.pt: expected numbers"),
    ],
)
def test_compressed_files_that_do_not_fit(tmp_path: Path, name: str, tensor: Any, message: str) -> None:
    """What would be restored to wrong vectors is refused."""
    compressed(tmp_path / "index", 2, ".pt")
    torch.save(tensor, tmp_path / "index" / f"{name}.pt")
    _refused(tmp_path, message)
    (tmp_path / "index" / f"{name}.pt").write_bytes(b"not a tensor")
    _refused(tmp_path, rf"{name}\.pt: not a file of numbers")


# SAELens

HOOK = "blocks.0.hook_resid_post"


def activations(
    folder: Path, counts: list[list[int]], *, tokens: bool = True, dtype: str = "float32"
) -> zarrow.Ragged:
    """Write a folder as ``datasets.Dataset.save_to_disk`` does, a file per list of counts."""
    folder.mkdir()
    length = counts[0][0] if counts[0] else 4
    kind = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    extension = {
        b"ARROW:extension:name": b"datasets.features.features.Array2DExtensionType",
        b"ARROW:extension:metadata": json.dumps([length, WIDTH]).encode(),
    }
    fields = [pa.field(HOOK, pa.list_(pa.list_(kind)), metadata=extension)]
    if tokens:
        fields.append(pa.field("token_ids", pa.list_(pa.int32(), length)))
    names, rows = [], []
    for place, of_file in enumerate(counts):
        made = [units(count, 10 * place + row).numpy().astype(dtype) for row, count in enumerate(of_file)]
        columns = [pa.array([one.tolist() for one in made], fields[0].type)]
        if tokens:
            columns.append(pa.array([list(range(length))] * len(made), fields[1].type))
        names.append(f"data-{place:05d}-of-{len(counts):05d}.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as sink:
            batch = pa.record_batch(columns, schema=pa.schema(fields))
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                for start in range(0, len(made), 5):
                    stream.write_batch(batch.slice(start, 5))
        rows += made
    features: dict[str, Any] = {
        HOOK: {"_type": "Array2D", "shape": [length if tokens else None, WIDTH], "dtype": dtype}
    }
    if tokens:
        features["token_ids"] = {"_type": "Sequence", "feature": {"dtype": "int32", "_type": "Value"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return zarrow.Ragged.from_list(rows)


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cached_activations(tmp_path: Path, dtype: str) -> None:
    """A folder of SAELens is recognised: a row per sequence, a vector per token, and the tokens."""
    expected = activations(tmp_path / "index", [[6] * 11, [6] * 7], dtype=dtype)
    done = CliRunner().invoke(app, ["import", str(tmp_path / "index"), str(tmp_path / "s.zarrow")])
    assert done.exit_code == 0, done.output
    with zarrow.open(tmp_path / "s.zarrow") as store:
        assert store["blocks_0_hook_resid_post"][:] == expected
        assert store["token_ids"][:].tolist() == [list(range(6))] * 18


def test_features_of_any_length(tmp_path: Path) -> None:
    """A two-dimensional feature whose first length is open is ragged, even if early rows are alike."""
    expected = activations(tmp_path / "index", [[4] * 10, [0, 7, 1]], tokens=False)
    assert import_(tmp_path / "index", tmp_path / "s.zarrow") == 13
    assert zarrow.open(tmp_path / "s.zarrow")["blocks_0_hook_resid_post"][:] == expected


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRONG_FOLDERS = {
    "no info": (lambda f: (f / "dataset_info.json").unlink(), r"dataset_info\.json: missing"),
    "nothing listed": (lambda f: _edit(f / "state.json", _data_files=[]), r"state\.json: lists no file"),
    "no list": (lambda f: _edit(f / "state.json", _data_files=None), r"state\.json: lists no _data_files"),
    "a missing file": (
        lambda f: _edit(f / "state.json", _data_files=[{"filename": "x.arrow"}]),
        r"x\.arrow: missing, though state\.json lists it",
    ),
    "no stream": (
        lambda f: (f / "data-00001-of-00002.arrow").write_bytes(b"hello" * 9),
        r"data-00001-of-00002\.arrow: not a stream of Arrow",
    ),
    "half a stream": (
        lambda f: (f / "data-00001-of-00002.arrow").write_bytes(
            (f / "data-00001-of-00002.arrow").read_bytes()[:-700]
        ),
        r"data-00001-of-00002\.arrow: not a stream of Arrow",
    ),
    "splits": (
        lambda f: (f / "dataset_dict.json").write_text('{"splits": ["train", "test"]}'),
        r"several splits: import one of \S+train, \S+test",
    ),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_folder_that_is_not_whole(tmp_path: Path, name: str) -> None:
    """The file is named, and no store is begun."""
    activations(tmp_path / "index", [[6] * 11, [6] * 7])
    spoil, message = WRONG_FOLDERS[name]
    spoil(tmp_path / "index")
    _refused(tmp_path, message)


def test_activations_whose_width_changes(tmp_path: Path) -> None:
    """The column and the row are named."""
    folder = tmp_path / "index"
    activations(folder, [[6] * 3])
    column = pa.array([[[1.0] * WIDTH], [[1.0] * WIDTH, [2.0] * 3]], pa.list_(pa.list_(pa.float32())))
    batch = pa.record_batch({HOOK: column})
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), batch.schema) as stream:
        stream.write_batch(batch)
    _refused(
        tmp_path, rf"rows from 0 on: column '{HOOK}': row 1: got lists of .*3 and of .*16|row 1: .*16.*3"
    )


def test_two_names_that_become_one(tmp_path: Path) -> None:
    """Arrays whose names differ only in characters that an array may not have are refused."""
    table = pa.table({"a.b": pa.array([[1.0, 2.0]]), "a_b": pa.array([[1.0, 2.0]])})
    pa.parquet.write_table(table, tmp_path / "index")
    with pytest.raises(InvalidInputError, match=r"would both become the array 'a_b'"):
        import_(tmp_path / "index", tmp_path / "s.zarrow", "parquet")


def test_lists_of_lists_of_one_length_are_ragged(tmp_path: Path) -> None:
    """Parquet of pandas has no fixed sizes: outer lengths that differ, and inner ones that do not, tell."""
    rows = [[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]]
    pa.parquet.write_table(pa.table({"v": rows}), tmp_path / "a.parquet")
    import_(tmp_path / "a.parquet", tmp_path / "s.zarrow")
    found = zarrow.open(tmp_path / "s.zarrow")["v"]
    assert [found[row].tolist() for row in range(3)] == rows


def test_datasets_of_the_library(tmp_path: Path) -> None:
    """What ``datasets`` itself saves comes in, as its reader has it."""
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'zarrow[engines]'")
    features = datasets.Features(
        {
            HOOK: datasets.Array2D(shape=(6, WIDTH), dtype="float32"),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=6),
            "text": datasets.Value("string"),
        }
    )
    acts = np.random.default_rng(0).standard_normal((9, 6, WIDTH)).astype("float32")
    made = {HOOK: acts, "token_ids": np.arange(54).reshape(9, 6), "text": list("abcdefghi")}
    datasets.Dataset.from_dict(made, features=features).save_to_disk(tmp_path / "index", num_shards=2)
    assert import_(tmp_path / "index", tmp_path / "s.zarrow") == 9
    with zarrow.open(tmp_path / "s.zarrow") as store:
        assert np.array_equal(store["blocks_0_hook_resid_post"].packed[:].reshape(acts.shape), acts)
        assert np.array_equal(store["token_ids"][:], made["token_ids"])
        assert store.table()["text"].to_pylist() == made["text"]
