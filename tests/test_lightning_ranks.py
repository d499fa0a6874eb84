"""Predict runs on several ranks — each a process launched as Lightning launches it, connected by gloo.

==================================================  =================================================
What Lightning does to a predict run on many ranks  Required result
==================================================  =================================================
distributes rows as ``rank::world_size``            the batches of a single process, distributed
gives every rank every batch of a custom sampler    distributed nevertheless
permutes differently on every rank                  every row once, in any order
asserts that every rank has rows                    a rank may have no rows
pads with repeated rows (DistributedSampler)        every row once
lets samplers of different ranks overlap            refused before the first batch, or every row once
gives every rank every row of a stream              refused at the end, or every row once
spawns or forks instead of launching                the same
numbers the ranks of every node from 0              the global rank counts
knows no indices for streams                        refused, unless ``sample_index=`` gives them
does not wait for the other ranks at the end        complete when all of them are done
kills all ranks when one dies                       resumable, with another number of ranks
==================================================  =================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler, Subset
from typer.testing import CliRunner

import zarrow
from zarrow import cli
from zarrow._predict import ranks as predict_ranks
from zarrow.errors import ZarrowError
from zarrow.lightning import MissingRowsSampler, PredictionWriter

pytestmark = pytest.mark.slow
RANK = int(os.environ.get("LOCAL_RANK", "0"))


class Numbers(Dataset):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


class Stream(IterableDataset):
    def __init__(self, *, divided: bool) -> None:
        self.divided = divided

    def __iter__(self) -> Any:
        rows = range(RANK, 20, 2) if self.divided else range(20)
        return (torch.tensor(float(i)) for i in rows)


class Buckets:
    """A batch sampler that Lightning does not know."""

    def __iter__(self) -> Any:
        return iter([[5, 3], [1], [0, 2, 4]])

    def __len__(self) -> int:
        return 3


class MyOwnShare(Buckets):
    """A batch sampler that divides the rows by itself."""

    def __iter__(self) -> Any:
        return iter([[0, 1], [4]] if RANK == 0 else [[2], [3, 5], []][:2])


class Backwards(Sampler):
    def __iter__(self) -> Any:
        return iter(range(19, -1, -1))

    def __len__(self) -> int:
        return 20


class Anyhow(Backwards):
    """Yields different rows on every rank, and some on both."""

    def __iter__(self) -> Any:
        return iter(range(5 * RANK, 5 * RANK + 8))

    def __len__(self) -> int:
        return 8


class AllOverThePlace(Backwards):
    """Yields all rows on every rank, in an order of its own."""

    def __iter__(self) -> Any:
        return iter(np.random.default_rng(RANK).permutation(20).tolist())


class Model(LightningModule):
    """A model whose values depend on which rows share a batch, as with padding."""

    def __init__(self, sleep_s: float = 0.0, how: Any = None) -> None:
        super().__init__()
        self._sleep_s = sleep_s
        self.how = how

    def predict_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        time.sleep(self._sleep_s)
        together = torch.full_like(batch, batch.sum().item())
        prediction = {"number": batch, "together": together, "query_embed": torch.stack([batch, together], 1)}
        return prediction if self.how is None else self.how(prediction)


def run(
    path: Path,
    loaders: Any,
    ranks: int,
    model: Model | None = None,
    *,
    strategy: str = "ddp",
    nodes: int = 1,
    **options: Any,
) -> PredictionWriter:
    writer = PredictionWriter(path, **options)
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        num_nodes=nodes,
        strategy=strategy if ranks * nodes > 1 else "auto",
        callbacks=[writer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(model or Model(), loaders, return_predictions=False)
    return writer


# What the ranks run: `python test_lightning_ranks.py SCENARIO FOLDER RANKS`


def every_kind_of_loader(folder: Path, ranks: int) -> None:
    ids = pa.table({"id": range(11)})
    mine = DistributedSampler(Numbers(7), num_replicas=ranks, rank=RANK)
    stored = {
        "uneven": (DataLoader(Numbers(11), batch_size=2), {"identifiers": ids, "keys": ["id"]}),
        "workers": (DataLoader(Numbers(50), batch_size=4, num_workers=2, persistent_workers=True), {}),
        "one": (DataLoader(Numbers(1), batch_size=2), {}),
        "none": (DataLoader(Numbers(0), batch_size=2), {"identifiers": ids.slice(0, 0), "keys": ["id"]}),
        "shuffled": (DataLoader(Numbers(30), batch_size=4, shuffle=True), {}),
        "subset": (DataLoader(Subset(Numbers(50), range(20, 31)), batch_size=4), {}),
        "buckets": (DataLoader(Numbers(6), batch_sampler=Buckets()), {}),
        "own share": (DataLoader(Numbers(6), batch_sampler=MyOwnShare()), {}),
        "backwards": (DataLoader(Numbers(20), batch_size=3, sampler=Backwards()), {}),
        "padded": (DataLoader(Numbers(7), batch_size=2, sampler=mine), {}),
        "missing": (
            DataLoader(Numbers(9), batch_sampler=MissingRowsSampler(folder / "missing", 9, batch_size=2)),
            {},
        ),
        "two": ([DataLoader(Numbers(5), batch_size=2), DataLoader(Numbers(3), batch_size=2)], {}),
        "stream": (
            DataLoader(Stream(divided=True), batch_size=3),
            {"sample_index": lambda batch: batch.long(), "identifiers": pa.table({"id": range(20)})},
        ),
    }
    for name, (loader, options) in stored.items():
        say(name, run(folder / name, loader, ranks, **options).complete)
    say("again", run(folder / "uneven", stored["uneven"][0], ranks, resume=True).complete)


def refused(folder: Path, ranks: int) -> None:
    def fail(name: str, *arguments: Any, path: Path | None = None, **options: Any) -> None:
        try:
            run(path or folder / name, *arguments, **options)
        except ZarrowError as error:
            say(name, str(error))
        else:
            say(name, "no error")

    loader = DataLoader(Numbers(11), batch_size=2)
    fail("stream", DataLoader(Stream(divided=True), batch_size=3), ranks)
    fail("overlap", DataLoader(Numbers(20), batch_size=3, sampler=Anyhow()), ranks)
    fail("permuted", DataLoader(Numbers(20), batch_size=3, sampler=AllOverThePlace()), ranks)
    patience_s, predict_ranks._SHARED_DISK_TIMEOUT_S = predict_ranks._SHARED_DISK_TIMEOUT_S, 1.0
    fail("other disk", loader, ranks, path=folder / f"rank{RANK}")
    predict_ranks._SHARED_DISK_TIMEOUT_S = patience_s
    fail("missing parent", loader, ranks, path=folder / "nowhere" / "s")
    run(folder / "there", loader, ranks)
    fail("there", loader, ranks)
    places = {"sample_index": torch.Tensor.long}
    fail("same stream", DataLoader(Stream(divided=False), batch_size=3), ranks, **places)
    fail("drop and replace", loader, ranks, mode="w", duplicates="drop", **places)


def replaced(folder: Path, ranks: int) -> None:
    run(folder / "s", DataLoader(Numbers(11), batch_size=2), ranks)
    say("old", run(folder / "s", DataLoader(Numbers(30), batch_size=4), ranks, mode="w").complete)
    # A run without rows replaces a store, too.
    ids = pa.table({"id": range(11)})
    run(folder / "t", DataLoader(Numbers(11), batch_size=2), ranks, identifiers=ids, keys=["id"])
    nothing = DataLoader(Numbers(0), batch_size=2)
    run(folder / "t", nothing, ranks, identifiers=ids.slice(0, 0), keys=["id"], mode="w")
    # An attempt with a failing rank leaves the old store; the other rank gets an error of gloo's.
    fail = (lambda prediction: None) if RANK else (lambda prediction: prediction)
    with contextlib.suppress(ZarrowError, RuntimeError):
        run(folder / "s", DataLoader(Numbers(40), batch_size=4), ranks, Model(0, fail), mode="w")
    say("rows", zarrow.open(folder / "s").num_rows)


def dropped(folder: Path, ranks: int) -> None:
    drop = {"duplicates": "drop"}
    overlap = DataLoader(Numbers(20), batch_size=3, sampler=Anyhow())
    say("overlap", run(folder / "overlap", overlap, ranks, **drop).complete)
    permuted = DataLoader(Numbers(20), batch_size=3, sampler=AllOverThePlace())
    say("permuted", run(folder / "permuted", permuted, ranks, **drop).complete)
    places = {"sample_index": torch.Tensor.long, "identifiers": pa.table({"id": range(20)})}
    stream = DataLoader(Stream(divided=False), batch_size=3)
    say("stream", run(folder / "stream", stream, ranks, **places, **drop).complete)


def spawned(folder: Path, ranks: int) -> None:
    ids = pa.table({"id": range(50)})
    for strategy in ("ddp_spawn", "ddp_fork"):
        loader = DataLoader(Numbers(50), batch_size=4)
        options = {"strategy": strategy, "identifiers": ids, "keys": ["id"]}
        say(strategy, run(folder / strategy, loader, ranks, **options).complete)


def node(folder: Path, ranks: int) -> None:
    """Runs once per node; each has one rank, with local number 0."""
    say("node", run(folder / "s", DataLoader(Numbers(50), batch_size=4), 1, nodes=2).complete)


def many(folder: Path, ranks: int) -> None:
    ids = pa.table({"id": range(100_003)})
    loader = DataLoader(Numbers(100_003), batch_size=512, num_workers=1)
    writer = run(folder / "s", loader, ranks, identifiers=ids, keys=["id"], segment_rows=4096)
    say("many", writer.complete)


def schemas_differ(folder: Path, ranks: int) -> None:
    how = (
        (lambda prediction: prediction)
        if RANK == 0
        else (lambda prediction: {**prediction, "number": torch.tensor([1, 2])})
    )
    loader = DataLoader(Numbers(40), batch_size=2)
    try:
        run(folder / "s", loader, ranks, Model(0.0 if RANK == 0 else 2.0, how))
    except ZarrowError as error:
        say("schema", str(error))
        raise


def slow(folder: Path, ranks: int) -> None:
    say("pid", os.getpid())
    run(
        folder / "s", DataLoader(Numbers(800), batch_size=4), ranks, Model(0.02), resume=True, segment_rows=32
    )
    say("done", True)


def slow_ones(folder: Path, ranks: int) -> None:
    for path in sorted(folder.iterdir()):
        slow(path, ranks)


def together(folder: Path, ranks: int) -> None:
    """Runs scenarios that can share processes, since importing Lightning takes longer than they do."""
    for scenario in TOGETHER:
        say.scenario = f"{scenario.__name__}/"  # type: ignore[attr-defined]
        (folder / scenario.__name__).mkdir(exist_ok=True)
        scenario(folder / scenario.__name__, ranks)


# In the last one a rank fails, and with it the gloo group that all of them share.
TOGETHER = (many, every_kind_of_loader, dropped, refused, replaced)


def say(name: str, what: Any) -> None:
    sys.stdout.write(json.dumps([RANK, getattr(say, "scenario", "") + name, what]) + "\n")
    sys.stdout.flush()


# The tests


def launch(scenario: Any, folder: Path, ranks: int = 2, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", __file__, scenario.__name__, str(folder), str(ranks)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    environment.pop("LOCAL_RANK", None)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def said(output: str) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = {}
    for line in output.splitlines():
        if line.startswith("["):
            try:
                rank, name, what = json.loads(line)
            except ValueError:
                continue
            found.setdefault(name, {})[rank] = what
    return found


def content(path: Path) -> tuple[pa.Table, np.ndarray]:
    """Return a complete store's rows in the dataset's order."""
    with zarrow.open(path) as store:
        table = store.table()
        names = [name for name in ("dataloader_idx", "sample_index") if name in table.column_names]
        order = pa.compute.sort_indices(table, sort_keys=[(name, "ascending") for name in names])
        vectors = np.asarray(store["query_embed"][:]) if "query_embed" in store.arrays else np.zeros((0, 2))
        return table.take(order).drop_columns(["row"]), vectors[order.to_numpy()]


def assert_equal(one: Path, other: Path) -> None:
    (table, vectors), (other_table, other_vectors) = content(one), content(other)
    assert table.equals(other_table)
    np.testing.assert_array_equal(vectors, other_vectors)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Return the folder of a scenario of `TOGETHER`, and the output of its two ranks."""
    folder = tmp_path_factory.mktemp("together")
    heard = succeed(together, folder)

    def of(scenario):
        prefix = f"{scenario.__name__}/"
        said_there = {
            name.removeprefix(prefix): what for name, what in heard.items() if name.startswith(prefix)
        }
        return folder / scenario.__name__, said_there

    return of


