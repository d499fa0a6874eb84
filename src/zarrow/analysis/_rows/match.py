"""Match — which row of one store is which row of another.

Rows are matched by their keys, which are looked up in the other store's index (`Store.locate`); by row
number; or by ``sample_index``. It takes 8 bytes per row, 24 for ``sample_index``; only narrow columns are
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow.errors import InvalidInputError, did_you_mean
from zarrow.store import Store

__all__ = ["Match", "match"]

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of rows.

    Parameters
    ----------
    a, b : int64 array, shape (n,)
        Row ``a[i]`` of one store is row ``b[i]`` of the other; `a` ascends.
    only_a, only_b : int64 array
        Rows that the other store does not have.
    """

    a: Numbers
    b: Numbers
    only_a: Numbers
    only_b: Numbers


def match(a: Store, b: Store, on: str | Sequence[str] | None) -> Match:
    """Match the rows of two stores.

    Raises
    ------
    InvalidInputError
        If `on` is not the key of `b`, or a key has several rows.
    """
    names = list(b.keys) if on is None else [on] if isinstance(on, str) else list(on)
    if names == [ROW]:
        rows = np.arange(a.num_rows)
        found = np.where(rows < b.num_rows, rows, -1)
    elif names == [SAMPLE_INDEX]:
        found = _by_sample(a, b)
    elif names and set(names) == set(b.keys):
        pieces = [b.locate(pa.Table.from_batches([batch]), missing=-1) for batch in a.scan(names)]
        found = np.concatenate([np.empty(0, np.int64), *pieces])
        if len(b.duplicated()):
            raise InvalidInputError(
                f"{b.path}: {len(b.duplicated())} rows repeat another row's key, so they cannot be matched"
            )
    else:
        keys = ", ".join(b.keys) or "none"
        raise InvalidInputError(
            f"on must name the key columns of {b.path} ({keys}), 'row' or 'sample_index', got {names}"
            + did_you_mean(names[0] if len(names) == 1 else "", [*b.keys, ROW, SAMPLE_INDEX])
        )
    matched = np.flatnonzero(found >= 0)
    rows_b = found[matched]
    taken = np.zeros(b.num_rows, np.bool_)
    taken[rows_b] = True
    if int(taken.sum()) != len(rows_b):
        raise InvalidInputError(
            f"{a.path}: some rows repeat the key of another row, so they cannot be matched"
        )
    return Match(matched, rows_b, np.flatnonzero(found < 0), np.flatnonzero(~taken))


def _by_sample(a: Store, b: Store) -> Numbers:
    samples = []
    for store in (a, b):
        column = store.table([SAMPLE_INDEX])[SAMPLE_INDEX]
        if column.null_count:
            raise InvalidInputError(
                f"{store.path}: {column.null_count} rows have no sample_index to match by"
            )
        samples.append(column.to_numpy())
    order = np.argsort(samples[1], kind="stable")
    ordered = samples[1][order]
    if len(ordered) and (np.diff(ordered) == 0).any():
        raise InvalidInputError(f"{b.path}: some rows share a sample_index, so rows cannot be matched by it")
    if not len(ordered):
        return np.full(len(samples[0]), -1)
    places = np.minimum(np.searchsorted(ordered, samples[0]), len(ordered) - 1)
    return np.where(ordered[places] == samples[0], order[places], -1)
