"""EveryQuery's own commands, whole, killed and resumed, with zarrow's writer in them: are the files the same?

Makes a small MEDS dataset of generated subjects, trains EveryQuery's two demo models on it for one epoch, and
lets ``EQ_predict`` and ``EQ_predict_multitask`` predict a grid of tasks (of the first one some are censored):

1. with EveryQuery's own writer, or loop;
2. with zarrow's writer (``python -m zarrow.everyquery``);
3. with zarrow's again, SIGKILLed in the middle and started a second time;
4. with zarrow's on two ranks, which both commands by themselves refuse.

Then it compares the files, schemas and every value, runs ``EQ_evaluate`` or ``EQ_evaluate_multitask`` on all
of them, and, if it is installed, ``meds-evaluation-cli`` on exports of the store and of EveryQuery's own
file. Nothing is downloaded: the model's configuration is written here, its weights are trained here.

Run it with the Python of an environment that has EveryQuery; see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import yaml

import zarrow
from zarrow.errors import ZarrowError

FILES = ("predictions.parquet", "predictions.embeddings.parquet")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "PYTHONWARNINGS": "ignore",
}


def call(log: Path, *command: str) -> float:
    """Run a command to its end, its output into a file; return the seconds that it took."""
    print("·", " ".join(command), flush=True)
    start = time.perf_counter()
    with log.open("ab") as output:
        code = subprocess.run(command, env=ENVIRONMENT, stdout=output, stderr=output, check=False).returncode
    if code:
        raise SystemExit(f"{command[0]} ended with {code}; its last words in {log}:\n{tail(log)}")
    return time.perf_counter() - start


def tail(log: Path) -> str:
    """Return the last lines of a log, progress bars left out."""
    lines = [line.rsplit("\r", 1)[-1] for line in log.read_text(errors="replace").splitlines()]
    return "\n".join(lines[-30:])


def prepare(folder: Path, log: Path, subjects: int) -> None:
    """Make the dataset, the tasks and a trained model; what is there already is kept."""
    done = folder / "prepared"
    if done.exists():
        return
    meds, intermediate, cohort = folder / "meds", folder / "intermediate", folder / "cohort"
    call(
        log,
        "build_sample_MEDS_dataset",
        f"N_subjects={subjects}",
        f"output_dir={meds}",
        "dataset_spec/data_generator=sample",
    )
    call(
        log,
        "EQ_process_data",
        f"input_dir={meds}",
        f"intermediate_dir={intermediate}",
        f"output_dir={cohort}",
        "do_reshard=True",
        "do_demo=True",
    )
    for split in ("train", "tuning"):
        call(
            log,
            "EQ_generate_training_tasks",
            f"data_dir={intermediate}",
            f"out_dir={folder / 'tasks'}",
            f"query_codes={cohort}",
            f"split={split}",
            "num_queries=32",
            "num_contexts_per_query=2",
            "min_prediction_times_per_subject=2",
        )
    backbone = folder / "backbone"
    save = f"from transformers import ModernBertConfig; ModernBertConfig().save_pretrained({str(backbone)!r})"
    call(log, sys.executable, "-c", save)
    call(
        log,
        "EQ_train",
        "--config-name=_demo_train",
        f"output_dir={folder / 'run'}",
        f"datamodule.config.task_labels_dir={folder / 'tasks'}",
        f"datamodule.config.tensorized_cohort_dir={cohort}",
        f"+lightning_module.model.model_name={backbone}",
    )
    # 20 codes and 5 durations: with more than 100 kinds of tasks EQ_evaluate 0.7.0 fails now and then, as
    # polars guesses the type of a metric from the first 100, where it may be null throughout.
    codes = pq.read_table(cohort / "metadata" / "codes.parquet", columns=["code"])
    queries = folder / "queries.parquet"
    pq.write_table(codes.take(list(range(0, codes.num_rows, codes.num_rows // 20))[:20]), queries)
    call(
        log,
        "EQ_generate_evaluation_tasks",
        f"data_dir={intermediate}",
        f"out_dir={folder / 'evaluation'}",
        f"query_codes={queries}",
        "split=held_out",
        "min_context_per_subject=2",
        "prediction_times_per_subject=5",
    )
    for path in (folder / "evaluation" / "eval" / "held_out").glob("*.parquet"):
        # The generated subjects are never lost to follow-up: every seventh label becomes unknown.
        tasks = pl.read_parquet(path).with_row_index()
        label = pl.when(pl.col("index") % 7 != 3).then("boolean_value").alias("boolean_value")
        tasks.with_columns(label).drop("index").write_parquet(path)
    for split in ("train", "tuning"):
        call(
            log,
            "EQ_generate_multitask_sequences",
            f"data_dir={intermediate}",
            f"out_dir={folder / 'labels'}",
            f"query_codes={cohort}",
            f"split={split}",
            "num_training_examples=200",
            "num_bounds=3",
            "min_prediction_times_per_subject=2",
        )
    call(
        log,
        "EQ_train",
        "--config-name=_demo_train_conditional_multitask_ar",
        f"output_dir={folder / 'multitask-run'}",
        f"datamodule.config.task_labels_dir={folder / 'labels'}",
        f"datamodule.config.tensorized_cohort_dir={cohort}",
    )
    call(
        log,
        "EQ_generate_evaluation_query_sequences",
        f"data_dir={intermediate}",
        f"out_dir={folder / 'grid'}",
        f"query_codes={cohort}",
        "split=held_out",
        "prediction_times_per_subject=10",
        "min_context_per_subject=2",
        "num_evaluation_sequences=32",
        "min_task_positives=null",
    )
    done.touch()


def run_on_two_ranks(folder: Path) -> None:
    """Copy the trained model's folder, with a trainer of two processes."""
    copy = folder / "run-on-two-ranks"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "run", copy)
    config = copy / "resolved_config.yaml"
    body = yaml.safe_load(config.read_text())
    body["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config.write_text(yaml.safe_dump(body))


def arguments(folder: Path, output: Path, batch_size: int, num_workers: int) -> list[str]:
    """Return the arguments of EQ_predict, or of EQ_predict_multitask."""
    output.mkdir(parents=True, exist_ok=True)
    given = [f"output_parquet={output / FILES[0]}", f"batch_size={batch_size}", f"num_workers={num_workers}"]
    if output.parent.name == "multitask":
        given += [f"model_run_dir={folder / 'multitask-run'}", f"tasks_dir={folder / 'grid' / 'eval'}"]
        given += ["device=cpu", "precision=32-true", "enable_progress_bar=false"]
        own = [] if output.name == "own" else ["save_embeddings=true"]
        return [*given, *own, *(["devices=2"] if output.name == "ranks" else [])]
    return [
        *given,
        f"model_run_dir={folder / ('run-on-two-ranks' if output.name == 'ranks' else 'run')}",
        f"tasks_dir={folder / 'evaluation' / 'eval' / 'held_out'}",
        "save_embeddings=true",
    ]


def kill_midway(log: Path, command: list[str], store: Path, rows: int) -> int:
    """Start a command and SIGKILL it once its store has this many rows; return its rows."""
    print("·", " ".join(command), f"  # until {rows} rows are stored, then SIGKILL", flush=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while stored_rows(store) < rows:
            if process.poll() is not None:
                raise SystemExit(f"it ended with {process.returncode} before it was killed:\n{tail(log)}")
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the data loader's workers too
        process.wait()
    return stored_rows(store)


def stored_rows(path: Path) -> int:
    """Return the rows that a store has by now; 0 if there is none yet."""
    try:
        with zarrow.open(path, partial=True) as store:
            return store.num_rows
    except (ZarrowError, OSError):
        return 0


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs between the files of two runs: schemas, and every value."""
    found = []
    for name in FILES:
        if not (one / name).exists():  # EQ_predict_multitask has no embeddings
            continue
        left, right = pq.read_table(one / name), pq.read_table(other / name)
        if left.schema.remove_metadata() != right.schema.remove_metadata():
            found.append(f"{name}: schema")
        found += [f"{name}: {column}" for column in left.column_names if left[column] != right[column]]
    return found


def evaluate(log: Path, folder: Path, *, multitask: bool) -> pl.DataFrame:
    """Run EveryQuery's evaluation, and return its table in an order of its own."""
    predictions, metrics = f"predictions_parquet={folder / FILES[0]}", folder / "metrics.parquet"
    if multitask:
        call(log, "EQ_evaluate_multitask", predictions, f"metrics_stem={folder / 'metrics'}")
        return pl.read_parquet(folder / "metrics.by_task.parquet")
    call(log, "EQ_evaluate", predictions, f"metrics_parquet={metrics}")
    return pl.read_parquet(metrics).sort("query", "duration_days")


def evaluate_as_meds(log: Path, folder: Path, own: Path) -> dict[str, Any]:
    """Run meds-evaluation-cli on exports of a store, and of EveryQuery's own file; return what differs."""
    module = [sys.executable, "-c", "from zarrow.__main__ import main; main()"]
    shutil.rmtree(folder / "meds", ignore_errors=True)
    (folder / "meds").mkdir()
    imported = folder / "meds" / "own.zarrow"
    call(log, *module, "import", str(own / FILES[0]), str(imported), "--from", "everyquery")
    stores = {"store": folder / "predictions.zarrow", "own": imported}
    for name, store in stores.items():
        call(log, *module, "export", str(store), str(folder / "meds" / name), "--to", "meds")
    tasks = json.loads((folder / "meds" / "store" / "tasks.json").read_text())
    files = [task["file"] for task in tasks if task["file"]]
    differing = [
        file
        for file in files
        if not pq.read_table(folder / "meds" / "store" / file).equals(
            pq.read_table(folder / "meds" / "own" / file)
        )
    ]
    report = {"tasks": len(files), "left out": sum(task["left_out"] for task in tasks), "differ": differing}
    if shutil.which("meds-evaluation-cli", path=ENVIRONMENT["PATH"]) is None:
        return report
    both = [
        file
        for file in files
        if len(set(pq.read_table(folder / "meds" / "store" / file)[2].to_pylist())) == 2
    ]
    for file in both[:2]:
        found = []
        for name in stores:
            output = folder / "meds" / f"{name}.json"
            path = folder / "meds" / name / file
            call(log, "meds-evaluation-cli", f"predictions_path='{path}'", f"output_file={output}")
            found.append(output.read_text())
        if found[0] != found[1]:
            differing.append(f"{file}: meds-evaluation")
    return report | {"by meds-evaluation": both[:2]}


def run(log: Path, folder: Path, command: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one of the commands in every way, and return a report."""
    multitask = command == "EQ_predict_multitask"
    base = folder / "multitask" if multitask else folder
    runs = {name: base / name for name in ("own", "zarrow", "resumed", "ranks")}
    for path in runs.values():
        shutil.rmtree(path, ignore_errors=True)
    own, ours, resumed, ranks = (
        arguments(folder, path, options.batch_size, options.num_workers) for path in runs.values()
    )
    module = [sys.executable, "-m", "zarrow.everyquery", *(["multitask"] if multitask else [])]
    report: dict[str, Any] = {"seconds": {}}
    seconds = report["seconds"]
    seconds["own"] = call(log, command, *own)
    seconds["zarrow's writer"] = call(log, *module, *ours)
    report["rows"] = pq.read_metadata(runs["own"] / FILES[0]).num_rows

    store = runs["resumed"] / "predictions.zarrow"
    report["rows after SIGKILL"] = kill_midway(log, [*module, *resumed], store, report["rows"] // 3)
    report["files after SIGKILL"] = [name for name in FILES if (runs["resumed"] / name).exists()]
    seconds["zarrow's writer, the rest"] = call(log, *module, *resumed)
    seconds["zarrow's writer on two ranks"] = call(log, *module, *ranks)
    report["seconds"] = {name: round(value, 1) for name, value in seconds.items()}

    report["differences"] = {
        name: differences(runs["own"], path) + differences(runs["zarrow"], path)
        for name, path in runs.items()
        if name != "own"
    }
    metrics = {name: evaluate(log, path, multitask=multitask) for name, path in runs.items()}
    report["tasks evaluated"] = metrics["own"].height
    report["same metrics"] = all(table.equals(metrics["own"]) for table in metrics.values())
    report["meds"] = evaluate_as_meds(log, runs["zarrow"], runs["own"])
    with zarrow.open(store) as opened:
        report["store"] = repr(opened)
    return report


def main() -> None:
    """Run all of it and print a report; exit with 1 if the files differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("everyquery-out"), help="folder for everything")
    parser.add_argument("--subjects", type=int, default=200, help="subjects to generate")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    options = parser.parse_args()
    folder: Path = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    prepare(folder, log, options.subjects)
    run_on_two_ranks(folder)
    report = {
        command: run(log, folder, command, options) for command in ("EQ_predict", "EQ_predict_multitask")
    }
    print(json.dumps(report, indent=2))
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    for one in report.values():
        wrong = any(one["differences"].values()) or one["files after SIGKILL"] or one["meds"]["differ"]
        if wrong or not one["same metrics"]:
            raise SystemExit("the files differ")
    print("the files are the same")


if __name__ == "__main__":
    main()