def test_every_kind_of_loader(launched, tmp_path):
    """Every row is stored once, with its own identifiers and vector, however the rows are divided."""
    folder, found = launched(every_kind_of_loader)
    rows = {"uneven": 11, "workers": 50, "one": 1, "none": 0, "shuffled": 30, "subset": 11, "buckets": 6}
    rows |= {"own share": 6, "backwards": 20, "padded": 7, "missing": 9, "stream": 20}
    for name, expected in rows.items():
        assert found[name] == {0: True, 1: True}, name
        table, vectors = content(folder / name)
        assert table["sample_index"].to_pylist() == list(range(expected)), name
        if expected:
            first = 20 if name == "subset" else 0
            assert table["number"].to_pylist() == list(range(first, first + expected)), name
            assert vectors[:, 0].tolist() == list(range(first, first + expected)), name
        if "id" in table.column_names:
            assert table["id"].to_pylist() == list(range(expected)), name
    assert found["again"] == {0: True, 1: True}
    two, _ = content(folder / "two")
    assert two["sample_index"].to_pylist() == [*range(5), *range(3)]
    # The batches are those of a single process, and so are the values.
    run(tmp_path / "alone", DataLoader(Numbers(50), batch_size=4), 1)
    assert_equal(folder / "workers", tmp_path / "alone")


