"""How does EveryQuery predict into a store, and keep the files that its other tools read?

`StreamingPredictionWriter` takes the place of the writer in EveryQuery's ``EQ_predict``: same constructor,
same hooks, same two Parquet files in the end. In between the rows go into a store beside the files, so
that a killed run loses nothing: the same command again predicts only what is missing. Per batch it

1. finds which rows of EveryQuery's tasks the batch has, from Lightning or by counting,
2. checks the model's prediction, and hands it to the store (`_predict.prediction_store`), which has
identifiers and
   label from EveryQuery's frame of tasks (`transfer._everyquery_columns`);

and when every row is there, the store is finalized, and the files are exported
(`transfer._everyquery_files`).

``python -m zarrow.everyquery model_run_dir=... tasks_dir=... output_parquet=...`` is ``EQ_predict`` with
this writer in it.

Place: tier 5, the edge that faces EveryQuery, of which nothing is imported but by `main`. The invariant
it owns: the files are there only when all their rows are. A crash leaves an incomplete store that the next
run resumes, or a complete one that it exports.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zarrow._predict.row_set import RowSet
from zarrow.errors import BatchError, ConflictError, InvalidInputError, MissingExtraError
from zarrow.store import open as open_store
from zarrow.transfer import _everyquery_columns as columns
from zarrow.transfer._everyquery_columns import ENTRIES, PROBABILITIES, identifiers, preset, tasks_crc32c
from zarrow.transfer._everyquery_files import export_predictions
from zarrow.writer import Durability

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import BasePredictionWriter
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from zarrow._predict.choose_batches import choose_batches
    from zarrow._predict.identity import identify
    from zarrow._predict.loaders import as_indices, loaders_of, recorded_indices, trim
    from zarrow._predict.prediction_store import PredictionStore
    from zarrow.lightning import SIGTERM_EXIT_CODE, PredictionWriter
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.everyquery needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

__all__ = ["StreamingPredictionWriter", "export_predictions", "identifiers", "main", "preset"]

MAX_ROW_GROUPS = 1024
"""Up to so many batches each becomes a row group by default, as EveryQuery's own writer does."""

_TMP = ".tmp"


