"""Many processes write one store, without a lock and without knowing of each other.

pip install zarrow
python examples/worker_processes.py [STORE] [--workers N]

Each worker embeds its share of the standard library's docstrings (by hashed words, which needs no model) and
writes with a Writer of its own. Here `multiprocessing` starts them; a SLURM array job or a Ray actor does the
same with `work(path, task, tasks)`, and `zarrow finalize STORE` at the end, when all of them are done.

A worker that dies loses nothing that it wrote: run it again, and it goes on where its rows end.
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
    """Return real text that every Python has: the paragraphs of its language reference."""
    texts = pydoc_data.topics.topics.values()
    return [one for text in texts for one in text.split("\n\n") if len(one) > 40]


def embed(text: str) -> np.ndarray:
    """Return a vector of length 1 that is near those of texts with the same words."""
    vector = np.zeros(WIDTH, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        number = zlib.crc32(word.encode())
        vector[number % WIDTH] += 1 if number & 1 << 31 else -1
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def batches(path: str, task: int, tasks: int) -> Iterator[np.ndarray]:
    """Yield the rows of a task, in batches, without those that an earlier attempt stored."""
    mine = np.arange(task, len(paragraphs()), tasks)
    try:
        with zarrow.open(path, partial=True) as store:
            done = store.table(["sample_index"], filter=pc.field("task") == task)["sample_index"]
        mine = np.setdiff1d(mine, done.to_numpy())
    except zarrow.errors.NotFoundError:
        pass  # nobody has written yet
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
        raise SystemExit("a worker died: run this again, and it goes on where that one's rows end")
    with zarrow.Writer(path, mode="a") as writer:  # as the command `zarrow finalize` does
        writer.finalize()

    store = zarrow.open(path)
    print(store)
    question = "how do I close a file even if an exception is raised"
    near = np.argsort(-(np.asarray(store["embedding"]) @ embed(question)))[:3]
    for text in store.take(near, ["text"])[0]["text"].to_pylist():
        print("-", " ".join(text.split())[:100])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store", nargs="?", default="paragraphs.zarrow")
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    main(arguments.store, arguments.workers)
