"""Worker processes — many of them write one store, without locks and without knowing about each other.

pip install zarrow
python3 examples/worker_processes.py [STORE] [--workers N]

Each worker embeds its share of Python's language reference (by hashing words, which needs no model) and
writes it with its own Writer. Here `multiprocessing` starts the workers. A SLURM array job or a Ray actor can
call `work(path, task, tasks)` in the same way; run `zarrow finalize STORE` when all of them are done.

A worker that dies loses nothing it has written: run it again, and it continues after its last row.
"""

import argparse
import multiprocessing
import pydoc_data.topics
import re
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

import zarrow

WIDTH = 256
BATCH_ROWS = 64


def paragraphs() -> list[str]:
    """Return real text that comes with every Python: the paragraphs of the language reference."""
    texts = pydoc_data.topics.topics.values()
    return [one for text in texts for one in text.split("\n\n") if len(one) > 40]


def embed(text: str) -> np.ndarray:
    """Return a unit vector that is close to those of texts with the same words."""
    vector = np.zeros(WIDTH, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        number = zlib.crc32(word.encode())
        vector[number % WIDTH] += 1 if number & 1 << 31 else -1
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def batches(path: str, task: int, tasks: int) -> Iterator[np.ndarray]:
    """Yield the rows of a task in batches, except those that an earlier attempt stored."""
    mine = np.arange(task, len(paragraphs()), tasks)
    try:
        with zarrow.open(path, partial=True) as store:
            done = store.table(["sample_index"], filter=pc.field("task") == task)["sample_index"]
        mine = np.setdiff1d(mine, done.to_numpy())
    except zarrow.errors.NotFoundError:
        pass  # nothing has been written yet
    yield from np.array_split(mine, -(-len(mine) // BATCH_ROWS) or 1)


def work(path: str, task: int, tasks: int) -> None:
    """Write the rows of one task."""
    texts = paragraphs()
    with zarrow.Writer(path, mode="a", shared=True, keys=["paragraph"]) as writer:
        for rows in batches(path, task, tasks):
            if len(rows):
                columns = {
                    "paragraph": rows,
                    "task": np.full(len(rows), task),
                    "text": [texts[row] for row in rows],
                }
                writer.append(columns, {"embedding": np.stack([embed(texts[row]) for row in rows])}, rows)


def main(path: str, workers: int) -> None:
    processes = [multiprocessing.Process(target=work, args=(path, task, workers)) for task in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a worker died: run this again to continue after its last row")
    with zarrow.Writer(path, mode="a") as writer:  # as the command `zarrow finalize` does
        writer.finalize()

    store = zarrow.open(path)
    print(store)
    question = "how do I close a file even if an exception is raised"
    near = np.argsort(-(np.asarray(store["embedding"]) @ embed(question)))[:3]
    for text in store.take(near, ["text"])[0]["text"].to_pylist():
        print("-", " ".join(text.split())[:100])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", nargs="?", default="paragraphs.zarrow")
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    main(arguments.store, arguments.workers)
