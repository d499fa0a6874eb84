"""How does EveryQuery predict into a store, and keep the files that its other tools read?

`StreamingPredictionWriter` takes the place of the writer in EveryQuery's ``EQ_predict``: same constructor,
same hooks, same two Parquet files in the end. In between the rows go into a store beside the files, so
that a killed run loses nothing: the same command again predicts only what is missing. Per batch it

1. slices the identifiers and the label from EveryQuery's frame of tasks (`_prediction_files`),
2. brings probabilities and embeddings to the host, in memory of their own (`_host_copies`),
3. hands them to a `zarrow.Writer`;

and when every row is there, it finalizes the store and exports the files.

``python -m zarrow.everyquery model_run_dir=... tasks_dir=... output_parquet=...`` is ``EQ_predict`` with
this writer in it.

Place: tier 5, the edge that faces EveryQuery, of which nothing is imported but by `main`. The invariant
it owns: a row of the store has the identifiers of the task at its ``sample_index``, and was predicted by
the model, in the precision, that the store's provenance names. A crash leaves an incomplete store that
the next run resumes, or a complete one that it exports.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow import _prediction_files as files
from zarrow import layout
from zarrow._checksum import crc32c
from zarrow._prediction_files import KEYS, export_predictions, identifiers
from zarrow.errors import BatchError, ConflictError, InvalidInputError, MissingExtraError, ZarrowError
from zarrow.store import open as open_store
from zarrow.writer import Durability, Writer

try:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import BasePredictionWriter
    from torch.utils.data import DataLoader, SequentialSampler, Subset

    from zarrow._host_copies import HostCopies
    from zarrow._predict_loaders import loaders_of, trim
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.everyquery needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

__all__ = ["StreamingPredictionWriter", "export_predictions", "identifiers", "main", "preset"]

MAX_ROW_GROUPS = 1024
"""Up to so many batches each becomes a row group by default, as EveryQuery's own writer does."""

