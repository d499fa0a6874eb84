"""Lightning — a callback that streams the predictions of a module into a store while it predicts.

Per batch `PredictionWriter`

1. finds the batch's rows in the dataset (`_predict.loaders`),
2. splits the prediction into columns and arrays (`_predict.rules`) and joins the rows' identifiers to them
   (`_predict.identifiers`),
3. brings them to the host (`_predict.host_copies`) and hands them to a `zarrow.Writer`, which does not wait
   for the disk (`_predict.run`).

The model waits for the copies, and for functions of the caller's; the rest is done by another thread, a few
batches behind. Every rank writes for itself. Ranks meet in ``setup`` and in ``teardown``, which Lightning
calls on all of them, and never in between: they need not have the same number of batches.

The invariant it owns: a batch is stored whole or not at all, and the store becomes complete only when the
run has ended *and* every expected row is in it. However else the run ends, the store keeps every accepted
batch and can be resumed.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from zarrow._format.given import names_in
from zarrow._format.quantized import QUANTIZED
from zarrow._format.spec import check_expected
from zarrow._predict.identifiers import open_all
from zarrow._predict.rules import EntryNames, PredictionRules
from zarrow._predict.sample_set import SampleSet
from zarrow._predict.stored_samples import stored_samples
from zarrow._storage.objects import ObjectPath, located
from zarrow._write.directory import Mode
from zarrow.errors import (
    InvalidInputError,
    MissingExtraError,
    NotFoundError,
    SchemaMismatchError,
    StoreExistsError,
    ZarrowError,
)
from zarrow.store import Store
from zarrow.store import open as open_store
from zarrow.writer import DEFAULT_QUEUE_BYTES, Durability, Writer

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import BasePredictionWriter
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from zarrow._predict.choose_batches import choose_batches
    from zarrow._predict.host_copies import HostCopies
    from zarrow._predict.identity import differences, identify
    from zarrow._predict.loaders import loaders_of
    from zarrow._predict.ranks import end_together, open_in_bucket, open_together
    from zarrow._predict.remaining_batches import MissingRowsSampler
    from zarrow._predict.run import Run, Shortfall
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.lightning needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

__all__ = ["MissingRowsSampler", "PredictionWriter"]

SIGTERM_EXIT_CODE = 128 + 15


class PredictionWriter(BasePredictionWriter):
    """Streams what ``predict_step`` returns into a store, batch by batch.

    ``predict_step`` returns a dict. By default its entries with one value per row become columns of the
    table, and its entries with more axes become arrays, under their own names; `columns` and `arrays`
    choose and rename. Nothing is left out unless `ignore` names it.

    Every row is stored with its ``sample_index``, its index in the dataset of its data loader: the index
    that Lightning reports or, where it reports none (iterable datasets, ``batch_size=None``, lists of
    batches), the number of rows before it. For a `Subset` it is the index in the subset. With several data
    loaders the indices start at 0 for each, and a column ``dataloader_idx`` distinguishes them.

    When the run ends, the store is completed if every expected row is in it; otherwise it is left
    incomplete, with a warning, and with ``mode="w"`` the old store stays. The expected number, which the
    store records, is `expected_rows`, else it comes from the sampler, else the dataset, else the identifiers.
    Where none of them has a length (a stream), all rows are there if the stream yielded any and ended by
    itself, not by ``limit_predict_batches`` or by a `StopIteration` in a step.

    A run that was killed or interrupted is resumed with ``resume=True``. Batches whose rows are all stored
    are skipped; the others are the same batches as in the first run, so their values are the same. A
    stream, which cannot skip, is predicted again, and its stored rows are left out. On SIGTERM, as
    schedulers send it, the store is made durable, and the process exits with 143. SIGKILL costs the batches
    that were still queued, usually the last one to three (50 ms; more on a GPU, at most `queue_bytes`).

    Only the run that began a store may resume it. Compared are the model's class, hyperparameters and every
    byte of its parameters and buffers (unless sharded, as by FSDP; read once, in less than a second per GB),
    settings of data module, datasets and collate functions (hyperparameters and public attributes with plain
    values), length and fingerprint of datasets, precision, versions of the packages that compute, and
    `provenance`. A fingerprint is what a dataset or data module offers as ``fingerprint`` (``_fingerprint``
    in Hugging Face's): a text, a number, or a method that returns one. Ranks, devices, workers and the batch
    size may change.

    On several ranks each writes for itself, and the batches of a single process are distributed among them.
    Samplers that divide the rows themselves are respected. Rank 0 completes the store when all ranks are
    done and every row is there.

    Pass ``return_predictions=False`` to ``trainer.predict``, or it keeps every prediction in memory.

    Parameters
    ----------
    path : path, URL, or obstore store
        The store: a directory, whose parent must exist, or a place in a bucket.
    identifiers : pyarrow Table, polars or pandas frame, path, callable, or a list of these, optional
        Columns that identify the rows, in the dataset's order; a Parquet file (or directory of files) is
        read a row group at a time. A callable gets ``(batch, sample_index)``, what the loader yielded and
        the rows' sample indices, and returns the table of the batch's rows. With several data loaders, a list
        with one for each.
    columns : sequence of str, or mapping of str to str, optional
        The entries that become columns, or a mapping of names in the store to entries:
        ``{"score": "scores"}``.
    arrays : sequence of str, or mapping of str to str, optional
        The entries that become arrays, in the same form.
    keys : sequence of str
        Columns that name a row; never null.
    ignore : collection of str
        Entries that are not stored.
    ragged : mapping of str to str, optional
        Arrays with any number of vectors per row, whose entries have shape (rows, longest, *vector_shape),
        and the entry of the mask, shape (rows, longest), or of the lengths, shape (rows,), of each:
        ``{"token_embed": "attention_mask"}``. Only valid vectors are copied from the device; the mask is not
        stored unless `columns` or `arrays` name it. Jagged nested tensors are ragged without being named.
    sample_index : str or callable, optional
        For loaders whose indices Lightning does not report: the entry of the prediction that has the rows'
        sample indices, or a callable that gets the batch and returns them.
    mode : {"x", "w"}
        ``"x"``: there must be no store. ``"w"``: replace one, once the new one is complete.
    resume : bool
        Whether to resume an incomplete store, if there is one, or one that was completed with fewer rows than
        expected; a store with all rows is left as it is.
    force : bool
        Whether to resume even if model, data, versions or provenance differ from those that the store was
        started with.
    dtypes : mapping of str to str, optional
        Floating-point types to store columns and arrays as, e.g. ``{"query_embed": "float16"}``; ``"int8"``
        quantizes an array, as `zarrow.Writer` does, on the GPU if it is there. By default they are stored
        as they are, and bfloat16 as float32, which holds all its values.
    duplicates : {"refuse", "drop"}
        What to do with a row that is predicted twice, on one rank or on several: end the run, or drop it.
        With a stream and `sample_index`, ranks learn only at the end what the others have stored: then the
        store is left incomplete, or rewritten with one of each.
    expected_rows : int, optional
        Rows that the store is to have in the end, if the loaders have no length or not all of their rows are
        predicted.
    wait_until_accepted : bool
        Whether the hook of each batch returns only when the batch is accepted, so that it survives SIGKILL.
        Otherwise the model goes on while up to `queue_bytes` of batches are on their way to the disk.
    segment_rows, codecs, durability, queue_bytes, provenance, storage_options, spool : optional
        As in `zarrow.Writer`.

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
    >>> quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
    >>> trainer = Trainer(accelerator="cpu", callbacks=[writer], logger=False, **quiet)
    >>> trainer.predict(Model(), DataLoader(torch.ones(10, 4), batch_size=4), return_predictions=False)
    >>> store = zarrow.open(path)
    >>> store.num_rows, store.schema.names, store["query_embed"][9].tolist()
    (10, ['subject_id', 'prob', 'row', 'sample_index'], [2.0, 2.0, 2.0, 2.0])
    """

    _again = "predict again with resume=True"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        identifiers: Any = None,
        columns: EntryNames | None = None,
        arrays: EntryNames | None = None,
        keys: str | Sequence[str] = (),
        ignore: Collection[str] = (),
        ragged: Mapping[str, str] | None = None,
        sample_index: str | Callable[[Any], Any] | None = None,
        mode: Literal["x", "w"] = "x",
        resume: bool = False,
        force: bool = False,
        dtypes: Mapping[str, str] | None = None,
        duplicates: Literal["refuse", "drop"] = "refuse",
        expected_rows: int | None = None,
        wait_until_accepted: bool = False,
        segment_rows: int | None = None,
        codecs: Any = None,
        durability: Durability | Literal["segment", "batch"] = "segment",
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
        provenance: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if mode not in ("x", "w"):
            raise InvalidInputError(
                f"mode must be 'x' or 'w', got {mode!r}: to continue a store, pass resume=True"
            )
        if resume and mode == "w":
            raise InvalidInputError("resume=True continues a store and mode='w' replaces it: choose one")
        if duplicates not in ("refuse", "drop"):
            raise InvalidInputError(f"duplicates must be 'refuse' or 'drop', got {duplicates!r}")
        check_expected(expected_rows)
        place = located(path, storage_options)
        self.path = str(place) if isinstance(place, Path) else place
        if isinstance(sample_index, str) and not isinstance(ignore, str):
            ignore = [*ignore, sample_index]
        self._masks = dict(ragged or {})
        self._dtypes = dict(dtypes or {})
        self._naming = (columns, arrays, ignore, tuple(self._masks.values()), tuple(self._dtypes))
        PredictionRules(*self._naming)
        HostCopies(self._dtypes)
        self._identifiers_given = identifiers
        self._sample_index = sample_index
        self._drop_duplicates = duplicates == "drop"
        self._expected_rows = expected_rows
        self._wait = wait_until_accepted
        self._force = force
        self._provenance = dict(provenance or {})
        self._mode: Mode = "a" if resume else mode
        self._options: dict[str, Any] = {
            "keys": names_in(keys), "segment_rows": segment_rows, "codecs": codecs, "durability": durability,
            "queue_bytes": queue_bytes, "provenance": self._provenance, "expected_rows": expected_rows,
            "dtypes": {name: dtype for name, dtype in self._dtypes.items() if dtype == QUANTIZED},
            "spool": spool,
        }  # fmt: skip
        self._grows_at: str | ObjectPath = self.path
        self._run: Run | None = None
        self._resumed: Store | None = None
        self._undo: Callable[[], None] | None = None
        self._complete: bool | None = None

    def __repr__(self) -> str:
        return f"<zarrow.lightning.PredictionWriter {self.path!r}, mode={self._mode!r}>"

    @property
    def complete(self) -> bool:
        """Whether the last run completed the store."""
        if self._complete is None:  # the run was in processes spawned from this one
            _, store = stored_samples(self.path, repeated_ok=True)
            return store is not None and store.complete
        return self._complete

    def _stored_rows(self) -> int:
        """Return how many rows of the run are in the store, or in the one that is to replace it."""
        try:
            with open_store(self.path if self.complete else self._grows_at, partial=True) as store:
                return store.num_rows
        except NotFoundError:
            return 0

    # Lightning's hooks, in the order in which they run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the store before the first batch, so that what cannot work fails now.

        Parameters
        ----------
        trainer, pl_module, stage : Trainer, LightningModule, str
            As Lightning passes them; stages other than ``"predict"`` are ignored.

        Raises
        ------
        StoreExistsError
            If there is a store and neither ``mode="w"`` nor ``resume=True`` was given.
        ZarrowError
            If no store can be written there.
        """
        if stage != "predict":
            return
        if not isinstance(trainer, Trainer):
            raise InvalidInputError(
                f"the Trainer must come from lightning.pytorch, got {type(trainer).__module__}.Trainer: "
                "import it from lightning.pytorch, as zarrow does"
            )
        super().setup(trainer, pl_module, stage)
        self._begin(trainer)

    def _begin(self, trainer: Trainer | None) -> Run:
        """Open the store and begin a run; without a trainer, one of the whole dataset on one rank."""
        self._complete = False
        identifiers = open_all(self._identifiers_given)
        with contextlib.ExitStack() as opened:
            if trainer is None or trainer.world_size == 1:
                writer, (before, self._resumed) = self._open(shared=False), self._look()
            elif not isinstance(self.path, str):
                if self._drop_duplicates and self._sample_index is not None:
                    raise InvalidInputError(
                        f"{self.path}: duplicates='drop' and sample_index= exclude each other on several "
                        "ranks in a bucket: ranks learn only at the end what the others have stored, and the "
                        "store would have to be rewritten: predict on a disk"
                    )
                join_bucket = partial(Writer, self.path, mode="a", shared=True, **self._options)
                opening = open_in_bucket(
                    trainer, self.path, self._open, self._look, join_bucket, resumes=self._mode == "a"
                )
                writer, (before, self._resumed) = opening
            else:
                join = partial(Writer, mode="a", shared=True, **self._options)
                opening = open_together(trainer, self.path, self._open, self._look, join)
                writer, (before, self._resumed) = opening
            grows_at = self.path if writer is None else writer.grows_at
            self._grows_at = str(grows_at) if isinstance(grows_at, Path) else grows_at
            self._before = before.get(0, SampleSet())
            if writer is not None:
                opened.callback(writer.close)
            run = Run(
                writer,
                before,
                identifiers,
                PredictionRules(*self._naming),
                HostCopies(self._dtypes),
                sample_index=self._sample_index,
                drop_duplicates=self._drop_duplicates,
                queue_bytes=self._options["queue_bytes"],
                expected_rows=self._expected_rows,
                wait=self._wait,
                masks=self._masks,
            )
            opened.callback(run.close)
            if trainer is not None and (before or trainer.world_size > 1):
                self._undo = choose_batches(trainer, before, drop_duplicates=self._drop_duplicates)
            opened.pop_all()
        self._run = run
        return run

    def _open(self, *, shared: bool) -> Writer | None:
        """Return a writer; None if the store to resume is complete, unless ranks are to add missing rows."""
        if shared and self._mode == "w" and self._drop_duplicates and self._sample_index is not None:
            raise InvalidInputError(
                "mode='w', duplicates='drop' and sample_index= exclude each other on several ranks, which "
                "learn only at the end what the others have stored: remove the old store first"
            )
        _, store = self._look()
        if store is not None and store.complete:
            expected = store.expected_rows if self._expected_rows is None else self._expected_rows
            if not shared or store.num_rows >= (expected or 0):
                return None
        try:
            return Writer(self.path, mode=self._mode, **self._options, shared=shared)
        except StoreExistsError as error:
            if self._mode == "w":
                raise
            raise StoreExistsError(
                f"{self.path}: there is a store already: resume=True continues it if it is incomplete, "
                "mode='w' replaces it once the new one is complete"
            ) from error

    def _look(self) -> tuple[dict[int, SampleSet], Store | None]:
        """Return the rows that are stored, and the store to resume, if any."""
        if self._mode != "a":
            return {}, None
        return stored_samples(self.path, repeated_ok=self._drop_duplicates)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the data loaders and the model before the first batch.

        Parameters
        ----------
        trainer, pl_module : Trainer, LightningModule
            As Lightning passes them.
        """
        self._meet(trainer, pl_module)
        self._running().go_on(self._resumed, partial(Writer, self.path, mode="a", **self._options))
        if trainer.predict_loop.return_predictions:
            warnings.warn(
                "Lightning keeps every prediction in memory until the end, in addition to the store: "
                "pass return_predictions=False to trainer.predict",
                stacklevel=2,
            )

    def _meet(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Examine the data loaders and the model, and raise if they do not fit the store."""
        run = self._running()
        run.meet(loaders_of(trainer), trainer.world_size)
        identity = identify(trainer, pl_module, [state.loader for state in run.loaders])
        if self._resumed is not None and not self._force:
            differing = differences(self._resumed.provenance, {**self._provenance, **identity})
            differing = differing or run.other_identifiers(self._resumed)
            if differing:
                raise self._started_by_another_run(differing)
        if run.writer is not None:
            run.writer.describe(identity, run.expected_rows)
        if self._resumed is not None and trainer.is_global_zero:
            run.log_taken_over(self._resumed)

    def _started_by_another_run(self, differing: Sequence[str]) -> ZarrowError:
        return SchemaMismatchError(
            f"{self.path}: the store was started by another run: {'; '.join(differing)}: resume with what it "
            "was started with, predict again (mode='w'), or take its rows over with force=True"
        )

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the started batches: a step that ends the loop leaves one more of them than finished ones.

        Parameters
        ----------
        trainer, pl_module, batch, batch_idx, dataloader_idx : Trainer, LightningModule, object, int, int
            As Lightning passes them.
        """
        self._running().started += 1

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
        """Hand a batch to the writer: queued on return, or accepted with ``wait_until_accepted``.

        Errors in a batch may be raised by the hook of a later one, or at the end.

        Parameters
        ----------
        trainer, pl_module : Trainer, LightningModule
            As Lightning passes them.
        prediction : mapping of str to tensor
            What ``predict_step`` returned.
        batch_indices : list of int
            Ignored: Lightning may pass the previous loader's indices.
        batch, batch_idx, dataloader_idx : object, int, int
            As Lightning passes them.

        Raises
        ------
        BatchError
            If this batch or an earlier one breaks a rule; the message says which one. Nothing of it is
            stored, and everything of the batches before it.
        WriteFailedError
            If an earlier batch could not be written; the message says which rows are safe.
        """
        run = self._running()
        run.write(dataloader_idx, batch_idx, prediction, batch)
        if trainer.received_sigterm:
            # The scheduler will kill this process soon, and start it again.
            run.finish(durable=True)
            raise SIGTERMException(SIGTERM_EXIT_CODE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the writer: every finished batch is accepted on return, and the store can be resumed.

        Parameters
        ----------
        trainer, pl_module, exception : Trainer, LightningModule, BaseException
            As Lightning passes them.
        """
        run = self._let_go()
        if run is not None:
            run.close()
            run.log_stored(str(self._grows_at), self._stored_rows(), self._how_to_go_on())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Complete the store if every expected row is in it; else warn, and leave it to be resumed.

        Parameters
        ----------
        trainer, pl_module, stage : Trainer, LightningModule, str
            As Lightning passes them.

        Raises
        ------
        WriteFailedError
            If a row could not be written, on any rank.
        """
        if stage != "predict" or self._run is None:
            return
        if not self._run.loaders:  # without a batch Lightning skips the other hooks
            self._meet(trainer, pl_module)
        run = self._let_go()
        assert run is not None
        try:
            if trainer.world_size == 1:
                missing = run.end(trainer.limit_predict_batches, self._finalize)
            else:
                missing = end_together(trainer, run, str(self.path), self._finalize)
        except BaseException:
            run.close()
            raise
        self._complete = missing is None
        if trainer.is_global_zero:
            self._conclude(missing)
            if self._complete:
                run.log_complete(str(self.path), self._stored_rows())

    def _conclude(self, missing: Shortfall | None) -> None:
        """Report how the run ended, on rank 0."""
        if missing is not None:
            remedy = missing.remedy(str(self.path), str(self._grows_at))
            warnings.warn(f"{self._grows_at} is left incomplete: {missing}: {remedy}", stacklevel=3)

    def _how_to_go_on(self) -> str:
        if self._mode == "w":
            return f"{self._again.removesuffix(' with resume=True')}, which starts over"
        return f"{self._again}, which predicts the rest"

    def _running(self) -> Run:
        if self._run is None:
            raise InvalidInputError(
                f"{type(self).__name__}: got a batch outside of a run: a Trainer calls setup before, and "
                "teardown after"
            )
        return self._run

    def _let_go(self) -> Run | None:
        run, self._run = self._run, None
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
        return run

    def _finalize(self, run: Run) -> None:
        """Complete the store, when every rank has stored its rows."""
        if run.writer is not None and run.writer.closed:  # of several ranks, which have left it in a bucket
            run.writer = Writer(self.path, mode="a", **self._options)
        run.complete(self.path, self._store_without_rows)

    def _store_without_rows(self, run: Run) -> None:
        """Make a complete store without any row: no rank had a batch, which would have defined it."""
        options = {**self._options, **self._without_rows(run), "expected_rows": run.expected_rows}
        with Writer(self.path, mode="a" if self._mode == "x" else self._mode, **options) as writer:
            writer.finalize()

    def _without_rows(self, run: Run) -> dict[str, Any]:
        """Return how a store without any batch is declared: with the identifiers' columns."""
        table = run.table_without_rows()
        keys = [key for key in self._options["keys"] if key in table.column_names]
        return {"keys": keys, "schema": table.schema, "arrays": {}, "dtypes": {}}
