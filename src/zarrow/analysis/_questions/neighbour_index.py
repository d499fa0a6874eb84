"""Neighbour index — finding nearest rows without scoring every row, by an index of faiss.

`build_neighbours` writes ``index/ARRAY.METRIC.neighbours``: lists of rows around centres (an inverted file:
Sivic and Zisserman, *Video Google*, ICCV 2003), and a byte per number of a row (scalar quantization). A
search looks into the lists whose centres are nearest to the query, takes the rows whose codes are best as
candidates, and scores those by their vectors in the store (`_numbers.topk`): scores are exact, and
rows can only be missing. The share that is found is measured when the index is made: `NeighbourIndex.recall`.
Of a million rows of 768 numbers, Gaussian and so without clusters, 98.9 % of the 10 nearest were found
(``tests/benchmarks/analysis.py --recall``).

The file is faiss's own, followed by a document (FORMAT.md, section 4) that says which rows it is of and its
checksum, the document's size (u64) and ``ZARROWN1``. It is derived: a reader ignores it if it is of other
rows than the snapshot's, and checks it before faiss parses it. A crash while it is written leaves a scratch
file in ``open/``, which the next writer removes, and either the old index or the new one.
"""

from __future__ import annotations

import errno
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from zarrow._format import documents, layout
from zarrow._format.checksum import crc32c
from zarrow._format.layout import ROW
from zarrow._format.records import Identity
from zarrow._storage import files, reading
from zarrow._storage.objects import ObjectPath
from zarrow._write.directory import exclusively
from zarrow.analysis._numbers.moments import unit_rows
from zarrow.analysis._numbers.topk import Metric, TopK
from zarrow.analysis._questions.answer import Answer
from zarrow.analysis._rows.arguments import require_choice
from zarrow.analysis._rows.blocks import Progress, as_matrix, blocks, choose_array, part_of, width_of
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    MissingExtraError,
    NotFoundError,
    WriteFailedError,
    ZarrowError,
)
from zarrow.store import Store, StoreArray

__all__ = ["NeighbourIndex", "build_neighbours", "search"]

MAGIC = b"ZARROWN1"
TAIL_BYTES = 16
TRAINED_PER_LIST = 64
MAX_TRAINED = 100_000
CANDIDATES = 20
ASKED, ASKED_K = 200, 10
WANTED_RECALL = 0.95
FEW = 39  # with fewer rows per list, faiss warns


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NeighbourIndex(Answer):
    """An index of neighbours, and how good it is.

    Parameters
    ----------
    path : Path or ObjectPath
        The file.
    array : str
        The array.
    metric : {"cosine", "dot", "l2"}
        The measure of nearness.
    rows : int
        Rows in the index: those that are finite.
    size_bytes : int
        Size of the file, which a search holds in memory.
    probes : int
        Number of lists that a search looks into.
    recall : float
        Share of the true 10 nearest that was found, for 200 rows drawn at random, each without itself.
    """

    path: Path | ObjectPath
    array: str
    metric: Metric
    rows: int
    size_bytes: int
    probes: int
    recall: float


