"""EveryQuery's commands — their mains with zarrow's writer in them, and the multitask model's predictions.

EveryQuery and Hydra are not needed: modules with the names and the behaviour that the commands rely on stand
in for them. ``examples/everyquery`` runs the real ones.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

import zarrow
from zarrow.errors import BatchError, ConflictError, InvalidInputError, MissingExtraError
from zarrow.everyquery import StreamingPredictionWriter, export_predictions, identifiers, preset
from zarrow.everyquery.__main__ import main
from zarrow.lightning import PredictionWriter
from zarrow.transfer import export, import_

HIDDEN = 4
CODES = {"HR": 3, "TEMP": 5, "MEDS_DEATH": 8}
COLUMNS = [
    *("subject_id", "prediction_time", "queries", "start_durations", "start_events", "durations"),
    *("bound_events", "answers", "forced_answers", "target_code", "label", "prob"),
]
INCOMPLETE = pytest.mark.filterwarnings("ignore:.*is not written.*:UserWarning")
NOTHING_LEFT = pytest.mark.filterwarnings("ignore:Total length of .* is zero:UserWarning")


def sequences(rows: int, *, optional: bool = True) -> pl.DataFrame:
    """What EveryQuery's dataset keeps of an evaluation grid: one to three questions per row."""
    names, counts = list(CODES), [1 + i % 3 for i in range(rows)]
    columns = {
        "subject_id": list(range(rows)),
        "prediction_time": [datetime(2024, 1, 1) + timedelta(hours=i) for i in range(rows)],
        "queries": [[names[(i + k) % 3] for k in range(n)] for i, n in enumerate(counts)],
        "durations": [[30.0 if k else -1.0 for k in range(n)] for n in counts],
        "answers": [[(i + k) % 2 == 0 for k in range(n)] for i, n in enumerate(counts)],
        "start_durations": [[0.5 * k for k in range(n)] for n in counts],
        "start_events": [[None, "HR", None][:n] for n in counts],
        "bound_events": [["TEMP", None, None][:n] for n in counts],
        "forced_answers": [[True, None, None][:n] if n > 1 else [None] for n in counts],
    }
    kinds = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "queries": pl.List(pl.String)}
    kinds |= dict.fromkeys(("durations", "start_durations"), pl.List(pl.Float32))
    kinds |= dict.fromkeys(("start_events", "bound_events"), pl.List(pl.String))
    kinds |= dict.fromkeys(("answers", "forced_answers"), pl.List(pl.Boolean))
    frame = pl.DataFrame(columns, schema_overrides=kinds)
    return frame if optional else frame[:, :5]


def original(frame: pl.DataFrame) -> pl.DataFrame:
    """What EveryQuery writes, in its own words (predictions_to_df of EveryQuery 0.7.0)."""
    counts = frame["queries"].list.len().to_list()

    def column(name: str, fill: Any, kind: Any) -> pl.Series:
        given = frame[name] if name in frame.columns else pl.Series([[fill] * k for k in counts], dtype=kind)
        return given.cast(kind).alias(name)

    return pl.DataFrame(
        {
            **{name: frame[name] for name in COLUMNS[:3]},
            "start_durations": column("start_durations", 0.0, pl.List(pl.Float32)),
            "start_events": column("start_events", None, pl.List(pl.String)),
            "durations": frame["durations"],
            "bound_events": column("bound_events", None, pl.List(pl.String)),
            "answers": frame["answers"],
            "forced_answers": column("forced_answers", None, pl.List(pl.Boolean)),
            "target_code": frame["queries"].list.last(),
            "label": frame["answers"].list.last(),
            "prob": pl.Series(state(torch.arange(len(frame))).mean(1).numpy(), dtype=pl.Float32),
        }
    )


def state(rows: torch.Tensor) -> torch.Tensor:
    """The hidden state at the window of the scored query."""
    return (rows[:, None] % 64 + torch.arange(HIDDEN)) / 64


