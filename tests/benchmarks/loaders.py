"""Loaders — rows per second that reach a training loop, compared with the alternatives.

Run it from the repository::

    python3 tests/benchmarks/loaders.py                       # 200,000 x 768 float32 in batches of 256
    python3 tests/benchmarks/loaders.py --only memmap zarrow zarrow-map --repeat 9 --json out.json
    python3 tests/benchmarks/loaders.py --quality             # how well an order is mixed
    python3 tests/benchmarks/loaders.py --guide examples/guides/performance.md    # write the table there

Every contender stores the same vectors, ids and labels in its own format, and hands batches of tensors to a
loop that does nothing. In each round every contender reads an epoch, or as much of it as it can in
``--seconds``, in an order of its own; the table shows medians. What matters is the ratio to ``memmap``: a
raw file, and a permutation of its rows, in the same process. Each batch is compared with what was stored, and
no row may come twice, so a contender cannot win by reading the wrong rows.

Contenders whose package is missing are left out. annbatch needs Python 3.12 or newer, and the others torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from harness import command, put_table, show_table, versions

BLOCK = 8192
Batch = tuple[Any, Any]


class Data:
    """The vectors, a block at a time, and the labels. A vector begins with the number of its row."""

    def __init__(self, rows: int, width: int, batch: int) -> None:
        self.rows, self.width, self.batch = rows, width, batch
        self.label = np.random.default_rng(1).integers(0, 2, rows)
        self._pool = np.random.default_rng(0).standard_normal((BLOCK, width)).astype(np.float32)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, self.rows, BLOCK):
            ids = np.arange(start, min(start + BLOCK, self.rows))
            block = self._pool[: len(ids)].copy()
            block[:, 0] = ids
            yield ids, self.label[ids], block

    def check(self, vectors: Any, labels: Any) -> np.ndarray:
        """Return the rows of a batch, compared with what was stored, up to its second value."""
        found = np.asarray(vectors[:, :2])
        rows = found[:, 0].astype(np.int64)
        np.testing.assert_array_equal(found[:, 1], self._pool[rows % BLOCK, 1])
        np.testing.assert_array_equal(np.asarray(labels).astype(np.int64).reshape(-1), self.label[rows])
        return rows


class Memmap:
    """A raw file under `numpy.memmap`, and a true permutation."""

    package = "numpy"

    def __init__(self, folder: Path, data: Data) -> None:
        path, self.data = folder / "vectors.raw", data
        with path.open("wb") as file:
            for _, _, block in data.blocks():
                file.write(block.tobytes())
        self.vectors = np.memmap(path, np.float32, "r").reshape(data.rows, data.width)

    def batches(self, epoch: int) -> Iterator[Batch]:
        tensor = _tensor()
        order = np.random.default_rng(epoch).permutation(self.data.rows)
        for start in range(0, len(order), self.data.batch):
            rows = order[start : start + self.data.batch]
            yield tensor(self.vectors[rows]), tensor(self.data.label[rows])


class MemmapMap(Memmap):
    """The same file in a DataLoader: what torch's loader takes for itself."""

    package = "torch"
    workers = 0

    def __len__(self) -> int:
        return self.data.rows

    def __getitems__(self, rows: list[int]) -> Batch:
        tensor = _tensor()
        return tensor(self.vectors[rows]), tensor(self.data.label[rows])

    def batches(self, epoch: int) -> Iterator[Batch]:
        yield from _loader(self, self.data, shuffle=True, num_workers=self.workers, collate_fn=_as_it_is)


class MemmapMapWorkers(MemmapMap):
    """The same with two workers."""

    workers = 2


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _tensor() -> Callable[[np.ndarray], Any]:
    """Return what makes a tensor; without torch (annbatch's Python) the array will do."""
    try:
        import torch
    except ModuleNotFoundError:
        return lambda values: values
    return torch.from_numpy


