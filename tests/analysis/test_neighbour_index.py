"""Index of neighbours — what it finds, to which rows it belongs, and what damage does."""

import faiss
import numpy as np
import pyarrow.compute as pc
import pytest

import zarrow
from zarrow._format.checksum import crc32c
from zarrow._format.documents import decode_document, encode_document
from zarrow.analysis import build_neighbours, nearest
from zarrow.errors import CorruptionError, IncompleteStoreError, InvalidInputError, NotFoundError

ROWS, WIDTH = 8000, 16


@pytest.fixture(autouse=True)
def one_thread():
    """OpenMP threads that wait for each other spin, where others want the cores."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def write(path, vectors, **options):
    with zarrow.Writer(path, segment_rows=4096, **options) as writer:
        writer.append({"id": np.arange(len(vectors))}, {"e": vectors})
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((ROWS, WIDTH)) + 4 * rng.standard_normal((50, WIDTH))[np.arange(ROWS) % 50]
    vectors[5] = np.nan
    vectors[6] = 0
    return write(tmp_path_factory.mktemp("index") / "a.zarrow", vectors.astype(np.float32))


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_it_finds_most_with_exact_scores(made, metric):
    """The measured recall is that of other queries too; what is found has the exact score."""
    index = build_neighbours(made, metric=metric)
    assert index.rows == ROWS - 1
    assert index.recall >= 0.9
    assert index.size_bytes < made["e"].nbytes
    asked = np.arange(1000, 1200)
    exact = nearest(made, asked, k=10, metric=metric, exclude_self=True)
    found = nearest(made, asked, k=10, metric=metric, exclude_self=True, approximate=True)
    shared = [len(set(one) & set(other)) for one, other in zip(exact.rows, found.rows, strict=True)]
    assert np.mean(shared) / 10 > index.recall - 0.05
    assert 5 not in found.rows
    scores = {
        (q, r): s for q, rows in enumerate(exact.rows) for r, s in zip(rows, exact.scores[q], strict=True)
    }
    for query, rows in enumerate(found.rows):
        for row, score in zip(rows, found.scores[query], strict=True):
            assert scores.get((query, row), score) == score


def test_a_filter_holds(made):
    """Only rows that pass the filter are found."""
    build_neighbours(made)
    found = nearest(made, [7, 8], k=5, filter=pc.field("id") < 500, approximate=True)
    assert found.rows.max() < 500


def test_an_index_of_other_rows_is_not_used(tmp_path):
    """After an append the index is not used until it is rebuilt; `verify` accepts both."""
    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    store = write(tmp_path / "a.zarrow", vectors)
    with pytest.raises(NotFoundError, match="zarrow neighbours"):
        nearest(store, [0], approximate=True)
    build_neighbours(store)
    assert nearest(store, [0], approximate=True).rows[0, 0] == 0
    with pytest.raises(NotFoundError, match="there is no index"):
        nearest(store, [0], metric="l2", approximate=True)
    write(tmp_path / "a.zarrow", vectors[:100], mode="a")
    store = zarrow.open(tmp_path / "a.zarrow")
    with pytest.raises(NotFoundError, match="other rows"):
        nearest(store, [0], approximate=True)
    build_neighbours(store)
    assert nearest(store, [650], k=2, approximate=True).rows.tolist() == [[50, 650]]
    zarrow.verify(tmp_path / "a.zarrow")


def test_damage_is_seen_before_faiss_does(tmp_path):
    """A flipped bit anywhere, or a lost tail, raises an error that says what to do."""
    store = write(
        tmp_path / "a.zarrow", np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    )
    path = build_neighbours(store).path
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 40, len(whole) - 12, len(whole) - 3):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            nearest(store, [0], approximate=True)
    for size in (0, 5, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptionError):
            nearest(store, [0], approximate=True)


def test_bad_input_is_refused(tmp_path):
    """An unknown metric, a store without rows and an incomplete one are refused."""
    store = write(tmp_path / "a.zarrow", np.full((3, 4), np.nan, np.float32))
    with pytest.raises(InvalidInputError, match="metric"):
        build_neighbours(store, metric="hamming")
    with pytest.raises(InvalidInputError, match="two finite rows"):
        build_neighbours(store)
    with zarrow.Writer(tmp_path / "b.zarrow") as writer:
        writer.append({"id": [1]}, {"e": np.ones((1, 4), np.float32)})
    with pytest.raises(IncompleteStoreError):
        build_neighbours(zarrow.open(tmp_path / "b.zarrow", partial=True))


def test_few_rows_are_no_reason_to_warn(tmp_path, capfd):
    """With few rows faiss prints no warning."""
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({}, {"e": np.eye(4, dtype=np.float32)})
        writer.finalize()
    assert build_neighbours(zarrow.open(tmp_path / "a.zarrow")).rows == 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("harm", ["faiss", "rows", "probes", "members"])
def test_an_index_of_a_hostile_store_is_refused(harm, tmp_path):
    """What is signed, but no index of these rows, is damage to zarrow, not an error of faiss."""
    vectors = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    store = write(tmp_path / "a.zarrow", vectors)
    path = build_neighbours(store).path
    data = path.read_bytes()
    size = int.from_bytes(data[-16:-8], "little")
    facts = decode_document(data[-16 - size : -16], "")
    index = b"IwFl" + bytes(500) if harm == "faiss" else data[: -16 - size]
    facts |= {"index_bytes": len(index), "index_crc32c": crc32c(index)}
    facts |= {"rows": {"rows": "7"}, "probes": {"probes": "\x1b[2J"}}.get(harm, {})
    if harm == "members":
        del facts["recall"]
    document = encode_document(facts)
    path.write_bytes(index + document + len(document).to_bytes(8, "little") + data[-8:])
    with pytest.raises(CorruptionError, match="zarrow neighbours"):
        nearest(store, [0], approximate=True)