class Grid(Dataset):
    """The dataset of a grid."""

    code_to_index = CODES

    def __init__(self, frame: pl.DataFrame) -> None:
        self.schema_df = frame
        self._counts = torch.tensor(frame["queries"].list.len().to_list())

    def collate(self, rows: list[int]) -> Any:
        windows = torch.arange(3) < self._counts[rows][:, None]
        return types.SimpleNamespace(rows=torch.tensor(rows), q_mask=windows)

    def __len__(self) -> int:
        return len(self.schema_df)

    def __getitem__(self, index: int) -> int:
        return index


class Data(LightningDataModule):
    """The data module of a grid."""

    def __init__(self, frame: pl.DataFrame) -> None:
        super().__init__()
        self.predict_dataset = Grid(frame)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.predict_dataset, batch_size=8, collate_fn=self.predict_dataset.collate)


class Scorer(torch.nn.Module):
    """Finds hidden states, padded to three windows."""

    HF_model_config = types.SimpleNamespace(hidden_size=HIDDEN)

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    @staticmethod
    def last_real_window(q_mask: torch.Tensor) -> torch.Tensor:
        return q_mask.sum(1) - 1

    def window_hidden_states(self, batch: Any) -> torch.Tensor:
        found = torch.full((len(batch.rows), 3, HIDDEN), torch.nan)
        last = self.last_real_window(batch.q_mask)
        for window in range(3):
            real = last >= window
            found[real, window] = state(batch.rows[real]) - (last[real] - window)[:, None]
        return found


class Model(LightningModule):
    """Predicts as EveryQuery's multitask module does; `at` is called with the first row of every batch."""

    def __init__(
        self, frame: pl.DataFrame, at: Callable[[int], None] | None = None, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.model = Scorer(weight)
        self._at = at
        self.seen: list[int] = []
        self.labels = torch.tensor(frame["answers"].list.last().to_list())
        self.codes = torch.tensor([CODES[code] for code in frame["queries"].list.last().to_list()])

    def on_predict_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._at is not None:
            self._at(int(batch.rows[0]))

    def predict_step(self, batch: Any) -> dict[str, torch.Tensor]:
        self.seen += batch.rows.tolist()
        hidden = self.model.window_hidden_states(batch)
        scored = hidden[torch.arange(len(hidden)), self.model.last_real_window(batch.q_mask)]
        return {
            "probs": scored.mean(1),
            "labels": self.labels[batch.rows],
            "scored_codes": self.codes[batch.rows],
        }


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), logger=False, **quiet, **options)


def stop_at(row: int) -> Callable[[int], None]:
    def at(first: int) -> None:
        if first >= row:
            raise KeyError(first)

    return at


def check_file(path: Path, frame: pl.DataFrame) -> None:
    """Compare a file with what EveryQuery writes: schema, order, every value."""
    theirs = original(frame)
    theirs.write_parquet(path.with_name("original.parquet"))
    ours = pl.read_parquet(path)
    assert ours.schema == theirs.schema
    assert ours.equals(theirs)
    schemas = [pq.read_schema(one).remove_metadata() for one in (path, path.with_name("original.parquet"))]
    assert schemas[0].equals(schemas[1])


