"""EveryQuery's commands — ``EQ_predict`` and ``EQ_predict_multitask`` with zarrow's writer in them.

The mains are EveryQuery's own, with its arguments, and what they do before the first batch and after the last
one is not touched. Replaced are, in their modules:

* ``EQ_predict``: the writer, the check that there is one process only, and the writing of the timing, which
  counts the rows that this run has predicted;
* ``EQ_predict_multitask``: the same check, the loop that keeps every batch in memory, and the frame that is
  made of it. The trainer gets the devices that it is told to use; with ``save_embeddings=true`` a prediction
  also has the hidden state that was scored, and with ``save_windows=true`` those of all windows.

Hydra reads the arguments, so the commands' own options are passed to it as additional ones (``++``).
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zarrow._predict.everyquery_tasks import WINDOWS
from zarrow.errors import ConflictError, InvalidInputError, MissingExtraError
from zarrow.everyquery import StreamingPredictionWriter, identifiers
from zarrow.transfer._everyquery import ARRAY, embeddings_path

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["main"]

_WINDOW_ROWS = 1 << 16


class _InCommand(StreamingPredictionWriter):
    """The writer in one of EveryQuery's commands, whose mains, made for one process, run in every rank."""

    _anew, _again = "overwrite=true", "run the same command again"
    _leave = False

    def teardown(self, trainer: Trainer | None, pl_module: LightningModule | None, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._leave = trainer is not None and not trainer.is_global_zero

    def close(self) -> None:
        super().close()
        if self._leave:
            # What is left of main, to rename the files or to write one, is rank 0's to do, once.
            raise SystemExit(0 if self.complete else 1)

    def timing(self, total: pa.Table) -> pa.Table:
        """Return ``EQ_predict``'s timing, of the rows that this run has predicted."""
        frame, found, rows = self._frame, [], 0
        for start in range(0, len(frame), _WINDOW_ROWS):
            tasks = identifiers(frame.slice(start, _WINDOW_ROWS)).select(["query", "duration_days"])
            stored = self._before.contains(np.arange(start, start + len(tasks)))
            tasks = tasks.filter(pa.array(~stored))
            rows += len(tasks)
            found.append(tasks.group_by(tasks.column_names).aggregate([]))
        tasks = (
            pa.concat_tables(found).group_by(["query", "duration_days"]).aggregate([]).num_rows
            if found
            else 0
        )
        seconds = total["total_seconds"][0].as_py()
        each = (seconds, rows, tasks, seconds / rows if rows else 0.0, seconds / tasks if tasks else 0.0)
        return pa.table([[value] for value in each], schema=total.schema)


class _Multitask(_InCommand):
    """What ``EQ_predict_multitask``'s main takes for the frame of predictions to write."""

    @property
    def height(self) -> int:
        return self._offset

    def write_parquet(self, path: Path) -> None:
        """Do nothing: the file was written at the end of the run."""


_OURS = ("codecs", "dtypes", "row_group_rows")
_MULTITASK_OURS = ("save_embeddings", "save_windows", "devices", "num_nodes")
"""Arguments that EveryQuery's commands do not have."""


def main() -> None:
    """Run EveryQuery's ``EQ_predict``, with its arguments, and `StreamingPredictionWriter` in it.

    If the first argument is ``multitask``, it is ``EQ_predict_multitask``, which also gets
    ``save_embeddings=true``, for the hidden state at the window of the scored query, ``save_windows=true``,
    for those of all windows, as the store's ragged array ``window_embed``, and ``devices=`` and
    ``num_nodes=``, for several ranks. ``EQ_predict`` runs on several ranks if ``trainer.devices`` and
    ``trainer.strategy`` in the ``resolved_config.yaml`` of the run say so. Both get ``codecs=``, ``dtypes=``
    and ``row_group_rows=``, as `StreamingPredictionWriter` does.

    Raises
    ------
    MissingExtraError
        If EveryQuery is not installed.
    InvalidInputError
        If this version of it has no such command, or one that is made otherwise.
    """
    arguments = sys.argv
    multitask = arguments[1:2] == ["multitask"]
    name, prepare = ("predict_multitask", _prepare_multitask) if multitask else ("predict", _prepare)
    try:
        hydra, _ = importlib.import_module("hydra"), importlib.import_module("every_query")
        command = importlib.import_module(f"every_query.predict.{name}")
    except ImportError as error:
        if "every_query" in sys.modules:
            raise InvalidInputError(
                f"this version of EveryQuery has no EQ_{name}: pip install everyquery==0.7.0"
            ) from error
        raise MissingExtraError(
            "python -m zarrow.everyquery needs EveryQuery: pip install everyquery", name=error.name
        ) from error

    @functools.wraps(command.main)
    def run(cfg: Any) -> None:
        sys.argv = arguments  # which Lightning starts other ranks with
        prepare(command, cfg)
        command.main(cfg)

    ours = _OURS + (_MULTITASK_OURS if multitask else ())
    sys.argv = [arguments[0]]
    for argument in arguments[1 + multitask :]:
        of = argument.lstrip("+").partition("=")[0].partition(".")[0]
        sys.argv.append(f"++{argument.lstrip('+')}" if of in ours else argument)
    hydra.main(version_base="1.3", config_path=command.CONFIGS, config_name=name)(run)()


def _options(cfg: Any) -> dict[str, Any]:
    """Return what a command was told that the writer is to know."""
    return {name: cfg.get(name) for name in (*_OURS, "overwrite")}


def _replace(command: Any, **ours: Any) -> None:
    """Replace functions and classes that the main of a command uses."""
    for name, one in ours.items():
        if not hasattr(command, name):
            raise InvalidInputError(
                f"{command.__name__} has no {name} to replace: install everyquery 0.7.0, which has one"
            )
        setattr(command, name, one)


def _accept(*_: Any) -> None:
    """Find nothing wrong with a trainer."""


def _prepare(command: Any, cfg: Any) -> None:
    """Put the writer into ``EQ_predict``."""
    made: list[_InCommand] = []

    def make(*args: Any, **given: Any) -> _InCommand:
        made.append(_InCommand(*args, **(given | _options(cfg))))
        return made[0]

    def write_table(timing: pa.Table, path: Path) -> None:
        pq.write_table(made[0].timing(timing), path)

    _replace(
        command,
        _StreamingPredictionWriter=make,
        _check_single_process_trainer=_accept,
        pq=types.SimpleNamespace(**vars(pq) | {"write_table": write_table}),
    )


def _prepare_multitask(command: Any, cfg: Any) -> None:
    """Put the writer into ``EQ_predict_multitask``, and its trainer on as many devices as it is to have."""
    output, options = Path(cfg["output_parquet"]), _options(cfg)
    embeddings = embeddings_path(output) if cfg.get("save_embeddings") else None
    windows = bool(cfg.get("save_windows"))
    devices, nodes = int(cfg.get("devices") or 1), int(cfg.get("num_nodes") or 1)
    if embeddings is not None and embeddings.exists() and not options["overwrite"]:
        raise ConflictError(
            f"{embeddings} already exists: pass overwrite=true, or choose another output_parquet"
        )

    def check_single_process() -> None:
        started = command.launcher_world_size()
        if started not in (1, devices * nodes):
            raise InvalidInputError(
                f"the launcher started {started} processes, but devices={devices} and num_nodes={nodes} say "
                f"{devices * nodes}: pass devices=, the processes of a node, and num_nodes="
            )

    def run_inference(model: Any, datamodule: Any, trainer: Any) -> tuple[_Multitask, None, None]:
        dataset = datamodule.predict_dataset
        if embeddings is not None or windows:
            _return_states(model, windows=windows)
        writer = _Multitask(
            output,
            dataset.schema_df,
            embeddings,
            model.model.HF_model_config.hidden_size if embeddings is not None or windows else None,
            code_to_index=dataset.code_to_index,
            windows=windows,
            **options,
        )
        trainer.callbacks.append(writer)
        trainer.predict(model, datamodule=datamodule, return_predictions=False)
        writer.close()
        if not writer.complete:
            raise SystemExit(1)  # it has warned
        return writer, None, None

    replaced: dict[str, Callable[..., Any]] = {
        "check_single_process": check_single_process,
        "run_inference": run_inference,
        "predictions_to_df": lambda _, writer, *__: writer,
    }
    if devices * nodes > 1:
        several = {"devices": devices, "num_nodes": nodes, "strategy": "ddp"}
        trainer = command.Trainer
        replaced["Trainer"] = lambda **given: trainer(**given | several)
    _replace(command, **replaced)


def _return_states(module: Any, *, windows: bool) -> None:
    """Let ``predict_step`` also return the hidden state that it scores, as ``EQ_predict``'s does.

    With `windows`, it returns those of all windows, too.
    """
    model, step = module.model, module.predict_step
    try:
        states, last_window = model.window_hidden_states, model.last_real_window
    except AttributeError as error:
        raise InvalidInputError(
            f"save_embeddings=true and save_windows=true need a model with window_hidden_states, got "
            f"{type(model).__name__}: leave them out"
        ) from error
    seen = []

    def window_hidden_states(batch: Any) -> Any:
        seen.append(states(batch))
        return seen[-1]

    def predict_step(batch: Any) -> dict[str, Any]:
        prediction, hidden = step(batch), seen.pop()
        last = last_window(batch.q_mask).to(hidden.device)
        at = last.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        found = {**prediction, ARRAY: hidden.gather(1, at).squeeze(1)}
        if windows:
            from torch.nested import nested_tensor_from_jagged

            mask = batch.q_mask.to(hidden.device)
            found[WINDOWS] = nested_tensor_from_jagged(hidden[mask], lengths=mask.sum(1))
        return found

    model.window_hidden_states, module.predict_step = window_hidden_states, predict_step


if __name__ == "__main__":
    main()
