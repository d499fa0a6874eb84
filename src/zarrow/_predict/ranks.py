"""Ranks — the ranks of a run open one store together, and complete it together.

Opening, in Lightning's ``setup``, which runs on every rank before the first batch:

1. rank 0 opens the store, which recovers what a dead run left, and makes an empty directory in it as a sign;
2. every rank looks for the sign (does it see this disk?) and at the samples that are stored;
3. when all have looked, the others open the store too. Nothing has been written by then, so all ranks know
   the same samples, and deal out the same batches.

A store in a bucket is opened so: every rank puts into it what a dead run has left in the spools of its
machine; rank 0 takes it over, so that no rank of that run which is only thought to be dead adds more; all
open it together; every rank looks; nothing is written before all have looked.

Ending, in ``teardown``, which runs on every rank that is alive:

1. all ranks but rank 0 close their writers;
2. then rank 0 checks that every row is in the store, and completes it; to a bucket it closes its own before,
   which puts its rows there.

A rank that dies never gets here: the others fail in the collective, and the store stays incomplete, with
every accepted row. A rank that has an error takes part in every collective before it raises, so that the
others do not wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch.distributed
from lightning.pytorch import Trainer

from zarrow._format import layout
from zarrow._predict.run import Run, Shortfall
from zarrow._storage import files
from zarrow._storage.objects import ObjectPath
from zarrow.errors import IncompleteStoreError, InvalidInputError, ZarrowError
from zarrow.writer import Writer

__all__ = ["end_together", "open_in_bucket", "open_together"]

_SHARED_DISK_TIMEOUT_S = 10.0

Seen = TypeVar("Seen")


class _Open(Protocol):
    def __call__(self, *, shared: bool) -> Writer | None: ...


def open_together(
    trainer: Trainer, path: str, open_store: _Open, look: Callable[[], Seen], join: Callable[[str], Writer]
) -> tuple[Writer | None, Seen]:
    """Open a store on every rank.

    Parameters
    ----------
    trainer : Trainer
        A trainer with several ranks.
    path : str
        The store.
    open_store : callable of (shared=True) to Writer or None
        Opens it on rank 0; returns None if it is complete and stays so.
    look : callable
        Returns what is stored.
    join : callable of str to Writer
        Opens it on another rank, at the path where it grows.

    Returns
    -------
    Writer or None, object
        This rank's writer, and what `look` returned.

    Raises
    ------
    ZarrowError
        On every rank, if rank 0 cannot open the store, or another rank does not see it.
    """
    atexit.unregister(_end_process_group)
    atexit.register(_end_process_group)
    strategy = trainer.strategy
    with contextlib.ExitStack() as opened:
        writer, failure, sign, beside = None, None, None, False
        if trainer.global_rank == 0:
            try:
                writer = open_store(shared=True)
                if writer is not None:
                    opened.callback(writer.close)
                    beside = writer.grows_at != writer.path
                    assert isinstance(writer.grows_at, Path)
                    path_of_sign = files.scratch_name(writer.grows_at / layout.OPEN_DIR)
                    files.make_dir(path_of_sign)
                    sign = path_of_sign.name
            except (ZarrowError, OSError) as error:
                failure = error
        message, sign, beside = strategy.broadcast((None if failure is None else str(failure), sign, beside))
        # The path as this rank has it, which may lead to another disk.
        grows_at = os.path.realpath(path) + (layout.INCOMING_SUFFIX if beside else "")
        if failure is not None:
            raise failure
        if message is not None:
            raise IncompleteStoreError(f"rank 0 could not open the store: {message}")
        visible = sign is None or _wait_for(Path(grows_at, layout.OPEN_DIR, sign))
        all_see_it = strategy.reduce_boolean_decision(visible)
        if sign is not None and trainer.global_rank == 0:
            files.remove_tree(Path(grows_at, layout.OPEN_DIR, sign))
        if not all_see_it:
            raise InvalidInputError(
                f"{path}: not every rank sees the store that rank 0 opened"
                f"{'' if visible else f'; rank {trainer.global_rank} does not'}: "
                "choose a path on a disk that all ranks share"
            )
        seen = look()
        strategy.barrier("zarrow: every rank has looked at the store")
        if trainer.global_rank > 0 and sign is not None:
            writer = join(grows_at)
        opened.pop_all()
    return writer, seen


def open_in_bucket(
    trainer: Trainer,
    path: ObjectPath,
    open_store: _Open,
    look: Callable[[], Seen],
    join: Callable[[], Writer],
    *,
    resumes: bool,
) -> tuple[Writer | None, Seen]:
    """Open a store in a bucket on every rank.

    Parameters
    ----------
    trainer, open_store, look
        As for `open_together`.
    path : ObjectPath
        The store.
    join : callable
        Opens it together with other ranks.
    resumes : bool
        Whether there may be a store.

    Returns
    -------
    Writer or None, object
        As from `open_together`.

    Raises
    ------
    ZarrowError
        On every rank, if one cannot open the store.
    """
    atexit.unregister(_end_process_group)
    atexit.register(_end_process_group)
    strategy = trainer.strategy

    def together(step: Callable[[], bool]) -> bool:
        """Do something on this rank; raise on all if it fails on one. Returns what rank 0 has."""
        failure: Exception | None = None
        found = False
        try:
            found = step()
        except (ZarrowError, OSError) as error:
            failure = error
        all_well = strategy.reduce_boolean_decision(failure is None)
        found, message = strategy.broadcast((found, None if failure is None else str(failure)))
        if failure is not None:
            raise failure
        if not all_well:
            raise IncompleteStoreError(f"another rank could not open the store: {message or path}")
        return found

    def recover() -> bool:
        if resumes and path.exists(layout.STORE_JSON):
            join().close()
        return True

    def take_over() -> bool:
        writer = open_store(shared=False) if trainer.global_rank == 0 else None
        if writer is not None:
            writer.close()
        return writer is not None

    together(recover)
    with contextlib.ExitStack() as opened:
        writer = None
        if together(take_over):
            writer = join()
            opened.callback(writer.close)
        # Before the look: a rank that stood still while the run was resumed without it never gets here.
        strategy.barrier("zarrow: every rank has joined the store")
        seen = look()
        strategy.barrier("zarrow: every rank has looked at the store")
        opened.pop_all()
    return writer, seen


def _end_process_group() -> None:
    """Stop gloo's threads before the interpreter ends.

    They hold Python objects. If they run until the end, they sometimes abort a process whose work is done
    (pytorch/pytorch#179291), which then looks as if it had failed. Lightning does this for nccl.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _wait_for(path: Path) -> bool:
    """Tell whether a directory appears; network disks take a moment."""
    deadline = time.monotonic() + _SHARED_DISK_TIMEOUT_S
    while not path.is_dir():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def end_together(trainer: Trainer, run: Run, path: str, finalize: Callable[[Run], None]) -> Shortfall | None:
    """Complete a store when all ranks are done, if every row is there.

    Parameters
    ----------
    trainer : Trainer
        A trainer with several ranks.
    run : Run
        The run on this rank.
    path : str
        The store.
    finalize : callable of (Run)
        Completes it, on rank 0.

    Returns
    -------
    Shortfall or None
        What is missing; None if the store is complete. The same on every rank.

    Raises
    ------
    ZarrowError
        On every rank, if one failed; the store is incomplete.
    """
    strategy = trainer.strategy
    writer = run.writer
    failure: Exception | None = None
    try:
        run.finish()
        if writer is not None and (trainer.global_rank > 0 or isinstance(writer.grows_at, ObjectPath)):
            writer.close()
        elif writer is not None:
            writer.flush()
    except ZarrowError as error:
        failure = error
    all_well = strategy.reduce_boolean_decision(failure is None)
    limit = trainer.limit_predict_batches
    cut_short = run.cut_short(limit)
    if not strategy.reduce_boolean_decision(cut_short is None):
        cut_short = cut_short or "a rank stopped before the end of its data"
    no_others = strategy.reduce_boolean_decision(run.ended_early(limit) is None)
    missing: Shortfall | None = None
    if trainer.global_rank == 0:
        try:
            grows_at = path if writer is None else writer.grows_at
            missing = run.shortfall_on_disk(grows_at, cut_short, no_others=no_others)
            if missing is None and all_well:
                finalize(run)
        except (ZarrowError, OSError) as error:
            failure = failure or error
        if writer is not None:
            with contextlib.suppress(ZarrowError):  # rank 0's own failure is known already
                writer.close()
    missing, message = strategy.broadcast((missing, None if failure is None else str(failure)))
    if failure is not None:
        raise failure
    if message is not None or not all_well:
        reason = f": {message}" if message else ""
        raise IncompleteStoreError(f"{path} is left incomplete: another rank failed{reason}")
    return missing