def test_what_is_refused(launched):
    """Impossible runs fail early, on every rank, with the reason."""
    folder, found = launched(refused)
    for name, messages in {
        "stream": ["no record of its rows", "each of 2 ranks"],
        "overlap": ["yield 16 rows of a dataset of 20, 3 of them more than once"] * 2,
        "permuted": ["yield 40 rows of a dataset of 20, 20 of them more"] * 2,
        "other disk": [
            "not every rank sees the store",
            "rank 1 does not: choose a path on a disk that all ranks share",
        ],
        "missing parent": ["no such directory", "rank 0 could not open the store: .*no such directory"],
        "there": ["resume=True continues it", "resume=True continues it"],
        "same stream": ["stored more than once", "another rank failed: .*--drop-duplicates"],
        "drop and replace": ["exclude each other", "exclude each other"],
    }.items():
        for rank, message in enumerate(messages):
            assert re.search(message, found[name][rank]), found[name]

    # A store refused at the end is never completed with a doubled row.
    command = CliRunner().invoke
    result = command(cli.app, ["finalize", str(folder / "same stream")])
    assert result.exit_code == 1
    assert "stored more than once" in result.output
    with zarrow.open(folder / "same stream", partial=True) as store:
        assert (store.complete, store.num_rows) == (False, 40)
    result = command(cli.app, ["finalize", str(folder / "same stream"), "--drop-duplicates", "--sort"])
    assert result.exit_code == 0, result.output
    assert_numbers(folder / "same stream", range(20))


