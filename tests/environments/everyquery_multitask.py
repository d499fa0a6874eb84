"""EveryQuery's own ``EQ_predict_multitask``, with its loop and with zarrow's writer, killed and resumed.

Hydra, the command's main, its trainer, the model and the evaluation are EveryQuery's; only weights and grid
are made up, so that nothing has to be trained. Every run and every comparison is a process of its own,
forked from this one, which only imports (threads do not survive a fork), so that it takes a second. Prints a
report as JSON.

    python everyquery_multitask.py FOLDER [--kills 20] [--rows 600] [--peak]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}

import every_query.predict.predict_multitask as command
import numpy as np
import polars as pl
import torch
from every_query.data.multitask_eval_dataset import MultitaskEvalBatch
from every_query.evaluate.evaluate_multitask import compute_multitask_metrics
from every_query.model.conditional_multitask_ar_model import ConditionalMultitaskARModel
from every_query.model.conditional_multitask_lightning import ConditionalMultitaskLightningModule
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

import zarrow
import zarrow.analysis
from zarrow.everyquery import __main__ as ours

CODES = {f"CODE//{i}": i for i in range(1, 12)}
WINDOWS, TOKENS, HIDDEN = 3, 8, 16


class Grid(Dataset):
    """A grid of eight sequences of one to three questions, asked in turn."""

    has_starts = has_bound_events = has_forced_answers = True
    code_to_index = CODES

    def __init__(self, rows: int, pause_s: float) -> None:
        self._rows, self._pause_s = rows, pause_s
        specs = [self._spec(i) for i in range(8 * 7)]
        self.schema_df = pl.DataFrame(
            {
                "subject_id": np.arange(rows) // 7,
                "prediction_time": pl.Series(
                    np.datetime64("2020-01-01", "us") + np.arange(rows) * np.timedelta64(3600 * 10**6, "us")
                ),
                **{name: [specs[i % 56][name] for i in range(rows)] for name in specs[0]},
            },
            schema_overrides={
                **dict.fromkeys(("durations", "start_durations"), pl.List(pl.Float32)),
                **dict.fromkeys(("start_events", "bound_events"), pl.List(pl.String)),
                **dict.fromkeys(("answers", "forced_answers"), pl.List(pl.Boolean)),
            },
        )

    @staticmethod
    def _spec(row: int) -> dict[str, list[Any]]:
        of, count = row % 8, 1 + row % 8 % 3
        return {
            "queries": [f"CODE//{1 + (of + 3 * k) % 11}" for k in range(count)],
            "durations": [(30.0, -1.0, 7.3)[(of + k) % 3] for k in range(count)],
            "start_durations": [(0.0, 0.1)[(of + k) % 2] for k in range(count)],
            "start_events": [None] * count,
            "bound_events": [(None, "CODE//2", None)[(of + k) % 3] for k in range(count)],
            "answers": [(row * 5 + k) % 7 < 3 for k in range(count)],
            "forced_answers": [*[True if of == 4 else None] * (count - 1), None],
        }

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, rows: list[int]) -> MultitaskEvalBatch:
        time.sleep(self._pause_s)
        specs = [self._spec(row) for row in rows]
        counts = torch.tensor([len(spec["queries"]) for spec in specs])
        shape = (len(rows), int(counts.max()))
        floats = {name: torch.zeros(shape) for name in ("durations", "start_durations")}
        codes = {
            name: torch.zeros(shape, dtype=torch.long) for name in ("queries", "bound_events", "start_events")
        }
        answers = torch.zeros(shape, dtype=torch.bool)
        for i, spec in enumerate(specs):
            for name, values in floats.items():
                values[i, : counts[i]] = torch.tensor(spec[name])
            for name, values in codes.items():
                values[i, : counts[i]] = torch.tensor([CODES.get(code, 0) for code in spec[name]])
            answers[i, : counts[i]] = torch.tensor(spec["answers"])
        last, each = counts - 1, torch.arange(len(rows))
        tokens = (torch.tensor(rows)[:, None] * 7 + torch.arange(TOKENS)) % 11 + 1
        tokens[torch.arange(TOKENS) >= 3 + torch.tensor(rows)[:, None] % 5] = 0
        mask = torch.arange(shape[1]) < counts[:, None]
        return MultitaskEvalBatch(
            code=tokens,
            numeric_value=torch.zeros(tokens.shape),
            numeric_value_mask=torch.zeros(tokens.shape, dtype=torch.bool),
            time_delta_days=torch.zeros(tokens.shape),
            q_start_durations=floats["start_durations"],
            q_start_codes=codes["start_events"],
            q_durations=floats["durations"],
            q_bound_codes=codes["bound_events"],
            q_mask=mask,
            condition_codes=codes["queries"][:, :-1] * mask[:, 1:],
            condition_answers=answers[:, :-1] & mask[:, 1:],
            scored_codes=codes["queries"][each, last],
            labels=answers[each, last],
            n_queries=counts,
        )


class Data(LightningDataModule):
    """The data module of a grid."""

    def __init__(self, rows: int, pause_s: float) -> None:
        super().__init__()
        self.predict_dataset = Grid(rows, pause_s)

    def predict_dataloader(self) -> DataLoader[Any]:
        size = 256 if len(self.predict_dataset) > 5000 else 8
        return DataLoader(self.predict_dataset, batch_size=size, collate_fn=self.predict_dataset.collate)


def model(*_: Any, **__: Any) -> tuple[None, ConditionalMultitaskLightningModule, None]:
    """Return a model with random weights, always the same."""
    torch.manual_seed(0)
    shape = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
    }
    overrides = {
        "hidden_size": HIDDEN,
        "max_position_embeddings": 64,
        "vocab_size": 12,
        "pad_token_id": 0,
        **shape,
    }
    return None, ConditionalMultitaskLightningModule(
        ConditionalMultitaskARModel(config_overrides=overrides, max_windows=WINDOWS)
    ), None  # fmt: skip


class Memory:
    """By how much the anonymous memory of this process has grown, at the most, since the grid is there."""

    grown_mb = 0

    def begin(self) -> None:
        self._before = self._now_mb()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.grown_mb = max(self.grown_mb, self._now_mb() - self._before)
            time.sleep(0.01)

    @staticmethod
    def _now_mb() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def start(folder: Path, who: str, rows: int, pause_s: float, *arguments: str) -> int:
    """Fork a process that runs the command, and return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        folder.mkdir(exist_ok=True)
        log = os.open(folder / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        command.setup_model = model
        command.check_grid_ontology_provenance = lambda *_: None
        memory = Memory()

        def data(*_: Any, **__: Any) -> Data:
            found = Data(rows, pause_s)
            memory.begin()
            return found

        command.build_predict_datamodule = data
        given = ["model_run_dir=.", f"tasks_dir={folder}", f"output_parquet={folder}/p.parquet", *arguments]
        given += ["device=cpu", "precision=32-true", "enable_progress_bar=false", f"hydra.run.dir={folder}"]
        sys.argv = ["EQ_predict_multitask", *(["multitask"] if who == "zarrow" else []), *given]
        (ours.main if who == "zarrow" else command.main)()
        status = 0
    finally:
        (folder / "peak.txt").write_text(str(memory.grown_mb))
        os._exit(status)


def run(folder: Path, who: str, rows: int, pause_s: float, *arguments: str) -> float:
    """Run the command to its end, and return the seconds that it took."""
    begun = time.perf_counter()
    _, status = os.waitpid(start(folder, who, rows, pause_s, *arguments), 0)
    if status:
        raise SystemExit(f"{who} failed: {(folder / 'log.txt').read_text()[-3000:]}")
    return time.perf_counter() - begun


def apart(folder: Path, look: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own, and return what it returns."""
    child = os.fork()
    if not child:
        try:
            (folder / "answer.json").write_text(json.dumps(look(*args)))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the parent raises
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(1)
    return json.loads((folder / "answer.json").read_text())


def stored(folder: Path) -> int:
    """Return the rows that a run has stored."""
    try:
        with zarrow.open(folder / "p.zarrow", partial=True) as store:
            return store.num_rows
    except zarrow.errors.ZarrowError:
        return 0


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--peak", action="store_true", help="compare time and peak memory instead")
    options = parser.parse_args()
    folder, rows = options.folder.resolve(), options.rows
    folder.mkdir(exist_ok=True, parents=True)
    report: dict[str, Any] = {}
    if options.peak:
        for who in ("original", "zarrow"):
            seconds = run(folder / f"{who}{rows}", who, rows, 0.0)
            peak = int((folder / f"{who}{rows}" / "peak.txt").read_text())
            report[who] = {"seconds": round(seconds, 1), "grown by MB": peak}
        print(json.dumps(report))
        return
    pause_s = 0.002
    run(folder / "original", "original", rows, pause_s)
    asked = ("save_embeddings=true", "save_windows=true")
    seconds = run(folder / "whole", "zarrow", rows, pause_s, *asked)
    random.seed(0)
    killed, at = 0, []
    for number in range(options.kills):
        here = folder / "killed"
        shutil.rmtree(here, ignore_errors=True)
        child = start(here, "zarrow", rows, pause_s, *asked)
        time.sleep(random.uniform(0.1, 1.0) * seconds)
        killed += not os.waitpid(child, os.WNOHANG)[0]
        try:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        at.append(apart(folder, stored, here))
        done = (here / "p.parquet").exists()
        run(here, "zarrow", rows, pause_s, *asked, *(["overwrite=true"] if done else []))
        same = apart(folder, equal, here / "p.parquet", folder / "original" / "p.parquet")
        if (
            not same
            or not apart(folder, equal, *(one / "p.embeddings.parquet" for one in (here, folder / "whole")))
            or not apart(folder, equal_windows, here, folder / "whole")
        ):
            raise SystemExit(
                f"kill {number}, with {at[-1]} rows stored: the files are not those of a whole run"
            )
    report |= {"rows": rows, "killed": killed, "rows stored by then": at} | apart(folder, compared, folder)
    print(json.dumps(report))


def equal(one: Path, other: Path) -> bool:
    """Tell whether two files have the same schema and rows."""
    found, expected = pl.read_parquet(one), pl.read_parquet(other)
    return found.schema == expected.schema and found.equals(expected)


def equal_windows(one: Path, other: Path) -> bool:
    """Tell whether the states of all windows are equal, row by row."""
    found, expected = (zarrow.open(folder / "p.zarrow") for folder in (one, other))
    keys = expected.table(list(expected.keys))
    rows = found.locate(keys)
    found_states, expected_states = found["window_embed"][rows], expected["window_embed"][:]
    same = np.array_equal(found_states.values, expected_states.values)
    return same and np.array_equal(found_states.counts, expected_states.counts)


def compared(folder: Path) -> dict[str, Any]:
    """Compare EveryQuery's file and ours, and what EveryQuery's evaluation makes of them."""
    frames = [pl.read_parquet(folder / name / "p.parquet") for name in ("original", "whole")]
    metrics = [compute_multitask_metrics(frame) for frame in frames]
    found = zarrow.analysis.evaluate(
        zarrow.open(folder / "whole" / "p.zarrow"), by="task", bootstrap=1000, draws="cells"
    ).table
    theirs = sorted(
        (low, high) for low, high in metrics[0].select("auroc_ci_lo", "auroc_ci_hi").drop_nulls().rows()
    )
    both = zip(found["auroc_low"].to_pylist(), found["auroc_high"].to_pylist(), strict=True)
    return {
        "same file": frames[0].equals(frames[1]) and frames[0].schema == frames[1].schema,
        "same metrics": metrics[0].equals(metrics[1]),
        "same intervals": sorted(one for one in both if one[0] is not None) == theirs,
        "tasks": metrics[0].height,
    }


if __name__ == "__main__":
    main()
