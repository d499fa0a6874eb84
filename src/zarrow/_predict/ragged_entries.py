"""Ragged entries — predictions with any number of vectors per row, without their padding.

An entry of shape ``(rows, longest, *vector_shape)`` has a mask or lengths beside it, which the caller named;
a jagged nested tensor says itself how many vectors its rows have. The valid vectors are picked where the
entry lies: padding is never copied from a device. The mask itself is copied at once: it says how many rows
there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.ragged import Ragged
from zarrow._format.vector_lists import from_any, pick_valid
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["RaggedEntries"]


@dataclass(frozen=True, slots=True)
class RaggedEntries:
    """The ragged arrays of a prediction: how many vectors each row has.

    Parameters
    ----------
    counts : dict of str to int64 array, shape (rows,)
        By the arrays' names.
    """

    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def take(
        cls, arrays: Mapping[str, Any], masks: Mapping[str, str], prediction: Mapping[str, Any]
    ) -> tuple[RaggedEntries, dict[str, Any]]:
        """Return what there is of them, and the arrays with their valid vectors in place of padded ones.

        Parameters
        ----------
        arrays : mapping of str to tensor or array
            Of a prediction.
        masks : mapping of str to str
            For each array whose rows are padded, the entry of its mask, shape (rows, longest), or of its
            lengths, shape (rows,).
        prediction : mapping of str to tensor or array
            What the step returned.

        Returns
        -------
        RaggedEntries, dict
            Vectors have shape (vectors, *vector_shape), and lie where the entry lay.

        Raises
        ------
        BatchError
            If a mask or lengths do not fit their array.
        """
        found, counts = dict(arrays), {}
        for name, value in arrays.items():
            try:
                if getattr(value, "is_nested", False):
                    found[name], counts[name] = _of_nested(value)
                elif name in masks:
                    mask = prediction[masks[name]]
                    given = {"lengths" if len(np.shape(mask)) == 1 else "mask": mask}
                    found[name], counts[name] = pick_valid(value, **given)
            except InvalidInputError as error:
                beside = f" (with {masks[name]!r})" if name in masks else ""
                raise BatchError(f"array {name!r}{beside}: {error}") from error
        return cls(counts), found

    def lengths(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return arrays in which each ragged one has its number of rows, for what counts them."""
        return {**arrays, **{name: np.empty((len(one), 0)) for name, one in self.counts.items()}}

    def rows(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return arrays in which each ragged one has its rows, once its vectors have arrived."""
        return {**arrays, **{name: Ragged(arrays[name], one) for name, one in self.counts.items()}}


def _of_nested(tensor: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the vectors of a nested tensor, where it lies, and the counts."""
    jagged = str(tensor.layout) == "torch.jagged"
    if not jagged or tensor.lengths() is not None or getattr(tensor, "_ragged_idx", 1) != 1:
        return from_any(tensor.detach().cpu())
    offsets = tensor.offsets().detach().cpu().numpy().astype(np.int64)
    return tensor.values()[int(offsets[0]) : int(offsets[-1])], np.diff(offsets)
