"""Pool — one vector per row from any number of vectors, as a derived array.

Memory is that of a block. A mean is computed in float64, and stored in the array's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import rows_of
from zarrow._format.ragged import Ragged
from zarrow._read.ragged_rows import StoreRagged
from zarrow.analysis._questions.late_interaction import blocks_of
from zarrow.analysis._rows.arguments import require_choice
from zarrow.analysis._rows.blocks import Progress
from zarrow.derived import add_array
from zarrow.errors import InvalidInputError
from zarrow.store import Store

__all__ = ["How", "pool"]

How = Literal["mean", "max", "first", "last"]

BLOCK_BYTES = 32 << 20


def pool(
    store: Store, array: str, how: How = "mean", *, name: str | None = None, progress: Progress | None = None
) -> str:
    """Make one vector per row of a ragged array, and store it as a derived array.

    Parameters
    ----------
    store : Store
        A complete store.
    array : str
        The ragged array.
    how : {"mean", "max", "first", "last"}
        The mean of a row's vectors, their largest elements, or one of them. A row without vectors becomes
        NaN; zeros where the dtype has no NaN.
    name : str, optional
        The name of the derived array; by default ``f"{array}_{how}"``.
    progress : callable, optional
        Called with the number of rows done and the total.

    Returns
    -------
    str
        The name. Stores that are already open see the array when they are reopened.

    Raises
    ------
    UnknownNameError
        If there is no such array.
    InvalidInputError
        If its rows have one vector each, which needs no pooling; or the name cannot be used.
    IncompleteStoreError, StoreLockedError, WriteFailedError
        As in `zarrow.add_array`.

    Examples
    --------
    >>> import tempfile, numpy as np, zarrow, zarrow.analysis
    >>> path = tempfile.mkdtemp() + "/tokens.zarrow"
    >>> with zarrow.Writer(path) as writer:
    ...     tokens = zarrow.Ragged(np.array([[1, 5], [3, 1], [7, 7]], "float32"), [2, 1])
    ...     writer.append({"id": [0, 1]}, {"token_embed": tokens})
    ...     _ = writer.finalize()
    >>> made = zarrow.analysis.pool(zarrow.open(path), "token_embed")
    >>> made, zarrow.open(path)[made][:].tolist()
    ('token_embed_mean', [[2.0, 3.0], [7.0, 7.0]])
    """
    require_choice("how", how, How)
    found = store[array]
    if not isinstance(found, StoreRagged):
        raise InvalidInputError(f"array {array!r} has one vector per row, so there is nothing to pool")
    wanted = f"{array}_{how}"[:64] if name is None else name
    provenance = {"pooled_from": array, "how": how}
    add_array(store, wanted, _pooled(store, found, how, progress), provenance=provenance)
    return wanted


def _pooled(
    store: Store, array: StoreRagged, how: How, progress: Progress | None
) -> Iterator[npt.NDArray[Any]]:
    vectors = rows_of(BLOCK_BYTES, int(np.prod(array.vector_shape)) * 8)
    for _, rows in blocks_of(store, array, None, vectors, progress):
        yield pooled(rows, how)
    if not len(array):
        yield np.empty((0, *array.vector_shape), array.dtype)


def pooled(rows: Ragged, how: How) -> npt.NDArray[Any]:
    """Return one vector per row.

    >>> pooled(Ragged(np.array([[1.0], [3.0]]), [2, 0]), "mean").tolist()
    [[2.0], [nan]]
    """
    empty = np.nan if rows.dtype.kind == "f" else 0
    out = np.full((len(rows), *rows.vector_shape), empty, rows.dtype)
    usable = rows.counts > 0
    starts = rows.offsets[:-1][usable]
    if not len(starts):
        return out
    if how == "first":
        out[usable] = rows.values[starts]
    elif how == "last":
        out[usable] = rows.values[rows.offsets[1:][usable] - 1]
    elif how == "max":
        out[usable] = np.maximum.reduceat(rows.values, starts, axis=0)
    else:
        counts = rows.counts[usable].reshape(-1, *[1] * len(rows.vector_shape))
        sums = np.add.reduceat(rows.values, starts, axis=0, dtype=np.float64)
        means = sums / counts
        out[usable] = means if rows.dtype.kind == "f" else np.round(means)
    return out