class Zarrow:
    """`StoreIterableDataset`, shuffled, as it is by default."""

    package = "zarrow.torch"
    options: ClassVar[dict[str, Any]] = {}
    workers: int | None = None

    def __init__(self, folder: Path, data: Data) -> None:
        import zarrow

        self.path, self.data = folder / "s.zarrow", data
        with zarrow.Writer(self.path) as writer:
            for _, label, block in data.blocks():
                writer.append({"label": label}, {"v": block})
            writer.finalize()
        self.dataset = self.make()

    def make(self) -> Any:
        from zarrow.torch import StoreIterableDataset

        return StoreIterableDataset(
            self.path, self.data.batch, columns=["label"], shuffle=True, **self.options
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        self.dataset.set_epoch(epoch)
        yield from _pairs(self.dataset if self.workers is None else self.loader())

    def loader(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(self.dataset, batch_size=None, num_workers=self.workers)


class ZarrowUnthreaded(Zarrow):
    """The same, without its thread."""

    options: ClassVar = {"prefetch": 0}


class ZarrowWorkers(Zarrow):
    """The same in a DataLoader with two workers."""

    workers = 2


class ZarrowMap(Zarrow):
    """`StoreDataset` in a DataLoader, shuffled."""

    workers = 0

    def make(self) -> Any:
        from zarrow.torch import StoreDataset

        return StoreDataset(self.path, columns=["label"])

    def batches(self, epoch: int) -> Iterator[Batch]:
        yield from _pairs(_loader(self.dataset, self.data, shuffle=True, num_workers=self.workers))


class ZarrowMapWorkers(ZarrowMap):
    """The same with two workers."""

    workers = 2


def _loader(dataset: Any, data: Data, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=data.batch, **options)


def _pairs(batches: Any) -> Iterator[Batch]:
    for batch in batches:
        yield batch["v"], batch["label"]


class Lance:
    """Lance's own torch dataset, in the order of the file."""

    package = "lance"

    def __init__(self, folder: Path, data: Data) -> None:
        import lance
        import pyarrow as pa

        self.path, self.data = str(folder / "v.lance"), data
        schema = pa.schema({"label": pa.int64(), "v": pa.list_(pa.float32(), data.width)})

        def batches() -> Any:
            for _, label, block in data.blocks():
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), data.width)
                yield pa.record_batch([pa.array(label), vectors], schema=schema)

        lance.write_dataset(batches(), self.path, schema)

    def batches(self, epoch: int) -> Iterator[Batch]:
        from lance.torch.data import LanceDataset

        yield from _pairs(LanceDataset(self.path, self.data.batch, columns=["label", "v"]))


class HuggingFace:
    """Hugging Face datasets, shuffled by the DataLoader's sampler."""

    package = "datasets"

    def __init__(self, folder: Path, data: Data) -> None:
        import datasets

        features = datasets.Features(
            {
                "label": datasets.Value("int64"),
                "v": datasets.List(datasets.Value("float32"), length=data.width),
            }
        )
        from datasets.arrow_writer import ArrowWriter

        with ArrowWriter(features=features, path=str(folder / "v.arrow")) as writer:
            for _, label, block in data.blocks():
                writer.write_batch({"label": label, "v": list(block)})
            writer.finalize()
        self.data = data
        self.dataset = datasets.Dataset.from_file(str(folder / "v.arrow")).with_format("torch")

    def batches(self, epoch: int) -> Iterator[Batch]:
        yield from _pairs(_loader(self.dataset, self.data, shuffle=True))


class LitData:
    """litdata's optimized chunks, shuffled by its own loader."""

    package = "litdata"

    def __init__(self, folder: Path, data: Data) -> None:
        from litdata.streaming.cache import Cache

        self.path, self.data = str(folder / "lit"), data
        cache = Cache(self.path, chunk_bytes="64MB")
        for ids, label, block in data.blocks():
            for row, number in enumerate(ids.tolist()):
                cache[number] = {"label": int(label[row]), "v": block[row]}
        cache.done()
        cache.merge()

    def batches(self, epoch: int) -> Iterator[Batch]:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(self.path, shuffle=True, seed=epoch)
        yield from _pairs(StreamingDataLoader(dataset, batch_size=self.data.batch, num_workers=0))