def assert_numbers(path: Path, expected: Any) -> None:
    """Assert that a complete store has these rows of `Numbers`, each once."""
    table, vectors = content(path)
    assert table["sample_index"].to_pylist() == list(expected)
    assert table["number"].to_pylist() == list(expected)
    assert vectors[:, 0].tolist() == list(expected)
    if "id" in table.column_names:
        assert table["id"].to_pylist() == list(expected)
    assert zarrow.verify(path).ok


def succeed(scenario: Any, folder: Path, ranks: int = 2) -> dict[str, dict[int, Any]]:
    process = launch(scenario, folder, ranks)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return said(output)


def test_rows_that_come_on_several_ranks_are_stored_once(launched):
    """With duplicates='drop' the store has every row once, whether or not ranks could know beforehand."""
    folder, found = launched(dropped)
    # Rows 13 to 19 come on no rank, and are missing.
    assert found == {
        "overlap": {0: False, 1: False},
        "permuted": {0: True, 1: True},
        "stream": {0: True, 1: True},
    }
    with zarrow.open(folder / "overlap", partial=True) as store:
        assert sorted(store.table()["sample_index"].to_pylist()) == list(range(13))
    assert_numbers(folder / "permuted", range(20))
    assert_numbers(folder / "stream", range(20))


def test_several_ranks_replace_a_store(launched):
    """The old store stays until all ranks are done, also if one fails, and is replaced in one step."""
    folder, found = launched(replaced)
    assert found["old"] == {0: True, 1: True}
    assert found["rows"] == {0: 30, 1: 30}
    assert_numbers(folder / "s", range(30))
    assert content(folder / "t")[0].num_rows == 0


