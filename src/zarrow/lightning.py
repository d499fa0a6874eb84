"""How do the predictions of a Lightning module get into a store while it predicts?

`PredictionWriter` is a callback. Per batch it

1. finds out which rows of the dataset the batch has (`_predict_loaders`),
2. splits the prediction into columns and arrays (`_prediction_rules`) and joins the identifiers of these
   rows to them (`_identifiers`),
3. brings them to the host (`_host_copies`) and hands them to a `zarrow.Writer`, which does not wait for
   the disk (`_predict_run`).

A batch is stored whole or not at all. The store becomes complete when the run ended *and* every row that
was expected is in it; however else the run ends, the store keeps every finished batch and can be resumed.

Every rank writes for itself. Ranks meet twice, in ``setup`` and in ``teardown``, which Lightning calls on
all of them, and never in between: they need not have the same number of batches.

Place: tier 5, the edge that faces Lightning; imported by nothing but `cli` and `demo`.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal

from zarrow import _files, layout
from zarrow._identifiers import Identifiers, open_identifiers
from zarrow._prediction_rules import Names, PredictionRules
from zarrow._rows_left import RemainingBatches, RowSet, batches_in_order
from zarrow.errors import (
    BatchError,
    IncompleteStoreError,
    InvalidInputError,
    MissingExtraError,
    SchemaMismatchError,
    StoreExistsError,
    ZarrowError,
)
from zarrow.store import Store
from zarrow.writer import DEFAULT_QUEUE_BYTES, Durability, Writer

try:
    import torch.distributed
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import BasePredictionWriter
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from zarrow._host_copies import HostCopies
    from zarrow._predict_loaders import choose_batches, loaders_of, trim
    from zarrow._predict_run import Run, stored_rows
    from zarrow._run_identity import differences, identify
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.lightning needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

__all__ = ["MissingRowsSampler", "PredictionWriter"]

SIGTERM_EXIT_CODE = 128 + 15
_SHARED_DISK_TIMEOUT_S = 10.0


class PredictionWriter(BasePredictionWriter):
    """Streams what ``predict_step`` returns into a store, batch by batch.

    ``predict_step`` returns a dict. By default its entries with one value per row become columns of the
    table, and its entries with more axes become arrays, under their own names; `columns` and `arrays`
    choose and rename. Nothing is left out unless `ignore` names it.

    Every row is stored with its ``sample_index``, the row's place in the dataset of its data loader: the
    index that Lightning reports, or, where it reports none (iterable datasets, ``batch_size=None``, lists
    of batches), the number of the rows before it. The place in a `Subset` is the place in the subset.
    With several data loaders the places begin anew for each, and a column ``dataloader_idx`` tells them
    apart.

    When the run ends, the store is made complete if every expected row is in it, and is left incomplete,
    with a warning, if not. Expected is what the sampler, else the dataset, else the identifiers count.
    Where nobody can count (a stream), the rows are all there if the stream ended by itself: neither
    ``limit_predict_batches`` nor a `StopIteration` in a step ended it.

    A run that was killed, or interrupted, goes on with ``resume=True``: the batches whose rows are all
    stored are skipped, and the others are the very batches of the first run, so that their values are,
    too. On SIGTERM, as schedulers send it, the store is made durable, and the process exits with 143.

    On several ranks each writes for itself, and the batches of one process are dealt out to them. If
    samplers divide the rows themselves, that is respected. Rank 0 completes the store when all ranks are
    done and every row is there.

    Pass ``return_predictions=False`` to ``trainer.predict``, or it keeps every prediction in memory.

    Parameters
    ----------
    path : path
        The store, a directory. Its parent must exist.
    identifiers : pyarrow Table, polars or pandas frame, path, callable, or a list of these, optional
        Columns that say who the rows are, in the dataset's order; a Parquet file (or directory of files)
        is read a row group at a time. A callable gets ``(batch, indices)`` and returns the table of the
        batch's rows. With several data loaders, a list with one for each.
    columns : sequence of str, or mapping of str to str, optional
        The entries that become columns, or names in the store and their entries:
        ``{"censor_prob": "censor_probs"}``.
    arrays : sequence of str, or mapping of str to str, optional
        The entries that become arrays, likewise.
    keys : sequence of str
        Columns that name a row; never null.
    ignore : collection of str
        Entries that are not stored.
    sample_index : str or callable, optional
        Where Lightning cannot tell a row's place in the dataset: the entry of the prediction that has it,
        or a callable that gets the batch and returns it.
    mode : {"x", "w"}
        ``"x"``: there must be no store. ``"w"``: replace one, once the new one is complete (on one rank).
    resume : bool
        Whether to go on with an incomplete store, if there is one; a complete one is left as it is.
    force : bool
        Whether to resume although model, weights, datasets or provenance are not those that the store was
        begun with.
    dtypes : mapping of str to str, optional
        Floating-point types to store columns and arrays as, e.g. ``{"query_embed": "float16"}``. By
        default they are stored as they are, and bfloat16 as float32, which holds all its values.
    duplicates : {"refuse", "drop"}
        What to do with a row that was stored already: end the run, or leave it out.
    segment_rows, codecs, durability, queue_bytes, provenance
        As `zarrow.Writer` has them.

    Raises
    ------
    InvalidInputError
        If an argument breaks a rule.

    Examples
    --------
    >>> import tempfile, torch, zarrow
    >>> import pyarrow as pa
    >>> from lightning.pytorch import LightningModule, Trainer
    >>> from torch.utils.data import DataLoader
    >>> class Model(LightningModule):
    ...     def predict_step(self, batch):
    ...         return {"prob": batch.mean(1).sigmoid(), "query_embed": batch * 2}
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> writer = PredictionWriter(path, identifiers=pa.table({"subject_id": range(10)}), keys=["subject_id"])
    >>> trainer = Trainer(
    ...     accelerator="cpu",
    ...     callbacks=[writer],
    ...     logger=False,
    ...     enable_checkpointing=False,
    ...     enable_progress_bar=False,
    ...     enable_model_summary=False,
    ... )
    >>> trainer.predict(Model(), DataLoader(torch.ones(10, 4), batch_size=4), return_predictions=False)
    >>> store = zarrow.open(path)
    >>> store.num_rows, store.schema.names, store["query_embed"][9].tolist()
    (10, ['subject_id', 'prob', 'row', 'sample_index'], [2.0, 2.0, 2.0, 2.0])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        identifiers: Any = None,
        columns: Names | None = None,
        arrays: Names | None = None,
        keys: Sequence[str] = (),
        ignore: Collection[str] = (),
        sample_index: str | Callable[[Any], Any] | None = None,
        mode: Literal["x", "w"] = "x",
        resume: bool = False,
        force: bool = False,
        dtypes: Mapping[str, str] | None = None,
        duplicates: Literal["refuse", "drop"] = "refuse",
        segment_rows: int | None = None,
        codecs: Any = None,
        durability: Durability | Literal["segment", "batch"] = "segment",
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if mode not in ("x", "w"):
            raise InvalidInputError(
                f"mode must be 'x' or 'w', got {mode!r}: resume=True goes on with a store"
            )
        if resume and mode == "w":
            raise InvalidInputError("resume=True goes on with a store and mode='w' replaces it: choose one")
        if duplicates not in ("refuse", "drop"):
            raise InvalidInputError(f"duplicates must be 'refuse' or 'drop', got {duplicates!r}")
        self.path = os.path.abspath(path)
        ignored = (
            [*ignore, sample_index]
            if isinstance(sample_index, str) and not isinstance(ignore, str)
            else ignore
        )
        self._naming = (columns, arrays, ignored)
        PredictionRules(*self._naming)
        self._dtypes = dict(dtypes or {})
        HostCopies(self._dtypes)
        self._identifiers_given = identifiers
        self._sample_index = sample_index
        self._drop_duplicates = duplicates == "drop"
        self._resume = resume
        self._force = force
        self._provenance = dict(provenance or {})
        self._keys = tuple(keys)
        self._mode: Literal["x", "w"] = mode
        self._options: dict[str, Any] = {
            "keys": self._keys,
            "segment_rows": segment_rows,
            "codecs": codecs,
            "durability": durability,
            "queue_bytes": queue_bytes,
            "provenance": self._provenance,
        }
        self._run: Run | None = None
        self._resumed: Store | None = None
        self._undo: Callable[[], None] | None = None
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the last run made the store complete."""
        return self._complete

    # Lightning's hooks, in the order in which they run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the store, before the first batch, so that what cannot work fails now.

        Parameters
        ----------
        trainer, pl_module, stage
            As Lightning has them; all but the stage ``"predict"`` are ignored.

        Raises
        ------
        StoreExistsError
            If there is a store, and neither ``mode="w"`` nor ``resume=True``.
        ZarrowError
            If no store can be written there.
        """
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        self._complete = False
        identifiers = _open_all(self._identifiers_given)
        with contextlib.ExitStack() as opened:
            writer = self._open(trainer, opened)
            before, self._resumed = self._look(trainer)
            if trainer.global_rank > 0 and not (self._resumed is not None and self._resumed.complete):
                writer = Writer(self.path, mode="a", shared=True, **self._options)
                opened.callback(writer.close)
            self._run = Run(
                writer,
                before,
                identifiers,
                PredictionRules(*self._naming),
                HostCopies(self._dtypes),
                sample_index=self._sample_index,
                drop_duplicates=self._drop_duplicates,
            )
            if before or trainer.world_size > 1:
                self._undo = choose_batches(trainer, before)
            opened.pop_all()

    def _open(self, trainer: Trainer, opened: contextlib.ExitStack) -> Writer | None:
        """Open the store on rank 0, and let every rank fail if that fails."""
        world_size = trainer.world_size
        writer, failure, marker = None, None, None
        if trainer.global_rank == 0:
            try:
                if world_size > 1 and self._mode == "w":
                    raise InvalidInputError(
                        f"mode='w' replaces a store on one rank only, got {world_size}: "
                        "remove the old one first"
                    )
                writer = self._open_here(shared=world_size > 1)
                if writer is not None:
                    opened.callback(writer.close)
                    marker = f"{layout.SCRATCH_PREFIX}{uuid.uuid4().hex}"
                    if world_size > 1:
                        _files.make_dir(Path(self.path, layout.OPEN_DIR, marker))
                        opened.callback(self._remove_marker, marker)
            except (ZarrowError, OSError) as error:
                if world_size == 1:
                    raise
                failure = error
        if world_size == 1:
            return writer
        message, marker = trainer.strategy.broadcast((None if failure is None else str(failure), marker))
        if failure is not None:
            raise failure
        if message is not None:
            raise IncompleteStoreError(f"rank 0 could not open the store: {message}")
        visible = marker is None or _wait_for(Path(self.path, layout.OPEN_DIR, marker))
        if not trainer.strategy.reduce_boolean_decision(visible):
            raise InvalidInputError(
                f"{self.path}: not every rank sees the store that rank 0 opened"
                f"{'' if visible else f'; rank {trainer.global_rank} does not'}: "
                "put it on a disk that all of them share"
            )
        if writer is not None and marker is not None:
            self._remove_marker(marker)
        return writer

    def _remove_marker(self, marker: str) -> None:
        _files.remove_tree(Path(self.path, layout.OPEN_DIR, marker))

    def _open_here(self, *, shared: bool) -> Writer | None:
        """Return a writer; None if there is a complete store, which a resumed run leaves as it is."""
        options = {**self._options, "shared": shared}
        if not self._resume:
            try:
                return Writer(self.path, mode=self._mode, **options)
            except StoreExistsError as error:
                raise StoreExistsError(
                    f"{self.path}: there is a store already: resume=True goes on with it if it is "
                    "incomplete, mode='w' replaces it"
                ) from error
        _, store = stored_rows(self.path)
        if store is not None and store.complete:
            return None
        return Writer(self.path, mode="a", **options)

    def _look(self, trainer: Trainer) -> tuple[dict[int, RowSet], Store | None]:
        """Return what is stored: the same on every rank, since nobody has written yet."""
        if not self._resume:
            found: tuple[dict[int, RowSet], Store | None] = {}, None
        else:
            found = stored_rows(self.path)
        if trainer.world_size > 1:
            trainer.strategy.barrier("zarrow: every rank knows what is stored")
        return found

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the data loaders, before the first batch.

        Parameters
        ----------
        trainer, pl_module
            As Lightning has them.
        """
        self._meet(trainer, pl_module)
        if trainer.predict_loop.return_predictions:
            warnings.warn(
                "Lightning keeps every prediction in memory until the end, beside the store: "
                "pass return_predictions=False to trainer.predict",
                stacklevel=2,
            )

    def _meet(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get to know the data loaders and the model, and raise if they do not fit the store."""
        run = self._running()
        run.meet(loaders_of(trainer), trainer.world_size)
        identity = identify(trainer, pl_module, [state.facts.dataset for state in run.loaders])
        if self._resumed is not None and not self._force:
            differing = differences(self._resumed.provenance, {**self._provenance, **identity})
            if differing:
                raise SchemaMismatchError(
                    f"{self.path}: the store was begun by another run: {'; '.join(differing)}: resume with "
                    "what it was begun with, write another store, or override with force=True"
                )
        if run.writer is not None:
            run.writer.describe(identity)

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batches that were begun: a step that ends the loop is noticed by this.

        Parameters
        ----------
        trainer, pl_module, batch, batch_idx, dataloader_idx
            As Lightning has them.
        """
        run = self._running()
        run.started += 1

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand a batch to the writer: queued on return.

        Parameters
        ----------
        trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
            As Lightning has them.

        Raises
        ------
        BatchError
            If the batch breaks a rule; nothing of it is stored, and all of the batches before it.
        WriteFailedError
            If an earlier batch could not be written; says which rows are safe.
        """
        run = self._running()
        state = run.loaders[dataloader_idx]
        try:
            run.write(dataloader_idx, batch_idx, prediction, batch)
        except ZarrowError as error:
            where = f"in batch {batch_idx} of {state.facts.name}"
            if isinstance(error, BatchError):
                raise BatchError(f"{where}: {error}") from error
            error.add_note(where)
            raise
        trim(state.loader, batch_idx)
        if trainer.received_sigterm:
            # The scheduler kills us soon, and starts us again.
            assert run.writer is not None
            run.writer.flush(durable=True)
            raise SIGTERMException(SIGTERM_EXIT_CODE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the writer: every finished batch is accepted on return, and the store can be resumed.

        Parameters
        ----------
        trainer, pl_module, exception
            As Lightning has them.
        """
        run = self._let_go()
        if run is not None and run.writer is not None:
            # The exception under way is the news; a second one would hide it.
            with contextlib.suppress(ZarrowError):
                run.writer.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the store complete if every expected row is in it; else warn and leave it resumable.

        Parameters
        ----------
        trainer, pl_module, stage
            As Lightning has them.

        Raises
        ------
        WriteFailedError
            If a row could not be written, on whatever rank.
        """
        if stage != "predict" or self._run is None:
            return
        if not self._run.loaders:  # without a batch Lightning skips the hooks in between
            self._meet(trainer, pl_module)
        run = self._let_go()
        assert run is not None
        missing = self._end(trainer, run) if trainer.world_size == 1 else self._end_together(trainer, run)
        self._complete = missing is None
        if missing is not None and trainer.is_global_zero:
            warnings.warn(
                f"{self.path} is left incomplete: {missing}: predict again with resume=True", stacklevel=2
            )

    def _running(self) -> Run:
        if self._run is None:
            raise InvalidInputError("PredictionWriter's hooks are for a Trainer, which calls setup first")
        return self._run

    def _let_go(self) -> Run | None:
        run, self._run = self._run, None
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
        return run

    # The end

    def _end(self, trainer: Trainer, run: Run) -> str | None:
        """Complete the store of one rank, or return what is missing."""
        missing = run.missing(trainer.limit_predict_batches)
        if missing is None:
            self._finalize(run)
        elif run.writer is not None:
            run.writer.close()
        return missing

    def _end_together(self, trainer: Trainer, run: Run) -> str | None:
        """Complete the store of several ranks when all of them are done, or return what is missing."""
        strategy = trainer.strategy
        failure: Exception | None = None
        try:
            if run.writer is not None and trainer.global_rank > 0:
                run.writer.close()
            elif run.writer is not None:
                run.writer.flush()
        except ZarrowError as error:
            failure = error
        # Nobody leaves a collective out, whatever happened to it: the others would wait for it forever.
        all_well = strategy.reduce_boolean_decision(failure is None)
        cut_short = run.cut_short(trainer.limit_predict_batches)
        all_done = strategy.reduce_boolean_decision(cut_short is None)
        missing = cut_short
        if trainer.global_rank == 0:
            try:
                missing = run.missing_on_disk(self.path) or cut_short
                if missing is None and not all_done:
                    missing = "a rank ended before its data did"
                if missing is None and all_well:
                    self._finalize(run)
                elif run.writer is not None:
                    run.writer.close()
            except (ZarrowError, OSError) as error:
                failure = failure or error
                if run.writer is not None:
                    with contextlib.suppress(ZarrowError):
                        run.writer.close()
        missing, message = strategy.broadcast((missing, None if failure is None else str(failure)))
        if failure is not None:
            raise failure
        if message is not None or not all_well:
            raise IncompleteStoreError(
                f"{self.path} is left incomplete: another rank failed{': ' + message if message else ''}"
            )
        return missing

    def _finalize(self, run: Run) -> None:
        if run.writer is None:
            return
        if run.writer.spec is not None:
            run.writer.finalize()
            return
        # This rank has seen no batch. If no other has, either, what the store is must be said here.
        run.writer.close()
        options = dict(self._options)
        if stored_rows(self.path)[1] is None:
            table = run.table_without_rows()
            options |= {"keys": [key for key in self._keys if key in table.column_names]}
            options |= {"schema": table.schema, "arrays": {}}
        with Writer(self.path, mode="a", **options) as writer:
            writer.finalize()


def _open_all(given: Any) -> list[Identifiers | None]:
    return (
        [open_identifiers(one) for one in given]
        if isinstance(given, list | tuple)
        else [open_identifiers(given)]
    )


def _wait_for(path: Path) -> bool:
    """Tell whether a directory appears: network disks take a moment."""
    deadline = time.monotonic() + _SHARED_DISK_TIMEOUT_S
    while not path.is_dir():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class MissingRowsSampler(RemainingBatches):
    """A batch sampler of the rows that a store does not have yet: the public way to resume.

    `PredictionWriter` chooses the batches by itself; this is for those who make their own loaders, or call
    a model themselves. It yields the batches ``[0, batch_size)``, ``[batch_size, 2 batch_size)``, … of the
    dataset, without those that are stored, and on several ranks every rank its own. It holds one bit per
    row of the dataset.

    Parameters
    ----------
    path : path
        The store, which need not be there yet. Looked at now.
    dataset : sized or int
        The dataset, or its length.
    batch_size : int
        Rows of a batch.
    dataloader_idx : int
        Of which data loader the rows are, if the store has those of several.
    rank, world_size : int, optional
        By default those of `torch.distributed`, if it was initialized, when the batches are asked for.

    Raises
    ------
    InvalidInputError
        If `batch_size` is not positive, or the store's rows have no ``sample_index``.

    Examples
    --------
    >>> import tempfile, zarrow
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> with zarrow.Writer(path) as writer:
    ...     writer.append({"x": [1.0, 2.0]}, sample_index=[0, 1])
    >>> list(MissingRowsSampler(path, 7, batch_size=2))
    [[2, 3], [4, 5], [6]]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dataset: Sized | int,
        *,
        batch_size: int,
        dataloader_idx: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be positive, got {batch_size}")
        rows = dataset if isinstance(dataset, int) else len(dataset)
        stored, _ = stored_rows(path)
        warnings.filterwarnings("ignore", f"You are using a custom batch sampler `{type(self).__name__}`")

        def ranks() -> tuple[int, int]:
            if rank is not None and world_size is not None:
                return rank, world_size
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                return torch.distributed.get_rank(), torch.distributed.get_world_size()
            return 0, 1

        super().__init__(
            batches_in_order(rows, batch_size), stored.get(dataloader_idx, RowSet()), ranks, rows
        )

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches."""
        return super().__iter__()
