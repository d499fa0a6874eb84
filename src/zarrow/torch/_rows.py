"""Rows — a batch that was read in one go, as the sequence of rows that torch's loaders take.

A DataLoader asks a dataset for the rows of a batch and has them collated. `BatchRows` looks like their list,
and `collate` returns the batch that it was made of. So does torch's own ``default_collate``, which is told
here what to do with a `_Row`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from zarrow.errors import InvalidInputError
from zarrow.torch._ragged import Form, joined
from zarrow.torch._source import TensorBatch

__all__ = ["BatchRows", "collate"]


class _Row(dict[str, Any]):
    """A row of a batch, by which ``default_collate`` knows whom to ask, and how rows are joined."""

    def __init__(self, values: Mapping[str, Any], ragged: Mapping[str, Form]) -> None:
        super().__init__(values)
        self.ragged = ragged

    def __reduce__(self) -> tuple[Any, ...]:
        return _Row, (dict(self), dict(self.ragged))


class BatchRows(Sequence[TensorBatch]):
    """A batch as the sequence of its rows; `collate` takes it whole.

    Parameters
    ----------
    batch : dict of str to tensor or list
        The batch.
    count : int
        Its rows.
    ragged : dict of str to {"jagged", "padded"}
        Its tensors whose rows have any number of vectors.
    """

    def __init__(self, batch: TensorBatch, count: int, ragged: Mapping[str, Form]) -> None:
        self.batch, self._count, self._ragged = batch, count, ragged

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(self._count))]
        if not -self._count <= row < self._count:
            raise IndexError(f"row {row} is not in a batch of {self._count} rows")
        return _Row({name: values[row] for name, values in self.batch.items()}, self._ragged)


def collate(rows: Sequence[TensorBatch]) -> TensorBatch:
    """Return a batch of rows, without a copy if it was read as one; for a DataLoader's ``collate_fn``.

    torch's own ``default_collate`` gives the same, but splits the batch into rows first, and refuses strings
    that are null.

    Parameters
    ----------
    rows : sequence of dict
        From `StoreDataset`.

    Returns
    -------
    dict of str to tensor or list
        One row behind the other; rows of ragged arrays jagged or padded, as the dataset has them.

    Examples
    --------
    >>> import zarrow.testing
    >>> from zarrow.torch import StoreDataset
    >>> dataset = StoreDataset(zarrow.testing.example_store(), columns=["occurs_prob"])
    >>> collate([dataset[0], dataset[4999]])["occurs_prob"]
    tensor([0.0000, 0.9998], dtype=torch.float64)
    """
    if isinstance(rows, BatchRows):
        return rows.batch
    if not rows:
        raise InvalidInputError("a batch must have at least one row, got none")
    found: TensorBatch = {}
    ragged: Mapping[str, Form] = getattr(rows[0], "ragged", {})
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if not isinstance(first, torch.Tensor):
            found[name] = values
        else:
            found[name] = joined(values, ragged[name]) if name in ragged else torch.stack(values)
    return found


def _collate_rows(rows: Sequence[TensorBatch], **_: object) -> TensorBatch:
    return collate(rows)


default_collate_fn_map[_Row] = _collate_rows