def test_processes_that_are_spawned_or_forked(tmp_path):
    """Spawned and forked ranks store the same as launched ones, and their parent process knows the result."""
    found = succeed(spawned, tmp_path)
    for strategy in ("ddp_spawn", "ddp_fork"):
        assert found[strategy] == {0: True}
        assert_numbers(tmp_path / strategy, range(50))


def test_two_nodes(tmp_path):
    """Two nodes with one rank each, both with local rank 0, make one store with every row once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        launch(node, tmp_path, 1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK=str(number))
        for number in (0, 1)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert said(output)["node"] == {0: True}
    assert_numbers(tmp_path / "s", range(50))


def test_a_hundred_thousand_rows(launched):
    """Many segments of two ranks, claimed in any order, have every row once with its own identifier."""
    folder, found = launched(many)
    assert found["many"] == {0: True, 1: True}
    assert_numbers(folder / "s", range(100_003))


def test_ranks_whose_schemas_differ(tmp_path):
    """A rank whose batches do not fit the store ends the run; the rows of the others stay."""
    process = launch(schemas_differ, tmp_path)
    output, _ = process.communicate(timeout=280)
    assert process.returncode != 0
    assert "column 'number': expected float, got int64" in said(output)["schema"][1]
    with zarrow.open(tmp_path / "s", partial=True) as store:
        assert store.num_rows > 0


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def kill_a_run(folder: Path, victims: tuple[int, ...], number: int, after_rows: int) -> None:
    """Start a slow run on two ranks, kill some of them, and wait until all are gone."""
    process = launch(slow, folder)
    assert process.stdout is not None
    pids: dict[int, int] = {}
    while len(pids) < 2:
        line = process.stdout.readline()
        assert line, "died early"
        pids |= said(line).get("pid", {})
    deadline = time.monotonic() + 60
    rows = before = -1
    while rows < before + after_rows and time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            with zarrow.open(folder / "s", partial=True) as store:
                rows = store.num_rows
                before = rows if before < 0 else before
        except ZarrowError:
            continue
    for rank in victims:
        os.kill(pids[rank], number)
    while any(map(is_running, pids.values())) and time.monotonic() < deadline + 60:
        process.poll()
        time.sleep(0.1)
    for pid in pids.values():
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("ranks", "deaths"),
    [
        (1, {"second": ((1,), signal.SIGKILL)}),
        (2, {"terminated": ((0,), signal.SIGTERM)}),
        (3, {"first": ((0,), signal.SIGKILL), "both": ((0, 1), signal.SIGKILL)}),
    ],
)
def test_deaths(tmp_path, ranks, deaths):
    """Whichever of two ranks dies, a resumed run on one, two or three equals an undisturbed one."""
    loader = DataLoader(Numbers(800), batch_size=4)
    for name, (victims, number) in deaths.items():
        (tmp_path / name).mkdir()
        kill_a_run(tmp_path / name, victims, number, after_rows=random.randrange(8, 500))
        with zarrow.open(tmp_path / name / "s", partial=True) as store:
            assert not store.complete
            assert 0 < store.num_rows < 800
        if ranks == 1:
            run(tmp_path / name / "s", loader, 1, resume=True)
    if ranks > 1:
        succeed(slow_ones, tmp_path, ranks)
    run(tmp_path / "whole", loader, 1)
    for name in deaths:
        assert_equal(tmp_path / name / "s", tmp_path / "whole")


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