def build_neighbours(
    store: Store,
    array: str | None = None,
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    progress: Progress | None = None,
) -> NeighbourIndex:
    """Write the index that lets ``nearest(approximate=True)`` find neighbours: durable on return.

    It takes two passes over the array, and memory for the index (a byte per number: a quarter of float32
    vectors) and for a sample of up to 100,000 rows. The index is derived: it can be removed and rebuilt at
    any time, and must be rebuilt after rows were appended.

    Parameters
    ----------
    store : Store
        A complete store.
    array : str, optional
        The array; may be left out if there is only one.
    metric : {"cosine", "dot", "l2"}
        The measure of nearness; each index is for one.
    seed : int
        Random seed of the sample.
    progress : callable, optional
        Called with the number of rows done and the total.

    Returns
    -------
    NeighbourIndex
        The index, with its measured recall.

    Raises
    ------
    IncompleteStoreError
        If the store was not finalized.
    InvalidInputError
        If it has fewer than two finite rows, or the metric is not one of these.
    MissingExtraError
        If faiss is not installed.
    WriteFailedError
        If the index cannot be written; the store is unchanged.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> found = zarrow.analysis.build_neighbours(store)
    >>> found.rows, found.recall > 0.9
    (5000, True)
    >>> zarrow.analysis.nearest(store, [7], k=1, approximate=True).rows
    array([[7]])
    """
    require_choice("metric", metric, Metric)
    if not store.complete:
        raise IncompleteStoreError(
            f"{store.path}: only a complete store can have an index of neighbours: finalize it first"
        )
    faiss = _faiss()
    chosen = choose_array(store, array)
    generator = np.random.default_rng(seed)
    sample = np.sort(generator.permutation(store.num_rows)[:MAX_TRAINED])
    drawn = as_matrix(chosen.take(sample))
    trained = _ready(drawn[np.isfinite(drawn).all(axis=1)], metric)
    if len(trained) < 2:
        raise InvalidInputError(f"an index needs at least two finite rows, array {chosen.name!r} has fewer")
    lists = min(max(int(4 * np.sqrt(store.num_rows)), 1), max(len(trained) // TRAINED_PER_LIST, 1))
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(width_of(chosen), f"IVF{lists},SQ8", kind)
    if len(trained) < FEW:
        index.cp.min_points_per_centroid = 1  # or faiss warns
    index.train(trained)
    for block in blocks(store, chosen, progress=part_of(progress, 0, 2)):
        finite = block.split()[0]
        index.add_with_ids(_ready(finite.values, metric), finite.rows)
    asked = np.sort(generator.permutation(store.num_rows)[:ASKED])
    asked = asked[np.isfinite(as_matrix(chosen.take(asked))).all(axis=1)]
    probes, recall = _measure(store, chosen, index, metric, asked, lists, part_of(progress, 1, 2))
    facts = {
        "of": store.identity,
        "array": chosen.name,
        "metric": metric,
        "rows": int(index.ntotal),
        "probes": probes,
        "recall": recall,
    }
    _write(store, _path(chosen.name, metric), faiss.serialize_index(index), facts)
    _, found = _read(store, chosen, metric)
    return found


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(f"this needs {error.name}: pip install 'zarrow[neighbours]'") from error
    return faiss


def _ready(values: npt.NDArray[np.float64], metric: str) -> npt.NDArray[np.float32]:
    """Return rows as faiss takes them."""
    return np.ascontiguousarray(unit_rows(values) if metric == "cosine" else values, np.float32)


def _measure(
    store: Store,
    array: StoreArray,
    index: Any,
    metric: Metric,
    asked: npt.NDArray[np.int64],
    lists: int,
    progress: Progress | None,
) -> tuple[int, float]:
    """Return the number of lists to look into, and the recall that this has."""
    vectors = as_matrix(array.take(asked))
    k = min(ASKED_K, int(index.ntotal) - 1)
    true = TopK(vectors, k, metric, asked)
    for block in blocks(store, array, progress=progress):
        true.add(block)
    probes, recall = 0, 0.0
    while probes < lists and recall < WANTED_RECALL:
        probes = min(max(2 * probes, 8), lists)
        found = _search(array, index, probes, vectors, k, metric, None, asked).rows
        pairs = zip(found, true.rows, strict=True)
        recall = float(np.mean([len(np.intersect1d(one, other)) / k for one, other in pairs]))
    return probes, recall


# The file


def _path(array: str, metric: str) -> str:
    return f"{layout.INDEX_DIR}/{array}.{metric}{layout.NEIGHBOURS_SUFFIX}"


def _write(store: Store, path: str, data: npt.NDArray[np.uint8], facts: dict[str, Any]) -> None:
    document = documents.encode_document(
        {**facts, "index_bytes": int(data.size), "index_crc32c": crc32c(data)}
    )
    root = store.path
    pieces: list[Any] = [data.data, document, len(document).to_bytes(8, "little"), MAGIC]
    try:
        if isinstance(root, ObjectPath):
            with tempfile.NamedTemporaryFile(prefix="zarrow-") as made:
                made.writelines(pieces)
                made.flush()
                store.require_unchanged()
                found = Path(made.name)
                root.put(path, reading.open_file(found.parent, found.name))
            return
        with exclusively(root, Identity(**store.identity)):
            files.make_dir(root / layout.INDEX_DIR, exist_ok=True)
            files.sync_dir(root)
            files.replace(root / path, b"".join(pieces), scratch=root / layout.OPEN_DIR)
    except ZarrowError:
        raise
    except OSError as error:
        raise WriteFailedError(
            error.errno or errno.EIO, f"{root / path}: cannot be written: {error}; the store is unchanged"
        ) from error


def _read(store: Store, array: StoreArray, metric: Metric) -> tuple[npt.NDArray[np.uint8], NeighbourIndex]:
    """Return the index of the store's rows in faiss's own form, checked.

    Raises
    ------
    NotFoundError
        If there is no index of these rows.
    CorruptionError
        If it is damaged.
    """
    path = store.path / _path(array.name, metric)
    advice = f"build it: zarrow neighbours {store.path} --array {array.name} --metric {metric}"
    try:
        data = np.asarray(reading.map_file(store.path, _path(array.name, metric)))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no index of neighbours; {advice}") from None
    tail = data[-TAIL_BYTES:].tobytes()
    size = int.from_bytes(tail[:8], "little")
    most = min(data.size - TAIL_BYTES, documents.MAX_OWNER_BYTES)
    if len(tail) < TAIL_BYTES or tail[8:] != MAGIC or size > most:
        raise CorruptionError(f"{path}: not an index of neighbours; {advice}")
    facts = documents.decode_document(data[-TAIL_BYTES - size : -TAIL_BYTES].tobytes(), str(path))
    if facts.get("of") != store.identity:
        raise NotFoundError(f"{path}: the index is of other rows than the store has; {advice}")
    if facts.get("array") != array.name or facts.get("metric") != metric:
        raise CorruptionError(
            f"{path}: holds the index of array {facts.get('array')!r} for {facts.get('metric')}; {advice}"
        )
    index = data[: -TAIL_BYTES - size]
    if index.size != facts.get("index_bytes") or crc32c(index) != facts.get("index_crc32c"):
        raise CorruptionError(f"{path}: damaged; {advice}")
    rows, probes, recall = facts.get("rows"), facts.get("probes"), facts.get("recall")
    if type(rows) is not int or type(probes) is not int or not isinstance(recall, int | float):
        raise CorruptionError(f"{path}: breaks the format; {advice}")
    return index, NeighbourIndex(
        path=path,
        array=array.name,
        metric=metric,
        rows=rows,
        size_bytes=data.size,
        probes=probes,
        recall=recall,
    )


# Searches


def search(
    store: Store,
    array: StoreArray,
    queries: npt.NDArray[np.float64],
    k: int,
    metric: Metric,
    filter: pc.Expression | None,
    excluded: npt.NDArray[np.int64] | None,
) -> TopK:
    """Return the best of the rows that the index of the store's rows leads to.

    Raises
    ------
    NotFoundError
        If there is no such index.
    CorruptionError
        If it is damaged.
    """
    faiss = _faiss()
    data, facts = _read(store, array, metric)
    try:
        index = faiss.deserialize_index(data)
        parameters = faiss.SearchParametersIVF(nprobe=facts.probes)
        index.search(np.zeros((1, queries.shape[1]), np.float32), 1, params=parameters)
    except (AssertionError, AttributeError, MemoryError, RuntimeError, TypeError) as error:
        raise CorruptionError(
            f"{facts.path}: faiss cannot read it ({error}): build it again: zarrow neighbours"
        ) from error
    allowed = None if filter is None else store.table([ROW], filter)[ROW].to_numpy()
    return _search(array, index, facts.probes, queries, k, metric, allowed, excluded)


def _search(
    array: StoreArray,
    index: Any,
    probes: int,
    queries: npt.NDArray[np.float64],
    k: int,
    metric: Metric,
    allowed: npt.NDArray[np.int64] | None,
    excluded: npt.NDArray[np.int64] | None,
) -> TopK:
    import faiss

    best = TopK(queries, k, metric, excluded)
    options: dict[str, Any] = {"nprobe": probes}
    if allowed is not None:
        options["sel"] = faiss.IDSelectorBatch(np.ascontiguousarray(allowed, np.int64))
    parameters = faiss.SearchParametersIVF(**options)
    step = 64
    for start in range(0, len(queries), step):
        asked = _ready(queries[start : start + step], metric)
        rows = index.search(asked, max(CANDIDATES * k, 100), params=parameters)[1]
        number, place = np.nonzero((rows >= 0) & (rows < len(array)))
        if len(number):
            used, places = np.unique(rows[number, place], return_inverse=True)
            best.offer(number + start, used, as_matrix(array.take(used)), places)
    return best