class StreamingPredictionWriter(BasePredictionWriter):
    """Takes the place of the streaming writer in EveryQuery's ``EQ_predict``.

    The rows go into a store; when all of them are there, the store is finalized and the Parquet files are
    written from it, the same in columns, types and values as EveryQuery's own. If the run ends early, by
    whatever means, there are no files, and the store has every finished batch: the same run again predicts
    the rest and drops nothing. Batches are those of the undisturbed run, so that padding, and with it
    every bit, is the same.

    A store is only resumed for the same tasks, model weights and precision. If it has other ones, the run
    is refused, unless it was told to overwrite: then the old store goes. A complete store of the same ones
    is not predicted again but only exported. On SIGTERM, as schedulers send it, the store is made durable,
    and the process exits with 143.

    With a trainer of several ranks every rank writes, by `zarrow.lightning.PredictionWriter`, and rank 0
    completes the store and writes the files. Batches are those of one process, so values are, too; row
    groups are those that `export_predictions` makes by default. A run that was begun on one rank goes on
    on one, and one that was begun on several on any number above one.

    Parameters
    ----------
    output_parquet : path
        Where the predictions go. ``EQ_predict`` passes a name that ends in ``.tmp`` and renames the file.
    schema_df : polars.DataFrame
        The tasks, in the dataset's order (a pyarrow Table will do as well). Kept, not copied.
    embeddings_output_parquet : path, optional
        Where the embeddings go; without it none are kept.
    hidden_size : int, optional
        Their width; must be there if they are.
    store : path, optional
        Where the store goes; by default ``predictions.zarrow`` beside ``predictions.parquet``.
    overwrite : bool
        Whether a store of other tasks or another model may be removed. It may anyway if `output_parquet`
        ends in ``.tmp`` and there is a file at the final name: ``EQ_predict`` goes on from there with
        ``overwrite=true`` only.
    one_row_group_per_batch : bool, optional
        As `export_predictions` has it; by default if there are no more than 1,024 batches.
    durability : Durability, "segment" or "batch"
        As `zarrow.Writer` has it.

    Raises
    ------
    InvalidInputError
        If an argument breaks a rule.

    Examples
    --------
    >>> import tempfile, torch, pyarrow as pa, pyarrow.parquet as pq
    >>> folder = tempfile.mkdtemp()
    >>> tasks = pa.table(
    ...     {
    ...         "subject_id": [7, 7],
    ...         "prediction_time": pa.array([0, 0], pa.timestamp("us")),
    ...         "query": ["HR", "TEMP"],
    ...         "duration_days": [30.0, 30.0],
    ...     }
    ... )
    >>> writer = StreamingPredictionWriter(folder + "/predictions.parquet", tasks)
    >>> writer.setup(trainer=None, pl_module=None, stage="predict")
    >>> prediction = {"censor_probs": torch.tensor([0.25, 0.5]), "occurs_probs": torch.tensor([0.75, 0.125])}
    >>> writer.write_on_batch_end(None, None, prediction, batch_indices=None, batch=None, batch_idx=0)
    >>> writer.close()
    >>> pq.read_table(folder + "/predictions.parquet")["occurs_prob"].to_pylist()
    [0.75, 0.125]
    """

    def __init__(
        self,
        output_parquet: str | os.PathLike[str],
        schema_df: Any,
        embeddings_output_parquet: str | os.PathLike[str] | None = None,
        hidden_size: int | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        one_row_group_per_batch: bool | None = None,
        durability: Durability | Literal["segment", "batch"] = "segment",
    ) -> None:
        super().__init__(write_interval="batch")
        if embeddings_output_parquet is not None and (hidden_size is None or hidden_size < 1):
            raise InvalidInputError(
                "embeddings_output_parquet requires hidden_size, the width of query_embed, "
                f"got {hidden_size}: pass model.config.hidden_size"
            )
        self._output = Path(output_parquet)
        self._embeddings = None if embeddings_output_parquet is None else Path(embeddings_output_parquet)
        self._frame = schema_df
        self._arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        if self._embeddings is not None and hidden_size is not None:
            self._arrays[columns.ARRAY] = ((hidden_size,), "float32")
        self.store_path = Path(os.path.abspath(_store_path(self._output) if store is None else store))
        final = self._output.with_suffix("") if self._output.suffix == _TMP else None
        self._may_replace = overwrite or (final is not None and final.exists())
        self._per_batch = one_row_group_per_batch
        self._durability = durability
        self._store = PredictionStore(self.store_path, schema_df, self._arrays, durability)
        self._is_open = False
        self._loader: Any = None
        self._undo: Callable[[], None] | None = None  # of what leaves out the batches that are stored
        self._ranks: PredictionWriter | None = None  # does the work if there are several ranks
        self._next_row = 0  # the first row of the next batch; behind _offset while stored rows come again

    @property
    def _offset(self) -> int:
        """Rows that are stored; the name is EveryQuery's, which reads it."""
        return self._store.rows

    # Lightning's hooks, in the order in which they run

    def setup(self, trainer: Trainer | None, pl_module: LightningModule | None, stage: str) -> None:
        """Open the store, and leave out the batches that it has.

        Parameters
        ----------
        trainer : Trainer or None
            Without one every batch must be handed over; those that are stored are left out then.
        pl_module : LightningModule or None
            The model, whose weights the store remembers.
        stage : str
            All but ``"predict"`` are ignored.

        Raises
        ------
        InvalidInputError
            If one row group per batch was asked for, and the trainer has several ranks.
        ConflictError, SchemaMismatchError
            If there is a store of other tasks or another model.
        StoreLockedError
            If another run is writing the store.
        """
        if stage != "predict":
            return
        self._output.parent.mkdir(parents=True, exist_ok=True)
        if trainer is not None and pl_module is not None and trainer.world_size > 1:
            self._ranks = self._share(trainer)
            self._ranks.setup(trainer, pl_module, stage)
            return
        self._store.open(self._identity(trainer, pl_module), may_replace=self._may_replace)
        self._is_open = True
        if trainer is not None and self._offset:
            stored = RowSet()
            stored.add(np.arange(self._offset))
            self._undo = choose_batches(trainer, {0: stored}, drop_duplicates=False)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the data loader, on several ranks.

        Parameters
        ----------
        trainer : Trainer
            As Lightning has it.
        pl_module : LightningModule
            Likewise.
        """
        if self._ranks is not None:
            self._ranks.on_predict_start(trainer, pl_module)

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batches that were begun, on several ranks.

        Parameters
        ----------
        trainer : Trainer
            As Lightning has it.
        pl_module : LightningModule
            Likewise.
        batch : object
            Likewise.
        batch_idx : int
            Likewise.
        dataloader_idx : int
            Likewise.
        """
        if self._ranks is not None:
            self._ranks.on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def write_on_batch_end(
        self,
        trainer: Trainer | None,
        pl_module: LightningModule | None,
        prediction: Mapping[str, Any] | None,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand a batch to the writer: queued on return.

        Parameters
        ----------
        trainer : Trainer or None
            As Lightning has it.
        pl_module : LightningModule or None
            Likewise.
        prediction : mapping of str to tensor
            ``censor_probs`` and ``occurs_probs``, shape (rows,), and ``query_embed``, shape
            (rows, hidden_size), of any floating-point type, on any device. Other entries are not kept.
        batch_indices : sequence of int, or None
            Not needed: rows are counted, as EveryQuery's writer does.
        batch : object
            Not needed.
        batch_idx : int
            As Lightning has it.
        dataloader_idx : int
            There must be one data loader only.

        Raises
        ------
        BatchError
            If the batch breaks a rule; nothing of it is stored, and all of the batches before it.
        WriteFailedError
            If an earlier batch could not be written; says which rows are safe.
        """
        if self._ranks is not None and trainer is not None and pl_module is not None:
            self._ranks.write_on_batch_end(
                trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
            )
            return
        if not self._is_open:
            raise InvalidInputError(
                "StreamingPredictionWriter got a batch before setup(trainer, pl_module, 'predict') opened "
                "its store, or after close()"
            )
        if dataloader_idx:
            raise BatchError(
                f"schema_df names the rows of one data loader, got a batch of number {dataloader_idx}: "
                "predict with one loader"
            )
        if trainer is not None:
            self._find_place(trainer, batch_idx)
        self._write(prediction)
        if trainer is not None:
            trim(self._loader, batch_idx)
            if trainer.received_sigterm:
                # The scheduler kills us soon, and starts us again.
                self._store.flush()
                raise SIGTERMException(SIGTERM_EXIT_CODE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep every finished batch: accepted on return, and the run can be resumed.

        Parameters
        ----------
        trainer : Trainer
            As Lightning has it.
        pl_module : LightningModule
            Likewise.
        exception : BaseException
            Likewise.
        """
        if self._ranks is not None:
            self._ranks.on_exception(trainer, pl_module, exception)
        self._is_open = False
        self._let_loaders_go()
        self._store.abandon()

    def teardown(self, trainer: Trainer | None, pl_module: LightningModule | None, stage: str) -> None:
        """Close, at the end of predicting.

        Parameters
        ----------
        trainer : Trainer or None
            As Lightning has it.
        pl_module : LightningModule or None
            Likewise.
        stage : str
            All but ``"predict"`` are ignored.
        """
        if stage != "predict":
            return
        self._let_loaders_go()
        ranks, self._ranks = self._ranks, None
        if ranks is not None and trainer is not None and pl_module is not None:
            ranks.teardown(trainer, pl_module, stage)
            self._store.rows = len(self._frame) if ranks.complete else 0
            if ranks.complete and trainer.is_global_zero:
                export_predictions(self.store_path, self._output, self._embeddings)
        self.close()

    def _let_loaders_go(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def close(self) -> None:
        """Write the files if every row is there, else leave the store to be resumed.

        On return either the files are whole and durable, or every finished batch is durable in the store,
        and a warning says how many rows are missing. Doing it twice does no harm.

        Raises
        ------
        WriteFailedError
            If a row could not be written.
        OSError
            If a file could not be written. The store is complete then: the same run again writes the files.
        """
        if not self._is_open:
            return
        self._is_open = False
        if not self._store.close():
            expected = len(self._frame)
            warnings.warn(
                f"{self._output} is not written: {expected - self._offset} of {expected} rows are missing; "
                f"run the same again to predict them, {self.store_path} has the others",
                stacklevel=2,
            )
            return
        export_predictions(
            self.store_path,
            self._output,
            self._embeddings,
            one_row_group_per_batch=(
                self._store.batches <= MAX_ROW_GROUPS if self._per_batch is None else self._per_batch
            ),
        )

    # The run

    def _identity(self, trainer: Trainer | None, pl_module: LightningModule | None) -> dict[str, Any]:
        """Return what the rows depend on, beside the tasks themselves."""
        rows = {"everyquery": {"rows": len(self._frame)}}
        if trainer is None or pl_module is None:
            return rows
        return rows | identify(trainer, pl_module, None)

    def _share(self, trainer: Trainer) -> PredictionWriter:
        """Return the callback that writes on several ranks."""
        if self._per_batch:
            raise InvalidInputError(
                "one_row_group_per_batch=True is for one process, as batches of several ranks alternate, got "
                f"world_size={trainer.world_size}: leave it away"
            )
        if self._may_replace:
            if trainer.is_global_zero and self._store.is_complete():
                self._store.remove()
            trainer.strategy.barrier("zarrow: the old store is gone")
        if self._store.exists:
            with open_store(self.store_path, partial=True) as store:
                if columns.BATCH in store.schema.names:
                    raise ConflictError(
                        f"{self.store_path}: the store was begun by one process, this run has "
                        f"{trainer.world_size}: go on with one, or remove it"
                    )
        return PredictionWriter(
            self.store_path,
            resume=True,
            durability=self._durability,
            provenance={"tasks_crc32c": tasks_crc32c(self._frame)},
            **preset(self._frame, embeddings=bool(self._arrays)),
        )

    # One batch

    def _find_place(self, trainer: Trainer, batch_idx: int) -> None:
        """Learn which rows a batch has: behind those of the batch before, unless Lightning knows better."""
        if self._loader is None:
            self._loader = loaders_of(trainer)[0]
        sampler = getattr(self._loader, "batch_sampler", None)
        if getattr(sampler, "seen_batch_indices", None) is None:
            return
        rows = as_indices(recorded_indices(self._loader, batch_idx), "what the sampler yields")
        if not np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)) if len(rows) else rows):
            raise BatchError(
                f"schema_df has the tasks in the dataset's order, but batch {batch_idx} has the rows "
                f"{rows[:3].tolist()}…: predict in that order, without shuffling"
            )
        if len(rows):
            self._next_row = int(rows[0])

    def _write(self, prediction: Mapping[str, Any] | None) -> None:
        wanted = [*PROBABILITIES, *self._arrays]
        missing = [ENTRIES[name] for name in wanted if prediction is None or ENTRIES[name] not in prediction]
        if prediction is None or missing:
            got = None if prediction is None else list(prediction)
            raise BatchError(
                f"the prediction must have the entries {missing}, got {got}: "
                "return what EveryQuery's predict_step returns"
            )
        values = {name: prediction[ENTRIES[name]] for name in wanted}
        values |= {name: values[name].reshape(-1) for name in PROBABILITIES}
        rows = len(values["occurs_prob"])
        if not rows:
            return
        for name in wanted:
            if len(values[name]) != rows:
                raise BatchError(
                    f"occurs_probs has {rows} rows, {ENTRIES[name]} has {len(values[name])}: "
                    "every entry has one per task"
                )
        self._store.append(values, self._next_row, rows)
        self._next_row += rows