class MosaicML:
    """MosaicML Streaming's shards, shuffled by its own dataset."""

    package = "streaming"

    def __init__(self, folder: Path, data: Data) -> None:
        from streaming import MDSWriter

        self.path, self.data = str(folder / "mds"), data
        columns = {"label": "int", "v": f"ndarray:float32:{data.width}"}
        with MDSWriter(out=self.path, columns=columns) as writer:
            for _, label, block in data.blocks():
                for row in range(len(block)):
                    writer.write({"label": int(label[row]), "v": block[row]})

    def batches(self, epoch: int) -> Iterator[Batch]:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        dataset = StreamingDataset(
            local=self.path, batch_size=self.data.batch, shuffle=True, shuffle_seed=epoch
        )
        yield from _pairs(_loader(dataset, self.data))


class AnnBatch:
    """annbatch over an AnnData of its own chunks, shuffled by chunk and within what it preloads."""

    package = "annbatch"

    def __init__(self, folder: Path, data: Data) -> None:
        import zarr

        self.data = data
        shape = (data.rows, data.width)
        group = zarr.open_group(str(folder / "a.zarr"), mode="w")
        self.vectors = group.create_array(
            "X",
            shape=shape,
            chunks=(256, data.width),
            shards=(32_768, data.width),
            dtype="f4",
            compressors=None,
        )
        start = 0
        shard: list[np.ndarray] = []
        for _, _, block in data.blocks():
            shard.append(block)
            if len(shard) * BLOCK == 32_768:
                self.vectors[start : start + 32_768] = np.concatenate(shard)
                start, shard = start + 32_768, []
        if shard:
            self.vectors[start:] = np.concatenate(shard)

    def batches(self, epoch: int) -> Iterator[Batch]:
        import pandas as pd
        from annbatch import Loader

        loader = Loader(
            batch_size=self.data.batch, chunk_size=256, preload_nchunks=64, shuffle=True,
            preload_to_gpu=False, rng=np.random.default_rng(epoch),
        )  # fmt: skip
        loader.add_dataset(self.vectors, obs=pd.DataFrame({"label": self.data.label}))
        for batch in loader:
            yield batch["X"], batch["obs"]["label"].to_numpy()


CONTENDERS: dict[str, Callable[[Path, Data], Any]] = {
    "memmap": Memmap,
    "memmap-map": MemmapMap,
    "memmap-map-workers": MemmapMapWorkers,
    "zarrow": Zarrow,
    "zarrow-unthreaded": ZarrowUnthreaded,
    "zarrow-workers": ZarrowWorkers,
    "zarrow-map": ZarrowMap,
    "zarrow-map-workers": ZarrowMapWorkers,
    "lance": Lance,
    "huggingface": HuggingFace,
    "litdata": LitData,
    "mosaicml": MosaicML,
    "annbatch": AnnBatch,
}


def cpu_s() -> float:
    """Return the processor time of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def read_epoch(contender: Any, data: Data, epoch: int, seconds: float) -> dict[str, float]:
    """Read an epoch, for as long as that, then check the rows of another one, and return the figures."""
    rows, used, began = 0, cpu_s(), time.perf_counter()
    batches = contender.batches(epoch)
    for vectors, _ in batches:
        rows += len(vectors)
        if time.perf_counter() - began > seconds:
            break
    wall = time.perf_counter() - began
    batches.close()
    return {"rows_per_s": rows / wall, "cpu_us_per_row": 1e6 * (cpu_s() - used) / rows}


def check_epoch(contender: Any, data: Data, seconds: float) -> None:
    """Raise `AssertionError` unless the rows are those that were stored, each once."""
    began, found = time.perf_counter(), []
    for vectors, labels in contender.batches(0):
        found.append(data.check(vectors, labels))
        if time.perf_counter() - began > seconds:
            break
    else:
        assert sum(map(len, found)) == data.rows, "rows are missing"
    rows = np.concatenate(found)
    assert len(np.unique(rows)) == len(rows), "rows came twice"


def compare(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Run the contenders round by round, and return medians."""
    data, contenders = Data(options.rows, options.width, options.batch_rows), {}
    for name in options.only:
        try:
            importlib.import_module(CONTENDERS[name].package)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        (folder / name).mkdir()
        contenders[name] = CONTENDERS[name](folder / name, data)
        check_epoch(contenders[name], data, options.seconds)
        print(f"wrote and checked {name}", file=sys.stderr)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for epoch in range(1, options.repeat + 1):
        for name, contender in contenders.items():
            runs[name].append(read_epoch(contender, data, epoch, options.seconds))
    base, results = next(iter(runs)), {}
    for name, some in runs.items():
        rounds = list(zip(some, runs[base], strict=True))
        results[name] = {
            "rows_per_s": statistics.median(one["rows_per_s"] for one in some),
            "cpu_us_per_row": statistics.median(one["cpu_us_per_row"] for one in some),
            "ratio": statistics.median(one["rows_per_s"] / other["rows_per_s"] for one, other in rounds),
            "cpu_ratio": statistics.median(
                one["cpu_us_per_row"] / other["cpu_us_per_row"] for one, other in rounds
            ),
        }
    return results