_ENTRIES = {"censor_prob": "censor_probs", "occurs_prob": "occurs_probs", files.ARRAY: "query_embed"}
_FLOAT32 = dict.fromkeys(_ENTRIES, "float32")
_IGNORED = ("occurs", "censor", "query", "duration_days")
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
    is not predicted again but only exported.

    One process predicts. On several ranks use `zarrow.lightning.PredictionWriter` with `preset`, and
    `export_predictions` afterwards.

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
    >>> import tempfile, pyarrow.parquet as pq
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
        self._label = files.has_label(files.column_names(schema_df))
        identifiers(schema_df.slice(0, 0))  # what it lacks is told now
        self._arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        if self._embeddings is not None and hidden_size is not None:
            self._arrays[files.ARRAY] = ((hidden_size,), "float32")
        self.store_path = Path(os.path.abspath(_store_path(self._output) if store is None else store))
        final = self._output.with_suffix("") if self._output.suffix == _TMP else None
        self._may_replace = overwrite or (final is not None and final.exists())
        self._per_batch = one_row_group_per_batch
        self._durability = durability
        self._is_open = False
        self._writer: Writer | None = None
        self._copies = HostCopies(_FLOAT32)
        self._loader: Any = None
        self._offset = 0  # rows that are stored; the name is EveryQuery's, which reads it
        self._next_row = 0  # the first row of the next batch; behind _offset while stored rows come again
        self._batches = 0

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
            If the trainer has several ranks.
        ConflictError
            If there is a store of other tasks or another model.
        StoreLockedError
            If another run is writing the store.
        """
        if stage != "predict":
            return
        if trainer is not None and trainer.world_size > 1:
            raise InvalidInputError(
                f"StreamingPredictionWriter writes for one process, got world_size={trainer.world_size}: use "
                "Trainer(devices=1), or zarrow.lightning.PredictionWriter(..., **zarrow.everyquery.preset("
                "schema_df)) and zarrow.everyquery.export_predictions"
            )
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._open(_facts(len(self._frame), pl_module, trainer))
        self._is_open = True
        if trainer is not None and self._offset:
            self._next_row = _skip_stored(trainer, self._offset, len(self._frame))

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
        self._write(prediction)
        if trainer is not None:
            if self._loader is None:
                self._loader = loaders_of(trainer)[dataloader_idx]
            trim(self._loader, batch_idx)

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
        self._is_open = False
        writer, self._writer = self._writer, None
        if writer is not None:
            # The exception under way is the news; a second one would hide it.
            with contextlib.suppress(ZarrowError):
                writer.close()

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
        if stage == "predict":
            self.close()

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
        writer, self._writer = self._writer, None
        expected = len(self._frame)
        if self._offset < expected:
            if writer is not None:
                writer.close()
            warnings.warn(
                f"{self._output} is not written: {expected - self._offset} of {expected} rows are missing; "
                f"run the same again to predict them, {self.store_path} has the others",
                stacklevel=2,
            )
            return
        if writer is not None:
            writer.finalize()
        export_predictions(
            self.store_path,
            self._output,
            self._embeddings,
            one_row_group_per_batch=(
                self._batches <= MAX_ROW_GROUPS if self._per_batch is None else self._per_batch
            ),
        )

    # The store

    def _open(self, facts: dict[str, Any]) -> None:
        """Create, resume, or replace the store; leaves no writer if it is complete."""
        if (self.store_path / layout.STORE_JSON).exists():
            difference = self._take_up(facts)
            if difference is None:
                return
            if not self._may_replace:
                raise ConflictError(
                    f"{self.store_path}: the store is that of another run: {difference}: remove it, choose "
                    "another output_parquet, or pass overwrite=true"
                )
            # Aside first: a half removed store would look like something that is none.
            aside = self.store_path.with_name(self.store_path.name + ".replaced")
            shutil.rmtree(aside, ignore_errors=True)
            self.store_path.rename(aside)
            shutil.rmtree(aside)
        self._writer = self._new_writer(facts)

    def _new_writer(self, facts: dict[str, Any]) -> Writer:
        schema = files.prediction_schema(label=self._label).append(pa.field(files.BATCH, pa.int32()))
        return Writer(
            self.store_path,
            arrays=self._arrays,
            schema=schema,
            keys=KEYS,
            mode="a",
            durability=self._durability,
            provenance={"everyquery": facts},
        )

    def _take_up(self, facts: dict[str, Any]) -> str | None:
        """Go on where the store ends; return what it has that we do not, if that cannot be."""
        with open_store(self.store_path, partial=True) as store:
            known = store.provenance.get("everyquery", {})
            for name, ours in facts.items():
                if ours is not None and known.get(name) is not None and known[name] != ours:
                    return f"it has {name} {known[name]}, this run has {ours}"
            ours = {name: (shape, dtype) for name, (shape, dtype) in self._arrays.items()}
            theirs = {name: (array.row_shape, array.dtype.name) for name, array in store.arrays.items()}
            if ours != theirs:
                return f"it has the arrays {theirs}, this run has {ours}"
            if (files.LABEL in store.schema.names) != self._label:
                return f"one of the two has labels ({files.LABEL}), the other has not"
            complete = store.complete
        # The lock first: what another process is writing cannot be compared.
        writer = None if complete else self._new_writer(facts)
        try:
            difference = self._compare()
        except BaseException:
            if writer is not None:
                writer.close()
            raise
        if difference is not None:
            if writer is not None:
                writer.close()
            self._offset = self._batches = 0
            return difference
        self._writer = writer
        return None

    def _compare(self) -> str | None:
        """Count the rows of the store; return the first of them that is not that of our task, in words."""
        with open_store(self.store_path, partial=True) as store:
            if store.num_rows > len(self._frame):
                return f"it has {store.num_rows} rows, this run has {len(self._frame)}"
            if store.complete and store.num_rows < len(self._frame):
                return f"it is complete with {store.num_rows} rows, this run has {len(self._frame)}"
            names = [*KEYS, *([files.LABEL] if self._label else [])]
            for batch in store.scan([*names, files.BATCH]):
                ours = identifiers(self._frame.slice(self._offset, batch.num_rows))
                for name in names:
                    if not ours[name].equals(pa.chunked_array([batch[name]])):
                        pairs = zip(batch[name].to_pylist(), ours[name].to_pylist(), strict=True)
                        row, pair = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
                        return (
                            f"in row {self._offset + row} it has {name} {pair[0]!r}, this run has {pair[1]!r}"
                        )
                self._offset += batch.num_rows
                self._batches = batch[files.BATCH][-1].as_py() + 1
        return None

    # One batch

    def _write(self, prediction: Mapping[str, Any] | None) -> None:
        wanted = ["censor_prob", "occurs_prob", *self._arrays]
        missing = [
            _ENTRIES[name] for name in wanted if prediction is None or _ENTRIES[name] not in prediction
        ]
        if prediction is None or missing:
            got = None if prediction is None else list(prediction)
            raise BatchError(
                f"the prediction must have the entries {missing}, got {got}: "
                "return what EveryQuery's predict_step returns"
            )
        values = {name: prediction[_ENTRIES[name]] for name in wanted}
        values |= {name: values[name].reshape(-1) for name in ("censor_prob", "occurs_prob")}
        rows = len(values["occurs_prob"])
        if not rows:
            return
        for name in wanted:
            if len(values[name]) != rows:
                raise BatchError(
                    f"occurs_probs has {rows} rows, {_ENTRIES[name]} has {len(values[name])}: "
                    "every entry has one per task"
                )
        files.check_range(len(self._frame), self._next_row, rows)
        stored = max(0, min(rows, self._offset - self._next_row))
        if stored < rows:
            self._append(values, rows, stored)
        self._next_row += rows

    def _append(self, values: dict[str, Any], rows: int, stored: int) -> None:
        """Append the rows of a batch but for the first `stored`, which a run that was killed wrote."""
        assert self._writer is not None
        number = self._batches - 1 if stored else self._batches
        table = identifiers(self._frame.slice(self._offset, rows - stored))
        hosted = self._copies(values)
        columns: dict[str, Any] = dict(zip(table.column_names, table.columns, strict=True))
        columns |= {name: hosted[name][stored:] for name in ("censor_prob", "occurs_prob")}
        columns[files.BATCH] = np.full(rows - stored, number, np.int32)
        arrays = {name: hosted[name][stored:] for name in self._arrays}
        self._writer.append(
            columns, arrays, np.arange(self._offset, self._offset + rows - stored), copy=False
        )
        self._offset += rows - stored
        self._batches = number + 1


def _store_path(output: Path) -> Path:
    """Return where the store goes: ``predictions.zarrow`` for ``predictions.parquet.tmp``."""
    return (output.with_suffix("") if output.suffix == _TMP else output).with_suffix(".zarrow")


def _facts(rows: int, pl_module: LightningModule | None, trainer: Trainer | None) -> dict[str, Any]:
    """Return what the rows depend on, beside the tasks themselves."""
    return {
        "rows": rows,
        "weights_crc32c": None if pl_module is None else _weights_crc32c(pl_module),
        "precision": None if trainer is None else str(trainer.precision),
    }


def _weights_crc32c(module: torch.nn.Module) -> str:
    """Return a checksum of a model's weights, by name."""
    checksum = 0
    for name, tensor in module.state_dict().items():
        checksum = crc32c(name.encode(), checksum)
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            checksum = crc32c(flat.view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def _skip_stored(trainer: Trainer, stored: int, rows: int) -> int:
    """Make the trainer predict from the first batch that is not whole in the store; return its first row.

    Whole batches are skipped and none is packed anew, so that a row is padded as it would have been. What
    cannot be skipped is predicted again, and left out where it is stored.
    """
    source = getattr(trainer.predict_loop, "_data_source", None)
    loader = getattr(source, "instance", None)
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if (
        source is None
        or type(loader) is not DataLoader
        or type(loader.sampler) is not SequentialSampler
        or loader.batch_size is None
        or len(loader.dataset) != rows  # type: ignore[arg-type]  # a sequential sampler has a sized one
    ):
        return 0
    first = rows if stored == rows else stored - stored % loader.batch_size
    workers: dict[str, Any] = (
        {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
        if loader.num_workers
        else {}
    )
    source.instance = DataLoader(
        Subset(loader.dataset, range(first, rows)),
        batch_size=loader.batch_size,
        shuffle=False,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        **workers,
    )
    return first


# Without this module's writer


class _TaskIdentifiers:
    """Finds the identifiers of a batch by its places in the dataset; can be sent to other processes."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __call__(self, batch: Any, indices: npt.NDArray[np.int64]) -> pa.Table:
        if not len(indices):
            return identifiers(self._frame.slice(0, 0))
        first, last = int(indices.min()), int(indices.max())
        files.check_range(len(self._frame), first, last + 1 - first)
        window = identifiers(self._frame.slice(first, last + 1 - first))
        return window.take(pa.array(indices - first))


def preset(schema_df: Any, *, embeddings: bool = True) -> dict[str, Any]:
    """Return arguments with which `zarrow.lightning.PredictionWriter` stores EveryQuery's predictions.

    For runs that are not ``EQ_predict``'s, several ranks among them; `export_predictions` writes
    EveryQuery's files from the store.

    Parameters
    ----------
    schema_df : polars.DataFrame or pyarrow.Table
        The tasks, in the dataset's order. Kept, not copied.
    embeddings : bool
        Whether to store ``query_embed``.

    Returns
    -------
    dict
        Keyword arguments.

    Raises
    ------
    InvalidInputError
        If the frame lacks a column.

    Examples
    --------
    >>> tasks = pa.table(
    ...     {
    ...         "subject_id": [7],
    ...         "prediction_time": pa.array([0], pa.timestamp("us")),
    ...         "query": ["HR"],
    ...         "duration_days": [30.0],
    ...     }
    ... )
    >>> preset(tasks)["keys"]
    ('subject_id', 'prediction_time', 'query', 'duration_days')
    """
    identifiers(schema_df.slice(0, 0) if hasattr(schema_df, "slice") else schema_df)
    arrays = {files.ARRAY: _ENTRIES[files.ARRAY]} if embeddings else {}
    columns = {name: entry for name, entry in _ENTRIES.items() if name != files.ARRAY}
    return {
        "identifiers": _TaskIdentifiers(schema_df),
        "columns": columns,
        "arrays": arrays,
        "keys": KEYS,
        "ignore": (*_IGNORED, *(() if embeddings else (_ENTRIES[files.ARRAY],))),
        "dtypes": dict.fromkeys((*columns, *arrays), "float32"),
    }


def main() -> None:
    """Run EveryQuery's ``EQ_predict``, with its arguments, and `StreamingPredictionWriter` in it.

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
    name = "_StreamingPredictionWriter"
    if not hasattr(predict, name):
        raise InvalidInputError(
            f"{predict.__name__} has no {name} to take the place of: install everyquery 0.7.0, which has"
        )
    setattr(predict, name, StreamingPredictionWriter)
    predict.main()


if __name__ == "__main__":
    main()
