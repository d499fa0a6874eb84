"""Dask cluster — its workers write one store together, and Dask then analyses it.

pip install 'zarrow[xarray,analysis]' distributed
python3 examples/dask_cluster.py [STORE] [--scheduler tcp://…]

Every task predicts a block of rows and appends them with the Writer that its worker keeps open. Without
--scheduler the workers are processes on this machine. Dask repeats a task whose worker died, perhaps after
the rows were written, so a task first checks which of its rows are already stored.
"""

import argparse

import numpy as np
import pyarrow.compute as pc
import xarray as xr
from distributed import Client, LocalCluster, Worker, get_worker
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import zarrow

COPIES, BLOCK_ROWS, COMPONENTS = 20, 2_000, 32


def images(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits, each several times with different noise, and their labels."""
    digits = load_digits()
    copy, which = np.divmod(rows, len(digits.data))
    noise = np.random.default_rng(int(rows[0])).normal(0, 2, (len(rows), 64))
    return digits.data[which] + noise * (copy > 0)[:, None], digits.target[which]


def predict(path: str, model: tuple[PCA, LogisticRegression], start: int, stop: int) -> int:
    """Predict a block of rows and return how many were written; runs on a worker."""
    rows = np.arange(start, stop)
    worker = get_worker()
    if not hasattr(worker, "writer"):
        worker.writer = zarrow.Writer(path, mode="a", shared=True, keys=["sample"])
    try:
        with zarrow.open(path, partial=True) as store:
            here = (pc.field("sample") >= start) & (pc.field("sample") < stop)
            rows = np.setdiff1d(rows, store.table(["sample"], filter=here)["sample"].to_numpy())
    except zarrow.errors.NotFoundError:
        pass  # nothing has been written yet
    if len(rows):
        pictures, labels = images(rows)
        vectors = model[0].transform(pictures).astype(np.float32)
        probability = model[1].predict_proba(vectors).max(axis=1)
        columns = {"sample": rows, "label": labels, "confidence": probability}
        worker.writer.append(columns, {"embedding": vectors}, rows)
        worker.writer.flush()  # to Dask the task is now done, so its rows must be safe
    return len(rows)


def close(dask_worker: Worker) -> None:
    """Close the worker's Writer; runs on every worker."""
    if hasattr(dask_worker, "writer"):
        dask_worker.writer.close()


def main(path: str, client: Client) -> None:
    digits = load_digits()
    pca = PCA(COMPONENTS, random_state=0).fit(digits.data)
    model = client.scatter(
        (pca, LogisticRegression(max_iter=500).fit(pca.transform(digits.data), digits.target)), broadcast=True
    )
    total = COPIES * len(digits.data)
    starts = range(0, total, BLOCK_ROWS)
    stops = [min(start + BLOCK_ROWS, total) for start in starts]
    written = client.gather(client.map(predict, [path] * len(stops), [model] * len(stops), starts, stops))
    client.run(close)
    with zarrow.Writer(path, mode="a") as writer:  # or, from a shell: zarrow finalize STORE
        writer.finalize()
    print(f"{sum(written):,} rows by {len(client.scheduler_info()['workers'])} workers: {zarrow.open(path)}")

    dataset = xr.open_dataset(path, chunks={})  # Dask arrays, one chunk per segment
    spread = dataset.embedding.std("row").compute()
    print(
        "widest component:",
        int(spread.argmax()),
        "mean confidence:",
        f"{float(dataset.confidence.mean()):.3f}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", nargs="?", default="digits.zarrow")
    parser.add_argument("--scheduler", help="address of a running cluster")
    arguments = parser.parse_args()
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    here = None if arguments.scheduler else LocalCluster(**options)
    with Client(arguments.scheduler or here) as client:
        main(arguments.store, client)
    if here is not None:
        here.close()