def quality(options: argparse.Namespace, folder: Path) -> None:
    """Print how alike the labels of rows are that follow each other, for labels that come in runs."""
    import zarrow
    from zarrow.torch import StoreIterableDataset

    rows = options.rows
    with zarrow.Writer(folder / "q.zarrow", segment_rows=32_768) as writer:
        for start in range(0, rows, BLOCK):
            here = slice(start, min(start + BLOCK, rows))
            vectors = np.zeros((here.stop - start, options.width), np.float32)
            writer.append({"at": np.arange(start, here.stop)}, {"v": vectors})
        writer.finalize()
    lines = []
    for run in (256, 4096, 65_536):
        labels = (np.random.default_rng(run).random(rows // run + 1) < 0.5).repeat(run)[:rows]

        def told(order: np.ndarray, labels: np.ndarray = labels) -> str:
            found = labels[order].astype(float)
            means = found[: len(found) // 256 * 256].reshape(-1, 256).mean(1)
            return f"{np.corrcoef(found[:-1], found[1:])[0, 1]:.3f} / {means.std():.3f}"

        cells = [f"{run:,}", told(np.random.default_rng(0).permutation(rows))]
        for sizes in ({}, {"buffer_rows": 16_384}, {"block_rows": 32_768, "buffer_rows": 65_536}):
            dataset = StoreIterableDataset(
                folder / "q.zarrow", 256, columns=["at"], arrays=["v"], shuffle=True, **sizes
            )
            cells.append(told(np.concatenate([batch["at"].numpy() for batch in dataset])))
        lines.append((*cells, told(np.arange(rows))))
    print("Correlation of the labels of neighbours, and deviation of a batch's mean label (256 rows)\n")
    head = ["runs of equal labels", "permutation", "default", "buffers of 16,384", "blocks of a segment"]
    show_table([*head, "file order"], lines)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="longest time to read, per round")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--quality", action="store_true", help="measure only how well rows are mixed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--guide", type=Path, help="file in whose place for it the table is put")
    parser.add_argument("--folder", type=Path, default=Path(), help="directory on the disk to measure")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loaders-", dir=options.folder))
    try:
        if options.quality:
            quality(options, folder)
            return
        found = compare(options, folder)
    finally:
        shutil.rmtree(folder)
    base = next(iter(found))
    used = versions("zarrow", *(CONTENDERS[name].package for name in found), "torch")
    title = f"{options.rows:,} x {options.width} float32, batches of {options.batch_rows}, medians of "
    title += f"{options.repeat} rounds, {os.cpu_count()} cores; {used}"
    head = ["loader", "rows / s", f"/ {base}", f"CPU / {base}"]
    rows = [
        (name, f"{one['rows_per_s']:,.0f}", f"{one['ratio']:.3g}", f"{one['cpu_ratio']:.3g}")
        for name, one in found.items()
    ]
    print(title + "\n")
    show_table(head, rows)
    if options.guide:
        put_table(options.guide, "loaders", title, head, rows)
    if options.json:
        figures = {"options": vars(options), "versions": used, "medians": found}
        options.json.write_text(json.dumps(figures, default=str, indent=1))


if __name__ == "__main__":
    command(main)