def _store_path(output: Path) -> Path:
    """Return where the store goes: ``predictions.zarrow`` for ``predictions.parquet.tmp``."""
    return (output.with_suffix("") if output.suffix == _TMP else output).with_suffix(".zarrow")


class _InEQPredict(StreamingPredictionWriter):
    """The writer in ``EQ_predict``, whose main was made for one process and runs in every rank."""

    _leave = False

    def teardown(self, trainer: Trainer | None, pl_module: LightningModule | None, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._leave = trainer is not None and not trainer.is_global_zero

    def close(self) -> None:
        super().close()
        if self._leave:
            # Main goes on to rename the files, which is rank 0's to do, once.
            raise SystemExit(0 if self._offset == len(self._frame) else 1)


def main() -> None:
    """Run EveryQuery's ``EQ_predict``, with its arguments, and `StreamingPredictionWriter` in it.

    Several ranks, which ``EQ_predict`` refuses, work: set ``trainer.devices`` and ``trainer.strategy`` in the
    ``resolved_config.yaml`` of the run.

    Raises
    ------
    MissingExtraError
        If EveryQuery is not installed.
    InvalidInputError
        If it is a version that has no such writer.
    """
    try:
        predict = importlib.import_module("every_query.predict.predict")
    except ImportError as error:
        raise MissingExtraError(
            "python -m zarrow.everyquery needs EveryQuery: pip install everyquery", name=error.name
        ) from error
    for name, ours in (
        ("_StreamingPredictionWriter", _InEQPredict),
        ("_check_single_process_trainer", type),  # a callable of the trainer that finds nothing wrong
    ):
        if not hasattr(predict, name):
            raise InvalidInputError(
                f"{predict.__name__} has no {name} to take the place of: install everyquery 0.7.0, which has"
            )
        setattr(predict, name, ours)
    predict.main()


if __name__ == "__main__":
    main()
