"""How do the predictions of a Lightning module get into a store while it predicts?

`PredictionWriter` is a callback. Per batch it

1. finds out which rows of the dataset the batch has (`_predict_loaders`),
2. splits the prediction into columns and arrays (`_prediction_rules`) and joins the identifiers of these
   rows to them (`_identifiers`),
3. brings them to the host (`_host_copies`) and hands them to a `zarrow.Writer`, which does not wait for
   the disk.

A batch is stored whole or not at all. The store becomes complete when the run ended *and* every row that
was expected is in it; however else the run ends, the store keeps every finished batch and can be resumed.

Place: tier 4, the edge that faces Lightning; imported by nothing but `cli` and `demo`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._identifiers import Identifiers, open_identifiers
from zarrow._prediction_rules import Names, PredictionRules, count_rows
from zarrow._rows_left import RowSet
from zarrow.errors import BatchError, InvalidInputError, MissingExtraError, ZarrowError
from zarrow.writer import DEFAULT_QUEUE_BYTES, Durability, Writer

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import BasePredictionWriter

    from zarrow._host_copies import HostCopies
    from zarrow._predict_loaders import LoaderFacts, as_indices, describe, loaders_of, trim
except ImportError as error:
    raise MissingExtraError(
        f"zarrow.lightning needs {error.name}: pip install 'zarrow[predict]'", name=error.name
    ) from error

__all__ = ["PredictionWriter"]

DATALOADER_IDX = "dataloader_idx"


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
        ``"x"``: there must be no store. ``"w"``: replace one, once the new one is complete.
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
            raise InvalidInputError(f"mode must be 'x' or 'w', got {mode!r}")
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
        self._options: dict[str, Any] = {
            "keys": tuple(keys),
            "mode": mode,
            "segment_rows": segment_rows,
            "codecs": codecs,
            "durability": durability,
            "queue_bytes": queue_bytes,
            "provenance": dict(provenance or {}),
        }
        self._run: _Run | None = None
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
        """
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        if trainer.world_size > 1:
            raise InvalidInputError(
                f"PredictionWriter predicts on one device so far, got {trainer.world_size}: "
                "use Trainer(devices=1)"
            )
        self._complete = False
        identifiers = _open_all(self._identifiers_given)
        self._run = _Run(
            Writer(self.path, **self._options),
            identifiers,
            PredictionRules(*self._naming),
            HostCopies(self._dtypes),
        )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the data loaders, before the first batch.

        Parameters
        ----------
        trainer, pl_module
            As Lightning has them.
        """
        run = self._running()
        run.meet(loaders_of(trainer), given=self._sample_index is not None)
        if trainer.predict_loop.return_predictions:
            warnings.warn(
                "Lightning keeps every prediction in memory until the end, beside the store: "
                "pass return_predictions=False to trainer.predict",
                stacklevel=2,
            )

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
            self._write(run, state, prediction, batch_indices, batch)
        except ZarrowError as error:
            where = f"in batch {batch_idx} of {state.facts.name}"
            if isinstance(error, BatchError):
                raise BatchError(f"{where}: {error}") from error
            error.add_note(where)
            raise
        run.finished += 1
        state.batches += 1
        trim(state.loader, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the writer: every finished batch is accepted on return, and the store can be resumed.

        Parameters
        ----------
        trainer, pl_module, exception
            As Lightning has them.
        """
        run, self._run = self._run, None
        if run is not None:
            # The exception under way is the news; a second one would hide it.
            with contextlib.suppress(ZarrowError):
                run.writer.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the store complete if every expected row is in it; else warn and leave it resumable.

        Parameters
        ----------
        trainer, pl_module, stage
            As Lightning has them.
        """
        run, self._run = self._run, None
        if stage != "predict" or run is None:
            return
        if not run.loaders:  # without a batch Lightning skips the hooks in between
            run.meet(loaders_of(trainer), given=self._sample_index is not None)
        missing = run.missing(trainer)
        if missing:
            run.writer.close()
            warnings.warn(f"{self.path} is left incomplete: {missing}", stacklevel=2)
            return
        if run.writer.spec is None:
            self._finalize_without_rows(run)
        else:
            run.writer.finalize()
        self._complete = True

    def _finalize_without_rows(self, run: _Run) -> None:
        """Make a complete store of what is known without a prediction: the identifiers' columns."""
        run.writer.close()
        known = [one for one in run.identifiers if one is not None and one.rows is not None]
        table = known[0].take(None, np.zeros(0, np.int64), 0) if known else pa.table({})
        keys = [key for key in self._options["keys"] if key in table.column_names]
        with Writer(
            self.path, **{**self._options, "keys": keys, "schema": table.schema, "arrays": {}}
        ) as writer:
            writer.finalize()

    # One batch

    def _running(self) -> _Run:
        if self._run is None:
            raise InvalidInputError(
                "PredictionWriter's hooks must be called by a Trainer, which calls setup first"
            )
        return self._run

    def _write(
        self, run: _Run, state: _LoaderState, prediction: Any, batch_indices: Sequence[int] | None, batch: Any
    ) -> None:
        columns, arrays = run.rules.split(prediction)
        indices = self._indices(state, prediction, batch_indices, batch)
        rows = count_rows(
            columns, arrays, None if indices is None else len(indices), _INDEX_SOURCE[state.facts.order]
        )
        if indices is None:
            indices = np.arange(state.next_row, state.next_row + rows)
        known = state.facts.dataset_rows
        if known is not None and rows and state.facts.order != "running" and indices.max() >= known:
            raise BatchError(f"got dataset index {indices.max()}, but the dataset has {known} rows")
        table = self._identify(run, state, batch, indices, columns)
        hosted = run.host_copies({**columns, **arrays})
        table |= {name: hosted[name] for name in columns}
        vectors = {name: hosted[name] for name in arrays}
        fresh = self._fresh(state, indices)
        if fresh is not None:
            table = {name: _pick(values, fresh) for name, values in table.items()}
            vectors = {name: values[fresh] for name, values in vectors.items()}
            indices = indices[fresh]
        if len(indices) or not rows:
            run.writer.append(table, vectors, indices, copy=False)
        state.stored.add(indices)
        state.next_row += rows

    def _indices(
        self, state: _LoaderState, prediction: Any, batch_indices: Sequence[int] | None, batch: Any
    ) -> npt.NDArray[np.int64] | None:
        """Return the rows' places in the dataset; None if they are to be counted."""
        chosen = self._sample_index
        if isinstance(chosen, str):
            if chosen not in prediction:
                raise BatchError(
                    f"sample_index={chosen!r}: the prediction has no such entry; it has {list(prediction)}"
                )
            return as_indices(_on_host(prediction[chosen]), f"sample_index={chosen!r}")
        if chosen is not None:
            return as_indices(_on_host(chosen(batch)), "what the callable sample_index returns")
        if state.facts.order == "running":
            return None
        return as_indices(batch_indices if batch_indices is not None else [], "what the sampler yields")

    def _identify(
        self,
        run: _Run,
        state: _LoaderState,
        batch: Any,
        indices: npt.NDArray[np.int64],
        columns: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the columns that say which rows these are."""
        table: dict[str, Any] = {}
        if len(run.loaders) > 1:
            table[DATALOADER_IDX] = np.full(len(indices), state.facts.position, np.int32)
        if state.identifiers is not None:
            found = state.identifiers.take(batch, indices, len(indices))
            table |= zip(found.column_names, found.columns, strict=True)
        for name in columns:
            if name in table:
                raise BatchError(
                    f"the column {name!r} comes from the identifiers as well as from the prediction: leave "
                    f"one out (ignore=[{name!r}]), or rename one (columns={{'predicted_{name}': {name!r}}})"
                )
        return table

    def _fresh(self, state: _LoaderState, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Return which rows are new; None if all are."""
        known = state.stored.contains(indices)
        fresh = ~known
        first = np.zeros(len(indices), bool)
        first[np.unique(indices, return_index=True)[1]] = True
        fresh &= first
        if fresh.all():
            return None
        if not self._drop_duplicates:
            again = indices[~fresh]
            raise BatchError(
                f"{len(again)} of its {len(indices)} rows were stored already, the first of them dataset "
                f"index {again[0]}: use a sampler that yields every row once, or leave them out with "
                "duplicates='drop'"
            )
        return fresh


_INDEX_SOURCE = {
    "recorded": "Lightning's record of the batch",
    "given": "sample_index",
    "running": "the batch",
}


class _LoaderState:
    """How far the rows of one data loader have come."""

    def __init__(self, loader: Any, facts: LoaderFacts, identifiers: Identifiers | None) -> None:
        self.loader = loader
        self.facts = facts
        self.identifiers = identifiers
        self.stored = RowSet()
        self.next_row = 0
        self.batches = 0

    def missing(self, limit: int | float | None) -> str | None:
        """Return what is missing, in words; None if nothing is."""
        facts = self.facts
        expected = facts.expected_rows
        if expected is None and self.identifiers is not None:
            expected = self.identifiers.rows
        if expected is not None:
            left = expected - len(self.stored)
            return f"{left} of {expected} rows of {facts.name} are missing" if left > 0 else None
        if facts.expected_batches is not None:
            left = facts.expected_batches - self.batches
            return (
                f"{left} of {facts.expected_batches} batches of {facts.name} are missing"
                if left > 0
                else None
            )
        if isinstance(limit, int) and self.batches >= limit:
            return (
                f"limit_predict_batches ended {facts.name} after {len(self.stored)} rows, "
                "and nobody knows how many it has"
            )
        return None


class _Run:
    """What lives from `PredictionWriter.setup` to the end of one run."""

    def __init__(
        self,
        writer: Writer,
        identifiers: list[Identifiers | None],
        rules: PredictionRules,
        host_copies: HostCopies,
    ) -> None:
        self.writer = writer
        self.identifiers = identifiers
        self.rules = rules
        self.host_copies = host_copies
        self.loaders: list[_LoaderState] = []
        self.started = self.finished = 0

    def meet(self, loaders: list[Any], *, given: bool) -> None:
        """Get to know the data loaders, and raise if one cannot work."""
        identifiers = self.identifiers
        if len(identifiers) != len(loaders):
            if len(identifiers) == 1 and identifiers[0] is None:
                identifiers = [None] * len(loaders)
            else:
                raise InvalidInputError(
                    f"identifiers must be a list of one per predict data loader: there are {len(loaders)} "
                    f"loaders, got {len(identifiers)}"
                )
        for position, (loader, found) in enumerate(zip(loaders, identifiers, strict=True)):
            facts = describe(loader, position, given=given)
            rows = None if found is None else found.rows
            if rows is not None and facts.dataset_rows is not None and rows != facts.dataset_rows:
                raise InvalidInputError(
                    f"identifiers must have one row per sample of the dataset, {facts.dataset_rows}, got "
                    f"{rows}: those of {facts.name}, in its order"
                )
            self.loaders.append(_LoaderState(loader, facts, found))

    def missing(self, trainer: Trainer) -> str | None:
        """Return what is missing, in words; None if nothing is."""
        limit = trainer.limit_predict_batches
        found = [what for state in self.loaders if (what := state.missing(limit))]
        if self.started > self.finished:
            found.append("a step ended the run with StopIteration")
        return "; ".join(found) or None


def _open_all(given: Any) -> list[Identifiers | None]:
    return (
        [open_identifiers(one) for one in given]
        if isinstance(given, list | tuple)
        else [open_identifiers(given)]
    )


def _on_host(values: Any) -> Any:
    return values.detach().cpu() if hasattr(values, "detach") else values


def _pick(values: Any, chosen: npt.NDArray[np.bool_]) -> Any:
    """Return the chosen rows of a column."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.filter(pa.array(chosen))
    if isinstance(values, np.ndarray):
        return values[chosen]
    return [value for value, keep in zip(values, chosen, strict=True) if keep]