# The commands of a package that looks like EveryQuery


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Run a command of EveryQuery's with zarrow's writer in it."""

    def hydra_main(**where: Any) -> Callable[..., Any]:
        """Read the arguments as Hydra does: only with ++ may they have a name that the command does not."""

        def decorate(run: Callable[[Any], None]) -> Callable[[], None]:
            def decorated() -> None:
                cfg = {"overwrite": False, "output_parquet": None, "save_embeddings": None}
                if where["config_name"] == "predict_multitask":
                    del cfg["save_embeddings"]
                for argument in sys.argv[1:]:
                    name, _, value = argument.partition("=")
                    assert name in cfg or name.startswith("++"), argument
                    name, _, key = name.lstrip("+").partition(".")
                    cfg[name] = {key: value} if key else yaml.safe_load(value)
                run(cfg)

            return decorated

        return decorate

    def run(
        name: str, *arguments: str, frame: pl.DataFrame, model: Any = None, **names: Any
    ) -> types.ModuleType:
        command = types.ModuleType(f"every_query.predict.{name}")
        command.CONFIGS = "configs"

        def main(cfg: dict[str, Any]) -> None:
            """EveryQuery 0.7.0's, in short."""
            output = Path(cfg["output_parquet"])
            if output.exists() and not cfg["overwrite"]:
                raise FileExistsError(output)
            command.check_single_process()
            loop = command.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
                                   enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
            data = Data(frame)
            found = command.run_inference(model or Model(frame), data, loop)
            out = command.predictions_to_df(data.predict_dataset, *found)
            out.write_parquet(output)
            assert out.height == len(frame)

        parts = ("check_single_process", "run_inference", "predictions_to_df")
        for part, one in {"main": main, "Trainer": Trainer, **dict.fromkeys(parts), **names}.items():
            setattr(command, part, one)
        command.launcher_world_size = lambda: 1
        fakes = {"hydra": types.SimpleNamespace(main=hydra_main), command.__name__: command}
        for package in ("every_query", "every_query.predict"):
            fakes[package] = types.ModuleType(package)
            fakes[package].__path__ = []
        for module, fake in fakes.items():
            monkeypatch.setitem(sys.modules, module, fake)
        chosen = ["multitask"] if name == "predict_multitask" else []
        monkeypatch.setattr(sys, "argv", ["EQ", *chosen, f"output_parquet={tmp_path}/p.parquet", *arguments])
        main_of_zarrow()
        return command

    main_of_zarrow = main
    return run


multitask = "predict_multitask"


@pytest.mark.parametrize("optional", [True, False])
def test_multitask(tmp_path: Path, command: Any, optional: bool) -> None:
    """The command writes the rows of EveryQuery's own file, and defaults where the grid lacks columns."""
    frame = sequences(30, optional=optional)
    command(multitask, frame=frame)
    check_file(tmp_path / "p.parquet", frame)
    assert {path.name for path in tmp_path.iterdir()} == {"p.parquet", "original.parquet", "p.zarrow"}


def test_scored_states(tmp_path: Path, command: Any) -> None:
    """With save_embeddings=true the state at each row's own last window is stored, and found by import."""
    frame = sequences(30)
    command(multitask, "save_embeddings=true", "row_group_rows=8", "codecs=zstd", frame=frame)
    check_file(tmp_path / "p.parquet", frame)
    states = state(torch.arange(30)).numpy()
    store = zarrow.open(tmp_path / "p.zarrow")
    assert store.keys == ("subject_id", "prediction_time", "task")
    assert [codec["name"] for codec in store["query_embed"].codecs][-1] == "zstd"
    assert np.array_equal(store["query_embed"][:], states)
    assert store.table(["scored_code"])["scored_code"].to_pylist()[:3] == [3, 8, 5]
    task = json.loads(store.table(["task"])["task"][2].as_py())
    assert {name: task[name] for name in ("queries", "start_events", "prior_answers")} == {
        "queries": ["MEDS_DEATH", "HR", "TEMP"],
        "start_events": [None, "HR", None],
        "prior_answers": [True, False],
    }
    file = pq.ParquetFile(tmp_path / "p.embeddings.parquet")
    assert file.schema_arrow.names == [*COLUMNS[:-1], "embedding"]
    assert [file.metadata.row_group(i).num_rows for i in range(4)] == [8, 8, 8, 6]
    assert import_(tmp_path / "p.parquet", tmp_path / "again.zarrow", "everyquery") == 30
    again = zarrow.open(tmp_path / "again.zarrow")
    assert again.keys == store.keys
    assert np.array_equal(again["query_embed"][:], states)
    export(again, tmp_path / "again.parquet", "everyquery")
    check_file(tmp_path / "again.parquet", frame)


@NOTHING_LEFT
def test_windows(tmp_path: Path, command: Any) -> None:
    """With save_windows=true the states of all windows of a row are stored, also over a run cut short."""
    frame = sequences(30)
    arguments = ("save_windows=true", "dtypes.window_embed=float16")
    with pytest.raises(KeyError):
        command(multitask, *arguments, frame=frame, model=Model(frame, stop_at(16)))
    command(multitask, *arguments, frame=frame)
    check_file(tmp_path / "p.parquet", frame)
    assert not (tmp_path / "p.embeddings.parquet").exists()
    store = zarrow.open(tmp_path / "p.zarrow")
    assert (dict(store.arrays), list(store.ragged)) == ({}, ["window_embed"])
    windows = store["window_embed"]
    assert windows.counts.tolist() == frame["queries"].list.len().to_list()
    for row, scored in enumerate(state(torch.arange(30)).numpy()):
        each = np.arange(len(windows[row]) - 1, -1, -1)
        np.testing.assert_array_equal(windows[row], (scored - each[:, None]).astype(np.float16))
    (tmp_path / "p.parquet").unlink()
    with pytest.raises(ConflictError, match="window_embed"):
        command(multitask, "save_embeddings=true", "overwrite=false", frame=frame, model=Model(frame))


