"""EveryQuery's predictions — `PredictionWriter` with a preset, and EveryQuery's own files at its end.

`StreamingPredictionWriter` takes the place of the writer in EveryQuery's ``EQ_predict``: same constructor,
same hooks, the same two Parquet files in the end. It also does what ``EQ_predict_multitask`` does without a
writer, in memory. In between the rows go into a store next to the files, so that a killed run loses nothing:
the same command again predicts only what is missing, on as many ranks as it likes. What it adds to
`zarrow.lightning.PredictionWriter`:

1. the preset (`_predict.everyquery_tasks`): identifiers and label from EveryQuery's frame of tasks, the names
   and types of the columns;
2. before the first batch, a comparison of the store that is there with the tasks; with ``overwrite=True``
   a new store, which replaces the old one when it is complete;
3. when every row is stored and the store is complete, the export of the files
   (`zarrow.transfer` has their format).

``python -m zarrow.everyquery`` (`zarrow.everyquery.__main__`) is ``EQ_predict`` with this writer in it, and
``python -m zarrow.everyquery multitask`` is ``EQ_predict_multitask``.

The invariant it owns: the files exist only if all their rows do. A crash leaves an incomplete store that the
next run resumes, or a complete one that it exports.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from zarrow._format.quantized import QUANTIZED
from zarrow._format.ragged import ragged
from zarrow._predict.everyquery_tasks import (
    WINDOWS,
    entries,
    frame_pipeline,
    identifiers,
    preset,
    tasks_crc32c,
)
from zarrow._predict.identity import differences
from zarrow.errors import ConflictError, InvalidInputError, NotFoundError, ZarrowError
from zarrow.lightning import PredictionWriter
from zarrow.store import Store
from zarrow.store import open as open_store
from zarrow.transfer._everyquery import ARRAY, export_predictions
from zarrow.writer import Durability, Writer

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from zarrow._predict.run import Run, Shortfall

__all__ = ["StreamingPredictionWriter", "export_predictions", "identifiers", "preset"]

_TASKS = "everyquery"
_TMP = ".tmp"


class StreamingPredictionWriter(PredictionWriter):
    """Takes the place of the streaming writer in EveryQuery's ``EQ_predict``, and serves its multitask model.

    The rows go into a store; when all of them are there, the store is completed and the Parquet files are
    written from it, the same in columns, types, order and values as EveryQuery's own; only their row groups
    have another size (`row_group_rows`). If the run ends early, by whatever means, there are no
    files, and the store has every finished batch: the same run again predicts the rest and drops nothing.
    Batches are those of the undisturbed run, so that padding, and with it every bit, is the same.

    A store is only resumed for the same tasks, model, data settings and versions (see `PredictionWriter`);
    otherwise the run is refused. A complete store of the same run is not predicted again but only exported.
    With `overwrite` everything is predicted again. On SIGTERM, as schedulers send it, the store is made
    durable, and the process exits with 143.

    With a trainer of several ranks every rank writes, and rank 0 completes the store and writes the files.
    A run that was begun on one rank goes on with any number of them, and the reverse.

    Parameters
    ----------
    output_parquet : path
        Target of the predictions. ``EQ_predict`` passes a name that ends in ``.tmp`` and renames the file.
    schema_df : polars.DataFrame
        The tasks, in the dataset's order (or a pyarrow Table): one question per row, as ``EQ_predict`` has
        them, or a sequence of questions, as ``EQ_predict_multitask`` has them. Kept, not copied.
    embeddings_output_parquet : path, optional
        Target of the embeddings; without it none are stored.
    hidden_size : int, optional
        Width of the embeddings; required if they or those of windows are stored.
    store : path, optional
        The store; by default ``predictions.zarrow`` next to ``predictions.parquet``.
    overwrite : bool
        Whether to predict all rows again, whatever store there is; it stays until the new one is complete,
        and nothing is resumed. So it is in any case if `output_parquet` ends in ``.tmp`` and there is a file
        at a final name: ``EQ_predict`` goes on from there only with ``overwrite=true``.
    durability : Durability, "segment" or "batch"
        As in `zarrow.Writer`.
    codecs : optional
        As in `zarrow.Writer`.
    dtypes : mapping of str to str, optional
        ``{"query_embed": "float16"}`` stores embeddings in half the bytes, ``"int8"`` in a quarter; the file
        has float32 in any case.
    row_group_rows : int, optional
        Rows of a row group of the files, e.g. those of a batch; by default as in `export_predictions`.
    code_to_index : mapping of str to int, optional
        As in `preset`.
    windows : bool
        Whether to store the hidden states of all windows of a row, too, as the ragged array
        ``window_embed``; the files do not have them.

    Raises
    ------
    InvalidInputError
        If an argument breaks a rule.

    Examples
    --------
    Without a trainer, by its hooks:

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

    _anew, _again = "overwrite=True", "run the same again"

    def __init__(
        self,
        output_parquet: str | os.PathLike[str],
        schema_df: Any,
        embeddings_output_parquet: str | os.PathLike[str] | None = None,
        hidden_size: int | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        durability: Durability | Literal["segment", "batch"] = "segment",
        codecs: Any = None,
        dtypes: Mapping[str, str] | None = None,
        row_group_rows: int | None = None,
        code_to_index: Mapping[str, int] | None = None,
        windows: bool = False,
    ) -> None:
        if (windows or embeddings_output_parquet is not None) and (hidden_size is None or hidden_size < 1):
            raise InvalidInputError(
                f"{'windows' if windows else 'embeddings_output_parquet'} requires hidden_size, the width of "
                f"the embeddings, got {hidden_size}: pass model.config.hidden_size"
            )
        if dtypes and dtypes.keys() - {ARRAY, WINDOWS}:
            raise InvalidInputError(
                f"dtypes can only say how {ARRAY!r} and {WINDOWS!r} are stored, got {dict(dtypes)}: "
                "EveryQuery's files have float32 probabilities"
            )
        self._output = Path(output_parquet)
        self._embeddings = None if embeddings_output_parquet is None else Path(embeddings_output_parquet)
        self._frame = schema_df
        self._row_group_rows = row_group_rows
        outputs = list(filter(None, (self._output, self._embeddings)))
        finals = [path.with_suffix("") for path in outputs if path.suffix == _TMP]
        overwrite = overwrite or any(path.exists() for path in finals)
        settings = preset(
            schema_df,
            embeddings=self._embeddings is not None,
            windows=windows,
            code_to_index=code_to_index,
        )
        settings["dtypes"] |= dtypes or {}
        super().__init__(
            (finals or outputs)[0].with_suffix(".zarrow") if store is None else store,
            mode="w" if overwrite else "x",
            resume=not overwrite,
            expected_rows=len(schema_df),
            durability=durability,
            codecs=codecs,
            **settings,
        )
        self._pipeline = frame_pipeline(schema_df)
        self._entries = {*settings["columns"].values(), *settings["arrays"].values()}
        given = {name: settings["dtypes"][name] for name in settings["arrays"]}
        shape = (hidden_size or 0,)  # 0 where nothing has it
        declared: dict[str, Any] = {
            name: (shape, "float32" if dtype == QUANTIZED else dtype) for name, dtype in given.items()
        }
        if windows:
            declared[WINDOWS] = ragged(shape, given[WINDOWS])
        self._options["arrays"] = declared

    @property
    def store_path(self) -> Path:
        """Path of the store."""
        return Path(self.path)

    @property
    def _offset(self) -> int:
        """Rows that the run has stored; the name is EveryQuery's, whose main reads it after the run."""
        return self._stored_rows()

    def setup(self, trainer: Trainer | None, pl_module: LightningModule | None, stage: str) -> None:
        """Open the store, and leave out the batches that it has.

        Parameters
        ----------
        trainer : Trainer or None
            Without one every batch must be handed over, in the tasks' order; rows that are stored are left
            out.
        pl_module : LightningModule or None
            The model, whose weights the store remembers.
        stage : str
            All but ``"predict"`` are ignored.

        Raises
        ------
        ConflictError
            If there is a store of other tasks or another model, and it may not be replaced.
        StoreLockedError
            If another run is writing the store.
        InvalidInputError
            If not every rank has the same tasks.
        """
        if stage != "predict":
            return
        for path in filter(None, (self._output, self._embeddings)):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._provenance[_TASKS] = tasks = {
            "pipeline": self._pipeline.command,
            "tasks": len(self._frame),
            "tasks_crc32c": tasks_crc32c(self._frame),
        }
        if trainer is None or pl_module is None:
            run = self._begin(None)
            run.meet([self], world_size=1)
            run.go_on(self._resumed, partial(Writer, self.path, mode="a", **self._options))
            if self._resumed is not None:
                run.log_taken_over(self._resumed)
        else:
            if trainer.world_size > 1:
                first = trainer.strategy.broadcast(tasks)
                if not trainer.strategy.reduce_boolean_decision(first == tasks):
                    raise InvalidInputError(
                        f"every rank must have the same tasks; rank 0 has {first}, rank "
                        f"{trainer.global_rank} has {tasks}: let tasks_dir be the same files on all of them"
                    )
            super().setup(trainer, pl_module, stage)

    def _open(self, *, shared: bool) -> Writer | None:
        if self._mode == "a":
            with contextlib.suppress(NotFoundError), open_store(self.path, partial=True) as store:
                differing = self._differing(store)
                if differing:
                    raise self._started_by_another_run(differing)
        return super()._open(shared=shared)

    def _differing(self, store: Store) -> list[str]:
        """Return in what a store is not that of this run, as far as is known before the model is ready."""
        if not isinstance(theirs := store.provenance.get(_TASKS), dict):
            return ["it does not say which tasks it is of"]
        found = differences(store.provenance, self._provenance)
        if theirs.get("tasks_crc32c") != self._provenance[_TASKS]["tasks_crc32c"]:
            found.append("tasks were added, removed, changed or reordered since")
        arrays: dict[str, Any] = {
            name: (array.row_shape, array.dtype.name) for name, array in store.arrays.items()
        }
        arrays |= {name: ragged(one.vector_shape, one.dtype.name) for name, one in store.ragged.items()}
        if arrays != self._options["arrays"]:
            found.append(f"arrays: the store has {arrays}, now {self._options['arrays']}")
        return found

    def _started_by_another_run(self, differing: Sequence[str]) -> ZarrowError:
        return ConflictError(
            f"{self.path}: the store was started by another run: {'; '.join(differing)}: remove it, choose "
            f"another output_parquet, or predict again with {self._anew}"
        )

    def write_on_batch_end(
        self,
        trainer: Trainer | None,
        pl_module: LightningModule | None,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand a batch to the writer: queued on return.

        Parameters
        ----------
        trainer, pl_module : Trainer, LightningModule, or None
            As in `setup`.
        prediction : mapping of str to tensor
            ``censor_probs`` and ``occurs_probs``, or ``probs`` of the multitask model, shape (rows,), and
            ``query_embed``, shape (rows, hidden_size), of any floating-point type, on any device. Other
            entries are not stored.
        batch_indices, batch, batch_idx, dataloader_idx : list of int, object, int, int
            As in `PredictionWriter`.

        Raises
        ------
        BatchError, WriteFailedError
            As in `PredictionWriter`.
        """
        if isinstance(prediction, Mapping):
            stored = {entry: prediction[entry] for entry in self._entries if entry in prediction}
            for entry in entries(self._pipeline, ()).values():
                if entry in stored:
                    stored[entry] = stored[entry].reshape(-1)
            prediction = stored
        if trainer is not None and pl_module is not None:
            super().write_on_batch_end(
                trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
            )
            return
        run = self._running()
        try:
            run.write(dataloader_idx, batch_idx, prediction, batch)
        except BaseException:
            self._let_go()
            run.close()  # rows are counted: what came after this batch would get the identifiers of others
            raise

    def teardown(self, trainer: Trainer | None, pl_module: LightningModule | None, stage: str) -> None:
        """Complete the store and write the files if every row is there; else warn, and keep the store.

        Parameters
        ----------
        trainer, pl_module, stage : Trainer or None, LightningModule or None, str
            As in `setup`.

        Raises
        ------
        WriteFailedError
            If a row could not be written, on any rank.
        OSError
            If a file could not be written. The store is complete then: the same run again writes the files.
        """
        if stage == "predict" and trainer is not None and pl_module is not None:
            super().teardown(trainer, pl_module, stage)
        elif stage == "predict":
            self.close()

    def close(self) -> None:
        """End a run without a trainer as `teardown` does; calling it again does nothing.

        Raises
        ------
        WriteFailedError, OSError
            As in `teardown`.
        """
        run = self._let_go()
        if run is None:
            return
        try:
            missing = run.end(None, self._finalize)
        except BaseException:
            run.close()
            raise
        self._complete = missing is None
        self._conclude(missing)

    def _conclude(self, missing: Shortfall | None) -> None:
        if missing is None:
            export_predictions(self.path, self._output, self._embeddings, row_group_rows=self._row_group_rows)
            return
        warnings.warn(
            f"{self._output} is not written: {self._grows_at}: {missing}: {self._how_to_go_on()}",
            stacklevel=3,
        )

    def _without_rows(self, run: Run) -> dict[str, Any]:
        empty = run.table_without_rows()
        probabilities = [pa.field(name, self._pipeline.types[name]) for name in self._pipeline.probabilities]
        return {"schema": pa.schema([*empty.schema, *probabilities])}