@NOTHING_LEFT
@pytest.mark.parametrize("stored", [8, 24, 30])
def test_multitask_resumed(
    tmp_path: Path, command: Any, stored: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The same command again predicts what is missing, and says where the rows are and how to go on."""
    frame = sequences(30)
    if stored < 30:
        with pytest.raises(KeyError):
            command(multitask, frame=frame, model=Model(frame, stop_at(stored)))
        assert f"p.zarrow: {stored} of 30 rows are stored: run the same command again" in caplog.text
        assert not (tmp_path / "p.parquet").exists()
    else:
        command(multitask, frame=frame)
        (tmp_path / "p.parquet").unlink()
    model = Model(frame)
    caplog.set_level(logging.INFO)
    command(multitask, frame=frame, model=model)
    assert model.seen == list(range(stored, 30))
    assert f"p.zarrow: {'30' if stored == 30 else f'{stored} of 30'} rows are taken over" in caplog.text
    check_file(tmp_path / "p.parquet", frame)


def test_what_a_multitask_store_may_not_be_resumed_with(tmp_path: Path, command: Any) -> None:
    """Another model, changed tasks, and EQ_predict's store are named, with the command's own remedy."""
    frame = sequences(30)
    with pytest.raises(KeyError):
        command(multitask, frame=frame, model=Model(frame, stop_at(16)))
    for other, message in (
        (sequences(31), "tasks: the store has 30, now 31.*added, removed"),
        (frame.reverse(), "changed or reordered since: remove it"),
        (frame.with_columns(forced_answers=frame["start_events"].list.eval(pl.lit(False))), "changed"),
    ):
        with pytest.raises(ConflictError, match=message + r".*overwrite=true"):
            command(multitask, frame=other)
    with pytest.raises(ConflictError, match="weights: the store has"):
        command(multitask, frame=frame, model=Model(frame, weight=2.0))
    single = pl.DataFrame(
        {
            "subject_id": [1],
            "prediction_time": [datetime(2024, 1, 1)],
            "query": ["HR"],
            "duration_days": [1.0],
        }
    )
    writer = StreamingPredictionWriter(tmp_path / "p.parquet", single)
    with pytest.raises(
        ConflictError, match="pipeline: the store has 'EQ_predict_multitask', now 'EQ_predict'"
    ):
        writer.setup(None, None, "predict")
    model = Model(frame)
    command(multitask, frame=frame, model=model)
    assert model.seen == list(range(16, 30))
    with pytest.raises(FileExistsError):
        command(multitask, frame=frame)
    command(multitask, "overwrite=true", frame=frame.reverse())
    check_file(tmp_path / "p.parquet", frame.reverse())


@pytest.mark.parametrize("entry", ["labels", "codes"])
def test_rows_of_other_tasks(tmp_path: Path, command: Any, entry: str) -> None:
    """If a batch has other labels or codes than its tasks, no row of it is stored."""
    frame = sequences(30)
    model = Model(frame)
    setattr(model, entry, getattr(model, entry).roll(1))
    with pytest.raises(
        BatchError, match=r"in batch 0 .*in the identifiers and in the prediction, and differs"
    ):
        command(multitask, frame=frame, model=model)
    assert not (tmp_path / "p.parquet").exists()


@INCOMPLETE
def test_multitask_that_is_cut_short(tmp_path: Path, command: Any) -> None:
    """A run without all rows writes no file, and ends with status 1."""
    limited = lambda **options: Trainer(**options, limit_predict_batches=2)  # noqa: E731
    with (
        pytest.raises(SystemExit, match="1"),
        pytest.warns(UserWarning, match="14 of 30 rows .* same command again"),
    ):
        command(multitask, frame=sequences(30), Trainer=limited)
    assert not (tmp_path / "p.parquet").exists()


def test_ranks_of_multitask(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """devices= and num_nodes= reach the trainer, and a launcher that started more processes is named."""
    asked: dict[str, Any] = {}

    def no_trainer(**options: Any) -> None:
        asked.update(options)
        raise KeyError

    with pytest.raises(KeyError):
        command(multitask, "devices=2", frame=sequences(3), Trainer=no_trainer)
    assert (asked["devices"], asked["num_nodes"], asked["strategy"]) == (2, 1, "ddp")
    assert sys.argv[1] == "multitask"  # Lightning starts the other ranks with these arguments

    def main(cfg: Any) -> None:
        module = sys.modules["every_query.predict.predict_multitask"]
        module.launcher_world_size = lambda: 4
        module.check_single_process()

    with pytest.raises(InvalidInputError, match="started 4 processes, but devices=2 and num_nodes=1 say 2"):
        command(multitask, "devices=2", frame=sequences(3), main=main)
    command(multitask, "devices=2", "num_nodes=2", frame=sequences(3), main=main)


def test_another_everyquery(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No EveryQuery, one without the command, or another one is named, with what to install."""
    monkeypatch.setattr(sys, "argv", ["EQ", "multitask"])
    with pytest.raises(MissingExtraError, match="pip install everyquery"):
        main()
    monkeypatch.setitem(sys.modules, "hydra", types.ModuleType("hydra"))
    monkeypatch.setitem(sys.modules, "every_query", types.ModuleType("every_query"))
    with pytest.raises(InvalidInputError, match=r"no EQ_predict_multitask: pip install everyquery==0\.7\.0"):
        main()

    def main_without(cfg: Any) -> None:
        raise AssertionError

    with pytest.raises(
        InvalidInputError, match=r"predict.predict has no _StreamingPredictionWriter to replace"
    ):
        command("predict", frame=sequences(3), main=main_without)


@NOTHING_LEFT
@pytest.mark.parametrize("arguments", [[], ["dtypes.query_embed=float16"]])
def test_single_timing_and_options(tmp_path: Path, command: Any, arguments: list[str]) -> None:
    """EQ_predict's timing counts the rows that a run predicted; the writer gets its options."""
    frame = pl.DataFrame(
        {
            "subject_id": range(30),
            "prediction_time": [datetime(2024, 1, 1)] * 30,
            "query": ["A"] * 20 + ["B", "C"] * 5,
            "duration_days": [1.0] * 30,
        }
    )

    class Single(LightningModule):
        def predict_step(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            if int(rows[0]) == stops:
                raise KeyError
            return {"occurs_probs": rows / 64, "censor_probs": rows / 64, "query_embed": state(rows)}

    def main(cfg: dict[str, Any]) -> None:
        module = sys.modules["every_query.predict.predict"]
        output = Path(cfg["output_parquet"]).with_suffix(".parquet.tmp")
        writer = module._StreamingPredictionWriter(
            output, frame, embeddings_output_parquet=tmp_path / "e.parquet.tmp", hidden_size=HIDDEN
        )
        loader = DataLoader(range(30), batch_size=4)
        trainer(writer).predict(Single(), loader, return_predictions=False)
        writer.close()
        names = ["total_seconds", "n_rows", "n_tasks", "seconds_per_row", "seconds_per_task"]
        kinds = [pa.float64(), pa.int64(), pa.int64(), pa.float64(), pa.float64()]
        timing = pa.table(
            [[1.0], [30], [3], [1 / 30], [1 / 3]], schema=pa.schema(zip(names, kinds, strict=True))
        )
        module.pq.write_table(timing, tmp_path / "timing.parquet")

    names = {
        "main": main,
        "_StreamingPredictionWriter": None,
        "_check_single_process_trainer": None,
        "pq": pq,
    }
    stops = 24
    with pytest.raises(KeyError):
        command("predict", *arguments, frame=frame, **names)
    stops = -1
    for rows, kinds in ((6, 2), (0, 0)):
        command("predict", *arguments, frame=frame, **names)
        assert pq.read_table(tmp_path / "timing.parquet").to_pylist() == [
            {
                "total_seconds": 1.0,
                "n_rows": rows,
                "n_tasks": kinds,
                "seconds_per_row": 1 / rows if rows else 0.0,
                "seconds_per_task": 1 / kinds if kinds else 0.0,
            }
        ]
    store = zarrow.open(tmp_path / "p.zarrow")
    assert store["query_embed"].dtype == ("float16" if arguments else "float32")
    found = pq.read_table(tmp_path / "e.parquet.tmp")["embedding"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(found.reshape(30, HIDDEN), state(torch.arange(30)).numpy())


# MEDS evaluation


def test_meds(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task gets a file of its own with its labelled rows, in the dataset's order."""
    monkeypatch.setattr("zarrow.transfer._meds._OPEN_FILES", 4)
    monkeypatch.setattr("zarrow.transfer._meds._HELD_ROWS", 8)
    frame = sequences(60)
    command(multitask, frame=frame)
    assert export(tmp_path / "p.zarrow", tmp_path / "meds", "meds") == 60
    tasks = json.loads((tmp_path / "meds" / "tasks.json").read_text())
    assert sum(task["rows"] for task in tasks) == 60
    whole = pl.from_arrow(zarrow.open(tmp_path / "p.zarrow").table())
    for task in tasks:
        found = pl.read_parquet(tmp_path / "meds" / task["file"])
        rows = whole.filter(pl.col("task") == task["task"])
        assert found.columns[:2] == ["subject_id", "prediction_time"]
        assert found.columns[2:] == [
            "boolean_value", "predicted_boolean_value", "predicted_boolean_probability"
        ]  # fmt: skip
        assert found["predicted_boolean_probability"].equals(rows["prob"])
        assert found["boolean_value"].equals(rows["label"])
        assert found["predicted_boolean_value"].equals(rows["prob"] > 0.5)
        assert found.height == task["rows"]


def test_meds_leaves_out_rows_without_a_label(tmp_path: Path) -> None:
    """Censored rows are counted, and a task of nothing else has no file; other stores are refused."""
    columns = {
        "subject_id": [1, 2, 3, 4],
        "prediction_time": pa.array([0, 1, 2, 3], pa.timestamp("us")),
        "query": pa.array(["A/1", "A/1", "A/1", "B"], pa.large_string()),
        "duration_days": np.float32([7, 7, 7, 7]),
        "boolean_value": [True, None, False, None],
        "occurs_prob": np.float32([0.75, 0.5, np.nan, 0.5]),
    }
    for name, dropped in (("s", []), ("t", ["query"])):
        with zarrow.Writer(tmp_path / f"{name}.zarrow") as writer:
            writer.append({key: value for key, value in columns.items() if key not in dropped})
            writer.finalize()
    export(tmp_path / "s.zarrow", tmp_path / "meds", "meds")
    assert json.loads((tmp_path / "meds" / "tasks.json").read_text()) == [
        {"file": "00000-A_1-7.0.parquet", "query": "A/1", "duration_days": 7.0, "rows": 1, "left_out": 2},
        {"file": None, "query": "B", "duration_days": 7.0, "rows": 0, "left_out": 1},
    ]
    assert pq.read_table(tmp_path / "meds" / "00000-A_1-7.0.parquet").to_pylist() == [
        {
            "subject_id": 1,
            "prediction_time": datetime(1970, 1, 1),
            "boolean_value": True,
            "predicted_boolean_value": True,
            "predicted_boolean_probability": 0.75,
        }
    ]
    with pytest.raises(InvalidInputError, match=r"needs the columns .* missing \['query'\]"):
        export(tmp_path / "t.zarrow", tmp_path / "no", "meds")
    with pytest.raises(InvalidInputError, match="do not choose columns"):
        export(tmp_path / "s.zarrow", tmp_path / "no", "meds", columns=["query"])
    assert not (tmp_path / "no").exists()


# Several ranks


RANKS = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_everyquery_multitask as t

folder, rows, devices, differ, kill = Path(sys.argv[1]), *map(int, sys.argv[3:])
import os, signal, time

class Model(t.Model):
    def predict_step(self, batch):
        if kill and os.environ.get("LOCAL_RANK", "0") == "1" and int(batch.rows.max()) >= kill:
            time.sleep(0.3)  # until what was predicted before is stored
            os.killpg(0, signal.SIGKILL)
        return super().predict_step(batch)

frame = t.sequences(rows)
if differ and os.environ.get("LOCAL_RANK", "0") != "0":
    frame = frame.reverse()
writer = t.StreamingPredictionWriter(folder / "p.parquet", frame, code_to_index=t.CODES)
trainer = t.trainer(writer, devices=devices, strategy="ddp")
trainer.predict(Model(frame), datamodule=t.Data(frame), return_predictions=False)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("differ", [0, 1])
def test_ranks(tmp_path: Path, differ: int) -> None:
    """Two ranks write the file of one; if they have different tasks, nothing is stored."""
    done = run_ranks(tmp_path, 60, 2, differ)
    if differ:
        assert done.returncode
        assert "every rank must have the same tasks; rank 0 has" in done.stderr
        assert not (tmp_path / "out" / "p.zarrow").exists()
    else:
        assert done.returncode == 0, done.stderr
        check_file(tmp_path / "out" / "p.parquet", sequences(60))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_killed(tmp_path: Path) -> None:
    """Two ranks that are killed in the middle leave no file, and two others go on to the same file."""
    assert run_ranks(tmp_path, 120, 2, kill=70).returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "p.parquet").exists()
    with zarrow.open(tmp_path / "out" / "p.zarrow", partial=True) as store:
        assert 0 < len(store) < 120
    done = run_ranks(tmp_path, 120, 2)
    assert done.returncode == 0, done.stderr
    check_file(tmp_path / "out" / "p.parquet", sequences(120))


def run_ranks(
    folder: Path, rows: int, ranks: int, differ: int = 0, kill: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run several ranks, with unlike tasks or killed at a row if that is wanted."""
    script = folder / "script.py"
    script.write_text(RANKS)
    given = [folder / "out", Path(__file__).parent, rows, ranks, differ, kill]
    command = [sys.executable, str(script), *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)


# The preset, and frames


def test_preset(tmp_path: Path) -> None:
    """PredictionWriter with the preset stores the same columns; without code_to_index nothing is compared."""
    frame = sequences(30)
    model = Model(frame)
    model.labels = ~model.labels
    writer = PredictionWriter(tmp_path / "run.zarrow", **preset(frame, embeddings=False))
    trainer(writer).predict(model, datamodule=Data(frame), return_predictions=False)
    export_predictions(tmp_path / "run.zarrow", tmp_path / "p.parquet")
    check_file(tmp_path / "p.parquet", frame)


def test_frames(tmp_path: Path) -> None:
    """Slices, Arrow tables and polars frames have the same identifiers; a row without a query is refused."""
    frame = sequences(12)
    whole = identifiers(frame)
    assert identifiers(frame.to_arrow().slice(5, 4)).equals(whole.slice(5, 4).combine_chunks())
    for bad in (pl.Series([[]], dtype=pl.List(pl.String)), pl.Series([None], dtype=pl.List(pl.String))):
        with pytest.raises(InvalidInputError, match="'queries' must have one query or more in every row"):
            identifiers(frame[:1].with_columns(queries=bad))
    with pytest.raises(InvalidInputError, match=r"missing \['answers'\]"):
        identifiers(frame.drop("answers"))
    with pytest.raises(InvalidInputError, match="dtypes can only say how 'query_embed' and 'window_embed'"):
        StreamingPredictionWriter(tmp_path / "p.parquet", frame, dtypes={"prob": "float16"})
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        writer.append(whole)
        writer.finalize()
    with pytest.raises(
        InvalidInputError, match="EQ_predict_multitask's predictions must have the column 'prob'"
    ):
        export_predictions(tmp_path / "s.zarrow", tmp_path / "p.parquet")
    with pytest.raises(InvalidInputError, match="row_group_rows must be at least 1, got 0"):
        export_predictions(tmp_path / "s.zarrow", tmp_path / "p.parquet", row_group_rows=0)
